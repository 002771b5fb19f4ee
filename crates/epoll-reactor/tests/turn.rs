//! The turn: everybody gets a share of it, and it makes no call too many.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use epoll_reactor::{ConnId, Ctx, Interest, Limits, SourceId};
use support::{Call, Controls, Harness, KIB, Method, Peer, Script, pattern};

#[test]
fn a_flood_does_not_keep_a_quiet_connection_waiting() {
    let limits = Limits { read_buffer: 4 * KIB, read_budget: 16 * KIB, ..Limits::default() };
    let mut harness = Harness::with(Script::default().data(|_, _, input| input.len()), limits);
    let [(mut flood, flooding), (mut quiet, quiet_id)] = harness.open_many();
    // More than ten turns' worth, all there before the loop looks.
    let flooded = flood.write_some(&pattern(512 * KIB));
    assert!(flooded > 160 * KIB);
    harness.turn_for(Duration::from_secs(1));
    quiet.say(b"hello");
    let turns = harness.ctx().counters().turns;
    harness.until("the quiet one's input", |script| !script.inputs(quiet_id).is_empty());
    assert!(harness.ctx().counters().turns - turns <= 2);
    let so_far: usize = harness.script().inputs(flooding).iter().map(|input| input.len()).sum();
    assert!(so_far <= 4 * (16 + 4) * KIB, "{so_far} bytes");
    // No more edges come for what is left of the flood: the ready list brings it.
    harness.until("all of the flood", |script| {
        script.inputs(flooding).iter().map(|input| input.len()).sum::<usize>() == flooded
    });
}

#[test]
fn a_turn_reads_no_more_than_its_budget_though_an_edge_comes_to_one_that_is_waiting_its_turn() {
    let limits = Limits { read_buffer: KIB, read_budget: 4 * KIB, ..Limits::default() };
    let mut harness = Harness::with(Script::default().data(|_, _, input| input.len()), limits);
    let (mut peer, _) = harness.open();
    harness.write(&mut peer, &pattern(64 * KIB));
    for _ in 0..10 {
        let before = harness.ctx().counters().bytes_received;
        peer.say(b"x");
        harness.turn();
        assert_eq!(harness.ctx().counters().bytes_received - before, 4 * KIB as u64);
    }
}

#[test]
fn two_floods_take_turns() {
    let limits = Limits { read_buffer: KIB, read_budget: KIB, ..Limits::default() };
    let mut harness = Harness::with(Script::default().data(|_, _, input| input.len()), limits);
    let [(mut first, a), (mut second, b)] = harness.open_many();
    first.say(&pattern(20 * KIB));
    second.say(&pattern(20 * KIB));
    harness.until("all input", |script| script.inputs(a).len() + script.inputs(b).len() == 40);
    let order: Vec<ConnId> = harness
        .script()
        .calls
        .iter()
        .filter_map(|it| if let Call::Data(id, _) = it { Some(*id) } else { None })
        .collect();
    let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes >= 30, "{changes} changes in {order:?}");
}

#[test]
fn a_request_costs_one_read_and_one_write_and_registers_nothing() {
    let mut harness = Harness::new(Script::default());
    let (mut peer, _) = harness.open();
    harness.settle();
    let calls = |harness: &Harness| {
        let counts = [Method::Recv, Method::Send, Method::Writev, Method::Add, Method::Delete, Method::Read];
        counts.map(|method| harness.kernel.count(method))
    };
    let before = calls(&harness);
    for _ in 0..100 {
        peer.say(b"ping");
        assert_eq!(harness.receive(&mut peer, 4), b"ping");
    }
    let after = calls(&harness);
    let difference: Vec<usize> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(difference, [100, 100, 0, 0, 0, 0]);
}

#[test]
fn a_connection_is_registered_once_in_its_life() {
    let mut harness = Harness::new(Script::default());
    let added = harness.kernel.count(Method::Add);
    let (mut peer, id) = harness.open();
    peer.say(b"x");
    harness.receive(&mut peer, 1);
    harness.ctx().pause_reading(id);
    harness.settle();
    harness.ctx().resume_reading(id);
    peer.finish();
    harness.closed(id);
    assert_eq!((harness.kernel.count(Method::Add) - added, harness.kernel.count(Method::Delete)), (1, 1));
}

#[test]
fn what_a_callback_sends_goes_out_as_one() {
    let mut harness = Harness::new(Script::default().data(|ctx, id, input| {
        for byte in input {
            assert!(ctx.send(id, &[*byte]).is_accepted());
        }
        input.len()
    }));
    let (mut peer, _) = harness.open();
    let writes = harness.kernel.writes();
    peer.say(b"many little answers");
    assert_eq!(harness.receive(&mut peer, 19), b"many little answers");
    assert_eq!(harness.kernel.writes() - writes, 1);
}

#[test]
fn a_broadcast_costs_one_write_a_receiver_whatever_the_number_of_messages() {
    let script = Script::default().message(|ctx: &mut Ctx, number| {
        let shared = Bytes::from(number.to_be_bytes().to_vec());
        for index in 0..ctx.connections() {
            let id = ConnId::from_u64(1 << 32 | index as u64);
            assert!(ctx.send_shared(id, shared.clone()).is_accepted());
            assert!(ctx.send(id, b"+").is_accepted());
        }
    });
    let mut harness = Harness::new(script);
    let mut peers: [(Peer, ConnId); 5] = harness.open_many();
    let writes = harness.kernel.writes();
    let remote = harness.remote();
    (0..20).for_each(|number| remote.send(number).unwrap());
    let expected: Vec<u8> = (0..20_u64).flat_map(|it| [it.to_be_bytes().as_slice(), b"+"].concat()).collect();
    for (peer, _) in &mut peers {
        assert_eq!(harness.receive(peer, expected.len()), expected);
    }
    assert_eq!(harness.kernel.writes() - writes, 5);
}

#[test]
fn more_connections_than_there_is_room_for_events_are_all_served() {
    let mut harness = Harness::new(Script::default());
    let mut peers: Vec<Peer> = (0..600).map(|_| harness.connect()).collect();
    harness.until("all open", |script| script.opened().len() == 600);
    peers.iter_mut().for_each(|peer| peer.say(b"x"));
    let turns = harness.ctx().counters().turns;
    harness.until("all input", |script| script.count(|call| matches!(call, Call::Data(..))) == 600);
    assert!(harness.ctx().counters().turns - turns <= 4);
    for peer in &mut peers {
        assert_eq!(harness.receive(peer, 1), b"x");
    }
}

#[test]
fn an_interrupted_call_is_made_again() {
    let mut harness = Harness::new(Script::default());
    let (mut peer, id) = harness.open();
    for method in [Method::Recv, Method::Send, Method::Wait] {
        harness.kernel.fail(method, epoll_reactor::Errno::EINTR, 3);
    }
    peer.say(b"still here");
    assert_eq!(harness.receive(&mut peer, 10), b"still here");
    assert_eq!(harness.script().closed(id), None);
}

#[test]
fn what_is_asked_for_between_turns_is_done_in_the_next_one_without_a_wait() {
    let requests: [fn(&mut Ctx, ConnId, SourceId); 9] = [
        |ctx, id, _| assert!(ctx.send(id, b"x").is_accepted()),
        |ctx, id, _| ctx.close_now(id),
        |ctx, id, _| ctx.close_after_flush(id),
        |ctx, id, _| ctx.shut_down_output(id),
        |ctx, id, _| ctx.resume_reading(id),
        |ctx, id, _| ctx.read_again(id),
        |ctx, _, source| ctx.unwatch(source),
        |ctx, id, _| assert!(ctx.connect(ctx.peer_address(id).unwrap()).is_some()),
        |ctx, _, _| ctx.drain(Duration::from_secs(1)),
    ];
    for (index, request) in requests.into_iter().enumerate() {
        let mut harness = Harness::new(Script::default());
        let (_peer, id) = harness.open();
        let (reader, _writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let source = harness.reactor.watch(reader, Interest::Readable).unwrap();
        harness.ctx().pause_reading(id);
        harness.settle();
        request(harness.ctx(), id, source);
        harness.reactor.turn(Some(support::PATIENCE)).unwrap();
        assert_eq!(harness.kernel.last_timeout.get(), Some(Duration::ZERO), "request {index}");
    }
}

#[test]
fn a_turn_counts_the_time_of_its_callbacks_and_not_that_of_its_wait() {
    let kernel: Rc<OnceCell<Rc<Controls>>> = Rc::default();
    let inside = Rc::clone(&kernel);
    let script = Script::default().data(move |_, _, input| {
        inside.get().unwrap().advance(Duration::from_millis(u64::from(input[0])));
        input.len()
    });
    let mut harness = Harness::new(script);
    let controls = kernel.get_or_init(|| Rc::clone(&harness.kernel));
    let (mut peer, id) = harness.open();
    harness.stop_clock();
    let counters = harness.ctx().counters();
    for milliseconds in [30, 50, 20] {
        controls.advance(Duration::from_secs(5));
        peer.say(&[milliseconds]);
        let inputs = harness.script().inputs(id).len();
        harness.until("the input", |script| script.inputs(id).len() > inputs);
    }
    let after = harness.ctx().counters();
    assert_eq!(after.busy - counters.busy, Duration::from_millis(100));
    assert_eq!(after.longest_turn, Duration::from_millis(50).max(counters.longest_turn));
}

#[test]
fn the_clock_is_read_twice_in_a_turn_and_once_if_nothing_was_to_be_done() {
    let mut harness = Harness::new(Script::default());
    let (mut peer, id) = harness.open();
    harness.settle();
    let readings = |harness: &mut Harness| {
        let before = harness.kernel.clock_readings.get();
        harness.reactor.turn(Some(Duration::ZERO)).unwrap();
        harness.kernel.clock_readings.get() - before
    };
    let spent = harness.ctx().counters().busy;
    assert_eq!(readings(&mut harness), 1);
    assert_eq!(harness.ctx().counters().busy, spent);
    peer.say(b"an event");
    assert_eq!(readings(&mut harness), 2);
    harness.ctx().read_again(id);
    assert_eq!(readings(&mut harness), 2, "something was left over");
    harness.stop_clock();
    harness.ctx().set_timer(id, Duration::from_secs(1));
    assert_eq!(readings(&mut harness), 1);
    harness.kernel.advance(Duration::from_secs(1));
    assert_eq!(readings(&mut harness), 2, "a deadline has passed");
}
