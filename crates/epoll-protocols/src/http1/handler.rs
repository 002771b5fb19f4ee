//! Joins the codec to the loop: input to the [`Connection`](super::Connection), its answers to
//! [`Ctx`], and the deadlines a clock is needed for. No rule of HTTP is here.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler, SendOutcome, Timestamp};

use super::{Connection, DateHeader, Exchange, HttpLimits, Next, Output, Progress, Response, Service, Stage};

/// The bounds and deadlines of an HTTP server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// What one request may take, in bytes.
    pub limits: HttpLimits,
    /// How long a client may take from the first byte of a request's head to its last, and a new client to
    /// begin. Beyond it the answer is 408; one that has sent nothing is closed without an answer.
    pub head_timeout: Duration,
    /// The same for a request's body.
    pub body_timeout: Duration,
    /// How long a connection stays open between requests.
    pub keep_alive_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            limits: HttpLimits::default(),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(60),
        }
    }
}

impl HttpConfig {
    /// `limits` with those that follow from this configuration: room for a head to come in, which the loop
    /// keeps until it is whole, and for an answer of any size that `limits` already allowed.
    #[must_use]
    pub fn limits(&self, limits: epoll_reactor::Limits) -> epoll_reactor::Limits {
        // One byte more, so that the codec is the one to refuse a head that is too large.
        epoll_reactor::Limits { input: self.limits.head.saturating_add(1).max(limits.input), ..limits }
    }
}

/// An HTTP/1.1 server around a [`Service`].
///
/// What a connection may hold is bounded by [`HttpConfig::limits`] and counted against the loop's
/// [`memory`](epoll_reactor::Limits::memory). An answer larger than the loop's
/// [`output`](epoll_reactor::Limits::output) cannot be sent: the connection is closed and the log told.
pub struct Http<S> {
    service: S,
    config: HttpConfig,
    date: DateHeader,
    /// When `date` was last set: at most once a turn.
    dated: Option<Timestamp>,
    /// Scratch space of all connections.
    response: Response,
}

/// The state of one client.
#[derive(Debug, Default)]
pub struct HttpConn {
    connection: Connection,
    /// What the deadline that is set is for.
    timed: Option<(Stage, u64)>,
}

impl<S: Service> Http<S> {
    /// A server that answers with `service`.
    #[must_use]
    pub fn new(service: S, config: HttpConfig) -> Self {
        let date = DateHeader::new(std::time::UNIX_EPOCH);
        Self { service, config, date, dated: None, response: Response::new() }
    }

    /// Runs one step of the codec, its answers going to `id`. `None` if they could not be sent; the
    /// connection is then at its end.
    fn exchange<R>(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        step: impl FnOnce(&mut Exchange<'_, S, Answers<'_>>) -> R,
    ) -> Option<R> {
        if self.dated != Some(ctx.now()) {
            self.dated = Some(ctx.now());
            self.date.set(ctx.wall_clock());
        }
        let mut answers = Answers { ctx, id, refused: false };
        let result = step(&mut Exchange {
            limits: &self.config.limits,
            date: &self.date,
            service: &mut self.service,
            response: &mut self.response,
            output: &mut answers,
        });
        if answers.refused {
            log::error!("client {id} closed: an answer does not fit into the loop's output limits");
            ctx.close_now(id);
            return None;
        }
        Some(result)
    }

    /// Sees to what the codec has said, and to the deadline that now applies.
    fn follow(&self, ctx: &mut Ctx, id: ConnId, conn: &mut HttpConn, next: Next) {
        ctx.account(id, conn.connection.held());
        match next {
            // While answers wait, it is the client's turn to read, and the loop gives us none of its requests. The
            // loop's write-stall timeout watches that.
            Next::MoreInput if ctx.queued(id) > ctx.limits().output_high_water => {
                conn.timed = None;
                ctx.cancel_timer(id);
            }
            Next::MoreInput => {
                let timed = (conn.connection.stage(), conn.connection.answered());
                if conn.timed != Some(timed) {
                    conn.timed = Some(timed);
                    ctx.set_timer(id, self.timeout(timed));
                }
            }
            Next::OutputFull => {
                conn.timed = None;
                ctx.cancel_timer(id);
                ctx.pause_until_drained(id);
            }
            Next::Close(rejection) => {
                if let Some(rejection) = rejection {
                    log::debug!("client {id} refused with {}: {rejection:?}", rejection.status());
                }
                ctx.close_after_flush(id);
            }
        }
    }

    /// How long a client may stay where it is. Before its first request it is as slow as one that has
    /// begun and not ended it.
    const fn timeout(&self, (stage, answered): (Stage, u64)) -> Duration {
        match stage {
            Stage::Idle if answered > 0 => self.config.keep_alive_timeout,
            Stage::Idle | Stage::Head | Stage::Closed => self.config.head_timeout,
            Stage::Body => self.config.body_timeout,
        }
    }
}

impl<S: Service> Handler for Http<S> {
    type Conn = HttpConn;
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut HttpConn) {
        self.follow(ctx, id, conn, Next::MoreInput);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut HttpConn, input: &[u8]) -> usize {
        match self.exchange(ctx, id, |exchange| conn.connection.receive(input, exchange)) {
            None => input.len(),
            Some(Progress { consumed, next }) => {
                self.follow(ctx, id, conn, next);
                consumed
            }
        }
    }

    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut HttpConn, unconsumed: &[u8]) {
        // No whole request can be among the unconsumed bytes: the loop delivers those before the end.
        let _ = self.exchange(ctx, id, |exchange| conn.connection.end_of_input(unconsumed, exchange));
        ctx.close_after_flush(id);
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut HttpConn) {
        self.follow(ctx, id, conn, Next::MoreInput);
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut HttpConn) {
        if let Some(next) = self.exchange(ctx, id, |exchange| conn.connection.request_timeout(exchange)) {
            self.follow(ctx, id, conn, next);
        }
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut HttpConn, _: Timestamp) {
        conn.connection.start_drain();
        if conn.connection.is_idle() {
            ctx.close_after_flush(id);
        }
    }

    fn on_close(&mut self, _: &mut Ctx, id: ConnId, conn: HttpConn, reason: CloseReason, stats: &CloseStats) {
        log::debug!(
            "client {id}: {reason}; {} requests, {} bytes sent",
            conn.connection.answered(),
            stats.bytes_sent
        );
    }
}

/// Answers on their way to one connection. Once a part has been refused, nothing of what follows is sent: it
/// would be taken for that part.
struct Answers<'a> {
    ctx: &'a mut Ctx,
    id: ConnId,
    refused: bool,
}

impl Output for Answers<'_> {
    fn copy(&mut self, data: &[u8]) {
        self.refused = self.refused || matches!(self.ctx.send(self.id, data), SendOutcome::OverLimit(_));
    }

    fn share(&mut self, data: Bytes) {
        self.refused =
            self.refused || matches!(self.ctx.send_shared(self.id, data), SendOutcome::OverLimit(_));
    }

    /// Everything is full once a part has been refused, so that no further request is read.
    fn waiting(&self) -> usize {
        if self.refused { usize::MAX } else { self.ctx.queued(self.id) }
    }
}

impl<S> fmt::Debug for Http<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("config", &self.config).finish_non_exhaustive()
    }
}
