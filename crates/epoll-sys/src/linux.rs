//! The real kernel: [`Linux`] makes the calls of [`Kernel`], through nix but for two.

mod direct;
mod group;
mod listen;
mod signals;
mod socket;
#[cfg(test)]
mod testing;

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{self as nix_socket, MsgFlags, Shutdown, sockopt};
use nix::time::ClockId;
use nix::unistd;

use crate::{
    Address, ConnectProgress, Errno, Events, Interest, Kernel, ListenOptions, Signal, Then, Timestamp,
};

/// An epoll instance of the running Linux kernel, close-on-exec. Dropping it ends all its registrations.
#[derive(Debug)]
pub struct Linux {
    epoll: Epoll,
}

impl Linux {
    /// Opens an epoll instance: epoll_create1(2).
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`: the loop cannot start.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Opens `count` listening descriptors for one address, at least one, as [`Kernel::listen`] opens one: one for each
    /// loop of a server that has several.
    ///
    /// On TCP each is a socket of its own, and the kernel spreads new connections over them (`SO_REUSEPORT`,
    /// socket(7)), by a sum of both addresses; `options.reuse_port` is not looked at. The first one is bound and listens
    /// *without* that option, and has it set afterwards: so a server that has the address already, one of several loops
    /// too, is an error, where the option alone would share the port with it and say nothing. From then on another program
    /// of the same user may join, if it asks for it. When a socket is closed, what waits in its queue is reset, unless
    /// net.ipv4.tcp_migrate_req is 1: then it goes to the others' (Linux 5.14 and later).
    ///
    /// On a Unix socket, which cannot share its path, they are duplicates of one descriptor, with one queue. Watch them
    /// with [`Interest::SharedListener`].
    ///
    /// # Errors
    /// As for [`Kernel::listen`].
    pub fn listen_group(
        address: &Address,
        options: &ListenOptions,
        count: usize,
    ) -> Result<Vec<OwnedFd>, Errno> {
        group::listen_group(address, options, count)
    }

    /// Has the kernel choose among the sockets of a [group](Self::listen_group) by the CPU on which a connection's first
    /// segment is dealt with: the first one gets those of the CPU `cpus` begins with, and so on. Those of other CPUs are
    /// spread as before. It helps where each loop is [pinned](crate::pin_to_cpu) to its CPU and the network card spreads
    /// its interrupts. `listener` is any of the group, and the choice is that of all. When a socket of the group is
    /// closed, the last one takes its place.
    ///
    /// # Errors
    /// `EINVAL`: more than 2000 CPUs, or a socket that is alone, of a kernel before 4.6, or a Unix one. `ENOMEM`.
    pub fn steer_by_cpu(listener: &OwnedFd, cpus: &[usize]) -> Result<(), Errno> {
        group::steer_by_cpu(listener, cpus)
    }
}

/// The time by the clock of [`Linux`]'s [`now`](Kernel::now), for whoever has no kernel at hand. Any thread's.
#[must_use]
#[allow(clippy::expect_used, reason = "clock_gettime(2): no error is possible for this clock")]
pub fn monotonic_now() -> Timestamp {
    let since_boot = ClockId::CLOCK_MONOTONIC.now().expect("the monotonic clock");
    // In 64 bits: 128, as `Duration` has them, cost more than the call. They last for 584 years.
    let seconds = u64::try_from(since_boot.tv_sec()).unwrap_or(0);
    let nanoseconds = u64::try_from(since_boot.tv_nsec()).unwrap_or(0);
    Timestamp::from_nanoseconds(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

impl Kernel for Linux {
    type Fd = OwnedFd;

    fn now(&self) -> Timestamp {
        monotonic_now()
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }

    fn add(&self, fd: &OwnedFd, interest: Interest, token: u64) -> Result<(), Errno> {
        self.epoll.add(fd, EpollEvent::new(interest.flags(), token))
    }

    fn delete(&self, fd: &OwnedFd) -> Result<(), Errno> {
        self.epoll.delete(fd)
    }

    fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<(), Errno> {
        // First of all, so that an error leaves no event of the last wait to be taken for a new one.
        events.set_filled(0);
        let filled = self.epoll.wait(events.buffer_mut(), whole_milliseconds(timeout))?;
        events.set_filled(filled);
        Ok(())
    }

    fn listen(&self, address: &Address, options: &ListenOptions) -> Result<OwnedFd, Errno> {
        listen::listen(address, options)
    }

    fn remove_socket_file(&self, address: &Address) -> Result<(), Errno> {
        match address {
            Address::Unix(path) => listen::remove_stale_socket(path),
            Address::Tcp(_) | Address::UnixUnnamed => Ok(()),
        }
    }

    fn local_address(&self, socket: &OwnedFd) -> Result<Address, Errno> {
        socket::local_address(socket)
    }

    fn accept(&self, listener: &OwnedFd) -> Result<(OwnedFd, Address), Errno> {
        socket::accept(listener)
    }

    fn connect(&self, address: &Address) -> Result<(OwnedFd, ConnectProgress), Errno> {
        socket::connect(address)
    }

    fn take_error(&self, socket: &OwnedFd) -> Result<Option<Errno>, Errno> {
        let number = nix_socket::getsockopt(socket, sockopt::SocketError)?;
        Ok((number != 0).then(|| Errno::from_raw(number)))
    }

    fn recv(&self, socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        direct::recv(socket, buffer)
    }

    fn send(&self, socket: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
        direct::send(socket, data)
    }

    fn writev(&self, socket: &OwnedFd, pieces: &[IoSlice<'_>], then: Then) -> Result<usize, Errno> {
        let flags = match then {
            Then::Nothing => MsgFlags::MSG_NOSIGNAL,
            Then::More => MsgFlags::MSG_NOSIGNAL | MSG_MORE,
        };
        // nix makes a Vec for control messages, which allocates nothing as long as there are none.
        nix_socket::sendmsg::<()>(socket.as_raw_fd(), pieces, &[], flags, None)
    }

    fn sendfile(&self, socket: &OwnedFd, file: &File, offset: u64, count: usize) -> Result<usize, Errno> {
        // As the kernel says of an offset that would be negative.
        let mut offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        sendfile64(socket, file, Some(&mut offset), count)
    }

    fn shutdown_write(&self, socket: &OwnedFd) -> Result<(), Errno> {
        nix_socket::shutdown(socket.as_raw_fd(), Shutdown::Write)
    }

    fn reset_on_close(&self, socket: &OwnedFd) -> Result<(), Errno> {
        nix_socket::setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
    }

    fn read(&self, fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        unistd::read(fd, buffer)
    }

    fn write(&self, fd: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
        unistd::write(fd, data)
    }

    fn as_raw<'fd>(&self, fd: &'fd OwnedFd) -> Option<BorrowedFd<'fd>> {
        Some(fd.as_fd())
    }

    fn eventfd(&self) -> Result<OwnedFd, Errno> {
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map(OwnedFd::from)
    }

    fn notify(eventfd: &OwnedFd) -> Result<(), Errno> {
        unistd::write(eventfd, &1_u64.to_ne_bytes()).map(drop)
    }

    fn signalfd(&self, signals: &[Signal]) -> Result<OwnedFd, Errno> {
        signals::signalfd(signals)
    }

    fn read_signal(&self, signalfd: &OwnedFd) -> Result<Option<Signal>, Errno> {
        signals::read_signal(signalfd)
    }
}

/// nix does not name it.
const MSG_MORE: MsgFlags = MsgFlags::from_bits_retain(libc::MSG_MORE);

/// Rounded up, since epoll counts in milliseconds and 0 of them is a busy loop. At most 24 days, after which
/// the caller finds that its time has not come and waits again.
fn whole_milliseconds(timeout: Option<Duration>) -> EpollTimeout {
    timeout.map_or(EpollTimeout::NONE, |timeout| {
        let milliseconds = u64::from(timeout.subsec_nanos().div_ceil(1_000_000));
        let milliseconds = timeout.as_secs().saturating_mul(1000).saturating_add(milliseconds);
        EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX)
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::RawFd;

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::sys::signal::{
        SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal as NixSignal, sigaction,
    };
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    use nix::sys::time::TimeSpec;
    use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};

    use super::testing::{accept, loopback, next, pair};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn timeouts_are_rounded_up_to_milliseconds() {
        let rows = [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (Duration::from_micros(100), 1),
            (Duration::from_millis(1), 1),
            (Duration::from_nanos(1_000_001), 2),
            (Duration::from_millis(2_147_483_647), i32::MAX),
            (Duration::from_millis(2_147_483_648), i32::MAX),
            (Duration::MAX, i32::MAX),
        ];
        for (timeout, milliseconds) in rows {
            assert_eq!(i32::from(whole_milliseconds(Some(timeout))), milliseconds, "{timeout:?}");
        }
        assert_eq!(i32::from(whole_milliseconds(None)), -1);
    }

    #[test]
    fn the_clock_is_the_monotonic_one() {
        let monotonic = || {
            let now = Duration::from(ClockId::CLOCK_MONOTONIC.now().unwrap());
            Timestamp::from_nanoseconds(u64::try_from(now.as_nanos()).unwrap())
        };
        let linux = Linux::new().unwrap();
        let before = monotonic();
        let now = linux.now();
        assert!(before <= now && now <= monotonic());
    }

    #[test]
    fn every_descriptor_is_close_on_exec_and_non_blocking() {
        let linux = Linux::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let unix = Address::Unix(directory.path().join("socket"));
        let check = |fd: &OwnedFd, what: &str| {
            let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC), "{what}");
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
            assert!(flags.contains(OFlag::O_NONBLOCK), "{what}");
        };
        for address in [loopback(), unix] {
            let listener = linux.listen(&address, &ListenOptions::default()).unwrap();
            let (client, _) = linux.connect(&linux.local_address(&listener).unwrap()).unwrap();
            let (server, _) = accept(&linux, &listener);
            for (fd, what) in [(&listener, "listener"), (&client, "client"), (&server, "server")] {
                check(fd, what);
                assert_eq!(linux.as_raw(fd).unwrap().as_raw_fd(), fd.as_raw_fd());
            }
        }
        check(&linux.eventfd().unwrap(), "eventfd");
        check(&linux.signalfd(&[Signal::User1]).unwrap(), "signalfd");
        // An epoll descriptor has nothing to block on but the wait itself.
        let flags = FdFlag::from_bits_retain(fcntl(&linux.epoll.0, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
    }

    #[test]
    fn a_regular_file_cannot_be_waited_for() {
        let linux = Linux::new().unwrap();
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert_eq!(linux.add(&file, Interest::Readable, 1), Err(Errno::EPERM));
    }

    #[test]
    #[allow(unsafe_code, reason = "only a signal with a handler interrupts a wait")]
    fn an_interrupted_wait_delivers_nothing() {
        extern "C" fn ignore(_: i32) {}
        let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it is async-signal-safe; no other test uses SIGALRM.
        unsafe { sigaction(NixSignal::SIGALRM, &action) }.unwrap();

        let linux = Linux::new().unwrap();
        let notifier = linux.eventfd().unwrap();
        linux.add(&notifier, Interest::Readable, 1).unwrap();
        Linux::notify(&notifier).unwrap();
        let mut events = Events::with_capacity(4);
        linux.wait(&mut events, Some(PATIENCE)).unwrap();
        assert_eq!(events.len(), 1);

        // It goes on until it is dropped: a signal that comes before the wait has begun is not the only one.
        let notify = SigevNotify::SigevThreadId {
            signal: NixSignal::SIGALRM,
            thread_id: unistd::gettid().as_raw(),
            si_value: 0,
        };
        let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).unwrap();
        let every = Expiration::Interval(TimeSpec::from(Duration::from_millis(2)));
        timer.set(every, TimerSetTimeFlags::empty()).unwrap();
        assert_eq!(linux.wait(&mut events, Some(PATIENCE)), Err(Errno::EINTR));
        assert!(events.is_empty());
    }

    #[test]
    fn urgent_data_stops_a_read_short_and_the_event_says_so() {
        let linux = Linux::new().unwrap();
        let (client, server) = pair(&linux);
        let raw: RawFd = client.as_raw_fd();
        linux.send(&client, b"0123456789").unwrap();
        nix_socket::send(raw, b"!", MsgFlags::MSG_OOB).unwrap();
        linux.send(&client, b"abcdefghij").unwrap();

        linux.add(&server, Interest::Stream, 1).unwrap();
        let event = next(&linux);
        assert!(event.readiness.must_read_to_end() && !event.readiness.is_peer_shutdown());
        let mut buffer = [0; 64];
        assert_eq!(linux.recv(&server, &mut buffer), Ok(10));
        let mut events = Events::with_capacity(1);
        linux.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty(), "no edge tells of the rest");
        assert_eq!(linux.recv(&server, &mut buffer), Ok(10));
        assert_eq!(&buffer[..10], b"abcdefghij");
        assert_eq!(linux.recv(&server, &mut buffer), Err(Errno::EAGAIN));
    }

    #[test]
    fn what_has_more_behind_it_waits_for_it() {
        let linux = Linux::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4).unwrap();
        // For 200 ms at most, in which a busy machine may not have got to the wait below.
        let waits = || {
            let (client, server) = pair(&linux);
            let waiting = Linux::new().unwrap();
            waiting.add(&server, Interest::Readable, 1).unwrap();
            linux.writev(&client, &[IoSlice::new(b"head")], Then::More).unwrap();
            let mut events = Events::with_capacity(1);
            waiting.wait(&mut events, Some(Duration::ZERO)).unwrap();
            let held_back = events.is_empty();
            assert_eq!(linux.sendfile(&client, &file, 0, 4), Ok(4));
            assert!(next(&waiting).readiness.is_readable());
            let mut buffer = [0; 64];
            held_back && linux.recv(&server, &mut buffer) == Ok(8)
        };
        assert!((0..50).any(|_| waits()));
    }

    #[test]
    fn pipes_can_be_waited_for_at_both_ends() {
        let linux = Linux::new().unwrap();
        let (reader, writer) = unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        linux.add(&writer, Interest::Writable, 1).unwrap();
        let event = next(&linux);
        assert!(event.token == 1 && event.readiness.is_writable());
        let chunk = [7; 4096];
        let mut room = 0;
        while let Ok(written) = linux.write(&writer, &chunk) {
            room += written;
        }
        assert_eq!(linux.write(&writer, b"x"), Err(Errno::EAGAIN));

        let mut buffer = vec![0; room];
        assert_eq!(linux.read(&reader, &mut buffer), Ok(room));
        assert!(next(&linux).readiness.is_writable());
        assert_eq!(linux.read(&reader, &mut buffer), Err(Errno::EAGAIN));

        linux.add(&reader, Interest::Readable, 2).unwrap();
        drop(writer);
        let event = next(&linux);
        assert!(event.token == 2 && event.readiness.is_readable() && event.readiness.is_hang_up());
        assert_eq!(linux.read(&reader, &mut buffer), Ok(0));
    }

    #[test]
    fn writing_to_a_closed_connection_raises_no_signal() {
        let linux = Linux::new().unwrap();
        // Blocked, so that it would be pending, although Rust programs ignore it.
        let broken_pipe = SigSet::from(NixSignal::SIGPIPE);
        broken_pipe.thread_block().unwrap();
        let pending = SignalFd::with_flags(&broken_pipe, SfdFlags::SFD_NONBLOCK).unwrap();
        let (client, _server) = pair(&linux);
        linux.shutdown_write(&client).unwrap();
        assert_eq!(linux.send(&client, b"x"), Err(Errno::EPIPE));
        assert_eq!(linux.writev(&client, &[IoSlice::new(b"x")], Then::Nothing), Err(Errno::EPIPE));
        assert!(pending.read_signal().unwrap().is_none());
        assert_eq!(linux.write(&client, b"x"), Err(Errno::EPIPE));
        assert!(pending.read_signal().unwrap().is_some(), "write(2) does, or this test shows nothing");
        let file = tempfile::tempfile().unwrap();
        file.set_len(1).unwrap();
        assert_eq!(linux.sendfile(&client, &file, 0, 1), Err(Errno::EPIPE));
        assert!(pending.read_signal().unwrap().is_some(), "nor can sendfile(2) be told not to");
    }
}
