//! The server as a process, and clients of it, for all tests of this crate. No expectations: those are the
//! tests' own.
//!
//! Nothing here waits for ever, and nothing sleeps for a time in the hope that something has happened by then:
//! tests wait for a line of the server's output, for bytes, or for an end.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test file uses its part of this"
)]

use std::fmt::Debug;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// More than anything here takes on a busy machine. Whoever waits this long has found a bug.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const EXECUTABLE: &str = env!("CARGO_BIN_EXE_epoll-server");

/// A running server; killed when it is dropped.
pub struct Server {
    child: Child,
    output: Receiver<String>,
    log: Receiver<String>,
    /// What `log` has given so far.
    seen: Vec<String>,
    pub addresses: Vec<String>,
}

/// How a server ended.
#[derive(Debug)]
pub struct Ended {
    /// `None`: killed by a signal.
    pub code: Option<i32>,
    /// All of standard error.
    pub log: String,
}

impl Server {
    /// `epoll-server` with `arguments`, listening on a port of its own.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(EXECUTABLE);
        command.args(arguments).args(["--listen", "127.0.0.1:0"]);
        Self::run(command, 1)
    }

    /// The same, after the shell command `first`: to set limits.
    pub fn start_after(first: &str, arguments: &[&str]) -> Self {
        let mut command = shell(first, arguments);
        command.args(["--listen", "127.0.0.1:0"]);
        Self::run(command, 1)
    }

    /// Runs `command` and waits until it has told of its `listeners`.
    pub fn run(mut command: Command, listeners: usize) -> Self {
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = Self::spawn(command);
        for _ in 0..listeners {
            let line = server.output.recv_timeout(PATIENCE);
            let Ok(line) = line else { panic!("no `listening on`: {line:?}; {:?}", server.wait()) };
            let address = line.strip_prefix("listening on ").expect("another line on standard output");
            server.addresses.push(address.to_owned());
        }
        server
    }

    /// Runs `command`, whose standard output and error may go elsewhere.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        Self {
            output: child.stdout.take().map_or_else(|| channel().1, lines),
            log: child.stderr.take().map_or_else(|| channel().1, lines),
            seen: Vec::new(),
            addresses: Vec::new(),
            child,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.addresses[0].parse().unwrap()
    }

    pub fn connect(&self) -> Client<TcpStream> {
        Client::from_tcp(TcpStream::connect(self.address()).unwrap())
    }

    /// Connects with a receive buffer of that many bytes, or the smallest there is.
    pub fn connect_with_buffer(&self, size: usize) -> Client<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(size).unwrap();
        socket.connect(&self.address().into()).unwrap();
        Client::from_tcp(socket.into())
    }

    /// Connects, and waits until the broadcast server has said that this is client `number`.
    pub fn join(&mut self, number: usize) -> Client<TcpStream> {
        let client = self.connect();
        self.joined(number, &client);
        client
    }

    /// The same for a client that takes little while it does not read.
    pub fn join_with_small_buffer(&mut self, number: usize) -> Client<TcpStream> {
        let client = self.connect_with_buffer(1);
        self.joined(number, &client);
        client
    }

    pub fn joined(&mut self, number: usize, client: &Client<TcpStream>) {
        let local = client.stream().local_addr().unwrap();
        self.logged(&format!("Client_{number} connected from {local}"));
    }

    /// Waits for a line of the log that contains `part`, and returns it.
    pub fn logged(&mut self, part: &str) -> String {
        if let Some(line) = self.has_logged(part) {
            return line;
        }
        let end = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(error) => panic!("{part:?} was not logged ({error}), but:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// The next line of standard output, behind those about listeners.
    pub fn printed(&mut self) -> String {
        self.output.recv_timeout(PATIENCE).expect("a line on standard output")
    }

    /// A line of the log, so far, that contains `part`.
    pub fn has_logged(&mut self, part: &str) -> Option<String> {
        self.seen.extend(self.log.try_iter());
        self.seen.iter().find(|line| line.contains(part)).cloned()
    }

    /// How many lines of the log, so far, contain `part`.
    pub fn times_logged(&mut self, part: &str) -> usize {
        self.seen.extend(self.log.try_iter());
        self.seen.iter().filter(|line| line.contains(part)).count()
    }

    /// The lines of the log, so far, that contain `part`.
    pub fn all_logged(&mut self, part: &str) -> Vec<String> {
        self.seen.extend(self.log.try_iter());
        self.seen.iter().filter(|line| line.contains(part)).cloned().collect()
    }

    /// Sends the signal of that name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.child.id())]).status().unwrap();
        assert!(status.success(), "kill -s {name}: {status}");
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("it does not end; its log:\n{}", self.seen.join("\n"));
                }
            }
        }
        // Where the log does not come here, this is all that can be done.
        let status = poll("its end", || self.child.try_wait().unwrap());
        Ended { code: status.code(), log: self.seen.join("\n") }
    }

    /// SIGTERM, and the end that should follow.
    pub fn stop(self) -> Ended {
        self.signal("TERM");
        self.wait()
    }

    /// Its process, and the loop's thread.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// How many descriptors its epoll instances watch with `EPOLLEXCLUSIVE`: proc_pid_fdinfo(5).
    pub fn exclusively_watched(&self) -> usize {
        const EPOLLEXCLUSIVE: u32 = 1 << 28;
        let infos = fs::read_dir(format!("/proc/{}/fdinfo", self.child.id())).unwrap();
        // A connection that has been closed meanwhile has none.
        let infos =
            infos.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok()).collect::<String>();
        let watched = infos.lines().filter(|line| line.starts_with("tfd:"));
        let events = watched.map(|line| {
            let events = line.split_once("events:").unwrap().1.split_whitespace().next().unwrap();
            u32::from_str_radix(events, 16).unwrap()
        });
        events.filter(|events| events & EPOLLEXCLUSIVE != 0).count()
    }

    /// The names of its threads.
    pub fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // One may end meanwhile.
        tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok()).collect()
    }

    /// The most memory it has had resident so far.
    pub fn peak_memory_kib(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// The CPU time it has used so far.
    pub fn cpu_time(&self) -> Duration {
        let fields = self.stat();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // USER_HZ, which is 100 wherever Linux runs.
        Duration::from_millis(ticks * 10)
    }

    /// Whether it is stopped by a signal.
    pub fn is_stopped(&self) -> bool {
        self.stat()[0] == "T"
    }

    /// proc_pid_stat(5) from the third field on: the state.
    fn stat(&self) -> Vec<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, behind_name) = stat.rsplit_once(") ").unwrap();
        behind_name.split(' ').map(str::to_owned).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server with `arguments`, started by a shell after `first`, or with `first` redirecting its output. It has
/// the shell's process id.
pub fn shell(first: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first}\nexec \"$0\" \"$@\""), EXECUTABLE]).args(arguments);
    command
}

/// Runs the command to its end, which should come by itself, and returns its exit code, standard output and
/// standard error.
pub fn outcome(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(EXECUTABLE);
    command.args(arguments).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let server = Server::spawn(command);
    let output: Vec<String> = std::iter::from_fn(|| server.output.recv_timeout(PATIENCE).ok()).collect();
    let ended = server.wait();
    (ended.code.expect("an exit code"), output.join("\n"), ended.log)
}

/// Asks until there is an answer: for what no event tells.
pub fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The lines of `from`, as they come.
pub fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { break };
            // A test that has ended wants no more; the pipe is still to be emptied.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// One end of a connection, with reads that find lines. Its reads and writes fail after [`PATIENCE`].
pub struct Client<S: Read + Write>(BufReader<S>);

impl Client<TcpStream> {
    pub fn from_tcp(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// The socket itself. What has been read ahead is not in it.
    pub fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    pub fn finish_sending(&self) {
        self.stream().shutdown(Shutdown::Write).unwrap();
    }

    /// A second client on the same connection, for another thread. Nothing may have been read ahead.
    pub fn duplicate(&self) -> Self {
        assert!(self.0.buffer().is_empty());
        Self::from_tcp(self.stream().try_clone().unwrap())
    }

    /// Writes `data` until the server has taken nothing for a while, and returns how much it has taken.
    pub fn fill(&mut self, data: &[u8]) -> usize {
        self.stream().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut written = 0;
        while written < data.len() {
            match self.0.get_mut().write(&data[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => panic!("{error}"),
            }
        }
        self.stream().set_write_timeout(Some(PATIENCE)).unwrap();
        written
    }
}

impl<S: Read + Write> Client<S> {
    pub fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, data: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(data.as_ref()).unwrap();
    }

    /// The same, where the server may be gone.
    pub fn try_send(&mut self, data: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.0.get_mut().write_all(data.as_ref())
    }

    /// The next line, with its newline; nothing where the server is gone.
    pub fn line_or_end(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line) {
            Ok(_) => (),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        line
    }

    /// The next line, with its newline.
    pub fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).unwrap();
        line
    }

    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut data = vec![0; count];
        self.0.read_exact(&mut data).unwrap();
        data
    }

    /// Everything up to the end of the stream.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        self.0.read_to_end(&mut data).unwrap();
        data
    }

    /// Everything up to the end of the stream, or to a reset, which some ends are allowed to be.
    pub fn rest_or_reset(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        match self.0.read_to_end(&mut data) {
            Ok(_) => (),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        data
    }
}

/// Compares without printing megabytes.
#[track_caller]
pub fn assert_same(got: &[u8], expected: &[u8]) {
    let differs = got.iter().zip(expected).position(|(got, expected)| got != expected);
    assert!(
        differs.is_none() && got.len() == expected.len(),
        "{} bytes instead of {}, the first difference at {differs:?}",
        got.len(),
        expected.len()
    );
}

/// Bytes in which no part looks like another.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut random = Random::new(length as u64);
    std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(length).collect()
}

/// Numbers from a seed (splitmix64), so that a failing test fails again.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// How much the kernel takes for a connection on which nobody reads, at most: its largest send buffer, and a small
/// receive buffer. A client with a larger one needs more.
pub fn kernel_buffers() -> usize {
    let sizes = fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap();
    let largest: usize = sizes.split_whitespace().last().unwrap().parse().unwrap();
    largest + 64 * 1024
}

/// Says why a test does not test what it says.
pub fn skip(reason: impl Debug) {
    eprintln!("skipped: {reason:?}");
}
