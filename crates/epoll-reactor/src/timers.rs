//! Deadlines: a heap with at most one live entry a connection. It reads no clock and makes no system call.
//!
//! The truth is in the connection; an entry here only says when to look at it again. A deadline that moves
//! back, as an idle timeout does with every byte, costs a store there and nothing here: when the entry comes
//! due, the connection says "not yet" and gets a new one. Only a deadline that comes nearer adds an entry,
//! and the one it replaces is recognised as outdated when it surfaces.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use epoll_sys::Timestamp;

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
}

/// When to look at which slot: packed, 12 bytes instead of 16. Whose the slot is by then, and whether this is its present
/// deadline, its connection knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, packed(4))]
struct Entry {
    at: Timestamp,
    index: u32,
}

impl Timers {
    /// Asks to be told of the slot `index` at `at`.
    pub(crate) fn push(&mut self, at: Timestamp, index: u32) {
        self.heap.push(Reverse(Entry { at, index }));
    }

    /// When the next entry comes due, outdated or not.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// Takes the earliest entry if it is due.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<(Timestamp, u32)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.index))
    }

    /// Drops outdated entries, and equal ones but one, once they outnumber what `live` connections can have, so that setting
    /// ever nearer deadlines cannot make the heap grow without end.
    pub(crate) fn compact(&mut self, live: usize, is_current: impl Fn(Timestamp, u32) -> bool) {
        if self.heap.len() > 2 * live + 64 {
            let mut entries = std::mem::take(&mut self.heap).into_vec();
            entries.retain(|Reverse(entry)| is_current(entry.at, entry.index));
            // A deadline that nearer ones have come before has an entry from each time that it was the nearest.
            entries.sort_unstable();
            entries.dedup();
            self.heap = entries.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanoseconds: u64) -> Timestamp {
        Timestamp::from_nanoseconds(nanoseconds)
    }

    #[test]
    fn entries_come_in_order_and_not_before_their_time() {
        let mut timers = Timers::default();
        for nanoseconds in [30, 10, 20] {
            timers.push(at(nanoseconds), 0);
        }
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(25)), Some((at(10), 0)));
        assert_eq!(timers.pop_due(at(25)), Some((at(20), 0)));
        assert_eq!(timers.pop_due(at(25)), None);
    }

    #[test]
    fn equal_deadlines_of_different_connections_are_both_kept() {
        let mut timers = Timers::default();
        timers.push(at(5), 1);
        timers.push(at(5), 2);
        assert_eq!(timers.pop_due(at(5)), Some((at(5), 1)));
        assert_eq!(timers.pop_due(at(5)), Some((at(5), 2)));
    }

    #[test]
    fn outdated_entries_are_bounded() {
        let mut timers = Timers::default();
        for step in 0..10_000 {
            let current = at(20_000 - step);
            timers.push(current, 0);
            timers.compact(1, |entry, _| entry == current);
            assert!(timers.heap.len() <= 67);
        }
        assert_eq!(timers.next(), Some(at(10_001)));
    }

    #[test]
    fn a_deadline_that_is_returned_to_again_and_again_is_kept_once() {
        let mut timers = Timers::default();
        let far = at(1_000_000);
        for step in 0..10_000 {
            // A nearer one comes, comes due, and the far one is the nearest again.
            timers.push(far, 0);
            timers.push(at(step), 0);
            timers.compact(1, |entry, _| entry == at(step) || entry == far);
            assert_eq!(timers.pop_due(at(step)), Some((at(step), 0)));
            assert!(timers.heap.len() <= 67);
        }
        assert_eq!(timers.next(), Some(far));
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<Entry>(), 12);
    }
}
