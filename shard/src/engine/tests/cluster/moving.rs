//! Lives in which partitions move between nodes.

use pyralog_net::message::ReassignPartitionRequest;

use super::*;

/// Asks for a partition's replicas to be somewhere, or where they are.
fn reassign(world: &mut World) {
    let partition = world.rng.below(world.groups.len()) as u32;
    let mut nodes: Vec<u32> = world.ids().collect();
    while nodes.len() > usize::from(world.quorums.replication_factor) {
        nodes.swap_remove(world.rng.below(nodes.len()));
    }
    let first = world.rng.below(nodes.len());
    nodes.swap(0, first);
    if world.rng.chance(150) {
        nodes.clear();
    }
    move_to(world, partition, nodes);
}

fn move_to(world: &mut World, partition: u32, nodes: Vec<u32>) {
    let request = ReassignPartitionRequest { topic: "replicated", partition, nodes };
    world.administer(Request::ReassignPartition(request));
}

fn moving_life(seed: u64, steps: usize, change: impl Fn(&mut EngineConfig)) -> World {
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
