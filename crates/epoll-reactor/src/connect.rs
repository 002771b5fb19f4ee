//! Outbound connections, until they are open and like any other.

use epoll_sys::{ConnectProgress, Errno, Interest, Kernel};

use crate::connection::Phase;
use crate::handler::{CloseReason, Handler};
use crate::reactor::Reactor;
use crate::token::ConnId;

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// An outbound connection that a callback asked for.
    pub(crate) fn start_connect(&mut self, id: ConnId) {
        let Some(connection) = self.ctx.connections.get(id.0) else { return };
        if connection.phase != Phase::Connecting {
            return;
        }
        let started = self.kernel.connect(&connection.peer.address());
        let (fd, progress) = match started {
            Ok((fd, progress)) => (Some(fd), Ok(progress)),
            Err(errno) => (None, Err(errno)),
        };
        let added = match &fd {
            Some(fd) => self.kernel.add(fd, Interest::Stream, id.as_u64()),
            None => Ok(()),
        };
        // A descriptor that epoll did not take is closed here: there is nothing to delete it from.
        let fd = fd.filter(|_| added.is_ok());
        self.put_beside(id, fd, Some(H::Conn::default()));
        self.ctx.arm(id);
        match added.and(progress) {
            Ok(ConnectProgress::InProgress) => (),
            Ok(ConnectProgress::Connected) => self.opened_outbound(id),
            Err(errno) => self.ctx.kill(id, CloseReason::ConnectFailed(errno)),
        }
    }

    /// A connecting socket has become writable: it is decided.
    pub(crate) fn finish_connect(&mut self, id: ConnId) {
        match self.take_error(id) {
            None => self.opened_outbound(id),
            Some(errno) => self.ctx.kill(id, CloseReason::ConnectFailed(errno)),
        }
    }

    fn opened_outbound(&mut self, id: ConnId) {
        let now = self.ctx.now();
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        connection.writable = true;
        connection.active = now;
        if let Some(queue) = &mut connection.output {
            queue.blocked_since = Some(now);
        }
        if connection.reason.is_some() {
            // Closed before it opened: what was sent to it is still delivered.
            let before = connection.state();
            connection.phase = Phase::Flushing;
            self.ctx.metrics.note_state(before, connection.state());
            self.ctx.mark_dirty(id);
            self.ctx.arm(id);
            return;
        }
        let before = connection.state();
        connection.phase = Phase::Open;
        self.ctx.metrics.note_state(before, connection.state());
        self.ctx.metrics.connected.add(1);
        self.call_on_open(id);
        self.ctx.mark_dirty(id);
    }

    pub(crate) fn take_error(&self, id: ConnId) -> Option<Errno> {
        let fd = self.fds.get(id.index())?.as_ref()?;
        self.kernel.take_error(fd).unwrap_or_else(Some)
    }
}
