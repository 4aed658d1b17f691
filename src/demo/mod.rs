//! `pyralog demo`: three real nodes, real input, a leader that is killed, a comparison, and latencies. Everything goes
//! over the client ports of child processes; nothing looks inside them.

mod child;
mod cluster;
mod interrupt;
mod latency;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use pyralog_core::GroupId;
use pyralog_core::batch::BatchView;
use pyralog_core::limits::MAX_FETCH_BYTES;
use pyralog_net::client::{
    Client, ClientConfig, ClientError, IdempotentProducer, Place, ProducerConfig, ProducerStats,
};
use pyralog_net::message::{
    Consistency, FetchRequest, OffsetSpec, PartitionMetadata, PartitionState, ReplicaState,
};

use crate::failure::Failure;
use crate::node::Settings;
use crate::units::{self, parse_bytes};
use cluster::{Cluster, NODES};
use text::Text;

const TOPIC: &str = "demo-text";
const LATENCY_TOPIC: &str = "demo-latency";
/// Partitions of the text's topic: each node leads one or two.
const PARTITIONS: u32 = 6;
/// How long anything is waited for that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often latency is measured anew because the leader changed.
const MEASUREMENTS: u32 = 5;
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(5);

/// Options of the demo.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// How much text is written and read back.
    #[arg(long, default_value = "64MiB", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// How long each of the two latency measurements takes, seconds.
    #[arg(long, default_value_t = 3)]
    pub(crate) seconds: u64,
}

/// Less would be acknowledged as a whole before the kill could come.
const MIN_SIZE_BYTES: u64 = 8 << 20;

/// Runs the demo. Its files go into a folder of their own, in the system's temporary folder or in `--data-dir`, and
/// are removed.
pub(crate) fn run(arguments: &Arguments, settings: &Settings) -> Result<(), Failure> {
    if arguments.size < MIN_SIZE_BYTES {
        return Err(Failure::usage(format!("--size is at least {}", units::bytes(MIN_SIZE_BYTES))));
    }
    let started = Instant::now();
    let folder = folder(settings.data_dir.as_deref())?;
    interrupt::clean_up_on_signals(folder.path().to_owned())?;
    let mut cluster = Cluster::start(folder.path())?;
    let addresses = cluster.client_addresses();
    println!(
        "three nodes on this machine ({}), one core each as far as there are enough: a cluster after {}\n",
        addresses.join(", "),
        units::duration(started.elapsed())
    );

    create_topics(&addresses)?;
    let (killed, written) = write_through_a_kill(&mut cluster, arguments.size)?;
    let back = Instant::now();
    cluster.start_node(killed)?;
    cluster.await_formed()?;
    await_in_sync(&addresses)?;
    println!("  node {killed} is back and has caught up after {}\n", units::duration(back.elapsed()));
    let read = read_back(&addresses, written.lines)?;
    if read != written.sum {
        return Err(Failure::failed(format!(
            "what was read is not what was written: {read:?} against {:?}",
            written.sum
        )));
    }
    println!(
        "  every line is there once and in order: {} lines, CRC32C {:08x}\n",
        units::count(read.lines),
        read.crc32c
    );

    measure(&addresses, Duration::from_secs(arguments.seconds.max(1)))?;
    cluster.stop()?;
    drop(folder);
    println!("demo passed in {}", units::duration(started.elapsed()));
    Ok(())
}

fn folder(data_dir: Option<&str>) -> Result<tempfile::TempDir, Failure> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("pyralog-demo-");
    let folder = match data_dir {
        Some(parent) => std::fs::create_dir_all(parent).and_then(|()| builder.tempdir_in(parent)),
        None => builder.tempdir(),
    };
    folder.map_err(|error| {
        Failure::failed(format!(
            "cannot make a folder for the demo: {error}; name one on a disk with --data-dir"
        ))
    })
}

fn client(addresses: &[String]) -> Client {
    let config = ClientConfig { name: "pyralog demo".into(), ..ClientConfig::default() };
    Client::new(addresses, config)
}

/// A client's error as the demo's failure.
pub(crate) fn checked<T>(result: Result<T, ClientError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::failed(error.to_string()))
}

fn create_topics(addresses: &[String]) -> Result<(), Failure> {
    let mut client = client(addresses);
    checked(client.create_topic(TOPIC, PARTITIONS, -1, -1))?;
    checked(client.create_topic(LATENCY_TOPIC, 1, -1, -1))?;
    for topic in [TOPIC, LATENCY_TOPIC] {
        for partition in 0..if topic == TOPIC { PARTITIONS } else { 1 } {
            await_leader(&mut client, topic, partition)?;
        }
    }
    Ok(())
}

/// Waits until somebody leads the partition.
fn await_leader(client: &mut Client, topic: &str, partition: u32) -> Result<u32, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        let metadata = checked(client.topic_afresh(topic))?;
        let leader = metadata.partitions.get(partition as usize).map_or(0, |partition| partition.leader);
        if leader != 0 {
            return Ok(leader);
        }
        if Instant::now() >= end {
            return Err(Failure::failed(format!("partition {partition} of {topic} got no leader in time")));
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until every partition is led where it should be: leaders go home some seconds after a node has come back, and one that
/// moves is no place to measure at.
fn await_home(client: &mut Client) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    for topic in [TOPIC, LATENCY_TOPIC] {
        let home = |partition: &PartitionMetadata| {
            partition.replicas.iter().next().is_some_and(|first| first.node == partition.leader)
        };
        while !checked(client.topic_afresh(topic))?.partitions.iter().all(home) {
            if Instant::now() >= end {
                return Err(Failure::failed("the leaders have not gone back to their places in time"));
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// Waits until every replica has everything.
fn await_in_sync(addresses: &[String]) -> Result<(), Failure> {
    let mut client = client(addresses);
    let end = Instant::now() + PATIENCE;
    loop {
        let states = checked(client.describe_topic(TOPIC))?;
        let whole = |state: &PartitionState| {
            let has_all = |replica: &ReplicaState| replica.in_sync && replica.log_end >= state.high_watermark;
            state.replicas.len() == NODES as usize && state.replicas.iter().all(has_all)
        };
        if states.len() == PARTITIONS as usize && states.iter().all(whole) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Failure::failed("the killed node has not caught up in time"));
        }
        std::thread::sleep(POLL);
    }
}

/// A text in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    lines: u64,
    bytes: u64,
    crc32c: u32,
}

impl Sum {
    fn add(&mut self, line: &[u8]) {
        self.lines += 1;
        self.bytes += line.len() as u64 + 1;
        self.crc32c = crc32c::crc32c_append(crc32c::crc32c_append(self.crc32c, line), b"\n");
    }

    /// The sums of the partitions, in their order, as one.
    fn total(sums: &[Self]) -> Self {
        sums.iter().fold(Self::default(), |total, sum| Self {
            lines: total.lines + sum.lines,
            bytes: total.bytes + sum.bytes,
            crc32c: crc32c::crc32c_append(total.crc32c, &sum.crc32c.to_le_bytes()),
        })
    }
}

struct Written {
    sum: Sum,
    /// Of each partition.
    lines: Vec<u64>,
    stats: ProducerStats,
    /// The longest time without an acknowledgement for a partition whose leader was killed.
    fail_over: Duration,
}

/// Writes `size` bytes of text. When half of it is acknowledged the node that leads the first partition is killed, while
/// the producer goes on. Returns who was killed.
fn write_through_a_kill(cluster: &mut Cluster, size: u64) -> Result<(u32, Written), Failure> {
    println!(
        "writing {} of text in lines to {PARTITIONS} partitions, every batch durable on two of three nodes",
        units::bytes(size)
    );
    let started = Instant::now();
    let addresses = cluster.client_addresses();
    let (half, half_acknowledged) = flume::bounded(1);
    let (tell_killed, killed) = flume::bounded(1);
    let producer = {
        let addresses = addresses.clone();
        std::thread::spawn(move || write(&addresses, size, half, killed))
    };
    let mut victim = 0;
    // Without an answer the producer has failed before; its error is below.
    if let Ok(acknowledged) = half_acknowledged.recv() {
        let mut client = client(&addresses);
        victim = await_leader(&mut client, TOPIC, 0)?;
        let metadata = checked(client.topic(TOPIC))?;
        let led = (0..).zip(&metadata.partitions).filter(|(_, partition)| partition.leader == victim);
        let led: Vec<u32> = led.map(|(partition, _)| partition).collect();
        cluster.kill(victim)?;
        println!(
            "  node {victim}, which led {} of them, killed with SIGKILL when {} lines were acknowledged",
            led.len(),
            units::count(acknowledged)
        );
        let _ = tell_killed.send(led);
    }
    let written = producer.join().map_err(|_| Failure::failed("the producer panicked"))??;
    let Written { sum, stats, fail_over, .. } = &written;
    println!(
        "  the others took over: the longest that one of its partitions had no acknowledgement was {}",
        units::duration(*fail_over)
    );
    println!(
        "  {} lines acknowledged in {} ({:.0} MB/s, the kill included); sent again: {} rounds, {} batches were there already",
        units::count(stats.acked_records),
        units::duration(started.elapsed()),
        units::mb_per_s(sum.bytes, started.elapsed()),
        stats.retries,
        stats.duplicates,
    );
    if stats.acked_records != sum.lines {
        return Err(Failure::failed(format!(
            "{} lines were sent, {} acknowledged",
            sum.lines, stats.acked_records
        )));
    }
    if stats.retries == 0 {
        return Err(Failure::failed(
            "the producer never lost a leader: the kill came too late to show anything",
        ));
    }
    Ok((victim, written))
}

/// The producer's thread. Tells on `half` how many lines are acknowledged when half of the bytes are, and goes on
/// when `killed` says which partitions have lost their leader: so the kill comes while batches are under way, however
/// busy the machine is.
fn write(
    addresses: &[String],
    size: u64,
    half: flume::Sender<u64>,
    killed: flume::Receiver<Vec<u32>>,
) -> Result<Written, Failure> {
    let config = ProducerConfig {
        batch_size: 64 << 10,
        delivery_timeout: Duration::from_secs(30),
        ..ProducerConfig::default()
    };
    let mut producer = checked(IdempotentProducer::new(client(addresses), TOPIC, config))?;
    let mut lines = 0u64;
    let mut half = Some(half);
    let mut gap = Gap::default();
    let longest = Arc::clone(&gap.longest_us);
    producer.on_ack(Box::new(move |ack| {
        lines += u64::from(ack.records);
        gap.acknowledged(ack.partition);
        if lines >= size / 2 / text::AVERAGE_LINE_BYTES
            && let Some(half) = half.take()
        {
            // Neither end waits for the other when it has failed.
            let _ = half.send(lines);
            gap.begin(killed.recv().unwrap_or_default());
        }
    }));
    let mut texts: Vec<Text> = (0..PARTITIONS).map(|partition| Text::new(u64::from(partition))).collect();
    let mut sums = vec![Sum::default(); texts.len()];
    let mut sent = 0;
    while sent < size {
        for ((partition, text), sum) in (0..).zip(&mut texts).zip(&mut sums) {
            let line = text.next_line();
            sum.add(line);
            sent += line.len() as u64 + 1;
            checked(producer.send(partition, 0, None, Some(line), &[]))?;
        }
    }
    checked(producer.flush())?;
    let lines = sums.iter().map(|sum| sum.lines).collect();
    let fail_over = Duration::from_micros(longest.load(Ordering::Relaxed));
    Ok(Written { sum: Sum::total(&sums), lines, stats: producer.stats(), fail_over })
}

/// The longest time without an acknowledgement for a partition whose leader was killed.
#[derive(Default)]
struct Gap {
    /// Of each such partition, since when.
    since: BTreeMap<u32, Instant>,
    longest_us: Arc<AtomicU64>,
}

impl Gap {
    fn begin(&mut self, partitions: Vec<u32>) {
        let now = Instant::now();
        self.since = partitions.into_iter().map(|partition| (partition, now)).collect();
    }

    fn acknowledged(&mut self, partition: u32) {
        if let Some(since) = self.since.get_mut(&partition) {
            let now = Instant::now();
            self.longest_us.fetch_max(now.duration_since(*since).as_micros() as u64, Ordering::Relaxed);
            *since = now;
        }
    }
}

/// Reads everything and compares it, line by line, with the text made again.
fn read_back(addresses: &[String], lines: Vec<u64>) -> Result<Sum, Failure> {
    println!("reading it back and comparing each line");
    let started = Instant::now();
    let mut client = client(addresses);
    let mut sums = Vec::new();
    for (partition, lines) in (0..PARTITIONS).zip(lines) {
        sums.push(read_partition(&mut client, partition, lines)?);
    }
    let total = Sum::total(&sums);
    println!(
        "  {} in {} ({:.0} MB/s)",
        units::bytes(total.bytes),
        units::duration(started.elapsed()),
        units::mb_per_s(total.bytes, started.elapsed())
    );
    Ok(total)
}

fn read_partition(client: &mut Client, partition: u32, lines: u64) -> Result<Sum, Failure> {
    let mut text = Text::new(u64::from(partition));
    let (mut sum, mut next, mut batches, mut scratch) = (Sum::default(), 0, Vec::new(), Vec::new());
    loop {
        let request = FetchRequest {
            group: GroupId::new(0, 0),
            offset: next,
            min_bytes: 0,
            max_bytes: MAX_FETCH_BYTES as u32,
            max_wait_ms: 0,
            consistency: Consistency::Leader,
        };
        let head = checked(client.fetch(TOPIC, partition, request, &mut batches))?;
        let mut rest = batches.as_slice();
        while !rest.is_empty() {
            let at = next;
            let bad = |error| Failure::failed(format!("partition {partition} at offset {at}: {error}"));
            let (batch, after) = BatchView::parse(rest).map_err(bad)?;
            batch.check_crc().map_err(bad)?;
            for record in batch.records(&mut scratch).map_err(bad)? {
                let record = record.map_err(bad)?;
                let (value, wanted) = (record.value.unwrap_or_default(), text.next_line());
                if record.offset != next || value != wanted {
                    return Err(Failure::failed(format!(
                        "partition {partition} differs at offset {next}: {:?} (offset {}) where {:?} was written",
                        String::from_utf8_lossy(value),
                        record.offset,
                        String::from_utf8_lossy(wanted)
                    )));
                }
                sum.add(value);
                next += 1;
            }
            rest = after;
        }
        if next >= head.high_watermark {
            break;
        }
        if batches.is_empty() {
            return Err(Failure::failed(format!("partition {partition} gave nothing at offset {next}")));
        }
    }
    match sum.lines == lines {
        true => Ok(sum),
        false => Err(Failure::failed(format!("partition {partition} holds {} lines of {lines}", sum.lines))),
    }
}

fn measure(addresses: &[String], time: Duration) -> Result<(), Failure> {
    println!(
        "records of 256 bytes, each in a batch of its own, acknowledged when it is on stable storage of two of three nodes"
    );
    let mut client = client(addresses);
    await_home(&mut client)?;
    for _ in 0..MEASUREMENTS {
        if let Some(runs) = measure_at_leader(&mut client, time)? {
            println!("{}", latency::table(&runs));
            return Ok(());
        }
        println!("  another node leads by now, as happens when the machine is busy; once more");
    }
    Err(Failure::failed(format!(
        "the leader changed in each of {MEASUREMENTS} measurements; the machine is too busy for three nodes"
    )))
}

/// `None`: the leader changed on the way.
fn measure_at_leader(client: &mut Client, time: Duration) -> Result<Option<[latency::Run; 2]>, Failure> {
    await_leader(client, LATENCY_TOPIC, 0)?;
    // Answered when all of earlier leaders is committed: nothing else is in the log but what follows.
    let before = checked(client.list_offsets(LATENCY_TOPIC, 0, OffsetSpec::Latest))?.offset;
    let topic = checked(client.topic(LATENCY_TOPIC))?;
    let place = topic.partitions.first().and_then(Place::leader_of).unwrap_or(Place::ANY);
    let mut connection = checked(client.open(place))?;
    let group = GroupId::new(topic.id, 0);
    let Some(alone) = latency::run(&mut connection, group, "one at a time", 1, time)? else {
        return Ok(None);
    };
    let Some(many) = latency::run(&mut connection, group, "64 outstanding", 64, time)? else {
        return Ok(None);
    };
    let acknowledged = alone.acknowledged + many.acknowledged;
    let kept = checked(client.list_offsets(LATENCY_TOPIC, 0, OffsetSpec::Latest))?.offset - before;
    match u64::try_from(kept) == Ok(acknowledged) {
        true => Ok(Some([alone, many])),
        false => Err(Failure::failed(format!(
            "{acknowledged} records were acknowledged and {kept} are in the log"
        ))),
    }
}
