//! Identity: what the kernel hands back with each event. Never a descriptor's number, which is used again.

use std::fmt;
use std::num::NonZeroU64;

/// Set in the index of everything that is not a connection, so that one look tells the two apart.
const REGISTRATION: u32 = 1 << 31;

/// Index (low 32 bits) and generation (high 32 bits) of a slot: the u64 that epoll carries.
///
/// The generation rises each time a slot is used again, so an event or an id from before never reaches the
/// slot's next owner. It wraps after 2^32 uses of one slot, past 0: no token is 0, and an `Option` of one costs nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(NonZeroU64);

impl Token {
    pub(crate) const fn new(index: u32, generation: u32) -> Self {
        Self::from_u64((generation as u64) << 32 | index as u64)
    }

    /// 0, which names nothing, becomes another that names nothing.
    pub(crate) const fn from_u64(value: u64) -> Self {
        match NonZeroU64::new(value) {
            Some(value) => Self(value),
            None => Self(NonZeroU64::MAX),
        }
    }

    pub(crate) const fn as_u64(self) -> u64 {
        self.0.get()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low half is the index")]
    pub(crate) const fn index(self) -> u32 {
        self.as_u64() as u32
    }

    pub(crate) const fn generation(self) -> u32 {
        (self.as_u64() >> 32) as u32
    }

    /// The same slot in the table of listeners and other registrations.
    pub(crate) const fn into_registration(self) -> Self {
        Self::from_u64(self.as_u64() | REGISTRATION as u64)
    }

    /// The slot in the table of registrations, if that is what this names.
    pub(crate) const fn registration(self) -> Option<Self> {
        if self.index() & REGISTRATION == 0 {
            None
        } else {
            Some(Self::new(self.index() & !REGISTRATION, self.generation()))
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index() & !REGISTRATION, self.generation())
    }
}

/// Names one connection for as long as the reactor lives. It is never given to another: an id that outlives
/// its connection answers [`Gone`](crate::SendOutcome::Gone) and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub(crate) Token);

impl ConnId {
    /// A small number, unique among the connections open at one time, and used again later: for a
    /// table of one's own beside the reactor's, as [`ConnMap`](crate::ConnMap) is.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0.index() as usize
    }

    /// The whole identity as a number, for logs and for interfaces that know only numbers.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0.as_u64()
    }

    /// The id that [`as_u64`](Self::as_u64) gave. Any other number names no connection.
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        Self(Token::from_u64(value))
    }
}

/// Index and generation, as `7.3`.
impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Index and generation, as `7.3`.
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Names one listener of a reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(pub(crate) Token);

/// Names one descriptor that the loop watches for its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(pub(crate) Token);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_costs_nothing_and_zero_names_nothing() {
        assert_eq!(size_of::<Option<ConnId>>(), 8);
        assert_eq!(crate::slab::Slab::<()>::new().get(Token::from_u64(0)), None);
        assert!(Token::from_u64(0).index() & REGISTRATION != 0, "no connection has such an index");
    }

    #[test]
    fn packs_and_unpacks() {
        for (index, generation) in [(0, 1), (7, 3), (REGISTRATION - 1, u32::MAX)] {
            let token = Token::new(index, generation);
            assert_eq!((token.index(), token.generation()), (index, generation));
            assert_eq!(Token::from_u64(token.as_u64()), token);
            assert_eq!(token.registration(), None);
            assert_eq!(token.into_registration().registration(), Some(token));
        }
    }
}
