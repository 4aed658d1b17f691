//! Many lives, on two threads; the results come in the order of their seeds.

use std::fmt;
use std::sync::mpsc;

use pyralog_shard::engine::planted::PlantedBug;

use crate::faults::FaultCounts;
use crate::life::{LifeReport, run};
use crate::world::CutShort;

const THREADS: u64 = 2;

/// Counts over many lives.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Lives.
    pub lives: u64,
    /// Happenings.
    pub events: u64,
    /// Faults.
    pub faults: FaultCounts,
    /// Batches acknowledged.
    pub acknowledged: u64,
    /// Reads refused as damaged, where the disk had lied.
    pub damage_reported: u64,
    /// Lives that ended with a node that refused to start from a disk that had lied.
    pub refused: u64,
    /// Lives that ended because a lying disk took metadata without a trace.
    pub metadata_lost: u64,
    /// Checkpoints, cold reads, duplicates, trimmed partitions.
    pub checkpoints: u64,
    /// Fetches that read segments.
    pub cold_reads: u64,
    /// Produces answered as duplicates.
    pub duplicates: u64,
    /// Partitions whose log start moved.
    pub trimmed: u64,
    /// Journal files that were begun again.
    pub recycled: u64,
    /// Seeds with a violation.
    pub failed: Vec<u64>,
}

impl Totals {
    /// Adds a life.
    pub fn add(&mut self, report: &LifeReport) {
        self.lives += 1;
        self.events += report.events;
        self.faults.merge(&report.faults);
        self.acknowledged += report.acknowledged;
        self.damage_reported += report.damage_reported;
        self.refused += u64::from(report.cut_short == Some(CutShort::Refused));
        self.metadata_lost += u64::from(report.cut_short == Some(CutShort::MetadataLost));
        self.checkpoints += report.coverage.checkpoints;
        self.cold_reads += report.coverage.cold_reads;
        self.duplicates += report.coverage.duplicates;
        self.trimmed += report.coverage.trimmed;
        self.recycled += report.coverage.recycled;
        if report.violation.is_some() {
            self.failed.push(report.seed);
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lives {} events {} acknowledged {} duplicates {} checkpoints {} cold-reads {} trimmed {} recycled {} | {} | \
             damage-reported {} refused-start {} metadata-lost {} violations {}",
            self.lives,
            self.events,
            self.acknowledged,
            self.duplicates,
            self.checkpoints,
            self.cold_reads,
            self.trimmed,
            self.recycled,
            self.faults,
            self.damage_reported,
            self.refused,
            self.metadata_lost,
            self.failed.len()
        )?;
        if !self.failed.is_empty() {
            write!(f, " seeds {:?}", self.failed)?;
        }
        Ok(())
    }
}

/// Runs `count` lives from seed `first` on; `each` sees the reports in the order of their seeds.
pub fn sweep(first: u64, count: u64, bug: Option<PlantedBug>, mut each: impl FnMut(&LifeReport)) -> Totals {
    let mut totals = Totals::default();
    in_order(
        first,
        count,
        |seed| run(seed, bug, false),
        |report| {
            totals.add(&report);
            each(&report);
        },
    );
    totals
}

/// Has `live` run for each of `count` seeds from `first` on; `each` sees what they came to in the order of their seeds.
pub(crate) fn in_order<R: Send>(
    first: u64,
    count: u64,
    live: impl Fn(u64) -> R + Sync,
    mut each: impl FnMut(R),
) {
    std::thread::scope(|scope| {
        let live = &live;
        let lanes: Vec<mpsc::Receiver<R>> = (0..THREADS)
            .map(|lane| {
                let (reports, lives) = mpsc::sync_channel(64);
                scope.spawn(move || {
                    for seed in (first..first + count).filter(|seed| seed % THREADS == lane) {
                        if reports.send(live(seed)).is_err() {
                            return;
                        }
                    }
                });
                lives
            })
            .collect();
        for seed in first..first + count {
            if let Some(report) = lanes.get((seed % THREADS) as usize).and_then(|lane| lane.recv().ok()) {
                each(report);
            }
        }
    });
}
