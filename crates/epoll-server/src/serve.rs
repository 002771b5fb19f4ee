//! Listening, saying so, and running until a signal: once, for whatever the protocol.

use std::io::{self, Write};

use epoll_reactor::{Address, Handler, Limits, ListenOptions, Reactor, Stopped};

use crate::SIGNALS;

/// Serves on all of `addresses` until it is told to stop.
///
/// # Errors
/// Limits that contradict each other, an address that cannot be understood or listened on (the error names
/// it), or a loop that cannot go on.
pub(crate) fn serve<H: Handler>(handler: H, limits: Limits, addresses: &[String]) -> io::Result<Stopped> {
    let grace = limits.drain_grace;
    let mut reactor = Reactor::new(handler, limits)?;
    reactor.drain_on_signals(&SIGNALS)?;
    let mut bound = Vec::with_capacity(addresses.len());
    for address in addresses {
        bound.push(listen(&mut reactor, address)?);
    }
    // Only now: whoever waits for these lines may take the first one for the whole server being there.
    for address in &bound {
        announce(address, &mut io::stdout().lock());
    }
    let stopped = reactor.run()?;
    match stopped {
        Stopped::Drained => log::info!("stopped: every connection has ended"),
        Stopped::DeadlinePassed => {
            log::warn!(
                "stopped: connections still open after {} were closed",
                humantime::format_duration(grace)
            );
        }
        Stopped::Forced => log::warn!("stopped at once, without waiting for connections to end"),
    }
    Ok(stopped)
}

/// Listens on what `text` stands for, and returns the address it is bound to. One only, of a host name that has
/// several: `listening on` should say all there is to know, and which of two addresses a client tries first is
/// the client's affair.
fn listen<H: Handler>(reactor: &mut Reactor<H>, text: &str) -> io::Result<Address> {
    let candidates = Address::resolve(text)?;
    match candidates.as_slice() {
        [address] => Ok(reactor.listen(address, &ListenOptions::default())?.1),
        several => listen_on_first(reactor, text, several),
    }
}

fn listen_on_first<H: Handler>(
    reactor: &mut Reactor<H>,
    name: &str,
    candidates: &[Address],
) -> io::Result<Address> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for address in candidates {
        match reactor.listen(address, &ListenOptions::default()) {
            Ok((_, bound)) => {
                log::info!("{name} has {} addresses; listening on {bound} only", candidates.len());
                return Ok(bound);
            }
            Err(error) => {
                log::warn!("{name}: {error}");
                result = Err(error);
            }
        }
    }
    result
}

/// Tells standard output, and goes on serving if nobody can be told: `println!` would panic.
fn announce(address: &Address, output: &mut impl Write) {
    let written = writeln!(output, "listening on {address}").and_then(|()| output.flush());
    if let Err(error) = written {
        log::warn!("listening on {address}, which standard output did not take: {error}");
    }
}

#[cfg(test)]
mod tests {
    use epoll_protocols::Echo;

    use super::*;

    #[test]
    fn of_several_addresses_the_first_that_works_is_listened_on() {
        let mut reactor = Reactor::new(Echo, Limits::default()).unwrap();
        // RFC 5737: an address nobody has.
        let foreign = Address::Tcp(([192, 0, 2, 1], 1).into());
        let local = |last| Address::Tcp(([127, 0, 0, last], 0).into());
        let bound = listen_on_first(&mut reactor, "x", &[foreign.clone(), local(1), local(2)]).unwrap();
        assert!(bound.to_string().starts_with("127.0.0.1:"), "{bound}");
        let error = listen_on_first(&mut reactor, "x", &[foreign.clone(), foreign]).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:1"), "{error}");
    }
}
