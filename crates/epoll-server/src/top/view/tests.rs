//! Frames, as they are drawn.

use std::time::Instant;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::sample::Lists;
use super::*;

fn row(port: u16, index: usize, bytes_per_second: u64, queued: u64) -> Row {
    let peer = format!("192.0.2.1:{port}");
    Row { id: format!("{port}.7"), index, peer, age_seconds: 90.0, queued, bytes_per_second }
}

fn sample(at: Instant, requests: u64, rows: Vec<Row>) -> Sample {
    let metrics = format!(
        "epoll_loop_up{{loop=\"0\"}} 1\nepoll_loop_up{{loop=\"1\"}} 0\n\
         epoll_http_requests_total{{loop=\"0\",status=\"2xx\"}} {requests}\n\
         epoll_http_requests_total{{loop=\"1\",status=\"5xx\"}} 3\n\
         epoll_connections{{loop=\"0\",state=\"open\"}} 7\n\
         epoll_received_bytes_total{{loop=\"0\"}} {}\n\
         epoll_poll_lag_longest_seconds{{loop=\"0\"}} 0.25\n\
         epoll_timer_lag_longest_seconds{{loop=\"0\"}} 4.5\n\
         epoll_poll_lag_seconds_bucket{{loop=\"0\",le=\"0.000016\"}} {requests}\n\
         epoll_poll_lag_seconds_bucket{{loop=\"0\",le=\"+Inf\"}} {requests}\n",
        requests * 1024
    );
    let metrics = Metrics::parse(&metrics).unwrap();
    Sample { at, metrics, lists: Ok(Lists { by_queue: rows.clone(), by_rate: rows }) }
}

/// At the time when the server last told something.
fn frame(view: &View, width: u16, height: u16) -> String {
    frame_at(view, view.heard.unwrap_or_else(Instant::now), width, height)
}

fn frame_at(view: &View, at: Instant, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame, at)).unwrap();
    terminal.backend().to_string()
}

#[track_caller]
fn assert_shows(frame: &str, parts: &[&str]) {
    for part in parts {
        assert!(frame.contains(part), "no {part:?} in\n{frame}");
    }
}

#[test]
fn a_frame_has_totals_rates_loops_and_connections() {
    let start = Instant::now();
    let mut view = View::new("127.0.0.1:9090");
    view.update(Ok(sample(start, 1000, vec![row(1, 0, 5000, 0)])), start);
    let later = start + Duration::from_secs(2);
    view.update(Ok(sample(later, 1500, vec![row(2, 1, 4096, 2048), row(1, 0, 0, 0)])), later);
    let text = frame(&view, 120, 40);
    assert_shows(&text, &["epoll-server top - 127.0.0.1:9090 - q ends", "running"]);
    assert_shows(&text, &["requests 1503 (250/s)", "2xx 1500", "5xx 3", "connections 7"]);
    assert_shows(&text, &["requests 250/s", "bytes 250.0 KiB/s", "█"]);
    assert_shows(&text, &["ended", "16 µs", "250.0 ms", "late max", "4.5 s"]);
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in\n{text}"));
    let (first, second) =
        ("4.0 KiB    1    2.7  90s  192.0.2.1:2 ", "0 B        0    1.7  90s  192.0.2.1:1 ");
    assert!(place(first) < place(second), "as the server has them in order\n{text}");
    let lagging = text.lines().filter(|line| line.contains("2.0 KiB    1    2.7")).count();
    assert_eq!(lagging, 1, "only those for which something waits\n{text}");
}

#[test]
fn what_the_server_told_last_stays_when_it_has_gone_and_it_says_so() {
    let mut view = View::new("a:1");
    let start = Instant::now();
    let second = |number| start + Duration::from_secs(number);
    let rows = || vec![row(1, 0, 5000, 0)];
    view.update(Ok(sample(start, 42, rows())), start);
    view.update(Ok(sample(second(1), 43, rows())), second(1));
    assert_shows(&frame(&view, 80, 24), &["running", "requests 46 (1/s)", "4.9 KiB"]);
    view.update(Err(io::Error::from(io::ErrorKind::ConnectionRefused)), second(2));
    let text = frame_at(&view, second(3), 80, 24);
    assert_shows(
        &text,
        &["no answer for 2 s, still trying; below is what it told last (conn", "requests 46 (-/s)"],
    );
    assert!(!text.contains("(1/s)") && !text.contains("KiB/s") && !text.contains("4.9 KiB"), "{text}");
    view.update(Ok(sample(second(4), 44, rows())), second(4));
    let text = frame(&view, 80, 24);
    assert!(!text.contains("no answer"), "{text}");
}

#[test]
fn a_server_that_says_nothing_is_not_shown_as_if_it_had() {
    let mut view = View::new("a:1");
    let start = Instant::now();
    let second = |number| start + Duration::from_secs(number);
    view.update(Ok(sample(start, 42, Vec::new())), start);
    assert_shows(&frame_at(&view, second(3), 80, 24), &["running"]);
    assert_shows(&frame_at(&view, second(4), 80, 24), &["no answer for 4 s, still trying", "(-/s)"]);
    view.update(Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s")), second(6));
    assert_shows(&frame_at(&view, second(6), 80, 24), &["no answer for 6 s, still trying"]);
}

#[test]
fn a_loop_that_is_held_up_is_in_the_header() {
    let mut view = View::new("a:1");
    let mut tell = |first: f64, second: f64| {
        let mut held_up = sample(Instant::now(), 5, Vec::new());
        let text = format!(
            "epoll_loop_up{{loop=\"0\"}} 1\nepoll_loop_up{{loop=\"1\"}} 1\n\
             epoll_in_turn_seconds{{loop=\"0\"}} {first}\nepoll_in_turn_seconds{{loop=\"1\"}} {second}\n"
        );
        held_up.metrics = Metrics::parse(&text).unwrap();
        view.update(Ok(held_up), Instant::now());
        frame(&view, 80, 24)
    };
    assert_shows(&tell(0.0, 0.9), &["running"]);
    assert_shows(&tell(4.7, 0.0), &["loop 0 held up for 4 s  "]);
    assert_shows(&tell(4.7, 5.1), &["loop 1 held up for 5 s, and 1 more"]);
}

#[test]
fn at_80_columns_ids_peers_and_headers_are_whole() {
    let mut longest = row(1, 1023, 1_047_500, 1_047_500);
    longest.id = "99999.12345".to_owned();
    longest.age_seconds = 999.0 * 86_400.0;
    longest.peer = format!("[{}]:65535", ["ffff"; 8].join(":"));
    let mut view = View::new("127.0.0.1:9090");
    view.update(Ok(sample(Instant::now(), 42, vec![longest.clone(), row(2, 0, 1, 1)])), Instant::now());
    let text = frame(&view, 80, 24);
    let line = format!("1022.9 KiB 1023 99999.12345 999d {}", longest.peer);
    assert_eq!(text.matches(&line).count(), 2, "{text}");
    assert_shows(&text, &["busiest/s  loop id          age  peer", "queued     loop id          age  peer"]);
    let loops = text.lines().find(|line| line.contains("turn p50")).unwrap();
    let words = loops.trim_matches('"').split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words, "loop open turn p50 p99 max lag p99 max late max busy for");
}

#[test]
fn an_overload_is_in_the_header_with_what_it_costs() {
    let mut busy = sample(Instant::now(), 5, Vec::new());
    let text = "epoll_loop_up{loop=\"0\"} 1\nepoll_loop_up{loop=\"1\"} 1\nepoll_overloaded{loop=\"1\"} 1\n\
                epoll_http_requests_total{loop=\"1\",status=\"5xx\"} 9\nepoll_work_shed_total{loop=\"1\"} 7\n";
    busy.metrics = Metrics::parse(text).unwrap();
    let mut view = View::new("a:1");
    view.update(Ok(busy), Instant::now());
    assert_shows(&frame(&view, 120, 40), &["overloaded: 1 of 2 loops", "5xx 9   shed 7"]);
}

#[test]
fn a_server_that_was_started_anew_has_no_negative_rates() {
    let start = Instant::now();
    let mut view = View::new("a:1");
    view.update(Ok(sample(start, 1000, vec![row(1, 0, 5000, 0)])), start);
    let later = start + Duration::from_secs(1);
    view.update(Ok(sample(later, 10, vec![row(1, 0, 50, 0)])), later);
    assert_shows(&frame(&view, 120, 40), &["requests 13 (0/s)", "16 µs"]);
}

#[test]
fn no_quantile_is_above_the_longest() {
    let family = |name: &str, bound: &str, longest: &str| {
        format!(
            "{name}_seconds_bucket{{loop=\"0\",le=\"0.000064\"}} 0\n{name}_seconds_bucket{{loop=\"0\",le=\"{bound}\"}} 9\n\
             {longest}\n"
        )
    };
    let turn = family("epoll_turn_duration", "0.000128", "epoll_turn_longest_seconds{loop=\"0\"} 0.000098");
    let lag = family("epoll_poll_lag", "+Inf", "epoll_poll_lag_longest_seconds{loop=\"0\"} 20");
    let mut stuck = sample(Instant::now(), 5, Vec::new());
    stuck.metrics = Metrics::parse(&format!("epoll_loop_up{{loop=\"0\"}} 1\n{turn}{lag}")).unwrap();
    let mut view = View::new("a:1");
    view.update(Ok(stuck), Instant::now());
    let text = frame(&view, 120, 40);
    assert_eq!((text.matches("98 µs").count(), text.matches("20.0 s").count()), (3, 2), "{text}");
}

#[test]
fn connections_that_cannot_be_listed_take_nothing_else_away() {
    let mut view = View::new("a:1");
    let mut stuck = sample(Instant::now(), 5, Vec::new());
    stuck.lists = Err("503: 1 of the loops did not answer".to_owned());
    view.update(Ok(stuck), Instant::now());
    assert_shows(&frame(&view, 100, 30), &["no connections are listed: 503: 1 of the loops", "requests 8"]);
}

#[test]
fn any_terminal_will_do() {
    let start = Instant::now();
    let mut view = View::new("a:1");
    frame(&view, 80, 24);
    for second in 0..600 {
        let at = start + Duration::from_secs(second);
        view.update(Ok(sample(at, second * second, vec![row(1, 0, second, 1)])), at);
    }
    for (width, height) in [(1, 1), (3, 50), (200, 2), (20, 10), (600, 100)] {
        frame(&view, width, height);
    }
}
