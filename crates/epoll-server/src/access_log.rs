//! A line for each request, in Apache's combined format. A loop only writes into memory: a thread does the rest, one for all
//! loops, and where it does not keep up lines are lost rather than time. What that thread does is in `access_log/writer.rs`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use epoll_protocols::http1::Answered;
use epoll_reactor::Address;
use writer::Order;

mod writer;

/// As much is gathered before the writer gets it, in bytes; what is less goes once a second.
const ENOUGH: usize = 32 * 1024;

/// Buffers that may wait for the writer, of all loops together: with `ENOUGH` in each, two megabytes.
const WAITING: usize = 64;

/// How long the end of a loop, and that of the process behind it, waits for the disk.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long the end of a loop waits for one of its own buffers before it looks whether another's has made room.
const ROOM: Duration = Duration::from_millis(5);

/// Where the lines go, open, before there is a thread to write them.
pub(crate) struct Destination {
    /// `None`: standard output.
    path: Option<PathBuf>,
    file: File,
}

impl Destination {
    /// `-` is standard output. Of a FIFO it waits until somebody reads it (fifo(7)), and says so first: to be called
    /// while signals still end the process.
    ///
    /// # Errors
    /// The file cannot be opened for appending, which the error says with its name.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = if is_standard_output(path) { None } else { Some(path.to_owned()) };
        if let Some(path) = &path
            && fs::metadata(path).is_ok_and(|it| it.file_type().is_fifo())
        {
            // The log has not started. Whether it is told or not, the open file is what counts.
            let _: io::Result<()> = writeln!(
                io::stderr(),
                "epoll-server: access log {}: a FIFO; waiting for a reader",
                path.display()
            );
        }
        let file = writer::open(path.as_deref())?;
        Ok(Self { path, file })
    }

    /// Whether there is a file to be opened anew.
    pub(crate) const fn can_be_renamed(&self) -> bool {
        self.path.is_some()
    }
}

/// The thread that writes, for the logs of all loops.
pub(crate) struct LogWriter {
    orders: SyncSender<Order>,
    /// Ends with the writer, once the logs are gone and this has been dropped. No two threads look at it, which the lock
    /// is there to say.
    ended: Mutex<Receiver<()>>,
}

/// The log of one loop. It is to be dropped before the [`LogWriter`].
pub(crate) struct AccessLog {
    lines: Vec<u8>,
    /// How many lines there are in `lines`.
    count: u64,
    /// Lines that were lost since the log was last told.
    lost: u64,
    /// The writer has yet to be told to open the file anew.
    reopen: bool,
    second: Second,
    orders: SyncSender<Order>,
    /// Buffers that have been written, to be filled again, and how they come here.
    empty: Receiver<Vec<u8>>,
    done: Sender<Vec<u8>>,
}

/// `[25/Nov/2026:06:00:00 +0000]`, made once a second.
struct Second {
    second: u64,
    text: String,
}

impl LogWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(destination: Destination) -> io::Result<Self> {
        let Destination { path, file } = destination;
        let (orders, to_do) = sync_channel(WAITING);
        let (end, ended) = channel();
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            writer::run(path.as_deref(), file, &to_do);
            drop(end);
        })?;
        Ok(Self { orders, ended: Mutex::new(ended) })
    }

    /// A log of a loop.
    pub(crate) fn log(&self) -> AccessLog {
        let (done, empty) = channel();
        let second = Second { second: u64::MAX, text: String::new() };
        let orders = self.orders.clone();
        AccessLog { lines: Vec::new(), count: 0, lost: 0, reopen: false, second, orders, empty, done }
    }

    /// Waits until all has been written, for a while. The logs are gone by then.
    pub(crate) fn finish(self) {
        let Self { orders, ended } = self;
        drop(orders);
        let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(LAST_WORDS) == Err(RecvTimeoutError::Timeout) {
            log::warn!("access log: the disk is too slow for its last lines");
        }
    }
}

impl AccessLog {
    /// Adds the line of one answer.
    pub(crate) fn record(&mut self, answered: &Answered<'_>) {
        let out = &mut self.lines;
        client(answered.client, out);
        out.extend_from_slice(b" - - ");
        out.extend_from_slice(self.second.text(answered.time).as_bytes());
        out.extend_from_slice(b" \"");
        match answered.request {
            Some(request) => {
                escape(request.method().as_bytes(), out);
                out.push(b' ');
                escape(request.target().as_bytes(), out);
                out.extend_from_slice(match request.version() {
                    epoll_protocols::http1::Version::Http10 => b" HTTP/1.0",
                    epoll_protocols::http1::Version::Http11 => b" HTTP/1.1",
                });
            }
            None => out.push(b'-'),
        }
        let mut number = itoa::Buffer::new();
        out.extend_from_slice(b"\" ");
        out.extend_from_slice(number.format(answered.status).as_bytes());
        out.push(b' ');
        match answered.body_bytes {
            0 => out.push(b'-'),
            bytes => out.extend_from_slice(number.format(bytes).as_bytes()),
        }
        for name in ["referer", "user-agent"] {
            out.extend_from_slice(b" \"");
            let value = answered.request.and_then(|request| request.header(name));
            escape(value.unwrap_or(b"-"), out);
            out.push(b'"');
        }
        out.push(b'\n');
        self.count += 1;
        if self.lines.len() >= ENOUGH {
            self.flush();
        }
    }

    /// Hands what there is to the writer; to be called once a second.
    pub(crate) fn flush(&mut self) {
        let count = mem::take(&mut self.count);
        if count > 0 {
            let next = self.empty.try_recv().unwrap_or_default();
            let lines = mem::replace(&mut self.lines, next);
            if let Err(Order::Write(mut lines, _)) = self.write(lines) {
                self.lost += count;
                lines.clear();
                self.lines = lines;
            } else {
                self.tell_of_losses();
            }
        }
        if self.reopen {
            self.reopen = self.order(Order::Reopen).is_err();
        }
    }

    /// Opens the file anew, for what is recorded from now on: somebody has renamed it.
    pub(crate) fn reopen(&mut self) {
        self.reopen = true;
        self.flush();
    }

    fn tell_of_losses(&mut self) {
        let lost = mem::take(&mut self.lost);
        if lost > 0 {
            log::warn!("access log: {lost} lines lost, the disk does not keep up");
        }
    }

    fn write(&self, lines: Vec<u8>) -> Result<(), Order> {
        self.order(Order::Write(lines, self.done.clone()))
    }

    /// Gives the order back if too many wait.
    fn order(&self, order: Order) -> Result<(), Order> {
        self.orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(order) | TrySendError::Disconnected(order) => order,
        })
    }
}

impl Drop for AccessLog {
    /// Hands over the last lines. Nobody is kept waiting any more, so it waits for room, for a while.
    fn drop(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        let left = || end.saturating_duration_since(Instant::now());
        let mut last = (self.count > 0).then(|| mem::take(&mut self.lines));
        while let Some(lines) = last.take() {
            if let Err(Order::Write(lines, _)) = self.write(lines) {
                // Room there is when a buffer has been written, of this loop's or another's.
                if left().is_zero() {
                    self.lost += self.count;
                    break;
                }
                let _: Result<_, RecvTimeoutError> = self.empty.recv_timeout(left().min(ROOM));
                last = Some(lines);
            }
        }
        self.tell_of_losses();
    }
}

impl Second {
    fn text(&mut self, now: SystemTime) -> &str {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        if second != self.second {
            self.second = second;
            let time =
                i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
            let time = time.unwrap_or(jiff::Timestamp::MAX);
            self.text = time.strftime("[%d/%b/%Y:%H:%M:%S +0000]").to_string();
        }
        &self.text
    }
}

/// Whether the log goes there instead of to a file of that name.
fn is_standard_output(path: &Path) -> bool {
    path == Path::new("-")
}

fn client(address: &Address, out: &mut Vec<u8>) {
    match address.as_tcp() {
        // A vector takes whatever is written.
        Some(address) => _ = write!(out, "{}", address.ip().to_canonical()),
        None => out.push(b'-'),
    }
}

/// So that nothing of a client's can end a field or a line: as Apache does it.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b' '..=b'~' => out.push(*byte),
            _ => _ = write!(out, "\\x{byte:02x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::ops::{Deref, DerefMut};

    use epoll_protocols::http1::Rejection;

    use super::*;

    /// A writer and the log of the only loop.
    struct Started {
        log: AccessLog,
        writer: LogWriter,
    }

    impl Started {
        fn end(self) {
            drop(self.log);
            self.writer.finish();
        }
    }

    impl Deref for Started {
        type Target = AccessLog;

        fn deref(&self) -> &AccessLog {
            &self.log
        }
    }

    impl DerefMut for Started {
        fn deref_mut(&mut self) -> &mut AccessLog {
            &mut self.log
        }
    }

    fn start(path: &Path) -> Started {
        let writer = LogWriter::start(Destination::open(path).unwrap()).unwrap();
        Started { log: writer.log(), writer }
    }

    fn refused(status: u16, time: SystemTime) -> Answered<'static> {
        static CLIENT: Address = Address::UnixUnnamed;
        let rejection = Some(Rejection::NotHttp);
        Answered { client: &CLIENT, request: None, rejection, time, status, body_bytes: 0 }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_a_client_says_stays_in_its_field() {
        let cases: [(&[u8], &str); 5] = [
            (b"/plain?a=b", "/plain?a=b"),
            (b"a\" 200 0 \"", "a\\\" 200 0 \\\""),
            (b"a\\b", "a\\\\b"),
            (b"a\r\n127.0.0.1", "a\\x0d\\x0a127.0.0.1"),
            (b"\x1b[2J\x00\x7f\xc3\xa9", "\\x1b[2J\\x00\\x7f\\xc3\\xa9"),
        ];
        for (text, escaped) in cases {
            let mut out = Vec::new();
            escape(text, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), escaped);
        }
    }

    #[test]
    fn addresses_and_times() {
        for (address, text) in [
            ("192.0.2.1:80", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
        ] {
            let mut out = Vec::new();
            client(&Address::Tcp(address.parse().unwrap()), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
        let mut second = Second { second: u64::MAX, text: String::new() };
        assert_eq!(second.text(at(0)), "[01/Jan/1970:00:00:00 +0000]");
        assert_eq!(second.text(at(951_827_696)), "[29/Feb/2000:12:34:56 +0000]");
        assert!(second.text(at(u64::MAX / 4)).contains("/Dec/9999:"), "{}", second.text);
        assert_eq!(second.text(UNIX_EPOCH - Duration::from_secs(5)), "[01/Jan/1970:00:00:00 +0000]");
    }

    #[test]
    fn rotation_loses_and_repeats_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access");
        let mut log = start(&path);
        for round in 0..20_u64 {
            for line in 0..1_000 {
                log.record(&refused(200, at(round * 1_000 + line)));
            }
            // Some have been handed over by now and some have not: all go to the old file.
            fs::rename(&path, directory.path().join(format!("{round:03}"))).unwrap();
            log.reopen();
            let mut patience = 1_000;
            while !path.exists() {
                patience -= 1;
                assert!(patience > 0, "the file is not opened anew");
                thread::sleep(Duration::from_millis(5));
            }
        }
        log.end();
        let mut files: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 21);
        let mut second = Second { second: u64::MAX, text: String::new() };
        for (round, file) in (0..).zip(&files) {
            // Nothing comes behind the last rotation, to the one that kept its name.
            let lines = if round < 20 { round * 1_000..(round + 1) * 1_000 } else { 0..0 };
            let expected: String = lines
                .map(|line| format!("- - - {} \"-\" 200 - \"-\" \"-\"\n", second.text(at(line))))
                .collect();
            let written = fs::read_to_string(file).unwrap();
            assert!(written == expected, "{}: {} lines", file.display(), written.lines().count());
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_at_the_start_and_the_old_one_kept_later() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("no/where");
        let error = Destination::open(&nowhere).err().unwrap().to_string();
        assert!(error.contains(nowhere.to_str().unwrap()), "{error}");

        let path = directory.path().join("access");
        let mut log = start(&path);
        let mut file = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        log.reopen();
        log.record(&refused(404, at(0)));
        log.end();
        let mut written = String::new();
        file.read_to_string(&mut written).unwrap();
        assert!(written.contains(" 404 "), "{written:?}");
    }

    #[test]
    fn buffers_come_back_to_be_filled_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = start(&directory.path().join("access"));
        let mut patience = 1_000;
        loop {
            log.record(&refused(200, at(0)));
            log.flush();
            // A new one has none before its first line.
            if log.lines.capacity() > 0 {
                break;
            }
            patience -= 1;
            assert!(patience > 0, "each buffer is a new one");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(log.lines.is_empty(), "with lines that have been written");
    }

    /// A pipe that nobody reads is a disk that does not keep up.
    #[test]
    fn a_writer_that_is_stuck_costs_lines_and_no_time() {
        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        let mut log = start(Path::new(&path));
        let line = {
            log.record(&refused(200, at(0)));
            log.lines.len()
        };
        let enough = (WAITING + 10) * ENOUGH / line + 100_000 / line;
        for _ in 1..enough {
            log.record(&refused(200, at(0)));
        }
        log.flush();
        assert!(log.lost > 0, "nothing is lost though nothing is read");
        log.reopen();
        assert!(log.reopen, "there is no room for that either, so it is kept in mind");
        let mut lost = log.lost;
        let read = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text.lines().count()
        });
        // It is told of them when there is room again.
        let (mut more, mut patience) = (0, 10_000);
        while log.lost > 0 {
            lost = log.lost;
            more += 1;
            assert!(more < 10_000, "there is no room though all is read");
            thread::sleep(Duration::from_millis(1));
            log.record(&refused(200, at(0)));
            log.flush();
        }
        while log.reopen {
            patience -= 1;
            assert!(patience > 0, "it is never opened anew");
            thread::sleep(Duration::from_millis(1));
            log.flush();
        }
        log.end();
        // Only now, since until then the path has to be that of the pipe; and the reader waits for this.
        drop(writer);
        let expected = enough + more - usize::try_from(lost).unwrap();
        assert_eq!(read.join().unwrap(), expected, "every line is written or counted as lost");
    }

    #[test]
    fn at_the_end_the_last_lines_wait_for_room() {
        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        let mut log = start(Path::new(&path));
        drop(writer);
        while log.lost == 0 {
            log.record(&refused(200, at(0)));
        }
        log.record(&refused(503, at(0)));
        let read = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        log.end();
        let text = read.join().unwrap();
        assert!(text.lines().last().unwrap().contains(" 503 "));
    }

    #[test]
    fn the_lines_of_several_loops_go_to_one_file_whole_and_each_loop_s_in_their_order() {
        const LOOPS: u16 = 3;
        // Less than may wait for the writer, so that none is lost.
        const LINES: u64 = 10_000;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access");
        let writer = LogWriter::start(Destination::open(&path).unwrap()).unwrap();
        thread::scope(|scope| {
            for index in 0..LOOPS {
                let mut log = writer.log();
                scope.spawn(move || {
                    (0..LINES).for_each(|line| log.record(&refused(400 + index, at(line))));
                });
            }
        });
        writer.finish();
        let written = fs::read_to_string(&path).unwrap();
        let mut second = Second { second: u64::MAX, text: String::new() };
        let mut next = [0; LOOPS as usize];
        for line in written.lines() {
            let of = usize::from(line.split(' ').nth(6).unwrap().parse::<u16>().unwrap() - 400);
            let expected = format!("- - - {} \"-\" {} - \"-\" \"-\"", second.text(at(next[of])), 400 + of);
            assert_eq!(line, expected);
            next[of] += 1;
        }
        assert_eq!(next, [LINES; LOOPS as usize]);
    }
}
