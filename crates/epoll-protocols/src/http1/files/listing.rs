//! A directory as a page of HTML. It waits for the disk.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use epoll_reactor::{Directory, EntryKind, EntryStatus, Lookup, entries, entry_status};
use percent_encoding::percent_encode;

use super::super::Response;
use super::conditions::date_of;
use super::lookup::{Opened, Refused, open};
use super::{NAME, field};

/// Names that are looked at. A directory with more is not for people, and each costs a system call.
const MOST_NAMES: usize = 10_000;

/// The page is no longer than this, in bytes, and a row: it goes into the loop's memory whole.
const MOST_BYTES: usize = 2 * 1024 * 1024;

/// Nothing from anywhere else, and no script: names are chosen by whoever may write files.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;\
color-scheme:light dark}table{border-collapse:collapse;width:100%}td{padding:.2rem .5rem;border-bottom:1px solid #8884}\
td+td{text-align:right;white-space:nowrap;color:#888;font-variant-numeric:tabular-nums}\
a{text-decoration:none;overflow-wrap:anywhere}a:hover{text-decoration:underline}";

/// What a row shows.
struct Row {
    name: OsString,
    directory: bool,
    size: u64,
    modified: i64,
}

/// Answers with a list of `directory`, which was found at `path`. Names that could not be asked for are left out:
/// hidden ones, links that lead out, what is neither a file nor a directory.
pub(super) fn answer(
    root: &Directory,
    path: &Path,
    directory: &File,
    response: &mut Response,
) -> Result<(), Refused> {
    let found = entries(directory, MOST_NAMES + 1)?;
    let mut cut = found.len() > MOST_NAMES;
    let mut rows = Vec::with_capacity(found.len());
    for entry in found.into_iter().take(MOST_NAMES) {
        if entry.name.as_bytes().starts_with(b".") {
            continue;
        }
        // It may have gone meanwhile.
        let Ok(status) = entry_status(directory, &entry.name) else { continue };
        let (directory, size, modified) = match status {
            EntryStatus { kind: EntryKind::File, size, modified } => (false, size, modified),
            EntryStatus { kind: EntryKind::Directory, modified, .. } => (true, 0, modified),
            EntryStatus { kind: EntryKind::Link, modified, .. } => {
                match open(root, &path.join(&entry.name), Lookup::MayBlock) {
                    Ok(Opened::File(file)) => (false, file.size, file.seconds),
                    Ok(Opened::Directory(_)) => (true, 0, modified),
                    Ok(Opened::Other) | Err(_) => continue,
                }
            }
            EntryStatus { kind: EntryKind::Other, .. } => continue,
        };
        rows.push(Row { name: entry.name, directory, size, modified });
    }
    rows.sort_by(|one, other| other.directory.cmp(&one.directory).then_with(|| one.name.cmp(&other.name)));

    let mut page = head(path);
    for row in rows {
        if page.len() >= MOST_BYTES {
            cut = true;
            break;
        }
        write_row(&row, &mut page);
    }
    page.push_str("</table>\n");
    if cut {
        page.push_str("<p>There is more, which is not shown.</p>\n");
    }
    field(response, "Content-Type", "text/html; charset=utf-8");
    field(response, "Content-Security-Policy", POLICY);
    field(response, "X-Content-Type-Options", "nosniff");
    // It has nothing to be checked with.
    field(response, "Cache-Control", "no-cache");
    response.set_shared_body(page.into());
    Ok(())
}

fn head(path: &Path) -> String {
    let mut title = String::from("/");
    escape(&path.to_string_lossy(), &mut title);
    if !path.as_os_str().is_empty() {
        title.push('/');
    }
    let up = if path.as_os_str().is_empty() {
        ""
    } else {
        "<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n"
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<table>\n{up}"
    )
}

/// The link is relative, and begins with `./`, since a name with a colon would else be taken for a scheme (RFC 3986
/// section 4.2).
fn write_row(row: &Row, page: &mut String) {
    let slash = if row.directory { "/" } else { "" };
    page.push_str("<tr><td><a href=\"./");
    page.extend(percent_encode(row.name.as_bytes(), NAME));
    page.push_str(slash);
    page.push_str("\">");
    escape(&row.name.to_string_lossy(), page);
    page.push_str(slash);
    page.push_str("</a></td><td>");
    if !row.directory {
        write_size(row.size, page);
    }
    page.push_str("</td><td>");
    // The middle of `Sun, 06 Nov 1994 08:49:37 GMT`.
    let date = date_of(u64::try_from(row.modified).unwrap_or(0)).to_string();
    page.push_str(date.get(5..22).unwrap_or_default());
    page.push_str("</td></tr>\n");
}

/// For text and for attributes in double quotes.
fn escape(text: &str, page: &mut String) {
    for character in text.chars() {
        match character {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            // Neither seen nor allowed in HTML; written out it cannot turn the row around either.
            '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => page.push('\u{fffd}'),
            other => page.push(other),
        }
    }
}

fn write_size(size: u64, page: &mut String) {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut tenths = u128::from(size) * 10;
    let mut shown = None;
    for unit in units {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        shown = Some(unit);
    }
    let written = match shown {
        None => write!(page, "{size} B"),
        Some(unit) => write!(page, "{}.{} {unit}", tenths / 10, tenths % 10),
    };
    debug_assert!(written.is_ok(), "a string takes anything");
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (size, text) in cases {
            let mut page = String::new();
            write_size(size, &mut page);
            assert_eq!(page, text);
        }
    }

    #[test]
    fn names_cannot_break_the_page() {
        let cases: [(&[u8], &str); 5] = [
            (b"a b", "./a%20b\">a b<"),
            (b"\"><script>'&", "./%22%3E%3Cscript%3E%27%26\">&quot;&gt;&lt;script&gt;&#39;&amp;<"),
            (b"javascript:x", "./javascript%3Ax\">javascript:x<"),
            (b"\xff", "./%FF\">\u{fffd}<"),
            ("\u{202e}\n".as_bytes(), "./%E2%80%AE%0A\">\u{fffd}\u{fffd}<"),
        ];
        for (name, expected) in cases {
            let row =
                Row { name: OsStr::from_bytes(name).to_owned(), directory: false, size: 1, modified: -1 };
            let mut page = String::new();
            write_row(&row, &mut page);
            assert!(page.contains(expected), "{page}");
            assert!(page.contains("<td>01 Jan 1970 00:00</td>"), "{page}");
        }
    }
}
