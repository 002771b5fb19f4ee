//! Addresses in a simulated world: who is bound to what, and which of them a connection finds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::table::Key;
use crate::Errno;

/// Who is bound to what.
#[derive(Default)]
pub(super) struct Names {
    pub(super) listeners: Vec<(SocketAddr, Key)>,
    /// The files of Unix sockets, with the one that listens, if it still does.
    pub(super) files: BTreeMap<PathBuf, Option<Key>>,
    ports_given: u16,
}

impl Names {
    /// The next port nobody listens on, in the order of numbers.
    pub(super) fn free_port(&mut self) -> u16 {
        loop {
            let port = 32_768 + self.ports_given % 28_232;
            self.ports_given = self.ports_given.wrapping_add(1);
            if !self.listeners.iter().any(|(address, _)| address.port() == port) {
                return port;
            }
        }
    }

    /// Those who listen on `address`: on that very one, or else on every address.
    pub(super) fn listening_on(&self, address: SocketAddr) -> Vec<Key> {
        let on = |wanted: &dyn Fn(IpAddr) -> bool| -> Vec<Key> {
            let same_port = self.listeners.iter().filter(|(bound, _)| bound.port() == address.port());
            same_port.filter(|(bound, _)| wanted(bound.ip())).map(|(_, key)| *key).collect()
        };
        let exactly = on(&|bound| bound == address.ip());
        if exactly.is_empty() { on(&|bound| takes_all(bound, address.ip())) } else { exactly }
    }
}

/// `[::]` takes IPv4 too.
pub(super) fn takes_all(bound: IpAddr, address: IpAddr) -> bool {
    bound.is_unspecified() && (bound.is_ipv6() || address.is_ipv4())
}

pub(super) fn check_path(path: &Path) -> Result<(), Errno> {
    const LONGEST: usize = 107;
    let bytes = path.as_os_str().as_bytes();
    match bytes.len() {
        0 => Err(Errno::EINVAL),
        length if length > LONGEST => Err(Errno::ENAMETOOLONG),
        _ if bytes.contains(&0) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// The address that a connection to `to` comes from, on the same machine.
pub(super) fn source_for(to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(to) if to.is_loopback() || to.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(to) if to.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        to => to,
    }
}

/// As an IPv6 listener sees it.
pub(super) fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
