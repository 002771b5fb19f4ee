//! Bodies that the service takes in pieces, and how each such exchange ends: once.

use super::driver::{Driver, Fate, limits};
use super::player::{Told, pattern};
use super::*;

fn post(target: &str, fields: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

/// A request with a body of two kinds of framing.
fn both(target: &str, body: &str) -> [String; 2] {
    let mut chunked = post(target, "Transfer-Encoding: chunked\r\n");
    for chunk in body.as_bytes().chunks(7) {
        chunked += &format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap());
    }
    chunked += "0\r\nA: b\r\n\r\n";
    [format!("{}{body}", post(target, &format!("Content-Length: {}\r\n", body.len()))), chunked]
}

/// Plays `input` in two pieces, and whatever has to happen meanwhile.
fn cut(input: &str, middle: usize) -> Driver {
    let mut driver = Driver::slow(limits());
    let (first, second) = input.as_bytes().split_at(middle);
    for piece in [first, second] {
        driver.receive(piece);
        while driver.waits.is_some() {
            driver.happens();
        }
    }
    driver
}

#[test]
fn the_pieces_are_the_body_however_it_is_cut() {
    // More than may be collected: nothing of it is held.
    let body = String::from_utf8(pattern(0..100)).unwrap();
    for words in ["in", "in,pause", "in,later", "in,pause,job", "in,most=100", "in,full=100"] {
        for request in both(&format!("/{words}"), &body) {
            let input = format!("{request}GET /next HTTP/1.1\r\nHost: h\r\n\r\n");
            for middle in 0..input.len() {
                let driver = cut(&input, middle);
                let seen = [format!("200 [POST /{words} {body}]"), "200 [GET /next ]".to_owned()];
                assert_eq!(driver.seen(&[]), seen, "{words}, cut at {middle}");
                assert_eq!(driver.player.pieces.iter().sum::<usize>(), 100);
                let size = seen[0].len() as u64 - 4;
                let answered = [Told::Answered(Ok(0), 200, size), Told::End(0, true)];
                assert_eq!(driver.told()[1..3], answered, "{words}, cut at {middle}");
            }
        }
    }
}

#[test]
fn a_body_that_is_streamed_is_not_held() {
    let mut driver = Driver::new(limits());
    driver.receive(post("/in", "Content-Length: 1000000\r\n").as_bytes());
    for _ in 0..100 {
        driver.receive(&[b'x'; 10_000]);
        assert!(driver.connection.held() <= 3 * 10_000, "{} bytes", driver.connection.held());
    }
    assert_eq!(driver.answers(&[]).unwrap().len(), 1);
    assert_eq!(driver.player.pieces.iter().sum::<usize>(), 1_000_000);
    driver.told();
}

#[test]
fn nothing_is_taken_while_the_service_pauses() {
    for request in both("/in,pause", "hello world") {
        let mut driver = Driver::slow(limits());
        let body = request.find("\r\n\r\n").unwrap() + 4 + if request.contains("chunked") { 3 } else { 0 };
        driver.receive(&request.as_bytes()[..=body]);
        assert_eq!((driver.waits, driver.connection.stage()), (Some(Next::Wait), Stage::Answering));
        assert_eq!(driver.player.pieces, [1]);
        for input in ["", "x"] {
            driver.tail = input.into();
            let progress = driver.with(|connection, input, exchange| connection.receive(input, exchange));
            assert_eq!(progress, Progress { consumed: 0, next: Next::Wait }, "{input:?}");
            let progress =
                driver.with(|connection, input, exchange| connection.end_of_input(input, exchange));
            assert_eq!(progress, Progress { consumed: 0, next: Next::Wait }, "{input:?} and the end");
        }
        driver.tail.clear();
        assert!(!driver.wakes(1), "another request is none of it");
        let resumed = driver.with(|connection, _, exchange| connection.resume(exchange));
        assert_eq!(resumed, Next::Wait, "room in the output neither");
        assert!(driver.wakes(0));
        driver.receive(&request.as_bytes()[body + 1..]);
        while driver.waits.is_some() {
            driver.happens();
        }
        assert_eq!(driver.seen(&[]), ["200 [POST /in,pause hello world]"]);
        driver.told();
    }
}

/// Whether the end of the body comes with its last piece is chance, and must not decide whether a pause holds.
#[test]
fn the_request_is_not_answered_before_a_pause_is_over() {
    for request in both("/in,pause", "hello") {
        let mut driver = Driver::slow(limits());
        driver.receive(request.as_bytes());
        assert_eq!((driver.player.pieces.len(), driver.waits), (1, Some(Next::Wait)));
        assert_eq!(driver.player.told, [], "it has not been called");
        assert!(driver.wakes(0));
        assert_eq!(driver.seen(&[]), ["200 [POST /in,pause hello]"]);
        driver.told();

        let mut gone = Driver::slow(limits());
        gone.receive(request.as_bytes());
        gone.vanish();
        assert_eq!(gone.told(), [Told::End(0, false)]);
    }
}

#[test]
fn every_way_to_fail_ends_it_once() {
    use Rejection::{BodyTooLarge, Chunk, Service, Trailer};
    let known = |target: &str| format!("{}hello", post(target, "Content-Length: 5\r\n"));
    let chunked =
        |target: &str, body: &str| format!("{}{body}", post(target, "Transfer-Encoding: chunked\r\n"));
    let cases = [
        ("refused in the middle", known("/in,full=1"), Service(507), 507),
        ("refused at the end", known("/in,full=4"), Service(507), 507),
        ("refused in a chunk", chunked("/in,full=1", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), Service(507), 507),
        ("refused after a pause", known("/in,pause,full=1"), Service(507), 507),
        ("too large, as it says", known("/in,most=4"), BodyTooLarge, 413),
        (
            "too large, as it shows",
            chunked("/in,most=4", "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"),
            BodyTooLarge,
            413,
        ),
        ("a bad chunk", chunked("/in", "3\r\nhel\r\nx"), Chunk, 400),
        ("a bad chunk after a pause", chunked("/in,pause", "3\r\nhel\r\nx"), Chunk, 400),
        ("a bad trailer", chunked("/in", "3\r\nhel\r\n0\r\nA b\r\n\r\n"), Trailer, 400),
        // Which of the two it is must not be decided by how it comes.
        ("refused, and bad behind it", chunked("/in,full=1", "3\r\nhel\r\nx"), Service(507), 507),
    ];
    for (name, input, rejection, status) in cases {
        let input = format!("{input}GET /never HTTP/1.1\r\nHost: h\r\n\r\n");
        for middle in 0..input.len() {
            let driver = cut(&input, middle);
            assert_eq!(driver.fate, Some(Fate::Closed(Some(rejection))), "{name}, cut at {middle}");
            assert_eq!(driver.seen(&[]), [format!("{status} ")], "{name}, cut at {middle}");
            let told = [Told::Answered(Err(rejection), status, 0), Told::End(0, false)];
            assert_eq!(driver.told(), told, "{name}, cut at {middle}");
        }
    }
}

#[test]
fn a_client_that_stops_in_the_middle_ends_it_once() {
    for [known, chunked] in [both("/in", "hello"), both("/in,pause", "hello")] {
        for (input, up_to) in [(&known, known.len() - 2), (&chunked, chunked.len() - 2)] {
            let start = input.find("\r\n\r\n").unwrap() + 4;
            for middle in start..up_to {
                let half = || {
                    let mut driver = Driver::slow(limits());
                    driver.receive(&input.as_bytes()[..middle]);
                    while driver.waits.is_some() {
                        driver.happens();
                    }
                    driver
                };
                let mut gone = half();
                gone.vanish();
                assert_eq!((gone.told(), gone.sink.sent.len()), ([Told::End(0, false)].as_slice(), 0));
                let mut ended = half();
                ended.end();
                let mut late = half();
                let next = late.with(|connection, _, exchange| connection.request_timeout(exchange));
                late.fate = Some(Fate::Closed(Some(Rejection::TimedOut)));
                assert_eq!(next, Next::Close(Some(Rejection::TimedOut)));
                for (driver, rejection) in [(ended, Rejection::Incomplete), (late, Rejection::TimedOut)] {
                    let status = rejection.status();
                    assert_eq!(driver.fate, Some(Fate::Closed(Some(rejection))));
                    let told = [Told::Answered(Err(rejection), status, 0), Told::End(0, false)];
                    assert_eq!(driver.told(), told, "{input} up to {middle}");
                    assert_eq!(driver.seen(&[]), [format!("{status} ")]);
                }
            }
        }
    }
}

#[test]
fn a_body_of_nothing_has_no_pieces() {
    for (input, told) in [
        (post("/in", "Content-Length: 0\r\n"), 2),
        (post("/in", ""), 2),
        (format!("{}0\r\n\r\n", post("/in", "Transfer-Encoding: chunked\r\n")), 3),
    ] {
        let mut driver = Driver::new(limits());
        driver.receive(input.as_bytes());
        assert_eq!(driver.seen(&[]), ["200 [POST /in ]"]);
        assert_eq!(
            (driver.player.pieces.len(), driver.told().len()),
            (0, told),
            "an end if it was asked how"
        );
    }
}
