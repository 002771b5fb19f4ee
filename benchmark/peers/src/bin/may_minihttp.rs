//! HTTP by `may_minihttp`: stackful coroutines on one worker.

#![forbid(unsafe_code)]

use std::io::{self, Read};

use may_minihttp::{HttpServer, HttpService, Request, Response};
use peers::{HELLO, address};

#[derive(Clone)]
struct Site;

impl HttpService for Site {
    fn call(&mut self, request: Request<'_, '_, '_>, response: &mut Response<'_>) -> io::Result<()> {
        match (request.method(), request.path()) {
            ("GET", "/hello") => {
                response.header("Content-Type: text/plain; charset=utf-8").body(HELLO);
            }
            ("POST", "/echo") => {
                let mut body = Vec::with_capacity(1024);
                request.body().read_to_end(&mut body)?;
                response.header("Content-Type: application/octet-stream").body_vec(body);
            }
            _ => {
                response.status_code(404, "Not Found");
            }
        }
        Ok(())
    }
}

fn main() -> io::Result<()> {
    may::config().set_workers(1);
    let server = HttpServer(Site).start(address("http"))?;
    server.join().map_err(|_| io::Error::other("the listener has panicked"))
}
