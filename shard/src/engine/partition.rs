//! One partition on this shard: its offsets, its tail in the cache, its segments, its producers.

use std::collections::VecDeque;

use pyralog_core::{GroupId, NodeId, ShardId};
use pyralog_net::message::{PartitionHealth, PartitionState, ReplicaState};
use pyralog_replication::{Group, SingleVoter};

use crate::memory::ChunkSlice;

use super::producers::Producers;

/// A batch in the tail cache.
#[derive(Clone, Debug)]
pub(super) struct TailBatch {
    pub(super) base_offset: i64,
    pub(super) next_offset: i64,
    pub(super) max_timestamp: i64,
    pub(super) lsn: u64,
    /// Bytes of all batches of this partition before this one, since the engine started.
    pub(super) bytes_before: u64,
    pub(super) data: ChunkSlice,
}

/// A segment: batches `base..end`, without gaps, `bytes` long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) base: i64,
    pub(super) end: i64,
    pub(super) bytes: u64,
    pub(super) max_timestamp: i64,
    /// Wall time of the newest flush of a batch without a timestamp into it, milliseconds; `i64::MIN` without any.
    pub(super) written_ms: i64,
    /// Entries in its index file so far, and the position of the newest; `None` after a restart: such a
    /// segment is closed, the next flush begins a new one.
    pub(super) index: Option<IndexTail>,
}

impl Segment {
    /// The time from which retention counts its age, milliseconds: its largest timestamp, where a batch without one
    /// counts from its flush (Kafka takes the file's time of change when no batch has one).
    pub(super) fn newest_ms(&self) -> i64 {
        self.max_timestamp.max(self.written_ms)
    }
}

/// Where a growing segment's index stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IndexTail {
    pub(super) entries: u32,
    pub(super) last_position: u64,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) group: GroupId,
    pub(super) replica: SingleVoter,
    pub(super) log_start: i64,
    pub(super) log_end: i64,
    /// Newest batches, oldest first; the front ones may be in segments too.
    pub(super) tail: VecDeque<TailBatch>,
    /// Bytes appended since the engine started.
    pub(super) appended_bytes: u64,
    /// Everything below is in segments, durably.
    pub(super) flushed_to: i64,
    pub(super) segments: VecDeque<Segment>,
    pub(super) producers: Producers,
    /// Fetches that wait for data.
    pub(super) waiting: Vec<u64>,
    /// Offsets `from..to` that are lost to damage.
    pub(super) damaged: Vec<(i64, i64)>,
    /// Damage hides where the log ends: no writes.
    pub(super) end_unknown: bool,
    /// On the list of partitions with batches to be flushed.
    pub(super) dirty: bool,
    pub(super) retention_bytes: Option<u64>,
    pub(super) retention_ms: Option<u64>,
}

impl Partition {
    /// A partition that holds nothing, beginning at `log_start`.
    pub(super) fn empty(group: GroupId, epoch: u32, log_start: i64) -> Self {
        Self {
            group,
            replica: SingleVoter::recovered(epoch, log_start),
            log_start,
            log_end: log_start,
            tail: VecDeque::new(),
            appended_bytes: 0,
            flushed_to: log_start,
            segments: VecDeque::new(),
            producers: Producers::default(),
            waiting: Vec::new(),
            damaged: Vec::new(),
            end_unknown: false,
            dirty: false,
            retention_bytes: None,
            retention_ms: None,
        }
    }

    /// Adds a batch that was laid into the journal.
    pub(super) fn push_tail(
        &mut self,
        base_offset: i64,
        next_offset: i64,
        max_timestamp: i64,
        lsn: u64,
        data: ChunkSlice,
    ) {
        let bytes_before = self.appended_bytes;
        self.appended_bytes += data.len() as u64;
        self.log_end = next_offset;
        self.tail.push_back(TailBatch { base_offset, next_offset, max_timestamp, lsn, bytes_before, data });
    }

    /// Index in the tail of the batch that holds `offset`, if the cache reaches back that far.
    pub(super) fn tail_index(&self, offset: i64) -> Option<usize> {
        let first = self.tail.front()?;
        if offset < first.base_offset {
            return None;
        }
        let index = self.tail.partition_point(|batch| batch.next_offset <= offset);
        (index < self.tail.len()).then_some(index)
    }

    /// The damaged range that holds `offset`.
    pub(super) fn damage_at(&self, offset: i64) -> Option<(i64, i64)> {
        self.damaged.iter().copied().find(|(from, to)| (*from..*to).contains(&offset))
    }

    /// Notes that `from..to` is lost.
    pub(super) fn note_damage(&mut self, from: i64, to: i64) {
        if from < to && !self.damaged.contains(&(from, to)) {
            self.damaged.push((from, to));
        }
    }

    /// Batches not yet flushed, with those beyond the commit at `cut` left out.
    pub(super) fn unflushed(&self, cut: u64) -> impl Iterator<Item = &TailBatch> {
        let from = self.tail.partition_point(|batch| batch.base_offset < self.flushed_to);
        self.tail.range(from..).take_while(move |batch| batch.lsn <= cut)
    }

    /// For status pages. This replica, on `shard` of `node`, is the only one and leads.
    pub(super) fn state(&self, node: NodeId, shard: ShardId) -> PartitionState {
        let cached = self.tail.front().map_or(0, |first| self.appended_bytes - first.bytes_before);
        let own = ReplicaState {
            node: node.0,
            shard: shard.0,
            in_sync: true,
            log_end: self.replica.high_watermark(),
            lag_bytes: 0,
            lag_ms: 0,
        };
        PartitionState {
            partition: self.group.partition,
            leader: node.0,
            epoch: self.replica.epoch(),
            log_start: self.log_start,
            high_watermark: self.replica.high_watermark(),
            log_end: self.log_end,
            flushed: self.flushed_to,
            segments: self.segments.len() as u32,
            segment_bytes: self.segments.iter().map(|segment| segment.bytes).sum(),
            cached_bytes: cached,
            producers: self.producers.len() as u32,
            health: match (self.end_unknown, self.damaged.is_empty()) {
                (true, _) => PartitionHealth::LogEndUnknown,
                (false, false) => PartitionHealth::Damaged,
                (false, true) => PartitionHealth::Online,
            },
            replicas: [own].into_iter().collect(),
        }
    }
}
