//! Sending, as a callback sees it: what is accepted, what is refused, and where it waits. The writing itself is in
//! `flush.rs`.

use std::borrow::Cow;
use std::sync::Arc;

use crate::buffer::{FILE_CHARGE, OutputQueue};
use crate::ctx::Ctx;
use crate::file::FileSlice;
use crate::shared::{Share, Shared};
use crate::token::ConnId;

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "OverLimit and Gone mean that nothing was sent"]
pub enum SendOutcome<T> {
    /// It goes out at the end of this turn, or, if many connections have output, of one of the next, which do not wait:
    /// see [`Limits::flush_budget`](crate::Limits::flush_budget). [`close_now`](Ctx::close_now) drops it until then.
    Sent,
    /// It goes out as the peer reads; more than the high water mark is waiting, so send less until
    /// [`on_drain`](crate::Handler::on_drain).
    Queued,
    /// It was refused whole, since [`Limits::output`](crate::Limits::output) or
    /// [`Limits::memory`](crate::Limits::memory) would be passed: here it is. The connection is as it was, so a
    /// smaller send may still be accepted: one that must not be missed before others is a reason to close.
    OverLimit(T),
    /// The connection is closing or gone: here it is.
    Gone(T),
}

impl<T> SendOutcome<T> {
    /// Whether it was accepted for sending.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        matches!(self, Self::Sent | Self::Queued)
    }
}

impl Ctx {
    /// Sends a copy of `data`. Order is kept, whatever kinds of sends are mixed.
    pub fn send<'data>(&mut self, id: ConnId, data: &'data [u8]) -> SendOutcome<&'data [u8]> {
        match self.admit(id, data.len(), data.len(), Kind::Copied) {
            Ok(admitted) => {
                if admitted.direct {
                    self.direct.extend_from_slice(data);
                } else {
                    self.enqueue(id, data.len(), |queue| queue.push_copy(data));
                }
                admitted.outcome()
            }
            Err(Refused::OverLimit) => SendOutcome::OverLimit(data),
            Err(Refused::Gone) => SendOutcome::Gone(data),
        }
    }

    /// Sends `data` without copying it: the same buffer may wait on any number of connections. Each counts it in
    /// full against its own limit; against [`Limits::memory`](crate::Limits::memory) it counts once if it was
    /// made by [`share`](Self::share), and otherwise for each. Up to 64 bytes are copied all the same.
    pub fn send_shared<T: Share>(&mut self, id: ConnId, data: T) -> SendOutcome<T> {
        let (length, charge) = (data.length(), data.charge());
        match self.admit(id, length, charge, Kind::Shared) {
            Ok(admitted) => {
                self.move_direct_to_queue(id);
                self.enqueue(id, length, |queue| match data.into_held() {
                    Ok(bytes) => queue.push_shared(bytes, charge),
                    Err(short) => queue.push_copy(short.as_slice()),
                });
                admitted.outcome()
            }
            Err(Refused::OverLimit) => SendOutcome::OverLimit(data),
            Err(Refused::Gone) => SendOutcome::Gone(data),
        }
    }

    /// Sends a part of a file, which never comes into this program's memory: sendfile(2). Order is kept, as for
    /// [`send`](Self::send); what was sent just before, the head of an answer, leaves together with its beginning.
    ///
    /// It counts as output that waits ([`queued`](Self::queued), the high and the low water mark), and neither against
    /// [`Limits::output`](crate::Limits::output) nor, but for 64 bytes, against
    /// [`Limits::memory`](crate::Limits::memory), since it takes no memory. `OverLimit` is still possible: when
    /// memory is used up, or more bytes would wait than a `usize` can count. A length of 0 sends nothing.
    ///
    /// If the file turns out to be shorter, or cannot be read, the connection is closed with
    /// [`FileCutShort`](crate::CloseReason::FileCutShort): the peer was promised more. The loop waits for the disk if
    /// the bytes are not in memory. A program that has changed how it takes `SIGPIPE` must ignore it again, as Rust
    /// programs do by default: sendfile(2) raises it when the peer has gone.
    pub fn send_file(&mut self, id: ConnId, slice: FileSlice) -> SendOutcome<FileSlice> {
        // One too long to count is refused as too much for any queue.
        let length = usize::try_from(slice.length).unwrap_or(usize::MAX);
        match self.admit(id, length, FILE_CHARGE, Kind::File) {
            Ok(admitted) => {
                if length > 0 {
                    self.move_direct_to_queue(id);
                    self.enqueue(id, length, |queue| queue.push_file(slice));
                }
                admitted.outcome()
            }
            Err(Refused::OverLimit) => SendOutcome::OverLimit(slice),
            Err(Refused::Gone) => SendOutcome::Gone(slice),
        }
    }

    /// Makes `data` something to send to many: see [`Shared`]. A `Vec` is taken as it is, with the room that it has; a
    /// slice is copied.
    #[must_use]
    pub fn share<'data>(&self, data: impl Into<Cow<'data, [u8]>>) -> Shared {
        self.shared.share(data.into())
    }

    /// Makes `data`, which may be held elsewhere too, in other loops for instance, something to send to many of this one's
    /// connections. It is not copied, but for up to 64 bytes, and takes one allocation. What it is counted for is given
    /// back when none of these needs it any more, whoever else does.
    #[must_use]
    pub fn share_arc(&self, data: Arc<[u8]>) -> Shared {
        self.shared.share_arc(data)
    }

    /// Bytes sent to `id` that the kernel has not taken yet, those in files among them; 0 if it is gone.
    #[must_use]
    pub fn queued(&self, id: ConnId) -> usize {
        let direct = if self.current == Some(id) { self.direct.len() } else { 0 };
        let Some(connection) = self.connections.get(id.0) else { return 0 };
        let batched = if connection.batched { self.batch.length_of(id) } else { 0 };
        connection.queued() + direct + batched
    }

    /// Decides whether `length` bytes, which count for `charge` in memory, may be sent to `id`, and notes what
    /// follows from it.
    fn admit(&mut self, id: ConnId, length: usize, charge: usize, kind: Kind) -> Result<Admitted, Refused> {
        let in_use = self.buffered();
        let Some(connection) = self.connections.get_mut(id.0).filter(|it| it.accepts_output()) else {
            return Err(Refused::Gone);
        };
        if connection.batched {
            self.move_batched_to_queue(id);
            return self.admit(id, length, charge, kind);
        }
        if length == 0 {
            return Ok(Admitted { direct: true, above_high_water: connection.above_high_water });
        }
        let is_current = self.current == Some(id);
        // Offered to the kernel before anything else happens, so it does not count as held.
        let direct = is_current && kind == Kind::Copied && connection.output.is_none() && connection.writable;
        let pending = if is_current { self.direct.len() } else { 0 };
        let queued = connection.queued().saturating_add(pending).saturating_add(length);
        // What is in files has no limit but what can be counted.
        let held = match kind {
            Kind::File => 0,
            Kind::Copied | Kind::Shared => {
                connection.output_in_memory().saturating_add(pending).saturating_add(length)
            }
        };
        let memory = self.limits.memory;
        let wanted = if direct { 0 } else { in_use.saturating_add(charge) };
        // Behind this callback those that hold most are closed, and an eighth is free: it is lent already, since
        // the connection that happens to be next is not to blame.
        self.short_of_memory |= wanted > memory;
        if wanted > memory.saturating_add(memory / 8) || held > self.limits.output || queued == usize::MAX {
            self.metrics.sends_refused.add(1);
            return Err(Refused::OverLimit);
        }
        connection.above_high_water |= queued > self.limits.output_high_water;
        Ok(Admitted { direct, above_high_water: connection.above_high_water })
    }

    /// Adds to the queue of `id` and sees to it that the queue is flushed.
    pub(crate) fn enqueue(&mut self, id: ConnId, length: usize, push: impl FnOnce(&mut OutputQueue)) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && length > 0
        {
            let queue = connection.output.get_or_insert_with(|| self.pool.take());
            let (before, charge) = (queue.len(), queue.charge());
            push(queue);
            self.buffered += queue.charge() - charge;
            let mark = self.limits.output_high_water;
            if connection.writable && before <= mark && before + length > mark {
                self.overdue.push(id);
            }
            self.mark_dirty(id);
        }
    }

    /// Keeps the order of output when `id` has some in the batch and more goes to its queue.
    fn move_batched_to_queue(&mut self, id: ConnId) {
        let output = self.batch.take(id);
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.batched = false;
        }
        self.enqueue(id, output.len(), |queue| queue.push_copy(&output));
    }

    /// Keeps the order of output when `id` has some in `direct` and more goes to its queue.
    #[inline]
    pub(crate) fn move_direct_to_queue(&mut self, id: ConnId) {
        if self.current == Some(id) && !self.direct.is_empty() {
            self.queue_direct(id);
        }
    }

    fn queue_direct(&mut self, id: ConnId) {
        let direct = std::mem::take(&mut self.direct);
        self.enqueue(id, direct.len(), |queue| queue.push_copy(&direct));
        self.direct = direct;
        self.direct.clear();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Copied,
    Shared,
    File,
}

/// A send that is accepted: into the turn's own buffer or the connection's queue.
struct Admitted {
    direct: bool,
    above_high_water: bool,
}

impl Admitted {
    const fn outcome<T>(self) -> SendOutcome<T> {
        if self.above_high_water { SendOutcome::Queued } else { SendOutcome::Sent }
    }
}

enum Refused {
    OverLimit,
    Gone,
}
