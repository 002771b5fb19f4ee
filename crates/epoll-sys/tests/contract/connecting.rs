//! Listening, connecting, accepting, and addresses.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use epoll_sys::{Address, ConnectProgress, Errno, Interest, Kernel, ListenOptions};

use crate::bench::{Bench, CLIENT, LISTENER, accept, listener, loopback};

pub(crate) fn port_zero_becomes_a_real_port<K: Kernel>(kernel: &K) {
    let (_first, first) = listener(kernel);
    let (_second, second) = listener(kernel);
    assert_ne!(first.as_tcp().unwrap().port(), 0);
    assert_ne!(first, second);
}

pub(crate) fn an_address_in_use_is_refused<K: Kernel>(kernel: &K) {
    // Away from 127.0.0.1, so that no other test takes the port between the drop and the next call.
    let somewhere = Address::Tcp("127.0.0.2:0".parse().unwrap());
    let options = ListenOptions::default();
    let first = kernel.listen(&somewhere, &options).unwrap();
    let address = kernel.local_address(&first).unwrap();
    assert_eq!(kernel.listen(&address, &options).unwrap_err(), Errno::EADDRINUSE);
    drop(first);
    kernel.listen(&address, &options).unwrap();
}

pub(crate) fn accept_gives_the_address_of_the_peer<K: Kernel>(kernel: &K) {
    let (listener, address) = listener(kernel);
    let (client, _) = kernel.connect(&address).unwrap();
    let (server, peer) = accept(kernel, &listener);
    assert_eq!(peer, kernel.local_address(&client).unwrap());
    assert_eq!(kernel.local_address(&server).unwrap(), address);
}

pub(crate) fn accept_with_nothing_pending_would_block<K: Kernel>(kernel: &K) {
    let (listener, address) = listener(kernel);
    assert_eq!(kernel.accept(&listener).unwrap_err(), Errno::EAGAIN);
    let (_client, _) = kernel.connect(&address).unwrap();
    accept(kernel, &listener);
    assert_eq!(kernel.accept(&listener).unwrap_err(), Errno::EAGAIN);
}

pub(crate) fn connections_wait_to_be_accepted<K: Kernel>(kernel: &K) {
    let (listener, address) = listener(kernel);
    let clients: Vec<K::Fd> = (0..3).map(|_| kernel.connect(&address).unwrap().0).collect();
    for client in &clients {
        let (_server, peer) = accept(kernel, &listener);
        assert_eq!(peer, kernel.local_address(client).unwrap());
    }
}

pub(crate) fn a_new_connection_is_an_edge_even_if_others_wait<K: Kernel>(kernel: &K) {
    for interest in [Interest::Readable, Interest::SharedListener] {
        let (listener, address) = listener(kernel);
        kernel.add(&listener, interest, LISTENER).unwrap();
        let mut bench = Bench::new(kernel);
        let clients: Vec<K::Fd> = (0..2)
            .map(|_| {
                let (client, _) = kernel.connect(&address).unwrap();
                assert!(bench.next(LISTENER).is_readable());
                bench.expect_silence();
                client
            })
            .collect();
        for _ in &clients {
            kernel.accept(&listener).unwrap();
        }
        kernel.delete(&listener).unwrap();
    }
}

pub(crate) fn a_connect_ends_with_writable_and_no_error<K: Kernel>(kernel: &K) {
    let (_listener, address) = listener(kernel);
    let (client, _) = kernel.connect(&address).unwrap();
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    assert!(Bench::new(kernel).find(CLIENT, |readiness| readiness.is_writable()).is_writable());
    assert_eq!(kernel.take_error(&client).unwrap(), None);
    assert_eq!(kernel.send(&client, b"x").unwrap(), 1);
}

pub(crate) fn a_connect_to_nobody_is_refused<K: Kernel>(kernel: &K) {
    let somewhere = Address::Tcp("127.0.0.3:0".parse().unwrap());
    let listener = kernel.listen(&somewhere, &ListenOptions::default()).unwrap();
    let address = kernel.local_address(&listener).unwrap();
    drop(listener);
    let refused = match kernel.connect(&address) {
        Err(error) => error,
        Ok((client, progress)) => {
            assert_eq!(progress, ConnectProgress::InProgress);
            kernel.add(&client, Interest::Stream, CLIENT).unwrap();
            let readiness = Bench::new(kernel).find(CLIENT, |readiness| readiness.is_error());
            assert!(readiness.is_writable() && readiness.must_read_to_end());
            kernel.take_error(&client).unwrap().unwrap()
        }
    };
    assert_eq!(refused, Errno::ECONNREFUSED);
}

pub(crate) fn unix_sockets_connect_at_once<K: Kernel>(kernel: &K) {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("socket"));
    let listener = kernel.listen(&address, &ListenOptions::default()).unwrap();
    assert_eq!(kernel.local_address(&listener).unwrap(), address);
    let (client, progress) = kernel.connect(&address).unwrap();
    assert_eq!(progress, ConnectProgress::Connected);
    assert_eq!(kernel.local_address(&client).unwrap(), Address::UnixUnnamed);
    let (server, peer) = accept(kernel, &listener);
    assert_eq!(peer, Address::UnixUnnamed);
    assert_eq!(kernel.local_address(&server).unwrap(), address);
    assert_eq!(kernel.send(&client, b"hello").unwrap(), 5);
    let mut buffer = [0; 16];
    assert_eq!(kernel.recv(&server, &mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"hello");
}

pub(crate) fn unix_sockets_to_nobody_are_refused<K: Kernel>(kernel: &K) {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("socket"));
    assert_eq!(kernel.connect(&address).unwrap_err(), Errno::ENOENT);
    drop(kernel.listen(&address, &ListenOptions::default()).unwrap());
    assert_eq!(kernel.connect(&address).unwrap_err(), Errno::ECONNREFUSED);
    kernel.remove_socket_file(&address).unwrap();
    assert_eq!(kernel.connect(&address).unwrap_err(), Errno::ENOENT);
    assert_eq!(kernel.remove_socket_file(&address), Err(Errno::ENOENT));
}

pub(crate) fn after_the_error_a_refused_connection_is_over<K: Kernel>(kernel: &K) {
    let somewhere = Address::Tcp("127.0.0.3:0".parse().unwrap());
    let listener = kernel.listen(&somewhere, &ListenOptions::default()).unwrap();
    let address = kernel.local_address(&listener).unwrap();
    drop(listener);
    // Linux may refuse at once.
    let Ok((client, _)) = kernel.connect(&address) else { return };
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    Bench::new(kernel).find(CLIENT, |readiness| readiness.is_error());
    assert_eq!(kernel.recv(&client, &mut [0; 4]), Err(Errno::ECONNREFUSED));
    assert_eq!(kernel.recv(&client, &mut [0; 4]), Ok(0));
    assert_eq!(kernel.send(&client, b"x"), Err(Errno::EPIPE));
    assert_eq!(kernel.shutdown_write(&client), Err(Errno::ENOTCONN));
}

pub(crate) fn names_that_would_mean_something_else_are_refused<K: Kernel>(kernel: &K) {
    let rows = [
        (Address::UnixUnnamed, Errno::EINVAL),
        (Address::Unix(PathBuf::new()), Errno::EINVAL),
        (Address::Unix(PathBuf::from("\0abstract")), Errno::EINVAL),
        (Address::Unix(PathBuf::from("in\0side")), Errno::EINVAL),
        (Address::Unix(PathBuf::from("x".repeat(108))), Errno::ENAMETOOLONG),
    ];
    for (address, error) in rows {
        assert_eq!(kernel.connect(&address).unwrap_err(), error, "{address}");
        assert_eq!(kernel.listen(&address, &ListenOptions::default()).unwrap_err(), error, "{address}");
    }
}

pub(crate) fn listeners_share_an_address_only_if_both_say_so<K: Kernel>(kernel: &K) {
    let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let first = kernel.listen(&loopback(), &options).unwrap();
    let address = kernel.local_address(&first).unwrap();
    let _second = kernel.listen(&address, &options).unwrap();
    assert_eq!(kernel.listen(&address, &ListenOptions::default()).unwrap_err(), Errno::EADDRINUSE);
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.as_tcp().unwrap().port()));
    assert_eq!(kernel.listen(&everywhere.into(), &ListenOptions::default()).unwrap_err(), Errno::EADDRINUSE);
    let directory = tempfile::tempdir().unwrap();
    let unix = Address::Unix(directory.path().join("socket"));
    assert_eq!(kernel.listen(&unix, &options).unwrap_err(), Errno::EOPNOTSUPP);
}

pub(crate) fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not<K: Kernel>(kernel: &K) {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("socket"));
    let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
    drop(kernel.listen(&address, &options).unwrap());
    let listener = kernel.listen(&address, &options).unwrap();
    // The first attempt fills the backlog, and a listener with a full one is alive too.
    for _ in 0..2 {
        assert_eq!(kernel.listen(&address, &options).unwrap_err(), Errno::EADDRINUSE);
        assert_eq!(kernel.remove_socket_file(&address), Err(Errno::EADDRINUSE));
    }
    assert_eq!(kernel.connect(&address).unwrap_err(), Errno::EAGAIN);
    // A client that says nothing.
    let (visitor, _) = kernel.accept(&listener).unwrap();
    assert_eq!(kernel.recv(&visitor, &mut [0; 4]), Ok(0));
    kernel.connect(&address).unwrap();
}

pub(crate) fn an_unspecified_ipv6_listener_serves_ipv4_too<K: Kernel>(kernel: &K) {
    let address = Address::Tcp((Ipv6Addr::UNSPECIFIED, 0).into());
    let listener = match kernel.listen(&address, &ListenOptions::default()) {
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => return, // A system without IPv6.
        listener => listener.unwrap(),
    };
    let port = kernel.local_address(&listener).unwrap().as_tcp().unwrap().port();
    let (client, _) = kernel.connect(&Address::Tcp((Ipv4Addr::LOCALHOST, port).into())).unwrap();
    let (server, peer) = accept(kernel, &listener);
    let client = kernel.local_address(&client).unwrap().as_tcp().unwrap();
    let mapped = |port| Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port)));
    assert_eq!(peer, mapped(client.port()));
    assert_eq!(kernel.local_address(&server), Ok(mapped(port)));
}

pub(crate) fn a_deferred_connection_waits_for_its_first_data<K: Kernel>(kernel: &K) {
    let options = ListenOptions { defer_accept: Some(Duration::from_secs(5)), ..ListenOptions::default() };
    let listener = kernel.listen(&loopback(), &options).unwrap();
    let (client, _) = kernel.connect(&kernel.local_address(&listener).unwrap()).unwrap();
    kernel.add(&client, Interest::Stream, CLIENT).unwrap();
    assert!(Bench::new(kernel).next(CLIENT).is_writable());
    assert_eq!(kernel.accept(&listener).unwrap_err(), Errno::EAGAIN);
    kernel.send(&client, b"first").unwrap();
    let (server, _) = accept(kernel, &listener);
    assert_eq!(kernel.recv(&server, &mut [0; 16]), Ok(5));
}
