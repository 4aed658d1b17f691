//! The simulator's own test: deliberate bugs of the engine are caught, and only they.

use std::ops::RangeInclusive;

use pyralog_sim::{PlantedBug, run};

/// Seeds within which each bug must show.
const SEEDS: RangeInclusive<u64> = 1..=200;

fn first_caught(bug: PlantedBug) -> Option<(u64, String)> {
    SEEDS.map(|seed| run(seed, Some(bug), false)).find_map(|report| Some((report.seed, report.violation?)))
}

fn is_caught(bug: PlantedBug) {
    let caught = first_caught(bug);
    assert!(caught.is_some(), "{bug:?} is not caught within {SEEDS:?}");
    let (seed, violation) = caught.unwrap_or_default();
    println!("{bug:?} caught by seed {seed}: {violation}");
    // The same life without the bug is fine: what was caught is the bug.
    let honest = run(seed, None, false);
    assert_eq!(honest.violation, None, "seed {seed} without {bug:?}");
}

#[test]
fn acknowledging_before_the_flush_is_caught() {
    is_caught(PlantedBug::AckBeforeFlush);
}

#[test]
fn truncating_at_a_bad_checksum_is_caught() {
    is_caught(PlantedBug::TruncateOnBadChecksum);
}

#[test]
fn reusing_a_journal_block_without_a_fresh_generation_is_caught() {
    is_caught(PlantedBug::ReuseWithoutGeneration);
}
