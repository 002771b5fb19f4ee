//! The page of `epoll-server http` in a browser: it draws what is going on, asks nobody else for anything, and gets over
//! a server that goes away. Needs Debian's chromium and chromium-driver. Pictures of it are kept in `target/artifacts`,
//! or where `CI_ARTIFACTS` says.

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

#[path = "support/browser.rs"]
#[allow(unreachable_pub, missing_debug_implementations, reason = "as `support`")]
mod browser;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use browser::Browser;
use serde_json::json;
use support::{Client, EXECUTABLE, Server, poll};

/// How many points the chart of requests has.
const POINTS: &str =
    "return (document.querySelector('#rate .line').getAttribute('d') ?? '').match(/[ML]/g)?.length ?? 0";

/// The lines of the chart of requests are as long as the chart is wide.
const REDRAWN: &str = "document.querySelector('#rate .base').getAttribute('d').endsWith('H' + document.querySelector('#rate svg').clientWidth)";

const ANSWERED: &str = "return document.getElementById('answered').textContent";

#[test]
fn it_draws_what_is_going_on_and_asks_nobody_else() {
    let Some(browser) = Browser::start() else { return };
    let server = Server::start(&["http"]);
    let load = Load::start(&server);
    let origin = format!("http://{}", server.addresses[0]);
    browser.open(&format!("{origin}/"));

    let mut seen = Vec::new();
    poll("three different numbers", || {
        let answered = browser.run_script(ANSWERED);
        if answered != "–" && seen.last() != Some(&answered) {
            seen.push(answered);
        }
        (seen.len() >= 3).then_some(())
    });
    poll("some seconds on the chart", || (browser.run_script(POINTS).as_u64().unwrap() >= 6).then_some(()));
    let number = |card: &str| {
        let text = browser.run_script(&format!("return document.querySelector('#{card} b').textContent"));
        text.as_str().unwrap().replace(',', "").parse::<f64>().unwrap()
    };
    assert!(number("rate") > 0.0);
    assert!(number("connections") >= 2.0, "the stream and the load");
    assert!(number("turn") > 0.0);
    assert_eq!(browser.run_script("return document.getElementById('status').innerText"), "Live");
    assert_eq!(browser.run_script("return document.title"), "epoll-server");
    assert_eq!(
        browser.run_script(
            "return document.querySelectorAll('svg[role=img][aria-label*=\"two minutes\"]').length"
        ),
        3,
        "each chart says what it shows"
    );

    point_at_the_past(&browser);
    for (width, height, scale, size) in [(1280, 800, 1, "desktop"), (390, 844, 2, "phone")] {
        for scheme in ["light", "dark"] {
            browser.look(width, height, scale, scheme);
            // It is drawn anew when its size has changed.
            browser.wait_for(&format!("return innerWidth === {width} && {REDRAWN}"));
            assert_eq!(
                browser.run_script("return document.documentElement.scrollWidth"),
                width,
                "{size}: nothing sticks out"
            );
            browser.take_picture(&format!("page-{size}-{scheme}"));
        }
    }
    drop(load);

    let complaints = browser.log("browser");
    assert!(complaints.is_empty(), "{complaints:?}");
    let requested = browser.requested();
    assert!(requested.contains(&format!("{origin}/live")), "{requested:?}");
    let elsewhere = |url: &&String| !url.starts_with(&format!("{origin}/")) && !url.starts_with("data:");
    assert_eq!(requested.iter().find(elsewhere), None);
}

#[test]
fn it_says_so_when_the_server_is_gone_and_comes_back_with_it() {
    let Some(browser) = Browser::start() else { return };
    let server = Server::start(&["http"]);
    let address = server.addresses[0].clone();
    browser.open(&format!("http://{address}/"));
    browser.wait_for("return document.body.dataset.state === 'live'");
    browser.wait_for("return document.getElementById('uptime').textContent !== '–'");
    assert_eq!(server.stop().code, Some(0));
    browser.wait_for("return document.getElementById('status').innerText.startsWith('Connection lost')");
    browser.look(1280, 800, 1, "light");
    browser.take_picture("page-lost");
    let mut command = Command::new(EXECUTABLE);
    command.args(["http", "--listen", &address]);
    let _server = Server::run(command, 1);
    browser.wait_for("return document.getElementById('status').innerText === 'Live'");
}

#[test]
fn it_lets_its_stream_go_while_nobody_looks() {
    let Some(browser) = Browser::start() else { return };
    let server = Server::start(&["http"]);
    browser.open(&format!("http://{}/", server.addresses[0]));
    browser.wait_for("return document.body.dataset.state === 'live'");
    let mut client = server.connect();
    client.send("GET /live HTTP/1.0\r\n\r\n");
    let mut connections = move || loop {
        let event = String::from_utf8(client.line()).unwrap();
        if let Some(event) = event.strip_prefix("data: {") {
            let count = event.split("\"connections\":").nth(1).unwrap().split(',').next().unwrap();
            break count.parse::<usize>().unwrap();
        }
    };
    let before = connections();
    let look = |hidden: bool| {
        browser.run_script(&format!(
            "Object.defineProperty(document, 'hidden', {{ configurable: true, value: {hidden} }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        ));
    };
    look(true);
    poll("the end of its stream", || (connections() < before).then_some(()));
    let seen = browser.run_script(ANSWERED);
    look(false);
    browser.wait_for(&format!("return document.getElementById('answered').textContent !== {seen}"));
    assert_eq!(browser.run_script("return document.getElementById('status').innerText"), "Live");
}

#[test]
fn without_scripts_it_says_where_the_numbers_are() {
    let Some(browser) = Browser::start() else { return };
    let server = Server::start(&["http"]);
    browser.devtools("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
    browser.open(&format!("http://{}/", server.addresses[0]));
    browser.look(1280, 800, 1, "light");
    browser.take_picture("page-without-scripts");
    browser.devtools("Emulation.setScriptExecutionDisabled", &json!({ "value": false }));
    let text = browser.run_script("return document.body.innerText");
    let text = text.as_str().unwrap();
    assert!(text.contains("/live") && text.contains("scripts are off"), "{text}");
    assert!(!text.contains("Requests a second"), "no empty charts: {text}");
}

/// The numbers are those of the time that is pointed at.
fn point_at_the_past(browser: &Browser) {
    let place = browser.run_script(
        "const chart = document.querySelector('#turn svg'); \
         chart.scrollIntoView({ block: 'center' }); \
         const box = chart.getBoundingClientRect(); \
         return [box.left + box.width * .97, box.top + box.height / 2]",
    );
    let (x, y) = (place[0].as_f64().unwrap(), place[1].as_f64().unwrap());
    let go = |x: f64, y: f64| {
        browser.devtools("Input.dispatchMouseEvent", &json!({ "type": "mouseMoved", "x": x, "y": y }));
    };
    go(x, y);
    browser.wait_for("return document.querySelector('#rate .when').textContent.endsWith('s ago')");
    browser.take_picture("page-pointed-at");
    go(1.0, 1.0);
    browser.wait_for("return document.querySelector('#rate .when').textContent === ''");
}

/// Somebody who asks `/hello` over and over, until dropped.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Load {
    fn start(server: &Server) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = server.connect();
        let thread = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || ask_until(&stop, &mut client))
        };
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Its own failure has been printed.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn ask_until(stop: &AtomicBool, client: &mut Client<std::net::TcpStream>) {
    let begin = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        while client.line() != b"\r\n" {}
        assert_eq!(client.exactly(13), b"Hello, World!");
        // Not for any event: for a line that goes up and down.
        let wave = (begin.elapsed().as_secs_f64() / 4.0).sin().abs();
        thread::sleep(Duration::from_secs_f64(0.0005 + 0.003 * wave));
    }
}
