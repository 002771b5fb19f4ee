//! A peer's address as each connection keeps it: smaller than an [`Address`], whose rare forms are boxed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use epoll_sys::Address;

/// What an [`Address`] says, in 24 bytes instead of 32.
#[derive(Debug)]
pub(crate) enum Peer {
    V4(Ipv4Addr, u16),
    /// Without scope and flow.
    V6(Ipv6Addr, u16),
    UnixUnnamed,
    /// A Unix socket with a path, or IPv6 with a scope or a flow.
    Other(Box<Address>),
}

impl Peer {
    pub(crate) fn new(address: Address) -> Self {
        match address {
            Address::Tcp(SocketAddr::V4(peer)) => Self::V4(*peer.ip(), peer.port()),
            Address::Tcp(SocketAddr::V6(peer)) if peer.scope_id() == 0 && peer.flowinfo() == 0 => {
                Self::V6(*peer.ip(), peer.port())
            }
            Address::UnixUnnamed => Self::UnixUnnamed,
            other => Self::Other(Box::new(other)),
        }
    }

    /// 0 for a Unix socket.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::V4(_, port) | Self::V6(_, port) => *port,
            Self::UnixUnnamed => 0,
            Self::Other(address) => address.as_tcp().map_or(0, |address| address.port()),
        }
    }

    #[inline]
    pub(crate) fn address(&self) -> Address {
        match self {
            Self::V4(ip, port) => Address::Tcp(SocketAddr::new(IpAddr::V4(*ip), *port)),
            Self::V6(ip, port) => Address::Tcp(SocketAddr::new(IpAddr::V6(*ip), *port)),
            Self::UnixUnnamed => Address::UnixUnnamed,
            Self::Other(address) => other(address),
        }
    }
}

/// Out of the way of the common ones: every request asks.
#[cold]
fn other(address: &Address) -> Address {
    address.clone()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;

    #[test]
    fn every_address_comes_back_as_it_was() {
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 7, 0, 3);
        let flow = SocketAddrV6::new("2001:db8::1".parse().unwrap(), 7, 5, 0);
        let addresses = [
            Address::Tcp("192.0.2.1:80".parse().unwrap()),
            Address::Tcp("[2001:db8::1]:443".parse().unwrap()),
            Address::Tcp(scoped.into()),
            Address::Tcp(flow.into()),
            Address::Unix("/run/peer".into()),
            Address::UnixUnnamed,
        ];
        for address in addresses {
            let port = address.as_tcp().map_or(0, |address| address.port());
            assert_eq!(Peer::new(address.clone()).port(), port);
            assert_eq!(Peer::new(address.clone()).address(), address);
        }
        assert_eq!(size_of::<Peer>(), 24);
    }
}
