//! Output for many connections at once: each turn writes its share of it, so that nobody waits for all of it, and what comes
//! meanwhile costs no write of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::io::Read;
use std::time::Duration;

use epoll_reactor::{ConnId, Ctx, Errno, Limits, Stopped};
use support::{Harness, KIB, Method, PATIENCE, Peer, Script};

/// What a turn writes to at its end, by default and if it has called no callback.
const SHARE: usize = 16;
/// For each callback, if those are more.
const PER_CALLBACK: usize = 4;
const MANY: usize = 40;

/// Queues `data` for everybody, as a callback of somebody else's would.
fn tell_all(ctx: &mut Ctx, data: &[u8]) {
    for index in 0..ctx.connections() {
        assert!(ctx.send(ConnId::from_u64(1 << 32 | index as u64), data).is_accepted());
    }
}

/// Writes of one turn.
fn written(harness: &mut Harness) -> usize {
    let before = harness.kernel.writes();
    harness.turn();
    harness.kernel.writes() - before
}

/// Without accepting, which calls callbacks.
fn with_peers(script: Script, limits: Limits) -> (Harness, [(Peer, ConnId); MANY]) {
    let mut harness = Harness::with(script, limits);
    let peers = harness.open_many();
    harness.settle();
    (harness, peers)
}

#[test]
fn what_is_said_while_many_are_written_to_shares_the_writes_that_are_to_come() {
    let (mut harness, mut peers) = with_peers(Script::default(), Limits::default());
    tell_all(harness.ctx(), b"a");
    assert_eq!(written(&mut harness), SHARE);
    tell_all(harness.ctx(), b"b");
    // Those that have the first must be written to again, behind the others, who get both at once.
    assert_eq!([(); 4].map(|()| written(&mut harness)), [SHARE, SHARE, MANY - 2 * SHARE, 0]);
    for (peer, _) in &mut peers {
        assert_eq!(harness.receive(peer, 2), b"ab");
    }
}

#[test]
fn turns_that_have_more_to_write_do_not_wait_and_one_that_has_little_needs_no_other() {
    let (mut harness, _peers) = with_peers(Script::default(), Limits::default());
    assert_eq!(Limits::default().flush_budget, SHARE);
    for (receivers, shares) in [(1, vec![1]), (SHARE, vec![SHARE]), (SHARE + 1, vec![SHARE, 1])] {
        for index in 0..receivers {
            let id = ConnId::from_u64(1 << 32 | index as u64);
            assert!(harness.ctx().send(id, b"a").is_accepted());
        }
        for share in shares {
            let before = harness.kernel.writes();
            harness.turn_for(PATIENCE);
            assert_eq!(harness.kernel.writes() - before, share);
            assert_eq!(harness.kernel.last_timeout.get(), Some(Duration::ZERO));
        }
        harness.turn_for(Duration::from_millis(1));
        assert_eq!(harness.kernel.last_timeout.get(), Some(Duration::from_millis(1)), "{receivers}");
    }
}

#[test]
fn everybody_has_a_turn_however_much_is_said() {
    let (mut harness, peers) = with_peers(Script::default(), Limits::default());
    let turns = MANY.div_ceil(SHARE);
    for _ in 0..turns {
        tell_all(harness.ctx(), b"a");
        assert_eq!(written(&mut harness), SHARE);
    }
    for (_, id) in peers {
        assert!(harness.ctx().queued(id) < turns, "{id} was never written to");
    }
}

#[test]
fn messages_and_inputs_are_not_kept_waiting_by_many_receivers() {
    let (mut harness, mut peers) = with_peers(Script::default(), Limits::default());
    tell_all(harness.ctx(), b"a");
    assert_eq!(written(&mut harness), SHARE);
    harness.remote().send(7).unwrap();
    assert_eq!(written(&mut harness), SHARE);
    assert_eq!(harness.script().messages(), [7], "before the last had its write");
    assert_eq!(written(&mut harness), MANY - 2 * SHARE);
    peers[0].0.say(b"ping");
    assert_eq!(harness.receive(&mut peers[0].0, 5), b"aping");
}

#[test]
fn a_turn_that_has_much_else_to_do_writes_the_more() {
    let script = Script::default().message(|ctx, _| tell_all(ctx, b"a"));
    let (mut harness, _peers) = with_peers(script, Limits::default());
    for messages in [1, 3, 5, 9, 12] {
        for number in 0..messages {
            harness.remote().send(number as u64).unwrap();
        }
        let share = (PER_CALLBACK * messages).clamp(SHARE, MANY);
        assert_eq!(written(&mut harness), share, "{messages} messages");
        harness.settle();
    }
}

#[test]
fn those_whose_sockets_are_full_take_nobodys_turn() {
    let (mut harness, peers) = with_peers(Script::default(), Limits::default());
    let full = MANY - SHARE;
    for (_, id) in &peers[..full] {
        harness.kernel.fail_for(*id, Method::Send, Errno::EAGAIN, 1);
        assert!(harness.ctx().send(*id, b"a").is_accepted());
    }
    harness.settle();
    tell_all(harness.ctx(), b"b");
    assert_eq!(written(&mut harness), SHARE);
    assert_eq!(written(&mut harness), 0);
    assert!(peers[full..].iter().all(|(_, id)| harness.ctx().queued(*id) == 0));
}

#[test]
fn all_is_written_at_once_where_memory_is_short_or_the_loop_drains() {
    let limits = Limits { memory: 2 * MANY * KIB, ..Limits::default() };
    let (mut harness, _peers) = with_peers(Script::default(), limits);
    tell_all(harness.ctx(), &[b'x'; KIB]);
    assert_eq!(written(&mut harness), SHARE, "half of the memory");
    harness.settle();
    tell_all(harness.ctx(), &[b'x'; KIB + 1]);
    assert_eq!(written(&mut harness), MANY, "more than half");
    tell_all(harness.ctx(), b"x");
    harness.ctx().drain(Duration::from_secs(1));
    assert_eq!(written(&mut harness), MANY, "draining");
}

#[test]
fn nobody_is_idle_who_is_still_to_be_written_to() {
    let idle = Duration::from_secs(600);
    let limits = Limits { idle_timeout: Some(idle), ..Limits::default() };
    let (mut harness, mut peers) = with_peers(Script::default(), limits);
    harness.stop_clock();
    let rest = Duration::from_secs(60);
    harness.kernel.advance(idle - rest);
    tell_all(harness.ctx(), b"a");
    assert_eq!(written(&mut harness), SHARE);
    harness.kernel.advance(rest);
    harness.turn();
    for (peer, id) in &mut peers {
        assert_eq!(harness.receive(peer, 1), b"a");
        assert_eq!(harness.script().closed(*id), None);
    }
}

#[test]
fn a_drain_without_grace_cuts_nobody_off_from_what_was_only_not_yet_written() {
    let (mut harness, mut peers) = with_peers(Script::default(), Limits::default());
    tell_all(harness.ctx(), b"a");
    assert_eq!(written(&mut harness), SHARE);
    harness.ctx().drain(Duration::ZERO);
    assert_eq!(harness.run_to_end(), Stopped::DeadlinePassed);
    for (peer, id) in &mut peers {
        let stats = harness.script().stats[id];
        assert_eq!((stats.bytes_sent, stats.bytes_unsent), (1, 0), "{id}");
        let mut received = Vec::new();
        assert!(peer.read_to_end(&mut received).is_ok());
        assert_eq!(received, b"a");
    }
}

#[test]
fn those_who_are_turned_away_keep_nobody_waiting() {
    let limits = Limits { connections_per_address: MANY, refusal: b"full", ..Limits::default() };
    let (mut harness, mut peers) = with_peers(Script::default(), limits);
    // More in each turn than its share: those of one turn must not pile up before the line of the next.
    let mut crowd = Vec::new();
    for _ in 0..3 {
        crowd.extend([(); 2 * SHARE].map(|()| harness.connect()));
        harness.turn();
    }
    let (peer, id) = &mut peers[0];
    assert!(harness.ctx().send(*id, b"a").is_accepted());
    harness.turn();
    assert_eq!(harness.ctx().queued(*id), 0);
    assert_eq!(harness.receive(peer, 1), b"a");
    assert_eq!(harness.ctx().counters().shed_by_address, crowd.len() as u64);
}

#[test]
fn those_whose_events_call_nothing_back_keep_nobody_waiting() {
    let silences: [fn(&mut Ctx, ConnId); 2] = [Ctx::close_after_flush, Ctx::pause_reading];
    for silence in silences {
        let (mut harness, mut peers) = with_peers(Script::default(), Limits::default());
        harness.stop_clock();
        let (silent, others) = peers.split_at_mut(MANY - SHARE - 1);
        for (_, id) in &*silent {
            silence(harness.ctx(), *id);
        }
        harness.settle();
        for (peer, _) in silent {
            peer.say(b"and another thing");
        }
        for (_, id) in &*others {
            assert!(harness.ctx().send(*id, b"a").is_accepted());
        }
        assert_eq!(written(&mut harness), others.len());
    }
}
