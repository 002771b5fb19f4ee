//! HTTP by hyper, on tokio's loop of one thread.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use peers::{BYTES, HELLO, TEXT, address};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address("http")).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // The answers to pipelined requests leave together.
            let mut builder = http1::Builder::new();
            let serving =
                builder.pipeline_flush(true).serve_connection(TokioIo::new(stream), service_fn(answer));
            // A client that breaks off ends its own connection only.
            let _ = serving.await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (body, media_type) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/hello") => (Bytes::from_static(HELLO.as_bytes()), TEXT),
        (&Method::POST, "/echo") => match request.into_body().collect().await {
            Ok(body) => (body.to_bytes(), BYTES),
            Err(_) => return Ok(error(StatusCode::BAD_REQUEST)),
        },
        _ => return Ok(error(StatusCode::NOT_FOUND)),
    };
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(media_type));
    Ok(response)
}

fn error(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}
