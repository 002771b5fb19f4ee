//! Edge-triggered epoll as Linux has it: a wake-up puts a registration on the ready list, a wait asks poll
//! what is ready at that time, and nothing stays on the list.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::faults::Fault;
use super::record::{Outcome, Step, Subject};
use super::stream::Phase;
use super::table::Key;
use super::world::{Happening, World, nanoseconds};
use crate::{Errno, Events, Interest};

#[derive(Default)]
pub(super) struct Epoll {
    ready: VecDeque<Key>,
    members: BTreeSet<Key>,
    /// Tokens of registrations that have ended, each to be reported once more.
    stale: Vec<u64>,
    returned_early: bool,
}

/// One registration, kept with what is registered.
pub(super) struct Watch {
    epoll: usize,
    token: u64,
    interest: Interest,
    /// It is on the ready list, or held back from it.
    queued: bool,
    was_held: bool,
}

impl Watch {
    pub(super) const fn token(&self) -> u64 {
        self.token
    }

    /// epoll_ctl(2): errors and hang-ups are always reported.
    fn flags(&self) -> EpollFlags {
        self.interest.flags() | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP
    }
}

/// What a wake-up carries: a wait that ends with a change of state concerns everybody.
pub(super) const EVERYTHING: EpollFlags = EpollFlags::all();

impl World {
    pub(super) fn open_epoll(&mut self) -> usize {
        self.epolls.push(Epoll::default());
        self.epolls.len() - 1
    }

    pub(super) fn close_epoll(&mut self, epoll: usize) {
        for key in self.epolls.get_mut(epoll).map(std::mem::take).unwrap_or_default().members {
            if let Some(object) = self.objects.get_mut(key) {
                object.watches.retain(|watch| watch.epoll != epoll);
            }
        }
    }

    pub(super) fn add(
        &mut self,
        epoll: usize,
        key: Key,
        interest: Interest,
        token: u64,
    ) -> Result<(), Errno> {
        if self.watch_mut(epoll, key).is_some() {
            self.violation(key, "added twice to one epoll instance");
            return Err(Errno::EEXIST);
        }
        if self.strikes(Fault::Enomem) {
            return Err(Errno::ENOMEM);
        }
        if self.strikes(Fault::Enospc) {
            return Err(Errno::ENOSPC);
        }
        let watch = Watch { epoll, token, interest, queued: false, was_held: false };
        let flags = watch.flags();
        self.objects.get_mut(key).ok_or(Errno::EBADF)?.watches.push(watch);
        if let Some(epoll) = self.epolls.get_mut(epoll) {
            epoll.members.insert(key);
        }
        if self.poll(key).intersects(flags) {
            self.wake(key, EVERYTHING);
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, epoll: usize, key: Key) -> Result<(), Errno> {
        if self.unwatch(epoll, key) {
            return Ok(());
        }
        self.violation(key, "deleted from an epoll instance that does not have it");
        Err(Errno::ENOENT)
    }

    /// Ends every registration of what is being closed; says whether there was one.
    pub(super) fn unwatch_all(&mut self, key: Key) -> bool {
        let mut found = false;
        while let Some(epoll) = self.objects.get(key).and_then(|object| Some(object.watches.first()?.epoll)) {
            found |= self.unwatch(epoll, key);
        }
        found
    }

    fn unwatch(&mut self, epoll: usize, key: Key) -> bool {
        let Some(object) = self.objects.get_mut(key) else { return false };
        let Some(position) = object.watches.iter().position(|watch| watch.epoll == epoll) else {
            return false;
        };
        let watch = object.watches.remove(position);
        let stale = self.may_strike(Fault::Stale);
        if let Some(epoll) = self.epolls.get_mut(epoll) {
            epoll.members.remove(&key);
            if watch.queued {
                epoll.ready.retain(|ready| *ready != key);
            }
            if stale {
                epoll.stale.push(watch.token);
            }
        }
        true
    }

    fn watch_mut(&mut self, epoll: usize, key: Key) -> Option<&mut Watch> {
        self.objects.get_mut(key)?.watches.iter_mut().find(|watch| watch.epoll == epoll)
    }

    /// Something has happened to `key` that concerns those who wait for `flags`.
    pub(super) fn wake(&mut self, key: Key, flags: EpollFlags) {
        let Some(object) = self.objects.get_mut(key) else { return };
        if let Some(stirred) = &mut self.stirred
            && object.number.is_none()
        {
            stirred.insert(key.index());
        }
        for watch in &mut object.watches {
            if !watch.queued
                && watch.flags().intersects(flags)
                && let Some(epoll) = self.epolls.get_mut(watch.epoll)
            {
                watch.queued = true;
                epoll.ready.push_back(key);
            }
        }
    }

    /// The time of an event that was held back has come.
    pub(super) fn release(&mut self, epoll: usize, key: Key) {
        if self.watch_mut(epoll, key).is_some_and(|watch| watch.queued)
            && let Some(epoll) = self.epolls.get_mut(epoll)
            && !epoll.ready.contains(&key)
        {
            epoll.ready.push_back(key);
        }
    }

    pub(super) fn wait(
        &mut self,
        epoll: usize,
        events: &mut Events,
        timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        events.set_filled(0);
        self.begin(Step::Wait);
        self.skip(Duration::from_micros(1));
        let room = events.buffer_mut().len();
        let result = self.wait_for(epoll, room, timeout);
        let outcome = result
            .as_ref()
            .map_or_else(|&errno| Outcome::Failed(errno), |batch| Outcome::Number(batch.len() as u64));
        self.note(Subject::Epoll(epoll), "wait", outcome);
        let batch = result?;
        for (place, (token, flags)) in events.buffer_mut().iter_mut().zip(&batch) {
            self.note(Subject::Epoll(epoll), "event", Outcome::Event(*token, *flags));
            *place = EpollEvent::new(*flags, *token);
        }
        events.set_filled(batch.len());
        Ok(())
    }

    fn wait_for(
        &mut self,
        epoll: usize,
        room: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<(u64, EpollFlags)>, Errno> {
        self.interrupts(Step::Wait)?;
        self.disturb_clocks();
        if self.returns_early(epoll) {
            return Ok(Vec::new());
        }
        let deadline = timeout.map(|timeout| self.now().saturating_add(whole_milliseconds(timeout)));
        loop {
            self.run_due();
            let batch = self.collect(epoll, room);
            if !batch.is_empty() || deadline.is_some_and(|deadline| deadline <= self.now()) {
                if !batch.is_empty() || timeout.is_some_and(|timeout| timeout > Duration::ZERO) {
                    self.rest();
                }
                return Ok(batch);
            }
            match [self.next_happening(), deadline].into_iter().flatten().min() {
                Some(at) => self.skip_to(at),
                None => {
                    self.record.violation(format!("epoll {epoll}: waits for ever, for nothing can happen"));
                    return Ok(batch);
                }
            }
        }
    }

    fn disturb_clocks(&mut self) {
        if self.strikes(Fault::Jump) {
            let by = self.duration_between((Duration::from_millis(1), Duration::from_secs(10)));
            self.skip(by);
        }
        if self.strikes(Fault::WallJump) {
            let by = self.duration_between((Duration::from_millis(1), Duration::from_secs(3_600)));
            let forward = self.rng.bool();
            self.set_wall_clock(forward, by);
        }
    }

    fn returns_early(&mut self, epoll: usize) -> bool {
        let rested = !self.epolls.get(epoll).is_some_and(|epoll| epoll.returned_early);
        let early = rested && self.strikes(Fault::Early);
        if let Some(epoll) = self.epolls.get_mut(epoll) {
            epoll.returned_early = early;
        }
        early
    }

    /// What is ready now, at most `room` events: ep_send_events.
    fn collect(&mut self, epoll: usize, room: usize) -> Vec<(u64, EpollFlags)> {
        let mut batch = Vec::new();
        let mut left = self.epolls.get(epoll).map_or(0, |epoll| epoll.ready.len());
        while left > 0 && batch.len() < room {
            left -= 1;
            let Some(key) = self.epolls.get_mut(epoll).and_then(|epoll| epoll.ready.pop_front()) else {
                break;
            };
            batch.extend(self.report(epoll, key));
        }
        self.report_what_is_not(epoll, room, &mut batch);
        if batch.len() > 1 && self.strikes(Fault::Shuffled) {
            self.rng.shuffle(&mut batch);
        }
        batch
    }

    fn report(&mut self, epoll: usize, key: Key) -> Option<(u64, EpollFlags)> {
        if self.watch_mut(epoll, key).is_some_and(|watch| !watch.was_held) && self.strikes(Fault::Held) {
            if let Some(watch) = self.watch_mut(epoll, key) {
                watch.was_held = true;
            }
            let time = self.duration_between((Duration::ZERO, Duration::from_millis(5)));
            self.plan(time, Happening::Release(epoll, key));
            return None;
        }
        let state = self.poll(key);
        let watch = self.watch_mut(epoll, key)?;
        watch.queued = false;
        watch.was_held = false;
        let (token, flags) = (watch.token, state & watch.flags());
        if flags.is_empty() {
            return None;
        }
        if flags.contains(EpollFlags::EPOLLRDHUP)
            && let Some(stream) = self.stream_mut(key)
        {
            stream.end_told = true;
        }
        Some((token, flags))
    }

    /// Injected events: those of registrations that are no more, and those of nothing at all.
    fn report_what_is_not(&mut self, epoll: usize, room: usize, batch: &mut Vec<(u64, EpollFlags)>) {
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
        let Some(instance) = self.epolls.get_mut(epoll) else { return };
        let members: usize = instance.members.len();
        let stale = std::mem::take(&mut instance.stale);
        for token in stale {
            if batch.len() < room && !self.has_token(epoll, token) {
                self.has_struck(Fault::Stale);
                batch.push((token, both));
            }
        }
        if members > 0 && batch.len() < room && self.may_strike(Fault::Spurious) {
            let chosen = self.rng.usize(0..members);
            if let Some(key) =
                self.epolls.get(epoll).and_then(|epoll| epoll.members.iter().nth(chosen).copied())
                && !self.stream(key).is_some_and(|stream| stream.phase == Phase::Connecting)
                && let Some(watch) = self.watch_mut(epoll, key)
                && !batch.iter().any(|(token, _)| *token == watch.token)
            {
                let event = (watch.token, both & watch.flags());
                self.has_struck(Fault::Spurious);
                batch.push(event);
            }
        }
    }

    fn has_token(&self, epoll: usize, token: u64) -> bool {
        self.epolls.get(epoll).is_some_and(|instance| {
            instance.members.iter().any(|key| {
                self.objects.get(*key).is_some_and(|object| {
                    object.watches.iter().any(|watch| watch.epoll == epoll && watch.token == token)
                })
            })
        })
    }
}

/// As the real wait does it: rounded up, and at most 24 days.
fn whole_milliseconds(timeout: Duration) -> u64 {
    const MILLISECOND: u64 = 1_000_000;
    nanoseconds(timeout).div_ceil(MILLISECOND).min(u64::from(i32::MAX.unsigned_abs())) * MILLISECOND
}
