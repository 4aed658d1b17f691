//! A life of three nodes that become five and three again under a constant load, while nodes are killed and a disk is lost:
//! latencies phase by phase, and whether everything that was acknowledged is there in the end.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::paced::{Ack, Load};
use super::{Cluster, LOOK, PATIENCE};
use crate::device::DiskFacts;
use crate::host::HostFacts;
use crate::latency::{Latencies, Summary};
use crate::pace::Clock;
use crate::process::OwnedProcess;
use crate::report::{Curve, DURABILITY, Run};
use crate::session::Session;
use crate::stamped::MonotonicClock;

const TOPIC: &str = "bench-life";
/// How long a killed node is gone, and the others are left alone after it has come back.
const GONE: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_secs(3);
/// A command that the death of a node has interrupted is given again, so often.
const ATTEMPTS: usize = 20;

/// What to run.
#[derive(Clone, Debug)]
pub struct LifeConfig {
    /// The `pyralog` program; `pyralog-admin` is beside it.
    pub server: PathBuf,
    /// Folder on the disk to be used; a temporary one is made in it.
    pub dir: PathBuf,
    /// CPUs of the nodes, in turns.
    pub cpus: Vec<usize>,
    /// How long all phases take together, at least.
    pub length: Duration,
    /// Records a second, of 256 bytes.
    pub rate: u32,
    /// Producers, each with at most one record on its way.
    pub producers: u32,
    /// Partitions, with three replicas each.
    pub partitions: u32,
}

/// What happens, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Three,
    ThreeWithKills,
    Growing,
    Five,
    FiveWithKills,
    Shrinking,
    ThreeAgain,
}

impl Phase {
    const ALL: [Self; 7] = [
        Self::Three,
        Self::ThreeWithKills,
        Self::Growing,
        Self::Five,
        Self::FiveWithKills,
        Self::Shrinking,
        Self::ThreeAgain,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Three => "three",
            Self::ThreeWithKills => "three-with-kills",
            Self::Growing => "growing",
            Self::Five => "five",
            Self::FiveWithKills => "five-with-kills",
            Self::Shrinking => "shrinking",
            Self::ThreeAgain => "three-again",
        }
    }

    /// Percent of the whole that it takes at least.
    fn share(self) -> u32 {
        match self {
            Self::Three | Self::Five | Self::ThreeAgain => 14,
            Self::ThreeWithKills | Self::FiveWithKills => 19,
            Self::Growing | Self::Shrinking => 10,
        }
    }
}

/// One phase, over.
struct Done {
    phase: Phase,
    begin_ns: u64,
    end_ns: u64,
    /// Nodes killed in it, and disks emptied.
    kills: usize,
    emptied: usize,
}

/// What came out.
pub struct LifeReport {
    phases: Vec<(Done, Latencies)>,
    /// Records acknowledged, all of them read back once and in order.
    acknowledged: u64,
    load_line: String,
    disk: DiskFacts,
    node_version: String,
}

/// Runs it.
///
/// # Errors
/// When a node or a command fails where it should not, a record is not acknowledged within a minute, or one that was is not
/// there in the end.
pub fn run(config: &LifeConfig) -> anyhow::Result<LifeReport> {
    crate::pairs::ensure_program(&config.server)?;
    let admin = config.server.with_file_name("pyralog-admin");
    crate::pairs::ensure_program(&admin)?;
    std::fs::create_dir_all(&config.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-life-").tempdir_in(&config.dir)?;
    let cluster = Cluster::start(&config.server, folder.path(), &config.cpus)?;
    cluster.create_topic(TOPIC, config.partitions)?;
    let node_version = Session::connect(cluster.address(1)?, None)?.server_version().to_owned();
    let ended = AtomicBool::new(false);
    let load = Load {
        topic: TOPIC,
        partitions: config.partitions,
        producers: config.producers,
        interval: Duration::from_secs(1) * config.producers / config.rate,
        ended: &ended,
    };
    let mut life = Life { config, admin, folder: folder.path(), cluster, kills: 0, emptied: 0 };
    let (phases, acks) = std::thread::scope(|scope| {
        let load = &load;
        let producers: Vec<_> = (0..config.producers)
            .map(|number| {
                let client = life.cluster.client();
                scope.spawn(move || load.produce(client, number))
            })
            .collect();
        let phases = life.all_phases(|| producers.iter().any(|producer| producer.is_finished()));
        ended.store(true, Ordering::Relaxed);
        let acks = producers.into_iter().map(|producer| {
            producer.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a producer's thread panicked")))
        });
        (phases, acks.collect::<anyhow::Result<Vec<Vec<Ack>>>>())
    });
    // A producer that failed is why its phase ended.
    let acks = acks.context("a producer failed")?;
    let phases = phases?;
    let sent: Vec<u64> = acks.iter().map(|acks| acks.len() as u64).collect();
    eprintln!("reading back {} records", sent.iter().sum::<u64>());
    load.read_back(&|| life.cluster.client(), &sent)?;
    life.cluster.stop()?;
    let phases = phases.into_iter().map(|done| {
        let latencies = latencies_of(&done, &acks)?;
        Ok((done, latencies))
    });
    Ok(LifeReport {
        phases: phases.collect::<anyhow::Result<_>>()?,
        acknowledged: sent.iter().sum(),
        load_line: format!(
            "open loop, {} records of 256 bytes a second by {} producers to {} partitions with three replicas each",
            config.rate, config.producers, config.partitions
        ),
        disk: DiskFacts::of(&config.dir)?,
        node_version,
    })
}

/// The latencies of what was due in a phase.
fn latencies_of(done: &Done, acks: &[Vec<Ack>]) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new()?;
    let due = |ack: &&Ack| (done.begin_ns..done.end_ns).contains(&ack.due_ns);
    acks.iter().flatten().filter(due).for_each(|ack| latencies.record_ns(ack.latency_ns));
    Ok(latencies)
}

struct Life<'a> {
    config: &'a LifeConfig,
    admin: PathBuf,
    folder: &'a Path,
    cluster: Cluster,
    kills: usize,
    emptied: usize,
}

impl Life<'_> {
    fn all_phases(&mut self, failed: impl Fn() -> bool) -> anyhow::Result<Vec<Done>> {
        let mut all = Vec::new();
        for phase in Phase::ALL {
            eprintln!("{}", phase.name());
            let begin_ns = MonotonicClock.now_ns();
            let end = Instant::now() + self.config.length * phase.share() / 100;
            (self.kills, self.emptied) = (0, 0);
            self.phase(phase, end).with_context(|| format!("in phase {}", phase.name()))?;
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            anyhow::ensure!(!failed(), "a producer gave up in phase {}", phase.name());
            let end_ns = MonotonicClock.now_ns();
            all.push(Done { phase, begin_ns, end_ns, kills: self.kills, emptied: self.emptied });
        }
        Ok(all)
    }

    fn phase(&mut self, phase: Phase, end: Instant) -> anyhow::Result<()> {
        match phase {
            Phase::Three | Phase::Five | Phase::ThreeAgain => Ok(()),
            Phase::ThreeWithKills => self.kills(&[1, 2, 3], end),
            Phase::Growing => self.grow(),
            Phase::FiveWithKills => self.kills(&[1, 2, 3, 4, 5], end),
            Phase::Shrinking => self.shrink(),
        }
    }

    /// Kills the leader of one partition after the other, and every third time another of the nodes, whose disk is lost.
    fn kills(&mut self, nodes: &[u32], end: Instant) -> anyhow::Result<()> {
        let mut client = self.cluster.client();
        let mut round = 0;
        // What is begun has to end in time.
        while round == 0 || Instant::now() + GONE + REST < end {
            let partitions = client.topic_afresh(TOPIC)?.partitions;
            let leader =
                partitions.get(round % partitions.len().max(1)).map_or(0, |partition| partition.leader);
            let empty = round % 3 == 2;
            let other = nodes.iter().copied().find(|node| *node != leader).unwrap_or(1);
            let node = if empty { other } else { leader };
            // Nobody leads for a moment after the last one died.
            if node == 0 {
                std::thread::sleep(LOOK);
                continue;
            }
            self.kill_for_a_while(node, empty)?;
            round += 1;
        }
        Ok(())
    }

    fn kill_for_a_while(&mut self, node: u32, empty: bool) -> anyhow::Result<()> {
        eprintln!("  node {node} is killed{}", if empty { ", its disk is lost" } else { "" });
        self.cluster.take(node)?.kill()?;
        self.kills += 1;
        std::thread::sleep(GONE);
        if empty {
            self.emptied += 1;
            self.cluster.wipe(node)?;
        }
        self.cluster.restart(node)?;
        self.cluster.await_in_sync(TOPIC)?;
        std::thread::sleep(REST);
        Ok(())
    }

    /// Two nodes come, by the settings of all; one of them dies while partitions move to it.
    fn grow(&mut self) -> anyhow::Result<()> {
        let (program, cpus) = (&self.config.server, &self.config.cpus);
        self.cluster.name_more(program, self.folder, cpus, 4..=5)?;
        for node in 1..=3 {
            eprintln!("  node {node} is restarted with the new settings");
            self.cluster.take(node)?.stop()?;
            self.cluster.spawn(node)?;
            self.cluster.await_in_sync(TOPIC)?;
        }
        for node in 4..=5 {
            self.cluster.spawn(node)?;
        }
        self.cluster.await_formed()?;
        eprintln!("  rebalance, and node 4 is killed meanwhile");
        let commanded = self.command(&["rebalance", "--yes", "--quiet"])?;
        self.kill_meanwhile(commanded, 4, &["rebalance", "--yes", "--quiet"])
    }

    /// The first two nodes go; another dies while the first of them is drained.
    fn shrink(&mut self) -> anyhow::Result<()> {
        for (gone, killed) in [(1, Some(3)), (2, None)] {
            let name = gone.to_string();
            let remove = ["cluster", "remove-node", name.as_str(), "--yes", "--quiet"];
            eprintln!("  node {gone} is removed");
            let commanded = self.command(&remove)?;
            match killed {
                Some(node) => self.kill_meanwhile(commanded, node, &remove)?,
                None => self.await_success(commanded, &remove)?,
            }
            self.cluster.retire(gone)?;
        }
        self.cluster.await_formed()?;
        self.cluster.await_in_sync(TOPIC)
    }

    /// Gives a command as an operator does.
    fn command(&self, arguments: &[&str]) -> anyhow::Result<OwnedProcess> {
        let mut command = Command::new(&self.admin);
        command.arg("--cluster").arg(self.cluster.addresses().join(",")).args(arguments);
        OwnedProcess::start(command.stdout(Stdio::null()))
    }

    fn kill_meanwhile(
        &mut self,
        commanded: OwnedProcess,
        node: u32,
        arguments: &[&str],
    ) -> anyhow::Result<()> {
        self.cluster.take(node)?.kill()?;
        self.kills += 1;
        std::thread::sleep(GONE);
        self.cluster.spawn(node)?;
        self.await_success(commanded, arguments)
    }

    /// Waits for a command, and gives it again when it failed, as a node that it asked had died.
    fn await_success(&self, mut commanded: OwnedProcess, arguments: &[&str]) -> anyhow::Result<()> {
        for _ in 0..ATTEMPTS {
            if commanded.wait(10 * PATIENCE)?.success() {
                return Ok(());
            }
            eprintln!("  the command is given again");
            commanded = self.command(arguments)?;
        }
        anyhow::bail!("{arguments:?} failed {ATTEMPTS} times")
    }
}

impl LifeReport {
    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = format!("{:<18} seconds  kills  disks lost  {}\n", "phase", Summary::HEADS);
        for (done, latencies) in &self.phases {
            // Writing to a String can't fail.
            let _ = writeln!(
                table,
                "{:<18}{:8.0}{:7}{:12}  {}",
                done.phase.name(),
                seconds(done),
                done.kills,
                done.emptied,
                latencies.summary()
            );
        }
        let _ =
            writeln!(table, "{} records acknowledged, each read back once and in order", self.acknowledged);
        table
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let phase = |(done, latencies): &(Done, Latencies)| {
            json!({
                "phase": done.phase.name(), "seconds": seconds(done), "kills": done.kills,
                "disks_lost": done.emptied, "latency": latencies.summary().to_json(),
            })
        };
        json!({ "acknowledged": self.acknowledged, "phases": self.phases.iter().map(phase).collect::<Vec<_>>() })
    }

    /// For files: a curve for each phase.
    pub fn into_run(self) -> Run {
        let mut more = Map::new();
        more.insert("life_report".into(), self.to_json());
        let curve = |(done, latencies): (Done, Latencies)| Curve {
            name: done.phase.name().into(),
            per_second: latencies.count() as f64 / seconds(&done),
            latencies,
        };
        Run {
            command: "life",
            host: HostFacts::collect(),
            disk: Some(self.disk),
            node_version: Some(self.node_version),
            durability: DURABILITY,
            load: json!({ "line": self.load_line }),
            load_line: self.load_line,
            curves: self.phases.into_iter().map(curve).collect(),
            more,
        }
    }
}

fn seconds(done: &Done) -> f64 {
    (done.end_ns - done.begin_ns) as f64 / 1e9
}
