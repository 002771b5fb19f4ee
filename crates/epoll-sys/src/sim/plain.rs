//! Descriptors that are no sockets: eventfd(2), signalfd(2) and pipe(2). And the table of descriptors.

use nix::sys::epoll::EpollFlags;

use super::epoll::EVERYTHING;
use super::faults::Fault;
use super::record::{Outcome, Step};
use super::table::{ByteQueue, Key};
use super::world::{Kind, World};
use crate::{Errno, Signal};

pub(super) enum Plain {
    Eventfd(u64),
    /// The signals it takes, as bits.
    Signalfd(u8),
    PipeReader {
        buffer: ByteQueue,
        writer: Option<Key>,
    },
    PipeWriter {
        reader: Option<Key>,
    },
}

/// Sixteen pages (pipe(7)); a writer is told of room when a page is free.
const PIPE: usize = 65_536;
const PAGE: usize = 4_096;
/// The most an eventfd counts.
const MOST: u64 = u64::MAX - 1;

impl Plain {
    /// `room` is that of the pipe, for its writing end.
    pub(super) fn poll(&self, signals: u8, room: Option<usize>) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        match self {
            Self::Eventfd(count) => {
                flags.set(EpollFlags::EPOLLIN, *count > 0);
                flags.set(EpollFlags::EPOLLOUT, *count < MOST);
            }
            Self::Signalfd(set) => flags.set(EpollFlags::EPOLLIN, set & signals != 0),
            Self::PipeReader { buffer, writer } => {
                flags.set(EpollFlags::EPOLLIN, !buffer.is_empty());
                flags.set(EpollFlags::EPOLLHUP, writer.is_none());
            }
            Self::PipeWriter { .. } => {
                flags.set(EpollFlags::EPOLLERR, room.is_none());
                flags.set(EpollFlags::EPOLLOUT, room.is_none_or(|room| room >= PAGE));
            }
        }
        flags
    }
}

/// In the order of their numbers, which is that in which they are read.
const SIGNALS: [Signal; 5] =
    [Signal::Hangup, Signal::Interrupt, Signal::User1, Signal::User2, Signal::Terminate];

fn bit(signal: Signal) -> u8 {
    SIGNALS.iter().zip(0..).filter(|(other, _)| **other == signal).map(|(_, place)| 1 << place).sum()
}

impl World {
    // Descriptors.

    /// Injected, or because there are `max_open` already.
    pub(super) fn check_descriptor_room(&mut self) -> Result<(), Errno> {
        let open = self.numbers.len() - self.free_numbers.len();
        if open >= self.faults.max_open || self.strikes(Fault::Emfile) {
            return Err(Errno::EMFILE);
        }
        if self.strikes(Fault::Enfile) {
            return Err(Errno::ENFILE);
        }
        Ok(())
    }

    /// Gives `key` the lowest free number. The first is 3.
    pub(super) fn open(&mut self, key: Key) {
        let place = self.free_numbers.pop_first().unwrap_or(self.numbers.len());
        match self.numbers.get_mut(place) {
            Some(free) => *free = Some(key),
            None => self.numbers.push(Some(key)),
        }
        if let Some(object) = self.objects.get_mut(key) {
            object.number = i32::try_from(place + 3).ok();
        }
    }

    /// The program drops its descriptor.
    pub(super) fn close(&mut self, key: Key) {
        self.begin(Step::Close);
        self.note_for(key, "close", Outcome::Done);
        if self.objects.get(key).is_none_or(|object| object.number.is_none()) {
            self.violation(key, "closed twice");
            return;
        }
        if self.unwatch_all(key) {
            self.violation(key, "closed without having been deleted from its epoll instance");
        }
        let Some(object) = self.objects.get_mut(key) else { return };
        if let Some(place) = object.number.take().and_then(|number| usize::try_from(number - 3).ok())
            && let Some(taken) = self.numbers.get_mut(place)
        {
            *taken = None;
            self.free_numbers.insert(place);
        }
        match &object.kind {
            Kind::Stream(_) => self.close_stream(key, true),
            Kind::Listener(_) => self.close_listener(key),
            Kind::Plain(_) => self.close_plain(key),
        }
    }

    fn close_plain(&mut self, key: Key) {
        let Some(Kind::Plain(closed)) = self.objects.remove(key).map(|object| object.kind) else { return };
        let other = match closed {
            Plain::PipeReader { writer, .. } => writer,
            Plain::PipeWriter { reader } => reader,
            Plain::Eventfd(_) | Plain::Signalfd(_) => None,
        };
        let Some(other) = other else { return };
        match self.plain_mut(other) {
            Some(Plain::PipeReader { writer, .. }) => *writer = None,
            Some(Plain::PipeWriter { reader }) => *reader = None,
            _ => (),
        }
        self.wake(other, EVERYTHING);
    }

    /// What the trace calls the registration with `token` and the other end of its connection.
    pub(super) fn who_is(&self, token: u64) -> Option<String> {
        let mut open = self.numbers.iter().copied().flatten();
        let is_it = |key: &Key| {
            self.objects.get(*key).is_some_and(|object| object.watches.iter().any(|it| it.token() == token))
        };
        let key = open.find(is_it)?;
        let peer = self.stream(key).and_then(|stream| stream.peer);
        let other = peer.map_or_else(String::new, |peer| format!(", its other end {}", self.name(peer)));
        Some(format!("{}{other}", self.name(key)))
    }

    pub(super) fn open_descriptors(&self) -> Vec<String> {
        let describe = |key: Key| match &self.objects.get(key)?.kind {
            Kind::Stream(stream) => Some(format!("{} to {}", stream.local, stream.remote)),
            Kind::Listener(_) => Some("listener".to_owned()),
            Kind::Plain(Plain::Eventfd(_)) => Some("eventfd".to_owned()),
            Kind::Plain(Plain::Signalfd(_)) => Some("signalfd".to_owned()),
            Kind::Plain(Plain::PipeReader { .. } | Plain::PipeWriter { .. }) => Some("pipe".to_owned()),
        };
        (3..)
            .zip(&self.numbers)
            .filter_map(|(number, key)| Some(format!("fd {number}: {}", describe((*key)?)?)))
            .collect()
    }

    // Eventfds and signalfds.

    /// A write of the number one, which other descriptors take for the eight bytes that it is.
    pub(super) fn notify(&mut self, key: Key) -> Result<(), Errno> {
        if self.stream(key).is_some() {
            self.violation(key, "is no eventfd");
            return self.send_now(key, &[&1_u64.to_ne_bytes()], usize::MAX).map(drop);
        }
        self.add_to_eventfd(key, 1)
    }

    fn add_to_eventfd(&mut self, key: Key, number: u64) -> Result<(), Errno> {
        let Some(Plain::Eventfd(count)) = self.plain_mut(key) else {
            return Err(self.wrong_kind(key, Errno::EINVAL));
        };
        *count = count.checked_add(number).filter(|sum| *sum <= MOST).ok_or(Errno::EAGAIN)?;
        self.wake(key, EpollFlags::EPOLLIN);
        Ok(())
    }

    fn read_eventfd(&mut self, key: Key, buffer: &mut [u8]) -> Result<usize, Errno> {
        let Some(Plain::Eventfd(count)) = self.plain_mut(key) else { return Err(Errno::EBADF) };
        let place = buffer.first_chunk_mut().ok_or(Errno::EINVAL)?;
        if *count == 0 {
            return Err(Errno::EAGAIN);
        }
        *place = std::mem::take(count).to_ne_bytes();
        self.wake(key, EpollFlags::EPOLLOUT);
        Ok(size_of::<u64>())
    }

    pub(super) fn new_signalfd(&mut self, signals: &[Signal]) -> Key {
        let set = signals.iter().fold(0, |set, &signal| set | bit(signal));
        self.insert(Kind::Plain(Plain::Signalfd(set)))
    }

    /// It stays pending until it is read, and is no more than pending if it is raised again.
    pub(super) fn raise(&mut self, signal: Signal) {
        self.signals |= bit(signal);
        let takers: Vec<Key> = self
            .objects
            .iter()
            .filter(|(_, object)| matches!(object.kind, Kind::Plain(Plain::Signalfd(set)) if set & bit(signal) != 0))
            .map(|(key, _)| key)
            .collect();
        for taker in takers {
            self.wake(taker, EpollFlags::EPOLLIN);
        }
    }

    pub(super) fn read_signal(&mut self, key: Key) -> Result<Option<Signal>, Errno> {
        self.interrupts(Step::ReadSignal)?;
        match self.plain_mut(key) {
            Some(Plain::Signalfd(set)) => {
                let pending = *set & self.signals;
                let first = SIGNALS.into_iter().find(|&signal| pending & bit(signal) != 0);
                self.signals &= !first.map_or(0, bit);
                Ok(first)
            }
            Some(Plain::Eventfd(0)) => Ok(None),
            _ => Err(self.wrong_kind(key, Errno::EINVAL)),
        }
    }

    // Pipes, and what read(2) and write(2) make of each.

    /// The reading and the writing end.
    pub(super) fn new_pipe(&mut self) -> (Key, Key) {
        let reader =
            self.insert(Kind::Plain(Plain::PipeReader { buffer: ByteQueue::default(), writer: None }));
        let write_end = self.insert(Kind::Plain(Plain::PipeWriter { reader: Some(reader) }));
        if let Some(Plain::PipeReader { writer, .. }) = self.plain_mut(reader) {
            *writer = Some(write_end);
        }
        (reader, write_end)
    }

    /// For the writing end: the room in the pipe, if somebody still reads it.
    pub(super) fn pipe_reader_room(&self, writer: Key) -> Option<usize> {
        let reader = match &self.objects.get(writer)?.kind {
            Kind::Plain(Plain::PipeWriter { reader }) => self.objects.get((*reader)?)?,
            _ => return None,
        };
        match &reader.kind {
            Kind::Plain(Plain::PipeReader { buffer, .. }) => Some(PIPE.saturating_sub(buffer.len())),
            _ => None,
        }
    }

    pub(super) fn read(&mut self, key: Key, buffer: &mut [u8]) -> Result<usize, Errno> {
        if self.stream(key).is_some() {
            return self.recv(key, buffer);
        }
        self.interrupts(Step::Read)?;
        match self.plain_mut(key) {
            Some(Plain::Eventfd(_)) => self.read_eventfd(key, buffer),
            Some(Plain::PipeReader { buffer: held, writer }) => {
                let writer = *writer;
                let was_full = PIPE.saturating_sub(held.len()) < PAGE;
                if held.is_empty() && writer.is_some() && !buffer.is_empty() {
                    return Err(Errno::EAGAIN);
                }
                let taken = held.take(buffer);
                let has_room = PIPE.saturating_sub(held.len()) >= PAGE;
                if let Some(writer) = writer
                    && was_full
                    && has_room
                {
                    self.wake(writer, EpollFlags::EPOLLOUT);
                }
                Ok(taken)
            }
            _ => Err(self.wrong_kind(key, Errno::EINVAL)),
        }
    }

    pub(super) fn write(&mut self, key: Key, data: &[u8]) -> Result<usize, Errno> {
        if self.stream(key).is_some() {
            return self.send(key, &[data], Step::Write);
        }
        self.interrupts(Step::Write)?;
        match self.plain_mut(key) {
            Some(Plain::Eventfd(_)) => {
                let number = u64::from_ne_bytes(*data.first_chunk().ok_or(Errno::EINVAL)?);
                if number == u64::MAX {
                    return Err(Errno::EINVAL);
                }
                self.add_to_eventfd(key, number)?;
                Ok(size_of::<u64>())
            }
            Some(Plain::PipeWriter { reader }) => {
                let reader = reader.ok_or(Errno::EPIPE)?;
                self.write_pipe(key, reader, data)
            }
            _ => Err(self.wrong_kind(key, Errno::EBADF)),
        }
    }

    /// Up to a page is written whole or not at all (`PIPE_BUF`, pipe(7)).
    fn write_pipe(&mut self, writer: Key, reader: Key, data: &[u8]) -> Result<usize, Errno> {
        let room = self.pipe_reader_room(writer).ok_or(Errno::EPIPE)?;
        if data.is_empty() {
            return Ok(0);
        }
        if room == 0 || (data.len() <= PAGE && room < data.len()) {
            return Err(Errno::EAGAIN);
        }
        let part = data.get(..room.min(data.len())).unwrap_or(data);
        if let Some(Plain::PipeReader { buffer, .. }) = self.plain_mut(reader) {
            buffer.push(part);
        }
        self.wake(reader, EpollFlags::EPOLLIN);
        Ok(part.len())
    }
}
