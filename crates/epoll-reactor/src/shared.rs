//! Data for many connections: held once, and counted once.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::buffer::SMALL;

/// What a queue counts for its reference to shared data, instead of the data itself.
const REFERENCE: usize = 64;

/// Data made by [`Ctx::share`](crate::Ctx::share), to be sent to any number of connections. It counts once against
/// [`Limits::memory`](crate::Limits::memory), until the last copy of this handle is gone, and 64 bytes more for
/// each connection it waits on; against each one's [`Limits::output`](crate::Limits::output) it counts in full.
/// Cheap to clone. Up to 64 bytes are not shared but copied: they lie in the handle itself, take no memory of their
/// own, and are copied to each queue.
#[derive(Clone)]
pub struct Shared(Repr);

#[derive(Clone)]
enum Repr {
    Copied { length: u8, bytes: [u8; SMALL] },
    Held(Bytes),
}

/// The memory of all shared data that is alive.
#[derive(Debug, Default)]
pub(crate) struct SharedMemory(Arc<AtomicUsize>);

/// One piece of it: gives its part back when nobody needs it any more, in whichever thread that is.
struct Counted {
    data: Vec<u8>,
    memory: Arc<AtomicUsize>,
}

impl SharedMemory {
    pub(crate) fn share(&self, data: impl AsRef<[u8]> + Into<Vec<u8>>) -> Shared {
        let slice = data.as_ref();
        let mut bytes = [0; SMALL];
        if let (Some(room), Ok(length)) = (bytes.get_mut(..slice.len()), u8::try_from(slice.len())) {
            room.copy_from_slice(slice);
            return Shared(Repr::Copied { length, bytes });
        }
        let data = data.into();
        self.0.fetch_add(data.capacity(), Ordering::Relaxed);
        Shared(Repr::Held(Bytes::from_owner(Counted { data, memory: Arc::clone(&self.0) })))
    }

    pub(crate) fn in_use(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.fetch_sub(self.data.capacity(), Ordering::Relaxed);
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Copied { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Repr::Held(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Shared {}

/// What [`Ctx::send_shared`](crate::Ctx::send_shared) sends without copying: [`Bytes`], which each connection counts
/// in full, and [`Shared`], which is counted once for all.
pub trait Share: Sealed {}

/// Keeps `Share` to this crate's two.
pub trait Sealed: Sized {
    #[doc(hidden)]
    fn length(&self) -> usize;
    #[doc(hidden)]
    fn charge(&self) -> usize;
    /// What is not to be copied; or itself, if it is.
    #[doc(hidden)]
    fn into_held(self) -> Result<Bytes, Self>;
    #[doc(hidden)]
    fn as_slice(&self) -> &[u8];
}

impl Share for Bytes {}

impl Sealed for Bytes {
    fn length(&self) -> usize {
        self.len()
    }

    fn charge(&self) -> usize {
        self.len()
    }

    fn into_held(self) -> Result<Bytes, Self> {
        Ok(self)
    }

    fn as_slice(&self) -> &[u8] {
        self
    }
}

impl Share for Shared {}

impl Sealed for Shared {
    fn length(&self) -> usize {
        self.len()
    }

    fn charge(&self) -> usize {
        REFERENCE.min(self.len())
    }

    fn into_held(self) -> Result<Bytes, Self> {
        match self.0 {
            Repr::Copied { .. } => Err(self),
            Repr::Held(bytes) => Ok(bytes),
        }
    }

    fn as_slice(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_once_until_the_last_handle_is_gone() {
        let memory = SharedMemory::default();
        let line = memory.share(vec![7; 1000]);
        let queued = line.clone().into_held().unwrap();
        assert_eq!(memory.in_use(), 1000);
        drop(line);
        assert_eq!(memory.in_use(), 1000);
        assert_eq!(queued.len(), 1000);
        drop(queued);
        assert_eq!(memory.in_use(), 0);
    }

    #[test]
    fn what_is_short_is_copied_and_takes_no_memory() {
        let memory = SharedMemory::default();
        for length in [0, 1, SMALL - 1, SMALL, SMALL + 1, 300] {
            let data = vec![7; length];
            let line = memory.share(&data[..]);
            assert_eq!(*line, *data);
            assert_eq!(line, memory.share(data));
            assert_eq!(memory.in_use() > 0, length > SMALL, "{length}");
            assert_eq!(line.length(), length);
        }
        assert_eq!(memory.in_use(), 0);
    }
}
