//! A partition whose quorum is lost for good goes on with what one replica has.

use pyralog_net::message::{PartitionState, RecoverPartitionRequest};
use pyralog_replication::raft::Configuration;

use super::moving::move_to;
use super::*;

fn recover_with(world: &mut World, node: u32) {
    let request = RecoverPartitionRequest { topic: "replicated", partition: 0, node, epoch: 9 };
    world.administer(Request::RecoverPartition(request));
}

impl World {
    fn isolate(&mut self, id: u32) {
        for other in self.ids() {
            self.cut.insert(pair(id, other));
            self.unlink(id, other);
        }
    }

    fn state_on(&self, id: u32, group: GroupId) -> Option<PartitionState> {
        self.nodes[id as usize - 1].engine.as_ref()?.partition(group)
    }

    /// Who the replicas are as the disk of a node that is down has it.
    fn configuration_on_disk(&mut self, id: u32, group: GroupId) -> Configuration {
        let journal_id = 70 + u64::from(id) + 100 * self.node(id).disks;
        let config =
            EngineConfig { node: NodeId(id), journal_id, disk_id: journal_id, ..self.config.clone() };
        let now = self.now;
        let engine = recover(config, &mut self.node(id).disk, now).unwrap();
        let partition = engine.at(engine.find(group).unwrap()).unwrap();
        let Replica::Unplaced(unplaced) = &partition.replica else { panic!("{:?}", partition.replica) };
        unplaced.newest_configuration().clone()
    }

    /// Who has the partition, the one that is to be left first.
    fn holders_of(&self, group: GroupId) -> Vec<u32> {
        self.newest().unwrap().replicas(group).map(|replica| replica.node).collect()
    }
}

/// Five nodes with the metadata, three with the partition; the last of these has less than the other two, who go.
fn with_a_lagging_survivor(seed: u64, max_buffer_time_us: u64) -> (World, Vec<u32>) {
    let mut world = World::with_copies(seed, 5, 3, 1, 2);
    world.config.max_buffer_time_us = max_buffer_time_us;
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    let group = world.groups[0];
    // Its log says something of its replicas.
    for to in [vec![4, 5, 1], vec![1, 2, 3], vec![1, 2, 5]] {
        let answer = world.answer_to(|world| move_to(world, 0, to.clone()));
        assert_eq!(answer, Response::ReassignPartition);
        world.heal();
    }
    world.produce_in_group(group, 10);
    world.heal();
    let leader = world.leader(group).unwrap();
    let mut others = world.holders_of(group);
    others.retain(|id| *id != leader);
    // Who has been one of them for longer.
    others.sort_unstable();
    let survivor = others[0];
    world.isolate(survivor);
    world.produce_in_group(group, 3);
    assert_eq!(world.acknowledged.len(), 13);
    world.crash(leader);
    world.crash(others[1]);
    world.cut.clear();
    world.settle_leaders();
    assert_eq!(world.leader(group), None, "two of three are gone");
    (world, vec![survivor, leader, others[1]])
}

#[test]
fn a_survivor_goes_on_alone_and_the_lost_ones_do_not_come_back_with_what_they_had() {
    // With the long one its log is in the journal only.
    for (restarted, max_buffer_time_us) in [(false, 300_000), (false, 3_600_000_000), (true, 3_600_000_000)] {
        let (mut world, ids) = with_a_lagging_survivor(41, max_buffer_time_us);
        let (group, survivor) = (world.groups[0], ids[0]);
        let before = world.state_on(survivor, group).unwrap();
        // Long enough that they are not only away for a moment.
        world.tick(30_000_000);
        let answer = world.answer_to(|world| recover_with(world, survivor));
        assert_eq!(answer, Response::RecoverPartition);
        if restarted {
            world.crash(survivor);
            world.start(survivor);
        }
        world.go_on_until("the survivor leads", |world| world.leader(group) == Some(survivor));
        let now = world.state_on(survivor, group).unwrap();
        assert!(now.epoch > before.epoch + 1_000, "{now:?}");
        assert_eq!(now.log_end, before.log_end, "everything that it had");
        assert_eq!(world.lose_from(now.log_end), 3, "what only the others had");
        // Its disk knows that for good, whatever its entries say, when no checkpoint is from before it.
        for _ in 0..3 {
            world.produce_in_group(group, 5);
            world.settle_leaders();
            world.crash(survivor);
            let said = world.configuration_on_disk(survivor, group);
            assert!(said.is_forced(), "{said}");
            world.start(survivor);
            world.go_on_until("the survivor leads", |world| world.leader(group) == Some(survivor));
        }
        // One of the lost ones had more, and comes back with it.
        world.start(ids[1]);
        world.start(ids[2]);
        world.heal();
        world.check();
        assert_eq!(world.holders_of(group), [survivor]);
        // As a new replica it is one of them again.
        let answer = world.answer_to(|world| move_to(world, 0, ids.clone()));
        assert_eq!(answer, Response::ReassignPartition);
        world.heal();
        world.check();
        assert_eq!(world.holders_of(group), ids);
        world.produce_in_group(group, 5);
        world.heal();
        world.check();
    }
}

impl World {
    /// What was acknowledged from this offset on is lost, and its offsets are others' from now on. Returns how much that is.
    fn lose_from(&mut self, end: i64) -> usize {
        let before = self.acknowledged.len();
        self.acknowledged.retain(|(_, offset), _| *offset < end);
        before - self.acknowledged.len()
    }
}

#[test]
fn it_is_refused_while_enough_are_there() {
    let mut world = World::with_copies(42, 5, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    let holders = world.holders_of(group);
    let stranger = world.ids().find(|id| !holders.contains(id)).unwrap();
    let refused = |world: &mut World, node: u32, text: &str| {
        let Response::Error(error) = world.answer_to(|world| recover_with(world, node)) else { panic!() };
        assert!(error.code == ErrorCode::InvalidRequest && error.detail.contains(text), "{error:?}");
    };
    refused(&mut world, holders[0], "3 of the 3 nodes");
    world.crash(holders[0]);
    world.settle_leaders();
    world.tick(30_000_000);
    refused(&mut world, holders[1], "2 of the 3 nodes");
    world.crash(holders[1]);
    world.settle_leaders();
    world.tick(30_000_000);
    refused(&mut world, stranger, "has no replica");
    let survivor = holders[2];
    assert_eq!(world.answer_to(|world| recover_with(world, survivor)), Response::RecoverPartition);
    world.go_on_until("the survivor leads", |world| world.leader(group) == Some(survivor));
    refused(&mut world, survivor, "1 of the 1 nodes");
}

/// Its own journal is damaged as well: what its segments have is all there is.
#[test]
fn a_damaged_survivor_goes_on_with_its_segments() {
    let (mut world, ids) = with_a_lagging_survivor(43, 300_000);
    let (group, survivor) = (world.groups[0], ids[0]);
    world.go_on_until("it is in segments", |world| {
        world.state_on(survivor, group).is_some_and(|state| state.flushed > 5)
    });
    let flushed = world.state_on(survivor, group).unwrap().flushed;
    world.crash(survivor);
    let node = world.node(survivor);
    (node.settled, node.lossy) = (false, true);
    node.voted.clear();
    for (file, bytes) in &mut node.disk.files {
        if matches!(file, FileId::Journal(_)) {
            let commits = (0..bytes.len()).step_by(4096);
            let lsn = |at: usize| CommitHeader::decode(&bytes[at..at + 4096]).ok().map(|header| header.lsn);
            let newest = commits.clone().filter_map(|at| Some((lsn(at)?, at))).max();
            if let Some((newest, _)) = newest {
                let before =
                    commits.filter_map(|at| Some((lsn(at)?, at))).filter(|(lsn, _)| lsn + 3 == newest);
                before.collect::<Vec<_>>().into_iter().for_each(|(_, at)| bytes[at + 20] ^= 1);
            }
        }
    }
    world.start(survivor);
    world.settle_leaders();
    world.tick(30_000_000);
    assert_eq!(world.answer_to(|world| recover_with(world, survivor)), Response::RecoverPartition);
    world.go_on_until("the survivor leads", |world| world.leader(group) == Some(survivor));
    let log_end = world.state_on(survivor, group).unwrap().log_end;
    assert!(log_end >= flushed);
    world.lose_from(log_end);
    world.produce_in_group(group, 5);
}
