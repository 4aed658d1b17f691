//! The partitions of a node go to another number of shards, while it is stopped: from the folders of its shards complete new ones are made,
//! and nothing of the old ones is changed but what any recovery changes.
//!
//! Each replica has a *slot*, and [`on_shard`] says which shard that is on. Segments
//! are not copied: their files get a second name. What a checkpoint says of a group goes into that of its new shard. What a shard's
//! journal holds behind the segments is written to segments as far as it is committed; the rest, entries of groups with several replicas
//! that may still be cut off, is laid down in the new shard's journal.

mod laying;

use std::collections::BTreeSet;

use pyralog_core::features::LEVEL_OF_MOVES;
use pyralog_core::{GroupId, ShardId};
use pyralog_replication::metadata::{Catalog, on_shard};
use pyralog_replication::raft::EntryKind;

use crate::format::batch::BatchHead;
use crate::format::checkpoint::{Checkpoint, GroupCheckpoint};
use crate::format::journal::{FrameHeader, FrameKind};

use super::flush::group_checkpoint;
use super::partition::Partition;
use super::recovery::write_out;
use super::replica::{Replica, Unplaced};
use super::{Engine, EngineConfig, FileId, IoError, LogLevel, Now, RecoveryDisk, RecoveryError, recover};
use laying::Laying;

/// The folders of all shards, as they are and as they are to be.
pub trait RehomingDisks {
    /// The files of a shard as it is.
    fn before(&mut self, shard: ShardId) -> &mut dyn RecoveryDisk;
    /// Nothing more is read of it.
    fn done_with(&mut self, shard: ShardId);
    /// The files of a shard as it is to be.
    fn after(&mut self, shard: ShardId) -> &mut dyn RecoveryDisk;
    /// Gives a file, which is durable, a second name; its entry in the folder need not be.
    fn link(&mut self, file: FileId, from: ShardId, to: ShardId) -> Result<(), IoError>;
    /// A line for the operator.
    fn tell(&mut self, level: LogLevel, text: String);
}

/// What was re-homed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rehomed {
    /// Partitions.
    pub groups: usize,
    /// Files that have a second name.
    pub files: usize,
    /// Entries that are in no segment yet.
    pub entries: u64,
}

/// Makes the folders of as many shards as `to` has of those of as many as `from` has; both say their journal ids. `config` is that of a shard of
/// the node as it is to run. What is made is durable but for the entries of folders.
///
/// # Errors
/// What is not as it has to be, and what to do. What was made until then means nothing.
pub fn rehome(
    config: &EngineConfig,
    from: &[u64],
    to: &[u64],
    disks: &mut dyn RehomingDisks,
    now: Now,
) -> Result<Rehomed, RecoveryError> {
    let mut rehoming = Rehoming::begin(config, from, to, disks, now)?;
    for (shard, journal_id) in (0..).map(ShardId).zip(from) {
        rehoming.take(shard, *journal_id)?;
    }
    rehoming.end()
}

struct Rehoming<'a> {
    config: &'a EngineConfig,
    from: &'a [u64],
    to: &'a [u64],
    disks: &'a mut dyn RehomingDisks,
    now: Now,
    /// What the shards have become so far.
    homes: Vec<Home>,
    catalog: Catalog,
    founders: Vec<(u32, u64)>,
    incarnation: u64,
    dropped_at: u64,
    opens_are_suspect: bool,
    done: Rehomed,
}

/// A shard that is made.
struct Home {
    laying: Laying,
    there: BTreeSet<GroupId>,
    groups: Vec<GroupCheckpoint>,
}

impl<'a> Rehoming<'a> {
    fn begin(
        config: &'a EngineConfig,
        from: &'a [u64],
        to: &'a [u64],
        disks: &'a mut dyn RehomingDisks,
        now: Now,
    ) -> Result<Self, RecoveryError> {
        let mut homes = Vec::with_capacity(to.len());
        for (shard, journal_id) in (0..).map(ShardId).zip(to) {
            let laying = Laying::begin(disks.after(shard), *journal_id, config.journal_file_bytes)?;
            homes.push(Home { laying, there: BTreeSet::new(), groups: Vec::new() });
        }
        Ok(Self {
            config,
            from,
            to,
            disks,
            now,
            homes,
            catalog: Catalog::default(),
            founders: Vec::new(),
            incarnation: 0,
            dropped_at: 0,
            opens_are_suspect: false,
            done: Rehomed::default(),
        })
    }

    /// Takes everything over that a shard has.
    fn take(&mut self, shard: ShardId, journal_id: u64) -> Result<(), RecoveryError> {
        let mut engine = self.recover(shard, journal_id)?;
        if let Some(controller) = &engine.controller {
            self.catalog = controller.catalog().clone();
            self.founders = engine.founders.iter().map(|(node, disk)| (*node, *disk)).collect();
            self.check_level()?;
        }
        self.check_clean(shard, &engine)?;
        engine.write_out_all(self.disks.before(shard))?;
        self.disks.done_with(shard);
        self.incarnation = self.incarnation.max(engine.journal.incarnation());
        self.dropped_at = self.dropped_at.max(engine.dropped_at);
        self.opens_are_suspect |= engine.opens_are_suspect && self.config.is_clustered();
        for partition in engine.partitions.iter().flatten() {
            self.take_group(shard, partition)?;
        }
        Ok(())
    }

    /// The shard as it is, with everything in memory that its journal holds and that is not in segments.
    fn recover(&mut self, shard: ShardId, journal_id: u64) -> Result<Engine, RecoveryError> {
        // Its cache was its part of the node's.
        let part = self.to.len().div_ceil(self.from.len());
        let config = EngineConfig {
            shard,
            shards: self.from.len() as u16,
            journal_id,
            cache_bytes: self.config.cache_bytes.saturating_mul(part),
            replay_memory_bytes: usize::MAX,
            ..self.config.clone()
        };
        let engine = recover(config, self.disks.before(shard), self.now)?;
        for line in &engine.recovery_log {
            if let super::Action::Log { level, text } = line {
                self.disks.tell(*level, text.clone());
            }
        }
        Ok(engine)
    }

    /// An older release takes a slot for a shard.
    fn check_level(&self) -> Result<(), RecoveryError> {
        let (level, fewer) = (self.catalog.feature_level, self.to.len() < self.from.len());
        // In a cluster it may know of less than there is.
        let any = self.config.is_clustered() || self.catalog.partitions() > 0;
        match fewer && level < LEVEL_OF_MOVES && any {
            true => Err(self.refuse(format!(
                "fewer shards take feature level {LEVEL_OF_MOVES}, and this node knows of level {level} only"
            ))),
            false => Ok(()),
        }
    }

    /// What is damaged is known of in its place, and is to stay there until it is repaired.
    fn check_clean(&self, shard: ShardId, engine: &Engine) -> Result<(), RecoveryError> {
        let named =
            |group: &GroupId| self.catalog.replicas(*group).next().is_some() || *group == GroupId::METADATA;
        let gap = engine.recovered_gaps.iter().find(|(group, _)| named(group)).map(|(_, text)| text.clone());
        let damage = engine.flush.found_damage().then(|| "its journal is damaged".to_owned());
        match gap.or(damage) {
            Some(what) => Err(self.refuse(format!("shard {shard}: {what}"))),
            None => Ok(()),
        }
    }

    /// The start with the number of shards that there was always goes.
    fn refuse(&self, what: String) -> RecoveryError {
        let (from, to) = (self.from.len(), self.to.len());
        RecoveryError(format!(
            "the partitions can't go from {from} shards to {to}: {what}. Nothing was changed. Remedy: start the node with \
             runtime.shards = {from}, wait until it is ready and, in a cluster, linked to the others; then stop it and try again"
        ))
    }

    fn take_group(&mut self, from: ShardId, partition: &Partition) -> Result<(), RecoveryError> {
        let group = partition.group;
        let shards = self.to.len() as u16;
        let to = ShardId(match self.slot_of(partition) {
            Some(slot) => on_shard(slot, shards),
            None if self.is_on_its_way_out(partition) => on_shard(from.0, shards),
            None => {
                let text =
                    format!("shard {from} has partition {group}, which its metadata does not know yet");
                return Err(self.refuse(text));
            }
        });
        if partition.replica.begins_behind(partition.flushed_to) {
            return Err(
                self.refuse(format!("partition {group} has just become a group, and is not in segments"))
            );
        }
        let mut state = group_checkpoint(partition, self.now);
        if let Some(replicated) = &mut state.replicated
            && replicated.entries_from_lsn > 0
        {
            // Commits of another journal.
            replicated.entries_from_lsn = laying::FIRST_LSN;
        }
        for segment in &state.segments {
            self.link(FileId::Segment(group, segment.base), from, to)?;
            match self.link(FileId::Index(group, segment.base), from, to) {
                // It is derived, and may be missing.
                Err(error) if error.kind != super::IoErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let Some(home) = self.homes.get_mut(usize::from(to.0)) else { return Ok(()) };
        if !home.there.insert(group) {
            let text =
                format!("two replicas of partition {group} are on this node, one of which is on its way out");
            return Err(self.refuse(text));
        }
        home.groups.push(state);
        self.done.groups += 1;
        #[cfg(feature = "planted-bugs")]
        if self.config.planted == Some(super::planted::PlantedBug::LeaveEntriesBehind) {
            return Ok(());
        }
        if let Replica::Unplaced(unplaced) = &partition.replica {
            self.done.entries += home.lay_entries(self.disks.after(to), partition, unplaced)?;
        }
        Ok(())
    }

    fn link(&mut self, file: FileId, from: ShardId, to: ShardId) -> Result<(), IoError> {
        self.disks.link(file, from, to)?;
        self.done.files += 1;
        Ok(())
    }

    /// Where the replica is wanted, or was when it was made.
    fn slot_of(&self, partition: &Partition) -> Option<u16> {
        let (node, group) = (self.config.node.0, partition.group);
        let configured = match &partition.replica {
            Replica::Unplaced(unplaced) => {
                let newest = unplaced.newest_configuration().place(node);
                newest.or_else(|| unplaced.log.configuration.place(node)).map(|place| place.shard)
            }
            _ => None,
        };
        configured.or_else(|| self.catalog.wanted_slot(node, group))
    }

    /// Whether nobody wants the replica on this node: it was moved away, or its topic deleted.
    fn is_on_its_way_out(&self, partition: &Partition) -> bool {
        let group = partition.group;
        let has_moved = match &partition.replica {
            Replica::Unplaced(unplaced) => !unplaced.newest_configuration().is_unknown(),
            _ => false,
        };
        let deleted =
            group.topic.0 < self.catalog.next_topic_id && !self.catalog.topics.contains_key(&group.topic.0);
        has_moved || deleted || self.catalog.replicas(group).next().is_some()
    }

    /// Everything is taken over: the journals' ends, and the checkpoints.
    fn end(self) -> Result<Rehomed, RecoveryError> {
        let (mut founders, mut catalog) = (self.founders, Some(self.catalog.encode()));
        for ((shard, journal_id), home) in (0..).map(ShardId).zip(self.to).zip(self.homes) {
            let disk = self.disks.after(shard);
            home.laying.end(disk)?;
            let mut checkpoint = Checkpoint {
                seq: 0,
                journal_id: *journal_id,
                incarnation: self.incarnation,
                replay_from: Laying::replay_from(),
                groups: home.groups,
                // Shard 0's.
                catalog: catalog.take(),
                opens_are_suspect: self.opens_are_suspect,
                dropped_at: self.dropped_at,
                founders: std::mem::take(&mut founders),
            };
            // Both slots, so that damage to one costs nothing.
            for seq in [1, 2] {
                checkpoint.seq = seq;
                let bytes = checkpoint.encode().map_err(|error| {
                    let shards = self.to.len();
                    RecoveryError(format!(
                        "shard {shard} of {shards} would hold more than a checkpoint can ({error}): start with more shards"
                    ))
                })?;
                disk.write(FileId::Checkpoint(checkpoint.slot()), 0, &bytes)?;
                disk.sync(FileId::Checkpoint(checkpoint.slot()))?;
            }
        }
        Ok(self.done)
    }
}

impl Home {
    /// Lays down what a replica holds behind its segments, and what it has promised. How many entries.
    fn lay_entries(
        &mut self,
        disk: &mut dyn RecoveryDisk,
        partition: &Partition,
        unplaced: &Unplaced,
    ) -> Result<u64, RecoveryError> {
        let (group, entries) = (partition.group, partition.replica.held_back_entries());
        for index in entries.clone() {
            let lost = || RecoveryError(format!("entry {index} of partition {group} is not in memory"));
            let header = partition.replica.header(index).ok_or_else(lost)?;
            let (frame, body) = match header.kind {
                EntryKind::NewTerm => {
                    let frame =
                        FrameHeader::bodyless(FrameKind::NewTerm, group, header.base_offset, header.term);
                    (FrameHeader { index, ..frame }, Vec::new())
                }
                EntryKind::Configuration => {
                    let body = partition.replica.configuration_at(index).ok_or_else(lost)?.encode();
                    let (offset, term) = (header.base_offset, header.term);
                    (FrameHeader::of_configuration(group, offset, term, index, &body), body)
                }
                EntryKind::Batch => {
                    let bytes = partition.tail_entry(index).ok_or_else(lost)?.data.bytes();
                    let head = BatchHead::parse(bytes).map_err(|error| {
                        RecoveryError(format!("entry {index} of partition {group}: {error}"))
                    })?;
                    (FrameHeader::batch(group, &head, index), bytes.to_vec())
                }
            };
            self.laying.lay(disk, &frame, &body)?;
        }
        // What of it is known to be committed.
        let hard = unplaced.log.hard;
        let vote = FrameHeader::bodyless(FrameKind::Vote, group, 0, hard.term);
        self.laying.lay(disk, &FrameHeader { record_count: hard.vote, index: hard.commit, ..vote }, &[])?;
        Ok(entries.count() as u64)
    }
}

impl Engine {
    /// Writes what is committed to segments, before the shard serves anybody.
    fn write_out_all(&mut self, disk: &mut dyn RecoveryDisk) -> Result<(), IoError> {
        for partition in self.partitions.iter_mut().flatten() {
            let several = matches!(partition.replica, Replica::Unplaced(_));
            if several && partition.group == GroupId::METADATA {
                // Its commands are applied from memory when they are known to be committed.
                continue;
            }
            write_out(disk, partition, &self.config, &self.misc_pool, self.now)?;
        }
        Ok(())
    }
}
