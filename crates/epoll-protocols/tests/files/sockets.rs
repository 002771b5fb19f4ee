//! Files on real sockets: what the codec cannot show, since there the output reads them itself.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use epoll_protocols::http1::{Files, Http, HttpConfig, HttpMessage};
use epoll_reactor::{Address, Limits, ListenOptions, Reactor, Remote, Stopped};

use super::{Answer, Site, listed, plain};

/// Long enough never to be reached by a server that works.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a thread of its own.
struct Server {
    address: SocketAddr,
    remote: Remote<HttpMessage<()>>,
    thread: JoinHandle<(Stopped, usize)>,
}

impl Server {
    fn start(files: Files) -> Self {
        let config = HttpConfig::default();
        let limits = config.limits(Limits::default());
        let mut reactor = Reactor::new(Http::new(files, config), limits).unwrap();
        let remote = reactor.remote();
        reactor.handler().attach(remote.clone());
        let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_, bound) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
        let thread = std::thread::spawn(move || {
            let stopped = reactor.run().unwrap();
            (stopped, reactor.ctx().buffered())
        });
        Self { address: bound.as_tcp().unwrap(), remote, thread }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn stop(self) {
        self.remote.drain();
        assert_eq!(self.thread.join().unwrap(), (Stopped::Drained, 0));
    }
}

fn ask(mut client: &TcpStream, target: &str) {
    client.write_all(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
}

fn read_head(mut client: &TcpStream) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    Answer::parse(&head)
}

fn read_answer(mut client: &TcpStream) -> Answer {
    let answer = read_head(client);
    let mut body = vec![0; answer.length()];
    client.read_exact(&mut body).unwrap();
    Answer { body, ..answer }
}

fn pattern(size: u32) -> Vec<u8> {
    (0..size).map(|number| (number % 251).to_le_bytes()[0]).collect()
}

#[test]
fn small_files_lists_and_names_that_are_not_there_in_order() {
    let site = Site::new(listed());
    site.write("a", "content", 1000);
    let server = Server::start(site.files.clone());
    let client = server.connect();
    // Some are answered by the loop and some by threads; the order is that of the requests.
    let targets = ["/a", "/nobody-has-asked-for-this", "/", "/a", "/nor-this", "/a"];
    targets.iter().for_each(|target| ask(&client, target));
    let statuses: Vec<u16> = targets.iter().map(|_| read_answer(&client).status()).collect();
    assert_eq!(statuses, [200, 404, 200, 200, 404, 200]);
    drop(client);
    server.stop();
}

#[test]
fn large_files_arrive_whole_on_one_connection() {
    let site = Site::new(plain());
    let content = pattern(5_000_001);
    site.write("large", &content, 1000);
    site.write("small", "content", 1000);
    let server = Server::start(site.files.clone());
    let client = server.connect();
    for target in ["/large", "/small", "/large"] {
        ask(&client, target);
    }
    assert!(read_answer(&client).body == content);
    assert_eq!(read_answer(&client).body, b"content");
    assert!(read_answer(&client).body == content);
    drop(client);
    server.stop();
}

#[test]
fn a_file_that_is_replaced_or_removed_while_it_is_sent_arrives_as_it_was() {
    let site = Site::new(plain());
    let content = pattern(30_000_000);
    site.write("replaced", &content, 1000);
    site.write("removed", &content, 1000);
    site.write("new", "new", 1000);
    let server = Server::start(site.files.clone());
    let (one, other) = (server.connect(), server.connect());
    ask(&one, "/replaced");
    ask(&other, "/removed");
    let heads = [read_head(&one), read_head(&other)];
    fs::rename(site.path("new"), site.path("replaced")).unwrap();
    fs::remove_file(site.path("removed")).unwrap();
    for (mut client, head) in [(&one, &heads[0]), (&other, &heads[1])] {
        let mut body = vec![0; head.length()];
        client.read_exact(&mut body).unwrap();
        assert!(body == content);
    }
    drop((one, other));
    server.stop();
}

/// Its length has been told; a client must not take what there is for all, nor the next answer for the rest.
#[test]
fn a_file_that_shrinks_while_it_is_sent_ends_the_connection() {
    let site = Site::new(plain());
    site.write("large", pattern(30_000_000), 1000);
    site.write("small", "content", 1000);
    let server = Server::start(site.files.clone());
    let mut client = server.connect();
    ask(&client, "/large");
    ask(&client, "/small");
    let head = read_head(&client);
    assert_eq!((head.status(), head.length()), (200, 30_000_000));
    fs::File::options().write(true).open(site.path("large")).unwrap().set_len(1000).unwrap();
    let mut body = Vec::new();
    if let Err(error) = client.read_to_end(&mut body) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert!(body.len() < 30_000_000 && !body.windows(8).any(|window| window == b"HTTP/1.1"));
    server.stop();
}

#[test]
fn many_clients_share_a_large_file() {
    let site = Site::new(plain());
    let content = pattern(2_000_000);
    site.write("large", &content, 1000);
    let server = Server::start(site.files.clone());
    let clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    clients.iter().for_each(|client| ask(client, "/large"));
    for client in &clients {
        assert!(read_answer(client).body == content);
    }
    drop(clients);
    server.stop();
}
