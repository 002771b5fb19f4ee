//! The deadlines of HTTP where answers wait, with a clock that is moved by hand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::time::{Duration, UNIX_EPOCH};

use epoll_protocols::http1::{Http, HttpConfig, Request, Response};
use epoll_reactor::{ConnId, Limits};
use support::kernel::Watched;
use support::{Client, End, Server};

const KEEP_ALIVE: Duration = Duration::from_secs(10);
const INSTANT: Duration = Duration::from_nanos(1);

/// A body of as many bytes as the query says.
fn service(request: &Request<'_>, response: &mut Response) {
    let length = request.query().unwrap().parse().unwrap();
    response.set_shared_body(vec![b'x'; length].into());
}

fn get(length: usize) -> String {
    format!("GET /bytes?{length} HTTP/1.1\r\nHost: a\r\n\r\n")
}

type Site = Server<Http<fn(&Request<'_>, &mut Response)>, Watched>;

/// With the clock stopped.
fn site() -> (Site, std::rc::Rc<support::kernel::Sends>) {
    let kernel = Watched::new();
    kernel.sends.stop_clock();
    site_on(kernel)
}

fn site_on(kernel: Watched) -> (Site, std::rc::Rc<support::kernel::Sends>) {
    let sends = kernel.sends.clone();
    let config = HttpConfig { keep_alive_timeout: KEEP_ALIVE, ..HttpConfig::default() };
    let limits = config.limits(Limits {
        output: 64 << 20,
        // A reader's pace is not what is tested here.
        write_stall_timeout: Duration::from_secs(3600),
        ..Limits::default()
    });
    let service: fn(&Request<'_>, &mut Response) = service;
    (Server::on(kernel, Http::new(service, config), limits), sends)
}

/// Reads one answer whole; returns the length of its body.
fn answer(site: &mut Site, client: &mut Client) -> usize {
    let mut length = 0;
    loop {
        let line = site.line(client);
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim_end().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    site.until("the body", |_| {
        client.pull(1 << 16);
        client.len() >= length
    });
    client.skip(length)
}

/// The time of an idle connection has not passed; an instant later it has.
fn is_kept_for_its_time(site: &mut Site, sends: &support::kernel::Sends, client: &mut Client) {
    sends.advance(KEEP_ALIVE - INSTANT);
    site.settle();
    assert_eq!(site.reactor.ctx().connections(), 1, "it has its full time");
    sends.advance(INSTANT);
    assert_eq!(site.rest(client), (String::new(), End::Finished));
}

#[test]
fn a_request_sent_while_the_answer_before_it_is_read_slowly_is_answered_however_long_that_takes() {
    // More than the kernel takes at once.
    for length in [16 << 20, 32 << 20] {
        let (mut site, sends) = site();
        let mut client = site.join();
        client.push(get(length).as_bytes());
        site.settle();
        client.push(get(5).as_bytes());
        // Until the kernel has all of it, which says nothing of how much the client has read.
        let mut rounds = 0;
        while site.reactor.ctx().queued(ConnId::from_u64(1 << 32)) > 0 {
            // A little now and then.
            sends.advance(KEEP_ALIVE * 3 / 2);
            site.settle();
            let target = client.len() + length / 8;
            site.until("some more", |_| client.pull(1 << 16) == 0 || client.len() >= target);
            let read = client.len();
            assert_eq!((client.ended, site.reactor.ctx().connections()), (None, 1), "after {read} bytes");
            rounds += 1;
        }
        assert!(rounds > 1, "the kernel took all at once");
        assert_eq!(answer(&mut site, &mut client), length);
        assert_eq!(answer(&mut site, &mut client), 5);
        site.settle();
        is_kept_for_its_time(&mut site, &sends, &mut client);
    }
}

#[test]
fn the_time_of_a_kept_connection_begins_when_it_has_its_answer() {
    for length in [32 << 20, 200 << 10, 5] {
        let (mut site, sends) = site();
        let mut client = site.join();
        sends.held_back.set(true);
        client.push(get(length).as_bytes());
        site.settle();
        // The answer waits, and longer than a connection is kept; so nothing is idle.
        if length > 256 << 10 {
            sends.advance(2 * KEEP_ALIVE);
            site.settle();
            assert_eq!(site.reactor.ctx().connections(), 1);
        }
        sends.held_back.set(false);
        // The kernel tells that there is room along with the start of a line, which may be empty before a request.
        client.push(b"\r\n");
        assert_eq!(answer(&mut site, &mut client), length);
        site.settle();
        is_kept_for_its_time(&mut site, &sends, &mut client);
    }
}

/// What a body has earned by coming fast is no licence to be slow for hours.
#[test]
fn a_body_that_began_fast_may_be_silent_no_longer_than_any_other() {
    let (mut site, sends) = site();
    let HttpConfig { body_timeout, body_rate, .. } = HttpConfig::default();
    let mut client = site.join();
    client.push(b"POST /bytes?5 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    site.send(&mut client, &vec![0; 500_000]);
    site.settle();
    // For as long as it comes at the rate it goes on.
    let second = usize::try_from(body_rate).unwrap();
    for _ in 0..2 * body_timeout.as_secs() {
        sends.advance(Duration::from_secs(1));
        site.send(&mut client, &vec![0; second]);
        site.settle();
        assert_eq!(site.reactor.ctx().connections(), 1);
    }
    sends.advance(body_timeout - INSTANT);
    site.settle();
    assert_eq!(site.reactor.ctx().connections(), 1);
    // One byte now and then earns what one byte does.
    client.push(&[0]);
    site.settle();
    sends.advance(Duration::from_secs(1) / body_rate + INSTANT);
    let (answer, end) = site.rest(&mut client);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(end, End::Finished);
}

#[test]
fn a_step_of_the_wall_clock_shows_in_the_date_within_a_second() {
    let kernel = Watched::new();
    kernel.sends.stop_clock();
    let began = kernel.sends.clock.get().unwrap();
    let wall = |milliseconds| Some(UNIX_EPOCH + Duration::from_millis(milliseconds));
    kernel.sends.wall_clock.set(wall(10));
    let (mut site, sends) = site_on(kernel);
    let mut client = site.join();
    let mut date_at = |milliseconds, shown| {
        sends.clock.set(Some(began + Duration::from_millis(milliseconds)));
        sends.wall_clock.set(wall(shown));
        client.push(get(0).as_bytes());
        let mut date = String::new();
        loop {
            match site.line(&mut client).as_str() {
                "\r\n" => return date,
                line => date = line.strip_prefix("Date: ").map_or(date, str::to_owned),
            }
        }
    };
    assert_eq!(date_at(0, 10), "Thu, 01 Jan 1970 00:00:00 GMT\r\n");
    assert_eq!(date_at(1000, 1010), "Thu, 01 Jan 1970 00:00:01 GMT\r\n");
    // Just then it is set an hour ahead.
    assert_eq!(date_at(1995, 3_602_005), "Thu, 01 Jan 1970 01:00:02 GMT\r\n");
    // And back.
    assert_eq!(date_at(3000, 3010), "Thu, 01 Jan 1970 00:00:03 GMT\r\n");
}
