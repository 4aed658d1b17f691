//! The replicas of one partition as one Raft group, sans I/O.
//!
//! The consensus core is the `raft` crate; it sees headers only: index, term and kind of an entry. Batches travel
//! beside it by handle, so their bytes are never copied into it. Everything around the core is here: what the log
//! holds ([`log`]), when to campaign ([`timers`]), what goes over the wire ([`message`], [`frame`]), and the group itself
//! ([`group`]), which checks every message before the core sees it, because the core panics on what a correct peer
//! would not send.
//!
//! The words are Raft's (Ongaro, "Consensus: Bridging Theory and Practice", 2014). A term is what the rest of
//! Pyralog calls an epoch. The invariants and what holds them: `docs/replication.md`.
//!
//! Owner: the shard that holds the replica. Nothing here knows a clock, a socket, a file or a random source: time is
//! given with each call, randomness comes from a seed.

mod check;
pub mod configuration;
pub mod frame;
pub mod group;
pub mod log;
mod members;
pub mod message;
pub mod rejoin;
pub mod timers;
mod wire;

#[cfg(test)]
mod tests;

pub use configuration::{Configuration, MAX_CONFIGURATION_BYTES, Step};
pub use group::{GroupConfig, MAX_TERM, NotLeader, Output, Proposed, RaftGroup, Refused, Role, Votes};
pub use log::{EntryKind, HardState, Header, Position, RecoveredLog};
pub use members::ChangeRefused;
pub use message::{EntryHead, Message, MessageKind};
pub use rejoin::{Answer, Electorate, Floor, Rejoin, Standing, Verdict};
pub use timers::Timing;
