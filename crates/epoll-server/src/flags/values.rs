//! What the values of flags may be, and what is said of those that they may not.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;

pub(super) fn size(text: &str) -> Result<usize, String> {
    let ByteSize(bytes) = text.parse().map_err(|_| "not a size such as 4096, 64KiB or 1.5MiB".to_owned())?;
    usize::try_from(bytes).map_err(|_| "more than this machine can address".to_owned())
}

/// The form alone, so that what cannot be an address is an error of the command line; names are looked up later.
pub(super) fn address(text: &str) -> Result<String, String> {
    match text.strip_prefix("unix:") {
        Some("") => Err("no path after unix:".to_owned()),
        Some(_) => Ok(text.to_owned()),
        None => host_and_port(text, "HOST:PORT, [IPv6]:PORT or unix:PATH", "[::]"),
    }
}

/// The same without Unix sockets, which neither Prometheus nor a browser knows.
pub(super) fn tcp_address(text: &str) -> Result<String, String> {
    const FORMS: &str = "HOST:PORT or [IPv6]:PORT";
    if text.starts_with("unix:") {
        return Err(format!("expected {FORMS}"));
    }
    // `[::]` would have to be allowed first.
    host_and_port(text, FORMS, "[::1]")
}

/// `ipv6` is an address that would do.
fn host_and_port(text: &str, forms: &str, ipv6: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    // `::1:7000` could be an address and a port, or a longer address.
    let bare = host.contains(':') && text.parse::<SocketAddr>().is_err();
    let no_port = port.parse::<u16>().is_err();
    match host {
        "" if no_port => Err(format!("expected {forms}")),
        "" => Err(format!("expected HOST:PORT, such as 127.0.0.1:{port} or {ipv6}:{port}")),
        _ if bare => Err("an IPv6 address is written [IPv6]:PORT".to_owned()),
        _ if no_port => Err("its port is not a number up to 65535".to_owned()),
        "*" => Err(format!("every address is 0.0.0.0:{port} for IPv4 or [::]:{port} for both")),
        _ => Ok(text.to_owned()),
    }
}

/// `GET / HTTP/1.1` with a `Host` of some length.
const LEAST_HEAD: usize = 64;

pub(super) fn head_limit(text: &str) -> Result<usize, String> {
    match size(text)? {
        0..LEAST_HEAD => Err(format!("below {LEAST_HEAD} bytes, which hardly any request fits into")),
        bytes => Ok(bytes),
    }
}

pub(super) fn target_limit(text: &str) -> Result<usize, String> {
    match size(text)? {
        0 => Err("must be at least 1: even the shortest target is `/`".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A number that is not zero.
pub(super) fn count<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "not a number from 1 on".to_owned())
}

/// Beyond it there is no machine, and a mistake is likely.
const MOST_WORKERS: usize = 1024;

pub(super) fn workers(text: &str) -> Result<NonZeroUsize, String> {
    match text {
        // Where the system does not say, one loop is what there would be without the flag.
        "auto" => Ok(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)),
        text => match count::<NonZeroUsize>(text) {
            Ok(number) if number.get() <= MOST_WORKERS => Ok(number),
            _ => Err(format!("neither a number from 1 to {MOST_WORKERS} nor `auto`")),
        },
    }
}

pub(super) fn rate(text: &str) -> Result<u32, String> {
    u32::try_from(size(text)?).map_err(|_| "more than 4 GiB a second".to_owned())
}

pub(super) fn count_or_none(text: &str) -> Result<NonZeroUsize, String> {
    match text {
        "none" => Ok(NonZeroUsize::MAX),
        text => count(text).map_err(|_| "neither a number from 1 on nor `none`".to_owned()),
    }
}

/// A time, or for ever.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(pub(crate) Option<Duration>);

impl Patience {
    /// For ever is as long as a time can be.
    pub(crate) fn duration(self) -> Duration {
        self.0.unwrap_or(Duration::MAX)
    }
}

/// What a time may look like.
const TIMES: &str = "a time such as 500ms, 90s, 5m or `1h 30m`";

pub(super) fn patience(text: &str) -> Result<Patience, String> {
    match text {
        "never" => Ok(Patience(None)),
        text => above_zero(text, || format!("neither {TIMES} nor `never`")).map(|time| Patience(Some(time))),
    }
}

pub(super) fn write_timeout(text: &str) -> Result<Duration, String> {
    match text {
        "never" => Err("must end: a client that has stopped reading would hold memory for ever".to_owned()),
        text => above_zero(text, || format!("not {TIMES}")),
    }
}

pub(super) fn lag_target(text: &str) -> Result<Duration, String> {
    above_zero(text, || "not a time such as 5ms or 1s; without the flag nothing is shed".to_owned())
}

/// A time that may be zero.
pub(super) fn grace(text: &str) -> Result<Duration, String> {
    time(text, || format!("not {TIMES}"))
}

/// Zero would close everything, or shed it; most who write it mean "never".
fn above_zero(text: &str, expected: impl FnOnce() -> String) -> Result<Duration, String> {
    match time(text, expected)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

fn time(text: &str, expected: impl FnOnce() -> String) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => "more seconds than can be counted".to_owned(),
        _ => expected(),
    })
}
