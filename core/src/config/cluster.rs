//! `node.cluster_nodes` and `replication.*`: the types, and what follows from them.

use super::Config;
use crate::Quorums;

/// One entry of `node.cluster_nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// The node's id, when the entry names it (`ID@HOST:PORT`). Entries without ids are nodes 1, 2, 3 …
    pub id: Option<u32>,
    /// Its internal address, `host:port`.
    pub address: String,
}

impl std::fmt::Display for ClusterNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.id {
            Some(id) => write!(f, "{id}@{}", self.address),
            None => f.write_str(&self.address),
        }
    }
}

/// `replication.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationConfig {
    /// Copies of each partition of a new topic; `None` = three, or as many as there are nodes.
    pub factor: Option<u32>,
    /// Durable copies that an acknowledgement needs; `None` = a majority.
    pub write_quorum: Option<u32>,
    /// Copies that a linearizable read asks; `None` = a majority.
    pub read_quorum: Option<u32>,
    /// Copies in sync without which no write is taken; `None` = the write quorum.
    pub min_insync_replicas: Option<u32>,
    /// When a follower that hears nothing of its leader campaigns.
    pub election_timeout: ElectionTimeoutConfig,
    /// How often a leader is heard at least, milliseconds.
    pub heartbeat_ms: u64,
    /// How long a produce waits for its quorum, milliseconds.
    pub ack_timeout_ms: u64,
    /// What a node receives to bring its replicas up to date, bytes per second; `None` = as fast as it goes.
    pub recovery_rate: Option<u64>,
}

/// `replication.election_timeout.*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionTimeoutConfig {
    /// Shortest, milliseconds.
    pub min_ms: u64,
    /// Longest, milliseconds.
    pub max_ms: u64,
}

impl Default for ElectionTimeoutConfig {
    fn default() -> Self {
        Self { min_ms: 200, max_ms: 400 }
    }
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            factor: None,
            write_quorum: None,
            read_quorum: None,
            min_insync_replicas: None,
            election_timeout: ElectionTimeoutConfig::default(),
            heartbeat_ms: 50,
            ack_timeout_ms: 5_000,
            recovery_rate: Some(32 << 20),
        }
    }
}

/// Copies of a partition when nobody says how many and there are enough nodes.
const DEFAULT_REPLICATION_FACTOR: usize = 3;

impl Config {
    /// What the name of the cluster is on the wire: FNV-1a of its bytes, 64 bits.
    pub fn cluster_id(&self) -> u64 {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.node.cluster_name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
    }

    /// Whether there are other nodes.
    pub fn is_clustered(&self) -> bool {
        self.node.cluster_nodes.len() > 1
    }

    /// The nodes of the cluster: id and internal address, in the order of `node.cluster_nodes`; none when the node is
    /// alone.
    pub fn cluster_nodes(&self) -> impl Iterator<Item = (u32, &str)> {
        (1..).zip(&self.node.cluster_nodes).map(|(place, node)| (node.id.unwrap_or(place), &*node.address))
    }

    /// Copies and quorums of a topic that does not say them itself.
    pub fn topic_quorums(&self) -> Quorums {
        let auto = self.node.cluster_nodes.len().clamp(1, DEFAULT_REPLICATION_FACTOR) as u8;
        let given = |number: Option<u32>| number.map_or(0, |number| u8::try_from(number).unwrap_or(u8::MAX));
        let replication = &self.replication;
        let wanted = Quorums {
            replication_factor: given(replication.factor),
            write_quorum: given(replication.write_quorum),
            read_quorum: given(replication.read_quorum),
            min_insync_replicas: given(replication.min_insync_replicas),
        };
        Quorums::resolve(wanted, Quorums::of(auto))
    }
}
