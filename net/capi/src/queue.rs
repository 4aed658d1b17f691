//! Deliveries that wait until the caller asks for them: for languages whose threads can't simply be called, and for
//! programs that would rather handle many at once.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::args::{self, Out};
use crate::delivery::{Delivered, DeliveryParts};
use crate::error::{Failure, guard, guard_quietly};
use crate::status::{PYRALOG_ERROR_OVERLOADED, PYRALOG_OUTCOME_NOT_ACCEPTED};

/// Deliveries that one poll gives at most.
const AT_ONCE: usize = 4096;
/// Bound of a queue that is given none.
const DEFAULT_CAPACITY: usize = 65_536;

#[derive(Debug, Default)]
struct Waiting {
    deliveries: VecDeque<Delivered>,
    /// Polls that are to end although nothing has come.
    wakes: u32,
    polls: u32,
    sends: u32,
}

/// What a queue and the sends under way share.
#[derive(Debug)]
pub(crate) struct Shared {
    waiting: Mutex<Waiting>,
    capacity: usize,
    /// Something came, or a poll is to end.
    came: Condvar,
    /// There is room for more.
    room: Condvar,
}

impl Shared {
    fn new(capacity: usize) -> Arc<Self> {
        let capacity = if capacity == 0 { DEFAULT_CAPACITY } else { capacity };
        let (came, room) = (Condvar::new(), Condvar::new());
        Arc::new(Self { waiting: Mutex::default(), capacity, came, room })
    }

    /// Nothing in here panics with the lock held; if it did, the deliveries would still be whole.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn push(&self, delivered: Delivered) {
        let mut waiting = self.lock();
        waiting.deliveries.push_back(delivered);
        if waiting.polls > 0 {
            self.came.notify_one();
        }
    }

    /// Waits until fewer deliveries than the queue's bound are not polled.
    pub(crate) fn wait_for_room(&self, longest: Duration) -> Result<(), Failure> {
        let mut waiting = self.lock();
        if waiting.deliveries.len() < self.capacity {
            return Ok(());
        }
        let end = Instant::now() + longest;
        waiting.sends += 1;
        while waiting.deliveries.len() >= self.capacity {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting =
                self.room.wait_timeout(waiting, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        waiting.sends -= 1;
        if waiting.deliveries.len() < self.capacity { Ok(()) } else { Err(full(self.capacity)) }
    }

    /// Takes what has come; waits for the first one.
    fn take(&self, longest: Duration, into: &mut Vec<Delivered>) {
        let end = Instant::now() + longest;
        let mut waiting = self.lock();
        waiting.polls += 1;
        while waiting.deliveries.is_empty() && waiting.wakes == 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting =
                self.came.wait_timeout(waiting, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        waiting.polls -= 1;
        waiting.wakes = waiting.wakes.saturating_sub(1);
        let count = waiting.deliveries.len().min(AT_ONCE);
        into.extend(waiting.deliveries.drain(..count));
        if waiting.sends > 0 && count > 0 {
            self.room.notify_all();
        }
    }

    fn wake(&self) {
        self.lock().wakes = 1;
        self.came.notify_one();
    }
}

fn full(capacity: usize) -> Failure {
    let text = format!("{capacity} deliveries wait in the queue; poll it more often, or from another thread");
    Failure {
        status: PYRALOG_ERROR_OVERLOADED,
        outcome: PYRALOG_OUTCOME_NOT_ACCEPTED,
        retriable: true,
        ..Failure::argument(text)
    }
}

/// What the last poll gave: `pointers` point into `parts`, and these to texts of `delivered`.
#[derive(Debug, Default)]
struct Given {
    delivered: Vec<Delivered>,
    parts: Vec<DeliveryParts>,
    pointers: Vec<*const DeliveryParts>,
}

// SAFETY: the pointers lead to what is owned here.
unsafe impl Send for Given {}

/// A queue of deliveries. Any threads may send with it at the same time; one thread at a time may poll it.
#[derive(Debug)]
pub struct QueueHandle {
    shared: Arc<Shared>,
    given: Mutex<Given>,
}

impl QueueHandle {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// A queue for pyralog_producer_send_queued(). Sends with it wait while capacity deliveries are not polled; 0: 65536.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_queue_new(capacity: usize, queue: *mut *mut QueueHandle) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointer is null or writable.
        let queue = unsafe { Out::new(queue, "queue") }?;
        queue.set(args::into_handle(QueueHandle { shared: Shared::new(capacity), given: Mutex::default() }));
        Ok(())
    })
}

/// Takes the deliveries that have come, at most some thousand, and waits up to timeout_ms for the first one. deliveries
/// is set to an array of count pointers; both are valid until the next poll of this queue, or until it is freed. No
/// delivery in time is no error: count is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_queue_poll(
    queue: *const QueueHandle,
    timeout_ms: u64,
    deliveries: *mut *const *const DeliveryParts,
    count: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (queue, deliveries, count) = unsafe {
            let (deliveries, count) = (Out::new(deliveries, "deliveries")?, Out::new(count, "count")?);
            (args::reference(queue, "queue")?, deliveries, count)
        };
        let mut given = args::alone(&queue.given)?;
        let Given { delivered, parts, pointers } = &mut *given;
        pointers.clear();
        parts.clear();
        delivered.clear();
        queue.shared.take(args::milliseconds(timeout_ms), delivered);
        parts.extend(delivered.iter().map(Delivered::parts));
        pointers.extend(parts.iter().map(|parts| parts as *const DeliveryParts));
        deliveries.set(pointers.as_ptr());
        count.set(pointers.len());
        Ok(())
    })
}

/// Ends a poll that waits, or the next one, although nothing has come. Any thread may call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_queue_wake(queue: *const QueueHandle) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        unsafe { args::reference(queue, "queue") }?.shared.wake();
        Ok(())
    })
}

/// Frees a queue and what is in it; NULL is fine. Records that were sent with it are still sent, and what becomes of
/// them is told nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_queue_free(queue: *mut QueueHandle) {
    // SAFETY: the caller's handle is null or valid, and not used again.
    guard_quietly(|| drop(unsafe { args::from_handle(queue) }));
}

/// The memory of one delivery that waits, for the documentation of the bound.
const _: () = assert!(size_of::<Delivered>() <= 128);
