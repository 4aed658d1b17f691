//! The rate at which replicas are brought up to date.

use super::*;

/// A cluster whose topic has so much in segments only, and an empty node that has just been started. Returns that one and the
/// bytes.
pub(super) fn with_a_blank_node(seed: u64, partitions: u32, rate: Option<u64>) -> (World, u32, u64) {
    let mut world = World::new(seed, 3, partitions, 2);
    world.config.recovery_bytes_per_s = rate;
    world.heal();
    world.values_bytes = 100_000;
    let groups = world.groups.clone();
    for group in groups {
        world.produce_in_group(group, 90 / partitions as usize);
    }
    world.heal();
    let all_in_segments = |world: &World| {
        let states = world.nodes.iter().flat_map(|node| node.engine.as_ref().map(Engine::partitions));
        states.flatten().all(|(_, state)| state.flushed == state.log_end)
    };
    world.go_on_until("everything is in segments", all_in_segments);
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    let leader = world.leader(world.groups[0]).unwrap();
    let blank = leader % 3 + 1;
    let partitions = world.nodes[leader as usize - 1].engine.as_ref().unwrap().partitions();
    let bytes = partitions.iter().map(|(_, state)| state.segment_bytes).sum();
    world.lose_disk(blank);
    world.start(blank);
    (world, blank, bytes)
}

fn counters(world: &World, id: u32) -> crate::engine::ReplicationCounters {
    world.nodes[id as usize - 1].engine.as_ref().unwrap().status().counters.replication
}

#[test]
fn a_catch_up_keeps_to_the_rate() {
    const RATE: u64 = 4 << 20;
    let (mut world, blank, bytes) = with_a_blank_node(11, 2, Some(RATE));
    let began_us = world.now.monotonic_us;
    let mut seen = 0;
    while counters(&world, blank).catch_ups_done < 3 {
        world.go_on();
        let got = counters(&world, blank).recovery_bytes;
        let may = (world.now.monotonic_us - began_us) * RATE / 1_000_000;
        // What a budget that was not used for a while gives at once, and a batch more than was asked for.
        assert!(got <= may + RATE / 100 + RECOVERY_TURN_BYTES as u64 + 200_000, "{got} bytes, {may} by then");
        seen = got.max(seen);
    }
    assert!(seen >= bytes, "{seen} of {bytes} bytes");
    let (took_us, least_us) = (world.now.monotonic_us - began_us, bytes * 1_000_000 / RATE);
    assert!(took_us < least_us * 11 / 10 + 100_000, "the rate is not used: {took_us} of {least_us} us");
    assert!(counters(&world, blank).recovery_waited_us > least_us / 2);
    world.heal();
    world.check();
}

#[test]
fn without_a_limit_nothing_is_waited_for() {
    let (mut world, blank, bytes) = with_a_blank_node(12, 2, None);
    world.go_on_until("it has caught up", |world| counters(world, blank).catch_ups_done >= 3);
    let counters = counters(&world, blank);
    assert!(counters.recovery_bytes >= bytes, "{counters:?}");
    assert_eq!(counters.recovery_waited_us, 0);
    world.heal();
    world.check();
}

/// Replicas of a shard take turns: none is complete long before the others have begun.
#[test]
fn replicas_that_catch_up_take_turns() {
    let (mut world, blank, bytes) = with_a_blank_node(13, 4, Some(2 << 20));
    let mut groups = BTreeSet::new();
    while groups.len() < 4 {
        world.go_on();
        groups.extend(world.node(blank).disk.files.keys().filter_map(|file| match file {
            FileId::Segment(group, _) if *group != GroupId::METADATA => Some(*group),
            _ => None,
        }));
    }
    let came = counters(&world, blank).recovery_bytes;
    assert!(came < bytes / 2, "{came} of {bytes} bytes, and only now all have begun");
    world.heal();
    world.check();
}
