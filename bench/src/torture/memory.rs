//! Everything that makes a server's memory grow, at once, against its printed bound.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_core::GroupId;
use pyralog_core::batch::{BatchBuilder, Compression};
use pyralog_core::limits::MAX_FETCH_BYTES;
use pyralog_net::message::{
    Acks, Consistency, FetchRequest, ProduceRequest, Request, Response, TopicMetadata,
};

use crate::cli::MemoryArgs;
use crate::session::Session;
use crate::{host, torture};

const SAMPLE: Duration = Duration::from_millis(100);
/// Produces of one writer under way.
const PIPELINE: usize = 16;
const RECORD_BYTES: usize = 16 << 10;
/// Fetches that a reader asks for without reading one.
const UNREAD_FETCHES: usize = 64;

/// Runs it; an error when the bound did not hold.
pub fn run(args: &MemoryArgs) -> anyhow::Result<()> {
    let name = torture::fresh_topic("torture-memory");
    let mut session = Session::connect(args.addr, Some(0))?;
    let before = host::resident_bytes(args.pid)?;
    session.create_topic(&name, args.partitions)?;
    let (topic, _) = session.topic(&name)?;
    drop(session);
    println!(
        "before: {:.1} MiB resident; with {} partitions: {:.1} MiB",
        torture::mib(before),
        topic.partitions.len(),
        torture::mib(host::resident_bytes(args.pid)?)
    );
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let most = AtomicU64::new(0);
    let (stop, written, topic) = (&stop, &written, &topic);
    let outcome = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..args.writers)
            .map(|number| scope.spawn(move || write(args, topic, number, stop, written)))
            .collect();
        let watched = watch(args, topic, written, &most);
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().map_err(|_| anyhow::anyhow!("a writer's thread panicked"))??;
        }
        watched
    });
    let most = most.load(Ordering::Relaxed);
    println!(
        "wrote {:.0} MiB with {} writers against {} readers that read nothing; at most {:.1} MiB resident, bound {:.1} MiB",
        torture::mib(written.load(Ordering::Relaxed)),
        args.writers,
        args.readers,
        torture::mib(most),
        torture::mib(args.bound)
    );
    outcome?;
    anyhow::ensure!(
        most <= args.bound,
        "memory went beyond the bound by {:.1} MiB",
        torture::mib(most - args.bound)
    );
    anyhow::ensure!(written.load(Ordering::Relaxed) > 0, "nothing was written: the run proves nothing");
    Ok(())
}

/// Lets readers stall and samples memory until the time is over.
fn watch(
    args: &MemoryArgs,
    topic: &TopicMetadata,
    written: &AtomicU64,
    most: &AtomicU64,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut readers = Vec::new();
    let mut next_line = Duration::from_secs(5);
    while begin.elapsed() < Duration::from_secs(args.seconds) {
        // Some after the other, so that they pin different parts of the log.
        if (readers.len() as u64) < args.readers {
            readers.push(stalled_reader(args.addr, topic, readers.len())?);
        }
        let resident = host::resident_bytes(args.pid).context("the node is gone")?;
        most.fetch_max(resident, Ordering::Relaxed);
        if begin.elapsed() >= next_line {
            let mib = torture::mib(written.load(Ordering::Relaxed));
            eprintln!(
                "{:4} s: {:.1} MiB resident, {mib:.0} MiB written",
                next_line.as_secs(),
                torture::mib(resident)
            );
            next_line += Duration::from_secs(5);
        }
        std::thread::sleep(SAMPLE);
    }
    Ok(())
}

/// A connection that asks for much and never reads it.
fn stalled_reader(
    addr: SocketAddr,
    topic: &TopicMetadata,
    number: usize,
) -> anyhow::Result<std::net::TcpStream> {
    let partition = number % topic.partitions.len().max(1);
    let place = topic.partitions.get(partition).context("no such partition")?;
    let mut socket =
        Session::connect(addr, Some(place.shard)).context("a reader can't connect")?.into_socket()?;
    let group = GroupId::new(topic.id, partition as u32);
    let mut requests = Vec::new();
    for correlation in 0..UNREAD_FETCHES as u64 {
        let max_bytes = MAX_FETCH_BYTES as u32;
        let fetch = FetchRequest {
            group,
            offset: 0,
            min_bytes: 1,
            max_bytes,
            max_wait_ms: 60_000,
            consistency: Consistency::Leader,
        };
        Request::Fetch(fetch).encode(correlation, &mut requests)?;
    }
    socket.set_nonblocking(true)?;
    // What the server doesn't take is not sent: it may stop reading a connection that doesn't read.
    let _ = socket.write(&requests)?;
    Ok(socket)
}

/// Produces to its share of the partitions, one after the other, always with [`PIPELINE`] batches under way.
fn write(
    args: &MemoryArgs,
    topic: &TopicMetadata,
    number: u64,
    stop: &AtomicBool,
    written: &AtomicU64,
) -> anyhow::Result<()> {
    // A writer's connection belongs to one shard; it takes the partitions of that shard that are its own.
    let shards: u16 = topic.partitions.iter().map(|place| place.shard + 1).max().unwrap_or(1);
    let shard = (number % u64::from(shards)) as u16;
    let (own, of) = (number / u64::from(shards), args.writers.div_ceil(u64::from(shards)));
    let partitions: Vec<u32> = (0u32..)
        .zip(&topic.partitions)
        .filter(|(_, place)| place.shard == shard)
        .map(|(partition, _)| partition)
        .filter(|partition| u64::from(*partition / u32::from(shards)) % of == own)
        .collect();
    let mut connection = Session::connect(args.addr, Some(shard))?.into_connection();
    let mut builder = BatchBuilder::new();
    for _ in 0..4 {
        builder.append(0, None, Some(&[0x5a; RECORD_BYTES]), &[])?;
    }
    let batch = builder.build(Compression::None)?.to_vec();
    let mut targets = partitions.iter().cycle();
    loop {
        let go_on = !stop.load(Ordering::Relaxed) && written.load(Ordering::Relaxed) < args.write_mib << 20;
        while go_on
            && connection.outstanding() < PIPELINE
            && let Some(&partition) = targets.next()
        {
            let group = GroupId::new(topic.id, partition);
            let request = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch: &batch };
            connection.send(&Request::Produce(request)).context("a writer can't send")?;
        }
        if connection.outstanding() == 0 {
            return Ok(());
        }
        match connection.recv().context("a writer got no reply")?.response {
            Response::Produce(_) => {
                written.fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
            // Saying "not now" is the server's good right under this load; anything else is not.
            Response::Error(error) if error.code.retriable() => {}
            other => anyhow::bail!("a writer was answered with {other:?}"),
        }
    }
}
