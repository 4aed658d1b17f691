//! The wire between nodes, one connection per direction between two shards: frames and the handshake.
//! `docs/protocol-internal.md` is the description. What is in the frames belongs to replication.

pub mod frame;
pub mod hello;

pub use frame::{FrameError, FrameHeader, FrameKind};
pub use hello::{Hello, HelloReply, PROTOCOL_VERSION, Refusal, RefusalCode};
