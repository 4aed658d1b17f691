//! One replicated log per partition, the cluster's metadata, and placement: sans I/O.

pub mod group;
#[expect(missing_docs, reason = "the derive of Archive makes resolver types without documentation")]
pub mod metadata;
pub mod moves;
pub mod placement;
mod racks;
pub mod raft;
mod slots;

pub use group::{Group, SingleVoter};
