//! `epoll-server top` in a pseudo-terminal, which script(1) gives it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use support::{EXECUTABLE, PATIENCE, Server, outcome, poll};

/// `top` in a terminal of 120 columns and 40 rows; ended when it is dropped.
struct Top {
    child: Child,
    keys: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Top {
    fn start(admin: &str) -> Self {
        let mut command = Command::new("script");
        // script(1) gives its own exit code the child's (-e), and writes at once (-f).
        let line = format!("stty cols 120 rows 40; exec {EXECUTABLE} top --admin {admin}");
        command.args(["-q", "-e", "-f", "-c", &line, "/dev/null"]).env("TERM", "xterm-256color");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("script(1), of util-linux");
        let (keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                // A test that has ended wants no more.
                let _ = sender.send(buffer[..count].to_vec());
            }
        });
        Self { child, keys, output: receiver, seen: String::new() }
    }

    /// Waits until `part` has come. Where words are apart the terminal is told to move its cursor, in one way or another.
    fn shows(&mut self, part: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.seen.contains(part) && !words(&self.seen).contains(part) {
            let more = self.output.recv_timeout(end.saturating_duration_since(Instant::now()));
            let Ok(more) = more else { panic!("no {part:?} in {:?}", words(&self.seen)) };
            self.seen.push_str(&String::from_utf8_lossy(&more));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// To the child of script(1), which `exec` has made it.
    fn signal(&self, name: &str) {
        let script = self.child.id();
        let child = fs::read_to_string(format!("/proc/{script}/task/{script}/children")).unwrap();
        let sent = Command::new("sh").args(["-c", &format!("kill -s {name} {child}")]).status();
        assert!(sent.unwrap().success(), "kill -s {name} {child}");
    }

    /// The exit code, once it has ended by itself.
    fn wait(&mut self) -> Option<i32> {
        poll("the end of top", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        // It has ended already where this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text without control sequences (ECMA-48 section 5.4), with one space between words.
fn words(output: &str) -> String {
    let mut parts = output.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    let texts =
        parts.map(|part| part.trim_start_matches(|c| !('@'..='~').contains(&c)).get(1..).unwrap_or_default());
    let all = [first].into_iter().chain(texts.map(str::to_owned)).collect::<Vec<_>>().join(" ");
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn start(arguments: &[&str]) -> (Server, String) {
    let mut command = Command::new(EXECUTABLE);
    command.args(arguments).args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let mut server = Server::run(command, 1);
    let admin = server.printed().strip_prefix("admin on ").unwrap().to_owned();
    (server, admin)
}

/// The alternate screen of xterm is left, as it was entered, and the cursor is shown again.
const LEAVES: &str = "\x1b[?1049l";
const ENTERS: &str = "\x1b[?1049h";

#[test]
fn it_shows_a_server_says_when_that_goes_and_ends_by_q() {
    let (server, admin) = start(&["http", "--workers", "2"]);
    let mut client = server.connect();
    client.send("GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    client.rest();
    let mut top = Top::start(&admin);
    top.shows(ENTERS);
    top.shows(&format!("top - {admin}"));
    top.shows("requests 1 (-/s) 2xx 1");
    drop(server);
    top.shows("still trying");
    top.press("q");
    top.shows(LEAVES);
    assert_eq!(top.wait(), Some(0));
}

#[test]
fn a_server_that_does_not_answer_is_said_to_be_silent() {
    let (server, admin) = start(&["echo"]);
    let mut top = Top::start(&admin);
    top.shows("running");
    server.signal("STOP");
    top.shows("no answer for");
    let (code, _, errors) = outcome(&["top", "--admin", &admin]);
    assert_eq!(code, 1);
    assert_eq!(errors, format!("epoll-server: no admin server answers at {admin}: no answer within 5 s"));
    // By now it has given up once, too.
    top.press("q");
    top.shows(LEAVES);
    assert!(!top.seen.contains("os error"), "{}", top.seen);
}

#[test]
fn control_c_ends_it() {
    let (_server, admin) = start(&["broadcast"]);
    let mut top = Top::start(&admin);
    top.shows("lines 0");
    top.press("\x03");
    top.shows(LEAVES);
    assert_eq!(top.wait(), Some(0));
}

#[test]
fn a_signal_ends_it_and_leaves_the_terminal_as_it_was() {
    let (_server, admin) = start(&["echo"]);
    for signal in ["TERM", "INT"] {
        let mut top = Top::start(&admin);
        top.shows("top - ");
        top.signal(signal);
        top.shows(LEAVES);
        assert_eq!(top.wait(), Some(0));
    }
}

#[test]
fn where_no_admin_server_answers_it_takes_one_line() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, output, errors) = outcome(&["top", "--admin", &nobody]);
    assert_eq!((code, output.as_str()), (1, ""));
    assert_eq!(
        errors,
        format!("epoll-server: no admin server answers at {nobody}: Connection refused (os error 111)")
    );
    let other = Server::start(&["http"]);
    let (code, _, errors) = outcome(&["top", "--admin", &other.addresses[0]]);
    assert_eq!(code, 1);
    assert!(errors.ends_with(": 404: Not Found"), "{errors}");
    let (_server, admin) = start(&["echo"]);
    let (code, _, errors) = outcome(&["top", "--admin", &admin]);
    assert_eq!((code, errors.contains("standard output is none")), (1, true), "{errors}");
}
