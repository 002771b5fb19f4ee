//! What may go wrong, and how often.

use std::time::Duration;

use fastrand::Rng;

use super::network::{Network, log_uniform};

/// Certainty, for the probabilities of [`Faults`] and [`Network`], which count in millionths.
pub const ALWAYS: u32 = 1_000_000;

/// What goes wrong, as probabilities in millionths for each call or event that it may befall.
///
/// None of them makes the kernel lie: the bytes that a short read has left are on their way again and an
/// edge follows, as one does after every `EAGAIN` and every short write. Those that say so give a call a
/// rest after it was hit, so that at [`ALWAYS`] a program that tries again still gets ahead.
#[derive(Clone, Debug)]
pub struct Faults {
    /// The network.
    pub network: Network,
    /// Descriptors that may be open at once; more are refused with `EMFILE`.
    pub max_open: usize,
    /// The longest that a call takes. [`Kernel::wait`](crate::Kernel::wait) always takes a microsecond.
    pub call_time: Duration,

    /// A read that gets less than there is. The rest arrives again later.
    pub short_recv: u32,
    /// A write that takes less than there is room for. An edge tells of the room later.
    pub short_send: u32,
    /// `EAGAIN` for a read although there is data, which arrives again later. Not twice in a row.
    pub eagain_recv: u32,
    /// `EAGAIN` for a write although there is room; an edge tells of it later. Not twice in a row.
    pub eagain_send: u32,
    /// `EINTR` for a call that may wait: accept, read, `read_signal`, recv, send, sendfile,
    /// wait, write, writev. Not twice in a row.
    pub eintr: u32,
    /// Just before a recv or send, the connection is reset, at both ends; the call finds out.
    pub econnreset: u32,
    /// Just before a send, the connection is cut at both ends, and the send says `EPIPE`.
    pub epipe: u32,
    /// Just before a recv or send, the connection times out; the peer is reset.
    pub etimedout: u32,
    /// `ENOBUFS` for a send. Nothing else happens to the connection.
    pub enobufs: u32,
    /// `EMFILE` for whatever makes a descriptor. A connection that waits to be accepted goes on waiting, and
    /// no edge tells of it (that is what Linux does).
    pub emfile: u32,
    /// `ENFILE`, likewise.
    pub enfile: u32,
    /// `ENOMEM` for an add.
    pub enomem: u32,
    /// `ENOSPC` for an add.
    pub enospc: u32,
    /// `ENOBUFS` for an accept: the connection goes on waiting, and no edge tells of it.
    pub accept_enobufs: u32,
    /// `ENOMEM`, likewise.
    pub accept_enomem: u32,
    /// `ECONNABORTED` for an accept, which loses the connection it would have given.
    pub econnaborted: u32,
    /// `EPERM`, likewise: a firewall forbids it.
    pub eperm: u32,
    /// `EPROTO`, likewise.
    pub eproto: u32,
    /// A wait reports a descriptor as readable and writable whether it is or not.
    pub spurious: u32,
    /// A registration that ends leaves an event behind, which a later wait reports.
    pub stale: u32,
    /// An event is kept back for up to a few milliseconds. Not twice in a row.
    pub held: u32,
    /// The events of a wait come in another order.
    pub shuffled: u32,
    /// A wait returns at once, with nothing. Not twice in a row.
    pub early: u32,
    /// In a wait, the monotonic clock jumps forward, by up to ten seconds: the process was stopped. (While the whole machine
    /// is suspended, it stands still.)
    pub jump: u32,
    /// In a wait, the wall clock is set, by up to an hour either way.
    pub wall_jump: u32,
}

impl Faults {
    /// Nothing goes wrong, and the network is [steady](Network::steady).
    #[must_use]
    pub const fn none() -> Self {
        Self {
            network: Network::steady(),
            max_open: usize::MAX,
            call_time: Duration::ZERO,
            short_recv: 0,
            short_send: 0,
            eagain_recv: 0,
            eagain_send: 0,
            eintr: 0,
            econnreset: 0,
            epipe: 0,
            etimedout: 0,
            enobufs: 0,
            emfile: 0,
            enfile: 0,
            enomem: 0,
            enospc: 0,
            accept_enobufs: 0,
            accept_enomem: 0,
            econnaborted: 0,
            eperm: 0,
            eproto: 0,
            spurious: 0,
            stale: 0,
            held: 0,
            shuffled: 0,
            early: 0,
            jump: 0,
            wall_jump: 0,
        }
    }

    /// Everything that costs no connection, with the same `probability`: a correct program's clients notice
    /// nothing of it but time.
    #[must_use]
    pub const fn transient(probability: u32) -> Self {
        Self {
            short_recv: probability,
            short_send: probability,
            eagain_recv: probability,
            eagain_send: probability,
            eintr: probability,
            spurious: probability,
            stale: probability,
            held: probability,
            shuffled: probability,
            early: probability,
            wall_jump: probability,
            call_time: Duration::from_micros(5),
            ..Self::none()
        }
    }

    /// Swarm testing: from `seed`, some of the faults, each with a strength of its own, in a network drawn
    /// from it too. Runs with different seeds find more than runs that have a little of everything, since
    /// some faults hide others.
    #[must_use]
    pub fn swarm(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut faults = Self::none();
        faults.network = Network::drawn(&mut rng);
        faults.call_time = Duration::from_nanos(log_uniform(&mut rng, 10, 20_000));
        for (probability, most) in faults.knobs() {
            if rng.bool() {
                *probability = rng.u32(0..=most);
            }
        }
        faults
    }

    /// The same without what costs connections: errors, and the clock's jumps, which end deadlines early.
    #[must_use]
    pub fn without_losses(mut self) -> Self {
        for probability in [
            &mut self.econnreset,
            &mut self.epipe,
            &mut self.etimedout,
            &mut self.enobufs,
            &mut self.emfile,
            &mut self.enfile,
            &mut self.enomem,
            &mut self.enospc,
            &mut self.accept_enobufs,
            &mut self.accept_enomem,
            &mut self.econnaborted,
            &mut self.eperm,
            &mut self.eproto,
            &mut self.jump,
        ] {
            *probability = 0;
        }
        self
    }

    /// Each probability, with the most that a swarm gives it.
    fn knobs(&mut self) -> [(&mut u32, u32); 25] {
        [
            (&mut self.short_recv, 500_000),
            (&mut self.short_send, 500_000),
            (&mut self.eagain_recv, 300_000),
            (&mut self.eagain_send, 300_000),
            (&mut self.eintr, 200_000),
            (&mut self.econnreset, 10_000),
            (&mut self.epipe, 10_000),
            (&mut self.etimedout, 10_000),
            (&mut self.enobufs, 10_000),
            (&mut self.emfile, 200_000),
            (&mut self.enfile, 100_000),
            (&mut self.enomem, 20_000),
            (&mut self.enospc, 20_000),
            (&mut self.accept_enobufs, 20_000),
            (&mut self.accept_enomem, 20_000),
            (&mut self.econnaborted, 50_000),
            (&mut self.eperm, 20_000),
            (&mut self.eproto, 20_000),
            (&mut self.spurious, 300_000),
            (&mut self.stale, 300_000),
            (&mut self.held, 300_000),
            (&mut self.shuffled, ALWAYS),
            (&mut self.early, 100_000),
            (&mut self.jump, 1_000),
            (&mut self.wall_jump, 1_000),
        ]
    }

    pub(super) const fn probability(&self, fault: Fault) -> u32 {
        match fault {
            Fault::ShortRecv => self.short_recv,
            Fault::ShortSend => self.short_send,
            Fault::EagainRecv => self.eagain_recv,
            Fault::EagainSend => self.eagain_send,
            Fault::Eintr => self.eintr,
            Fault::Econnreset => self.econnreset,
            Fault::Epipe => self.epipe,
            Fault::Etimedout => self.etimedout,
            Fault::Enobufs => self.enobufs,
            Fault::Emfile => self.emfile,
            Fault::Enfile => self.enfile,
            Fault::Enomem => self.enomem,
            Fault::Enospc => self.enospc,
            Fault::AcceptEnobufs => self.accept_enobufs,
            Fault::AcceptEnomem => self.accept_enomem,
            Fault::Econnaborted => self.econnaborted,
            Fault::Eperm => self.eperm,
            Fault::Eproto => self.eproto,
            Fault::Spurious => self.spurious,
            Fault::Stale => self.stale,
            Fault::Held => self.held,
            Fault::Shuffled => self.shuffled,
            Fault::Early => self.early,
            Fault::Jump => self.jump,
            Fault::WallJump => self.wall_jump,
            Fault::Stall => self.network.stall,
            Fault::FinApart => self.network.fin_apart,
            Fault::ResetOvertakes => self.network.reset_overtakes,
        }
    }
}

/// Two in a hundred of everything [transient](Faults::transient).
impl Default for Faults {
    fn default() -> Self {
        Self::transient(ALWAYS / 50)
    }
}

/// Each field of [`Faults`] and [`Network`] that is a probability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    ShortRecv,
    ShortSend,
    EagainRecv,
    EagainSend,
    Eintr,
    Econnreset,
    Epipe,
    Etimedout,
    Enobufs,
    Emfile,
    Enfile,
    Enomem,
    Enospc,
    AcceptEnobufs,
    AcceptEnomem,
    Econnaborted,
    Eperm,
    Eproto,
    Spurious,
    Stale,
    Held,
    Shuffled,
    Early,
    Jump,
    WallJump,
    Stall,
    FinApart,
    ResetOvertakes,
}

impl Fault {
    /// As the fields are called, in the order of the variants.
    pub(super) const NAMES: [&'static str; 28] = [
        "short_recv",
        "short_send",
        "eagain_recv",
        "eagain_send",
        "eintr",
        "econnreset",
        "epipe",
        "etimedout",
        "enobufs",
        "emfile",
        "enfile",
        "enomem",
        "enospc",
        "accept_enobufs",
        "accept_enomem",
        "econnaborted",
        "eperm",
        "eproto",
        "spurious",
        "stale",
        "held",
        "shuffled",
        "early",
        "jump",
        "wall_jump",
        "stall",
        "fin_apart",
        "reset_overtakes",
    ];

    pub(super) fn name(self) -> &'static str {
        Self::NAMES.get(self as usize).copied().unwrap_or("?")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swarm_differs_from_seed_to_seed_and_not_from_run_to_run() {
        let texts: Vec<String> = (0..50).map(|seed| format!("{:?}", Faults::swarm(seed))).collect();
        for (seed, text) in (0..).zip(&texts) {
            assert_eq!(&format!("{:?}", Faults::swarm(seed)), text);
        }
        assert!(texts.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_swarm_turns_each_fault_on_in_some_runs_and_off_in_others() {
        let runs: Vec<Vec<bool>> = (0..50)
            .map(|seed| {
                Faults::swarm(seed).knobs().iter().map(|(probability, _)| **probability > 0).collect()
            })
            .collect();
        for fault in 0..runs[0].len() {
            assert!(runs.iter().any(|run| run[fault]) && runs.iter().any(|run| !run[fault]), "{fault}");
        }
    }

    #[test]
    fn none_is_none_and_transient_costs_nothing() {
        assert!(Faults::none().knobs().iter().all(|(probability, _)| **probability == 0));
        let transient = format!("{:?}", Faults::transient(5));
        assert_eq!(format!("{:?}", Faults::transient(5).without_losses()), transient);
        assert!(
            Faults::swarm(3).without_losses().knobs()[5..18]
                .iter()
                .all(|(probability, _)| **probability == 0)
        );
    }
}
