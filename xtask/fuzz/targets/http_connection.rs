//! A whole HTTP connection, cut at random, against the same at once.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| epoll_protocols::fuzzing::http_connection(data));
