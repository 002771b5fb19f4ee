//! Listening sockets: the options that connections inherit, and the files of Unix sockets.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{Backlog, bind, setsockopt, sockopt};
use nix::sys::stat::{SFlag, lstat};
use nix::unistd::unlink;

use super::socket::{SocketName, connect};
use crate::{Address, Errno, ListenOptions};

pub(super) fn listen(address: &Address, options: &ListenOptions) -> Result<OwnedFd, Errno> {
    let name = SocketName::new(address)?;
    let socket = name.open_socket()?;
    if name.is_tcp() {
        set_tcp_options(&socket, options)?;
    }
    if matches!(name, SocketName::V6(_)) {
        // The default is a setting of the system: net.ipv6.bindv6only.
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    if options.reuse_port {
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    match (bind(socket.as_raw_fd(), name.as_sockaddr()), address) {
        (Err(Errno::EADDRINUSE), Address::Unix(path)) => {
            if remove_stale_socket(path).is_err() {
                return Err(Errno::EADDRINUSE);
            }
            bind(socket.as_raw_fd(), name.as_sockaddr())?;
        }
        (bound, _) => bound?,
    }
    nix::sys::socket::listen(&socket, backlog(options.backlog))?;
    Ok(socket)
}

fn set_tcp_options(socket: &OwnedFd, options: &ListenOptions) -> Result<(), Errno> {
    // Without it a restart fails for as long as connections of the last run are in TIME_WAIT.
    setsockopt(socket, sockopt::ReuseAddr, &true)?;
    if options.nodelay {
        setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    }
    if let Some(idle) = options.keepalive {
        setsockopt(socket, sockopt::KeepAlive, &true)?;
        setsockopt(socket, sockopt::TcpKeepIdle, &keepalive_seconds(idle))?;
        setsockopt(socket, sockopt::TcpKeepInterval, &keepalive_seconds(idle / 4))?;
        setsockopt(socket, sockopt::TcpKeepCount, &3)?;
    }
    if let Some(timeout) = options.user_timeout {
        setsockopt(socket, sockopt::TcpUserTimeout, &whole_units(timeout, Duration::from_millis(1)))?;
    }
    if let Some(bytes) = options.not_sent_low_water {
        // 0 would be the kernel's own, which is no limit at all.
        setsockopt(socket, extra::TcpNotSentLowWater, &bytes.max(1))?;
    }
    if let Some(timeout) = options.defer_accept {
        setsockopt(socket, extra::TcpDeferAccept, &whole_units(timeout, Duration::from_secs(1)))?;
    }
    Ok(())
}

/// Rounded up, and at least one: for each of these options zero means "off" or "the default". The kernel
/// keeps them in an `int`.
fn whole_units(duration: Duration, unit: Duration) -> u32 {
    const MOST: u32 = i32::MAX.unsigned_abs();
    let units = duration.as_nanos().div_ceil(unit.as_nanos());
    u32::try_from(units).unwrap_or(MOST).clamp(1, MOST)
}

/// The kernel refuses more than this, which is nine hours.
fn keepalive_seconds(duration: Duration) -> u32 {
    const MAX_TCP_KEEPIDLE: u32 = 32_767;
    whole_units(duration, Duration::from_secs(1)).min(MAX_TCP_KEEPIDLE)
}

/// nix takes at most the default of net.core.somaxconn. Whoever asks for more has raised that setting, and
/// gets as much as it allows.
fn backlog(connections: i32) -> Backlog {
    Backlog::new(connections.max(0)).unwrap_or(Backlog::MAXALLOWABLE)
}

/// Removes the file of a Unix socket nobody listens on. `EADDRINUSE` if somebody does, or may: it takes a
/// connection to find out, which a live listener sees come and go. `ENOTSOCK` if it is another kind of file.
///
/// Another server that starts at the same moment may bind the path between the question and the removal; its
/// socket is then unreachable. The kernel has no call that does both at once.
pub(super) fn remove_stale_socket(path: &Path) -> Result<(), Errno> {
    let kind = SFlag::from_bits_truncate(lstat(path)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFSOCK {
        return Err(Errno::ENOTSOCK);
    }
    match connect(&Address::Unix(path.to_path_buf())) {
        Err(Errno::ECONNREFUSED) => unlink(path),
        _ => Err(Errno::EADDRINUSE),
    }
}

/// Options of tcp(7) that nix does not have, made with its own macros, which hold the `unsafe`.
mod extra {
    use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// A `u32` here is the `int` of tcp(7), as in nix's own `TcpUserTimeout`.
        TcpNotSentLowWater,
        Both,
        libc::IPPROTO_TCP,
        libc::TCP_NOTSENT_LOWAT,
        u32
    );
    sockopt_impl!(
        /// In seconds.
        TcpDeferAccept,
        Both,
        libc::IPPROTO_TCP,
        libc::TCP_DEFER_ACCEPT,
        u32
    );
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::path::PathBuf;

    use nix::sys::socket::getsockopt;

    use super::super::Linux;
    use super::super::testing::{accept, loopback, next};
    use super::*;
    use crate::{Interest, Kernel};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn connections_inherit_every_option() {
        let linux = Linux::new().unwrap();
        let options = ListenOptions {
            keepalive: Some(Duration::from_millis(41_500)),
            user_timeout: Some(Duration::from_micros(12_345_100)),
            not_sent_low_water: Some(16_384),
            ..ListenOptions::default()
        };
        let listener = linux.listen(&loopback(), &options).unwrap();
        let (_client, _) = linux.connect(&linux.local_address(&listener).unwrap()).unwrap();
        let (server, _) = accept(&linux, &listener);
        assert!(getsockopt(&server, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&server, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&server, sockopt::TcpKeepIdle), Ok(42));
        assert_eq!(getsockopt(&server, sockopt::TcpKeepInterval), Ok(11));
        assert_eq!(getsockopt(&server, sockopt::TcpKeepCount), Ok(3));
        assert_eq!(getsockopt(&server, sockopt::TcpUserTimeout), Ok(12_346));
        assert_eq!(getsockopt(&server, extra::TcpNotSentLowWater), Ok(16_384));
    }

    #[test]
    fn options_not_asked_for_are_off() {
        let linux = Linux::new().unwrap();
        let options =
            ListenOptions { nodelay: false, keepalive: None, user_timeout: None, ..ListenOptions::default() };
        let listener = linux.listen(&loopback(), &options).unwrap();
        assert!(!getsockopt(&listener, sockopt::TcpNoDelay).unwrap());
        assert!(!getsockopt(&listener, sockopt::KeepAlive).unwrap());
        assert!(!getsockopt(&listener, sockopt::ReusePort).unwrap());
        assert_eq!(getsockopt(&listener, sockopt::TcpUserTimeout), Ok(0));
        assert_eq!(getsockopt(&listener, extra::TcpNotSentLowWater), Ok(0));
        assert_eq!(getsockopt(&listener, extra::TcpDeferAccept), Ok(0));
    }

    #[test]
    fn the_extremes_of_each_option_are_taken() {
        for extreme in [Duration::ZERO, Duration::MAX] {
            let options = ListenOptions {
                keepalive: Some(extreme),
                user_timeout: Some(extreme),
                defer_accept: Some(extreme),
                not_sent_low_water: Some(0),
                ..ListenOptions::default()
            };
            listen(&loopback(), &options).unwrap();
        }
        for backlog in [i32::MIN, -1, 0, 1, 4096, 4097, i32::MAX] {
            listen(&loopback(), &ListenOptions { backlog, ..ListenOptions::default() }).unwrap();
        }
    }

    #[test]
    fn durations_are_rounded_up_and_never_zero() {
        let rows = [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (2_999, 3)];
        for (milliseconds, seconds) in rows {
            assert_eq!(whole_units(Duration::from_millis(milliseconds), SECOND), seconds);
        }
        assert_eq!(whole_units(Duration::MAX, SECOND), i32::MAX.unsigned_abs());
        assert_eq!(keepalive_seconds(Duration::MAX), 32_767);
    }

    #[test]
    fn a_deferred_connection_waits_for_its_first_data() {
        let linux = Linux::new().unwrap();
        let options = ListenOptions { defer_accept: Some(5 * SECOND), ..ListenOptions::default() };
        let listener = linux.listen(&loopback(), &options).unwrap();
        assert!(getsockopt(&listener, extra::TcpDeferAccept).unwrap() >= 5);
        let (client, _) = linux.connect(&linux.local_address(&listener).unwrap()).unwrap();
        linux.add(&client, Interest::Stream, 1).unwrap();
        assert!(next(&linux).readiness.is_writable());
        assert_eq!(linux.accept(&listener).unwrap_err(), Errno::EAGAIN);
        linux.send(&client, b"first").unwrap();
        let (server, _) = accept(&linux, &listener);
        assert_eq!(linux.recv(&server, &mut [0; 16]), Ok(5));
    }

    #[test]
    fn an_unspecified_ipv6_listener_serves_ipv4_too() {
        let linux = Linux::new().unwrap();
        let address = Address::Tcp((Ipv6Addr::UNSPECIFIED, 0).into());
        let listener = match linux.listen(&address, &ListenOptions::default()) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => return, // A system without IPv6.
            listener => listener.unwrap(),
        };
        let port = linux.local_address(&listener).unwrap().as_tcp().unwrap().port();
        let (client, _) = linux.connect(&Address::Tcp((Ipv4Addr::LOCALHOST, port).into())).unwrap();
        let (_server, peer) = accept(&linux, &listener);
        let client = linux.local_address(&client).unwrap().as_tcp().unwrap();
        let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), client.port()));
        assert_eq!(peer, Address::Tcp(mapped));
    }

    #[test]
    fn listeners_share_an_address_only_if_both_say_so() {
        let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
        let linux = Linux::new().unwrap();
        let first = linux.listen(&loopback(), &options).unwrap();
        let address = linux.local_address(&first).unwrap();
        let _second = linux.listen(&address, &options).unwrap();
        assert_eq!(linux.listen(&address, &ListenOptions::default()).unwrap_err(), Errno::EADDRINUSE);
        let directory = tempfile::tempdir().unwrap();
        let unix = Address::Unix(directory.path().join("socket"));
        assert_eq!(linux.listen(&unix, &options).unwrap_err(), Errno::EOPNOTSUPP);
    }

    #[test]
    fn connections_of_the_last_run_do_not_keep_a_server_from_starting() {
        let linux = Linux::new().unwrap();
        // Away from 127.0.0.1, so that no other test takes the port in between.
        let somewhere = Address::Tcp("127.0.0.4:0".parse().unwrap());
        let listener = linux.listen(&somewhere, &ListenOptions::default()).unwrap();
        let address = linux.local_address(&listener).unwrap();
        let (client, _) = linux.connect(&address).unwrap();
        let (server, _) = accept(&linux, &listener);
        // Who closes first is left in TIME_WAIT.
        drop(server);
        linux.add(&client, Interest::Stream, 1).unwrap();
        assert!(next(&linux).readiness.is_peer_shutdown());
        drop(client);
        drop(listener);
        linux.listen(&address, &ListenOptions::default()).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let linux = Linux::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("socket"));
        for _ in 0..2 {
            let listener = linux.listen(&address, &ListenOptions::default()).unwrap();
            linux.connect(&address).unwrap();
            drop(listener);
        }
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let linux = Linux::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("socket"));
        let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
        let listener = linux.listen(&address, &options).unwrap();
        // The first attempt fills the backlog, and a listener with a full one is alive too.
        for _ in 0..3 {
            assert_eq!(linux.listen(&address, &options).unwrap_err(), Errno::EADDRINUSE);
            assert_eq!(linux.remove_socket_file(&address), Err(Errno::EADDRINUSE));
        }
        while linux.accept(&listener).is_ok() {}
        linux.connect(&address).unwrap();
    }

    #[test]
    fn other_files_are_left_alone() {
        let linux = Linux::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [file.clone(), link, PathBuf::from(directory.path())] {
            let address = Address::Unix(path);
            let error = linux.listen(&address, &ListenOptions::default()).unwrap_err();
            assert_eq!(error, Errno::EADDRINUSE, "{address}");
            assert_eq!(linux.remove_socket_file(&address), Err(Errno::ENOTSOCK), "{address}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert_eq!(linux.remove_socket_file(&loopback()), Ok(()));
        assert_eq!(linux.remove_socket_file(&Address::UnixUnnamed), Ok(()));
    }

    #[test]
    fn a_missing_directory_is_named_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("missing").join("socket"));
        assert_eq!(listen(&address, &ListenOptions::default()).unwrap_err(), Errno::ENOENT);
    }
}
