//! The simulated kernel, for tests of a [`Handler`](crate::Handler): a network that cuts, delays and interrupts, every
//! error that a kernel may give, and a clock of its own, all from a seed that brings each run back. Feature `sim`.
//!
//! [`Reactor::with_kernel`](crate::Reactor::with_kernel) puts the loop on [`Sim::kernel`]. The test plays the clients,
//! between [turns](crate::Reactor::turn). Nothing else is needed, and nothing of the handler is changed.
//! [`EpollServer`](crate::EpollServer) runs on [`Linux`](crate::Linux) only.
//!
//! ```
//! use std::time::Duration;
//!
//! use epoll_reactor::sim::{Faults, Sim};
//! use epoll_reactor::{Address, ConnId, Ctx, Handler, Limits, ListenOptions, PanicPolicy, Reactor};
//!
//! /// Answers each line with its length.
//! struct Lengths;
//!
//! impl Handler for Lengths {
//!     type Conn = ();
//!     type Message = ();
//!
//!     fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
//!         let mut consumed = 0;
//!         for line in input.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
//!             consumed += line.len();
//!             if !ctx.send(id, format!("{}\n", line.len() - 1).as_bytes()).is_accepted() {
//!                 ctx.close_now(id);
//!             }
//!         }
//!         consumed
//!     }
//! }
//!
//! # fn main() -> std::io::Result<()> {
//! for seed in 0..20 {
//!     // Set up while nothing goes wrong.
//!     let sim = Sim::new(seed, Faults::none());
//!     let limits = Limits { panics: PanicPolicy::Propagate, ..Limits::default() };
//!     let mut reactor = Reactor::with_kernel(sim.kernel(), Lengths, limits)?;
//!     let address = Address::Tcp(([127, 0, 0, 1], 80).into());
//!     reactor.listen(&address, &ListenOptions::default())?;
//!     sim.set_faults(Faults::swarm(seed).without_losses());
//!
//!     let client = sim.connect(&address)?;
//!     assert_eq!(client.send(b"one\nthree\n"), 10);
//!     client.shutdown_write();
//!     let mut answers = Vec::new();
//!     let (mut before, mut since) = ((0, 0), sim.now());
//!     while !client.is_ended() {
//!         reactor.turn(Some(Duration::from_millis(100)))?;
//!         answers.extend(client.recv_all());
//!         // Given up only when nothing has moved for a long time, by the simulated clock.
//!         let now = (client.unsent(), answers.len());
//!         if now != before {
//!             (before, since) = (now, sim.now());
//!         }
//!         assert!(sim.now() - since < Duration::from_secs(600), "seed {seed}: {:#?}", sim.trace());
//!     }
//!     answers.extend(client.recv_all());
//!     assert_eq!(answers, b"3\n5\n", "seed {seed}: {:#?}", sim.trace());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - **[`PanicPolicy::Propagate`](crate::PanicPolicy::Propagate) in tests.** By default a panic in a callback closes its
//!   connection and is logged, as a server should have it. In a test that swallows a failed assertion of the handler's.
//! - **No bound in turns.** Every byte may take several of them, and seconds; hours of simulated time pass at once. Give
//!   up as above, when nothing has moved for long. A loop that never ends by itself is seen by the kernel, which panics
//!   after a million calls without a rest.
//! - **A full swarm takes everything away**: set up under [`Faults::none`] and only then call
//!   `sim.set_faults(Faults::swarm(seed))`, or setting up fails with `EMFILE`. Connections are lost then, so assert that
//!   what a client got is the beginning of what it should get, that each client comes to an end, that
//!   [`Sim::violations`] is empty, and [`Sim::open_descriptors`] too when the reactor has been dropped.
//! - **Reading a failure**: [`Sim::trace`] is what the kernel was asked and what it did, [`Sim::note`] puts a line of
//!   one's own into it, and `sim.who_is(id.as_u64())` says which descriptor and which client's socket in it are the
//!   connection `id`.
//!
//! A [`Replay`] plays what the clients of a real server sent, from a recording: a failure there becomes a test.
//!
//! `examples/tests/simulated.rs` in the repository is a whole test of that kind. What the simulated kernel
//! promises and what it does not model is in the documentation of the module `sim` of `epoll-sys`, where it lives.

#[doc(inline)]
pub use epoll_sys::sim::*;

#[doc(inline)]
pub use crate::replay::{Course, Ending, LeftOut, LeftOutReason, Replay, Replayed, ReplayedClient};
