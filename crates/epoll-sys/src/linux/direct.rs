//! recv(2) and send(2) without the C library around them. Not a second way to call the kernel: only these two, which
//! every message needs.
//!
//! glibc makes each a cancellation point. Where there is a second thread, that is two locked instructions a call, some
//! 20 ns: a tenth of what a request costs in user space, for a feature that no Rust thread has.

#![allow(unsafe_code, reason = "nix makes these calls through the wrappers that are to be avoided")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use nix::libc::{self, c_int, c_long, sockaddr, socklen_t};

use crate::Errno;

/// recv(2), without flags.
pub(super) fn recv(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let flags: c_int = 0;
    // SAFETY: `buffer` is valid for writes of its length until the call returns, and the kernel writes no more than
    // that. The last two arguments are null: no address is asked for. Each has the type of recvfrom(2)'s parameter.
    let result = unsafe {
        libc::syscall(
            libc::SYS_recvfrom,
            socket.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
            flags,
            ptr::null_mut::<sockaddr>(),
            ptr::null_mut::<socklen_t>(),
        )
    };
    count(result)
}

/// send(2). `SIGPIPE` is never raised.
pub(super) fn send(socket: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
    let no_address: socklen_t = 0;
    // SAFETY: `data` is valid for reads of its length until the call returns, and the kernel only reads it. The address
    // is null and its length 0, as for a connected socket. Each argument has the type of sendto(2)'s parameter.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sendto,
            socket.as_raw_fd(),
            data.as_ptr(),
            data.len(),
            libc::MSG_NOSIGNAL,
            ptr::null::<sockaddr>(),
            no_address,
        )
    };
    count(result)
}

fn count(result: c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::last())
}
