//! What can be known of a loop from outside: its numbers, at any time, and its connections, between two callbacks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use epoll_reactor::{
    CloseReason, ConnectionInfo, ConnectionState, Errno, Interest, Limits, ListOrder, LoopMetrics, LoopPhase,
    RemoteError, Stopped, monotonic_now,
};
use support::{Call, Harness, KIB, Method, PATIENCE, Script};

fn states(metrics: &LoopMetrics) -> BTreeMap<&'static str, u64> {
    let read = metrics.read();
    read.connections().filter(|(_, count)| *count > 0).map(|(state, count)| (state.name(), count)).collect()
}

fn closes(metrics: &LoopMetrics) -> BTreeMap<&'static str, u64> {
    let read = metrics.read();
    assert_eq!(read.closes().map(|(_, count)| count).sum::<u64>(), read.counters.closed);
    read.closes().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_loop_that_is_held_up_can_be_read_from_another_thread_with_all_it_has_done() {
    let (go_on, wait) = mpsc::channel::<()>();
    let script = Script::default().data(move |_, _, input| {
        wait.recv_timeout(PATIENCE).expect("the reader to have read");
        input.len()
    });
    let mut harness = Harness::new(script);
    let metrics = harness.reactor.metrics();
    assert_eq!(metrics.read().phase, LoopPhase::Starting);
    let before = monotonic_now();
    let (mut peer, id) = harness.open();
    let reader = thread::spawn(move || {
        let started = Instant::now();
        while metrics.read().counters.bytes_received < 5 {
            assert!(started.elapsed() < PATIENCE, "{:?}", metrics.read());
            thread::yield_now();
        }
        let read = metrics.read();
        let since = read.in_turn_since.expect("a turn is running");
        assert!(since >= before && since <= monotonic_now());
        assert_eq!(read.in_turn_for(since + Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!((read.phase, read.counters.accepted), (LoopPhase::Running, 1));
        go_on.send(()).unwrap();
        metrics
    });
    peer.say(b"hello");
    harness.until("the input", |script| !script.inputs(id).is_empty());
    let metrics = reader.join().unwrap();
    assert_eq!(metrics.read().in_turn_since, None, "between two turns");
    drop(harness);
    assert_eq!(metrics.read().phase, LoopPhase::Ended, "a loop that is no more can still be asked");
}

#[test]
fn connections_are_counted_in_their_states_and_ends_by_their_reasons() {
    let limits = Limits { connections: 3, refusal: b"full", ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let metrics = harness.reactor.metrics();
    let [(first, one), (second, two), (third, three)] = harness.open_many();
    assert_eq!(states(&metrics), BTreeMap::from([("open", 3)]));

    let mut refused = harness.connect();
    assert_eq!(harness.receive(&mut refused, 4), b"full");
    assert_eq!(states(&metrics), BTreeMap::from([("open", 3), ("refused", 1)]));
    drop(refused);
    harness.until_loop("its end", |_| states(&metrics) == BTreeMap::from([("open", 3)]));
    assert_eq!(closes(&metrics), BTreeMap::new(), "it was no connection of the handler's");

    // Neither peer reads or ends its side, so one is left with output and the other without.
    assert!(harness.ctx().send(one, &vec![0; 4 * 1024 * KIB]).is_accepted());
    harness.ctx().close_after_flush(one);
    harness.ctx().close_after_flush(two);
    harness.settle();
    assert_eq!(states(&metrics), BTreeMap::from([("flushing", 1), ("lingering", 1), ("open", 1)]));

    third.reset();
    assert_eq!(harness.closed(three), CloseReason::Reset);
    drop((first, second));
    harness.closed(one);
    harness.closed(two);
    assert_eq!(states(&metrics), BTreeMap::new());
    assert_eq!(closes(&metrics), BTreeMap::from([("local", 1), ("reset", 2)]));

    let gone = harness.address.clone();
    harness.ctx().drain(Duration::from_secs(5));
    assert_eq!(metrics.read().phase, LoopPhase::Draining);
    assert!(harness.ctx().connect(gone).is_none());
    assert_eq!(harness.run_to_end(), Stopped::Drained);
    assert_eq!(metrics.read().phase, LoopPhase::Ended);
}

#[test]
fn a_loop_that_dies_has_no_connections() {
    let mut harness = Harness::new(Script::default());
    let metrics = harness.reactor.metrics();
    let (_peer, id) = harness.open();
    harness.ctx().account(id, 12_345);
    harness.turn();
    assert_eq!((states(&metrics), metrics.read().buffered), (BTreeMap::from([("open", 1)]), 12_345));
    drop(harness);
    assert_eq!((states(&metrics), metrics.read().buffered), (BTreeMap::new(), 0));
}

#[test]
fn one_that_is_being_connected_is_in_a_state_of_its_own() {
    let mut harness = Harness::new(Script::default());
    let metrics = harness.reactor.metrics();
    let own = harness.address.clone();
    let id = harness.ctx().connect(own).unwrap();
    assert_eq!(states(&metrics), BTreeMap::from([("connecting", 1)]));
    harness.until("both ends", |script| script.opened().len() == 2);
    assert_eq!(states(&metrics), BTreeMap::from([("open", 2)]));
    harness.ctx().abort(id);
    harness.until_loop("both to end", |_| states(&metrics).is_empty());
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let mut harness = Harness::new(Script::default());
    let read = harness.ctx().metrics().read();
    let names: BTreeMap<_, _> = read.closes().collect();
    assert_eq!(names.len(), read.closes().count());
    for reason in [
        CloseReason::PeerClosed,
        CloseReason::Local,
        CloseReason::Reset,
        CloseReason::Error(epoll_reactor::Errno::ETIMEDOUT),
        CloseReason::ConnectFailed(epoll_reactor::Errno::ECONNREFUSED),
        CloseReason::IdleTimeout,
        CloseReason::ReadTimeout,
        CloseReason::WriteStalled,
        CloseReason::InputLimit,
        CloseReason::MemoryLimit,
        CloseReason::FileCutShort,
        CloseReason::Shutdown,
        CloseReason::HandlerPanicked,
    ] {
        assert!(names.contains_key(reason.name()), "{reason}");
    }
}

#[test]
fn what_waits_while_a_turn_takes_long_is_late_by_as_much() {
    let kernel = std::rc::Rc::<std::cell::OnceCell<std::rc::Rc<support::Controls>>>::default();
    let inside = std::rc::Rc::clone(&kernel);
    let script = Script::default().data(move |_, _, input| {
        inside.get().unwrap().advance(Duration::from_millis(30));
        input.len()
    });
    let mut harness = Harness::new(script);
    let controls = std::rc::Rc::clone(kernel.get_or_init(|| std::rc::Rc::clone(&harness.kernel)));
    let [(mut slow, one), (mut waiting, two)] = harness.open_many();
    harness.settle();
    harness.stop_clock();
    let metrics = harness.reactor.metrics();
    // Also makes the turn before one of no length.
    harness.turn();
    let before = metrics.read();

    slow.say(b"x");
    controls.advance(Duration::from_secs(5));
    harness.until("the slow one", |script| script.inputs(one).len() == 1);
    let blocked = metrics.read();
    let lag = blocked.poll_lag.since(&before.poll_lag);
    assert_eq!((lag.count(), lag.sum), (1, Duration::ZERO), "the loop was waiting for it");
    let turns = blocked.turn_duration.since(&before.turn_duration);
    assert_eq!((turns.count(), turns.sum), (1, Duration::from_millis(30)));

    waiting.say(b"y");
    harness.until("the one that waits", |script| script.inputs(two).len() == 1);
    let lag = metrics.read().poll_lag.since(&blocked.poll_lag);
    assert_eq!((lag.count(), lag.sum), (1, Duration::from_millis(30)));
}

#[test]
fn events_messages_and_timers_are_counted_once_each() {
    let mut harness =
        Harness::with(Script::default(), Limits { idle_timeout: Some(PATIENCE), ..Limits::default() });
    let (mut peer, id) = harness.open();
    harness.settle();
    harness.stop_clock();
    let before = harness.ctx().counters();
    peer.say(b"hello");
    harness.until("the input", |script| script.inputs(id).len() == 1);
    harness.settle();
    assert_eq!(harness.ctx().counters().events, before.events + 1);

    let remote = harness.remote();
    [1, 2].into_iter().for_each(|message| remote.send(message).unwrap());
    harness.until("the messages", |script| script.messages().len() == 2);
    assert_eq!(harness.ctx().counters().messages, 2);

    harness.ctx().set_timer(id, Duration::from_secs(1));
    harness.advance(Duration::from_secs(1));
    assert_eq!(harness.script().count(|call| matches!(call, Call::Timer(_))), 1);
    assert_eq!(harness.ctx().counters().timers_fired, 1);
    harness.advance(PATIENCE);
    assert_eq!(harness.closed(id), CloseReason::IdleTimeout);
    assert_eq!(harness.ctx().counters().timers_fired, 2);
}

#[test]
fn an_event_of_a_descriptor_that_was_let_go_is_counted_as_such() {
    let mut harness = Harness::new(Script::default());
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    // As long as this lives the kernel goes on reporting, if it is not told to stop.
    let _duplicate = reader.try_clone().unwrap();
    let source = harness.reactor.watch(reader, Interest::Readable).unwrap();
    harness.kernel.hold_duplicates.set(true);
    harness.ctx().unwatch(source);
    harness.settle();
    assert_eq!(harness.ctx().counters().stale_events, 0);
    nix::unistd::write(&writer, b"x").unwrap();
    harness.until_loop("the event", |it| it.ctx().counters().stale_events == 1);
    assert_eq!(harness.script().count(|call| matches!(call, Call::Ready(..))), 0);
}

#[test]
fn a_client_that_cannot_be_watched_is_counted_as_shed() {
    let mut harness = Harness::new(Script::default());
    for (number, errno) in [Errno::ENOSPC, Errno::EPERM].into_iter().enumerate() {
        harness.kernel.fail(Method::Add, errno, 1);
        let mut peer = harness.connect();
        let (received, _) = harness.receive_all(&mut peer);
        assert!(received.is_empty());
        let counted = harness.ctx().counters();
        assert_eq!((counted.shed, counted.accepted), (number as u64 + 1, 0), "{errno}");
    }
}

#[test]
fn memory_in_use_is_known_at_the_end_of_each_turn() {
    let mut harness = Harness::new(Script::default());
    let metrics = harness.reactor.metrics();
    let (_peer, id) = harness.open();
    harness.ctx().account(id, 12_345);
    harness.turn();
    assert_eq!(metrics.read().buffered, 12_345);
}

#[test]
fn lists_are_of_the_first_few_in_the_order_that_was_asked_for() {
    let mut harness = Harness::new(Script::default());
    harness.stop_clock();
    let mut peers = Vec::new();
    for bytes in [3, 1, 2] {
        harness.kernel.advance(Duration::from_secs(1));
        let (mut peer, id) = harness.open();
        peer.say(&vec![0; bytes]);
        harness.until("the bytes", |script| script.inputs(id).len() == 1);
        harness.ctx().account(id, 10 - bytes);
        peers.push((peer, id));
    }
    harness.kernel.advance(Duration::from_secs(1));
    let [one, two, three] = [0, 1, 2].map(|index: usize| peers[index].1);
    let list = |harness: &mut Harness, order, most| {
        let list = harness.ctx().list_connections(order, most);
        list.into_iter().map(|info| info.id).collect::<Vec<_>>()
    };
    assert_eq!(list(&mut harness, ListOrder::Age, usize::MAX), [one, two, three]);
    assert_eq!(list(&mut harness, ListOrder::Traffic, 2), [one, three]);
    assert_eq!(list(&mut harness, ListOrder::Held, 1), [two]);
    assert_eq!(list(&mut harness, ListOrder::Queued, 2), [one, two], "of equals, those of the first slots");
    assert_eq!(list(&mut harness, ListOrder::Age, 0), []);
    let mut asked = Vec::new();
    let by = harness.ctx().list_connections_by(2, |info| {
        asked.push(info.id);
        u64::MAX - info.bytes_received
    });
    assert_eq!(by.iter().map(|info| info.id).collect::<Vec<_>>(), [two, three]);
    assert_eq!(asked, [one, two, three], "each once");

    assert!(harness.ctx().send(three, &vec![0; 4 * 1024 * KIB]).is_accepted());
    harness.settle();
    assert_eq!(list(&mut harness, ListOrder::Queued, 1), [three]);
    let queued = harness.ctx().queued(three) as u64;
    let ConnectionInfo { peer, state, age, idle, bytes_received, bytes_sent, queued: told, .. } =
        harness.ctx().connection_info(three).unwrap();
    assert_eq!(Some(peer), harness.ctx().peer_address(three));
    assert_eq!((state, bytes_received, told), (ConnectionState::Open, 2, queued));
    assert_eq!((age, idle), (Duration::from_secs(1), Duration::ZERO));
    assert_eq!(bytes_sent + queued, 2 + 4 * 1024 * KIB as u64, "with the echo");

    harness.ctx().close_now(three);
    assert_eq!(harness.ctx().connection_info(three), None, "as good as gone");
    assert_eq!(list(&mut harness, ListOrder::Queued, 3), [one, two]);
}

#[test]
fn an_inspection_is_made_on_the_loop_s_thread_though_nothing_else_happens() {
    let mut harness = Harness::new(Script::default());
    let (_peer, id) = harness.open();
    harness.settle();
    let remote = harness.remote();
    let (tell, told) = mpsc::channel();
    let loops = thread::current().id();
    let asker = thread::spawn(move || {
        remote.inspect(move |ctx| {
            let list = ctx.list_connections(ListOrder::Age, 10);
            tell.send((thread::current().id(), list)).unwrap();
        })
    });
    // Long enough to be told apart from a wake.
    let started = Instant::now();
    let (thread, list) = loop {
        harness.reactor.turn(Some(PATIENCE)).unwrap();
        assert!(started.elapsed() < PATIENCE, "no wake came");
        if let Ok(told) = told.try_recv() {
            break told;
        }
    };
    asker.join().unwrap().unwrap();
    assert_eq!(thread, loops);
    assert_eq!(list.into_iter().map(|info| info.id).collect::<Vec<_>>(), [id]);
}

#[test]
fn so_many_inspections_may_wait_and_each_is_made_or_refused() {
    let mut harness = Harness::new(Script::default());
    harness.allow_panics = true;
    let remote = harness.remote();
    let (tell, told) = mpsc::channel();
    let ask = |number: usize| {
        let tell = tell.clone();
        remote.inspect(move |_| {
            assert_ne!(number, 3, "it panics, and the others are made");
            tell.send(number).unwrap();
        })
    };
    for number in 0..16 {
        ask(number).unwrap();
    }
    assert_eq!(ask(16), Err(RemoteError::Full(())));
    harness.turn();
    let made: Vec<usize> = told.try_iter().collect();
    assert_eq!(made, (0..16).filter(|number| *number != 3).collect::<Vec<_>>());
    assert_eq!(harness.ctx().counters().panics, 1);

    // One that was accepted is made before the end.
    ask(20).unwrap();
    harness.ctx().drain(Duration::ZERO);
    harness.run_to_end();
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [20]);
    assert_eq!(ask(21), Err(RemoteError::Closed(())));
}
