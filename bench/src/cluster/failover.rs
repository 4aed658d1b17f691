//! The gap that a producer sees when its leader is killed, or is stopped and hands over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_net::client::{Client, Consumer, ConsumerConfig, IdempotentProducer, ProducerConfig, StartAt};
use serde_json::{Map, Value, json};

use super::Cluster;
use crate::device::DiskFacts;
use crate::host::HostFacts;
use crate::latency::Latencies;
use crate::report::{Curve, DURABILITY, Run};
use crate::session::Session;

const TOPIC: &str = "bench-failover";
/// Load before and after each fail-over.
const STEADY: Duration = Duration::from_millis(1_500);
/// Longer than this and the run is given up.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// How the leader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum How {
    /// SIGKILL
    Kill,
    /// SIGTERM: it hands its leaderships over
    Stop,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct FailoverConfig {
    /// The `pyralog` program.
    pub server: PathBuf,
    /// Folder on the disk to be used; a temporary one is made in it.
    pub dir: PathBuf,
    /// How often.
    pub times: usize,
    /// Kill or stop.
    pub how: How,
    /// Producers, each with one record of 256 bytes on its way.
    pub producers: usize,
    /// CPUs of the nodes, in turns.
    pub cpus: Vec<usize>,
}

/// The gaps of all producers at one fail-over.
#[derive(Clone, Debug)]
pub struct Gaps {
    /// From the signal to a producer's first acknowledgement by the next leader, milliseconds. Of a stop: the longest time
    /// between two acknowledgements from the signal on.
    pub of_producers_ms: Vec<f64>,
}

impl Gaps {
    fn worst_ms(&self) -> f64 {
        self.of_producers_ms.iter().copied().fold(0.0, f64::max)
    }
}

/// What came out.
pub struct FailoverReport {
    /// In the order in which they happened.
    pub gaps: Vec<Gaps>,
    /// Records acknowledged, all of them read back once and in order.
    pub acknowledged: u64,
    how: How,
    producers: usize,
    /// Measured, all fail-overs together.
    took: Duration,
    disk: DiskFacts,
    node_version: String,
}

/// When a producer's records were acknowledged.
type Acks = Mutex<Vec<Instant>>;

/// Runs it.
pub fn run(config: &FailoverConfig) -> anyhow::Result<FailoverReport> {
    crate::pairs::ensure_program(&config.server)?;
    anyhow::ensure!(config.producers > 0, "0 producers; give at least one");
    std::fs::create_dir_all(&config.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-failover-").tempdir_in(&config.dir)?;
    let mut cluster = Cluster::start(&config.server, folder.path(), &config.cpus)?;
    cluster.create_topic(TOPIC, 1)?;
    let node_version = Session::connect(cluster.address(1)?, None)?.server_version().to_owned();
    let begin = Instant::now();
    let acks: Vec<Acks> = (0..config.producers).map(|_| Acks::default()).collect();
    let ended = AtomicBool::new(false);
    let (gaps, sent) = std::thread::scope(|scope| {
        let producers: Vec<_> = (0u32..)
            .zip(&acks)
            .map(|(number, acks)| {
                let client = cluster.client();
                let ended = &ended;
                scope.spawn(move || produce(client, number, acks, ended))
            })
            .collect();
        let gaps = fail_over_again_and_again(config, &mut cluster, &acks);
        ended.store(true, Ordering::Relaxed);
        let sent = producers.into_iter().map(|producer| {
            producer.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a producer's thread panicked")))
        });
        (gaps, sent.collect::<anyhow::Result<Vec<u64>>>())
    });
    let took = begin.elapsed();
    let (gaps, sent) = (gaps?, sent.context("a producer failed")?);
    read_back(cluster.client(), &sent)?;
    cluster.stop()?;
    Ok(FailoverReport {
        gaps,
        acknowledged: sent.iter().sum(),
        how: config.how,
        producers: config.producers,
        took,
        disk: DiskFacts::of(&config.dir)?,
        node_version,
    })
}

/// One record after the other, each acknowledged before the next; returns how many.
fn produce(client: Client, number: u32, acks: &Acks, ended: &AtomicBool) -> anyhow::Result<u64> {
    let config = ProducerConfig { delivery_timeout: DELIVERY_TIMEOUT, ..ProducerConfig::default() };
    let mut producer = IdempotentProducer::new(client, TOPIC, config)?;
    let (mut sent, mut value) = (0u64, [b'.'; 256]);
    while !ended.load(Ordering::Relaxed) {
        value[..4].copy_from_slice(&number.to_be_bytes());
        value[4..12].copy_from_slice(&sent.to_be_bytes());
        producer.send(0, 0, None, Some(&value), &[])?;
        producer.flush()?;
        sent += 1;
        acks.lock().map_err(|_| anyhow::anyhow!("another thread panicked"))?.push(Instant::now());
    }
    Ok(sent)
}

fn fail_over_again_and_again(
    config: &FailoverConfig,
    cluster: &mut Cluster,
    acks: &[Acks],
) -> anyhow::Result<Vec<Gaps>> {
    let mut client = cluster.client();
    let mut all = Vec::new();
    for number in 1..=config.times {
        std::thread::sleep(STEADY);
        let leader = client.topic_afresh(TOPIC)?.partitions.first().map_or(0, |partition| partition.leader);
        let mut node = cluster.take(leader)?;
        let begin = Instant::now();
        let gaps = match config.how {
            How::Kill => {
                node.kill()?;
                acks.iter().map(|acks| first_ack_after(acks, begin)).collect::<anyhow::Result<Vec<_>>>()?
            }
            How::Stop => {
                node.stop()?;
                std::thread::sleep(STEADY);
                acks.iter().map(|acks| longest_pause_from(acks, begin)).collect::<anyhow::Result<Vec<_>>>()?
            }
        };
        let gaps = Gaps { of_producers_ms: gaps.iter().map(|gap| gap.as_secs_f64() * 1e3).collect() };
        cluster.restart(leader)?;
        // Leaders go home before the next one: else each node would lead in turn only by chance.
        cluster.await_home(TOPIC)?;
        eprintln!("{number} of {}: node {leader}, longest gap {:.0} ms", config.times, gaps.worst_ms());
        all.push(gaps);
    }
    Ok(all)
}

/// From `begin`, when the leader is dead, to the first acknowledgement that it can't have given: one of the leader's may still
/// have been on its way, so the one behind the longest pause counts.
fn first_ack_after(acks: &Acks, begin: Instant) -> anyhow::Result<Duration> {
    // Two by the next leader: then the pause is over for sure.
    let acks = wait_for_acks(acks, begin + Duration::from_millis(5), 2)?;
    Ok(longest_pause(&acks, begin, begin).1 - begin)
}

/// The longest time between two acknowledgements from `begin` on.
fn longest_pause_from(acks: &Acks, begin: Instant) -> anyhow::Result<Duration> {
    let acks = wait_for_acks(acks, begin, 2)?;
    let before = acks.iter().rev().find(|at| **at < begin).copied().unwrap_or(begin);
    Ok(longest_pause(&acks, before, begin).0)
}

/// The longest pause before an acknowledgement from `begin` on, the first one's since `last`, and when it ended.
fn longest_pause(acks: &[Instant], mut last: Instant, begin: Instant) -> (Duration, Instant) {
    let mut longest = (Duration::ZERO, begin);
    for at in acks.iter().copied().filter(|at| *at >= begin) {
        longest = longest.max((at - last, at));
        last = at;
    }
    longest
}

/// Waits until so many records were acknowledged after `from`.
fn wait_for_acks(acks: &Acks, from: Instant, count: usize) -> anyhow::Result<Vec<Instant>> {
    let end = Instant::now() + DELIVERY_TIMEOUT;
    loop {
        let known = acks.lock().map_err(|_| anyhow::anyhow!("a producer's thread panicked"))?.clone();
        if known.iter().rev().take_while(|at| **at > from).count() >= count {
            return Ok(known);
        }
        anyhow::ensure!(Instant::now() < end, "no acknowledgement within {DELIVERY_TIMEOUT:?}");
        std::thread::sleep(super::LOOK);
    }
}

/// Every acknowledged record is there once, in the order of its producer, and nothing else.
fn read_back(client: Client, sent: &[u64]) -> anyhow::Result<()> {
    let config = ConsumerConfig { max_bytes: 4 << 20, ..ConsumerConfig::default() };
    let mut consumer = Consumer::new(client, TOPIC, 0, StartAt::Earliest, config)?;
    let mut found: BTreeMap<u32, u64> = BTreeMap::new();
    loop {
        let polled = consumer.poll(Duration::ZERO, |record| {
            let value = record.value.unwrap_or_default();
            let number = value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
            let count = value.get(4..12).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            let (number, count) = number.zip(count).context("a record that nobody sent")?;
            let next = found.entry(number).or_default();
            anyhow::ensure!(
                count == *next,
                "offset {}: producer {number}'s record {count} where its record {next} belongs",
                record.offset
            );
            *next += 1;
            anyhow::Ok(())
        })?;
        if polled.records == 0 || consumer.position() >= polled.high_watermark {
            break;
        }
    }
    for (number, sent) in (0u32..).zip(sent) {
        let there = found.get(&number).copied().unwrap_or_default();
        anyhow::ensure!(there == *sent, "producer {number}: {sent} records acknowledged, {there} are there");
    }
    Ok(())
}

impl FailoverReport {
    fn sorted_ms(&self) -> Vec<f64> {
        let mut all: Vec<f64> =
            self.gaps.iter().flat_map(|gaps| gaps.of_producers_ms.iter().copied()).collect();
        all.sort_unstable_by(f64::total_cmp);
        all
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let sorted = self.sorted_ms();
        let at = |quantile: f64| quantile_of(&sorted, quantile);
        let what = match self.how {
            How::Kill => "from SIGKILL to a producer's first acknowledgement by the next leader",
            How::Stop => "longest time between a producer's acknowledgements from SIGTERM on",
        };
        format!(
            "{} fail-overs, {what}, ms:\n  median {:.0}, p90 {:.0}, worst {:.0}\n\
             {} records acknowledged, each read back once and in order\n",
            self.gaps.len(),
            at(0.5),
            at(0.9),
            at(1.0),
            self.acknowledged
        )
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let sorted = self.sorted_ms();
        json!({
            "fail_overs": self.gaps.len(), "acknowledged": self.acknowledged,
            "median_ms": quantile_of(&sorted, 0.5), "p90_ms": quantile_of(&sorted, 0.9), "worst_ms": quantile_of(&sorted, 1.0),
            "gaps_ms": self.gaps.iter().map(|gaps| &gaps.of_producers_ms).collect::<Vec<_>>(),
        })
    }
}

impl FailoverReport {
    /// For files: the gaps of all producers as one curve.
    ///
    /// # Errors
    /// When there is no memory for a histogram.
    pub fn into_run(self) -> anyhow::Result<Run> {
        let mut more = Map::new();
        more.insert("failover_report".into(), self.to_json());
        let mut latencies = Latencies::new()?;
        self.sorted_ms().iter().for_each(|gap_ms| latencies.record_ns((gap_ms * 1e6) as u64));
        let per_second = latencies.count() as f64 / self.took.as_secs_f64();
        let how = match self.how {
            How::Kill => "killed",
            How::Stop => "stopped",
        };
        Ok(Run {
            command: "failover",
            host: HostFacts::collect(),
            disk: Some(self.disk),
            node_version: Some(self.node_version),
            durability: DURABILITY,
            load_line: format!(
                "gaps of {} producer(s) with one record under way each, leader of three nodes {how} {} times",
                self.producers,
                self.gaps.len()
            ),
            load: json!({ "producers": self.producers, "leader": how, "fail_overs": self.gaps.len() }),
            curves: vec![Curve { name: "gap".into(), latencies, per_second }],
            more,
        })
    }
}

/// The value that the fraction `quantile` of `sorted` does not exceed.
fn quantile_of(sorted: &[f64], quantile: f64) -> f64 {
    let rank = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(begin: Instant, at_ms: &[i64]) -> Acks {
        let at = |ms: &i64| match *ms < 0 {
            true => begin - Duration::from_millis(ms.unsigned_abs()),
            false => begin + Duration::from_millis(*ms as u64),
        };
        Mutex::new(at_ms.iter().map(at).collect())
    }

    #[test]
    fn a_reply_that_was_on_its_way_is_not_the_next_leaders() {
        let begin = Instant::now();
        // The old leader's last reply came 2 ms after the kill.
        let found = first_ack_after(&acks(begin, &[-10, -5, 2, 300, 301, 305]), begin).unwrap();
        assert_eq!(found, Duration::from_millis(300));
        let found = first_ack_after(&acks(begin, &[-10, -5, 250, 251]), begin).unwrap();
        assert_eq!(found, Duration::from_millis(250));
    }

    #[test]
    fn the_pause_of_a_stop_may_begin_before_it() {
        let begin = Instant::now();
        let found = longest_pause_from(&acks(begin, &[-80, -7, 3, 9, 21, 22, 23]), begin).unwrap();
        assert_eq!(found, Duration::from_millis(12));
        let found = longest_pause_from(&acks(begin, &[-80, -7, 30, 31]), begin).unwrap();
        assert_eq!(found, Duration::from_millis(37));
    }

    #[test]
    fn a_run_has_the_gaps_of_all_producers() {
        let report = FailoverReport {
            gaps: vec![
                Gaps { of_producers_ms: vec![30.0, 40.0] },
                Gaps { of_producers_ms: vec![50.0, 90.0] },
            ],
            acknowledged: 7,
            how: How::Stop,
            producers: 2,
            took: Duration::from_secs(2),
            disk: DiskFacts::default(),
            node_version: "pyralog 0".into(),
        };
        let run = report.into_run().unwrap();
        let [curve] = run.curves.as_slice() else { panic!("one curve") };
        assert_eq!((curve.latencies.count(), curve.per_second), (4, 2.0));
        let max_us = curve.latencies.summary().max_us;
        assert!((max_us - 90_000.0).abs() < 100.0, "{max_us}");
        assert!(run.load_line.contains("2 producer(s)") && run.load_line.contains("stopped 2 times"));
        assert_eq!(run.to_json("x").unwrap()["failover_report"]["worst_ms"], 90.0);
    }

    #[test]
    fn quantiles_are_of_what_was_seen() {
        let sorted: Vec<f64> = (1..=30).map(f64::from).collect();
        assert_eq!(
            (quantile_of(&sorted, 0.5), quantile_of(&sorted, 1.0), quantile_of(&[], 0.5)),
            (15.0, 30.0, 0.0)
        );
    }
}
