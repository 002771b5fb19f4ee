//! The body of an answer that does not go out in one piece: parts of files, and streams. Not its head, which has
//! been written when this begins.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;
use epoll_reactor::FileSlice;

use super::encode::Persistence;
use super::output::{NotCached, Output};
use super::response::Part;
use super::service::{RequestId, Service};

/// As much of a file as is handed to the loop at a time, in bytes: large beside what a call costs, small beside a
/// disk's patience and the memory of a cache.
const WINDOW: u64 = 1024 * 1024;

/// An answer on its way, and what has to be known when it has gone.
pub(super) struct Sending {
    pub(super) id: RequestId,
    /// The request's head, for the access log.
    pub(super) head: Box<[u8]>,
    pub(super) status: u16,
    pub(super) persistence: Persistence,
    pub(super) body_bytes: u64,
    pub(super) rest: Rest,
}

/// What is still to be sent.
pub(super) enum Rest {
    Parts { parts: VecDeque<Part>, disk: Disk },
    Stream(Framing),
}

/// What is known of the front part's next window.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Disk {
    #[default]
    Unknown,
    /// Somebody is reading it: until then nothing goes on, and nobody is asked again.
    Asked,
    /// Somebody has read it, so that it is sent even if the cache has lost it.
    Read,
}

/// How the end of a stream is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// RFC 9112 section 7.1.
    Chunked,
    /// By `Content-Length`: so many bytes are still owed.
    Sized(u64),
    /// By the end of the connection: HTTP/1.0 (RFC 9112 section 6.3, rule 8).
    ToEnd,
}

/// How far a step has got.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Complete,
    OutputFull,
    /// The service has nothing to write for now.
    Wait,
    /// The window at the front has to be read from the disk.
    Disk,
    /// The answer cannot be completed.
    Abort,
}

impl Sending {
    /// Sends what there is room for: until `batch` bytes wait.
    pub(super) fn go_on(
        &mut self,
        batch: usize,
        service: &mut impl Service,
        output: &mut impl Output,
    ) -> Step {
        match &mut self.rest {
            Rest::Parts { parts, disk } => send_parts(parts, disk, &mut self.body_bytes, batch, output),
            Rest::Stream(framing) => {
                let begun = self.body_bytes;
                loop {
                    let before = self.body_bytes;
                    let mut body = BodyWriter {
                        output,
                        framing: *framing,
                        batch,
                        written: &mut self.body_bytes,
                        end: End::Open,
                    };
                    // What was written counts too: there are outputs that are never full, since nobody is there.
                    if body.room() == 0 || *body.written - begun >= batch as u64 {
                        return Step::OutputFull;
                    }
                    service.write_body(self.id, &mut body);
                    *framing = body.framing;
                    match body.end {
                        End::Complete => return Step::Complete,
                        End::Abort => return Step::Abort,
                        End::Open if *body.written == before => return Step::Wait,
                        End::Open => {}
                    }
                }
            }
        }
    }

    /// Bytes of heap it takes, those that wait to be sent among them.
    pub(super) fn held(&self) -> usize {
        let waiting = match &self.rest {
            Rest::Parts { parts, .. } => parts.iter().map(Part::in_memory).sum(),
            Rest::Stream(_) => 0,
        };
        waiting + self.head.len() + size_of::<Self>()
    }

    /// What [`Step::Disk`] is about.
    pub(super) fn cold(&self) -> Option<FileSlice> {
        match &self.rest {
            Rest::Parts { parts, .. } => match parts.front()? {
                Part::File(slice) => Some(window(slice)),
                Part::Bytes(_) => None,
            },
            Rest::Stream(_) => None,
        }
    }

    /// It has been read from the disk.
    pub(super) fn warmed(&mut self) {
        if let Rest::Parts { disk, .. } = &mut self.rest {
            *disk = Disk::Read;
        }
    }
}

fn send_parts(
    parts: &mut VecDeque<Part>,
    disk: &mut Disk,
    written: &mut u64,
    batch: usize,
    output: &mut impl Output,
) -> Step {
    if *disk == Disk::Asked {
        return Step::Wait;
    }
    while let Some(part) = parts.front_mut() {
        if output.waiting() >= batch {
            return Step::OutputFull;
        }
        match part {
            Part::Bytes(bytes) => {
                *written += bytes.len() as u64;
                output.share(std::mem::take(bytes));
                parts.pop_front();
            }
            Part::File(slice) => {
                let window = window(slice);
                let length = window.length;
                let read = std::mem::take(disk) == Disk::Read;
                if output.file(window, read) == Err(NotCached) {
                    *disk = Disk::Asked;
                    return Step::Disk;
                }
                *written += length;
                slice.offset += length;
                slice.length -= length;
                if slice.length == 0 {
                    parts.pop_front();
                }
            }
        }
    }
    Step::Complete
}

fn window(slice: &FileSlice) -> FileSlice {
    FileSlice { length: slice.length.min(WINDOW), ..slice.clone() }
}

/// Writes the body of a streamed answer: see [`Service::write_body`].
pub struct BodyWriter<'a> {
    output: &'a mut dyn Output,
    framing: Framing,
    batch: usize,
    written: &'a mut u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Complete,
    Abort,
}

impl BodyWriter<'_> {
    /// How many bytes may be written before the client has to read some. More is sent too, and held in memory until
    /// it does; [`Limits::output`](epoll_reactor::Limits::output) is the end of that.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.end == End::Open { self.batch.saturating_sub(self.output.waiting()) } else { 0 }
    }

    /// Sends a copy of `data`. After the end, and beyond a length that was announced, nothing is sent.
    pub fn write(&mut self, data: &[u8]) {
        let data = data.get(..self.admitted(data.len())).unwrap_or(data);
        self.begin_chunk(data.len());
        self.output.copy(data);
        self.end_chunk(data.len());
    }

    /// Sends `data` without copying it.
    pub fn share(&mut self, mut data: Bytes) {
        data.truncate(self.admitted(data.len()));
        let length = data.len();
        self.begin_chunk(length);
        self.output.share(data);
        self.end_chunk(length);
    }

    /// Ends the body. One with all of its announced length has ended by itself; one with less cannot end well, and the
    /// connection is reset, so that the client does not take what it has for all.
    pub fn finish(&mut self) {
        if self.end != End::Open {
            return;
        }
        self.end = match self.framing {
            Framing::Chunked => {
                self.output.copy(b"0\r\n\r\n");
                End::Complete
            }
            Framing::Sized(0) | Framing::ToEnd => End::Complete,
            Framing::Sized(_) => End::Abort,
        };
    }

    /// Gives the body up: the connection is reset, so that the client does not take what it has for all.
    pub fn abort(&mut self) {
        if self.end == End::Open {
            self.end = End::Abort;
        }
    }

    /// How many of `length` bytes may be sent.
    fn admitted(&self, length: usize) -> usize {
        match self.framing {
            _ if self.end != End::Open => 0,
            Framing::Sized(left) => usize::try_from(left).map_or(length, |left| length.min(left)),
            Framing::Chunked | Framing::ToEnd => length,
        }
    }

    /// A chunk of no bytes would end the body, so none is begun.
    fn begin_chunk(&mut self, length: usize) {
        *self.written += length as u64;
        match &mut self.framing {
            Framing::Chunked if length > 0 => {
                // Room for the 16 digits of a 64-bit size and CRLF, so the write cannot fail.
                let mut line = io::Cursor::new([0; 18]);
                let _: io::Result<()> = write!(line, "{length:x}\r\n");
                let used = usize::try_from(line.position()).unwrap_or_default();
                self.output.copy(line.get_ref().get(..used).unwrap_or_default());
            }
            Framing::Sized(left) => *left -= length as u64,
            Framing::Chunked | Framing::ToEnd => {}
        }
    }

    fn end_chunk(&mut self, length: usize) {
        match self.framing {
            Framing::Chunked if length > 0 => self.output.copy(b"\r\n"),
            // That was all that was announced.
            Framing::Sized(0) if self.end == End::Open => self.end = End::Complete,
            _ => {}
        }
    }
}

impl fmt::Debug for BodyWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyWriter")
            .field("room", &self.room())
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(framing: Framing, write: impl FnOnce(&mut BodyWriter<'_>)) -> (String, u64, End) {
        let (mut output, mut written) = (Vec::new(), 0);
        let mut body =
            BodyWriter { output: &mut output, framing, batch: 1000, written: &mut written, end: End::Open };
        write(&mut body);
        let end = body.end;
        (String::from_utf8(output).unwrap(), written, end)
    }

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for length in [1, 9, 15, 16, 255, 4096, 65_535] {
            let (sent, ..) = stream(Framing::Chunked, |body| body.write("x".repeat(length).as_bytes()));
            assert_eq!(sent, format!("{length:x}\r\n{}\r\n", "x".repeat(length)));
        }
    }

    #[test]
    fn all_of_an_announced_length_is_the_end() {
        let whole = |body: &mut BodyWriter<'_>| body.write(b"hello, and more");
        assert!(stream(Framing::Sized(5), whole) == ("hello".to_owned(), 5, End::Complete));
        assert!(stream(Framing::Sized(50), whole).2 == End::Open);
    }

    #[test]
    fn each_framing_tells_its_end() {
        let two = |body: &mut BodyWriter<'_>| {
            body.write(b"hello");
            body.write(b"");
            body.share(Bytes::from_static(b"world!"));
            body.finish();
            body.write(b"late");
            body.finish();
        };
        let chunked = "5\r\nhello\r\n6\r\nworld!\r\n0\r\n\r\n";
        assert!(stream(Framing::Chunked, two) == (chunked.to_owned(), 11, End::Complete));
        assert!(stream(Framing::ToEnd, two) == ("helloworld!".to_owned(), 11, End::Complete));
        assert!(stream(Framing::Sized(11), two) == ("helloworld!".to_owned(), 11, End::Complete));
        assert!(
            stream(Framing::Sized(7), two) == ("hellowo".to_owned(), 7, End::Complete),
            "no more than said"
        );
        assert!(
            stream(Framing::Sized(12), two) == ("helloworld!".to_owned(), 11, End::Abort),
            "less than said"
        );
    }
}
