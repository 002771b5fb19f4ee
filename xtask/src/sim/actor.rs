//! A client: one session after another, at its own pace.

use std::time::Duration;

use epoll_reactor::sim::Sim;
use epoll_reactor::{Address, Errno, Timestamp};
use fastrand::Rng;

use super::failure::Failure;
use super::plan::a_while;
use super::scenario::Scenario;
use super::session::Session;

pub(crate) struct Actor {
    rng: Rng,
    session: Option<usize>,
    /// Sessions that it has yet to begin.
    left: usize,
    next: Timestamp,
    pause: Duration,
    /// Acts in a row that came to nothing: it waits longer and longer then.
    idle: u32,
}

/// What a client finds.
pub(crate) struct Around<'a> {
    pub(crate) sim: &'a Sim,
    pub(crate) listeners: &'a [Address],
    pub(crate) gentle: bool,
    pub(crate) draining: bool,
}

impl Actor {
    /// How long it waits at most when nothing comes of it.
    const SLOW: Duration = Duration::from_millis(300);

    pub(crate) fn new(mut rng: Rng, now: Timestamp) -> Self {
        Self {
            session: None,
            left: rng.usize(1..=3),
            next: now + Duration::from_micros(rng.u64(0..2_000)),
            pause: a_while(&mut rng, Duration::from_micros(1), Duration::from_millis(200)),
            rng,
            idle: 0,
        }
    }

    /// When it will do something.
    pub(crate) const fn next(&self) -> Timestamp {
        self.next
    }

    /// It will begin no further session, and the last one is over.
    pub(crate) const fn is_done(&self) -> bool {
        self.session.is_none() && self.left == 0
    }

    /// Does what is due.
    pub(crate) fn play<S: Scenario>(
        &mut self,
        around: &Around<'_>,
        scenario: &mut S,
        sessions: &mut Vec<Session<S::Talk>>,
    ) -> Result<(), Failure> {
        if self.next > around.sim.now() {
            return Ok(());
        }
        let rest = match self.session {
            Some(number) => {
                let session = &mut sessions[number];
                let before = session.sent + session.heard;
                let rest = if session.is_over() {
                    None
                } else {
                    session.act(&mut self.rng).map_err(|failure| failure.of_session(number))?
                };
                self.idle = if session.sent + session.heard == before { self.idle + 1 } else { 0 };
                if session.is_over() {
                    self.session = None;
                }
                rest
            }
            None if self.left > 0 => self.connect(around, scenario, sessions)?,
            None => Some(Duration::from_secs(3_600)),
        };
        let longest = self.pause.max(Self::SLOW.min(self.pause * (1 << self.idle.min(20))));
        let pause = Duration::from_nanos(self.rng.u64(1..=(longest.as_nanos() as u64).max(1)));
        self.next = around.sim.now() + rest.unwrap_or(pause);
        Ok(())
    }

    /// Begins a session; how long it rests, for longer than usual.
    fn connect<S: Scenario>(
        &mut self,
        around: &Around<'_>,
        scenario: &mut S,
        sessions: &mut Vec<Session<S::Talk>>,
    ) -> Result<Option<Duration>, Failure> {
        let address = &around.listeners[self.rng.usize(0..around.listeners.len())];
        match around.sim.connect(address) {
            Ok(peer) => {
                let number = sessions.len();
                let talk = scenario.talk(number, &mut self.rng);
                sessions.push(Session::new(talk, peer, around.gentle, &mut self.rng));
                self.session = Some(number);
                self.left -= 1;
                Ok(None)
            }
            // Nobody listens any more.
            Err(Errno::ECONNREFUSED | Errno::ENOENT) if around.draining => {
                self.left = 0;
                Ok(None)
            }
            // The backlog is full.
            Err(Errno::EAGAIN) => Ok(Some(Duration::from_millis(50))),
            Err(errno) => Err(Failure::new("no listener", format!("{address}: {errno}"))),
        }
    }
}
