//! Broadcast in several loops, on real sockets. The test takes the turns of all loops, so that one that stalls, is ahead or
//! dies does so when the test says; threads and all are in the last test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use epoll_protocols::{Broadcast, BroadcastConfig, BroadcastLoops, BroadcastMessage, SlowReceivers};
use epoll_reactor::{
    Address, Kernel, Limits, Linux, ListenOptions, Reactor, Remote, Stopped, Turn, Worker, WorkerEvent,
    Workers,
};
use support::kernel::Watched;
use support::{Client, End, Random, Server};

const PATIENCE: Duration = Duration::from_secs(30);

struct Loops<K: Kernel = Linux> {
    servers: Vec<Option<Server<Broadcast, K>>>,
    remotes: Arc<[Remote<BroadcastMessage, K>]>,
    shared: BroadcastLoops,
}

impl Loops {
    fn new(count: usize, config: &BroadcastConfig, limits: Limits) -> Self {
        Self::on((0..count).map(|_| Linux::new().unwrap()).collect(), config, limits)
    }
}

impl<K: Kernel + 'static> Loops<K> {
    fn on(kernels: Vec<K>, config: &BroadcastConfig, limits: Limits) -> Self {
        let limits = config.limits(limits);
        let remotes: Arc<[_]> =
            kernels.iter().map(|kernel| Remote::for_kernel(kernel, &limits).unwrap()).collect();
        let shared = BroadcastLoops::new(kernels.len());
        let servers = kernels.into_iter().enumerate().map(|(index, kernel)| {
            let worker = Worker::new(index, Arc::clone(&remotes)).unwrap();
            let handler = Broadcast::for_worker(config.clone(), &shared, &worker).unwrap();
            let reactor =
                Reactor::with_remote(kernel, handler, limits.clone(), worker.remote().clone()).unwrap();
            Some(Server::of(reactor))
        });
        Self { servers: servers.collect(), remotes: Arc::clone(&remotes), shared }
    }

    fn at(&mut self, index: usize) -> &mut Server<Broadcast, K> {
        self.servers[index].as_mut().unwrap()
    }

    fn join(&mut self, index: usize) -> Client {
        self.at(index).join()
    }

    fn turn(&mut self) {
        self.servers.iter_mut().flatten().for_each(|server| server.turn(Duration::ZERO));
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "waiting for {what}");
            self.turn();
        }
    }

    fn line(&mut self, client: &mut Client) -> String {
        let mut line = None;
        self.until("a line", |_| {
            client.pull(1 << 16);
            line = client.take_line();
            assert!(line.is_some() || client.ended.is_none(), "the end, after {:?}", client.rest());
            line.is_some()
        });
        line.unwrap()
    }

    /// Takes turns of loop `index` alone, until `client` cannot send more of `data` and it reads no more.
    fn fill(&mut self, index: usize, client: &mut Client, data: &[u8]) -> usize {
        let (mut sent, mut idle) = (0, 0);
        while idle < 20 {
            let before = (sent, self.at(index).reactor.ctx().counters().bytes_received);
            sent += client.push(&data[sent..]);
            self.at(index).turn(Duration::from_millis(1));
            let now = (sent, self.at(index).reactor.ctx().counters().bytes_received);
            idle = if now == before { idle + 1 } else { 0 };
        }
        sent
    }
}

fn patient() -> BroadcastConfig {
    BroadcastConfig { receiver_limit: 1 << 24, ..BroadcastConfig::default() }
}

/// Line after line, numbered.
fn lines(count: usize, length: usize) -> String {
    (0..count).map(|n| format!("{n:07} {:length$}\n", "")).collect()
}

#[test]
fn clients_of_all_loops_are_numbered_in_one_row_and_hear_each_other() {
    let mut loops = Loops::new(3, &patient(), Limits::default());
    let mut clients: Vec<Client> = [0, 1, 2, 1].into_iter().map(|index| loops.join(index)).collect();
    for sender in 0..clients.len() {
        clients[sender].push(format!("it is {sender}\n").as_bytes());
        for receiver in (0..clients.len()).filter(|receiver| *receiver != sender) {
            let expected = format!("[Client_{}] it is {sender}\n", sender + 1);
            assert_eq!(loops.line(&mut clients[receiver]), expected);
        }
    }
    (0..5).for_each(|_| loops.turn());
    for client in &mut clients {
        client.pull(64);
        assert_eq!(client.rest(), "", "nothing comes twice, and nobody hears itself");
    }
}

#[test]
fn lines_of_many_senders_in_several_loops_arrive_once_and_in_order() {
    const LINES: usize = 200;
    for seed in 1..=4 {
        let mut random = Random::new(seed);
        let mut loops = Loops::new(3, &patient(), Limits::default());
        // Four senders, in three loops, and receivers in all of them.
        let mut clients: Vec<Client> =
            [0, 1, 2, 0, 0, 1, 2].into_iter().map(|index| loops.join(index)).collect();
        let said: Vec<Vec<String>> = (0..4)
            .map(|_| (0..LINES).map(|n| format!("{n} {}\n", "x".repeat(random.below(300)))).collect())
            .collect();
        let streams: Vec<String> = said.iter().map(|lines| lines.concat()).collect();
        let mut sent = [0; 4];
        while (0..4).any(|sender| sent[sender] < streams[sender].len()) {
            let sender = random.below(4);
            let left = &streams[sender].as_bytes()[sent[sender]..];
            let cut = (1 + random.below(2000)).min(left.len());
            sent[sender] += clients[sender].push(&left[..cut]);
            // A loop at a time, so that they get ahead of each other.
            loops.at(random.below(3)).turn(Duration::ZERO);
            clients.iter_mut().for_each(|client| _ = client.pull(random.below(2000)));
        }
        for (receiver, client) in clients.iter_mut().enumerate() {
            let mut heard = vec![Vec::new(); 4];
            let senders = if receiver < 4 { 3 } else { 4 };
            for _ in 0..senders * LINES {
                let line = loops.line(client);
                let (number, content) = line.strip_prefix("[Client_").unwrap().split_once("] ").unwrap();
                heard[number.parse::<usize>().unwrap() - 1].push(content.to_owned());
            }
            for (sender, heard) in heard.iter().enumerate() {
                let expected: &[String] = if sender == receiver { &[] } else { &said[sender] };
                assert!(heard == expected, "seed {seed}: {receiver} heard {sender} say {heard:?}");
            }
            (0..3).for_each(|_| loops.turn());
            client.pull(64);
            assert_eq!(client.rest(), "");
        }
    }
}

#[test]
fn the_receivers_of_all_other_loops_share_one_buffer() {
    let kernels: Vec<Watched> = (0..3).map(|_| Watched::new()).collect();
    let sends: Vec<_> = kernels.iter().map(|kernel| kernel.sends.clone()).collect();
    let mut loops = Loops::on(kernels, &patient(), Limits::default());
    let mut sender = loops.join(0);
    let mut receivers: Vec<Client> = [1, 1, 2, 2].into_iter().map(|index| loops.join(index)).collect();
    let line = "x".repeat(5000);
    sender.push(format!("{line}\n").as_bytes());
    for receiver in &mut receivers {
        assert_eq!(loops.line(receiver), format!("[Client_1] {line}\n"));
    }
    let pieces = [sends[1].pieces.take(), sends[2].pieces.take()].concat();
    assert_eq!(pieces.len(), 4, "{pieces:?}");
    assert!(pieces.iter().all(|piece| *piece == pieces[0]), "{pieces:?}");
    // And none holds it any more.
    for index in 0..3 {
        assert_eq!(loops.at(index).reactor.ctx().buffered(), 0);
    }
}

#[test]
fn what_is_said_in_one_callback_is_one_message() {
    let mut loops = Loops::new(2, &patient(), Limits::default());
    let (mut sender, mut receiver) = (loops.join(0), loops.join(1));
    sender.push(b"one\ntwo\nthree\nand the beginning of");
    loops.at(0).settle();
    assert_eq!(loops.shared.on_the_way(0, 1).0, 1);
    assert_eq!(loops.shared.on_the_way(1, 0), (0, 0));
    for expected in ["one", "two", "three"] {
        assert_eq!(loops.line(&mut receiver), format!("[Client_1] {expected}\n"));
    }
    assert_eq!(loops.shared.on_the_way(0, 1), (0, 0));
    // What is said counts where it is said, and what is heard where it is heard.
    let counts = [0, 1].map(|index| {
        let counted = loops.at(index).reactor.handler().metrics().read();
        (counted.lines, counted.deliveries)
    });
    assert_eq!(counts, [(3, 0), (0, 3)]);
}

#[test]
fn a_loop_that_stalls_holds_up_the_senders_of_the_others_and_nothing_is_lost() {
    // By bytes: a few large messages; by messages: many small ones.
    for (length, count, receiver_limit) in [(1000, 20_000, 1 << 20), (20, 200_000, 1 << 24)] {
        let config = BroadcastConfig { receiver_limit, ..BroadcastConfig::default() };
        let limits = Limits { read_buffer: 4096, read_budget: 4096, ..Limits::default() };
        let mut loops = Loops::new(3, &config, limits);
        let (mut sender, mut near, mut far) = (loops.join(0), loops.join(0), loops.join(1));
        let said = lines(count, length);
        let mut sent = loops.fill(0, &mut sender, said.as_bytes());
        assert!(sent < said.len(), "the sender is stopped");
        let (messages, bytes) = loops.shared.on_the_way(0, 1);
        let (most, least) = (receiver_limit / 2 + receiver_limit / 16 + 4096, receiver_limit / 2);
        assert!(messages <= 64 && bytes <= most, "{messages} messages of {bytes} bytes");
        assert!(
            messages == 64 || bytes >= least,
            "{messages} messages of {bytes} bytes: it was stopped early"
        );
        let buffered = loops.at(0).reactor.ctx().buffered();
        assert!(buffered <= bytes + 3 * 4096, "{buffered} bytes, and its own client has read nothing");
        // A loop that waits costs no turns: nothing is ready, and nothing is due.
        let turns = loops.at(0).reactor.ctx().counters().turns;
        loops.at(0).turn(Duration::from_millis(20));
        assert_eq!(loops.at(0).reactor.ctx().counters().turns, turns + 1);

        let mut heard = [0; 2];
        loops.until("everything", |_| {
            sent += sender.push(&said.as_bytes()[sent..]);
            for (client, heard) in [&mut near, &mut far].into_iter().zip(&mut heard) {
                while client.pull(1 << 16) > 0 {}
                while let Some(line) = client.take_line() {
                    assert_eq!(line.trim_end(), format!("[Client_1] {heard:07}"));
                    *heard += 1;
                }
            }
            heard == [count; 2]
        });
        assert_eq!(loops.shared.on_the_way(0, 1), (0, 0));
    }
}

#[test]
fn two_loops_that_have_filled_each_others_queues_both_get_on() {
    let config = BroadcastConfig { receiver_limit: 1 << 20, ..BroadcastConfig::default() };
    // The shortest queues there may be.
    let limits = Limits { message_queue: 5, ..Limits::default() };
    let mut loops = Loops::new(2, &config, limits);
    let mut clients = [loops.join(0), loops.join(1)];
    let said = lines(60_000, 200);
    let mut sent = [0; 2];
    for index in 0..2 {
        sent[index] = loops.fill(index, &mut clients[index], said.as_bytes());
        assert!(sent[index] < said.len());
    }
    let mut heard = [0; 2];
    loops.until("everything", |_| {
        for index in 0..2 {
            let client = &mut clients[index];
            sent[index] += client.push(&said.as_bytes()[sent[index]..]);
            while client.pull(1 << 16) > 0 {}
            while let Some(line) = client.take_line() {
                assert_eq!(line.trim_end(), format!("[Client_{}] {:07}", 2 - index, heard[index]));
                heard[index] += 1;
            }
        }
        heard == [60_000; 2]
    });
}

#[test]
fn a_queue_too_short_for_so_many_loops_is_an_error() {
    let limits = Limits { message_queue: 8, ..Limits::default() };
    let kernel = Linux::new().unwrap();
    let remotes = |count| -> Arc<[Remote<BroadcastMessage>]> {
        (0..count).map(|_| Remote::for_kernel(&kernel, &limits).unwrap()).collect()
    };
    let worker = |count| Worker::new(0, remotes(count)).unwrap();
    let make = |shared: usize, count: usize| {
        Broadcast::for_worker(patient(), &BroadcastLoops::new(shared), &worker(count))
    };
    assert!(make(1, 1).is_ok() && make(2, 2).is_ok());
    let error = make(3, 3).unwrap_err();
    assert_eq!(error.to_string(), "a queue of 8 messages is too short for 3 loops");
    assert_eq!(make(3, 2).unwrap_err().to_string(), "2 loops share what is for 3");
}

#[test]
fn a_loop_that_dies_is_passed_over_and_holds_nobody_up() {
    let mut loops = Loops::new(3, &patient(), Limits::default());
    let (mut sender, mut far, _lost) = (loops.join(0), loops.join(2), loops.join(1));
    let said = lines(40_000, 1000);
    let mut sent = loops.fill(0, &mut sender, said.as_bytes());
    assert!(sent < said.len());
    // In the middle of what it has not taken.
    loops.servers[1] = None;
    let mut heard = 0;
    loops.until("everything", |_| {
        sent += sender.push(&said.as_bytes()[sent..]);
        while far.pull(1 << 16) > 0 {}
        while let Some(line) = far.take_line() {
            assert_eq!(line.trim_end(), format!("[Client_1] {heard:07}"));
            heard += 1;
        }
        heard == 40_000
    });
    // And back.
    far.push(b"still here\n");
    assert_eq!(loops.line(&mut sender), "[Client_2] still here\n");
}

#[test]
fn a_slow_receiver_misses_lines_of_other_loops_as_of_its_own() {
    for policy in [SlowReceivers::Drop, SlowReceivers::Disconnect] {
        let config = BroadcastConfig { line_limit: 1000, receiver_limit: 64 * 1024, slow_receivers: policy };
        let mut loops = Loops::new(2, &config, Limits::default());
        let (mut sender, mut slow, mut other) = (loops.join(0), loops.join(1), loops.join(1));
        const LINES: usize = 40_000;
        let said = lines(LINES, 500);
        let mut sent = 0;
        let mut heard = 0;
        loops.until("the sender to be heard by who reads", |_| {
            sent += sender.push(&said.as_bytes()[sent..][..(said.len() - sent).min(4096)]);
            while other.pull(1 << 16) > 0 {}
            heard += std::iter::from_fn(|| other.take_line()).count();
            heard == LINES
        });
        assert!(loops.at(1).reactor.ctx().buffered() <= 2 * config.receiver_limit);
        let (mut got, mut skipped) = (0, 0);
        loops.until("what the slow one gets", |_| {
            slow.pull(1 << 16);
            while let Some(line) = slow.take_line() {
                if let Some(count) = line.strip_prefix("[Server] ") {
                    skipped += count.strip_suffix(" lines skipped\n").unwrap().parse::<usize>().unwrap();
                } else {
                    assert_eq!(line.trim_end(), format!("[Client_1] {:07}", got + skipped));
                    got += 1;
                }
            }
            slow.ended.is_some() || got + skipped == LINES
        });
        match policy {
            SlowReceivers::Drop => assert!(skipped > 0 && slow.ended.is_none(), "{got} and {skipped}"),
            SlowReceivers::Disconnect => assert!(got < LINES && skipped == 0, "{got} and {skipped}"),
        }
    }
}

#[test]
fn what_was_said_before_a_drain_is_heard_in_all_loops_whichever_drains_first() {
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let mut loops = Loops::new(3, &patient(), Limits::default());
        let mut clients: Vec<Client> = [0, 1, 2].into_iter().map(|index| loops.join(index)).collect();
        for client in &mut clients {
            client.push(lines(50, 10).as_bytes());
        }
        // All of it is read before any loop hears of the drain, and nothing of it has reached another loop.
        for index in order {
            let server = loops.at(index);
            server.until("all lines", |server| {
                server.reactor.ctx().counters().bytes_received >= lines(50, 10).len() as u64
            });
            assert_eq!(loops.shared.on_the_way(index, (index + 1) % 3).0, 1);
        }
        loops.remotes.iter().for_each(Remote::drain);
        let mut ended = [false; 3];
        // Each as far as it gets by itself, and then all.
        for index in order {
            (0..5).for_each(|_| loops.at(index).turn(Duration::ZERO));
        }
        let start = Instant::now();
        while ended != [true; 3] {
            assert!(start.elapsed() < PATIENCE, "{ended:?}");
            for index in order {
                let turn = loops.at(index).reactor.turn(Some(Duration::ZERO)).unwrap();
                assert!(matches!(turn, Turn::Continue | Turn::Stopped(Stopped::Drained)), "{turn:?}");
                ended[index] = turn != Turn::Continue;
            }
            for client in &mut clients {
                client.pull(1 << 16);
                if client.ended.is_some() {
                    let _: Result<(), _> = client.stream.shutdown(Shutdown::Write);
                }
            }
        }
        for (index, client) in clients.iter_mut().enumerate() {
            while client.pull(1 << 16) > 0 {}
            assert_eq!(client.ended, Some(End::Finished));
            let heard = client.rest();
            for other in (0..3).filter(|other| *other != index) {
                let name = format!("[Client_{}] ", other + 1);
                let lines_of: String =
                    heard.split_inclusive('\n').filter_map(|line| line.strip_prefix(&name)).collect();
                assert_eq!(lines_of, lines(50, 10), "{index} of {other}, {order:?}");
            }
        }
    }
}

#[test]
fn what_a_loop_has_said_before_it_died_is_heard_before_a_drain_ends() {
    let limits = Limits { message_budget: 1, ..Limits::default() };
    let mut loops = Loops::new(2, &patient(), limits);
    let (mut receiver, mut sender) = (loops.join(0), loops.join(1));
    for number in 0..10 {
        sender.push(format!("{number}\n").as_bytes());
        loops.at(1).settle();
    }
    assert_eq!(loops.shared.on_the_way(1, 0).0, 10);
    loops.servers[1] = None;
    loops.remotes[0].drain();
    let expected: String = (0..10).map(|number| format!("[Client_2] {number}\n")).collect();
    assert_eq!(loops.at(0).rest(&mut receiver), (expected, End::Finished));
}

#[test]
fn a_loop_may_drain_alone() {
    let mut loops = Loops::new(2, &patient(), Limits::default());
    let (mut leaving, mut staying, mut beside) = (loops.join(0), loops.join(1), loops.join(1));
    staying.push(b"to both\n");
    loops.at(1).settle();
    loops.remotes[0].drain();
    assert_eq!(loops.line(&mut leaving), "[Client_2] to both\n");
    loops.until("its end", |_| {
        leaving.pull(64);
        leaving.ended.is_some()
    });
    leaving.finish();
    loops.until("its loop's", |loops| {
        let turn = loops.at(0).reactor.turn(Some(Duration::ZERO)).unwrap();
        turn == Turn::Stopped(Stopped::Drained)
    });
    loops.servers[0] = None;
    staying.push(b"still here\n");
    assert_eq!(loops.line(&mut beside), "[Client_2] to both\n");
    assert_eq!(loops.line(&mut beside), "[Client_2] still here\n");
}

/// Of each of four, in the last test.
const SAID: usize = 3000;

/// Has each hear the one before it, who says so again until then: from then on all are there.
fn introduce(clients: &mut [BufReader<TcpStream>]) {
    for number in 0..clients.len() {
        let (hello, mut line) = (format!("hello {number}\n"), String::new());
        let next = (number + 1) % clients.len();
        let start = Instant::now();
        while !line.ends_with(&format!("] {hello}")) {
            assert!(start.elapsed() < PATIENCE);
            if line.ends_with('\n') {
                line.clear();
            }
            // What it has heard of others comes before.
            if clients[next].read_line(&mut line).is_err() {
                clients[number].get_ref().write_all(hello.as_bytes()).unwrap();
            }
        }
    }
}

/// Hears all that four of them say, each in its order and once.
fn hear_four(number: usize, mut client: BufReader<TcpStream>) -> BufReader<TcpStream> {
    let mut next = [0; 4];
    let senders = if number < 4 { 3 } else { 4 };
    while next.iter().sum::<usize>() < senders * SAID {
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        let Some((_, said)) = line.trim_end().split_once("] s") else {
            assert!(line.contains("] hello "), "{line:?}");
            continue;
        };
        let (sender, n) = said.split_once(' ').unwrap();
        let sender: usize = sender.parse().unwrap();
        assert_eq!((n.parse(), sender == number), (Ok(next[sender]), false));
        next[sender] += 1;
    }
    client
}

#[test]
fn workers_on_their_threads_are_one_server() {
    let config = patient();
    let limits = config.limits(Limits { memory: 1 << 28, ..Limits::default() });
    let mut workers = Workers::new(NonZeroUsize::new(3).unwrap(), limits).unwrap();
    let options = ListenOptions::default();
    let bound = workers.listen(&Address::Tcp("127.0.0.1:0".parse().unwrap()), &options).unwrap();
    let remotes = Arc::clone(workers.remotes());
    let shared = BroadcastLoops::new(3);
    let (started, wait) = channel();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            workers.run(
                |worker| Broadcast::for_worker(config.clone(), &shared, worker),
                |event| {
                    if event == WorkerEvent::AllStarted {
                        started.send(()).unwrap();
                    }
                },
            )
        });
        wait.recv_timeout(PATIENCE).unwrap();
        // Enough to be in all loops.
        let mut clients: Vec<BufReader<TcpStream>> = (0..24)
            .map(|_| {
                let stream = TcpStream::connect(bound.as_tcp().unwrap()).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                BufReader::new(stream)
            })
            .collect();
        introduce(&mut clients);
        // Four say, and all hear, at once.
        let readers: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(number, client)| {
                client.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
                let mut writer = client.get_ref().try_clone().unwrap();
                if number < 4 {
                    scope.spawn(move || {
                        (0..SAID)
                            .for_each(|n| writer.write_all(format!("s{number} {n}\n").as_bytes()).unwrap());
                    });
                }
                scope.spawn(move || hear_four(number, client))
            })
            .collect();
        let clients: Vec<_> = readers.into_iter().map(|thread| thread.join().unwrap()).collect();
        for from in 0..3 {
            for to in 0..3 {
                let start = Instant::now();
                while shared.on_the_way(from, to) != (0, 0) {
                    assert!(start.elapsed() < PATIENCE, "{from} to {to}: {:?}", shared.on_the_way(from, to));
                    std::thread::yield_now();
                }
            }
        }
        remotes.iter().for_each(Remote::drain);
        drop(clients);
        let end = running.join().unwrap().unwrap();
        assert_eq!((end.died, end.stopped), (0, Stopped::Drained));
    });
}
