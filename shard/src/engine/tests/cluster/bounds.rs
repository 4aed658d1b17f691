//! What a shard holds as long as nothing is committed: a leader whose followers are gone or stand still, a follower whose
//! disk does, and producers that never stop.

use pyralog_core::limits::{UNCOMMITTED_BYTES_PER_GROUP, WAITING_MESSAGES_PER_REPLICA};

use super::*;

/// Bytes of a value here.
const VALUE_BYTES: usize = 200_000;

/// A healed cluster of three with such a cache, and values that fill it. With an odd seed one replica in sync is enough.
fn healed(seed: u64, partitions: u32, cache_bytes: usize) -> World {
    let mut world = World::new(seed, 3, partitions, 2);
    world.config.cache_bytes = cache_bytes;
    for id in world.ids() {
        world.crash(id);
    }
    world.heal();
    world.settle_leaders();
    world.values_bytes = VALUE_BYTES;
    world
}

impl World {
    fn uncommitted_bytes(&self, id: u32) -> usize {
        let engine = self.nodes[id as usize - 1].engine.as_ref().unwrap();
        engine.status().uncommitted_bytes as usize
    }

    /// One produce, unless the node does not read it now. Its answer, if there is one at once.
    fn try_produce(&mut self, id: u32, group: GroupId) -> Option<Response> {
        let engine = self.nodes[id as usize - 1].engine.as_ref().unwrap();
        assert!(engine.accepts_produce(), "memory is short, and groups that do commit wait for it");
        let value = self.value(group);
        let batch = batch(self.now.wall_ms, None, &[&value]);
        self.admin += 1;
        let correlation_id = self.admin;
        let produce = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch: &batch };
        let request = Request::Produce(produce);
        self.event(id, Event::Request { conn: ConnId(1), correlation_id, request });
        self.answer.take()
    }

    /// Runs the disk of one node until it is idle.
    fn run_disk(&mut self, id: u32) {
        while !self.node(id).io.is_empty() {
            self.io(id);
        }
    }

    /// Runs what a node has asked of its disk and `wanted` picks, with what that leads to.
    pub(super) fn run_io(&mut self, id: u32, wanted: impl Fn(&IoOp) -> bool) {
        while let Some(at) = self.node(id).io.iter().position(|(_, op)| wanted(op)) {
            let node = self.node(id);
            let (token, op) = node.io.swap_remove(at);
            let result = node.disk.run(op);
            self.event(id, Event::IoDone { token, result });
        }
    }

    /// Runs what a node has asked of its journal, and nothing else.
    fn run_journal(&mut self, id: u32) {
        self.run_io(id, |op| matches!(op, IoOp::JournalWrite { .. } | IoOp::CreateZeroed { .. }));
    }

    /// Produces to a leader until it refuses. So many were taken.
    fn produce_until_refused(&mut self, id: u32, group: GroupId) -> usize {
        for taken in 0..1_000 {
            match self.try_produce(id, group) {
                None => self.run_disk(id),
                Some(Response::Error(error)) => {
                    assert_eq!(error.code, ErrorCode::Overloaded, "{error:?}");
                    assert!(error.detail.contains("wait for a quorum"), "{error:?}");
                    return taken;
                }
                Some(other) => panic!("{other:?} without a quorum"),
            }
        }
        panic!("no bound")
    }

    /// After all, everything is committed and each partition takes writes.
    fn goes_on(&mut self) {
        self.heal();
        assert!(self.ids().all(|id| self.uncommitted_bytes(id) == 0));
        let before = self.acknowledged.len();
        for group in self.groups.clone() {
            let leader = self.leader(group).unwrap();
            self.produce(leader, group);
        }
        self.heal();
        assert_eq!(self.acknowledged.len(), before + self.groups.len());
        self.check();
    }
}

#[test]
fn a_leader_without_followers_takes_no_more_than_its_bound_and_goes_on_later() {
    let mut world = healed(21, 1, 128 << 20);
    let group = world.groups[0];
    let leader = world.leader(group).unwrap();
    for other in world.ids() {
        world.unlink(leader, other);
        world.cut.insert(pair(leader, other));
    }
    let taken = world.produce_until_refused(leader, group);
    assert_eq!(taken, UNCOMMITTED_BYTES_PER_GROUP / (VALUE_BYTES + 100), "all that the bound allows");
    assert!(world.uncommitted_bytes(leader) <= UNCOMMITTED_BYTES_PER_GROUP);
    // Nor later, as long as it takes itself for the leader.
    for _ in 0..20 {
        assert!(matches!(world.try_produce(leader, group), Some(Response::Error(_))));
        world.run_disk(leader);
    }
    // Which is not for long.
    world.tick(1_000_000);
    let state = world.node(leader).engine.as_ref().unwrap().partition(group).unwrap();
    assert_eq!(state.leader, 0, "without a majority behind it, it may have been replaced");
    world.goes_on();
}

#[test]
fn the_partitions_that_a_shard_leads_share_a_part_of_its_cache() {
    let mut world = healed(27, 4, 32 << 20);
    // One node leads all: the others are told of nothing, and can't vote for each other.
    let leader = world.leader(world.groups[0]).unwrap();
    let led: Vec<GroupId> =
        world.groups.iter().copied().filter(|group| world.leader(*group) == Some(leader)).collect();
    for other in world.ids() {
        world.unlink(leader, other);
        world.cut.insert(pair(leader, other));
    }
    let taken: usize = led.iter().map(|group| world.produce_until_refused(leader, *group)).sum();
    assert_eq!(taken, (8 << 20) / (VALUE_BYTES + 100), "a quarter of the cache, by {} partitions", led.len());
    world.goes_on();
}

#[test]
fn a_follower_whose_disk_stalls_keeps_less_than_its_cache() {
    let mut world = healed(23, 1, 64 << 20);
    let group = world.groups[0];
    let leader = world.leader(group).unwrap();
    let [stalled, gone] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    world.crash(gone);
    world.crash(stalled);
    world.config.cache_bytes = 16 << 20;
    world.start(stalled);
    // It takes part again before its disk stalls.
    for _ in 0..2_000 {
        world.link(leader, stalled);
        world.run_disk(stalled);
        world.run_disk(leader);
        world.deliver();
        world.tick(1_000);
    }
    let leader = world.leader(group).unwrap();
    assert_ne!(leader, gone);
    let stalled =
        if leader == stalled { (1..=3).find(|id| ![leader, gone].contains(id)).unwrap() } else { stalled };
    let budget = 16 << 20;
    let mut most = 0;
    for _ in 0..400 {
        let _ = world.try_produce(leader, group);
        world.run_disk(leader);
        while world.network.values().any(|queue| !queue.is_empty()) {
            world.deliver();
        }
        most = most.max(world.uncommitted_bytes(stalled));
    }
    assert!(most > VALUE_BYTES, "it follows");
    assert!(most <= budget / 2, "{most} bytes of what is not committed");
    world.goes_on();
}

#[test]
fn what_a_leader_asks_of_a_stalled_disk_piles_up_nowhere() {
    let mut world = healed(25, 1, 32 << 20);
    let group = world.groups[0];
    let leader = world.leader(group).unwrap();
    let [stalled, other] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    world.values_bytes = 100;
    world.produce(leader, group);
    // The other follower and the leader go on for a long time, in which the leader asks again and again.
    for _ in 0..40_000 {
        world.run_disk(leader);
        world.run_disk(other);
        world.deliver();
        world.tick(1_000);
        world.link(leader, other);
    }
    let engine = world.nodes[stalled as usize - 1].engine.as_ref().unwrap();
    let laid = &engine.raft_of(group).unwrap().laid;
    let messages: usize = laid.iter().map(|laid| laid.messages.len()).sum();
    assert!(messages > 10, "the leader asks: {messages}");
    assert!(
        laid.len() < 8 && messages <= laid.len() * WAITING_MESSAGES_PER_REPLICA + 8,
        "{messages} in {}",
        laid.len()
    );
    assert_eq!(world.leader(group), Some(leader), "it goes on leading");
    world.goes_on();
}

/// A leader dies when more than half of its cache is in no segment. Nothing of that is known to be committed when it comes back,
/// and it is more than it may follow; what the others have appended since comes behind it.
#[test]
fn a_leader_that_died_with_a_full_cache_follows_the_next_one() {
    let mut world = healed(33, 1, 32 << 20);
    let group = world.groups[0];
    let old = world.leader(group).unwrap();
    let state = |world: &World| world.nodes[old as usize - 1].engine.as_ref().map(Engine::status).unwrap();
    let bound = world.config.uncommitted_bound(false) as u64 * 5 / 4;
    while state(&world).unflushed_bytes <= bound {
        if world.sent.is_empty() {
            world.produce(old, group);
        }
        for id in world.ids() {
            match id == old {
                true => world.run_journal(id),
                false => world.run_disk(id),
            }
        }
        world.deliver();
        world.tick(100);
    }
    world.node(old).io.clear();
    world.crash(old);
    while world.leader(group).is_none_or(|leader| leader == old) {
        world.go_on();
    }
    for _ in 0..10 {
        let leader = world.leader(group).unwrap();
        world.produce(leader, group);
        for _ in 0..20 {
            world.go_on();
        }
    }
    world.goes_on();
}
