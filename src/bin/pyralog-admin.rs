//! `pyralog-admin`: administers a cluster and checks data folders.

use std::process::ExitCode;

fn main() -> ExitCode {
    pyralog::pyralog_admin()
}
