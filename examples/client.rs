//! What is typed goes to a server line by line, and what the server sends is printed behind `>> `.
//!
//! ```text
//! cargo run --example client -- 127.0.0.1:8080        # with broadcast_server or custom_server there
//! printf 'hello\n' | cargo run --example client -- 127.0.0.1:8080
//! ```
//!
//! At the end of its input it tells the server so (a half-close) and prints what still comes until the server
//! ends its side too. The connection is an outbound one, of the loop that servers use. Standard input is read
//! by a thread: epoll cannot wait for a file, and a terminal made non-blocking would be so for every program
//! that shares it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, Ctx, Handler, Limits, Reactor, Remote, SendOutcome,
};

/// From the reading thread to the loop: what was typed; nothing at its end.
type Input = io::Result<Vec<u8>>;

struct Client {
    /// The server as the user called it.
    name: String,
    /// The server, once connected.
    server: Option<ConnId>,
    /// Where else to try: a name can have several addresses.
    others: VecDeque<Address>,
    /// Permits for the thread to read, given when there is room. There is one at a time, so the loop's queue
    /// is never full, and a server that reads slowly holds up the thread, not the memory.
    permits: SyncSender<()>,
    /// What was printed last did not end in a newline.
    mid_line: bool,
    result: io::Result<()>,
}

impl Client {
    /// Prints what has come, whole lines or not. It may block, as callbacks should not; but there is nothing to
    /// do for others meanwhile.
    fn print(&mut self, input: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            stdout.write_all(if self.mid_line { b"" } else { b">> " })?;
            stdout.write_all(line)?;
            self.mid_line = !line.ends_with(b"\n");
        }
        stdout.flush()
    }

    fn permit_read(&self) {
        // It fails only if the thread has ended.
        let _ = self.permits.try_send(());
    }

    fn fail(&mut self, ctx: &mut Ctx, id: ConnId, error: io::Error) {
        // That nobody reads on behind our pipe is not a failure.
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.result = Err(error);
        }
        ctx.close_now(id);
    }
}

impl Handler for Client {
    type Conn = ();
    type Message = Input;

    fn on_open(&mut self, _: &mut Ctx, id: ConnId, (): &mut ()) {
        self.server = Some(id);
        self.permit_read();
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
        if let Err(error) = self.print(input) {
            self.fail(ctx, id, error);
        }
        input.len()
    }

    fn on_message(&mut self, ctx: &mut Ctx, input: Input) {
        let Some(id) = self.server else { return };
        match input {
            Ok(bytes) if bytes.is_empty() => ctx.shut_down_output(id),
            Ok(bytes) => match ctx.send(id, &bytes) {
                SendOutcome::Sent => self.permit_read(),
                // Above the high water mark: `on_drain` permits. Gone: `on_close` comes next.
                SendOutcome::Queued | SendOutcome::Gone(_) => (),
                SendOutcome::OverLimit(_) => self.fail(ctx, id, io::ErrorKind::OutOfMemory.into()),
            },
            Err(error) => self.fail(ctx, id, error),
        }
    }

    fn on_drain(&mut self, _: &mut Ctx, _: ConnId, (): &mut ()) {
        self.permit_read();
    }

    fn on_close(&mut self, ctx: &mut Ctx, _: ConnId, (): (), reason: CloseReason, stats: &CloseStats) {
        if matches!(reason, CloseReason::ConnectFailed(_))
            && let Some(other) = self.others.pop_front()
        {
            ctx.connect(other);
            return;
        }
        let clean = match reason {
            CloseReason::PeerClosed => stats.bytes_unsent == 0,
            CloseReason::Local => true,
            _ => false,
        };
        if !clean {
            self.result = Err(io::Error::other(format!("{}: {reason}", self.name)));
        }
        if self.mid_line {
            // The prompt of a shell belongs on a line of its own.
            let _ = writeln!(io::stdout());
        }
        ctx.drain(Duration::ZERO);
    }
}

/// Reads whenever it is permitted to, until the end or until nobody wants more.
fn read_input(permits: &Receiver<()>, remote: &Remote<Input>) {
    let mut buffer = vec![0; 64 * 1024];
    while permits.recv().is_ok() {
        let count = io::stdin().read(&mut buffer);
        let input = count.map(|count| buffer.get(..count).unwrap_or_default().to_vec());
        let more = input.as_ref().is_ok_and(|input| !input.is_empty());
        if remote.send(input).is_err() || !more {
            return;
        }
    }
}

fn run(address: &str) -> io::Result<()> {
    let mut others: VecDeque<Address> = Address::resolve(address)?.into();
    let first = others.pop_front();
    let (permits, permitted) = sync_channel(1);
    let name = address.to_owned();
    let client = Client { name, server: None, others, permits, mid_line: false, result: Ok(()) };
    let mut reactor = Reactor::new(client, Limits::default())?;
    if let Some(address) = first {
        reactor.ctx().connect(address);
    }
    let remote = reactor.remote();
    std::thread::spawn(move || read_input(&permitted, &remote));
    reactor.run()?;
    std::mem::replace(&mut reactor.handler().result, Ok(()))
}

fn main() -> ExitCode {
    env_logger::init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    match run(&address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "client: {error}");
            ExitCode::FAILURE
        }
    }
}
