//! What the contract says of trouble: urgent data, no descriptors left, an interrupted wait. How it is made differs from
//! kernel to kernel, so there is a bench for each; what comes of it is the same. In a program of its own with one test,
//! since the limit of descriptors is the whole process's.
#![allow(clippy::unwrap_used, reason = "in a test a panic is how a failure is told")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use epoll_sys::sim::{ALWAYS, Faults, Peer, Sim, SimKernel};
use epoll_sys::{Address, Errno, Events, Interest, Kernel, Linux, ListenOptions, Readiness};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal as NixSignal, sigaction,
};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

const PATIENCE: Duration = Duration::from_secs(5);

/// A kernel, and the trouble there may be on it.
trait Bench {
    type Kernel: Kernel;
    /// A client's end of a connection.
    type Client;

    fn kernel(&self) -> &Self::Kernel;

    fn connect(&self, address: &Address) -> Self::Client;

    fn send(&self, client: &Self::Client, data: &[u8]);

    fn send_urgent(&self, client: &Self::Client, byte: u8);

    /// Until all that was sent has arrived.
    fn settle(&self);

    /// No descriptor can be made while `during` runs.
    fn exhaust(&self, during: impl FnOnce());

    /// The call in `during` is interrupted by a signal, if it waits.
    fn interrupt(&self, during: impl FnOnce());
}

struct Real(Linux);

impl Bench for Real {
    type Kernel = Linux;
    type Client = OwnedFd;

    fn kernel(&self) -> &Linux {
        &self.0
    }

    fn connect(&self, address: &Address) -> OwnedFd {
        self.0.connect(address).unwrap().0
    }

    fn send(&self, client: &OwnedFd, data: &[u8]) {
        assert_eq!(self.0.send(client, data), Ok(data.len()));
    }

    fn send_urgent(&self, client: &OwnedFd, byte: u8) {
        assert_eq!(send(client.as_raw_fd(), &[byte], MsgFlags::MSG_OOB), Ok(1));
    }

    /// On loopback it has when the send returns.
    fn settle(&self) {}

    fn exhaust(&self, during: impl FnOnce()) {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // No number below this is left, whatever the test harness has open.
        let spare = self.0.eventfd().unwrap();
        let full = u64::try_from(spare.as_raw_fd()).unwrap();
        drop(spare);
        setrlimit(Resource::RLIMIT_NOFILE, full, hard).unwrap();
        during();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    }

    #[allow(unsafe_code, reason = "only a signal with a handler interrupts a wait")]
    fn interrupt(&self, during: impl FnOnce()) {
        extern "C" fn ignore(_: i32) {}
        let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it is async-signal-safe; nothing else here uses SIGALRM.
        unsafe { sigaction(NixSignal::SIGALRM, &action) }.unwrap();
        let notify = SigevNotify::SigevThreadId {
            signal: NixSignal::SIGALRM,
            thread_id: gettid().as_raw(),
            si_value: 0,
        };
        // It goes on until it is dropped: a signal that comes before the wait has begun is not the only one.
        let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).unwrap();
        let every = Expiration::Interval(TimeSpec::from(Duration::from_millis(2)));
        timer.set(every, TimerSetTimeFlags::empty()).unwrap();
        during();
    }
}

struct Simulated(Sim, SimKernel);

impl Bench for Simulated {
    type Kernel = SimKernel;
    type Client = Peer;

    fn kernel(&self) -> &SimKernel {
        &self.1
    }

    fn connect(&self, address: &Address) -> Peer {
        self.0.connect(address).unwrap()
    }

    fn send(&self, client: &Peer, data: &[u8]) {
        assert_eq!(client.send(data), data.len());
    }

    fn send_urgent(&self, client: &Peer, byte: u8) {
        assert!(client.send_urgent(byte));
    }

    fn settle(&self) {
        self.0.advance(Duration::from_secs(1));
    }

    fn exhaust(&self, during: impl FnOnce()) {
        self.0.set_faults(Faults { max_open: self.0.open_descriptors().len(), ..Faults::none() });
        during();
        self.0.set_faults(Faults::none());
    }

    fn interrupt(&self, during: impl FnOnce()) {
        self.0.set_faults(Faults { eintr: ALWAYS, ..Faults::none() });
        during();
        self.0.set_faults(Faults::none());
    }
}

fn listen<K: Kernel>(kernel: &K) -> (K::Fd, Address) {
    let anywhere = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let listener = kernel.listen(&anywhere, &ListenOptions::default()).unwrap();
    let address = kernel.local_address(&listener).unwrap();
    (listener, address)
}

/// The only event there is, which must come.
fn next<K: Kernel>(kernel: &K) -> Readiness {
    let mut events = Events::with_capacity(4);
    kernel.wait(&mut events, Some(PATIENCE)).unwrap();
    assert_eq!(events.len(), 1);
    events.get(0).unwrap().readiness
}

fn expect_silence<K: Kernel>(kernel: &K) {
    let mut events = Events::with_capacity(4);
    kernel.wait(&mut events, Some(Duration::from_millis(20))).unwrap();
    assert!(events.is_empty());
}

fn urgent_data_stops_a_read_short_and_the_event_says_so<B: Bench>(bench: &B) {
    let kernel = bench.kernel();
    let (listener, address) = listen(kernel);
    let client = bench.connect(&address);
    bench.settle();
    let (server, _) = kernel.accept(&listener).unwrap();
    bench.send(&client, b"0123456789");
    bench.send_urgent(&client, b'!');
    bench.send(&client, b"abcdefghij");
    bench.settle();
    kernel.add(&server, Interest::Stream, 1).unwrap();
    let readiness = next(kernel);
    assert!(readiness.is_readable() && readiness.must_read_to_end() && !readiness.is_peer_shutdown());
    let mut buffer = [0; 64];
    assert_eq!(kernel.recv(&server, &mut buffer), Ok(10));
    assert_eq!(buffer.first_chunk(), Some(b"0123456789"));
    // This is why: the rest is there to be read, and no edge will ever say so.
    expect_silence(kernel);
    assert_eq!(kernel.recv(&server, &mut buffer), Ok(10));
    assert_eq!(buffer.first_chunk(), Some(b"abcdefghij"), "the urgent byte is not in the stream");
    assert_eq!(kernel.recv(&server, &mut buffer), Err(Errno::EAGAIN));
    kernel.delete(&server).unwrap();
}

fn urgent_data_alone_is_an_event_and_nothing_to_read<B: Bench>(bench: &B) {
    let kernel = bench.kernel();
    let (listener, address) = listen(kernel);
    let client = bench.connect(&address);
    bench.settle();
    let (server, _) = kernel.accept(&listener).unwrap();
    kernel.add(&server, Interest::Stream, 1).unwrap();
    assert!(!next(kernel).must_read_to_end());
    bench.send_urgent(&client, b'!');
    bench.settle();
    assert!(next(kernel).must_read_to_end());
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Err(Errno::EAGAIN));
    bench.send(&client, b"x");
    bench.settle();
    assert!(next(kernel).is_readable());
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(1));
    kernel.delete(&server).unwrap();
}

fn without_descriptors_connections_stay_and_no_edge_tells_of_them<B: Bench>(bench: &B) {
    let kernel = bench.kernel();
    let (listener, address) = listen(kernel);
    let (idle, _) = listen(kernel);
    kernel.add(&listener, Interest::Readable, 1).unwrap();
    let _clients = [bench.connect(&address), bench.connect(&address)];
    bench.settle();
    assert!(next(kernel).is_readable());
    bench.exhaust(|| {
        assert_eq!(kernel.accept(&listener).err(), Some(Errno::EMFILE));
        assert_eq!(kernel.accept(&idle).err(), Some(Errno::EMFILE), "although nothing is pending");
        assert_eq!(kernel.connect(&address).err(), Some(Errno::EMFILE));
        assert_eq!(kernel.eventfd().err(), Some(Errno::EMFILE));
        expect_silence(kernel);
    });
    expect_silence(kernel);
    for _ in 0..2 {
        kernel.accept(&listener).unwrap();
    }
    assert_eq!(kernel.accept(&listener).err(), Some(Errno::EAGAIN));
    kernel.delete(&listener).unwrap();
}

fn an_interrupted_wait_delivers_nothing_and_loses_nothing<B: Bench>(bench: &B) {
    let kernel = bench.kernel();
    let notifier = kernel.eventfd().unwrap();
    kernel.add(&notifier, Interest::Readable, 1).unwrap();
    B::Kernel::notify(&notifier).unwrap();
    let mut events = Events::with_capacity(4);
    kernel.wait(&mut events, Some(PATIENCE)).unwrap();
    assert_eq!(events.len(), 1);
    bench.interrupt(|| {
        assert_eq!(kernel.wait(&mut events, Some(PATIENCE)), Err(Errno::EINTR));
        assert!(events.is_empty(), "those of the wait before are gone");
    });
    B::Kernel::notify(&notifier).unwrap();
    assert!(next(kernel).is_readable());
    kernel.delete(&notifier).unwrap();
}

fn all<B: Bench>(bench: &B) {
    urgent_data_stops_a_read_short_and_the_event_says_so(bench);
    urgent_data_alone_is_an_event_and_nothing_to_read(bench);
    without_descriptors_connections_stay_and_no_edge_tells_of_them(bench);
    an_interrupted_wait_delivers_nothing_and_loses_nothing(bench);
}

#[test]
fn trouble_is_the_same_on_both_kernels() {
    all(&Real(Linux::new().unwrap()));
    let sim = Sim::new(1, Faults::none());
    let kernel = sim.kernel();
    all(&Simulated(sim.clone(), kernel));
    assert!(sim.violations().is_empty(), "{:?}", sim.violations());
}
