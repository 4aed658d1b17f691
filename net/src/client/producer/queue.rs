//! What one partition has not had acknowledged, in the order of its sequence numbers.

use std::collections::VecDeque;
use std::time::Instant;

use pyralog_core::batch::{BatchBuilder, BatchError, Compression, sequence_after};

use crate::client::place::Place;
use crate::message::InitProducerIdReply;

/// The unacknowledged batches of one partition: `batches[..sent]` are in flight, the others wait.
#[derive(Debug)]
pub(super) struct Queue {
    /// Where the partition is led, as far as that is known.
    pub(super) place: Option<Place>,
    open: Option<Box<BatchBuilder>>,
    next_sequence: i32,
    batches: VecDeque<Pending>,
    sent: usize,
}

/// One batch with its sequence number and checksum in place.
#[derive(Debug)]
struct Pending {
    batch: Vec<u8>,
    records: u32,
    correlation_id: u64,
    begun: Instant,
}

/// A batch that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub(super) bytes: usize,
    pub(super) records: u32,
    pub(super) begun: Instant,
}

impl Queue {
    pub(super) fn new(place: Option<Place>) -> Self {
        Self { place, open: None, next_sequence: 0, batches: VecDeque::new(), sent: 0 }
    }

    pub(super) fn open_batch(&mut self) -> &mut BatchBuilder {
        self.open.get_or_insert_default()
    }

    /// Closes the open batch; returns its size, bytes, or 0 when there is none.
    pub(super) fn seal(
        &mut self,
        session: InitProducerIdReply,
        compression: Compression,
    ) -> Result<usize, BatchError> {
        let Some(builder) = self.open.as_mut().filter(|builder| !builder.is_empty()) else { return Ok(0) };
        builder.set_producer(session.producer_id, session.producer_epoch, self.next_sequence);
        let records = builder.record_count();
        let batch = builder.build(compression)?.to_vec();
        builder.clear();
        self.next_sequence = sequence_after(self.next_sequence, records);
        let bytes = batch.len();
        self.batches.push_back(Pending { batch, records, correlation_id: 0, begun: Instant::now() });
        Ok(bytes)
    }

    /// The next batch to send while fewer than `window` are in flight.
    pub(super) fn unsent(&self, window: usize) -> Option<&[u8]> {
        if self.sent >= window {
            return None;
        }
        self.batches.get(self.sent).map(|pending| pending.batch.as_slice())
    }

    /// The batch that [`Self::unsent`] gave is under way.
    pub(super) fn sent(&mut self, correlation_id: u64) {
        if let Some(pending) = self.batches.get_mut(self.sent) {
            pending.correlation_id = correlation_id;
            self.sent += 1;
        }
    }

    /// Everything unacknowledged is to be sent again.
    pub(super) fn nothing_sent(&mut self) {
        self.sent = 0;
    }

    /// Whether the request is the oldest one in flight.
    pub(super) fn is_first(&self, correlation_id: u64) -> bool {
        self.sent > 0 && self.batches.front().is_some_and(|pending| pending.correlation_id == correlation_id)
    }

    /// Takes the oldest batch out; `None` when the request was not the oldest one's.
    pub(super) fn acknowledge(&mut self, correlation_id: u64) -> Option<Acknowledged> {
        if !self.is_first(correlation_id) {
            return None;
        }
        let pending = self.batches.pop_front()?;
        self.sent -= 1;
        Some(Acknowledged { bytes: pending.batch.len(), records: pending.records, begun: pending.begun })
    }

    /// When the oldest unacknowledged batch was first tried.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.batches.front().map(|pending| pending.begun)
    }

    /// Closed batches that are not acknowledged.
    pub(super) fn batches(&self) -> usize {
        self.batches.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Records that are not acknowledged, those of the open batch included.
    pub(super) fn records(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |builder| u64::from(builder.record_count()));
        open + self.batches.iter().map(|pending| u64::from(pending.records)).sum::<u64>()
    }
}
