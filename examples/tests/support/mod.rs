//! Starts the examples as a user would, and bounds in time whatever a test does with them.
//!
//! Cargo builds the examples before it runs all tests of this package; after `cargo test --test client` alone
//! they are what the last build left.
#![allow(dead_code, reason = "each test uses its part")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// Nothing here takes this long, on any machine. Where it passes, a test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running example.
pub(crate) struct Example {
    child: Child,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
    /// Ends the example by force, unless it is dropped within the patience.
    watchdog: Option<(Sender<()>, JoinHandle<()>)>,
}

/// How an example ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// What it had printed and the test had not read, with the newlines.
    pub(crate) lines: Vec<String>,
    pub(crate) errors: String,
}

impl Example {
    pub(crate) fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_printing_to(name, arguments, Stdio::piped())
    }

    /// One that prints to somewhere else than here.
    pub(crate) fn start_printing_to(name: &str, arguments: &[&str], stdout: Stdio) -> Self {
        let mut child = Command::new(path(name))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .env_remove("RUST_LOG")
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            thread::spawn(move || {
                let mut line = String::new();
                while stdout.read_line(&mut line).unwrap() > 0 && sender.send(line).is_ok() {
                    line = String::new();
                }
            });
        }
        let mut stderr = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut errors = String::new();
            stderr.read_to_string(&mut errors).unwrap();
            errors
        });
        let id = pid(&child);
        let (alive, patience) = channel::<()>();
        let watchdog = thread::spawn(move || {
            if patience.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                kill(id, Signal::SIGKILL).unwrap();
            }
        });
        Self { child, lines, errors: Some(errors), watchdog: Some((alive, watchdog)) }
    }

    /// One that serves, and its address.
    pub(crate) fn serve(name: &str, arguments: &[&str]) -> (Self, String) {
        let server = Self::start(name, &[&["127.0.0.1:0"], arguments].concat());
        let line = server.line();
        let address = line.strip_prefix("listening on ").and_then(|it| it.strip_suffix('\n'));
        let address = address.unwrap_or_else(|| panic!("{line:?}")).to_owned();
        (server, address)
    }

    /// The next line it prints, with its newline.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("its standard input, once")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(pid(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Ended {
        drop(self.child.stdin.take());
        self.reap()
    }

    /// Asks it to end, and expects it to do so in good order.
    pub(crate) fn stop(self) {
        self.signal(Signal::SIGTERM);
        let ended = self.wait();
        assert!(ended.status.success() && ended.errors.is_empty(), "{ended:?}");
    }

    fn reap(&mut self) -> Ended {
        // Its number is its own until it is waited for; by then the watchdog must have gone.
        let ended = Id::Pid(pid(&self.child));
        waitid(ended, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        if let Some((alive, watchdog)) = self.watchdog.take() {
            drop(alive);
            watchdog.join().unwrap();
        }
        let status = self.child.wait().unwrap();
        let errors = self.errors.take().map(|errors| errors.join().unwrap()).unwrap_or_default();
        Ended { status, lines: self.lines.iter().collect(), errors }
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        if self.watchdog.is_some() {
            self.signal(Signal::SIGKILL);
            self.reap();
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// The examples lie beside the directory of the tests, whatever the profile and the target directory.
fn path(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build --package examples --examples", path.display());
    path
}

/// A client of an example, or its server.
pub(crate) struct Peer {
    pub(crate) stream: BufReader<TcpStream>,
}

impl Peer {
    pub(crate) fn connect(address: &str) -> Self {
        Self::new(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn finish(&self) {
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// The next line, with its newline; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line
    }

    /// Everything until the peer's end.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.stream.read_to_string(&mut rest).unwrap();
        rest
    }

    /// Whether the peer has closed, one way or the other.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// Writes `piece` over and over on a thread of its own, and tells of each that has been taken.
pub(crate) fn write_repeatedly(
    mut to: impl Write + Send + 'static,
    piece: Vec<u8>,
    times: usize,
) -> Receiver<()> {
    let (taken, progress) = channel();
    thread::spawn(move || {
        for _ in 0..times {
            to.write_all(&piece).unwrap();
            let _ = taken.send(());
        }
    });
    progress
}

/// Waits until a writer has stopped for a moment; says whether it has more to write.
pub(crate) fn has_stalled(progress: &Receiver<()>) -> bool {
    loop {
        match progress.recv_timeout(Duration::from_millis(300)) {
            Ok(()) => (),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}
