//! Every bound of the system in one place (decision D10). [`memory_bound_bytes`] adds up what they allow.
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
/// Most partitions on one node, all topics together.
pub const MAX_PARTITIONS_PER_NODE: u32 = 131_072;
/// Most topics on one node.
pub const MAX_TOPICS: u32 = 65_536;
/// Most shards of one node.
pub const MAX_SHARDS: u16 = 256;
/// Requests of one connection whose replies are outstanding; beyond it the socket is not read.
pub const MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION: usize = 4_096;
/// Reply bytes queued on one connection; beyond it the socket is not read.
pub const MAX_QUEUED_REPLY_BYTES_PER_CONNECTION: usize = 256 << 10;
/// Receive buffers of a shard: number.
pub const RECV_BUFFERS_PER_SHARD: usize = 256;
/// Receive buffers of a shard: size of one, bytes.
pub const RECV_BUFFER_BYTES: usize = 64 << 10;
/// Memory for frames that span receive buffers, per shard, bytes.
pub const ASSEMBLY_BYTES_PER_SHARD: usize = 64 << 20;
/// Memory for reads from segments (replies under way and read-ahead), per shard, bytes.
pub const COLD_READ_BYTES_PER_SHARD: usize = 64 << 20;
/// Cache memory that slow readers may hold after it was evicted, per shard, bytes. Beyond it the slowest
/// readers are disconnected.
pub const PINNED_BYTES_PER_SHARD: usize = 64 << 20;
/// One chunk of the tail cache and one region of a journal file, bytes. A group commit never crosses one.
pub const CHUNK_BYTES: usize = 4 << 20;
/// A group commit takes no further batch once it has reached this size, bytes.
pub const COMMIT_TARGET_BYTES: usize = 256 << 10;
/// Unit of journal writes, bytes: position and length of every group commit are multiples of it.
pub const JOURNAL_ALIGN: usize = 4096;
/// Bytes of batches accepted but not yet written to the journal, per shard; beyond it produces are not read.
pub const UNWRITTEN_BYTES_PER_SHARD: usize = 16 << 20;
/// Producers remembered by one partition.
pub const MAX_PRODUCERS_PER_PARTITION: usize = 4_096;
/// Producers remembered by one shard, all partitions together.
pub const MAX_PRODUCERS_PER_SHARD: usize = 131_072;
/// Batches remembered per producer to answer duplicates (Kafka's number).
pub const BATCHES_PER_PRODUCER: usize = 5;
/// Largest checkpoint of one shard, bytes.
pub const MAX_CHECKPOINT_BYTES: usize = 256 << 20;
/// Memory of loaded segment indexes, per shard, bytes.
pub const INDEX_CACHE_BYTES_PER_SHARD: usize = 16 << 20;
/// Bytes of a segment's log between two entries of its index.
pub const INDEX_INTERVAL_BYTES: u32 = 64 << 10;
