//! Several listening sockets for one address, one for each loop, and which of them a connection goes to.

use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::listen::listen;
use super::socket::local_address;
use crate::{Address, Errno, ListenOptions};

pub(super) fn listen_group(
    address: &Address,
    options: &ListenOptions,
    count: usize,
) -> Result<Vec<OwnedFd>, Errno> {
    let alone = ListenOptions { reuse_port: false, ..options.clone() };
    let first = listen(address, &alone)?;
    let mut group = Vec::with_capacity(count.max(1));
    if matches!(address, Address::Unix(_)) {
        for _ in 1..count {
            group
                .push(first.try_clone().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?);
        }
    } else if count > 1 {
        // Not before it listens: with SO_REUSEADDR two processes may bind at the same moment, and the one that listens
        // first has it; unless both have this option, then both would.
        setsockopt(&first, sockopt::ReusePort, &true)?;
        let bound = local_address(&first)?;
        let joining = ListenOptions { reuse_port: true, ..options.clone() };
        for _ in 1..count {
            group.push(listen(&bound, &joining)?);
        }
    }
    group.insert(0, first);
    Ok(group)
}

pub(super) fn steer_by_cpu(listener: &OwnedFd, cpus: &[usize]) -> Result<(), Errno> {
    let mut program = by_cpu(cpus)?;
    let length = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    // The kernel copies the program, and `program` lives until it has.
    setsockopt(
        listener,
        sockopt::AttachReusePortCbpf,
        &libc::sock_fprog { len: length, filter: program.as_mut_ptr() },
    )
}

/// What the kernel takes for a number of no socket, and chooses as if there were no program.
const NO_CHOICE: u32 = u32::MAX;

/// A program of classic BPF that answers with the place in `cpus` of the CPU it runs on. Jumps reach 255 instructions, so
/// each comparison has its answer behind it.
fn by_cpu(cpus: &[usize]) -> Result<Vec<libc::sock_filter>, Errno> {
    // linux/filter.h: negative offsets are about the packet and the machine, not its bytes.
    const LOAD_CPU: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_CPU).cast_unsigned();
    let answer = |value| instruction(libc::BPF_RET | libc::BPF_K, 0, value);
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, LOAD_CPU)];
    for (place, cpu) in (0..).zip(cpus) {
        let cpu = u32::try_from(*cpu).map_err(|_| Errno::EINVAL)?;
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, cpu));
        program.push(answer(place));
    }
    program.push(answer(NO_CHOICE));
    Ok(program)
}

/// `skip` is how many instructions a comparison that does not hold leaves out.
fn instruction(code: u32, skip: u8, value: u32) -> libc::sock_filter {
    // The codes of linux/bpf_common.h are all below 256.
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: skip, k: value }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::getsockopt;

    use super::super::Linux;
    use super::super::testing::loopback;
    use super::*;
    use crate::{Events, Interest, Kernel, allowed_cpus, pin_to_cpu};

    /// How many connections wait in the queue of each.
    fn queued(group: &[OwnedFd]) -> Vec<usize> {
        let linux = Linux::new().unwrap();
        let count = |listener| std::iter::from_fn(|| linux.accept(listener).ok()).count();
        group.iter().map(count).collect()
    }

    /// Connects `count` times; on this machine the server's side is there when the client's is.
    fn connect(address: &Address, count: usize) -> Vec<std::net::TcpStream> {
        let address = address.as_tcp().unwrap();
        (0..count).map(|_| std::net::TcpStream::connect(address).unwrap()).collect()
    }

    #[test]
    fn each_socket_of_a_group_gets_connections_and_nobody_else_the_address() {
        let linux = Linux::new().unwrap();
        let options = ListenOptions { keepalive: Some(Duration::from_secs(42)), ..ListenOptions::default() };
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let address = Address::Tcp(address.parse().unwrap());
            let group = match Linux::listen_group(&address, &options, 3) {
                Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => continue, // A system without IPv6.
                group => group.unwrap(),
            };
            let bound = linux.local_address(&group[0]).unwrap();
            for listener in &group {
                assert_eq!(linux.local_address(listener).unwrap(), bound);
                assert_eq!(getsockopt(listener, sockopt::TcpKeepIdle), Ok(42));
            }
            let mut reach = bound.as_tcp().unwrap();
            if reach.ip().is_unspecified() {
                reach.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            }
            let clients = connect(&reach.into(), 96);
            let shares = queued(&group);
            assert_eq!(shares.iter().sum::<usize>(), clients.len(), "{bound}");
            assert!(shares.iter().all(|share| *share > 0), "{bound}: {shares:?}");
            for count in [1, 3] {
                let error = Linux::listen_group(&bound, &options, count).unwrap_err();
                assert_eq!(error, Errno::EADDRINUSE, "{bound}, {count} more");
            }
            assert_eq!(linux.listen(&bound, &options).unwrap_err(), Errno::EADDRINUSE, "{bound}");
            drop(group);
            Linux::listen_group(&bound, &options, 2).unwrap();
        }
    }

    #[test]
    fn a_group_of_one_shares_with_nobody() {
        let linux = Linux::new().unwrap();
        for count in [0, 1] {
            let group = Linux::listen_group(&loopback(), &ListenOptions::default(), count).unwrap();
            assert_eq!(group.len(), 1);
            let sharing = ListenOptions { reuse_port: true, ..ListenOptions::default() };
            let address = linux.local_address(&group[0]).unwrap();
            assert_eq!(linux.listen(&address, &sharing).unwrap_err(), Errno::EADDRINUSE);
        }
    }

    #[test]
    fn of_two_that_start_at_the_same_moment_one_has_the_address() {
        const ROUNDS: usize = 10_000;
        // Away from 127.0.0.1, so that no other test takes the port in between.
        let somewhere = Address::Tcp("127.0.0.5:0".parse().unwrap());
        let linux = Linux::new().unwrap();
        let listener = linux.listen(&somewhere, &ListenOptions::default()).unwrap();
        let address = linux.local_address(&listener).unwrap();
        drop(listener);
        let (begin, end) = (Barrier::new(2), Barrier::new(2));
        let start = || {
            let mut won = Vec::new();
            for _ in 0..ROUNDS {
                begin.wait();
                let group = Linux::listen_group(&address, &ListenOptions::default(), 2);
                end.wait();
                won.push(group.is_ok());
                drop(group);
            }
            won
        };
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(start);
            (start(), other.join().unwrap())
        });
        // None is possible: each finds the other's socket bound.
        let both = one.iter().zip(&other).filter(|(one, other)| **one && **other).count();
        assert_eq!(both, 0, "of {ROUNDS} times");
        assert!(one.contains(&true) || other.contains(&true));
    }

    #[test]
    fn a_unix_group_is_one_socket() {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("socket"));
        let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
        let mut group = Linux::listen_group(&address, &options, 3).unwrap();
        let linux = Linux::new().unwrap();
        for count in [1, 3] {
            assert_eq!(Linux::listen_group(&address, &options, count).unwrap_err(), Errno::EADDRINUSE);
        }
        assert_eq!(queued(&group), [2, 0, 0], "the two that asked");
        // As long as one descriptor is open, the socket is, and what waits there waits on.
        let _waiting = linux.connect(&address).unwrap();
        group.drain(..2);
        let _new = linux.connect(&address).unwrap();
        assert_eq!(queued(&group), [2]);
        drop(group);
        assert_eq!(linux.connect(&address).unwrap_err(), Errno::ECONNREFUSED);
    }

    #[test]
    fn a_client_wakes_one_of_the_loops_that_share_a_listener() {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("socket"));
        let group = Linux::listen_group(&address, &ListenOptions::default(), 4).unwrap();
        // A loop that does not wait yet is told as well, so it may take some tries until all of them do.
        let told: Vec<_> = (0..200).map(|_| told_of_a_client(&address, &group)).collect();
        assert!(told.contains(&1), "it is never one alone: {told:?}");
    }

    /// How many loops are told of a client that nobody accepts meanwhile.
    fn told_of_a_client(address: &Address, group: &[OwnedFd]) -> usize {
        const LISTENER: u64 = 1;
        let linux = Linux::new().unwrap();
        let end = linux.eventfd().unwrap();
        let waiting = Barrier::new(group.len() + 1);
        let (first, told) = std::sync::mpsc::channel();
        let run = |listener: &OwnedFd| {
            let linux = Linux::new().unwrap();
            linux.add(listener, Interest::SharedListener, LISTENER).unwrap();
            linux.add(&end, Interest::Readable, 2).unwrap();
            waiting.wait();
            let (mut told, mut ended) = (0, false);
            let mut events = Events::with_capacity(2);
            while !ended {
                linux.wait(&mut events, None).unwrap();
                for event in (0..events.len()).filter_map(|position| events.get(position)) {
                    if event.token == LISTENER {
                        told += 1;
                        first.send(()).unwrap();
                    } else {
                        ended = true;
                    }
                }
            }
            told
        };
        thread::scope(|scope| {
            let threads: Vec<_> = group.iter().map(|listener| scope.spawn(|| run(listener))).collect();
            waiting.wait();
            let _client = linux.connect(address).unwrap();
            told.recv_timeout(Duration::from_secs(5)).expect("nobody is told");
            // Whoever is to be told of the client has that beside this.
            Linux::notify(&end).unwrap();
            let told = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert_eq!(queued(group).iter().sum::<usize>(), 1);
            told
        })
    }

    #[test]
    fn a_connection_goes_to_the_socket_of_its_cpu() {
        let cpus = allowed_cpus().unwrap();
        let linux = Linux::new().unwrap();
        let group = Linux::listen_group(&loopback(), &ListenOptions::default(), cpus.len()).unwrap();
        let address = linux.local_address(&group[0]).unwrap();
        if let [only] = &cpus[..] {
            eprintln!("skipped: CPU {only} is all there is, so there is no group");
            return;
        }
        for (place, cpu) in cpus.iter().enumerate() {
            // Each time another one of the group, since the program is that of all.
            Linux::steer_by_cpu(&group[place], &cpus).unwrap();
            let clients = thread::scope(|scope| {
                let connect_there = || {
                    pin_to_cpu(*cpu).unwrap();
                    connect(&address, 20)
                };
                scope.spawn(connect_there).join().unwrap()
            });
            let mut expected = vec![0; cpus.len()];
            expected[place] = clients.len();
            // On loopback a segment is dealt with where it was sent.
            assert_eq!(queued(&group), expected, "from CPU {cpu}");
        }
        // Of CPUs that none is named for, and of places that there are not, it is as without.
        for elsewhere in [vec![], vec![4094], [vec![4094; group.len()], cpus.clone()].concat()] {
            Linux::steer_by_cpu(&group[0], &elsewhere).unwrap();
            let clients = connect(&address, 32 * group.len());
            let shares = queued(&group);
            assert_eq!(shares.iter().sum::<usize>(), clients.len());
            assert!(shares.iter().all(|share| *share > 0), "{elsewhere:?}: {shares:?}");
        }
        assert_eq!(Linux::steer_by_cpu(&group[0], &[0; 3000]), Err(Errno::EINVAL));
        assert_eq!(Linux::steer_by_cpu(&group[0], &[0; 70_000]), Err(Errno::EINVAL));
    }

    #[test]
    fn of_a_socket_that_is_closed_the_queue_is_lost_unless_the_kernel_may_hand_it_on() {
        const SETTING: &str = "/proc/sys/net/ipv4/tcp_migrate_req";
        let Ok(found) = fs::read_to_string(SETTING) else {
            eprintln!("skipped: no {SETTING}");
            return;
        };
        assert_queue_after_close(found.trim());
        // In a network of this thread's own, where the setting concerns nobody.
        let other = if found.trim() == "0" { "1" } else { "0" };
        let tested = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            if !up.is_ok_and(|status| status.success()) || fs::write(SETTING, other).is_err() {
                return Err(Errno::EPERM);
            }
            assert_queue_after_close(other);
            Ok(())
        });
        if let Err(errno) = tested.join().unwrap() {
            eprintln!("skipped with {SETTING} = {other}: {}", errno.desc());
        }
    }

    /// Queues connections, closes one socket of two, and counts what the clients are left with.
    fn assert_queue_after_close(setting: &str) {
        const CLIENTS: usize = 40;
        let linux = Linux::new().unwrap();
        let mut group = Linux::listen_group(&loopback(), &ListenOptions::default(), 2).unwrap();
        let address = linux.local_address(&group[0]).unwrap();
        let mut clients = connect(&address, CLIENTS);
        // Each says something, so that a reset shows in what it hears.
        for client in &mut clients {
            std::io::Write::write_all(client, b"x").unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        drop(group.pop());
        let mut servers = Vec::new();
        let all = if setting == "1" { CLIENTS } else { 0 };
        while let Ok((server, _)) = linux.accept(&group[0]) {
            linux.send(&server, b"y").unwrap();
            servers.push(server);
        }
        let served = servers.len();
        assert!(served > 0 && served >= all, "{served} of {CLIENTS} are served with {setting}");
        let mut heard = 0;
        for client in &mut clients {
            let mut byte = [0];
            match std::io::Read::read(client, &mut byte) {
                Ok(1) => heard += 1,
                other => assert_eq!(other.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
        assert_eq!(heard, served, "with {setting}");
        if setting == "0" {
            assert!(served < CLIENTS, "it was lost, they say");
        }
    }
}
