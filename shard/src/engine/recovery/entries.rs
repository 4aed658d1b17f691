//! What the replay makes of groups with several replicas: their entries, what they have promised, and what of it is lost.

use pyralog_core::batch::BatchView;
use pyralog_replication::raft::{EntryKind, Header, Position, Standing};

use crate::format::journal::{FrameHeader, FrameKind};

use super::super::partition::{Partition, TailBatch};
use super::super::replica::Replica;
use super::{Body, Replay, note_producer};

impl Replay<'_> {
    /// Notes one entry of a group with several replicas. One that is held already, of the same term, was laid down
    /// again; any other takes the place of what was there and behind.
    pub(super) fn entry(&mut self, lsn: u64, frame: &FrameHeader, body: Body<'_>) {
        let Some(index) = self.index_of(frame) else { return };
        let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        if !partition.is_in_group() {
            return self.keep_loose(index, lsn, frame, &body);
        }
        let Some(unplaced) = partition.replica.unplaced_mut() else { return };
        let log = &mut unplaced.log;
        if log.hard.term < frame.epoch {
            (log.hard.term, log.hard.vote) = (frame.epoch, 0);
        }
        // An older term than that of the start: an entry that was cut off before the start was written.
        if frame.index <= log.start.index || frame.epoch < log.start.term {
            return;
        }
        if partition.end_unknown {
            return self.keep_loose(index, lsn, frame, &body);
        }
        unplaced.newest = unplaced.newest.max((frame.epoch, frame.index));
        // Those before it may be laid down once more further on, and it with them.
        let before = unplaced.behind(frame.index - 1);
        if before.is_none_or(|before| before.offset != frame.base_offset) {
            return self.keep_loose(index, lsn, frame, &body);
        }
        let again = unplaced.behind(frame.index).is_some_and(|held| held.term == frame.epoch);
        if unplaced.is_alone(self.config.node.0) {
            // Nothing is missing up to here, and to whom it gave its voice is its own affair.
            self.suspects.remove(&frame.group);
        }
        if again {
            if let Some(known) = unplaced.lsns.get_mut((frame.index - unplaced.log.start.index - 1) as usize)
            {
                *known = lsn;
            }
        } else {
            unplaced.cut(frame.index);
            // It takes the place of what was there and behind, of a newer term too: a leader may have been elected by others who
            // did not have that.
            if unplaced.newest.1 >= frame.index {
                unplaced.newest = (frame.epoch, frame.index);
            }
            let kind = match frame.kind {
                FrameKind::Batch => EntryKind::Batch,
                FrameKind::Configuration => EntryKind::Configuration,
                _ => EntryKind::NewTerm,
            };
            if kind == EntryKind::Configuration {
                // The body was verified with its frame.
                let Ok(said) = frame.configuration(body.bytes) else { return };
                unplaced.log.configurations.push((frame.index, said));
            }
            unplaced.log.headers.push(Header {
                term: frame.epoch,
                kind,
                base_offset: frame.base_offset,
                next_offset: frame.end_offset(),
                bytes: if kind == EntryKind::Batch { frame.body_len } else { 0 },
            });
            unplaced.lsns.push_back(lsn);
            partition.cut_entries(frame.index);
        }
        if frame.kind != FrameKind::Batch {
            return;
        }
        if let Some(cached) = self.chunks.back_mut() {
            cached.partitions.push(index);
        }
        if again {
            partition.replace_entry(frame.index, lsn, body.data);
            return;
        }
        let Ok(batch) = BatchView::parse_exact(body.bytes) else { return };
        note_producer(partition, &batch, frame.base_offset, self.now.monotonic_us);
        let max_timestamp = batch.max_timestamp();
        partition.push_tail(TailBatch {
            base_offset: frame.base_offset,
            next_offset: frame.end_offset(),
            max_timestamp,
            index: frame.index,
            lsn,
            bytes_before: 0,
            data: body.data,
        });
    }

    /// Keeps a batch that does not follow on what is there, if nobody else has it.
    fn keep_loose(&mut self, index: u32, lsn: u64, frame: &FrameHeader, body: &Body<'_>) {
        let node = self.config.node.0;
        let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        if frame.kind != FrameKind::Batch || !partition.is_alone(node) {
            return;
        }
        let Ok(batch) = BatchView::parse_exact(body.bytes) else { return };
        let batch = TailBatch {
            base_offset: frame.base_offset,
            next_offset: frame.end_offset(),
            max_timestamp: batch.max_timestamp(),
            index: frame.index,
            lsn,
            bytes_before: 0,
            data: body.data.clone(),
        };
        partition.keep_loose(frame.epoch, batch);
        if let Some(cached) = self.chunks.back_mut() {
            cached.partitions.push(index);
        }
    }

    /// Who the replicas of a group were when this one began, or became a member again; unless it is known better.
    pub(super) fn base_configuration(&mut self, frame: &FrameHeader, body: Body<'_>) {
        let Some(partition) = self.partition_of(frame) else { return };
        if !partition.is_in_group() {
            return;
        }
        let Some(unplaced) = partition.replica.unplaced_mut() else { return };
        let Ok(said) = frame.configuration(body.bytes) else { return };
        let known = &unplaced.log.configuration;
        if known.is_unknown() || said.version() > known.version() {
            unplaced.log.configuration = said;
            let after = (frame.epoch, frame.base_offset.unsigned_abs());
            unplaced.log.made_after = after.max(unplaced.log.made_after);
        }
    }

    /// The only replica becomes a group, behind all that it has.
    pub(super) fn begin_group(&mut self, frame: &FrameHeader, body: Body<'_>) {
        self.suspects.remove(&frame.group);
        let Some(partition) = self.partition_of(frame) else { return };
        let Replica::Single(_) = partition.replica else { return };
        // The body was verified with its frame.
        let Ok(said) = frame.configuration(body.bytes) else { return };
        let (from, to) = (partition.log_end, frame.base_offset);
        partition.replica = Replica::begun(frame.epoch, to, said);
        if from < to {
            partition.note_damage(from, to);
            partition.log_end = to;
            let group = frame.group;
            let text = format!(
                "offsets {from}..{to} of partition {group} are missing from the journal: the range is refused"
            );
            self.gaps.push((group, text));
        }
    }

    /// Whether a frame is of a replica that was here before the one that there is, and has moved away. The checkpoint names the
    /// later one, and the replay begins before it.
    pub(super) fn is_of_a_former_replica(&self, frame: &FrameHeader, lsn: u64) -> bool {
        let index = self.by_group.get(&frame.group).copied();
        let partition = index.and_then(|index| self.partitions.get(index as usize)?.as_deref());
        // What a replica has promised before it was put aside for a catch-up the checkpoint says that puts it aside.
        partition.is_some_and(|partition| lsn < partition.entries_from_lsn)
    }

    /// Where the group of a frame is. One that neither the checkpoint names nor a frame opened has had its opening in damage, or it was
    /// dropped when the checkpoint was written, and the frame that drops it comes further on.
    pub(super) fn index_of(&mut self, frame: &FrameHeader) -> Option<u32> {
        let known = self.by_group.get(&frame.group).copied();
        if known.is_some() || !self.unknown_damage {
            return known;
        }
        let mut partition = Partition::empty(frame.group, frame.epoch, 0);
        // What one of several has promised may be in the damage too.
        partition.end_unknown = frame.kind != FrameKind::Batch || frame.index > 0;
        Some(self.insert(partition))
    }

    pub(super) fn partition_of(&mut self, frame: &FrameHeader) -> Option<&mut Partition> {
        let index = self.index_of(frame)?;
        self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut)
    }

    /// What a replica held in its journal means nothing any more, and damage in it neither. What it had in segments does:
    /// when the checkpoint that named those is lost, it lacks them.
    pub(super) fn rejoin(&mut self, lsn: u64, frame: &FrameHeader) {
        self.suspects.remove(&frame.group);
        let Some(partition) = self.partition_of(frame) else { return };
        partition.standing = Standing::Rejoining;
        partition.entries_from_lsn = partition.entries_from_lsn.max(lsn);
        forget_entries(partition);
        partition.end_unknown = !holds_its_segments(partition, frame);
    }

    /// From here on a replica knew everything that it had promised, with what was in its segments. Those may hold what never
    /// was in the journal.
    pub(super) fn joined(&mut self, frame: &FrameHeader) {
        let Some(partition) = self.partition_of(frame) else { return };
        partition.standing = Standing::Member;
        partition.end_unknown |= !holds_its_segments(partition, frame);
    }

    /// Notes what a replica has promised.
    pub(super) fn vote(&mut self, frame: &FrameHeader) {
        let Some(partition) = self.partition_of(frame) else { return };
        if !partition.is_in_group() {
            return;
        }
        let Some(unplaced) = partition.replica.unplaced_mut() else { return };
        let hard = &mut unplaced.log.hard;
        if (frame.epoch, frame.record_count) > (hard.term, hard.vote) {
            (hard.term, hard.vote) = (frame.epoch, frame.record_count);
        }
        hard.commit = hard.commit.max(frame.index);
    }
}

/// Of one of several replicas: forgets what is not in segments.
pub(super) fn forget_entries(partition: &mut Partition) {
    let Replica::Unplaced(unplaced) = &mut partition.replica else { return };
    unplaced.forget();
    let start = unplaced.log.start;
    partition.cut_entries(start.index + 1);
    partition.log_end = partition.log_end.min(start.offset.max(partition.flushed_to));
}

/// Whether a replica has the last entry that its segments held when this frame was laid down. With it, it has all before it:
/// logs that have an entry of one index and term are the same up to there.
fn holds_its_segments(partition: &mut Partition, frame: &FrameHeader) -> bool {
    let last = Position { index: frame.index, term: frame.epoch, offset: frame.base_offset };
    if !partition.is_in_group() {
        return false;
    }
    let Some(unplaced) = partition.replica.unplaced_mut() else { return true };
    last.index <= unplaced.log.start.index || unplaced.behind(last.index) == Some(last)
}
