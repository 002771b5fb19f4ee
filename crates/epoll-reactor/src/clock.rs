//! The time as the loop knows it: the monotonic clock once a turn, the wall clock once a second.

use std::time::{Duration, SystemTime};

use epoll_sys::Timestamp;

/// The two clocks, as of the last reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Timestamp,
    wall: SystemTime,
    wall_read: Timestamp,
}

impl Clock {
    pub(crate) const fn new(now: Timestamp, wall: SystemTime) -> Self {
        Self { now, wall, wall_read: now }
    }

    /// Moves on to `now`; reads the wall clock through `read_wall` only once a second.
    pub(crate) fn advance(&mut self, now: Timestamp, read_wall: impl FnOnce() -> SystemTime) {
        self.now = self.now.max(now);
        if self.now - self.wall_read >= Duration::from_secs(1) {
            self.wall = read_wall();
            self.wall_read = self.now;
        }
    }

    /// What the wall clock shows at `time`, which is not before the last reading.
    pub(crate) fn wall_at(&self, time: Timestamp) -> SystemTime {
        self.wall + (time - self.wall_read)
    }

    pub(crate) fn wall(&self) -> SystemTime {
        self.wall + (self.now - self.wall_read)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_wall_clock_is_read_once_a_second_and_moves_in_between() {
        let at = |milliseconds: u64| Timestamp::from_nanoseconds(1_000_000 * milliseconds);
        let mut clock = Clock::new(at(1000), UNIX_EPOCH);
        clock.advance(at(1999), || unreachable!("not yet"));
        assert_eq!(clock.wall(), UNIX_EPOCH + Duration::from_millis(999));
        clock.advance(at(2000), || UNIX_EPOCH + Duration::from_secs(50));
        assert_eq!(clock.wall(), UNIX_EPOCH + Duration::from_secs(50));
    }

    #[test]
    fn time_never_goes_back() {
        let mut clock = Clock::new(Timestamp::from_nanoseconds(10), UNIX_EPOCH);
        clock.advance(Timestamp::from_nanoseconds(5), || UNIX_EPOCH);
        assert_eq!(clock.now, Timestamp::from_nanoseconds(10));
    }
}
