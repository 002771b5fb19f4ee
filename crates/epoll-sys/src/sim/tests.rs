//! What the contract suite cannot say, since only a simulated world has it: peers, faults, time and misuse.

mod faults;
mod honesty;
mod misuse;
mod peers;
mod time;

use std::time::Duration;

use super::{Faults, Peer, Sim, SimFd, SimKernel};
use crate::{Address, Events, Interest, Kernel, ListenOptions, Readiness};

const SERVER: u64 = 2;

fn here() -> Address {
    Address::Tcp("127.0.0.1:80".parse().unwrap())
}

fn listen(kernel: &SimKernel) -> SimFd {
    kernel.listen(&here(), &ListenOptions::default()).unwrap()
}

/// A registered server's end with its first event taken, and the client's in the hands of the test. Made
/// without faults; `faults` are in force from then on.
fn pair(seed: u64, faults: Faults) -> (Sim, SimKernel, SimFd, Peer) {
    let quiet = Faults { network: faults.network.clone(), ..Faults::none() };
    let sim = Sim::new(seed, quiet);
    let kernel = sim.kernel();
    let listener = listen(&kernel);
    let peer = sim.connect(&here()).unwrap();
    let (server, address) = kernel.accept(&listener).unwrap();
    assert_eq!(address, peer.address());
    kernel.add(&server, Interest::Stream, SERVER).unwrap();
    assert_eq!(wait(&kernel).len(), 1);
    sim.set_faults(faults);
    (sim, kernel, server, peer)
}

/// One wait for what is ready now, with the injected events and errors.
fn wait(kernel: &SimKernel) -> Vec<(u64, Readiness)> {
    wait_for(kernel, Duration::ZERO)
}

fn wait_for(kernel: &SimKernel, time: Duration) -> Vec<(u64, Readiness)> {
    let mut events = Events::with_capacity(64);
    // An interrupted wait has no events.
    let _ = kernel.wait(&mut events, Some(time));
    (0..events.len()).filter_map(|n| events.get(n)).map(|event| (event.token, event.readiness)).collect()
}

/// Waits until something is reported.
fn next(kernel: &SimKernel) -> (u64, Readiness) {
    for _ in 0..100 {
        if let Some(first) = wait_for(kernel, Duration::from_secs(1)).first() {
            return *first;
        }
    }
    panic!("nothing is reported");
}

fn injected(sim: &Sim, fault: &str) -> u64 {
    sim.injected().get(fault).unwrap()
}
