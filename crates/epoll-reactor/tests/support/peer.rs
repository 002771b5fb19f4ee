//! The other end of a connection: a non-blocking socket of `std`, TCP or Unix.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use epoll_reactor::{Address, Kernel, Linux};
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

#[derive(Debug)]
pub(crate) enum Peer {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Peer {
    pub(crate) fn connect(address: &Address) -> Self {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_nonblocking(true).unwrap();
                Self::Tcp(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_nonblocking(true).unwrap();
                Self::Unix(stream)
            }
            Address::UnixUnnamed => unreachable!(),
        }
    }

    /// Writes all of `data`, which must fit the kernel's buffers.
    pub(crate) fn say(&mut self, data: &[u8]) {
        self.write_all(data).unwrap();
    }

    /// As much of `data` as the kernel takes.
    pub(crate) fn write_some(&mut self, data: &[u8]) -> usize {
        match self.write(data) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        }
    }

    /// Says no more, but goes on reading.
    pub(crate) fn finish(&self) {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write).unwrap(),
        }
    }

    /// Sends the last byte of `data` as urgent: TCP only.
    pub(crate) fn say_urgently(&self, data: &[u8]) {
        assert_eq!(send(self.as_fd().as_raw_fd(), data, MsgFlags::MSG_OOB).unwrap(), data.len());
    }

    /// Closes with an RST: TCP only.
    pub(crate) fn reset(self) {
        let Self::Tcp(stream) = self else { panic!("a Unix socket has no RST") };
        let socket = OwnedFd::from(stream);
        Linux::new().unwrap().reset_on_close(&socket).unwrap();
    }

    /// Takes little in at a time.
    pub(crate) fn shrink_receive_buffer(&self) {
        setsockopt(&self.as_fd(), sockopt::RcvBuf, &4096).unwrap();
    }

    /// All that can be read now.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let mut received = Vec::new();
        match self.read_to_end(&mut received) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => received,
            end => panic!("{end:?}"),
        }
    }
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Peer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(data),
            Self::Unix(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}
