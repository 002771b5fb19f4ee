//! One connection from a client's side: what it says and hears, how fast, and how it ends.

use std::time::Duration;

use epoll_reactor::sim::{Peer, Received};
use epoll_reactor::{Address, Errno};
use fastrand::Rng;

use super::failure::{Failure, demand};
use super::limits::REFUSAL;
use super::plan::magnitude;
use super::voice::URGENT;

/// What a client says and what it must hear. One for each session.
pub(crate) trait Talk {
    /// More to say; `None` when all has been said, for now or for good: see [`is_done`](Self::is_done).
    fn say(&mut self, rng: &mut Rng) -> Option<Vec<u8>>;

    /// Nothing more will ever be said, and the client may half-close.
    fn is_done(&self) -> bool;

    /// Some bytes have come.
    ///
    /// # Errors
    /// They are not what should have come.
    fn hear(&mut self, bytes: &[u8]) -> Result<(), Failure>;

    /// Whether urgent bytes may be mixed in.
    fn may_shout(&self) -> bool {
        false
    }
}

/// How a client ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Says everything, half-closes, and reads to the end.
    Polite,
    /// Says everything, and waits for the server to close.
    Waits,
    /// Sends an RST when its patience is over.
    Resets,
    /// Closes when its patience is over, having read all or not.
    Leaves,
    /// Half-closes when its patience is over, whatever it was saying, and reads to the end.
    HalfCloses,
    /// Does nothing any more when its patience is over.
    Stalls,
    /// Says everything, and reads nothing.
    Deaf,
}

/// How a session has ended, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It has not.
    Open,
    /// The server's FIN was read, after everything before it.
    Clean,
    Failed(Errno),
    /// The client has closed it.
    Left,
}

#[derive(Debug)]
pub(crate) struct Session<T> {
    pub(crate) talk: T,
    pub(crate) peer: Option<Peer>,
    pub(crate) address: Address,
    pub(crate) end: End,
    pub(crate) ending: Ending,
    /// Bytes given to the kernel, urgent ones among them.
    pub(crate) sent: u64,
    pub(crate) shouted: u64,
    /// Bytes read, and of them those that are no echo of an urgent one.
    pub(crate) heard: u64,
    /// Of them, those that say that there was no room.
    pub(crate) refused: usize,
    /// It has half-closed.
    pub(crate) shut: bool,
    /// Everything that was to be said was given to the kernel.
    pub(crate) said_all: bool,
    unsaid: Vec<u8>,
    /// Acts until its patience is over.
    patience: u32,
    /// How much it says, and reads, in one act.
    mouthful: usize,
    earful: usize,
    /// Acts so far. It hurries up with time, so that a large session in small pieces ends.
    acts: usize,
    /// Its receive buffer is closed.
    pub(crate) squeezed: bool,
}

impl<T: Talk> Session<T> {
    pub(crate) fn new(talk: T, peer: Peer, gentle: bool, rng: &mut Rng) -> Self {
        let ending = match rng.u8(0..16) {
            _ if gentle => Ending::Polite,
            0..8 => Ending::Polite,
            8 => Ending::Deaf,
            9 => Ending::Waits,
            10 => Ending::Resets,
            11 | 12 => Ending::Leaves,
            13 | 14 => Ending::HalfCloses,
            _ => Ending::Stalls,
        };
        Self {
            talk,
            address: peer.address(),
            peer: Some(peer),
            end: End::Open,
            ending,
            sent: 0,
            shouted: 0,
            heard: 0,
            refused: 0,
            shut: false,
            said_all: false,
            unsaid: Vec::new(),
            patience: rng.u32(0..=100),
            mouthful: magnitude(rng, 1, 64 * 1024),
            earful: magnitude(rng, 1, 64 * 1024),
            acts: 0,
            squeezed: false,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.peer.is_none()
    }

    /// Bytes that have arrived here, read or not.
    pub(crate) fn heard_or_unread(&self) -> u64 {
        self.heard + self.peer.as_ref().map_or(0, Peer::unread) as u64
    }

    /// The server has ended it, whether that was read or not.
    pub(crate) fn is_ended(&self) -> bool {
        self.peer.as_ref().is_none_or(|peer| peer.is_ended() || peer.is_reset())
    }

    /// Bytes that have arrived at the server's kernel, at least.
    pub(crate) fn arrived(&self) -> u64 {
        self.sent - self.peer.as_ref().map_or(0, Peer::unsent) as u64
    }

    /// Does one thing or another; how long it rests then, if for longer than usual.
    pub(crate) fn act(&mut self, rng: &mut Rng) -> Result<Option<Duration>, Failure> {
        if self.patience == 0 && self.loses_patience() {
            return Ok(Some(Duration::from_secs(1)));
        }
        self.patience = self.patience.saturating_sub(1);
        self.acts += 1;
        match rng.u8(0..100) {
            0..45 => self.say(rng),
            45..90 => self.listen(rng)?,
            90..93 => self.shout(),
            93..97 => self.squeeze(rng),
            _ if self.acts < 200 => return Ok(Some(Duration::from_millis(rng.u64(0..3_000)))),
            _ => (),
        }
        Ok(None)
    }

    /// Says whether it does nothing else.
    fn loses_patience(&mut self) -> bool {
        match self.ending {
            Ending::Resets => {
                if let Some(peer) = self.peer.take() {
                    peer.reset();
                }
                self.end = End::Left;
                true
            }
            Ending::Leaves => {
                self.peer = None;
                self.end = End::Left;
                true
            }
            Ending::HalfCloses => {
                self.half_close();
                false
            }
            Ending::Stalls => true,
            Ending::Polite | Ending::Waits | Ending::Deaf => false,
        }
    }

    pub(crate) fn say(&mut self, rng: &mut Rng) {
        let Some(peer) = &self.peer else { return };
        if self.shut {
            return;
        }
        if self.unsaid.is_empty() {
            match self.talk.say(rng) {
                Some(more) => self.unsaid = more,
                None if self.talk.is_done() => {
                    self.said_all = true;
                    if self.ending == Ending::Polite {
                        self.half_close();
                    }
                    return;
                }
                None => return,
            }
        }
        let mouthful = rng.usize(1..=self.mouthful * (1 + self.acts / 16)).min(self.unsaid.len());
        let count = peer.send(&self.unsaid[..mouthful]);
        self.sent += count as u64;
        self.unsaid.drain(..count);
    }

    fn half_close(&mut self) {
        if let Some(peer) = self.peer.as_ref().filter(|_| !self.shut) {
            peer.shutdown_write();
            self.shut = true;
        }
    }

    fn shout(&mut self) {
        if let Some(peer) = self.peer.as_ref().filter(|_| self.talk.may_shout() && !self.shut)
            && peer.send_urgent(URGENT)
        {
            self.sent += 1;
            self.shouted += 1;
        }
    }

    fn squeeze(&mut self, rng: &mut Rng) {
        if let Some(peer) = &self.peer {
            self.squeezed = !self.squeezed;
            peer.set_receive_buffer(if self.squeezed { 0 } else { magnitude(rng, 1_024, 1 << 18) });
        }
    }

    fn listen(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        if self.ending == Ending::Deaf {
            return Ok(());
        }
        let most = rng.usize(1..=self.earful * (1 + self.acts / 16));
        self.hear(most)?;
        Ok(())
    }

    /// Reads up to `most` bytes; how many there were.
    pub(crate) fn hear(&mut self, most: usize) -> Result<usize, Failure> {
        let Some(peer) = &self.peer else { return Ok(0) };
        match peer.recv(most) {
            Received::Bytes(bytes) => {
                let refusal = self.refusal(&bytes);
                self.heard += bytes.iter().filter(|byte| **byte != URGENT).count() as u64;
                self.refused += refusal;
                if refusal < bytes.len() {
                    self.talk.hear(&bytes[refusal..])?;
                }
                Ok(bytes.len())
            }
            Received::Nothing => Ok(0),
            Received::End => {
                demand!(peer.unread() == 0, "harness", "an end before the data is read");
                // A send may have fetched the error already: tcp(7).
                self.over(if peer.is_ended() { End::Clean } else { End::Failed(Errno::ECONNRESET) });
                Ok(0)
            }
            Received::Failed(errno) => {
                self.over(End::Failed(errno));
                Ok(0)
            }
        }
    }

    /// How many of `bytes` go on with a refusal, or begin one where nothing was heard before.
    fn refusal(&self, bytes: &[u8]) -> usize {
        if self.heard != self.refused as u64 {
            return 0;
        }
        bytes.iter().zip(&REFUSAL[self.refused..]).take_while(|(found, expected)| found == expected).count()
    }

    /// Reads whatever has arrived, and will let in what has not; how many bytes there were.
    pub(crate) fn hear_all(&mut self) -> Result<usize, Failure> {
        if let Some(peer) = self.peer.as_ref().filter(|_| self.squeezed) {
            peer.set_receive_buffer(1 << 20);
        }
        self.squeezed = false;
        self.hear(usize::MAX)
    }

    fn over(&mut self, end: End) {
        self.end = end;
        self.peer = None;
    }
}
