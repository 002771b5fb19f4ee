//! Data for many connections: held once, and counted once.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use triomphe::HeaderSlice;

use crate::buffer::SMALL;

/// What a queue counts for its reference to shared data, instead of the data itself.
const REFERENCE: usize = 64;

/// Data made by [`Ctx::share`](crate::Ctx::share), to be sent to any number of connections. It counts once against
/// [`Limits::memory`](crate::Limits::memory), until the last copy of this handle is gone, and 64 bytes more for
/// each connection it waits on; against each one's [`Limits::output`](crate::Limits::output) it counts in full.
/// Cheap to clone. Up to 64 bytes are not shared but copied: they lie in the handle itself, take no memory of their
/// own, and are copied to each queue. More take one allocation, however many receive them: that of the copy, or, of a
/// `Vec`, which is not copied, that of the count of who needs it.
#[derive(Clone)]
pub struct Shared(Repr);

#[derive(Clone)]
enum Repr {
    Copied { length: u8, bytes: [u8; SMALL] },
    Held(Held),
}

/// A reference to data that others may hold too.
#[derive(Clone)]
pub enum Held {
    /// Not made here, or a `Vec` or an `Arc` with its [`Counted`].
    Given(Bytes),
    /// A copy, behind what it counts for.
    Copy(triomphe::Arc<HeaderSlice<Charge, [u8]>>),
}

/// The memory of all shared data that is alive.
#[derive(Debug, Default)]
pub(crate) struct SharedMemory(Arc<AtomicUsize>);

/// What one piece of it counts for: given back when nobody needs it any more, in whichever thread that is.
#[derive(Debug)]
pub struct Charge {
    bytes: usize,
    memory: Arc<AtomicUsize>,
}

struct Counted<D> {
    data: D,
    _charge: Charge,
}

impl SharedMemory {
    pub(crate) fn share(&self, data: Cow<'_, [u8]>) -> Shared {
        if let Some(copied) = copy_if_short(&data) {
            return copied;
        }
        Shared(Repr::Held(match data {
            Cow::Borrowed(slice) => {
                Held::Copy(triomphe::Arc::from_header_and_slice(self.charge(slice.len()), slice))
            }
            Cow::Owned(data) => {
                let _charge = self.charge(data.capacity());
                Held::Given(Bytes::from_owner(Counted { data, _charge }))
            }
        }))
    }

    /// `data` counts here until no handle made here is left, wherever else it is held.
    pub(crate) fn share_arc(&self, data: Arc<[u8]>) -> Shared {
        if let Some(copied) = copy_if_short(&data) {
            return copied;
        }
        let _charge = self.charge(data.len());
        Shared(Repr::Held(Held::Given(Bytes::from_owner(Counted { data, _charge }))))
    }

    fn charge(&self, bytes: usize) -> Charge {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Charge { bytes, memory: Arc::clone(&self.0) }
    }

    pub(crate) fn in_use(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn copy_if_short(data: &[u8]) -> Option<Shared> {
    let mut bytes = [0; SMALL];
    bytes.get_mut(..data.len())?.copy_from_slice(data);
    Some(Shared(Repr::Copied { length: u8::try_from(data.len()).ok()?, bytes }))
}

impl<D: AsRef<[u8]>> AsRef<[u8]> for Counted<D> {
    fn as_ref(&self) -> &[u8] {
        self.data.as_ref()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Given(bytes) => bytes,
            Self::Copy(copy) => &copy.slice,
        }
    }
}

impl From<Bytes> for Held {
    fn from(bytes: Bytes) -> Self {
        Self::Given(bytes)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Copied { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Repr::Held(held) => held,
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
    fn into_held(self) -> Result<Held, Self>;
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

    fn into_held(self) -> Result<Held, Self> {
        Ok(self.into())
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

    fn into_held(self) -> Result<Held, Self> {
        match self.0 {
            Repr::Copied { .. } => Err(self),
            Repr::Held(held) => Ok(held),
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
        let data = [7; 1000];
        for line in [memory.share(Cow::Owned(data.to_vec())), memory.share(Cow::Borrowed(&data))] {
            let queued = line.clone().into_held().unwrap();
            let others = memory.in_use() - 1000;
            drop(line);
            assert_eq!(memory.in_use(), others + 1000);
            assert_eq!(*queued, data);
            // In whichever thread.
            std::thread::spawn(move || drop(queued)).join().unwrap();
            assert_eq!(memory.in_use(), others);
        }
        assert_eq!(memory.in_use(), 0);
    }

    #[test]
    fn a_vec_is_not_copied_and_a_reference_takes_no_more_than_one_to_bytes() {
        let data = vec![7; 1000];
        let place = data.as_ptr();
        assert_eq!(SharedMemory::default().share(Cow::Owned(data)).as_ptr(), place);
        assert_eq!(size_of::<Held>(), size_of::<Bytes>());
    }

    #[test]
    fn what_is_held_elsewhere_counts_for_those_handles_that_were_made_here() {
        let (memory, other) = (SharedMemory::default(), SharedMemory::default());
        let data: Arc<[u8]> = [7; 1000].into();
        let (here, there) = (memory.share_arc(Arc::clone(&data)), other.share_arc(Arc::clone(&data)));
        assert_eq!([here.as_ptr(), there.as_ptr()], [data.as_ptr(); 2], "it is one buffer");
        assert_eq!((memory.in_use(), other.in_use()), (1000, 1000));
        let queued = here.clone().into_held().unwrap();
        drop(here);
        assert_eq!(memory.in_use(), 1000);
        drop(queued);
        assert_eq!((memory.in_use(), other.in_use()), (0, 1000));
        let short: Arc<[u8]> = [7; SMALL].into();
        assert_eq!(*memory.share_arc(Arc::clone(&short)), *short);
        assert_eq!((memory.in_use(), Arc::strong_count(&short)), (0, 1));
    }

    #[test]
    fn what_is_short_is_copied_and_takes_no_memory() {
        let memory = SharedMemory::default();
        for length in [0, 1, SMALL - 1, SMALL, SMALL + 1, 300] {
            let data = vec![7; length];
            let line = memory.share(Cow::Borrowed(&data));
            assert_eq!(*line, *data);
            assert_eq!(line, memory.share(Cow::Owned(data)));
            assert_eq!(memory.in_use() > 0, length > SMALL, "{length}");
            assert_eq!(line.length(), length);
        }
        assert_eq!(memory.in_use(), 0);
    }
}
