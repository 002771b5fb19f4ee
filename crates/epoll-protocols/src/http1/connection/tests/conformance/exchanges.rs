//! Methods, expectations, statuses and pipelines: RFC 9110 sections 9, 10.1.1 and 15, RFC 9112 section 9.3.2.

use super::super::driver::limits;
use super::*;

fn request(method: &str, target: &str, rest: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{rest}\r\n")
}

/// What the strict reader makes of it counts: a body where none may be would be taken for the next answer.
#[test]
fn answers_without_a_body() {
    let mut cases = Vec::new();
    for status in [200, 201, 404, 500] {
        let target = format!("/status={status}");
        let (head, same) = (format!("HEAD {status}"), format!("{status} [GET {target} ]"));
        cases.push(goes_on("RFC 9110 9.3.2", "HEAD", request("HEAD", &target, ""), &[&head]));
        cases.push(goes_on("RFC 9110 15", "a final status", request("GET", &target, ""), &[&same]));
    }
    for status in [204, 205, 304] {
        for words in ["", ",flow=10:3", ",sized=10:3", ",parts", ",file=10"] {
            let target = format!("/status={status}{words}");
            for method in ["GET", "POST", "HEAD"] {
                let seen = if method == "HEAD" { format!("HEAD {status}") } else { format!("{status} ") };
                let input = request(method, &target, "");
                cases.push(goes_on("RFC 9110 15", "a status without content", input, &[&seen]));
            }
        }
    }
    for status in [100, 101, 199, 600, 999] {
        let target = format!("/status={status}");
        let seen = format!("500 [GET {target} ]");
        cases.push(goes_on("RFC 9110 15", "no final status", request("GET", &target, ""), &[&seen]));
    }
    for words in ["flow=10:3", "sized=10:3", "parts", "file=10", "later", "job"] {
        let head = request("HEAD", &format!("/{words}"), "");
        cases.push(goes_on("RFC 9110 9.3.2", "HEAD of every body", head, &["HEAD 200"]));
    }
    let two = format!("{}hi{}", request("HEAD", "/", "Content-Length: 2\r\n"), request("GET", "/2", ""));
    cases.push(goes_on("RFC 9110 9.3.2", "HEAD with a body", two, &["HEAD 200", "200 [GET /2 ]"]));
    check(&limits(), &cases);
}

/// RFC 9110 section 8.6: what HEAD tells of the length is what GET tells, or nothing.
#[test]
fn head_tells_what_get_tells() {
    let targets = "status=200 status=404 later job parts file=10 flow=10:3 flow=10:3,status=404 sized=10:3 \
        sized=10:3,status=404 status=205 status=304 later,flow=10:3 job,sized=10:3 flow=10:3,status=304";
    for words in targets.split_whitespace() {
        for version in ["1.1", "1.0"] {
            let told = |method: &str| {
                let mut driver = Driver::new(limits());
                driver.receive(format!("{method} /{words} HTTP/{version}\r\nHost: h\r\n\r\n").as_bytes());
                let answers = driver.answers(&[method == "HEAD"]).unwrap();
                let field = |name| answers[0].field(name).map(str::to_owned);
                (answers[0].status, field("content-length"), field("transfer-encoding"))
            };
            let (got, mut head) = (told("GET"), told("HEAD"));
            // Bodies that say the method are a letter longer.
            if !["parts", "file", "flow", "sized", "205"].iter().any(|word| words.contains(word)) {
                head.1 = head.1.map(|length| (length.parse::<usize>().unwrap() - 1).to_string());
            }
            assert_eq!(head, got, "{words} in {version}");
        }
    }
}

/// What is answered at last. Whether `100` comes before depends on how the input comes, and is tested below.
#[test]
fn expectations() {
    use Rejection::{BodyTooLarge, Expectation, Host, Service};
    const SECTION: &str = "RFC 9110 10.1.1";
    let wait = "Expect: 100-continue\r\n";
    let post = |target: &str, rest: &str| {
        format!("{}hi", request("POST", target, &format!("{rest}Content-Length: 2\r\n")))
    };
    let fine = |name, rest: &str| goes_on(SECTION, name, post("/", rest), &["200 [POST / hi]"]);
    let other = |name, rest: &str| refused(SECTION, name, post("/", rest), 417, Expectation);
    let chunked = request("POST", "/", &format!("{wait}Transfer-Encoding: chunked\r\n"));
    let old = "POST / HTTP/1.0\r\nExpect: the-worst\r\nContent-Length: 2\r\n\r\nhi";
    let large = request("POST", "/", &format!("{wait}Content-Length: 31\r\n"));
    let bad = format!("POST / HTTP/1.1\r\n{wait}Content-Length: 2\r\n\r\nhi");
    check(
        &small_limits(),
        &[
            fine("with a length", wait),
            fine("in any case", "eXPECT: 100-CONTINUE\r\n"),
            fine("twice the same", &wait.repeat(2)),
            goes_on(SECTION, "with chunks", format!("{chunked}2\r\nhi\r\n0\r\n\r\n"), &["200 [POST / hi]"]),
            goes_on(SECTION, "without a body", request("POST", "/", wait), &["200 [POST / ]"]),
            last(SECTION, "any in 1.0 is ignored", old, &["200 [POST / hi]"]),
            other("another", "Expect: 200-ok\r\n"),
            other("empty", "Expect:\r\n"),
            other("a part of it", "Expect: 100-continu\r\n"),
            other("more than it", "Expect: 100-continued\r\n"),
            other("with a parameter", "Expect: 100-continue;a=b\r\n"),
            other("in a list with another", "Expect: 100-continue, x\r\n"),
            other("before another", "Expect: 100-continue\r\nExpect: x\r\n"),
            other("behind another", "Expect: x\r\nExpect: 100-continue\r\n"),
            refused(
                SECTION,
                "another, without a body",
                request("POST", "/", "Expect: x\r\n"),
                417,
                Expectation,
            ),
            refused(SECTION, "for a body that is too large", large, 413, BodyTooLarge),
            refused(SECTION, "for a body that is not wanted", post("/no=403", wait), 403, Service(403)),
            refused(SECTION, "for one that is not wanted later", post("/in,full=1", wait), 507, Service(507)),
            refused(SECTION, "with a status that none is", post("/no=100", wait), 500, Service(100)),
            refused(SECTION, "with no content", post("/no=204", wait), 204, Service(204)),
            refused("3.2", "in a bad request", bad, 400, Host),
        ],
    );
}

#[test]
fn continue_is_sent_to_who_waits_and_to_nobody_else() {
    let wait = "Expect: 100-continue\r\n";
    let sized = format!("{wait}Content-Length: 2\r\n");
    let chunked = format!("{wait}Transfer-Encoding: chunked\r\n");
    let behind = format!("{}{}", request("GET", "/", ""), request("POST", "/", &sized));
    let cases = [
        ("with a length", request("POST", "/", &sized), "", true),
        ("with chunks", request("POST", "/", &chunked), "", true),
        ("streamed in", request("POST", "/in", &sized), "", true),
        ("streamed in, in chunks", request("POST", "/in", &chunked), "", true),
        ("behind another request", behind, "", true),
        ("1.2", request("POST", "/", &sized).replace("HTTP/1.1", "HTTP/1.2"), "", true),
        ("the body has begun", request("POST", "/", &sized), "h", false),
        ("the body is here", request("POST", "/", &sized), "hi", false),
        ("a chunk has begun", request("POST", "/", &chunked), "2", false),
        ("streamed in, and begun", request("POST", "/in", &sized), "h", false),
        ("no body", request("POST", "/", wait), "", false),
        ("a body of nothing", request("POST", "/", &format!("{wait}Content-Length: 0\r\n")), "", false),
        ("nobody waits", request("POST", "/", "Content-Length: 2\r\n"), "", false),
        ("1.0", format!("POST / HTTP/1.0\r\n{sized}\r\n"), "", false),
        ("too large", request("POST", "/", &format!("{wait}Content-Length: 31\r\n")), "", false),
        ("too large to stream", request("POST", "/in,most=1", &sized), "", false),
        ("not wanted", request("POST", "/no=403", &sized), "", false),
        ("not wanted, in chunks", request("POST", "/no=403", &chunked), "", false),
        ("another expectation", request("POST", "/", &format!("Expect: x\r\n{sized}")), "", false),
    ];
    for (name, head, body, sent) in cases {
        let mut driver = Driver::new(small_limits());
        driver.receive(format!("{head}{body}").as_bytes());
        let interim = |driver: &Driver| {
            driver.sink.sent.windows(CONTINUE.len()).filter(|window| *window == CONTINUE).count()
        };
        assert_eq!(interim(&driver), usize::from(sent), "{name}");
        if sent {
            driver.receive(if head.contains("chunked") { b"2\r\nhi\r\n0\r\n\r\n" } else { b"hi" });
            assert_eq!(interim(&driver), 1, "{name}: once");
            let answers = driver.answers(&[]).unwrap();
            let answer = answers.last().unwrap();
            assert_eq!((answer.status, answer.interim), (200, 1), "{name}");
        } else if name.starts_with("not wanted") || name.starts_with("too large") {
            assert_eq!(driver.answers(&[]).unwrap()[0].interim, 0, "{name}: the final answer at once");
        }
    }
}

#[test]
fn pipelines() {
    let get = |target: &str| request("GET", target, "");
    let post = |target: &str, body: &str| {
        format!("{}{body}", request("POST", target, &format!("Content-Length: {}\r\n", body.len())))
    };
    let mixed = [
        get("/1"),
        post("/2", "two"),
        request("HEAD", "/3", ""),
        format!("{}3\r\nfou\r\n1\r\nr\r\n0\r\n\r\n", request("PUT", "/4", "Transfer-Encoding: chunked\r\n")),
        "\r\n".to_owned(),
        get("/later,5"),
        get("/flow=10:4"),
        get("/job,7"),
        post("/in,8", "eight"),
        get("/status=204"),
        get("/last"),
        get("/never"),
    ];
    let answers = [
        "200 [GET /1 ]",
        "200 [POST /2 two]",
        "HEAD 200",
        "200 [PUT /4 four]",
        "200 [GET /later,5 ]",
        "200 abcdefghij",
        "200 [GET /job,7 ]",
        "200 [POST /in,8 eight]",
        "204 ",
        "200 [GET /last ]",
    ];
    let many: Vec<String> = (0..20).map(|number| format!("200 [GET /{number} ]")).collect();
    let all: String = (0..20).map(|number| get(&format!("/{number}"))).collect();
    let part = format!("{}{}GET /3 HTT", get("/1"), get("/2"));
    let bad = format!("{}GET /2\r\n\r\n{}", get("/1"), get("/3"));
    let two = ["200 [GET /1 ]", "200 [GET /2 ]"];
    check(
        &limits(),
        &[
            last("9.3.2", "in order, whatever they are", mixed.concat(), &answers),
            case("9.3.2", "many", all, &many, After::Open(Stage::Idle)),
            case("9.3.2", "and a part of one", part, &two, After::Open(Stage::Head)),
            case("9.6", "a refusal", bad, &[two[0], "400 "], After::Refused(Rejection::RequestLine)),
        ],
    );
}

#[test]
fn a_connection_has_so_many_requests_and_the_last_is_told() {
    for last in ["/2", "/later", "/flow=10:3", "/job", "/parts"] {
        let mut driver = Driver::new(HttpLimits { requests: 2, ..limits() });
        let requests = [request("GET", "/1", ""), request("GET", last, ""), request("GET", "/never", "")];
        driver.receive(requests.concat().as_bytes());
        let answers = driver.answers(&[]).unwrap();
        assert_eq!((answers.len(), driver.connection.answered()), (2, 2), "{last}");
        assert!(answers[1].is_last() && !answers[0].is_last(), "{last}");
        assert_eq!(driver.fate, Some(Fate::Closed(None)), "{last}");
    }
}
