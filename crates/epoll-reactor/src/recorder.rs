//! The flight recorder: the last things a loop did, to be read when it is too late to watch. A ring of records of one
//! size, and how they read; what clients sent is in a ring beside it, `recorder/capture.rs`, if it is kept at all. What
//! they are as a file is `recorder/recording.rs`. Nothing here opens a file.

use std::fmt;
use std::time::{Duration, SystemTime};

use epoll_sys::{Errno, Readiness, Timestamp};

use crate::handler::CloseReason;
use crate::token::Token;
use capture::Capture;
pub use recording::{Recording, RecordingError};

mod capture;
mod recording;

/// What a [`Record`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordKind {
    /// A turn has ended. Its time is when its wait did; `duration` how long it took; `amount` how many events it had.
    Turn,
    /// The kernel has reported something: `detail` is the bits of epoll_ctl(2).
    Event,
    /// A callback has returned, or panicked (`extra` is 1): `detail` says which, `duration` how long it took. Its time is
    /// when it was called.
    Callback,
    /// A connection has been accepted; for one that was refused, `extra` is 1. `amount` is the client's port, 0 on a Unix
    /// socket.
    Accept,
    /// Accepting has paused: `detail` is the error.
    AcceptPaused,
    /// `amount` bytes were read; 0 is the end of the stream, unless `detail` is the error. If the bytes themselves are
    /// kept, `extra` is 1 and `duration` is their place in [`Recording::input`].
    Read,
    /// The kernel has taken `amount` bytes, unless `detail` is the error.
    Write,
    /// A connection has been taken apart: `extra` says why, `detail` is the error if that was it.
    Close,
}

impl RecordKind {
    const ALL: [Self; 8] = [
        Self::Turn,
        Self::Event,
        Self::Callback,
        Self::Accept,
        Self::AcceptPaused,
        Self::Read,
        Self::Write,
        Self::Close,
    ];

    /// Counted from 1 in a file, so that zeros are nothing.
    const fn code(self) -> u8 {
        self as u8 + 1
    }
}

/// The callbacks of a [`Handler`](crate::Handler), and what else runs in their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callback {
    Open,
    Data,
    Eof,
    Drain,
    Timer,
    Shutdown,
    Close,
    Message,
    Tick,
    Signal,
    Ready,
    Stopping,
    Inspection,
}

const CALLBACKS: [&str; 13] = [
    "on_open",
    "on_data",
    "on_eof",
    "on_drain",
    "on_timer",
    "on_shutdown",
    "on_close",
    "on_message",
    "on_tick",
    "on_signal",
    "on_ready",
    "on_stopping",
    "an inspection",
];

/// One thing that a loop did. Which of the fields mean something, and what, [`RecordKind`] says; `Display` has it in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, by the monotonic clock: the last reading of it before, which there is at least one of in each turn.
    pub time: Timestamp,
    /// The connection's id as [`ConnId::as_u64`](crate::ConnId::as_u64) has it, or a listener's or other registration's;
    /// 0 for neither.
    pub token: u64,
    /// In nanoseconds; of a read, a place.
    pub duration: u64,
    /// At most `u32::MAX`, which stands for more too.
    pub amount: u32,
    /// See [`RecordKind`].
    pub detail: u16,
    /// The number of the kind in a file, which may be one of a later version: [`kind`](Self::kind).
    pub code: u8,
    /// See [`RecordKind`].
    pub extra: u8,
}

impl Record {
    pub(crate) fn new(kind: RecordKind, token: Option<Token>) -> Self {
        Self {
            time: Timestamp::from_nanoseconds(0),
            token: token.map_or(0, Token::as_u64),
            duration: 0,
            amount: 0,
            detail: 0,
            code: kind.code(),
            extra: 0,
        }
    }

    fn with_error(self, errno: Errno) -> Self {
        Self { detail: u16::try_from(errno as i32).unwrap_or(u16::MAX), ..self }
    }

    /// What it is about; `None` for what this version does not know.
    #[must_use]
    pub fn kind(&self) -> Option<RecordKind> {
        RecordKind::ALL.into_iter().find(|kind| kind.code() == self.code)
    }

    /// A read of which the bytes are kept.
    pub(crate) fn has_input(&self) -> bool {
        self.kind() == Some(RecordKind::Read) && self.extra == 1
    }

    /// Why the connection was closed, if this is about that.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        let is_close = self.kind() == Some(RecordKind::Close);
        let reason = || CloseReason::from_index(self.extra.into(), Errno::from_raw(self.detail.into()));
        is_close.then(reason)?
    }
}

/// `epoll-server trace` prints these lines, each behind its time.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.token != 0 {
            let token = Token::from_u64(self.token);
            let what = if token.registration().is_some() { "registration" } else { "connection" };
            write!(f, "{what} {token:?}: ")?;
        }
        let took = Duration::from_nanos(self.duration);
        let errno = Errno::from_raw(self.detail.into());
        match self.kind() {
            Some(RecordKind::Turn) => write!(f, "turn with {} events, {took:?}", self.amount),
            Some(RecordKind::Event) => write!(f, "event {}", Readiness::from_bits(self.detail.into())),
            Some(RecordKind::Callback) => {
                let name = CALLBACKS.get(usize::from(self.detail)).copied().unwrap_or("an unknown callback");
                let panicked = if self.extra == 1 { ", panicked" } else { "" };
                write!(f, "{name}, {took:?}{panicked}")
            }
            Some(RecordKind::Accept) => {
                f.write_str(if self.extra == 1 { "refused" } else { "accepted" })?;
                if self.amount == 0 { Ok(()) } else { write!(f, ", from port {}", self.amount) }
            }
            Some(RecordKind::AcceptPaused) => write!(f, "accepting paused, {errno:?}"),
            Some(RecordKind::Read) if self.detail != 0 => write!(f, "read, {errno:?}"),
            Some(RecordKind::Read) if self.amount == 0 => f.write_str("read, the end"),
            Some(RecordKind::Read) => {
                write!(f, "read, {} bytes{}", self.amount, if self.extra == 1 { ", kept" } else { "" })
            }
            Some(RecordKind::Write) if self.detail != 0 => write!(f, "write, {errno:?}"),
            Some(RecordKind::Write) => write!(f, "write, {} bytes", self.amount),
            Some(RecordKind::Close) => {
                let reason = CloseReason::NAMES.get(usize::from(self.extra)).copied().unwrap_or("unknown");
                write!(f, "closed, {reason}")?;
                if self.detail == 0 { Ok(()) } else { write!(f, ", {errno:?}") }
            }
            None => write!(f, "unknown kind {}", self.code),
        }
    }
}

/// The rings. They take 32 bytes a record and the room for input, from the beginning on, and allocate nothing later.
///
/// What is called for each request is `#[cold]`: off, it must cost next to nothing.
#[derive(Debug)]
pub(crate) struct Recorder {
    records: Box<[Record]>,
    capture: Capture,
    /// Where the next one goes.
    next: usize,
    noted: u64,
    /// Of whoever looks at each, all since it last did: a turn may note more than there is room for.
    #[cfg(feature = "sim")]
    unseen: Option<Vec<Record>>,
    /// The number of the loop, where there are several.
    pub(crate) worker: u32,
    /// The last reading of the clock.
    pub(crate) now: Timestamp,
    /// It is read before each callback: it is on, or the loop is overloaded.
    pub(crate) is_timed: bool,
}

impl Recorder {
    /// One with room for `capacity` records, and for `input` bytes of what is read; with no records it is off.
    pub(crate) fn new(capacity: usize, input: usize, now: Timestamp) -> Self {
        let records = vec![Record::new(RecordKind::Turn, None); capacity].into();
        Self {
            records,
            capture: Capture::new(input),
            next: 0,
            noted: 0,
            #[cfg(feature = "sim")]
            unseen: None,
            worker: 0,
            now,
            is_timed: capacity > 0,
        }
    }

    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        !self.records.is_empty()
    }

    /// Notes it at the present time.
    fn note(&mut self, record: Record) {
        self.note_at(Record { time: self.now, ..record });
    }

    fn note_at(&mut self, record: Record) {
        #[cfg(feature = "sim")]
        self.unseen.iter_mut().for_each(|unseen| unseen.push(record));
        if let Some(place) = self.records.get_mut(self.next) {
            *place = record;
            self.noted += 1;
            self.next += 1;
            if self.next == self.records.len() {
                self.next = 0;
            }
        }
    }

    #[cold]
    pub(crate) fn turn(&mut self, began: Timestamp, ended: Timestamp, events: usize) {
        let mut record = Record::new(RecordKind::Turn, None);
        record.time = began;
        record.duration = ended.as_nanoseconds() - began.as_nanoseconds();
        record.amount = amount(events);
        self.note_at(record);
    }

    #[cold]
    pub(crate) fn event(&mut self, token: Token, readiness: Readiness) {
        let detail = u16::try_from(readiness.bits() & 0xffff).unwrap_or_default();
        self.note(Record { detail, ..Record::new(RecordKind::Event, Some(token)) });
    }

    /// One that was called at the last reading of the clock, and has returned at `ended`.
    #[cold]
    pub(crate) fn callback(
        &mut self,
        what: Callback,
        token: Option<Token>,
        ended: Timestamp,
        panicked: bool,
    ) {
        let mut record = Record::new(RecordKind::Callback, token);
        record.duration = ended.as_nanoseconds().saturating_sub(self.now.as_nanoseconds());
        record.detail = what as u16;
        record.extra = panicked.into();
        self.note(record);
        self.now = self.now.max(ended);
    }

    pub(crate) fn accepted(&mut self, token: Token, port: u16, refused: bool) {
        let record = Record::new(RecordKind::Accept, Some(token));
        self.note(Record { amount: port.into(), extra: refused.into(), ..record });
    }

    pub(crate) fn accept_paused(&mut self, token: Token, errno: Errno) {
        let record = Record::new(RecordKind::AcceptPaused, Some(token.into_registration()));
        self.note(record.with_error(errno));
    }

    /// A read into `room`, and what it came to.
    #[cold]
    pub(crate) fn read(&mut self, token: Token, room: &[u8], result: Result<usize, Errno>) {
        let input = result.ok().and_then(|count| room.get(..count)).unwrap_or_default();
        let record = Record::new(RecordKind::Read, Some(token));
        let record = match self.capture.keep(input) {
            Some(place) => Record { duration: place, extra: 1, ..record },
            None => record,
        };
        self.transfer(record, result);
    }

    /// A write, and what it came to.
    #[cold]
    pub(crate) fn wrote(&mut self, token: Token, result: Result<usize, Errno>) {
        self.transfer(Record::new(RecordKind::Write, Some(token)), result);
    }

    fn transfer(&mut self, record: Record, result: Result<usize, Errno>) {
        self.note(match result {
            Ok(bytes) => Record { amount: amount(bytes), ..record },
            Err(errno) => record.with_error(errno),
        });
    }

    pub(crate) fn closed(&mut self, token: Token, reason: CloseReason) {
        let extra = u8::try_from(reason.index()).unwrap_or(u8::MAX);
        let record = Record { extra, ..Record::new(RecordKind::Close, Some(token)) };
        self.note(match reason {
            CloseReason::Error(errno) | CloseReason::ConnectFailed(errno) => record.with_error(errno),
            _ => record,
        });
    }

    /// A copy, the oldest first; `None` if nothing has been noted.
    pub(crate) fn recording(&self, wall: SystemTime) -> Option<Recording> {
        if self.noted == 0 {
            return None;
        }
        let kept = self.records.len().min(usize::try_from(self.noted).unwrap_or(usize::MAX));
        let mut recording = Recording {
            worker: self.worker,
            overwritten: self.noted - kept as u64,
            time: self.now,
            wall,
            records: self.newest(kept).collect(),
            input: Vec::new(),
        };
        for record in recording.records.iter_mut().filter(|record| record.has_input()) {
            let place = recording.input.len() as u64;
            match self.capture.get(record.duration, record.amount as usize) {
                Some(pieces) => {
                    recording.input.extend(pieces.into_iter().flatten());
                    record.duration = place;
                }
                None => (record.duration, record.extra) = (0, 0),
            }
        }
        Some(recording)
    }

    /// All records since this was last called, however many; from the first call on they are kept for that.
    #[cfg(feature = "sim")]
    pub(crate) fn take_unseen(&mut self) -> Vec<Record> {
        self.unseen.replace(Vec::new()).unwrap_or_default()
    }

    /// The last `count` records, or as many as there is room for, in their order.
    fn newest(&self, count: usize) -> impl Iterator<Item = Record> {
        let (newest, oldest) = self.records.split_at_checked(self.next).unwrap_or_default();
        // Before the ring is full, what is behind the newest has never been noted.
        oldest.iter().chain(newest).copied().skip(self.records.len().saturating_sub(count))
    }
}

fn amount(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
