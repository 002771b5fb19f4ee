//! `/metrics`: what the loops and their handlers count, in the Prometheus text format. Names and help are here; the
//! format is the library's.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use epoll_protocols::BroadcastSnapshot;
use epoll_protocols::http1::HttpSnapshot;
use epoll_reactor::{Counters, HistogramSnapshot, LoopMetrics, LoopPhase, LoopSnapshot, monotonic_now};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::ProtocolMetrics;

/// What is read when somebody asks.
pub(super) struct Exposition(Registry);

impl Exposition {
    pub(super) fn new(loops: Vec<Arc<LoopMetrics>>, protocols: Arc<[OnceLock<ProtocolMetrics>]>) -> Self {
        let mut registry = Registry::with_prefix("epoll");
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        registry.register_collector(Box::new(Readings { loops, protocols, started }));
        Self(registry)
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // A string takes whatever is written to it.
        let _: fmt::Result = prometheus_text::encode(&mut text, &self.0);
        text
    }
}

#[derive(Debug)]
struct Readings {
    loops: Vec<Arc<LoopMetrics>>,
    protocols: Arc<[OnceLock<ProtocolMetrics>]>,
    /// Seconds since 1970.
    started: f64,
}

/// A counter of one loop: its name without `epoll_` and `_total`, its help, and where it is.
type LoopCounter = (&'static str, &'static str, fn(&Counters) -> u64);

const COUNTERS: [LoopCounter; 21] = [
    ("turns", "Turns of the loop", |counters| counters.turns),
    ("events", "Events the kernel delivered", |counters| counters.events),
    ("stale_events", "Events for what was closed before they were looked at", |counters| {
        counters.stale_events
    }),
    ("connections_accepted", "Connections accepted and opened", |counters| counters.accepted),
    ("connections_made", "Outbound connections made", |counters| counters.connected),
    ("connections_shed", "Clients accepted only to be closed, for want of room or time", |counters| {
        counters.shed
    }),
    (
        "connections_shed_by_address",
        "Those of them whose address had as many connections as it may have",
        |counters| counters.shed_by_address,
    ),
    (
        "connections_shed_by_overload",
        "Those of them that were turned away since the loop was overloaded",
        |counters| counters.shed_by_overload,
    ),
    ("overloads", "Times the loop was found to be overloaded", |counters| counters.overloads),
    ("work_shed", "Requests of open connections that an overloaded loop did not serve", |counters| {
        counters.shed_work
    }),
    ("connections_handed_over", "Clients accepted and handed to another loop, by --balance", |counters| {
        counters.handed_over
    }),
    ("connections_taken_over", "Clients that other loops have handed over or moved", |counters| {
        counters.taken_over
    }),
    (
        "connections_moved",
        "Connections that were open and were moved to another loop, by --balance",
        |counters| counters.moved,
    ),
    ("connections_cut_off", "Connections closed by the end of a drain", |counters| counters.cut_off),
    ("accept_pauses", "Times a listener paused for want of descriptors or kernel memory", |counters| {
        counters.accept_pauses
    }),
    ("received_bytes", "Bytes read from all connections", |counters| counters.bytes_received),
    ("sent_bytes", "Bytes the kernel took from all connections", |counters| counters.bytes_sent),
    ("sends_refused", "Sends refused because too much waited already", |counters| counters.sends_refused),
    ("loop_messages", "Messages from other threads handed over", |counters| counters.messages),
    ("timers_fired", "Deadlines that had come when they were looked at", |counters| counters.timers_fired),
    ("handler_panics", "Callbacks that panicked", |counters| counters.panics),
];

/// Writes families, of which each row begins with the label of its loop.
struct Writer<'a, 'e> {
    encoder: &'a mut DescriptorEncoder<'e>,
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let loops: Vec<(String, LoopSnapshot)> =
            self.loops.iter().enumerate().map(|(index, one)| (index.to_string(), one.read())).collect();
        let mut writer = Writer { encoder: &mut encoder };
        writer.process(self.started)?;
        writer.loops(&loops)?;
        let (mut broadcast, mut http) = (Vec::new(), Vec::new());
        for (index, protocol) in self.protocols.iter().enumerate() {
            match protocol.get() {
                Some(ProtocolMetrics::Broadcast(metrics)) => {
                    broadcast.push((index.to_string(), metrics.read()));
                }
                Some(ProtocolMetrics::Http(metrics)) => http.push((index.to_string(), metrics.read())),
                None => (),
            }
        }
        writer.http(&http)?;
        writer.broadcast(&broadcast)
    }
}

/// What of one loop goes into a family.
type Rows<T> = [(String, T)];

impl Writer<'_, '_> {
    fn process(&mut self, started: f64) -> fmt::Result {
        let mut family = self.gauge("build_info", "The version of the server")?;
        family.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?.encode_gauge(&1_u64)?;
        self.gauge("start_time_seconds", "When the server was started, since 1970")?.encode_gauge(&started)
    }

    fn loops(&mut self, loops: &Rows<LoopSnapshot>) -> fmt::Result {
        let states = |reading: &LoopSnapshot| {
            reading.connections().map(|(state, count)| (state.name(), count)).collect::<Vec<_>>()
        };
        self.labelled(
            MetricType::Gauge,
            "connections",
            "Connections by their state",
            "state",
            loops,
            states,
        )?;
        let reasons = |reading: &LoopSnapshot| reading.closes().collect::<Vec<_>>();
        let help = "Connections closed, by the reason";
        self.labelled(MetricType::Counter, "connections_closed", help, "reason", loops, reasons)?;
        for (name, help, get) in COUNTERS {
            self.counter(name, help, loops, |reading| get(&reading.counters))?;
        }
        let help = "Input and output held in memory for all connections at the end of the last turn";
        self.each(MetricType::Gauge, "buffered_bytes", help, loops, |reading| reading.buffered)?;
        let help = "Whether the loop is overloaded, and sheds what has waited for longer than --lag-target";
        let overloaded = |reading: &LoopSnapshot| u64::from(reading.is_overloaded);
        self.each(MetricType::Gauge, "overloaded", help, loops, overloaded)?;
        let help = "Whether the loop drains";
        let draining = |reading: &LoopSnapshot| u64::from(reading.phase == LoopPhase::Draining);
        self.each(MetricType::Gauge, "draining", help, loops, draining)?;
        let up = |reading: &LoopSnapshot| u64::from(reading.phase != LoopPhase::Ended);
        self.each(MetricType::Gauge, "loop_up", "Whether the loop has not ended", loops, up)?;
        let now = monotonic_now();
        let help = "How long the turn that is running has taken so far";
        self.seconds("in_turn_seconds", help, loops, |reading| reading.in_turn_for(now).as_secs_f64())?;
        let help = "How long turns took, without their wait";
        self.histogram("turn_duration_seconds", help, loops, |reading| &reading.turn_duration)?;
        let help = "How long what the kernel reported may have waited for the turn before to end; 0 if the loop was waiting for it";
        self.histogram("poll_lag_seconds", help, loops, |reading| &reading.poll_lag)?;
        let help = "How late the loop noticed that a time had come, which it does each second at least: up to 1 ms is rounding, \
                    more a long turn, or a loop that had no CPU, which poll lag does not show";
        self.histogram("timer_lag_seconds", help, loops, |reading| &reading.timer_lag)?;
        let longest = |reading: &LoopSnapshot| reading.turn_duration.longest.as_secs_f64();
        self.seconds("turn_longest_seconds", "The longest turn since the start", loops, longest)?;
        let longest = |reading: &LoopSnapshot| reading.poll_lag.longest.as_secs_f64();
        self.seconds("poll_lag_longest_seconds", "The longest poll lag since the start", loops, longest)?;
        let longest = |reading: &LoopSnapshot| reading.timer_lag.longest.as_secs_f64();
        self.seconds("timer_lag_longest_seconds", "The longest timer lag since the start", loops, longest)
    }

    fn http(&mut self, loops: &Rows<HttpSnapshot>) -> fmt::Result {
        if loops.is_empty() {
            return Ok(());
        }
        let classes = |reading: &HttpSnapshot| reading.answers().collect::<Vec<_>>();
        let help = "Requests answered, by the class of the status";
        self.labelled(MetricType::Counter, "http_requests", help, "status", loops, classes)?;
        let help = "Requests refused before they reached the service; they are among the answered ones";
        self.counter("http_rejections", help, loops, |reading| reading.rejections)?;
        let help = "Requests answered 503 by an overloaded loop; they are among the answered ones";
        self.counter("http_shed", help, loops, |reading| reading.shed)
    }

    fn broadcast(&mut self, loops: &Rows<BroadcastSnapshot>) -> fmt::Result {
        if loops.is_empty() {
            return Ok(());
        }
        self.counter("broadcast_lines", "Lines sent to all others", loops, |reading| reading.lines)?;
        let help = "Lines given to the loop for a receiver, each receiver counted";
        self.counter("broadcast_deliveries", help, loops, |reading| reading.deliveries)?;
        let help = "Lines that a receiver missed since it read too slowly, each receiver counted";
        self.counter("broadcast_skipped", help, loops, |reading| reading.skipped)?;
        let help = "Receivers disconnected since they read too slowly";
        self.counter("broadcast_disconnected", help, loops, |reading| reading.disconnected)?;
        let help = "Clients disconnected since a line of theirs was too long";
        self.counter("broadcast_too_long", help, loops, |reading| reading.too_long)?;
        let help = "Receivers that have missed lines and have not been told of it yet";
        self.each(MetricType::Gauge, "broadcast_lagging", help, loops, |reading| reading.lagging)
    }

    fn gauge<'s>(&'s mut self, name: &'s str, help: &str) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)
    }

    fn counter<T>(
        &mut self,
        name: &str,
        help: &str,
        loops: &Rows<T>,
        get: impl Fn(&T) -> u64,
    ) -> fmt::Result {
        self.each(MetricType::Counter, name, help, loops, get)
    }

    fn each<T>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        loops: &Rows<T>,
        get: impl Fn(&T) -> u64,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (index, reading) in loops {
            write(kind, family.encode_family(&[("loop", index.as_str())])?, get(reading))?;
        }
        Ok(())
    }

    fn labelled<T>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        label: &str,
        loops: &Rows<T>,
        rows: impl Fn(&T) -> Vec<(&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (index, reading) in loops {
            for (value, count) in rows(reading) {
                write(kind, family.encode_family(&[("loop", index.as_str()), (label, value)])?, count)?;
            }
        }
        Ok(())
    }

    fn seconds<T>(
        &mut self,
        name: &str,
        help: &str,
        loops: &Rows<T>,
        get: impl Fn(&T) -> f64,
    ) -> fmt::Result {
        let mut family = self.gauge(name, help)?;
        for (index, reading) in loops {
            family.encode_family(&[("loop", index.as_str())])?.encode_gauge(&get(reading))?;
        }
        Ok(())
    }

    fn histogram<T>(
        &mut self,
        name: &str,
        help: &str,
        loops: &Rows<T>,
        get: impl Fn(&T) -> &HistogramSnapshot,
    ) -> fmt::Result {
        const NONE: Option<&HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (index, reading) in loops {
            let histogram = get(reading);
            let bound = |bound: Option<Duration>| bound.map_or(f64::INFINITY, |bound| bound.as_secs_f64());
            let buckets: Vec<_> = histogram.buckets().map(|(upper, count)| (bound(upper), count)).collect();
            // Of the buckets just read, so that the count and the last of them never differ.
            let count = buckets.iter().map(|(_, count)| count).sum();
            let labels = [("loop", index.as_str())];
            let mut row = family.encode_family(&labels)?;
            row.encode_histogram(histogram.sum.as_secs_f64(), count, &buckets, NONE)?;
        }
        Ok(())
    }
}

fn write(kind: MetricType, mut row: MetricEncoder<'_>, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => row.encode_counter::<NoLabelSet, _, u64>(&value, None),
        _ => row.encode_gauge(&value),
    }
}
