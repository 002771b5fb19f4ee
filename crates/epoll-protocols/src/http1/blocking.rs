//! A request with what answers it, for a thread that may block. Not the threads: see `pool`.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use epoll_reactor::Address;

use super::Request;
use super::limits::{HttpLimits, MAX_HEADERS};
use super::parse::{header_slots, parse_head};
use super::response::{Job, Response};
use super::service::RequestId;

/// A request with what answers it, for a thread that may block: [`Connection::take_job`](super::Connection::take_job).
pub struct BlockingJob {
    id: RequestId,
    client: Address,
    head: Box<[u8]>,
    body: Box<[u8]>,
    job: Job,
}

impl BlockingJob {
    pub(super) fn new(request: &Request<'_>, head: &[u8], job: Job) -> Self {
        Self {
            id: request.id(),
            client: request.client().clone(),
            head: head.into(),
            body: request.body().into(),
            job,
        }
    }

    /// The request that it answers.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// Bytes of heap it takes, but for what its closure holds.
    pub(super) const fn held(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Runs it. One that panics answers 500, and the log is told.
    #[must_use]
    pub fn run(self) -> Response {
        let mut response = Response::new();
        let mut slots = header_slots();
        // It has passed the server's own limits before.
        let limits = HttpLimits { target: usize::MAX, headers: MAX_HEADERS, ..HttpLimits::default() };
        let Ok(request) = parse_head(&self.head, &mut slots, &limits) else {
            response.set_status(500);
            return response;
        };
        let request = Request { body: &self.body, id: self.id, client: &self.client, ..request };
        let job = self.job;
        if catch_unwind(AssertUnwindSafe(|| job(&request, &mut response))).is_err() {
            log::error!("answering {} {} panicked", request.method(), request.target());
            response.clear();
            response.set_status(500);
        }
        response
    }
}

impl fmt::Debug for BlockingJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingJob").field("id", &self.id).finish_non_exhaustive()
    }
}
