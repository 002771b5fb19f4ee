//! Lines out of pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| epoll_protocols::fuzzing::lines(data));
