//! Files of one directory, by names that strangers chose: nothing above it can be reached, and nothing need wait for
//! a disk. Not behind [`Kernel`](crate::Kernel): a loop makes no such calls, those who serve files do.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstatat};

use crate::Errno;

/// How often a lookup that a rename has disturbed is made again.
const MOST_LOOKUPS: u32 = 16;

/// An open directory, as a place to look names up from: `O_PATH`, open(2). It is closed when it is dropped. Renaming
/// the directory, or putting another in its place, changes nothing for whoever holds it.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
}

/// Whether opening a file may wait for the disk to say where the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It may not: only names that the kernel knows already are found, `RESOLVE_CACHED` of openat2(2). That is about
    /// the names; a network file system may still ask its server on opening.
    Cached,
    /// It may, for as long as the file system takes: for a thread that may wait.
    MayBlock,
}

impl Directory {
    /// Opens a directory by any path, which the caller vouches for: open(2). It takes the right to search it, not to
    /// read it.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EACCES`, `ELOOP`, `ENAMETOOLONG` and `EINVAL` (a path with a NUL): tell the operator, with
    /// the path. `EMFILE`, `ENFILE`, `ENOMEM`: nothing is left to open it with.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { fd: open(path, flags, Mode::empty())? })
    }

    /// Opens what `path` leads to from here, for reading, if the whole way lies beneath this directory: openat2(2)
    /// with `RESOLVE_BENEATH` and `RESOLVE_NO_MAGICLINKS`. An empty path, and `.`, is the directory itself.
    ///
    /// Symbolic links are followed as long as they stay beneath. So are `..`, and mounts. What is opened may be
    /// anything: a directory, a FIFO (which is opened without waiting for a writer, `O_NONBLOCK`), a device. Look at
    /// its metadata before reading. It never becomes the controlling terminal.
    ///
    /// # Errors, and what the caller does
    /// `EXDEV`: the way leads out, by `..`, by an absolute path or by a link: to a client, as good as `ENOENT`.
    /// `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`, `EINVAL` (a path with a NUL), `ELOOP` (links without end, or a link of
    /// proc(5) that is more than a name): no such file. `EACCES`: not for us. `ENXIO`: a socket, or a device that is
    /// not there.
    ///
    /// `EAGAIN`, [`Cached`](Lookup::Cached): the kernel would have to wait, or cannot tell (before Linux 5.12, and often
    /// where it is to refuse): ask again with [`MayBlock`](Lookup::MayBlock), where waiting is allowed. `EAGAIN`, `MayBlock`: directories on the way
    /// are being renamed all the time (it has been tried 16 times), or another process holds a write lease on the
    /// file (fcntl(2), `F_SETLEASE`): it may be there later.
    ///
    /// `ENOSYS`, `MayBlock` only: the kernel has no openat2(2) (before Linux 5.6). There is no safe way then, and this
    /// makes no unsafe one. `EINTR`: again. `EMFILE`, `ENFILE`, `ENOMEM`, `EIO`: not now.
    pub fn open_beneath(&self, path: &Path, lookup: Lookup) -> Result<File, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let resolve = match lookup {
            // nix has no name for it.
            Lookup::Cached => beneath | ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED),
            Lookup::MayBlock => beneath,
        };
        let how = OpenHow::new().flags(flags).resolve(resolve);
        let mut lookups = 1;
        loop {
            match openat2(&self.fd, path, how) {
                Ok(fd) => return Ok(File::from(fd)),
                // openat2(2): a rename somewhere has kept the kernel from being sure about a `..`.
                Err(Errno::EAGAIN) if lookup == Lookup::MayBlock && lookups < MOST_LOOKUPS => lookups += 1,
                Err(errno) => return Err(told(lookup, errno)),
            }
        }
    }
}

/// A kernel that does not know `RESOLVE_CACHED`, or openat2(2), cannot tell without waiting. If the path was at fault
/// instead, the slow way will say so.
const fn told(lookup: Lookup, errno: Errno) -> Errno {
    match (lookup, errno) {
        (Lookup::Cached, Errno::ENOSYS | Errno::EINVAL | Errno::E2BIG) => Errno::EAGAIN,
        (_, errno) => errno,
    }
}

/// Reads from `offset` what is in memory already: preadv2(2) with `RWF_NOWAIT`. 0 is the end of the file, unless
/// `buffer` is empty; less than `buffer` may be all that is in memory. The file's own position stays as it is.
///
/// On a file system that cannot tell what is in memory (`EOPNOTSUPP`; also a kernel before Linux 4.14) it is a plain
/// pread(2), which may wait: better slow than never.
///
/// # Errors, and what the caller does
/// `EAGAIN`: not in memory: read it where waiting is allowed. `EINTR`: again. `EISDIR`, `ESPIPE`, `EINVAL`: no file
/// that can be read at an offset, or no such offset. `EIO` and others: the file is lost.
#[allow(unsafe_code, reason = "nix has no preadv2")]
pub fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let Ok(position) = libc::off_t::try_from(offset) else { return read_plain(file, buffer, offset) };
    let piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `file` is open, since it is borrowed. `piece` is the one iovec that the count says, alive through the
    // call; it describes `buffer`, which is exclusively borrowed: the kernel writes there, and no further.
    let result = unsafe { libc::preadv2(file.as_raw_fd(), &raw const piece, 1, position, libc::RWF_NOWAIT) };
    match Errno::result(result) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => read_plain(file, buffer, offset),
        // Not negative, or it would have been an error.
        Ok(count) => Ok(count.unsigned_abs()),
        Err(errno) => Err(errno),
    }
}

fn read_plain(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    file.read_at(buffer, offset).map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO))
}

/// What a directory says is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name, in whatever bytes it has: neither empty nor with a `/`.
    pub name: OsString,
    /// What it names.
    pub kind: EntryKind,
}

/// What a name in a directory stands for, links not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link, to whatever; [`Directory::open_beneath`] finds out to what.
    Link,
    /// A device, a FIFO, a socket.
    Other,
}

/// Lists an open directory, in the file system's own order and without `.` and `..`, up to `most` entries (to know
/// whether there are more, ask for one more): readdir(3). It waits for the disk. The position of `directory` stays as
/// it is.
///
/// # Errors, and what the caller does
/// `ENOTDIR`: it is none. `EACCES`: it may not be read, or not be searched. `ENOENT`: it has been removed. `EMFILE`,
/// `ENFILE`, `ENOMEM`, `EIO`: not now.
pub fn entries(directory: &File, most: usize) -> Result<Vec<DirectoryEntry>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // Opened again, since a duplicate would share its position.
    let mut listing = Dir::openat(directory, ".", flags, Mode::empty())?;
    let mut found = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if found.len() >= most {
            break;
        }
        let kind = match entry.file_type() {
            Some(Type::Directory) => EntryKind::Directory,
            Some(Type::File) => EntryKind::File,
            Some(Type::Symlink) => EntryKind::Link,
            Some(_) => EntryKind::Other,
            // readdir(3): not every file system says.
            None => match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(status) => kind_of(status.st_mode),
                // Removed meanwhile.
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            },
        };
        found.push(DirectoryEntry { name: OsStr::from_bytes(name.to_bytes()).to_owned(), kind });
    }
    Ok(found)
}

/// What [`entry_status`] says of a name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryStatus {
    /// What it names.
    pub kind: EntryKind,
    /// Its size in bytes, if it is a file.
    pub size: u64,
    /// When its content was changed last, in seconds since the epoch, rounded down.
    pub modified: i64,
}

/// Looks at a name in an open directory without opening what it names, and without following a link: fstatat(2). It
/// waits for the disk.
///
/// # Errors, and what the caller does
/// `ENOENT`: it is not there any more. `EACCES`: the directory may not be searched. `ENOTDIR`, `EINVAL`,
/// `ENAMETOOLONG`: no directory, or no name. `ENOMEM`, `EIO`: not now.
pub fn entry_status(directory: &File, name: &OsStr) -> Result<EntryStatus, Errno> {
    let status = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(EntryStatus {
        kind: kind_of(status.st_mode),
        // Never negative.
        size: status.st_size.unsigned_abs(),
        modified: status.st_mtime,
    })
}

fn kind_of(mode: libc::mode_t) -> EntryKind {
    match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => EntryKind::Directory,
        SFlag::S_IFREG => EntryKind::File,
        SFlag::S_IFLNK => EntryKind::Link,
        _ => EntryKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Seek, SeekFrom};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::fcntl::{FcntlArg, FdFlag, PosixFadviseAdvice, fcntl, posix_fadvise};
    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;

    /// A directory `served` with a file and a directory, beside a file that nobody may see.
    fn tree() -> (TempDir, Directory) {
        let root = tempfile::tempdir().unwrap();
        let served = root.path().join("served");
        fs::create_dir_all(served.join("inner")).unwrap();
        fs::write(root.path().join("secret"), "secret").unwrap();
        fs::write(served.join("page"), "page").unwrap();
        fs::write(served.join("inner").join("leaf"), "leaf").unwrap();
        let directory = Directory::open(&served).unwrap();
        (root, directory)
    }

    fn text_of(directory: &Directory, path: impl AsRef<Path>) -> Result<String, Errno> {
        let mut file = directory.open_beneath(path.as_ref(), Lookup::MayBlock)?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    fn error_of(directory: &Directory, path: impl AsRef<Path>) -> Errno {
        directory.open_beneath(path.as_ref(), Lookup::MayBlock).unwrap_err()
    }

    #[test]
    fn paths_that_stay_beneath_are_opened_and_others_are_not() {
        let (root, directory) = tree();
        for path in ["page", "./page", "inner/../page", "inner/./../inner/../page", "inner//../page"] {
            assert_eq!(text_of(&directory, path).as_deref(), Ok("page"), "{path}");
        }
        assert_eq!(text_of(&directory, "inner/leaf").as_deref(), Ok("leaf"));
        let absolute = root.path().join("served").join("page");
        for path in ["..", "../secret", "inner/../../secret", "../served/page", "/", "/etc/passwd"] {
            assert_eq!(error_of(&directory, path), Errno::EXDEV, "{path}");
        }
        assert_eq!(error_of(&directory, absolute), Errno::EXDEV);
        assert_eq!(error_of(&directory, "missing"), Errno::ENOENT);
        assert_eq!(error_of(&directory, "page/more"), Errno::ENOTDIR);
        assert_eq!(error_of(&directory, "page/"), Errno::ENOTDIR);
        assert_eq!(error_of(&directory, "a\0b"), Errno::EINVAL);
        assert_eq!(error_of(&directory, "x".repeat(5000)), Errno::ENAMETOOLONG);
    }

    #[test]
    fn links_are_followed_only_to_what_lies_beneath() {
        let (root, directory) = tree();
        let served = root.path().join("served");
        let link = |to: &str, name: &str| symlink(to, served.join(name)).unwrap();
        link("page", "near");
        link("../page", "inner/up");
        link("inner", "through");
        link("../secret", "out");
        link("..", "out_directory");
        link("/etc/passwd", "absolute");
        link(served.join("page").to_str().unwrap(), "absolute_beneath");
        link("loop", "loop");
        assert_eq!(text_of(&directory, "near").as_deref(), Ok("page"));
        assert_eq!(text_of(&directory, "inner/up").as_deref(), Ok("page"));
        assert_eq!(text_of(&directory, "through/up").as_deref(), Ok("page"));
        assert_eq!(text_of(&directory, "through/leaf").as_deref(), Ok("leaf"));
        for path in ["out", "out_directory", "out_directory/secret", "absolute", "absolute_beneath"] {
            assert_eq!(error_of(&directory, path), Errno::EXDEV, "{path}");
        }
        assert_eq!(error_of(&directory, "loop"), Errno::ELOOP);
    }

    #[test]
    fn magic_links_lead_nowhere() {
        let (_root, directory) = tree();
        let file = directory.open_beneath(Path::new("page"), Lookup::MayBlock).unwrap();
        let process = Directory::open(Path::new("/proc/self")).unwrap();
        for path in ["cwd".to_owned(), "root/etc".to_owned(), format!("fd/{}", file.as_raw_fd())] {
            assert_eq!(error_of(&process, &path), Errno::ELOOP, "{path}");
        }
        process.open_beneath(Path::new("status"), Lookup::MayBlock).unwrap();
    }

    #[test]
    fn the_empty_path_is_the_directory_itself() {
        let (_root, directory) = tree();
        for path in ["", ".", "./", "inner/.."] {
            let opened = directory.open_beneath(Path::new(path), Lookup::MayBlock).unwrap();
            assert!(opened.metadata().unwrap().is_dir(), "{path:?}");
            assert_eq!(entries(&opened, 100).unwrap().len(), 2, "{path:?}");
        }
    }

    #[test]
    fn what_is_no_file_does_not_hold_up_and_nothing_is_inherited() {
        let (root, directory) = tree();
        let served = root.path().join("served");
        mkfifo(&served.join("fifo"), Mode::S_IRWXU).unwrap();
        // Nobody has it open for writing.
        let fifo = directory.open_beneath(Path::new("fifo"), Lookup::MayBlock).unwrap();
        assert!(!fifo.metadata().unwrap().is_file());
        assert_eq!(read_cached(&fifo, &mut [0; 8], 0), Err(Errno::ESPIPE));
        let _listener = UnixListener::bind(served.join("socket")).unwrap();
        assert_eq!(error_of(&directory, "socket"), Errno::ENXIO);
        for flags in [fcntl(&fifo, FcntlArg::F_GETFD), fcntl(&directory.fd, FcntlArg::F_GETFD)] {
            assert!(FdFlag::from_bits_retain(flags.unwrap()).contains(FdFlag::FD_CLOEXEC));
        }
    }

    #[test]
    fn a_name_is_looked_at_without_following_it() {
        let (root, directory) = tree();
        symlink("page", root.path().join("served/near")).unwrap();
        let opened = directory.open_beneath(Path::new(""), Lookup::MayBlock).unwrap();
        let kinds = [("page", EntryKind::File), ("inner", EntryKind::Directory), ("near", EntryKind::Link)];
        for (name, kind) in kinds {
            assert_eq!(entry_status(&opened, OsStr::new(name)).unwrap().kind, kind, "{name}");
        }
        let page = entry_status(&opened, OsStr::new("page")).unwrap();
        assert!(page.size == 4 && page.modified > 0);
        assert_eq!(entry_status(&opened, OsStr::new("missing")), Err(Errno::ENOENT));
        assert_eq!(entry_status(&opened, OsStr::new("a\0b")), Err(Errno::EINVAL));
    }

    #[test]
    fn a_directory_stays_the_same_under_another_name() {
        let (root, directory) = tree();
        fs::rename(root.path().join("served"), root.path().join("moved")).unwrap();
        symlink("/etc", root.path().join("served")).unwrap();
        assert_eq!(text_of(&directory, "page").as_deref(), Ok("page"));
        assert_eq!(Directory::open(&root.path().join("moved/page")).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(Directory::open(&root.path().join("missing")).unwrap_err(), Errno::ENOENT);
    }

    #[test]
    fn a_cached_lookup_finds_what_is_known_and_waits_for_nothing_else() {
        let (_root, directory) = tree();
        assert_eq!(
            directory.open_beneath(Path::new("never/asked"), Lookup::Cached).unwrap_err(),
            Errno::EAGAIN
        );
        assert_eq!(text_of(&directory, "inner/leaf").as_deref(), Ok("leaf"));
        // Linux 5.12, or this says EAGAIN.
        let file = directory.open_beneath(Path::new("inner/leaf"), Lookup::Cached).unwrap();
        let mut text = [0; 64];
        assert_eq!(read_cached(&file, &mut text, 0), Ok(4));
        assert_eq!(&text[..4], b"leaf");
        let error = directory.open_beneath(Path::new("../secret"), Lookup::Cached).unwrap_err();
        assert!(matches!(error, Errno::EAGAIN | Errno::EXDEV), "{error}");
    }

    #[test]
    fn a_kernel_that_cannot_tell_sends_the_caller_the_slow_way() {
        for errno in [Errno::ENOSYS, Errno::EINVAL, Errno::E2BIG, Errno::EAGAIN] {
            assert_eq!(told(Lookup::Cached, errno), Errno::EAGAIN);
            assert_eq!(told(Lookup::MayBlock, errno), errno);
        }
        assert_eq!(told(Lookup::Cached, Errno::ENOENT), Errno::ENOENT);
    }

    #[test]
    fn a_cached_read_gives_what_is_in_memory() {
        let (root, directory) = tree();
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(300_000).collect();
        fs::write(root.path().join("served").join("page"), &content).unwrap();
        let mut file = directory.open_beneath(Path::new("page"), Lookup::MayBlock).unwrap();
        let mut buffer = vec![0; 400_000];
        // Fresh from the writer.
        assert_eq!(read_cached(&file, &mut buffer, 0), Ok(content.len()));
        assert_eq!(buffer[..content.len()], content);
        assert_eq!(read_cached(&file, &mut buffer[..7], 299_998), Ok(2));
        assert_eq!(buffer[..2], content[299_998..]);
        for beyond in [300_000, 300_001, u64::from(u32::MAX) * 8] {
            assert_eq!(read_cached(&file, &mut buffer, beyond), Ok(0));
        }
        assert_eq!(read_cached(&file, &mut buffer, u64::MAX), Err(Errno::EINVAL));
        assert_eq!(read_cached(&file, &mut [], 0), Ok(0));
        assert_eq!(file.stream_position().unwrap(), 0);

        // Out of memory with it, where the file system keeps its files elsewhere.
        file.sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        match read_cached(&file, &mut buffer, 0) {
            Err(Errno::EAGAIN) => (),
            answer => assert!(answer.unwrap() > 0),
        }
        let mut whole = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut whole).unwrap();
        assert_eq!(read_cached(&file, &mut buffer, 0), Ok(content.len()));
        let inner = directory.open_beneath(Path::new("inner"), Lookup::MayBlock).unwrap();
        assert_eq!(read_cached(&inner, &mut buffer, 0), Err(Errno::EISDIR));
    }

    #[test]
    fn a_listing_says_what_is_there_and_follows_nothing() {
        let (root, directory) = tree();
        let served = root.path().join("served");
        symlink("inner", served.join("link")).unwrap();
        mkfifo(&served.join("fifo"), Mode::S_IRWXU).unwrap();
        let odd = OsStr::from_bytes(b"\xff \n");
        fs::write(served.join(odd), "").unwrap();
        let opened = directory.open_beneath(Path::new(""), Lookup::MayBlock).unwrap();
        let expected = [
            (OsStr::new("fifo"), EntryKind::Other),
            (OsStr::new("inner"), EntryKind::Directory),
            (OsStr::new("link"), EntryKind::Link),
            (OsStr::new("page"), EntryKind::File),
            (odd, EntryKind::File),
        ];
        // Twice, since the first must not use up the second.
        for _ in 0..2 {
            let mut found = entries(&opened, 100).unwrap();
            found.sort_by(|one, other| one.name.cmp(&other.name));
            let found: Vec<_> = found.iter().map(|entry| (entry.name.as_os_str(), entry.kind)).collect();
            assert_eq!(found, expected);
        }
        assert_eq!(entries(&opened, 3).unwrap().len(), 3);
        assert_eq!(entries(&opened, 0).unwrap(), []);
        for (name, kind) in expected {
            let status = fstatat(&opened, name, AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
            assert_eq!(kind_of(status.st_mode), kind, "{name:?}");
        }
        let page = directory.open_beneath(Path::new("page"), Lookup::MayBlock).unwrap();
        assert_eq!(entries(&page, 1), Err(Errno::ENOTDIR));
    }
}
