//! The admin server: what it tells of a server that works, drains or is stuck, to us, to promtool(1) and to Prometheus.

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
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::{Client, EXECUTABLE, Server, outcome, pattern, poll, skip};

/// A server with an admin address, which it has told.
fn start(arguments: &[&str]) -> (Server, String) {
    let mut command = Command::new(EXECUTABLE);
    command.args(arguments);
    run(command)
}

fn run(mut command: Command) -> (Server, String) {
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let mut server = Server::run(command, 1);
    let line = server.printed();
    let address = line.strip_prefix("admin on ").expect("the admin address");
    (server, address.to_owned())
}

/// The status and the body of the answer.
fn get(address: &str, target: &str) -> (u16, String) {
    let (head, body) = ask(address, "GET", target);
    (head[9..12].parse().unwrap(), body)
}

fn ask(address: &str, method: &str, target: &str) -> (String, String) {
    ask_for(address, address, method, target)
}

fn ask_for(host: &str, address: &str, method: &str, target: &str) -> (String, String) {
    let mut client = Client::from_tcp(TcpStream::connect(address).unwrap());
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
    let answer = String::from_utf8(client.rest()).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// The sum of the rows of that family whose labels contain `labels`.
fn sum(metrics: &str, family: &str, labels: &str) -> f64 {
    let rows = metrics.lines().filter_map(|line| line.strip_prefix(family)?.strip_prefix('{'));
    let rows = rows.filter_map(|row| row.rsplit_once("} ")).filter(|(found, _)| found.contains(labels));
    rows.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
}

fn connections(address: &str, query: &str) -> Value {
    let (status, body) = get(address, &format!("/connections{query}"));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Whether Prometheus is installed; says so if not. On CI it must be.
fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let here = found.is_ok_and(|status| status.success());
    assert!(here || std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{program} is not installed");
    if !here {
        skip(format!("{program} is not installed"));
    }
    here
}

fn promtool(metrics: &str) {
    if !is_installed("promtool") {
        return;
    }
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty() && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn metrics_count_the_requests_of_all_loops() {
    for workers in ["1", "2"] {
        let (server, admin) = start(&["http", "--workers", workers, "--lag-target", "1h"]);
        // The first connection is there to be seen, the others have ended.
        let mut staying = server.connect();
        for target in ["hello", "hello", "nothing"] {
            staying.send(format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            while staying.line() != b"\r\n" {}
            staying.exactly(if target == "hello" { 13 } else { 10 });
        }
        for _ in 0..20 {
            let mut client = server.connect();
            client.send("GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            client.rest();
        }
        let mut client = server.connect();
        client.send("nonsense\r\n\r\n");
        client.rest();
        drop(client);
        let metrics = poll("the ends of all connections", || {
            let (status, metrics) = get(&admin, "/metrics");
            assert_eq!(status, 200);
            (sum(&metrics, "epoll_connections_closed_total", "") >= 21.0).then_some(metrics)
        });
        promtool(&metrics);
        let rows = |family: &str, labels: &str| sum(&metrics, family, labels);
        assert_eq!(rows("epoll_http_requests_total", "status=\"2xx\""), 22.0, "{metrics}");
        assert_eq!(rows("epoll_http_requests_total", "status=\"4xx\""), 2.0);
        assert_eq!(rows("epoll_http_rejections_total", ""), 1.0);
        for family in ["http_shed_total", "work_shed_total", "overloads_total", "overloaded"] {
            assert!(metrics.contains(&format!("epoll_{family}{{loop=\"0\"}} 0\n")), "{family}");
        }
        assert_eq!(rows("epoll_connections_accepted_total", ""), 22.0);
        assert_eq!(rows("epoll_connections", "state=\"open\""), 1.0);
        assert!(rows("epoll_received_bytes_total", "") > 22.0 * 40.0);
        assert!(rows("epoll_sent_bytes_total", "") > 22.0 * 100.0);
        poll("a tick of each loop", || {
            let metrics = get(&admin, "/metrics").1;
            let ticks = metrics.lines().filter(|line| line.starts_with("epoll_timer_lag_seconds_count{"));
            ticks.map(|line| !line.ends_with("} 0")).reduce(|all, one| all && one).unwrap().then_some(())
        });
        for family in ["epoll_turn_duration_seconds", "epoll_poll_lag_seconds"] {
            let count = rows(&format!("{family}_count"), "");
            assert!(count > 0.0, "{family}");
            assert_eq!(rows(&format!("{family}_bucket"), "le=\"+Inf\""), count, "{family}");
        }
        assert_eq!(rows("epoll_loop_up", ""), workers.parse::<f64>().unwrap());
        assert!(!metrics.contains("epoll_broadcast"));
    }
}

/// Whatever the protocol, and though nobody is connected.
#[test]
fn a_server_that_the_system_did_not_run_was_late() {
    const STOPPED: Duration = Duration::from_millis(2500);
    let rows = [("broadcast", "2"), ("echo", "1"), ("http", "2")];
    let mut servers = rows.map(|(protocol, workers)| (start(&[protocol, "--workers", workers]), workers));
    for ((server, _), _) in &servers {
        server.signal("STOP");
        poll("the stop", || server.is_stopped().then_some(()));
    }
    // Nobody waits for anything: this is the time that they are to have missed.
    thread::sleep(STOPPED);
    for ((server, admin), workers) in &mut servers {
        server.signal("CONT");
        let late = |metrics: &str| {
            let rows =
                metrics.lines().filter_map(|line| line.strip_prefix("epoll_timer_lag_longest_seconds{"));
            let late = rows.filter(|row| row.rsplit_once("} ").unwrap().1.parse::<f64>().unwrap() >= 1.5);
            (late.count(), sum(metrics, "epoll_loop_up", ""))
        };
        poll("a late tick of each loop", || {
            let (late, loops) = late(&get(admin, "/metrics").1);
            (late.to_string() == *workers && loops.to_string() == *workers).then_some(())
        });
        let names: &[_] = if *workers == "1" { &["the loop"] } else { &["worker-0", "worker-1"] };
        for name in names.iter().chain(&["admin"]) {
            server.logged(&format!("{name} did not run for "));
        }
    }
}

#[test]
fn with_balance_metrics_tell_who_was_handed_over() {
    let (server, admin) = start(&["echo", "--workers", "2", "--balance"]);
    let mut clients = Vec::new();
    poll("a client that is handed over", || {
        // A loop that has yet to take its first turn is handed none, nor is one that the system holds up.
        clients.extend((0..16).map(|_| server.connect()));
        for client in clients.iter_mut().rev().take(16) {
            client.send("x");
            client.exactly(1);
        }
        let (_, metrics) = get(&admin, "/metrics");
        (sum(&metrics, "epoll_connections_handed_over_total", "") >= 1.0).then_some(())
    });
    poll("numbers that agree", || {
        let (_, metrics) = get(&admin, "/metrics");
        let total = |family| sum(&metrics, family, "");
        let moved = total("epoll_connections_moved_total");
        let told = total("epoll_connections_handed_over_total") + moved
            == total("epoll_connections_taken_over_total");
        (told && total("epoll_connections_accepted_total") == clients.len() as f64 + moved).then_some(())
    });
}

#[test]
fn with_balance_busy_clients_of_one_loop_get_apart() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const AT_ONCE: usize = 64;
    let (server, admin) = start(&["http", "--workers", "2", "--balance"]);
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    let mut length = 0;
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(client.line());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let body = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let body: usize = body.parse().unwrap();
        client.exactly(body);
        length = head.len() + body;
    }
    let loop_of = |client: &Client<TcpStream>| {
        let list = connections(&admin, "");
        let peer = client.stream().local_addr().unwrap().to_string();
        let row = list["connections"].as_array().unwrap().iter().find(|row| row["peer"] == *peer)?;
        row["loop"].as_u64()
    };
    // Of three two are in one loop, however they were spread.
    let loops: Vec<_> = clients[1..].iter().map(|client| poll("its loop", || loop_of(client))).collect();
    let pair = if loops[0] == loops[1] { (1, 2) } else { (3, if loops[2] == loops[0] { 1 } else { 2 }) };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (one, two) = (clients[pair.0].duplicate(), clients[pair.1].duplicate());
        for mut client in [one, two] {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    client.send(GET.repeat(AT_ONCE));
                    let answers = client.exactly(AT_ONCE * length);
                    let answers = String::from_utf8(answers).unwrap();
                    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), AT_ONCE);
                }
            });
        }
        let ended = catch_unwind(AssertUnwindSafe(|| {
            poll("one that is moved, and is not where the other is", || {
                let (_, metrics) = get(&admin, "/metrics");
                let moved = sum(&metrics, "epoll_connections_moved_total", "") >= 1.0;
                let told = sum(&metrics, "epoll_connections_closed_total", "reason=\"handed_over\"") >= 1.0;
                let [one, two] = [pair.0, pair.1].map(|it| loop_of(&clients[it]));
                (moved && told && one? != two?).then_some(())
            });
        }));
        stop.store(true, Ordering::Relaxed);
        ended.unwrap();
    });
}

#[test]
fn metrics_count_what_a_line_fans_out_to() {
    let (mut server, admin) = start(&["broadcast"]);
    let mut clients: Vec<_> = (1..=4).map(|number| server.join(number)).collect();
    clients[0].send("one\ntwo\n");
    for client in &mut clients[1..] {
        assert_eq!(client.line(), b"[Client_1] one\n");
        assert_eq!(client.line(), b"[Client_1] two\n");
    }
    let (_, metrics) = get(&admin, "/metrics");
    promtool(&metrics);
    assert_eq!(sum(&metrics, "epoll_broadcast_lines_total", "loop=\"0\""), 2.0, "{metrics}");
    assert_eq!(sum(&metrics, "epoll_broadcast_deliveries_total", ""), 6.0);
    assert_eq!(sum(&metrics, "epoll_broadcast_skipped_total", ""), 0.0);
    assert!(metrics.contains("epoll_broadcast_lagging{loop=\"0\"} 0"));
    assert!(!metrics.contains("epoll_http"));
}

#[test]
fn connections_are_listed_in_the_order_asked_for() {
    for workers in ["1", "2"] {
        let (server, admin) = start(&["echo", "--workers", workers]);
        let mut clients: Vec<_> = (0..6).map(|_| server.connect()).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            client.send(vec![b'x'; index + 1]);
            client.exactly(index + 1);
        }
        let list = connections(&admin, "?sort=traffic&limit=4");
        assert_eq!(list["open"], 6, "{list}");
        let rows = list["connections"].as_array().unwrap();
        let bytes = rows.iter().map(|row| [&row["bytes_in"], &row["bytes_out"]].map(|n| n.as_u64().unwrap()));
        assert_eq!(bytes.collect::<Vec<_>>(), [[6, 6], [5, 5], [4, 4], [3, 3]]);
        let peer = clients[5].stream().local_addr().unwrap().to_string();
        assert_eq!((rows[0]["peer"].as_str(), rows[0]["state"].as_str()), (Some(&*peer), Some("open")));
        assert!(rows[0]["age_seconds"].as_f64().unwrap() > 0.0 && rows[0]["queued"] == 0);
        let has_rate = |row: &Value| row.as_object().unwrap().contains_key("bytes_per_second");
        assert!(!rows.iter().any(has_rate));
        let busiest = connections(&admin, "?sort=rate&limit=3");
        let rates = busiest["connections"].as_array().unwrap().iter();
        let rates: Vec<_> = rates.map(|row| row["bytes_per_second"].as_u64().unwrap()).collect();
        assert!(rates.len() == 3 && rates[2] > 0 && rates.is_sorted_by(|a, b| a >= b), "{busiest}");
        let all = connections(&admin, "");
        let ages =
            all["connections"].as_array().unwrap().iter().map(|row| row["age_seconds"].as_f64().unwrap());
        assert!(ages.clone().is_sorted_by(|a, b| a >= b) && ages.count() == 6, "{all}");
        let loops = all["connections"].as_array().unwrap().iter().map(|row| row["loop"].as_u64().unwrap());
        assert!(loops.max().unwrap() < workers.parse().unwrap());
        assert_eq!(get(&admin, "/connections?sort=size").0, 400);
        assert_eq!(get(&admin, "/connections?limit=1001").0, 400);
    }
}

#[test]
fn it_answers_while_the_server_drains_and_says_that_it_does() {
    let (server, admin) = start(&["echo", "--workers", "2", "--grace", "60s"]);
    assert_eq!(get(&admin, "/healthz"), (200, "ok\n".to_owned()));
    // All loops are there when their addresses are printed; the first turn of one may be yet to come.
    poll("that it is ready", || (get(&admin, "/readyz") == (200, "ok\n".to_owned())).then_some(()));
    // The drain waits for what this client does not read.
    let mut client = server.connect();
    client.fill(&pattern(32 << 20));
    let lagging = connections(&admin, "?sort=queued&limit=1");
    assert!(lagging["connections"][0]["queued"].as_u64().unwrap() > 0, "{lagging}");
    server.signal("TERM");
    let body = poll("the drain", || Some(get(&admin, "/readyz")).filter(|(status, _)| *status == 503)).1;
    assert_eq!(body, "draining\n");
    assert_eq!(get(&admin, "/healthz"), (200, "ok\n".to_owned()));
    let (_, metrics) = get(&admin, "/metrics");
    assert!(sum(&metrics, "epoll_draining", "") > 0.0, "{metrics}");
    assert_eq!(connections(&admin, "")["connections"].as_array().unwrap().len(), 1);
    server.signal("TERM");
    assert_eq!(server.wait().code, Some(3));
    assert!(TcpStream::connect(&admin).is_err(), "it has ended with the process");
}

#[test]
fn a_loop_that_is_held_up_is_told_of_and_not_waited_for() {
    if !strace::is_usable() {
        return;
    }
    let (directory, traces) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(directory.path().join("file"), pattern(1 << 20)).unwrap();
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=sendfile"]);
    command
        .args(["-e", "inject=sendfile:delay_enter=15s:when=1"])
        .arg(EXECUTABLE)
        .args(["http", "--workers", "2", "--trace-file"])
        .arg(traces.path().join("trace"))
        .arg("--root")
        .arg(directory.path());
    let (mut server, admin) = run(command);
    assert_eq!(get(&admin, "/healthz").0, 200);
    let mut client = server.connect();
    client.send("GET /file HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.line(), b"HTTP/1.1 200 OK\r\n");
    let (status, body) = get(&admin, "/connections");
    assert_eq!((status, body.as_str()), (503, "1 of the loops did not answer\n"));
    // Four lists are waited for at one time.
    let mut clients: Vec<_> = (0..5).map(|_| Client::from_tcp(TcpStream::connect(&admin).unwrap())).collect();
    for client in &mut clients {
        client.send("GET /connections HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    }
    let answers = clients.iter_mut().map(|client| String::from_utf8(client.rest()).unwrap());
    let refused = answers.filter(|answer| answer.ends_with("\r\n\r\ntoo many lists are being made\n"));
    assert_eq!(refused.count(), 1);
    let (_, body) = poll("word of it", || Some(get(&admin, "/healthz")).filter(|(status, _)| *status == 503));
    let (held_up, _) = body.split_once(" has been in one turn for ").expect("which loop it is");
    assert!(sum(&get(&admin, "/metrics").1, "epoll_in_turn_seconds", "") >= 5.0);
    // It cannot write what it did. The other one can, and the log says which is which.
    server.signal("USR1");
    server.logged(&format!("{held_up} has been in one turn for "));
    let other = if held_up == "loop 0" { 1 } else { 0 };
    server.logged(&format!("records of what loop {other} did are in "));
}

#[test]
fn it_reads_and_does_nothing_else() {
    let (_server, admin) = start(&["echo"]);
    assert!(get(&admin, "/").1.contains("/metrics"));
    assert_eq!(get(&admin, "/hello").0, 404);
    for target in ["/metrics", "/healthz", "/readyz", "/connections"] {
        assert!(ask(&admin, "POST", target).0.starts_with("HTTP/1.1 405 "), "{target}");
        let (head, body) = ask(&admin, "HEAD", target);
        assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{target}: {head}");
    }
    assert!(
        ask(&admin, "GET", "/metrics").0.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(ask(&admin, "GET", "/connections").0.contains("Content-Type: application/json"));
}

#[test]
fn a_page_whose_name_has_been_made_to_lead_here_is_told_nothing() {
    let (_server, admin) = start(&["echo"]);
    let port = admin.rsplit_once(':').unwrap().1;
    for target in ["/", "/metrics", "/healthz", "/readyz", "/connections", "/nothing"] {
        let (head, body) = ask_for(&format!("evil.example:{port}"), &admin, "GET", target);
        assert!(head.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{target}: {head}");
        assert_eq!(body, "not the name of this server\n", "{target}");
    }
    let absolute = ask(&admin, "GET", &format!("http://evil.example:{port}/metrics")).0;
    assert!(absolute.starts_with("HTTP/1.1 421 "), "{absolute}");
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), "[::1]:1".to_owned()] {
        let (head, _) = ask_for(&host, &admin, "GET", "/healthz");
        assert!(head.starts_with("HTTP/1.1 200 "), "{host}: {head}");
    }
    let mut command = Command::new(EXECUTABLE);
    command.args(["echo", "--admin-anywhere"]);
    let (_server, admin) = run(command);
    assert!(ask_for("monitor.example", &admin, "GET", "/healthz").0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn addresses_that_will_not_do_take_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let rows = [
        (&*taken, format!("epoll-server: --admin: cannot listen on {taken}: Address already in use")),
        (
            "0.0.0.0:0",
            "epoll-server: --admin 0.0.0.0:0: not a loopback address; --admin-anywhere would allow it"
                .to_owned(),
        ),
        ("nobody.invalid:80", "epoll-server: address \"nobody.invalid:80\": ".to_owned()),
    ];
    for (address, expected) in rows {
        for workers in ["1", "2"] {
            let (code, output, errors) =
                outcome(&["echo", "--workers", workers, "--listen", "127.0.0.1:0", "--admin", address]);
            assert_eq!((code, output.as_str()), (1, ""), "{errors}");
            let last = errors.lines().last().unwrap();
            assert!(last.starts_with(&expected), "{errors}");
        }
    }
    let (code, _, errors) = outcome(&["echo", "--admin", "unix:/nowhere"]);
    assert_eq!(code, 2, "{errors}");
    let mut command = Command::new(EXECUTABLE);
    command.args(["echo", "--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0", "--admin-anywhere"]);
    assert!(Server::run(command, 1).printed().starts_with("admin on 0.0.0.0:"));
}

#[test]
fn without_the_flag_there_is_nothing() {
    let server = Server::start(&["echo"]);
    assert!(!server.threads().iter().any(|name| name.trim_end() == "admin"));
    let (server, _) = start(&["echo"]);
    assert!(server.threads().iter().any(|name| name.trim_end() == "admin"));
}

/// Prometheus, ended when it is dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It has ended already where this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn prometheus_scrapes_it() {
    if !is_installed("prometheus") {
        return;
    }
    let (server, admin) = start(&["http", "--workers", "2"]);
    let mut client = server.connect();
    client.send("GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    client.rest();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
         scrape_configs: [{{job_name: epoll, static_configs: [{{targets: ['{admin}']}}]}}]\n"
    );
    fs::write(&config, text).unwrap();
    // It cannot tell which port it was given. This one is free a moment before.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
    command.arg(format!("--web.listen-address={port}"));
    let log = fs::File::create(directory.path().join("log")).unwrap();
    let _prometheus = Prometheus(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let port = port.to_string();
    let query = |query: &str| -> Option<Value> {
        TcpStream::connect(&port).ok()?;
        let (status, body) = get(&port, &format!("/api/v1/query?query={query}"));
        let answer: Value = (status == 200).then(|| serde_json::from_str(&body).unwrap())?;
        let value = &answer["data"]["result"][0]["value"][1];
        value.as_str().map(|value| Value::from(value.to_owned()))
    };
    assert_eq!(poll("a scrape", || query("sum(epoll_http_requests_total)")), "1");
    assert_eq!(query("up").unwrap(), "1");
    assert_eq!(query("count(epoll_loop_up)").unwrap(), "2");
    assert_eq!(query("sum(epoll_http_requests_total%7Bstatus%3D%222xx%22%7D)").unwrap(), "1");
    let lag = query("histogram_quantile(0.99,sum(epoll_poll_lag_seconds_bucket)by(le))").unwrap();
    assert!(lag.as_str().unwrap().parse::<f64>().unwrap() < 60.0, "{lag}");
}
