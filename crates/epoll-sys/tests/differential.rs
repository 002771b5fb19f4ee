//! The simulated kernel against the real one: random calls on a connection, the same on both, must come to the
//! same. What the contract suite has nobody thought of, this finds.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test a panic is how a failure is told"
)]

use std::fmt::Debug;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use epoll_sys::sim::{Faults, Sim};
use epoll_sys::{Address, Errno, Events, Interest, Kernel, Linux, ListenOptions};
use fastrand::Rng;

const SEEDS: u64 = 2_000;
const CALLS: usize = 14;

/// One end of the connection, until it is closed.
struct End<F> {
    fd: Option<F>,
    /// What its events have told that is never taken back: the peer's end, a hang-up, an error.
    told: [bool; 3],
}

struct Run<'kernel, K: Kernel> {
    kernel: &'kernel K,
    ends: [End<K::Fd>; 2],
    /// Ten bytes.
    file: File,
    log: Vec<String>,
}

impl<'kernel, K: Kernel> Run<'kernel, K> {
    fn new(kernel: &'kernel K, address: &Address) -> Self {
        let listener = kernel.listen(address, &ListenOptions::default()).unwrap();
        let (client, _) = kernel.connect(&kernel.local_address(&listener).unwrap()).unwrap();
        let server = loop {
            match kernel.accept(&listener) {
                Ok((server, _)) => break server,
                Err(error) => assert_eq!(error, Errno::EAGAIN),
            }
            kernel.wait(&mut Events::with_capacity(1), Some(Duration::from_millis(1))).unwrap();
        };
        let ends = [client, server].map(|fd| End { fd: Some(fd), told: [false; 3] });
        for (token, end) in (0..).zip(&ends) {
            kernel.add(end.fd.as_ref().unwrap(), Interest::Stream, token).unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        Self { kernel, ends, file, log: Vec::new() }
    }

    /// A loopback network is as good as immediate, on both.
    fn collect(&mut self, simulated: bool) {
        let mut events = Events::with_capacity(8);
        for _ in 0..3 {
            let time = if simulated { Duration::from_millis(1) } else { Duration::ZERO };
            self.kernel.wait(&mut events, Some(time)).unwrap();
            for event in (0..events.len()).filter_map(|position| events.get(position)) {
                let told = &mut self.ends[usize::try_from(event.token).unwrap()].told;
                let ready = event.readiness;
                let news = [ready.is_peer_shutdown(), ready.is_hang_up(), ready.is_error()];
                *told = [told[0] | news[0], told[1] | news[1], told[2] | news[2]];
            }
        }
        let told = [self.ends[0].told, self.ends[1].told];
        self.note("  told", &told);
    }

    fn note(&mut self, what: &str, result: &dyn Debug) {
        self.log.push(format!("{what}: {result:?}"));
    }

    fn call(&mut self, rng: &mut Rng) {
        let side = rng.usize(0..2);
        let (choice, length) = (rng.u8(0..20), rng.usize(1..20));
        let Some(fd) = self.ends[side].fd.take() else { return };
        let kernel = self.kernel;
        let name = |what: &str| format!("{side} {what} {length}");
        match choice {
            0..=5 => self.note(&name("send"), &kernel.send(&fd, &vec![7; length])),
            6..=11 => self.note(&name("recv"), &kernel.recv(&fd, &mut vec![0; length])),
            12 => self.note(&name("send nothing"), &kernel.send(&fd, &[])),
            13 => self.note(&name("recv nothing"), &kernel.recv(&fd, &mut [])),
            14 => self.note(&name("take_error"), &kernel.take_error(&fd)),
            15 => self.note(&name("shutdown"), &kernel.shutdown_write(&fd)),
            16 => self.note(&name("read"), &kernel.read(&fd, &mut vec![0; length])),
            17 | 18 => {
                let offset = length as u64 * 7 % 13;
                self.note(&name("sendfile"), &kernel.sendfile(&fd, &self.file, offset, length));
            }
            _ => {
                if length % 3 == 0 {
                    self.note(&name("linger"), &kernel.reset_on_close(&fd));
                }
                self.note(&name("close"), &kernel.delete(&fd));
                return;
            }
        }
        self.ends[side].fd = Some(fd);
    }
}

fn run<K: Kernel>(kernel: &K, address: &Address, seed: u64, simulated: bool) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let mut run = Run::new(kernel, address);
    for _ in 0..CALLS {
        run.call(&mut rng);
        run.collect(simulated);
    }
    run.log
}

fn compare(address: &Address) {
    for seed in 0..SEEDS {
        let real = run(&Linux::new().unwrap(), address, seed, false);
        let simulated = run(&Sim::new(seed, Faults::none()).kernel(), address, seed, true);
        if let Some(position) = real.iter().zip(&simulated).position(|(real, simulated)| real != simulated) {
            let same = real[..position].join("\n");
            panic!("seed {seed}:\n{same}\nLinux: {}\nsim:   {}", real[position], simulated[position]);
        }
        assert_eq!(real.len(), simulated.len());
    }
}

#[test]
fn tcp() {
    compare(&Address::Tcp("127.0.0.1:0".parse().unwrap()));
}

#[test]
fn unix() {
    let directory = tempfile::tempdir().unwrap();
    compare(&Address::Unix(directory.path().join("socket")));
}
