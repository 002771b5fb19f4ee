//! Random requests, good and bad, cut at random places, against the same given whole.

use proptest::prelude::*;

use super::*;

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

proptest! {
    #[test]
    fn any_input_ends_the_same_however_it_is_cut(
        stretches in prop::collection::vec(stretch(), 0..8),
        flip in prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>())),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        output_batch in prop::sample::select(vec![1, 100, 10_000]),
    ) {
        let mut input = stretches.concat();
        if let (Some((index, byte)), false) = (flip, input.is_empty()) {
            let index = index.index(input.len());
            input[index] = byte;
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let limits = HttpLimits { output_batch, ..small_limits() };
        let (mut whole, mut pieces) = (Client::new(small_limits()), Client::new(limits));
        whole.receive(&input);
        for cut in cuts.windows(2) {
            pieces.receive(&input[cut[0]..cut[1]]);
        }
        prop_assert_eq!(whole.connection.stage(), pieces.connection.stage());
        whole.end();
        pieces.end();
        prop_assert_eq!(whole.outcome(), pieces.outcome());
    }
}
