//! Static files: what lies beneath one directory, as answers. Not a cache, and nothing is written or executed.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use epoll_reactor::{Directory, Errno, Lookup};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

use super::response::HeaderError;
use super::service::{BodyMode, Service};
use super::{Request, Response};
use answer::Representation;
use conditions::fields;
use encodings::preferred;
use lookup::{Found, Opened, Refused, open};
use path::{PathError, decode};

mod answer;
mod conditions;
mod encodings;
mod listing;
mod lookup;
mod path;
mod ranges;

/// The files beneath a directory, for a [`Service`] to answer with, or as one. A clone is the same files.
///
/// A path is decoded once and looked up beneath the root, out of which nothing leads: no `..` in any form, no symbolic
/// link, no rename under way. What begins with a dot is hidden. `index.html` stands for its directory.
///
/// ```no_run
/// use std::path::Path;
/// use epoll_protocols::http1::{Files, FilesOptions, Http, HttpConfig, Request, Response};
///
/// # fn main() -> std::io::Result<()> {
/// let files = Files::open(Path::new("/srv/www"), FilesOptions::default())?;
/// let service = move |request: &Request<'_>, response: &mut Response| match request.path() {
///     "/hello" => response.set_static_body(b"Hello, World!"),
///     _ => files.answer(request, response),
/// };
/// let http = Http::new(service, HttpConfig::default());
/// # Ok(())
/// # }
/// ```
///
/// # What blocks and what does not
///
/// A thread that serves thousands must not wait for a disk, so [`answer`](Self::answer) only takes what is in memory:
/// a name that the kernel knows (openat2(2) with `RESOLVE_CACHED`), the status of a file that is open, and up to 16 KiB
/// of content that the page cache has (preadv2(2) with `RWF_NOWAIT`), which leaves in one send with its head. Where the
/// kernel would have to wait for any of that it says `EAGAIN`, and the answer is worked out again from the start by a
/// thread that may wait ([`Response::run_blocking`]); the next request finds it in memory. Lists of directories are
/// always made by such a thread. Larger content is not read here: the loop has the kernel send it from the page cache
/// ([`Response::set_file`]), and has threads read what is not there.
///
/// What may wait nevertheless: the sending of a large file with holes of less than 64 KiB in what is in memory, since of
/// so many bytes it is one page that is asked for, another one each time; a file system that asks its server when a file
/// is opened or its status read (network file systems, FUSE), or that cannot tell what is in memory; and closing a file
/// that has been deleted meanwhile, for whoever is the last to have it open.
///
/// # Nothing is kept
///
/// A small file that is in memory takes four system calls: openat2, statx, preadv2 and close. They cost about 5 µs, as
/// much as all the rest of a request. A cache of open files would save three of them, one of contents all four; but
/// it would have to hear of every change, which nothing tells it for certain (inotify(7) is told nothing of what
/// others do on a network file system, and nothing of a directory above that is renamed), or else serve for a while
/// what is not there any more. And it would hold descriptors that clients need. What is worth more than that can be
/// read once, and answered with [`Response::set_shared_body`].
#[derive(Clone, Debug)]
pub struct Files {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: Directory,
    options: FilesOptions,
    /// Makes boundaries that nobody can guess: keyed from the kernel's random numbers.
    boundaries: RandomState,
    boundary: AtomicU64,
}

/// What [`Files`] does besides serving files as they are.
#[derive(Clone, Debug)]
pub struct FilesOptions {
    /// A directory without `index.html` is answered with a list of what is in it, up to 10,000 names. Otherwise with
    /// 404: there is nothing to see.
    pub list: bool,
    /// To a client that accepts the coding, `name.br`, `name.zst` or `name.gz` is sent for `name`, if there is one
    /// that is not older than `name`. Looking for each costs a system call (a good
    /// microsecond) in requests that accept it; where there are none, say so.
    pub precompressed: bool,
    /// Names and values of fields for every answer that is a file, or a part of one, or says that it has not changed:
    /// `Cache-Control`, for instance.
    pub fields: Vec<(String, String)>,
}

impl Default for FilesOptions {
    fn default() -> Self {
        Self { list: false, precompressed: true, fields: Vec::new() }
    }
}

/// What stands for a directory.
const INDEX: &str = "index.html";

/// RFC 9110 section 10.2.1, for every path.
const ALLOW: &str = "GET, HEAD, OPTIONS";

/// Fields that are written here and nowhere else.
const OWN: [&str; 11] = [
    "accept-ranges",
    "allow",
    "content-encoding",
    "content-range",
    "content-type",
    "etag",
    "last-modified",
    "location",
    "retry-after",
    "vary",
    "x-content-type-options",
];

/// All but what RFC 3986 section 2.3 calls unreserved: good in a path, and in an attribute of HTML.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a query must not have, and may have been sent with all the same.
const QUERY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

impl Files {
    /// Opens the directory, which need not be readable, but searchable. What is renamed or mounted in its place later
    /// is not seen.
    ///
    /// # Errors
    /// Those of open(2), without the path; `InvalidInput`: a field of the options cannot be sent, or is one that is
    /// written here; `ENOSYS`: the kernel has no openat2(2) (before Linux 5.6), so there is no safe way to look a
    /// name up.
    pub fn open(root: &Path, options: FilesOptions) -> io::Result<Self> {
        for (name, value) in &options.fields {
            let mut error = Response::new().header(name, value).err();
            if OWN.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                error = Some(HeaderError::Reserved);
            }
            if let Some(error) = error {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("field {name:?}: {error}")));
            }
        }
        let root = Directory::open(root)?;
        if let Err(Errno::ENOSYS) = root.open_beneath(Path::new(""), Lookup::MayBlock) {
            return Err(Errno::ENOSYS.into());
        }
        let (boundaries, boundary) = (RandomState::new(), AtomicU64::new(0));
        Ok(Self { shared: Arc::new(Inner { root, options, boundaries, boundary }) })
    }

    /// Answers a request without waiting for a disk, or has a thread answer it. What `response` had before is
    /// forgotten. Nothing should be added afterwards either: it would be lost if a thread answers.
    ///
    /// GET, HEAD and OPTIONS are answered; other methods of RFC 9110 and RFC 5789 get 405, the rest 501. A path is
    /// answered with 400 if it is none, 301 for a directory without the slash behind it, 403 if the file may not be
    /// read, and 404 if there is no regular file, whatever the reason.
    ///
    /// Each file that is being sent takes a descriptor besides the connection's. If there is none left, the answer is
    /// 503 and ends the connection, which gives one back. So that it does not come to that, let there be twice as many
    /// as [connections](epoll_reactor::Limits::connections)
    /// ([`raise_open_file_limit`](epoll_reactor::raise_open_file_limit)).
    pub fn answer(&self, request: &Request<'_>, response: &mut Response) {
        if let Err(Refused::Cold) = self.answer_by(request, response, Lookup::Cached) {
            response.clear();
            let files = self.clone();
            response.run_blocking(move |request, response| files.answer_blocking(request, response));
        }
    }

    /// The same on a thread that may wait. For a [job](Response::run_blocking) that does more than that.
    pub fn answer_blocking(&self, request: &Request<'_>, response: &mut Response) {
        let answered = self.answer_by(request, response, Lookup::MayBlock);
        debug_assert!(answered.is_ok(), "it was allowed to wait");
    }

    /// The only error is [`Refused::Cold`], if nothing may wait.
    fn answer_by(
        &self,
        request: &Request<'_>,
        response: &mut Response,
        lookup: Lookup,
    ) -> Result<(), Refused> {
        response.clear();
        let refused = match request.method() {
            "GET" | "HEAD" => match self.find(request, response, lookup) {
                Ok(()) => return Ok(()),
                Err(Refused::Cold) if lookup == Lookup::Cached => return Err(Refused::Cold),
                Err(refused) => refused,
            },
            "OPTIONS" => {
                response.set_status(204);
                field(response, "Allow", ALLOW);
                return Ok(());
            }
            // RFC 9110 section 15.6.2 is for methods that nobody knows.
            "POST" | "PUT" | "DELETE" | "PATCH" | "CONNECT" | "TRACE" => Refused::MethodNotAllowed,
            _ => Refused::MethodUnknown,
        };
        refused.answer(response);
        Ok(())
    }

    fn find(&self, request: &Request<'_>, response: &mut Response, lookup: Lookup) -> Result<(), Refused> {
        let name = decode(request.path()).map_err(|error| match error {
            PathError::Escape => Refused::BadPath,
            PathError::Nothing => Refused::Missing,
        })?;
        if name.directory {
            return self.find_index(&name.path, request, response, lookup);
        }
        match open(&self.shared.root, &name.path, lookup)? {
            Opened::File(found) => self.represent(found, &name.path, request, response, lookup),
            Opened::Directory(_) => {
                redirect(&name.path, request.query(), response);
                Ok(())
            }
            Opened::Other => Err(Refused::Missing),
        }
    }

    /// The index is asked for without asking for the directory, which would be another two calls.
    fn find_index(
        &self,
        path: &Path,
        request: &Request<'_>,
        response: &mut Response,
        lookup: Lookup,
    ) -> Result<(), Refused> {
        let index = path.join(INDEX);
        match open(&self.shared.root, &index, lookup) {
            Ok(Opened::File(found)) => return self.represent(found, &index, request, response, lookup),
            Ok(Opened::Directory(_) | Opened::Other) | Err(Refused::Missing) => {}
            Err(refused) => return Err(refused),
        }
        if !self.shared.options.list {
            return Err(Refused::Missing);
        }
        if lookup == Lookup::Cached {
            return Err(Refused::Cold);
        }
        match open(&self.shared.root, path, lookup)? {
            Opened::Directory(directory) => listing::answer(&self.shared.root, path, &directory, response),
            Opened::File(_) | Opened::Other => Err(Refused::Missing),
        }
    }

    /// Answers with `plain`, which was found at `path`, or with what is beside it for a client that takes that.
    fn represent(
        &self,
        plain: Found,
        path: &Path,
        request: &Request<'_>,
        response: &mut Response,
        lookup: Lookup,
    ) -> Result<(), Refused> {
        let media_type = answer::media_type(path);
        let mut representation = Representation { found: plain, media_type, coding: None };
        if self.shared.options.precompressed {
            for coding in preferred(fields(request, "accept-encoding")) {
                let mut beside = PathBuf::from(path).into_os_string();
                beside.push(coding.suffix());
                match open(&self.shared.root, Path::new(&beside), lookup) {
                    Ok(Opened::File(found)) if found.is_as_new_as(&representation.found) => {
                        representation.found = found;
                        representation.coding = Some(coding);
                        break;
                    }
                    Err(refused @ (Refused::Cold | Refused::Exhausted)) => return Err(refused),
                    // Whatever is wrong with it, there is the file itself.
                    Ok(_) | Err(_) => {}
                }
            }
        }
        answer::answer(self, representation, request, response, lookup)
    }

    /// 128 bits that nobody could know: no content has them but by a chance that there is not, and so no content can
    /// be made that ends a part of a multipart body (RFC 2046 section 5.1.1). To look for them in gigabytes of file
    /// is no way.
    fn boundary(&self) -> String {
        let number = self.shared.boundary.fetch_add(1, Ordering::Relaxed);
        let half = |half: u8| self.shared.boundaries.hash_one((number, half));
        format!("{:016x}{:016x}", half(0), half(1))
    }
}

impl Service for Files {
    type Message = ();

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        self.answer(request, response);
    }

    /// A body that comes with GET says nothing (RFC 9110 section 9.3.1), and is no cause to end the connection.
    fn body_mode(&mut self, head: &Request<'_>) -> BodyMode {
        match head.method() {
            "GET" | "HEAD" | "OPTIONS" => BodyMode::Collect,
            _ => BodyMode::Unread,
        }
    }
}

/// Sends a client from a directory to itself with a slash behind it, so that relative links work.
///
/// The reference is relative to the request's target (RFC 9110 section 10.2.2) and begins with `./`: it stays on the
/// same host whatever the name is, and is right behind a proxy that has taken a part off the path.
fn redirect(path: &Path, query: Option<&str>, response: &mut Response) {
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let mut location = format!("./{}/", percent_encode(name, NAME));
    if let Some(query) = query {
        location.push('?');
        location.extend(utf8_percent_encode(query, QUERY));
    }
    response.set_status(301);
    field(response, "Location", location);
}

/// Adds a field that is known to be good.
fn field(response: &mut Response, name: &str, value: impl AsRef<[u8]>) {
    let added = response.header(name, value);
    debug_assert!(added.is_ok(), "{name}");
}
