//! What a connection holds for longer than a turn: the start of a message, and output the kernel did not take.
//! Neither exists while the connection is idle.

use std::collections::VecDeque;
use std::io::IoSlice;

use epoll_sys::{Then, Timestamp};

use crate::file::FileSlice;
use crate::shared::Held;

/// Pieces handed to one writev: enough to keep system calls few, few enough for the stack.
pub(crate) const PIECES_PER_WRITE: usize = 64;

/// Small sends are gathered into segments of about this size.
const SEGMENT: usize = 16 * 1024;

/// Shared data up to this size is copied all the same: that costs less than a piece of its own, and keeps the room
/// that pieces take in proportion to the data.
pub(crate) const SMALL: usize = 64;

/// What a part of a file counts for: its place in a queue, and not what it names.
pub(crate) const FILE_CHARGE: usize = 64;

/// A queue returned to the pool keeps room for at most this many pieces, and a segment of at most this size.
const POOLED_PIECES: usize = 64;
const POOLED_SEGMENT: usize = 4 * 1024;

/// The start of a message whose rest has not come. The next read lands behind it, so that the handler always
/// sees one contiguous slice, and nothing is copied twice but by growth.
///
/// Invariant: `start <= end <= bytes.len()`; what is kept is `bytes[start..end]`, the rest is initialised room.
#[derive(Debug, Default)]
pub(crate) struct InputTail {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl InputTail {
    pub(crate) fn from_slice(unconsumed: &[u8]) -> Self {
        Self { bytes: unconsumed.to_vec(), start: 0, end: unconsumed.len() }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub(crate) const fn len(&self) -> usize {
        self.end - self.start
    }

    /// The memory it takes, which is what counts against the loop's limit.
    pub(crate) const fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Gives back room that is out of proportion to what is kept: a long message may have left it, and the
    /// next may be long in coming.
    pub(crate) fn shrink(&mut self) {
        if self.bytes.len() > 4 * self.len() + 1024 {
            *self = Self::from_slice(self.as_slice());
        }
    }

    /// Room behind what is kept: at least 1 byte, at most `most`, growing by doubling so that the copying of
    /// a message that comes byte by byte stays linear.
    pub(crate) fn room(&mut self, most: usize) -> &mut [u8] {
        if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let wanted = (2 * self.end).max(512);
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted, 0);
            }
        }
        let until = self.bytes.len().min(self.end + most.max(1));
        self.bytes.get_mut(self.end..until).unwrap_or_default()
    }

    /// Says that `count` bytes of the room now hold data.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }
}

#[derive(Debug)]
enum Chunk {
    /// A copy of what was sent, alone or with its neighbours.
    Copied(Vec<u8>),
    /// A reference to what others may hold too, and what it counts for here.
    Shared(Held, usize),
    /// What is left of a part of a file. Its length fits a `usize`.
    File(FileSlice),
}

impl Chunk {
    /// The bytes, if they are in memory.
    fn as_slice(&self) -> Option<&[u8]> {
        match self {
            Self::Copied(bytes) => Some(bytes),
            Self::Shared(held, _) => Some(held),
            Self::File(_) => None,
        }
    }

    fn charge(&self) -> usize {
        match self {
            Self::Copied(bytes) => bytes.len(),
            Self::Shared(_, charge) => *charge,
            Self::File(_) => FILE_CHARGE,
        }
    }
}

/// What is to be written next.
#[derive(Debug)]
pub(crate) enum Front {
    /// So many pieces in memory, and what follows them.
    Pieces(usize, Then),
    /// A part of a file.
    File(FileSlice),
}

/// Output in the order it was sent, as pieces that are never moved.
///
/// Invariants: no piece is empty; `written` is less than the length of the first piece, and 0 if that is a file's;
/// `len` is the sum of the lengths less `written`; `in_files` is the part of it that is no memory; `charge` is the
/// sum of what the pieces count for, in whole pieces, since a piece that is partly written is still held whole.
#[derive(Debug, Default)]
pub(crate) struct OutputQueue {
    chunks: VecDeque<Chunk>,
    written: usize,
    len: usize,
    in_files: usize,
    charge: usize,
    /// Since when it waits without the kernel having taken any of it, if it has been offered.
    pub(crate) blocked_since: Option<Timestamp>,
    /// An empty segment that has been written, for the next copy.
    spare: Vec<u8>,
}

impl OutputQueue {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// How much of it is in memory.
    pub(crate) const fn in_memory(&self) -> usize {
        self.len - self.in_files
    }

    /// What it counts for against the loop's memory limit.
    pub(crate) const fn charge(&self) -> usize {
        self.charge
    }

    pub(crate) fn push_copy(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.len += data.len();
        self.charge += data.len();
        if let Some(Chunk::Copied(segment)) = self.chunks.back_mut()
            && segment.len() + data.len() <= SEGMENT
        {
            segment.extend_from_slice(data);
        } else {
            let mut segment = std::mem::take(&mut self.spare);
            segment.extend_from_slice(data);
            self.chunks.push_back(Chunk::Copied(segment));
        }
    }

    pub(crate) fn push_shared(&mut self, data: impl Into<Held>, charge: usize) {
        let data = data.into();
        if data.len() <= SMALL {
            self.push_copy(&data);
        } else {
            self.len += data.len();
            self.charge += charge;
            self.chunks.push_back(Chunk::Shared(data, charge));
        }
    }

    /// The caller sees to it that the sum of all lengths fits a `usize`.
    pub(crate) fn push_file(&mut self, slice: FileSlice) {
        let length = usize::try_from(slice.length).unwrap_or(usize::MAX);
        if length > 0 {
            self.len += length;
            self.in_files += length;
            self.charge += FILE_CHARGE;
            self.chunks.push_back(Chunk::File(slice));
        }
    }

    /// What to write next, at most `most` bytes of it: of a file, or the pieces before one, as many as `slices` has
    /// room for.
    pub(crate) fn front<'queue>(&'queue self, slices: &mut [IoSlice<'queue>], most: usize) -> Front {
        if let Some(Chunk::File(slice)) = self.chunks.front() {
            return Front::File(FileSlice { length: slice.length.min(most as u64), ..slice.clone() });
        }
        let (mut skip, mut left, mut count) = (self.written, most, 0);
        for slot in slices {
            let Some(bytes) = self.chunks.get(count).and_then(Chunk::as_slice).filter(|_| left > 0) else {
                break;
            };
            let piece = bytes.get(skip..).unwrap_or_default();
            let piece = piece.get(..left).unwrap_or(piece);
            *slot = IoSlice::new(piece);
            skip = 0;
            left -= piece.len();
            count += 1;
        }
        // A file that has to wait for the next turn does not follow at once.
        let file_follows = left > 0 && matches!(self.chunks.get(count), Some(Chunk::File(_)));
        Front::Pieces(count, if file_follows { Then::More } else { Then::Nothing })
    }

    /// Removes the first `count` bytes: the kernel has taken them.
    pub(crate) fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        while let Some(first) = self.chunks.front_mut() {
            let (whole, taken) = match first {
                Chunk::File(slice) => {
                    let part = slice.length.min(left as u64);
                    slice.offset = slice.offset.saturating_add(part);
                    slice.length -= part;
                    // At most `left`.
                    let part = usize::try_from(part).unwrap_or(left);
                    self.in_files -= part;
                    (slice.length == 0, part)
                }
                Chunk::Copied(_) | Chunk::Shared(..) => {
                    let rest = first.as_slice().map_or(0, <[u8]>::len) - self.written;
                    let part = rest.min(left);
                    self.written = if part == rest { 0 } else { self.written + part };
                    (part == rest, part)
                }
            };
            left -= taken;
            if !whole {
                break;
            }
            self.charge -= first.charge();
            if let Some(Chunk::Copied(mut segment)) = self.chunks.pop_front()
                && segment.capacity() <= POOLED_SEGMENT
            {
                segment.clear();
                self.spare = segment;
            }
        }
    }
}

/// Empty queues kept for the next connection whose output is blocked: fan-out to many receivers then
/// allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct QueuePool {
    // Boxed, as connections hold them: a pointer each when idle.
    #[expect(clippy::vec_box, reason = "a queue moves between the pool and a connection as its box")]
    queues: Vec<Box<OutputQueue>>,
}

impl QueuePool {
    /// More than this are given back to the allocator.
    const CAPACITY: usize = 1024;

    pub(crate) fn take(&mut self) -> Box<OutputQueue> {
        self.queues.pop().unwrap_or_default()
    }

    /// Takes back a queue; what is still in it is dropped.
    pub(crate) fn put(&mut self, mut queue: Box<OutputQueue>) {
        if self.queues.len() < Self::CAPACITY && queue.chunks.capacity() <= POOLED_PIECES {
            queue.chunks.clear();
            queue.written = 0;
            queue.len = 0;
            queue.in_files = 0;
            queue.charge = 0;
            queue.blocked_since = None;
            self.queues.push(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    impl OutputQueue {
        fn pieces(&self) -> usize {
            self.chunks.len()
        }
    }

    fn slice(offset: u64, length: u64) -> FileSlice {
        FileSlice { file: Arc::new(tempfile::tempfile().unwrap()), offset, length }
    }

    /// A byte on its way out: one in memory, or the place of one in a file.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Byte {
        Memory(u8),
        File(u64),
    }

    /// Everything that is in `queue`, as it would be written, `most` bytes at a time; empties it.
    fn written_out(mut queue: OutputQueue, most: usize) -> Vec<Byte> {
        let mut bytes = Vec::new();
        while queue.len() > 0 {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = match queue.front(&mut slices, most) {
                Front::File(slice) => {
                    bytes.extend((slice.offset..slice.offset + slice.length).map(Byte::File));
                    usize::try_from(slice.length).unwrap()
                }
                Front::Pieces(count, then) => {
                    let slices = &slices[..count];
                    assert!(count > 0 && slices.iter().all(|slice| !slice.is_empty()), "an empty piece");
                    let taken: usize = slices.iter().map(|slice| slice.len()).sum();
                    let whole = queue.chunks.iter().take(count).map(|it| it.as_slice().unwrap().len());
                    let file_next = matches!(queue.chunks.get(count), Some(Chunk::File(_)));
                    let all = taken == whole.sum::<usize>() - queue.written;
                    assert_eq!(then == Then::More, file_next && all && taken < most);
                    bytes.extend(slices.iter().flat_map(|slice| slice.iter().copied()).map(Byte::Memory));
                    taken
                }
            };
            assert!(count > 0 && count <= most, "{count} bytes, at most {most}");
            queue.advance(count);
        }
        assert_eq!((queue.charge(), queue.in_memory(), queue.pieces(), queue.written), (0, 0, 0, 0));
        bytes
    }

    /// The same queue again, to be emptied.
    fn copy_of(queue: &OutputQueue) -> OutputQueue {
        let chunks = queue.chunks.iter().map(|chunk| match chunk {
            Chunk::Copied(bytes) => Chunk::Copied(bytes.clone()),
            Chunk::Shared(bytes, charge) => Chunk::Shared(bytes.clone(), *charge),
            Chunk::File(slice) => Chunk::File(slice.clone()),
        });
        OutputQueue { chunks: chunks.collect(), spare: Vec::new(), ..*queue }
    }

    proptest! {
        /// Every interleaving of copied and shared pieces and files with writes of every size keeps the bytes in order.
        #[test]
        fn the_queue_is_a_byte_stream(
            steps in prop::collection::vec((0..4u8, 0..40usize), 1..60),
            most in 1..100usize,
        ) {
            let file = slice(0, 0);
            let mut queue = OutputQueue::default();
            let mut model: VecDeque<Byte> = VecDeque::new();
            let (mut next, mut offset) = (0u8, 0);
            for (kind, size) in steps {
                let mut bytes = || -> Vec<u8> {
                    (0..size).map(|_| { next = next.wrapping_add(1); next }).collect()
                };
                match kind {
                    0 => {
                        let data = bytes();
                        queue.push_copy(&data);
                        model.extend(data.into_iter().map(Byte::Memory));
                    }
                    1 => {
                        // Half of them too long to be copied.
                        let data = bytes().repeat(3);
                        queue.push_shared(Bytes::from(data.clone()), 1);
                        model.extend(data.into_iter().map(Byte::Memory));
                    }
                    2 => {
                        let length = size as u64;
                        queue.push_file(FileSlice { offset, length, ..file.clone() });
                        model.extend((offset..offset + length).map(Byte::File));
                        offset += length + 1;
                    }
                    _ => { queue.advance(size); model.drain(..size.min(model.len())); }
                }
                let in_memory = model.iter().filter(|byte| matches!(byte, Byte::Memory(_))).count();
                prop_assert_eq!((queue.len(), queue.in_memory()), (model.len(), in_memory));
                prop_assert_eq!(queue.charge(), queue.chunks.iter().map(Chunk::charge).sum::<usize>());
                prop_assert_eq!(written_out(copy_of(&queue), most), Vec::from_iter(model.iter().copied()));
            }
        }

        /// Whatever is read and consumed in whatever steps, the tail holds what lies between.
        #[test]
        fn the_tail_is_a_window_on_the_stream(steps in prop::collection::vec((0..700usize, 0..700usize), 1..40)) {
            let mut tail = InputTail::default();
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut next = 0u8;
            for (arriving, consumed) in steps {
                let room = tail.room(arriving.max(1));
                prop_assert!(!room.is_empty());
                let count = arriving.min(room.len());
                for byte in room.iter_mut().take(count) { next = next.wrapping_add(1); *byte = next; model.push_back(next); }
                tail.filled(count);
                tail.consume(consumed);
                model.drain(..consumed.min(model.len()));
                prop_assert_eq!(tail.as_slice(), &*model.make_contiguous());
            }
        }
    }

    #[test]
    fn small_pieces_share_a_segment_and_larger_shared_ones_are_not_copied() {
        let mut queue = OutputQueue::default();
        for _ in 0..100 {
            queue.push_copy(b"0123456789");
            queue.push_shared(Bytes::from_static(b"0123456789"), 10);
        }
        assert_eq!(queue.pieces(), 1);
        let shared = Bytes::from(vec![7; 100]);
        queue.push_shared(shared.clone(), 100);
        let mut slices = [IoSlice::new(&[]); 2];
        assert!(matches!(queue.front(&mut slices, usize::MAX), Front::Pieces(2, Then::Nothing)));
        assert_eq!(slices[1].as_ptr(), shared.as_ptr());
    }

    #[test]
    fn the_room_that_pieces_take_is_in_proportion_to_the_data() {
        let mut queue = OutputQueue::default();
        while queue.len() < 1_000_000 {
            queue.push_copy(b"x");
            queue.push_shared(Bytes::from_static(&[0; SMALL + 1]), SMALL + 1);
        }
        assert!(queue.pieces() * size_of::<Chunk>() <= 2 * queue.len());
        assert!(size_of::<Chunk>() <= FILE_CHARGE, "or the parts of files take more than they count for");
    }

    #[test]
    fn the_pool_keeps_no_file_open() {
        let mut pool = QueuePool::default();
        let kept = slice(0, 1 << 40);
        let mut queue = pool.take();
        queue.push_file(kept.clone());
        queue.advance(1);
        pool.put(queue);
        assert_eq!(Arc::strong_count(&kept.file), 1);
        let queue = pool.take();
        assert_eq!((queue.len(), queue.in_memory(), queue.charge()), (0, 0, 0));
    }

    #[test]
    fn a_file_that_has_been_sent_is_not_kept_open() {
        let mut queue = OutputQueue::default();
        let kept = slice(7, 100);
        queue.push_file(kept.clone());
        queue.push_copy(b"tail");
        queue.advance(100);
        assert_eq!((Arc::strong_count(&kept.file), queue.len(), queue.in_memory()), (1, 4, 4));
    }

    #[test]
    fn a_segment_is_used_again() {
        let mut queue = OutputQueue::default();
        queue.push_copy(&[1; 1000]);
        let Some(Chunk::Copied(segment)) = queue.chunks.front() else { panic!("not copied") };
        let room = segment.as_ptr();
        queue.advance(1000);
        queue.push_copy(b"again");
        let Some(Chunk::Copied(segment)) = queue.chunks.front() else { panic!("not copied") };
        assert_eq!(segment.as_ptr(), room);
    }

    #[test]
    fn a_tail_that_grows_byte_by_byte_copies_a_linear_amount() {
        let mut tail = InputTail::from_slice(&[0]);
        let mut grown = 0;
        let mut room = 0;
        for _ in 0..100_000 {
            let before = tail.bytes.len();
            tail.room(1);
            tail.filled(1);
            if tail.bytes.len() != before {
                grown += 1;
            }
            room = tail.bytes.len();
        }
        assert!(grown <= 10, "{grown} reallocations");
        assert!(room <= 2 * 100_001 + 512);
    }

    #[test]
    fn a_tail_gives_back_what_a_long_message_has_left() {
        let mut tail = InputTail::from_slice(&[1; 100_000]);
        tail.consume(99_999);
        tail.shrink();
        assert_eq!((tail.as_slice(), tail.held()), (&[1][..], 1));
    }

    #[test]
    fn the_pool_gives_back_empty_queues() {
        let mut pool = QueuePool::default();
        let mut queue = pool.take();
        queue.push_copy(b"left over");
        queue.advance(3);
        queue.blocked_since = Some(Timestamp::from_nanoseconds(1));
        pool.put(queue);
        let queue = pool.take();
        assert_eq!((queue.len(), queue.pieces(), queue.written, queue.blocked_since), (0, 0, 0, None));
    }
}
