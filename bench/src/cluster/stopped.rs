//! What a follower that stands still (SIGSTOP) does to the latency of a quorum, in turns with all of them running.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::{Cluster, NODES};
use crate::device::DiskFacts;
use crate::host::HostFacts;
use crate::latency::{Latencies, Summary, median};
use crate::live::{Mode, Monitor};
use crate::load::{self, LoadShape};
use crate::pairs;
use crate::produce::{self, BatchShape};
use crate::report::{Curve, DURABILITY, LoadFacts, Run};
use crate::session::Session;

const TOPIC: &str = "bench-stopped";

/// What to run.
#[derive(Clone, Debug)]
pub struct StoppedConfig {
    /// The `pyralog` program.
    pub server: PathBuf,
    /// Folder on the disk to be used; a temporary one is made in it.
    pub dir: PathBuf,
    /// Rounds; each measures once with all nodes and once with one stopped.
    pub rounds: usize,
    /// Shape of every run.
    pub shape: LoadShape,
    /// Connections.
    pub connections: usize,
    /// What each request carries.
    pub batch: BatchShape,
    /// CPUs of the nodes, in turns.
    pub cpus: Vec<usize>,
    /// Whether and how each run tells how it goes.
    pub live: Mode,
}

/// One round.
pub struct Round {
    /// All nodes run.
    pub all: Summary,
    /// One follower stands still.
    pub stopped: Summary,
}

/// What came out.
pub struct StoppedReport {
    /// In the order in which they ran.
    pub rounds: Vec<Round>,
    /// Of all rounds: with all nodes, and with one follower stopped.
    latencies: (Latencies, Latencies),
    load: LoadFacts,
    disk: DiskFacts,
    node_version: String,
}

/// Runs it.
pub fn run(config: &StoppedConfig) -> anyhow::Result<StoppedReport> {
    pairs::ensure_program(&config.server)?;
    anyhow::ensure!(config.rounds > 0, "0 rounds; give at least one");
    std::fs::create_dir_all(&config.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-stopped-").tempdir_in(&config.dir)?;
    let mut cluster = Cluster::start(&config.server, folder.path(), &config.cpus)?;
    cluster.create_topic(TOPIC, 1)?;
    let node_version = Session::connect(cluster.address(1)?, None)?.server_version().to_owned();
    let mut rounds = Vec::new();
    let mut latencies = (Latencies::new()?, Latencies::new()?);
    for number in 0..config.rounds {
        let leader = cluster.client().topic_afresh(TOPIC)?.partitions.first().map_or(0, |at| at.leader);
        // Each of the two followers in turns: one may share its core with the leader.
        let follower = (leader + number as u32 % (NODES - 1)) % NODES + 1;
        let all = measure(config, &cluster, leader, "all", &mut latencies.0)?;
        cluster.node(follower)?.signal(libc::SIGSTOP)?;
        let stopped = measure(config, &cluster, leader, "one-stopped", &mut latencies.1);
        cluster.node(follower)?.signal(libc::SIGCONT)?;
        let round = Round { all, stopped: stopped? };
        cluster.await_home(TOPIC)?;
        eprintln!("round {} of {}: node {follower} of leader {leader} stopped", number + 1, config.rounds);
        rounds.push(round);
    }
    cluster.stop()?;
    Ok(StoppedReport {
        rounds,
        latencies,
        load: LoadFacts {
            connections: config.connections,
            threads: 1,
            shape: config.shape,
            batch: config.batch,
        },
        disk: DiskFacts::of(&config.dir)?,
        node_version,
    })
}

fn measure(
    config: &StoppedConfig,
    cluster: &Cluster,
    leader: u32,
    name: &'static str,
    latencies: &mut Latencies,
) -> anyhow::Result<Summary> {
    let connections =
        produce::connect_node(cluster.address(leader)?, TOPIC, config.connections, config.batch)?;
    let monitor = Monitor::new(config.live, config.shape.warmup);
    let board = monitor.board(name);
    let result = monitor
        .during(|| load::run_watched(connections, 1, None, config.shape, board.as_deref()))
        .context("load on the leader")?;
    latencies.merge(&result.latencies)?;
    Ok(pairs::measured(result)?.latency)
}

impl StoppedReport {
    fn ratio(&self, of: fn(&Summary) -> f64) -> f64 {
        let ratios: Vec<f64> = self.rounds.iter().map(|round| of(&round.stopped) / of(&round.all)).collect();
        median(&ratios).unwrap_or_default()
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut text = format!("round  followers  {}\n", Summary::HEADS);
        for (number, round) in (1..).zip(&self.rounds) {
            text +=
                &format!("{number:5}  both       {}\n{number:5}  one        {}\n", round.all, round.stopped);
        }
        text + &format!(
            "\nmedian of {} rounds, one follower stopped / both running: p50 {:.2}, p99 {:.2}, p999 {:.2}\n",
            self.rounds.len(),
            self.ratio(|s| s.p50_us),
            self.ratio(|s| s.p99_us),
            self.ratio(|s| s.p999_us)
        )
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "rounds": self.rounds.iter().map(|round| json!({
                "all": round.all.to_json(), "stopped": round.stopped.to_json(),
            })).collect::<Vec<_>>(),
            "median_ratios": {
                "p50": self.ratio(|s| s.p50_us), "p99": self.ratio(|s| s.p99_us), "p999": self.ratio(|s| s.p999_us),
            },
        })
    }

    /// For files: all rounds with one follower stopped as one curve, and those with all nodes.
    pub fn into_run(self) -> Run {
        let mut more = Map::new();
        more.insert("stopped_follower_report".into(), self.to_json());
        let seconds = self.load.shape.measured.as_secs_f64() * self.rounds.len() as f64;
        let curve = |name: &str, latencies: Latencies| {
            let per_second = latencies.count() as f64 / seconds;
            Curve { name: name.to_owned(), latencies, per_second }
        };
        let (all, stopped) = self.latencies;
        Run {
            command: "stopped-follower",
            host: HostFacts::collect(),
            disk: Some(self.disk),
            node_version: Some(self.node_version),
            durability: DURABILITY,
            load_line: format!("three nodes, {}", self.load),
            load: self.load.to_json(),
            curves: vec![curve("one-stopped", stopped), curve("all", all)],
            more,
        }
    }
}
