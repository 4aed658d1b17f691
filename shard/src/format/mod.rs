//! The bytes that a shard keeps on disk (`docs/storage-format.md`): encoders, decoders that believe nothing,
//! and the walk over the journal that tells a torn tail from corruption (decision D5).
//!
//! Nothing here decides what is written, and nothing here writes.

pub mod batch;
pub(crate) mod bytes;
pub mod checkpoint;
pub mod index;
pub mod journal;
pub mod scan;
pub mod segment;

#[cfg(test)]
mod page_tests;
