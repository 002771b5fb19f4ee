//! How connections end: by FIN, by RST, and by halves.

use epoll_sys::{Errno, Interest, Kernel};

use crate::bench::{Bench, CLIENT, LISTENER, SERVER, listener, read_exactly, unix_pair, watched_pair};

pub(crate) fn the_end_is_read_again_and_again<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.shutdown_write(&client).unwrap();
    bench.find(SERVER, |readiness| readiness.is_peer_shutdown());
    for _ in 0..3 {
        assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(0));
    }
}

pub(crate) fn half_closed_is_not_closed<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    kernel.shutdown_write(&client).unwrap();
    bench.find(SERVER, |readiness| readiness.is_peer_shutdown());
    assert_eq!(kernel.send(&server, b"answer"), Ok(6));
    assert_eq!(read_exactly(&mut bench, &client, CLIENT, 6), b"answer");
}

pub(crate) fn writing_after_shutdown_is_a_broken_pipe<K: Kernel>(kernel: &K) {
    let (_bench, client, _server) = watched_pair(kernel);
    kernel.shutdown_write(&client).unwrap();
    assert_eq!(kernel.send(&client, b"x"), Err(Errno::EPIPE));
    assert_eq!(kernel.shutdown_write(&client), Ok(()), "twice is no error");
}

pub(crate) fn closing_ends_the_stream_of_the_peer<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"bye").unwrap();
    drop(client);
    let readiness = bench.find(SERVER, |readiness| readiness.is_peer_shutdown());
    assert!(!readiness.is_error());
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 3), b"bye");
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(0));
}

pub(crate) fn both_ends_shut_hang_up<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.shutdown_write(&server).unwrap();
    kernel.shutdown_write(&client).unwrap();
    let readiness = bench.find(SERVER, |readiness| readiness.is_hang_up());
    assert!(readiness.must_read_to_end() && readiness.is_readable() && readiness.is_writable());
}

pub(crate) fn a_reset_reaches_the_peer_as_an_error<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    let readiness = bench.find(SERVER, |readiness| readiness.is_error());
    assert!(readiness.must_read_to_end() && readiness.is_hang_up());
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Err(Errno::ECONNRESET));
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(0), "the error is told once");
}

pub(crate) fn an_error_is_taken_once<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    assert_eq!(kernel.take_error(&server), Ok(None));
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    bench.find(SERVER, |readiness| readiness.is_error());
    assert_eq!(kernel.take_error(&server), Ok(Some(Errno::ECONNRESET)));
    assert_eq!(kernel.take_error(&server), Ok(None));
}

pub(crate) fn closing_with_unread_input_resets<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    kernel.send(&client, b"never read").unwrap();
    bench.find(SERVER, |readiness| readiness.is_readable());
    drop(server);
    bench.find(CLIENT, |readiness| readiness.is_error());
    assert_eq!(kernel.recv(&client, &mut [0; 4]), Err(Errno::ECONNRESET));
}

pub(crate) fn a_reset_connection_takes_no_more<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    bench.find(SERVER, |readiness| readiness.is_error());
    assert_eq!(kernel.send(&server, b"x"), Err(Errno::ECONNRESET));
    assert_eq!(kernel.send(&server, b"x"), Err(Errno::EPIPE));
}

pub(crate) fn shutdown_after_a_reset_is_not_connected<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    bench.find(SERVER, |readiness| readiness.is_error());
    assert_eq!(kernel.shutdown_write(&server), Err(Errno::ENOTCONN));
}

pub(crate) fn data_before_a_reset_can_still_be_read<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"hello").unwrap();
    bench.find(SERVER, |readiness| readiness.is_readable());
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    bench.find(SERVER, |readiness| readiness.is_error());
    let mut buffer = [0; 3];
    assert_eq!(kernel.recv(&server, &mut buffer), Ok(3));
    assert_eq!(kernel.recv(&server, &mut buffer), Ok(2));
    assert_eq!(kernel.recv(&server, &mut buffer), Err(Errno::ECONNRESET));
    assert_eq!(kernel.recv(&server, &mut buffer), Ok(0));
}

pub(crate) fn an_error_that_a_write_was_told_is_not_told_to_a_read<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"hello").unwrap();
    bench.find(SERVER, |readiness| readiness.is_readable());
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    bench.find(SERVER, |readiness| readiness.is_error());
    assert_eq!(kernel.send(&server, b"x"), Err(Errno::ECONNRESET));
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Ok(5));
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Ok(0));
}

pub(crate) fn writing_to_a_closed_peer_breaks_the_pipe<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    drop(client);
    bench.find(SERVER, |readiness| readiness.is_peer_shutdown());
    assert_eq!(kernel.send(&server, b"x"), Ok(1), "the peer has yet to say that nobody is there");
    let readiness = bench.find(SERVER, |readiness| readiness.is_error());
    assert!(readiness.is_hang_up() && readiness.must_read_to_end());
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Ok(0), "the end has come before the error");
    assert_eq!(kernel.take_error(&server), Ok(Some(Errno::EPIPE)));
    assert_eq!(kernel.send(&server, b"x"), Err(Errno::EPIPE));
    assert_eq!(kernel.shutdown_write(&server), Err(Errno::ENOTCONN));
}

pub(crate) fn a_reset_after_the_end_is_a_broken_pipe<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.shutdown_write(&client).unwrap();
    bench.find(SERVER, |readiness| readiness.is_peer_shutdown());
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    bench.find(SERVER, |readiness| readiness.is_error());
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Ok(0));
    assert_eq!(kernel.send(&server, b"x"), Err(Errno::EPIPE));
    assert_eq!(kernel.take_error(&server), Ok(None));
}

pub(crate) fn ones_own_end_is_an_edge<K: Kernel>(kernel: &K) {
    let (mut bench, _client, server) = watched_pair(kernel);
    kernel.shutdown_write(&server).unwrap();
    let readiness = bench.next(SERVER);
    assert!(readiness.is_writable() && !readiness.is_readable() && !readiness.is_hang_up());
}

pub(crate) fn ending_what_has_ended_is_not_connected<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    kernel.shutdown_write(&client).unwrap();
    bench.find(SERVER, |readiness| readiness.is_peer_shutdown());
    kernel.shutdown_write(&server).unwrap();
    bench.find(CLIENT, |readiness| readiness.is_hang_up());
    assert_eq!(kernel.shutdown_write(&server), Err(Errno::ENOTCONN));
}

pub(crate) fn data_comes_after_ones_own_end<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.shutdown_write(&server).unwrap();
    kernel.send(&client, b"late").unwrap();
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 4), b"late");
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Err(Errno::EAGAIN));
}

pub(crate) fn a_closed_listener_resets_what_waits<K: Kernel>(kernel: &K) {
    let (listener, address) = listener(kernel);
    let (client, _) = kernel.connect(&address).unwrap();
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    kernel.add(&listener, Interest::Readable, LISTENER).unwrap();
    let mut bench = Bench::new(kernel);
    bench.find(LISTENER, |readiness| readiness.is_readable());
    kernel.delete(&listener).unwrap();
    drop(listener);
    bench.find(CLIENT, |readiness| readiness.is_error());
    assert_eq!(kernel.recv(&client, &mut [0; 9]), Err(Errno::ECONNRESET));
}

pub(crate) fn a_closed_unix_peer_hangs_up<K: Kernel>(kernel: &K) {
    let (client, server) = unix_pair(kernel);
    let mut bench = Bench::new(kernel);
    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    kernel.send(&client, b"bye").unwrap();
    // Which is for TCP alone.
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    let readiness = bench.find(SERVER, |readiness| readiness.is_hang_up());
    assert!(readiness.is_peer_shutdown() && readiness.is_writable() && !readiness.is_error());
    assert_eq!(kernel.send(&server, b"x"), Err(Errno::EPIPE));
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Ok(3));
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Ok(0));
    assert_eq!(kernel.shutdown_write(&server), Ok(()));
}

pub(crate) fn a_unix_peer_closed_with_unread_input_resets<K: Kernel>(kernel: &K) {
    let (client, server) = unix_pair(kernel);
    let mut bench = Bench::new(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    kernel.send(&client, b"never read").unwrap();
    kernel.send(&server, b"answer").unwrap();
    drop(server);
    bench.find(CLIENT, |readiness| readiness.is_error() && readiness.is_hang_up());
    assert_eq!(kernel.send(&client, b"x"), Err(Errno::EPIPE));
    assert_eq!(kernel.recv(&client, &mut [0; 9]), Ok(6));
    assert_eq!(kernel.recv(&client, &mut [0; 9]), Err(Errno::ECONNRESET));
    assert_eq!(kernel.recv(&client, &mut [0; 9]), Ok(0));
}
