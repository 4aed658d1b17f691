//! A node beside the floor, in turns: the only comparison that this kind of machine allows, as absolute figures
//! drift by a fifth and more within minutes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use crate::host::{self, HostFacts};
use crate::latency::{Summary, median};
use crate::load::{self, LoadShape};
use crate::process::{NodeSetup, start_floor_server};
use crate::produce::{self, BatchShape};
use crate::session::Session;

const TOPIC: &str = "bench-pairs";

/// What to run.
#[derive(Clone, Debug)]
pub struct PairsConfig {
    /// The `pyralog` program.
    pub server: PathBuf,
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
}

/// Starts both servers, runs them in turns, stops them.
pub fn run(config: &PairsConfig) -> anyhow::Result<PairsReport> {
    anyhow::ensure!(config.pairs > 0, "0 pairs; give at least one");
    std::fs::create_dir_all(&config.dir)?;
    let temporary = tempfile::Builder::new().prefix("pyralog-pairs-").tempdir_in(&config.dir)?;
    let chosen = host::choose_cpus(&config.dir);
    let cpus = (config.server_cpu.or(chosen.0), config.client_cpu.or(chosen.1));
    let floor_dir = temporary.path().join("floor");
    std::fs::create_dir(&floor_dir)?;
    let (mut floor, floor_addr) = start_floor_server(&floor_dir, cpus.0, config.floor_writes_in_flight)?;
    let setup = NodeSetup::new(&config.server, temporary.path(), cpus.0.or(Some(0)))?;
    let mut node = setup.start()?;
    Session::connect(setup.addr, Some(0))?.create_topic(TOPIC, 1)?;
    let mut pairs = Vec::new();
    for number in 0..config.pairs {
        floor.ensure_running()?;
        node.ensure_running()?;
        // Every other pair begins with the node, so that a drift of the machine favours neither.
        let pair = if number % 2 == 0 {
            let floor = run_floor(config, floor_addr, cpus.1)?;
            Pair { floor, node: run_node(config, setup.addr, cpus.1)? }
        } else {
            let node = run_node(config, setup.addr, cpus.1)?;
            Pair { floor: run_floor(config, floor_addr, cpus.1)?, node }
        };
        eprintln!("pair {} of {} done", number + 1, config.pairs);
        pairs.push(pair);
    }
    node.stop()?;
    floor.kill()?;
    let shape = &config.shape;
    let load = format!(
        "{} connection(s), {} outstanding, {} record(s) of {} bytes each, {}, {:?} + {:?} warm-up",
        config.connections,
        shape.outstanding,
        config.batch.records,
        config.batch.record_bytes,
        shape.rate.map_or("closed loop".to_owned(), |rate| format!("{rate} requests/s")),
        shape.measured,
        shape.warmup
    );
    Ok(PairsReport { host: HostFacts::collect(), load, cpus, pairs })
}

fn run_floor(config: &PairsConfig, addr: SocketAddr, cpu: Option<usize>) -> anyhow::Result<Side> {
    let connections = produce::connect_floor(addr, config.connections, config.batch)?;
    measured(load::run(connections, 1, cpu, config.shape).context("load on the floor server")?)
}

fn run_node(config: &PairsConfig, addr: SocketAddr, cpu: Option<usize>) -> anyhow::Result<Side> {
    let connections = produce::connect_node(addr, TOPIC, config.connections, config.batch)?;
    measured(load::run(connections, 1, cpu, config.shape).context("load on the node")?)
}

/// What a run measured, which must be something.
pub(crate) fn measured(result: load::LoadResult) -> anyhow::Result<Side> {
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
            "median_ratios": self.median_ratios().map(Ratios::to_json),
        })
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
            pairs: vec![pair(100.0, 120.0), pair(1000.0, 1300.0), pair(200.0, 220.0)],
        };
        let ratios = report.median_ratios().unwrap();
        assert!((ratios.p50 - 1.2).abs() < 1e-9 && (ratios.p999 - 1.2).abs() < 1e-9, "{ratios}");
        assert!((ratios.acks - 0.5).abs() < 1e-9);
        let table = report.to_table();
        assert!(table.contains("node / floor: p50 1.20, p99 1.20, p999 1.20, acks/s 0.50"), "{table}");
        assert_eq!(report.to_json()["pairs"].as_array().unwrap().len(), 3);
    }
}
