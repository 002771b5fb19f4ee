//! HTTP exchanges that take more than one call, on real sockets: deferred answers, streams out and in, what is behind a
//! refused request, and a drain.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use epoll_protocols::http1::{HttpConfig, HttpLimits};
use epoll_reactor::{Limits, Stopped};
use support::End;
use support::answers::Answer;
use support::site::{EVENT, Message, Scripted, answers, checksum, event, get, receipt, site};

fn bodies(answers: &[Answer]) -> Vec<String> {
    answers.iter().map(|answer| String::from_utf8(answer.body.clone()).unwrap()).collect()
}

fn calls(service: &Scripted) -> usize {
    service.0.borrow().calls.len()
}

#[test]
fn answers_from_another_thread_come_in_the_order_of_the_requests() {
    let (mut site, service, remote) = site(HttpConfig::default(), Limits::default());
    let mut client = site.join();
    let targets: Vec<String> = (0..20)
        .map(|number| format!("/{}?{number}", if number % 3 == 2 { "now" } else { "later" }))
        .collect();
    let requests: String = targets.iter().map(|target| get(target)).collect();
    client.push(requests.as_bytes());
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let (targets, stop) = (targets.clone(), stop.clone());
        move || {
            // Backwards and over and over: only the one whose turn it is counts.
            for target in targets.iter().rev().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A queue that is full is no loss: there will be another.
                let _ = remote.send(Message::Answer(target.clone()).into());
                std::thread::yield_now();
            }
        }
    });
    let got = bodies(&answers(&mut site, &mut client, 20));
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    assert_eq!(got, targets);
    assert_eq!(service.0.borrow().ends, [true; 14]);
}

#[test]
fn a_client_that_ends_its_side_gets_its_deferred_answers() {
    let (mut site, service, remote) = site(HttpConfig::default(), Limits::default());
    for targets in
        [vec!["/later?1"], vec!["/later?1", "/later?2", "/now"], vec!["/now", "/later?1", "/later?2"]]
    {
        let mut client = site.join();
        client.push(targets.iter().map(|target| get(target)).collect::<String>().as_bytes());
        client.finish();
        for target in targets.iter().filter(|target| target.starts_with("/later")) {
            site.until("the request", |_| service.0.borrow().later.contains_key(*target));
            site.settle();
            assert_eq!(client.ended, None);
            remote.send(Message::Answer((*target).to_owned()).into()).unwrap();
        }
        assert_eq!(bodies(&answers(&mut site, &mut client, targets.len())), targets);
        assert_eq!(site.rest(&mut client), (String::new(), End::Finished));
    }
    assert!(service.0.borrow().ends.iter().all(|complete| *complete));
    is_clean(&mut site, &service);
}

#[test]
fn events_reach_a_fast_client_whatever_a_slow_one_does_and_the_slow_one_loses_none() {
    const EVENTS: usize = 20_000;
    let config = HttpConfig::default();
    let batch = config.limits.output_batch;
    let (mut site, service, remote) = site(config, Limits::default());
    let (mut fast, mut slow) = (site.join(), site.join());
    for client in [&mut fast, &mut slow] {
        client.push(get("/events").as_bytes());
    }
    site.until("two streams", |_| service.0.borrow().events.len() == 2);
    let mut taken = 0;
    for happened in (0..=EVENTS).step_by(100) {
        remote.send(Message::Happened(happened).into()).unwrap();
        site.until("the events", |_| {
            while fast.pull(1 << 16) > 0 {}
            fast.len() >= happened * EVENT
        });
        taken = happened;
    }
    assert_eq!(taken, EVENTS);
    let most = 2 * (batch + 2 * EVENT) + (64 << 10);
    assert!(site.peak <= most, "{} bytes were held for {most}", site.peak);
    let least = *service.0.borrow().events.values().min().unwrap();
    assert!(least < EVENTS, "the slow client has not been slow");
    service.0.borrow_mut().over = true;
    remote.send(Message::Happened(EVENTS).into()).unwrap();
    let expected: Vec<u8> = (0..EVENTS).flat_map(event).collect();
    for client in [&mut fast, &mut slow] {
        let answer = &answers(&mut site, client, 1)[0];
        assert!(answer.body == expected, "{} of {} bytes", answer.body.len(), expected.len());
    }
    assert!(site.peak <= most, "{} bytes were held for {most}", site.peak);
    assert_eq!(service.0.borrow().answers, [(200, expected.len() as u64); 2]);
    drop((fast, slow));
    is_clean(&mut site, &service);
}

/// Chunks of all sizes.
fn chunked(body: &[u8]) -> Vec<u8> {
    let (mut coded, mut rest, mut size) = (Vec::new(), body, 1);
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(rest.len().min(size));
        coded.extend([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        (rest, size) = (behind, (size * 7 + 1) % 100_003);
    }
    coded.extend(b"0\r\n\r\n");
    coded
}

#[test]
fn bodies_of_8_mib_come_whole_streamed_or_collected_by_length_or_in_chunks() {
    let limits = HttpLimits { body: 8 << 20, ..HttpLimits::default() };
    let config = HttpConfig { limits, ..HttpConfig::default() };
    let (mut site, service, remote) = site(config, Limits { memory: 64 << 20, ..Limits::default() });
    let body: Vec<u8> = (0_usize..8 << 20).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect();
    for (target, held) in [("/upload", 1 << 20), ("/collect", 20 << 20)] {
        for in_chunks in [false, true] {
            site.peak = 0;
            let mut client = site.join();
            let (field, coded) = match in_chunks {
                false => (format!("Content-Length: {}", body.len()), body.clone()),
                true => ("Transfer-Encoding: chunked".to_owned(), chunked(&body)),
            };
            let head = format!("POST {target} HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n");
            let input = [head.as_bytes(), &coded, get("/next").as_bytes()].concat();
            let mut rest = input.as_slice();
            site.until("the upload", |site| {
                rest = &rest[client.push(rest)..];
                if !service.0.borrow().pausing.is_empty() {
                    // While it is paused the server takes no more than it has.
                    let before = service.0.borrow().uploads.values().map(|upload| upload.0).sum::<usize>();
                    site.turn(Duration::ZERO);
                    let after = service.0.borrow().uploads.values().map(|upload| upload.0).sum::<usize>();
                    assert_eq!(before, after);
                    remote.send(Message::GoOn.into()).unwrap();
                }
                rest.is_empty()
            });
            let mut got = Vec::new();
            site.until("the answers", |_| {
                if !service.0.borrow().pausing.is_empty() {
                    remote.send(Message::GoOn.into()).unwrap();
                }
                client.pull(1 << 16);
                got.append(&mut client.rest_bytes());
                got.ends_with(b"/next")
            });
            let read = Answer::read_all(&got, [false; 2], false).unwrap();
            assert_eq!(bodies(&read), [String::from_utf8(receipt(&body)).unwrap(), "/next".to_owned()]);
            assert!(site.peak <= held, "{target}: {} bytes held", site.peak);
            drop(client);
            is_clean(&mut site, &service);
        }
    }
    assert_eq!(service.0.borrow().ends, [true; 2]);
    assert_eq!(checksum(0, b""), 0);
}

#[test]
fn a_client_that_ends_its_side_while_its_upload_is_paused_gets_its_answer() {
    let (mut site, service, remote) = site(HttpConfig::default(), Limits::default());
    for (length, complete) in [(3 << 20, true), ((3 << 20) + 1, false)] {
        let body = vec![b'x'; 3 << 20];
        let mut client = site.join();
        let head = format!("POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        client.push(head.as_bytes());
        let mut rest = body.as_slice();
        let mut pauses = 0;
        site.until("the end", |site| {
            if !rest.is_empty() {
                rest = &rest[client.push(rest)..];
                if rest.is_empty() {
                    client.finish();
                }
            }
            if !service.0.borrow().pausing.is_empty() {
                pauses += 1;
                // It has had every chance to see the end of the input.
                site.settle();
                remote.send(Message::GoOn.into()).unwrap();
            }
            client.pull(1 << 16);
            client.ended.is_some()
        });
        let got = client.rest_bytes();
        let answer = &Answer::read_all(&got, [false], true).unwrap()[0];
        let expected = if complete { receipt(&body) } else { Vec::new() };
        assert_eq!((answer.status, &answer.body), (if complete { 200 } else { 400 }, &expected));
        assert!(pauses >= 2, "{pauses} pauses");
        assert_eq!(service.0.borrow().ends.last(), Some(&complete));
        drop(client);
        is_clean(&mut site, &service);
    }
}

#[test]
fn a_refusal_arrives_though_more_is_sent_and_nothing_behind_it_is_served() {
    let (mut site, service, _) = site(HttpConfig::default(), Limits::default());
    let more = [get("/behind").repeat(1000), "x".repeat(1 << 20)].concat();
    for (refused, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        ("POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n", 403),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", 413),
        ("POST /upload HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nx", 400),
        ("\x16\x03\x01", 400),
    ] {
        for split in [false, true] {
            let before = calls(&service);
            let mut client = site.join();
            let input = [&get("/before"), refused, &more].concat();
            let mut rest = input.as_bytes();
            if split {
                site.send(&mut client, &rest[..get("/before").len() + refused.len()]);
                site.settle();
                rest = &rest[get("/before").len() + refused.len()..];
            }
            let mut got = Vec::new();
            site.until("all to be sent", |_| {
                rest = &rest[client.push(rest)..];
                client.pull(1 << 16);
                got.append(&mut client.rest_bytes());
                rest.is_empty()
            });
            client.finish();
            let (last, end) = site.rest(&mut client);
            got.extend(last.as_bytes());
            assert_eq!(end, End::Finished, "{refused:?}");
            let read = Answer::read_all(&got, [false; 2], true).unwrap();
            let statuses: Vec<u16> = read.iter().map(|answer| answer.status).collect();
            assert_eq!(statuses, [200, status], "{refused:?}");
            assert_eq!(calls(&service), before + 1, "{refused:?}");
        }
    }
    is_clean(&mut site, &service);
}

#[test]
fn a_drain_waits_for_streams_and_deferred_answers() {
    let (mut site, service, remote) = site(HttpConfig::default(), Limits::default());
    let (mut idle, mut events, mut later) = (site.join(), site.join(), site.join());
    events.push([get("/events"), get("/never")].concat().as_bytes());
    later.push([get("/later"), get("/never")].concat().as_bytes());
    service.0.borrow_mut().happened = 3;
    site.until("both", |_| service.0.borrow().events.len() + service.0.borrow().later.len() == 2);
    remote.drain();
    assert_eq!(site.rest(&mut idle), (String::new(), End::Finished));
    let (sent, end) = site.rest(&mut events);
    let answer = Answer::read_all(sent.as_bytes(), [false], true).unwrap();
    assert_eq!((answer[0].body.len(), end), (3 * EVENT, End::Finished), "on_shutdown has ended it");
    assert_eq!(later.ended, None);
    remote.send(Message::Answer("/later".to_owned()).into()).unwrap();
    let (sent, end) = site.rest(&mut later);
    let answer = Answer::read_all(sent.as_bytes(), [false], true).unwrap();
    assert_eq!(
        (answer[0].body.as_slice(), answer[0].is_last(), end),
        (b"/later".as_slice(), true, End::Finished)
    );
    assert_eq!(calls(&service), 2);
    drop((events, later));
    assert_eq!(site.reactor.run().unwrap(), Stopped::Drained);
    assert_eq!(service.0.borrow().ends, [true; 2]);
}

/// All clients are gone, or go, and nothing is left of them.
fn is_clean(site: &mut support::site::Site, service: &Scripted) {
    site.until("all to be gone", |site| site.reactor.ctx().connections() == 0);
    assert_eq!(site.reactor.ctx().buffered(), 0);
    let seen = service.0.borrow();
    assert_eq!((seen.later.len(), seen.events.len(), seen.uploads.len()), (0, 0, 0));
}

/// Between the reset and `on_close` the client is still there.
#[test]
fn an_answer_that_comes_with_the_reset_of_its_client_is_not_told_as_given() {
    let (mut site, service, remote) = site(HttpConfig::default(), Limits::default());
    let mut client = site.join();
    client.push(get("/later").as_bytes());
    site.settle();
    // In one turn: events come before messages.
    assert!(remote.send(Message::Answer("/later".to_owned()).into()).is_ok());
    client.reset();
    drop(client);
    site.until("the end", |site| site.reactor.ctx().connections() == 0);
    let seen = service.0.borrow();
    assert_eq!((seen.ends.as_slice(), seen.answers.as_slice()), ([false].as_slice(), [].as_slice()));
}
