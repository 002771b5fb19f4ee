//! The servers that are measured: what builds and starts each, or why it is not there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Server, free_port, is_installed, output, root, target};

/// What a server serves. `name` is how it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Http,
    Files,
    Echo,
    Broadcast,
    /// Our own programs, with settings that a workload chooses: no server is beside them.
    Settings,
}

impl Service {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Http | Self::Files => "http",
            Self::Echo => "echo",
            Self::Broadcast => "broadcast",
            Self::Settings => "settings",
        }
    }
}

pub(super) const OURS: &str = "epoll-server";
pub(super) const FLOOR: &str = "floor (C)";
pub(super) const NGINX: &str = "nginx";

/// Servers in Rust, of the workspace benchmark/peers, which is not ours.
const PEERS: [(&str, Service); 8] = [
    ("hyper", Service::Http),
    ("axum", Service::Http),
    ("actix-web", Service::Http),
    ("ntex", Service::Http),
    ("may_minihttp", Service::Http),
    ("mio-http", Service::Http),
    ("tokio-echo", Service::Echo),
    ("tokio-broadcast", Service::Broadcast),
];

/// The same pattern everywhere, but never the same byte a few places away.
pub(super) fn content(size: usize) -> Vec<u8> {
    (0..size).map(|index| b'a' + (index % 23) as u8).collect()
}

/// Files that are served: names and sizes in bytes.
pub(super) const FILES: [(&str, usize); 3] =
    [("1KiB", 1024), ("100KiB", 100 * 1024), ("100MiB", 100 * 1024 * 1024)];

/// How it is started.
#[derive(Clone, Debug)]
enum Launch {
    /// `epoll-server`, which prints its port.
    Ours(PathBuf),
    /// A command to which the service and a port are added.
    Program(Vec<String>, Option<(&'static str, &'static str)>),
    Nginx,
    Redis,
}

/// A server that can be started.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) services: Vec<Service>,
    launch: Launch,
}

impl Entry {
    pub(super) fn is_redis(&self) -> bool {
        matches!(self.launch, Launch::Redis)
    }

    /// Starts it for one service by `command`, which may be a tool that runs it, and waits until it listens. `flags` are for
    /// `epoll-server`. `directory` has the files, and takes what it writes.
    pub(super) fn start(
        &self,
        service: Service,
        flags: &[&str],
        mut command: Command,
        directory: &Path,
    ) -> io::Result<Server> {
        let port = free_port()?;
        match &self.launch {
            Launch::Ours(binary) => {
                command.arg(binary).arg(service.name()).args(flags);
                if service == Service::Files {
                    command.arg("--root").arg(directory.join("www"));
                }
                return Server::start(&mut command);
            }
            Launch::Program(words, variable) => {
                command.args(words).args([service.name(), &port.to_string()]).envs(*variable);
            }
            Launch::Nginx => {
                let own = directory.join(format!("nginx-{port}"));
                fs::create_dir_all(&own)?;
                let template = fs::read_to_string(root().join("benchmark/nginx/nginx.conf.in"))?;
                let text = template
                    .replace("@PORT@", &port.to_string())
                    .replace("@DIR@", &own.display().to_string())
                    .replace("@ROOT@", &directory.join("www").display().to_string());
                fs::write(own.join("nginx.conf"), text)?;
                command.arg("nginx").arg("-e").arg(own.join("error.log"));
                command.arg("-p").arg(&own).arg("-c").arg(own.join("nginx.conf"));
            }
            Launch::Redis => {
                command.args(["redis-server", "--port", &port.to_string(), "--save", "", "--appendonly"]);
                command.args(["no", "--bind", "127.0.0.1"]);
            }
        }
        Server::start_listening(&mut command, port)
    }
}

/// Those that can be started for any of the services in `wanted`, and the others with the reason.
#[derive(Debug, Default)]
pub(super) struct Servers {
    wanted: Vec<Service>,
    pub(super) entries: Vec<Entry>,
    pub(super) absent: Vec<(String, String)>,
}

impl Servers {
    fn add(&mut self, name: &str, services: &[Service], launch: Result<Launch, String>) {
        if !services.iter().any(|service| self.wanted.contains(service)) {
            return;
        }
        match launch {
            Ok(launch) => {
                self.entries.push(Entry { name: name.to_owned(), services: services.to_vec(), launch });
            }
            Err(reason) => self.absent.push((name.to_owned(), reason)),
        }
    }
}

/// How servers are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// As they are measured.
    Release,
    /// Quickly, to see what they answer.
    Dev,
}

impl Profile {
    /// Its name for Cargo, and that of the directory it builds in.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Release => ("release", "release"),
            Self::Dev => ("dev", "debug"),
        }
    }
}

/// What is prepared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) services: &'a [Service],
    pub(super) profile: Profile,
    /// Only ours and the floor.
    pub(super) few: bool,
    /// A revision of ours.
    pub(super) against: Option<&'a str>,
}

/// Builds and looks for what is wanted.
pub(super) fn prepare(directory: &Path, wanted: &Wanted<'_>, progress: &dyn Fn(&str)) -> io::Result<Servers> {
    let mut servers = Servers { wanted: wanted.services.to_vec(), ..Servers::default() };
    let all = [Service::Http, Service::Files, Service::Echo, Service::Broadcast];
    progress("building epoll-server");
    servers.add(OURS, &all, Ok(Launch::Ours(build(wanted.profile, "epoll-server")?)));
    if let Some(revision) = wanted.against {
        progress(&format!("building epoll-server of {revision}"));
        let binary = build_revision(directory, revision)?;
        servers.add(&format!("{OURS} {revision}"), &all, Ok(Launch::Ours(binary)));
    }
    progress("building the floor");
    for service in [Service::Http, Service::Echo, Service::Broadcast] {
        if wanted.services.contains(&service) {
            servers.add(FLOOR, &[service], build_floor(directory, service));
        }
    }
    if wanted.few {
        return Ok(servers);
    }
    let peers: Vec<_> = PEERS.into_iter().filter(|(_, service)| wanted.services.contains(service)).collect();
    if !peers.is_empty() {
        progress("building benchmark/peers, which takes minutes the first time");
        build_peers(&mut servers, wanted.profile, &peers)?;
    }
    let script = |path: &str, program: &str| {
        let words = vec![program.to_owned(), root().join(path).display().to_string()];
        let installed = is_installed(program, "--version").then_some(Launch::Program(words, None));
        installed.ok_or_else(|| format!("{program} is not installed"))
    };
    let three = [Service::Http, Service::Echo, Service::Broadcast];
    servers.add("node", &three, script("benchmark/node/server.js", "node"));
    servers.add("asyncio", &three, script("benchmark/python/server.py", "python3"));
    let uvloop = match script("benchmark/python/server.py", "python3") {
        Ok(Launch::Program(words, _)) if has_uvloop() => Ok(Launch::Program(words, Some(("UVLOOP", "1")))),
        Ok(_) => Err("uvloop is not installed".to_owned()),
        Err(reason) => Err(reason),
    };
    servers.add("uvloop", &three, uvloop);
    let nginx = is_installed("nginx", "-v").then_some(Launch::Nginx);
    let nginx = nginx.ok_or_else(|| "nginx is not installed".to_owned());
    servers.add(NGINX, &[Service::Http, Service::Files], nginx);
    let redis = is_installed("redis-server", "--version").then_some(Launch::Redis);
    servers.add(
        "redis",
        &[Service::Broadcast],
        redis.ok_or_else(|| "redis-server is not installed".to_owned()),
    );
    Ok(servers)
}

fn has_uvloop() -> bool {
    let mut python = Command::new("python3");
    python.args(["-c", "import uvloop"]).stderr(std::process::Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

fn build_floor(directory: &Path, service: Service) -> Result<Launch, String> {
    let path = format!("benchmark/floor/{}.c", service.name());
    let (source, binary) = (root().join(&path), directory.join(format!("floor-{}", service.name())));
    if !is_installed("cc", "--version") {
        return Err("cc is not installed".to_owned());
    }
    output(Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&binary).arg(source))
        .map_err(|error| format!("{path}: {error}"))?;
    Ok(Launch::Program(vec![binary.display().to_string()], None))
}

/// Builds a program of this workspace; its path.
pub(super) fn build(profile: Profile, package: &str) -> io::Result<PathBuf> {
    let (name, directory) = profile.names();
    let builds = target()?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args(["build", "--quiet", "--profile", name, "--package", package]);
    // Also where a configuration says otherwise.
    output(cargo.arg("--target-dir").arg(&builds))?;
    Ok(builds.join(directory).join(package))
}

fn build_peers(servers: &mut Servers, profile: Profile, peers: &[(&str, Service)]) -> io::Result<()> {
    let builds = target()?.join("bench-peers");
    let (name, directory) = profile.names();
    let binary = |peer: &str| builds.join(directory).join(peer);
    // What an earlier build has left would be measured in the place of one that fails now. Cargo puts it back for nothing.
    for (peer, _) in peers {
        match fs::remove_file(binary(peer)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--profile", name, "--locked", "--keep-going", "--quiet", "--manifest-path"]);
    cargo.arg(root().join("benchmark/peers/Cargo.toml"));
    // Those that can be built are measured. Why one cannot be, Cargo has told.
    let _: io::Result<String> = output(cargo.arg("--target-dir").arg(&builds));
    for (peer, service) in peers {
        let path = binary(peer);
        let launch = if path.exists() {
            Ok(Launch::Program(vec![path.display().to_string()], None))
        } else {
            Err("benchmark/peers does not build it".to_owned())
        };
        servers.add(peer, &[*service], launch);
    }
    Ok(())
}

/// Builds `epoll-server` as it was, from a worktree of its own.
fn build_revision(directory: &Path, revision: &str) -> io::Result<PathBuf> {
    let git = |arguments: &[&str]| output(Command::new("git").current_dir(root()).args(arguments));
    let commit =
        git(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{revision}^{{commit}}")])
            .map_err(|_| io::Error::other(format!("there is no revision {revision:?}")))?;
    let tree = directory.join("against");
    let tree_name = tree.display().to_string();
    // What an interrupted run has left, of which Git may know or not.
    match fs::remove_dir_all(&tree) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    git(&["worktree", "prune"])?;
    git(&["worktree", "add", "--quiet", "--detach", &tree_name, commit.trim()])?;
    let builds = directory.join("against-target");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(&tree).env("CARGO_TARGET_DIR", &builds);
    let built = output(cargo.args(["build", "--release", "--quiet", "-p", "epoll-server"]));
    git(&["worktree", "remove", "--force", &tree_name])?;
    built.map(|_| builds.join("release/epoll-server"))
}

/// Writes the files that are served.
pub(super) fn write_files(directory: &Path) -> io::Result<()> {
    let www = directory.join("www");
    fs::create_dir_all(&www)?;
    for (name, size) in FILES {
        let file = www.join(name);
        let content = content(size);
        // What is there already is in the page cache.
        if fs::read(&file).ok().is_none_or(|found| found != content) {
            fs::write(file, content)?;
        }
    }
    Ok(())
}

/// What may be installed, by the packages of Debian.
const PACKAGES: [(&str, &str, &str); 7] = [
    ("wrk", "--version", "wrk"),
    ("valgrind", "--version", "valgrind"),
    ("strace", "--version", "strace"),
    ("nginx", "-v", "nginx-light"),
    ("redis-server", "--version", "redis-server"),
    ("node", "--version", "nodejs"),
    ("python3", "--version", "python3"),
];

/// Installs what is not there. What cannot be installed is skipped later; why comes from apt-get or pip.
pub(super) fn install(progress: &dyn Fn(&str)) {
    let missing = PACKAGES.iter().filter(|(program, argument, _)| !is_installed(program, argument));
    let missing: Vec<&str> = missing.map(|(.., package)| *package).collect();
    if !missing.is_empty() {
        progress("apt-get update");
        // What is known already may do.
        let _: io::Result<String> = output(Command::new("apt-get").arg("update"));
    }
    for package in missing {
        progress(&format!("installing {package}"));
        let mut apt = Command::new("apt-get");
        let _: io::Result<String> =
            output(apt.args(["install", "--yes", "--no-install-recommends", package]));
    }
    if !has_uvloop() {
        progress("installing uvloop");
        let mut python = Command::new("python3");
        python.args(["-m", "pip", "install", "--quiet", "--requirement"]);
        python.arg(root().join("benchmark/python/requirements.txt"));
        // Where a distribution asks for a word before anything is installed beside its packages: --install is that.
        python.env("PIP_BREAK_SYSTEM_PACKAGES", "1");
        let _: io::Result<String> = output(&mut python);
    }
}
