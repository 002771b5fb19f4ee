//! Where to listen and whom to call: TCP over IPv4 and IPv6, and Unix sockets.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// The address of a stream socket, one's own or the peer's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP (tcp(7)). `[::]` listens on IPv4 too (ipv6(7), `IPV6_V6ONLY` off).
    Tcp(SocketAddr),
    /// A Unix stream socket bound to this path (unix(7)), at most 107 bytes long.
    Unix(PathBuf),
    /// A Unix stream socket without a path, as the client's side of one usually is. Names in the abstract
    /// name space count as none, and so do the paths of 108 bytes a peer may have.
    UnixUnnamed,
}

impl Address {
    /// Reads `host:port`, `[v6]:port` or `unix:PATH`. A host name is looked up, which may block for seconds:
    /// for start-up, not for a callback.
    ///
    /// # Errors
    /// `InvalidInput` naming the text if it is none of these, or what the look-up says, naming it too. At
    /// least one address is returned otherwise.
    pub fn resolve(text: &str) -> io::Result<Vec<Self>> {
        let named = |kind, why: &dyn fmt::Display| io::Error::new(kind, format!("address {text:?}: {why}"));
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err(named(io::ErrorKind::InvalidInput, &"no path after unix:"));
            }
            return Ok(vec![Self::Unix(PathBuf::from(path))]);
        }
        // `::1:7000` could be an address and a port, or a longer address.
        let host = text.rsplit_once(':').map_or("", |(host, _)| host);
        if host.is_empty() || (host.contains(':') && !host.starts_with('[')) {
            let forms = "expected HOST:PORT, [IPv6]:PORT or unix:PATH";
            return Err(named(io::ErrorKind::InvalidInput, &forms));
        }
        let found: Vec<Self> = match text.to_socket_addrs() {
            Ok(addresses) => addresses.map(Self::Tcp).collect(),
            Err(error) => return Err(named(error.kind(), &error)),
        };
        if found.is_empty() {
            return Err(named(io::ErrorKind::NotFound, &"the name has no address"));
        }
        Ok(found)
    }

    /// The TCP address, if it is one.
    #[must_use]
    pub const fn as_tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) | Self::UnixUnnamed => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// In the form [`Address::resolve`] reads; an unnamed Unix socket is `unix:`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => fmt::Display::fmt(address, f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::UnixUnnamed => f.write_str("unix:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for text in ["127.0.0.1:8080", "[::1]:80", "[::]:0", "unix:/run/a b.sock", "unix:relative"] {
            let addresses = Address::resolve(text).unwrap();
            assert_eq!(addresses.len(), 1);
            assert_eq!(addresses[0].to_string(), text);
        }
    }

    #[test]
    fn a_bad_address_is_named_in_the_error() {
        for text in
            ["", "127.0.0.1", ":80", "127.0.0.1:65536", "unix:", "::1:80", "::1:80:x", "127.0.0.1:http!"]
        {
            let error = Address::resolve(text).unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
