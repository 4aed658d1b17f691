//! Topics that go while a replica's disk stands still.

use super::*;

impl World {
    /// Goes on with a node whose journal stands still.
    fn go_on_with_stalled_journal(&mut self, id: u32) {
        for other in self.ids().filter(|other| *other != id) {
            while !self.node(other).io.is_empty() {
                self.io(other);
            }
        }
        self.run_io(id, |op| !matches!(op, IoOp::JournalWrite { .. }));
        self.deliver();
        if self.network.values().all(VecDeque::is_empty) {
            self.tick(5_000);
        }
    }

    /// Delivers what is on its way from one node to another.
    fn deliver_all(&mut self, from: u32, to: u32) {
        while let Some((control, payload)) = self.network.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
            self.event(to, Event::PeerFrame { from: peer(from), control: &control, payload: &payload });
        }
    }

    /// Produces, one batch after the other, until so many records of the group are committed everywhere.
    fn produce_until(&mut self, group: GroupId, records: i64) {
        let held = |node: &Node| node.engine.as_ref()?.partition(group).map(|state| state.high_watermark);
        for _ in 0..40_000 {
            if self.nodes.iter().all(|node| held(node) >= Some(records)) {
                return;
            }
            if let Some(leader) = self.leader(group).filter(|_| self.sent.is_empty()) {
                self.produce(leader, group);
            }
            self.go_on();
        }
        panic!("{group} takes no writes");
    }

    /// The group of a topic's only partition, as a node knows it.
    fn group_of(&self, id: u32, topic: &str) -> Option<GroupId> {
        let catalog = self.nodes[id as usize - 1].catalog.as_ref()?;
        catalog.topics.values().find(|known| known.spec.name == topic).map(|known| GroupId::new(known.id, 0))
    }
}

/// A topic on its way out whose end is not in the journal for good is in the checkpoints: after a crash it is there as it was, and
/// nothing of it is damage.
#[test]
fn a_topic_that_goes_while_the_journal_stalls_leaves_no_damage() {
    let mut world = World::new(12, 3, 1, 2);
    world.heal();
    world.answer_to(|world| world.create_topic("leaving", 1));
    world.heal();
    let group = world.group_of(1, "leaving").unwrap();
    // Some of its entries are in segments, before the place where a replay begins.
    world.produce_until(group, 20);
    let (controller, leader) = (world.leader(GroupId::METADATA).unwrap(), world.leader(group).unwrap());
    let follower = world.ids().find(|id| ![controller, leader].contains(id)).unwrap();
    let state = |world: &World, group| {
        world.nodes[follower as usize - 1].engine.as_ref().unwrap().partition(group).unwrap()
    };
    while state(&world, group).flushed < state(&world, group).log_end {
        world.go_on();
    }
    world.heal();
    // The follower has the command in its journal that deletes the topic, but does not hear that it is committed.
    let before = state(&world, GroupId::METADATA).log_end;
    world.administer(Request::DeleteTopic(DeleteTopicRequest { name: "leaving" }));
    world.deliver_all(controller, follower);
    assert!(state(&world, GroupId::METADATA).log_end > before);
    while !world.node(follower).io.is_empty() {
        world.io(follower);
    }
    // Some more batches come; its disk writes them, and never says so.
    let before = state(&world, group).log_end;
    for _ in 0..5 {
        world.produce(leader, group);
    }
    world.deliver_all(leader, follower);
    assert!(state(&world, group).log_end > before);
    let checkpoints = |world: &World| {
        world.nodes[follower as usize - 1].engine.as_ref().unwrap().status().counters.checkpoints
    };
    let mut made = None;
    for _ in 0..40_000 {
        world.go_on_with_stalled_journal(follower);
        if world.group_of(follower, "leaving").is_none() {
            // One may have been under way.
            let count = checkpoints(&world);
            assert!(
                count <= *made.get_or_insert(count) + 1,
                "a checkpoint without the topic, whose end is not durable"
            );
        }
    }
    assert!(made.is_some(), "it is gone");
    // The node dies: what it has handed to its disk is there, and what waited behind that is not.
    let node = world.node(follower);
    for (_, op) in std::mem::take(&mut node.io) {
        node.disk.run(op).unwrap();
    }
    world.crash(follower);
    world.start(follower);
    let status = world.node(follower).engine.as_ref().unwrap().status();
    assert_eq!(status.damaged_partitions, 0);
    world.heal();
    world.check();
}
