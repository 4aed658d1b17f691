//! Apache Kafka's RecordBatch v2, byte for byte (decision D1).
//!
//! A batch is read with [`BatchView`], which borrows the bytes and looks at the 61-byte header only, and written
//! with [`BatchBuilder`]. All header fields are big-endian:
//!
//! | at | bytes | field                                                         | in the checksum |
//! | -- | ----- | ------------------------------------------------------------- | --------------- |
//! |  0 |     8 | base offset, filled in by the leader                          | no              |
//! |  8 |     4 | length of everything behind this field                        | no              |
//! | 12 |     4 | leader epoch, filled in by the leader                         | no              |
//! | 16 |     1 | magic, 2                                                      | no              |
//! | 17 |     4 | CRC32C of everything behind this field                        | no              |
//! | 21 |     2 | attributes                                                    | yes             |
//! | 23 |     4 | last offset delta: record count - 1                           | yes             |
//! | 27 |     8 | base timestamp: the first record's, milliseconds              | yes             |
//! | 35 |     8 | largest timestamp, milliseconds                               | yes             |
//! | 43 |     8 | producer id, -1 = none                                        | yes             |
//! | 51 |     2 | producer epoch, -1 = none                                     | yes             |
//! | 53 |     4 | base sequence, -1 = none                                      | yes             |
//! | 57 |     4 | record count                                                  | yes             |
//! | 61 |       | records, compressed as one piece when the attributes say so   | yes             |
//!
//! Attribute bits: 0–2 compression (0 none, 3 lz4, 4 zstd), 3 timestamp type, 4 transactional, 5 control.

#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod builder;
mod compress;
mod error;
mod record;
mod varint;
mod view;

pub use builder::BatchBuilder;
pub use compress::Compression;
pub use error::BatchError;
pub use record::{Header, Headers, Record, Records};
pub use view::{BatchView, TimestampType, patch_base_offset, patch_leader_epoch, peek_len};

/// Position of the base offset (`i64`).
pub const BASE_OFFSET_AT: usize = 0;
/// Position of the length (`i32`): the bytes behind this field.
pub const LENGTH_AT: usize = 8;
/// Bytes before the part that the length field counts.
pub const LENGTH_OVERHEAD: usize = 12;
/// Position of the leader epoch (`u32`; Kafka's `i32`, -1 = [`NO_LEADER_EPOCH`]).
pub const LEADER_EPOCH_AT: usize = 12;
/// Position of the magic byte.
pub const MAGIC_AT: usize = 16;
/// Position of the checksum (`u32`, CRC32C).
pub const CRC_AT: usize = 17;
/// Position of the attributes (`i16`), the first byte that the checksum covers.
pub const ATTRIBUTES_AT: usize = 21;
/// Position of the last offset delta (`i32`).
pub const LAST_OFFSET_DELTA_AT: usize = 23;
/// Position of the base timestamp (`i64`, milliseconds).
pub const BASE_TIMESTAMP_AT: usize = 27;
/// Position of the largest timestamp (`i64`, milliseconds).
pub const MAX_TIMESTAMP_AT: usize = 35;
/// Position of the producer id (`i64`).
pub const PRODUCER_ID_AT: usize = 43;
/// Position of the producer epoch (`i16`).
pub const PRODUCER_EPOCH_AT: usize = 51;
/// Position of the base sequence (`i32`).
pub const BASE_SEQUENCE_AT: usize = 53;
/// Position of the record count (`i32`).
pub const RECORD_COUNT_AT: usize = 57;
/// Position of the first record.
pub const RECORDS_AT: usize = 61;

/// The one magic number that is read and written.
pub const MAGIC: u8 = 2;
/// Leader epoch of a batch that no leader has seen yet.
pub const NO_LEADER_EPOCH: u32 = u32::MAX;
/// Producer id of a batch that is not part of an idempotent producer session.
pub const NO_PRODUCER_ID: i64 = -1;
/// Producer epoch that goes with [`NO_PRODUCER_ID`].
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// Base sequence that goes with [`NO_PRODUCER_ID`] and with control batches.
pub const NO_SEQUENCE: i32 = -1;

/// Attribute bits of the compression.
pub const ATTRIBUTE_COMPRESSION_MASK: i16 = 0b111;
/// Attribute bit: timestamps are the time of the append instead of the producer's.
pub const ATTRIBUTE_LOG_APPEND_TIME: i16 = 1 << 3;
/// Attribute bit: part of a transaction.
pub const ATTRIBUTE_TRANSACTIONAL: i16 = 1 << 4;
/// Attribute bit: a control batch (its records are markers and not the user's).
pub const ATTRIBUTE_CONTROL: i16 = 1 << 5;
/// Every attribute bit that has a meaning.
pub const ATTRIBUTES_KNOWN: i16 =
    ATTRIBUTE_COMPRESSION_MASK | ATTRIBUTE_LOG_APPEND_TIME | ATTRIBUTE_TRANSACTIONAL | ATTRIBUTE_CONTROL;

/// Fewest bytes that a record can take: seven fields of one byte each.
pub const MIN_RECORD_BYTES: usize = 7;

/// The sequence number `count` records after `sequence`; it wraps from `i32::MAX` to 0 as Kafka's does.
pub const fn sequence_after(sequence: i32, count: u32) -> i32 {
    (sequence as u32).wrapping_add(count) as i32 & i32::MAX
}

/// Of two constants next to each other the second begins where the first ends.
const _: () = {
    assert!(RECORDS_AT == crate::limits::BATCH_HEADER_BYTES);
    assert!(LENGTH_OVERHEAD == LEADER_EPOCH_AT);
};

#[cfg(test)]
mod tests {
    use super::sequence_after;

    #[test]
    fn sequences_wrap_to_zero() {
        assert_eq!(sequence_after(5, 0), 5);
        assert_eq!(sequence_after(5, 3), 8);
        assert_eq!(sequence_after(i32::MAX, 0), i32::MAX);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 5), 3);
    }
}
