//! The two programs, `pyralog` and `pyralog-admin`. They wire the crates below to a command line, signals,
//! HTTP and a terminal; nothing here decides what a log does.
//!
//! - `node`: runs a node: configuration, banner, signals. `kernel_checks`: what the kernel refuses.
//! - `control`: the pages over HTTP, on the client port.
//! - `admin`: the commands of `pyralog-admin`.
//! - `demo`: a node shown from outside.

mod admin;
mod control;
mod demo;
mod failure;
mod kernel_checks;
mod node;
mod units;

use std::process::ExitCode;

/// The program `pyralog`.
pub fn pyralog() -> ExitCode {
    node::main()
}

/// The program `pyralog-admin`.
pub fn pyralog_admin() -> ExitCode {
    admin::main()
}
