//! HTTP load by wrk, with scripts made here.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::process::{guarded, output};

/// What each request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// `GET /hello` as wrk has it.
    Plain,
    /// Sixteen of them at a time.
    Pipelined,
    /// With `Connection: close`.
    NewConnection,
    /// `POST /echo` with 1 KiB.
    Post,
    /// With what a browser sends.
    Browser,
    /// A file by its name.
    File(&'static str),
}

/// How many requests are written at a time.
pub(super) const PIPELINE: usize = 16;

/// Twelve fields of a browser's request, 700 bytes or so with `Host`.
const BROWSER: [(&str, &str); 12] = [
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    ),
    (
        "Accept",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8",
    ),
    ("Accept-Language", "en-US,en;q=0.9,de;q=0.8"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Cache-Control", "max-age=0"),
    ("Cookie", "session=0c2f6a9e4b7d4d0f8a51e3c6; theme=dark; consent=1; _ga=GA1.1.1234567890.1700000000"),
    ("Referer", "http://127.0.0.1/articles/2024/07/how-fast-is-fast"),
    ("Sec-Ch-Ua", "\"Chromium\";v=\"126\", \"Not.A/Brand\";v=\"24\""),
    ("Sec-Fetch-Dest", "document"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Site", "same-origin"),
    ("Upgrade-Insecure-Requests", "1"),
];

impl Script {
    pub(super) const fn method(self) -> &'static str {
        if matches!(self, Self::Post) { "POST" } else { "GET" }
    }

    pub(super) fn path(self) -> String {
        match self {
            Self::Post => "/echo".to_owned(),
            Self::File(name) => format!("/{name}"),
            _ => "/hello".to_owned(),
        }
    }

    pub(super) const fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::NewConnection => &[("Connection", "close")],
            Self::Browser => &BROWSER,
            _ => &[],
        }
    }

    pub(super) fn body(self) -> String {
        if self == Self::Post { "0123456789abcdef".repeat(64) } else { String::new() }
    }

    /// In Lua, as wrk reads it: what a request is, and a line of figures at the end that [`Measured::parse`] reads.
    fn lua(self) -> String {
        // Rust's escapes for ASCII text are Lua's too.
        let mut text = format!("wrk.method = {:?}\nwrk.path = {:?}\n", self.method(), self.path());
        for (name, value) in self.headers() {
            let _: std::fmt::Result = writeln!(text, "wrk.headers[{name:?}] = {value:?}");
        }
        if self == Self::Post {
            let _: std::fmt::Result = writeln!(text, "wrk.body = {:?}", self.body());
        }
        if self == Self::Pipelined {
            let _: std::fmt::Result = writeln!(
                text,
                "local all\ninit = function() all = string.rep(wrk.format(), {PIPELINE}) end\nrequest = function() return all end"
            );
        }
        text + "done = function(summary, latency)\n  local e = summary.errors\n  io.write(string.format('measured %d %d %d %d %d %d %d %d %d %d\\n', \
                summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency:percentile(99.9), \
                e.connect, e.read, e.write, e.status, e.timeout))\nend\n"
    }
}

/// What wrk has measured.
#[derive(Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) requests: f64,
    pub(super) seconds: f64,
    /// Microseconds at the median, 99% and 99.9%. `None` where requests are pipelined: wrk 4 then takes the time between two
    /// answers for that of a request, corrects its latencies by it, and what it makes of them is too low or 0.
    pub(super) latency: Option<[f64; 3]>,
}

impl Measured {
    /// # Errors
    /// A report without the line of figures, without a request, or with an error of any kind.
    fn parse(report: &str, script: Script) -> io::Result<Self> {
        let words = report.lines().find_map(|line| line.strip_prefix("measured "));
        let numbers: Option<Vec<f64>> =
            words.and_then(|words| words.split(' ').map(|word| word.trim().parse().ok()).collect());
        let Some([requests, micros, p50, p99, p999, errors @ ..]) = numbers.as_deref() else {
            return Err(io::Error::other(format!("cannot read wrk's report: {report}")));
        };
        let [connect, read, write, status, timeout] = *errors else {
            return Err(io::Error::other(format!("cannot read wrk's report: {report}")));
        };
        if errors.iter().any(|count| *count > 0.0) {
            return Err(io::Error::other(format!(
                "wrk counts {connect} connections that failed, {read} reads, {write} writes, {status} answers that are \
                 not 2xx or 3xx, {timeout} timeouts"
            )));
        }
        if *requests == 0.0 {
            return Err(io::Error::other("no request was answered"));
        }
        let latency = (script != Script::Pipelined).then_some([*p50, *p99, *p999]);
        Ok(Self { requests: *requests, seconds: micros / 1e6, latency })
    }
}

/// Loads a server from `core`, or from any.
pub(super) fn load(
    directory: &Path,
    core: Option<u32>,
    port: u16,
    script: Script,
    connections: u32,
    time: Duration,
) -> io::Result<Measured> {
    let file = directory.join("wrk.lua");
    std::fs::write(&file, script.lua())?;
    let seconds = time.as_secs().max(1);
    let mut wrk = guarded(core);
    wrk.args(["wrk", "-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--timeout", "10s", "-s"])
        .arg(&file)
        .arg(format!("http://127.0.0.1:{port}{}", script.path()));
    Measured::parse(&output(&mut wrk)?, script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrks_report_is_read() {
        let report = "Running 1s test @ http://127.0.0.1:1/hello\n  1 threads and 64 connections\n  Thread Stats\n\
                      Requests/sec: 146000.00\nmeasured 292000 2000000 431 902 1788 0 0 0 0 0\n";
        let latency = Some([431.0, 902.0, 1788.0]);
        let expected = Measured { requests: 292_000.0, seconds: 2.0, latency };
        assert_eq!(Measured::parse(report, Script::Plain).unwrap(), expected);
        assert_eq!(Measured::parse(report, Script::Pipelined).unwrap().latency, None);
    }

    #[test]
    fn errors_that_wrk_counts_fail_the_measurement() {
        for place in 0..5 {
            let errors: Vec<&str> = (0..5).map(|index| if index == place { "7" } else { "0" }).collect();
            let report = format!("measured 10 2000000 1 2 3 {}\n", errors.join(" "));
            assert!(
                Measured::parse(&report, Script::Plain).unwrap_err().to_string().contains('7'),
                "{report}"
            );
        }
        assert!(Measured::parse("measured 0 2000000 1 2 3 0 0 0 0 0\n", Script::Plain).is_err());
        assert!(Measured::parse("measured 10 2000000 1 2 3\n", Script::Plain).is_err());
        assert!(Measured::parse("unable to connect\n", Script::Plain).is_err());
    }

    #[test]
    fn a_browsers_request_is_as_large_as_one() {
        let size: usize = BROWSER.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        assert!((600..800).contains(&size), "{size} bytes");
    }
}
