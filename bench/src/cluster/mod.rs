//! Three nodes on this machine, and what is measured of them: fail-over, the price of a follower that stands still, groups
//! that nobody writes to.

pub mod failover;
pub mod idle;
pub mod stopped;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_core::{ErrorCode, Quorums};
use pyralog_net::client::{Client, ClientConfig, ClientError};
use pyralog_net::message::{CreateTopicRequest, PartitionMetadata, PartitionState};
use pyralog_tuning::cpus::of_node;

use crate::process::{Member, NodeSetup, OwnedProcess, free_loopback_addrs};

/// Nodes of a cluster.
pub const NODES: u32 = 3;
/// How long anything is waited for that takes seconds at most.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// A cluster in a folder; its nodes are killed when it is dropped.
pub struct Cluster {
    setups: Vec<NodeSetup>,
    nodes: Vec<Option<OwnedProcess>>,
}

impl Cluster {
    /// Starts the nodes in `dir`, one shard each on the CPUs in turns, and waits until they have formed a cluster.
    pub fn start(program: &Path, dir: &Path, cpus: &[usize]) -> anyhow::Result<Self> {
        let addrs = free_loopback_addrs(2 * NODES as usize)?;
        let (clients, internals) = addrs.split_at(NODES as usize);
        let members: Vec<_> =
            (1..=NODES).zip(clients.iter().copied().zip(internals.iter().copied())).collect();
        let nodes: Vec<String> =
            members.iter().map(|(id, (_, internal))| format!("{id}@{internal}")).collect();
        let mut cluster = Self { setups: Vec::new(), nodes: Vec::new() };
        for (id, (addr, internal)) in members {
            let dir = dir.join(format!("node-{id}"));
            std::fs::create_dir_all(&dir)?;
            let one_shard_on = of_node(id, cpus).or(Some(0));
            let member = Some(Member { id, internal, nodes: nodes.clone() });
            let setup = NodeSetup { program: program.to_owned(), dir, addr, one_shard_on, member };
            cluster.nodes.push(Some(setup.spawn()?));
            cluster.setups.push(setup);
        }
        cluster.await_formed()?;
        Ok(cluster)
    }

    /// Where clients connect.
    pub fn addresses(&self) -> Vec<String> {
        self.setups.iter().map(|setup| setup.addr.to_string()).collect()
    }

    /// Where clients connect to node `id`.
    pub fn address(&self, id: u32) -> anyhow::Result<SocketAddr> {
        let setup = self.setups.get((id as usize).wrapping_sub(1));
        Ok(setup.with_context(|| format!("there is no node {id}"))?.addr)
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> Client {
        let config =
            ClientConfig { name: "pyralog-bench".into(), retry_for: PATIENCE, ..ClientConfig::default() };
        Client::new(&self.addresses(), config)
    }

    /// The process of node `id`, which runs.
    pub fn node(&mut self, id: u32) -> anyhow::Result<&mut OwnedProcess> {
        let node = self.nodes.get_mut((id as usize).wrapping_sub(1)).and_then(Option::as_mut);
        node.with_context(|| format!("node {id} does not run"))
    }

    /// Takes the process of node `id` out, to be ended by the caller.
    pub fn take(&mut self, id: u32) -> anyhow::Result<OwnedProcess> {
        let node = self.nodes.get_mut((id as usize).wrapping_sub(1)).and_then(Option::take);
        node.with_context(|| format!("node {id} does not run"))
    }

    /// Starts node `id` again.
    pub fn restart(&mut self, id: u32) -> anyhow::Result<()> {
        let at = (id as usize).wrapping_sub(1);
        let setup = self.setups.get(at).with_context(|| format!("there is no node {id}"))?;
        let node = setup.start()?;
        if let Some(slot) = self.nodes.get_mut(at) {
            *slot = Some(node);
        }
        self.await_formed()
    }

    /// Starts all nodes again, at once.
    pub fn restart_all(&mut self) -> anyhow::Result<()> {
        for (setup, slot) in self.setups.iter().zip(&mut self.nodes) {
            *slot = Some(setup.spawn()?);
        }
        self.await_formed()
    }

    /// Process ids of those that run.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().flatten().map(OwnedProcess::pid).collect()
    }

    /// Stops every node.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.nodes.iter_mut().flatten().try_for_each(OwnedProcess::stop)
    }

    /// Waits until every node knows all others and who leads the metadata.
    fn await_formed(&self) -> anyhow::Result<()> {
        for address in self.addresses() {
            let config = ClientConfig { retry_for: PATIENCE, ..ClientConfig::default() };
            let mut client = Client::new(&[address], config);
            await_true("the nodes have not formed a cluster", || {
                Ok(client.metadata()?.0.knows_all(NODES as usize))
            })?;
        }
        Ok(())
    }

    /// Creates a topic with three replicas of each partition, and waits until all of them are led by the first of their replicas,
    /// on every node's word.
    pub fn create_topic(&self, name: &str, partitions: u32) -> anyhow::Result<()> {
        self.request_topic(name, partitions)?;
        self.await_home(name)
    }

    /// The same without waiting.
    pub fn request_topic(&self, name: &str, partitions: u32) -> anyhow::Result<()> {
        let quorums = Quorums { replication_factor: NODES as u8, ..Quorums::UNSET };
        let request = CreateTopicRequest { name, partitions, quorums, retention_bytes: -1, retention_ms: -1 };
        self.client().create_topic_with(request)?;
        Ok(())
    }

    /// Waits until every partition of the topic is led by the first of its replicas and all replicas hold everything.
    pub fn await_home(&self, topic: &str) -> anyhow::Result<()> {
        let first = |at: &PartitionMetadata| at.replicas.iter().next().map(|replica| replica.node);
        self.await_leaders(topic, |at| first(at) == Some(at.leader))
    }

    /// Waits until every partition of the topic is led and all replicas hold everything.
    pub fn await_led(&self, topic: &str) -> anyhow::Result<()> {
        self.await_leaders(topic, |at| at.leader != 0)
    }

    fn await_leaders(
        &self,
        topic: &str,
        is_right: impl Fn(&PartitionMetadata) -> bool,
    ) -> anyhow::Result<()> {
        for address in self.addresses() {
            let config = ClientConfig { retry_for: PATIENCE, ..ClientConfig::default() };
            let mut client = Client::new(&[address], config);
            let mut seen = Vec::new();
            await_true("the leaders are not where they should be", || match client.topic_afresh(topic) {
                Ok(topic) => Ok(all_seen(&mut seen, topic.partitions.iter().map(&is_right))),
                // Not every node has heard of it yet.
                Err(ClientError::Server { code: ErrorCode::UnknownTopicOrPartition, .. }) => Ok(false),
                Err(error) => Err(error.into()),
            })?;
        }
        self.await_in_sync(topic)
    }

    /// Waits until every replica of the topic holds everything.
    pub fn await_in_sync(&self, topic: &str) -> anyhow::Result<()> {
        let mut client = self.client();
        let whole = |state: &PartitionState| {
            let mut replicas = state.replicas.iter();
            state.replicas.len() == NODES as usize
                && replicas.all(|replica| replica.in_sync && replica.log_end >= state.high_watermark)
        };
        let mut seen = Vec::new();
        await_true("the replicas have not caught up", || {
            Ok(all_seen(&mut seen, client.describe_topic(topic)?.iter().map(whole)))
        })
    }
}

/// Whether everything has been right at some time, though not at the same: of thousands of leaders one is always on its way
/// home.
fn all_seen(seen: &mut Vec<bool>, now: impl Iterator<Item = bool>) -> bool {
    for (at, now) in now.enumerate() {
        match seen.get_mut(at) {
            Some(seen) => *seen |= now,
            None => seen.push(now),
        }
    }
    !seen.is_empty() && seen.iter().all(|seen| *seen)
}

/// Asks until the answer is yes.
fn await_true(what_not: &str, mut ask: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !ask()? {
        anyhow::ensure!(Instant::now() < end, "{what_not} within {PATIENCE:?}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}
