//! The real programs, run as a user runs them. One test binary, so that it is linked once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod admin;
mod clients;
mod cluster;
mod common;
mod disk;
mod files;
mod fixtures;
mod harness;
mod history;
mod http;
mod leaders;
mod moving;
mod netns;
mod node;
mod partition;
mod proxy;
mod reads;
mod recover;
mod rot;
mod shards;
mod stalls;
mod tidy;
mod upgrade;
mod watch;
mod wires;
