//! HTTP/1.1 with three routes: a closure is a service.
//!
//! ```text
//! cargo run --example http_server -- 127.0.0.1:8080
//! curl -i http://127.0.0.1:8080/
//! curl -i http://127.0.0.1:8080/visits
//! curl -i --data 'to be shouted' http://127.0.0.1:8080/shout
//! ```
//!
//! Ctrl-C drains: requests in progress are answered, and the program ends.

use std::io::{self, Write};

use epoll_protocols::http1::{Http, HttpConfig, Request, Response};
use epoll_reactor::{Address, Limits, ListenOptions, Reactor, Signal, block_signals};

const SIGNALS: [Signal; 2] = [Signal::Interrupt, Signal::Terminate];

fn main() -> io::Result<()> {
    env_logger::init();
    block_signals(&SIGNALS)?;

    // Everything runs on one thread, so what requests share is a plain variable.
    let mut visits = 0_u64;
    let service =
        move |request: &Request<'_>, response: &mut Response| match (request.method(), request.path()) {
            ("GET" | "HEAD", "/") => response.set_static_body(b"Hello!\n"),
            ("GET", "/visits") => {
                visits += 1;
                response.set_body(format!("{visits}\n").as_bytes());
            }
            ("POST", "/shout") => response.set_body(&request.body().to_ascii_uppercase()),
            _ => response.set_status(404),
        };

    let config = HttpConfig::default();
    let limits = config.limits(Limits::default());
    let mut reactor = Reactor::new(Http::new(service, config), limits)?;
    reactor.drain_on_signals(&SIGNALS)?;

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let (_, bound) = reactor.listen_first(&Address::resolve(&address)?, &ListenOptions::default())?;
    writeln!(io::stdout(), "listening on {bound}")?;
    reactor.run()?;
    Ok(())
}
