//! From a name to an open file, or to the reason why there is none. Not the answer: see `answer`.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use epoll_reactor::{Directory, Errno, Lookup, read_cached};

use super::super::Response;
use super::{ALLOW, field};

/// Why a request is not answered with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It would have to be waited for. Where waiting is allowed, somebody else is in the way: later.
    Cold,
    BadPath,
    Missing,
    Forbidden,
    MethodNotAllowed,
    MethodUnknown,
    /// The process or the system has nothing left to open it with.
    Exhausted,
    Failed,
}

impl Refused {
    const fn status(self) -> u16 {
        match self {
            Self::BadPath => 400,
            Self::Forbidden => 403,
            Self::Missing => 404,
            Self::MethodNotAllowed => 405,
            Self::Failed => 500,
            Self::MethodUnknown => 501,
            Self::Cold | Self::Exhausted => 503,
        }
    }

    /// Tells the client.
    pub(super) fn answer(self, response: &mut Response) {
        response.clear();
        response.set_status(self.status());
        match self {
            // RFC 9110 section 15.5.6.
            Self::MethodNotAllowed => field(response, "Allow", ALLOW),
            Self::Cold => field(response, "Retry-After", "1"),
            Self::Exhausted => {
                field(response, "Retry-After", "1");
                // Clients that do nothing may hold all descriptors there are: this one's is what the next one needs.
                response.close_connection();
            }
            _ => {}
        }
        field(response, "Content-Type", "text/plain; charset=utf-8");
        response.set_static_body(self.text());
    }

    /// For people.
    const fn text(self) -> &'static [u8] {
        match self {
            Self::BadPath => b"The path is not well-formed.\n",
            Self::Forbidden => b"Not allowed.\n",
            Self::Missing => b"Not found.\n",
            Self::MethodNotAllowed | Self::MethodUnknown => b"The method is not supported.\n",
            Self::Failed => b"The file cannot be read.\n",
            Self::Cold | Self::Exhausted => b"Not now. Try again later.\n",
        }
    }
}

/// What an error of the kernel means to a client.
impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EAGAIN => Self::Cold,
            // Out of the root, no name, a socket, a device without a driver: nothing that is served.
            Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::EXDEV
            | Errno::ELOOP
            | Errno::ENAMETOOLONG
            | Errno::EINVAL
            | Errno::ENXIO
            | Errno::ENODEV => Self::Missing,
            Errno::EACCES | Errno::EPERM => Self::Forbidden,
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => {
                report_exhausted(errno);
                Self::Exhausted
            }
            errno => {
                log::error!("a file cannot be served: {errno}");
                Self::Failed
            }
        }
    }
}

/// Logs that nothing is left to open files with, once in a while: it is the process that has nothing, whichever file was
/// asked for, and clients may ask for as many as they like.
fn report_exhausted(errno: Errno) {
    const INTERVAL: Duration = Duration::from_secs(10);
    static REPORTED: Mutex<Option<Instant>> = Mutex::new(None);
    let mut reported = REPORTED.lock().unwrap_or_else(PoisonError::into_inner);
    if reported.is_none_or(|at| at.elapsed() >= INTERVAL) {
        *reported = Some(Instant::now());
        log::warn!("files cannot be opened: {errno}");
    }
}

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Opened {
    File(Found),
    Directory(File),
    /// A FIFO, a device: not to be touched.
    Other,
}

/// A regular file, open, and its status when it was opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) inode: u64,
    /// Since the epoch.
    pub(super) seconds: i64,
    pub(super) nanoseconds: i64,
}

impl Found {
    /// Whether it may stand for `original`, from which it was made: it was changed last when that was, or later. An
    /// original that was changed since is served as it is, not as it was.
    ///
    /// A compressor gives its output the time of its input; some write whole seconds, so such a time is taken for any
    /// within its second.
    pub(super) const fn is_as_new_as(&self, original: &Self) -> bool {
        if self.seconds == original.seconds {
            self.nanoseconds == 0 || self.nanoseconds >= original.nanoseconds
        } else {
            self.seconds > original.seconds
        }
    }

    /// Fills `buffer` from `offset` as far as the file goes: how far that was.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64, lookup: Lookup) -> Result<usize, Refused> {
        let mut filled = 0;
        loop {
            let room = buffer.get_mut(filled..).unwrap_or_default();
            if room.is_empty() {
                return Ok(filled);
            }
            let from = offset.saturating_add(filled as u64);
            let read = match lookup {
                Lookup::Cached => read_cached(&self.file, room, from),
                Lookup::MayBlock => self
                    .file
                    .read_at(room, from)
                    .map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO)),
            };
            match read {
                Ok(0) => return Ok(filled),
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                // Not about a name, so not what it would mean there.
                Err(Errno::EAGAIN) => return Err(Refused::Cold),
                Err(errno) => {
                    log::error!("a file cannot be read: {errno}");
                    return Err(Refused::Failed);
                }
            }
        }
    }
}

/// Opens what `path` leads to. Two system calls.
pub(super) fn open(root: &Directory, path: &Path, lookup: Lookup) -> Result<Opened, Refused> {
    let file = loop {
        match root.open_beneath(path, lookup) {
            Ok(file) => break file,
            // Whoever waits, waits again.
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    let metadata = file.metadata().map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO))?;
    if metadata.is_file() {
        return Ok(Opened::File(Found {
            file,
            size: metadata.size(),
            inode: metadata.ino(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }));
    }
    Ok(if metadata.is_dir() { Opened::Directory(file) } else { Opened::Other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_errors_mean_to_a_client() {
        let cases = [
            (Errno::ENOENT, 404),
            (Errno::ENOTDIR, 404),
            (Errno::EXDEV, 404),
            (Errno::ELOOP, 404),
            (Errno::ENAMETOOLONG, 404),
            (Errno::EINVAL, 404),
            (Errno::ENXIO, 404),
            (Errno::EACCES, 403),
            (Errno::EMFILE, 503),
            (Errno::ENFILE, 503),
            (Errno::ENOMEM, 503),
            (Errno::EAGAIN, 503),
            (Errno::EIO, 500),
            (Errno::ENOSYS, 500),
        ];
        for (errno, status) in cases {
            assert_eq!(Refused::from(errno).status(), status, "{errno}");
        }
    }

    #[test]
    fn what_a_client_is_told() {
        let cases = [
            (Refused::Missing, "", false),
            (Refused::MethodNotAllowed, "Allow: GET, HEAD, OPTIONS\r\n", false),
            (Refused::MethodUnknown, "", false),
            (Refused::Cold, "Retry-After: 1\r\n", false),
            (Refused::Exhausted, "Retry-After: 1\r\n", true),
        ];
        for (refused, field, close) in cases {
            let mut response = Response::new();
            super::field(&mut response, "ETag", "\"of something else\"");
            refused.answer(&mut response);
            let expected = format!("{field}Content-Type: text/plain; charset=utf-8\r\n");
            assert_eq!(String::from_utf8_lossy(&response.fields), expected, "{refused:?}");
            assert_eq!((response.status(), response.close), (refused.status(), close), "{refused:?}");
        }
    }

    #[test]
    fn an_older_copy_does_not_stand_for_what_was_changed_since() {
        let found = |seconds, nanoseconds| Found {
            file: tempfile::tempfile().unwrap(),
            size: 0,
            inode: 0,
            seconds,
            nanoseconds,
        };
        let cases = [
            ((5, 500), (5, 500), true),
            ((5, 501), (5, 500), true),
            ((5, 499), (5, 500), false),
            ((5, 0), (5, 500), true),
            ((6, 0), (5, 500), true),
            ((4, 999), (5, 500), false),
            ((4, 0), (5, 0), false),
        ];
        for (copy, original, expected) in cases {
            let (one, other) = (found(copy.0, copy.1), found(original.0, original.1));
            assert_eq!(one.is_as_new_as(&other), expected, "{copy:?} for {original:?}");
        }
    }
}
