//! One core's part of a node: the deterministic engine (`engine`), the bytes it keeps on disk (`format`), and
//! the driver that connects it to sockets and files (`runtime`).

pub mod engine;
pub mod format;
pub mod memory;
pub mod offline;
pub mod pages;
pub mod recovery_budget;
pub mod runtime;
