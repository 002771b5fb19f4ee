//! Sets of bytes as tables, so that a check costs one load a byte. Which bytes a rule allows is said by the RFC at each
//! set.

/// Some of the 256 bytes.
pub(super) struct ByteSet([bool; 256]);

/// `tchar`, RFC 9110 section 5.6.2: what methods and field names are made of.
pub(super) static TOKEN: ByteSet = ByteSet::alphanumeric_and(b"!#$%&'*+-.^_`|~");

/// What a `reg-name` is made of, RFC 3986 section 3.2.2: unreserved, sub-delims, and the sign of percent-encoding.
pub(super) static REG_NAME: ByteSet = ByteSet::alphanumeric_and(b"-._~%!$&'()*+,;=");

impl ByteSet {
    #[expect(clippy::indexing_slicing, reason = "done by the compiler, which would say so")]
    const fn alphanumeric_and(marks: &[u8]) -> Self {
        let mut set = [false; 256];
        let mut byte = 0_u8;
        while byte < 128 {
            set[byte as usize] = byte.is_ascii_alphanumeric();
            byte += 1;
        }
        let mut position = 0;
        while position < marks.len() {
            set[marks[position] as usize] = true;
            position += 1;
        }
        Self(set)
    }

    pub(super) fn contains(&self, byte: u8) -> bool {
        self.0.get(usize::from(byte)).copied().unwrap_or(false)
    }

    #[expect(clippy::indexing_slicing, reason = "256 elements, and an index of eight bits")]
    pub(super) const fn contains_all(&self, mut bytes: &[u8]) -> bool {
        while let [byte, rest @ ..] = bytes {
            if !self.0[*byte as usize] {
                return false;
            }
            bytes = rest;
        }
        true
    }
}

/// Whether `value` can stand behind a field's name (RFC 9110 section 5.5): no control byte but tab.
pub(super) const fn is_field_value(mut value: &[u8]) -> bool {
    // Without branches, so that many bytes are looked at together.
    let mut bad = false;
    while let [byte, rest @ ..] = value {
        bad |= ((*byte < b' ') & (*byte != b'\t')) | (*byte == 0x7f);
        value = rest;
    }
    !bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_have_what_the_rules_list() {
        for byte in 0..=u8::MAX {
            let character = char::from(byte);
            let letter = character.is_ascii_alphanumeric();
            assert_eq!(TOKEN.contains(byte), letter || "!#$%&'*+-.^_`|~".contains(character), "{byte}");
            assert_eq!(REG_NAME.contains(byte), letter || "-._~%!$&'()*+,;=".contains(character), "{byte}");
            assert_eq!(is_field_value(&[b'a', byte]), byte == b'\t' || !byte.is_ascii_control(), "{byte}");
        }
        assert!(TOKEN.contains_all(b"M-SEARCH") && !TOKEN.contains_all(b"M SEARCH"));
    }
}
