//! A service whose answers can be foretold, given in every way there is: at once, later, in pieces, by a thread.

use std::collections::BTreeMap;

use epoll_protocols::http1::{
    BodyFlow, BodyMode, BodyWriter, Part, Request, RequestId, Responder, Response, Service,
};
use epoll_reactor::{Bytes, ConnId};
use fastrand::Rng;

use super::failure::{Failure, demand};

/// Answers as the target says: `/s<session>/<number>/<size>/<what>`.
pub(crate) struct Oracle {
    rng: Rng,
    /// Answers that have been put off, until they have been given; a thread has its own.
    later: BTreeMap<RequestId, Option<Vec<u8>>>,
    /// Streams, and how much of each has been written.
    streams: BTreeMap<RequestId, (Vec<u8>, usize)>,
    /// Bodies that come in pieces.
    uploads: BTreeMap<RequestId, Sum>,
    violations: Vec<String>,
}

/// What is remembered of a body that was received.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    length: usize,
    sum: u64,
}

impl Sum {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { length: 0, sum: 7 }.and(bytes)
    }

    fn and(self, bytes: &[u8]) -> Self {
        let add = |sum: u64, byte: &u8| sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
        Self { length: self.length + bytes.len(), sum: bytes.iter().fold(self.sum, add) }
    }
}

/// What an answer says of its request, filled up to `size`.
pub(crate) fn body(method: &str, path: &str, Sum { length, sum }: Sum, size: usize) -> Vec<u8> {
    let mut body = format!("{method} {path} {length} {sum}\n").into_bytes();
    let length = body.len().max(size);
    body.resize(length, b'.');
    body
}

fn size_and_what<'a>(request: &Request<'a>) -> (usize, Option<&'a str>) {
    let mut parts = request.path().split('/').skip(3);
    let size = parts.next().and_then(|size| size.parse().ok()).unwrap_or(0);
    (size, parts.next())
}

fn whole(request: &Request<'_>, response: &mut Response) {
    let (size, _) = size_and_what(request);
    response.set_body(&body(request.method(), request.path(), Sum::of(request.body()), size));
}

impl Oracle {
    pub(crate) fn new(rng: Rng) -> Self {
        let (later, streams, uploads) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { rng, later, streams, uploads, violations: Vec::new() }
    }

    /// # Errors
    /// What the codec has done against its contract.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        demand!(self.violations.is_empty(), "http service", "{:?}", self.violations);
        Ok(())
    }

    /// The requests of `id` that are under way.
    pub(crate) fn under_way(&self, id: ConnId) -> Vec<RequestId> {
        let known = self.later.keys().chain(self.streams.keys()).chain(self.uploads.keys());
        known.filter(|request| request.connection == id.as_u64()).copied().collect()
    }

    /// Divides `whole` at random.
    fn parts(&mut self, whole: Vec<u8>) -> Vec<Part> {
        let mut rest = Bytes::from(whole);
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let part = rest.split_to(self.rng.usize(0..=rest.len()));
            parts.push(Part::Bytes(part));
        }
        parts
    }
}

impl Service for Oracle {
    type Message = ();

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        let (size, what) = size_and_what(request);
        let sent = self.uploads.get(&request.id()).copied().unwrap_or_else(|| Sum::of(request.body()));
        let body = body(request.method(), request.path(), sent, size);
        match what {
            Some("close") => response.close_connection(),
            Some("none") => response.set_status(204),
            Some("missing") => response.set_status(404),
            Some("later") => {
                self.later.insert(request.id(), Some(body));
                return response.defer();
            }
            Some("stream") => {
                self.streams.insert(request.id(), (body, 0));
                return response.stream();
            }
            Some("sized") => {
                response.stream_sized(body.len() as u64);
                self.streams.insert(request.id(), (body, 0));
                return;
            }
            Some("parts") => return response.set_parts(self.parts(body)),
            Some("thread") => {
                self.later.insert(request.id(), None);
                return response.run_blocking(whole);
            }
            _ => (),
        }
        if size.is_multiple_of(2) {
            response.set_body(&body);
        } else {
            response.set_shared_body(body.into());
        }
    }

    fn body_mode(&mut self, head: &Request<'_>) -> BodyMode {
        if size_and_what(head).1 != Some("upload") {
            return BodyMode::Collect;
        }
        if self.uploads.insert(head.id(), Sum::of(b"")).is_some() {
            self.violations.push(format!("{:?} begins twice", head.id()));
        }
        BodyMode::Stream { limit: usize::MAX }
    }

    fn on_body(&mut self, id: RequestId, piece: &[u8]) -> BodyFlow {
        match self.uploads.get_mut(&id) {
            Some(sum) => *sum = sum.and(piece),
            None => self.violations.push(format!("a piece of a body for {id:?}, which is none")),
        }
        if self.rng.u8(0..8) == 0 { BodyFlow::Pause } else { BodyFlow::Continue }
    }

    fn write_body(&mut self, id: RequestId, writer: &mut BodyWriter<'_>) {
        let Some((body, written)) = self.streams.get_mut(&id) else {
            self.violations.push(format!("{id:?} is to be written, and is no stream"));
            return writer.abort();
        };
        if writer.room() == 0 {
            self.violations.push(format!("{id:?} is to be written, and there is no room"));
        }
        for _ in 0..self.rng.u8(0..4) {
            let rest = body.get(*written..).unwrap_or_default();
            let piece = rest.get(..self.rng.usize(0..=rest.len().min(writer.room()))).unwrap_or_default();
            *written += piece.len();
            if self.rng.bool() {
                writer.write(piece);
            } else {
                writer.share(Bytes::copy_from_slice(piece));
            }
        }
        if *written == body.len() {
            writer.finish();
        }
    }

    fn on_end(&mut self, id: RequestId, complete: bool) {
        let stream = self.streams.remove(&id);
        if complete && stream.as_ref().is_some_and(|(body, written)| 0 < *written && *written < body.len()) {
            self.violations.push(format!("{id:?} is complete, and is not"));
        }
        let known = [stream.is_some(), self.later.remove(&id).is_some(), self.uploads.remove(&id).is_some()];
        if !known.contains(&true) {
            self.violations.push(format!("{id:?} ends, and was not under way"));
        }
    }

    fn on_tick(&mut self, responder: &mut Responder<'_>) {
        for id in self.streams.keys().chain(self.uploads.keys()) {
            responder.wake(*id);
        }
        for (id, body) in &mut self.later {
            if self.rng.bool()
                && let Some(body) = body.take()
            {
                let mut response = Response::new();
                response.set_body(&body);
                responder.respond(*id, response);
            }
        }
    }
}
