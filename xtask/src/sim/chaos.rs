//! A handler that does anything a callback may do, at random, and keeps book of it.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::time::Duration;

use bytes::Bytes;
use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, Ctx, Handler, Readiness, SendOutcome, Source, SourceId,
    Timestamp,
};
use fastrand::Rng;

use super::book::{Book, Heard};
use super::library::Library;
use super::pipe::PipeReader;
use super::plan::{a_while, magnitude};
use super::voice;
use super::watched::Planned;

#[derive(Debug)]
pub(crate) struct Chaos {
    rng: Rng,
    /// Nobody may lose anything.
    gentle: bool,
    /// Where it connects to.
    targets: Vec<Address>,
    connects: u32,
    /// Bytes that each connection may be sent.
    budget: usize,
    library: Option<Library>,
    open: Vec<ConnId>,
    gone: Vec<ConnId>,
    pub(crate) books: BTreeMap<ConnId, Book>,
    /// The pipe that it watches.
    pub(crate) pipe: PipeReader,
    pub(crate) violations: Vec<String>,
}

impl Chaos {
    pub(crate) fn new(rng: Rng, gentle: bool, targets: Vec<Address>, budget: usize) -> Self {
        let library = Library::open();
        Self {
            rng,
            gentle,
            targets,
            connects: 0,
            budget,
            violations: library.clone().err().into_iter().collect(),
            library: library.ok(),
            open: Vec::new(),
            gone: Vec::new(),
            books: BTreeMap::new(),
            pipe: PipeReader::default(),
        }
    }

    /// What is to happen by the clock, to connections that may be closed by now.
    pub(crate) fn dues(&self) -> impl Iterator<Item = (ConnId, Timestamp)> {
        let open = self.open().filter(|(_, book)| book.connecting.is_none());
        open.flat_map(|(id, book)| [book.timer, book.deadline].into_iter().flatten().map(move |at| (id, at)))
    }

    pub(crate) fn is_paused(&self, id: ConnId) -> bool {
        self.books.get(&id).is_none_or(|book| book.paused)
    }

    /// The books of what is open, or about to be.
    pub(crate) fn open(&self) -> impl Iterator<Item = (ConnId, &Book)> {
        self.open.iter().filter_map(|id| Some((*id, self.books.get(id)?)))
    }

    fn book(&mut self, id: ConnId) -> &mut Book {
        let budget = self.budget;
        self.books.entry(id).or_insert_with(|| Book { budget, ..Book::default() })
    }

    fn any_of(&mut self, id: Option<ConnId>) -> Option<ConnId> {
        match (id, self.rng.u8(0..10)) {
            (Some(id), 0..6) => Some(id),
            (_, 9) if !self.gone.is_empty() => Some(self.gone[self.rng.usize(0..self.gone.len())]),
            _ if !self.open.is_empty() => Some(self.open[self.rng.usize(0..self.open.len())]),
            _ => id,
        }
    }

    /// A few things.
    fn act(&mut self, ctx: &mut Ctx, id: Option<ConnId>) {
        for _ in 0..self.rng.u8(0..4) {
            if let Some(target) = self.any_of(id) {
                self.act_on(ctx, id, target);
            }
        }
        if !self.gentle && self.rng.u16(0..500) == 0 {
            id.into_iter().for_each(|id| self.book(id).panicked = true);
            resume_unwind(Box::new(Planned));
        }
    }

    fn act_on(&mut self, ctx: &mut Ctx, current: Option<ConnId>, id: ConnId) {
        let rough = !self.gentle;
        match self.rng.u8(0..100) {
            0..45 => self.send(ctx, current, id),
            45..48 => self.close_after_flush(ctx, id),
            48 if rough => {
                self.cut(ctx, id);
                ctx.close_now(id);
            }
            49 if rough => {
                self.cut(ctx, id);
                self.book(id).aborted |= ctx.is_open(id) && !self.book(id).half_closed;
                ctx.abort(id);
            }
            50 => {
                self.book(id).half_closed |= ctx.is_open(id);
                ctx.shut_down_output(id);
            }
            51..54 => self.pause(ctx, id),
            54..60 => {
                self.book(id).paused = false;
                ctx.resume_reading(id);
            }
            60..65 => ctx.read_again(id),
            65..70 => ctx.pause_until_drained(id),
            70..77 => self.set_timer(ctx, id),
            77..79 => self.cancel_timer(ctx, id),
            79 if rough => {
                let delay = a_while(&mut self.rng, Duration::from_micros(1), Duration::from_secs(60));
                if ctx.is_open(id) {
                    self.book(id).deadline = Some(ctx.now() + delay);
                }
                ctx.set_read_deadline(id, delay);
            }
            80..83 => {
                if ctx.is_open(id) {
                    self.book(id).deadline = None;
                }
                ctx.clear_read_deadline(id);
            }
            83..87 => self.account(ctx, id),
            87..90 => self.connect(ctx),
            90 if rough && self.rng.u8(0..20) == 0 => {
                let grace = a_while(&mut self.rng, Duration::from_micros(1), Duration::from_secs(10));
                ctx.drain(grace.min(ctx.limits().drain_grace));
            }
            _ => (),
        }
    }

    fn send(&mut self, ctx: &mut Ctx, current: Option<ConnId>, id: ConnId) {
        let most = self.book(id).budget;
        if most == 0 {
            return;
        }
        let count = magnitude(&mut self.rng, 1, most);
        let bytes = voice::speak(id.as_u64(), self.book(id).accepted, count);
        let (open, queued) = (ctx.is_open(id) && !self.book(id).half_closed, ctx.queued(id));
        let held = ctx.buffered() + current.map_or(0, |current| ctx.queued(current));
        let kind = self.rng.u8(0..3);
        if kind == 2 && self.send_file(ctx, current, id, count) {
            return;
        }
        let outcome = if kind == 1 {
            ctx.send_shared(id, Bytes::from(bytes.clone()))
        } else {
            match ctx.send(id, &bytes) {
                SendOutcome::Sent => SendOutcome::Sent,
                SendOutcome::Queued => SendOutcome::Queued,
                SendOutcome::OverLimit(back) => SendOutcome::OverLimit(Bytes::copy_from_slice(back)),
                SendOutcome::Gone(back) => SendOutcome::Gone(Bytes::copy_from_slice(back)),
            }
        };
        let limits = ctx.limits();
        let right = match &outcome {
            SendOutcome::Sent | SendOutcome::Queued => {
                // How much of what waits is in files, only the loop's own audit knows.
                let within = self.books.get(&id).is_some_and(|book| book.files);
                let within = within || queued + count <= limits.output;
                open && ctx.queued(id) == queued + count && within
            }
            SendOutcome::OverLimit(back) => {
                let fits = queued + count <= limits.output && held + count <= limits.memory;
                open && !fits && *back == bytes
            }
            SendOutcome::Gone(back) => !open && *back == bytes,
        };
        if !right {
            self.violations.push(format!(
                "send of {count} to {id} (open {open}, {queued} waiting, {held} held): {outcome:?}"
            ));
        }
        if outcome.is_accepted() {
            self.book(id).note_sent(count, matches!(outcome, SendOutcome::Queued));
        }
    }

    fn account(&mut self, ctx: &mut Ctx, id: ConnId) {
        let most = if !self.gentle && self.rng.u8(0..10) == 0 { ctx.limits().memory } else { 4_096 };
        let bytes = self.rng.usize(0..=most);
        // The address of one that is gone can still be had in its own `on_close`.
        if ctx.peer_address(id).is_some() && self.book(id).reason.is_none() {
            self.book(id).accounted = (bytes, Some(ctx.now()));
        }
        ctx.account(id, bytes);
    }

    /// One that surely holds more than `id` and is not taken apart before it, though both hold it for longer than
    /// this turn: at the limit of memory those go first that hold most.
    fn spared(&self, ctx: &Ctx, id: ConnId) -> Option<ConnId> {
        let limits = ctx.limits();
        let held = |id: &ConnId| self.books.get(id).map_or((0, None), |book| book.accounted);
        // Beside what is accounted for: a queue, what of it is written and not freed, and a tail with its room.
        let most = held(&id).0 + 2 * (limits.output + limits.input) + 4_096;
        let larger = |other: &ConnId| {
            let (bytes, since) = held(other);
            *other != id && bytes > most && since.is_some_and(|since| since < ctx.now())
        };
        self.open.iter().copied().find(larger)
    }

    /// The same as a part of a file; false if it is in none.
    fn send_file(&mut self, ctx: &mut Ctx, current: Option<ConnId>, id: ConnId, count: usize) -> bool {
        let Some(library) = &self.library else { return false };
        let said = self.books.get(&id).map_or(0, |book| book.accepted);
        let cheat = !self.gentle && self.rng.u8(0..50) == 0;
        let slice = if cheat { Some(library.promise(count)) } else { library.find(id.as_u64(), said, count) };
        let Some(slice) = slice else { return false };
        let (open, queued) = (ctx.is_open(id) && !self.book(id).half_closed, ctx.queued(id));
        let held = ctx.buffered() + current.map_or(0, |current| ctx.queued(current));
        let outcome = ctx.send_file(id, slice);
        let right = match &outcome {
            SendOutcome::Sent | SendOutcome::Queued => open && ctx.queued(id) == queued + count,
            // A file counts for its place alone.
            SendOutcome::OverLimit(back) => {
                open && held + 64 > ctx.limits().memory && back.length == count as u64
            }
            SendOutcome::Gone(back) => !open && back.length == count as u64,
        };
        if !right {
            self.violations.push(format!(
                "send_file of {count} to {id} (open {open}, {queued} waiting, {held} held): {outcome:?}"
            ));
        }
        if outcome.is_accepted() {
            let book = self.book(id);
            book.files = true;
            book.cheated |= cheat;
            book.note_sent(count, matches!(outcome, SendOutcome::Queued));
        }
        true
    }

    fn close_after_flush(&mut self, ctx: &mut Ctx, id: ConnId) {
        self.book(id).flushed = true;
        ctx.close_after_flush(id);
    }

    fn cut(&mut self, ctx: &Ctx, id: ConnId) {
        let there = ctx.peer_address(id).is_some();
        self.book(id).cut |= there;
    }

    fn pause(&mut self, ctx: &mut Ctx, id: ConnId) {
        if ctx.is_open(id) {
            self.book(id).paused = true;
            ctx.pause_reading(id);
            if self.gentle {
                self.set_timer(ctx, id);
            }
        }
    }

    fn set_timer(&mut self, ctx: &mut Ctx, id: ConnId) {
        let delay = match self.rng.u8(0..4) {
            0 => Duration::ZERO,
            _ => a_while(&mut self.rng, Duration::from_micros(1), Duration::from_secs(30)),
        };
        if ctx.is_open(id) {
            self.book(id).timer = Some(ctx.now() + delay.max(Duration::from_nanos(1)));
        }
        ctx.set_timer(id, delay);
    }

    fn cancel_timer(&mut self, ctx: &mut Ctx, id: ConnId) {
        let gentle = self.gentle;
        let book = self.book(id);
        if gentle && (book.paused || book.eof) {
            return;
        }
        book.timer = None;
        ctx.cancel_timer(id);
    }

    fn connect(&mut self, ctx: &mut Ctx) {
        if self.connects == 20 || self.targets.is_empty() {
            return;
        }
        self.connects += 1;
        let target = self.targets[self.rng.usize(0..self.targets.len())].clone();
        let room = ctx.connections() < ctx.limits().connections && !ctx.is_draining();
        let connected = ctx.connect(target);
        if connected.is_some() != room {
            self.violations.push(format!("connect: {connected:?}, with room {room}"));
        }
        if let Some(id) = connected {
            self.open.push(id);
            self.book(id).connecting = Some(ctx.now());
            self.send(ctx, None, id);
        }
    }

    /// How much of an input it consumes.
    fn appetite(&mut self, ctx: &Ctx, input: usize) -> usize {
        match self.rng.u8(0..10) {
            _ if self.gentle && 2 * input >= ctx.limits().input => input,
            0..6 => input,
            6 => 0,
            7 if !self.gentle => input + 1,
            _ => self.rng.usize(0..=input),
        }
    }
}

impl Handler for Chaos {
    type Conn = Heard;
    type Message = u64;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut Heard) {
        self.book(id).connecting = None;
        if !self.open.contains(&id) {
            self.open.push(id);
        }
        self.act(ctx, Some(id));
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Heard, input: &[u8]) -> usize {
        if self.book(id).paused {
            self.violations.push(format!("on_data for {id}, which is paused"));
        }
        if let Err(error) = conn.ear.hear(input.get(conn.kept..).unwrap_or_default()) {
            self.violations.push(format!("{id} hears: {error}"));
        }
        // It does not do as it says: whether that is for cause is looked at by `shedding.rs`.
        let _: bool = ctx.should_shed();
        // Should it panic, nothing is consumed, and nothing follows.
        let consumed = self.appetite(ctx, input.len());
        conn.kept = input.len() - consumed.min(input.len());
        self.act(ctx, Some(id));
        if conn.kept > 0 && self.rng.u8(0..3) == 0 {
            ctx.read_again(id);
        }
        consumed
    }

    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut Heard, unconsumed: &[u8]) {
        if unconsumed.len() != conn.kept {
            self.violations.push(format!("on_eof for {id}: {} bytes, not {}", unconsumed.len(), conn.kept));
        }
        self.book(id).eof = true;
        self.act(ctx, Some(id));
        match self.rng.u8(0..10) {
            0..7 => self.close_after_flush(ctx, id),
            _ => self.set_timer(ctx, id),
        }
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut Heard) {
        let book = self.book(id);
        (book.drain_owed, book.drains) = (false, book.drains + 1);
        self.act(ctx, Some(id));
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut Heard) {
        let now = ctx.now();
        let book = self.book(id);
        let set = book.timer.take();
        let (paused, eof) = (std::mem::take(&mut book.paused), book.eof);
        if set.is_none_or(|at| at > now) {
            self.violations.push(format!("on_timer for {id} at {now:?}, set for {set:?}"));
        }
        if paused {
            ctx.resume_reading(id);
        }
        if eof {
            self.close_after_flush(ctx, id);
        }
        self.act(ctx, Some(id));
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut Heard, _: Timestamp) {
        self.act(ctx, Some(id));
        if self.gentle || self.rng.u8(0..3) > 0 {
            self.close_after_flush(ctx, id);
        }
    }

    fn on_close(&mut self, ctx: &mut Ctx, id: ConnId, _: Heard, reason: CloseReason, stats: &CloseStats) {
        self.open.retain(|open| *open != id);
        self.gone.push(id);
        let now = ctx.now();
        if reason == CloseReason::MemoryLimit
            && let Some(larger) = self.spared(ctx, id)
        {
            self.violations.push(format!(
                "on_close for {id}: {reason:?}, and {larger}, which holds more, is still there"
            ));
        }
        let book = self.book(id);
        book.reason = Some(reason);
        let (asked, late) = (book.flushed || book.cut, book.deadline.is_some_and(|at| at <= now));
        let delivered = stats.bytes_sent + stats.bytes_unsent;
        let right = match reason {
            CloseReason::Local => asked,
            CloseReason::PeerClosed => book.eof && asked,
            // What it has been sent is still delivered.
            CloseReason::ReadTimeout => late && (stats.bytes_unsent == 0 || book.cut),
            CloseReason::FileCutShort => book.cheated,
            _ => true,
        };
        let whole = delivered == book.accepted || book.panicked;
        if !right || !whole || (book.ended_well() && stats.bytes_unsent > 0) {
            let told = format!("on_close for {id}: {reason:?}, {stats:?}, {book:?}");
            self.violations.push(told);
        }
        self.act(ctx, None);
    }

    fn on_message(&mut self, ctx: &mut Ctx, _: u64) {
        self.act(ctx, None);
    }

    fn on_tick(&mut self, ctx: &mut Ctx) {
        self.act(ctx, None);
    }

    fn on_ready(&mut self, ctx: &mut Ctx, _: SourceId, source: &Source<'_>, _: Readiness) {
        if let Err(error) = self.pipe.read(source, &mut self.rng) {
            self.violations.push(format!("from the pipe: {error}"));
        }
        self.act(ctx, None);
    }
}
