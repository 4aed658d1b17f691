//! The low-latency path: one record, now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyralog_core::Outcome;
use pyralog_core::limits::BATCHES_PER_PRODUCER;

use super::config::{ProducerConfig, ProducerStats};
use super::delivery::{DeliveryError, RecordMetadata};
use super::record::now_ms;
use super::resolver::Resolver;
use super::sender::{Completed, Failure, Sender};
use crate::client::api::Client;
use crate::client::error::ClientError;
use crate::message::{Acks, ProduceReply};

/// A turn that waits; what has to happen earlier ends it.
const WAIT: Duration = Duration::from_secs(1);

/// How a [`DirectProducer`] behaves.
#[derive(Clone, Copy, Debug)]
pub struct DirectConfig {
    /// When the node answers.
    pub acks: Acks,
    /// How long it looks for a reply again and again before it sleeps. Saves a wake-up, some 50 µs, and takes a whole
    /// CPU meanwhile: give the thread one of its own, or leave this at zero.
    pub spin: Duration,
    /// A record that is not acknowledged in this time has failed.
    pub delivery_timeout: Duration,
}

impl Default for DirectConfig {
    fn default() -> Self {
        Self { acks: Acks::Quorum, spin: Duration::ZERO, delivery_timeout: Duration::from_secs(120) }
    }
}

/// A producer for threads that care about the time of each record: it is sent at once, by the calling thread, over that
/// thread's own connection to the partition's leader; no other thread, no async runtime, and no memory is allocated once
/// its buffers have grown. Idempotent: what is sent again after a lost connection is in the log once.
///
/// For one thread at a time; a thread that produces to several topics has one for each.
#[derive(Debug)]
pub struct DirectProducer {
    sender: Sender<u64>,
    topic: String,
    next: u64,
}

impl DirectProducer {
    /// For a topic that exists.
    ///
    /// # Errors
    /// What [`Client::topic`] and [`Client::init_producer_id`] give.
    pub fn new(client: Client, topic: &str, config: DirectConfig) -> Result<Self, ClientError> {
        let DirectConfig { acks, spin, delivery_timeout } = config;
        let config = ProducerConfig { acks, delivery_timeout, ..ProducerConfig::default() };
        let mut sender =
            Sender::new(client, topic, config, None, |client| Ok(Resolver::at_once(client, topic)))?;
        sender.set_spin(spin);
        Ok(Self { sender, topic: topic.to_owned(), next: 0 })
    }

    /// Partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.sender.partitions()
    }

    /// Totals so far.
    pub fn stats(&self) -> ProducerStats {
        self.sender.stats()
    }

    /// Sends a record and waits for its acknowledgement. Its timestamp is the time now. Whatever was submitted before
    /// and not received has to be received first.
    ///
    /// # Errors
    /// [`DeliveryError`], which says whether the record may be in the log.
    pub fn send(
        &mut self,
        partition: u32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<RecordMetadata, DeliveryError> {
        if !self.sender.is_idle() || self.sender.has_completed() {
            let detail = "receive what was submitted before a send that waits".to_owned();
            return Err(not_accepted(ClientError::Usage(detail)));
        }
        let number = self.submit(partition, key, value)?;
        loop {
            if let Some((_, result)) = self.receive(WAIT).filter(|(got, _)| *got == number) {
                return result;
            }
        }
    }

    /// Sends a record without waiting and gives its number, which [`Self::receive`] names with its outcome. Not more
    /// than five at once per partition are under way; others wait in memory for their turn.
    ///
    /// # Errors
    /// [`DeliveryError::NotAccepted`].
    pub fn submit(
        &mut self,
        partition: u32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<u64, DeliveryError> {
        if partition >= self.partitions() {
            let (topic, count) = (&self.topic, self.partitions());
            let detail = format!("topic {topic} has {count} partitions, not {partition}");
            return Err(not_accepted(ClientError::Usage(detail)));
        }
        let (waiting, most) = (self.sender.unacknowledged_bytes(), self.sender.config().buffer_memory);
        if waiting >= most {
            return Err(not_accepted(ClientError::BufferFull { buffered_bytes: waiting }));
        }
        let mut builder = self.sender.builder();
        builder.append(now_ms(), key, value, &[]).map_err(|error| not_accepted(error.into()))?;
        let number = self.next;
        self.next += 1;
        let sends = self.sender.batches(partition) < BATCHES_PER_PRODUCER;
        self.sender.push(partition, builder, number, Instant::now());
        if sends {
            self.sender.send();
        }
        Ok(number)
    }

    /// The next outcome: the number that [`Self::submit`] gave, and what became of the record. Waits for up to
    /// `timeout`; `None` when there is none by then, or nothing is under way.
    pub fn receive(&mut self, timeout: Duration) -> Option<(u64, Result<RecordMetadata, DeliveryError>)> {
        let begun = Instant::now();
        let mut looked = false;
        loop {
            if let Some(Completed { partition, tag, result, .. }) = self.sender.completed() {
                let placed = |reply: ProduceReply| RecordMetadata {
                    partition,
                    offset: reply.base_offset,
                    durability: reply.durability,
                    duplicate: reply.duplicate,
                };
                return Some((tag, result.map(placed).map_err(DeliveryError::from)));
            }
            let left = timeout.saturating_sub(begun.elapsed());
            if self.sender.is_idle() || (looked && left.is_zero()) {
                return None;
            }
            self.sender.turn(left);
            looked = true;
        }
    }
}

fn not_accepted(error: ClientError) -> DeliveryError {
    DeliveryError::from(Failure { error: Arc::new(error), outcome: Outcome::NotAccepted })
}
