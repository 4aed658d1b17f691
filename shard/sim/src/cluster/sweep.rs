//! Many lives of clusters, and the line of counts.

use std::fmt;

use pyralog_shard::engine::planted::PlantedBug;

use super::config::Kind;
use super::faults::ClusterFaultCounts;
use super::life::{ClusterReport, run};
use crate::faults::FaultCounts;
use crate::sweep::in_order;

/// Counts over many lives.
#[derive(Clone, Debug, Default)]
pub struct ClusterTotals {
    /// Lives.
    pub lives: u64,
    /// Of five nodes.
    pub of_five: u64,
    /// Happenings.
    pub events: u64,
    /// Batches acknowledged by a quorum.
    pub acknowledged: u64,
    /// Produces answered as duplicates.
    pub duplicates: u64,
    /// Leaderships.
    pub elections: u64,
    /// Leaderships handed over.
    pub hand_overs: u64,
    /// Followers that were told to begin further on.
    pub snapshots: u64,
    /// Answers with batches out of segments.
    pub fetched: u64,
    /// Groups that fell quiet.
    pub quiesced: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Fetches that read segments.
    pub cold_reads: u64,
    /// Turns that shards wanted of the rate of recovery.
    pub recovery_turns: u64,
    /// Journal files begun again.
    pub recycled: u64,
    /// Moves of partitions that have ended.
    pub moved: u64,
    /// Faults of network and nodes.
    pub cluster_faults: ClusterFaultCounts,
    /// Faults of disks, and of single nodes.
    pub faults: FaultCounts,
    /// Damaged ranges of segments that were repaired.
    pub repaired: u64,
    /// Replicas that took no part at the end.
    pub aside: u64,
    /// Replicas that could not be read at the end because their disks had lied.
    pub damage_reported: u64,
    /// Seeds with a violation.
    pub failed: Vec<u64>,
}

impl ClusterTotals {
    /// Adds a life.
    pub fn add(&mut self, report: &ClusterReport) {
        self.lives += 1;
        self.of_five += u64::from(report.nodes == 5);
        self.events += report.events;
        self.acknowledged += report.acknowledged;
        self.duplicates += report.coverage.duplicates;
        self.elections += report.elections;
        self.hand_overs += report.traffic.hand_overs;
        self.snapshots += report.traffic.snapshots;
        self.fetched += report.traffic.fetched;
        self.quiesced += report.traffic.quiesced;
        self.checkpoints += report.coverage.checkpoints;
        self.cold_reads += report.coverage.cold_reads;
        self.recovery_turns += report.coverage.recovery_turns;
        self.recycled += report.coverage.recycled;
        self.moved += report.moved;
        self.cluster_faults.merge(&report.cluster_faults);
        self.faults.merge(&report.faults);
        self.repaired += report.repaired;
        self.aside += report.aside;
        self.damage_reported += report.damage_reported;
        if report.violation.is_some() {
            self.failed.push(report.seed);
        }
    }
}

impl fmt::Display for ClusterTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lives {} of-five {} events {} acknowledged {} duplicates {} elections {} hand-overs {} snapshots {} \
             fetched {} quiesced {} checkpoints {} cold-reads {} turns {} recycled {} moved {} | {} | {} | repaired {} aside {} damage-reported {} violations {}",
            self.lives,
            self.of_five,
            self.events,
            self.acknowledged,
            self.duplicates,
            self.elections,
            self.hand_overs,
            self.snapshots,
            self.fetched,
            self.quiesced,
            self.checkpoints,
            self.cold_reads,
            self.recovery_turns,
            self.recycled,
            self.moved,
            self.cluster_faults,
            self.faults,
            self.repaired,
            self.aside,
            self.damage_reported,
            self.failed.len()
        )?;
        if !self.failed.is_empty() {
            write!(f, " seeds {:?}", self.failed)?;
        }
        Ok(())
    }
}

/// Runs `count` lives from seed `first` on; `each` sees the reports in the order of their seeds.
pub fn sweep(
    first: u64,
    count: u64,
    kind: Kind,
    bug: Option<PlantedBug>,
    mut each: impl FnMut(&ClusterReport),
) -> ClusterTotals {
    let mut totals = ClusterTotals::default();
    in_order(
        first,
        count,
        |seed| run(seed, kind, bug, false),
        |report| {
            totals.add(&report);
            each(&report);
        },
    );
    totals
}
