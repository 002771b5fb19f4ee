//! Bytes on their way, and the edges that tell of them.

use std::io::IoSlice;

use epoll_sys::{Errno, Interest, Kernel, Then};

use crate::bench::{
    Bench, CLIENT, SERVER, accept, fill, listener, pair, read_exactly, unix_pair, watched_pair,
};

pub(crate) fn bytes_come_as_they_were_sent<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    let data: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for (from, to, token) in [(&client, &server, SERVER), (&server, &client, CLIENT)] {
        let mut sent = 0;
        while sent < data.len() {
            let now = kernel.send(from, &data[sent..]).unwrap();
            assert_eq!(read_exactly(&mut bench, to, token, now), data[sent..sent + now]);
            sent += now;
        }
    }
}

pub(crate) fn a_short_read_leaves_nothing<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"12345").unwrap();
    assert!(!bench.find(SERVER, |readiness| readiness.is_readable()).must_read_to_end());
    let mut buffer = [0; 16];
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 5);
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap_err(), Errno::EAGAIN);
}

pub(crate) fn data_later_is_a_new_edge<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    let mut buffer = [0; 16];
    for _ in 0..3 {
        kernel.send(&client, b"12345").unwrap();
        assert!(bench.next(SERVER).is_readable());
        assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 5);
        bench.expect_silence();
    }
}

pub(crate) fn pieces_are_written_in_order<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    let pieces: Vec<[u8; 2]> = (0..=255).cycle().take(1024).map(|byte| [byte, byte]).collect();
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let sent = kernel.writev(&client, &slices, Then::Nothing).unwrap();
    assert_eq!(read_exactly(&mut bench, &server, SERVER, sent), pieces.concat()[..sent]);
    let empty_between = [IoSlice::new(b"a"), IoSlice::new(b""), IoSlice::new(b"b")];
    assert_eq!(kernel.writev(&client, &empty_between, Then::More).unwrap(), 2);
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 2), b"ab");
}

pub(crate) fn writing_nothing_is_no_error<K: Kernel>(kernel: &K) {
    let (client, _server) = pair(kernel);
    assert_eq!(kernel.send(&client, b""), Ok(0));
    assert_eq!(kernel.writev(&client, &[], Then::Nothing), Ok(0));
}

pub(crate) fn reading_into_nothing_says_nothing<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"x").unwrap();
    bench.next(SERVER);
    assert_eq!(kernel.recv(&server, &mut []), Ok(0), "which is not the end");
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(1));
}

pub(crate) fn a_full_socket_takes_more_after_one_edge<K: Kernel>(kernel: &K) {
    let (client, server) = pair(kernel);
    let mut bench = Bench::new(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    assert!(bench.next(CLIENT).is_writable());
    let sent = fill(kernel, &client);
    assert_eq!(kernel.send(&client, b"x"), Err(Errno::EAGAIN));
    bench.expect_silence();

    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    assert!(read_exactly(&mut bench, &server, SERVER, sent).iter().all(|&byte| byte == 7));
    assert!(bench.next(CLIENT).is_writable());
    assert_eq!(kernel.send(&client, b"x"), Ok(1));
}

pub(crate) fn what_was_sent_before_the_accept_is_there<K: Kernel>(kernel: &K) {
    let (listener, address) = listener(kernel);
    let (client, _) = kernel.connect(&address).unwrap();
    let mut bench = Bench::new(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    bench.find(CLIENT, |readiness| readiness.is_writable());
    kernel.send(&client, b"early").unwrap();
    kernel.shutdown_write(&client).unwrap();
    kernel.delete(&client).unwrap();

    let (server, _) = accept(kernel, &listener);
    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    assert!(bench.find(SERVER, |readiness| readiness.is_peer_shutdown()).must_read_to_end());
    let mut buffer = [0; 16];
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 5);
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 0);
}

pub(crate) fn data_and_end_in_one_event_must_be_read_to_the_end<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"last").unwrap();
    kernel.shutdown_write(&client).unwrap();
    let readiness = bench.find(SERVER, |readiness| readiness.is_peer_shutdown());
    assert!(readiness.is_readable() && readiness.must_read_to_end() && !readiness.is_hang_up());
    let mut buffer = [0; 16];
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 4);
    // This is why: the end is there to be read, and no edge will ever say so.
    bench.expect_silence();
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 0);
}

pub(crate) fn an_end_after_a_short_read_is_an_edge<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"last").unwrap();
    assert!(!bench.next(SERVER).must_read_to_end());
    let mut buffer = [0; 16];
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 4);
    kernel.shutdown_write(&client).unwrap();
    assert!(bench.next(SERVER).must_read_to_end());
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 0);
}

pub(crate) fn reading_into_nothing_of_an_empty_socket<K: Kernel>(kernel: &K) {
    let (_bench, _client, server) = watched_pair(kernel);
    assert_eq!(kernel.recv(&server, &mut []), Err(Errno::EAGAIN));
}

pub(crate) fn what_a_read_has_left_is_no_edge<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.send(&client, b"12345").unwrap();
    bench.next(SERVER);
    assert_eq!(kernel.recv(&server, &mut [0; 2]), Ok(2));
    bench.expect_silence();
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Ok(3));
}

pub(crate) fn more_data_is_an_edge_although_some_is_unread<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    for _ in 0..3 {
        kernel.send(&client, b"x").unwrap();
        assert!(bench.next(SERVER).is_readable());
        bench.expect_silence();
    }
    assert_eq!(kernel.recv(&server, &mut [0; 9]), Ok(3));
}

pub(crate) fn room_that_was_not_missed_is_no_edge<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    bench.next(CLIENT);
    kernel.send(&client, &[7; 1000]).unwrap();
    bench.next(SERVER);
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 1000).len(), 1000);
    bench.expect_silence();
}

pub(crate) fn a_full_unix_socket_takes_more_after_an_edge<K: Kernel>(kernel: &K) {
    let (client, server) = unix_pair(kernel);
    let mut bench = Bench::new(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    assert!(bench.next(CLIENT).is_writable());
    let sent = fill(kernel, &client);
    assert_eq!(kernel.send(&client, b"x"), Err(Errno::EAGAIN));
    bench.expect_silence();
    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    assert!(read_exactly(&mut bench, &server, SERVER, sent).iter().all(|&byte| byte == 7));
    assert!(bench.next(CLIENT).is_writable());
    assert_eq!(kernel.send(&client, b"x"), Ok(1));
}

pub(crate) fn sockets_are_read_and_written_like_anything_else<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    assert_eq!(kernel.write(&client, b"hello"), Ok(5));
    bench.next(SERVER);
    assert_eq!(kernel.read(&server, &mut [0; 9]), Ok(5));
    assert_eq!(kernel.read(&server, &mut [0; 9]), Err(Errno::EAGAIN));
}
