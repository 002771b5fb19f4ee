//! Which of several answers a request gets, by its method and path. Not a framework: no middleware, no extraction, no
//! types but strings.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::io;

use epoll_reactor::Signal;
use percent_encoding::percent_decode_str;

use super::responder::Responder;
use super::sending::BodyWriter;
use super::service::{Answered, BodyFlow, BodyMode, RequestId, Service};
use super::{HeaderError, Request, Response};

/// A [`Service`] made of routes around another one, which is their shared state: handlers get it as `&mut T`, without a
/// lock, since all of a loop runs on one thread. Requests that no route's path matches go to its own
/// [`call`](Service::call), and everything that is not a call as well.
///
/// A path matches segment by segment. `{name}` stands for one segment that is not empty, `{name...}`, as the last, for
/// any rest, the empty one included. Where several routes match, the one that is literal for longer wins. Segments are
/// compared as they were sent, percent-encoding untouched; trailing slashes matter.
///
/// [`route`](Self::route) takes any method, `PATCH` for instance; [`get`](Self::get) and [`post`](Self::post) are short
/// for two. A handler that panics does as [`Service::call`] that does.
///
/// `HEAD` is answered by the handler of `GET` if it has none itself, `OPTIONS` with the methods there are, a method
/// that the path does not have with 405 and the same list (RFC 9110 section 15.5.6), and one that nobody knows with 501
/// (section 9.1). A path without a route is for the service to answer, whatever the method: by default with 404, also
/// where nobody knows the method, since what is not there allows none.
///
/// ```
/// use epoll_protocols::http1::{Request, Response, Router, Service};
///
/// #[derive(Default)]
/// struct Shop { orders: u64 }
/// impl Service for Shop { type Message = (); }
///
/// let mut router = Router::new(Shop::default());
/// router.get("/items/{id}", |_, _, parameters, response| {
///     let id = parameters.decoded("id").unwrap_or_default();
///     response.set_body(format!("item {id}\n").as_bytes());
/// })?;
/// router.post("/orders", |shop, _, _, response| {
///     shop.orders += 1;
///     response.set_status(201);
/// })?;
/// # Ok::<(), epoll_protocols::http1::RouteError>(())
/// ```
pub struct Router<T> {
    service: T,
    /// The more specific first.
    routes: Vec<Route<T>>,
}

struct Route<T> {
    pattern: Vec<Segment>,
    methods: Vec<(&'static str, Answer<T>)>,
}

type Answer<T> = Box<dyn FnMut(&mut T, &Request<'_>, &Parameters<'_>, &mut Response)>;

#[derive(Clone, Debug)]
enum Segment {
    Rest(String),
    One(String),
    Literal(String),
}

/// The methods of RFC 9110 section 9.3, and RFC 5789.
const KNOWN_METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

impl<T: Service> Router<T> {
    /// Only `service`, without routes.
    #[must_use]
    pub const fn new(service: T) -> Self {
        Self { service, routes: Vec::new() }
    }

    /// The service around which the routes are.
    pub const fn service(&self) -> &T {
        &self.service
    }

    /// The same, to change it: see [`Http::service_mut`](super::Http::service_mut).
    pub const fn service_mut(&mut self) -> &mut T {
        &mut self.service
    }

    /// Has `answer` answer requests with `method` and a path like `pattern`.
    ///
    /// # Errors
    /// What is wrong with the pattern, or that there is such a route already; none is added.
    pub fn route(
        &mut self,
        method: &'static str,
        pattern: &str,
        answer: impl FnMut(&mut T, &Request<'_>, &Parameters<'_>, &mut Response) + 'static,
    ) -> Result<&mut Self, RouteError> {
        let segments =
            parse_pattern(pattern).map_err(|why| RouteError { pattern: pattern.to_owned(), why })?;
        let place = match self.routes.iter().position(|route| by_reach(&route.pattern, &segments).is_eq()) {
            Some(place) => place,
            None => {
                let place = self.routes.partition_point(|route| by_reach(&route.pattern, &segments).is_ge());
                self.routes.insert(place, Route { pattern: segments, methods: Vec::new() });
                place
            }
        };
        let methods = self.routes.get_mut(place).map(|route| &mut route.methods);
        match methods {
            Some(methods) if methods.iter().all(|(known, _)| *known != method) => {
                methods.push((method, Box::new(answer)));
                Ok(self)
            }
            _ => Err(RouteError { pattern: pattern.to_owned(), why: "there is such a route already" }),
        }
    }

    /// [`route`](Self::route) for `GET`, and so for `HEAD`.
    ///
    /// # Errors
    /// As for `route`.
    pub fn get(
        &mut self,
        pattern: &str,
        answer: impl FnMut(&mut T, &Request<'_>, &Parameters<'_>, &mut Response) + 'static,
    ) -> Result<&mut Self, RouteError> {
        self.route("GET", pattern, answer)
    }

    /// [`route`](Self::route) for `POST`.
    ///
    /// # Errors
    /// As for `route`.
    pub fn post(
        &mut self,
        pattern: &str,
        answer: impl FnMut(&mut T, &Request<'_>, &Parameters<'_>, &mut Response) + 'static,
    ) -> Result<&mut Self, RouteError> {
        self.route("POST", pattern, answer)
    }
}

impl<T: Service> Service for Router<T> {
    type Message = T::Message;

    fn call(&mut self, request: &Request<'_>, response: &mut Response) {
        let (method, path) = (request.method(), request.path());
        if request.target() == "*" {
            let all = self.routes.iter().flat_map(|route| &route.methods);
            return allow(&all.map(|(method, _)| *method).collect::<Vec<_>>(), method, response);
        }
        let Some(Route { pattern, methods }) =
            self.routes.iter_mut().find(|route| matches(&route.pattern, path))
        else {
            return self.service.call(request, response);
        };
        let place = |wanted: &str| methods.iter().position(|(method, _)| *method == wanted);
        let place = place(method).or_else(|| if method == "HEAD" { place("GET") } else { None });
        match place.and_then(|place| methods.get_mut(place)) {
            Some((_, answer)) => answer(&mut self.service, request, &Parameters { pattern, path }, response),
            None => allow(&methods.iter().map(|(method, _)| *method).collect::<Vec<_>>(), method, response),
        }
    }

    fn body_mode(&mut self, head: &Request<'_>) -> BodyMode {
        self.service.body_mode(head)
    }

    fn on_body(&mut self, id: RequestId, piece: &[u8]) -> BodyFlow {
        self.service.on_body(id, piece)
    }

    fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        self.service.write_body(id, body);
    }

    fn on_end(&mut self, id: RequestId, complete: bool) {
        self.service.on_end(id, complete);
    }

    fn on_answer(&mut self, answer: &Answered<'_>) {
        self.service.on_answer(answer);
    }

    fn on_message(&mut self, message: T::Message, responder: &mut Responder<'_>) {
        self.service.on_message(message, responder);
    }

    fn on_tick(&mut self, responder: &mut Responder<'_>) {
        self.service.on_tick(responder);
    }

    fn on_signal(&mut self, signal: Signal, responder: &mut Responder<'_>) {
        self.service.on_signal(signal, responder);
    }

    fn on_shutdown(&mut self, responder: &mut Responder<'_>) {
        self.service.on_shutdown(responder);
    }
}

/// Answers a method that is none of `methods`: with what they are if it is `OPTIONS`, or is at least known.
///
/// For services that decide on paths themselves; a [`Router`] does it for its routes.
pub fn allow(methods: &[&str], method: &str, response: &mut Response) {
    let mut allowed: Vec<&str> = Vec::with_capacity(methods.len() + 2);
    let head = methods.contains(&"GET").then_some("HEAD");
    for method in methods.iter().copied().chain(head).chain(["OPTIONS"]) {
        if !allowed.contains(&method) {
            allowed.push(method);
        }
    }
    response.set_status(match method {
        "OPTIONS" => 204,
        method if KNOWN_METHODS.contains(&method) => 405,
        _ => 501,
    });
    // Names of methods are tokens, unless somebody made a route for one that is not: it is never asked for.
    let _: Result<(), HeaderError> = response.header("Allow", allowed.join(", "));
}

/// What stood in a path for the names of its route's pattern.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    pattern: &'a [Segment],
    path: &'a str,
}

impl<'a> Parameters<'a> {
    /// What stood for `name`, percent-encoding untouched. `None` if the pattern has no such name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.path.strip_prefix('/')?;
        for segment in self.pattern {
            let (first, after) = rest.split_once('/').unwrap_or((rest, ""));
            match segment {
                Segment::Rest(known) => return (known == name).then_some(rest),
                Segment::One(known) if known == name => return Some(first),
                Segment::One(_) | Segment::Literal(_) => rest = after,
            }
        }
        None
    }

    /// The same with its percent-encoding undone (RFC 3986 section 2.1). `None` also if that is not UTF-8. It may have
    /// any characters, `/` and `..` among them.
    #[must_use]
    pub fn decoded(&self, name: &str) -> Option<Cow<'a, str>> {
        percent_decode_str(self.get(name)?).decode_utf8().ok()
    }
}

fn parse_pattern(pattern: &str) -> Result<Vec<Segment>, &'static str> {
    let rest = pattern.strip_prefix('/').ok_or("a pattern begins with /")?;
    let mut segments: Vec<Segment> = Vec::new();
    for text in rest.split('/') {
        if matches!(segments.last(), Some(Segment::Rest(_))) {
            return Err("nothing can follow {name...}");
        }
        let name = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let segment = match name.map(|name| name.strip_suffix("...").ok_or(name)) {
            Some(Ok(name)) => Segment::Rest(name.to_owned()),
            Some(Err(name)) => Segment::One(name.to_owned()),
            None => Segment::Literal(text.to_owned()),
        };
        let (Segment::Rest(text) | Segment::One(text) | Segment::Literal(text)) = &segment;
        if text.contains(['{', '}', '?', '#']) {
            return Err("{ and } are for whole segments, and ? and # are in no path");
        }
        if name.is_some() && (text.is_empty() || segments.iter().any(|segment| segment.name() == Some(text)))
        {
            return Err("a name is missing, or there twice");
        }
        segments.push(segment);
    }
    Ok(segments)
}

impl Segment {
    /// Which of two literals is above the other is of no matter, but that one is.
    const fn rank(&self) -> (u8, &str) {
        match self {
            Self::Rest(_) => (0, ""),
            Self::One(_) => (1, ""),
            Self::Literal(text) => (2, text.as_str()),
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Rest(name) | Self::One(name) => Some(name),
            Self::Literal(_) => None,
        }
    }
}

/// The pattern that wins where both match is the greater one, by the first segment in which they differ: a literal is
/// above a name for one segment, and that above one for any rest. What the names are says nothing, so patterns that
/// match the same paths are equal.
fn by_reach(one: &[Segment], other: &[Segment]) -> Ordering {
    one.iter().map(Segment::rank).cmp(other.iter().map(Segment::rank))
}

fn matches(pattern: &[Segment], path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let mut parts = path.split('/');
    for segment in pattern {
        let fits = match (segment, parts.next()) {
            (Segment::Rest(_), Some(_)) => return true,
            (Segment::One(_), Some(part)) => !part.is_empty(),
            (Segment::Literal(literal), Some(part)) => literal == part,
            (_, None) => false,
        };
        if !fits {
            return false;
        }
    }
    parts.next().is_none()
}

impl<T: fmt::Debug> fmt::Debug for Router<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("service", &self.service)
            .field("routes", &self.routes.iter().map(|route| &route.pattern).collect::<Vec<_>>())
            .finish()
    }
}

/// Why a route was not added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteError {
    pattern: String,
    why: &'static str,
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {:?}: {}", self.pattern, self.why)
    }
}

impl std::error::Error for RouteError {}

impl From<RouteError> for io::Error {
    fn from(error: RouteError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

#[cfg(test)]
mod tests {
    use epoll_reactor::Address;
    use httparse::Header;

    use super::super::Version;
    use super::*;

    #[derive(Debug)]
    struct State;

    impl Service for State {
        type Message = ();
    }

    fn router() -> Router<State> {
        let mut router = Router::new(State);
        let patterns = [
            "/",
            "/a",
            "/a/",
            "/{one}",
            "/a/{one}",
            "/a/b",
            "/{one}/b/{two}",
            "/a/{rest...}",
            "/x/{one}/{rest...}",
        ];
        for pattern in patterns {
            router
                .get(pattern, move |_, _, parameters, response| {
                    let values = ["one", "two", "rest"].map(|name| parameters.get(name).unwrap_or("-"));
                    response.set_body(format!("{pattern} {}", values.join(" ")).as_bytes());
                })
                .unwrap();
        }
        router.post("/a/b", |_, _, _, response| response.set_status(201)).unwrap();
        router
    }

    fn ask(router: &mut Router<State>, method: &str, target: &str) -> (u16, String, String) {
        let headers: [Header<'_>; 0] = [];
        let id = RequestId { connection: 0, number: 0 };
        let client = &Address::UnixUnnamed;
        let request =
            Request { method, target, version: Version::Http11, headers: &headers, body: b"", id, client };
        let mut response = Response::new();
        router.call(&request, &mut response);
        let fields = String::from_utf8(response.fields.clone()).unwrap();
        (response.status(), fields, String::from_utf8(response.written.clone()).unwrap())
    }

    #[test]
    fn the_more_literal_route_wins() {
        let cases = [
            ("/", "/ - - -"),
            ("/a", "/a - - -"),
            ("/a?b=/c/d", "/a - - -"),
            ("/a/", "/a/ - - -"),
            ("/q", "/{one} q - -"),
            ("/a/b", "/a/b - - -"),
            ("/a/c", "/a/{one} c - -"),
            ("/a/b/c", "/a/{rest...} - - b/c"),
            ("/q/b/c", "/{one}/b/{two} q c -"),
            ("/a/c/d/", "/a/{rest...} - - c/d/"),
            ("/x/y/", "/x/{one}/{rest...} y - "),
            ("/x/%2F/z", "/x/{one}/{rest...} %2F - z"),
            ("http://host/a/c?d", "/a/{one} c - -"),
        ];
        for (target, body) in cases {
            assert_eq!(ask(&mut router(), "GET", target), (200, String::new(), body.to_owned()), "{target}");
        }
        for target in ["/q/", "/q/c", "/x/y", "//", "/x//z", "/q/b/"] {
            assert_eq!(ask(&mut router(), "GET", target).0, 404, "{target}");
        }
    }

    /// Whatever the names are, and whichever was added first.
    #[test]
    fn the_more_literal_route_wins_whatever_the_names_and_the_order_of_adding() {
        // Each shadows those behind it, for the path.
        let cases: [(&str, &[&str]); 5] = [
            (
                "/o/settings",
                &["/o/settings", "/o/NAME", "/NAME/settings", "/NAME/OTHER", "/NAME/REST...", "/REST..."],
            ),
            (
                "/a/b/c",
                &["/a/b/c", "/a/b/NAME", "/a/NAME/c", "/a/NAME/OTHER", "/a/NAME/REST...", "/a/REST..."],
            ),
            (
                "/a/b/c",
                &["/NAME/b/c", "/NAME/b/OTHER", "/NAME/b/REST...", "/NAME/OTHER/c", "/NAME/OTHER/REST..."],
            ),
            (
                "/v/1/x/2",
                &["/v/NAME/x/OTHER", "/v/NAME/x/REST...", "/v/NAME/REST...", "/v/REST...", "/NAME/1/x/2"],
            ),
            ("/a/", &["/a/", "/a/REST...", "/NAME/", "/NAME/REST...", "/REST..."]),
        ];
        let named = |pattern: &str, [name, other, rest]: [&str; 3]| {
            let segment = |segment: &str| match segment {
                "NAME" => format!("{{{name}}}"),
                "OTHER" => format!("{{{other}}}"),
                "REST..." => format!("{{{rest}...}}"),
                literal => literal.to_owned(),
            };
            pattern.split('/').map(segment).collect::<Vec<_>>().join("/")
        };
        let names = [["a", "m", "z"], ["z", "m", "a"], ["m", "a", "z"], ["m", "z", "a"]];
        for (path, patterns) in cases {
            for (better, worse) in (0..patterns.len())
                .flat_map(|better| (better + 1..patterns.len()).map(move |worse| (better, worse)))
            {
                for (name, other) in
                    names.iter().flat_map(|name| names.iter().map(move |other| (name, other)))
                {
                    let [better, worse] = [named(patterns[better], *name), named(patterns[worse], *other)];
                    for order in [[&better, &worse], [&worse, &better]] {
                        let mut router = Router::new(State);
                        for pattern in order {
                            let answer = pattern.clone();
                            router
                                .get(pattern, move |_, _, _, response| response.set_body(answer.as_bytes()))
                                .unwrap();
                        }
                        assert_eq!(ask(&mut router, "GET", path).2, better, "{path} of {order:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn methods() {
        let router = &mut router();
        assert_eq!(ask(router, "POST", "/a/b").0, 201);
        assert_eq!(ask(router, "HEAD", "/a").2, "/a - - -");
        let allow = |methods: &str| format!("Allow: {methods}\r\n");
        assert_eq!(ask(router, "OPTIONS", "/a/b"), (204, allow("GET, POST, HEAD, OPTIONS"), String::new()));
        assert_eq!(ask(router, "PUT", "/a"), (405, allow("GET, HEAD, OPTIONS"), String::new()));
        assert_eq!(ask(router, "BREW", "/a"), (501, allow("GET, HEAD, OPTIONS"), String::new()));
        assert_eq!(ask(router, "get", "/a").0, 501, "case matters: RFC 9110 section 9.1");
        assert_eq!(ask(router, "OPTIONS", "*"), (204, allow("GET, POST, HEAD, OPTIONS"), String::new()));
        for method in ["PUT", "BREW"] {
            assert_eq!(
                ask(router, method, "/q/r").0,
                404,
                "{method}: a path that is not there has no methods"
            );
        }
    }

    #[test]
    fn parameters_are_decoded_on_demand() {
        let mut router = Router::new(State);
        router
            .get("/{name}", |_, _, parameters, response| {
                assert_eq!(parameters.get("other"), None);
                response.set_body(parameters.decoded("name").unwrap_or("not UTF-8".into()).as_bytes());
            })
            .unwrap();
        let cases = [("/a%20b", "a b"), ("/%2Fetc%2f..", "/etc/.."), ("/%zz", "%zz"), ("/%FF", "not UTF-8")];
        for (target, body) in cases {
            assert_eq!(ask(&mut router, "GET", target).2, body);
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        let bad = [
            "",
            "a",
            "/{}",
            "/{a",
            "/a{b}",
            "/{a}/{a}",
            "/{a...}/b",
            "/{...}",
            "/a?b",
            "/{other}",
            "/a/{x...}",
        ];
        for pattern in bad {
            let error = router().get(pattern, |_, _, _, _| {}).unwrap_err().to_string();
            assert!(error.contains(&format!("{pattern:?}")), "{error}");
        }
    }
}
