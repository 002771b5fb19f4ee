//! Whether a server gives the right answer, before anybody counts how fast.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::wrk::{PIPELINE, Script};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn connect(port: u16) -> io::Result<TcpStream> {
    let client = TcpStream::connect(("127.0.0.1", port))?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    Ok(client)
}

fn wrong(what: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("wrong answer: {what}"))
}

/// The request of `script` as bytes.
pub(super) fn request(script: Script) -> Vec<u8> {
    let mut text = format!("{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\n", script.method(), script.path());
    for (name, value) in script.headers() {
        text += &format!("{name}: {value}\r\n");
    }
    let body = script.body();
    if !body.is_empty() {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    text += &body;
    text.into_bytes()
}

/// Asks as `script` does, and reads the answers: each is 200 and has the body.
pub(super) fn http(port: u16, script: Script, length: Option<usize>) -> io::Result<()> {
    let count = if script == Script::Pipelined { PIPELINE } else { 1 };
    let mut client = connect(port)?;
    client.write_all(&request(script).repeat(count))?;
    for _ in 0..count {
        let (head, body) = answer(&mut client)?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(wrong(head.lines().next().unwrap_or_default()));
        }
        let right = match (script, length) {
            (Script::Post, _) => body == script.body().as_bytes(),
            (Script::File(_), length) => Some(body.len()) == length,
            _ => body == b"Hello, World!",
        };
        if !right {
            return Err(wrong(format_args!("a body of {} bytes", body.len())));
        }
    }
    if script == Script::NewConnection && !matches!(client.read(&mut [0]), Ok(0)) {
        return Err(wrong("the connection stays open"));
    }
    Ok(())
}

/// One answer with `Content-Length`: its head and its body.
fn answer(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
        if head.len() > 16 * 1024 {
            return Err(wrong("a head without an end"));
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.to_ascii_lowercase().lines().find_map(|line| {
        line.strip_prefix("content-length:").and_then(|value| value.trim().parse::<usize>().ok())
    });
    let Some(length) = length else { return Err(wrong("no Content-Length")) };
    let mut body = Vec::new();
    client.take(length as u64).read_to_end(&mut body)?;
    Ok((head, body))
}

/// A message of each size comes back as it was.
pub(super) fn echo(port: u16) -> io::Result<()> {
    let mut client = connect(port)?;
    for size in [64, 16 * 1024] {
        let message: Vec<u8> = (0..size).map(|index: usize| (index % 251) as u8).collect();
        let mut echoed = vec![0; size];
        client.write_all(&message)?;
        client.read_exact(&mut echoed)?;
        if echoed != message {
            return Err(wrong("other bytes than were sent"));
        }
    }
    Ok(())
}

/// A line, said again until everybody is there to hear it, reaches the two others.
pub(super) fn broadcast(port: u16, redis: bool) -> io::Result<()> {
    let mut sender = connect(port)?;
    let mut receivers = [connect(port)?, connect(port)?];
    for receiver in &mut receivers {
        receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
        if redis {
            receiver.write_all(b"SUBSCRIBE b\r\n")?;
        }
    }
    let line: &[u8] = if redis { b"PUBLISH b is-anybody-there\r\n" } else { b"is-anybody-there\n" };
    let mut heard = [Vec::new(), Vec::new()];
    let begun = Instant::now();
    let has = |text: &Vec<u8>| text.windows(16).any(|part| part == b"is-anybody-there");
    while !heard.iter().all(has) {
        if begun.elapsed() > PATIENCE {
            return Err(wrong("a line does not reach the others"));
        }
        sender.write_all(line)?;
        for (receiver, heard) in receivers.iter_mut().zip(&mut heard) {
            let mut buffer = [0; 4096];
            match receiver.read(&mut buffer) {
                Ok(0) => return Err(wrong("the connection ends")),
                Ok(count) => heard.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that reads and then says `text`, to one client.
    fn saying(text: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(text.as_bytes());
        });
        port
    }

    #[test]
    fn a_wrong_answer_is_found() {
        let right = "HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\nHello, World!";
        http(saying(right), Script::Plain, None).unwrap();
        for text in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\nHello, World!",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello",
            "HTTP/1.1 200 OK\r\n\r\nHello, World!",
            "",
        ] {
            assert!(http(saying(text), Script::Plain, None).is_err(), "{text:?}");
        }
        assert!(http(saying(right), Script::Pipelined, None).is_err(), "one answer to sixteen requests");
        assert!(http(saying(right), Script::Post, None).is_err());
        assert!(echo(saying("something else")).is_err());
    }
}
