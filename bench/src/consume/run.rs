//! The two runs of `consume`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use super::cold::{ColdRead, ColdReader};
use super::history::{History, Served};
use super::partitions;
use super::tail::{TailConsumer, Tailed};
use crate::disk::{self, ReadFigures};
use crate::latency::Latencies;
use crate::live::{Monitor, Tap};
use crate::options::{ConsumeArgs, StampedArgs};
use crate::pace::Clock;
use crate::stamped::{self, Driven, MonotonicClock, Window};
use crate::target::{Target, run_number};

/// Consumers at most: each has a thread of its own.
const MOST_CONSUMERS: usize = 64;
/// A little ahead, so that every thread is up when the first request is due.
const AHEAD_NS: u64 = 20_000_000;
/// What is read of the disk to know what it gives.
const DISK_BYTES: u64 = 256 << 20;
/// How long it is appended to for that, without and with reads.
const DISK_TIME: Duration = Duration::from_secs(2);

/// The times of a run that begins now.
pub fn window(load: &StampedArgs) -> Window {
    let begin_ns = MonotonicClock.now_ns() + AHEAD_NS;
    let warm_ns = begin_ns + Duration::from_secs(load.warmup).as_nanos() as u64;
    Window { begin_ns, warm_ns, end_ns: warm_ns + Duration::from_secs(load.seconds).as_nanos() as u64 }
}

/// Producers and the consumers at the end of their topic.
pub struct Followed {
    /// From the intended send time to the acknowledgement.
    pub acks: Latencies,
    /// From the intended send time to the consumer's hand.
    pub end_to_end: Latencies,
    /// Records that came, warm-up included: as many as were acknowledged.
    pub records: u64,
}

/// Produces to `topic` and follows each of its partitions meanwhile.
///
/// # Errors
/// When either fails, or when a record that was acknowledged has not come.
pub fn follow(
    target: &Target,
    topic: &str,
    load: &StampedArgs,
    monitor: &Monitor,
) -> anyhow::Result<Followed> {
    let run = run_number();
    let places = partitions(target.addr, topic)?;
    anyhow::ensure!(
        places.len() <= MOST_CONSUMERS,
        "{topic} has {} partitions, and each takes a consumer; at most {MOST_CONSUMERS}",
        places.len()
    );
    let consumers: Vec<TailConsumer> =
        places.into_iter().map(TailConsumer::connect).collect::<anyhow::Result<_>>()?;
    let producers = stamped::connect(target.addr, topic, load.connections as usize)?;
    let (acks, ends) = (monitor.board("acks"), monitor.board("end to end"));
    let tap = |board: &Option<_>, window: Window| tap_of(board.as_deref(), window);
    let window = window(load);
    let stop = AtomicBool::new(false);
    let stop = &stop;
    let (driven, tailed) = std::thread::scope(|scope| {
        let following: Vec<_> = consumers
            .into_iter()
            .map(|consumer| {
                let tap = tap(&ends, window)?;
                Ok(scope.spawn(move || consumer.follow(run, window, target.client_cpu, stop, tap)))
            })
            .collect::<anyhow::Result<_>>()?;
        let tap = tap(&acks, window)?;
        let stamped = load.load(run, target.client_cpu);
        let producing = scope.spawn(move || stamped::run(producers, &stamped, window, tap));
        let driven = producing.join().map_err(|_| anyhow::anyhow!("the producers' thread panicked"));
        // Also when it failed: the consumers would wait for ever.
        stop.store(true, Ordering::Release);
        let tailed: Vec<anyhow::Result<Tailed>> = following
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a consumer's thread panicked"))?)
            .collect();
        anyhow::Ok((driven??, tailed.into_iter().collect::<anyhow::Result<Vec<Tailed>>>()?))
    })?;
    merged(driven, &tailed)
}

/// A thread's end of a board, if there is one.
pub fn tap_of(board: Option<&crate::live::Board>, window: Window) -> anyhow::Result<Tap> {
    board.map_or(Ok(Tap::off()), |board| board.tap(MonotonicClock.now_ns(), window.begin_ns))
}

fn merged(driven: Driven, tailed: &[Tailed]) -> anyhow::Result<Followed> {
    let mut end_to_end = Latencies::new()?;
    let mut records = 0;
    for part in tailed {
        end_to_end.merge(&part.latencies)?;
        records += part.records;
    }
    anyhow::ensure!(
        records == driven.records,
        "{} records were acknowledged and {records} consumed",
        driven.records
    );
    anyhow::ensure!(driven.acks.count() > 0, "nothing was measured; give more seconds");
    Ok(Followed { acks: driven.acks, end_to_end, records })
}

/// Passes over everything with nobody else there: one is over in a third of a second, and a disk has moments.
const PASSES_ALONE: usize = 5;

/// What `consume --cold` has found.
pub struct ColdFound {
    /// Some passes over everything with nobody else there, together.
    pub alone: ColdRead,
    /// Where that came from on the node's word.
    pub served: Served,
    /// Whether the page cache was empty for certain.
    pub is_evicted: bool,
    /// The disk itself before the cold read and after it; `None` when nobody has said where it is.
    pub disk: Option<[ReadFigures; 2]>,
    /// The producers' acknowledgements without the reader and with it, round by round.
    pub rounds: Vec<ColdRound>,
}

impl ColdFound {
    /// Of the disk itself: sequential reads, bytes a second (the mean of before and after).
    pub fn disk_bytes_per_second(&self) -> Option<f64> {
        let [before, after] = self.disk.as_ref()?;
        Some((before.read_bytes_per_second + after.read_bytes_per_second) / 2.0)
    }

    /// Of the disk itself: durable appends without and with reads beside them, before and after together.
    pub fn disk_appends(&self) -> Option<[Latencies; 2]> {
        let [before, after] = self.disk.as_ref()?;
        let (mut alone, mut beside) = (before.appends_alone.clone(), before.appends_beside_reads.clone());
        alone.merge(&after.appends_alone).ok()?;
        beside.merge(&after.appends_beside_reads).ok()?;
        Some([alone, beside])
    }
}

/// One round.
pub struct ColdRound {
    /// Nobody reads.
    pub without: Latencies,
    /// Somebody reads from the beginning, again and again.
    pub with: Latencies,
    /// What that reader got.
    pub read: ColdRead,
}

/// Reads cold, and measures producers without and with that in turns.
///
/// # Errors
/// When the node refuses, or something that was read is damaged or missing.
pub fn cold(
    args: &ConsumeArgs,
    target: &Target,
    topic: &str,
    history: &History,
) -> anyhow::Result<ColdFound> {
    history.evict()?;
    let disk = || {
        let dir = target.disk_dir.as_ref();
        let measured = dir.map(|dir| disk::measure_reads(dir, DISK_BYTES, DISK_TIME));
        measured.transpose().context("the disk itself")
    };
    let disk_before = disk()?;
    let before = Served::now(target)?;
    let go_on = AtomicBool::new(false);
    let mut alone = read_once(history, target.client_cpu, &go_on)?;
    for _ in 1..PASSES_ALONE {
        history.evict()?;
        alone.merge(&read_once(history, target.client_cpu, &go_on)?)?;
    }
    let served = Served::now(target)?.since(before);
    let disk_after = disk()?;
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        // Every other round begins with the reader, so that a drift of the machine favours neither.
        let (without, (with, read)) = if number % 2 == 0 {
            (produce(target, topic, args)?, produce_beside_reader(target, topic, args, history)?)
        } else {
            let beside = produce_beside_reader(target, topic, args, history)?;
            (produce(target, topic, args)?, beside)
        };
        eprintln!("round {} of {} done", number + 1, args.rounds);
        rounds.push(ColdRound { without, with, read });
    }
    Ok(ColdFound {
        alone,
        served,
        is_evicted: history.is_evicted(),
        disk: disk_before.zip(disk_after).map(|(before, after)| [before, after]),
        rounds,
    })
}

/// One pass over every partition, one after the other.
fn read_once(history: &History, cpu: Option<usize>, stop: &AtomicBool) -> anyhow::Result<ColdRead> {
    let mut whole: Option<ColdRead> = None;
    for partition in &history.partitions {
        let mut reader = ColdReader::connect(*partition)?;
        let read = std::thread::scope(|scope| {
            let reading = scope.spawn(|| reader.read(cpu, stop));
            reading.join().map_err(|_| anyhow::anyhow!("a reader's thread panicked"))?
        })?;
        match &mut whole {
            Some(whole) => whole.merge(&read)?,
            None => whole = Some(read),
        }
    }
    whole.context("a topic without partitions")
}

/// Reads everything again and again, cold as far as possible, until `stop` is set.
///
/// # Errors
/// As for one pass.
pub fn read_until(history: &History, cpu: Option<usize>, stop: &AtomicBool) -> anyhow::Result<ColdRead> {
    let mut whole = read_once(history, cpu, stop)?;
    while !stop.load(Ordering::Relaxed) {
        history.evict()?;
        whole.merge(&read_once(history, cpu, stop)?)?;
    }
    Ok(whole)
}

fn produce(target: &Target, topic: &str, args: &ConsumeArgs) -> anyhow::Result<Latencies> {
    let producers = stamped::connect(target.addr, topic, args.load.connections as usize)?;
    let monitor = args.out.monitor(Duration::from_secs(args.load.warmup));
    let board = monitor.board("acks");
    let window = window(&args.load);
    let tap = tap_of(board.as_deref(), window)?;
    let load = args.load.load(run_number(), target.client_cpu);
    let driven = std::thread::scope(|scope| {
        let producing = scope.spawn(|| monitor.during(|| stamped::run(producers, &load, window, tap)));
        producing.join().map_err(|_| anyhow::anyhow!("the producers' thread panicked"))?
    })?;
    anyhow::ensure!(driven.acks.count() > 0, "nothing was measured; give more seconds");
    Ok(driven.acks)
}

fn produce_beside_reader(
    target: &Target,
    topic: &str,
    args: &ConsumeArgs,
    history: &History,
) -> anyhow::Result<(Latencies, ColdRead)> {
    history.evict()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_until(history, target.client_cpu, &stop));
        let produced = produce(target, topic, args);
        stop.store(true, Ordering::Relaxed);
        let read = reading.join().map_err(|_| anyhow::anyhow!("a reader's thread panicked"))?;
        Ok((produced?, read?))
    })
}
