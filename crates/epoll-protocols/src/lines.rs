//! Lines out of a byte stream, with a bound. No I/O and no copies: it only says where lines end.

use std::fmt;

use memchr::memchr;

/// Finds newline-terminated lines in bytes that come in pieces.
///
/// One for each connection. It remembers how far it has looked, so that a line that comes byte by byte costs no
/// more to find than one that comes whole. Any byte but newline may be part of a line, a carriage
/// return too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineSplitter {
    /// How many of the first bytes not yet taken are known to hold no newline.
    searched: usize,
}

/// A line taken off the front of some input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'input> {
    /// The line without its newline; it may be empty.
    pub content: &'input [u8],
    /// What lies behind the newline.
    pub rest: &'input [u8],
}

/// A line is longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTooLong {
    /// The limit, in bytes without the newline.
    pub limit: usize,
}

impl fmt::Display for LineTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line longer than {} bytes", self.limit)
    }
}

impl std::error::Error for LineTooLong {}

impl LineSplitter {
    /// Takes the first line off `input`, which must begin where the last line taken ended. `None` if it has not
    /// all come; then call again with the same bytes and more behind them.
    ///
    /// # Errors
    /// The line is longer than `limit` bytes, complete or not. There is no way on from there: close the
    /// connection.
    pub fn split<'input>(
        &mut self,
        input: &'input [u8],
        limit: usize,
    ) -> Result<Option<Line<'input>>, LineTooLong> {
        let unsearched = input.get(self.searched..).unwrap_or_default();
        let Some(newline) = memchr(b'\n', unsearched).map(|found| self.searched + found) else {
            self.searched = input.len();
            return if input.len() > limit { Err(LineTooLong { limit }) } else { Ok(None) };
        };
        self.searched = 0;
        if newline > limit {
            return Err(LineTooLong { limit });
        }
        let (content, rest) = input.split_at(newline);
        Ok(Some(Line { content, rest: rest.get(1..).unwrap_or_default() }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `pieces` as a loop would, keeping the unconsumed rest; returns the lines and how it ended.
    fn run(pieces: &[&[u8]], limit: usize) -> (Vec<Vec<u8>>, Result<Vec<u8>, LineTooLong>) {
        let mut splitter = LineSplitter::default();
        let mut kept = Vec::new();
        let mut lines = Vec::new();
        for piece in pieces {
            kept.extend_from_slice(piece);
            let mut rest = kept.as_slice();
            loop {
                match splitter.split(rest, limit) {
                    Ok(Some(line)) => {
                        lines.push(line.content.to_vec());
                        rest = line.rest;
                    }
                    Ok(None) => break,
                    Err(error) => return (lines, Err(error)),
                }
            }
            kept = rest.to_vec();
        }
        (lines, Ok(kept))
    }

    #[test]
    fn at_every_split_point_the_lines_are_the_same() {
        let cases: [&[u8]; 7] =
            [b"", b"\n", b"a\n", b"\n\n", b"one\ntwo\r\nthree", b"\0\xff\r\n\n x \n", b"1234\n12345\n"];
        for input in cases {
            let whole = run(&[input], 4096);
            let expected: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
            let (last, lines) = expected.split_last().unwrap();
            assert_eq!(whole.0, lines, "{input:?}");
            assert_eq!(whole.1, Ok(last.to_vec()), "{input:?}");
            for at in 0..=input.len() {
                let (front, back) = input.split_at(at);
                assert_eq!(run(&[front, back], 4096), whole, "{input:?} split at {at}");
            }
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            assert_eq!(run(&bytes, 4096), whole, "{input:?} byte by byte");
        }
    }

    #[test]
    fn the_limit_is_exact_whether_the_newline_has_come_or_not() {
        for at in 0..=6 {
            let split = |input: &'static [u8]| {
                let (front, back) = input.split_at(at.min(input.len()));
                run(&[front, back], 4)
            };
            assert_eq!(split(b"1234\n"), (vec![b"1234".to_vec()], Ok(vec![])));
            assert_eq!(split(b"1234"), (vec![], Ok(b"1234".to_vec())));
            assert_eq!(split(b"12345\n"), (vec![], Err(LineTooLong { limit: 4 })));
            assert_eq!(split(b"12345"), (vec![], Err(LineTooLong { limit: 4 })));
            assert_eq!(split(b"1\n23456").0, [b"1"]);
        }
        assert_eq!(run(&[b"\n"], 0), (vec![vec![]], Ok(vec![])));
    }

    proptest! {
        #[test]
        fn any_splits_give_what_the_whole_gives(
            input in prop::collection::vec(prop_oneof![2 => Just(b'\n'), 5 => any::<u8>()], 0..200),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            limit in 0..40usize,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            prop_assert_eq!(run(&pieces, limit), run(&[&input], limit));
        }
    }
}
