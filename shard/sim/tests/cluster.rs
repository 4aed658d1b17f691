//! Lives of clusters: a short sweep, and its replay.

use pyralog_sim::cluster::faults::{BLANK_DISKS, ClusterFault};
use pyralog_sim::cluster::{run, sweep};
use pyralog_sim::faults::FaultKind;

#[test]
fn a_sweep_finds_nothing_and_reaches_everything() {
    let totals = sweep(1, 100, None, |report| {
        if let Some(violation) = &report.violation {
            println!("seed {}: {violation}", report.seed);
        }
    });
    assert_eq!(totals.failed, Vec::<u64>::new(), "replay with: pyralog-sim --cluster --seed N");
    for (what, count) in [
        ("clusters of five", totals.of_five),
        ("acknowledged", totals.acknowledged),
        ("duplicates", totals.duplicates),
        ("leaderships handed over", totals.hand_overs),
        ("snapshots", totals.snapshots),
        ("batches fetched from segments", totals.fetched),
        ("groups that fell quiet", totals.quiesced),
        ("checkpoints", totals.checkpoints),
        ("cold reads", totals.cold_reads),
        ("replicas put aside", totals.aside),
        ("damage reported", totals.damage_reported),
    ] {
        assert!(count > 0, "no {what} in {totals}");
    }
    for kind in FaultKind::ALL {
        assert!(totals.faults.of(*kind) > 0, "no {} in {totals}", kind.name());
    }
    for kind in ClusterFault::ALL {
        // Nodes that are out for good are rare.
        let rare = matches!(kind, ClusterFault::TakenOut | ClusterFault::Refused);
        let off = *kind == ClusterFault::BlankDisk && !BLANK_DISKS;
        assert!(rare || off || totals.cluster_faults.of(*kind) > 0, "no {} in {totals}", kind.name());
    }
}

#[test]
fn a_seed_replays_to_the_last_event() {
    for seed in 100..104 {
        let (first, second) = (run(seed, None, true), run(seed, None, true));
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
        for (line, (one, other)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(one, other, "seed {seed}, line {line}");
        }
        assert_eq!(first.events, second.events);
    }
}
