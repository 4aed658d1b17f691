//! What an engine tells about itself: plain numbers, copied out on request, never on the hot path.

use pyralog_core::ErrorCode;

use super::ScrubCounters;

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
    /// Of replication.
    pub replication: ReplicationCounters,
    /// Of scrubbing.
    pub scrub: ScrubCounters,
}

/// Running totals of the groups with several replicas, the metadata's included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicationCounters {
    /// Elections begun here: each time a replica asked whether it would be elected.
    pub elections: u64,
    /// Leaderships begun here.
    pub elections_won: u64,
    /// Leaderships that ended here, those that were handed over included.
    pub leaderships_lost: u64,
    /// Leaderships that ended here because they were handed over.
    pub hand_overs: u64,
    /// Produces that got their offset and not their quorum in time.
    pub ack_timeouts: u64,
    /// Messages of leaders that were refused because a later epoch is known.
    pub stale_messages: u64,
    /// Times that a follower here began to fetch batches from its leader's segments, came to the end of that, and gave it
    /// up for then.
    pub catch_ups: u64,
    /// See `catch_ups`.
    pub catch_ups_done: u64,
    /// See `catch_ups`.
    pub catch_ups_given_up: u64,
    /// Bytes of batches so fetched.
    pub catch_up_bytes: u64,
    /// Bytes that came under the rate of recovery: what catch-ups of partitions and repairs of segments were answered.
    pub recovery_bytes: u64,
    /// Time in which something waited for that rate, microseconds.
    pub recovery_waited_us: u64,
}

/// The replicas of one shard at one moment; the metadata's is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicationStatus {
    /// Partitions led here.
    pub led: u32,
    /// Replicas here that follow a leader.
    pub followed: u32,
    /// Replicas here that know of no leader.
    pub leaderless: u32,
    /// Replicas here that take no part: their others are not known, or damage or a lost disk hides what they have promised.
    pub offline: u32,
    /// Partitions led here of which not all replicas are in sync.
    pub under_replicated: u32,
    /// Partitions led here of which fewer replicas are in sync than a write needs.
    pub below_min_insync: u32,
    /// The most records that a follower of a partition led here lacks, of those of which it is known.
    pub lag_records: u64,
    /// The most bytes, likewise.
    pub lag_bytes: u64,
    /// The longest that a follower of a partition led here has not had everything, microseconds.
    pub lag_us: u64,
    /// Produces that wait for their quorum.
    pub waiting_produces: u32,
    /// The node that leads the metadata; 0 = not known here.
    pub controller: u32,
    /// The other nodes that this shard keeps links to, in the order of their ids.
    pub peers: Vec<PeerStatus>,
}

/// The links of one shard to the shards of another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// The node.
    pub node: u32,
    /// Shards there that this one needs a link to.
    pub links: u32,
    /// Those of them that can be reached.
    pub links_up: u32,
    /// For how long the one has been down that is down for longest, microseconds; 0 when none is.
    pub down_us: u64,
    /// Times that a link came up.
    pub ups: u64,
    /// Times that a link went down.
    pub downs: u64,
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
            replication: ReplicationCounters::default(),
            scrub: ScrubCounters::default(),
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
    /// Bytes of batches not yet in segments.
    pub unflushed_bytes: u64,
    /// Bytes of batches of partitions with several replicas that are not known to be committed.
    pub uncommitted_bytes: u64,
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
    /// The rate that catch-ups and repairs of the whole node keep to, bytes per second; 0 = none.
    pub recovery_bytes_per_s: u64,
    /// Replicas and their leaders.
    pub replication: ReplicationStatus,
    /// Totals.
    pub counters: Counters,
}
