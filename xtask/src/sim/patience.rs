//! How long something may wait that the loop must see to at once: for as long as the kernel may keep the event back, and
//! some turns.

use std::time::Duration;

use epoll_reactor::Timestamp;

/// An event is held back for 5 ms at most, and its wait rounded up to 1; an `EAGAIN` without need is followed by another
/// event, which may be held back too.
const HELD: Duration = Duration::from_millis(20);
/// Turns after that. One turn may take longer than all of it, and an event be held back only then: so turns that come
/// within a millisecond are one.
const TURNS: u32 = 20;
const APART: Duration = Duration::from_millis(1);

/// Something waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    since: Timestamp,
    counted: Timestamp,
    turns: u32,
}

impl Patience {
    /// From now on.
    pub(crate) const fn new(now: Timestamp) -> Self {
        Self { since: now, counted: now, turns: 0 }
    }

    /// Whether it waits for too long, after another turn in which it did, which began at `began`.
    pub(crate) fn is_over(&mut self, began: Timestamp) -> bool {
        if began - self.since > HELD && began - self.counted >= APART {
            self.counted = began;
            self.turns += 1;
        }
        self.turns > TURNS
    }

    /// For how long it has waited when a turn began.
    pub(crate) fn waited(&self, began: Timestamp) -> Duration {
        began - self.since
    }
}
