//! Where the pages get their numbers from: the running node, and what it told the control thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use pyralog_core::{GroupId, ShardId};
use pyralog_net::message::PartitionState;
use pyralog_replication::metadata::Catalog;
use pyralog_shard::runtime::{Node, ShardReport};

use super::view::{Latencies, NodeFacts, ShardView};

/// How long a page waits for the shards.
const ANSWER_BOUND: Duration = Duration::from_secs(2);

/// Upper bounds of the latency histograms, microseconds.
const BOUNDS_US: [u64; 19] = [
    50, 75, 100, 150, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 5_000_000,
];

/// Shared by the control thread's tasks.
pub(crate) struct Source {
    facts: NodeFacts,
    state: Mutex<State>,
}

struct State {
    /// Gone when the node shuts down.
    node: Option<Node>,
    catalog: Arc<Catalog>,
    shards: Vec<Known>,
}

/// What a shard has told.
#[derive(Clone, Default)]
struct Known {
    cpu: Option<usize>,
    ready: bool,
    failed: Option<String>,
    /// Bytes of its journal replayed, and to replay.
    replay: Option<(u64, u64)>,
}

impl Source {
    pub(crate) fn new(facts: NodeFacts, node: Node, cpus: &[Option<usize>]) -> Self {
        let shards = cpus.iter().map(|cpu| Known { cpu: *cpu, ..Known::default() }).collect();
        Self { facts, state: Mutex::new(State { node: Some(node), catalog: Arc::default(), shards }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held cannot have left anything half done: every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.state().catalog)
    }

    pub(crate) fn set_catalog(&self, catalog: Arc<Catalog>) {
        self.state().catalog = catalog;
    }

    /// A shard serves. Whether all do now.
    pub(crate) fn shard_ready(&self, shard: ShardId) -> bool {
        let mut state = self.state();
        if let Some(known) = state.shards.get_mut(usize::from(shard.0)) {
            known.ready = true;
            known.replay = None;
        }
        state.shards.iter().all(|known| known.ready)
    }

    /// All shards are ready for the first time.
    pub(crate) fn all_ready(&self) -> Result<(), String> {
        let state = self.state();
        state.node.as_ref().map_or(Ok(()), |node| node.remember_begun().map_err(|error| error.to_string()))
    }

    pub(crate) fn shard_replays(&self, shard: ShardId, done: u64, total: u64) {
        if let Some(known) = self.state().shards.get_mut(usize::from(shard.0)) {
            known.replay = Some((done, total));
        }
    }

    pub(crate) fn shard_failed(&self, shard: ShardId, error: String) {
        if let Some(known) = self.state().shards.get_mut(usize::from(shard.0)) {
            known.ready = false;
            known.failed = Some(error);
        }
    }

    /// The node, to shut it down.
    pub(crate) fn take_node(&self) -> Option<Node> {
        self.state().node.take()
    }

    pub(crate) fn stopping(&self) -> bool {
        self.state().node.is_none()
    }

    /// All shards, with the status of those that answer.
    pub(crate) async fn shards(&self) -> Vec<ShardView> {
        let (known, answers) = {
            let state = self.state();
            (state.shards.clone(), state.node.as_ref().map(Node::ask_status))
        };
        let mut views: Vec<ShardView> = (0..).zip(&known).map(|(shard, known)| view(shard, known)).collect();
        // Shards that replay their journals do not answer until they serve: nobody waits for them here.
        let wanted = known.iter().filter(|known| known.ready).count();
        if let Some(answers) = answers {
            for report in collect(&answers, wanted).await {
                if let Some(view) = views.get_mut(usize::from(report.shard.0)) {
                    fill(view, report);
                }
            }
        }
        views
    }

    /// The states of those of these partitions that the node has and whose shards answer.
    pub(crate) async fn partitions(&self, groups: Vec<GroupId>) -> BTreeMap<GroupId, PartitionState> {
        let (wanted, answers) = {
            let state = self.state();
            let wanted = state.shards.iter().filter(|known| known.ready).count();
            (wanted, state.node.as_ref().map(|node| node.ask_groups(groups.into())))
        };
        let Some(answers) = answers else { return BTreeMap::new() };
        collect(&answers, wanted).await.into_iter().flatten().collect()
    }
}

/// Up to `wanted` answers, those that come in time.
async fn collect<T>(answers: &flume::Receiver<T>, wanted: usize) -> Vec<T> {
    let mut found = Vec::with_capacity(wanted);
    // Elapsed or not: what has come is what there is.
    let _ = tokio::time::timeout(ANSWER_BOUND, async {
        while found.len() < wanted
            && let Ok(answer) = answers.recv_async().await
        {
            found.push(answer);
        }
    })
    .await;
    found
}

fn view(shard: u16, known: &Known) -> ShardView {
    let empty = latencies(None);
    ShardView {
        shard,
        cpu: known.cpu,
        failed: known.failed.clone(),
        replay: known.replay,
        write_latency: empty.clone(),
        write_stages: std::array::from_fn(|_| empty.clone()),
        flush_latency: empty,
        ..ShardView::default()
    }
}

fn fill(view: &mut ShardView, report: ShardReport) {
    view.write_latency = latencies(Some(&report.produce_us));
    let stages = &report.stages;
    view.write_stages = [&stages.wait_us, &stages.flush_us, &stages.quorum_us, &stages.reply_us]
        .map(|recorded| latencies(Some(recorded)));
    view.flush_latency = latencies(Some(&report.journal_write_us));
    view.connections = report.connections;
    view.connections_accepted = report.accepted;
    view.connections_refused = report.refused;
    view.connections_timed_out = report.timed_out;
    view.connections_shed = report.shed;
    view.queued_reply_bytes = report.queued_reply_bytes;
    view.open_files = report.open_files as u64;
    view.status = Some(report.status);
}

/// A recorded histogram of microseconds in the buckets that are shown.
fn latencies(recorded: Option<&Histogram<u64>>) -> Latencies {
    let mut buckets = Vec::with_capacity(BOUNDS_US.len() + 1);
    // Differences of sums: the histogram's own steps overlap the bounds, so ranges would count values twice.
    let mut below = 0;
    for bound_us in BOUNDS_US {
        let sum = recorded.map_or(0, |recorded| recorded.count_between(0, bound_us - 1));
        buckets.push((bound_us as f64 / 1e6, sum - below));
        below = sum;
    }
    let count = recorded.map_or(0, Histogram::len);
    buckets.push((f64::INFINITY, count.saturating_sub(below)));
    let sum_s = recorded
        .filter(|recorded| !recorded.is_empty())
        .map_or(0.0, |recorded| recorded.mean() * count as f64 / 1e6);
    Latencies { buckets, sum_s, count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recorded_value_is_in_one_bucket() {
        let mut recorded = Histogram::<u64>::new(3).unwrap();
        for us in [0, 49, 60, 99, 100, 800, 999_999, 10_000_000, 90_000_000] {
            recorded.record(us).unwrap();
        }
        let shown = latencies(Some(&recorded));
        assert_eq!(shown.count, 9);
        assert_eq!(shown.buckets.iter().map(|(_, count)| count).sum::<u64>(), 9);
        assert_eq!(shown.buckets[0], (0.00005, 2));
        assert_eq!(shown.buckets.last(), Some(&(f64::INFINITY, 2)));
        assert!((shown.sum_s - 101.0).abs() < 0.5, "{}", shown.sum_s);
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        let shown = latencies(None);
        assert_eq!((shown.count, shown.sum_s), (0, 0.0));
        assert_eq!(shown.buckets.len(), BOUNDS_US.len() + 1);
    }
}
