//! The servers that are measured: what builds and starts each, or why it is not there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Server, build_server, free_port, guarded, is_installed, output, root, target};

/// What a server serves. `name` is how it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Http,
    Files,
    Echo,
    Broadcast,
}

impl Service {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Http | Self::Files => "http",
            Self::Echo => "echo",
            Self::Broadcast => "broadcast",
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
    /// `epoll-server`.
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

/// Those that can be started, and the others with the reason.
#[derive(Debug, Default)]
pub(super) struct Servers {
    pub(super) entries: Vec<Entry>,
    pub(super) absent: Vec<(String, String)>,
}

impl Servers {
    fn add(&mut self, name: &str, services: &[Service], launch: Result<Launch, String>) {
        match launch {
            Ok(launch) => {
                self.entries.push(Entry { name: name.to_owned(), services: services.to_vec(), launch });
            }
            Err(reason) => self.absent.push((name.to_owned(), reason)),
        }
    }
}

/// Builds and looks for what the services in `wanted` need: only ours and the floor if `few`. `against` is a revision of ours.
pub(super) fn prepare(
    directory: &Path,
    wanted: &[Service],
    few: bool,
    against: Option<&str>,
    progress: &dyn Fn(&str),
) -> io::Result<Servers> {
    let mut servers = Servers::default();
    let all = [Service::Http, Service::Files, Service::Echo, Service::Broadcast];
    progress("building epoll-server");
    servers.add(OURS, &all, Ok(Launch::Ours(build_server()?)));
    if let Some(revision) = against {
        progress(&format!("building epoll-server of {revision}"));
        let binary = build_revision(directory, revision)?;
        servers.add(&format!("{OURS} {revision}"), &all, Ok(Launch::Ours(binary)));
    }
    progress("building the floor");
    for service in [Service::Http, Service::Echo, Service::Broadcast] {
        if wanted.contains(&service) {
            servers.add(FLOOR, &[service], build_floor(directory, service));
        }
    }
    if few {
        return Ok(servers);
    }
    let peers: Vec<_> = PEERS.into_iter().filter(|(_, service)| wanted.contains(service)).collect();
    if !peers.is_empty() {
        progress("building benchmark/peers");
        build_peers(&mut servers, &peers)?;
    }
    let script = |path: &str, program: &str| {
        let file = root().join(path);
        match (file.exists(), is_installed(program, "--version")) {
            (false, _) => Err(format!("{path} is not there")),
            (_, false) => Err(format!("{program} is not installed")),
            (true, true) => Ok(Launch::Program(vec![program.to_owned(), file.display().to_string()], None)),
        }
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
    let nginx = match (is_installed("nginx", "-v"), root().join("benchmark/nginx/nginx.conf.in").exists()) {
        (true, true) => Ok(Launch::Nginx),
        (false, _) => Err("nginx is not installed".to_owned()),
        (_, false) => Err("benchmark/nginx/nginx.conf.in is not there".to_owned()),
    };
    servers.add(NGINX, &[Service::Http, Service::Files], nginx);
    let redis = is_installed("redis-server", "--version").then_some(Launch::Redis);
    servers.add(
        "redis",
        &[Service::Broadcast],
        redis.ok_or_else(|| "redis-server is not installed".to_owned()),
    );
    servers.entries.retain(|entry| entry.services.iter().any(|service| wanted.contains(service)));
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
    if !source.exists() {
        return Err(format!("{path} is not there"));
    }
    output(Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&binary).arg(source))
        .map_err(|error| format!("{path}: {error}"))?;
    Ok(Launch::Program(vec![binary.display().to_string()], None))
}

fn build_peers(servers: &mut Servers, peers: &[(&str, Service)]) -> io::Result<()> {
    let manifest = root().join("benchmark/peers/Cargo.toml");
    let builds = target()?.join("bench-peers");
    let mut reason = "benchmark/peers is not there".to_owned();
    if manifest.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--release", "--keep-going", "--quiet", "--manifest-path"]).arg(&manifest);
        // Those that can be built are measured.
        let built = output(cargo.arg("--target-dir").arg(&builds));
        reason =
            built.map_or_else(|error| error.to_string(), |_| "benchmark/peers does not build it".to_owned());
    }
    for (name, service) in peers {
        let binary = builds.join("release").join(name);
        let there = manifest.exists() && binary.exists();
        let launch = if there {
            Ok(Launch::Program(vec![binary.display().to_string()], None))
        } else {
            Err(reason.clone())
        };
        servers.add(name, &[*service], launch);
    }
    Ok(())
}

/// Builds `epoll-server` as it was, from a worktree of its own.
fn build_revision(directory: &Path, revision: &str) -> io::Result<PathBuf> {
    let git = |arguments: &[&str]| output(Command::new("git").current_dir(root()).args(arguments));
    let commit = git(&["rev-parse", "--verify", "--end-of-options", &format!("{revision}^{{commit}}")])?;
    let tree = directory.join("against");
    let tree_name = tree.display().to_string();
    if tree.exists() {
        // What an interrupted run has left.
        git(&["worktree", "remove", "--force", &tree_name])?;
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
        if fs::metadata(&file).map(|status| status.len()).ok() != Some(size as u64) {
            fs::write(file, vec![b'x'; size])?;
        }
    }
    Ok(())
}

/// What may be installed, by the packages of Debian.
const PACKAGES: [(&str, &str, &str); 8] = [
    ("wrk", "--version", "wrk"),
    ("cc", "--version", "gcc"),
    ("valgrind", "--version", "valgrind"),
    ("strace", "--version", "strace"),
    ("nginx", "-v", "nginx-light"),
    ("redis-server", "--version", "redis-server"),
    ("node", "--version", "nodejs"),
    ("python3", "--version", "python3"),
];

/// Installs what is not there. What cannot be installed is skipped later, with the reason.
pub(super) fn install(progress: &dyn Fn(&str)) -> io::Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, argument, _)| !is_installed(program, argument))
        .map(|(.., package)| *package)
        .collect();
    if !missing.is_empty() {
        progress(&format!("installing {}", missing.join(", ")));
        output(Command::new("apt-get").arg("update"))?;
        let install = ["install", "--yes", "--no-install-recommends"];
        output(Command::new("apt-get").args(install).args(&missing))?;
    }
    if !has_uvloop() {
        progress("installing uvloop");
        let mut python = Command::new("python3");
        if output(python.args(["-m", "pip", "install", "--quiet", "uvloop"])).is_err() {
            progress("uvloop could not be installed");
        }
    }
    Ok(())
}

/// On the core that servers are measured on.
pub(super) fn pinned() -> Command {
    guarded(Some(0))
}
