//! Deliberate bugs that the simulator must find. Compiled only with the feature `planted-bugs`.

/// One deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// Produces are acknowledged when their journal write is submitted, not when it is done.
    AckBeforeFlush,
    /// A commit whose checksum does not match ends the log, also below the durable point.
    TruncateOnBadChecksum,
    /// A recycled journal file keeps its old generation, and commits do not check the chain.
    ReuseWithoutGeneration,
    /// A replica whose disk was exchanged for an empty one votes as if nothing had been.
    BlankDiskVotes,
}
