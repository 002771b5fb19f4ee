//! The calls on stream sockets, with what may go wrong in them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::epoll::EVERYTHING;
use super::faults::Fault;
use super::record::Step;
use super::stream::{Family, Owner, Phase, Stream};
use super::table::Key;
use super::world::{Cause, Happening, Kind, World};
use crate::Errno;

impl World {
    pub(super) fn recv(&mut self, key: Key, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.check_socket(key)?;
        if buffer.is_empty() {
            self.violation(key, "reads into an empty buffer, which says nothing");
        }
        self.interrupts(Step::Recv)?;
        self.cut_by_chance(key);
        let unread = self.stream(key).map_or(0, |stream| stream.received.len());
        let within = unread.min(buffer.len());
        if unread > 0 && self.refuses_read(key) {
            return Err(Errno::EAGAIN);
        }
        if within > 1 && self.may_put_back(key, 1) && self.strikes(Fault::ShortRecv) {
            let kept = self.rng.usize(1..within);
            self.put_back(key, kept);
        }
        self.recv_now(key, buffer)
    }

    fn refuses_read(&mut self, key: Key) -> bool {
        let may = self.may_put_back(key, 0) && self.stream(key).is_some_and(|stream| !stream.read_refused);
        let refuses = may && self.strikes(Fault::EagainRecv) && self.put_back(key, 0);
        if let Some(stream) = self.stream_mut(key).filter(|_| refuses) {
            stream.read_refused = true;
        }
        refuses
    }

    /// Without faults.
    pub(super) fn recv_now(&mut self, key: Key, buffer: &mut [u8]) -> Result<usize, Errno> {
        let stream = self.stream_mut(key).ok_or(Errno::EBADF)?;
        let before = stream.received.len();
        let result = stream.recv(buffer);
        stream.read_refused = false;
        // There is room: for TCP in the window, for Unix sockets in the sender's buffer.
        let (read, family) = (stream.received.len() < before, stream.family);
        if let Some(peer) = stream.peer.filter(|_| read) {
            if family == Family::Unix {
                self.check_space(peer);
            }
            self.kick(peer);
        }
        result
    }

    pub(super) fn send(&mut self, key: Key, pieces: &[&[u8]], step: Step) -> Result<usize, Errno> {
        self.check_socket(key)?;
        if self.stream(key).is_some_and(|stream| stream.shut_by_owner) {
            self.violation(key, "writes behind its own FIN");
        }
        self.interrupts(step)?;
        self.cut_by_chance(key);
        let open = |stream: &Stream| stream.phase == Phase::Connected && !stream.shut;
        if self.stream(key).is_some_and(open) {
            if self.strikes(Fault::Epipe) {
                self.cut(key, Cause::Broken);
            } else if self.strikes(Fault::Enobufs) {
                return Err(Errno::ENOBUFS);
            } else if self.refuses_write(key) {
                return Err(Errno::EAGAIN);
            }
        }
        let most = self.short_write(key, pieces);
        let sent = self.send_now(key, pieces, most);
        if let Some(stream) = self.stream_mut(key) {
            stream.write_refused = false;
            if most < usize::MAX && sent.is_ok() {
                stream.no_space = true;
                let delay = self.latency();
                self.plan(delay, Happening::Space(key));
            }
        }
        sent
    }

    /// The file is read before anything is known of the socket, as in Linux: where it ends, that is the answer.
    pub(super) fn sendfile(
        &mut self,
        key: Key,
        file: &File,
        offset: u64,
        count: usize,
    ) -> Result<usize, Errno> {
        self.check_socket(key)?;
        // What there is no room for shows in the first byte of it.
        let unread_there = self.unread_at_peer(key);
        let room = self.stream(key).map_or(0, |stream| stream.room(unread_there));
        let mut data = vec![0; count.min(room.saturating_add(1))];
        let read = read_at(file, &mut data, offset)?;
        data.truncate(read);
        if data.is_empty() {
            return Ok(0);
        }
        self.send(key, &[&data], Step::Sendfile)
    }

    fn refuses_write(&mut self, key: Key) -> bool {
        if self.stream(key).is_some_and(|stream| stream.write_refused) || !self.strikes(Fault::EagainSend) {
            return false;
        }
        if let Some(stream) = self.stream_mut(key) {
            stream.write_refused = true;
            stream.no_space = true;
        }
        let delay = self.latency();
        self.plan(delay, Happening::Space(key));
        true
    }

    /// The most that a write takes, if less than there is room for by an injected fault.
    fn short_write(&mut self, key: Key, pieces: &[&[u8]]) -> usize {
        let unread_there = self.unread_at_peer(key);
        let room = match self.stream(key) {
            Some(stream) if stream.phase == Phase::Connected && !stream.shut => stream.room(unread_there),
            _ => 0,
        };
        let within = pieces.iter().map(|piece| piece.len()).sum::<usize>().min(room);
        if within > 1 && self.strikes(Fault::ShortSend) { self.rng.usize(1..within) } else { usize::MAX }
    }

    /// Without faults, and at most `most` bytes.
    pub(super) fn send_now(&mut self, key: Key, pieces: &[&[u8]], most: usize) -> Result<usize, Errno> {
        let unread_there = self.unread_at_peer(key);
        let stream = self.stream_mut(key).ok_or(Errno::EBADF)?;
        stream.send_error()?;
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        let taken = wanted.min(stream.room(unread_there)).min(most);
        stream.no_space |= taken < wanted;
        if taken == 0 && wanted > 0 {
            return Err(Errno::EAGAIN);
        }
        let mut left = taken;
        for piece in pieces {
            let part = piece.get(..left.min(piece.len())).unwrap_or(piece);
            stream.outgoing.push(part);
            left -= part.len();
        }
        stream.sent += taken as u64;
        self.kick(key);
        Ok(taken)
    }

    pub(super) fn shutdown_write(&mut self, key: Key) -> Result<(), Errno> {
        self.check_socket(key)?;
        if self.stream(key).is_some_and(|stream| stream.is_closed() && stream.shut_by_owner) {
            self.violation(key, "shut down twice, and the connection is over");
        }
        self.shutdown_now(key)
    }

    pub(super) fn shutdown_now(&mut self, key: Key) -> Result<(), Errno> {
        let stream = self.stream_mut(key).ok_or(Errno::EBADF)?;
        if stream.is_closed() {
            return Err(Errno::ENOTCONN);
        }
        if stream.phase == Phase::Connecting {
            // inet_shutdown: it is disconnected.
            self.cut(key, Cause::Reset);
            return Ok(());
        }
        stream.shut = true;
        stream.shut_by_owner = true;
        // inet_shutdown wakes everybody, and so does unix_shutdown.
        self.wake(key, EVERYTHING);
        self.kick(key);
        Ok(())
    }

    pub(super) fn take_error(&mut self, key: Key) -> Result<Option<Errno>, Errno> {
        match self.objects.get_mut(key).map(|object| &mut object.kind) {
            Some(Kind::Stream(stream)) => Ok(stream.error.take()),
            Some(Kind::Listener(_)) => Ok(None),
            _ => Err(self.wrong_kind(key, Errno::ENOTSOCK)),
        }
    }

    pub(super) fn reset_on_close(&mut self, key: Key) -> Result<(), Errno> {
        match self.objects.get_mut(key).map(|object| &mut object.kind) {
            Some(Kind::Stream(stream)) => {
                // It closes Unix sockets no differently.
                stream.linger_zero = true;
                Ok(())
            }
            Some(Kind::Listener(_)) => Ok(()),
            _ => Err(self.wrong_kind(key, Errno::ENOTSOCK)),
        }
    }

    fn check_socket(&mut self, key: Key) -> Result<(), Errno> {
        match self.objects.get(key).map(|object| &object.kind) {
            Some(Kind::Stream(_)) => Ok(()),
            Some(Kind::Listener(_)) => Err(self.wrong_kind(key, Errno::ENOTCONN)),
            _ => Err(self.wrong_kind(key, Errno::ENOTSOCK)),
        }
    }

    pub(super) fn wrong_kind(&mut self, key: Key, errno: Errno) -> Errno {
        self.violation(key, "is no descriptor for such a call");
        errno
    }

    fn cut_by_chance(&mut self, key: Key) {
        let connected = |stream: &Stream| stream.phase == Phase::Connected && stream.peer.is_some();
        if !self.stream(key).is_some_and(connected) {
            return;
        }
        if self.strikes(Fault::Econnreset) {
            self.cut(key, Cause::Reset);
        } else if self.strikes(Fault::Etimedout) {
            self.cut(key, Cause::TimedOut);
        }
    }

    /// Whether [`put_back`](Self::put_back) would do it, so that no fault is counted that is none.
    fn may_put_back(&self, key: Key, kept: usize) -> bool {
        let Some(receiver) = self.stream(key) else { return false };
        let Some(sender) = receiver.peer.and_then(|peer| self.stream(peer)) else { return false };
        receiver.owner == Owner::Somebody && receiver.may_lose_tail(sender, kept)
    }
}

/// Up to as much as `data` has room for. What Linux calls a directory that is sent, it does not call one that is read.
fn read_at(file: &File, data: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut read = 0;
    while let Some(rest) = data.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(read as u64)) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => {
                return Err(match error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) {
                    Errno::EISDIR => Errno::EINVAL,
                    errno => errno,
                });
            }
        }
    }
    Ok(read)
}
