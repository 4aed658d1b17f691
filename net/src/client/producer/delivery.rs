//! What becomes of a record: told to a future, a waiting thread or a callback.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pyralog_core::{ErrorCode, Outcome};

use super::sender::Failure;
use crate::client::error::ClientError;
use crate::message::{Durability, ProduceReply};

/// Where an acknowledged record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The partition.
    pub partition: u32,
    /// Its offset; -1 when the acknowledgement does not tell (`Acks::None`).
    pub offset: i64,
    /// What was reached.
    pub durability: Durability,
    /// The node had it already: an earlier attempt got through.
    pub duplicate: bool,
}

/// A record was not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeliveryError {
    /// It is not in the log and never will be: it may be sent again anywhere.
    #[error("the record was not accepted: {0}")]
    NotAccepted(Arc<ClientError>),
    /// It may or may not be in the log: sent again, it may be there twice.
    #[error("the record may or may not be in the log: {0}")]
    Unknown(Arc<ClientError>),
}

impl DeliveryError {
    /// The nearest error code.
    pub fn code(&self) -> ErrorCode {
        self.error().code()
    }

    /// What may be concluded about the record.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotAccepted(_) => Outcome::NotAccepted,
            Self::Unknown(_) => Outcome::Unknown,
        }
    }

    /// Why.
    pub fn error(&self) -> &ClientError {
        match self {
            Self::NotAccepted(error) | Self::Unknown(error) => error,
        }
    }
}

impl From<Failure> for DeliveryError {
    fn from(failure: Failure) -> Self {
        match failure.outcome {
            Outcome::NotAccepted => Self::NotAccepted(failure.error),
            Outcome::Unknown => Self::Unknown(failure.error),
        }
    }
}

/// Called once with what became of a record.
pub(super) type Callback = Box<dyn FnOnce(Result<RecordMetadata, DeliveryError>) + Send>;

/// What became of a batch, for all of its records.
#[derive(Debug)]
pub(super) struct BatchDelivery {
    partition: u32,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    outcome: Option<Result<ProduceReply, DeliveryError>>,
    wakers: Vec<Waker>,
    callbacks: Vec<(u32, Callback)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl BatchDelivery {
    pub(super) fn new(partition: u32) -> Self {
        Self { partition, state: Mutex::default(), done: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of its record at `index`.
    fn record(
        &self,
        index: u32,
        outcome: &Result<ProduceReply, DeliveryError>,
    ) -> Result<RecordMetadata, DeliveryError> {
        let reply = outcome.as_ref().map_err(DeliveryError::clone)?;
        let known = reply.base_offset >= 0;
        Ok(RecordMetadata {
            partition: self.partition,
            offset: if known { reply.base_offset.saturating_add(i64::from(index)) } else { -1 },
            durability: reply.durability,
            duplicate: reply.duplicate,
        })
    }

    /// Tells everybody: callbacks first, in this thread, so that whoever waits finds them called.
    pub(super) fn resolve(&self, outcome: Result<ProduceReply, DeliveryError>) {
        let mut state = self.state();
        while !state.callbacks.is_empty() {
            let callbacks = std::mem::take(&mut state.callbacks);
            drop(state);
            for (index, callback) in callbacks {
                let record = self.record(index, &outcome);
                // What panics there has told so itself; other records' outcomes must still be told.
                let _ = catch_unwind(AssertUnwindSafe(|| callback(record)));
            }
            state = self.state();
        }
        state.outcome = Some(outcome);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.done.notify_all();
        for waker in wakers {
            // As for callbacks.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    /// No record will be in this batch: nobody waits for it.
    pub(super) fn forget(&self) {
        let error = ClientError::Usage("no record is in this batch".into());
        self.resolve(Err(DeliveryError::NotAccepted(Arc::new(error))));
    }

    pub(super) fn is_resolved(&self) -> bool {
        self.state().outcome.is_some()
    }

    /// Calls `callback` with what becomes of the record at `index`: at once when that is known.
    pub(super) fn call(&self, index: u32, callback: Callback) {
        let mut state = self.state();
        match state.outcome.clone() {
            None => state.callbacks.push((index, callback)),
            Some(outcome) => {
                drop(state);
                callback(self.record(index, &outcome));
            }
        }
    }

    /// Waits until the outcome is there; `false` when it isn't by `deadline`.
    pub(super) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state();
        while state.outcome.is_none() {
            state = match deadline {
                None => self.done.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }
}

/// What becomes of one record. A future for any async runtime, or to be waited for by a thread. Dropping it changes
/// nothing: the record goes its way.
#[derive(Clone, Debug)]
#[must_use = "dropping it loses what becomes of the record; wait for it, or use `send_with`"]
pub struct Delivery {
    batch: Arc<BatchDelivery>,
    index: u32,
}

impl Delivery {
    pub(super) fn new(batch: Arc<BatchDelivery>, index: u32) -> Self {
        Self { batch, index }
    }

    /// What became of it, if that is known by now.
    pub fn try_get(&self) -> Option<Result<RecordMetadata, DeliveryError>> {
        let outcome = self.batch.state().outcome.clone()?;
        Some(self.batch.record(self.index, &outcome))
    }

    /// Waits until it has its outcome, which is at most `delivery_timeout` and one request's time away.
    ///
    /// # Errors
    /// [`DeliveryError`]: the record was not acknowledged.
    pub fn wait(self) -> Result<RecordMetadata, DeliveryError> {
        loop {
            self.batch.wait_until(None);
            if let Some(result) = self.try_get() {
                return result;
            }
        }
    }

    /// Likewise, for at most `timeout`: `None` when it has no outcome by then.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<RecordMetadata, DeliveryError>> {
        self.batch.wait_until(Instant::now().checked_add(timeout));
        self.try_get()
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, DeliveryError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.batch.state();
        if let Some(outcome) = &state.outcome {
            return Poll::Ready(self.batch.record(self.index, outcome));
        }
        // One waker for the tasks that await several records of the batch.
        if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            state.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn reply() -> ProduceReply {
        ProduceReply {
            base_offset: 40,
            high_watermark: 42,
            durability: Durability::QuorumDurable,
            duplicate: false,
        }
    }

    #[test]
    fn everybody_is_told_of_their_own_record() {
        let batch = Arc::new(BatchDelivery::new(3));
        let wakes = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut context = Context::from_waker(&waker);
        let mut first = Delivery::new(Arc::clone(&batch), 0);
        let mut second = Delivery::new(Arc::clone(&batch), 1);
        assert!(Pin::new(&mut first).poll(&mut context).is_pending());
        assert!(Pin::new(&mut second).poll(&mut context).is_pending());
        assert!(second.wait_timeout(Duration::ZERO).is_none() && second.try_get().is_none());
        let called = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&called);
        batch.call(2, Box::new(move |result| seen.store(result.unwrap().offset as usize, Ordering::Relaxed)));
        let waiting = std::thread::spawn({
            let delivery = Delivery::new(Arc::clone(&batch), 5);
            move || delivery.wait().unwrap().offset
        });
        batch.resolve(Ok(reply()));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "one task awaits both");
        assert_eq!(called.load(Ordering::Relaxed), 42);
        assert_eq!(waiting.join().unwrap(), 45);
        let Poll::Ready(Ok(told)) = Pin::new(&mut second).poll(&mut context) else { panic!() };
        assert_eq!((told.partition, told.offset), (3, 41));
        // One that comes late is told at once.
        let seen = Arc::clone(&called);
        batch.call(7, Box::new(move |result| seen.store(result.unwrap().offset as usize, Ordering::Relaxed)));
        assert_eq!(called.load(Ordering::Relaxed), 47);
    }
}
