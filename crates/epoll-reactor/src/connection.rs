//! One connection: its states, what it holds, and when it must be looked at next. No calls, no callbacks;
//! `serve.rs` has those.

use epoll_sys::{Address, Errno, Readiness, Timestamp};

use crate::admission::{HEARD_OUT, TELLING};
use crate::buffer::{InputTail, OutputQueue};
use crate::handler::CloseReason;
use crate::limits::Limits;
use crate::peer::Peer;
use crate::token::ListenerId;

/// How far along its life a connection is. It only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Outbound, and not decided yet.
    Connecting,
    /// In use.
    Open,
    /// Closed by us; output is still going out.
    Flushing,
    /// All output and our FIN have gone out; input is read and discarded until the peer's FIN.
    Lingering,
    /// To be taken apart at the end of the turn.
    Dead,
}

/// The loop's side of a connection. Its descriptor and the handler's state for it lie beside it, under the
/// same index, where [`Ctx`](crate::Ctx) does not reach.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) phase: Phase,
    /// Why it is ending; set with the first step out of `Open`.
    pub(crate) reason: Option<CloseReason>,
    /// The kernel may have input: an edge came, and no read since has found the socket empty.
    pub(crate) readable: bool,
    /// The kernel may take output: no write has been cut short since the last edge.
    pub(crate) writable: bool,
    /// A short read does not mean empty: see [`Readiness::must_read_to_end`].
    pub(crate) read_to_end: bool,
    /// An edge has told of an error. A read finds it; where none follows, it has to be asked for.
    pub(crate) errored: bool,
    /// The end of the peer's stream has been read.
    pub(crate) eof: bool,
    /// Our own end of the stream, while reading goes on.
    pub(crate) fin: Fin,
    /// The handler has paused reading.
    pub(crate) paused: bool,
    /// Output passed the high water mark and is not down to the low one.
    pub(crate) above_high_water: bool,
    /// `on_drain` is owed.
    pub(crate) drain_due: bool,
    /// `on_data` is owed, with the unconsumed rest, whether or not more arrives. Nothing is read before: the
    /// end of the stream must not overtake a message that is complete.
    pub(crate) again: bool,
    /// There was no room for it: it is told so, and its handler never hears of it.
    pub(crate) refused: bool,
    /// It was open in another loop before.
    pub(crate) has_moved: bool,
    /// Close with an RST.
    pub(crate) reset_on_close: bool,
    /// It was given its budget of output in this turn, and goes on with the ready list in the next one.
    pub(crate) budget_spent: bool,
    /// It is in the list of that name, once.
    pub(crate) in_ready: bool,
    pub(crate) in_dirty: bool,
    /// It has an entry in the turn's [`Batch`](crate::batch::Batch). Invariant: `output` is `None` then.
    pub(crate) batched: bool,
    pub(crate) input: Option<Box<InputTail>>,
    /// Invariant: `None` when there is no output waiting.
    pub(crate) output: Option<Box<OutputQueue>>,
    pub(crate) peer: Peer,
    pub(crate) listener: Option<ListenerId>,
    pub(crate) opened: Timestamp,
    /// When something was last read or written.
    pub(crate) active: Timestamp,
    /// While lingering, the end of that; for one that was refused, the end of it all.
    pub(crate) read_deadline: Option<Timestamp>,
    pub(crate) timer: Option<Timestamp>,
    /// The deadline of its current entry in the timer heap.
    pub(crate) armed: Option<Timestamp>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// Bytes the handler holds for it, by its own account.
    pub(crate) held: u32,
    /// Bytes of input discarded while it lingers; once it is dead, of output dropped before it is
    /// taken apart.
    pub(crate) discarded: usize,
}

/// Whether we have ended our side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fin {
    No,
    /// It follows the output that is waiting.
    Due,
    Sent,
}

/// What a deadline that has come asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// `on_timer`.
    Timer,
    /// The end, for this reason.
    Close(CloseReason),
}

impl Connection {
    pub(crate) fn accepted(peer: Address, listener: ListenerId, now: Timestamp) -> Self {
        Self::new(Phase::Open, peer, Some(listener), now)
    }

    /// One for which there is no room.
    pub(crate) fn refused(peer: Address, listener: ListenerId, limits: &Limits, now: Timestamp) -> Self {
        let deadline = now + limits.linger_timeout.min(TELLING);
        let mut refused = Self::accepted(peer, listener, now);
        refused.refused = true;
        refused.read_deadline = Some(deadline);
        refused
    }

    pub(crate) fn outbound(peer: Address, now: Timestamp) -> Self {
        Self::new(Phase::Connecting, peer, None, now)
    }

    fn new(phase: Phase, peer: Address, listener: Option<ListenerId>, now: Timestamp) -> Self {
        Self {
            phase,
            reason: None,
            readable: false,
            // A new socket's send buffer is empty; while connecting, nothing is written anyway.
            writable: matches!(phase, Phase::Open),
            read_to_end: false,
            errored: false,
            eof: false,
            fin: Fin::No,
            paused: false,
            above_high_water: false,
            drain_due: false,
            again: false,
            refused: false,
            has_moved: false,
            reset_on_close: false,
            budget_spent: false,
            in_ready: false,
            in_dirty: false,
            batched: false,
            input: None,
            output: None,
            peer: Peer::new(peer),
            listener,
            opened: now,
            active: now,
            read_deadline: None,
            timer: None,
            armed: None,
            bytes_received: 0,
            bytes_sent: 0,
            held: 0,
            discarded: 0,
        }
    }

    pub(crate) fn note(&mut self, readiness: Readiness) {
        self.readable |= readiness.is_readable();
        self.writable |= readiness.is_writable();
        self.read_to_end |= readiness.must_read_to_end();
        self.errored |= readiness.is_error();
    }

    /// No close has been asked for.
    pub(crate) const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Open) && self.reason.is_none()
    }

    pub(crate) const fn accepts_output(&self) -> bool {
        self.is_live() && matches!(self.fin, Fin::No)
    }

    /// Input may be given to the handler.
    pub(crate) const fn may_deliver(&self) -> bool {
        matches!(self.phase, Phase::Open) && !self.paused && !self.above_high_water
    }

    pub(crate) const fn may_read(&self) -> bool {
        self.may_deliver() && self.readable && !self.eof && !self.again
    }

    pub(crate) fn queued(&self) -> usize {
        self.output.as_ref().map_or(0, |queue| queue.len())
    }

    /// Since when output waits without the kernel having taken any.
    pub(crate) fn write_blocked(&self) -> Option<Timestamp> {
        self.output.as_ref()?.blocked_since
    }

    /// What of its output is not in files.
    pub(crate) fn output_in_memory(&self) -> usize {
        self.output.as_ref().map_or(0, |queue| queue.in_memory())
    }

    /// What it counts for against the loop's limit.
    pub(crate) fn memory(&self) -> usize {
        let input = self.input.as_ref().map_or(0, |tail| tail.held());
        let output = self.output.as_ref().map_or(0, |queue| queue.charge());
        input + output + self.held as usize
    }

    /// The memory that would be free without it, at most: data that others wait for too is freed with the last of
    /// them, and counts for each that waits.
    pub(crate) fn keeps_from_being_freed(&self) -> usize {
        let shared = self.output.as_ref().map_or(0, |queue| queue.in_memory().saturating_sub(queue.charge()));
        self.memory() + shared
    }

    /// How much is read and discarded while it lingers.
    pub(crate) fn linger_bytes(&self, limits: &Limits) -> usize {
        if self.refused { limits.linger_bytes.min(HEARD_OUT) } else { limits.linger_bytes }
    }

    /// Leaves `Connecting` or `Open`. The first reason stands.
    pub(crate) fn begin_close(&mut self, reason: CloseReason) {
        self.phase = self.phase.max(Phase::Flushing);
        self.reason.get_or_insert(reason);
    }

    /// The nearest time at which [`due`](Self::due) may say something, if nothing happens before.
    pub(crate) fn next_deadline(&self, limits: &Limits) -> Option<Timestamp> {
        let stall = self.write_blocked().map(|since| since + limits.write_stall_timeout);
        let candidates = match self.phase {
            Phase::Connecting => [Some(self.opened + limits.connect_timeout), None, None, None],
            Phase::Open => {
                let idle = limits.idle_timeout.map(|timeout| self.active + timeout);
                [idle, self.read_deadline, stall, self.timer]
            }
            Phase::Flushing => [stall, self.read_deadline.filter(|_| self.refused), None, None],
            Phase::Lingering => [Some(self.active + limits.linger_quiet), self.read_deadline, None, None],
            Phase::Dead => [None; 4],
        };
        candidates.into_iter().flatten().min()
    }

    /// What has come due by `now`; `on_timer` last, since an end makes it pointless.
    pub(crate) fn due(&self, limits: &Limits, now: Timestamp) -> Due {
        let passed = |deadline: Option<Timestamp>| deadline.is_some_and(|deadline| deadline <= now);
        let after = |since: Timestamp, time| passed(Some(since + time));
        let stalled = self.write_blocked().is_some_and(|since| after(since, limits.write_stall_timeout));
        let reason = match self.phase {
            Phase::Connecting if after(self.opened, limits.connect_timeout) => {
                Some(CloseReason::ConnectFailed(Errno::ETIMEDOUT))
            }
            Phase::Open if passed(self.read_deadline) => Some(CloseReason::ReadTimeout),
            Phase::Open if limits.idle_timeout.is_some_and(|timeout| after(self.active, timeout)) => {
                Some(CloseReason::IdleTimeout)
            }
            Phase::Open | Phase::Flushing if stalled => Some(CloseReason::WriteStalled),
            Phase::Flushing if self.refused && passed(self.read_deadline) => Some(CloseReason::Local),
            // The reason was set when it began to close.
            Phase::Lingering if passed(self.read_deadline) || after(self.active, limits.linger_quiet) => {
                Some(CloseReason::Local)
            }
            _ => None,
        };
        match reason {
            Some(reason) => Due::Close(reason),
            None if passed(self.timer) && self.phase == Phase::Open => Due::Timer,
            None => Due::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::token::Token;

    fn open() -> Connection {
        Connection::accepted(
            Address::UnixUnnamed,
            ListenerId(Token::new(0, 1)),
            Timestamp::from_nanoseconds(1),
        )
    }

    /// Every connection costs this much, and a descriptor and the handler's state beside it.
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 144, "{} bytes", size_of::<Connection>());
    }

    #[test]
    fn the_first_reason_stands_and_the_phase_never_goes_back() {
        let mut connection = open();
        connection.begin_close(CloseReason::IdleTimeout);
        connection.phase = Phase::Lingering;
        connection.begin_close(CloseReason::Local);
        assert_eq!(connection.reason, Some(CloseReason::IdleTimeout));
        assert_eq!(connection.phase, Phase::Lingering);
    }

    #[test]
    fn each_deadline_comes_due_at_its_time_and_not_before() {
        let limits = Limits { idle_timeout: Some(Duration::from_secs(60)), ..Limits::default() };
        let start = Timestamp::from_nanoseconds(1);
        let later = |seconds| start + Duration::from_secs(seconds);
        type Set = fn(&mut Connection);
        let rows: [(&str, Set, u64, Due); 6] = [
            ("idle", |_| (), 60, Due::Close(CloseReason::IdleTimeout)),
            (
                "read deadline",
                |it| it.read_deadline = Some(it.opened + Duration::from_secs(5)),
                5,
                Due::Close(CloseReason::ReadTimeout),
            ),
            (
                "stall",
                |it| {
                    it.output.get_or_insert_default().blocked_since = Some(it.opened);
                },
                30,
                Due::Close(CloseReason::WriteStalled),
            ),
            ("timer", |it| it.timer = Some(it.opened + Duration::from_secs(7)), 7, Due::Timer),
            ("linger", |it| it.phase = Phase::Lingering, 1, Due::Close(CloseReason::Local)),
            (
                "connect",
                |it| it.phase = Phase::Connecting,
                10,
                Due::Close(CloseReason::ConnectFailed(Errno::ETIMEDOUT)),
            ),
        ];
        for (name, set, seconds, due) in rows {
            let mut connection = open();
            set(&mut connection);
            assert_eq!(connection.next_deadline(&limits), Some(later(seconds)), "{name}");
            assert_eq!(connection.due(&limits, later(seconds - 1)), Due::Nothing, "{name}");
            assert_eq!(connection.due(&limits, later(seconds)), due, "{name}");
        }
    }
}
