//! A driver of the codec that does as its documentation asks, with a [`Player`] for a service.

use std::collections::VecDeque;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use epoll_reactor::{Address, FileSlice};

use super::super::super::Output;
use super::super::super::date::DateHeader;
use super::super::super::output::NotCached;
use super::super::super::response::Response;
use super::answers::Fault;
use super::player::{Player, Told, fill};
use super::*;

/// Where the answers go: what waits is taken when the codec says that it is full.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) sent: Vec<u8>,
    waiting: usize,
    /// Whether a file is on the disk and not in memory.
    pub(super) cold: bool,
    /// The most that has waited.
    pub(super) peak: usize,
    /// Which of the next requests are to be shed, and of how many it was asked.
    pub(super) sheds: VecDeque<bool>,
    pub(super) asked: usize,
}

impl Output for Sink {
    fn copy(&mut self, data: &[u8]) {
        self.sent.extend_from_slice(data);
        self.waiting += data.len();
        self.peak = self.peak.max(self.waiting);
    }

    fn share(&mut self, data: Bytes) {
        self.copy(&data);
    }

    fn file(&mut self, slice: FileSlice, wait: bool) -> Result<(), NotCached> {
        if self.cold && !wait {
            return Err(NotCached);
        }
        let before = self.sent.len();
        self.sent.file(slice, wait)?;
        self.waiting += self.sent.len() - before;
        Ok(())
    }

    fn waiting(&self) -> usize {
        self.waiting
    }

    fn sheds(&mut self) -> bool {
        self.asked += 1;
        self.sheds.pop_front().unwrap_or_default()
    }
}

/// How a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Closed(Option<Rejection>),
    Aborted,
}

/// A caller of the codec that does all it is asked for, at once or when the test says so.
pub(super) struct Driver {
    pub(super) connection: Connection,
    pub(super) limits: HttpLimits,
    pub(super) player: Player,
    pub(super) sink: Sink,
    pub(super) tail: Vec<u8>,
    pub(super) fate: Option<Fate>,
    /// Answers, wakes and reads from the disk come at once.
    pub(super) prompt: bool,
    /// How often the codec has said what.
    pub(super) full: usize,
    pub(super) disk: usize,
    /// It has said `Wait` or `Disk`, and nothing has happened since.
    pub(super) waits: Option<Next>,
    ended: bool,
}

impl Driver {
    pub(super) fn new(limits: HttpLimits) -> Self {
        Self {
            connection: Connection::new(),
            limits,
            player: Player::default(),
            sink: Sink::default(),
            tail: Vec::new(),
            fate: None,
            prompt: true,
            full: 0,
            disk: 0,
            waits: None,
            ended: false,
        }
    }

    /// One that answers, wakes and warms only when it is told to.
    pub(super) fn slow(limits: HttpLimits) -> Self {
        Self { prompt: false, ..Self::new(limits) }
    }

    pub(super) fn with<R>(
        &mut self,
        call: impl FnOnce(&mut Connection, &[u8], &mut Exchange<'_, Player, Sink>) -> R,
    ) -> R {
        self.with_response(Response::new(), call)
    }

    pub(super) fn with_response<R>(
        &mut self,
        mut response: Response,
        call: impl FnOnce(&mut Connection, &[u8], &mut Exchange<'_, Player, Sink>) -> R,
    ) -> R {
        let mut exchange = Exchange {
            limits: &self.limits,
            date: &DateHeader::new(UNIX_EPOCH),
            metrics: &crate::http1::HttpMetrics::new(),
            connection: 7,
            client: &Address::UnixUnnamed,
            service: &mut self.player,
            response: &mut response,
            output: &mut self.sink,
        };
        let result = call(&mut self.connection, &self.tail, &mut exchange);
        assert!(self.connection.stage() != Stage::Closed || self.connection.held() == 0);
        result
    }

    pub(super) fn receive(&mut self, input: &[u8]) {
        self.tail.extend_from_slice(input);
        if self.fate.is_some() {
            // It may be fed on: nothing comes of it.
            let before = self.sink.sent.len();
            let progress = self.with(|connection, input, exchange| connection.receive(input, exchange));
            assert_eq!(progress, Progress { consumed: self.tail.len(), next: Next::Close(None) });
            assert_eq!(self.sink.sent.len(), before);
            self.tail.clear();
        }
        if self.waits.is_none() {
            self.read();
        }
    }

    /// The client sends no more.
    pub(super) fn end(&mut self) {
        self.ended = true;
        if self.waits.is_none() {
            self.read();
        }
    }

    /// The client is gone.
    pub(super) fn vanish(&mut self) {
        self.with(|connection, _, exchange| connection.abandon(exchange));
        self.waits = None;
        self.fate.get_or_insert(Fate::Closed(None));
    }

    fn read(&mut self) {
        while self.fate.is_none() {
            let ended = self.ended;
            let Progress { consumed, next } = self.with(|connection, input, exchange| match ended {
                false => connection.receive(input, exchange),
                true => connection.end_of_input(input, exchange),
            });
            self.tail.drain(..consumed);
            if next == Next::MoreInput {
                self.sink.waiting = 0;
                assert!(!ended, "the end of the input is the end");
                assert!(self.tail.len() < self.limits.head, "{} bytes kept", self.tail.len());
                return;
            }
            if self.follow(next) != Next::MoreInput {
                return;
            }
        }
    }

    /// Does what the codec says, until it wants input or has to wait, and says which.
    fn follow(&mut self, mut next: Next) -> Next {
        loop {
            next = match next {
                Next::MoreInput => return next,
                Next::OutputFull => {
                    assert!(self.sink.waiting >= self.limits.output_batch.max(1), "that is not full");
                    self.full += 1;
                    self.sink.waiting = 0;
                    self.with(|connection, _, exchange| connection.resume(exchange))
                }
                Next::Close(rejection) => {
                    assert!(self.fate.replace(Fate::Closed(rejection)).is_none());
                    self.tail.clear();
                    return next;
                }
                Next::Abort => {
                    assert!(self.fate.replace(Fate::Aborted).is_none());
                    self.tail.clear();
                    return next;
                }
                Next::Wait | Next::Disk => {
                    self.disk += usize::from(next == Next::Disk);
                    // Whatever was written has gone out when something happens.
                    self.sink.waiting = 0;
                    self.waits = Some(next);
                    match self.prompt.then(|| self.happen()).flatten() {
                        Some(next) => next,
                        None => return next,
                    }
                }
            }
        }
    }

    /// What is waited for happens. `None`: nothing was.
    fn happen(&mut self) -> Option<Next> {
        let next = if self.waits? == Next::Disk {
            let cold = self.connection.cold().expect("a part of a file");
            assert!((1..=1 << 20).contains(&cold.length), "a window of {}", cold.length);
            self.with(|connection, _, exchange| connection.warmed(exchange))
        } else if let Some(job) = self.connection.take_job() {
            let (number, response) = (job.id().number, job.run());
            self.with_response(response, |connection, _, exchange| connection.respond(number, exchange))?
        } else {
            let (number, exchanged) = self.player.open.iter_mut().next()?;
            let (number, deferred) = (*number, std::mem::take(&mut exchanged.deferred));
            if deferred { self.answer(number)? } else { self.wake(number)? }
        };
        self.waits = None;
        Some(next)
    }

    /// What is waited for happens, and all that follows from it.
    pub(super) fn happens(&mut self) {
        let next = self.happen().expect("something is waited for");
        self.goes_on(next);
    }

    /// The same, without any input that follows.
    pub(super) fn answered_only(&mut self) {
        let next = self.happen().expect("something is waited for");
        self.follow(next);
    }

    fn goes_on(&mut self, next: Next) {
        self.waits = None;
        if self.follow(next) == Next::MoreInput {
            self.read();
        }
    }

    /// Answers a deferred request, or tries to.
    pub(super) fn answer(&mut self, number: u64) -> Option<Next> {
        let mut response = Response::new();
        if let Some(exchanged) = self.player.open.get(&number) {
            let said = String::from_utf8(exchanged.received.clone()).unwrap();
            let mut words = said.splitn(3, ' ');
            let (method, target) = (words.next().unwrap(), words.next().unwrap_or("/"));
            let method = if method.is_empty() { "GET" } else { method };
            let head = format!("{method} {target} HTTP/1.0\r\n\r\n");
            let mut slots = header_slots();
            let request = parse_head(head.as_bytes(), &mut slots, &self.limits).unwrap();
            fill(&request, words.next().unwrap_or_default().as_bytes(), &mut response);
        }
        self.with_response(response, |connection, _, exchange| connection.respond(number, exchange))
    }

    pub(super) fn wake(&mut self, number: u64) -> Option<Next> {
        self.with(|connection, _, exchange| connection.wake(number, exchange))
    }

    /// The same from outside, with all that follows from it; whether anybody cared.
    pub(super) fn wakes(&mut self, number: u64) -> bool {
        self.wake(number).map(|next| self.goes_on(next)).is_some()
    }

    /// What the service was told, when all is over: whatever was begun has ended.
    pub(super) fn told(&self) -> &[Told] {
        let open: Vec<&u64> = self.player.open.keys().collect();
        assert!(open.is_empty(), "without an end: {open:?}");
        &self.player.told
    }

    /// The status of each answer and its body, up to an answer that is cut off.
    pub(super) fn seen(&self, heads: &[bool]) -> Vec<String> {
        let answers = self.answers(heads).unwrap_or_else(|fault| panic!("{fault:?} in {}", self.sent()));
        let show = |answer: &Answer| format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body));
        answers.iter().map(show).collect()
    }

    /// All that was sent, understood. `heads`: which requests were HEAD.
    pub(super) fn answers(&self, heads: &[bool]) -> Result<Vec<Answer>, Fault> {
        let heads = heads.iter().copied().chain(std::iter::repeat(false));
        Answer::read_all(&self.sink.sent, heads, matches!(self.fate, Some(Fate::Closed(_))))
    }

    /// What was sent but for `100 Continue`, which depends on how the input is cut.
    pub(super) fn sent(&self) -> String {
        let sent = String::from_utf8(self.sink.sent.clone()).unwrap();
        sent.replace(std::str::from_utf8(CONTINUE).unwrap(), "")
    }
}

/// Limits that leave room for targets of many words.
pub(super) fn limits() -> HttpLimits {
    HttpLimits { head: 400, target: 120, ..small_limits() }
}
