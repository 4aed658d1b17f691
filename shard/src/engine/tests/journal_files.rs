//! How many journal files there are, and when they are made.

use pyralog_core::GroupId;

use super::super::{Action, EngineConfig, Event, IoError, IoErrorKind, IoOp, LogLevel};
use super::disk::MemDisk;
use super::harness::{Shard, batch, config};

const FILE_BYTES: u64 = 8 << 20;
/// Five quarters of the cache and two files.
const AHEAD: u32 = 12;

fn shard() -> Shard {
    let config = EngineConfig { cache_bytes: 64 << 20, journal_file_bytes: FILE_BYTES, ..config() };
    Shard::start(config, MemDisk::default())
}

fn files(shard: &Shard) -> u32 {
    shard.engine.status().journal_files
}

#[test]
fn files_are_made_before_there_is_load_and_not_all_at_once() {
    let mut shard = shard();
    let at_first = files(&shard);
    assert!(at_first < 4, "{at_first} files in no time");
    shard.live(20_000);
    let soon = files(&shard);
    assert!((at_first..at_first + 3).contains(&soon), "{soon} files after 20 ms");
    shard.live(2_000_000);
    assert_eq!(files(&shard), AHEAD);
    shard.live(2_000_000);
    assert_eq!(files(&shard), AHEAD, "and no more");
}

/// Files that a shard with such a cache and such files has before there is load, MiB.
fn ahead(cache_mib: usize, file_mib: u64) -> u32 {
    let (cache_bytes, journal_file_bytes) = (cache_mib << 20, file_mib << 20);
    let mut shard =
        Shard::start(EngineConfig { cache_bytes, journal_file_bytes, ..config() }, MemDisk::default());
    shard.live(3_000_000);
    files(&shard)
}

#[test]
fn there_are_enough_whole_files_whatever_the_cache() {
    assert_eq!(ahead(16, 4), 7);
    assert_eq!(ahead(24, 8), 6, "thirty MiB are four files, and two");
    assert_eq!(ahead(16, 32), 3);
    assert_eq!(ahead(8, 8), 5, "a cache of 16 is the least, and files are bound by what was configured");
}

#[test]
fn without_files_ahead_one_is_free() {
    let config = EngineConfig { journal_files_ahead: false, ..config() };
    let mut shard = Shard::start(config, MemDisk::default());
    shard.live(3_000_000);
    assert_eq!(files(&shard), 2);
}

#[test]
fn steady_load_finds_its_files_made() {
    let mut shard = shard();
    let group = GroupId::new(shard.create("steady", 1), 0);
    shard.live(2_000_000);
    let value = vec![7; 512 << 10];
    for at in 0..1_000 {
        shard.produce(group, &batch(at, None, &[&value]));
        shard.live(1_000);
    }
    assert!(shard.engine.status().counters.checkpoints > 3, "the journal went round");
    assert_eq!(files(&shard), AHEAD);
}

#[test]
fn a_disk_without_space_for_files_ahead_is_no_full_disk() {
    let mut shard = shard();
    shard.disk.space = Some(4 << 20);
    let before = files(&shard);
    shard.live(2_000_000);
    assert_eq!(files(&shard), before);
    let status = shard.engine.status();
    assert!(status.ready && !status.disk_full && status.fenced.is_none());
    let told =
        |(level, text): &(LogLevel, String)| *level == LogLevel::Warn && text.contains("no space left");
    assert_eq!(shard.logs.iter().filter(|log| told(log)).count(), 1);
    let due_us = shard.engine.next_deadline_us();
    assert!(due_us.is_none_or(|due| due > shard.now.monotonic_us), "it asks for nothing at once");
    // What is needed is made all the same.
    shard.disk.space = None;
    let group = GroupId::new(shard.create("goes-on", 1), 0);
    for at in 0..200 {
        shard.produce(group, &batch(at, None, &[&vec![7; 512 << 10]]));
    }
    assert!(files(&shard) > before);
}

#[test]
fn a_file_begun_ahead_that_became_needed_and_fails_is_a_full_disk() {
    let mut shard = shard();
    shard.hold_only = Some(|op| matches!(op, IoOp::CreateZeroed { .. }));
    shard.live(100_000);
    let Some(Action::Io { token, .. }) = shard.held.pop() else { panic!("no file is being made") };
    let group = GroupId::new(shard.create("fills", 1), 0);
    while shard.engine.status().journal_files_free > 0 {
        shard.produce(group, &batch(0, None, &[&vec![7; 512 << 10]]));
    }
    let error = IoError { kind: IoErrorKind::NoSpace, detail: "no space left for a file".into() };
    shard.event(Event::IoDone { token, result: Err(error) });
    assert!(shard.engine.status().disk_full);
    shard.hold_only = None;
    shard.live(60_000_000);
    assert!(!shard.engine.status().disk_full, "it is tried again");
    shard.produce(group, &batch(0, None, &[b"goes on"]));
}

#[test]
fn files_that_nobody_used_are_used_after_a_restart() {
    let mut shard = shard();
    shard.live(2_000_000);
    let group = GroupId::new(shard.create("restarted", 1), 0);
    shard.produce(group, &batch(0, None, &[b"before"]));
    let mut shard = shard.restart();
    shard.live(2_000_000);
    assert_eq!(files(&shard), AHEAD);
    assert_eq!(shard.engine.status().journal_files_free, AHEAD - 1);
    for at in 0..300 {
        shard.produce(group, &batch(at, None, &[&vec![7; 512 << 10]]));
        shard.live(1_000);
    }
    assert_eq!(files(&shard), AHEAD);
    assert_eq!(shard.read_all(group).len(), 301);
}

/// Fails the making of the file that is held back, and says what.
fn fail_the_file(shard: &mut Shard) {
    let Some(Action::Io { token, .. }) = shard.held.pop() else { panic!("no file is being made") };
    let detail = "open journal.7: too many open files".into();
    let error = IoError { kind: IoErrorKind::Other, detail };
    shard.event(Event::IoDone { token, result: Err(error) });
}

#[test]
fn a_file_ahead_that_can_not_be_made_stops_nothing() {
    for needed_meanwhile in [false, true] {
        let mut shard = shard();
        let group = GroupId::new(shard.create("fills", 1), 0);
        shard.hold_only = Some(|op| matches!(op, IoOp::CreateZeroed { .. }));
        shard.live(100_000);
        while needed_meanwhile && shard.engine.status().journal_files_free > 0 {
            shard.produce(group, &batch(0, None, &[&vec![7; 512 << 10]]));
        }
        fail_the_file(&mut shard);
        let status = shard.engine.status();
        assert!(status.ready && !status.disk_full && status.fenced.is_none(), "{:?}", status.fenced);
        let told = |(level, text): &(LogLevel, String)| {
            *level == LogLevel::Warn && text.contains("too many open files") && !text.contains("free space")
        };
        assert_eq!(shard.logs.iter().filter(|log| told(log)).count(), 1);
        shard.produce(group, &batch(0, None, &[b"goes on"]));
        // Nobody is to wait for the next one but who needs it; and that one must not fail.
        shard.live(2_000_000);
        assert_eq!(!shard.held.is_empty(), needed_meanwhile);
        if needed_meanwhile {
            fail_the_file(&mut shard);
            assert!(shard.recover_wanted.is_some() || shard.engine.status().fenced.is_some());
        }
    }
}
