//! Which CPUs a thread may run on: sched_setaffinity(2).

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::Errno;

/// The numbers of the CPUs that the calling thread may run on, in their order.
///
/// # Errors
/// `EINVAL`: the kernel counts more than 1024 of them.
pub fn allowed_cpus() -> Result<Vec<usize>, Errno> {
    let set = sched_getaffinity(THIS_THREAD)?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// Has the calling thread run on that CPU alone, and the threads it starts from now on.
///
/// # Errors
/// `EINVAL`: there is no such CPU, or the process may not use it.
pub fn pin_to_cpu(cpu: usize) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(THIS_THREAD, &set)
}

const THIS_THREAD: Pid = Pid::from_raw(0);

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_pinned_thread_has_one_cpu_and_so_have_those_it_starts() {
        let before = allowed_cpus().unwrap();
        assert!(!before.is_empty());
        let cpus = before.clone();
        thread::spawn(move || {
            for cpu in cpus {
                pin_to_cpu(cpu).unwrap();
                assert_eq!(allowed_cpus(), Ok(vec![cpu]));
                assert_eq!(thread::spawn(allowed_cpus).join().unwrap(), Ok(vec![cpu]));
            }
            for cpu in [1023, 1024, usize::MAX] {
                assert_eq!(pin_to_cpu(cpu), Err(Errno::EINVAL), "{cpu}");
            }
        })
        .join()
        .unwrap();
        assert_eq!(allowed_cpus(), Ok(before), "the others are where they were");
    }
}
