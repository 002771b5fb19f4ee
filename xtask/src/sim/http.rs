//! HTTP: pipelined requests of every form, in pieces, and a strict reader of what comes back.

use epoll_protocols::http1::{Http, HttpConfig, HttpLimits};
use epoll_reactor::sim::Sim;
use epoll_reactor::{Address, CloseReason, ConnId, Limits};
use fastrand::Rng;

use std::time::Duration;

use super::answers::{Expected, Framing, Reader};
use super::failure::{Failure, demand};
use super::oracle::{Oracle, Sum, body};
use super::plan::{Plan, a_while, magnitude};
use super::scenario::{Aftermath, Scenario};
use super::session::{End, Session, Talk};

pub(crate) struct Https {
    plan: Plan,
    config: HttpConfig,
}

/// Sends requests and reads the answers.
pub(crate) struct Browser {
    session: usize,
    requests: u64,
    left: u64,
    /// The largest answer, and the largest body of a request.
    answer: usize,
    body: usize,
    /// The largest answer that is streamed.
    stream: usize,
    /// It ends with something that is no HTTP.
    rude: bool,
    /// Nothing more is said: the last request asked for the end, or was none.
    finished: bool,
    pub(crate) reader: Reader,
    /// Where each request ends, counted from the first byte.
    ends: Vec<u64>,
    said: u64,
}

impl Browser {
    fn request(&mut self, rng: &mut Rng) -> Vec<u8> {
        let number = self.requests;
        self.requests += 1;
        self.left -= 1;
        let whats = ["close", "none", "missing", "later", "stream", "sized", "parts", "thread", "upload"];
        let what = whats.get(rng.usize(0..20)).copied().unwrap_or("fine");
        let most = if matches!(what, "stream" | "sized") { self.stream } else { self.answer };
        let size = magnitude(rng, 1, most);
        let path = format!("/s{}/{number}/{size}/{what}", self.session);
        let method = ["GET", "HEAD", "POST", "PUT"][rng.usize(0..4)];
        let has_body = matches!(method, "POST" | "PUT");
        let sent: Vec<u8> = if has_body {
            let length = magnitude(rng, 1, self.body);
            (0..length).map(|_| rng.u8(..)).collect()
        } else {
            Vec::new()
        };
        let old = rng.u8(0..10) == 0;
        let (asks_close, asks_keep) = (rng.u8(0..16) == 0, old && rng.bool());
        let expects = has_body && !old && rng.u8(0..6) == 0;
        let chunked = has_body && !old && rng.bool();

        let mut out = format!("{method} {path} HTTP/1.{}\r\nHost: sim\r\n", u8::from(!old)).into_bytes();
        if asks_close {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if asks_keep {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        if expects {
            out.extend_from_slice(b"Expect: 100-continue\r\n");
        }
        if chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            chunks(&sent, rng, &mut out);
        } else if has_body {
            out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", sent.len()).as_bytes());
            out.extend_from_slice(&sent);
        } else {
            out.extend_from_slice(b"\r\n");
        }
        let unending = what == "stream" && old && method != "HEAD";
        let closes = asks_close || what == "close" || unending || (old && !asks_keep);
        let status = match what {
            "none" => 204,
            "missing" => 404,
            _ => 200,
        };
        self.finished |= closes;
        self.reader.expected.push_back(Expected {
            status,
            body: body(method, &path, Sum::of(&sent), size),
            framing: match what {
                "stream" if old => Framing::ToEnd,
                "stream" => Framing::Chunked,
                _ => Framing::Length,
            },
            head_only: method == "HEAD",
            closes,
            keep_alive: old && asks_keep && !asks_close && !unending,
            may_continue: expects,
        });
        out
    }
}

fn chunks(body: &[u8], rng: &mut Rng, out: &mut Vec<u8>) {
    let mut rest = body;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rng.usize(1..=rest.len()));
        let extension = if rng.u8(0..8) == 0 { ";x=\"y\"" } else { "" };
        out.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = after;
    }
    out.extend_from_slice(b"0\r\n");
    if rng.u8(0..4) == 0 {
        out.extend_from_slice(b"X-Trailer: yes\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

impl Talk for Browser {
    fn say(&mut self, rng: &mut Rng) -> Option<Vec<u8>> {
        if self.finished {
            return None;
        }
        if self.left == 0 {
            self.finished = true;
            return self.rude.then(|| b"\x16\x03\x01 no request\r\n\r\n".to_vec());
        }
        let mut requests = Vec::new();
        for _ in 0..rng.u64(1..=4).min(self.left) {
            if !self.finished {
                requests.extend(self.request(rng));
                self.ends.push(self.said + requests.len() as u64);
            }
        }
        self.said += requests.len() as u64;
        Some(requests)
    }

    fn is_done(&self) -> bool {
        self.finished
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.reader.hear(bytes)
    }
}

impl Scenario for Https {
    type Handler = Http<Oracle>;
    type Talk = Browser;

    fn new(plan: &Plan, _: &Sim, rng: &mut Rng) -> Self {
        let second = Duration::from_secs(1);
        let mut config = HttpConfig {
            limits: HttpLimits { output_batch: magnitude(rng, 1, 64 * 1024), ..HttpLimits::default() },
            head_timeout: a_while(rng, second / 100, second * 600),
            body_timeout: a_while(rng, second / 100, second * 600),
            body_rate: magnitude(rng, 1, 1 << 20) as u32,
            keep_alive_timeout: a_while(rng, second / 100, second * 600),
            ..HttpConfig::default()
        };
        if plan.gentle {
            let long = second * 24 * 3_600;
            (config.head_timeout, config.body_timeout, config.keep_alive_timeout) = (long, long, long);
        } else if rng.u8(0..4) == 0 {
            config.limits.head = magnitude(rng, 64, 1_024);
            config.limits.target = config.limits.head / 2;
            config.limits.body = magnitude(rng, 1, 16 * 1024);
        }
        Self { plan: plan.clone(), config }
    }

    fn limits(&self, drawn: Limits, rng: &mut Rng) -> Limits {
        let output = if self.plan.gentle { drawn.output.max(1 << 20) } else { drawn.output };
        // Slow networks take hours, and a run has so many turns.
        let tick = Some(a_while(rng, Duration::from_millis(200), Duration::from_secs(20)));
        self.config.limits(Limits { output, tick, ..drawn })
    }

    fn handler(&mut self, _: &[Address]) -> Http<Oracle> {
        Http::new(Oracle::new(self.plan.chance(3)), self.config.clone())
    }

    fn talk(&mut self, session: usize, rng: &mut Rng) -> Browser {
        Browser {
            session,
            requests: 0,
            left: rng.u64(0..20),
            answer: self.plan.bytes(rng),
            body: (self.plan.bytes(rng) / 4).max(1),
            // A stream may take a turn for each batch.
            stream: self.config.limits.output_batch.saturating_mul(64).min(4_096),
            rude: !self.plan.gentle && rng.u8(0..8) == 0,
            finished: false,
            reader: Reader::default(),
            ends: Vec::new(),
            said: 0,
        }
    }

    fn longest_silence(&self, received: u64) -> Option<Duration> {
        let HttpConfig { head_timeout, body_timeout, body_rate, keep_alive_timeout, .. } = self.config;
        if received == 0 {
            return Some(head_timeout);
        }
        let earned = received.checked_div(u64::from(body_rate)).unwrap_or(0);
        let body = body_timeout.saturating_add(Duration::from_secs(earned));
        Some(head_timeout.max(body).max(keep_alive_timeout))
    }

    fn session_of(first: &[u8]) -> Option<usize> {
        let text = String::from_utf8_lossy(first);
        let (_, rest) = text.split_once(" /s")?;
        rest.split_once('/')?.0.parse().ok()
    }

    fn may_wait(http: &Http<Oracle>, id: ConnId) -> bool {
        !http.service().under_way(id).is_empty()
    }

    fn finish(&mut self, http: &Http<Oracle>, all: &Aftermath<'_, Browser>) -> Result<(), Failure> {
        http.service().check()?;
        let heard: u64 = all.each().map(|(_, session, _)| session.talk.reader.shed).sum();
        let shed = http.metrics().read().shed;
        demand!(
            heard <= shed,
            "http",
            "{heard} requests were answered as if they had been shed, and {shed} were"
        );
        for (number, session, life) in all.each() {
            let Some((id, (reason, stats))) = life.and_then(|life| Some((life.id, life.closed?))) else {
                continue;
            };
            let left = http.service().under_way(id);
            demand!(left.is_empty(), "http service", "{id} is closed, and no on_end has come for {left:?}");
            let delivered = session.end == End::Clean && stats.bytes_unsent == 0;
            let well = delivered && (reason == CloseReason::PeerClosed || all.gentle);
            if well {
                check_answered(number, session, all.gentle)?;
            }
            let fine = matches!(reason, CloseReason::PeerClosed | CloseReason::Local);
            demand!(fine || !all.gentle, "lost client", "session {number}: {reason:?}");
        }
        Ok(())
    }
}

fn check_answered(number: usize, session: &Session<Browser>, gentle: bool) -> Result<(), Failure> {
    let Browser { reader, ends, .. } = &session.talk;
    let sent = ends.iter().filter(|end| **end <= session.sent).count();
    demand!(!reader.is_torn(), "http", "session {number} ended well, within an answer");
    demand!(
        reader.answered == sent || reader.closed,
        "http",
        "session {number} ended well, with {} of {sent} requests answered",
        reader.answered
    );
    demand!(
        !gentle || reader.refused.is_none(),
        "http",
        "session {number}: a request was refused with {:?}",
        reader.refused
    );
    let all = reader.answered == session.talk.requests as usize;
    demand!(
        !gentle || all,
        "http",
        "session {number}: {} answers of {}",
        reader.answered,
        session.talk.requests
    );
    Ok(())
}
