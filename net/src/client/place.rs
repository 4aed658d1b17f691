//! Where in a cluster a request goes.

use crate::message::{Consistency, PartitionMetadata};

/// A shard of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The node; 0 is whichever answers at the addresses that the client was given.
    pub node: u32,
    /// The shard.
    pub shard: u16,
}

impl Place {
    /// The first shard of whichever node answers: any node knows the cluster's metadata.
    pub const ANY: Self = Self { node: 0, shard: 0 };

    /// Where the partition is led; `None` while nobody leads it.
    pub fn leader_of(partition: &PartitionMetadata) -> Option<Self> {
        (partition.leader != 0).then_some(Self { node: partition.leader, shard: partition.shard })
    }

    /// Where the partition is read; `None` while nobody may answer. If any replica may, that is the leader on the first
    /// turn, as long as there is one, and the others on those after it.
    pub fn reader_of(partition: &PartitionMetadata, consistency: Consistency, turn: usize) -> Option<Self> {
        let replicas = || partition.replicas.iter();
        if consistency != Consistency::AnyReplica {
            return Self::leader_of(partition);
        }
        let first = replicas().position(|replica| replica.node == partition.leader).unwrap_or(0);
        let at = (first + turn).checked_rem(replicas().count())?;
        replicas().nth(at).map(|replica| Self { node: replica.node, shard: replica.shard })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} shard {}", self.node, self.shard)
    }
}
