//! What an engine tells about itself: plain numbers, copied out on request, never on the hot path.

use pyralog_core::ErrorCode;

/// Running totals since the engine started.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Batches appended.
    pub batches: u64,
    /// Records appended.
    pub records: u64,
    /// Bytes of batches appended.
    pub bytes: u64,
    /// Produces answered as duplicates.
    pub duplicates: u64,
    /// Fetches answered.
    pub fetches: u64,
    /// Bytes of batches sent to readers.
    pub fetched_bytes: u64,
    /// Fetches answered from the tail cache.
    pub cache_hits: u64,
    /// Fetches that read segments.
    pub cache_misses: u64,
    /// Group commits written.
    pub commits: u64,
    /// Bytes written to the journal, padding included.
    pub journal_bytes: u64,
    /// Bytes written to segments.
    pub segment_bytes: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Requests answered with an error, by code.
    pub errors: [u64; ErrorCode::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            batches: 0,
            records: 0,
            bytes: 0,
            duplicates: 0,
            fetches: 0,
            fetched_bytes: 0,
            cache_hits: 0,
            cache_misses: 0,
            commits: 0,
            journal_bytes: 0,
            segment_bytes: 0,
            checkpoints: 0,
            errors: [0; ErrorCode::ALL.len()],
        }
    }
}

/// State of one shard.
#[derive(Clone, Debug, Default)]
pub struct ShardStatus {
    /// The first group commit of this life is durable: requests are served.
    pub ready: bool,
    /// Why the shard is fenced, if it is.
    pub fenced: Option<String>,
    /// Writes are refused because the disk is full.
    pub disk_full: bool,
    /// Lives of the journal so far.
    pub incarnation: u64,
    /// Highest group commit that is durable with all before it.
    pub durable_lsn: u64,
    /// Journal files, in use and recycled.
    pub journal_files: u32,
    /// Journal files waiting to be used again.
    pub journal_files_free: u32,
    /// Bytes of committed batches not yet in segments.
    pub unflushed_bytes: u64,
    /// Chunk memory alive, bytes.
    pub cache_live_bytes: u64,
    /// Chunk memory allowed, bytes.
    pub cache_budget_bytes: u64,
    /// Partitions of this shard.
    pub partitions: u32,
    /// Partitions with a damaged range or an unknown end.
    pub damaged_partitions: u32,
    /// Fetches waiting for data.
    pub waiting_fetches: u32,
    /// Totals.
    pub counters: Counters,
}
