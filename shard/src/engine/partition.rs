//! One partition on this shard: its offsets, its tail in the cache, its segments, its producers.

use std::collections::VecDeque;

use pyralog_core::{GroupId, NodeId, ShardId};
use pyralog_net::message::{PartitionHealth, PartitionState, ReplicaRole, ReplicaState, ReplicationState};
use pyralog_replication::SingleVoter;
use pyralog_replication::raft::Standing;

use crate::memory::ChunkSlice;

use super::api::PeerId;
use super::lone::Loose;
use super::producers::Producers;
use super::rejoin::Asking;
use super::replica::Replica;
use super::uncommitted::Uncommitted;

/// A batch in the tail cache.
#[derive(Clone, Debug)]
pub(super) struct TailBatch {
    pub(super) base_offset: i64,
    pub(super) next_offset: i64,
    pub(super) max_timestamp: i64,
    /// Its entry in the log of a group with several replicas; 0 in a group of one.
    pub(super) index: u64,
    pub(super) lsn: u64,
    /// Bytes of all batches of this partition before this one, since the engine started.
    pub(super) bytes_before: u64,
    pub(super) data: ChunkSlice,
}

/// A segment: batches `base..end` of one epoch, without gaps, `bytes` long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) base: i64,
    pub(super) end: i64,
    /// Epoch of all its batches: theirs in the file are under no checksum, as the leader writes them there. `None`: not
    /// known, of one that an older version has written.
    pub(super) epoch: Option<u32>,
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

/// What was cut off the end of a partition's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) batches: usize,
    pub(super) bytes: u64,
    /// Producers that are not known any more.
    pub(super) producers: usize,
}

/// Batches of other replicas' segments never were in the journal: only a checkpoint says that a replica holds them. Before
/// one that votes takes part with them its journal says so too, so that a checkpoint that rots does not take them unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The journal does not say it for sure.
    No,
    /// It is laid down.
    Laid,
    /// It is durable, or there is nothing to say.
    Durable,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) group: GroupId,
    pub(super) replica: Replica,
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
    /// Of several replicas: whether it knows everything that it has promised.
    pub(super) standing: Standing,
    /// It does not, and asks the others.
    pub(super) asking: Option<Box<Asking>>,
    /// What is counted of it in the shard's sums.
    pub(super) uncommitted: Uncommitted,
    /// On the list of partitions with batches to be flushed.
    pub(super) dirty: bool,
    /// In a cluster: found on the disk, and not in the catalogue yet. Whether it has other replicas is not known, so
    /// nobody is served.
    pub(super) unconfirmed: bool,
    /// Of several replicas: what commits of the journal below this one hold of the group is no part of its log.
    pub(super) entries_from_lsn: u64,
    /// Of several replicas: it takes part when this checkpoint is durable.
    pub(super) place_after_seq: u64,
    /// Of several replicas: whether its journal says what only a checkpoint knew.
    pub(super) told: Told,
    /// What does not follow on the rest, as damage is between, where nobody else has it.
    pub(super) loose: Loose,
    /// The only replica, which is to be a group: it takes no writes until it is one.
    pub(super) founding: bool,
    pub(super) retention_bytes: Option<u64>,
    pub(super) retention_ms: Option<u64>,
}

impl Partition {
    /// A partition that holds nothing, beginning at `log_start`.
    pub(super) fn empty(group: GroupId, epoch: u32, log_start: i64) -> Self {
        Self {
            group,
            replica: Replica::Single(SingleVoter::recovered(epoch, log_start)),
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
            standing: Standing::Member,
            asking: None,
            uncommitted: Uncommitted::default(),
            dirty: false,
            unconfirmed: false,
            entries_from_lsn: 0,
            place_after_seq: 0,
            told: Told::Durable,
            loose: Loose::new(),
            founding: false,
            retention_bytes: None,
            retention_ms: None,
        }
    }

    /// Adds a batch that was laid into the journal. Its place in the bytes of this partition is filled in.
    pub(super) fn push_tail(&mut self, batch: TailBatch) {
        let bytes_before = self.appended_bytes;
        self.appended_bytes += batch.data.len() as u64;
        self.log_end = batch.next_offset;
        self.tail.push_back(TailBatch { bytes_before, ..batch });
    }

    /// Takes the entries from `index` on back: a leader has others in their place. None of them was committed, so
    /// all of them are in the tail.
    pub(super) fn cut_entries(&mut self, index: u64) -> Cut {
        let keep = self.tail_at(index);
        let Some(first) = self.tail.get(keep) else { return Cut::default() };
        let (offset, bytes_before) = (first.base_offset, first.bytes_before);
        let batches = self.tail.len() - keep;
        let bytes = self.appended_bytes - bytes_before;
        self.tail.truncate(keep);
        self.appended_bytes = bytes_before;
        self.log_end = offset;
        Cut { batches, bytes, producers: self.producers.undo(offset) }
    }

    /// The batch of entry `index` was laid down again.
    pub(super) fn replace_entry(&mut self, index: u64, lsn: u64, data: ChunkSlice) {
        let at = self.tail_at(index);
        if let Some(batch) = self.tail.get_mut(at).filter(|batch| batch.index == index) {
            (batch.lsn, batch.data) = (lsn, data);
        }
    }

    /// Where in the tail the batch of entry `index` is, or the first one behind it.
    fn tail_at(&self, index: u64) -> usize {
        // Between two changes of the leader each entry is a batch, and the newest ones are asked for: a search among
        // 100,000 of them would be a dozen misses of the processor's cache for each batch that is sent or laid down.
        let Some(last) = self.tail.back().filter(|last| last.index >= index) else { return self.tail.len() };
        let guess = (self.tail.len() as u64).checked_sub(last.index - index + 1);
        let guess = guess.and_then(|at| usize::try_from(at).ok());
        match guess.filter(|at| self.tail.get(*at).is_some_and(|batch| batch.index == index)) {
            Some(at) => at,
            None => self.tail.partition_point(|batch| batch.index < index),
        }
    }

    /// The batch of entry `index`, if the cache holds it.
    pub(super) fn tail_entry(&self, index: u64) -> Option<&TailBatch> {
        let at = self.tail_at(index);
        self.tail.get(at).filter(|batch| batch.index == index)
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

    /// Whether all of `from..to` is known to be damaged.
    pub(super) fn is_known_damaged(&self, from: i64, to: i64) -> bool {
        self.damaged.iter().any(|(known_from, known_to)| *known_from <= from && to <= *known_to)
    }

    /// `from..to` is whole. Returns how many ranges are damaged no more.
    pub(super) fn forget_damage(&mut self, from: i64, to: i64) -> usize {
        let before = std::mem::take(&mut self.damaged);
        let mut gone = 0;
        for (known_from, known_to) in before {
            let rest = [(known_from, known_to.min(from)), (known_from.max(to), known_to)];
            let rest = rest.into_iter().filter(|(from, to)| from < to);
            let kept = self.damaged.len();
            self.damaged.extend(rest);
            gone += usize::from(self.damaged.len() == kept);
        }
        gone
    }

    /// Whether it is one of several replicas.
    pub(super) fn is_replicated(&self) -> bool {
        !matches!(self.replica, Replica::Single(_))
    }

    /// Batches that are in no segment.
    pub(super) fn unflushed(&self) -> impl Iterator<Item = &TailBatch> {
        let from = self.tail.partition_point(|batch| batch.base_offset < self.flushed_to);
        self.tail.range(from..)
    }

    /// Those of them that may be written to one: not beyond the commit at `cut`, and committed, as the others may
    /// still be cut off.
    pub(super) fn flushable(&self, cut: u64) -> impl Iterator<Item = &TailBatch> {
        let committed = match &self.replica {
            // Its commits are the journal's.
            Replica::Single(_) => i64::MAX,
            replica => replica.high_watermark(),
        };
        self.unflushed().take_while(move |batch| batch.lsn <= cut && batch.next_offset <= committed)
    }

    /// For status pages; this replica is on `shard` of `node`.
    pub(super) fn state(
        &self,
        node: NodeId,
        shard: ShardId,
        now_us: u64,
        linked: impl Fn(PeerId) -> bool,
    ) -> PartitionState {
        let cached = self.tail.front().map_or(0, |first| self.appended_bytes - first.bytes_before);
        let (leader, replicas) = match &self.replica {
            Replica::Raft(replica) if replica.raft.is_leader() => {
                let members = replica.members.iter();
                let states =
                    members.map(|member| self.member_state(replica, *member, now_us, linked(*member)));
                (node.0, states.collect())
            }
            Replica::Raft(replica) => (replica.raft.leader().unwrap_or(0), Default::default()),
            Replica::Unplaced(_) => (0, Default::default()),
            Replica::Single(_) => {
                let log_end = self.replica.high_watermark();
                let own = ReplicaState {
                    node: node.0,
                    shard: shard.0,
                    in_sync: true,
                    role: ReplicaRole::Voter,
                    state: ReplicationState::Leader,
                    log_end,
                    lag_bytes: 0,
                    lag_ms: 0,
                };
                (node.0, [own].into_iter().collect())
            }
        };
        PartitionState {
            partition: self.group.partition,
            leader,
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
                _ if self.standing != Standing::Member && !matches!(self.replica, Replica::Single(_)) => {
                    PartitionHealth::Rejoining
                }
                (true, _) => PartitionHealth::LogEndUnknown,
                (false, false) => PartitionHealth::Damaged,
                (false, true) => PartitionHealth::Online,
            },
            replicas,
        }
    }
}
