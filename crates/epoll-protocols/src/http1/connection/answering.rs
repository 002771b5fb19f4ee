//! From a whole request to the last byte of its answer, or to the refusal of one that is not.

use epoll_reactor::FileSlice;

use super::super::blocking::BlockingJob;
use super::super::body::Pending;
use super::super::encode::{Persistence, Terms, encode};
use super::super::exchange::{Exchange, Next, Stage};
use super::super::framing::Framing;
use super::super::output::Output;
use super::super::parse::{as_http11, find_head_end, header_slots, parse_head};
use super::super::reject::Rejection;
use super::super::request::{Request, Version};
use super::super::response::Body;
use super::super::sending::{Sending, Step};
use super::super::service::{Answered, BodyFlow, RequestId, Service};
use super::{Connection, Deferred, Flow, Phase};

/// The exchange whose end the service is to be told. It is told of it, and no more, whichever callback panics: this
/// outlives the phase, and is settled before the call.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Owed {
    #[default]
    Nothing,
    /// That of the request being received, whose body is streamed.
    Request,
    /// That of the last request for which the service was called.
    Answer,
}

impl Connection {
    /// The name of the request being received.
    pub(super) const fn request_id<S, O>(&self, exchange: &Exchange<'_, S, O>) -> RequestId {
        RequestId { connection: exchange.connection, number: self.answered }
    }

    /// The terms of the answer to a request, of those that have been answered the last.
    pub(super) fn terms<S, O>(
        &self,
        request: &Request<'_>,
        framing: Framing,
        exchange: &Exchange<'_, S, O>,
    ) -> Terms {
        let last = self.draining || self.answered >= exchange.limits.requests;
        Terms {
            persistence: if last { Persistence::Close } else { framing.persistence },
            head_only: request.method() == "HEAD",
            http10: request.version() == Version::Http10,
        }
    }

    /// Has the service answer a request that is whole.
    pub(super) fn answer<S: Service, O: Output>(
        &mut self,
        head: &[u8],
        request: &Request<'_>,
        framing: Framing,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Flow {
        exchange.response.clear();
        exchange.service.call(request, exchange.response);
        self.answered += 1;
        if self.owed == Owed::Request || !exchange.response.is_ready() {
            self.owed = Owed::Answer;
        }
        let terms = self.terms(request, framing, exchange);
        let job = match &mut exchange.response.body {
            Body::Deferred => None,
            body @ Body::Blocking(_) => match std::mem::take(body) {
                Body::Blocking(job) => Some(BlockingJob::new(request, head, job)),
                _ => None,
            },
            _ => {
                let asked = Asked::Request { request, head };
                return match self.write(request.id, terms, asked, exchange) {
                    Next::MoreInput => Flow::Continue,
                    next => Flow::Stop(next),
                };
            }
        };
        let deferred = Deferred { id: request.id, head: head.into(), terms, job };
        self.phase = Phase::Deferred(Box::new(deferred));
        Flow::Stop(Next::Wait)
    }

    /// Answers a request whose body is whole.
    pub(super) fn answer_pending<S: Service, O: Output>(
        &mut self,
        pending: &Pending,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Result<Flow, Rejection> {
        let (head, body) = pending.parts();
        let mut slots = header_slots();
        let request = parse_head(head, &mut slots, exchange.limits)?;
        let request = Request { body, id: self.request_id(exchange), client: exchange.client, ..request };
        Ok(self.answer(head, &request, pending.framing, exchange))
    }

    /// Answers a request whose body was whole when the service asked for a pause.
    pub(super) fn end_pause<S: Service, O: Output>(&mut self, exchange: &mut Exchange<'_, S, O>) -> Next {
        let Phase::Body(pending) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Next::MoreInput;
        };
        match self.answer_pending(&pending, exchange) {
            Ok(Flow::Continue) => Next::MoreInput,
            Ok(Flow::Stop(next)) => next,
            Err(rejection) => self.reject(rejection, &[], exchange),
        }
    }

    /// Writes the answer in `exchange.response`, or its beginning.
    pub(super) fn write<S: Service, O: Output>(
        &mut self,
        id: RequestId,
        terms: Terms,
        asked: Asked<'_>,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Next {
        let close = exchange.response.close;
        let terms =
            Terms { persistence: if close { Persistence::Close } else { terms.persistence }, ..terms };
        // A stream that is not sent, as to HEAD, has an end too: the service cannot tell it from others.
        if matches!(exchange.response.body, Body::Stream(_)) {
            self.owed = Owed::Answer;
        }
        let encoded = encode(exchange.response, exchange.date, terms, exchange.output);
        if exchange.output.refused() {
            return self.not_sent(exchange);
        }
        // What was sent, which need not be what was set.
        let status = exchange.response.status();
        exchange.metrics.note_answer(status);
        let persistence = encoded.persistence;
        let Some(rest) = encoded.rest else {
            asked.log(id, status, encoded.body_bytes, exchange);
            self.tell_end(true, exchange);
            return self.after_answer(persistence);
        };
        let head = asked.into_head();
        let sending = Sending { id, head, status, persistence, body_bytes: 0, rest };
        self.phase = Phase::Sending(Box::new(sending));
        self.send(exchange)
    }

    /// Goes on with an answer that does not go out in one piece.
    pub(super) fn send<S: Service, O: Output>(&mut self, exchange: &mut Exchange<'_, S, O>) -> Next {
        let Phase::Sending(sending) = &mut self.phase else { return Next::MoreInput };
        let batch = exchange.limits.output_batch.max(1);
        let before = sending.body_bytes;
        let mut step = sending.go_on(batch, exchange.service, exchange.output);
        if exchange.output.refused() {
            sending.body_bytes = before;
            step = Step::Abort;
        }
        match step {
            Step::OutputFull => return Next::OutputFull,
            Step::Wait => return Next::Wait,
            Step::Disk => return Next::Disk,
            Step::Complete | Step::Abort => {}
        }
        let complete = step == Step::Complete;
        let persistence = sending.persistence;
        if let Phase::Sending(sending) = std::mem::replace(&mut self.phase, Phase::Closed) {
            sending.log(exchange);
        }
        self.tell_end(complete, exchange);
        if complete { self.after_answer(persistence) } else { Next::Abort }
    }

    /// What [`Next::Disk`] is about.
    #[must_use]
    pub fn cold(&self) -> Option<FileSlice> {
        match &self.phase {
            Phase::Sending(sending) => sending.cold(),
            _ => None,
        }
    }

    /// What [`cold`](Self::cold) said has been read from the disk.
    pub fn warmed<S: Service, O: Output>(&mut self, exchange: &mut Exchange<'_, S, O>) -> Next {
        if let Phase::Sending(sending) = &mut self.phase {
            sending.warmed();
        }
        self.resume(exchange)
    }

    /// Nothing of an answer has gone out, and nothing can follow it.
    pub(super) fn not_sent<S: Service, O: Output>(&mut self, exchange: &mut Exchange<'_, S, O>) -> Next {
        self.phase = Phase::Closed;
        self.tell_end(false, exchange);
        Next::Abort
    }

    /// An answer has been written whole.
    pub(super) fn after_answer(&mut self, persistence: Persistence) -> Next {
        if persistence == Persistence::Close {
            self.phase = Phase::Closed;
            return Next::Close(None);
        }
        self.phase = Phase::default();
        Next::MoreInput
    }

    /// Ends the connection: in silence if nothing is owed, otherwise with `rejection`.
    pub(super) fn give_up<S: Service, O: Output>(
        &mut self,
        rejection: Rejection,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Next {
        match self.stage() {
            Stage::Head | Stage::Body => self.reject(rejection, &[], exchange),
            Stage::Idle | Stage::Answering | Stage::Closed => {
                self.abandon(exchange);
                Next::Close(None)
            }
        }
    }

    /// Gives the service the piece of a body that has come, and then says what was wrong behind it, if anything was.
    pub(super) fn pass_on<S: Service, O: Output>(
        &self,
        pending: &mut Pending,
        fault: Option<Rejection>,
        exchange: &mut Exchange<'_, S, O>,
    ) -> Result<(), Rejection> {
        let id = self.request_id(exchange);
        let flow = match pending.parts().1 {
            [] => BodyFlow::Continue,
            piece => exchange.service.on_body(id, piece),
        };
        let refused = match flow {
            BodyFlow::Refuse(status) => Some(Rejection::Service(status)),
            BodyFlow::Continue | BodyFlow::Pause => fault,
        };
        if let Some(rejection) = refused {
            return Err(rejection);
        }
        pending.paused = flow == BodyFlow::Pause;
        pending.passed_on();
        Ok(())
    }

    /// Tells the service that the exchange under way has ended, if it is one that it follows.
    pub(super) fn tell_end<S: Service, O>(&mut self, complete: bool, exchange: &mut Exchange<'_, S, O>) {
        let number = match std::mem::take(&mut self.owed) {
            Owed::Nothing => return,
            Owed::Request => self.answered,
            Owed::Answer => self.answered.saturating_sub(1),
        };
        exchange.service.on_end(RequestId { connection: exchange.connection, number }, complete);
    }

    /// Answers with `rejection`; `input` begins with the head that is refused, unless its body is arriving.
    pub(super) fn reject<S: Service, O: Output>(
        &mut self,
        rejection: Rejection,
        input: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> Next {
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        exchange.response.clear();
        exchange.response.set_status(rejection.status());
        let terms = Terms { persistence: Persistence::Close, head_only: false, http10: false };
        encode(exchange.response, exchange.date, terms, exchange.output);
        if exchange.output.refused() {
            return self.not_sent(exchange);
        }
        exchange.metrics.note_rejection(exchange.response.status());
        let head = match &phase {
            Phase::Body(pending) => pending.parts().0,
            _ => match find_head_end(input, 0, exchange.limits.head) {
                Ok(Some(end)) => input.get(..end).unwrap_or_default(),
                Ok(None) | Err(_) => &[],
            },
        };
        let id = self.request_id(exchange);
        log_head(id, head, exchange.response.status(), 0, Some(rejection), exchange);
        self.tell_end(false, exchange);
        Next::Close(Some(rejection))
    }
}

impl Sending {
    pub(super) fn log<S: Service, O>(&self, exchange: &mut Exchange<'_, S, O>) {
        log_head(self.id, &self.head, self.status, self.body_bytes, None, exchange);
    }
}

/// What an answer answers, as it is at hand.
pub(super) enum Asked<'a> {
    Request {
        request: &'a Request<'a>,
        head: &'a [u8],
    },
    /// Of an answer that was put off.
    Head(Box<[u8]>),
}

impl Asked<'_> {
    fn log<S: Service, O>(
        &self,
        id: RequestId,
        status: u16,
        body_bytes: u64,
        exchange: &mut Exchange<'_, S, O>,
    ) {
        match self {
            Self::Request { request, .. } => {
                let answer = Answered {
                    client: exchange.client,
                    time: exchange.date.time(),
                    request: Some(request),
                    rejection: None,
                    status,
                    body_bytes,
                };
                exchange.service.on_answer(&answer);
            }
            Self::Head(head) => log_head(id, head, status, body_bytes, None, exchange),
        }
    }

    fn into_head(self) -> Box<[u8]> {
        match self {
            Self::Request { head, .. } => head.into(),
            Self::Head(head) => head,
        }
    }
}

/// Tells of an answer to the request that `head` is, or, if it is none, to nothing that could be understood.
fn log_head<S: Service, O>(
    id: RequestId,
    head: &[u8],
    status: u16,
    body_bytes: u64,
    rejection: Option<Rejection>,
    exchange: &mut Exchange<'_, S, O>,
) {
    let mut slots = header_slots();
    let request = match parse_head(head, &mut slots, exchange.limits) {
        Err(Rejection::NewerMinorVersion) => {
            return log_head(id, &as_http11(head), status, body_bytes, rejection, exchange);
        }
        parsed => parsed.ok().map(|request| Request { id, client: exchange.client, ..request }),
    };
    let answer = Answered {
        client: exchange.client,
        time: exchange.date.time(),
        request: request.as_ref(),
        rejection,
        status,
        body_bytes,
    };
    exchange.service.on_answer(&answer);
}
