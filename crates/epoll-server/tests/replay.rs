//! What real clients did to the binary, kept by --capture, and played to it again by `--replay`. Only in builds with the
//! feature `replay`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use support::{Client, Server, outcome, poll};

/// What `--replay` prints of one connection.
#[derive(Debug, PartialEq, Eq)]
struct Replayed {
    /// Behind its id.
    course: String,
    sent: Vec<u8>,
    answer: Vec<u8>,
}

/// A server with a trace that holds what clients send.
struct Captured {
    directory: tempfile::TempDir,
    server: Server,
    flags: Vec<String>,
}

impl Captured {
    fn start(flags: &[&str]) -> Self {
        Self::with_capture("1MiB", flags)
    }

    fn with_capture(size: &str, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("trace");
        let trace = ["--trace-file", file.to_str().unwrap(), "--capture", size];
        let server = Server::start(&[flags, &trace].concat());
        Self { directory, server, flags: flags.iter().map(|flag| (*flag).to_owned()).collect() }
    }

    fn file(&self) -> String {
        self.directory.path().join("trace").to_str().unwrap().to_owned()
    }

    /// Has the trace written until it has each of `lines` so many times.
    fn write_when(&mut self, lines: &[(&str, usize)]) {
        let file = self.file();
        let complete = |printed: &str| {
            lines
                .iter()
                .all(|(line, count)| printed.lines().filter(|it| it.ends_with(line)).count() == *count)
        };
        poll("the trace", || {
            self.server.signal("USR1");
            self.server.logged("records of what loop 0 did are in");
            complete(&outcome(&["trace", &file]).1).then_some(())
        });
    }

    /// Ends the server, and plays what it has written; the first lines, and each connection.
    fn replay(self) -> (Vec<String>, Vec<Replayed>) {
        let file = self.file();
        assert_eq!(self.server.stop().code, Some(0));
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let (code, output, errors) = outcome(&[&flags[..], &["--replay", &file]].concat());
        assert_eq!(code, 0, "{errors}");
        read(&output)
    }
}

fn read(output: &str) -> (Vec<String>, Vec<Replayed>) {
    let (mut head, mut connections) = (Vec::new(), Vec::new());
    for line in output.lines() {
        let last: Option<&mut Replayed> = connections.last_mut();
        match (line.strip_prefix("  "), last) {
            (Some(line), Some(last)) => match line.split_at(2) {
                ("> ", bytes) => last.sent.extend(unescaped(bytes)),
                ("< ", bytes) => last.answer.extend(unescaped(bytes)),
                other => panic!("{other:?}"),
            },
            _ => match line.strip_prefix("connection ").and_then(|line| line.split_once(": ")) {
                Some((_, course)) => connections.push(Replayed {
                    course: course.to_owned(),
                    sent: Vec::new(),
                    answer: Vec::new(),
                }),
                None => head.push(line.to_owned()),
            },
        }
    }
    (head, connections)
}

/// What `escape_ascii` has made of some bytes.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match (byte, if byte == b'\\' { rest.next() } else { None }) {
            (b'\\', Some(b'r')) => b'\r',
            (b'\\', Some(b'n')) => b'\n',
            (b'\\', Some(b't')) => b'\t',
            (b'\\', Some(b'x')) => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            (b'\\', Some(quoted)) => quoted,
            (byte, _) => byte,
        });
    }
    bytes
}

/// The date is that of the recording, to the second at which it turns.
fn without_dates(text: &str) -> String {
    let lines = text.split_inclusive('\n').filter(|line| !line.starts_with("Date: "));
    lines.collect()
}

fn reset(client: Client<TcpStream>) {
    let socket = socket2::SockRef::from(client.stream());
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

#[test]
fn http_answers_again_what_it_answered_byte_for_byte() {
    let mut captured = Captured::start(&["http"]);
    let mut answers = Vec::new();

    // Requests in pieces, each of which has been read before the next one comes.
    let mut split = captured.server.connect();
    let first = "GET /hello HT";
    let second = "TP/1.1\r\nHost: h\r\n\r\nPOST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nsix";
    for piece in [first, second] {
        split.send(piece);
        captured.write_when(&[(&format!("read, {} bytes, kept", piece.len()), 1)]);
    }
    split.send(b" and 8\0\xff");
    split.finish_sending();
    let answer = split.rest();
    answers.push(String::from_utf8_lossy(&answer).into_owned());

    let mut pipelined = captured.server.connect();
    let requests = "GET /hello HTTP/1.1\r\nHost: h\r\n\r\nHEAD / HTTP/1.1\r\nHost: h\r\n\r\nGET /none HTTP/1.1\r\nHost: h\r\n\r\n\
        POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
        GET /hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    pipelined.send(requests);
    answers.push(String::from_utf8(pipelined.rest()).unwrap());
    drop(pipelined);

    let mut wrong = captured.server.connect();
    wrong.send("GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n");
    answers.push(String::from_utf8(wrong.rest()).unwrap());
    drop(wrong);

    let mut lost = captured.server.connect();
    lost.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\nPOST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf");
    let mut answer = Vec::new();
    while !answer.ends_with(b"Hello, World!") {
        answer.extend(lost.exactly(1));
    }
    answers.push(String::from_utf8(answer).unwrap());
    reset(lost);

    // And one that stays.
    let mut open = captured.server.connect();
    open.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut answer = Vec::new();
    while !answer.ends_with(b"Hello, World!") {
        answer.extend(open.exactly(1));
    }
    answers.push(String::from_utf8(answer).unwrap());
    captured.write_when(&[("closed, reset", 1), ("closed, local", 2), ("closed, peer_closed", 1)]);
    drop(open);

    let (head, connections) = captured.replay();
    assert!(head[0].ends_with(": 5 clients, 0 left out"), "{head:?}");
    assert_eq!(connections.len(), answers.len());
    for (connection, answer) in connections.iter().zip(&answers) {
        let replayed = String::from_utf8_lossy(&connection.answer).into_owned();
        assert_eq!(without_dates(&replayed), without_dates(answer));
        assert!(
            replayed.contains("\r\nDate: ") && connection.course.ends_with(", as recorded"),
            "{connection:?}"
        );
    }
    assert_eq!(connections[1].sent, requests.as_bytes());
    let courses = connections.iter().map(|it| it.course.rsplit(", ").nth(1).unwrap());
    assert_eq!(courses.collect::<Vec<_>>(), ["peer_closed", "local", "local", "reset", "open"]);
}

#[test]
fn files_are_answered_again_from_where_they_are() {
    let root = tempfile::tempdir().unwrap();
    let large: String = (0..20_000).map(|number| format!("{number}\n")).collect();
    fs::write(root.path().join("large.txt"), &large).unwrap();
    let log = root.path().join(".log");
    let (root, file) = (root.path().to_str().unwrap(), log.to_str().unwrap());
    let mut captured = Captured::start(&["http", "--root", root, "--access-log", file]);
    let mut client = captured.server.connect();
    client.send("GET /large.txt HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    let answer = String::from_utf8(client.rest()).unwrap();
    assert!(answer.ends_with(&large));
    drop(client);
    captured.write_when(&[("closed, local", 1)]);
    let (_, connections) = captured.replay();
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 1, "nobody has asked for it again");
    let replayed = str::from_utf8(&connections[0].answer).unwrap();
    assert_eq!(without_dates(replayed), without_dates(&answer));
}

#[test]
fn echo_and_broadcast_say_again_what_they_said() {
    let mut captured = Captured::start(&["echo"]);
    let mut client = captured.server.connect();
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    client.send(&bytes);
    assert_eq!(client.exactly(bytes.len()), bytes);
    drop(client);
    captured.write_when(&[("closed, peer_closed", 1)]);
    let (_, connections) = captured.replay();
    let course = "256 bytes read, 256 written, peer_closed, as recorded".to_owned();
    assert_eq!(connections, [Replayed { course, sent: bytes.clone(), answer: bytes }]);

    let mut captured = Captured::start(&["broadcast", "--line-limit", "20"]);
    let mut clients = [captured.server.join(1), captured.server.join(2), captured.server.join(3)];
    let mut heard = [const { Vec::new() }; 3];
    for (speaker, words) in [(0, "hello\n"), (2, "hello yourself\n"), (0, "bye\n")] {
        clients[speaker].send(words);
        for listener in (0..3).filter(|listener| *listener != speaker) {
            heard[listener].extend(clients[listener].line());
        }
    }
    clients[1].send("a line that is longer than may be\n");
    heard[1].extend(clients[1].rest());
    drop(clients);
    captured.write_when(&[("closed, peer_closed", 2), ("closed, local", 1)]);
    let (_, connections) = captured.replay();
    let answers = connections.iter().map(|connection| connection.answer.clone());
    assert_eq!(answers.collect::<Vec<_>>(), heard);
    assert!(
        connections.iter().all(|connection| connection.course.ends_with(", as recorded")),
        "{connections:?}"
    );
}

#[test]
fn who_is_left_out_is_named_and_the_file_is_its_owner_s() {
    let mut captured = Captured::with_capture("64KiB", &["echo"]);
    let mut clients = [captured.server.connect(), captured.server.connect()];
    let large = "x".repeat(64 << 10);
    for (client, bytes) in clients.iter_mut().zip(["hello\n", &large]) {
        client.send(bytes);
        assert_eq!(client.exactly(bytes.len()), bytes.as_bytes());
    }
    captured.write_when(&[("read, 6 bytes", 1)]);
    let mode = fs::metadata(captured.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (head, connections) = captured.replay();
    assert!(head[0].starts_with("loop 0 at 2") && head[0].ends_with("Z: 1 clients, 1 left out"), "{head:?}");
    let why = "what it sent was not kept, or not all of it";
    assert_eq!(head[1..], [format!("left out: 1, {why}"), format!("left out: connection 0.1: {why}")]);
    assert_eq!(connections[0].answer, large.as_bytes());
}

#[test]
fn of_many_that_are_left_out_there_is_the_number() {
    let mut captured = Captured::with_capture("64KiB", &["echo"]);
    let mut clients: Vec<_> = (0..20).map(|_| captured.server.connect()).collect();
    for client in &mut clients {
        client.send("hello\n");
        assert_eq!(client.exactly(6), b"hello\n");
    }
    let large = "x".repeat(64 << 10);
    clients[19].send(&large);
    assert_eq!(clients[19].exactly(large.len()), large.as_bytes());
    captured.write_when(&[("read, 6 bytes", 20)]);
    let (head, connections) = captured.replay();
    assert_eq!(head[1..], ["left out: 20, what it sent was not kept, or not all of it"]);
    assert!(connections.is_empty(), "{connections:?}");
}

#[test]
fn of_a_broadcast_of_several_loops_it_says_which_lines_are_missing() {
    let flags = ["broadcast", "--workers", "2"];
    let mut captured = Captured::start(&flags);
    captured.server.signal("USR1");
    for index in 0..2 {
        captured.server.logged(&format!("records of what loop {index} did are in"));
        let file = format!("{}.{index}", captured.file());
        let (code, output, errors) = outcome(&[&flags[..], &["--replay", &file]].concat());
        assert_eq!(code, 0, "{errors}");
        let expected = "the lines of the other loop's clients are not in it: answers lack them, and the numbers of clients differ";
        assert_eq!(read(&output).0[1..], [expected]);
    }
}

#[test]
fn each_of_several_loops_has_a_trace_that_can_be_played() {
    let mut captured = Captured::start(&["echo", "--workers", "2"]);
    let mut clients: Vec<_> = (0..32).map(|_| captured.server.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(format!("{number}\n"));
        assert_eq!(client.line(), format!("{number}\n").as_bytes());
    }
    captured.server.signal("USR1");
    let mut answers = Vec::new();
    for index in 0..2 {
        captured.server.logged(&format!("records of what loop {index} did are in"));
        let file = format!("{}.{index}", captured.file());
        let (code, output, errors) = outcome(&["echo", "--workers", "2", "--replay", &file]);
        assert_eq!(code, 0, "{errors}");
        let (head, connections) = read(&output);
        assert!(head[0].starts_with(&format!("loop {index} at ")) && head.len() == 1, "{head:?}");
        answers.extend(connections.into_iter().map(|it| String::from_utf8(it.answer).unwrap()));
    }
    answers.sort_by_key(|answer| answer.trim().parse::<usize>().unwrap());
    assert_eq!(answers, (0..32).map(|number| format!("{number}\n")).collect::<Vec<_>>());
}

#[test]
fn what_is_no_trace_is_not_played() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let replay = |file: &Path| outcome(&["echo", "--replay", file.to_str().unwrap()]);
    fs::write(&file, "GET / HTTP/1.1").unwrap();
    let expected = format!("epoll-server: {}: not a recording of a loop", file.display());
    assert_eq!(replay(&file), (1, String::new(), expected));
    assert_eq!(replay(&file.join("missing")).0, 1);
}
