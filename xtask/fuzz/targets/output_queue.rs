//! Output waiting for the kernel.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| epoll_reactor::fuzzing::output_queue(data));
