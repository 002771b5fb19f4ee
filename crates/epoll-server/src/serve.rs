//! Listening, saying so, and running until a signal: once for one loop and once for several, for whatever the protocol.

use std::io::{self, Write};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use epoll_reactor::{
    Address, Handler, Limits, ListenOptions, Reactor, Remote, Signal, Stopped, Worker, WorkerEvent, Workers,
    WorkersEnd, monotonic_now,
};

use crate::SIGNALS;
use crate::admin::Admin;
use crate::options::Loops;
use crate::trace::TraceFile;

/// A turn that takes so long is one that whoever asks for traces may be looking for.
const HELD_UP: Duration = Duration::from_secs(1);

/// An address as typed, and those it stands for.
pub(crate) struct Place {
    text: String,
    candidates: Vec<Address>,
}

/// What serving is about besides the loops and their handlers.
pub(crate) struct Surroundings<'a> {
    pub(crate) places: &'a [Place],
    pub(crate) trace: Option<&'a TraceFile>,
    pub(crate) admin: Option<&'a Admin>,
}

/// Looks the addresses up.
///
/// # Errors
/// One cannot be understood or found; the error names it.
pub(crate) fn resolve(addresses: &[String]) -> io::Result<Vec<Place>> {
    let place = |text: &String| Ok(Place { text: text.clone(), candidates: Address::resolve(text)? });
    addresses.iter().map(place).collect()
}

/// Serves in all places until it is told to stop. `prepare` gets the loop before it runs.
///
/// # Errors
/// Limits that contradict each other, an address that cannot be listened on (the error names it), or a loop that
/// cannot go on.
pub(crate) fn serve<H: Handler>(
    handler: H,
    limits: Limits,
    surroundings: &Surroundings<'_>,
    prepare: impl FnOnce(&mut Reactor<H>) -> io::Result<()>,
) -> io::Result<Stopped>
where
    H::Message: 'static,
{
    let Surroundings { places, trace, admin } = *surroundings;
    let grace = limits.drain_grace;
    let options = listen_options(&limits);
    let mut reactor = Reactor::new(handler, limits)?;
    reactor.drain_on_signals(&SIGNALS)?;
    if let Some(file) = trace {
        let (asked, panicked) = (file.clone(), file.clone());
        reactor.inspect_on_signals(&[Signal::User1], move |ctx| asked.write(0, ctx))?;
        reactor.on_panic(move |ctx| panicked.write_after_panic(0, ctx));
    }
    prepare(&mut reactor)?;
    let bound = listen(places, |addresses| Ok(reactor.listen_first(addresses, &options)?.1))?;
    let admin = admin.map(|admin| admin.start(&[reactor.remote()])).transpose()?;
    // Only now: whoever waits for these lines may take the first one for the whole server being there. By a
    // thread, since a pipe that nobody reads may be full.
    thread::Builder::new().name("announce".to_owned()).spawn(move || announce(&bound, admin.as_ref()))?;
    let stopped = reactor.run()?;
    tell_of_end(stopped, reactor.ctx().counters().cut_off, grace);
    Ok(stopped)
}

/// The same with several loops, each with a handler that `factory` makes. `on_signal` hears of `watched`, and has the ways
/// to the loops.
///
/// # Errors
/// As for [`serve`]; those of `factory`; more loops than CPUs if each is to have its own; or a loop that could not go on,
/// at the end, since the others do.
pub(crate) fn serve_with_workers<H: Handler>(
    loops: Loops,
    limits: Limits,
    surroundings: &Surroundings<'_>,
    watched: &[Signal],
    factory: impl Fn(&Worker<H::Message>) -> io::Result<H> + Sync,
    on_signal: impl Fn(&[Remote<H::Message>]),
) -> io::Result<Stopped>
where
    H::Message: 'static,
{
    let Surroundings { places, trace, admin } = *surroundings;
    let grace = limits.drain_grace;
    let options = listen_options(&limits);
    let mut workers = Workers::new(loops.count, limits)?;
    workers.drain_on_signals(&SIGNALS)?;
    workers.watch_signals(watched)?;
    if let Some(file) = trace.cloned() {
        workers.watch_signals(&[Signal::User1])?;
        workers.on_panic(move |index, ctx| file.write_after_panic(index, ctx));
    }
    if loops.pin {
        workers.pin()?;
    }
    if loops.balance {
        workers.balance();
    }
    let bound = listen(places, |addresses| workers.listen_first(addresses, &options))?;
    let admin = admin.map(|admin| admin.start(workers.remotes())).transpose()?;
    let remotes = workers.remotes().clone();
    // It is to announce what is there, or nothing: a loop may not start.
    let (started, all_started) = channel();
    thread::Builder::new().name("announce".to_owned()).spawn(move || {
        if all_started.recv().is_ok() {
            announce(&bound, admin.as_ref());
        }
    })?;
    let end = workers.run(factory, |event| match event {
        // It waits for this.
        WorkerEvent::AllStarted => _ = started.send(()),
        WorkerEvent::Signal(Signal::User1) => _ = trace.map(|file| ask_for_traces(file, &remotes)),
        WorkerEvent::Signal(_) => on_signal(&remotes),
        // The log has been told.
        _ => (),
    })?;
    let WorkersEnd { stopped, cut_off, died, .. } = end;
    if died > 0 {
        let count = loops.count;
        return Err(io::Error::other(format!("{died} of {count} loops could not go on; the log says why")));
    }
    tell_of_end(stopped, cut_off, grace);
    Ok(stopped)
}

/// Has each loop write down what it did, on its own thread. One that is held up cannot, so the log tells of it.
fn ask_for_traces<M: Send>(file: &TraceFile, remotes: &[Remote<M>]) {
    let now = monotonic_now();
    for (index, remote) in remotes.iter().enumerate() {
        let busy = remote.metrics().read().in_turn_for(now);
        if busy >= HELD_UP {
            log::warn!(
                "loop {index} has been in one turn for {} s, as a rule in one callback; what it did is written when that ends",
                busy.as_secs()
            );
        }
        let asked = file.writing(index).map(|writing| remote.inspect(writing));
        if let Some(Err(error)) = asked {
            log::warn!("loop {index} cannot be asked for what it did: {error}");
        }
    }
}

fn listen_options(limits: &Limits) -> ListenOptions {
    ListenOptions {
        // The kernel counts a client that has stopped reading as one that has vanished, so this must not come
        // before the loop's own patience with it is at an end.
        user_timeout: ListenOptions::default().user_timeout.max(Some(limits.write_stall_timeout)),
        ..ListenOptions::default()
    }
}

/// Has each place listened on by `listen_first`, and returns where that is.
fn listen(
    places: &[Place],
    mut listen_first: impl FnMut(&[Address]) -> io::Result<Address>,
) -> io::Result<Vec<Address>> {
    let listen_at = |place: &Place| {
        let address = listen_first(&place.candidates)?;
        if place.candidates.len() > 1 {
            log::info!("{} has several addresses; listening on {address} only", place.text);
        }
        Ok(address)
    };
    places.iter().map(listen_at).collect()
}

fn tell_of_end(stopped: Stopped, cut_off: u64, grace: Duration) {
    match stopped {
        Stopped::Drained => log::info!("stopped: every connection has ended"),
        Stopped::DeadlinePassed => {
            log::warn!(
                "stopped: {cut_off} connections still open after {} were closed",
                humantime::format_duration(grace)
            );
        }
        Stopped::Forced => log::warn!("stopped at once, without waiting for connections to end"),
    }
}

/// Tells standard output, and lets it be if nobody can be told: `println!` would panic.
fn announce(bound: &[Address], admin: Option<&Address>) {
    let listeners = bound.iter().map(|address| ("listening", address));
    for (what, address) in listeners.chain(admin.map(|address| ("admin", address))) {
        let mut output = io::stdout().lock();
        let written = writeln!(output, "{what} on {address}").and_then(|()| output.flush());
        if let Err(error) = written {
            log::warn!("{what} on {address}, which standard output did not take: {error}");
        }
    }
}
