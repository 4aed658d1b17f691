//! Reads of what only segments hold: what they cost the disk, and who is disconnected for their memory.

use std::collections::BTreeMap;

use pyralog_core::GroupId;
use pyralog_core::limits::COLD_READ_BYTES_PER_SHARD;
use pyralog_net::message::{Consistency, FetchRequest, Request};

use super::disk::MemDisk;
use super::harness::{Got, Shard, batch, config};
use crate::engine::{Action, EngineConfig, FileId, IoOp};

const VALUE_BYTES: usize = 30 << 10;

/// A shard with so many partitions of `each` bytes, of which its cache holds little.
fn shard(partitions: u32, each: usize) -> (Shard, Vec<GroupId>) {
    let config = EngineConfig { cache_bytes: 16 << 20, ..config() };
    let mut shard = Shard::start(config, MemDisk::default());
    let topic = shard.create("cold", partitions);
    let groups: Vec<_> = (0..partitions).map(|partition| GroupId::new(topic, partition)).collect();
    let one = batch(0, None, &[&[7; VALUE_BYTES]]);
    for _ in 0..each / VALUE_BYTES {
        for group in &groups {
            shard.produce(*group, &one);
        }
        shard.live(1_000);
    }
    shard.live(20_000_000);
    (shard, groups)
}

fn fetch(group: GroupId, offset: i64) -> Request<'static> {
    let consistency = Consistency::Leader;
    Request::Fetch(FetchRequest {
        group,
        offset,
        min_bytes: 0,
        max_bytes: 1 << 20,
        max_wait_ms: 0,
        consistency,
    })
}

fn is_segment_read(op: &IoOp) -> bool {
    matches!(op, IoOp::Read { file: FileId::Segment(..), .. })
}

/// Reads all partitions in turns while somebody writes; what the readers got, and what was read for it.
fn read_beside_writes(shard: &mut Shard, groups: &[GroupId], writes: GroupId) -> (usize, usize) {
    let mut offsets: BTreeMap<GroupId, i64> = groups.iter().map(|group| (*group, 0)).collect();
    let read_before = shard.disk.read_bytes;
    let mut got_bytes = 0;
    while !offsets.is_empty() {
        for group in groups {
            let Some(offset) = offsets.get_mut(group) else { continue };
            shard.produce(writes, &batch(0, None, &[b"beside"]));
            let Got::Batches(_, bytes) = shard.call(fetch(*group, *offset)) else { panic!("refused") };
            let batches = bytes.len() / VALUE_BYTES;
            if batches == 0 {
                offsets.remove(group);
                continue;
            }
            *offset += batches as i64;
            got_bytes += bytes.len();
            shard.live(100);
        }
    }
    (got_bytes, shard.disk.read_bytes - read_before)
}

#[test]
fn beside_writes_little_is_read_twice_however_many_read() {
    const EACH: usize = 3 << 20;
    let (mut shard, groups) = shard(26, EACH);
    let (writes, groups) = groups.split_first().unwrap();
    for readers in [4, 25] {
        let (got, read) = read_beside_writes(&mut shard, &groups[..readers], *writes);
        assert!(got > readers * EACH * 9 / 10, "{got} of {readers} x {EACH}");
        // Before it is known that memory does not suffice, it is filled once.
        assert!(read < got * 3 / 2 + COLD_READ_BYTES_PER_SHARD / 2, "{readers} readers: {read} for {got}");
    }
}

#[test]
fn a_batch_longer_than_its_room_is_read_all_the_same() {
    let (mut shard, groups) = shard(26, 3 << 20);
    let (long, groups) = groups.split_first().unwrap();
    let end = shard.engine.partition(*long).unwrap().log_end;
    for _ in 0..40 {
        shard.produce(*long, &batch(0, None, &[&[9; 900_000]]));
        shard.live(10_000);
    }
    shard.live(20_000_000);
    read_beside_writes(&mut shard, groups, *long);
    for offset in end..end + 8 {
        let Got::Batches(_, bytes) = shard.call(fetch(*long, offset)) else { panic!("refused at {offset}") };
        assert!(bytes.len() > 900_000);
    }
    assert!(shard.logs.iter().all(|(_, text)| !text.contains("cut short")), "{:?}", shard.logs);
}

#[test]
fn nobody_is_disconnected_for_memory_that_waits_for_the_disk() {
    let (mut shard, groups) = shard(48, 3 << 20);
    shard.hold_only = Some(is_segment_read);
    let asked: Vec<u64> = groups.iter().map(|group| shard.send(fetch(*group, 0))).collect();
    let held = shard.held.iter().filter(|action| matches!(action, Action::Io { .. })).count();
    assert!(held < groups.len(), "memory has to be short");
    shard.live(5_000_000);
    assert_eq!(shard.sheds, 0, "the disk is slow, not the readers");
    shard.release_io();
    shard.live(1_000_000);
    for id in asked {
        assert!(matches!(shard.replies.get(&id), Some(Got::Batches(_, bytes)) if !bytes.is_empty()));
    }
}

#[test]
fn readers_that_hold_the_memory_are_disconnected_for_those_who_wait() {
    let (mut shard, groups) = shard(48, 3 << 20);
    shard.readers_are_slow = true;
    let asked: Vec<u64> = groups.iter().map(|group| shard.send(fetch(*group, 0))).collect();
    let waiting = asked.iter().filter(|id| !shard.replies.contains_key(id)).count();
    assert!(waiting > 0, "memory has to be short");
    shard.live(500_000);
    assert_eq!(shard.sheds, 0, "a second of patience");
    shard.live(2_000_000);
    assert!(shard.sheds > 0);
    (shard.readers_are_slow, shard.unsent) = (false, Vec::new());
    shard.live(1_000_000);
    assert!(asked.iter().all(|id| shard.replies.contains_key(id)));
}

#[test]
fn what_readers_left_behind_keeps_nobody_from_reading_ahead() {
    let (mut shard, groups) = shard(20, 3 << 20);
    let (left, groups) = groups.split_at(15);
    for group in left {
        assert!(matches!(shard.call(fetch(*group, 0)), Got::Batches(..)));
    }
    // Longer than anybody who goes on takes.
    shard.live(6_000_000);
    let (writes, readers) = groups.split_first().unwrap();
    let reads_before = shard.disk.reads;
    let (got, _) = read_beside_writes(&mut shard, readers, *writes);
    let reads = shard.disk.reads - reads_before;
    assert!(reads <= got.div_ceil(512 << 10), "{reads} reads for {got} bytes");
}

#[test]
fn a_long_batch_found_cut_is_read_with_what_it_needs() {
    const LONG: usize = 700_000;
    let (mut shard, groups) = shard(26, 3 << 20);
    let (long, groups) = groups.split_first().unwrap();
    let end = shard.engine.partition(*long).unwrap().log_end;
    for _ in 0..60 {
        shard.produce(*long, &batch(0, None, &[&[9; LONG]]));
        shard.live(10_000);
    }
    shard.live(20_000_000);
    read_beside_writes(&mut shard, groups, *long);
    let (read_before, reads_before) = (shard.disk.read_bytes, shard.disk.reads);
    for offset in end..end + 8 {
        shard.produce(*long, &batch(0, None, &[b"beside"]));
        let Got::Batches(_, bytes) = shard.call(fetch(*long, offset)) else { panic!("refused at {offset}") };
        assert!(bytes.len() > LONG);
    }
    let (read, reads) = (shard.disk.read_bytes - read_before, shard.disk.reads - reads_before);
    assert!(reads >= 16, "with too many readers a long batch costs a second read: {reads}");
    assert!(read < 8 * LONG * 8 / 5, "{read} read for 8 x {LONG}");
}
