//! `cargo xtask canary`: defects planted in a copy of the sources, each of which the simulation must find. It tests the
//! tests: a harness that finds nothing may have found that nothing is wrong, or may be blind.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{output, root, target};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Plant this defect alone, by a part of its name; may be given several times. All take some ten minutes on two cores: each is
    /// built by itself
    #[arg(long)]
    only: Vec<String>,
}

/// Each must be found by one of so many runs, of a few milliseconds each.
const RUNS: u64 = 1000;

/// More than so many runs take on any machine: how fast it is must not decide what is found.
const MINUTES: &str = "600";

/// A defect, as a change of the sources.
struct Defect {
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
}

const DEFECTS: [Defect; 33] = [
    Defect {
        name: "takes an overload for over as soon as shedding has made the lag low",
        file: "crates/epoll-reactor/src/overload.rs",
        right: "Some(since) if !stands && now - self.shed_at >= self.interval => {",
        wrong: "Some(since) if !stands => {",
    },
    Defect {
        name: "sheds what has come just now",
        file: "crates/epoll-reactor/src/overload.rs",
        right: "self.is_on() && now - self.after > self.target\n",
        wrong: "self.is_on() && now >= self.after\n",
    },
    Defect {
        name: "forgets the ready list when the read budget is used up",
        file: "crates/epoll-reactor/src/serve.rs",
        right: "            if budget == 0 {\n                self.ctx.make_ready(id);\n",
        wrong: "            if budget == 0 {\n",
    },
    Defect {
        name: "takes a short read for an empty socket whatever the event said",
        file: "crates/epoll-reactor/src/serve.rs",
        right: "count == room.len() || connection.read_to_end",
        wrong: "count == room.len()",
    },
    Defect {
        name: "drops the start of a message when no more has come",
        file: "crates/epoll-reactor/src/serve.rs",
        right: "            Received::Nothing => {\n                self.keep_tail(id, tail);\n",
        wrong: "            Received::Nothing => {\n",
    },
    Defect {
        name: "sends a callback's own output ahead of what is queued",
        file: "crates/epoll-reactor/src/output.rs",
        right: "kind == Kind::Copied && connection.output.is_none() && connection.writable",
        wrong: "kind == Kind::Copied && connection.writable",
    },
    Defect {
        name: "sends what goes to the queue ahead of what is in the batch",
        file: "crates/epoll-reactor/src/output.rs",
        right: "        if connection.batched {\n            self.move_batched_to_queue(id);\n            \
                return self.admit(id, length, charge, kind);\n        }\n",
        wrong: "",
    },
    Defect {
        name: "frees a slot without a new generation",
        file: "crates/epoll-reactor/src/slab.rs",
        right: "slot.generation = slot.generation.wrapping_add(1).max(1);",
        wrong: "",
    },
    Defect {
        name: "keeps in its books what a closed connection held",
        file: "crates/epoll-reactor/src/close.rs",
        right: "            self.ctx.buffered -= connection.memory();\n            if let Some(queue)",
        wrong: "            if let Some(queue)",
    },
    Defect {
        name: "drops output that waits when it closes",
        file: "crates/epoll-reactor/src/ctx.rs",
        right: "            } else {\n                self.begin_close(id, reason);\n",
        wrong: "            } else {\n                self.kill(id, reason);\n",
    },
    Defect {
        name: "takes an interrupted read for the end of the connection",
        file: "crates/epoll-sys/src/errno.rs",
        right: "Call::Recv | Call::Send => match errno {\n            Errno::EINTR => Reaction::Retry,",
        wrong: "Call::Recv | Call::Send => match errno {\n            Errno::EINTR => Reaction::CloseConnection,",
    },
    Defect {
        name: "never tries again after it ran out of descriptors",
        file: "crates/epoll-reactor/src/listener.rs",
        right: "            self.accept_retry = Some(self.accept_retry.map_or(retry, |at| at.min(retry)));\n",
        wrong: "",
    },
    Defect {
        name: "lets the end of the input overtake messages that wait their turn",
        file: "crates/epoll-reactor/src/connection.rs",
        right: " && !self.eof && !self.again",
        wrong: " && !self.eof",
    },
    Defect {
        name: "forgets the messages that were over a turn's budget",
        file: "crates/epoll-reactor/src/turn.rs",
        right: "self.more_messages = taken.more;",
        wrong: "self.more_messages = false;",
    },
    Defect {
        name: "forgets the clients that were over a turn's budget when they were handed over",
        file: "crates/epoll-reactor/src/remote.rs",
        right: "!queue.messages.is_empty() || !queue.handed.is_empty()",
        wrong: "!queue.messages.is_empty()",
    },
    Defect {
        name: "drops a client that another loop does not take",
        file: "crates/epoll-reactor/src/balance.rs",
        right: "Err(Handed { listener, fd, peer, .. }) => self.admit(listener, fd, peer, entry),",
        wrong: "Err(_) => Accepted::One,",
    },
    Defect {
        name: "moves a connection to another loop with output waiting",
        file: "crates/epoll-reactor/src/moving.rs",
        right: "        && connection.output.is_none()\n",
        wrong: "",
    },
    Defect {
        name: "loses the rest of a write that was cut short",
        file: "crates/epoll-reactor/src/flush.rs",
        right: "        self.ctx.direct.drain(..written);\n        self.ctx.move_direct_to_queue(id);",
        wrong: "        self.ctx.direct.clear();\n        let _ = written;",
    },
    Defect {
        name: "sleeps through its deadlines",
        file: "crates/epoll-reactor/src/turn.rs",
        right: "let until_deadline = self.next_deadline().map(|at| at - self.ctx.now());",
        wrong: "let until_deadline = None;",
    },
    Defect {
        name: "never sends the FIN of a half-close",
        file: "crates/epoll-reactor/src/flush.rs",
        right: "let _: bool = self.send_fin(id);",
        wrong: "let _ = id;",
    },
    Defect {
        name: "lets an unfinished message grow beyond the limit of input",
        file: "crates/epoll-reactor/src/serve.rs",
        right: "if length >= self.ctx.limits.input && !held_up {",
        wrong: "if length == usize::MAX && !held_up {",
    },
    Defect {
        name: "takes a read up to the urgent mark for an empty socket",
        file: "crates/epoll-sys/src/event.rs",
        right: "EpollFlags::EPOLLERR | EpollFlags::EPOLLPRI,",
        wrong: "EpollFlags::EPOLLERR,",
    },
    Defect {
        name: "tries to accept in every turn when it ran out of descriptors",
        file: "crates/epoll-reactor/src/listener.rs",
        right: "            listener.paused = Some(retry);\n            listener.failures = 0;\n            \
                self.accept_retry = Some(self.accept_retry.map_or(retry, |at| at.min(retry)));\n        }\n",
        wrong: "            listener.failures = 0;\n        }\n        let _ = retry;\n        \
                self.make_listener_ready(token);\n",
    },
    Defect {
        name: "takes a connection that sends for an idle one",
        file: "crates/epoll-reactor/src/serve.rs",
        right: "                connection.active = self.ctx.clock.now;\n",
        wrong: "",
    },
    Defect {
        name: "takes a peer that reads slowly for one that does not read",
        file: "crates/epoll-reactor/src/flush.rs",
        right: "&& (written > 0 || queue.blocked_since.is_none())",
        wrong: "&& queue.blocked_since.is_none()",
    },
    Defect {
        name: "never tells a slow receiver what it has missed",
        file: "crates/epoll-protocols/src/broadcast/delivery.rs",
        right: "    if ctx.queued(id) > config.receiver_limit / 2 {\n",
        wrong: "    if ctx.queued(id) < usize::MAX {\n",
    },
    Defect {
        name: "never tells another loop that there is room for its lines",
        file: "crates/epoll-protocols/src/broadcast/loops.rs",
        right: "if link.is_to_be_told(self.window)\n",
        wrong: "if false\n",
    },
    Defect {
        name: "lets a loop go before what its clients are still to hear of others",
        file: "crates/epoll-protocols/src/broadcast/loops.rs",
        right: "filter(|peer| peer.heard_last && !drains)",
        wrong: "filter(|peer| peer.heard_last && (drains || !drains))",
    },
    Defect {
        name: "begins a file again after a short count",
        file: "crates/epoll-reactor/src/buffer.rs",
        right: "                    slice.offset = slice.offset.saturating_add(part);\n",
        wrong: "",
    },
    Defect {
        name: "forgets the ready list when the write budget is used up",
        file: "crates/epoll-reactor/src/flush.rs",
        right: "                connection.budget_spent = true;\n                self.ctx.make_ready(id);\n",
        wrong: "",
    },
    Defect {
        name: "never gives back the place of an address",
        file: "crates/epoll-reactor/src/admission.rs",
        right: "            *open -= 1;\n",
        wrong: "",
    },
    Defect {
        name: "lets in one more of an address than it may have",
        file: "crates/epoll-reactor/src/admission.rs",
        right: "Some(open) if open >= limits.connections_per_address",
        wrong: "Some(open) if open > limits.connections_per_address",
    },
    Defect {
        name: "closes at once, with input unread, whom it has told that there is no room",
        file: "crates/epoll-reactor/src/close.rs",
        right: "if connection.eof || !shut {",
        wrong: "if connection.eof || !shut || connection.refused {",
    },
];

/// Plants each defect and runs the simulation on it; an error if one is not found.
pub(crate) fn run(options: &Options, out: &mut impl Write) -> io::Result<()> {
    let chosen = chosen(&options.only)?;
    let copy = target()?.join("canary/sources");
    copy_sources(&copy)?;
    // The same seeds find nothing where nothing is planted, or what they find says nothing.
    if let Some(found) = simulate(&copy)? {
        writeln!(out, "    {}", found.told)?;
        return Err(io::Error::other(format!("run {} fails with nothing planted", found.runs)));
    }
    writeln!(out, "nothing in {RUNS} runs with nothing planted")?;
    let mut missed = 0;
    for defect in &chosen {
        match plant(&copy, defect)? {
            Some(found) => {
                writeln!(out, "found by run {:>5} of {RUNS}: {}", found.runs, defect.name)?;
                writeln!(out, "    {}", found.told)?;
            }
            None => {
                missed += 1;
                writeln!(out, "not found in {RUNS} runs: {}", defect.name)?;
            }
        }
        out.flush()?;
    }
    if missed > 0 {
        return Err(io::Error::other(format!("{missed} planted defects were not found")));
    }
    writeln!(out, "{} planted defects, each of them found", chosen.len())
}

/// Those whose names contain one of `parts`; all if there are none. A part that no name contains is an error.
fn chosen(parts: &[String]) -> io::Result<Vec<&'static Defect>> {
    let has = |defect: &Defect, part: &String| defect.name.contains(part.as_str());
    if let Some(part) = parts.iter().find(|part| !DEFECTS.iter().any(|defect| has(defect, part))) {
        let names: Vec<&str> = DEFECTS.iter().map(|defect| defect.name).collect();
        return Err(io::Error::other(format!("no defect {part:?}, but\n  {}", names.join("\n  "))));
    }
    let wanted = |defect: &&Defect| parts.is_empty() || parts.iter().any(|part| has(defect, part));
    Ok(DEFECTS.iter().filter(wanted).collect())
}

/// How a defect was found.
struct Found {
    /// After so many runs.
    runs: u64,
    /// The failure, with the scenario and the seed.
    told: String,
}

/// Copies what git knows of; a build that was made of an earlier copy is used again.
fn copy_sources(copy: &Path) -> io::Result<()> {
    let list = output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    for name in list.lines() {
        let from = root().join(name);
        let to = copy.join(name);
        // A file that has been deleted and not committed is in the list.
        let Ok(text) = std::fs::read(&from) else { continue };
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if std::fs::read(&to).ok().as_ref() != Some(&text) {
            std::fs::write(&to, text)?;
        }
    }
    Ok(())
}

/// How the defect was found; `None` if it was not. The copy is as before afterwards.
fn plant(copy: &Path, defect: &Defect) -> io::Result<Option<Found>> {
    let path: PathBuf = copy.join(defect.file);
    let right = std::fs::read_to_string(&path)?;
    if right.matches(defect.right).count() != 1 {
        let message = format!("{}: the place to plant {:?} is not there once", defect.file, defect.name);
        return Err(io::Error::other(message));
    }
    std::fs::write(&path, right.replace(defect.right, defect.wrong))?;
    let found = simulate(copy);
    std::fs::write(&path, right)?;
    found.map_err(|error| io::Error::other(format!("{}: {error}", defect.name)))
}

/// Runs the simulation on the copy as it is; what it finds, if it does.
fn simulate(copy: &Path) -> io::Result<Option<Found>> {
    let result = Command::new(env!("CARGO"))
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", target()?.join("canary/build"))
        // Without optimisation, which takes longer than the runs.
        .args(["run", "--quiet", "-p", "xtask", "--", "sim", "--first-seed", "1"])
        .args(["--runs", &RUNS.to_string(), "--minutes", MINUTES])
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    verdict(result.status.success(), &text(&result.stdout), &text(&result.stderr))
}

/// What a simulation has found, by what it has printed; an error if it did not run, or not so often.
fn verdict(success: bool, output: &str, errors: &str) -> io::Result<Option<Found>> {
    if success {
        let runs = output.lines().find_map(|line| line.strip_suffix(" runs: nothing found")?.parse().ok());
        return match runs {
            Some(runs) if RUNS <= runs => Ok(None),
            runs => Err(io::Error::other(format!("{} runs, not {RUNS}", runs.unwrap_or(0)))),
        };
    }
    // `xtask: 1 of N runs failed`
    let runs = errors.lines().find_map(|line| {
        line.strip_prefix("xtask: ")?.split_once(" of ")?.1.split_once(" runs failed")?.0.parse().ok()
    });
    let Some(runs) = runs else { return Err(io::Error::other(errors)) };
    let failure = output.lines().rfind(|line| line.starts_with("FAILED: "));
    let told = failure.unwrap_or("FAILED, and nothing is told of it").to_owned();
    Ok(Some(Found { runs, told }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_no_name_is_an_error_that_lists_the_names() {
        let part = |text: &str| vec![text.to_owned()];
        assert_eq!(chosen(&[]).unwrap().len(), DEFECTS.len());
        assert_eq!(chosen(&part("generation")).unwrap().len(), 1);
        let error = chosen(&[part("generation"), part("zzz")].concat()).err().unwrap().to_string();
        assert!(error.contains("zzz") && DEFECTS.iter().all(|it| error.contains(it.name)), "{error}");
    }

    #[test]
    fn a_simulation_that_was_cut_short_has_not_found_nothing() {
        let nothing = |runs: u64| {
            verdict(true, &format!("{runs} runs, 9 turns; injected:\n{runs} runs: nothing found\n"), "")
        };
        assert!(nothing(RUNS).unwrap().is_none());
        assert!(nothing(RUNS - 1).is_err());
        assert!(verdict(true, "", "").is_err() && verdict(false, "", "error: it does not build").is_err());
        let told = "FAILED: scenario echo, seed 2: echo: 1 is 2\n  again: ...\n";
        let found = verdict(false, told, "xtask: 1 of 7 runs failed\n").unwrap().unwrap();
        assert_eq!((found.runs, found.told.as_str()), (7, "FAILED: scenario echo, seed 2: echo: 1 is 2"));
    }

    /// A defect is a change of the sources as they are, so whoever changes them sees here what must go with it.
    #[test]
    fn each_defect_has_its_place() {
        for defect in &DEFECTS {
            let text = std::fs::read_to_string(root().join(defect.file)).unwrap();
            assert_eq!(text.matches(defect.right).count(), 1, "{}: {}", defect.file, defect.name);
        }
    }
}
