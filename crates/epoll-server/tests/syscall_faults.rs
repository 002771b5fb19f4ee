//! The real binary with system calls that fail: each of the loop's calls, with each error the kernel can answer, once
//! and again and again. Needs strace(1); where that cannot be used the tests say so, and pass.
//!
//! What must hold, whatever fails: nobody is cut off but those whose own call failed, and they at most; what the
//! clients get is right; no descriptor is left; the loop does not spin; SIGTERM still drains with exit code 0.
//!
//! A call that strace fails is not carried out. For `EAGAIN` from a send this means that the kernel still has room,
//! did not note that anybody waits for some, and so will report none: the bytes wait until the next event on the
//! socket, whatever it is, or until the write timeout ends the connection. A real `EAGAIN` is always followed by an
//! edge; so these tests show what happens to a connection whose edge never comes, and that it is only that one's loss.
//! `EAGAIN` from a receive is not injected: the input would be as lost as a lost interrupt.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a panic is how a test fails"
)]

#[path = "support/loads.rs"]
#[allow(unreachable_pub, reason = "as `support`")]
mod loads;
#[path = "support/strace.rs"]
#[allow(dead_code, unreachable_pub, reason = "as `support`, which other tests use another part of")]
mod strace;
mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use loads::{Burst, Cut, Fetched, Life, Visitor};
use strace::{Fault, Traced, When, is_usable, start_up};
use support::{assert_same, pattern, poll};

/// What a fault may do to the connection it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing that the client could notice.
    None,
    /// The connection may end.
    Cut,
    /// It may wait until the write timeout ends it.
    Stall,
}

use Effect::{Cut as MayCut, None as Harmless, Stall as MayStall};

const ACCEPT: [(&str, &str, Effect); 8] = [
    ("accept4", "EMFILE", MayCut),
    ("accept4", "ENFILE", MayCut),
    ("accept4", "ENOBUFS", MayCut),
    ("accept4", "ENOMEM", MayCut),
    ("accept4", "ECONNABORTED", Harmless),
    ("accept4", "EINTR", Harmless),
    ("accept4", "EPERM", Harmless),
    ("accept4", "ENETDOWN", Harmless),
];
const WATCH: [(&str, &str, Effect); 3] =
    [("epoll_ctl", "ENOMEM", MayCut), ("epoll_ctl", "ENOSPC", MayCut), (WAIT, "EINTR", Harmless)];
const RECEIVE: [(&str, &str, Effect); 4] = [
    ("recvfrom", "EINTR", Harmless),
    ("recvfrom", "ECONNRESET", MayCut),
    ("recvfrom", "ETIMEDOUT", MayCut),
    ("recvfrom", "ENOMEM", MayCut),
];
const SEND: [(&str, &str, Effect); 5] = [
    ("sendto", "EINTR", Harmless),
    ("sendto", "EAGAIN", MayStall),
    ("sendto", "EPIPE", MayCut),
    ("sendto", "ECONNRESET", MayCut),
    ("sendto", "ENOBUFS", MayCut),
];
const FINISH: [(&str, &str, Effect); 1] = [("shutdown", "ENOTCONN", MayCut)];
const FAN_OUT: [(&str, &str, Effect); 4] = [
    ("sendmsg", "EINTR", Harmless),
    ("sendmsg", "EAGAIN", MayStall),
    ("sendmsg", "EPIPE", MayCut),
    ("sendmsg", "ENOBUFS", MayCut),
];

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
const WAIT: &str = "epoll_wait";
#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
const WAIT: &str = "epoll_pwait";

/// Of what is called once or twice for each connection.
const RARE: [When; 3] = [When::Once(1), When::Once(4), When::Every(2, 3)];
/// Of what is called many times for each.
const OFTEN: [When; 3] = [When::Once(1), When::Once(8), When::Every(5, 11)];
const CLIENTS: usize = 5;

#[test]
fn echo_survives_faults_of_accept_and_epoll() {
    run_all("echo", &ACCEPT, &RARE);
    run_all("echo", &WATCH, &RARE);
}

#[test]
fn echo_survives_faults_of_its_connections() {
    run_all("echo", &RECEIVE, &OFTEN);
    run_all("echo", &SEND, &OFTEN);
    run_all("echo", &FINISH, &RARE);
}

#[test]
fn broadcast_survives_faults_of_accept_and_epoll() {
    run_all("broadcast", &ACCEPT, &RARE);
    run_all("broadcast", &WATCH, &RARE);
}

#[test]
fn broadcast_survives_faults_of_its_connections() {
    run_all("broadcast", &RECEIVE, &OFTEN);
    run_all("broadcast", &FAN_OUT, &[When::Once(1), When::Every(1, 3)]);
}

#[test]
fn http_survives_faults_of_accept_and_epoll() {
    run_all("http", &ACCEPT, &RARE);
    run_all("http", &WATCH, &RARE);
}

#[test]
fn http_survives_faults_of_its_connections() {
    run_all("http", &RECEIVE, &OFTEN);
    run_all("http", &SEND, &OFTEN);
    run_all("http", &FINISH, &RARE);
}

/// What the client sees of a call for its file that fails, and what the log says of it; empty: nothing.
const FILES: [(&str, &str, Fetched, &str); 19] = [
    ("openat2", "EIO", Fetched::Refused(500), "a file cannot be served: EIO"),
    ("openat2", "EMFILE", Fetched::Refused(503), "files cannot be opened: EMFILE"),
    ("openat2", "ENFILE", Fetched::Refused(503), "files cannot be opened: ENFILE"),
    ("openat2", "ENOMEM", Fetched::Refused(503), "files cannot be opened: ENOMEM"),
    ("openat2", "EINTR", Fetched::Whole, ""),
    ("openat2", "EAGAIN", Fetched::Whole, ""),
    ("statx", "EIO", Fetched::Refused(500), "a file cannot be served: EIO"),
    ("statx", "ENOMEM", Fetched::Refused(503), "files cannot be opened: ENOMEM"),
    ("preadv2", "EIO", Fetched::Refused(500), "a file cannot be read: EIO"),
    ("preadv2", "ENOMEM", Fetched::Refused(500), "a file cannot be read: ENOMEM"),
    ("preadv2", "EINTR", Fetched::Whole, ""),
    ("preadv2", "EAGAIN", Fetched::Whole, ""),
    ("preadv2", "EOPNOTSUPP", Fetched::Whole, ""),
    // The head has gone out.
    ("sendfile", "EIO", Fetched::Cut, "a file that was being sent was cut short or could not be read"),
    ("sendfile", "ENOMEM", Fetched::Cut, ""),
    ("sendfile", "EPIPE", Fetched::Cut, ""),
    ("sendfile", "EINTR", Fetched::Whole, ""),
    // Of a list, which a thread makes.
    ("getdents64", "EIO", Fetched::Refused(500), "a file cannot be served: EIO"),
    ("getdents64", "ENOMEM", Fetched::Refused(503), "files cannot be opened: ENOMEM"),
];

#[test]
fn files_survive_faults_of_the_disk() {
    if !is_usable() {
        return;
    }
    for (call, error, seen, told) in FILES {
        // Where the first two of statx fail, the standard library takes it for one that this kernel does not have.
        // The range is longer than the calls for one file of each kind, so that it hits all of them.
        for when in [When::Once(1), When::Range(2, 12), When::Every(1, 3)] {
            let fault = Fault { call, error, when };
            assert!(run_files(&[fault], seen, told) > 0, "{fault:?}: nobody got a file");
        }
    }
}

#[test]
fn files_survive_a_disk_that_fails_the_threads_that_wait_for_it() {
    if !is_usable() {
        return;
    }
    let always = |call, error| Fault { call, error, when: When::Every(1, 1) };
    let read = [always("preadv2", "EAGAIN"), always("pread64", "EIO")];
    run_files(&read, Fetched::Refused(500), "a file cannot be read: EIO");
    // Nobody can say whether the name is there: later.
    run_files(&[always("openat2", "EAGAIN")], Fetched::Refused(503), "");
}

/// Has one client ask for files of each kind under `faults`. What is not answered is as `seen`; how many were.
fn run_files(faults: &[Fault], seen: Fetched, told: &str) -> usize {
    const ROUNDS: usize = 8;
    let what = format!("files with {faults:?}");
    // Shown if it fails.
    eprintln!("{what}");
    let started = Instant::now();
    let site = tempfile::tempdir().unwrap();
    let (small, large) = (pattern(1_000), pattern(300_000));
    fs::write(site.path().join("small"), &small).unwrap();
    fs::write(site.path().join("large"), &large).unwrap();
    let root = site.path().to_str().unwrap();
    let traced = Traced::start(faults, &["http", "--root", root, "--list", "--grace", "30s"]);
    let mut bystander = Visitor::new(traced.server.address());
    bystander.ask().unwrap();
    let mut visitor = Visitor::new(traced.server.address());
    let requests = [("/small", Some(&*small)), ("/large", Some(&*large)), ("/", None)];
    let fetched: Vec<Fetched> =
        (0..ROUNDS).flat_map(|_| requests.map(|(path, content)| visitor.fetch(path, content))).collect();
    bystander.ask().unwrap_or_else(|Cut| panic!("{what}: one that asked for no file is cut off"));
    assert_eq!(bystander.ends, 0);
    drop((bystander, visitor));
    poll(&format!("{what}: all descriptors to be closed"), || {
        (traced.server.descriptors() == traced.descriptors).then_some(())
    });
    let (ended, record) = traced.stop();
    assert_eq!(ended.code, Some(0), "{what}: {}", ended.log);
    assert!(!ended.log.contains("panicked"), "{what}: {}", ended.log);
    assert!(ended.log.contains(told), "{what}: {}", ended.log);
    // However many clients ask meanwhile.
    let told_of_want = ended.log.matches("files cannot be opened").count() as u64;
    assert!(told_of_want <= 1 + started.elapsed().as_secs() / 10, "{what}: {}", ended.log);

    let injected: usize = faults.iter().map(|fault| record.injected(fault.call)).sum();
    assert!(faults.iter().all(|fault| record.injected(fault.call) > 0), "{what}: nothing was made to fail");
    let spoilt: Vec<Fetched> = fetched.iter().copied().filter(|it| *it != Fetched::Whole).collect();
    assert!(spoilt.iter().all(|it| *it == seen), "{what}: {spoilt:?}");
    assert_eq!(!spoilt.is_empty(), seen != Fetched::Whole, "{what}: {spoilt:?}");
    assert!(spoilt.len() <= injected, "{what}: {spoilt:?}, {injected} faults");
    fetched.len() - spoilt.len()
}

#[test]
fn everything_may_fail_in_the_same_run() {
    if !is_usable() {
        return;
    }
    let every = |call, error, first, step| Fault { call, error, when: When::Every(first, step) };
    let faults = [
        every("accept4", "EMFILE", 3, 5),
        every("epoll_ctl", "ENOMEM", 4, 7),
        every(WAIT, "EINTR", 1, 2),
        every("recvfrom", "ECONNRESET", 5, 11),
        every("sendto", "ENOBUFS", 6, 13),
        every("sendmsg", "EPIPE", 3, 7),
        every("shutdown", "ENOTCONN", 1, 3),
        every("eventfd2", "EMFILE", 1, 2),
    ];
    for protocol in ["echo", "broadcast", "http"] {
        // The spare descriptor may be the one that cannot be had at the end.
        run(protocol, &faults, MayCut, 1);
    }
}

/// One line for each combination of `faults` and `whens`.
fn run_all(protocol: &str, faults: &[(&'static str, &'static str, Effect)], whens: &[When]) {
    if !is_usable() {
        return;
    }
    for (call, error, effect) in faults {
        for when in whens {
            run(protocol, &[Fault { call, error, when: *when }], *effect, 0);
        }
    }
}

/// Serves clients under `faults`; `spare` descriptors may be missing at the end.
fn run(protocol: &str, faults: &[Fault], effect: Effect, spare: usize) {
    let what = format!("{protocol} with {faults:?}");
    // Shown if it fails.
    eprintln!("{what}");
    // Long enough that nobody but a connection that was made to wait can pass it.
    let write_timeout = if effect == MayStall { "1s" } else { "60s" };
    let mut traced = Traced::start(faults, &[protocol, "--write-timeout", write_timeout, "--grace", "30s"]);
    let address = traced.server.address();
    // One that the kernel takes whole, where waiting for room would be taken for a fault.
    let burst = Burst(if effect == MayStall { 8_000 } else { 200_000 });
    let one = if protocol == "echo" { loads::echo } else { loads::http };
    let mut lives: Vec<Life> = match protocol {
        "broadcast" => loads::broadcast(&mut traced.server),
        _ => thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(move || one(address, burst))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        }),
    };
    // Whatever has been, new clients are served. That one is hit too is possible, that all are is not.
    let served = (0..20).any(|_| {
        let life = loads::smallest(protocol, address);
        let served = life.is_ok();
        lives.push(life);
        served
    });
    assert!(served, "{what}: nobody is served any more:\n{}", traced.record().tail(40));

    let expected = traced.descriptors - spare..=traced.descriptors;
    poll(&format!("{what}: all descriptors to be closed"), || {
        expected.contains(&traced.server.descriptors()).then_some(())
    });
    let idle = loads::idle(address);
    let (ended, record) = traced.stop();
    idle.join().unwrap();
    assert_eq!(ended.code, Some(0), "{what}: {}", ended.log);
    assert!(!ended.log.contains("panicked"), "{what}: {}", ended.log);

    let injected: usize = faults.iter().map(|fault| record.injected(fault.call)).sum();
    let missed = faults.iter().find(|fault| faults.len() == 1 && record.injected(fault.call) == 0);
    assert!(missed.is_none(), "{what}: nothing was made to fail");
    let cut = lives.iter().filter(|life| matches!(life, Err(Cut))).count();
    let allowed = if effect == Harmless { 0 } else { injected };
    assert!(cut <= allowed, "{what}: {cut} of {} clients cut off, {injected} faults", lives.len());
    let turns = record.idle_turns();
    assert!(turns <= injected + 5 * lives.len() + 10, "{what}: {turns} idle turns:\n{}", record.tail(60));
}

#[test]
fn a_process_out_of_descriptors_neither_spins_nor_forgets_who_waits() {
    if !is_usable() {
        return;
    }
    // Each try is two calls, one of them to turn a client away with the spare descriptor.
    let fault = Fault { call: "accept4", error: "EMFILE", when: When::Range(1, 20) };
    let traced = Traced::start(&[fault], &["echo"]);
    let started = Instant::now();
    loads::echo(traced.server.address(), Burst(1000)).expect("it waits until it is its turn");
    // `accept_retry` is 100 ms, and there were 10 tries.
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    let (ended, record) = traced.stop();
    assert_eq!(ended.code, Some(0));
    assert_eq!(record.injected("accept4"), 20);
    assert!(record.count(WAIT) <= 60, "{} waits", record.count(WAIT));
    assert_eq!(ended.log.matches("not accepting for now").count(), 1, "{}", ended.log);
}

#[test]
fn sockets_that_cannot_be_watched_are_closed_without_a_spin() {
    if !is_usable() {
        return;
    }
    let fault = Fault { call: "epoll_ctl", error: "ENOMEM", when: When::Range(1, 5) };
    let traced = Traced::start(&[fault], &["echo"]);
    let address = traced.server.address();
    let started = Instant::now();
    let lives: Vec<Life> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| loads::echo(address, Burst(1000)))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(lives.iter().filter(|life| life.is_err()).count(), 5, "one for each fault");
    assert!(started.elapsed() >= Duration::from_millis(400), "a pause behind each: {:?}", started.elapsed());
    poll("all descriptors to be closed", || {
        (traced.server.descriptors() == traced.descriptors).then_some(())
    });
    let (ended, record) = traced.stop();
    assert_eq!(ended.code, Some(0));
    assert!(record.count(WAIT) <= 200, "{} waits", record.count(WAIT));
}

#[test]
fn output_that_was_refused_goes_out_in_order_with_the_next_event() {
    if !is_usable() {
        return;
    }
    let fault = Fault { call: "sendto", error: "EAGAIN", when: When::Once(1) };
    let traced = Traced::start(&[fault], &["echo"]);
    let mut client = traced.server.connect();
    client.send("one\n");
    poll("the refusal", || (traced.record().injected("sendto") == 1).then_some(()));
    client.send("two\n");
    assert_same(&client.exactly(8), b"one\ntwo\n");
    client.finish_sending();
    assert_eq!(client.rest(), b"");
    assert_eq!(traced.stop().0.code, Some(0));
}

#[test]
fn a_connection_whose_edge_never_comes_ends_by_the_write_timeout_and_others_do_not_notice() {
    if !is_usable() {
        return;
    }
    let fault = Fault { call: "sendto", error: "EAGAIN", when: When::Once(1) };
    let traced = Traced::start(&[fault], &["echo", "--write-timeout", "1s"]);
    let started = Instant::now();
    let mut stalled = traced.server.connect();
    stalled.send("never answered\n");
    poll("the refusal", || (traced.record().injected("sendto") == 1).then_some(()));
    loads::echo(traced.server.address(), Burst(1000)).expect("another client");
    assert_eq!(stalled.rest(), b"");
    assert!(started.elapsed() >= Duration::from_secs(1));
    poll("all descriptors to be closed", || {
        (traced.server.descriptors() == traced.descriptors).then_some(())
    });
    assert_eq!(traced.stop().0.code, Some(0));
}

#[test]
fn a_start_that_fails_says_so_and_exits_with_1() {
    if !is_usable() {
        return;
    }
    let rows = [
        ("epoll_create1", "EMFILE", 1),
        ("eventfd2", "ENFILE", 1),
        ("eventfd2", "EMFILE", 2),
        ("signalfd4", "ENOMEM", 1),
        ("epoll_ctl", "ENOMEM", 1),
        ("epoll_ctl", "ENOSPC", 2),
        ("epoll_ctl", "ENOMEM", 3),
        ("socket", "EMFILE", 1),
        ("bind", "EADDRINUSE", 1),
        ("listen", "EADDRINUSE", 1),
        (WAIT, "EBADF", 1),
    ];
    for (call, error, number) in rows {
        let (ended, record) = start_up(call, error, number);
        assert_eq!(record.injected(call), 1, "{call} {error} {number}: {}", ended.log);
        assert_eq!(ended.code, Some(1), "{call} {error} {number}: {}", ended.log);
        assert!(!ended.log.is_empty() && !ended.log.contains("panicked"), "{call} {error}: {}", ended.log);
    }
}
