//! Clients that leave in the middle of an answer, after each byte of it: the server is as it was before they came. One
//! test, since it counts the descriptors of its process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use epoll_protocols::http1::{HttpConfig, HttpMessage};
use epoll_reactor::{Limits, Remote};
use support::Client;
use support::site::{Message, Scripted, Site, get, site};

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Closes,
    Resets,
    /// Ends its side first.
    Ends,
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Has `client` read so many bytes and leave; returns whether there were so many.
fn leave_after(site: &mut Site, mut client: Client, bytes: usize, leaves: Leaves) {
    site.until("some of the answer", |_| {
        client.pull(bytes - client.len());
        client.len() == bytes
    });
    match leaves {
        Leaves::Closes => {}
        Leaves::Resets => client.reset(),
        Leaves::Ends => client.finish(),
    }
}

/// Until nothing is left of the client; the service writes and answers meanwhile, since nobody learns of a client that
/// has closed its side but by writing to it.
fn until_gone(site: &mut Site, service: &Scripted, remote: &Remote<HttpMessage<Message>>, what: &str) {
    site.until(what, |site| {
        let happened = service.0.borrow().happened;
        remote.send(Message::Happened(happened + 1).into()).unwrap();
        remote.send(Message::Answer("/later".to_owned()).into()).unwrap();
        site.reactor.ctx().audit().unwrap();
        site.reactor.ctx().connections() == 0
    });
    assert_eq!(site.reactor.ctx().buffered(), 0, "{what}");
    site.reactor.ctx().audit().unwrap();
}

#[test]
fn a_client_that_leaves_after_any_byte_leaves_nothing_behind() {
    let (mut site, service, remote) = site(HttpConfig::default(), Limits::default());
    let now =
        b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 4\r\n\r\n/now".len();
    let chunks = b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n".len();
    let scripts = [
        // What it asks, how many bytes of it there are to read, and how many exchanges it begins.
        (get("/now"), now, 0),
        (get("/now").repeat(3), 3 * now, 0),
        ([get("/now"), get("/later"), get("/now")].concat(), now, 1),
        ([get("/events"), get("/now")].concat(), chunks + 20, 1),
        (
            "POST /upload HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
                .to_owned(),
            25,
            1,
        ),
        ("POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc".to_owned(), now, 0),
        ("nonsense\r\n\r\n".to_owned(), now, 0),
    ];
    // Whatever is made once has been made.
    let client = site.join();
    leave_after(&mut site, client, 0, Leaves::Closes);
    until_gone(&mut site, &service, &remote, "the first");
    let before = descriptors();
    for (input, most, exchanges) in scripts {
        for leaves in [Leaves::Closes, Leaves::Resets, Leaves::Ends] {
            for bytes in 0..=most {
                let what = format!("{input:?}, then {leaves:?} after {bytes} bytes");
                service.0.borrow_mut().happened = 1;
                service.0.borrow_mut().ends.clear();
                let mut client = site.join();
                client.push(input.as_bytes());
                leave_after(&mut site, client, bytes, leaves);
                until_gone(&mut site, &service, &remote, &what);
                let seen = service.0.borrow();
                assert_eq!((seen.later.len(), seen.events.len(), seen.uploads.len()), (0, 0, 0), "{what}");
                assert_eq!(seen.unnamed, 0, "{what}: the log does not know whose answer it was");
                // One that resets may never have been read.
                assert!(seen.ends.len() <= exchanges, "{what}: {:?}", seen.ends);
                assert!(bytes == 0 || seen.ends.len() == exchanges || !input.contains("events"), "{what}");
            }
        }
    }
    assert_eq!(descriptors(), before);
    let counters = site.reactor.ctx().counters();
    assert_eq!((counters.accepted, counters.panics), (counters.closed, 0));
}
