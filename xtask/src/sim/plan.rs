//! A run before it is run: everything that its seed decides at the start, and what has been taken away from
//! it since, to see whether it still fails.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use epoll_reactor::sim::{ALWAYS, Faults, Network};
use fastrand::Rng;

/// Which handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Callbacks that do anything a callback may.
    Random,
    Echo,
    /// The same in several loops that hand clients to each other.
    EchoLoops,
    Broadcast,
    /// The same in several loops.
    BroadcastLoops,
    Http,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Random, Self::Echo, Self::EchoLoops, Self::Broadcast, Self::BroadcastLoops, Self::Http];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Echo => "echo",
            Self::EchoLoops => "echo-loops",
            Self::Broadcast => "broadcast",
            Self::BroadcastLoops => "broadcast-loops",
            Self::Http => "http",
        }
    }
}

/// What has been taken away from a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cuts {
    /// At most so many clients: the first ones, with the same scripts.
    pub(crate) clients: Option<usize>,
    /// At most so many turns before the drain.
    pub(crate) turns: Option<usize>,
    /// Faults that do not happen, by name; see [`fault_names`].
    pub(crate) without: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
    pub(crate) clients: usize,
    /// Turns before the drain. A gentle run drains when all clients have said and heard everything.
    pub(crate) turns: usize,
    /// Only faults that cost no connection, and only polite clients: nobody may lose anything.
    pub(crate) gentle: bool,
    pub(crate) faults: Faults,
    pub(crate) cuts: Cuts,
}

type Knob = fn(&mut Faults);

const KNOBS: [(&str, Knob); 30] = [
    ("short_recv", |faults| faults.short_recv = 0),
    ("short_send", |faults| faults.short_send = 0),
    ("eagain_recv", |faults| faults.eagain_recv = 0),
    ("eagain_send", |faults| faults.eagain_send = 0),
    ("eintr", |faults| faults.eintr = 0),
    ("econnreset", |faults| faults.econnreset = 0),
    ("epipe", |faults| faults.epipe = 0),
    ("etimedout", |faults| faults.etimedout = 0),
    ("enobufs", |faults| faults.enobufs = 0),
    ("emfile", |faults| faults.emfile = 0),
    ("enfile", |faults| faults.enfile = 0),
    ("enomem", |faults| faults.enomem = 0),
    ("enospc", |faults| faults.enospc = 0),
    ("accept_enobufs", |faults| faults.accept_enobufs = 0),
    ("accept_enomem", |faults| faults.accept_enomem = 0),
    ("econnaborted", |faults| faults.econnaborted = 0),
    ("eperm", |faults| faults.eperm = 0),
    ("eproto", |faults| faults.eproto = 0),
    ("spurious", |faults| faults.spurious = 0),
    ("stale", |faults| faults.stale = 0),
    ("held", |faults| faults.held = 0),
    ("shuffled", |faults| faults.shuffled = 0),
    ("early", |faults| faults.early = 0),
    ("jump", |faults| faults.jump = 0),
    ("wall_jump", |faults| faults.wall_jump = 0),
    ("stall", |faults| faults.network.stall = 0),
    ("fin_apart", |faults| faults.network.fin_apart = 0),
    ("reset_overtakes", |faults| faults.network.reset_overtakes = 0),
    ("call_time", |faults| faults.call_time = Duration::ZERO),
    ("network", |faults| faults.network = Network::steady()),
];

pub(crate) fn fault_names() -> impl Iterator<Item = &'static str> {
    KNOBS.iter().map(|(name, _)| *name)
}

impl Plan {
    pub(crate) fn new(kind: Kind, seed: u64, cuts: &Cuts) -> Self {
        let mut rng = chance(seed, 0);
        let gentle = rng.u8(0..4) == 0;
        let mut faults = match (gentle, rng.u8(0..8)) {
            (false, 0) => Faults::none(),
            (true, 0..3) => Faults::transient(rng.u32(0..=ALWAYS / 3)),
            (true, _) => Faults::swarm(rng.u64(..)).without_losses(),
            (false, _) => Faults::swarm(rng.u64(..)),
        };
        if !gentle && rng.u8(0..3) == 0 {
            // Full at once, for those who do not read.
            faults.network.send_buffer = (2_048, 4_096);
            faults.network.receive_buffer = (1_024, 4_096);
        }
        if !gentle && rng.u8(0..8) == 0 {
            // More than the loop and what is around it begin with.
            faults.max_open = rng.usize(9..22);
        }
        if matches!(kind, Kind::Broadcast | Kind::BroadcastLoops) {
            // Everything is said to everybody: byte by byte that takes for ever.
            faults.network.segment.1 = faults.network.segment.1.max(16);
        }
        for (name, switch_off) in KNOBS {
            if cuts.without.contains(name) {
                switch_off(&mut faults);
            }
        }
        let clients = rng.usize(1..=12);
        let turns = 1 << rng.u32(4..=10);
        Self {
            kind,
            seed,
            clients: cuts.clients.unwrap_or(clients).min(clients),
            turns: cuts.turns.unwrap_or(turns).min(turns),
            gentle,
            faults,
            cuts: cuts.clone(),
        }
    }

    /// A source of chance of its own for each purpose: what one draws changes nothing for the others.
    pub(crate) fn chance(&self, purpose: u64) -> Rng {
        chance(self.seed, purpose)
    }

    /// How many bytes one client may say in all: where they travel in small pieces, fewer.
    pub(crate) fn bytes(&self, rng: &mut Rng) -> usize {
        let most = (self.faults.network.segment.1 * 20).clamp(256, 64 * 1024);
        magnitude(rng, 1, most)
    }
}

/// The command that runs it again.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cargo xtask sim --scenario {} --seed {}", self.kind.name(), self.seed)?;
        if let Some(clients) = self.cuts.clients {
            write!(f, " --clients {clients}")?;
        }
        if let Some(turns) = self.cuts.turns {
            write!(f, " --turns {turns}")?;
        }
        for name in &self.cuts.without {
            write!(f, " --without {name}")?;
        }
        Ok(())
    }
}

pub(crate) fn chance(seed: u64, purpose: u64) -> Rng {
    Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03))
}

/// Between `low` and `high`, each order of magnitude as likely as the others. `low` is at least 1.
pub(crate) fn magnitude(rng: &mut Rng, low: usize, high: usize) -> usize {
    let power = rng.u32(low.ilog2()..=high.max(low).ilog2());
    rng.usize(1 << power..2 << power).clamp(low, high.max(low))
}

/// The same for times.
pub(crate) fn a_while(rng: &mut Rng, low: Duration, high: Duration) -> Duration {
    let micros = |time: Duration| usize::try_from(time.as_micros()).unwrap_or(usize::MAX).max(1);
    Duration::from_micros(magnitude(rng, micros(low), micros(high)) as u64)
}
