//! Limits drawn from a seed.

use std::time::Duration;

use epoll_reactor::Limits;
use fastrand::Rng;

use super::plan::{Plan, a_while, magnitude};

/// What clients are told for whom there is no room. No stream begins so, and it is too short to be the name of a speaker:
/// see `voice.rs`.
pub(crate) const REFUSAL: &[u8] = b"\xfefull";

/// Small numbers are as likely as large ones, since most mistakes are made at a limit.
pub(crate) fn draw_limits(plan: &Plan, rng: &mut Rng) -> Limits {
    let second = Duration::from_secs(1);
    let output = magnitude(rng, 64, 1 << 22);
    let output_high_water = magnitude(rng, 1, output);
    let mut limits = Limits {
        connections: magnitude(rng, 1, 64),
        read_buffer: magnitude(rng, 1, 1 << 16),
        read_budget: magnitude(rng, 1, 1 << 18),
        write_budget: magnitude(rng, 16, 1 << 18),
        accept_budget: magnitude(rng, 1, 64),
        message_budget: magnitude(rng, 1, 64),
        message_queue: magnitude(rng, 1, 256),
        input: magnitude(rng, 1, 1 << 17),
        output_high_water,
        output_low_water: rng.usize(0..output_high_water),
        output,
        memory: magnitude(rng, 4_096, 1 << 26),
        idle_timeout: (rng.u8(0..4) == 0).then(|| a_while(rng, second / 1_000, second * 600)),
        write_stall_timeout: a_while(rng, second / 1_000, second * 600),
        connect_timeout: a_while(rng, second / 1_000, second * 100),
        linger_quiet: a_while(rng, second / 1_000, second * 10),
        linger_timeout: a_while(rng, second / 1_000, second * 100),
        linger_bytes: magnitude(rng, 1, 1 << 20),
        accept_retry: a_while(rng, second / 1_000, second),
        tick: (rng.u8(0..4) == 0).then(|| a_while(rng, second / 50, second * 10)),
        drain_grace: a_while(rng, second / 1_000, second * 60),
        ..Limits::default()
    };
    // Of its own, so that it changes nothing for the rest.
    limits.flush_budget = magnitude(&mut plan.chance(7), 1, 64);
    // What travels in small pieces must not be read in small ones too: it would take for ever.
    limits.read_buffer = limits.read_buffer.max(16);
    limits.read_budget = limits.read_budget.max(16);
    if plan.gentle {
        let long = second * 24 * 3_600;
        limits.connections = 64;
        limits.memory = 1 << 26;
        limits.idle_timeout = None;
        limits.write_stall_timeout = long;
        limits.connect_timeout = long;
        limits.linger_quiet = long;
        limits.linger_timeout = long;
        limits.linger_bytes = usize::MAX;
        // Not so long: where both ends of a connection are in this loop, each may wait for the other to read.
        limits.drain_grace = second * 600;
    } else {
        // Of its own, so that it changes nothing for the rest.
        let mut rng = plan.chance(6);
        if rng.u8(0..3) == 0 {
            // Nearly all clients have one address.
            limits.connections_per_address = magnitude(&mut rng, 1, 16);
        }
        if rng.bool() {
            limits.refusal = REFUSAL;
        }
        let mut rng = plan.chance(8);
        if rng.bool() {
            // A wait takes a microsecond at least.
            let target = a_while(&mut rng, second / 1_000_000, second / 1_000);
            limits.lag_interval = target * magnitude(&mut rng, 1, 20) as u32;
            limits.lag_target = Some(target);
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::plan::{Cuts, Kind};

    /// A client that has heard everything may be gone while the loop still reads what it said, a few bytes a turn. It is told
    /// of the drain a hundred turns later at most, and a drain of a millisecond would cut it off before: no fault of the loop.
    #[test]
    fn a_gentle_run_has_no_deadline_that_costs_a_connection() {
        let plans = (0..200).map(|seed| Plan::new(Kind::Random, seed, &Cuts::default()));
        let gentle: Vec<Plan> = plans.filter(|plan| plan.gentle).collect();
        assert!(gentle.len() > 20, "{} of them", gentle.len());
        for plan in gentle {
            let limits = draw_limits(&plan, &mut plan.chance(1));
            let deadlines = [
                limits.idle_timeout.unwrap_or(Duration::MAX),
                limits.write_stall_timeout,
                limits.connect_timeout,
                limits.linger_quiet,
                limits.linger_timeout,
                limits.drain_grace,
            ];
            let shortest = deadlines.iter().min();
            assert!(shortest >= Some(&Duration::from_secs(600)), "seed {}: {deadlines:?}", plan.seed);
        }
    }
}
