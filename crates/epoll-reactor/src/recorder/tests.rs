//! The ring, and the format from both ends.
use proptest::prelude::*;

use super::*;

fn event(number: u64) -> Record {
    Record { duration: number, ..Record::new(RecordKind::Event, Some(Token::new(3, 1))) }
}

fn recorder(capacity: usize) -> Recorder {
    Recorder::new(capacity, 0, Timestamp::from_nanoseconds(1_000))
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
    recorder.accepted(token, 0, false);
    recorder.accepted(token, 51_234, false);
    recorder.accepted(token, 0, true);
    recorder.accept_paused(token, Errno::EMFILE);
    recorder.event(token, Readiness::from_bits(0x2005));
    recorder.read(token, &[7; 512], Ok(512));
    recorder.read(token, &[7; 512], Ok(0));
    recorder.read(token, &[7; 512], Err(Errno::EAGAIN));
    recorder.callback(Callback::Data, Some(token), began + Duration::from_micros(1500), false);
    recorder.callback(Callback::Tick, None, began + Duration::from_micros(1600), true);
    recorder.wrote(token, Ok(1 << 40));
    recorder.wrote(token, Err(Errno::EPIPE));
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
            "connection 3.1: accepted, from port 51234",
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

#[test]
fn of_what_is_read_the_last_is_kept_each_read_whole_or_not_at_all() {
    let token = Token::new(3, 1);
    let mut recorder = Recorder::new(20, 10, Timestamp::from_nanoseconds(1_000));
    for (input, count) in [("abc", 3), ("defgh", 5), ("xx", 0), ("longer than ten", 15), ("ijk??", 3)] {
        recorder.read(token, input.as_bytes(), Ok(count));
    }
    recorder.read(token, b"xx", Err(Errno::EAGAIN));
    recorder.wrote(token, Ok(2));
    let recording = recorder.recording(SystemTime::UNIX_EPOCH).unwrap();
    let inputs = |it: &Recording| {
        let inputs = it.records.iter().map(|record| it.input_of(record));
        inputs.map(|input| input.map(|it| String::from_utf8_lossy(it).into_owned())).collect::<Vec<_>>()
    };
    // What is oldest has made room, one byte of it and so all.
    let expected = [None, Some("defgh"), None, None, Some("ijk"), None, None];
    assert_eq!(inputs(&recording), expected.map(|it| it.map(str::to_owned)));
    assert_eq!(recording.input, b"defghijk", "and nothing that no read is about");
    let lines: Vec<String> = recording.records.iter().map(Record::to_string).collect();
    assert_eq!(lines[0], "connection 3.1: read, 3 bytes");
    assert_eq!(lines[1], "connection 3.1: read, 5 bytes, kept");
    let read = Recording::from_bytes(&recording.to_bytes()).unwrap();
    assert_eq!(inputs(&read), inputs(&recording));
    assert_eq!(read, recording);
}

#[test]
fn a_place_that_is_not_there_is_no_input() {
    let mut recorder = Recorder::new(20, 10, Timestamp::from_nanoseconds(1_000));
    recorder.read(Token::new(3, 1), b"abc", Ok(3));
    let mut recording = recorder.recording(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(recording.input_of(&recording.records[0]), Some(&b"abc"[..]));
    for (duration, amount) in [(1, 3), (u64::MAX, 3), (0, u32::MAX), (0, 4)] {
        recording.records[0].duration = duration;
        recording.records[0].amount = amount;
        assert_eq!(recording.input_of(&recording.records[0]), None, "{duration} {amount}");
    }
}

#[test]
fn the_reason_of_a_close_can_be_read_again() {
    let token = Token::new(3, 1);
    let mut recorder = recorder(20);
    let reasons: Vec<_> =
        (0..CloseReason::NAMES.len()).filter_map(|it| CloseReason::from_index(it, Errno::EPIPE)).collect();
    assert_eq!(reasons.iter().map(|it| it.name()).collect::<Vec<_>>(), CloseReason::NAMES);
    for reason in &reasons {
        recorder.closed(token, *reason);
    }
    recorder.wrote(token, Ok(2));
    recorder.note(Record { extra: 200, ..Record::new(RecordKind::Close, Some(token)) });
    let recording = recorder.recording(SystemTime::UNIX_EPOCH).unwrap();
    let read: Vec<_> = recording.records.iter().filter_map(Record::close_reason).collect();
    assert_eq!(read, reasons);
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
        input: b"input".to_vec(),
    };
    let mut bytes = b"EPOLLREC\x02\x00\x20\x00\x02\x00\x00\x00\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0".to_vec();
    bytes.extend(b"\x05\x04\0\0\0\0\0\0\x07\x06\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
    bytes.extend(b"\x11\0\0\0\0\0\0\0\x22\0\0\0\0\0\0\0\x33\0\0\0\0\0\0\0\x44\0\0\0\x66\x55\x03\x01input");
    assert_eq!(recording.to_bytes(), bytes);
    assert_eq!(Recording::from_bytes(&bytes).as_ref(), Ok(&recording));
    let error = |bytes: &[u8]| Recording::from_bytes(bytes).unwrap_err();
    for length in 8..bytes.len() {
        assert_eq!(error(&bytes[..length]), RecordingError::CutShort, "{length}");
    }
    assert_eq!(error(b"EPOLLRE"), RecordingError::NoRecording);
    assert_eq!(error(&[&bytes[..], b"x"].concat()), RecordingError::TooLong);
    assert_eq!(error(&[&bytes[..], &[0; 32]].concat()), RecordingError::TooLong);
    for version in [0, 3, 9] {
        bytes[8] = version;
        assert_eq!(error(&bytes), RecordingError::Version(version.into()));
    }
    // As it was before there was input.
    bytes[8] = 1;
    bytes.drain(48..56);
    let without = Recording { input: Vec::new(), ..recording };
    bytes.truncate(80);
    assert_eq!(Recording::from_bytes(&bytes), Ok(without));
    for length in 8..bytes.len() {
        assert_eq!(error(&bytes[..length]), RecordingError::CutShort, "{length}");
    }
    assert_eq!(error(&[&bytes[..], b"x"].concat()), RecordingError::TooLong);
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
        version in 0_u8..4,
        count in 0_usize..4,
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let header = if version == 1 { 48 } else { 56 };
        let length = header + 32 * count;
        let good = (1..3).contains(&version) && bytes.len() >= length;
        if good {
            let head = [&b"EPOLLREC"[..], &[version, 0, 32, 0, 0, 0, 0, 0], &(count as u64).to_le_bytes()].concat();
            bytes.splice(..24, head);
            match version {
                1 => bytes.truncate(length),
                _ => _ = bytes.splice(48..56, ((bytes.len() - length) as u64).to_le_bytes()),
            }
        }
        let read = Recording::from_bytes(&bytes);
        prop_assert!(!good || read.is_ok());
        if let Ok(recording) = read {
            for record in &recording.records {
                prop_assert!(!record.to_string().is_empty());
                let _: SystemTime = recording.wall_at(record);
                let input = recording.input_of(record).unwrap_or_default();
                prop_assert!(input.len() <= recording.input.len());
                let _: Option<CloseReason> = record.close_reason();
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
        input in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let recording = Recording {
            worker,
            overwritten,
            time: Timestamp::from_nanoseconds(time),
            wall: SystemTime::UNIX_EPOCH + Duration::from_nanos(wall),
            records,
            input,
        };
        prop_assert_eq!(Recording::from_bytes(&recording.to_bytes()), Ok(recording));
    }
}
