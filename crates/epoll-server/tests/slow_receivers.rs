//! `epoll-server broadcast` and clients that read slowly: what becomes of them, and that others notice nothing.

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

use std::net::TcpStream;

use support::{Client, Server, kernel_buffers};

const LINE: usize = 1000;
/// Lines sent before the reader has to have them all, so that it never counts as slow itself: fewer than
/// --receiver-limit holds.
const BURST: usize = 32;

#[test]
fn by_default_one_that_does_not_read_is_disconnected() {
    let mut server = Server::start(&["--line-limit", "2KiB", "--receiver-limit", "64KiB"]);
    let mut stalled = server.join_with_small_buffer(1);
    let mut sender = server.join(2);
    let mut reader = server.join(3);
    let most = (kernel_buffers() + (1 << 20)) / LINE;
    let mut sent = 0;
    while server.has_logged("Client_1 disconnected: it reads too slowly").is_none() {
        assert!(sent < most, "{sent} lines sent, and it is still connected");
        burst(&mut sender, &mut reader, sent);
        sent += BURST;
    }
    server.logged("Client_1 left");
    burst(&mut sender, &mut reader, sent);
    // It has a beginning of what the others have, and an end.
    let got = stalled.rest_or_reset();
    let expected: Vec<u8> = (0..sent).flat_map(nth_message).collect();
    assert!(got.len() < expected.len(), "it missed nothing");
    support::assert_same(&got, &expected[..got.len()]);
}

#[test]
fn under_drop_it_misses_whole_lines_and_is_told_how_many() {
    let arguments =
        ["broadcast", "--line-limit", "2KiB", "--receiver-limit", "64KiB", "--slow-receivers", "drop"];
    let mut server = Server::start(&arguments);
    let mut stalled = server.join_with_small_buffer(1);
    let mut sender = server.join(2);
    let mut reader = server.join(3);
    let enough = (kernel_buffers() + (1 << 20)) / LINE;
    let mut sent = 0;
    while sent < enough {
        burst(&mut sender, &mut reader, sent);
        sent += BURST;
    }
    assert_eq!(server.has_logged("missed"), None);
    let mut next = 0;
    let mut skipped = 0;
    // While it reads nothing is sent: the notice must come by itself.
    while skipped == 0 {
        take_line(&mut stalled, &mut next, &mut skipped);
    }
    assert_eq!(next, sent, "lines sent, with those it was told it missed");
    assert!(skipped > 0 && skipped < sent, "{skipped} of {sent} skipped");
    server.logged(&format!("Client_1 missed {skipped} lines"));
    burst(&mut sender, &mut reader, sent);
    while next < sent + BURST {
        take_line(&mut stalled, &mut next, &mut skipped);
    }
    assert_eq!(server.times_logged("missed"), 1);
}

#[test]
fn one_that_takes_nothing_is_disconnected_after_the_write_timeout() {
    let arguments = ["--write-timeout", "200ms", "--receiver-limit", "64MiB", "--memory-limit", "100MiB"];
    let mut server = Server::start(&arguments);
    let stalled = server.join_with_small_buffer(1);
    let mut sender = server.join(2);
    let mut reader = server.join(3);
    let enough = (kernel_buffers() + (1 << 20)) / LINE;
    let mut sent = 0;
    while sent < enough {
        burst(&mut sender, &mut reader, sent);
        sent += BURST;
    }
    server.logged("Client_1 left: took too long to read");
    burst(&mut sender, &mut reader, sent);
    drop(stalled);
}

fn nth_line(n: usize) -> Vec<u8> {
    format!("{n:0width$}\n", width = LINE - 1).into_bytes()
}

fn nth_message(n: usize) -> Vec<u8> {
    [b"[Client_2] ".to_vec(), nth_line(n)].concat()
}

/// Sends lines from number `from` on, and has `reader` take them.
fn burst(sender: &mut Client<TcpStream>, reader: &mut Client<TcpStream>, from: usize) {
    let lines: Vec<u8> = (from..from + BURST).flat_map(nth_line).collect();
    sender.send(lines);
    let expected: Vec<u8> = (from..from + BURST).flat_map(nth_message).collect();
    support::assert_same(&reader.exactly(expected.len()), &expected);
}

/// Reads one line, which must be number `next` or a notice of how many are missing.
fn take_line(client: &mut Client<TcpStream>, next: &mut usize, skipped: &mut usize) {
    let line = client.line();
    if line == nth_message(*next) {
        *next += 1;
        return;
    }
    let text = String::from_utf8(line).unwrap();
    let count = text.strip_prefix("[Server] ").and_then(|rest| rest.strip_suffix(" lines skipped\n"));
    let count: usize = count.unwrap_or_else(|| panic!("after {next} lines: {text:?}")).parse().unwrap();
    *skipped += count;
    *next += count;
}
