//! The server under strace(1), which has chosen system calls fail, and strace's record of what was called. Not
//! the real faults: a call that is made to fail is not carried out, so the kernel knows nothing of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

use crate::support::{EXECUTABLE, Ended, Server};

/// What the record shows: the calls of the loop, those that make it, and those that find and read files.
const TRACED: &str = "accept4,bind,close,epoll_create1,epoll_ctl,?epoll_wait,epoll_pwait,eventfd2,listen,\
                      recvfrom,sendmsg,sendto,setsockopt,shutdown,signalfd4,socket,getdents64,?openat2,pread64,\
                      preadv2,sendfile,statx";

const UNFINISHED: &str = " <unfinished ...>";

/// A system call that fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub call: &'static str,
    pub error: &'static str,
    pub when: When,
}

/// Which of the calls since the server said that it listens fail, the first being number 1. Each thread counts its own,
/// and the first thread's before that are left out for all.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// That one.
    Once(usize),
    /// Those from the first number to the second.
    Range(usize, usize),
    /// The one of the first number, and each time as many as the second says behind it.
    Every(usize, usize),
}

/// A server, and the directory its record lies in.
pub struct Traced {
    pub server: Server,
    directory: TempDir,
    /// How many descriptors it had when it began to listen.
    pub descriptors: usize,
}

/// The calls that were made, in order.
pub struct Record(Vec<String>);

impl Traced {
    pub fn start(faults: &[Fault], arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = command(&directory, faults, arguments);
        Self::run(command, directory)
    }

    /// Nothing fails, and the record has every call there is.
    pub fn watch(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = traced(&directory, "all", &[], arguments);
        Self::run(command, directory)
    }

    fn run(mut command: Command, directory: TempDir) -> Self {
        command.args(["--listen", "127.0.0.1:0"]);
        let server = Server::run(command, 1);
        Self { descriptors: server.descriptors(), server, directory }
    }

    /// What the loop's thread has called so far, each call on one line: where another thread's came between its beginning and
    /// its end there are two.
    pub fn loop_record(&self) -> Record {
        let thread = format!("{} ", self.server.id());
        let mut calls: Vec<String> = Vec::new();
        for line in read_if(&self.directory, |line| line.starts_with(&thread)).0 {
            let begun = calls.last_mut().filter(|begun| begun.ends_with(UNFINISHED));
            match (begun, line.split_once(" resumed>")) {
                (Some(begun), Some((_, end))) => *begun = begun.replace(UNFINISHED, end),
                _ => calls.push(line),
            }
        }
        Record(calls)
    }

    /// What has been called so far. The server is stopped at each call until it is written down.
    pub fn record(&self) -> Record {
        read(&self.directory)
    }

    /// Asks for a drain and waits for the end.
    pub fn stop(self) -> (Ended, Record) {
        // strace keeps standard error open as long as it writes: the end of the one is that of the other.
        let ended = self.server.stop();
        (ended, read(&self.directory))
    }
}

impl Record {
    pub fn injected(&self, call: &str) -> usize {
        // Another thread's call may come between the beginning of one and its end.
        let resumed = format!("<... {call} resumed>");
        let ends = self.0.iter().filter(|line| line.starts_with(&resumed));
        self.of(call).chain(ends).filter(|line| line.ends_with("(INJECTED)")).count()
    }

    pub fn count(&self, call: &str) -> usize {
        self.of(call).count()
    }

    /// Waits that brought nothing and had nothing follow: what a loop that spins is made of.
    pub fn idle_turns(&self) -> usize {
        let is_wait = |line: &String| line.starts_with("epoll_wait(") || line.starts_with("epoll_pwait(");
        let brought_nothing = |line: &str| {
            line.contains(") = 0") || line.contains("EINTR") || line.ends_with("= ? <unavailable>")
        };
        self.0
            .windows(2)
            .filter(|pair| is_wait(&pair[0]) && is_wait(&pair[1]) && brought_nothing(&pair[0]))
            .count()
    }

    /// The part about waits, accepting and watching, for a message.
    pub fn tail(&self, count: usize) -> String {
        self.0[self.0.len().saturating_sub(count)..].join("\n")
    }

    /// The calls from the first that tells of `start` up to the first behind it that tells of `end`: from one mark that a
    /// client has sent to another.
    pub fn between(&self, start: &str, end: &str) -> &[String] {
        let place = |from: usize, mark: &str| {
            let found = self.0[from..].iter().position(|line| line.contains(mark));
            from + found.unwrap_or_else(|| panic!("no {mark:?} in\n{}", self.0.join("\n")))
        };
        let first = place(0, start);
        &self.0[first..place(first + 1, end)]
    }

    fn of(&self, call: &str) -> impl Iterator<Item = &String> {
        let start = format!("{call}(");
        self.0.iter().filter(move |line| line.starts_with(&start))
    }
}

/// Runs the server to its end with the `number`th call of its life failing.
pub fn start_up(call: &str, error: &str, number: usize) -> (Ended, Record) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = traced(&directory, TRACED, &[format!("{call}:error={error}:when={number}")], &["echo"]);
    command
        .args(["--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let ended = Server::spawn(command).wait();
    (ended, read(&directory))
}

/// `strace -D`: the server is this process's child, as it is in all other tests, and strace its grandchild. So the
/// server's process id, exit code and end are its own, and tracing needs no right to trace strangers.
fn command(directory: &TempDir, faults: &[Fault], arguments: &[&str]) -> Command {
    let injections: Vec<String> = faults
        .iter()
        .map(|Fault { call, error, when }| {
            // What it takes to start is not counted.
            let from = |number: &usize| number + calls_to_start(call, arguments);
            let when = match when {
                When::Once(number) => from(number).to_string(),
                When::Range(first, last) => format!("{}..{}", from(first), from(last)),
                When::Every(first, step) => format!("{}+{step}", from(first)),
            };
            format!("{call}:error={error}:when={when}")
        })
        .collect();
    traced(directory, TRACED, &injections, arguments)
}

fn traced(directory: &TempDir, calls: &str, injections: &[String], arguments: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-o"]).arg(directory.path().join("record"));
    command.args(["-e", &format!("trace={calls}"), "-e", "signal=none"]);
    for injection in injections {
        command.args(["-e", &format!("inject={injection}")]);
    }
    command.arg(EXECUTABLE).args(arguments);
    command
}

/// How many calls of that name it takes the command to listen on one address.
fn calls_to_start(call: &str, arguments: &[&str]) -> usize {
    static RECORDS: Mutex<BTreeMap<String, Record>> = Mutex::new(BTreeMap::new());
    let mut records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
    let record = records.entry(arguments.join(" ")).or_insert_with(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut command = traced(&directory, TRACED, &[], arguments);
        command.args(["--listen", "127.0.0.1:0"]);
        let _server = Server::run(command, 1);
        let mut record = read(&directory);
        // The first wait may or may not have begun.
        record.0.retain(|line| !line.starts_with("epoll_wait(") && !line.starts_with("epoll_pwait("));
        record
    });
    record.count(call)
}

fn read(directory: &TempDir) -> Record {
    read_if(directory, |_| true)
}

fn read_if(directory: &TempDir, wanted: impl Fn(&&str) -> bool) -> Record {
    let text = fs::read(directory.path().join("record")).unwrap();
    // Each line begins with the number of the thread.
    let without_number =
        |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').to_owned();
    Record(String::from_utf8_lossy(&text).lines().filter(wanted).map(without_number).collect())
}

/// Whether faults can be injected here; says so if not. On CI they must be: a suite that skips everything passes.
pub fn is_usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| match try_out() {
        Ok(()) => true,
        Err(reason) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "no strace on CI: {reason}");
            // Not `eprintln`, whose output is shown for failed tests only.
            let _ =
                writeln!(std::io::stderr(), "skipped, system calls cannot be made to fail here: {reason}");
            false
        }
    })
}

fn try_out() -> Result<(), String> {
    let arguments =
        ["-D", "-f", "-qq", "-o", "/dev/null", "-e", "inject=accept4:error=EMFILE:when=1..2+3", "true"];
    let output = Command::new("strace").args(arguments.map(OsStr::new)).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("strace: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("strace: {}", String::from_utf8_lossy(&output.stderr)))
}
