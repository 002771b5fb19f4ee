//! What clients sent, beside the records of it: a ring of bytes.

/// It takes all of its room from the beginning on, and allocates nothing later.
#[derive(Debug)]
pub(super) struct Capture {
    bytes: Box<[u8]>,
    /// Bytes that were ever put in; where the next ones go is this modulo the room.
    end: u64,
}

impl Capture {
    /// One with room for `capacity` bytes; with none it keeps nothing.
    pub(super) fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into(), end: 0 }
    }

    /// Keeps a copy, at the cost of what is oldest, and says where it is. `None` if there is not the room for all of it:
    /// half a message is of no use, and what is there is worth more.
    pub(super) fn keep(&mut self, input: &[u8]) -> Option<u64> {
        if input.is_empty() || input.len() > self.bytes.len() {
            return None;
        }
        let place = self.end;
        let at = self.index(place);
        let (first, second) = input.split_at(input.len().min(self.bytes.len() - at));
        self.bytes.get_mut(at..at + first.len())?.copy_from_slice(first);
        self.bytes.get_mut(..second.len())?.copy_from_slice(second);
        self.end += input.len() as u64;
        Some(place)
    }

    /// The `length` bytes at `place`, in one piece or two; `None` if some of them are kept no more.
    pub(super) fn get(&self, place: u64, length: usize) -> Option<[&[u8]; 2]> {
        let oldest = self.end.saturating_sub(self.bytes.len() as u64);
        if place < oldest || place.saturating_add(length as u64) > self.end {
            return None;
        }
        let at = self.index(place);
        let first = length.min(self.bytes.len() - at);
        Some([self.bytes.get(at..at + first)?, self.bytes.get(..length - first)?])
    }

    fn index(&self, place: u64) -> usize {
        let index = place.checked_rem(self.bytes.len() as u64).unwrap_or(0);
        usize::try_from(index).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_room_nothing_is_kept() {
        let mut capture = Capture::new(0);
        assert_eq!((capture.keep(b"x"), capture.keep(b""), capture.get(0, 1)), (None, None, None));
    }

    proptest! {
        /// Beside a ring that keeps everything: what it gives back is what was put in, and it gives back whatever lies
        /// wholly within the last bytes that there is room for.
        #[test]
        fn the_last_bytes_are_there_and_no_others(
            capacity in 1_usize..20,
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..24), 0..40),
        ) {
            let mut capture = Capture::new(capacity);
            let mut all = Vec::new();
            let mut kept = Vec::new();
            for piece in &pieces {
                let place = capture.keep(piece);
                prop_assert_eq!(place.is_some(), !piece.is_empty() && piece.len() <= capacity);
                if let Some(place) = place {
                    prop_assert_eq!(place, all.len() as u64);
                    all.extend_from_slice(piece);
                    kept.push((place, piece));
                }
                for (place, piece) in &kept {
                    let found = capture.get(*place, piece.len()).map(|pieces| pieces.concat());
                    let fits = usize::try_from(*place).unwrap() + capacity >= all.len();
                    prop_assert_eq!(found.as_ref(), fits.then_some(*piece));
                }
            }
        }
    }
}
