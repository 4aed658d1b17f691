//! How much the flusher gives the disk at once.

use pyralog_core::GroupId;
use pyralog_net::message::{Acks, ProduceRequest, Request};

use super::super::{Action, ConnId, EngineConfig, Event, FileId, IoOp};
use super::disk::MemDisk;
use super::harness::{Shard, batch, config};

/// Correlation ids from here on are of many produces at once.
const MANY: u64 = 1 << 40;

fn is_of_a_topic(op: &IoOp) -> bool {
    match op {
        IoOp::Write { file: FileId::Segment(group, _), .. }
        | IoOp::Sync { file: FileId::Segment(group, _) } => *group != GroupId::METADATA,
        _ => false,
    }
}

#[test]
fn a_long_segment_is_flushed_in_stretches() {
    let mut shard = Shard::start(config(), MemDisk::default());
    let group = GroupId::new(shard.create("paced", 1), 0);
    let value = vec![7; 512 << 10];
    for at in 0..24 {
        shard.produce(group, &batch(at, None, &[&value]));
    }
    shard.hold_only = Some(is_of_a_topic);
    shard.advance(shard.config.max_buffer_time_us + 1);
    let (mut unflushed, mut most, mut written) = (0, 0, 0);
    while let Some(action) = shard.held.pop() {
        assert!(shard.held.is_empty(), "one after the other");
        match &action {
            Action::Io { op: IoOp::Write { data, .. }, .. } => {
                unflushed += data.iter().map(|piece| piece.len()).sum::<usize>();
                most = most.max(unflushed);
            }
            _ => written += std::mem::take(&mut unflushed),
        }
        shard.run(vec![action]);
    }
    assert_eq!(unflushed, 0, "the end is flushed");
    assert!(written > 12 << 20, "{written} bytes of twelve MiB and their headers");
    assert!(most <= 5 << 20, "{most} bytes were written before a flush");
}

/// So many produces of one small record each, in one pass.
fn produce_many(shard: &mut Shard, group: GroupId, count: u64) {
    let small = batch(0, None, &[b"x"]);
    let mut actions = Vec::new();
    for correlation_id in 0..count {
        let request =
            Request::Produce(ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch: &small });
        let event = Event::Request { conn: ConnId(1), correlation_id: MANY + correlation_id, request };
        shard.engine.handle(shard.now, event, &mut actions);
    }
    shard.run(actions);
    let answered = (0..count).filter(|id| shard.replies.remove(&(MANY + id)).is_some()).count();
    assert_eq!(answered as u64, count);
}

/// Small batches that are in segments stay in the cache until there is no room: that calls for no run.
#[test]
fn a_cache_full_of_small_batches_is_not_flushed_again_and_again() {
    let mut shard = Shard::start(EngineConfig { cache_bytes: 64 << 20, ..config() }, MemDisk::default());
    let group = GroupId::new(shard.create("small", 1), 0);
    let runs = |shard: &Shard| shard.engine.status().counters.checkpoints;
    while runs(&shard) < 1 {
        produce_many(&mut shard, group, 500);
    }
    let (bound, before) = (shard.engine.config.cache_batches(), runs(&shard));
    let cached = shard.engine.cached_batches;
    assert!(cached > bound / 2, "{cached} of {bound} batches are in the cache");
    for _ in 0..bound / 4 / 500 {
        produce_many(&mut shard, group, 500);
    }
    assert_eq!(runs(&shard), before);
    // It goes on, and what is evicted is read from segments.
    while runs(&shard) < before + 3 {
        produce_many(&mut shard, group, 500);
    }
    assert_eq!(shard.read_all(group).len() as i64, shard.engine.partition(group).unwrap().log_end);
}
