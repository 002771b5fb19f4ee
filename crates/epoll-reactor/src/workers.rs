//! Several loops in one process, one a thread, each with its own handler and its own listeners: how they are set up,
//! started and ended. Who watches over them is in `workers/supervisor.rs`.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use epoll_sys::{Address, Errno, Kernel, Linux, ListenOptions, Signal, allowed_cpus, pin_to_cpu};

use crate::ctx::Ctx;
use crate::handler::Handler;
use crate::limits::Limits;
use crate::reactor::{Reactor, Stopped, first_of, name_address};
use crate::remote::Remote;
use supervisor::{Outcome, Supervisor, Word};

mod supervisor;

/// What a loop is told of itself and the others, when its handler is made.
pub struct Worker<M, K: Kernel = Linux> {
    index: usize,
    remote: Remote<M, K>,
    remotes: Arc<[Remote<M, K>]>,
}

impl<M, K: Kernel> Worker<M, K> {
    /// The worker at `index` of those that `remotes` lead to; `None` if there are not so many. [`Workers`] makes its own:
    /// this is for handlers that are run by hand, on a simulated kernel for instance.
    #[must_use]
    pub fn new(index: usize, remotes: Arc<[Remote<M, K>]>) -> Option<Self> {
        let remote = remotes.get(index)?.clone();
        Some(Self { index, remote, remotes })
    }

    /// Which one it is, from 0.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// How many there are, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.remotes.len()
    }

    /// The way in to this loop, from other threads.
    #[must_use]
    pub const fn remote(&self) -> &Remote<M, K> {
        &self.remote
    }

    /// The ways in to all loops, this one among them, by their [`index`](Self::index). A loop that has ended answers
    /// `Closed`.
    #[must_use]
    pub const fn remotes(&self) -> &Arc<[Remote<M, K>]> {
        &self.remotes
    }
}

/// Several loops, each on a thread of its own, named `worker-0` and so on, with a handler of its own. The thread that
/// runs them watches over them: it takes the signals, and hears of it when one has ended.
///
/// A TCP address is listened on by a socket for each loop, among which the kernel spreads new connections; on a Unix
/// socket whichever loop has the time accepts. A second process on the same address is an error, as with one loop.
///
/// A connection belongs to its loop for good. What handlers have to tell each other goes by [`Worker::remotes`].
///
/// ```no_run
/// use std::num::NonZeroUsize;
///
/// use epoll_reactor::{Address, ConnId, Ctx, Handler, Limits, ListenOptions, Signal, WorkerEvent, Workers};
///
/// struct Echo;
///
/// impl Handler for Echo {
///     type Conn = ();
///     type Message = ();
///
///     fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut (), input: &[u8]) -> usize {
///         if !ctx.send(id, input).is_accepted() {
///             ctx.close_now(id);
///         }
///         input.len()
///     }
/// }
///
/// fn main() -> std::io::Result<()> {
///     let count = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
///     let mut workers = Workers::new(count, Limits::default())?;
///     workers.listen_first(&Address::resolve("127.0.0.1:8080")?, &ListenOptions::default())?;
///     workers.drain_on_signals(&[Signal::Interrupt, Signal::Terminate])?;
///     let end = workers.run(|_| Ok(Echo), |event| {
///         if event == WorkerEvent::AllStarted {
///             println!("all loops are there");
///         }
///     })?;
///     if end.died > 0 { Err(std::io::Error::other("a loop has died")) } else { Ok(()) }
/// }
/// ```
pub struct Workers<M> {
    /// Those of one loop each.
    limits: Vec<Limits>,
    kernels: Vec<Linux>,
    remotes: WaysIn<M>,
    groups: Vec<Group>,
    /// The CPU of each.
    cpus: Option<Vec<usize>>,
    balanced: bool,
    draining: Vec<Signal>,
    watched: Vec<Signal>,
    panic_hook: Option<PanicHook>,
    /// Behind the listeners, which are closed first.
    files: SocketFiles,
}

/// The ways in to the loops. Others hold some too, and are to know when no loop will take anything any more: when this is
/// dropped, whether they ever ran or not.
struct WaysIn<M>(Arc<[Remote<M>]>);

impl<M> Drop for WaysIn<M> {
    fn drop(&mut self) {
        // All of them first: to drop what is left may be a panic of a message.
        drop(self.0.iter().map(|remote| remote.shared().end()).collect::<Vec<_>>());
    }
}

/// What is called after a panic in a callback of any loop.
type PanicHook = Arc<dyn Fn(usize, &Ctx) + Send + Sync>;

/// The listeners for one address, one for each loop.
struct Group {
    bound: Address,
    listeners: Vec<<Linux as Kernel>::Fd>,
}

/// What [`Workers::run`] has to tell while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerEvent {
    /// Every loop has its handler and accepts connections. It comes once, before anything else but signals.
    AllStarted,
    /// One of the signals of [`Workers::watch_signals`] has come.
    Signal(Signal),
    /// The loop of this index has ended by an error or a panic, which the log tells. Its connections are closed; the
    /// others go on.
    Died(usize),
}

/// How several loops have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkersEnd {
    /// The hardest end of those that did not die.
    pub stopped: Stopped,
    /// Connections that were closed because the grace had passed or a second signal came.
    pub cut_off: u64,
    /// How many loops have ended by an error or a panic.
    pub died: usize,
}

impl<M: Send> Workers<M> {
    /// `count` loops, without handlers yet. Of `limits`, `connections`, `connections_per_address` and `memory` are for all
    /// of them together, and each loop has [its share](Limits::share_of); the rest is for each.
    ///
    /// # Errors
    /// Limits that contradict each other or are too small for so many (`InvalidInput`), or no descriptors for the two that
    /// each loop begins with.
    pub fn new(count: NonZeroUsize, limits: Limits) -> io::Result<Self> {
        let refused = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        limits.check().map_err(refused)?;
        let count = count.get();
        let shares = (0..count).map(|index| limits.share_of(index, count)).collect::<Result<Vec<_>, _>>();
        let shares = shares.map_err(refused)?;
        let kernels = (0..count).map(|_| Linux::new()).collect::<Result<Vec<_>, Errno>>()?;
        let remotes = kernels.iter().zip(&shares).map(|(kernel, limits)| Remote::for_kernel(kernel, limits));
        Ok(Self {
            remotes: WaysIn(remotes.collect::<io::Result<_>>()?),
            limits: shares,
            kernels,
            groups: Vec::new(),
            cpus: None,
            balanced: false,
            draining: Vec::new(),
            watched: Vec::new(),
            panic_hook: None,
            files: SocketFiles(Vec::new()),
        })
    }

    /// The ways in to the loops, which exist from now on: what is sent before they run waits for them, and is dropped if
    /// they never do.
    #[must_use]
    pub const fn remotes(&self) -> &Arc<[Remote<M>]> {
        &self.remotes.0
    }

    /// Listens on `address` with every loop, as [`Linux::listen_group`] says. Any number of addresses may be listened on.
    /// Returns the address it is, with the real port where 0 was asked for. Clients that connect before the loops run
    /// wait for them.
    ///
    /// When a loop has died, the TCP connections that waited for it in its sockets are reset, unless
    /// net.ipv4.tcp_migrate_req is 1; new ones go to the other loops.
    ///
    /// # Errors
    /// As for [`Reactor::listen`].
    pub fn listen(&mut self, address: &Address, options: &ListenOptions) -> io::Result<Address> {
        let named = |errno| name_address(address, errno);
        let listeners = Linux::listen_group(address, options, self.remotes.0.len()).map_err(named)?;
        if let Address::Unix(_) = address {
            self.files.0.push(address.clone());
        }
        let first = listeners.first().zip(self.kernels.first());
        let bound = first.map_or(Err(Errno::EINVAL), |(listener, kernel)| kernel.local_address(listener));
        let bound = bound.map_err(named)?;
        self.groups.push(Group { bound: bound.clone(), listeners });
        Ok(bound)
    }

    /// Listens on the first of `addresses` that can be listened on, as [`Reactor::listen_first`] does.
    ///
    /// # Errors
    /// As for [`listen`](Self::listen), of the last address; `InvalidInput` if there is none.
    pub fn listen_first(&mut self, addresses: &[Address], options: &ListenOptions) -> io::Result<Address> {
        first_of(addresses, |address| self.listen(address, options))
    }

    /// Has each loop run on a CPU of its own, of those that this process may use, and has it get the TCP connections whose
    /// first segment comes in there ([`Linux::steer_by_cpu`]), on whatever address. Threads that a handler starts run
    /// there too.
    ///
    /// # Errors
    /// `InvalidInput`: there are more loops than CPUs.
    pub fn pin(&mut self) -> io::Result<()> {
        let mut cpus = allowed_cpus()?;
        let (workers, found) = (self.remotes.0.len(), cpus.len());
        if workers > found {
            let text = format!("{workers} loops cannot have a CPU each: this process may use {found}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        cpus.truncate(workers);
        self.cpus = Some(cpus);
        Ok(())
    }

    /// Has a loop hand clients that it accepts to the one that has the fewest connections, if those are clearly fewer than
    /// its own or it has no room for more, before anything was spent on them: as [`Reactor::balance`] says.
    ///
    /// The kernel spreads clients by chance, and on a Unix socket whoever is awake has the next. That is good enough for many
    /// clients, or short connections, but not for a few that stay for long. A loop counts connections, not what they ask for; if
    /// that leaves it clearly busier than another one, connections whose handler says [that they may](crate::Ctx::hand_over) go there.
    pub const fn balance(&mut self) {
        self.balanced = true;
    }

    /// Drains all loops at the first of `signals`, with one end to the grace of all of them, and forces the end at the
    /// second. They are blocked in this thread and in those it starts from now on, as with
    /// [`Reactor::drain_on_signals`].
    ///
    /// # Errors
    /// None in practice; see [`block_signals`](crate::block_signals).
    pub fn drain_on_signals(&mut self, signals: &[Signal]) -> io::Result<()> {
        epoll_sys::block_signals(signals)?;
        self.draining.extend_from_slice(signals);
        Ok(())
    }

    /// Has [`run`](Self::run) tell of each of `signals` by [`WorkerEvent::Signal`], on the thread that runs it: no handler
    /// is told. They are blocked in the same way.
    ///
    /// # Errors
    /// As for [`drain_on_signals`](Self::drain_on_signals).
    pub fn watch_signals(&mut self, signals: &[Signal]) -> io::Result<()> {
        epoll_sys::block_signals(signals)?;
        self.watched.extend_from_slice(signals);
        Ok(())
    }

    /// Has `hook` called as [`Reactor::on_panic`] says, on the thread of whichever loop it is, with that one's index.
    pub fn on_panic(&mut self, hook: impl Fn(usize, &Ctx) + Send + Sync + 'static) {
        self.panic_hook = Some(Arc::new(hook));
    }

    /// Starts the loops and returns when all have ended: drained, by a signal or [`Remote::drain`] of each, or died.
    ///
    /// `factory` makes the handler of each loop, on that loop's thread, so a handler need not be [`Send`]. `on_event` is
    /// called on the calling thread, and must not block: signals wait for it. If it panics, all loops are ended before the
    /// panic goes on.
    ///
    /// A loop that ends by an error or a panic (of a callback only with
    /// [`PanicPolicy::Propagate`](crate::PanicPolicy::Propagate)) is logged, and the others go on.
    ///
    /// # Errors
    /// A loop cannot start: the error of `factory`, or of its thread, its descriptors or its CPU. The other loops are
    /// ended. Or the thread that watches over them cannot go on, and neither do they.
    pub fn run<H>(
        self,
        factory: impl Fn(&Worker<M>) -> io::Result<H> + Sync,
        on_event: impl FnMut(WorkerEvent),
    ) -> io::Result<WorkersEnd>
    where
        H: Handler<Message = M>,
    {
        let Self {
            limits,
            kernels,
            remotes: ways_in,
            groups,
            cpus,
            balanced,
            draining,
            watched,
            panic_hook,
            files,
        } = self;
        let remotes = &ways_in.0;
        let grace = limits.first().map(|limits| limits.drain_grace).unwrap_or_default();
        let mut groups = steer(groups, cpus.as_deref())?;
        let mut supervisor = Supervisor::start(Arc::clone(remotes), on_event, grace, &draining, &watched)?;
        let words = supervisor.remote();
        let result = thread::scope(|scope| {
            for (index, (limits, kernel)) in limits.into_iter().zip(kernels).enumerate() {
                let listeners = groups.iter_mut().filter_map(|(bound, listeners)| {
                    listeners.next().map(|listener| (listener, bound.clone()))
                });
                let cpu = cpus.as_ref().and_then(|cpus| cpus.get(index).copied());
                let panic_hook = panic_hook.clone();
                let listeners = listeners.collect();
                let start = Start { kernel, limits, cpu, balanced, panic_hook, listeners };
                let Some(worker) = Worker::new(index, Arc::clone(remotes)) else { break };
                let (words, factory) = (words.clone(), &factory);
                let run = move || {
                    let ended = caught(|| start.run(&worker, factory, &words));
                    // It may drop messages, and whatever they do then, the last word is waited for.
                    let left = caught(|| worker.remote.shared().abandon());
                    words.tell(Word::Ended(index, left.and(ended)));
                };
                if let Err(error) = thread::Builder::new().name(thread_name(index)).spawn_scoped(scope, run) {
                    supervisor.give_up(index, error);
                    break;
                }
            }
            supervisor.run()
        });
        drop(groups);
        drop(files);
        result
    }
}

/// What a loop's thread begins with.
struct Start {
    kernel: Linux,
    limits: Limits,
    cpu: Option<usize>,
    balanced: bool,
    panic_hook: Option<PanicHook>,
    listeners: Vec<(<Linux as Kernel>::Fd, Address)>,
}

impl Start {
    fn run<H: Handler>(
        self,
        worker: &Worker<H::Message>,
        factory: &impl Fn(&Worker<H::Message>) -> io::Result<H>,
        words: &supervisor::Words,
    ) -> io::Result<Outcome> {
        if let Some(cpu) = self.cpu {
            pin_to_cpu(cpu)?;
            log::debug!("loop {} has CPU {cpu}", worker.index);
        }
        let handler = factory(worker)?;
        let mut reactor = Reactor::with_remote(self.kernel, handler, self.limits, worker.remote.clone())?;
        reactor.ctx.recorder.worker = u32::try_from(worker.index).unwrap_or(u32::MAX);
        if let Some(hook) = self.panic_hook {
            let index = worker.index;
            reactor.on_panic(move |ctx| hook(index, ctx));
        }
        for (listener, bound) in self.listeners {
            reactor.share_listener(listener, bound)?;
        }
        if self.balanced {
            reactor.balance(worker);
        }
        words.tell(Word::Started(worker.index));
        let stopped = reactor.run()?;
        Ok(Outcome { stopped, cut_off: reactor.ctx().counters().cut_off })
    }
}

/// A listener for each loop, and where it listens.
type Listeners = (Address, std::vec::IntoIter<<Linux as Kernel>::Fd>);

/// Has the kernel choose the loop by its CPU, where each has one.
fn steer(groups: Vec<Group>, cpus: Option<&[usize]>) -> io::Result<Vec<Listeners>> {
    let steered = groups.into_iter().map(|Group { bound, listeners }| {
        if let (Some(cpus @ [_, _, ..]), Some(listener), Address::Tcp(_)) = (cpus, listeners.first(), &bound)
        {
            Linux::steer_by_cpu(listener, cpus)?;
        }
        Ok((bound, listeners.into_iter()))
    });
    steered.collect()
}

/// The name of a loop's thread, and what the log calls it. The kernel shows 15 bytes of it.
fn thread_name(index: usize) -> String {
    format!("worker-{index}")
}

/// What `call` returns, or what it said when it panicked.
fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| what_it_said(&*panic))
}

fn what_it_said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// Removes the files of Unix sockets at the end, once no loop has their listeners.
struct SocketFiles(Vec<Address>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        // The call is none of an epoll instance's, but the trait is.
        let Ok(kernel) = Linux::new() else { return };
        for address in &self.0 {
            match kernel.remove_socket_file(address) {
                Ok(()) | Err(Errno::ENOENT) => (),
                Err(errno) => log::warn!("cannot remove {address}: {}", errno.desc()),
            }
        }
    }
}

impl<M, K: Kernel> fmt::Debug for Worker<M, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({} of {})", self.index, self.remotes.len())
    }
}

impl<M> fmt::Debug for Workers<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("count", &self.remotes.0.len()).finish_non_exhaustive()
    }
}
