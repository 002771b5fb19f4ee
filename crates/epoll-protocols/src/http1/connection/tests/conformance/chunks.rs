//! The chunked coding: RFC 9112 section 7.1. The limits are those of `small_limits`: 30 bytes of body, 8 of extensions,
//! 20 of trailers.

use super::*;

fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

#[test]
fn chunks_that_are_read() {
    let fine = |section, name, body: &str, read: &str| {
        goes_on(section, name, chunked(body), &[&format!("200 [POST / {read}]")])
    };
    let open = |name, body: &str| case("7.1", name, chunked(body), &[""; 0], After::Open(Stage::Body));
    let (twenty, thirty) = ("01234567890123456789", "012345678901234567890123456789");
    check(
        &small_limits(),
        &[
            fine("7.1", "nothing", "0\r\n\r\n", ""),
            fine("7.1", "one chunk", "5\r\nhello\r\n0\r\n\r\n", "hello"),
            fine("7.1", "some chunks", "2\r\nhe\r\n1\r\nl\r\n2\r\nlo\r\n0\r\n\r\n", "hello"),
            fine("7.1", "either case", "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", twenty),
            fine("7.1", "leading zeros", "0005\r\nhello\r\n0000\r\n\r\n", "hello"),
            fine("7.1", "sixteen digits", "0000000000000005\r\nhello\r\n0\r\n\r\n", "hello"),
            fine("7.1", "data like framing", "5\r\n0\r\n\r\n\r\n0\r\n\r\n", r"0\r\n\r\n"),
            fine("7.1", "as much as may be", &format!("1e\r\n{thirty}\r\n0\r\n\r\n"), thirty),
            fine("7.1.1", "an extension", "5;a=b\r\nhello\r\n0\r\n\r\n", "hello"),
            fine("7.1.1", "a quoted one", "5;a=\"b\"\r\nhello\r\n0\r\n\r\n", "hello"),
            fine("7.1.1", "without a value, at the end too", "5;a\r\nhello\r\n0;b\r\n\r\n", "hello"),
            fine("7.1.1", "as much as may be", "5;123\r\nhello\r\n0;123\r\n\r\n", "hello"),
            fine("7.1.2", "a trailer", "5\r\nhello\r\n0\r\nA: b\r\n\r\n", "hello"),
            fine("7.1.2", "without a value", "5\r\nhello\r\n0\r\nA:\r\nB: c\r\n\r\n", "hello"),
            fine("7.1.2", "as much as may be", "0\r\nA: 456789012345678\r\n\r\n", ""),
            fine(
                "RFC 9110 6.5.1",
                "a length in the trailers means nothing",
                "0\r\nContent-Length: 9\r\n\r\n",
                "",
            ),
            fine("RFC 9110 6.5.1", "nor a coding", "0\r\nTransfer-Encoding:\r\n\r\n", ""),
            fine("RFC 9110 6.5.1", "nor a host", "0\r\nHost: evil\r\n\r\n", ""),
            fine("RFC 9110 6.5.1", "nor an end", "0\r\nConnection:close\r\n\r\n", ""),
            fine("RFC 9110 6.5.1", "nor an expectation", "0\r\nExpect: x\r\n\r\n", ""),
            open("no size yet", ""),
            open("half a size", "5"),
            open("half a line end", "5\r"),
            open("half the data", "5\r\nhel"),
            open("no line end behind the data", "5\r\nhello"),
            open("no last chunk", "5\r\nhello\r\n"),
            open("a last chunk without its end", "5\r\nhello\r\n0\r\n"),
            open("trailers without their end", "5\r\nhello\r\n0\r\nA: b\r\n"),
        ],
    );
}

#[test]
fn chunks_that_are_refused() {
    use Rejection::{BodyTooLarge, Chunk};
    let bad = |section, name, body: &str, status, rejection| {
        refused(section, name, chunked(body), status, rejection)
    };
    let mut cases = Vec::new();
    for (name, size) in [
        ("no size", ""),
        ("no digit", "g"),
        ("0x", "0x5"),
        ("a sign", "+5"),
        ("a minus", "-5"),
        ("a minus, for zero", "-0"),
        ("a space before", " 5"),
        ("a tab before", "\t5"),
        ("a space behind", "5 "),
        ("a tab behind", "5\t"),
        ("a space before an extension", "5 ;a"),
        ("a dot", "5.0"),
        ("a mark between", "1_0"),
        ("a comma", "5,5"),
        ("quoted", "\"5\""),
        ("NUL", "5\0"),
        ("only an extension", ";a=b"),
        ("an extension without a semicolon", "5 a"),
        ("digits that are no ASCII", "\u{665}"),
        ("seventeen digits", "00000000000000005"),
        ("a bare CR", "5\r"),
    ] {
        cases.push(bad("7.1", name, &format!("{size}\r\nhello\r\n0\r\n\r\n"), 400, Chunk));
    }
    for (name, body) in [
        ("bare LF behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("bare LF behind the data", "5\r\nhello\n0\r\n\r\n"),
        ("bare CR behind the size", "5\rhello\r\n0\r\n\r\n"),
        ("bare CR behind the data", "5\r\nhello\r0\r\n\r\n"),
        ("no line end behind the data", "5\r\nhello0\r\n\r\n"),
        ("two line ends behind the data", "5\r\nhello\r\n\r\n0\r\n\r\n"),
        ("data longer than said", "4\r\nhello\r\n0\r\n\r\n"),
        ("data shorter than said", "6\r\nhello\r\n0\r\n\r\n"),
        ("bare LF for all", "5\nhello\n0\n\n"),
        ("LF CR", "5\n\rhello\r\n0\r\n\r\n"),
        ("bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n"),
        ("bare CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("NUL in an extension", "5;a\0\r\nhello\r\n0\r\n\r\n"),
        ("delete in an extension", "5;a\x7f\r\nhello\r\n0\r\n\r\n"),
        ("bare LF in a quoted extension", "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n"),
        ("a byte more of extensions than may be", "5;12345678\r\nhello\r\n0\r\n\r\n"),
        ("a byte more than may be, in all", "5;123\r\nhello\r\n0;1234\r\n\r\n"),
        ("an extension without an end", "5;;;;;;;;;;;;;;;;;;;;;;;;;;;"),
    ] {
        cases.push(bad(if body.contains(';') { "7.1.1" } else { "7.1" }, name, body, 400, Chunk));
    }
    let many = format!("1e\r\n{}\r\n1\r\n", "012345678901234567890123456789");
    for (name, body) in [
        ("a byte more than may be", "1f\r\n"),
        ("in all", many.as_str()),
        ("2^63", "8000000000000000\r\n"),
        ("2^64 - 1", "ffffffffffffffff\r\n"),
        ("2^64", "10000000000000000\r\n"),
        ("2^64 + 5, which could be taken for 5", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("2^32 + 5, which could be taken for 5", "100000005\r\nhello\r\n0\r\n\r\n"),
    ] {
        cases.push(bad("RFC 9110 15.5.14", name, body, 413, BodyTooLarge));
    }
    check(&small_limits(), &cases);
}

#[test]
fn trailers_that_are_refused() {
    use Rejection::{Trailer, TrailersTooLarge};
    let bad = |name, lines: &str, section, status, rejection| {
        refused(section, name, chunked(&format!("5\r\nhello\r\n0\r\n{lines}")), status, rejection)
    };
    let mut cases = vec![
        bad("a byte more than may be", "A: 4567890123456789\r\n\r\n", "RFC 6585 5", 431, TrailersTooLarge),
        bad("many", &format!("{}\r\n", "A: b\r\n".repeat(9)), "RFC 6585 5", 431, TrailersTooLarge),
        bad("a name without an end", &"A".repeat(40), "RFC 6585 5", 431, TrailersTooLarge),
    ];
    for (name, lines) in [
        ("no colon", "A b\r\n\r\n"),
        ("no name", ": b\r\n\r\n"),
        ("a space before the colon", "A : b\r\n\r\n"),
        ("a space before", " A: b\r\n\r\n"),
        ("folded", "A: b\r\n c\r\n\r\n"),
        ("NUL", "A: \0\r\n\r\n"),
        ("bare CR", "A: b\rc\r\n\r\n"),
        ("bare LF", "A: b\n\r\n"),
        ("bare LF at the end", "\n"),
        ("bare CR at the end", "\rX"),
        ("a request", "GET / HTTP/1.1\r\n\r\n"),
    ] {
        cases.push(bad(name, lines, "7.1.2", 400, Trailer));
    }
    check(&small_limits(), &cases);
}
