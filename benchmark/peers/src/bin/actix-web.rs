//! HTTP by actix-web, with one worker. Its listener has a thread of its own.

#![forbid(unsafe_code)]

use std::io;

use actix_web::rt::System;
use actix_web::{App, HttpResponse, HttpServer, web};
use peers::{BYTES, HELLO, TEXT, address};

fn main() -> io::Result<()> {
    System::new().block_on(async {
        HttpServer::new(|| {
            App::new().route("/hello", web::get().to(hello)).route("/echo", web::post().to(echo))
        })
        .workers(1)
        .tcp_nodelay(true)
        // SIGTERM ends it at once, as it ends the others.
        .disable_signals()
        .bind(address("http"))?
        .run()
        .await
    })
}

async fn hello() -> HttpResponse {
    HttpResponse::Ok().content_type(TEXT).body(HELLO)
}

async fn echo(body: web::Bytes) -> HttpResponse {
    HttpResponse::Ok().content_type(BYTES).body(body)
}
