//! Deadlines: a heap with at most one live entry a connection. It reads no clock and makes no system call.
//!
//! The truth is in the connection; an entry here only says when to look at it again. A deadline that moves
//! back, as an idle timeout does with every byte, costs a store there and nothing here: when the entry comes
//! due, the connection says "not yet" and gets a new one. Only a deadline that comes nearer adds an entry,
//! and the one it replaces is recognised as outdated when it surfaces.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use epoll_sys::Timestamp;

use crate::token::ConnId;

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Timestamp, ConnId)>>,
}

impl Timers {
    /// Asks to be told of `id` at `at`.
    pub(crate) fn push(&mut self, at: Timestamp, id: ConnId) {
        self.heap.push(Reverse((at, id)));
    }

    /// When the next entry comes due, outdated or not.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the earliest entry if it is due.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<(Timestamp, ConnId)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Drops outdated entries once they outnumber what `live` connections can have, so that setting
    /// ever nearer deadlines cannot make the heap grow without end.
    pub(crate) fn compact(&mut self, live: usize, is_current: impl Fn(Timestamp, ConnId) -> bool) {
        if self.heap.len() > 2 * live + 64 {
            self.heap.retain(|Reverse((at, id))| is_current(*at, *id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Token;

    fn at(nanoseconds: u64) -> Timestamp {
        Timestamp::from_nanoseconds(nanoseconds)
    }

    fn id(index: u32) -> ConnId {
        ConnId(Token::new(index, 1))
    }

    #[test]
    fn entries_come_in_order_and_not_before_their_time() {
        let mut timers = Timers::default();
        for nanoseconds in [30, 10, 20] {
            timers.push(at(nanoseconds), id(0));
        }
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(25)), Some((at(10), id(0))));
        assert_eq!(timers.pop_due(at(25)), Some((at(20), id(0))));
        assert_eq!(timers.pop_due(at(25)), None);
    }

    #[test]
    fn equal_deadlines_of_different_connections_are_both_kept() {
        let mut timers = Timers::default();
        timers.push(at(5), id(1));
        timers.push(at(5), id(2));
        assert_eq!(timers.pop_due(at(5)), Some((at(5), id(1))));
        assert_eq!(timers.pop_due(at(5)), Some((at(5), id(2))));
    }

    #[test]
    fn outdated_entries_are_bounded() {
        let mut timers = Timers::default();
        for step in 0..10_000 {
            let current = at(20_000 - step);
            timers.push(current, id(0));
            timers.compact(1, |entry, _| entry == current);
            assert!(timers.heap.len() <= 67);
        }
        assert_eq!(timers.next(), Some(at(10_001)));
    }
}
