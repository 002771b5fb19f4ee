//! [`Watched`]: any handler, with everything that the loop promises its callbacks checked on the way to it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use epoll_reactor::{
    CloseReason, CloseStats, ConnId, Ctx, Handler, Readiness, Signal, Source, SourceId, Timestamp,
};

use super::lives::{Call, Life, Lives};

/// A message from another thread, numbered by its sender.
#[derive(Debug)]
pub(crate) struct Numbered<M> {
    pub(crate) number: u64,
    pub(crate) content: Option<M>,
}

/// A handler under watch. What it finds is in [`Lives::violations`].
#[derive(Debug)]
pub(crate) struct Watched<H> {
    pub(crate) inner: H,
    pub(crate) lives: Lives,
}

/// The state of a connection, with what the last callback left of its input.
#[derive(Debug, Default)]
pub(crate) struct Kept<C> {
    inner: C,
    /// Whose state it is, since `on_open`.
    id: Option<ConnId>,
    tail: Vec<u8>,
    ended: bool,
}

/// What a handler panics with on purpose.
#[derive(Debug)]
pub(crate) struct Planned;

impl<H: Handler> Watched<H> {
    pub(crate) fn new(inner: H) -> Self {
        Self { inner, lives: Lives::new() }
    }

    /// Runs one callback of the handler under watch.
    fn call<R>(&mut self, call: Call, id: Option<ConnId>, run: impl FnOnce(&mut H) -> R) -> R {
        self.lives.enter(call, id);
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut self.inner)));
        self.lives.leave();
        match result {
            Ok(result) => result,
            Err(payload) => {
                self.lives.panicked(id);
                if !payload.is::<Planned>() {
                    let who = id.map_or_else(String::new, |id| format!(" for {id}"));
                    self.lives.violation(format!("{call:?}{who} panicked: {}", text(payload.as_ref())));
                }
                resume_unwind(payload)
            }
        }
    }

    /// What holds for every callback of an open connection.
    fn check(&mut self, ctx: &Ctx, id: ConnId, conn: &Kept<H::Conn>, call: Call) {
        match self.lives.life(id) {
            None => self.lives.violation(format!("{call:?} for {id}, which has not been opened")),
            Some(Life { closed: Some(_), .. }) => {
                self.lives.violation(format!("{call:?} for {id} after on_close"));
            }
            Some(_) => (),
        }
        if conn.id != Some(id) {
            self.lives.violation(format!("{call:?} for {id} with the state of {:?}", conn.id));
        }
        if !ctx.is_open(id) {
            self.lives.violation(format!("{call:?} for {id}, which has been closed"));
        }
    }
}

impl<H: Handler> Handler for Watched<H> {
    type Conn = Kept<H::Conn>;
    type Message = Numbered<H::Message>;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        self.lives.opened(ctx, id);
        if let Some(other) = conn.id.replace(id) {
            self.lives.violation(format!("on_open for {id} with the state of {other}"));
        }
        self.check(ctx, id, conn, Call::Open);
        self.call(Call::Open, Some(id), |inner| inner.on_open(ctx, id, &mut conn.inner));
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, input: &[u8]) -> usize {
        self.check(ctx, id, conn, Call::Data);
        if input.is_empty() || conn.ended {
            self.lives.violation(format!("on_data for {id}: empty, or after the end"));
        }
        match input.strip_prefix(conn.tail.as_slice()) {
            Some(new) => self.lives.received(ctx, id, new),
            None => self.lives.violation(format!(
                "on_data for {id}: {} bytes that do not begin with the {} left unconsumed",
                input.len(),
                conn.tail.len()
            )),
        }
        // As if none were consumed, should it panic.
        conn.tail = input.to_vec();
        let consumed =
            self.call(Call::Data, Some(id), |inner| inner.on_data(ctx, id, &mut conn.inner, input));
        conn.tail.drain(..consumed.min(input.len()));
        consumed
    }

    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, unconsumed: &[u8]) {
        self.check(ctx, id, conn, Call::Eof);
        if std::mem::replace(&mut conn.ended, true) {
            self.lives.violation(format!("on_eof for {id} again"));
        }
        if unconsumed != conn.tail {
            self.lives.violation(format!(
                "on_eof for {id} with {} unconsumed bytes, where {} were left",
                unconsumed.len(),
                conn.tail.len()
            ));
        }
        self.lives.ended(id);
        self.call(Call::Eof, Some(id), |inner| inner.on_eof(ctx, id, &mut conn.inner, unconsumed));
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        self.check(ctx, id, conn, Call::Drain);
        if ctx.queued(id) > ctx.limits().output_high_water {
            self.lives.violation(format!("on_drain for {id} with {} bytes waiting", ctx.queued(id)));
        }
        self.call(Call::Drain, Some(id), |inner| inner.on_drain(ctx, id, &mut conn.inner));
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        self.check(ctx, id, conn, Call::Timer);
        self.call(Call::Timer, Some(id), |inner| inner.on_timer(ctx, id, &mut conn.inner));
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, deadline: Timestamp) {
        self.check(ctx, id, conn, Call::Shutdown);
        if self.lives.told_of_drain(id) || !ctx.is_draining() {
            self.lives.violation(format!("on_shutdown for {id}: again, or without a drain"));
        }
        self.call(Call::Shutdown, Some(id), |inner| inner.on_shutdown(ctx, id, &mut conn.inner, deadline));
    }

    fn on_close(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        conn: Self::Conn,
        reason: CloseReason,
        stats: &CloseStats,
    ) {
        if ctx.is_open(id) || ctx.listener(id).is_some() {
            self.lives.violation(format!("on_close for {id}, which is still there"));
        }
        if ctx.peer_address(id).is_none() {
            self.lives.violation(format!("on_close for {id}, and its peer's address is gone already"));
        }
        if conn.id.is_some_and(|owner| owner != id) {
            self.lives.violation(format!("on_close for {id} with the state of {:?}", conn.id));
        }
        self.lives.closed(ctx, id, conn.tail.len(), reason, stats);
        self.call(Call::Close, Some(id), |inner| inner.on_close(ctx, id, conn.inner, reason, stats));
    }

    fn on_message(&mut self, ctx: &mut Ctx, message: Self::Message) {
        self.lives.delivered.push(message.number);
        self.call(Call::Message, None, |inner| {
            if let Some(content) = message.content {
                inner.on_message(ctx, content);
            }
        });
    }

    fn on_tick(&mut self, ctx: &mut Ctx) {
        if ctx.limits().tick.is_none() {
            self.lives.violation("on_tick, which nobody asked for".to_owned());
        }
        self.lives.ticked = Some(ctx.now());
        self.lives.ticks += 1;
        self.call(Call::Tick, None, |inner| inner.on_tick(ctx));
    }

    fn on_signal(&mut self, ctx: &mut Ctx, signal: Signal) {
        if !matches!(signal, Signal::Hangup | Signal::User1) {
            self.lives.violation(format!("on_signal for {signal}, which is not the handler's"));
        }
        self.lives.signals += 1;
        self.call(Call::Signal, None, |inner| inner.on_signal(ctx, signal));
    }

    fn on_ready(&mut self, ctx: &mut Ctx, id: SourceId, source: &Source<'_>, readiness: Readiness) {
        self.call(Call::Ready, None, |inner| inner.on_ready(ctx, id, source, readiness));
    }
}

pub(crate) fn text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("?")
}
