//! Answers as a strict client reads them: whatever an RFC 9112 recipient could stumble over is an error. Bytes only; the
//! codec's own tests have it too, by its path.

/// One answer, as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) ends: Ends,
    /// Interim answers before it.
    pub(crate) interim: usize,
}

/// How the end of the body was known (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// There is no body, whatever the fields say.
    NoBody,
    Length,
    Chunked,
    Connection,
}

/// What is wrong with an answer, or that not all of it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Unfinished,
    Wrong(String),
}

type Read<'a, T> = Result<(T, &'a [u8]), Fault>;

fn wrong<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Wrong(what.into()))
}

impl Answer {
    /// Reads an answer from the front of `input`, that of a HEAD request if so; `ended` if no byte follows `input`.
    pub(crate) fn read(input: &[u8], to_head: bool, ended: bool) -> Read<'_, Self> {
        let (mut rest, mut interim) = (input, 0);
        loop {
            let (head, after) = read_head(rest)?;
            let (status, fields) = parse_head(head)?;
            if status >= 200 {
                let ends = ends(status, &fields, to_head)?;
                let (body, after) = read_body(after, ends, &fields, ended)?;
                let answer = Self { status, fields, body, ends, interim };
                answer.check()?;
                return Ok((answer, after));
            }
            if status != 100 || !fields.is_empty() || interim > 0 {
                return wrong(format!("an interim answer {status} with {fields:?}, after {interim}"));
            }
            (rest, interim) = (after, 1);
        }
    }

    /// Reads all that came on a connection: one answer for each of `to_head`, or fewer if the server has ended it. Every
    /// byte must belong to one, and none may follow the one that says it is the last.
    pub(crate) fn read_all(
        mut input: &[u8],
        to_head: impl IntoIterator<Item = bool>,
        ended: bool,
    ) -> Result<Vec<Self>, Fault> {
        let mut answers: Vec<Self> = Vec::new();
        let mut to_head = to_head.into_iter();
        while !input.is_empty() {
            if answers.last().is_some_and(Self::is_last) {
                return wrong(format!("{} bytes after the last answer", input.len()));
            }
            let Some(to_head) = to_head.next() else {
                return wrong(format!(
                    "{} bytes that nobody asked for: {}",
                    input.len(),
                    input.escape_ascii()
                ));
            };
            let (answer, rest) = Self::read(input, to_head, ended)?;
            answers.push(answer);
            input = rest;
        }
        Ok(answers)
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Whether it says that the connection ends.
    pub(crate) fn is_last(&self) -> bool {
        self.field("connection") == Some("close")
    }

    /// What must hold of every final answer of this server.
    fn check(&self) -> Result<(), Fault> {
        let date = self.field("date").unwrap_or_default();
        if date.len() != 29 || !date.ends_with(" GMT") {
            return wrong(format!("RFC 9110 6.6.1: Date: {date:?}"));
        }
        for once in ["date", "content-length", "transfer-encoding", "connection"] {
            if self.fields.iter().filter(|(name, _)| name == once).count() > 1 {
                return wrong(format!("{once} twice"));
            }
        }
        if !matches!(self.field("connection"), None | Some("close" | "keep-alive")) {
            return wrong(format!("Connection: {:?}", self.field("connection")));
        }
        if self.ends == Ends::Connection && !self.is_last() {
            return wrong("the body ends with the connection, which is said to go on");
        }
        Ok(())
    }
}

/// Up to and with the empty line. No line may end otherwise than in CRLF.
fn read_head(input: &[u8]) -> Read<'_, &str> {
    if !b"HTTP/1.1 ".starts_with(&input[..input.len().min(9)]) {
        return wrong(format!("no status line: {}", input[..input.len().min(60)].escape_ascii()));
    }
    let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Err(Fault::Unfinished);
    };
    let (head, rest) = input.split_at(end + 4);
    let bare = |(at, byte): (usize, &u8)| match byte {
        b'\r' => head.get(at + 1) != Some(&b'\n'),
        b'\n' => head[at - 1] != b'\r',
        b'\t' | b' '..=b'~' => false,
        _ => true,
    };
    if head.iter().enumerate().any(bare) {
        return wrong(format!("a bad byte in {}", head.escape_ascii()));
    }
    Ok((std::str::from_utf8(head).unwrap(), rest))
}

fn parse_head(head: &str) -> Result<(u16, Vec<(String, String)>), Fault> {
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let status_line = lines.next().unwrap_or_default().strip_prefix("HTTP/1.1 ").unwrap_or_default();
    // RFC 9112 section 4: the space before an absent reason stays.
    let status = match status_line.split_at_checked(3) {
        Some((digits, reason)) if reason.starts_with(' ') => digits.parse().unwrap_or(0),
        _ => 0,
    };
    if !(100..600).contains(&status) {
        return wrong(format!("status line {status_line:?}"));
    }
    let mut fields = Vec::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return wrong(format!("field line {line:?}")) };
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let value = value.strip_prefix(' ').unwrap_or(value);
        if name.is_empty() || !name.bytes().all(token) || value != value.trim() {
            return wrong(format!("field line {line:?}"));
        }
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    Ok((status, fields))
}

/// RFC 9112 section 6.3, and what a server must not send at all.
fn ends(status: u16, fields: &[(String, String)], to_head: bool) -> Result<Ends, Fault> {
    let all = |wanted: &str| -> Vec<&str> {
        fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
    };
    match (status, to_head, all("transfer-encoding").as_slice(), all("content-length").as_slice()) {
        (_, _, [_, ..], [_, ..]) => wrong("RFC 9112 6.2: both Transfer-Encoding and Content-Length"),
        (204, _, [], []) => Ok(Ends::NoBody),
        (204, ..) => wrong("RFC 9110 8.6, RFC 9112 6.1: a 204 that tells of a body"),
        (205, _, [], ["0"]) => Ok(Ends::Length),
        (205, ..) => wrong("RFC 9110 15.3.6: a 205 that is not known to be empty"),
        (304, _, [], _) => Ok(Ends::NoBody),
        (304, ..) => wrong("RFC 9112 6.1: allowed in a 304, and of no use but to confuse"),
        (_, true, [] | ["chunked"], _) => Ok(Ends::NoBody),
        (_, false, ["chunked"], []) => Ok(Ends::Chunked),
        (_, false, [], [length]) if length.parse::<u64>().is_ok_and(|it| it.to_string() == *length) => {
            Ok(Ends::Length)
        }
        (_, false, [], []) => Ok(Ends::Connection),
        (.., codings, lengths) => wrong(format!("framing by {codings:?} and {lengths:?}")),
    }
}

fn read_body<'a>(input: &'a [u8], ends: Ends, fields: &[(String, String)], ended: bool) -> Read<'a, Vec<u8>> {
    match ends {
        Ends::NoBody => Ok((Vec::new(), input)),
        Ends::Chunked => read_chunks(input),
        Ends::Connection if ended => Ok((input.to_vec(), &[])),
        Ends::Connection => Err(Fault::Unfinished),
        Ends::Length => {
            let length = fields.iter().find(|(name, _)| name == "content-length").unwrap().1.parse().unwrap();
            let (body, rest) = input.split_at_checked(length).ok_or(Fault::Unfinished)?;
            Ok((body.to_vec(), rest))
        }
    }
}

/// RFC 9112 section 7.1, without what this server has no reason to send: extensions, trailers and leading zeros.
fn read_chunks(input: &[u8]) -> Read<'_, Vec<u8>> {
    let (mut body, mut rest) = (Vec::new(), input);
    loop {
        let Some(end) = rest.iter().take(18).position(|byte| *byte == b'\r') else {
            return if rest.len() < 18 { Err(Fault::Unfinished) } else { wrong("a chunk without a size") };
        };
        let digits = std::str::from_utf8(&rest[..end]).unwrap_or_default();
        let size = usize::from_str_radix(digits, 16).unwrap_or(usize::MAX);
        if format!("{size:x}") != digits {
            return wrong(format!("a chunk of {digits:?}"));
        }
        let data = rest.get(end + 2..).and_then(|data| data.split_at_checked(size));
        let (data, after) = data.ok_or(Fault::Unfinished)?;
        let crlf = after.get(..2).ok_or(Fault::Unfinished)?;
        if rest[end + 1] != b'\n' || crlf != b"\r\n" {
            return wrong("a line of a chunk that does not end in CRLF");
        }
        rest = &after[2..];
        if size == 0 {
            return Ok((body, rest));
        }
        body.extend_from_slice(data);
    }
}
