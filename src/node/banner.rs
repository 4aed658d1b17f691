//! What a node says when it starts: a few lines on standard output.

use std::fmt;
use std::path::PathBuf;

use crate::kernel_checks::Finding;
use crate::units;

/// What the banner tells.
#[derive(Clone, Debug)]
pub(crate) struct Banner {
    pub(crate) node_id: u32,
    /// The CPU of each shard; `None` = not pinned.
    pub(crate) cpus: Vec<Option<usize>>,
    /// Address listened on, with the port that was given out when 0 was asked for.
    pub(crate) listen: String,
    /// Address that clients are told.
    pub(crate) advertised: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) journal_dir: PathBuf,
    /// As in the configuration.
    pub(crate) fsync_policy: String,
    pub(crate) memory_bound_bytes: u64,
    /// Client connections that are taken at once.
    pub(crate) max_connections: usize,
    pub(crate) findings: Vec<Finding>,
}

impl fmt::Display for Banner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pyralog {}, node {}", env!("CARGO_PKG_VERSION"), self.node_id)?;
        writeln!(f, "  shards      {}: {}", self.cpus.len(), shards(&self.cpus))?;
        write!(f, "  address     {}", self.listen)?;
        if self.advertised != self.listen {
            write!(f, ", advertised as {}", self.advertised)?;
        }
        writeln!(f, " (binary protocol, and HTTP: /health /status /metrics)")?;
        write!(f, "  data        {}", self.data_dir.display())?;
        if self.journal_dir != self.data_dir {
            write!(f, ", journals in {}", self.journal_dir.display())?;
        }
        writeln!(f)?;
        writeln!(f, "  durability  fsync_policy {}: {}", self.fsync_policy, meaning(&self.fsync_policy))?;
        let (memory, connections) =
            (units::bytes(self.memory_bound_bytes), units::count(self.max_connections as u64));
        writeln!(f, "  memory      at most {memory}, for up to {connections} connections")?;
        for finding in &self.findings {
            writeln!(f, "  warning     {finding}")?;
        }
        Ok(())
    }
}

fn shards(cpus: &[Option<usize>]) -> String {
    let pinned: Vec<String> = cpus
        .iter()
        .enumerate()
        .filter_map(|(shard, cpu)| Some(format!("{shard} on cpu {}", (*cpu)?)))
        .collect();
    match pinned.len() {
        0 => "not pinned to cores".into(),
        _ => pinned.join(", "),
    }
}

/// What an acknowledgement means under this policy.
fn meaning(fsync_policy: &str) -> &'static str {
    match fsync_policy {
        "every_write" => "an acknowledgement means on stable storage",
        "never" => "an acknowledgement means written; a power failure can lose acknowledged records",
        _ => "an acknowledgement means written; a power failure can lose the records of that interval",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_checks::Severity;

    #[test]
    fn every_fact_is_on_the_banner() {
        let finding = Finding {
            severity: Severity::Warning,
            text: "memlock is 8.0 MiB".into(),
            remedy: "sudo prlimit --memlock=unlimited --pid $$".into(),
        };
        let banner = Banner {
            node_id: 7,
            cpus: vec![Some(2), Some(3)],
            listen: "0.0.0.0:9092".into(),
            advertised: "log1:9092".into(),
            data_dir: "data".into(),
            journal_dir: "/fast".into(),
            fsync_policy: "interval(10ms)".into(),
            memory_bound_bytes: 3 << 29,
            max_connections: 16_384,
            findings: vec![finding],
        };
        let text = banner.to_string();
        for part in [
            concat!("pyralog ", env!("CARGO_PKG_VERSION"), ", node 7\n"),
            "2: 0 on cpu 2, 1 on cpu 3\n",
            "0.0.0.0:9092, advertised as log1:9092",
            "data, journals in /fast\n",
            "fsync_policy interval(10ms): an acknowledgement means written; a power failure can lose",
            "at most 1.5 GiB, for up to 16,384 connections\n",
            "warning     memlock is 8.0 MiB; mend it with: sudo prlimit --memlock=unlimited --pid $$\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}
