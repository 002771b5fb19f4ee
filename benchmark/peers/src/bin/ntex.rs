//! HTTP by ntex, with one worker, on tokio. Its listener has a thread of its own.

#![forbid(unsafe_code)]

use std::io;

use ntex::util::Bytes;
use ntex::web::{self, App, HttpResponse, HttpServer};
use peers::{BYTES, HELLO, TEXT, address};

#[ntex::main]
async fn main() -> io::Result<()> {
    HttpServer::new(async || {
        App::new().route("/hello", web::get().to(hello)).route("/echo", web::post().to(echo))
    })
    .workers(1)
    // SIGTERM ends it at once, as it ends the others.
    .disable_signals()
    .bind(address("http"))?
    .run()
    .await
}

async fn hello() -> HttpResponse {
    HttpResponse::Ok().content_type(TEXT).body(HELLO)
}

async fn echo(body: Bytes) -> HttpResponse {
    HttpResponse::Ok().content_type(BYTES).body(body)
}
