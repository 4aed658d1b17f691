//! Attempts to break a node. Each is bounded in number and time, and ends with what was found.

pub mod connections;
pub mod frames;
pub mod good;
pub mod kill;
pub mod memory;
pub mod mutate;

use crate::cli::Torture;
use crate::host;

/// Runs one of them; an error says what did not hold.
pub fn run(what: &Torture) -> anyhow::Result<()> {
    host::raise_nofile_limit()?;
    match what {
        Torture::Connections(args) => connections::run(args),
        Torture::Frames(args) => frames::run(args),
        Torture::Memory(args) => memory::run(args),
        Torture::Kill(args) => kill::run(args),
    }
}

/// A topic name that no run before has used.
fn fresh_topic(prefix: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{prefix}-{}-{}", std::process::id(), now.as_millis())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}
