//! Files of a flight recorder, from anybody.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| epoll_reactor::fuzzing::recording(data));
