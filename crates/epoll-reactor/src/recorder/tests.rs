//! The ring, and the format from both ends.
use proptest::prelude::*;

use super::*;

fn event(number: u64) -> Record {
    Record { duration: number, ..Record::new(RecordKind::Event, Some(Token::new(3, 1))) }
}

fn recorder(capacity: usize) -> Recorder {
    Recorder::new(capacity, Timestamp::from_nanoseconds(1_000))
}

fn numbers(recorder: &Recorder) -> (Vec<u64>, u64) {
    let recording = recorder.recording(SystemTime::UNIX_EPOCH).unwrap();
    (recording.records.iter().map(|record| record.duration).collect(), recording.overwritten)
}

#[test]
fn the_ring_keeps_the_newest_in_their_order_and_counts_the_rest() {
    let mut recorder = recorder(3);
    assert_eq!(recorder.recording(SystemTime::UNIX_EPOCH), None, "nothing has been noted");
    let expected: [&[u64]; 6] = [&[0], &[0, 1], &[0, 1, 2], &[1, 2, 3], &[2, 3, 4], &[3, 4, 5]];
    for (number, expected) in (0..).zip(expected) {
        recorder.note(event(number));
        assert_eq!(numbers(&recorder), (expected.to_vec(), (number + 1).saturating_sub(3)));
    }
}

#[test]
fn without_room_it_is_off() {
    let mut recorder = recorder(0);
    assert!(!recorder.is_on());
    recorder.note(event(1));
    assert_eq!(recorder.recording(SystemTime::UNIX_EPOCH), None);
}

#[test]
fn a_record_takes_as_much_memory_as_in_a_file() {
    assert_eq!(size_of::<Record>(), 32);
}

#[test]
fn every_record_reads_as_what_it_is() {
    let token = Token::new(3, 1);
    let mut recorder = recorder(20);
    let began = recorder.now;
    recorder.event(token.into_registration(), Readiness::from_bits(1));
    recorder.accepted(token, false);
    recorder.accepted(token, true);
    recorder.accept_paused(token, Errno::EMFILE);
    recorder.event(token, Readiness::from_bits(0x2005));
    recorder.transfer(RecordKind::Read, token, Ok(512));
    recorder.transfer(RecordKind::Read, token, Ok(0));
    recorder.transfer(RecordKind::Read, token, Err(Errno::EAGAIN));
    recorder.callback(Callback::Data, Some(token), began + Duration::from_micros(1500), false);
    recorder.callback(Callback::Tick, None, began + Duration::from_micros(1600), true);
    recorder.transfer(RecordKind::Write, token, Ok(1 << 40));
    recorder.transfer(RecordKind::Write, token, Err(Errno::EPIPE));
    recorder.closed(token, CloseReason::Error(Errno::ETIMEDOUT));
    recorder.closed(token, CloseReason::HandlerPanicked);
    recorder.turn(began, began + Duration::from_millis(2), 7);
    recorder.note(Record { code: 99, ..event(0) });
    let recording = recorder.recording(SystemTime::UNIX_EPOCH).unwrap();
    let lines: Vec<String> = recording.records.iter().map(Record::to_string).collect();
    assert_eq!(
        lines,
        [
            "registration 3.1: event EPOLLIN",
            "connection 3.1: accepted",
            "connection 3.1: refused",
            "registration 3.1: accepting paused, EMFILE",
            "connection 3.1: event EPOLLIN | EPOLLOUT | EPOLLRDHUP",
            "connection 3.1: read, 512 bytes",
            "connection 3.1: read, the end",
            "connection 3.1: read, EAGAIN",
            "connection 3.1: on_data, 1.5ms",
            "on_tick, 100µs, panicked",
            "connection 3.1: write, 4294967295 bytes",
            "connection 3.1: write, EPIPE",
            "connection 3.1: closed, error, ETIMEDOUT",
            "connection 3.1: closed, handler_panicked",
            "turn with 7 events, 2ms",
            "connection 3.1: unknown kind 99",
        ]
    );
    assert_eq!(Recording::from_bytes(&recording.to_bytes()), Ok(recording));
}

/// Written down, so that a file of today can be read by a version of tomorrow.
#[test]
fn the_bytes_of_a_file_are_those_of_its_documentation() {
    let recording = Recording {
        worker: 2,
        overwritten: 3,
        time: Timestamp::from_nanoseconds(0x0405),
        wall: SystemTime::UNIX_EPOCH + Duration::from_nanos(0x0607),
        records: vec![Record {
            time: Timestamp::from_nanoseconds(0x11),
            token: 0x22,
            duration: 0x33,
            amount: 0x44,
            detail: 0x5566,
            code: RecordKind::Callback.code(),
            extra: 1,
        }],
    };
    let mut bytes = b"EPOLLREC\x01\x00\x20\x00\x02\x00\x00\x00\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0".to_vec();
    bytes.extend(b"\x05\x04\0\0\0\0\0\0\x07\x06\0\0\0\0\0\0");
    bytes.extend(b"\x11\0\0\0\0\0\0\0\x22\0\0\0\0\0\0\0\x33\0\0\0\0\0\0\0\x44\0\0\0\x66\x55\x03\x01");
    assert_eq!(recording.to_bytes(), bytes);
    assert_eq!(Recording::from_bytes(&bytes).as_ref(), Ok(&recording));
    let error = |bytes: &[u8]| Recording::from_bytes(bytes).unwrap_err();
    for length in 8..bytes.len() {
        assert_eq!(error(&bytes[..length]), RecordingError::CutShort, "{length}");
    }
    assert_eq!(error(b"EPOLLRE"), RecordingError::NoRecording);
    assert_eq!(error(&[&bytes[..], b"x"].concat()), RecordingError::TooLong);
    assert_eq!(error(&[&bytes[..], &[0; 32]].concat()), RecordingError::TooLong);
    bytes[8] = 9;
    assert_eq!(error(&bytes), RecordingError::Version(9));
}

prop_compose! {
    fn any_record()(time in 1u64.., token: u64, duration: u64, amount: u32, rest: (u16, u8, u8)) -> Record {
        let (detail, code, extra) = rest;
        Record { time: Timestamp::from_nanoseconds(time), token, duration, amount, detail, code, extra }
    }
}

proptest! {
    /// Whatever the bytes are, behind a good beginning or none, they are read or refused, and shown.
    #[test]
    fn any_bytes_can_be_read(
        good in any::<bool>(),
        count in 0u64..4,
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if good && bytes.len() >= 40 {
            let count = count.to_le_bytes();
            bytes.splice(..16, [&b"EPOLLREC\x01\x00\x20\x00\x00\x00\x00\x00"[..], &count].concat());
            bytes.truncate(48 + 32 * usize::from(count[0]));
        }
        if let Ok(recording) = Recording::from_bytes(&bytes) {
            for record in &recording.records {
                prop_assert!(!record.to_string().is_empty());
                let _: SystemTime = recording.wall_at(record);
            }
        }
    }

    /// What was written is what is read.
    #[test]
    fn a_file_holds_what_was_recorded(
        records in prop::collection::vec(any_record(), 0..20),
        worker: u32,
        overwritten: u64,
        time in 1u64..,
        wall: u64,
    ) {
        let recording = Recording {
            worker,
            overwritten,
            time: Timestamp::from_nanoseconds(time),
            wall: SystemTime::UNIX_EPOCH + Duration::from_nanos(wall),
            records,
        };
        prop_assert_eq!(Recording::from_bytes(&recording.to_bytes()), Ok(recording));
    }
}
