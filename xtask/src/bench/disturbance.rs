//! Whether the machine stood still, or its clock was set, while something was measured: a virtual one may be stopped for
//! seconds, after which clients have timed out and latencies are of nobody's making; and wrk measures by the wall clock.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How often the clocks are looked at.
const INTERVAL: Duration = Duration::from_millis(50);
/// Longer than that a busy machine makes nobody wait for a core.
const STANDSTILL: Duration = Duration::from_secs(1);
/// More than a clock that is kept right drifts in the meantime.
const STEP: Duration = Duration::from_millis(20);
/// How often something is measured before it is taken as it is.
const TRIES: u32 = 3;

/// Both clocks at one time.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    monotonic: Instant,
    wall: SystemTime,
}

impl Clocks {
    fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// Whether something has happened since `before`, when `INTERVAL` should have passed.
    fn are_disturbed(self, before: Self) -> bool {
        let passed = self.monotonic - before.monotonic;
        // A clock that was set back.
        let Ok(by_the_wall) = self.wall.duration_since(before.wall) else { return true };
        passed > STANDSTILL || passed.abs_diff(by_the_wall) > STEP
    }
}

/// What `measure` says, and whether it was disturbed.
fn watched<T>(measure: impl FnOnce() -> T) -> (T, bool) {
    let (stop, stopped) = channel::<()>();
    thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let mut last = Clocks::now();
            let mut disturbed = false;
            loop {
                let end = stopped.recv_timeout(INTERVAL);
                let now = Clocks::now();
                disturbed |= now.are_disturbed(last);
                last = now;
                if end != Err(RecvTimeoutError::Timeout) {
                    return disturbed;
                }
            }
        });
        // On this thread, with which what it starts is to end.
        let result = measure();
        drop(stop);
        (result, watch.join().unwrap_or(false))
    })
}

/// What `measure` says when it was not disturbed, or else at the last of some tries.
pub(super) fn undisturbed<T>(mut measure: impl FnMut() -> T) -> T {
    retried(|| watched(&mut measure))
}

fn retried<T>(mut attempt: impl FnMut() -> (T, bool)) -> T {
    for _ in 1..TRIES {
        let (result, disturbed) = attempt();
        if !disturbed {
            return result;
        }
    }
    attempt().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_and_a_clock_that_is_set_are_noticed() {
        let before = Clocks::now();
        let millis = Duration::from_millis;
        let after = |monotonic, wall| Clocks {
            monotonic: before.monotonic + millis(monotonic),
            wall: before.wall + millis(wall),
        };
        assert!(!after(50, 50).are_disturbed(before));
        assert!(!after(400, 405).are_disturbed(before), "a busy machine");
        assert!(after(28_000, 28_000).are_disturbed(before), "a machine that was stopped");
        assert!(after(50, 2_000).are_disturbed(before));
        assert!(after(50, 10).are_disturbed(before));
        let back = Clocks { wall: before.wall - millis(50), ..after(50, 0) };
        assert!(back.are_disturbed(before));
    }

    #[test]
    fn what_was_disturbed_is_measured_again() {
        let mut tries = 0;
        let result = retried(|| {
            tries += 1;
            (tries, tries == 1)
        });
        assert_eq!((result, tries), (2, 2));
        assert_eq!(retried(|| ("as it is", true)), "as it is");
        assert_eq!(watched(|| 5).0, 5);
    }
}
