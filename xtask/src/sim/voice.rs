//! Streams of bytes that say who speaks: what a listener hears can be checked byte by byte, without a copy
//! of what was said.

/// The byte that is never part of a stream: it stands for urgent data, which may come or not.
pub(crate) const URGENT: u8 = 0xff;

/// Every other byte is a digit.
pub(crate) const BASE: u64 = 251;
/// The first bytes of a stream are the number of its speaker.
pub(crate) const NAME: u64 = 8;

/// The number of the client that is the n-th session; connections speak under their id, which is smaller.
pub(crate) const fn client(session: usize) -> u64 {
    1 << 62 | session as u64
}

/// The session of a client's number.
pub(crate) fn session(speaker: u64) -> Option<usize> {
    (speaker >> 62 == 1).then(|| usize::try_from(speaker & !(1 << 62)).unwrap_or(usize::MAX))
}

#[allow(clippy::cast_possible_truncation, reason = "less than the base")]
pub(crate) fn byte(speaker: u64, offset: u64) -> u8 {
    if offset < NAME {
        return (speaker / BASE.pow(offset as u32) % BASE) as u8;
    }
    let start = speaker.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    // A shift by any distance shows within a few bytes.
    ((start + offset + (offset >> 8) * 5 + (offset >> 16) * 11) % BASE) as u8
}

/// `count` bytes of the stream of `speaker` from `offset` on.
pub(crate) fn speak(speaker: u64, offset: u64, count: usize) -> Vec<u8> {
    (offset..offset + count as u64).map(|at| byte(speaker, at)).collect()
}

/// Hears one stream, from its beginning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ear {
    name: u64,
    /// Bytes heard, urgent ones left out.
    pub(crate) heard: u64,
}

impl Ear {
    /// Who speaks, once the name is whole.
    pub(crate) fn speaker(&self) -> Option<u64> {
        (self.heard >= NAME).then_some(self.name)
    }

    /// # Errors
    /// The first byte that is not the next one of the stream.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Result<(), String> {
        for &found in bytes.iter().filter(|byte| **byte != URGENT) {
            if let Some(speaker) = self.speaker() {
                let expected = byte(speaker, self.heard);
                if found != expected {
                    return Err(format!(
                        "byte {} of the stream of {speaker:#x} is {found}, not {expected}",
                        self.heard
                    ));
                }
            } else {
                let power = u32::try_from(self.heard).unwrap_or(0);
                self.name = self.name.wrapping_add(u64::from(found).wrapping_mul(BASE.pow(power)));
            }
            self.heard += 1;
        }
        Ok(())
    }
}
