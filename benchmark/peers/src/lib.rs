//! What the servers have in common: how they are started, and what they answer.

#![forbid(unsafe_code)]

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::process;

/// The answer to `GET /hello`.
pub const HELLO: &str = "Hello, World!";
/// Its media type.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// The media type of the answer to `POST /echo`.
pub const BYTES: &str = "application/octet-stream";

/// Where to listen, from the arguments `<workload> <port>`; ends the process if the workload is not `workload`.
#[must_use]
pub fn address(workload: &str) -> SocketAddr {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [asked, port] = arguments.as_slice()
        && asked == workload
        && let Ok(port) = port.parse()
    {
        return (Ipv4Addr::LOCALHOST, port).into();
    }
    eprintln!("usage: {workload} <port>");
    process::exit(2);
}
