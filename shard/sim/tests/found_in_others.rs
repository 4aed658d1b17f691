//! What Jepsen's tests found in other systems, as lives of clusters in which only that goes wrong, and often. Each is run with
//! a bug as well that such circumstances bring to light: a test that sees nothing proves nothing.

use pyralog_sim::PlantedBug;
use pyralog_sim::cluster::config::ClusterConfig;
use pyralog_sim::cluster::faults::{ClusterFault, ClusterFaultCounts, Disks, Troubles};
use pyralog_sim::cluster::{Kind, run_as};
use pyralog_sim::faults::{FaultCounts, FaultKind, FaultPlan};

/// Lives of each kind.
const LIVES: u64 = 20;

/// What such lives came to, none of them with a violation.
#[derive(Default)]
struct Came {
    acknowledged: u64,
    elections: u64,
    cluster: ClusterFaultCounts,
    nodes: FaultCounts,
}

/// No life of this kind goes wrong, and with the bug one does.
fn hold(bug: PlantedBug, change: fn(&mut ClusterConfig)) -> Came {
    let mut came = Came::default();
    for seed in 1..=LIVES {
        let report = run_as(seed, Kind::Plain, None, false, change);
        assert_eq!(report.violation, None, "seed {seed}");
        came.acknowledged += report.acknowledged;
        came.elections += report.elections;
        came.cluster.merge(&report.cluster_faults);
        came.nodes.merge(&report.faults);
    }
    let caught = (1..=LIVES).find_map(|seed| run_as(seed, Kind::Plain, Some(bug), false, change).violation);
    assert!(caught.is_some(), "{bug:?} shows in none of {LIVES} such lives");
    assert!(came.acknowledged > 20 * LIVES, "{} acknowledged", came.acknowledged);
    println!(
        "{} acknowledged, {} elections | {} | {}; {bug:?}: {caught:?}",
        came.acknowledged, came.elections, came.cluster, came.nodes
    );
    came
}

/// Disks that lose what was not flushed, in whole or in part, and no more.
fn honest_disks() -> Disks {
    Disks { liars: Vec::new(), lying: FaultPlan::none(), honest: FaultPlan::none() }
}

#[test]
fn power_loss_of_all_nodes_right_after_acknowledgements_loses_none() {
    let came = hold(PlantedBug::AckBeforeQuorum, |config| {
        let (crash_every_us, power_cut_percent, down_us) = (300_000, 100, 300_000);
        config.troubles = Troubles { crash_every_us, power_cut_percent, down_us, ..Troubles::default() };
        config.disks = honest_disks();
    });
    let cuts = came.cluster.of(ClusterFault::PowerCut);
    assert!(cuts > LIVES && came.nodes.of(FaultKind::TornWrite) > 0, "{cuts} power cuts, {}", came.nodes);
}

#[test]
fn bits_that_flip_on_a_minority_lose_nothing() {
    let came = hold(PlantedBug::TruncateOnBadChecksum, |config| {
        let (crash_every_us, down_us) = (500_000, 100_000);
        config.troubles = Troubles { crash_every_us, down_us, ..Troubles::default() };
        let lying = FaultPlan { rot_every_us: 60_000, lies_left: 40, ..FaultPlan::none() };
        // One of three or five: a minority of whatever partition it holds.
        config.disks = Disks { liars: vec![config.nodes - 1], lying, ..honest_disks() };
        for topic in &mut config.topics {
            let majority = topic.quorums.replication_factor / 2 + 1;
            topic.quorums.write_quorum = majority;
            topic.quorums.min_insync_replicas = majority;
            topic.quorums.read_quorum = topic.quorums.replication_factor + 1 - majority;
        }
    });
    assert!(came.nodes.of(FaultKind::BitRot) > LIVES, "{}", came.nodes);
}

#[test]
fn crashes_and_pauses_never_make_two_leaders() {
    let came = hold(PlantedBug::VoteWithoutFlush, |config| {
        config.troubles = Troubles {
            crash_every_us: 1_000_000,
            down_us: 20_000,
            pause_every_us: 150_000,
            pause_us: 1_500_000,
            ..Troubles::default()
        };
        config.disks = honest_disks();
    });
    let (pauses, crashes) =
        (came.cluster.of(ClusterFault::Pause), came.cluster.of(ClusterFault::LeaderCrash));
    assert!(pauses > 10 * LIVES && crashes > LIVES / 2, "{pauses} pauses, {crashes} crashes of leaders");
    assert!(came.elections > 10 * LIVES, "{} elections", came.elections);
}
