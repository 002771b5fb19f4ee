//! Threads for what blocks: a service's own calls, and reads from the disk. Not for anything that could be waited for
//! with epoll.

use std::fmt;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use epoll_reactor::{Address, FileSlice};

use super::Request;
use super::limits::{HttpLimits, MAX_HEADERS};
use super::parse::{header_slots, parse_head};
use super::response::{Job, Response};
use super::service::RequestId;

/// A request with what answers it, for a thread that may block: [`Connection::take_job`](super::Connection::take_job).
pub struct BlockingJob {
    id: RequestId,
    client: Address,
    head: Box<[u8]>,
    body: Box<[u8]>,
    job: Job,
}

impl BlockingJob {
    pub(super) fn new(request: &Request<'_>, head: &[u8], job: Job) -> Self {
        Self {
            id: request.id(),
            client: request.client().clone(),
            head: head.into(),
            body: request.body().into(),
            job,
        }
    }

    /// The request that it answers.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// Runs it. One that panics answers 500, and the log is told.
    #[must_use]
    pub fn run(self) -> Response {
        let mut response = Response::new();
        let mut slots = header_slots();
        // It has passed the server's own limits before.
        let limits = HttpLimits { target: usize::MAX, headers: MAX_HEADERS, ..HttpLimits::default() };
        let Ok(request) = parse_head(&self.head, &mut slots, &limits) else {
            response.set_status(500);
            return response;
        };
        let request = Request { body: &self.body, id: self.id, client: &self.client, ..request };
        let job = self.job;
        if catch_unwind(AssertUnwindSafe(|| job(&request, &mut response))).is_err() {
            log::error!("answering {} {} panicked", request.method(), request.target());
            response.clear();
            response.set_status(500);
        }
        response
    }
}

impl fmt::Debug for BlockingJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingJob").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Something for a thread of the pool to do.
pub(super) enum Work {
    Answer(BlockingJob),
    /// Has what the page cache lacks of a file's part read, for the connection that sends it.
    Warm(u64, FileSlice),
}

/// What came of it.
pub(super) enum Done {
    Answer(RequestId, Response),
    Warmed(u64),
}

impl Work {
    fn run(self) -> Done {
        match self {
            Self::Answer(job) => Done::Answer(job.id(), job.run()),
            Self::Warm(connection, slice) => {
                warm(&slice);
                Done::Warmed(connection)
            }
        }
    }
}

/// Reads `slice` for the sake of the page cache. That it cannot be read will show when it is sent.
pub(super) fn warm(slice: &FileSlice) {
    let mut buffer = vec![0; 64 * 1024];
    let (mut offset, end) = (slice.offset, slice.offset.saturating_add(slice.length));
    while offset < end {
        match slice.file.read_at(&mut buffer, offset) {
            Ok(read @ 1..) => offset += read as u64,
            Ok(0) | Err(_) => return,
        }
    }
}

/// A few threads with one bounded queue. They end when the pool is dropped and the queue is empty; nobody waits for
/// that, since a disk may take its time.
pub(super) struct Pool {
    queue: SyncSender<Work>,
}

/// Where the threads put what they have done. It may block them.
pub(super) type Finished = Arc<dyn Fn(Done) + Send + Sync>;

impl Pool {
    /// Starts `threads` threads, or as many as there can be.
    pub(super) fn start(threads: usize, waiting: usize, finished: &Finished) -> Self {
        let (queue, work) = sync_channel(waiting);
        let work = Arc::new(Mutex::new(work));
        for number in 0..threads {
            let (work, finished) = (Arc::clone(&work), Arc::clone(finished));
            let thread = thread::Builder::new().name(format!("http-blocking-{number}"));
            if let Err(error) = thread.spawn(move || run(&work, &finished)) {
                log::error!("cannot start a thread for blocking work: {error}");
            }
        }
        Self { queue }
    }

    /// Hands `work` to a thread; gives it back if as much is waiting as may.
    pub(super) fn submit(&self, work: Work) -> Result<(), Work> {
        self.queue.try_send(work).map_err(|error| match error {
            TrySendError::Full(work) | TrySendError::Disconnected(work) => work,
        })
    }
}

fn run(work: &Mutex<Receiver<Work>>, finished: &Finished) {
    loop {
        // Whoever holds the lock waits for all.
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(work) => finished(work.run()),
            Err(_) => return,
        }
    }
}
