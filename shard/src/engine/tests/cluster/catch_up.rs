//! Catch-ups that are disturbed.

use super::*;

/// The link breaks again and again while a blank replica is brought up to date: it goes on from where it was.
#[test]
fn a_catch_up_goes_on_where_its_link_broke() {
    let mut world = World::new(5, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    world.values_bytes = 200_000;
    while world.acknowledged.len() < 40 {
        if let Some(leader) = world.leader(group).filter(|_| world.sent.is_empty()) {
            world.produce(leader, group);
        }
        world.go_on();
    }
    world.heal();
    let state = |world: &World, id: u32| {
        world.nodes[id as usize - 1].engine.as_ref().and_then(|engine| engine.partition(group))
    };
    while world.ids().any(|id| state(&world, id).is_none_or(|state| state.flushed < state.log_end)) {
        world.go_on();
    }
    // Nothing of it in memory, so that it comes from segments.
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    let leader = world.leader(group).unwrap();
    let blank = leader % 3 + 1;
    let size = state(&world, leader).unwrap().segment_bytes;
    world.lose_disk(blank);
    world.start(blank);
    let fetched = |world: &World| {
        let engine = world.nodes[blank as usize - 1].engine.as_ref().unwrap();
        engine.status().counters.replication.catch_up_bytes
    };
    let began_us = world.now.monotonic_us;
    let (mut breaks, mut seen) = (0, 0);
    while breaks < 4 {
        world.go_on();
        if fetched(&world) > seen {
            seen = fetched(&world);
            // What it asks for next is lost.
            while !world.node(blank).io.is_empty() {
                world.io(blank);
            }
            world.unlink(leader, blank);
            breaks += 1;
        }
    }
    assert!(seen < size, "{seen} bytes of {size} came before the last break");
    world.heal();
    // The metadata, too, were fetched.
    assert!(fetched(&world) < size + 10_000, "{} bytes were fetched of a log of {size}", fetched(&world));
    let took_us = world.now.monotonic_us - began_us;
    assert!(took_us < 3_000_000, "an answer that never comes was waited for: {took_us} us");
    world.check();
}
