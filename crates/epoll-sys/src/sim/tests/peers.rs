//! Peers: what a test can do with them, and what the program sees of it.

use std::time::Duration;

use super::super::Received;
use super::*;
use crate::{ConnectProgress, Errno, Signal};

const SOON: Duration = Duration::from_millis(1);

#[test]
fn what_is_sent_is_on_its_way_until_it_arrives() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    assert_eq!(peer.send(b"hello"), 5);
    assert_eq!((peer.unsent(), peer.unread_there()), (5, 0));
    assert_eq!(kernel.recv(&server, &mut [0; 8]), Err(Errno::EAGAIN));
    sim.advance(SOON);
    assert_eq!((peer.unsent(), peer.unread_there()), (0, 5));
    assert_eq!(kernel.recv(&server, &mut [0; 8]), Ok(5));
    kernel.send(&server, b"to you").unwrap();
    assert_eq!(peer.recv(4), Received::Nothing);
    assert_eq!((peer.unread_there(), peer.read_there(), peer.unsent_there()), (0, 5, 6));
    sim.advance(SOON);
    assert_eq!(peer.unsent_there(), 0);
    assert_eq!((peer.unread(), peer.recv(4)), (6, Received::Bytes(b"to y".to_vec())));
    assert_eq!(peer.recv_all(), b"ou");
    assert_eq!(peer.recv(4), Received::Nothing);
}

#[test]
fn a_closed_window_holds_the_sender_up() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    peer.set_receive_buffer(0);
    let mut sent = 0;
    while let Ok(count) = kernel.send(&server, &[7; 100_000]) {
        sent += count;
    }
    assert_eq!(sent, sim.world().faults.network.send_buffer.0);
    sim.advance(Duration::from_secs(100));
    assert_eq!(wait(&kernel), []);
    peer.set_receive_buffer(1_000_000);
    assert!(next(&kernel).1.is_writable());
    sim.advance(SOON);
    assert_eq!(peer.recv_all().len(), sent);
}

#[test]
fn an_end_and_a_reset_are_told_to_the_peer() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    kernel.shutdown_write(&server).unwrap();
    sim.advance(SOON);
    assert!(peer.is_ended() && !peer.is_reset());
    assert_eq!((peer.recv(1), peer.recv(1)), (Received::End, Received::End));
    kernel.reset_on_close(&server).unwrap();
    kernel.delete(&server).unwrap();
    drop(server);
    sim.advance(SOON);
    assert!(peer.is_reset() && peer.send(b"x") == 0);

    let (sim, kernel, server, peer) = pair(1, Faults::none());
    peer.send(b"unread");
    sim.advance(SOON);
    kernel.delete(&server).unwrap();
    drop(server);
    sim.advance(SOON);
    assert_eq!(peer.recv(1), Received::Failed(Errno::ECONNRESET));
    assert_eq!(peer.recv(1), Received::End);
}

/// As measured on Linux 6.18: the acknowledgement of the FIN is a change of state of its own.
#[test]
fn ones_own_end_is_an_edge_and_so_is_its_arrival() {
    let (_sim, kernel, server, _peer) = pair(1, Faults::none());
    kernel.shutdown_write(&server).unwrap();
    assert_eq!(wait(&kernel).len(), 1);
    assert_eq!(wait_for(&kernel, SOON).len(), 1);
    assert_eq!(wait_for(&kernel, SOON), []);
}

#[test]
fn a_peer_closes_with_an_end_or_with_a_reset() {
    for (unread, linger) in [(false, false), (true, false), (false, true)] {
        let (sim, kernel, server, peer) = pair(1, Faults::none());
        if unread {
            kernel.send(&server, b"never read").unwrap();
            sim.advance(SOON);
        }
        if linger {
            peer.reset();
        } else {
            peer.close();
        }
        let (_, readiness) = next(&kernel);
        assert_eq!(readiness.is_error(), unread || linger);
        assert!(readiness.is_peer_shutdown());
    }
}

#[test]
fn urgent_data_stops_a_read_at_the_mark() {
    let (_sim, kernel, server, peer) = pair(1, Faults::none());
    peer.send(b"0123456789");
    assert!(peer.send_urgent(b'!'));
    peer.send(b"abcdefghij");
    let (_, readiness) = next(&kernel);
    assert!(readiness.must_read_to_end() && !readiness.is_peer_shutdown());
    let mut buffer = [0; 64];
    assert_eq!(kernel.recv(&server, &mut buffer), Ok(10));
    assert_eq!(wait(&kernel), [], "no edge tells of the rest");
    assert_eq!(kernel.recv(&server, &mut buffer), Ok(10));
    assert_eq!(&buffer[..10], b"abcdefghij");
    assert_eq!(kernel.recv(&server, &mut buffer), Err(Errno::EAGAIN));
}

/// As measured on Linux 6.18: the mark moves to the later byte, and the earlier one becomes an ordinary one,
/// unless the reader stands right before it.
#[test]
fn there_is_one_urgent_mark() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    let mut buffer = [0; 64];
    peer.send_urgent(b'!');
    let (_, readiness) = next(&kernel);
    assert!(readiness.must_read_to_end());
    assert_eq!(kernel.recv(&server, &mut buffer), Err(Errno::EAGAIN));
    for piece in [b"01!cd?ef", b"gh!ij?kl"] {
        for &byte in piece {
            if b"!?".contains(&byte) {
                peer.send_urgent(byte);
            } else {
                peer.send(&[byte]);
            }
            sim.advance(SOON);
        }
        assert_eq!(kernel.recv(&server, &mut buffer), Ok(5));
        assert_eq!(buffer[..5], piece[..5]);
        assert_eq!(kernel.recv(&server, &mut buffer), Ok(2));
        assert_eq!(buffer[..2], piece[6..]);
        assert_eq!(kernel.recv(&server, &mut buffer), Err(Errno::EAGAIN));
    }
    peer.send_urgent(b'!');
    sim.advance(SOON);
    peer.send_urgent(b'?');
    peer.send(b"ef");
    sim.advance(SOON);
    assert_eq!(kernel.recv(&server, &mut buffer), Ok(2));
    assert_eq!(&buffer[..2], b"ef");
}

#[test]
fn the_program_connects_to_a_peer_that_listens() {
    let sim = Sim::new(1, Faults::none());
    let kernel = sim.kernel();
    let everywhere = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let listener = sim.listen(&everywhere, &ListenOptions::default()).unwrap();
    let (client, progress) = kernel.connect(&listener.address()).unwrap();
    assert_eq!(progress, ConnectProgress::InProgress);
    assert_eq!(kernel.send(&client, b"early"), Err(Errno::EAGAIN));
    assert_eq!(kernel.recv(&client, &mut [0; 4]), Err(Errno::EAGAIN));
    kernel.add(&client, Interest::Stream, 1).unwrap();
    assert!(next(&kernel).1.is_writable());
    assert_eq!(kernel.take_error(&client), Ok(None));
    kernel.send(&client, b"hello").unwrap();
    let peer = listener.accept().unwrap();
    assert!(listener.accept().is_none());
    sim.advance(SOON);
    assert_eq!(peer.recv_all(), b"hello");
}

#[test]
fn a_full_backlog_delays_a_connect_and_fails_it_in_the_end() {
    let sim = Sim::new(1, Faults::none());
    let kernel = sim.kernel();
    let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
    let listener = sim.listen(&here(), &options).unwrap();
    let first = sim.connect(&here()).unwrap();
    assert_eq!(sim.connect(&here()).unwrap_err(), Errno::EAGAIN);
    let clients = [kernel.connect(&here()).unwrap().0, kernel.connect(&here()).unwrap().0];
    for (client, token) in clients.iter().zip(0..) {
        kernel.add(client, Interest::Stream, token).unwrap();
    }
    assert_eq!(wait_for(&kernel, SOON), []);
    listener.accept().unwrap();
    let (token, readiness) = next(&kernel);
    assert!(token == 0 && readiness.is_writable() && !readiness.is_error());
    let (token, readiness) = next(&kernel);
    assert!(token == 1 && readiness.is_error());
    assert_eq!(kernel.take_error(&clients[1]), Ok(Some(Errno::ETIMEDOUT)));
    drop(first);
}

#[test]
fn signals_are_read_one_by_one_the_lowest_number_first() {
    let sim = Sim::new(1, Faults::none());
    let kernel = sim.kernel();
    sim.raise(Signal::User1);
    let signals = kernel.signalfd(&[Signal::Terminate, Signal::User2, Signal::Hangup]).unwrap();
    kernel.add(&signals, Interest::Readable, 1).unwrap();
    assert_eq!(kernel.read_signal(&signals), Ok(None));
    assert_eq!(wait(&kernel), [], "it is not asked for the one that is pending");
    sim.raise(Signal::Terminate);
    sim.raise(Signal::Hangup);
    sim.raise(Signal::Hangup);
    assert!(next(&kernel).1.is_readable());
    assert_eq!(kernel.read_signal(&signals), Ok(Some(Signal::Hangup)));
    assert_eq!(kernel.read_signal(&signals), Ok(Some(Signal::Terminate)));
    assert_eq!(kernel.read_signal(&signals), Ok(None));
    let late = kernel.signalfd(&[Signal::User1]).unwrap();
    assert_eq!(kernel.read_signal(&late), Ok(Some(Signal::User1)));
}

/// The same as the test of the real kernel.
#[test]
fn pipes_can_be_waited_for_at_both_ends() {
    let sim = Sim::new(1, Faults::none());
    let kernel = sim.kernel();
    let (reader, writer) = sim.pipe().unwrap();
    kernel.add(&writer, Interest::Writable, 1).unwrap();
    assert!(next(&kernel).1.is_writable());
    let mut room = 0;
    while let Ok(written) = kernel.write(&writer, &[7; 4096]) {
        room += written;
    }
    assert_eq!((room, kernel.write(&writer, b"x")), (65_536, Err(Errno::EAGAIN)));
    let mut buffer = vec![0; room];
    assert_eq!(kernel.read(&reader, &mut buffer[..100]), Ok(100));
    assert_eq!(wait(&kernel), [], "no page is free");
    assert_eq!(kernel.read(&reader, &mut buffer), Ok(room - 100));
    assert!(next(&kernel).1.is_writable());
    assert_eq!(kernel.read(&reader, &mut buffer), Err(Errno::EAGAIN));
    kernel.add(&reader, Interest::Readable, 2).unwrap();
    kernel.delete(&writer).unwrap();
    drop(writer);
    let (token, readiness) = next(&kernel);
    assert!(token == 2 && readiness.is_readable() && readiness.is_hang_up());
    assert_eq!(kernel.read(&reader, &mut buffer), Ok(0));

    let (reader, writer) = sim.pipe().unwrap();
    drop(reader);
    kernel.add(&writer, Interest::Writable, 3).unwrap();
    let (token, readiness) = next(&kernel);
    assert!(token == 3 && readiness.is_error());
    assert_eq!(kernel.write(&writer, b"x"), Err(Errno::EPIPE));
}

#[test]
fn nothing_is_left_of_connections_that_are_over() {
    for seed in 0..2_000 {
        let faults = Faults::swarm(seed);
        let network = faults.network.clone();
        let (sim, kernel, server, peer) = pair(seed, Faults { network, ..Faults::none() });
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut server, mut peer) = (Some(server), Some(peer));
        while server.is_some() || peer.is_some() {
            match rng.u8(0..9) {
                0 => drop(server.as_ref().map(|server| kernel.send(server, &[7; 5000]))),
                1 => drop(peer.as_ref().map(|peer| peer.send(&[7; 5000]))),
                2 => drop(server.as_ref().map(|server| kernel.recv(server, &mut [0; 3000]))),
                3 => drop(peer.as_ref().map(|peer| peer.recv(3000))),
                4 => drop(server.as_ref().map(|server| kernel.shutdown_write(server))),
                5 => drop(peer.as_ref().map(Peer::shutdown_write)),
                6 if rng.bool() => drop(peer.take()),
                7 if rng.bool() => {
                    if let Some(server) = server.take() {
                        if rng.bool() {
                            kernel.reset_on_close(&server).unwrap();
                        }
                        kernel.delete(&server).unwrap();
                    }
                }
                _ => sim.advance(Duration::from_micros(rng.u64(1..10_000))),
            }
        }
        sim.advance(Duration::from_secs(1_000));
        assert_eq!(sim.next_happening(), None);
        let left = sim.world().objects.iter().count();
        assert_eq!(left, 0, "seed {seed}: {:#?}", sim.trace());
    }
}

#[test]
fn the_trace_tells_who_is_who() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    sim.note("as the test sees it");
    let number = server.number();
    let socket = format!("{peer:?}").split(['#', ',']).nth(1).unwrap().to_owned();
    assert_eq!(sim.who_is(SERVER), Some(format!("fd {number}, its other end socket #{socket}")));
    assert_eq!(sim.who_is(99), None);
    let trace = sim.trace().join("\n");
    let accepted = trace.split("accept socket #").nth(1).unwrap().lines().next().unwrap();
    assert!(accepted.ends_with(&format!("as fd {number}")), "{accepted}");
    assert!(trace.contains(&format!("fd {number}: add {SERVER}.0")), "{trace}");
    assert!(trace.contains(&format!("epoll 0: event {SERVER}.0 EPOLLOUT")), "{trace}");
    assert!(trace.ends_with("note: as the test sees it"), "{trace}");
    kernel.delete(&server).unwrap();
    assert_eq!(sim.who_is(SERVER), None);
}

#[test]
fn who_has_something_to_look_at_is_told_and_nobody_else() {
    let sim = Sim::new(1, Faults::none());
    let kernel = sim.kernel();
    let listener = listen(&kernel);
    let mut pairs: Vec<_> = (0..4)
        .map(|_| {
            let peer = sim.connect(&here()).unwrap();
            (kernel.accept(&listener).unwrap().0, peer)
        })
        .collect();
    assert_eq!(sim.stirred(), [], "nobody had asked before");
    kernel.send(&pairs[2].0, b"some").unwrap();
    kernel.shutdown_write(&pairs[0].0).unwrap();
    assert_eq!(sim.stirred(), [], "it is on its way");
    sim.advance(Duration::from_secs(1));
    let number = |index: usize| pairs[index].1.number();
    assert_eq!(sim.stirred(), [number(0), number(2)]);
    sim.advance(Duration::from_secs(1));
    assert_eq!(sim.stirred(), []);
    let reset = number(3);
    let (server, peer) = pairs.pop().unwrap();
    drop(listener);
    // One that has something unread is closed by a reset.
    peer.send(b"x");
    sim.advance(Duration::from_secs(1));
    drop(server);
    sim.advance(Duration::from_secs(1));
    assert_eq!(sim.stirred(), [reset]);
    assert!(peer.is_reset());
}
