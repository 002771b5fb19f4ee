//! From an error number to what the loop does about it: one table for every call.

pub use nix::errno::Errno;

/// The calls whose errors the loop reacts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Kernel::accept`](crate::Kernel::accept)
    Accept,
    /// [`Kernel::add`](crate::Kernel::add)
    Add,
    /// [`Kernel::connect`](crate::Kernel::connect), or the outcome of one in progress
    Connect,
    /// [`Kernel::recv`](crate::Kernel::recv)
    Recv,
    /// [`Kernel::send`](crate::Kernel::send) and [`Kernel::writev`](crate::Kernel::writev)
    Send,
    /// [`Kernel::sendfile`](crate::Kernel::sendfile)
    Sendfile,
    /// [`Kernel::wait`](crate::Kernel::wait)
    Wait,
}

/// What the loop does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Make the call again at once; for accept, against the accept budget.
    Retry,
    /// Nothing can be done now; an edge will tell when it can.
    WaitForEdge,
    /// Out of descriptors or kernel memory: shed the client, pause the listener, try again later.
    PauseListener,
    /// This one connection is over.
    CloseConnection,
    /// The file cannot be read, and the peer was promised it: this one connection is over.
    FileFailed,
    /// A defect of this program, not of the world: no connection is to blame. End the loop with the error.
    EndLoop,
}

/// What to do about `errno` from `call`. Total: an error number a man page does not list ends the connection
/// if there is one to end, and is otherwise a reason to pause and never to spin.
#[must_use]
pub const fn reaction(call: Call, errno: Errno) -> Reaction {
    match call {
        Call::Accept => accept_reaction(errno),
        Call::Add => match errno {
            // ENOSPC is fs.epoll.max_user_watches.
            Errno::ENOMEM | Errno::ENOSPC => Reaction::PauseListener,
            _ => Reaction::CloseConnection,
        },
        Call::Recv | Call::Send => match errno {
            Errno::EINTR => Reaction::Retry,
            Errno::EAGAIN => Reaction::WaitForEdge,
            _ => Reaction::CloseConnection,
        },
        Call::Sendfile => match errno {
            Errno::EINTR => Reaction::Retry,
            Errno::EAGAIN => Reaction::WaitForEdge,
            // Of the file, and of no socket that is connected: sendfile(2), and ESTALE of a file on NFS.
            Errno::EIO
            | Errno::EINVAL
            | Errno::EBADF
            | Errno::ESPIPE
            | Errno::EOVERFLOW
            | Errno::EISDIR
            | Errno::ESTALE => Reaction::FileFailed,
            _ => Reaction::CloseConnection,
        },
        Call::Connect => match errno {
            // connect(2): an interrupted connect goes on in the background, as one in progress does.
            Errno::EINTR | Errno::EINPROGRESS => Reaction::WaitForEdge,
            _ => Reaction::CloseConnection,
        },
        Call::Wait => match errno {
            Errno::EINTR => Reaction::Retry,
            _ => Reaction::EndLoop,
        },
    }
}

const fn accept_reaction(errno: Errno) -> Reaction {
    match errno {
        Errno::EAGAIN => Reaction::WaitForEdge,
        // accept(2): "treat them like EAGAIN by retrying": errors of the new connection, not of the listener.
        Errno::EINTR
        | Errno::ECONNABORTED
        | Errno::EPERM
        | Errno::EPROTO
        | Errno::ENOPROTOOPT
        | Errno::ENETDOWN
        | Errno::ENETUNREACH
        | Errno::ENONET
        | Errno::EHOSTDOWN
        | Errno::EHOSTUNREACH
        | Errno::EOPNOTSUPP
        | Errno::ETIMEDOUT => Reaction::Retry,
        Errno::EBADF | Errno::EFAULT | Errno::EINVAL | Errno::ENOTSOCK => Reaction::EndLoop,
        // EMFILE, ENFILE, ENOBUFS, ENOMEM, and whatever a new kernel may add.
        _ => Reaction::PauseListener,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let rows = [
            (Call::Accept, Errno::EAGAIN, Reaction::WaitForEdge),
            (Call::Accept, Errno::ECONNABORTED, Reaction::Retry),
            (Call::Accept, Errno::EINTR, Reaction::Retry),
            (Call::Accept, Errno::EMFILE, Reaction::PauseListener),
            (Call::Accept, Errno::ENFILE, Reaction::PauseListener),
            (Call::Accept, Errno::ENOBUFS, Reaction::PauseListener),
            (Call::Accept, Errno::ENOMEM, Reaction::PauseListener),
            (Call::Accept, Errno::EBADF, Reaction::EndLoop),
            (Call::Add, Errno::ENOSPC, Reaction::PauseListener),
            (Call::Add, Errno::ENOMEM, Reaction::PauseListener),
            (Call::Add, Errno::EEXIST, Reaction::CloseConnection),
            (Call::Connect, Errno::EINPROGRESS, Reaction::WaitForEdge),
            (Call::Connect, Errno::ECONNREFUSED, Reaction::CloseConnection),
            (Call::Recv, Errno::EINTR, Reaction::Retry),
            (Call::Recv, Errno::EAGAIN, Reaction::WaitForEdge),
            (Call::Recv, Errno::ECONNRESET, Reaction::CloseConnection),
            (Call::Send, Errno::EAGAIN, Reaction::WaitForEdge),
            (Call::Send, Errno::EPIPE, Reaction::CloseConnection),
            (Call::Send, Errno::ENOBUFS, Reaction::CloseConnection),
            (Call::Sendfile, Errno::EINTR, Reaction::Retry),
            (Call::Sendfile, Errno::EAGAIN, Reaction::WaitForEdge),
            (Call::Sendfile, Errno::EPIPE, Reaction::CloseConnection),
            (Call::Sendfile, Errno::ENOMEM, Reaction::CloseConnection),
            (Call::Sendfile, Errno::EIO, Reaction::FileFailed),
            (Call::Sendfile, Errno::EINVAL, Reaction::FileFailed),
            (Call::Wait, Errno::EINTR, Reaction::Retry),
            (Call::Wait, Errno::EBADF, Reaction::EndLoop),
        ];
        for (call, errno, expected) in rows {
            assert_eq!(reaction(call, errno), expected, "{call:?} {errno}");
        }
    }
}
