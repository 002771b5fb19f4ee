//! The other threads' way in: a bounded queue of typed messages, and one wake for any number of them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, atomic::Ordering};
#[cfg(not(all(test, loom)))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize},
};

use epoll_sys::{Errno, Kernel, Linux, Timestamp};
// What the threads share, under a scheduler that tries their interleavings with up to so many preemptions: `remote/model.rs`.
#[cfg(all(test, loom))]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize},
};

use crate::balance::Handed;
use crate::ctx::Ctx;
use crate::limits::Limits;
use crate::metrics::{LoopMetrics, LoopPhase};

/// Sends messages to a reactor from any thread, and asks it to drain. Cheap to clone.
///
/// Each send resolves exactly once: accepted, full, or closed. An accepted message reaches
/// [`on_message`](crate::Handler::on_message) before `run` returns, or is dropped with a reactor that
/// is dropped before its run has ended. Messages of one thread keep their order.
pub struct Remote<M, K: Kernel = Linux> {
    shared: Arc<Shared<M, K::Fd>>,
}

/// Why a message was not accepted. It is handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteError<M> {
    /// [`Limits::message_queue`](crate::Limits::message_queue) messages are waiting: try again later, or slow down.
    Full(M),
    /// The reactor has ended; no message will be accepted again.
    Closed(M),
}

/// What the threads and the loop share.
pub(crate) struct Shared<M, F> {
    queue: Mutex<Queue<M, F>>,
    /// A wake is on its way. Set by the first sender after the loop last looked; the others save the system
    /// call. The loop clears it *before* it takes the messages, so a message put in after it looked finds the
    /// flag clear and wakes it again.
    wake_pending: AtomicBool,
    /// What the loop is to do besides, of the bits of [`Orders`].
    orders: AtomicU8,
    /// When a drain that was asked for must have ended, in nanoseconds of the kernel's clock; 0: after the loop's own
    /// grace.
    drain_by: AtomicU64,
    /// How many clients wait in the queue for the loop to take them over. Written under its lock, read without.
    waiting: AtomicUsize,
    capacity: usize,
    /// As many connections the loop may have.
    pub(crate) connections: usize,
    pub(crate) eventfd: F,
    /// The loop's, here so that they can be read before there is one, and wherever a way in is.
    pub(crate) metrics: Arc<LoopMetrics>,
}

/// What other threads have asked of a loop, as bits, so that one look in a turn sees them all.
#[derive(Clone, Copy)]
pub(crate) struct Orders(u8);

impl Orders {
    const DRAIN: u8 = 1;
    const FORCE: u8 = 2;
    /// No order: a loop has been made for it.
    const TAKEN: u8 = 4;

    pub(crate) const fn drain(self) -> bool {
        self.0 & (Self::DRAIN | Self::FORCE) != 0
    }

    pub(crate) const fn force(self) -> bool {
        self.0 & Self::FORCE != 0
    }
}

struct Queue<M, F> {
    messages: VecDeque<M>,
    inspections: Vec<Inspection>,
    /// Clients that other loops have accepted.
    handed: VecDeque<Handed<F>>,
    /// It drains, and takes over none any more.
    refuses_handed: bool,
    closed: bool,
}

/// What [`Remote::inspect`] hands over.
pub(crate) type Inspection = Box<dyn FnOnce(&Ctx) + Send>;

/// So many may wait. They are for operators, of whom there are few, and each holds up the loop.
const INSPECTIONS: usize = 16;

/// What [`Shared::take`] found besides messages.
pub(crate) struct Taken<F> {
    /// More messages or clients are waiting.
    pub(crate) more: bool,
    pub(crate) inspections: Vec<Inspection>,
    pub(crate) handed: VecDeque<Handed<F>>,
}

impl<M, K: Kernel> Remote<M, K> {
    /// The way in to a loop that is yet to be made, by [`Reactor::with_remote`](crate::Reactor::with_remote) with the
    /// same kernel and limits: so that several loops can know of each other from the beginning. What is sent before
    /// that waits for it.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn for_kernel(kernel: &K, limits: &Limits) -> io::Result<Self> {
        Ok(Self::new(kernel.eventfd()?, limits.message_queue, limits.connections))
    }

    fn new(eventfd: K::Fd, capacity: usize, connections: usize) -> Self {
        let queue = Queue {
            messages: VecDeque::new(),
            inspections: Vec::new(),
            handed: VecDeque::new(),
            refuses_handed: false,
            closed: false,
        };
        let shared = Shared {
            queue: Mutex::new(queue),
            wake_pending: AtomicBool::new(false),
            orders: AtomicU8::new(0),
            drain_by: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            capacity,
            connections,
            eventfd,
            metrics: Arc::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Hands `message` to the loop.
    ///
    /// # Errors
    /// [`Full`](RemoteError::Full) and [`Closed`](RemoteError::Closed), with the message.
    pub fn send(&self, message: M) -> Result<(), RemoteError<M>> {
        {
            let mut queue = self.shared.lock();
            if queue.closed {
                return Err(RemoteError::Closed(message));
            }
            if queue.messages.len() >= self.shared.capacity {
                return Err(RemoteError::Full(message));
            }
            queue.messages.push_back(message);
        }
        self.wake();
        Ok(())
    }

    /// What the loop counts and measures: [`Reactor::metrics`](crate::Reactor::metrics).
    #[must_use]
    pub fn metrics(&self) -> &Arc<LoopMetrics> {
        &self.shared.metrics
    }

    /// Has the loop call `inspection` between two callbacks, in the next turn, for what only its own thread may look at:
    /// [`Ctx::list_connections`] above all. Everything waits meanwhile, so what takes long, such as writing a
    /// list down, is better done elsewhere with what this has sent there. A panic in it counts as one in a callback.
    ///
    /// One that is accepted is called before `run` returns, or dropped with a reactor that is dropped before. A loop that
    /// is held up in a callback calls it late, so wait for what it sends with a bound.
    ///
    /// # Errors
    /// [`Full`](RemoteError::Full) if 16 are waiting already, and [`Closed`](RemoteError::Closed). It is dropped then.
    pub fn inspect(&self, inspection: impl FnOnce(&Ctx) + Send + 'static) -> Result<(), RemoteError<()>> {
        {
            let mut queue = self.shared.lock();
            if queue.closed {
                return Err(RemoteError::Closed(()));
            }
            if queue.inspections.len() >= INSPECTIONS {
                return Err(RemoteError::Full(()));
            }
            queue.inspections.push(Box::new(inspection));
        }
        self.wake();
        Ok(())
    }

    /// Has the loop open a client that another one has accepted. It does, or closes it, unless it is handed back, since too
    /// many wait already or it drains.
    pub(crate) fn hand_over(&self, client: Handed<K::Fd>) -> Result<(), Handed<K::Fd>> {
        {
            let mut queue = self.shared.lock();
            if queue.closed || queue.refuses_handed || queue.handed.len() >= self.shared.capacity {
                return Err(client);
            }
            queue.handed.push_back(client);
            self.shared.waiting.store(queue.handed.len(), Ordering::Relaxed);
        }
        self.wake();
        Ok(())
    }

    /// How many messages may wait for the loop: its [`Limits::message_queue`](crate::Limits::message_queue).
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// Asks the loop to drain within [`Limits::drain_grace`](crate::Limits::drain_grace), at once. Asking a
    /// loop that has ended does nothing.
    pub fn drain(&self) {
        self.order(Orders::DRAIN);
    }

    /// The same, with an end that is not the loop's own to choose.
    pub(crate) fn drain_by(&self, deadline: Timestamp) {
        self.shared.drain_by.store(deadline.as_nanoseconds(), Ordering::SeqCst);
        self.order(Orders::DRAIN);
    }

    /// Has the loop close every connection and end, whether it drains already or not.
    pub(crate) fn force(&self) {
        self.order(Orders::FORCE);
    }

    fn order(&self, order: u8) {
        self.shared.orders.fetch_or(order, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if !self.shared.wake_pending.swap(true, Ordering::SeqCst) {
            // EAGAIN means that the counter is full: the loop has 2^64 - 2 wakes to look at already.
            let _: Result<(), Errno> = K::notify(&self.shared.eventfd);
        }
    }

    pub(crate) fn shared(&self) -> &Shared<M, K::Fd> {
        &self.shared
    }
}

impl<M, F> Shared<M, F> {
    /// Whether anything has been sent since the last [`take`](Self::take).
    pub(crate) fn is_wake_pending(&self) -> bool {
        self.wake_pending.load(Ordering::SeqCst)
    }

    pub(crate) fn orders(&self) -> Orders {
        Orders(self.orders.load(Ordering::SeqCst))
    }

    /// When the drain that was asked for must have ended, if it was said.
    pub(crate) fn drain_deadline(&self) -> Option<Timestamp> {
        let at = self.drain_by.load(Ordering::SeqCst);
        (at != 0).then(|| Timestamp::from_nanoseconds(at))
    }

    /// Says whether no loop has been made for it yet; from now on one has.
    pub(crate) fn claim(&self) -> bool {
        self.orders.fetch_or(Orders::TAKEN, Ordering::SeqCst) & Orders::TAKEN == 0
    }

    /// How many clients wait for the loop to take them over.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes over no more clients, but for those that wait, which it returns.
    pub(crate) fn refuse_handed(&self) -> VecDeque<Handed<F>> {
        let mut queue = self.lock();
        queue.refuses_handed = true;
        self.take_handed(&mut queue, usize::MAX)
    }

    fn take_handed(&self, queue: &mut Queue<M, F>, budget: usize) -> VecDeque<Handed<F>> {
        let left = queue.handed.split_off(budget.min(queue.handed.len()));
        self.waiting.store(left.len(), Ordering::Relaxed);
        std::mem::replace(&mut queue.handed, left)
    }

    /// Moves up to `budget` messages to `into`, and takes up to `clients` that were handed over.
    pub(crate) fn take(&self, budget: usize, clients: usize, into: &mut VecDeque<M>) -> Taken<F> {
        // A swap and not a store: it reads what the last sender's swap wrote, so all that came before that, a
        // drain asked for among it, is seen from here on.
        let _: bool = self.wake_pending.swap(false, Ordering::SeqCst);
        let mut queue = self.lock();
        if into.is_empty() && queue.messages.len() <= budget {
            std::mem::swap(&mut queue.messages, into);
        } else {
            let count = budget.min(queue.messages.len());
            into.extend(queue.messages.drain(..count));
        }
        let handed = self.take_handed(&mut queue, clients);
        let more = !queue.messages.is_empty() || !queue.handed.is_empty();
        Taken { more, inspections: std::mem::take(&mut queue.inspections), handed }
    }

    /// Accepts no more messages; those accepted before can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Accepts no more messages and drops those that no loop will take any more, though others hold a way in to it. Clients
    /// that wait are closed.
    pub(crate) fn abandon(&self) {
        // Not under the lock, and last: what a message does when it is dropped is its own affair.
        drop(self.end());
    }

    /// The same, but the caller drops what is left.
    pub(crate) fn end(&self) -> impl Sized + use<M, F> {
        let left = {
            let mut queue = self.lock();
            queue.closed = true;
            let handed = self.take_handed(&mut queue, usize::MAX);
            (handed, std::mem::take(&mut queue.messages), std::mem::take(&mut queue.inspections))
        };
        self.metrics.note_phase(LoopPhase::Ended);
        left
    }

    /// A sender that panicked while it held the lock had done nothing by halves: its message is in or not.
    fn lock(&self) -> MutexGuard<'_, Queue<M, F>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M, K: Kernel> Clone for Remote<M, K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M, K: Kernel> fmt::Debug for Remote<M, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("capacity", &self.shared.capacity).finish_non_exhaustive()
    }
}

impl<M> RemoteError<M> {
    /// The message that was not accepted.
    pub fn into_message(self) -> M {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

impl<M> fmt::Display for RemoteError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "too many messages are waiting for the loop",
            Self::Closed(_) => "the loop has ended",
        })
    }
}

impl<M: fmt::Debug> std::error::Error for RemoteError<M> {}

#[cfg(test)]
#[cfg(loom)]
mod model;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn remote(capacity: usize) -> Remote<u32> {
        let kernel = Linux::new().unwrap();
        Remote::new(kernel.eventfd().unwrap(), capacity, 1)
    }

    #[test]
    fn resolves_each_send_once_and_hands_back_what_it_refuses() {
        let remote = remote(2);
        assert_eq!(remote.send(1), Ok(()));
        assert_eq!(remote.send(2), Ok(()));
        assert_eq!(remote.send(3), Err(RemoteError::Full(3)));
        remote.shared().close();
        assert_eq!(remote.send(4), Err(RemoteError::Closed(4)));
        let mut taken = VecDeque::new();
        assert!(!remote.shared().take(10, 0, &mut taken).more);
        assert_eq!(taken, [1, 2]);
    }

    #[test]
    fn takes_no_more_than_its_budget_and_says_that_more_is_waiting() {
        let remote = remote(10);
        (0..5).for_each(|message| remote.send(message).unwrap());
        let mut taken = VecDeque::new();
        assert!(remote.shared().take(3, 0, &mut taken).more);
        assert_eq!(taken, [0, 1, 2]);
        assert!(!remote.shared().take(3, 0, &mut taken).more);
        assert_eq!(taken, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn many_sends_make_one_wake() {
        let remote = remote(100);
        (0..50).for_each(|message| remote.send(message).unwrap());
        let mut counter = [0; 8];
        let kernel = Linux::new().unwrap();
        kernel.read(&remote.shared().eventfd, &mut counter).unwrap();
        assert_eq!(u64::from_ne_bytes(counter), 1);
    }
}
