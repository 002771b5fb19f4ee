//! Echo: every byte back, in order, to whom it came from.

use epoll_protocols::Echo;
use epoll_reactor::sim::Sim;
use epoll_reactor::{Address, CloseReason, Limits};
use fastrand::Rng;

use super::failure::{Failure, demand};
use super::plan::{Plan, magnitude};
use super::scenario::{Aftermath, Scenario};
use super::session::{End, Session, Talk};
use super::voice::{self, Ear};

pub(crate) struct Echoes {
    plan: Plan,
}

/// Says its own stream, and hears it again.
pub(crate) struct Caller {
    voice: u64,
    said: u64,
    left: usize,
    ear: Ear,
}

impl Caller {
    /// One that has so many bytes to say.
    pub(crate) fn new(session: usize, left: usize) -> Self {
        Self { voice: voice::client(session), said: 0, left, ear: Ear::default() }
    }

    /// How many bytes it has heard.
    pub(crate) const fn heard(&self) -> u64 {
        self.ear.heard
    }
}

impl Talk for Caller {
    fn say(&mut self, rng: &mut Rng) -> Option<Vec<u8>> {
        if self.left == 0 {
            return None;
        }
        let count = magnitude(rng, 1, self.left.min(16 * 1024));
        let bytes = voice::speak(self.voice, self.said, count);
        self.said += count as u64;
        self.left -= count;
        Some(bytes)
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.ear.hear(bytes).map_err(|error| Failure::new("echo", error))?;
        let other = self.ear.speaker().filter(|speaker| *speaker != self.voice);
        demand!(other.is_none(), "echo", "{:#x} hears {other:x?}", self.voice);
        demand!(self.ear.heard <= self.said, "echo", "{:#x} hears what it has not said", self.voice);
        Ok(())
    }

    fn may_shout(&self) -> bool {
        true
    }
}

impl Scenario for Echoes {
    type Handler = Echo;
    type Talk = Caller;

    fn new(plan: &Plan, _: &Sim, _: &mut Rng) -> Self {
        Self { plan: plan.clone() }
    }

    fn limits(&self, drawn: Limits, _: &mut Rng) -> Limits {
        drawn
    }

    fn handler(&mut self, _: &[Address]) -> Echo {
        Echo
    }

    fn talk(&mut self, session: usize, rng: &mut Rng) -> Caller {
        let left = self.plan.bytes(rng);
        Caller::new(session, left)
    }

    fn session_of(first: &[u8]) -> Option<usize> {
        let mut ear = Ear::default();
        ear.hear(first).ok()?;
        voice::session(ear.speaker()?)
    }

    fn finish(&mut self, _: &Echo, all: &Aftermath<'_, Caller>) -> Result<(), Failure> {
        for (number, session, life) in all.each() {
            // Until its client had ended its side, and all of it was given to the kernel.
            let well = life.is_some_and(|life| matches!(life.closed, Some((CloseReason::PeerClosed, _))));
            if session.end == End::Clean && (well || all.gentle) {
                check_whole(number, session)?;
            }
        }
        Ok(())
    }
}

fn check_whole(number: usize, session: &Session<Caller>) -> Result<(), Failure> {
    let said = session.sent - session.shouted;
    demand!(
        session.talk.ear.heard == said,
        "echo",
        "session {number} ended well, and heard {} of {said} bytes",
        session.talk.ear.heard
    );
    Ok(())
}
