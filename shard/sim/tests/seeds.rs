//! Lives that once went wrong, one line each, and a short sweep.

use pyralog_sim::faults::FaultKind;
use pyralog_sim::{run, sweep};

/// Seeds that found something, in the simulator or in the engine. A life changes when what is drawn for it
/// changes, so that an old seed may not show the same thing any more; it stays a life worth running.
const ONCE_WRONG: &[u64] = &[
    15,   // a checkpoint whose replay point the journal had not flushed (fsync_policy: interval)
    27,   // one damaged batch of a segment hid the ones behind it
    86,   // an intact batch before a broken one in the same commit was dropped
    138,  // a read that a topic's deletion overtook was called damage
    464,  // a stop on a full disk did not flush the journal (fsync_policy: interval)
    540,  // no journal space for the first commit of a life
    1378, // a stop on a full disk flushed the journal before its last commit was written (fsync_policy: interval)
    2500, // a batch without a timestamp went with older ones of its segment that have one
    2860, // the same
    3625, // recovery removed segments that the older checkpoint named, and the newest one was damaged later
    5142, // the simulator took the stop of a fenced shard for one in good order (fsync_policy: interval)
    7296, // the simulator wanted a commit back that a hit had broken together with all that proved it
    2140, // the simulator wanted a shard stopped although it had stopped waiting, as another had fenced itself
    135,  // the simulator took no notice of batches that two writes of a segment share
    1006, // the same
    2743, // a checkpoint whose flush had failed was taken for durable
];

#[test]
fn lives_that_once_went_wrong_go_well() {
    for seed in ONCE_WRONG {
        let report = run(*seed, None, false);
        assert_eq!(report.violation, None, "seed {seed}");
    }
}

#[test]
fn a_sweep_finds_nothing_and_reaches_everything() {
    // The seeds in which the planted bugs are caught: without a bug none of them fails.
    let totals = sweep(1, 200, None, |report| {
        if let Some(violation) = &report.violation {
            println!("seed {}: {violation}", report.seed);
        }
    });
    assert_eq!(totals.failed, Vec::<u64>::new(), "replay with: pyralog-sim --seed N");
    for (what, count) in [
        ("acknowledged", totals.acknowledged),
        ("checkpoints", totals.checkpoints),
        ("cold reads", totals.cold_reads),
        ("duplicates", totals.duplicates),
        ("partitions trimmed by retention", totals.trimmed),
        ("journal files recycled", totals.recycled),
        ("damage reported", totals.damage_reported),
    ] {
        assert!(count > 0, "no {what} in {totals}");
    }
    for kind in FaultKind::ALL {
        assert!(totals.faults.of(*kind) > 0, "no {} in {totals}", kind.name());
    }
}

#[test]
fn a_seed_replays_to_the_last_event() {
    for seed in 100..108 {
        let (first, second) = (run(seed, None, true), run(seed, None, true));
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
        for (line, (one, other)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(one, other, "seed {seed}, line {line}");
        }
        assert_eq!(first.events, second.events);
    }
}
