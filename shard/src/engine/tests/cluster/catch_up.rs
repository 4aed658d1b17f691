//! Catch-ups that are disturbed.

use super::*;
use crate::engine::producers::Verdict;

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

/// Who was asked for batches dies, and the next leader still holds what is missing: the replica goes on with that, and what it holds
/// goes to segments again.
#[test]
fn a_catch_up_that_another_leader_makes_needless_ends() {
    let mut world = World::new(6, 3, 1, 2);
    world.heal();
    world.settle_leaders();
    let group = world.groups[0];
    let state = |world: &World, id: u32| {
        world.nodes[id as usize - 1].engine.as_ref().and_then(|engine| engine.partition(group)).unwrap()
    };
    let leader = world.leader(group).unwrap();
    let (heir, behind) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    for other in [leader, heir] {
        world.cut.insert(pair(behind, other));
        world.unlink(behind, other);
    }
    world.produce_in_group(group, 30);
    let flushed = |world: &World, id| state(world, id).flushed == state(world, id).log_end;
    world
        .go_on_until("both have it in segments", |world| [leader, heir].iter().all(|id| flushed(world, *id)));
    // The leader forgets its entries, the heir does not.
    world.crash(leader);
    world.start(leader);
    world.go_on_until("it leads again", |world| world.leader(group) == Some(leader));
    // The one that is behind reaches the leader only, and asks it for what is in segments.
    world.cut.remove(&pair(behind, leader));
    let asks = |world: &World| world.messages.get("FetchBatches").copied().unwrap_or(0);
    let before = asks(&world);
    world.go_on_until("it asks for what is in segments", |world| asks(world) > before);
    world.crash(leader);
    world.cut.clear();
    world.go_on_until("another one leads", |world| world.leader(group).is_some_and(|now| now != leader));
    world.produce_in_group(group, 30);
    let until_us = world.now.monotonic_us + 20_000_000;
    while !flushed(&world, behind) {
        assert!(world.now.monotonic_us < until_us, "{:?}", state(&world, behind));
        world.go_on();
    }
    world.heal();
    world.check();
}

/// The disk is slow, and nobody waits for it: the next answers come while the first one is written, up to a bound.
#[test]
fn answers_come_while_those_before_them_are_written() {
    let (mut world, blank, bytes) = recovery_rate::with_a_blank_node(14, 1, None);
    assert!(bytes > 8 << 20, "{bytes}");
    let fetched = |world: &World| {
        let engine = world.nodes[blank as usize - 1].engine.as_ref().unwrap();
        engine.status().counters.replication.recovery_bytes
    };
    let is_write = |op: &IoOp| matches!(op, IoOp::Write { file: FileId::Segment(group, _), .. } if *group != GroupId::METADATA);
    let mut held = Vec::new();
    for _ in 0..20_000 {
        world.go_on();
        let io = std::mem::take(&mut world.node(blank).io);
        let (writes, others) = io.into_iter().partition::<Vec<_>, _>(|(_, op)| is_write(op));
        held.extend(writes);
        world.node(blank).io = others;
    }
    assert_eq!(held.len(), 1, "one write at a time");
    let came = fetched(&world);
    assert!(came > 3 << 20, "{came} bytes beside the first write");
    assert!(came < 6 << 20, "{came} bytes wait for the disk");
    world.node(blank).io.append(&mut held);
    world.heal();
    assert!(fetched(&world) >= bytes);
    world.check();
}

/// Retention has taken the batches by which a producer is known: who catches up behind them is told of it.
#[test]
fn a_catch_up_behind_what_is_gone_brings_the_producers() {
    let mut world = World::new(6, 3, 1, 2);
    (world.config.retention_bytes, world.config.segment_max_bytes) = (Some(100_000), 50_000);
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    world.settle_leaders();
    let group = world.groups[0];
    // Nothing but the heartbeats of its session reaches a producer from here on.
    for _ in 0..3 {
        world.produce_in_session(0, true);
        let done = |world: &World| world.sessions[0].open.iter().all(|(.., waits)| !waits);
        world.go_on_until("it is answered", done);
    }
    let (id, last) = (world.sessions[0].id, world.sessions[0].next_sequence - 1);
    world.sessions.clear();
    world.values_bytes = 9_000;
    world.produce_in_group(group, 60);
    let state = |world: &World, id: u32| {
        world.nodes[id as usize - 1].engine.as_ref().and_then(|engine| engine.partition(group))
    };
    world.go_on_until("retention has taken what they sent", |world| {
        world.ids().all(|id| state(world, id).is_some_and(|it| it.log_start > 10 && it.flushed == it.log_end))
    });
    let verdicts = |world: &World, node: u32| {
        let engine = world.nodes[node as usize - 1].engine.as_ref().unwrap();
        let producers = &engine.at(engine.find(group).unwrap()).unwrap().producers;
        [last, last + 1].map(|sequence| producers.judge(id, 0, sequence, sequence))
    };
    let leader = world.leader(group).unwrap();
    let known = verdicts(&world, leader);
    assert!(matches!(known, [Verdict::Duplicate(_), Verdict::Append]), "{known:?}");
    // Nothing of it in memory, so that the blank one begins behind what is gone.
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    let blank = world.leader(group).unwrap() % 3 + 1;
    world.lose_disk(blank);
    world.start(blank);
    world.heal();
    assert!(state(&world, blank).unwrap().log_start > 10);
    assert_eq!(verdicts(&world, blank), known);
    // And it knows after a crash.
    world.crash(blank);
    world.heal();
    assert_eq!(verdicts(&world, blank), known);
}

/// Disks and network work at once: the next questions are under way before the first is answered.
#[test]
fn questions_are_asked_before_those_before_them_are_answered() {
    let (mut world, blank, bytes) = recovery_rate::with_a_blank_node(15, 1, None);
    let sent = |world: &World, kind: &str| world.messages.get(kind).copied().unwrap_or(0);
    let (asked, answered) = (sent(&world, "FetchBatches"), sent(&world, "Batches"));
    let done = |world: &World| {
        let engine = world.nodes[blank as usize - 1].engine.as_ref().unwrap();
        engine.status().counters.replication
    };
    let mut open = 0;
    while done(&world).catch_ups_done < 2 {
        world.go_on();
        let now = (sent(&world, "FetchBatches") - asked) - (sent(&world, "Batches") - answered);
        open = now.max(open);
    }
    assert!((3..=5).contains(&open), "{open} questions at once");
    // All that was asked for was wanted, up to the end of the last answer.
    assert!(done(&world).recovery_bytes < bytes + (1 << 20), "{} of {bytes}", done(&world).recovery_bytes);
    world.heal();
    world.check();
}
