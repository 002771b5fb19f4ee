//! One line to many: whoever reads gets it, whatever the memory of all, and nobody waits long for it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use epoll_protocols::{Broadcast, BroadcastConfig, SlowReceivers};
use epoll_reactor::{Kernel, Limits, Linux};
use support::kernel::Watched;
use support::{Client, Server};

type Room<K = Linux> = Server<Broadcast, K>;

fn room(config: BroadcastConfig) -> Room {
    room_on(Linux::new().unwrap(), config, Limits::default())
}

fn room_on<K: Kernel>(kernel: K, config: BroadcastConfig, limits: Limits) -> Room<K> {
    let limits = config.limits(limits);
    Server::on(kernel, Broadcast::new(config), limits)
}

/// All that was sent reaches those that read all the time, and nobody is disconnected.
fn all_receive<K: Kernel>(room: &mut Room<K>, receivers: &mut [Client], expected: &[u8]) {
    room.until("all lines for all", |_| {
        receivers.iter_mut().for_each(|receiver| while receiver.pull(1 << 16) > 0 {});
        receivers.iter().all(|receiver| receiver.len() >= expected.len() || receiver.ended.is_some())
    });
    for receiver in receivers {
        assert_eq!(receiver.ended, None);
        assert!(receiver.rest_bytes() == expected);
    }
    assert_eq!(room.reactor.ctx().counters().closed, 0);
    assert_eq!(room.reactor.ctx().counters().sends_refused, 0);
}

#[test]
fn a_long_line_for_many_takes_no_more_memory_than_one() {
    // A quarter of what 50 copies would take.
    let limits = Limits { memory: 800 << 10, ..Limits::default() };
    let config = BroadcastConfig::default();
    let line = vec![b'x'; config.line_limit];
    let mut room = room_on(Linux::new().unwrap(), config, limits);
    let mut sender = room.join();
    let mut receivers: Vec<Client> = (0..50).map(|_| room.join()).collect();
    for _ in 0..5 {
        let mut said = [line.as_slice(), b"\n"].concat();
        let expected = [b"[Client_1] ", said.as_slice()].concat();
        while !said.is_empty() {
            said.drain(..sender.push(&said));
            room.turn(std::time::Duration::ZERO);
        }
        all_receive(&mut room, &mut receivers, &expected);
    }
    room.settle();
    assert_eq!(room.reactor.ctx().buffered(), 0);
}

#[test]
fn a_burst_of_tiny_lines_for_many_is_served_in_turns_of_bounded_work() {
    const RECEIVERS: usize = 200;
    const LINES: usize = 2000;
    // At most this many deliveries in a turn, and then the rest of one line's.
    const DELIVERIES: usize = 16 * 1024 + RECEIVERS;
    let mut room = room(BroadcastConfig::default());
    let mut sender = room.join();
    let mut receivers: Vec<Client> = (0..RECEIVERS).map(|_| room.join()).collect();
    room.settle();
    let said = "\n".repeat(LINES);
    assert_eq!(sender.push(said.as_bytes()), LINES);
    let expected = "[Client_1] \n".repeat(LINES);
    let mut turns = 0;
    while room.reactor.ctx().counters().bytes_sent < (expected.len() * RECEIVERS) as u64 {
        let before = room.reactor.ctx().counters().bytes_sent;
        room.turn(std::time::Duration::ZERO);
        let sent = usize::try_from(room.reactor.ctx().counters().bytes_sent - before).unwrap();
        assert!(sent <= DELIVERIES * "[Client_1] \n".len(), "{sent} bytes in one turn");
        turns += 1;
        assert!(turns < 1000, "no progress");
    }
    assert!(turns >= RECEIVERS * LINES / DELIVERIES, "{turns} turns");
    all_receive(&mut room, &mut receivers, expected.as_bytes());
}

#[test]
fn a_burst_for_many_does_not_keep_another_client_waiting() {
    let mut room = room(BroadcastConfig::default());
    let mut sender = room.join();
    let mut receivers: Vec<Client> = (0..200).map(|_| room.join()).collect();
    room.settle();
    sender.push("\n".repeat(5000).as_bytes());
    room.turn(std::time::Duration::from_secs(1));
    receivers[0].push(b"may I?\n");
    for _ in 0..3 {
        room.turn(std::time::Duration::ZERO);
    }
    // Not behind the whole burst.
    let mut heard = 0;
    room.until("its line", |_| {
        receivers[1].pull(1 << 16);
        while let Some(line) = receivers[1].take_line() {
            if line == "[Client_2] may I?\n" {
                return true;
            }
            heard += 1;
        }
        false
    });
    assert!(heard < 1000, "{heard} lines came before it");
}

/// Whether a receiver that reads everything gets it, when much comes for it in one turn.
fn survives_a_burst(config: BroadcastConfig, senders: usize, line: &str, lines: usize) {
    let mut room = room(config);
    let mut receiver = room.join();
    let mut senders: Vec<Client> = (0..senders).map(|_| room.join()).collect();
    let said = format!("{line}\n").repeat(lines);
    for sender in &mut senders {
        assert_eq!(sender.push(said.as_bytes()), said.len());
    }
    let prefixes = (2..).take(senders.len()).map(|number: usize| format!("[Client_{number}] ").len());
    let expected: usize = prefixes.map(|prefix| said.len() + lines * prefix).sum();
    room.read_all(&mut receiver);
    assert_eq!((receiver.len(), receiver.ended), (expected, None));
    assert_eq!(room.reactor.ctx().connections(), 1 + senders.len());
}

#[test]
fn a_burst_of_many_senders_is_not_slow_reading() {
    let config = BroadcastConfig { receiver_limit: 16 * 1024, ..BroadcastConfig::default() };
    survives_a_burst(config, 10, &"x".repeat(2000), 1);
}

#[test]
fn a_burst_of_one_sender_is_not_slow_reading() {
    let config = BroadcastConfig { receiver_limit: 16 * 1024, ..BroadcastConfig::default() };
    survives_a_burst(config, 1, &"x".repeat(2000), 20);
}

#[test]
fn a_burst_of_tiny_lines_is_not_slow_reading() {
    survives_a_burst(BroadcastConfig::default(), 1, "", 30_000);
}

#[test]
fn tiny_lines_wait_and_are_counted_like_long_ones() {
    // Fewer bytes than may wait, but many pieces.
    const LINES: usize = 40_000;
    let kernel = Watched::new();
    let sends = kernel.sends.clone();
    let config = BroadcastConfig { slow_receivers: SlowReceivers::Drop, ..BroadcastConfig::default() };
    assert!(LINES * "[Client_1] \n".len() < config.receiver_limit);
    let mut room = room_on(kernel, config, Limits::default());
    let (mut sender, mut slow) = (room.join(), room.join());
    sends.held_back.set(true);
    room.send(&mut sender, "\n".repeat(LINES).as_bytes());
    room.settle();
    sends.held_back.set(false);
    slow.push(b"\n");
    room.read_all(&mut slow);
    let heard = slow.rest();
    let got = heard.lines().filter(|line| *line == "[Client_1] ").count();
    assert_eq!(got, LINES, "and after them {:?}", heard.lines().last());
}

#[test]
fn lines_missed_because_all_together_hold_too_much_are_counted_and_told_too() {
    let kernel = Watched::new();
    let sends = kernel.sends.clone();
    let config = BroadcastConfig { slow_receivers: SlowReceivers::Drop, ..BroadcastConfig::default() };
    // A line that waits takes 2900 bytes: itself, 2836, and 64 for the reference to it. Three fit, with an eighth free; a
    // fourth would be more than what is lent, and so would a notice while it is there.
    let line = format!("{:x<2824}\n", "");
    let mut room = room_on(kernel, config, Limits { memory: 10_000, ..Limits::default() });
    let (mut sender, mut slow) = (room.join(), room.join());
    sends.held_back.set(true);
    for _ in 0..8 {
        sender.push(line.as_bytes());
        room.settle();
    }
    assert_eq!((room.peak, room.reactor.ctx().counters().closed), (3 * 2900, 0));
    sends.held_back.set(false);
    slow.push(b"\n");
    for _ in 0..3 {
        assert_eq!(room.line(&mut slow), format!("[Client_1] {line}"));
    }
    // Told at once, or in two parts, if a timer has found room for a notice meanwhile.
    let mut skipped = 0;
    while skipped < 5 {
        let notice = room.line(&mut slow);
        skipped += notice.split(' ').nth(1).and_then(|count| count.parse::<u32>().ok()).expect(&notice);
    }
    assert_eq!(skipped, 5);
}

#[test]
fn unfinished_lines_that_hold_the_memory_cost_no_receiver_its_connection() {
    // Some that have begun a long line hold nearly all of it; somebody says one to a crowd that reads.
    const BEGUN: usize = 17;
    let limits = Limits { memory: 1 << 20, ..Limits::default() };
    let mut room = room_on(Linux::new().unwrap(), BroadcastConfig::default(), limits);
    let mut sender = room.join();
    let mut receivers: Vec<Client> = (0..20).map(|_| room.join()).collect();
    let mut begun: Vec<Client> = (0..BEGUN).map(|_| room.join()).collect();
    for client in &mut begun {
        let before = room.reactor.ctx().counters().bytes_received;
        let mut rest = vec![b'x'; 61_000];
        room.until("the beginning", |room| {
            rest.drain(..client.push(&rest));
            room.reactor.ctx().counters().bytes_received - before == 61_000
        });
    }
    let said = [vec![b'y'; 60_000], vec![b'\n']].concat();
    let expected = [b"[Client_1] ", said.as_slice()].concat();
    // In one piece, so that it is nothing that waits before.
    assert_eq!(sender.push(&said), said.len());
    room.until("the line at all that read", |_| {
        receivers.iter_mut().for_each(|receiver| while receiver.pull(1 << 16) > 0 {});
        receivers.iter().all(|receiver| receiver.len() >= expected.len() || receiver.ended.is_some())
    });
    let ended = receivers.iter().filter(|receiver| receiver.ended.is_some()).count();
    assert_eq!(ended, 0, "of those that read are disconnected");
    assert!(receivers.iter_mut().all(|receiver| receiver.rest_bytes() == expected));
    // Of those that hold most, some had to go.
    let closed = room.reactor.ctx().counters().closed;
    assert!((1..BEGUN as u64).contains(&closed), "{closed}");
}
