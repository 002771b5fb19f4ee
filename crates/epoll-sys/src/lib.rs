//! The kernel, as an epoll server sees it: about twenty calls behind one trait.
//!
//! [`Kernel`] is the seam of the whole project. [`Linux`] is the real implementation, on the `nix` crate;
//! a simulated one can take its place, so that everything above this crate runs the same on both: the module
//! `sim`, with the feature of that name.
//!
//! Files are beside it, for whoever serves them: [`Directory`] opens what lies beneath it and nothing else.
//!
//! What this crate never does: it keeps no connection state, makes no policy and never retries. Each
//! method is one step of the kernel, and its documentation lists the errors and what the caller owes for
//! each; [`reaction`] is that list as one table.
//!
//! It is the only crate of the workspace that depends on `nix` or may hold `unsafe`.

mod address;
mod beneath;
mod cpu;
mod errno;
mod event;
mod kernel;
mod linux;
mod process;
#[cfg(feature = "sim")]
pub mod sim;
mod time;

pub use address::Address;
pub use beneath::{
    Directory, DirectoryEntry, EntryKind, EntryStatus, Lookup, entries, entry_status, read_cached,
};
pub use cpu::{allowed_cpus, pin_to_cpu};
pub use errno::{Call, Errno, Reaction, reaction};
pub use event::{Event, Events, Interest, Readiness};
pub use kernel::{ConnectProgress, Kernel, ListenOptions, Signal, Then};
pub use linux::{Linux, monotonic_now};
pub use process::{OpenFileLimit, block_signals, raise_open_file_limit};
pub use time::Timestamp;
