//! The driver of a shard: one glommio executor and one io_uring ring per core, sockets, files and the node
//! that ties the shards together. Everything that decides is in `engine`; here is only I/O.
//!
//! - [`node`]: a running node; `data_dir` is whose folder it is, `shard` the thread of each shard.
//! - `driver`: one pass of a shard: completions to events, actions to operations, one system call.
//! - `connections`, `connection`, `receive`, `send`: client sockets.
//! - [`peers`]: links to the shards of other nodes.
//! - [`files`], `segment_reads`, [`paths`], [`recovery_disk`]: the disk while serving, the pace of its reads, its layout, the disk during
//!   recovery.
//! - [`ring`], [`recv_buffers`], `park`, [`wake`]: io_uring, its receive buffers, how a shard sleeps and is woken.

mod accept;
mod chunk_supply;
mod connection;
mod connections;
pub mod data_dir;
mod doorman;
mod driver;
pub mod files;
mod files_helper;
pub mod node;
mod op;
mod park;
pub mod paths;
pub mod peers;
mod receive;
pub mod recovery_disk;
pub mod recv_buffers;
mod rehome;
pub mod report;
pub mod ring;
mod segment_reads;
mod send;
mod shard;
mod stages;
mod threads;
mod versions;
pub mod wake;

pub use node::{ControlEvent, InternalOptions, Node, NodeOptions, StartError};
pub use report::ShardReport;
