//! `epoll-server broadcast` as its clients see it: who hears what. Slow clients are in `slow_receivers.rs`.

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
use std::thread;

use support::{Client, Random, Server};

#[test]
fn two_clients_hear_each_other_and_not_themselves() {
    let mut server = Server::start(&[]);
    let mut first = server.join(1);
    let mut second = server.join(2);
    first.send("hello\n");
    assert_eq!(second.line(), b"[Client_1] hello\n");
    second.send("hi\nagain\n");
    assert_eq!(first.line(), b"[Client_2] hi\n");
    assert_eq!(first.line(), b"[Client_2] again\n");
    for mut client in [first, second] {
        client.finish_sending();
        assert_eq!(client.rest(), b"");
    }
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn a_number_is_never_given_again() {
    let mut server = Server::start(&["broadcast"]);
    let mut listener = server.join(1);
    for number in 2..6 {
        let mut client = server.join(number);
        client.send("here\n");
        assert_eq!(listener.line(), format!("[Client_{number}] here\n").as_bytes());
        drop(client);
        server.logged(&format!("Client_{number} left"));
    }
}

#[test]
fn fifty_clients_hear_all_others_whole_and_in_order() {
    const CLIENTS: usize = 50;
    const LINES: usize = 20;
    let mut server = Server::start(&["broadcast"]);
    let clients: Vec<_> = (1..=CLIENTS).map(|number| server.join(number)).collect();
    let threads: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(index, mut client)| {
            thread::spawn(move || {
                let writer = client.duplicate();
                let writer = thread::spawn(move || write_in_pieces(writer, index + 1, LINES));
                let heard: Vec<_> = (0..(CLIENTS - 1) * LINES).map(|_| client.line()).collect();
                writer.join().unwrap();
                // Held until all is heard: an early leaver would prove less.
                (client, heard)
            })
        })
        .collect();
    for (index, thread) in threads.into_iter().enumerate() {
        let (_client, heard) = thread.join().unwrap();
        for sender in 1..=CLIENTS {
            let prefix = format!("[Client_{sender}] ");
            let from_sender: Vec<_> =
                heard.iter().filter(|line| line.starts_with(prefix.as_bytes())).cloned().collect();
            let expected: Vec<_> = if sender == index + 1 {
                Vec::new()
            } else {
                (0..LINES).map(|n| [prefix.as_bytes(), &nth_line(sender, n)].concat()).collect()
            };
            assert_eq!(from_sender, expected, "client {} from {sender}", index + 1);
        }
    }
}

/// Lines of many lengths, up to some kilobytes, each unlike all others.
fn nth_line(sender: usize, n: usize) -> Vec<u8> {
    let length = Random::new((sender * 1000 + n) as u64).below(1 << (n % 13));
    format!("{sender}.{n} {}\n", "x".repeat(length)).into_bytes()
}

/// Sends lines in writes that end anywhere.
fn write_in_pieces(mut client: Client<TcpStream>, sender: usize, lines: usize) {
    let all: Vec<u8> = (0..lines).flat_map(|n| nth_line(sender, n)).collect();
    let mut random = Random::new(sender as u64);
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(1 + random.below(rest.len().min(2000)));
        client.send(piece);
        rest = behind;
        // So that the pieces of several senders are mixed more often.
        thread::yield_now();
    }
}

#[test]
fn a_line_may_hold_any_byte_but_newline_and_may_be_empty() {
    let mut server = Server::start(&["broadcast"]);
    let mut sender = server.join(1);
    let mut receiver = server.join(2);
    let bytes: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    for line in [&bytes, b"".as_slice(), b"\0", b"\xff\xfe", b"\r", b"", b"[Client_9] forged", b" "] {
        sender.send([line, b"\n"].concat());
        assert_eq!(receiver.line(), [b"[Client_1] ", line, b"\n"].concat());
    }
}

#[test]
fn an_unfinished_line_is_dropped_with_its_client() {
    let mut server = Server::start(&["broadcast"]);
    let mut listener = server.join(1);
    let mut leaver = server.join(2);
    let mut stayer = server.join(3);
    leaver.send("whole\nunfini");
    leaver.finish_sending();
    assert_eq!(leaver.rest(), b"");
    server.logged("Client_2 left");
    stayer.send("after\n");
    assert_eq!(listener.line(), b"[Client_2] whole\n");
    assert_eq!(listener.line(), b"[Client_3] after\n");
}

#[test]
fn a_line_of_the_limit_passes_and_a_longer_one_closes_only_its_client() {
    let mut server = Server::start(&["broadcast", "--line-limit", "16"]);
    let mut listener = server.join(1);
    let mut complete = server.join(2);
    let mut endless = server.join(3);
    complete.send("0123456789abcdef\n");
    assert_eq!(listener.line(), b"[Client_2] 0123456789abcdef\n");
    assert_eq!(endless.line(), b"[Client_2] 0123456789abcdef\n");
    complete.send("fine\n0123456789abcdefX\nnever\n");
    assert_eq!(listener.line(), b"[Client_2] fine\n");
    server.logged("Client_2 disconnected: line longer than 16 bytes");
    assert_eq!(complete.rest_or_reset(), b"[Server] disconnected: line longer than 16 bytes\n");
    // Found out without its newline, and however it comes.
    endless.send("0123456789");
    endless.send("abcdefX");
    server.logged("Client_3 disconnected: line longer than 16 bytes");
    let told = b"[Client_2] fine\n[Server] disconnected: line longer than 16 bytes\n";
    assert_eq!(endless.rest_or_reset(), told);
    let mut last = server.join(4);
    last.send("still here\n");
    assert_eq!(listener.line(), b"[Client_4] still here\n");
}

#[test]
fn who_has_stopped_sending_still_gets_what_was_sent_to_it() {
    let mut server = Server::start(&["broadcast"]);
    let mut reader = server.join(1);
    let mut sender = server.join(2);
    let line = ["y".repeat(999).as_bytes(), b"\n"].concat();
    for _ in 0..400 {
        sender.send(&line);
    }
    sender.send("last\n");
    // Its end is answered when all of its lines have been sent to the reader, which has not read any yet.
    sender.finish_sending();
    assert_eq!(sender.rest(), b"");
    reader.finish_sending();
    let expected =
        [[b"[Client_2] ", line.as_slice()].concat().repeat(400), b"[Client_2] last\n".to_vec()].concat();
    support::assert_same(&reader.rest(), &expected);
}
