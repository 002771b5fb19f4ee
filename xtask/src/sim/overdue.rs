//! What the loop must do in time, whether anything happens or not: close what stalls, idles or lingers, accept
//! who waits, hand over messages, tell of signals.

use std::collections::BTreeMap;
use std::time::Duration;

use epoll_reactor::{ConnId, Timestamp};

use super::failure::{Failure, demand};
use super::patience::Patience;
use super::plan::Plan;
use super::scenario::{Loop, Scenario};
use super::session::Session;

/// Later than its time by more than this is too late, if turns were taken meanwhile: a segment may be on its way
/// for three seconds, and deadlines be put off for some turns.
const SLACK: Duration = Duration::from_secs(4);
/// The same where the clock may jump, by ten seconds in one wait.
const JUMPING: Duration = Duration::from_secs(15);
const TURNS: u32 = 20;
/// Who has missed something because all hold too much memory is told when that is over: tried again each 100 ms.
const TOLD: Duration = Duration::from_millis(500);
/// Turns in which no message is handed over although some wait.
const MESSAGE_TURNS: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Stalled,
    Idle,
    Lingering,
    NotAccepted,
    /// The handler has ended its side, and the client does not see it.
    NotEnded,
    /// The client is to get something, and nothing is on its way to it.
    NotTold,
    /// The handler lets no client be for so long that says and takes nothing.
    Silent,
}

/// Something that has not changed, and for how many turns it has been too late.
#[derive(Debug)]
struct Still {
    what: (u64, u64, u64),
    since: Timestamp,
    turns: u32,
}

#[derive(Debug)]
pub(crate) struct Overdue {
    still: BTreeMap<(usize, Rule), Still>,
    slack: Duration,
    delivered: usize,
    undelivered_turns: u32,
    /// The first signal has come that has not been told of.
    signalled: Option<Patience>,
    heard: u64,
}

impl Overdue {
    pub(crate) fn new(plan: &Plan) -> Self {
        let slack = if plan.faults.jump > 0 { JUMPING } else { SLACK };
        Self { still: BTreeMap::new(), slack, delivered: 0, undelivered_turns: 0, signalled: None, heard: 0 }
    }

    /// A signal that the handler is to be told of.
    pub(crate) fn raised(&mut self, now: Timestamp) {
        self.signalled.get_or_insert(Patience::new(now));
    }

    /// After a turn; `accepted` is how many messages had been accepted before it.
    pub(crate) fn check<S: Scenario>(
        &mut self,
        scenario: &S,
        reactor: &mut Loop<S::Handler>,
        sessions: &[Session<S::Talk>],
        ids: &BTreeMap<usize, ConnId>,
        accepted: usize,
    ) -> Result<(), Failure> {
        let lives = &reactor.handler().lives;
        let (delivered, heard, began) = (lives.delivered.len(), lives.signals, lives.now());
        self.check_messages(delivered, accepted)?;
        self.check_signals(heard, began)?;
        let limits = reactor.ctx().limits().clone();
        for (number, session) in sessions.iter().enumerate() {
            let Some(&id) = ids.get(&number) else {
                // One for whom there is no descriptor is turned away.
                let waits = !session.is_over() && !session.is_ended() && !reactor.ctx().is_draining();
                let waits = waits && session.address.as_tcp().is_some();
                // One that takes nothing in does not see that it is turned away.
                let waits = waits && session.peer.as_ref().is_none_or(|it| it.unsent_there() == 0);
                self.stands(
                    number,
                    Rule::NotAccepted,
                    waits.then_some((0, 0, 0)),
                    limits.accept_retry * 50,
                    reactor,
                )?;
                continue;
            };
            let handler = &reactor.handler().inner;
            let (sent, owes) = (S::sent_to(handler, id), S::owes(handler, id, &session.talk));
            let ended = S::has_ended_its_side(handler, id);
            let may_wait = S::may_wait(handler, id);
            let received = reactor.handler().lives.life(id).map_or(0, |life| life.received);
            let ctx = reactor.ctx();
            let (open, there) = (ctx.is_open(id), ctx.peer_address(id).is_some());
            let (queued, arrived) = (ctx.queued(id) as u64, session.heard_or_unread());
            let stalled = (there && queued > 0).then_some((queued, arrived, sent));
            let unsent = session.peer.as_ref().map(|it| it.unsent_there());
            // The kernel may take what the client lets wait.
            let idle = open.then_some((received, arrived + unsent.unwrap_or(0) as u64, sent));
            // All that has been sent to the client has arrived, and all of it has been read.
            let arrived_whole = queued == 0 && unsent == Some(0);
            let heard_whole = arrived_whole && session.heard_or_unread() == session.heard;
            let live = open && !session.is_ended();
            let not_ended = (live && ended && arrived_whole).then_some((0, 0, 0));
            let not_told = (live && owes && heard_whole).then_some((session.heard, 0, 0));
            let silence = scenario.longest_silence(received);
            let silent = open && queued == 0 && silence.is_some() && !may_wait;
            let silent = silent.then_some((received, arrived, 0));
            let lingering = (there && !open && queued == 0).then_some((0, 0, 0));
            self.stands(number, Rule::Stalled, stalled, limits.write_stall_timeout, reactor)?;
            let idle_timeout = limits.idle_timeout.unwrap_or(Duration::MAX);
            self.stands(
                number,
                Rule::Idle,
                idle.filter(|_| limits.idle_timeout.is_some()),
                idle_timeout,
                reactor,
            )?;
            self.stands(number, Rule::Lingering, lingering, limits.linger_timeout, reactor)?;
            self.stands(number, Rule::NotEnded, not_ended, Duration::ZERO, reactor)?;
            self.stands(number, Rule::NotTold, not_told, TOLD, reactor)?;
            self.stands(number, Rule::Silent, silent, silence.unwrap_or(Duration::MAX), reactor)?;
        }
        Ok(())
    }

    fn check_messages(&mut self, delivered: usize, accepted: usize) -> Result<(), Failure> {
        let none = self.delivered == delivered && accepted > delivered;
        self.undelivered_turns = if none { self.undelivered_turns + 1 } else { 0 };
        self.delivered = delivered;
        let waiting = accepted.saturating_sub(delivered);
        demand!(
            self.undelivered_turns <= MESSAGE_TURNS,
            "remote",
            "{waiting} messages wait, and none is handed over"
        );
        Ok(())
    }

    fn check_signals(&mut self, heard: u64, began: Timestamp) -> Result<(), Failure> {
        if heard != self.heard {
            demand!(self.signalled.is_some(), "signals", "told of one that nobody raised");
            (self.heard, self.signalled) = (heard, None);
        }
        if let Some(signalled) = &mut self.signalled {
            demand!(
                !signalled.is_over(began),
                "signals",
                "one was raised {:?} ago, and the handler does not know",
                signalled.waited(began)
            );
        }
        Ok(())
    }

    /// `what` may stand as it is for `at_most`, if it is there at all.
    fn stands<H: epoll_reactor::Handler>(
        &mut self,
        number: usize,
        rule: Rule,
        what: Option<(u64, u64, u64)>,
        at_most: Duration,
        reactor: &mut Loop<H>,
    ) -> Result<(), Failure> {
        let Some(what) = what else {
            self.still.remove(&(number, rule));
            return Ok(());
        };
        // What began in a turn began at its end, for all that is known, and is too late once a turn has begun.
        let (began, now) = (reactor.handler().lives.now(), reactor.ctx().now());
        let still = self.still.entry((number, rule)).or_insert(Still { what, since: now, turns: 0 });
        if still.what != what {
            *still = Still { what, since: now, turns: 0 };
        }
        let time = began - still.since;
        // Nothing is on its way then, or nothing but time counts.
        let at_once = matches!(rule, Rule::NotTold | Rule::Silent);
        let slack = if at_once { Duration::ZERO } else { self.slack };
        still.turns += u32::from(time > at_most.saturating_add(slack));
        demand!(
            still.turns <= TURNS,
            "overdue",
            "session {number} is {rule:?} for {time:?}, where {at_most:?} are allowed: {what:?}"
        );
        Ok(())
    }
}
