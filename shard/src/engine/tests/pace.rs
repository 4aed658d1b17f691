//! How much the flusher gives the disk at once.

use pyralog_core::GroupId;

use super::super::{Action, FileId, IoOp};
use super::disk::MemDisk;
use super::harness::{Shard, batch, config};

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
