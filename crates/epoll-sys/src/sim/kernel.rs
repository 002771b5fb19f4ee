//! [`SimKernel`], one epoll instance of a world, and [`SimFd`], a descriptor in it: the way in from
//! [`Kernel`] to the world.

use std::fmt;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use super::Sim;
use super::plain::Plain;
use super::record::{Outcome, Step, Subject};
use super::table::Key;
use super::world::{Kind, World};
use crate::{
    Address, ConnectProgress, Errno, Events, Interest, Kernel, ListenOptions, Signal, Then, Timestamp,
};

/// A simulated kernel: one epoll instance in the world of a [`Sim`], and the calls that go with it. Made by
/// [`Sim::kernel`]; dropping it ends all its registrations. The instance itself takes no descriptor.
#[derive(Debug)]
pub struct SimKernel {
    sim: Sim,
    epoll: usize,
}

/// A descriptor in a simulated world. Dropping it closes it.
pub struct SimFd {
    sim: Sim,
    key: Key,
}

impl SimFd {
    /// The number that it has in traces and violations. It is used again after a close, as in Linux.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.sim.world().objects.get(self.key).and_then(|object| object.number).unwrap_or(-1)
    }
}

impl fmt::Debug for SimFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFd({})", self.number())
    }
}

impl Drop for SimFd {
    fn drop(&mut self) {
        self.sim.world().close(self.key);
    }
}

impl Drop for SimKernel {
    fn drop(&mut self) {
        self.sim.world().close_epoll(self.epoll);
    }
}

impl SimKernel {
    pub(super) fn new(sim: Sim) -> Self {
        let epoll = sim.world().open_epoll();
        Self { sim, epoll }
    }

    /// One call on `fd`: counted, made, and noted with what it came to.
    fn call<T>(
        &self,
        fd: &SimFd,
        step: Step,
        call: impl FnOnce(&mut World, Key) -> Result<T, Errno>,
        tell: impl FnOnce(&T) -> Outcome,
    ) -> Result<T, Errno> {
        call_on(&self.sim, fd, step, call, tell)
    }

    /// One call that makes a descriptor.
    fn make<T>(
        &self,
        step: Step,
        make: impl FnOnce(&mut World) -> Result<(Key, T), Errno>,
    ) -> Result<(SimFd, T), Errno> {
        let mut world = self.sim.world();
        world.begin(step);
        let made = make(&mut world);
        if let Ok((key, _)) = &made {
            world.open(*key);
            world.note_for(*key, step.name(), Outcome::Done);
        } else {
            world.note(Subject::Epoll(self.epoll), step.name(), Outcome::from(&made));
        }
        made.map(|(key, more)| (SimFd { sim: self.sim.clone(), key }, more))
    }
}

fn call_on<T>(
    sim: &Sim,
    fd: &SimFd,
    step: Step,
    call: impl FnOnce(&mut World, Key) -> Result<T, Errno>,
    tell: impl FnOnce(&T) -> Outcome,
) -> Result<T, Errno> {
    let mut world = sim.world();
    world.begin(step);
    if !sim.is_same(&fd.sim) {
        world.record.violation(format!("{}: the descriptor is of another world", step.name()));
        return Err(Errno::EBADF);
    }
    if world.objects.get(fd.key).is_none_or(|object| object.number.is_none()) {
        world.violation(fd.key, "used after it was closed");
        return Err(Errno::EBADF);
    }
    let result = call(&mut world, fd.key);
    let outcome = result.as_ref().map_or_else(|&errno| Outcome::Failed(errno), tell);
    world.note_for(fd.key, step.name(), outcome);
    result
}

fn number(count: &usize) -> Outcome {
    Outcome::Number(*count as u64)
}

fn done<T>(_: &T) -> Outcome {
    Outcome::Done
}

impl Kernel for SimKernel {
    type Fd = SimFd;

    fn now(&self) -> Timestamp {
        self.sim.now()
    }

    fn wall_clock(&self) -> SystemTime {
        self.sim.wall_clock()
    }

    fn add(&self, fd: &SimFd, interest: Interest, token: u64) -> Result<(), Errno> {
        let tell = |_: &()| Outcome::Registered(token);
        self.call(fd, Step::Add, |world, key| world.add(self.epoll, key, interest, token), tell)
    }

    fn delete(&self, fd: &SimFd) -> Result<(), Errno> {
        self.call(fd, Step::Delete, |world, key| world.delete(self.epoll, key), done)
    }

    fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<(), Errno> {
        self.sim.world().wait(self.epoll, events, timeout)
    }

    fn listen(&self, address: &Address, options: &ListenOptions) -> Result<SimFd, Errno> {
        let made = self.make(Step::Listen, |world| {
            world.check_descriptor_room()?;
            Ok((world.listen(address, options)?, ()))
        });
        made.map(|(fd, ())| fd)
    }

    fn remove_socket_file(&self, address: &Address) -> Result<(), Errno> {
        let mut world = self.sim.world();
        world.begin(Step::RemoveSocketFile);
        let removed = world.remove_socket_file(address);
        world.note(Subject::Epoll(self.epoll), Step::RemoveSocketFile.name(), Outcome::from(&removed));
        removed
    }

    fn local_address(&self, socket: &SimFd) -> Result<Address, Errno> {
        self.call(socket, Step::LocalAddress, World::local_address, done)
    }

    fn accept(&self, listener: &SimFd) -> Result<(SimFd, Address), Errno> {
        let accept = |world: &mut World, key| {
            let (server, peer) = world.accept(key)?;
            world.open(server);
            let number = world.objects.get(server).and_then(|object| object.number);
            Ok((server, peer, number.unwrap_or(-1)))
        };
        let tell = |(server, _, number): &(Key, Address, i32)| Outcome::Accepted(server.index(), *number);
        let (key, peer, _) = self.call(listener, Step::Accept, accept, tell)?;
        Ok((SimFd { sim: self.sim.clone(), key }, peer))
    }

    fn connect(&self, address: &Address) -> Result<(SimFd, ConnectProgress), Errno> {
        self.make(Step::Connect, |world| {
            world.check_descriptor_room()?;
            world.connect(address)
        })
    }

    fn take_error(&self, socket: &SimFd) -> Result<Option<Errno>, Errno> {
        let tell = |error: &Option<Errno>| error.map_or(Outcome::Done, Outcome::Failed);
        self.call(socket, Step::TakeError, World::take_error, tell)
    }

    fn recv(&self, socket: &SimFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.call(socket, Step::Recv, |world, key| world.recv(key, buffer), number)
    }

    fn send(&self, socket: &SimFd, data: &[u8]) -> Result<usize, Errno> {
        self.call(socket, Step::Send, |world, key| world.send(key, &[data], Step::Send), number)
    }

    fn writev(&self, socket: &SimFd, pieces: &[IoSlice<'_>], _: Then) -> Result<usize, Errno> {
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
        self.call(socket, Step::Writev, |world, key| world.send(key, &pieces, Step::Writev), number)
    }

    fn sendfile(&self, socket: &SimFd, file: &File, offset: u64, count: usize) -> Result<usize, Errno> {
        self.call(socket, Step::Sendfile, |world, key| world.sendfile(key, file, offset, count), number)
    }

    fn shutdown_write(&self, socket: &SimFd) -> Result<(), Errno> {
        self.call(socket, Step::ShutdownWrite, World::shutdown_write, done)
    }

    fn reset_on_close(&self, socket: &SimFd) -> Result<(), Errno> {
        self.call(socket, Step::ResetOnClose, World::reset_on_close, done)
    }

    fn read(&self, fd: &SimFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.call(fd, Step::Read, |world, key| world.read(key, buffer), number)
    }

    fn write(&self, fd: &SimFd, data: &[u8]) -> Result<usize, Errno> {
        self.call(fd, Step::Write, |world, key| world.write(key, data), number)
    }

    fn as_raw<'fd>(&self, _: &'fd SimFd) -> Option<BorrowedFd<'fd>> {
        None
    }

    fn eventfd(&self) -> Result<SimFd, Errno> {
        let made = self.make(Step::Eventfd, |world| {
            world.check_descriptor_room()?;
            Ok((world.insert(Kind::Plain(Plain::Eventfd(0))), ()))
        });
        made.map(|(fd, ())| fd)
    }

    fn notify(eventfd: &SimFd) -> Result<(), Errno> {
        call_on(&eventfd.sim, eventfd, Step::Notify, World::notify, done)
    }

    fn signalfd(&self, signals: &[Signal]) -> Result<SimFd, Errno> {
        let made = self.make(Step::Signalfd, |world| {
            world.check_descriptor_room()?;
            Ok((world.new_signalfd(signals), ()))
        });
        made.map(|(fd, ())| fd)
    }

    fn read_signal(&self, signalfd: &SimFd) -> Result<Option<Signal>, Errno> {
        self.call(signalfd, Step::ReadSignal, World::read_signal, done)
    }
}

impl Sim {
    /// A pipe(2), the reading end first: for tests of what else a program may have registered.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn pipe(&self) -> Result<(SimFd, SimFd), Errno> {
        let mut world = self.world();
        world.check_descriptor_room()?;
        world.check_descriptor_room()?;
        let (reader, writer) = world.new_pipe();
        world.open(reader);
        world.open(writer);
        let descriptor = |key| SimFd { sim: self.clone(), key };
        Ok((descriptor(reader), descriptor(writer)))
    }
}
