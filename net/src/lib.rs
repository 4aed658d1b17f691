//! Frames, messages and the plain client of Pyralog's binary protocol. `docs/protocol.md` is its description.
//!
//! - [`frame`]: the 16-byte header before every message, and telling frames from HTTP.
//! - [`hello`]: the handshake, the first frame in each direction.
//! - [`message`]: requests and replies as typed values; their bytes are made and read by `codec`
//!   ([`message::Request::decode`], [`message::Response::encode`] and their opposites).
//! - [`client`]: a blocking client, an idempotent producer and a consumer.
//! - [`peer`]: frames and handshake of the links between nodes (`docs/protocol-internal.md`).
//! - [`socket`]: how listening and connected sockets are set up.

pub mod client;
pub mod codec;
pub mod frame;
pub mod hello;
pub mod message;
pub mod peer;
mod replicas;
#[doc(hidden)]
pub mod roundtrip;
pub mod socket;

pub use codec::{DecodeError, EncodeError, Reply};
pub use frame::{FrameError, FrameHeader, Protocol, sniff};
pub use hello::{Hello, HelloReply};
