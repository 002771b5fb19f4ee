//! Input waiting for its rest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| epoll_reactor::fuzzing::input_tail(data));
