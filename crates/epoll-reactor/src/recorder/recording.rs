//! What a flight recorder held, as a value and as a file.

use std::cmp::Ordering;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use epoll_sys::Timestamp;

use super::Record;
#[cfg(doc)]
use super::RecordKind;
#[cfg(doc)]
use crate::handler::CloseReason;

/// What a loop's flight recorder held at one moment: [`Ctx::recording`](crate::Ctx::recording).
///
/// As a file: a header of 56 bytes, the records, the oldest first, then the input. All numbers are little-endian.
///
/// | offset | size | header |
/// |---|---|---|
/// | 0 | 8 | `EPOLLREC` |
/// | 8 | 2 | version of the format: 2 |
/// | 10 | 2 | size of a record: 32 |
/// | 12 | 4 | number of the loop |
/// | 16 | 8 | number of records that follow |
/// | 24 | 8 | number of older records that have been overwritten |
/// | 32 | 8 | time of the recording by the monotonic clock, in nanoseconds |
/// | 40 | 8 | the same by the wall clock, in nanoseconds since 1970-01-01 UTC |
/// | 48 | 8 | number of bytes of input behind the records, to the end of the file |
///
/// Version 1 has neither that field, its header being 48 bytes, nor input; it is read as a recording without.
///
/// | offset | size | record |
/// |---|---|---|
/// | 0 | 8 | [`time`](Record::time), in nanoseconds of the monotonic clock |
/// | 8 | 8 | [`token`](Record::token) |
/// | 16 | 8 | [`duration`](Record::duration), in nanoseconds |
/// | 24 | 4 | [`amount`](Record::amount) |
/// | 28 | 2 | [`detail`](Record::detail) |
/// | 30 | 1 | kind: 1 is [`RecordKind::Turn`], and so on in the order they are listed |
/// | 31 | 1 | [`extra`](Record::extra) |
///
/// Callbacks are numbered from 0 in the order `on_open`, `on_data`, `on_eof`, `on_drain`, `on_timer`, `on_shutdown`,
/// `on_close`, `on_message`, `on_tick`, `on_signal`, `on_ready`, `on_stopping`, and an inspection; reasons of a close in
/// the order of [`CloseReason`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The number of the loop, where there are several: [`Worker::index`](crate::Worker::index) of those that
    /// [`Workers`](crate::Workers) run. 0 of any other, unless somebody has set it.
    pub worker: u32,
    /// Older records that there was no more room for.
    pub overwritten: u64,
    /// When it was made, by the monotonic clock that the records go by.
    pub time: Timestamp,
    /// The same by the wall clock.
    pub wall: SystemTime,
    /// The oldest first. A turn is noted at its end, with the time of its beginning.
    pub records: Vec<Record>,
    /// What clients sent, as far as it is [kept](crate::Limits::capture), with their passwords:
    /// [`input_of`](Self::input_of) says which of it a read brought.
    pub input: Vec<u8>,
}

const MAGIC: [u8; 8] = *b"EPOLLREC";
const VERSION: u16 = 2;
/// The format before there was input.
const WITHOUT_INPUT: u16 = 1;
const RECORD_SIZE: u16 = 32;
const RECORD: usize = RECORD_SIZE as usize;
const HEADER: usize = 56;

impl Recording {
    /// The bytes of a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + RECORD * self.records.len() + self.input.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(RECORD_SIZE.to_le_bytes());
        bytes.extend(self.worker.to_le_bytes());
        bytes.extend((self.records.len() as u64).to_le_bytes());
        bytes.extend(self.overwritten.to_le_bytes());
        bytes.extend(self.time.as_nanoseconds().to_le_bytes());
        let wall = self.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        bytes.extend(u64::try_from(wall).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend((self.input.len() as u64).to_le_bytes());
        for record in &self.records {
            bytes.extend(record.time.as_nanoseconds().to_le_bytes());
            bytes.extend(record.token.to_le_bytes());
            bytes.extend(record.duration.to_le_bytes());
            bytes.extend(record.amount.to_le_bytes());
            bytes.extend(record.detail.to_le_bytes());
            bytes.extend([record.code, record.extra]);
        }
        bytes.extend(&self.input);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, here or elsewhere. It takes no more memory than `bytes` do.
    ///
    /// # Errors
    /// What is wrong with it. Records of an unknown kind are not: they are read, and say so when they are shown. Nor are
    /// reads whose input is not there.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordingError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(RecordingError::NoRecording)?;
        let mut header = Fields(rest);
        let (version, size) = (header.u16(), header.u16());
        let worker = header.u32();
        let [count, overwritten, time, wall] = [(); 4].map(|()| header.u64());
        let (Some(worker), Some(count), Some(overwritten)) = (worker, count, overwritten) else {
            return Err(RecordingError::CutShort);
        };
        let (Some(version), Some(size), Some(time), Some(wall)) = (version, size, time, wall) else {
            return Err(RecordingError::CutShort);
        };
        if !matches!(version, VERSION | WITHOUT_INPUT) || size != RECORD_SIZE {
            return Err(RecordingError::Version(version));
        }
        let length = if version == WITHOUT_INPUT { Some(0) } else { header.u64() };
        let records = usize::try_from(count).ok().and_then(|count| count.checked_mul(RECORD));
        let records = records.and_then(|length| header.0.split_at_checked(length));
        let (Some(length), Some((records, input))) = (length, records) else {
            return Err(RecordingError::CutShort);
        };
        match (input.len() as u64).cmp(&length) {
            Ordering::Less => return Err(RecordingError::CutShort),
            Ordering::Greater => return Err(RecordingError::TooLong),
            Ordering::Equal => (),
        }
        let (records, _) = records.as_chunks::<RECORD>();
        Ok(Self {
            worker,
            overwritten,
            time: Timestamp::from_nanoseconds(time),
            wall: UNIX_EPOCH + Duration::from_nanos(wall),
            records: records.iter().filter_map(|bytes| record(bytes)).collect(),
            input: input.to_vec(),
        })
    }

    /// The bytes that `record` is about: those of a read, if they are kept.
    #[must_use]
    pub fn input_of(&self, record: &Record) -> Option<&[u8]> {
        let begin = usize::try_from(record.duration).ok()?;
        let end = begin.checked_add(usize::try_from(record.amount).ok()?)?;
        self.input.get(begin..end).filter(|_| record.has_input())
    }

    /// The wall clock at the time of `record`, as this clock was when the recording was made; 1970 for what would be
    /// before that, in a file that somebody else has made up.
    #[must_use]
    pub fn wall_at(&self, record: &Record) -> SystemTime {
        let (before, after) = (self.time - record.time, record.time - self.time);
        self.wall.checked_sub(before).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH) + after
    }
}

fn record(bytes: &[u8]) -> Option<Record> {
    let mut fields = Fields(bytes);
    Some(Record {
        time: Timestamp::from_nanoseconds(fields.u64()?),
        token: fields.u64()?,
        duration: fields.u64()?,
        amount: fields.u32()?,
        detail: fields.u16()?,
        code: fields.u8()?,
        extra: fields.u8()?,
    })
}

/// Numbers in a row.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const SIZE: usize>(&mut self) -> Option<[u8; SIZE]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// Why bytes are no recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordingError {
    /// They do not begin like one.
    NoRecording,
    /// The format is of another version.
    Version(u16),
    /// They end too early.
    CutShort,
    /// There is more than it is to have.
    TooLong,
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRecording => f.write_str("not a recording of a loop"),
            Self::Version(version) => {
                write!(f, "a recording of version {version}, and only versions up to {VERSION} can be read")
            }
            Self::CutShort => f.write_str("a recording that was cut short"),
            Self::TooLong => f.write_str("a recording with something behind its end"),
        }
    }
}

impl std::error::Error for RecordingError {}
