//! What passes between a [`Connection`] and whoever drives it.

use std::fmt;

use epoll_reactor::Address;

#[cfg(doc)]
use super::Connection;
use super::date::DateHeader;
use super::limits::HttpLimits;
use super::metrics::HttpMetrics;
use super::reject::Rejection;
use super::response::Response;

/// What a [`Connection`] borrows from its loop for one call. All connections of a loop can share it.
pub struct Exchange<'a, S, O> {
    /// The bounds; the same ones for the whole life of a connection.
    pub limits: &'a HttpLimits,
    /// The date header, at the current second.
    pub date: &'a DateHeader,
    /// Where answers are counted.
    pub metrics: &'a HttpMetrics,
    /// Names the connection in [`RequestId`](super::RequestId): another one for each.
    pub connection: u64,
    /// The peer.
    pub client: &'a Address,
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
    /// Call [`receive`](Connection::receive) with the rest of the input, when there is more of it or, after any call
    /// but `receive`, at once.
    MoreInput,
    /// Send the output, then call [`resume`](Connection::resume), and go on with what that says.
    OutputFull,
    /// Take no input: an answer is not known yet, or the service wants no more of a body. Start the
    /// [job](Connection::take_job), if there is one. [`respond`](Connection::respond) or
    /// [`resume`](Connection::resume) goes on.
    Wait,
    /// Take no input: have what [`cold`](Connection::cold) says read from the disk, by a thread that may wait, then
    /// call [`warmed`](Connection::warmed).
    Disk,
    /// Send the output, then close, in a way that does not destroy what the client has yet to receive
    /// (RFC 9112 section 9.6). What it still sends is ignored. If a request was refused, why.
    Close(Option<Rejection>),
    /// Reset the connection: an answer was begun and cannot be completed, which the client must not miss.
    Abort,
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
    /// A request is here, and its answer not yet, or not all of it: nothing is owed by the client, but that it reads.
    Answering,
    /// Nothing more is read.
    Closed,
}

impl<S, O> fmt::Debug for Exchange<'_, S, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("limits", self.limits)
            .field("date", self.date)
            .finish_non_exhaustive()
    }
}
