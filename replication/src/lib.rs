//! One replicated log per partition, the cluster's metadata, and placement: sans I/O.

pub mod group;
pub mod metadata;

pub use group::{Group, SingleVoter};
