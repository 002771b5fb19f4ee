//! Files on their way into a socket, and what that says of either.

use std::fs::File;
use std::io::{Seek, Write};

use epoll_sys::{Errno, Interest, Kernel, Then};

use crate::bench::{Bench, CLIENT, SERVER, fill, pair, read_exactly, unix_pair, watched_pair};

fn file_of(data: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    file
}

pub(crate) fn a_part_of_a_file_is_sent_whole_and_its_position_stays<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    let data: Vec<u8> = (0..=255).cycle().take(3_000).collect();
    let mut file = file_of(&data);
    assert_eq!(kernel.sendfile(&client, &file, 100, 1_000), Ok(1_000));
    assert_eq!(kernel.sendfile(&client, &file, 0, 100), Ok(100));
    let expected = [&data[100..1_100], &data[..100]].concat();
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 1_100), expected);
    assert_eq!(file.stream_position().unwrap(), 3_000);
}

pub(crate) fn a_file_follows_what_was_said_to_have_more_behind_it<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    let head = [std::io::IoSlice::new(b"head:")];
    assert_eq!(kernel.writev(&client, &head, Then::More), Ok(5));
    assert_eq!(kernel.sendfile(&client, &file_of(b"body"), 0, 4), Ok(4));
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 9), b"head:body");
    assert_eq!(kernel.writev(&client, &head, Then::More), Ok(5));
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 5), b"head:", "not held back for ever");
}

pub(crate) fn a_file_that_ends_is_sent_as_far_as_it_goes<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    let file = file_of(b"0123456789");
    assert_eq!(kernel.sendfile(&client, &file, 4, 100), Ok(6), "short, and the socket is not full");
    assert_eq!(kernel.sendfile(&client, &file, 10, 100), Ok(0));
    assert_eq!(kernel.sendfile(&client, &file, 1 << 40, 1), Ok(0));
    assert_eq!(kernel.sendfile(&client, &file, 0, 0), Ok(0), "which is not the end");
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 6), b"456789");
}

/// Sends `file` until the socket refuses; how much it took. Short counts on the way say nothing.
fn send_until_refused<K: Kernel>(kernel: &K, socket: &K::Fd, file: &File, length: usize) -> usize {
    let mut sent = 0;
    while sent < length {
        match kernel.sendfile(socket, file, sent as u64, length - sent) {
            Ok(0) => panic!("the file has not ended"),
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error, Errno::EAGAIN);
                return sent;
            }
        }
    }
    panic!("the socket was to be full before {length} bytes");
}

fn a_full_socket_takes_more_of_a_file<K: Kernel>(kernel: &K, (client, server): (K::Fd, K::Fd)) {
    // Sparse: more than any socket takes.
    let length = 64 * 1024 * 1024;
    let mut file = file_of(b"begins");
    file.set_len(length as u64).unwrap();
    file.rewind().unwrap();
    let mut bench = Bench::new(kernel);
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    assert!(bench.next(CLIENT).is_writable());
    let sent = send_until_refused(kernel, &client, &file, length);
    bench.expect_silence();
    assert_eq!(kernel.sendfile(&client, &file, length as u64, 1), Ok(0), "the end comes before the refusal");

    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    let received = read_exactly(&mut bench, &server, SERVER, sent);
    assert!(received.starts_with(b"begins\0") && received.len() == sent);
    bench.find(CLIENT, |readiness| readiness.is_writable());
    assert_eq!(kernel.sendfile(&client, &file, 0, 6), Ok(6));
    assert_eq!(read_exactly(&mut bench, &server, SERVER, 6), b"begins");
}

pub(crate) fn a_full_socket_takes_more_of_a_file_after_an_edge<K: Kernel>(kernel: &K) {
    a_full_socket_takes_more_of_a_file(kernel, pair(kernel));
}

pub(crate) fn a_full_unix_socket_takes_more_of_a_file_after_an_edge<K: Kernel>(kernel: &K) {
    a_full_socket_takes_more_of_a_file(kernel, unix_pair(kernel));
}

pub(crate) fn a_full_socket_refuses_a_file_at_once<K: Kernel>(kernel: &K) {
    let (client, _server) = pair(kernel);
    fill(kernel, &client);
    // What little room there may be left goes to the first.
    let file = file_of(&[7; 100_000]);
    while kernel.sendfile(&client, &file, 0, 100_000).is_ok() {}
    assert_eq!(kernel.sendfile(&client, &file, 0, 1), Err(Errno::EAGAIN));
}

pub(crate) fn a_reset_connection_takes_no_file<K: Kernel>(kernel: &K) {
    let (mut bench, client, server) = watched_pair(kernel);
    let file = file_of(b"x");
    kernel.reset_on_close(&client).unwrap();
    drop(client);
    bench.find(SERVER, |readiness| readiness.is_error());
    assert_eq!(kernel.sendfile(&server, &file, 1, 1), Ok(0), "the file is looked at first");
    assert_eq!(kernel.sendfile(&server, &file, 0, 1), Err(Errno::ECONNRESET));
    assert_eq!(kernel.sendfile(&server, &file, 0, 1), Err(Errno::EPIPE));
}

pub(crate) fn a_file_behind_ones_own_end_is_a_broken_pipe<K: Kernel>(kernel: &K) {
    let (_bench, client, _server) = watched_pair(kernel);
    kernel.shutdown_write(&client).unwrap();
    assert_eq!(kernel.sendfile(&client, &file_of(b"x"), 0, 1), Err(Errno::EPIPE));
}

pub(crate) fn what_is_no_file_to_be_sent_is_an_error_of_its_own<K: Kernel>(kernel: &K) {
    let (client, _server) = pair(kernel);
    let directory = tempfile::tempdir().unwrap();
    let opened = File::open(directory.path()).unwrap();
    assert_eq!(kernel.sendfile(&client, &opened, 0, 1), Err(Errno::EINVAL));
    let write_only = File::create(directory.path().join("file")).unwrap();
    assert_eq!(kernel.sendfile(&client, &write_only, 0, 1), Err(Errno::EBADF));
    let file = file_of(b"x");
    assert_eq!(kernel.sendfile(&client, &file, u64::MAX, 1), Err(Errno::EINVAL));
    assert_eq!(kernel.sendfile(&client, &file, 1 << 63, 1), Err(Errno::EINVAL));
    assert_eq!(kernel.sendfile(&client, &file, 0, 1), Ok(1), "nothing of that is of the socket");
}
