//! An event-driven TCP server loop on edge-triggered epoll(7): callbacks of a loop, which has one thread. Linux only.
//!
//! A server is a [`Handler`]: callbacks for a connection's bytes, its end, its timers. A [`Reactor`] runs it,
//! with any number of listeners and outbound connections, bounded buffers with backpressure, timers, messages
//! from other threads and a graceful end. For a server that only turns messages into answers, [`EpollServer`]
//! is shorter. [`Workers`] runs several loops, one a thread.
//!
//! What this crate never does: it knows no protocol, spawns no thread but those of [`Workers`], prints nothing, blocks
//! nowhere but in epoll_wait(2), and holds no lock while a callback runs. It is not an async runtime, and it has no TLS.
//!
//! # A server
//!
//! It greets each client, counts its bytes, and hangs up on one that is silent for a minute.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use epoll_reactor::{Address, ConnId, Ctx, Handler, Limits, ListenOptions, Reactor, SendOutcome};
//!
//! struct Counter;
//!
//! impl Handler for Counter {
//!     type Conn = usize; // the state of one connection: bytes counted
//!     type Message = (); // nothing comes from other threads
//!
//!     fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut usize) {
//!         let _: SendOutcome<_> = ctx.send(id, b"hello\n");
//!     }
//!
//!     fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, count: &mut usize, input: &[u8]) -> usize {
//!         *count += input.len();
//!         if !ctx.send(id, format!("{count}\n").as_bytes()).is_accepted() {
//!             ctx.close_now(id); // it does not read its answers
//!         }
//!         input.len()
//!     }
//! }
//!
//! fn main() -> std::io::Result<()> {
//!     let limits = Limits { idle_timeout: Some(Duration::from_secs(60)), ..Limits::default() };
//!     let mut reactor = Reactor::new(Counter, limits)?;
//!     reactor.listen_first(&Address::resolve("127.0.0.1:8080")?, &ListenOptions::default())?;
//!     reactor.run()?;
//!     Ok(())
//! }
//! ```
//!
//! # Testing
//!
//! With the feature `sim`, the module `sim` has a simulated kernel: [`Reactor::with_kernel`] runs a handler on it,
//! unchanged, against a network that cuts, delays and interrupts, with every error that a kernel may give, and hours of
//! timeouts pass at once. Each run comes from a seed, which brings a failure back.
//!
//! ```toml
//! [dev-dependencies]
//! epoll-reactor = { path = "epoll-worker/crates/epoll-reactor", features = ["sim"] }
//! ```
//!
//! `cargo doc --open -p epoll-reactor --features sim` shows how; `examples/tests/simulated.rs` is a whole test.
//!
//! # Where to go on
//!
//! [`Handler`] states when each callback comes. [`Ctx`] is all that a callback may ask for. [`Limits`] is every
//! bound with its reason. [`Remote`] is for other threads. [`Kernel`] is the seam for another kernel than
//! [`Linux`]. ARCHITECTURE.md in the repository follows a request through the files.

#![forbid(unsafe_code)]

mod admission;
#[cfg(feature = "sim")]
mod audit;
mod balance;
mod batch;
mod buffer;
mod clock;
mod close;
mod connect;
mod connection;
mod ctx;
mod file;
mod flush;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod inspect;
mod late;
mod limits;
mod listener;
mod metrics;
mod moving;
mod output;
mod overload;
mod peer;
mod reactor;
mod recorder;
mod remote;
#[cfg(feature = "sim")]
mod replay;
mod serve;
mod server;
mod shared;
mod shedding;
#[cfg(feature = "sim")]
pub mod sim;
mod slab;
mod stats;
mod timers;
mod token;
mod turn;
mod workers;

pub use bytes::Bytes;
pub use ctx::Ctx;
pub use epoll_sys::{
    Address, ConnectProgress, Directory, DirectoryEntry, EntryKind, EntryStatus, Errno, Event, Events,
    Interest, Kernel, Linux, ListenOptions, Lookup, OpenFileLimit, Readiness, Signal, Then, Timestamp,
    block_signals, entries, entry_status, monotonic_now, raise_open_file_limit, read_cached,
};
pub use file::FileSlice;
pub use handler::{CloseReason, Handler, Source};
pub use inspect::{ConnectionInfo, ConnectionState, ListOrder};
pub use limits::{Limits, LimitsError, PanicPolicy};
pub use metrics::{HistogramSnapshot, LoopMetrics, LoopPhase, LoopSnapshot, Tally};
pub use output::SendOutcome;
pub use reactor::{Reactor, Stopped};
pub use recorder::{Record, RecordKind, Recording, RecordingError};
pub use remote::{Remote, RemoteError};
pub use server::{EpollServer, EventHandler, HandlerAction, ShutdownSignal, TcpStream};
pub use shared::{Share, Shared};
pub use slab::ConnMap;
pub use stats::{CloseStats, Counters};
pub use token::{ConnId, ListenerId, SourceId};
pub use turn::Turn;
pub use workers::{Worker, WorkerEvent, Workers, WorkersEnd};
