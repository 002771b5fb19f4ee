//! How the server starts: where it listens, what it prints, and how it says that it cannot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Client, EXECUTABLE, PATIENCE, Server, outcome, poll, shell, skip};

#[test]
fn an_address_in_use_takes_one_line() {
    let first = Server::start(&["echo"]);
    let address = &first.addresses[0];
    assert_refused(address, &format!("epoll-server: cannot listen on {address}: Address already in use"));
    // The first one has noticed nothing.
    expect_echo(Client::from_tcp(TcpStream::connect(address).unwrap()));
}

#[test]
fn an_address_of_another_machine_takes_one_line() {
    // RFC 5737: an address nobody has.
    assert_refused(
        "192.0.2.1:80",
        "epoll-server: cannot listen on 192.0.2.1:80: Cannot assign requested address",
    );
}

#[test]
fn a_privileged_port_takes_one_line() {
    if TcpStream::connect("127.0.0.1:1").is_ok() || std::net::TcpListener::bind("127.0.0.1:1").is_ok() {
        return skip("this user may listen on port 1, or somebody does");
    }
    assert_refused("127.0.0.1:1", "epoll-server: cannot listen on 127.0.0.1:1: Permission denied");
}

#[test]
fn an_address_that_is_none_is_an_error_of_the_command_line() {
    for address in ["nonsense", "8080", "*:8080", "127.0.0.1", "127.0.0.1:99999", "unix:", "::1:80:x", ""] {
        let (code, output, errors) = outcome(&["echo", "--listen", "127.0.0.1:0", "--listen", address]);
        assert_eq!((code, output.as_str()), (2, ""), "{errors}");
        let start = format!("error: invalid value '{address}' for '--listen <ADDR>': ");
        assert!(errors.starts_with(&start), "{errors}");
    }
}

#[test]
fn a_name_that_nobody_has_takes_one_line() {
    // RFC 6761 section 6.4.
    assert_refused("nobody.invalid:80", "epoll-server: address \"nobody.invalid:80\": ");
}

#[test]
fn a_unix_path_that_cannot_be_takes_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let missing = format!("unix:{}/missing/socket", directory.path().display());
    assert_refused(&missing, &format!("epoll-server: cannot listen on {missing}: No such file or directory"));
    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let taken = format!("unix:{}", file.display());
    assert_refused(&taken, &format!("epoll-server: cannot listen on {taken}: Address already in use"));
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

/// Exit code 1, nothing on standard output, and as the last line of standard error one that begins with `line`;
/// those before it are the log's.
#[track_caller]
fn assert_refused(address: &str, line: &str) {
    let (code, output, errors) = outcome(&["echo", "--listen", "127.0.0.1:0", "--listen", address]);
    assert_eq!((code, output.as_str()), (1, ""), "{errors}");
    // Before it there may be the log's word on the limit of open files, and nothing else.
    let lines: Vec<&str> = errors.lines().filter(|line| !line.contains(" open files: ")).collect();
    assert!(matches!(&lines[..], [only] if only.starts_with(line)), "{errors}");
}

#[test]
fn it_listens_on_all_addresses_it_is_given() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut command = Command::new(EXECUTABLE);
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "localhost:0",
        "broadcast",
        "--listen",
        "127.0.0.1:0",
    ]);
    command.arg("--listen").arg(format!("unix:{}", path.display()));
    let mut server = Server::run(command, 4);
    let addresses = server.addresses.clone();
    assert_ne!(addresses[0], addresses[2]);
    assert!(addresses.iter().all(|address| !address.ends_with(":0")), "{addresses:?}");
    assert_eq!(addresses[3], format!("unix:{}", path.display()));

    let mut clients = Vec::new();
    for (index, address) in addresses[..3].iter().enumerate() {
        let client = Client::from_tcp(TcpStream::connect(address).unwrap());
        server.joined(index + 1, &client);
        clients.push(client);
    }
    let mut unix = connect_unix(&path);
    server.logged("Client_4 connected from unix:");
    unix.send("to all\n");
    for client in &mut clients {
        assert_eq!(client.line(), b"[Client_4] to all\n");
    }
    clients[1].send("back\n");
    assert_eq!(unix.line(), b"[Client_2] back\n");
}

#[test]
fn it_listens_on_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return skip("this system has no IPv6");
    }
    let mut command = Command::new(EXECUTABLE);
    command.args(["echo", "--listen", "[::1]:0", "--listen", "[::]:0"]);
    let server = Server::run(command, 2);
    assert!(server.addresses[0].starts_with("[::1]:"), "{:?}", server.addresses);
    expect_echo(Client::from_tcp(TcpStream::connect(&server.addresses[0]).unwrap()));
    let port = server.addresses[1].strip_prefix("[::]:").unwrap();
    for host in ["[::1]", "127.0.0.1"] {
        expect_echo(Client::from_tcp(TcpStream::connect(format!("{host}:{port}")).unwrap()));
    }
}

#[test]
fn the_file_of_a_unix_socket_goes_with_the_server_and_a_stale_one_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let start = || {
        let mut command = Command::new(EXECUTABLE);
        command.arg("echo").arg("--listen").arg(format!("unix:{}", path.display()));
        Server::run(command, 1)
    };
    // Dropping a listener leaves its file, as a crash does.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = start();
    expect_echo(connect_unix(&path));
    assert_eq!(server.stop().code, Some(0));
    assert!(!path.exists());

    let killed = start();
    killed.signal("KILL");
    assert_eq!(killed.wait().code, None);
    assert!(path.exists());
    let server = start();
    expect_echo(connect_unix(&path));
    assert_eq!(server.stop().code, Some(0));
    assert!(!path.exists());
}

#[test]
fn no_file_is_left_by_a_server_that_could_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let address = format!("unix:{}", path.display());
    let (code, output, _) = outcome(&["--listen", &address, "--listen", "192.0.2.1:80"]);
    assert_eq!((code, output.as_str()), (1, ""));
    assert!(!path.exists());
}

#[test]
fn standard_output_that_takes_nothing_does_not_matter() {
    // A pipe that nobody reads any more.
    let mut command = Command::new(EXECUTABLE);
    command.args(["echo", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let closed_pipe = {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer);
        Server::spawn(command)
    };
    let mut full = shell("exec >/dev/full", &["echo", "--listen", "127.0.0.1:0"]);
    full.stderr(Stdio::piped());
    for (mut server, error) in [(closed_pipe, "Broken pipe"), (Server::spawn(full), "No space left")] {
        let warning = server.logged("which standard output did not take");
        assert!(warning.contains(error), "{warning}");
        let (_, behind) = warning.split_once("listening on ").unwrap();
        let (address, _) = behind.split_once(',').unwrap();
        expect_echo(Client::from_tcp(TcpStream::connect(address).unwrap()));
        assert_eq!(server.stop().code, Some(0));
    }
}

#[test]
fn closed_standard_streams_do_not_matter() {
    for closed in ["exec >&-", "exec 2>&-", "exec <&- >&- 2>&-", "exec >/dev/full 2>/dev/full"] {
        for log_filter in ["info", "a=b=c"] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let mut command = shell(closed, &["broadcast", "--line-limit", "3", "--listen"]);
            command.arg(format!("unix:{}", path.display())).env("RUST_LOG", log_filter);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let server = Server::spawn(command);
            // Nothing it prints comes here.
            poll("its socket", || UnixStream::connect(&path).ok());
            // Something to log.
            let mut client = connect_unix(&path);
            client.send("too long\n");
            assert_eq!(client.rest(), b"[Server] disconnected: line longer than 3 bytes\n", "{closed}");
            drop(client);
            assert_eq!(server.stop().code, Some(0), "{closed}");
        }
    }
}

#[test]
fn the_limit_on_open_files_is_raised() {
    let mut server = Server::start_after("ulimit -S -n 20", &["echo"]);
    let line = server.logged("open files: limit raised from 20 to ");
    let (_, limit) = line.rsplit_once(' ').unwrap();
    if limit.parse::<usize>().unwrap() < 60 {
        return skip("a hard limit of less than 60 open files");
    }
    let mut clients: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("x");
        assert_eq!(client.exactly(1), b"x");
    }
}

#[test]
fn more_connections_than_files_may_be_open_are_warned_of() {
    let start =
        |connections| Server::start_after("ulimit -n 64", &["echo", "--max-connections", connections]);
    start("1000").logged("WARN  epoll_server] open files: the limit of 64 is less than the 1016 that --max-connections 1000 needs");
    let ended = start("48").stop();
    assert!(ended.log.contains("open files") && !ended.log.contains("WARN"), "{}", ended.log);
}

#[test]
fn what_the_log_tells_is_up_to_rust_log() {
    for (filter, told) in [("error", false), ("debug", true)] {
        let mut command = Command::new(EXECUTABLE);
        command.args(["echo", "--listen", "192.0.2.1:80"]).env("RUST_LOG", filter).stderr(Stdio::piped());
        let ended = Server::spawn(command).wait();
        assert_eq!(ended.log.contains("open files"), told, "{}", ended.log);
    }
}

#[test]
fn the_help_names_every_flag_with_its_default_and_every_exit_code() {
    let common = [
        ("--listen", "127.0.0.1:8080"),
        ("--max-connections", "100000"),
        ("--idle-timeout", "never"),
        ("--write-timeout", "30s"),
        ("--memory-limit", "256MiB"),
        ("--grace", "10s"),
        ("--help", ""),
    ];
    let broadcast =
        [("--line-limit", "64KiB"), ("--receiver-limit", "1MiB"), ("--slow-receivers", "disconnect")];
    let http = [
        ("--root", "DIR"),
        ("--list", ""),
        ("--access-log", "FILE"),
        ("--max-connections-per-client", "4096"),
        ("--max-requests", "100000"),
        ("--head-limit", "16KiB"),
        ("--target-limit", "8KiB"),
        ("--header-count", "100"),
        ("--body-limit", "1MiB"),
        ("--header-timeout", "10s"),
        ("--body-timeout", "20s"),
        ("--body-rate", "500"),
        ("--keep-alive-timeout", "1m"),
        ("--blocking-threads", "4"),
    ];
    let general = [("broadcast", ""), ("echo", ""), ("http", ""), ("--version", "")];
    for help in ["--help", "-h"] {
        assert_help(&[help], &[common.as_slice(), &general].concat());
        assert_help(&["broadcast", help], &[common.as_slice(), &broadcast].concat());
        assert_help(&["echo", help], &common);
        assert_help(&["http", help], &[common.as_slice(), &http].concat());
    }
    for arguments in [&["--help"][..], &["broadcast", "--help"], &["echo", "--help"], &["http", "--help"]] {
        assert_help(arguments, &[("Signals:", "SIGINT"), ("Signals:", "SIGTERM"), ("Signals:", "SIGHUP")]);
    }
    assert_help(&["http", "--help"], &[("Files (--root):\n", ""), ("Without --root:", "/live")]);
    assert_help(
        &["--help"],
        &[
            ("Each protocol has its own flags", "epoll-server http --help"),
            ("Exit codes:", "0"),
            ("  1", ""),
            ("  2", ""),
            ("  3", ""),
            ("RUST_LOG", "info"),
            ("SIGHUP", "--access-log"),
        ],
    );
    // What the server's flags are for does not matter to these.
    for help in ["--help", "-h"] {
        for (command, names) in [("top", "--admin, --help"), ("trace", "--help")] {
            let (_, output, _) = outcome(&[command, help]);
            let lines = output.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
            let flags: Vec<_> =
                lines.filter_map(|line| line.split([' ', ',']).find(|word| word.starts_with("--"))).collect();
            assert_eq!(flags.join(", "), names, "{output}");
        }
    }
    let (code, output, _) = outcome(&["--version"]);
    assert_eq!((code, output), (0, format!("epoll-server {}", env!("CARGO_PKG_VERSION"))));
}

/// Each name is in the help, and behind it, before the next flag, what goes with it.
#[track_caller]
fn assert_help(arguments: &[&str], names: &[(&str, &str)]) {
    let (code, output, errors) = outcome(arguments);
    assert_eq!((code, errors.as_str()), (0, ""), "{arguments:?}");
    for (name, default) in names {
        // Where it is explained, and not where another flag's text has it.
        let explained = |end| output.find(&format!("  {name}{end}"));
        let at = explained(' ').or_else(|| explained('\n')).or_else(|| output.find(name));
        let at = at.unwrap_or_else(|| panic!("{arguments:?}: no {name} in\n{output}"));
        let text = output[at..].split("\n      --").next().unwrap();
        assert!(text.contains(default), "{arguments:?}: {name} without {default} in\n{text}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused() {
    let rows: [(&[&str], &str); 6] = [
        (&["--bogus"], "--bogus"),
        (&["echo", "--bogus"], "--bogus"),
        (&["shout"], "shout"),
        (&["--grace", "ten"], "--grace"),
        (&["--memory-limit", "1KiB"], "--memory-limit"),
        (&["--listen"], "--listen"),
    ];
    for (arguments, named) in rows {
        let (code, output, errors) = outcome(arguments);
        assert_eq!((code, output.as_str()), (2, ""), "{arguments:?}: {errors}");
        assert!(errors.lines().next().is_some_and(|line| line.contains(named)), "{arguments:?}: {errors}");
    }
}

fn connect_unix(path: &Path) -> Client<UnixStream> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client::new(stream)
}

#[track_caller]
fn expect_echo<S: std::io::Read + std::io::Write>(mut client: Client<S>) {
    client.send("echo?");
    assert_eq!(client.exactly(5), b"echo?");
}

/// Whoever started it may have left a pipe that nobody reads any more.
#[test]
fn output_and_log_that_nobody_reads_do_not_hold_it_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (reader, mut full) = std::io::pipe().unwrap();
    // pipe(7): as much as one holds.
    full.write_all(&[b'x'; 65_536]).unwrap();
    let mut command = Command::new(EXECUTABLE);
    command.args(["echo", "--listen"]).arg(format!("unix:{}", path.display())).env("RUST_LOG", "debug");
    let mut server = Unread(command.stdout(full.try_clone().unwrap()).stderr(full).spawn().unwrap());
    poll("it to listen", || UnixStream::connect(&path).ok());
    // Two lines each: more than the log keeps waiting.
    for _ in 0..3000 {
        expect_echo(connect_unix(&path));
    }
    let kill = Command::new("kill").arg(server.0.id().to_string()).status().unwrap();
    assert!(kill.success());
    let status = poll("it to end", || server.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    drop(reader);
}

struct Unread(std::process::Child);

impl Drop for Unread {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
