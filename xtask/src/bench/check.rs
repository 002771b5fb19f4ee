//! Whether a server gives the right answer, before anybody counts how fast.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
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
    let mut text = format!("{} {} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n", script.method(), script.path());
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

/// Asks as `script` does, and reads the answers: each is 200 and has the type and the body, `file` if it is one. Nothing
/// comes behind them, and the connection ends when the client's side of it does, or before if that was asked for.
pub(super) fn http(port: u16, script: Script, file: Option<&[u8]>) -> io::Result<()> {
    let count = if script == Script::Pipelined { PIPELINE } else { 1 };
    let mut client = connect(port)?;
    client.write_all(&request(script).repeat(count))?;
    let posted = script.body();
    let (media_type, expected) = match script {
        Script::Post => (Some("application/octet-stream"), posted.as_bytes()),
        // What type a file has is for the server to say.
        Script::File(_) => (None, file.unwrap_or_default()),
        _ => (Some("text/plain; charset=utf-8"), &b"Hello, World!"[..]),
    };
    for _ in 0..count {
        let (head, body) = answer(&mut client)?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(wrong(head.lines().next().unwrap_or_default()));
        }
        if media_type.is_some_and(|media_type| field(&head, "content-type") != Some(media_type)) {
            return Err(wrong(format_args!("a Content-Type of {:?}", field(&head, "content-type"))));
        }
        if field(&head, "date").is_none() {
            return Err(wrong("no Date"));
        }
        if body != expected {
            return Err(wrong(format_args!("a body of {} bytes that is not the one asked for", body.len())));
        }
    }
    if script != Script::NewConnection {
        client.shutdown(Shutdown::Write)?;
    }
    nothing_more(&mut client)
}

/// The connection ends, and nothing comes before that.
fn nothing_more(client: &mut TcpStream) -> io::Result<()> {
    match client.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(wrong("more than was asked for")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(wrong("the connection stays open")),
        Err(error) => Err(error),
    }
}

/// The value of a field of a head.
fn field<'head>(head: &'head str, name: &str) -> Option<&'head str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
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
    let length = field(&head, "content-length").and_then(|value| value.parse::<usize>().ok());
    let Some(length) = length else { return Err(wrong("no Content-Length")) };
    let mut body = Vec::new();
    client.take(length as u64).read_to_end(&mut body)?;
    Ok((head, body))
}

/// Bytes that differ from those a few places away.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251) as u8).collect()
}

/// A message of each size comes back as it was; and so does what a client sends that does not read meanwhile, as much of it
/// as is taken.
pub(super) fn echo(port: u16) -> io::Result<()> {
    /// More than the kernel keeps for one connection.
    const MUCH: usize = 32 * 1024 * 1024;
    /// Nothing taken for so long: nobody will take any before the client reads.
    const FULL: Duration = Duration::from_millis(200);
    let mut client = connect(port)?;
    client.set_write_timeout(Some(FULL))?;
    for size in [64, 16 * 1024, MUCH] {
        let message = pattern(size);
        let mut sent = 0;
        while let Some(rest) = message.get(sent..).filter(|rest| !rest.is_empty()) {
            match client.write(rest) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let mut echoed = vec![0; sent];
        client.read_exact(&mut echoed)?;
        if Some(&*echoed) != message.get(..sent) {
            return Err(wrong("other bytes than were sent"));
        }
    }
    client.shutdown(Shutdown::Write)?;
    nothing_more(&mut client)
}

/// Lines reach the two others, each once and in order, and not who has said them.
pub(super) fn broadcast(port: u16, redis: bool) -> io::Result<()> {
    const PROBE: &str = "is-anybody-there";
    let said = |text: &str| if redis { format!("PUBLISH b {text}\r\n") } else { format!("{text}\n") };
    let mut sender = Hearer::new(port)?;
    let mut receivers = [Hearer::new(port)?, Hearer::new(port)?];
    if redis {
        for receiver in &mut receivers {
            receiver.client.write_all(b"SUBSCRIBE b\r\n")?;
            receiver.until("*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:1\r\n")?;
            receiver.heard.clear();
        }
    }
    // Said again until everybody is there to hear it.
    let begun = Instant::now();
    while !receivers.iter().all(|receiver| receiver.has(PROBE)) {
        if begun.elapsed() > PATIENCE {
            return Err(wrong("a line does not reach the others"));
        }
        sender.client.write_all(said(PROBE).as_bytes())?;
        for receiver in &mut receivers {
            receiver.hear()?;
        }
    }
    let lines = ["line-0", "line-1", "line-2"];
    sender.client.write_all(lines.map(said).concat().as_bytes())?;
    for receiver in &mut receivers {
        receiver.until(if redis { "line-2\r\n" } else { "line-2\n" })?;
        let text = String::from_utf8_lossy(&receiver.heard).into_owned();
        let heard = |line: &str| match text.split_once(PROBE) {
            _ if redis => {
                format!("*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n${}\r\n{line}\r\n", line.len())
            }
            Some((prefix, _)) => format!("{prefix}{line}\n"),
            None => String::new(),
        };
        let number = heard("")
            .trim_end()
            .strip_prefix("[Client_")
            .and_then(|rest| rest.strip_suffix(']').and_then(|number| number.parse::<u64>().ok()));
        let probes = text.strip_suffix(&lines.map(heard).concat()).unwrap_or("?");
        if !redis && number.is_none() || !probes.replace(&heard(PROBE), "").is_empty() {
            return Err(wrong(format_args!("lines as {text:?}")));
        }
    }
    // Who subscribes to redis may not publish, and its senders hear what has become of their lines.
    if let [one, other] = &mut receivers
        && !redis
    {
        let before = other.heard.len();
        // The second line comes behind all there is of the first.
        one.client.write_all(b"bye\nend\n")?;
        for hearer in [&mut sender, &mut *other] {
            hearer.until("end\n")?;
        }
        if sender.has("line-") || sender.has(PROBE) {
            return Err(wrong("a line comes back to who has said it"));
        }
        if other.heard.iter().skip(before).filter(|byte| **byte == b'\n').count() != 2 {
            return Err(wrong("a line comes more than once"));
        }
    }
    Ok(())
}

/// A client, and all that it has heard.
struct Hearer {
    client: TcpStream,
    heard: Vec<u8>,
}

impl Hearer {
    fn new(port: u16) -> io::Result<Self> {
        let client = connect(port)?;
        client.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Self { client, heard: Vec::new() })
    }

    fn has(&self, text: &str) -> bool {
        self.heard.windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// What comes within a moment.
    fn hear(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        match self.client.read(&mut buffer) {
            Ok(0) => Err(wrong("the connection ends")),
            Ok(count) => {
                self.heard.extend_from_slice(buffer.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Hears until `end` is what it has heard last.
    fn until(&mut self, end: &str) -> io::Result<()> {
        let begun = Instant::now();
        while !self.heard.ends_with(end.as_bytes()) {
            if begun.elapsed() > PATIENCE {
                let heard = String::from_utf8_lossy(&self.heard);
                return Err(wrong(format_args!("no {end:?} after {heard:?}")));
            }
            self.hear()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A server that reads once and then says `text`, to one client, whose end it waits for.
    fn saying(text: impl Into<String>) -> u16 {
        serving(1, {
            let text = text.into();
            move |client, _| {
                let _ = client.read(&mut [0; 4096]);
                let _ = client.write_all(text.as_bytes());
                let _ = client.read_to_end(&mut Vec::new());
            }
        })
    }

    /// A server that has `clients`, each on a thread and told its number.
    fn serving(clients: usize, serve: impl Fn(&mut TcpStream, usize) + Clone + Send + 'static) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for number in 1..=clients {
                let (mut client, _) = listener.accept().unwrap();
                let serve = serve.clone();
                std::thread::spawn(move || serve(&mut client, number));
            }
        });
        port
    }

    fn right(media_type: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\ndate: now\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    #[test]
    fn a_wrong_answer_is_found() {
        let hello = right("text/plain; charset=utf-8", "Hello, World!");
        http(saying(&*hello), Script::Plain, None).unwrap();
        http(saying(hello.repeat(PIPELINE)), Script::Pipelined, None).unwrap();
        let posted = right("application/octet-stream", &Script::Post.body());
        http(saying(posted), Script::Post, None).unwrap();
        http(saying(right("any", "content")), Script::File("name"), Some(b"content")).unwrap();
        for text in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\nHello, World!",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello",
            "HTTP/1.1 200 OK\r\n\r\nHello, World!",
            "",
            &right("text/plain; charset=utf-8", "Hello, Welt!!"),
            &right("text/html", "Hello, World!"),
            &hello.replace("date", "etad"),
            &(hello.clone() + "H"),
        ] {
            assert!(http(saying(text), Script::Plain, None).is_err(), "{text:?}");
        }
        for count in [1, PIPELINE - 1, PIPELINE + 1] {
            assert!(http(saying(hello.repeat(count)), Script::Pipelined, None).is_err(), "{count} answers");
        }
        assert!(http(saying(hello), Script::Post, None).is_err());
        assert!(http(saying(right("any", "cOntent")), Script::File("name"), Some(b"content")).is_err());
    }

    #[test]
    fn an_echo_that_loses_or_adds_is_found() {
        let echoing = |spoil: fn(&mut Vec<u8>)| {
            serving(1, move |client, _| {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    let mut data = buffer[..count].to_vec();
                    spoil(&mut data);
                    if client.write_all(&data).is_err() {
                        return;
                    }
                }
            })
        };
        echo(echoing(|_| ())).unwrap();
        assert!(echo(echoing(|data| data[0] ^= 1)).is_err());
        assert!(echo(echoing(|data| data.push(0))).is_err());
        assert!(echo(echoing(|data| data.rotate_left(1))).is_err());
    }

    #[test]
    fn a_broadcast_that_loses_repeats_or_returns_a_line_is_found() {
        fn times(line: &str, from: usize, count: usize) -> Vec<String> {
            vec![format!("[Client_{from}] {line}\n"); count]
        }
        type Spoil = fn(line: &str, from: usize, to: usize) -> Vec<String>;
        let publishing = |spoil: Spoil| {
            let clients = Arc::new(Mutex::new(Vec::new()));
            serving(3, move |client, number| {
                clients.lock().unwrap().push((number, client.try_clone().unwrap()));
                for line in BufReader::new(client).lines().map_while(Result::ok) {
                    for (to, client) in &mut *clients.lock().unwrap() {
                        for line in spoil(&line, number, *to) {
                            let _ = client.write_all(line.as_bytes());
                        }
                    }
                }
            })
        };
        broadcast(publishing(|line, from, to| times(line, from, usize::from(from != to))), false).unwrap();
        let wrong: [Spoil; 6] = [
            |line, from, _| times(line, from, 1),
            |line, from, to| times(line, from, usize::from(from != to && line != "line-1")),
            |line, from, to| {
                times(line, from, usize::from(from != to) * if line == "line-0" { 2 } else { 1 })
            },
            |line, from, to| times(line, from, usize::from(from != to) * if line == "bye" { 2 } else { 1 }),
            |line, from, to| times(line, from + usize::from(line == "line-2"), usize::from(from != to)),
            |line, from, to| if from == to { Vec::new() } else { vec![format!("{line}\n")] },
        ];
        for (index, spoil) in wrong.into_iter().enumerate() {
            assert!(broadcast(publishing(spoil), false).is_err(), "{index}");
        }
    }
}
