//! What is answered when a file is not what its status said.

use std::fs::File;
use std::io::Write;

use epoll_reactor::Address;
use httparse::Header;

use super::super::super::response::Body;
use super::super::super::{RequestId, Version};
use super::super::FilesOptions;
use super::*;

/// A file of `content` that had `size` bytes when it was looked at.
fn found(content: &[u8], size: u64) -> Found {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    Found { file, size, inode: 7, seconds: 784_111_777, nanoseconds: 5 }
}

fn answered(found: Found, coding: Option<Coding>, headers: &[(&str, &str)]) -> (Response, String) {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::open(directory.path(), FilesOptions::default()).unwrap();
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
    let id = RequestId { connection: 1, number: 0 };
    let (version, client) = (Version::Http11, &Address::UnixUnnamed);
    let request = Request { method: "GET", target: "/", version, headers: &headers, body: b"", id, client };
    let mut response = Response::new();
    let representation = Representation { found, media_type: Cow::Borrowed("a/b"), coding };
    answer(&files, representation, &request, &mut response, Lookup::MayBlock).unwrap();
    let fields = String::from_utf8(response.fields.clone()).unwrap();
    (response, fields)
}

#[test]
fn a_small_file_that_has_become_shorter_is_sent_as_it_is_and_without_validators() {
    let (response, fields) = answered(found(b"short", 10), None, &[]);
    assert_eq!((response.status(), response.written.as_slice()), (200, b"short".as_slice()));
    assert!(!fields.contains("ETag") && !fields.contains("Last-Modified"), "{fields}");
    let (response, fields) = answered(found(b"longer", 5), None, &[]);
    assert_eq!(response.written, b"longe");
    assert!(fields.contains("ETag: \"5-2ebc98a1.5-7\"\r\n"), "{fields}");
    assert!(fields.contains("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), "{fields}");
}

/// Its length has been told, and its place: sending it will show that it is not there, and end the connection.
#[test]
fn a_range_that_has_gone_is_left_to_whoever_sends_it() {
    let (response, fields) = answered(found(b"short", 10), None, &[("Range", "bytes=3-8")]);
    assert_eq!(response.status(), 206);
    assert!(fields.contains("Content-Range: bytes 3-8/10\r\n"), "{fields}");
    let Body::Parts(parts) = &response.body else { panic!("{response:?}") };
    assert!(matches!(parts.as_slice(), [Part::File(FileSlice { offset: 3, length: 6, .. })]));
}

#[test]
fn a_large_file_is_not_read() {
    for (size, read) in [(SMALL, true), (SMALL + 1, false)] {
        let file = File::open("/dev/zero").unwrap();
        let found = Found { file, size, inode: 7, seconds: 0, nanoseconds: 0 };
        let (response, _) = answered(found, None, &[]);
        assert_eq!(matches!(response.body, Body::Written), read, "{size}");
    }
}

#[test]
fn several_ranges_of_what_is_coded_would_be_taken_for_coded_themselves() {
    let ranges = [("Range", "bytes=0-0,500-500")];
    let (plain, fields) = answered(found(&[b'x'; 1000], 1000), None, &ranges);
    assert!(plain.status() == 206 && fields.contains("multipart/byteranges"), "{fields}");
    let (coded, fields) = answered(found(&[b'x'; 1000], 1000), Some(Coding::Gzip), &ranges);
    assert_eq!((coded.status(), coded.written.len()), (200, 1000));
    assert!(fields.contains("Content-Encoding: gzip\r\n") && fields.contains("-7gzip\""), "{fields}");
    let (coded, fields) = answered(found(&[b'x'; 1000], 1000), Some(Coding::Gzip), &[("Range", "bytes=0-1")]);
    assert_eq!((coded.status(), coded.written.len()), (206, 2));
    assert!(fields.contains("Content-Encoding: gzip\r\n"), "{fields}");
}

#[test]
fn media_types() {
    let cases = [
        ("a.html", "text/html; charset=utf-8"),
        ("a.HTML", "text/html; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.wasm", "application/wasm"),
        ("a.svg", "image/svg+xml"),
        ("a.tar.gz", "application/gzip"),
        ("dir.html/a", "application/octet-stream"),
        ("a.unheard-of", "application/octet-stream"),
        ("html", "application/octet-stream"),
    ];
    for (path, expected) in cases {
        assert_eq!(media_type(Path::new(path)), expected, "{path}");
    }
}
