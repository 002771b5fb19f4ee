//! The answer to a request whose file has been found: its fields, and which part of it is sent. Not which file that is.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use epoll_reactor::{FileSlice, Lookup};

use super::super::response::Part;
use super::super::{Request, Response};
use super::conditions::{Validators, Verdict, date_of, evaluate, only};
use super::encodings::Coding;
use super::lookup::{Found, Refused};
use super::ranges::{Span, Wanted, wanted};
use super::{Files, field};

/// Content up to this many bytes is read and sent with its head. At 16 KiB that costs 8.1 µs of CPU from the lookup to
/// the last byte in the socket, against 9.0 µs for a head and a sendfile(2) behind it; at 32 KiB they are even (Linux
/// 6.18, loopback).
const SMALL: u64 = 16 * 1024;

/// A file as it is sent.
#[derive(Debug)]
pub(super) struct Representation {
    pub(super) found: Found,
    /// Of the content before it was coded.
    pub(super) media_type: Cow<'static, str>,
    pub(super) coding: Option<Coding>,
}

impl Representation {
    /// The tag is strong: content that differs has another size, or was written at another time, or lies in another
    /// file. (Not if one file is written twice within one tick of the kernel's clock, and read in between. Nobody can
    /// tell then.) It names the coding, too: two names may stand for one file.
    fn validators(&self) -> Validators {
        let Found { size, inode, seconds, nanoseconds, .. } = self.found;
        let coding = self.coding.map_or("", Coding::name);
        let tag = format!("\"{size:x}-{seconds:x}.{nanoseconds:x}-{inode:x}{coding}\"");
        // RFC 9110 section 8.8.2.1: never later than the answer itself.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let modified = date_of(u64::try_from(seconds).unwrap_or(0).min(now));
        Validators { tag, modified }
    }
}

/// What a name says of the content. `text/*` is UTF-8: nobody writes anything else any more, and a browser must not
/// have to guess.
pub(super) fn media_type(path: &Path) -> Cow<'static, str> {
    match mime_guess::from_path(path).first_raw() {
        Some(text) if text.starts_with("text/") => Cow::Owned(format!("{text}; charset=utf-8")),
        Some(other) => Cow::Borrowed(other),
        None => Cow::Borrowed("application/octet-stream"),
    }
}

/// Answers a GET or a HEAD.
pub(super) fn answer(
    files: &Files,
    representation: Representation,
    request: &Request<'_>,
    response: &mut Response,
    lookup: Lookup,
) -> Result<(), Refused> {
    let validators = representation.validators();
    let size = representation.found.size;
    let wanted = match evaluate(request, &validators) {
        Verdict::Unchanged => {
            // RFC 9110 section 15.4.5: what the 200 would have had, if it is about caching.
            response.set_status(304);
            field(response, "ETag", &validators.tag);
            vary(files, response);
            own(files, response);
            return Ok(());
        }
        Verdict::Failed => {
            response.set_status(412);
            vary(files, response);
            return Ok(());
        }
        Verdict::Proceed { ranges: true } => {
            only(request, "range").map_or(Wanted::Whole, |field| wanted(field, size))
        }
        Verdict::Proceed { ranges: false } => Wanted::Whole,
    };
    match wanted {
        Wanted::Spans(spans) => match spans.as_slice() {
            [span] => return one(files, representation, &validators, *span, response, lookup),
            // RFC 9110 section 15.3.7.2. `Content-Encoding` would be said of the multipart body, which is not coded.
            spans if representation.coding.is_none() => {
                several(files, representation, &validators, spans, response);
                return Ok(());
            }
            _ => {}
        },
        Wanted::Unsatisfiable => {
            response.set_status(416);
            field(response, "Content-Range", format!("bytes */{size}"));
            field(response, "Accept-Ranges", "bytes");
            vary(files, response);
            return Ok(());
        }
        Wanted::Whole => {}
    }
    whole(files, representation, &validators, request, response, lookup)
}

fn whole(
    files: &Files,
    representation: Representation,
    validators: &Validators,
    request: &Request<'_>,
    response: &mut Response,
    lookup: Lookup,
) -> Result<(), Refused> {
    let size = representation.found.size;
    let mut as_found = true;
    if request.method() == "GET" && size <= SMALL {
        // If it has become shorter, what is there is sent: no more has been promised yet.
        as_found = read(&representation.found, 0, size, response, lookup)? == size;
    }
    describe(files, &representation, as_found.then_some(validators), response);
    field(response, "Content-Type", representation.media_type.as_bytes());
    if size > SMALL || request.method() != "GET" {
        response.set_file(FileSlice { file: Arc::new(representation.found.file), offset: 0, length: size });
    }
    Ok(())
}

/// RFC 9110 section 15.3.7.1.
fn one(
    files: &Files,
    representation: Representation,
    validators: &Validators,
    span: Span,
    response: &mut Response,
    lookup: Lookup,
) -> Result<(), Refused> {
    let length = span.length();
    let mut sent = false;
    if length <= SMALL {
        sent = read(&representation.found, span.first, length, response, lookup)? == length;
    }
    response.set_status(206);
    field(response, "Content-Range", content_range(span, representation.found.size));
    describe(files, &representation, Some(validators), response);
    field(response, "Content-Type", representation.media_type.as_bytes());
    if !sent {
        // If it has become shorter, that shows when it is sent: this many bytes have been promised.
        response.set_file(slice(&Arc::new(representation.found.file), span));
    }
    Ok(())
}

/// RFC 9110 sections 14.6 and 15.3.7.2.
fn several(
    files: &Files,
    representation: Representation,
    validators: &Validators,
    spans: &[Span],
    response: &mut Response,
) {
    let boundary = files.boundary();
    response.set_status(206);
    describe(files, &representation, Some(validators), response);
    field(response, "Content-Type", format!("multipart/byteranges; boundary={boundary}"));
    let Representation { found, media_type, .. } = representation;
    let (size, file) = (found.size, Arc::new(found.file));
    let mut parts = Vec::with_capacity(spans.len() * 2 + 1);
    let mut before = "";
    for span in spans {
        let range = content_range(*span, size);
        let head =
            format!("{before}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {range}\r\n\r\n");
        parts.push(Part::Bytes(Bytes::from(head)));
        parts.push(Part::File(slice(&file, *span)));
        before = "\r\n";
    }
    parts.push(Part::Bytes(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    response.set_parts(parts);
}

/// Makes up to [`SMALL`] bytes of a file the body: how many it had.
fn read(
    found: &Found,
    offset: u64,
    length: u64,
    response: &mut Response,
    lookup: Lookup,
) -> Result<u64, Refused> {
    let body = response.body_buffer();
    body.resize(usize::try_from(length).unwrap_or_default(), 0);
    let count = found.read(body, offset, lookup)?;
    body.truncate(count);
    Ok(count as u64)
}

fn slice(file: &Arc<std::fs::File>, span: Span) -> FileSlice {
    FileSlice { file: Arc::clone(file), offset: span.first, length: span.length() }
}

fn content_range(span: Span, size: u64) -> String {
    format!("bytes {}-{}/{size}", span.first, span.last)
}

/// What is said of a representation, whether all of it is sent or not. Content that is not as it was when its status
/// was read has no validators.
fn describe(
    files: &Files,
    representation: &Representation,
    validators: Option<&Validators>,
    response: &mut Response,
) {
    if let Some(Validators { tag, modified }) = validators {
        field(response, "ETag", tag);
        field(response, "Last-Modified", modified.to_string());
    }
    field(response, "Accept-Ranges", "bytes");
    if let Some(coding) = representation.coding {
        field(response, "Content-Encoding", coding.name());
    }
    field(response, "X-Content-Type-Options", "nosniff");
    vary(files, response);
    own(files, response);
}

/// RFC 9110 section 12.5.5: in every answer that another `Accept-Encoding` could have made another one.
fn vary(files: &Files, response: &mut Response) {
    if files.shared.options.precompressed {
        field(response, "Vary", "Accept-Encoding");
    }
}

/// What the operator wants said of files. Not in 412 and 416: with a `Cache-Control` a cache could keep those, and
/// give them to clients that have no conditions (RFC 9111 section 3).
fn own(files: &Files, response: &mut Response) {
    for (name, value) in &files.shared.options.fields {
        field(response, name, value);
    }
}

#[cfg(test)]
mod tests;
