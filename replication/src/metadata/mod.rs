//! The cluster's metadata as a deterministic state machine: commands in the log of the metadata group, folded
//! into a [`Catalog`]. Encoded with rkyv behind a version byte and always validated when decoded (decision D8).

mod assignment;
mod catalog;
mod encoding;
mod levels;
mod reassign;

pub use assignment::{Assignment, Replica, on_shard};
pub use catalog::{Catalog, Load, valid_topic_name};
pub use encoding::DecodeError;
pub use levels::not_supported;
pub use reassign::{Move, Settled};

use pyralog_core::Quorums;
use rkyv::{Archive, Deserialize, Serialize};

use crate::raft::Configuration;

/// A change of the metadata. Validated by [`Catalog::check`] before it is appended, applied when committed.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub enum Command {
    /// A node joins, or comes back with other addresses or shards.
    RegisterNode(NodeInfo),
    /// Create a topic; its id is `next_topic_id`.
    CreateTopic(TopicSpec),
    /// Delete a topic. Its id is never used again.
    DeleteTopic {
        /// Its id.
        topic: u32,
    },
    /// Reserve the next `count` producer ids.
    ReserveProducerIds {
        /// How many.
        count: u32,
    },
    /// Have the replicas of a partition be others. Where they are now: a move that is under way is taken back.
    Reassign {
        /// Its topic.
        topic: u32,
        /// Its number.
        partition: u32,
        /// As many as the topic is to have, the preferred leader first.
        to: Vec<Replica>,
    },
    /// The group of a partition has become what was wanted; its leader says so.
    Reassigned {
        /// Its topic.
        topic: u32,
        /// Its number.
        partition: u32,
        /// What it has become, confirmed.
        configuration: Configuration,
        /// Term of an entry that was committed then.
        term: u32,
        /// Its index.
        index: u64,
    },
    /// A topic has other settings from now on, and more partitions.
    AlterTopic {
        /// Its id.
        topic: u32,
        /// Replicas that each partition is to have. Those that there are get there by moves.
        replication_factor: u8,
        /// Its quorums.
        quorums: (u8, u8, u8),
        /// Bytes per partition; -1 = the node's default, 0 = unlimited.
        retention_bytes: i64,
        /// Milliseconds; -1 = the node's default, 0 = unlimited.
        retention_ms: i64,
        /// The replicas of the partitions that are added.
        added: Vec<Vec<Replica>>,
    },
    /// A node is to come: the others find it at this address, and let it in.
    AddNode {
        /// Its id.
        node: u32,
        /// Where other nodes connect, `host:port`.
        internal_address: String,
    },
    /// A node goes for good, or one that was to come does not. It holds nothing any more but the metadata, of which it is to hold none either.
    RemoveNode {
        /// Its id.
        node: u32,
    },
    /// Every node supports a higher feature level: from here on it may be used.
    RaiseFeatureLevel {
        /// The level.
        level: u16,
    },
    /// One replica of a partition goes on alone, as its others are lost for good.
    Force {
        /// The topic.
        topic: u32,
        /// The partition.
        partition: u32,
        /// Where that replica is.
        to: Replica,
        /// It leads in a higher term.
        term: u32,
    },
}

/// A node of the cluster.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct NodeInfo {
    /// Its id, from 1.
    pub id: u32,
    /// Where clients connect, `host:port`.
    pub client_address: String,
    /// Where other nodes connect, `host:port`; empty when it is alone.
    pub internal_address: String,
    /// What fails together with it; empty when nobody has said.
    pub rack: String,
    /// Its number of shards.
    pub shards: u16,
    /// Random number of its disk: another one means that everything it held is gone.
    pub disk: u64,
    /// Lowest feature level that it supports.
    pub level_min: u16,
    /// Highest feature level that it supports.
    pub level_max: u16,
    /// Version of the catalogue since which it has that disk. Filled in when the command is applied.
    pub disk_since: u64,
}

/// What a topic is created with.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Its partitions' replicas.
    pub assignment: Assignment,
    /// How many each of them is to have.
    pub replication_factor: u8,
    /// Durable copies that an acknowledgement needs.
    pub write_quorum: u8,
    /// Copies that a linearizable read asks.
    pub read_quorum: u8,
    /// Copies in sync without which no write is taken.
    pub min_insync_replicas: u8,
    /// Bytes per partition; -1 = the node's default, 0 = unlimited.
    pub retention_bytes: i64,
    /// Milliseconds; -1 = the node's default, 0 = unlimited.
    pub retention_ms: i64,
}

impl TopicSpec {
    /// Its copies and quorums. [`Catalog::quorums`] says what holds for a partition that is on its way to so many.
    pub fn quorums(&self) -> Quorums {
        Quorums {
            replication_factor: self.replication_factor,
            write_quorum: self.write_quorum,
            read_quorum: self.read_quorum,
            min_insync_replicas: self.min_insync_replicas,
        }
    }
}

/// A topic.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Topic {
    /// Its id.
    pub id: u32,
    /// Version of the catalogue that has it first.
    pub created: u64,
    /// What it was created with.
    pub spec: TopicSpec,
}

impl Topic {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> u32 {
        self.spec.assignment.partitions()
    }
}

#[cfg(test)]
mod tests;
