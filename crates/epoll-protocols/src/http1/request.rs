//! A request as a service sees it: borrowed from what was received. Not the parser, and no framing: what
//! lies here has passed every check.

use std::fmt;

use epoll_reactor::Address;
use httparse::Header;

use super::service::RequestId;

/// One request, its body included.
///
/// Everything borrows from the receive buffer, and lookups walk the fields in order: a request costs no
/// allocation.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) version: Version,
    pub(super) headers: &'a [Header<'a>],
    pub(super) body: &'a [u8],
    pub(super) id: RequestId,
    pub(super) client: &'a Address,
}

/// The version a client speaks. Responses always say 1.1, the highest this server knows (RFC 9110 section 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: connections end after a response unless asked to stay, `Host` is optional, no chunks.
    Http10,
    /// HTTP/1.1.
    Http11,
}

impl<'a> Request<'a> {
    /// The method, a token; case matters (RFC 9110 section 9.1).
    #[must_use]
    pub const fn method(&self) -> &'a str {
        self.method
    }

    /// The request target exactly as sent: `/path?query`, `http://host/path?query`, or `*` for `OPTIONS`.
    #[must_use]
    pub const fn target(&self) -> &'a str {
        self.target
    }

    /// The target's path, percent-encoding untouched. `/` if the target names a host and nothing else, `*` for
    /// `OPTIONS *`.
    #[must_use]
    pub fn path(&self) -> &'a str {
        let target = self.path_and_query();
        match target.bytes().position(|byte| byte == b'?').and_then(|end| target.get(..end)).unwrap_or(target)
        {
            "" => "/",
            path => path,
        }
    }

    /// What follows the target's first `?`, percent-encoding untouched. `None` if it has none.
    #[must_use]
    pub fn query(&self) -> Option<&'a str> {
        self.path_and_query().split_once('?').map(|(_, query)| query)
    }

    /// The host the request is for, with its port if one was sent. A target that names one outranks `Host`
    /// (RFC 9112 section 3.2.2). `None` only if an HTTP/1.0 client said neither.
    #[must_use]
    pub fn host(&self) -> Option<&'a str> {
        match split_absolute(self.target) {
            Some((authority, _)) => Some(authority),
            None => self.header("host").and_then(|value| std::str::from_utf8(value).ok()),
        }
    }

    /// Its name among all requests, for answers that come later.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// The address of the peer: a client's, or that of a proxy on the way.
    #[must_use]
    pub const fn client(&self) -> &'a Address {
        self.client
    }

    /// The client's version.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The value of the first field called `name`, in any case, without the space around it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// All fields, in the order they were sent, names in the case they were sent in.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        self.headers.iter().map(|header| (header.name, header.value))
    }

    /// The body, whole and without the framing of chunks. Empty if there is none.
    #[must_use]
    pub const fn body(&self) -> &'a [u8] {
        self.body
    }

    fn path_and_query(&self) -> &'a str {
        split_absolute(self.target).map_or(self.target, |(_, path_and_query)| path_and_query)
    }
}

/// Divides a target of absolute form (RFC 9112 section 3.2.2) into its authority and what follows.
pub(super) fn split_absolute(target: &str) -> Option<(&str, &str)> {
    if target.starts_with('/') {
        return None;
    }
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    rest.split_at_checked(rest.find(['/', '?']).unwrap_or(rest.len()))
}

impl fmt::Debug for Request<'_> {
    /// Leaves out the header values and the body, where secrets are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("target", &self.target)
            .field("version", &self.version)
            .field("headers", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(target: &'a str, headers: &'a [Header<'a>]) -> Request<'a> {
        let id = RequestId { connection: 1, number: 0 };
        let client = &Address::UnixUnnamed;
        Request { method: "GET", target, version: Version::Http11, headers, body: b"", id, client }
    }

    #[test]
    fn a_target_is_divided_into_host_path_and_query() {
        let host = [Header { name: "hOST", value: b"from.header" }];
        let cases = [
            ("/", "/", None, "from.header"),
            ("/a/b%20c", "/a/b%20c", None, "from.header"),
            ("/a?", "/a", Some(""), "from.header"),
            ("/a?b=c?d", "/a", Some("b=c?d"), "from.header"),
            ("/a?u=http://x/y", "/a", Some("u=http://x/y"), "from.header"),
            ("*", "*", None, "from.header"),
            ("http://h:1/p?q", "/p", Some("q"), "h:1"),
            ("HTTPS://h", "/", None, "h"),
            ("http://h?q=/", "/", Some("q=/"), "h"),
        ];
        for (target, path, query, authority) in cases {
            let request = request(target, &host);
            assert_eq!(request.target(), target);
            assert_eq!(request.path(), path, "{target}");
            assert_eq!(request.query(), query, "{target}");
            assert_eq!(request.host(), Some(authority), "{target}");
        }
        assert_eq!(request("/", &[]).host(), None);
    }

    #[test]
    fn fields_are_found_in_any_case_and_listed_in_order() {
        let headers = [
            Header { name: "X-One", value: b"1" },
            Header { name: "x-one", value: b"again" },
            Header { name: "Cookie", value: b"secret" },
        ];
        let request = request("/", &headers);
        assert_eq!(request.header("x-ONE"), Some(b"1".as_slice()));
        assert_eq!(request.header("x-on"), None);
        assert_eq!(request.headers().map(|(name, _)| name).collect::<Vec<_>>(), ["X-One", "x-one", "Cookie"]);
        assert!(!format!("{request:?}").contains("secret"));
    }
}
