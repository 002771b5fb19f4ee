//! What HTTP has other threads do, and what it does on its own when a service panics, on real sockets: the threads wait
//! for the test, so that who has done what by when is no question of timing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use epoll_protocols::http1::{
    BodyWriter, Http, HttpConfig, HttpMessage, Request, RequestId, Responder, Response, Service,
};
use epoll_reactor::{Errno, FileSlice, Limits, Remote, read_cached};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use support::answers::Answer;
use support::site::{answers, get};
use support::{Client, End, Server};

/// One permit a job: a thread waits for it before it answers `/job`.
#[derive(Clone)]
struct Gate(Arc<Mutex<Receiver<()>>>, Arc<AtomicUsize>);

struct Threads {
    gate: Gate,
    file: Arc<File>,
    streams: Rc<RefCell<Vec<RequestId>>>,
    later: Option<RequestId>,
    stopped: Rc<RefCell<usize>>,
}

enum Message {
    WakeAll,
    /// Answers what was put off, and panics.
    AnswerAndPanic,
    /// Answers the last job's request before its thread does.
    AnswerEarly,
}

impl Service for Threads {
    type Message = Message;

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        let length = self.file.metadata().unwrap().len();
        let slice = FileSlice { file: self.file.clone(), offset: 0, length };
        match request.path() {
            "/job" | "/file-job" => {
                self.later = Some(request.id());
                let gate = self.gate.clone();
                response.run_blocking(move |request, response| {
                    gate.1.fetch_add(1, Ordering::SeqCst);
                    gate.0.lock().unwrap().recv().unwrap();
                    if request.path() == "/job" {
                        response.set_body(request.body());
                    } else {
                        response.set_file(slice);
                    }
                });
            }
            "/file" => response.set_file(slice),
            "/stream" => {
                self.streams.borrow_mut().push(request.id());
                response.stream();
            }
            "/later" => {
                self.later = Some(request.id());
                response.defer();
            }
            path => response.set_body(path.as_bytes()),
        }
    }

    fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        let position = self.streams.borrow().iter().position(|stream| *stream == id);
        // The first panics once there is a second.
        let count = self.streams.borrow().len();
        assert!(count < 2 || position != Some(0), "asked for by the test");
        if count == 2 {
            body.write(b"woken");
            body.finish();
        }
    }

    fn on_message(&mut self, message: Message, responder: &mut Responder<'_>) {
        match message {
            Message::WakeAll => self.streams.borrow().iter().for_each(|id| responder.wake(*id)),
            Message::AnswerEarly => {
                let mut response = Response::new();
                response.set_status(504);
                responder.respond(self.later.unwrap(), response);
            }
            Message::AnswerAndPanic => {
                let mut response = Response::new();
                response.set_body(b"late");
                responder.respond(self.later.unwrap(), response);
                panic!("asked for by the test");
            }
        }
    }

    fn on_shutdown(&mut self, _: &mut Responder<'_>) {
        *self.stopped.borrow_mut() += 1;
    }
}

struct Bench {
    site: Server<Http<Threads>>,
    remote: Remote<HttpMessage<Message>>,
    /// Lets one job go on.
    permits: SyncSender<()>,
    begun: Arc<AtomicUsize>,
    file: Arc<File>,
    streams: Rc<RefCell<Vec<RequestId>>>,
    stopped: Rc<RefCell<usize>>,
}

/// Jobs wait for permits, and `content` is in a file.
fn bench(blocking_threads: usize, blocking_queue: usize, content: &[u8]) -> Bench {
    let (permits, gate) = sync_channel(1000);
    let begun = Arc::new(AtomicUsize::new(0));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let file = Arc::new(file);
    let (streams, stopped) = (Rc::default(), Rc::default());
    let service = Threads {
        gate: Gate(Arc::new(Mutex::new(gate)), begun.clone()),
        file: file.clone(),
        streams: Rc::clone(&streams),
        later: None,
        stopped: Rc::clone(&stopped),
    };
    let config = HttpConfig { blocking_threads, blocking_queue, ..HttpConfig::default() };
    let limits = config.limits(Limits::default());
    let mut site = Server::new(Http::new(service, config), limits);
    let remote = site.reactor.remote();
    site.reactor.handler().attach(remote.clone());
    Bench { site, remote, permits, begun, file, streams, stopped }
}

impl Bench {
    fn asks(&mut self, target: &str) -> Client {
        let mut client = self.site.join();
        client.push(get(target).as_bytes());
        self.site.settle();
        client
    }

    fn answer(&mut self, client: &mut Client) -> Answer {
        answers(&mut self.site, client, 1).remove(0)
    }

    fn until_begun(&mut self, jobs: usize) {
        let begun = self.begun.clone();
        self.site.until("a job to begin", |_| begun.load(Ordering::SeqCst) == jobs);
    }

    /// Has the kernel forget the file's content, but for the pages at `kept`. Not every file system does.
    fn forget(&self, kept: &[u64]) -> bool {
        self.file.sync_all().unwrap();
        posix_fadvise(&*self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        posix_fadvise(&*self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
        for at in kept {
            self.file.read_exact_at(&mut [0], *at).unwrap();
        }
        let cold = read_cached(&self.file, &mut [0], 500_000) == Err(Errno::EAGAIN);
        if !cold {
            println!("skipped: this file system keeps in memory what it is told to forget");
        }
        cold
    }
}

#[test]
fn where_no_more_jobs_may_wait_the_answer_is_503_and_others_go_on() {
    let mut bench = bench(1, 1, b"");
    let mut first = bench.asks("/job");
    bench.until_begun(1);
    let mut second = bench.asks("/job");
    let mut third = bench.asks("/job");
    let refused = bench.answer(&mut third);
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
    let mut other = bench.asks("/other");
    assert_eq!(bench.answer(&mut other).body, b"/other");
    for client in [&mut first, &mut second] {
        bench.permits.send(()).unwrap();
        assert_eq!(bench.answer(client).status, 200);
    }
    // There is room again.
    bench.permits.send(()).unwrap();
    third.push(get("/job").as_bytes());
    assert_eq!(bench.answer(&mut third).status, 200);
}

#[test]
fn without_room_to_wait_each_thread_still_answers() {
    // 0 threads is as good as one.
    let mut bench = bench(0, 0, b"");
    let mut first = bench.asks("/job");
    bench.until_begun(1);
    let mut second = bench.asks("/job");
    assert_eq!(bench.answer(&mut second).status, 503);
    bench.permits.send(()).unwrap();
    assert_eq!(bench.answer(&mut first).status, 200);
}

#[test]
fn a_job_whose_client_has_gone_is_not_begun_and_makes_room() {
    let mut bench = bench(1, 1, b"");
    let mut first = bench.asks("/job");
    bench.until_begun(1);
    let leaves = bench.asks("/job");
    leaves.reset();
    drop(leaves);
    bench.site.until("the client to be gone", |site| site.reactor.ctx().connections() == 1);
    // There is its place, though the thread is where it was.
    let mut third = bench.asks("/job");
    for client in [&mut first, &mut third] {
        bench.permits.send(()).unwrap();
        assert_eq!(bench.answer(client).status, 200);
    }
    assert_eq!(bench.begun.load(Ordering::SeqCst), 2);
}

#[test]
fn nothing_is_kept_for_clients_that_have_gone_however_long_the_threads_take() {
    let content = vec![b'x'; 1 << 20];
    let mut bench = bench(1, 1000, &content);
    let mut first = bench.asks("/job");
    bench.until_begun(1);
    let before = Arc::strong_count(&bench.file);
    // A job holds what it was given, and a file that is not in memory waits for a thread.
    for target in ["/file-job", "/file"] {
        if target == "/file" && !bench.forget(&[]) {
            continue;
        }
        for _ in 0..20 {
            let leaves = bench.asks(target);
            leaves.reset();
            drop(leaves);
            bench.site.until("the client to be gone", |site| site.reactor.ctx().connections() == 1);
        }
        assert_eq!(Arc::strong_count(&bench.file), before, "{target}");
    }
    bench.permits.send(()).unwrap();
    assert_eq!(bench.answer(&mut first).status, 200);
}

#[test]
fn an_answer_that_comes_before_the_thread_s_costs_the_next_job_nothing() {
    let mut bench = bench(1, 10, b"");
    let mut client = bench.asks("/job");
    bench.until_begun(1);
    assert!(bench.remote.send(Message::AnswerEarly.into()).is_ok());
    assert_eq!(bench.answer(&mut client).status, 504);
    // So that the next one waits when the first is done.
    let mut other = bench.asks("/job");
    client.push(get("/job").as_bytes());
    bench.site.settle();
    bench.permits.send(()).unwrap();
    bench.until_begun(2);
    bench.site.until("the first to be heard of", |site| site.reactor.ctx().counters().messages >= 2);
    for client in [&mut other, &mut client] {
        bench.permits.send(()).unwrap();
        assert_eq!(bench.answer(client).status, 200);
    }
}

#[test]
fn what_a_job_holds_counts_against_the_memory_of_the_loop() {
    let mut bench = bench(1, 1, b"");
    let mut client = bench.site.join();
    client.push(
        format!("POST /job HTTP/1.1\r\nHost: h\r\nContent-Length: 10000\r\n\r\n{:10000}", "").as_bytes(),
    );
    bench.until_begun(1);
    bench.site.settle();
    assert!(bench.site.reactor.ctx().buffered() >= 10_000, "{}", bench.site.reactor.ctx().buffered());
    bench.permits.send(()).unwrap();
    assert_eq!(bench.answer(&mut client).body.len(), 10_000);
    bench.site.settle();
    assert_eq!(bench.site.reactor.ctx().buffered(), 0);
}

#[test]
fn an_answer_for_a_client_that_has_gone_keeps_no_file_open() {
    let mut bench = bench(1, 1, b"content");
    let before = Arc::strong_count(&bench.file);
    let client = bench.asks("/file-job");
    bench.until_begun(1);
    client.reset();
    drop(client);
    bench.site.until("the client to be gone", |site| site.reactor.ctx().connections() == 0);
    bench.permits.send(()).unwrap();
    let messages = bench.site.reactor.ctx().counters().messages;
    bench.site.until("the answer", |site| site.reactor.ctx().counters().messages > messages);
    assert_eq!(Arc::strong_count(&bench.file), before);
}

/// The loop's own thread is the one of this test: had it read what is not in memory, the client would have it.
#[test]
fn a_file_that_is_not_in_memory_waits_for_a_thread_however_long_the_queue() {
    let content = vec![b'x'; 1 << 20];
    let last = (1 << 20) - 1;
    // The ends may be in memory, as requests for ranges leave them.
    for kept in [vec![], vec![last], vec![0, last]] {
        let mut bench = bench(1, 0, &content);
        let mut first = bench.asks("/job");
        bench.until_begun(1);
        if !bench.forget(&kept) {
            return;
        }
        let mut client = bench.asks("/file");
        for _ in 0..10 {
            bench.site.turn(Duration::ZERO);
            client.pull(1 << 16);
        }
        assert!(client.len() < 1000, "{} bytes of a file came from nowhere", client.len());
        let mut other = bench.asks("/other");
        assert_eq!(bench.answer(&mut other).body, b"/other");
        bench.permits.send(()).unwrap();
        assert_eq!(bench.answer(&mut first).status, 200);
        assert!(bench.answer(&mut client).body == content);
    }
}

#[test]
fn a_stream_that_panics_when_it_is_woken_is_reset_and_the_others_are_woken() {
    let mut bench = bench(1, 1, b"");
    let mut first = bench.asks("/stream");
    let mut second = bench.asks("/stream");
    assert_eq!(bench.streams.borrow().len(), 2);
    assert!(bench.remote.send(Message::WakeAll.into()).is_ok());
    assert_eq!(bench.answer(&mut second).body, b"woken");
    let (_, end) = bench.site.rest(&mut first);
    assert_eq!(end, End::Reset);
    assert_eq!(bench.site.reactor.ctx().counters().panics, 1);
    let mut other = bench.asks("/other");
    assert_eq!(bench.answer(&mut other).body, b"/other");
}

#[test]
fn what_was_answered_before_a_panic_is_sent() {
    let mut bench = bench(1, 1, b"");
    let mut client = bench.asks("/later");
    assert!(bench.remote.send(Message::AnswerAndPanic.into()).is_ok());
    assert_eq!(bench.answer(&mut client).body, b"late");
    assert_eq!(bench.site.reactor.ctx().counters().panics, 1);
}

#[test]
fn a_service_is_told_of_the_end_once_with_clients_and_without() {
    for clients in [0, 3] {
        let mut bench = bench(1, 1, b"");
        let _clients: Vec<Client> = (0..clients).map(|_| bench.asks("/other")).collect();
        bench.site.reactor.ctx().drain(Duration::from_secs(10));
        let stopped = bench.stopped.clone();
        bench.site.until("the end", |_| *stopped.borrow() > 0);
        for _ in 0..5 {
            bench.site.turn(Duration::ZERO);
        }
        assert_eq!(*bench.stopped.borrow(), 1, "{clients} clients");
    }
}
