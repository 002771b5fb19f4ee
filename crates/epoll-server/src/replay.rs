//! `--replay FILE`, in builds that have it: what clients sent to a server, from a file of --trace-file and --capture, played
//! to the same protocol with the same flags on a simulated kernel, and printed with what each is answered.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use epoll_protocols::http1::Http;
use epoll_protocols::{Broadcast, Echo};
use epoll_reactor::sim::{Course, LeftOut, Replay, Replayed, ReplayedClient};
use epoll_reactor::{Limits, Recording};

use crate::http::Site;
use crate::options::{Options, Protocol};
use crate::page::Board;
use crate::{log, trace};

/// So many connections that are left out are named; of more there is the number.
const NAMED: usize = 10;

/// Plays `file`, and prints what came of it.
///
/// # Errors
/// The file cannot be read, or is no trace; limits or a directory will not do. A callback has panicked. Standard output
/// takes no more, unless nobody reads it any longer.
pub(crate) fn run(file: &Path, options: Options) -> io::Result<()> {
    let recording = trace::open(file)?;
    log::start();
    let Options { limits, loops, protocol, .. } = options;
    let limits = share_of(&limits, &recording, loops.count.get())?;
    let replay = Replay::new(&recording);
    let others = if matches!(protocol, Protocol::Broadcast(_)) { loops.count.get() - 1 } else { 0 };
    let replayed = match protocol {
        Protocol::Broadcast(config) => replay.run(Broadcast::new(config), limits),
        Protocol::Echo => replay.run(Echo, limits),
        // Its access log is that of the server. No threads: what they would do is done at once.
        Protocol::Http(config, content) => {
            let site = Site::open(&config, &content, None, Board::new(1).slot(0))?;
            replay.run(Http::new(site, config), limits)
        }
    }?;
    let mut output = BufWriter::new(io::stdout().lock());
    let written = write(&recording, &replay, &replayed, others, &mut output);
    verdict(written, replayed.panics)
}

fn verdict(written: io::Result<()>, panics: u64) -> io::Result<()> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ if panics > 0 => {
            Err(io::Error::other(format!("callbacks that panicked: {panics}; the log has them")))
        }
        _ => Ok(()),
    }
}

/// The limits of the loop that was recorded.
fn share_of(limits: &Limits, recording: &Recording, count: usize) -> io::Result<Limits> {
    let index = usize::try_from(recording.worker).unwrap_or(usize::MAX);
    limits
        .share_of(index, count)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
}

/// `others`: of how many loops a client could hear which are not here.
fn write(
    recording: &Recording,
    replay: &Replay<'_>,
    replayed: &Replayed,
    others: usize,
    output: &mut impl Write,
) -> io::Result<()> {
    let time = humantime::format_rfc3339_nanos(recording.wall);
    let (worker, played, left_out) = (recording.worker, replay.clients(), replay.left_out());
    writeln!(output, "loop {worker} at {time}: {played} clients, {} left out", left_out.len())?;
    if others > 0 {
        let whose = if others == 1 { "loop's" } else { "loops'" };
        writeln!(
            output,
            "the lines of the other {whose} clients are not in it: answers lack them, and the numbers of clients differ"
        )?;
    }
    write_left_out(left_out, output)?;
    for client in &replayed.clients {
        write_client(client, output)?;
    }
    output.flush()
}

fn write_left_out(left_out: &[LeftOut], output: &mut impl Write) -> io::Result<()> {
    let mut counts: Vec<(_, usize)> = Vec::new();
    for LeftOut { reason, .. } in left_out {
        match counts.iter_mut().find(|(found, _)| found == reason) {
            Some((_, count)) => *count += 1,
            None => counts.push((*reason, 1)),
        }
    }
    if counts.is_empty() {
        return Ok(());
    }
    let parts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count}, {reason}")).collect();
    writeln!(output, "left out: {}", parts.join("; "))?;
    if left_out.len() <= NAMED {
        for left_out in left_out {
            writeln!(output, "left out: {left_out}")?;
        }
    }
    Ok(())
}

fn write_client(client: &ReplayedClient, output: &mut impl Write) -> io::Result<()> {
    let ReplayedClient { recorded, replayed, before, after, .. } = client;
    write!(output, "connection {recorded}: ")?;
    match replayed {
        // It has done nothing, but that is not what was recorded.
        None => writeln!(output, "not let in; recorded: {}", in_words(before))?,
        Some(_) if after == before => writeln!(output, "{}, as recorded", in_words(after))?,
        Some(_) => writeln!(output, "{}; recorded: {}", in_words(after), in_words(before))?,
    }
    for (mark, bytes) in [('>', &client.sent), ('<', &client.answer)] {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            writeln!(output, "  {mark} {}", line.escape_ascii())?;
        }
    }
    Ok(())
}

fn in_words(course: &Course) -> String {
    let end = course.reason.map_or("open", |reason| reason.name());
    format!("{} bytes read, {} written, {end}", course.read, course.written)
}

#[cfg(test)]
mod tests {
    use epoll_reactor::ConnId;

    use super::*;

    #[test]
    fn the_limits_are_those_of_the_loop_that_was_recorded() {
        let limits = Limits { connections: 10, ..Limits::default() };
        let share = |worker, count| {
            let time = epoll_reactor::Timestamp::from_nanoseconds(1);
            let wall = std::time::UNIX_EPOCH;
            let (records, input) = (Vec::new(), Vec::new());
            let recording = Recording { worker, overwritten: 0, time, wall, records, input };
            share_of(&limits, &recording, count).unwrap().connections
        };
        assert_eq!([share(0, 3), share(1, 3), share(0, 1), share(u32::MAX, 3)], [4, 3, 10, 3]);
    }

    #[test]
    fn who_was_not_let_in_has_not_gone_as_recorded() {
        let connection = ConnId::from_u64(1 << 32 | 7);
        let told = |replayed| {
            let (sent, answer) = (Vec::new(), b"full\n".to_vec());
            let (before, after) = (Course::default(), Course::default());
            let ending = epoll_reactor::sim::Ending::Ended;
            let client =
                ReplayedClient { recorded: connection, replayed, sent, answer, ending, before, after };
            let mut output = Vec::new();
            write_client(&client, &mut output).unwrap();
            String::from_utf8(output).unwrap()
        };
        let course = "0 bytes read, 0 written, open";
        let expected = format!("connection 7.1: not let in; recorded: {course}\n  < full\\n\n");
        assert_eq!(told(None), expected);
        let expected = format!("connection 7.1: {course}, as recorded\n  < full\\n\n");
        assert_eq!(told(Some(connection)), expected);
    }

    #[test]
    fn a_panic_is_an_error_and_a_reader_that_has_left_is_none() {
        let broken = || Err(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(verdict(Ok(()), 0).is_ok() && verdict(broken(), 0).is_ok());
        for written in [Ok(()), broken()] {
            assert_eq!(
                verdict(written, 2).unwrap_err().to_string(),
                "callbacks that panicked: 2; the log has them"
            );
        }
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(verdict(Err(full), 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
