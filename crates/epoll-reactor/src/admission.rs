//! Who is let in: how many connections each client address has, and how many clients are being told that there is no
//! room. Accepting itself is `listener.rs`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use epoll_sys::Address;

use crate::connection::Connection;
use crate::limits::Limits;

/// How long telling a client that there is no room may take in all, and how many bytes of what it says meanwhile are read
/// and discarded. [`Limits`] may say less. Whoever is not let in must not cost what one costs who is.
pub(crate) const TELLING: Duration = Duration::from_secs(2);
pub(crate) const HEARD_OUT: usize = 1024 * 1024;

/// Invariant: what it counts are the accepted connections in the slab, each once. With no limit for an address nothing
/// is counted.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// Connections of each network. An entry exists as long as one is open.
    open: HashMap<u128, usize>,
    /// Connections that have been refused and are being told.
    pub(crate) refused: usize,
}

/// Why a client is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Connections,
    Address,
    /// There would be room, but no time: [`Limits::lag_target`].
    Overload,
}

impl Admission {
    /// Whether one more from `peer` is too many, beside the `connections` there are, those not counted that have been
    /// refused.
    pub(crate) fn check(&self, limits: &Limits, connections: usize, peer: &Address) -> Result<(), Full> {
        if connections >= limits.connections {
            return Err(Full::Connections);
        }
        let open = network(peer, limits).map(|network| self.open.get(&network).copied().unwrap_or_default());
        match open {
            Some(open) if open >= limits.connections_per_address => Err(Full::Address),
            _ => Ok(()),
        }
    }

    /// As many may be told at a time. Further ones are closed at once: being told is a favour, and must not cost more
    /// than what it stands for; and least of all where time is what there is too little of.
    pub(crate) fn may_refuse(&self, limits: &Limits, full: Full) -> bool {
        let most = limits.connections / 16 + 16;
        let most = if full == Full::Overload { most.min(limits.accept_budget) } else { most };
        !limits.refusal.is_empty() && self.refused < most
    }

    pub(crate) fn enter(&mut self, limits: &Limits, peer: &Address) {
        if let Some(network) = network(peer, limits) {
            *self.open.entry(network).or_default() += 1;
        }
    }

    /// A connection has been taken apart.
    pub(crate) fn leave(&mut self, limits: &Limits, connection: &Connection) {
        if connection.refused {
            self.refused -= 1;
        } else if connection.listener.is_some()
            && let Some(network) = network(&connection.peer.address(), limits)
            && let Some(open) = self.open.get_mut(&network)
        {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&network);
            }
        }
    }

    /// What the books should be.
    #[cfg(feature = "sim")]
    pub(crate) fn audit<'a>(
        &self,
        limits: &Limits,
        connections: impl Iterator<Item = &'a Connection>,
    ) -> Result<(), String> {
        let mut counted = Self::default();
        for connection in connections {
            if connection.refused {
                counted.refused += 1;
            } else if connection.listener.is_some() {
                counted.enter(limits, &connection.peer.address());
            }
        }
        if counted.open == self.open && counted.refused == self.refused {
            return Ok(());
        }
        Err(format!("admission counts {self:?}, and there are {counted:?}"))
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 network of 64 bits, which is what one site has at least (RFC
/// 4291 section 2.5.4). `None` for those that are not counted.
fn network(peer: &Address, limits: &Limits) -> Option<u128> {
    if limits.connections_per_address == usize::MAX {
        return None;
    }
    Some(match peer.as_tcp()?.ip().to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_one_client() {
        let limits = Limits { connections_per_address: 1, ..Limits::default() };
        let of = |text: &str| network(&Address::Tcp(text.parse().unwrap()), &limits);
        assert_eq!(of("192.0.2.1:1"), of("192.0.2.1:2"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:1"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:0:0:1]:1"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_ne!(of("[::1]:1"), of("0.0.0.0:1"), "the first 64 bits of both are zero");
        assert_eq!(network(&Address::UnixUnnamed, &limits), None);
        assert_eq!(network(&Address::Tcp("192.0.2.1:1".parse().unwrap()), &Limits::default()), None);
    }
}
