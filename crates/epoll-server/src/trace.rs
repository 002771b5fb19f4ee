//! What the loops did last: written to a file when something asks for it, and printed by `epoll-server trace`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use epoll_reactor::{Ctx, Recording};

/// How many records a loop keeps at least: 128 KiB.
pub(crate) const RECORDS: usize = 4096;

/// A client that can have the handler panic must not have the disk written to without an end.
const PANIC_INTERVAL: Duration = Duration::from_secs(10);

/// The most of what clients sent that a loop may keep.
pub(crate) const MOST_CAPTURED: usize = 32 << 20;

/// More than any file of ours has; what is larger is not read, whatever it may be.
const LARGEST: u64 = 128 << 20;

/// Where to write it. Each loop has a file of its own, which is replaced as a whole.
#[derive(Clone)]
pub(crate) struct TraceFile {
    files: Arc<[OfLoop]>,
}

struct OfLoop {
    path: PathBuf,
    /// Somebody is about to have it written.
    asked: AtomicBool,
    /// When a panic was last the reason, in nanoseconds of the loop's clock; 0 for never.
    panicked: AtomicU64,
}

impl TraceFile {
    /// `path` for one loop; with several, each has its number behind a dot.
    ///
    /// # Errors
    /// One could not be written now, which the error names: better said before anything has happened than when it has.
    pub(crate) fn new(path: &Path, loops: usize) -> io::Result<Self> {
        let named = Self::named(path, loops);
        for OfLoop { path, .. } in named.files.iter() {
            begin(path).and_then(|(part, _)| fs::remove_file(part)).map_err(|error| {
                io::Error::new(error.kind(), format!("--trace-file {}: {error}", path.display()))
            })?;
        }
        Ok(named)
    }

    fn named(path: &Path, loops: usize) -> Self {
        let path_of = |index| {
            let mut path = path.as_os_str().to_owned();
            if loops > 1 {
                path.push(format!(".{index}"));
            }
            OfLoop { path: path.into(), asked: AtomicBool::new(false), panicked: AtomicU64::new(0) }
        };
        Self { files: (0..loops).map(path_of).collect() }
    }

    /// Writes down what the loop of number `index` did. Whether that worked, the log tells.
    pub(crate) fn write(&self, index: usize, ctx: &Ctx) {
        let (Some(file), Some(recording)) = (self.files.get(index), ctx.recording()) else { return };
        let path = file.path.display();
        match replace(&file.path, &recording.to_bytes()) {
            Ok(()) => {
                let (records, name) = (recording.records.len(), env!("CARGO_PKG_NAME"));
                log::info!(
                    "{records} records of what loop {index} did are in {path}; `{name} trace {path}` prints them"
                );
            }
            Err(error) => log::warn!("cannot write {path}: {error}"),
        }
    }

    /// The same, for whoever is to call it on the loop's thread; `None` if somebody is about to. A loop that is held up has
    /// only one to write then, however often it has been asked meanwhile.
    pub(crate) fn writing(&self, index: usize) -> Option<impl FnOnce(&Ctx) + Send + use<>> {
        if self.files.get(index)?.asked.swap(true, Ordering::Relaxed) {
            return None;
        }
        let asked = Asked { file: self.clone(), index };
        Some(move |ctx: &Ctx| {
            let file = asked.file.clone();
            drop(asked);
            file.write(index, ctx);
        })
    }

    /// The same after a panic in a callback, but not for each of many.
    pub(crate) fn write_after_panic(&self, index: usize, ctx: &Ctx) {
        let Some(file) = self.files.get(index) else { return };
        let (now, last) = (ctx.now().as_nanoseconds(), file.panicked.load(Ordering::Relaxed));
        if last == 0 || Duration::from_nanos(now.saturating_sub(last)) >= PANIC_INTERVAL {
            file.panicked.store(now, Ordering::Relaxed);
            self.write(index, ctx);
        }
    }
}

/// For as long as it is yet to be written, or until it is clear that it is not.
struct Asked {
    file: TraceFile,
    index: usize,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(file) = self.file.files.get(self.index) {
            file.asked.store(false, Ordering::Relaxed);
        }
    }
}

/// Nobody finds half a file there, and what was there before is lost only when there is something new. Where others may
/// write to the directory, it is not for them to say what is written to, nor to have the loop wait: nothing that is
/// there already is opened.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (part, mut file) = begin(path)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        // What there is of it is of no use; the error is the one to tell.
        let _: io::Result<()> = fs::remove_file(&part);
    }
    written
}

/// The file that is to take its place, yet to be written.
fn begin(path: &Path) -> io::Result<(PathBuf, File)> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "what is there is not a regular file"));
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    // Left by a process that was killed, as a rule. If it is not there, or stays, the next call knows.
    let _: io::Result<()> = fs::remove_file(&part);
    // It may hold what clients sent.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
    Ok((part, file))
}

/// Prints the records of a file, one a line, the oldest first.
///
/// # Errors
/// It cannot be read, or is not such a file; the error names it. Standard output takes no more, unless nobody reads it any
/// longer.
pub(crate) fn print(path: &Path) -> io::Result<()> {
    match write_lines(&open(path)?, &mut BufWriter::new(io::stdout().lock())) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// What the file holds.
///
/// # Errors
/// It cannot be read, or is not such a file; the error names it.
pub(crate) fn open(path: &Path) -> io::Result<Recording> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    read(path).map_err(named)
}

fn read(path: &Path) -> io::Result<Recording> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST).read_to_end(&mut bytes)?;
    Recording::from_bytes(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn write_lines(recording: &Recording, output: &mut impl Write) -> io::Result<()> {
    let (Recording { worker, overwritten, records, .. }, count) = (recording, recording.records.len());
    let time = |wall| humantime::format_rfc3339_nanos(wall);
    writeln!(
        output,
        "loop {worker} at {}: {count} records, {overwritten} older ones overwritten",
        time(recording.wall)
    )?;
    for record in records {
        writeln!(output, "{} {record}", time(recording.wall_at(record)))?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use epoll_reactor::{
        Address, CloseReason, CloseStats, ConnId, Handler, Limits, ListenOptions, Reactor, RecordKind,
    };

    use super::*;

    /// Panics at each byte, and counts those whose connection has ended.
    struct Sick(usize);

    impl Handler for Sick {
        type Conn = ();
        type Message = ();

        fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), _: &[u8]) -> usize {
            panic!("as always");
        }

        fn on_close(&mut self, _: &mut Ctx, _: ConnId, (): (), _: CloseReason, _: &CloseStats) {
            self.0 += 1;
        }
    }

    #[test]
    fn the_first_panic_is_written_down_and_not_each_of_many() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let file = TraceFile::new(&path, 1).unwrap();
        let limits = Limits { recorder: RECORDS, ..Limits::default() };
        let mut reactor = Reactor::new(Sick(0), limits).unwrap();
        reactor.on_panic(move |ctx| file.write_after_panic(0, ctx));
        let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_, bound) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
        let mut written = Vec::new();
        for count in 1..=2 {
            let mut client = TcpStream::connect(bound.as_tcp().unwrap()).unwrap();
            client.write_all(b"x").unwrap();
            while reactor.handler().0 < count {
                reactor.turn(None).unwrap();
            }
            written.push(read(&path).unwrap());
        }
        let last = written[0].records.last().unwrap();
        assert_eq!((last.kind(), last.extra), (Some(RecordKind::Callback), 1), "{last}");
        assert_eq!(written[0], written[1], "the second came too soon");
    }

    #[test]
    fn a_loop_that_is_held_up_writes_once_however_often_it_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let file = TraceFile::new(&path, 2).unwrap();
        let limits = Limits { recorder: RECORDS, ..Limits::default() };
        let mut reactor = Reactor::new(Sick(0), limits).unwrap();
        let writing = file.writing(0).unwrap();
        assert!(file.writing(0).is_none(), "it is to be written");
        assert!(file.writing(1).is_some(), "that of another");
        // The loop takes no more of such: it is not called.
        drop(writing);
        let writing = file.writing(0).unwrap();
        let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_, bound) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
        let _client = TcpStream::connect(bound.as_tcp().unwrap()).unwrap();
        reactor.turn(None).unwrap();
        writing(reactor.ctx());
        assert!(!read(&directory.path().join("trace.0")).unwrap().records.is_empty());
        assert!(file.writing(0).is_some(), "it has been");
    }

    #[test]
    fn with_several_loops_each_has_a_file_of_its_number() {
        let paths = |loops| {
            let files = TraceFile::named(Path::new("/a/trace"), loops).files;
            files.iter().map(|file| file.path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths(1), ["/a/trace"]);
        assert_eq!(paths(2), ["/a/trace.0", "/a/trace.1"]);
    }
}
