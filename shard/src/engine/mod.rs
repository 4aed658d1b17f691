//! The deterministic engine of one shard: events in, actions out. It knows no clock, socket, file or random
//! source; the driver (`runtime`) and the simulator (`pyralog-sim`) run this same code.

pub mod api;

pub use api::*;
