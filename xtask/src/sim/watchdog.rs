//! A turn that never ends cannot be told by the run it is in: another thread does, and ends the program.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::plan::Plan;

/// A run takes some seconds at most, in a debug build on a busy machine.
const MOST: Duration = Duration::from_secs(180);

/// The runs under way: the command that runs each again, and when it began.
type Runs = HashMap<ThreadId, (String, Instant)>;

/// While it lives, its thread's run is under watch.
#[derive(Debug)]
pub(crate) struct Watching(ThreadId);

pub(crate) fn watch(plan: &Plan) -> Watching {
    static THREAD: OnceLock<()> = OnceLock::new();
    THREAD.get_or_init(|| drop(thread::spawn(look_forever)));
    let thread = thread::current().id();
    runs().insert(thread, (plan.to_string(), Instant::now()));
    Watching(thread)
}

fn runs() -> MutexGuard<'static, Runs> {
    static RUNS: OnceLock<Mutex<Runs>> = OnceLock::new();
    RUNS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_forever() {
    loop {
        thread::sleep(Duration::from_secs(1));
        if let Some((plan, start)) = runs().values().find(|(_, start)| start.elapsed() > MOST) {
            let told =
                format!("FAILED: a turn that does not end, for {:?}\n  again: {plan}\n", start.elapsed());
            // There is nobody else to tell.
            let _: std::io::Result<()> = std::io::stderr().write_all(told.as_bytes());
            std::process::exit(1);
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        runs().remove(&self.0);
    }
}
