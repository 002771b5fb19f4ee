//! One end of a stream connection: its buffers and flags, and what poll(2), recv(2) and send(2) make of
//! them. It knows nothing of the other end, of time or of faults; see `wire.rs` for the way in between.

use nix::sys::epoll::EpollFlags;

use super::table::{ByteQueue, Key};
use crate::{Address, Errno};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Tcp,
    Unix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Connected,
    /// Reset, refused or timed out.
    Dead,
}

/// Who holds this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The program under test, or the backlog of its listener, or a peer.
    Somebody,
    /// It is closed, and lives until what it has sent has arrived.
    Nobody,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) family: Family,
    pub(super) phase: Phase,
    pub(super) owner: Owner,
    pub(super) local: Address,
    pub(super) remote: Address,
    pub(super) peer: Option<Key>,
    /// Set if it waits for its first data to be offered to accept.
    pub(super) deferred_at: Option<Key>,

    /// Arrived and not read.
    pub(super) received: ByteQueue,
    /// Bytes read, ever, urgent ones included: the position of the first of `received`.
    pub(super) read: u64,
    /// The position of the urgent byte.
    pub(super) urgent: Option<u64>,
    /// The peer's FIN has arrived.
    pub(super) ended: bool,
    /// The program knows: an event has said so, or a read.
    pub(super) end_told: bool,
    pub(super) receive_capacity: usize,

    /// Sent and not arrived.
    pub(super) outgoing: ByteQueue,
    /// Bytes sent, ever: the position behind the last of `outgoing`.
    pub(super) sent: u64,
    pub(super) urgent_sent: Option<u64>,
    /// Nothing more can be sent: by its own wish, or, between Unix sockets, because the peer is gone.
    pub(super) shut: bool,
    /// By its own wish.
    pub(super) shut_by_owner: bool,
    /// The FIN has arrived at the peer.
    pub(super) fin_delivered: bool,
    /// Bytes of `outgoing` (for Unix sockets, with what the peer has yet to read).
    pub(super) send_capacity: usize,
    /// A write was cut short, or poll said that there is no room: an edge is owed (`SOCK_NOSPACE`).
    pub(super) no_space: bool,
    /// The agenda holds a delivery of `outgoing`.
    pub(super) scheduled: bool,

    pub(super) error: Option<Errno>,
    pub(super) linger_zero: bool,
    /// The last read, or write, was refused by an injected `EAGAIN`.
    pub(super) read_refused: bool,
    pub(super) write_refused: bool,
}

impl Stream {
    pub(super) fn new(family: Family, phase: Phase, local: Address, remote: Address) -> Self {
        Self {
            family,
            phase,
            owner: Owner::Somebody,
            local,
            remote,
            peer: None,
            deferred_at: None,
            received: ByteQueue::default(),
            read: 0,
            urgent: None,
            ended: false,
            end_told: false,
            receive_capacity: 0,
            outgoing: ByteQueue::default(),
            sent: 0,
            urgent_sent: None,
            shut: false,
            shut_by_owner: false,
            fin_delivered: false,
            send_capacity: 0,
            no_space: false,
            scheduled: false,
            error: None,
            linger_zero: false,
            read_refused: false,
            write_refused: false,
        }
    }

    /// tcp_poll and unix_poll. `unread_there` is what the peer has received and not read.
    pub(super) fn poll(&mut self, unread_there: usize) -> EpollFlags {
        if self.phase == Phase::Connecting {
            return EpollFlags::empty();
        }
        let mut flags = EpollFlags::empty();
        let dead = self.phase == Phase::Dead;
        flags.set(EpollFlags::EPOLLERR, self.error.is_some());
        flags.set(EpollFlags::EPOLLHUP, dead || (self.ended && self.shut));
        flags.set(EpollFlags::EPOLLRDHUP, dead || self.ended);
        flags.set(EpollFlags::EPOLLIN, dead || self.ended || self.has_data());
        flags.set(EpollFlags::EPOLLPRI, self.urgent.is_some());
        let writable = dead || self.shut || self.is_writable(unread_there);
        flags.set(EpollFlags::EPOLLOUT, writable);
        self.no_space |= !writable;
        flags
    }

    /// Data but for the urgent byte, which is not read as such.
    fn has_data(&self) -> bool {
        self.received.len() > usize::from(self.urgent == Some(self.read))
    }

    /// What counts against the send buffer.
    const fn used(&self, unread_there: usize, waiting: usize) -> usize {
        match self.family {
            Family::Tcp => waiting,
            Family::Unix => waiting + unread_there,
        }
    }

    /// TCP: a third of the buffer is free (sk_stream_is_writable). Unix: three quarters are (unix_writable).
    pub(super) fn is_writable(&self, unread_there: usize) -> bool {
        let used = self.used(unread_there, self.outgoing.len());
        match self.family {
            Family::Tcp => used <= self.send_capacity / 3 * 2,
            Family::Unix => used <= self.send_capacity / 4,
        }
    }

    pub(super) fn room(&self, unread_there: usize) -> usize {
        self.send_capacity.saturating_sub(self.used(unread_there, self.outgoing.len()))
    }

    /// How much more the peer may send.
    pub(super) fn window(&self) -> usize {
        match self.family {
            Family::Tcp => self.receive_capacity.saturating_sub(self.received.len()),
            Family::Unix => usize::MAX,
        }
    }

    /// TCP has no more state for it: reset, or ended in both directions (`TCP_CLOSE`).
    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Dead || (self.family == Family::Tcp && self.ended && self.fin_delivered)
    }

    /// Whether nothing is left to do for an end that nobody holds.
    pub(super) fn is_done(&self) -> bool {
        self.owner == Owner::Nobody
            && (self.phase == Phase::Dead || (self.outgoing.is_empty() && self.fin_delivered))
    }

    /// Whether all but the first `kept` bytes, and the end behind them, could as well not have arrived from
    /// `sender` yet, for all that has been told.
    pub(super) fn may_lose_tail(&self, sender: &Self, kept: usize) -> bool {
        self.phase == Phase::Connected
            && self.received.len() > kept
            && self.error.is_none()
            && self.urgent.is_none()
            && sender.urgent_sent.is_none()
            && !(self.ended && (self.end_told || self.shut))
    }

    /// tcp_recvmsg and unix_stream_read_generic.
    pub(super) fn recv(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let taken = self.take(buffer);
        if taken > 0 || (buffer.is_empty() && self.has_data()) {
            return Ok(taken);
        }
        // tcp(7) does not tell of an error behind an end; unix(7) does.
        if (self.family == Family::Unix || !self.ended)
            && let Some(errno) = self.error.take()
        {
            return Err(errno);
        }
        if self.ended || self.phase == Phase::Dead {
            self.end_told = true;
            return Ok(0);
        }
        Err(Errno::EAGAIN)
    }

    /// Data up to the urgent mark, or behind it if that is where the reader stands.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        if buffer.is_empty() {
            return 0;
        }
        if self.urgent == Some(self.read) {
            self.urgent = None;
            self.received.skip(1);
            self.read += 1;
        }
        let until_mark = match self.urgent {
            Some(mark) => usize::try_from(mark - self.read).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let room = buffer.len().min(until_mark);
        let taken = self.received.take(buffer.get_mut(..room).unwrap_or_default());
        self.read += taken as u64;
        taken
    }

    /// Why nothing can be sent, if so: tcp_sendmsg and unix_stream_sendmsg.
    pub(super) fn send_error(&mut self) -> Result<(), Errno> {
        match self.phase {
            Phase::Connecting => Err(Errno::EAGAIN),
            _ if self.family == Family::Tcp && self.error.is_some() => {
                Err(self.error.take().unwrap_or(Errno::EPIPE))
            }
            Phase::Connected if !self.shut => Ok(()),
            _ => Err(Errno::EPIPE),
        }
    }

    /// `piece` bytes arrive from `sender`.
    pub(super) fn arrive(&mut self, sender: &mut Self, piece: usize) {
        sender.outgoing.move_to(&mut self.received, piece);
        let arrived = self.read + self.received.len() as u64;
        if let Some(mark) = sender.urgent_sent
            && mark < arrived
        {
            // tcp_check_urg: an earlier byte becomes an ordinary one, unless the reader stands before it.
            if self.urgent == Some(self.read) {
                self.received.skip(1);
                self.read += 1;
            }
            self.urgent = Some(mark);
            sender.urgent_sent = None;
        }
    }
}
