//! Running out of descriptors. In a program of its own with one test, since the limit is the whole process's.
#![allow(clippy::unwrap_used, reason = "in a test a panic is how a failure is told")]

use std::time::Duration;

use epoll_sys::{Address, Errno, Events, Interest, Kernel, Linux, ListenOptions, raise_open_file_limit};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[test]
fn without_descriptors_connections_stay_and_no_edge_tells_of_them() {
    let linux = Linux::new().unwrap();
    let anywhere = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let listener = linux.listen(&anywhere, &ListenOptions::default()).unwrap();
    let idle = linux.listen(&anywhere, &ListenOptions::default()).unwrap();
    let address = linux.local_address(&listener).unwrap();
    linux.add(&listener, Interest::Readable, 1).unwrap();
    let clients = [linux.connect(&address).unwrap(), linux.connect(&address).unwrap()];
    let mut events = Events::with_capacity(4);
    linux.wait(&mut events, Some(Duration::from_secs(5))).unwrap();
    assert_eq!(events.len(), 1);

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // No number below this is left, whatever the test harness has open.
    let spare = linux.eventfd().unwrap();
    let full = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&spare)).unwrap();
    drop(spare);
    setrlimit(Resource::RLIMIT_NOFILE, full, hard).unwrap();
    assert_eq!(linux.accept(&listener).unwrap_err(), Errno::EMFILE);
    assert_eq!(linux.accept(&idle).unwrap_err(), Errno::EMFILE, "although nothing is pending");
    assert_eq!(linux.connect(&address).unwrap_err(), Errno::EMFILE);
    assert_eq!(linux.eventfd().unwrap_err(), Errno::EMFILE);
    assert_eq!(Linux::new().unwrap_err(), Errno::EMFILE);
    linux.wait(&mut events, Some(Duration::from_millis(20))).unwrap();
    assert!(events.is_empty(), "the connections wait, and epoll is silent");

    let limit = raise_open_file_limit().unwrap();
    assert_eq!((limit.before, limit.now), (full, hard));
    assert!(limit.now >= soft);
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    let again = raise_open_file_limit().unwrap();
    assert_eq!((again.before, again.now), (hard, hard));
    for _ in &clients {
        linux.accept(&listener).unwrap();
    }
    assert_eq!(linux.accept(&listener).unwrap_err(), Errno::EAGAIN);
}
