//! The cluster's feature level: raised by whoever leads the metadata when every node supports the next one, and the end of a node
//! that does not support it.

use pyralog_core::GroupId;
use pyralog_core::features::LEVEL_OF_MOVES;
use pyralog_replication::metadata::{Catalog, Command, not_supported};

use super::api::LogLevel;
use super::controller::Controller;
use super::relay::REGISTER_EVERY_US;
use super::{Action, Engine, EngineConfig, Mode, RecoveryError};

impl Engine {
    /// Raises the level if this shard leads the metadata and every node supports the next one. Asked whenever a node has registered or
    /// somebody else leads.
    pub(super) fn raise_feature_level(&mut self) {
        let Some(level) = self.level_to_raise_to() else { return };
        if self.append_command(Command::RaiseFeatureLevel { level }, None).is_err() {
            // There is no room now.
            self.register_due_us.get_or_insert(self.now.monotonic_us + REGISTER_EVERY_US);
        }
    }

    fn level_to_raise_to(&self) -> Option<u16> {
        if !self.controls() {
            return None;
        }
        let newest = self.controller.as_ref().map(Controller::newest)?;
        #[cfg(feature = "planted-bugs")]
        if self.has_bug(super::planted::PlantedBug::RaiseForMajority) {
            return majority_supports(newest);
        }
        // Who has a voice in the metadata and has not registered yet may support less.
        let voters = self.raft_of(GroupId::METADATA).map(|replica| replica.raft.configuration().voters());
        let known = |node: u32| newest.nodes.contains_key(&node) || newest.removed.contains_key(&node);
        let all_known = voters.unwrap_or_default().iter().all(|voter| known(voter.node));
        let level = newest.supported_level();
        (all_known && level > newest.feature_level).then_some(level)
    }

    /// The catalogue has changed: what this node registers may follow from the level.
    pub(super) fn follow_level(&mut self) {
        let registered = self
            .controller
            .as_ref()
            .is_some_and(|known| known.newest().nodes.contains_key(&self.config.node.0));
        if registered && self.config.is_clustered() && self.registration().is_some() {
            self.register_due_us.get_or_insert(self.now.monotonic_us);
        } else if registered && !self.config.is_clustered() {
            // Tried again with the next change.
            let _ = self.register_node();
        }
        self.raise_feature_level();
    }

    /// Whether this node can't be in the cluster any more, as that is at a level which it does not support. It answers nobody then,
    /// and its process is to end.
    pub(super) fn is_left_behind(&mut self, actions: &mut Vec<Action>) -> bool {
        let Some(level) = self.controller.as_ref().map(|known| known.catalog().feature_level) else {
            return false;
        };
        if self.config.feature_levels.contains(level) {
            return false;
        }
        if !matches!(self.mode, Mode::Fenced(_)) {
            let reason = not_supported(self.config.feature_levels, level);
            self.mode = Mode::Fenced(reason.clone());
            actions.push(Action::Log { level: LogLevel::Error, text: reason.clone() });
            actions.push(Action::GiveUp { reason });
        }
        true
    }

    /// Whether nodes of this cluster may have other replicas than they began with: the frames that say so are not known to all below
    /// that level.
    pub(super) fn may_change_replicas(catalog: &Catalog) -> bool {
        catalog.feature_level >= LEVEL_OF_MOVES
    }
}

/// Whether a node can start with the catalogue that its disk has.
pub(super) fn check_level(config: &EngineConfig, catalog: Option<&Catalog>) -> Result<(), RecoveryError> {
    match catalog.map(|catalog| catalog.feature_level) {
        Some(level) if !config.feature_levels.contains(level) => {
            Err(RecoveryError(not_supported(config.feature_levels, level)))
        }
        _ => Ok(()),
    }
}

/// The planted bug: the level that most nodes support.
#[cfg(feature = "planted-bugs")]
fn majority_supports(newest: &Catalog) -> Option<u16> {
    let mut supported: Vec<u16> = newest.nodes.values().map(|node| node.level_max).collect();
    supported.sort_unstable();
    let level = *supported.get((supported.len().checked_sub(1)?) / 2)?;
    (level > newest.feature_level).then_some(level)
}
