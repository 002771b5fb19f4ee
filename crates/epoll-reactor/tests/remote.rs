//! The other threads' way in: every message once, every send resolved, and one wake for many.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use epoll_reactor::{Limits, Reactor, Remote, RemoteError, Stopped, Turn};
use support::{Call, Harness, Method, PATIENCE, Script, TestKernel};

#[test]
fn messages_of_many_threads_all_come_once_and_those_of_one_thread_in_order() {
    const THREADS: u64 = 8;
    const EACH: u64 = 2_000;
    const ALL: usize = 16_000;
    let limits = Limits { message_queue: 64, message_budget: 50, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let senders: Vec<_> = (0..THREADS)
        .map(|sender| {
            let remote = harness.remote();
            thread::spawn(move || {
                for number in 0..EACH {
                    let mut message = sender << 32 | number;
                    while let Err(error) = remote.send(message) {
                        assert!(matches!(error, RemoteError::Full(_)));
                        message = error.into_message();
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    // No timeout of its own: a lost wake would stop it for ever.
    let started = Instant::now();
    while harness.script().messages().len() < ALL {
        harness.reactor.turn(Some(PATIENCE)).unwrap();
        assert!(started.elapsed() < PATIENCE, "{} messages", harness.script().messages().len());
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    harness.settle();
    let messages = harness.script().messages();
    assert_eq!(messages.len(), ALL);
    for sender in 0..THREADS {
        let numbers: Vec<u64> =
            messages.iter().filter(|it| **it >> 32 == sender).map(|it| *it & 0xffff_ffff).collect();
        assert!(numbers.iter().copied().eq(0..EACH), "sender {sender}");
    }
}

#[test]
fn a_full_queue_hands_the_message_back_and_takes_more_when_the_loop_has_looked() {
    let mut harness = Harness::with(Script::default(), Limits { message_queue: 3, ..Limits::default() });
    let remote = harness.remote();
    (1..=3).for_each(|message| remote.send(message).unwrap());
    assert_eq!(remote.send(4), Err(RemoteError::Full(4)));
    harness.turn();
    remote.send(5).unwrap();
    harness.turn();
    assert_eq!(harness.script().messages(), [1, 2, 3, 5]);
}

#[test]
fn a_message_ends_a_long_sleep_at_once() {
    let mut harness = Harness::new(Script::default());
    harness.settle();
    let remote = harness.remote();
    let barrier = Arc::new(Barrier::new(2));
    let sender = thread::spawn({
        let barrier = barrier.clone();
        move || {
            barrier.wait();
            remote.send(1).unwrap();
        }
    });
    barrier.wait();
    let started = Instant::now();
    while harness.script().messages().is_empty() {
        harness.reactor.turn(Some(Duration::from_secs(600))).unwrap();
    }
    assert!(started.elapsed() < PATIENCE);
    sender.join().unwrap();
}

#[test]
fn many_messages_cost_one_wake_and_the_eventfd_is_never_read() {
    let mut harness = Harness::new(Script::default());
    harness.settle();
    let remote = harness.remote();
    let before = (harness.kernel.count(Method::Notify), harness.kernel.count(Method::Read));
    for round in 1..=10 {
        (0..100).for_each(|message| remote.send(message).unwrap());
        harness.turn();
        assert_eq!(harness.script().messages().len(), 100 * round);
        assert_eq!(harness.kernel.count(Method::Notify) - before.0, round);
    }
    harness.settle();
    assert_eq!(harness.kernel.count(Method::Read), before.1);
    assert_eq!(harness.kernel.count(Method::Recv), 0);
}

#[test]
fn a_flood_of_messages_does_not_keep_connections_waiting() {
    let limits = Limits { message_budget: 10, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let (mut peer, id) = harness.open();
    let remote = harness.remote();
    (0..1000).for_each(|message| remote.send(message).unwrap());
    harness.turn();
    assert_eq!(harness.script().messages().len(), 10);
    peer.say(b"x");
    harness.until("the input", |script| !script.inputs(id).is_empty());
    assert!(harness.script().messages().len() <= 100);
    // No further wake comes for the rest, and nothing is waited for.
    while harness.script().messages().len() < 1000 {
        harness.reactor.turn(Some(PATIENCE)).unwrap();
        assert_eq!(harness.kernel.last_timeout.get(), Some(Duration::ZERO));
    }
    assert!(harness.script().messages().into_iter().eq(0..1000));
}

#[test]
fn a_message_sent_by_a_message_s_own_callback_is_not_lost() {
    let limits = Limits { message_budget: 1, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let remote = harness.remote();
    *harness.script() = Script::default().message({
        let remote = remote.clone();
        move |_, number| {
            if number < 20 {
                remote.send(number + 1).unwrap();
            }
        }
    });
    remote.send(0).unwrap();
    let started = Instant::now();
    while harness.script().messages().len() < 21 {
        harness.reactor.turn(Some(PATIENCE)).unwrap();
        assert!(started.elapsed() < PATIENCE);
    }
}

#[test]
fn each_send_while_the_loop_shuts_down_is_delivered_or_handed_back() {
    for _ in 0..20 {
        let mut harness = Harness::new(Script::default());
        let remote = harness.remote();
        let sender = thread::spawn(move || {
            let started = Instant::now();
            let mut accepted = BTreeSet::new();
            for number in 0.. {
                assert!(started.elapsed() < PATIENCE, "it never closes");
                match remote.send(number) {
                    Ok(()) => assert!(accepted.insert(number)),
                    Err(RemoteError::Full(back)) => assert_eq!(back, number),
                    Err(RemoteError::Closed(back)) => {
                        assert_eq!(back, number);
                        assert_eq!(remote.send(back), Err(RemoteError::Closed(back)), "and stays closed");
                        break;
                    }
                }
            }
            accepted
        });
        harness.until("the first message", |script| script.messages().len() > 10);
        harness.remote().drain();
        assert_eq!(harness.run_to_end(), Stopped::Drained);
        let accepted = sender.join().unwrap();
        assert!(harness.script().messages().iter().eq(&accepted), "every message that was accepted, once");
    }
}

#[test]
fn a_reactor_that_is_dropped_closes_its_remote() {
    let harness = Harness::new(Script::default());
    let remote = harness.remote();
    drop(harness);
    assert_eq!(remote.send(1), Err(RemoteError::Closed(1)));
    remote.drain();
}

#[test]
fn a_drain_asked_for_by_another_thread_ends_a_long_sleep_at_once() {
    let mut harness = Harness::new(Script::default());
    let (_peer, id) = harness.open();
    harness.settle();
    let remote = harness.remote();
    let other = thread::spawn(move || remote.drain());
    let started = Instant::now();
    while !harness.script().calls.contains(&Call::Shutdown(id)) {
        harness.reactor.turn(Some(Duration::from_secs(600))).unwrap();
    }
    assert!(started.elapsed() < PATIENCE);
    other.join().unwrap();
}

#[test]
fn a_drain_right_behind_a_message_is_never_slept_through() {
    // The message has a wake under way, so the drain sends none of its own; the delays between the two sweep over
    // all that the loop does with it.
    const ROUNDS: usize = 20_000;
    let sent = Arc::new(AtomicUsize::new(0));
    let (hand_over, rounds) = mpsc::channel::<(Remote<u64, TestKernel>, usize)>();
    let other = thread::spawn({
        let sent = Arc::clone(&sent);
        move || {
            for (remote, round) in rounds {
                remote.send(1).unwrap();
                sent.store(round, Ordering::SeqCst);
                (0..round % 400).for_each(|step| _ = std::hint::black_box(step));
                remote.drain();
            }
        }
    });
    let started = Instant::now();
    for round in 1..=ROUNDS {
        let kernel = TestKernel::new().0;
        let mut reactor = Reactor::with_kernel(kernel, Script::default(), Limits::default()).unwrap();
        hand_over.send((reactor.remote(), round)).unwrap();
        while sent.load(Ordering::SeqCst) < round {
            std::hint::spin_loop();
        }
        // Without a timeout: the kernel of these tests fails when the loop sleeps and nothing wakes it.
        while reactor.turn(None).unwrap() == Turn::Continue {}
        assert_eq!(reactor.handler().messages(), [1]);
        if started.elapsed() > PATIENCE / 2 {
            break; // Enough, on a slow machine.
        }
    }
    drop(hand_over);
    other.join().unwrap();
}
