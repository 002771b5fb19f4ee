//! A pipe, for what a loop may watch besides connections: what is written at one end must be read at the other.

use std::io;

use epoll_reactor::sim::{Sim, SimFd, SimKernel};
use epoll_reactor::{Kernel, Source, Timestamp};
use fastrand::Rng;

use super::failure::{Failure, demand};
use super::patience::Patience;
use super::plan::magnitude;
use super::voice::{self, Ear};

/// The number that it speaks under.
const VOICE: u64 = 1 << 61;

pub(crate) struct Pipe {
    sim: Sim,
    /// The writing end, and a kernel to write by: another thread, as it were.
    writer: Option<(SimKernel, SimFd)>,
    written: u64,
    read: u64,
    /// Something lies there, since it was last written or read.
    waiting: Option<Patience>,
}

impl Pipe {
    pub(crate) fn new(sim: &Sim) -> Self {
        Self { sim: sim.clone(), writer: None, written: 0, read: 0, waiting: None }
    }

    /// Makes it; the reading end.
    pub(crate) fn open(&mut self) -> io::Result<SimFd> {
        let (reader, writer) = self.sim.pipe()?;
        self.writer = Some((self.sim.kernel(), writer));
        Ok(reader)
    }

    /// Writes as much as there is room for.
    pub(crate) fn write(&mut self, rng: &mut Rng) {
        let bytes = voice::speak(VOICE, self.written, magnitude(rng, 1, 10_000));
        if let Some((kernel, writer)) = &self.writer
            && let Ok(count) = kernel.write(writer, &bytes)
        {
            self.written += count as u64;
            self.waiting.get_or_insert(Patience::new(self.sim.now()));
        }
    }

    /// After a turn that began at `began`, by the end of which `read` bytes had been read.
    pub(crate) fn check(&mut self, read: u64, began: Timestamp) -> Result<(), Failure> {
        if self.read != read {
            self.read = read;
            self.waiting = (read < self.written).then(|| Patience::new(self.sim.now()));
        }
        let starved = self.waiting.as_mut().is_some_and(|waiting| waiting.is_over(began));
        demand!(
            !starved,
            "starvation",
            "{} bytes lie in a pipe that is watched, and nobody reads them",
            self.written - read
        );
        Ok(())
    }
}

/// The handler's side of it.
#[derive(Debug, Default)]
pub(crate) struct PipeReader(Ear);

impl PipeReader {
    /// Bytes read.
    pub(crate) const fn heard(&self) -> u64 {
        self.0.heard
    }

    /// Reads until it is empty.
    ///
    /// # Errors
    /// What is not the next byte, or no answer of a pipe's.
    pub(crate) fn read(&mut self, source: &Source<'_>, rng: &mut Rng) -> Result<(), String> {
        let mut buffer = vec![0; magnitude(rng, 1, 4_096)];
        loop {
            match source.read(&mut buffer) {
                Ok(count) => self.0.hear(buffer.get(..count).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
