//! What the control thread shows: a plain copy of the node's state, taken when somebody asks.

use std::time::Instant;

use pyralog_net::message::{PartitionHealth, ReplicaRole, ReplicationState};
use pyralog_shard::engine::ShardStatus;

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    /// The node's id.
    pub(crate) node_id: u32,
    /// The cluster's name.
    pub(crate) cluster_name: String,
    /// What that is on the wire between nodes.
    pub(crate) cluster_id: u64,
    /// Address that clients are told.
    pub(crate) address: String,
    /// The data folder.
    pub(crate) data_dir: String,
    /// `every_write`, `interval(10ms)` or `never`.
    pub(crate) fsync_policy: String,
    /// Bound of the node's memory, bytes.
    pub(crate) memory_bound_bytes: u64,
    /// When the process started.
    pub(crate) started: Instant,
}

/// Latencies, as counts below bounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    /// `(upper bound in seconds, how many between the bound before and this one)`; the last bound is infinite.
    pub(crate) buckets: Vec<(f64, u64)>,
    /// Sum of all, seconds.
    pub(crate) sum_s: f64,
    /// How many.
    pub(crate) count: u64,
}

/// One shard at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardView {
    /// Its index.
    pub(crate) shard: u16,
    /// The CPU it is pinned to.
    pub(crate) cpu: Option<usize>,
    /// What its engine says; `None` when it has not answered (it is starting, or it has failed).
    pub(crate) status: Option<ShardStatus>,
    /// Why it has failed.
    pub(crate) failed: Option<String>,
    /// While its journal is replayed: bytes done, and in all.
    pub(crate) replay: Option<(u64, u64)>,
    /// Client connections.
    pub(crate) connections: u64,
    /// Accepted so far.
    pub(crate) connections_accepted: u64,
    /// Refused at the bound.
    pub(crate) connections_refused: u64,
    /// Closed because nothing moved for too long.
    pub(crate) connections_timed_out: u64,
    /// Closed because they read too slowly while memory was short.
    pub(crate) connections_shed: u64,
    /// Bytes of replies waiting to be sent.
    pub(crate) queued_reply_bytes: u64,
    /// Files open.
    pub(crate) open_files: u64,
    /// From a produce's arrival to its reply.
    pub(crate) write_latency: Latencies,
    /// Its parts: wait for the journal, journal write, quorum, reply.
    pub(crate) write_stages: [Latencies; 4],
    /// From the submission of a journal write to its end.
    pub(crate) flush_latency: Latencies,
}

impl ShardView {
    /// Why this shard does not serve everything, in one word and a detail.
    pub(crate) fn trouble(&self) -> Option<String> {
        let shard = self.shard;
        if let Some(reason) = &self.failed {
            return Some(format!("shard {shard} has failed: {reason}"));
        }
        let Some(status) = &self.status else {
            return Some(match self.replay {
                Some((done, total)) => {
                    let percent = done.saturating_mul(100) / total.max(1);
                    format!(
                        "shard {shard} replays its journal: {} of {} ({percent} %)",
                        crate::units::bytes(done),
                        crate::units::bytes(total)
                    )
                }
                None => format!("shard {shard} is starting"),
            });
        };
        if !status.ready {
            return Some(format!("shard {shard} is starting"));
        }
        if let Some(reason) = &status.fenced {
            return Some(format!("shard {shard} is fenced: {reason}"));
        }
        if status.disk_full {
            return Some(format!("shard {shard}: the disk is full, writes are refused until space is freed"));
        }
        None
    }
}

/// The health's name as shown everywhere.
pub(crate) fn health_name(health: PartitionHealth) -> &'static str {
    match health {
        PartitionHealth::Online => "online",
        PartitionHealth::Damaged => "damaged",
        PartitionHealth::LogEndUnknown => "log_end_unknown",
        PartitionHealth::Rejoining => "rejoining",
    }
}

/// What a replica counts for, as shown everywhere.
pub(crate) fn replica_role_name(role: ReplicaRole) -> &'static str {
    match role {
        ReplicaRole::Voter => "voter",
        ReplicaRole::Joining => "joining",
        ReplicaRole::Leaving => "leaving",
    }
}

/// What a replica does, as shown everywhere.
pub(crate) fn replication_state_name(state: ReplicationState) -> &'static str {
    match state {
        ReplicationState::Unknown => "unknown",
        ReplicationState::Leader => "leader",
        ReplicationState::Replicating => "replicating",
        ReplicationState::CatchingUp => "catching_up",
        ReplicationState::Rejoining => "rejoining",
        ReplicationState::Unreachable => "unreachable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_shard_that_serves_reads_and_writes_is_without_trouble() {
        let view = |status| ShardView { shard: 3, status, ..ShardView::default() };
        let good = ShardStatus { ready: true, ..ShardStatus::default() };
        assert_eq!(view(Some(good.clone())).trouble(), None);
        assert_eq!(view(None).trouble().as_deref(), Some("shard 3 is starting"));
        assert_eq!(view(Some(ShardStatus::default())).trouble().as_deref(), Some("shard 3 is starting"));
        let fenced = ShardStatus { fenced: Some("EIO".into()), ..good.clone() };
        assert_eq!(view(Some(fenced)).trouble().as_deref(), Some("shard 3 is fenced: EIO"));
        let full = ShardStatus { disk_full: true, ..good.clone() };
        assert!(view(Some(full)).trouble().is_some_and(|text| text.contains("disk is full")));
        let failed = ShardView { failed: Some("a bug".into()), ..view(Some(good)) };
        assert_eq!(failed.trouble().as_deref(), Some("shard 3 has failed: a bug"));
    }
}
