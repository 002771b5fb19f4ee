//! What a server sets once for its whole process, before its loops start: signals and the descriptor limit.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal as NixSignal};

use crate::{Errno, Signal};

/// Blocks `signals` in the calling thread and in every thread it starts from now on, so that a
/// [signalfd](crate::Kernel::signalfd) gets them: pthread_sigmask(3). They stay pending until one reads them.
///
/// To be called first thing in `main`, before any thread is started: a thread that does not block a signal
/// is the one to receive it, and the default action ends the process. Child processes inherit the mask.
///
/// # Errors
/// None in practice; pthread_sigmask(3) fails only for a bad argument.
pub fn block_signals(signals: &[Signal]) -> Result<(), Errno> {
    signal_set(signals).thread_block()
}

/// How many descriptors the process may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFileLimit {
    /// The limit that was found.
    pub before: u64,
    /// The limit that is in force now.
    pub now: u64,
}

/// Raises the number of descriptors the process may open to all that the administrator allows: the soft
/// `RLIMIT_NOFILE` to the hard one, getrlimit(2). The soft limit is commonly 1024, for the sake of select(2),
/// which fails above it; a program that uses select(2), or starts one that does, must not call this.
///
/// # Errors
/// `EPERM`: the hard limit lies above the fs.nr_open of today. Nothing has changed; the process goes on with
/// what it has.
pub fn raise_open_file_limit() -> Result<OpenFileLimit, Errno> {
    let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if before < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(OpenFileLimit { before, now: hard })
}

pub(crate) fn signal_set(signals: &[Signal]) -> SigSet {
    signals.iter().map(|&signal| to_nix(signal)).collect()
}

pub(crate) fn signal_from_number(number: u32) -> Option<Signal> {
    let number = i32::try_from(number).ok()?;
    [Signal::Hangup, Signal::Interrupt, Signal::Terminate, Signal::User1, Signal::User2]
        .into_iter()
        .find(|&signal| to_nix(signal) as i32 == number)
}

const fn to_nix(signal: Signal) -> NixSignal {
    match signal {
        Signal::Hangup => NixSignal::SIGHUP,
        Signal::Interrupt => NixSignal::SIGINT,
        Signal::Terminate => NixSignal::SIGTERM,
        Signal::User1 => NixSignal::SIGUSR1,
        Signal::User2 => NixSignal::SIGUSR2,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn signal_numbers_are_read_back() {
        for signal in [Signal::Hangup, Signal::Interrupt, Signal::Terminate, Signal::User1, Signal::User2] {
            let number = u32::try_from(to_nix(signal) as i32).unwrap();
            assert_eq!(signal_from_number(number), Some(signal));
        }
        for number in [0, 9, 13, 64, u32::MAX] {
            assert_eq!(signal_from_number(number), None);
        }
    }

    #[test]
    fn threads_started_later_inherit_what_is_blocked() {
        block_signals(&[Signal::User1, Signal::Hangup]).unwrap();
        block_signals(&[Signal::User2]).unwrap();
        let mask = thread::spawn(|| SigSet::thread_get_mask().unwrap()).join().unwrap();
        for signal in [NixSignal::SIGUSR1, NixSignal::SIGHUP, NixSignal::SIGUSR2] {
            assert!(mask.contains(signal), "{signal}");
        }
        assert!(!mask.contains(NixSignal::SIGTERM));
    }
}
