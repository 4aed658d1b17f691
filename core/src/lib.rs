//! What every other Pyralog crate speaks in: ids, record batches, error codes, limits, configuration.
//!
//! Nothing here touches a clock, a socket or a file (the configuration loader takes text).

pub mod batch;
pub mod config;
pub mod error;
pub mod features;
pub mod ids;
pub mod limits;
pub mod murmur2;
pub mod quorums;

pub use error::{ErrorCode, Outcome};
pub use features::FeatureLevels;
pub use ids::{GroupId, NodeId, ShardId, TopicId};
pub use quorums::Quorums;
