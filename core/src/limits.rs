//! Every bound of the system in one place (decision D10). [`memory_bound`] adds up what they allow.
//!
//! A length from the wire or the disk is compared with its bound here before it is used.

/// Largest record batch accepted from a producer, bytes, header included.
pub const MAX_BATCH_BYTES: usize = 1 << 20;
/// Smallest possible record batch: the v2 header without records, bytes.
pub const BATCH_HEADER_BYTES: usize = 61;
/// Largest number of records in one batch.
pub const MAX_BATCH_RECORDS: u32 = 1 << 20;
/// Largest result of decompressing one batch, bytes: what a hostile batch can make a reader allocate.
pub const MAX_DECOMPRESSED_BYTES: usize = 64 << 20;
/// Size of a frame header, bytes.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Largest body of a request frame, bytes: one batch and the produce header.
pub const MAX_REQUEST_BODY_BYTES: usize = MAX_BATCH_BYTES + 1024;
/// Largest body of a reply frame, bytes: a full fetch and its header.
pub const MAX_REPLY_BODY_BYTES: usize = MAX_FETCH_BYTES + (1 << 20);
/// Most bytes of batches that one fetch may ask for. One batch is always returned whole.
pub const MAX_FETCH_BYTES: usize = 8 << 20;
/// Longest time a fetch may wait for data, milliseconds.
pub const MAX_FETCH_WAIT_MS: u32 = 60_000;
/// Fetches that may wait for data at once, per shard.
pub const MAX_WAITING_FETCHES_PER_SHARD: usize = 65_536;
/// Longest topic name, bytes (ASCII).
pub const MAX_TOPIC_NAME_BYTES: usize = 249;
/// Most partitions of one topic.
pub const MAX_PARTITIONS_PER_TOPIC: u32 = 65_536;
/// Most partitions of a cluster, all topics together, and so of a node.
pub const MAX_PARTITIONS_PER_NODE: u32 = 131_072;
/// Most topics of a cluster.
pub const MAX_TOPICS: u32 = 65_536;
/// Most shards of one node.
pub const MAX_SHARDS: u16 = 256;
/// Most replicas of one partition.
pub const MAX_REPLICATION_FACTOR: u8 = 5;
/// Longest name of a cluster, bytes.
pub const MAX_CLUSTER_NAME_BYTES: usize = 64;
/// Longest name of a rack, bytes.
pub const MAX_RACK_BYTES: usize = MAX_CLUSTER_NAME_BYTES;
/// Longest address of a node, bytes.
pub const MAX_ADDRESS_BYTES: usize = 512;
/// Requests of one connection whose replies are outstanding; beyond it the socket is not read, and what was read
/// already waits.
pub const MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION: usize = 4_096;
/// Requests of all connections of one shard whose replies are outstanding; beyond it no socket is read, and what was
/// read already waits.
pub const MAX_IN_FLIGHT_REQUESTS_PER_SHARD: usize = 262_144;
/// Reply bytes queued on one connection; beyond it the socket is not read, and what was read already waits.
pub const MAX_QUEUED_REPLY_BYTES_PER_CONNECTION: usize = 256 << 10;
/// Memory of replies queued on all connections of one shard, batches in the cache and in read buffers not counted;
/// beyond it no socket is read, and what was read already waits.
pub const MAX_QUEUED_REPLY_BYTES_PER_SHARD: usize = 64 << 20;
/// Requests with replies out of all proportion to them (Metadata, DescribePartitions) that one shard answers before it
/// looks again at the bounds of the replies; one per connection.
pub const LARGE_REPLIES_AT_ONCE: usize = 8;
/// Receive buffers of a shard: number.
pub const RECV_BUFFERS_PER_SHARD: usize = 256;
/// Receive buffers of a shard: size of one, bytes.
pub const RECV_BUFFER_BYTES: usize = 64 << 10;
/// Memory for frames that span receive buffers, per shard, bytes.
pub const ASSEMBLY_BYTES_PER_SHARD: usize = 64 << 20;
/// Memory for reads from segments (replies under way and read-ahead), per shard, bytes.
pub const COLD_READ_BYTES_PER_SHARD: usize = 64 << 20;
/// A journal counts as being written for so long after it was, microseconds: reads of segments hold back for its writes.
pub const JOURNAL_QUIET_US: u64 = 20_000;
/// Memory of one read of a segment as reading ahead does it, bytes: a huge page.
pub const READ_MEMORY_BYTES: usize = 2 << 20;
/// Memory of ended reads of that size that a shard keeps for the next ones.
pub const SPARE_READS_PER_SHARD: usize = 4;
/// Cache memory that slow readers may hold after it was evicted, per shard, bytes. Beyond it the slowest
/// readers are disconnected.
pub const PINNED_BYTES_PER_SHARD: usize = 64 << 20;
/// One chunk of the tail cache and one region of a journal file, bytes. A group commit never crosses one.
pub const CHUNK_BYTES: usize = 4 << 20;
/// Chunks whose memory a shard has ready before they are needed.
pub const CHUNKS_AHEAD_PER_SHARD: usize = 2;
/// Dropped chunks whose memory a shard keeps for the next ones; more goes back to the kernel.
pub const SPARE_CHUNKS_PER_SHARD: usize = 4;
/// Nodes that hold the cluster's metadata, at most.
pub const MAX_METADATA_REPLICAS: usize = 5;
/// Bytes of batches that a recovery keeps in memory, per shard; what is beyond stays in the journal until it is used.
pub const REPLAY_MEMORY_BYTES_PER_SHARD: usize = 64 << 20;
/// Chunks left in the journal that a shard reads back at once.
pub const RELOADS_PER_SHARD: usize = 4;
/// A group commit takes no further batch once it has reached this size, bytes.
pub const COMMIT_TARGET_BYTES: usize = 256 << 10;
/// Fewest chunks of a shard's tail cache.
pub const MIN_CACHE_CHUNKS: usize = 4;
/// The tail cache holds at most one batch per this many of its bytes, so that its index stays smaller than itself.
pub const TAIL_BYTES_PER_BATCH: usize = 256;
/// Space at the end of the journal that only the first commit of a new life may use, bytes: a node whose disk and
/// journal are full can still start.
pub const JOURNAL_RESERVE_BYTES: usize = 256 << 10;
/// Unit of journal writes, bytes: position and length of every group commit are multiples of it.
pub const JOURNAL_ALIGN: usize = 4096;
/// Bytes of batches accepted but not yet written to the journal, per shard; beyond it produces are not read.
pub const UNWRITTEN_BYTES_PER_SHARD: usize = 16 << 20;
/// Bytes of batches of one partition with several replicas that its leader has appended and that are not committed; beyond
/// them produces are refused. What is not committed can go neither to segments nor out of the cache.
pub const UNCOMMITTED_BYTES_PER_GROUP: usize = 16 << 20;
/// The same for all partitions that a shard leads: one such part of its tail cache.
pub const UNCOMMITTED_PART_LED: usize = 4;
/// Bytes of batches that are not committed in all partitions that a shard follows: one such part of its tail cache.
/// Beyond them appends of leaders are not taken.
pub const UNCOMMITTED_PART_FOLLOWED: usize = 2;
/// Messages of one replica that wait for its journal without anything of their own to be written; more are lost, as a
/// network may lose them.
pub const WAITING_MESSAGES_PER_REPLICA: usize = 64;
/// Producers remembered by one partition.
pub const MAX_PRODUCERS_PER_PARTITION: usize = 4_096;
/// Producers remembered by one shard, all partitions together.
pub const MAX_PRODUCERS_PER_SHARD: usize = 131_072;
/// Batches remembered per producer to answer duplicates (Kafka's number).
pub const BATCHES_PER_PRODUCER: usize = 5;
/// Largest checkpoint of one shard, bytes: every producer, partition, segment and topic that a shard can hold.
pub const MAX_CHECKPOINT_BYTES: usize = 64 << 20;
/// Checkpoints of that size in memory at once: one being encoded, and the buffers of the old and the new write.
pub const CHECKPOINTS_IN_MEMORY: usize = 3;
/// Most segments of one shard, all partitions together (64 TiB of full ones at the default size).
pub const MAX_SEGMENTS_PER_SHARD: usize = 262_144;
/// Memory of loaded segment indexes, per shard, bytes.
pub const INDEX_CACHE_BYTES_PER_SHARD: usize = 16 << 20;
/// Bytes of a segment's log between two entries of its index.
pub const INDEX_INTERVAL_BYTES: u32 = 64 << 10;

// Links between nodes.

/// Size of the header of a frame between nodes, bytes.
pub const PEER_FRAME_HEADER_BYTES: usize = 16;
/// Most bytes of messages in one frame between nodes.
pub const MAX_PEER_CONTROL_BYTES: usize = 2 << 20;
/// Most bytes of batches in one frame between nodes.
pub const MAX_PEER_PAYLOAD_BYTES: usize = 8 << 20;
/// Most messages in one frame between nodes.
pub const MAX_PEER_MESSAGES_PER_FRAME: usize = 8_192;
/// Most entries of all messages in one frame between nodes.
pub const MAX_PEER_ENTRIES_PER_FRAME: usize = 16_384;
/// Most configurations of groups in one frame between nodes, in entries and snapshots of all messages together.
pub const MAX_PEER_CONFIGURATIONS_PER_FRAME: usize = 1_024;
/// Longest text that says why a link is refused, bytes.
pub const MAX_PEER_TEXT_BYTES: usize = 512;
/// Most nodes of one cluster.
pub const MAX_NODES: usize = 64;
/// Bytes that wait to be sent on one link, batches in the cache included; what would exceed them is dropped. The messages
/// that one pass of a shard has for it are bound by the same number.
pub const PEER_QUEUE_BYTES: usize = 32 << 20;
/// The same for all links of one shard together.
pub const PEER_QUEUE_BYTES_PER_SHARD: usize = 64 << 20;
/// What a part of a frame in a queue is charged besides its bytes.
pub const PEER_PART_BYTES: usize = 64;
/// Receive buffer of one link, bytes.
pub const PEER_RECV_BUFFER_BYTES: usize = 128 << 10;
/// Memory for frames that are larger than a link's receive buffer, per shard, bytes.
pub const PEER_ASSEMBLY_BYTES_PER_SHARD: usize = 64 << 20;
/// Accepted links of one shard that have not said who they are yet; beyond it the oldest is closed.
pub const MAX_PEER_HANDSHAKES_PER_SHARD: usize = 64;
/// A link on which nothing was sent for this long is sent a ping, milliseconds.
pub const PEER_PING_INTERVAL_MS: u64 = 200;
/// A link on which nothing was received for this long is dead, milliseconds.
pub const PEER_TIMEOUT_MS: u64 = 1_000;
/// A link that is not connected and greeted by then is given up, milliseconds.
pub const PEER_HANDSHAKE_TIMEOUT_MS: u64 = 3_000;
/// First and longest pause before a link is dialled again, milliseconds.
pub const PEER_BACKOFF_MS: (u64, u64) = (10, 1_000);

// What one thing of each kind takes in memory at most, as far as `memory_bound` counts: the state itself, its share of
// the tables it is found in, and what the allocator rounds up to.

/// One connection, without its requests and replies, bytes.
pub const CONNECTION_STATE_BYTES: usize = 4 << 10;
/// One request whose reply is outstanding, bytes. A fetch that waits is one of them.
pub const REQUEST_STATE_BYTES: usize = 192;
/// One batch in the tail cache, without its bytes and with the growth of the lists that hold it, bytes.
pub const TAIL_BATCH_STATE_BYTES: usize = 128;
/// One batch in the tail cache of a partition with several replicas, in addition: its entry in the group's log, the
/// commit that holds it, and its place in its producer's session until it is committed, bytes.
pub const TAIL_ENTRY_STATE_BYTES: usize = 128;
/// One remembered producer, bytes.
pub const PRODUCER_STATE_BYTES: usize = 384;
/// One partition, its consensus group and its open segment, bytes.
pub const PARTITION_STATE_BYTES: usize = 4 << 10;
/// One closed segment, without its loaded index, bytes.
pub const SEGMENT_STATE_BYTES: usize = 128;
/// One topic, bytes.
pub const TOPIC_STATE_BYTES: usize = 1 << 10;
/// A shard's executor, rings, stack, timers and counters, bytes.
pub const RUNTIME_BYTES_PER_SHARD: usize = 16 << 20;
/// The program itself, its control thread with HTTP, and what the allocator keeps for later, bytes.
pub const PROGRAM_BYTES: usize = 96 << 20;

/// One item of [`MemoryBound`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPart {
    /// What the memory is for.
    pub name: &'static str,
    /// How much it can be on the whole node, bytes.
    pub bytes: u64,
}

/// The memory that all bounds together allow on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBound {
    /// Its items.
    pub parts: Vec<MemoryPart>,
}

impl MemoryBound {
    /// The sum, bytes: what the node promises to stay below.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// One item, bytes.
    fn of(&self, name: &str) -> u64 {
        self.parts.iter().find(|part| part.name == name).map_or(0, |part| part.bytes)
    }

    /// The same with links to `peers` other nodes, each taken to have as many shards as this one: `shards`.
    pub fn with_links(mut self, shards: u16, peers: u16) -> Self {
        let shards = u64::from(shards);
        let links = shards.saturating_mul(u64::from(peers)).saturating_mul(2);
        let buffers = links.saturating_add(MAX_PEER_HANDSHAKES_PER_SHARD as u64);
        let cache_batches = self.of("tail cache") / shards.max(1) / TAIL_BYTES_PER_BATCH as u64;
        for (name, bytes) in [
            ("entries of groups", cache_batches.saturating_mul(TAIL_ENTRY_STATE_BYTES as u64)),
            // Batches are references to the cache, and count as what they refer to.
            ("messages of one pass", u64::from(peers).saturating_mul(PEER_QUEUE_BYTES as u64)),
            ("waiting for other nodes", PEER_QUEUE_BYTES_PER_SHARD as u64),
            ("frames of other nodes being put together", PEER_ASSEMBLY_BYTES_PER_SHARD as u64),
            (
                "receive buffers of links to other nodes",
                buffers.saturating_mul(PEER_RECV_BUFFER_BYTES as u64),
            ),
        ] {
            self.parts.push(MemoryPart { name, bytes: bytes.saturating_mul(shards) });
        }
        self
    }
}

impl std::fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        for part in &self.parts {
            writeln!(f, "{:>9} MiB  {}", mib(part.bytes), part.name)?;
        }
        write!(f, "{:>9} MiB  in all", mib(self.total_bytes()))
    }
}

/// The tail cache of one of `shards` shards when the node's is `cache_bytes`: an equal part in whole chunks, at least
/// [`MIN_CACHE_CHUNKS`].
pub const fn cache_bytes_per_shard(cache_bytes: u64, shards: u16) -> u64 {
    let shards = if shards == 0 { 1 } else { shards as u64 };
    let chunks = cache_bytes / shards / CHUNK_BYTES as u64;
    let least = MIN_CACHE_CHUNKS as u64;
    (if chunks < least { least } else { chunks }) * CHUNK_BYTES as u64
}

/// Adds up what the bounds of this file allow on a node with so many shards, so much tail cache (bytes, for the whole
/// node) and so many connections. Batches that wait for the journal or for segments are in the cache.
pub fn memory_bound(shards: u16, cache_bytes: u64, max_connections: u32) -> MemoryBound {
    let per_shard = |name, bytes: u64| MemoryPart { name, bytes: bytes.saturating_mul(u64::from(shards)) };
    let times = |count: usize, each: usize| count.saturating_mul(each) as u64;
    let replies_per_connection = times(max_connections as usize, MAX_QUEUED_REPLY_BYTES_PER_CONNECTION);
    let replies = times(shards as usize, MAX_QUEUED_REPLY_BYTES_PER_SHARD).min(replies_per_connection);
    let parts = vec![
        per_shard("tail cache", cache_bytes_per_shard(cache_bytes, shards)),
        per_shard(
            "tail cache's index",
            cache_bytes_per_shard(cache_bytes, shards) / TAIL_BYTES_PER_BATCH as u64
                * TAIL_BATCH_STATE_BYTES as u64,
        ),
        per_shard(
            "chunks at hand",
            // One more is on its way from the thread that makes them.
            times(CHUNKS_AHEAD_PER_SHARD + SPARE_CHUNKS_PER_SHARD + 1, CHUNK_BYTES),
        ),
        per_shard("chunks being read back", times(RELOADS_PER_SHARD, CHUNK_BYTES)),
        per_shard("cache held by slow readers", PINNED_BYTES_PER_SHARD as u64),
        per_shard("receive buffers", times(RECV_BUFFERS_PER_SHARD, RECV_BUFFER_BYTES)),
        per_shard("frames being put together", ASSEMBLY_BYTES_PER_SHARD as u64),
        per_shard("reads from segments", COLD_READ_BYTES_PER_SHARD as u64),
        per_shard("memory of ended reads", times(SPARE_READS_PER_SHARD, READ_MEMORY_BYTES)),
        per_shard("segment indexes", INDEX_CACHE_BYTES_PER_SHARD as u64),
        per_shard("checkpoint being written", times(CHECKPOINTS_IN_MEMORY, MAX_CHECKPOINT_BYTES)),
        per_shard("segments", times(MAX_SEGMENTS_PER_SHARD, SEGMENT_STATE_BYTES)),
        per_shard("requests in flight", times(MAX_IN_FLIGHT_REQUESTS_PER_SHARD, REQUEST_STATE_BYTES)),
        MemoryPart { name: "replies queued", bytes: replies },
        MemoryPart { name: "connections", bytes: times(max_connections as usize, CONNECTION_STATE_BYTES) },
        per_shard("producers", times(MAX_PRODUCERS_PER_SHARD, PRODUCER_STATE_BYTES)),
        MemoryPart {
            name: "partitions",
            bytes: times(MAX_PARTITIONS_PER_NODE as usize, PARTITION_STATE_BYTES),
        },
        MemoryPart { name: "topics", bytes: times(MAX_TOPICS as usize, TOPIC_STATE_BYTES) },
        per_shard("executors", RUNTIME_BYTES_PER_SHARD as u64),
        MemoryPart { name: "program and control thread", bytes: PROGRAM_BYTES as u64 },
    ];
    MemoryBound { parts }
}

/// Bounds that only make sense together. Breaking one of these does not compile.
const _: () = {
    // A batch fits everything that has to hold one.
    assert!(BATCH_HEADER_BYTES < MAX_BATCH_BYTES);
    assert!(MAX_REQUEST_BODY_BYTES >= MAX_BATCH_BYTES + 64);
    assert!(MAX_FETCH_BYTES >= MAX_BATCH_BYTES);
    assert!(MAX_REPLY_BODY_BYTES >= MAX_FETCH_BYTES + MAX_BATCH_BYTES);
    assert!(ASSEMBLY_BYTES_PER_SHARD >= FRAME_HEADER_BYTES + MAX_REQUEST_BODY_BYTES);
    assert!(UNWRITTEN_BYTES_PER_SHARD >= MAX_BATCH_BYTES);
    assert!(COLD_READ_BYTES_PER_SHARD >= MAX_REPLY_BODY_BYTES);
    assert!(PINNED_BYTES_PER_SHARD >= MAX_REPLY_BODY_BYTES + CHUNK_BYTES);
    assert!(MAX_DECOMPRESSED_BYTES >= MAX_BATCH_BYTES);
    // The smallest record takes seven bytes.
    assert!(MAX_BATCH_RECORDS as usize * 7 <= MAX_DECOMPRESSED_BYTES);
    assert!(MAX_BATCH_RECORDS as u64 <= i32::MAX as u64);
    // A group commit that was one byte short of its target takes one more batch, in one chunk.
    assert!(COMMIT_TARGET_BYTES + MAX_BATCH_BYTES + 2 * JOURNAL_ALIGN <= CHUNK_BYTES);
    assert!(CHUNK_BYTES.is_multiple_of(JOURNAL_ALIGN) && JOURNAL_ALIGN.is_power_of_two());
    // What is not written yet lies in the cache.
    assert!(MIN_CACHE_CHUNKS * CHUNK_BYTES >= UNWRITTEN_BYTES_PER_SHARD);
    assert!(JOURNAL_RESERVE_BYTES + COMMIT_TARGET_BYTES + MAX_BATCH_BYTES <= CHUNK_BYTES);
    // The largest batch finds room where nothing waits for a commit, and so does the largest append; what is left of the
    // cache is enough to go on.
    let least_cache = MIN_CACHE_CHUNKS * CHUNK_BYTES;
    assert!(UNCOMMITTED_BYTES_PER_GROUP >= MAX_BATCH_BYTES);
    assert!(least_cache / UNCOMMITTED_PART_LED >= MAX_BATCH_BYTES);
    assert!(least_cache / UNCOMMITTED_PART_FOLLOWED >= MAX_PEER_PAYLOAD_BYTES);
    let uncommitted = least_cache / UNCOMMITTED_PART_LED + least_cache / UNCOMMITTED_PART_FOLLOWED;
    assert!(uncommitted + CHUNK_BYTES <= least_cache);
    assert!(RECV_BUFFER_BYTES > FRAME_HEADER_BYTES);
    // The largest frame between nodes can be queued, put together, and hold a batch.
    let peer_frame = PEER_FRAME_HEADER_BYTES + MAX_PEER_CONTROL_BYTES + MAX_PEER_PAYLOAD_BYTES;
    assert!(PEER_ASSEMBLY_BYTES_PER_SHARD >= peer_frame);
    assert!(PEER_QUEUE_BYTES >= peer_frame + MAX_PEER_ENTRIES_PER_FRAME * PEER_PART_BYTES);
    assert!(PEER_QUEUE_BYTES <= PEER_QUEUE_BYTES_PER_SHARD);
    assert!(MAX_PEER_PAYLOAD_BYTES >= MAX_BATCH_BYTES);
    assert!(PEER_RECV_BUFFER_BYTES > PEER_FRAME_HEADER_BYTES + MAX_PEER_TEXT_BYTES + 64);
    assert!(PEER_PING_INTERVAL_MS * 3 <= PEER_TIMEOUT_MS);
    assert!(MAX_PARTITIONS_PER_TOPIC <= MAX_PARTITIONS_PER_NODE);
    assert!(MAX_PRODUCERS_PER_PARTITION <= MAX_PRODUCERS_PER_SHARD);
    assert!(MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION <= MAX_IN_FLIGHT_REQUESTS_PER_SHARD);
    assert!(MAX_WAITING_FETCHES_PER_SHARD <= MAX_IN_FLIGHT_REQUESTS_PER_SHARD);
    assert!(MAX_QUEUED_REPLY_BYTES_PER_CONNECTION <= MAX_QUEUED_REPLY_BYTES_PER_SHARD);
    assert!((INDEX_INTERVAL_BYTES as usize) < INDEX_CACHE_BYTES_PER_SHARD);
    // Everything that one shard can hold, written down: a producer with its batches, a partition, a segment, a topic.
    let producers = MAX_PRODUCERS_PER_SHARD * (19 + 16 * (BATCHES_PER_PRODUCER + 1));
    let partitions = MAX_PARTITIONS_PER_NODE as usize * 64;
    let segments = MAX_SEGMENTS_PER_SHARD * 36;
    let topics = MAX_TOPICS as usize * (MAX_TOPIC_NAME_BYTES + 64);
    let replicas = MAX_PARTITIONS_PER_NODE as usize * MAX_REPLICATION_FACTOR as usize * 10;
    let nodes = MAX_NODES * (2 * MAX_ADDRESS_BYTES + MAX_RACK_BYTES + 64);
    assert!(producers + partitions + segments + topics + replicas + nodes <= MAX_CHECKPOINT_BYTES);
    // The placement of the largest topic fits one record: two bytes a replica and eight for each shard that has one.
    let slots = MAX_PARTITIONS_PER_TOPIC as usize * MAX_REPLICATION_FACTOR as usize * 2;
    let homes = MAX_NODES * MAX_SHARDS as usize * 8;
    assert!(slots + homes + 1024 + BATCH_HEADER_BYTES <= MAX_BATCH_BYTES);
    assert!(MAX_NODES * (MAX_SHARDS as usize) < 1 << 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_sum() {
        let bound = memory_bound(2, 256 << 20, 16_384);
        let by_hand: u64 = bound.parts.iter().map(|p| p.bytes).sum();
        assert_eq!(bound.total_bytes(), by_hand);
        let cache = bound.parts.iter().find(|p| p.name == "tail cache").unwrap();
        assert_eq!(cache.bytes, 256 << 20);
        let shown = bound.to_string();
        assert_eq!(shown.lines().count(), bound.parts.len() + 1);
        assert!(shown.ends_with(&format!("{} MiB  in all", by_hand.div_ceil(1 << 20))), "{shown}");
    }

    #[test]
    fn the_sum_grows_with_each_setting() {
        let total = |shards, cache, connections| memory_bound(shards, cache, connections).total_bytes();
        let base = total(2, 256 << 20, 1000);
        assert!(total(3, 256 << 20, 1000) > base);
        assert_eq!(total(2, 512 << 20, 1000), base + (256 << 20) + (128 << 20), "the cache and its index");
        assert!(total(2, 256 << 20, 2000) > base);
        assert!(total(u16::MAX, u64::MAX, u32::MAX) > base, "the largest numbers do not overflow");
    }

    #[test]
    fn links_are_part_of_the_sum() {
        let alone = memory_bound(2, 256 << 20, 1000);
        let base = alone.total_bytes();
        let linked = alone.with_links(2, 2).total_bytes();
        let buffers = (64 + 2 * 2 * 2) * (128 << 10);
        let entries = (128 << 20) / 256 * 128;
        let messages = 2 * (32 << 20);
        assert_eq!(linked - base, 2 * (entries + messages + (64 << 20) + (64 << 20) + buffers));
        let largest = memory_bound(u16::MAX, u64::MAX, u32::MAX).with_links(u16::MAX, u16::MAX);
        assert!(largest.total_bytes() > linked, "the largest numbers do not overflow");
    }

    #[test]
    fn the_cache_is_split_in_whole_chunks() {
        assert_eq!(cache_bytes_per_shard(256 << 20, 2), 128 << 20);
        assert_eq!(cache_bytes_per_shard(100 << 20, 3), 32 << 20);
        assert_eq!(cache_bytes_per_shard(0, 3), 16 << 20);
        assert_eq!(cache_bytes_per_shard(64 << 20, 0), 64 << 20);
    }
}
