//! The broadcast handler with a model beside it: which lines each client is to get, and in which order.

use std::collections::BTreeMap;

use epoll_protocols::{Broadcast, BroadcastConfig};
use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler};

use super::plan::{chance, magnitude};

/// A line, by who sent it and which of his it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The sender as the server counts.
    pub(crate) client: u64,
    pub(crate) session: usize,
    pub(crate) number: u64,
}

/// What the `number`th line of `session` says: its name, and as much more as chance has it.
pub(crate) fn content(session: usize, number: u64, limit: usize) -> Vec<u8> {
    let mut rng = chance(number, 1_000_000 + session as u64);
    let mut line = format!("s{session} {number} ").into_bytes();
    let length = magnitude(&mut rng, 1, limit.max(1)).max(line.len()).min(limit);
    let filler = b'a' + rng.u8(0..26);
    line.resize(length.max(line.len()), filler);
    line
}

/// Whose a line is, and which.
pub(crate) fn name(line: &[u8]) -> Option<(usize, u64)> {
    let text = line.strip_prefix(b"s")?;
    let mut words = text.splitn(3, |byte| *byte == b' ').map(|word| std::str::from_utf8(word).ok());
    let session = words.next()??.parse().ok()?;
    let number = words.next()??.parse().ok()?;
    // The third word has to have begun, or the second may not be whole.
    words.next().map(|_| (session, number))
}

/// What is known of one client.
#[derive(Debug)]
pub(crate) struct Member {
    client: u64,
    /// The lines that it is to get, or to be told it has missed.
    pub(crate) entitled: Vec<Line>,
    /// Lines that it has published.
    published: u64,
    open: bool,
    /// It was disconnected since a line found no room.
    pub(crate) cut: bool,
}

pub(crate) struct Published {
    inner: Broadcast,
    config: BroadcastConfig,
    pub(crate) members: BTreeMap<ConnId, Member>,
    pub(crate) violations: Vec<String>,
}

impl Published {
    pub(crate) fn new(config: BroadcastConfig) -> Self {
        let inner = Broadcast::new(config.clone());
        Self { inner, config, members: BTreeMap::new(), violations: Vec::new() }
    }

    /// `input` was consumed: the lines in it went to all who were `open`.
    fn note(&mut self, from: ConnId, input: &[u8], open: &[ConnId]) {
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = line.strip_suffix(b"\n").filter(|line| line.len() <= self.config.line_limit)
            else {
                return;
            };
            let Some(sender) = self.members.get_mut(&from) else { return };
            let Some((session, number)) = name(line) else {
                self.violations.push(format!("{from} published what nobody said: {line:?}"));
                return;
            };
            if number != sender.published || content(session, number, self.config.line_limit) != line {
                self.violations.push(format!("{from} published line {number} of session {session} wrongly"));
            }
            sender.published += 1;
            let line = Line { client: sender.client, session, number };
            for id in open.iter().filter(|id| **id != from) {
                if let Some(member) = self.members.get_mut(id) {
                    member.entitled.push(line);
                }
            }
        }
    }
}

impl Handler for Published {
    type Conn = <Broadcast as Handler>::Conn;
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        let client = self.members.len() as u64 + 1;
        self.members
            .insert(id, Member { client, entitled: Vec::new(), published: 0, open: true, cut: false });
        self.inner.on_open(ctx, id, conn);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn, input: &[u8]) -> usize {
        let members = self.members.iter().filter(|(_, member)| member.open).map(|(id, _)| *id);
        let open: Vec<ConnId> = members.filter(|id| ctx.is_open(*id)).collect();
        let consumed = self.inner.on_data(ctx, id, conn, input);
        self.note(id, input.get(..consumed).unwrap_or(input), &open);
        for other in open.iter().filter(|other| **other != id && !ctx.is_open(**other)) {
            if let Some(member) = self.members.get_mut(other) {
                member.cut = true;
            }
        }
        consumed
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        self.inner.on_drain(ctx, id, conn);
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Self::Conn) {
        self.inner.on_timer(ctx, id, conn);
    }

    fn on_close(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        conn: Self::Conn,
        reason: CloseReason,
        stats: &CloseStats,
    ) {
        if let Some(member) = self.members.get_mut(&id) {
            member.open = false;
        }
        self.inner.on_close(ctx, id, conn, reason, stats);
    }
}
