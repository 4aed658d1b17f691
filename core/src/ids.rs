//! Identifiers. All are plain integers so that they cross the wire and the disk unchanged.

use std::fmt;

/// A node of the cluster. Unique within the cluster, chosen by the operator (`node.node_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// A shard of one node: the index of its core in the node's list of shards, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// A topic. Assigned by the metadata group, from 1 upwards, never used again. 0 is the metadata group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub u32);

/// One partition and the consensus group that replicates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    /// The topic that the partition belongs to.
    pub topic: TopicId,
    /// Index of the partition within its topic, from 0.
    pub partition: u32,
}

impl GroupId {
    /// The group that holds the cluster's metadata; it lives on shard 0.
    pub const METADATA: Self = Self { topic: TopicId(0), partition: 0 };

    /// The group of `partition` of `topic`.
    pub const fn new(topic: u32, partition: u32) -> Self {
        Self { topic: TopicId(topic), partition }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}
