//! Which content codings a client takes (RFC 9110 section 12.5.3), of those that files are kept in. Nothing is
//! compressed here.

/// A coding of RFC 9110 section 8.4.1, RFC 7932 or RFC 8878.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Brotli,
    Zstandard,
    Gzip,
}

/// In the order in which they are preferred where the client does not care: the smallest first.
const CODINGS: [Coding; 3] = [Coding::Brotli, Coding::Zstandard, Coding::Gzip];

impl Coding {
    /// What it is called in `Content-Encoding`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstandard => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// How the name of a file that is coded so ends.
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstandard => ".zst",
            Self::Gzip => ".gz",
        }
    }

    /// RFC 9110 section 8.4.1: the names have no case, and that of gzip has two forms.
    fn is_called(self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(self.name().as_bytes())
            || self == Self::Gzip && name.eq_ignore_ascii_case(b"x-gzip")
    }
}

/// The codings to send rather than the file as it is, the best first, from all `Accept-Encoding` fields of a request.
/// The file as it is may be sent in any case: a client that says otherwise gets it too, rather than nothing (RFC 9110
/// section 12.4.1).
pub(super) fn preferred<'a>(fields: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = Coding> {
    // Weights in thousandths, of what is listed.
    let mut listed = [None; CODINGS.len()];
    let (mut identity, mut others) = (None, None);
    let elements = fields.flat_map(|field| field.split(|byte| *byte == b',')).filter_map(element);
    for (name, weight) in elements {
        let place = match name {
            b"*" => &mut others,
            _ if name.eq_ignore_ascii_case(b"identity") => &mut identity,
            _ => match CODINGS.iter().zip(&mut listed).find(|(coding, _)| coding.is_called(name)) {
                Some((_, place)) => place,
                None => continue,
            },
        };
        place.get_or_insert(weight);
    }
    let identity = identity.or(others).unwrap_or(0);
    let mut weighed = [(0, Coding::Brotli); CODINGS.len()];
    for ((slot, coding), weight) in weighed.iter_mut().zip(CODINGS).zip(listed) {
        *slot = (weight.or(others).unwrap_or(0), coding);
    }
    // It keeps the order of equals.
    weighed.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    weighed
        .into_iter()
        .filter(move |(weight, _)| *weight > 0 && *weight >= identity)
        .map(|(_, coding)| coding)
}

/// `name [ OWS ";" OWS "q=" weight ]` (RFC 9110 section 12.4.2). What is not that is as if it were not there.
fn element(element: &[u8]) -> Option<(&[u8], u16)> {
    let mut parts = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().filter(|name| !name.is_empty())?;
    let weight = match (parts.next(), parts.next()) {
        (None, _) => 1000,
        (Some([b'q' | b'Q', b'=', weight @ ..]), None) => thousandths(weight)?,
        _ => return None,
    };
    Some((name, weight))
}

/// At most three digits behind the point, and no more than 1.
fn thousandths(weight: &[u8]) -> Option<u16> {
    let (whole, fraction) = match weight {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', fraction @ ..] if fraction.len() <= 3 => (whole, fraction),
        _ => return None,
    };
    let mut weight = u16::from(whole - b'0') * 1000;
    for (digit, worth) in fraction.iter().zip([100, 10, 1]) {
        weight += u16::from(digit.is_ascii_digit().then(|| digit - b'0')?) * worth;
    }
    (weight <= 1000).then_some(weight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(fields: &[&str]) -> String {
        let codings = preferred(fields.iter().map(|field| field.as_bytes()));
        codings.map(Coding::name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_clients_accept() {
        let cases: [(&[&str], &str, &str); 32] = [
            (&[], "", "RFC 9110 section 12.5.3: anything goes, so the plain file"),
            (&[""], "", "RFC 9110 section 12.5.3: nothing but identity"),
            (&["gzip"], "gzip", "RFC 9110 section 12.5.3"),
            (&["compress, gzip"], "gzip", "RFC 9110 section 12.5.3"),
            (&["gzip, deflate, br, zstd"], "br zstd gzip", "ours, where the client has none"),
            (&["gzip", "br"], "br gzip", "RFC 9110 section 5.3"),
            (&["*"], "br zstd gzip", "RFC 9110 section 12.5.3"),
            (&["compress;q=0.5, gzip;q=1.0"], "gzip", "RFC 9110 section 12.5.3"),
            (&["gzip;q=1.0, identity; q=0.5, *;q=0"], "gzip", "RFC 9110 section 12.5.3"),
            (&["br;q=0.5, gzip;q=0.8"], "gzip br", "RFC 9110 section 12.4.2"),
            (&["br;q=0.001, gzip"], "gzip br", "RFC 9110 section 12.4.2"),
            (&["br;q=0, gzip"], "gzip", "RFC 9110 section 12.4.2: not acceptable"),
            (&["br;q=0.000, gzip"], "gzip", "RFC 9110 section 12.4.2"),
            (&["*;q=0"], "", "RFC 9110 section 12.5.3"),
            (&["gzip, *;q=0"], "gzip", "RFC 9110 section 12.5.3"),
            (&["gzip;q=0, *"], "br zstd", "RFC 9110 section 12.5.3: not listed"),
            (&["gzip;q=0.5, *;q=0.1"], "gzip br zstd", "RFC 9110 section 12.5.3"),
            (&["identity"], "", "RFC 9110 section 12.5.3"),
            (&["identity, gzip;q=0.5"], "", "RFC 9110 section 12.5.3: the plain file is preferred"),
            (&["identity;q=0.5, gzip;q=0.5"], "gzip", "equal, so the smaller"),
            (&["identity;q=0, gzip;q=0.1"], "gzip", "RFC 9110 section 12.5.3"),
            (&["gzip;q=0.5, *"], "br zstd", "RFC 9110 section 12.5.3: identity is among the others"),
            (&["GZIP;Q=0.5"], "gzip", "RFC 9110 section 8.4.1: without case"),
            (&["x-gzip"], "gzip", "RFC 9110 section 8.4.1.3"),
            (&[" gzip\t;\tq=1 ,, br ; q=1.000"], "br gzip", "RFC 9110 section 5.6.1.2"),
            (&["gzip;q=1.5"], "", "RFC 9110 section 12.4.2: no weight"),
            (&["gzip;q=1.001"], "", "RFC 9110 section 12.4.2: no weight"),
            (&["gzip;q=0.1234"], "", "RFC 9110 section 12.4.2: no weight"),
            (&["gzip;q=-1, br;q=, zstd;q=a"], "", "RFC 9110 section 12.4.2: no weight"),
            (&["gzip;q=0.5;x=y"], "", "RFC 9110 section 12.4.2: nothing else"),
            (&["gzip;q=1."], "gzip", "RFC 9110 section 12.4.2: no digits need follow"),
            (&["gzip2, xgzip"], "", "whole names"),
        ];
        for (fields, expected, source) in cases {
            assert_eq!(names(fields), expected, "{fields:?}: {source}");
        }
    }

    proptest! {
        #[test]
        fn any_field_is_read(field in proptest::collection::vec(any::<u8>(), 0..40), text in "[a-z*;=,.01q ]{0,40}") {
            for field in [field.as_slice(), text.as_bytes()] {
                prop_assert!(preferred([field].into_iter()).count() <= CODINGS.len());
            }
        }
    }
}
