//! Each misuse is noted, and proper use is not.

use super::*;
use crate::Errno;

/// Whether the only thing noted is about `what`.
fn only(sim: &Sim, what: &str) {
    let violations = sim.violations();
    assert!(violations.len() == 1 && violations[0].contains(what), "{violations:?} is not {what:?}");
}

#[test]
fn proper_use_is_not_noted() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    let spare = kernel.eventfd().unwrap();
    assert_eq!(
        sim.open_descriptors(),
        [
            format!("fd {}: eventfd", spare.number()),
            format!("fd {}: {} to {}", server.number(), here(), peer.address()),
        ]
    );
    drop(spare);
    peer.close();
    sim.advance(Duration::from_secs(1));
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(0));
    kernel.shutdown_write(&server).unwrap();
    assert_eq!(kernel.delete(&server), Ok(()));
    drop(server);
    assert_eq!((sim.violations(), sim.open_descriptors()), (vec![], vec![]));
    assert_eq!(sim.calls().get("close"), Some(3));
}

#[test]
fn registering_twice_and_ending_what_is_not_registered() {
    let (sim, kernel, server, _peer) = pair(1, Faults::none());
    assert_eq!(kernel.add(&server, Interest::Stream, 9), Err(Errno::EEXIST));
    only(&sim, "added twice");
    let (sim, kernel, server, _peer) = pair(1, Faults::none());
    kernel.delete(&server).unwrap();
    assert_eq!(kernel.delete(&server), Err(Errno::ENOENT));
    only(&sim, "deleted");
}

#[test]
fn closing_what_is_still_registered() {
    let (sim, _kernel, server, _peer) = pair(1, Faults::none());
    drop(server);
    only(&sim, "without having been deleted");
}

#[test]
fn writing_behind_ones_own_end_and_ending_twice_what_is_over() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    kernel.shutdown_write(&server).unwrap();
    assert_eq!(kernel.shutdown_write(&server), Ok(()));
    assert_eq!(sim.violations(), [""; 0], "Linux does not mind");
    assert_eq!(kernel.send(&server, b"x"), Err(Errno::EPIPE));
    only(&sim, "behind its own FIN");
    peer.shutdown_write();
    sim.advance(Duration::from_secs(1));
    assert_eq!(kernel.shutdown_write(&server), Err(Errno::ENOTCONN));
    assert!(sim.violations()[1].contains("shut down twice"));
}

#[test]
fn reading_into_nothing_and_calls_on_the_wrong_kind() {
    let (sim, kernel, server, _peer) = pair(1, Faults::none());
    assert_eq!(kernel.recv(&server, &mut []), Err(Errno::EAGAIN));
    only(&sim, "empty buffer");
    let (sim, kernel, _server, _peer) = pair(1, Faults::none());
    assert_eq!(kernel.send(&listen_elsewhere(&kernel), b"x"), Err(Errno::ENOTCONN));
    only(&sim, "no descriptor for such a call");
}

fn listen_elsewhere(kernel: &SimKernel) -> SimFd {
    kernel.listen(&Address::Tcp("127.0.0.1:0".parse().unwrap()), &ListenOptions::default()).unwrap()
}

#[test]
fn waiting_for_ever_for_nothing() {
    let sim = Sim::new(1, Faults::none());
    let kernel = sim.kernel();
    let mut events = Events::with_capacity(1);
    assert_eq!(kernel.wait(&mut events, None), Ok(()));
    only(&sim, "waits for ever");
}

/// What [`catch_unwind`](std::panic::catch_unwind) catches of `program`, which does not end by itself.
fn ended(mut program: impl FnMut()) -> String {
    let forever = std::panic::AssertUnwindSafe(|| {
        loop {
            program();
        }
    });
    let caught: Result<(), _> = std::panic::catch_unwind(forever);
    *caught.unwrap_err().downcast::<String>().unwrap()
}

#[test]
fn a_loop_that_does_not_end() {
    let (sim, kernel, server, _peer) = pair(1, Faults { eintr: 300_000, ..Faults::none() });
    let told = ended(|| _ = kernel.recv(&server, &mut [0; 4]));
    assert!(told.contains("the last of them recv") && told.contains("does not end"), "{told}");
    only(&sim, "a loop that does not end");
    let mut events = Events::with_capacity(1);
    // Linux does nothing else for a program that does not let it rest.
    ended(|| _ = kernel.wait(&mut events, Some(Duration::ZERO)));
    ended(|| _ = kernel.wait(&mut events, None));
    // The world goes on.
    assert_eq!(kernel.delete(&server), Ok(()));
}

#[test]
fn many_calls_between_rests_are_no_endless_loop() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    for round in 0..3 {
        for _ in 0..600_000 {
            let _ = kernel.recv(&server, &mut [0; 4]);
        }
        match round % 3 {
            0 => sim.advance(Duration::from_nanos(1)),
            1 => assert!(wait_for(&kernel, Duration::from_millis(1)).is_empty()),
            _ => {
                peer.send(b"x");
                assert_eq!(next(&kernel).0, SERVER);
            }
        }
    }
    assert_eq!(sim.violations(), [""; 0]);
}

#[test]
fn a_descriptor_of_another_world() {
    let (sim, kernel, _server, _peer) = pair(1, Faults::none());
    let (_other, _kernel, stranger, _peer) = pair(1, Faults::none());
    assert_eq!(kernel.recv(&stranger, &mut [0; 4]), Err(Errno::EBADF));
    only(&sim, "another world");
}

/// Ownership forbids it to programs, but not to this module.
#[test]
fn using_and_closing_what_is_closed() {
    let (sim, kernel, server, _peer) = pair(1, Faults::none());
    kernel.delete(&server).unwrap();
    let key = sim.world().numbers[1].unwrap();
    sim.world().close(key);
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Err(Errno::EBADF));
    only(&sim, "after it was closed");
    drop(server);
    assert!(sim.violations()[1].contains("closed twice"));
}
