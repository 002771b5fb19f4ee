//! Slots that are used again, each use with a generation of its own; and a table of the user's beside it.

use crate::token::{ConnId, Token};

/// Values in slots. A removed value's token finds nothing, for good, though its slot is used again.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    /// Indexes of the empty slots; the last freed is the first used, while it is still in the cache.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    /// Of the present value, or of the next one when there is none.
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// Puts a value in a slot. `None` when 2^31 slots are in use: the index would not fit a token.
    pub(crate) fn insert(&mut self, value: T) -> Option<Token> {
        if let Some(index) = self.free.pop() {
            let slot = self.slots.get_mut(index as usize)?;
            slot.value = Some(value);
            return Some(Token::new(index, slot.generation));
        }
        let index = u32::try_from(self.slots.len()).ok().filter(|index| *index < 1 << 31)?;
        self.slots.push(Slot { generation: 1, value: Some(value) });
        Some(Token::new(index, 1))
    }

    pub(crate) fn get(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get(token.index() as usize)?;
        if slot.generation == token.generation() { slot.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.index() as usize)?;
        if slot.generation == token.generation() { slot.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        let slot = self.slots.get_mut(token.index() as usize)?;
        if slot.generation != token.generation() {
            return None;
        }
        let value = slot.value.take()?;
        // Zero is skipped so that the number 0 never names anything.
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.free.push(token.index());
        Some(value)
    }

    /// How many values there are.
    pub(crate) const fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// One past the highest index ever used: with [`token_at`](Self::token_at), a way to walk the slots that
    /// borrows nothing between the steps.
    pub(crate) const fn end(&self) -> usize {
        self.slots.len()
    }

    /// The token of the value at `index`, if there is one.
    pub(crate) fn token_at(&self, index: usize) -> Option<Token> {
        let slot = self.slots.get(index)?;
        slot.value.as_ref()?;
        Some(Token::new(u32::try_from(index).ok()?, slot.generation))
    }
}

/// A handler's own table with an entry for some of its connections: members of a room, subscribers.
///
/// A callback holds the state of its own connection only; what it must know of the others it keeps in one of
/// these. Finding an entry is one look in an array, and an id whose connection has gone finds nothing. The
/// walk goes by slot, so its order is not that of arrival. Remove the entry in
/// [`on_close`](crate::Handler::on_close); an entry whose slot has a new owner is replaced by the new owner's.
#[derive(Debug)]
pub struct ConnMap<T> {
    entries: Vec<Option<(ConnId, T)>>,
    len: usize,
}

impl<T> ConnMap<T> {
    /// An empty table. Allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: Vec::new(), len: 0 }
    }

    /// Adds the entry of `id`, or replaces it; the old value is returned if it was the same connection's.
    pub fn insert(&mut self, id: ConnId, value: T) -> Option<T> {
        if self.entries.len() <= id.index() {
            self.entries.resize_with(id.index() + 1, || None);
        }
        let entry = self.entries.get_mut(id.index())?;
        let old = entry.replace((id, value));
        match old {
            None => {
                self.len += 1;
                None
            }
            Some((old_id, old_value)) => (old_id == id).then_some(old_value),
        }
    }

    /// The entry of `id`.
    #[must_use]
    pub fn get(&self, id: ConnId) -> Option<&T> {
        let (owner, value) = self.entries.get(id.index())?.as_ref()?;
        (*owner == id).then_some(value)
    }

    /// The entry of `id`, to change.
    #[must_use]
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut T> {
        let (owner, value) = self.entries.get_mut(id.index())?.as_mut()?;
        (*owner == id).then_some(value)
    }

    /// Takes the entry of `id` out.
    pub fn remove(&mut self, id: ConnId) -> Option<T> {
        let entry = self.entries.get_mut(id.index())?;
        let (_, value) = entry.take_if(|(owner, _)| *owner == id)?;
        self.len -= 1;
        Some(value)
    }

    /// How many entries there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &T)> {
        self.entries.iter().flatten().map(|(id, value)| (*id, value))
    }

    /// All entries, by slot, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ConnId, &mut T)> {
        self.entries.iter_mut().flatten().map(|(id, value)| (*id, value))
    }
}

impl<T> Default for ConnMap<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stale_token_finds_nothing_though_its_slot_is_used_again() {
        let mut slab = Slab::new();
        let first = slab.insert('a').unwrap();
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b').unwrap();
        assert_eq!(second.index(), first.index());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&'b'));
    }

    #[test]
    fn no_token_is_zero_even_after_the_generation_wraps() {
        let mut slab = Slab::new();
        let token = slab.insert(()).unwrap();
        slab.slots[0].generation = u32::MAX;
        let last = Token::new(token.index(), u32::MAX);
        slab.remove(last).unwrap();
        assert_eq!(slab.insert(()).unwrap().generation(), 1);
    }

    proptest! {
        /// Whatever is done, the slab holds what a plain list of (token, value) would.
        #[test]
        fn behaves_like_a_list(operations in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let mut slab = Slab::new();
            let mut model: Vec<(Token, usize)> = Vec::new();
            let mut dead: Vec<Token> = Vec::new();
            for (step, (insert, pick)) in operations.into_iter().enumerate() {
                if insert || model.is_empty() {
                    model.push((slab.insert(step).unwrap(), step));
                } else {
                    let (token, value) = model.swap_remove(pick.index(model.len()));
                    prop_assert_eq!(slab.remove(token), Some(value));
                    dead.push(token);
                }
                prop_assert_eq!(slab.len(), model.len());
                for (token, value) in &model {
                    prop_assert_eq!(slab.get(*token), Some(value));
                }
                for token in &dead {
                    prop_assert_eq!(slab.get(*token), None);
                }
                let walked = (0..slab.end()).filter_map(|index| slab.token_at(index)).count();
                prop_assert_eq!(walked, model.len());
            }
        }
    }

    #[test]
    fn a_map_tells_owners_of_one_slot_apart() {
        let mut slab = Slab::new();
        let mut map = ConnMap::new();
        let old = ConnId(slab.insert(()).unwrap());
        map.insert(old, "old");
        slab.remove(old.0);
        let new = ConnId(slab.insert(()).unwrap());
        assert_eq!(map.get(new), None);
        assert_eq!(map.insert(new, "new"), None);
        assert_eq!(map.len(), 1);
        assert_eq!(map.get(old), None);
        assert_eq!(map.remove(old), None);
        assert_eq!(map.iter().collect::<Vec<_>>(), [(new, &"new")]);
        assert_eq!(map.remove(new), Some("new"));
        assert!(map.is_empty());
    }
}
