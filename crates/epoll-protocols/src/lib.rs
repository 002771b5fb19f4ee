//! Broadcast, echo and HTTP/1.1 for [`epoll_reactor`].
//!
//! Each protocol is two things: a codec, which sees bytes and time and touches no socket, and a
//! [`Handler`](epoll_reactor::Handler), which joins it to the loop.
//!
//! What this crate never does: it makes no system call, reads no clock, binds no address and prints nothing. The
//! exception is [`http1::Files`], which opens and reads files, and asks what time it is.

#![forbid(unsafe_code)]

mod broadcast;
mod echo;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http1;
mod lines;

pub use broadcast::{
    Broadcast, BroadcastConfig, BroadcastLoops, BroadcastMessage, BroadcastMetrics, BroadcastSnapshot,
    SlowReceivers,
};
pub use echo::Echo;
pub use lines::{Line, LineSplitter, LineTooLong};
