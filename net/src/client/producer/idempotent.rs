//! A producer that its caller drives, batch by batch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyralog_core::batch::{BatchBuilder, BatchError, Header};
use pyralog_core::{ErrorCode, Outcome};

use super::config::{Ack, ProducerConfig, ProducerStats};
use super::resolver::Resolver;
use super::sender::{Completed, Failure, Sender};
use crate::client::api::Client;
use crate::client::error::ClientError;
use crate::message::InitProducerIdReply;

/// A turn that waits; what has to happen earlier ends it.
const WAIT: Duration = Duration::from_secs(1);

/// Called with each acknowledgement.
pub type OnAck = Box<dyn FnMut(&Ack) + Send>;

/// A producer for one topic without any thread of its own: each record is in the log exactly once and in the order of its
/// `send`, across lost connections and restarts of the nodes. Blocking; `send` returns when the record is in a batch, not
/// when it is acknowledged: [`Self::flush`] waits for that.
///
/// A failure that can't be repaired (the deadline is over, the session is fenced) fails the producer for good: going on
/// would leave a gap. [`Producer`](super::Producer) goes on and tells the outcome of each record instead.
#[derive(Debug)]
pub struct IdempotentProducer {
    sender: Sender<()>,
    topic: String,
    session: InitProducerIdReply,
    open: Vec<Option<BatchBuilder>>,
    failed: Option<(ErrorCode, String)>,
    on_ack: Callback,
}

/// What is called with each acknowledgement.
#[derive(Default)]
struct Callback(Option<OnAck>);

impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Some(_)" } else { "None" })
    }
}

impl IdempotentProducer {
    /// A new session for a topic that exists.
    ///
    /// # Errors
    /// What [`Client::topic`] and [`Client::init_producer_id`] give.
    pub fn new(client: Client, topic: &str, config: ProducerConfig) -> Result<Self, ClientError> {
        let config = ProducerConfig { idempotent: true, ..config };
        let resolver = |client| Ok(Resolver::at_once(client, topic));
        let sender = Sender::new(client, topic, config, None, resolver)?;
        let no_session = || ClientError::Usage("an idempotent producer without a session".into());
        let session = sender.session().ok_or_else(no_session)?;
        let open = (0..sender.partitions()).map(|_| None).collect();
        Ok(Self { sender, topic: topic.to_owned(), session, open, failed: None, on_ack: Callback::default() })
    }

    /// Calls `on_ack` with each acknowledgement, from inside the calls to this producer.
    pub fn on_ack(&mut self, on_ack: OnAck) {
        self.on_ack = Callback(Some(on_ack));
    }

    /// The id and epoch of its session.
    pub fn session(&self) -> InitProducerIdReply {
        self.session
    }

    /// Partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.sender.partitions()
    }

    /// Totals so far.
    pub fn stats(&self) -> ProducerStats {
        self.sender.stats()
    }

    /// Records taken by `send` and not acknowledged.
    pub fn unacknowledged_records(&self) -> u64 {
        let open = self.open.iter().flatten().map(|builder| u64::from(builder.record_count()));
        open.sum::<u64>() + self.sender.unacknowledged_records()
    }

    /// Takes a record into the partition's open batch; sends the batch when it has reached its size. `timestamp` in
    /// milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`ClientError::Batch`] when this record can't be sent (the producer goes on); anything else has failed the
    /// producer for good.
    pub fn send(
        &mut self,
        partition: u32,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<(), ClientError> {
        let batch_size = self.sender.config().batch_size;
        self.check(partition)?;
        let builder = self.builder(partition);
        match builder.append(timestamp, key, value, headers) {
            Ok(()) => {}
            Err(BatchError::Full { .. } | BatchError::TimestampRange { .. }) if !builder.is_empty() => {
                self.seal(partition)?;
                self.builder(partition).append(timestamp, key, value, headers)?;
            }
            Err(error) => return Err(error.into()),
        }
        if self.builder(partition).len_bytes() >= batch_size { self.seal(partition) } else { Ok(()) }
    }

    /// Sends what is in open batches, without waiting for acknowledgements.
    ///
    /// # Errors
    /// The error that failed the producer.
    pub fn send_open_batches(&mut self) -> Result<(), ClientError> {
        (0..self.partitions()).try_for_each(|partition| self.seal(partition))
    }

    /// Sends everything and waits until all of it is acknowledged.
    ///
    /// # Errors
    /// The error that failed the producer. What was acknowledged before stays so.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.send_open_batches()?;
        while !self.sender.is_idle() {
            self.sender.turn(WAIT);
            self.take_completed()?;
        }
        Ok(())
    }

    fn check(&self, partition: u32) -> Result<(), ClientError> {
        if let Some((code, error)) = &self.failed {
            let detail = format!("this producer session failed before ({error}); start a new one");
            return Err(ClientError::Server { code: *code, detail });
        }
        if partition >= self.partitions() {
            let count = self.partitions();
            return Err(ClientError::Usage(format!(
                "topic {} has {count} partitions, not {partition}",
                self.topic
            )));
        }
        Ok(())
    }

    fn builder(&mut self, partition: u32) -> &mut BatchBuilder {
        let sender = &mut self.sender;
        // `check` has refused what does not exist; every other index comes from this vector.
        self.open[partition as usize].get_or_insert_with(|| sender.builder())
    }

    /// Closes the partition's open batch and sends it; waits while too much is under way.
    fn seal(&mut self, partition: u32) -> Result<(), ClientError> {
        self.check(partition)?;
        if self.open[partition as usize].as_ref().is_none_or(|builder| builder.is_empty()) {
            return Ok(());
        }
        let Some(builder) = self.open[partition as usize].take() else { return Ok(()) };
        self.sender.push(partition, builder, (), Instant::now());
        self.sender.send();
        loop {
            self.take_completed()?;
            let config = self.sender.config();
            let batches = self.sender.batches(partition);
            let room =
                batches < config.max_in_flight && self.sender.unacknowledged_bytes() < config.buffer_memory;
            if room || batches == 0 {
                return Ok(());
            }
            self.sender.turn(WAIT);
        }
    }

    fn take_completed(&mut self) -> Result<(), ClientError> {
        while let Some(completed) = self.sender.completed() {
            let Completed { partition, records, begun, result, .. } = completed;
            let reply = match result {
                Ok(reply) => reply,
                Err(failure) => {
                    let left = u64::from(records) + self.unacknowledged_records();
                    let error = error_of(failure, left);
                    self.failed = Some((error.code(), error.to_string()));
                    return Err(error);
                }
            };
            if let Some(on_ack) = &mut self.on_ack.0 {
                on_ack(&Ack {
                    partition,
                    base_offset: reply.base_offset,
                    records,
                    durability: reply.durability,
                    duplicate: reply.duplicate,
                    elapsed: begun.elapsed(),
                });
            }
        }
        Ok(())
    }
}

/// The error for the caller, whose outcome is that of all attempts together.
fn error_of(failure: Failure, records: u64) -> ClientError {
    match Arc::unwrap_or_clone(failure.error) {
        ClientError::DeliveryTimeout { after_ms, last, .. } => {
            ClientError::DeliveryTimeout { after_ms, records, last }
        }
        error if failure.outcome == Outcome::Unknown && error.outcome() != Outcome::Unknown => {
            ClientError::Uncertain { records, last: Arc::new(error) }
        }
        error => error,
    }
}
