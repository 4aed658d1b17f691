//! Producers at a fixed rate for as long as a cluster lives, whatever becomes of its nodes, and whether all that was
//! acknowledged is there in the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use pyralog_net::client::{Client, Consumer, ConsumerConfig, IdempotentProducer, ProducerConfig, StartAt};

use crate::pace::Clock;
use crate::stamped::MonotonicClock;

/// Longer than this and the run is given up.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
const VALUE_BYTES: usize = 256;

/// One acknowledged record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    /// When it was due, of [`MonotonicClock`].
    pub(super) due_ns: u64,
    /// From there to its acknowledgement, nanoseconds.
    pub(super) latency_ns: u64,
}

/// What all producers have in common.
pub(super) struct Load<'a> {
    pub(super) topic: &'a str,
    pub(super) partitions: u32,
    pub(super) producers: u32,
    /// Between two records of one producer.
    pub(super) interval: Duration,
    pub(super) ended: &'a AtomicBool,
}

impl Load<'_> {
    /// Where a producer's record goes.
    fn partition(&self, producer: u32, number: u64) -> u32 {
        ((number + u64::from(producer)) % u64::from(self.partitions)) as u32
    }

    /// One record after the other at fixed times, each acknowledged before the next: what is held up counts from when it was
    /// due. Until the end is told.
    pub(super) fn produce(&self, client: Client, producer: u32) -> anyhow::Result<Vec<Ack>> {
        let config = ProducerConfig { delivery_timeout: DELIVERY_TIMEOUT, ..ProducerConfig::default() };
        let mut sender = IdempotentProducer::new(client, self.topic, config)?;
        let interval_ns = self.interval.as_nanos() as u64;
        let first_ns =
            MonotonicClock.now_ns() + interval_ns * u64::from(producer) / u64::from(self.producers);
        let (mut acks, mut value) = (Vec::new(), [b'.'; VALUE_BYTES]);
        while !self.ended.load(Ordering::Relaxed) {
            let number = acks.len() as u64;
            let due_ns = first_ns + interval_ns * number;
            let early_ns = due_ns.saturating_sub(MonotonicClock.now_ns());
            std::thread::sleep(Duration::from_nanos(early_ns));
            value[..4].copy_from_slice(&producer.to_be_bytes());
            value[4..12].copy_from_slice(&number.to_be_bytes());
            sender.send(self.partition(producer, number), 0, None, Some(&value), &[])?;
            sender.flush()?;
            acks.push(Ack { due_ns, latency_ns: MonotonicClock.now_ns().saturating_sub(due_ns) });
        }
        Ok(acks)
    }

    /// Whether every acknowledged record is there once, in the order of its producer, and nothing else is.
    pub(super) fn read_back(&self, client: &dyn Fn() -> Client, sent: &[u64]) -> anyhow::Result<()> {
        let mut found = vec![0u64; sent.len()];
        for partition in 0..self.partitions {
            self.read_partition(client(), partition, &mut found)?;
        }
        for (producer, (sent, found)) in sent.iter().zip(&found).enumerate() {
            anyhow::ensure!(
                sent == found,
                "producer {producer}: {sent} records acknowledged, {found} are there"
            );
        }
        Ok(())
    }

    fn read_partition(&self, client: Client, partition: u32, found: &mut [u64]) -> anyhow::Result<()> {
        let config = ConsumerConfig { max_bytes: 4 << 20, ..ConsumerConfig::default() };
        let mut consumer = Consumer::new(client, self.topic, partition, StartAt::Earliest, config)?;
        // The number that each producer's next record in this partition has.
        let first = |producer| (0..).find(|number| self.partition(producer, *number) == partition);
        let mut next: Vec<u64> = (0..self.producers).filter_map(first).collect();
        loop {
            let polled = consumer.poll(Duration::ZERO, |record| {
                let value = record.value.unwrap_or_default();
                let producer = value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize);
                let number = value.get(4..).and_then(<[u8]>::first_chunk).map(|bytes| u64::from_be_bytes(*bytes));
                let (producer, number) = producer.zip(number).context("a record that nobody sent")?;
                let (next, found) = next.get_mut(producer).zip(found.get_mut(producer)).context("nobody's record")?;
                anyhow::ensure!(
                    number == *next,
                    "offset {} of partition {partition}: producer {producer}'s record {number} where its record {next} belongs",
                    record.offset
                );
                *next += u64::from(self.partitions);
                *found += 1;
                anyhow::Ok(())
            })?;
            if consumer.position() >= polled.high_watermark {
                return Ok(());
            }
        }
    }
}
