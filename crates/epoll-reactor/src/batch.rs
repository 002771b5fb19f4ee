//! What callbacks have said to their own connections in this turn, on its way to the kernel. Not a queue: nothing waits
//! here beyond the events of one wait, and what the kernel refuses goes to its connection's queue.
//!
//! A send walks through all of TCP, and throws the program's own code and data out of the nearest caches. Where many
//! connections are ready at once, a few answers that leave behind one another spare the next callback half of that.

use crate::token::ConnId;

/// So many answers leave together at most: with more, the first ones wait longer and nothing is gained.
pub(crate) const BATCH: usize = 16;

/// A longer answer is sent at once: the copy would cost more than it saves.
pub(crate) const LONGEST_BATCHED: usize = 4096;

/// Outputs of up to [`LONGEST_BATCHED`] bytes each, in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Whose, and how many of the bytes: together all of them. `None`: it has been taken.
    entries: Vec<(Option<ConnId>, usize)>,
}

impl Batch {
    pub(crate) fn push(&mut self, id: ConnId, output: &[u8]) {
        self.bytes.extend_from_slice(output);
        self.entries.push((Some(id), output.len()));
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.entries.len() >= BATCH
    }

    /// The outputs that are left, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConnId, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.entries.iter().filter_map(move |(id, length)| {
            let (output, after) = rest.split_at_checked(*length).unwrap_or_default();
            rest = after;
            id.map(|id| (id, output))
        })
    }

    /// How many bytes there are for `id`.
    pub(crate) fn length_of(&self, id: ConnId) -> usize {
        self.iter().find(|(owner, _)| *owner == id).map_or(0, |(_, output)| output.len())
    }

    /// Takes out what there is for `id`.
    pub(crate) fn take(&mut self, id: ConnId) -> Vec<u8> {
        let output =
            self.iter().find(|(owner, _)| *owner == id).map_or(Vec::new(), |(_, output)| output.to_vec());
        self.entries.iter_mut().filter(|(owner, _)| *owner == Some(id)).for_each(|(owner, _)| *owner = None);
        output
    }

    /// Forgets all of it, and keeps the room.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Token;

    #[test]
    fn each_output_is_its_connections() {
        let id = |index| ConnId(Token::new(index, 1));
        let mut batch = Batch::default();
        for (index, output) in [(3, "three"), (1, ""), (2, "two")] {
            batch.push(id(index), output.as_bytes());
        }
        let all: Vec<_> = batch.iter().collect();
        assert_eq!(all, [(id(3), b"three".as_slice()), (id(1), b""), (id(2), b"two")]);
        assert_eq!((batch.length_of(id(2)), batch.length_of(id(9))), (3, 0));
        assert_eq!(batch.take(id(3)), b"three");
        assert_eq!(batch.take(id(3)), b"");
        assert_eq!(batch.iter().collect::<Vec<_>>(), [(id(1), b"".as_slice()), (id(2), b"two")]);
        batch.clear();
        assert!(batch.is_empty() && batch.length_of(id(2)) == 0);
    }
}
