//! Settings of a node: their types, where each value comes from, and what is wrong with them.
//!
//! Values are laid over each other: default < preset < file < environment < command line. [`load`] takes all of them
//! as text (nothing here reads a file or the environment) and returns the [`Config`] together with the origin of every
//! value, or *all* errors at once. The keys are listed in [`keys::KEYS`]; the parser, `pyralog config show` and
//! `docs/configuration.md` all follow that table.

mod cluster;
pub mod docs;
mod error;
mod field;
pub mod keys;
mod load;
pub mod presets;
mod tree;
mod units;
mod validate;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

pub use cluster::{ClusterNode, ElectionTimeoutConfig, ReplicationConfig};
pub use error::{ConfigError, ConfigErrors};
pub use load::{Effective, Flag, Layers, Origin, load};
pub use units::parse_cpus;

use crate::limits;

/// Settings of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Who this node is and where its files are.
    pub node: NodeConfig,
    /// Addresses and connections.
    pub network: NetworkConfig,
    /// Journal, cache and segments.
    pub storage: StorageConfig,
    /// Copies of partitions and the agreement between them.
    pub replication: ReplicationConfig,
    /// Cores and memory.
    pub runtime: RuntimeConfig,
}

/// `node.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Number of this node.
    pub node_id: u32,
    /// Folder of segments and metadata.
    pub data_dir: PathBuf,
    /// Folder of the journals; see [`Config::journal_dir`].
    pub journal_dir: Option<PathBuf>,
    /// Name of the cluster; see [`Config::cluster_id`].
    pub cluster_name: String,
    /// The cluster's nodes; see [`Config::cluster_nodes`].
    pub cluster_nodes: Vec<ClusterNode>,
    /// What fails together with this node.
    pub rack: Option<String>,
    /// The highest feature level that this node says it supports; see [`crate::features`].
    pub feature_level_max: u32,
}

/// `network.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Where clients connect.
    pub listen_address: SocketAddr,
    /// Where other nodes connect.
    pub internal_address: Option<SocketAddr>,
    /// What clients are told; see [`Config::advertised_address`].
    pub advertised_address: Option<String>,
    /// Most client connections of the node.
    pub max_connections: u32,
    /// Longest time until a request is answered, milliseconds.
    pub request_timeout_ms: u64,
}

/// `storage.*`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageConfig {
    /// Segments.
    pub segment_config: SegmentConfig,
    /// Tail cache.
    pub cache_config: CacheConfig,
    /// When a journal write counts as done.
    pub fsync_policy: FsyncPolicy,
    /// What is deleted when.
    pub retention: RetentionConfig,
    /// Segments that are read again to find what has rotted.
    pub scrub: ScrubConfig,
    /// Journal files.
    pub journal: JournalConfig,
}

/// `storage.segment_config.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentConfig {
    /// Size at which a segment is closed, bytes.
    pub max_size: u64,
    /// Flush every segment write instead of once per checkpoint.
    pub sync_on_write: bool,
    /// Always `false` in a valid configuration.
    pub use_mmap: bool,
}

/// `storage.cache_config.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Tail cache of the node, bytes; see [`Config::cache_bytes_per_shard`].
    pub max_size: u64,
    /// Longest time a committed batch stays out of the segments, milliseconds.
    pub max_buffer_time_ms: u64,
    /// Whether batches stay in the cache after they were written to segments.
    pub enabled: bool,
}

/// When a journal write counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// Every group commit is on stable storage before it is acknowledged.
    #[default]
    EveryWrite,
    /// Acknowledged when written; a flush follows at this interval, microseconds.
    Interval(u64),
    /// Acknowledged when written; the operating system flushes when it likes.
    Never,
}

/// `storage.retention.*`: defaults for topics that do not say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Bytes kept per partition; `None` = unlimited.
    pub bytes: Option<u64>,
    /// Age at which segments are deleted, milliseconds; `None` = unlimited.
    pub ms: Option<u64>,
}

/// `storage.scrub.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubConfig {
    /// From the end of one scrub to the begin of the next, milliseconds; `None` = when asked for only.
    pub interval_ms: Option<u64>,
    /// How fast segments are read, bytes per second and node.
    pub rate: u64,
}

/// `storage.journal.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalConfig {
    /// Size of one journal file, bytes; a multiple of [`limits::CHUNK_BYTES`].
    pub file_size: u64,
    /// Group commits on their way to the disk at once, per shard.
    pub writes_in_flight: u32,
}

/// `runtime.*`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Number of shards; `None` = one per CPU.
    pub shards: Option<u32>,
    /// CPUs to run on, ascending, without repetition; `None` = those the process may use.
    pub cpus: Option<Vec<usize>>,
    /// How long an idle core polls before it sleeps, microseconds.
    pub spin_us: u64,
    /// Which pages the big buffers use.
    pub hugepages: Hugepages,
    /// Refuse to start when the sum of all bounds is above this, bytes.
    pub memory: Option<u64>,
}

/// Which pages the big buffers use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hugepages {
    /// Ordinary pages.
    Off,
    /// `madvise(MADV_HUGEPAGE)`: the kernel uses large pages when it has some.
    #[default]
    Transparent,
    /// Reserved large pages (`vm.nr_hugepages`).
    Explicit,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            node_id: 1,
            data_dir: PathBuf::from("./data"),
            journal_dir: None,
            cluster_name: "pyralog".to_owned(),
            cluster_nodes: Vec::new(),
            rack: None,
            feature_level_max: crate::FeatureLevels::OURS.max.into(),
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            listen_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9092)),
            internal_address: None,
            advertised_address: None,
            max_connections: 16_384,
            request_timeout_ms: 30_000,
        }
    }
}

impl Default for SegmentConfig {
    fn default() -> Self {
        Self { max_size: 256 << 20, sync_on_write: false, use_mmap: false }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { max_size: 256 << 20, max_buffer_time_ms: 10_000, enabled: true }
    }
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { interval_ms: Some(7 * 24 * 3_600_000), rate: 16 << 20 }
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { file_size: 64 << 20, writes_in_flight: 2 }
    }
}

impl Config {
    /// Folder of the journals: `node.journal_dir`, or `journal` in the data folder.
    pub fn journal_dir(&self) -> PathBuf {
        self.node.journal_dir.clone().unwrap_or_else(|| self.node.data_dir.join("journal"))
    }

    /// What clients are told to connect to: `network.advertised_address`, or the listen address with the port that
    /// was really bound (the configured one may be 0).
    pub fn advertised_address(&self, bound_port: u16) -> String {
        match &self.network.advertised_address {
            Some(address) => address.clone(),
            None => SocketAddr::new(self.network.listen_address.ip(), bound_port).to_string(),
        }
    }

    /// The tail cache of one of `shards` shards, bytes: an equal part in whole chunks, at least
    /// [`limits::MIN_CACHE_CHUNKS`].
    pub fn cache_bytes_per_shard(&self, shards: u16) -> u64 {
        limits::cache_bytes_per_shard(self.storage.cache_config.max_size, shards)
    }
}
