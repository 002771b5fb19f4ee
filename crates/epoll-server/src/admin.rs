//! The admin server: what the loops count, whether they are well, and which connections they have, over HTTP, on a thread
//! and a loop of its own. It only reads, so a server that is held up can still be asked why.
//!
//! Not what is in the answers: `admin/exposition.rs` and `admin/connections.rs`.

use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use epoll_protocols::BroadcastMetrics;
use epoll_protocols::http1::{
    FieldLine, Http, HttpConfig, HttpMessage, HttpMetrics, Request, RequestId, Responder, Response, Service,
    allow,
};
use epoll_reactor::{
    Address, Ctx, Kernel, Limits, Linux, ListenOptions, LoopMetrics, LoopPhase, LoopSnapshot, Reactor,
    Remote, RemoteError, Timestamp, monotonic_now,
};

use crate::http::TEXT;
use connections::{Lists, Part};
use exposition::Exposition;
use hosts::Hosts;

mod connections;
mod exposition;
mod hosts;
mod rates;

/// Operators are few, and each answer may be large.
pub(crate) const CONNECTIONS: usize = 64;

/// Room for the metrics of a thousand loops.
const OUTPUT: usize = 16 << 20;

/// How often it is looked whether a loop has taken too long to answer.
const TICK: Duration = Duration::from_millis(250);

/// A turn that takes so long keeps all clients of its loop waiting: something is wrong.
const STUCK: Duration = Duration::from_secs(5);

const PROMETHEUS_TEXT: FieldLine = FieldLine::new("Content-Type: text/plain; version=0.0.4; charset=utf-8");
const NEVER_CACHED: FieldLine = FieldLine::new("Cache-Control: no-store");

/// Where it is to listen, and what the loops' handlers tell it.
pub(crate) struct Admin {
    candidates: Vec<Address>,
    hosts: Arc<Hosts>,
    protocols: Arc<[OnceLock<ProtocolMetrics>]>,
}

/// What one loop's handler counts.
#[derive(Debug)]
pub(crate) enum ProtocolMetrics {
    Broadcast(Arc<BroadcastMetrics>),
    Http(Arc<HttpMetrics>),
}

/// One loop, as seen from here.
pub(crate) struct LoopView {
    metrics: Arc<LoopMetrics>,
    inspect: Inspect,
}

/// [`Remote::inspect`], whatever the messages of the loop.
type Inspect = Box<dyn Fn(Box<dyn FnOnce(&Ctx) + Send>) -> Result<(), RemoteError<()>> + Send + Sync>;

impl LoopView {
    fn new<M: Send + 'static>(remote: &Remote<M>) -> Self {
        let metrics = Arc::clone(remote.metrics());
        let remote = remote.clone();
        Self { metrics, inspect: Box::new(move |inspection| remote.inspect(inspection)) }
    }
}

impl Admin {
    /// `text` stands for `candidates`, and there are so many `loops`. `anywhere`: other machines may reach it, by whatever
    /// name.
    ///
    /// # Errors
    /// Other machines could reach it, and nobody has said that they may.
    pub(crate) fn new(
        text: &str,
        candidates: Vec<Address>,
        loops: usize,
        anywhere: bool,
    ) -> io::Result<Self> {
        if !anywhere && !candidates.iter().all(is_loopback) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("--admin {text}: not a loopback address; --admin-anywhere would allow it"),
            ));
        }
        Ok(Self {
            candidates,
            hosts: Arc::new(Hosts::new(text, anywhere)),
            protocols: (0..loops).map(|_| OnceLock::new()).collect(),
        })
    }

    /// The handler of the loop of that number counts there.
    pub(crate) fn register(&self, index: usize, metrics: ProtocolMetrics) {
        if let Some(place) = self.protocols.get(index) {
            // A second handler of the same loop there is not.
            let _: Result<(), ProtocolMetrics> = place.set(metrics);
        }
    }

    /// Starts it, and returns where it listens. It ends with the process, so that a drain can be watched to its end.
    ///
    /// # Errors
    /// It cannot listen there, or there is no thread or descriptor for it.
    pub(crate) fn start<M: Send + 'static>(&self, remotes: &[Remote<M>]) -> io::Result<Address> {
        let loops = remotes.iter().map(LoopView::new).collect();
        let (candidates, hosts) = (self.candidates.clone(), Arc::clone(&self.hosts));
        let protocols = Arc::clone(&self.protocols);
        let (started, result) = sync_channel(1);
        thread::Builder::new().name("admin".to_owned()).spawn(move || {
            if let Err(error) = run(&candidates, hosts, loops, protocols, &started)
                && let Err(TrySendError::Full(Err(error)) | TrySendError::Disconnected(Err(error))) =
                    started.try_send(Err(error))
            {
                // It has been running, so nobody waits for this.
                log::error!("the admin server has ended: {error}");
            }
        })?;
        let ended = |_| io::Error::other("its thread has ended");
        result
            .recv()
            .map_err(ended)?
            .map_err(|error| io::Error::new(error.kind(), format!("--admin: {error}")))
    }
}

fn is_loopback(address: &Address) -> bool {
    match address {
        Address::Tcp(address) => match address.ip() {
            IpAddr::V4(address) => address.is_loopback(),
            IpAddr::V6(address) => address.to_canonical().is_loopback(),
        },
        Address::Unix(_) | Address::UnixUnnamed => true,
    }
}

fn run(
    candidates: &[Address],
    hosts: Arc<Hosts>,
    loops: Vec<LoopView>,
    protocols: Arc<[OnceLock<ProtocolMetrics>]>,
    started: &SyncSender<io::Result<Address>>,
) -> io::Result<()> {
    let mut config = HttpConfig { keep_alive_timeout: Duration::from_secs(120), ..HttpConfig::default() };
    config.limits.body = 0;
    let limits = config.limits(Limits {
        connections: CONNECTIONS,
        output: OUTPUT,
        memory: 4 * OUTPUT,
        tick: Some(TICK),
        ..Limits::default()
    });
    let kernel = Linux::new()?;
    let remote = Remote::for_kernel(&kernel, &limits)?;
    let site = Site::new(hosts, loops.into(), protocols, remote.clone());
    let mut reactor = Reactor::with_remote(kernel, Http::new(site, config), limits, remote)?;
    let (_, bound) = reactor.listen_first(candidates, &ListenOptions::default())?;
    // It has been waited for by whoever started this.
    let _: Result<(), _> = started.try_send(Ok(bound));
    reactor.run().map(|_| ())
}

/// The answers.
struct Site<K: Kernel = Linux> {
    hosts: Arc<Hosts>,
    loops: Arc<[LoopView]>,
    exposition: Exposition,
    lists: Lists<K>,
}

impl Site {
    fn new(
        hosts: Arc<Hosts>,
        loops: Arc<[LoopView]>,
        protocols: Arc<[OnceLock<ProtocolMetrics>]>,
        remote: Remote<HttpMessage<Part>>,
    ) -> Self {
        let metrics = loops.iter().map(|one| Arc::clone(&one.metrics)).collect();
        Self {
            hosts,
            exposition: Exposition::new(metrics, protocols),
            lists: Lists::new(Arc::clone(&loops), remote),
            loops,
        }
    }

    fn readings(&self) -> Vec<LoopSnapshot> {
        self.loops.iter().map(|one| one.metrics.read()).collect()
    }
}

/// What is wrong, if anything is.
fn trouble(readings: &[LoopSnapshot], now: Timestamp) -> Option<String> {
    // One that has drained leaves no other that does not drain.
    let serving =
        readings.iter().any(|reading| matches!(reading.phase, LoopPhase::Starting | LoopPhase::Running));
    readings.iter().enumerate().find_map(|(index, reading)| match reading.phase {
        LoopPhase::Ended => serving.then(|| format!("loop {index} has died")),
        LoopPhase::Starting | LoopPhase::Running | LoopPhase::Draining => {
            let busy = reading.in_turn_for(now);
            (busy >= STUCK).then(|| format!("loop {index} has been in one turn for {} s", busy.as_secs()))
        }
    })
}

/// Why new clients had better go elsewhere, if they had.
fn unready(readings: &[LoopSnapshot]) -> Option<&'static str> {
    let mut phases = readings.iter().map(|reading| reading.phase);
    if phases.clone().any(|phase| phase == LoopPhase::Draining)
        || phases.clone().all(|phase| phase == LoopPhase::Ended)
    {
        Some("draining")
    } else {
        phases.any(|phase| phase == LoopPhase::Starting).then_some("starting")
    }
}

const INDEX: &[u8] = b"/metrics       what the loops count, for Prometheus\n\
    /healthz       200, or 503 if a loop is stuck or has died\n\
    /readyz        200, or 503 while the server starts or drains\n\
    /connections   in JSON; ?sort=age, traffic, rate, queued or held, and &limit= up to 1000\n";

impl Service for Site {
    type Message = Part;

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        if !self.hosts.answer_to(request.host()) {
            return say(response, 421, "not the name of this server");
        }
        let path = request.path();
        if !matches!(path, "/" | "/metrics" | "/healthz" | "/readyz" | "/connections") {
            return say(response, 404, "not found");
        }
        if !matches!(request.method(), "GET" | "HEAD") {
            return allow(&["GET"], request.method(), response);
        }
        match path {
            "/metrics" => {
                response.field_line(PROMETHEUS_TEXT);
                response.field_line(NEVER_CACHED);
                response.set_body(self.exposition.text().as_bytes());
            }
            "/healthz" => match trouble(&self.readings(), monotonic_now()) {
                None => say(response, 200, "ok"),
                Some(trouble) => say(response, 503, &trouble),
            },
            "/readyz" => match unready(&self.readings()) {
                None => say(response, 200, "ok"),
                Some(why) => say(response, 503, why),
            },
            "/connections" => self.lists.answer(request, response),
            _ => {
                response.field_line(TEXT);
                response.set_static_body(INDEX);
            }
        }
    }

    fn on_end(&mut self, id: RequestId, _: bool) {
        self.lists.forget(id);
    }

    fn on_message(&mut self, part: Part, responder: &mut Responder<'_>) {
        self.lists.on_part(part, responder);
    }

    fn on_tick(&mut self, responder: &mut Responder<'_>) {
        self.lists.on_tick(responder);
    }
}

/// One line of text.
fn say(response: &mut Response, status: u16, text: &str) {
    response.set_status(status);
    response.field_line(TEXT);
    response.field_line(NEVER_CACHED);
    response.set_body(format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Mutex;
    use std::time::Instant;

    use epoll_protocols::Echo;
    use epoll_reactor::{Worker, Workers};

    use super::*;

    #[test]
    fn only_loopback_addresses_are_taken_unless_all_are_allowed() {
        for (text, allowed) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
        ] {
            let candidates = vec![Address::Tcp(text.parse().unwrap())];
            let result = Admin::new(text, candidates.clone(), 1, false);
            assert_eq!(result.is_ok(), allowed, "{text}");
            assert!(Admin::new(text, candidates, 1, true).is_ok(), "{text}");
        }
        let mixed = ["127.0.0.1:1", "192.0.2.1:1"].map(|text| Address::Tcp(text.parse().unwrap()));
        assert!(Admin::new("name:1", mixed.to_vec(), 1, false).is_err(), "any of them may be used");
    }

    fn reading(phase: LoopPhase, in_turn_since: Option<u64>) -> LoopSnapshot {
        let mut reading = LoopSnapshot::default();
        reading.phase = phase;
        reading.in_turn_since = in_turn_since.map(Timestamp::from_nanoseconds);
        reading
    }

    #[test]
    fn a_loop_that_is_stuck_or_has_died_is_trouble_and_a_start_or_a_drain_is_not() {
        use LoopPhase::{Draining, Ended, Running, Starting};
        let now = Timestamp::from_nanoseconds(9_000_000_000);
        let check = |phases: &[(LoopPhase, Option<u64>)]| {
            let readings: Vec<_> = phases.iter().map(|(phase, since)| reading(*phase, *since)).collect();
            (trouble(&readings, now), unready(&readings))
        };
        let trouble = |text: &str| Some(text.to_owned());
        assert_eq!(check(&[(Running, None), (Running, Some(4_000_000_001))]), (None, None));
        let stuck = trouble("loop 1 has been in one turn for 5 s");
        assert_eq!(check(&[(Running, None), (Running, Some(4_000_000_000))]), (stuck, None));
        assert_eq!(check(&[(Ended, None), (Running, None)]), (trouble("loop 0 has died"), None));
        assert_eq!(check(&[(Running, None), (Starting, None)]), (None, Some("starting")));
        for drains in [[Ended, Draining], [Running, Draining], [Starting, Draining], [Ended, Ended]] {
            assert_eq!(check(&drains.map(|phase| (phase, None))), (None, Some("draining")), "{drains:?}");
        }
    }

    #[test]
    fn a_server_is_ready_when_all_of_its_loops_run() {
        let workers = Workers::new(NonZeroUsize::new(2).unwrap(), Limits::default()).unwrap();
        let remotes = workers.remotes().clone();
        let readings = || remotes.iter().map(|remote| remote.metrics().read()).collect::<Vec<_>>();
        assert_eq!(unready(&readings()), Some("starting"), "none runs");
        let (go_on, may_start) = sync_channel::<()>(0);
        let may_start = Mutex::new(may_start);
        let factory = |worker: &Worker<()>| {
            if worker.index() == 1 {
                may_start.lock().unwrap().recv().map_err(io::Error::other)?;
            }
            Ok(Echo)
        };
        let comes = |seen: &dyn Fn() -> bool| {
            let end = Instant::now() + Duration::from_secs(20);
            while !seen() && Instant::now() < end {
                thread::yield_now();
            }
            seen()
        };
        // No panic in there: it would wait for loops that nobody ends.
        let (one_runs, then, both_run, end) = thread::scope(|scope| {
            let run = scope.spawn(|| workers.run(factory, |_| ()));
            let one_runs = comes(&|| readings()[0].phase == LoopPhase::Running);
            let then = unready(&readings());
            let sent = go_on.send(()).is_ok();
            let both_run = sent && comes(&|| unready(&readings()).is_none());
            remotes.iter().for_each(Remote::drain);
            (one_runs, then, both_run, run.join().unwrap())
        });
        assert!(one_runs && both_run);
        assert_eq!(then, Some("starting"), "the second does not run");
        assert_eq!(end.unwrap().died, 0);
        assert_eq!(unready(&readings()), Some("draining"));
    }
}
