//! Waiting, registration, edges and notifications.

use std::thread;
use std::time::{Duration, Instant};

use epoll_sys::{Errno, Events, Interest, Kernel};

use crate::bench::{Bench, CLIENT, PATIENCE, SERVER, listener, pair, watched_pair};

pub(crate) fn a_wait_never_ends_before_its_time<K: Kernel>(kernel: &K) {
    let mut events = Events::with_capacity(4);
    for microseconds in [0, 1, 100, 1_000, 1_001, 2_500] {
        let timeout = Duration::from_micros(microseconds);
        let start = kernel.now();
        kernel.wait(&mut events, Some(timeout)).unwrap();
        assert!(kernel.now() - start >= timeout, "{timeout:?}");
        assert!(events.is_empty());
    }
}

pub(crate) fn the_clock_does_not_go_back<K: Kernel>(kernel: &K) {
    let mut last = kernel.now();
    for _ in 0..1_000 {
        let now = kernel.now();
        assert!(now >= last);
        last = now;
    }
    kernel.wall_clock().duration_since(std::time::UNIX_EPOCH).unwrap();
}

pub(crate) fn an_event_carries_its_token<K: Kernel>(kernel: &K) {
    let (client, server) = pair(kernel);
    let mut bench = Bench::new(kernel);
    for (socket, token) in [(&client, u64::MAX), (&server, 0)] {
        kernel.add(socket, Interest::Stream, token).unwrap();
        let readiness = bench.next(token);
        assert!(readiness.is_writable() && !readiness.is_readable());
    }
    kernel.send(&client, b"x").unwrap();
    assert!(bench.next(0).is_readable());
}

pub(crate) fn what_is_ready_before_it_is_added_is_reported<K: Kernel>(kernel: &K) {
    let (client, server) = pair(kernel);
    kernel.send(&client, b"early").unwrap();
    let mut bench = Bench::new(kernel);
    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    let readiness = bench.find(SERVER, |readiness| readiness.is_readable());
    assert!(readiness.is_writable() && !readiness.must_read_to_end() && !readiness.is_error());
}

pub(crate) fn an_edge_is_given_once<K: Kernel>(kernel: &K) {
    let (mut bench, client, _server) = watched_pair(kernel);
    kernel.send(&client, b"unread").unwrap();
    assert!(bench.next(SERVER).is_readable());
    bench.expect_silence();
}

pub(crate) fn more_events_than_room_come_with_the_next_waits<K: Kernel>(kernel: &K) {
    let notifiers: Vec<K::Fd> = (0..5).map(|_| kernel.eventfd().unwrap()).collect();
    for (token, notifier) in (0..).zip(&notifiers) {
        kernel.add(notifier, Interest::Readable, token).unwrap();
        K::notify(notifier).unwrap();
    }
    let mut events = Events::with_capacity(2);
    let mut tokens = Vec::new();
    for expected in [2, 2, 1, 0] {
        kernel.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.len(), expected);
        tokens.extend((0..expected).map(|position| events.get(position).unwrap().token));
    }
    tokens.sort_unstable();
    assert_eq!(tokens, [0, 1, 2, 3, 4]);
}

pub(crate) fn a_deleted_descriptor_is_silent<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.delete(&server).unwrap();
    kernel.send(&client, b"x").unwrap();
    bench.expect_silence();
    assert_eq!(kernel.delete(&server), Err(Errno::ENOENT));
}

pub(crate) fn a_closed_descriptor_is_silent<K: Kernel>(kernel: &K) {
    let (client, server) = pair(kernel);
    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    kernel.send(&client, b"x").unwrap();
    drop(server);
    Bench::new(kernel).expect_silence();
}

pub(crate) fn adding_twice_is_an_error<K: Kernel>(kernel: &K) {
    let (client, _server) = pair(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    assert_eq!(kernel.add(&client, Interest::Stream, CLIENT), Err(Errno::EEXIST));
}

pub(crate) fn each_notification_is_an_edge<K: Kernel>(kernel: &K) {
    let notifier = kernel.eventfd().unwrap();
    kernel.add(&notifier, Interest::Readable, 5).unwrap();
    let mut bench = Bench::new(kernel);
    bench.expect_silence();
    for _ in 0..3 {
        // Never read, so it stays ready; only the notification makes the edge.
        K::notify(&notifier).unwrap();
        assert!(bench.next(5).is_readable());
        bench.expect_silence();
    }
}

pub(crate) fn a_notification_from_another_thread_ends_a_wait<K: Kernel>(kernel: &K) {
    let notifier = kernel.eventfd().unwrap();
    kernel.add(&notifier, Interest::Readable, 5).unwrap();
    let mut events = Events::with_capacity(1);
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| K::notify(&notifier).unwrap());
        // A simulated wait may be over before the thread has begun, so there may be many; a real one must not
        // last to its end.
        while events.is_empty() {
            assert!(start.elapsed() < PATIENCE, "nothing has ended the wait");
            kernel.wait(&mut events, Some(PATIENCE)).unwrap();
        }
    });
    assert!(start.elapsed() < PATIENCE && events.get(0).unwrap().readiness.is_readable());
}

pub(crate) fn what_is_added_again_is_reported_again<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"x").unwrap();
    bench.next(SERVER);
    kernel.delete(&server).unwrap();
    kernel.add(&server, Interest::Stream, SERVER + 10).unwrap();
    assert!(bench.next(SERVER + 10).is_readable());
    bench.expect_silence();
}

/// As for a connection that one loop gives to another.
pub(crate) fn what_came_while_it_was_not_registered_is_reported<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.delete(&server).unwrap();
    kernel.send(&client, b"x").unwrap();
    kernel.shutdown_write(&client).unwrap();
    bench.expect_silence();
    kernel.add(&server, Interest::Stream, SERVER + 10).unwrap();
    let readiness =
        bench.find(SERVER + 10, |readiness| readiness.is_readable() && readiness.must_read_to_end());
    assert!(readiness.is_writable());
}

pub(crate) fn only_what_was_asked_for_is_reported<K: Kernel>(kernel: &K) {
    let (client, server) = pair(kernel);
    kernel.add(&server, Interest::Readable, SERVER).unwrap();
    kernel.add(&client, Interest::Writable, CLIENT).unwrap();
    let mut bench = Bench::new(kernel);
    assert!(bench.next(CLIENT).is_writable());
    bench.expect_silence();
    kernel.send(&client, b"x").unwrap();
    let readiness = bench.next(SERVER);
    assert!(readiness.is_readable() && !readiness.is_writable());
}

pub(crate) fn what_is_no_longer_ready_is_not_reported<K: Kernel>(kernel: &K) {
    let (client, server) = pair(kernel);
    kernel.send(&client, b"x").unwrap();
    kernel.add(&server, Interest::Readable, SERVER).unwrap();
    let mut bench = Bench::new(kernel);
    bench.next(SERVER);
    kernel.delete(&server).unwrap();
    kernel.add(&server, Interest::Readable, SERVER).unwrap();
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(1));
    bench.expect_silence();
}

pub(crate) fn a_notification_is_counted<K: Kernel>(kernel: &K) {
    let notifier = kernel.eventfd().unwrap();
    let mut buffer = [0; 8];
    assert_eq!(kernel.read(&notifier, &mut buffer), Err(Errno::EAGAIN));
    K::notify(&notifier).unwrap();
    K::notify(&notifier).unwrap();
    assert_eq!(kernel.write(&notifier, &5_u64.to_ne_bytes()), Ok(8));
    assert_eq!(kernel.read(&notifier, &mut buffer[..7]), Err(Errno::EINVAL));
    assert_eq!(kernel.read(&notifier, &mut buffer), Ok(8));
    assert_eq!(u64::from_ne_bytes(buffer), 7);
    assert_eq!(kernel.read(&notifier, &mut buffer), Err(Errno::EAGAIN));
    assert_eq!(kernel.write(&notifier, &u64::MAX.to_ne_bytes()), Err(Errno::EINVAL));
    assert_eq!(kernel.write(&notifier, &[0; 3]), Err(Errno::EINVAL));
}

pub(crate) fn calls_on_the_wrong_kind_fail<K: Kernel>(kernel: &K) {
    let (listener, _) = listener(kernel);
    let (client, _server) = pair(kernel);
    let notifier = kernel.eventfd().unwrap();
    assert_eq!(kernel.recv(&listener, &mut [0; 4]), Err(Errno::ENOTCONN));
    assert_eq!(kernel.accept(&client).unwrap_err(), Errno::EINVAL);
    assert_eq!(kernel.recv(&notifier, &mut [0; 4]), Err(Errno::ENOTSOCK));
    assert_eq!(kernel.send(&notifier, b"x"), Err(Errno::ENOTSOCK));
    assert_eq!(kernel.accept(&notifier).unwrap_err(), Errno::ENOTSOCK);
    assert_eq!(kernel.shutdown_write(&notifier), Err(Errno::ENOTSOCK));
    assert_eq!(kernel.take_error(&notifier), Err(Errno::ENOTSOCK));
    assert_eq!(kernel.reset_on_close(&notifier), Err(Errno::ENOTSOCK));
    assert_eq!(kernel.local_address(&notifier), Err(Errno::ENOTSOCK));
    assert_eq!(K::notify(&client), Ok(()), "which is a write like another");
    assert_eq!(kernel.read_signal(&notifier), Ok(None));
}
