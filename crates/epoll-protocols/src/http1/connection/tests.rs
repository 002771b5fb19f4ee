//! What is sent and what is answered: by the RFC in `conformance`, and beyond it by what the service does. Every message is
//! given whole, byte by byte, and cut in two at every place, and has to come to the same end.

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
mod driver;
mod ends;
mod lifecycle;
mod player;
mod shed;
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

/// A request line and a `Host`, to be followed by more.
fn post(rest: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\n{rest}")
}
