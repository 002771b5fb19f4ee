//! The command line as it is typed, and the help. Not what it comes to: `options.rs` checks it and makes limits
//! of it.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments on flags are what --help prints")]

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, value_parser};

use values::{
    Patience, address, count, count_or_none, grace, head_limit, lag_target, patience, rate, size,
    target_limit, tcp_address, workers, write_timeout,
};

mod values;

// Paragraphs are one line each here: clap wraps them to the terminal.
macro_rules! signals {
    () => {
        "\
Signals: \
SIGINT or SIGTERM stops accepting, lets clients have what is on its way to them, and exits when all have ended \
or --grace has passed. A second one exits at once. SIGHUP has the file of --access-log (`http`) opened anew; without a \
file, also with `-`, it ends the server at once, as it does most programs. SIGUSR1 has the file of --trace-file written; \
without one it ends the server too."
    };
}

const AFTER_HELP: &str = concat!(
    "\
Without a protocol it is `broadcast`, whose own flags are then understood too.

Examples:
  epoll-server
      Broadcast on 127.0.0.1:8080; `nc 127.0.0.1 8080` takes part.
  epoll-server --listen '[::]:7000' --listen unix:/run/chat --slow-receivers drop
      Every address, and a Unix socket; slow clients miss lines.
  RUST_LOG=debug epoll-server http --listen 127.0.0.1:0 --idle-timeout 5m
      A port that the system chooses; a log that tells more.
  epoll-server http --root . --list --access-log -
      The files of this directory; who asks for what, on standard output.
  epoll-server http --root . --workers auto --pin
      A loop for each CPU.
  epoll-server http --admin 127.0.0.1:9090
      With metrics for Prometheus at http://127.0.0.1:9090/metrics.
  epoll-server top --admin 127.0.0.1:9090
      How that server is doing, live.

Output: \
one line `listening on ADDR` for each listener on standard output, and `admin on ADDR` with --admin, once all of them are \
open. The log goes to \
standard error; RUST_LOG sets what it tells (error, warn, info, debug, trace; default info).

",
    signals!(),
    "

Exit codes:
  0  stopped by a signal, drained or after --grace
  1  could not start (such as an address in use) or could not go on, or a loop of --workers has died
  2  the command line was not understood, or its limits contradict
  3  stopped at once by a second signal

Each protocol has its own flags and limits: `epoll-server http --help`, `epoll-server broadcast --help`."
);

/// Serve many TCP clients from one loop, or several, each on one thread: broadcast lines, echo bytes, or answer HTTP/1.1.
#[derive(Debug, Parser)]
#[command(version, after_long_help = AFTER_HELP)]
#[command(subcommand_help_heading = "Protocols, and other commands", subcommand_value_name = "PROTOCOL")]
// `options.rs` puts in a protocol that is left out; here it is required, which the usage must not say.
#[command(override_usage = "epoll-server [OPTIONS] [PROTOCOL]", arg_required_else_help = false)]
pub(crate) struct Flags {
    #[command(subcommand)]
    pub(crate) protocol: ProtocolFlags,
    #[command(flatten)]
    pub(crate) listen: ListenFlag,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

/// The command line, with the flags of servers hidden in the help of what serves nobody: they are global, so it has them.
pub(crate) fn command() -> clap::Command {
    let mut command = Flags::command();
    // Only then the subcommands have what is global.
    command.build();
    let of_server = |arg: &clap::Arg| arg.get_id() != "help" && arg.get_id() != "file";
    command
        .mut_subcommand("trace", |trace| {
            trace.mut_args(|arg| if of_server(&arg) { arg.hide(true) } else { arg })
        })
        .mut_subcommand("top", |top| {
            top.mut_args(|arg| match arg.get_id().as_str() {
                "help" => arg,
                "admin" => {
                    arg.help("The address that the server was given").long_help(None).help_heading(None)
                }
                _ => arg.hide(true),
            })
        })
}

/// Not global, unlike the rest: of a global flag that is given on both sides of the protocol, clap forgets the
/// first.
#[derive(Debug, Args)]
pub(crate) struct ListenFlag {
    /// Where to listen: HOST:PORT, [IPv6]:PORT or unix:PATH [default: 127.0.0.1:8080]
    ///
    /// Give it again for more listeners. Port 0 has the system choose one. `[::]` stands for every IPv6 and IPv4
    /// address. Of a host name with several addresses, the first that can be listened on is used, and the log
    /// says so. The file of a Unix socket is removed at the end; one that nobody listens on is replaced.
    #[arg(long = "listen", value_name = "ADDR", value_parser = address)]
    pub(crate) addresses: Vec<String>,
}

/// Options of all protocols, before or behind its name.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options for every protocol")]
pub(crate) struct CommonFlags {
    /// How many connections may be open at one time
    ///
    /// Further clients are accepted and closed at once, so that they need not wait to learn of it; `http` answers 503
    /// with Retry-After to as many at a time as a sixteenth of this and 16 more for each loop. The limit on open files, raised at the
    /// start to all that is allowed, may be the tighter one; then some are turned away and others wait until there is
    /// room.
    #[arg(long, global = true, value_name = "NUMBER", default_value = "100000", value_parser = count::<NonZeroUsize>)]
    pub(crate) max_connections: NonZeroUsize,

    /// Close connections silent in both directions for this long
    ///
    /// A time such as 500ms, 90s, 5m or `1h 30m`, or `never`. Peers that have vanished are found in any case, by TCP
    /// keep-alive.
    #[arg(long, global = true, value_name = "TIME", default_value = "never", value_parser = patience)]
    pub(crate) idle_timeout: Patience,

    /// Close connections that take nothing of what waits for them for this long
    ///
    /// A time such as 500ms, 90s or 5m. A client that has stopped reading holds memory until then, so this one cannot be
    /// `never`.
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = write_timeout)]
    pub(crate) write_timeout: Duration,

    /// How much input and output may wait in the server for all connections together
    ///
    /// A size such as 64MiB, 1GiB or 1000000 (bytes). It is what keeps many clients that are each within their
    /// limits from using up the machine; what the kernel holds comes on top. At it, those
    /// that hold most are disconnected, until an eighth of it is free.
    #[arg(long, global = true, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub(crate) memory_limit: usize,

    /// How long a signal to stop lets connections end by themselves
    ///
    /// A time such as 10s or 2m. What is left then is closed, and the exit code is still 0.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = grace)]
    pub(crate) grace: Duration,

    /// Shed what would wait for longer than this while the server is overloaded
    ///
    /// A time such as 5ms: some times as long as answering takes, and well below what clients wait for; a server for which a
    /// request takes half a millisecond loses a fifth of what it could answer at 2500us while it is just about loaded, next
    /// to nothing at 10ms, and at 1us nearly all. It is for servers that may be asked for more than they can do. When everything has had to wait for
    /// longer than this for 100 milliseconds, or ten times this if that is more, and until that is over, new clients are
    /// turned away as with --max-connections, though fewer are told why, and `http` answers 503 with Retry-After to requests that have
    /// waited for so long: the others are answered in time. Before that, a loop that is behind lets in fewer new clients. The
    /// log says when it begins and ends, `/metrics` of --admin what it costs. Without it everybody waits, as long as it takes.
    #[arg(long, global = true, value_name = "TIME", value_parser = lag_target)]
    pub(crate) lag_target: Option<Duration>,

    /// How many loops serve the clients, each on a thread of its own, or `auto`: one for each CPU it may use [default: 1]
    ///
    /// From 1 to 1024. The system spreads connections over the loops (see --balance); what one says to
    /// `broadcast` reaches those of all loops. Of --max-connections, --max-connections-per-client and --memory-limit each loop
    /// has its part. If a loop dies, by a defect, its connections are closed, and those that wait for it are reset, unless
    /// net.ipv4.tcp_migrate_req is 1; the others go on, and the exit code at the end is 1.
    #[arg(long, global = true, value_name = "NUMBER", value_parser = workers)]
    pub(crate) workers: Option<NonZeroUsize>,

    /// Give each loop of --workers a CPU of its own, and the connections that come in there
    ///
    /// For machines that do nothing else, and network cards that spread their interrupts. The CPU that handles a client's first
    /// segment decides: clients on this machine, or behind a card with one queue, may all come in at one CPU, and then one
    /// loop has all of them. It needs as many CPUs as there are loops; the log says at debug level which loop has which. One loop
    /// alone stays where the system puts it.
    #[arg(long, global = true)]
    pub(crate) pin: bool,

    /// Have a loop of --workers hand new connections to the one with the fewest, if that has clearly fewer or only that has room
    ///
    /// The system spreads connections by chance, and on a Unix socket whichever loop is awake has the next. With many
    /// connections, or short ones, that is good enough, and handing over costs a little. With a few that stay for long it may
    /// leave one loop with most of them: with this flag loops are apart by one connection and a sixteenth. It counts
    /// connections, not what they ask for. If a loop is then busy for more than half of the time, and clearly more than another one,
    /// open connections of `http` and `echo` move there, between two requests or when nothing waits; those of `broadcast` never.
    #[arg(long, global = true)]
    pub(crate) balance: bool,

    /// Have each loop remember the last 4096 things it did, and write them to this file on SIGUSR1 and after a panic
    ///
    /// Events, callbacks and how long they took, reads, writes, ends; `epoll-server trace FILE` prints them. Of a busy loop they are
    /// the last ten to hundred milliseconds, of a quiet one minutes. It replaces the
    /// file, for a panic no more often than every 10 seconds. With several --workers the files are FILE.0, FILE.1 and so
    /// on. Where it cannot be written, the server does not start; if that is so later, the log says it. Remembering takes a small HTTP request seven percent more instructions.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) trace_file: Option<PathBuf>,

    /// Have the file of --trace-file hold the last so many bytes of what clients sent: passwords and all
    ///
    /// A size such as 1MiB, from 64KiB, which is read at one time, to 32MiB. Each loop takes it from the start on, and as much for
    /// what it did, if that is more than 4096 things; it waits while they are written. Who connected before the oldest of those
    /// things, or has sent something that is no longer there, cannot be played: so of clients that stay for long it takes a
    /// SIZE above all that has been sent since they came. With it, what clients did can be played again: in tests of a
    /// handler (`epoll_reactor::sim::Replay`), and by a build with `--features replay`, to which the same command line is given
    /// with `--replay FILE`. Nobody but the owner may read the file; keep it so.
    #[arg(long, global = true, value_name = "SIZE", default_value = "0", value_parser = size)]
    pub(crate) capture: usize,

    /// Instead of serving, play what the clients of this file sent, and print what each is answered
    ///
    /// A file of --trace-file and --capture. Give the flags that the server had: nothing is listened on, and nothing
    /// but the files of --root is opened. It runs on a simulated kernel, so hours pass at once. Who is not all
    /// there is counted, and named if there are few. Of a `broadcast` of several loops the lines of the others' clients are
    /// missing. The exit code is 1 if a callback panicked.
    #[cfg(feature = "replay")]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,

    /// Tell operators at this address, HOST:PORT, how the server is doing; `top` shows it
    ///
    /// Over HTTP: `/metrics` for Prometheus, `/healthz` (503 if a loop is stuck for 5 seconds or has died), `/readyz` (503
    /// while the server starts or drains) and `/connections` in JSON. It has a thread and a loop of its own, also while
    /// the server drains, and a line `admin on ADDR` on standard output. Everybody who can reach it may ask, so it has to be a
    /// loopback address, and a request whose `Host` is another one, or a name but that given here and localhost, is
    /// answered 421: no page in a browser here can have its own name lead there.
    #[arg(long, global = true, value_name = "ADDR", value_parser = tcp_address)]
    pub(crate) admin: Option<String>,

    /// Let --admin be an address that other machines can reach, and be asked for by any name
    #[arg(long, global = true)]
    pub(crate) admin_anywhere: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProtocolFlags {
    /// Send each line of a client to all the others, as `[Client_N] LINE` (the default)
    ///
    /// N counts the connections from 1, over all loops, and is what the log calls a client; `/connections` of --admin and traces
    /// have the loop's own ids. A line may hold any bytes but a newline, and arrives whole or not at
    /// all; the lines of one client arrive in their order. An unfinished line is dropped when its client leaves.
    #[command(after_long_help = signals!())]
    Broadcast(BroadcastFlags),
    /// Send every byte back to where it came from
    ///
    /// A client that does not read what comes back is not read from either, until it does.
    #[command(after_long_help = signals!())]
    Echo(EchoFlags),
    /// Answer HTTP/1.1: the files of a directory, or a page about the server
    ///
    /// Files (--root): GET and HEAD are answered with what lies beneath the directory.
    ///
    /// Without --root: `GET /` is a page that shows how the server is doing, `GET /live` the numbers on it as server-sent
    /// events, `GET /hello` is `Hello, World!` as text/plain, `POST /echo` is answered with the request's body as it came,
    /// and anything else is not found (404).
    ///
    /// Of what there is, HEAD is answered as GET, OPTIONS with the methods it has, another method with 405 and the
    /// same list, and one that nobody knows with 501.
    #[command(after_long_help = signals!())]
    Http(HttpFlags),
    /// Show how a server with --admin ADDR is doing, in this terminal, until q is pressed
    ///
    /// Totals and rates, how long the loops take and are late, the connections that are busiest and those for which most
    /// output waits: `epoll-server top --admin ADDR`, with the address that the server was given.
    Top,
    /// Print a file of --trace-file: one line for each thing that a loop did, the oldest first
    ///
    /// The time is when it began. What took time is noted at its end, so a turn comes behind what it consists of. `connection
    /// 7.3` is that of the same id in `/connections` of --admin and in `top`, in the same loop; another one has its own.
    Trace(TraceFlags),
}

#[derive(Debug, Args)]
pub(crate) struct TraceFlags {
    /// The file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct BroadcastFlags {
    #[command(flatten)]
    pub(crate) listen: ListenFlag,

    /// The longest line, in bytes without its newline
    ///
    /// A size such as 64KiB or 1000 (bytes). Lines are passed on whole, so one that has no end yet takes memory;
    /// a client that sends a longer one is told so, `[Server] disconnected: line longer than N bytes`, and disconnected.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = size)]
    pub(crate) line_limit: usize,

    /// How much may wait in the server for a client that reads slowly
    ///
    /// A size such as 1MiB or 500000 (bytes). The kernel holds up to some megabytes more for each client. What
    /// happens beyond it, --slow-receivers says. With several --workers about as much may be on its way to a loop from
    /// all others; beyond it senders wait.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size)]
    pub(crate) receiver_limit: usize,

    /// What happens to a client for which --receiver-limit bytes wait
    #[arg(long, value_name = "POLICY", default_value = "disconnect")]
    pub(crate) slow_receivers: SlowReceiversFlag,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SlowReceiversFlag {
    /// It is disconnected, and so knows that it missed something
    Disconnect,
    /// It misses lines until it has caught up, and is told how many: `[Server] N lines skipped`
    Drop,
}

#[derive(Debug, Args)]
pub(crate) struct EchoFlags {
    #[command(flatten)]
    pub(crate) listen: ListenFlag,
}

#[derive(Debug, Args)]
pub(crate) struct HttpFlags {
    #[command(flatten)]
    pub(crate) listen: ListenFlag,

    /// Serve the files beneath this directory
    ///
    /// `index.html` stands for its directory, `FILE.br`, `FILE.zst` and `FILE.gz` for FILE where the client takes them and
    /// they are not older than it.
    /// Nothing outside of it is served, whatever links say, and nothing whose name begins with a dot.
    #[arg(long, value_name = "DIR", help_heading = "Files (--root)")]
    pub(crate) root: Option<PathBuf>,

    /// List directories that have no index.html, instead of 404
    #[arg(long, requires = "root", help_heading = "Files (--root)")]
    pub(crate) list: bool,

    /// Write a line for each request to this file, or to standard output if it is `-`
    ///
    /// In the combined format, with times in UTC, about a second late. Requests that were none have `-` for what was asked.
    /// The bytes of an answer that was broken off are those handed to the kernel. The 503 of a client that
    /// --max-connections or --max-connections-per-client left no room for has no line. SIGHUP has the file opened anew,
    /// for logrotate: rename it, then send the signal; no line is lost. Lines are dropped, and counted in the log, when
    /// the disk does not keep up: clients never wait for it. Of a FIFO the start waits for a reader.
    #[arg(long, value_name = "FILE")]
    pub(crate) access_log: Option<PathBuf>,

    /// How many connections one client address may have open at one time
    ///
    /// A number, or `none` for any, as behind a proxy that all clients come through. An IPv6 client counts by its /64
    /// network. Further connections are answered 503 or closed, as with --max-connections.
    #[arg(long, value_name = "NUMBER", default_value = "4096", value_parser = count_or_none)]
    pub(crate) max_connections_per_client: NonZeroUsize,

    /// How many requests a connection may have
    ///
    /// The answer to the last one ends it.
    #[arg(long, value_name = "NUMBER", default_value = "100000", value_parser = count::<NonZeroU64>)]
    pub(crate) max_requests: NonZeroU64,

    /// The largest request line and header fields together
    ///
    /// A size such as 16KiB, at least 64. A request with more is answered 431, or 414 when its first line alone is too long.
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = head_limit)]
    pub(crate) head_limit: usize,

    /// The longest request target: path and query
    ///
    /// A size such as 8KiB, at least 1; what fits into --head-limit is the most in any case. A request with a longer one is answered
    /// 414.
    #[arg(long, value_name = "SIZE", default_value = "8KiB", value_parser = target_limit)]
    pub(crate) target_limit: usize,

    /// How many header fields a request may have, from 1 to 128
    ///
    /// A request with more is answered 431.
    #[arg(long, value_name = "NUMBER", default_value = "100", value_parser = value_parser!(u16).range(1..=128))]
    pub(crate) header_count: u16,

    /// The largest request body
    ///
    /// A size such as 1MiB or 0. A body is held whole until it is answered; a request with a larger one is
    /// answered 413.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size)]
    pub(crate) body_limit: usize,

    /// How long a client may take to send a request's line and header fields
    ///
    /// A time such as 10s, or `never`. It also bounds the wait for a new client's first byte. Beyond it the answer is
    /// 408, or none if nothing has come: thousands of clients that send a byte a minute must not hold connections for
    /// ever.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = patience)]
    pub(crate) header_timeout: Patience,

    /// How long a client may take to send a request's body, besides the time that --body-rate allows
    ///
    /// A time such as 20s, or `never`. Beyond it the answer is 408.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = patience)]
    pub(crate) body_timeout: Patience,

    /// The slowest that a request's body may come for long, a second
    ///
    /// A size such as 500 (bytes) or 10KiB: each time so much has come, the client has a second more. 0: it has
    /// --body-timeout and no more.
    #[arg(long, value_name = "SIZE", default_value = "500", value_parser = rate)]
    pub(crate) body_rate: u32,

    /// How long a connection stays open between requests
    ///
    /// A time such as 60s, or `never`. A new connection costs more than one that waits, but each one that waits takes a
    /// descriptor.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = patience)]
    pub(crate) keep_alive_timeout: Patience,

    /// How many threads read what is not in memory, from 1 to 1024
    ///
    /// Each loop of --workers has so many. Files that the page cache has need none. With a disk that answers many requests at once more of them help; they
    /// are started when they are first needed.
    #[arg(long, value_name = "NUMBER", default_value = "4", value_parser = value_parser!(u16).range(1..=1024))]
    pub(crate) blocking_threads: u16,
}
