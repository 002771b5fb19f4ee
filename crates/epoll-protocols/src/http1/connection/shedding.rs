//! A request that an overloaded server does not serve: the answer that says so, at the least cost, and the service not
//! asked.

use super::super::encode::{Persistence, encode};
use super::super::exchange::{Exchange, Next};
use super::super::field_line::FieldLine;
use super::super::framing::{BodyLength, Framing};
use super::super::output::Output;
use super::super::reject::Rejection;
use super::super::request::Request;
use super::super::service::{Answered, Service};
use super::{Connection, Flow};

/// Whoever was told no by an overloaded server must not come back at once (RFC 9110 section 10.2.3).
pub(in super::super) const RETRY_AFTER: FieldLine = FieldLine::new("Retry-After: 1");

impl Connection {
    /// Answers 503 to a request whose head is here, and says how much of what came behind it was its body. One that has yet
    /// to come is not waited for: then the connection ends, and the client need not send it (RFC 9110 section 10.1.1).
    #[cold]
    pub(super) fn shed<S: Service, O: Output>(
        &mut self,
        request: &Request<'_>,
        framing: Framing,
        after: &[u8],
        exchange: &mut Exchange<'_, S, O>,
    ) -> (usize, Flow) {
        let body = match framing.body {
            BodyLength::Known(length) => usize::try_from(length).ok().filter(|length| *length <= after.len()),
            BodyLength::Chunked => None,
        };
        self.answered += 1;
        let mut terms = self.terms(request, framing, exchange);
        if body.is_none() {
            terms.persistence = Persistence::Close;
        }
        exchange.response.clear();
        exchange.response.set_status(Rejection::Overloaded.status());
        exchange.response.field_line(RETRY_AFTER);
        let encoded = encode(exchange.response, exchange.date, terms, exchange.output);
        if exchange.output.refused() {
            return (0, Flow::Stop(self.not_sent(exchange)));
        }
        let status = exchange.response.status();
        exchange.metrics.note_shed(status);
        exchange.service.on_answer(&Answered {
            client: exchange.client,
            time: exchange.date.time(),
            request: Some(request),
            rejection: Some(Rejection::Overloaded),
            status,
            body_bytes: 0,
        });
        match self.after_answer(encoded.persistence) {
            Next::MoreInput => (body.unwrap_or(0), Flow::Continue),
            next => (0, Flow::Stop(next)),
        }
    }
}
