//! Threads for what blocks: a service's own calls, and reads from the disk. Not for anything that could be waited for
//! with epoll.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{fmt, io, thread};

use epoll_reactor::FileSlice;

use super::blocking::BlockingJob;
use super::response::Response;
use super::service::RequestId;

/// Something for a thread of the pool to do.
enum Task {
    Answer(BlockingJob),
    /// Has what the page cache lacks of a file's part read, for the connection that sends it.
    Warm(u64, FileSlice),
}

/// What came of it, with the number of its [`Place`].
pub(super) enum Done {
    Answer(u64, RequestId, Response),
    Warmed(u64, u64),
}

impl Task {
    fn run(self, number: u64) -> Done {
        match self {
            Self::Answer(job) => Done::Answer(number, job.id(), job.run()),
            Self::Warm(connection, slice) => {
                warm(&slice);
                Done::Warmed(number, connection)
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

/// What waits for a thread, by number: the first come is the first done.
#[derive(Default)]
struct Waiting {
    tasks: BTreeMap<u64, Task>,
    next: u64,
    /// Answers that wait, or that a thread is at.
    answers: usize,
    /// There will be no more.
    closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code of a service's runs under the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, mut waiting: MutexGuard<'_, Waiting>, task: Task, held: usize) -> Place {
        let number = waiting.next;
        waiting.next += 1;
        waiting.tasks.insert(number, task);
        self.changed.notify_one();
        Place { queue: Arc::clone(self), number, held }
    }

    /// The next task, when there is one; `None` when there will be none.
    fn pop(&self) -> Option<(u64, Task)> {
        let mut waiting = self.lock();
        loop {
            if let Some(task) = waiting.tasks.pop_first() {
                return Some(task);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A connection's place among what waits for a thread. Who drops it gives it up: what no thread has begun is not done,
/// and takes neither memory nor room from then on.
pub(super) struct Place {
    queue: Arc<Queue>,
    pub(super) number: u64,
    /// Bytes of heap that the task takes, but for what a closure of the service's holds.
    pub(super) held: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        // The lock is not held when the task is dropped, which may be a service's own code.
        let task = {
            let mut waiting = self.queue.lock();
            let task = waiting.tasks.remove(&self.number);
            waiting.answers -= usize::from(matches!(task, Some(Task::Answer(_))));
            task
        };
        drop(task);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("number", &self.number)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// A few threads with one queue. They end when the pool is dropped and the queue is empty; nobody waits for
/// that, since a disk may take its time.
///
/// The queue is bounded by its users: answers by [`try_answer`](Self::try_answer), and of warmings each connection has
/// one at most. So one that sends a file, and has to go on with it, always finds its place.
pub(super) struct Pool {
    queue: Arc<Queue>,
    /// Answers there may be, those that threads are at among them.
    room: usize,
}

/// Where the threads put what they have done. It may block them.
pub(super) type Finished = Arc<dyn Fn(Done) + Send + Sync>;

impl Pool {
    /// Starts `threads` threads, at least one, or as many as there can be; `waiting` answers may wait for one.
    ///
    /// # Errors
    /// Not one could be started: that may be otherwise later.
    pub(super) fn start(threads: usize, waiting: usize, finished: &Finished) -> io::Result<Self> {
        let mut pool = Self { queue: Arc::default(), room: waiting };
        let (mut started, mut refused) = (0, None);
        for number in 0..threads.max(1) {
            let (queue, finished) = (Arc::clone(&pool.queue), Arc::clone(finished));
            let thread = thread::Builder::new().name(format!("http-blocking-{number}"));
            match thread.spawn(move || run(&queue, &finished)) {
                Ok(_) => started += 1,
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if started == 0 => return Err(error),
            Some(error) => log::warn!("{started} of {threads} threads for blocking work: {error}"),
            None => {}
        }
        pool.room = waiting.saturating_add(started);
        Ok(pool)
    }

    /// Has a thread answer; gives the job back if as many are waiting as may.
    pub(super) fn try_answer(&self, job: BlockingJob) -> Result<Place, BlockingJob> {
        let mut waiting = self.queue.lock();
        if waiting.answers >= self.room {
            return Err(job);
        }
        waiting.answers += 1;
        let held = job.held();
        Ok(self.queue.push(waiting, Task::Answer(job), held))
    }

    /// Has a thread read `slice` for the connection called `connection`.
    pub(super) fn warm(&self, connection: u64, slice: FileSlice) -> Place {
        self.queue.push(self.queue.lock(), Task::Warm(connection, slice), 0)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
    }
}

fn run(queue: &Queue, finished: &Finished) {
    while let Some((number, task)) = queue.pop() {
        let is_answer = matches!(task, Task::Answer(_));
        let done = task.run(number);
        queue.lock().answers -= usize::from(is_answer);
        finished(done);
    }
}
