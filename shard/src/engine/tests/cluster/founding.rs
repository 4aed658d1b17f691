//! Partitions with one replica that get more, move, and come back to one.

use pyralog_replication::metadata::Command;

use super::moving::{move_to, reassign, resize};
use super::*;

fn produce(world: &mut World, group: GroupId, count: usize) {
    for _ in 0..count {
        let leader = world.leader(group).unwrap();
        world.produce(leader, group);
        world.settle_some();
    }
}

impl World {
    fn settle_some(&mut self) {
        (0..200).for_each(|_| self.go_on());
    }

    fn nodes_of(&self, group: GroupId) -> Vec<u32> {
        self.newest().unwrap().replicas(group).map(|replica| replica.node).collect()
    }

    fn crash_all(&mut self) {
        self.ids().for_each(|id| self.crash(id));
    }

    /// Moves the first partition, and goes on until it is there.
    fn moves_to(&mut self, to: &[u32]) {
        let answer = self.answer_to(|world| resize(world, to.len() as u8));
        assert_eq!(answer, Response::AlterTopic);
        let answer = self.answer_to(|world| move_to(world, 0, to.to_vec()));
        assert_eq!(answer, Response::ReassignPartition);
        self.heal();
        assert_eq!(self.nodes_of(self.groups[0]), to);
    }
}

#[test]
fn the_only_replica_gets_others_and_is_left_alone_again() {
    for max_buffer_time_us in [300_000, 3_600_000_000] {
        let mut world = World::with_copies(21, 5, 1, 1, 1);
        // With the long one nothing is in segments when the group begins.
        world.config.max_buffer_time_us = max_buffer_time_us;
        world.crash_all();
        world.heal();
        let group = world.groups[0];
        let first = world.nodes_of(group)[0];
        let others: Vec<u32> = world.ids().filter(|id| *id != first).collect();
        let mut produced = 0;
        // More, from one of them to another, back to one that was there before, and more again.
        let ways = [
            vec![first, others[0], others[1]],
            vec![others[0]],
            vec![others[2]],
            vec![first],
            vec![others[3], first],
        ];
        for to in ways {
            produce(&mut world, group, 20);
            produced += 20;
            world.moves_to(&to);
            world.check();
            world.crash_all();
            world.heal();
            assert_eq!(world.nodes_of(group), to);
            world.check();
        }
        assert_eq!(world.acknowledged.len(), produced);
    }
}

/// What the only replica has acknowledged is not in segments yet when it becomes a group, and its node dies at any moment then.
#[test]
fn who_dies_while_the_group_begins_has_lost_nothing() {
    for moment in 0..60 {
        let mut world = World::with_copies(22, 3, 1, 1, 1);
        world.config.max_buffer_time_us = 3_600_000_000;
        world.crash_all();
        world.heal();
        let group = world.groups[0];
        let first = world.nodes_of(group)[0];
        produce(&mut world, group, 5);
        assert_eq!(world.acknowledged.len(), 5);
        let to = vec![first % 3 + 1, first];
        assert_eq!(world.answer_to(|world| resize(world, 2)), Response::AlterTopic);
        let moved = to.clone();
        let answer = world.answer_to(|world| move_to(world, 0, moved.clone()));
        assert_eq!(answer, Response::ReassignPartition);
        for _ in 0..moment {
            let id = 1 + world.rng.below(3) as u32;
            world.io(id);
            world.deliver();
        }
        world.crash(first);
        world.heal();
        world.check();
        assert_eq!(world.nodes_of(group), to, "moment {moment}");
        assert_eq!(world.acknowledged.len(), 5);
    }
}

#[test]
fn a_producer_of_the_only_replica_goes_on_when_it_has_others() {
    let mut world = World::with_copies(23, 3, 1, 1, 1);
    world.heal();
    let group = world.groups[0];
    let first = world.nodes_of(group)[0];
    for round in 0..30 {
        world.produce_in_session(0, true);
        if round == 10 {
            assert_eq!(world.answer_to(|world| resize(world, 3)), Response::AlterTopic);
            let others = [first % 3 + 1, (first + 1) % 3 + 1, first];
            let answer = world.answer_to(|world| move_to(world, 0, others.to_vec()));
            assert_eq!(answer, Response::ReassignPartition);
        }
        world.settle_some();
    }
    world.heal();
    world.check();
    assert_eq!(world.acknowledged.len() as i32, world.sessions[0].next_sequence);
    assert!(world.sessions[0].next_sequence > 20);
}

/// A life in which topics have one replica and more.
fn life_alone(seed: u64, steps: usize) -> World {
    let mut rng = Rng(seed ^ 0xa10e);
    let nodes = 3 + rng.below(3) as u32;
    let mut world = World::with_copies(seed, nodes, 1, 1 + rng.below(3) as u32, 1);
    world.config.max_buffer_time_us = [20_000, 300_000, 10_000_000][rng.below(3)];
    let faults_per_mille = [0, 2, 5, 20][rng.below(4)];
    let moves_per_mille = [1, 3, 10][rng.below(3)];
    world.values_bytes = [10, 40, 3_000, 60_000][rng.below(4)];
    for _ in 0..steps {
        world.step();
        if rng.chance(faults_per_mille) {
            world.fault();
        }
        if rng.chance(moves_per_mille) {
            if rng.chance(400) {
                resize(&mut world, 1 + rng.below(nodes as usize) as u8);
            }
            reassign(&mut world);
        }
    }
    world.heal();
    world.check();
    world
}

#[test]
fn partitions_with_one_replica_get_more_and_lose_nothing() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (lives, first) = (number("PYRALOG_MOVING_LIVES", 40), number("PYRALOG_MOVING_FIRST", 1));
    let (mut acknowledged, mut left, mut sizes) = (0, 0, [0; 6]);
    for seed in first..first + lives {
        let lived = std::panic::catch_unwind(|| life_alone(seed, 6_000));
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
        assert!(sizes[1..4].iter().all(|count| *count > 0), "{sizes:?}");
    }
}

/// Everything before the first entry of a group is committed: nothing may be there that the disk does not have yet.
#[test]
fn a_group_begins_when_what_is_before_it_is_durable() {
    let mut world = World::with_copies(24, 3, 1, 1, 1);
    world.heal();
    let group = world.groups[0];
    let holder = world.leader(group).unwrap();
    world.produce(holder, group);
    let state =
        |world: &World| world.nodes[holder as usize - 1].engine.as_ref().unwrap().partition(group).unwrap();
    assert_eq!((state(&world).high_watermark, state(&world).log_end), (0, 1), "its write is on its way");
    let mut catalog = Catalog::clone(world.newest().unwrap());
    let to = [holder, holder % 3 + 1].map(|node| catalog.slots_on(group, &[node])[0]).to_vec();
    let alter = Command::AlterTopic {
        topic: group.topic.0,
        replication_factor: 2,
        quorums: (2, 2, 1),
        retention_bytes: -1,
        retention_ms: -1,
        added: Vec::new(),
    };
    catalog.apply(&alter).unwrap();
    catalog.apply(&Command::Reassign { topic: group.topic.0, partition: 0, to }).unwrap();
    world.event(holder, Event::CatalogPublished { catalog: Arc::new(catalog) });
    assert_eq!((state(&world).high_watermark, state(&world).log_end), (0, 1));
    // Nothing more is taken meanwhile.
    world.produce(holder, group);
    assert_eq!(state(&world).log_end, 1);
    let mut writes = 0;
    while !world.node(holder).io.is_empty() {
        world.io(holder);
        writes += 1;
        assert!(state(&world).high_watermark <= 1 && writes < 20);
    }
    assert_eq!((state(&world).high_watermark, state(&world).epoch), (1, 2), "the group has begun");
    assert_eq!(world.acknowledged.len(), 1);
}
