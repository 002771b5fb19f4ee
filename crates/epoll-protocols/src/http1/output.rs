//! Where answers go. Not a socket: an implementation records bytes, it does not wait for anybody.

use bytes::Bytes;

/// Takes the bytes of answers, in order.
///
/// A response is handed over in at most two calls: its head by [`copy`](Self::copy), its body by either.
pub trait Output {
    /// Appends a copy of `data`.
    fn copy(&mut self, data: &[u8]);

    /// Appends `data`, without copying it if the implementation can.
    fn share(&mut self, data: Bytes);

    /// How many bytes wait to be sent, to be held against [`HttpLimits::output_batch`](super::HttpLimits::output_batch).
    fn waiting(&self) -> usize;
}

impl Output for Vec<u8> {
    fn copy(&mut self, data: &[u8]) {
        self.extend_from_slice(data);
    }

    fn share(&mut self, data: Bytes) {
        self.extend_from_slice(&data);
    }

    fn waiting(&self) -> usize {
        self.len()
    }
}
