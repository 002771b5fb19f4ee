//! A response as a service fills it in. Not its encoding, and none of its framing: `Content-Length`,
//! `Connection` and `Date` are written by the framework alone.

use std::fmt;

use bytes::Bytes;
use epoll_reactor::FileSlice;

use super::Request;
use super::field_line::{FieldLine, check_field};

/// What a service answers: `200` with no fields and no body until it says otherwise.
///
/// One serves a whole loop: it is cleared before each request and keeps its buffers (up to 64 KiB each), so
/// that a server in its stride allocates nothing.
#[derive(Default)]
pub struct Response {
    status: Option<u16>,
    /// The service's fields, each as `name: value CRLF`.
    pub(super) fields: Vec<u8>,
    pub(super) body: Body,
    /// What `Body::Written` sends.
    pub(super) written: Vec<u8>,
    pub(super) close: bool,
    /// Where the encoder puts the head together; of no meaning between two responses.
    pub(super) head: Vec<u8>,
}

#[derive(Default)]
pub(super) enum Body {
    #[default]
    Written,
    Shared(Bytes),
    Parts(Vec<Part>),
    /// Written by the service as the client reads, with its length if it is known.
    Stream(Option<u64>),
    /// The service will answer later.
    Deferred,
    /// A thread that may block answers.
    Blocking(Job),
}

/// See [`Response::run_blocking`].
pub(super) type Job = Box<dyn FnOnce(&Request<'_>, &mut Response) + Send>;

/// A piece of a body that is made of several: see [`Response::set_parts`].
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes in memory, which are not copied.
    Bytes(Bytes),
    /// A part of a file, which goes from the page cache to the socket.
    File(FileSlice),
}

impl Part {
    /// Bytes that are held for it.
    pub(super) const fn in_memory(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len() + size_of::<Self>(),
            Self::File(_) => size_of::<Self>(),
        }
    }

    pub(super) const fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(slice) => slice.length,
        }
    }
}

/// What each buffer may keep for the next response; one huge answer must not be paid for ever after.
const RETAINED: usize = 64 * 1024;

/// Fields a service cannot set: they say where the message ends and what becomes of the connection
/// (RFC 9112 sections 6 and 9, RFC 9110 section 7.6.1), or, as `Date`, are always written.
pub(super) const RESERVED: [&str; 7] =
    ["connection", "content-length", "date", "keep-alive", "trailer", "transfer-encoding", "upgrade"];

impl Response {
    /// An empty response.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the status. One that is not from 200 to 599 is sent as 500: interim responses (1xx) are the
    /// framework's, and others do not exist (RFC 9110 section 15).
    ///
    /// 204, 205 and 304 are sent without their body (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5).
    pub const fn set_status(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// The status that will be sent.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self.status {
            None => 200,
            Some(status @ 200..=599) => status,
            Some(_) => 500,
        }
    }

    /// Adds a field. Fields are sent in the order they were added, repeats included. For one that is always the same,
    /// [`field_line`](Self::field_line) is simpler and costs less.
    ///
    /// # Errors
    /// What is wrong with it; the response is as before. `name` must be a token (RFC 9110 section 5.1) and
    /// none of those the framework writes; `value` must have no control byte but tab (section 5.5), so that
    /// nothing a client sent, put into a value, can start a new line.
    pub fn header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        let value = value.as_ref();
        check_field(name.as_bytes(), value)?;
        self.fields.reserve(name.len() + value.len() + 4);
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.fields.extend_from_slice(part);
        }
        Ok(())
    }

    /// Adds a field that was checked when the program was compiled.
    pub fn field_line(&mut self, line: FieldLine) {
        self.fields.extend_from_slice(line.as_str().as_bytes());
        self.fields.extend_from_slice(b"\r\n");
    }

    /// Makes a copy of `body` the body, instead of what was there.
    pub fn set_body(&mut self, body: &[u8]) {
        self.body_buffer().extend_from_slice(body);
    }

    /// Makes `body` the body without copying it.
    pub fn set_static_body(&mut self, body: &'static [u8]) {
        self.set_shared_body(Bytes::from_static(body));
    }

    /// Makes `body` the body without copying it; any number of responses can share one.
    pub fn set_shared_body(&mut self, body: Bytes) {
        self.body = Body::Shared(body);
    }

    /// An empty buffer, reused from earlier responses, whose final content is the body. For `write!` and
    /// serializers.
    pub fn body_buffer(&mut self) -> &mut Vec<u8> {
        self.body = Body::Written;
        self.written.clear();
        &mut self.written
    }

    /// Makes a part of a file the body: sendfile(2) sends it, so a large one takes no memory. If the file turns out
    /// to be shorter, the connection is closed in the middle of the body.
    pub fn set_file(&mut self, slice: FileSlice) {
        self.set_parts(vec![Part::File(slice)]);
    }

    /// Makes the body of `parts`, one behind the other.
    pub fn set_parts(&mut self, mut parts: Vec<Part>) {
        parts.retain(|part| part.length() > 0);
        self.body = Body::Parts(parts);
    }

    /// Begins a body of unknown length: [`Service::write_body`](super::Service::write_body) writes it as the client
    /// reads. To HTTP/1.1 it goes in chunks, to HTTP/1.0 until the connection ends.
    pub fn stream(&mut self) {
        self.body = Body::Stream(None);
    }

    /// The same for a body of exactly `length` bytes.
    pub fn stream_sized(&mut self, length: u64) {
        self.body = Body::Stream(Some(length));
    }

    /// Puts the answer off: [`Responder::respond`](super::Responder::respond) gives it, when another thread has sent
    /// a message for instance. What else was set is forgotten. Only a client whose connection breaks is told
    /// apart, by [`Service::on_end`](super::Service::on_end): one that has ended its side may still be reading, and is
    /// not read from meanwhile. Nothing limits the time.
    ///
    /// An answer that was put off cannot be put off again; one that is, is sent as 500.
    ///
    /// ```
    /// use std::thread;
    /// use epoll_protocols::http1::{Http, HttpConfig, HttpMessage, Request, RequestId, Responder, Response, Service};
    /// use epoll_reactor::{Address, Limits, ListenOptions, Reactor, Remote};
    ///
    /// /// Sent by the thread that knows the answer.
    /// type Answer = (RequestId, String);
    ///
    /// #[derive(Default)]
    /// struct Later { remote: Option<Remote<HttpMessage<Answer>>> }
    ///
    /// impl Service for Later {
    ///     type Message = Answer;
    ///
    ///     fn call(&mut self, request: &Request<'_>, response: &mut Response) {
    ///         let (id, remote) = (request.id(), self.remote.clone());
    ///         thread::spawn(move || {
    ///             let answer = (id, "worked out elsewhere\n".to_owned());
    ///             // A queue that is full gives the message back, to be sent again.
    ///             remote.map(|remote| remote.send(answer.into()))
    ///         });
    ///         response.defer();
    ///     }
    ///
    ///     fn on_message(&mut self, (id, text): Answer, responder: &mut Responder<'_>) {
    ///         let mut response = Response::new();
    ///         response.set_body(text.as_bytes());
    ///         responder.respond(id, response);
    ///     }
    /// }
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let config = HttpConfig::default();
    /// let limits = config.limits(Limits::default());
    /// let mut reactor = Reactor::new(Http::new(Later::default(), config), limits)?;
    /// let remote = reactor.remote();
    /// reactor.handler().service_mut().remote = Some(remote);
    /// let (_, bound) = reactor.listen_first(&Address::resolve("127.0.0.1:0")?, &ListenOptions::default())?;
    /// # let remote = reactor.remote();
    /// # let client = thread::spawn(move || -> std::io::Result<String> {
    /// #     use std::io::{Read, Write};
    /// #     let mut stream = std::net::TcpStream::connect(bound.as_tcp().unwrap())?;
    /// #     stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
    /// #     let mut answer = String::new();
    /// #     stream.read_to_string(&mut answer)?;
    /// #     remote.drain();
    /// #     Ok(answer)
    /// # });
    /// reactor.run()?;
    /// # assert!(client.join().unwrap()?.ends_with("\r\n\r\nworked out elsewhere\n"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn defer(&mut self) {
        self.body = Body::Deferred;
    }

    /// Has one of the [threads](super::HttpConfig::blocking_threads) for it fill in the response: the way to call what
    /// blocks, such as a database. `job` runs once, with the same request and an empty response: what was set here
    /// before is lost. It has no way to the service, so move into it what it needs. It cannot put the answer off
    /// again; if it panics, the answer is 500. Where [`HttpConfig::blocking_queue`] jobs wait already,
    /// the answer is 503.
    ///
    /// [`HttpConfig::blocking_queue`]: super::HttpConfig::blocking_queue
    pub fn run_blocking(&mut self, job: impl FnOnce(&Request<'_>, &mut Self) + Send + 'static) {
        self.body = Body::Blocking(Box::new(job));
    }

    /// Has the connection closed after this response.
    pub const fn close_connection(&mut self) {
        self.close = true;
    }

    /// Whether nothing of it is still to come from the service or a thread.
    pub(super) const fn is_ready(&self) -> bool {
        !matches!(self.body, Body::Stream(_) | Body::Deferred | Body::Blocking(_))
    }

    /// Makes it as it was at the start.
    pub fn clear(&mut self) {
        self.status = None;
        self.body = Body::Written;
        self.close = false;
        for buffer in [&mut self.fields, &mut self.written, &mut self.head] {
            buffer.clear();
            buffer.shrink_to(RETAINED);
        }
    }
}

impl fmt::Debug for Response {
    /// Leaves out the fields' values and the body, where secrets are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status())
            .field("field_bytes", &self.fields.len())
            .field(
                "body_bytes",
                &match &self.body {
                    Body::Written => Some(self.written.len() as u64),
                    Body::Shared(body) => Some(body.len() as u64),
                    Body::Parts(parts) => Some(parts.iter().map(Part::length).sum()),
                    Body::Stream(length) => *length,
                    Body::Deferred | Body::Blocking(_) => None,
                },
            )
            .field("close", &self.close)
            .finish_non_exhaustive()
    }
}

/// Why a field was not added to a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The name is empty or has a byte that no token has.
    Name,
    /// The value has a control byte, such as CR, LF or NUL.
    Value,
    /// The framework writes this field itself.
    Reserved,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "the field name is not a token",
            Self::Value => "the field value has a control byte",
            Self::Reserved => "the field is written by the framework",
        })
    }
}

impl std::error::Error for HeaderError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_could_break_the_message_is_refused() {
        let cases: [(&str, &[u8], _); 14] = [
            ("X-Fine", b"a\tb \xe9", Ok(())),
            ("X-Empty", b"", Ok(())),
            ("", b"v", Err(HeaderError::Name)),
            ("a b", b"v", Err(HeaderError::Name)),
            ("a:", b"v", Err(HeaderError::Name)),
            ("a\r\nb", b"v", Err(HeaderError::Name)),
            ("caf\u{e9}", b"v", Err(HeaderError::Name)),
            ("X", b"a\r\nSet-Cookie: b", Err(HeaderError::Value)),
            ("X", b"a\nb", Err(HeaderError::Value)),
            ("X", b"a\rb", Err(HeaderError::Value)),
            ("X", b"a\0b", Err(HeaderError::Value)),
            ("X", b"a\x7fb", Err(HeaderError::Value)),
            ("content-LENGTH", b"1", Err(HeaderError::Reserved)),
            ("Transfer-Encoding", b"chunked", Err(HeaderError::Reserved)),
        ];
        for (name, value, outcome) in cases {
            let mut response = Response::new();
            assert_eq!(response.header(name, value), outcome, "{name:?}");
            assert_eq!(response.fields.is_empty(), outcome.is_err(), "{name:?}");
        }
        for name in RESERVED {
            assert_eq!(Response::new().header(name, "x"), Err(HeaderError::Reserved));
        }
    }

    #[test]
    fn only_final_statuses_exist() {
        for (set, sent) in [(200, 200), (599, 599), (404, 404), (100, 500), (199, 500), (600, 500), (0, 500)]
        {
            let mut response = Response::new();
            response.set_status(set);
            assert_eq!(response.status(), sent);
        }
    }

    #[test]
    fn clearing_forgets_all_but_modest_buffers() {
        let mut response = Response::new();
        response.set_status(404);
        response.header("a", "b").unwrap();
        response.set_body(&vec![0; 10 * RETAINED]);
        response.close_connection();
        response.clear();
        assert_eq!(format!("{response:?}"), format!("{:?}", Response::new()));
        assert!(response.written.capacity() <= RETAINED);
        response.set_static_body(b"of a service that panicked");
        response.clear();
        assert!(matches!(response.body, Body::Written));
        assert!(response.fields.capacity() > 0);
    }

    #[test]
    fn the_last_body_set_is_the_one() {
        let mut response = Response::new();
        response.set_static_body(b"static");
        response.set_body(b"copied");
        assert!(matches!(response.body, Body::Written));
        response.set_body(b"again");
        assert_eq!(response.written, b"again");
        response.set_shared_body(Bytes::from_static(b"shared"));
        assert!(matches!(&response.body, Body::Shared(body) if body == "shared"));
    }
}
