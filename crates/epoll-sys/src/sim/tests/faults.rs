//! Each fault at certainty: that it strikes, what it looks like, and that a program can go on.

use std::io::IoSlice;

use super::super::{ALWAYS, Network, Received};
use super::*;
use crate::{Errno, Signal, Then};

const SOON: Duration = Duration::from_millis(1);

#[test]
fn a_short_read_is_followed_by_an_edge() {
    let (sim, kernel, server, peer) = pair(1, Faults { short_recv: ALWAYS, ..Faults::none() });
    let data: Vec<u8> = (0..100).collect();
    peer.send(&data);
    let mut received = Vec::new();
    while received.len() < 100 {
        assert!(next(&kernel).1.is_readable());
        let mut buffer = [0; 200];
        let read = kernel.recv(&server, &mut buffer).unwrap();
        received.extend_from_slice(&buffer[..read]);
        assert!(read < 100);
        assert_eq!(kernel.recv(&server, &mut buffer), Err(Errno::EAGAIN), "the rest is on its way");
    }
    assert_eq!(received, data);
    assert!(injected(&sim, "short_recv") > 1);
}

/// A hundred bytes.
fn file() -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(100).unwrap();
    file
}

#[test]
fn a_short_write_is_followed_by_an_edge() {
    let (sim, kernel, server, peer) = pair(1, Faults { short_send: ALWAYS, ..Faults::none() });
    let sent = kernel.send(&server, &[7; 100]).unwrap();
    assert!(sent < 100);
    let pieces = [IoSlice::new(&[7; 50]), IoSlice::new(&[7; 50])];
    let sent = sent + kernel.writev(&server, &pieces, Then::Nothing).unwrap();
    assert!(next(&kernel).1.is_writable());
    let sent = sent + kernel.sendfile(&server, &file(), 0, 100).unwrap();
    assert!(next(&kernel).1.is_writable());
    sim.advance(SOON);
    assert_eq!(peer.recv_all().len(), sent);
    assert_eq!(injected(&sim, "short_send"), 3);
}

/// Not even if nothing that was sent can arrive.
#[test]
fn a_short_write_to_a_closed_window_is_followed_by_an_edge() {
    let (_sim, kernel, server, peer) = pair(1, Faults { short_send: ALWAYS, ..Faults::none() });
    peer.set_receive_buffer(0);
    assert!(kernel.send(&server, &[7; 100]).unwrap() < 100);
    assert!(next(&kernel).1.is_writable());
}

#[test]
fn what_an_event_has_told_is_not_taken_back() {
    let (_sim, kernel, server, peer) =
        pair(1, Faults { short_recv: ALWAYS, eagain_recv: ALWAYS, ..Faults::none() });
    peer.send(&[7; 100]);
    peer.shutdown_write();
    assert!(next(&kernel).1.is_peer_shutdown());
    assert_eq!(kernel.recv(&server, &mut [0; 200]), Ok(100));
    assert_eq!(kernel.recv(&server, &mut [0; 200]), Ok(0));
}

/// As long as no event has told of the end, it can be on its way again, behind the data.
#[test]
fn an_end_that_was_not_told_may_come_again() {
    let (sim, kernel, server, peer) = pair(1, Faults { eagain_recv: ALWAYS, ..Faults::none() });
    peer.send(&[7; 100]);
    peer.shutdown_write();
    sim.advance(SOON);
    assert_eq!(kernel.recv(&server, &mut [0; 200]), Err(Errno::EAGAIN));
    while !next(&kernel).1.is_peer_shutdown() {}
    assert_eq!(kernel.recv(&server, &mut [0; 200]), Ok(100));
    assert_eq!(kernel.recv(&server, &mut [0; 200]), Ok(0));
}

#[test]
fn a_refused_read_is_followed_by_an_edge_and_not_refused_again() {
    let (sim, kernel, server, peer) = pair(1, Faults { eagain_recv: ALWAYS, ..Faults::none() });
    peer.send(b"hello");
    assert!(next(&kernel).1.is_readable());
    for _ in 0..2 {
        assert_eq!(kernel.recv(&server, &mut [0; 1]), Err(Errno::EAGAIN));
        assert!(next(&kernel).1.is_readable());
        assert_eq!(kernel.recv(&server, &mut [0; 1]), Ok(1));
    }
    assert_eq!(injected(&sim, "eagain_recv"), 2);
}

#[test]
fn a_refused_write_is_followed_by_an_edge_and_not_refused_again() {
    let (sim, kernel, server, _peer) = pair(1, Faults { eagain_send: ALWAYS, ..Faults::none() });
    for _ in 0..2 {
        assert_eq!(kernel.send(&server, b"hello"), Err(Errno::EAGAIN));
        assert!(next(&kernel).1.is_writable());
        assert_eq!(kernel.send(&server, b"hello"), Ok(5));
    }
    assert_eq!(injected(&sim, "eagain_send"), 2);
}

#[test]
fn every_call_that_may_wait_is_interrupted_once() {
    let (sim, kernel, server, peer) = pair(1, Faults { eintr: ALWAYS, ..Faults::none() });
    peer.send(b"hello, world");
    sim.advance(SOON);
    let listener = kernel.listen(&Address::Unix("socket".into()), &ListenOptions::default()).unwrap();
    let _client = sim.connect(&Address::Unix("socket".into())).unwrap();
    let signals = kernel.signalfd(&[Signal::Hangup]).unwrap();
    let notifier = kernel.eventfd().unwrap();
    let mut events = Events::with_capacity(8);
    let mut calls: Vec<Box<dyn FnMut() -> Result<(), Errno> + '_>> = vec![
        Box::new(|| kernel.accept(&listener).map(drop)),
        Box::new(|| kernel.recv(&server, &mut [0; 4]).map(drop)),
        Box::new(|| kernel.read(&server, &mut [0; 4]).map(drop)),
        Box::new(|| kernel.send(&server, b"x").map(drop)),
        Box::new(|| kernel.write(&server, b"x").map(drop)),
        Box::new(|| kernel.writev(&server, &[IoSlice::new(b"x")], Then::Nothing).map(drop)),
        Box::new(|| kernel.sendfile(&server, &file(), 0, 1).map(drop)),
        Box::new(|| kernel.write(&notifier, &[1; 8]).map(drop)),
        Box::new(|| kernel.read(&notifier, &mut [0; 8]).map(drop)),
        Box::new(|| kernel.read_signal(&signals).map(drop)),
        Box::new(|| kernel.wait(&mut events, Some(SOON))),
    ];
    for (position, call) in calls.iter_mut().enumerate() {
        assert_eq!((call(), call()), (Err(Errno::EINTR), Ok(())), "call {position}");
    }
    assert_eq!(injected(&sim, "eintr"), 11);
}

#[test]
fn a_connection_is_lost_in_a_read_or_a_write() {
    let rows = [
        (Faults { econnreset: ALWAYS, ..Faults::none() }, Errno::ECONNRESET, "econnreset"),
        (Faults { etimedout: ALWAYS, ..Faults::none() }, Errno::ETIMEDOUT, "etimedout"),
        (Faults { epipe: ALWAYS, ..Faults::none() }, Errno::EPIPE, "epipe"),
    ];
    for (faults, errno, name) in rows {
        let (sim, kernel, server, peer) = pair(1, faults);
        if errno == Errno::EPIPE {
            assert_eq!(kernel.send(&server, b"x"), Err(errno));
        } else {
            assert_eq!(kernel.recv(&server, &mut [0; 4]), Err(errno));
        }
        assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(0), "it is told once");
        assert_eq!(kernel.send(&server, b"x"), Err(Errno::EPIPE));
        assert!(next(&kernel).1.is_hang_up(), "and there is an edge");
        sim.advance(SOON);
        assert_eq!(peer.recv(4), Received::Failed(Errno::ECONNRESET));
        assert_eq!(injected(&sim, name), 1);
    }
}

#[test]
fn no_buffers_for_a_send_leaves_the_connection_as_it_is() {
    let (sim, kernel, server, peer) = pair(1, Faults { enobufs: ALWAYS, ..Faults::none() });
    assert_eq!(kernel.send(&server, b"x"), Err(Errno::ENOBUFS));
    sim.set_faults(Faults::none());
    assert_eq!(kernel.send(&server, b"y"), Ok(1));
    sim.advance(SOON);
    assert_eq!(peer.recv_all(), b"y");
}

#[test]
fn without_descriptors_connections_stay_and_no_edge_tells_of_them() {
    let rows = [
        (Faults { emfile: ALWAYS, ..Faults::none() }, Errno::EMFILE),
        (Faults { enfile: ALWAYS, ..Faults::none() }, Errno::ENFILE),
        (Faults { max_open: 1, ..Faults::none() }, Errno::EMFILE),
    ];
    for (faults, errno) in rows {
        let sim = Sim::new(1, Faults::none());
        let kernel = sim.kernel();
        let listener = listen(&kernel);
        kernel.add(&listener, Interest::Readable, 1).unwrap();
        sim.set_faults(faults);
        assert_eq!(kernel.accept(&listener).unwrap_err(), errno, "whether one is pending or not");
        let _client = sim.connect(&here()).unwrap();
        assert!(next(&kernel).1.is_readable());
        assert_eq!(kernel.accept(&listener).unwrap_err(), errno);
        assert_eq!(kernel.connect(&here()).unwrap_err(), errno);
        assert_eq!(kernel.listen(&here(), &ListenOptions::default()).unwrap_err(), errno);
        assert_eq!(kernel.eventfd().unwrap_err(), errno);
        assert_eq!(kernel.signalfd(&[]).unwrap_err(), errno);
        assert_eq!(sim.pipe().unwrap_err(), errno);
        assert_eq!(wait_for(&kernel, SOON), []);
        sim.set_faults(Faults::none());
        kernel.accept(&listener).unwrap();
    }
}

#[test]
fn registering_fails_for_want_of_memory() {
    for (faults, errno) in [
        (Faults { enomem: ALWAYS, ..Faults::none() }, Errno::ENOMEM),
        (Faults { enospc: ALWAYS, ..Faults::none() }, Errno::ENOSPC),
    ] {
        let sim = Sim::new(1, faults);
        let kernel = sim.kernel();
        let notifier = kernel.eventfd().unwrap();
        assert_eq!(kernel.add(&notifier, Interest::Readable, 1), Err(errno));
        sim.set_faults(Faults::none());
        assert_eq!(kernel.add(&notifier, Interest::Readable, 1), Ok(()));
    }
}

#[test]
fn a_connection_that_accept_cannot_give_is_lost() {
    for (faults, errno) in [
        (Faults { econnaborted: ALWAYS, ..Faults::none() }, Errno::ECONNABORTED),
        (Faults { eperm: ALWAYS, ..Faults::none() }, Errno::EPERM),
        (Faults { eproto: ALWAYS, ..Faults::none() }, Errno::EPROTO),
    ] {
        let sim = Sim::new(1, faults);
        let kernel = sim.kernel();
        let listener = listen(&kernel);
        let client = sim.connect(&here()).unwrap();
        assert_eq!(kernel.accept(&listener).unwrap_err(), errno);
        assert_eq!(kernel.accept(&listener).unwrap_err(), Errno::EAGAIN);
        sim.advance(SOON);
        assert_eq!(client.recv(1), Received::Failed(Errno::ECONNRESET));
    }
}

#[test]
fn without_memory_a_connection_waits_and_no_edge_tells_of_it() {
    for (faults, errno) in [
        (Faults { accept_enobufs: ALWAYS, ..Faults::none() }, Errno::ENOBUFS),
        (Faults { accept_enomem: ALWAYS, ..Faults::none() }, Errno::ENOMEM),
    ] {
        let sim = Sim::new(1, faults);
        let kernel = sim.kernel();
        let listener = listen(&kernel);
        kernel.add(&listener, Interest::Readable, 1).unwrap();
        let _client = sim.connect(&here()).unwrap();
        assert!(next(&kernel).1.is_readable());
        assert_eq!(kernel.accept(&listener).unwrap_err(), errno);
        assert_eq!(wait_for(&kernel, SOON), []);
        sim.set_faults(Faults::none());
        kernel.accept(&listener).unwrap();
        assert_eq!(kernel.accept(&listener).unwrap_err(), Errno::EAGAIN);
    }
}

#[test]
fn a_spurious_event_is_only_a_hint() {
    let (sim, kernel, server, _peer) = pair(1, Faults { spurious: ALWAYS, ..Faults::none() });
    let events = wait(&kernel);
    assert!(events.len() == 1 && events[0].0 == SERVER && events[0].1.is_readable());
    assert!(!events[0].1.must_read_to_end());
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Err(Errno::EAGAIN));
    assert_eq!(injected(&sim, "spurious"), 1);
    kernel.delete(&server).unwrap();
    assert_eq!(
        (wait(&kernel), injected(&sim, "spurious")),
        (vec![], 1),
        "where there is none, none is counted"
    );
}

#[test]
fn a_stale_event_comes_once() {
    let (sim, kernel, server, _peer) = pair(1, Faults { stale: ALWAYS, ..Faults::none() });
    kernel.delete(&server).unwrap();
    assert_eq!(injected(&sim, "stale"), 0, "not yet");
    assert_eq!(wait(&kernel)[0].0, SERVER);
    assert_eq!(wait(&kernel), []);
    assert_eq!(injected(&sim, "stale"), 1);
}

#[test]
fn an_event_that_is_held_comes_later() {
    let (sim, kernel, _server, peer) = pair(1, Faults { held: ALWAYS, ..Faults::none() });
    peer.send(b"x");
    sim.advance(SOON);
    assert_eq!(wait(&kernel), []);
    assert!(next(&kernel).1.is_readable());
    assert_eq!(wait_for(&kernel, SOON * 100), []);
    assert_eq!(injected(&sim, "held"), 1);
}

#[test]
fn shuffled_events_are_the_same_events() {
    let sim = Sim::new(1, Faults { shuffled: ALWAYS, ..Faults::none() });
    let kernel = sim.kernel();
    let notifiers: Vec<SimFd> = (0..20).map(|_| kernel.eventfd().unwrap()).collect();
    for (token, notifier) in (0..).zip(&notifiers) {
        kernel.add(notifier, Interest::Readable, token).unwrap();
        SimKernel::notify(notifier).unwrap();
    }
    let mut tokens: Vec<u64> = wait(&kernel).iter().map(|(token, _)| *token).collect();
    assert!(!tokens.is_sorted());
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..20));
}

#[test]
fn a_wait_that_returns_early_loses_nothing() {
    let (sim, kernel, _server, peer) = pair(1, Faults { early: ALWAYS, ..Faults::none() });
    peer.send(b"x");
    sim.advance(SOON);
    let start = sim.now();
    assert_eq!(wait_for(&kernel, Duration::from_secs(1)), []);
    assert!(sim.now() - start < SOON);
    assert_eq!(wait_for(&kernel, Duration::from_secs(1)).len(), 1);
}

#[test]
fn stalls_and_ends_that_come_apart() {
    let network =
        Network { stall: ALWAYS, stall_for: Duration::from_secs(9), fin_apart: ALWAYS, ..Network::steady() };
    let (sim, kernel, _server, peer) = pair(1, Faults { network, ..Faults::none() });
    let start = sim.now();
    peer.send(b"x");
    peer.shutdown_write();
    let first = next(&kernel).1;
    assert!(sim.now() - start > Duration::from_secs(1));
    assert!(first.is_readable() && !first.is_peer_shutdown());
    assert!(next(&kernel).1.is_peer_shutdown());
    assert!(injected(&sim, "stall") >= 2 && injected(&sim, "fin_apart") == 1);
}

#[test]
fn a_reset_destroys_what_is_on_its_way_if_it_overtakes_it() {
    for (probability, arrives) in [(0, 5), (ALWAYS, 1)] {
        let slow = Network { gap: (SOON * 50, SOON * 50), segment: (1, 1), ..Network::steady() };
        let network = Network { reset_overtakes: probability, ..slow };
        let (sim, kernel, server, peer) = pair(1, Faults { network, ..Faults::none() });
        peer.send(b"hello");
        sim.advance(SOON);
        peer.reset();
        while !next(&kernel).1.is_error() {}
        let mut buffer = [0; 9];
        assert_eq!(kernel.recv(&server, &mut buffer), Ok(arrives));
        assert_eq!(kernel.recv(&server, &mut buffer), Err(Errno::ECONNRESET));
    }
}

#[test]
fn pieces_are_as_small_as_the_network_says() {
    let network =
        Network { segment: (1, 3), send_buffer: (50, 50), receive_buffer: (10, 10), ..Network::steady() };
    let (sim, kernel, server, peer) = pair(1, Faults { network, ..Faults::none() });
    assert_eq!(peer.send(&[7; 100]), 50);
    let mut reads = 0;
    let mut total = 0;
    while total < 50 {
        next(&kernel);
        while let Ok(read) = kernel.recv(&server, &mut [0; 64]) {
            assert!(read <= 10);
            total += read;
            reads += 1;
        }
    }
    assert!(reads >= 17 - 9, "{reads}");
    assert_eq!(sim.injected().total(), 0, "that is no fault, but how networks are");
}
