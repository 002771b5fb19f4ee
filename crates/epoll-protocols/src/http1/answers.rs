//! Answers on their way into the loop: what the codec writes, as sends to one connection.

use bytes::Bytes;
use epoll_reactor::{ConnId, Ctx, Errno, FileSlice, SendOutcome, read_cached};

use super::output::{NotCached, Output};

/// Answers on their way to one connection. Once a part has been refused, nothing of what follows is sent: it
/// would be taken for that part.
pub(super) struct Answers<'a> {
    pub(super) ctx: &'a mut Ctx,
    pub(super) id: ConnId,
    pub(super) refused: bool,
    /// A request is served though the loop is overloaded. Whether those behind it would be late is for the next callback to say.
    has_had_its_turn: bool,
}

impl<'a> Answers<'a> {
    pub(super) const fn new(ctx: &'a mut Ctx, id: ConnId) -> Self {
        Self { ctx, id, refused: false, has_had_its_turn: false }
    }
}

impl Output for Answers<'_> {
    fn copy(&mut self, data: &[u8]) {
        self.refused = self.refused || matches!(self.ctx.send(self.id, data), SendOutcome::OverLimit(_));
    }

    fn share(&mut self, data: Bytes) {
        self.refused =
            self.refused || matches!(self.ctx.send_shared(self.id, data), SendOutcome::OverLimit(_));
    }

    fn file(&mut self, slice: FileSlice, wait: bool) -> Result<(), NotCached> {
        if !wait && !is_cached(&slice, self.ctx.now().as_nanoseconds()) {
            return Err(NotCached);
        }
        self.refused =
            self.refused || matches!(self.ctx.send_file(self.id, slice), SendOutcome::OverLimit(_));
        Ok(())
    }

    /// Everything is full once a part has been refused, so that no further request is read.
    fn waiting(&self) -> usize {
        if self.refused { usize::MAX } else { self.ctx.queued(self.id) }
    }

    fn refused(&self) -> bool {
        self.refused
    }

    fn sheds(&mut self) -> bool {
        let sheds = self.ctx.should_shed();
        self.has_had_its_turn |= !sheds && self.ctx.is_overloaded();
        sheds
    }

    fn is_others_turn(&self) -> bool {
        self.has_had_its_turn
    }
}

/// Of how many bytes of a file one is asked for, to see whether it is in memory.
const PROBED: usize = 64 * 1024;

/// Whether `slice` can be had without waiting for the disk, as far as a few questions tell: one about each [`PROBED`]
/// bytes, and one about the last. `draw` says which page of them, so that nobody can know what to have read to make a
/// file look as if it were in memory. Whatever goes wrong shows when the file is sent.
fn is_cached(slice: &FileSlice, draw: u64) -> bool {
    const PAGE: u64 = 4096;
    const PAGES: u64 = PROBED as u64 / PAGE;
    let end = slice.offset.saturating_add(slice.length);
    let within = draw % PAGES * PAGE;
    let is_cached = |at| read_cached(&slice.file, &mut [0], at) != Err(Errno::EAGAIN);
    let last = end.saturating_sub(1);
    let each = (slice.offset..end).step_by(PROBED).map(|block| block.saturating_add(within));
    each.take_while(|at| *at < last).chain([last]).all(is_cached)
}
