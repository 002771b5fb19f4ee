//! Which bytes a `Range` field asks for (RFC 9110 section 14). Not whether it is to be looked at: see `conditions`.

/// What a client gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it, as if it had not asked for a part.
    Whole,
    /// These parts, at least one, in the order they were asked for; none is empty, and no two of them touch.
    Spans(Vec<Span>),
    /// There is nothing where it asks (RFC 9110 section 15.5.17).
    Unsatisfiable,
}

/// A part of a representation, in bytes from 0, the last one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Span {
    pub(super) const fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

/// Ranges that one request may ask for; more are not looked at, and the answer is the whole (RFC 9110 section 14.2
/// allows it). A thousand small ones cost a server a thousand times what they cost the client (CVE-2011-3192), and
/// those who have use for several, readers of documents, ask for a few.
const MOST_SPANS: usize = 16;

/// Parts nearer to each other than this, in bytes, become one: what is between them is less than the framing of
/// another part (RFC 9110 section 15.3.7.2).
const NEAR: u64 = 80;

/// Reads a `Range` field for a representation of `size` bytes. What it does not understand is no reason to refuse the
/// request (RFC 9110 section 14.2): other units, and anything against the grammar, ask for the whole.
pub(super) fn wanted(field: &[u8], size: u64) -> Wanted {
    let Some((unit, set)) = split_once(field, b'=') else { return Wanted::Whole };
    // RFC 9110 section 14.1: the names of units have no case.
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return Wanted::Whole;
    }
    let mut spans = Vec::new();
    let mut count = 0;
    // RFC 9110 section 5.6.1.2: empty elements do not count.
    for spec in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|spec| !spec.is_empty()) {
        count += 1;
        match span(spec, size) {
            Some(Asked::Span(span)) if count <= MOST_SPANS => add(&mut spans, span),
            Some(Asked::Nothing) if count <= MOST_SPANS => {}
            _ => return Wanted::Whole,
        }
    }
    match (count, spans.is_empty()) {
        (0, _) => Wanted::Whole,
        (_, true) => Wanted::Unsatisfiable,
        (_, false) => Wanted::Spans(spans),
    }
}

enum Asked {
    Span(Span),
    /// Beyond the end.
    Nothing,
}

/// One element: `first-last`, `first-` or `-length` (RFC 9110 section 14.1.2). `None` if it is none of them, and for
/// the end of a representation that is empty: it may be asked for, but no `Content-Range` can say it.
fn span(spec: &[u8], size: u64) -> Option<Asked> {
    let (first, last) = split_once(spec, b'-')?;
    if first.is_empty() {
        return match number(last)? {
            0 => Some(Asked::Nothing),
            length => {
                let last = size.checked_sub(1)?;
                Some(Asked::Span(Span { first: size.saturating_sub(length), last }))
            }
        };
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some(match size.checked_sub(1) {
        Some(end) if first <= end => Asked::Span(Span { first, last: last.min(end) }),
        _ => Asked::Nothing,
    })
}

/// Adds a span, in the place of the first that it touches, and one with all that it touches.
fn add(spans: &mut Vec<Span>, mut span: Span) {
    let mut place = spans.len();
    while let Some(index) = spans.iter().position(|other| are_near(*other, span)) {
        let other = spans.remove(index);
        span = Span { first: span.first.min(other.first), last: span.last.max(other.last) };
        place = place.min(index);
    }
    spans.insert(place.min(spans.len()), span);
}

const fn are_near(one: Span, other: Span) -> bool {
    one.first <= other.last.saturating_add(NEAR) && other.first <= one.last.saturating_add(NEAR)
}

/// Digits and nothing else. What 64 bits cannot hold is beyond the end of any file.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

fn split_once(bytes: &[u8], divider: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(divider, bytes)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(field: &str, size: u64) -> String {
        match wanted(field.as_bytes(), size) {
            Wanted::Whole => "whole".to_owned(),
            Wanted::Unsatisfiable => "none".to_owned(),
            Wanted::Spans(spans) => {
                spans.iter().map(|span| format!("{}-{}", span.first, span.last)).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn ranges() {
        let cases = [
            ("bytes=0-499", 10_000, "0-499", "RFC 9110 section 14.1.2"),
            ("bytes=500-999", 10_000, "500-999", "RFC 9110 section 14.1.2"),
            ("bytes=-500", 10_000, "9500-9999", "RFC 9110 section 14.1.2"),
            ("bytes=9500-", 10_000, "9500-9999", "RFC 9110 section 14.1.2"),
            ("bytes=0-0,-1", 10_000, "0-0 9999-9999", "RFC 9110 section 14.1.2"),
            ("bytes= 0-0, 4500-5499 ,\t-1", 10_000, "0-0 4500-5499 9999-9999", "RFC 9110 section 14.1.2"),
            ("bytes=500-600,601-999", 10_000, "500-999", "RFC 9110 section 14.1.2"),
            ("bytes=500-700,601-999", 10_000, "500-999", "RFC 9110 section 14.1.2"),
            ("BYTES=1-2", 10, "1-2", "RFC 9110 section 14.1: without case"),
            ("bytes=0-99999", 10, "0-9", "RFC 9110 section 14.1.2: up to the end"),
            ("bytes=-99999", 10, "0-9", "RFC 9110 section 14.1.2: the whole, if it is shorter"),
            ("bytes=9-", 10, "9-9", "RFC 9110 section 14.1.2"),
            ("bytes=10-", 10, "none", "RFC 9110 section 15.5.17"),
            ("bytes=10-20,30-40", 10, "none", "RFC 9110 section 15.5.17"),
            ("bytes=10-20,3-4", 10, "3-4", "RFC 9110 section 14.1.2: some can be satisfied"),
            ("bytes=-0", 10, "none", "RFC 9110 section 14.1.2"),
            ("bytes=-0,1-1", 10, "1-1", "RFC 9110 section 14.1.2"),
            ("bytes=99999999999999999999-", 10, "none", "RFC 9110 section 14.1.1: any number of digits"),
            ("bytes=5-99999999999999999999", 10, "5-9", "RFC 9110 section 14.1.1"),
            ("bytes=-99999999999999999999", 10, "0-9", "RFC 9110 section 14.1.1"),
            ("bytes=99999999999999999999-99999999999999999998", 10, "none", "too large to tell"),
            ("bytes=,,1-2,,", 10, "1-2", "RFC 9110 section 5.6.1.2"),
            ("bytes=0-", 0, "none", "RFC 9110 section 14.1.2: an empty representation"),
            ("bytes=0-0", 0, "none", "RFC 9110 section 14.1.2"),
            ("bytes=-5", 0, "whole", "RFC 9110 section 14.4 cannot say it"),
            (
                "bytes=5000-5001,100-101,3000-3001",
                10_000,
                "5000-5001 100-101 3000-3001",
                "section 15.3.7.2: order",
            ),
            ("bytes=5000-5001,100-101,5050-5060", 10_000, "5000-5060 100-101", "section 15.3.7.2: a gap"),
            ("bytes=0-1,200-201,100-101", 10_000, "0-1 200-201 100-101", "section 15.3.7.2"),
            ("bytes=0-10,300-310,5-305", 10_000, "0-310", "section 15.3.7.2: one that joins two"),
            ("bytes=0-,0-,0-,0-", 10_000, "0-9999", "CVE-2011-3192"),
            ("", 10, "whole", "RFC 9110 section 14.2"),
            ("bytes", 10, "whole", "RFC 9110 section 14.2"),
            ("bytes=", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=,", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=-", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=1", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=1-2-3", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=--1", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=+1-2", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=1 -2", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=a-b", 10, "whole", "RFC 9110 section 14.1.1"),
            ("bytes=5-4", 10, "whole", "RFC 9110 section 14.1.1: invalid"),
            ("bytes=1-2,5-4", 10, "whole", "RFC 9110 section 14.2"),
            ("bytes =1-2", 10, "whole", "RFC 9110 section 14.1.1"),
            ("lines=1-2", 10, "whole", "RFC 9110 section 14.2: a unit it does not know"),
            ("bytes=0-1, bytes=2-3", 10, "whole", "RFC 9110 section 14.1.1"),
        ];
        for (field, size, expected, source) in cases {
            assert_eq!(shown(field, size), expected, "{field}: {source}");
        }
    }

    #[test]
    fn only_so_many_ranges_are_looked_at() {
        for (count, spans) in [(MOST_SPANS, Some(MOST_SPANS)), (MOST_SPANS + 1, None), (1000, None)] {
            let specs: Vec<String> = (0..count).map(|number| format!("{0}-{0}", number * 1000)).collect();
            let found = match wanted(format!("bytes={}", specs.join(",")).as_bytes(), 10_000_000) {
                Wanted::Spans(spans) => Some(spans.len()),
                _ => None,
            };
            assert_eq!(found, spans, "{count}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_there_and_sent_once(
            specs in proptest::collection::vec((0_u64..3000, 0_u64..300, 0_u8..4), 1..MOST_SPANS),
            size in 0_u64..3000,
        ) {
            let specs: Vec<String> = specs.into_iter().map(|(first, length, kind)| match kind {
                0 => format!("{first}-"),
                1 => format!("-{length}"),
                _ => format!("{first}-{}", first + length),
            }).collect();
            let field = format!("bytes={}", specs.join(", "));
            if let Wanted::Spans(spans) = wanted(field.as_bytes(), size) {
                prop_assert!(!spans.is_empty());
                for (index, span) in spans.iter().enumerate() {
                    prop_assert!(span.first <= span.last && span.last < size);
                    prop_assert!(spans.iter().skip(index + 1).all(|other| !are_near(*span, *other)));
                }
                // Every byte that a part of the field asks for, by itself, is sent.
                for spec in &specs {
                    if let Wanted::Spans(alone) = wanted(format!("bytes={spec}").as_bytes(), size) {
                        let covered = |span: &Span| alone[0].first >= span.first && alone[0].last <= span.last;
                        prop_assert!(spans.iter().any(covered));
                    }
                }
            }
        }

        #[test]
        fn any_field_is_read(field in proptest::collection::vec(any::<u8>(), 0..40), tail in "[0-9,=-]{0,40}", size: u64) {
            let _: Wanted = wanted(&field, size);
            if let Wanted::Spans(spans) = wanted(format!("bytes={tail}").as_bytes(), size) {
                prop_assert!(spans.iter().all(|span| span.first <= span.last && span.last < size));
                prop_assert!(spans.iter().map(|span| span.length()).fold(0_u64, u64::saturating_add) <= size);
            }
        }
    }
}
