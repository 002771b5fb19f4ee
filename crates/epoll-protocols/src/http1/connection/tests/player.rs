//! A service that does as each request's target says, so that every kind of exchange can be played. What it was told is
//! written down.
//!
//! A target is `/` and words, with commas between: `in` (the body is streamed in), `pause` (after each piece of it),
//! `most=N` (as its limit), `full=N` (refused with 507 once more has come), `no=S` (refused with that status before it
//! comes); `later` (deferred), `job`, `bad` (a job that panics); `flow=N:K` (N bytes streamed in steps of K), `sized=N:K:M`
//! (M of them announced), `dry` (a step of nothing before each other), `cut=N` (aborted after that many bytes), `parts`,
//! `file=N`; `status=S`, `last`. Whatever has no body otherwise says what it was asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use epoll_reactor::FileSlice;

use super::super::super::response::{Part, Response};
use super::super::super::sending::BodyWriter;
use super::super::super::service::{Answered, BodyFlow};
use super::*;

/// What the service was told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Call(u64),
    End(u64, bool),
    /// The number of the request, or why it was refused; the status; the bytes of body.
    Answered(Result<u64, Rejection>, u16, u64),
}

#[derive(Default)]
pub(super) struct Player {
    pub(super) told: Vec<Told>,
    /// The exchanges that are owed an end, with what their bodies were.
    pub(super) open: BTreeMap<u64, Exchanged>,
    /// How often a body was asked for.
    pub(super) asked: usize,
    /// Bytes that `on_body` brought.
    pub(super) pieces: Vec<usize>,
}

#[derive(Default)]
pub(super) struct Exchanged {
    target: String,
    pub(super) received: Vec<u8>,
    written: usize,
    steps: usize,
    pub(super) deferred: bool,
    pub(super) flowing: bool,
}

/// The value of a word of a target.
fn word<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let mut words = target.trim_start_matches('/').split(',');
    words.find_map(|word| match word.split_once('=') {
        Some((key, value)) => (key == name).then_some(value),
        None => (word == name).then_some(""),
    })
}

fn numbers(target: &str, name: &str) -> Option<Vec<usize>> {
    Some(word(target, name)?.split(':').map(|number| number.parse().unwrap()).collect())
}

/// The bytes of every body that is only long: no two near ones are alike.
pub(super) fn pattern(stretch: std::ops::Range<usize>) -> Vec<u8> {
    stretch.map(|at| b'a' + u8::try_from((at + at / 26) % 26).unwrap()).collect()
}

/// A file of three mebibytes of the pattern, without a name.
fn large_file() -> Arc<File> {
    static FILE: OnceLock<Arc<File>> = OnceLock::new();
    let make = || {
        let path = std::env::temp_dir().join(format!("epoll-protocols-player-{}", std::process::id()));
        let mut file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(&pattern(0..3 << 20)).unwrap();
        Arc::new(file)
    };
    FILE.get_or_init(make).clone()
}

/// Fills in the answer that a target asks for; whoever runs it.
pub(super) fn fill(request: &Request<'_>, body: &[u8], response: &mut Response) {
    let target = request.target();
    if let Some(status) = numbers(target, "status") {
        response.set_status(u16::try_from(status[0]).unwrap());
    }
    if word(target, "last").is_some() {
        response.close_connection();
    }
    if let Some(sized) = numbers(target, "sized") {
        response.stream_sized(*sized.get(2).unwrap_or(&sized[0]) as u64);
    } else if word(target, "flow").is_some() {
        response.stream();
    } else if word(target, "parts").is_some() {
        let file = Part::File(FileSlice { file: large_file(), offset: 0, length: 10 });
        let bytes = |text: &'static [u8]| Part::Bytes(Bytes::from_static(text));
        response.set_parts(vec![bytes(b"<"), file.clone(), bytes(b""), bytes(b"|"), file, bytes(b">")]);
    } else if let Some(length) = numbers(target, "file") {
        response.set_file(FileSlice { file: large_file(), offset: 0, length: length[0] as u64 });
    } else {
        let said = format!("[{} {target} {}]", request.method(), body.escape_ascii());
        response.set_body(said.as_bytes());
    }
}

impl Service for Player {
    type Message = ();

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        let number = request.id().number;
        self.told.push(Told::Call(number));
        let target = request.target();
        let exchanged = self.open.remove(&number);
        let streamed_in = exchanged.is_some();
        let mut exchanged = exchanged.unwrap_or_default();
        target.clone_into(&mut exchanged.target);
        let body = if streamed_in {
            assert_eq!(request.body(), b"", "what was streamed is not given again");
            exchanged.received.clone()
        } else {
            request.body().to_vec()
        };
        exchanged.deferred = word(target, "later").is_some();
        let job = word(target, "job").is_some() || word(target, "bad").is_some();
        if exchanged.deferred {
            exchanged.received = format!("{} {target} {}", request.method(), body.escape_ascii()).into();
            response.defer();
        } else if job {
            response.run_blocking(move |request, response| {
                assert!(word(request.target(), "bad").is_none(), "as asked");
                fill(request, &body, response);
            });
        } else {
            fill(request, &body, response);
        }
        exchanged.flowing = word(target, "flow").or_else(|| word(target, "sized")).is_some();
        if streamed_in || exchanged.deferred || job || exchanged.flowing {
            self.open.insert(number, exchanged);
        }
    }

    fn body_mode(&mut self, head: &Request<'_>) -> BodyMode {
        let target = head.target();
        if let Some(status) = numbers(target, "no") {
            return BodyMode::Refuse(u16::try_from(status[0]).unwrap());
        }
        if word(target, "in").is_none() {
            return BodyMode::Collect;
        }
        let exchanged = Exchanged { target: target.to_owned(), ..Exchanged::default() };
        assert!(self.open.insert(head.id().number, exchanged).is_none(), "asked twice");
        BodyMode::Stream { limit: numbers(target, "most").map_or(usize::MAX, |most| most[0]) }
    }

    fn on_body(&mut self, id: RequestId, piece: &[u8]) -> BodyFlow {
        assert!(!piece.is_empty());
        self.pieces.push(piece.len());
        let exchanged = self.open.get_mut(&id.number).expect("nobody streams this in");
        exchanged.received.extend_from_slice(piece);
        match numbers(&exchanged.target, "full") {
            Some(full) if exchanged.received.len() > full[0] => BodyFlow::Refuse(507),
            _ if word(&exchanged.target, "pause").is_some() => BodyFlow::Pause,
            _ => BodyFlow::Continue,
        }
    }

    fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        assert!(body.room() > 0, "asked without room");
        self.asked += 1;
        let exchanged = self.open.get_mut(&id.number).expect("nobody streams this out");
        exchanged.steps += 1;
        if word(&exchanged.target, "dry").is_some() && exchanged.steps % 2 == 1 {
            return;
        }
        let flow =
            numbers(&exchanged.target, "flow").or_else(|| numbers(&exchanged.target, "sized")).unwrap();
        let (length, step) = (flow[0], flow[1]);
        if let Some(cut) = numbers(&exchanged.target, "cut")
            && exchanged.written >= cut[0]
        {
            return body.abort();
        }
        let end = length.min(exchanged.written + step);
        let piece = pattern(exchanged.written..end);
        // Half of it is copied and half is shared.
        let (first, second) = piece.split_at(piece.len() / 2);
        body.write(first);
        body.share(Bytes::copy_from_slice(second));
        exchanged.written = end;
        if end == length {
            body.finish();
        }
    }

    fn on_end(&mut self, id: RequestId, complete: bool) {
        assert!(self.open.remove(&id.number).is_some(), "{} has no end, or had one", id.number);
        self.told.push(Told::End(id.number, complete));
    }

    fn on_answer(&mut self, answer: &Answered<'_>) {
        let number = answer.request.map(|request| request.id().number);
        let request = answer.rejection.map_or_else(|| Ok(number.unwrap()), Err);
        self.told.push(Told::Answered(request, answer.status, answer.body_bytes));
    }
}
