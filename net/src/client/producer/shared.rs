//! What the threads that call a producer share with the one that sends.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyralog_core::batch::{BatchBuilder, BatchError};
use pyralog_core::murmur2::partition_for_key;

use super::config::{Partitioner, ProducerConfig, ProducerStats};
use super::delivery::{BatchDelivery, Callback, Delivery, DeliveryError};
use super::record::{ProducerRecord, now_ms};
use super::resolver::wake_up;
use crate::client::error::ClientError;

/// Empty builders that are kept for the next batches.
const SPARE_BUILDERS: usize = 64;

/// A batch that takes records, or waits for its turn.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) builder: BatchBuilder,
    pub(super) delivery: Arc<BatchDelivery>,
    pub(super) began: Instant,
    /// It doesn't wait for more records.
    hurried: bool,
}

/// The batches of one partition that the sending thread has not taken.
#[derive(Debug, Default)]
struct Lane {
    closed: VecDeque<Open>,
    open: Option<Open>,
    /// The sending thread knows that there is something.
    announced: bool,
}

/// Where producing threads put records and the sending thread takes batches.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: ProducerConfig,
    topic: String,
    lanes: Box<[Mutex<Lane>]>,
    /// Partitions with something to send that the sending thread has not looked at.
    announced: Mutex<Vec<u32>>,
    wake: Arc<UnixStream>,
    sleeps: AtomicBool,
    buffered_bytes: AtomicUsize,
    /// Guards nothing: those that wait for room sleep with it.
    room: (Mutex<()>, Condvar),
    /// The next partition for records without a key.
    turn: AtomicU32,
    /// Batches without an outcome, those that have it by now among them.
    incomplete: Mutex<VecDeque<Arc<BatchDelivery>>>,
    spare: Mutex<Vec<BatchBuilder>>,
    stats: Mutex<ProducerStats>,
    closing: AtomicBool,
    abandoned: AtomicBool,
    ended: (Mutex<bool>, Condvar),
}

/// What the sending thread found in a lane.
pub(super) enum Taken {
    /// A batch to send.
    Batch(Open),
    /// One that waits for more records until then.
    Later(Instant),
    /// Nothing; it will be announced when there is something.
    Nothing,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(topic: &str, partitions: u32, config: ProducerConfig, wake: Arc<UnixStream>) -> Self {
        Self {
            config,
            topic: topic.to_owned(),
            lanes: (0..partitions).map(|_| Mutex::default()).collect(),
            announced: Mutex::default(),
            wake,
            sleeps: AtomicBool::new(false),
            buffered_bytes: AtomicUsize::new(0),
            room: Default::default(),
            turn: AtomicU32::new(0),
            incomplete: Mutex::default(),
            spare: Mutex::default(),
            stats: Mutex::default(),
            closing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            ended: Default::default(),
        }
    }

    pub(super) fn partitions(&self) -> u32 {
        self.lanes.len() as u32
    }

    pub(super) fn stats(&self) -> ProducerStats {
        *lock(&self.stats)
    }

    pub(super) fn set_stats(&self, stats: ProducerStats) {
        *lock(&self.stats) = stats;
    }

    /// Takes a record into a batch. With `callback`, it is told what becomes of it.
    pub(super) fn append(
        &self,
        record: ProducerRecord<'_>,
        callback: Option<Callback>,
    ) -> Result<Delivery, ClientError> {
        let partition = self.partition_of(&record)?;
        let timestamp = record.timestamp.unwrap_or_else(now_ms);
        let mut lane = lock(self.lane(partition)?);
        // Under the lock: the thread looks into each lane before it ends.
        if self.is_closing() {
            return Err(ClientError::Usage("this producer is closed; make a new one".into()));
        }
        let (delivery, index) = loop {
            let open = lane.open.get_or_insert_with(|| self.open_batch(partition));
            let before = open.builder.len_bytes();
            match open.builder.append(timestamp, record.key, record.value, record.headers) {
                Ok(()) => {
                    self.buffered_bytes.fetch_add(open.builder.len_bytes() - before, Ordering::Relaxed);
                    break (Arc::clone(&open.delivery), open.builder.record_count() - 1);
                }
                Err(BatchError::Full { .. } | BatchError::TimestampRange { .. })
                    if !open.builder.is_empty() =>
                {
                    self.close_batch(&mut lane, partition);
                }
                Err(error) => {
                    if let Some(empty) = lane.open.take_if(|open| open.builder.is_empty()) {
                        self.buffered_bytes.fetch_sub(empty.builder.len_bytes(), Ordering::Relaxed);
                        empty.delivery.forget();
                        self.recycle(empty.builder);
                    }
                    return Err(error.into());
                }
            }
        };
        if let Some(callback) = callback {
            delivery.call(index, callback);
        }
        let full = |open: &Open| open.builder.len_bytes() >= self.config.batch_size;
        let closes = lane.open.as_ref().is_some_and(full);
        if closes {
            self.close_batch(&mut lane, partition);
        }
        // Whoever lingers is looked at when its time is over; it has to be told of what can go earlier.
        if !std::mem::replace(&mut lane.announced, true) || (closes && !self.config.linger.is_zero()) {
            drop(lane);
            lock(&self.announced).push(partition);
            self.wake();
        }
        Ok(Delivery::new(delivery, index))
    }

    fn lane(&self, partition: u32) -> Result<&Mutex<Lane>, ClientError> {
        self.lanes.get(partition as usize).ok_or_else(|| {
            let count = self.partitions();
            ClientError::Usage(format!("topic {} has {count} partitions, not {partition}", self.topic))
        })
    }

    fn partition_of(&self, record: &ProducerRecord<'_>) -> Result<u32, ClientError> {
        let count = self.partitions();
        match (record.partition, record.key) {
            (Some(partition), _) => Ok(partition),
            (None, Some(key)) => Ok(partition_for_key(key, count)),
            (None, None) => {
                let turn = match self.config.partitioner {
                    Partitioner::Sticky => self.turn.load(Ordering::Relaxed),
                    Partitioner::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed),
                };
                Ok(turn.checked_rem(count).unwrap_or_default())
            }
        }
    }

    fn open_batch(&self, partition: u32) -> Open {
        let delivery = Arc::new(BatchDelivery::new(partition));
        let mut incomplete = lock(&self.incomplete);
        while incomplete.front().is_some_and(|batch| batch.is_resolved()) {
            incomplete.pop_front();
        }
        // One that waits for long must not keep all behind it: those in memory are few.
        if incomplete.len() == incomplete.capacity() {
            incomplete.retain(|batch| !batch.is_resolved());
        }
        incomplete.push_back(Arc::clone(&delivery));
        let builder = lock(&self.spare).pop().unwrap_or_default();
        self.buffered_bytes.fetch_add(builder.len_bytes(), Ordering::Relaxed);
        Open { builder, delivery, began: Instant::now(), hurried: false }
    }

    fn close_batch(&self, lane: &mut Lane, partition: u32) {
        if let Some(open) = lane.open.take() {
            lane.closed.push_back(open);
            self.move_on(partition);
        }
    }

    /// Records without a key go to the next partition.
    fn move_on(&self, partition: u32) {
        if self.config.partitioner == Partitioner::Sticky {
            let turn = self.turn.load(Ordering::Relaxed);
            if turn.checked_rem(self.partitions()) == Some(partition) {
                // Another thread may have moved on meanwhile; then that is where they go.
                let next = turn.wrapping_add(1);
                let _ = self.turn.compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Waits until there is room for more records, for at most `longest`.
    pub(super) fn await_room(&self, longest: Duration) -> Result<(), ClientError> {
        if self.has_room() {
            return Ok(());
        }
        let deadline = Instant::now() + longest;
        let mut guard = lock(&self.room.0);
        while !self.has_room() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let buffered_bytes = self.buffered_bytes.load(Ordering::Relaxed);
                return Err(ClientError::BufferFull { buffered_bytes });
            }
            guard = self.room.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.is_closing() || self.buffered_bytes.load(Ordering::Relaxed) < self.config.buffer_memory
    }

    /// A batch has got its outcome: its memory is free.
    pub(super) fn give_back(&self, bytes: usize) {
        self.buffered_bytes.fetch_sub(bytes, Ordering::Relaxed);
        // Whoever has just seen that there is no room holds the lock until it sleeps.
        drop(lock(&self.room.0));
        self.room.1.notify_all();
    }

    /// Keeps an empty builder for the next batch.
    pub(super) fn recycle(&self, builder: BatchBuilder) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_BUILDERS {
            spare.push(builder);
        }
    }

    /// Partitions with something to send, added to `into`.
    pub(super) fn take_announced(&self, into: &mut Vec<u32>) {
        into.append(&mut lock(&self.announced));
    }

    /// The next batch of a partition that may go now.
    pub(super) fn take(&self, partition: u32, now: Instant) -> Taken {
        let Some(lane) = self.lanes.get(partition as usize) else { return Taken::Nothing };
        let mut lane = lock(lane);
        if let Some(closed) = lane.closed.pop_front() {
            return Taken::Batch(closed);
        }
        let Some(open) = &lane.open else {
            lane.announced = false;
            return Taken::Nothing;
        };
        let due = open.began + self.config.linger;
        if due > now && !open.hurried && !self.is_closing() {
            return Taken::Later(due);
        }
        match lane.open.take() {
            Some(open) => {
                self.move_on(partition);
                Taken::Batch(open)
            }
            None => Taken::Nothing,
        }
    }

    /// Everything that is there goes without waiting for more; all that has no outcome yet.
    pub(super) fn hurry(&self) -> Vec<Arc<BatchDelivery>> {
        for (partition, lane) in (0u32..).zip(&self.lanes) {
            let mut lane = lock(lane);
            if let Some(open) = &mut lane.open {
                open.hurried = true;
                lane.announced = true;
                drop(lane);
                lock(&self.announced).push(partition);
            }
        }
        self.wake();
        lock(&self.incomplete).iter().filter(|batch| !batch.is_resolved()).cloned().collect()
    }

    /// Wakes the sending thread if it sleeps.
    pub(super) fn wake(&self) {
        if self.sleeps.swap(false, Ordering::SeqCst) {
            wake_up(&self.wake);
        }
    }

    /// Whether every lane that has something was looked at.
    pub(super) fn nothing_announced(&self) -> bool {
        lock(&self.announced).is_empty()
    }

    /// The sending thread is about to sleep; `false` when there is something to do.
    pub(super) fn may_sleep(&self) -> bool {
        self.sleeps.store(true, Ordering::SeqCst);
        let nothing = self.nothing_announced() && !self.is_abandoned();
        if !nothing {
            self.sleeps.store(false, Ordering::SeqCst);
        }
        nothing
    }

    /// The sending thread is awake.
    pub(super) fn has_woken(&self) {
        self.sleeps.store(false, Ordering::SeqCst);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Takes no more records; the thread ends when everything has its outcome.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.hurry();
        wake_up(&self.wake);
        drop(lock(&self.room.0));
        self.room.1.notify_all();
    }

    /// What has no outcome yet fails.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        wake_up(&self.wake);
    }

    /// The thread has ended. What has no outcome by now, because it panicked, may or may not be in the log.
    pub(super) fn end(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for lane in &self.lanes {
            // Whoever has it now is done with it before the batches are gone through.
            drop(lock(lane));
        }
        let left: Vec<_> = lock(&self.incomplete).drain(..).filter(|batch| !batch.is_resolved()).collect();
        for batch in left {
            let error = ClientError::Usage("the producer's thread has ended before its time".into());
            batch.resolve(Err(DeliveryError::Unknown(Arc::new(error))));
        }
        drop(lock(&self.room.0));
        self.room.1.notify_all();
        *lock(&self.ended.0) = true;
        self.ended.1.notify_all();
    }

    /// Waits for the end of the thread; `false` when it is not over by `deadline`.
    pub(super) fn await_end(&self, deadline: Option<Instant>) -> bool {
        let mut ended = lock(&self.ended.0);
        while !*ended {
            let Some(deadline) = deadline else {
                ended = self.ended.1.wait(ended).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            ended = self.ended.1.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
