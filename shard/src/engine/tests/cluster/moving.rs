//! Lives in which partitions move between nodes.

use pyralog_net::message::{AlterTopicRequest, ReassignPartitionRequest};

use super::*;

/// Asks for a partition's replicas to be somewhere, or where they are.
pub(super) fn reassign(world: &mut World) {
    let partition = world.rng.below(world.groups.len()) as u32;
    let mut nodes: Vec<u32> = world.ids().collect();
    let group = world.groups[partition as usize];
    let topic = world.newest().and_then(|newest| newest.topics.get(&group.topic.0).cloned());
    let copies = topic.map_or(world.quorums.replication_factor, |topic| topic.spec.replication_factor);
    while nodes.len() > usize::from(copies) {
        nodes.swap_remove(world.rng.below(nodes.len()));
    }
    let first = world.rng.below(nodes.len());
    nodes.swap(0, first);
    if world.rng.chance(150) {
        nodes.clear();
    }
    move_to(world, partition, nodes);
}

/// Has the topic have so many replicas of each partition.
pub(super) fn resize(world: &mut World, copies: u8) {
    let (retention_bytes, retention_ms) = (AlterTopicRequest::AS_IT_IS, AlterTopicRequest::AS_IT_IS);
    let (name, partitions, quorums) = ("replicated", 0, Quorums::of(copies));
    let request = AlterTopicRequest { name, partitions, quorums, retention_bytes, retention_ms };
    world.administer(Request::AlterTopic(request));
}

pub(super) fn move_to(world: &mut World, partition: u32, nodes: Vec<u32>) {
    let request = ReassignPartitionRequest { topic: "replicated", partition, nodes };
    world.administer(Request::ReassignPartition(request));
}

fn moving_life(seed: u64, steps: usize, change: impl Fn(&mut EngineConfig)) -> World {
    resizing_life(seed, steps, 0, change)
}

/// One in which the topic has other numbers of replicas from time to time.
fn resizing_life(
    seed: u64,
    steps: usize,
    resizes_per_mille: usize,
    change: impl Fn(&mut EngineConfig),
) -> World {
    let mut rng = Rng(seed ^ 0x30e5);
    let nodes = 4 + rng.below(2) as u32;
    let write_quorum = 2 + u8::from(rng.chance(150));
    let mut world = World::with_copies(seed, nodes, 3, 1 + rng.below(3) as u32, write_quorum);
    change(&mut world.config);
    let faults_per_mille = [0, 2, 5, 20][rng.below(4)];
    let moves_per_mille = [1, 3, 10][rng.below(3)];
    world.values_bytes = [10, 40, 3_000, 60_000][rng.below(4)];
    for _ in 0..steps {
        world.step();
        if rng.chance(faults_per_mille) {
            world.fault();
        }
        if rng.chance(moves_per_mille) {
            if resizes_per_mille > 0 && rng.chance(resizes_per_mille) {
                // With two, no disk could be spared.
                resize(&mut world, 3 + rng.below(nodes as usize - 2) as u8);
            }
            reassign(&mut world);
        }
    }
    world.heal();
    world.check();
    world
}

/// Lives that once went wrong.
const ONCE_WRONG: &[u64] = &[];

#[test]
fn lives_with_moves_that_once_went_wrong_go_well() {
    for seed in ONCE_WRONG {
        std::panic::catch_unwind(|| moving_life(*seed, 6_000, |_| {}))
            .unwrap_or_else(|_| panic!("seed {seed}"));
    }
}

#[test]
fn partitions_move_and_lose_nothing() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (lives, first) = (number("PYRALOG_MOVING_LIVES", 40), number("PYRALOG_MOVING_FIRST", 1));
    let (mut acknowledged, mut left, mut disks, mut damaged) = (0, 0, 0, 0);
    for seed in first..first + lives {
        let lived = std::panic::catch_unwind(|| moving_life(seed, 6_000, |_| {}));
        let world = lived.unwrap_or_else(|_| panic!("seed {seed}"));
        acknowledged += world.acknowledged.len();
        left += world.left;
        disks += world.disks_lost;
        damaged += world.damaged;
    }
    println!(
        "{lives} lives, {acknowledged} acknowledged, {left} replicas have left their nodes, {disks} disks lost, {damaged} damaged"
    );
    if lives >= 40 {
        assert!(acknowledged > 50 * lives as usize && left > lives as usize, "{acknowledged} {left}");
    }
}

#[test]
fn topics_get_other_numbers_of_replicas_and_lose_nothing() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (lives, first) = (number("PYRALOG_MOVING_LIVES", 40), number("PYRALOG_MOVING_FIRST", 1));
    let (mut acknowledged, mut left, mut sizes) = (0, 0, [0; 6]);
    for seed in first..first + lives {
        let lived = std::panic::catch_unwind(|| resizing_life(seed, 6_000, 400, |_| {}));
        let world = lived.unwrap_or_else(|_| panic!("seed {seed}"));
        acknowledged += world.acknowledged.len();
        left += world.left;
        let newest = world.newest().unwrap();
        world.groups.iter().for_each(|group| sizes[newest.replicas(*group).count()] += 1);
    }
    println!(
        "{lives} lives, {acknowledged} acknowledged, {left} replicas have left their nodes, {sizes:?} partitions with so many at the end"
    );
    if lives >= 40 {
        assert!(acknowledged > 50 * lives as usize && left > lives as usize, "{acknowledged} {left}");
        assert!(sizes[3..].iter().all(|count| *count > 0), "{sizes:?}");
    }
}

#[test]
fn a_partition_gets_more_replicas_and_fewer() {
    let mut world = World::with_copies(12, 5, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    let mut produced = 0;
    for (copies, to) in [(5, vec![4, 1, 2, 3, 5]), (2, vec![2, 5]), (4, vec![5, 2, 1, 3])] {
        let answer = world.answer_to(|world| resize(world, copies));
        assert_eq!(answer, Response::AlterTopic);
        for _ in 0..20 {
            let leader = world.leader(group).unwrap();
            world.produce(leader, group);
            world.settle_leaders();
            produced += 1;
        }
        let answer = world.answer_to(|world| move_to(world, 0, to.clone()));
        assert_eq!(answer, Response::ReassignPartition);
        world.heal();
        let now: Vec<u32> = world.newest().unwrap().replicas(group).map(|replica| replica.node).collect();
        assert_eq!(now, to);
        world.check();
    }
    assert_eq!((world.left, world.acknowledged.len()), (3, produced), "three have left when it had two");
}

#[test]
fn a_partition_moves_to_other_nodes_and_back() {
    let mut world = World::with_copies(11, 5, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    let before = world.newest().unwrap().replicas(group).map(|replica| replica.node).collect::<Vec<_>>();
    let others: Vec<u32> = world.ids().filter(|id| !before.contains(id)).collect();
    for _ in 0..40 {
        let leader = world.leader(group).unwrap();
        world.produce(leader, group);
        world.settle_leaders();
    }
    for to in [vec![others[0], others[1], before[0]], before.clone()] {
        world.answer = None;
        let wanted = to.clone();
        let answer = world.answer_to(|world| move_to(world, 0, wanted.clone()));
        assert_eq!(answer, Response::ReassignPartition);
        assert_eq!(world.newest().unwrap().moves.len(), 1);
        world.heal();
        let now: Vec<u32> = world.newest().unwrap().replicas(group).map(|replica| replica.node).collect();
        assert_eq!(now, to);
        world.check();
    }
    assert_eq!(world.left, 4, "two replicas have left each time");
    assert_eq!(world.acknowledged.len(), 40);
}
