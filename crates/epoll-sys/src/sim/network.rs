//! How bytes travel in a simulated world: delays, pieces and buffers.

use std::time::Duration;

use fastrand::Rng;

#[cfg(doc)]
use super::Faults;
use super::faults::ALWAYS;

/// How bytes travel. A TCP connection has one way in each direction; what is sent is on its way at first and
/// arrives in pieces, in order. Unix sockets have no network: what is sent is there.
///
/// Ranges are inclusive. Probabilities are in millionths, [`ALWAYS`] being certainty.
#[derive(Clone, Debug)]
pub struct Network {
    /// Time from sending to arrival of the first piece, and of everything else that travels alone.
    pub latency: (Duration, Duration),
    /// Time between the pieces that follow one another.
    pub gap: (Duration, Duration),
    /// The largest piece, in bytes.
    pub segment: (usize, usize),
    /// Probability that a piece is stalled for a while, of a uniform length up to `stall_for`.
    pub stall: u32,
    /// The longest stall.
    pub stall_for: Duration,
    /// Probability that a FIN comes by itself, not with the last of the data.
    pub fin_apart: u32,
    /// Probability that a reset destroys what is still on its way before it.
    pub reset_overtakes: u32,
    /// Send buffer of a connection, in bytes: what is on its way, or held up by the receiver.
    pub send_buffer: (usize, usize),
    /// Receive buffer of a connection, in bytes. Unix sockets have none; their send buffer counts until the
    /// reader has read.
    pub receive_buffer: (usize, usize),
}

impl Network {
    /// Fast, even, and with buffers as large as they are by default; nothing is cut or stalled.
    #[must_use]
    pub const fn steady() -> Self {
        let latency = Duration::from_micros(20);
        let gap = Duration::from_micros(1);
        Self {
            latency: (latency, latency),
            gap: (gap, gap),
            segment: (65_483, 65_483),
            stall: 0,
            stall_for: Duration::ZERO,
            fin_apart: 0,
            reset_overtakes: 0,
            send_buffer: (256 * 1024, 256 * 1024),
            receive_buffer: (128 * 1024, 128 * 1024),
        }
    }

    /// A network drawn from `rng`: fast or slow, with large pieces or single bytes, small buffers or large.
    pub(super) fn drawn(rng: &mut Rng) -> Self {
        let slowest = Duration::from_micros(log_uniform(rng, 10, 100_000));
        let segment = size(log_uniform(rng, 1, 65_483));
        let buffer = |rng: &mut Rng| {
            let (a, b) = (size(log_uniform(rng, 2_048, 1 << 20)), size(log_uniform(rng, 2_048, 1 << 20)));
            (a.min(b), a.max(b))
        };
        let mut sometimes = |strength| if rng.bool() { rng.u32(0..=strength) } else { 0 };
        Self {
            latency: (Duration::from_micros(1), slowest),
            gap: (Duration::ZERO, slowest / 8),
            segment: (1, segment),
            stall: sometimes(100_000),
            stall_for: Duration::from_secs(3),
            fin_apart: sometimes(ALWAYS),
            reset_overtakes: sometimes(ALWAYS),
            send_buffer: buffer(rng),
            receive_buffer: buffer(rng),
        }
    }
}

/// Between `low` and `high`, each order of magnitude as likely as the others. `low` is at least 1.
pub(super) fn log_uniform(rng: &mut Rng, low: u64, high: u64) -> u64 {
    let magnitude = rng.u32(low.ilog2()..=high.ilog2());
    rng.u64(1 << magnitude..=(2 << magnitude) - 1).clamp(low, high)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_within_their_range() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..1_000 {
            assert!((3..=70).contains(&log_uniform(&mut rng, 3, 70)));
        }
    }
}
