//! The request line, and what comes before it: RFC 9112 sections 2.2 to 3.2, RFC 9110 sections 2.5 and 15.

use super::*;

fn with_host(line: &str) -> String {
    format!("{line}\r\nHost: h\r\n\r\n")
}

#[test]
fn targets() {
    use Rejection::{Method, RequestLine, Target};
    let good = |section, name, line: &str| {
        let mut words = line.split(' ');
        let seen = format!("200 [{} {} ]", words.next().unwrap(), words.next().unwrap());
        goes_on(section, name, with_host(line), &[&seen])
    };
    let bad = |section, name, line: &str, status, rejection| {
        refused(section, name, with_host(line), status, rejection)
    };
    check(
        &small_limits(),
        &[
            good("3.2.1", "origin form", "GET /a/b HTTP/1.1"),
            good("3.2.1", "with a query", "GET /a?b=c?d HTTP/1.1"),
            good("3.2.1", "with an empty query", "GET /? HTTP/1.1"),
            good("3.2.1", "with two slashes", "GET //a HTTP/1.1"),
            good("3.2.1", "percent-encoded, not decoded", "GET /%00%0d%0a HTTP/1.1"),
            bad("3.2.1", "no slash", "GET a HTTP/1.1", 400, Target),
            bad("3.2.1", "empty path, a query", "GET ?a HTTP/1.1", 400, Target),
            bad("3.2.1", "a fragment", "GET /a#b HTTP/1.1", 400, Target),
            good("3.2.2", "absolute form", "GET http://h/a HTTP/1.1"),
            good("3.2.2", "with another host than Host", "GET http://other:81/a HTTP/1.1"),
            good("3.2.2", "without a path", "GET http://h HTTP/1.1"),
            good("3.2.2", "without a path, with a query", "GET http://h?a HTTP/1.1"),
            good("3.2.2", "of https, in any case", "GET HTTPS://h/ HTTP/1.1"),
            good("3.2.2", "an address literal", "GET http://[::1]:80/ HTTP/1.1"),
            bad("RFC 9110 4.2.1", "no host", "GET http:///a HTTP/1.1", 400, Target),
            bad("RFC 9110 4.2.1", "a port and no host", "GET http://:80/ HTTP/1.1", 400, Target),
            bad("RFC 9110 4.2.4", "userinfo", "GET http://u:p@h/ HTTP/1.1", 400, Target),
            bad("3.2.2", "another scheme", "GET ftp://h/ HTTP/1.1", 400, Target),
            bad("3.2.2", "no scheme", "GET ://h/ HTTP/1.1", 400, Target),
            bad("3.2.2", "one slash", "GET http:/h/ HTTP/1.1", 400, Target),
            bad("3.2.2", "a port that is no number", "GET http://h:x/ HTTP/1.1", 400, Target),
            bad("3.2.2", "a fragment", "GET http://h/#a HTTP/1.1", 400, Target),
            bad("3.2.3", "authority form to CONNECT: no proxy", "CONNECT h:443 HTTP/1.1", 501, Method),
            bad("3.2.3", "without a port", "CONNECT h HTTP/1.1", 400, Target),
            bad("3.2.3", "with an empty port", "CONNECT h: HTTP/1.1", 400, Target),
            bad("3.2.3", "CONNECT in origin form", "CONNECT / HTTP/1.1", 400, Target),
            bad("3.2.3", "CONNECT in absolute form", "CONNECT http://h:1/ HTTP/1.1", 400, Target),
            bad("3.2.3", "CONNECT in asterisk form", "CONNECT * HTTP/1.1", 400, Target),
            bad("3.2.3", "authority form to others", "GET h:443 HTTP/1.1", 400, Target),
            bad("3.2.3", "authority form to OPTIONS", "OPTIONS h:443 HTTP/1.1", 400, Target),
            good("3.2.4", "asterisk form", "OPTIONS * HTTP/1.1"),
            good("3.2.4", "OPTIONS in origin form", "OPTIONS /a HTTP/1.1"),
            bad("3.2.4", "asterisk form to others", "GET * HTTP/1.1", 400, Target),
            bad("3.2.4", "more than an asterisk", "OPTIONS ** HTTP/1.1", 400, Target),
            bad("3.2.4", "options in another case", "options * HTTP/1.1", 400, Target),
            bad("3.2", "no target", "GET  HTTP/1.1", 400, RequestLine),
            bad("3.2", "NUL", "GET /\0 HTTP/1.1", 400, RequestLine),
            bad("3.2", "tab", "GET /\t HTTP/1.1", 400, RequestLine),
            bad("3.2", "delete", "GET /\x7f HTTP/1.1", 400, RequestLine),
            good("RFC 9110 9.1", "a method nobody knows", "BREW /pot HTTP/1.1"),
            good("RFC 9110 9.1", "case matters, and is kept", "get /a HTTP/1.1"),
            good("RFC 9110 5.6.2", "every mark of a token", "!#$%&'*+-.^_`|~ / HTTP/1.1"),
            bad("RFC 9110 9.3.8", "no echo of secrets", "TRACE / HTTP/1.1", 501, Method),
            good("RFC 9110 9.3.8", "trace is no TRACE", "trace / HTTP/1.1"),
        ],
    );
}

#[test]
fn lines_and_spaces() {
    use Rejection::{BareLineFeed, NotHttp, RequestLine};
    let line = |name, line: &str| refused("3", name, with_host(line), 400, RequestLine);
    let odd = |section, name, input: &str, rejection| refused(section, name, input, 400, rejection);
    let two =
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n";
    check(
        &small_limits(),
        &[
            goes_on(
                "2.2",
                "an empty line before",
                "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
                &["200 [GET / ]"],
            ),
            goes_on("2.2", "one behind a body, as of old", two, &["200 [POST / x]", "200 [GET /2 ]"]),
            goes_on("2.2", "nothing", "", &[]),
            goes_on("2.2", "only empty lines", "\r\n\r\n\r\n\r\n", &[]),
            odd("2.2", "too many empty lines", "\r\n\r\n\r\n\r\n\r\nGET", NotHttp),
            case("2.2", "half an empty line", "\r", &[""; 0], After::Open(Stage::Head)),
            odd("2.2", "a bare LF before", "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", NotHttp),
            odd("2.2", "a bare CR before", "\rGET / HTTP/1.1\r\nHost: h\r\n\r\n", NotHttp),
            odd("2.2", "a space before", " GET / HTTP/1.1\r\nHost: h\r\n\r\n", NotHttp),
            odd("2.2", "a byte order mark before", "\u{feff}GET / HTTP/1.1\r\nHost: h\r\n\r\n", NotHttp),
            odd("2.2", "NUL before", "\0GET / HTTP/1.1\r\nHost: h\r\n\r\n", NotHttp),
            odd("2.2", "bare LF all over", "GET / HTTP/1.1\nHost: h\n\n", BareLineFeed),
            odd("2.2", "bare LF after the request line", "GET / HTTP/1.1\nHost: h\r\n\r\n", BareLineFeed),
            odd("2.2", "bare LF after a field", "GET / HTTP/1.1\r\nHost: h\n\r\n", BareLineFeed),
            odd("2.2", "bare LF for the empty line", "GET / HTTP/1.1\r\nHost: h\r\n\n", BareLineFeed),
            odd("2.2", "LF CR", "GET / HTTP/1.1\n\rHost: h\r\n\r\n", BareLineFeed),
            odd("2.2", "bare CR after the request line", "GET / HTTP/1.1\rHost: h\r\n\r\n", RequestLine),
            odd("2.2", "CR CR LF", "GET / HTTP/1.1\r\r\nHost: h\r\n\r\n", RequestLine),
            odd("3", "a TLS handshake", "\x16\x03\x01\x02\0\x01", NotHttp),
            line("two spaces before the target", "GET  / HTTP/1.1"),
            line("two spaces before the version", "GET /  HTTP/1.1"),
            line("a space at the end", "GET / HTTP/1.1 "),
            line("a tab for a space", "GET\t/ HTTP/1.1"),
            line("a space in the target", "GET /a b HTTP/1.1"),
            line("a vertical tab for a space", "GET\x0b/ HTTP/1.1"),
            line("a no-break space for a space", "GET\u{a0}/ HTTP/1.1"),
            line("no version", "GET /"),
            line("only a method", "GET"),
            line("four words", "GET / HTTP/1.1 HTTP/1.1"),
            refused("3.1", "a method that is no token", with_host("G(T / HTTP/1.1"), 400, RequestLine),
            refused("3.1", "a colon in the method", with_host("GET: / HTTP/1.1"), 400, RequestLine),
            refused("3.1", "NUL in the method", with_host("G\0T / HTTP/1.1"), 400, RequestLine),
        ],
    );
}

#[test]
fn versions() {
    use Rejection::{Header, Host, RequestLine, Version};
    let named = |version: &str| with_host(&format!("GET / {version}"));
    let newer = |minor: u8| {
        let input = named(&format!("HTTP/1.{minor}"));
        goes_on("RFC 9110 2.5", "a higher minor version is 1.1", input, &["200 [GET / ]"])
    };
    let mut cases: Vec<Case> = (2..=9).map(newer).collect();
    for version in ["HTTP/0.9", "HTTP/0.0", "HTTP/2.0", "HTTP/2.1", "HTTP/3.0", "HTTP/9.9"] {
        cases.push(refused("RFC 9110 15.6.6", "another major version", named(version), 505, Version));
    }
    let none = "HTTP/1.10 HTTP/1.01 HTTP/01.1 HTTP/11 HTTP/1. HTTP/.1 HTTP/1,1 HTTP/1 http/1.1 Http/1.1 HTTPS/1.1 \
        HTTP/1.1a HTTP/1.x HTTP/-1.1 HTTP/1.-1 HTCPCP/1.0 HTTP HTTP/ /1.1 1.1";
    for version in none.split(' ').chain(["HTTP/ 1.1", "HTTP /1.1"]) {
        cases.push(refused("2.3", "no version", named(version), 400, RequestLine));
    }
    let chunked = "POST / HTTP/1.2\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    cases.extend([
        last("RFC 9110 2.5", "1.0, which ends", "GET / HTTP/1.0\r\n\r\n", &["200 [GET / ]"]),
        goes_on("RFC 9110 2.5", "1.2 has what 1.1 has", chunked, &["200 [POST / x]"]),
        refused("RFC 9110 2.5", "and owes what 1.1 owes", "GET / HTTP/1.2\r\n\r\n", 400, Host),
        refused("RFC 9110 2.5", "with no other grammar", "GET / HTTP/1.9\r\nA : b\r\n\r\n", 400, Header),
        refused("RFC 9113 3.4", "the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, Version),
        refused("3", "HTTP/0.9", "GET /\r\n\r\n", 400, RequestLine),
    ]);
    check(&small_limits(), &cases);
}

/// The limits are those of `small_limits`: 200 bytes of head, 40 of target, 6 fields.
#[test]
fn sizes() {
    use Rejection::{HeadTooLarge, TargetTooLong, TooManyHeaders};
    let target = |length: usize| format!("/{}", "a".repeat(length - 1));
    let line = |length: usize| with_host(&format!("GET {} HTTP/1.1", target(length)));
    let answer = format!("200 [GET {} ]", target(40));
    // A head of exactly so many bytes.
    let head = |length: usize| get(&format!("A: {}\r\n", "b".repeat(length - get("A: \r\n").len())));
    check(
        &small_limits(),
        &[
            goes_on("3", "as long as a target may be", line(40), &[&answer]),
            refused("3", "a byte longer", line(41), 414, TargetTooLong),
            refused("3", "without an end", format!("GET {}", target(196)), 414, TargetTooLong),
            refused("3", "a method without an end", "G".repeat(200), 414, TargetTooLong),
            case("3", "not yet", "G".repeat(199), &[""; 0], After::Open(Stage::Head)),
            goes_on("RFC 6585 5", "as long as a head may be", head(200), &["200 [GET / ]"]),
            refused("RFC 6585 5", "a byte longer", head(201), 431, HeadTooLarge),
            refused("RFC 6585 5", "a field without an end", head(300), 431, HeadTooLarge),
            refused("RFC 6585 5", "a field name without an end", get(&"A".repeat(200)), 431, HeadTooLarge),
            goes_on("RFC 6585 5", "as many fields as may be", get(&"A: b\r\n".repeat(5)), &["200 [GET / ]"]),
            refused("RFC 6585 5", "one more", get(&"A: b\r\n".repeat(6)), 431, TooManyHeaders),
        ],
    );
}
