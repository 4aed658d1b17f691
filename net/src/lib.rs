//! Frames, messages and the plain client of Pyralog's binary protocol. `docs/protocol.md` is its description.

pub mod message;
