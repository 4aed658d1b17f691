//! What an acknowledgement of each kind is worth when its leader's disk stalls, or its leader goes, and what a replica
//! makes of a journal that was cut.

use super::*;

/// A healed cluster of three with one partition, and who leads it.
fn healed(seed: u64) -> (World, GroupId, u32) {
    let mut world = World::new(seed, 3, 1, 2);
    world.heal();
    world.settle_leaders();
    let group = world.groups[0];
    let leader = world.leader(group).unwrap();
    (world, group, leader)
}

impl World {
    /// Has one batch sent past all sessions. Its answer comes as that of an administrator's request.
    pub(super) fn produce_for(&mut self, id: u32, group: GroupId, acks: Acks, value: &[u8]) {
        let batch = batch(self.now.wall_ms, None, &[value]);
        self.admin += 1;
        let (correlation_id, timeout_ms) = (self.admin, 0);
        let request = Request::Produce(ProduceRequest { group, acks, timeout_ms, batch: &batch });
        self.event(id, Event::Request { conn: ConnId(1), correlation_id, request });
    }

    fn cut_off(&mut self, id: u32) {
        for other in self.ids() {
            self.unlink(id, other);
            self.cut.insert(pair(id, other));
        }
    }
}

#[test]
fn a_leader_whose_disk_stalls_commits_by_its_followers() {
    let (mut world, group, leader) = healed(41);
    let before = world.acknowledged.len();
    for _ in 0..200 {
        world.produce(leader, group);
        // Everything but the leader's disk goes on: longer than it takes to depose a leader that is not heard.
        for other in world.ids().filter(|id| *id != leader) {
            while !world.node(other).io.is_empty() {
                world.io(other);
            }
        }
        while world.network.values().any(|queue| !queue.is_empty()) {
            world.deliver();
        }
        world.tick(5_000);
    }
    assert_eq!(world.leader(group), Some(leader), "it leads on");
    let writes = world.node(leader).io.iter();
    assert!(writes.filter(|(_, op)| matches!(op, IoOp::JournalWrite { .. })).count() > 0, "its disk stalls");
    let acknowledged = world.acknowledged.len() - before;
    assert!(acknowledged > 190, "{acknowledged} of 200 acknowledged by the followers' disks");
    // What only the others hold is theirs: the leader goes, and nothing of its disk's queue is written.
    world.node(leader).io.clear();
    world.crash(leader);
    world.heal();
    world.check();
}

#[test]
fn what_only_its_leader_holds_goes_with_it_and_goes_whole() {
    let (mut world, group, leader) = healed(42);
    world.cut_off(leader);
    world.produce_for(leader, group, Acks::None, b"in memory");
    let told = world.answer.take();
    let memory = Durability::Memory;
    assert!(matches!(&told, Some(Response::Produce(done)) if done.durability == memory), "{told:?}");
    world.produce_for(leader, group, Acks::Leader, b"on one disk");
    assert_eq!(world.answer, None, "nothing is written yet");
    while !world.node(leader).io.is_empty() {
        world.io(leader);
    }
    let told = world.answer.take();
    let on_one = Durability::LeaderDurable;
    assert!(matches!(&told, Some(Response::Produce(done)) if done.durability == on_one), "{told:?}");
    world.crash(leader);
    let mut next = None;
    for _ in 0..40_000 {
        world.go_on();
        next = world.leader(group);
        if next.is_some() {
            break;
        }
    }
    world.produce(next.unwrap(), group);
    world.heal();
    world.check();
    let held = world.read(leader, group);
    let lost: [&[u8]; 2] = [b"in memory", b"on one disk"];
    assert!(held.values().all(|value| !lost.contains(&value.as_slice())), "a later leader did not have them");
}

/// The same, where the leader is the one that comes back: what is on its disk is still there, and is committed then.
#[test]
fn what_its_leader_holds_is_kept_when_it_leads_again() {
    let (mut world, group, leader) = healed(43);
    world.cut_off(leader);
    world.produce_for(leader, group, Acks::Leader, b"on one disk");
    while !world.node(leader).io.is_empty() {
        world.io(leader);
    }
    assert!(matches!(world.answer.take(), Some(Response::Produce(_))));
    // The power of all goes. Nobody can be elected without a log as long as its own while another node is down.
    let [first, last] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    for id in world.ids() {
        world.crash(id);
    }
    world.cut.clear();
    world.start(leader);
    world.start(first);
    for _ in 0..40_000 {
        world.go_on();
        if world
            .leader(group)
            .is_some_and(|leader| world.fetch_all(leader, group).contains(&b"on one disk".to_vec()))
        {
            world.start(last);
            world.heal();
            return world.check();
        }
    }
    panic!("what the leader's disk held is lost");
}

impl World {
    fn fetch_all(&mut self, id: u32, group: GroupId) -> Vec<Vec<u8>> {
        self.read(id, group).into_values().collect()
    }
}

/// Cuts the newest journal file of a node in the middle of what was durable for sure.
fn cut_journal(world: &mut World, id: u32) {
    let mut commits = Vec::new();
    for (file, bytes) in &world.node(id).disk.files {
        if matches!(file, FileId::Journal(_)) {
            let blocks = bytes.chunks(4096).zip((0..).step_by(4096));
            let headers = blocks.filter_map(|(block, at)| Some((CommitHeader::decode(block).ok()?, at)));
            commits.extend(headers.map(|(header, at)| (header.lsn, *file, at)));
        }
    }
    commits.sort_unstable_by_key(|(lsn, ..)| *lsn);
    let (_, file, at) = commits[commits.len() - commits.len().min(20)];
    world.node(id).disk.files.get_mut(&file).unwrap().truncate(at);
}

#[test]
fn a_replica_whose_journal_was_cut_gets_everything_back() {
    for seed in 44..54 {
        let (mut world, group, _) = healed(seed);
        // All of it stays in the journal only.
        world.config.max_buffer_time_us = 600_000_000;
        for id in world.ids() {
            world.crash(id);
        }
        world.heal();
        for _ in 0..100 {
            if let Some(leader) = world.leader(group) {
                world.produce(leader, group);
            }
            for _ in 0..20 {
                world.go_on();
            }
        }
        world.heal();
        let cut = world.ids().nth(seed as usize % 3).unwrap();
        world.crash(cut);
        cut_journal(&mut world, cut);
        let node = world.node(cut);
        (node.settled, node.lossy) = (false, true);
        node.voted.clear();
        assert!(world.acknowledged.len() >= 90, "{}", world.acknowledged.len());
        world.start(cut);
        assert!(
            !world.is_settled(cut) || world.disks_lost > 0,
            "seed {seed}: it takes the rest for all there was"
        );
        world.heal();
        world.check();
    }
}

#[test]
fn a_replica_that_comes_back_from_a_cut_disturbs_nobody() {
    let (mut world, group, leader) = healed(54);
    let epoch = |world: &World| {
        let engine = world.nodes[leader as usize - 1].engine.as_ref().unwrap();
        engine.partition(group).unwrap().epoch
    };
    let before = epoch(&world);
    world.cut_off(leader % 3 + 1);
    // Time for many elections.
    let until = world.now.monotonic_us + 5_000_000;
    while world.now.monotonic_us < until {
        world.go_on();
    }
    world.heal();
    assert_eq!((world.leader(group), epoch(&world)), (Some(leader), before));
}
