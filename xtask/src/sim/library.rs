//! One file in which each speaker's stream can be found, for handlers that send parts of files: what is heard of them is
//! checked as if it had been spoken.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use epoll_reactor::FileSlice;

use super::voice::{BASE, NAME, byte};

/// Streams repeat themselves, but for a constant, at this distance.
const BLOCK: u64 = 1 << 16;
/// The longest stream that is there whole.
const LONGEST: u64 = 1 << 17;

/// The file, and one with nothing in it.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    streams: Arc<File>,
    empty: Arc<File>,
}

impl Library {
    /// The same for the whole process: it takes 16 MiB.
    ///
    /// # Errors
    /// There is no room for temporary files.
    pub(crate) fn open() -> Result<Self, String> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY.get_or_init(|| Self::write().map_err(|error| error.to_string())).clone()
    }

    fn write() -> io::Result<Self> {
        let mut streams = tempfile::tempfile()?;
        let length = BLOCK * BASE + LONGEST;
        let mut chunk = Vec::new();
        for from in (0..length).step_by(1 << 20) {
            chunk.clear();
            // Speaker 0 begins with 0; in the first bytes there would be its name.
            chunk.extend((from..length.min(from + (1 << 20))).map(|at| byte(0, at + BLOCK * BASE)));
            streams.write_all(&chunk)?;
        }
        Ok(Self { streams: Arc::new(streams), empty: Arc::new(tempfile::tempfile()?) })
    }

    /// What `speaker` says from `offset` on; `None` where that is its name, or beyond what is there.
    pub(crate) fn find(&self, speaker: u64, offset: u64, count: usize) -> Option<FileSlice> {
        let length = count as u64;
        if offset < NAME || offset + length > LONGEST {
            return None;
        }
        // With each block on, all bytes grow by the same.
        let wanted = byte(speaker, offset);
        let block = (0..BASE).find(|block| byte(0, offset + (BASE + block) * BLOCK) == wanted)?;
        Some(FileSlice { file: Arc::clone(&self.streams), offset: offset + block * BLOCK, length })
    }

    /// A promise of `count` bytes that is not kept.
    pub(crate) fn promise(&self, count: usize) -> FileSlice {
        FileSlice { file: Arc::clone(&self.empty), offset: 0, length: count as u64 }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::voice::speak;
    use super::*;

    #[test]
    fn every_speaker_is_there_from_any_offset_on() {
        let library = Library::open().unwrap();
        for speaker in (0..300).map(|number| number << 32 | number) {
            for (offset, count) in [(8, 1), (8, 3_000), (250, 70_000), (65_535, 2), (131_000, 72)] {
                let slice = library.find(speaker, offset, count).unwrap();
                let mut bytes = vec![0; count];
                slice.file.read_exact_at(&mut bytes, slice.offset).unwrap();
                assert!(bytes == speak(speaker, offset, count), "{speaker:#x} from {offset}");
            }
        }
        assert!(library.find(1, 7, 1).is_none() && library.find(1, LONGEST, 1).is_none());
    }
}
