//! One client's place in the protocol: received bytes to requests, requests to answers. Not the transport:
//! the caller keeps what is not consumed, sends what is written, and arms the deadlines.

use super::body::Pending;
use super::date::DateHeader;
use super::encode::{CONTINUE, Persistence, encode};
use super::framing::{BodyLength, framing};
use super::limits::HttpLimits;
use super::output::Output;
use super::parse::{find_head_end, header_slots, parse_head};
use super::reject::Rejection;
use super::request::Request;
use super::response::{Response, is_token_byte};
use super::service::Service;

/// The HTTP state of one client. A few words, and no heap unless a body is arriving in pieces.
#[derive(Default)]
pub struct Connection {
    phase: Phase,
    /// Input was left unread because the output was full.
    backlog: bool,
    draining: bool,
    answered: u64,
}

enum Phase {
    /// Waiting for a head, of which the caller holds the part that has come.
    Head {
        /// How much of that part has been searched for its end.
        searched: usize,
        /// Empty lines before it.
        blank_lines: u8,
    },
    /// Reading the body of a request.
    Body(Box<Pending>),
    /// The last answer has been written.
    Closed,
}

/// What a [`Connection`] borrows from its loop for one call. All connections of a loop can share it.
pub struct Exchange<'a, S, O> {
    /// The bounds; the same ones for the whole life of a connection.
    pub limits: &'a HttpLimits,
    /// The date header, at the current second.
    pub date: &'a DateHeader,
    /// What answers the requests.
    pub service: &'a mut S,
    /// Scratch space, its content of no meaning between calls.
    pub response: &'a mut Response,
    /// Where the answers go, in order.
    pub output: &'a mut O,
}

/// What became of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is not consumed has to be kept, and the connection may have to be closed"]
pub struct Progress {
    /// How many bytes from the start of the input are done with. The caller keeps the rest, and passes it
    /// again with what follows it: never more than [`HttpLimits::head`], once `next` is
    /// [`MoreInput`](Next::MoreInput).
    pub consumed: usize,
    /// What the caller has to do.
    pub next: Next,
}

/// What the caller has to do after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Call again when more bytes have come.
    MoreInput,
    /// Send the output, then call again with the rest of the input, even if no more has come.
    OutputFull,
    /// Send the output, then close, in a way that does not destroy what the client has yet to receive
    /// (RFC 9112 section 9.6). What it still sends is ignored. If a request was refused, why.
    Close(Option<Rejection>),
}

/// How far a client is, for the deadline that applies to it. A new one starts whenever this or
/// [`Connection::answered`] has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Between requests.
    Idle,
    /// Part of a head has come, or more, if the last call ended with [`Next::OutputFull`].
    Head,
    /// A head has come, and its body not yet.
    Body,
    /// Nothing more is read.
    Closed,
}

/// Empty lines that are skipped before one request. RFC 9112 section 2.2 asks for one, for the sake of old
/// clients that ended bodies with it.
const MAX_BLANK_LINES: u8 = 4;

/// What to do with the input that follows.
enum Flow {
    Continue,
    Wait,
    Close,
}

impl Connection {
    /// A client of whom nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads every request that is whole in `input`, in place, and writes the answers in the same order.
    ///
    /// `input` is what earlier calls left unconsumed, followed by what has come since. The rest of an
    /// unfinished head is left; bytes of an unfinished body are consumed and kept here, up to
    /// [`HttpLimits::body`]. A request that breaks the protocol is answered, and ends the connection.
    pub fn receive<S: Service, O: Output>(
        &mut self,
        input: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> Progress {
        let batch = exchange.limits.output_batch.max(1);
        let mut rest = input;
        self.backlog = false;
        loop {
            if matches!(self.phase, Phase::Closed) {
                return Progress { consumed: input.len(), next: Next::Close(None) };
            }
            let consumed = input.len() - rest.len();
            if rest.is_empty() {
                return Progress { consumed, next: Next::MoreInput };
            }
            if exchange.output.waiting() >= batch {
                self.backlog = true;
                return Progress { consumed, next: Next::OutputFull };
            }
            match self.advance(rest, exchange) {
                Ok((used, Flow::Continue)) => rest = rest.get(used..).unwrap_or_default(),
                Ok((used, Flow::Wait)) => {
                    return Progress { consumed: consumed + used, next: Next::MoreInput };
                }
                Ok((_, Flow::Close)) => self.phase = Phase::Closed,
                Err(rejection) => {
                    let next = self.reject(rejection, exchange);
                    return Progress { consumed: input.len(), next };
                }
            }
        }
    }

    /// The client will send no more; `unread` is what earlier calls left unconsumed. Whole requests in it
    /// are answered first, so this too can stop at [`Next::OutputFull`], to be called again with the rest.
    /// Otherwise it ends in [`Next::Close`], and an unfinished request is answered with 400 (RFC 9112
    /// section 8).
    pub fn end_of_input<S: Service, O: Output>(
        &mut self,
        unread: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> Progress {
        let progress = self.receive(unread, exchange);
        if progress.next != Next::MoreInput {
            return progress;
        }
        let next = self.give_up(Rejection::Incomplete, exchange);
        Progress { consumed: unread.len(), next }
    }

    /// The client took too long: an unfinished request is answered with 408 (RFC 9110 section 15.5.9); to an
    /// idle client nothing is said. The result is always [`Next::Close`].
    pub fn request_timeout<S, O: Output>(&mut self, exchange: &mut Exchange<'_, S, O>) -> Next {
        self.give_up(Rejection::TimedOut, exchange)
    }

    /// From now on there is one response more, to the request being received or the next one, and it says
    /// `Connection: close` (RFC 9112 section 9.6). A client that [is idle](Self::is_idle) may as well be
    /// closed at once.
    pub const fn start_drain(&mut self) {
        self.draining = true;
    }

    /// Whether no part of a request has been received.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stage() == Stage::Idle
    }

    /// How far the client is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match &self.phase {
            Phase::Closed => Stage::Closed,
            Phase::Body(_) => Stage::Body,
            Phase::Head { searched: 0, .. } if !self.backlog => Stage::Idle,
            Phase::Head { .. } => Stage::Head,
        }
    }

    /// How many requests the service has answered.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.answered
    }

    /// Bytes of heap this connection holds: none, unless a body is arriving in pieces.
    #[must_use]
    pub const fn held(&self) -> usize {
        match &self.phase {
            Phase::Body(pending) => pending.held(),
            Phase::Head { .. } | Phase::Closed => 0,
        }
    }

    /// One step: an empty line, a head with or without its body, or a piece of a body.
    fn advance<S: Service, O: Output>(
        &mut self,
        input: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> Result<(usize, Flow), Rejection> {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Head { searched, blank_lines } => self.head(input, searched, blank_lines, exchange),
            Phase::Body(pending) => self.body(input, pending, exchange),
            Phase::Closed => Ok((input.len(), Flow::Close)),
        }
    }

    fn head<S: Service, O: Output>(
        &mut self,
        input: &[u8],
        searched: usize,
        blank_lines: u8,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Result<(usize, Flow), Rejection> {
        match input {
            [b'\r', b'\n', ..] if blank_lines < MAX_BLANK_LINES => {
                self.phase = Phase::Head { searched: 0, blank_lines: blank_lines + 1 };
                return Ok((2, Flow::Continue));
            }
            [b'\r'] => {
                self.phase = Phase::Head { searched: 1, blank_lines };
                return Ok((0, Flow::Wait));
            }
            // Told now, since a client that does not speak HTTP will never end its head.
            [first, ..] if !is_token_byte(*first) => return Err(Rejection::NotHttp),
            _ => {}
        }
        let Some(end) = find_head_end(input, searched, exchange.limits.head)? else {
            self.phase = Phase::Head { searched: input.len(), blank_lines };
            return Ok((0, Flow::Wait));
        };
        let (head, after) = input.split_at_checked(end).unwrap_or((input, &[]));
        let mut slots = header_slots();
        let request = parse_head(head, &mut slots, exchange.limits)?;
        let framing = framing(&request, exchange.limits)?;
        if let BodyLength::Known(length) = framing.body
            && let Some(body) = after.get(..length)
        {
            let flow = self.answer(&Request { body, ..request }, framing.persistence, exchange);
            return Ok((end + length, flow));
        }
        // RFC 9110 section 10.1.1: not needed once the client has begun to send the body.
        if framing.expects_continue && after.is_empty() {
            exchange.output.copy(CONTINUE);
        }
        self.phase = Phase::Body(Box::new(Pending::new(head, framing.body, framing.persistence)));
        Ok((end, Flow::Continue))
    }

    fn body<S: Service, O: Output>(
        &mut self,
        input: &[u8],
        mut pending: Box<Pending>,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Result<(usize, Flow), Rejection> {
        let (used, whole) = pending.receive(input, exchange.limits)?;
        if !whole {
            self.phase = Phase::Body(pending);
            return Ok((used, Flow::Continue));
        }
        let (head, body) = pending.parts();
        let mut slots = header_slots();
        let request = parse_head(head, &mut slots, exchange.limits)?;
        let flow = self.answer(&Request { body, ..request }, pending.persistence, exchange);
        Ok((used, flow))
    }

    fn answer<S: Service, O: Output>(
        &mut self,
        request: &Request<'_>,
        persistence: Persistence,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Flow {
        let response = &mut *exchange.response;
        response.clear();
        exchange.service.call(request, response);
        let persistence = if self.draining || response.close { Persistence::Close } else { persistence };
        encode(response, exchange.date, persistence, request.method() == "HEAD", exchange.output);
        self.answered += 1;
        if persistence == Persistence::Close {
            return Flow::Close;
        }
        self.phase = Phase::default();
        Flow::Continue
    }

    /// Ends the connection: in silence if nothing is owed, otherwise with `rejection`.
    fn give_up<S, O: Output>(&mut self, rejection: Rejection, exchange: &mut Exchange<'_, S, O>) -> Next {
        match self.stage() {
            Stage::Head | Stage::Body => self.reject(rejection, exchange),
            Stage::Idle | Stage::Closed => {
                self.phase = Phase::Closed;
                Next::Close(None)
            }
        }
    }

    fn reject<S, O: Output>(&mut self, rejection: Rejection, exchange: &mut Exchange<'_, S, O>) -> Next {
        self.phase = Phase::Closed;
        exchange.response.clear();
        exchange.response.set_status(rejection.status());
        encode(exchange.response, exchange.date, Persistence::Close, false, exchange.output);
        Next::Close(Some(rejection))
    }
}

impl Default for Phase {
    fn default() -> Self {
        Self::Head { searched: 0, blank_lines: 0 }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("stage", &self.stage())
            .field("held", &self.held())
            .field("draining", &self.draining)
            .field("answered", &self.answered)
            .finish()
    }
}

impl<S, O> std::fmt::Debug for Exchange<'_, S, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("limits", self.limits)
            .field("date", self.date)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
