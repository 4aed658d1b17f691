//! The client library for C: `extern "C"` functions over `pyralog-net`'s client, and the header made from them
//! (`include/pyralog.h`). `docs/clients.md` is the tutorial.
//!
//! - Every function gives a status ([`status`]); what it means in words is kept per thread ([`error`]).
//! - Everything that comes from the caller goes through [`args`]: null pointers, lengths, text, numbers of choices.
//! - A panic ends at [`error::guard`], never in the caller.
//! - Structs that may grow begin with their size ([`sized`]).
//!
//! The doc comments of what is exported become the header's. They are written for readers of C.
//!
//! # Safety
//! What the functions ask of their callers is the same for all and stated once, at the top of the header: pointers are
//! null or valid for what they are used for, handles come from this library and are not used after they were freed.

#![allow(clippy::missing_safety_doc, reason = "the header states it once for all functions")]

mod args;
pub mod client;
pub mod consumer;
pub mod delivery;
pub mod direct;
pub mod error;
pub mod producer;
pub mod queue;
pub mod record;
mod sized;
pub mod status;
pub mod topic;
pub mod version;

#[cfg(test)]
mod tests;
