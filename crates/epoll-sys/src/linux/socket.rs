//! Stream sockets and their addresses, between [`Address`] and the kernel's `sockaddr`.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage, UnixAddr,
    getsockname, setsockopt, socket, sockopt,
};

use crate::{Address, ConnectProgress, Errno};

/// An address in the form bind(2) and connect(2) take.
pub(super) enum SocketName {
    V4(SockaddrIn),
    V6(SockaddrIn6),
    Unix(UnixAddr),
}

impl SocketName {
    /// `ENAMETOOLONG` for a Unix path of more than 107 bytes, `EINVAL` for one that is empty or contains a
    /// NUL, and for an unnamed address: to the kernel each of these is a name in another name space.
    pub(super) fn new(address: &Address) -> Result<Self, Errno> {
        match address {
            Address::Tcp(SocketAddr::V4(address)) => Ok(Self::V4((*address).into())),
            Address::Tcp(SocketAddr::V6(address)) => Ok(Self::V6((*address).into())),
            Address::Unix(path) if !path.as_os_str().is_empty() => UnixAddr::new(path).map(Self::Unix),
            Address::Unix(_) | Address::UnixUnnamed => Err(Errno::EINVAL),
        }
    }

    pub(super) fn as_sockaddr(&self) -> &dyn SockaddrLike {
        match self {
            Self::V4(name) => name,
            Self::V6(name) => name,
            Self::Unix(name) => name,
        }
    }

    /// A stream socket of the name's family, non-blocking and close-on-exec.
    pub(super) fn open_socket(&self) -> Result<OwnedFd, Errno> {
        let family = match self {
            Self::V4(_) => AddressFamily::Inet,
            Self::V6(_) => AddressFamily::Inet6,
            Self::Unix(_) => AddressFamily::Unix,
        };
        socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
    }

    pub(super) const fn is_tcp(&self) -> bool {
        !matches!(self, Self::Unix(_))
    }
}

pub(super) fn connect(address: &Address) -> Result<(OwnedFd, ConnectProgress), Errno> {
    let name = SocketName::new(address)?;
    let socket = name.open_socket()?;
    if name.is_tcp() {
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    }
    match nix::sys::socket::connect(socket.as_raw_fd(), name.as_sockaddr()) {
        Ok(()) => Ok((socket, ConnectProgress::Connected)),
        // connect(2): an interrupted connect goes on in the background, as one in progress does.
        Err(Errno::EINPROGRESS | Errno::EINTR) => Ok((socket, ConnectProgress::InProgress)),
        Err(error) => Err(error),
    }
}

#[allow(unsafe_code, reason = "nix's accept4 drops the peer's address; fetching it would cost another call")]
pub(super) fn accept(listener: &OwnedFd) -> Result<(OwnedFd, Address), Errno> {
    let mut storage = MaybeUninit::<SockaddrStorage>::zeroed();
    let mut length = SockaddrStorage::size();
    // SAFETY: `listener` is open, since it is borrowed. `storage` and `length` are exclusively borrowed and
    // live through the call, and `length` is the size of `storage`: the kernel writes no more than that.
    let accepted = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            storage.as_mut_ptr().cast(),
            &raw mut length,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    let accepted = Errno::result(accepted)?;
    // SAFETY: the call succeeded, so `accepted` is an open descriptor, new, and known to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
    // SAFETY: `from_raw` refuses a `length` beyond the size of a `sockaddr_storage` and reads `length` bytes.
    // They are in `storage` and initialised: by the kernel, or as the zeros it began with.
    let peer = unsafe { SockaddrStorage::from_raw(storage.as_ptr().cast(), Some(length)) };
    Ok((socket, address_of(peer.as_ref())))
}

pub(super) fn local_address(socket: &OwnedFd) -> Result<Address, Errno> {
    getsockname(socket.as_raw_fd()).map(|name| address_of(Some(&name)))
}

/// A Unix name that is no path, or one that [`SocketName`] could not give back (abstract, or 108 bytes long),
/// counts as none.
fn address_of(name: Option<&SockaddrStorage>) -> Address {
    let Some(name) = name else { return Address::UnixUnnamed };
    if let Some(name) = name.as_sockaddr_in() {
        Address::Tcp((*name).into())
    } else if let Some(name) = name.as_sockaddr_in6() {
        Address::Tcp((*name).into())
    } else {
        name.as_unix_addr()
            .and_then(UnixAddr::path)
            .map_or(Address::UnixUnnamed, |path| Address::Unix(path.to_path_buf()))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::net::Ipv6Addr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    use nix::sys::socket::{bind, getsockopt};

    use super::super::Linux;
    use super::super::testing::{accept, loopback};
    use super::*;
    use crate::{Kernel, ListenOptions};

    #[test]
    fn names_that_would_mean_something_else_are_refused() {
        let rows = [
            (Address::UnixUnnamed, Errno::EINVAL),
            (Address::Unix(PathBuf::new()), Errno::EINVAL),
            (Address::Unix(PathBuf::from("\0abstract")), Errno::EINVAL),
            (Address::Unix(PathBuf::from("in\0side")), Errno::EINVAL),
            (Address::Unix(PathBuf::from("x".repeat(108))), Errno::ENAMETOOLONG),
            (Address::Unix(PathBuf::from("x".repeat(10_000))), Errno::ENAMETOOLONG),
        ];
        for (address, error) in rows {
            assert_eq!(SocketName::new(&address).err(), Some(error), "{address}");
            assert_eq!(connect(&address).unwrap_err(), error, "{address}");
        }
    }

    #[test]
    fn the_longest_path_comes_back_whole() {
        let linux = Linux::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(longest(directory.path(), 107));
        let listener = linux.listen(&address, &ListenOptions::default()).unwrap();
        assert_eq!(linux.local_address(&listener), Ok(address));
    }

    /// A path of `length` bytes in `directory`.
    fn longest(directory: &Path, length: usize) -> PathBuf {
        let file = "x".repeat(length - directory.as_os_str().len() - 1);
        directory.join(file)
    }

    #[test]
    fn a_unix_peer_has_a_name_only_if_it_is_a_path_that_fits() {
        let linux = Linux::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("listener"));
        let listener = linux.listen(&address, &ListenOptions::default()).unwrap();
        let peer_bound_to = |name: &UnixAddr| {
            let listening = SocketName::new(&address).unwrap();
            let client = listening.open_socket().unwrap();
            bind(client.as_raw_fd(), name).unwrap();
            nix::sys::socket::connect(client.as_raw_fd(), listening.as_sockaddr()).unwrap();
            accept(&linux, &listener).1
        };
        let path = directory.path().join(OsStr::from_bytes(b"client \xff"));
        assert_eq!(peer_bound_to(&UnixAddr::new(&path).unwrap()), Address::Unix(path));
        let longest = longest(directory.path(), 107);
        assert_eq!(peer_bound_to(&UnixAddr::new(&longest).unwrap()), Address::Unix(longest));
        let name = format!("epoll-sys-test-{}", std::process::id());
        let name = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        assert_eq!(peer_bound_to(&name), Address::UnixUnnamed);
    }

    #[test]
    fn an_ipv6_peer_keeps_its_address() {
        let linux = Linux::new().unwrap();
        let address = Address::Tcp((Ipv6Addr::LOCALHOST, 0).into());
        let listener = match linux.listen(&address, &ListenOptions::default()) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => return, // A system without IPv6.
            listener => listener.unwrap(),
        };
        let (client, _) = linux.connect(&linux.local_address(&listener).unwrap()).unwrap();
        assert_eq!(accept(&linux, &listener).1, linux.local_address(&client).unwrap());
    }

    #[test]
    fn a_client_does_not_delay_small_segments() {
        let linux = Linux::new().unwrap();
        let listener = linux.listen(&loopback(), &ListenOptions::default()).unwrap();
        let (client, _) = linux.connect(&linux.local_address(&listener).unwrap()).unwrap();
        assert!(getsockopt(&client, sockopt::TcpNoDelay).unwrap());
    }

    #[test]
    fn a_full_unix_backlog_refuses_at_once() {
        let linux = Linux::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("socket"));
        let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
        let _listener = linux.listen(&address, &options).unwrap();
        let _waiting = linux.connect(&address).unwrap();
        assert_eq!(linux.connect(&address).unwrap_err(), Errno::EAGAIN);
    }
}
