//! A turn that never ends cannot be told by the run it is in: another thread does, and ends the program.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::plan::Plan;

/// A run takes milliseconds, or some seconds at most, in a debug build on a busy machine: one that takes longer is
/// named, so that whoever waits knows for what,
const LONG: Duration = Duration::from_secs(10);
/// and in the end given up.
const MOST: Duration = Duration::from_secs(180);

/// A run under way.
struct Run {
    /// The command that runs it again.
    plan: String,
    start: Instant,
    /// It has been named.
    named: bool,
}

type Runs = HashMap<ThreadId, Run>;

/// While it lives, its thread's run is under watch.
#[derive(Debug)]
pub(crate) struct Watching(ThreadId);

pub(crate) fn watch(plan: &Plan) -> Watching {
    static THREAD: OnceLock<()> = OnceLock::new();
    THREAD.get_or_init(|| drop(thread::spawn(look_forever)));
    let thread = thread::current().id();
    runs().insert(thread, Run { plan: plan.to_string(), start: Instant::now(), named: false });
    Watching(thread)
}

fn runs() -> MutexGuard<'static, Runs> {
    static RUNS: OnceLock<Mutex<Runs>> = OnceLock::new();
    RUNS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_forever() {
    loop {
        thread::sleep(Duration::from_secs(1));
        for run in runs().values_mut() {
            let (plan, time) = (&run.plan, run.start.elapsed().as_secs());
            if run.start.elapsed() > MOST {
                tell(&format!("FAILED: a turn that does not end, for {time} s\n  again: {plan}\n"));
                std::process::exit(1);
            }
            if run.start.elapsed() > LONG && !run.named {
                tell(&format!("\nunder way for {time} s: {plan}\n"));
                run.named = true;
            }
        }
    }
}

/// There is nobody else to tell.
fn tell(told: &str) {
    let _: std::io::Result<()> = std::io::stderr().write_all(told.as_bytes());
}

impl Drop for Watching {
    fn drop(&mut self) {
        runs().remove(&self.0);
    }
}
