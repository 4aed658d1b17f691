//! What can go wrong for a client, with what may be concluded from it.

use std::io;
use std::sync::Arc;

use pyralog_core::batch::BatchError;
use pyralog_core::{ErrorCode, Outcome};

use crate::codec::EncodeError;

/// A request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made.
    #[error("can't connect to {address}: {source}; check that the node runs and the address is right")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The connection broke while requests may have been under way.
    #[error("the connection to {address} was lost: {source}; connect again")]
    Lost {
        /// Where to.
        address: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// No reply in time. The connection is still usable: the reply may come yet.
    #[error("no reply from {address} within {timeout_ms} ms; check the node's state and its disk")]
    TimedOut {
        /// Where to.
        address: String,
        /// How long was waited, milliseconds.
        timeout_ms: u64,
    },
    /// The node answered with an error.
    #[error("{code}{}{detail}", if detail.is_empty() { "" } else { " — " })]
    Server {
        /// Its code.
        code: ErrorCode,
        /// What exactly.
        detail: String,
    },
    /// What the node sent breaks the protocol.
    #[error(
        "{address} broke the protocol: {detail}; client and node do not match, or something else listens there"
    )]
    Protocol {
        /// Where to.
        address: String,
        /// How.
        detail: String,
    },
    /// The request can't be encoded; nothing was sent.
    #[error("the request can't be sent: {0}")]
    Request(#[from] EncodeError),
    /// A batch could not be built, or one that was fetched is damaged.
    #[error("{0}")]
    Batch(#[from] BatchError),
    /// A batch was not acknowledged before its deadline.
    #[error(
        "gave up after {after_ms} ms with {records} records not acknowledged; the last attempt failed: {last}"
    )]
    DeliveryTimeout {
        /// How long was tried, milliseconds.
        after_ms: u64,
        /// Records without an acknowledgement: each may or may not be in the log.
        records: u64,
        /// The last failure.
        last: Arc<ClientError>,
    },
    /// Records were not acknowledged, and an attempt before the last one may have got through.
    #[error("{records} records may or may not be in the log; the last attempt failed: {last}")]
    Uncertain {
        /// Records without an acknowledgement.
        records: u64,
        /// The last failure.
        last: Arc<ClientError>,
    },
    /// There was no room for a record in the producer's memory.
    #[error(
        "{buffered_bytes} bytes of records wait for their acknowledgements, as many as `buffer_memory` allows; slow down, or allow more"
    )]
    BufferFull {
        /// Bytes that are not acknowledged.
        buffered_bytes: usize,
    },
    /// The call makes no sense; nothing was sent.
    #[error("{0}")]
    Usage(String),
}

impl ClientError {
    /// The nearest error code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Connect { .. } => ErrorCode::NotReady,
            Self::Lost { .. } => ErrorCode::ConnectionLost,
            Self::TimedOut { .. } => ErrorCode::RequestTimedOut,
            Self::Server { code, .. } => *code,
            Self::Protocol { .. } => ErrorCode::Internal,
            Self::Request(_) | Self::Usage(_) => ErrorCode::InvalidRequest,
            Self::Batch(error) => error.code(),
            Self::DeliveryTimeout { last, .. } | Self::Uncertain { last, .. } => last.code(),
            Self::BufferFull { .. } => ErrorCode::Overloaded,
        }
    }

    /// What may be concluded about the request's effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::DeliveryTimeout { .. } | Self::Uncertain { .. } => Outcome::Unknown,
            other => other.code().outcome(),
        }
    }

    /// Whether the same request can succeed later without anybody changing it.
    pub fn retriable(&self) -> bool {
        match self {
            Self::DeliveryTimeout { .. } | Self::Uncertain { .. } => false,
            other => other.code().retriable(),
        }
    }

    /// Whether the connection that this came from must be given up. After `InvalidRequest` the server closes it.
    pub(crate) fn breaks_connection(&self) -> bool {
        match self {
            Self::Server { code, .. } => *code == ErrorCode::InvalidRequest,
            Self::Request(_) | Self::Batch(_) | Self::Usage(_) | Self::BufferFull { .. } => false,
            _ => true,
        }
    }

    /// Whether another node may answer: this one is not there, or does not lead any more.
    pub(crate) fn asks_elsewhere(&self) -> bool {
        self.asks_for_metadata()
            || matches!(self, Self::Connect { .. } | Self::Lost { .. } | Self::TimedOut { .. })
            || matches!(
                self.code(),
                ErrorCode::Fenced | ErrorCode::NotReady | ErrorCode::StorageFailed | ErrorCode::LeaderChanged
            )
    }

    /// Whether the topology that the client remembers may be out of date.
    pub(crate) fn asks_for_metadata(&self) -> bool {
        matches!(
            self.code(),
            ErrorCode::NotLeader | ErrorCode::UnknownTopicOrPartition | ErrorCode::NotController
        )
    }
}
