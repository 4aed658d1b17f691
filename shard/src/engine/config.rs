//! What an engine is told once, at its start.

pub use pyralog_core::config::FsyncPolicy;
use pyralog_core::limits::{
    CHUNK_BYTES, MIN_CACHE_CHUNKS, TAIL_BYTES_PER_BATCH, UNCOMMITTED_PART_FOLLOWED, UNCOMMITTED_PART_LED,
};
use pyralog_core::{FeatureLevels, NodeId, Quorums, ShardId};
use pyralog_replication::raft::Timing;

use super::api::PeerId;

/// Settings of one shard's engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This node.
    pub node: NodeId,
    /// This shard.
    pub shard: ShardId,
    /// Shards of the node.
    pub shards: u16,
    /// The address that clients are told, `host:port`.
    pub advertised_address: String,
    /// The address that other nodes are told, `host:port`; empty when there are none.
    pub internal_address: String,
    /// What fails together with this node; empty when nobody has said.
    pub rack: String,
    /// Feature levels that this node says it supports.
    pub feature_levels: FeatureLevels,
    /// Copies and quorums of topics that do not say them.
    pub topic_quorums: Quorums,
    /// When replicas campaign, and how often a leader is heard.
    pub election: Timing,
    /// Shard 0 of the nodes that hold the metadata, this one among them; none when it is the only one. The same on all
    /// shards of all nodes.
    pub metadata_replicas: Vec<PeerId>,
    /// The cluster's name, told to clients.
    pub cluster_name: String,
    /// Version string told to clients.
    pub server_version: String,
    /// Random number drawn once when the data folder was made; stamped into every journal header so that a
    /// block of another node or shard is never taken for one of ours.
    pub journal_id: u64,
    /// Random number drawn once when the data folder was made, the same for all shards of the node: another one tells the
    /// other nodes that what this node has promised is lost. Not `u64::MAX`.
    pub disk_id: u64,
    /// All shards of the node have begun a life with this data folder before: one without anything on its disk has lost it.
    pub has_begun: bool,
    /// Tail cache, bytes (rounded up to whole chunks, at least four).
    pub cache_bytes: usize,
    /// Bytes of batches that a recovery keeps in memory; what is beyond stays in the journal until it is used.
    pub replay_memory_bytes: usize,
    /// Whether batches stay in the cache after they were written to segments.
    pub cache_enabled: bool,
    /// Longest time a committed batch stays out of the segments, microseconds.
    pub max_buffer_time_us: u64,
    /// Durability of group commits.
    pub fsync: FsyncPolicy,
    /// Size of one journal file, bytes; a multiple of `CHUNK_BYTES`.
    pub journal_file_bytes: u64,
    /// Make journal files before there is load, as many as a busy shard goes round in; else one whenever none is free.
    pub journal_files_ahead: bool,
    /// Group commits on their way to the disk at once.
    pub journal_writes_in_flight: usize,
    /// Size at which a segment is closed and the next one begun, bytes.
    pub segment_max_bytes: u64,
    /// Flush each segment write instead of once per checkpoint.
    pub segment_sync_on_write: bool,
    /// Retention by size per partition, bytes; `None` = unlimited.
    pub retention_bytes: Option<u64>,
    /// Retention by age, milliseconds; `None` = unlimited.
    pub retention_ms: Option<u64>,
    /// All segments are read and checked again so long after the last time, microseconds; `None` = when asked for only.
    pub scrub_interval_us: Option<u64>,
    /// How fast they are read for that, bytes per second.
    pub scrub_bytes_per_s: u64,
    /// What the node receives to bring replicas up to date, all of its shards together, bytes per second; `None` =
    /// unlimited, and no turns are wanted for it.
    pub recovery_bytes_per_s: Option<u64>,
    /// Answer a produce that is not done in this time with `RequestTimedOut`, microseconds.
    pub request_timeout_us: u64,
    /// A produce that has its offset and not its quorum in this time is answered so as well, microseconds.
    pub ack_timeout_us: u64,
    /// A deliberate bug, for the simulator's own tests.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<super::planted::PlantedBug>,
}

impl EngineConfig {
    /// Whether several nodes hold the metadata.
    pub(super) fn is_clustered(&self) -> bool {
        self.metadata_replicas.len() > 1
    }

    /// The tail cache in bytes, at least the smallest that works.
    pub(super) fn cache_bound(&self) -> usize {
        self.cache_bytes.max(MIN_CACHE_CHUNKS * CHUNK_BYTES)
    }

    /// Bytes that are not committed in all groups that this shard leads (`true`) or follows.
    pub(super) fn uncommitted_bound(&self, led: bool) -> usize {
        self.cache_bound() / if led { UNCOMMITTED_PART_LED } else { UNCOMMITTED_PART_FOLLOWED }
    }

    /// Batches that the tail cache may hold.
    pub(super) fn cache_batches(&self) -> usize {
        self.cache_bound() / TAIL_BYTES_PER_BATCH
    }
}
