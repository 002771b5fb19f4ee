//! What answers requests. Not the protocol: a service neither sees nor decides framing.

use super::{Request, Response};

/// Answers requests.
///
/// Implemented for every `FnMut(&Request<'_>, &mut Response)`.
pub trait Service {
    /// Answers one request, whose body is here in full, by filling in `response`, which is empty and `200`
    /// at the start. It must not block: it runs on the thread of the loop, and every client waits for it.
    ///
    /// Any method but `TRACE` and `CONNECT` arrives here. To `HEAD`, answer as to `GET`: the body is left
    /// out and its length still told.
    fn call(&mut self, request: &Request<'_>, response: &mut Response);
}

impl<F: FnMut(&Request<'_>, &mut Response)> Service for F {
    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        self(request, response);
    }
}
