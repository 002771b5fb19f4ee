//! Every byte comes back, in order. A client that does not read is not read either, so none can make the
//! server hold more than its limits.
//!
//! ```text
//! cargo run --example echo_server -- 127.0.0.1:8080
//! echo hello | nc -N 127.0.0.1 8080
//! head -c 1G /dev/zero | nc -N 127.0.0.1 8080 | wc -c
//! ```
//!
//! Ctrl-C ends it.

use std::io::{self, Write};

use epoll_protocols::Echo;
use epoll_reactor::{Address, Limits, ListenOptions, Reactor, Signal, block_signals};

const SIGNALS: [Signal; 2] = [Signal::Interrupt, Signal::Terminate];

fn main() -> io::Result<()> {
    env_logger::init();
    block_signals(&SIGNALS)?;

    let mut reactor = Reactor::new(Echo, Limits::default())?;
    reactor.drain_on_signals(&SIGNALS)?;

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let (_, bound) = reactor.listen_first(&Address::resolve(&address)?, &ListenOptions::default())?;
    writeln!(io::stdout(), "listening on {bound}")?;
    reactor.run()?;
    Ok(())
}
