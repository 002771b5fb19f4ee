//! Clients for a server that may cut any of them off: they check each byte they get, and tell whether they got all.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};

use crate::support::{PATIENCE, Server, assert_same, pattern, poll};

/// The server ended the connection before the client had all it had asked for.
#[derive(Debug)]
pub struct Cut;

impl From<io::Error> for Cut {
    /// A timeout is none of these: nobody may be left waiting.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected => Self,
            _ => panic!("a client was neither served nor cut off: {error}"),
        }
    }
}

/// A client, from its connection to its end.
pub type Life = Result<(), Cut>;

/// How much a client sends in one piece before it reads.
#[derive(Clone, Copy, Debug)]
pub struct Burst(pub usize);

struct Stream(TcpStream);

impl Stream {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    fn send(&mut self, data: &[u8]) -> Life {
        Ok(self.0.write_all(data)?)
    }

    /// One read, made again if a signal of the test's own process (a child has ended) interrupts it.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Cut> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                result => return Ok(result?),
            }
        }
    }

    /// Reads as many bytes as are expected; what comes must be they, even if not all come.
    fn expect(&mut self, expected: &[u8]) -> Life {
        let mut got = vec![0; expected.len()];
        let mut filled = 0;
        while filled < got.len() {
            match self.read(&mut got[filled..])? {
                0 => return Err(Cut),
                count => {
                    assert_same(&got[filled..filled + count], &expected[filled..filled + count]);
                    filled += count;
                }
            }
        }
        Ok(())
    }

    fn expect_end(&mut self) -> Life {
        assert_eq!(self.read(&mut [0; 64])?, 0, "bytes behind the last answer");
        Ok(())
    }

    fn finish_sending(&self) -> Life {
        Ok(self.0.shutdown(Shutdown::Write)?)
    }
}

/// Answers waited for one by one, then many bytes at once, and the end.
pub fn echo(address: SocketAddr, Burst(burst): Burst) -> Life {
    let mut stream = Stream::connect(address);
    for round in 1..=5 {
        let data = pattern(100 * round);
        stream.send(&data)?;
        stream.expect(&data)?;
    }
    let data = pattern(burst);
    stream.send(&data)?;
    stream.finish_sending()?;
    stream.expect(&data)?;
    stream.expect_end()
}

/// Requests on one connection, one by one, then many at once.
pub fn http(address: SocketAddr, Burst(burst): Burst) -> Life {
    let mut stream = Stream::connect(address);
    for length in [0, 10, burst / 10] {
        let body = pattern(length);
        let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        stream.send(&[head.as_bytes(), &body].concat())?;
        answer(&mut stream, &body)?;
    }
    let body = pattern(burst / 10);
    let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", body.len());
    let request = [head.as_bytes(), b"\r\n", &body].concat();
    let last = [head.as_bytes(), b"Connection: close\r\n\r\n", &body].concat();
    stream.send(&[request.repeat(9), last].concat())?;
    for _ in 0..10 {
        answer(&mut stream, &body)?;
    }
    stream.expect_end()
}

fn answer(stream: &mut Stream, body: &[u8]) -> Life {
    let head = head(stream)?;
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    stream.expect(body)
}

/// The head of an answer, in lower case.
fn head(stream: &mut Stream) -> Result<String, Cut> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Err(Cut);
        }
        head.extend(byte);
    }
    Ok(String::from_utf8(head).unwrap().to_ascii_lowercase())
}

/// What came of a request for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    Whole,
    /// With this status, and words for people.
    Refused(u16),
    /// The connection ended before the answer did.
    Cut,
}

/// A client that asks for files on one connection, and on another when the server has ended that.
pub struct Visitor {
    address: SocketAddr,
    stream: Stream,
    /// How often the connection has ended.
    pub ends: usize,
}

impl Visitor {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: Stream::connect(address), ends: 0 }
    }

    /// Asks for `path`; an answer of 200 must be `content`, or any if that is `None`.
    pub fn fetch(&mut self, path: &str, content: Option<&[u8]>) -> Fetched {
        let fetched = self.try_to_fetch(path, content);
        let (fetched, ends) = fetched.unwrap_or((Fetched::Cut, true));
        if ends {
            self.stream = Stream::connect(self.address);
            self.ends += 1;
        }
        fetched
    }

    /// And whether the server ends the connection.
    fn try_to_fetch(&mut self, path: &str, content: Option<&[u8]>) -> Result<(Fetched, bool), Cut> {
        self.stream.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
        let head = head(&mut self.stream)?;
        let status: u16 = head[9..12].parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap().parse().unwrap();
        match content.filter(|_| status == 200) {
            Some(content) => {
                assert_eq!(length, content.len(), "{path}: {head}");
                self.stream.expect(content)?;
            }
            None => {
                assert!(length > 0, "{path}: {head}");
                let mut left = vec![0; length];
                while !left.is_empty() {
                    match self.stream.read(&mut left)? {
                        0 => return Err(Cut),
                        count => left.truncate(left.len() - count),
                    }
                }
            }
        }
        let ends = head.contains("connection: close\r\n");
        if ends {
            self.stream.expect_end()?;
        }
        Ok((if status == 200 { Fetched::Whole } else { Fetched::Refused(status) }, ends))
    }

    /// Asks for what no file is looked at for.
    pub fn ask(&mut self) -> Life {
        self.stream.send(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let head = head(&mut self.stream)?;
        assert!(head.starts_with("http/1.1 204 "), "{head}");
        Ok(())
    }
}

/// A client that wants as little as can be, so that one among many faults may miss it.
pub fn smallest(protocol: &str, address: SocketAddr) -> Life {
    let mut stream = Stream::connect(address);
    match protocol {
        "http" => stream
            .send(b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx")?,
        _ => stream.send(b"x\n")?,
    }
    stream.finish_sending()?;
    match protocol {
        "http" => answer(&mut stream, b"x")?,
        "echo" => stream.expect(b"x\n")?,
        // Nobody but the receivers hears of it.
        _ => (),
    }
    stream.expect_end()
}

/// A client that says nothing, and goes when the server does: otherwise its FIN would be waited for.
pub fn idle(address: SocketAddr) -> JoinHandle<()> {
    let mut stream = Stream::connect(address);
    thread::spawn(move || {
        // It may be hit like everybody.
        let _ = stream.expect_end();
    })
}

const SENDERS: usize = 3;
const LINES: usize = 48;
/// Lines of one write: several pieces of output for one receiver in one turn make a `sendmsg`.
const AT_ONCE: usize = 6;

/// Senders and receivers of lines. Returns a life for each.
pub fn broadcast(server: &mut Server) -> Vec<Life> {
    let address = server.address();
    let mut lives = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..3 {
        let stream = Stream::connect(address);
        match await_joined(server, &stream) {
            Ok(()) => receivers.push(stream),
            Err(Cut) => lives.push(Err(Cut)),
        }
    }
    let senders: Vec<_> =
        (0..SENDERS).map(|sender| thread::spawn(move || send_lines(address, sender))).collect();
    let sent: Vec<Life> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    // The server has read all they sent, since it has closed their connections.
    for receiver in receivers {
        lives.push(receive_lines(receiver, &sent));
    }
    lives.extend(sent);
    lives
}

fn await_joined(server: &mut Server, stream: &Stream) -> Life {
    let joined = format!("connected from {}", stream.0.local_addr().unwrap());
    stream.0.set_nonblocking(true).unwrap();
    let life = poll("a client to be let in or turned away", || {
        if server.has_logged(&joined).is_some() {
            return Some(Ok(()));
        }
        match stream.0.peek(&mut [0]) {
            Ok(0) => Some(Err(Cut)),
            Err(error) if error.kind() != ErrorKind::WouldBlock => Some(Err(Cut::from(error))),
            _ => None,
        }
    });
    stream.0.set_nonblocking(false).unwrap();
    life
}

fn line(sender: usize, number: usize) -> String {
    format!("sender {sender} line {number} {}", "x".repeat(100))
}

fn send_lines(address: SocketAddr, sender: usize) -> Life {
    let mut stream = Stream::connect(address);
    for first in (0..LINES).step_by(AT_ONCE) {
        let lines: String = (first..first + AT_ONCE).map(|number| line(sender, number) + "\n").collect();
        stream.send(lines.as_bytes())?;
    }
    stream.finish_sending()?;
    // What the others sent is the receivers' to check.
    stream.0.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Whoever is not cut off has every line of every sender that was not, and of the others a first part.
fn receive_lines(mut stream: Stream, sent: &[Life]) -> Life {
    let mut got = Vec::new();
    let end = stream.finish_sending().and_then(|()| Ok(stream.0.read_to_end(&mut got).map(drop)?));
    let text = String::from_utf8(got).unwrap();
    let (whole, torn) = text.rsplit_once('\n').unwrap_or(("", &text));
    let mut next = [0; SENDERS];
    for received in whole.lines() {
        let content = received.split_once("] ").map(|(_, content)| content);
        let sender = (0..SENDERS).find(|sender| content == Some(&line(*sender, next[*sender])));
        let Some(sender) = sender else { panic!("torn, lost or out of order: {received:?}") };
        next[sender] += 1;
    }
    end?;
    let complete = sent.iter().zip(next).all(|(life, count)| life.is_err() || count == LINES);
    // The server may have closed it without an error on the way: then too what is missing is missing at the end.
    if complete && torn.is_empty() { Ok(()) } else { Err(Cut) }
}
