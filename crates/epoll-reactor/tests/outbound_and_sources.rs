//! Connections that the loop makes itself, and other descriptors that it watches.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use epoll_reactor::{
    Address, CloseReason, ConnId, Ctx, Errno, Interest, Kernel, Limits, Linux, ListenOptions, SendOutcome,
};
use nix::fcntl::OFlag;
use support::{Call, Harness, KIB, Method, Script, assert_same, pattern};

/// Somebody to connect to, who is not the loop.
fn somebody() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    (listener, address)
}

/// The other end of what the loop has connected; reading from it does not take for ever.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let started = Instant::now();
    loop {
        match listener.accept() {
            Ok((other, _)) => {
                other.set_nonblocking(false).unwrap();
                other.set_read_timeout(Some(support::PATIENCE)).unwrap();
                return other;
            }
            Err(_) => assert!(started.elapsed() < support::PATIENCE, "nobody connects"),
        }
    }
}

#[test]
fn an_outbound_connection_opens_and_is_served_like_any_other() {
    let mut harness = Harness::new(Script::default());
    let (listener, address) = somebody();
    let id = harness.ctx().connect(address.clone()).unwrap();
    assert_eq!(harness.ctx().peer_address(id), Some(address));
    harness.until("on_open", |script| script.opened() == [id]);
    assert_eq!(harness.ctx().listener(id), None);
    let mut other = accept(&listener);
    other.write_all(b"echo this").unwrap();
    harness.until("the data", |script| script.inputs(id).concat() == b"echo this");
    let mut answer = [0; 9];
    other.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"echo this");
    drop(other);
    assert_eq!(harness.closed(id), CloseReason::PeerClosed);
    assert_eq!((harness.ctx().counters().connected, harness.ctx().counters().accepted), (1, 0));
}

#[test]
fn a_loop_may_talk_to_itself() {
    // The outbound end says hello and closes at the answer; the accepted end echoes.
    let outbound = Rc::new(Cell::new(None));
    let script = Script::default()
        .open({
            let outbound = Rc::clone(&outbound);
            move |ctx, id| {
                if outbound.get() == Some(id) {
                    assert!(ctx.send(id, b"hello").is_accepted());
                }
            }
        })
        .data({
            let outbound = Rc::clone(&outbound);
            move |ctx, id, input| {
                if outbound.get() == Some(id) {
                    ctx.close_after_flush(id);
                } else {
                    assert!(ctx.send(id, input).is_accepted());
                }
                input.len()
            }
        });
    let mut harness = Harness::new(script);
    let address = harness.address.clone();
    let id = harness.ctx().connect(address).unwrap();
    outbound.set(Some(id));
    harness.until("both ends", |script| script.count(|call| matches!(call, Call::Close(..))) == 2);
    assert_eq!(harness.script().closed(id), Some(CloseReason::Local));
    assert_eq!(harness.script().inputs(id), [b"hello"]);
}

#[test]
fn a_connection_to_a_unix_socket_is_made_at_once() {
    let mut harness = Harness::unix(Script::default(), Limits::default());
    let address = harness.address.clone();
    let id = harness.ctx().connect(address).unwrap();
    harness.until("both ends", |script| script.opened().len() == 2);
    assert!(harness.script().opened().contains(&id));
    harness.ctx().close_now(id);
    harness.until("both ends of it", |script| script.count(|call| matches!(call, Call::Close(..))) == 2);
}

#[test]
fn what_is_sent_before_it_is_made_goes_out_first_and_in_order() {
    let script = Script::default().open(|ctx, id| {
        assert!(ctx.send(id, b"third,").is_accepted());
        assert!(ctx.send_shared(id, Bytes::from_static(b"fourth")).is_accepted());
    });
    let mut harness = Harness::new(script);
    let (listener, address) = somebody();
    let id = harness.ctx().connect(address).unwrap();
    assert!(harness.ctx().send(id, b"first,").is_accepted());
    assert!(harness.ctx().send_shared(id, Bytes::from_static(b"second,")).is_accepted());
    harness.until("on_open", |script| script.opened() == [id]);
    let mut other = accept(&listener);
    harness.settle();
    let mut received = [0; 25];
    other.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"first,second,third,fourth");
}

#[test]
fn one_that_is_refused_gets_on_close_alone() {
    let mut harness = Harness::new(Script::default());
    let (listener, address) = somebody();
    drop(listener);
    let id = harness.ctx().connect(address).unwrap();
    assert!(harness.ctx().send(id, b"to nobody").is_accepted());
    assert_eq!(harness.closed(id), CloseReason::ConnectFailed(Errno::ECONNREFUSED));
    assert_eq!(harness.script().calls.len(), 1);
    assert_eq!(harness.script().stats[&id].bytes_unsent, 9);
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn one_that_cannot_even_be_started_gets_on_close_too() {
    for (method, errno) in [
        (Method::Connect, Errno::EMFILE),
        (Method::Connect, Errno::ENETUNREACH),
        (Method::Add, Errno::ENOMEM),
    ] {
        let mut harness = Harness::new(Script::default());
        let (_listener, address) = somebody();
        harness.kernel.fail(method, errno, 1);
        let id = harness.ctx().connect(address).unwrap();
        assert_eq!(harness.closed(id), CloseReason::ConnectFailed(errno));
        assert_eq!(harness.script().calls.len(), 1);
        harness.open();
    }
}

#[test]
fn one_that_is_not_made_in_time_is_given_up() {
    // A listener whose backlog is full answers nobody.
    let kernel = Linux::new().unwrap();
    let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
    let full = kernel.listen(&Address::Tcp("127.0.0.1:0".parse().unwrap()), &options).unwrap();
    let address = kernel.local_address(&full).unwrap();
    let _waiting = TcpStream::connect(address.as_tcp().unwrap()).unwrap();
    let mut harness = Harness::new(Script::default());
    harness.stop_clock();
    let id = harness.ctx().connect(address).unwrap();
    harness.turn();
    harness.advance(Duration::from_secs(10) - Duration::from_nanos(1));
    assert_eq!(harness.script().closed(id), None);
    harness.advance(Duration::from_nanos(1));
    assert_eq!(harness.script().closed(id), Some(CloseReason::ConnectFailed(Errno::ETIMEDOUT)));
}

#[test]
fn one_that_is_closed_before_it_is_made_never_opens_but_delivers_what_was_sent() {
    let mut harness = Harness::new(Script::default());
    let (listener, address) = somebody();
    let id = harness.ctx().connect(address.clone()).unwrap();
    assert!(harness.ctx().send(id, b"fire and forget").is_accepted());
    harness.ctx().close_after_flush(id);
    assert_eq!(harness.ctx().send(id, b"x"), SendOutcome::Gone(b"x".as_slice()));
    harness.settle();
    let mut other = accept(&listener);
    let mut received = Vec::new();
    other.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"fire and forget");
    drop(other);
    assert_eq!(harness.closed(id), CloseReason::Local);
    assert_eq!(harness.script().opened(), []);

    for close in [Ctx::close_now, Ctx::abort] {
        let id = harness.ctx().connect(address.clone()).unwrap();
        close(harness.ctx(), id);
        assert_eq!(harness.closed(id), CloseReason::Local);
    }
    assert_eq!(harness.kernel.count(Method::Connect), 1, "nor is it started");
    assert_eq!(harness.script().opened(), []);
}

#[test]
fn outbound_connections_count_against_the_limit() {
    let mut harness = Harness::with(Script::default(), Limits { connections: 1, ..Limits::default() });
    let (_listener, address) = somebody();
    assert!(harness.ctx().connect(address.clone()).is_some());
    assert!(harness.ctx().connect(address).is_none());
}

#[test]
fn a_large_message_is_sent_whole_once_the_connection_is_made() {
    let mut harness = Harness::new(Script::default());
    let (listener, address) = somebody();
    let id = harness.ctx().connect(address).unwrap();
    let sent = pattern(4 * 1024 * KIB);
    assert!(harness.ctx().send(id, &sent).is_accepted());
    let receiver = std::thread::spawn(move || {
        let mut other = accept(&listener);
        let mut received = Vec::new();
        other.read_to_end(&mut received).unwrap();
        received
    });
    harness.until("on_open", |script| script.opened() == [id]);
    harness.ctx().close_after_flush(id);
    harness.closed(id);
    assert_same(&receiver.join().unwrap(), &sent);
}

/// A non-blocking pipe.
fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap()
}

#[test]
fn the_read_end_of_a_pipe_is_watched_until_it_is_let_go() {
    let received = Rc::new(RefCell::new(Vec::new()));
    let script = Script::default().ready({
        let received = Rc::clone(&received);
        move |_, _, source| {
            let mut buffer = [0; 16];
            loop {
                match source.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => received.borrow_mut().extend_from_slice(&buffer[..length]),
                    Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
    });
    let mut harness = Harness::new(script);
    let (reader, writer) = pipe();
    let mut writer = File::from(writer);
    writer.write_all(b"there before").unwrap();
    let id = harness.reactor.watch(reader, Interest::Readable).unwrap();
    harness.until_loop("what was there", |_| *received.borrow() == b"there before");
    for round in 1..=3 {
        received.borrow_mut().clear();
        writer.write_all(&pattern(1000 * round)).unwrap();
        harness.until_loop("what came", |_| received.borrow().len() == 1000 * round);
        assert_same(&received.borrow(), &pattern(1000 * round));
    }
    harness.ctx().unwatch(id);
    harness.ctx().unwatch(id);
    harness.turn();
    let error = writer.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe, "it is closed");
}

#[test]
fn the_write_end_of_a_pipe_says_when_there_is_room_again() {
    let left = Rc::new(Cell::new(300 * KIB));
    let script = Script::default().ready({
        let left = Rc::clone(&left);
        move |ctx, id, source| {
            while left.get() > 0 {
                match source.write(&vec![7; left.get().min(4096)]) {
                    Ok(length) => left.set(left.get() - length),
                    Err(error) => return assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            ctx.unwatch(id);
        }
    });
    let mut harness = Harness::new(script);
    let (reader, writer) = pipe();
    harness.reactor.watch(writer, Interest::Writable).unwrap();
    harness.settle();
    assert!(left.get() > 0 && left.get() < 300 * KIB);
    let mut reader = File::from(reader);
    let mut received = Vec::new();
    harness.until_loop("the end of the pipe", |_| match reader.read_to_end(&mut received) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        end => end.is_ok(),
    });
    assert_same(&received, &vec![7; 300 * KIB]);
}

#[test]
fn what_cannot_be_waited_for_is_refused() {
    let mut harness = Harness::new(Script::default());
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    assert_eq!(
        harness.reactor.watch(file, Interest::Readable).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    harness.open();
}

#[test]
fn a_source_let_go_and_another_watched_do_not_take_each_other_s_events() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let script = Script::default().ready({
        let seen = Rc::clone(&seen);
        move |_, id, source| {
            let mut buffer = [0; 16];
            while source.read(&mut buffer).is_ok_and(|length| length > 0) {}
            seen.borrow_mut().push(id);
        }
    });
    let mut harness = Harness::new(script);
    let (reader, _writer) = pipe();
    let first = harness.reactor.watch(reader, Interest::Readable).unwrap();
    harness.ctx().unwatch(first);
    harness.turn();
    let (reader, writer) = pipe();
    let second = harness.reactor.watch(reader, Interest::Readable).unwrap();
    assert_ne!(first, second);
    harness.ctx().unwatch(first);
    File::from(writer.try_clone().unwrap()).write_all(b"x").unwrap();
    harness.until_loop("the event", |_| !seen.borrow().is_empty());
    assert!(seen.borrow().iter().all(|id| *id == second));
}

#[test]
fn sources_may_send_to_connections() {
    let target = Rc::new(Cell::new(None::<ConnId>));
    let script = Script::default().ready({
        let target = Rc::clone(&target);
        move |ctx, _, source| {
            let mut buffer = [0; 64];
            while let Ok(length @ 1..) = source.read(&mut buffer) {
                assert!(ctx.send(target.get().unwrap(), &buffer[..length]).is_accepted());
            }
        }
    });
    let mut harness = Harness::new(script);
    let (mut peer, id) = harness.open();
    target.set(Some(id));
    let (reader, writer) = pipe();
    harness.reactor.watch(reader, Interest::Readable).unwrap();
    File::from(writer).write_all(b"from the pipe").unwrap();
    assert_eq!(harness.receive(&mut peer, 13), b"from the pipe");
}
