//! The tests' own reader of answers is strict: what a recipient could stumble over does not pass.

use super::answers::{Answer, Ends, Fault};

const START: &str = "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

fn read(input: &str, to_head: bool, ended: bool) -> Result<Vec<Answer>, Fault> {
    Answer::read_all(input.as_bytes(), [to_head; 3], ended)
}

#[test]
fn good_answers_are_read_to_their_ends() {
    let cases = [
        ("Content-Length: 2\r\n\r\nhi", false, Ends::Length, "hi"),
        ("Content-Length: 0\r\n\r\n", false, Ends::Length, ""),
        (
            "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nb\r\nhello world\r\n0\r\n\r\n",
            false,
            Ends::Chunked,
            "hihello world",
        ),
        ("Content-Length: 2\r\n\r\n", true, Ends::NoBody, ""),
        ("Transfer-Encoding: chunked\r\n\r\n", true, Ends::NoBody, ""),
        ("\r\n", true, Ends::NoBody, ""),
    ];
    for (rest, to_head, ends, body) in cases {
        let input = format!("{START}{rest}");
        let twice = input.repeat(2);
        let answers = read(&twice, to_head, false).unwrap();
        assert_eq!((answers.len(), answers[1].ends, answers[1].body.as_slice()), (2, ends, body.as_bytes()));
        for end in 1..input.len() {
            assert_eq!(read(&input[..end], to_head, false), Err(Fault::Unfinished), "{:?}", &input[..end]);
        }
    }
    let to_end = format!("{START}Connection: close\r\n\r\nhi");
    assert_eq!(read(&to_end, false, false), Err(Fault::Unfinished));
    assert_eq!(read(&to_end, false, true).unwrap()[0].ends, Ends::Connection);
    let interim = format!("HTTP/1.1 100 Continue\r\n\r\n{START}Content-Length: 0\r\n\r\n");
    assert_eq!(read(&interim, false, false).unwrap()[0].interim, 1);
}

#[test]
fn whatever_is_odd_is_a_fault() {
    let bad = [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        "Content-Length: 02\r\n\r\nhi",
        "Content-Length: +2\r\n\r\nhi",
        "Content-Length:\r\n\r\n",
        "Content-Length: 2, 2\r\n\r\nhi",
        "Content-Length : 2\r\n\r\nhi",
        "Content-Length: 2 \r\n\r\nhi",
        "Content-Length: 2\r\n folded\r\n\r\nhi",
        "Content-Length: 2\nA: b\r\n\r\nhi",
        "Content-Length: 2\r\nA: b\rc\r\n\r\nhi",
        "Content-Length: 2\r\nA: b\0\r\n\r\nhi",
        "Content-Length: 2\r\nnothing\r\n\r\nhi",
        "Content-Length: 1\r\n\r\nhi",
        "Content-Length: 0\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n",
        "Content-Length: 0\r\nConnection: upgrade\r\n\r\n",
        "Content-Length: 0\r\nConnection: close\r\nConnection: close\r\n\r\n",
        "Content-Length: 0\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n02\r\nhi\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2;a\r\nhi\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nB\r\nhello world\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhi0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nhi\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nhi\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nrest",
        "\r\nhi",
    ];
    for rest in bad {
        let seen = read(&format!("{START}{rest}"), false, true);
        assert!(matches!(seen, Err(Fault::Wrong(_))), "{rest:?}: {seen:?}");
    }
    let date = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
    for whole in [
        "HTTP/1.0 200 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 20 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 2000 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 200\r\n\r\n".to_owned(),
        format!("\r\n{START}Content-Length: 0\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        format!("HTTP/1.1 204 No Content\r\n{date}Content-Length: 0\r\n\r\n"),
        format!("HTTP/1.1 204 No Content\r\n{date}Transfer-Encoding: chunked\r\n\r\n"),
        format!("HTTP/1.1 304 Not Modified\r\n{date}Transfer-Encoding: chunked\r\n\r\n"),
        format!("HTTP/1.1 304 Not Modified\r\n{date}Content-Length: 2\r\n\r\nhi"),
        format!("HTTP/1.1 205 Reset Content\r\n{date}Content-Length: 2\r\n\r\nhi"),
        format!("HTTP/1.1 205 Reset Content\r\n{date}\r\n"),
        "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned(),
        format!("HTTP/1.1 100 Continue\r\n{date}\r\n"),
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(2),
    ] {
        assert!(matches!(read(&whole, false, true), Err(Fault::Wrong(_))), "{whole:?}");
    }
    let four = format!("{START}Content-Length: 0\r\n\r\n").repeat(4);
    assert!(matches!(read(&four, false, false), Err(Fault::Wrong(_))), "one more than was asked for");
    let body = format!("{START}Content-Length: 2\r\n\r\nhi");
    assert!(matches!(read(&body, true, false), Err(Fault::Wrong(_))), "a body in an answer to HEAD");
}
