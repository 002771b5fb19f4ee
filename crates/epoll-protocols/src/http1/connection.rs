//! One client's place in the protocol: received bytes to requests, requests to answers. Not the transport:
//! the caller keeps what is not consumed, sends what is written, and arms the deadlines.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::blocking::BlockingJob;
use super::body::Pending;
use super::byte_set::TOKEN;
use super::encode::{CONTINUE, Persistence, Terms};
use super::exchange::{Exchange, Next, Progress, Stage};
use super::framing::{BodyLength, Framing, framing};
use super::output::Output;
use super::parse::{as_http11, find_head_end, header_slots, parse_good_head, parse_head};
use super::reject::Rejection;
use super::request::Request;
use super::sending::Sending;
use super::service::{BodyMode, RequestId, Service};
use answering::{Asked, Owed};
pub(super) use shedding::RETRY_AFTER;

mod answering;
mod shedding;

/// The HTTP state of one client. A few words, and no heap unless a body is arriving in pieces or an answer is not
/// ready.
#[derive(Default)]
pub struct Connection {
    phase: Phase,
    /// Input was left unread: the output was full, or an answer has to come first.
    backlog: bool,
    draining: bool,
    owed: Owed,
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
    /// The service, or a thread that may block, has yet to answer.
    Deferred(Box<Deferred>),
    /// The body of an answer goes out as the client reads.
    Sending(Box<Sending>),
    /// The last answer has been written.
    Closed,
}

/// A request whose answer has been put off.
struct Deferred {
    id: RequestId,
    /// For the access log.
    head: Box<[u8]>,
    terms: Terms,
    job: Option<BlockingJob>,
}

/// Empty lines that are skipped before one request. RFC 9112 section 2.2 asks for one, for the sake of old
/// clients that ended bodies with it.
const MAX_BLANK_LINES: u8 = 4;

/// What to do with the input that follows.
enum Flow {
    /// Go on with it.
    Continue,
    /// Leave it.
    Stop(Next),
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
    /// [`HttpLimits::body`](super::HttpLimits::body). A request that breaks the protocol is answered, and ends the connection.
    pub fn receive<S: Service, O: Output>(
        &mut self,
        input: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> Progress {
        let batch = exchange.limits.output_batch.max(1);
        let mut rest = input;
        loop {
            let consumed = input.len() - rest.len();
            self.backlog = !rest.is_empty();
            match self.phase {
                Phase::Closed => return Progress { consumed: input.len(), next: Next::Close(None) },
                Phase::Deferred(_) | Phase::Sending(_) => return Progress { consumed, next: Next::Wait },
                Phase::Body(ref pending) if pending.paused => return Progress { consumed, next: Next::Wait },
                Phase::Head { .. } | Phase::Body(_) => {}
            }
            if rest.is_empty() {
                return Progress { consumed, next: Next::MoreInput };
            }
            let is_between = matches!(self.phase, Phase::Head { .. });
            if exchange.output.waiting() >= batch || (is_between && exchange.output.is_others_turn()) {
                return Progress { consumed, next: Next::OutputFull };
            }
            match self.advance(rest, exchange) {
                Ok((used, Flow::Continue)) => rest = rest.get(used..).unwrap_or_default(),
                Ok((_, Flow::Stop(next @ (Next::Close(_) | Next::Abort)))) => {
                    return Progress { consumed: input.len(), next };
                }
                Ok((used, Flow::Stop(next))) => {
                    // An unfinished head is told by its phase.
                    self.backlog = next != Next::MoreInput && used < rest.len();
                    return Progress { consumed: consumed + used, next };
                }
                Err(rejection) => {
                    let next = self.reject(rejection, rest, exchange);
                    return Progress { consumed: input.len(), next };
                }
            }
        }
    }

    /// The client will send no more; `unread` is what earlier calls left unconsumed. Whole requests in it
    /// are answered first, so this too can stop as [`receive`](Self::receive) does, to be called again with the rest.
    /// Otherwise it ends in [`Next::Close`], and an unfinished request is answered with 400 (RFC 9112
    /// section 8).
    pub fn end_of_input<S: Service, O: Output>(
        &mut self,
        unread: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> Progress {
        let progress = self.receive(unread, exchange);
        match progress.next {
            Next::MoreInput => {
                let next = self.give_up(Rejection::Incomplete, exchange);
                Progress { consumed: unread.len(), next }
            }
            _ => progress,
        }
    }

    /// Gives the answer that was put off, from `exchange.response`. `None`, and nothing is done, unless request
    /// `number` is the one that waits for it: its client may have been given up in the meantime.
    pub fn respond<S: Service, O: Output>(
        &mut self,
        number: u64,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Option<Next> {
        let Phase::Deferred(deferred) = &mut self.phase else { return None };
        if deferred.id.number != number {
            return None;
        }
        let Deferred { id, terms, .. } = **deferred;
        let head = std::mem::take(&mut deferred.head);
        Some(self.write(id, terms, Asked::Head(head), exchange))
    }

    /// Goes on with an answer that was waiting for room.
    pub fn resume<S: Service, O: Output>(&mut self, exchange: &mut Exchange<'_, S, O>) -> Next {
        match &self.phase {
            Phase::Sending(_) => self.send(exchange),
            Phase::Deferred(_) => Next::Wait,
            Phase::Body(pending) if pending.paused => Next::Wait,
            Phase::Head { .. } | Phase::Body(_) => Next::MoreInput,
            Phase::Closed => Next::Close(None),
        }
    }

    /// Goes on with request `number`, as the service asks: its stream has something to write again, or its body is
    /// wanted again. `None`, and nothing is done, unless that request is the one under way.
    pub fn wake<S: Service, O: Output>(
        &mut self,
        number: u64,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Option<Next> {
        match &mut self.phase {
            Phase::Sending(sending) if sending.id.number == number => Some(self.send(exchange)),
            Phase::Body(pending) if pending.paused && self.answered == number => {
                pending.paused = false;
                Some(if pending.whole { self.end_pause(exchange) } else { Next::MoreInput })
            }
            _ => None,
        }
    }

    /// The job that answers, to be run by a thread that may block; [`respond`](Self::respond) takes its result. Once
    /// after each [`Next::Wait`], if there is one.
    pub fn take_job(&mut self) -> Option<BlockingJob> {
        match &mut self.phase {
            Phase::Deferred(deferred) => deferred.job.take(),
            _ => None,
        }
    }

    /// The client took too long: an unfinished request is answered with 408 (RFC 9110 section 15.5.9); to an
    /// idle client nothing is said. The result is always [`Next::Close`].
    pub fn request_timeout<S: Service, O: Output>(&mut self, exchange: &mut Exchange<'_, S, O>) -> Next {
        self.give_up(Rejection::TimedOut, exchange)
    }

    /// The client is gone. The service is told of what was under way.
    pub fn abandon<S: Service, O: Output>(&mut self, exchange: &mut Exchange<'_, S, O>) {
        if let Phase::Sending(sending) = std::mem::replace(&mut self.phase, Phase::Closed) {
            // Nobody calls this again: the end is told even if the log panics.
            let logged = catch_unwind(AssertUnwindSafe(|| sending.log(exchange)));
            self.tell_end(false, exchange);
            return logged.unwrap_or_else(|panic| resume_unwind(panic));
        }
        self.tell_end(false, exchange);
    }

    /// From now on there is one response more, to the request being received or the next one, and it says
    /// `Connection: close` (RFC 9112 section 9.6). A client that [is idle](Self::is_idle) may as well be
    /// closed at once.
    pub fn start_drain(&mut self) {
        self.draining = true;
        match &mut self.phase {
            Phase::Deferred(deferred) => deferred.terms.persistence = Persistence::Close,
            // Its head has been written, but it is still the last one.
            Phase::Sending(sending) => sending.persistence = Persistence::Close,
            Phase::Head { .. } | Phase::Body(_) | Phase::Closed => {}
        }
    }

    /// Whether no part of a request has been received.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.stage(), Stage::Idle)
    }

    /// How far the client is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match &self.phase {
            Phase::Closed => Stage::Closed,
            Phase::Body(pending) if pending.paused => Stage::Answering,
            Phase::Body(_) => Stage::Body,
            Phase::Deferred(_) | Phase::Sending(_) => Stage::Answering,
            Phase::Head { searched: 0, .. } if !self.backlog => Stage::Idle,
            Phase::Head { .. } => Stage::Head,
        }
    }

    /// How many requests the service has answered, or promised to, and how many were shed.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.answered
    }

    /// Bytes of the body that is arriving which have come so far, as they were sent.
    #[must_use]
    pub const fn body_received(&self) -> u64 {
        match &self.phase {
            Phase::Body(pending) => pending.received,
            _ => 0,
        }
    }

    /// Bytes of heap this connection holds: none, unless a body is arriving in pieces or an answer is not ready.
    #[must_use]
    pub fn held(&self) -> usize {
        match &self.phase {
            Phase::Body(pending) => pending.held(),
            Phase::Deferred(deferred) => deferred.head.len() + size_of::<Deferred>(),
            Phase::Sending(sending) => sending.held(),
            Phase::Head { .. } | Phase::Closed => 0,
        }
    }

    /// One step: an empty line, a head with or without its body, or a piece of a body.
    fn advance<S: Service, O: Output>(
        &mut self,
        input: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> Result<(usize, Flow), Rejection> {
        if let Phase::Head { searched, blank_lines } = self.phase {
            // As below, in case the service panics.
            self.phase = Phase::Closed;
            return self.head(input, searched, blank_lines, exchange);
        }
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Body(pending) => self.body(input, pending, exchange),
            Phase::Head { .. } | Phase::Deferred(_) | Phase::Sending(_) | Phase::Closed => {
                Ok((input.len(), Flow::Stop(Next::Close(None))))
            }
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
                return Ok((0, Flow::Stop(Next::MoreInput)));
            }
            // Told now, since a client that does not speak HTTP will never end its head.
            [first, ..] if !TOKEN.contains(*first) => return Err(Rejection::NotHttp),
            _ => {}
        }
        if searched == 0 {
            let mut slots = header_slots();
            if let Some((end, request)) = parse_good_head(input, &mut slots, exchange.limits) {
                let (head, after) = input.split_at_checked(end).unwrap_or((input, &[]));
                let (used, flow) = self.request(head, request, after, exchange)?;
                return Ok((end + used, flow));
            }
        }
        let Some(end) = find_head_end(input, searched, exchange.limits.head)? else {
            self.phase = Phase::Head { searched: input.len(), blank_lines };
            return Ok((0, Flow::Stop(Next::MoreInput)));
        };
        let (head, after) = input.split_at_checked(end).unwrap_or((input, &[]));
        let as_read;
        let mut slots = header_slots();
        let mut slots_again = header_slots();
        let (head, request) = match parse_head(head, &mut slots, exchange.limits) {
            Err(Rejection::NewerMinorVersion) => {
                as_read = as_http11(head);
                (as_read.as_slice(), parse_head(&as_read, &mut slots_again, exchange.limits)?)
            }
            result => (head, result?),
        };
        let (used, flow) = self.request(head, request, after, exchange)?;
        Ok((end + used, flow))
    }

    /// A head is here, and what came behind it. How much of that was used.
    fn request<S: Service, O: Output>(
        &mut self,
        head: &[u8],
        request: Request<'_>,
        after: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> Result<(usize, Flow), Rejection> {
        let framing = framing(&request)?;
        let request = Request { id: self.request_id(exchange), client: exchange.client, ..request };
        if exchange.output.sheds() {
            return Ok(self.shed(&request, framing, after, exchange));
        }
        if framing.body == BodyLength::Known(0) {
            return Ok((0, self.answer(head, &request, framing, exchange)));
        }
        let (streamed, limit) = match exchange.service.body_mode(&request) {
            BodyMode::Collect => (false, exchange.limits.body),
            BodyMode::Stream { limit } => (true, limit),
            BodyMode::Refuse(status) => return Err(Rejection::Service(status)),
            BodyMode::Unread => {
                let framing = Framing { persistence: Persistence::Close, ..framing };
                return Ok((0, self.answer(head, &request, framing, exchange)));
            }
        };
        if !streamed
            && let BodyLength::Known(length) = framing.body
            && length <= limit as u64
            && let Some(body) = usize::try_from(length).ok().and_then(|length| after.get(..length))
        {
            let flow = self.answer(head, &Request { body, ..request }, framing, exchange);
            return Ok((body.len(), flow));
        }
        if streamed {
            self.owed = Owed::Request;
        }
        let pending = Pending::new(head, framing, streamed, limit)?;
        // RFC 9110 section 10.1.1: not needed once the client has begun to send the body.
        if framing.expects_continue && after.is_empty() {
            exchange.output.copy(CONTINUE);
        }
        self.phase = Phase::Body(Box::new(pending));
        Ok((0, Flow::Continue))
    }

    fn body<S: Service, O: Output>(
        &mut self,
        input: &[u8],
        mut pending: Box<Pending>,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Result<(usize, Flow), Rejection> {
        let mut result = pending.receive(input, exchange.limits);
        if pending.streamed
            && let Err(rejection) = self.pass_on(&mut pending, result.err(), exchange)
        {
            result = Err(rejection);
        }
        let (used, whole) = match result {
            Ok(received) => received,
            Err(rejection) => {
                // Its head says what is refused.
                self.phase = Phase::Body(pending);
                return Err(rejection);
            }
        };
        if whole && !pending.paused {
            return Ok((used, self.answer_pending(&pending, exchange)?));
        }
        let flow = if pending.paused { Flow::Stop(Next::Wait) } else { Flow::Continue };
        pending.whole = whole;
        self.phase = Phase::Body(pending);
        Ok((used, flow))
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

#[cfg(test)]
mod tests;
