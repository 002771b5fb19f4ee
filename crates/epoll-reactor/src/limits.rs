//! Every bound of the loop, in one place, each with its reason.

use std::fmt;
use std::time::Duration;

/// Every bound of a reactor. Nothing in it grows with what a peer chooses, except up to one of these.
///
/// Sizes are in bytes. [`Limits::default`] suits a server with thousands of clients that exchange messages of
/// up to 64 KiB; change what differs with `Limits { idle_timeout: ..., ..Limits::default() }`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at one time, accepted and outbound. Beyond it a new client is accepted and closed at
    /// once, so that it learns of the refusal rather than waiting in the backlog.
    ///
    /// Default: 100,000.
    pub connections: usize,
    /// Accepted connections that one client address may have open; `usize::MAX` for any number. An IPv6 client counts by
    /// its network of 64 bits, a mapped IPv4 one as what it is; those of Unix sockets do not count. One that is being
    /// closed counts until its slot is free, at the end of a turn: leave a client that comes back at once some room.
    ///
    /// Default: `usize::MAX`.
    pub connections_per_address: usize,
    /// What a client is told for whom one of these limits leaves no room, before its connection is closed. Empty: it is
    /// closed at once. Some may be told at a time (a sixteenth of `connections`, and 16), beyond `connections`: each
    /// takes a descriptor meanwhile. It [lingers](Self::linger_quiet) like any connection, but for 2 s at most from the
    /// beginning and 1 MiB. Further ones are closed at once, and so they are where there is no
    /// [`memory`](Self::memory) for the words. The handler never hears of any. At most [`output`](Self::output) long.
    ///
    /// Default: `&[]`.
    pub refusal: &'static [u8],
    /// Size of the loop's read buffer, shared by all connections: how much one `recv` can take. At least 1.
    ///
    /// Default: 64 KiB.
    pub read_buffer: usize,
    /// How much is read from one connection in one turn before the others get theirs. At least 1.
    ///
    /// Default: 256 KiB.
    pub read_budget: usize,
    /// How much of a connection's queue is given to the kernel at one time, before the others get their turn; what is
    /// left goes on in the next turn, which does not wait. A large file to a fast reader must not stall everybody.
    /// What a callback says to its own connection while nothing waits there goes out whole; it is at most
    /// [`output`](Self::output). At least 1.
    ///
    /// Default: 1 MiB.
    pub write_budget: usize,
    /// To how many connections a turn writes at its end, of those to whom others' callbacks have sent, before the loop
    /// looks again what has come; the others have theirs in the next turns, which do not wait. A message to thousands
    /// must not stall everybody, and one that comes meanwhile shares the writes that are still to come. Fewer cost more
    /// turns, each a call of `epoll_wait`; `usize::MAX` is for all at once. A turn that has called many callbacks, or
    /// served many connections without one, writes to four for each, if those are more; while the loop drains, or half of
    /// [`memory`](Self::memory) is in use, to all. At least 1.
    ///
    /// Default: 16.
    pub flush_budget: usize,
    /// How many connections are accepted from one listener in one turn: a storm of new clients must not
    /// starve those that are being served. Of those that [other loops hand over](crate::Workers::balance) as many. At
    /// least 1.
    ///
    /// Default: 64.
    pub accept_budget: usize,
    /// How long what the kernel reports may wait for the loop before it is too long: *lag*, the time between the ends of two
    /// waits, if the second found something at once. Each turn above it halves how many are
    /// [accepted](Self::accept_budget), down to 1; each other one adds 1. If in a whole
    /// [`lag_interval`](Self::lag_interval) not one turn was at or below it and left no client waiting in the backlog, the
    /// loop is *overloaded*, until for as long nothing had to be shed, or so little that with it the loop would have been busy for
    /// less than four fifths of the time. Meanwhile clients beyond that budget, or whose turn
    /// comes so late that they would be served too late, are turned away as where there is no room
    /// ([`refusal`](Self::refusal)), though no more than `accept_budget` are being told at a time; and
    /// [`Ctx::should_shed`](crate::Ctx::should_shed) tells handlers what to shed, so that what they serve had waited no longer
    /// than this when their callback began, and a new client's first request half as long again at most. `None`: all is served, however late. A
    /// target costs a call behind each turn above it, and a reading of the clock before each callback while the loop is
    /// overloaded. Loops that share a Unix socket each do so for themselves: a client whom an idle one has not taken in a whole turn
    /// is turned away by a busy one. Not zero.
    ///
    /// Default: `None`.
    pub lag_target: Option<Duration>,
    /// How long there must be no turn that finds little waiting for it to be more than a burst, and for how
    /// long at least the loop is looked at to see that it is over. Ten or twenty times [`lag_target`](Self::lag_target) is about right (RFC 8289 section 4.3); not below it.
    ///
    /// Default: 100 ms.
    pub lag_interval: Duration,
    /// How many messages from other threads are handed over in one turn. At least 1.
    ///
    /// Default: 256.
    pub message_budget: usize,
    /// How many messages from other threads may wait; beyond it a send says `Full`. Of clients that
    /// [other loops hand over](crate::Workers::balance) as many may, too; beyond it those keep them. At least 1.
    ///
    /// Default: 4096.
    pub message_queue: usize,
    /// How many bytes a handler may leave unconsumed while it waits for the rest of a message. A connection
    /// that reaches it is closed: its message can never fit. At least 1.
    ///
    /// Default: 128 KiB.
    pub input: usize,
    /// A connection with more output than this waiting is not read until it is down to
    /// [`output_low_water`](Self::output_low_water): a peer that does not take its answers gives no new
    /// questions. Above the low water mark, at most [`output`](Self::output).
    ///
    /// Default: 256 KiB.
    pub output_high_water: usize,
    /// When output is down to this, reading goes on and `on_drain` is called.
    ///
    /// Default: 64 KiB.
    pub output_low_water: usize,
    /// How much output may wait on one connection in memory, files not counted: a send that would pass it is refused
    /// whole. One message is never larger.
    ///
    /// Default: 4 MiB.
    pub output: usize,
    /// How much memory input and output that wait may take on all connections together, with what handlers
    /// [account for](crate::Ctx::account). When it is passed, the connections that hold most are closed, with
    /// [`MemoryLimit`](crate::CloseReason::MemoryLimit), until an eighth of it is free; within one callback it may be
    /// passed by that eighth, and a send beyond that is refused.
    ///
    /// Default: 256 MiB.
    pub memory: usize,
    /// How many of the last things it did the loop remembers, for [`Ctx::recording`](crate::Ctx::recording): events,
    /// callbacks and how long they took, reads, writes, turns. Each takes 32 bytes, from the start on. 0: none, since it
    /// is not free: five records and a time for each callback are some 270 instructions a small HTTP request, of 3,700.
    /// 4096 are what a busy loop does in some ten milliseconds, and a quiet one in minutes.
    ///
    /// Default: 0.
    pub recorder: usize,
    /// How many bytes of what clients send the loop keeps beside those records, the last ones, so that a recording can be
    /// [replayed](crate#testing). **It has whatever they send, passwords among it**, and so has every file that is made of
    /// it. All of it is taken from the start on; each read is copied once more. A read that is longer is not kept. Only
    /// with a [`recorder`](Self::recorder). 0: none.
    ///
    /// Default: 0.
    pub capture: usize,
    /// A connection on which nothing was read or written for this long is closed, also while its handler has
    /// paused reading or is at work on an answer. `None`: never; a peer that
    /// vanished is still found by the keep-alive of [`ListenOptions`](crate::ListenOptions).
    ///
    /// Default: `None`.
    pub idle_timeout: Option<Duration>,
    /// A connection with output waiting, of which the peer takes nothing for this long, is closed.
    ///
    /// Default: 30 s.
    pub write_stall_timeout: Duration,
    /// How long an outbound connection may take to be made.
    ///
    /// Default: 10 s.
    pub connect_timeout: Duration,
    /// After our FIN, how long to wait for the peer's next byte or its own FIN before the descriptor is
    /// closed. Closing it earlier can make the kernel send an RST that destroys the answer on its way.
    ///
    /// Default: 1 s.
    pub linger_quiet: Duration,
    /// The same, in all, however busily the peer goes on sending.
    ///
    /// Default: 10 s.
    pub linger_timeout: Duration,
    /// How many bytes of what the peer still sends are read and discarded in that time.
    ///
    /// Default: 16 MiB.
    pub linger_bytes: usize,
    /// After the process ran out of descriptors, how long until accepting is tried again, if no connection
    /// closes before.
    ///
    /// Default: 100 ms.
    pub accept_retry: Duration,
    /// How often [`on_tick`](crate::Handler::on_tick) is called. `None`: never, and an idle loop sleeps.
    ///
    /// Default: `None`.
    pub tick: Option<Duration>,
    /// How long a drain asked for by [`Ctx::drain`](crate::Ctx::drain) or a signal may take.
    ///
    /// Default: 10 s.
    pub drain_grace: Duration,
    /// What a panic in a callback does.
    ///
    /// Default: [`CloseConnection`](PanicPolicy::CloseConnection).
    pub panics: PanicPolicy,
}

/// What a panic in a handler's callback does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicPolicy {
    /// It is logged, closes the connection it was for, if any, and the loop goes on with the handler as the
    /// panic left it. What the callback had said to its own connection is not sent. Only where panics
    /// unwind: with `panic = "abort"` the process ends.
    CloseConnection,
    /// It goes on up through `run`, to whoever called it. The turn it came from was not finished, so the reactor
    /// can only be dropped; further turns are errors. Answers of callbacks before it that were still to leave are sent when
    /// it is dropped; what waits in queues for other connections, or for their peers to read, is lost with them.
    Propagate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_address: usize::MAX,
            refusal: &[],
            read_buffer: 64 * 1024,
            read_budget: 256 * 1024,
            write_budget: 1024 * 1024,
            flush_budget: 16,
            accept_budget: 64,
            lag_target: None,
            lag_interval: Duration::from_millis(100),
            message_budget: 256,
            message_queue: 4096,
            input: 128 * 1024,
            output_high_water: 256 * 1024,
            output_low_water: 64 * 1024,
            output: 4 * 1024 * 1024,
            memory: 256 * 1024 * 1024,
            recorder: 0,
            capture: 0,
            idle_timeout: None,
            write_stall_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            linger_quiet: Duration::from_secs(1),
            linger_timeout: Duration::from_secs(10),
            linger_bytes: 16 * 1024 * 1024,
            accept_retry: Duration::from_millis(100),
            tick: None,
            drain_grace: Duration::from_secs(10),
            panics: PanicPolicy::CloseConnection,
        }
    }
}

impl Limits {
    /// Checks what the fields demand of each other.
    ///
    /// # Errors
    /// The first rule that is broken, in words. [`Reactor::new`](crate::Reactor::new) makes this check.
    pub fn check(&self) -> Result<(), LimitsError> {
        let at_least_one = [
            (self.read_buffer, "read_buffer"),
            (self.read_budget, "read_budget"),
            (self.write_budget, "write_budget"),
            (self.flush_budget, "flush_budget"),
            (self.accept_budget, "accept_budget"),
            (self.message_budget, "message_budget"),
            (self.message_queue, "message_queue"),
            (self.input, "input"),
            (self.output, "output"),
        ];
        if let Some((_, name)) = at_least_one.into_iter().find(|(value, _)| *value == 0) {
            return Err(LimitsError(format!("{name} must be at least 1")));
        }
        if self.output_low_water >= self.output_high_water {
            return Err(LimitsError(format!(
                "output_low_water ({}) must be below output_high_water ({})",
                self.output_low_water, self.output_high_water
            )));
        }
        if self.output_high_water > self.output {
            return Err(LimitsError(format!(
                "output_high_water ({}) must not be above output ({})",
                self.output_high_water, self.output
            )));
        }
        if self.refusal.len() > self.output {
            return Err(LimitsError(format!(
                "refusal ({} bytes) must not be above output ({})",
                self.refusal.len(),
                self.output
            )));
        }
        if self.capture > 0 && self.recorder == 0 {
            let capture = self.capture;
            return Err(LimitsError(format!("capture ({capture}) is of no use without recorder")));
        }
        if let Some(target) = self.lag_target.filter(|target| *target > self.lag_interval) {
            return Err(LimitsError(format!(
                "lag_target ({target:?}) must not be above lag_interval ({:?})",
                self.lag_interval
            )));
        }
        let not_zero =
            [(self.tick, "tick"), (Some(self.accept_retry), "accept_retry"), (self.lag_target, "lag_target")];
        for (value, name) in not_zero {
            if value == Some(Duration::ZERO) {
                return Err(LimitsError(format!("{name} must not be zero")));
            }
        }
        Ok(())
    }

    /// What one of `count` loops may take of these limits, if they are for all loops together, so that none of them can
    /// be passed: its part of `connections`, of `connections_per_address` and of `memory`; everything else as it is. The
    /// kernel does not spread clients quite evenly, so one loop may be full when others have room left, unless they
    /// [balance](crate::Workers::balance) it.
    ///
    /// # Errors
    /// There are fewer connections than loops, or a loop's memory is below `output`: no connection could have all the
    /// output that may wait for it.
    pub fn share_of(&self, index: usize, count: usize) -> Result<Self, LimitsError> {
        let count = count.max(1);
        let part = |whole: usize| match whole {
            usize::MAX => usize::MAX,
            _ => whole / count + usize::from(index < whole % count),
        };
        if self.connections < count {
            let connections = self.connections;
            return Err(LimitsError(format!(
                "connections ({connections}) is below the number of loops, {count}"
            )));
        }
        let memory = part(self.memory);
        // Without loops to share it that is possible, and the caller's choice.
        if count > 1 && memory < self.output {
            return Err(LimitsError(format!(
                "memory ({}) for {count} loops is {memory} for each, below output ({})",
                self.memory, self.output
            )));
        }
        Ok(Self {
            connections: part(self.connections),
            connections_per_address: part(self.connections_per_address).max(1),
            memory,
            ..self.clone()
        })
    }
}

/// Which rule of [`Limits`] is broken, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsError(String);

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limits: {}", self.0)
    }
}

impl std::error::Error for LimitsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_each_rule_bites() {
        Limits::default().check().unwrap();
        let broken = [
            (Limits { read_buffer: 0, ..Limits::default() }, "read_buffer"),
            (Limits { write_budget: 0, ..Limits::default() }, "write_budget"),
            (Limits { flush_budget: 0, ..Limits::default() }, "flush_budget"),
            (Limits { output_low_water: 256 * 1024, ..Limits::default() }, "output_low_water"),
            (Limits { output: 1, ..Limits::default() }, "output_high_water"),
            (Limits { capture: 1, ..Limits::default() }, "capture"),
            (Limits { tick: Some(Duration::ZERO), ..Limits::default() }, "tick"),
            (Limits { accept_retry: Duration::ZERO, ..Limits::default() }, "accept_retry"),
            (Limits { lag_target: Some(Duration::ZERO), ..Limits::default() }, "lag_target"),
            (Limits { lag_target: Some(Duration::from_millis(101)), ..Limits::default() }, "lag_interval"),
            (Limits { refusal: &[0; 5 * 1024 * 1024], ..Limits::default() }, "refusal"),
        ];
        for (limits, name) in broken {
            assert!(limits.check().unwrap_err().to_string().contains(name), "{name}");
        }
    }

    #[test]
    fn the_shares_of_loops_come_to_the_whole() {
        let whole =
            Limits { connections: 11, connections_per_address: 7, memory: 30 << 20, ..Limits::default() };
        for count in 1..=7 {
            let shares: Vec<_> = (0..count).map(|index| whole.share_of(index, count).unwrap()).collect();
            assert_eq!(shares.iter().map(|share| share.connections).sum::<usize>(), 11, "{count}");
            assert_eq!(shares.iter().map(|share| share.connections_per_address).sum::<usize>(), 7);
            assert_eq!(shares.iter().map(|share| share.memory).sum::<usize>(), 30 << 20);
            assert_eq!(shares[0].output, whole.output);
        }
        let error = whole.share_of(0, 8).unwrap_err().to_string();
        assert!(error.contains("memory (31457280) for 8 loops is 3932160 for each"), "{error}");
        let error = whole.share_of(0, 12).unwrap_err().to_string();
        assert!(error.contains("connections (11) is below"), "{error}");
        let any = Limits { connections_per_address: usize::MAX, ..Limits::default() };
        assert_eq!(any.share_of(1, 2).unwrap().connections_per_address, usize::MAX);
        // An address has at least one connection with each loop, as with the first.
        let few = Limits { connections_per_address: 1, ..Limits::default() };
        assert_eq!(few.share_of(3, 4).unwrap().connections_per_address, 1);
    }
}
