//! Pyralog beside other programs that acknowledge what is on stable storage of a quorum of three, in turns.

pub mod postgres;

use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::host::HostFacts;
use crate::latency::{Summary, median};
use crate::load;
use crate::load::LoadShape;
use crate::pairs::{self, Side};
use crate::produce::{self, BatchShape};
use postgres::Postgres;

const TOPIC: &str = "bench-compare";

/// What to run.
#[derive(Clone, Debug)]
pub struct CompareConfig {
    /// The `pyralog` program.
    pub server: PathBuf,
    /// Folder on the disk to be used; a temporary one is made in it.
    pub dir: PathBuf,
    /// Where PostgreSQL's programs are; `None` = the newest version in its usual place.
    pub postgres: Option<PathBuf>,
    /// Rounds; each measures each side once.
    pub rounds: usize,
    /// Shape of every run; one request under way per connection.
    pub shape: LoadShape,
    /// Connections.
    pub connections: usize,
    /// Size of a record's value, bytes.
    pub record_bytes: usize,
    /// CPUs of Pyralog's nodes, in turns.
    pub cpus: Vec<usize>,
}

/// Both programs, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Three nodes of Pyralog.
    pub pyralog: Side,
    /// A primary and two standbys of PostgreSQL.
    pub postgres: Side,
}

/// What came out.
pub struct CompareReport {
    host: HostFacts,
    load: String,
    /// What PostgreSQL said of itself.
    peer: String,
    /// In the order in which they ran.
    pub rounds: Vec<Round>,
}

/// Runs it.
pub fn run(config: &CompareConfig) -> anyhow::Result<CompareReport> {
    pairs::ensure_program(&config.server)?;
    anyhow::ensure!(config.rounds > 0, "0 rounds; give at least one");
    anyhow::ensure!(config.shape.outstanding == 1, "a connection of PostgreSQL has one request under way");
    anyhow::ensure!(config.shape.rate.is_none(), "only in a closed loop");
    std::fs::create_dir_all(&config.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-compare-").tempdir_in(&config.dir)?;
    let postgres = Postgres::start(config.postgres.as_deref(), folder.path(), config.record_bytes)?;
    let cluster = Cluster::start(&config.server, folder.path(), &config.cpus)?;
    cluster.create_topic(TOPIC, 1)?;
    let mut rounds = Vec::new();
    for number in 0..config.rounds {
        // Every other round begins with the other side, so that a drift of the machine favours neither.
        let round = match number % 2 {
            0 => {
                let pyralog = run_pyralog(config, &cluster)?;
                Round { pyralog, postgres: postgres.run(config.connections, config.shape)? }
            }
            _ => {
                let postgres = postgres.run(config.connections, config.shape)?;
                Round { pyralog: run_pyralog(config, &cluster)?, postgres }
            }
        };
        eprintln!("round {} of {} done", number + 1, config.rounds);
        rounds.push(round);
    }
    let peer = postgres.describe()?;
    postgres.stop()?;
    cluster.stop()?;
    let load = format!(
        "{} connection(s), one outstanding each, records of {} bytes, closed loop, {:?} + {:?} warm-up",
        config.connections, config.record_bytes, config.shape.measured, config.shape.warmup
    );
    Ok(CompareReport { host: HostFacts::collect(), load, peer, rounds })
}

fn run_pyralog(config: &CompareConfig, cluster: &Cluster) -> anyhow::Result<Side> {
    let batch = BatchShape { records: 1, record_bytes: config.record_bytes };
    let connections = produce::connect_node(cluster.address(1)?, TOPIC, config.connections, batch)?;
    pairs::measured(load::run(connections, 1, None, config.shape).context("load on Pyralog")?)
}

impl CompareReport {
    fn ratio(&self, of: fn(&Side) -> f64) -> f64 {
        let ratios: Vec<f64> =
            self.rounds.iter().map(|round| of(&round.pyralog) / of(&round.postgres)).collect();
        median(&ratios).unwrap_or_default()
    }

    fn ratios(&self) -> [f64; 4] {
        [
            self.ratio(|side| side.latency.p50_us),
            self.ratio(|side| side.latency.p99_us),
            self.ratio(|side| side.latency.p999_us),
            self.ratio(|side| side.acks_per_second),
        ]
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut text = format!(
            "{}\n{}\n{}\n\nround  program   {}      acks/s\n",
            self.host,
            self.load,
            self.peer,
            Summary::HEADS
        );
        for (number, round) in (1..).zip(&self.rounds) {
            for (name, side) in [("pyralog", &round.pyralog), ("postgres", &round.postgres)] {
                text += &format!("{number:5}  {name:9} {}{:12.0}\n", side.latency, side.acks_per_second);
            }
        }
        let [p50, p99, p999, acks] = self.ratios();
        text + &format!(
            "\nmedian of {} rounds, Pyralog / PostgreSQL: p50 {p50:.2}, p99 {p99:.2}, p999 {p999:.2}, acks/s {acks:.2}\n",
            self.rounds.len()
        )
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let [p50, p99, p999, acks] = self.ratios();
        json!({
            "kernel": self.host.kernel, "cpu_model": self.host.cpu_model, "cpus": self.host.cpus,
            "date_utc": self.host.date_utc, "git_revision": self.host.git_revision,
            "load": self.load, "peer": self.peer,
            "rounds": self.rounds.iter().map(|round| json!({
                "pyralog": round.pyralog.to_json(), "postgres": round.postgres.to_json(),
            })).collect::<Vec<_>>(),
            "median_ratios": { "p50": p50, "p99": p99, "p999": p999, "acks": acks },
        })
    }
}
