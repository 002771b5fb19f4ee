//! Broadcast on tokio's loop of one thread: a task for each client, and `tokio::sync::broadcast` between them.
//!
//! A client's task gets every line from the channel, its own too, which it leaves out. It writes all lines that are
//! there with one call. A client that falls more lines behind than the channel holds is disconnected.

#![forbid(unsafe_code)]

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use peers::address;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, Receiver, Sender, error::RecvError, error::TryRecvError};

/// How many lines a client may be behind.
const BACKLOG: usize = 16 * 1024;
/// How many bytes are written with one call, about.
const WRITE: usize = 64 * 1024;

#[derive(Clone)]
struct Line {
    from: u64,
    text: Bytes,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind(address("broadcast")).await?;
    let (lines, _) = broadcast::channel(BACKLOG);
    for number in 1.. {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream, number, lines.clone(), lines.subscribe()));
    }
    Ok(())
}

/// A client, until either direction has ended.
async fn serve(stream: TcpStream, number: u64, sender: Sender<Line>, receiver: Receiver<Line>) {
    let (input, output) = stream.into_split();
    tokio::select! {
        _ = publish(input, number, sender) => (),
        _ = deliver(output, number, receiver) => (),
    }
}

async fn publish(input: OwnedReadHalf, number: u64, sender: Sender<Line>) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    loop {
        line.clear();
        input.read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let text = [format!("[Client_{number}] ").as_bytes(), &line].concat().into();
        // Nobody may be there to receive it.
        let _ = sender.send(Line { from: number, text });
    }
}

async fn deliver(mut output: OwnedWriteHalf, number: u64, mut receiver: Receiver<Line>) -> io::Result<()> {
    let mut pending = BytesMut::new();
    loop {
        let mut line = match receiver.recv().await {
            Ok(line) => line,
            Err(RecvError::Lagged(_) | RecvError::Closed) => return Ok(()),
        };
        loop {
            if line.from != number {
                pending.put_slice(&line.text);
            }
            if pending.len() >= WRITE {
                break;
            }
            match receiver.try_recv() {
                Ok(next) => line = next,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Lagged(_) | TryRecvError::Closed) => return Ok(()),
            }
        }
        output.write_all_buf(&mut pending).await?;
    }
}
