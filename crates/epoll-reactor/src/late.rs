//! A loop that is late, as operators hear of it: deadlines that are noticed after their time, and turns that take long. Both are
//! measured; of what takes a second or more the log has a line, for whoever asks later why the server stood still.

use std::borrow::Cow;
use std::fmt;
use std::thread;
use std::time::Duration;

use epoll_sys::{Kernel, Timestamp};

use crate::handler::Handler;
use crate::overload::REPORT_INTERVAL;
use crate::reactor::Reactor;

/// What takes so long is worth a line of the log.
const LONG: Duration = Duration::from_secs(1);

/// What is known of it already.
#[derive(Debug, Default)]
pub(crate) struct Lateness {
    /// The last deadline that was noticed: one that is put off stays due for some turns.
    noticed: Option<Timestamp>,
    /// When the log was last told of a turn that took long, and of a loop that did not run.
    turn_reported: Option<Timestamp>,
    pause_reported: Option<Timestamp>,
}

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// Whether a deadline has come, at the beginning of a turn; notes once for each how late that is.
    pub(crate) fn notice_deadline(&mut self) -> bool {
        let now = self.ctx.now();
        let Some(at) = self.next_deadline().filter(|at| *at <= now) else { return false };
        if self.late.noticed.replace(at) != Some(at) {
            self.ctx.metrics.timer_lag.record(now.as_nanoseconds() - at.as_nanoseconds());
            // Of a turn that took long the log has heard: this is what came on top.
            let pause = now - at.max(self.last_turn.1);
            if pause >= LONG && is_time(&mut self.late.pause_reported, now) {
                log::warn!(
                    "{} did not run for {}: the process was stopped, or had no CPU",
                    loop_name(),
                    Brief(pause)
                );
            }
        }
        true
    }

    /// A turn that had something to do has ended.
    pub(crate) fn note_turn(&mut self, began: Timestamp, ended: Timestamp) {
        let events = self.events.len();
        self.ctx.metrics.turn_duration.record(ended.as_nanoseconds() - began.as_nanoseconds());
        if self.ctx.recorder.is_on() {
            self.ctx.recorder.turn(began, ended, events);
        }
        let took = ended - began;
        if took >= LONG && is_time(&mut self.late.turn_reported, ended) {
            log::warn!(
                "{} was in one turn for {}, in which everybody else waited (events: {events}, callbacks: {})",
                loop_name(),
                Brief(took),
                self.callbacks
            );
        }
    }
}

/// Whether the log may be told again of what it was last told of at `reported`, at `now`: it is, then.
fn is_time(reported: &mut Option<Timestamp>, now: Timestamp) -> bool {
    let is_time = reported.is_none_or(|at| now - at >= REPORT_INTERVAL);
    if is_time {
        *reported = Some(now);
    }
    is_time
}

/// What the log calls the loop that runs on this thread: by the thread's name, if that is one of its own.
pub(crate) fn loop_name() -> Cow<'static, str> {
    match thread::current().name() {
        None | Some("main") => "the loop".into(),
        Some(name) => name.to_owned().into(),
    }
}

/// A time for the log, with the digits that matter.
pub(crate) struct Brief(pub(crate) Duration);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            time if time < Duration::from_millis(1) => write!(f, "{} µs", time.as_micros()),
            time if time < Duration::from_secs(1) => write!(f, "{} ms", time.as_millis()),
            time => write!(f, "{:.1} s", time.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_called_by_the_name_of_its_thread_if_that_has_one() {
        let named = |name| {
            let thread = thread::Builder::new().name(String::from(name));
            thread.spawn(loop_name).unwrap().join().unwrap()
        };
        assert_eq!((named("worker-1"), named("main")), ("worker-1".into(), "the loop".into()));
        assert_eq!(thread::spawn(loop_name).join().unwrap(), "the loop");
    }

    #[test]
    fn times_have_the_digits_that_matter() {
        let rows = [
            (0, "0 µs"),
            (999_999, "999 µs"),
            (35_928_605, "35 ms"),
            (1_000_000_000, "1.0 s"),
            (83_640_000_000, "83.6 s"),
        ];
        for (nanoseconds, expected) in rows {
            assert_eq!(Brief(Duration::from_nanos(nanoseconds)).to_string(), expected);
        }
    }
}
