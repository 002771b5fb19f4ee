//! A part of a file, to be sent: the name of bytes that this program never holds. Sending it is `flush.rs`'s.

use std::fs::File;
use std::sync::Arc;

/// What [`Ctx::send_file`](crate::Ctx::send_file) sends: `length` bytes of `file`, from `offset` on.
///
/// It is for files that can be mapped: regular ones, open for reading. Any number of slices, on any number of
/// connections, may be of one `File`: its position is neither used nor moved. Cheap to clone; the file is closed with
/// the last clone, which may be in the loop.
#[derive(Clone, Debug)]
pub struct FileSlice {
    /// The open file. Whoever holds the slice holds it.
    pub file: Arc<File>,
    /// Where to begin, in bytes from its beginning.
    pub offset: u64,
    /// How many bytes. The file must have them by the time they are sent, and keep them as they are until they have
    /// arrived: sendfile(2) makes no copy.
    pub length: u64,
}
