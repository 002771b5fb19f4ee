//! Points in time on the monotonic clock. Not a calendar: wall-clock time is [`std::time::SystemTime`].

use std::num::NonZeroU64;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time: nanoseconds of `CLOCK_MONOTONIC` (clock_gettime(2)), or of a simulated clock.
///
/// Half the size of [`std::time::Instant`], an `Option` of it is no larger, and a simulated kernel can make
/// one; that is why it exists. The range ends 584 years after boot; sums saturate there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(NonZeroU64);

impl Timestamp {
    /// The point `nanoseconds` after the clock's origin. Zero is taken as one.
    #[must_use]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        match NonZeroU64::new(nanoseconds) {
            Some(value) => Self(value),
            None => Self(NonZeroU64::MIN),
        }
    }

    /// Nanoseconds since the clock's origin.
    #[must_use]
    pub const fn as_nanoseconds(self) -> u64 {
        self.0.get()
    }

    /// The time from `earlier` to `self`; zero if `earlier` is not earlier.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let seconds = duration.as_secs().saturating_mul(1_000_000_000);
        Self(self.0.saturating_add(seconds).saturating_add(u64::from(duration.subsec_nanos())))
    }
}

impl Sub for Timestamp {
    type Output = Duration;

    /// The same as [`Timestamp::saturating_since`].
    fn sub(self, earlier: Self) -> Duration {
        self.saturating_since(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_costs_nothing() {
        assert_eq!(size_of::<Option<Timestamp>>(), 8);
    }

    #[test]
    fn sums_and_differences_saturate() {
        let start = Timestamp::from_nanoseconds(5);
        assert_eq!(start + Duration::from_nanos(7) - start, Duration::from_nanos(7));
        assert_eq!(start - (start + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!((start + Duration::MAX).as_nanoseconds(), u64::MAX);
        assert_eq!(Timestamp::from_nanoseconds(0).as_nanoseconds(), 1);
    }
}
