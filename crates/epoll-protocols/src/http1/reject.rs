//! Why a request is refused, and with which status. Not the answers of a service, which are its own affair.

use std::fmt;

/// A request that never reached the service. The client was told the [`status`](Self::status), and, but for
/// [`Overloaded`](Self::Overloaded), the connection ends: after a broken message nobody can say where the next one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// The first byte cannot begin a method: a TLS handshake, a stray body, too many empty lines.
    NotHttp,
    /// A line ends in LF without CR. Some servers take that for a line end, others do not.
    BareLineFeed,
    /// The request line is not `method SP target SP version`.
    RequestLine,
    /// The target is in none of the forms of RFC 9112 section 3.2.
    Target,
    /// The target is longer than [`HttpLimits::target`](super::HttpLimits::target).
    TargetTooLong,
    /// The protocol is HTTP, but of another major version than 1.
    Version,
    /// The version is 1.2 or later. Nobody is refused for it: the request is read as one of 1.1.
    NewerMinorVersion,
    /// A header field has a bad name, a bad byte in its value, a space before its colon or is folded.
    Header,
    /// The head is larger than [`HttpLimits::head`](super::HttpLimits::head).
    HeadTooLarge,
    /// There are more header fields than [`HttpLimits::headers`](super::HttpLimits::headers).
    TooManyHeaders,
    /// HTTP/1.1 without a `Host`, or any request with two, or one that is not `host [":" port]`.
    Host,
    /// `Content-Length` is no number, too large a number, or two different numbers.
    ContentLength,
    /// `Transfer-Encoding` in HTTP/1.0, beside `Content-Length`, or without `chunked` as its end.
    TransferEncoding,
    /// A transfer coding other than `chunked`.
    UnknownCoding,
    /// `TRACE` or `CONNECT`.
    Method,
    /// An expectation other than `100-continue`.
    Expectation,
    /// The body is larger than [`HttpLimits::body`](super::HttpLimits::body).
    BodyTooLarge,
    /// The chunked framing is broken, or its extensions are longer than
    /// [`HttpLimits::chunk_extensions`](super::HttpLimits::chunk_extensions).
    Chunk,
    /// A trailer field is malformed.
    Trailer,
    /// The trailer fields are longer than [`HttpLimits::trailers`](super::HttpLimits::trailers).
    TrailersTooLarge,
    /// The client ended its side in the middle of a request.
    Incomplete,
    /// The request took longer than the caller allows.
    TimedOut,
    /// The service did not want the body: [`BodyMode::Refuse`](super::BodyMode::Refuse).
    Service(u16),
    /// The server had too much to do to answer it in time, and the client may try again after a second. Nothing is wrong
    /// with it, so the connection goes on, unless there is a body that has yet to come.
    Overloaded,
}

impl Rejection {
    /// The status the client was sent.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::NotHttp
            | Self::BareLineFeed
            | Self::RequestLine
            | Self::Target
            | Self::Header
            | Self::Host
            | Self::ContentLength
            | Self::TransferEncoding
            | Self::Chunk
            | Self::Trailer
            | Self::Incomplete => 400,
            Self::TimedOut => 408,
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::HeadTooLarge | Self::TooManyHeaders | Self::TrailersTooLarge => 431,
            Self::UnknownCoding | Self::Method => 501,
            Self::Overloaded => 503,
            Self::Version | Self::NewerMinorVersion => 505,
            Self::Service(status @ 200..=599) => status,
            // As `Response::set_status` has it.
            Self::Service(_) => 500,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHttp => "not HTTP",
            Self::BareLineFeed => "a line ends without CR",
            Self::RequestLine => "bad request line",
            Self::Target => "bad request target",
            Self::TargetTooLong => "request target too long",
            Self::Version | Self::NewerMinorVersion => "unsupported HTTP version",
            Self::Header => "bad header field",
            Self::HeadTooLarge => "request head too large",
            Self::TooManyHeaders => "too many header fields",
            Self::Host => "missing, repeated or bad Host",
            Self::ContentLength => "bad Content-Length",
            Self::TransferEncoding => "bad Transfer-Encoding",
            Self::UnknownCoding => "unknown transfer coding",
            Self::Method => "method not implemented",
            Self::Expectation => "unknown expectation",
            Self::BodyTooLarge => "request body too large",
            Self::Chunk => "bad chunk",
            Self::Trailer => "bad trailer field",
            Self::TrailersTooLarge => "trailer fields too large",
            Self::Incomplete => "the request ended in its middle",
            Self::TimedOut => "the request took too long",
            Self::Service(_) => "the service refused the body",
            Self::Overloaded => "overloaded",
        })
    }
}

impl std::error::Error for Rejection {}
