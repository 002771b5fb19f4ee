//! Messages to an echo server, each sent when the last has come back; and a firehose beside one that does so.

use std::time::Instant;

use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler, SendOutcome};

use crate::{Load, Record};

/// What the firehose writes at a time, and how much of it may be under way.
const CHUNK: usize = 16 * 1024;
const UNDER_WAY: usize = 256 * 1024;

/// What messages consist of but for their first byte, and what the firehose does.
const FILL: u8 = b'e';

pub(crate) struct Echo {
    record: Record,
    message: Vec<u8>,
    /// Bytes that have not come back to any client.
    under_way: u64,
    chunk: Vec<u8>,
    clients: u32,
    ready: u32,
    /// The first client is one.
    firehose: bool,
    opened: Vec<ConnId>,
    kicked: bool,
}

#[derive(Default)]
pub(crate) struct Client {
    is_firehose: bool,
    /// Bytes that have not come back.
    missing: usize,
    /// The first byte of its messages, which is not that of most others.
    mark: u8,
    sent: Option<Instant>,
    /// One message has come back before the measurement: the server knows it.
    proven: bool,
}

impl Echo {
    pub(crate) fn new(record: Record, clients: u32, size: usize, firehose: bool) -> Self {
        let (message, chunk) = (vec![FILL; size], vec![FILL; CHUNK]);
        let opened = Vec::new();
        Self { record, message, under_way: 0, chunk, clients, ready: 0, firehose, opened, kicked: false }
    }

    fn send(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client, data: &[u8]) {
        client.missing += data.len();
        self.under_way += data.len() as u64;
        if let SendOutcome::OverLimit(_) = ctx.send(id, data) {
            self.record.fail("more is under way than the client may keep");
        }
    }

    fn next(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client) {
        if client.is_firehose {
            let chunk = std::mem::take(&mut self.chunk);
            while client.missing + CHUNK <= UNDER_WAY && self.record.failure.is_none() {
                self.send(ctx, id, client, &chunk);
            }
            self.chunk = chunk;
        } else {
            client.sent = Some(Instant::now());
            self.say(ctx, id, client);
        }
    }

    fn say(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client) {
        let mut message = std::mem::take(&mut self.message);
        if let Some(first) = message.first_mut() {
            *first = client.mark;
        }
        self.send(ctx, id, client, &message);
        self.message = message;
    }

    /// Whether this is what the client is to get next.
    fn is_right(&self, client: &Client, input: &[u8]) -> bool {
        let begins = !(client.is_firehose && client.proven) && client.missing == self.message.len();
        match input.split_first() {
            Some((first, rest)) if begins => *first == client.mark && rest.iter().all(|byte| *byte == FILL),
            _ => input.iter().all(|byte| *byte == FILL),
        }
    }
}

impl Load for Echo {
    fn record(&mut self) -> &mut Record {
        &mut self.record
    }

    fn is_ready(&self) -> bool {
        self.ready == self.clients
    }

    fn under_way(&self) -> u64 {
        self.under_way
    }
}

impl Handler for Echo {
    type Conn = Client;
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client) {
        client.mark = u8::try_from(self.opened.len() % 256).unwrap_or_default();
        self.say(ctx, id, client);
        client.is_firehose = self.firehose && self.opened.is_empty();
        self.opened.push(id);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client, input: &[u8]) -> usize {
        if input.len() > client.missing {
            self.record.fail("more came back than was sent");
            return input.len();
        }
        if !self.is_right(client, input) {
            self.record.fail("other bytes came back than were sent");
        }
        client.missing -= input.len();
        self.under_way -= input.len() as u64;
        if !client.proven {
            if client.missing == 0 {
                client.proven = true;
                self.ready += 1;
            }
        } else if self.record.running {
            if client.is_firehose {
                self.record.bytes += input.len() as u64;
                self.next(ctx, id, client);
            } else if client.missing == 0 {
                if let Some(sent) = client.sent {
                    self.record.count(sent.elapsed());
                }
                self.next(ctx, id, client);
            }
        }
        input.len()
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client) {
        self.next(ctx, id, client);
    }

    fn on_tick(&mut self, ctx: &mut Ctx) {
        if self.record.running && !std::mem::replace(&mut self.kicked, true) {
            for id in &self.opened {
                ctx.set_timer(*id, std::time::Duration::ZERO);
            }
        }
    }

    fn on_close(&mut self, _: &mut Ctx, _: ConnId, _: Client, reason: CloseReason, _: &CloseStats) {
        self.record.fail(format!("a connection ended: {reason}"));
    }
}
