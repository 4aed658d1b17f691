//! The cluster's feature level: which commands it takes, and when it is raised.

use pyralog_core::features::{FIRST_LEVEL, LEVEL_OF_MOVES};
use pyralog_core::{ErrorCode, FeatureLevels};

use super::catalog::Refusal;
use super::{Catalog, Command, NodeInfo};

impl Command {
    /// The feature level from which on there is this command: nodes that support less don't understand it.
    pub fn level(&self) -> u16 {
        match self {
            Self::RegisterNode(node) if !node.rack.is_empty() => LEVEL_OF_MOVES,
            Self::RegisterNode(_)
            | Self::CreateTopic(_)
            | Self::DeleteTopic { .. }
            | Self::ReserveProducerIds { .. } => FIRST_LEVEL,
            Self::Reassign { .. }
            | Self::Reassigned { .. }
            | Self::AlterTopic { .. }
            | Self::AddNode { .. }
            | Self::Force { .. }
            | Self::RemoveNode { .. } => LEVEL_OF_MOVES,
            Self::RaiseFeatureLevel { level } => *level,
        }
    }

    /// What it is about, for whom it is refused.
    fn subject(&self) -> &'static str {
        match self {
            Self::RegisterNode(_) => "a node with a rack",
            Self::CreateTopic(_) => "creating a topic",
            Self::DeleteTopic { .. } => "deleting a topic",
            Self::ReserveProducerIds { .. } => "idempotent producers",
            Self::Reassign { .. } | Self::Reassigned { .. } => "moving a partition",
            Self::AlterTopic { .. } => "altering a topic",
            Self::AddNode { .. } => "adding a node",
            Self::Force { .. } => "recovering a partition",
            Self::RemoveNode { .. } => "removing a node",
            Self::RaiseFeatureLevel { .. } => "raising it",
        }
    }
}

impl NodeInfo {
    /// The feature levels that it supports.
    pub fn levels(&self) -> FeatureLevels {
        FeatureLevels { min: self.level_min, max: self.level_max }
    }
}

impl Catalog {
    /// The level to which the cluster could go, as far as the nodes that have registered support it.
    pub fn supported_level(&self) -> u16 {
        let supported = self.nodes.values().map(|node| node.level_max).min();
        supported.unwrap_or(self.feature_level).max(self.feature_level)
    }

    /// Whether all nodes understand this command.
    pub(super) fn check_level(&self, command: &Command) -> Result<(), Refusal> {
        let needed = command.level();
        if needed <= self.feature_level || matches!(command, Command::RaiseFeatureLevel { .. }) {
            return Ok(());
        }
        Err((
            ErrorCode::UnsupportedVersion,
            format!(
                "the cluster's feature level is {}, {} takes {needed}: {}",
                self.feature_level,
                command.subject(),
                self.who_holds_back(needed)
            ),
        ))
    }

    fn who_holds_back(&self, level: u16) -> String {
        match self.nodes.values().find(|node| node.level_max < level) {
            Some(node) => format!(
                "node {} supports only {}, upgrade it first, or raise its node.feature_level_max",
                node.id,
                node.levels()
            ),
            None => "it is raised as soon as all nodes have registered".into(),
        }
    }

    /// Whether the level can be raised to this one.
    pub(super) fn check_raise(&self, level: u16) -> Result<(), Refusal> {
        let invalid = |text: String| Err((ErrorCode::InvalidRequest, text));
        if level <= self.feature_level {
            return invalid(format!(
                "the feature level is {} already and never goes down",
                self.feature_level
            ));
        }
        if self.nodes.is_empty() || level > self.supported_level() {
            return invalid(format!(
                "feature level {level} is above what all nodes support: {}",
                self.who_holds_back(level)
            ));
        }
        Ok(())
    }

    /// Whether a node can be in the cluster at its level.
    pub(super) fn check_supported(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let (id, levels, level) = (node.id, node.levels(), self.feature_level);
        let invalid = |text: String| Err((ErrorCode::InvalidRequest, text));
        if !levels.is_valid() {
            return invalid(format!("node {id} with feature levels {} to {}", levels.min, levels.max));
        }
        if levels.contains(level) {
            return Ok(());
        }
        invalid(format!("node {id}: {}", not_supported(levels, level)))
    }
}

/// Why a node that supports these levels can't be in a cluster at that one, and what to do.
pub fn not_supported(levels: FeatureLevels, level: u16) -> String {
    let remedy = match level > levels.max {
        true => "start a release that supports it, or raise node.feature_level_max; a level never goes down",
        false => "upgrade the cluster with a release in between first",
    };
    format!("the cluster's feature level is {level}, and this node supports {levels}: {remedy}")
}
