//! HTTP by axum, on tokio's loop of one thread.

#![forbid(unsafe_code)]

use std::io;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use peers::{HELLO, address};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    // A string is answered as text/plain; charset=utf-8, and bytes as application/octet-stream.
    let router =
        Router::new().route("/hello", get(async || HELLO)).route("/echo", post(async |body: Bytes| body));
    let listener = TcpListener::bind(address("http")).await?.tap_io(|stream| {
        // It may be gone already; then reading says so.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await
}
