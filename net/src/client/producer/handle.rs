//! The producer for applications: any number of threads and tasks send, one thread of its own drives the sockets.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyralog_core::ErrorCode;

use super::config::{ProducerConfig, ProducerStats};
use super::delivery::{BatchDelivery, Delivery, DeliveryError, RecordMetadata};
use super::record::ProducerRecord;
use super::resolver::Resolver;
use super::sender::{Completed, Sender};
use super::shared::{Shared, Taken};
use crate::client::api::Client;
use crate::client::error::ClientError;

/// The sending thread looks around at least so often.
const LOOK: Duration = Duration::from_secs(5);
/// How long `close` waits for the thread after it has failed what is left.
const END: Duration = Duration::from_secs(5);

/// A producer for one topic. Cheap to clone; all clones share its batches and its thread, and any thread or task of any
/// async runtime may use them.
///
/// [`Self::send`] puts the record into the partition's open batch and returns what tells its outcome: await it, wait for
/// it, or drop it and look at [`Self::flush`]'s outcome only. A batch goes to the partition's leader as soon as fewer than
/// `max_in_flight` are under way and `linger` is over, so that batches grow by themselves under load and a single record
/// waits for nobody.
///
/// When the last clone is dropped, what was sent before still goes its way in the background; [`Self::close`] waits for
/// it.
///
/// A record whose outcome is an error does not stop those behind it: whoever needs that looks at each outcome before the
/// next record, or uses [`IdempotentProducer`](super::IdempotentProducer), which stops at the first.
#[derive(Clone, Debug)]
pub struct Producer(Arc<Handle>);

/// The last one to go closes the producer.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Producer {
    /// For a topic that exists. Starts two threads: one that sends, and one that looks for leaders and connections.
    ///
    /// # Errors
    /// What [`Client::topic`] and [`Client::init_producer_id`] give; [`ClientError::Usage`] when the system gives no
    /// thread or descriptors.
    pub fn new(client: Client, topic: &str, config: ProducerConfig) -> Result<Self, ClientError> {
        let (wake, woken) = wake_pair()?;
        let wake = Arc::new(wake);
        let resolver = |client| Resolver::aside(client, topic, Arc::clone(&wake));
        let sender = Sender::new(client, topic, config, Some(woken), resolver)?;
        let shared = Arc::new(Shared::new(topic, sender.partitions(), sender.config().clone(), wake));
        let thread = std::thread::Builder::new().name("pyralog-producer".into());
        let of_thread = Arc::clone(&shared);
        thread.spawn(move || drive(sender, &of_thread)).map_err(no_thread)?;
        Ok(Self(Arc::new(Handle(shared))))
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// Partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.shared().partitions()
    }

    /// Totals so far.
    pub fn stats(&self) -> ProducerStats {
        self.shared().stats()
    }

    /// Sends a record. Waits for up to `max_block` when `buffer_memory` is used up.
    ///
    /// # Errors
    /// [`ClientError::BufferFull`] when there was no room in that time, [`ClientError::Batch`] when no batch can hold the
    /// record, [`ClientError::Usage`] after [`Self::close`]: the record was not taken.
    pub fn send(&self, record: ProducerRecord<'_>) -> Result<Delivery, ClientError> {
        self.shared().await_room(self.shared().config.max_block)?;
        self.shared().append(record, None)
    }

    /// Likewise, without waiting for room: for async tasks.
    ///
    /// # Errors
    /// As [`Self::send`], [`ClientError::BufferFull`] at once.
    pub fn try_send(&self, record: ProducerRecord<'_>) -> Result<Delivery, ClientError> {
        self.shared().await_room(Duration::ZERO)?;
        self.shared().append(record, None)
    }

    /// Sends a record and calls `done` with what becomes of it, from the sending thread: it must return soon, and must
    /// not wait for this producer. `done` is not called when this returns an error.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_with(
        &self,
        record: ProducerRecord<'_>,
        done: impl FnOnce(Result<RecordMetadata, DeliveryError>) + Send + 'static,
    ) -> Result<(), ClientError> {
        self.shared().await_room(self.shared().config.max_block)?;
        self.shared().append(record, Some(Box::new(done))).map(drop)
    }

    /// Sends everything at once, whatever `linger` says, and waits until all that was sent before has its outcome.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] when something has none by then. That a record failed is no error of this: its own
    /// outcome tells.
    pub fn flush(&self, timeout: Duration) -> Result<(), ClientError> {
        let deadline = Instant::now().checked_add(timeout);
        let batches = self.shared().hurry();
        let resolved = |batch: &Arc<BatchDelivery>| batch.wait_until(deadline);
        if batches.iter().all(resolved) { Ok(()) } else { Err(too_slow("flush", timeout)) }
    }

    /// Takes no more records, waits until everything has its outcome, and ends the threads. What has none by then fails,
    /// as its own outcome tells.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] when something failed for that reason.
    pub fn close(self, timeout: Duration) -> Result<(), ClientError> {
        let shared = self.shared();
        shared.close();
        if shared.await_end(Instant::now().checked_add(timeout)) {
            return Ok(());
        }
        shared.abandon();
        shared.await_end(Some(Instant::now() + END));
        Err(too_slow("close", timeout))
    }
}

fn too_slow(what: &str, timeout: Duration) -> ClientError {
    ClientError::TimedOut { address: format!("the cluster ({what})"), timeout_ms: timeout.as_millis() as u64 }
}

fn no_thread(error: std::io::Error) -> ClientError {
    ClientError::Usage(format!("no thread or descriptor for the producer: {error}"))
}

fn wake_pair() -> Result<(UnixStream, UnixStream), ClientError> {
    let (wake, woken) = UnixStream::pair().map_err(no_thread)?;
    wake.set_nonblocking(true).map_err(no_thread)?;
    woken.set_nonblocking(true).map_err(no_thread)?;
    Ok((wake, woken))
}

/// Whatever ends the thread, nobody waits for it afterwards.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The sending thread: takes batches that may go, sends them, tells their outcomes.
fn drive(mut sender: Sender<Arc<BatchDelivery>>, shared: &Shared) {
    // Partitions with batches that have not been taken.
    let mut waiting: Vec<u32> = Vec::new();
    let _end = End(shared);
    loop {
        // Looked at once: what is announced after that is looked for in the next turn.
        let closing = shared.is_closing();
        shared.take_announced(&mut waiting);
        if closing {
            // A record that was taken before the end was announced may not have been announced itself.
            waiting.extend(0..shared.partitions());
        }
        waiting.sort_unstable();
        waiting.dedup();
        let next = take_batches(&mut sender, shared, &mut waiting);
        if shared.is_abandoned() {
            abandon(&mut sender, shared);
        }
        tell_outcomes(&mut sender, shared);
        if closing && waiting.is_empty() && sender.is_idle() && shared.nothing_announced() {
            return;
        }
        let wait = match shared.may_sleep() {
            true => next.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK)),
            false => Duration::ZERO,
        };
        sender.turn(wait);
        shared.has_woken();
        tell_outcomes(&mut sender, shared);
    }
}

/// Hands over what may go; when one that lingers is due.
fn take_batches(
    sender: &mut Sender<Arc<BatchDelivery>>,
    shared: &Shared,
    waiting: &mut Vec<u32>,
) -> Option<Instant> {
    let now = Instant::now();
    let mut next: Option<Instant> = None;
    waiting.retain(|&partition| {
        while sender.batches(partition) < shared.config.max_in_flight {
            match shared.take(partition, now) {
                Taken::Batch(batch) => sender.push(partition, batch.builder, batch.delivery, batch.began),
                Taken::Later(due) => {
                    next = Some(next.map_or(due, |next| next.min(due)));
                    return true;
                }
                Taken::Nothing => return false,
            }
        }
        // An outcome of this partition makes room, and ends the wait.
        true
    });
    next
}

fn tell_outcomes(sender: &mut Sender<Arc<BatchDelivery>>, shared: &Shared) {
    while let Some(Completed { tag, bytes, result, .. }) = sender.completed() {
        shared.recycle(sender.builder());
        shared.give_back(bytes);
        // Whoever knows the outcome finds it in the totals.
        shared.set_stats(sender.stats());
        tag.resolve(result.map_err(DeliveryError::from));
    }
}

/// Fails what is under way and what was never taken.
fn abandon(sender: &mut Sender<Arc<BatchDelivery>>, shared: &Shared) {
    let detail = "the producer was closed before this was acknowledged".to_owned();
    sender.abandon(ClientError::Server { code: ErrorCode::RequestTimedOut, detail });
    let now = Instant::now();
    for partition in 0..shared.partitions() {
        while let Taken::Batch(batch) = shared.take(partition, now) {
            sender.push(partition, batch.builder, batch.delivery, batch.began);
        }
    }
}
