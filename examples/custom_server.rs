//! A protocol of its own on `epoll-reactor` alone: gauges of this machine, to watch from anywhere.
//!
//! ```text
//! cargo run --example custom_server -- 127.0.0.1:8080
//! nc 127.0.0.1 8080
//! watch load      # answers "load 0.42", and again whenever it changes; "watch uptime" for every second
//! ping            # this one is the server's: answer "pong", or be disconnected for silence
//! ```
//!
//! It has what most servers need: framing of lines that come in pieces or several at once, state for each
//! connection, a timer, another thread with something to say, and an answer to "what if a client does not
//! read": it misses values, and gets the latest when it has caught up.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, ConnMap, Ctx, Handler, Limits, ListenOptions, Reactor, Remote,
    RemoteError, SendOutcome, Signal, block_signals,
};

const SIGNALS: [Signal; 2] = [Signal::Interrupt, Signal::Terminate];

pub(crate) struct Server {
    /// The line that tells the value of each gauge.
    latest: BTreeMap<&'static str, String>,
    watchers: ConnMap<Watcher>,
    /// How long a client may be silent before it is asked, and then before it is disconnected.
    patience: Duration,
}

/// What must be known of a client in others' callbacks.
#[derive(Default)]
struct Watcher {
    gauge: Option<&'static str>,
    /// It has enough to read for now.
    behind: bool,
}

/// The state of one connection, which its own callbacks are given.
#[derive(Default)]
pub(crate) struct Client {
    /// It owes an answer.
    asked: bool,
}

/// From the sampling thread to the loop: a gauge and the line that tells its value.
pub(crate) type Sample = (&'static str, String);

impl Server {
    pub(crate) fn new(patience: Duration) -> Self {
        let latest = ["load", "uptime"].map(|gauge| (gauge, format!("{gauge} unknown\n"))).into();
        Self { latest, watchers: ConnMap::new(), patience }
    }

    pub(crate) fn obey(&mut self, ctx: &mut Ctx, id: ConnId, command: &str) {
        let Some(watcher) = self.watchers.get_mut(id) else { return };
        let gauge = command.strip_prefix("watch ").and_then(|name| self.latest.get_key_value(name));
        if let Some((name, line)) = gauge {
            watcher.gauge = Some(name);
            tell(ctx, id, watcher, line);
        } else if command != "pong" {
            // An answer, which may wait but not be missed: the loop reads no more commands meanwhile.
            if !ctx.send(id, b"error: say watch load, watch uptime or pong\n").is_accepted() {
                ctx.close_now(id);
            }
        }
    }
}

/// Sends a line to a client that keeps up; one that does not gets a later one.
fn tell(ctx: &mut Ctx, id: ConnId, watcher: &mut Watcher, line: &str) {
    if watcher.behind {
        return;
    }
    match ctx.send(id, line.as_bytes()) {
        SendOutcome::Sent => (),
        // Above the high water mark. `on_drain` comes when it has read enough.
        SendOutcome::Queued => watcher.behind = true,
        // All clients together hold too much, and nobody tells when that is over.
        SendOutcome::OverLimit(_) => ctx.close_now(id),
        // It is closing, and `on_close` comes next.
        SendOutcome::Gone(_) => (),
    }
}

impl Handler for Server {
    type Conn = Client;
    type Message = Sample;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut Client) {
        self.watchers.insert(id, Watcher::default());
        ctx.set_timer(id, self.patience);
    }

    /// Takes every whole line; the start of another stays with the loop, up to `Limits::input` bytes.
    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client, input: &[u8]) -> usize {
        let mut consumed = 0;
        for line in input.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            self.obey(ctx, id, String::from_utf8_lossy(line).trim_end());
            consumed += line.len();
            client.asked = false;
            ctx.set_timer(id, self.patience);
        }
        consumed
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut Client) {
        if let Some(watcher) = self.watchers.get_mut(id) {
            watcher.behind = false;
            if let Some(line) = watcher.gauge.and_then(|gauge| self.latest.get(gauge)) {
                tell(ctx, id, watcher, line);
            }
        }
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client) {
        if client.asked {
            ctx.close_after_flush(id);
        } else if let Some(watcher) = self.watchers.get_mut(id) {
            client.asked = true;
            tell(ctx, id, watcher, "ping\n");
            ctx.set_timer(id, self.patience);
        }
    }

    fn on_message(&mut self, ctx: &mut Ctx, (gauge, line): Sample) {
        if self.latest.get(gauge) != Some(&line) {
            for (id, watcher) in self.watchers.iter_mut().filter(|(_, it)| it.gauge == Some(gauge)) {
                tell(ctx, id, watcher, &line);
            }
            self.latest.insert(gauge, line);
        }
    }

    fn on_close(&mut self, _: &mut Ctx, id: ConnId, _: Client, _: CloseReason, _: &CloseStats) {
        self.watchers.remove(id);
    }
}

/// Samples the gauges every second, until the loop has ended.
fn sample(remote: &Remote<Sample>) {
    loop {
        for (gauge, file) in [("load", "/proc/loadavg"), ("uptime", "/proc/uptime")] {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let value = text.split_whitespace().next().unwrap_or("unknown");
            match remote.send((gauge, format!("{gauge} {value}\n"))) {
                // If there is no room, the loop is busy, and the next sample is fresher than this one.
                Ok(()) | Err(RemoteError::Full(_)) => (),
                Err(RemoteError::Closed(_)) => return,
            }
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Arguments: the address, and how many milliseconds a client may be silent.
fn main() -> io::Result<()> {
    env_logger::init();
    block_signals(&SIGNALS)?;
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let patience = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(30_000);

    let server = Server::new(Duration::from_millis(patience));
    // No command is longer than 128 bytes, and no client wants to read a thousand old values.
    let limits = Limits { input: 128, output_high_water: 8192, output_low_water: 1024, ..Limits::default() };
    let mut reactor = Reactor::new(server, limits)?;
    reactor.drain_on_signals(&SIGNALS)?;
    let (_, bound) = reactor.listen_first(&Address::resolve(&address)?, &ListenOptions::default())?;
    writeln!(io::stdout(), "listening on {bound}")?;
    let remote = reactor.remote();
    std::thread::spawn(move || sample(&remote));
    reactor.run()?;
    Ok(())
}
