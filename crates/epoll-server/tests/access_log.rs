//! The access log of `epoll-server http`: what is in it whatever clients say, and where it goes.

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
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use support::{Client, EXECUTABLE, PATIENCE, Server, outcome, poll, shell};

/// A directory, and the log in it.
struct Place {
    directory: tempfile::TempDir,
    log: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { log: directory.path().join("access.log"), directory }
    }

    fn start(&self) -> Server {
        Server::start(&["http", "--access-log", self.log.to_str().unwrap()])
    }

    /// Renames the log, has the server open it anew, and waits until that is done.
    fn rotate(&self, server: &Server, name: &str) {
        fs::rename(&self.log, self.directory.path().join(name)).unwrap();
        server.signal("HUP");
        poll("the new file", || self.log.exists().then_some(()));
    }
}

/// Asks for `target`, and takes the answer.
fn ask(client: &mut Client<TcpStream>, target: &str) {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
    take_answer(client);
}

fn take_answer(client: &mut Client<TcpStream>) {
    let mut length = 0;
    loop {
        let line = String::from_utf8(client.line()).unwrap();
        assert!(line.ends_with("\r\n"), "the end within a head: {line:?}");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            client.exactly(length);
            return;
        }
    }
}

fn lines_of(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn nothing_a_client_sends_can_forge_a_line_or_a_field() {
    let place = Place::new();
    let server = place.start();
    let requests: [(&[u8], &str); 9] = [
        (
            b"GET /hello?a=%0Ab HTTP/1.1\r\nHost: x\r\nReferer: http://a/\r\nUser-Agent: one two\r\n\r\n",
            r#""GET /hello?a=%0Ab HTTP/1.1" 200 13 "http://a/" "one two""#,
        ),
        (b"HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n", r#""HEAD /hello HTTP/1.1" 200 - "-" "-""#),
        (b"GET /none HTTP/1.0\r\n\r\n", r#""GET /none HTTP/1.0" 404 10 "-" "-""#),
        (
            b"GET /hello HTTP/1.1\r\nHost: x\r\nUser-Agent: \" 200 0 \"\\\r\n\r\n",
            r#""GET /hello HTTP/1.1" 200 13 "-" "\" 200 0 \"\\""#,
        ),
        (
            b"GET /hello HTTP/1.1\r\nHost: x\r\nReferer: a\tb\xff\xc3\xa9\xc2\x85\r\n\r\n",
            r#""GET /hello HTTP/1.1" 200 13 "a\x09b\xff\xc3\xa9\xc2\x85" "-""#,
        ),
        // Bytes that no field may have: refused, and nothing of them is in the log.
        (b"GET /hello HTTP/1.1\r\nHost: x\r\nUser-Agent: \x1b[2J\r\n\r\n", r#""-" 400 - "-" "-""#),
        (b"GET /a\n127.0.0.1 - - HTTP/1.1\r\nHost: x\r\n\r\n", r#""-" 400 - "-" "-""#),
        (b"\x16\x03\x01\x02\x00\x01", r#""-" 400 - "-" "-""#),
        (
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
            r#""POST /echo HTTP/1.1" 413 - "-" "-""#,
        ),
    ];
    for (request, _) in requests {
        let mut client = server.connect();
        client.send(request);
        client.finish_sending();
        assert!(client.rest().starts_with(b"HTTP/1.1 "), "{}", request.escape_ascii());
    }
    let answered = UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert_eq!(server.stop().code, Some(0));
    let lines = lines_of(&place.log);
    assert_eq!(lines.len(), requests.len(), "{lines:#?}");
    for ((request, expected), line) in requests.iter().zip(&lines) {
        let (start, rest) = line.split_once("] ").unwrap();
        let time = start.strip_prefix("127.0.0.1 - - [").unwrap();
        assert!(time.ends_with(" +0000"), "{line}");
        let time = jiff::Timestamp::strptime("%d/%b/%Y:%H:%M:%S %z", time).unwrap();
        let age = answered - u64::try_from(time.as_second()).unwrap();
        assert!(age < PATIENCE.as_secs(), "{line}");
        assert_eq!(rest, *expected, "{}", request.escape_ascii());
    }
}

#[test]
fn rotation_under_load_loses_no_line_and_repeats_none() {
    const CLIENTS: usize = 8;
    const ROTATIONS: usize = 12;
    let place = Place::new();
    let server = place.start();
    let enough = AtomicBool::new(false);
    let asked: Vec<usize> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (mut client, enough) = (server.connect(), &enough);
                scope.spawn(move || {
                    let mut count = 0;
                    while !enough.load(Ordering::Relaxed) {
                        // Some at once, so that a rotation comes between the lines of one turn.
                        let burst: String = (count..count + 10)
                            .map(|count| format!("GET /{number}/{count} HTTP/1.1\r\nHost: x\r\n\r\n"))
                            .collect();
                        client.send(burst);
                        (0..10).for_each(|_| take_answer(&mut client));
                        count += 10;
                    }
                    count
                })
            })
            .collect();
        for rotation in 0..ROTATIONS {
            // Something of this round is in it.
            poll("a line", || (fs::metadata(&place.log).unwrap().len() > 0).then_some(()));
            place.rotate(&server, &format!("{rotation:02}"));
        }
        enough.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(server.stop().code, Some(0));
    let mut files: Vec<_> =
        fs::read_dir(place.directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    // `access.log` comes behind the numbers.
    files.sort();
    assert_eq!(files.len(), ROTATIONS + 1);
    let mut seen = [0; CLIENTS];
    for line in files.iter().flat_map(|path| lines_of(path)) {
        let target =
            line.split_once("\"GET /").and_then(|(_, rest)| rest.split_once(" HTTP/1.1\" 404 10 \"-\""));
        let (client, count) = target.and_then(|(target, _)| target.split_once('/')).expect(&line);
        let seen = &mut seen[client.parse::<usize>().unwrap()];
        assert_eq!(count.parse::<usize>().unwrap(), *seen, "of client {client}");
        *seen += 1;
    }
    assert_eq!(seen.to_vec(), asked);
}

#[test]
fn a_file_that_cannot_be_opened_anew_leaves_the_old_one_in_use() {
    let place = Place::new();
    let mut server = place.start();
    let renamed = place.directory.path().join("renamed");
    fs::rename(&place.log, &renamed).unwrap();
    fs::create_dir(&place.log).unwrap();
    server.signal("HUP");
    let told = server.logged("the old file is kept");
    assert!(told.contains(place.log.to_str().unwrap()) && told.contains("Is a directory"), "{told}");
    ask(&mut server.connect(), "/kept");
    fs::remove_dir(&place.log).unwrap();
    server.signal("HUP");
    server.logged(&format!(
        "INFO  epoll_server::access_log::writer] access log {}: opened anew",
        place.log.display()
    ));
    ask(&mut server.connect(), "/new");
    assert_eq!(server.stop().code, Some(0));
    let all = [lines_of(&renamed), lines_of(&place.log)].concat();
    assert!(all.len() == 2 && all[0].contains("/kept") && all[1].contains("/new"), "{all:#?}");
    assert_eq!(lines_of(&place.log).len(), 1);
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_that_names_it() {
    for path in ["/no/such/directory/log", "/"] {
        let (code, output, errors) = outcome(&["http", "--listen", "127.0.0.1:0", "--access-log", path]);
        assert_eq!((code, output.as_str()), (1, ""), "{errors}");
        let last = errors.lines().last().unwrap();
        assert!(last.starts_with(&format!("epoll-server: access log {path}: ")), "{errors}");
    }
}

#[test]
fn lines_are_written_each_second_and_what_is_there_is_kept() {
    let place = Place::new();
    fs::write(&place.log, "of old\n").unwrap();
    let server = place.start();
    ask(&mut server.connect(), "/hello");
    let lines = poll("the line", || Some(lines_of(&place.log)).filter(|lines| lines.len() == 2));
    assert!(lines[0] == "of old" && lines[1].contains("GET /hello"), "{lines:?}");
    // And at the end, whichever it is.
    ask(&mut server.connect(), "/echo");
    server.signal("TERM");
    server.signal("TERM");
    assert!(matches!(server.wait().code, Some(0 | 3)));
    assert!(lines_of(&place.log)[2].contains("\"GET /echo HTTP/1.1\" 405 "), "{:?}", lines_of(&place.log));
}

#[test]
fn a_dash_is_standard_output() {
    let mut server = Server::start(&["http", "--access-log", "-"]);
    let mut client = server.connect();
    ask(&mut client, "/hello");
    let line = server.printed();
    assert!(
        line.starts_with("127.0.0.1 - - [") && line.ends_with("\"GET /hello HTTP/1.1\" 200 13 \"-\" \"-\"")
    );
    ask(&mut client, "/last");
    server.signal("TERM");
    assert!(server.printed().contains("\"GET /last HTTP/1.1\" 404 "));
    assert_eq!(server.wait().code, Some(0));
}

#[test]
fn a_fifo_waits_for_its_reader_and_a_signal_ends_that() {
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(&place.log).status().unwrap().success());
    let command = || {
        let mut command = Command::new(EXECUTABLE);
        command.args(["http", "--listen", "127.0.0.1:0", "--access-log"]).arg(&place.log);
        command.stderr(Stdio::piped());
        command
    };
    for signal in ["INT", "TERM", "HUP"] {
        let mut server = Server::spawn(command());
        let told = server.logged("waiting for a reader");
        assert!(told.contains(place.log.to_str().unwrap()), "{told}");
        server.signal(signal);
        assert_eq!(server.wait().code, None, "{signal}");
    }
    let path = place.log.clone();
    let reader = thread::spawn(move || fs::read_to_string(path).unwrap());
    let server = Server::run(command(), 1);
    ask(&mut server.connect(), "/hello");
    assert_eq!(server.stop().code, Some(0));
    assert!(reader.join().unwrap().contains("\"GET /hello HTTP/1.1\" 200 13 "));
}

/// Whoever shares it may have made it so. What does not fit waits for the reader, and no line is torn.
#[test]
fn standard_output_that_does_not_block_loses_nothing() {
    const REQUESTS: usize = 100;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (mut reader, writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    let mut command = shell("", &["http", "--access-log", "-", "--listen"]);
    command.arg(format!("unix:{}", path.display())).stdout(OwnedFd::from(writer)).stderr(Stdio::piped());
    let server = Server::spawn(command);
    let stream = poll("its socket", || UnixStream::connect(&path).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client::new(stream);
    // More than the socket holds, and less than the queue.
    let filling = "x".repeat(7000);
    for number in 0..REQUESTS {
        client.send(format!("HEAD /{number}/{filling} HTTP/1.1\r\nHost: x\r\n\r\n"));
        while client.line() != b"\r\n" {}
    }
    let read = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    let ended = server.stop();
    assert!(ended.code == Some(0) && !ended.log.contains("lost"), "{}", ended.log);
    let text = read.join().unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("listening on ")).collect();
    assert_eq!(lines.len(), REQUESTS);
    for (number, line) in lines.iter().enumerate() {
        assert!(line.contains(&format!("\"HEAD /{number}/{filling} HTTP/1.1\" 404 - ")), "{line}");
    }
}

#[test]
fn the_log_says_at_debug_why_a_request_was_refused_and_nothing_of_its_bytes() {
    let mut server = Server::start_after("export RUST_LOG=debug", &["http", "--body-limit", "10"]);
    for (request, reason) in [
        (&b"GET /\x1b[2J\x07 HTTP/1.1\r\nHost: x\r\n\r\n"[..], "refused with 400: "),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-\x1b[2J: \x07\r\n\r\n", "refused with 400: "),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n", "refused with 413: "),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", "refused with 400: "),
    ] {
        let mut client = server.connect();
        client.send(request);
        client.finish_sending();
        assert!(client.rest().starts_with(b"HTTP/1.1 4"), "{}", request.escape_ascii());
        let line = server.logged(reason);
        let (_, why) = line.split_once(reason).unwrap();
        assert!(!why.is_empty(), "{line:?}");
    }
    let log = server.stop().log;
    assert!(!log.replace('\n', "").contains(char::is_control), "{log:?}");
}

#[test]
fn only_a_log_file_is_a_reason_not_to_end_at_a_hangup() {
    for arguments in [&["broadcast"][..], &["echo"], &["http"], &["http", "--access-log", "-"]] {
        let server = Server::start(arguments);
        server.signal("HUP");
        assert_eq!(server.wait().code, None, "{arguments:?}");
    }
}

#[test]
fn a_full_disk_costs_lines_which_are_counted() {
    let mut server = Server::start(&["http", "--access-log", "/dev/full"]);
    let mut client = server.connect();
    (0..5).for_each(|_| ask(&mut client, "/hello"));
    let told = server.logged("access log: ");
    assert!(told.contains("No space left on device"), "{told}");
    (0..5).for_each(|_| ask(&mut client, "/hello"));
    let ended = server.stop();
    assert_eq!(ended.code, Some(0));
    assert!(ended.log.contains("access log: 10 lines lost that could not be written"), "{}", ended.log);
    assert_eq!(ended.log.matches("access log: ").count(), 2, "{}", ended.log);
}

/// A reader that has gone to sleep is the slowest of disks.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    const REQUESTS: usize = 1000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = shell("", &["http", "--access-log", "-", "--listen"]);
    command.arg(format!("unix:{}", path.display())).stdout(writer).stderr(std::process::Stdio::piped());
    let server = Server::spawn(command);
    let stream = poll("its socket", || UnixStream::connect(&path).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client::new(stream);
    // More than the pipe and the queue hold: each line has 7000 bytes and some.
    let request = format!("HEAD /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(7000));
    for _ in 0..REQUESTS {
        client.send(&request);
        while client.line() != b"\r\n" {}
    }
    drop(client);
    let asked = std::time::Instant::now();
    let ended = server.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    let lost = ended.log.lines().find_map(|line| {
        line.split_once("access log: ")?.1.strip_suffix(" lines lost, the disk does not keep up")
    });
    let lost: usize = lost.unwrap_or_else(|| panic!("{}", ended.log)).parse().unwrap();
    assert!(0 < lost && lost < REQUESTS, "{lost}");
    drop(reader);
}
