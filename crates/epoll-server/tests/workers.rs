//! Several loops in one server: how it starts, what they share, and how they end, together and alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a panic is how a test fails"
)]

#[path = "support/strace.rs"]
#[allow(unreachable_pub, dead_code, reason = "as `support`")]
mod strace;
mod support;

use std::fs;
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use strace::{Fault, Traced, When};
use support::{Client, EXECUTABLE, PATIENCE, Server, outcome, poll, skip};

/// Waits until its threads have these names, in order: a thread gives itself its name, and some live for a moment only.
#[track_caller]
fn assert_threads(server: &Server, expected: &[&str]) {
    let mut names = Vec::new();
    let found = poll_quietly(|| {
        names = server.threads().iter().map(|name| name.trim_end().to_owned()).collect();
        names.sort();
        names == expected
    });
    assert!(found, "{names:?}");
}

/// Whether it comes true.
fn poll_quietly(mut is_true: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !is_true() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

fn echo(client: &mut Client<TcpStream>) {
    client.send("hello\n");
    assert_eq!(client.line(), b"hello\n");
}

#[test]
fn one_loop_needs_no_thread_and_several_have_one_each() {
    for arguments in [&["echo"][..], &["echo", "--workers", "1"], &["echo", "--workers", "1", "--pin"]] {
        let server = Server::start(arguments);
        assert_threads(&server, &["epoll-server", "log"]);
    }
    let server = Server::start(&["echo", "--workers", "3"]);
    assert_threads(&server, &["epoll-server", "log", "worker-0", "worker-1", "worker-2"]);
    let mut clients: Vec<_> = (0..64).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(echo);
    let ended = server.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("SIGTERM: draining for up to 10s"), "{}", ended.log);
    assert!(ended.log.contains("stopped: every connection has ended"), "{}", ended.log);
    for client in &mut clients {
        assert_eq!(client.rest(), b"");
    }
}

#[test]
fn a_second_process_on_the_same_address_takes_one_line_whatever_the_loops_of_both() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let socket = format!("unix:{}", path.display());
    for first in ["1", "3"] {
        let mut command = Command::new(EXECUTABLE);
        command.args(["echo", "--workers", first, "--listen", "127.0.0.1:0", "--listen", &socket]);
        let server = Server::run(command, 2);
        for address in &server.addresses {
            for second in [&[][..], &["--workers", "2"]] {
                let arguments = [&["echo", "--listen", address], second].concat();
                let (code, output, errors) = outcome(&arguments);
                assert_eq!((code, output.as_str()), (1, ""), "{first} and {second:?}: {errors}");
                let lines: Vec<&str> =
                    errors.lines().filter(|line| !line.contains(" open files: ")).collect();
                let expected = format!("epoll-server: cannot listen on {address}: Address already in use");
                assert_eq!(lines, [expected], "{first} and {second:?}");
            }
        }
        let exclusive = server.exclusively_watched();
        assert_eq!(exclusive, if first == "1" { 0 } else { 3 }, "the Unix socket, by each loop");
        // The first one has noticed nothing.
        for _ in 0..8 {
            echo(&mut server.connect());
            let mut client = Client::new(UnixStream::connect(&path).unwrap());
            client.send("x\n");
            assert_eq!(client.line(), b"x\n");
        }
        let ended = server.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert!(!ended.log.contains("WARN") && !ended.log.contains("ERROR"), "{}", ended.log);
        assert!(!path.exists());
    }
}

#[test]
fn a_line_reaches_the_clients_of_all_loops_once_and_in_order_and_so_do_the_last_ones() {
    const LINES: usize = 100;
    let mut server = Server::start(&["broadcast", "--workers", "3"]);
    let mut clients: Vec<_> = (0..24).map(|number| server.join(number + 1)).collect();
    for sender in &mut clients[..4] {
        for number in 0..LINES {
            sender.send(format!("{number}\n"));
        }
    }
    // All is there before the end begins: who speaks hears the others.
    let mut heard = vec![[0; 4]; clients.len()];
    let mut take_down = |receiver: usize, line: &[u8]| {
        let line = std::str::from_utf8(line).unwrap();
        let (client, number) = line.strip_prefix("[Client_").unwrap().trim_end().split_once("] ").unwrap();
        let sender = client.parse::<usize>().unwrap() - 1;
        assert_eq!((number.parse(), sender != receiver), (Ok(heard[receiver][sender]), true), "{line}");
        heard[receiver][sender] += 1;
        heard[receiver].iter().sum::<usize>()
    };
    for (sender, client) in clients[..4].iter_mut().enumerate() {
        while take_down(sender, &client.line()) < 3 * LINES {}
    }
    let ended = server.stop();
    for (receiver, client) in clients.iter_mut().enumerate() {
        client.rest().split_inclusive(|byte| *byte == b'\n').for_each(|line| _ = take_down(receiver, line));
    }
    for (receiver, heard) in heard.iter().enumerate() {
        let expected: [usize; 4] = std::array::from_fn(|sender| if sender == receiver { 0 } else { LINES });
        assert_eq!(*heard, expected, "{receiver}");
    }
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("stopped: every connection has ended"), "{}", ended.log);
}

#[test]
fn what_keeps_a_loop_from_starting_takes_one_line() {
    let (code, output, errors) =
        outcome(&["http", "--workers", "2", "--root", "/no/where", "--listen", "127.0.0.1:0"]);
    assert_eq!((code, output.as_str()), (1, ""), "{errors}");
    let lines: Vec<&str> = errors.lines().filter(|line| !line.contains(" open files: ")).collect();
    assert_eq!(lines, ["epoll-server: --root /no/where: No such file or directory (os error 2)"]);

    const LOOPS: usize = 65;
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() >= LOOPS) {
        return skip("a machine of so many CPUs");
    }
    let (code, output, errors) = outcome(&[
        "echo",
        "--workers",
        &LOOPS.to_string(),
        "--pin",
        "--memory-limit",
        "1GiB",
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_eq!((code, output.as_str()), (1, ""), "{errors}");
    let last = errors.lines().last().unwrap();
    let start = format!("epoll-server: {LOOPS} loops cannot have a CPU each: this process may use ");
    assert!(last.starts_with(&start), "{errors}");
}

#[test]
fn a_loop_for_each_cpu_may_have_it_to_itself() {
    let mut server = Server::start_after("export RUST_LOG=debug", &["echo", "--workers", "auto", "--pin"]);
    let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    for index in (0..cpus).filter(|_| cpus > 1) {
        server.logged(&format!("loop {index} has CPU "));
    }
    let mut names: Vec<String> = vec!["epoll-server".to_owned(), "log".to_owned()];
    // One loop has no thread of its own.
    names.extend((0..cpus).filter(|_| cpus > 1).map(|index| format!("worker-{index}")));
    names.sort();
    assert_threads(&server, &names.iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..64 {
        echo(&mut server.connect());
    }
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn a_drain_is_that_of_all_loops() {
    const CLIENTS: usize = 8;
    let start = |grace| {
        let server = Server::start(&["echo", "--workers", "2", "--grace", grace]);
        // With what waits for each that it does not read.
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect_with_buffer(1)).collect();
        thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(|| client.fill(&[b'x'; 16 << 20]));
            }
        });
        (server, clients)
    };
    let (server, _clients) = start("300ms");
    let ended = server.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let expected = format!("stopped: {CLIENTS} connections still open after 300ms were closed");
    assert!(ended.log.contains(&expected), "{}", ended.log);

    let (mut server, _clients) = start("1h");
    server.signal("TERM");
    server.logged("draining for up to 3600s");
    server.signal("INT");
    let ended = server.wait();
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    assert!(ended.log.contains("SIGINT again: closing all connections"), "{}", ended.log);
}

/// The other is that of architectures without epoll_wait(2).
const WAIT: &str = if cfg!(target_arch = "x86_64") { "epoll_wait" } else { "epoll_pwait" };

/// Has the client's loop turn until it dies, and returns the log's word of that.
fn kill_its_loop(server: &mut Server, client: &mut Client<TcpStream>) -> String {
    let deaths = server.all_logged(" has ended: ").len();
    for _ in 0..1000 {
        if client.try_send("hello\n").is_err() || client.line_or_end().is_empty() {
            return poll("the log to say so", || {
                let log = server.all_logged(" has ended: ");
                (log.len() > deaths).then(|| log.last().unwrap().clone())
            });
        }
    }
    panic!("the loop does not die");
}

#[test]
fn when_a_loop_dies_the_log_says_so_and_the_others_serve_on() {
    if !strace::is_usable() {
        return;
    }
    // Each loop dies of its fiftieth wait, and one that has nothing to do does not come to that.
    let fatal = Fault { call: WAIT, error: "EBADF", when: When::Once(50) };
    for all in [false, true] {
        let mut traced = Traced::start(&[fatal], &["echo", "--workers", "2"]);
        let server = &mut traced.server;
        let mut first = server.connect();
        let line = kill_its_loop(server, &mut first);
        assert!(line.contains("ERROR") && line.contains(" worker-"), "{line}");
        let why =
            "has ended: Bad file descriptor (os error 9); its connections are closed, 1 of 2 loops left";
        assert!(line.ends_with(why), "{line}");
        let mut others: Vec<_> = (0..4).map(|_| server.connect()).collect();
        others.iter_mut().for_each(echo);
        let of_loops = || server.threads().iter().filter(|name| name.starts_with("worker-")).count();
        assert!(poll_quietly(|| of_loops() == 1), "its thread has not ended");
        let ended = if all {
            let line = kill_its_loop(server, &mut others[0]);
            assert!(line.ends_with("has ended: Bad file descriptor (os error 9); no loop is left"), "{line}");
            traced.server.wait()
        } else {
            traced.stop().0
        };
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        let dead = if all { 2 } else { 1 };
        let last = format!("epoll-server: {dead} of 2 loops could not go on; the log says why");
        assert_eq!(ended.log.lines().last().unwrap(), last, "{}", ended.log);
    }
}

fn get(client: &mut Client<TcpStream>, target: &str) {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(client.line(), b"HTTP/1.1 200 OK\r\n");
    let mut length = 0;
    loop {
        let line = String::from_utf8(client.line()).unwrap().to_lowercase();
        match line.trim_end() {
            "" => break,
            field => {
                if let Some(value) = field.strip_prefix("content-length: ") {
                    length = value.parse().unwrap();
                }
            }
        }
    }
    client.exactly(length);
}

#[test]
fn all_loops_write_to_one_access_log_that_is_opened_anew_once() {
    const CLIENTS: usize = 20;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access");
    let mut server = Server::start(&["http", "--workers", "2", "--access-log", path.to_str().unwrap()]);
    assert_threads(&server, &["access-log", "epoll-server", "log", "worker-0", "worker-1"]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    let ask = |clients: &mut Vec<Client<TcpStream>>, round: usize| {
        for (number, client) in clients.iter_mut().enumerate() {
            get(client, &format!("/hello?{round}-{number}"));
        }
    };
    ask(&mut clients, 0);
    let renamed = directory.path().join("renamed");
    fs::rename(&path, &renamed).unwrap();
    server.signal("HUP");
    server.logged("opened anew");
    ask(&mut clients, 1);
    drop(clients);
    let ended = server.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(ended.log.matches("opened anew").count(), 1, "{}", ended.log);
    let read = |path| fs::read_to_string(path).unwrap();
    let (before, after) = (read(&renamed), read(&path));
    let mut asked: Vec<String> = [before.as_str(), after.as_str()]
        .concat()
        .lines()
        .map(|line| line.split(' ').nth(6).unwrap().trim_start_matches("/hello?").to_owned())
        .collect();
    asked.sort();
    let mut expected: Vec<String> =
        (0..2).flat_map(|round| (0..CLIENTS).map(move |number| format!("{round}-{number}"))).collect();
    expected.sort();
    assert_eq!(asked, expected, "every line once, in one of the two files");
    assert!((CLIENTS..2 * CLIENTS).contains(&after.lines().count()), "what comes later is in the new one");
}

#[test]
fn the_page_tells_of_all_loops() {
    const CLIENTS: usize = 20;
    let server = Server::start(&["http", "--workers", "2"]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    for client in &mut clients {
        (0..5).for_each(|_| get(client, "/hello"));
    }
    // Whichever loop it asks.
    for _ in 0..4 {
        let mut watcher = server.connect();
        watcher.send("GET /live HTTP/1.1\r\nHost: x\r\n\r\n");
        let told = |line: &[u8]| {
            let line = String::from_utf8_lossy(line);
            line.starts_with("data: {")
                && line.contains("\"answered\":10")
                && line.contains("\"connections\":2")
        };
        let mut lines = 0;
        while !told(&watcher.line()) {
            lines += 1;
            assert!(lines < 200, "the sum does not come");
        }
    }
}
