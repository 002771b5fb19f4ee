//! One connection's turn: what an event, or the ready list, has it do; and the read step. Writing is in `flush.rs`.

use epoll_sys::{Call, Errno, Kernel, Reaction, Readiness, reaction};

use crate::buffer::InputTail;
use crate::connection::{Fin, Phase};
use crate::handler::{CloseReason, Handler};
use crate::reactor::Reactor;
use crate::recorder::Callback;
use crate::token::ConnId;

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// The kernel has something to say about `id`.
    pub(crate) fn on_event(&mut self, id: ConnId, readiness: Readiness) {
        let Some(connection) = self.ctx.connections.get_mut(id.0) else {
            self.ctx.metrics.stale_events.add(1);
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
            connection.budget_spent = false;
            self.serve(id);
        }
    }

    fn serve(&mut self, id: ConnId) {
        let counted = self.callbacks;
        self.serve_phase(id);
        // Writing a megabyte, or hearing somebody out, is no less work for calling nobody.
        self.callbacks = self.callbacks.max(counted + 1);
    }

    /// Output before input: room for answers before new questions.
    fn serve_phase(&mut self, id: ConnId) {
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        match connection.phase {
            Phase::Connecting if connection.writable => {
                self.finish_connect(id);
                self.read(id);
            }
            Phase::Open => {
                if connection.output.is_some()
                    || connection.fin == Fin::Due
                    || connection.drain_due
                    || connection.again
                {
                    // What was sent to it in this turn leaves at the end, in one write with what is still to come.
                    if !connection.in_dirty {
                        self.flush(id);
                    }
                    self.call_on_drain(id);
                    self.deliver_tail(id);
                }
                self.read(id);
                // No edge tells of it again, and what has just been delivered may have stopped the reading.
                if let Some(connection) = self.ctx.connections.get(id.0)
                    && connection.errored
                    && connection.phase == Phase::Open
                    && !connection.may_deliver()
                {
                    self.check_error(id);
                }
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
            self.callback(Callback::Drain, id, |handler, ctx, state| handler.on_drain(ctx, id, state));
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
                self.ctx.buffered -= tail.held();
                self.deliver_from(id, tail);
            }
        }
    }

    /// Reads until the socket is empty, the budget is used up, or the handler wants no more.
    fn read(&mut self, id: ConnId) {
        // Taken so that `input` can lie in it while the handler has the rest of the loop.
        let mut buffer = std::mem::take(&mut self.read_buffer);
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
                Some(tail) => {
                    self.ctx.buffered -= tail.held();
                    self.read_behind(id, tail, buffer.len())
                }
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
                self.deliver_from(id, tail);
                count
            }
        }
    }

    /// One read that is not interrupted, and what it says about the socket.
    fn receive(&mut self, id: ConnId, room: &mut [u8]) -> Received {
        let Some(fd) = self.fds.get(id.index()).and_then(Option::as_ref) else {
            return Received::Nothing;
        };
        let result = loop {
            match self.kernel.recv(fd, room) {
                Err(errno) if reaction(Call::Recv, errno) == Reaction::Retry => (),
                result => break result,
            }
        };
        if self.ctx.recorder.is_on() {
            self.ctx.recorder.read(id.0, room, result);
        }
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
                self.ctx.metrics.bytes_received.add(count as u64);
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
        self.keep_tail(id, tail);
    }

    fn call_on_data(&mut self, id: ConnId, input: &[u8]) -> usize {
        let consumed =
            self.callback(Callback::Data, id, |handler, ctx, state| handler.on_data(ctx, id, state, input));
        consumed.unwrap_or(0).min(input.len())
    }

    fn call_on_eof(&mut self, id: ConnId, unconsumed: &[u8]) {
        self.callback(Callback::Eof, id, |handler, ctx, state| handler.on_eof(ctx, id, state, unconsumed));
    }

    /// Leaves an unconsumed rest with its connection, if that is open and the rest within bounds.
    fn keep_tail(&mut self, id: ConnId, mut tail: Box<InputTail>) {
        let length = tail.len();
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        if length == 0 || connection.phase != Phase::Open || connection.eof {
            return;
        }
        tail.shrink();
        self.ctx.buffered += tail.held();
        // Held up, it may be complete messages that wait their turn.
        let held_up = connection.again || !connection.may_deliver();
        connection.input = Some(tail);
        if length >= self.ctx.limits.input && !held_up {
            self.ctx.end(id, CloseReason::InputLimit);
        }
        self.relieve_memory();
    }

    pub(crate) fn call_on_open(&mut self, id: ConnId) {
        self.callback(Callback::Open, id, |handler, ctx, state| handler.on_open(ctx, id, state));
        self.ctx.arm(id);
    }

    /// Keeps beside the connection what is out of reach of [`Ctx`](crate::Ctx): no descriptor until an outbound one
    /// has been started, and no state for one that was refused.
    pub(crate) fn put_beside(&mut self, id: ConnId, fd: Option<K::Fd>, state: Option<H::Conn>) {
        put_at(&mut self.fds, id.index(), fd);
        put_at(&mut self.states, id.index(), state);
    }

    /// An error event that no read will explain.
    fn check_error(&mut self, id: ConnId) {
        if let Some(connection) = self.ctx.connections.get_mut(id.0) {
            connection.errored = false;
        }
        if let Some(errno) = self.take_error(id) {
            self.fail(id, errno);
        }
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

fn put_at<T>(places: &mut Vec<Option<T>>, index: usize, value: Option<T>) {
    if places.len() <= index {
        places.resize_with(index + 1, || None);
    }
    if let Some(place) = places.get_mut(index) {
        *place = value;
    }
}

/// What a read came to.
enum Received {
    Bytes(usize),
    End,
    Nothing,
}
