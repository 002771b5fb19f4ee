//! What `epoll-server http` serves: a page about itself, and two answers to try a server and its clients with. Not a
//! file server.

use epoll_protocols::http1::{
    Answered, BodyWriter, HttpConfig, Request, RequestId, Responder, Response, Service,
};

use crate::page::{self, Live};

/// The routes, and what they keep.
pub(crate) struct Site {
    live: Live,
}

impl Site {
    pub(crate) fn new(config: &HttpConfig) -> Self {
        Self { live: Live::new(config) }
    }
}

impl Service for Site {
    type Message = ();

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        match (request.method(), request.path()) {
            ("GET" | "HEAD", "/") => page::answer(response),
            ("GET" | "HEAD", "/live") => self.live.answer(request, response),
            ("GET" | "HEAD", "/hello") => {
                set_type(response, "text/plain; charset=utf-8");
                response.set_static_body(b"Hello, World!");
            }
            ("POST", "/echo") => {
                // Never the request's own type: a browser would run a script that somebody has it post here.
                set_type(response, "application/octet-stream");
                response.set_body(request.body());
            }
            _ => {
                response.set_status(404);
                set_type(response, "text/plain; charset=utf-8");
                response.set_static_body(b"Not Found\n");
            }
        }
    }

    fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        self.live.write_body(id, body);
    }

    fn on_end(&mut self, id: RequestId, _: bool) {
        self.live.on_end(id);
    }

    fn on_answer(&mut self, _: &Answered<'_>) {
        self.live.on_answer();
    }

    fn on_tick(&mut self, responder: &mut Responder<'_>) {
        self.live.on_tick(responder);
    }

    fn on_shutdown(&mut self, responder: &mut Responder<'_>) {
        self.live.on_shutdown(responder);
    }
}

fn set_type(response: &mut Response, content_type: &'static str) {
    if let Err(error) = response.header("Content-Type", content_type) {
        log::error!("Content-Type {content_type:?}: {error}");
    }
}
