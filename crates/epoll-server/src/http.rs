//! What `epoll-server http` serves: the files of a directory, or a page about itself and two answers to try a server and
//! its clients with.

use std::io;

use epoll_protocols::http1::{
    Answered, BodyFlow, BodyMode, BodyWriter, FieldLine, Files, FilesOptions, HttpConfig, HttpMessage,
    Request, RequestId, Responder, Response, Service, allow,
};
use epoll_reactor::{Remote, Signal};

use crate::access_log::AccessLog;
use crate::options;
use crate::page::{self, Live, Slot};

/// What a client is told for whom there is no room (RFC 9110 section 15.6.4).
pub(crate) const OVERLOADED: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Length: 0\r\n\r\n";

pub(crate) const TEXT: FieldLine = FieldLine::new("Content-Type: text/plain; charset=utf-8");

/// Never the type of the request that it came in: a browser would run a script that somebody has it post here.
const ECHOED: FieldLine = FieldLine::new("Content-Type: application/octet-stream");

/// The answers, and what they need.
pub(crate) struct Site {
    live: Live,
    files: Option<Files>,
    log: Option<AccessLog>,
}

impl Site {
    /// # Errors
    /// The directory cannot be opened, and the error names it.
    pub(crate) fn open(
        config: &HttpConfig,
        content: &options::Content,
        log: Option<AccessLog>,
        slot: Slot,
    ) -> io::Result<Self> {
        let options = FilesOptions { list: content.list, ..FilesOptions::default() };
        let files = content.root.as_deref().map(|root| {
            let opened = Files::open(root, options);
            opened
                .map_err(|error| io::Error::new(error.kind(), format!("--root {}: {error}", root.display())))
        });
        Ok(Self { live: Live::new(config, slot), files: files.transpose()?, log })
    }

    /// The answers of a server that was given no files.
    fn answer(&mut self, request: &Request<'_>, response: &mut Response) {
        let (method, path) = (request.method(), request.path());
        let methods: &[&str] = match path {
            "/" | "/live" | "/hello" => &["GET"],
            "/echo" => &["POST"],
            "*" => &["GET", "POST"],
            _ => {
                response.set_status(404);
                response.field_line(TEXT);
                return response.set_static_body(b"Not Found\n");
            }
        };
        match (method, path) {
            ("GET" | "HEAD", "/") => page::answer(response),
            ("GET" | "HEAD", "/live") => self.live.answer(request, response),
            ("GET" | "HEAD", "/hello") => {
                response.field_line(TEXT);
                response.set_static_body(b"Hello, World!");
            }
            ("POST", "/echo") => {
                response.field_line(ECHOED);
                response.set_body(request.body());
            }
            _ => allow(methods, method, response),
        }
    }
}

/// Word from the thread that watches over several loops, to one of them: the access log is to be opened anew.
pub(crate) struct Reopen;

impl Reopen {
    /// Any of them can see to it, since they share the file.
    pub(crate) fn send_to_any(remotes: &[Remote<HttpMessage<Self>>]) {
        if !remotes.iter().any(|remote| remote.send(Self.into()).is_ok()) {
            log::error!("access log: not opened anew, for no loop takes a message");
        }
    }
}

impl Service for Site {
    type Message = Reopen;

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        match &self.files {
            Some(files) => files.answer(request, response),
            None => self.answer(request, response),
        }
    }

    fn body_mode(&mut self, head: &Request<'_>) -> BodyMode {
        match &mut self.files {
            Some(files) => files.body_mode(head),
            None => BodyMode::Collect,
        }
    }

    fn on_body(&mut self, id: RequestId, piece: &[u8]) -> BodyFlow {
        match &mut self.files {
            Some(files) => files.on_body(id, piece),
            None => BodyFlow::Continue,
        }
    }

    fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        self.live.write_body(id, body);
    }

    fn on_end(&mut self, id: RequestId, _: bool) {
        self.live.on_end(id);
    }

    fn on_answer(&mut self, answered: &Answered<'_>) {
        self.live.on_answer();
        if let Some(log) = &mut self.log {
            log.record(answered);
        }
    }

    fn on_tick(&mut self, responder: &mut Responder<'_>) {
        self.live.on_tick(responder);
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    fn on_signal(&mut self, signal: Signal, _: &mut Responder<'_>) {
        if let (Signal::Hangup, Some(log)) = (signal, &mut self.log) {
            log.reopen();
        }
    }

    fn on_message(&mut self, Reopen: Reopen, _: &mut Responder<'_>) {
        if let Some(log) = &mut self.log {
            log.reopen();
        }
    }

    fn on_shutdown(&mut self, responder: &mut Responder<'_>) {
        self.live.on_shutdown(responder);
    }
}
