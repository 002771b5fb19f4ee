//! What the tests share: a wait that loses no event, and connected sockets.

use std::time::Duration;

use epoll_sys::{Address, ConnectProgress, Errno, Event, Events, Interest, Kernel, ListenOptions, Readiness};

/// How long something that must happen may take. Only a failing test waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The tokens that tests give to the two ends.
pub(crate) const CLIENT: u64 = 1;
pub(crate) const SERVER: u64 = 2;
pub(crate) const LISTENER: u64 = 3;

/// Waits for events by token, and keeps those nobody has asked for yet.
pub(crate) struct Bench<'kernel, K> {
    kernel: &'kernel K,
    events: Events,
    unclaimed: Vec<Event>,
}

impl<'kernel, K: Kernel> Bench<'kernel, K> {
    pub(crate) fn new(kernel: &'kernel K) -> Self {
        Self { kernel, events: Events::with_capacity(16), unclaimed: Vec::new() }
    }

    /// The next event of `token`.
    pub(crate) fn next(&mut self, token: u64) -> Readiness {
        self.find(token, |_| true)
    }

    /// The next event of `token` that `matches`; those before it are dropped.
    pub(crate) fn find(&mut self, token: u64, matches: impl Fn(Readiness) -> bool) -> Readiness {
        let deadline = self.kernel.now() + PATIENCE;
        loop {
            while let Some(position) = self.unclaimed.iter().position(|event| event.token == token) {
                let readiness = self.unclaimed.remove(position).readiness;
                if matches(readiness) {
                    return readiness;
                }
            }
            let left = deadline - self.kernel.now();
            assert!(left > Duration::ZERO, "no event for {token}");
            self.collect(left);
        }
    }

    /// Checks that no event is there now.
    pub(crate) fn expect_silence(&mut self) {
        self.collect(Duration::ZERO);
        assert_eq!(self.unclaimed, []);
    }

    fn collect(&mut self, timeout: Duration) {
        match self.kernel.wait(&mut self.events, Some(timeout)) {
            Ok(()) => self.unclaimed.extend((0..self.events.len()).filter_map(|n| self.events.get(n))),
            Err(error) => assert_eq!(error, Errno::EINTR),
        }
    }
}

pub(crate) fn loopback() -> Address {
    Address::Tcp("127.0.0.1:0".parse().unwrap())
}

/// A listener on a free port, and its address.
pub(crate) fn listener<K: Kernel>(kernel: &K) -> (K::Fd, Address) {
    let listener = kernel.listen(&loopback(), &ListenOptions::default()).unwrap();
    let address = kernel.local_address(&listener).unwrap();
    (listener, address)
}

/// The next connection of `listener`, which must not be registered.
pub(crate) fn accept<K: Kernel>(kernel: &K, listener: &K::Fd) -> (K::Fd, Address) {
    kernel.add(listener, Interest::Readable, LISTENER).unwrap();
    Bench::new(kernel).next(LISTENER);
    kernel.delete(listener).unwrap();
    kernel.accept(listener).unwrap()
}

/// Two ends of a TCP connection, neither registered.
pub(crate) fn pair<K: Kernel>(kernel: &K) -> (K::Fd, K::Fd) {
    let (listener, address) = listener(kernel);
    let (client, progress) = kernel.connect(&address).unwrap();
    assert!(matches!(progress, ConnectProgress::Connected | ConnectProgress::InProgress));
    let (server, _) = accept(kernel, &listener);
    (client, server)
}

/// Two ends of a connection between Unix sockets, neither registered.
pub(crate) fn unix_pair<K: Kernel>(kernel: &K) -> (K::Fd, K::Fd) {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("socket"));
    let listener = kernel.listen(&address, &ListenOptions::default()).unwrap();
    let (client, _) = kernel.connect(&address).unwrap();
    let (server, _) = kernel.accept(&listener).unwrap();
    (client, server)
}

/// Two ends of a TCP connection; the server's is registered, and has told that it is writable.
pub(crate) fn watched_pair<'kernel, K: Kernel>(kernel: &'kernel K) -> (Bench<'kernel, K>, K::Fd, K::Fd) {
    let (client, server) = pair(kernel);
    let mut bench = Bench::new(kernel);
    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    assert!(bench.next(SERVER).is_writable());
    (bench, client, server)
}

/// Sends until the socket takes no more; how much it took.
pub(crate) fn fill<K: Kernel>(kernel: &K, socket: &K::Fd) -> usize {
    let data = vec![7; 64 * 1024];
    let mut total = 0;
    loop {
        match kernel.send(socket, &data) {
            Ok(sent) => {
                total += sent;
                if sent < data.len() {
                    return total;
                }
            }
            Err(error) => {
                assert_eq!(error, Errno::EAGAIN);
                return total;
            }
        }
    }
}

/// Reads `length` bytes of the registered socket `token`, waiting as often as it takes.
pub(crate) fn read_exactly<K: Kernel>(
    bench: &mut Bench<'_, K>,
    socket: &K::Fd,
    token: u64,
    length: usize,
) -> Vec<u8> {
    let mut received = Vec::with_capacity(length);
    let mut buffer = vec![0; 64 * 1024];
    while received.len() < length {
        let room = buffer.len().min(length - received.len());
        match bench.kernel.recv(socket, &mut buffer[..room]) {
            Ok(0) => panic!("the stream ended after {} of {length} bytes", received.len()),
            Ok(read) => received.extend_from_slice(&buffer[..read]),
            Err(Errno::EAGAIN) => {
                bench.find(token, Readiness::is_readable);
            }
            Err(error) => panic!("{error}"),
        }
    }
    received
}
