//! What the flight recorder remembers of a real loop, and when it is asked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use epoll_reactor::{CloseReason, Errno, Limits, PanicPolicy, RecordKind, Recording};
use support::{Harness, Method, Script};

fn limits() -> Limits {
    Limits { recorder: 100, ..Limits::default() }
}

/// What happened, without the turns, and without what depends on the kernel's timing.
fn lines(recording: &Recording) -> Vec<String> {
    let records = recording.records.iter();
    let records = records.filter(|it| !matches!(it.kind(), Some(RecordKind::Turn | RecordKind::Event)));
    // Times of callbacks are the machine's.
    records.map(|it| it.to_string().split(", ").next().unwrap().to_owned()).collect()
}

#[test]
fn a_connection_s_life_is_remembered_in_its_order() {
    let mut harness = Harness::with(Script::default(), limits());
    assert_eq!(harness.ctx().recording(), None);
    let (mut peer, id) = harness.open();
    peer.say(b"hello");
    assert_eq!(harness.receive(&mut peer, 5), b"hello", "the echo");
    drop(peer);
    assert_eq!(harness.closed(id), CloseReason::PeerClosed);
    let recording = harness.ctx().recording().unwrap();
    let expected =
        ["accepted", "on_open", "read", "on_data", "write", "read", "on_eof", "closed", "on_close"];
    assert_eq!(lines(&recording), expected.map(|what| format!("connection {id}: {what}")));
    assert_eq!(recording.overwritten, 0);
    let bytes = |kind| {
        let of_kind = recording.records.iter().filter(|it| it.kind() == Some(kind));
        of_kind.map(|it| it.amount).collect::<Vec<_>>()
    };
    assert_eq!((bytes(RecordKind::Read), bytes(RecordKind::Write)), (vec![5, 0], vec![5]));
    let events: u32 = bytes(RecordKind::Turn).iter().sum();
    assert_eq!(bytes(RecordKind::Event).len(), events as usize, "each turn's number of events is theirs");
    assert!(recording.records.iter().all(|it| it.time <= recording.time));
    assert!(recording.records.iter().all(|it| recording.wall_at(it) <= recording.wall));
}

#[test]
fn what_clients_send_is_kept_with_the_reads_it_came_in_as_long_as_there_is_room() {
    let mut harness = Harness::with(Script::default(), Limits { capture: 8, ..limits() });
    let [(first, one), (second, two)] = harness.open_many();
    let mut peers = [first, second];
    for (peer, words) in [(0, "abc"), (1, "xyz"), (0, "abcde")] {
        peers[peer].say(words.as_bytes());
        harness.receive(&mut peers[peer], words.len());
    }
    let recording = harness.ctx().recording().unwrap();
    let reads = recording.records.iter().filter(|it| it.kind() == Some(RecordKind::Read));
    let reads: Vec<_> = reads.map(|it| (it.token, recording.input_of(it))).collect();
    let expected = [(one, None), (two, Some("xyz")), (one, Some("abcde"))];
    assert_eq!(reads, expected.map(|(id, input)| (id.as_u64(), input.map(str::as_bytes))));
}

#[test]
fn off_is_the_default_and_remembers_nothing() {
    let mut harness = Harness::new(Script::default());
    let (mut peer, _) = harness.open();
    peer.say(b"hello");
    harness.receive(&mut peer, 5);
    assert_eq!(harness.ctx().recording(), None);
}

#[test]
fn a_callback_s_time_is_its_own() {
    let kernel = std::rc::Rc::<std::cell::OnceCell<std::rc::Rc<support::Controls>>>::default();
    let inside = std::rc::Rc::clone(&kernel);
    let script = Script::default().data(move |_, _, input| {
        inside.get().unwrap().advance(Duration::from_millis(u64::from(input[0])));
        input.len()
    });
    let mut harness = Harness::with(script, limits());
    let controls = std::rc::Rc::clone(kernel.get_or_init(|| std::rc::Rc::clone(&harness.kernel)));
    let [(mut first, one), (mut second, two)] = harness.open_many();
    harness.settle();
    harness.stop_clock();
    let start = harness.ctx().now();
    controls.advance(Duration::from_secs(1));
    first.say(&[30]);
    second.say(&[20]);
    harness.until("both", |script| script.inputs(one).len() + script.inputs(two).len() == 2);
    let recording = harness.ctx().recording().unwrap();
    let after = recording.records.iter().filter(|it| it.time > start);
    let times: Vec<_> = after
        .filter(|it| it.kind() == Some(RecordKind::Callback))
        .map(|it| (it.token, Duration::from_nanos(it.duration)))
        .collect();
    let expected = [(one, 30), (two, 20)].map(|(id, time)| (id.as_u64(), Duration::from_millis(time)));
    assert!(expected.iter().all(|it| times.contains(it)), "{times:?}");
    assert_eq!(times.len(), 2);
    // One turn or two, as their events came.
    let turns = recording.records.iter().filter(|it| it.kind() == Some(RecordKind::Turn) && it.time > start);
    assert_eq!(turns.map(|it| it.duration).sum::<u64>(), 50_000_000);
}

#[test]
fn errors_of_the_kernel_are_remembered_with_their_names() {
    let mut harness = Harness::with(Script::default(), limits());
    let (mut peer, id) = harness.open();
    harness.kernel.fail_for(id, Method::Recv, Errno::ETIMEDOUT, 1);
    peer.say(b"x");
    assert_eq!(harness.closed(id), CloseReason::Error(Errno::ETIMEDOUT));
    harness.kernel.fail(Method::Accept, Errno::EMFILE, 1);
    let _waiting = harness.connect();
    harness.until_loop("the pause", |it| it.ctx().counters().accept_pauses == 1);
    let recording = harness.ctx().recording().unwrap();
    let lines: Vec<String> = recording.records.iter().map(ToString::to_string).collect();
    for expected in [
        format!("connection {id}: read, ETIMEDOUT"),
        format!("connection {id}: closed, error, ETIMEDOUT"),
        "accepting paused, EMFILE".to_owned(),
    ] {
        assert!(lines.iter().any(|line| line.ends_with(&expected)), "{expected}: {lines:#?}");
    }
}

#[test]
fn the_hook_for_panics_finds_the_callback_that_panicked_as_the_last_thing_done() {
    for policy in [PanicPolicy::CloseConnection, PanicPolicy::Propagate] {
        let script = Script::default().data(|_, _, input| panic!("{} bytes", input.len()));
        let mut harness = Harness::with(script, Limits { panics: policy, ..limits() });
        harness.allow_panics = true;
        let kept: Arc<Mutex<Vec<Recording>>> = Arc::default();
        let keep = Arc::clone(&kept);
        harness.reactor.on_panic(move |ctx| {
            keep.lock().unwrap().extend(ctx.recording());
            panic!("a hook that panics itself is no worse");
        });
        let (mut peer, id) = harness.open();
        peer.say(b"x");
        if policy == PanicPolicy::CloseConnection {
            assert_eq!(harness.closed(id), CloseReason::HandlerPanicked);
        } else {
            // What runs it is to be dropped by the panic, as it is where nobody catches it.
            let run = AssertUnwindSafe(move || harness.until("nothing", |_| false));
            catch_unwind(run).unwrap_err();
        }
        let kept = kept.lock().unwrap();
        assert_eq!(kept.len(), 1, "{policy:?}");
        let last = kept[0].records.last().unwrap().to_string();
        if policy == PanicPolicy::CloseConnection {
            assert!(
                last.starts_with(&format!("connection {id}: on_data")) && last.ends_with("panicked"),
                "{last}"
            );
        } else {
            assert_eq!(last, format!("connection {id}: read, 1 bytes"), "what led to it");
        }
    }
}
