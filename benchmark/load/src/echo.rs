//! Messages to an echo server, each sent when the last has come back; and a firehose beside one that does so.

use std::time::Instant;

use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler, SendOutcome};

use crate::{Load, Record};

/// What the firehose writes at a time, and how much of it may be under way.
const CHUNK: usize = 16 * 1024;
const UNDER_WAY: usize = 256 * 1024;

pub(crate) struct Echo {
    record: Record,
    message: Vec<u8>,
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
    sent: Option<Instant>,
    /// One message has come back before the measurement: the server knows it.
    proven: bool,
}

impl Echo {
    pub(crate) fn new(record: Record, clients: u32, size: usize, firehose: bool) -> Self {
        let (message, chunk) = (vec![b'e'; size], vec![b'f'; CHUNK]);
        Self { record, message, chunk, clients, ready: 0, firehose, opened: Vec::new(), kicked: false }
    }

    fn send(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client, data: &[u8]) {
        client.missing += data.len();
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
            let message = std::mem::take(&mut self.message);
            client.sent = Some(Instant::now());
            self.send(ctx, id, client, &message);
            self.message = message;
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
}

impl Handler for Echo {
    type Conn = Client;
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client) {
        let message = std::mem::take(&mut self.message);
        self.send(ctx, id, client, &message);
        self.message = message;
        client.is_firehose = self.firehose && self.opened.is_empty();
        self.opened.push(id);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client, input: &[u8]) -> usize {
        if input.len() > client.missing {
            self.record.fail("more came back than was sent");
            return input.len();
        }
        client.missing -= input.len();
        if !client.proven {
            if client.missing == 0 {
                client.proven = true;
                self.ready += 1;
            }
        } else if client.is_firehose {
            self.record.bytes += input.len() as u64;
            self.next(ctx, id, client);
        } else if client.missing == 0 {
            let now = Instant::now();
            if let Some(sent) = client.sent {
                self.record.count(now, now - sent);
            }
            self.next(ctx, id, client);
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
