//! Groups under a scheduler that does everything wrong that a network, a disk and a crash can do.

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Bug, GROUP, Rng, World};

use super::{
    Configuration, EntryHead, EntryKind, GroupConfig, Message, MessageKind, Output, RaftGroup, RecoveredLog,
    Refused,
};
use crate::metadata::Replica;

/// Runs one life: faults, then peace. Panics on a violation.
fn life(seed: u64, bug: Option<Bug>) -> World {
    let replicas = if seed.is_multiple_of(4) { 5 } else { 3 };
    let write_quorum = if seed.is_multiple_of(3) { replicas / 2 + 2 } else { replicas / 2 + 1 };
    // In some lives the replicas change: three become any of five nodes, again and again.
    let moves = seed % 8 >= 5;
    let mut world =
        World::new(seed, replicas, if moves { 5 - replicas.min(5) } else { 0 }, write_quorum.min(replicas));
    world.bug = bug;
    world.loss_percent = [0, 0, 5, 20][(seed % 4) as usize];
    let crashes = !seed.is_multiple_of(5);
    let cuts = seed % 7 < 4;
    for _ in 0..4_000 {
        // A change needs most of them for a while, and disks that keep up.
        let calm = moves && world.rng.chance(80);
        step(&mut world, crashes && !calm, cuts && !calm);
        if moves {
            go_on_moving(&mut world);
        }
    }
    peace(&mut world);
    world
}

/// Takes the group further to other voters.
fn go_on_moving(world: &mut World) {
    if world.rng.chance(4) {
        want(world);
    }
    if world.rng.chance(40) {
        world.drive();
    }
    let id = 1 + world.rng.below(world.ids().count() as u64) as u32;
    if world.rng.chance(2) && !world.is_up(id) && !world.is_absent(id) {
        world.restart(id);
    }
    if world.rng.chance(50) {
        world.flush(id);
    }
}

/// Has the voters become others; the change that is under way may not have ended.
fn want(world: &mut World) {
    if world.wanted.is_some() && !world.rng.chance(1) {
        return;
    }
    let bits = 1 + world.rng.below((1 << world.ids().count()) - 1);
    world.wanted = Some(world.ids().filter(|id| bits & (1 << (id - 1)) != 0).collect());
}

fn step(world: &mut World, crashes: bool, cuts: bool) {
    let replicas = world.ids().count() as u64;
    let id = 1 + world.rng.below(replicas) as u32;
    match world.rng.below(1_000) {
        0..450 => world.deliver(),
        450..750 => {
            world.flush(id);
        }
        750..830 => {
            let us = world.rng.below(20_000);
            world.tick(us);
        }
        830..960 => {
            if let Some(leader) = world.leader()
                && world.propose(leader).is_ok()
                && world.rng.chance(60)
            {
                world.drain(leader, &[], 0);
            }
        }
        960..970 => world.compact(id),
        970..976 if cuts => {
            let other = 1 + world.rng.below(replicas) as u32;
            world.cut(id, other);
        }
        976..982 => world.heal(),
        982..987 if crashes && world.is_up(id) => world.crash(id),
        987..993 if !world.is_up(id) && !world.is_absent(id) => world.restart(id),
        993..996 => {
            if let Some(leader) = world.leader() {
                let now_us = world.now_us;
                if let Some(replica) = world.replica(leader) {
                    replica.transfer(id, now_us);
                }
                world.drain(leader, &[], 0);
            }
        }
        996..998 => {
            if let Some(leader) = world.leader() {
                if let Some(replica) = world.replica(leader) {
                    replica.abort_transfer();
                }
                world.try_quiesce(leader);
            }
        }
        _ => {}
    }
}

/// Faults stop: the group must agree within a bound and take proposals.
fn peace(world: &mut World) {
    world.loss_percent = 0;
    world.heal();
    for id in world.ids() {
        if !world.is_up(id) && !world.is_absent(id) {
            world.restart(id);
        }
    }
    // The core has no time-out of its own for a hand-over; the owner of the group gives it up.
    for id in world.ids() {
        if let Some(replica) = world.replica(id) {
            replica.abort_transfer();
        }
    }
    let begun_us = world.now_us;
    let mut wanted = None;
    while world.now_us < begun_us + 5_000_000 {
        settle(world);
        let leader = world.leader().map(|id| (id, world.replica(id).map_or(0, |replica| replica.term())));
        if let Some((id, _)) = leader
            && wanted.is_none_or(|(by, _)| Some(by) != leader)
            && let Ok(index) = world.propose(id)
        {
            world.drain(id, &[], 0);
            wanted = leader.map(|leader| (leader, index));
        }
        settle(world);
        let done = |world: &mut World, index| {
            world
                .settled()
                .into_iter()
                .all(|id| world.replica(id).is_some_and(|replica| replica.commit() >= index))
        };
        world.drive();
        if let Some((_, index)) = wanted
            && world.wanted.is_none()
            && done(world, index)
        {
            world.check_converged();
            return;
        }
        world.tick(10_000);
    }
    let said = |world: &mut World, id| match world.replica(id) {
        Some(replica) => format!("{replica:?} {}", replica.configuration()),
        None => "nothing".into(),
    };
    let replicas: Vec<_> = world.ids().map(|id| said(world, id)).collect();
    panic!("no agreement after 5 s of peace, {:?} wanted: {replicas:#?}", world.wanted);
}

fn settle(world: &mut World) {
    for _ in 0..10_000 {
        let mut busy = world.in_network() > 0;
        world.deliver();
        for id in world.ids() {
            busy |= world.flush(id);
        }
        if !busy {
            return;
        }
    }
}

#[test]
fn many_lives_without_a_violation() {
    // More of them: PYRALOG_RAFT_LIVES=60000 cargo test -p pyralog-replication many_lives -- --nocapture
    let lives = std::env::var("PYRALOG_RAFT_LIVES").map_or(600, |lives| lives.parse().unwrap());
    let (mut acknowledged, mut snapshots, mut quiets, mut moves) = (0, 0, 0, 0);
    for seed in 0..lives {
        let world = life(seed, None);
        acknowledged += world.acknowledged.len();
        snapshots += world.snapshots;
        quiets += world.quiets;
        moves += world.moves;
    }
    println!(
        "{acknowledged} acknowledged, {snapshots} snapshots, {quiets} times quiet, {moves} times other voters"
    );
    assert!(acknowledged > 50_000, "{acknowledged}: the lives do too little");
    assert!(snapshots > 100 && quiets > 20, "{snapshots} snapshots, {quiets} times quiet");
    assert!(moves > 500, "{moves} times other voters");
}

/// What each has brought to light. A candidate that is no voter any more won (5446, 8143, 10990, 11438). A replica that was made
/// anew followed changes from before that, in which it had a voice (44063: and voted for one whose log did not have what
/// its predecessor had helped to commit). One alone was elected before its log was durable (49183).
const SEEDS_THAT_FAILED: [u64; 14] =
    [2903, 3151, 5446, 6614, 7165, 8143, 8958, 10893, 10990, 11414, 11438, 13983, 44063, 49183];

#[test]
fn lives_that_once_went_wrong_go_well() {
    for seed in SEEDS_THAT_FAILED {
        life(seed, None);
    }
}

#[test]
fn planted_bugs_are_caught() {
    for bug in [
        Bug::SendBeforePersist,
        Bug::ForgetVote,
        Bug::BlankDisk,
        Bug::NoJoint,
        Bug::TwoChanges,
        Bug::EarlyDeparture,
        Bug::OldChanges,
        Bug::ForgetChange,
    ] {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let caught =
            (0..3_000).find(|seed| catch_unwind(AssertUnwindSafe(|| life(*seed, Some(bug)))).is_err());
        std::panic::set_hook(hook);
        println!("{bug:?}: caught by seed {caught:?}");
        assert!(caught.is_some(), "{bug:?} is not caught within 3,000 seeds");
    }
}

/// A group of three of which one leads for sure.
fn led(seed: u64) -> (World, u32) {
    let mut world = World::new(seed, 3, 0, 2);
    while world.leader().is_none_or(|leader| !world.replica(leader).unwrap().leads_surely()) {
        settle(&mut world);
        world.tick(10_000);
    }
    let leader = world.leader().unwrap();
    (world, leader)
}

/// Lets time pass as an idle group does: its leader goes quiet instead of sending heartbeats, whenever it can.
fn sleep(world: &mut World) {
    for _ in 0..200 {
        let leader = world.leader();
        if leader.is_some() && world.ids().all(|id| world.replica(id).unwrap().is_quiet()) {
            return;
        }
        leader.into_iter().for_each(|leader| world.try_quiesce(leader));
        settle(world);
        world.tick(10_000);
        settle(world);
    }
    let replicas: Vec<_> = world.ids().map(|id| format!("{:?}", world.replica(id))).collect();
    panic!("the group does not fall quiet: {replicas:#?}");
}

/// A link that goes down wakes the replicas at its ends, and nobody else: a follower may wake alone. Its leader answers
/// what it asks for with nothing but that it sleeps, as often as it asks.
#[test]
fn a_follower_that_woke_alone_follows_again() {
    let (mut world, leader) = led(1);
    sleep(&mut world);
    let follower = world.ids().find(|id| *id != leader).unwrap();
    let now_us = world.now_us;
    world.replica(follower).unwrap().campaign(now_us);
    world.drain(follower, &[], 0);
    sleep(&mut world);
    assert_eq!(world.replica(follower).unwrap().leader(), Some(leader));
}

/// The links to a process that dies break at once. Nobody waits until its silence has lasted for an election timeout.
#[test]
fn a_leader_whose_links_break_is_replaced_before_its_silence_is_noticed() {
    for seed in 1..=50 {
        let (mut world, leader) = led(seed);
        let died_us = world.now_us;
        world.crash(leader);
        while world.leader().is_none() {
            world.tick(1_000);
            settle(&mut world);
            assert!(world.now_us - died_us < world::TIMING.election_min_us, "seed {seed}");
        }
    }
}

/// A follower that alone can't hear the leader asks the other, which hears it and says no.
#[test]
fn a_link_that_breaks_to_one_follower_deposes_nobody() {
    for seed in 1..=50 {
        let (mut world, leader) = led(seed);
        let term = world.replica(leader).unwrap().term();
        let follower = world.ids().find(|id| *id != leader).unwrap();
        world.cut(leader, follower);
        world.cut(follower, leader);
        for _ in 0..200 {
            world.tick(10_000);
            settle(&mut world);
        }
        assert_eq!(
            (world.leader(), world.replica(leader).unwrap().term()),
            (Some(leader), term),
            "seed {seed}"
        );
    }
}

/// Between two outputs a replica may win an election and hear of a newer term: the entry with which it began to lead is its
/// own all the same.
#[test]
fn an_election_may_be_won_and_lost_between_two_outputs() {
    let (mut world, leader) = led(1);
    let others: Vec<u32> = world.ids().filter(|id| *id != leader).collect();
    let (won, other) = (others[0], others[1]);
    let now_us = world.now_us;
    let replica = world.replica(won).unwrap();
    let term = replica.term();
    replica.campaign(now_us);
    for (kind, from, term) in [
        (MessageKind::RequestPreVoteResponse, other, term + 1),
        (MessageKind::RequestVoteResponse, other, term + 1),
        (MessageKind::Heartbeat, leader, term + 2),
    ] {
        replica.step(now_us, &Message::new(kind, GROUP, from, won, term)).unwrap();
        let leads = kind == MessageKind::RequestVoteResponse;
        assert_eq!(replica.is_leader(), leads, "after {kind:?}");
    }
    world.drain(won, &[], 0);
    assert_eq!(world.replica(won).unwrap().term(), term + 2);
}

/// It has entries of its own that nobody else has, at indexes where the others have committed other ones and forgotten them.
#[test]
fn a_leader_that_was_deposed_is_told_so_whatever_it_sends() {
    let (mut world, deposed) = led(1);
    let others: Vec<u32> = world.ids().filter(|id| *id != deposed).collect();
    let old_term = world.replica(deposed).unwrap().term();
    for other in &others {
        world.cut(deposed, *other);
        world.cut(*other, deposed);
    }
    let leads = |world: &mut World, id: u32| world.replica(id).unwrap().leads_surely();
    while !others.iter().any(|id| leads(&mut world, *id)) {
        settle(&mut world);
        world.tick(10_000);
    }
    let leader = others.iter().copied().find(|id| leads(&mut world, *id)).unwrap();
    let follower = others.iter().copied().find(|id| *id != leader).unwrap();
    world.propose(leader).unwrap();
    world.drain(leader, &[], 0);
    settle(&mut world);
    world.tick(100_000);
    settle(&mut world);
    let now_us = world.now_us;
    while world.replica(follower).unwrap().start().index < world.replica(follower).unwrap().commit() {
        world.compact(follower);
    }
    let replica = world.replica(follower).unwrap();
    let (commit, term) = (replica.commit(), replica.term());
    assert!(term > old_term && replica.start().term > old_term);
    let append = |sent_in: u32| {
        let mut message = Message::new(MessageKind::Append, GROUP, deposed, follower, sent_in);
        (message.index, message.log_term) = (commit, old_term);
        message
    };
    assert!(matches!(replica.step(now_us, &append(term)), Err(Refused::Impossible(_))), "of a leader of now");
    replica.step(now_us, &append(old_term)).unwrap();
    let mut out = Output::default();
    replica.output(&mut out).unwrap();
    let answers = out.messages.iter().chain(&out.after_persist);
    let answers: Vec<_> = answers.map(|message| (message.to, message.term)).collect();
    assert_eq!(answers, [(deposed, term)]);
}

/// What was on the node before has followed a leader of term 2, which knows that the replicas are others since; one of term 1
/// that was cut off does not, and counts on whoever answers for that node.
#[test]
fn a_replica_that_is_made_anew_follows_no_leader_that_its_predecessor_has_left() {
    let places = [1, 4, 5].map(|node| Replica { node, shard: 0 });
    let config = GroupConfig { group: GROUP, id: 1, write_quorum: 2, timing: world::TIMING, seed: 1 };
    let log = RecoveredLog {
        configuration: Configuration::of(places),
        made_after: (2, 11),
        ..RecoveredLog::default()
    };
    let mut replica = RaftGroup::new(config, log, 1).unwrap();
    assert_eq!((replica.term(), replica.vote()), (2, 0));
    let entry =
        EntryHead { term: 1, kind: EntryKind::Batch as u8, base_offset: 0, next_offset: 1, bytes: 100 };
    for (term, followed) in [(1, false), (2, true)] {
        let mut append = Message::new(MessageKind::Append, GROUP, 5, 1, term);
        append.entries = vec![EntryHead { term, ..entry }];
        replica.step(2, &append).unwrap();
        let mut out = Output::default();
        replica.output(&mut out).unwrap();
        assert_eq!(out.entries > 0, followed, "term {term}: {out:?}");
        let answers: Vec<u32> =
            out.messages.iter().chain(&out.after_persist).map(|answer| answer.term).collect();
        assert_eq!(answers, [2]);
    }
}

/// Something that looks like a message and may be about anything near where the replica is.
fn invented(rng: &mut Rng, to: u32, replica: &RaftGroup) -> Message {
    use MessageKind::*;
    let kinds = [
        Append,
        AppendResponse,
        RequestPreVote,
        RequestPreVoteResponse,
        RequestVote,
        RequestVoteResponse,
        Heartbeat,
        HeartbeatResponse,
        Snapshot,
        TimeoutNow,
        Quiesce,
    ];
    let (term, last) = (replica.term(), replica.last_index());
    let near = |rng: &mut Rng, place: u64| match rng.below(20) {
        0 => u64::MAX - rng.below(3),
        _ => (place + rng.below(7)).saturating_sub(3),
    };
    let near_term = |rng: &mut Rng| match rng.below(40) {
        0 => u32::MAX,
        _ => (term + rng.below(4) as u32).saturating_sub(2),
    };
    let from = 1 + rng.below(4) as u32;
    let kind = kinds[rng.below(kinds.len() as u64) as usize];
    let mut message = Message::new(kind, GROUP, from, to, near_term(rng));
    (message.log_term, message.commit_term) = (near_term(rng), near_term(rng));
    (message.index, message.commit) = (near(rng, last), near(rng, replica.commit()));
    (message.reject_hint, message.read) = (near(rng, last), rng.below(3));
    (message.reject, message.transfer) = (rng.chance(30), rng.chance(20));
    message.offset = replica.log_end() + rng.below(5) as i64 - 2;
    let mut offset = replica.log_end() + (rng.below(5) as i64 - 2) * i64::from(rng.chance(20));
    for _ in 0..rng.below(4) {
        let records = rng.below(3) as i64;
        let (kind, bytes) = (rng.below(3) as u8, rng.below(2) as u32 * 100);
        let (base_offset, next_offset) = (offset, offset + records);
        message.entries.push(EntryHead { term: near_term(rng), kind, base_offset, next_offset, bytes });
        offset = next_offset;
    }
    message
}

/// A node that is out of its mind can lie, and no check can prevent that; but what it sends is refused or followed, and stops no
/// replica.
#[test]
fn nothing_that_comes_over_the_wire_breaks_a_replica() {
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..2_000 {
        let (mut world, leader) = led(seed % 20);
        for _ in 0..seed % 10 {
            world.propose(leader).unwrap();
            world.drain(leader, &[], 0);
        }
        settle(&mut world);
        let mut rng = Rng(seed);
        let (id, now_us) = (1 + seed as u32 % 3, world.now_us);
        let replica = world.replica(id).unwrap();
        let mut out = Output::default();
        for _ in 0..50 {
            let message = invented(&mut rng, id, replica);
            match replica.step(now_us, &message) {
                Ok(()) => taken += 1,
                Err(Refused::Broken) => panic!("seed {seed}: broken by {message:?}"),
                Err(_) => refused += 1,
            }
            while replica.output(&mut out).unwrap_or_else(|error| panic!("seed {seed}: {error}: {message:?}"))
            {
                replica.persisted(out.number).unwrap();
            }
        }
    }
    assert!(taken > 10_000 && refused > 10_000, "{taken} taken, {refused} refused");
}
