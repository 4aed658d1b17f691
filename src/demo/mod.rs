//! `pyralog demo`: a real node, real input, a kill, a comparison, and latencies. Everything goes over the client
//! port of a child process; nothing looks inside it.

mod child;
mod interrupt;
mod latency;
mod text;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use pyralog_core::GroupId;
use pyralog_core::batch::BatchView;
use pyralog_core::limits::MAX_FETCH_BYTES;
use pyralog_net::client::{
    Client, ClientConfig, ClientError, IdempotentProducer, Place, ProducerConfig, ProducerStats,
};
use pyralog_net::message::FetchRequest;

use crate::failure::Failure;
use crate::node::Settings;
use crate::units::{self, parse_bytes};
use child::Node;
use text::Text;

const TOPIC: &str = "demo-text";
const LATENCY_TOPIC: &str = "demo-latency";

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
    let data_dir = folder.path().join("data");
    let node = Node::start(&data_dir, "127.0.0.1:0")?;
    print!("{}", node.banner);
    println!("  ready after {}\n", units::duration(node.ready_after));

    let partitions = create_topics(&node.address)?;
    let (node, written) = write_through_a_kill(node, &data_dir, partitions, arguments.size)?;
    let read = read_back(&node.address, partitions, written.lines)?;
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

    measure(&node.address, Duration::from_secs(arguments.seconds.max(1)))?;
    print!("{}", node.stop()?);
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

fn client(address: &str) -> Client {
    let config = ClientConfig { name: "pyralog demo".into(), ..ClientConfig::default() };
    Client::new(&[address], config)
}

/// A client's error as the demo's failure.
pub(crate) fn checked<T>(result: Result<T, ClientError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::failed(error.to_string()))
}

/// Returns the partitions of the text's topic: one per shard, at least two.
fn create_topics(address: &str) -> Result<u32, Failure> {
    let mut client = client(address);
    let (node, _) = checked(client.metadata())?;
    let partitions = u32::from(node.shards).max(2);
    checked(client.create_topic(TOPIC, partitions, -1, -1))?;
    checked(client.create_topic(LATENCY_TOPIC, 1, -1, -1))?;
    Ok(partitions)
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
}

/// Writes `size` bytes of text. When half of it is acknowledged the node is killed and started again, while the
/// producer goes on.
fn write_through_a_kill(
    node: Node,
    data_dir: &Path,
    partitions: u32,
    size: u64,
) -> Result<(Node, Written), Failure> {
    println!(
        "writing {} of text in lines to {partitions} partitions, every batch durable",
        units::bytes(size)
    );
    let started = Instant::now();
    let address = node.address.clone();
    let (half, half_acknowledged) = flume::bounded(1);
    let (killed, go_on) = flume::bounded(1);
    let producer = {
        let address = address.clone();
        std::thread::spawn(move || write(&address, partitions, size, half, go_on))
    };
    let node = match half_acknowledged.recv() {
        Ok(acknowledged) => {
            node.kill()?;
            println!("  killed with SIGKILL when {} lines were acknowledged", units::count(acknowledged));
            drop(killed);
            let node = Node::start(data_dir, &address)?;
            println!("  back after {}, journal replayed", units::duration(node.ready_after));
            node
        }
        // The producer has failed before; its error is below.
        Err(_) => node,
    };
    let written = producer.join().map_err(|_| Failure::failed("the producer panicked"))??;
    let Written { sum, stats, .. } = &written;
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
    if stats.reconnects == 0 {
        return Err(Failure::failed(
            "the producer never lost its connection: the kill came too late to show anything",
        ));
    }
    Ok((node, written))
}

/// The producer's thread. Tells on `half` how many lines are acknowledged when half of the bytes are, and goes on
/// when the other end of `go_on` is dropped: so the kill comes while batches are under way, however busy the
/// machine is.
fn write(
    address: &str,
    partitions: u32,
    size: u64,
    half: flume::Sender<u64>,
    go_on: flume::Receiver<()>,
) -> Result<Written, Failure> {
    let config = ProducerConfig {
        batch_bytes: 64 << 10,
        delivery_timeout: Duration::from_secs(30),
        ..ProducerConfig::default()
    };
    let mut producer = checked(IdempotentProducer::new(client(address), TOPIC, config))?;
    let mut lines = 0u64;
    let mut half = Some(half);
    producer.on_ack(Box::new(move |ack| {
        lines += u64::from(ack.records);
        if lines >= size / 2 / text::AVERAGE_LINE_BYTES
            && let Some(half) = half.take()
        {
            // Neither end waits for the other when it has failed.
            let _ = half.send(lines);
            let _ = go_on.recv();
        }
    }));
    let mut texts: Vec<Text> = (0..partitions).map(|partition| Text::new(u64::from(partition))).collect();
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
    Ok(Written { sum: Sum::total(&sums), lines, stats: producer.stats() })
}

/// Reads everything and compares it, line by line, with the text made again.
fn read_back(address: &str, partitions: u32, lines: Vec<u64>) -> Result<Sum, Failure> {
    println!("reading it back and comparing each line");
    let started = Instant::now();
    let mut client = client(address);
    let mut sums = Vec::new();
    for (partition, lines) in (0..partitions).zip(lines) {
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

fn measure(address: &str, time: Duration) -> Result<(), Failure> {
    println!("records of 256 bytes, each in a batch of its own, acknowledged when it is on stable storage");
    let mut client = client(address);
    let topic = checked(client.topic(LATENCY_TOPIC))?;
    let place = topic.partitions.first().and_then(Place::leader_of).unwrap_or(Place::ANY);
    let mut connection = checked(client.open(place))?;
    let group = GroupId::new(topic.id, 0);
    let runs = [
        latency::run(&mut connection, group, "one at a time", 1, time)?,
        latency::run(&mut connection, group, "64 outstanding", 64, time)?,
    ];
    println!("{}", latency::table(&runs));
    let acknowledged: u64 = runs.iter().map(|run| run.acknowledged).sum();
    let states = checked(client.describe_topic(LATENCY_TOPIC))?;
    let kept: i64 = states.iter().map(|state| state.high_watermark).sum();
    match u64::try_from(kept) == Ok(acknowledged) {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "{acknowledged} records were acknowledged and {kept} are in the log"
        ))),
    }
}
