//! Joins the codec to the loop: input to the [`Connection`](super::Connection), its answers to
//! [`Ctx`], and the deadlines a clock is needed for. No rule of HTTP is here.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, ConnMap, Ctx, Errno, FileSlice, Handler, Kernel, Remote,
    RemoteError, SendOutcome, Signal, Timestamp, read_cached,
};
use log::Level;

use super::blocking::{BlockingJob, Done, Finished, Pool, Work, warm};
use super::client::Client;
use super::output::NotCached;
use super::responder::{Action, Responder};
use super::{
    Connection, DateHeader, Exchange, HttpConfig, Next, Output, Progress, RequestId, Response, Service,
};

/// An HTTP/1.1 server around a [`Service`].
///
/// What a connection may hold is bounded by [`HttpConfig::limits`] and counted against the loop's
/// [`memory`](epoll_reactor::Limits::memory). An answer in memory larger than the loop's
/// [`output`](epoll_reactor::Limits::output) cannot be sent: the connection is closed and the log told.
pub struct Http<S: Service> {
    service: S,
    config: HttpConfig,
    date: DateHeader,
    /// When `date` was last set: at most once a turn.
    dated: Option<Timestamp>,
    /// Scratch space of all connections.
    response: Response,
    /// Here and not with the loop, so that a message can go on with any of them.
    clients: ConnMap<Client>,
    actions: VecDeque<Action>,
    blocking: Blocking,
    shutting_down: bool,
}

/// Where blocking work is done.
enum Blocking {
    /// On the loop's own thread: nobody has said how another could tell it the outcome.
    Here,
    /// On threads that have not been needed yet.
    Ready(Finished),
    Started(Pool),
}

/// A message to [`Http`] from another thread: one for its service, made with `into()`, or one of its own.
pub struct HttpMessage<M>(Message<M>);

enum Message<M> {
    Service(M),
    Done(Done),
}

impl<M> From<M> for HttpMessage<M> {
    fn from(message: M) -> Self {
        Self(Message::Service(message))
    }
}

impl<M> fmt::Debug for HttpMessage<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpMessage").finish_non_exhaustive()
    }
}

impl<S: Service> Http<S> {
    /// A server that answers with `service`. Until it is [attached](Self::attach), blocking work is done on the thread
    /// of the loop.
    #[must_use]
    pub fn new(service: S, config: HttpConfig) -> Self {
        Self {
            service,
            config,
            date: DateHeader::new(std::time::UNIX_EPOCH),
            dated: None,
            response: Response::new(),
            clients: ConnMap::default(),
            actions: VecDeque::new(),
            blocking: Blocking::Here,
            shutting_down: false,
        }
    }

    /// Gives it the way back from other threads, [`Reactor::remote`](epoll_reactor::Reactor::remote), so that what
    /// blocks is done by [threads](HttpConfig::blocking_threads).
    ///
    /// The same `Remote` carries messages for the service: `remote.send(message.into())`.
    pub fn attach<K: Kernel + 'static>(&mut self, remote: Remote<HttpMessage<S::Message>, K>) {
        let finished: Finished = Arc::new(move |done| {
            let mut message = HttpMessage(Message::Done(done));
            // The loop is busy: this thread may wait, and the answer must not be lost.
            while let Err(RemoteError::Full(refused)) = remote.send(message) {
                message = refused;
                thread::sleep(Duration::from_millis(1));
            }
        });
        self.blocking = Blocking::Ready(finished);
    }

    /// The service.
    pub const fn service(&self) -> &S {
        &self.service
    }

    /// The service, to give it what there is only once the reactor is made, such as its
    /// [`remote`](epoll_reactor::Reactor::remote).
    pub const fn service_mut(&mut self) -> &mut S {
        &mut self.service
    }

    /// Runs one step of the codec, its answers going to `id`. `None` if that is gone, or the answers could not be
    /// sent; the connection is then at its end.
    fn step<R>(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        step: impl FnOnce(&mut Connection, &mut Exchange<'_, S, Answers<'_>>) -> R,
    ) -> Option<R> {
        if self.dated != Some(ctx.now()) {
            self.dated = Some(ctx.now());
            self.date.set(ctx.wall_clock());
        }
        let client = self.clients.get_mut(id)?;
        let mut answers = Answers { ctx, id, refused: false };
        let result = step(
            &mut client.connection,
            &mut Exchange {
                limits: &self.config.limits,
                date: &self.date,
                connection: id.as_u64(),
                client: &client.peer,
                service: &mut self.service,
                response: &mut self.response,
                output: &mut answers,
            },
        );
        if answers.refused {
            log::error!("client {id} closed: an answer does not fit into the loop's output limits");
            ctx.close_now(id);
            return None;
        }
        Some(result)
    }

    /// Does one step of the codec that was not about input, and what follows from it.
    fn go_on(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        step: impl FnOnce(&mut Connection, &mut Exchange<'_, S, Answers<'_>>) -> Option<Next>,
    ) {
        if let Some(Some(next)) = self.step(ctx, id, step) {
            self.follow(ctx, id, next);
        }
    }

    /// Sees to what the codec has said, and to the deadline that now applies.
    fn follow(&mut self, ctx: &mut Ctx, id: ConnId, next: Next) {
        let mut next = Some(next);
        while let Some(what) = next {
            next = self.follow_once(ctx, id, what);
        }
        if let Some(client) = self.clients.get(id) {
            ctx.account(id, client.connection.held());
        }
    }

    fn follow_once(&mut self, ctx: &mut Ctx, id: ConnId, next: Next) -> Option<Next> {
        let client = self.clients.get_mut(id)?;
        match next {
            Next::MoreInput => {
                if std::mem::take(&mut client.waiting) {
                    ctx.resume_reading(id);
                }
                client.set_timer(ctx, id, &self.config);
            }
            Next::OutputFull => {
                client.clear_timer(ctx, id);
                ctx.pause_until_drained(id);
            }
            Next::Wait => {
                client.wait(ctx, id);
                let job = client.connection.take_job()?;
                return self.start_job(ctx, id, job);
            }
            Next::Disk => {
                client.wait(ctx, id);
                let slice = client.connection.cold()?;
                return self.start_warming(ctx, id, slice);
            }
            Next::Close(rejection) => {
                if let Some(rejection) = rejection {
                    log::debug!("client {id} refused with {}: {rejection:?}", rejection.status());
                }
                ctx.close_after_flush(id);
            }
            Next::Abort => ctx.abort(id),
        }
        None
    }

    /// Has a job run; what follows if that is done already.
    fn start_job(&mut self, ctx: &mut Ctx, id: ConnId, job: BlockingJob) -> Option<Next> {
        let number = job.id().number;
        let response = match self.submit(Work::Answer(job)) {
            Ok(()) => return None,
            Err(Refused::Full) => overloaded(),
            Err(Refused::Here(Work::Answer(job))) => job.run(),
            Err(Refused::Here(Work::Warm(..))) => return None,
        };
        self.response = response;
        self.step(ctx, id, |connection, exchange| connection.respond(number, exchange)).flatten()
    }

    fn start_warming(&mut self, ctx: &mut Ctx, id: ConnId, slice: FileSlice) -> Option<Next> {
        match self.submit(Work::Warm(id.as_u64(), slice.clone())) {
            Ok(()) => return None,
            // The answer has begun and has to go on.
            Err(Refused::Full | Refused::Here(_)) => warm(&slice),
        }
        self.step(ctx, id, |connection, exchange| connection.warmed(exchange))
    }

    fn submit(&mut self, work: Work) -> Result<(), Refused> {
        if let Blocking::Ready(finished) = &self.blocking {
            let HttpConfig { blocking_threads, blocking_queue, .. } = self.config;
            self.blocking = Blocking::Started(Pool::start(blocking_threads, blocking_queue, finished));
        }
        match &self.blocking {
            Blocking::Started(pool) => pool.submit(work).map_err(|_| Refused::Full),
            Blocking::Here | Blocking::Ready(_) => Err(Refused::Here(work)),
        }
    }

    /// Calls a method of the service that is not about one request, and does what it asks for.
    fn call_service(&mut self, ctx: &mut Ctx, call: impl FnOnce(&mut S, &mut Responder<'_>)) {
        call(&mut self.service, &mut Responder { ctx, actions: &mut self.actions });
        // What a client is given now is the last, though it may be told of the end only after the next turn.
        let last = self.shutting_down;
        let end = move |connection: &mut Connection| {
            if last {
                connection.start_drain();
            }
        };
        while let Some(action) = self.actions.pop_front() {
            match action {
                Action::Respond(RequestId { connection, number }, response) => {
                    self.response = *response;
                    self.go_on(ctx, ConnId::from_u64(connection), |connection, exchange| {
                        end(connection);
                        connection.respond(number, exchange)
                    });
                }
                Action::Resume(RequestId { connection, number }) => {
                    self.go_on(ctx, ConnId::from_u64(connection), |connection, exchange| {
                        end(connection);
                        connection.wake(number, exchange)
                    });
                }
            }
        }
    }
}

enum Refused {
    Full,
    /// There is no other thread.
    Here(Work),
}

/// What a client is told whom the server has no means to answer for now.
fn overloaded() -> Response {
    let mut response = Response::new();
    response.set_status(503);
    let added = response.header("Retry-After", "1");
    debug_assert!(added.is_ok(), "a good field");
    response
}

impl<S: Service> Handler for Http<S> {
    type Conn = ();
    type Message = HttpMessage<S::Message>;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        let peer = ctx.peer_address(id).cloned().unwrap_or(Address::UnixUnnamed);
        self.clients.insert(id, Client::new(peer, ctx.now()));
        self.follow(ctx, id, Next::MoreInput);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
        match self.step(ctx, id, |connection, exchange| connection.receive(input, exchange)) {
            None => input.len(),
            Some(Progress { consumed, next }) => {
                self.follow(ctx, id, next);
                consumed
            }
        }
    }

    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), unconsumed: &[u8]) {
        // No whole request can be among the unconsumed bytes: the loop delivers those before the end.
        let end = self.step(ctx, id, |connection, exchange| {
            let Progress { next, .. } = connection.end_of_input(unconsumed, exchange);
            connection.start_drain();
            next
        });
        match end {
            Some(next @ (Next::Wait | Next::Disk | Next::OutputFull)) => self.follow(ctx, id, next),
            _ => ctx.close_after_flush(id),
        }
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        self.go_on(ctx, id, |connection, exchange| Some(connection.resume(exchange)));
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        self.go_on(ctx, id, |connection, exchange| Some(connection.request_timeout(exchange)));
    }

    fn on_message(&mut self, ctx: &mut Ctx, message: Self::Message) {
        match message.0 {
            Message::Service(message) => {
                self.call_service(ctx, |service, responder| service.on_message(message, responder));
            }
            Message::Done(Done::Answer(id, response)) => {
                self.response = response;
                self.go_on(ctx, ConnId::from_u64(id.connection), |connection, exchange| {
                    connection.respond(id.number, exchange)
                });
            }
            Message::Done(Done::Warmed(connection)) => {
                self.go_on(ctx, ConnId::from_u64(connection), |connection, exchange| {
                    Some(connection.warmed(exchange))
                });
            }
        }
    }

    fn on_tick(&mut self, ctx: &mut Ctx) {
        self.call_service(ctx, Service::on_tick);
    }

    fn on_signal(&mut self, ctx: &mut Ctx, signal: Signal) {
        self.call_service(ctx, |service, responder| service.on_signal(signal, responder));
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), _: Timestamp) {
        if !std::mem::replace(&mut self.shutting_down, true) {
            self.call_service(ctx, Service::on_shutdown);
        }
        let Some(client) = self.clients.get_mut(id) else { return };
        client.connection.start_drain();
        if client.connection.is_idle() {
            ctx.close_after_flush(id);
        }
    }

    fn on_close(&mut self, ctx: &mut Ctx, id: ConnId, (): (), reason: CloseReason, stats: &CloseStats) {
        let _: Option<()> = self.step(ctx, id, |connection, exchange| connection.abandon(exchange));
        let Some(client) = self.clients.remove(id) else { return };
        // No client's doing, and the only sign of a disk that fails behind a head.
        let level = if reason == CloseReason::FileCutShort { Level::Warn } else { Level::Debug };
        log::log!(
            level,
            "client {id}: {reason}; {} requests, {} bytes sent",
            client.connection.answered(),
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

    fn file(&mut self, slice: FileSlice, wait: bool) -> Result<(), NotCached> {
        if !wait && !is_cached(&slice) {
            return Err(NotCached);
        }
        self.refused =
            self.refused || matches!(self.ctx.send_file(self.id, slice), SendOutcome::OverLimit(_));
        Ok(())
    }

    /// Everything is full once a part has been refused, so that no further request is read.
    fn waiting(&self) -> usize {
        if self.refused { usize::MAX } else { self.ctx.queued(self.id) }
    }

    fn refused(&self) -> bool {
        self.refused
    }
}

/// Whether the last byte of `slice` can be had without waiting for the disk: the kernel reads ahead from the front, so
/// the others are rarely otherwise. Whatever goes wrong shows when the file is sent.
fn is_cached(slice: &FileSlice) -> bool {
    let last = slice.offset.saturating_add(slice.length).saturating_sub(1);
    read_cached(&slice.file, &mut [0], last) != Err(Errno::EAGAIN)
}

impl<S: Service> fmt::Debug for Http<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("config", &self.config).finish_non_exhaustive()
    }
}
