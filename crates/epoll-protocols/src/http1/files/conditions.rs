//! Whether a request's conditions hold (RFC 9110 section 13). Not the answer that follows.

use std::time::{Duration, UNIX_EPOCH};

use httpdate::HttpDate;

use super::super::Request;
use super::super::date::LAST_SECOND;

/// What tells one state of a representation from another (RFC 9110 section 8.8).
#[derive(Debug)]
pub(super) struct Validators {
    /// A strong entity tag, its quotes included.
    pub(super) tag: String,
    pub(super) modified: HttpDate,
}

/// What becomes of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is answered; `ranges` says whether a `Range` field is to be looked at.
    Proceed { ranges: bool },
    /// 304: what the client has is what there is.
    Unchanged,
    /// 412.
    Failed,
}

/// Looks at the conditions of a GET or HEAD in the order of RFC 9110 section 13.2.2. A date that is none is no
/// condition (sections 13.1.3 and 13.1.4), and so are two of them, which together are none (section 5.3).
pub(super) fn evaluate(request: &Request<'_>, validators: &Validators) -> Verdict {
    let mut if_match = fields(request, "if-match").peekable();
    if if_match.peek().is_some() {
        // Section 13.1.1: strong comparison.
        if !if_match.any(|value| is_any(value) || lists(value, Comparison::Strong, &validators.tag)) {
            return Verdict::Failed;
        }
    } else if date(request, "if-unmodified-since").is_some_and(|date| validators.modified > date) {
        return Verdict::Failed;
    }
    let mut if_none_match = fields(request, "if-none-match").peekable();
    if if_none_match.peek().is_some() {
        // Section 13.1.2: weak comparison.
        if if_none_match.any(|value| is_any(value) || lists(value, Comparison::Weak, &validators.tag)) {
            return Verdict::Unchanged;
        }
    } else if date(request, "if-modified-since").is_some_and(|date| validators.modified <= date) {
        return Verdict::Unchanged;
    }
    Verdict::Proceed { ranges: request.method() == "GET" && if_range(request, validators) }
}

/// Section 13.1.5. A client sends a date only if it knows it to be a strong validator, which this server cannot: so
/// the same date is enough, and no other is.
fn if_range(request: &Request<'_>, validators: &Validators) -> bool {
    let mut values = fields(request, "if-range");
    match (values.next(), values.next()) {
        (None, _) => true,
        (Some(value), None) => {
            value == validators.tag.as_bytes() || parse_date(value) == Some(validators.modified)
        }
        (Some(_), Some(_)) => false,
    }
}

/// The values of all fields called `name`, which is in lower case.
pub(super) fn fields<'a>(request: &Request<'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    request.headers().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The value of the only field called `name`; `None` if there are several.
pub(super) fn only<'a>(request: &Request<'a>, name: &str) -> Option<&'a [u8]> {
    let mut values = fields(request, name);
    values.next().filter(|_| values.next().is_none())
}

fn date(request: &Request<'_>, name: &str) -> Option<HttpDate> {
    parse_date(only(request, name)?)
}

/// Any of the three forms of RFC 9110 section 5.6.7.
fn parse_date(value: &[u8]) -> Option<HttpDate> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The date of `second` after the epoch, or the nearest that the format can express.
pub(super) fn date_of(second: u64) -> HttpDate {
    HttpDate::from(UNIX_EPOCH + Duration::from_secs(second.min(LAST_SECOND)))
}

fn is_any(value: &[u8]) -> bool {
    value.trim_ascii() == b"*"
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags (RFC 9110 section 8.8.3) has `tag`, which is strong. There may be commas in a tag, so
/// it is read from quote to quote; an element that is none is passed over.
fn lists(value: &[u8], comparison: Comparison, tag: &str) -> bool {
    let mut rest = value;
    loop {
        rest = match rest {
            [] => return false,
            [b' ' | b'\t' | b',', rest @ ..] => rest,
            _ => {
                let (weak, opaque) = match rest {
                    [b'W', b'/', opaque @ ..] => (true, opaque),
                    opaque => (false, opaque),
                };
                let length = match opaque {
                    [b'"', inner @ ..] => memchr::memchr(b'"', inner).map(|end| end + 2),
                    _ => None,
                };
                let Some((one, after)) = length.and_then(|length| opaque.split_at_checked(length)) else {
                    let Some(comma) = memchr::memchr(b',', rest) else { return false };
                    rest = rest.get(comma..).unwrap_or_default();
                    continue;
                };
                if one == tag.as_bytes() && (comparison == Comparison::Weak || !weak) {
                    return true;
                }
                after
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use epoll_reactor::Address;
    use httparse::Header;
    use proptest::prelude::*;

    use super::super::super::{RequestId, Version};
    use super::*;

    const OLD: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const SAME_850: &str = "Sunday, 06-Nov-94 08:49:37 GMT";
    const SAME_ASCTIME: &str = "Sun Nov  6 08:49:37 1994";
    const NEW: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn verdict(method: &str, headers: &[(&str, &[u8])]) -> Verdict {
        let validators = Validators { tag: "\"t,1\"".to_owned(), modified: date_of(784_111_777) };
        let headers: Vec<_> = headers.iter().map(|(name, value)| Header { name, value }).collect();
        let id = RequestId { connection: 1, number: 0 };
        let client = &Address::UnixUnnamed;
        let request = Request {
            method,
            target: "/",
            version: Version::Http11,
            headers: &headers,
            body: b"",
            id,
            client,
        };
        evaluate(&request, &validators)
    }

    const RANGES: Verdict = Verdict::Proceed { ranges: true };
    const NO_RANGES: Verdict = Verdict::Proceed { ranges: false };

    #[test]
    fn one_condition() {
        let cases = [
            ("If-Match", "*", RANGES, "RFC 9110 section 13.1.1"),
            ("If-Match", "\"t,1\"", RANGES, "RFC 9110 section 13.1.1"),
            ("If-Match", "\"a\", \"t,1\"", RANGES, "RFC 9110 section 13.1.1"),
            ("If-Match", "\"a\",\t,\"t,1\",", RANGES, "RFC 9110 section 5.6.1.2"),
            ("If-Match", "W/\"t,1\"", Verdict::Failed, "RFC 9110 section 13.1.1: strong comparison"),
            ("If-Match", "\"t\"", Verdict::Failed, "RFC 9110 section 13.1.1"),
            ("If-Match", "\"x\"\"t,1\"", RANGES, "against the grammar, but meant"),
            ("If-Match", "t,1", Verdict::Failed, "RFC 9110 section 8.8.3: it has quotes"),
            ("If-Match", "\"t,1", Verdict::Failed, "RFC 9110 section 8.8.3: it has two"),
            ("If-Match", "", Verdict::Failed, "RFC 9110 section 13.1.1"),
            ("If-Match", "*, \"x\"", Verdict::Failed, "RFC 9110 section 13.1.1: alone"),
            ("If-Unmodified-Since", SAME, RANGES, "RFC 9110 section 13.1.4"),
            ("If-Unmodified-Since", NEW, RANGES, "RFC 9110 section 13.1.4"),
            ("If-Unmodified-Since", OLD, Verdict::Failed, "RFC 9110 section 13.1.4"),
            ("If-Unmodified-Since", "yesterday", RANGES, "RFC 9110 section 13.1.4: no date, ignored"),
            ("If-None-Match", "*", Verdict::Unchanged, "RFC 9110 section 13.1.2"),
            ("If-None-Match", "\"t,1\"", Verdict::Unchanged, "RFC 9110 section 13.1.2"),
            ("If-None-Match", "W/\"t,1\"", Verdict::Unchanged, "RFC 9110 section 13.1.2: weak comparison"),
            ("If-None-Match", "\"a\" , W/\"t,1\"", Verdict::Unchanged, "RFC 9110 section 13.1.2"),
            ("If-None-Match", "junk, \"t,1\"", Verdict::Unchanged, "one element is good"),
            ("If-None-Match", "w/\"t,1\"", RANGES, "RFC 9110 section 8.8.3: with case"),
            ("If-None-Match", "\"a\", \"t\"", RANGES, "RFC 9110 section 13.1.2"),
            ("If-None-Match", "\"T,1\"", RANGES, "RFC 9110 section 8.8.3: with case"),
            ("If-Modified-Since", OLD, RANGES, "RFC 9110 section 13.1.3"),
            ("If-Modified-Since", SAME, Verdict::Unchanged, "RFC 9110 section 13.1.3"),
            ("If-Modified-Since", SAME_850, Verdict::Unchanged, "RFC 9110 section 5.6.7"),
            ("If-Modified-Since", SAME_ASCTIME, Verdict::Unchanged, "RFC 9110 section 5.6.7"),
            ("If-Modified-Since", NEW, Verdict::Unchanged, "RFC 9110 section 13.1.3"),
            ("If-Modified-Since", "0", RANGES, "RFC 9110 section 13.1.3: no date, ignored"),
            ("If-Range", "\"t,1\"", RANGES, "RFC 9110 section 13.1.5"),
            ("If-Range", "W/\"t,1\"", NO_RANGES, "RFC 9110 section 13.1.5: strong comparison"),
            ("If-Range", "\"x\"", NO_RANGES, "RFC 9110 section 13.1.5"),
            ("If-Range", "\"x\", \"t,1\"", NO_RANGES, "RFC 9110 section 13.1.5: no list"),
            ("If-Range", "*", NO_RANGES, "RFC 9110 section 13.1.5"),
            ("If-Range", SAME, RANGES, "RFC 9110 section 13.1.5"),
            ("If-Range", OLD, NO_RANGES, "RFC 9110 section 13.1.5"),
            ("If-Range", NEW, NO_RANGES, "RFC 9110 section 13.1.5: the same, not later"),
        ];
        for (name, value, expected, source) in cases {
            assert_eq!(verdict("GET", &[(name, value.as_bytes())]), expected, "{name}: {value}: {source}");
            let head = if expected == RANGES { NO_RANGES } else { expected };
            assert_eq!(
                verdict("HEAD", &[(name, value.as_bytes())]),
                head,
                "HEAD, {name}: {value}: section 14.2"
            );
        }
        assert_eq!(verdict("GET", &[]), RANGES);
    }

    /// Fields, what follows from them, and the step of RFC 9110 section 13.2.2 that says so.
    type Order<'a> = (&'a [(&'a str, &'a str)], Verdict, &'a str);

    #[test]
    fn their_order() {
        let cases: [Order<'_>; 11] = [
            (&[("If-Match", "\"x\""), ("If-None-Match", "\"t,1\"")], Verdict::Failed, "step 1 before 3"),
            (
                &[("If-None-Match", "\"t,1\""), ("If-Match", "\"x\"")],
                Verdict::Failed,
                "however they are sent",
            ),
            (&[("If-Match", "\"t,1\""), ("If-Unmodified-Since", OLD)], RANGES, "step 2 only without step 1"),
            (&[("If-Match", "\"t,1\""), ("If-None-Match", "\"t,1\"")], Verdict::Unchanged, "step 1, then 3"),
            (&[("If-Unmodified-Since", OLD), ("If-None-Match", "*")], Verdict::Failed, "step 2 before 3"),
            (&[("If-None-Match", "\"x\""), ("If-Modified-Since", NEW)], RANGES, "step 4 only without step 3"),
            (&[("If-Modified-Since", SAME), ("If-Range", "\"x\"")], Verdict::Unchanged, "step 4 before 5"),
            (&[("If-None-Match", "\"x\""), ("If-Range", "\"x\"")], NO_RANGES, "step 5"),
            (&[("If-None-Match", "\"x\""), ("If-None-Match", "\"t,1\"")], Verdict::Unchanged, "section 5.3"),
            (&[("If-Modified-Since", SAME), ("If-Modified-Since", SAME)], RANGES, "section 5.3: no date"),
            (&[("If-Range", "\"t,1\""), ("If-Range", "\"t,1\"")], NO_RANGES, "section 5.3: no tag"),
        ];
        for (headers, expected, source) in cases {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            assert_eq!(verdict("GET", &headers), expected, "RFC 9110 section 13.2.2: {source}");
        }
    }

    #[test]
    fn dates_have_an_end() {
        assert_eq!(date_of(0).to_string(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date_of(u64::MAX).to_string(), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        #[test]
        fn any_value_is_read(value in proptest::collection::vec(any::<u8>(), 0..40), text in "\\PC{0,40}") {
            for name in ["If-Match", "If-Unmodified-Since", "If-None-Match", "If-Modified-Since", "If-Range"] {
                let _: Verdict = verdict("GET", &[(name, &value)]);
                let _: Verdict = verdict("GET", &[(name, text.as_bytes())]);
            }
        }

        #[test]
        fn a_tag_is_found_among_others(
            others in proptest::collection::vec("(W/)?\"[!#-~]{0,6}\"", 0..6), place in 0_usize..6, weak: bool,
        ) {
            let mut tags = others.clone();
            tags.insert(place.min(others.len()), format!("{}\"t,1\"", if weak { "W/" } else { "" }));
            let value = tags.join(", ");
            prop_assert_eq!(verdict("GET", &[("If-None-Match", value.as_bytes())]), Verdict::Unchanged);
        }
    }
}
