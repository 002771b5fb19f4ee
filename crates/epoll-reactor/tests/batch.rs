//! Answers of one turn leave behind one another: what that must not change.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::rc::Rc;

use epoll_reactor::{CloseReason, ConnId, Ctx, Errno, Limits};
use support::{Call, Harness, KIB, Method, Peer, Script, pattern};

/// Echoes, then acts.
fn echo_and(mut act: impl FnMut(&mut Ctx, ConnId, &[u8]) + 'static) -> Script {
    Script::default().data(move |ctx, id, input| {
        assert!(ctx.send(id, input).is_accepted());
        act(ctx, id, input);
        input.len()
    })
}

/// Has all of them say their index, so that one wait finds all, in this order.
fn say_in_turn(harness: &mut Harness, peers: &mut [(Peer, ConnId)]) {
    harness.settle();
    for (index, (peer, _)) in peers.iter_mut().enumerate() {
        peer.say(&[u8::try_from(index).unwrap()]);
    }
    let turns = harness.ctx().counters().turns;
    harness.until("the input of the last", |script| {
        script.count(|call| matches!(call, Call::Data(..))) >= peers.len()
    });
    assert_eq!(harness.ctx().counters().turns, turns + 1, "one turn for all");
}

#[test]
fn a_few_answers_leave_together_and_one_send_each() {
    let most = Rc::new(Cell::new(0));
    let known = Rc::new(RefCell::new(Vec::new()));
    let (seen, ids) = (Rc::clone(&most), Rc::clone(&known));
    let mut harness = Harness::new(echo_and(move |ctx, id, _| {
        let waiting: usize =
            ids.borrow().iter().filter(|other| **other != id).map(|id| ctx.queued(*id)).sum();
        seen.set(seen.get().max(waiting));
    }));
    let mut peers: Vec<_> = harness.open_many::<40>().into();
    *known.borrow_mut() = peers.iter().map(|(_, id)| *id).collect();
    let before = harness.kernel.writes();
    say_in_turn(&mut harness, &mut peers);
    assert_eq!(harness.kernel.writes(), before + 40);
    assert_eq!(most.get(), 15, "and not all forty at once");
    for (index, (peer, _)) in peers.iter_mut().enumerate() {
        assert_eq!(peer.drain(), [u8::try_from(index).unwrap()]);
    }
}

#[test]
fn a_long_answer_does_not_wait() {
    let waits = Rc::new(Cell::new(usize::MAX));
    let (seen, first) = (Rc::clone(&waits), Cell::new(None));
    let mut harness = Harness::new(Script::default().data(move |ctx, id, input| {
        match first.get() {
            None => first.set(Some(id)),
            Some(first) => seen.set(ctx.queued(first)),
        }
        assert!(ctx.send(id, &pattern(4097)).is_accepted());
        input.len()
    }));
    let mut peers: Vec<_> = harness.open_many::<2>().into();
    say_in_turn(&mut harness, &mut peers);
    assert_eq!(waits.get(), 0);
}

#[test]
fn what_others_send_comes_behind_it() {
    // The longer one passes the high water mark, and is written before the turn ends.
    for (length, shared) in [(100, false), (100, true), (20 * KIB, false), (20 * KIB, true)] {
        let first = Cell::new(None);
        let script = echo_and(move |ctx, id, _| match first.get() {
            None => first.set(Some(id)),
            Some(first) => {
                let line = pattern(length);
                let sent = if shared {
                    let line = ctx.share(line);
                    ctx.send_shared(first, line).is_accepted()
                } else {
                    ctx.send(first, &line).is_accepted()
                };
                assert!(sent);
                assert_eq!(ctx.queued(first), 1 + length);
            }
        });
        let limits = Limits { output_high_water: 16 * KIB, output_low_water: 4 * KIB, ..Limits::default() };
        let mut harness = Harness::with(script, limits);
        let mut peers: Vec<_> = harness.open_many::<2>().into();
        say_in_turn(&mut harness, &mut peers);
        let (peer, _) = &mut peers[0];
        assert_eq!(harness.receive(peer, 1 + length), [&[0], pattern(length).as_slice()].concat());
    }
}

#[test]
fn further_callbacks_of_the_same_turn_come_behind_it() {
    let limits = Limits { read_buffer: KIB, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let mut peers: Vec<_> = harness.open_many::<2>().into();
    harness.settle();
    let data = pattern(10 * KIB);
    peers[0].0.say(&data);
    peers[1].0.say(b"so that two are ready");
    harness.turn();
    assert!(harness.script().inputs(peers[0].1).len() >= 10);
    assert_eq!(harness.receive(&mut peers[0].0, data.len()), data);
}

#[test]
fn an_end_comes_behind_it() {
    let ends: [fn(&mut Ctx, ConnId); 2] = [Ctx::close_after_flush, Ctx::shut_down_output];
    for end in ends {
        let mut harness = Harness::new(echo_and(move |ctx, id, input| {
            if input == [0] {
                end(ctx, id);
            }
        }));
        let mut peers: Vec<_> = harness.open_many::<2>().into();
        say_in_turn(&mut harness, &mut peers);
        let (received, ended) = harness.receive_all(&mut peers[0].0);
        assert_eq!((received, ended.is_ok()), (vec![0], true));
    }
}

#[test]
fn what_is_closed_by_another_loses_it_and_is_told_so() {
    let first = Cell::new(None);
    let mut harness = Harness::new(echo_and(move |ctx, id, _| match first.get() {
        None => first.set(Some(id)),
        Some(first) => ctx.close_now(first),
    }));
    let mut peers: Vec<_> = harness.open_many::<2>().into();
    say_in_turn(&mut harness, &mut peers);
    let id = peers[0].1;
    assert_eq!(harness.closed(id), CloseReason::Local);
    let stats = harness.script().stats[&id];
    assert_eq!((stats.bytes_sent, stats.bytes_unsent), (0, 1));
    assert_eq!(harness.receive(&mut peers[1].0, 1), [1]);
}

#[test]
fn a_send_that_fails_or_is_cut_short_concerns_nobody_else() {
    type Fault = fn(&Harness, ConnId);
    let faults: [(Fault, bool); 3] = [
        (|harness, id| harness.kernel.fail_for(id, Method::Send, Errno::EPIPE, 1), false),
        (|harness, id| harness.kernel.fail_for(id, Method::Send, Errno::EAGAIN, 1), true),
        (|harness, id| harness.kernel.shorten_writes(id, 1, 1), true),
    ];
    for (fault, lives) in faults {
        let mut harness =
            Harness::new(echo_and(|ctx, id, _| assert!(ctx.send(id, b" and more").is_accepted())));
        let mut peers: Vec<_> = harness.open_many::<3>().into();
        harness.settle();
        fault(&harness, peers[1].1);
        say_in_turn(&mut harness, &mut peers);
        for index in [0, 2] {
            let (peer, _) = &mut peers[index];
            assert_eq!(harness.receive(peer, 10)[0], u8::try_from(index).unwrap());
        }
        let (peer, id) = &mut peers[1];
        if lives {
            // An edge, for a fault that was none of the kernel's.
            peer.say(b"again");
            assert_eq!(harness.receive(peer, 10), b"\x01 and more");
        } else {
            assert_eq!(harness.closed(*id), CloseReason::Reset);
        }
    }
}

#[test]
fn a_panic_of_another_callback_does_not_take_it_along() {
    let mut harness = Harness::new(echo_and(|_, _, input| assert_ne!(input, [1], "as planned")));
    harness.allow_panics = true;
    let mut peers: Vec<_> = harness.open_many::<3>().into();
    say_in_turn(&mut harness, &mut peers);
    assert_eq!(harness.closed(peers[1].1), CloseReason::HandlerPanicked);
    let mut nothing = Vec::new();
    assert!(peers[1].0.read_to_end(&mut nothing).is_ok_and(|length| length == 0));
    for index in [0_u8, 2] {
        let (peer, _) = &mut peers[usize::from(index)];
        assert_eq!(harness.receive(peer, 1), [index]);
    }
}

#[test]
fn a_panic_of_the_same_connections_next_callback_does_not_take_it_along() {
    let mut harness = Harness::new(echo_and(|_, _, _| ()).eof(|_, id, _| {
        assert_ne!(id, ConnId::from_u64(1 << 32), "as planned");
    }));
    harness.allow_panics = true;
    let mut peers: Vec<_> = harness.open_many::<2>().into();
    harness.settle();
    peers[0].0.say(b"x");
    peers[0].0.finish();
    peers[1].0.say(b"so that two are ready");
    let id = peers[0].1;
    assert_eq!(harness.closed(id), CloseReason::HandlerPanicked);
    let stats = harness.script().stats[&id];
    assert_eq!((stats.bytes_sent, stats.bytes_unsent), (1, 0));
    let (received, end) = harness.receive_all(&mut peers[0].0);
    assert_eq!((received, end.is_ok()), (b"x".to_vec(), true));
}
