//! Requests that an overloaded server does not serve.

use super::driver::{Driver, Fate, limits};
use super::*;
use crate::http1::{Answered, BodyFlow, HttpMetrics, Request, Response};

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// What a client hears that has sent all of `input`, of which the first request is shed.
fn shed(input: &str) -> Driver {
    let mut driver = Driver::new(limits());
    driver.sink.sheds = [true].into();
    driver.receive(input.as_bytes());
    driver
}

#[test]
fn the_connection_goes_on_where_the_next_request_can_be_found() {
    let keeps = [
        get("/a"),
        get("/a").replace("GET", "HEAD"),
        get("/a").replace("GET", "DELETE"),
        post("Content-Length: 0\r\n\r\n"),
        post("Content-Length: 5\r\n\r\nhello"),
        post("Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"),
        // Larger than the limit, and no less to be skipped.
        post(&format!("Content-Length: 200\r\n\r\n{}", "G".repeat(200))),
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned(),
    ];
    for input in keeps {
        let driver = shed(&format!("{input}{}", get("/behind")));
        let head_only = input.starts_with("HEAD");
        assert_eq!(driver.seen(&[head_only]), ["503 ", "200 [GET /behind ]"], "{input:?}");
        assert_eq!((driver.fate, driver.sink.asked), (None, 2), "{input:?}");
        let sent = driver.sent();
        assert!(sent.contains("\r\nRetry-After: 1\r\n") && !sent.contains("Connection: close"), "{sent}");
    }
    let ends = [
        get("/a").replace("1.1", "1.0"),
        "GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_owned(),
        post("Content-Length: 5\r\n\r\nhell"),
        post("Content-Length: 5\r\n\r\n"),
        post("Content-Length: 99999999999999999999\r\n\r\n")
            .replace("99999999999999999999", "18446744073709551615"),
        post("Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ];
    for input in ends {
        let driver = shed(&input);
        assert_eq!(
            (driver.seen(&[]), driver.fate),
            (vec!["503 ".to_owned()], Some(Fate::Closed(None))),
            "{input:?}"
        );
        assert!(driver.sent().contains("Connection: close"), "{input:?}");
        // Nobody is asked for a body that nobody wants.
        assert!(!driver.sink.sent.starts_with(CONTINUE), "{input:?}");
    }
}

#[test]
fn the_service_hears_of_none_but_those_that_are_served() {
    let mut driver = Driver::new(limits());
    driver.sink.sheds = [true, false, true].into();
    let input: String = ["/a", "/b", "/later", "/d"].map(get).concat();
    driver.receive(input.as_bytes());
    assert_eq!(driver.seen(&[]), ["503 ", "200 [GET /b ]", "503 ", "200 [GET /d ]"]);
    assert_eq!((driver.sink.asked, driver.connection.answered()), (4, 4));
    assert!(driver.told().iter().all(|told| !format!("{told:?}").contains("later")), "{:?}", driver.told());
}

/// Whatever is under way is finished, though it goes on when the server has become overloaded.
#[test]
fn none_is_shed_whose_head_was_there_before() {
    let mut driver = Driver::new(limits());
    driver.receive(post("Content-Length: 5\r\n\r\nhel").as_bytes());
    driver.sink.sheds = [true, true].into();
    driver.receive(b"lo");
    assert_eq!((driver.seen(&[]), driver.sink.asked), (vec!["200 [POST / hello]".to_owned()], 1));
    let mut driver = Driver::slow(limits());
    driver.receive(get("/later").as_bytes());
    driver.sink.sheds = [true].into();
    driver.happens();
    assert_eq!((driver.seen(&[]).len(), driver.sink.asked), (1, 1));
    // One that is no request is refused as ever.
    let mut driver = shed("GET / HTTP/1.1\r\n\r\n");
    assert_eq!((driver.fate, driver.sink.asked), (Some(Fate::Closed(Some(Rejection::Host))), 0));
    driver.vanish();
}

#[test]
fn it_counts_as_a_request_and_as_the_last_one() {
    let mut driver = Driver::new(HttpLimits { requests: 2, ..limits() });
    driver.sink.sheds = [true, true].into();
    driver.receive([get("/a"), get("/b"), get("/c")].concat().as_bytes());
    assert_eq!((driver.seen(&[]), driver.fate), (vec!["503 ".to_owned(); 2], Some(Fate::Closed(None))));
    let mut driver = Driver::new(limits());
    driver.connection.start_drain();
    driver.sink.sheds = [true].into();
    driver.receive(get("/a").as_bytes());
    assert_eq!(driver.fate, Some(Fate::Closed(None)));
}

/// The access log has it, and the counts.
#[test]
fn it_is_told_as_an_answer_that_was_not_the_service_s() {
    #[derive(Default)]
    struct Log(Vec<String>);
    impl Service for Log {
        type Message = ();

        fn call(&mut self, request: &Request<'_>, _: &mut Response) {
            panic!("asked to answer {request:?}");
        }

        fn body_mode(&mut self, request: &Request<'_>) -> BodyMode {
            panic!("asked of {request:?}");
        }

        fn on_body(&mut self, _: RequestId, _: &[u8]) -> BodyFlow {
            panic!("given a body");
        }

        fn on_answer(&mut self, answer: &Answered<'_>) {
            let request = answer.request.map(|request| format!("{} {}", request.method(), request.target()));
            self.0.push(format!("{request:?} {:?} {}", answer.rejection, answer.status));
        }

        fn on_end(&mut self, id: RequestId, _: bool) {
            panic!("told of the end of {id:?}");
        }
    }
    struct Full(Vec<u8>);
    impl Output for Full {
        fn copy(&mut self, data: &[u8]) {
            self.0.copy(data);
        }

        fn share(&mut self, data: bytes::Bytes) {
            self.0.share(data);
        }

        fn file(
            &mut self,
            slice: epoll_reactor::FileSlice,
            wait: bool,
        ) -> Result<(), crate::http1::NotCached> {
            self.0.file(slice, wait)
        }

        fn waiting(&self) -> usize {
            0
        }

        fn sheds(&mut self) -> bool {
            true
        }
    }
    let (mut log, metrics) = (Log::default(), HttpMetrics::new());
    let mut exchange = Exchange {
        limits: &limits(),
        date: &crate::http1::DateHeader::new(UNIX_EPOCH),
        metrics: &metrics,
        connection: 7,
        client: &epoll_reactor::Address::UnixUnnamed,
        service: &mut log,
        response: &mut Response::new(),
        output: &mut Full(Vec::new()),
    };
    let mut connection = Connection::new();
    let input = format!("{}{}", get("/a"), post("Content-Length: 2\r\n\r\n"));
    let progress = connection.receive(input.as_bytes(), &mut exchange);
    assert_eq!(progress, Progress { consumed: input.len(), next: Next::Close(None) });
    connection.abandon(&mut exchange);
    assert_eq!(log.0, ["Some(\"GET /a\") Some(Overloaded) 503", "Some(\"POST /\") Some(Overloaded) 503"]);
    let read = metrics.read();
    assert_eq!((read.shed, read.rejections, read.requests()), (2, 0, 2));
}
