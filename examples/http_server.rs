//! HTTP/1.1 with routes, shared state, answers from other threads, and one that is streamed.
//!
//! ```text
//! cargo run --example http_server -- 127.0.0.1:8080
//! curl -i http://127.0.0.1:8080/
//! curl -i http://127.0.0.1:8080/greet/you
//! curl -i --data 'to be shouted' http://127.0.0.1:8080/shout
//! curl -i http://127.0.0.1:8080/slow
//! curl -i http://127.0.0.1:8080/later
//! curl -i http://127.0.0.1:8080/count/100000
//! ```
//!
//! Ctrl-C drains: requests in progress are answered, and the program ends.

use std::collections::HashMap;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use epoll_protocols::http1::{
    BodyWriter, Http, HttpConfig, HttpMessage, RequestId, Responder, Response, Router, Service,
};
use epoll_reactor::{Address, Limits, ListenOptions, Reactor, Remote, Signal, block_signals};

const SIGNALS: [Signal; 2] = [Signal::Interrupt, Signal::Terminate];

/// Everything runs on one thread, so what requests share are plain fields.
#[derive(Default)]
struct Demo {
    visits: u64,
    /// How far each streamed answer has counted, and how far it should.
    counting: HashMap<RequestId, (u64, u64)>,
    /// The way back from other threads.
    remote: Option<Remote<HttpMessage<Answer>>>,
}

/// Sent by the thread that has worked out an answer.
type Answer = (RequestId, String);

impl Service for Demo {
    type Message = Answer;

    fn on_message(&mut self, (id, text): Answer, responder: &mut Responder<'_>) {
        let mut response = Response::new();
        response.set_body(text.as_bytes());
        responder.respond(id, response);
    }

    /// Called whenever there is room for more of a stream: memory stays bounded however slowly a client reads.
    fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        let Some((next, last)) = self.counting.get_mut(&id) else { return body.finish() };
        while body.room() > 0 && next <= last {
            body.write(format!("{next}\n").as_bytes());
            *next += 1;
        }
        if next > last {
            body.finish();
        }
    }

    fn on_end(&mut self, id: RequestId, _complete: bool) {
        self.counting.remove(&id);
    }
}

fn main() -> io::Result<()> {
    env_logger::init();
    block_signals(&SIGNALS)?;

    let mut router = Router::new(Demo::default());
    router
        .get("/", |demo, _, _, response| {
            demo.visits += 1;
            response.set_body(format!("Hello! You are visitor {}.\n", demo.visits).as_bytes());
        })?
        .get("/greet/{name}", |_, _, parameters, response| match parameters.decoded("name") {
            Some(name) => response.set_body(format!("Hello, {name}!\n").as_bytes()),
            None => response.set_status(400),
        })?
        .post("/shout", |_, request, _, response| response.set_body(&request.body().to_ascii_uppercase()))?
        .get("/slow", |_, _, _, response| {
            response.run_blocking(|request, response| {
                // A database, say: meanwhile the loop serves everybody else.
                thread::sleep(Duration::from_secs(1));
                response.set_body(format!("{} took a second\n", request.path()).as_bytes());
            });
        })?
        .get("/later", |demo, request, _, response| match demo.remote.clone() {
            Some(remote) => {
                let id = request.id();
                // Whatever thread knows the answer, and whenever.
                thread::spawn(move || {
                    let answer = (id, "worked out by another thread\n".to_owned());
                    // Refused by a loop that has ended, or has too many waiting: a server would try again.
                    drop(remote.send(answer.into()));
                });
                response.defer();
            }
            None => response.set_status(503),
        })?
        .get("/count/{to}", |demo, request, parameters, response| {
            match parameters.get("to").and_then(|to| to.parse().ok()) {
                Some(last) => {
                    demo.counting.insert(request.id(), (1, last));
                    response.stream();
                }
                None => response.set_status(400),
            }
        })?;

    let config = HttpConfig::default();
    let limits = config.limits(Limits::default());
    let mut reactor = Reactor::new(Http::new(router, config), limits)?;
    let remote = reactor.remote();
    reactor.handler().attach(remote.clone());
    reactor.handler().service_mut().service_mut().remote = Some(remote);
    reactor.drain_on_signals(&SIGNALS)?;

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let (_, bound) = reactor.listen_first(&Address::resolve(&address)?, &ListenOptions::default())?;
    writeln!(io::stdout(), "listening on {bound}")?;
    reactor.run()?;
    Ok(())
}
