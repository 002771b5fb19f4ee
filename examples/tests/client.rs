//! The client example, as a program: at a keyboard, in a pipe, and with servers that leave it in every way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::io::{Read, Write, pipe};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Stdio;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{setsockopt, sockopt};
use support::{Example, PATIENCE, Peer, has_stalled, write_repeatedly};

/// A client connected to a server that is this test.
fn connected() -> (Example, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Example::start("client", &[&listener.local_addr().unwrap().to_string()]);
    (client, accept(&listener))
}

/// Fails, rather than waiting for ever, if nobody comes.
fn accept(listener: &TcpListener) -> Peer {
    let wait = u16::try_from(PATIENCE.as_millis()).unwrap();
    let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], wait).unwrap();
    assert_eq!(ready, 1, "no client has come");
    Peer::new(listener.accept().unwrap().0)
}

#[test]
fn two_talk_over_the_broadcast_server() {
    let (server, address) = Example::serve("broadcast_server", &[]);
    let mut first = Example::start("client", &[&address]);
    let mut typing = first.stdin();
    // It is the first to be counted if it is heard before the second comes.
    let mut listener = Peer::connect(&address);
    typing.write_all(b"anyone?\n").unwrap();
    let heard = listener.line();
    assert!(heard.ends_with("] anyone?\n"), "{heard:?}");

    let mut second = Example::start("client", &[&address]);
    second.stdin().write_all(b"hello\n").unwrap();
    assert_eq!(first.line(), ">> [Client_3] hello\n");
    assert_eq!(listener.line(), "[Client_3] hello\n");
    // Its input has ended, so the server has closed it.
    let ended = second.wait();
    assert!(ended.status.success() && ended.lines.is_empty() && ended.errors.is_empty(), "{ended:?}");

    listener.send("bye\n");
    assert!(first.line().ends_with("] bye\n"));
    drop(typing);
    let ended = first.wait();
    assert!(ended.status.success() && ended.lines.is_empty() && ended.errors.is_empty(), "{ended:?}");
    server.stop();
}

#[test]
fn in_a_pipe_it_finishes_its_side_and_prints_what_still_comes() {
    let (mut client, mut server) = connected();
    client.stdin().write_all(b"hello\nunfinished").unwrap();
    assert_eq!(server.rest(), "hello\nunfinished");
    // The server has seen our end, and only now begins to answer.
    server.send("one\ntwo\n");
    assert_eq!((client.line().as_str(), client.line().as_str()), (">> one\n", ">> two\n"));
    server.send("three\n");
    drop(server);
    let ended = client.wait();
    assert!(ended.status.success() && ended.lines == [">> three\n"] && ended.errors.is_empty(), "{ended:?}");
}

#[test]
fn with_no_input_at_all_it_listens_until_the_server_ends() {
    let (mut client, mut server) = connected();
    drop(client.stdin());
    assert_eq!(server.rest(), "");
    server.send("still here\n");
    assert_eq!(client.line(), ">> still here\n");
    drop(server);
    assert!(client.wait().status.success());
}

#[test]
fn it_ends_with_the_server_though_its_input_goes_on() {
    let (mut client, mut server) = connected();
    let typing = client.stdin();
    server.send("no newline");
    server.finish();
    assert_eq!(server.rest(), "", "it has closed");
    let ended = client.wait();
    assert!(ended.status.success() && ended.errors.is_empty(), "{ended:?}");
    assert_eq!(ended.lines, [">> no newline\n"]);
    drop(typing);
}

#[test]
fn what_was_typed_before_the_server_finished_is_delivered() {
    let (mut client, mut server) = connected();
    let mut typing = client.stdin();
    typing.write_all(b"typed\n").unwrap();
    assert_eq!(server.line(), "typed\n");
    server.send("answer\n");
    server.finish();
    assert_eq!(server.rest(), "");
    let ended = client.wait();
    assert!(ended.status.success() && ended.lines == [">> answer\n"], "{ended:?}");
}

#[test]
fn a_reset_is_told_in_one_line() {
    let (client, mut server) = connected();
    server.send("hello\n");
    assert_eq!(client.line(), ">> hello\n");
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(server.stream.get_ref(), sockopt::Linger, &linger).unwrap();
    drop(server);
    let ended = client.wait();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.errors.ends_with(": reset by the peer\n"), "{ended:?}");
    assert_eq!(ended.errors.lines().count(), 1);
}

#[test]
fn nobody_there_and_no_address_are_told_in_one_line() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (address, why) in [
        (closed.as_str(), "Connection refused"),
        ("127.0.0.1", "expected HOST:PORT"),
        ("unix:/nowhere/at/all", "No such file"),
    ] {
        let ended = Example::start("client", &[address]).wait();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.errors.contains(address) && ended.errors.contains(why), "{ended:?}");
        assert_eq!(ended.errors.lines().count(), 1, "{ended:?}");
    }
}

#[test]
fn of_a_names_addresses_the_one_that_answers_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("localhost:{}", listener.local_addr().unwrap().port());
    let client = Example::start("client", &[&name]);
    drop(accept(&listener));
    let ended = client.wait();
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn any_bytes_are_printed_as_they_come() {
    let (client, mut server) = connected();
    let long = "x".repeat(1 << 20);
    server.send(&format!("prompt: {long}\n\n\r\n"));
    server.finish();
    let ended = client.wait();
    assert!(ended.status.success(), "{:?}", ended.errors);
    assert!(ended.lines == [format!(">> prompt: {long}\n"), ">> \n".to_owned(), ">> \r\n".to_owned()]);
}

#[test]
fn it_is_quiet_when_nobody_reads_what_it_prints() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let address = listener.local_addr().unwrap().to_string();
    let mut client = Example::start_printing_to("client", &[&address], Stdio::from(writer));
    let typing = client.stdin();
    let mut server = accept(&listener);
    server.send("hello\n");
    assert!(server.is_closed());
    let ended = client.wait();
    assert!(ended.status.success() && ended.errors.is_empty(), "{ended:?}");
    drop(typing);
}

#[test]
fn a_server_that_reads_slowly_holds_up_the_input_and_not_the_memory() {
    const TOTAL: usize = 64 << 20;
    let (mut client, mut server) = connected();
    let id = client.id();
    let piece: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 12).collect();
    let progress = write_repeatedly(client.stdin(), piece, TOTAL >> 12);
    assert!(has_stalled(&progress), "it took everything without being read");
    let ticks = processor_ticks(id);
    assert!(has_stalled(&progress));
    let ticks = processor_ticks(id) - ticks;
    assert!(ticks <= 5, "it waits by spinning: {ticks} ticks");

    let mut buffer = vec![0; 1 << 16];
    let mut next = 0_usize;
    while next < TOTAL {
        let count = server.stream.read(&mut buffer).unwrap();
        assert!(count > 0, "it ended after {next} bytes");
        assert!(buffer[..count].iter().enumerate().all(|(at, byte)| usize::from(*byte) == (next + at) % 256));
        next += count;
    }
    assert!(peak_memory(id) < 32 << 20, "{} bytes", peak_memory(id));
    assert_eq!(server.rest(), "");
    drop(server);
    assert!(client.wait().status.success());
}

/// Hundredths of a second that a process has run for: proc_pid_stat(5), user and system time.
fn processor_ticks(id: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn peak_memory(id: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
