//! The other end of the access log: the file, written by a thread, opened anew when it is told to, and its troubles. Not
//! what is in the lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::Duration;

/// How long a pipe that is full and does not block is given before it is tried again.
const FULL: Duration = Duration::from_millis(5);

/// What a loop asks of the writer.
pub(super) enum Order {
    /// Whole lines, and where their buffer goes back to, of the loop they come from.
    Write(Vec<u8>, Sender<Vec<u8>>),
    Reopen,
}

/// Opens the file for appending; standard output without a path.
///
/// # Errors
/// Those of open(2), with the path.
pub(super) fn open(path: Option<&Path>) -> io::Result<File> {
    let Some(path) = path else {
        // Not by way of `io::Stdout`: its buffer would keep what could not be written, and not say so.
        return Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?));
    };
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.map_err(|error| io::Error::new(error.kind(), format!("access log {}: {error}", path.display())))
}

/// Does what it is told until there are no more orders.
pub(super) fn run(path: Option<&Path>, file: File, orders: &Receiver<Order>) {
    let mut output = Output::new(file);
    for order in orders {
        match order {
            Order::Write(mut lines, empty) => {
                output.write(&lines);
                lines.clear();
                // The loop may have ended.
                let _: Result<(), _> = empty.send(lines);
            }
            Order::Reopen => match open(path) {
                Ok(file) => {
                    output.replace(file);
                    if let Some(path) = path {
                        log::info!("access log {}: opened anew", path.display());
                    }
                }
                Err(error) => log::error!("{error}; the old file is kept"),
            },
        }
    }
    output.end();
}

/// A file that lines are written to, whole or not at all as far as that is up to it.
struct Output<W> {
    file: W,
    /// It ends with a part of a line.
    torn: bool,
    /// Lines that could not be written since it was last told.
    lost: usize,
}

impl<W: Write> Output<W> {
    const fn new(file: W) -> Self {
        Self { file, torn: false, lost: 0 }
    }

    /// Of lines that cannot be written it tells the log, once before and once behind them.
    fn write(&mut self, lines: &[u8]) {
        // The next line must not be taken for the rest of a torn one.
        if self.torn && self.file.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        let (written, error) = if self.torn { (0, None) } else { write_some(&mut self.file, lines) };
        let (done, rest) = lines.split_at_checked(written).unwrap_or((lines, &[]));
        if let Some(last) = done.last() {
            self.torn = *last != b'\n';
        }
        if let (Some(error), 0) = (error, self.lost) {
            log::error!("access log: {error}; lines are lost until it can be written again");
        }
        if !rest.is_empty() {
            self.lost += rest.iter().filter(|byte| **byte == b'\n').count();
        } else if self.lost > 0 {
            self.end();
        }
    }

    fn replace(&mut self, file: W) {
        self.file = file;
        self.torn = false;
    }

    fn end(&mut self) {
        // Not within the macro: what the log does not want to hear is not evaluated.
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            log::warn!("access log: {lost} lines lost that could not be written");
        }
    }
}

/// How much was written, and what was wrong with the rest.
fn write_some(file: &mut impl Write, data: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while let Some(rest @ [_, ..]) = data.get(written..) {
        match file.write(rest) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whoever shares standard output may have made it non-blocking. This thread has nothing else to do, and
            // while it waits the queue in front of it is what loses lines, and counts them.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL),
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        content: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let taken = data.len().min(self.room).min(7);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.content.extend_from_slice(&data[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn on_a_full_disk_lines_are_counted_and_none_is_taken_for_the_rest_of_another() {
        const LINES: &[u8] = b"first line\nsecond line\nthird line\n";
        for room in 0..=LINES.len() {
            let mut output = Output::new(Disk { content: Vec::new(), room });
            output.write(LINES);
            let whole = LINES[..room].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(output.lost, 3 - whole, "room for {room}");
            output.file.room = 0;
            output.write(b"lost\n");
            let lost = if room == LINES.len() { 1 } else { 4 - whole };
            assert_eq!(output.lost, lost, "room for {room}");
            output.file.room = 100;
            output.write(b"last\n");
            assert_eq!(output.lost, 0, "it has been told");
            let content = String::from_utf8(output.file.content).unwrap();
            let lines: Vec<_> = content.lines().collect();
            assert_eq!(lines.last(), Some(&"last"), "{content:?}");
            let expected = ["first line", "second line", "third line"];
            assert_eq!(lines[..whole], expected[..whole], "{content:?}");
            assert!(lines.len() <= whole + 2, "{content:?}");
        }
    }

    #[test]
    fn a_new_file_begins_with_a_line() {
        let mut output = Output::new(Disk { content: Vec::new(), room: 3 });
        output.write(b"torn\n");
        assert!(output.torn);
        output.replace(Disk { content: Vec::new(), room: 100 });
        output.write(b"whole\n");
        assert_eq!(output.file.content, b"whole\n");
    }
}
