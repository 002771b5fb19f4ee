//! What `epoll-server http` serves: three answers to try a server and its clients with. Not a file server.

use epoll_protocols::http1::{Request, Response};

const PAGE: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><title>epoll-server</title></head>
<body>
<h1>epoll-server</h1>
<p>It works. There is also <a href=\"/hello\">/hello</a>, and <code>POST /echo</code> sends back what it is sent.</p>
</body>
</html>
";

/// Answers one request.
pub(crate) fn answer(request: &Request<'_>, response: &mut Response) {
    match (request.method(), request.path()) {
        ("GET" | "HEAD", "/") => {
            set_type(response, "text/html; charset=utf-8");
            response.set_static_body(PAGE.as_bytes());
        }
        ("GET" | "HEAD", "/hello") => {
            set_type(response, "text/plain; charset=utf-8");
            response.set_static_body(b"Hello, World!");
        }
        ("POST", "/echo") => {
            // Never the request's own type: a browser would run a script that somebody has it post here.
            set_type(response, "application/octet-stream");
            response.set_body(request.body());
        }
        _ => {
            response.set_status(404);
            set_type(response, "text/plain; charset=utf-8");
            response.set_static_body(b"Not Found\n");
        }
    }
}

fn set_type(response: &mut Response, content_type: &'static str) {
    if let Err(error) = response.header("Content-Type", content_type) {
        log::error!("Content-Type {content_type:?}: {error}");
    }
}
