//! What a replay leaves in the journal is read back when it is used.

use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{Consistency, DeleteTopicRequest, FetchRequest, Request, Response};

use super::disk::MemDisk;
use super::harness::{Got, Shard, batch, config};
use crate::engine::{Event, FileId, IoOp};

const P0: GroupId = GroupId::new(1, 0);
const REGION: u64 = 4 << 20;

/// A shard that died with `batches` of 300 kB in its journal and nothing in segments, and came back.
fn replayed(batches: i64) -> Shard {
    let mut config = config();
    config.cache_bytes = 256 << 20;
    config.max_buffer_time_us = 60_000_000;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.create("t", 1);
    let mut value = vec![b'v'; 300_000];
    for i in 0..batches {
        value[..8].copy_from_slice(&i.to_le_bytes());
        let reply = shard.produce(P0, &batch(i, None, &[&value]));
        assert!(matches!(reply, Response::Produce(reply) if reply.base_offset == i), "{reply:?}");
    }
    shard.restart()
}

fn check(shard: &mut Shard, batches: i64) {
    let records = shard.read_all(P0);
    assert_eq!(records.len() as i64, batches);
    for (n, (offset, value)) in (0i64..).zip(records) {
        assert_eq!((offset, &value[..8]), (n, &n.to_le_bytes()[..]));
    }
}

fn journal_read(op: &IoOp) -> bool {
    matches!(op, IoOp::Read { file: FileId::Journal(_), .. })
}

fn fetch_at(offset: i64) -> Request<'static> {
    let (min_bytes, max_bytes, max_wait_ms) = (0, 1 << 20, 0);
    Request::Fetch(FetchRequest {
        group: P0,
        offset,
        min_bytes,
        max_bytes,
        max_wait_ms,
        consistency: Consistency::Leader,
    })
}

fn code(got: &Got) -> ErrorCode {
    match got {
        Got::Message(Response::Error(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fetch_waits_for_its_region_and_the_next_one_finds_it_there() {
    let mut shard = replayed(40);
    shard.hold_only = Some(journal_read);
    let (first, second) = (shard.send(fetch_at(0)), shard.send(fetch_at(1)));
    assert_eq!(shard.held.len(), 1, "one read for both: {:?}", shard.held);
    assert!(!shard.replies.contains_key(&first) && !shard.replies.contains_key(&second));
    shard.release_io();
    assert!(matches!(shard.replies.remove(&first), Some(Got::Batches(..))));
    assert!(matches!(shard.replies.remove(&second), Some(Got::Batches(..))));
    shard.hold_only = Some(journal_read);
    assert!(matches!(shard.fetch(P0, 2, 100), Got::Batches(..)), "in memory");
    shard.hold_only = None;
    check(&mut shard, 40);
    // What is appended meanwhile follows on.
    shard.produce(P0, &batch(0, None, &[&40i64.to_le_bytes()]));
    check(&mut shard, 41);
}

#[test]
fn the_flusher_writes_what_was_left_to_segments_part_by_part() {
    let mut shard = replayed(300);
    let checkpoints = shard.engine.status().counters.checkpoints;
    let budget = shard.engine.status().cache_live_bytes;
    assert!(budget > 80 << 20, "the budget counts what is not in memory too: {budget}");
    shard.live(61_000_000);
    let status = shard.engine.status();
    assert_eq!(status.unflushed_bytes, 0);
    assert!(status.counters.checkpoints >= checkpoints + 2, "more than one part: {status:?}");
    assert!(status.cache_live_bytes <= 16 << 20, "what was left is dropped: {}", status.cache_live_bytes);
    // Nothing refers to the journal any more: its old files may be written over.
    shard.hold_only = Some(journal_read);
    check(&mut shard, 300);
    let mut shard = shard.restart();
    check(&mut shard, 300);
}

#[test]
fn a_shard_that_stops_at_once_has_everything_in_segments() {
    let mut shard = replayed(40);
    shard.event(Event::Shutdown);
    assert!(shard.stopped);
    let in_journal = |file: &FileId| matches!(file, FileId::Journal(_));
    for (_, bytes) in shard.disk.files.iter_mut().filter(|(file, _)| in_journal(file)) {
        // The checkpoint's replay begins behind all of it: none of it is needed.
        bytes[..4096].fill(0);
    }
    check(&mut shard.restart(), 40);
}

#[test]
fn rot_between_replay_and_use_is_noticed_and_told() {
    for flushes in [false, true] {
        let mut shard = replayed(40);
        let journal = shard.disk.files.get_mut(&FileId::Journal(0)).unwrap();
        journal[1 << 20] ^= 1;
        if flushes {
            shard.advance(61_000_000);
        } else {
            let reply = shard.fetch(P0, 0, 1 << 20);
            assert_eq!(code(&reply), ErrorCode::StorageFailed);
        }
        let reason = shard.recover_wanted.clone().expect("the shard reads its disk again");
        assert!(reason.contains("journal file 0 can't be read back"), "{reason}");
        // The replay that follows says what is lost, and the rest is there.
        let mut shard = shard.restart();
        let refused: Vec<i64> = (0..40)
            .filter(|offset| match shard.fetch(P0, *offset, 1 << 20) {
                Got::Batches(_, bytes) => bytes.is_empty(),
                refused => code(&refused) == ErrorCode::CorruptRange,
            })
            .collect();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(shard.recover_wanted.is_none());
    }
}

#[test]
fn a_file_that_is_cut_inside_the_last_padding_is_told_and_stops_nobody() {
    let mut shard = replayed(1);
    let journal = shard.disk.files.get_mut(&FileId::Journal(0)).unwrap();
    // One batch of a single value: what follows its last byte is padding up to the block, then nothing.
    // A checksum may hold one of its bytes by chance.
    let last = journal.windows(8).rposition(|bytes| bytes == [b'v'; 8]).unwrap() + 7;
    assert!(last % 4096 < 4000, "there is padding behind byte {last}");
    journal.truncate(last + 16);
    let reply = shard.fetch(P0, 0, 1 << 20);
    assert_eq!(code(&reply), ErrorCode::StorageFailed);
    let reason = shard.recover_wanted.clone().expect("the shard reads its disk again");
    assert!(reason.contains("it ends at byte"), "{reason}");
    // The replay that follows finds the commit whole.
    check(&mut shard.restart(), 1);
}

#[test]
fn a_bad_place_that_no_replay_minds_keeps_nothing_away() {
    let mut shard = replayed(20);
    // The end of the first region, which the next commit did not fit into.
    shard.disk.unreadable = Some((FileId::Journal(0), REGION - 4096));
    let mut shard = shard.restart();
    check(&mut shard, 20);
    assert!(shard.recover_wanted.is_none(), "{:?}", shard.recover_wanted);
    shard.live(61_000_000);
    assert!(shard.recover_wanted.is_none(), "{:?}", shard.recover_wanted);
    assert_eq!(shard.engine.status().unflushed_bytes, 0);
}

#[test]
fn who_waits_for_a_region_is_answered_whatever_happens_meanwhile() {
    let mut shard = replayed(40);
    shard.hold_only = Some(journal_read);
    let waiting = shard.send(fetch_at(0));
    let deleted = shard.call(Request::DeleteTopic(DeleteTopicRequest { name: "t" }));
    assert!(matches!(deleted, Got::Message(Response::DeleteTopic)), "{deleted:?}");
    shard.release_io();
    assert_eq!(code(&shard.replies[&waiting]), ErrorCode::UnknownTopicOrPartition);

    let mut shard = replayed(40);
    shard.hold_only = Some(journal_read);
    let waiting = shard.send(fetch_at(0));
    shard.disk.fail_next_journal_write = true;
    shard.produce(P0, &batch(0, None, &[b"x"]));
    assert_eq!(code(&shard.replies[&waiting]), ErrorCode::StorageFailed);
    shard.release_io();
    assert!(matches!(shard.fetch(P0, 0, 100), Got::Batches(..)), "a fenced shard serves reads");
}

#[test]
fn a_cache_too_small_for_the_journal_is_read_back_by_the_replay_itself() {
    let mut shard = replayed(40);
    shard.config.cache_bytes = 16 << 20;
    let disk = shard.disk.clone();
    let config = shard.config.clone();
    let mut shard = Shard::start(config, disk);
    check(&mut shard, 40);
}
