//! Field lines, Host, and Connection: RFC 9112 sections 3.2, 5 and 9, RFC 9110 sections 5 and 7.

use super::*;

#[test]
fn field_lines() {
    use Rejection::{Header, NotHttp};
    let fine = |section, name, fields: &str| goes_on(section, name, get(fields), &["200 [GET / ]"]);
    let bad = |section, name, fields: &str| refused(section, name, get(fields), 400, Header);
    let first = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}Host: h\r\n\r\n");
    let bytes = |value: &[u8]| [b"GET / HTTP/1.1\r\nHost: h\r\nA: b", value, b"c\r\n\r\n"].concat();
    let mut cases = vec![
        fine("5", "no space", "A:b\r\n"),
        fine("5", "much space around the value", "A: \t b \t \r\n"),
        fine("5", "no value", "A:\r\n"),
        fine("5", "only space", "A: \t\r\n"),
        fine("5", "a colon in the value", "A: b:c\r\n"),
        fine("5", "a colon at its start", "A::b\r\n"),
        fine("RFC 9110 5.1", "every mark of a token in the name", "!#$%&'*+-.^_`|~: b\r\n"),
        fine("RFC 9110 5.1", "digits in the name", "1: b\r\n"),
        fine("RFC 9110 5.3", "repeats", "A: b\r\nA: c\r\na: d\r\n"),
        bad("5.1", "a space before the colon", "A : b\r\n"),
        bad("5.1", "a tab before the colon", "A\t: b\r\n"),
        bad("5.1", "Content-Length with a space", "Content-Length : 5\r\n"),
        bad("5.1", "Transfer-Encoding with a space", "Transfer-Encoding : chunked\r\n"),
        bad("5.1", "Transfer-Encoding with a tab", "Transfer-Encoding\t: chunked\r\n"),
        bad("5.2", "folded with a space", "A: b\r\n c\r\n"),
        bad("5.2", "folded with a tab", "A: b\r\n\tc\r\n"),
        bad("5.2", "folded into nothing", "A: b\r\n \r\n"),
        bad("5.2", "Transfer-Encoding folded", "Transfer-Encoding:\r\n chunked\r\n"),
        bad("5", "no colon", "A\r\n"),
        bad("5", "no name", ": b\r\n"),
        bad("5", "a space for a name", " : b\r\n"),
        bad("5", "a space before the name", " A: b\r\n"),
        bad("5", "a space in the name", "A B: c\r\n"),
        bad("5", "brackets in the name", "A(B): c\r\n"),
        bad("5", "a slash in the name", "A/B: c\r\n"),
        bad("5", "a quote in the name", "\"A\": c\r\n"),
        bad("5", "NUL in the name", "A\0: b\r\n"),
        bad("5", "a letter that is no ASCII in the name", "\u{e9}: b\r\n"),
        bad("5", "a bare CR in the name", "A\rB: c\r\n"),
        bad("RFC 9110 5.5", "a bare CR in the value", "A: b\rc\r\n"),
        bad("RFC 9110 5.5", "a bare CR at its end", "A: b\r\r\n"),
        bad("RFC 9110 5.5", "a bare CR before what could be a field", "A: b\rContent-Length: 5\r\n"),
        bad("RFC 9110 5.5", "NUL for a value", "A:\0\r\n"),
        refused("2.2", "space before the first field", first(" A: b\r\n"), 400, Header),
        refused("2.2", "a tab before the first field", first("\tA: b\r\n"), 400, Header),
        refused("2.2", "only space before the first field", first(" \r\n"), 400, Header),
        refused("5", "a request line for a field", get("GET / HTTP/1.1\r\n"), 400, Header),
        refused("2.2", "a stray body", "{\"a\": 1}\r\n\r\n", 400, NotHttp),
    ];
    for byte in (0..=8).chain(14..32).chain([0x0b, 0x0c, 0x7f]) {
        cases.push(refused("RFC 9110 5.5", "a control byte in the value", bytes(&[byte]), 400, Header));
    }
    for byte in [b'\t', 0x80, 0xff, 0xe9] {
        cases.push(goes_on("RFC 9110 5.5", "obs-text, or a tab", bytes(&[byte]), &["200 [GET / ]"]));
    }
    check(&small_limits(), &cases);
}

#[test]
fn hosts() {
    use Rejection::Host;
    let named = |version, host: &str| format!("GET / HTTP/{version}\r\nHost: {host}\r\n\r\n");
    let good = " h a.b-c h:80 h: 127.0.0.1:8080 [::1] [::ffff:1.2.3.4]:80 a_b %41 ~a!";
    let bad =
        "a/b http://h a@b u:p@h h:x h:-1 h:1:2 a?b a#b [::1 ::1 [] [::g] [::1]x [::1]:x a\\b a\"b a<b \u{e9}";
    let mut cases: Vec<Case> = Vec::new();
    for host in good.split(' ') {
        cases.push(goes_on("RFC 9110 7.2", "a host", named("1.1", host), &["200 [GET / ]"]));
    }
    for host in bad.split(' ').chain(["a b", "a\tb", "a, b"]) {
        for version in ["1.1", "1.0"] {
            cases.push(refused("3.2", "no host", named(version, host), 400, Host));
        }
    }
    let (bare, in_target) = ("GET / HTTP/1.1\r\n\r\n", "GET http://h/ HTTP/1.1\r\n");
    cases.extend([
        refused("3.2", "missing", bare, 400, Host),
        refused("3.2", "missing, with a host in the target", format!("{in_target}\r\n"), 400, Host),
        refused("3.2", "bad beside a good target", format!("{in_target}Host: a b\r\n\r\n"), 400, Host),
        refused("3.2", "repeated", get("Host: h\r\n"), 400, Host),
        refused("3.2", "repeated, different", get("hOsT: other\r\n"), 400, Host),
        refused("3.2", "repeated, empty", get("Host:\r\n"), 400, Host),
        refused("3.2", "repeated in 1.0", "GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n", 400, Host),
        last("3.2", "absent from 1.0", "GET / HTTP/1.0\r\n\r\n", &["200 [GET / ]"]),
        last("3.2", "empty in 1.0", "GET / HTTP/1.0\r\nHost:\r\n\r\n", &["200 [GET / ]"]),
        goes_on("RFC 9110 5.1", "in any case", "GET / HTTP/1.1\r\nhOST: h\r\n\r\n", &["200 [GET / ]"]),
    ]);
    check(&small_limits(), &cases);
}

/// RFC 9112 section 9.3. What the answer says is checked by [`play`]: an end is told if and only if it is one.
#[test]
fn persistence() {
    let fields = [
        ("no Connection", "", true, false),
        ("close", "Connection: close\r\n", false, false),
        ("close in another case", "cONNECTION: Close\r\n", false, false),
        ("keep-alive", "Connection: keep-alive\r\n", true, true),
        ("keep-alive in another case", "Connection: Keep-Alive\r\n", true, true),
        ("in a list", "Connection: a, close,b\r\n", false, false),
        ("in a list with empty elements", "Connection: , ,CLOSE\r\n", false, false),
        ("in a list with tabs", "Connection: a\t,\tkeep-alive\r\n", true, true),
        ("in the first of two fields", "Connection: close\r\nConnection: a\r\n", false, false),
        ("in the second of two fields", "Connection: a\r\nConnection: keep-alive\r\n", true, true),
        ("close outweighs keep-alive", "Connection: keep-alive, close\r\n", false, false),
        ("in whichever order", "Connection: close\r\nConnection: keep-alive\r\n", false, false),
        ("no more than a part of a token", "Connection: closed, xclose\r\n", true, false),
        ("no token, but quoted", "Connection: \"keep-alive\"\r\n", true, false),
        ("empty", "Connection:\r\n", true, false),
        ("Keep-Alive is another field", "Keep-Alive: timeout=5\r\n", true, false),
        ("Proxy-Connection is none", "Proxy-Connection: keep-alive\r\n", true, false),
    ];
    let mut cases = Vec::new();
    for (name, fields, new_stays, old_stays) in fields {
        for (version, stays) in [("1.1", new_stays), ("1.0", old_stays)] {
            for (method, body, said) in
                [("GET", "", ""), ("POST", "Content-Length: 2\r\n", "hi"), ("HEAD", "", "")]
            {
                let input = format!("{method} /p HTTP/{version}\r\nHost: h\r\n{fields}{body}\r\n{said}");
                let head = method == "HEAD";
                let seen = if head { "HEAD 200".to_owned() } else { format!("200 [{method} /p {said}]") };
                let after = if stays { After::Open(Stage::Idle) } else { After::Closed };
                cases.push(case("9.3", name, input, &[seen], after));
            }
        }
    }
    check(&small_limits(), &cases);
    // RFC 9112 appendix C.2.2: a client of 1.0 is told that it goes on, and one of 1.1 need not be.
    for (version, told) in [("1.0", 1), ("1.1", 0)] {
        let input = format!("GET / HTTP/{version}\r\nHost: h\r\nConnection: keep-alive\r\n\r\n");
        let mut driver = Driver::new(small_limits());
        driver.receive(input.as_bytes());
        assert_eq!(driver.sent().matches("Connection: keep-alive\r\n").count(), told, "{version}");
    }
}
