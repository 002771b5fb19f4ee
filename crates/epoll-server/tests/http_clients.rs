//! `epoll-server http` and clients that others have written: curl, Python's http.client, ab and wrk. Where one is not
//! installed its test says so and does nothing, but on CI, where it fails.

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

use std::fs::File;
use std::process::{Command, Stdio};

use support::{Server, assert_same, pattern, skip};

/// Whether `tool` is there.
fn is_here(tool: &str) -> bool {
    let here =
        Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(here || std::env::var_os("CI").is_none(), "{tool} is not installed");
    if !here {
        skip(format!("{tool} is not installed"));
    }
    here
}

/// What a command that must succeed has written to its standard output and error.
#[track_caller]
fn run(command: &mut Command) -> (Vec<u8>, String) {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{error}", output.status);
    (output.stdout, error)
}

fn url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.addresses[0])
}

fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "-m", "60"]).args(arguments);
    command
}

#[test]
fn curl_keeps_its_connection_where_it_may() {
    if !is_here("curl") {
        return;
    }
    let server = Server::start(&["http"]);
    let (hello, echo) = (url(&server, "/hello"), url(&server, "/echo"));
    let told = ["-w", "%{num_connects} %{http_version} %{http_code}\n", "-o", "/dev/null"];
    let next = [["--next", "-sS", "--noproxy", "*"].as_slice(), &told].concat();
    // GET, HEAD, POST by length, in chunks, and again: one connection for all.
    let chunked = "Transfer-Encoding: chunked";
    let all = [
        told.as_slice(),
        &[&hello],
        &next,
        &["-I", &hello],
        &next,
        &["-d", "body", &echo],
        &next,
        &["-H", chunked, "-d", "body", &echo],
        &next,
        &[&hello],
    ]
    .concat();
    let (said, _) = run(&mut curl(&all));
    let expected = "1 1.1 200\n".to_owned() + &"0 1.1 200\n".repeat(4);
    assert_eq!(String::from_utf8(said).unwrap(), expected);
    // 1.0 has one for each, unless it asks.
    for (fields, expected) in [
        (["-H", "A: b"], "1 1.1 200\n1 1.1 200\n"),
        (["-H", "Connection: keep-alive"], "1 1.1 200\n0 1.1 200\n"),
    ] {
        let two = [["--http1.0"].as_slice(), &fields, &told, &[&hello, "-o", "/dev/null", &hello]].concat();
        let (said, _) = run(&mut curl(&two));
        assert_eq!(String::from_utf8(said).unwrap(), expected, "{fields:?}");
    }
    let (said, _) = run(&mut curl(&["--http1.0", &hello]));
    assert_eq!(said, b"Hello, World!");
}

#[test]
fn curl_uploads_what_comes_from_a_pipe_and_is_told_to_go_on() {
    if !is_here("curl") {
        return;
    }
    let server = Server::start(&["http", "--body-limit", "4MiB"]);
    let echo = url(&server, "/echo");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("body");
    let body = pattern(3 << 20);
    std::fs::write(&path, &body).unwrap();
    // Nobody waits for a timeout: it would take longer than curl may.
    let patient = ["--expect100-timeout", "600", "-v", "-X", "POST", "-T", "-", &echo];
    let (said, log) = run(curl(&patient).stdin(File::open(&path).unwrap()));
    assert_same(&said, &body);
    for line in [
        "> Transfer-Encoding: chunked",
        "> Expect: 100-continue",
        "< HTTP/1.1 100 Continue",
        "< HTTP/1.1 200 OK",
    ] {
        assert!(log.contains(line), "no {line:?} in\n{log}");
    }
    // One that is too large is refused before it is sent.
    let large = directory.path().join("large");
    File::create(&large).unwrap().set_len((4 << 20) + 1).unwrap();
    let data = format!("@{}", large.display());
    let expect = "Expect: 100-continue";
    let refused = [
        "--expect100-timeout",
        "600",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_upload}",
        "-H",
        expect,
        "--data-binary",
        &data,
        &echo,
    ];
    let (said, _) = run(&mut curl(&refused));
    assert_eq!(String::from_utf8(said).unwrap(), "413 0");
}

const PYTHON: &str = r#"
import http.client, sys
host, port = sys.argv[1].rsplit(":", 1)
connection = http.client.HTTPConnection(host, int(port), timeout=60)
connection.connect()
socket = connection.sock

def ask(method, target, body=None, headers={}, chunked=False):
    connection.request(method, target, body=body, headers=headers, encode_chunked=chunked)
    answer = connection.getresponse()
    assert answer.version == 11, answer.version
    said = answer.read()
    assert answer.isclosed()
    length = answer.getheader("Content-Length")
    assert method == "HEAD" or int(length) == len(said), (length, said)
    return answer.status, said, answer

for _ in range(3):
    assert ask("GET", "/hello")[:2] == (200, b"Hello, World!")
    status, said, answer = ask("HEAD", "/hello")
    assert (status, said, answer.getheader("Content-Length")) == (200, b"", "13")
    assert ask("GET", "/nothing")[0] == 404
    body = bytes(range(256)) * 1000
    assert ask("POST", "/echo", body)[:2] == (200, body)
    # An iterable without a length goes in chunks.
    parts = [b"a" * 1, b"b" * 70000, b"c" * 3]
    chunks = iter(parts)
    assert ask("POST", "/echo", chunks, {"Transfer-Encoding": "chunked"}, True)[:2] == (200, b"".join(parts))
    assert connection.sock is socket, "another connection"
status, said, answer = ask("GET", "/hello", headers={"Connection": "close"})
assert answer.will_close and answer.getheader("Connection") == "close"
assert connection.sock is None

connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
status, said, answer = ask("GET", "/hello")
assert (status, said, answer.will_close) == (200, b"Hello, World!", True)
print("content")
"#;

#[test]
fn python_is_content() {
    if !is_here("python3") {
        return;
    }
    let server = Server::start(&["http"]);
    let (said, _) = run(Command::new("python3").args(["-c", PYTHON, &server.addresses[0]]));
    assert_eq!(said, b"content\n");
}

/// How much load there is to be: `EPOLL_AB_REQUESTS` and `EPOLL_AB_CLIENTS` ask for more than is good for every day.
fn load(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The number behind `name` in a report, if it is there.
fn reported(report: &str, name: &str) -> Option<u64> {
    let line = report.lines().find_map(|line| line.trim().strip_prefix(name))?;
    Some(line.trim().split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn ab_has_no_failed_request() {
    if Command::new("ab").arg("-V").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "ab is not installed");
        return skip("ab is not installed");
    }
    let (requests, clients) = (load("EPOLL_AB_REQUESTS", 20_000), load("EPOLL_AB_CLIENTS", 200));
    let (requests_text, clients_text) = (requests.to_string(), clients.to_string());
    let server = Server::start(&["http"]);
    let hello = url(&server, "/hello");
    // It speaks 1.0: with -k it asks for the connection to stay, and is told that it does.
    for keep in [["-k"].as_slice(), &[]] {
        let mut ab = Command::new("ab");
        ab.args(["-q", "-r", "-n", &requests_text, "-c", &clients_text]).args(keep).arg(&hello);
        let report = String::from_utf8(run(&mut ab).0).unwrap();
        assert_eq!(reported(&report, "Complete requests:"), Some(requests as u64), "{report}");
        assert_eq!(reported(&report, "Failed requests:"), Some(0), "{report}");
        assert_eq!(reported(&report, "Write errors:").unwrap_or(0), 0, "{report}");
        assert_eq!(reported(&report, "Non-2xx responses:"), None, "{report}");
        assert_eq!(reported(&report, "Document Length:"), Some(13), "{report}");
        assert_eq!(reported(&report, "HTML transferred:"), Some(13 * requests as u64), "{report}");
        let kept = reported(&report, "Keep-Alive requests:").unwrap_or(0);
        assert_eq!(kept, if keep.is_empty() { 0 } else { requests as u64 }, "{report}");
    }
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn wrk_has_no_error() {
    if !is_here("wrk") {
        return;
    }
    let server = Server::start(&["http"]);
    let before = server.descriptors();
    let mut wrk = Command::new("wrk");
    wrk.args(["-t", "1", "-c", "256", "-d", "1s", "--timeout", "60s", &url(&server, "/hello")]);
    let report = String::from_utf8(run(&mut wrk).0).unwrap();
    assert!(report.contains(" requests in ") && !report.contains("\n  0 requests in"), "{report}");
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
    support::poll("all to be gone", || (server.descriptors() == before).then_some(()));
    assert_eq!(server.stop().code, Some(0));
}
