//! The write step: what a callback has said to its own connection, and what waits in queues.

use std::io::IoSlice;

use epoll_sys::{Call, Kernel, Reaction, Then, reaction};

use crate::batch::LONGEST_BATCHED;
use crate::buffer::{Front, PIECES_PER_WRITE};
use crate::connection::{Fin, Phase};
use crate::file::FileSlice;
use crate::handler::{CloseReason, Handler};
use crate::reactor::Reactor;
use crate::token::ConnId;

/// A turn writes to so many connections for each callback, and each connection served without one, if those are more than
/// [`Limits::flush_budget`](crate::Limits::flush_budget): whatever else there is to do, what is queued gets its share.
const WRITTEN_PER_CALLBACK: usize = 4;

/// The buffer for a callback's own output shrinks back to this when a large answer has made it grow.
const DIRECT_KEPT: usize = 256 * 1024;

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// Sends what a callback has said to its own connection, or leaves it to the turn's batch; what the kernel refuses
    /// goes to the queue.
    pub(crate) fn send_direct(&mut self, id: ConnId) {
        if self.ctx.direct.is_empty() {
            return;
        }
        let ctx = &mut self.ctx;
        if ctx.batching
            && ctx.direct.len() <= LONGEST_BATCHED
            && let Some(connection) = ctx.connections.get_mut(id.0)
            && connection.phase != Phase::Dead
        {
            connection.batched = true;
            ctx.batch.push(id, &ctx.direct);
            ctx.direct.clear();
            if ctx.batch.is_full() {
                self.send_batch();
            }
            return;
        }
        let direct = std::mem::take(&mut self.ctx.direct);
        let open = self.ctx.connections.get(id.0).is_some_and(|connection| connection.phase != Phase::Dead);
        let written = if open { self.write(id, &[IoSlice::new(&direct)], Then::Nothing) } else { 0 };
        self.ctx.direct = direct;
        self.ctx.direct.drain(..written);
        self.ctx.move_direct_to_queue(id);
        self.ctx.direct.shrink_to(DIRECT_KEPT);
        self.note_progress(id, written);
    }

    /// Sends what is in the batch, one send for each connection; what the kernel refuses goes to its queue.
    #[inline]
    pub(crate) fn send_batch(&mut self) {
        if !self.ctx.batch.is_empty() {
            self.send_filled_batch();
        }
    }

    fn send_filled_batch(&mut self) {
        let mut batch = std::mem::take(&mut self.ctx.batch);
        for (id, output) in batch.iter() {
            let Some(connection) = self.ctx.connections.get_mut(id.0) else { continue };
            connection.batched = false;
            if connection.phase == Phase::Dead {
                connection.discarded += output.len();
                continue;
            }
            let written = self.write(id, &[IoSlice::new(output)], Then::Nothing);
            let rest = output.get(written..).unwrap_or_default();
            self.ctx.enqueue(id, rest.len(), |queue| queue.push_copy(rest));
            self.note_progress(id, written);
        }
        batch.clear();
        self.ctx.batch = batch;
    }

    /// Writes what should not wait for the end of the turn: queues above the high water mark, and, each time
    /// another eighth of the memory limit above its half is in use, all. It takes no closing connection on to its
    /// end, which would need the read buffer: a `read` may be under way.
    #[inline]
    pub(crate) fn flush_overdue(&mut self) {
        if !self.ctx.overdue.is_empty() || self.ctx.buffered() > self.memory_mark {
            self.write_overdue();
        }
        self.relieve_memory();
    }

    fn write_overdue(&mut self) {
        while let Some(id) = self.ctx.overdue.pop() {
            self.write_queue(id);
        }
        if self.ctx.buffered() > self.memory_mark {
            for position in 0..self.ctx.dirty.len() {
                if let Some(id) = self.ctx.dirty.get(position) {
                    self.write_queue(*id);
                }
            }
            let memory = self.ctx.limits.memory;
            self.memory_mark = (memory / 2).max(self.ctx.buffered() + memory / 8);
        }
    }

    /// Writes what callbacks have sent to other connections than their own: one `writev` each for up to 64 pieces.
    ///
    /// Where many wait, only some have their turn, and the others theirs at the end of the next turns, which do not wait
    /// in `epoll_wait`. So one message to thousands holds nobody up, and one that comes meanwhile shares the writes of
    /// those that are still to come.
    pub(crate) fn flush_dirty(&mut self) {
        let ctx = &self.ctx;
        // Nobody may be closed for what was only not yet written, whether for its memory or at the end of a drain.
        let all = ctx.is_draining() || ctx.buffered() > ctx.limits.memory / 2;
        let share = self.callbacks.saturating_mul(WRITTEN_PER_CALLBACK).max(ctx.limits.flush_budget);
        let mut budget = if all { usize::MAX } else { share };
        // Flushing calls no callback, so nothing is added meanwhile.
        for _ in 0..ctx.dirty.len() {
            let Some(id) = self.ctx.dirty.pop_front() else { break };
            let Some(connection) = self.ctx.connections.get_mut(id.0) else { continue };
            connection.in_dirty = false;
            // For output that a full socket keeps waiting no call is made.
            budget -= usize::from(connection.writable || connection.output.is_none());
            self.flush(id);
            if budget == 0 {
                break;
            }
        }
    }

    /// Sends what is queued for `id`, as far as the kernel takes it; a connection that was closing and has
    /// nothing left goes on to its end.
    pub(crate) fn flush(&mut self, id: ConnId) {
        self.write_queue(id);
        if let Some(connection) = self.ctx.connections.get_mut(id.0)
            && connection.output.is_none()
        {
            match connection.phase {
                Phase::Open if connection.fin == Fin::Due => {
                    connection.fin = Fin::Sent;
                    // That it cannot be sent, the next read will explain.
                    let _: bool = self.send_fin(id);
                }
                Phase::Flushing => self.end_output(id),
                _ => (),
            }
        }
    }

    /// Up to a turn's budget; with more to write after that it goes on in the next turn.
    fn write_queue(&mut self, id: ConnId) {
        let mut budget = self.ctx.limits.write_budget;
        while let Some(connection) = self.ctx.connections.get_mut(id.0)
            && connection.writable
            && !connection.budget_spent
            && matches!(connection.phase, Phase::Open | Phase::Flushing)
            && connection.output.is_some()
        {
            if budget == 0 {
                connection.budget_spent = true;
                self.ctx.make_ready(id);
                break;
            }
            let Some(mut queue) = connection.output.take() else { break };
            let mut pieces = [IoSlice::new(&[]); PIECES_PER_WRITE];
            let written = match queue.front(&mut pieces, budget) {
                Front::Pieces(count, then) => self.write(id, pieces.get(..count).unwrap_or_default(), then),
                Front::File(slice) => self.write_file(id, &slice),
            };
            budget = budget.saturating_sub(written);
            let charge = queue.charge();
            queue.advance(written);
            self.ctx.buffered -= charge - queue.charge();
            match self.ctx.connections.get_mut(id.0) {
                Some(connection) if queue.len() > 0 => connection.output = Some(queue),
                _ => self.ctx.pool.put(queue),
            }
            self.note_progress(id, written);
        }
    }

    /// One write that is not interrupted; returns how much was taken, and notes when that is not all.
    fn write(&mut self, id: ConnId, pieces: &[IoSlice<'_>], then: Then) -> usize {
        let Some(fd) = self.fds.get(id.index()).and_then(Option::as_ref) else {
            return 0;
        };
        let result = loop {
            let result = match (pieces, then) {
                ([piece], Then::Nothing) => self.kernel.send(fd, piece),
                (pieces, then) => self.kernel.writev(fd, pieces, then),
            };
            match result {
                Err(errno) if reaction(Call::Send, errno) == Reaction::Retry => (),
                result => break result,
            }
        };
        if self.ctx.recorder.is_on() {
            self.ctx.recorder.wrote(id.0, result);
        }
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return 0 };
        match result {
            Ok(written) => {
                // Short of all of it means full: an edge comes when there is room.
                connection.writable = written == pieces.iter().map(|piece| piece.len()).sum();
                written
            }
            Err(errno) if reaction(Call::Send, errno) == Reaction::WaitForEdge => {
                connection.writable = false;
                0
            }
            Err(errno) => {
                self.fail(id, errno);
                0
            }
        }
    }

    /// One sendfile; returns how much was taken. Short of all of it says nothing of the socket, unlike a write: it may
    /// be tried again until it is refused, and if it was interrupted, it is.
    fn write_file(&mut self, id: ConnId, slice: &FileSlice) -> usize {
        let Some(fd) = self.fds.get(id.index()).and_then(Option::as_ref) else {
            return 0;
        };
        let count = usize::try_from(slice.length).unwrap_or(usize::MAX);
        let result = self.kernel.sendfile(fd, &slice.file, slice.offset, count);
        if self.ctx.recorder.is_on() {
            self.ctx.recorder.wrote(id.0, result);
        }
        match result {
            // The file ends before what was promised of it.
            Ok(0) => self.ctx.kill(id, CloseReason::FileCutShort),
            Ok(written) => return written,
            Err(errno) => match reaction(Call::Sendfile, errno) {
                Reaction::Retry => (),
                Reaction::WaitForEdge => {
                    if let Some(connection) = self.ctx.connections.get_mut(id.0) {
                        connection.writable = false;
                    }
                }
                Reaction::FileFailed => self.ctx.kill(id, CloseReason::FileCutShort),
                _ => self.fail(id, errno),
            },
        }
        0
    }

    /// What follows from the kernel having taken `written` bytes: counts, the write-stall clock, and, once
    /// the queue is down to the low water mark, reading and `on_drain`.
    fn note_progress(&mut self, id: ConnId, written: usize) {
        let now = self.ctx.now();
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        self.ctx.metrics.bytes_sent.add(written as u64);
        connection.bytes_sent += written as u64;
        if written > 0 {
            connection.active = now;
        }
        let queued = connection.queued();
        if let Some(queue) = &mut connection.output
            && (written > 0 || queue.blocked_since.is_none())
        {
            queue.blocked_since = Some(now);
            self.ctx.arm(id);
        }
        if let Some(connection) = self.ctx.connections.get_mut(id.0)
            && connection.above_high_water
            && queued <= self.ctx.limits.output_low_water
        {
            connection.above_high_water = false;
            connection.drain_due = true;
            // What the handler leaves unconsumed, or has yet to leave if its callback is returning.
            connection.again = true;
            self.ctx.make_ready(id);
        }
    }
}
