//! The time as the loop knows it: the monotonic clock once a turn, the wall clock at each of its seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use epoll_sys::Timestamp;

/// The two clocks, as of the last reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Timestamp,
    wall: SystemTime,
    wall_read: Timestamp,
    /// When the second that the wall clock showed is over. Who writes dates has them made anew then, and is to know of a step
    /// of the wall clock.
    wall_until: Timestamp,
}

impl Clock {
    pub(crate) fn new(now: Timestamp, wall: SystemTime) -> Self {
        Self { now, wall, wall_read: now, wall_until: now + rest_of_second(wall) }
    }

    /// Moves on to `now`; reads the wall clock through `read_wall` when its second is over.
    pub(crate) fn advance(&mut self, now: Timestamp, read_wall: impl FnOnce() -> SystemTime) {
        self.now = self.now.max(now);
        if self.now >= self.wall_until {
            *self = Self::new(self.now, read_wall());
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

/// Until the next whole second.
fn rest_of_second(wall: SystemTime) -> Duration {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(1) - Duration::from_nanos(since.subsec_nanos().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_read_at_each_of_its_seconds_and_moves_in_between() {
        let at = |milliseconds: u64| Timestamp::from_nanoseconds(1_000_000 * milliseconds);
        let mut clock = Clock::new(at(1000), UNIX_EPOCH);
        clock.advance(at(1999), || unreachable!("not yet"));
        assert_eq!(clock.wall(), UNIX_EPOCH + Duration::from_millis(999));
        clock.advance(at(2000), || UNIX_EPOCH + Duration::from_secs(50));
        assert_eq!(clock.wall(), UNIX_EPOCH + Duration::from_secs(50));
        clock.advance(at(3000), || UNIX_EPOCH + Duration::from_millis(51_900));
        clock.advance(at(3099), || unreachable!("not yet"));
        clock.advance(at(3100), || UNIX_EPOCH - Duration::from_millis(1));
        clock.advance(at(4099), || unreachable!("not yet"));
        assert_eq!(clock.wall(), UNIX_EPOCH + Duration::from_millis(998));
        clock.advance(at(4100), || UNIX_EPOCH);
        assert_eq!(clock.wall(), UNIX_EPOCH);
    }

    #[test]
    fn time_never_goes_back() {
        let mut clock = Clock::new(Timestamp::from_nanoseconds(10), UNIX_EPOCH);
        clock.advance(Timestamp::from_nanoseconds(5), || UNIX_EPOCH);
        assert_eq!(clock.now, Timestamp::from_nanoseconds(10));
    }
}
