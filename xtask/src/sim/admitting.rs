//! Who is let in, and how those are turned away for whom there is no room: an address has as many connections as it may
//! have, nobody is turned away for its sake while it has fewer, and who is told so can hear it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use epoll_reactor::sim::Sim;
use epoll_reactor::{Address, CloseReason, ConnId, Limits, Timestamp};

use super::failure::{Failure, demand};
use super::plan::Plan;
use super::scenario::{Loop, Scenario};
use super::session::Session;

/// For so long a client that is turned away is heard out, and for so many bytes, where the limits do not say less.
const TELLING: Duration = Duration::from_secs(2);
const HEARD_OUT: u64 = 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Admitting {
    turned_away: u64,
    /// When each session was there, at the latest: before it could be accepted.
    there: Vec<Timestamp>,
    /// No fault ends a connection.
    unharmed: bool,
}

impl Admitting {
    pub(crate) fn new(plan: &Plan) -> Self {
        let faults = &plan.faults;
        let harmful =
            [faults.econnreset, faults.epipe, faults.etimedout, faults.enobufs, faults.enomem, faults.enospc];
        Self { turned_away: 0, there: Vec::new(), unharmed: harmful == [0; 6] }
    }

    /// After a turn.
    pub(crate) fn check<S: Scenario>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<S::Handler>,
        sessions: &[Session<S::Talk>],
        ids: &BTreeMap<usize, ConnId>,
    ) -> Result<(), Failure> {
        let limits = reactor.ctx().limits().clone();
        if limits.connections_per_address != usize::MAX {
            self.check_addresses(reactor, limits.connections_per_address)?;
        }
        self.there.resize(sessions.len(), reactor.handler().lives.now());
        if self.unharmed && !limits.refusal.is_empty() && !reactor.ctx().is_draining() {
            self.check_told::<S>(sim, reactor, &limits, sessions, ids)?;
        }
        Ok(())
    }

    fn check_addresses<H: epoll_reactor::Handler>(
        &mut self,
        reactor: &mut Loop<H>,
        limit: usize,
    ) -> Result<(), Failure> {
        // Slots become free at the end of a turn, so all of one were there at the same time.
        let mut there: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let lives = reactor.handler().lives.of_this_turn();
        for address in lives.filter_map(|life| life.address.as_ref().and_then(Address::as_tcp)) {
            *there.entry(address.ip()).or_default() += 1;
        }
        let most = there.values().copied().max().unwrap_or(0);
        demand!(most <= limit, "admission", "{most} connections of one address, of {limit}: {there:?}");
        let turned_away = reactor.ctx().counters().shed_by_address;
        demand!(
            turned_away == self.turned_away || most == limit,
            "admission",
            "some were turned away, and no address had {limit} connections: {there:?}"
        );
        self.turned_away = turned_away;
        Ok(())
    }

    /// An RST could destroy what a client was told, so its connection must not end in one.
    fn check_told<S: Scenario>(
        &self,
        sim: &Sim,
        reactor: &mut Loop<S::Handler>,
        limits: &Limits,
        sessions: &[Session<S::Talk>],
        ids: &BTreeMap<usize, ConnId>,
    ) -> Result<(), Failure> {
        let patience =
            TELLING.min(limits.linger_quiet).min(limits.linger_timeout).min(limits.write_stall_timeout);
        let most = HEARD_OUT.min(limits.linger_bytes as u64);
        for (number, (session, there)) in sessions.iter().zip(&self.there).enumerate() {
            // Whoever has an address and was let in has an id, so whatever one without has got is a refusal.
            let was_reset = session.peer.as_ref().is_some_and(|peer| peer.is_reset());
            let told = session.heard_or_unread() > 0 && session.address.as_tcp().is_some();
            if !was_reset || !told || ids.contains_key(&number) || session.sent > most {
                continue;
            }
            let time = sim.now() - *there;
            // Those that hold most go first, and one that is turned away holds next to nothing.
            let mut reasons = reactor.handler().lives.iter().filter_map(|life| life.closed);
            let short_of_memory = reasons.any(|(reason, _)| reason == CloseReason::MemoryLimit);
            demand!(
                time >= patience || short_of_memory,
                "admission",
                "session {number} was turned away, and reset {time:?} after it had come, of {patience:?}"
            );
        }
        Ok(())
    }
}
