//! What is appended and not committed, and how much of it there may be: it can go neither to segments nor out of the cache,
//! so that a shard which took all it is sent would have no memory left for the groups that do commit.

use pyralog_core::ErrorCode;
use pyralog_core::limits::{TAIL_ENTRY_STATE_BYTES, UNCOMMITTED_BYTES_PER_GROUP};
use pyralog_replication::raft::Header;

use super::Engine;
use super::partition::Partition;
use super::produce::Refusal;
use super::producers::Appended;
use super::replica::Replica;

/// Lists that grow are up to twice as large as what they hold.
const _: () = assert!(
    2 * (size_of::<Header>() + size_of::<u64>() + size_of::<Appended>()) <= TAIL_ENTRY_STATE_BYTES,
    "what a group keeps of a batch is more than the memory bound says"
);

/// Bytes of batches that are not committed, of one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uncommitted {
    bytes: u64,
    /// The replica leads.
    led: bool,
}

/// The same for all replicas of a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UncommittedSums {
    led_bytes: u64,
    followed_bytes: u64,
}

impl UncommittedSums {
    /// Of both kinds, bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.led_bytes + self.followed_bytes
    }

    fn of(&mut self, led: bool) -> &mut u64 {
        match led {
            true => &mut self.led_bytes,
            false => &mut self.followed_bytes,
        }
    }

    /// A replica has one batch more.
    pub(super) fn add(&mut self, of: &mut Uncommitted, bytes: u64) {
        of.bytes += bytes;
        *self.of(of.led) += bytes;
    }

    /// A replica is gone.
    pub(super) fn remove(&mut self, of: Uncommitted) {
        *self.of(of.led) -= of.bytes;
    }
}

impl Partition {
    /// Counted anew, by the high watermark.
    fn count_uncommitted(&self) -> Uncommitted {
        let Replica::Raft(replica) = &self.replica else { return Uncommitted::default() };
        let first = self.tail.partition_point(|batch| batch.next_offset <= replica.high_watermark);
        let bytes = self.tail.get(first).map_or(0, |batch| self.appended_bytes - batch.bytes_before);
        Uncommitted { bytes, led: replica.led }
    }
}

impl Engine {
    /// The high watermark, the end of the log or the role of a replica has changed.
    pub(super) fn recount_uncommitted(&mut self, index: u32) {
        let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        let counted = partition.count_uncommitted();
        self.replication.uncommitted.remove(std::mem::replace(&mut partition.uncommitted, counted));
        *self.replication.uncommitted.of(counted.led) += counted.bytes;
    }

    /// Whether a partition may have so many bytes more that are not committed.
    pub(super) fn check_uncommitted(&self, index: u32, bytes: usize) -> Result<(), Refusal> {
        let Some(partition) = self.at(index) else { return Ok(()) };
        if partition.replica.raft().is_none() {
            return Ok(());
        }
        let (group, own) = (partition.group, partition.uncommitted.bytes);
        if own as usize + bytes > UNCOMMITTED_BYTES_PER_GROUP {
            let text = format!(
                "{own} bytes of partition {group} wait for a quorum of its replicas; look at the nodes that hold them"
            );
            return Err((ErrorCode::Overloaded, text));
        }
        let (led, bound) = (self.replication.uncommitted.led_bytes, self.config.uncommitted_bound(true));
        if led as usize + bytes > bound {
            let shard = self.config.shard;
            let text = format!(
                "{led} bytes of the partitions that shard {shard} leads wait for a quorum of their replicas; look at the other nodes"
            );
            return Err((ErrorCode::Overloaded, text));
        }
        Ok(())
    }

    /// Whether so many bytes more may be taken from leaders.
    pub(super) fn may_follow(&self, bytes: usize) -> bool {
        let followed = self.replication.uncommitted.followed_bytes as usize;
        followed + bytes <= self.config.uncommitted_bound(false)
    }
}
