//! Data for many connections: held once, and counted once.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// What a queue counts for its reference to shared data, instead of the data itself.
const REFERENCE: usize = 64;

/// Data made by [`Ctx::share`](crate::Ctx::share), to be sent to any number of connections. It counts once against
/// [`Limits::memory`](crate::Limits::memory), until the last copy of this handle is gone, and 64 bytes more for
/// each connection it waits on; against each one's [`Limits::output`](crate::Limits::output) it counts in full.
/// Cheap to clone.
#[derive(Clone)]
pub struct Shared {
    bytes: Bytes,
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
    pub(crate) fn share(&self, data: Vec<u8>) -> Shared {
        self.0.fetch_add(data.capacity(), Ordering::Relaxed);
        Shared { bytes: Bytes::from_owner(Counted { data, memory: Arc::clone(&self.0) }) }
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
        &self.bytes
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.bytes, f)
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
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
    #[doc(hidden)]
    fn into_bytes(self) -> Bytes;
}

impl Share for Bytes {}

impl Sealed for Bytes {
    fn length(&self) -> usize {
        self.len()
    }

    fn charge(&self) -> usize {
        self.len()
    }

    fn into_bytes(self) -> Bytes {
        self
    }
}

impl Share for Shared {}

impl Sealed for Shared {
    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn charge(&self) -> usize {
        REFERENCE.min(self.bytes.len())
    }

    fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_once_until_the_last_handle_is_gone() {
        let memory = SharedMemory::default();
        let line = memory.share(vec![7; 1000]);
        let queued = line.clone().into_bytes();
        assert_eq!(memory.in_use(), 1000);
        drop(line);
        assert_eq!(memory.in_use(), 1000);
        assert_eq!(queued.len(), 1000);
        drop(queued);
        assert_eq!(memory.in_use(), 0);
    }
}
