//! Broadcast, with both ways to treat slow receivers: each client gets each line of the others whole, once and
//! in order, or is told how many it missed, or is disconnected.

use epoll_protocols::{BroadcastConfig, SlowReceivers};
use epoll_reactor::sim::Sim;
use epoll_reactor::{Address, CloseReason, ConnId, Limits};
use fastrand::Rng;

use super::failure::{Failure, demand};
use super::plan::{Plan, magnitude};
use super::published::{Line, Published, content, name};
use super::scenario::{Aftermath, Loop, Scenario};
use super::session::{End, Session, Talk};

pub(crate) struct Broadcasts {
    config: BroadcastConfig,
    plan: Plan,
    /// Everybody says more than a slow reader's buffers hold.
    busy: bool,
}

/// One thing that a client was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Line(Line),
    Skipped(u64),
    /// It has said a line that is too long, and nothing comes behind this.
    TooLong,
}

/// Says lines, stays for a while, and takes down what it hears.
pub(crate) struct Member {
    session: usize,
    limit: usize,
    said: u64,
    left: usize,
    /// How often it is asked for more before it has nothing more to say for good.
    stays: u32,
    /// It will say a line that is too long.
    rude: bool,
    /// And it has.
    was_rude: bool,
    pub(crate) heard: Vec<Heard>,
    torn: Vec<u8>,
}

impl Member {
    pub(crate) fn new(session: usize, limit: usize, left: usize, stays: u32, rude: bool) -> Self {
        Self {
            session,
            limit,
            said: 0,
            left,
            stays,
            rude,
            was_rude: false,
            heard: Vec::new(),
            torn: Vec::new(),
        }
    }

    /// The last that it heard is no whole line.
    pub(crate) fn is_torn(&self) -> bool {
        !self.torn.is_empty()
    }

    /// Lines that it has said, or will as its bytes are sent.
    pub(crate) const fn said(&self) -> u64 {
        self.said
    }

    fn take_down(&mut self, line: &[u8]) -> Result<(), Failure> {
        let heard = parse(line, self.limit)
            .ok_or_else(|| Failure::new("torn line", format!("{:?}", String::from_utf8_lossy(line))))?;
        demand!(heard != Heard::TooLong || self.was_rude, "broadcast", "told of a line that it never said");
        let last = self.heard.last();
        demand!(last != Some(&Heard::TooLong), "broadcast", "heard {heard:?} behind its end");
        self.heard.push(heard);
        Ok(())
    }
}

fn parse(line: &[u8], limit: usize) -> Option<Heard> {
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
    if let Some(error) = line.strip_prefix(b"[Server] disconnected: line longer than ") {
        let told = number(error.strip_suffix(b" bytes")?)?;
        return (told == limit as u64).then_some(Heard::TooLong);
    }
    if let Some(count) = line.strip_prefix(b"[Server] ") {
        return Some(Heard::Skipped(number(count.strip_suffix(b" lines skipped")?)?));
    }
    let rest = line.strip_prefix(b"[Client_")?;
    let end = rest.iter().position(|byte| *byte == b']')?;
    let said = rest.get(end..)?.strip_prefix(b"] ")?;
    let client = number(rest.get(..end)?)?;
    let (session, number) = name(said)?;
    (content(session, number, limit) == said).then_some(Heard::Line(Line { client, session, number }))
}

impl Talk for Member {
    fn say(&mut self, rng: &mut Rng) -> Option<Vec<u8>> {
        if self.left == 0 {
            if std::mem::take(&mut self.rude) {
                self.was_rude = true;
                return Some(vec![b'x'; self.limit + 1 + rng.usize(0..3)]);
            }
            self.stays = self.stays.saturating_sub(1);
            return None;
        }
        let mut lines = Vec::new();
        for _ in 0..rng.u8(1..=8) {
            let line = content(self.session, self.said, self.limit);
            self.said += 1;
            self.left = self.left.saturating_sub(line.len());
            lines.extend_from_slice(&line);
            lines.push(b'\n');
        }
        Some(lines)
    }

    fn is_done(&self) -> bool {
        self.left == 0 && self.stays == 0 && !self.rude
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.torn.extend_from_slice(bytes);
        while let Some(end) = self.torn.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.torn.drain(..=end).collect();
            self.take_down(line.get(..end).unwrap_or_default())?;
        }
        Ok(())
    }
}

impl Scenario for Broadcasts {
    type Handler = Published;
    type Talk = Member;

    fn new(plan: &Plan, _: &Sim, rng: &mut Rng) -> Self {
        let line_limit = magnitude(rng, 24, 4_096);
        let slow_receivers = if rng.bool() { SlowReceivers::Disconnect } else { SlowReceivers::Drop };
        let busy = !plan.gentle && rng.bool();
        let receiver_limit = 4 * (line_limit + 64) * magnitude(rng, 1, if busy { 4 } else { 64 });
        let receiver_limit = if plan.gentle { 1 << 28 } else { receiver_limit };
        Self {
            config: BroadcastConfig { line_limit, receiver_limit, slow_receivers },
            plan: plan.clone(),
            busy,
        }
    }

    fn limits(&self, drawn: Limits, _: &mut Rng) -> Limits {
        let memory = if self.plan.gentle { 1 << 30 } else { drawn.memory };
        self.config.limits(Limits { memory, ..drawn })
    }

    fn handler(&mut self, _: &[Address]) -> Published {
        Published::new(self.config.clone())
    }

    fn talk(&mut self, session: usize, rng: &mut Rng) -> Member {
        let all = self.plan.bytes(rng);
        let bytes = if self.busy { all } else { all / self.plan.clients.max(1) }.clamp(1, 16 * 1024);
        let rude = !self.plan.gentle && rng.u8(0..10) == 0;
        Member::new(session, self.config.line_limit, bytes, rng.u32(0..100), rude)
    }

    fn session_of(first: &[u8]) -> Option<usize> {
        name(first).map(|(session, _)| session)
    }

    fn sent_to(handler: &Published, id: ConnId) -> u64 {
        handler.members.get(&id).map_or(0, |member| member.entitled.len() as u64)
    }

    /// Lines, or how many it has missed.
    fn owes(handler: &Published, id: ConnId, client: &Member) -> bool {
        let told: u64 = client
            .heard
            .iter()
            .map(|heard| match heard {
                Heard::Line(_) => 1,
                Heard::Skipped(count) => *count,
                Heard::TooLong => 0,
            })
            .sum();
        told < Self::sent_to(handler, id)
    }

    fn between(&mut self, reactor: &mut Loop<Published>, _: &mut [Session<Member>]) -> Result<(), Failure> {
        let violations = &reactor.handler().inner.violations;
        demand!(violations.is_empty(), "broadcast input", "{violations:?}");
        Ok(())
    }

    fn finish(&mut self, handler: &Published, all: &Aftermath<'_, Member>) -> Result<(), Failure> {
        for (number, session, life) in all.each() {
            let Some(life) = life else { continue };
            let Some(member) = handler.members.get(&life.id) else { continue };
            let well = session.end == End::Clean
                && !member.cut
                && life.closed.is_some_and(|(reason, stats)| {
                    stats.bytes_unsent == 0 && matches!(reason, CloseReason::PeerClosed | CloseReason::Local)
                });
            demand!(well || !all.gentle, "lost client", "session {number}: {:?}", life.closed);
            // Its line that is too long was read, before anything else could end it.
            let read = session.said_all && life.received == session.sent && !life.told_of_drain;
            let told = session.talk.heard.last() == Some(&Heard::TooLong);
            demand!(
                told || !(well && read && session.talk.was_rude),
                "broadcast",
                "session {number} was disconnected, and not told why"
            );
            let may_skip = self.config.slow_receivers == SlowReceivers::Drop && !all.gentle;
            let ended = Ended { well, may_skip };
            compare(&session.talk, &member.entitled, ended)
                .map_err(|error| Failure::new(error.rule, format!("session {number}: {}", error.what)))?;
        }
        Ok(())
    }
}

/// How a session ended, and what may be missing then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) well: bool,
    pub(crate) may_skip: bool,
}

/// What a client heard is what it was entitled to, in that order, but for as many lines as it was told.
pub(crate) fn compare(talk: &Member, entitled: &[Line], ended: Ended) -> Result<(), Failure> {
    let mut left = entitled.iter();
    for (position, heard) in talk.heard.iter().enumerate() {
        match heard {
            Heard::Line(line) => {
                let expected = left.next();
                demand!(
                    expected == Some(line),
                    "broadcast",
                    "heard {line:?} as {position}th, not {expected:?}"
                );
            }
            Heard::Skipped(count) => {
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                demand!(
                    ended.may_skip && count > 0 && count <= left.len(),
                    "broadcast",
                    "told of {count} lines skipped as {position}th, where {} are left",
                    left.len()
                );
                left = left.as_slice().get(count..).unwrap_or_default().iter();
            }
            // Nothing comes behind it: see `take_down`.
            Heard::TooLong => (),
        }
    }
    demand!(
        !ended.well || talk.torn.is_empty(),
        "torn line",
        "it ended well, with {:?} at its end",
        String::from_utf8_lossy(&talk.torn)
    );
    demand!(
        !ended.well || ended.may_skip || left.len() == 0,
        "broadcast",
        "it ended well, and {} lines are missing from {:?} on",
        left.len(),
        left.as_slice().first()
    );
    Ok(())
}
