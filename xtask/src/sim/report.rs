//! A failure in words: who is who in it, what happened last, and at the end, where it is seen, the reason and the
//! commands that bring it back.

use epoll_reactor::sim::{Faults, Sim};
use epoll_reactor::{ConnId, Timestamp};

use super::Broken;
use super::failure::{mentions, milliseconds};
use super::plan::Plan;
use super::shrink::{Run, shrink};

/// How much is shown of what happened last, and of that to a connection which the failure is about.
const SHOWN: usize = 60;
const SHOWN_OF_ONE: usize = 30;

/// A run when it failed.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) at: Timestamp,
    pub(crate) callbacks: Vec<String>,
    pub(crate) trace: Vec<String>,
    pub(crate) legend: Vec<Who>,
}

impl Scene {
    /// Of a run whose loop has been dropped.
    pub(crate) fn of_the_end(sim: &Sim) -> Self {
        Self { at: sim.now(), callbacks: Vec::new(), trace: sim.trace(), legend: Vec::new() }
    }
}

/// The names of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) session: usize,
    /// As its handler knows it, if that is known.
    pub(crate) id: Option<ConnId>,
    /// As the kernel's trace knows it, both ends, as long as it was open.
    pub(crate) name: Option<String>,
    /// The client's end, if that is open.
    pub(crate) client: Option<String>,
}

impl Who {
    fn session(&self) -> String {
        format!("session {}", self.session)
    }

    /// `session 0 = 0.1 = fd 9, its other end socket #8`.
    fn line(&self) -> String {
        let id = self.id.map_or_else(|| "no id yet".to_owned(), |id| id.to_string());
        let name =
            self.name.as_deref().or(self.client.as_deref()).unwrap_or("closed by the time it was known");
        format!("{} = {id} = {name}", self.session())
    }

    fn is_meant_by(&self, text: &str) -> bool {
        mentions(text, &self.session()) || self.id.is_some_and(|id| mentions(text, &id.to_string()))
    }

    /// The last of `lines` that are about it.
    fn last_of<'a>(&self, lines: &'a [String]) -> Vec<&'a str> {
        let mut names: Vec<String> = self.id.iter().map(ConnId::to_string).collect();
        names.extend(self.name.iter().flat_map(|name| name.split(", its other end ")).map(str::to_owned));
        let about = |line: &&String| names.iter().any(|name| mentions(line, name));
        let mut last: Vec<&str> =
            lines.iter().rev().filter(about).take(SHOWN_OF_ONE).map(String::as_str).collect();
        last.reverse();
        last
    }
}

/// What there is to say of a failure.
#[derive(Debug)]
pub(crate) struct Report {
    /// Everything.
    pub(crate) details: String,
    /// The reason, and the commands that bring it back: what is to be seen last.
    pub(crate) summary: String,
}

/// Of a failure, and of the smallest run that fails for the same reason.
pub(crate) fn report(plan: &Plan, broken: &Broken, run: Run) -> Report {
    let (smaller, small) = shrink(plan, broken.clone(), run);
    let (scenario, seed) = (plan.kind.name(), plan.seed);
    let (failure, shrunk) = (&broken.failure, &small.failure);
    let summary = format!(
        "FAILED: scenario {scenario}, seed {seed}: {failure}\n  again: {plan}\n\
         Shrunk: {shrunk}\n  again: {smaller}\n"
    );
    Report { details: details(&smaller, &small), summary }
}

fn details(plan: &Plan, broken: &Broken) -> String {
    let Broken { failure, scene } = broken;
    let mut text = format!(
        "Scenario {}, seed {}, shrunk: {} clients, {} turns before the drain; {}\n{}\n\
         It fails at {} of virtual time, which begins at 1000 ms:\n  {failure}\n",
        plan.kind.name(),
        plan.seed,
        plan.clients,
        plan.turns,
        if plan.gentle {
            "gentle: nothing costs a connection, every client is polite, and nobody may lose anything"
        } else {
            "not gentle: connections may be lost, and clients do as they like"
        },
        in_force(&plan.faults),
        milliseconds(scene.at),
    );
    let mut add = |title: &str, lines: &[&str]| {
        let lines =
            if lines.is_empty() { "  nothing, in all that is kept".to_owned() } else { lines.join("\n") };
        text.extend([title, "\n", &lines, "\n"]);
    };
    add("Last callbacks before it:", &last(&scene.callbacks));
    add("Last of the kernel's trace before it:", &last(&scene.trace));
    let legend: Vec<String> = scene.legend.iter().map(|who| format!("  {}", who.line())).collect();
    add("Who is who:", &last(&legend));
    for who in scene.legend.iter().filter(|who| who.is_meant_by(&failure.what)) {
        add(&format!("Last callbacks of {}:", who.line()), &who.last_of(&scene.callbacks));
        add(&format!("Last in the kernel's trace of {}:", who.line()), &who.last_of(&scene.trace));
    }
    text
}

fn last(lines: &[String]) -> Vec<&str> {
    lines[lines.len().saturating_sub(SHOWN)..].iter().map(String::as_str).collect()
}

/// The faults without those that are not there.
fn in_force(faults: &Faults) -> String {
    let text = format!("{faults:?}");
    let parts = text.trim_end_matches(" }").split(", ").filter(|part| !part.ends_with(": 0"));
    parts.collect::<Vec<_>>().join(", ") + " }"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::failure::Failure;
    use crate::sim::plan::{Cuts, Kind};

    fn lines(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn broken() -> Broken {
        let id = ConnId::from_u64(1 << 32);
        let who = Who {
            session: 3,
            id: Some(id),
            name: Some("fd 9, its other end socket #8".to_owned()),
            client: None,
        };
        let other = Who { session: 4, id: None, name: None, client: None };
        let trace = lines(&["1 ms  fd 9: recv 3", "2 ms  fd 91: recv 4", "3 ms  socket #8: data arrives 1"]);
        let scene = Scene {
            at: Timestamp::from_nanoseconds(1_004_086_794),
            callbacks: lines(&["1 ms  on_data 0.1 received", "2 ms  on_data 10.1 received"]),
            trace,
            legend: vec![who, other],
        };
        Broken { failure: Failure::new("owed", "0.1 is owed on_drain"), scene }
    }

    #[test]
    fn the_reason_and_the_commands_come_last_and_who_is_who_before() {
        let plan = Plan::new(Kind::Echo, 7, &Cuts::default());
        let report = report(&plan, &broken(), |_| None);
        let summary: Vec<&str> = report.summary.lines().collect();
        assert_eq!(summary[0], "FAILED: scenario echo, seed 7: owed: 0.1 is owed on_drain");
        assert_eq!(summary[1], "  again: cargo xtask sim --scenario echo --seed 7");
        let details = report.details;
        assert!(details.contains("at 1004.086794 ms of virtual time"), "{details}");
        assert!(details.contains("session 3 = 0.1 = fd 9, its other end socket #8"), "{details}");
        let own = details.split("Last callbacks of ").nth(1).unwrap();
        assert!(own.contains("fd 9: recv 3") && own.contains("socket #8: data"), "{own}");
        assert!(!own.contains("fd 91") && !own.contains("10.1"), "{own}");
    }

    #[test]
    fn faults_that_are_not_there_are_not_shown() {
        let told = in_force(&Faults { short_recv: 7, wall_jump: 0, ..Faults::none() });
        assert!(
            told.contains("short_recv: 7") && !told.contains(": 0,") && !told.contains("eintr"),
            "{told}"
        );
        assert!(told.contains("segment: (65483, 65483)") && told.ends_with(" }"), "{told}");
    }

    #[test]
    fn a_name_within_another_is_not_it() {
        for text in ["10.1", "0.12", "127.0.0.1:80", "a0.1"] {
            assert!(!mentions(text, "0.1"), "{text}");
        }
        for text in ["0.1", "on_eof for 0.1 again", "(0.1)", "event 0.1, EPOLLIN", "of 0.1."] {
            assert!(mentions(text, "0.1"), "{text}");
        }
        assert!(!mentions("session 31", "session 3") && mentions("session 3 is", "session 3"));
    }
}
