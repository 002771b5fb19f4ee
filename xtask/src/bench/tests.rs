//! Tests of the whole: what a run chooses, and a short run.

use super::*;

#[test]
fn a_run_is_as_long_as_fits_into_its_time() {
    let options = Options::default();
    let few = Plan::fit(4, 1.0, 0.0, 0, BUDGET, &options);
    assert_eq!((few.rounds, few.seconds, few.steps), (5, 3, 20));
    let many = Plan::fit(110, 12.0, 30.0, 18, BUDGET, &options);
    assert_eq!((many.rounds, many.seconds, many.steps), (4, 1, 458));
    assert!(many.estimate <= BUDGET);
    // What was built took its time.
    let late = Plan::fit(110, 12.0, 30.0, 18, BUDGET - 240.0, &options);
    assert!(late.rounds == 2 && late.estimate <= BUDGET - 240.0);
    assert_eq!(Plan::fit(110, 12.0, 30.0, 18, 0.0, &options).rounds, 1);
    // What was asked for is done, however long it takes.
    let given = Options { rounds: Some(9), seconds: Some(10), ..Options::default() };
    let long = Plan::fit(110, 12.0, 30.0, 18, BUDGET, &given);
    assert_eq!((long.rounds, long.seconds), (9, 10));
    let quick = Plan::fit(26, 6.0, 12.0, 4, BUDGET, &Options { quick: true, ..Options::default() });
    assert!((quick.rounds, quick.seconds) == (1, 1) && quick.estimate < 60.0);
}

#[test]
fn workloads_are_chosen_by_how_they_begin() {
    let names = |only: &[&str], quick| -> io::Result<Vec<&str>> {
        let only = only.iter().map(|&name| name.to_owned()).collect();
        let chosen = select(&Options { only, quick, ..Options::default() })?;
        Ok(chosen.iter().map(|workload| workload.name).collect())
    };
    assert_eq!(names(&["http-64", "memory"], false).unwrap(), ["http-64", "memory-http", "memory-echo"]);
    assert_eq!(names(&[], false).unwrap().len(), workloads::ALL.len());
    for slow in ["instructions-http", "files-1k", "overload-kept", "workers-http"] {
        assert!(!names(&[], true).unwrap().contains(&slow), "{slow}");
    }
    assert_eq!(names(&["instructions-http"], true).unwrap(), ["instructions-http"]);
    assert!(names(&["nothing"], false).unwrap_err().to_string().contains("http-64"));
}

#[test]
fn settings_are_measured_as_often_as_there_is_time_for() {
    let only = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let plan = |options: &Options| Plan::new(&select(options).unwrap(), &Servers::default(), BUDGET, options);
    let overload = Options { only: only(&["overload"]), ..Options::default() };
    let some = plan(&overload);
    assert_eq!((some.rounds, some.seconds, some.steps), (3, 1, 3 * 2 * 8));
    assert!(some.estimate < 120.0, "{} s", some.estimate);
    let longer = plan(&Options { rounds: Some(2), seconds: Some(3), ..overload });
    assert_eq!((longer.rounds, longer.seconds, longer.steps), (2, 3, 2 * 2 * 8));
    // Beside all servers once; what is counted without servers is nothing.
    let all = plan(&Options::default());
    assert_eq!(all.steps, 2 * 8 + 3 * 2);
    assert!(all.estimate < 60.0, "{} s", all.estimate);
}

#[test]
fn a_row_that_fails_is_left_out_from_there_on() {
    let mut asked = Vec::new();
    let rows = measure_rows(&["one", "other"], 3, &bar(6), |round, row| {
        asked.push((round, row));
        if (round, row) == (1, 0) { Err(io::Error::other("no")) } else { Ok(Sample::new()) }
    });
    assert_eq!(asked, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]);
    assert_eq!(rows[0].failure.as_deref(), Some("failed in round 2: no"));
    let counts = rows.iter().map(|row| row.samples.iter().flatten().count());
    assert_eq!(counts.collect::<Vec<_>>(), [1, 3]);
    assert!(rows.iter().all(|row| row.samples.len() == 3), "a round is a round of all");
}

#[test]
fn only_a_plain_run_goes_where_published_results_are() {
    let results = |options: Options| options.results(Path::new("target"));
    assert_eq!(results(Options { install: true, ..Options::default() }), root().join("benchmark/results"));
    for options in [
        Options { only: vec!["echo".to_owned()], ..Options::default() },
        Options { quick: true, ..Options::default() },
        Options { rounds: Some(1), ..Options::default() },
        Options { seconds: Some(1), ..Options::default() },
        Options { against: Some("main".to_owned()), ..Options::default() },
    ] {
        assert_eq!(results(options), Path::new("target/results"));
    }
    assert_eq!(results(Options { out: Some("here".into()), ..Options::default() }), Path::new("here"));
}

/// Everything but what others have made: it needs wrk, a C compiler and two cores, and says so where they are not there.
#[test]
fn a_short_run_measures_and_reports() {
    let needed =
        [("wrk", "--version"), ("cc", "--version"), ("setpriv", "--version"), ("taskset", "--version")];
    if let Some((program, _)) = needed.iter().find(|(program, argument)| !is_installed(program, argument)) {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "no {program} on CI");
        eprintln!("skipped: {program} is not installed");
        return;
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("skipped: it takes two cores");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let only =
        ["http-64", "http-new", "http-post", "echo-64", "broadcast-100-16", "overload-fresh", "workers-busy"];
    let only = only.map(str::to_owned).to_vec();
    let options = Options { only, quick: true, out: Some(directory.path().to_owned()), ..Options::default() };
    let mut text = Vec::new();
    run(&options, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let json = std::fs::read_to_string(directory.path().join("latest.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let workloads = json["workloads"].as_array().unwrap();
    assert_eq!(workloads.len(), 7, "{text}");
    let (settings, others) =
        workloads.iter().partition::<Vec<_>, _>(|workload| workload["reference"] != servers::FLOOR);
    for (workload, rows) in settings.iter().zip([overload::ROWS.len(), loops::ROWS.len()]) {
        let measured = workload["servers"].as_array().unwrap();
        assert_eq!(measured.len(), rows);
        for row in measured {
            assert!(row["failure"].is_null(), "{text}");
            for figure in ["rate", "p50", "p99", "server_busy"] {
                assert!(row["figures"][figure]["median"].as_f64().unwrap() > 0.0, "{figure} of {row}");
            }
        }
    }
    let five = &settings[0]["servers"][3];
    assert!(five["name"] == "5x" && five["figures"]["shed"]["median"].as_f64().unwrap() > 0.0, "{text}");
    assert_eq!(settings[0]["goals"].as_array().unwrap().len(), 2);
    assert_eq!(others.len(), 5);
    for workload in others {
        let ours = &workload["servers"][0];
        assert_eq!(ours["name"], servers::OURS);
        assert!(ours["failure"].is_null(), "{text}");
        for figure in ["rate", "cpu", "p50", "p99", "p999", "resident", "server_busy"] {
            assert!(ours["figures"][figure]["median"].as_f64().unwrap() > 0.0, "{figure} of {workload}");
        }
        assert_eq!(workload["servers"][1]["name"], servers::FLOOR);
        assert!(ours["figures"]["cpu"]["ratio"]["median"].as_f64().unwrap() > 0.0, "{text}");
    }
}
