//! Messages, wakes and the drain under the interleavings of their threads, by loom: all of them, or all with up to so
//! many preemptions as each test says. It is the real [`Reactor`], on a kernel of which only the eventfd exists. A wake
//! that is lost leaves the loop asleep with nobody to wake it, which loom reports as a deadlock.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p epoll-reactor --lib loom_`

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use epoll_sys::{Address, ConnectProgress, Events, Interest, ListenOptions, Signal, Then, Timestamp};
use loom::sync::Condvar;
use loom::thread;

use super::*;
use crate::balance::Journey;
use crate::token::Token;
use crate::{ConnId, Ctx, Handler, Limits, PanicPolicy, Reactor, Turn};

/// A kernel with one eventfd in it, registered edge-triggered: a wait ends when something has been written since the
/// last one ended. That is all of the events that the loop needs, as it looks for messages in every turn.
struct Model {
    waker: ModelFd,
}

#[derive(Clone)]
struct ModelFd(Arc<Eventfd>);

struct Eventfd {
    /// Writes that no wait has told of.
    edges: Mutex<usize>,
    written: Condvar,
}

impl fmt::Debug for ModelFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("eventfd")
    }
}

impl Model {
    fn new() -> Self {
        Self { waker: ModelFd(Arc::new(Eventfd { edges: Mutex::new(0), written: Condvar::new() })) }
    }
}

impl Kernel for Model {
    type Fd = ModelFd;

    fn wait(&self, _: &mut Events, timeout: Option<Duration>) -> Result<(), Errno> {
        let Eventfd { edges, written } = &*self.waker.0;
        let mut edges = edges.lock().unwrap();
        // No time passes here, so only an edge ends a wait, unless it is none.
        while *edges == 0 && timeout != Some(Duration::ZERO) {
            edges = written.wait(edges).unwrap();
        }
        *edges = 0;
        Ok(())
    }

    fn notify(ModelFd(eventfd): &ModelFd) -> Result<(), Errno> {
        *eventfd.edges.lock().unwrap() += 1;
        eventfd.written.notify_one();
        Ok(())
    }

    /// The loop's waker and its spare descriptor, to which nobody writes, are the same here.
    fn eventfd(&self) -> Result<ModelFd, Errno> {
        Ok(self.waker.clone())
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_nanoseconds(1)
    }

    fn wall_clock(&self) -> SystemTime {
        UNIX_EPOCH
    }

    fn add(&self, _: &ModelFd, _: Interest, _: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn delete(&self, _: &ModelFd) -> Result<(), Errno> {
        Ok(())
    }

    // There are no sockets.

    fn listen(&self, _: &Address, _: &ListenOptions) -> Result<ModelFd, Errno> {
        Err(Errno::ENOSYS)
    }

    fn remove_socket_file(&self, _: &Address) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    fn local_address(&self, _: &ModelFd) -> Result<Address, Errno> {
        Err(Errno::ENOSYS)
    }

    fn accept(&self, _: &ModelFd) -> Result<(ModelFd, Address), Errno> {
        Err(Errno::ENOSYS)
    }

    fn connect(&self, _: &Address) -> Result<(ModelFd, ConnectProgress), Errno> {
        Err(Errno::ENOSYS)
    }

    fn take_error(&self, _: &ModelFd) -> Result<Option<Errno>, Errno> {
        Err(Errno::ENOSYS)
    }

    fn recv(&self, _: &ModelFd, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::ENOSYS)
    }

    fn send(&self, _: &ModelFd, _: &[u8]) -> Result<usize, Errno> {
        Err(Errno::ENOSYS)
    }

    fn writev(&self, _: &ModelFd, _: &[IoSlice<'_>], _: Then) -> Result<usize, Errno> {
        Err(Errno::ENOSYS)
    }

    fn sendfile(&self, _: &ModelFd, _: &File, _: u64, _: usize) -> Result<usize, Errno> {
        Err(Errno::ENOSYS)
    }

    fn shutdown_write(&self, _: &ModelFd) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    fn reset_on_close(&self, _: &ModelFd) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    fn read(&self, _: &ModelFd, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::ENOSYS)
    }

    fn write(&self, _: &ModelFd, _: &[u8]) -> Result<usize, Errno> {
        Err(Errno::ENOSYS)
    }

    fn as_raw<'fd>(&self, _: &'fd ModelFd) -> Option<BorrowedFd<'fd>> {
        None
    }

    fn signalfd(&self, _: &[Signal]) -> Result<ModelFd, Errno> {
        Err(Errno::ENOSYS)
    }

    fn read_signal(&self, _: &ModelFd) -> Result<Option<Signal>, Errno> {
        Err(Errno::ENOSYS)
    }
}

/// Keeps the messages it is given.
#[derive(Default)]
struct Inbox(Vec<u32>);

impl Handler for Inbox {
    type Conn = ();
    type Message = u32;

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
        input.len()
    }

    fn on_message(&mut self, _: &mut Ctx, message: u32) {
        self.0.push(message);
    }
}

fn reactor(message_queue: usize, message_budget: usize) -> Reactor<Inbox, Model> {
    // A panic is loom's way to end an interleaving.
    let limits = Limits {
        message_queue,
        message_budget,
        read_buffer: 1,
        panics: PanicPolicy::Propagate,
        ..Limits::default()
    };
    Reactor::with_kernel(Model::new(), Inbox::default(), limits).unwrap()
}

/// Tries every interleaving of `test` in which threads are preempted at most `preemptions` times, besides when they
/// wait. Says how many that were, which `--nocapture` shows.
fn explore(preemptions: Option<usize>, test: impl Fn() + Send + Sync + 'static) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        test();
    });
    println!("{} interleavings", count.load(Ordering::Relaxed));
}

#[test]
fn loom_no_wake_is_lost() {
    explore(Some(6), || {
        let mut reactor = reactor(10, 10);
        let senders = [1, 2].map(|message| {
            let remote = reactor.remote();
            thread::spawn(move || remote.send(message).unwrap())
        });
        // The loop sleeps between the turns unless it is woken.
        while reactor.handler().0.len() < 2 {
            assert_eq!(reactor.turn(None).unwrap(), Turn::Continue);
        }
        for sender in senders {
            sender.join().unwrap();
        }
        reactor.handler().0.sort_unstable();
        assert_eq!(reactor.handler().0, [1, 2]);
    });
}

#[test]
fn loom_what_is_over_the_budget_is_taken_in_the_next_turn() {
    explore(None, || {
        let mut reactor = reactor(10, 1);
        let remote = reactor.remote();
        let sender = thread::spawn(move || (1..=3).for_each(|message| remote.send(message).unwrap()));
        while reactor.handler().0.len() < 3 {
            assert_eq!(reactor.turn(None).unwrap(), Turn::Continue);
        }
        sender.join().unwrap();
        assert_eq!(reactor.handler().0, [1, 2, 3], "in the order of the one sender");
    });
}

#[test]
fn loom_a_drain_is_never_slept_through() {
    explore(Some(6), || {
        let mut reactor = reactor(10, 10);
        let (sender, drainer) = (reactor.remote(), reactor.remote());
        let sender = thread::spawn(move || sender.send(1));
        let drainer = thread::spawn(move || drainer.drain());
        reactor.run().unwrap();
        drainer.join().unwrap();
        let sent = sender.join().unwrap();
        assert!(matches!(sent, Ok(()) | Err(RemoteError::Closed(1))));
        let delivered: &[u32] = if sent.is_ok() { &[1] } else { &[] };
        assert_eq!(reactor.handler().0, delivered, "delivered before `run` returns, or refused");
    });
}

#[test]
fn loom_each_send_resolves_once_against_a_full_queue_and_the_end() {
    explore(Some(4), || {
        let mut reactor = reactor(1, 1);
        let (sender, drainer) = (reactor.remote(), reactor.remote());
        let sender = thread::spawn(move || [1, 2].map(|message| sender.send(message)));
        let drainer = thread::spawn(move || {
            let sent = drainer.send(3);
            drainer.drain();
            sent
        });
        reactor.run().unwrap();
        let [first, second] = sender.join().unwrap();
        let mut delivered = std::mem::take(&mut reactor.handler().0);
        for (message, sent) in [(1, first), (2, second), (3, drainer.join().unwrap())] {
            let times = delivered.iter().filter(|it| **it == message).count();
            match sent {
                Ok(()) => assert_eq!(times, 1, "{message}"),
                Err(RemoteError::Full(back) | RemoteError::Closed(back)) => {
                    assert_eq!((back, times), (message, 0));
                }
            }
        }
        delivered.retain(|message| *message != 3);
        assert!(delivered.is_sorted(), "in the order of their sender");
    });
}

#[test]
fn loom_a_reactor_that_is_dropped_refuses_what_comes_later() {
    explore(None, || {
        let reactor = reactor(10, 10);
        let remote = reactor.remote();
        let later = remote.clone();
        let sender = thread::spawn(move || [1, 2].map(|message| remote.send(message).is_ok()));
        drop(reactor);
        let accepted = sender.join().unwrap();
        assert_ne!(accepted, [false, true], "closed is closed");
        assert!(matches!(later.send(3), Err(RemoteError::Closed(3))), "and stays so");
    });
}

#[test]
fn loom_an_inspection_wakes_the_loop_and_is_made_or_refused() {
    explore(Some(4), || {
        let mut reactor = reactor(1, 1);
        let (asker, drainer) = (reactor.remote(), reactor.remote());
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let asker = thread::spawn(move || {
            asker.inspect(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        let drainer = thread::spawn(move || drainer.drain());
        reactor.run().unwrap();
        drainer.join().unwrap();
        let accepted = asker.join().unwrap().is_ok();
        assert_eq!(
            made.load(Ordering::Relaxed),
            usize::from(accepted),
            "made before `run` returns, or refused"
        );
    });
}

#[test]
fn loom_the_wake_of_an_inspection_is_not_lost() {
    explore(Some(6), || {
        let mut reactor = reactor(10, 10);
        let made = Arc::new(AtomicUsize::new(0));
        let askers = [(); 2].map(|()| {
            let (remote, count) = (reactor.remote(), Arc::clone(&made));
            thread::spawn(move || {
                let inspection = move |_: &Ctx| _ = count.fetch_add(1, Ordering::Relaxed);
                remote.inspect(inspection).unwrap();
            })
        });
        while made.load(Ordering::Relaxed) < 2 {
            assert_eq!(reactor.turn(None).unwrap(), Turn::Continue);
        }
        for asker in askers {
            asker.join().unwrap();
        }
    });
}

/// A client as another loop hands it over.
fn handed() -> Handed<ModelFd> {
    let eventfd = Eventfd { edges: Mutex::new(0), written: Condvar::new() };
    Handed {
        listener: Token::new(1, 1),
        fd: ModelFd(Arc::new(eventfd)),
        peer: Address::UnixUnnamed,
        journey: Journey::New,
    }
}

#[test]
fn loom_who_is_handed_over_is_opened_whatever_the_loop_sleeps() {
    explore(Some(6), || {
        let mut reactor = reactor(10, 10);
        let senders = [(); 2].map(|()| {
            let remote = reactor.remote();
            thread::spawn(move || remote.hand_over(handed()).unwrap())
        });
        while reactor.ctx().counters().taken_over < 2 {
            assert_eq!(reactor.turn(None).unwrap(), Turn::Continue);
        }
        for sender in senders {
            sender.join().unwrap();
        }
        assert_eq!((reactor.ctx().connections(), reactor.remote().shared().waiting()), (2, 0));
    });
}

#[test]
fn loom_who_is_handed_over_to_a_loop_that_drains_is_opened_and_closed_or_handed_back() {
    explore(Some(4), || {
        let mut reactor = reactor(1, 1);
        let (sender, drainer) = (reactor.remote(), reactor.remote());
        let sender = thread::spawn(move || sender.hand_over(handed()).is_ok());
        let drainer = thread::spawn(move || drainer.drain());
        reactor.run().unwrap();
        drainer.join().unwrap();
        let taken = u64::from(sender.join().unwrap());
        let counters = reactor.ctx().counters();
        assert_eq!((counters.taken_over, counters.accepted, counters.closed), (taken, taken, taken));
    });
}
