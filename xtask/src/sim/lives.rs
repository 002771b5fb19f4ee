//! What has become of each connection that a handler was told of, kept and checked as it happens.

use std::collections::{BTreeMap, HashMap, VecDeque};

use epoll_reactor::{Address, CloseReason, CloseStats, ConnId, Ctx, ListenerId, Timestamp};

use super::failure::milliseconds;

/// A callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Open,
    Data,
    Eof,
    Drain,
    Timer,
    Shutdown,
    Close,
    Message,
    Tick,
    Ready,
    Signal,
}

/// One connection, as its callbacks have told it.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) id: ConnId,
    /// The client's own address, unless it has none.
    pub(crate) address: Option<Address>,
    /// False for an outbound connection that was never made.
    pub(crate) opened: bool,
    pub(crate) received: u64,
    /// The first bytes received, at most [`Lives::FIRST`].
    pub(crate) first: Vec<u8>,
    pub(crate) eof: bool,
    pub(crate) panicked: bool,
    pub(crate) told_of_drain: bool,
    pub(crate) closed: Option<(CloseReason, CloseStats)>,
    /// In the turn of that number.
    closed_in: u64,
    /// When something was last read.
    read_at: Timestamp,
    /// When the kernel last took some of its output, as far as that shows between turns, and when it last had either
    /// taken some or left none.
    written_at: Timestamp,
    moved_at: Timestamp,
    queued: usize,
    /// Bytes received in the turn of that number.
    in_turn: (u64, usize),
}

impl Life {
    const fn new(id: ConnId, address: Option<Address>, opened: bool, now: Timestamp) -> Self {
        Self {
            id,
            address,
            opened,
            received: 0,
            first: Vec::new(),
            eof: false,
            panicked: false,
            told_of_drain: false,
            closed: None,
            closed_in: 0,
            read_at: now,
            written_at: now,
            moved_at: now,
            queued: 0,
            in_turn: (0, 0),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Lives {
    lives: BTreeMap<ConnId, Life>,
    pub(crate) violations: Vec<String>,
    /// The numbers of the messages handed over.
    pub(crate) delivered: Vec<u64>,
    /// Callbacks so far.
    pub(crate) calls: u64,
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) panics: u64,
    /// When `on_tick` last came, and how often it has.
    pub(crate) ticked: Option<Timestamp>,
    pub(crate) ticks: u64,
    turn: u64,
    /// How many each listener has opened in this turn.
    opened_in_turn: HashMap<ListenerId, usize>,
    /// Signals told of.
    pub(crate) signals: u64,
    inside: bool,
    recent: VecDeque<(Timestamp, Call, Option<ConnId>, String)>,
    now: Timestamp,
}

impl Lives {
    /// How much of the beginning of a connection's input is kept.
    pub(crate) const FIRST: usize = 64;
    /// How many of the last callbacks are kept.
    const RECENT: usize = 1000;

    pub(crate) fn new() -> Self {
        Self {
            lives: BTreeMap::new(),
            violations: Vec::new(),
            delivered: Vec::new(),
            calls: 0,
            opened: 0,
            closed: 0,
            panics: 0,
            ticked: None,
            ticks: 0,
            turn: 0,
            opened_in_turn: HashMap::new(),
            signals: 0,
            inside: false,
            recent: VecDeque::new(),
            now: Timestamp::from_nanoseconds(1),
        }
    }

    pub(crate) fn life(&self, id: ConnId) -> Option<&Life> {
        self.lives.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Life> {
        self.lives.values()
    }

    /// Those that were not over when this turn began.
    pub(crate) fn of_this_turn(&self) -> impl Iterator<Item = &Life> {
        self.iter().filter(|life| life.closed.is_none() || life.closed_in == self.turn)
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// The last callbacks, oldest first.
    pub(crate) fn recent(&self) -> Vec<String> {
        self.recent
            .iter()
            .map(|(at, call, id, more)| {
                let id = id.map_or_else(String::new, |id| format!(" {id}"));
                let call = format!("{call:?}").to_lowercase();
                format!("{:>17}  on_{call}{id} {more}", milliseconds(*at))
            })
            .collect()
    }

    /// A turn begins.
    pub(crate) fn begin_turn(&mut self, now: Timestamp) {
        self.now = now;
        self.turn += 1;
        self.opened_in_turn.clear();
    }

    /// A turn has ended, whose events came in at `now`; `queued` is what waits for each connection that is open.
    pub(crate) fn end_turn(&mut self, now: Timestamp, queued: &[(ConnId, usize)]) {
        for (id, queued) in queued {
            let Some(life) = self.lives.get_mut(id) else { continue };
            if *queued < life.queued {
                life.written_at = now;
            }
            if *queued < life.queued || *queued == 0 {
                life.moved_at = now;
            }
            life.queued = *queued;
        }
    }

    /// When the last turn began.
    pub(crate) const fn now(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn enter(&mut self, call: Call, id: Option<ConnId>) {
        if std::mem::replace(&mut self.inside, true) {
            self.violation(format!("{call:?} for {id:?} inside another callback"));
        }
        self.calls += 1;
        if self.recent.len() == Self::RECENT {
            self.recent.pop_front();
        }
        let more = match (call, id.and_then(|id| self.life(id))) {
            (Call::Data, Some(life)) => format!("received {} in all", life.received),
            (Call::Close, Some(life)) => format!("{:?}", life.closed),
            _ => String::new(),
        };
        self.recent.push_back((self.now, call, id, more));
    }

    pub(crate) const fn leave(&mut self) {
        self.inside = false;
    }

    pub(crate) fn panicked(&mut self, id: Option<ConnId>) {
        self.panics += 1;
        if let Some(life) = id.and_then(|id| self.lives.get_mut(&id)) {
            life.panicked = true;
        }
    }

    pub(crate) fn opened(&mut self, ctx: &Ctx, id: ConnId) {
        self.opened += 1;
        let address = ctx.peer_address(id).filter(|address| address.as_tcp().is_some());
        let life = Life::new(id, address.filter(|_| ctx.listener(id).is_some()), true, ctx.now());
        if self.lives.insert(id, life).is_some() {
            self.violation(format!("on_open for {id}, which there has been before"));
        }
        // When a drain begins, all who wait are accepted.
        if let Some(listener) = ctx.listener(id).filter(|_| !ctx.is_draining()) {
            let count = self.opened_in_turn.entry(listener).or_default();
            *count += 1;
            if *count > ctx.limits().accept_budget {
                self.violation(format!("on_open for {id}: more in one turn than the accept budget"));
            }
        }
    }

    pub(crate) fn received(&mut self, ctx: &Ctx, id: ConnId, new: &[u8]) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.received += new.len() as u64;
        let room = Self::FIRST - life.first.len();
        life.first.extend_from_slice(new.get(..room).unwrap_or(new));
        if life.in_turn.0 != self.turn {
            life.in_turn = (self.turn, 0);
        }
        life.in_turn.1 += new.len();
        if !new.is_empty() {
            life.read_at = ctx.now();
        }
        // The last read of a turn begins within the budget.
        let read = life.in_turn.1;
        if read >= ctx.limits().read_budget.saturating_add(ctx.limits().read_buffer) {
            self.violation(format!("on_data for {id}: {read} bytes in one turn, beyond the read budget"));
        }
    }

    pub(crate) fn ended(&mut self, id: ConnId) {
        if let Some(life) = self.lives.get_mut(&id) {
            life.eof = true;
        }
    }

    /// Says whether it had been told before.
    pub(crate) fn told_of_drain(&mut self, id: ConnId) -> bool {
        self.lives.get_mut(&id).is_some_and(|life| std::mem::replace(&mut life.told_of_drain, true))
    }

    pub(crate) fn closed(
        &mut self,
        ctx: &Ctx,
        id: ConnId,
        unconsumed: usize,
        reason: CloseReason,
        stats: &CloseStats,
    ) {
        self.closed += 1;
        let unopened = Life::new(id, None, false, ctx.now());
        let life = self.lives.entry(id).or_insert(unopened);
        let again = life.closed.replace((reason, *stats)).is_some();
        life.closed_in = self.turn;
        let implausible = implausible(ctx, life, unconsumed, reason, stats);
        if again {
            self.violation(format!("on_close for {id} again"));
        }
        if let Some(why) = implausible {
            self.violation(format!("on_close for {id}: {reason:?}, though {why}"));
        }
    }
}

/// Why `reason` cannot be.
fn implausible(
    ctx: &Ctx,
    life: &Life,
    unconsumed: usize,
    reason: CloseReason,
    stats: &CloseStats,
) -> Option<&'static str> {
    let limits = ctx.limits();
    let quiet = |since: Timestamp, timeout| ctx.now() - since >= timeout;
    let doubt = |cannot_be: bool, why| cannot_be.then_some(why);
    let by_reason = match reason {
        CloseReason::PeerClosed => doubt(!life.eof, "there was no on_eof"),
        CloseReason::HandlerPanicked => doubt(!life.panicked, "no callback for it panicked"),
        CloseReason::ConnectFailed(_) => doubt(life.opened, "it was opened"),
        CloseReason::IdleTimeout => doubt(
            !limits.idle_timeout.is_some_and(|timeout| quiet(life.read_at.max(life.written_at), timeout)),
            "there is no such limit, or something was read or written within that time",
        ),
        CloseReason::WriteStalled => doubt(
            stats.bytes_unsent == 0
                || stats.open_for < limits.write_stall_timeout
                || (life.opened && !quiet(life.moved_at, limits.write_stall_timeout)),
            "nothing was waiting, or it has not waited for so long",
        ),
        CloseReason::InputLimit => doubt(unconsumed < limits.input, "the unconsumed rest was shorter"),
        CloseReason::Shutdown => doubt(!ctx.is_draining(), "the loop is not draining"),
        _ => None,
    };
    by_reason.or_else(|| {
        doubt(
            life.opened && stats.bytes_received != life.received,
            "it counts other bytes than on_data was given",
        )
    })
}
