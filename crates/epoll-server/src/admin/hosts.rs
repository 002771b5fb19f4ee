//! Which names the admin server answers to. A page in an operator's browser may have its own name lead to 127.0.0.1 and then
//! read what is there as if it were its own (DNS rebinding); what gives it away is that name, in `Host`.

use std::net::IpAddr;

/// The hosts that a request may be for.
pub(super) enum Hosts {
    /// Whoever reaches it may ask.
    Any,
    /// Loopback addresses, names that mean nothing else (RFC 6761 section 6.3), and this one, in lower case.
    Own(String),
}

impl Hosts {
    /// `text` is what was asked for, as in `localhost:9090`.
    pub(super) fn new(text: &str, anywhere: bool) -> Self {
        if anywhere { Self::Any } else { Self::Own(name_of(text).unwrap_or_default().to_ascii_lowercase()) }
    }

    /// Whether a request for `host`, with a port or without, is answered. Without any host it is: no browser leaves it
    /// out. The port says nothing: whoever comes through a tunnel gives another one.
    pub(super) fn answer_to(&self, host: Option<&str>) -> bool {
        let (Self::Own(own), Some(host)) = (self, host) else { return true };
        let Some(name) = name_of(host) else { return false };
        let name = name.to_ascii_lowercase();
        if let Ok(address) = name.parse::<IpAddr>() {
            return address.to_canonical().is_loopback();
        }
        let absolute = name.strip_suffix('.').unwrap_or(&name);
        absolute == "localhost" || absolute.ends_with(".localhost") || name == *own
    }
}

/// Without the port, and without the brackets of an IPv6 address.
fn name_of(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_here_by_somebody_elses_word_are_not_answered_to() {
        let hosts = Hosts::new("Monitor.example:9090", false);
        let own = [
            "127.0.0.1",
            "127.0.0.1:9090",
            "127.9.9.9:1",
            "[::1]:9090",
            "[::1]",
            "[::ffff:127.0.0.1]:9090",
            "localhost:9090",
            "LOCALHOST",
            "localhost.:80",
            "a.localhost",
            "monitor.EXAMPLE:9090",
            "localhost:",
        ];
        for host in own {
            assert!(hosts.answer_to(Some(host)), "{host}");
        }
        let foreign = [
            "evil.example",
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "192.0.2.1:9090",
            "[::2]:9090",
            "0.0.0.0:9090",
            "127.0.0.1:80@evil.example",
            "[::1]evil.example",
            "[::1",
            "",
            ":9090",
        ];
        for host in foreign {
            assert!(!hosts.answer_to(Some(host)), "{host}");
        }
        assert!(hosts.answer_to(None), "HTTP/1.0");
        assert!(Hosts::new("0.0.0.0:9090", true).answer_to(Some("evil.example")));
    }
}
