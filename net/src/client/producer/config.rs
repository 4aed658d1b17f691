//! How producers behave, and what they tell.

use std::time::Duration;

use pyralog_core::batch::Compression;
use pyralog_core::limits::{BATCHES_PER_PRODUCER, MAX_BATCH_BYTES};

use crate::client::backoff::FOR_EVER;
use crate::message::{Acks, Durability};

/// Batches of one partition that a producer that is not idempotent may have under way.
const MAX_IN_FLIGHT: usize = 1024;

/// How a producer behaves. The names are those of Kafka's producers.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// When the node answers.
    pub acks: Acks,
    /// Compression of the batches.
    pub compression: Compression,
    /// How long an open batch waits for more records when the partition could send it at once. With 0, the default, a
    /// batch goes as soon as the partition has room for one more under way; what comes meanwhile goes with the next.
    /// Of no effect for [`IdempotentProducer`](super::IdempotentProducer), which sends when it is told to.
    pub linger: Duration,
    /// A batch is closed when it has reached this size, bytes; at most [`MAX_BATCH_BYTES`].
    pub batch_size: usize,
    /// `send` waits while this many bytes of batches are not acknowledged.
    pub buffer_memory: usize,
    /// Batches of one partition under way at once, 1 to 5 for an idempotent producer and to 1,024 for others. More than
    /// one without idempotence may change the order of records when a batch is sent again.
    pub max_in_flight: usize,
    /// Every record exactly once and in the order of `send`, whatever is sent again. Without it, a batch whose
    /// acknowledgement was lost may be in the log twice.
    pub idempotent: bool,
    /// Where records without key and partition go.
    pub partitioner: Partitioner,
    /// A record that is not acknowledged in this time has failed. Counts from the first record of its batch.
    pub delivery_timeout: Duration,
    /// Longest time that `send` waits for room.
    pub max_block: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::Quorum,
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_size: 64 << 10,
            buffer_memory: 32 << 20,
            max_in_flight: BATCHES_PER_PRODUCER,
            idempotent: true,
            partitioner: Partitioner::Sticky,
            delivery_timeout: Duration::from_secs(120),
            max_block: Duration::from_secs(60),
        }
    }
}

impl ProducerConfig {
    /// The same within the bounds.
    pub(super) fn bounded(mut self) -> Self {
        let most = if self.idempotent { BATCHES_PER_PRODUCER } else { MAX_IN_FLIGHT };
        self.max_in_flight = self.max_in_flight.clamp(1, most);
        self.batch_size = self.batch_size.min(MAX_BATCH_BYTES);
        for time in [&mut self.linger, &mut self.delivery_timeout, &mut self.max_block] {
            *time = (*time).min(FOR_EVER);
        }
        self
    }
}

/// Where records go that have neither a key nor a partition. Those with a key go where Kafka's clients would send
/// them: murmur2 of the key, modulo the number of partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partitioner {
    /// To one partition until a batch of it is closed, then to the next: larger batches.
    #[default]
    Sticky,
    /// To each partition in turn.
    RoundRobin,
}

/// A batch was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The partition.
    pub partition: u32,
    /// Offset of the batch's first record.
    pub base_offset: i64,
    /// Records of the batch.
    pub records: u32,
    /// What was reached.
    pub durability: Durability,
    /// The node had it already: an earlier attempt got through.
    pub duplicate: bool,
    /// From the first attempt to the acknowledgement.
    pub elapsed: Duration,
}

/// Running totals of a producer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerStats {
    /// Batches acknowledged.
    pub acked_batches: u64,
    /// Records acknowledged.
    pub acked_records: u64,
    /// Bytes of the batches acknowledged.
    pub acked_bytes: u64,
    /// Of the batches, how many the node had already.
    pub duplicates: u64,
    /// Records that have failed.
    pub failed_records: u64,
    /// Failures of requests and connections after which something was sent again.
    pub retries: u64,
    /// Connections made after the first of each shard.
    pub reconnects: u64,
}
