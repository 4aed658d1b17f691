//! Several nodes of one's own for a test: real programs on loopback addresses that no other test has.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyralog_core::ErrorCode;
use pyralog_net::client::{
    Client, ClientConfig, ClientError, Connection, Consumer, ConsumerConfig, IdempotentProducer,
    ProducerConfig, StartAt,
};
use pyralog_net::message::{Request, Response};
use serde_json::Value;

use crate::common::{Node, PATIENCE, admin};
use crate::proxy::Network;
use crate::wires::Wires;

const CLIENT_PORT: u16 = 9092;
const INTERNAL_PORT: u16 = 9093;

static CLUSTERS: AtomicU16 = AtomicU16::new(0);

/// Nodes on loopback addresses that no other test has: 127.p.p.x, with p from the process and x counted.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    pub(crate) nodes: BTreeMap<u16, Node>,
    count: u16,
    /// Those that began name so many in their settings; others have come by a command, and name all.
    named: u16,
    base: u16,
    settings: &'static [(&'static str, &'static str)],
    /// By node; a node that is not in it has none.
    pub(crate) racks: BTreeMap<u16, &'static str>,
    /// Shards, by node; one if it is not in it.
    pub(crate) shards: BTreeMap<u16, u16>,
    /// The highest feature level that a node supports, by node; this release's if it is not in it.
    pub(crate) levels: BTreeMap<u16, u16>,
    network: Option<Network>,
    wires: Option<Wires>,
}

impl Cluster {
    /// A cluster of which no node runs yet.
    pub(crate) fn new(count: u16) -> Self {
        // As many as a cluster can grow to.
        let base = CLUSTERS.fetch_add(6, Ordering::Relaxed) + 2;
        let (folder, nodes) = (tempfile::tempdir().unwrap(), BTreeMap::new());
        let (racks, shards, levels) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (settings, network, wires) = (&[], None, None);
        Self { folder, nodes, count, named: count, base, settings, racks, shards, levels, network, wires }
    }

    /// All nodes run and somebody leads the metadata.
    pub(crate) fn formed(count: u16) -> Self {
        Self::formed_with(count, &[])
    }

    pub(crate) fn formed_with(count: u16, settings: &'static [(&'static str, &'static str)]) -> Self {
        Self { settings, ..Self::new(count) }.form()
    }

    /// A node in each of these racks.
    pub(crate) fn in_racks(racks: &[&'static str]) -> Self {
        let mut cluster = Self::new(racks.len() as u16);
        cluster.racks = (1..).zip(racks.iter().copied()).collect();
        let cluster = cluster.form();
        // They are registered when the feature level admits them, which is a moment after all nodes are there.
        eventually(|| {
            let (node, _) = cluster.client().metadata().unwrap();
            let racks = |id: u32| cluster.racks.get(&(id as u16)).copied().unwrap_or_default();
            node.nodes.iter().all(|known| known.rack == racks(known.id)).then_some(())
        });
        cluster
    }

    /// Likewise, with ways between the nodes that the test can close.
    pub(crate) fn behind_proxies(count: u16, settings: &'static [(&'static str, &'static str)]) -> Self {
        let mut cluster = Self { settings, ..Self::new(count) };
        cluster.network = Some(Network::new(count, |id| cluster.internal(id)));
        cluster.form()
    }

    /// Likewise, on a network of its own.
    pub(crate) fn on(wires: Wires) -> Self {
        Self { wires: Some(wires), ..Self::new(3) }.form()
    }

    /// Starts all nodes, which find what is in their folders.
    pub(crate) fn form(mut self) -> Self {
        (1..=self.count).for_each(|id| self.start(id));
        self.await_formed();
        self
    }

    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().unwrap()
    }

    pub(crate) fn wires(&self) -> &Wires {
        self.wires.as_ref().unwrap()
    }

    fn host(&self, id: u16) -> Ipv4Addr {
        if self.wires.is_some() {
            return Wires::host(id);
        }
        let process = std::process::id();
        Ipv4Addr::new(127, 64 + (process >> 8 & 0x7f) as u8, process as u8, (self.base + id) as u8)
    }

    pub(crate) fn address(&self, id: u16) -> String {
        format!("{}:{CLIENT_PORT}", self.host(id))
    }

    fn internal(&self, id: u16) -> SocketAddr {
        (self.host(id), INTERNAL_PORT).into()
    }

    /// Where a node reaches another, or itself.
    fn seen_from(&self, from: u16, to: u16) -> SocketAddr {
        match &self.network {
            Some(network) if from != to => network.address(from, to),
            _ => self.internal(to),
        }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        (1..=self.count).map(|id| self.address(id)).collect()
    }

    /// The settings of a node.
    pub(crate) fn set_up<'c>(&self, id: u16, command: &'c mut Command) -> &'c mut Command {
        let named = if id <= self.named { self.named } else { self.count };
        let nodes: Vec<String> =
            (1..=named).map(|other| format!("{other}@{}", self.seen_from(id, other))).collect();
        command.env("PYRALOG_NODE_ID", id.to_string());
        // One that is alone names nobody.
        if named > 1 {
            command.env("PYRALOG_CLUSTER_NODES", nodes.join(","));
            command.env("PYRALOG__NETWORK__INTERNAL_ADDRESS", self.internal(id).to_string());
        }
        command.env("PYRALOG__RUNTIME__SHARDS", self.shards.get(&id).unwrap_or(&1).to_string());
        command.envs(self.settings.iter().copied());
        command.envs(self.racks.get(&id).map(|rack| ("PYRALOG__NODE__RACK", *rack)));
        let level = self.levels.get(&id).map(u16::to_string);
        command.envs(level.map(|level| ("PYRALOG__NODE__FEATURE_LEVEL_MAX", level)))
    }

    pub(crate) fn start(&mut self, id: u16) {
        let data = self.data(id);
        let node = Node::start_with(&data, &self.address(id), |command| {
            self.set_up(id, command);
            if let Some(wires) = &self.wires {
                wires.move_to(id, command);
            }
            command
        });
        self.nodes.insert(id, node);
    }

    /// The first node, alone until it is restarted with others.
    pub(crate) fn alone() -> Self {
        let mut cluster = Self::new(1);
        cluster.start(1);
        cluster
    }

    /// The only node dies and comes back with others.
    pub(crate) fn join(&mut self, count: u16) {
        self.kill(1);
        (self.count, self.named) = (count, count);
        (1..=count).for_each(|id| self.start(id));
        self.await_formed();
    }

    /// Starts a node and kills it so long after that.
    pub(crate) fn start_for(&self, id: u16, time: Duration) {
        let node = Node::begin_with(&self.data(id), &self.address(id), |command| self.set_up(id, command));
        std::thread::sleep(time);
        node.kill();
    }

    /// Names one node more in the settings of all, restarts those that are there one after the other, and starts it.
    pub(crate) fn add_node(&mut self) -> u16 {
        let (before, added) = (self.count, self.count + 1);
        (self.count, self.named) = (added, added);
        for id in 1..=before {
            self.nodes.remove(&id).unwrap().stop();
            self.start(id);
        }
        self.start(added);
        self.await_formed();
        added
    }

    /// Nodes that are started from now on name all that there are.
    pub(crate) fn name_all(&mut self) {
        self.named = self.count;
    }

    /// Has one node more let in by a command, and starts it: nobody else is told of it, or restarted.
    pub(crate) fn add_node_by_command(&mut self) -> (u16, String) {
        let added = self.count + 1;
        let told = self.admin_ok(&["cluster", "add-node", &format!("{added}@{}", self.internal(added))]);
        self.count = added;
        self.start(added);
        self.await_formed();
        (added, told)
    }

    pub(crate) fn kill(&mut self, id: u16) {
        self.nodes.remove(&id).unwrap().kill();
    }

    /// A cluster whose nodes support this feature level and no higher one.
    pub(crate) fn at_level(count: u16, level: u16) -> Self {
        let levels = (1..=count).map(|id| (id, level)).collect();
        Self { levels, ..Self::new(count) }.form()
    }

    /// Where a node keeps what it has.
    pub(crate) fn data(&self, id: u16) -> PathBuf {
        self.folder.path().join(format!("node-{id}"))
    }

    pub(crate) fn client(&self) -> Client {
        Self::client_at(&self.addresses())
    }

    /// A client that has to learn all other addresses.
    pub(crate) fn client_at(addresses: &[String]) -> Client {
        let retry_for = PATIENCE;
        let request_timeout = Duration::from_secs(5);
        let config = ClientConfig { retry_for, request_timeout, ..ClientConfig::default() };
        Client::new(addresses, config)
    }

    /// What one node answers to one request, asked once and of nobody else.
    pub(crate) fn ask(&self, id: u16, shard: u16, request: &Request<'_>) -> Result<Response, ErrorCode> {
        let mut connection = Connection::connect(&self.address(id), Some(shard), PATIENCE)
            .map_err(|_| ErrorCode::ConnectionLost)?;
        match connection.call(request) {
            Ok(received) => Ok(received.response),
            Err(ClientError::Server { code, .. }) => Err(code),
            Err(_) => Err(ErrorCode::ConnectionLost),
        }
    }

    /// Every node knows all and who leads the metadata.
    pub(crate) fn await_formed(&self) {
        for address in self.addresses() {
            let mut client = Client::new(&[address], ClientConfig::default());
            eventually(|| {
                let (node, _) = client.metadata().unwrap();
                node.knows_all(self.count.into()).then_some(())
            });
        }
    }

    pub(crate) fn admin(&self, arguments: &[&str]) -> Output {
        admin().arg("--cluster").arg(self.addresses().join(",")).args(arguments).output().unwrap()
    }

    pub(crate) fn admin_ok(&self, arguments: &[&str]) -> String {
        let output = self.admin(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.admin_ok(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    /// The node that leads a partition.
    pub(crate) fn leader(&self, topic: &str, partition: usize) -> u16 {
        self.leader_but(topic, partition, 0)
    }

    /// The node that leads a partition, as another one than `but` says, and is not that one.
    pub(crate) fn leader_but(&self, topic: &str, partition: usize, but: u16) -> u16 {
        let mut others = (1..=self.count).filter(|id| *id != but).cycle();
        eventually(|| {
            // A new one each time, which asks no other node. This one may not know the topic yet.
            let mut client = Self::client_at(&[self.address(others.next()?)]);
            let leader = client.topic(topic).ok()?.partitions[partition].leader as u16;
            (leader != 0 && leader != but).then_some(leader)
        })
    }

    /// Everything in a partition, in order.
    pub(crate) fn read(&self, topic: &str, partition: u32) -> Vec<Vec<u8>> {
        self.records(topic, partition).into_values().collect()
    }

    /// Everything in a partition, by offset.
    pub(crate) fn records(&self, topic: &str, partition: u32) -> BTreeMap<i64, Vec<u8>> {
        let config = ConsumerConfig::default();
        let mut consumer = Consumer::new(self.client(), topic, partition, StartAt::Earliest, config).unwrap();
        let mut records = BTreeMap::new();
        loop {
            let polled = consumer
                .poll(Duration::ZERO, |record| -> Result<(), ClientError> {
                    let before = records.insert(record.offset, record.value.unwrap().to_vec());
                    assert!(before.is_none(), "offset {} was read twice", record.offset);
                    Ok(())
                })
                .unwrap();
            if consumer.position() >= polled.high_watermark {
                return records;
            }
        }
    }
}

pub(crate) fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "it does not come about");
        std::thread::yield_now();
    }
}

pub(crate) fn producer(client: Client, topic: &str) -> IdempotentProducer {
    let config =
        ProducerConfig { batch_size: 4 << 10, delivery_timeout: PATIENCE, ..ProducerConfig::default() };
    IdempotentProducer::new(client, topic, config).unwrap()
}

/// Reads a partition as it grows.
pub(crate) struct Reader {
    wanted: Arc<AtomicU64>,
    read: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Reader {
    pub(crate) fn begin(client: Client, topic: &'static str, partition: u32) -> Self {
        let (wanted, read) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (wanted, read) = (Arc::clone(&wanted), Arc::clone(&read));
            move || follow(client, topic, partition, &wanted, &read)
        });
        Self { wanted, read, thread }
    }

    /// Records so far.
    pub(crate) fn records(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The values of all records, as soon as it has read so many.
    pub(crate) fn end(self, records: u64) -> Vec<Vec<u8>> {
        self.wanted.store(records, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn follow(client: Client, topic: &str, partition: u32, wanted: &AtomicU64, read: &AtomicU64) -> Vec<Vec<u8>> {
    let config = ConsumerConfig::default();
    let mut consumer = Consumer::new(client, topic, partition, StartAt::Earliest, config).unwrap();
    let mut values = Vec::new();
    while (values.len() as u64) < wanted.load(Ordering::Relaxed) {
        consumer
            .poll(Duration::from_millis(100), |record| -> Result<(), ClientError> {
                values.push(record.value.unwrap().to_vec());
                Ok(())
            })
            .unwrap();
        read.store(values.len() as u64, Ordering::Relaxed);
    }
    values
}

pub(crate) fn value(partition: u32, number: u64) -> Vec<u8> {
    format!("partition {partition} record {number:08}").into_bytes()
}

/// A text without its numbers, sizes and times, line by line.
fn shape(text: &str) -> Vec<String> {
    let is_time = |word: &str| word.starts_with(|c: char| c.is_ascii_digit()) && word.ends_with('Z');
    let word = |word: &str| match word {
        "B" | "KiB" | "MiB" | "GiB" => "SIZE".to_owned(),
        number
            if is_time(number)
                || number.contains(|c: char| c.is_ascii_digit()) && !number.contains(char::is_alphabetic) =>
        {
            "N".to_owned()
        }
        other => other.to_owned(),
    };
    text.lines().map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")).collect()
}

/// What a program prints is what the operator's page shows, but for the numbers.
pub(crate) fn is_on(name: &str, page: &str, printed: &str) {
    let page = shape(page);
    for line in shape(printed) {
        assert!(page.contains(&line), "{name} lacks {line:?}");
    }
}
