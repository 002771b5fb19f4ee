//! Answers that go out as the client reads: streams, parts, and files.

use super::super::super::date::DateHeader;
use super::super::super::output::NotCached;
use super::super::super::response::Response;
use super::super::super::sending::BodyWriter;
use super::driver::{Driver, Fate, limits};
use super::player::{Told, pattern};
use super::*;

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

fn body(length: usize) -> String {
    String::from_utf8(pattern(0..length)).unwrap()
}

/// What one request comes to, with another behind it.
fn played(input: &str, limits: HttpLimits) -> Driver {
    let mut driver = Driver::new(limits);
    driver.receive(format!("{input}{}", get("/next")).as_bytes());
    driver.told();
    driver
}

#[test]
fn each_client_has_the_end_told_in_its_own_way() {
    let (new, old) = ("HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let driver = played(&format!("GET /flow=10:4 {new}"), limits());
    let date = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
    let chunks = "2\r\nab\r\n2\r\ncd\r\n2\r\nef\r\n2\r\ngh\r\n1\r\ni\r\n1\r\nj\r\n0\r\n\r\n";
    let expected = format!("HTTP/1.1 200 OK\r\n{date}Transfer-Encoding: chunked\r\n\r\n{chunks}HTTP/1.1 200");
    assert!(driver.sent().starts_with(&expected), "{}", driver.sent());
    assert_eq!(driver.seen(&[]), ["200 abcdefghij", "200 [GET /next ]"]);

    let driver = played(&format!("GET /flow=10:4 {old}"), limits());
    assert_eq!(driver.sent(), format!("HTTP/1.1 200 OK\r\n{date}Connection: close\r\n\r\nabcdefghij"));
    assert_eq!(driver.fate, Some(Fate::Closed(None)), "which is the end");

    for (version, line) in [(new, ""), (old, "Connection: keep-alive\r\n")] {
        let driver = played(&format!("GET /sized=10:4 {version}"), limits());
        let head = format!("HTTP/1.1 200 OK\r\n{date}Content-Length: 10\r\n{line}\r\n");
        assert!(driver.sent().starts_with(&format!("{head}abcdefghijHTTP/1.1 200")), "{}", driver.sent());
        assert_eq!(driver.fate, None, "with a length it need not be");
    }
}

#[test]
fn a_stream_that_is_not_sent_has_its_end_too() {
    for request in ["HEAD /WORDS HTTP/1.1", "HEAD /WORDS HTTP/1.0", "GET /WORDS,status=204 HTTP/1.1"] {
        for words in ["flow=10:3", "sized=10:3", "later,flow=10:3", "job,sized=10:3"] {
            let mut driver = Driver::new(limits());
            let request = request.replace("WORDS", words);
            driver.receive(format!("{request}\r\nHost: h\r\n\r\n").as_bytes());
            assert_eq!(driver.player.asked, 0, "{request}: nobody wants its body");
            let status = driver.answers(&[true]).unwrap()[0].status;
            let told = driver.told();
            assert_eq!(told.iter().filter(|told| **told == Told::End(0, true)).count(), 1, "{request}");
            assert!(told.contains(&Told::Answered(Ok(0), status, 0)), "{request}: {told:?}");
        }
    }
}

#[test]
fn a_body_that_cannot_be_completed_resets_the_connection() {
    let cases = [
        ("/sized=10:3:11", 10, "an end before the length"),
        ("/sized=0:3:1", 0, "nothing of it"),
        ("/flow=10:4,cut=4", 4, "given up"),
        ("/flow=10:4,cut=0", 0, "given up at once"),
        ("/sized=10:4,cut=8", 8, "given up with a length"),
        ("/later,flow=10:4,cut=4", 4, "given up, of an answer that came later"),
    ];
    for (target, written, name) in cases {
        for output_batch in [1, 10_000] {
            let driver = played(&get(target), HttpLimits { output_batch, ..limits() });
            assert_eq!(driver.fate, Some(Fate::Aborted), "{name}");
            assert_eq!((driver.connection.stage(), driver.connection.held()), (Stage::Closed, 0), "{name}");
            assert!(driver.answers(&[]).is_err(), "{name}: the client must not take it for whole");
            let ends = [Told::Answered(Ok(0), 200, written), Told::End(0, false)];
            assert_eq!(driver.told()[1..], ends, "{name}");
        }
    }
    // More than was announced is not sent.
    let driver = played(&get("/sized=10:4:6"), limits());
    assert_eq!(driver.seen(&[]), ["200 abcdef", "200 [GET /next ]"]);
    assert!(driver.told().contains(&Told::Answered(Ok(0), 200, 6)));
}

/// As `Service::write_body` says: after what was written has gone out, it is asked again. Only who writes nothing has to
/// be woken.
#[test]
fn a_stream_is_asked_until_it_writes_nothing() {
    for target in ["/flow=10:1", "/sized=10:1"] {
        let mut driver = Driver::slow(limits());
        driver.receive(get(target).as_bytes());
        assert_eq!(driver.waits, None, "{target}: nobody has to wake it");
        assert_eq!(driver.seen(&[]), ["200 abcdefghij"], "{target}");
    }
}

#[test]
fn a_stream_with_nothing_to_write_waits_for_a_wake() {
    let mut driver = Driver::slow(limits());
    driver.receive(format!("{}{}", get("/flow=10:4,dry"), get("/1")).as_bytes());
    let begun = driver.sink.sent.len();
    assert_eq!((driver.waits, driver.player.asked), (Some(Next::Wait), 1));
    assert_eq!(driver.connection.stage(), Stage::Answering);
    for number in [1, 2, u64::MAX] {
        assert!(!driver.wakes(number), "{number} is not under way");
    }
    assert_eq!(driver.answer(0), None, "it has its answer");
    assert_eq!((driver.sink.sent.len(), driver.player.asked), (begun, 1));
    let mut wakes = 0;
    while driver.waits.is_some() {
        assert!(driver.wakes(0));
        wakes += 1;
        assert!(wakes <= 6, "woken in vain");
    }
    assert!(wakes >= 3, "a step of nothing before each of three");
    assert_eq!(driver.seen(&[]), ["200 abcdefghij", "200 [GET /1 ]"]);
    assert!(!driver.wakes(0), "it is over");
    driver.told();
}

#[test]
fn a_client_that_goes_in_the_middle_is_told_of_once() {
    for target in ["/flow=10:4,dry", "/sized=10:4,dry", "/later,flow=10:4,dry"] {
        let mut driver = Driver::slow(limits());
        driver.receive(get(target).as_bytes());
        while driver.player.asked < 3 {
            driver.happens();
        }
        driver.vanish();
        driver.vanish();
        assert!(!driver.wakes(0));
        let told = driver.told();
        assert_eq!(told.iter().filter(|told| **told == Told::End(0, false)).count(), 1, "{target}");
        assert_eq!(told[told.len() - 2..], [Told::Answered(Ok(0), 200, 4), Told::End(0, false)], "{target}");
    }
}

#[test]
fn a_drain_lets_a_stream_end_and_is_over_then() {
    let mut driver = Driver::slow(limits());
    driver.receive(format!("{}{}", get("/flow=10:4,dry"), get("/never")).as_bytes());
    driver.connection.start_drain();
    assert!(!driver.connection.is_idle());
    while driver.waits.is_some() {
        driver.happens();
    }
    assert_eq!(driver.seen(&[]), ["200 abcdefghij"]);
    assert_eq!(driver.fate, Some(Fate::Closed(None)));
    driver.told();
}

#[test]
fn a_stream_writes_no_more_than_there_is_room_for() {
    for (target, step) in [("/flow=20000:30", 30), ("/sized=20000:30", 30), ("/flow=20000:1", 1)] {
        for output_batch in [1, 100, 5000] {
            let mut driver = Driver::slow(HttpLimits { output_batch, ..limits() });
            driver.receive(format!("{}{}", get(target), get("/1")).as_bytes());
            assert_eq!(driver.waits, None, "{target} by {output_batch}");
            assert_eq!(driver.seen(&[]), [format!("200 {}", body(20_000)), "200 [GET /1 ]".to_owned()]);
            // One step beyond, in two chunks of which each has a line before and one behind; or an answer's head.
            let most = output_batch + step + 2 * 6 + 200;
            assert!(driver.sink.peak <= most, "{target} by {output_batch}: {} waited", driver.sink.peak);
            assert!(driver.full >= 20_000 / (output_batch + step + 20), "{target} by {output_batch}");
        }
    }
}

#[test]
fn parts_come_one_behind_the_other() {
    for output_batch in [1, 10, 10_000] {
        for cold in [false, true] {
            let mut driver = Driver::new(HttpLimits { output_batch, ..limits() });
            driver.sink.cold = cold;
            driver.receive(format!("{}{}", get("/parts"), get("/1")).as_bytes());
            assert_eq!(driver.seen(&[]), ["200 <abcdefghij|abcdefghij>", "200 [GET /1 ]"]);
            assert_eq!(driver.disk, if cold { 2 } else { 0 }, "each file is asked about once");
            let answered = Told::Answered(Ok(0), 200, 23);
            assert_eq!(driver.told()[..2], [Told::Call(0), answered], "and it is no exchange to follow");
        }
    }
}

#[test]
fn a_file_goes_by_windows_each_of_which_may_have_to_be_read_first() {
    const LENGTH: usize = (2 << 20) + 10;
    for (cold, output_batch) in [(false, 1), (true, 1), (false, usize::MAX), (true, usize::MAX)] {
        let mut driver = Driver::new(HttpLimits { output_batch, ..limits() });
        driver.sink.cold = cold;
        driver.receive(format!("{}{}", get(&format!("/file={LENGTH}")), get("/1")).as_bytes());
        let answers = driver.answers(&[]).unwrap();
        assert!(answers[0].body == pattern(0..LENGTH), "{} bytes", answers[0].body.len());
        assert_eq!(answers.len(), 2);
        assert_eq!(driver.disk, if cold { 3 } else { 0 });
        assert!(output_batch > 1 || driver.full >= 3, "each window waits for room");
        assert_eq!(driver.told()[1], Told::Answered(Ok(0), 200, LENGTH as u64));
    }
}

#[test]
fn while_a_file_is_read_from_the_disk_nothing_else_happens() {
    let mut driver = Driver::slow(limits());
    driver.sink.cold = true;
    driver.receive(format!("{}{}", get("/file=100"), get("/1")).as_bytes());
    assert_eq!((driver.waits, driver.connection.stage()), (Some(Next::Disk), Stage::Answering));
    let slice = driver.connection.cold().unwrap();
    assert_eq!((slice.offset, slice.length), (0, 100));
    assert!(!driver.wakes(1), "another request is none of it");
    driver.vanish();
    assert!(driver.connection.cold().is_none());
    let next = driver.with(|connection, _, exchange| connection.warmed(exchange));
    assert_eq!(next, Next::Close(None), "it comes too late");
    assert_eq!(driver.told()[1..], [Told::Answered(Ok(0), 200, 0)]);
}

/// Room in the output is no news from the disk: if it were, the window would be read twice, and the loop would wait for
/// the next one.
#[test]
fn room_in_the_output_while_the_disk_is_read_asks_for_nothing() {
    let mut driver = Driver::slow(limits());
    driver.sink.cold = true;
    driver.receive(get("/file=2000000").as_bytes());
    assert_eq!(driver.waits, Some(Next::Disk));
    let resumed = driver.with(|connection, _, exchange| connection.resume(exchange));
    assert_eq!(resumed, Next::Wait);
    driver.happens();
    assert_eq!((driver.waits, driver.disk), (Some(Next::Disk), 2));
    driver.happens();
    assert_eq!(driver.answers(&[]).unwrap()[0].body.len(), 2_000_000);
}

/// The loop's output is never full when the client is gone: an endless stream must end its turn all the same.
#[test]
fn an_output_that_is_never_full_does_not_hold_the_loop() {
    struct Endless;
    impl Service for Endless {
        type Message = ();

        fn call(&mut self, _: &Request<'_>, response: &mut Response) {
            response.stream();
        }

        fn write_body(&mut self, _: RequestId, body: &mut BodyWriter<'_>) {
            body.write(b"more");
        }
    }
    struct Void(usize);
    impl Output for Void {
        fn copy(&mut self, data: &[u8]) {
            self.0 += data.len();
        }

        fn share(&mut self, data: bytes::Bytes) {
            self.0 += data.len();
        }

        fn file(&mut self, _: epoll_reactor::FileSlice, _: bool) -> Result<(), NotCached> {
            Ok(())
        }

        fn waiting(&self) -> usize {
            0
        }
    }
    let mut exchange = Exchange {
        limits: &HttpLimits::default(),
        date: &DateHeader::new(UNIX_EPOCH),
        metrics: &crate::http1::HttpMetrics::new(),
        connection: 0,
        client: &epoll_reactor::Address::UnixUnnamed,
        service: &mut Endless,
        response: &mut Response::new(),
        output: &mut Void(0),
    };
    let next = Connection::new().receive(get("/").as_bytes(), &mut exchange).next;
    assert_eq!(next, Next::OutputFull);
    assert!(exchange.output.0 < 4 * exchange.limits.output_batch);
}
