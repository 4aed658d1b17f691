//! What can be wrong with a record batch.

use thiserror::Error;

use crate::ErrorCode;
use crate::limits::{BATCH_HEADER_BYTES, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_DECOMPRESSED_BYTES};

/// Why bytes are not a record batch, or a record does not fit into one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Fewer bytes than the header or than the length field says.
    #[error("the record batch is cut short: {have} of {need} bytes are there")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// More bytes than one batch where exactly one is wanted.
    #[error("{extra} bytes follow the record batch; send exactly one batch")]
    TrailingBytes {
        /// Bytes behind the batch.
        extra: usize,
    },
    /// The length field is below the header's size.
    #[error(
        "the record batch's length field says {length}, less than the rest of its {BATCH_HEADER_BYTES}-byte header"
    )]
    LengthTooSmall {
        /// The field's value.
        length: i32,
    },
    /// The batch is larger than [`MAX_BATCH_BYTES`].
    #[error("the record batch has {bytes} bytes; the bound is {MAX_BATCH_BYTES}, send smaller batches")]
    TooLarge {
        /// Its size by the length field.
        bytes: u64,
    },
    /// Not version 2.
    #[error("the record batch has magic {magic}; only version 2 (RecordBatch v2) is read")]
    UnsupportedMagic {
        /// The byte found.
        magic: u8,
    },
    /// The checksum does not match.
    #[error(
        "the record batch's checksum is {stored:#010x} but its bytes give {computed:#010x}; it was damaged"
    )]
    CrcMismatch {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// Attribute bits without a meaning are set.
    #[error("the record batch's attributes {attributes:#06x} have bits set that mean nothing in version 2")]
    UnknownAttributes {
        /// The attributes.
        attributes: i16,
    },
    /// A compression that is not read here.
    #[error("the record batch is compressed with {}; use none, lz4 or zstd", compression_name(*.codec))]
    UnsupportedCompression {
        /// The number in the attributes.
        codec: u8,
    },
    /// No record, or more than [`MAX_BATCH_RECORDS`].
    #[error("the record batch says it holds {count} records; 1 to {MAX_BATCH_RECORDS} are allowed")]
    RecordCount {
        /// The field's value.
        count: i32,
    },
    /// The last offset delta does not follow from the record count.
    #[error(
        "the record batch's last offset delta is {delta}, but with {count} records it has to be one less than that"
    )]
    LastOffsetDelta {
        /// The last offset delta.
        delta: i32,
        /// The record count.
        count: i32,
    },
    /// Base offset below 0, or so large that the last offset overflows.
    #[error("the record batch's base offset {offset} is out of range; a producer sends 0")]
    BaseOffset {
        /// The base offset.
        offset: i64,
    },
    /// Producer id, epoch and sequence do not go together.
    #[error(
        "the record batch names producer {id}, epoch {epoch}, sequence {sequence}; either all are at least 0, or \
         the producer is -1 (none)"
    )]
    Producer {
        /// Producer id.
        id: i64,
        /// Producer epoch.
        epoch: i16,
        /// Base sequence.
        sequence: i32,
    },
    /// The records do not fit the count.
    #[error("the record batch's {bytes} bytes of records are too few for {count} records")]
    TooFewBytes {
        /// Bytes of uncompressed records.
        bytes: usize,
        /// Record count.
        count: u32,
    },
    /// The compressed records can't be decompressed.
    #[error("the record batch's {codec} data can't be decompressed: {reason}")]
    Decompression {
        /// Name of the compression.
        codec: &'static str,
        /// What the decompressor says.
        reason: String,
    },
    /// Decompressing yields more than [`MAX_DECOMPRESSED_BYTES`].
    #[error(
        "the record batch decompresses to more than {MAX_DECOMPRESSED_BYTES} bytes, the bound; send smaller batches"
    )]
    DecompressedTooLarge,
    /// One record's bytes are wrong.
    #[error("record {index} of the batch is malformed: {what}")]
    Record {
        /// The record's place in the batch, from 0.
        index: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// Bytes follow the last record.
    #[error("{extra} bytes follow the last record of the batch")]
    BytesAfterRecords {
        /// Bytes left over.
        extra: usize,
    },
    /// The builder holds as much as one batch may; build and clear it, then append again.
    #[error("the batch is full: it holds {bytes} bytes in {records} records; send it and begin another")]
    Full {
        /// Bytes in the batch.
        bytes: usize,
        /// Records in the batch.
        records: u32,
    },
    /// A record that does not fit even into an empty batch.
    #[error("the record needs a batch of {bytes} bytes; the bound is {MAX_BATCH_BYTES}, split the record")]
    RecordTooLarge {
        /// Bytes of a batch that holds only this record.
        bytes: u64,
    },
    /// The record's timestamp and the batch's first one lie further apart than 64 bits can say.
    #[error("the record's timestamp {timestamp} is too far from the batch's first timestamp {base}")]
    TimestampRange {
        /// The record's timestamp.
        timestamp: i64,
        /// The batch's base timestamp.
        base: i64,
    },
    /// Building a batch without records.
    #[error("a batch holds at least one record; append one before building it")]
    Empty,
}

impl BatchError {
    /// The code that a producer is answered with.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. }
            | Self::DecompressedTooLarge
            | Self::Full { .. }
            | Self::RecordTooLarge { .. } => ErrorCode::TooLarge,
            Self::CrcMismatch { .. } => ErrorCode::CorruptBatch,
            Self::UnsupportedCompression { .. } => ErrorCode::UnsupportedCompression,
            _ => ErrorCode::InvalidBatch,
        }
    }
}

/// Kafka's name of a compression that is not read here.
fn compression_name(codec: u8) -> String {
    match codec {
        1 => "gzip".to_owned(),
        2 => "snappy".to_owned(),
        other => format!("an unknown codec ({other})"),
    }
}
