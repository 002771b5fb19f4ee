//! The broadcast handler of a loop, with what it takes from its clients noted, and compared with what they said.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use epoll_protocols::{Broadcast, BroadcastMessage};
use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler, Timestamp};

use super::super::published::{content, name};

/// How many lines of each session the loops have taken.
pub(super) type Taken = Rc<RefCell<BTreeMap<usize, u64>>>;

/// The broadcast handler of one loop, with what it takes noted.
pub(super) struct Noted {
    pub(super) inner: Broadcast,
    pub(super) taken: Taken,
    pub(super) limit: usize,
    pub(super) violations: Vec<String>,
}

impl Handler for Noted {
    type Conn = <Broadcast as Handler>::Conn;
    type Message = BroadcastMessage;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        self.inner.on_open(ctx, id, conn);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, input: &[u8]) -> usize {
        let consumed = self.inner.on_data(ctx, id, conn, input);
        for line in input[..consumed].split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let Some((session, number)) = name(line) else {
                self.violations.push(format!("{id} published what nobody said: {line:?}"));
                continue;
            };
            let mut taken = self.taken.borrow_mut();
            let next = taken.entry(session).or_default();
            if number != *next || content(session, number, self.limit) != line {
                self.violations.push(format!("{id} published line {number} of session {session} for {next}"));
            }
            *next += 1;
        }
        consumed
    }

    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, unconsumed: &[u8]) {
        self.inner.on_eof(ctx, id, conn, unconsumed);
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        self.inner.on_drain(ctx, id, conn);
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        self.inner.on_timer(ctx, id, conn);
    }

    fn on_stopping(&mut self, ctx: &mut Ctx, deadline: Timestamp) {
        self.inner.on_stopping(ctx, deadline);
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, deadline: Timestamp) {
        self.inner.on_shutdown(ctx, id, conn, deadline);
    }

    fn on_close(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        conn: Self::Conn,
        reason: CloseReason,
        stats: &CloseStats,
    ) {
        self.inner.on_close(ctx, id, conn, reason, stats);
    }

    fn on_message(&mut self, ctx: &mut Ctx, message: BroadcastMessage) {
        self.inner.on_message(ctx, message);
    }
}
