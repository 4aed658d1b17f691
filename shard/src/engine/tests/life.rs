//! What a shard promises, one scenario a test.

use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{
    Acks, Consistency, Durability, FetchRequest, ListOffsetsRequest, OffsetSpec, ProduceRequest, Request,
    Response,
};

use super::disk::MemDisk;
use super::harness::{Got, Shard, batch, config};
use crate::engine::{Event, FileId};

const P0: GroupId = GroupId::new(1, 0);

fn base_offset(response: &Response) -> i64 {
    match response {
        Response::Produce(reply) => reply.base_offset,
        other => panic!("{other:?}"),
    }
}

fn code(got: Got) -> ErrorCode {
    match got {
        Got::Message(Response::Error(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_acknowledged_is_there_after_a_crash() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 2);
    for i in 0..50i64 {
        let value = format!("value {i}");
        let reply = shard.produce(P0, &batch(i, None, &[value.as_bytes(), b"second"]));
        assert_eq!(base_offset(&reply), i * 2);
        assert!(
            matches!(reply, Response::Produce(r) if r.durability == Durability::QuorumDurable && r.high_watermark == i * 2 + 2)
        );
    }
    let before = shard.read_all(P0);
    assert_eq!(before.len(), 100);
    let mut shard = shard.restart();
    assert_eq!(shard.read_all(P0), before);
    assert_eq!(base_offset(&shard.produce(P0, &batch(0, None, &[b"after"]))), 100);
    assert_eq!(shard.engine.partition(P0).unwrap().epoch, 2, "each life is an epoch");
}

#[test]
fn nothing_is_acknowledged_before_its_write_is_done() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    shard.hold_io = true;
    let bytes = batch(0, None, &[b"x"]);
    let produce = |acks| Request::Produce(ProduceRequest { group: P0, acks, timeout_ms: 0, batch: &bytes });
    let quorum = shard.send(produce(Acks::Quorum));
    let none = shard.send(produce(Acks::None));
    assert!(!shard.replies.contains_key(&quorum));
    assert!(
        matches!(&shard.replies[&none], Got::Message(Response::Produce(r)) if r.durability == Durability::Memory)
    );
    assert!(
        matches!(shard.fetch(P0, 0, 100), Got::Batches(head, bytes) if head.high_watermark == 0 && bytes.is_empty())
    );
    shard.release_io();
    assert!(shard.replies.contains_key(&quorum));
    assert_eq!(shard.read_all(P0).len(), 2);
}

#[test]
fn duplicates_get_the_first_offset_also_after_a_crash() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    let first = batch(0, Some((9, 0, 0)), &[b"a", b"b"]);
    assert_eq!(base_offset(&shard.produce(P0, &first)), 0);
    assert_eq!(base_offset(&shard.produce(P0, &batch(0, Some((9, 0, 2)), &[b"c"]))), 2);
    let again = shard.produce(P0, &first);
    assert!(matches!(again, Response::Produce(r) if r.base_offset == 0 && r.duplicate));
    let mut shard = shard.restart();
    assert!(matches!(shard.produce(P0, &first), Response::Produce(r) if r.base_offset == 0 && r.duplicate));
    assert!(
        matches!(shard.produce(P0, &batch(0, Some((9, 0, 7)), &[b"gap"])), Response::Error(e) if e.code == ErrorCode::OutOfOrderSequence)
    );
    // And when the state comes from a checkpoint.
    shard.advance(11_000_000);
    assert_eq!(shard.engine.status().unflushed_bytes, 0);
    let mut shard = shard.restart();
    assert!(matches!(shard.produce(P0, &first), Response::Produce(r) if r.base_offset == 0 && r.duplicate));
    assert_eq!(shard.read_all(P0).len(), 3);
}

#[test]
fn a_large_log_goes_through_cache_segments_and_recycled_journal() {
    let mut config = config();
    config.cache_bytes = 16 << 20;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.create("t", 2);
    let value = vec![b'v'; 300_000];
    for i in 0..200i64 {
        let group = GroupId::new(1, (i % 2) as u32);
        let mut value = value.clone();
        value[..8].copy_from_slice(&i.to_le_bytes());
        assert_eq!(base_offset(&shard.produce(group, &batch(1_000 + i, None, &[&value]))), i / 2);
    }
    let status = shard.engine.status();
    assert!(status.counters.checkpoints > 2, "{status:?}");
    assert!(status.cache_live_bytes <= status.cache_budget_bytes);
    let journals =
        |shard: &Shard| shard.disk.files.keys().filter(|file| matches!(file, FileId::Journal(_))).count();
    assert!(journals(&shard) <= 8, "journal files are recycled");
    let check = |shard: &mut Shard| {
        for partition in 0..2i64 {
            let records = shard.read_all(GroupId::new(1, partition as u32));
            assert_eq!(records.len(), 100);
            for (n, (offset, value)) in records.iter().enumerate() {
                assert_eq!(*offset, n as i64);
                assert_eq!(value[..8], (n as i64 * 2 + partition).to_le_bytes());
            }
        }
    };
    check(&mut shard);
    assert!(shard.engine.status().counters.cache_misses > 0, "old batches come from segments");
    for wanted in [0i64, 1_001, 1_050, 1_198, 5_000] {
        let request = ListOffsetsRequest {
            group: P0,
            spec: OffsetSpec::Timestamp(wanted),
            consistency: Consistency::Leader,
        };
        let expected = ((wanted - 1_000 + 1) / 2).clamp(0, 100);
        match shard.call(Request::ListOffsets(request)) {
            Got::Message(Response::ListOffsets(found)) => assert_eq!(found.offset, expected, "time {wanted}"),
            other => panic!("{other:?}"),
        }
    }
    let mut shard = shard.restart();
    check(&mut shard);
    let mut shard = shard.restart();
    check(&mut shard);
}

#[test]
fn fetches_wait_for_enough_data_or_their_time() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    let fetch = FetchRequest {
        group: P0,
        offset: 0,
        min_bytes: 100,
        max_bytes: 1 << 20,
        max_wait_ms: 500,
        consistency: Consistency::Leader,
    };
    let waiting = shard.send(Request::Fetch(fetch));
    shard.produce(P0, &batch(0, None, &[b"small"]));
    assert!(!shard.replies.contains_key(&waiting), "69 bytes are not 100");
    shard.produce(P0, &batch(0, None, &[b"small"]));
    assert!(matches!(&shard.replies[&waiting], Got::Batches(head, _) if head.high_watermark == 2));
    let waiting = shard.send(Request::Fetch(FetchRequest { offset: 2, ..fetch }));
    shard.advance(400_000);
    assert!(!shard.replies.contains_key(&waiting));
    shard.advance(100_000);
    assert!(matches!(&shard.replies[&waiting], Got::Batches(_, bytes) if bytes.is_empty()));
    assert_eq!(code(shard.fetch(P0, 3, 1)), ErrorCode::OffsetOutOfRange);
    assert_eq!(code(shard.fetch(GroupId::new(5, 0), 0, 1)), ErrorCode::UnknownTopicOrPartition);
}

#[test]
fn a_failed_journal_write_fences_and_the_outcome_is_unknown() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    shard.produce(P0, &batch(0, None, &[b"kept"]));
    shard.disk.fail_next_journal_write = true;
    let refused = shard.produce(P0, &batch(0, None, &[b"lost"]));
    assert!(matches!(refused, Response::Error(e) if e.code == ErrorCode::StorageFailed));
    assert!(shard.recover_wanted.is_some());
    assert!(
        matches!(shard.produce(P0, &batch(0, None, &[b"no"])), Response::Error(e) if e.code == ErrorCode::Fenced)
    );
    assert_eq!(shard.read_all(P0).len(), 1, "reads go on");
    let mut shard = shard.restart();
    assert_eq!(shard.read_all(P0), [(0, b"kept".to_vec())]);
    shard.produce(P0, &batch(0, None, &[b"again"]));
}

#[test]
fn a_full_disk_refuses_writes_keeps_reads_and_comes_back() {
    let mut config = config();
    config.cache_bytes = 16 << 20;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.create("t", 1);
    shard.disk.space = Some(0);
    let value = vec![7; 500_000];
    let mut acknowledged = 0;
    let refusal = loop {
        match shard.produce(P0, &batch(0, None, &[&value])) {
            Response::Produce(_) => acknowledged += 1,
            Response::Error(error) => break error.code,
            other => panic!("{other:?}"),
        }
        assert!(acknowledged < 1_000, "a full disk has to refuse at some point");
    };
    assert_eq!(refusal, ErrorCode::DiskFull);
    assert!(shard.engine.status().disk_full);
    assert!(shard.engine.accepts_produce(), "a refusal is an answer; not reading would be none");
    assert_eq!(shard.read_all(P0).len(), acknowledged);
    shard.disk.space = None;
    for _ in 0..3 {
        shard.advance(1_000_000);
    }
    assert!(!shard.engine.status().disk_full && shard.engine.accepts_produce());
    shard.produce(P0, &batch(0, None, &[b"goes on"]));
    shard.advance(11_000_000);
    let segments = shard
        .disk
        .files
        .keys()
        .filter(|file| matches!(file, FileId::Segment(group, _) if *group == P0))
        .count();
    assert_eq!(shard.engine.partition(P0).unwrap().segments as usize, segments, "each file is one segment");
    let mut shard = shard.restart();
    assert_eq!(shard.read_all(P0).len(), acknowledged + 1);
}

#[test]
fn a_deleted_topic_is_gone_with_its_files() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    shard.produce(P0, &batch(0, None, &[b"x"]));
    shard.advance(11_000_000);
    let segments = |shard: &Shard| {
        shard.disk.files.keys().filter(|f| matches!(f, FileId::Segment(g, _) if *g == P0)).count()
    };
    assert_eq!(segments(&shard), 1);
    let deleted = shard.call(Request::DeleteTopic(pyralog_net::message::DeleteTopicRequest { name: "t" }));
    assert_eq!(deleted, Got::Message(Response::DeleteTopic));
    assert_eq!(segments(&shard), 0);
    assert!(shard.engine.partition(P0).is_none());
    let mut shard = shard.restart();
    assert!(shard.engine.partition(P0).is_none());
    assert_eq!(shard.create("t", 1), 2, "ids are never used again");
}

#[test]
fn retention_by_size_lets_go_of_whole_segments() {
    let mut config = config();
    config.retention_bytes = Some(3_000_000);
    config.segment_max_bytes = 1_000_000;
    config.max_buffer_time_us = 1_000_000;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.create("t", 1);
    for _ in 0..40 {
        shard.produce(P0, &batch(0, None, &[&[1; 250_000]]));
        shard.advance(1_000_000);
    }
    for _ in 0..20 {
        shard.advance(1_000_000);
    }
    let state = shard.engine.partition(P0).unwrap();
    assert!(state.log_start > 0 && state.segment_bytes <= 4_000_000, "{state:?}");
    assert_eq!(code(shard.fetch(P0, 0, 1)), ErrorCode::OffsetOutOfRange);
    let kept = shard.read_all(P0);
    assert_eq!(kept.len() as i64, 40 - state.log_start);
    let files = shard.disk.files.keys().filter(|file| matches!(file, FileId::Segment(..))).count();
    assert!(files <= 6, "{files} segment files");
    let mut shard = shard.restart();
    assert_eq!(shard.read_all(P0), kept);
}

#[test]
fn batches_without_timestamps_age_from_their_flush_on() {
    let mut config = config();
    config.retention_ms = Some(60_000);
    config.max_buffer_time_us = 1_000_000;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.create("t", 1);
    shard.produce(P0, &batch(-1, None, &[b"timeless"]));
    for _ in 0..4 {
        shard.advance(10_000_000);
    }
    let state = shard.engine.partition(P0).unwrap();
    assert_eq!((state.flushed, state.log_start), (1, 0), "30 of 60 s old");
    assert_eq!(shard.read_all(P0).len(), 1);
    // The time of the flush is in the checkpoint: a restart does not begin it anew.
    let now = shard.now;
    let mut shard = shard.restart();
    shard.now = now;
    for _ in 0..2 {
        shard.advance(20_000_000);
    }
    assert_eq!(shard.engine.partition(P0).unwrap().log_start, 1, "70 s old");
}

#[test]
fn a_clean_shutdown_leaves_everything_in_segments() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 3);
    for i in 0..30 {
        shard.produce(GroupId::new(1, i % 3), &batch(0, None, &[b"x"]));
    }
    shard.event(Event::Shutdown);
    assert!(shard.stopped);
    assert_eq!(shard.engine.status().unflushed_bytes, 0);
    let mut shard = shard.restart();
    assert_eq!(shard.engine.partition(P0).unwrap().cached_bytes, 0, "nothing was replayed");
    assert_eq!(shard.read_all(P0).len(), 10);
}

#[test]
fn damage_below_the_durable_point_is_refused_and_never_skipped() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    for i in 0..10 {
        shard.produce(P0, &batch(0, None, &[format!("needle {i}").as_bytes()]));
    }
    shard.advance(20_000);
    let journal = shard.disk.files.get_mut(&FileId::Journal(0)).unwrap();
    let at = journal.windows(8).position(|window| window == b"needle 4").unwrap();
    journal[at] ^= 0x40;
    let mut shard = shard.restart();
    assert!(!shard.logs.is_empty(), "damage is reported");
    assert_eq!(code(shard.fetch(P0, 4, 1 << 20)), ErrorCode::CorruptRange);
    assert!(matches!(shard.fetch(P0, 0, 1 << 20), Got::Batches(head, _) if head.high_watermark == 10));
    assert!(matches!(shard.fetch(P0, 5, 1 << 20), Got::Batches(_, bytes) if !bytes.is_empty()));
    assert_eq!(base_offset(&shard.produce(P0, &batch(0, None, &[b"on"]))), 10);
    // The knowledge survives checkpoints and recycling.
    shard.advance(11_000_000);
    let mut shard = shard.restart();
    assert_eq!(code(shard.fetch(P0, 4, 1 << 20)), ErrorCode::CorruptRange);
    assert!(matches!(shard.fetch(P0, 5, 1 << 20), Got::Batches(_, bytes) if !bytes.is_empty()));
}

#[test]
fn the_durable_point_reaches_the_disk_when_the_shard_falls_idle() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    shard.produce(P0, &batch(0, None, &[b"needle"]));
    let commits = shard.engine.status().counters.commits;
    let due = shard.engine.next_deadline_us().unwrap();
    assert!(due <= shard.now.monotonic_us + 10_000);
    shard.advance(due - shard.now.monotonic_us);
    assert_eq!(shard.engine.status().counters.commits, commits + 1);
    shard.advance(50_000);
    assert_eq!(shard.engine.status().counters.commits, commits + 1, "one marker is enough");
    let journal = shard.disk.files.get_mut(&FileId::Journal(0)).unwrap();
    let at = journal.windows(6).position(|window| window == b"needle").unwrap();
    journal[at] ^= 1;
    let mut shard = shard.restart();
    assert_eq!(code(shard.fetch(P0, 0, 1 << 20)), ErrorCode::CorruptRange, "not taken for a torn tail");
}

#[test]
fn produces_are_not_read_rather_than_refused_while_the_disk_is_slow() {
    let mut config = config();
    config.cache_bytes = 16 << 20;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.create("t", 1);
    shard.hold_io = true;
    let big = batch(0, None, &[&vec![1; 500_000]]);
    let mut sent = Vec::new();
    while shard.engine.accepts_produce() {
        let request = ProduceRequest { group: P0, acks: Acks::Quorum, timeout_ms: 0, batch: &big };
        sent.push(shard.send(Request::Produce(request)));
        assert!(sent.len() < 1_000, "something has to be full at some point");
    }
    assert!(shard.replies.is_empty(), "nothing was refused");
    shard.release_io();
    shard.advance(10_000);
    assert!(sent.iter().all(|id| matches!(shard.replies[id], Got::Message(Response::Produce(_)))));
    assert!(shard.engine.accepts_produce());
}

#[test]
fn a_search_by_time_does_not_step_over_damage() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    for i in 0..10 {
        shard.produce(P0, &batch(1_000 + i, None, &[format!("needle {i}").as_bytes()]));
    }
    shard.advance(11_000_000);
    let mut shard = shard.restart();
    let search = |shard: &mut Shard, wanted| {
        let spec = OffsetSpec::Timestamp(wanted);
        shard.call(Request::ListOffsets(ListOffsetsRequest {
            group: P0,
            spec,
            consistency: Consistency::Leader,
        }))
    };
    assert!(matches!(search(&mut shard, 1_004), Got::Message(Response::ListOffsets(f)) if f.offset == 4));
    // The batch of offset 4 gets an earlier timestamp.
    let segment = shard.disk.files.get_mut(&FileId::Segment(P0, 0)).unwrap();
    let at = segment.windows(8).position(|window| window == 1_004i64.to_be_bytes()).unwrap();
    for field in [at, at + 8] {
        segment[field..field + 8].copy_from_slice(&1_000i64.to_be_bytes());
    }
    assert!(matches!(search(&mut shard, 1_003), Got::Message(Response::ListOffsets(f)) if f.offset == 3));
    assert_eq!(code(search(&mut shard, 1_004)), ErrorCode::CorruptRange, "not offset 5");
    // And where a batch is no batch at all.
    let segment = shard.disk.files.get_mut(&FileId::Segment(P0, 0)).unwrap();
    segment[at - 19] = 9; // magic
    assert_eq!(code(search(&mut shard, 1_009)), ErrorCode::CorruptRange, "not the end of the log");
}

#[test]
fn a_life_begins_where_the_last_journal_file_was_cut_within_its_region() {
    let mut shard = Shard::start(config(), MemDisk::default());
    shard.create("t", 1);
    for _ in 0..20 {
        shard.produce(P0, &batch(0, None, &[&vec![1; 500_000]]));
    }
    assert_eq!(shard.engine.status().counters.checkpoints, 0, "no file can be used again");
    assert!(shard.disk.files.remove(&FileId::Journal(2)).is_some(), "the free one");
    // What the newest region holds is there, the blank rest of it is cut off.
    let last = shard.disk.files.get_mut(&FileId::Journal(1)).unwrap();
    last.truncate(3 << 20);
    let mut shard = shard.restart();
    assert_eq!(shard.recover_wanted, None);
    assert_eq!(shard.read_all(P0).len(), 20);
    assert_eq!(base_offset(&shard.produce(P0, &batch(0, None, &[b"on"]))), 20);
    assert_eq!(shard.restart().read_all(P0).len(), 21);
}

#[test]
fn either_checkpoint_finds_the_segments_that_it_names_also_after_a_restart() {
    let mut config = config();
    config.retention_bytes = Some(600_000);
    config.segment_max_bytes = 250_000;
    config.max_buffer_time_us = 1_000_000;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.create("t", 1);
    // Each round is a checkpoint, and in the later ones retention takes a segment.
    for _ in 0..6 {
        shard.produce(P0, &batch(0, None, &[&[1; 240_000]]));
        shard.advance(2_000_000);
    }
    assert!(shard.engine.partition(P0).unwrap().log_start > 0);
    let newest = (shard.engine.status().counters.checkpoints % 2) as u8;
    let mut shard = shard.restart();
    let content = shard.disk.files.get_mut(&FileId::Checkpoint(newest)).unwrap();
    content[40] ^= 1;
    let mut shard = shard.restart();
    assert!(shard.logs.iter().any(|(_, text)| text.contains("not valid")), "{:?}", shard.logs);
    assert!(!shard.logs.iter().any(|(_, text)| text.contains("missing")), "{:?}", shard.logs);
    shard.read_all(P0);
    // They go in the end.
    for _ in 0..4 {
        shard.produce(P0, &batch(0, None, &[&[1; 240_000]]));
        shard.advance(2_000_000);
    }
    let segments = shard.disk.files.keys().filter(|file| matches!(file, FileId::Segment(g, _) if *g == P0));
    assert!(segments.count() <= 5);
}
