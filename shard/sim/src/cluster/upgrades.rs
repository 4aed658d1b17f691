//! A rolling upgrade: nodes that support feature level 1 are restarted one by one as nodes that support 2, some of them back again
//! while the level is not raised; and what must hold meanwhile.
//!
//! The operator does what `docs/operations/upgrade.md` says: one node at a time, the next one when the catalogue shows what the last
//! one supports, and none goes back when all others support more, as the level may be raised then.

use pyralog_core::batch::BatchView;
use pyralog_core::{FeatureLevels, GroupId};
use pyralog_replication::metadata::{Catalog, Command};
use pyralog_replication::raft::frame;

use super::faults::ClusterFault;
use super::trouble::Trouble;
use super::world::{Happening, NodeState, Seat, World};

/// Of a hundred steps so many take a node back.
const BACK_PERCENT: u64 = 25;

/// What was seen of the cluster's level.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LevelsSeen {
    /// The newest catalogue at the first level, and the oldest above it: by their versions.
    first_until: Option<u64>,
    raised_from: Option<u64>,
}

/// What nodes support before they are upgraded.
pub(crate) fn old_levels() -> FeatureLevels {
    FeatureLevels::OURS.up_to(FeatureLevels::OURS.min)
}

impl World {
    /// What the settings of a node let it support.
    fn supports(&self, node: usize) -> FeatureLevels {
        self.nodes[node].shards[0].config.feature_levels
    }

    /// The operator takes the next step, when the catalogue shows the last one.
    pub(crate) fn upgrade_step(&mut self) {
        let in_use: Vec<usize> =
            (0..self.config.nodes).filter(|node| self.nodes[*node].state != NodeState::Out).collect();
        let awaited = in_use.iter().copied().find(|node| !self.is_shown(*node));
        let delay = match awaited {
            Some(node) => {
                self.restart_as_set(node);
                50_000
            }
            None => {
                let old = |node: &usize| self.supports(*node) == old_levels();
                let (old, new): (Vec<usize>, Vec<usize>) = in_use.into_iter().partition(old);
                if old.is_empty() {
                    return;
                }
                let back = !new.is_empty() && self.rng.percent(BACK_PERCENT);
                let (node, levels, kind) = match back {
                    true => (self.rng.pick(&new), old_levels(), ClusterFault::Downgrade),
                    false => (self.rng.pick(&old), FeatureLevels::OURS, ClusterFault::Upgrade),
                };
                self.set_levels(node, levels, kind);
                self.rng.range(1, self.config.active_us / 12)
            }
        };
        self.schedule(delay, Happening::Trouble(Trouble::Upgrade));
    }

    /// All nodes are upgraded that are not, at once: nothing is under way any more.
    pub(crate) fn finish_upgrade(&mut self) {
        for node in 0..self.config.nodes {
            if self.nodes[node].state != NodeState::Out && self.supports(node) == old_levels() {
                self.set_levels(node, FeatureLevels::OURS, ClusterFault::Upgrade);
            }
        }
    }

    fn set_levels(&mut self, node: usize, levels: FeatureLevels, kind: ClusterFault) {
        self.note(|| format!("n{} is to support {levels}", node + 1));
        self.counts.add(kind);
        for shard in &mut self.nodes[node].shards {
            shard.config.feature_levels = levels;
        }
        self.restart_as_set(node);
    }

    /// Restarts a node that runs with other levels than it is to support.
    fn restart_as_set(&mut self, node: usize) {
        let runs = self.nodes[node].shards[0].levels;
        if self.nodes[node].state != NodeState::Up || runs == self.supports(node) {
            return;
        }
        match self.rng.percent(70) {
            true => self.stop(node),
            false => self.crash_soon(node),
        }
    }

    /// Whether the newest catalogue has what a node is to support.
    pub(crate) fn is_shown(&self, node: usize) -> bool {
        let id = Seat { node, shard: 0 }.peer().node.0;
        let known = self.catalog.as_ref().and_then(|catalog| catalog.nodes.get(&id));
        known.is_some_and(|known| known.levels() == self.supports(node))
    }

    /// The level never goes down along the versions of the catalogue, and no node goes on in a cluster whose level it does not support.
    pub(crate) fn check_level(&mut self, seat: Seat, catalog: &Catalog) {
        let (version, level) = (catalog.version, catalog.feature_level);
        let supports = self.shard(seat).levels;
        if !supports.contains(level) {
            return self.fail(format!("{seat} supports {supports} and goes on at feature level {level}"));
        }
        let seen = &mut self.levels_seen;
        match level == FeatureLevels::OURS.min {
            true => seen.first_until = seen.first_until.max(Some(version)),
            false => seen.raised_from = Some(seen.raised_from.map_or(version, |from| from.min(version))),
        }
        let LevelsSeen { first_until, raised_from } = *seen;
        if let (Some(until), Some(from)) = (first_until, raised_from)
            && until > from
        {
            self.fail(format!("the feature level is raised in version {from} and is not in {until}"));
        }
    }

    /// A node gets no command that it does not understand.
    pub(crate) fn check_commands(&mut self, to: Seat, control: &[u8], payload: &[u8]) {
        let supports = self.shard(to).levels;
        if supports.max == FeatureLevels::OURS.max || self.shard(to).engine.is_none() {
            return;
        }
        // What can't be read is the business of others.
        let Ok(messages) = frame::decode(control) else { return };
        let mut rest = payload;
        for message in messages {
            let Some((mut batches, later)) = rest.split_at_checked(message.payload_bytes() as usize) else {
                return;
            };
            rest = later;
            while message.group() == GroupId::METADATA
                && let Ok((batch, behind)) = BatchView::parse(batches)
            {
                batches = behind;
                if let Some(above) = levels_of(&batch).into_iter().find(|level| *level > supports.max) {
                    return self.fail(format!(
                        "{to} gets a command of feature level {above} and supports {supports}"
                    ));
                }
            }
        }
    }

    /// The level is what all nodes support when all is well.
    pub(crate) fn level_is_raised(&self) -> Result<(), String> {
        let Some(newest) = &self.catalog else { return Ok(()) };
        let (level, supported) = (newest.feature_level, newest.supported_level());
        let all = newest.nodes.len() == self.config.nodes;
        match all && level < supported {
            true => Err(format!("the feature level is {level}, and all nodes support {supported}")),
            false => Ok(()),
        }
    }
}

/// The levels of a batch's commands.
fn levels_of(batch: &BatchView<'_>) -> Vec<u16> {
    let mut scratch = Vec::new();
    let Ok(records) = batch.records(&mut scratch) else { return Vec::new() };
    let values = records.filter_map(|record| record.ok()?.value);
    values.filter_map(|value| Command::decode(value).ok()).map(|command| command.level()).collect()
}
