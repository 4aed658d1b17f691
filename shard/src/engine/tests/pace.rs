//! How much the flusher gives the disk at once.

use pyralog_core::GroupId;
use pyralog_net::message::{Acks, DeleteTopicRequest, ProduceRequest, Request};

use super::super::{Action, ConnId, EngineConfig, Event, FileId, IoError, IoErrorKind, IoOp};
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

/// The next operation on a segment that the flusher wants, when the time for it has come.
fn next_write(shard: &mut Shard) -> Option<Action> {
    for _ in 0..100 {
        if !shard.held.is_empty() || shard.engine.status().unflushed_bytes == 0 {
            break;
        }
        shard.live(20_000);
    }
    shard.held.pop()
}

#[test]
fn a_long_segment_is_flushed_in_stretches() {
    let mut shard = Shard::start(EngineConfig { cache_bytes: 64 << 20, ..config() }, MemDisk::default());
    let group = GroupId::new(shard.create("paced", 1), 0);
    let value = vec![7; 512 << 10];
    for at in 0..24 {
        shard.produce(group, &batch(at, None, &[&value]));
    }
    shard.hold_only = Some(is_of_a_topic);
    shard.advance(shard.config.max_buffer_time_us + 1);
    let (mut unflushed, mut most, mut written) = (0, 0, 0);
    while let Some(action) = next_write(&mut shard) {
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

/// A write that begins within a page would have the kernel read that page first.
#[test]
fn writes_of_a_segment_end_with_pages() {
    // With a flush behind each write, and in stretches.
    let write_bytes = [(false, 160 << 10), (true, 1 << 20)];
    for (value_bytes, (each_flushed, write_bytes)) in
        [1, 301, 70_001].into_iter().flat_map(|bytes| write_bytes.map(|one| (bytes, one)))
    {
        let config =
            EngineConfig { segment_max_bytes: 64 << 20, segment_sync_on_write: each_flushed, ..config() };
        let mut shard = Shard::start(config, MemDisk::default());
        let group = GroupId::new(shard.create("pages", 1), 0);
        let one = batch(0, None, &[&vec![7; value_bytes]]);
        let count = (2_500_000 / one.len()).min(4_000);
        shard.hold_only = Some(is_of_a_topic);
        let (mut full, mut flushes) = (0, 0);
        for run in 0..3 {
            for _ in 0..count {
                shard.produce(group, &one);
            }
            shard.advance(shard.config.max_buffer_time_us + 1);
            let (mut end, mut last_was_full) = (None, false);
            while let Some(action) = next_write(&mut shard) {
                match &action {
                    Action::Io { op: IoOp::Write { offset, data, .. }, .. } => {
                        assert!(end.is_none_or(|end| end == *offset), "one behind the other");
                        // Where a run has ended, the next one begins: its last write is the only one with less.
                        assert!(!last_was_full || offset.is_multiple_of(4096), "{value_bytes}: {offset}");
                        assert!(data.len() <= 1_024, "more pieces than the kernel takes");
                        let bytes = data.iter().map(|piece| piece.len()).sum::<usize>();
                        assert!(bytes < write_bytes + one.len(), "{bytes} in one write");
                        let cut_pieces = 4096 / one.len() + 1;
                        last_was_full = bytes + 4096 > write_bytes || data.len() + cut_pieces >= 1_000;
                        full += usize::from(last_was_full);
                        end = Some(offset + bytes as u64);
                    }
                    Action::Io { op: IoOp::Sync { .. }, .. } => flushes += 1,
                    _ => {}
                }
                shard.run(vec![action]);
            }
            assert_eq!(end, Some(((run + 1) * count * one.len()) as u64));
        }
        assert!(full >= 6 && (!each_flushed || flushes >= full), "{full} full writes, {flushes} flushes");
        let records = shard.read_all(group);
        assert_eq!(records.len(), count * 3);
    }
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
    for _ in 0..bound / 8 / 500 {
        produce_many(&mut shard, group, 500);
    }
    assert_eq!(runs(&shard), before);
    // It goes on, and what is evicted is read from segments.
    while runs(&shard) < before + 3 {
        produce_many(&mut shard, group, 500);
    }
    assert_eq!(shard.read_all(group).len() as i64, shard.engine.partition(group).unwrap().log_end);
}

/// A shard with twelve MiB in the cache of 64 that are due to be written out, of which everything is held back.
fn due_for_a_run() -> (Shard, GroupId) {
    let mut shard = Shard::start(EngineConfig { cache_bytes: 64 << 20, ..config() }, MemDisk::default());
    let group = GroupId::new(shard.create("paced", 1), 0);
    for at in 0..24 {
        shard.produce(group, &batch(at, None, &[&vec![7; 512 << 10]]));
    }
    assert!(shard.engine.status().unflushed_bytes > 12 << 20);
    (shard, group)
}

/// Appends until so many bytes are in no segment, while writes of segments stand still; then lets these go on.
fn stand_still_until(shard: &mut Shard, group: GroupId, unflushed_bytes: u64) {
    let runs = shard.engine.status().counters.checkpoints;
    shard.hold_only = Some(is_of_a_topic);
    while shard.engine.status().unflushed_bytes < unflushed_bytes {
        shard.produce(group, &batch(0, None, &[&vec![7; 512 << 10]]));
    }
    assert_eq!(shard.engine.status().counters.checkpoints, runs, "a run is under way, and stands still");
    shard.release_io();
}

fn in_segments(shard: &Shard) -> usize {
    let bytes = |(file, bytes): (&FileId, &Vec<u8>)| match file {
        FileId::Segment(group, _) if *group != GroupId::METADATA => bytes.len(),
        _ => 0,
    };
    shard.disk.files.iter().map(bytes).sum()
}

#[test]
fn a_run_takes_its_time_and_what_is_appended_hurries_it() {
    let (mut shard, group) = due_for_a_run();
    shard.advance(shard.config.max_buffer_time_us + 1);
    let at_once = in_segments(&shard);
    assert!((1 << 19..3 << 20).contains(&at_once), "{at_once} bytes at once");
    shard.live(200_000);
    let later = in_segments(&shard) - at_once;
    assert!((1 << 20..3 << 20).contains(&later), "{later} bytes in a fifth of a second, at 8 MiB a second");
    let before = in_segments(&shard);
    for at in 0..2 {
        shard.produce(group, &batch(at, None, &[&vec![7; 512 << 10]]));
    }
    let hurried = in_segments(&shard) - before;
    let wanted = 3 << 19..(3 << 19) + (1 << 20);
    assert!(wanted.contains(&hurried), "{hurried} bytes for one MiB that was appended");
    shard.live(5_000_000);
    assert!(shard.engine.status().unflushed_bytes < 2 << 20, "the run is over within its time");
    assert_eq!(shard.read_all(group).len(), 26);
}

#[test]
fn a_run_does_not_take_its_time_when_the_shard_stops() {
    let (mut shard, _) = due_for_a_run();
    shard.advance(shard.config.max_buffer_time_us + 1);
    assert!(shard.engine.status().unflushed_bytes > 8 << 20, "it has begun and waits");
    shard.event(Event::Shutdown);
    assert!(shard.stopped, "nothing had to be waited for");
    assert!(in_segments(&shard) > 12 << 20);
}

#[test]
fn a_run_does_not_take_its_time_when_the_cache_fills_up() {
    let (mut shard, group) = due_for_a_run();
    let runs = shard.engine.status().counters.checkpoints;
    // Then no time goes by, nothing is appended, and the credit does not suffice for the rest.
    stand_still_until(&mut shard, group, 49 << 20);
    assert!(shard.engine.status().counters.checkpoints > runs);
}

#[test]
fn a_run_takes_its_time_with_what_the_credit_does_not_suffice_for() {
    let (mut shard, group) = due_for_a_run();
    let runs = shard.engine.status().counters.checkpoints;
    stand_still_until(&mut shard, group, 38 << 20);
    assert_eq!(shard.engine.status().counters.checkpoints, runs, "the cache is not three quarters full");
    shard.live(5_000_000);
    assert!(shard.engine.status().counters.checkpoints > runs);
}

#[test]
fn a_run_does_not_take_its_time_when_a_checkpoint_is_needed() {
    let (mut shard, _) = due_for_a_run();
    shard.advance(shard.config.max_buffer_time_us + 1);
    assert!(shard.engine.status().unflushed_bytes > 8 << 20, "it has begun and waits");
    shard.engine.flush.want_checkpoint();
    shard.event(Event::Tick);
    assert_eq!(shard.engine.status().unflushed_bytes, 0);
}

#[test]
fn what_a_catch_up_waits_for_does_not_take_its_time() {
    let (mut shard, group) = due_for_a_run();
    shard.advance(shard.config.max_buffer_time_us + 1);
    assert!(shard.engine.flush.busy_with(group), "it has begun and waits");
    shard.engine.flush.hurry(GroupId::METADATA);
    shard.event(Event::Tick);
    assert!(shard.engine.flush.busy_with(group), "another one is hurried");
    shard.engine.flush.hurry(group);
    shard.event(Event::Tick);
    assert!(!shard.engine.flush.busy_with(group));
}

#[test]
fn a_topic_that_goes_while_its_run_waits_is_gone() {
    let (mut shard, group) = due_for_a_run();
    shard.advance(shard.config.max_buffer_time_us + 1);
    assert!(shard.engine.status().unflushed_bytes > 8 << 20, "it has begun and waits");
    shard.call(Request::DeleteTopic(DeleteTopicRequest { name: "paced" }));
    shard.live(1_000);
    assert_eq!(in_segments(&shard), 0, "its files are removed, and nobody writes new ones");
    assert!(shard.engine.partition(group).is_none());
}

#[test]
fn a_run_whose_last_flush_fails_has_written_nothing() {
    let mut shard = Shard::start(config(), MemDisk::default());
    let group = GroupId::new(shard.create("paced", 1), 0);
    shard.produce(group, &batch(0, None, &[b"first"]));
    shard.live(shard.config.max_buffer_time_us * 2);
    assert_eq!(shard.engine.status().unflushed_bytes, 0);
    // It goes on in the segment that is there: one write and one flush, and no place in the index.
    shard.produce(group, &batch(0, None, &[b"second"]));
    let unflushed_bytes = shard.engine.status().unflushed_bytes;
    shard.hold_only = Some(is_of_a_topic);
    shard.live(shard.config.max_buffer_time_us * 2);
    let write = shard.held.pop().unwrap();
    shard.run(vec![write]);
    let Some(Action::Io { token, op: IoOp::Sync { .. } }) = shard.held.pop() else { panic!("no flush") };
    let error = IoError { kind: IoErrorKind::NoSpace, detail: "no space is left on the disk".to_owned() };
    shard.event(Event::IoDone { token, result: Err(error) });
    assert!(shard.engine.status().disk_full);
    assert_eq!(shard.engine.status().unflushed_bytes, unflushed_bytes, "nothing of it counts");
    shard.hold_only = None;
    shard.live(60_000_000);
    assert_eq!(shard.engine.status().unflushed_bytes, 0, "it is tried again");
    assert_eq!(shard.read_all(group).len(), 2);
}
