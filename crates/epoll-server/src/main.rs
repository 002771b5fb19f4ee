//! The command `epoll-server`: flags to limits, limits to a loop, the loop's end to an exit code.
//!
//! The only crate of the workspace that reads arguments and the environment, decides on signals and sets up the
//! log. It knows no protocol and no socket: those are `epoll-protocols` and `epoll-reactor`.

#![forbid(unsafe_code)]

mod access_log;
mod admin;
mod flags;
mod http;
mod log;
mod options;
mod page;
#[cfg(feature = "replay")]
mod replay;
mod serve;
mod top;
mod trace;

use std::io::{self, Write};
use std::process::ExitCode;

use epoll_protocols::http1::Http;
use epoll_protocols::{Broadcast, BroadcastConfig, BroadcastLoops, Echo};
use epoll_reactor::{Address, Limits, Signal, Stopped, Worker, block_signals, raise_open_file_limit};

use crate::access_log::{Destination, LogWriter};
use crate::admin::{Admin, ProtocolMetrics};
use crate::http::{Reopen, Site};
use crate::options::{AdminOptions, Command, Loops, Options, Protocol};
use crate::page::Board;
use crate::serve::{Surroundings, serve, serve_with_workers};
use crate::trace::TraceFile;

/// The first one drains the server, the second one ends it.
const SIGNALS: [Signal; 2] = [Signal::Interrupt, Signal::Terminate];

/// Descriptors that are no connection's: standard streams, epoll, wake-ups, signals, some listeners, the access log.
/// Files that are being sent come on top.
const OWN_FILES: u64 = 16;

/// Those of the admin server: its connections, epoll, wake-up, listener and the like.
const FILES_OF_ADMIN: u64 = admin::CONNECTIONS as u64 + 8;

/// The same, of each of several loops, without its listeners.
const FILES_OF_A_LOOP: usize = 3;

fn main() -> ExitCode {
    let result = match Command::from_command_line() {
        Command::Serve(options) => run(*options),
        Command::Top(address) => top::run(&address).map(|()| Stopped::Drained),
        #[cfg(feature = "replay")]
        Command::Replay(file, options) => replay::run(&file, *options).map(|()| Stopped::Drained),
        Command::Trace(file) => trace::print(&file).map(|()| Stopped::Drained),
    };
    log::flush();
    match result {
        // The help text lists these codes.
        Ok(Stopped::Drained | Stopped::DeadlinePassed) => ExitCode::SUCCESS,
        Ok(Stopped::Forced) => ExitCode::from(3),
        Err(error) => {
            // If even this cannot be written, the exit code still tells.
            let _: io::Result<()> = writeln!(io::stderr(), "epoll-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> io::Result<Stopped> {
    let Options { addresses, limits, loops, protocol, trace_file, admin } = options;
    // A name may take a while to be looked up, and Ctrl-C should end that: so before signals are blocked.
    let places = serve::resolve(&addresses)?;
    let workers = loops.count.get();
    let admin = admin.map(|AdminOptions { address, anywhere }| {
        Admin::new(&address, Address::resolve(&address)?, workers, anywhere)
    });
    let admin = admin.transpose()?;
    let admin = admin.as_ref();
    // So may the reader of a FIFO.
    let access_log = protocol.access_log().map(Destination::open).transpose()?;
    // Before any thread is started: one that does not block a signal is killed by it.
    block_signals(&SIGNALS)?;
    // Whoever has no log to open anew ends at it, as programs do: its terminal is gone.
    let hangups: &[Signal] =
        if access_log.as_ref().is_some_and(Destination::can_be_renamed) { &[Signal::Hangup] } else { &[] };
    block_signals(hangups)?;
    let trace = trace_file.map(|path| TraceFile::new(&path, workers)).transpose()?;
    let surroundings = Surroundings { places: &places, trace: trace.as_ref(), admin };
    if surroundings.trace.is_some() {
        block_signals(&[Signal::User1])?;
    }
    log::start();
    let own_files = OWN_FILES + if admin.is_some() { FILES_OF_ADMIN } else { 0 };
    open_as_many_files_as_allowed(limits.connections, workers, places.len(), own_files);
    let register = |index, metrics| {
        if let Some(admin) = admin {
            admin.register(index, metrics);
        }
    };
    match protocol {
        Protocol::Broadcast(config) => serve_broadcast(&config, loops, limits, &surroundings, register),
        Protocol::Echo if workers == 1 => serve(Echo, limits, &surroundings, |_| Ok(())),
        Protocol::Echo => serve_with_workers(loops, limits, &surroundings, &[], |_| Ok(Echo), |_| ()),
        Protocol::Http(config, content) => {
            let writer = access_log.map(LogWriter::start).transpose()?;
            let board = Board::new(workers);
            let open =
                |index| Site::open(&config, &content, writer.as_ref().map(LogWriter::log), board.slot(index));
            let make = |index| {
                let http = Http::new(open(index)?, config.clone());
                register(index, ProtocolMetrics::Http(http.metrics()));
                io::Result::Ok(http)
            };
            let stopped = if workers == 1 {
                serve(make(0)?, limits, &surroundings, |reactor| {
                    let remote = reactor.remote();
                    reactor.handler().attach(remote);
                    if hangups.is_empty() { Ok(()) } else { reactor.watch_signals(hangups) }
                })
            } else {
                let factory = |worker: &Worker<_>| {
                    let mut http = make(worker.index())?;
                    http.attach(worker.remote().clone());
                    Ok(http)
                };
                serve_with_workers(loops, limits, &surroundings, hangups, factory, Reopen::send_to_any)
            };
            if let Some(writer) = writer {
                writer.finish();
            }
            stopped
        }
    }
}

/// One broadcast server, in as many loops as there are.
fn serve_broadcast(
    config: &BroadcastConfig,
    loops: Loops,
    limits: Limits,
    surroundings: &Surroundings<'_>,
    register: impl Fn(usize, ProtocolMetrics) + Sync,
) -> io::Result<Stopped> {
    if loops.count.get() == 1 {
        let broadcast = Broadcast::new(config.clone());
        register(0, ProtocolMetrics::Broadcast(broadcast.metrics()));
        return serve(broadcast, limits, surroundings, |_| Ok(()));
    }
    let others = BroadcastLoops::new(loops.count.get());
    let factory = |worker: &Worker<_>| {
        let broadcast = Broadcast::for_worker(config.clone(), &others, worker)?;
        register(worker.index(), ProtocolMetrics::Broadcast(broadcast.metrics()));
        Ok(broadcast)
    };
    serve_with_workers(loops, limits, surroundings, &[], factory, |_| ())
}

/// Each connection takes a descriptor, and the usual soft limit of 1024 is there for select(2), which this
/// program does not use.
fn open_as_many_files_as_allowed(connections: usize, workers: usize, places: usize, own_files: u64) {
    let raised = raise_open_file_limit();
    match &raised {
        Ok(limit) if limit.before < limit.now => {
            ::log::info!("open files: limit raised from {} to {}", limit.before, limit.now);
        }
        Ok(limit) => ::log::info!("open files: limit is {}", limit.now),
        Err(errno) => ::log::warn!("open files: cannot raise the limit: {}", errno.desc()),
    }
    // With several loops each has its own epoll, wake-ups and listeners.
    let of_loops =
        if workers > 1 { workers.saturating_mul(places.saturating_add(FILES_OF_A_LOOP)) } else { 0 };
    let needed =
        u64::try_from(connections.saturating_add(of_loops)).unwrap_or(u64::MAX).saturating_add(own_files);
    if let Ok(limit) = raised
        && limit.now < needed
    {
        // Somebody has asked for so many; the default is only the most that could be.
        let asked_for = connections != Limits::default().connections;
        ::log::log!(
            if asked_for { ::log::Level::Warn } else { ::log::Level::Info },
            "open files: the limit of {} is less than the {needed} that --max-connections {connections} needs",
            limit.now
        );
    }
}
