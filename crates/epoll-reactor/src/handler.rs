//! What a server supplies: the callbacks, their contract, and why a connection ended.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use epoll_sys::{Errno, Readiness, Signal, Timestamp};

use crate::ctx::Ctx;
use crate::stats::CloseStats;
use crate::token::{ConnId, SourceId};

/// A server's behaviour, as callbacks of the loop. Only [`on_data`](Self::on_data) has no default.
///
/// All run on the loop's one thread, so `&mut self` is plain state without locks, and none runs inside
/// another: [`Ctx`] records what a callback asks for, and the loop carries it out afterwards. A callback must
/// not block; everything waits for it.
///
/// For each connection: [`on_open`](Self::on_open) comes first and [`on_close`](Self::on_close) last, each
/// exactly once, with the others between them in the order things happened. After a callback has closed a
/// connection, only `on_close` follows for it. (An outbound connection that fails is never opened; it gets
/// `on_close` alone.)
///
/// A callback gets the state of its own connection, `&mut Self::Conn`, beside `&mut self`. What it must know
/// of others it keeps in `self`, in a [`ConnMap`](crate::ConnMap) for instance.
pub trait Handler {
    /// The state of one connection, made by `Default` just before it opens, returned to the handler by
    /// `on_close`. `default` is no callback: a panic in it ends `run`.
    type Conn: Default;

    /// What other threads send to this loop through a [`Remote`](crate::Remote). `()` if none do.
    type Message: Send;

    /// A connection is there: accepted, or outbound and now established.
    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        let _ = (ctx, id, conn);
    }

    /// Bytes have come. `input` is everything received and not yet consumed, in one piece; the return value
    /// says how many of its first bytes are dealt with. The rest is kept, and comes again with what follows
    /// it: a message that is complete should be consumed now, since nothing calls again before more bytes
    /// arrive (but see [`Ctx::read_again`]).
    ///
    /// A rest of [`Limits::input`](crate::Limits::input) bytes closes the connection with
    /// [`InputLimit`](CloseReason::InputLimit), unless reading is paused. A number above `input.len()` counts as
    /// all of it.
    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, input: &[u8]) -> usize;

    /// The peer will send no more; it may still be reading. `unconsumed` is the start of a message that will
    /// never be whole. By default the connection is closed once its output is delivered; a handler with more
    /// to say keeps it open by doing something else here, and closes it later.
    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, unconsumed: &[u8]) {
        let _ = (conn, unconsumed);
        ctx.close_after_flush(id);
    }

    /// Output that had passed the high water mark is down to the low one: there is room again.
    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        let _ = (ctx, id, conn);
    }

    /// The time given to [`Ctx::set_timer`] has come. The timer is no longer set.
    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        let _ = (ctx, id, conn);
    }

    /// The loop has begun to drain, until `deadline` at the latest: once, before any connection is told, and if there
    /// are none.
    fn on_stopping(&mut self, ctx: &mut Ctx, deadline: Timestamp) {
        let _ = (ctx, deadline);
    }

    /// The loop is draining, until `deadline` at the latest: once for each open connection. By default it is
    /// closed once its output is delivered; a handler that has a request in progress leaves it open and
    /// closes it when the answer has been sent. See [`Ctx::is_draining`].
    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, deadline: Timestamp) {
        let _ = (conn, deadline);
        ctx.close_after_flush(id);
    }

    /// The connection has ended. Sends to `id` answer `Gone`; its state comes back for good.
    fn on_close(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        conn: Self::Conn,
        reason: CloseReason,
        stats: &CloseStats,
    ) {
        let _ = (ctx, id, conn, reason, stats);
    }

    /// Another thread has sent a message. Every message that a [`Remote`](crate::Remote) accepted comes here
    /// before `run` returns.
    fn on_message(&mut self, ctx: &mut Ctx, message: Self::Message) {
        let _ = (ctx, message);
    }

    /// [`Limits::tick`](crate::Limits::tick) has passed again. Ticks missed while the loop was busy are not
    /// made up for.
    fn on_tick(&mut self, ctx: &mut Ctx) {
        let _ = ctx;
    }

    /// One of the signals given to [`Reactor::watch_signals`](crate::Reactor::watch_signals) has come: to reopen a
    /// log, to say how things stand. As with all signals, several of one kind may be told as one.
    fn on_signal(&mut self, ctx: &mut Ctx, signal: Signal) {
        let _ = (ctx, signal);
    }

    /// A descriptor given to [`Reactor::watch`](crate::Reactor::watch) is ready. Events are edges: use it
    /// until it answers `WouldBlock`, or nothing will come again.
    fn on_ready(&mut self, ctx: &mut Ctx, id: SourceId, source: &Source<'_>, readiness: Readiness) {
        let _ = (ctx, id, source, readiness);
    }
}

/// Why a connection ended: the first cause, where several came together; but what kept the last output of a
/// closing connection from being delivered comes before why it was closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer had shut down its side, and what was left to send has been given to the kernel.
    PeerClosed,
    /// The handler closed it.
    Local,
    /// The peer reset the connection (`ECONNRESET`), or was gone when we wrote (`EPIPE`).
    Reset,
    /// The kernel reported another error on it, such as `ETIMEDOUT` when a peer vanished.
    Error(Errno),
    /// An outbound connection was not made; `ETIMEDOUT` also stands for
    /// [`Limits::connect_timeout`](crate::Limits::connect_timeout).
    ConnectFailed(Errno),
    /// Nothing was read or written for [`Limits::idle_timeout`](crate::Limits::idle_timeout).
    IdleTimeout,
    /// The deadline of [`Ctx::set_read_deadline`] passed.
    ReadTimeout,
    /// Output waited, and the peer took none of it for
    /// [`Limits::write_stall_timeout`](crate::Limits::write_stall_timeout).
    WriteStalled,
    /// An unfinished message reached [`Limits::input`](crate::Limits::input).
    InputLimit,
    /// All connections together reached [`Limits::memory`](crate::Limits::memory), and it was among those that held
    /// most.
    MemoryLimit,
    /// A file of [`Ctx::send_file`](crate::Ctx::send_file) was shorter than promised, or could not be read.
    FileCutShort,
    /// The loop drained, and its grace had passed or a second signal came.
    Shutdown,
    /// A callback panicked.
    HandlerPanicked,
    /// It goes on in another loop, to which it was moved: [`Ctx::hand_over`]. The peer knows nothing of it.
    HandedOver,
}

impl CloseReason {
    /// The [names](Self::name) of all reasons.
    pub(crate) const NAMES: [&str; 14] = [
        "peer_closed",
        "local",
        "reset",
        "error",
        "connect_failed",
        "idle_timeout",
        "read_timeout",
        "write_stalled",
        "input_limit",
        "memory_limit",
        "file_cut_short",
        "shutdown",
        "handler_panicked",
        "handed_over",
    ];

    /// One word for it, whatever the error was: for labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.get(self.index()).copied().unwrap_or_default()
    }

    /// The one at that place among the names, with `errno` if it is about an error.
    pub(crate) fn from_index(index: usize, errno: Errno) -> Option<Self> {
        let all = [
            Self::PeerClosed,
            Self::Local,
            Self::Reset,
            Self::Error(errno),
            Self::ConnectFailed(errno),
            Self::IdleTimeout,
            Self::ReadTimeout,
            Self::WriteStalled,
            Self::InputLimit,
            Self::MemoryLimit,
            Self::FileCutShort,
            Self::Shutdown,
            Self::HandlerPanicked,
            Self::HandedOver,
        ];
        all.get(index).copied()
    }

    /// Its place among the names.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::PeerClosed => 0,
            Self::Local => 1,
            Self::Reset => 2,
            Self::Error(_) => 3,
            Self::ConnectFailed(_) => 4,
            Self::IdleTimeout => 5,
            Self::ReadTimeout => 6,
            Self::WriteStalled => 7,
            Self::InputLimit => 8,
            Self::MemoryLimit => 9,
            Self::FileCutShort => 10,
            Self::Shutdown => 11,
            Self::HandlerPanicked => 12,
            Self::HandedOver => 13,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerClosed => f.write_str("closed by the peer"),
            Self::Local => f.write_str("closed on this side"),
            Self::Reset => f.write_str("reset by the peer"),
            Self::Error(errno) => write!(f, "error: {}", errno.desc()),
            Self::ConnectFailed(errno) => write!(f, "could not connect: {}", errno.desc()),
            Self::IdleTimeout => f.write_str("idle for too long"),
            Self::ReadTimeout => f.write_str("took too long to send"),
            Self::WriteStalled => f.write_str("took too long to read"),
            Self::InputLimit => f.write_str("message too long"),
            Self::MemoryLimit => f.write_str("too much data waiting on all connections"),
            Self::FileCutShort => {
                f.write_str("a file that was being sent was cut short or could not be read")
            }
            Self::Shutdown => f.write_str("shut down"),
            Self::HandlerPanicked => f.write_str("a callback panicked"),
            Self::HandedOver => f.write_str("handed over to another loop"),
        }
    }
}

/// A watched descriptor, lent to [`Handler::on_ready`]. The loop owns it.
pub struct Source<'fd> {
    calls: &'fd dyn SourceCalls,
}

/// The calls of a [`Source`], without the type of the kernel they go to.
pub(crate) trait SourceCalls {
    fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno>;
    fn write(&self, data: &[u8]) -> Result<usize, Errno>;
    fn as_raw(&self) -> Option<BorrowedFd<'_>>;
}

impl<'fd> Source<'fd> {
    pub(crate) fn new(calls: &'fd dyn SourceCalls) -> Self {
        Self { calls }
    }

    /// Reads from it: read(2).
    ///
    /// # Errors
    /// `WouldBlock`: that was all; wait for the next call. `Interrupted`: again. Others depend on what it is.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.calls.read(buffer).map_err(io::Error::from)
    }

    /// Writes to it: write(2).
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn write(&self, data: &[u8]) -> io::Result<usize> {
        self.calls.write(data).map_err(io::Error::from)
    }

    /// The descriptor, for other calls; `None` on a simulated kernel.
    #[must_use]
    pub fn as_raw(&self) -> Option<BorrowedFd<'_>> {
        self.calls.as_raw()
    }
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.as_raw()).finish()
    }
}
