//! What a power loss may take and what it may not, where the journal is not flushed with every write.

use pyralog_core::{GroupId, Quorums};
use pyralog_net::message::{CreateTopicRequest, Request, Response};

use super::disk::MemDisk;
use super::harness::{Shard, batch, config};
use crate::engine::{FileId, FsyncPolicy, IoOp};

const P0: GroupId = GroupId::new(1, 0);

fn journal_sync(op: &IoOp) -> bool {
    matches!(op, IoOp::Sync { file: FileId::Journal(_) })
}

/// The disk after a power loss that took every journal write since `before`.
fn without_journal_since(before: &MemDisk, after: &MemDisk) -> MemDisk {
    let mut disk = after.clone();
    disk.files.retain(|file, _| !matches!(file, FileId::Journal(_)));
    let journal = before.files.iter().filter(|(file, _)| matches!(file, FileId::Journal(_)));
    disk.files.extend(journal.map(|(file, content)| (*file, content.clone())));
    disk
}

#[test]
fn a_checkpoint_remembers_nothing_that_its_journal_flush_does_not_cover() {
    let mut config = config();
    config.fsync = FsyncPolicy::Never;
    let mut shard = Shard::start(config.clone(), MemDisk::default());
    shard.create("t", 1);
    shard.produce(P0, &batch(0, Some((9, 0, 0)), &[b"flushed"]));
    shard.hold_only = Some(journal_sync);
    shard.advance(11_000_000);
    assert!(!shard.held.is_empty(), "the checkpoint waits for the journal's flush");
    // The flush covers what was written before it was asked for, not this.
    let covered = shard.disk.clone();
    let late = batch(0, Some((9, 0, 1)), &[b"late"]);
    assert!(matches!(shard.produce(P0, &late), Response::Produce(reply) if !reply.duplicate));
    let checkpoints = shard.engine.status().counters.checkpoints;
    shard.release_io();
    assert_eq!(shard.engine.status().counters.checkpoints, checkpoints + 1);

    let mut shard = Shard::start(config, without_journal_since(&covered, &shard.disk));
    assert_eq!(shard.read_all(P0).len(), 1);
    match shard.produce(P0, &late) {
        Response::Produce(reply) => assert!(!reply.duplicate && reply.base_offset == 1, "{reply:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(shard.read_all(P0).len(), 2);
}

#[test]
fn a_topic_is_durable_before_it_is_there_whatever_the_policy() {
    for fsync in [FsyncPolicy::Never, FsyncPolicy::Interval(60_000_000)] {
        let mut config = config();
        config.fsync = fsync;
        let mut shard = Shard::start(config, MemDisk::default());
        shard.hold_only = Some(journal_sync);
        let create = CreateTopicRequest {
            name: "t",
            partitions: 1,
            quorums: Quorums::UNSET,
            retention_bytes: -1,
            retention_ms: -1,
        };
        let id = shard.send(Request::CreateTopic(create));
        assert!(!shard.replies.contains_key(&id), "the command is written and not flushed");
        assert!(shard.engine.partition(P0).is_none(), "no shard has heard of it");
        // The command's flush is done, and the one for the frame that opens the partition is asked for.
        let held = std::mem::take(&mut shard.held);
        shard.run(held);
        assert!(shard.engine.partition(P0).is_some());
        assert!(!shard.replies.contains_key(&id), "the opening is written and not flushed");
        shard.release_io();
        assert!(shard.replies.contains_key(&id));
        shard.hold_only = Some(journal_sync);
        shard.produce(P0, &batch(0, None, &[b"x"]));
        assert!(shard.held.is_empty(), "data waits for no flush");
    }
}
