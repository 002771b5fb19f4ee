//! Threads for what blocks: a service's own calls, and reads from the disk. Not for anything that could be waited for
//! with epoll.

use std::fmt;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::{io, thread};

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

    /// Bytes of heap it takes, but for what its closure holds.
    pub(super) const fn held(&self) -> usize {
        self.head.len() + self.body.len()
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
    /// An answer that nobody waits for any more.
    Unwanted,
    Warmed(u64),
}

/// Held by the connection for which some work is done. Once it is dropped, work that has not begun is not.
pub(super) type Wanted = Arc<()>;

struct Task {
    work: Work,
    wanted: Weak<()>,
}

impl Task {
    fn run(self) -> Done {
        let unwanted = self.wanted.strong_count() == 0;
        match self.work {
            Work::Answer(_) if unwanted => Done::Unwanted,
            Work::Answer(job) => Done::Answer(job.id(), job.run()),
            Work::Warm(connection, slice) => {
                if !unwanted {
                    warm(&slice);
                }
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

/// A few threads with one queue. They end when the pool is dropped and the queue is empty; nobody waits for
/// that, since a disk may take its time.
///
/// The queue is bounded by its users: answers by [`try_answer`](Self::try_answer), and of warmings each connection has
/// one at most. So one that sends a file, and has to go on with it, always finds its place.
pub(super) struct Pool {
    queue: Sender<Task>,
    /// Answers that are waiting or being made, and how many there may be.
    answers: (usize, usize),
}

/// Where the threads put what they have done. It may block them.
pub(super) type Finished = Arc<dyn Fn(Done) + Send + Sync>;

impl Pool {
    /// Starts `threads` threads, at least one, or as many as there can be; `waiting` answers may wait for one.
    ///
    /// # Errors
    /// Not one could be started: that may be otherwise later.
    pub(super) fn start(threads: usize, waiting: usize, finished: &Finished) -> io::Result<Self> {
        let (queue, work) = channel();
        let work = Arc::new(Mutex::new(work));
        let (mut started, mut refused) = (0_usize, None);
        for number in 0..threads.max(1) {
            let (work, finished) = (Arc::clone(&work), Arc::clone(finished));
            let thread = thread::Builder::new().name(format!("http-blocking-{number}"));
            match thread.spawn(move || run(&work, &finished)) {
                Ok(_) => started += 1,
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if started == 0 => return Err(error),
            Some(error) => log::warn!("{started} of {threads} threads for blocking work: {error}"),
            None => {}
        }
        Ok(Self { queue, answers: (0, started.saturating_add(waiting)) })
    }

    /// Has a thread answer; gives the job back if as many are waiting as may.
    pub(super) fn try_answer(&mut self, job: BlockingJob, wanted: &Wanted) -> Result<(), BlockingJob> {
        if self.answers.0 >= self.answers.1 {
            return Err(job);
        }
        self.answers.0 += 1;
        self.submit(Work::Answer(job), wanted);
        Ok(())
    }

    /// Has a thread read `slice` for the connection called `connection`.
    pub(super) fn warm(&self, connection: u64, slice: FileSlice, wanted: &Wanted) {
        self.submit(Work::Warm(connection, slice), wanted);
    }

    fn submit(&self, work: Work, wanted: &Wanted) {
        // The threads do not end before the pool does, and none panics: a job's panic is its own.
        let sent = self.queue.send(Task { work, wanted: Arc::downgrade(wanted) });
        debug_assert!(sent.is_ok(), "the threads take work as long as there may be some");
    }

    /// `done` has arrived.
    pub(super) const fn note(&mut self, done: &Done) {
        if matches!(done, Done::Answer(..) | Done::Unwanted) {
            self.answers.0 = self.answers.0.saturating_sub(1);
        }
    }
}

fn run(work: &Mutex<Receiver<Task>>, finished: &Finished) {
    loop {
        // Whoever holds the lock waits for all.
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(task) => finished(task.run()),
            Err(_) => return,
        }
    }
}
