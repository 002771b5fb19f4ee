//! What the scenarios have in common: the handler they run, the clients they play, and what they check beside
//! what holds for every handler.

use std::time::Duration;

use epoll_reactor::sim::{Sim, SimKernel};
use epoll_reactor::{Address, ConnId, Handler, Limits, Reactor, Timestamp};
use fastrand::Rng;

use super::failure::{Failure, demand};
use super::lives::Life;
use super::plan::Plan;
use super::session::{End, Session, Talk};
use super::watched::Watched;

pub(crate) type Loop<H> = Reactor<Watched<H>, SimKernel>;

pub(crate) trait Scenario: Sized {
    type Handler: Handler;
    type Talk: Talk;

    /// Draws what it needs from the seed.
    fn new(plan: &Plan, sim: &Sim, rng: &mut Rng) -> Self;

    /// The limits of the loop; what they say of time is drawn already.
    fn limits(&self, drawn: Limits, rng: &mut Rng) -> Limits;

    fn handler(&mut self, listeners: &[Address]) -> Self::Handler;

    /// Before the first turn, while nothing goes wrong.
    ///
    /// # Errors
    /// What could not be set up.
    fn start(&mut self, reactor: &mut Loop<Self::Handler>) -> std::io::Result<()> {
        let _ = reactor;
        Ok(())
    }

    /// What the client of the next session says and expects.
    fn talk(&mut self, session: usize, rng: &mut Rng) -> Self::Talk;

    /// A message from another thread.
    fn message(&mut self, rng: &mut Rng) -> Option<<Self::Handler as Handler>::Message> {
        let _ = rng;
        None
    }

    /// Which session an input that begins so is of.
    fn session_of(first: &[u8]) -> Option<usize>;

    /// Whether the handler may be what keeps input that has arrived on `id` waiting.
    fn may_wait(handler: &Self::Handler, id: ConnId) -> bool {
        let _ = (handler, id);
        false
    }

    /// A number that grows whenever something is sent to `id` but for what it has sent itself.
    fn sent_to(handler: &Self::Handler, id: ConnId) -> u64 {
        let _ = (handler, id);
        0
    }

    /// What the handler waits for by the clock, on connections that may be closed by now.
    fn dues(handler: &Self::Handler) -> Vec<(ConnId, Timestamp)> {
        let _ = handler;
        Vec::new()
    }

    /// Whether the handler has ended its side of `id`, should that be open.
    fn has_ended_its_side(handler: &Self::Handler, id: ConnId) -> bool {
        let _ = (handler, id);
        false
    }

    /// Whether the handler is to send `id` more than its client has heard.
    fn owes(handler: &Self::Handler, id: ConnId, client: &Self::Talk) -> bool {
        let _ = (handler, id, client);
        false
    }

    /// How long the handler lets a client be that neither says nor takes anything, and has said so much; `None`: for
    /// ever.
    fn longest_silence(&self, received: u64) -> Option<Duration> {
        let _ = received;
        None
    }

    /// Between turns: what it does besides playing clients, and checks beside the invariants.
    ///
    /// # Errors
    /// What does not hold.
    fn between(
        &mut self,
        reactor: &mut Loop<Self::Handler>,
        sessions: &mut [Session<Self::Talk>],
    ) -> Result<(), Failure> {
        let _ = (reactor, sessions);
        Ok(())
    }

    /// The loop has stopped: reads whatever has arrived, for peers of its own; how many bytes that was.
    ///
    /// # Errors
    /// It is not what should have come.
    fn hear_the_rest(&mut self) -> Result<usize, Failure> {
        Ok(0)
    }

    /// Everything has ended, and each session heard what it will ever hear.
    ///
    /// # Errors
    /// What somebody did not get, or should not have got.
    fn finish(&mut self, handler: &Self::Handler, all: &Aftermath<'_, Self::Talk>) -> Result<(), Failure>;
}

/// What is left when the loop has stopped.
pub(crate) struct Aftermath<'a, T> {
    pub(crate) sessions: &'a [Session<T>],
    /// The life of each session, where it is known. One that was open when the loop was dropped has no end.
    pub(crate) lives_of: Vec<Option<&'a Life>>,
    pub(crate) gentle: bool,
}

impl<'a, T> Aftermath<'a, T> {
    pub(crate) fn each(&self) -> impl Iterator<Item = (usize, &'a Session<T>, Option<&'a Life>)> {
        let pairs = self.sessions.iter().zip(&self.lives_of);
        pairs.enumerate().map(|(number, (session, life))| (number, session, *life))
    }
}

/// What holds for every session, whatever the protocol.
pub(crate) fn check_sessions<T>(all: &Aftermath<'_, T>) -> Result<(), Failure> {
    for (number, session, life) in all.each() {
        if session.refused > 0 {
            // Nothing else is said to whoever is turned away, though a deadline may cut it short, and no handler knows of it.
            demand!(life.is_none(), "admission", "session {number} was let in, and turned away");
            demand!(
                session.heard == session.refused as u64,
                "admission",
                "session {number} was turned away, and heard {} bytes, {} of them to say so",
                session.heard,
                session.refused
            );
        }
        let Some((reason, stats)) = life.and_then(|life| life.closed) else { continue };
        // A FIN comes behind everything that the kernel took, and nothing else is heard.
        if session.end == End::Clean && session.shouted == 0 && session.heard != stats.bytes_sent {
            return Err(Failure::new(
                "lost output",
                format!(
                    "session {number} read {} bytes to a clean end, of the {} that the kernel took ({reason:?})",
                    session.heard, stats.bytes_sent
                ),
            ));
        }
        if session.heard > stats.bytes_sent {
            return Err(Failure::new(
                "output from nowhere",
                format!("session {number}: more heard than sent"),
            ));
        }
        let everything = session.sent - session.shouted;
        if life.is_some_and(|life| life.eof) && stats.bytes_received < everything {
            return Err(Failure::new(
                "lost input",
                format!(
                    "session {number} sent {everything} bytes and a FIN; on_eof came after {}",
                    stats.bytes_received
                ),
            ));
        }
    }
    Ok(())
}
