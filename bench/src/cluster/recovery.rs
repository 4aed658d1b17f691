//! What bringing a node up to date that has lost its disk costs those who write meanwhile, and how fast it goes when nobody
//! writes.
//!
//! Three nodes, a partition with data, producers at a rate. Each round measures them with all nodes, with one of two followers
//! gone, and while that one, its disk empty, gets everything again: with the default of `replication.recovery_rate` and without a limit.
//! At the end nobody writes, and what comes is compared with what the disk takes in the same minutes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::idle::cpu_times;
use super::{Cluster, NODES};
use crate::device::DiskFacts;
use crate::host::HostFacts;
use crate::latency::{Latencies, Summary, median};
use crate::live::{Mode, Monitor};
use crate::load::{self, LoadShape};
use crate::produce::{self, BatchShape};
use crate::report::{Curve, DURABILITY, LoadFacts, Run};
use crate::{consume, disk, pairs, stages};

const TOPIC: &str = "bench-recovery";
/// What the disk's own bandwidth is measured with, bytes.
const DISK_BYTES: u64 = 1 << 30;
const LOOK: Duration = Duration::from_millis(20);
/// How long a recovery may take.
const PATIENCE: Duration = Duration::from_secs(600);
const CAME: &str = "pyralog_recovery_bytes_total";
/// The word for no limit.
const UNLIMITED: &str = "unlimited";

/// What to run.
#[derive(Clone, Debug)]
pub struct RecoveryConfig {
    /// The `pyralog` program.
    pub server: PathBuf,
    /// Folder on the disk to be used; a temporary one is made in it.
    pub dir: PathBuf,
    /// What the partition holds before the first round, bytes.
    pub bytes: u64,
    /// Rounds; each measures four times.
    pub rounds: usize,
    /// Recoveries that nobody writes beside.
    pub alone: usize,
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

/// Producers while a node recovers.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// What they saw.
    pub latency: Summary,
    /// What came to the node in the measured time, bytes per second.
    pub bytes_per_second: f64,
    /// It was not complete when the measuring ended: all of it was beside the recovery.
    pub lasted: bool,
}

/// One round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// All nodes run.
    pub all: Summary,
    /// A follower is gone.
    pub down: Summary,
    /// It recovers with the default rate.
    pub throttled: Beside,
    /// And without a limit.
    pub unlimited: Beside,
}

/// A recovery that nobody writes beside.
#[derive(Clone, Debug)]
pub struct Alone {
    /// What came, bytes.
    pub bytes: f64,
    /// From the first of it to the last.
    pub seconds: f64,
    /// CPU time of the nodes meanwhile, in the order of their ids, and for how long their threads would have run and had no CPU,
    /// seconds. The kernel's own threads, which write and flush, are not in it.
    pub cpu_seconds: Vec<(f64, f64)>,
    /// What the disk takes by itself, bytes per second, measured right after.
    pub disk_bytes_per_second: f64,
}

impl Alone {
    fn bytes_per_second(&self) -> f64 {
        self.bytes / self.seconds.max(1e-9)
    }

    fn part_of_disk(&self) -> f64 {
        self.bytes_per_second() / self.disk_bytes_per_second
    }
}

/// What came out.
pub struct RecoveryReport {
    /// In the order in which they ran.
    pub rounds: Vec<Round>,
    /// Likewise.
    pub alone: Vec<Alone>,
    /// Of all rounds, in the order of a round.
    latencies: [Latencies; 4],
    load: LoadFacts,
    disk: DiskFacts,
    node_version: String,
}

/// The cluster, who leads the partition, and who loses its disk.
struct Bench<'a> {
    config: &'a RecoveryConfig,
    cluster: Cluster,
    leader: u32,
    lost: u32,
}

/// Runs it.
pub fn run(config: &RecoveryConfig) -> anyhow::Result<RecoveryReport> {
    pairs::ensure_program(&config.server)?;
    std::fs::create_dir_all(&config.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-recovery-").tempdir_in(&config.dir)?;
    let cluster = Cluster::start(&config.server, folder.path(), &config.cpus)?;
    cluster.create_topic(TOPIC, 1)?;
    let leader = cluster.client().topic_afresh(TOPIC)?.partitions.first().map_or(0, |at| at.leader);
    let mut bench = Bench { config, cluster, leader, lost: leader % NODES + 1 };
    let node_version = bench.fill()?;
    let mut latencies = [Latencies::new()?, Latencies::new()?, Latencies::new()?, Latencies::new()?];
    let mut rounds = Vec::new();
    let mut failed = 0;
    while rounds.len() < config.rounds {
        match bench.round() {
            Ok((round, of_round)) => {
                for (all, of) in latencies.iter_mut().zip(&of_round) {
                    all.merge(of)?;
                }
                rounds.push(round);
                eprintln!("round {} of {}: {}", rounds.len(), config.rounds, round.to_line());
            }
            // A machine that does nothing for longer than an election takes makes another node lead.
            Err(error) => {
                eprintln!("a round failed and is measured again: {error:#}");
                failed += 1;
                anyhow::ensure!(failed <= config.rounds, "{failed} rounds failed");
                bench.come_home()?;
            }
        }
    }
    let mut alone = Vec::new();
    for number in 1..=config.alone {
        let one = bench.alone()?;
        eprintln!("alone, {number} of {}: {}", config.alone, one.to_line());
        alone.push(one);
    }
    bench.cluster.stop()?;
    Ok(RecoveryReport {
        rounds,
        alone,
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

impl Bench<'_> {
    fn fill(&self) -> anyhow::Result<String> {
        let address = self.cluster.address(self.leader)?;
        for partition in consume::partitions(address, TOPIC)? {
            eprintln!("filling a partition with {} MiB", self.config.bytes >> 20);
            consume::history::fill(&partition, self.config.bytes)?;
        }
        self.cluster.await_in_sync(TOPIC)?;
        Ok(crate::session::Session::connect(address, None)?.server_version().to_owned())
    }

    /// After a round that failed: everybody is there, and leads what it led.
    fn come_home(&mut self) -> anyhow::Result<()> {
        if self.cluster.node(self.lost).is_err() {
            self.cluster.restart(self.lost)?;
        }
        self.await_recovered(self.cluster.address(self.lost)?)?;
        self.cluster.await_home(TOPIC)
    }

    fn round(&mut self) -> anyhow::Result<(Round, [Latencies; 4])> {
        let mut latencies = [Latencies::new()?, Latencies::new()?, Latencies::new()?, Latencies::new()?];
        let [of_all, of_down, of_throttled, of_unlimited] = &mut latencies;
        let all = self.measure("all", of_all)?;
        self.wipe()?;
        let down = self.measure("one-down", of_down)?;
        let throttled = self.beside("throttled", None, of_throttled)?;
        self.wipe()?;
        let unlimited = self.beside(UNLIMITED, Some(UNLIMITED), of_unlimited)?;
        Ok((Round { all, down, throttled, unlimited }, latencies))
    }

    fn measure(&self, name: &'static str, latencies: &mut Latencies) -> anyhow::Result<Summary> {
        let address = self.cluster.address(self.leader)?;
        let config = self.config;
        let connections = produce::connect_node(address, TOPIC, config.connections, config.batch)?;
        let monitor = Monitor::new(config.live, config.shape.warmup);
        let board = monitor.board(name);
        let result = monitor
            .during(|| load::run_watched(connections, 1, None, config.shape, board.as_deref()))
            .context("load on the leader")?;
        latencies.merge(&result.latencies)?;
        Ok(pairs::measured(result)?.latency)
    }

    /// Kills the node and takes its disk away.
    fn wipe(&mut self) -> anyhow::Result<()> {
        self.cluster.take(self.lost)?.kill()?;
        self.cluster.wipe(self.lost)
    }

    /// Starts it with this rate and waits until something comes.
    fn recover(&mut self, rate: Option<&str>) -> anyhow::Result<SocketAddr> {
        self.cluster.set_recovery_rate(self.lost, rate)?;
        self.cluster.restart(self.lost)?;
        let node = self.cluster.address(self.lost)?;
        self.await_page(node, "nothing came", |page| stages::sum_of(page, CAME) > 0.0)?;
        Ok(node)
    }

    fn beside(
        &mut self,
        name: &'static str,
        rate: Option<&str>,
        latencies: &mut Latencies,
    ) -> anyhow::Result<Beside> {
        let node = self.recover(rate)?;
        let (before, began) = (stages::sum_of(&stages::page(node)?, CAME), Instant::now());
        let latency = self.measure(name, latencies)?;
        let page = stages::page(node)?;
        let bytes_per_second = (stages::sum_of(&page, CAME) - before) / began.elapsed().as_secs_f64();
        let lasted = !has_ended(&page);
        self.await_recovered(node)?;
        Ok(Beside { latency, bytes_per_second, lasted })
    }

    fn await_recovered(&self, node: SocketAddr) -> anyhow::Result<()> {
        self.await_page(node, "it has not caught up", has_ended)?;
        self.cluster.await_in_sync(TOPIC)
    }

    fn await_page(
        &self,
        node: SocketAddr,
        what_not: &str,
        is_right: impl Fn(&str) -> bool,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while !is_right(&stages::page(node)?) {
            anyhow::ensure!(Instant::now() < end, "{what_not} within {PATIENCE:?}");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn alone(&mut self) -> anyhow::Result<Alone> {
        self.wipe()?;
        let node = self.recover(Some(UNLIMITED))?;
        let (first, began, cpu) = (stages::sum_of(&stages::page(node)?, CAME), Instant::now(), self.cpu()?);
        self.await_page(node, "it has not caught up", has_ended)?;
        let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), self.cpu()?);
        let bytes = stages::sum_of(&stages::page(node)?, CAME) - first;
        self.cluster.await_in_sync(TOPIC)?;
        let disk_bytes_per_second = disk::write_bandwidth(&self.config.dir, DISK_BYTES)?;
        let since =
            |((spent, waited), before): (&(f64, f64), &(f64, f64))| (spent - before.0, waited - before.1);
        let cpu_seconds = cpu_after.iter().zip(&cpu).map(since).collect();
        Ok(Alone { bytes, seconds, cpu_seconds, disk_bytes_per_second })
    }

    fn cpu(&self) -> anyhow::Result<Vec<(f64, f64)>> {
        let times = self.cluster.pids().into_iter().map(cpu_times);
        times.map(|times| times.map(|(spent, waited)| (spent.as_secs_f64(), waited.as_secs_f64()))).collect()
    }
}

/// Whatever has begun to catch up has come to its end.
fn has_ended(page: &str) -> bool {
    let sum = |name| stages::sum_of(page, name);
    let tried = sum("pyralog_catch_ups_total") - sum("pyralog_catch_ups_given_up_total");
    tried == sum("pyralog_catch_ups_done_total")
}

impl Round {
    fn to_line(self) -> String {
        let mib = |beside: &Beside| beside.bytes_per_second / f64::from(1 << 20);
        format!(
            "p99 {:.0} µs with all nodes, {:.0} with one gone, {:.0} beside {:.0} MiB/s, {:.0} beside {:.0} MiB/s",
            self.all.p99_us,
            self.down.p99_us,
            self.throttled.latency.p99_us,
            mib(&self.throttled),
            self.unlimited.latency.p99_us,
            mib(&self.unlimited),
        )
    }
}

impl Alone {
    fn to_line(&self) -> String {
        let part = |seconds: f64| 100.0 * seconds / self.seconds;
        let cpu = self
            .cpu_seconds
            .iter()
            .map(|(spent, waited)| format!("{:.0} + {:.0}", part(*spent), part(*waited)));
        let cpu: Vec<String> = cpu.collect();
        format!(
            "{:.0} MB/s, {:.2} of the disk's {:.0} MB/s; {:.0} MB in {:.2} s; CPU time of the nodes and what they waited for one: {} % of a core",
            self.bytes_per_second() / 1e6,
            self.part_of_disk(),
            self.disk_bytes_per_second / 1e6,
            self.bytes / 1e6,
            self.seconds,
            cpu.join(", ")
        )
    }
}

impl RecoveryReport {
    fn ratio(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(&self.rounds.iter().map(of).collect::<Vec<_>>()).unwrap_or_default()
    }

    fn ratios(&self) -> Vec<(&'static str, [f64; 3])> {
        let quantiles: [fn(&Summary) -> f64; 3] = [|s| s.p50_us, |s| s.p99_us, |s| s.p999_us];
        let of = |upper: fn(&Round) -> Summary, lower: fn(&Round) -> Summary| {
            quantiles.map(|of| self.ratio(|round| of(&upper(round)) / of(&lower(round))))
        };
        vec![
            ("one gone / all", of(|round| round.down, |round| round.all)),
            ("throttled / all", of(|round| round.throttled.latency, |round| round.all)),
            ("throttled / one gone", of(|round| round.throttled.latency, |round| round.down)),
            ("unlimited / all", of(|round| round.unlimited.latency, |round| round.all)),
            ("unlimited / one gone", of(|round| round.unlimited.latency, |round| round.down)),
        ]
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut text = format!("round  recovery    MiB/s  {}\n", Summary::HEADS);
        for (number, round) in (1..).zip(&self.rounds) {
            for (name, latency) in [("all nodes", round.all), ("one gone ", round.down)] {
                text += &format!("{number:5}  {name}       -  {latency}\n");
            }
            for (name, beside) in [("throttled", round.throttled), ("unlimited", round.unlimited)] {
                let ended = if beside.lasted { "" } else { "  (was over before the end)" };
                let mib = beside.bytes_per_second / f64::from(1 << 20);
                text += &format!("{number:5}  {name}  {mib:6.1}  {}{ended}\n", beside.latency);
            }
        }
        text += &format!("\nmedians of {} rounds:\n", self.rounds.len());
        for (name, [p50, p99, p999]) in self.ratios() {
            text += &format!("{name:21} p50 {p50:.2}, p99 {p99:.2}, p999 {p999:.2}\n");
        }
        for one in &self.alone {
            text += &format!("alone: {}\n", one.to_line());
        }
        text
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let beside = |of: &Beside| {
            json!({
                "latency": of.latency.to_json(), "bytes_per_second": of.bytes_per_second, "lasted": of.lasted,
            })
        };
        let ratios: Map<String, Value> = self
            .ratios()
            .into_iter()
            .map(|(name, [p50, p99, p999])| {
                (name.to_owned(), json!({ "p50": p50, "p99": p99, "p999": p999 }))
            })
            .collect();
        json!({
            "rounds": self.rounds.iter().map(|round| json!({
                "all": round.all.to_json(), "one_gone": round.down.to_json(),
                "throttled": beside(&round.throttled), "unlimited": beside(&round.unlimited),
            })).collect::<Vec<_>>(),
            "median_ratios": ratios,
            "alone": self.alone.iter().map(|one| json!({
                "bytes": one.bytes, "seconds": one.seconds, "bytes_per_second": one.bytes_per_second(),
                "disk_bytes_per_second": one.disk_bytes_per_second, "part_of_disk": one.part_of_disk(),
                "cpu_seconds": one.cpu_seconds,
            })).collect::<Vec<_>>(),
        })
    }

    /// For files: a curve for each part of the rounds.
    pub fn into_run(self) -> Run {
        let mut more = Map::new();
        more.insert("recovery_report".into(), self.to_json());
        let seconds = self.load.shape.measured.as_secs_f64() * self.rounds.len().max(1) as f64;
        let names = ["all", "one-gone", "throttled", "unlimited"];
        let curves = names.into_iter().zip(self.latencies).map(|(name, latencies)| {
            let per_second = latencies.count() as f64 / seconds;
            Curve { name: name.to_owned(), latencies, per_second }
        });
        Run {
            command: "recovery",
            host: HostFacts::collect(),
            disk: Some(self.disk),
            node_version: Some(self.node_version),
            durability: DURABILITY,
            load_line: format!("three nodes, {}", self.load),
            load: self.load.to_json(),
            curves: curves.collect(),
            more,
        }
    }
}
