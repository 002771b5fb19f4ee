//! What the loops did last: SIGUSR1 and a panic have it written to a file, and `epoll-server trace` prints that.

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
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use support::{Client, Server, outcome, poll};

fn printed(file: &Path) -> Vec<String> {
    let (code, output, errors) = outcome(&["trace", file.to_str().unwrap()]);
    assert_eq!((code, errors.as_str()), (0, ""));
    output.lines().map(str::to_owned).collect()
}

#[test]
fn a_signal_has_what_happened_written_and_the_server_serves_on() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    for protocol in ["echo", "http", "broadcast"] {
        let mut server = Server::start(&[protocol, "--trace-file", file.to_str().unwrap()]);
        let mut client = server.connect();
        client.send(if protocol == "http" { "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n" } else { "hello\n" });
        match protocol {
            "echo" => assert_eq!(client.line(), b"hello\n"),
            "http" => assert_eq!(client.line(), b"HTTP/1.1 200 OK\r\n"),
            _ => _ = server.logged("Client_1 connected"),
        }
        for _ in 0..2 {
            server.signal("USR1");
            server.logged("records of what loop 0 did are in");
        }
        // What the first signal had the loop do is in what the second has it write, of which the log says the same.
        let lines = poll("the second writing", || {
            let lines = printed(&file);
            lines.iter().any(|line| line.contains("an inspection, ")).then_some(lines)
        });
        assert!(lines[0].starts_with("loop 0 at 2"), "{}", lines[0]);
        assert!(lines[0].ends_with(" records, 0 older ones overwritten"), "{}", lines[0]);
        assert_eq!(lines.len() - 1, lines[0].split(' ').nth(4).unwrap().parse::<usize>().unwrap());
        for what in ["accepted", "on_open, ", "event EPOLLIN", "turn with 1 events, "] {
            assert!(lines.iter().any(|line| line.contains(what)), "{protocol}, {what}: {lines:#?}");
        }
        drop(client);
        server.connect();
        let ended = server.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
    let left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["trace"], "nothing half written");
}

#[test]
fn a_connection_has_the_same_name_there_as_in_the_list_of_the_admin_server() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    let mut server =
        Server::start(&["echo", "--admin", "127.0.0.1:0", "--trace-file", file.to_str().unwrap()]);
    let line = server.printed();
    let admin = line.strip_prefix("admin on ").expect("the admin address");
    let mut client = server.connect();
    client.send("hello\n");
    assert_eq!(client.line(), b"hello\n");
    let mut operator = Client::from_tcp(TcpStream::connect(admin).unwrap());
    operator.send("GET /connections HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = String::from_utf8(operator.rest()).unwrap();
    let id = answer.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an id");
    server.signal("USR1");
    server.logged("records of what loop 0 did are in");
    let lines = printed(&file);
    assert!(
        lines.iter().any(|line| line.contains(&format!("connection {id}: accepted, from port "))),
        "{id}: {lines:#?}"
    );
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn each_of_several_loops_has_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    let mut server = Server::start(&["echo", "--workers", "2", "--trace-file", file.to_str().unwrap()]);
    // So many that each loop has some.
    let mut clients: Vec<_> = (0..64).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("hello\n");
        assert_eq!(client.line(), b"hello\n");
    }
    server.signal("USR1");
    for index in 0..2 {
        server.logged(&format!("records of what loop {index} did are in"));
        let lines = printed(&directory.path().join(format!("trace.{index}")));
        assert!(lines[0].starts_with(&format!("loop {index} at ")), "{}", lines[0]);
        assert!(lines.iter().any(|line| line.contains("write, 6 bytes")), "{lines:#?}");
    }
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let taken = directory.path().to_str().unwrap();
    let rows = [
        ("1", "/nowhere/trace", "/nowhere/trace: No such file or directory (os error 2)".to_owned()),
        ("2", "/nowhere/trace", "/nowhere/trace.0: No such file or directory (os error 2)".to_owned()),
        ("1", "/dev/null/trace", "/dev/null/trace: Not a directory (os error 20)".to_owned()),
        ("1", taken, format!("{taken}: what is there is not a regular file")),
    ];
    for (workers, path, expected) in rows {
        let (code, output, errors) =
            outcome(&["echo", "--workers", workers, "--listen", "127.0.0.1:0", "--trace-file", path]);
        let expected = format!("epoll-server: --trace-file {expected}");
        assert_eq!((code, output.as_str(), errors.as_str()), (1, "", expected.as_str()));
    }
    let file = directory.path().join("trace");
    fs::write(&file, "of the last run").unwrap();
    assert_eq!(Server::start(&["echo", "--trace-file", file.to_str().unwrap()]).stop().code, Some(0));
    assert_eq!(fs::read(&file).unwrap(), b"of the last run", "nothing new has taken its place");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_cannot_be_written_any_more_costs_a_line_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace");
    let mut server = Server::start(&["echo", "--trace-file", path.to_str().unwrap()]);
    directory.close().unwrap();
    let mut client = server.connect();
    client.send("a\n");
    client.line();
    server.signal("USR1");
    server.logged(&format!("cannot write {}: No such file or directory", path.display()));
    client.send("b\n");
    assert_eq!(client.line(), b"b\n");
    assert_eq!(server.stop().code, Some(0));
}

/// In a directory that others may write to, such as /tmp.
#[test]
fn what_somebody_else_has_put_there_is_neither_written_to_nor_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let [file, part, other] = ["trace", "trace.part", "other"].map(|name| directory.path().join(name));
    fs::write(&other, "precious").unwrap();
    let mut server = Server::start(&["echo", "--trace-file", file.to_str().unwrap()]);
    let mut client = server.connect();
    let mut written = |say: &str| {
        server.signal("USR1");
        server.logged(say);
        client.send("hello\n");
        assert_eq!(client.line(), b"hello\n");
    };
    symlink(&other, &part).unwrap();
    written("records of what loop 0 did are in");
    assert_eq!(fs::read(&other).unwrap(), b"precious");
    assert!(!fs::symlink_metadata(&file).unwrap().is_symlink());
    // To open it would be to wait for a reader.
    let made = Command::new("mkfifo").arg(&part).status().unwrap();
    assert!(made.success());
    written("records of what loop 0 did are in");
    assert!(printed(&file).iter().any(|line| line.contains("write, 6 bytes")));
    // What is no file of ours is not replaced by one: /dev/null, if it is root's server.
    fs::remove_file(&file).unwrap();
    symlink(&other, &file).unwrap();
    written("what is there is not a regular file");
    assert!(fs::symlink_metadata(&file).unwrap().is_symlink());
    assert!(!part.exists());
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn a_file_with_times_before_1970_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let count_and_times = [1_u64, 0, u64::MAX, 0].map(u64::to_le_bytes).concat();
    let head = [&b"EPOLLREC\x01\0\x20\0\0\0\0\0"[..], &count_and_times].concat();
    fs::write(&file, [head, [&[0; 30][..], &[1, 0]].concat()].concat()).unwrap();
    let lines = printed(&file);
    assert_eq!(lines[1], "1970-01-01T00:00:00.000000000Z turn with 0 events, 0ns");
}

#[test]
fn what_is_no_trace_is_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let path = file.to_str().unwrap();
    let rows: [(&[u8], &str); 4] = [
        (b"", "not a recording of a loop"),
        (b"GET / HTTP/1.1", "not a recording of a loop"),
        (b"EPOLLREC\x01\x00\x20\x00", "a recording that was cut short"),
        (
            &[&b"EPOLLREC\x07\x00"[..], &[0; 100]].concat(),
            "a recording of version 7, and only versions up to 2 can be read",
        ),
    ];
    for (bytes, reason) in rows {
        fs::write(&file, bytes).unwrap();
        assert_eq!(outcome(&["trace", path]), (1, String::new(), format!("epoll-server: {path}: {reason}")));
    }
    let missing = format!("{path}.missing");
    let (code, _, errors) = outcome(&["trace", &missing]);
    assert_eq!(
        (code, errors),
        (1, format!("epoll-server: {missing}: No such file or directory (os error 2)"))
    );
}
