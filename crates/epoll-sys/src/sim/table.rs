//! What everything in a world is kept in: a table whose keys are never used twice, and queues of bytes.

use std::collections::VecDeque;
use std::io::Read as _;

/// Names one entry of a [`Table`], for ever: an index is used again, with another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    pub(super) const fn index(self) -> u32 {
        self.index
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

#[derive(Debug)]
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index as usize)
        {
            slot.value = Some(value);
            return Key { index, generation: slot.generation };
        }
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Key { index, generation: 0 }
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        slot.value.as_ref().filter(|_| slot.generation == key.generation)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    /// Two different entries at once.
    pub(super) fn get_two_mut(&mut self, one: Key, other: Key) -> Option<(&mut T, &mut T)> {
        let places = [one.index as usize, other.index as usize];
        let [first, second] = self.slots.get_disjoint_mut(places).ok()?;
        if first.generation == one.generation && second.generation == other.generation {
            first.value.as_mut().zip(second.value.as_mut())
        } else {
            None
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let slot = self.slots.get_mut(key.index as usize)?;
        slot.generation += 1;
        self.free.push(key.index);
        slot.value.take()
    }

    /// In the order of their indices.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0..).zip(&self.slots).filter_map(|(index, slot)| {
            Some((Key { index, generation: slot.generation }, slot.value.as_ref()?))
        })
    }
}

/// Bytes in order.
#[derive(Debug, Default)]
pub(super) struct ByteQueue(VecDeque<u8>);

impl ByteQueue {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0 = VecDeque::new();
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Fills `buffer` from the front; how much of it.
    pub(super) fn take(&mut self, buffer: &mut [u8]) -> usize {
        let mut taken = 0;
        while let Some(rest) = buffer.get_mut(taken..)
            && let Ok(read) = self.0.read(rest)
            && read > 0
        {
            taken += read;
        }
        taken
    }

    pub(super) fn skip(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    /// Moves the first `count` bytes to the end of `to`.
    pub(super) fn move_to(&mut self, to: &mut Self, count: usize) {
        if to.is_empty() && count >= self.len() {
            std::mem::swap(&mut self.0, &mut to.0);
            return;
        }
        let (first, second) = self.0.as_slices();
        let from_first = count.min(first.len());
        to.0.extend(first.get(..from_first).unwrap_or(first));
        to.0.extend(second.get(..count - from_first).unwrap_or(second));
        self.skip(count);
    }

    /// Moves all but the first `kept` bytes to the front of `to`.
    pub(super) fn put_back(&mut self, kept: usize, to: &mut Self) {
        let mut tail = self.0.split_off(kept.min(self.0.len()));
        tail.append(&mut to.0);
        to.0 = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_entry_and_finds_nothing() {
        let mut table = Table::new();
        let (a, b) = (table.insert("a"), table.insert("b"));
        assert_eq!(table.remove(a), Some("a"));
        let c = table.insert("c");
        assert_eq!(c.index(), a.index());
        assert_eq!(table.get(a), None);
        assert_eq!(table.remove(a), None);
        assert!(table.get_two_mut(a, b).is_none() && table.get_two_mut(c, c).is_none());
        assert_eq!(table.get_two_mut(c, b), Some((&mut "c", &mut "b")));
        assert_eq!(table.iter().map(|(_, value)| *value).collect::<String>(), "cb");
    }

    #[test]
    fn bytes_keep_their_order_there_and_back() {
        let (mut one, mut other) = (ByteQueue::default(), ByteQueue::default());
        one.push(b"0123456789");
        one.move_to(&mut other, 6);
        other.put_back(2, &mut one);
        assert_eq!((one.len(), other.len()), (8, 2));
        one.move_to(&mut other, 100);
        let mut buffer = [0; 16];
        assert_eq!(other.take(&mut buffer), 10);
        assert_eq!(&buffer[..10], b"0123456789");
    }
}
