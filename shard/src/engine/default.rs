//! Settings to start from. Not a literal in every caller: the simulator's build has one field more.

use pyralog_core::config::Config;
use pyralog_core::{FeatureLevels, NodeId, ShardId};
use pyralog_replication::raft::Timing;

use super::EngineConfig;

/// The times of elections as the configuration says them.
pub fn election(config: &Config) -> Timing {
    let replication = &config.replication;
    Timing {
        election_min_us: replication.election_timeout.min_ms.saturating_mul(1_000),
        election_max_us: replication.election_timeout.max_ms.saturating_mul(1_000),
        heartbeat_us: replication.heartbeat_ms.saturating_mul(1_000),
    }
}

impl Default for EngineConfig {
    /// The defaults of a node's configuration, for a single shard that holds the whole cache.
    fn default() -> Self {
        let config = Config::default();
        let storage = &config.storage;
        Self {
            node: NodeId(config.node.node_id),
            shard: ShardId(0),
            shards: 1,
            advertised_address: String::new(),
            internal_address: String::new(),
            rack: String::new(),
            feature_levels: FeatureLevels::OURS,
            topic_quorums: config.topic_quorums(),
            election: election(&config),
            metadata_replicas: Vec::new(),
            cluster_name: config.node.cluster_name.clone(),
            server_version: String::new(),
            journal_id: 0,
            disk_id: 0,
            has_begun: false,
            cache_bytes: config.cache_bytes_per_shard(1) as usize,
            replay_memory_bytes: pyralog_core::limits::REPLAY_MEMORY_BYTES_PER_SHARD,
            cache_enabled: storage.cache_config.enabled,
            max_buffer_time_us: storage.cache_config.max_buffer_time_ms.saturating_mul(1_000),
            fsync: storage.fsync_policy,
            journal_file_bytes: storage.journal.file_size,
            journal_files_ahead: true,
            journal_writes_in_flight: storage.journal.writes_in_flight as usize,
            segment_max_bytes: storage.segment_config.max_size,
            segment_sync_on_write: storage.segment_config.sync_on_write,
            retention_bytes: storage.retention.bytes,
            retention_ms: storage.retention.ms,
            scrub_interval_us: storage.scrub.interval_ms.map(|ms| ms.saturating_mul(1_000)),
            scrub_bytes_per_s: storage.scrub.rate,
            recovery_bytes_per_s: config.replication.recovery_rate,
            request_timeout_us: config.network.request_timeout_ms.saturating_mul(1_000),
            ack_timeout_us: config.replication.ack_timeout_ms.saturating_mul(1_000),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}
