//! Nodes that come back with another number of shards: what the operator's start does before any shard runs, with the power going at
//! any of its calls.

use std::collections::BTreeMap;

use pyralog_core::limits::MAX_CHECKPOINT_BYTES;
use pyralog_core::{GroupId, ShardId};
use pyralog_replication::metadata::{Replica, on_shard};
use pyralog_shard::engine::{
    EngineConfig, FileId, IoError, IoErrorKind, LogLevel, RecoveryDisk, RehomingDisks, rehome,
};
use pyralog_shard::format::checkpoint::Checkpoint;

use super::faults::ClusterFault;
use super::world::{Happening, SEATS, Seat, World};
use crate::disk::SimDisk;
use crate::recovery_disk::Recovering;

/// The disks of a node's shards as they are and as they are to be.
struct Disks<'a> {
    old: Vec<Recovering<'a>>,
    new: Vec<Recovering<'a>>,
    told: Vec<String>,
}

impl RehomingDisks for Disks<'_> {
    fn before(&mut self, shard: ShardId) -> &mut dyn RecoveryDisk {
        &mut self.old[usize::from(shard.0)]
    }

    fn done_with(&mut self, _: ShardId) {}

    fn after(&mut self, shard: ShardId) -> &mut dyn RecoveryDisk {
        &mut self.new[usize::from(shard.0)]
    }

    /// What a second name gives is what is durable already; an index never is.
    fn link(&mut self, file: FileId, from: ShardId, to: ShardId) -> Result<(), IoError> {
        let (old, new) = (&mut self.old[usize::from(from.0)], &mut self.new[usize::from(to.0)]);
        let missing =
            || IoError { kind: IoErrorKind::NotFound, detail: format!("simulated: {file:?} is not there") };
        let listed = old.list()?;
        let len = listed.iter().find(|(there, _)| *there == file).map(|(_, len)| *len).ok_or_else(missing)?;
        let mut bytes = vec![0; len as usize];
        let read = old.read(file, 0, &mut bytes)?;
        bytes.truncate(read);
        new.write(file, 0, &bytes)?;
        match file {
            FileId::Index(..) => Ok(()),
            _ => new.sync(file),
        }
    }

    fn tell(&mut self, level: LogLevel, text: String) {
        self.told.push(format!("{level:?} {text}"));
    }
}

impl World {
    /// The shard that a replica is on, with the shards that its node runs now.
    pub(crate) fn home(&self, place: Replica) -> Seat {
        let node = place.node as usize - 1;
        Seat { node, shard: usize::from(on_shard(place.shard, self.nodes[node].count as u16)) }
    }

    /// Where the replica of a node is, of which a leader may believe that it is on a shard of before.
    pub(crate) fn home_on(&self, node: u32, group: GroupId, told: u16) -> Seat {
        let catalog = self.catalog.as_ref();
        let slot = catalog.and_then(|catalog| catalog.wanted_slot(node, group)).unwrap_or(told);
        self.home(Replica { node, shard: slot })
    }

    /// Whether a node comes with another number of shards now: only where disks keep what they are given.
    pub(crate) fn may_reshard(&mut self, node: usize) -> bool {
        let state = &self.nodes[node];
        let may = self.config.reshards && !state.lies && !state.emptied && !self.closing;
        may && self.reshard_rng.one_in(3)
    }

    /// A node that is down comes with another number of shards. False: the power went on the way.
    pub(crate) fn reshard(&mut self, node: usize, attempt: u32) -> bool {
        let before = self.nodes[node].count;
        let after = (before + self.reshard_rng.below(SEATS as u64 - 1) as usize) % SEATS + 1;
        let now = self.now(node);
        let plan = self.config.disks.honest.clone();
        let mut fresh: Vec<SimDisk> =
            (0..after).map(|_| SimDisk::new(self.reshard_rng.fork(), plan.clone())).collect();
        let to: Vec<u64> = (0..after).map(|_| self.reshard_rng.bits() | 1).collect();
        let broken =
            self.reshard_rng.percent(40).then(|| self.reshard_rng.below((before + after) as u64) as usize);
        let calls = self.reshard_rng.magnitude(1, 200);
        let shards = &mut self.nodes[node].shards;
        let from: Vec<u64> = shards.iter().take(before).map(|shard| shard.config.journal_id).collect();
        let config = EngineConfig { shards: after as u16, ..shards[0].config.clone() };
        let interruption = |at: usize| (broken == Some(at)).then_some(calls);
        let old = shards.iter_mut().take(before).enumerate().map(|(at, shard)| {
            shard.disk.tracker.new_life();
            Recovering::new(&mut shard.disk, interruption(at))
        });
        let old: Vec<Recovering<'_>> = old.collect();
        let new =
            fresh.iter_mut().enumerate().map(|(at, disk)| Recovering::new(disk, interruption(before + at)));
        let mut disks = Disks { old, new: new.collect(), told: Vec::new() };
        let result = rehome(&config, &from, &to, &mut disks, now);
        let interrupted = disks.old.iter().chain(&disks.new).any(|disk| disk.interrupted);
        let told = disks.told;
        for shard in 0..before {
            self.disk_notes(Seat { node, shard });
        }
        told.into_iter().for_each(|text| self.note(|| format!("n{} says {text}", node + 1)));
        match result {
            _ if interrupted => {
                self.note(|| format!("n{} power went on the way from {before} shards to {after}", node + 1));
                self.counts.add(ClusterFault::OtherShardsCut);
                self.power_went(node, attempt);
                false
            }
            Err(error) => {
                // The disk has failed, or the node has to run with as many shards as before for a while.
                self.note(|| format!("n{} keeps {before} shards: {error}", node + 1));
                true
            }
            Ok(done) => {
                self.note(|| format!("n{} goes from {before} shards to {after}: {done:?}", node + 1));
                self.counts.add(ClusterFault::OtherShards);
                self.take_over(node, fresh, &to);
                true
            }
        }
    }

    fn power_went(&mut self, node: usize, attempt: u32) {
        for shard in &mut self.nodes[node].shards {
            shard.disk.crash();
        }
        let delay = self.reshard_rng.magnitude(1_000, 50_000);
        self.schedule(delay, Happening::Start { node, attempt: attempt + 1 });
    }

    /// The disks that were made are those of the node.
    fn take_over(&mut self, node: usize, fresh: Vec<SimDisk>, journal_ids: &[u64]) {
        let count = fresh.len();
        let power_goes = self.reshard_rng.percent(50);
        let state = &mut self.nodes[node];
        let life = state.shards.iter().map(|shard| shard.life).max().unwrap_or(0) + 1;
        let identity = state.shards[0].config.clone();
        state.count = count;
        let mut homes = BTreeMap::new();
        for ((shard, mut disk), journal_id) in (0..).zip(fresh).zip(journal_ids) {
            if power_goes {
                // Right behind the point from which on they count.
                disk.crash();
            }
            homes.extend(groups_of(&mut disk).into_iter().map(|group| (group, shard)));
            let driver = &mut state.shards[shard];
            let old = std::mem::replace(&mut driver.disk, disk);
            self.old_disks.merge(&old.counts);
            driver.config =
                EngineConfig { shard: ShardId(shard as u16), journal_id: *journal_id, ..identity.clone() };
        }
        for driver in &mut state.shards {
            (driver.life, driver.config.shards) = (life, count as u16);
        }
        self.books.rehomed(node, &homes);
    }
}

/// What a disk that was made holds.
fn groups_of(disk: &mut SimDisk) -> Vec<GroupId> {
    let mut bytes = vec![0; MAX_CHECKPOINT_BYTES];
    disk.faults_off();
    let read = disk.recovery_read(FileId::Checkpoint(0), 0, &mut bytes).unwrap_or(0);
    let checkpoint = Checkpoint::decode(bytes.get(..read).unwrap_or_default());
    checkpoint
        .map_or_else(|_| Vec::new(), |checkpoint| checkpoint.groups.iter().map(|state| state.group).collect())
}
