//! Heads of HTTP requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| epoll_protocols::fuzzing::http_head(data));
