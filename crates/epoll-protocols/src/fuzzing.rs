//! What fuzzers call, and `cargo test` with random input. Compiled for nothing else. The targets are in `xtask/fuzz`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a panic is how a fuzzer is told"
)]

use crate::LineSplitter;
pub use crate::http1::fuzzing::{chunked_body, http_connection, http_head};

/// Lines out of pieces are those of the whole, up to the first that is too long.
pub fn lines(data: &[u8]) {
    let [limit, rest @ ..] = data else { return };
    let limit = usize::from(*limit);
    let (pieces, whole) = cut(rest);
    let mut expected = Vec::new();
    let mut unfinished = whole;
    let mut too_long = false;
    while let Some(end) = unfinished.iter().position(|byte| *byte == b'\n') {
        too_long = end > limit;
        if too_long {
            break;
        }
        expected.push(&unfinished[..end]);
        unfinished = &unfinished[end + 1..];
    }
    too_long |= unfinished.len() > limit;

    let mut splitter = LineSplitter::default();
    let mut kept = Vec::new();
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let taken = match splitter.split(&kept, limit) {
                Ok(None) => break,
                Ok(Some(line)) => {
                    assert_eq!(line.content.len() + 1 + line.rest.len(), kept.len());
                    lines.push(line.content.to_vec());
                    line.content.len() + 1
                }
                Err(error) => {
                    assert_eq!((error.limit, too_long), (limit, true));
                    assert_eq!(lines, expected);
                    return;
                }
            };
            kept.drain(..taken);
        }
        assert!(kept.len() <= limit, "what is kept is within the limit");
    }
    assert!(!too_long);
    assert_eq!((lines, kept.as_slice()), (expected.into_iter().map(<[u8]>::to_vec).collect(), unfinished));
}

/// Takes from the front of `data` where to cut the rest of it: the pieces, and all of it.
pub(crate) fn cut(data: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let [count, rest @ ..] = data else { return (Vec::new(), data) };
    let (places, input) = rest.split_at_checked(2 * usize::from(count % 16)).unwrap_or_default();
    let place = |pair: &[u8]| usize::from(u16::from_le_bytes([pair[0], pair[1]])) % (input.len() + 1);
    let mut cuts: Vec<usize> = places.chunks_exact(2).map(place).chain([0, input.len()]).collect();
    cuts.sort_unstable();
    (cuts.windows(2).map(|ends| &input[ends[0]..ends[1]]).collect(), input)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A target and an input that a fuzzer has found something with.
    type Found = (fn(&[u8]), &'static [u8]);

    #[test]
    fn what_was_found_stays_found() {
        let found: [Found; 0] = [];
        for (target, input) in found {
            target(input);
        }
    }

    /// A stretch of input: mostly what clients send, with some of what attackers do.
    fn stretch() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(vec![
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "HEAD /h HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /shared HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "POST /l HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n\r\n1234567",
            "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
            "2\r\nab\r\n",
            "1;x\r\na\r\n",
            "0\r\n\r\n",
            "0\r\nT: v\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\nHost: h\n\n",
            "\r\n",
        ]);
        prop_oneof![
            8 => known.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ]
    }

    /// A head whose lines end, and are folded, as they should be and in every other way.
    fn lines_of_a_head() -> impl Strategy<Value = Vec<u8>> {
        let end = || {
            prop_oneof![
                12 => Just("\r\n"),
                1 => prop::sample::select(vec!["\n", "\r", "\r\r\n", "\n\r\n", "\r\n\n", "\r\n ", "\n\t", " \r\n", "\0\r\n"]),
            ]
        };
        let field = prop::sample::select(vec![
            "A: b", "A:", "A: ", "Host: h", "A:b\t", "A : b", " A: b", ":", "", "A:\x0b",
        ]);
        let first =
            prop::sample::select(vec!["GET / HTTP/1.1", "GET / HTTP/1.0", "GET  / HTTP/1.1", "GET /"]);
        let fields = prop::collection::vec((field, end()), 0..5);
        (first, end(), fields, end()).prop_map(|(first, end, fields, last)| {
            let fields: String = fields.into_iter().flat_map(|(field, end)| [field, end]).collect();
            format!("{first}{end}{fields}{last}").into_bytes()
        })
    }

    /// The same of a body in chunks.
    fn chunk() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(vec![
            "1\r\nx\r\n",
            "2;a=b\r\n\r\n\r\n",
            "e\r\n0123456789abcd\r\n",
            "0\r\n\r\n",
            "0\r\nT: v\r\n",
            "T: v\r\n",
            "\r\n",
        ]);
        prop_oneof![
            8 => known.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ]
    }

    /// Any number of `parts`, one byte of them changed now and then.
    fn spoilt(parts: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        let flip = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
        (prop::collection::vec(parts, 0..8), flip).prop_map(|(parts, flip)| {
            let mut input = parts.concat();
            if let (Some((index, byte)), false) = (flip, input.is_empty()) {
                let index = index.index(input.len());
                input[index] = byte;
            }
            input
        })
    }

    /// Where to cut, as [`cut`] reads it.
    fn places() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<[u8; 2]>(), 0..16)
            .prop_map(|places| [vec![places.len().to_le_bytes()[0]], places.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn random_requests(first in any::<u8>(), places in places(), input in spoilt(stretch())) {
            http_connection(&[&[first], places.as_slice(), &input].concat());
            http_head(&[&[first], input.as_slice()].concat());
        }

        #[test]
        fn random_heads(first in any::<u8>(), head in lines_of_a_head()) {
            http_head(&[&[first], head.as_slice()].concat());
        }

        #[test]
        fn random_chunks(places in places(), input in spoilt(chunk())) {
            chunked_body(&[places, input].concat());
        }

        #[test]
        fn random_lines(data in prop::collection::vec(prop_oneof![2 => Just(b'\n'), 5 => any::<u8>()], 0..200)) {
            lines(&data);
        }
    }
}
