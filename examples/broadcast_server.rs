//! Each line a client sends goes to all the others, behind `[Client_<n>] `: a ready-made handler on a loop.
//!
//! ```text
//! cargo run --example broadcast_server -- 127.0.0.1:8080
//! nc 127.0.0.1 8080          # in two other terminals, then type in either
//! ```
//!
//! Ctrl-C drains: clients still get what was sent to them, and the program ends. `RUST_LOG=info` shows who
//! comes and goes.

use std::io::{self, Write};

use epoll_protocols::{Broadcast, BroadcastConfig};
use epoll_reactor::{Address, Limits, ListenOptions, Reactor, Signal, block_signals};

const SIGNALS: [Signal; 2] = [Signal::Interrupt, Signal::Terminate];

fn main() -> io::Result<()> {
    env_logger::init();
    // Before there is any other thread, so that none of them takes the signals.
    block_signals(&SIGNALS)?;

    let config = BroadcastConfig::default();
    let limits = config.limits(Limits::default());
    let mut reactor = Reactor::new(Broadcast::new(config), limits)?;
    reactor.drain_on_signals(&SIGNALS)?;

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let (_, bound) = reactor.listen_first(&Address::resolve(&address)?, &ListenOptions::default())?;
    writeln!(io::stdout(), "listening on {bound}")?;
    reactor.run()?;
    Ok(())
}
