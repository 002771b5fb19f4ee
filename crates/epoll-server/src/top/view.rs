//! What is shown: from two samples and what came before to one frame. It knows no terminal and no server.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row as TableRow, Sparkline, Table};

use super::metrics::Metrics;
use super::sample::{Row, Sample};

/// Seconds that the sparklines go back at most: the widest terminal.
const HISTORY: usize = 512;

/// Longer than it takes from one answer to the next where a loop is held up: a second, and then two for the lists.
const SILENCE: Duration = Duration::from_secs(4);

/// A turn that takes so long has the loop's clients waiting for everybody to see.
const HELD_UP: f64 = 1.0;

/// Everything that is shown.
pub(super) struct View {
    address: String,
    before: Option<Sample>,
    now: Option<Sample>,
    /// Newest first, as sparklines have it from the right.
    history: VecDeque<Rates>,
    /// When it came.
    heard: Option<Instant>,
    /// Why there is nothing newer, in words if there are any.
    trouble: Option<Option<String>>,
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
        Self {
            address: address.to_owned(),
            before: None,
            now: None,
            history: VecDeque::new(),
            heard: None,
            trouble: None,
        }
    }

    /// The server has told something, at the time `now`, or cannot be asked: then what it told last stays.
    pub(super) fn update(&mut self, sample: io::Result<Sample>, now: Instant) {
        match sample {
            Ok(sample) => {
                self.trouble = None;
                self.heard = Some(now);
                self.before = self.now.take();
                if let Some(before) = &self.before {
                    self.history.push_front(Rates::between(before, &sample));
                    self.history.truncate(HISTORY);
                }
                self.now = Some(sample);
            }
            // That there was no answer is said in any case.
            Err(error) => {
                self.trouble = Some((error.kind() != io::ErrorKind::TimedOut).then(|| error.to_string()));
            }
        }
    }

    /// For how long there has been no answer by `now`, if that is so.
    fn silent_for(&self, now: Instant) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.heard?);
        (self.trouble.is_some() || silent >= SILENCE).then_some(silent)
    }

    /// At the time `at`.
    pub(super) fn draw(&self, frame: &mut Frame<'_>, at: Instant) {
        let Some(now) = &self.now else { return };
        let silent = self.silent_for(at);
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
        // There are none now if nobody tells of any.
        let rates = if silent.is_none() { self.history.front().copied() } else { None };
        self.draw_title(frame, title, &now.metrics, silent);
        draw_totals(frame, totals, &now.metrics, rates);
        self.draw_sparklines(frame, sparklines, &now.metrics, rates);
        self.draw_loops(frame, loop_table, now, &loops);
        draw_lists(frame, lists, now, silent.is_none());
        if silent.is_some() {
            let below =
                Rect { y: totals.y, height: frame.area().height.saturating_sub(totals.y), ..frame.area() };
            frame.buffer_mut().set_style(below, Modifier::DIM);
        }
    }

    fn draw_title(&self, frame: &mut Frame<'_>, area: Rect, metrics: &Metrics, silent: Option<Duration>) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let title = Line::styled(format!("epoll-server top - {} - q ends", self.address), bold);
        let draining = metrics.sum("epoll_draining", &[]) > 0.0;
        let overloaded = metrics.sum("epoll_overloaded", &[]);
        let state = match (silent, held_up(metrics)) {
            (Some(time), _) => {
                let seconds = time.as_secs();
                let why =
                    self.trouble.iter().flatten().map(|error| format!(" ({error})")).collect::<String>();
                let text =
                    format!("no answer for {seconds} s, still trying; below is what it told last{why}");
                Line::styled(text, Color::Red)
            }
            (None, Some(text)) => Line::styled(text, Color::Red),
            (None, None) if draining => Line::styled("draining", Color::Yellow),
            (None, None) if overloaded > 0.0 => {
                let loops = count(metrics.sum("epoll_loop_up", &[]));
                Line::styled(format!("overloaded: {} of {loops} loops", count(overloaded)), Color::Red)
            }
            (None, None) => Line::styled("running", Color::Green),
        };
        frame.render_widget(Paragraph::new(vec![title, state]), area);
    }

    fn draw_sparklines(&self, frame: &mut Frame<'_>, area: Rect, metrics: &Metrics, rates: Option<Rates>) {
        let [first, second, third] = Layout::horizontal([Constraint::Fill(1); 3]).areas(area);
        let (work, _) = work(metrics);
        let traffic = |rates: &Rates| rates.received + rates.sent;
        let title = format!("{work} {}", rate(rates.map(|it| it.work), count));
        self.draw_sparkline(frame, first, title, |rates| rates.work);
        self.draw_sparkline(
            frame,
            second,
            format!("bytes {}", rate(rates.as_ref().map(traffic), bytes)),
            traffic,
        );
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
                index.clone(),
                count(now.metrics.sum("epoll_connections", &labels)),
                quantile(turn, 0.5, longest_turn),
                quantile(turn, 0.99, longest_turn),
                seconds(longest_turn),
                quantile(lag, 0.99, longest_lag),
                seconds(longest_lag),
                seconds(sum("epoll_timer_lag_longest_seconds")),
                if *up > 0.0 { seconds(sum("epoll_in_turn_seconds")) } else { "ended".to_owned() },
            ])
        });
        let names = ["loop", "open", "turn p50", "p99", "max", "lag p99", "max", "late max", "busy for"];
        let header = TableRow::new(names).style(Modifier::REVERSED);
        frame.render_widget(Table::new(rows, [Constraint::Fill(1); 9]).header(header), area);
    }
}

/// Which loop's clients have been waiting for long, of the one that it is worst for.
fn held_up(metrics: &Metrics) -> Option<String> {
    let times = metrics.by("epoll_in_turn_seconds", "loop");
    let held_up = times.iter().filter(|(_, time)| *time >= HELD_UP);
    let (index, time) = held_up.clone().max_by(|(_, one), (_, other)| one.total_cmp(other))?;
    let others = match held_up.count() - 1 {
        0 => String::new(),
        count => format!(", and {count} more"),
    };
    Some(format!("loop {index} held up for {} s{others}", time.trunc()))
}

fn draw_totals(frame: &mut Frame<'_>, area: Rect, metrics: &Metrics, rates: Option<Rates>) {
    let total = |name| count(metrics.sum(name, &[]));
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
            "connections {}   accepted {} ({})   shed {}   closed {}   panics {}",
            count(rates_connections(metrics)),
            total("epoll_connections_accepted_total"),
            rate(rates.map(|it| it.accepted), count),
            total("epoll_connections_shed_total"),
            total("epoll_connections_closed_total"),
            total("epoll_handler_panics_total"),
        )),
        Line::raw(format!(
            "{work} {} ({})   {}",
            total(family),
            rate(rates.map(|it| it.work), count),
            kinds.join("   ")
        )),
        Line::raw(format!(
            "in {} ({})   out {} ({})   held {}",
            bytes(metrics.sum("epoll_received_bytes_total", &[])),
            rate(rates.map(|it| it.received), bytes),
            bytes(metrics.sum("epoll_sent_bytes_total", &[])),
            rate(rates.map(|it| it.sent), bytes),
            bytes(metrics.sum("epoll_buffered_bytes", &[])),
        )),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

/// One list above the other, so that each has the width of the terminal: whoever looks wants to know who it is. Without
/// `now` nobody knows what is busy.
fn draw_lists(frame: &mut Frame<'_>, area: Rect, sample: &Sample, now: bool) {
    let lists = match &sample.lists {
        Ok(lists) => lists,
        Err(error) => {
            return frame.render_widget(Paragraph::new(format!("no connections are listed: {error}")), area);
        }
    };
    let lagging: Vec<_> =
        lists.by_queue.iter().filter(|row| row.queued > 0).map(|row| (row, size(row.queued))).collect();
    let height = u16::try_from(lagging.len()).unwrap_or(u16::MAX).saturating_add(1).min(area.height / 2);
    let [above, below] = Layout::vertical([Constraint::Min(0), Constraint::Length(height)]).areas(area);
    let busiest = lists.by_rate.iter().map(|row| {
        let rate = if now { size(row.bytes_per_second) } else { "-".to_owned() };
        (row, rate)
    });
    draw_list(frame, above, "busiest/s", busiest.collect());
    draw_list(frame, below, "queued", lagging);
}

/// The peer is last, and has what the others leave: at 80 columns the longest that there is.
fn draw_list(frame: &mut Frame<'_>, area: Rect, value: &str, rows: Vec<(&Row, String)>) {
    let longest = rows.iter().map(|(row, _)| row.id.len()).max().unwrap_or_default().max(4);
    let rows = rows.into_iter().map(|(row, value)| {
        TableRow::new([value, row.index.to_string(), row.id.clone(), age(row.age_seconds), row.peer.clone()])
    });
    let id = u16::try_from(longest).unwrap_or(u16::MAX);
    let widths = [10, 4, id, 4].map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
    let header = TableRow::new([value, "loop", "id", "age", "peer"]).style(Modifier::REVERSED);
    frame.render_widget(Table::new(rows, widths).header(header), area);
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

/// Of something a second, if that is known.
fn rate(number: Option<f64>, text: impl Fn(f64) -> String) -> String {
    number.map_or("-/s".to_owned(), |number| format!("{}/s", text(number)))
}

/// In four characters for as long as a server is likely to run.
fn age(seconds: f64) -> String {
    match whole(seconds) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7_200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
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
