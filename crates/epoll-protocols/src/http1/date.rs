//! The `Date` header line, formatted once a second. Not a clock: the caller says what time it is.

use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;

/// The header line `Date: <IMF-fixdate>`, which RFC 9110 section 6.6.1 wants in every response.
///
/// One serves a whole loop: [`set`](Self::set) once a turn costs a comparison, and formats only when the
/// second has changed.
#[derive(Clone)]
pub struct DateHeader {
    second: u64,
    /// The line, and before it the one that is before most of its kind.
    ok: [u8; OK.len()],
}

const OK: &[u8; 54] = b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

/// Of the status line in it.
const STATUS_LINE: usize = 17;

/// 9999-12-31T23:59:59Z, the last second the format's four digits of year can express.
pub(super) const LAST_SECOND: u64 = 253_402_300_799;

impl DateHeader {
    /// The line for `now`.
    #[must_use]
    pub fn new(now: SystemTime) -> Self {
        let mut date = Self { second: 0, ok: *OK };
        date.set(now);
        date
    }

    /// Makes it the line for `now`, and says how long it stays that: up to a second. A time that the format cannot
    /// express becomes the nearest that it can: a clock set wrong must not end the server.
    pub fn set(&mut self, now: SystemTime) -> Duration {
        let age = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = age.as_secs().min(LAST_SECOND);
        if second != self.second {
            self.second = second;
            let date = HttpDate::from(UNIX_EPOCH + Duration::from_secs(second));
            let written = write!(self.ok.split_at_mut(STATUS_LINE).1, "Date: {date}\r\n");
            debug_assert!(written.is_ok(), "an IMF-fixdate is always 29 bytes");
        }
        Duration::from_secs(1) - Duration::from_nanos(age.subsec_nanos().into())
    }

    /// The second it is at.
    pub(super) fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.second)
    }

    pub(super) fn line(&self) -> &[u8] {
        self.ok.split_at(STATUS_LINE).1
    }

    /// The status line of a 200, and this line behind it.
    pub(super) const fn ok(&self) -> &[u8; OK.len()] {
        &self.ok
    }
}

impl fmt::Debug for DateHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DateHeader({})", self.line().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_follows_the_second_and_survives_a_wrong_clock() {
        let at = |second| UNIX_EPOCH + Duration::from_millis(second);
        let cases = [
            (UNIX_EPOCH - Duration::from_secs(1), "Thu, 01 Jan 1970 00:00:00 GMT"),
            (at(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT"),
            (at(784_111_777_999), "Sun, 06 Nov 1994 08:49:37 GMT"),
            (at(784_111_778_000), "Sun, 06 Nov 1994 08:49:38 GMT"),
            (UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 1), "Fri, 31 Dec 9999 23:59:59 GMT"),
        ];
        let mut date = DateHeader::new(UNIX_EPOCH);
        for (now, text) in cases {
            date.set(now);
            let line = format!("Date: {text}\r\n");
            assert_eq!(date.line().escape_ascii().to_string(), line.escape_default().to_string());
            assert_eq!(DateHeader::new(now).line(), date.line());
        }
    }
}
