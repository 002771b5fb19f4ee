//! Signals as events: signalfd(2).

use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd;

use crate::process::{signal_from_number, signal_set};
use crate::{Errno, Signal, block_signals};

pub(super) fn signalfd(signals: &[Signal]) -> Result<OwnedFd, Errno> {
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    // One that is not blocked would take its default action, and the descriptor would never see it.
    block_signals(signals)?;
    SignalFd::with_flags(&signal_set(signals), flags).map(OwnedFd::from)
}

/// `EINVAL` if it is another kind of descriptor, or carries a signal that [`Signal`] does not have.
pub(super) fn read_signal(signalfd: &OwnedFd) -> Result<Option<Signal>, Errno> {
    let mut siginfo = [0; size_of::<libc::signalfd_siginfo>()];
    let length = match unistd::read(signalfd, &mut siginfo) {
        Ok(length) => length,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error),
    };
    // signalfd(2): it gives whole structures only, and their first field is ssi_signo, a `u32`.
    match siginfo.first_chunk() {
        Some(number) if length == siginfo.len() => {
            signal_from_number(u32::from_ne_bytes(*number)).map(Some).ok_or(Errno::EINVAL)
        }
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal as NixSignal, raise};

    use super::super::Linux;
    use super::super::testing::next;
    use super::*;
    use crate::{Interest, Kernel};

    #[test]
    fn signals_are_read_one_by_one() {
        let linux = Linux::new().unwrap();
        let signals = [
            (Signal::Hangup, NixSignal::SIGHUP),
            (Signal::Interrupt, NixSignal::SIGINT),
            (Signal::User1, NixSignal::SIGUSR1),
            (Signal::User2, NixSignal::SIGUSR2),
            (Signal::Terminate, NixSignal::SIGTERM),
        ];
        // Which blocks them in this thread.
        let signalfd = linux.signalfd(&signals.map(|(signal, _)| signal)).unwrap();
        linux.add(&signalfd, Interest::Readable, 1).unwrap();
        assert_eq!(linux.read_signal(&signalfd), Ok(None));
        // To this thread alone: the others of the test process do not block them.
        raise(NixSignal::SIGTERM).unwrap();
        assert!(next(&linux).readiness.is_readable());
        assert_eq!(linux.read_signal(&signalfd), Ok(Some(Signal::Terminate)));
        for (_, number) in signals {
            raise(number).unwrap();
        }
        // The lowest number first, which is the order of the list.
        for (signal, _) in signals {
            assert_eq!(linux.read_signal(&signalfd), Ok(Some(signal)));
        }
        assert_eq!(linux.read_signal(&signalfd), Ok(None));
    }

    #[test]
    fn a_descriptor_that_is_no_signalfd_gives_no_signal() {
        let linux = Linux::new().unwrap();
        let eventfd = linux.eventfd().unwrap();
        assert_eq!(linux.read_signal(&eventfd), Ok(None));
        Linux::notify(&eventfd).unwrap();
        assert_eq!(linux.read_signal(&eventfd), Err(Errno::EINVAL));
    }
}
