//! HTTP/1.1 for servers as a codec: bytes and the date in, bytes out; and [`Http`], which joins it to the loop.
//!
//! Nothing in the codec knows a socket, a loop or a clock. A [`Connection`] is told what has been received and
//! appends to an [`Output`] what is to be sent; between the two it calls a [`Service`] once for each request. Bodies of
//! requests are gathered first, or passed on in pieces ([`BodyMode`]); answers are given at once, later, by a thread that
//! may block, in pieces or from files ([`Response`]), and always in the order of requests. [`Router`] and [`Files`] are
//! services to build on. What it does not do: neither `Upgrade` nor `CONNECT` is offered, and nothing is compressed.
//!
//! The rules are those of RFC 9110 (semantics) and RFC 9112 (the message format); each is cited where it is
//! kept. Where a rule leaves a choice between guessing and refusing, the request is refused and the
//! connection closed: bytes that two servers on the way could read differently are how requests are smuggled.
//!
//! ```
//! use std::time::SystemTime;
//! use epoll_reactor::Address;
//! use epoll_protocols::http1::{
//!     Connection, DateHeader, Exchange, HttpLimits, HttpMetrics, Next, Request, Response,
//! };
//!
//! let mut hello = |request: &Request<'_>, response: &mut Response| match request.path() {
//!     "/" => response.set_static_body(b"Hello!"),
//!     _ => response.set_status(404),
//! };
//! let (limits, date) = (HttpLimits::default(), DateHeader::new(SystemTime::now()));
//! let metrics = HttpMetrics::new();
//! let (mut response, mut output) = (Response::new(), Vec::new());
//! let mut exchange = Exchange {
//!     limits: &limits,
//!     date: &date,
//!     metrics: &metrics,
//!     connection: 0,
//!     client: &Address::UnixUnnamed,
//!     service: &mut hello,
//!     response: &mut response,
//!     output: &mut output,
//! };
//!
//! let mut connection = Connection::new();
//! let progress = connection.receive(b"GET / HTTP/1.1\r\nHost: example\r\n\r\nGET /half", &mut exchange);
//! assert_eq!(progress.consumed, 33, "the second request is not whole: the caller keeps it");
//! assert_eq!(progress.next, Next::MoreInput);
//! assert!(output.starts_with(b"HTTP/1.1 200 OK\r\n"));
//! assert!(output.ends_with(b"\r\n\r\nHello!"));
//! ```

mod answers;
mod blocking;
mod body;
mod byte_set;
mod client;
mod config;
mod connection;
mod date;
mod encode;
mod exchange;
mod field_line;
mod files;
mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handler;
mod limits;
mod metrics;
mod output;
mod parse;
mod pool;
mod reject;
mod request;
mod responder;
mod response;
mod router;
mod sending;
mod service;

pub use blocking::BlockingJob;
pub use config::HttpConfig;
pub use connection::Connection;
pub use date::DateHeader;
pub use exchange::{Exchange, Next, Progress, Stage};
pub use field_line::FieldLine;
pub use files::{Files, FilesOptions};
pub use handler::{Http, HttpMessage};
pub use limits::{HttpLimits, HttpLimitsError, MAX_HEADERS};
pub use metrics::{HttpMetrics, HttpSnapshot};
pub use output::{NotCached, Output};
pub use reject::Rejection;
pub use request::{Request, Version};
pub use responder::Responder;
pub use response::{HeaderError, Part, Response};
pub use router::{Parameters, RouteError, Router, allow};
pub use sending::BodyWriter;
pub use service::{Answered, BodyFlow, BodyMode, RequestId, Service};
