//! Deliberate bugs that the simulator must find. Compiled only with the feature `planted-bugs`.

use pyralog_replication::metadata::Command;

/// One deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// Produces are acknowledged when their journal write is submitted, not when it is done.
    AckBeforeFlush,
    /// A commit whose checksum does not match ends the log, also below the durable point.
    TruncateOnBadChecksum,
    /// Produces are acknowledged by the leader's own commit, whatever quorum they ask for.
    AckBeforeQuorum,
    /// Votes leave before anything of them is in the journal, which does not get them either.
    VoteWithoutFlush,
    /// A message of an older term is taken as if it were of the current one.
    AcceptOldTerms,
    /// A recycled journal file keeps its old generation, and commits do not check the chain.
    ReuseWithoutGeneration,
    /// A replica whose disk was exchanged for an empty one votes as if nothing had been.
    BlankDiskVotes,
    /// A replica is deleted as soon as it is wanted elsewhere, not when the others have it.
    DeleteBeforeMoved,
    /// What has rotted is repaired with what another replica has in its log, committed or not, whatever term it is of.
    RepairFromUncommitted,
    /// The cluster's feature level is raised when most nodes support the next one.
    RaiseForMajority,
    /// Partitions that go to another number of shards leave behind what is in no segment yet.
    LeaveEntriesBehind,
}

impl super::Engine {
    /// Whether this engine has the bug.
    pub(super) fn has_bug(&self, bug: PlantedBug) -> bool {
        self.config.planted == Some(bug)
    }

    /// Whether this command is of [`PlantedBug::RaiseForMajority`], which the catalogue would refuse.
    pub(super) fn planted_raises(&self, command: &Command) -> bool {
        self.has_bug(PlantedBug::RaiseForMajority) && matches!(command, Command::RaiseFeatureLevel { .. })
    }
}
