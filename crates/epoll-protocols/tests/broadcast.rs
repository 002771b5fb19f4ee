//! Broadcast over real sockets: who gets which line, in what form and order, and what becomes of clients that
//! send too much, read too little or leave.
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
use support::{Client, End, Random, Server};

type Room<K = Linux> = Server<Broadcast, K>;

fn room(config: BroadcastConfig) -> Room {
    room_on(Linux::new().unwrap(), config)
}

fn room_on<K: Kernel>(kernel: K, config: BroadcastConfig) -> Room<K> {
    let limits = config.limits(Limits::default());
    Server::on(kernel, Broadcast::new(config), limits)
}

fn join<const N: usize, K: Kernel>(room: &mut Room<K>) -> [Client; N] {
    std::array::from_fn(|_| room.join())
}

#[test]
fn clients_are_numbered_from_one_and_a_number_is_not_used_again() {
    let mut room = room(BroadcastConfig::default());
    let [mut first, second, mut third] = join(&mut room);
    third.push(b"from the third\n");
    assert_eq!(room.line(&mut first), "[Client_3] from the third\n");
    drop(second);
    room.until("the second to leave", |room| room.reactor.ctx().connections() == 2);
    // It gets the slot of the second, but a number of its own.
    let mut fourth = room.join();
    fourth.push(b"from the fourth\n");
    assert_eq!(room.line(&mut first), "[Client_4] from the fourth\n");
    first.push(b"from the first\n");
    assert_eq!(room.line(&mut third), "[Client_4] from the fourth\n");
    assert_eq!(room.line(&mut third), "[Client_1] from the first\n");
}

#[test]
fn a_sender_does_not_hear_itself_and_a_lone_one_speaks_to_nobody() {
    let mut room = room(BroadcastConfig::default());
    let mut first = room.join();
    room.send(&mut first, b"is anyone there?\n");
    room.settle();
    let mut second = room.join();
    first.push(b"one\n");
    second.push(b"two\n");
    assert_eq!(room.line(&mut first), "[Client_2] two\n");
    assert_eq!(room.line(&mut second), "[Client_1] one\n");
    room.settle();
    first.pull(64);
    second.pull(64);
    assert_eq!((first.rest(), second.rest()), (String::new(), String::new()));
}

#[test]
fn any_byte_but_newline_is_passed_on_and_a_line_may_be_empty() {
    let mut room = room(BroadcastConfig::default());
    let [mut sender, mut receiver] = join(&mut room);
    let every_byte: Vec<u8> = (0..=u8::MAX).filter(|byte| *byte != b'\n').collect();
    let lines: [&[u8]; 5] = [b"", &every_byte, b"\r", b"[Client_9] no", b""];
    let sent = [lines.join(&b'\n'), b"\n".to_vec()].concat();
    let expected: Vec<u8> = lines.iter().flat_map(|line| [b"[Client_1] ", *line, b"\n"].concat()).collect();
    sender.push(&sent);
    room.until("all lines", |_| {
        receiver.pull(4096);
        receiver.len() >= expected.len()
    });
    assert_eq!(receiver.rest_bytes(), expected);
}

#[test]
fn lines_of_many_senders_cut_anywhere_arrive_whole_and_in_order() {
    const SENDERS: usize = 8;
    const LINES: usize = 150;
    for seed in 1..=5 {
        let mut random = Random::new(seed);
        let mut room = room(BroadcastConfig::default());
        let mut clients: [Client; SENDERS] = join(&mut room);
        let lines: Vec<Vec<String>> = (0..SENDERS)
            .map(|_| (0..LINES).map(|n| format!("{n} {}", "x".repeat(random.below(300)))).collect())
            .collect();
        let streams: Vec<String> = lines.iter().map(|lines| lines.join("\n") + "\n").collect();
        let mut sent = [0; SENDERS];
        while let Some(most) = streams.iter().zip(sent).map(|(stream, sent)| stream.len() - sent).max()
            && most > 0
        {
            let sender = random.below(SENDERS);
            let left = &streams[sender].as_bytes()[sent[sender]..];
            let cut = (1 + random.below(700)).min(left.len());
            sent[sender] += clients[sender].push(&left[..cut]);
            if random.below(4) == 0 {
                room.turn(std::time::Duration::ZERO);
                clients.iter_mut().for_each(|client| {
                    client.pull(random.below(2000));
                });
            }
        }
        for (receiver, client) in clients.iter_mut().enumerate() {
            let mut heard = vec![Vec::new(); SENDERS];
            for _ in 0..(SENDERS - 1) * LINES {
                let line = room.line(client);
                let (number, content) = line.strip_prefix("[Client_").unwrap().split_once("] ").unwrap();
                heard[number.parse::<usize>().unwrap() - 1].push(content.trim_end_matches('\n').to_owned());
            }
            for (sender, (heard, lines)) in heard.iter().zip(&lines).enumerate() {
                let expected: &[String] = if sender == receiver { &[] } else { lines };
                assert!(heard == expected, "seed {seed}: {receiver} heard {sender} say {heard:?}");
            }
        }
    }
}

#[test]
fn all_receivers_share_one_buffer() {
    let kernel = Watched::new();
    let sends = kernel.sends.clone();
    let mut room = room_on(kernel, BroadcastConfig::default());
    let [mut sender, mut one, mut two, mut three] = join(&mut room);
    // Long enough that sharing it costs less than copying it.
    let line = "x".repeat(5000);
    sender.push(format!("{line}\n").as_bytes());
    for receiver in [&mut one, &mut two, &mut three] {
        assert_eq!(room.line(receiver), format!("[Client_1] {line}\n"));
    }
    // Until the end of the turn it waits for all three: three copies could not lie in one place.
    let pieces = sends.pieces.take();
    assert_eq!(pieces.len(), 3, "{pieces:?}");
    assert!(pieces.iter().all(|piece| *piece == pieces[0]), "{pieces:?}");
}

#[test]
fn a_line_of_the_limit_is_passed_on_and_a_longer_one_closes_its_sender_alone() {
    const LIMIT: usize = 100;
    let longest = "x".repeat(LIMIT);
    let too_long = "x".repeat(LIMIT + 1);
    // In one piece, without its newline, and in two pieces.
    for pieces in
        [[format!("{too_long}\n").as_str(), ""], [&too_long, ""], [&longest, "x"], [&too_long[1..], "xx\n"]]
    {
        let mut room = room(BroadcastConfig { line_limit: LIMIT, ..BroadcastConfig::default() });
        let [mut sender, mut receiver, mut third] = join(&mut room);
        sender.push(format!("{longest}\n").as_bytes());
        assert_eq!(room.line(&mut receiver), format!("[Client_1] {longest}\n"));
        third.push(b"before\n");
        room.settle();
        for piece in pieces {
            sender.push(piece.as_bytes());
            room.settle();
        }
        let ending = room.rest(&mut sender);
        let told = "[Client_3] before\n[Server] disconnected: line longer than 100 bytes\n".to_owned();
        assert_eq!(ending, (told, End::Finished), "{pieces:?}");
        third.push(b"after\n");
        assert_eq!(room.line(&mut receiver), "[Client_3] before\n");
        assert_eq!(room.line(&mut receiver), "[Client_3] after\n", "{pieces:?}");
        assert_eq!(room.reactor.handler().metrics().read().too_long, 1);
    }
}

#[test]
fn lines_before_one_that_is_too_long_are_passed_on_and_those_behind_it_are_not() {
    let mut room = room(BroadcastConfig { line_limit: 4, ..BroadcastConfig::default() });
    let [mut sender, mut receiver] = join(&mut room);
    sender.push(b"1\n22\n55555\n4444\n");
    let told = "[Server] disconnected: line longer than 4 bytes\n".to_owned();
    assert_eq!(room.rest(&mut sender), (told, End::Finished));
    drop(sender);
    let mut third = room.join();
    third.push(b"end\n");
    for expected in ["[Client_1] 1\n", "[Client_1] 22\n", "[Client_3] end\n"] {
        assert_eq!(room.line(&mut receiver), expected);
    }
}

#[test]
fn one_that_is_slow_and_says_too_much_is_told_of_its_gap_and_then_of_its_end() {
    for (fitting, skipped) in [(5, 0), (2, 2)] {
        let kernel = Watched::new();
        let sends = kernel.sends.clone();
        let receiver_limit = 20 * fitting;
        let slow_receivers = SlowReceivers::Drop;
        let config = BroadcastConfig { line_limit: 8, receiver_limit, slow_receivers };
        let mut room = room_on(kernel, config);
        let [mut sender, mut rude] = join(&mut room);
        sends.held_back.set(true);
        for _ in 0..fitting + skipped {
            sender.push(LINE);
            room.settle();
        }
        assert_eq!(room.reactor.ctx().buffered(), receiver_limit);
        sends.held_back.set(false);
        // The kernel tells that there is room along with this.
        rude.push(b"xxxxxxxxx\n");
        let gap = if skipped == 0 { String::new() } else { format!("[Server] {skipped} lines skipped\n") };
        let end = "[Server] disconnected: line longer than 8 bytes\n";
        let told = "[Client_1] xxxxxxxx\n".repeat(fitting) + &gap + end;
        assert_eq!(room.rest(&mut rude), (told, End::Finished));
    }
}

#[test]
fn an_unfinished_line_is_dropped_when_its_sender_leaves() {
    let leave: [fn(&Client); 2] = [Client::finish, Client::reset];
    for leave in leave {
        let mut room = room(BroadcastConfig::default());
        let [mut sender, mut receiver, mut third] = join(&mut room);
        sender.push(b"finished\nunfinis");
        room.settle();
        leave(&sender);
        drop(sender);
        room.until("the sender to leave", |room| room.reactor.ctx().connections() == 2);
        third.push(b"end\n");
        assert_eq!(room.line(&mut receiver), "[Client_1] finished\n");
        assert_eq!(room.line(&mut receiver), "[Client_3] end\n");
        assert_eq!(room.reactor.ctx().buffered(), 0);
    }
}

#[test]
fn what_a_client_said_before_it_left_is_passed_on() {
    let mut room = room(BroadcastConfig::default());
    let [mut sender, mut receiver] = join(&mut room);
    let said = "a line\n".repeat(1000);
    room.send_to_readers(&mut sender, said.as_bytes(), &mut [&mut receiver]);
    sender.finish();
    assert_eq!(room.rest(&mut sender), (String::new(), End::Finished));
    for _ in 0..1000 {
        assert_eq!(room.line(&mut receiver), "[Client_1] a line\n");
    }
}

#[test]
fn those_who_leave_while_lines_come_do_not_disturb_the_others() {
    let mut room = room(BroadcastConfig::default());
    let [mut sender, mut receiver, mut quitter, mut resetter, mut finisher] = join(&mut room);
    for number in 0..2000 {
        let line = format!("{number} {}\n", "x".repeat(1000));
        room.send_to_readers(&mut sender, line.as_bytes(), &mut [&mut receiver]);
        match number {
            // With some of it read and some not.
            500 => drop(std::mem::replace(&mut quitter, room.join())),
            1000 => {
                resetter.pull(5000);
                resetter.reset();
                drop(std::mem::replace(&mut resetter, room.join()));
            }
            1500 => finisher.finish(),
            _ => (),
        }
        quitter.pull(1 << 16);
        resetter.pull(1 << 16);
        finisher.pull(1 << 16);
    }
    for number in 0..2000 {
        assert!(room.line(&mut receiver).starts_with(&format!("[Client_1] {number} x")), "{number}");
    }
    // Closed after what was on its way: whole lines, without a gap.
    let (heard, end) = room.rest(&mut finisher);
    assert_eq!(end, End::Finished);
    assert!(heard.ends_with('\n') && heard.lines().count() >= 1500, "{}", heard.lines().count());
    for (number, line) in heard.lines().enumerate() {
        assert!(line.starts_with(&format!("[Client_1] {number} x")), "{number}");
    }
}

/// Ten bytes as they are received: `[Client_1] xxxxxxxx` and a newline are 20.
const LINE: &[u8] = b"xxxxxxxx\n";

#[test]
fn the_limit_of_a_receiver_is_exact() {
    for (receiver_limit, fitting) in [(100, 5), (99, 4)] {
        for skipped in [0, 1, 3] {
            let kernel = Watched::new();
            let sends = kernel.sends.clone();
            let slow_receivers = SlowReceivers::Drop;
            let config = BroadcastConfig { receiver_limit, slow_receivers, ..BroadcastConfig::default() };
            let mut room = room_on(kernel, config);
            let [mut sender, mut slow] = join(&mut room);
            sends.held_back.set(true);
            for number in 1..=fitting + skipped {
                sender.push(LINE);
                room.settle();
                assert_eq!(room.reactor.ctx().buffered(), 20 * number.min(fitting));
            }
            sends.held_back.set(false);
            // The kernel tells that there is room along with this.
            slow.push(b"\n");
            for _ in 0..fitting {
                assert_eq!(room.line(&mut slow), "[Client_1] xxxxxxxx\n");
            }
            if skipped > 0 {
                assert_eq!(room.line(&mut slow), format!("[Server] {skipped} lines skipped\n"));
            }
            sender.push(b"end\n");
            assert_eq!(room.line(&mut slow), "[Client_1] end\n");
        }
    }
}

#[test]
fn one_line_above_its_limit_disconnects_a_receiver_and_no_other() {
    for (receiver_limit, fitting) in [(100, 5), (99, 4)] {
        let kernel = Watched::new();
        let sends = kernel.sends.clone();
        let mut room = room_on(kernel, BroadcastConfig { receiver_limit, ..BroadcastConfig::default() });
        let [mut sender, mut slow] = join(&mut room);
        sends.held_back.set(true);
        for _ in 0..fitting {
            sender.push(LINE);
            room.settle();
            assert_eq!(room.reactor.ctx().connections(), 2);
        }
        sender.push(LINE);
        room.settle();
        assert_eq!(room.reactor.ctx().connections(), 1);
        assert_eq!(room.rest(&mut slow).0, "", "what was waiting is dropped");
        let counted = room.reactor.handler().metrics().read();
        assert_eq!((counted.lines, counted.deliveries), (fitting + 1, fitting));
        assert_eq!((counted.disconnected, counted.skipped, counted.lagging), (1, 0, 0));
    }
}

#[test]
fn several_lines_above_its_limit_in_one_turn_disconnect_a_receiver_once() {
    let kernel = Watched::new();
    let sends = kernel.sends.clone();
    let mut room = room_on(kernel, BroadcastConfig { receiver_limit: 100, ..BroadcastConfig::default() });
    let [mut sender, _slow] = join(&mut room);
    sends.held_back.set(true);
    sender.push(&LINE.repeat(20));
    room.settle();
    assert_eq!(room.reactor.ctx().connections(), 1);
    assert_eq!(room.reactor.handler().metrics().read().disconnected, 1);
}

#[test]
fn receivers_that_leave_or_whose_loop_is_no_more_do_not_lag() {
    for loop_ends in [false, true] {
        let kernel = Watched::new();
        let sends = kernel.sends.clone();
        let config = BroadcastConfig {
            receiver_limit: 100,
            slow_receivers: SlowReceivers::Drop,
            ..BroadcastConfig::default()
        };
        let mut room = room_on(kernel, config);
        let metrics = room.reactor.handler().metrics();
        let [mut sender, slow] = join(&mut room);
        sends.held_back.set(true);
        for _ in 0..7 {
            sender.push(LINE);
            room.settle();
        }
        let counted = metrics.read();
        assert_eq!((counted.deliveries, counted.skipped, counted.lagging), (5, 2, 1));
        if loop_ends {
            drop(room);
        } else {
            // An end would leave it what waits for it, for as long as it may take to read that.
            slow.reset();
            drop(slow);
            room.until("it to leave", |room| room.reactor.ctx().connections() == 1);
        }
        assert_eq!(metrics.read().lagging, 0, "{loop_ends}");
    }
}

#[test]
fn a_client_that_has_said_its_last_still_gets_what_waits_for_it() {
    let mut room = room(BroadcastConfig::default());
    let [mut sender, mut slow] = join(&mut room);
    let mut sent = 0;
    // Until some waits though the kernel has had time to take it.
    while room.reactor.ctx().buffered() == 0 {
        for _ in 0..50 {
            let line = format!("{sent} {}\n", "x".repeat(1990));
            room.send(&mut sender, line.as_bytes());
            sent += 1;
        }
        room.settle();
    }
    slow.finish();
    room.settle();
    let (heard, end) = room.rest(&mut slow);
    assert_eq!((account(&heard), end), ((sent, 0), End::Finished));
}

/// What a receiver of numbered lines makes of its gaps: the number of lines it got and the number it was told it
/// missed. Every gap must be announced, where it is, with its exact size.
fn account(received: &str) -> (usize, usize) {
    let (mut next, mut got, mut skipped) = (0, 0, 0);
    assert!(received.is_empty() || received.ends_with('\n'), "the last line is torn");
    for line in received.lines() {
        if let Some(notice) = line.strip_prefix("[Server] ") {
            let count: usize = notice.strip_suffix(" lines skipped").unwrap().parse().unwrap();
            assert!(count > 0);
            skipped += count;
            next += count;
        } else {
            let (number, padding) = line.strip_prefix("[Client_1] ").unwrap().split_once(' ').unwrap();
            assert_eq!(number.parse(), Ok(next), "a gap nobody told of");
            assert!(padding.len() < 2000 && padding.bytes().all(|byte| byte == b'x'), "a torn line: {line}");
            next += 1;
            got += 1;
        }
    }
    (got, skipped)
}

fn numbered(number: usize, random: &mut Random) -> String {
    format!("{number} {}\n", "x".repeat(random.below(2000)))
}

/// For a receiver of [`numbered`] lines that was at its `limit`: what waited is all the room there was for another
/// line, and at most `most`. The memory for it is that of whole lines, and 64 bytes for each.
fn peaks_are_within(room: &Room, limit: usize, most: usize) {
    const LONGEST: usize = 2100;
    assert!((limit - LONGEST..=most).contains(&room.peak_queued), "{} bytes were waiting", room.peak_queued);
    let lines = limit / 500;
    assert!(room.peak <= most + LONGEST + 64 * lines, "{} bytes were held", room.peak);
}

#[test]
fn a_slow_receiver_is_disconnected_and_the_others_miss_nothing() {
    const RECEIVER_LIMIT: usize = 64 * 1024;
    let mut random = Random::new(1);
    let config = BroadcastConfig { receiver_limit: RECEIVER_LIMIT, ..BroadcastConfig::default() };
    let mut room = room(config);
    let [mut sender, mut fast, mut slow] = join(&mut room);
    let mut sent = 0;
    while room.reactor.ctx().connections() == 3 {
        assert!(sent < 100_000, "it was never disconnected");
        let line = numbered(sent, &mut random);
        room.send_to_readers(&mut sender, line.as_bytes(), &mut [&mut fast]);
        sent += 1;
    }
    for _ in 0..100 {
        let line = numbered(sent, &mut random);
        room.send_to_readers(&mut sender, line.as_bytes(), &mut [&mut fast]);
        sent += 1;
    }
    room.settle();
    peaks_are_within(&room, RECEIVER_LIMIT, RECEIVER_LIMIT);
    while fast.pull(1 << 16) > 0 {}
    assert_eq!(account(&fast.rest()), (sent, 0));
    // What the slow one gets is a beginning, though perhaps not of whole lines.
    let (heard, _) = room.rest(&mut slow);
    let whole = &heard[..heard.rfind('\n').map_or(0, |at| at + 1)];
    assert_eq!(account(whole).1, 0);
    // And it can come back.
    let mut back = room.join();
    back.push(b"back\n");
    assert_eq!(room.line(&mut fast), "[Client_4] back\n");
}

#[test]
fn a_slow_receiver_misses_whole_lines_and_is_told_exactly_how_many_and_where() {
    const RECEIVER_LIMIT: usize = 64 * 1024;
    for seed in 1..=3 {
        let mut random = Random::new(seed);
        let config = BroadcastConfig {
            receiver_limit: RECEIVER_LIMIT,
            slow_receivers: SlowReceivers::Drop,
            ..BroadcastConfig::default()
        };
        let mut room = room(config);
        let [mut sender, mut fast, mut slow] = join(&mut room);
        let mut sent = 0;
        // Bursts longer than what the kernel holds, then some reading, so that it falls behind more than once.
        for burst in 0..4 {
            let burst_end = sent + if burst == 0 { 12_000 } else { 2000 };
            while sent < burst_end {
                let line = numbered(sent, &mut random);
                room.send_to_readers(&mut sender, line.as_bytes(), &mut [&mut fast]);
                sent += 1;
            }
            room.settle();
            let some = 1_000_000 + random.below(3_000_000);
            let target = slow.len() + some;
            room.until("the slow one to read some", |_| slow.pull(1 << 14) == 0 || slow.len() >= target);
        }
        // It reads the rest, and is told of the last gap though no line comes that could bring the news.
        room.read_all(&mut slow);
        let (got, skipped) = account(&slow.rest());
        assert_eq!(got + skipped, sent, "seed {seed}");
        assert!(skipped > 0, "seed {seed}: it never fell behind");
        let counted = room.reactor.handler().metrics().read();
        assert_eq!((counted.lines, counted.skipped), (sent as u64, skipped as u64));
        assert_eq!(counted.deliveries, (sent + got) as u64, "to both of them");
        assert_eq!((counted.disconnected, counted.lagging), (0, 0));
        while fast.pull(1 << 16) > 0 {}
        assert_eq!(account(&fast.rest()), (sent, 0), "seed {seed}");
        peaks_are_within(&room, RECEIVER_LIMIT, RECEIVER_LIMIT + 64);
        // It is a receiver like any other again.
        sender.push(b"end\n");
        assert_eq!(room.line(&mut slow), "[Client_1] end\n");
        assert_eq!(room.reactor.ctx().connections(), 3);
    }
}
