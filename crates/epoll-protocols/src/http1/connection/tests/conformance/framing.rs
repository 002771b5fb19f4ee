//! Where a body ends, and who could be made to disagree: RFC 9112 sections 6.1 to 6.3 and 11.2, RFC 9110 section 8.6.

use super::*;

fn post(rest: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\n{rest}")
}

#[test]
fn content_length() {
    use Rejection::{BodyTooLarge, ContentLength};
    let fine = |name, fields: &str, body: &str| {
        let seen = format!("200 [POST / {}]", body.escape_default());
        goes_on("RFC 9110 8.6", name, post(&format!("{fields}\r\n{body}")), &[&seen])
    };
    let repeated = "Content-Length: 2\r\nA: b\r\ncontent-length: 2\r\n";
    let in_get = "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
    let mut cases = vec![
        goes_on("6.3", "rule 7: none of them, no body", post("\r\n"), &["200 [POST / ]"]),
        fine("nothing", "Content-Length: 0\r\n", ""),
        fine("something", "Content-Length: 5\r\n", "hello"),
        fine("in any case", "cONTENT-lENGTH: 5\r\n", "hello"),
        fine("space around it", "Content-Length: \t5 \r\n", "hello"),
        fine("leading zeros", "Content-Length: 0005\r\n", "hello"),
        fine("as much as may be", "Content-Length: 30\r\n", "012345678901234567890123456789"),
        fine("a body that looks like a request", "Content-Length: 18\r\n", "GET / HTTP/1.1\r\n\r\n"),
        fine("rule 5: repeated, and equal", repeated, "hi"),
        goes_on("RFC 9110 9.3.1", "a body where none is expected", in_get, &["200 [GET / hello]"]),
        last("6.3", "in 1.0", "POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", &["200 [POST / hi]"]),
        case("6.3", "not all", post("Content-Length: 5\r\n\r\nhell"), &[""; 0], After::Open(Stage::Body)),
    ];
    let bad = [
        ("a sign", "+5"),
        ("a minus", "-5"),
        ("minus nothing", "-0"),
        ("a list", "5, 5"),
        ("a list without space", "5,5"),
        ("a list that differs", "5,6"),
        ("an empty element", "5,"),
        ("a space in it", "1 0"),
        ("hexadecimal", "0x5"),
        ("hexadecimal digits", "a"),
        ("a fraction", "5.0"),
        ("an exponent", "1e1"),
        ("a grouping mark", "1_0"),
        ("a suffix", "5b"),
        ("quoted", "\"5\""),
        ("empty", ""),
        ("a parameter", "5;a=b"),
        ("digits that are no ASCII", "\u{665}"),
        ("2^64", "18446744073709551616"),
        ("2^64 + 5", "18446744073709551621"),
        ("more than any number", "99999999999999999999999999"),
    ];
    for (name, value) in bad {
        let input = post(&format!("Content-Length: {value}\r\n\r\nhello"));
        cases.push(refused("6.3", name, input, 400, ContentLength));
    }
    for (name, first, second) in [
        ("they differ", "5", "6"),
        ("they differ in their zeros", "5", "05"),
        ("the second is bad", "5", "+5"),
        ("the first is bad", "", "5"),
        ("the second is a list", "5", "5, 5"),
    ] {
        let input = post(&format!("Content-Length: {first}\r\nContent-Length: {second}\r\n\r\nhello"));
        cases.push(refused("6.3", name, input, 400, ContentLength));
    }
    for value in ["31", "9223372036854775807", "9223372036854775808", "18446744073709551615"] {
        let input = post(&format!("Content-Length: {value}\r\n\r\n0123456789012345678901234567890"));
        cases.push(refused("RFC 9110 15.5.14", "more than may be", input, 413, BodyTooLarge));
    }
    check(&small_limits(), &cases);
}

const CHUNKS: &str = "\r\n3\r\nabc\r\n0\r\n\r\n";

#[test]
fn transfer_encoding() {
    use Rejection::{TransferEncoding, UnknownCoding};
    let field = |value: &str| post(&format!("Transfer-Encoding: {value}\r\n{CHUNKS}"));
    let not_the_end = [
        ("identity, which is no more", "identity"),
        ("a coding and no chunks", "gzip"),
        ("chunked and then another", "chunked, gzip"),
        ("chunked and then identity", "chunked, identity"),
        ("chunked twice", "chunked, chunked"),
        ("chunked twice without space", "chunked,chunked"),
        ("chunked around another", "chunked, gzip, chunked"),
        ("an empty element behind", "chunked,"),
        ("a parameter", "chunked;a=b"),
        ("a parameter behind a space", "chunked ;a=b"),
        ("quoted", "\"chunked\""),
        ("quoted otherwise", "'chunked'"),
        ("a letter more before", "xchunked"),
        ("a letter more behind", "chunkedx"),
        ("a word more", "chunked x"),
        ("another word before", "x chunked"),
        ("a dash", "-chunked"),
        ("an equals sign", "=chunked"),
        ("a colon", ": chunked"),
        ("empty", ""),
        ("only commas", ",,"),
        ("a K that is none", "chun\u{212a}ed"),
        ("obs-text behind", "chunked\u{a0}"),
    ];
    let unknown = [
        ("gzip", "gzip, chunked"),
        ("without space", "gzip,chunked"),
        ("with tabs", "gzip\t,\tchunked"),
        ("two", "deflate, gzip, chunked"),
        ("identity", "identity, chunked"),
        ("nobody's", "x-secret, Chunked"),
        ("with a parameter", "gzip;q=1, chunked"),
        ("quoted", "\"gzip\", chunked"),
        ("an empty element", ", chunked"),
        ("a coding with a space in it", "g zip, chunked"),
    ];
    let any_case = post(&format!("tRANSFER-eNCODING: cHUNKED\r\n{CHUNKS}"));
    let mut cases = vec![
        goes_on("6.1", "chunked", field("chunked"), &["200 [POST / abc]"]),
        goes_on("6.1", "with space around it", field(" \t chunked \t"), &["200 [POST / abc]"]),
        goes_on("6.1", "in any case", any_case, &["200 [POST / abc]"]),
    ];
    for (name, value) in not_the_end {
        cases.push(refused("6.3", name, field(value), 400, TransferEncoding));
    }
    for (name, value) in unknown {
        cases.push(refused("6.1", name, field(value), 501, UnknownCoding));
    }
    for (name, first, second, rejection, status) in [
        ("chunked twice, in two fields", "chunked", "chunked", TransferEncoding, 400),
        ("another behind, in two fields", "chunked", "gzip", TransferEncoding, 400),
        ("identity behind, in two fields", "chunked", "identity", TransferEncoding, 400),
        ("an empty one behind", "chunked", "", TransferEncoding, 400),
        ("another before, in two fields", "gzip", "chunked", UnknownCoding, 501),
        ("an empty one before", "", "chunked", UnknownCoding, 501),
    ] {
        let input = field(&format!("{first}\r\nTransfer-Encoding: {second}"));
        cases.push(refused("6.1", name, input, status, rejection));
    }
    for value in ["chunked", "gzip", "identity", "gzip, chunked", ""] {
        for rest in ["", "Content-Length: 3\r\n", "Connection: keep-alive\r\n"] {
            let input = format!("POST / HTTP/1.0\r\nTransfer-Encoding: {value}\r\n{rest}{CHUNKS}");
            cases.push(refused("6.1", "in 1.0", input, 400, TransferEncoding));
        }
    }
    check(&small_limits(), &cases);
}

/// The requests that smuggle another: RFC 9112 section 11.2.
#[test]
fn both_at_once() {
    use Rejection::{Header, TransferEncoding};
    let mut cases = Vec::new();
    for coding in ["chunked", "gzip", "gzip, chunked", "identity", "", "xchunked"] {
        for length in ["0", "3", "13", "", "x", "5, 5", "99999999999999999999"] {
            let coding = format!("Transfer-Encoding: {coding}\r\n");
            let length = format!("Content-Length: {length}\r\n");
            for fields in [format!("{coding}{length}"), format!("{length}A: b\r\n{coding}")] {
                let input = post(&format!("{fields}{CHUNKS}"));
                cases.push(refused("6.1", "a length and a coding", input, 400, TransferEncoding));
            }
        }
    }
    let smuggled = "\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: h\r\n\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cl_te = post(&format!("Content-Length: {}\r\n{chunked}{smuggled}", smuggled.len() - 2));
    let te_cl = |coding: &str| post(&format!("{coding}\r\nContent-Length: 4\r\n{smuggled}"));
    let no_body =
        "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nGET GET /2 HTTP/1.1\r\nHost: h\r\n\r\n";
    let (no_length, no_coding) = ("Connection: Content-Length\r\n", "Connection: Transfer-Encoding\r\n");
    let no_length = post(&format!("{no_length}Content-Length: 4\r\n\r\nGET "));
    let no_coding = post(&format!("{no_coding}{chunked}{CHUNKS}"));
    cases.extend([
        refused("11.2", "CL.TE", cl_te, 400, TransferEncoding),
        refused("11.2", "TE.CL", te_cl("Transfer-Encoding: chunked"), 400, TransferEncoding),
        refused("11.2", "hidden by a space", te_cl("Transfer-Encoding : chunked"), 400, Header),
        refused("11.2", "hidden by a vertical tab", te_cl("Transfer-Encoding: \x0bchunked"), 400, Header),
        refused("11.2", "hidden by a fold", te_cl("A: b\r\n Transfer-Encoding: chunked"), 400, Header),
        refused("11.2", "hidden by a bare CR", te_cl("A: b\rTransfer-Encoding: chunked"), 400, Header),
        refused("11.2", "hidden by NUL", te_cl("Transfer-Encoding\0: chunked"), 400, Header),
        goes_on("11.2", "CL.0: a body is one in a GET too", no_body, &["200 [GET / GET ]", "200 [GET /2 ]"]),
        goes_on("RFC 9110 7.6.1", "Connection takes no length away", no_length, &["200 [POST / GET ]"]),
        goes_on("RFC 9110 7.6.1", "nor a coding", no_coding, &["200 [POST / abc]"]),
    ]);
    check(&small_limits(), &cases);
}
