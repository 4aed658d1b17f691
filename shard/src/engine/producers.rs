//! Idempotent producers of one partition: which sequences were appended, so that a retry is answered with the
//! original offset (Kafka's KIP-98 rules).

use ahash::RandomState;
use smallvec::SmallVec;
use std::collections::HashMap;

use pyralog_core::ErrorCode;
use pyralog_core::batch::BatchView;
use pyralog_core::limits::{BATCHES_PER_PRODUCER, MAX_PRODUCERS_PER_PARTITION};

use super::Now;
use crate::format::checkpoint::{ProducerBatch, ProducerCheckpoint};

/// A producer idle for this long may be forgotten to make room, microseconds.
pub(super) const PRODUCER_IDLE_US: u64 = 15 * 60 * 1_000_000;

/// A batch that was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Appended {
    pub(super) first_sequence: i32,
    pub(super) last_sequence: i32,
    pub(super) base_offset: i64,
}

/// What one producer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Producer {
    pub(super) epoch: i16,
    /// Monotonic, microseconds: a wall clock that jumps must not make a live producer look idle. One that comes from
    /// the disk counts as used when it was recovered.
    pub(super) last_used_us: u64,
    /// Oldest first. The last [`BATCHES_PER_PRODUCER`] committed ones, and all that are not committed: these may be
    /// taken back, and then those must still be known.
    pub(super) batches: SmallVec<[Appended; BATCHES_PER_PRODUCER + 1]>,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the next one.
    Append,
    /// It is there already, at this base offset.
    Duplicate(i64),
    /// It is refused.
    Refuse(ErrorCode),
}

/// The producers of one partition.
#[derive(Clone, Debug)]
pub(super) struct Producers {
    map: HashMap<i64, Producer, RandomState>,
}

impl Default for Producers {
    fn default() -> Self {
        // Fixed seeds: the engine has no random source, and the map never decides an order.
        Self { map: HashMap::with_hasher(RandomState::with_seeds(1, 2, 3, 4)) }
    }
}

impl Producers {
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Judges a batch of `producer_id`; `first..=last` are its sequences.
    pub(super) fn judge(&self, producer_id: i64, epoch: i16, first: i32, last: i32) -> Verdict {
        let Some(producer) = self.map.get(&producer_id) else {
            return if first == 0 { Verdict::Append } else { Verdict::Refuse(ErrorCode::UnknownProducerId) };
        };
        if epoch < producer.epoch {
            return Verdict::Refuse(ErrorCode::ProducerFenced);
        }
        if epoch > producer.epoch {
            return if first == 0 { Verdict::Append } else { Verdict::Refuse(ErrorCode::OutOfOrderSequence) };
        }
        let same = producer
            .batches
            .iter()
            .find(|batch| batch.first_sequence == first && batch.last_sequence == last);
        if let Some(batch) = same {
            return Verdict::Duplicate(batch.base_offset);
        }
        match producer.batches.last() {
            Some(batch) if next_sequence(batch.last_sequence) == first => Verdict::Append,
            Some(_) => Verdict::Refuse(ErrorCode::OutOfOrderSequence),
            None if first == 0 => Verdict::Append,
            None => Verdict::Refuse(ErrorCode::UnknownProducerId),
        }
    }

    /// Whether a batch of `producer_id` finds room here.
    pub(super) fn has_room(&self, producer_id: i64) -> bool {
        self.map.len() < MAX_PRODUCERS_PER_PARTITION || self.map.contains_key(&producer_id)
    }

    /// Forgets producers that are idle at `now_us`; returns how many.
    pub(super) fn forget_idle(&mut self, now_us: u64) -> usize {
        let count = self.map.len();
        self.map.retain(|_, producer| now_us.saturating_sub(producer.last_used_us) <= PRODUCER_IDLE_US);
        count - self.map.len()
    }

    /// Notes an appended batch with offsets from `base_offset` on, if it has a producer, where everything below
    /// `committed` is committed. Returns whether the producer is new here.
    pub(super) fn note_batch(
        &mut self,
        batch: &BatchView<'_>,
        base_offset: i64,
        now_us: u64,
        committed: i64,
    ) -> bool {
        if batch.producer_id() < 0 {
            return false;
        }
        let (first_sequence, last_sequence) = (batch.base_sequence(), batch.last_sequence());
        let appended = Appended { first_sequence, last_sequence, base_offset };
        self.note(batch.producer_id(), batch.producer_epoch(), now_us, committed, appended)
    }

    fn note(&mut self, producer_id: i64, epoch: i16, now_us: u64, committed: i64, batch: Appended) -> bool {
        let mut new = false;
        let producer = self.map.entry(producer_id).or_insert_with(|| {
            new = true;
            Producer { epoch, last_used_us: now_us, batches: SmallVec::new() }
        });
        if producer.epoch != epoch {
            producer.epoch = epoch;
            producer.batches.clear();
        }
        producer.last_used_us = now_us;
        // A replay meets batches that a checkpoint holds already.
        if producer.batches.iter().any(|known| known.base_offset >= batch.base_offset) {
            return new;
        }
        producer.batches.push(batch);
        let done = producer.batches.partition_point(|known| known.base_offset < committed);
        if let Some(more) = done.checked_sub(BATCHES_PER_PRODUCER).filter(|more| *more > 0) {
            producer.batches.drain(..more);
        }
        new
    }

    /// Takes back what was noted at `offset` and behind. Returns how many producers are not known any more.
    pub(super) fn undo(&mut self, offset: i64) -> usize {
        let count = self.map.len();
        self.map.retain(|_, producer| {
            producer.batches.retain(|batch| batch.base_offset < offset);
            !producer.batches.is_empty()
        });
        count - self.map.len()
    }

    /// Takes what a checkpoint or another replica says of a producer for what is known of it.
    pub(super) fn restore(&mut self, known: &ProducerCheckpoint, now_us: u64) {
        let batches = known.batches.iter().map(|batch| Appended {
            first_sequence: batch.first_seq,
            last_sequence: batch.last_seq,
            base_offset: batch.base_offset,
        });
        let producer = Producer { epoch: known.epoch, last_used_us: now_us, batches: batches.collect() };
        self.map.insert(known.producer_id, producer);
    }

    /// [`Self::snapshot`] as it is written down.
    pub(super) fn checkpoint(&self, committed: i64, now: Now) -> Vec<ProducerCheckpoint> {
        let idle_ms = |used_us: u64| (now.monotonic_us.saturating_sub(used_us) / 1_000) as i64;
        let batch = |batch: &Appended| ProducerBatch {
            first_seq: batch.first_sequence,
            last_seq: batch.last_sequence,
            base_offset: batch.base_offset,
        };
        let all = self.snapshot(committed).into_iter();
        all.map(|(producer_id, producer)| ProducerCheckpoint {
            producer_id,
            epoch: producer.epoch,
            last_used_ms: now.wall_ms.saturating_sub(idle_ms(producer.last_used_us)),
            batches: producer.batches.iter().map(batch).collect(),
        })
        .collect()
    }

    /// The producers in the order of their ids, with the batches below `committed` only: what is not durable
    /// must not be remembered as done.
    fn snapshot(&self, committed: i64) -> Vec<(i64, Producer)> {
        let mut all: Vec<_> = self
            .map
            .iter()
            .map(|(id, producer)| {
                let mut producer = producer.clone();
                producer.batches.retain(|batch| batch.base_offset < committed);
                let more = producer.batches.len().saturating_sub(BATCHES_PER_PRODUCER);
                producer.batches.drain(..more);
                (*id, producer)
            })
            .filter(|(_, producer)| !producer.batches.is_empty())
            .collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }
}

/// The sequence after `sequence`: Kafka wraps from `i32::MAX` to 0.
fn next_sequence(sequence: i32) -> i32 {
    sequence.checked_add(1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: i32, last: i32, base_offset: i64) -> Appended {
        Appended { first_sequence: first, last_sequence: last, base_offset }
    }

    #[test]
    fn duplicates_gaps_and_fences() {
        let mut producers = Producers::default();
        assert_eq!(producers.judge(7, 0, 3, 3), Verdict::Refuse(ErrorCode::UnknownProducerId));
        assert_eq!(producers.judge(7, 0, 0, 4), Verdict::Append);
        assert!(producers.note(7, 0, 1, 0, batch(0, 4, 100)));
        assert_eq!(producers.judge(7, 0, 0, 4), Verdict::Duplicate(100));
        assert_eq!(producers.judge(7, 0, 0, 3), Verdict::Refuse(ErrorCode::OutOfOrderSequence));
        assert_eq!(producers.judge(7, 0, 6, 6), Verdict::Refuse(ErrorCode::OutOfOrderSequence));
        assert_eq!(producers.judge(7, 0, 5, 6), Verdict::Append);
        assert!(!producers.note(7, 1, 2, 0, batch(0, 0, 105)));
        assert_eq!(producers.judge(7, 0, 5, 6), Verdict::Refuse(ErrorCode::ProducerFenced));
        assert_eq!(producers.judge(7, 1, 0, 0), Verdict::Duplicate(105));
    }

    #[test]
    fn sequences_wrap_and_five_batches_are_remembered() {
        let mut producers = Producers::default();
        producers.note(1, 0, 0, 0, batch(i32::MAX - 1, i32::MAX, 10));
        assert_eq!(producers.judge(1, 0, 0, 1), Verdict::Append);
        for i in 0..5 {
            producers.note(1, 0, 0, 0, batch(i, i, 12 + i64::from(i)));
        }
        for i in 0..5 {
            assert_eq!(producers.judge(1, 0, i, i), Verdict::Duplicate(12 + i64::from(i)));
        }
        assert_eq!(producers.judge(1, 0, 5, 5), Verdict::Append);
    }

    #[test]
    fn a_snapshot_leaves_out_what_is_not_committed() {
        let mut producers = Producers::default();
        producers.note(1, 0, 0, 0, batch(0, 0, 10));
        producers.note(1, 0, 0, 0, batch(1, 1, 11));
        producers.note(2, 0, 0, 0, batch(0, 0, 12));
        let snapshot = producers.snapshot(11);
        assert_eq!(snapshot.len(), 1);
        assert_eq!(snapshot[0].1.batches.as_slice(), [batch(0, 0, 10)]);
    }

    #[test]
    fn only_producers_that_were_idle_long_enough_are_forgotten() {
        let mut producers = Producers::default();
        producers.note(1, 0, 5_000_000, 0, batch(0, 0, 10));
        producers.note(2, 0, 6_000_000, 0, batch(0, 0, 11));
        assert_eq!(producers.forget_idle(PRODUCER_IDLE_US + 5_000_000), 0);
        assert_eq!(producers.forget_idle(PRODUCER_IDLE_US + 5_000_001), 1);
        assert_eq!(producers.judge(2, 0, 0, 0), Verdict::Duplicate(11));
    }
}
