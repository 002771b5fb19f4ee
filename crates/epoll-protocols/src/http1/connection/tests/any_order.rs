//! Any requests, any behaviour of the service, cut anywhere, with any room for output: what is sent, what becomes of the
//! connection and what the service is told are the same as at once.

use proptest::prelude::*;

use super::driver::{Driver, Fate, limits};
use super::*;

/// How a body comes.
#[derive(Clone, Debug)]
enum Sent {
    Nothing,
    Length(String),
    Chunks(Vec<String>),
    /// Chunks, and then something that is none.
    Broken(Vec<String>),
}

#[derive(Clone, Debug)]
struct Asked {
    method: &'static str,
    words: String,
    fields: &'static str,
    version: &'static str,
    body: Sent,
}

impl Asked {
    fn bytes(&self) -> String {
        let Self { method, words, fields, version, body } = self;
        let head = format!("{method} /{words} HTTP/{version}\r\nHost: h\r\n{fields}");
        let chunks = |chunks: &[String]| -> String {
            let coded = chunks.iter().filter(|chunk| !chunk.is_empty());
            let coded: String = coded.map(|chunk| format!("{:x};a\r\n{chunk}\r\n", chunk.len())).collect();
            format!("{head}Transfer-Encoding: chunked\r\n\r\n{coded}")
        };
        match body {
            Sent::Nothing => format!("{head}\r\n"),
            Sent::Length(body) => format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()),
            Sent::Chunks(parts) => format!("{}0\r\nT: v\r\n\r\n", chunks(parts)),
            Sent::Broken(parts) => format!("{}x\r\n", chunks(parts)),
        }
    }
}

fn body() -> impl Strategy<Value = Sent> {
    let chunks = || prop::collection::vec("[a-z]{0,9}", 0..4);
    prop_oneof![
        6 => Just(Sent::Nothing),
        4 => "[a-z]{0,32}".prop_map(Sent::Length),
        4 => chunks().prop_map(Sent::Chunks),
        1 => chunks().prop_map(Sent::Broken),
    ]
}

fn words() -> impl Strategy<Value = String> {
    let input = prop::sample::select(vec![
        "",
        "in",
        "in,pause",
        "in,full=5",
        "in,pause,full=8",
        "in,most=9",
        "no=403",
    ]);
    let when = prop::sample::select(vec!["", "", "later", "job", "bad"]);
    let output = prop::sample::select(vec![
        "",
        "",
        "",
        "flow=50:7",
        "flow=50:7,dry",
        "flow=9:1,cut=5",
        "sized=50:7",
        "sized=20:7,dry",
        "sized=9:2:8",
        "sized=9:2:10",
        "parts",
        "file=100",
        "file=2000",
    ]);
    let rest = prop::sample::select(vec!["", "", "", "status=404", "status=204", "status=304", "last"]);
    (input, when, output, rest)
        .prop_map(|(input, when, output, rest)| format!("{input},{when},{output},{rest}"))
}

fn asked() -> impl Strategy<Value = Asked> {
    let method = prop::sample::select(vec!["GET", "POST", "HEAD"]);
    let fields = prop::sample::select(vec![
        "",
        "",
        "",
        "",
        "Connection: keep-alive\r\n",
        "Connection: keep-alive\r\n",
        "Expect: 100-continue\r\n",
        "Connection: close\r\n",
        "Bad : field\r\n",
    ]);
    let version = prop::sample::select(vec!["1.1", "1.1", "1.1", "1.0", "1.3"]);
    (method, words(), fields, version, body()).prop_map(|(method, words, fields, version, body)| Asked {
        method,
        words,
        fields,
        version,
        body,
    })
}

/// What the test compares: what was sent, how it ended, what the service was told, what is left.
fn played(pieces: &[&[u8]], output_batch: usize, cold: bool, prompt: bool) -> Driver {
    let limits = HttpLimits { output_batch, ..limits() };
    let mut driver = if prompt { Driver::new(limits) } else { Driver::slow(limits) };
    driver.sink.cold = cold;
    for piece in pieces {
        driver.receive(piece);
        // Not at once, but before more comes every other time.
        while driver.waits.is_some() && piece.len() % 2 == 0 {
            driver.happens();
        }
    }
    while driver.waits.is_some() {
        driver.happens();
    }
    driver
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_script_comes_to_the_same_however_it_is_cut(
        script in prop::collection::vec(asked(), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        output_batch in prop::sample::select(vec![1, 2, 17, 100, 1000, 100_000]),
        (cold, prompt, ends) in any::<(bool, bool, bool)>(),
    ) {
        let input: String = script.iter().map(Asked::bytes).collect();
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        places.extend([0, input.len()]);
        places.sort_unstable();
        let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &input.as_bytes()[pair[0]..pair[1]]).collect();
        let mut at_once = played(&[input.as_bytes()], usize::MAX, false, true);
        let mut piecemeal = played(&pieces, output_batch, cold, prompt);
        prop_assert_eq!(at_once.connection.stage(), piecemeal.connection.stage());
        prop_assert_eq!(&at_once.tail, &piecemeal.tail);
        for driver in [&mut at_once, &mut piecemeal] {
            if ends {
                driver.end();
            } else if driver.fate.is_none() {
                driver.vanish();
            }
            while driver.waits.is_some() {
                driver.happens();
            }
        }
        prop_assert_eq!(at_once.sent(), piecemeal.sent());
        prop_assert_eq!(at_once.fate, piecemeal.fate);
        prop_assert_eq!(at_once.told(), piecemeal.told());

        // Strict clients understand it.
        let heads: Vec<bool> = script.iter().map(|asked| asked.method == "HEAD").collect();
        let refused = matches!(piecemeal.fate, Some(Fate::Closed(Some(_))));
        let answered = usize::try_from(piecemeal.connection.answered()).unwrap();
        if piecemeal.fate == Some(Fate::Aborted) {
            prop_assert!(piecemeal.answers(&heads).is_err());
        } else if refused {
            // What refuses has no body, and is not an answer to HEAD.
            let heads: Vec<bool> = heads.into_iter().take(answered).chain([false]).collect();
            prop_assert_eq!(piecemeal.answers(&heads).unwrap().len(), answered + 1);
        } else {
            prop_assert_eq!(piecemeal.answers(&heads).unwrap().len(), answered);
        }
    }
}
