//! The idempotent producer: each record is in the log exactly once and in the order of its `send`, across lost
//! connections and restarts of the node.
//!
//! Batches of a partition carry consecutive sequence numbers, and at most five are in flight: as many as the node
//! remembers. What was not acknowledged is sent again in the same order and with the same numbers, so the node
//! can tell a batch that it has from one that it has not. A failure that can't be repaired (the deadline is over,
//! the session is fenced) fails the producer for good: going on would leave a gap.

mod link;
mod queue;

use std::collections::BTreeMap;
use std::time::Duration;

use pyralog_core::batch::{BatchBuilder, BatchError, Compression, Header};
use pyralog_core::limits::{BATCHES_PER_PRODUCER, MAX_BATCH_BYTES};
use pyralog_core::{ErrorCode, GroupId};

use super::api::{Client, nobody_leads};
use super::backoff::Backoff;
use super::error::ClientError;
use super::place::Place;
use crate::message::{Acks, Durability, InitProducerIdReply, ProduceReply, Response};
use link::Link;
use queue::Queue;

/// Produces of one connection that may await their replies: their replies fit into the buffers of both sides.
const MAX_IN_FLIGHT_PER_CONNECTION: usize = 1024;

/// How a producer behaves.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// When the node answers.
    pub acks: Acks,
    /// Compression of the batches.
    pub compression: Compression,
    /// A batch is sent when it has reached this size, bytes; smaller ones with [`IdempotentProducer::flush`].
    pub batch_bytes: usize,
    /// Batches of one partition under way at once, 1 to 5.
    pub max_in_flight_per_partition: usize,
    /// `send` waits while this many bytes of batches are not acknowledged.
    pub max_unacknowledged_bytes: usize,
    /// The producer fails when a batch is not acknowledged in this time.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::Quorum,
            compression: Compression::None,
            batch_bytes: 64 << 10,
            max_in_flight_per_partition: BATCHES_PER_PRODUCER,
            max_unacknowledged_bytes: 32 << 20,
            delivery_timeout: Duration::from_secs(120),
        }
    }
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
    /// Rounds of sending again.
    pub retries: u64,
    /// Connections made after the first of each shard.
    pub reconnects: u64,
}

/// Called with each acknowledgement.
pub type OnAck = Box<dyn FnMut(&Ack) + Send>;

/// An idempotent producer for one topic. Blocking; `send` returns when the record is in a batch, not when it is
/// acknowledged: [`Self::flush`] waits for that.
pub struct IdempotentProducer {
    client: Client,
    topic: String,
    topic_id: u32,
    config: ProducerConfig,
    session: InitProducerIdReply,
    partitions: Vec<Queue>,
    links: BTreeMap<Place, Link>,
    unacknowledged_bytes: usize,
    backoff: Backoff,
    failed: Option<(ErrorCode, String)>,
    on_ack: Option<OnAck>,
    stats: ProducerStats,
}

impl std::fmt::Debug for IdempotentProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdempotentProducer")
            .field("topic", &self.topic)
            .field("session", &self.session)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl IdempotentProducer {
    /// A new session for a topic that exists.
    pub fn new(mut client: Client, topic: &str, mut config: ProducerConfig) -> Result<Self, ClientError> {
        config.max_in_flight_per_partition =
            config.max_in_flight_per_partition.clamp(1, BATCHES_PER_PRODUCER);
        config.batch_bytes = config.batch_bytes.min(MAX_BATCH_BYTES);
        let session = client.init_producer_id()?;
        client.forget_topic(topic);
        let metadata = client.topic(topic)?;
        Ok(Self {
            client,
            topic: topic.to_owned(),
            topic_id: metadata.id,
            config,
            session,
            partitions: metadata
                .partitions
                .iter()
                .map(|partition| Queue::new(Place::leader_of(partition)))
                .collect(),
            links: BTreeMap::new(),
            unacknowledged_bytes: 0,
            backoff: Backoff::new(),
            failed: None,
            on_ack: None,
            stats: ProducerStats::default(),
        })
    }

    /// Calls `on_ack` with each acknowledgement, from inside the calls to this producer.
    pub fn on_ack(&mut self, on_ack: OnAck) {
        self.on_ack = Some(on_ack);
    }

    /// The id and epoch of its session.
    pub fn session(&self) -> InitProducerIdReply {
        self.session
    }

    /// Partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.partitions.len() as u32
    }

    /// Totals so far.
    pub fn stats(&self) -> ProducerStats {
        self.stats
    }

    /// Records taken by `send` and not acknowledged.
    pub fn unacknowledged_records(&self) -> u64 {
        self.partitions.iter().map(Queue::records).sum()
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
        let batch_bytes = self.config.batch_bytes;
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
        if self.builder(partition).len_bytes() >= batch_bytes { self.seal(partition) } else { Ok(()) }
    }

    /// Sends what is in open batches, without waiting for acknowledgements.
    pub fn send_open_batches(&mut self) -> Result<(), ClientError> {
        (0..self.partitions()).try_for_each(|partition| self.seal(partition))
    }

    /// Sends everything and waits until all of it is acknowledged.
    ///
    /// # Errors
    /// The error that failed the producer. What was acknowledged before stays so.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.send_open_batches()?;
        while self.partitions.iter().any(|queue| !queue.is_empty()) {
            if self.pump_all()? {
                self.receive_all()?;
            }
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

    fn queue(&mut self, partition: u32) -> &mut Queue {
        // `check` has refused what does not exist; every other index comes from this vector.
        &mut self.partitions[partition as usize]
    }

    fn builder(&mut self, partition: u32) -> &mut BatchBuilder {
        self.queue(partition).open_batch()
    }

    /// Closes the partition's open batch and sends it; waits while too much is under way.
    fn seal(&mut self, partition: u32) -> Result<(), ClientError> {
        self.check(partition)?;
        let (session, compression) = (self.session, self.config.compression);
        self.unacknowledged_bytes += self.queue(partition).seal(session, compression)?;
        loop {
            let done = self.pump(partition)?;
            let queue = self.queue(partition);
            let (batches, place) = (queue.batches(), queue.place);
            let room = batches < self.config.max_in_flight_per_partition
                && self.unacknowledged_bytes < self.config.max_unacknowledged_bytes;
            if done && (room || batches == 0) {
                return Ok(());
            }
            if let Some(place) = place
                && self.link(place).in_flight() > 0
            {
                self.receive_one(place)?;
            }
        }
    }

    fn link(&mut self, place: Place) -> &mut Link {
        self.links.entry(place).or_default()
    }

    /// Sends what the partition's bounds allow; `true` when nothing is left that could be sent.
    fn pump(&mut self, partition: u32) -> Result<bool, ClientError> {
        match self.try_pump(partition) {
            Ok(done) => Ok(done),
            Err(error) => {
                let place = self.queue(partition).place;
                self.recover(place, error)?;
                Ok(false)
            }
        }
    }

    fn try_pump(&mut self, partition: u32) -> Result<bool, ClientError> {
        let group = GroupId::new(self.topic_id, partition);
        let (acks, window) = (self.config.acks, self.config.max_in_flight_per_partition);
        if self.queue(partition).unsent(window).is_none() {
            return Ok(true);
        }
        let place = self.queue(partition).place.ok_or_else(|| nobody_leads(group))?;
        if !self.link(place).is_connected() {
            let connection = self.client.open(place)?;
            if self.link(place).connect(connection) {
                self.stats.reconnects += 1;
            }
        }
        let (Some(link), Some(queue)) =
            (self.links.get_mut(&place), self.partitions.get_mut(partition as usize))
        else {
            return Ok(true);
        };
        while let Some(batch) = queue.unsent(window) {
            if link.in_flight() >= MAX_IN_FLIGHT_PER_CONNECTION {
                link.flush()?;
                return Ok(false);
            }
            let correlation_id = link.send(partition, group, acks, batch)?;
            queue.sent(correlation_id);
        }
        link.flush()?;
        Ok(true)
    }

    /// Sends whatever may be sent of all partitions; `false` when that had to be begun anew.
    fn pump_all(&mut self) -> Result<bool, ClientError> {
        for partition in 0..self.partitions() {
            if let Err(error) = self.try_pump(partition) {
                let place = self.queue(partition).place;
                self.recover(place, error)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn receive_all(&mut self) -> Result<(), ClientError> {
        let places: Vec<Place> = self.links.keys().copied().collect();
        for place in places {
            while self.link(place).in_flight() > 0 {
                self.receive_one(place)?;
            }
        }
        Ok(())
    }

    /// Takes one reply from a shard, or repairs what keeps it from coming.
    fn receive_one(&mut self, place: Place) -> Result<(), ClientError> {
        let timeout = self.client.config().request_timeout.min(self.config.delivery_timeout);
        let link = self.links.entry(place).or_default();
        let waits = (Duration::ZERO, timeout);
        let received = self.client.await_reply(&self.topic, place, waits, |wait| link.receive(wait));
        let (partition, correlation_id, response) = match received {
            Ok(received) => received,
            Err(error) => return self.recover(Some(place), error),
        };
        match response {
            Response::Produce(reply) => self.acknowledged(place, partition, correlation_id, reply),
            Response::Error(error) => {
                let error = ClientError::Server { code: error.code, detail: error.detail };
                self.recover(Some(place), error)
            }
            other => {
                let detail = format!("a produce was answered with {other:?}");
                let error = ClientError::Protocol { address: place.to_string(), detail };
                Err(self.fail(error))
            }
        }
    }

    fn acknowledged(
        &mut self,
        place: Place,
        partition: u32,
        correlation_id: u64,
        reply: ProduceReply,
    ) -> Result<(), ClientError> {
        let Some(batch) = self.queue(partition).acknowledge(correlation_id) else {
            // A batch behind one that has failed: both are sent again, and the node answers with what it has.
            let detail = format!("replies to partition {partition} came out of order");
            return self.recover(Some(place), ClientError::Protocol { address: place.to_string(), detail });
        };
        self.unacknowledged_bytes -= batch.bytes;
        self.backoff.reset();
        self.stats.acked_batches += 1;
        self.stats.acked_records += u64::from(batch.records);
        self.stats.acked_bytes += batch.bytes as u64;
        self.stats.duplicates += u64::from(reply.duplicate);
        if let Some(on_ack) = &mut self.on_ack {
            on_ack(&Ack {
                partition,
                base_offset: reply.base_offset,
                records: batch.records,
                durability: reply.durability,
                duplicate: reply.duplicate,
                elapsed: batch.begun.elapsed(),
            });
        }
        Ok(())
    }

    /// After a failure at `place`: forget what was under way there, wait, and send it again in its order. Returns
    /// when everything was sent; the replies are still to come.
    fn recover(&mut self, place: Option<Place>, error: ClientError) -> Result<(), ClientError> {
        let (mut place, mut error) = (place, error);
        loop {
            if !repairable(&error) {
                return Err(self.fail(error));
            }
            self.stats.retries += 1;
            if let Some(place) = place {
                self.forget_in_flight(place, &error);
            }
            let oldest = self.partitions.iter().filter_map(Queue::oldest).min();
            let tried = oldest.map(|oldest| oldest.elapsed()).unwrap_or_default();
            if tried >= self.config.delivery_timeout {
                let records = self.unacknowledged_records();
                let after_ms = tried.as_millis() as u64;
                return Err(self.fail(ClientError::DeliveryTimeout {
                    after_ms,
                    records,
                    last: Box::new(error),
                }));
            }
            std::thread::sleep(self.backoff.step());
            if let Err(next) = self.refresh_places(&error) {
                error = next;
                continue;
            }
            match self.resend() {
                Ok(()) => return Ok(()),
                Err((at, next)) => (place, error) = (at, next),
            }
        }
    }

    fn resend(&mut self) -> Result<(), (Option<Place>, ClientError)> {
        for partition in 0..self.partitions() {
            self.try_pump(partition).map_err(|error| (self.queue(partition).place, error))?;
        }
        Ok(())
    }

    /// Nothing is under way at `place` any more. Where the connection is sound, its replies are taken first, so that
    /// a busy node is not burdened with new connections; they say nothing that sending again does not tell.
    fn forget_in_flight(&mut self, place: Place, error: &ClientError) {
        let busy = matches!(
            error,
            ClientError::Server { code: ErrorCode::Overloaded | ErrorCode::DiskFull | ErrorCode::Fenced, .. }
        );
        let timeout = self.client.config().request_timeout.min(self.config.delivery_timeout);
        let link = self.link(place);
        if !busy || !link.drain(timeout) {
            link.disconnect();
        }
        self.partitions.iter_mut().filter(|queue| queue.place == Some(place)).for_each(Queue::nothing_sent);
    }

    /// Learns where the partitions are when `error` says that they may be elsewhere. A topic that is not there yet on a
    /// node that lags behind is asked for again.
    fn refresh_places(&mut self, error: &ClientError) -> Result<(), ClientError> {
        if !error.asks_elsewhere() {
            return Ok(());
        }
        let metadata = self.client.topic_afresh(&self.topic)?;
        if metadata.id != self.topic_id {
            return Err(ClientError::Usage(format!("topic {} was deleted and created anew", self.topic)));
        }
        for (index, partition) in metadata.partitions.iter().enumerate() {
            let place = Place::leader_of(partition);
            let Some(queue) = self.partitions.get_mut(index) else { break };
            if queue.place == place {
                continue;
            }
            queue.nothing_sent();
            if let Some(old) = std::mem::replace(&mut queue.place, place) {
                self.link(old).disconnect();
                let there = self.partitions.iter_mut().filter(|queue| queue.place == Some(old));
                there.for_each(Queue::nothing_sent);
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: ClientError) -> ClientError {
        self.failed = Some((error.code(), error.to_string()));
        self.links.values_mut().for_each(Link::disconnect);
        error
    }
}

/// Whether sending again, over a new connection if need be, can help.
fn repairable(error: &ClientError) -> bool {
    error.retriable() || matches!(error, ClientError::Protocol { .. })
}
