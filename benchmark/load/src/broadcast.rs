//! Lines from a few clients to many. A sender writes its lines at once, and the next when every receiver has all of them, so no
//! receiver lags and the rates of servers can be compared. What is counted is lines at receivers.

use std::io::Write;
use std::time::{Duration, Instant};

use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler, SendOutcome};

use crate::{Load, Record};

/// Bytes of a line without its end: `@`, the sender's digit, a colon, twenty digits of nanoseconds, and what fills it
/// up. No space, at which redis would take it for two.
const LINE: usize = 63;
/// In the place of the `@` in lines that are there to see who is served already.
const PROBE: u8 = b'#';

pub(crate) struct Broadcast {
    record: Record,
    senders: Vec<Sender>,
    receivers: u32,
    number_of_senders: usize,
    burst: u32,
    redis: bool,
    opened: u32,
    /// Receivers that a line has reached.
    reached: u32,
    /// A line has come since the last tick.
    heard: bool,
    kicked: bool,
    text: Vec<u8>,
}

struct Sender {
    id: ConnId,
    /// Lines it has said, without those that are there to see who is served.
    said: u64,
    /// Deliveries that its last lines still want.
    missing: u64,
}

/// Of the option --senders.
const MOST_SENDERS: usize = 9;

#[derive(Default)]
pub(crate) struct Client {
    receives: bool,
    reached: bool,
    /// Lines that have come from each sender.
    heard: [u64; MOST_SENDERS],
}

impl Broadcast {
    pub(crate) fn new(record: Record, senders: u32, receivers: u32, burst: u32, redis: bool) -> Self {
        let number_of_senders = senders as usize;
        let (senders, text) = (Vec::new(), Vec::new());
        Self {
            record,
            senders,
            receivers,
            number_of_senders,
            burst,
            redis,
            opened: 0,
            reached: 0,
            heard: false,
            kicked: false,
            text,
        }
    }

    fn publish(&mut self, ctx: &mut Ctx, sender: usize, mark: u8, lines: u32) {
        let Some(Sender { id, said, missing }) = self.senders.get_mut(sender) else { return };
        let nanoseconds = self.record.base.elapsed().as_nanos();
        self.text.clear();
        for _ in 0..lines {
            if self.redis {
                self.text.extend_from_slice(b"PUBLISH b ");
            }
            let start = self.text.len();
            self.text.extend_from_slice(&[mark, b'0' + u8::try_from(sender).unwrap_or(9), b':']);
            // Writing to memory does not fail.
            let _: std::io::Result<()> = write!(self.text, "{nanoseconds:020}");
            self.text.resize(start + LINE, b'x');
            self.text.extend_from_slice(if self.redis { b"\r\n" } else { b"\n" });
        }
        if mark != PROBE {
            *said += u64::from(lines);
            *missing = u64::from(lines) * u64::from(self.receivers);
        }
        if let SendOutcome::OverLimit(_) = ctx.send(*id, &self.text) {
            self.record.fail("a sender's lines are not taken");
        }
    }

    /// One line as a receiver got it. Whatever else a server says is not counted.
    fn line(&mut self, ctx: &mut Ctx, client: &mut Client, line: &[u8], now: Instant) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(start) = line.len().checked_sub(LINE) else { return };
        let Some(([mark @ (b'@' | PROBE), digit, b':'], rest)) =
            line.get(start..).and_then(|line| line.split_first_chunk::<3>())
        else {
            return;
        };
        if *mark == PROBE {
            self.heard = true;
            if !std::mem::replace(&mut client.reached, true) {
                self.reached += 1;
            }
            return;
        }
        let time = rest.first_chunk::<20>().map_or(0, |digits| {
            digits.iter().fold(0_u64, |sum, digit| {
                sum.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')))
            })
        });
        if rest.iter().skip(20).any(|byte| *byte != b'x') {
            return self.record.fail("a line has other bytes than were sent");
        }
        let took = now.duration_since(self.record.base).saturating_sub(Duration::from_nanos(time));
        let sender = usize::from(digit.wrapping_sub(b'0'));
        let (Some(from), Some(heard)) = (self.senders.get_mut(sender), client.heard.get_mut(sender)) else {
            return self.record.fail("a line of a sender that there is not");
        };
        *heard += 1;
        // Of each receiver: if one hears a line twice and another does not, the sum is right.
        if *heard > from.said || from.missing == 0 {
            return self.record.fail("a line came more often than it was sent");
        }
        from.missing -= 1;
        let all = from.missing == 0;
        self.record.count(took);
        if all && self.record.running {
            self.publish(ctx, sender, b'@', self.burst);
        }
    }
}

impl Load for Broadcast {
    fn record(&mut self) -> &mut Record {
        &mut self.record
    }

    fn is_ready(&self) -> bool {
        self.reached == self.receivers
    }

    fn under_way(&self) -> u64 {
        self.senders.iter().map(|sender| sender.missing).sum()
    }
}

impl Handler for Broadcast {
    type Conn = Client;
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client) {
        self.opened += 1;
        if self.senders.len() < self.number_of_senders {
            self.senders.push(Sender { id, said: 0, missing: 0 });
        } else {
            client.receives = true;
            if self.redis {
                let _: SendOutcome<_> = ctx.send(id, b"SUBSCRIBE b\r\n");
            }
        }
    }

    fn on_data(&mut self, ctx: &mut Ctx, _: ConnId, client: &mut Client, input: &[u8]) -> usize {
        if !client.receives {
            if self.redis && input.starts_with(b"-") {
                self.record.fail(String::from_utf8_lossy(input).into_owned());
            }
            return input.len();
        }
        let now = Instant::now();
        let mut done = 0;
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            let Some(content) = line.strip_suffix(b"\n") else { break };
            done += line.len();
            self.line(ctx, client, content, now);
        }
        done
    }

    fn on_tick(&mut self, ctx: &mut Ctx) {
        if !self.record.running {
            let all = self.opened as usize == self.number_of_senders + self.receivers as usize;
            // The next when the last has come to whom it comes: a slow server is not to be flooded.
            if !std::mem::take(&mut self.heard) && all && !self.is_ready() {
                self.publish(ctx, 0, PROBE, 1);
            }
        } else if !std::mem::replace(&mut self.kicked, true) {
            for sender in 0..self.senders.len() {
                self.publish(ctx, sender, b'@', self.burst);
            }
        }
    }

    fn on_close(&mut self, _: &mut Ctx, _: ConnId, _: Client, reason: CloseReason, _: &CloseStats) {
        self.record.fail(format!("a connection ended: {reason}"));
    }
}
