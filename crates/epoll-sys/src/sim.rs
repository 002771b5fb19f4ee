//! A simulated kernel: TCP, Unix sockets and epoll in memory, with a seed, a virtual clock and faults.
//!
//! What runs on [`Linux`](crate::Linux) runs on a [`SimKernel`] unchanged, and there each run is a function of
//! its seed: the same calls in the same order see the same segments, delays and faults, to the nanosecond.
//! Hours of timeouts pass at once, since a wait with nothing ready moves the clock to whatever happens next.
//! A failure is a seed, and the seed brings it back.
//!
//! # A world
//! A [`Sim`] is a handle on one world: sockets, a network, a monotonic clock and a wall clock. The program under
//! test gets [`Sim::kernel`], one epoll instance (several of them, for several loops, share the world and its
//! clock). The test plays everybody else, between the program's turns: it [connects](Sim::connect) and
//! [listens](Sim::listen) as a [`Peer`], [raises](Sim::raise) signals, and lets time [pass](Sim::advance).
//!
//! Bytes that are sent are on their way, and arrive later, in pieces, in order, as far as the receiver has room.
//! [`Network`] says how fast, in what pieces and with what buffers; [`Faults`] says what goes wrong, and how often.
//! [`Faults::swarm`] draws both from a seed.
//!
//! # What it promises
//! - **What it allows, Linux allows.** The contract suite of this crate holds on both. Edges come when Linux gives
//!   them and not when it does not: a short read leaves nothing, a FIN that came with the data gives no second
//!   event, running out of descriptors is silent, a close with unread input is a reset.
//! - **No fault is a lie.** Events may be too many, since each is only a hint, but never too few. The rest after a short read is on its way again; `EAGAIN` and short writes are followed
//!   by an edge; what an event has told is not taken back. So a program that stalls or loses a byte is at fault.
//! - **Misuse is noted**: [`Sim::violations`], and [`Sim::open_descriptors`] for what was never closed. A loop that
//!   does not end is a panic, so that the test is not one either.
//!
//! # How long to wait, and what to expect
//! Time is virtual, so a test has all of it. A bound in turns or calls is a mistake: a network from [`Faults::swarm`]
//! may cut everything into single bytes and hold each up for three seconds, so that what is right takes hours of this
//! time and several waits a byte. Give up only when nothing has moved, at either end, for longer than any delay there
//! is: ten minutes of [`Sim::now`] will do.
//!
//! Set a program up under [`Faults::none`], and then [change](Sim::set_faults) to what it is to bear: a full swarm
//! refuses descriptors, and a program may well end when it cannot begin.
//!
//! [`without_losses`](Faults::without_losses) leaves out what costs connections: each of them must end well and get
//! all of its bytes. Where connections are lost, what may be asserted is that nobody gets what is wrong: what a client
//! has read is the beginning of what it should get, and the whole of it only if the program itself says that the
//! connection ended well, since one that finds no descriptor may be turned away with a FIN. Each client comes to an end,
//! there is no [violation](Sim::violations), and nothing is [open](Sim::open_descriptors) when the program has ended.
//!
//! # What it does not model
//! Threads (a wait does not block one; a wait that would last for ever returns, and is a violation), files and
//! directories (what is sent of a file is read from the real one), loss and congestion, keepalive and
//! `TCP_USER_TIMEOUT`, `TIME_WAIT`, and memory but by its errors. `TCP_NOTSENT_LOWAT` is a smaller send buffer. What has
//! more behind it ([`Then::More`](crate::Then::More)) does not wait for it.
//!
//! # Testing a program of your own on it
//! Any code that is generic over [`Kernel`](crate::Kernel) will do; here, one that answers whatever it reads.
//! ```
//! use epoll_sys::sim::{Faults, Sim};
//! use epoll_sys::{Address, Errno, Events, Interest, Kernel, ListenOptions};
//!
//! /// Reads until nothing is left, and answers. True at the end of the stream.
//! fn serve<K: Kernel>(kernel: &K, socket: &K::Fd) -> bool {
//!     let mut buffer = [0; 1024];
//!     loop {
//!         match kernel.recv(socket, &mut buffer) {
//!             Ok(0) => return true,
//!             // A program with more to say would keep what a short write has left.
//!             Ok(length) => while kernel.send(socket, &buffer[..length]) == Err(Errno::EINTR) {},
//!             Err(Errno::EINTR) => (),
//!             Err(Errno::EAGAIN) => return false,
//!             Err(error) => panic!("{error}"),
//!         }
//!     }
//! }
//!
//! for seed in 0..20 {
//!     let faults = Faults { short_recv: 500_000, eintr: 200_000, held: 100_000, ..Faults::none() };
//!     let sim = Sim::new(seed, faults);
//!     let kernel = sim.kernel();
//!     let address = Address::Tcp("127.0.0.1:80".parse().unwrap());
//!     let listener = kernel.listen(&address, &ListenOptions::default()).unwrap();
//!
//!     let client = sim.connect(&address).unwrap();
//!     client.send(b"hello");
//!     client.shutdown_write();
//!
//!     let socket = loop {
//!         match kernel.accept(&listener) {
//!             Ok((socket, _)) => break socket,
//!             Err(error) => assert_eq!(error, Errno::EINTR),
//!         }
//!     };
//!     kernel.add(&socket, Interest::Stream, 1).unwrap();
//!     let mut events = Events::with_capacity(8);
//!     loop {
//!         // With nothing ready, the clock goes on to whatever happens next.
//!         let _ = kernel.wait(&mut events, None);
//!         if events.get(0).is_some_and(|event| event.token == 1) && serve(&kernel, &socket) {
//!             break;
//!         }
//!     }
//!     kernel.delete(&socket).unwrap();
//!     drop((socket, listener));
//!     sim.advance(std::time::Duration::from_secs(1));
//!
//!     let told = || format!("seed {seed}: {:#?}", sim.trace());
//!     assert_eq!(client.recv_all(), b"hello", "{}", told());
//!     assert!(sim.violations().is_empty() && sim.open_descriptors().is_empty(), "{}", told());
//! }
//! ```
#![forbid(unsafe_code)]

mod calls;
mod connect;
mod epoll;
mod faults;
mod kernel;
mod names;
mod network;
mod peer;
mod plain;
mod record;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod wire;
mod world;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

pub use faults::{ALWAYS, Faults};
pub use kernel::{SimFd, SimKernel};
pub use network::Network;
pub use peer::{Peer, PeerListener, Received};
pub use record::Counts;

use crate::{Address, Errno, ListenOptions, Signal, Timestamp};
use record::{Outcome, Subject};
use world::World;

/// A handle on one simulated world; clones are handles on the same one. See the [module](self).
#[derive(Clone)]
pub struct Sim {
    world: Arc<Mutex<World>>,
}

impl Sim {
    /// A new world. All chance in it comes from `seed`.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self { world: Arc::new(Mutex::new(World::new(seed, faults))) }
    }

    /// A new epoll instance in this world, for the program under test.
    #[must_use]
    pub fn kernel(&self) -> SimKernel {
        SimKernel::new(self.clone())
    }

    /// Replaces the faults from now on, for a test with a quiet beginning or end. Connections keep the buffers
    /// that they have.
    pub fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// Connects to a listener of the program as a client. The handshake takes no time.
    ///
    /// # Errors
    /// `ECONNREFUSED`, and `ENOENT` for a Unix path: nobody listens there. `EAGAIN`: the backlog is full; a real
    /// TCP client would try again for two minutes. `EINVAL`, `ENAMETOOLONG`: no address to connect to.
    pub fn connect(&self, address: &Address) -> Result<Peer, Errno> {
        let key = self.world().connect_at_once(address)?;
        Ok(Peer::new(self.clone(), key))
    }

    /// Listens, for the program to connect to. Port 0 stands for a free one.
    ///
    /// # Errors
    /// Those of [`Kernel::listen`](crate::Kernel::listen).
    pub fn listen(&self, address: &Address, options: &ListenOptions) -> Result<PeerListener, Errno> {
        let key = self.world().listen(address, options)?;
        Ok(PeerListener::new(self.clone(), key))
    }

    /// Sends a signal to the program, which must have a signalfd for it, as in
    /// [`Kernel::signalfd`](crate::Kernel::signalfd); otherwise it stays pending.
    pub fn raise(&self, signal: Signal) {
        self.world().raise(signal);
    }

    /// The monotonic clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::from_nanoseconds(self.world().now())
    }

    /// The wall clock, which begins at 1 January 2025, a second before the world does.
    #[must_use]
    pub fn wall_clock(&self) -> SystemTime {
        self.world().wall_clock()
    }

    /// Sets the wall clock `by` so much forward, or back.
    pub fn set_wall_clock(&self, forward: bool, by: Duration) {
        self.world().set_wall_clock(forward, by);
    }

    /// Lets `duration` pass, with all that happens in it.
    pub fn advance(&self, duration: Duration) {
        self.world().advance(duration);
    }

    /// When the next thing happens by itself, such as an arrival; `None` if nothing is under way.
    #[must_use]
    pub fn next_happening(&self) -> Option<Timestamp> {
        self.world().next_happening().map(Timestamp::from_nanoseconds)
    }

    /// The [numbers](Peer::number) of the peers to which anything has happened since this was last called, in their order:
    /// where there are many, only those need be looked at. Nothing is remembered before the first call.
    #[must_use]
    pub fn stirred(&self) -> Vec<u32> {
        self.world().stirred.replace(BTreeSet::new()).into_iter().flatten().collect()
    }

    /// How often each fault was injected, by the name of its field in [`Faults`] or [`Network`].
    #[must_use]
    pub fn injected(&self) -> Counts {
        self.world().record.injected().clone()
    }

    /// How often each method of [`Kernel`](crate::Kernel) was called, by its name, and `close`: how often a
    /// descriptor was dropped. Clocks are not counted.
    #[must_use]
    pub fn calls(&self) -> Counts {
        self.world().record.calls().clone()
    }

    /// The program's misuse of the kernel, the first hundred of it: descriptors of another world or used after
    /// their end, added twice, deleted without having been added, closed without having been deleted; calls on
    /// descriptors of the wrong kind; writing behind one's own FIN, or shutting down twice what is over; reading
    /// into an empty buffer; waiting for ever for nothing; and a loop that does not end, at which the kernel panics: a
    /// million calls, and a hundred more for each open descriptor, without a wait among them that brought an event or
    /// let time pass.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.world().record.violations().to_vec()
    }

    /// The descriptors that the program has open, with what they are.
    #[must_use]
    pub fn open_descriptors(&self) -> Vec<String> {
        self.world().open_descriptors()
    }

    /// Puts a line into the trace, among the calls: what the program or the test thinks it is doing.
    pub fn note(&self, line: &str) {
        self.world().note(Subject::Test, line.to_owned(), Outcome::Done);
    }

    /// What the trace calls the registration with `token` and the other end of its connection, as `fd 9, its other end
    /// socket #8`; `None` if no open descriptor is registered with it.
    #[must_use]
    pub fn who_is(&self, token: u64) -> Option<String> {
        self.world().who_is(token)
    }

    /// The last two thousand calls, arrivals, events, faults and [notes](Self::note), oldest first, each with the time
    /// of [`now`](Self::now) in milliseconds.
    ///
    /// `fd 9` is a descriptor of the program, by its number, which is given again after a close, as in Linux.
    /// `socket #8` is one that is no descriptor: a [`Peer`], by the number that its `Debug` shows, or an end that waits
    /// to be accepted or was closed before all that it sent has arrived. These numbers are used again too. A line
    /// `accept socket #7 as fd 9` says what became of an end, and [`who_is`](Self::who_is) which two ends are a
    /// connection.
    ///
    /// A token is shown as its low and its high half, `0.1`, which is how `epoll-reactor` shows the ids of connections;
    /// `~` in front says that the highest bit of the low half is set, as it is there for what is no connection.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.world().record.trace()
    }

    /// A number made of the whole trace, forgotten parts included: two runs that have the same were the same.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.world().record.fingerprint()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // Nothing in a world panics half way through a change; one whose user panicked is as good as before.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.world, &other.world)
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("now", &self.now()).field("calls", &self.calls()).finish_non_exhaustive()
    }
}
