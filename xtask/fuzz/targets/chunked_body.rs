//! Bodies in chunks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| epoll_protocols::fuzzing::chunked_body(data));
