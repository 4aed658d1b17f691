//! Groups that nobody writes to: what they cost, and that thousands of them are served.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_core::limits::MAX_PARTITIONS_PER_TOPIC;
use pyralog_net::client::{IdempotentProducer, ProducerConfig};
use serde_json::{Value, json};

use super::Cluster;

/// What to run.
#[derive(Clone, Debug)]
pub struct IdleConfig {
    /// The `pyralog` program.
    pub server: PathBuf,
    /// Folder on the disk to be used; a temporary one is made in it.
    pub dir: PathBuf,
    /// Partitions with three replicas each.
    pub groups: u32,
    /// Time before: groups fall quiet a second after the last write, the flusher writes everything out within ten, and
    /// leaders go home a few a second.
    pub settle: Duration,
    /// How long the idle nodes are watched.
    pub watched: Duration,
    /// CPUs of the nodes, in turns.
    pub cpus: Vec<usize>,
}

/// What came out.
pub struct IdleReport {
    /// Partitions.
    pub groups: u32,
    /// From the first topic's creation until every partition is led and all replicas are in sync, seconds.
    pub created_s: f64,
    /// One record to each partition, all acknowledged by a quorum, seconds.
    pub written_s: f64,
    /// All nodes killed and started: until every partition is led and in sync again, seconds.
    pub restarted_s: f64,
    /// Time on a CPU of each idle node, per cent of one core.
    pub idle_percent: Vec<f64>,
    /// Resident memory of each node, bytes.
    pub resident_bytes: Vec<u64>,
}

/// Runs it.
pub fn run(config: &IdleConfig) -> anyhow::Result<IdleReport> {
    crate::pairs::ensure_program(&config.server)?;
    anyhow::ensure!(config.groups > 0, "0 groups; give at least one");
    std::fs::create_dir_all(&config.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-idle-").tempdir_in(&config.dir)?;
    let mut cluster = Cluster::start(&config.server, folder.path(), &config.cpus)?;
    let begin = Instant::now();
    let topics = create(&cluster, config.groups)?;
    let created_s = begin.elapsed().as_secs_f64();
    eprintln!("{} partitions are led after {created_s:.1} s", config.groups);
    let begin = Instant::now();
    write_to_all(&cluster, &topics)?;
    let written_s = begin.elapsed().as_secs_f64();
    eprintln!("each has a record after {written_s:.1} s");
    let begin = Instant::now();
    let ids = 1..=super::NODES;
    ids.clone().try_for_each(|id| cluster.take(id)?.kill())?;
    cluster.restart_all()?;
    topics.iter().try_for_each(|(topic, _)| cluster.await_led(topic))?;
    let restarted_s = begin.elapsed().as_secs_f64();
    eprintln!("all killed, started, and led after {restarted_s:.1} s");
    write_to_all(&cluster, &topics)?;
    std::thread::sleep(config.settle);
    let pids = cluster.pids();
    let before = pids.iter().map(|pid| cpu_time(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::sleep(config.watched);
    let after = pids.iter().map(|pid| cpu_time(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let busy = before.iter().zip(&after).map(|(before, after)| *after - *before);
    let idle_percent = busy.map(|busy| 100.0 * busy.as_secs_f64() / config.watched.as_secs_f64()).collect();
    let resident = pids.iter().map(|pid| crate::host::resident_bytes(*pid));
    let resident_bytes = resident.collect::<anyhow::Result<_>>()?;
    cluster.stop()?;
    Ok(IdleReport { groups: config.groups, created_s, written_s, restarted_s, idle_percent, resident_bytes })
}

/// As few topics as hold so many partitions.
fn create(cluster: &Cluster, groups: u32) -> anyhow::Result<Vec<(String, u32)>> {
    let mut topics = Vec::new();
    let mut left = groups;
    while left > 0 {
        let (name, partitions) = (format!("bench-idle-{}", topics.len()), left.min(MAX_PARTITIONS_PER_TOPIC));
        cluster.request_topic(&name, partitions)?;
        topics.push((name, partitions));
        left -= partitions;
    }
    topics.iter().try_for_each(|(topic, _)| cluster.await_led(topic))?;
    Ok(topics)
}

fn write_to_all(cluster: &Cluster, topics: &[(String, u32)]) -> anyhow::Result<()> {
    for (topic, partitions) in topics {
        let mut producer = IdempotentProducer::new(cluster.client(), topic, ProducerConfig::default())?;
        for partition in 0..*partitions {
            producer.send(partition, 0, None, Some(b"one"), &[])?;
        }
        producer.flush().with_context(|| format!("topic {topic}"))?;
        let acknowledged = producer.stats().acked_records;
        anyhow::ensure!(acknowledged == u64::from(*partitions), "{topic}: {acknowledged} acknowledged");
    }
    Ok(())
}

/// Time that a process has spent on CPUs, its threads' included.
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    Ok(cpu_times(pid)?.0)
}

/// The same, and the time for which its threads would have run and had no CPU.
pub(super) fn cpu_times(pid: u32) -> anyhow::Result<(Duration, Duration)> {
    let (mut total_ns, mut waited_ns) = (0, 0);
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // "time on the CPU, ns; time waiting, ns; time slices": finer than the clock ticks of `stat`.
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let mut words = text.split_whitespace().map(|word| word.parse::<u64>().ok());
        let mut next = || words.next().flatten().context("schedstat: not in the known format");
        total_ns += next()?;
        waited_ns += next()?;
    }
    Ok((Duration::from_nanos(total_ns), Duration::from_nanos(waited_ns)))
}

impl IdleReport {
    /// For people.
    pub fn to_table(&self) -> String {
        let percents: Vec<String> =
            self.idle_percent.iter().map(|percent| format!("{percent:.2} %")).collect();
        let mib: Vec<String> =
            self.resident_bytes.iter().map(|bytes| format!("{} MiB", bytes >> 20)).collect();
        format!(
            "{} partitions of three replicas on three nodes with one shard each\n\
             created, led and in sync after {:.1} s; a record in each, acknowledged by a quorum, after {:.1} s\n\
             all nodes killed and started: led and in sync after {:.1} s\n\
             idle, of one core: {}\nresident: {}\n",
            self.groups,
            self.created_s,
            self.written_s,
            self.restarted_s,
            percents.join(", "),
            mib.join(", ")
        )
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "groups": self.groups, "created_s": self.created_s, "written_s": self.written_s,
            "restarted_s": self.restarted_s, "idle_percent": self.idle_percent,
            "resident_bytes": self.resident_bytes,
        })
    }
}
