//! What becomes of clients and replicas that need what damage has taken from a node.

use super::*;

/// Its journal hides what it has promised, and it leads nothing: whoever wants to write has to ask another one.
#[test]
fn a_replica_that_lost_what_it_promised_sends_writers_to_the_others() {
    let mut sent_on = 0;
    for seed in 0..10 {
        let mut world = World::new(seed, 3, 1, 2);
        world.heal();
        let group = world.groups[0];
        world.damage_journal(2);
        world.start(2);
        for _ in 0..200 {
            world.admin += 1;
            let correlation_id = world.admin;
            let batch = batch(world.now.wall_ms, None, &[b"to whoever leads"]);
            let produce = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch: &batch };
            let request = Request::Produce(produce);
            world.event(2, Event::Request { conn: ConnId(1), correlation_id, request });
            match world.answer.take() {
                Some(Response::Error(error)) => {
                    assert!(error.code.retriable(), "seed {seed}: {error:?}");
                    sent_on += usize::from(error.code == ErrorCode::NotLeader);
                }
                other => panic!("seed {seed}: node 2 leads nothing and answers {other:?}"),
            }
            world.io(2);
        }
    }
    assert!(sent_on > 0, "nobody was sent on");
}

/// The leader's segments are rotten where a new replica needs them.
#[test]
fn what_the_leader_can_not_read_comes_from_another_replica() {
    let mut world = World::new(5, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    for _ in 0..50 {
        let leader = world.leader(group).unwrap();
        world.produce(leader, group);
        world.go_on();
    }
    world.heal();
    let flushed = |world: &World| {
        let mut states = world.nodes.iter().filter_map(|node| node.engine.as_ref()?.partition(group));
        states.all(|state| state.flushed == state.log_end)
    };
    while !flushed(&world) {
        world.go_on();
    }
    // Without anything of it in memory.
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    // Where it should be led, so that it stays there.
    let leader = world.node(1).catalog.as_ref().unwrap().replicas(group).next().unwrap().node;
    while world.leader(group) != Some(leader) {
        world.go_on();
    }
    let last = leader % 3 + 1;
    world.lose_disk(last);
    world.node(leader).lossy = true;
    for (file, bytes) in &mut world.node(leader).disk.files {
        if matches!(file, FileId::Segment(of, _) if *of == group) && bytes.len() > 70 {
            bytes[70] ^= 1;
        }
    }
    world.heal();
    assert_eq!(world.leader(group), Some(leader));
    let held = world.read(last, group);
    let acknowledged = world.acknowledged.keys().filter(|(of, _)| *of == group);
    assert!(acknowledged.clone().count() > 0);
    assert!(acknowledged.clone().all(|(_, offset)| held.contains_key(offset)), "some of it is missing");
}
