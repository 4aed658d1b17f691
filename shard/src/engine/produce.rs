//! The way of a produce: check, dedupe, give offsets, lay into the journal; and the answer when its group
//! commit is done.

use pyralog_core::batch::BatchView;
use pyralog_core::limits::{
    MAX_BATCH_BYTES, MAX_PRODUCERS_PER_SHARD, MAX_SEGMENTS_PER_SHARD, UNWRITTEN_BYTES_PER_SHARD,
};
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{Acks, Durability, ProduceReply, ProduceRequest, Response};
use pyralog_replication::Group;

use crate::format::journal::{FrameHeader, FrameKind};

use super::journal::{Full, Laid};
use super::partition::{Partition, TailBatch};
use super::pending::Pending;
use super::producers::Verdict;
use super::replica::Replica;
use super::{Action, ConnId, Engine, FsyncPolicy, Mode, reply};

/// Bytes at the front of a batch that the leader writes: base offset, length, leader epoch.
const HEAD_BYTES: usize = 16;

/// Why a batch is not appended.
pub(super) type Refusal = (ErrorCode, String);

impl Engine {
    pub(super) fn produce(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &ProduceRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        if let Err((code, detail)) = self.try_produce(conn, correlation_id, request, actions) {
            self.refuse(conn, correlation_id, code, detail, actions);
        }
    }

    fn try_produce(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &ProduceRequest<'_>,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        if let Mode::Fenced(reason) = &self.mode {
            return Err((ErrorCode::Fenced, reason.clone()));
        }
        let index = self.writable_partition(request.group)?;
        let by_quorum = request.acks == Acks::Quorum;
        if by_quorum {
            self.check_in_sync(index)?;
        }
        if !self.settle(index, actions) {
            return Err(self.no_room());
        }
        let batch = check_batch(request.batch)?;
        let timeout_us = match request.timeout_ms {
            0 => self.config.request_timeout_us,
            ms => u64::from(ms) * 1_000,
        };
        let replicated = self.at(index).is_some_and(|partition| partition.replica.raft().is_some());
        let timeout_us = match by_quorum && replicated {
            true => timeout_us.min(self.config.ack_timeout_us),
            false => timeout_us,
        };
        let deadline_us = self.now.monotonic_us.saturating_add(timeout_us);
        if let Some(original) = self.dedupe(index, &batch)? {
            let next_offset = original + i64::from(batch.record_count());
            let pending = Pending::Produce {
                conn,
                correlation_id,
                partition: index,
                base_offset: original,
                next_offset,
                acks: request.acks,
                duplicate: true,
                deadline_us,
            };
            self.counters.duplicates += 1;
            self.answer_duplicate(pending, next_offset, actions);
            return Ok(());
        }
        self.check_uncommitted(index, batch.bytes().len())?;
        let (base_offset, next_offset) = self.append(index, &batch)?;
        let answered = request.acks == Acks::None;
        let pending = if answered {
            Pending::Answered { partition: index, next_offset }
        } else {
            Pending::Produce {
                conn,
                correlation_id,
                partition: index,
                base_offset,
                next_offset,
                acks: request.acks,
                duplicate: false,
                deadline_us,
            }
        };
        self.wait_for(pending);
        if answered {
            let high_watermark = self.at(index).map_or(0, |partition| partition.replica.high_watermark());
            let done = ProduceReply {
                base_offset,
                high_watermark,
                durability: Durability::Memory,
                duplicate: false,
            };
            reply(conn, correlation_id, Response::Produce(done), actions);
        }
        Ok(())
    }

    /// The partition, if it is here and takes writes from clients.
    fn writable_partition(&self, group: GroupId) -> Result<u32, Refusal> {
        let found = self.find_served(group).filter(|_| group != GroupId::METADATA);
        let Some((index, partition)) = found.and_then(|index| Some((index, self.at(index)?))) else {
            return Err(self.not_here(group));
        };
        // First: of several replicas another one may lead, whatever this one has lost.
        check_leads(partition)?;
        if partition.end_unknown {
            return Err((ErrorCode::LogEndUnknown, format!("partition {group}")));
        }
        // One run may add a segment to every partition before they are counted again.
        if self.flush.segments + self.by_group.len() > MAX_SEGMENTS_PER_SHARD {
            let text = format!("shard {} holds {} segments", self.config.shard, self.flush.segments);
            return Err((ErrorCode::LimitReached, text));
        }
        if self.stalled || self.journal.unwritten_bytes >= UNWRITTEN_BYTES_PER_SHARD {
            return Err(self.no_room());
        }
        Ok(index)
    }

    /// Whether so many replicas are in sync as the topic asks for. Asked before the batch is appended, as it can't be taken
    /// back.
    fn check_in_sync(&self, index: u32) -> Result<(), Refusal> {
        let Some(partition) = self.at(index) else { return Ok(()) };
        let Some(replica) = partition.replica.raft().filter(|replica| replica.min_insync_replicas > 1) else {
            return Ok(());
        };
        let now_us = self.now.monotonic_us;
        let wanted = replica.min_insync_replicas;
        let there = replica.in_sync(now_us, |peer| self.is_linked(peer));
        if there >= wanted {
            return Ok(());
        }
        let text =
            format!("partition {} has {there} replicas in sync, {wanted} are asked for", partition.group);
        Err((ErrorCode::NotEnoughReplicas, text))
    }

    /// Why a group is not served here.
    pub(super) fn not_here(&self, group: GroupId) -> Refusal {
        match self.catalog.as_ref().and_then(|catalog| self.wanted_here(catalog, group)) {
            Some(shard) if shard != self.config.shard => (
                ErrorCode::NotLeader,
                format!("partition {group} is on shard {shard}, this is {}", self.config.shard),
            ),
            // It has moved to other nodes, or never was here.
            _ if self.is_known(group) => {
                (ErrorCode::NotLeader, format!("partition {group} is not on node {}", self.config.node))
            }
            _ => (ErrorCode::UnknownTopicOrPartition, format!("partition {group}")),
        }
    }

    /// Whether the catalogue has a partition.
    fn is_known(&self, group: GroupId) -> bool {
        self.catalog.as_ref().is_some_and(|catalog| catalog.replicas(group).next().is_some())
    }

    pub(super) fn no_room(&self) -> Refusal {
        if self.flush.disk_full() {
            (ErrorCode::DiskFull, format!("shard {}", self.config.shard))
        } else {
            (ErrorCode::Overloaded, format!("shard {} waits for its disk", self.config.shard))
        }
    }

    /// The original base offset when the batch is a duplicate.
    fn dedupe(&mut self, index: u32, batch: &BatchView<'_>) -> Result<Option<i64>, Refusal> {
        let producer_id = batch.producer_id();
        if producer_id < 0 {
            return Ok(None);
        }
        let now_us = self.now.monotonic_us;
        let full = self.producer_count >= MAX_PRODUCERS_PER_SHARD;
        let Some(partition) = self.at_mut(index) else { return Ok(None) };
        let (first, last) = (batch.base_sequence(), batch.last_sequence());
        match partition.producers.judge(producer_id, batch.producer_epoch(), first, last) {
            Verdict::Duplicate(offset) => return Ok(Some(offset)),
            Verdict::Refuse(code) => {
                let text =
                    format!("producer {producer_id} sent sequence {first} to partition {}", partition.group);
                return Err((code, text));
            }
            Verdict::Append => {}
        }
        if !partition.producers.has_room(producer_id) || (full && first == 0) {
            let forgotten = partition.producers.forget_idle(now_us);
            let room = partition.producers.has_room(producer_id);
            let group = partition.group;
            self.producer_count -= forgotten;
            if !room || self.producer_count >= MAX_PRODUCERS_PER_SHARD {
                return Err((
                    ErrorCode::Overloaded,
                    format!("partition {group} remembers as many producers as it may"),
                ));
            }
        }
        Ok(None)
    }

    /// Gives the batch its offsets and lays it into the journal. The caller attaches who waits for it.
    pub(super) fn append(&mut self, index: u32, batch: &BatchView<'_>) -> Result<(i64, i64), Refusal> {
        if self.cached_batches >= self.config.cache_batches() {
            self.stall(Full::Memory);
            return Err(self.no_room());
        }
        let now_us = self.now.monotonic_us;
        let bytes = batch.bytes();
        let (mut head, rest) = match bytes.split_first_chunk::<HEAD_BYTES>() {
            Some((head, rest)) => (*head, rest),
            None => return Err((ErrorCode::InvalidBatch, "shorter than its header".into())),
        };
        // A group with several replicas takes an entry before it is laid down: that must not fail then.
        let replicated = self.at(index).is_some_and(|partition| partition.replica.raft().is_some());
        let has_room = !replicated || self.journal.has_room(&self.pool, bytes.len());
        let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return Err((ErrorCode::Internal, "a partition went away while it was written".into()));
        };
        let base_offset = partition.log_end;
        let next_offset = base_offset
            .checked_add(i64::from(batch.record_count()))
            .ok_or((ErrorCode::LimitReached, "the partition has used up its offsets".to_owned()))?;
        let epoch = partition.replica.epoch();
        let entry = match partition.replica.raft_mut() {
            None => 0,
            Some(_) if !has_room => {
                self.stall(Full::Memory);
                return Err(self.no_room());
            }
            Some(replica) => replica.propose(now_us, batch.record_count(), bytes.len() as u32)?,
        };
        let frame = FrameHeader {
            kind: FrameKind::Batch,
            body_len: bytes.len() as u32,
            group: partition.group,
            base_offset,
            epoch,
            record_count: batch.record_count(),
            index: entry,
            body_crc: batch.crc(),
        };
        head[..8].copy_from_slice(&base_offset.to_be_bytes());
        head[12..].copy_from_slice(&epoch.to_be_bytes());
        let laid = match self.journal.lay(&self.pool, &frame, &head, rest) {
            Ok(laid) => laid,
            Err(full) => {
                if entry > 0 {
                    // The group holds an entry now that has no batch.
                    self.must_fence = Some(format!("the journal had no room for entry {entry}: {full:?}"));
                }
                self.stall(full);
                return Err(self.no_room());
            }
        };
        self.laid(index, &frame, batch, laid);
        Ok((base_offset, next_offset))
    }

    /// A batch is in the journal's memory: the partition's log, its producers and the flusher take notice.
    pub(super) fn laid(&mut self, index: u32, frame: &FrameHeader, batch: &BatchView<'_>, laid: Laid) {
        let now_us = self.now.monotonic_us;
        let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        self.journal.note_cached(index);
        self.cached_batches += 1;
        let (base_offset, next_offset) = (frame.base_offset, frame.end_offset());
        partition.push_tail(TailBatch {
            base_offset,
            next_offset,
            max_timestamp: batch.max_timestamp(),
            index: frame.index,
            lsn: laid.lsn,
            bytes_before: 0,
            data: laid.data,
        });
        match &mut partition.replica {
            Replica::Single(single) => single.appended(next_offset),
            Replica::Raft(replica) => {
                replica.note_laid(frame.index, laid.lsn);
                let bytes = u64::from(frame.body_len);
                self.replication.uncommitted.add(&mut partition.uncommitted, bytes);
            }
            Replica::Unplaced(_) => {}
        }
        let committed = partition.replica.high_watermark();
        let new = partition.producers.note_batch(batch, base_offset, now_us, committed);
        self.producer_count += usize::from(new);
        self.flush.note_unflushed(now_us, partition, index, u64::from(frame.body_len));
        self.counters.batches += 1;
        self.counters.records += u64::from(frame.record_count);
        self.counters.bytes += u64::from(frame.body_len);
    }

    /// Has a produce wait for what its acks ask: the leader's own commit, or in a group with several replicas the
    /// high watermark.
    fn wait_for(&mut self, pending: Pending) {
        let (Pending::Produce { partition: index, .. } | Pending::Answered { partition: index, .. }) =
            pending
        else {
            return self.attach(pending);
        };
        let replicated = self.at(index).is_some_and(|partition| partition.replica.raft().is_some());
        #[cfg(feature = "planted-bugs")]
        let replicated = replicated && !self.has_bug(super::planted::PlantedBug::AckBeforeQuorum);
        match pending {
            Pending::Produce { acks, .. } if replicated && acks != Acks::Leader => {
                self.wait_for_quorum(index, pending);
            }
            Pending::Answered { .. } if replicated => self.queue_group(index),
            _ => {
                self.attach(pending);
                self.queue_group(index);
            }
        }
    }

    /// Something just laid down waits for its commit.
    pub(super) fn attach(&mut self, pending: Pending) {
        if self.journal.attach(pending).is_err() {
            unreachable!("a frame was just laid, so a commit is unfinished");
        }
    }

    /// The journal can take no more for now: have a flush make room, and stop reading produces.
    pub(super) fn stall(&mut self, full: Full) {
        self.stalled = true;
        self.flush.wanted(full);
    }

    /// A duplicate of a batch that is still on its way waits with it.
    fn answer_duplicate(&mut self, pending: Pending, next_offset: i64, actions: &mut Vec<Action>) {
        let Pending::Produce { partition: index, acks, .. } = pending else { return };
        let Some(partition) = self.at(index) else { return };
        let by_quorum = partition.replica.raft().is_some() && acks != Acks::Leader;
        // What is committed may have less copies than a quorum above the majority asks for.
        let done_below = match partition.replica.raft() {
            Some(replica) if by_quorum => replica.acknowledged,
            _ => partition.replica.high_watermark(),
        };
        let committed = done_below >= next_offset;
        if !committed && by_quorum {
            return self.wait_for_quorum(index, pending);
        }
        let waiting = if committed { Err(pending) } else { self.journal.attach(pending) };
        if let Err(pending) = waiting {
            self.answer(pending, actions);
        }
    }

    /// Answers everybody who waited for commits that are done now, in the order of the commits.
    pub(super) fn complete_commits(&mut self, actions: &mut Vec<Action>) {
        while let Some(mut commit) = self.journal.pop_completed(self.writes_are_durable()) {
            if self.writes_are_durable() {
                self.journal.durable_lsn = commit.lsn;
            } else if self.interval_sync.due_us.is_none()
                && let FsyncPolicy::Interval(every_us) = self.config.fsync
            {
                self.interval_sync.due_us = Some(self.now.monotonic_us + every_us);
            }
            self.counters.commits += 1;
            self.counters.journal_bytes += commit.bytes() as u64;
            let pending = std::mem::take(&mut commit.pending);
            for pending in &pending {
                self.commit_done(*pending, actions);
            }
            self.journal.give_back(pending);
        }
        if self.journal.awaits_flush(self.writes_are_durable()) && self.interval_sync.outstanding.is_empty() {
            self.sync_journal(actions);
        }
    }

    fn commit_done(&mut self, pending: Pending, actions: &mut Vec<Action>) {
        match pending {
            Pending::Produce { partition, next_offset, .. } => {
                self.persisted(partition, next_offset, actions);
                self.answer(pending, actions);
            }
            Pending::Answered { partition, next_offset } => self.persisted(partition, next_offset, actions),
            Pending::Metadata { next_offset } => {
                if let Some(index) = self.find(GroupId::METADATA) {
                    self.persisted(index, next_offset, actions);
                }
                self.metadata_committed(next_offset, actions);
            }
            Pending::Group { partition, number } => self.group_persisted(partition, number, actions),
            Pending::Catalog { version } => actions.push(Action::CatalogApplied { version }),
            Pending::Dropped { group, partition } => {
                self.free_indexes.push(partition);
                self.delete_files_of(group, actions);
            }
            Pending::Standing { partition, standing } => self.standing_reached(partition, standing, actions),
            Pending::Founding { partition } => self.founding_reached(partition),
            Pending::NewLife => self.life_began(actions),
        }
    }

    /// This shard's journal holds the partition's log below `next_offset`: move the high watermark.
    pub(super) fn persisted(&mut self, index: u32, next_offset: i64, actions: &mut Vec<Action>) {
        let Some(partition) = self.at_mut(index) else { return };
        let before = partition.replica.high_watermark();
        partition.replica.persisted(next_offset);
        if partition.replica.high_watermark() > before && !partition.waiting.is_empty() {
            self.wake_fetches(index, actions);
        }
    }

    pub(super) fn answer(&mut self, pending: Pending, actions: &mut Vec<Action>) {
        let Pending::Produce { conn, correlation_id, partition, base_offset, acks, duplicate, .. } = pending
        else {
            return;
        };
        let Some(partition) = self.at(partition) else {
            // Deleted or moved away while the batch was on its way: others may have it.
            let detail = "the partition has gone from this node".into();
            return self.refuse(conn, correlation_id, ErrorCode::LeaderChanged, detail, actions);
        };
        let durability = match self.config.fsync {
            FsyncPolicy::EveryWrite if acks == Acks::Leader => Durability::LeaderDurable,
            FsyncPolicy::EveryWrite => Durability::QuorumDurable,
            FsyncPolicy::Interval(_) | FsyncPolicy::Never => Durability::Written,
        };
        let high_watermark = partition.replica.high_watermark();
        let done = ProduceReply { base_offset, high_watermark, durability, duplicate };
        reply(conn, correlation_id, Response::Produce(done), actions);
    }

    /// Answers produces whose time is over. Their appends go on; the outcome is unknown to the client.
    pub(super) fn expire_produces(&mut self, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        let mut expired = Vec::new();
        for pending in self.journal.waiting() {
            if let Pending::Produce { conn, correlation_id, partition, next_offset, deadline_us, .. } =
                *pending
                && deadline_us <= now_us
            {
                expired.push((conn, correlation_id));
                *pending = Pending::Answered { partition, next_offset };
            }
        }
        for (conn, correlation_id) in expired {
            let detail = format!("shard {} waits for its disk", self.config.shard);
            self.refuse(conn, correlation_id, ErrorCode::RequestTimedOut, detail, actions);
        }
        self.expire_replicated(actions);
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn planted_ack_before_flush(&mut self, actions: &mut Vec<Action>) {
        if self.config.planted != Some(super::planted::PlantedBug::AckBeforeFlush)
            || self.mode == Mode::Starting
        {
            return;
        }
        let mut early = Vec::new();
        self.journal.seal_for_fence();
        for commit in self.journal.unfinished() {
            for pending in &mut commit.pending {
                if let Pending::Produce { partition, next_offset, .. } = *pending {
                    early.push(*pending);
                    *pending = Pending::Answered { partition, next_offset };
                }
            }
        }
        for pending in early {
            self.answer(pending, actions);
        }
    }
}

/// Whether this replica appends what clients send.
pub(super) fn check_leads(partition: &Partition) -> Result<(), Refusal> {
    let leader = match &partition.replica {
        Replica::Single(_) if partition.founding => None,
        Replica::Single(_) => return Ok(()),
        Replica::Raft(replica) if replica.raft.is_leader() => return Ok(()),
        Replica::Raft(replica) => replica.raft.leader(),
        Replica::Unplaced(_) => None,
    };
    let group = partition.group;
    let text = match leader {
        Some(node) => format!("partition {group} is led by node {node}"),
        None => format!("partition {group} has no leader now"),
    };
    Err((ErrorCode::NotLeader, text))
}

/// One whole, undamaged batch with its sequences in order.
fn check_batch(bytes: &[u8]) -> Result<BatchView<'_>, Refusal> {
    if bytes.len() > MAX_BATCH_BYTES {
        return Err((
            ErrorCode::TooLarge,
            format!("a batch of {} bytes; {MAX_BATCH_BYTES} is the bound", bytes.len()),
        ));
    }
    let batch = BatchView::parse_exact(bytes).map_err(|error| (error.code(), error.to_string()))?;
    if batch.is_control() || batch.is_transactional() {
        return Err((
            ErrorCode::InvalidBatch,
            "control and transactional batches are not taken from producers".into(),
        ));
    }
    if !batch.verify_crc() {
        return Err((ErrorCode::CorruptBatch, String::new()));
    }
    Ok(batch)
}
