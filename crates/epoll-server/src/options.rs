//! What the flags come to: addresses, limits, and a protocol with its configuration, checked against each
//! other. Not the flags themselves, which are in `flags.rs`.

use std::env;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::FromArgMatches;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use epoll_protocols::http1::HttpConfig;
use epoll_protocols::{BroadcastConfig, SlowReceivers};
use epoll_reactor::{Limits, Record};

use crate::flags::{
    BroadcastFlags, CommonFlags, Flags, HttpFlags, ListenFlag, ProtocolFlags, SlowReceiversFlag, command,
};
use crate::http;
use crate::page::TICK;
use crate::trace::{MOST_CAPTURED, RECORDS};

const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";
const DEFAULT_PROTOCOL: &str = "broadcast";

/// `[Client_18446744073709551615] ` and a newline.
const LINE_OVERHEAD: usize = 31;

/// More than the status line and the fields of an answer of `http.rs`.
const ANSWER_HEAD: usize = 4096;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Serve(Box<Options>),
    /// To play the clients of this file to what would be served.
    #[cfg(feature = "replay")]
    Replay(PathBuf, Box<Options>),
    /// To print this file.
    Trace(PathBuf),
    /// To show how the server is doing whose admin address this is.
    Top(String),
}

/// What to serve, where, and within which bounds.
#[derive(Debug)]
pub(crate) struct Options {
    /// Where to listen, as typed. At least one.
    pub(crate) addresses: Vec<String>,
    /// For all loops together.
    pub(crate) limits: Limits,
    pub(crate) loops: Loops,
    pub(crate) protocol: Protocol,
    /// Where to write what the loops did last.
    pub(crate) trace_file: Option<PathBuf>,
    pub(crate) admin: Option<AdminOptions>,
}

/// Where operators are told.
#[derive(Debug)]
pub(crate) struct AdminOptions {
    /// As typed.
    pub(crate) address: String,
    /// It need not be a loopback address.
    pub(crate) anywhere: bool,
}

/// How many loops there are, and whether each has a CPU of its own, or as many connections as the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loops {
    pub(crate) count: NonZeroUsize,
    pub(crate) pin: bool,
    pub(crate) balance: bool,
}

/// A protocol and its configuration.
#[derive(Debug)]
pub(crate) enum Protocol {
    Broadcast(BroadcastConfig),
    Echo,
    Http(HttpConfig, Content),
}

/// What the HTTP server has to tell.
#[derive(Debug)]
pub(crate) struct Content {
    /// The directory whose files are served, and whether those without an index are listed. `None`: the page about the
    /// server.
    pub(crate) root: Option<PathBuf>,
    pub(crate) list: bool,
    pub(crate) access_log: Option<PathBuf>,
}

impl Protocol {
    /// Where the access log goes, if there is one.
    pub(crate) fn access_log(&self) -> Option<&Path> {
        match self {
            Self::Http(_, content) => content.access_log.as_deref(),
            Self::Broadcast(_) | Self::Echo => None,
        }
    }
}

impl Command {
    /// Reads the arguments of the process. If they ask for help or make no sense, this says so and exits.
    pub(crate) fn from_command_line() -> Self {
        Self::read(&env::args_os().collect::<Vec<_>>()).unwrap_or_else(|error| error.exit())
    }

    fn read(arguments: &[OsString]) -> Result<Self, clap::Error> {
        Self::from_flags(parse(arguments)?).map_err(|contradiction| {
            clap::Error::raw(ErrorKind::ValueValidation, format!("{contradiction}\n"))
        })
    }

    /// The error is a sentence that names the flags which contradict each other.
    fn from_flags(flags: Flags) -> Result<Self, String> {
        let Flags { protocol, listen, common } = flags;
        let (behind, protocol, limits) = match protocol {
            ProtocolFlags::Broadcast(flags) => broadcast(flags, &common)?,
            ProtocolFlags::Echo(flags) => (flags.listen, Protocol::Echo, limits(&common)),
            ProtocolFlags::Http(flags) => http(flags, &common)?,
            ProtocolFlags::Trace(flags) => return Ok(Self::Trace(flags.file)),
            ProtocolFlags::Top => {
                let missing = || "top needs --admin ADDR: that of the server to be shown".to_owned();
                return common.admin.map(Self::Top).ok_or_else(missing);
            }
        };
        if limits.memory < limits.output {
            return Err(format!(
                "--memory-limit ({}) is below the {} bytes that may wait for one connection",
                limits.memory, limits.output
            ));
        }
        check_capture(&common)?;
        if common.pin && common.workers.is_none() {
            return Err("--pin needs --workers: one loop alone stays where the system puts it".to_owned());
        }
        if common.admin_anywhere && common.admin.is_none() {
            return Err("--admin-anywhere needs --admin: it is about that address".to_owned());
        }
        let count = common.workers.unwrap_or(NonZeroUsize::MIN);
        let loops = Loops { count, pin: common.pin, balance: common.balance };
        check_shares(&limits, loops.count.get())?;
        let mut addresses = [listen.addresses, behind.addresses].concat();
        if addresses.is_empty() {
            addresses.push(DEFAULT_ADDRESS.to_owned());
        }
        let trace_file = common.trace_file;
        let admin = common.admin.map(|address| AdminOptions { address, anywhere: common.admin_anywhere });
        let options = Box::new(Options { addresses, limits, loops, protocol, trace_file, admin });
        #[cfg(feature = "replay")]
        if let Some(file) = common.replay {
            return Ok(Self::Replay(file, options));
        }
        Ok(Self::Serve(options))
    }
}

fn check_capture(common: &CommonFlags) -> Result<(), String> {
    let capture = common.capture;
    if capture > 0 && common.trace_file.is_none() {
        return Err("--capture needs --trace-file: it is what it is written to".to_owned());
    }
    let least = Limits::default().read_buffer;
    if (1..least).contains(&capture) {
        return Err(format!("--capture ({capture} bytes) is below {least}, which is read at one time"));
    }
    if capture > MOST_CAPTURED {
        return Err(format!("--capture ({capture} bytes) is above {MOST_CAPTURED}"));
    }
    Ok(())
}

/// Whether each of so many loops gets along with its part of the limits.
fn check_shares(limits: &Limits, workers: usize) -> Result<(), String> {
    if workers == 1 {
        return Ok(());
    }
    if limits.connections < workers {
        let connections = limits.connections;
        return Err(format!(
            "--max-connections ({connections}) is below one for each of --workers ({workers})"
        ));
    }
    let memory = limits.memory / workers;
    if memory < limits.output {
        return Err(format!(
            "--memory-limit ({}) is {memory} for each of --workers ({workers}), below the {} bytes that may wait for one \
             connection",
            limits.memory, limits.output
        ));
    }
    Ok(())
}

/// Understands the command line, with the protocol put in if it was left out: then its own flags are
/// understood too.
fn parse(arguments: &[OsString]) -> Result<Flags, clap::Error> {
    let error = match try_parse(arguments) {
        Err(error) if matches!(error.kind(), ErrorKind::MissingSubcommand | ErrorKind::UnknownArgument) => {
            error
        }
        result => return result,
    };
    let (program, rest) = arguments.split_at(arguments.len().min(1));
    match try_parse(&[program, &[DEFAULT_PROTOCOL.into()], rest].concat()) {
        // Unknown either way: the first error has seen what was typed.
        Err(second) if second.kind() == ErrorKind::UnknownArgument => {
            let http = try_parse(&[program, &["http".into()], rest].concat());
            Err(if http.is_ok() { suggest_http(error) } else { error })
        }
        result => result,
    }
}

fn try_parse(arguments: &[OsString]) -> Result<Flags, clap::Error> {
    Flags::from_arg_matches(&command().try_get_matches_from(arguments)?)
}

/// Whoever has left the protocol out may know that there is a default, and not which.
fn suggest_http(mut error: clap::Error) -> clap::Error {
    let tip = "it is a flag of `http`, which has to be named: epoll-server http ...";
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    error
}

fn limits(common: &CommonFlags) -> Limits {
    let interval = Limits::default().lag_interval;
    Limits {
        connections: common.max_connections.get(),
        idle_timeout: common.idle_timeout.0,
        write_stall_timeout: common.write_timeout,
        memory: common.memory_limit,
        drain_grace: common.grace,
        // What was sent is of use only with the records of who did.
        recorder: match common.trace_file {
            Some(_) => RECORDS.max(common.capture / size_of::<Record>()),
            None => 0,
        },
        capture: common.capture,
        lag_target: common.lag_target,
        // As long as a burst may last (RFC 8289 section 4.3 has the target at a tenth of it, at most).
        lag_interval: common.lag_target.map_or(interval, |target| target.saturating_mul(10).max(interval)),
        // Whatever the protocol: a loop that gets no CPU shows by what comes due.
        tick: Some(TICK),
        ..Limits::default()
    }
}

fn broadcast(flags: BroadcastFlags, common: &CommonFlags) -> Result<(ListenFlag, Protocol, Limits), String> {
    let BroadcastFlags { listen, line_limit, receiver_limit, slow_receivers } = flags;
    if line_limit.saturating_add(LINE_OVERHEAD) > receiver_limit {
        return Err(format!(
            "--receiver-limit ({receiver_limit}) is too small for a line of --line-limit ({line_limit}) bytes with \
             its sender, {LINE_OVERHEAD} bytes more"
        ));
    }
    let slow_receivers = match slow_receivers {
        SlowReceiversFlag::Disconnect => SlowReceivers::Disconnect,
        SlowReceiversFlag::Drop => SlowReceivers::Drop,
    };
    let config = BroadcastConfig { line_limit, receiver_limit, slow_receivers };
    let given = limits(common);
    let memory = given.memory;
    // What the protocol itself has to say comes on top.
    let beside = BroadcastConfig { receiver_limit: memory, ..config }.limits(given.clone()).output - memory;
    let least = given.output;
    let limits = config.limits(given);
    if least <= memory && limits.output > memory {
        return Err(above("--receiver-limit", receiver_limit, memory.saturating_sub(beside), memory));
    }
    Ok((listen, Protocol::Broadcast(config), limits))
}

/// What a flag that is above all that --memory-limit has room for is told.
fn above(flag: &str, value: usize, most: usize, memory: usize) -> String {
    format!("{flag} ({value} bytes) is above {most}, the most that --memory-limit ({memory}) has room for")
}

fn http(flags: HttpFlags, common: &CommonFlags) -> Result<(ListenFlag, Protocol, Limits), String> {
    let mut config = HttpConfig {
        head_timeout: flags.header_timeout.duration(),
        body_timeout: flags.body_timeout.duration(),
        body_rate: flags.body_rate,
        keep_alive_timeout: flags.keep_alive_timeout.duration(),
        blocking_threads: flags.blocking_threads.into(),
        ..HttpConfig::default()
    };
    config.limits.head = flags.head_limit;
    config.limits.headers = flags.header_count.into();
    config.limits.body = flags.body_limit;
    config.limits.requests = flags.max_requests.get();
    // The target is part of the head, so a smaller head makes for a smaller target.
    config.limits.target = flags.target_limit.min(flags.head_limit.saturating_sub(1));
    config.limits.check().map_err(|broken| {
        format!(
            "--head-limit ({}), --target-limit ({}) or --header-count ({}): {broken}",
            flags.head_limit, flags.target_limit, flags.header_count
        )
    })?;
    let limits = config.limits(limits(common));
    // `POST /echo` answers with as much as it was sent, behind whatever answers still wait.
    let beside = config.limits.output_batch.saturating_add(ANSWER_HEAD);
    let answer = flags.body_limit.saturating_add(beside);
    if limits.output <= limits.memory && answer > limits.memory {
        let most = limits.memory.saturating_sub(beside);
        return Err(above("--body-limit", flags.body_limit, most, limits.memory));
    }
    let limits = Limits {
        output: limits.output.max(answer),
        connections_per_address: flags.max_connections_per_client.get(),
        refusal: http::OVERLOADED,
        ..limits
    };
    let content = Content { root: flags.root, list: flags.list, access_log: flags.access_log };
    Ok((flags.listen, Protocol::Http(config, content), limits))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(line: &str) -> Result<Options, clap::Error> {
        match Command::read(&line.split(' ').map(OsString::from).collect::<Vec<_>>())? {
            Command::Serve(options) => Ok(*options),
            other => panic!("it is not to serve: {other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        let error = read(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn the_flags_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_libraries() {
        let bare = read("epoll-server").unwrap();
        assert_eq!(bare.addresses, [DEFAULT_ADDRESS]);
        let Protocol::Broadcast(config) = bare.protocol else { panic!("{:?}", bare.protocol) };
        let expected = BroadcastConfig::default();
        assert_eq!(format!("{config:?}"), format!("{expected:?}"));
        let ticking = Limits { tick: Some(TICK), ..Limits::default() };
        assert_eq!(format!("{:?}", bare.limits), format!("{:?}", expected.limits(ticking.clone())));

        let echo = read("epoll-server echo").unwrap();
        assert_eq!(format!("{:?}", echo.limits), format!("{ticking:?}"));

        let bare = read("epoll-server http").unwrap();
        let Protocol::Http(config, _) = bare.protocol else { panic!("{:?}", bare.protocol) };
        let expected = HttpConfig::default();
        assert_eq!(format!("{config:?}"), format!("{expected:?}"));
        let limits =
            Limits { connections_per_address: 4096, refusal: http::OVERLOADED, ..expected.limits(ticking) };
        assert_eq!(format!("{:?}", bare.limits), format!("{limits:?}"));
    }

    #[test]
    fn a_target_of_lag_has_an_interval_that_is_longer() {
        let limits = |line: &str| read(line).unwrap().limits;
        let [short, long] = ["echo --lag-target 5ms", "--lag-target 1s http"].map(|line| {
            let limits = limits(&format!("epoll-server {line}"));
            limits.check().unwrap();
            (limits.lag_target.unwrap().as_millis(), limits.lag_interval.as_millis())
        });
        assert_eq!((short, long), ((5, 100), (1_000, 10_000)));
        assert_eq!(limits("epoll-server").lag_target, None);
        limits("epoll-server --lag-target 99999999days").check().unwrap();
    }

    #[test]
    fn a_file_for_the_trace_has_the_loops_remember_what_they_did() {
        let options = read("epoll-server http --trace-file /tmp/t").unwrap();
        assert_eq!((options.limits.recorder, options.trace_file), (4096, Some(PathBuf::from("/tmp/t"))));
        assert_eq!(options.limits.capture, 0, "nothing that clients send, unless it is asked for");
        let options = read("epoll-server http --trace-file /tmp/t --capture 64KiB").unwrap();
        assert_eq!((options.limits.recorder, options.limits.capture), (4096, 65_536));
        let options = read("epoll-server http --trace-file /tmp/t --capture 1MiB").unwrap();
        assert_eq!((options.limits.recorder, options.limits.capture), (32_768, 1 << 20));
        assert!(refused("epoll-server http --capture 1MiB").contains("--capture needs --trace-file"));
        let refused_size = refused("epoll-server http --trace-file /tmp/t --capture 65535");
        assert!(refused_size.contains("--capture (65535 bytes) is below 65536"), "{refused_size}");
        assert_eq!(Limits::default().read_buffer, 65_536, "what is read at one time fits");
        let refused_size = refused("epoll-server http --trace-file /tmp/t --capture 33MiB");
        assert!(refused_size.contains("--capture (34603008 bytes) is above 33554432"), "{refused_size}");
        let arguments = ["epoll-server", "trace", "a b"].map(OsString::from);
        let Command::Trace(file) = Command::read(&arguments).unwrap() else { panic!("it serves") };
        assert_eq!(file, Path::new("a b"));
        assert!(refused("epoll-server trace").contains("<FILE>"));
    }

    #[test]
    fn an_admin_address_is_a_host_and_a_port_and_top_needs_one() {
        assert!(read("epoll-server").unwrap().admin.is_none());
        for line in ["epoll-server --admin a:1 http", "epoll-server http --admin a:1"] {
            let admin = read(line).unwrap().admin.unwrap();
            assert_eq!((admin.address.as_str(), admin.anywhere), ("a:1", false), "{line}");
        }
        assert!(read("epoll-server --admin a:1 --admin-anywhere").unwrap().admin.unwrap().anywhere);
        for address in ["unix:/x", "9090", "a", "*:1"] {
            assert!(refused(&format!("epoll-server --admin {address}")).contains("--admin <ADDR>"));
        }
        for line in ["epoll-server top --admin a:1", "epoll-server --admin a:1 top"] {
            let command = Command::read(&line.split(' ').map(OsString::from).collect::<Vec<_>>()).unwrap();
            let Command::Top(address) = command else { panic!("{command:?}") };
            assert_eq!(address, "a:1");
        }
        assert!(refused("epoll-server top").contains("needs --admin"));
    }

    #[test]
    fn a_flag_that_does_nothing_without_another_needs_it() {
        for (line, reason) in
            [("--admin-anywhere", "--admin-anywhere needs --admin"), ("http --pin", "--pin needs --workers")]
        {
            let message = refused(&format!("epoll-server {line}"));
            assert!(message.contains(reason) && message.trim_end().lines().count() == 1, "{message}");
        }
        // `auto` may come to one, and so may what a script works out.
        for line in ["--pin http --workers 1", "--workers auto echo --pin"] {
            assert!(read(&format!("epoll-server {line}")).unwrap().loops.pin, "{line}");
        }
    }

    #[test]
    fn common_flags_mean_the_same_before_and_behind_the_protocol_and_without_one() {
        let flags =
            "--max-connections 7 --idle-timeout 5m --write-timeout 500ms --memory-limit 64MiB --grace 0s";
        for line in [
            format!("epoll-server {flags}"),
            format!("epoll-server {flags} echo"),
            format!("epoll-server echo {flags}"),
            format!("epoll-server http {flags}"),
            format!("epoll-server --grace 0s broadcast {flags}"),
        ] {
            let limits = read(&line).unwrap().limits;
            assert_eq!(limits.connections, 7, "{line}");
            assert_eq!(limits.idle_timeout.unwrap().as_secs(), 300, "{line}");
            assert_eq!(limits.write_stall_timeout.as_millis(), 500, "{line}");
            assert_eq!(limits.memory, 64 << 20, "{line}");
            assert!(limits.drain_grace.is_zero(), "{line}");
        }
    }

    #[test]
    fn addresses_add_up_in_their_order() {
        for line in [
            "epoll-server --listen a:1 --listen b:2 --listen c:3",
            "epoll-server --listen a:1 --listen b:2 echo --listen c:3",
            "epoll-server broadcast --listen a:1 --listen b:2 --listen c:3",
        ] {
            assert_eq!(read(line).unwrap().addresses, ["a:1", "b:2", "c:3"], "{line}");
        }
    }

    #[test]
    fn broadcast_flags_do_without_the_protocol() {
        for line in ["epoll-server broadcast", "epoll-server"] {
            let line =
                format!("{line} --line-limit 1KiB --grace 1s --receiver-limit 4000 --slow-receivers drop");
            let Protocol::Broadcast(config) = read(&line).unwrap().protocol else { panic!("{line}") };
            assert_eq!((config.line_limit, config.receiver_limit), (1024, 4000));
            assert_eq!(config.slow_receivers, SlowReceivers::Drop);
        }
        assert!(refused("epoll-server --line-limit 1XB").contains("'1XB' for '--line-limit <SIZE>'"));
        assert!(refused("epoll-server --line-limit 1KiB echo").contains("--line-limit"));
        assert!(refused("epoll-server echo --line-limit 1KiB").contains("--line-limit"));
        assert!(refused("epoll-server --body-limit 1KiB").contains("--body-limit"));
    }

    #[test]
    fn http_flags_come_to_its_limits() {
        let line = "epoll-server http --head-limit 2KiB --target-limit 1000 --header-count 7 --body-limit 3KiB \
            --max-requests 9 --header-timeout 1s --body-timeout 2s --body-rate 4KiB --keep-alive-timeout 5s \
            --blocking-threads 6 --max-connections-per-client 8";
        let options = read(&line.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
        let Protocol::Http(config, _) = options.protocol else { panic!("{:?}", options.protocol) };
        let limits = &config.limits;
        assert_eq!((limits.head, limits.target, limits.headers), (2048, 1000, 7));
        assert_eq!((limits.body, limits.requests), (3072, 9));
        let seconds = [config.head_timeout, config.body_timeout, config.keep_alive_timeout];
        assert_eq!(seconds.map(|time| time.as_secs()), [1, 2, 5]);
        assert_eq!((config.body_rate, config.blocking_threads), (4096, 6));
        assert_eq!(options.limits.connections_per_address, 8);
    }

    #[test]
    fn never_and_none_mean_for_ever_and_any() {
        let line = "epoll-server http --idle-timeout never --header-timeout never --body-timeout never \
            --keep-alive-timeout never --max-connections-per-client none";
        let options = read(&line.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
        let Protocol::Http(config, _) = options.protocol else { panic!("{:?}", options.protocol) };
        for time in [config.head_timeout, config.body_timeout, config.keep_alive_timeout] {
            assert_eq!(time, Duration::MAX);
        }
        assert_eq!((options.limits.idle_timeout, options.limits.connections_per_address), (None, usize::MAX));
    }

    #[test]
    fn a_bad_value_of_http_is_refused_with_its_flag() {
        let rows = [
            ("--header-timeout", "0s"),
            ("--body-timeout", "none"),
            ("--keep-alive-timeout", "60"),
            ("--body-rate", "8GiB"),
            ("--max-requests", "0"),
            ("--max-connections-per-client", "0"),
            ("--blocking-threads", "0"),
            ("--blocking-threads", "1025"),
            ("--header-count", "0"),
            ("--header-count", "129"),
            ("--target-limit", "long"),
            ("--target-limit", "0"),
            ("--head-limit", "63"),
        ];
        for (flag, value) in rows {
            let message = refused(&format!("epoll-server http {flag}={value}"));
            let first_line = message.lines().next().unwrap();
            assert!(first_line.contains(flag) && first_line.contains(value), "{message}");
            // The other protocols have no such flag.
            for protocol in ["broadcast", "echo"] {
                assert!(refused(&format!("epoll-server {protocol} {flag}={value}")).contains(flag));
            }
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_flag() {
        let rows = [
            ("--grace", "10"),
            ("--grace", "-1s"),
            ("--idle-timeout", "0s"),
            ("--write-timeout", "soon"),
            ("--lag-target", "0s"),
            ("--lag-target", "5"),
            ("--memory-limit", "64Kx"),
            ("--memory-limit", "1.2.3MiB"),
            ("--max-connections", "0"),
            ("--max-connections", "many"),
            ("--slow-receivers", "shout"),
        ];
        for (flag, value) in rows {
            let message = refused(&format!("epoll-server {flag}={value}"));
            let first_line = message.lines().next().unwrap();
            assert!(first_line.contains(flag) && first_line.contains(value), "{message}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_value_is_said() {
        let greatest = format!("1..={}", epoll_protocols::http1::MAX_HEADERS);
        for (arguments, reason) in [
            ("http --header-count=200", greatest.as_str()),
            ("http --head-limit=10", "below 64 bytes"),
            ("http --max-requests=0", "not a number from 1 on"),
            ("--max-connections=0", "not a number from 1 on"),
            ("--write-timeout=never", "for ever"),
            ("http --header-timeout=0s", "longer than zero"),
            ("--listen=8080", "HOST:PORT, such as 127.0.0.1:8080"),
            ("--listen=:8080", "HOST:PORT, such as 127.0.0.1:8080"),
            ("--listen=*:8080", "0.0.0.0:8080 for IPv4 or [::]:8080"),
            ("--listen=::1:80", "[IPv6]:PORT"),
            ("--listen=[::1:80", "[IPv6]:PORT"),
            ("--listen=localhost", "HOST:PORT, [IPv6]:PORT or unix:PATH"),
            ("--listen=localhost:http", "65535"),
            ("--listen=127.0.0.1:65536", "65535"),
            ("--listen=unix:", "no path"),
            ("--listen=", "HOST:PORT"),
            ("--admin=localhost", "expected HOST:PORT or [IPv6]:PORT\n"),
            ("--admin=unix:/nowhere", "expected HOST:PORT or [IPv6]:PORT\n"),
            ("--admin=9090", "HOST:PORT, such as 127.0.0.1:9090 or [::1]:9090\n"),
            ("--listen=9090", "HOST:PORT, such as 127.0.0.1:9090 or [::]:9090\n"),
            ("--lag-target=never", "not a time such as 5ms or 1s; without the flag nothing is shed\n"),
            ("--grace=10", "not a time such as 500ms, 90s, 5m or `1h 30m`\n"),
            ("--write-timeout=5", "not a time such as 500ms, 90s, 5m or `1h 30m`\n"),
            ("--idle-timeout=soon", "neither a time such as 500ms, 90s, 5m or `1h 30m` nor `never`\n"),
            ("http --header-timeout=1x", "neither a time such as 500ms, 90s, 5m or `1h 30m` nor `never`\n"),
            ("http --body-timeout=1", "neither a time such as 500ms, 90s, 5m or `1h 30m` nor `never`\n"),
            ("http --keep-alive-timeout=", "neither a time such as 500ms, 90s, 5m or `1h 30m` nor `never`\n"),
            ("--grace=99999999999999999999s", "more seconds than can be counted\n"),
            ("--root=.", "epoll-server http"),
        ] {
            let message = refused(&format!("epoll-server {arguments}"));
            assert!(message.contains(reason), "{message}");
        }
        for address in ["localhost:0", "[::1]:65535", "[fe80::1%2]:80", "0.0.0.0:80", "unix:a:b"] {
            assert_eq!(read(&format!("epoll-server --listen {address}")).unwrap().addresses, [address]);
        }
    }

    #[test]
    fn limits_that_contradict_each_other_take_one_line() {
        let rows = [
            ("epoll-server --line-limit 2KiB --receiver-limit 2KiB", ["--receiver-limit", "--line-limit"]),
            ("epoll-server --memory-limit 1KiB", ["--memory-limit", "1024"]),
            ("epoll-server --receiver-limit 300MiB", ["--receiver-limit (314572800", "above 268435328,"]),
            ("epoll-server --receiver-limit 16EiB", ["--receiver-limit (1844", "above 268435328,"]),
            ("epoll-server http --body-limit 1GiB", ["--body-limit (1073741824", "above 268365824,"]),
            ("epoll-server --line-limit 99EiB", ["--receiver-limit", "--line-limit"]),
        ];
        for (line, parts) in rows {
            let message = refused(line);
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn each_loop_has_its_part() {
        let options = read("epoll-server --workers 3 http --max-connections 10 --pin").unwrap();
        assert_eq!((options.loops.count.get(), options.loops.pin), (3, true));
        let options = read("epoll-server echo").unwrap();
        assert_eq!((options.loops.count.get(), options.loops.pin, options.loops.balance), (1, false, false));
        assert!(read("epoll-server --workers 3 echo --balance").unwrap().loops.balance);
        let auto = read("epoll-server echo --workers auto").unwrap().loops.count;
        assert_eq!(Ok(auto), std::thread::available_parallelism().map_err(|error| error.kind()));
        // One loop is what every protocol has.
        assert_eq!(read("epoll-server broadcast --workers 1").unwrap().loops.count.get(), 1);
        for (line, parts) in [
            ("--workers 2 --memory-limit 1048704", ["is 524352 for each of --workers (2)", "1048704 bytes"]),
            ("echo --workers 5 --max-connections 4", ["--max-connections (4)", "--workers (5)"]),
            (
                "echo --workers 2 --memory-limit 7MiB",
                ["--memory-limit (7340032) is 3670016", "4194304 bytes"],
            ),
            ("http --workers 2 --body-limit 200MiB", ["--memory-limit (268435456) is 134217728", "bytes"]),
            ("echo --workers 0", ["--workers", "from 1 to 1024 nor `auto`"]),
            ("echo --workers 1025", ["--workers", "from 1 to 1024 nor `auto`"]),
            ("echo --workers many", ["--workers", "from 1 to 1024 nor `auto`"]),
        ] {
            let message = refused(&format!("epoll-server {line}"));
            assert!(parts.iter().all(|part| message.lines().next().unwrap().contains(part)), "{message}");
        }
    }

    #[test]
    fn whatever_is_accepted_makes_limits_that_hold() {
        for line in [
            "epoll-server --line-limit 0 --receiver-limit 32",
            "epoll-server --receiver-limit 16EiB --memory-limit 16EiB --line-limit 1EiB",
            "epoll-server http --head-limit 64 --body-limit 0",
            "epoll-server http --body-limit 268365824",
            "epoll-server --receiver-limit 268435328",
            "epoll-server http --head-limit 1EiB --body-limit 1EiB --memory-limit 16EiB",
            "epoll-server http --head-limit 100 --target-limit 16EiB",
            "epoll-server echo --memory-limit 4MiB --max-connections 1 --grace 100000000days",
        ] {
            read(line).unwrap().limits.check().unwrap();
        }
        for line in [
            "epoll-server http --workers 1024 --memory-limit 16EiB --max-connections 1024",
            "epoll-server echo --workers 2 --memory-limit 8MiB --max-connections 2",
            "epoll-server http --workers 3 --body-limit 80MiB --max-connections-per-client 1",
        ] {
            let Options { limits, loops, .. } = read(line).unwrap();
            for index in 0..loops.count.get() {
                limits.share_of(index, loops.count.get()).unwrap().check().unwrap();
            }
        }
    }
}
