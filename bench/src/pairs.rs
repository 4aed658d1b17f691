//! A node, or three, beside the floor, in turns: the only comparison that this kind of machine allows, as absolute figures
//! drift by a fifth and more within minutes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pyralog_tuning::cpus::of_node;
use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, NODES};
use crate::device::DiskFacts;
use crate::host::{self, HostFacts};
use crate::latency::{Latencies, Summary, median};
use crate::live::{Mode, Monitor};
use crate::load::{self, LoadConnection, LoadResult, LoadShape};
use crate::process::{NodeSetup, OwnedProcess, start_floor_server};
use crate::produce::{self, BatchShape};
use crate::report::{Curve, DURABILITY, LoadFacts, Run};
use crate::session::Session;
use crate::stages::{self, Snapshot};

const TOPIC: &str = "bench-pairs";

/// What to run.
#[derive(Clone, Debug)]
pub struct PairsConfig {
    /// The `pyralog` program.
    pub server: PathBuf,
    /// Three nodes beside three floor servers, with a write quorum of two.
    pub cluster: bool,
    /// Folder on the disk to be measured; a temporary one is made in it.
    pub dir: PathBuf,
    /// How many pairs.
    pub pairs: usize,
    /// Shape of every run.
    pub shape: LoadShape,
    /// Connections.
    pub connections: usize,
    /// What each request carries.
    pub batch: BatchShape,
    /// CPU of node and floor; `None` lets the tool choose.
    pub server_cpu: Option<usize>,
    /// CPU of the load.
    pub client_cpu: Option<usize>,
    /// Appends that the floor server keeps in flight.
    pub floor_writes_in_flight: usize,
    /// Whether and how each run tells how it goes.
    pub live: Mode,
}

/// One run of one side.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Percentiles.
    pub latency: Summary,
    /// Acknowledgements a second.
    pub acks_per_second: f64,
}

impl Side {
    /// For programs.
    pub(crate) fn to_json(self) -> Value {
        json!({ "latency": self.latency.to_json(), "acks_per_second": self.acks_per_second })
    }
}

/// Both sides of one pair.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The bare program.
    pub floor: Side,
    /// The node.
    pub node: Side,
}

/// Node divided by floor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// Of the medians.
    pub p50: f64,
    /// Of the 99th percentiles.
    pub p99: f64,
    /// Of the 99.9th percentiles.
    pub p999: f64,
    /// Of the acknowledgements a second.
    pub acks: f64,
}

impl Pair {
    /// Node divided by floor.
    pub fn ratios(&self) -> Ratios {
        Ratios {
            p50: self.node.latency.p50_us / self.floor.latency.p50_us,
            p99: self.node.latency.p99_us / self.floor.latency.p99_us,
            p999: self.node.latency.p999_us / self.floor.latency.p999_us,
            acks: self.node.acks_per_second / self.floor.acks_per_second,
        }
    }
}

/// All pairs, with what they depend on.
pub struct PairsReport {
    /// Where and when.
    pub host: HostFacts,
    /// One line about the load.
    pub load: String,
    /// CPU of the servers and of the load.
    pub cpus: (Option<usize>, Option<usize>),
    /// In the order in which they ran.
    pub pairs: Vec<Pair>,
    /// All of them together.
    pub all: All,
    load_facts: LoadFacts,
    disk: DiskFacts,
    node_version: String,
}

/// Starts both servers, runs them in turns, stops them.
pub fn run(config: &PairsConfig) -> anyhow::Result<PairsReport> {
    anyhow::ensure!(config.pairs > 0, "0 pairs; give at least one");
    std::fs::create_dir_all(&config.dir)?;
    let temporary = tempfile::Builder::new().prefix("pyralog-pairs-").tempdir_in(&config.dir)?;
    let mut sides = match config.cluster {
        true => Sides::three(config, temporary.path())?,
        false => Sides::one(config, temporary.path())?,
    };
    let mut pairs = Vec::new();
    let mut all = All::new()?;
    for number in 0..config.pairs {
        sides.ensure_running()?;
        // Every other pair begins with the node, so that a drift of the machine favours neither.
        let pair = if number % 2 == 0 {
            let floor = run_floor(config, &sides, &mut all)?;
            Pair { floor, node: run_node(config, &sides, &mut all)? }
        } else {
            let node = run_node(config, &sides, &mut all)?;
            Pair { floor: run_floor(config, &sides, &mut all)?, node }
        };
        eprintln!("pair {} of {} done", number + 1, config.pairs);
        pairs.push(pair);
    }
    let cpus = sides.cpus;
    let node_version = Session::connect(sides.node_addr, None)?.server_version().to_owned();
    sides.stop()?;
    let shape = &config.shape;
    let load = format!(
        "{}, {} connection(s), {} outstanding, {} record(s) of {} bytes each, {}, {:?} + {:?} warm-up",
        if config.cluster { "durable on two of three" } else { "one node" },
        config.connections,
        shape.outstanding,
        config.batch.records,
        config.batch.record_bytes,
        shape.rate.map_or("closed loop".to_owned(), |rate| format!("{rate} requests/s")),
        shape.measured,
        shape.warmup
    );
    Ok(PairsReport {
        host: HostFacts::collect(),
        load,
        cpus,
        pairs,
        all,
        load_facts: config.load_facts(),
        disk: DiskFacts::of(&config.dir)?,
        node_version,
    })
}

fn run_floor(config: &PairsConfig, sides: &Sides, all: &mut All) -> anyhow::Result<Side> {
    let connections = produce::connect_floor(sides.floor_addr, config.connections, config.batch)?;
    let result = run_load(config, sides, "floor", connections).context("load on the floor server")?;
    all.floor.merge(&result.latencies)?;
    measured(result)
}

fn run_node(config: &PairsConfig, sides: &Sides, all: &mut All) -> anyhow::Result<Side> {
    let connections = produce::connect_node(sides.node_addr, TOPIC, config.connections, config.batch)?;
    let (result, part) = stages::during(&sides.node_addrs()?, config.shape.warmup, || {
        run_load(config, sides, "node", connections).context("load on the node")
    })?;
    all.spent.merge(&part);
    all.node.merge(&result.latencies)?;
    measured(result)
}

fn run_load(
    config: &PairsConfig,
    sides: &Sides,
    name: &'static str,
    connections: Vec<LoadConnection>,
) -> anyhow::Result<LoadResult> {
    let monitor = Monitor::new(config.live, config.shape.warmup);
    let board = monitor.board(name);
    monitor.during(|| load::run_watched(connections, 1, sides.cpus.1, config.shape, board.as_deref()))
}

/// All pairs together.
pub struct All {
    /// The floor.
    pub floor: Latencies,
    /// The node.
    pub node: Latencies,
    /// What the nodes say of their measured times.
    pub spent: Snapshot,
}

impl All {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { floor: Latencies::new()?, node: Latencies::new()?, spent: Snapshot::default() })
    }
}

impl PairsConfig {
    fn load_facts(&self) -> LoadFacts {
        LoadFacts { connections: self.connections, threads: 1, shape: self.shape, batch: self.batch }
    }
}

/// What is loaded in turns.
struct Sides {
    floors: Vec<OwnedProcess>,
    floor_addr: SocketAddr,
    nodes: Nodes,
    node_addr: SocketAddr,
    /// CPU of the servers and of the load; with three nodes the servers have one each, in turns, and the load any.
    cpus: (Option<usize>, Option<usize>),
}

enum Nodes {
    One(OwnedProcess),
    Three(Cluster),
}

impl Sides {
    fn one(config: &PairsConfig, dir: &Path) -> anyhow::Result<Self> {
        let cpus = (config.server_cpu.or(host::server_cpu(&config.dir)), config.client_cpu);
        let (floor, floor_addr) = start_floor(config, dir, 1, cpus.0, &[])?;
        let setup = NodeSetup::new(&config.server, dir, cpus.0.or(Some(0)))?;
        let node = setup.start()?;
        Session::connect(setup.addr, Some(0))?.create_topic(TOPIC, 1)?;
        Ok(Self { floors: vec![floor], floor_addr, nodes: Nodes::One(node), node_addr: setup.addr, cpus })
    }

    fn three(config: &PairsConfig, dir: &Path) -> anyhow::Result<Self> {
        let cpus = host::node_cpus(&config.dir);
        let cluster = Cluster::start(&config.server, dir, &cpus)?;
        cluster.create_topic(TOPIC, 1)?;
        let (mut floors, mut followers) = (Vec::new(), Vec::new());
        for id in 2..=NODES {
            let (floor, addr) = start_floor(config, dir, id, of_node(id, &cpus), &[])?;
            floors.push(floor);
            followers.push(addr);
        }
        let (floor, floor_addr) = start_floor(config, dir, 1, of_node(1, &cpus), &followers)?;
        floors.push(floor);
        let node_addr = cluster.address(1)?;
        Ok(Self { floors, floor_addr, nodes: Nodes::Three(cluster), node_addr, cpus: (None, None) })
    }

    /// Where the nodes tell what they do.
    fn node_addrs(&self) -> anyhow::Result<Vec<SocketAddr>> {
        match &self.nodes {
            Nodes::One(_) => Ok(vec![self.node_addr]),
            Nodes::Three(cluster) => (1..=NODES).map(|id| cluster.address(id)).collect(),
        }
    }

    fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.floors.iter_mut().try_for_each(OwnedProcess::ensure_running)?;
        match &mut self.nodes {
            Nodes::One(node) => node.ensure_running(),
            Nodes::Three(cluster) => (1..=NODES).try_for_each(|id| cluster.node(id)?.ensure_running()),
        }
    }

    fn stop(mut self) -> anyhow::Result<()> {
        match self.nodes {
            Nodes::One(mut node) => node.stop()?,
            Nodes::Three(cluster) => cluster.stop()?,
        }
        self.floors.iter_mut().rev().try_for_each(OwnedProcess::kill)
    }
}

fn start_floor(
    config: &PairsConfig,
    dir: &Path,
    id: u32,
    cpu: Option<usize>,
    followers: &[SocketAddr],
) -> anyhow::Result<(OwnedProcess, SocketAddr)> {
    let dir = dir.join(format!("floor-{id}"));
    std::fs::create_dir(&dir)?;
    start_floor_server(&dir, cpu, config.floor_writes_in_flight, false, followers)
}

/// What a run measured, which must be something.
pub(crate) fn measured(result: LoadResult) -> anyhow::Result<Side> {
    anyhow::ensure!(result.latencies.count() > 0, "nothing was measured; give more seconds");
    Ok(Side { latency: result.latencies.summary(), acks_per_second: result.acks_per_second() })
}

impl PairsReport {
    /// The median of each ratio.
    pub fn median_ratios(&self) -> Option<Ratios> {
        let of = |pick: fn(Ratios) -> f64| {
            median(&self.pairs.iter().map(|pair| pick(pair.ratios())).collect::<Vec<_>>())
        };
        Some(Ratios {
            p50: of(|r| r.p50)?,
            p99: of(|r| r.p99)?,
            p999: of(|r| r.p999)?,
            acks: of(|r| r.acks)?,
        })
    }

    /// For a terminal.
    pub fn to_table(&self) -> String {
        let cpu = |cpu: Option<usize>| cpu.map_or("any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
        let mut text = format!(
            "{}\n{}; servers on {}, load on {}\n\npair  side  {}      acks/s\n",
            self.host,
            self.load,
            cpu(self.cpus.0),
            cpu(self.cpus.1),
            Summary::HEADS
        );
        for (number, pair) in self.pairs.iter().enumerate() {
            for (name, side) in [("floor", &pair.floor), ("node", &pair.node)] {
                text +=
                    &format!("{:4}  {name:5} {}{:12.0}\n", number + 1, side.latency, side.acks_per_second);
            }
            text += &format!("{:4}  {}\n", number + 1, pair.ratios());
        }
        text += &stages::to_table(&self.all.spent);
        if let Some(ratios) = self.median_ratios() {
            text += &format!("\nmedian of {} pairs, node / floor: {ratios}\n", self.pairs.len());
        }
        text
    }

    /// For a program.
    pub fn to_json(&self) -> Value {
        json!({
            "kernel": self.host.kernel, "cpu_model": self.host.cpu_model, "cpus": self.host.cpus,
            "date_utc": self.host.date_utc, "git_revision": self.host.git_revision, "load": self.load,
            "server_cpu": self.cpus.0, "client_cpu": self.cpus.1,
            "pairs": self.pairs.iter().map(|pair| json!({
                "floor": pair.floor.to_json(), "node": pair.node.to_json(), "ratios": pair.ratios().to_json(),
            })).collect::<Vec<_>>(),
            "median_ratios": self.median_ratios().map(Ratios::to_json), "stages": stages::to_json(&self.all.spent),
        })
    }
}

impl PairsReport {
    /// For files: all pairs of each side as one curve, and the median of the ratios.
    pub fn into_run(self) -> Run {
        let mut more = Map::new();
        more.insert("pairs_report".into(), self.to_json());
        more.insert("floor".into(), json!({ "ratios": self.median_ratios().map(Ratios::to_json) }));
        let seconds = self.load_facts.shape.measured.as_secs_f64() * self.pairs.len() as f64;
        let curve = |name: &str, latencies: Latencies| {
            let per_second = latencies.count() as f64 / seconds;
            Curve { name: name.to_owned(), latencies, per_second }
        };
        Run {
            command: "pairs",
            host: self.host,
            disk: Some(self.disk),
            node_version: Some(self.node_version),
            durability: DURABILITY,
            load_line: self.load,
            load: self.load_facts.to_json(),
            curves: vec![curve("node", self.all.node), curve("floor", self.all.floor)],
            more,
        }
    }
}

impl Ratios {
    fn to_json(self) -> Value {
        json!({ "p50": self.p50, "p99": self.p99, "p999": self.p999, "acks": self.acks })
    }
}

impl std::fmt::Display for Ratios {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.2}, p99 {:.2}, p999 {:.2}, acks/s {:.2}", self.p50, self.p99, self.p999, self.acks)
    }
}

/// Checks that the program is there before anything is started.
pub fn ensure_program(path: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        path.is_file(),
        "{}: no such program; build it first: cargo build --release --bin pyralog",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn side(us: f64, acks_per_second: f64) -> Side {
        let latency = Summary {
            count: 1,
            p50_us: us,
            p90_us: us,
            p99_us: us * 2.0,
            p999_us: us * 4.0,
            p9999_us: us,
            max_us: us,
        };
        Side { latency, acks_per_second }
    }

    #[test]
    fn the_median_is_of_the_ratios_not_of_the_figures() {
        let pair = |floor, node| Pair { floor: side(floor, 100.0), node: side(node, 50.0) };
        let report = PairsReport {
            host: HostFacts::collect(),
            load: String::new(),
            cpus: (None, Some(1)),
            all: All::new().unwrap(),
            load_facts: LoadFacts {
                connections: 1,
                threads: 1,
                shape: LoadShape {
                    outstanding: 1,
                    rate: None,
                    warmup: Duration::ZERO,
                    measured: Duration::from_secs(1),
                },
                batch: BatchShape { records: 1, record_bytes: 1 },
            },
            disk: DiskFacts::default(),
            node_version: String::new(),
            pairs: vec![pair(100.0, 120.0), pair(1000.0, 1300.0), pair(200.0, 220.0)],
        };
        let ratios = report.median_ratios().unwrap();
        assert!((ratios.p50 - 1.2).abs() < 1e-9 && (ratios.p999 - 1.2).abs() < 1e-9, "{ratios}");
        assert!((ratios.acks - 0.5).abs() < 1e-9);
        let table = report.to_table();
        assert!(table.contains("node / floor: p50 1.20, p99 1.20, p999 1.20, acks/s 0.50"), "{table}");
        assert_eq!(report.to_json()["pairs"].as_array().unwrap().len(), 3);
        let run = report.into_run();
        assert_eq!(run.curves.iter().map(|curve| curve.name.as_str()).collect::<Vec<_>>(), ["node", "floor"]);
        let json = run.to_json("x").unwrap();
        assert!((json["floor"]["ratios"]["p99"].as_f64().unwrap() - 1.2).abs() < 1e-9);
    }
}
