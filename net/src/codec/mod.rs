//! The bytes of every message, as `docs/protocol.md` describes them: requests in [`request`], replies in
//! [`reply`]. All integers are little-endian; reserved bytes are zero and anything after the last field is an
//! error, so that every message has exactly one encoding.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod read;
mod reply;
mod request;
mod write;

pub use pyralog_core::limits::{MAX_ADDRESS_BYTES, MAX_CLUSTER_NAME_BYTES};
pub use reply::{MetadataReplySize, Reply};

pub(crate) use read::Reader;
pub(crate) use write::{Writer, truncated};

use pyralog_core::ErrorCode;

/// Longest name that a client may give itself, bytes.
pub const MAX_CLIENT_NAME_BYTES: usize = 128;
/// Longest server version string, bytes.
pub const MAX_SERVER_VERSION_BYTES: usize = 128;
/// Longest detail of an error reply, bytes.
pub const MAX_ERROR_DETAIL_BYTES: usize = 1024;
/// Most partitions that one `DescribePartitions` asks for.
pub const MAX_DESCRIBED_PARTITIONS: u32 = 1_000;
/// Most partitions in one page of those that are on their way to other nodes.
pub const MAX_LISTED_REASSIGNMENTS: u32 = 1_000;

/// A body that breaks the protocol's rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body ends before a field does.
    #[error("the body ends inside {field}")]
    Truncated {
        /// The field.
        field: &'static str,
    },
    /// Bytes after the last field.
    #[error("{bytes} bytes follow the last field")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// Reserved bytes that are not zero.
    #[error("reserved bytes after {after} are not zero")]
    ReservedNotZero {
        /// The field before them.
        after: &'static str,
    },
    /// A number above its bound.
    #[error("{field} is {value}, {max} is the bound")]
    OutOfBound {
        /// The field.
        field: &'static str,
        /// What came.
        value: u64,
        /// What is allowed.
        max: u64,
    },
    /// A number that means nothing.
    #[error("{field} has no meaning for {value}")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// What came.
        value: u64,
    },
    /// Text that is not UTF-8.
    #[error("{field} is not UTF-8")]
    NotUtf8 {
        /// The field.
        field: &'static str,
    },
    /// A kind of message that this version does not have.
    #[error("message kind {kind:#06x} is not known")]
    UnknownKind {
        /// The kind.
        kind: u16,
    },
    /// Too few bytes for a record batch.
    #[error("a record batch has at least 61 bytes, this one {bytes}")]
    BatchTooSmall {
        /// How many came.
        bytes: usize,
    },
    /// A record batch above its bound.
    #[error("the record batch has {bytes} bytes, {max} is the bound; send smaller batches")]
    BatchTooLarge {
        /// How many came.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
}

impl DecodeError {
    /// The code of the error reply.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownKind { .. } => ErrorCode::UnsupportedVersion,
            Self::BatchTooSmall { .. } => ErrorCode::InvalidBatch,
            Self::BatchTooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::InvalidRequest,
        }
    }

    /// Whether the connection is closed after the error reply: a client that gets a layout wrong can't be
    /// trusted with the next message. An unknown kind or a batch of the wrong size leaves the framing intact.
    pub fn closes_connection(&self) -> bool {
        self.code() == ErrorCode::InvalidRequest
    }
}

/// A request that can't be put into a frame: a field exceeds its bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, {max} is the bound")]
pub struct EncodeError {
    /// The field.
    pub field: &'static str,
    /// Its value or length in bytes.
    pub value: u64,
    /// What is allowed.
    pub max: u64,
}

impl EncodeError {
    pub(crate) fn check(field: &'static str, value: u64, max: u64) -> Result<(), Self> {
        if value <= max { Ok(()) } else { Err(Self { field, value, max }) }
    }
}

#[cfg(test)]
mod tests;
