//! What a service may do about requests other than the one it is being asked: give answers that were put off, and go
//! on with streams. It records; the connections are seen to when the service has returned.

use std::collections::VecDeque;
use std::fmt;
use std::time::SystemTime;

use epoll_reactor::{Counters, Ctx, Timestamp};

use super::Response;
use super::service::RequestId;

/// Something for [`Http`](super::Http) to do: to give the answer of a request, or to go on with it.
pub(super) struct Action {
    pub(super) id: RequestId,
    pub(super) response: Option<Box<Response>>,
}

/// Lent to those methods of a [`Service`](super::Service) that are not about one request.
pub struct Responder<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) actions: &'a mut VecDeque<Action>,
}

impl Responder<'_> {
    /// Gives the answer of a request that was put off with [`Response::defer`]. Nothing happens if its client is
    /// gone, which [`Service::on_end`](super::Service::on_end) has told.
    pub fn respond(&mut self, id: RequestId, response: Response) {
        self.actions.push_back(Action { id, response: Some(Box::new(response)) });
    }

    /// Has [`Service::write_body`](super::Service::write_body) called for a stream that has something to write again,
    /// if there is room for it; otherwise it will be anyway.
    pub fn wake(&mut self, id: RequestId) {
        self.actions.push_back(Action { id, response: None });
    }

    /// Goes on with a body after [`BodyFlow::Pause`](super::BodyFlow::Pause).
    pub fn resume_body(&mut self, id: RequestId) {
        self.actions.push_back(Action { id, response: None });
    }

    /// The time at which this turn of the loop began.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.ctx.now()
    }

    /// The same on the wall clock.
    #[must_use]
    pub fn wall_clock(&self) -> SystemTime {
        self.ctx.wall_clock()
    }

    /// What the loop has counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.ctx.counters()
    }

    /// Connections that are open.
    #[must_use]
    pub const fn connections(&self) -> usize {
        self.ctx.connections()
    }

    /// Whether the server is stopping.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.ctx.is_draining()
    }
}

impl fmt::Debug for Responder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("actions", &self.actions.len()).finish_non_exhaustive()
    }
}
