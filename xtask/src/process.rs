//! Programs that a measurement runs: built, started, looked at through /proc, and ended by id.

use std::io::{self, BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Runs a command to its end; its output if it succeeded.
pub(crate) fn output(command: &mut Command) -> io::Result<String> {
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| named(command, &error))?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{:?}: {}", command.get_program(), output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program can be started.
pub(crate) fn is_installed(program: &str, argument: &str) -> bool {
    let quiet = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok()
}

/// Where builds go, as Cargo has it.
pub(crate) fn target() -> io::Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Commands are run in other directories than this one.
        Some(directory) => std::path::absolute(directory),
        None => Ok(root().join("target")),
    }
}

/// A command that is killed when the thread that starts it ends, however that comes, and that runs on one core only: prctl(2),
/// `PR_SET_PDEATHSIG`, by setpriv(1); sched_setaffinity(2), by taskset(1). Both become the program, so its id is the child's.
pub(crate) fn guarded(core: Option<u32>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(core) = core {
        command.args(["taskset", "-c", &core.to_string()]);
    }
    command
}

/// The cores that a measurement runs on: those of the lowest numbers that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    pub(crate) server: u32,
    pub(crate) load: u32,
}

/// # Errors
/// There are not two.
pub(crate) fn cores() -> io::Result<Cores> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.and_then(|list| first_two(list.trim()))
        .ok_or_else(|| io::Error::other("it takes two cores, one for the server and one for the load"))
}

/// Of a list as `0-3,8`.
fn first_two(list: &str) -> Option<Cores> {
    let range = |range: &str| -> Option<std::ops::RangeInclusive<u32>> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    let mut cores = list.split(',').filter_map(range).flatten();
    Some(Cores { server: cores.next()?, load: cores.next()? })
}

/// A port that was free a moment ago, for programs that cannot choose one themselves.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A running server. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
}

/// CPU time of a process, of all its threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTime {
    /// In ticks of 10 ms.
    pub(crate) user: Duration,
    /// In ticks of 10 ms.
    pub(crate) system: Duration,
    /// Both, to the nanosecond.
    pub(crate) total: Duration,
}

impl Server {
    /// Starts `epoll-server` by `command`, which must end in its arguments but for the address, and reads the port.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        command.args(["--listen", "127.0.0.1:0"]).env("RUST_LOG", "warn").stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| named(command, &error))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        match port {
            Some(port) => Ok(Self { child, port }),
            None => {
                child.kill()?;
                child.wait()?;
                Err(io::Error::other(format!("no port in {line:?}")))
            }
        }
    }

    /// Starts a program that will listen on `port`, and waits until it does.
    pub(crate) fn start_listening(command: &mut Command, port: u16) -> io::Result<Self> {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| named(command, &error))?;
        let mut server = Self { child, port };
        let patience = Instant::now() + Duration::from_secs(15);
        // That somebody listens there is not enough: another program may have taken the port meanwhile.
        while TcpStream::connect(("127.0.0.1", port)).is_err() || !server.is_listening()? {
            if let Some(end) = server.end()? {
                return Err(io::Error::other(end));
            }
            if Instant::now() > patience {
                return Err(io::Error::other("it does not listen"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(server)
    }

    /// How it has ended, if it has.
    pub(crate) fn end(&mut self) -> io::Result<Option<String>> {
        Ok(self.child.try_wait()?.map(|status| format!("it has ended: {status}")))
    }

    /// Whether one of its own sockets is the listener of its port: proc(5), /proc/net/tcp and /proc/pid/fd.
    fn is_listening(&self) -> io::Result<bool> {
        let sockets = std::fs::read_to_string("/proc/net/tcp")?;
        let address = format!(":{:04X}", self.port);
        let listeners = sockets.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            match *fields.as_slice() {
                [_, local, _, "0A", _, _, _, _, _, inode, ..] if local.ends_with(&address) => {
                    Some(format!("socket:[{inode}]"))
                }
                _ => None,
            }
        });
        let listeners: Vec<String> = listeners.collect();
        // It may have ended, and then has none.
        let descriptors =
            std::fs::read_dir(format!("/proc/{}/fd", self.id())).into_iter().flatten().flatten();
        Ok(descriptors
            .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
            .any(|link| listeners.iter().any(|listener| link.as_os_str() == listener.as_str())))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time so far: proc(5), /proc/pid/stat, fields 14 and 15; and the first field of each thread's schedstat, as the
    /// kernel's documentation of scheduler statistics has it.
    pub(crate) fn cpu_time(&self) -> io::Result<CpuTime> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        // The second field is the program's name in parentheses, and may contain anything.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        // The first word behind it is field 3.
        let ticks = |field: usize| after_name.split_whitespace().nth(field - 3)?.parse::<u64>().ok();
        let mut total = Duration::ZERO;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let thread = thread?.path();
            match std::fs::read_to_string(thread.join("schedstat")) {
                Ok(text) => {
                    let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
                    total += nanoseconds
                        .map(Duration::from_nanos)
                        .ok_or_else(|| io::Error::other(format!("cannot read schedstat {text:?}")))?;
                }
                // A thread that has ended meanwhile.
                Err(_) if !thread.exists() => (),
                Err(error) => return Err(io::Error::new(error.kind(), format!("schedstat: {error}"))),
            }
        }
        match (ticks(14), ticks(15)) {
            // 100 ticks a second, as on every Linux that is not built for something special.
            (Some(user), Some(system)) => Ok(CpuTime {
                user: Duration::from_millis(user * 10),
                system: Duration::from_millis(system * 10),
                total,
            }),
            _ => Err(io::Error::other(format!("cannot read {stat:?}"))),
        }
    }

    /// Resident memory in bytes: proc(5), /proc/pid/status, `VmRSS`.
    pub(crate) fn resident(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        status
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
            })
            .map(|kibibytes| kibibytes * 1024)
            .ok_or_else(|| io::Error::other("no VmRSS"))
    }

    /// Asks it to drain and waits for its end, which may take a minute under valgrind.
    pub(crate) fn terminate(mut self) -> io::Result<()> {
        output(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let patience = Instant::now() + Duration::from_secs(60);
        while self.end()?.is_none() {
            if Instant::now() > patience {
                return Err(io::Error::other("it does not end at SIGTERM"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _: io::Result<()> = self.child.kill();
        let _: io::Result<std::process::ExitStatus> = self.child.wait();
    }
}

fn named(command: &Command, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", command.get_program().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_who_listens_and_not_whoever_has_its_port() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let mut deaf = Command::new("sleep");
        let taken = Server::start_listening(deaf.arg("0.1"), port).unwrap_err();
        assert!(taken.to_string().contains("it has ended"), "{taken}");
    }

    #[test]
    fn the_first_two_cores_of_a_list() {
        let some = |server, load| Some(Cores { server, load });
        assert_eq!(first_two("0-3,8"), some(0, 1));
        assert_eq!(first_two("2,5-6"), some(2, 5));
        assert_eq!((first_two("7"), first_two(""), first_two("x")), (None, None, None));
    }

    #[test]
    fn a_guarded_program_ends_with_whoever_started_it() {
        let starter = std::thread::spawn(|| {
            let mut command = guarded(None);
            command.args(["sh", "-c", "echo up; exec sleep 60"]).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            // What runs is the program, not what has started it.
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "up\n");
            child
        });
        let mut child = starter.join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    }
}
