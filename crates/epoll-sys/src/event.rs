//! What epoll is asked for and what it answers. Bits are read here and nowhere else.

use std::fmt;

use nix::sys::epoll::{EpollEvent, EpollFlags};

/// What a descriptor is registered for, always edge-triggered. It never changes after registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// A listener, a timer, a signal descriptor, the read end of a pipe: `EPOLLIN`.
    Readable,
    /// A listener that the loops of several threads watch, each with a duplicate of its descriptor: `EPOLLIN |
    /// EPOLLEXCLUSIVE`. A client wakes one loop that waits, or more, but not each time all of them. Whoever is woken
    /// accepts until `EAGAIN`, or nobody may be told of what is left.
    SharedListener,
    /// The write end of a pipe: `EPOLLOUT`.
    Writable,
    /// A stream socket: `EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI`. `EPOLLPRI` because urgent data makes a
    /// read stop short of what has arrived, with no further edge to say so.
    Stream,
}

impl Interest {
    pub(crate) fn flags(self) -> EpollFlags {
        EpollFlags::EPOLLET
            | match self {
                Self::Readable => EpollFlags::EPOLLIN,
                Self::SharedListener => EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE,
                Self::Writable => EpollFlags::EPOLLOUT,
                Self::Stream => {
                    EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLPRI
                }
            }
    }
}

/// What an event says a descriptor is ready for. Every bit is a hint: only the call itself tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Readiness(EpollFlags);

impl Readiness {
    /// A read will not block: there is data, the end of the stream, or an error to fetch.
    #[must_use]
    pub fn is_readable(self) -> bool {
        self.0.intersects(EpollFlags::EPOLLIN) || self.must_read_to_end()
    }

    /// A write will not block, or will say what is wrong. With a stream registered for both directions this
    /// is set on every event, blocked writer or not.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.0.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
    }

    /// A short read does not mean that the socket is empty: the peer has shut down its writing side, the
    /// connection has ended, or urgent data is in the stream, and no further edge will come. Read until 0 or
    /// `EAGAIN`.
    #[must_use]
    pub fn must_read_to_end(self) -> bool {
        self.0.intersects(
            EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLPRI,
        )
    }

    /// The socket has a pending error (`EPOLLERR`), for [`take_error`](crate::Kernel::take_error) to fetch.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0.intersects(EpollFlags::EPOLLERR)
    }

    /// Both directions have ended (`EPOLLHUP`).
    #[must_use]
    pub fn is_hang_up(self) -> bool {
        self.0.intersects(EpollFlags::EPOLLHUP)
    }

    /// The peer has shut down its writing side, or all of it (`EPOLLRDHUP`).
    #[must_use]
    pub fn is_peer_shutdown(self) -> bool {
        self.0.intersects(EpollFlags::EPOLLRDHUP)
    }
}

impl Readiness {
    /// The bits of epoll_ctl(2), to be kept or shown.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0.bits().cast_unsigned()
    }

    /// What [`bits`](Self::bits) gave. Those that mean nothing are left out.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(EpollFlags::from_bits_truncate(bits.cast_signed()))
    }
}

/// The names of the bits, such as `EPOLLIN | EPOLLOUT`.
impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, _)) in self.0.iter_names().enumerate() {
            f.write_str(if index == 0 { "" } else { " | " })?;
            f.write_str(name)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// One ready descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The number the descriptor was registered with.
    pub token: u64,
    /// What it is ready for.
    pub readiness: Readiness,
}

/// Room for the events of one wait, reused from turn to turn.
#[derive(Debug)]
pub struct Events {
    buffer: Vec<EpollEvent>,
    filled: usize,
}

impl Events {
    /// Room for `capacity` events, at least one.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buffer: vec![EpollEvent::empty(); capacity.max(1)], filled: 0 }
    }

    /// The event at `position` of the last wait, if it delivered that many.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<Event> {
        let event = self.buffer.get(..self.filled)?.get(position)?;
        Some(Event { token: event.data(), readiness: Readiness(event.events()) })
    }

    /// How many events the last wait delivered.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.filled
    }

    /// Whether the last wait delivered none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Doubles the room, up to `limit`, if the last wait filled it, and says whether it did: there may have
    /// been more to tell. The events are still there.
    pub fn grow_if_full(&mut self, limit: usize) -> bool {
        let full = self.filled == self.buffer.len();
        if full && self.filled < limit {
            let capacity = (self.buffer.len() * 2).min(limit);
            self.buffer.resize(capacity, EpollEvent::empty());
        }
        full
    }

    /// The whole room, for a kernel to fill; [`Events::set_filled`] then says how much of it holds.
    pub(crate) fn buffer_mut(&mut self) -> &mut [EpollEvent] {
        &mut self.buffer
    }

    pub(crate) fn set_filled(&mut self, filled: usize) {
        debug_assert!(filled <= self.buffer.len());
        self.filled = filled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_only_when_full_and_only_to_the_limit() {
        let mut events = Events::with_capacity(2);
        events.set_filled(1);
        assert!(!events.grow_if_full(8));
        assert_eq!(events.buffer_mut().len(), 2);
        for (filled, grown) in [(2, 4), (4, 8), (8, 8)] {
            events.set_filled(filled);
            assert!(events.grow_if_full(8));
            assert_eq!(events.buffer_mut().len(), grown);
        }
    }

    #[test]
    fn events_past_the_filled_part_do_not_exist() {
        let mut events = Events::with_capacity(4);
        events.set_filled(1);
        assert!(events.get(0).is_some());
        assert!(events.get(1).is_none());
    }

    #[test]
    fn end_and_urgent_data_force_a_full_read() {
        for flag in [EpollFlags::EPOLLRDHUP, EpollFlags::EPOLLHUP, EpollFlags::EPOLLERR, EpollFlags::EPOLLPRI]
        {
            assert!(Readiness(flag).must_read_to_end(), "{flag:?}");
            assert!(Readiness(flag).is_readable(), "{flag:?}");
        }
        assert!(!Readiness(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT).must_read_to_end());
    }
}
