//! What fuzzers call, and `cargo test` with random input: operations decoded from bytes, done on the real thing and on
//! a plain model of it. Compiled for nothing else. The targets are in `xtask/fuzz`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    missing_debug_implementations,
    reason = "a panic is how a fuzzer is told"
)]

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;

use crate::buffer::{Front, InputTail, PIECES_PER_WRITE, QueuePool};
use crate::file::FileSlice;
use crate::recorder::Recording;
use crate::slab::{ConnMap, Slab};
use crate::token::{ConnId, Token};

/// Connections that come and go, and a table beside them: what is gone stays gone, whoever has its slot.
pub fn slab(data: &[u8]) {
    let mut slab: Slab<usize> = Slab::new();
    let mut table: ConnMap<usize> = ConnMap::new();
    let mut live: Vec<(Token, usize)> = Vec::new();
    let mut dead: Vec<Token> = Vec::new();
    // By slot, as in the table.
    let mut entries: BTreeMap<usize, (ConnId, usize)> = BTreeMap::new();
    for (step, [operation, pick]) in pairs(data).enumerate() {
        let one_of = |count: usize| (count > 0).then(|| usize::from(pick) % count);
        match operation % 8 {
            0..=2 => {
                let token = slab.insert(step).unwrap();
                assert_eq!(token.registration(), None);
                assert_eq!(token.into_registration().registration(), Some(token));
                assert_eq!(Token::from_u64(token.as_u64()), token);
                live.push((token, step));
            }
            3 | 4 => {
                if let Some(position) = one_of(live.len()) {
                    let (token, value) = live.swap_remove(position);
                    assert_eq!(slab.remove(token), Some(value));
                    dead.push(token);
                }
            }
            5 => {
                if let Some(position) = one_of(dead.len()) {
                    let token = dead[position];
                    assert_eq!(slab.get(token), None);
                    assert_eq!(slab.get_mut(token), None);
                    assert_eq!(slab.remove(token), None);
                }
            }
            6 => {
                if let Some(position) = one_of(live.len()) {
                    let id = ConnId(live[position].0);
                    let replaced = entries.insert(id.index(), (id, step));
                    let same_owner = replaced.filter(|(owner, _)| *owner == id).map(|(_, value)| value);
                    assert_eq!(table.insert(id, step), same_owner);
                }
            }
            _ => {
                let mut tokens = live.iter().map(|(token, _)| *token).chain(dead.iter().copied());
                if let Some(position) = one_of(live.len() + dead.len()) {
                    let id = ConnId(tokens.nth(position).unwrap());
                    let own = entries.get(&id.index()).filter(|(owner, _)| *owner == id).copied();
                    assert_eq!(table.get(id).copied(), own.map(|(_, value)| value));
                    assert_eq!(table.get_mut(id).copied(), own.map(|(_, value)| value));
                    assert_eq!(table.remove(id), own.map(|(_, value)| value));
                    if own.is_some() {
                        entries.remove(&id.index());
                    }
                }
            }
        }
        assert_eq!((slab.len(), table.len()), (live.len(), entries.len()));
    }
    assert!(live.iter().all(|(token, value)| slab.get(*token) == Some(value)));
    assert!(dead.iter().all(|token| slab.get(*token).is_none()));
    let walked = (0..slab.end()).filter_map(|index| slab.token_at(index));
    assert!(walked.clone().all(|token| slab.get(token).is_some()));
    assert_eq!(walked.count(), live.len());
    assert!(table.iter().map(|(id, value)| (id, *value)).eq(entries.into_values()));
}

/// Copied and shared pieces and parts of files against writes of every length, and the pool that empty queues come from:
/// the bytes go out once and in order.
pub fn output_queue(data: &[u8]) {
    // Bytes of files are told from others by this, and are the offset that they lie at.
    const IN_FILE: u16 = 1 << 8;
    let at = |offset: u64| IN_FILE | u16::from(offset.to_le_bytes()[0]);
    let file = Arc::new(File::open("/dev/null").unwrap());
    let mut offset = 0;
    let mut pool = QueuePool::default();
    let mut queue = pool.take();
    let mut model: VecDeque<u16> = VecDeque::new();
    let mut bytes = Bytestream::default();
    for [operation, size] in pairs(data) {
        // Up to the length of a segment and past it.
        let size = usize::from(size) * [1, 1, 9, 80][usize::from(operation >> 6)];
        match operation % 10 {
            0 | 1 => {
                let piece = bytes.next(size);
                queue.push_copy(&piece);
                model.extend(piece.into_iter().map(u16::from));
            }
            2 | 3 => {
                let piece = bytes.next(size);
                queue.push_shared(Bytes::from(piece.clone()), piece.len());
                model.extend(piece.into_iter().map(u16::from));
            }
            4 | 5 => {
                let slice = FileSlice { file: Arc::clone(&file), offset, length: size as u64 };
                model.extend((offset..offset + slice.length).map(at));
                offset += slice.length + 7;
                queue.push_file(slice);
            }
            6..=8 => {
                queue.advance(size);
                model.drain(..size.min(model.len()));
            }
            _ => {
                pool.put(queue);
                queue = pool.take();
                model.clear();
            }
        }
        assert_eq!(queue.len(), model.len());
        assert!(queue.charge() >= queue.in_memory() && (queue.charge() == 0) == model.is_empty());
        let most = if operation & 1 == 0 { usize::MAX } else { size + 1 };
        let mut slices = [IoSlice::new(&[]); PIECES_PER_WRITE];
        let offered = match queue.front(&mut slices, most) {
            Front::File(slice) => {
                let part = slice.offset..slice.offset + slice.length;
                assert!(part.clone().map(at).eq(model.iter().copied().take(part.count())));
                usize::try_from(slice.length).unwrap()
            }
            Front::Pieces(count, _) => {
                let slices = &slices[..count];
                assert!(slices.iter().all(|slice| !slice.is_empty()), "an empty piece");
                // All of a long queue each time would take most of the time. Its end is a front one day.
                let offered: usize = slices.iter().map(|slice| slice.len()).sum();
                let front = slices.iter().flat_map(|slice| slice.iter()).map(|byte| u16::from(*byte));
                let compared = offered.min(2048);
                assert!(front.take(compared).eq(model.iter().copied().take(compared)));
                let file_is_next = model.get(offered).is_some_and(|byte| *byte >= IN_FILE);
                let all = offered == model.len().min(most) || count == PIECES_PER_WRITE || file_is_next;
                assert!(all, "something is not offered");
                offered
            }
        };
        assert!(offered <= most && (offered > 0) != model.is_empty(), "{offered} bytes, of {most} at most");
        if model.len() > 1 << 15 {
            return;
        }
    }
}

/// Reads of every length into the tail and messages of every length out of it: what is kept is what lies between.
pub fn input_tail(data: &[u8]) {
    let mut bytes = Bytestream::default();
    let first = bytes.next(data.first().copied().unwrap_or_default().into());
    let mut tail = InputTail::from_slice(&first);
    let mut model = VecDeque::from(first);
    for [operation, size] in pairs(data.get(1..).unwrap_or_default()) {
        let size = usize::from(size) * [1, 2, 5, 60][usize::from(operation >> 6)];
        if operation % 2 == 0 {
            let room = tail.room(size);
            assert!(!room.is_empty() && room.len() <= size.max(1), "{} bytes of room for {size}", room.len());
            let count = room.len() - usize::from(operation >> 1 & 1).min(room.len() - 1);
            let read = bytes.next(count);
            room[..count].copy_from_slice(&read);
            tail.filled(count);
            model.extend(read);
        } else {
            tail.consume(size);
            model.drain(..size.min(model.len()));
            if operation % 4 == 3 {
                tail.shrink();
                assert!(tail.held() <= 4 * tail.len() + 1024, "{} for {}", tail.held(), tail.len());
            }
        }
        assert!(tail.len() == model.len() && tail.held() >= tail.len());
        assert_eq!(tail.as_slice(), &*model.make_contiguous());
        if model.len() > 1 << 15 {
            return;
        }
    }
}

/// A file of a flight recorder: whatever it holds is refused, or read, shown, and written as it was.
pub fn recording(data: &[u8]) {
    if let Ok(recording) = Recording::from_bytes(data) {
        for record in &recording.records {
            assert!(!record.to_string().is_empty());
            let _: std::time::SystemTime = recording.wall_at(record);
            assert!(recording.input_of(record).unwrap_or_default().len() <= recording.input.len());
        }
        assert_eq!(Recording::from_bytes(&recording.to_bytes()), Ok(recording));
    }
}

fn pairs(data: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    data.chunks_exact(2).map(|pair| [pair[0], pair[1]])
}

/// Bytes in which a piece that is lost, doubled or moved shows.
#[derive(Default)]
struct Bytestream(u32);

impl Bytestream {
    fn next(&mut self, count: usize) -> Vec<u8> {
        let byte = |number: &mut u32| {
            *number = number.wrapping_add(1);
            (number.wrapping_mul(0x9e37_79b1) >> 24).to_le_bytes()[0]
        };
        (0..count).map(|_| byte(&mut self.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A target and an input that a fuzzer has found something with.
    type Found = (fn(&[u8]), &'static [u8]);

    #[test]
    fn what_was_found_stays_found() {
        let found: [Found; 0] = [];
        for (target, input) in found {
            target(input);
        }
    }

    proptest! {
        #[test]
        fn random_operations(data in prop::collection::vec(any::<u8>(), 0..600)) {
            slab(&data);
            output_queue(&data);
            input_tail(&data);
            recording(&[&b"EPOLLREC\x01\0\x20\0"[..], &data].concat());
            recording(&[&b"EPOLLREC\x02\0\x20\0"[..], &data].concat());
        }
    }
}
