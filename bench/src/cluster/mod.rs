//! Three nodes on this machine, and what is measured of them: fail-over, the price of a follower that stands still, groups
//! that nobody writes to, a node that gets everything again, and a life in which the three become five and three again.

pub mod failover;
pub mod idle;
pub mod life;
mod paced;
pub mod recovery;
pub mod stopped;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_core::{ErrorCode, Quorums};
use pyralog_net::client::{Client, ClientConfig, ClientError};
use pyralog_net::message::{CreateTopicRequest, PartitionMetadata, PartitionState};
use pyralog_tuning::cpus::of_node;

use crate::process::{Member, NodeSetup, OwnedProcess, free_loopback_addrs};

/// Nodes of a cluster, as it begins.
pub const NODES: u32 = 3;
/// How long anything is waited for that takes seconds at most.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// A cluster in a folder; its nodes are killed when it is dropped.
pub struct Cluster {
    /// All nodes that are part of it, by id.
    setups: BTreeMap<u32, NodeSetup>,
    /// Those that run.
    nodes: BTreeMap<u32, OwnedProcess>,
}

impl Cluster {
    /// Starts the nodes in `dir`, one shard each on the CPUs in turns, and waits until they have formed a cluster.
    pub fn start(program: &Path, dir: &Path, cpus: &[usize]) -> anyhow::Result<Self> {
        let addrs = free_loopback_addrs(2 * NODES as usize)?;
        let (clients, internals) = addrs.split_at(NODES as usize);
        let mut cluster = Self { setups: BTreeMap::new(), nodes: BTreeMap::new() };
        for ((id, addr), internal) in (1..=NODES).zip(clients).zip(internals) {
            cluster.add_setup(program, dir, cpus, id, *addr, *internal)?;
        }
        cluster.name_all();
        cluster.restart_all()?;
        Ok(cluster)
    }

    fn add_setup(
        &mut self,
        program: &Path,
        dir: &Path,
        cpus: &[usize],
        id: u32,
        addr: SocketAddr,
        internal: SocketAddr,
    ) -> anyhow::Result<()> {
        let dir = dir.join(format!("node-{id}"));
        std::fs::create_dir_all(&dir)?;
        let one_shard_on = of_node(id, cpus).or(Some(0));
        let member = Some(Member { id, internal, nodes: Vec::new() });
        let program = program.to_owned();
        self.setups.insert(id, NodeSetup { program, dir, addr, one_shard_on, member, recovery_rate: None });
        Ok(())
    }

    /// Has the settings of each node name all of them.
    fn name_all(&mut self) {
        let members = self.setups.values().filter_map(|setup| setup.member.as_ref());
        let nodes: Vec<String> = members.map(|member| format!("{}@{}", member.id, member.internal)).collect();
        for member in self.setups.values_mut().filter_map(|setup| setup.member.as_mut()) {
            member.nodes.clone_from(&nodes);
        }
    }

    /// Names more nodes in the settings of all. They have to be started, and those that run to be restarted.
    pub fn name_more(
        &mut self,
        program: &Path,
        dir: &Path,
        cpus: &[usize],
        ids: RangeInclusive<u32>,
    ) -> anyhow::Result<()> {
        let addrs = free_loopback_addrs(2 * ids.clone().count())?;
        for (id, pair) in ids.zip(addrs.chunks_exact(2)) {
            if let [addr, internal] = *pair {
                self.add_setup(program, dir, cpus, id, addr, internal)?;
            }
        }
        self.name_all();
        Ok(())
    }

    /// Stops a node that is not part of the cluster any more, and takes it out of the settings of the others.
    pub fn retire(&mut self, id: u32) -> anyhow::Result<()> {
        self.take(id)?.stop()?;
        self.setups.remove(&id);
        self.name_all();
        Ok(())
    }

    /// Where clients connect.
    pub fn addresses(&self) -> Vec<String> {
        self.setups.values().map(|setup| setup.addr.to_string()).collect()
    }

    /// Where clients connect to node `id`.
    pub fn address(&self, id: u32) -> anyhow::Result<SocketAddr> {
        Ok(self.setup(id)?.addr)
    }

    fn setup(&self, id: u32) -> anyhow::Result<&NodeSetup> {
        self.setups.get(&id).with_context(|| format!("there is no node {id}"))
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> Client {
        let config =
            ClientConfig { name: "pyralog-bench".into(), retry_for: PATIENCE, ..ClientConfig::default() };
        Client::new(&self.addresses(), config)
    }

    /// The process of node `id`, which runs.
    pub fn node(&mut self, id: u32) -> anyhow::Result<&mut OwnedProcess> {
        self.nodes.get_mut(&id).with_context(|| format!("node {id} does not run"))
    }

    /// Takes the process of node `id` out, to be ended by the caller.
    pub fn take(&mut self, id: u32) -> anyhow::Result<OwnedProcess> {
        self.nodes.remove(&id).with_context(|| format!("node {id} does not run"))
    }

    /// Starts node `id` without waiting for anything.
    pub fn spawn(&mut self, id: u32) -> anyhow::Result<()> {
        let node = self.setup(id)?.spawn()?;
        self.nodes.insert(id, node);
        Ok(())
    }

    /// Starts node `id` again.
    pub fn restart(&mut self, id: u32) -> anyhow::Result<()> {
        let node = self.setup(id)?.start()?;
        self.nodes.insert(id, node);
        self.await_formed()
    }

    /// Has node `id`, from its next start on, keep to this `replication.recovery_rate`; `None` = the default.
    pub fn set_recovery_rate(&mut self, id: u32, rate: Option<&str>) -> anyhow::Result<()> {
        let setup = self.setups.get_mut(&id).with_context(|| format!("there is no node {id}"))?;
        setup.recovery_rate = rate.map(str::to_owned);
        Ok(())
    }

    /// Removes everything that node `id`, which does not run, has on its disk.
    pub fn wipe(&self, id: u32) -> anyhow::Result<()> {
        let data = self.setup(id)?.data_dir();
        std::fs::remove_dir_all(&data).with_context(|| format!("{}: can't be removed", data.display()))
    }

    /// Starts all nodes again, at once.
    pub fn restart_all(&mut self) -> anyhow::Result<()> {
        let ids: Vec<u32> = self.setups.keys().copied().collect();
        ids.into_iter().try_for_each(|id| self.spawn(id))?;
        self.await_formed()
    }

    /// Process ids of those that run.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.values().map(OwnedProcess::pid).collect()
    }

    /// Stops every node.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.nodes.values_mut().try_for_each(OwnedProcess::stop)
    }

    /// Waits until every node knows all others and who leads the metadata.
    pub fn await_formed(&self) -> anyhow::Result<()> {
        for address in self.addresses() {
            let config = ClientConfig { retry_for: PATIENCE, ..ClientConfig::default() };
            let mut client = Client::new(&[address], config);
            await_true("the nodes have not formed a cluster", || {
                Ok(client.metadata()?.0.knows_all(self.setups.len()))
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
