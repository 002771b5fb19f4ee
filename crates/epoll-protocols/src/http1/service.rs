//! What answers requests. Not the protocol: a service neither sees nor decides framing.

use std::time::SystemTime;

use epoll_reactor::{Address, Signal};

use super::responder::Responder;
use super::sending::BodyWriter;
use super::{Rejection, Request, Response};

/// Answers requests.
///
/// A closure `FnMut(&Request<'_>, &mut Response)` is one: enough where every answer is known at once. The other
/// methods are for answers that are not.
///
/// No method may block: it runs on the thread of the loop, and every client waits for it. Work that blocks goes to
/// [`Response::run_blocking`].
pub trait Service {
    /// What other threads send to [`on_message`](Self::on_message). `()` if none do.
    type Message: Send + 'static;

    /// Answers one request by filling in `response`, which is empty and `200` at the start.
    ///
    /// Any method but `TRACE` and `CONNECT` arrives here. To `HEAD`, answer as to `GET`: the body is left
    /// out and its length still told.
    ///
    /// An answer that is not known yet is promised with [`Response::defer`]; later requests of the same client wait
    /// for it, since answers are in the order of requests (RFC 9112 section 9.3.2).
    ///
    /// A panic here, or in any other method about one request, closes that client's connection without an answer, and
    /// the others go on ([`PanicPolicy`](epoll_reactor::PanicPolicy)).
    ///
    /// By default there is nothing here: 404.
    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        let _ = request;
        response.set_status(404);
    }

    /// What to do with the body of a request whose head has come. Not asked about requests that have none.
    fn body_mode(&mut self, head: &Request<'_>) -> BodyMode {
        let _ = head;
        BodyMode::Collect
    }

    /// A piece of a body for which [`body_mode`](Self::body_mode) was [`BodyMode::Stream`]. After the last one comes
    /// [`call`](Self::call) with an empty body, or, if the client fails, [`on_end`](Self::on_end).
    fn on_body(&mut self, id: RequestId, piece: &[u8]) -> BodyFlow {
        let _ = (id, piece);
        BodyFlow::Continue
    }

    /// There is room for more of a body begun with [`Response::stream`]: at its start, whenever what was written
    /// before has gone out, and after [`Responder::wake`]. Writing nothing is fine; somebody then has to wake it. So write
    /// what is new and no more: as long as something is written, the call is made again as fast as the client reads. By
    /// default the body ends. Not called where no body is sent, as to `HEAD`.
    fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        let _ = id;
        body.finish();
    }

    /// An exchange has ended whose answer was put off or streamed, or whose body came in pieces: exactly once for each.
    /// `complete` if the answer has been handed over whole; otherwise the client is gone or was refused, a method of
    /// the service panicked, or the loop's limits had no room for the answer. It is the last that is said of a
    /// request, behind [`on_answer`](Self::on_answer). A `call` that panics has put nothing off and begun no stream, so
    /// it is followed by `on_end` only if the body came in pieces.
    fn on_end(&mut self, id: RequestId, complete: bool) {
        let _ = (id, complete);
    }

    /// An answer has been handed over, whole or as far as it went: for access logs. Before
    /// [`on_end`](Self::on_end), if that follows. Not called for an answer of which nothing was sent.
    fn on_answer(&mut self, answer: &Answered<'_>) {
        let _ = answer;
    }

    /// A message from another thread has come: see [`Http::attach`](super::Http::attach).
    fn on_message(&mut self, message: Self::Message, responder: &mut Responder<'_>) {
        let _ = (message, responder);
    }

    /// [`Limits::tick`](epoll_reactor::Limits::tick) has passed again.
    fn on_tick(&mut self, responder: &mut Responder<'_>) {
        let _ = responder;
    }

    /// A signal has come: see [`Reactor::watch_signals`](epoll_reactor::Reactor::watch_signals).
    fn on_signal(&mut self, signal: Signal, responder: &mut Responder<'_>) {
        let _ = (signal, responder);
    }

    /// The server is stopping, and waits for answers that are not whole: streams without an end should end now.
    fn on_shutdown(&mut self, responder: &mut Responder<'_>) {
        let _ = responder;
    }
}

impl<F: FnMut(&Request<'_>, &mut Response)> Service for F {
    type Message = ();

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        self(request, response);
    }
}

/// Names a request for as long as the process runs: none has the name of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId {
    /// The connection: [`ConnId::as_u64`](epoll_reactor::ConnId::as_u64), or whatever the driver of the codec says.
    pub connection: u64,
    /// The requests that came before it on the connection.
    pub number: u64,
}

/// How a request's body reaches the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    /// Whole, as [`Request::body`], up to [`HttpLimits::body`](super::HttpLimits::body) bytes.
    Collect,
    /// In pieces, by [`Service::on_body`], up to `limit` bytes. Nothing is held, so it may be large.
    Stream {
        /// Beyond this many bytes the answer is 413.
        limit: usize,
    },
    /// Not at all, and `call` answers at once, with an empty body in the request: for an answer that needs fields or
    /// content, as 405 needs `Allow` (RFC 9110 section 15.5.6). It ends the connection, as `Refuse` does.
    Unread,
    /// Not at all: the answer is this status, and the connection ends. A client that
    /// [waits](https://www.rfc-editor.org/rfc/rfc9110#section-10.1.1) before it sends the body then never does.
    Refuse(u16),
}

/// What a service says to a piece of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFlow {
    /// More, please.
    Continue,
    /// No more before [`Responder::resume_body`]. Meanwhile the client is not read from, and no deadline runs.
    Pause,
    /// As [`BodyMode::Refuse`].
    Refuse(u16),
}

/// An answer as an access log sees it.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// The peer's address.
    pub client: &'a Address,
    /// What was asked, without its body if that was refused. `None` if not even the head could be understood.
    pub request: Option<&'a Request<'a>>,
    /// Why it was refused, if the service was not asked to answer it.
    pub rejection: Option<Rejection>,
    /// When, to the second: as in its `Date`.
    pub time: SystemTime,
    /// The status sent.
    pub status: u16,
    /// Bytes of body handed over for sending, without the framing of chunks.
    pub body_bytes: u64,
}
