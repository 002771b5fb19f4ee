//! What is sent and what is answered. Every message is given whole, byte by byte, and cut in two at every place, and has to come to the
//! same end; what depends on how it comes, as `100 Continue` does, is in `lifecycle`.

use std::time::UNIX_EPOCH;

use super::super::fuzzing::{Client, Outcome, small_limits};
use super::super::limits::HttpLimits;
use super::*;
use answers::Answer;

#[path = "../../../tests/support/answers.rs"]
mod answers;
mod any_order;
mod bodies;
mod conformance;
mod deferred;
mod lifecycle;
mod player;
mod streams;
mod strict;

fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: HttpLimits) -> Outcome {
    let mut client = Client::new(limits);
    for piece in pieces {
        client.receive(piece);
    }
    client.outcome()
}

/// The outcome of `input`, the same however it comes.
fn every_way(input: &[u8]) -> Outcome {
    let whole = run([input], small_limits());
    let shown = input.escape_ascii();
    assert_eq!(run(input.chunks(1), small_limits()), whole, "byte by byte: {shown}");
    for middle in 0..=input.len() {
        let (first, second) = input.split_at(middle);
        assert_eq!(run([first, second], small_limits()), whole, "cut at {middle}: {shown}");
    }
    let cramped = HttpLimits { output_batch: 1, ..small_limits() };
    assert_eq!(run([input], cramped), whole, "one answer at a time: {shown}");
    whole
}

/// The status of each answer, followed by its body; headers are tested with the encoder.
fn answers(output: &str) -> Vec<String> {
    let mut answers = Vec::new();
    for answer in output.split("HTTP/1.1 ").skip(1) {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT"), "{head}");
        answers.push(format!("{} {body}", &head[..3]).trim_end().to_owned());
    }
    answers
}

#[test]
fn good_requests_are_answered_and_the_connection_goes_on() {
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n", &["200 [GET /a?b ]"]),
        ("\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", &["200 [GET / ]"]),
        ("BREW / HTTP/1.1\r\nHost: h\r\n\r\n", &["200 [BREW / ]"]),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &["200 [GET / ]"]),
        ("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", &["200"]),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", &["200 [POST / ]"]),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", &["200 [POST / hello]"]),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nT: v\r\n\r\n",
            &["200 [POST / hello]"],
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 30\r\n\r\n012345678901234567890123456789",
            &["200 [POST / 012345678901234567890123456789]"],
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
            &["200 [POST / hi]"],
        ),
        (
            "GET /1 HTTP/1.1\r\nHost: h\r\n\r\nHEAD /2 HTTP/1.1\r\nHost: h\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\n\r\n",
            &["200 [GET /1 ]", "200", "200 [GET /3 ]"],
        ),
        (
            "GET /lost HTTP/1.1\r\nHost: h\r\n\r\nGET /empty HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
            &["404 [GET /lost ]", "200", "200 [GET / ]"],
        ),
        (
            "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n\r\n\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\n\r\n",
            &["200 [POST /1 \\r\\n\\r\\n]", "200 [POST /2 x]", "200 [GET /3 ]"],
        ),
    ];
    for (input, expected) in cases {
        let outcome = every_way(input.as_bytes());
        assert_eq!(answers(&outcome.output), *expected, "{input:?}");
        assert_eq!((outcome.closed, outcome.stage), (None, Stage::Idle), "{input:?}");
        assert_eq!(outcome.answered, expected.len() as u64, "{input:?}");
        assert_eq!(
            outcome.output.matches("Connection: keep-alive").count(),
            input.matches("HTTP/1.0").count()
        );
        assert_eq!(outcome.output.matches("X-Lost").count(), input.matches("/lost").count(), "{input:?}");
        assert!(!outcome.output.contains("Connection: close"), "{input:?}");
    }
}

#[test]
fn some_answers_are_the_last() {
    let cases = [
        "GET /1 HTTP/1.0\r\n\r\n",
        "GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        "GET /1 HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
        "GET /close HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /1 HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
        "POST /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /close HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    for input in cases {
        let outcome = every_way(format!("{input}GET /never HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
        assert_eq!((outcome.closed, outcome.stage), (Some(None), Stage::Closed), "{input:?}");
        assert_eq!(outcome.answered, 1, "{input:?}");
        assert_eq!(outcome.output.matches("Connection: close").count(), 1, "{input:?}");
    }
}

/// A request line and a `Host`, to be followed by more.
fn post(rest: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\n{rest}")
}

#[test]
fn a_bad_request_is_told_so_and_ends_the_connection() {
    let chunked = |rest| post(&format!("Transfer-Encoding: chunked\r\n\r\n{rest}"));
    let fields = |count| post(&format!("{}\r\n", "A: b\r\n".repeat(count)));
    let cases = [
        ("\x16\x03\x01\x02".to_owned(), Rejection::NotHttp, 400),
        ("\n".to_owned(), Rejection::NotHttp, 400),
        ("\rX".to_owned(), Rejection::NotHttp, 400),
        ("\r\n".repeat(5), Rejection::NotHttp, 400),
        ("GET / HTTP/1.1\nHost: h\n\n".to_owned(), Rejection::BareLineFeed, 400),
        ("GET / HTTP/1.1\r\nHost: h\n\r\n".to_owned(), Rejection::BareLineFeed, 400),
        ("GET / HTTP/1.1\r\nHost: h\r\n\n".to_owned(), Rejection::BareLineFeed, 400),
        ("GET /\r\n\r\n".to_owned(), Rejection::RequestLine, 400),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Rejection::RequestLine, 400),
        ("GET nowhere HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Rejection::Target, 400),
        (format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(40)), Rejection::TargetTooLong, 414),
        (format!("GET /{}", "a".repeat(300)), Rejection::TargetTooLong, 414),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), Rejection::Version, 505),
        (post("A : b\r\n\r\n"), Rejection::Header, 400),
        (post(" A: b\r\n\r\n"), Rejection::Header, 400),
        (post("A: b\r\n c\r\n\r\n"), Rejection::Header, 400),
        (post("A: b\0c\r\n\r\n"), Rejection::Header, 400),
        (post("A: b\rc\r\n\r\n"), Rejection::Header, 400),
        (post(&format!("A: {}\r\n\r\n", "b".repeat(200))), Rejection::HeadTooLarge, 431),
        (post(&format!("A: {}", "b".repeat(200))), Rejection::HeadTooLarge, 431),
        (fields(6), Rejection::TooManyHeaders, 431),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), Rejection::Host, 400),
        (post("Host: h\r\n\r\n"), Rejection::Host, 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), Rejection::Host, 400),
        (post("Content-Length: +1\r\n\r\nx"), Rejection::ContentLength, 400),
        (post("Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), Rejection::ContentLength, 400),
        (post("Content-Length: 99999999999999999999\r\n\r\n"), Rejection::ContentLength, 400),
        (post("Content-Length: 31\r\n\r\n"), Rejection::BodyTooLarge, 413),
        (post("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), Rejection::TransferEncoding, 400),
        (post("Transfer-Encoding: chunked, gzip\r\n\r\n"), Rejection::TransferEncoding, 400),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            Rejection::TransferEncoding,
            400,
        ),
        (post("Transfer-Encoding: gzip, chunked\r\n\r\n"), Rejection::UnknownCoding, 501),
        ("TRACE / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Rejection::Method, 501),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Rejection::Method, 501),
        (post("Expect: the-worst\r\n\r\n"), Rejection::Expectation, 417),
        (chunked("1 \r\nx\r\n0\r\n\r\n"), Rejection::Chunk, 400),
        (chunked("1\nx\n0\n\n"), Rejection::Chunk, 400),
        (chunked("0x1\r\nx\r\n0\r\n\r\n"), Rejection::Chunk, 400),
        (chunked("1\r\nxyz"), Rejection::Chunk, 400),
        (chunked("1;234567890\r\nx"), Rejection::Chunk, 400),
        (chunked("1f\r\n"), Rejection::BodyTooLarge, 413),
        (chunked("ffffffffffffffffffff\r\n"), Rejection::BodyTooLarge, 413),
        (chunked("1e\r\n012345678901234567890123456789\r\n1"), Rejection::BodyTooLarge, 413),
        (chunked("0\r\nA b\r\n\r\n"), Rejection::Trailer, 400),
        (chunked("0\r\nA: 90123456789012345678\r\n\r\n"), Rejection::TrailersTooLarge, 431),
    ];
    for (input, rejection, status) in cases {
        // What follows must not be taken for a request, and what came before must have been answered.
        let input =
            format!("GET /before HTTP/1.1\r\nHost: h\r\n\r\n{input}GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
        let outcome = every_way(input.as_bytes());
        assert_eq!(outcome.closed, Some(Some(rejection)), "{input:?}");
        assert_eq!(outcome.stage, Stage::Closed);
        assert_eq!(outcome.answered, 1, "{input:?}");
        assert_eq!(
            answers(&outcome.output),
            ["200 [GET /before ]".to_owned(), status.to_string()],
            "{input:?}"
        );
        assert!(outcome.output.ends_with("Content-Length: 0\r\nConnection: close\r\n\r\n"), "{input:?}");
    }
    assert!(every_way(fields(5).as_bytes()).closed.is_none());
}
