//! Tokens, slots and the table beside them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| epoll_reactor::fuzzing::slab(data));
