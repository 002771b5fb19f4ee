//! What is shown: from two samples and what came before to one frame. It knows no terminal and no server.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row as TableRow, Sparkline, Table};

use super::metrics::Metrics;
use super::sample::{Row, Sample};

/// Seconds that the sparklines go back at most: the widest terminal.
const HISTORY: usize = 512;

/// Everything that is shown.
pub(super) struct View {
    address: String,
    before: Option<Sample>,
    now: Option<Sample>,
    /// Newest first, as sparklines have it from the right.
    history: VecDeque<Rates>,
    /// Why there is nothing newer.
    trouble: Option<String>,
}

/// A second.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    work: f64,
    received: f64,
    sent: f64,
    accepted: f64,
    connections: f64,
}

impl View {
    pub(super) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), before: None, now: None, history: VecDeque::new(), trouble: None }
    }

    /// The server has told something, or cannot be asked: then what it told last stays.
    pub(super) fn update(&mut self, sample: io::Result<Sample>) {
        match sample {
            Ok(sample) => {
                self.trouble = None;
                self.before = self.now.take();
                if let Some(before) = &self.before {
                    self.history.push_front(Rates::between(before, &sample));
                    self.history.truncate(HISTORY);
                }
                self.now = Some(sample);
            }
            Err(error) => self.trouble = Some(error.to_string()),
        }
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let Some(now) = &self.now else { return };
        let loops = now.metrics.by("epoll_loop_up", "loop");
        let rows = u16::try_from(loops.len()).unwrap_or(u16::MAX).saturating_add(2);
        let heights = [
            Constraint::Length(2),
            Constraint::Length(3),
            Constraint::Length(6),
            Constraint::Max(rows.min(18)),
            Constraint::Min(4),
        ];
        let [title, totals, sparklines, loop_table, lists] = Layout::vertical(heights).areas(frame.area());
        self.draw_title(frame, title, &now.metrics);
        self.draw_totals(frame, totals, &now.metrics);
        self.draw_sparklines(frame, sparklines, &now.metrics);
        self.draw_loops(frame, loop_table, now, &loops);
        Self::draw_lists(frame, lists, now);
    }

    fn draw_title(&self, frame: &mut Frame<'_>, area: Rect, metrics: &Metrics) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let title = Line::styled(format!("epoll-server top - {} - q ends", self.address), bold);
        let draining = metrics.sum("epoll_draining", &[]) > 0.0;
        let overloaded = metrics.sum("epoll_overloaded", &[]);
        let state = match (&self.trouble, draining) {
            (Some(error), _) => {
                Line::styled(format!("the server does not answer, still trying: {error}"), Color::Red)
            }
            (None, true) => Line::styled("draining", Color::Yellow),
            (None, false) if overloaded > 0.0 => {
                let loops = count(metrics.sum("epoll_loop_up", &[]));
                Line::styled(format!("overloaded: {} of {loops} loops", count(overloaded)), Color::Red)
            }
            (None, false) => Line::styled("running", Color::Green),
        };
        frame.render_widget(Paragraph::new(vec![title, state]), area);
    }

    fn draw_totals(&self, frame: &mut Frame<'_>, area: Rect, metrics: &Metrics) {
        let total = |name| count(metrics.sum(name, &[]));
        let rates = self.history.front().copied().unwrap_or_default();
        let (work, family) = work(metrics);
        let classes = metrics.by("epoll_http_requests_total", "status");
        let mut kinds: Vec<String> =
            classes.iter().map(|(class, number)| format!("{class} {}", count(*number))).collect();
        if metrics.sum("epoll_work_shed_total", &[]) > 0.0 {
            kinds.push(format!("shed {}", total("epoll_work_shed_total")));
        }
        if metrics.has("epoll_broadcast_lines_total") {
            kinds.push(format!("deliveries {}", total("epoll_broadcast_deliveries_total")));
            kinds.push(format!("skipped {}", total("epoll_broadcast_skipped_total")));
            kinds.push(format!("lagging {}", total("epoll_broadcast_lagging")));
        }
        let lines = vec![
            Line::raw(format!(
                "connections {}   accepted {} ({}/s)   shed {}   closed {}   panics {}",
                count(rates_connections(metrics)),
                total("epoll_connections_accepted_total"),
                count(rates.accepted),
                total("epoll_connections_shed_total"),
                total("epoll_connections_closed_total"),
                total("epoll_handler_panics_total"),
            )),
            Line::raw(format!("{work} {} ({}/s)   {}", total(family), count(rates.work), kinds.join("   "))),
            Line::raw(format!(
                "in {} ({}/s)   out {} ({}/s)   held {}",
                bytes(metrics.sum("epoll_received_bytes_total", &[])),
                bytes(rates.received),
                bytes(metrics.sum("epoll_sent_bytes_total", &[])),
                bytes(rates.sent),
                bytes(metrics.sum("epoll_buffered_bytes", &[])),
            )),
        ];
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn draw_sparklines(&self, frame: &mut Frame<'_>, area: Rect, metrics: &Metrics) {
        let [first, second, third] = Layout::horizontal([Constraint::Fill(1); 3]).areas(area);
        let (work, _) = work(metrics);
        let rates = self.history.front().copied().unwrap_or_default();
        let traffic = |rates: &Rates| rates.received + rates.sent;
        self.draw_sparkline(frame, first, format!("{work}/s {}", count(rates.work)), |rates| rates.work);
        self.draw_sparkline(frame, second, format!("bytes/s {}", bytes(traffic(&rates))), traffic);
        let title = format!("connections {}", count(rates_connections(metrics)));
        self.draw_sparkline(frame, third, title, |rates| rates.connections);
    }

    fn draw_sparkline(&self, frame: &mut Frame<'_>, area: Rect, title: String, get: impl Fn(&Rates) -> f64) {
        let block = Block::bordered().title(title);
        let width = usize::from(block.inner(area).width);
        // The newest is at the right edge.
        let mut data: Vec<u64> = self.history.iter().take(width).map(|rates| whole(get(rates))).collect();
        data.resize(width, 0);
        data.reverse();
        frame.render_widget(Sparkline::default().block(block).data(data), area);
    }

    fn draw_loops(&self, frame: &mut Frame<'_>, area: Rect, now: &Sample, loops: &[(String, f64)]) {
        let before = self.before.as_ref().map(|before| &before.metrics);
        let rows = loops.iter().map(|(index, up)| {
            let labels = [("loop", index.as_str())];
            let sum = |name| now.metrics.sum(name, &labels);
            let (turn, lag) = ("epoll_turn_duration_seconds", "epoll_poll_lag_seconds");
            let (longest_turn, longest_lag) =
                (sum("epoll_turn_longest_seconds"), sum("epoll_poll_lag_longest_seconds"));
            // A quantile is rounded up to a bound of the histogram, which may lie above all that came, or be none.
            let quantile = |name, part, longest| {
                let time = now.metrics.quantile(before, name, &labels, part);
                time.map_or("-".to_owned(), |time| seconds(time.min(longest)))
            };
            TableRow::new([
                if *up > 0.0 { index.clone() } else { format!("{index} (ended)") },
                count(now.metrics.sum("epoll_connections", &labels)),
                quantile(turn, 0.5, longest_turn),
                quantile(turn, 0.99, longest_turn),
                seconds(longest_turn),
                quantile(lag, 0.99, longest_lag),
                seconds(longest_lag),
                seconds(sum("epoll_timer_lag_longest_seconds")),
                seconds(sum("epoll_in_turn_seconds")),
            ])
        });
        let names =
            ["loop", "connections", "turn p50", "p99", "max", "lag p99", "max", "late max", "in turn for"];
        let header = TableRow::new(names).style(Modifier::REVERSED);
        frame.render_widget(Table::new(rows, [Constraint::Fill(1); 9]).header(header), area);
    }

    fn draw_lists(frame: &mut Frame<'_>, area: Rect, now: &Sample) {
        let lists = match &now.lists {
            Ok(lists) => lists,
            Err(error) => {
                return frame
                    .render_widget(Paragraph::new(format!("no connections are listed: {error}")), area);
            }
        };
        let [busiest, lagging] = Layout::horizontal([Constraint::Fill(1); 2]).areas(area);
        let rows = lists.by_rate.iter().map(|row| (row, format!("{}/s", size(row.bytes_per_second))));
        let rows = rows.collect();
        draw_list(frame, busiest, "busiest", "bytes", rows);
        let rows = lists.by_queue.iter().filter(|row| row.queued > 0);
        draw_list(
            frame,
            lagging,
            "most lagging",
            "queued",
            rows.map(|row| (row, size(row.queued))).collect(),
        );
    }
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, title: &str, value: &str, rows: Vec<(&Row, String)>) {
    let rows = rows.into_iter().map(|(row, value)| {
        let age = humantime::format_duration(Duration::from_secs(whole(row.age_seconds))).to_string();
        TableRow::new([value, row.peer.clone(), row.index.to_string(), age])
    });
    let widths = [Constraint::Length(13), Constraint::Fill(1), Constraint::Length(5), Constraint::Length(12)];
    let header = TableRow::new([value, "peer", "loop", "age"]).style(Modifier::REVERSED);
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(title)), area);
}

impl Rates {
    fn between(before: &Sample, now: &Sample) -> Self {
        let elapsed = (now.at - before.at).as_secs_f64();
        let rate = |name| {
            let came = now.metrics.sum(name, &[]) - before.metrics.sum(name, &[]);
            if elapsed > 0.0 { came / elapsed } else { 0.0 }
        };
        Self {
            work: rate(work(&now.metrics).1),
            received: rate("epoll_received_bytes_total"),
            sent: rate("epoll_sent_bytes_total"),
            accepted: rate("epoll_connections_accepted_total"),
            connections: rates_connections(&now.metrics),
        }
    }
}

/// What the server does for its clients, by its protocol: echo has nothing to count but what the kernel reports.
fn work(metrics: &Metrics) -> (&'static str, &'static str) {
    let kinds = [("requests", "epoll_http_requests_total"), ("lines", "epoll_broadcast_lines_total")];
    kinds.into_iter().find(|(_, family)| metrics.has(family)).unwrap_or(("events", "epoll_events_total"))
}

fn rates_connections(metrics: &Metrics) -> f64 {
    metrics.sum("epoll_connections", &[])
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it saturates: a rate below zero, of a server started anew, is shown as 0"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

fn count(number: f64) -> String {
    whole(number).to_string()
}

fn bytes(number: f64) -> String {
    size(whole(number))
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

/// With three digits or so.
fn seconds(time: f64) -> String {
    match time {
        time if time < 0.001 => format!("{:.0} µs", time * 1e6),
        time if time < 1.0 => format!("{:.1} ms", time * 1e3),
        time => format!("{time:.1} s"),
    }
}

#[cfg(test)]
mod tests;
