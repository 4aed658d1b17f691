//! Lives of clusters: a short sweep, its replay, and the planted bugs that it must find.

use pyralog_sim::PlantedBug;
use pyralog_sim::cluster::faults::ClusterFault;
use pyralog_sim::cluster::{Kind, run, run_as, sweep};
use pyralog_sim::faults::FaultKind;

/// So many lives are tried until one shows a bug.
const LIVES: u64 = 300;

/// The lives from seed `first` on show the bug; `first` is so that it does not take many of them.
fn is_caught(bug: PlantedBug, first: u64) {
    is_caught_in(Kind::Plain, bug, first);
}

fn is_caught_in(kind: Kind, bug: PlantedBug, first: u64) {
    let mut lives = (first..first + LIVES).map(|seed| run(seed, kind, Some(bug), false));
    let caught = lives.find_map(|report| Some((report.seed, report.violation?)));
    assert!(caught.is_some(), "{bug:?} is not caught by {LIVES} lives from seed {first} on");
    if let Some((seed, violation)) = caught {
        println!("{bug:?} caught by seed {seed} {violation}");
        // The same life without the bug is fine: what was caught is the bug.
        assert_eq!(run(seed, kind, None, false).violation, None, "seed {seed} without {bug:?}");
    }
}

#[test]
fn acknowledging_before_the_quorum_is_caught() {
    is_caught(PlantedBug::AckBeforeQuorum, 1);
}

#[test]
fn votes_that_are_not_durable_are_caught() {
    is_caught(PlantedBug::VoteWithoutFlush, 1);
}

#[test]
fn taking_messages_of_older_terms_is_caught() {
    is_caught(PlantedBug::AcceptOldTerms, 1);
}

#[test]
fn truncating_at_a_bad_checksum_is_caught() {
    is_caught(PlantedBug::TruncateOnBadChecksum, 80);
}

#[test]
fn raising_the_feature_level_for_a_majority_is_caught() {
    is_caught_in(Kind::Upgrades, PlantedBug::RaiseForMajority, 1);
}

/// Seeds that found something, in the simulator or in the engine; what is drawn for a life may have changed since.
const ONCE_WRONG: &[u64] = &[
    604,  // what a deposed leader sent was taken for what no correct replica sends
    896, // the simulator had no time for all groups of a node with a new disk to ask a node before that was kept down
    1298, // the simulator took for unreadable what retention had removed while it read
    1363, // the simulator took a batch for held of which the disk had an entry of another term, taken back since
    1503, // the simulator took an entry that was laid down again for gone until its new place was on the platter
    1521, // a catch-up began anew whenever one answer was lost
    1534, // the simulator sent a batch again whose outcome it did not know
    1847, // the simulator took a batch for held whose entry had been taken back and was laid down elsewhere
    2065, // a follower could not catch up where retention had taken what lies before its leader's entries
    2267, // what came late to a catch-up of an earlier life was taken for a gap in its batches
    2484, // the same as 2065
    2532, // a shard that was to stop waited for a catch-up that could not go on any more
    2543, // the same as 1298
    2569, // a replica that won and lost an election between two outputs took itself for broken
    2753, // the simulator gave links queues in which a large frame never found room beside heartbeats
    2774, // the simulator took a node out for good before the cluster had begun, for which all are needed
    3375, // the last entries of a topic on its way out were taken for damage
    3391, // the simulator compared replicas that it had read at different times
    3929, // the simulator took for durable what a failed write had left to chance, as it was laid down again
    3966, // a node whose registration was lost with its leadership never asked again
    4417, // a replica whose segments only rotten checkpoints named took itself for a member with an empty log
    5073, // the simulator wanted a replica to call itself rejoining that did not know yet that there are others
    5639, // the simulator took an entry for acknowledged that had been taken back, its leader's own write being under way
    5681, // the simulator wanted a copy of what retention had removed before a replica caught up
    6542, // the same as 1503
    6671, // the simulator took two answers in one frame for one
    7418, // the simulator left a node damaged without which the cluster had not begun
    9195, // entries of an older term that a new leader put in a newer one's place were taken for damage
    117,  // a bit of a batch's epoch, which no checksum covers, had all behind it taken for damage
];

#[test]
fn lives_that_once_went_wrong_go_well() {
    for seed in ONCE_WRONG {
        assert_eq!(run(*seed, Kind::Plain, None, false).violation, None, "seed {seed}");
    }
}

#[test]
fn deleting_a_replica_before_it_has_moved_is_caught() {
    is_caught_in(Kind::Moves, PlantedBug::DeleteBeforeMoved, 1);
}

#[test]
fn a_cluster_that_grows_loses_nothing() {
    let totals = sweep(1, 60, Kind::Grows, None, |report| {
        if let Some(violation) = &report.violation {
            println!("seed {}: {violation}", report.seed);
        }
    });
    assert_eq!(totals.failed, Vec::<u64>::new(), "replay with: pyralog-sim --cluster --grows --seed N");
    assert!(totals.acknowledged > 0, "{totals}");
}

#[test]
fn growth_that_once_went_wrong_goes_well() {
    for seed in [
        30,   // a majority of the nodes that the settings name was asked for, not of those that hold the metadata
        271, // a replica of the metadata that had lost who the others are, and was a member again, took them from its settings
        2697, // a node that was wanted later than others, and registered in between, was taken for one that had lost its replica
        272,  // a new node did not find the metadata's leader, which was new as well
    ] {
        assert_eq!(run(seed, Kind::Grows, None, false).violation, None, "seed {seed}");
    }
}

#[test]
fn a_blank_disk_that_votes_is_caught() {
    is_caught(PlantedBug::BlankDiskVotes, 1);
}

#[test]
fn a_sweep_finds_nothing_and_reaches_everything() {
    let totals = sweep(1, 100, Kind::Plain, None, |report| {
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
        ("damaged ranges repaired", totals.repaired),
        ("turns of the rate of recovery", totals.recovery_turns),
    ] {
        assert!(count > 0, "no {what} in {totals}");
    }
    for kind in FaultKind::ALL {
        assert!(totals.faults.of(*kind) > 0, "no {} in {totals}", kind.name());
    }
    for kind in ClusterFault::ALL {
        // Nodes that are out for good are rare, and upgrades and other shards are of other lives.
        let rare = matches!(kind, ClusterFault::TakenOut | ClusterFault::Refused);
        let of_others = [
            ClusterFault::Upgrade,
            ClusterFault::Downgrade,
            ClusterFault::OtherShards,
            ClusterFault::OtherShardsCut,
        ];
        let others = of_others.contains(kind);
        assert!(rare || others || totals.cluster_faults.of(*kind) > 0, "no {} in {totals}", kind.name());
    }
}

/// Lives with moves that found something, in the simulator or in the engine.
const MOVES_ONCE_WRONG: &[u64] = &[
    15, // a replay began before a former replica of the group was dropped, and dropped the one that came after it
    149, // the simulator looked for copies on nobody's disk when the leader had left in the same pass
    411, // a leader could not go on that had a replica on another shard of a node than the catalogue wanted there
    1449, // the same, and the catalogue was older than both
    1672, // room in the journal was counted for many entries as if they were one frame
    1761, // a produce under way at a leader whose replica moved away was told that its topic was deleted
    2155, // the simulator took for held what was laid down with the end of a replica
    1568, // a replica on a new place of its node was not heard by those who knew the old one
    751, // a recovery deleted files because of a commit that was in a volatile cache only, and lost its power
    2656, // the simulator looked for copies of a deleted topic's batches
    7590, // a replica that came again followed a leader of an older term than its predecessor, which counted on it
    20872, // a recovery looked for segments of a former replica in the one that came after it
    9291, // a checkpoint left out a replica whose end was not durable: a crash brought back half of it
    37, // a leader that heard of its commits late held entries without their batches, and had nothing to send to who lacked them
    2005, // a scrub read a segment that retention removed meanwhile, and called it damaged
    2450, // the simulator looked for copies with those who had answered and left since
    2872, // the simulator took an entry that its leader had taken back for one that was acknowledged: the same batch came again
    2769, // a replica was told where to begin by what its leader had sent the one before it, in a term it knew nothing of
];

#[test]
fn moves_that_once_went_wrong_go_well() {
    for seed in MOVES_ONCE_WRONG {
        assert_eq!(run(*seed, Kind::Moves, None, false).violation, None, "seed {seed}");
    }
}

#[test]
fn partitions_that_move_lose_nothing() {
    let totals = sweep(1, 60, Kind::Moves, None, |report| {
        if let Some(violation) = &report.violation {
            println!("seed {}: {violation}", report.seed);
        }
    });
    assert_eq!(totals.failed, Vec::<u64>::new(), "replay with: pyralog-sim --cluster --moves --seed N");
    assert!(totals.moved > 100 && totals.acknowledged > 0, "{totals}");
}

#[test]
fn nodes_that_are_upgraded_one_by_one_lose_nothing() {
    let totals = sweep(1, 60, Kind::Upgrades, None, |report| {
        if let Some(violation) = &report.violation {
            println!("seed {}: {violation}", report.seed);
        }
    });
    assert_eq!(totals.failed, Vec::<u64>::new(), "replay with: pyralog-sim --cluster --upgrades --seed N");
    let of = |kind| totals.cluster_faults.of(kind);
    assert!(of(ClusterFault::Upgrade) > 200 && of(ClusterFault::Downgrade) > 10, "{totals}");
    assert!(
        totals.moved > 50 && totals.acknowledged > 0,
        "the level is raised, and partitions move: {totals}"
    );
}

#[test]
fn leaving_entries_behind_when_partitions_go_to_other_shards_is_caught() {
    is_caught_in(Kind::Resizes, PlantedBug::LeaveEntriesBehind, 1);
}

/// Lives with upgrades that found something.
const UPGRADES_ONCE_WRONG: &[u64] = &[
    19, // the simulator compared replicas of the metadata before all nodes had registered what they are now
];

#[test]
fn upgrades_that_once_went_wrong_go_well() {
    for seed in UPGRADES_ONCE_WRONG {
        assert_eq!(run(*seed, Kind::Upgrades, None, false).violation, None, "seed {seed}");
    }
}

/// Lives with other numbers of replicas that found something.
const RESIZES_ONCE_WRONG: &[u64] = &[
    106, // the simulator did not count who was a voter when a batch was committed, and none when it was acknowledged
    2292, // the simulator looked for copies of a topic that was deleted, of which the leader had not heard
];

#[test]
fn lives_with_other_numbers_of_replicas_that_once_went_wrong_go_well() {
    for seed in RESIZES_ONCE_WRONG {
        // From before nodes came with other numbers of shards.
        let life = run_as(*seed, Kind::Resizes, None, false, |config| config.reshards = false);
        assert_eq!(life.violation, None, "seed {seed}");
    }
}

/// Lives with other numbers of shards that found something.
const RESHARDS_ONCE_WRONG: &[u64] = &[
    120, // a node went to fewer shards as its own copy of the metadata knew of no partition, and the cluster could not take it below level 2
];

#[test]
fn lives_with_other_numbers_of_shards_that_once_went_wrong_go_well() {
    for seed in RESHARDS_ONCE_WRONG {
        assert_eq!(run(*seed, Kind::Resizes, None, false).violation, None, "seed {seed}");
    }
}

#[test]
fn topics_that_get_more_replicas_and_fewer_lose_nothing() {
    let totals = sweep(1, 60, Kind::Resizes, None, |report| {
        if let Some(violation) = &report.violation {
            println!("seed {}: {violation}", report.seed);
        }
    });
    assert_eq!(totals.failed, Vec::<u64>::new(), "replay with: pyralog-sim --cluster --resizes --seed N");
    assert!(totals.moved > 100 && totals.acknowledged > 0, "{totals}");
    let of = |kind| totals.cluster_faults.of(kind);
    let (other, cut) = (of(ClusterFault::OtherShards), of(ClusterFault::OtherShardsCut));
    assert!(other > 60 && cut > 10, "{other} times with other shards, {cut} cut short: {totals}");
}

/// Lives with partitions of one replica that found something.
const SINGLES_ONCE_WRONG: &[u64] = &[
    7993, // an answer that came after its link had broken was the last one that a catch-up waited for
    6174, // the same
    158, // the simulator asked for as many copies as the catalogue did, of a group that had fewer voters already
];

#[test]
fn lives_with_one_replica_that_once_went_wrong_go_well() {
    for seed in SINGLES_ONCE_WRONG {
        assert_eq!(run(*seed, Kind::Singles, None, false).violation, None, "seed {seed}");
    }
}

#[test]
fn topics_with_one_replica_get_more_and_lose_nothing() {
    let totals = sweep(1, 60, Kind::Singles, None, |report| {
        if let Some(violation) = &report.violation {
            println!("seed {}: {violation}", report.seed);
        }
    });
    assert_eq!(totals.failed, Vec::<u64>::new(), "replay with: pyralog-sim --cluster --singles --seed N");
    assert!(totals.moved > 100 && totals.acknowledged > 0, "{totals}");
}

/// Three lives of a hundred go round their journals.
#[test]
fn lives_that_go_round_their_journals_are_reached_too() {
    let totals = sweep(801, 60, Kind::Plain, None, |_| {});
    assert_eq!(totals.failed, Vec::<u64>::new(), "replay with: pyralog-sim --cluster --seed N");
    assert!(totals.recycled > 0, "no journal file begun again in {totals}");
}

#[test]
fn a_seed_replays_to_the_last_event() {
    for seed in 100..104 {
        let (first, second) = (run(seed, Kind::Plain, None, true), run(seed, Kind::Plain, None, true));
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
        for (line, (one, other)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(one, other, "seed {seed}, line {line}");
        }
        assert_eq!(first.events, second.events);
    }
}
