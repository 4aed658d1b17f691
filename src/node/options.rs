//! From the configuration to what the shards are started with.

use std::path::Path;
use std::time::Duration;

use pyralog_core::config::{Config, Hugepages};
use pyralog_core::{FeatureLevels, NodeId, ShardId};
use pyralog_shard::engine::{EngineConfig, PeerId, election};
use pyralog_shard::runtime::peers::LinkTiming;
use pyralog_shard::runtime::{InternalOptions, NodeOptions};
use pyralog_tuning::cpus;

use crate::failure::{Exit, Failure};
use crate::kernel_checks::Needs;

/// Locked memory that a shard's executor and rings take, bytes.
const MEMLOCK_PER_SHARD: u64 = (1 << 20) + (256 << 10);

/// The CPU of each shard: those configured, or all that this process may use. `None` = not pinned, when there are
/// to be more shards than CPUs.
pub(crate) fn shard_cpus(config: &Config) -> Result<Vec<Option<usize>>, Failure> {
    let allowed = match &config.runtime.cpus {
        Some(cpus) => cpus.clone(),
        None => allowed_cpus()?,
    };
    Ok(place(&allowed, config.runtime.shards))
}

fn place(allowed: &[usize], shards: Option<u32>) -> Vec<Option<usize>> {
    let most = usize::from(pyralog_core::limits::MAX_SHARDS);
    let count = shards.map_or(allowed.len(), |shards| shards as usize).clamp(1, most);
    match count <= allowed.len() {
        true => allowed.iter().take(count).copied().map(Some).collect(),
        false => vec![None; count],
    }
}

/// The CPUs that this process may use, ascending.
fn allowed_cpus() -> Result<Vec<usize>, Failure> {
    cpus::allowed().map_err(|error| no_cpus(&error))
}

/// The CPUs for nodes on this machine with their data under `folder`, in the order in which they get them.
pub(crate) fn cpus_for_nodes(folder: &Path) -> Result<Vec<usize>, Failure> {
    cpus::for_nodes(folder).map_err(|error| no_cpus(&error))
}

fn no_cpus(error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::CannotStart,
        format!(
            "the system does not tell which CPUs this process may use ({error}); name them with --cpus 0-3 (runtime.cpus)"
        ),
    )
}

/// What the kernel checks compare with.
pub(crate) fn needs(config: &Config, shards: usize, memory_bound_bytes: u64) -> Needs {
    Needs {
        shards: shards as u64,
        max_connections: config.network.max_connections.into(),
        memlock_bytes: MEMLOCK_PER_SHARD.saturating_mul(shards as u64),
        transparent_hugepages: config.runtime.hugepages == Hugepages::Transparent,
        memory_bound_bytes,
    }
}

/// What the node is started with.
pub(crate) fn node(config: &Config, shards: Vec<Option<usize>>) -> Result<NodeOptions, Failure> {
    if config.runtime.hugepages == Hugepages::Explicit {
        return Err(Failure::usage(
            "runtime.hugepages: explicit is refused: this version takes no reserved huge pages; write transparent",
        ));
    }
    let engine = engine(config, shards.len());
    Ok(NodeOptions {
        shards,
        data_dir: config.node.data_dir.clone(),
        journal_dir: config.journal_dir(),
        listen: config.network.listen_address,
        internal: internal(config),
        max_connections: config.network.max_connections as usize,
        request_timeout: Duration::from_millis(config.network.request_timeout_ms),
        spin_us: config.runtime.spin_us,
        transparent_hugepages: config.runtime.hugepages == Hugepages::Transparent,
        engine,
    })
}

/// How the node speaks with the others, if there are any.
fn internal(config: &Config) -> Option<InternalOptions> {
    let listen = config.network.internal_address.filter(|_| config.is_clustered())?;
    let others = config.cluster_nodes().filter(|(id, _)| *id != config.node.node_id);
    Some(InternalOptions {
        listen,
        cluster_id: config.cluster_id(),
        peers: others.map(|(id, address)| (NodeId(id), address.to_owned())).collect(),
        timing: LinkTiming::default(),
    })
}

/// Where the others find this node: its own entry in the list that all have.
fn own_internal_address(config: &Config) -> String {
    let own = config.cluster_nodes().find(|(id, _)| config.is_clustered() && *id == config.node.node_id);
    own.map(|(_, address)| address.to_owned()).unwrap_or_default()
}

/// Shard 0 of every node, when there are several.
fn metadata_replicas(config: &Config) -> Vec<PeerId> {
    if !config.is_clustered() {
        return Vec::new();
    }
    let mut replicas: Vec<PeerId> =
        config.cluster_nodes().map(|(id, _)| PeerId { node: NodeId(id), shard: ShardId(0) }).collect();
    replicas.sort_unstable();
    replicas
}

/// The template of every shard's settings; the node fills in what differs.
fn engine(config: &Config, shards: usize) -> EngineConfig {
    let shards = u16::try_from(shards).unwrap_or(pyralog_core::limits::MAX_SHARDS);
    let storage = &config.storage;
    EngineConfig {
        node: NodeId(config.node.node_id),
        shards,
        // Empty: what is listened on, whose port may not be known before.
        advertised_address: config.network.advertised_address.clone().unwrap_or_default(),
        topic_quorums: config.topic_quorums(),
        election: election(config),
        internal_address: own_internal_address(config),
        rack: config.node.rack.clone().unwrap_or_default(),
        feature_levels: FeatureLevels::OURS
            .up_to(u16::try_from(config.node.feature_level_max).unwrap_or(u16::MAX)),
        metadata_replicas: metadata_replicas(config),
        cluster_name: config.node.cluster_name.clone(),
        server_version: format!("pyralog {}", env!("CARGO_PKG_VERSION")),
        cache_bytes: config.cache_bytes_per_shard(shards) as usize,
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
        scrub_bytes_per_s: storage.scrub.rate / u64::from(shards).max(1),
        recovery_bytes_per_s: config.replication.recovery_rate,
        request_timeout_us: config.network.request_timeout_ms.saturating_mul(1_000),
        ack_timeout_us: config.replication.ack_timeout_ms.saturating_mul(1_000),
        ..EngineConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyralog_core::config::FsyncPolicy;

    #[test]
    fn shards_have_a_cpu_each_or_none_is_pinned() {
        assert_eq!(place(&[2, 5], None), [Some(2), Some(5)]);
        assert_eq!(place(&[2, 5], Some(1)), [Some(2)]);
        assert_eq!(place(&[2, 5], Some(3)), [None, None, None]);
    }

    #[test]
    fn this_process_may_use_a_cpu() {
        assert!(!shard_cpus(&Config::default()).unwrap().is_empty());
    }

    #[test]
    fn settings_reach_the_engine_in_its_units() {
        let mut config = Config::default();
        config.storage.fsync_policy = FsyncPolicy::Interval(10_000);
        config.storage.cache_config.max_buffer_time_ms = 7;
        config.network.request_timeout_ms = 3;
        let options = node(&config, vec![Some(0), None]).unwrap();
        assert_eq!(options.engine.fsync, FsyncPolicy::Interval(10_000));
        assert_eq!((options.engine.max_buffer_time_us, options.engine.request_timeout_us), (7_000, 3_000));
        assert_eq!(options.engine.cache_bytes as u64 * 2, config.storage.cache_config.max_size);
        config.runtime.hugepages = Hugepages::Explicit;
        assert_eq!(node(&config, vec![None]).unwrap_err().exit, Exit::Usage);
    }
}
