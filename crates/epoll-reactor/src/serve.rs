//! One connection's turn: what an event, or the ready list, has it do. The read step, the flush step, and the
//! start of outbound connections.

use std::io::IoSlice;

use epoll_sys::{Call, ConnectProgress, Errno, Interest, Kernel, Reaction, Readiness, reaction};

use crate::buffer::{InputTail, PIECES_PER_WRITE};
use crate::connection::Phase;
use crate::handler::{CloseReason, Handler};
use crate::reactor::{Reactor, Side};
use crate::token::ConnId;

/// The buffer for a callback's own output shrinks back to this when a large answer has made it grow.
const DIRECT_KEPT: usize = 256 * 1024;

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// The kernel has something to say about `id`.
    pub(crate) fn on_event(&mut self, id: ConnId, readiness: Readiness) {
        let Some(connection) = self.ctx.connections.get_mut(id.0) else {
            self.ctx.counters.stale_events += 1;
            return;
        };
        connection.note(readiness);
        if readiness.is_error() && connection.phase == Phase::Open && !connection.may_read() {
            // No read will find the error out.
            self.check_error(id);
        }
        // One on the ready list has its turn there: nobody gets two.
        if self.ctx.connections.get(id.0).is_some_and(|connection| !connection.in_ready) {
            self.serve(id);
        }
    }

    /// `id` was put on the ready list.
    pub(crate) fn serve_ready(&mut self, id: ConnId) {
        if let Some(connection) = self.ctx.connections.get_mut(id.0) {
            connection.in_ready = false;
            self.serve(id);
        }
    }

    /// Output before input: room for answers before new questions.
    fn serve(&mut self, id: ConnId) {
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        match connection.phase {
            Phase::Connecting if connection.writable => {
                self.finish_connect(id);
                self.read(id);
            }
            Phase::Open => {
                self.flush(id);
                self.call_on_drain(id);
                self.deliver_tail(id);
                self.read(id);
            }
            Phase::Flushing => self.flush(id),
            Phase::Lingering => self.linger(id),
            Phase::Connecting | Phase::Dead => (),
        }
    }

    fn call_on_drain(&mut self, id: ConnId) {
        if let Some(connection) = self.ctx.connections.get_mut(id.0)
            && connection.drain_due
            && connection.accepts_output()
            && !connection.above_high_water
        {
            connection.drain_due = false;
            self.callback(id, |handler, ctx, state| handler.on_drain(ctx, id, state));
        }
    }

    /// Gives the handler again what it left unconsumed, if it asked for that or was held up.
    fn deliver_tail(&mut self, id: ConnId) {
        if let Some(connection) = self.ctx.connections.get_mut(id.0)
            && connection.again
            && connection.may_deliver()
        {
            connection.again = false;
            if let Some(tail) = connection.input.take() {
                self.deliver_from(id, tail);
            }
        }
    }

    /// Reads until the socket is empty, the budget is used up, or the handler wants no more.
    fn read(&mut self, id: ConnId) {
        // Taken so that `input` can lie in it while the handler has the rest of the loop.
        let mut buffer = std::mem::take(&mut self.read_buffer);
        // It is missing if a panic went through here before, by policy.
        buffer.resize(self.ctx.limits.read_buffer, 0);
        let mut budget = self.ctx.limits.read_budget;
        while let Some(connection) = self.ctx.connections.get_mut(id.0)
            && connection.may_read()
        {
            if budget == 0 {
                self.ctx.make_ready(id);
                break;
            }
            let received = match connection.input.take() {
                None => self.read_shared(id, &mut buffer),
                Some(tail) => self.read_behind(id, tail, buffer.len()),
            };
            budget = budget.saturating_sub(received);
        }
        self.read_buffer = buffer;
    }

    /// Reads into the loop's buffer; only what the handler leaves is copied. Returns the bytes read.
    fn read_shared(&mut self, id: ConnId, buffer: &mut [u8]) -> usize {
        let received = match self.receive(id, buffer) {
            Received::Nothing => return 0,
            Received::End => {
                self.call_on_eof(id, &[]);
                return 0;
            }
            Received::Bytes(count) => count,
        };
        let input = buffer.get(..received).unwrap_or_default();
        let consumed = self.call_on_data(id, input);
        if let Some(rest) = input.get(consumed..).filter(|rest| !rest.is_empty()) {
            self.ctx.buffered += rest.len();
            self.keep_tail(id, Box::new(InputTail::from_slice(rest)));
        }
        received
    }

    /// Reads behind the start of a message, where it already lies. Returns the bytes read.
    fn read_behind(&mut self, id: ConnId, mut tail: Box<InputTail>, most: usize) -> usize {
        let most = most.min(self.ctx.limits.input.saturating_sub(tail.len()));
        match self.receive(id, tail.room(most)) {
            Received::Nothing => {
                self.keep_tail(id, tail);
                0
            }
            Received::End => {
                self.call_on_eof(id, tail.as_slice());
                self.keep_tail(id, tail);
                0
            }
            Received::Bytes(count) => {
                tail.filled(count);
                self.ctx.buffered += count;
                self.deliver_from(id, tail);
                count
            }
        }
    }

    /// One read that is not interrupted, and what it says about the socket.
    fn receive(&mut self, id: ConnId, room: &mut [u8]) -> Received {
        let Some(fd) = self.sides.get(id.index()).and_then(|side| side.as_ref()?.fd.as_ref()) else {
            return Received::Nothing;
        };
        let result = loop {
            match self.kernel.recv(fd, room) {
                Err(errno) if reaction(Call::Recv, errno) == Reaction::Retry => (),
                result => break result,
            }
        };
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return Received::Nothing };
        match result {
            Ok(0) => {
                connection.eof = true;
                connection.readable = false;
                Received::End
            }
            Ok(count) => {
                // Short of the room means empty, but for what `read_to_end` stands for.
                connection.readable = count == room.len() || connection.read_to_end;
                connection.active = self.ctx.clock.now;
                connection.bytes_received += count as u64;
                self.ctx.counters.bytes_received += count as u64;
                Received::Bytes(count)
            }
            Err(errno) if reaction(Call::Recv, errno) == Reaction::WaitForEdge => {
                connection.readable = false;
                connection.read_to_end = false;
                Received::Nothing
            }
            Err(errno) => {
                self.fail(id, errno);
                Received::Nothing
            }
        }
    }

    fn deliver_from(&mut self, id: ConnId, mut tail: Box<InputTail>) {
        let consumed = self.call_on_data(id, tail.as_slice());
        tail.consume(consumed);
        self.ctx.buffered -= consumed;
        self.keep_tail(id, tail);
    }

    fn call_on_data(&mut self, id: ConnId, input: &[u8]) -> usize {
        let consumed = self.callback(id, |handler, ctx, state| handler.on_data(ctx, id, state, input));
        consumed.unwrap_or(0).min(input.len())
    }

    fn call_on_eof(&mut self, id: ConnId, unconsumed: &[u8]) {
        self.callback(id, |handler, ctx, state| handler.on_eof(ctx, id, state, unconsumed));
    }

    /// Leaves an unconsumed rest with its connection, if that is open and the rest within bounds. It is
    /// counted in `buffered` already.
    fn keep_tail(&mut self, id: ConnId, tail: Box<InputTail>) {
        let over_memory = self.ctx.buffered > self.ctx.limits.memory;
        let length = tail.len();
        match self.ctx.connections.get_mut(id.0) {
            Some(connection) if length > 0 && connection.phase == Phase::Open && !connection.eof => {
                // Held up, it may be complete messages that wait their turn.
                let held_up = connection.again || !connection.may_deliver();
                connection.input = Some(tail);
                if length >= self.ctx.limits.input && !held_up {
                    self.ctx.kill(id, CloseReason::InputLimit);
                } else if over_memory {
                    self.ctx.kill(id, CloseReason::MemoryLimit);
                }
            }
            _ => self.ctx.buffered -= length,
        }
    }

    /// Sends what a callback has said to its own connection; what the kernel refuses goes to the queue.
    pub(crate) fn send_direct(&mut self, id: ConnId) {
        if self.ctx.direct.is_empty() {
            return;
        }
        let direct = std::mem::take(&mut self.ctx.direct);
        let open = self.ctx.connections.get(id.0).is_some_and(|connection| connection.phase != Phase::Dead);
        let written = if open { self.write(id, &[IoSlice::new(&direct)]) } else { 0 };
        self.ctx.direct = direct;
        self.ctx.direct.drain(..written);
        self.ctx.move_direct_to_queue(id);
        self.ctx.direct.shrink_to(DIRECT_KEPT);
        self.note_progress(id, written);
    }

    /// Sends what is queued for `id`, as far as the kernel takes it; a connection that was closing and has
    /// nothing left goes on to its end.
    pub(crate) fn flush(&mut self, id: ConnId) {
        while let Some(connection) = self.ctx.connections.get_mut(id.0)
            && connection.writable
            && matches!(connection.phase, Phase::Open | Phase::Flushing)
            && let Some(mut queue) = connection.output.take()
        {
            let mut pieces = [IoSlice::new(&[]); PIECES_PER_WRITE];
            let count = queue.gather(&mut pieces);
            let written = self.write(id, pieces.get(..count).unwrap_or_default());
            queue.advance(written);
            self.ctx.buffered -= written;
            match self.ctx.connections.get_mut(id.0) {
                Some(connection) if queue.len() > 0 => connection.output = Some(queue),
                _ => self.ctx.pool.put(queue),
            }
            self.note_progress(id, written);
        }
        if let Some(connection) = self.ctx.connections.get(id.0)
            && connection.phase == Phase::Flushing
            && connection.output.is_none()
        {
            self.end_output(id);
        }
    }

    /// One write that is not interrupted; returns how much was taken, and notes when that is not all.
    fn write(&mut self, id: ConnId, pieces: &[IoSlice<'_>]) -> usize {
        let Some(fd) = self.sides.get(id.index()).and_then(|side| side.as_ref()?.fd.as_ref()) else {
            return 0;
        };
        let result = loop {
            let result = match pieces {
                [piece] => self.kernel.send(fd, piece),
                pieces => self.kernel.writev(fd, pieces),
            };
            match result {
                Err(errno) if reaction(Call::Send, errno) == Reaction::Retry => (),
                result => break result,
            }
        };
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

    /// What follows from the kernel having taken `written` bytes: counts, the write-stall clock, and, once
    /// the queue is down to the low water mark, reading and `on_drain`.
    fn note_progress(&mut self, id: ConnId, written: usize) {
        let now = self.ctx.now();
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        self.ctx.counters.bytes_sent += written as u64;
        connection.bytes_sent += written as u64;
        if written > 0 {
            connection.active = now;
        }
        let queued = connection.queued();
        if queued == 0 {
            connection.write_blocked = None;
        } else if written > 0 || connection.write_blocked.is_none() {
            connection.write_blocked = Some(now);
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

    /// An outbound connection that a callback asked for.
    pub(crate) fn start_connect(&mut self, id: ConnId) {
        let Some(connection) = self.ctx.connections.get(id.0) else { return };
        if connection.phase != Phase::Connecting {
            return;
        }
        let started = self.kernel.connect(&connection.peer);
        let (fd, progress) = match started {
            Ok((fd, progress)) => (Some(fd), Ok(progress)),
            Err(errno) => (None, Err(errno)),
        };
        let added = match &fd {
            Some(fd) => self.kernel.add(fd, Interest::Stream, id.as_u64()),
            None => Ok(()),
        };
        self.put_side(id, Side { fd, state: H::Conn::default() });
        self.ctx.arm(id);
        match added.and(progress) {
            Ok(ConnectProgress::InProgress) => (),
            Ok(ConnectProgress::Connected) => self.opened_outbound(id),
            Err(errno) => self.ctx.kill(id, CloseReason::ConnectFailed(errno)),
        }
    }

    /// A connecting socket has become writable: it is decided.
    fn finish_connect(&mut self, id: ConnId) {
        match self.take_error(id) {
            None => self.opened_outbound(id),
            Some(errno) => self.ctx.kill(id, CloseReason::ConnectFailed(errno)),
        }
    }

    fn opened_outbound(&mut self, id: ConnId) {
        let now = self.ctx.now();
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        connection.writable = true;
        connection.active = now;
        if connection.output.is_some() {
            connection.write_blocked = Some(now);
        }
        if connection.reason.is_some() {
            // Closed before it opened: what was sent to it is still delivered.
            connection.phase = Phase::Flushing;
            self.ctx.mark_dirty(id);
            return;
        }
        connection.phase = Phase::Open;
        self.ctx.counters.connected += 1;
        self.call_on_open(id);
        self.ctx.mark_dirty(id);
    }

    pub(crate) fn call_on_open(&mut self, id: ConnId) {
        self.callback(id, |handler, ctx, state| handler.on_open(ctx, id, state));
        self.ctx.arm(id);
    }

    pub(crate) fn put_side(&mut self, id: ConnId, side: Side<K::Fd, H::Conn>) {
        if self.sides.len() <= id.index() {
            self.sides.resize_with(id.index() + 1, || None);
        }
        if let Some(place) = self.sides.get_mut(id.index()) {
            *place = Some(side);
        }
    }

    /// An error event that no read will explain.
    fn check_error(&mut self, id: ConnId) {
        if let Some(errno) = self.take_error(id) {
            self.fail(id, errno);
        }
    }

    fn take_error(&self, id: ConnId) -> Option<Errno> {
        let fd = self.sides.get(id.index())?.as_ref()?.fd.as_ref()?;
        self.kernel.take_error(fd).unwrap_or_else(Some)
    }

    /// The kernel has ended the connection.
    pub(crate) fn fail(&mut self, id: ConnId, errno: Errno) {
        let reason = match errno {
            Errno::ECONNRESET | Errno::EPIPE => CloseReason::Reset,
            errno => CloseReason::Error(errno),
        };
        self.ctx.kill(id, reason);
    }
}

/// What a read came to.
enum Received {
    Bytes(usize),
    End,
    Nothing,
}
