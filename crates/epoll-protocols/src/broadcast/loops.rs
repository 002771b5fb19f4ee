//! Lines on their way to the clients of other loops: what is told, how much may be waiting, and who waits for room.
//!
//! From each loop to each other one there is a link, and on it a bound in messages and in bytes. The loop that takes a
//! message says so in the link's counts, and tells the one that sent it when half of the link is free, if that has asked.
//! A loop takes messages in every turn, whether its own clients are held up or not, so two that have filled each
//! other's links both get on.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use epoll_reactor::{Kernel, RemoteError, Worker};

/// What the [`Broadcast`](crate::Broadcast)s of several loops share: the numbers of their clients, and how much is on its
/// way between them. Made once, for all of them; cheap to clone.
#[derive(Clone, Debug)]
pub struct BroadcastLoops(Arc<Between>);

#[derive(Debug)]
struct Between {
    count: usize,
    /// How many clients there have been, in all loops.
    clients: AtomicU64,
    /// That from loop `from` to loop `to` at `from * count + to`.
    links: Box<[Link]>,
}

/// What is on its way from one loop to another. Only the one adds to it, and only the other takes off.
#[derive(Debug, Default)]
struct Link {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// The one that sends waits to be told of room.
    wanted: AtomicBool,
}

/// What a loop tells another, by its [`Remote`](epoll_reactor::Remote). Only [`Broadcast`](crate::Broadcast) makes them.
#[derive(Debug)]
pub struct BroadcastMessage(Word);

#[derive(Debug)]
pub(super) enum Word {
    /// Lines as receivers get them, in one buffer for all loops.
    Lines { from: usize, lines: u64, data: Arc<[u8]> },
    /// Half of the link to `from` is free again.
    Room { from: usize },
    /// No more lines come from `from`, which drains: it waits for the same word.
    Last { from: usize },
    /// `from` has ended. What was sent to it before may be lost.
    Ended { from: usize },
    /// From a loop to itself, in the turn after a `Last`: it is to be answered now, unless this loop drains too.
    Answer,
}

impl BroadcastLoops {
    /// For `count` loops.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let links = (0..count.saturating_mul(count)).map(|_| Link::default()).collect();
        Self(Arc::new(Between { count, clients: AtomicU64::new(0), links }))
    }

    /// How many messages, and bytes of lines in them, loop `from` has sent and loop `to` has not taken.
    #[must_use]
    pub fn on_the_way(&self, from: usize, to: usize) -> (usize, usize) {
        self.0.link(from, to).map_or((0, 0), Link::on_the_way)
    }
}

impl Between {
    fn link(&self, from: usize, to: usize) -> Option<&Link> {
        if to < self.count { self.links.get(from * self.count + to) } else { None }
    }
}

impl Link {
    fn on_the_way(&self) -> (usize, usize) {
        (self.messages.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst))
    }

    fn put(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    fn take(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.messages.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the sender has to wait. If so it will be told, once. The order of both sides makes sure of that: the sender
    /// asks and then looks again, the receiver takes and then looks whether it was asked.
    fn waits_for_room(&self, window: Window) -> bool {
        if !window.is_full(self.on_the_way()) {
            return false;
        }
        self.wanted.store(true, Ordering::SeqCst);
        // Who takes the question back answers it.
        !(window.is_half_free(self.on_the_way()) && self.wanted.swap(false, Ordering::SeqCst))
    }

    /// Whether the sender is to be told that there is room.
    fn is_to_be_told(&self, window: Window) -> bool {
        window.is_half_free(self.on_the_way()) && self.wanted.swap(false, Ordering::SeqCst)
    }
}

/// How much may be on its way between two loops when one more message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    messages: usize,
    bytes: usize,
}

impl Window {
    /// More would only make a loop's turn longer.
    const MOST_MESSAGES: usize = 64;
    /// One that says that there is room, the last, and the end.
    const RESERVED: usize = 3;

    /// For a loop with `others` others, a queue for `queue` messages, and `bytes` for all of them; `None` if the queue is
    /// too short.
    fn new(others: usize, queue: usize, bytes: usize) -> Option<Self> {
        // One is for the loop's own answer.
        let each = queue.saturating_sub(1) / others.max(1);
        let messages = each.checked_sub(Self::RESERVED)?.min(Self::MOST_MESSAGES);
        (messages > 0).then_some(Self { messages, bytes: (bytes / others.max(1)).max(1) })
    }

    const fn is_full(self, (messages, bytes): (usize, usize)) -> bool {
        messages >= self.messages || bytes >= self.bytes
    }

    const fn is_half_free(self, (messages, bytes): (usize, usize)) -> bool {
        messages <= self.messages / 2 && bytes <= self.bytes / 2
    }
}

impl BroadcastMessage {
    pub(super) fn word(self) -> Word {
        self.0
    }
}

type Send = Box<dyn Fn(BroadcastMessage) -> Result<(), RemoteError<BroadcastMessage>>>;

/// The other loops, as one sees them.
pub(super) struct Peers {
    between: Arc<Between>,
    index: usize,
    window: Window,
    /// All loops, by their number. To itself, a loop has said its last word.
    peers: Vec<Peer>,
    /// Lines of the callback that is running, for the others.
    batch: Vec<u8>,
    lines: u64,
    /// There is an `Answer` on its way.
    answering: bool,
}

struct Peer {
    send: Send,
    /// It is to tell when there is room.
    waited_for: bool,
    said_last: bool,
    heard_last: bool,
}

impl Peers {
    /// As the loop `worker` sees them; `bytes` may be on their way to it.
    pub(super) fn new<K: Kernel + 'static>(
        loops: &BroadcastLoops,
        worker: &Worker<BroadcastMessage, K>,
        bytes: usize,
    ) -> io::Result<Self> {
        let refused = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        let (count, index) = (worker.count(), worker.index());
        if loops.0.count != count {
            return Err(refused(format!("{} loops share what is for {}", count, loops.0.count)));
        }
        let queue = worker.remotes().iter().map(|remote| remote.capacity()).min().unwrap_or(0);
        let window = Window::new(count - 1, queue, bytes)
            .ok_or_else(|| refused(format!("a queue of {queue} messages is too short for {count} loops")))?;
        let peers = worker.remotes().iter().enumerate().map(|(number, remote)| {
            let remote = remote.clone();
            let itself = number == index;
            let send: Send = Box::new(move |message| remote.send(message));
            Peer { send, waited_for: false, said_last: itself, heard_last: itself }
        });
        let peers = peers.collect();
        Ok(Self {
            between: Arc::clone(&loops.0),
            index,
            window,
            peers,
            batch: Vec::new(),
            lines: 0,
            answering: false,
        })
    }

    /// The number of a new client: no other has it, in any loop.
    pub(super) fn count_client(&self) -> u64 {
        self.between.clients.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether there is room for lines on the links to all others. If not, it will be told of, once for each.
    pub(super) fn have_room(&mut self) -> bool {
        let mut have_room = true;
        for (to, peer) in self.peers.iter_mut().enumerate() {
            if peer.said_last {
                continue;
            }
            if !peer.waited_for {
                let link = self.between.link(self.index, to);
                peer.waited_for = link.is_some_and(|link| link.waits_for_room(self.window));
            }
            have_room &= !peer.waited_for;
        }
        have_room
    }

    /// Whether one of them is to tell of room.
    pub(super) fn are_waited_for(&self) -> bool {
        self.peers.iter().any(|peer| peer.waited_for)
    }

    /// A line for all others, as receivers get it.
    pub(super) fn add(&mut self, line: &[u8]) {
        self.batch.extend_from_slice(line);
        self.lines += 1;
    }

    /// Sends what was [added](Self::add), as one message in one buffer. There must be [room](Self::have_room).
    pub(super) fn send(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines == 0 {
            return;
        }
        let data: Arc<[u8]> = self.batch.as_slice().into();
        self.batch.clear();
        self.batch.shrink_to(super::SCRATCH_KEPT);
        for (to, peer) in self.peers.iter_mut().enumerate().filter(|(_, peer)| !peer.said_last) {
            let Some(link) = self.between.link(self.index, to) else { continue };
            link.put(data.len());
            let word = Word::Lines { from: self.index, lines, data: Arc::clone(&data) };
            if let Err(error) = (peer.send)(BroadcastMessage(word)) {
                link.take(data.len());
                peer.refused(to, &error);
            }
        }
    }

    /// `bytes` of lines that loop `from` has sent are taken.
    pub(super) fn taken(&mut self, from: usize, bytes: usize) {
        let Some(link) = self.between.link(from, self.index) else { return };
        link.take(bytes);
        if link.is_to_be_told(self.window)
            && let Some(peer) = self.peers.get_mut(from)
            && let Err(error) = (peer.send)(BroadcastMessage(Word::Room { from: self.index }))
        {
            peer.refused(from, &error);
        }
    }

    /// Loop `from` tells of room.
    pub(super) fn room(&mut self, from: usize) {
        if let Some(peer) = self.peers.get_mut(from) {
            peer.waited_for = false;
        }
    }

    /// Loop `from` has said its last word, and waits for ours. It may be that all drain, and only this loop has not heard of
    /// it: in its next turn it has, and then what its clients had said before goes to the others first.
    pub(super) fn last(&mut self, from: usize) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.heard_last = true;
        if !peer.said_last && !std::mem::replace(&mut self.answering, true) {
            let itself = self.peers.get(self.index);
            // It has ended otherwise, and says so when it is dropped.
            let sent = itself.is_some_and(|itself| (itself.send)(BroadcastMessage(Word::Answer)).is_ok());
            self.answering = sent;
        }
    }

    /// The time has come to answer those who wait for our last word, if this loop does not `drain`.
    pub(super) fn answer(&mut self, drains: bool) {
        self.answering = false;
        for peer in self.peers.iter_mut().filter(|peer| peer.heard_last && !drains) {
            peer.say_last(self.index);
        }
    }

    /// Loop `from` has ended: nobody waits for it.
    pub(super) fn ended(&mut self, from: usize) {
        if let Some(peer) = self.peers.get_mut(from) {
            peer.said_last = true;
            peer.heard_last = true;
            peer.waited_for = false;
        }
    }

    /// No more lines will be sent to anybody.
    pub(super) fn say_last(&mut self) {
        self.peers.iter_mut().for_each(|peer| peer.say_last(self.index));
    }

    /// Whether no more lines will come from anybody.
    pub(super) fn have_said_last(&self) -> bool {
        self.peers.iter().all(|peer| peer.heard_last)
    }
}

impl Peer {
    fn say_last(&mut self, from: usize) {
        if !std::mem::replace(&mut self.said_last, true) {
            self.waited_for = false;
            if let Err(error) = (self.send)(BroadcastMessage(Word::Last { from })) {
                self.refused(from, &error);
            }
        }
    }

    /// It has taken no message, and so it has ended: the windows leave room for each that is sent. What it has said may
    /// still be in this loop's queue, with its last word or its end behind it.
    fn refused(&mut self, number: usize, error: &RemoteError<BroadcastMessage>) {
        debug_assert!(matches!(error, RemoteError::Closed(_)), "loop {number}: {error}");
        self.said_last = true;
        self.waited_for = false;
    }
}

/// Whoever waits for this loop waits no more, even if it has ended by a panic: by then it is closed, so that no more comes.
impl Drop for Peers {
    fn drop(&mut self) {
        for peer in self.peers.iter().enumerate().filter_map(|(to, peer)| (to != self.index).then_some(peer))
        {
            // One that has ended too need not know.
            let _: Result<(), _> = (peer.send)(BroadcastMessage(Word::Ended { from: self.index }));
        }
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loop {} of {}", self.index, self.peers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_are_no_lines_always_have_room_in_the_queue() {
        for (others, queue) in [(1, 5), (1, 100), (2, 9), (7, 256), (1023, 4096)] {
            let window = Window::new(others, queue, 1 << 20).unwrap();
            assert!(
                others * (window.messages + Window::RESERVED) < queue,
                "{window:?} for {others} in {queue}"
            );
            assert!(window.messages <= Window::MOST_MESSAGES && window.bytes <= (1 << 20) / others);
        }
        for (others, queue) in [(1, 4), (2, 8), (1024, 4096), (1, 0)] {
            assert_eq!(Window::new(others, queue, 1 << 20), None, "{others} in {queue}");
        }
    }

    #[test]
    fn who_waits_is_told_once_when_half_is_free_and_who_does_not_wait_is_not() {
        let window = Window { messages: 4, bytes: 100 };
        // Full by messages, and by bytes.
        for (size, most) in [(1, 4), (40, 3)] {
            let link = Link::default();
            let mut sent = 0;
            while !link.waits_for_room(window) {
                link.put(size);
                sent += 1;
            }
            assert_eq!(sent, most);
            let told: Vec<bool> = (0..sent)
                .map(|_| {
                    link.take(size);
                    link.is_to_be_told(window)
                })
                .collect();
            assert_eq!(told.iter().filter(|told| **told).count(), 1, "{told:?}");
            assert!(!told[0], "not before half is free");
            assert_eq!(link.on_the_way(), (0, 0));
            link.put(1);
            link.take(1);
            assert!(!link.waits_for_room(window) && !link.is_to_be_told(window));
        }
    }

    #[test]
    fn room_that_comes_while_it_is_asked_for_is_seen_by_one_of_both() {
        // The order of the steps of both sides, whichever comes first.
        let window = Window { messages: 1, bytes: 100 };
        for _ in 0..2000 {
            let link = Link::default();
            link.put(10);
            let (waits, told) = std::thread::scope(|scope| {
                let sender = scope.spawn(|| link.waits_for_room(window));
                link.take(10);
                let told = link.is_to_be_told(window);
                (sender.join().unwrap(), told)
            });
            assert_eq!(waits, told, "it waits if and only if it will be told");
        }
    }
}
