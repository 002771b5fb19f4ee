//! The seam: every call the loop makes, as a trait. One step of the kernel each, no policy, no retries.

use std::fmt;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use crate::{Address, Errno, Events, Interest, Timestamp};

/// One epoll instance and the calls that go with it.
///
/// Every method is one step of the kernel; none waits but [`wait`](Self::wait), and none retries. Where a
/// method lists errors, [`reaction`](crate::reaction) holds the same list as a table. An error that is not
/// listed is a defect of the caller, `EBADF` above all.
pub trait Kernel {
    /// An open descriptor. It has one owner, and dropping it closes it, once. Identity is never the
    /// descriptor's number, since the kernel uses that again at once.
    type Fd: fmt::Debug + Send + Sync + 'static;

    /// The monotonic clock, clock_gettime(2).
    fn now(&self) -> Timestamp;

    /// The wall clock, for dates that people read. It may jump.
    fn wall_clock(&self) -> SystemTime;

    /// Registers `fd` for edge-triggered events that carry `token`, until it is closed or [deleted](Self::delete). If it is
    /// ready already the first wait says so.
    ///
    /// # Errors, and what the caller does
    /// `ENOMEM`, `ENOSPC` (fs.epoll.max_user_watches): give the descriptor up and take no new ones for a
    /// while. `EPERM`: a regular file or a directory, which is always ready and cannot be waited for.
    /// `EEXIST`: it is registered already.
    fn add(&self, fd: &Self::Fd, interest: Interest, token: u64) -> Result<(), Errno>;

    /// Ends the events of `fd`, which may be registered again, here or elsewhere. To be called before it is closed: as long as a duplicate of the descriptor
    /// lives, closing one does not end its events (epoll(7), "Questions and answers").
    ///
    /// # Errors, and what the caller does
    /// None that matter: the descriptor is being given up.
    fn delete(&self, fd: &Self::Fd) -> Result<(), Errno>;

    /// Waits until something is ready or `timeout` has passed (`None`: for ever), and puts what is ready in
    /// `events`. Timeouts are rounded up to milliseconds, so that a wait never ends before its time and a
    /// short one never becomes a busy loop; 24 days are the most for one wait.
    ///
    /// # Errors, and what the caller does
    /// `EINTR`: a signal; `events` is empty; wait again for the time that is left. Anything else ends the
    /// loop.
    fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<(), Errno>;

    /// Opens a listening socket, non-blocking and close-on-exec, with `options` set before it is bound, so
    /// that every accepted connection inherits them. A TCP address is free again at once, whatever
    /// connections of an earlier run are in `TIME_WAIT` (`SO_REUSEADDR`).
    ///
    /// The file of a Unix socket that nobody listens on any more is replaced; any other file is left alone.
    /// To tell them apart it connects to the socket, which a live listener sees as a client that says
    /// nothing.
    ///
    /// # Errors, and what the caller does
    /// `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, `ENOENT` (the directory of a Unix path), `ENAMETOOLONG`,
    /// `EINVAL` (a Unix path that is empty or contains a NUL, or no path at all), `EOPNOTSUPP` (`reuse_port`
    /// on a Unix socket), and what socket(2), bind(2) and listen(2) add: tell the operator, with the address.
    fn listen(&self, address: &Address, options: &ListenOptions) -> Result<Self::Fd, Errno>;

    /// Removes the file of a Unix socket, after its listener is closed; nothing for other addresses. If
    /// somebody listens there, a server that has taken over for one, the file stays.
    ///
    /// # Errors, and what the caller does
    /// `ENOENT`: somebody else did. `EADDRINUSE`: somebody listens there. `ENOTSOCK`: it is another kind of
    /// file now, and stays. Others are worth a line in the log.
    fn remove_socket_file(&self, address: &Address) -> Result<(), Errno>;

    /// The address a socket is bound to, with the real port where 0 was asked for: getsockname(2).
    ///
    /// # Errors, and what the caller does
    /// `ENOBUFS`: go on without it.
    fn local_address(&self, socket: &Self::Fd) -> Result<Address, Errno>;

    /// Accepts one pending connection, already non-blocking and close-on-exec, with the address of its peer:
    /// accept4(2). The descriptor is not registered yet. An IPv4 peer of an IPv6 listener has its address
    /// mapped, `::ffff:192.0.2.1`; the peers of a Unix socket are [`Address::UnixUnnamed`] as a rule.
    ///
    /// # Errors, and what the caller does
    /// `EAGAIN`: nothing is pending; an edge will tell. `EINTR`, `ECONNABORTED`, `EPERM`, `EPROTO` and the
    /// network errors accept(2) lists: try again, against the budget. `EMFILE`, `ENFILE`, `ENOBUFS`,
    /// `ENOMEM`: **no edge will come** for what is pending; shed a client, then pause and try again later.
    fn accept(&self, listener: &Self::Fd) -> Result<(Self::Fd, Address), Errno>;

    /// Opens a non-blocking, close-on-exec socket, with `TCP_NODELAY` where it is TCP, and starts connecting
    /// it: connect(2).
    ///
    /// # Errors, and what the caller does
    /// `EMFILE`, `ENFILE`, `EADDRNOTAVAIL` (no local port left), `ECONNREFUSED`, `ENETUNREACH`, `EACCES`,
    /// `ENOENT`, `ENAMETOOLONG` and `EINVAL` (as for [`listen`](Self::listen)), `EAGAIN` (a Unix listener
    /// whose backlog is full) and others of connect(2): the attempt has failed.
    fn connect(&self, address: &Address) -> Result<(Self::Fd, ConnectProgress), Errno>;

    /// Fetches and clears the pending error of a socket (`SO_ERROR`, socket(7)): the outcome of a connect in
    /// progress, once the socket is writable, or what an error event is about. `None`: all is well.
    ///
    /// # Errors, and what the caller does
    /// None that a valid socket gives.
    fn take_error(&self, socket: &Self::Fd) -> Result<Option<Errno>, Errno>;

    /// Reads from a connected socket: recv(2). 0 is the end of the stream, unless `buffer` is empty. A read
    /// shorter than `buffer` means that nothing is left, unless the socket's last event
    /// [must be read to the end](crate::Readiness::must_read_to_end).
    ///
    /// # Errors, and what the caller does
    /// `EAGAIN`: an edge will tell. `EINTR`: again. `ECONNRESET`, `ETIMEDOUT` and others: it is over.
    fn recv(&self, socket: &Self::Fd, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Writes to a connected socket: send(2) with `MSG_NOSIGNAL`. A write shorter than `data` means that the
    /// socket is full and an edge will tell.
    ///
    /// # Errors, and what the caller does
    /// `EAGAIN`: an edge will tell. `EINTR`: again. `EPIPE`, `ECONNRESET`, `ETIMEDOUT`, `ENOBUFS` and others:
    /// it is over.
    fn send(&self, socket: &Self::Fd, data: &[u8]) -> Result<usize, Errno>;

    /// Writes several pieces as one: what writev(2) does, through sendmsg(2), since only that can be told not
    /// to raise `SIGPIPE`. At most 1024 pieces (`IOV_MAX`). `then` says whether more follows at once.
    ///
    /// # Errors, and what the caller does
    /// As for [`send`](Self::send).
    fn writev(&self, socket: &Self::Fd, pieces: &[IoSlice<'_>], then: Then) -> Result<usize, Errno>;

    /// Sends up to `count` bytes of `file`, from `offset` on, to a connected socket, without their coming into
    /// this program's memory: sendfile(2). The file's own position is neither used nor moved, so any number of
    /// connections may share it. 0 means that the file ends at `offset` or before it, unless `count` is 0, and says
    /// nothing of the socket.
    ///
    /// A count below `count` does not mean that the socket is full: the file may end there, or a signal have come.
    /// No edge is owed before `EAGAIN`, so the caller goes on until then. Once some bytes are taken, an error is
    /// told by the next call.
    ///
    /// It waits for the disk if the bytes are not in memory. It has no `MSG_NOSIGNAL`: on a socket that is shut down
    /// or was reset it raises `SIGPIPE`, which Rust programs ignore by default. What has been sent and not arrived
    /// is in the file, not a copy: if the file changes meanwhile, so do the bytes.
    ///
    /// # Errors, and what the caller does
    /// `EAGAIN`: an edge will tell. `EINTR`: again. `EIO`: the file could not be read. `EINVAL`, `EBADF`, `ESPIPE`,
    /// `EOVERFLOW`: it is no file that can be sent from there: a directory, one of /proc(5), one that is open for
    /// writing only, an offset beyond what files may have. `EPIPE`, `ECONNRESET`, `ETIMEDOUT`, `ENOBUFS`, `ENOMEM`
    /// and others: the connection is over. What was promised of a file that cannot be sent cannot be made good
    /// either, so that ends the connection too.
    fn sendfile(&self, socket: &Self::Fd, file: &File, offset: u64, count: usize) -> Result<usize, Errno>;

    /// Sends a FIN behind what has been written: shutdown(2) with `SHUT_WR`. Reading goes on.
    ///
    /// # Errors, and what the caller does
    /// `ENOTCONN`: the peer has reset the connection; nothing is left to do but close.
    fn shutdown_write(&self, socket: &Self::Fd) -> Result<(), Errno>;

    /// Makes the coming close an RST instead of a FIN, and discards what has not been sent: `SO_LINGER` with
    /// a time of zero, socket(7).
    ///
    /// # Errors, and what the caller does
    /// None that a valid socket gives.
    fn reset_on_close(&self, socket: &Self::Fd) -> Result<(), Errno>;

    /// Reads from a descriptor that need not be a socket: read(2). It must be non-blocking.
    ///
    /// # Errors, and what the caller does
    /// `EAGAIN`: an edge will tell. `EINTR`: again. Others depend on what it is.
    fn read(&self, fd: &Self::Fd, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Writes to a descriptor that need not be a socket: write(2). It must be non-blocking. On a pipe whose
    /// reader is gone it raises `SIGPIPE`, which Rust programs ignore by default.
    ///
    /// # Errors, and what the caller does
    /// `EAGAIN`: an edge will tell. `EINTR`: again. Others depend on what it is.
    fn write(&self, fd: &Self::Fd, data: &[u8]) -> Result<usize, Errno>;

    /// The descriptor for calls that this trait does not have; `None` where there is no real one.
    fn as_raw<'fd>(&self, fd: &'fd Self::Fd) -> Option<BorrowedFd<'fd>>;

    /// Opens an eventfd(2): a descriptor that [`notify`](Self::notify) makes ready. Each notification gives
    /// an edge of its own, so it never needs to be read.
    ///
    /// # Errors, and what the caller does
    /// `EMFILE`, `ENFILE`, `ENOMEM`: the loop cannot start.
    fn eventfd(&self) -> Result<Self::Fd, Errno>;

    /// Makes an eventfd ready, from any thread.
    ///
    /// # Errors, and what the caller does
    /// None that matters: `EAGAIN` means that 2^64 - 2 notifications are pending, and the edge has been
    /// given.
    fn notify(eventfd: &Self::Fd) -> Result<(), Errno>;

    /// Opens a descriptor that becomes readable when one of `signals` arrives: signalfd(2). They are blocked in the
    /// calling thread, and so in those it starts from now on; threads that run already must have
    /// [blocked](crate::block_signals) them, or their default action comes first.
    ///
    /// # Errors, and what the caller does
    /// `EMFILE`, `ENFILE`, `ENOMEM`: the program goes on without.
    fn signalfd(&self, signals: &[Signal]) -> Result<Self::Fd, Errno>;

    /// Takes one signal from a signalfd; `None` when there is no more for now, and an edge will tell.
    ///
    /// # Errors, and what the caller does
    /// `EINTR`: again.
    fn read_signal(&self, signalfd: &Self::Fd) -> Result<Option<Signal>, Errno>;
}

/// What follows a write on the same socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing that is known of: what was written is sent now.
    Nothing,
    /// More, at once: a last segment that is not full may wait for it, up to 200 ms (`MSG_MORE`, send(2)). So the
    /// head of an answer and the file behind it leave together.
    More,
}

/// How far a connect has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectProgress {
    /// It is connected: Unix sockets always, TCP sometimes on loopback.
    Connected,
    /// The socket becomes writable when it is decided, and [`Kernel::take_error`] says how.
    InProgress,
}

/// A signal an operator sends to a server: signal(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `SIGHUP`
    Hangup,
    /// `SIGINT`, Ctrl-C
    Interrupt,
    /// `SIGTERM`
    Terminate,
    /// `SIGUSR1`
    User1,
    /// `SIGUSR2`
    User2,
}

/// As operators know it: `SIGTERM`.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::User1 => "SIGUSR1",
            Self::User2 => "SIGUSR2",
        })
    }
}

/// Options set once on a listener. On Linux connections inherit them, which saves a system call for each on
/// every accept. Times are rounded up to what the kernel counts in. Unix sockets take the backlog alone.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted. The kernel caps it at net.core.somaxconn; more than that
    /// setting's default of 4096 stands for as many as it allows.
    pub backlog: i32,
    /// `TCP_NODELAY`, tcp(7): send small segments at once. The loop writes once a turn, so waiting to gather
    /// more gains nothing.
    pub nodelay: bool,
    /// `SO_KEEPALIVE` with the first probe after this time of silence (`TCP_KEEPIDLE`, whole seconds), then
    /// every quarter of it, three times; it finds peers that vanished. At most nine hours. `None`: off.
    pub keepalive: Option<Duration>,
    /// `TCP_USER_TIMEOUT`: how long sent data may stay unacknowledged before the kernel gives the connection
    /// up, in milliseconds. `None`: the kernel's own, some 15 minutes.
    pub user_timeout: Option<Duration>,
    /// `TCP_NOTSENT_LOWAT`: how many bytes the kernel takes beyond what is in flight. With it a slow reader
    /// shows after about this much instead of several megabytes. Zero counts as one. `None`: the kernel's
    /// own, no limit.
    pub not_sent_low_water: Option<u32>,
    /// `TCP_DEFER_ACCEPT`: accept only when the first data is there, waiting at most this long (whole
    /// seconds). Only for protocols in which the client speaks first. `None`: off.
    pub defer_accept: Option<Duration>,
    /// `SO_REUSEPORT`, socket(7): several listeners share the address, and the kernel spreads connections.
    /// An error on Unix sockets.
    pub reuse_port: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            backlog: 4096,
            nodelay: true,
            keepalive: Some(Duration::from_secs(60)),
            user_timeout: Some(Duration::from_secs(60)),
            not_sent_low_water: None,
            defer_accept: None,
            reuse_port: false,
        }
    }
}
