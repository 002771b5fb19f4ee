//! The real binary's system calls, counted by strace(1) from one thing that a client has said to another: every call of the
//! loop's thread, whatever it is. `epoll-protocols/tests/costs.rs` claims the same of the loop in-process, where only what
//! goes through `Kernel` is seen. Where strace cannot be used the tests say so, and pass.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    dead_code,
    missing_docs,
    reason = "a panic is how a test fails; the support has more than is used here"
)]

#[path = "support/strace.rs"]
#[allow(unreachable_pub, reason = "as `support`")]
mod strace;
mod support;

use std::net::TcpStream;

use strace::{Traced, is_usable};
use support::Client;

/// Times that each thing is done between two marks.
const TIMES: usize = 20;
/// What all clients begin and end with, so that it is found in the record, whose strings are cut at 32 bytes.
const START: &str = "mark-start";
const END: &str = "mark-end";

/// What was called, by kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Calls {
    receives: usize,
    /// Of one piece or of several.
    sends: usize,
    accepts: usize,
    /// `EPOLL_CTL_ADD`.
    registrations: usize,
    /// Everything else but waits.
    others: Vec<String>,
}

/// The calls of the loop between the marks; each wait brought something, and there were `most_waits` of them at most.
fn calls(traced: &Traced, most_waits: usize) -> Calls {
    let record = traced.loop_record();
    let lines = record.between(START, END);
    let mut calls = Calls::default();
    let mut waits = 0;
    for line in lines {
        match line.split('(').next().unwrap() {
            "recvfrom" => calls.receives += 1,
            "sendto" | "sendmsg" => calls.sends += 1,
            "accept4" => calls.accepts += 1,
            "epoll_ctl" if line.contains("EPOLL_CTL_ADD") => calls.registrations += 1,
            // A client that was kept from going on: time has passed, and the loop had to look at it.
            "epoll_wait" | "epoll_pwait" if line.ends_with(") = 0") && !line.contains(", 0) = 0") => (),
            "epoll_wait" | "epoll_pwait" => waits += 1,
            _ => calls.others.push(line.clone()),
        }
    }
    assert!(waits <= most_waits, "{waits} waits instead of {most_waits} at most:\n{}", lines.join("\n"));
    calls
}

/// What a client has to say between the marks of `http` and `echo`: everything is answered before the next is said.
fn say(client: &mut Client<TcpStream>, question: &str, answer_length: usize) {
    client.send(question);
    client.exactly(answer_length);
}

fn get(query: &str) -> String {
    format!("GET /hello?{query} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Reads one answer; its length, which is that of all others.
fn get_once(client: &mut Client<TcpStream>, query: &str) -> usize {
    client.send(get(query));
    let mut length = 0;
    loop {
        let line = client.line();
        length += line.len();
        if line == b"\r\n" {
            break;
        }
    }
    assert_eq!(client.exactly(13), b"Hello, World!");
    length + 13
}

#[test]
fn a_request_costs_one_receive_and_one_send_however_many_come_together() {
    if !is_usable() {
        return;
    }
    for together in [1, 16] {
        let traced = Traced::watch(&["http"]);
        let mut client = traced.server.connect();
        let length = get_once(&mut client, "");
        get_once(&mut client, START);
        for _ in 0..TIMES {
            say(&mut client, &get("").repeat(together), length * together);
        }
        get_once(&mut client, END);
        // The first mark's, and one for each time.
        let expected = Calls { receives: TIMES + 1, sends: TIMES + 1, ..Calls::default() };
        assert_eq!(calls(&traced, TIMES + 1), expected, "{together} together");
    }
}

#[test]
fn an_echo_costs_one_receive_and_one_send() {
    if !is_usable() {
        return;
    }
    for size in [64, 16 * 1024] {
        let traced = Traced::watch(&["echo"]);
        let mut client = traced.server.connect();
        say(&mut client, &"x".repeat(size), size);
        say(&mut client, START, START.len());
        for _ in 0..TIMES {
            say(&mut client, &"x".repeat(size), size);
        }
        say(&mut client, END, END.len());
        let expected = Calls { receives: TIMES + 1, sends: TIMES + 1, ..Calls::default() };
        assert_eq!(calls(&traced, TIMES + 1), expected, "{size} bytes");
    }
}

#[test]
fn a_connection_costs_its_accept_and_its_registration() {
    if !is_usable() {
        return;
    }
    let traced = Traced::watch(&["http"]);
    let mut client = traced.server.connect();
    get_once(&mut client, "");
    get_once(&mut client, START);
    let clients: Vec<_> = (0..TIMES)
        .map(|_| {
            let mut client = traced.server.connect();
            get_once(&mut client, "");
            client
        })
        .collect();
    get_once(&mut client, END);
    // A second accept says that there are no more.
    let expected = Calls {
        accepts: 2 * TIMES,
        registrations: TIMES,
        receives: TIMES + 1,
        sends: TIMES + 1,
        ..Calls::default()
    };
    // Of each, the loop may be told alone that it is there, that it can be written, and that it has sent something.
    assert_eq!(calls(&traced, 3 * TIMES + 1), expected);
    drop(clients);
}

#[test]
fn a_line_costs_one_receive_and_one_write_a_receiver() {
    const RECEIVERS: usize = 10;
    if !is_usable() {
        return;
    }
    for together in [1, 16] {
        let mut traced = Traced::watch(&["broadcast"]);
        let mut sender = traced.server.join(1);
        let mut receivers: Vec<_> = (0..RECEIVERS).map(|index| traced.server.join(index + 2)).collect();
        let mut publish = |line: &str, times: usize| {
            sender.send(format!("{line}\n").repeat(times));
            for receiver in &mut receivers {
                for _ in 0..times {
                    assert_eq!(receiver.line(), format!("[Client_1] {line}\n").as_bytes());
                }
            }
        };
        publish("first", 1);
        publish(START, 1);
        for _ in 0..TIMES {
            publish("line", together);
        }
        publish(END, 1);
        let expected = Calls { receives: TIMES + 1, sends: RECEIVERS * (TIMES + 1), ..Calls::default() };
        assert_eq!(calls(&traced, TIMES + 1), expected, "{together} together");
    }
}
