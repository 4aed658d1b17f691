//! What waits for a group commit.

use pyralog_net::message::Acks;
use pyralog_replication::raft::Standing;

use super::api::ConnId;

/// Something to do when a commit is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// A batch was appended by a client.
    Produce {
        conn: ConnId,
        correlation_id: u64,
        partition: u32,
        base_offset: i64,
        next_offset: i64,
        acks: Acks,
        duplicate: bool,
        deadline_us: u64,
    },
    /// The answer was given already (acks none, or its time was over); the append itself goes on.
    Answered { partition: u32, next_offset: i64 },
    /// What a group with several replicas put out under this number is laid down.
    Group { partition: u32, number: u64 },
    /// A metadata command was appended.
    Metadata { next_offset: i64 },
    /// The catalogue's changes up to this version are in the journal.
    Catalog { version: u64 },
    /// The group is dropped for good: its files can go, and its index is free. Whatever else waited with that
    /// index was appended before the drop and so is done before it.
    Dropped { group: pyralog_core::GroupId, partition: u32 },
    /// All that the only replica of a partition has is durable: it can become a group.
    Founding { partition: u32 },
    /// A replica has become this.
    Standing { partition: u32, standing: Standing },
    /// This life has begun.
    NewLife,
}

impl Pending {
    /// The high watermark that a produce waits for.
    pub(super) fn next_offset(&self) -> i64 {
        match self {
            Self::Produce { next_offset, .. } | Self::Answered { next_offset, .. } => *next_offset,
            _ => 0,
        }
    }
}
