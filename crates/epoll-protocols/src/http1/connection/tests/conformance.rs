//! RFC 9110 and 9112 as tables: what is sent, what is answered, and what becomes of the connection. Every case is run
//! whole, byte by byte, cut in two at every place, one answer at a time, and behind another request; what follows it is
//! answered if and only if the connection goes on.

use super::driver::{Driver, Fate};
use super::*;

mod chunks;
mod exchanges;
mod fields;
mod framing;
mod request_line;

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// It waits, as far as this.
    Open(Stage),
    Closed,
    Refused(Rejection),
}

struct Case {
    /// Of RFC 9112, unless it says otherwise.
    section: &'static str,
    name: &'static str,
    input: Vec<u8>,
    /// `status body`, or `HEAD status` for what answers such a request.
    answers: Vec<String>,
    after: After,
}

fn case<A: AsRef<str>>(
    section: &'static str,
    name: &'static str,
    input: impl Into<Vec<u8>>,
    answers: &[A],
    after: After,
) -> Case {
    let answers = answers.iter().map(|answer| answer.as_ref().to_owned()).collect();
    Case { section, name, input: input.into(), answers, after }
}

/// Answered, and ready for the next.
fn goes_on(section: &'static str, name: &'static str, input: impl Into<Vec<u8>>, answers: &[&str]) -> Case {
    case(section, name, input, answers, After::Open(Stage::Idle))
}

/// Answered, and that was the last.
fn last(section: &'static str, name: &'static str, input: impl Into<Vec<u8>>, answers: &[&str]) -> Case {
    case(section, name, input, answers, After::Closed)
}

/// Refused, with nothing before.
fn refused(
    section: &'static str,
    name: &'static str,
    input: impl Into<Vec<u8>>,
    status: u16,
    rejection: Rejection,
) -> Case {
    case(section, name, input, &[format!("{status} ")], After::Refused(rejection))
}

/// A request line and a `Host`, to be followed by more fields.
fn get(rest: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\n{rest}\r\n")
}

const BEFORE: &[u8] = b"GET /before HTTP/1.1\r\nHost: h\r\n\r\n";
const BEHIND: &[u8] = b"GET /behind HTTP/1.1\r\nHost: h\r\n\r\n";

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    answers: Vec<String>,
    after: After,
    answered: u64,
    sent: String,
}

/// What comes of `pieces`, read by a strict client that has sent so many requests before.
fn play<'a>(
    case: &Case,
    before: usize,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limits: &HttpLimits,
) -> Seen {
    let mut driver = Driver::new(limits.clone());
    for piece in pieces {
        driver.receive(piece);
    }
    let heads = case.answers.iter().map(|answer| answer.starts_with("HEAD "));
    let heads: Vec<bool> = std::iter::repeat_n(false, before).chain(heads).collect();
    let what = format!("{} {}", case.section, case.name);
    let answers =
        driver.answers(&heads).unwrap_or_else(|fault| panic!("{what}: {fault:?} in {}", driver.sent()));
    let after = match driver.fate {
        None => After::Open(driver.connection.stage()),
        Some(Fate::Closed(None)) => After::Closed,
        Some(Fate::Closed(Some(rejection))) => After::Refused(rejection),
        Some(Fate::Aborted) => panic!("{what}: aborted"),
    };
    if let After::Refused(rejection) = after {
        assert_eq!(answers.last().map(|answer| answer.status), Some(rejection.status()), "{what}");
    }
    if driver.fate.is_some() {
        assert!(answers.last().is_some_and(Answer::is_last), "{what}: the end is not told");
        assert_eq!((driver.connection.stage(), driver.connection.held()), (Stage::Closed, 0), "{what}");
        assert_eq!(driver.tail, b"", "{what}: all is consumed");
    } else {
        assert!(!answers.last().is_some_and(Answer::is_last), "{what}: an end is told that is none");
    }
    let show = |(answer, head): (&Answer, &bool)| {
        let body = String::from_utf8_lossy(&answer.body);
        if *head { format!("HEAD {}", answer.status) } else { format!("{} {body}", answer.status) }
    };
    let shown = answers.iter().zip(heads.iter().chain(std::iter::repeat(&false))).map(show).collect();
    Seen { answers: shown, after, answered: driver.connection.answered(), sent: driver.sent() }
}

/// Runs each case in every way.
fn check(limits: &HttpLimits, cases: &[Case]) {
    for case in cases {
        let Case { section, name, input, answers, after } = case;
        let what = format!("{section} {name}: {}", input.escape_ascii());
        let whole = play(case, 0, [input.as_slice()], limits);
        assert_eq!((&whole.answers, whole.after), (answers, *after), "{what}");
        assert_eq!(play(case, 0, input.chunks(1), limits), whole, "byte by byte: {what}");
        for middle in 1..input.len() {
            let (first, second) = input.split_at(middle);
            assert_eq!(play(case, 0, [first, second], limits), whole, "cut at {middle}: {what}");
        }
        let cramped = HttpLimits { output_batch: 1, ..limits.clone() };
        assert_eq!(play(case, 0, [input.as_slice()], &cramped), whole, "one at a time: {what}");

        // Behind another one, which is answered first; in one go and in pieces.
        let input = [BEFORE, input].concat();
        let mut expected = vec!["200 [GET /before ]".to_owned()];
        expected.extend_from_slice(answers);
        for limits in [limits, &cramped] {
            let behind = play(case, 1, [input.as_slice()], limits);
            assert_eq!((&behind.answers, behind.after), (&expected, *after), "behind another: {what}");
            // Nothing behind it is served, however it comes, unless it should be.
            let longer = [&input, BEHIND].concat();
            let mut served = expected.clone();
            match after {
                After::Open(Stage::Idle) => served.push("200 [GET /behind ]".to_owned()),
                After::Open(_) => continue,
                After::Closed | After::Refused(_) => {}
            }
            for pieces in [vec![longer.as_slice()], vec![&input, BEHIND], longer.chunks(1).collect()] {
                let seen = play(case, 1, pieces, limits);
                assert_eq!((&seen.answers, seen.after), (&served, *after), "before another: {what}");
            }
        }
    }
}
