//! The statuses that functions return, and the numbers of choices.

/// It worked.
pub const PYRALOG_OK: i32 = 0;

/// Misuse: a pointer that must not be NULL is. Nothing was done.
pub const PYRALOG_NULL_POINTER: i32 = -1;
/// Misuse: a length, a number, a text or the size of a struct is not allowed. Nothing was done.
pub const PYRALOG_INVALID_ARGUMENT: i32 = -2;
/// Misuse: another call on this handle is under way, from another thread or from a callback. Nothing was done.
pub const PYRALOG_BUSY: i32 = -3;
/// Misuse: the producer was closed. Nothing was done.
pub const PYRALOG_CLOSED: i32 = -4;
/// A bug in this library; the outcome is unknown. Free the handle, start anew and report it.
pub const PYRALOG_PANICKED: i32 = -5;

/// The request breaks the protocol's rules.
pub const PYRALOG_ERROR_INVALID_REQUEST: i32 = 1;
/// The node does not know that protocol version or message.
pub const PYRALOG_ERROR_UNSUPPORTED_VERSION: i32 = 2;
/// No such topic or partition.
pub const PYRALOG_ERROR_UNKNOWN_TOPIC_OR_PARTITION: i32 = 3;
/// The partition is led elsewhere.
pub const PYRALOG_ERROR_NOT_LEADER: i32 = 4;
/// Another node takes administrative requests.
pub const PYRALOG_ERROR_NOT_CONTROLLER: i32 = 5;
/// A record batch is malformed.
pub const PYRALOG_ERROR_INVALID_BATCH: i32 = 6;
/// A record batch's checksum does not match.
pub const PYRALOG_ERROR_CORRUPT_BATCH: i32 = 7;
/// Larger than the bound.
pub const PYRALOG_ERROR_TOO_LARGE: i32 = 8;
/// The offset lies outside the log.
pub const PYRALOG_ERROR_OFFSET_OUT_OF_RANGE: i32 = 9;
/// The producer's sequence has a gap.
pub const PYRALOG_ERROR_OUT_OF_ORDER_SEQUENCE: i32 = 10;
/// A newer session of this producer exists.
pub const PYRALOG_ERROR_PRODUCER_FENCED: i32 = 11;
/// The partition does not remember this producer.
pub const PYRALOG_ERROR_UNKNOWN_PRODUCER_ID: i32 = 12;
/// The shard, or a buffer of this library, is at its bound.
pub const PYRALOG_ERROR_OVERLOADED: i32 = 13;
/// The node's disk is full.
pub const PYRALOG_ERROR_DISK_FULL: i32 = 14;
/// The shard's disk failed during the write.
pub const PYRALOG_ERROR_STORAGE_FAILED: i32 = 15;
/// The shard re-reads its disk after an error.
pub const PYRALOG_ERROR_FENCED: i32 = 16;
/// The range is damaged on disk, and not repaired from another replica yet.
pub const PYRALOG_ERROR_CORRUPT_RANGE: i32 = 17;
/// Corruption hides where the log ends; it is read-only.
pub const PYRALOG_ERROR_LOG_END_UNKNOWN: i32 = 18;
/// The node is starting, stopping or not there.
pub const PYRALOG_ERROR_NOT_READY: i32 = 19;
/// No answer in time.
pub const PYRALOG_ERROR_REQUEST_TIMED_OUT: i32 = 20;
/// A topic of that name exists.
pub const PYRALOG_ERROR_TOPIC_ALREADY_EXISTS: i32 = 21;
/// The topic's name or settings are not allowed.
pub const PYRALOG_ERROR_INVALID_TOPIC: i32 = 22;
/// A bound on topics or partitions is reached.
pub const PYRALOG_ERROR_LIMIT_REACHED: i32 = 23;
/// The node does not support that compression.
pub const PYRALOG_ERROR_UNSUPPORTED_COMPRESSION: i32 = 24;
/// A bug in the node, or what answers is no node.
pub const PYRALOG_ERROR_INTERNAL: i32 = 25;
/// The connection was lost before the reply came.
pub const PYRALOG_ERROR_CONNECTION_LOST: i32 = 26;
/// The partition's leader changed while the write was on its way.
pub const PYRALOG_ERROR_LEADER_CHANGED: i32 = 27;
/// Fewer replicas are in sync than the topic asks for.
pub const PYRALOG_ERROR_NOT_ENOUGH_REPLICAS: i32 = 28;

/// Outcome: it took effect.
pub const PYRALOG_OUTCOME_ACCEPTED: i32 = 0;
/// Outcome: it had no effect. It may be sent again.
pub const PYRALOG_OUTCOME_NOT_ACCEPTED: i32 = 1;
/// Outcome: it may or may not have taken effect. Sending it again may do it twice.
pub const PYRALOG_OUTCOME_UNKNOWN: i32 = 2;

/// Acknowledged as soon as a record has its offset; nothing is on stable storage yet.
pub const PYRALOG_ACKS_NONE: i32 = 0;
/// Acknowledged when the leader's journal holds it as its fsync policy demands.
pub const PYRALOG_ACKS_LEADER: i32 = 1;
/// Acknowledged when a quorum of journals holds it as their fsync policy demands (the default).
pub const PYRALOG_ACKS_QUORUM: i32 = 2;

/// Reached: in the leader's memory.
pub const PYRALOG_DURABILITY_MEMORY: i32 = 0;
/// Reached: written to the leader's journal file, not flushed.
pub const PYRALOG_DURABILITY_WRITTEN: i32 = 1;
/// Reached: on the leader's stable storage.
pub const PYRALOG_DURABILITY_LEADER: i32 = 2;
/// Reached: on the stable storage of a quorum of the partition's replicas.
pub const PYRALOG_DURABILITY_QUORUM: i32 = 3;

/// Batches are not compressed (the default).
pub const PYRALOG_COMPRESSION_NONE: i32 = 0;
/// LZ4: fast.
pub const PYRALOG_COMPRESSION_LZ4: i32 = 3;
/// Zstandard: small.
pub const PYRALOG_COMPRESSION_ZSTD: i32 = 4;

/// Records without key and partition stay with one partition until its batch is sent (the default).
pub const PYRALOG_PARTITIONER_STICKY: i32 = 0;
/// Records without key and partition go to one partition after the other.
pub const PYRALOG_PARTITIONER_ROUND_ROBIN: i32 = 1;

/// Reads are answered by the leader, from what it knows (the default).
pub const PYRALOG_CONSISTENCY_LEADER: i32 = 0;
/// Reads are answered by the leader after a majority has confirmed that it leads.
pub const PYRALOG_CONSISTENCY_LINEARIZABLE: i32 = 1;
/// Reads are answered by any replica, which may know less than another one.
pub const PYRALOG_CONSISTENCY_ANY_REPLICA: i32 = 2;

/// Begin at the first record that is still there.
pub const PYRALOG_START_EARLIEST: i32 = 0;
/// Begin with what comes from now on.
pub const PYRALOG_START_LATEST: i32 = 1;
/// Begin at an offset.
pub const PYRALOG_START_OFFSET: i32 = 2;
/// Begin at the first batch with a record of this time or later, milliseconds since the Unix epoch.
pub const PYRALOG_START_TIMESTAMP: i32 = 3;
