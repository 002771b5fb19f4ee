//! Echo over real sockets: every byte back and in order, whatever the limits, and no more held than they say.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use epoll_protocols::Echo;
use epoll_reactor::Limits;
use support::{Client, End, Server};

/// The byte at this place of what a client sends; no two stretches of a kilobyte are alike.
fn byte(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]
}

/// Sends `total` bytes as fast as the server takes them, reads whatever comes from the first turn in which
/// `may_read`, and checks every byte.
fn echo(
    server: &mut Server<Echo>,
    client: &mut Client,
    total: usize,
    mut may_read: impl FnMut(usize) -> bool,
) {
    let (mut sent, mut received) = (0, 0);
    let mut reading = false;
    let chunk = |from: usize| -> Vec<u8> { (from..total.min(from + (1 << 16))).map(byte).collect() };
    let mut next = chunk(0);
    server.until("all bytes to come back", |_| {
        let mut pushed = 0;
        while !next.is_empty() {
            let count = client.push(&next);
            pushed += count;
            sent += count;
            if count == next.len() {
                next = chunk(sent);
            } else {
                next.drain(..count);
                break;
            }
        }
        reading |= may_read(pushed);
        while reading && client.pull(1 << 16) > 0 {
            let bytes = client.rest_bytes();
            assert!(bytes.iter().enumerate().all(|(at, it)| *it == byte(received + at)), "after {received}");
            received += bytes.len();
        }
        received == total
    });
    client.finish();
    assert_eq!(server.rest(client), (String::new(), End::Finished), "nothing comes after the last byte");
}

#[test]
fn many_bytes_come_back_to_a_reader_that_starts_late() {
    // More than the kernel's buffers hold at their largest: 32 MiB for each reader, 4 MiB for each writer.
    const TOTAL: usize = 96 << 20;
    let limits = Limits::default();
    let bound = limits.output_high_water + limits.read_buffer;
    let mut server = Server::new(Echo, limits);
    let mut client = server.join();
    let (mut stuck, mut most) = (0, 0);
    echo(&mut server, &mut client, TOTAL, |pushed| {
        // Nothing has moved for some turns: the server has stopped reading.
        stuck = if pushed == 0 { stuck + 1 } else { 0 };
        most = most.max(stuck);
        stuck == 20
    });
    assert!(most >= 20, "the server took everything without being read");
    assert!(server.peak <= bound, "{} bytes were buffered, more than {bound}", server.peak);
    assert!(server.peak > 0, "the client was never late");
    assert_eq!(server.reactor.ctx().buffered(), 0);
}

#[test]
fn limits_smaller_than_one_read_do_not_lose_a_byte() {
    // The read buffer is 64 KiB. In the last row nothing is ever above the high water mark.
    for (output, high, low) in [(1000, 500, 100), (2, 1, 0), (4096, 4095, 4094), (1000, 1000, 0)] {
        let limits = Limits { output, output_high_water: high, output_low_water: low, ..Limits::default() };
        let mut server = Server::new(Echo, limits);
        let mut client = server.join();
        let total = if output == 2 { 3000 } else { 300_000 };
        echo(&mut server, &mut client, total, |_| true);
        // What was read and does not fit yet waits beside the output.
        assert!(server.peak <= output + (64 << 10), "{output} {high} {low}: {}", server.peak);
    }
}

#[test]
fn bytes_that_come_before_the_end_are_answered_before_the_end() {
    let mut server = Server::new(Echo, Limits::default());
    let mut client = server.join();
    client.push(b"last words\0\n");
    client.finish();
    assert_eq!(server.rest(&mut client), ("last words\0\n".to_owned(), End::Finished));
}

#[test]
fn bytes_that_wait_at_the_end_are_answered_too() {
    let mut server = Server::new(Echo, Limits::default());
    let mut client = server.join();
    let mut sent = Vec::new();
    // Until some waits though the kernel has had time to take it.
    while server.reactor.ctx().buffered() == 0 {
        let piece: Vec<u8> = (sent.len()..sent.len() + (1 << 16)).map(byte).collect();
        server.send(&mut client, &piece);
        server.settle();
        sent.extend(piece);
    }
    client.finish();
    server.settle();
    server.until("the end", |_| {
        while client.pull(1 << 16) > 0 {}
        client.ended.is_some()
    });
    assert!(client.rest_bytes() == sent);
    assert_eq!(client.ended, Some(End::Finished));
}

#[test]
fn each_client_gets_its_own_bytes() {
    let mut server = Server::new(Echo, Limits::default());
    let mut clients: Vec<Client> = (0..20).map(|_| server.join()).collect();
    for round in 0..50 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.push(format!("{round} of {number}\n").as_bytes());
        }
    }
    for (number, client) in clients.iter_mut().enumerate() {
        for round in 0..50 {
            assert_eq!(server.line(client), format!("{round} of {number}\n"));
        }
    }
}

/// Has `client` send without reading until the server reads no more of it; returns what it has sent.
fn send_until_stuck(server: &mut Server<Echo>, client: &mut Client) -> Vec<u8> {
    let chunk: Vec<u8> = (0..1 << 16).map(byte).collect();
    let mut sent = Vec::new();
    let mut stuck = 0;
    server.until("the server to stop reading", |_| {
        let count = client.push(&chunk);
        sent.extend_from_slice(&chunk[..count]);
        stuck = if count == 0 { stuck + 1 } else { 0 };
        stuck == 20
    });
    sent
}

#[test]
fn when_all_memory_is_in_use_the_one_that_holds_most_goes_and_whoever_reads_is_served() {
    const MEMORY: usize = 64 << 10;
    let limits = Limits {
        memory: MEMORY,
        read_buffer: 4 << 10,
        // One client alone cannot use up the memory: its share is this, one read, and what of a piece of 16 KiB
        // has been written. Two can.
        output_high_water: 34 << 10,
        output_low_water: 1 << 10,
        ..Limits::default()
    };
    let mut server = Server::new(Echo, limits);
    let mut greedy = server.join();
    let sent = send_until_stuck(&mut server, &mut greedy);
    let held = server.reactor.ctx().buffered();
    assert!(held >= 34 << 10, "only {held} bytes are held");

    // More than what is left of the memory, of one that reads.
    let mut reader = server.join();
    let said: Vec<u8> = (0..2 * MEMORY).map(byte).collect();
    let mut pushed = 0;
    server.until("the echo", |_| {
        pushed += reader.push(&said[pushed..]);
        while reader.pull(1 << 16) > 0 {}
        assert_eq!(reader.ended, None);
        reader.len() == said.len()
    });
    assert!(reader.rest_bytes() == said);
    assert_eq!(server.reactor.ctx().connections(), 2);

    // Another that does not read, for whom there is too little memory beside the first: that one goes.
    let mut other = server.join();
    let others = send_until_stuck(&mut server, &mut other);
    assert_eq!((server.reactor.ctx().connections(), server.reactor.ctx().counters().closed), (2, 1));
    let (_, end) = server.rest(&mut greedy);
    assert!(end == End::Finished || end == End::Reset);
    assert!(server.peak <= MEMORY, "{}", server.peak);
    server.until("everything to come back to the other", |_| {
        while other.pull(1 << 16) > 0 {}
        assert_eq!(other.ended, None);
        other.len() == others.len()
    });
    assert!(other.rest_bytes() == others);
    assert!(sent.len() > held, "the first, too, had got some of it back");
    assert_eq!(server.reactor.ctx().counters().sends_refused, 0);
    let mut later = server.join();
    later.push(b"hello\n");
    assert_eq!(server.line(&mut later), "hello\n");
    server.settle();
    assert_eq!(server.reactor.ctx().buffered(), 0);
}
