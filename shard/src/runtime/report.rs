//! What a shard tells about itself when it is asked.

use std::sync::Arc;

use hdrhistogram::Histogram;
use pyralog_core::{GroupId, ShardId};
use pyralog_net::message::PartitionState;

use super::ring::RingStats;
use super::stages::Stages;
use crate::engine::{Engine, ShardStatus};

/// Of which partitions somebody wants to know the state.
#[derive(Clone, Debug)]
pub(super) enum PartitionsWanted {
    /// Of one topic, or of all.
    OfTopic(Option<u32>),
    /// Of these. What it costs the shard does not depend on how many others there are.
    Groups(Arc<[GroupId]>),
}

impl PartitionsWanted {
    /// Those that the shard has.
    pub(super) fn of(&self, engine: &Engine) -> Vec<(GroupId, PartitionState)> {
        match self {
            Self::OfTopic(topic) => {
                let mut states = engine.partitions();
                states.retain(|(group, _)| topic.is_none_or(|topic| group.topic.0 == topic));
                states
            }
            Self::Groups(groups) => {
                groups.iter().filter_map(|group| Some((*group, engine.partition(*group)?))).collect()
            }
        }
    }
}

/// State of one shard: its engine and its driver.
#[derive(Clone, Debug)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// Its engine. While the shard re-reads its disk: only `fenced` says something.
    pub status: ShardStatus,
    /// Connections open.
    pub connections: u64,
    /// Bytes of replies waiting in queues or on their way into sockets.
    pub queued_reply_bytes: u64,
    /// Connections accepted so far.
    pub accepted: u64,
    /// Connections refused because the node was at its bound.
    pub refused: u64,
    /// Connections closed because their time was over.
    pub timed_out: u64,
    /// Connections closed because they read too slowly and memory was short.
    pub shed: u64,
    /// From the engine's decision to a journal write's completion, microseconds.
    pub journal_write_us: Histogram<u64>,
    /// From a produce's arrival to its reply, microseconds.
    pub produce_us: Histogram<u64>,
    /// The parts of that.
    pub stages: Stages,
    /// Longest time that one pass over the shard's events took, microseconds.
    pub longest_pass_us: u64,
    /// Passes so far.
    pub passes: u64,
    /// The ring.
    pub ring: RingStats,
    /// Files open.
    pub open_files: usize,
}
