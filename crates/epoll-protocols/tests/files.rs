//! Static files: in the codec, with an output that reads files itself, and on real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "tests fail by panicking"
)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use epoll_protocols::http1::{
    Connection, DateHeader, Exchange, Files, FilesOptions, HttpLimits, HttpMetrics, Next, Progress, Response,
};
use epoll_reactor::Address;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::prelude::*;
use tempfile::TempDir;

#[path = "files/sockets.rs"]
mod sockets;

/// A directory to be served, beside what must not be.
struct Site {
    directory: TempDir,
    files: Files,
}

/// An answer, taken apart.
#[derive(Debug)]
struct Answer {
    head: String,
    body: Vec<u8>,
    /// Threads that had to be asked.
    jobs: usize,
}

impl Answer {
    fn parse(sent: &[u8]) -> Self {
        let end = sent.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(sent[..end].to_vec()).unwrap();
        Self { head, body: sent[end + 4..].to_vec(), jobs: 0 }
    }

    fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).map(|line| line.split_once(": ").unwrap());
        let found = lines.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        assert!(!lines.any(|(other, _)| other.eq_ignore_ascii_case(name)), "{name} twice: {}", self.head);
        found
    }

    fn length(&self) -> usize {
        self.field("content-length").unwrap().parse().unwrap()
    }
}

impl Site {
    fn new(options: FilesOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        fs::write(directory.path().join("secret"), "secret").unwrap();
        let files = Files::open(&directory.path().join("root"), options).unwrap();
        Self { directory, files }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    /// A file last changed at `second`.
    fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>, second: u64) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        touch(&path, second);
    }

    /// What is sent for a request line and fields.
    fn ask(&self, line: &str, fields: &[&str]) -> Answer {
        self.send(line, &format!("{line} HTTP/1.1\r\nHost: h\r\n{}\r\n", fields.concat()))
    }

    fn send(&self, line: &str, request: &str) -> Answer {
        let date = DateHeader::new(UNIX_EPOCH);
        let (mut response, mut output) = (Response::new(), Vec::new());
        let (mut connection, mut files) = (Connection::new(), self.files.clone());
        let (mut sent, mut jobs) = (Vec::new(), 0);
        let limits = HttpLimits::default();
        let mut next = None;
        loop {
            let mut exchange = Exchange {
                limits: &limits,
                date: &date,
                metrics: &HttpMetrics::new(),
                connection: 0,
                client: &Address::UnixUnnamed,
                service: &mut files,
                response: &mut response,
                output: &mut output,
            };
            next = Some(match next {
                None => {
                    let Progress { next, .. } = connection.receive(request.as_bytes(), &mut exchange);
                    next
                }
                Some(Next::OutputFull) => connection.resume(&mut exchange),
                Some(Next::Wait) => {
                    jobs += 1;
                    let job = connection.take_job().unwrap();
                    let number = job.id().number;
                    *exchange.response = job.run();
                    connection.respond(number, &mut exchange).unwrap()
                }
                Some(Next::MoreInput | Next::Close(None)) => break,
                other => panic!("{line}: {other:?}"),
            });
            sent.append(&mut output);
        }
        let answer = Answer { jobs, ..Answer::parse(&sent) };
        if line.starts_with("HEAD ") || matches!(answer.status(), 204 | 304) {
            assert_eq!(answer.body, b"", "{line}");
        } else {
            assert_eq!(answer.body.len(), answer.length(), "{line}");
        }
        answer
    }

    fn get(&self, target: &str) -> Answer {
        self.ask(&format!("GET {target}"), &[])
    }
}

fn touch(path: &Path, second: u64) {
    File::options().write(true).open(path).unwrap().set_modified(at(second)).unwrap();
}

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(second)
}

fn plain() -> FilesOptions {
    FilesOptions::default()
}

fn listed() -> FilesOptions {
    FilesOptions { list: true, ..plain() }
}

#[test]
fn a_file_and_what_is_said_of_it() {
    let site = Site::new(FilesOptions {
        fields: vec![("Cache-Control".to_owned(), "max-age=60".to_owned())],
        ..plain()
    });
    site.write("page.html", "<p>hello</p>", 784_111_777);
    let answer = site.get("/page.html?query");
    assert_eq!((answer.status(), answer.body.as_slice()), (200, b"<p>hello</p>".as_slice()));
    let expected = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", "12"),
        ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("Accept-Ranges", "bytes"),
        ("X-Content-Type-Options", "nosniff"),
        ("Vary", "Accept-Encoding"),
        ("Cache-Control", "max-age=60"),
    ];
    for (name, value) in expected {
        assert_eq!(answer.field(name), Some(value), "{name}");
    }
    let tag = answer.field("ETag").unwrap();
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 10, "{tag}");
    let head = site.ask("HEAD /page.html", &[]);
    assert_eq!(head.head, answer.head);

    // RFC 9110 section 15.4.5.
    let condition = format!("If-None-Match: {tag}\r\n");
    let unchanged = site.ask("GET /page.html", &[&condition]);
    assert_eq!(unchanged.status(), 304);
    for name in ["ETag", "Vary", "Cache-Control", "Date"] {
        assert!(unchanged.field(name).is_some(), "{name}");
    }
    for name in ["Content-Length", "Content-Type", "Last-Modified"] {
        assert_eq!(unchanged.field(name), None, "{name}");
    }
    let failed = site.ask("GET /page.html", &["If-Match: \"other\"\r\n"]);
    assert_eq!((failed.status(), failed.field("Cache-Control"), failed.length()), (412, None, 0));
    // RFC 9110 section 13.2.1: no conditions without a file.
    assert_eq!(site.ask("GET /none", &["If-None-Match: *\r\n"]).status(), 404);
    assert_eq!(site.ask("GET /none", &["If-Match: \"x\"\r\n"]).status(), 404);
}

#[test]
fn another_state_has_another_tag() {
    let site = Site::new(plain());
    let tag = |name: &str| site.get(name).field("ETag").unwrap().to_owned();
    site.write("a", "one", 1000);
    let first = tag("/a");
    assert_eq!(tag("/a"), first);
    site.write("a", "four", 1000);
    let second = tag("/a");
    site.write("a", "four", 1001);
    let third = tag("/a");
    site.write("b", "four", 1001);
    fs::rename(site.path("b"), site.path("a")).unwrap();
    let fourth = tag("/a");
    let all = [first, second, third, fourth];
    for (index, one) in all.iter().enumerate() {
        assert!(all[index + 1..].iter().all(|other| other != one), "{all:?}");
    }
    // RFC 9110 section 8.8.2.1: not later than the answer.
    site.write("a", "", 4_000_000_000);
    let answer = site.get("/a");
    let year: u32 = answer.field("Last-Modified").unwrap()[12..16].parse().unwrap();
    assert!(year < 2096, "{year}");
}

#[test]
fn methods() {
    let site = Site::new(plain());
    site.write("a", "content", 1000);
    for line in ["OPTIONS /a", "OPTIONS *", "OPTIONS /none"] {
        let answer = site.ask(line, &[]);
        assert_eq!((answer.status(), answer.field("Allow")), (204, Some("GET, HEAD, OPTIONS")), "{line}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let answer = site.ask(&format!("{method} /a"), &[]);
        assert_eq!((answer.status(), answer.field("Allow")), (405, Some("GET, HEAD, OPTIONS")), "{method}");
    }
    for method in ["BREW", "get", "PROPFIND"] {
        assert_eq!(site.ask(&format!("{method} /a"), &[]).status(), 501, "{method}");
    }
    // However long the body would be, none of it is waited for.
    let post = "POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 50000000\r\n\r\n";
    let answer = site.send("POST", post);
    assert_eq!((answer.status(), answer.field("Allow")), (405, Some("GET, HEAD, OPTIONS")));
    assert_eq!(answer.field("Connection"), Some("close"));
    // RFC 9110 section 9.3.1: that of a GET says nothing, and costs nobody the connection.
    let get = "GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
    let answer = site.send("GET", get);
    assert_eq!((answer.status(), answer.field("Connection")), (200, None));
}

#[test]
fn what_is_not_served() {
    let site = Site::new(listed());
    site.write("a", "content", 1000);
    site.write("dir/b", "content", 1000);
    site.write(".hidden", "secret", 1000);
    site.write(".git/config", "secret", 1000);
    symlink("../secret", site.path("out")).unwrap();
    symlink("..", site.path("up")).unwrap();
    symlink("/etc", site.path("etc")).unwrap();
    symlink("loop", site.path("loop")).unwrap();
    let _socket = UnixListener::bind(site.path("socket")).unwrap();
    mkfifo(&site.path("fifo"), Mode::S_IRWXU).unwrap();
    let long = format!("/{}", "x".repeat(300));
    let missing = [
        "/none",
        "/a/",
        "/a/b",
        "/dir/none",
        "/out",
        "/up",
        "/up/",
        "/up/secret",
        "/etc/passwd",
        "/loop",
        "/socket",
        "/fifo",
        "/fifo/",
        "/.hidden",
        "/.git/",
        "/.git/config",
        "/.",
        "/..",
        "/../secret",
        "/%2e%2e/secret",
        "/dir/../a",
        "/dir/..%2fa",
        "/dir%2fb",
        "/a%00",
        "/a%00.html",
        "//",
        "//a",
        "/dir//b",
        "/dir/b/../../../secret",
        "/\\..\\secret",
        &long,
    ];
    for target in missing {
        let answer = site.get(target);
        assert_eq!(answer.status(), 404, "{target}: {}", String::from_utf8_lossy(&answer.body));
        assert!(!String::from_utf8_lossy(&answer.body).contains("secret"), "{target}");
    }
    for target in ["/%", "/%4", "/%zz", "/a%"] {
        assert_eq!(site.get(target).status(), 400, "{target}");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_forbidden() {
    let site = Site::new(plain());
    site.write("a", "content", 1000);
    fs::set_permissions(site.path("a"), fs::Permissions::from_mode(0o0)).unwrap();
    // Root may read it all the same.
    let expected = if File::open(site.path("a")).is_ok() { 200 } else { 403 };
    assert_eq!(site.get("/a").status(), expected);
}

#[test]
fn names_are_bytes() {
    let site = Site::new(plain());
    let names: [(&[u8], &str); 6] = [
        (b"a b", "/a%20b"),
        (b"\xff\xfe", "/%ff%fe"),
        ("caf\u{e9}".as_bytes(), "/caf%C3%A9"),
        (b"100%", "/100%25"),
        (b"a\\b", "/a\\b"),
        (b"a%2e", "/a%252e"),
    ];
    for (name, target) in names {
        site.write(OsStr::from_bytes(name), name, 1000);
        assert_eq!(site.get(target).body, name, "{target}");
        assert_eq!(site.get(&format!("http://host{target}")).body, name, "{target}");
    }
    symlink("a b", site.path("link")).unwrap();
    assert_eq!(site.get("/link").body, b"a b");
}

#[test]
fn directories() {
    let site = Site::new(plain());
    site.write("index.html", "root", 1000);
    site.write("dir/index.html", "inner", 1000);
    site.write("bare/file", "", 1000);
    site.write("a:b c/index.html", "odd", 1000);
    site.write("\\host/index.html", "odd", 1000);
    fs::create_dir_all(site.path("twisted/index.html")).unwrap();
    for (target, body) in [("/", "root"), ("/dir/", "inner"), ("http://h", "root"), ("/?a", "root")] {
        let answer = site.get(target);
        assert_eq!((answer.status(), answer.body.as_slice()), (200, body.as_bytes()), "{target}");
        assert_eq!(answer.field("Content-Type"), Some("text/html; charset=utf-8"));
    }
    let moved = [
        ("/dir", "./dir/"),
        ("/dir?a=b&c=/%20", "./dir/?a=b&c=/%20"),
        ("/dir?", "./dir/?"),
        ("/dir?<\"\u{e9}\\>", "./dir/?%3C%22%C3%A9%5C%3E"),
        ("/bare", "./bare/"),
        ("/a:b%20c", "./a%3Ab%20c/"),
        ("/%5chost", "./%5Chost/"),
        ("http://other/dir", "./dir/"),
    ];
    for (target, location) in moved {
        let answer = site.get(target);
        assert_eq!((answer.status(), answer.field("Location")), (301, Some(location)), "{target}");
    }
    for target in ["/bare/", "/twisted/", "/index.html/", "//dir", "//dir/"] {
        assert_eq!(site.get(target).status(), 404, "{target}");
    }
}

#[test]
fn lists() {
    let site = Site::new(listed());
    site.write("dir/zeta", "12345", 784_111_777);
    site.write("dir/<b>&\"x\".txt", vec![0; 2048], 1000);
    site.write("dir/sub/x", "", 1000);
    site.write("dir/.hidden", "", 1000);
    site.write("dir/a:b", "", 1000);
    site.write(Path::new("dir").join(OsStr::from_bytes(b"\xff")), "", 1000);
    symlink("zeta", site.path("dir/near")).unwrap();
    symlink("../../secret", site.path("dir/far")).unwrap();
    symlink("sub", site.path("dir/through")).unwrap();
    mkfifo(&site.path("dir/fifo"), Mode::S_IRWXU).unwrap();
    let answer = site.get("/dir/");
    assert_eq!((answer.status(), answer.field("Content-Type")), (200, Some("text/html; charset=utf-8")));
    assert!(answer.jobs == 1 && answer.field("Content-Security-Policy").is_some());
    let page = String::from_utf8(answer.body).unwrap();
    let links: Vec<_> = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let expected =
        ["../", "./sub/", "./through/", "./%3Cb%3E%26%22x%22.txt", "./a%3Ab", "./near", "./zeta", "./%FF"];
    assert_eq!(links, expected);
    for text in ["<h1>/dir/</h1>", "&lt;b&gt;&amp;&quot;x&quot;.txt", "2.0 KiB", "5 B", "06 Nov 1994 08:49"] {
        assert!(page.contains(text), "{text}: {page}");
    }
    for link in &links[1..] {
        let target = format!("/dir/{}", &link[2..]);
        assert_eq!(site.get(&target).status(), 200, "{target}");
    }
    assert!(!page.contains("not shown"));
    // By a thread, though everything is in memory now.
    let head = site.ask("HEAD /dir/", &[]);
    assert_eq!((head.status(), head.length(), head.jobs), (200, page.len(), 1));
    assert!(!String::from_utf8(site.get("/").body).unwrap().contains("../"));
}

#[test]
fn a_list_is_bounded() {
    let site = Site::new(listed());
    fs::create_dir(site.path("many")).unwrap();
    for number in 0..10_001 {
        File::create(site.path(format!("many/{number}"))).unwrap();
    }
    let page = String::from_utf8(site.get("/many/").body).unwrap();
    assert_eq!(page.matches("href=\"./").count(), 10_000);
    assert!(page.contains("not shown"));
}

#[test]
fn ranges() {
    let site = Site::new(plain());
    let content: Vec<u8> = (0..1000_u32).map(|number| number.to_le_bytes()[0]).collect();
    site.write("a.bin", &content, 784_111_777);
    let tag = site.get("/a.bin").field("ETag").unwrap().to_owned();
    let ask = |fields: &[&str]| site.ask("GET /a.bin", fields);
    for (range, span, shown) in [
        ("0-9", 0..10, "bytes 0-9/1000"),
        ("-10", 990..1000, "bytes 990-999/1000"),
        ("500-", 500..1000, "bytes 500-999/1000"),
    ] {
        let answer = ask(&[&format!("Range: bytes={range}\r\n")]);
        assert_eq!((answer.status(), answer.field("Content-Range")), (206, Some(shown)));
        assert_eq!(answer.body, content[span]);
        assert_eq!(answer.field("ETag"), Some(tag.as_str()));
        assert_eq!(answer.field("Vary"), Some("Accept-Encoding"));
    }
    let answer = ask(&["Range: bytes=1000-\r\n"]);
    assert_eq!((answer.status(), answer.field("Content-Range")), (416, Some("bytes */1000")));
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let range = "Range: bytes=0-0\r\n";
    for (fields, status) in [
        (vec!["Range: lines=1-2\r\n".to_owned()], 200),
        (vec!["Range: bytes=5-4\r\n".to_owned()], 200),
        (vec![range.to_owned(), range.to_owned()], 200),
        (vec![range.to_owned(), format!("If-Range: {tag}\r\n")], 206),
        (vec![range.to_owned(), format!("If-Range: W/{tag}\r\n")], 200),
        (vec![range.to_owned(), "If-Range: \"old\"\r\n".to_owned()], 200),
        (vec![range.to_owned(), format!("If-Range: {date}\r\n")], 206),
        (vec![range.to_owned(), format!("If-None-Match: {tag}\r\n")], 304),
        (vec!["Range: bytes=1000-\r\n".to_owned(), format!("If-None-Match: {tag}\r\n")], 304),
        (vec![range.to_owned(), "If-Match: \"old\"\r\n".to_owned()], 412),
    ] {
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        assert_eq!(ask(&fields).status(), status, "{fields:?}");
    }
    assert_eq!(site.ask("HEAD /a.bin", &[range]).status(), 200, "RFC 9110 section 14.2");
}

#[test]
fn several_ranges() {
    let site = Site::new(plain());
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251).to_le_bytes()[0]).collect();
    site.write("a.txt", &content, 1000);
    // The second is sent in several windows.
    let answer = site.ask("GET /a.txt", &["Range: bytes=0-9, 1000-2500000, -5\r\n"]);
    assert_eq!((answer.status(), answer.field("Content-Range")), (206, None));
    let kind = answer.field("Content-Type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap().to_owned();
    assert_eq!(boundary.len(), 32);
    let mut expected = Vec::new();
    for (first, last) in [(0, 9), (1000, 2_500_000), (2_999_995, 2_999_999)] {
        if !expected.is_empty() {
            expected.extend(b"\r\n");
        }
        expected.extend(format!("--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n").bytes());
        expected.extend(format!("Content-Range: bytes {first}-{last}/3000000\r\n\r\n").bytes());
        expected.extend(&content[first..=last]);
    }
    expected.extend(format!("\r\n--{boundary}--\r\n").bytes());
    assert!(answer.body == expected);
    let again = site.ask("GET /a.txt", &["Range: bytes=0-9, 1000-1001\r\n"]);
    assert!(!again.field("Content-Type").unwrap().contains(&boundary));
    let joined = site.ask("GET /a.txt", &["Range: bytes=0-9, 5-20\r\n"]);
    assert_eq!(joined.field("Content-Range"), Some("bytes 0-20/3000000"), "RFC 9110 section 15.3.7.2");
    let many: Vec<String> = (0..17).map(|number| format!("{0}-{0}", number * 1000)).collect();
    let answer = site.ask("GET /a.txt", &[&format!("Range: bytes={}\r\n", many.join(","))]);
    assert_eq!((answer.status(), answer.length()), (200, 3_000_000));
}

#[test]
fn large_files() {
    let site = Site::new(plain());
    for size in [16 * 1024, 16 * 1024 + 1, 1024 * 1024, 5_000_001] {
        let content: Vec<u8> = (0..size).map(|number: u32| (number % 251).to_le_bytes()[0]).collect();
        site.write("large", &content, 1000);
        assert!(site.get("/large").body == content, "{size}");
        let head = site.ask("HEAD /large", &[]);
        assert_eq!(head.length(), content.len());
        let part = site.ask("GET /large", &["Range: bytes=1-\r\n"]);
        assert!(part.status() == 206 && part.body == content[1..], "{size}");
    }
    site.write("empty", "", 1000);
    assert_eq!(site.get("/empty").length(), 0);
    assert_eq!(site.ask("HEAD /empty", &[]).length(), 0);
    assert_eq!(site.ask("GET /empty", &["Range: bytes=0-\r\n"]).status(), 416);
    assert_eq!(site.ask("GET /empty", &["Range: bytes=-1\r\n"]).status(), 200);
}

#[test]
fn files_that_are_compressed_already() {
    let site = Site::new(plain());
    site.write("a.html", "plain", 1000);
    site.write("a.html.gz", "gzipped", 1000);
    site.write("a.html.br", "brotli!!", 1001);
    site.write("stale.html", "plain", 1000);
    site.write("stale.html.gz", "stale", 999);
    site.write("odd.html", "plain", 1000);
    fs::create_dir(site.path("odd.html.gz")).unwrap();
    symlink("../secret", site.path("odd.html.br")).unwrap();
    site.write("alone.html.gz", "gzipped", 1000);
    site.write("index.html", "plain", 1000);
    site.write("index.html.zst", "zstandard", 1000);
    let cases = [
        ("/a.html", "gzip, deflate, br, zstd", Some("br"), "brotli!!"),
        ("/a.html", "gzip", Some("gzip"), "gzipped"),
        ("/a.html", "br;q=0, *", Some("gzip"), "gzipped"),
        ("/a.html", "br;q=0.5, gzip", Some("gzip"), "gzipped"),
        ("/a.html", "zstd", None, "plain"),
        ("/a.html", "", None, "plain"),
        ("/a.html", "identity;q=0", None, "plain"),
        ("/stale.html", "gzip", None, "plain"),
        ("/odd.html", "gzip, br", None, "plain"),
        ("/", "gzip, zstd", Some("zstd"), "zstandard"),
    ];
    let mut tags = Vec::new();
    for (target, accept, coding, body) in cases {
        let answer = site.ask(&format!("GET {target}"), &[&format!("Accept-Encoding: {accept}\r\n")]);
        assert_eq!(answer.field("Content-Encoding"), coding, "{target}, {accept}");
        assert_eq!(String::from_utf8_lossy(&answer.body), body, "{target}, {accept}");
        assert_eq!(answer.field("Content-Type"), Some("text/html; charset=utf-8"));
        assert_eq!(answer.field("Vary"), Some("Accept-Encoding"));
        tags.push(answer.field("ETag").unwrap().to_owned());
    }
    assert!(tags[0] != tags[1] && tags[1] != tags[4] && tags[4] == tags[5]);
    assert_eq!(site.ask("GET /alone.html", &["Accept-Encoding: gzip\r\n"]).status(), 404);
    let itself = site.get("/a.html.gz");
    assert_eq!(
        (itself.field("Content-Type"), itself.field("Content-Encoding")),
        (Some("application/gzip"), None)
    );
    // RFC 9110 section 14.2: of what was selected.
    let part = site.ask("GET /a.html", &["Accept-Encoding: gzip\r\n", "Range: bytes=0-3\r\n"]);
    assert_eq!(
        (part.body.as_slice(), part.field("Content-Range")),
        (b"gzip".as_slice(), Some("bytes 0-3/7"))
    );
    assert_eq!(part.field("Content-Encoding"), Some("gzip"));

    let without = Files::open(&site.path(""), FilesOptions { precompressed: false, ..plain() }).unwrap();
    let site = Site { files: without, ..site };
    let answer = site.ask("GET /a.html", &["Accept-Encoding: gzip\r\n"]);
    assert_eq!((answer.body.as_slice(), answer.field("Vary")), (b"plain".as_slice(), None));
}

/// A name that nobody has looked up cannot be told without the disk, and one that was served can.
#[test]
fn only_what_is_not_in_memory_takes_a_thread() {
    let site = Site::new(plain());
    site.write("a", "content", 1000);
    site.get("/a");
    let here = site.get("/a");
    assert_eq!((here.status(), here.jobs), (200, 0));
    let never = site.get("/never-heard-of");
    assert_eq!((never.status(), never.jobs), (404, 1));
}

/// Whether the kernel lets its copy go is for it to say; the answer is the same.
#[test]
fn content_that_is_not_in_memory_is_read_from_the_disk() {
    let site = Site::new(plain());
    let content = vec![b'x'; 10_000];
    site.write("a", &content, 1000);
    for _ in 0..3 {
        let file = File::open(site.path("a")).unwrap();
        file.sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert!(site.get("/a").body == content);
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert!(site.ask("GET /a", &["Range: bytes=1-9000\r\n"]).body == content[1..=9000]);
    }
}

proptest! {
    #[test]
    fn whatever_is_asked_nothing_is_told_that_is_not_served(
        target in "(/|//|a|dir|out|up|secret|\\.|\\.\\.|%2e|%2F|%00|%5c|\\\\|\\.git|~|%|\\?x=){1,12}",
        range in "(bytes=)?[0-9,-]{0,12}",
        tag in "(W/)?[\"*a]{0,4}",
        codings in "(gzip|br|\\*|;q=0|;q=1|,){0,6}",
    ) {
        let site = Site::new(listed());
        site.write("a", "content", 1000);
        site.write("a.gz", "content", 1000);
        site.write("dir/a", "content", 1000);
        site.write(".git/secret", "secret!", 1000);
        symlink("../secret", site.path("out")).unwrap();
        symlink("..", site.path("up")).unwrap();
        let fields = [
            format!("Range: {range}\r\n"), format!("If-None-Match: {tag}\r\n"), format!("If-Range: {tag}\r\n"),
            format!("Accept-Encoding: {codings}\r\n"),
        ];
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let answer = site.ask(&format!("GET /{target}"), &fields);
        prop_assert!(matches!(answer.status(), 200 | 206 | 301 | 304 | 400 | 404 | 416), "{}", answer.head);
        prop_assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
        if let Some(location) = answer.field("Location") {
            let path = location.split('?').next().unwrap();
            prop_assert!(path.starts_with("./") && !path.contains("//"), "{}", location);
        }
    }
}

#[test]
fn options_that_cannot_be() {
    let directory = tempfile::tempdir().unwrap();
    for (name, value) in
        [("a b", "c"), ("A", "b\r\nc"), ("ETag", "\"x\""), ("content-type", "a/b"), ("Date", "x")]
    {
        let fields = vec![(name.to_owned(), value.to_owned())];
        let error = Files::open(directory.path(), FilesOptions { fields, ..plain() }).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{name}");
    }
    let missing = Files::open(&directory.path().join("none"), plain()).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}
