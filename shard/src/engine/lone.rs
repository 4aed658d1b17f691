//! The only voter of a group whose journal is damaged. One of several forgets what may be wrong and gets it from the others; here
//! nobody has it. What is intact is kept, behind the damage too, and when the catalogue says that the group has no others, and is not on its
//! way to any, the partition is what it would be without a group: it serves what is there, says what is missing, and takes no writes.

use std::collections::BTreeMap;

use pyralog_core::GroupId;
use pyralog_replication::SingleVoter;
use pyralog_replication::metadata::Catalog;
use pyralog_replication::raft::{Position, RecoveredLog, Standing};

use super::partition::{Partition, TailBatch};
use super::replica::{Replica, Unplaced};
use super::{Action, Engine, LogLevel};

/// Batches behind damage by their offsets, with their terms.
pub(super) type Loose = BTreeMap<i64, (u32, TailBatch)>;

impl Unplaced {
    /// Whether `node` is the only voter, as far as the log says that is left.
    pub(super) fn is_alone(&self, node: u32) -> bool {
        let said = self.newest_configuration();
        let only = matches!(said.voters(), [voter] if voter.node == node);
        only && !said.is_joint()
    }
}

impl Partition {
    /// Whether nobody else has what `node` has lost of this partition, as far as its disk says.
    pub(super) fn is_alone(&self, node: u32) -> bool {
        match &self.replica {
            Replica::Single(_) => true,
            Replica::Unplaced(unplaced) => unplaced.is_alone(node),
            Replica::Raft(_) => false,
        }
    }

    /// Whether frames of a group count. To the only replica of a partition they do not: the one that made it a group is lost.
    pub(super) fn is_in_group(&mut self) -> bool {
        let is_single = matches!(self.replica, Replica::Single(_)) && self.log_end > 0;
        self.end_unknown |= is_single;
        !is_single
    }

    /// Keeps a batch that does not follow on what is there. Of two at one offset the one of the later term is it.
    pub(super) fn keep_loose(&mut self, term: u32, batch: TailBatch) {
        if self.loose.get(&batch.base_offset).is_none_or(|(known, _)| *known <= term) {
            self.loose.insert(batch.base_offset, (term, batch));
        }
    }

    /// The oldest commit of the journal that holds a batch which is in no segment and may be the only copy.
    pub(super) fn oldest_loose_lsn(&self) -> Option<u64> {
        self.loose.values().map(|(_, batch)| batch.lsn).min()
    }

    /// It is what its disk had of a group that others have as well: everything but the segments is forgotten.
    fn forget_the_rest(&mut self) {
        let start = match &self.replica {
            Replica::Unplaced(unplaced) if unplaced.log.start.offset <= self.flushed_to => unplaced.log.start,
            _ => Position { offset: self.flushed_to, ..Position::default() },
        };
        let log = RecoveredLog { start, ..RecoveredLog::default() };
        self.replica = Replica::Unplaced(Box::new(Unplaced { log, ..Unplaced::default() }));
        self.standing = Standing::Rejoining;
        self.log_end = self.flushed_to;
        self.loose.clear();
    }

    /// It is the only replica for good. Returns how many batches were loose, and the ranges that are missing.
    fn close(&mut self) -> (usize, Vec<(i64, i64)>) {
        let (mut count, mut missing) = (0, Vec::new());
        self.tail.iter_mut().for_each(|batch| batch.index = 0);
        for (base, (_, batch)) in std::mem::take(&mut self.loose) {
            if batch.next_offset <= self.log_end {
                continue;
            }
            if base > self.log_end {
                missing.push((self.log_end, base));
                self.note_damage(self.log_end, base);
            }
            count += 1;
            self.push_tail(TailBatch { index: 0, ..batch });
        }
        self.replica = Replica::Single(SingleVoter::recovered(self.replica.epoch(), self.log_end));
        (count, missing)
    }
}

impl Engine {
    /// A replica whose journal was damaged when nobody else had what it had. False: it may be placed.
    pub(super) fn was_damaged_alone(
        &mut self,
        catalog: &Catalog,
        group: GroupId,
        actions: &mut Vec<Action>,
    ) -> bool {
        let node = self.config.node.0;
        let Some(index) = self.find(group) else { return false };
        let Some(partition) = self.at_mut(index) else { return false };
        let waits = partition.standing == Standing::Member && partition.end_unknown;
        if !waits || !partition.is_alone(node) {
            return false;
        }
        let known = match &partition.replica {
            Replica::Unplaced(unplaced) => unplaced.newest_configuration().version(),
            _ => 0,
        };
        let (settled, _) = catalog.begins_with(group);
        if settled.version() < known {
            // The catalogue knows less than the disk.
            return true;
        }
        let is_sole = catalog.replicas(group).all(|replica| replica.node == node);
        if !is_sole {
            let unflushed: u64 = partition.unflushed().map(|batch| batch.data.len() as u64).sum();
            let cached = partition.tail.len();
            partition.tail.clear();
            partition.forget_the_rest();
            self.cached_batches -= cached;
            self.flush.note_cut(unflushed);
            return false;
        }
        let is_closed = matches!(partition.replica, Replica::Single(_)) && partition.loose.is_empty();
        // On its way, what is behind the damage may have been replaced by others.
        if !is_closed && !catalog.moves.contains_key(&group) {
            self.close(index, actions);
        }
        true
    }

    fn close(&mut self, index: u32, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        let group = partition.group;
        let (count, missing) = partition.close();
        let added: u64 = partition.tail.iter().rev().take(count).map(|batch| batch.data.len() as u64).sum();
        self.flush.note_unflushed(now_us, partition, index, added);
        let log_end = partition.log_end;
        self.cached_batches += count;
        self.flush.remember_damage();
        for (from, to) in missing {
            let text = format!(
                "offsets {from}..{to} of partition {group} are missing from the journal, and nobody else has them: the range is refused"
            );
            actions.push(Action::Log { level: LogLevel::Error, text });
        }
        let text = format!(
            "partition {group}: damage hides where its log ends; it can be read up to {log_end} and takes no writes"
        );
        actions.push(Action::Log { level: LogLevel::Error, text });
    }
}
