//! One look at a server: what its admin server answers, over a connection for each question.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::metrics::Metrics;

/// How long a connection, and then each part of an answer, may take: longer than a list that is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than any answer of ours has.
const LARGEST: u64 = 64 << 20;

/// Connections in each list.
const LISTED: usize = 10;

/// What the server told.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) metrics: Metrics,
    pub(super) lists: Result<Lists, String>,
}

/// Connections: those that are read from and written to most, and those for which most waits.
#[derive(Debug)]
pub(super) struct Lists {
    pub(super) by_rate: Vec<Row>,
    pub(super) by_queue: Vec<Row>,
}

/// A connection.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Row {
    /// Its name in its loop.
    pub(super) id: String,
    #[serde(rename = "loop")]
    pub(super) index: usize,
    pub(super) peer: String,
    pub(super) age_seconds: f64,
    pub(super) queued: u64,
    /// Since the sample before, or since it came. Only where it was asked for.
    #[serde(default)]
    pub(super) bytes_per_second: u64,
}

#[derive(Deserialize)]
struct List {
    connections: Vec<Row>,
}

impl Sample {
    /// Asks the server. Without lists there is a sample nevertheless: a loop that is held up gives none.
    ///
    /// # Errors
    /// It cannot be reached, or what answers is no admin server.
    pub(super) fn take(target: SocketAddr) -> io::Result<Self> {
        let text = get(target, "/metrics")?;
        let metrics = Metrics::parse(&text).filter(|metrics| metrics.has("epoll_build_info"));
        let metrics = metrics.ok_or_else(|| invalid("its /metrics is not that of an epoll-server"))?;
        let at = Instant::now();
        Ok(Self { at, metrics, lists: Lists::take(target).map_err(|error| error.to_string()) })
    }
}

impl Lists {
    fn take(target: SocketAddr) -> io::Result<Self> {
        let list = |sort| -> io::Result<Vec<Row>> {
            let text = get(target, &format!("/connections?sort={sort}&limit={LISTED}"))?;
            Ok(serde_json::from_str::<List>(&text)?.connections)
        };
        Ok(Self { by_rate: list("rate")?, by_queue: list("queued")? })
    }
}

/// The body of an answer that is 200.
///
/// # Errors
/// `TimedOut`: nothing came. Otherwise it cannot be reached, or says something else.
fn get(target: SocketAddr, path: &str) -> io::Result<String> {
    ask(target, path).map_err(|error| match error.kind() {
        // Which of them it is for a socket is up to the system.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()))
        }
        _ => error,
    })
}

fn ask(target: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LARGEST).read_to_end(&mut answer)?;
    body(&String::from_utf8_lossy(&answer))
}

/// What is behind the head. It is whole if it is as long as the head says.
fn body(answer: &str) -> io::Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| invalid("its answer is no HTTP"))?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    match status {
        Some("200") if length.is_none_or(|length| length == body.len().to_string()) => Ok(body.to_owned()),
        Some("200") => Err(invalid("its answer was broken off")),
        Some(status) => Err(invalid(&format!("{status}: {}", body.trim_end()))),
        None => Err(invalid("its answer is no HTTP")),
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_waited_for_for_long() {
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = Sample::take(mute.local_addr().unwrap()).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::TimedOut, "no answer within 5 s")
        );
    }

    #[test]
    fn answers_are_taken_whole_or_not_at_all() {
        let of = |text: &str| body(text).map_err(|error| error.to_string());
        assert_eq!(of("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"), Ok("ab".to_owned()));
        assert_eq!(
            of("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"),
            Err("its answer was broken off".to_owned())
        );
        let busy = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nbusy\n";
        assert_eq!(of(busy), Err("503: busy".to_owned()));
        assert_eq!(of("[Client_1] hello"), Err("its answer is no HTTP".to_owned()));
    }
}
