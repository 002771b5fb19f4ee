//! Listening, saying so, and running until a signal: once, for whatever the protocol.

use std::io::{self, Write};
use std::thread;

use epoll_reactor::{Address, Handler, Limits, ListenOptions, Reactor, Stopped};

use crate::SIGNALS;

/// An address as typed, and those it stands for.
pub(crate) struct Place {
    text: String,
    candidates: Vec<Address>,
}

/// Looks the addresses up.
///
/// # Errors
/// One cannot be understood or found; the error names it.
pub(crate) fn resolve(addresses: &[String]) -> io::Result<Vec<Place>> {
    let place = |text: &String| Ok(Place { text: text.clone(), candidates: Address::resolve(text)? });
    addresses.iter().map(place).collect()
}

/// Serves in all `places` until it is told to stop. `prepare` gets the loop before it runs.
///
/// # Errors
/// Limits that contradict each other, an address that cannot be listened on (the error names it), or a loop that
/// cannot go on.
pub(crate) fn serve<H: Handler>(
    handler: H,
    limits: Limits,
    places: &[Place],
    prepare: impl FnOnce(&mut Reactor<H>) -> io::Result<()>,
) -> io::Result<Stopped> {
    let grace = limits.drain_grace;
    let options = ListenOptions {
        // The kernel counts a client that has stopped reading as one that has vanished, so this must not come
        // before the loop's own patience with it is at an end.
        user_timeout: ListenOptions::default().user_timeout.max(Some(limits.write_stall_timeout)),
        ..ListenOptions::default()
    };
    let mut reactor = Reactor::new(handler, limits)?;
    reactor.drain_on_signals(&SIGNALS)?;
    prepare(&mut reactor)?;
    let mut bound = Vec::with_capacity(places.len());
    for place in places {
        let (_, address) = reactor.listen_first(&place.candidates, &options)?;
        if place.candidates.len() > 1 {
            log::info!("{} has several addresses; listening on {address} only", place.text);
        }
        bound.push(address);
    }
    // Only now: whoever waits for these lines may take the first one for the whole server being there. By a
    // thread, since a pipe that nobody reads may be full.
    thread::Builder::new().name("announce".to_owned()).spawn(move || announce(&bound))?;
    let stopped = reactor.run()?;
    match stopped {
        Stopped::Drained => log::info!("stopped: every connection has ended"),
        Stopped::DeadlinePassed => {
            log::warn!(
                "stopped: {} connections still open after {} were closed",
                reactor.ctx().counters().cut_off,
                humantime::format_duration(grace)
            );
        }
        Stopped::Forced => log::warn!("stopped at once, without waiting for connections to end"),
    }
    Ok(stopped)
}

/// Tells standard output, and lets it be if nobody can be told: `println!` would panic.
fn announce(bound: &[Address]) {
    for address in bound {
        let mut output = io::stdout().lock();
        let written = writeln!(output, "listening on {address}").and_then(|()| output.flush());
        if let Err(error) = written {
            log::warn!("listening on {address}, which standard output did not take: {error}");
        }
    }
}
