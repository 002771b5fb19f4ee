//! Who watches over the loops: a loop of its own, on the thread that runs them, which takes the signals and hears of
//! each loop's start and end.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use epoll_sys::{Signal, Timestamp};

use super::{WorkerEvent, WorkersEnd, thread_name};
use crate::ctx::Ctx;
use crate::handler::Handler;
use crate::limits::Limits;
use crate::reactor::{Reactor, Stopped};
use crate::remote::Remote;
use crate::token::ConnId;

/// What a loop's thread says of it.
pub(super) enum Word {
    Started(usize),
    /// How, or what it said when it panicked.
    Ended(usize, Result<io::Result<Outcome>, String>),
}

/// How a loop ended that did not die.
pub(super) struct Outcome {
    pub(super) stopped: Stopped,
    pub(super) cut_off: u64,
}

/// The way of the loops' threads to the supervisor.
#[derive(Clone)]
pub(super) struct Words(Remote<Word>);

impl Words {
    /// Each loop has two words, for which there is room.
    pub(super) fn tell(&self, word: Word) {
        if self.0.send(word).is_err() {
            // It has gone first, by an error that ends everything.
            log::debug!("nobody watches over the loops any more");
        }
    }
}

pub(super) struct Supervisor<M: Send, F: FnMut(WorkerEvent)> {
    reactor: Reactor<Watch<M, F>>,
}

struct Watch<M, F> {
    remotes: Arc<[Remote<M>]>,
    on_event: F,
    grace: Duration,
    draining: Vec<Signal>,
    /// When all must have ended, once that was asked for.
    deadline: Option<Timestamp>,
    /// How many loops there are whose end is to come, or has.
    running: usize,
    started: Vec<bool>,
    ended: usize,
    /// Why the loops could not be started.
    failure: Option<io::Error>,
    /// What the caller's own callback panicked with.
    panic: Option<Box<dyn Any + Send>>,
    end: WorkersEnd,
}

impl<M: Send, F: FnMut(WorkerEvent)> Supervisor<M, F> {
    pub(super) fn start(
        remotes: Arc<[Remote<M>]>,
        on_event: F,
        grace: Duration,
        draining: &[Signal],
        watched: &[Signal],
    ) -> io::Result<Self> {
        let count = remotes.len();
        let watch = Watch {
            remotes,
            on_event,
            grace,
            draining: draining.to_vec(),
            deadline: None,
            running: count,
            started: vec![false; count],
            ended: 0,
            failure: None,
            panic: None,
            end: WorkersEnd { stopped: Stopped::Drained, cut_off: 0, died: 0 },
        };
        let limits = Limits { message_queue: 2 * count.max(1), read_buffer: 1, ..Limits::default() };
        let mut reactor = Reactor::new(watch, limits)?;
        let all = [draining, watched].concat();
        if !all.is_empty() {
            reactor.watch_signals(&all)?;
        }
        Ok(Self { reactor })
    }

    pub(super) fn remote(&self) -> Words {
        Words(self.reactor.remote())
    }

    /// The loop of that index and those behind it have no thread: the others are to end.
    pub(super) fn give_up(&mut self, index: usize, error: io::Error) {
        let watch = self.reactor.handler();
        watch.running = index;
        watch.fail(io::Error::new(error.kind(), format!("cannot start {}: {error}", thread_name(index))));
    }

    /// Returns when all loops that have a thread have ended.
    pub(super) fn run(mut self) -> io::Result<WorkersEnd> {
        if self.reactor.handler().running > 0
            && let Err(error) = self.reactor.run()
        {
            // Their threads would be waited for, and nobody would be there to end them.
            self.reactor.handler().force();
            return Err(error);
        }
        let watch = self.reactor.handler();
        if let Some(panic) = watch.panic.take() {
            resume_unwind(panic);
        }
        match watch.failure.take() {
            Some(error) => Err(error),
            None => Ok(watch.end),
        }
    }
}

impl<M: Send, F: FnMut(WorkerEvent)> Watch<M, F> {
    fn force(&self) {
        self.remotes.iter().for_each(Remote::force);
    }

    fn fail(&mut self, error: io::Error) {
        if self.failure.is_none() {
            self.failure = Some(error);
            self.force();
        }
    }

    /// The loops' threads cannot be left behind, so a panic has them end first.
    fn tell(&mut self, event: WorkerEvent) {
        if self.panic.is_none()
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.on_event)(event)))
        {
            self.panic = Some(panic);
            self.force();
        }
    }

    /// The first signal drains, the second one ends.
    fn stop(&mut self, now: Timestamp, signal: Signal) {
        if self.deadline.is_some() {
            log::warn!("{signal} again: closing all connections");
            return self.force();
        }
        log::info!("{signal}: draining for up to {:?}", self.grace);
        let deadline = now + self.grace;
        self.deadline = Some(deadline);
        self.remotes.iter().for_each(|remote| remote.drain_by(deadline));
    }

    fn note_start(&mut self, index: usize) {
        if let Some(started) = self.started.get_mut(index) {
            *started = true;
        }
        if self.failure.is_none() && self.started.iter().all(|started| *started) {
            self.tell(WorkerEvent::AllStarted);
        }
    }

    fn note_death(&mut self, index: usize, why: &str) {
        self.end.died += 1;
        let left = self.running.saturating_sub(self.ended);
        let name = thread_name(index);
        match left {
            0 => log::error!("{name} has ended: {why}; no loop is left"),
            _ => {
                let count = self.remotes.len();
                log::error!(
                    "{name} has ended: {why}; its connections are closed, {left} of {count} loops left"
                );
            }
        }
        self.tell(WorkerEvent::Died(index));
    }

    fn note_end(&mut self, index: usize, ended: Result<io::Result<Outcome>, String>) {
        self.ended += 1;
        let started = self.started.get(index).copied().unwrap_or_default();
        match ended {
            Ok(Ok(Outcome { stopped, cut_off })) => {
                log::debug!("{} has ended: {stopped:?}", thread_name(index));
                self.end.cut_off += cut_off;
                self.end.stopped = hardest(self.end.stopped, stopped);
            }
            Ok(Err(error)) if started => self.note_death(index, &error.to_string()),
            Err(panic) if started => self.note_death(index, &format!("it panicked: {panic}")),
            Ok(Err(error)) => self.fail(error),
            Err(panic) => {
                self.fail(io::Error::other(format!("{} panicked at its start: {panic}", thread_name(index))));
            }
        }
    }
}

const fn hardest(one: Stopped, other: Stopped) -> Stopped {
    match (one, other) {
        (Stopped::Forced, _) | (_, Stopped::Forced) => Stopped::Forced,
        (Stopped::DeadlinePassed, _) | (_, Stopped::DeadlinePassed) => Stopped::DeadlinePassed,
        (Stopped::Drained, Stopped::Drained) => Stopped::Drained,
    }
}

impl<M: Send, F: FnMut(WorkerEvent)> Handler for Watch<M, F> {
    type Conn = ();
    type Message = Word;

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
        input.len()
    }

    fn on_message(&mut self, ctx: &mut Ctx, word: Word) {
        match word {
            Word::Started(index) => self.note_start(index),
            Word::Ended(index, ended) => {
                self.note_end(index, ended);
                if self.ended >= self.running {
                    ctx.drain(Duration::ZERO);
                }
            }
        }
    }

    fn on_signal(&mut self, ctx: &mut Ctx, signal: Signal) {
        if self.draining.contains(&signal) {
            self.stop(ctx.now(), signal);
        } else {
            self.tell(WorkerEvent::Signal(signal));
        }
    }
}
