//! Topics that come and go, as one shard of several sees it.

use std::sync::Arc;

use pyralog_core::{ErrorCode, GroupId, ShardId};
use pyralog_net::message::Response;
use pyralog_replication::metadata::{Catalog, Command};

use super::disk::MemDisk;
use super::harness::{Got, Shard, batch, catalog, config, create_on_shard_1};
use crate::engine::{Event, FileId, IoOp, LogLevel};

const P0: GroupId = GroupId::new(1, 0);

fn shard_1() -> Shard {
    let mut config = config();
    (config.shard, config.shards) = (ShardId(1), 2);
    Shard::start(config, MemDisk::default())
}

fn publish(shard: &mut Shard, catalog: &Catalog) {
    shard.event(Event::CatalogPublished { catalog: Arc::new(catalog.clone()) });
}

fn refused_with(shard: &mut Shard, expected: ErrorCode) {
    assert!(matches!(shard.fetch(P0, 0, 100), Got::Message(Response::Error(e)) if e.code == expected));
}

#[test]
fn a_topic_does_not_inherit_what_an_older_one_with_its_id_left() {
    let mut shard = shard_1();
    publish(&mut shard, &catalog(&["old"]));
    shard.produce(P0, &batch(0, None, &[b"of the old topic"]));
    // Shard 0 comes back without its metadata, and gives the id out again.
    let mut shard = shard.restart();
    publish(&mut shard, &Catalog::default());
    assert!(shard.engine.partition(P0).is_some(), "kept");
    publish(&mut shard, &catalog(&["new"]));
    refused_with(&mut shard, ErrorCode::CorruptRange);
    let refused = shard.produce(P0, &batch(0, None, &[b"of the new topic"]));
    assert!(matches!(refused, Response::Error(e) if e.code == ErrorCode::LogEndUnknown));
    assert!(shard.logs.iter().any(|(level, text)| *level == LogLevel::Error && text.contains("older topic")));
    // It stays so, also when the next life sees the new catalogue first.
    shard.advance(11_000_000);
    let mut shard = shard.restart();
    publish(&mut shard, &catalog(&["new"]));
    refused_with(&mut shard, ErrorCode::CorruptRange);
    // Deleting the topic cleans up.
    let mut without = catalog(&["new"]);
    without.apply(&Command::DeleteTopic { topic: 1 }).unwrap();
    publish(&mut shard, &without);
    assert!(shard.engine.partition(P0).is_none());
}

#[test]
fn a_partition_that_nobody_wrote_to_is_the_new_topics() {
    let mut shard = shard_1();
    publish(&mut shard, &catalog(&["old"]));
    let mut shard = shard.restart();
    publish(&mut shard, &Catalog::default());
    publish(&mut shard, &catalog(&["new"]));
    assert!(
        matches!(shard.produce(P0, &batch(0, None, &[b"x"])), Response::Produce(r) if r.base_offset == 0)
    );
}

#[test]
fn topics_that_come_and_go_leave_no_trace_in_memory() {
    let mut shard = shard_1();
    let mut now = catalog(&["t0"]);
    publish(&mut shard, &now);
    for round in 1..50u32 {
        let group = GroupId::new(round, 0);
        shard.produce(group, &batch(0, None, &[b"x"]));
        now.apply(&create_on_shard_1(&format!("t{round}"))).unwrap();
        now.apply(&Command::DeleteTopic { topic: round }).unwrap();
        publish(&mut shard, &now);
        assert!(shard.engine.partition(group).is_none());
        let next = GroupId::new(round + 1, 0);
        assert_eq!(shard.engine.partition(next).map(|state| state.high_watermark), Some(0));
    }
    assert!(shard.engine.partitions.len() <= 3, "{} slots", shard.engine.partitions.len());
    let last = GroupId::new(50, 0);
    shard.produce(last, &batch(0, None, &[b"a"]));
    shard.advance(11_000_000);
    let mut shard = shard.restart();
    assert_eq!(shard.read_all(last), [(0, b"a".to_vec())]);
}

#[test]
fn a_topic_on_its_way_out_is_not_reported_as_damaged() {
    let mut shard = shard_1();
    let with_topic = catalog(&["t", "other"]);
    let mut without = with_topic.clone();
    without.apply(&Command::DeleteTopic { topic: 1 }).unwrap();
    publish(&mut shard, &with_topic);
    for _ in 0..3 {
        shard.produce(P0, &batch(0, None, &[b"below the cut"]));
    }
    shard.hold_only = Some(|op| matches!(op, IoOp::Write { file: FileId::Segment(..), .. }));
    shard.advance(11_000_000);
    assert!(!shard.held.is_empty(), "the cut is made");
    shard.produce(P0, &batch(0, None, &[b"behind the cut"]));
    let before_the_drop = shard.disk.clone();
    publish(&mut shard, &without);
    shard.release_io();
    assert!(shard.engine.status().counters.checkpoints > 0, "it does not hold the partition any more");
    let quiet = |mut shard: Shard| {
        publish(&mut shard, &without);
        assert!(shard.engine.partition(P0).is_none());
        assert!(!shard.logs.iter().any(|(_, text)| text.contains("missing")), "{:?}", shard.logs);
    };
    // With the frame that drops it, and without it, when the power went before that was written.
    let mut lost = shard.disk.clone();
    let journal = before_the_drop.files.into_iter().filter(|(file, _)| matches!(file, FileId::Journal(_)));
    lost.files.extend(journal);
    quiet(shard.restart());
    let mut config = config();
    (config.shard, config.shards) = (ShardId(1), 2);
    quiet(Shard::start(config, lost));
}
