//! `consume`, `mixed` and `sweep`.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::show;
use crate::consume::cold::ColdRead;
use crate::consume::history::History;
use crate::consume::run::{self, ColdFound, ColdRound, Followed};
use crate::floor::MAX_CONNECTIONS;
use crate::floor::beside::{self, BesideConfig, FloorRatios, Floors};
use crate::host::HostFacts;
use crate::latency::{Latencies, Summary, median};
use crate::options::{ConsumeArgs, MixedArgs, StampedArgs, SweepArgs, TargetArgs};
use crate::report::{Curve, DURABILITY, LoadFacts, Run, disk_of};
use crate::session::Session;
use crate::stages::{self, Snapshot};
use crate::sweep::{self, SPREADS, SweepTopics};
use crate::target::Target;
use crate::{mixed, report};

/// Measures what consumers get and prints the report.
///
/// # Errors
/// When the node is not there, refuses, or returns other than what was written.
pub fn consume(args: &ConsumeArgs) -> anyhow::Result<()> {
    let mut target = Target::start(&args.target)?;
    let made = if args.cold { cold(args, &mut target) } else { tail(args, &target) };
    finish(target, made, args.output, args.out.files("consume"))
}

/// Measures all kinds of clients at once and prints the report.
///
/// # Errors
/// As [`consume`].
pub fn mixed(args: &MixedArgs) -> anyhow::Result<()> {
    let mut target = Target::start(&args.target)?;
    let made = mixed_report(args, &mut target);
    finish(target, made, args.output, args.out.files("mixed"))
}

/// Measures what partitions and connections cost and prints the report.
///
/// # Errors
/// As [`consume`].
pub fn sweep(args: &SweepArgs) -> anyhow::Result<()> {
    let target = Target::start(&args.target)?;
    let made = sweep_report(args, &target);
    finish(target, made, args.output, args.out.files("sweep"))
}

type Report = (String, Run);

fn finish(
    target: Target,
    made: anyhow::Result<Report>,
    output: crate::cli::Output,
    files: Option<report::Output>,
) -> anyhow::Result<()> {
    let (table, run) = made?;
    target.stop()?;
    let name = files.as_ref().map_or(run.command, |files| &files.name);
    show(output, &table, &run.to_json(name)?);
    run.write_if_asked(files.as_ref())
}

fn run_of(command: &'static str, target: &Target, load_line: String, load: Value) -> anyhow::Result<Run> {
    Ok(Run {
        command,
        host: HostFacts::collect(),
        disk: disk_of(target.disk_dir.as_deref())?,
        node_version: Some(target.version()?),
        durability: DURABILITY,
        load_line,
        load,
        curves: Vec::new(),
        more: Map::new(),
    })
}

/// The floor for a node that was started here, or where it was asked for, with as many copies as the topic has.
fn floor_of(
    args: &TargetArgs,
    target: &Target,
    topic: &str,
    load: &LoadFacts,
) -> anyhow::Result<Option<BesideConfig>> {
    // What nobody asked for must not fail.
    let own = target.disk_dir.clone().filter(|_| load.connections <= MAX_CONNECTIONS);
    let Some(dir) = args.floor_dir.clone().or(own) else { return Ok(None) };
    let (topic, _) = Session::connect(target.addr, None)?.topic(topic)?;
    let copies = usize::from(topic.quorums.replication_factor).max(1);
    Ok(Some(BesideConfig { dir, copies, writes_in_flight: 1, client_cpu: target.client_cpu }))
}

/// The topic that was named, or a new one.
fn topic_of(args: &TargetArgs, target: &Target, prefix: &str, partitions: u32) -> anyhow::Result<String> {
    args.topic.clone().map_or_else(|| target.new_topic(prefix, partitions), Ok)
}

fn ratios_of(above: &Latencies, below: &Latencies) -> [f64; 3] {
    let (above, below) = (above.summary(), below.summary());
    [above.p50_us / below.p50_us, above.p99_us / below.p99_us, above.p999_us / below.p999_us]
}

fn ratio_line(what: &str, [p50, p99, p999]: [f64; 3]) -> String {
    format!("{what}: p50 {p50:.2}, p99 {p99:.2}, p999 {p999:.2}\n")
}

/// What producers and consumers at the end have in common in `consume --tail` and `mixed`: rows, curves, ratios, floor.
fn add_followed(
    run: &mut Run,
    followed: Followed,
    stages: &Snapshot,
    floors: Option<Floors>,
    load: &StampedArgs,
) -> anyhow::Result<(String, String)> {
    let seconds = load.seconds as f64;
    let Followed { acks, end_to_end, records } = followed;
    let ratios = ratios_of(&end_to_end, &acks);
    let rows = format!(
        "produce, until acknowledged  {}\nend to end, until in hand    {}\n",
        acks.summary(),
        end_to_end.summary()
    );
    let mut last =
        format!("{records} records acknowledged, and each of them consumed once, in order and intact\n");
    last += &ratio_line("end to end / acknowledged", ratios);
    last += &stages::to_table(stages);
    run.more.insert("stages".into(), stages::to_json(stages));
    run.more.insert("end_to_end_to_acks".into(), json!(ratios));
    for (name, latencies) in [("acks", acks), ("end-to-end", end_to_end)] {
        let per_second = latencies.count() as f64 / seconds;
        run.curves.push(Curve { name: name.to_owned(), latencies, per_second });
    }
    last += &add_floor(run, floors, Duration::from_secs(load.seconds))?;
    Ok((rows, last))
}

fn tail(args: &ConsumeArgs, target: &Target) -> anyhow::Result<Report> {
    let topic = topic_of(&args.target, target, "bench-tail", args.load.partitions)?;
    let facts = args.load.facts();
    let monitor = args.out.monitor(facts.shape.warmup);
    let floor = floor_of(&args.target, target, &topic, &facts)?;
    let ((followed, stages), floors) = beside::around(floor.as_ref(), &facts, || {
        let work = || monitor.during(|| run::follow(target, &topic, &args.load, &monitor));
        stages::during(&[target.addr], facts.shape.warmup, work)
    })?;
    let line = format!("consumers at the end of {} partition(s); {facts}", args.load.partitions);
    let mut run = run_of("consume", target, line, facts.to_json())?;
    let (rows, last) = add_followed(&mut run, followed, &stages, floors, &args.load)?;
    Ok((format!("{}\n{:29}{}\n{rows}\n{last}", run.heading(), "", Summary::HEADS), run))
}

/// Where a cold read came from, as far as anybody knows.
fn origin(is_evicted: bool) -> &'static str {
    if is_evicted {
        "the node restarted or its files taken out of the page cache before"
    } else {
        "perhaps from the page cache: give --data-dir"
    }
}

fn mb(bytes_per_second: f64) -> f64 {
    bytes_per_second / 1e6
}

fn cold(args: &ConsumeArgs, target: &mut Target) -> anyhow::Result<Report> {
    let facts = args.load.facts();
    let topic = topic_of(&args.target, target, "bench-beside-cold", args.load.partitions)?;
    let history = History::prepare(&args.history, target)?;
    let floor = floor_of(&args.target, target, &topic, &facts)?;
    let (found, floors) =
        beside::around(floor.as_ref(), &facts, || run::cold(args, target, &topic, &history))?;
    let line = format!("cold reader beside producers, {} round(s); {facts}", args.rounds);
    let mut run = run_of("consume", target, line, facts.to_json())?;
    let mut table = format!("{}\n{}", run.heading(), cold_lines(&found));
    table += &format!("\nround  producers       {}\n", Summary::HEADS);
    for (number, round) in (1..).zip(&found.rounds) {
        table += &format!("{number:5}  without reader  {}\n", round.without.summary());
        table += &format!("{number:5}  with reader     {}", round.with.summary());
        table += &format!("  reader {:.0} MB/s\n", mb(round.read.bytes_per_second()));
    }
    let ratio = |pick: fn([f64; 3]) -> f64| {
        let of = |round: &ColdRound| pick(ratios_of(&round.with, &round.without));
        median(&found.rounds.iter().map(of).collect::<Vec<_>>()).unwrap_or_default()
    };
    let ratios = [ratio(|r| r[0]), ratio(|r| r[1]), ratio(|r| r[2])];
    table.push('\n');
    table += &ratio_line(&format!("median of {} rounds, with reader / without", found.rounds.len()), ratios);
    run.more.insert("cold".into(), cold_json(&found, ratios));
    run.curves = cold_curves(found, args.load.seconds)?;
    table += &add_floor(&mut run, floors, facts.shape.measured)?;
    Ok((table, run))
}

/// The floor beside the run's first curve; the last lines of the report.
fn add_floor(run: &mut Run, floors: Option<Floors>, measured: Duration) -> anyhow::Result<String> {
    let ratios = floors.as_ref().zip(run.curves.first()).map(|(floors, node)| floors.ratios(&node.latencies));
    run.more.insert("floor".into(), ratios.map(FloorRatios::to_json).into());
    if let Some(floors) = floors {
        run.curves.push(floors.into_curve(measured)?);
    }
    Ok(beside::last_lines(ratios.as_ref()))
}

/// With a larger share of fetches from the node's own cache nobody should call it cold.
const MOST_FROM_CACHE: f64 = 0.05;

fn cold_lines(found: &ColdFound) -> String {
    let ColdRead { bytes, records, seconds, .. } = found.alone;
    let speed = found.alone.bytes_per_second();
    let mut text = format!(
        "cold read alone: {:.0} MB in {records} records, {seconds:.2} s: {:.0} MB/s, every checksum verified\n",
        bytes as f64 / 1e6,
        mb(speed)
    );
    text += &format!("  {}\n", origin(found.is_evicted));
    text += &format!(
        "  {:.0} fetches from the node's cache, {:.0} from segments (the node's own count)\n",
        found.served.from_cache, found.served.from_segments
    );
    if found.served.from_cache > MOST_FROM_CACHE * (found.served.from_cache + found.served.from_segments) {
        text += "  that was no cold reading: fill more than the node's cache holds (--mib)\n";
    }
    let Some((disk, [alone, beside])) = found.disk_bytes_per_second().zip(found.disk_appends()) else {
        return text + "the disk itself was not measured, as nobody has said where it is: give --floor-dir\n";
    };
    text += &format!(
        "the disk's sequential reads (mean of before and after): {:.0} MB/s; cold read / disk: {:.2}\n",
        mb(disk),
        speed / disk
    );
    text + &ratio_line(
        "the disk's own durable appends, beside such reads / without",
        ratios_of(&beside, &alone),
    )
}

fn cold_json(found: &ColdFound, ratios: [f64; 3]) -> Value {
    let speed = found.alone.bytes_per_second();
    json!({
        "bytes": found.alone.bytes, "records": found.alone.records, "seconds": found.alone.seconds,
        "bytes_per_second": speed, "evicted": found.is_evicted,
        "fetches_from_cache": found.served.from_cache, "fetches_from_segments": found.served.from_segments,
        "disk_bytes_per_second": found.disk_bytes_per_second(),
        "to_disk": found.disk_bytes_per_second().map(|disk| speed / disk),
        "disk_appends": found.disk_appends().map(|[alone, beside]| json!({
            "alone": alone.summary().to_json(), "beside_reads": beside.summary().to_json(),
        })),
        "median_ratios_with_reader": { "p50": ratios[0], "p99": ratios[1], "p999": ratios[2] },
        "rounds": found.rounds.iter().map(|round| json!({
            "without": round.without.summary().to_json(), "with": round.with.summary().to_json(),
            "reader_bytes_per_second": round.read.bytes_per_second(),
        })).collect::<Vec<_>>(),
    })
}

/// All rounds of each side as one curve.
fn cold_curves(found: ColdFound, seconds: u64) -> anyhow::Result<Vec<Curve>> {
    let (mut without, mut with) = (Latencies::new()?, Latencies::new()?);
    for round in &found.rounds {
        without.merge(&round.without)?;
        with.merge(&round.with)?;
    }
    let all_seconds = (seconds * found.rounds.len() as u64) as f64;
    let curve = |name: &str, latencies: Latencies| {
        let per_second = latencies.count() as f64 / all_seconds;
        Curve { name: name.to_owned(), latencies, per_second }
    };
    Ok(vec![curve("acks-without-reader", without), curve("acks-with-reader", with)])
}

fn mixed_report(args: &MixedArgs, target: &mut Target) -> anyhow::Result<Report> {
    let facts = args.load.facts();
    let topic = topic_of(&args.target, target, "bench-mixed", args.load.partitions)?;
    let history = History::prepare(&args.history, target)?;
    let monitor = args.out.monitor(facts.shape.warmup);
    let floor = floor_of(&args.target, target, &topic, &facts)?;
    let nodes = [target.addr];
    let target = &*target;
    let ((found, stages), floors) = beside::around(floor.as_ref(), &facts, || {
        stages::during(&nodes, facts.shape.warmup, || mixed::run(args, target, &topic, &history, &monitor))
    })?;
    let line = format!("{} cold reader(s) beside producers and consumers at the end; {facts}", args.readers);
    let mut run = run_of("mixed", target, line, facts.to_json())?;
    let (rows, last) = add_followed(&mut run, found.followed, &stages, floors, &args.load)?;
    let mut table = format!("{}\n{:29}{}\n{rows}", run.heading(), "", Summary::HEADS);
    let mut speeds = Vec::new();
    for (number, read) in (1..).zip(&found.reads) {
        let speed = mb(read.bytes_per_second());
        table +=
            &format!("cold fetches, reader {number:2}      {}  {speed:.0} MB/s\n", read.fetches.summary());
        speeds.push(read.bytes_per_second());
    }
    if !found.reads.is_empty() {
        table += &format!("cold reads: {}\n", origin(found.is_evicted));
    }
    run.more.insert("cold_bytes_per_second".into(), json!(speeds));
    let mut reads = found.reads.into_iter();
    if let Some(mut all) = reads.next() {
        reads.try_for_each(|read| all.merge(&read))?;
        let per_second = all.fetches.count() as f64 / all.seconds;
        run.curves.push(Curve { name: "cold-fetches".to_owned(), latencies: all.fetches, per_second });
    }
    Ok((format!("{table}\n{last}"), run))
}

fn sweep_report(args: &SweepArgs, target: &Target) -> anyhow::Result<Report> {
    let topics = SweepTopics::make(args, target)?;
    let facts = sweep::facts(args);
    let floor = floor_of(&args.target, target, &topics.few, &facts)?;
    let (found, floors) = beside::around(floor.as_ref(), &facts, || sweep::run(args, target, &topics))?;
    let line = format!(
        "open loop, {} requests/s over 1 and {} partitions, 1 and {} connections, 1 record of {} bytes a request, \
         {} round(s) of {} s + {} s warm-up",
        args.rate,
        args.partitions,
        args.connections,
        args.record_bytes,
        args.rounds,
        args.seconds,
        args.warmup
    );
    let load = json!({
        "loop": "open", "latency_from": "intended send time", "rate_per_second": args.rate,
        "partitions": [1, args.partitions], "connections": [1, args.connections], "records_per_request": 1,
        "record_bytes": args.record_bytes, "measured_seconds": args.seconds, "warmup_seconds": args.warmup,
        "rounds": args.rounds,
    });
    let mut run = run_of("sweep", target, line, load)?;
    let mut table = format!("{}\n{}", run.heading(), found.to_table(args.partitions, args.connections));
    run.more.insert("sweep".into(), found.to_json());
    let seconds = (args.seconds * found.rounds.len() as u64) as f64;
    for (index, spread) in SPREADS.iter().enumerate() {
        let mut latencies = Latencies::new()?;
        for part in found.rounds.iter().filter_map(|round| round.0.get(index)) {
            latencies.merge(part)?;
        }
        let per_second = latencies.count() as f64 / seconds;
        run.curves.push(Curve { name: spread.name().to_owned(), latencies, per_second });
    }
    table += &add_floor(&mut run, floors, facts.shape.measured)?;
    Ok((table, run))
}
