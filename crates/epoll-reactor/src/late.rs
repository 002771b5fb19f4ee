//! A loop that is late: deadlines that are noticed after their time.

use epoll_sys::{Kernel, Timestamp};

use crate::handler::Handler;
use crate::reactor::Reactor;

/// What is known of it already.
#[derive(Debug, Default)]
pub(crate) struct Lateness {
    /// The last deadline that was noticed: one that is put off stays due for some turns.
    noticed: Option<Timestamp>,
}

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// Whether a deadline has come, at the beginning of a turn; notes once for each how late that is.
    pub(crate) fn notice_deadline(&mut self) -> bool {
        let now = self.ctx.now();
        let Some(at) = self.next_deadline().filter(|at| *at <= now) else { return false };
        if self.late.noticed.replace(at) != Some(at) {
            self.ctx.metrics.timer_lag.record(now.as_nanoseconds() - at.as_nanoseconds());
        }
        true
    }
}
