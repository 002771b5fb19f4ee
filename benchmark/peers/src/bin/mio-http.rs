//! HTTP by hand on mio: the loop that one writes with nothing but readiness and a parser (httparse).
//!
//! One thread; each connection has a buffer for each direction. Requests that are there together are answered with one
//! send. Transfer-Encoding is refused, and nothing bounds how long a client may take.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Instant, SystemTime};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};
use peers::{BYTES, HELLO, TEXT, address};

const LISTENER: Token = Token(usize::MAX);
const HEAD_LIMIT: usize = 64 * 1024;
const BODY_LIMIT: usize = 1024 * 1024;

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of `output` has been sent.
    sent: usize,
    /// Nothing more is read: what is in `output` is the last.
    ending: bool,
}

/// A request, where it lies in the input.
struct Request<'input> {
    method: &'input str,
    path: &'input str,
    body: &'input [u8],
    keep_alive: bool,
    /// Of head and body.
    length: usize,
}

/// The date, formatted once a second.
struct Date {
    text: String,
    at: Instant,
}

fn main() -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut listener = TcpListener::bind(address("http"))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut date = Date { text: httpdate::fmt_http_date(SystemTime::now()), at: Instant::now() };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        if date.at.elapsed().as_secs() > 0 {
            date = Date { text: httpdate::fmt_http_date(SystemTime::now()), at: Instant::now() };
        }
        // A slot that becomes free must not be used again while there may be events for its last connection.
        let mut freed = Vec::new();
        for event in &events {
            if event.token() == LISTENER {
                accept_all(poll.registry(), &listener, &mut connections, &mut free)?;
                continue;
            }
            let index = event.token().0;
            let Some(connection) = connections.get_mut(index).and_then(Option::as_mut) else { continue };
            if !matches!(connection.serve(&mut buffer, &date.text), Ok(true)) {
                connections[index] = None;
                freed.push(index);
            }
        }
        free.append(&mut freed);
    }
}

fn accept_all(
    registry: &Registry,
    listener: &TcpListener,
    connections: &mut Vec<Option<Connection>>,
    free: &mut Vec<usize>,
) -> io::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        stream.set_nodelay(true)?;
        let index = free.pop().unwrap_or_else(|| {
            connections.push(None);
            connections.len() - 1
        });
        registry.register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        let connection = Connection { stream, input: Vec::new(), output: Vec::new(), sent: 0, ending: false };
        connections[index] = Some(connection);
    }
}

impl Connection {
    /// Reads, answers and writes until the socket has no more or takes no more; says whether the connection goes on.
    fn serve(&mut self, buffer: &mut [u8], date: &str) -> io::Result<bool> {
        loop {
            self.flush()?;
            if self.sent < self.output.len() {
                // It is not read either: the edge that tells when to write brings us back here.
                return Ok(true);
            }
            if self.ending {
                return Ok(false);
            }
            match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.answer_all(date);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    /// Answers every request that is there whole.
    fn answer_all(&mut self, date: &str) {
        let mut taken = 0;
        while !self.ending {
            match parse(&self.input[taken..]) {
                Ok(Some(request)) => {
                    taken += request.length;
                    self.ending = !request.keep_alive;
                    let (status, media_type, body) = match (request.method, request.path) {
                        ("GET", "/hello") => ("200 OK", TEXT, HELLO.as_bytes()),
                        ("POST", "/echo") => ("200 OK", BYTES, request.body),
                        _ => ("404 Not Found", TEXT, "Not Found\n".as_bytes()),
                    };
                    write_answer(&mut self.output, status, date, media_type, body, self.ending);
                }
                Ok(None) => break,
                Err(status) => {
                    self.ending = true;
                    write_answer(&mut self.output, status, date, TEXT, b"", true);
                }
            }
        }
        self.input.drain(..taken);
    }
}

/// The first request of `input`, or `None` if it has not all come.
///
/// # Errors
/// The status to refuse it with.
fn parse(input: &[u8]) -> Result<Option<Request<'_>>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let head_length = match head.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() > HEAD_LIMIT => {
            return Err("431 Request Header Fields Too Large");
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("400 Bad Request"),
    };
    let mut body_length = None;
    let mut keep_alive = head.version == Some(1);
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let digits = Some(header.value).filter(|value| value.iter().all(u8::is_ascii_digit));
            let length = digits.and_then(|value| str::from_utf8(value).ok()?.parse::<usize>().ok());
            if length.is_none() || body_length.is_some() {
                return Err("400 Bad Request");
            }
            body_length = length;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("501 Not Implemented");
        } else if header.name.eq_ignore_ascii_case("connection") {
            for option in header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                if option.eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                }
            }
        }
    }
    let body_length = body_length.unwrap_or(0);
    if body_length > BODY_LIMIT {
        return Err("413 Content Too Large");
    }
    let length = head_length + body_length;
    let Some(body) = input.get(head_length..length) else { return Ok(None) };
    let (method, path) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
    Ok(Some(Request { method, path, body, keep_alive, length }))
}

fn write_answer(output: &mut Vec<u8>, status: &str, date: &str, media_type: &str, body: &[u8], last: bool) {
    let connection = if last { "Connection: close\r\n" } else { "" };
    let length = body.len();
    // Writing to memory cannot fail.
    let _ = write!(
        output,
        "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Length: {length}\r\n{connection}Content-Type: {media_type}\r\n\r\n"
    );
    output.extend_from_slice(body);
}
