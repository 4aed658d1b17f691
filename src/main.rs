//! `pyralog`: runs a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    pyralog::pyralog()
}
