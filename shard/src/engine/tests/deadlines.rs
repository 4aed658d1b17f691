//! Deadlines: set when a condition begins, and reached however busy the shard is.

use std::sync::Arc;

use pyralog_core::{ErrorCode, GroupId, ShardId};
use pyralog_net::message::{Acks, ProduceRequest, Request, Response};
use pyralog_replication::metadata::Command;

use super::disk::MemDisk;
use super::harness::{Got, Shard, batch, catalog, config};
use crate::engine::{Event, IoOp};

const P0: GroupId = GroupId::new(1, 0);

/// Sends a produce that waits for at most a millisecond.
fn impatient(shard: &mut Shard) -> u64 {
    let bytes = batch(0, None, &[b"x"]);
    shard.send(Request::Produce(ProduceRequest {
        group: P0,
        acks: Acks::Quorum,
        timeout_ms: 1,
        batch: &bytes,
    }))
}

fn timed_out(shard: &Shard, id: u64) -> bool {
    matches!(shard.replies.get(&id), Some(Got::Message(Response::Error(e))) if e.code == ErrorCode::RequestTimedOut)
}

#[test]
fn produces_time_out_while_others_keep_the_shard_busy() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    shard.hold_io = true;
    let id = impatient(&mut shard);
    for _ in 0..300 {
        // A driver ticks when the deadline that it was told last has come, not before.
        let due = shard.engine.next_deadline_us();
        shard.now.monotonic_us += 1_000;
        if due.is_some_and(|due| due <= shard.now.monotonic_us) {
            shard.event(Event::Tick);
        }
        shard.call(Request::Ping);
    }
    assert!(timed_out(&shard, id), "{:?}", shard.replies.get(&id));
}

#[test]
fn a_produce_in_the_commit_being_built_times_out_too() {
    let mut config = config();
    config.journal_writes_in_flight = 1;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.create("t", 1);
    shard.hold_only = Some(|op| matches!(op, IoOp::JournalWrite { .. }));
    let first = impatient(&mut shard);
    // The first commit occupies the disk; this batch's commit is still open.
    let second = impatient(&mut shard);
    assert_eq!(shard.held.len(), 1);
    shard.advance(200_000);
    assert!(timed_out(&shard, first));
    assert!(timed_out(&shard, second));
    shard.release_io();
    assert_eq!(shard.read_all(P0).len(), 2, "the appends themselves go on");
}

#[test]
fn a_shard_with_nothing_to_do_asks_for_no_tick_in_the_past() {
    let mut config = config();
    (config.shard, config.shards) = (ShardId(1), 2);
    let mut shard = Shard::start(config, MemDisk::default());
    let with_topic = catalog(&["t"]);
    let mut without = with_topic.clone();
    without.apply(&Command::DeleteTopic { topic: 1 }).unwrap();
    shard.event(Event::CatalogPublished { catalog: Arc::new(with_topic) });
    for _ in 0..3 {
        shard.produce(P0, &batch(0, None, &[b"x"]));
        shard.advance(11_000_000);
    }
    shard.produce(P0, &batch(0, None, &[b"x"]));
    shard.event(Event::CatalogPublished { catalog: Arc::new(without) });
    shard.advance(11_000_000);
    let due = shard.engine.next_deadline_us();
    assert!(due.is_none_or(|due| due > shard.now.monotonic_us), "{due:?}");
}
