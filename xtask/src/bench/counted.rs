//! Figures that do not depend on time: memory of idle clients, system calls, instructions.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::check::{self, connect};
use super::servers::{Entry, Service};
use super::stats::{Metric, Sample};
use super::wrk::{PIPELINE, Script};
use crate::process::{Server, guarded};

/// Asks `count` times, each when the last answer is there; so many requests at a time are one question.
struct Asker {
    client: TcpStream,
    question: Vec<u8>,
    /// Bytes of its answer, once it is known.
    length: usize,
    requests: u32,
}

impl Asker {
    fn new(port: u16, service: Service, pipelined: bool) -> io::Result<Self> {
        let mut client = connect(port)?;
        if service == Service::Echo {
            return Ok(Self { client, question: vec![7; 64], length: 64, requests: 1 });
        }
        let one = check::request(Script::Plain);
        client.write_all(&one)?;
        // The answer to one request, whose length that of all others is: it is the last thing that comes.
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        while !answer.ends_with(b"Hello, World!") {
            match client.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => answer.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            }
        }
        let times = if pipelined { PIPELINE } else { 1 };
        Ok(Self { client, question: one.repeat(times), length: answer.len() * times, requests: times as u32 })
    }

    fn ask(&mut self, requests: u32) -> io::Result<()> {
        let mut answer = vec![0; self.length];
        for _ in 0..requests / self.requests {
            self.client.write_all(&self.question)?;
            self.client.read_exact(&mut answer)?;
        }
        if self.length != self.question.len() && !answer.ends_with(b"Hello, World!") {
            return Err(io::Error::other("wrong answer: it has another end"));
        }
        Ok(())
    }
}

/// Resident memory of 9,000 clients that have been answered once.
pub(super) fn idle(server: &Server, service: Service) -> io::Result<Sample> {
    const CLIENTS: u32 = 9_000;
    let mut clients = Vec::new();
    let mut serve = |count| -> io::Result<()> {
        for _ in 0..count {
            let mut client = Asker::new(server.port, service, false)?;
            if service == Service::Echo {
                client.ask(1)?;
            }
            clients.push(client.client);
        }
        Ok(())
    };
    // The first touches what the server itself needs.
    serve(1)?;
    let before = server.resident()?;
    serve(CLIENTS)?;
    let after = server.resident()?;
    let each = after.saturating_sub(before) as f64 / f64::from(CLIENTS);
    Ok(Sample::from([(Metric::BytesPerConnection, each), (Metric::Resident, after as f64)]))
}

/// By `strace -c`, which is attached when the client has been answered once: what is counted is the steady state.
pub(super) fn syscalls(server: &Server) -> io::Result<Sample> {
    const REQUESTS: u32 = 10_000;
    let mut client = Asker::new(server.port, Service::Http, false)?;
    let mut command = guarded(None);
    command.args(["strace", "-c", "-f", "-p", &server.id().to_string()]);
    let mut strace = command.stderr(Stdio::piped()).spawn()?;
    let mut report = BufReader::new(strace.stderr.take().ok_or_else(|| io::Error::other("no stderr"))?);
    let mut line = String::new();
    report.read_line(&mut line)?;
    let asked = if line.contains("attached") { client.ask(REQUESTS) } else { Err(io::Error::other(line)) };
    // It detaches, and tells.
    Command::new("kill").args(["-INT", &strace.id().to_string()]).status()?;
    let mut summary = String::new();
    report.read_to_string(&mut summary)?;
    strace.wait()?;
    asked?;
    let calls = total_calls(&summary).ok_or_else(|| io::Error::other(summary))?;
    Ok(Sample::from([(Metric::Syscalls, calls / f64::from(REQUESTS))]))
}

/// What the line `total` has beneath `calls`, whose column ends where its title does: others may be empty.
fn total_calls(summary: &str) -> Option<f64> {
    let title = summary.lines().find(|line| line.starts_with("% time"))?;
    let end = title.find("calls")? + "calls".len();
    let total = summary.lines().rfind(|line| line.trim_end().ends_with(" total"))?;
    total.get(..end)?.split_whitespace().last()?.parse().ok()
}

/// By callgrind: what 2,208 requests take more than 208, so that the start and the end are not in it.
pub(super) fn instructions(
    entry: &Entry,
    service: Service,
    pipelined: bool,
    directory: &Path,
) -> io::Result<Sample> {
    const FEW: u32 = 208;
    const MANY: u32 = 2208;
    let counted = |requests| -> io::Result<f64> {
        let log = directory.join("callgrind.log");
        let mut valgrind = guarded(None);
        valgrind.args(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        valgrind.arg(format!("--log-file={}", log.display()));
        let server = entry.start(service, &[], valgrind, directory)?;
        let mut client = Asker::new(server.port, service, pipelined)?;
        client.ask(requests)?;
        drop(client);
        server.terminate()?;
        let text = std::fs::read_to_string(log)?;
        collected(&text).ok_or_else(|| io::Error::other(text))
    };
    let each = (counted(MANY)? - counted(FEW)?) / f64::from(MANY - FEW);
    Ok(Sample::from([(Metric::Instructions, each)]))
}

/// `==1== Collected : 123456`.
fn collected(log: &str) -> Option<f64> {
    log.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reports_of_tools_are_read() {
        let strace = "% time     seconds  usecs/call     calls    errors syscall\n\
                      ------ ----------- ----------- --------- --------- ----------------\n \
                      50.00    0.100000          10     10000           recvfrom\n\
                      ------ ----------- ----------- --------- --------- ----------------\n\
                      100.00    0.200000          10     30001         2 total\n";
        assert_eq!(total_calls(strace), Some(30_001.0));
        // As versions before 6 have it.
        let older = strace.replace("0.200000          10     30001", "0.200000                 30001");
        assert_eq!(total_calls(&older), Some(30_001.0));
        assert_eq!(total_calls("strace: attach: Operation not permitted\n"), None);
        assert_eq!(collected("==7== \n==7== Collected : 4052467\n==7== \n"), Some(4_052_467.0));
        assert_eq!(collected("==7== killed\n"), None);
    }
}
