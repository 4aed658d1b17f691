//! What leaders tell of their followers, and what shards count of elections.

use pyralog_net::message::{PartitionState, ReplicaState, ReplicationState};
use pyralog_replication::raft::Message;

use super::*;
use crate::engine::ShardStatus;

fn status(world: &World, id: u32) -> ShardStatus {
    world.nodes[id as usize - 1].engine.as_ref().unwrap().status()
}

fn state(world: &World, id: u32) -> PartitionState {
    world.nodes[id as usize - 1].engine.as_ref().unwrap().partition(world.groups[0]).unwrap()
}

fn replica(world: &World, leader: u32, node: u32) -> ReplicaState {
    *state(world, leader).replicas.iter().find(|replica| replica.node == node).unwrap()
}

/// Everything that can move does, for so many microseconds.
fn pass(world: &mut World, us: u64) {
    let end = world.now.monotonic_us + us;
    while world.now.monotonic_us < end {
        world.go_on();
    }
}

#[test]
fn a_follower_that_is_cut_off_is_seen_to_lag_and_to_come_back() {
    let mut world = World::new(2, 3, 1, 2);
    world.heal();
    let leader = world.leader(world.groups[0]).unwrap();
    let [other, gone] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    for id in [other, gone] {
        let replica = replica(&world, leader, id);
        assert_eq!((replica.state, replica.in_sync), (ReplicationState::Replicating, true), "{replica:?}");
        assert_eq!((replica.lag_bytes, replica.lag_ms), (0, 0), "{replica:?}");
    }
    assert_eq!(replica(&world, leader, leader).state, ReplicationState::Leader);
    let before = replica(&world, leader, gone).log_end;
    for id in [leader, other] {
        world.cut.insert(pair(id, gone));
        world.unlink(id, gone);
    }
    let records = 5;
    for _ in 0..records {
        world.produce(leader, world.groups[0]);
        pass(&mut world, 20_000);
    }
    let lags = replica(&world, leader, gone);
    let end = state(&world, leader).log_end;
    assert_eq!((lags.state, lags.in_sync), (ReplicationState::Unreachable, false), "{lags:?}");
    assert_eq!((lags.log_end, lags.lag_records(end)), (before, Some(records)), "{lags:?}");
    assert!(lags.lag_bytes > 40 * records && lags.lag_ms >= 60, "{lags:?}");
    let told = status(&world, leader);
    let of = &told.replication;
    assert_eq!((of.led, of.under_replicated, of.below_min_insync), (1, 1, 0), "{of:?}");
    assert_eq!((of.lag_records, of.lag_bytes), (records, lags.lag_bytes), "{of:?}");
    let link = of.peers.iter().find(|peer| peer.node == gone).unwrap();
    assert!((link.links, link.links_up, link.downs) == (1, 0, 1) && link.down_us > 0, "{link:?}");
    world.heal();
    let leader = world.leader(world.groups[0]).unwrap();
    let of = status(&world, leader).replication;
    assert_eq!((of.led, of.under_replicated, of.lag_records, of.lag_us), (1, 0, 0, 0), "{of:?}");
}

#[test]
fn elections_and_hand_overs_are_counted_where_they_are() {
    let mut world = World::new(4, 3, 1, 2);
    world.heal();
    let first = world.leader(world.groups[0]).unwrap();
    let of = status(&world, first).counters.replication;
    assert!(of.elections >= 1 && of.elections_won >= 1, "{of:?}");
    let won = |world: &World| -> u64 {
        world
            .ids()
            .filter(|id| world.is_up(*id))
            .map(|id| status(world, id).counters.replication.elections_won)
            .sum()
    };
    let before = won(&world) - of.elections_won;
    world.crash(first);
    while world.leader(world.groups[0]).is_none() {
        world.go_on();
    }
    assert!(won(&world) > before, "somebody was elected");
    world.heal();
    let leader = world.leader(world.groups[0]).unwrap();
    let before = status(&world, leader).counters.replication;
    world.event(leader, Event::Shutdown);
    while world.leader(world.groups[0]).is_none_or(|id| id == leader) {
        world.go_on();
    }
    // The new one knows first.
    for _ in 0..40_000 {
        if status(&world, leader).counters.replication.leaderships_lost > before.leaderships_lost {
            break;
        }
        world.go_on();
    }
    let after = status(&world, leader).counters.replication;
    assert!(after.hand_overs > before.hand_overs, "{after:?}");
    assert!(after.leaderships_lost >= after.hand_overs, "{after:?}");
}

#[test]
fn what_a_follower_gets_from_segments_is_counted() {
    let mut world = World::new(6, 3, 1, 2);
    world.values_bytes = 20_000;
    world.heal();
    let leader = world.leader(world.groups[0]).unwrap();
    let gone = leader % 3 + 1;
    world.crash(gone);
    // More than the cache holds, so that the leader forgets the entries.
    let needed = 2 * world.config.cache_bytes as u64;
    let mut sent = 0;
    while sent < needed {
        world.produce(leader, world.groups[0]);
        sent += world.values_bytes as u64;
        pass(&mut world, 5_000);
    }
    let lags = replica(&world, leader, gone);
    let end = state(&world, leader).log_end;
    assert!(lags.known_end().is_some_and(|lag| lag < end), "{lags:?}");
    // An estimate: the first bytes of a batch, and segments that it is in the middle of.
    assert!(lags.lag_bytes >= sent && lags.lag_bytes < sent + sent / 5, "{lags:?}, {sent} were sent");
    world.heal();
    let of = status(&world, gone).counters.replication;
    assert!(of.catch_ups >= 1 && of.catch_ups_done >= 1, "{of:?}");
    assert!(of.catch_up_bytes > sent / 2, "{of:?}");
}

#[test]
fn what_is_refused_is_counted_by_its_reason() {
    let mut world = World::new(7, 3, 1, 3);
    world.heal();
    world.settle_leaders();
    let group = world.groups[0];
    let leader = world.leader(group).unwrap();
    let [other, gone] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    for id in [leader, other] {
        world.cut.insert(pair(id, gone));
        world.unlink(id, gone);
    }
    let errors = |world: &World, id: u32, code: ErrorCode| status(world, id).counters.errors[code as usize];
    assert_eq!(errors(&world, other, ErrorCode::NotLeader), 0);
    world.produce(other, group);
    assert_eq!(errors(&world, other, ErrorCode::NotLeader), 1);
    // All three copies are asked for.
    world.produce(leader, group);
    pass(&mut world, 1_000_000);
    let of = status(&world, leader).replication;
    assert_eq!((of.waiting_produces, of.under_replicated), (1, 1), "{of:?}");
    let wait_us = world.config.ack_timeout_us;
    pass(&mut world, wait_us);
    assert_eq!(errors(&world, leader, ErrorCode::RequestTimedOut), 1);
    assert_eq!(status(&world, leader).counters.replication.ack_timeouts, 1);
    assert_eq!(status(&world, leader).replication.waiting_produces, 0);
}

#[test]
fn messages_of_a_leader_that_was_replaced_are_counted() {
    let mut world = World::new(8, 3, 1, 2);
    world.heal();
    let (group, first) = (world.groups[0], world.leader(world.groups[0]).unwrap());
    world.crash(first);
    world.heal();
    let leader = world.leader(group).unwrap();
    let follower = leader % 3 + 1;
    let epoch = state(&world, follower).epoch;
    let stale = |world: &World| status(world, follower).counters.replication.stale_messages;
    let before = stale(&world);
    for term in [epoch - 1, epoch] {
        let message = Message::new(MessageKind::Heartbeat, group, leader, follower, term);
        let control = frame::encode(&[message]);
        world.event(follower, Event::PeerFrame { from: peer(leader), control: &control, payload: &[] });
    }
    assert!(epoch > 1, "there was a leader before");
    assert_eq!(stale(&world), before + 1);
}
