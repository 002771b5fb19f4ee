//! A field that is the same in every answer, checked once, when the program is compiled. Not for what a request had a
//! part in: [`Response::header`] checks that each time.

use std::fmt;

#[cfg(doc)]
use super::Response;
use super::byte_set::{TOKEN, is_field_value};
use super::response::{HeaderError, RESERVED};

/// A field line (RFC 9110 section 5) that is known to be good, for [`Response::field_line`].
///
/// ```
/// use epoll_protocols::http1::{FieldLine, Request, Response};
///
/// const HTML: FieldLine = FieldLine::new("Content-Type: text/html; charset=utf-8");
///
/// fn answer(_: &Request<'_>, response: &mut Response) {
///     response.field_line(HTML);
///     response.set_static_body(b"<!doctype html><title>Hello</title>");
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FieldLine(&'static str);

impl FieldLine {
    /// `line` is `name: value`, under the rules of [`Response::header`].
    ///
    /// # Panics
    /// If it breaks one of them. Make it a constant, and it is the compiler that says so.
    #[must_use]
    #[expect(clippy::panic, reason = "the constant is wrong, and no program is made of it")]
    pub const fn new(line: &'static str) -> Self {
        match check(line.as_bytes()) {
            Ok(()) => Self(line),
            Err(HeaderError::Name) => panic!("what stands before the colon of a field line is not a token"),
            Err(HeaderError::Value) => {
                panic!("a field line has a control byte, or no space behind its colon")
            }
            Err(HeaderError::Reserved) => panic!("the framework writes this field itself"),
        }
    }

    /// Without the CRLF.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Debug for FieldLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

/// A line, as name and value.
const fn check(line: &[u8]) -> Result<(), HeaderError> {
    let Some(colon) = position(line, b':') else { return Err(HeaderError::Name) };
    let (name, after) = line.split_at(colon);
    match after {
        [b':', b' ', value @ ..] => check_field(name, value),
        // A bad name is told first.
        _ => match check_field(name, b"") {
            Ok(()) => Err(HeaderError::Value),
            Err(error) => Err(error),
        },
    }
}

/// The rules of [`Response::header`]. The compiler can apply them too.
pub(super) const fn check_field(name: &[u8], value: &[u8]) -> Result<(), HeaderError> {
    if name.is_empty() || !TOKEN.contains_all(name) {
        return Err(HeaderError::Name);
    }
    let mut reserved: &[&str] = &RESERVED;
    while let [first, rest @ ..] = reserved {
        if is_same(first.as_bytes(), name) {
            return Err(HeaderError::Reserved);
        }
        reserved = rest;
    }
    if is_field_value(value) { Ok(()) } else { Err(HeaderError::Value) }
}

const fn position(bytes: &[u8], wanted: u8) -> Option<usize> {
    let mut rest = bytes;
    while let [byte, after @ ..] = rest {
        if *byte == wanted {
            return Some(bytes.len() - rest.len());
        }
        rest = after;
    }
    None
}

const fn is_same(mut one: &[u8], mut other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    while let ([first, rest @ ..], [second, others @ ..]) = (one, other) {
        if !first.eq_ignore_ascii_case(second) {
            return false;
        }
        (one, other) = (rest, others);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::Response;
    use super::*;

    #[test]
    fn a_line_is_good_where_the_same_field_is() {
        let names = ["X-Fine", "Date", "dATe", "Dated", "connection", "", "a b", "a\r\nb", "caf\u{e9}", "TE"];
        let values = ["", "v", "a\tb", "a: b", "\u{e9}", "a\r\nb", "a\nb", "a\0b", "a\x7fb", " v"];
        for name in names {
            for value in values {
                let field = Response::new().header(name, value);
                assert_eq!(check(format!("{name}: {value}").as_bytes()), field, "{name:?} {value:?}");
            }
        }
        for bad in ["no colon", "X:no space", ":", ""] {
            assert!(check(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn it_is_sent_as_the_same_field_is() {
        let (mut line, mut field) = (Response::new(), Response::new());
        line.field_line(FieldLine::new("Retry-After: 1"));
        field.header("Retry-After", "1").unwrap();
        assert_eq!(line.fields, field.fields);
    }

    #[test]
    #[should_panic(expected = "writes this field itself")]
    fn what_is_not_a_constant_panics() {
        let _: FieldLine = FieldLine::new("Date: now");
    }
}
