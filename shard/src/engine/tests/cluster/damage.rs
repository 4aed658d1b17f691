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

fn flush_all(world: &mut World, group: GroupId) {
    let flushed = |node: &Node| {
        let state = node.engine.as_ref().and_then(|engine| engine.partition(group));
        state.is_none_or(|state| state.flushed == state.log_end)
    };
    while !world.nodes.iter().all(flushed) {
        world.go_on();
    }
}

impl World {
    /// Has so many batches more acknowledged, one after the other.
    pub(super) fn produce_in_group(&mut self, group: GroupId, batches: usize) {
        let wanted = self.acknowledged.len() + batches;
        for _ in 0..100_000 {
            if self.acknowledged.len() >= wanted {
                return;
            }
            if let Some(leader) = self.leader(group).filter(|_| self.sent.is_empty()) {
                self.produce(leader, group);
            }
            self.go_on();
        }
        panic!("{group} takes no writes");
    }

    /// A node dies, both its checkpoints rot, and it comes back.
    fn come_back_without_checkpoints(&mut self, id: u32) {
        self.crash(id);
        let node = self.node(id);
        (node.settled, node.lossy) = (false, true);
        node.voted.clear();
        let mut rotten = 0;
        for (file, bytes) in &mut node.disk.files {
            if matches!(file, FileId::Checkpoint(_)) {
                bytes[40] ^= 1;
                rotten += 1;
            }
        }
        assert_eq!(rotten, 2);
        self.start(id);
    }
}

/// What came from the segments of others is not in a member's journal, but the journal says that it was there.
#[test]
fn a_member_that_caught_up_and_loses_its_checkpoints_does_not_vote() {
    let mut world = World::new(5, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    world.produce_in_group(group, 50);
    flush_all(&mut world, group);
    let behind = world.leader(group).unwrap() % 3 + 1;
    world.crash(behind);
    world.produce_in_group(group, 50);
    flush_all(&mut world, group);
    let end = world.acknowledged.len() as i64;
    for id in world.ids().filter(|id| *id != behind) {
        world.crash(id);
    }
    world.heal();
    let status = world.node(behind).engine.as_ref().unwrap().status();
    assert!(status.counters.replication.catch_ups_done > 0);
    world.come_back_without_checkpoints(behind);
    let state = world.node(behind).engine.as_ref().unwrap().partition(group).unwrap();
    assert!(state.log_end < end, "only a checkpoint names its segments: {state:?}");
    assert_ne!(state.health, PartitionHealth::Online, "it votes with what is left: {state:?}");
    world.heal();
    world.check();
}
