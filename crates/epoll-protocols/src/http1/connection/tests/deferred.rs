//! Answers that come later: from the service, or from a thread that may block.

use super::driver::{Driver, Fate, limits};
use super::player::Told;
use super::*;
use crate::http1::Response;

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// A driver whose request number 1 is deferred, between two that are not.
fn waiting(target: &str) -> Driver {
    let mut driver = Driver::slow(limits());
    driver.receive(format!("{}{}{}", get("/0"), get(target), get("/2")).as_bytes());
    assert_eq!((driver.waits, driver.connection.stage()), (Some(Next::Wait), Stage::Answering));
    assert_eq!(driver.seen(&[]), ["200 [GET /0 ]"]);
    assert_eq!(driver.tail, get("/2").as_bytes(), "what follows waits with the caller");
    assert!((1..1000).contains(&driver.connection.held()) && !driver.connection.is_idle());
    driver
}

#[test]
fn later_answers_come_in_the_order_of_the_requests() {
    let mut driver = waiting("/later");
    driver.happens();
    assert_eq!(driver.seen(&[]), ["200 [GET /0 ]", "200 [GET /later ]", "200 [GET /2 ]"]);
    assert_eq!((driver.connection.held(), driver.connection.stage()), (0, Stage::Idle));
    let told = [
        Told::Call(0),
        Told::Answered(Ok(0), 200, 9),
        Told::Call(1),
        Told::Answered(Ok(1), 200, 13),
        Told::End(1, true),
        Told::Call(2),
        Told::Answered(Ok(2), 200, 9),
    ];
    assert_eq!(driver.told(), told);
}

#[test]
fn an_answer_to_anything_but_the_one_that_waits_is_ignored() {
    let mut driver = waiting("/later");
    let before = driver.sink.sent.len();
    for number in [0, 2, 3, u64::MAX] {
        assert_eq!((driver.answer(number), driver.wake(number)), (None, None), "{number}");
    }
    assert_eq!(driver.wake(1), None, "it is no stream");
    assert_eq!((driver.sink.sent.len(), driver.player.told.len()), (before, 3));
    let resumed = driver.with(|connection, _, exchange| connection.resume(exchange));
    assert_eq!(resumed, Next::Wait, "room in the output is not what it waits for");
    driver.happens();
    for number in 0..4 {
        assert_eq!((driver.answer(number), driver.wake(number)), (None, None), "{number} again");
    }
    assert_eq!(driver.seen(&[]).len(), 3);
    driver.told();
}

#[test]
fn a_client_that_goes_while_its_answer_is_awaited_is_told_of_once() {
    for target in ["/later", "/job"] {
        let mut driver = waiting(target);
        let job = driver.connection.take_job();
        assert_eq!(job.is_some(), target == "/job");
        assert!(driver.connection.take_job().is_none(), "a job is given once");
        driver.vanish();
        driver.vanish();
        assert_eq!(driver.answer(1), None);
        assert_eq!(driver.told()[2..], [Told::Call(1), Told::End(1, false)], "and no answer is logged");
        assert_eq!((driver.connection.stage(), driver.connection.held()), (Stage::Closed, 0));
    }
    let mut late = waiting("/later");
    let next = late.with(|connection, _, exchange| connection.request_timeout(exchange));
    assert_eq!(next, Next::Close(None), "nothing is said: it is not the client that is late");
    assert_eq!(late.told().last(), Some(&Told::End(1, false)));
    assert_eq!(late.seen(&[]).len(), 1);
}

#[test]
fn a_drain_waits_for_the_answer_and_makes_it_the_last() {
    for target in ["/later", "/job", "/later,flow=10:3", "/later,parts"] {
        let mut driver = waiting(target);
        driver.connection.start_drain();
        assert!(!driver.connection.is_idle(), "{target}");
        driver.happens();
        while driver.waits.is_some() {
            driver.happens();
        }
        let answers = driver.answers(&[]).unwrap();
        assert_eq!((answers.len(), answers[1].is_last()), (2, true), "{target}");
        assert_eq!(driver.fate, Some(Fate::Closed(None)), "{target}");
        driver.told();
    }
}

#[test]
fn the_end_of_the_input_does_not_take_the_answer_away() {
    for before in [false, true] {
        let mut driver = Driver::slow(limits());
        let input = format!("{}{}", get("/later"), get("/1"));
        if before {
            driver.tail = input.into_bytes();
            driver.end();
        } else {
            driver.receive(input.as_bytes());
            driver.end();
        }
        assert_eq!((driver.waits, driver.fate), (Some(Next::Wait), None));
        driver.happens();
        assert_eq!(driver.seen(&[]), ["200 [GET /later ]", "200 [GET /1 ]"]);
        assert_eq!(driver.fate, Some(Fate::Closed(None)));
        driver.told();
    }
}

#[test]
fn what_is_put_off_twice_is_an_error_of_the_server() {
    let defer: fn(&mut Response) = Response::defer;
    let block: fn(&mut Response) = |response| response.run_blocking(|_, _| {});
    for again in [defer, block] {
        let mut driver = waiting("/later");
        let mut response = Response::new();
        response.header("X-Secret", "x").unwrap();
        again(&mut response);
        let next = driver.with_response(response, |connection, _, exchange| connection.respond(1, exchange));
        assert_eq!(next, Some(Next::MoreInput));
        assert!(driver.sent().ends_with("Content-Length: 0\r\n\r\n") && !driver.sent().contains("Secret"));
        assert_eq!(driver.seen(&[])[1], "500 ");
        assert_eq!(driver.told()[3..], [Told::Answered(Ok(1), 500, 0), Told::End(1, true)]);
    }
}

/// Whatever can be answered at once can be answered later, with the same bytes.
#[test]
fn later_and_at_once_are_the_same_on_the_wire() {
    let answers = "status=404 status=204 status=304 last flow=40:7 flow=40:7,dry flow=0:1 sized=40:7 sized=40:7:30 \
        sized=10:3:11 flow=40:7,cut=20 parts file=100 file=0";
    for words in answers.split_whitespace() {
        for request in ["GET / HTTP/1.1", "HEAD / HTTP/1.1", "GET / HTTP/1.0", "HEAD / HTTP/1.0"] {
            let play = |target: &str| {
                let mut driver = Driver::new(limits());
                let request = request.replace("/ ", &format!("/{target} "));
                driver.receive(format!("{request}\r\nHost: h\r\n\r\n{}", get("/2")).as_bytes());
                let log: Vec<Told> =
                    driver.told().iter().filter(|told| matches!(told, Told::Answered(..))).cloned().collect();
                // Of the same length, for the bodies that say what was asked.
                (driver.sent().replace(target, "target"), driver.fate, log)
            };
            let at_once = play(&format!("at1ce,{words}"));
            assert_eq!(play(&format!("later,{words}")), at_once, "{request}: {words}");
            let job = play(&format!("job,,,{words}"));
            assert_eq!(job.1, at_once.1, "{request}: {words} in a job");
            assert_eq!(job, at_once, "{request}: {words} in a job");
        }
    }
}

#[test]
fn a_job_has_the_whole_request_and_one_that_panics_answers_500() {
    let mut driver = Driver::slow(limits());
    let post = "POST /job,a HTTP/1.1\r\nHost: h\r\nX-A: b\r\nContent-Length: 2\r\n\r\nhi";
    driver.receive(format!("{post}{}{}", get("/bad"), get("/2")).as_bytes());
    let job = driver.connection.take_job().unwrap();
    assert_eq!(job.id(), RequestId { connection: 7, number: 0 });
    // As another thread would.
    let response = std::thread::spawn(|| job.run()).join().unwrap();
    let next = driver.with_response(response, |connection, _, exchange| connection.respond(0, exchange));
    assert_eq!(next, Some(Next::MoreInput));
    driver.waits = None;
    driver.receive(b"");
    driver.happens();
    let answers = driver.answers(&[]).unwrap();
    assert_eq!((answers[0].status, answers[0].body.as_slice()), (200, b"[POST /job,a hi]".as_slice()));
    assert_eq!((answers[1].status, answers[1].body.len(), answers[1].is_last()), (500, 0, false));
    assert_eq!(answers[2].body, b"[GET /2 ]", "and the connection goes on");
    let ends = driver.told().iter().filter(|told| matches!(told, Told::End(_, true))).count();
    assert_eq!(ends, 2);
}

#[test]
fn a_job_sees_the_client_the_fields_and_the_body() {
    struct Asks;
    impl Service for Asks {
        type Message = ();

        fn call(&mut self, request: &Request<'_>, response: &mut Response) {
            let said = format!("{request:?} {:?} {:?}", request.id(), request.client());
            response.run_blocking(move |request, response| {
                assert_eq!(format!("{request:?} {:?} {:?}", request.id(), request.client()), said);
                assert_eq!(request.header("x-a"), Some(b"b".as_slice()));
                assert_eq!((request.host(), request.query()), (Some("h"), Some("q")));
                response.set_body(request.body());
            });
        }
    }
    // More fields, and a longer target, than the limits that a job's request is read with could be thought to allow.
    let limits = HttpLimits { head: 60_000, target: 40_000, headers: 128, ..HttpLimits::default() };
    let date = super::super::super::date::DateHeader::new(UNIX_EPOCH);
    let (mut response, mut output) = (Response::new(), Vec::new());
    let mut exchange = Exchange {
        limits: &limits,
        date: &date,
        metrics: &crate::http1::HttpMetrics::new(),
        connection: 9,
        client: &epoll_reactor::Address::Tcp("192.0.2.1:7".parse().unwrap()),
        service: &mut Asks,
        response: &mut response,
        output: &mut output,
    };
    let (fields, long) = ("A: b\r\n".repeat(125), "x".repeat(30_000));
    let input =
        format!("POST /{long}?q HTTP/1.7\r\nHost: h\r\n{fields}X-A: b\r\nContent-Length: 2\r\n\r\nhi");
    let mut connection = Connection::new();
    let progress = connection.receive(input.as_bytes(), &mut exchange);
    assert_eq!(progress, Progress { consumed: input.len(), next: Next::Wait });
    *exchange.response = connection.take_job().unwrap().run();
    assert_eq!(connection.respond(0, &mut exchange), Some(Next::MoreInput));
    let (answer, _) = Answer::read(&output, false, false).unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, b"hi".as_slice()));
}
