//! Static files beside nginx: the same files, in turns, each server alone on one core.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::{load, median, pinned, with_spread};
use crate::process::{Server, free_port, is_installed, target};

/// Names, sizes in bytes, and how many connections ask for each.
const FILES: [(&str, usize, u32); 3] =
    [("1KiB", 1024, 64), ("100KiB", 100 * 1024, 64), ("100MiB", 100 * 1024 * 1024, 4)];

pub(super) fn compare(server: &Path, rounds: usize, seconds: u32, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Static files: wrk -t1 -d{seconds}; server on core 0, wrk on core 1")?;
    for (program, argument) in [("nginx", "-v"), ("wrk", "--version"), ("taskset", "--version")] {
        if !is_installed(program, argument) {
            return writeln!(out, "  skipped: {program} is not installed\n");
        }
    }
    let directory = target()?.join("bench-files");
    let root = directory.join("www");
    fs::create_dir_all(&root)?;
    for (name, size, _) in FILES {
        fs::write(root.join(name), vec![b'x'; size])?;
    }
    let ours = Server::start(pinned(0).arg(server).args(["http", "--root"]).arg(&root))?;
    let nginx = start_nginx(&directory, &root)?;
    writeln!(
        out,
        "  {:<8}{:>16}{:>16}{:>16}  ratio",
        "file", "epoll-server µs", "nginx µs", "epoll-server/s"
    )?;
    for (name, _, connections) in FILES {
        let (mut of_ours, mut of_nginx, mut ratios, mut rate) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (one, other) =
                (load(&ours, name, connections, seconds)?, load(&nginx, name, connections, seconds)?);
            of_ours.push(one.total());
            of_nginx.push(other.total());
            ratios.push(one.total() / other.total());
            rate.push(one.requests_per_second);
        }
        writeln!(
            out,
            "  {name:<8}{:>16.2}{:>16.2}{:>16.0}  {}",
            median(of_ours),
            median(of_nginx),
            median(rate),
            with_spread(&ratios)
        )?;
    }
    writeln!(out)
}

/// One worker without a master, so that all its CPU time is one process's.
fn start_nginx(directory: &Path, root: &Path) -> io::Result<Server> {
    let port = free_port()?;
    let configuration = directory.join("nginx.conf");
    let (prefix, root) = (directory.display(), root.display());
    fs::write(
        &configuration,
        format!(
            "daemon off; master_process off; worker_processes 1; pid {prefix}/nginx.pid; error_log {prefix}/error.log;
            events {{ worker_connections 1024; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; etag on;
                client_body_temp_path {prefix}/body; proxy_temp_path {prefix}/proxy; fastcgi_temp_path {prefix}/fastcgi;
                uwsgi_temp_path {prefix}/uwsgi; scgi_temp_path {prefix}/scgi;
                server {{ listen 127.0.0.1:{port}; root {root}; }}
            }}"
        ),
    )?;
    let mut command = pinned(0);
    command
        .args(["nginx", "-e"])
        .arg(directory.join("error.log"))
        .arg("-p")
        .arg(directory)
        .arg("-c")
        .arg(&configuration);
    Server::start_listening(&mut command, port)
}
