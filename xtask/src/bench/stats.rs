//! What is measured, and what the rounds come to.

use std::collections::BTreeMap;

use serde::Serialize;

/// A figure of one server under one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    /// Requests, echoes or deliveries a second.
    Rate,
    /// Server CPU microseconds for each.
    Cpu,
    /// Of these, in the program.
    User,
    /// Of these, in the kernel.
    System,
    /// Latency in microseconds.
    P50,
    P99,
    P999,
    /// Requests that were refused, a second: 503, to a request or to a new connection.
    Shed,
    /// Latency of these.
    ShedP99,
    /// Connections that ended with a request and no answer, a second.
    Closed,
    /// Requests without an answer at the end.
    Unanswered,
    /// How much later than due requests were sent, which is the load's own fault, in microseconds.
    Late,
    /// Resident memory of the server after the load, in bytes.
    Resident,
    /// Share of its core that the server used: below 1, something else was the bottleneck.
    ServerBusy,
    /// Share of its core that our own load used.
    LoadBusy,
    /// What our own load could make, by its CPU time: if it is more than the server could take, the load held nothing up.
    LoadLimit,
    /// What came back on the firehose, in bytes a second.
    Firehose,
    /// Resident bytes a connection.
    BytesPerConnection,
    /// User-space instructions a request.
    Instructions,
    /// System calls a request.
    Syscalls,
}

impl Metric {
    pub(super) const ALL: [Self; 20] = [
        Self::Rate,
        Self::Cpu,
        Self::User,
        Self::System,
        Self::P50,
        Self::P99,
        Self::P999,
        Self::Shed,
        Self::ShedP99,
        Self::Closed,
        Self::Unanswered,
        Self::Late,
        Self::Resident,
        Self::ServerBusy,
        Self::LoadBusy,
        Self::LoadLimit,
        Self::Firehose,
        Self::BytesPerConnection,
        Self::Instructions,
        Self::Syscalls,
    ];

    /// The head of a column.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Rate => "a second",
            Self::Cpu => "CPU µs",
            Self::User => "user µs",
            Self::System => "system µs",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::Shed => "503 a second",
            Self::ShedP99 => "their p99 µs",
            Self::Closed => "closed a second",
            Self::Unanswered => "without an answer",
            Self::Late => "load late µs",
            Self::Resident => "resident KiB",
            Self::ServerBusy => "server busy %",
            Self::LoadBusy => "load busy %",
            Self::LoadLimit => "load could make",
            Self::Firehose => "firehose MiB/s",
            Self::BytesPerConnection => "bytes a connection",
            Self::Instructions => "instructions",
            Self::Syscalls => "system calls",
        }
    }

    /// A value in the unit of the title.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Rate | Self::LoadLimit | Self::P50 | Self::P99 | Self::P999 | Self::ShedP99 => {
                grouped(value)
            }
            Self::Shed | Self::Closed | Self::Unanswered | Self::Late => grouped(value),
            Self::Firehose => grouped(value / (1024.0 * 1024.0)),
            Self::Resident => grouped(value / 1024.0),
            Self::ServerBusy | Self::LoadBusy => format!("{:.0}", value * 100.0),
            Self::BytesPerConnection | Self::Instructions => grouped(value),
            Self::Cpu | Self::User | Self::System if value >= 1000.0 => grouped(value),
            Self::Cpu | Self::User | Self::System => format!("{value:.3}"),
            Self::Syscalls => format!("{value:.2}"),
        }
    }

    /// Whether a ratio to the reference says something.
    pub(super) const fn is_compared(self) -> bool {
        !matches!(
            self,
            Self::ServerBusy
                | Self::LoadBusy
                | Self::LoadLimit
                | Self::Shed
                | Self::ShedP99
                | Self::Closed
                | Self::Unanswered
                | Self::Late
        )
    }
}

/// Thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// One round's figures.
pub(super) type Sample = BTreeMap<Metric, f64>;

/// The median of the rounds, and between what they lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Spread {
    /// `None` without values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), low, high })
    }
}

/// A figure, and its ratio to the reference's of the same round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Figure {
    #[serde(flatten)]
    pub(super) value: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ratio: Option<Spread>,
}

/// What `rounds` come to beside those of the reference, of which one may be missing. A round without a metric is not counted for it.
pub(super) fn summary(rounds: &[Option<Sample>], reference: &[Option<Sample>]) -> BTreeMap<Metric, Figure> {
    let of = |rounds: &[Option<Sample>], round: usize, metric| {
        rounds.get(round).and_then(Option::as_ref).and_then(|sample| sample.get(&metric)).copied()
    };
    let figure = |metric: Metric| {
        let indices = 0..rounds.len();
        let value = Spread::of(indices.clone().filter_map(|round| of(rounds, round, metric)))?;
        let ratios = indices.filter_map(|round| {
            let base = of(reference, round, metric).filter(|base| *base > 0.0)?;
            of(rounds, round, metric).map(|value| value / base)
        });
        let ratio = if metric.is_compared() { Spread::of(ratios) } else { None };
        Some((metric, Figure { value, ratio }))
    };
    Metric::ALL.into_iter().filter_map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 9.0]), Some(Spread { median: 3.0, low: 1.0, high: 9.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, low: 1.0, high: 4.0 }));
    }

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        let round = |cpu| Some(Sample::from([(Metric::Cpu, cpu), (Metric::ServerBusy, 1.0)]));
        // The machine became half as fast; the ratio did not change. A round that the reference lacks has none.
        let ours = [round(11.0), round(22.0), round(100.0)];
        let summary = summary(&ours, &[round(10.0), round(20.0), None]);
        let cpu = summary[&Metric::Cpu];
        assert_eq!(cpu.value.median, 22.0);
        assert_eq!(cpu.ratio, Some(Spread { median: 1.1, low: 1.1, high: 1.1 }));
        assert_eq!(summary[&Metric::ServerBusy].ratio, None);
        assert!(!summary.contains_key(&Metric::Rate));
    }

    #[test]
    fn figures_are_grouped_by_thousands() {
        assert_eq!(
            ["999", "1,000", "146,012", "1,000,000"],
            [999.0, 1000.4, 146_012.0, 1e6].map(grouped).each_ref().map(String::as_str)
        );
    }
}
