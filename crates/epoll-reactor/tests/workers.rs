//! Several loops in one process: how they share clients, what each is told, and how they end, together and alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test"
)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use epoll_reactor::{
    Address, ConnId, Ctx, Handler, Limits, ListenOptions, LoopPhase, PanicPolicy, RemoteError, SendOutcome,
    Signal, Stopped, Timestamp, Worker, WorkerEvent, Workers,
};
use epoll_sys::{allowed_cpus, pin_to_cpu};
use nix::sys::signal::{Signal as NixSignal, raise};

const PATIENCE: Duration = Duration::from_secs(30);

/// Greets each client with the number of its loop, and panics when it is told to.
struct Numbered {
    index: usize,
    /// A handler need not be `Send`.
    greeted: Rc<Cell<usize>>,
    /// Whether a drain closes connections.
    stays: bool,
    /// What the others have sent.
    told: Sender<(usize, Arc<str>)>,
    /// Where a callback says that it waits, and for what.
    pause: Option<(Sender<()>, Receiver<()>)>,
}

impl Handler for Numbered {
    type Conn = ();
    type Message = Arc<str>;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        self.greeted.set(self.greeted.get() + 1);
        let _: SendOutcome<_> = ctx.send(id, format!("{}\n", self.index).as_bytes());
    }

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
        if input == b"wait and panic" {
            if let Some((waiting, go_on)) = self.pause.take() {
                waiting.send(()).unwrap();
                go_on.recv_timeout(PATIENCE).unwrap();
            }
            panic!("as it was told");
        }
        input.len()
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), _: Timestamp) {
        if self.stays {
            let _: SendOutcome<_> = ctx.send(id, b"draining\n");
        } else {
            ctx.close_after_flush(id);
        }
    }

    fn on_message(&mut self, _: &mut Ctx, message: Arc<str>) {
        self.told.send((self.index, message)).unwrap();
    }
}

type Told = Receiver<(usize, Arc<str>)>;

fn workers(count: usize, limits: Limits) -> Workers<Arc<str>> {
    Workers::new(NonZeroUsize::new(count).unwrap(), limits).unwrap()
}

fn loopback() -> Address {
    Address::Tcp("127.0.0.1:0".parse().unwrap())
}

fn listen(workers: &mut Workers<Arc<str>>) -> Address {
    workers.listen(&loopback(), &ListenOptions::default()).unwrap()
}

/// A factory of handlers, and where what they are told comes out.
fn factory(stays: bool) -> (impl Fn(&Worker<Arc<str>>) -> io::Result<Numbered> + Sync, Told) {
    let (told, out) = channel();
    let make = move |worker: &Worker<Arc<str>>| {
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert_eq!(name, format!("worker-{}\n", worker.index()));
        let (index, greeted) = (worker.index(), Rc::default());
        Ok(Numbered { index, greeted, stays, told: told.clone(), pause: None })
    };
    (make, out)
}

fn drain_all(workers: &[epoll_reactor::Remote<Arc<str>>]) {
    workers.iter().for_each(epoll_reactor::Remote::drain);
}

/// A client, and the loop that has greeted it.
fn greeted<S: Read>(stream: S) -> (BufReader<S>, usize) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let index = line.trim_end().parse().unwrap_or_else(|_| panic!("{line:?}"));
    (stream, index)
}

fn connect(address: &Address) -> (BufReader<TcpStream>, usize) {
    let stream = TcpStream::connect(address.as_tcp().unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    greeted(stream)
}

/// Clients until each loop has one, and how many each has.
fn one_each(address: &Address, count: usize) -> Vec<(BufReader<TcpStream>, usize)> {
    let mut clients = Vec::new();
    while (0..count).any(|index| !clients.iter().any(|(_, its)| *its == index)) {
        assert!(clients.len() < 1000, "one of the loops has no client");
        clients.push(connect(address));
    }
    clients
}

#[test]
fn every_loop_has_clients_and_a_way_to_the_others() {
    let mut workers = workers(2, Limits::default());
    let address = listen(&mut workers);
    let second = listen(&mut workers);
    let remotes = Arc::clone(workers.remotes());
    let (make, told) = factory(false);
    let mut events = Vec::new();
    // What is sent before the loops are there waits for them.
    remotes[1].send("early".into()).unwrap();
    let end = workers
        .run(make, |event| {
            events.push(event);
            for address in [&address, &second] {
                let clients: Vec<_> = (0..64).map(|_| connect(address)).collect();
                let of_first = clients.iter().filter(|(_, index)| *index == 0).count();
                assert!((1..64).contains(&of_first), "{of_first} of 64 with the first loop");
            }
            let names = fs::read_dir("/proc/self/task").unwrap();
            let names: BTreeSet<String> = names
                .filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok())
                .map(|name| name.trim_end().to_owned())
                .collect();
            assert!(names.contains("worker-0") && names.contains("worker-1"), "{names:?}");
            remotes[0].send("hello".into()).unwrap();
            drain_all(&remotes);
        })
        .unwrap();
    assert_eq!(events, [WorkerEvent::AllStarted]);
    assert_eq!((end.stopped, end.cut_off, end.died), (Stopped::Drained, 0, 0));
    let told: BTreeSet<_> = told.into_iter().collect();
    assert_eq!(told, BTreeSet::from([(0, "hello".into()), (1, "early".into())]));
    assert!(matches!(remotes[0].send("late".into()), Err(RemoteError::Closed(_))));
    // Nobody has the address any more.
    std::net::TcpListener::bind(address.as_tcp().unwrap()).unwrap();
}

#[test]
fn a_worker_knows_the_others() {
    let workers = workers(3, Limits::default());
    let remotes = workers.remotes();
    let worker = Worker::new(2, Arc::clone(remotes)).unwrap();
    assert_eq!((worker.index(), worker.count(), worker.remotes().len()), (2, 3, 3));
    worker.remote().send("to itself".into()).unwrap();
    assert!(Worker::new(3, Arc::clone(remotes)).is_none());
}

#[test]
fn an_address_in_use_is_an_error_whoever_has_it_and_however_many_loops() {
    let mut first = workers(2, Limits::default());
    let address = listen(&mut first);
    let directory = tempfile::tempdir().unwrap();
    let socket = Address::Unix(directory.path().join("socket"));
    first.listen(&socket, &ListenOptions::default()).unwrap();
    for count in [1, 2] {
        for address in [&address, &socket] {
            let error =
                workers(count, Limits::default()).listen(address, &ListenOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
            assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
        }
    }
    // The second one gets the first free one.
    let mut second = workers(2, Limits::default());
    let elsewhere = second.listen_first(&[address.clone(), loopback()], &ListenOptions::default()).unwrap();
    assert_ne!(elsewhere, address);
    assert_eq!(
        second.listen_first(&[], &ListenOptions::default()).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    // They were never run, and leave nothing behind.
    drop(first);
    std::net::TcpListener::bind(address.as_tcp().unwrap()).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_factory_that_fails_ends_the_others() {
    for failing in 0..3 {
        let mut workers = workers(3, Limits { drain_grace: PATIENCE, ..Limits::default() });
        let address = listen(&mut workers);
        let (make, _told) = factory(true);
        let mut events = Vec::new();
        let error = workers
            .run(
                |worker| {
                    if worker.index() == failing {
                        return Err(io::Error::new(ErrorKind::NotFound, "nothing there"));
                    }
                    make(worker)
                },
                |event| events.push(event),
            )
            .unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotFound, "nothing there"));
        assert_eq!(events, []);
        std::net::TcpListener::bind(address.as_tcp().unwrap()).unwrap();
    }
}

#[test]
fn a_factory_that_panics_ends_the_others_and_is_an_error() {
    let mut workers = workers(2, Limits::default());
    listen(&mut workers);
    let (make, _told) = factory(true);
    let panicking = |worker: &Worker<Arc<str>>| {
        assert_eq!(worker.index(), 0, "on purpose");
        make(worker)
    };
    let error = workers.run(panicking, |event| panic!("{event:?}")).unwrap_err().to_string();
    assert!(error.starts_with("worker-1 panicked at its start: ") && error.contains("on purpose"), "{error}");
}

#[test]
fn a_recording_says_of_which_loop_it_is() {
    let mut workers = workers(3, Limits { recorder: 16, ..Limits::default() });
    listen(&mut workers);
    let remotes = Arc::clone(workers.remotes());
    let (make, _told) = factory(false);
    let (tell, recordings) = channel();
    workers
        .run(make, |_| {
            for (index, remote) in remotes.iter().enumerate() {
                let tell = tell.clone();
                // What it records is the inspection before.
                remote.inspect(|_| ()).unwrap();
                let inspection = move |ctx: &Ctx| tell.send((index, ctx.recording())).unwrap();
                remote.inspect(inspection).unwrap();
            }
            drain_all(&remotes);
        })
        .unwrap();
    let numbers = recordings.try_iter().map(|(index, recording)| (index, recording.unwrap().worker));
    assert_eq!(numbers.collect::<std::collections::BTreeMap<_, _>>(), [(0, 0), (1, 1), (2, 2)].into());
}

#[test]
fn of_a_loop_that_dies_the_others_go_on() {
    let limits = Limits { panics: PanicPolicy::Propagate, ..Limits::default() };
    let mut workers = workers(3, limits);
    let address = listen(&mut workers);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    workers.listen(&Address::Unix(path.clone()), &ListenOptions::default()).unwrap();
    let remotes = Arc::clone(workers.remotes());
    let (make, _told) = factory(false);
    let ((waiting, waits), (release, go_on)) = (channel(), channel());
    let pause = std::sync::Mutex::new(Some((waiting, go_on)));
    let (mut clients, mut events) = (Vec::new(), Vec::new());
    let message: Arc<str> = "never delivered".into();
    let end = workers
        .run(
            |worker| {
                let mut handler = make(worker)?;
                if worker.index() == 1 {
                    handler.pause = pause.lock().unwrap().take();
                }
                Ok(handler)
            },
            |event| {
                events.push(event);
                if event == WorkerEvent::AllStarted {
                    clients = one_each(&address, 3);
                    let sick = clients.iter_mut().find(|(_, index)| *index == 1).unwrap();
                    sick.0.get_mut().write_all(b"wait and panic").unwrap();
                    waits.recv_timeout(PATIENCE).unwrap();
                    (0..10).for_each(|_| remotes[1].send(Arc::clone(&message)).unwrap());
                    release.send(()).unwrap();
                    return;
                }
                // Its clients are gone, and so is what was sent to it and what might be.
                for (client, index) in &mut clients {
                    client.get_mut().set_nonblocking(*index != 1).unwrap();
                    match client.read(&mut [0]) {
                        Ok(0) => assert_eq!(*index, 1),
                        Ok(count) => panic!("{count} bytes"),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => assert_ne!(*index, 1),
                        Err(error) => assert_eq!((*index, error.kind()), (1, ErrorKind::ConnectionReset)),
                    }
                }
                assert!(matches!(remotes[1].send("late".into()), Err(RemoteError::Closed(_))));
                assert_eq!(Arc::strong_count(&message), 1);
                // Nobody is sent to it any more.
                let after: BTreeSet<_> = (0..64).map(|_| connect(&address).1).collect();
                assert_eq!(after, BTreeSet::from([0, 2]));
                assert_ne!(
                    greeted(UnixStream::connect(&path).unwrap()).1,
                    1,
                    "the socket is the others' too"
                );
                drain_all(&remotes);
            },
        )
        .unwrap();
    assert_eq!(events, [WorkerEvent::AllStarted, WorkerEvent::Died(1)]);
    assert_eq!((end.stopped, end.died), (Stopped::Drained, 1));
}

#[test]
fn each_loop_has_numbers_of_its_own_and_its_panics_can_be_looked_at() {
    let mut workers = workers(2, Limits { recorder: 16, ..Limits::default() });
    let address = listen(&mut workers);
    let remotes = Arc::clone(workers.remotes());
    let (seen, panics) = channel();
    workers.on_panic(move |index, ctx| {
        let last = ctx.recording().unwrap().records.last().unwrap().to_string();
        seen.send((index, ctx.counters().panics, last)).unwrap();
    });
    let (factory, _told) = factory(false);
    assert_eq!(remotes[0].metrics().read().phase, LoopPhase::Starting, "before it runs");
    let client = std::thread::spawn({
        let remotes = Arc::clone(&remotes);
        move || {
            let (mut client, index) = connect(&address);
            client.get_mut().write_all(b"wait and panic").unwrap();
            let (at, count, last) = panics.recv_timeout(PATIENCE).unwrap();
            assert_eq!((at, count), (index, 1));
            assert!(last.contains(": on_data, ") && last.ends_with(", panicked"), "{last}");
            assert_eq!(remotes[index].metrics().read().phase, LoopPhase::Running);
            let accepted = remotes.iter().map(|remote| remote.metrics().read().counters.accepted);
            assert_eq!(accepted.enumerate().find(|(_, count)| *count == 1), Some((index, 1)));
            drain_all(&remotes);
        }
    });
    assert_eq!(workers.run(factory, |_| ()).unwrap().died, 0);
    client.join().unwrap();
    assert!(remotes.iter().all(|remote| remote.metrics().read().phase == LoopPhase::Ended));
}

#[test]
fn whatever_a_message_does_when_it_is_dropped_the_end_of_its_loop_is_heard_of() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    struct Taker;
    impl Handler for Taker {
        type Conn = ();
        type Message = Bomb;

        fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
            input.len()
        }
    }
    let workers = Workers::new(NonZeroUsize::MIN, Limits::default()).unwrap();
    assert!(workers.remotes()[0].send(Bomb).is_ok());
    let (ended, end) = channel();
    let remotes = Arc::clone(workers.remotes());
    std::thread::spawn(move || {
        let result = workers.run(|_| Err::<Taker, _>(io::Error::other("no")), |_| ());
        ended.send(result.map_err(|error| error.to_string())).unwrap();
    });
    let error = end.recv_timeout(PATIENCE).expect("an end").unwrap_err();
    assert!(error.contains("dropped"), "{error}");
    assert_eq!(remotes[0].metrics().read().phase, LoopPhase::Ended);
}

#[test]
fn whatever_a_message_does_when_it_is_dropped_all_loops_that_never_run_have_ended() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let workers = Workers::new(NonZeroUsize::new(3).unwrap(), Limits::default()).unwrap();
    let remotes = Arc::clone(workers.remotes());
    assert!(remotes[0].send(Bomb).is_ok());
    let panic = catch_unwind(AssertUnwindSafe(|| drop(workers))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"dropped"));
    assert!(remotes.iter().all(|remote| remote.metrics().read().phase == LoopPhase::Ended));
}

#[test]
fn loops_that_never_run_have_ended() {
    for runs in [true, false] {
        let workers = workers(2, Limits::default());
        let remotes = Arc::clone(workers.remotes());
        let dropped = Arc::new(());
        let held = Arc::clone(&dropped);
        remotes[1].inspect(move |_| drop(held)).unwrap();
        let message: Arc<str> = "never told".into();
        remotes[0].send(Arc::clone(&message)).unwrap();
        if runs {
            let refused = |_: &Worker<Arc<str>>| -> io::Result<Numbered> { Err(ErrorKind::Other.into()) };
            workers.run(refused, |_| ()).unwrap_err();
        } else {
            drop(workers);
        }
        assert!(remotes.iter().all(|remote| remote.metrics().read().phase == LoopPhase::Ended));
        assert_eq!(Arc::strong_count(&dropped), 1, "what was to look at it knows that it never will");
        assert_eq!(Arc::strong_count(&message), 1);
        assert_eq!(remotes[0].send(Arc::clone(&message)), Err(RemoteError::Closed(message)));
    }
}

#[test]
fn a_panic_of_the_one_who_is_told_ends_the_loops_first() {
    let mut workers = workers(2, Limits { drain_grace: Duration::from_secs(3600), ..Limits::default() });
    let address = listen(&mut workers);
    let (make, _told) = factory(true);
    let mut clients = Vec::new();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let end = workers.run(make, |_| {
            clients = one_each(&address, 2);
            panic!("on purpose");
        });
        unreachable!("{end:?}");
    }));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"on purpose"));
    for (client, _) in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }
    std::net::TcpListener::bind(address.as_tcp().unwrap()).unwrap();
}

#[test]
fn when_all_loops_have_died_it_is_over() {
    let mut workers = workers(2, Limits { panics: PanicPolicy::Propagate, ..Limits::default() });
    let address = listen(&mut workers);
    let (make, _told) = factory(false);
    let mut died = BTreeSet::new();
    let end = workers
        .run(make, |event| {
            if let WorkerEvent::Died(index) = event {
                died.insert(index);
            }
            if died.len() < 2 {
                connect(&address).0.get_mut().write_all(b"wait and panic").unwrap();
            }
        })
        .unwrap();
    assert_eq!((end.died, died), (2, BTreeSet::from([0, 1])));
}

#[test]
fn a_signal_drains_all_loops_and_the_next_one_ends_them() {
    let grace = Duration::from_secs(3600);
    let mut workers = workers(2, Limits { drain_grace: grace, ..Limits::default() });
    let address = listen(&mut workers);
    workers.drain_on_signals(&[Signal::Terminate, Signal::User2]).unwrap();
    workers.watch_signals(&[Signal::Hangup]).unwrap();
    let (make, _told) = factory(true);
    let (mut clients, mut events) = (Vec::new(), Vec::new());
    let end = workers
        .run(make, |event| {
            events.push(event);
            match event {
                WorkerEvent::AllStarted => {
                    clients = one_each(&address, 2);
                    // To this thread alone: the others of the test process do not block them.
                    raise(NixSignal::SIGTERM).unwrap();
                    raise(NixSignal::SIGHUP).unwrap();
                }
                WorkerEvent::Signal(Signal::Hangup) if events.len() == 2 => {
                    // Whichever came first: the loops are to be told of the drain, and another look is to be had then.
                    raise(NixSignal::SIGHUP).unwrap();
                }
                _ => {
                    for (client, _) in &mut clients {
                        let mut line = String::new();
                        client.read_line(&mut line).unwrap();
                        assert_eq!(line, "draining\n");
                    }
                    let refused = TcpStream::connect(address.as_tcp().unwrap());
                    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
                    raise(NixSignal::SIGUSR2).unwrap();
                }
            }
        })
        .unwrap();
    assert_eq!(end.stopped, Stopped::Forced);
    assert_eq!(end.cut_off, clients.len() as u64);
    let hangup = WorkerEvent::Signal(Signal::Hangup);
    assert_eq!(events, [WorkerEvent::AllStarted, hangup, hangup]);
    for (client, _) in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }
}

#[test]
fn when_the_grace_has_passed_the_connections_of_all_loops_are_closed() {
    let grace = Duration::from_millis(100);
    let mut workers = workers(2, Limits { drain_grace: grace, ..Limits::default() });
    let address = listen(&mut workers);
    workers.drain_on_signals(&[Signal::User1]).unwrap();
    let (make, _told) = factory(true);
    let (mut clients, mut asked) = (Vec::new(), None);
    let end = workers
        .run(make, |_| {
            clients = one_each(&address, 2);
            asked = Some(Instant::now());
            raise(NixSignal::SIGUSR1).unwrap();
        })
        .unwrap();
    assert!(asked.unwrap().elapsed() >= grace);
    assert_eq!((end.stopped, end.cut_off, end.died), (Stopped::DeadlinePassed, clients.len() as u64, 0));
}

#[test]
fn on_a_unix_socket_each_client_is_served_once_and_all_loops_take_part() {
    const AT_A_TIME: usize = 50;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut workers = workers(2, Limits::default());
    workers.listen(&Address::Unix(path.clone()), &ListenOptions::default()).unwrap();
    let remotes = Arc::clone(workers.remotes());
    let (make, _told) = factory(false);
    let served = std::sync::Mutex::new([0; 2]);
    let counting = |worker: &Worker<Arc<str>>| {
        let handler = make(worker)?;
        Ok(Counting { count: Rc::clone(&handler.greeted), handler, served: &served })
    };
    let (mut of, mut clients) = ([0; 2], 0);
    workers
        .run(counting, |_| {
            while of.contains(&0) || clients < 1000 {
                assert!(clients < 100_000, "one of the loops takes none: {of:?}");
                let together: Vec<_> = (0..AT_A_TIME).map(|_| UnixStream::connect(&path).unwrap()).collect();
                for stream in together {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    of[greeted(stream).1] += 1;
                    clients += 1;
                }
            }
            drain_all(&remotes);
        })
        .unwrap();
    assert_eq!(*served.lock().unwrap(), of, "each loop has greeted those that say so, and no other");
    assert_eq!(of.iter().sum::<usize>(), clients);
    assert!(!path.exists());
}

/// Says at its end how many clients it has greeted.
struct Counting<'a> {
    handler: Numbered,
    count: Rc<Cell<usize>>,
    served: &'a std::sync::Mutex<[usize; 2]>,
}

impl Handler for Counting<'_> {
    type Conn = ();
    type Message = Arc<str>;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut ()) {
        self.handler.on_open(ctx, id, conn);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut (), input: &[u8]) -> usize {
        self.handler.on_data(ctx, id, conn, input)
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.served.lock().unwrap()[self.handler.index] = self.count.get();
    }
}

#[test]
fn a_pinned_loop_has_its_cpu_and_the_connections_that_come_in_there() {
    let cpus = allowed_cpus().unwrap();
    let mut too_many = workers(cpus.len() + 1, Limits::default());
    let error = too_many.pin().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let text =
        format!("{} loops cannot have a CPU each: this process may use {}", cpus.len() + 1, cpus.len());
    assert_eq!(error.to_string(), text);
    let mut workers = workers(cpus.len(), Limits::default());
    let address = listen(&mut workers);
    workers.pin().unwrap();
    let remotes = Arc::clone(workers.remotes());
    let (make, _told) = factory(false);
    let pinned = |worker: &Worker<Arc<str>>| {
        assert_eq!(allowed_cpus().unwrap(), [cpus[worker.index()]]);
        make(worker)
    };
    workers
        .run(pinned, |_| {
            for (index, cpu) in cpus.iter().enumerate() {
                std::thread::scope(|scope| {
                    let connects = || {
                        pin_to_cpu(*cpu).unwrap();
                        (0..16).map(|_| connect(&address).1).collect::<BTreeSet<_>>()
                    };
                    // On loopback a segment is dealt with where it was sent.
                    assert_eq!(scope.spawn(connects).join().unwrap(), BTreeSet::from([index]), "CPU {cpu}");
                });
            }
            drain_all(&remotes);
        })
        .unwrap();
    assert_eq!(allowed_cpus().unwrap(), cpus, "this thread is where it was");
}

#[test]
fn limits_are_for_all_loops_together() {
    let two = NonZeroUsize::new(2).unwrap();
    let error = Workers::<()>::new(two, Limits { connections: 1, ..Limits::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let mut workers = workers(2, Limits { connections: 7, ..Limits::default() });
    let address = listen(&mut workers);
    let remotes = Arc::clone(workers.remotes());
    let (make, _told) = factory(false);
    workers
        .run(make, |_| {
            let mut of = [0; 2];
            let mut open = Vec::new();
            for _ in 0..200 {
                let mut stream = TcpStream::connect(address.as_tcp().unwrap()).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut digit = [0];
                if matches!(stream.read(&mut digit), Ok(1)) {
                    of[usize::from(digit[0] - b'0')] += 1;
                    open.push(stream);
                }
            }
            assert_eq!(of, [4, 3], "each is full");
            drain_all(&remotes);
        })
        .unwrap();
}
