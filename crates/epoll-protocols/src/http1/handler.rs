//! Joins the codec to the loop: input to the [`Connection`](super::Connection), its answers to
//! [`Ctx`], and the deadlines a clock is needed for. No rule of HTTP is here.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io, thread};

use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, ConnMap, Ctx, FileSlice, Handler, Kernel, Remote, RemoteError,
    Signal, Timestamp,
};
use log::Level;

use super::answers::Answers;
use super::blocking::BlockingJob;
use super::client::Client;
use super::connection::RETRY_AFTER;
use super::pool::{Done, Finished, Pool, warm};
use super::responder::{Action, Responder};
use super::{
    Connection, DateHeader, Exchange, HttpConfig, HttpMetrics, Next, Progress, RequestId, Response, Service,
};

/// An HTTP/1.1 server around a [`Service`].
///
/// What a connection may hold is bounded by [`HttpConfig::limits`] and counted against the loop's
/// [`memory`](epoll_reactor::Limits::memory). An answer in memory larger than the loop's
/// [`output`](epoll_reactor::Limits::output) cannot be sent: the connection is closed and the log told.
///
/// Where the loop has a [target for its lag](epoll_reactor::Limits::lag_target) and is overloaded, requests that have waited for
/// too long are answered 503, and the service is not asked.
///
/// A callback of the service that panics costs the client it was called for its connection, whatever had been sent of
/// an answer; the others are served on, under the loop's [`PanicPolicy`](epoll_reactor::PanicPolicy). A panic of one
/// that is not about a client, such as [`Service::on_message`], costs nobody, and what it had asked for is done.
pub struct Http<S: Service> {
    service: S,
    config: HttpConfig,
    date: DateHeader,
    /// When the second that `date` says is over.
    dated_until: Option<Timestamp>,
    /// Scratch space of all connections.
    response: Response,
    /// Here and not with the loop, so that a message can go on with any of them.
    clients: ConnMap<Client>,
    actions: VecDeque<Action>,
    blocking: Blocking,
    metrics: Arc<HttpMetrics>,
    /// The service has been told of the end, and what a client is given now is the last.
    stopping: bool,
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
            dated_until: None,
            response: Response::new(),
            clients: ConnMap::default(),
            actions: VecDeque::new(),
            blocking: Blocking::Here,
            metrics: Arc::default(),
            stopping: false,
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

    /// What it counts, for any thread to read while it serves, and afterwards.
    #[must_use]
    pub fn metrics(&self) -> Arc<HttpMetrics> {
        Arc::clone(&self.metrics)
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
        if self.dated_until.is_none_or(|end| end <= ctx.now()) {
            self.dated_until = Some(ctx.now() + self.date.set(ctx.wall_clock()));
        }
        let client = self.clients.get_mut(id)?;
        // The loop's own note of it, which lasts until `on_close` has returned.
        let peer = ctx.peer_address(id)?;
        let mut answers = Answers::new(ctx, id);
        let result = step(
            &mut client.connection,
            &mut Exchange {
                limits: &self.config.limits,
                date: &self.date,
                metrics: &self.metrics,
                connection: id.as_u64(),
                client: &peer,
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
        // One that is gone is here until `on_close`, and whatever is sent to it seems to arrive.
        if ctx.is_open(id)
            && let Some(Some(next)) = self.step(ctx, id, step)
        {
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
            ctx.account(id, client.held());
        }
    }

    fn follow_once(&mut self, ctx: &mut Ctx, id: ConnId, next: Next) -> Option<Next> {
        let client = self.clients.get_mut(id)?;
        match next {
            Next::MoreInput => client.expect_input(ctx, id, &self.config),
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
                return self.start_warming(ctx, id, &slice);
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
        let response = match self.pool() {
            Ok(None) => job.run(),
            Ok(Some(pool)) => match pool.try_answer(job) {
                Ok(place) => {
                    self.clients.get_mut(id)?.work = Some(Box::new(place));
                    return None;
                }
                Err(_) => overloaded(),
            },
            Err(error) => {
                log::error!("no thread for blocking work: {error}");
                overloaded()
            }
        };
        self.response = response;
        self.step(ctx, id, |connection, exchange| connection.respond(number, exchange)).flatten()
    }

    fn start_warming(&mut self, ctx: &mut Ctx, id: ConnId, slice: &FileSlice) -> Option<Next> {
        if let Ok(Some(pool)) = self.pool() {
            let place = pool.warm(id.as_u64(), slice.clone());
            self.clients.get_mut(id)?.work = Some(Box::new(place));
            return None;
        }
        // There is no other thread, and the answer has begun and has to go on.
        warm(slice);
        self.step(ctx, id, |connection, exchange| connection.warmed(exchange))
    }

    /// The threads, if there are to be any.
    fn pool(&mut self) -> io::Result<Option<&Pool>> {
        if let Blocking::Ready(finished) = &self.blocking {
            let HttpConfig { blocking_threads, blocking_queue, .. } = self.config;
            self.blocking = Blocking::Started(Pool::start(blocking_threads, blocking_queue, finished)?);
        }
        match &self.blocking {
            Blocking::Started(pool) => Ok(Some(pool)),
            Blocking::Here | Blocking::Ready(_) => Ok(None),
        }
    }

    fn on_done(&mut self, ctx: &mut Ctx, done: Done) {
        let (number, connection) = match &done {
            Done::Answer(number, id, _) => (*number, id.connection),
            Done::Warmed(number, connection) => (*number, *connection),
        };
        let id = ConnId::from_u64(connection);
        let Some(client) = self.clients.get_mut(id) else { return };
        // Another task may be its present one, if the service has answered before the thread could.
        if client.work.take_if(|place| place.number == number).is_none() {
            return;
        }
        ctx.account(id, client.held());
        match done {
            Done::Answer(_, id, response) => {
                self.actions.push_back(Action { id, response: Some(Box::new(response)) });
                self.act(ctx);
            }
            Done::Warmed(..) => {
                self.go_on(ctx, id, |connection, exchange| Some(connection.warmed(exchange)));
            }
        }
    }

    /// Calls a method of the service that is not about one request, and does what it asks for, whether it panics or
    /// not.
    fn call_service(&mut self, ctx: &mut Ctx, call: impl FnOnce(&mut S, &mut Responder<'_>)) {
        let mut responder = Responder { ctx, actions: &mut self.actions };
        let called = catch_unwind(AssertUnwindSafe(|| call(&mut self.service, &mut responder)));
        self.act(ctx);
        called.unwrap_or_else(|panic| resume_unwind(panic));
    }

    /// Does what is to be done for requests that were put off. A panic costs the client for whom the service was
    /// called, as it does where the loop knows whom a callback is about; then the others have what is theirs.
    fn act(&mut self, ctx: &mut Ctx) {
        let mut panicked = None;
        while let Some(action) = self.actions.pop_front() {
            let id = ConnId::from_u64(action.id.connection);
            let acted = catch_unwind(AssertUnwindSafe(|| self.carry_out(ctx, id, action)));
            // If nobody waits for it, it is still there, and may hold a file.
            self.response.clear();
            if let Err(panic) = acted {
                ctx.abort(id);
                panicked = Some(panic);
            }
        }
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }

    fn carry_out(&mut self, ctx: &mut Ctx, id: ConnId, action: Action) {
        let Action { id: RequestId { number, .. }, response } = action;
        let last = self.stopping;
        let answers = response.is_some();
        if let Some(response) = response {
            self.response = *response;
        }
        self.go_on(ctx, id, |connection, exchange| {
            if last {
                connection.start_drain();
            }
            if answers { connection.respond(number, exchange) } else { connection.wake(number, exchange) }
        });
    }
}

/// What a client is told whom the server has no means to answer for now.
fn overloaded() -> Response {
    let mut response = Response::new();
    response.set_status(503);
    response.field_line(RETRY_AFTER);
    response
}

impl<S: Service> Handler for Http<S> {
    type Conn = ();
    type Message = HttpMessage<S::Message>;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        self.clients.insert(id, Client::new());
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
        if let Some(next) = end {
            self.follow(ctx, id, next);
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
            Message::Done(done) => self.on_done(ctx, done),
        }
    }

    fn on_tick(&mut self, ctx: &mut Ctx) {
        self.call_service(ctx, Service::on_tick);
    }

    fn on_signal(&mut self, ctx: &mut Ctx, signal: Signal) {
        self.call_service(ctx, |service, responder| service.on_signal(signal, responder));
    }

    fn on_stopping(&mut self, ctx: &mut Ctx, _: Timestamp) {
        self.stopping = true;
        self.call_service(ctx, Service::on_shutdown);
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), _: Timestamp) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.connection.start_drain();
        if client.connection.is_idle() {
            ctx.close_after_flush(id);
        }
    }

    fn on_close(&mut self, ctx: &mut Ctx, id: ConnId, (): (), reason: CloseReason, stats: &CloseStats) {
        let told = catch_unwind(AssertUnwindSafe(|| {
            self.step(ctx, id, |connection, exchange| connection.abandon(exchange))
        }));
        let client = self.clients.remove(id);
        if let Err(panic) = told {
            resume_unwind(panic);
        }
        let Some(client) = client else { return };
        // No client's doing, and the only sign of a disk that fails behind a head.
        let level = if reason == CloseReason::FileCutShort { Level::Warn } else { Level::Debug };
        log::log!(
            level,
            "client {id}, {}: {reason}; {} requests, {} bytes sent",
            ctx.peer_address(id).unwrap_or(Address::UnixUnnamed),
            client.connection.answered(),
            stats.bytes_sent
        );
    }
}

impl<S: Service> fmt::Debug for Http<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("config", &self.config).finish_non_exhaustive()
    }
}
