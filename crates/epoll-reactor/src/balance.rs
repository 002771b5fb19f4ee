//! Balance between loops: a new client is handed to the loop that has clearly the fewest connections, before anything was
//! spent on it. The queue it goes through is beside that of the messages, in `remote.rs`. Open connections that are moved
//! (`moving.rs`) take the same way.

use std::collections::VecDeque;
use std::time::Duration;

use epoll_sys::{Address, Kernel, Timestamp};

use crate::admission::Full;
use crate::handler::Handler;
use crate::listener::{Accepted, Entry};
use crate::metrics::LoopPhase;
use crate::moving::Mover;
use crate::reactor::Reactor;
use crate::remote::{Remote, Shared};
use crate::token::Token;
use crate::workers::Worker;

/// An accepted client on its way to another loop. Whoever drops it closes it.
#[derive(Debug)]
pub(crate) struct Handed<F> {
    /// The listener's, in the loop that has accepted, which is that of the same one in all loops: see
    /// [`Reactor::balance`].
    pub(crate) listener: Token,
    pub(crate) fd: F,
    pub(crate) peer: Address,
    pub(crate) journey: Journey,
}

/// Whether a client that is handed over has been open before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Journey {
    New,
    /// In the loop of that index, which has moved it here.
    Moved(usize),
    /// Here: it was moved away, and there was no room for it.
    Back,
}

/// A loop whose turn takes longer is held up, and whoever is handed to it would be, too.
const HELD_UP: Duration = Duration::from_millis(100);

/// Whether a loop with so many connections is to hand over to the one that has the `least`. One apart is none too many
/// where there are few, and of many one in sixteen: chance alone makes for about as much, and each hand-over is a wake.
const fn is_clearly_more(own: usize, least: usize) -> bool {
    own > least + least / 16
}

impl<M, F> Shared<M, F> {
    /// How many connections the loop has, those that wait for it among them.
    fn load(&self) -> usize {
        usize::try_from(self.metrics.open()).unwrap_or(usize::MAX).saturating_add(self.waiting())
    }

    /// The same, if it opens one more.
    fn load_if_open(&self) -> Option<usize> {
        let (load, metrics) = (self.load(), &self.metrics);
        let is_open = metrics.phase() == LoopPhase::Running && metrics.overloaded.get() == 0;
        (is_open && load < self.connections).then_some(load)
    }

    /// Whether a connection may be moved there by `now`.
    pub(crate) fn takes_moved(&self, now: Timestamp) -> bool {
        self.load_if_open().is_some() && !self.is_held_up(now)
    }

    fn is_held_up(&self, now: Timestamp) -> bool {
        let turn = self.metrics.in_turn_since.get();
        turn != 0 && now - Timestamp::from_nanoseconds(turn) > HELD_UP
    }
}

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// Has the loop hand clients that it accepts to another loop of `worker`'s when that has clearly fewer connections, by
    /// one and a sixteenth, or when only that has room for them or is not [overloaded](crate::Limits::lag_target): before
    /// [`on_open`](Handler::on_open), which is called there. None is handed on from there, and none to a loop that is overloaded,
    /// drains, has ended or has yet to take its first turn, nor to one that has been in one turn for 100 ms unless only that has
    /// room.
    ///
    /// When it was busy for more than half of the last 100 ms or so, and for a quarter of that time more than the least busy of
    /// those, it also moves open connections to that one, if their handler [lets it](crate::Ctx::hand_over): up to a sixteenth of
    /// them, or one, in each 100 ms.
    ///
    /// Each of the loops must have been given the same listeners, in the same order, before anything else that is
    /// registered. [`Workers::balance`](crate::Workers::balance) sees to all of it; this is for loops that are run by hand.
    pub fn balance(&mut self, worker: &Worker<H::Message, K>) {
        self.others = Worker::new(worker.index(), worker.remotes().clone());
        if worker.remotes().len() > 1 {
            self.ctx.mover = Some(Box::new(Mover::new(self.kernel.now())));
        }
    }

    /// Opens an accepted connection here or has another loop do so. `too_many`: this one is overloaded, and would turn it
    /// away.
    pub(crate) fn place(&mut self, listener: Token, fd: K::Fd, peer: Address, too_many: bool) -> Accepted {
        let entry = if too_many { Entry::TooMany } else { Entry::New };
        let Some(remote) = self.better_place(&peer, too_many) else {
            return self.admit(listener, fd, peer, entry);
        };
        match remote.hand_over(Handed { listener, fd, peer, journey: Journey::New }) {
            Ok(()) => {
                self.ctx.metrics.handed_over.add(1);
                self.callbacks += 1;
                Accepted::One
            }
            Err(Handed { listener, fd, peer, .. }) => self.admit(listener, fd, peer, entry),
        }
    }

    /// The loop that is to have the next client, if it is another one. One that drains serves those who wait for it itself,
    /// as the others are most likely told to drain too.
    fn better_place(&self, peer: &Address, too_many: bool) -> Option<&Remote<H::Message, K>> {
        let worker = self.others.as_ref().filter(|_| !self.ctx.is_draining())?;
        let open = self.ctx.connections();
        // Who waits to be taken over has the room that this one would take.
        let own = self.remote.shared().load();
        let room = self.ctx.admission.check(&self.ctx.limits, open, peer);
        if room == Err(Full::Address) {
            // A crowd costs the loop it comes to, and no other.
            return None;
        }
        let full = room.is_err() || own >= self.ctx.limits.connections;
        let now = self.ctx.now();
        let others = worker.remotes().iter().enumerate().filter(|(index, _)| *index != worker.index());
        let loads = others.filter_map(|(_, remote)| {
            let shared = remote.shared();
            // To wait is better than to be turned away.
            let load = shared.load_if_open().filter(|_| full || !shared.is_held_up(now))?;
            Some((load, remote))
        });
        let (least, remote) = loads.min_by_key(|(load, _)| *load)?;
        (full || too_many || is_clearly_more(own, least)).then_some(remote)
    }

    /// Opens what other loops have handed over.
    pub(crate) fn take_over(&mut self, handed: VecDeque<Handed<K::Fd>>) {
        for client in handed {
            self.ctx.metrics.taken_over.add(1);
            let Some(Handed { listener, fd, peer, journey }) = self.send_back(client) else { continue };
            // It came when this loop was not overloaded, whatever it is now.
            let entry = if journey == Journey::New { Entry::New } else { Entry::Moved };
            // It has its slot, or is told that there is none: there is nothing to go on with.
            let _: Accepted = self.admit(listener, fd, peer, entry);
        }
    }

    /// One that was moved here, and for whom there is no room after all, goes back to where it was open. If that loop takes none
    /// any more it stays: it has been let in once, and is not to lose its connection for this. So the limits of a loop may be
    /// exceeded by as many as are on their way at one time.
    fn send_back(&self, client: Handed<K::Fd>) -> Option<Handed<K::Fd>> {
        let Journey::Moved(from) = client.journey else { return Some(client) };
        if self.ctx.admission.check(&self.ctx.limits, self.ctx.connections(), &client.peer).is_ok() {
            return Some(client);
        }
        let Some(home) = self.others.as_ref().and_then(|worker| worker.remotes().get(from)) else {
            return Some(client);
        };
        let refused = home.hand_over(Handed { journey: Journey::Back, ..client }).err();
        if refused.is_none() {
            self.ctx.metrics.moved.add(1);
        }
        refused
    }

    /// From now on nothing is handed over to this loop, whatever others still believe of it. Opens what has been: those
    /// clients were there before the drain, as those in the backlog were.
    pub(crate) fn take_over_the_rest(&mut self) {
        let handed = self.remote.shared().refuse_handed();
        self.take_over(handed);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use epoll_sys::Linux;

    use super::*;
    use crate::{CloseReason, CloseStats, ConnId, Ctx, Limits};

    /// Hands a client over to itself when a message tells it to, and drains.
    #[derive(Default)]
    struct Late {
        client: Option<(Remote<()>, Handed<OwnedFd>)>,
        calls: Vec<&'static str>,
    }

    impl Handler for Late {
        type Conn = ();
        type Message = ();

        fn on_open(&mut self, _: &mut Ctx, _: ConnId, (): &mut ()) {
            self.calls.push("open");
        }

        fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
            self.calls.push("data");
            input.len()
        }

        fn on_close(&mut self, _: &mut Ctx, _: ConnId, (): (), _: CloseReason, _: &CloseStats) {
            self.calls.push("close");
        }

        fn on_message(&mut self, ctx: &mut Ctx, (): ()) {
            let (remote, client) = self.client.take().unwrap();
            remote.hand_over(client).unwrap();
            ctx.drain(Duration::from_secs(60));
        }
    }

    /// A client as another loop would hand it over, and its end of the connection.
    fn client() -> (Handed<OwnedFd>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, address) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        (
            Handed {
                listener: Token::new(1, 1),
                fd: accepted.into(),
                peer: Address::Tcp(address),
                journey: Journey::New,
            },
            peer,
        )
    }

    fn is_closed(peer: &mut TcpStream) -> bool {
        peer.set_nonblocking(true).unwrap();
        match peer.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    #[test]
    fn what_is_clearly_more() {
        for (own, least, expected) in [
            (0, 0, false),
            (1, 0, true),
            (1, 1, false),
            (1, 2, false),
            (16, 15, true),
            (17, 16, false),
            (18, 16, true),
            (1062, 1000, false),
            (1063, 1000, true),
        ] {
            assert_eq!(is_clearly_more(own, least), expected, "{own} and {least}");
        }
    }

    #[test]
    fn so_many_may_wait_and_who_is_left_waiting_is_closed() {
        const WAITING: usize = 10;
        let limits = Limits { message_queue: WAITING, ..Limits::default() };
        let remote = Remote::<()>::for_kernel(&Linux::new().unwrap(), &limits).unwrap();
        let mut peers = Vec::new();
        for _ in 0..WAITING {
            let (handed, peer) = client();
            remote.hand_over(handed).unwrap();
            peers.push(peer);
        }
        assert_eq!(remote.shared().waiting(), WAITING);
        let (handed, mut peer) = client();
        let mut kept = remote.hand_over(handed).unwrap_err();
        assert!(!is_closed(&mut peer), "it is handed back");
        assert!(!peers.iter_mut().any(is_closed));
        remote.shared().abandon();
        assert!(peers.iter_mut().all(is_closed));
        assert_eq!(remote.shared().waiting(), 0);
        kept = remote.hand_over(kept).unwrap_err();
        assert!(!is_closed(&mut peer), "a loop that is no more takes none");
        drop(kept);
    }

    #[test]
    fn a_drain_opens_who_waits_and_takes_no_more() {
        let limits = Limits::default();
        let (handed, peer) = client();
        let mut reactor = Reactor::new(Late::default(), limits).unwrap();
        let remote = reactor.remote();
        reactor.handler().client = Some((remote.clone(), handed));
        // It comes behind the phase in which they are taken over, and before the drain begins.
        remote.send(()).unwrap();
        reactor.turn(None).unwrap();
        assert_eq!((reactor.ctx().connections(), reactor.handler().calls.as_slice()), (1, &["open"][..]));
        let (late, mut late_peer) = client();
        let late = remote.hand_over(late).unwrap_err();
        assert!(!is_closed(&mut late_peer));
        drop((late, peer));
        reactor.run().unwrap();
        assert_eq!(reactor.handler().calls, ["open", "close"]);
        let counters = reactor.ctx().counters();
        assert_eq!((counters.taken_over, counters.accepted, counters.closed), (1, 1, 1));
    }

    #[test]
    fn an_overloaded_loop_hands_over_who_would_be_turned_away_and_is_handed_none() {
        let kernels = [(); 2].map(|()| Linux::new().unwrap());
        let limits = Limits::default();
        let remotes: Arc<[_]> =
            kernels.iter().map(|kernel| Remote::for_kernel(kernel, &limits).unwrap()).collect();
        let mut loops = kernels.into_iter().enumerate().map(|(index, kernel)| {
            let worker = Worker::new(index, Arc::clone(&remotes)).unwrap();
            let remote = worker.remote().clone();
            let mut reactor = Reactor::with_remote(kernel, Late::default(), limits.clone(), remote).unwrap();
            reactor.balance(&worker);
            reactor.turn(Some(Duration::ZERO)).unwrap();
            reactor
        });
        let (mut one, mut other) = (loops.next().unwrap(), loops.next().unwrap());
        let mut peers = Vec::new();
        let mut place = |reactor: &mut Reactor<Late>, too_many| {
            let (Handed { listener, fd, peer, .. }, stream) = client();
            reactor.place(listener, fd, peer, too_many);
            peers.push(stream);
            let counters = reactor.ctx().counters();
            (counters.accepted, counters.handed_over, counters.shed_by_overload)
        };
        assert_eq!(place(&mut one, false), (1, 0, 0));
        assert_eq!(place(&mut other, false), (1, 0, 0));
        // The other has no fewer, but is not overloaded.
        assert_eq!(place(&mut one, true), (1, 1, 0));
        one.ctx().metrics.overloaded.set(1);
        other.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(place(&mut other, false), (3, 0, 0), "its own, and the one that it has taken over");
        assert_eq!(place(&mut other, true), (3, 0, 1), "there is nowhere to go");
    }
}
