//! Where answers go. Not a socket: an implementation records bytes, it does not wait for anybody.

use std::os::unix::fs::FileExt;

use bytes::Bytes;
use epoll_reactor::FileSlice;

/// Takes the bytes of answers, in order.
pub trait Output {
    /// Appends a copy of `data`.
    fn copy(&mut self, data: &[u8]);

    /// Appends `data`, without copying it if the implementation can.
    fn share(&mut self, data: Bytes);

    /// Appends a part of a file, without reading it if the implementation can.
    ///
    /// # Errors
    /// [`NotCached`]: nothing was appended, since it would have to wait for the disk; and with `wait` never.
    fn file(&mut self, slice: FileSlice, wait: bool) -> Result<(), NotCached>;

    /// How many bytes wait to be sent, to be held against [`HttpLimits::output_batch`](super::HttpLimits::output_batch).
    fn waiting(&self) -> usize;

    /// Whether something was not taken, for want of room: the answer it is of will never be whole, and nothing may be
    /// appended to it. By default everything is taken.
    fn refused(&self) -> bool {
        false
    }

    /// Whether the request whose head is here now is to be shed, since the server is overloaded: it is answered 503 with
    /// `Retry-After`, and the service is not asked. Asked once for each, before anything is done about it. By default none
    /// is.
    fn sheds(&mut self) -> bool {
        false
    }

    /// Whether the requests that are here already are to wait until other clients have had their turn: asked between two of
    /// them. By default they are not.
    fn is_others_turn(&self) -> bool {
        false
    }
}

/// Sending this now would wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotCached;

/// Reads files on the spot. One that is shorter than it was ends the answer early.
impl Output for Vec<u8> {
    fn copy(&mut self, data: &[u8]) {
        self.extend_from_slice(data);
    }

    fn share(&mut self, data: Bytes) {
        self.extend_from_slice(&data);
    }

    fn file(&mut self, slice: FileSlice, _: bool) -> Result<(), NotCached> {
        let before = self.len();
        self.resize(before + usize::try_from(slice.length).unwrap_or(0), 0);
        let room = self.get_mut(before..).unwrap_or_default();
        if slice.file.read_exact_at(room, slice.offset).is_err() {
            self.truncate(before);
        }
        Ok(())
    }

    fn waiting(&self) -> usize {
        self.len()
    }
}
