//! The log on standard error, written by a thread of its own: a pipe that nobody reads must not hold up the loop.
//! Not a format and not a filter: those are env_logger's.

use std::io::{self, Write};
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use env_logger::{Env, Target};

/// Lines that may wait to be written; beyond that they are dropped, and counted.
const LINES: usize = 4096;

/// How long the end of the program waits for the last lines to be written.
const PATIENCE: Duration = Duration::from_millis(500);

static LOG: OnceLock<SyncSender<Entry>> = OnceLock::new();

enum Entry {
    Line(Vec<u8>),
    /// All before this has been written, once it is dropped.
    Flush(SyncSender<()>),
}

/// Logs to standard error what `RUST_LOG` says. A log that cannot be written stops nothing.
pub(crate) fn start() {
    let from_environment = || env_logger::Builder::from_env(Env::default().default_filter_or("info"));
    // Of a `RUST_LOG` that makes no sense it tells with eprintln!, which panics where nothing can be written.
    let mut builder = panic::catch_unwind(from_environment).unwrap_or_else(|_| env_logger::Builder::new());
    let (lines, waiting) = sync_channel(LINES);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer = {
        let dropped = Arc::clone(&dropped);
        thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&waiting, &dropped))
    };
    // Without the thread, env_logger writes by itself: better a log that may block than none.
    if writer.is_ok() {
        builder.target(Target::Pipe(Box::new(Queue { lines: lines.clone(), dropped })));
        // It is set only here, once.
        let _ = LOG.set(lines);
    }
    builder.init();
}

/// Waits, not for ever, until what has been logged is written.
pub(crate) fn flush() {
    if let Some(lines) = LOG.get() {
        let (written, all_written) = sync_channel(0);
        if lines.try_send(Entry::Flush(written)).is_ok() {
            // It ends with an error in any case: the sender is dropped, or time is up.
            let _ = all_written.recv_timeout(PATIENCE);
        }
    }
}

fn write_lines(waiting: &Receiver<Entry>, dropped: &AtomicU64) {
    for entry in waiting {
        match entry {
            // Where nothing can be written there is nobody to tell.
            Entry::Line(line) => _ = io::stderr().write_all(&line),
            Entry::Flush(written) => drop(written),
        }
        let missing = dropped.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let _: io::Result<()> = writeln!(io::stderr(), "[{missing} lines of the log were dropped here]");
        }
    }
}

/// Where env_logger writes its lines: each in one call.
struct Queue {
    lines: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Entry::Line(line.to_vec())) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_nobody_reads_drops_lines_and_counts_them() {
        let (lines, waiting) = sync_channel(2);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut queue = Queue { lines, dropped: Arc::clone(&dropped) };
        for line in [b"one", b"two", b"six"] {
            assert_eq!(queue.write(line).unwrap(), 3);
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        drop(queue);
        let kept: Vec<Entry> = waiting.iter().collect();
        assert!(matches!(&kept[..], [Entry::Line(one), Entry::Line(two)] if one == b"one" && two == b"two"));
    }
}
