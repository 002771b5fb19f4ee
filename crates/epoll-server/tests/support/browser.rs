//! A Chromium without a window, told what to do over WebDriver (W3C, with what chromedriver adds) by way of
//! chromedriver. Not a general client: one command at a time, each on a connection of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{PATIENCE, lines, poll};

/// Nothing of its own accord: each request that it makes is the page's. It is root in a container that asks for
/// `--no-sandbox`.
const FLAGS: [&str; 9] = [
    "--headless",
    "--hide-scrollbars",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A browser with one window; it and its driver are ended when it is dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: Option<String>,
    _profile: TempDir,
}

impl Browser {
    /// `None`, having said so, if there is none here. On CI there must be.
    pub fn start() -> Option<Self> {
        let installed = |name: &str| {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&paths).map(|directory| directory.join(name)).find(|path| path.is_file())
        };
        let (Some(driver), Some(browser)) = (installed("chromedriver"), installed("chromium")) else {
            let reason = "chromium and chromedriver are not both installed";
            assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "no browser on CI: {reason}");
            // Not `eprintln`, whose output is shown for failed tests only.
            let _ = writeln!(std::io::stderr(), "skipped: {reason}");
            return None;
        };
        Some(Self::run(&driver, &browser))
    }

    fn run(driver: &Path, browser: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new(driver)
            .arg("--port=0")
            // What is beside the profile: fonts' caches, the crash reporter's directory, sockets.
            .env("HOME", profile.path())
            .env("TMPDIR", profile.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = lines(driver.stdout.take().unwrap());
        // From here on it is ended if anything panics.
        let mut started = Self { driver, port: 0, session: None, _profile: profile };
        while started.port == 0 {
            let line = output.recv_timeout(PATIENCE).expect("chromedriver tells its port");
            let port = line.split("started successfully on port ").nth(1);
            started.port = port.map_or(0, |port| port.trim_end_matches('.').parse().unwrap());
        }
        let profile = format!("--user-data-dir={}", started._profile.path().join("profile").display());
        let flags: Vec<_> = FLAGS.iter().copied().chain([profile.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "binary": browser, "args": flags },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        }}});
        let session = started.call("POST", "/session", &wanted);
        started.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        // The page that a new window has is not ours: it goes, and what it has asked for.
        started.open("about:blank");
        started.requested();
        started
    }

    /// Goes to `url`, and waits until the page is there.
    pub fn open(&self, url: &str) {
        self.command("url", &json!({ "url": url }));
    }

    /// What `script` returns, run in the page.
    pub fn run_script(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until `script` returns something that is true.
    pub fn wait_for(&self, script: &str) -> Value {
        poll(script, || {
            let result = self.run_script(script);
            (result != Value::Null && result != json!(false)).then_some(result)
        })
    }

    /// Has the DevTools protocol's `method` called.
    pub fn devtools(&self, method: &str, parameters: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({ "cmd": method, "params": parameters }))
    }

    /// Makes the window that many CSS pixels large, on a screen with `scale` pixels for each, and has it prefer
    /// `scheme`: `light` or `dark`.
    pub fn look(&self, width: u32, height: u32, scale: u32, scheme: &str) {
        let phone = width < 600;
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone }),
        );
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// Puts a picture of the whole page among the artifacts.
    pub fn take_picture(&self, name: &str) {
        let parameters = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.devtools("Page.captureScreenshot", &parameters);
        let picture = BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        let path = artifacts().join(format!("{name}.png"));
        fs::write(&path, picture).unwrap();
        eprintln!("picture: {}", path.display());
    }

    /// The messages logged since this was last asked: `browser` is the console, `performance` the DevTools events.
    pub fn log(&self, kind: &str) -> Vec<String> {
        let entries = self.command("se/log", &json!({ "type": kind }));
        let message = |entry: &Value| entry["message"].as_str().unwrap().to_owned();
        entries.as_array().unwrap().iter().map(message).collect()
    }

    /// The addresses of all requests since the performance log was last asked for.
    pub fn requested(&self) -> Vec<String> {
        let url = |message: String| {
            let message: Value = serde_json::from_str(&message).unwrap();
            let event = &message["message"];
            let sent = event["method"] == "Network.requestWillBeSent";
            sent.then(|| event["params"]["request"]["url"].as_str().unwrap().to_owned())
        };
        self.log("performance").into_iter().filter_map(url).collect()
    }

    fn command(&self, what: &str, parameters: &Value) -> Value {
        let session = self.session.as_deref().unwrap();
        self.call("POST", &format!("/session/{session}/{what}"), parameters)
    }

    /// One command: its value, or a panic with the error.
    fn call(&self, method: &str, path: &str, parameters: &Value) -> Value {
        let answer = exchange(self.port, method, path, parameters, PATIENCE);
        let value = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!(value["error"].is_null(), "{method} {path}: {}: {}", value["error"], value["message"]);
        value
    }
}

impl Drop for Browser {
    /// Asks politely, and then by force: the driver leads a group, which the browser is in.
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let path = format!("/session/{session}");
            let _ = exchange(self.port, "DELETE", &path, &json!({}), Duration::from_secs(10));
        }
        let kill = format!("kill -s KILL -- -{}", self.driver.id());
        let _ = Command::new("sh").args(["-c", &kill]).status();
        let _ = self.driver.wait();
    }
}

fn exchange(
    port: u16,
    method: &str,
    path: &str,
    parameters: &Value,
    patience: Duration,
) -> std::io::Result<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience))?;
    let body = parameters.to_string();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes())?;
    let mut answer = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        answer.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
            None if line.trim_end().is_empty() => break,
            _ => (),
        }
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body)?;
    let mut answer: Value = serde_json::from_slice(&body)?;
    Ok(answer["value"].take())
}

/// Where what a person may want to look at is kept.
fn artifacts() -> PathBuf {
    let directory = std::env::var_os("CI_ARTIFACTS")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("artifacts"), PathBuf::from);
    fs::create_dir_all(&directory).unwrap();
    directory
}
