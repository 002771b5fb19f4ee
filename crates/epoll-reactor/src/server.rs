//! The simple way in: bytes to a message, a message to an action. A thin layer on [`Handler`], for servers
//! that need no timers, backpressure of their own or state for each connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use epoll_sys::{Address, ListenOptions, Signal};

use crate::ctx::Ctx;
use crate::handler::{CloseReason, Handler};
use crate::limits::Limits;
use crate::output::SendOutcome;
use crate::reactor::Reactor;
use crate::remote::Remote;
use crate::shared::Share;
use crate::slab::ConnMap;
use crate::stats::CloseStats;
use crate::token::ConnId;
use crate::turn::Turn;

/// A server's behaviour in four callbacks. A client is a number, unique for as long as the server lives, neither
/// small nor consecutive.
///
/// An error from a callback is logged (through the `log` crate, as all that this crate has to say) and closes that
/// client; the server goes on.
pub trait EventHandler {
    /// A client is there. An error turns it away, without an [`on_disconnect`](Self::on_disconnect).
    ///
    /// # Errors
    /// Whatever the handler likes: see above.
    fn on_connection(&mut self, client_id: u64, stream: &TcpStream) -> io::Result<()>;

    /// A message is complete; the answer says what to send.
    ///
    /// # Errors
    /// Whatever the handler likes: see above. What was sent to the client before is still delivered.
    fn on_message(&mut self, client_id: u64, data: &[u8]) -> io::Result<HandlerAction>;

    /// A client has gone.
    ///
    /// # Errors
    /// Whatever the handler likes; it is logged.
    fn on_disconnect(&mut self, client_id: u64) -> io::Result<()>;

    /// Whether `data`, all that has arrived and not been handled, ends with the end of a message. Where clients may
    /// send several messages at once, or one and the start of another, [`message_len`](Self::message_len) is
    /// needed as well.
    fn is_data_complete(&mut self, data: &[u8]) -> bool;

    /// How many bytes the first message in `data` has, once it is complete.
    ///
    /// By default all of `data`, when [`is_data_complete`](Self::is_data_complete) says so: then a client that
    /// sends several messages without waiting for answers may have them handled as one. A protocol in which
    /// that matters says here where the first one ends. 0 counts as 1.
    fn message_len(&mut self, data: &[u8]) -> Option<usize> {
        self.is_data_complete(data).then_some(data.len())
    }
}

/// What to send after a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerAction {
    /// To the client the message came from.
    Reply(Vec<u8>),
    /// To every client but that one.
    Broadcast(Vec<u8>),
    /// To the client the message came from, which is then disconnected: an answer to `quit`.
    ReplyAndClose(Vec<u8>),
    /// To one client. If it has gone, to nobody.
    SendTo(u64, Vec<u8>),
    /// To every client.
    SendToAll(Vec<u8>),
    /// Nothing.
    None,
}

/// A client's connection, as far as a handler may know it: reading and writing are the server's.
#[derive(Clone, Debug)]
pub struct TcpStream {
    peer: Address,
}

impl TcpStream {
    /// The client's address.
    ///
    /// # Errors
    /// `Unsupported` if it came in through a Unix socket.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.peer.as_tcp().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The client's address, of whatever kind.
    #[must_use]
    pub const fn peer_address(&self) -> &Address {
        &self.peer
    }
}

/// A server that runs an [`EventHandler`]. A client to which something cannot be sent, because it has not read
/// [`Limits::output`] bytes before, or all clients together [`Limits::memory`], is disconnected.
///
/// ```
/// use epoll_reactor::{EpollServer, EventHandler, HandlerAction, TcpStream};
///
/// struct MyHandler;
///
/// impl EventHandler for MyHandler {
///     fn on_connection(&mut self, client_id: u64, stream: &TcpStream) -> std::io::Result<()> { Ok(()) }
///     fn on_message(&mut self, client_id: u64, data: &[u8]) -> std::io::Result<HandlerAction> { Ok(HandlerAction::Reply(b"Hello!".to_vec())) }
///     fn on_disconnect(&mut self, client_id: u64) -> std::io::Result<()> { Ok(()) }
///     fn is_data_complete(&mut self, data: &[u8]) -> bool { true }
/// }
///
/// fn main() -> std::io::Result<()> {
/// #   let address = "127.0.0.1:0";
/// #   let mut server = EpollServer::new(address, MyHandler)?;
/// #   let signal = server.shutdown_signal();
/// #   let client = std::thread::spawn({ let address = server.local_address().to_string(); move || {
/// #       use std::io::{Read, Write};
/// #       let mut client = std::net::TcpStream::connect(address).unwrap();
/// #       client.write_all(b"hi").unwrap();
/// #       let mut answer = [0; 6];
/// #       client.read_exact(&mut answer).unwrap();
/// #       assert_eq!(&answer, b"Hello!");
/// #       signal.shutdown();
/// #   }});
/// #   server.run(None)?;
/// #   client.join().unwrap();
/// #   return Ok(());
///     let mut server = EpollServer::new("127.0.0.1:8080", MyHandler)?;
///     server.run(None)            // None: the default wait timeout; server.shutdown_signal() stops it from any thread, at once
/// }
/// ```
#[derive(Debug)]
pub struct EpollServer<H: EventHandler> {
    reactor: Reactor<Clients<H>>,
    local_address: Address,
}

impl<H: EventHandler> EpollServer<H> {
    /// A server on `address`: `host:port`, `[v6]:port` or `unix:PATH`; with port 0 the system chooses one.
    ///
    /// # Errors
    /// The address cannot be understood or listened on; the error names it.
    pub fn new(address: &str, handler: H) -> io::Result<Self> {
        Self::with_limits(address, handler, Limits::default())
    }

    /// The same, with other bounds than the default.
    ///
    /// # Errors
    /// As for [`new`](Self::new), and limits that contradict each other.
    pub fn with_limits(address: &str, handler: H, limits: Limits) -> io::Result<Self> {
        let mut reactor = Reactor::new(Clients { handler, members: ConnMap::new() }, limits)?;
        let (_, local_address) =
            reactor.listen_first(&Address::resolve(address)?, &ListenOptions::default())?;
        Ok(Self { reactor, local_address })
    }

    /// The address it listens on, with the real port.
    #[must_use]
    pub const fn local_address(&self) -> &Address {
        &self.local_address
    }

    /// What stops the server, from any thread: at once, though it may be waiting.
    #[must_use]
    pub fn shutdown_signal(&self) -> ShutdownSignal {
        ShutdownSignal { remote: self.reactor.remote() }
    }

    /// Shuts down at the first `SIGINT` (Ctrl-C) or `SIGTERM`, and at once at the second. Call it before other
    /// threads are started: a thread that does not block these signals is ended by them, and the process with it.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn drain_on_signals(&mut self) -> io::Result<()> {
        self.reactor.drain_on_signals(&[Signal::Interrupt, Signal::Terminate])
    }

    /// Serves until it is shut down; clients then still get what was sent to them, within
    /// [`Limits::drain_grace`]. `timeout` is the longest that a wait may take; `None`, the default, waits
    /// until there is something to do.
    ///
    /// # Errors
    /// As for [`Reactor::run`].
    pub fn run(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        while self.reactor.turn(timeout)? == Turn::Continue {}
        Ok(())
    }
}

/// Stops an [`EpollServer`]. Cheap to clone, and may be sent to any thread.
#[derive(Clone, Debug)]
pub struct ShutdownSignal {
    remote: Remote<()>,
}

impl ShutdownSignal {
    /// Stops the server; one that has stopped stays so.
    pub fn shutdown(&self) {
        self.remote.drain();
    }
}

/// What one callback may send, in number: enough for a millisecond or so, after which others have their turn.
const DELIVERIES: usize = 16 * 1024;

/// The adapter: an [`EventHandler`] as a [`Handler`].
struct Clients<H> {
    handler: H,
    /// The clients that `on_connection` has let in.
    members: ConnMap<()>,
}

impl<H: EventHandler> Clients<H> {
    /// Does what a message asked for; returns how many bytes a client may have been sent by it.
    fn apply(&mut self, ctx: &mut Ctx, from: ConnId, action: HandlerAction) -> usize {
        match action {
            HandlerAction::Reply(data) => deliver(ctx, from, Bytes::from(data)),
            HandlerAction::ReplyAndClose(data) => {
                let length = deliver(ctx, from, Bytes::from(data));
                ctx.close_after_flush(from);
                length
            }
            HandlerAction::Broadcast(data) => self.to_all(ctx, Some(from), data),
            HandlerAction::SendToAll(data) => self.to_all(ctx, None, data),
            HandlerAction::SendTo(client_id, data) => {
                deliver(ctx, ConnId::from_u64(client_id), Bytes::from(data))
            }
            HandlerAction::None => 0,
        }
    }

    fn to_all(&self, ctx: &mut Ctx, except: Option<ConnId>, data: Vec<u8>) -> usize {
        let data = ctx.share(data);
        for (id, ()) in self.members.iter() {
            if Some(id) != except {
                deliver(ctx, id, data.clone());
            }
        }
        data.len()
    }
}

/// Sends, and disconnects a client that there is no more room for; returns the length.
fn deliver<T: Share + Deref<Target = [u8]>>(ctx: &mut Ctx, id: ConnId, data: T) -> usize {
    let length = data.len();
    match ctx.send_shared(id, data) {
        SendOutcome::Sent | SendOutcome::Queued => (),
        SendOutcome::OverLimit(_) => {
            let (queued, buffered) = (ctx.queued(id), ctx.buffered());
            log::info!(
                "client {} disconnected: {queued} bytes wait for it, {buffered} in all; no room for {length} more",
                id.as_u64()
            );
            ctx.close_now(id);
        }
        SendOutcome::Gone(_) => log::debug!("client {} has gone; {length} bytes for it dropped", id.as_u64()),
    }
    length
}

impl<H: EventHandler> Handler for Clients<H> {
    type Conn = ();
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        let Some(peer) = ctx.peer_address(id) else { return };
        match self.handler.on_connection(id.as_u64(), &TcpStream { peer }) {
            Ok(()) => {
                self.members.insert(id, ());
            }
            Err(error) => {
                log::info!("client {} turned away: {error}", id.as_u64());
                ctx.close_after_flush(id);
            }
        }
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
        let mut rest = input;
        // To each: small pieces are copied for all of them.
        let share_of_memory = ctx.limits().memory / 4 / self.members.len().max(1);
        let mut budget = (ctx.limits().output / 4).min(share_of_memory).max(1);
        let mut deliveries = DELIVERIES;
        while !rest.is_empty() && ctx.is_open(id) {
            if ctx.queued(id) > ctx.limits().output_high_water {
                // Enough answers are waiting; the other messages wait as well.
                ctx.pause_until_drained(id);
                break;
            }
            if budget == 0 || deliveries == 0 {
                // The loop writes only between callbacks. More could fill the limit of a client that reads all it
                // is sent.
                ctx.read_again(id);
                break;
            }
            let Some(length) = self.handler.message_len(rest) else { break };
            let (message, behind) = rest.split_at(length.clamp(1, rest.len()));
            match self.handler.on_message(id.as_u64(), message) {
                Ok(action) => {
                    let to_all = matches!(action, HandlerAction::Broadcast(_) | HandlerAction::SendToAll(_));
                    deliveries = deliveries.saturating_sub(if to_all { self.members.len() } else { 1 });
                    budget = budget.saturating_sub(self.apply(ctx, id, action));
                }
                Err(error) => {
                    log::info!("client {}: {error}; disconnecting it", id.as_u64());
                    ctx.close_after_flush(id);
                }
            }
            rest = behind;
        }
        input.len() - rest.len()
    }

    fn on_close(&mut self, _: &mut Ctx, id: ConnId, (): (), reason: CloseReason, _: &CloseStats) {
        if !matches!(reason, CloseReason::PeerClosed | CloseReason::Local) {
            log::info!("client {}: {reason}", id.as_u64());
        }
        if self.members.remove(id).is_some()
            && let Err(error) = self.handler.on_disconnect(id.as_u64())
        {
            log::warn!("client {}: on_disconnect: {error}", id.as_u64());
        }
    }
}

impl<H> fmt::Debug for Clients<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("members", &self.members.len()).finish_non_exhaustive()
    }
}
