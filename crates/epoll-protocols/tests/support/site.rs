//! A service for the tests of HTTP on sockets, which does what takes more than one call, and what it was told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use epoll_protocols::http1::{
    Answered, BodyFlow, BodyMode, BodyWriter, Http, HttpConfig, HttpMessage, Request, RequestId, Responder,
    Response, Service,
};
use epoll_reactor::{Address, Handler, Limits, Remote};

use super::answers::{Answer, Fault};
use super::{Client, Server};

/// What the service knows, for the test to look at.
#[derive(Default)]
pub(crate) struct Seen {
    /// Deferred, and not answered.
    pub(crate) later: BTreeMap<String, RequestId>,
    /// Streams, with how many events each has been written.
    pub(crate) events: BTreeMap<RequestId, usize>,
    /// Events there are.
    pub(crate) happened: usize,
    /// There will be no more of them.
    pub(crate) over: bool,
    pub(crate) uploads: BTreeMap<RequestId, (usize, u64)>,
    pub(crate) pausing: BTreeSet<RequestId>,
    /// Ends, and whether they were good.
    pub(crate) ends: Vec<bool>,
    /// Status and bytes of body of each answer.
    pub(crate) answers: Vec<(u16, u64)>,
    /// Answers whose client was not named.
    pub(crate) unnamed: usize,
    pub(crate) calls: Vec<String>,
}

/// What other threads, and tests, tell the service.
pub(crate) enum Message {
    /// Answer the deferred request for that target.
    Answer(String),
    /// So many events have happened.
    Happened(usize),
    /// Go on with all bodies that were paused.
    GoOn,
}

#[derive(Clone, Default)]
pub(crate) struct Scripted(pub(crate) Rc<RefCell<Seen>>);

pub(crate) const EVENT: usize = 1000;

/// Of exactly [`EVENT`] bytes.
pub(crate) fn event(number: usize) -> Vec<u8> {
    format!("data: {number:0>992}\n\n").into_bytes()
}

/// FNV-1a: of a body that is too large to be kept.
pub(crate) fn checksum(before: u64, data: &[u8]) -> u64 {
    data.iter().fold(before, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What uploads are answered with.
pub(crate) fn receipt(body: &[u8]) -> Vec<u8> {
    format!("{} {}", body.len(), checksum(0, body)).into_bytes()
}

impl Service for Scripted {
    type Message = Message;

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        let mut seen = self.0.borrow_mut();
        seen.calls.push(request.target().to_owned());
        match request.path() {
            "/later" => {
                seen.later.insert(request.target().to_owned(), request.id());
                response.defer();
            }
            "/events" => {
                seen.events.insert(request.id(), 0);
                response.stream();
            }
            "/upload" => {
                let (length, sum) = seen.uploads.get(&request.id()).copied().unwrap_or_default();
                response.set_body(format!("{length} {sum}").as_bytes());
            }
            "/collect" => response.set_body(&receipt(request.body())),
            _ => response.set_body(request.target().as_bytes()),
        }
    }

    fn body_mode(&mut self, head: &Request<'_>) -> BodyMode {
        match head.path() {
            "/upload" => BodyMode::Stream { limit: 100 << 20 },
            "/refuse" => BodyMode::Refuse(403),
            _ => BodyMode::Collect,
        }
    }

    fn on_body(&mut self, id: RequestId, piece: &[u8]) -> BodyFlow {
        let mut seen = self.0.borrow_mut();
        let upload = seen.uploads.entry(id).or_default();
        let before = upload.0 >> 20;
        *upload = (upload.0 + piece.len(), checksum(upload.1, piece));
        // About once a mebibyte.
        if upload.0 >> 20 == before {
            return BodyFlow::Continue;
        }
        seen.pausing.insert(id);
        BodyFlow::Pause
    }

    fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        let mut seen = self.0.borrow_mut();
        let happened = seen.happened;
        let written = seen.events.get_mut(&id).unwrap();
        while *written < happened && body.room() > 0 {
            body.write(&event(*written));
            *written += 1;
        }
        if seen.over && seen.events[&id] == happened {
            body.finish();
        }
    }

    fn on_end(&mut self, id: RequestId, complete: bool) {
        let mut seen = self.0.borrow_mut();
        seen.later.retain(|_, later| *later != id);
        seen.events.remove(&id);
        seen.uploads.remove(&id);
        seen.ends.push(complete);
    }

    fn on_answer(&mut self, answer: &Answered<'_>) {
        let mut seen = self.0.borrow_mut();
        seen.answers.push((answer.status, answer.body_bytes));
        let named = |client: &Address| matches!(client, Address::Tcp(_));
        let request_named = answer.request.is_none_or(|request| named(request.client()));
        seen.unnamed += usize::from(!named(answer.client) || !request_named);
    }

    fn on_message(&mut self, message: Message, responder: &mut Responder<'_>) {
        let mut seen = self.0.borrow_mut();
        match message {
            Message::Answer(target) => {
                let Some(id) = seen.later.get(&target) else { return };
                let mut response = Response::new();
                response.set_body(target.as_bytes());
                responder.respond(*id, response);
            }
            Message::Happened(count) => {
                seen.happened = count;
                seen.events.keys().for_each(|id| responder.wake(*id));
            }
            Message::GoOn => {
                for id in std::mem::take(&mut seen.pausing) {
                    responder.resume_body(id);
                }
            }
        }
    }

    fn on_shutdown(&mut self, responder: &mut Responder<'_>) {
        let mut seen = self.0.borrow_mut();
        seen.over = true;
        seen.events.keys().for_each(|id| responder.wake(*id));
    }
}

pub(crate) type Site = Server<Http<Scripted>>;

pub(crate) fn site(config: HttpConfig, limits: Limits) -> (Site, Scripted, Remote<HttpMessage<Message>>) {
    let service = Scripted::default();
    let limits = config.limits(limits);
    let site = Server::new(Http::new(service.clone(), config), limits);
    let remote = site.reactor.remote();
    (site, service, remote)
}

pub(crate) fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// The bodies of the next `count` answers that a client gets, read strictly.
pub(crate) fn answers<H: Handler>(site: &mut Server<H>, client: &mut Client, count: usize) -> Vec<Answer> {
    let mut got = Vec::new();
    let mut unread = Vec::new();
    site.until("answers", |_| {
        client.pull(1 << 16);
        unread.append(&mut client.rest_bytes());
        loop {
            match Answer::read(&unread, false, client.ended.is_some()) {
                _ if got.len() == count => break,
                Ok((answer, rest)) => {
                    unread = rest.to_vec();
                    got.push(answer);
                }
                Err(Fault::Unfinished) => break,
                Err(Fault::Wrong(what)) => panic!("{what}"),
            }
        }
        got.len() == count
    });
    assert_eq!(unread, b"", "more than was asked for");
    got
}
