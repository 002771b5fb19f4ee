//! How busy the connections of a loop are now. A loop counts the bytes of each since it came; here is how many there were
//! when it was last asked, which two numbers are a rate. It is looked at on the loop's thread.

use std::time::Duration;

use epoll_reactor::{ConnMap, ConnectionInfo, Ctx, Timestamp};

/// No rate is of less time than this, however many ask.
const LEAST: Duration = Duration::from_millis(500);

/// What is remembered of one loop: nothing until somebody asks, and then 48 bytes for each connection.
#[derive(Default)]
pub(super) struct Rates {
    /// What rates are since.
    older: Option<Totals>,
    /// What they will be since, once it is old enough.
    newer: Option<Totals>,
}

/// Bytes of each connection, both ways, at some time.
struct Totals {
    at: Timestamp,
    bytes: ConnMap<u64>,
}

impl Rates {
    /// The busiest `most` of all connections there are `now`, with the bytes a second of each.
    pub(super) fn list(&mut self, ctx: &Ctx, now: Timestamp, most: usize) -> Vec<(ConnectionInfo, u64)> {
        let mut seen = self.begin(now);
        let busiest = ctx.list_connections_by(most, |info| {
            if let Some(seen) = &mut seen {
                seen.bytes.insert(info.id, traffic(info));
            }
            self.of(info, now)
        });
        let rows = busiest.into_iter().map(|info| {
            let rate = self.of(&info, now);
            (info, rate)
        });
        let rows = rows.collect();
        self.newer = seen.or(self.newer.take());
        rows
    }

    /// Where totals are to be noted now, if they are.
    fn begin(&mut self, now: Timestamp) -> Option<Totals> {
        if self.newer.as_ref().is_some_and(|newer| now - newer.at < LEAST) {
            return None;
        }
        self.older = self.newer.take();
        Some(Totals { at: now, bytes: ConnMap::new() })
    }

    /// Since the totals before, or since it came where there are none yet. One that has come meanwhile had none.
    fn of(&self, info: &ConnectionInfo, now: Timestamp) -> u64 {
        let (before, elapsed) = match &self.older {
            Some(older) => (older.bytes.get(info.id).copied().unwrap_or_default(), now - older.at),
            None => (0, info.age),
        };
        let rate =
            u128::from(traffic(info).saturating_sub(before)) * 1_000_000_000 / elapsed.as_nanos().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

const fn traffic(info: &ConnectionInfo) -> u64 {
    info.bytes_received.saturating_add(info.bytes_sent)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use epoll_protocols::Echo;
    use epoll_reactor::{Address, ListenOptions, Reactor};

    use super::*;

    /// Says so many bytes, which come back.
    fn say(reactor: &mut Reactor<Echo>, mut client: &TcpStream, count: usize) {
        let before = reactor.ctx().counters().bytes_sent;
        client.write_all(&vec![0; count]).unwrap();
        while reactor.ctx().counters().bytes_sent < before + count as u64 {
            reactor.turn(None).unwrap();
        }
        client.read_exact(&mut vec![0; count]).unwrap();
    }

    #[test]
    fn the_busiest_are_those_that_are_so_now() {
        let mut reactor = Reactor::new(Echo, epoll_reactor::Limits::default()).unwrap();
        let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_, bound) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
        let connect = || TcpStream::connect(bound.as_tcp().unwrap()).unwrap();
        let (was_busy, is_busy) = (connect(), connect());
        say(&mut reactor, &was_busy, 50_000);
        say(&mut reactor, &is_busy, 10);
        let mut rates = Rates::default();
        let start = reactor.ctx().now();
        let mut list = |reactor: &mut Reactor<Echo>, seconds: f64, most| -> Vec<(Address, u64)> {
            let now = start + Duration::from_secs_f64(seconds);
            let rows = rates.list(reactor.ctx(), now, most).into_iter();
            rows.map(|(info, rate)| (info.peer, rate)).collect()
        };
        let peer = |client: &TcpStream| Address::Tcp(client.local_addr().unwrap());
        let first = list(&mut reactor, 0.0, 9);
        assert_eq!(first.len(), 2);
        assert_eq!(first[0].0, peer(&was_busy), "since they came");
        assert!(first[0].1 > first[1].1 && first[1].1 > 0, "{first:?}");
        say(&mut reactor, &is_busy, 2000);
        assert_eq!(list(&mut reactor, 2.0, 9), [(peer(&is_busy), 2000), (peer(&was_busy), 0)]);
        // Somebody else asks at nearly the same time, and is not told of a tenth of a second.
        assert_eq!(list(&mut reactor, 2.1, 1), [(peer(&is_busy), 1904)]);
        let new = connect();
        say(&mut reactor, &new, 300);
        assert_eq!(list(&mut reactor, 4.0, 2)[0], (peer(&new), 300), "though others have said more in all");
        assert_eq!(list(&mut reactor, 6.0, 9).iter().map(|(_, rate)| *rate).sum::<u64>(), 0);
    }
}
