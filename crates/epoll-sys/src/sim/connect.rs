//! Listeners, and how connections come about.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::epoll::EVERYTHING;
use super::faults::Fault;
use super::names::{check_path, mapped, source_for, takes_all};
use super::record::{Outcome, Step};
use super::stream::{Family, Phase, Stream};
use super::table::Key;
use super::world::{Cause, Happening, Kind, World};
use crate::{Address, ConnectProgress, Errno, ListenOptions};

pub(super) struct Listener {
    address: Address,
    pub(super) pending: VecDeque<Key>,
    /// As many may be pending, and one more (sk_acceptq_is_full).
    backlog: usize,
    reuse_port: bool,
    not_sent_low_water: Option<u32>,
    defer_accept: Option<Duration>,
}

/// Errors of the connection that accept would have given: accept(2).
const LOST: [(Fault, Errno); 3] = [
    (Fault::Econnaborted, Errno::ECONNABORTED),
    (Fault::Eperm, Errno::EPERM),
    (Fault::Eproto, Errno::EPROTO),
];

impl Listener {
    fn is_full(&self) -> bool {
        self.pending.len() > self.backlog
    }
}

impl World {
    pub(super) fn listen(&mut self, address: &Address, options: &ListenOptions) -> Result<Key, Errno> {
        let address = match address {
            Address::Tcp(address) => self.bind_tcp(*address, options.reuse_port)?,
            Address::Unix(path) => {
                check_path(path)?;
                if options.reuse_port {
                    return Err(Errno::EOPNOTSUPP);
                }
                if self.names.files.contains_key(path) && self.remove_stale(path).is_err() {
                    return Err(Errno::EADDRINUSE);
                }
                Address::Unix(path.clone())
            }
            Address::UnixUnnamed => return Err(Errno::EINVAL),
        };
        let key = self.insert(Kind::Listener(Listener {
            address: address.clone(),
            pending: VecDeque::new(),
            backlog: usize::try_from(options.backlog.clamp(0, 4096)).unwrap_or(0),
            reuse_port: options.reuse_port,
            not_sent_low_water: options.not_sent_low_water,
            defer_accept: options.defer_accept,
        }));
        match address {
            Address::Tcp(address) => self.names.listeners.push((address, key)),
            Address::Unix(path) => drop(self.names.files.insert(path, Some(key))),
            Address::UnixUnnamed => (),
        }
        Ok(key)
    }

    fn bind_tcp(&mut self, mut address: SocketAddr, reuse_port: bool) -> Result<Address, Errno> {
        if address.port() == 0 {
            address.set_port(self.names.free_port());
            return Ok(address.into());
        }
        for (bound, key) in self.names.listeners.clone() {
            let overlaps = bound.port() == address.port()
                && (bound.ip() == address.ip()
                    || takes_all(bound.ip(), address.ip())
                    || takes_all(address.ip(), bound.ip()));
            if overlaps && !(reuse_port && self.listener_mut(key).is_some_and(|other| other.reuse_port)) {
                return Err(Errno::EADDRINUSE);
            }
        }
        Ok(address.into())
    }

    pub(super) fn remove_socket_file(&mut self, address: &Address) -> Result<(), Errno> {
        match address {
            Address::Unix(path) => self.remove_stale(path),
            Address::Tcp(_) | Address::UnixUnnamed => Ok(()),
        }
    }

    /// It connects to find out, which a live listener sees.
    fn remove_stale(&mut self, path: &Path) -> Result<(), Errno> {
        match self.connect_unix(path) {
            Err(Errno::ECONNREFUSED) => {
                self.names.files.remove(path);
                Ok(())
            }
            Err(Errno::ENOENT) => Err(Errno::ENOENT),
            Err(_) => Err(Errno::EADDRINUSE),
            Ok(client) => {
                self.close_stream(client, true);
                Err(Errno::EADDRINUSE)
            }
        }
    }

    pub(super) fn close_listener(&mut self, key: Key) {
        let Some(listener) = self.listener_mut(key) else { return };
        let pending = std::mem::take(&mut listener.pending);
        self.names.listeners.retain(|(_, listening)| *listening != key);
        for listening in self.names.files.values_mut() {
            if *listening == Some(key) {
                *listening = None;
            }
        }
        self.objects.remove(key);
        for server in pending {
            self.close_stream(server, false);
        }
        let deferred: Vec<Key> = self
            .objects
            .iter()
            .filter(
                |(_, object)| matches!(&object.kind, Kind::Stream(stream) if stream.deferred_at == Some(key)),
            )
            .map(|(server, _)| server)
            .collect();
        for server in deferred {
            self.close_stream(server, false);
        }
    }

    pub(super) fn local_address(&mut self, key: Key) -> Result<Address, Errno> {
        match self.objects.get(key).map(|object| &object.kind) {
            Some(Kind::Stream(stream)) => Ok(stream.local.clone()),
            Some(Kind::Listener(listener)) => Ok(listener.address.clone()),
            _ => Err(self.wrong_kind(key, Errno::ENOTSOCK)),
        }
    }

    /// A client's end, on its way to `address` or there already.
    pub(super) fn connect(&mut self, address: &Address) -> Result<(Key, ConnectProgress), Errno> {
        match address {
            Address::Tcp(address) => {
                let client = self.new_client(*address);
                let delay = self.latency();
                self.plan(delay, Happening::Handshake(client, 0));
                Ok((client, ConnectProgress::InProgress))
            }
            Address::Unix(path) => Ok((self.connect_unix(path)?, ConnectProgress::Connected)),
            Address::UnixUnnamed => Err(Errno::EINVAL),
        }
    }

    /// For peers: the handshake takes no time. `EAGAIN` if the backlog is full.
    pub(super) fn connect_at_once(&mut self, address: &Address) -> Result<Key, Errno> {
        let Address::Tcp(address) = address else { return self.connect(address).map(|(client, _)| client) };
        let listener = self.choose_listener(*address).ok_or(Errno::ECONNREFUSED)?;
        let client = self.new_client(*address);
        if !self.establish(client, listener) {
            self.objects.remove(client);
            return Err(Errno::EAGAIN);
        }
        Ok(client)
    }

    fn new_client(&mut self, to: SocketAddr) -> Key {
        let source = source_for(to.ip());
        let to = if to.ip().is_unspecified() { SocketAddr::new(source, to.port()) } else { to };
        let local = SocketAddr::new(source, self.names.free_port());
        self.new_stream(Stream::new(Family::Tcp, Phase::Connecting, local.into(), to.into()))
    }

    fn new_stream(&mut self, mut stream: Stream) -> Key {
        stream.send_capacity = self.capacity(self.faults.network.send_buffer);
        stream.receive_capacity = self.capacity(self.faults.network.receive_buffer);
        self.insert(Kind::Stream(Box::new(stream)))
    }

    fn connect_unix(&mut self, path: &Path) -> Result<Key, Errno> {
        check_path(path)?;
        let listener = self.names.files.get(path).ok_or(Errno::ENOENT)?.ok_or(Errno::ECONNREFUSED)?;
        let to = Address::Unix(path.to_owned());
        let client = self.new_stream(Stream::new(Family::Unix, Phase::Connected, Address::UnixUnnamed, to));
        if !self.establish(client, listener) {
            self.objects.remove(client);
            return Err(Errno::EAGAIN);
        }
        Ok(client)
    }

    fn choose_listener(&mut self, address: SocketAddr) -> Option<Key> {
        let listening = self.names.listening_on(address);
        match listening.len() {
            0 | 1 => listening.first().copied(),
            several => listening.get(self.rng.usize(0..several)).copied(),
        }
    }

    /// Connects `client`, with the server's end in the backlog of `listener`; false if that is full.
    fn establish(&mut self, client: Key, listener: Key) -> bool {
        let Some(end) = self.stream(client) else { return false };
        let (family, local, remote) = (end.family, end.remote.clone(), end.local.clone());
        let Some(listening) = self.listener_mut(listener).filter(|listening| !listening.is_full()) else {
            return false;
        };
        let low_water = listening.not_sent_low_water;
        let deferred = listening.defer_accept.filter(|_| family == Family::Tcp);
        let v6 = listening.address.as_tcp().is_some_and(|address| address.is_ipv6());
        let seen = |address: Address| match address {
            Address::Tcp(address) if v6 => Address::Tcp(mapped(address)),
            address => address,
        };
        let mut server = Stream::new(family, Phase::Connected, seen(local), seen(remote));
        server.peer = Some(client);
        server.deferred_at = deferred.map(|_| listener);
        let server = self.new_stream(server);
        if let Some(bytes) = low_water
            && let Some(server) = self.stream_mut(server)
        {
            server.send_capacity =
                server.send_capacity.min(usize::try_from(bytes).unwrap_or(usize::MAX).max(2_048));
        }
        if let Some(end) = self.stream_mut(client) {
            end.peer = Some(server);
            end.phase = Phase::Connected;
        }
        self.wake(client, EVERYTHING);
        match deferred {
            Some(longest) => self.plan(longest, Happening::Undefer(server)),
            None => self.offer(listener, server),
        }
        true
    }

    fn offer(&mut self, listener: Key, server: Key) {
        if let Some(listening) = self.listener_mut(listener) {
            listening.pending.push_back(server);
        }
        self.note_for(listener, "connection arrives", Outcome::Socket(server.index()));
        self.wake(listener, EpollFlags::EPOLLIN);
    }

    /// If `server` was waiting for its first data, it is offered to accept.
    pub(super) fn undefer(&mut self, server: Key) {
        if let Some(stream) = self.stream_mut(server)
            && let Some(listener) = stream.deferred_at.take()
        {
            self.offer(listener, server);
        }
    }

    /// The handshake of `client` is decided: for both ends at once, since the server's can be accepted only
    /// when the client's is connected.
    pub(super) fn handshake(&mut self, client: Key, attempt: u32) {
        /// net.ipv4.tcp_syn_retries; with the pauses between them, two minutes.
        const RETRIES: u32 = 6;
        let Some(to) = self.stream(client).and_then(|stream| stream.remote.as_tcp()) else { return };
        match self.choose_listener(to) {
            None => self.end(client, Cause::Refused),
            Some(listener) if self.establish(client, listener) => (),
            // Full: the SYN was dropped.
            Some(_) if attempt < RETRIES => {
                self.plan(Duration::from_secs(1 << attempt), Happening::Handshake(client, attempt + 1));
            }
            Some(_) => self.end(client, Cause::TimedOut),
        }
    }

    pub(super) fn accept(&mut self, key: Key) -> Result<(Key, Address), Errno> {
        if self.listener_mut(key).is_none() {
            let is_socket = self.stream(key).is_some();
            return Err(self.wrong_kind(key, if is_socket { Errno::EINVAL } else { Errno::ENOTSOCK }));
        }
        self.interrupts(Step::Accept)?;
        // Before it looks at the backlog, as accept4(2) does.
        self.check_descriptor_room()?;
        // Of an empty backlog they would not be known.
        if self.listener_mut(key).is_none_or(|listener| listener.pending.is_empty()) {
            return Err(Errno::EAGAIN);
        }
        if self.strikes(Fault::AcceptEnobufs) {
            return Err(Errno::ENOBUFS);
        }
        if self.strikes(Fault::AcceptEnomem) {
            return Err(Errno::ENOMEM);
        }
        let server = self.listener_mut(key).and_then(|listener| listener.pending.pop_front());
        let server = server.ok_or(Errno::EAGAIN)?;
        for (fault, errno) in LOST {
            if self.strikes(fault) {
                self.close_stream(server, false);
                return Err(errno);
            }
        }
        let peer = self.stream(server).map_or(Address::UnixUnnamed, |stream| stream.remote.clone());
        Ok((server, peer))
    }

    /// For peers that listen.
    pub(super) fn accept_now(&mut self, key: Key) -> Option<Key> {
        self.listener_mut(key)?.pending.pop_front()
    }
}
