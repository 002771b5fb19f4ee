//! What a recording has its clients do, and when. Not the doing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use epoll_sys::{Errno, Timestamp};

use super::{Course, LeftOut, LeftOutReason};
use crate::handler::CloseReason;
use crate::recorder::{Record, RecordKind, Recording};
use crate::token::{ConnId, Token};

/// Who is played, who is not, and what is done.
#[derive(Debug)]
pub(super) struct Script<'a> {
    pub(super) clients: Vec<Role>,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) turns: Vec<Scene<'a>>,
}

/// One client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Role {
    pub(super) connection: ConnId,
    pub(super) course: Course,
    /// How many things it does.
    pub(super) acts: usize,
}

/// What a turn of the loop found that clients had done.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    /// When it began, or the first callback in it that is about it: by the recording's clock.
    pub(super) time: Timestamp,
    /// In order, and whose each is: an index of [`Script::clients`].
    pub(super) acts: Vec<(usize, Act<'a>)>,
}

/// Something that a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act<'a> {
    Connect,
    Send(&'a [u8]),
    /// It sends a FIN.
    Finish,
    Reset,
}

/// A connection, before it is known whether it can be played.
struct Draft {
    role: Role,
    left_out: Option<LeftOutReason>,
    /// The turn in which it last sent something.
    sent_in: Option<usize>,
    /// The turn in which it was last answered after that.
    answered_in: Option<usize>,
    /// Nothing comes after that.
    is_reset: bool,
}

/// What reads brought, one behind another, as a loop writes it down. No byte is given out twice: a small file that
/// somebody has made up could stand for more than there is memory.
struct InputInOrder<'a> {
    recording: &'a Recording,
    /// Bytes that were given out, or passed over.
    taken: u64,
}

impl<'a> InputInOrder<'a> {
    fn take(&mut self, record: &Record) -> Option<&'a [u8]> {
        let input = self.recording.input_of(record).filter(|_| record.duration >= self.taken)?;
        self.taken = record.duration + input.len() as u64;
        Some(input)
    }
}

impl<'a> Script<'a> {
    pub(super) fn new(recording: &'a Recording) -> Self {
        let mut drafts: Vec<Draft> = Vec::new();
        let mut indexes = HashMap::new();
        // Each with twice the number of its turn, and the draft that it is of; what is odd comes behind that turn.
        let mut acts: Vec<(usize, Timestamp, usize, Act<'a>)> = Vec::new();
        let mut turn = 0;
        let mut input = InputInOrder { recording, taken: 0 };
        for record in &recording.records {
            let kind = match record.kind() {
                // It is noted at the end of what it consists of.
                Some(RecordKind::Turn) => {
                    turn += 1;
                    continue;
                }
                // The kernel may have one left of a connection that is no more.
                None | Some(RecordKind::Event | RecordKind::AcceptPaused) => continue,
                Some(kind) => kind,
            };
            if Token::from_u64(record.token).registration().is_some() {
                continue;
            }
            let (index, is_new) = match indexes.entry(record.token) {
                Entry::Occupied(index) => (*index.get(), false),
                Entry::Vacant(place) => {
                    drafts.push(Draft::begin(record, kind));
                    (*place.insert(drafts.len() - 1), true)
                }
            };
            let Some(draft) = drafts.get_mut(index) else { continue };
            draft.role.course.note(record);
            if kind == RecordKind::Write && record.detail == 0 && draft.sent_in == Some(turn) {
                draft.answered_in = Some(turn);
            }
            if let Some(act) = draft.act(&mut input, record, kind, is_new) {
                let is_late = draft.is_late(turn, act);
                acts.push((2 * turn + usize::from(is_late), record.time, index, act));
            }
        }
        // A stable sort: the order within a turn stays.
        acts.sort_by_key(|(turn, ..)| *turn);
        Self::cast(&drafts, acts)
    }

    /// Leaves out who cannot be played, and with them what they do.
    fn cast(drafts: &[Draft], acts: Vec<(usize, Timestamp, usize, Act<'a>)>) -> Self {
        let mut script = Self { clients: Vec::new(), left_out: Vec::new(), turns: Vec::new() };
        let mut clients = Vec::with_capacity(drafts.len());
        for Draft { role, left_out, .. } in drafts {
            clients.push(left_out.is_none().then_some(script.clients.len()));
            match *left_out {
                None => script.clients.push(*role),
                Some(reason) => script.left_out.push(LeftOut { connection: role.connection, reason }),
            }
        }
        let mut last = None;
        for (turn, time, index, act) in acts {
            let Some(client) = clients.get(index).copied().flatten() else { continue };
            if last.replace(turn) != Some(turn) {
                script.turns.push(Scene { time, acts: Vec::new() });
            }
            if let Some(scene) = script.turns.last_mut() {
                scene.acts.push((client, act));
            }
            if let Some(role) = script.clients.get_mut(client) {
                role.acts += 1;
            }
        }
        script
    }
}

impl Draft {
    /// With the first that is said of it.
    fn begin(record: &Record, kind: RecordKind) -> Self {
        let left_out = match kind {
            RecordKind::Accept if record.extra == 0 => None,
            RecordKind::Accept => Some(LeftOutReason::Refused),
            _ => Some(LeftOutReason::NotAccepted),
        };
        let connection = ConnId::from_u64(record.token);
        let role = Role { connection, course: Course::default(), acts: 0 };
        Self { role, left_out, sent_in: None, answered_in: None, is_reset: false }
    }

    /// What the client has done, for the loop to have noted that.
    fn act<'a>(
        &mut self,
        input: &mut InputInOrder<'a>,
        record: &Record,
        kind: RecordKind,
        is_new: bool,
    ) -> Option<Act<'a>> {
        let act = match kind {
            RecordKind::Accept if is_new => Act::Connect,
            RecordKind::Read if record.detail != 0 => match Errno::from_raw(record.detail.into()) {
                Errno::EAGAIN => return None,
                _ => Act::Reset,
            },
            RecordKind::Read if record.amount == 0 => Act::Finish,
            RecordKind::Read => match input.take(record) {
                Some(input) => Act::Send(input),
                None => {
                    self.left_out.get_or_insert(LeftOutReason::InputLost);
                    return None;
                }
            },
            // A write has found out, or an event.
            RecordKind::Close => match record.close_reason() {
                Some(CloseReason::Reset | CloseReason::Error(_)) => Act::Reset,
                Some(CloseReason::HandedOver) => {
                    self.left_out.get_or_insert(LeftOutReason::HandedOver);
                    return None;
                }
                _ => return None,
            },
            _ => return None,
        };
        let is_too_late = self.is_reset;
        self.is_reset |= act == Act::Reset;
        (!is_too_late).then_some(act)
    }

    /// Whether `act`, which was found in `turn`, had not been done when that began: a reset in the middle of it, when what was
    /// said in it had been answered. Else the simulated kernel would refuse the answer.
    fn is_late(&mut self, turn: usize, act: Act<'_>) -> bool {
        if matches!(act, Act::Send(_)) {
            self.sent_in = Some(turn);
        }
        act == Act::Reset && self.answered_in == Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// Time, connection, what, amount, error.
    type Brief = (u64, Option<u32>, RecordKind, u32, Option<Errno>);

    fn recording(what: &[Brief]) -> Recording {
        let record = |&(time, index, kind, amount, errno): &Brief| {
            let record = Record::new(kind, index.map(|index| Token::new(index, 1)));
            let detail = errno.map_or(0, |errno| u16::try_from(errno as i32).unwrap());
            let extra = u8::from(kind == RecordKind::Read && errno.is_none() && amount > 0);
            let time = Timestamp::from_nanoseconds(time);
            Record { time, amount, detail, extra, ..record }
        };
        Recording {
            worker: 0,
            overwritten: 0,
            time: Timestamp::from_nanoseconds(1_000),
            wall: SystemTime::UNIX_EPOCH,
            records: what.iter().map(record).collect(),
            input: b"input".to_vec(),
        }
    }

    fn scenes<'a>(script: &'a Script<'_>) -> Vec<(u64, &'a [(usize, Act<'a>)])> {
        script.turns.iter().map(|scene| (scene.time.as_nanoseconds(), scene.acts.as_slice())).collect()
    }

    #[test]
    fn what_clients_did_is_in_the_turn_that_found_it() {
        use RecordKind::{Accept, Read, Turn};
        let recording = recording(&[
            (10, Some(0), Accept, 5_000, None),
            (10, None, Turn, 1, None),
            // A turn in which nothing came of clients, and one that has an accept twice, as no loop has it.
            (20, None, Turn, 1, None),
            (30, Some(1), Accept, 5_001, None),
            (30, Some(1), Accept, 5_001, None),
            (31, Some(0), Read, 2, None),
            (32, Some(0), Read, 3, Some(Errno::EAGAIN)),
            (30, None, Turn, 2, None),
            (40, Some(0), Read, 0, None),
        ]);
        let script = Script::new(&recording);
        assert_eq!(
            scenes(&script),
            [
                (10, &[(0, Act::Connect)][..]),
                (30, &[(1, Act::Connect), (0, Act::Send(b"in"))]),
                (40, &[(0, Act::Finish)])
            ]
        );
        assert_eq!(script.clients.iter().map(|role| role.acts).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn whatever_finds_out_about_a_reset_it_is_one_and_the_last_that_is_done() {
        use RecordKind::{Accept, Close, Read, Write};
        let close = |reason: CloseReason| Record {
            extra: u8::try_from(reason.index()).unwrap(),
            ..Record::new(Close, Some(Token::new(0, 1)))
        };
        let found: [(&[_], CloseReason, bool); 5] = [
            (&[(2, Some(0), Read, 0, Some(Errno::ECONNRESET))], CloseReason::Reset, true),
            (&[(2, Some(0), Write, 0, Some(Errno::EPIPE))], CloseReason::Reset, true),
            (&[], CloseReason::Error(Errno::ETIMEDOUT), true),
            (&[], CloseReason::Local, false),
            (&[], CloseReason::HandlerPanicked, false),
        ];
        for (records, reason, is_reset) in found {
            let records = [&[(1, Some(0), Accept, 5_000, None)], records].concat();
            let mut recording = recording(&records);
            recording.records.push(close(reason));
            let script = Script::new(&recording);
            let acts: Vec<_> =
                script.turns.iter().flat_map(|scene| &scene.acts).map(|(_, act)| *act).collect();
            let expected = [Act::Connect, Act::Reset];
            assert_eq!(acts, expected[..1 + usize::from(is_reset)], "{reason:?}");
        }
    }

    #[test]
    fn one_that_went_on_in_another_loop_is_left_out() {
        let mut recording = recording(&[(1, Some(0), RecordKind::Accept, 5_000, None)]);
        recording.records.push(Record {
            extra: u8::try_from(CloseReason::HandedOver.index()).unwrap(),
            ..Record::new(RecordKind::Close, Some(Token::new(0, 1)))
        });
        let script = Script::new(&recording);
        let connection = ConnId(Token::new(0, 1));
        assert_eq!(script.left_out, [LeftOut { connection, reason: LeftOutReason::HandedOver }]);
        assert!(script.clients.is_empty() && script.turns.is_empty());
    }

    #[test]
    fn an_outbound_connection_has_no_client() {
        let recording = recording(&[
            (10, Some(0), RecordKind::Callback, 0, None),
            (20, Some(0), RecordKind::Read, 2, None),
            // Of one that is no more, and of a listener.
            (30, Some(1), RecordKind::Event, 0, None),
            (30, Some(1 << 31), RecordKind::Callback, 0, None),
            (30, None, RecordKind::Callback, 0, None),
        ]);
        let script = Script::new(&recording);
        let connection = ConnId(Token::new(0, 1));
        assert_eq!(script.left_out, [LeftOut { connection, reason: LeftOutReason::NotAccepted }]);
        assert!(script.clients.is_empty() && script.turns.is_empty());
    }
}
