//! Frames, as they are drawn.

use std::time::Instant;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::sample::Lists;
use super::*;

fn row(port: u16, index: usize, bytes_per_second: u64, queued: u64) -> Row {
    let peer = format!("192.0.2.1:{port}");
    Row { index, peer, age_seconds: 90.0, queued, bytes_per_second }
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

fn frame(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
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
    view.update(Ok(sample(start, 1000, vec![row(1, 0, 5000, 0)])));
    let later = start + Duration::from_secs(2);
    view.update(Ok(sample(later, 1500, vec![row(2, 1, 4096, 2048), row(1, 0, 0, 0)])));
    let text = frame(&view, 120, 40);
    assert_shows(&text, &["epoll-server top - 127.0.0.1:9090 - q ends", "running"]);
    assert_shows(&text, &["requests 1503 (250/s)", "2xx 1500", "5xx 3", "connections 7"]);
    assert_shows(&text, &["requests/s 250", "bytes/s 250.0 KiB", "█"]);
    assert_shows(&text, &["1 (ended)", "16 µs", "250.0 ms", "late max", "4.5 s"]);
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in\n{text}"));
    let (first, second) = ("4.0 KiB/s     192.0.2.1:2 ", "0 B/s         192.0.2.1:1 ");
    assert!(place(first) < place(second), "as the server has them in order\n{text}");
    let lagging = text.lines().filter(|line| line.contains("2.0 KiB  ")).count();
    assert_eq!(lagging, 1, "only those for which something waits\n{text}");
}

#[test]
fn what_the_server_told_last_stays_when_it_has_gone_and_it_says_so() {
    let mut view = View::new("a:1");
    view.update(Ok(sample(Instant::now(), 42, Vec::new())));
    view.update(Err(io::Error::from(io::ErrorKind::ConnectionRefused)));
    let text = frame(&view, 120, 40);
    assert_shows(&text, &["does not answer, still trying: connection refused", "requests 45"]);
    view.update(Ok(sample(Instant::now(), 43, Vec::new())));
    let text = frame(&view, 120, 40);
    assert!(!text.contains("does not answer"), "{text}");
}

#[test]
fn an_overload_is_in_the_header_with_what_it_costs() {
    let mut busy = sample(Instant::now(), 5, Vec::new());
    let text = "epoll_loop_up{loop=\"0\"} 1\nepoll_loop_up{loop=\"1\"} 1\nepoll_overloaded{loop=\"1\"} 1\n\
                epoll_http_requests_total{loop=\"1\",status=\"5xx\"} 9\nepoll_work_shed_total{loop=\"1\"} 7\n";
    busy.metrics = Metrics::parse(text).unwrap();
    let mut view = View::new("a:1");
    view.update(Ok(busy));
    assert_shows(&frame(&view, 120, 40), &["overloaded: 1 of 2 loops", "5xx 9   shed 7"]);
}

#[test]
fn a_server_that_was_started_anew_has_no_negative_rates() {
    let start = Instant::now();
    let mut view = View::new("a:1");
    view.update(Ok(sample(start, 1000, vec![row(1, 0, 5000, 0)])));
    view.update(Ok(sample(start + Duration::from_secs(1), 10, vec![row(1, 0, 50, 0)])));
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
    view.update(Ok(stuck));
    let text = frame(&view, 120, 40);
    assert_eq!((text.matches("98 µs").count(), text.matches("20.0 s").count()), (3, 2), "{text}");
}

#[test]
fn connections_that_cannot_be_listed_take_nothing_else_away() {
    let mut view = View::new("a:1");
    let mut stuck = sample(Instant::now(), 5, Vec::new());
    stuck.lists = Err("503: 1 of the loops did not answer".to_owned());
    view.update(Ok(stuck));
    assert_shows(&frame(&view, 100, 30), &["no connections are listed: 503: 1 of the loops", "requests 8"]);
}

#[test]
fn any_terminal_will_do() {
    let start = Instant::now();
    let mut view = View::new("a:1");
    frame(&view, 80, 24);
    for second in 0..600 {
        view.update(Ok(sample(
            start + Duration::from_secs(second),
            second * second,
            vec![row(1, 0, second, 1)],
        )));
    }
    for (width, height) in [(1, 1), (3, 50), (200, 2), (20, 10), (600, 100)] {
        frame(&view, width, height);
    }
}
