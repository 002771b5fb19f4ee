//! Each exchange that a service follows has one end, whichever of its methods panics and whatever the output refuses; and
//! a refusal tells whose it was.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use epoll_reactor::{Address, FileSlice};

use super::super::super::date::DateHeader;
use super::super::super::output::NotCached;
use super::super::super::response::Response;
use super::super::super::sending::BodyWriter;
use super::super::super::service::{Answered, BodyFlow};
use super::driver::{Driver, limits};
use super::player::Told;
use super::*;

/// Panics in one of its methods, each time.
#[derive(Default)]
struct Faulty {
    panics_in: &'static str,
    told: Vec<String>,
}

impl Faulty {
    fn reach(&self, method: &str) {
        assert!(self.panics_in != method, "as asked");
    }
}

impl Service for Faulty {
    type Message = ();

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        match request.path() {
            "/later" => response.defer(),
            "/stream" => response.stream(),
            _ => {}
        }
        self.reach("call");
    }

    fn body_mode(&mut self, _: &Request<'_>) -> BodyMode {
        self.reach("body_mode");
        BodyMode::Stream { limit: 5 }
    }

    fn on_body(&mut self, _: RequestId, _: &[u8]) -> BodyFlow {
        self.reach("on_body");
        BodyFlow::Continue
    }

    fn write_body(&mut self, _: RequestId, body: &mut BodyWriter<'_>) {
        self.reach("write_body");
        if self.panics_in == "on_answer at last" {
            self.panics_in = "on_answer";
            return;
        }
        body.write(b"body");
        body.finish();
    }

    fn on_end(&mut self, id: RequestId, complete: bool) {
        self.told.push(format!("end {} {complete}", id.number));
        self.reach("on_end");
    }

    fn on_answer(&mut self, answer: &Answered<'_>) {
        self.told.push(format!("answer {} {}", answer.status, answer.body_bytes));
        self.reach("on_answer");
    }
}

/// Takes so many pieces, and then none.
struct Narrow {
    sent: Vec<u8>,
    pieces: usize,
    refused: bool,
}

impl Output for Narrow {
    fn copy(&mut self, data: &[u8]) {
        self.refused |= self.pieces == 0;
        if !self.refused {
            self.pieces -= 1;
            self.sent.extend_from_slice(data);
        }
    }

    fn share(&mut self, data: Bytes) {
        self.copy(&data);
    }

    fn file(&mut self, _: FileSlice, _: bool) -> Result<(), NotCached> {
        Err(NotCached)
    }

    fn waiting(&self) -> usize {
        if self.refused { usize::MAX } else { 0 }
    }

    fn refused(&self) -> bool {
        self.refused
    }
}

/// What the service is told from the first byte of `input`, with the answer to what is put off, to the end of the client.
fn told(input: &str, panics_in: &'static str, pieces: usize) -> Vec<String> {
    let mut service = Faulty { panics_in, ..Faulty::default() };
    let mut output = Narrow { sent: Vec::new(), pieces, refused: false };
    let mut exchange = Exchange {
        limits: &limits(),
        date: &DateHeader::new(UNIX_EPOCH),
        metrics: &crate::http1::HttpMetrics::new(),
        connection: 7,
        client: &Address::UnixUnnamed,
        service: &mut service,
        response: &mut Response::new(),
        output: &mut output,
    };
    let mut connection = Connection::new();
    let mut live = true;
    for step in 0..3 {
        let played = catch_unwind(AssertUnwindSafe(|| match step {
            0 => _ = connection.receive(input.as_bytes(), &mut exchange),
            1 if live => {
                exchange.response.clear();
                _ = connection.respond(0, &mut exchange);
            }
            1 => {}
            // Once, as the loop has it for one that is gone.
            _ => connection.abandon(&mut exchange),
        }));
        live &= played.is_ok() && !exchange.output.refused;
    }
    assert_eq!((connection.stage(), connection.held()), (Stage::Closed, 0));
    service.told
}

const PLAIN: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const LATER: &str = "GET /later HTTP/1.1\r\nHost: h\r\n\r\n";
const STREAM: &str = "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n";
const UPLOAD: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
const UPLOAD_LATER: &str = "POST /later HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
const HALF: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nh";
const REFUSED: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n";

#[test]
fn whatever_panics_each_exchange_has_one_end() {
    let cases: [(&str, &str, &[&str]); 27] = [
        (PLAIN, "", &["answer 200 0"]),
        (PLAIN, "call", &[]),
        (PLAIN, "on_answer", &["answer 200 0"]),
        (LATER, "", &["answer 200 0", "end 0 true"]),
        (LATER, "call", &[]),
        (LATER, "on_answer", &["answer 200 0", "end 0 false"]),
        (LATER, "on_end", &["answer 200 0", "end 0 true"]),
        (STREAM, "", &["answer 200 4", "end 0 true"]),
        (STREAM, "call", &[]),
        (STREAM, "write_body", &["answer 200 0", "end 0 false"]),
        (STREAM, "on_answer", &["answer 200 4", "end 0 false"]),
        (STREAM, "on_answer at last", &["answer 200 0", "end 0 false"]),
        (STREAM, "on_end", &["answer 200 4", "end 0 true"]),
        (UPLOAD, "", &["answer 200 0", "end 0 true"]),
        (UPLOAD, "body_mode", &[]),
        (UPLOAD, "on_body", &["end 0 false"]),
        (UPLOAD, "call", &["end 0 false"]),
        (UPLOAD, "on_answer", &["answer 200 0", "end 0 false"]),
        (UPLOAD, "on_end", &["answer 200 0", "end 0 true"]),
        (UPLOAD_LATER, "call", &["end 0 false"]),
        (UPLOAD_LATER, "on_answer", &["answer 200 0", "end 0 false"]),
        (UPLOAD_LATER, "on_end", &["answer 200 0", "end 0 true"]),
        (HALF, "", &["end 0 false"]),
        (HALF, "on_body", &["end 0 false"]),
        (HALF, "on_end", &["end 0 false"]),
        (REFUSED, "on_answer", &["answer 413 0", "end 0 false"]),
        (REFUSED, "on_end", &["answer 413 0", "end 0 false"]),
    ];
    for (input, panics_in, expected) in cases {
        assert_eq!(told(input, panics_in, usize::MAX), expected, "{input:?}, panicking in {panics_in:?}");
    }
}

#[test]
fn an_answer_that_the_output_refuses_is_told_as_not_sent() {
    let cases: [(&str, usize, &[&str]); 6] = [
        (PLAIN, 0, &[]),
        (LATER, 0, &["end 0 false"]),
        (UPLOAD, 0, &["end 0 false"]),
        (REFUSED, 0, &["end 0 false"]),
        (STREAM, 0, &["end 0 false"]),
        (STREAM, 1, &["answer 200 0", "end 0 false"]),
    ];
    for (input, pieces, expected) in cases {
        assert_eq!(told(input, "", pieces), expected, "{input:?}, after {pieces} pieces");
    }
}

/// For its access log: a service that is told of a refusal is told what was refused, as far as it was understood.
#[test]
fn a_refusal_tells_which_request_it_refuses() {
    struct Log(Vec<String>);
    impl Service for Log {
        type Message = ();

        fn body_mode(&mut self, head: &Request<'_>) -> BodyMode {
            if head.path() == "/no" { BodyMode::Refuse(403) } else { BodyMode::Collect }
        }

        fn on_answer(&mut self, answer: &Answered<'_>) {
            let request = answer.request.map(|request| format!("{} {}", request.method(), request.target()));
            self.0.push(format!("{request:?} {:?} {}", answer.rejection, answer.status));
        }
    }
    let large = "Content-Length: 31\r\n\r\n";
    let cases = [
        (post(large), true, "Some(\"POST /\") Some(BodyTooLarge) 413"),
        (format!("\r\n{}", post(large)), true, "Some(\"POST /\") Some(BodyTooLarge) 413"),
        (post(large).replace("1.1", "1.7"), true, "Some(\"POST /\") Some(BodyTooLarge) 413"),
        (post("Transfer-Encoding: chunked\r\n\r\nff\r\n"), true, "Some(\"POST /\") Some(BodyTooLarge) 413"),
        (post("Transfer-Encoding: chunked\r\n\r\nx"), true, "Some(\"POST /\") Some(Chunk) 400"),
        (post("Expect: more\r\n\r\n"), true, "Some(\"POST /\") Some(Expectation) 417"),
        (post("Content-Length: 2\r\n\r\nh"), false, "Some(\"POST /\") Some(TimedOut) 408"),
        ("GET / HTTP/1.1\r\nHost:".to_owned(), false, "None Some(TimedOut) 408"),
        (
            "POST /no HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n".to_owned(),
            true,
            "Some(\"POST /no\") Some(Service(403)) 403",
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), true, "Some(\"GET /\") Some(Host) 400"),
        ("GET  / HTTP/1.1\r\n\r\n".to_owned(), true, "None Some(RequestLine) 400"),
    ];
    for (input, refused, expected) in cases {
        let mut log = Log(Vec::new());
        let mut exchange = Exchange {
            limits: &small_limits(),
            date: &DateHeader::new(UNIX_EPOCH),
            metrics: &crate::http1::HttpMetrics::new(),
            connection: 7,
            client: &Address::UnixUnnamed,
            service: &mut log,
            response: &mut Response::new(),
            output: &mut Vec::new(),
        };
        let mut connection = Connection::new();
        let progress = connection.receive(input.as_bytes(), &mut exchange);
        assert_eq!(matches!(progress.next, Next::Close(_)), refused, "{input:?}");
        connection.request_timeout(&mut exchange);
        assert_eq!(log.0, [expected], "{input:?}");
    }
}

/// A client with a request behind an answer that was put off is not idle when that has come: a drain must not close it.
#[test]
fn a_request_that_waited_behind_an_answer_is_not_lost_to_a_drain() {
    for target in ["/later", "/job", "/flow=4:1,dry"] {
        let mut driver = Driver::slow(limits());
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        driver.receive(format!("{}{}", get(target), get("/behind")).as_bytes());
        driver.prompt = true;
        // The answer has come, and the rest of the input has not been given again yet.
        while driver.connection.stage() == Stage::Answering {
            driver.answered_only();
        }
        driver.connection.start_drain();
        assert!(!driver.connection.is_idle(), "{target}");
        driver.receive(b"");
        let told = driver.told();
        assert!(told.contains(&Told::Call(1)), "{target}: {told:?}");
    }
}
