//! The only replica of a partition that becomes a group, so that others can join it or take its place.
//!
//! The group's log begins behind all that the partition has: index 1, the epoch of the last life as its term, this replica as the only
//! voter. What is there already stays where it is, in segments or on its way to them, and has no index: to the group it is what
//! a log that was compacted does not hold any more. A frame in the journal says so, and a checkpoint that knows
//! the place before the segments reach it says nothing of the group: the replay begins before that frame then.

use std::sync::Arc;

use pyralog_core::GroupId;
use pyralog_replication::metadata::{Catalog, Replica as Place};
use pyralog_replication::raft::{Configuration, HardState, Position, RecoveredLog, Standing};

use crate::format::journal::{FIRST_INDEX, FrameHeader};

use super::pending::Pending;
use super::replica::{Replica, Unplaced};
use super::replicate::SMALL_FRAMES_BYTES;
use super::{Action, Engine, LogLevel};

impl Engine {
    /// The replica of a group, as the catalogue has it, that has been the only one or nothing until now. False: it may be placed.
    pub(super) fn was_alone(
        &mut self,
        catalog: &Arc<Catalog>,
        group: GroupId,
        actions: &mut Vec<Action>,
    ) -> bool {
        let node = self.config.node.0;
        let Some(index) = self.find(group) else { return false };
        let Some(partition) = self.at_mut(index) else { return false };
        let Replica::Single(_) = partition.replica else { return false };
        if catalog.replicas(group).all(|replica| replica.node == node) {
            // What is lost can't be given to others.
            if !partition.end_unknown {
                partition.founding = true;
                self.found(index, catalog);
            }
            return true;
        }
        if partition.log_end > 0 {
            let text = format!(
                "partition {group}: the disk has it as the only replica, the metadata as one of several. It takes no part; \
                 move it off this node and back"
            );
            actions.push(Action::Log { level: LogLevel::Error, text });
            return true;
        }
        false
    }

    /// Begins the group when all that the partition has is durable.
    fn found(&mut self, index: u32, catalog: &Arc<Catalog>) {
        let Some(partition) = self.at(index) else { return };
        let is_durable = partition.replica.high_watermark() >= partition.log_end;
        if !is_durable && self.journal.attach(Pending::Founding { partition: index }).is_ok() {
            return;
        }
        let Some(group) = self.at(index).map(|partition| partition.group) else { return };
        let (configuration, _) = self.beginning(catalog, group);
        match self.begin_group(index, configuration) {
            true => drop(self.replication.place_due.insert(group)),
            false => self.postpone_catalog(Arc::clone(catalog)),
        }
    }

    /// What was laid down before no more was taken is durable.
    pub(super) fn founding_reached(&mut self, index: u32) {
        if let Some(catalog) = self.catalog.clone()
            && self.at(index).is_some_and(|partition| partition.founding)
        {
            self.found(index, &catalog);
        }
    }

    /// The metadata of a node that was alone until it was restarted with others becomes a group before anything else. False: it can't
    /// take part.
    pub(super) fn found_metadata(&mut self, actions: &mut Vec<Action>) -> bool {
        let Some(index) = self.find(GroupId::METADATA) else { return false };
        let own = Place { node: self.config.node.0, shard: 0 };
        let Some(partition) = self.at_mut(index) else { return false };
        if !matches!(partition.replica, Replica::Single(_)) || partition.log_end == 0 {
            return true;
        }
        if partition.end_unknown {
            let text = "the metadata is damaged where it ends, and this node was alone with it, as far as its disk says: it takes no \
                        part. If others have the metadata, move this node's data folder away and start it empty; if not, restore \
                        the folder from a backup";
            actions.push(Action::Log { level: LogLevel::Error, text: text.into() });
            return false;
        }
        partition.standing = Standing::Member;
        self.begin_group(index, Configuration::of([own]))
    }

    /// False: there is no room in the journal now.
    fn begin_group(&mut self, index: u32, configuration: Configuration) -> bool {
        if !self.journal.has_room(&self.pool, SMALL_FRAMES_BYTES) {
            return false;
        }
        let Some(partition) = self.at(index) else { return true };
        let (group, epoch, log_end) = (partition.group, partition.replica.epoch(), partition.log_end);
        let body = configuration.encode();
        let frame = FrameHeader::of_beginning(group, log_end, epoch, &body);
        if let Err(full) = self.journal.lay(&self.pool, &frame, &[], &body) {
            self.stall(full);
            return false;
        }
        let Some(partition) = self.at_mut(index) else { return true };
        partition.founding = false;
        partition.replica = Replica::begun(epoch, log_end, configuration);
        true
    }
}

impl Replica {
    /// A group that begins behind what was there before it.
    pub(super) fn begun(epoch: u32, log_end: i64, configuration: Configuration) -> Self {
        let start = Position { index: FIRST_INDEX, term: epoch, offset: log_end };
        let hard = HardState { term: epoch, vote: 0, commit: FIRST_INDEX };
        let log = RecoveredLog { hard, start, configuration, ..RecoveredLog::default() };
        Self::Unplaced(Box::new(Unplaced { log, newest: (epoch, FIRST_INDEX), ..Unplaced::default() }))
    }
}
