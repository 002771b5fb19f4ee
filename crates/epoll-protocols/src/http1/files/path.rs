//! The path of a request as a name beneath a directory. Not the file: nothing is looked up here.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// From the root, in whatever bytes: neither absolute nor with an empty part, `.`, `..` or another part that
    /// begins with a dot. Empty for the root itself.
    pub(super) path: PathBuf,
    /// There was a slash behind it, so that it can only be a directory.
    pub(super) directory: bool,
}

/// Why a path names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathError {
    /// It is no path: a `%` without two hexadecimal digits (RFC 3986 section 2.1).
    Escape,
    /// It is one, but nothing that is served can have this name.
    Nothing,
}

/// Reads a path as it was sent, decoding it once: a second time would make `%252e` a dot, which its sender did not
/// say (RFC 3986 section 2.4).
///
/// A decoded slash is a byte of a name, not a divider (section 2.2), and no file has one in its name, nor a NUL. Both
/// are thus well-formed names of nothing. So is an empty part: to take `/a//b` for `/a/b` would give every file many
/// names, and `//host` is how redirects are abused. A part that begins with a dot is hidden; that covers `.` and `..`,
/// which clients take out before they ask (section 5.2.4).
pub(super) fn decode(path: &str) -> Result<Name, PathError> {
    let mut escapes = path.split('%').skip(1);
    if !escapes
        .all(|rest| matches!(rest.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
    {
        return Err(PathError::Escape);
    }
    let rest = path.strip_prefix('/').ok_or(PathError::Nothing)?;
    if rest.is_empty() {
        return Ok(Name { path: PathBuf::new(), directory: true });
    }
    let (parts, directory) = rest.strip_suffix('/').map_or((rest, false), |parts| (parts, true));
    let mut bytes = Vec::with_capacity(parts.len());
    for part in parts.split('/') {
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        let start = bytes.len();
        bytes.extend(percent_decode_str(part));
        match bytes.get(start..) {
            None | Some([] | [b'.', ..]) => return Err(PathError::Nothing),
            Some(name) if memchr::memchr2(0, b'/', name).is_some() => return Err(PathError::Nothing),
            Some(_) => {}
        }
    }
    Ok(Name { path: PathBuf::from(OsString::from_vec(bytes)), directory })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths() {
        let good: [(&str, &[u8], bool, &str); 17] = [
            ("/", b"", true, "RFC 9110 section 4.2.3: the empty path is this one"),
            ("/a", b"a", false, ""),
            ("/a/", b"a", true, ""),
            ("/a/b.txt", b"a/b.txt", false, ""),
            ("/a%20b", b"a b", false, "RFC 3986 section 2.1"),
            ("/%61%2e%74xt", b"a.txt", false, "RFC 3986 section 2.3: unreserved, so the same"),
            ("/%C3%A9", "\u{e9}".as_bytes(), false, "RFC 3986 section 2.5"),
            ("/\u{e9}", "\u{e9}".as_bytes(), false, "no URI, but clear"),
            ("/%ff%FE", b"\xff\xfe", false, "names are bytes"),
            ("/%25", b"%", false, ""),
            ("/a%252e%252e", b"a%2e%2e", false, "RFC 3986 section 2.4: once"),
            ("/%252e%252e/b", b"%2e%2e/b", false, "RFC 3986 section 2.4: once"),
            ("/a..", b"a..", false, "not at its beginning"),
            ("/a\\..\\b", b"a\\..\\b", false, "a byte like any other"),
            ("/%5c%5Chost", b"\\\\host", false, "a byte like any other"),
            ("/a+b", b"a+b", false, "no form"),
            ("/%0d%0a", b"\r\n", false, "file names may have them"),
        ];
        for (path, bytes, directory, source) in good {
            let name = decode(path).unwrap_or_else(|error| panic!("{path}: {error:?}, {source}"));
            assert_eq!(
                (name.path.as_os_str().as_bytes(), name.directory),
                (bytes, directory),
                "{path}: {source}"
            );
        }
    }

    #[test]
    fn paths_that_name_nothing() {
        let bad = [
            ("/%", PathError::Escape, "RFC 3986 section 2.1"),
            ("/%4", PathError::Escape, "RFC 3986 section 2.1"),
            ("/%4/1", PathError::Escape, "RFC 3986 section 2.1"),
            ("/%%41", PathError::Escape, "RFC 3986 section 2.1"),
            ("/%zz", PathError::Escape, "RFC 3986 section 2.1"),
            ("/%+1", PathError::Escape, "RFC 3986 section 2.1"),
            ("/../%u0041", PathError::Escape, "RFC 3986 section 2.1"),
            ("", PathError::Nothing, ""),
            ("*", PathError::Nothing, "RFC 9112 section 3.2.4"),
            ("a", PathError::Nothing, ""),
            ("//", PathError::Nothing, "an empty part"),
            ("//host/", PathError::Nothing, "an empty part"),
            ("/a//b", PathError::Nothing, "an empty part"),
            ("/a//", PathError::Nothing, "an empty part"),
            ("/.", PathError::Nothing, "RFC 3986 section 5.2.4"),
            ("/./", PathError::Nothing, "RFC 3986 section 5.2.4"),
            ("/..", PathError::Nothing, "RFC 3986 section 5.2.4"),
            ("/../", PathError::Nothing, "RFC 3986 section 5.2.4"),
            ("/a/../b", PathError::Nothing, "RFC 3986 section 5.2.4"),
            ("/%2e%2E/b", PathError::Nothing, "RFC 3986 section 6.2.2.2"),
            ("/.%2e", PathError::Nothing, "RFC 3986 section 6.2.2.2"),
            ("/a/%2e", PathError::Nothing, "RFC 3986 section 6.2.2.2"),
            ("/..%2f..%2fetc", PathError::Nothing, "RFC 3986 section 2.2"),
            ("/a%2fb", PathError::Nothing, "RFC 3986 section 2.2"),
            ("/a%2F", PathError::Nothing, "RFC 3986 section 2.2"),
            ("/%2fetc", PathError::Nothing, "RFC 3986 section 2.2"),
            ("/a%00", PathError::Nothing, "no file name has a NUL"),
            ("/%00", PathError::Nothing, "no file name has a NUL"),
            ("/.git/config", PathError::Nothing, "hidden"),
            ("/a/.htaccess", PathError::Nothing, "hidden"),
            ("/%2egit/", PathError::Nothing, "hidden"),
        ];
        for (path, error, source) in bad {
            assert_eq!(decode(path), Err(error), "{path}: {source}");
        }
    }

    proptest! {
        #[test]
        fn no_path_leads_out(path in "(/|%2[eEfF]|\\.|%5c|%00|%25|%|\\\\|[a-z]|\\PC){0,24}") {
            for path in [path.clone(), format!("/{path}")] {
                let Ok(name) = decode(&path) else { continue };
                prop_assert!(name.path.components().all(|part| matches!(part, Component::Normal(_))));
                let bytes = name.path.as_os_str().as_bytes();
                prop_assert!(!bytes.contains(&0) && bytes.first() != Some(&b'/') && bytes.last() != Some(&b'/'));
                let visible = |part: &[u8]| !part.is_empty() && part[0] != b'.';
                let parts_are = bytes.is_empty() || bytes.split(|byte| *byte == b'/').all(visible);
                prop_assert!(parts_are);
                // As many parts as were sent: nothing decoded divides.
                let sent = path.trim_matches('/').split('/').filter(|part| !part.is_empty()).count();
                prop_assert_eq!(name.path.components().count(), sent);
            }
        }

        #[test]
        fn every_name_can_be_asked_for(name in proptest::collection::vec(any::<u8>(), 1..40)) {
            prop_assume!(name[0] != b'.' && !name.contains(&0) && !name.contains(&b'/'));
            let sent: String = name.iter().map(|byte| format!("%{byte:02X}")).collect();
            let decoded = decode(&format!("/{sent}")).unwrap();
            prop_assert_eq!(decoded.path.as_os_str().as_bytes(), name);
        }
    }
}
