//! What `/metrics` says, read back: rows by their name, sums, and quantiles of histograms. It takes the Prometheus text
//! format as far as our own server writes it.

use std::collections::BTreeMap;

/// The rows of one answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    families: BTreeMap<String, Vec<Row>>,
}

#[derive(Clone, Debug)]
struct Row {
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// `None`: that is no such text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, row) = parse_row(line)?;
            metrics.families.entry(name).or_default().push(row);
        }
        Some(metrics)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.families.contains_key(name)
    }

    /// The sum of the rows that have all of `labels`.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let rows = self.families.get(name).into_iter().flatten();
        // Not `sum`, which is -0 of nothing.
        rows.filter(|row| row.has(labels)).fold(0.0, |sum, row| sum + row.value)
    }

    /// The values of a label, with the sum of the rows of each, in their order in the text.
    pub(super) fn by(&self, name: &str, label: &str) -> Vec<(String, f64)> {
        let mut sums: Vec<(String, f64)> = Vec::new();
        for row in self.families.get(name).into_iter().flatten() {
            let Some(value) = row.labels.get(label) else { continue };
            match sums.iter_mut().find(|(found, _)| found == value) {
                Some((_, sum)) => *sum += row.value,
                None => sums.push((value.clone(), row.value)),
            }
        }
        sums
    }

    /// In seconds, what the part `quantile` (0.0 to 1.0) of what came to a histogram since `earlier` did not exceed, rounded
    /// up to a bound. `None` if nothing came.
    pub(super) fn quantile(
        &self,
        earlier: Option<&Self>,
        name: &str,
        labels: &[(&str, &str)],
        quantile: f64,
    ) -> Option<f64> {
        let name = format!("{name}_bucket");
        let rows = self.families.get(&name)?.iter().filter(|row| row.has(labels));
        let came: Vec<(f64, f64)> = rows
            .filter_map(|row| {
                let bound = row.labels.get("le")?;
                let before = earlier.map_or(0.0, |earlier| {
                    let labels = [labels, &[("le", bound.as_str())]].concat();
                    earlier.sum(&name, &labels)
                });
                Some((bound.parse().ok()?, row.value - before))
            })
            .collect();
        let (_, all) = *came.last()?;
        // Fewer than before: the server has been started anew.
        if all < 0.0 {
            return self.quantile(None, name.strip_suffix("_bucket")?, labels, quantile);
        }
        let rank = (all * quantile).ceil().max(1.0);
        came.into_iter().find(|(_, count)| *count >= rank).map(|(bound, _)| bound)
    }
}

impl Row {
    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels.get(*name).is_some_and(|found| found == value))
    }
}

/// `name{label="value",...} number`, or without labels.
fn parse_row(line: &str) -> Option<(String, Row)> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, behind) = rest.split_once("=\"")?;
            let (value, behind) = unquote(behind)?;
            labels.insert(label.to_owned(), value);
            rest = behind.strip_prefix(',').unwrap_or(behind);
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some((name.to_owned(), Row { labels, value }))
}

/// The text up to the closing quotation mark, and what is behind that.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, text.get(at + 1..)?)),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_with_their_labels() {
        let text = "# HELP a Help\n# TYPE a gauge\na 1.5\nb{loop=\"0\",x=\"q\\\"\\\\,}\\n\"} 2\nb{loop=\"1\",x=\"y\"} 3\n\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a", &[]), 1.5);
        assert_eq!(metrics.sum("b", &[]), 5.0);
        assert_eq!(metrics.sum("b", &[("x", "q\"\\,}\n")]), 2.0);
        assert_eq!(metrics.sum("b", &[("loop", "1"), ("x", "z")]), 0.0);
        assert_eq!(metrics.by("b", "loop"), [("0".to_owned(), 2.0), ("1".to_owned(), 3.0)]);
        assert!(metrics.has("a") && !metrics.has("c"));
        for wrong in ["<html>", "a", "a{", "a{b=\"c", "a{b=\"c\"", "a{b=\"c\"} x", "a{b} 1"] {
            assert!(Metrics::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn quantiles_are_of_what_came_since() {
        let read = |counts: [u64; 3]| {
            let [one, two, all] = counts;
            let row = |bound: &str, count| format!("h_bucket{{loop=\"0\",le=\"{bound}\"}} {count}\n");
            Metrics::parse(&[row("0.001", one), row("0.002", two), row("+Inf", all)].concat()).unwrap()
        };
        let (before, after) = (read([100, 100, 100]), read([100, 198, 200]));
        let zero = [("loop", "0")];
        assert_eq!(after.quantile(None, "h", &zero, 0.5), Some(0.001));
        assert_eq!(after.quantile(Some(&before), "h", &zero, 0.5), Some(0.002));
        assert_eq!(after.quantile(Some(&before), "h", &zero, 0.99), Some(f64::INFINITY));
        assert_eq!(after.quantile(Some(&after), "h", &zero, 0.5), None, "nothing came");
        assert_eq!(before.quantile(Some(&after), "h", &zero, 0.5), Some(0.001), "it was started anew");
        assert_eq!(after.quantile(None, "h", &[("loop", "1")], 0.5), None);
    }
}
