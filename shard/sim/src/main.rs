//! `pyralog-sim`: lives of a simulated node or cluster, many by seed range or one with its trace.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use pyralog_sim::cluster::Kind;
use pyralog_sim::{PlantedBug, cluster, run, sweep};

/// Runs the real engine on a simulated disk that crashes, fails and lies, and checks that nothing
/// acknowledged is lost.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Run this many lives.
    #[arg(long, default_value_t = 100, conflicts_with = "seed")]
    seeds: u64,
    /// Seed of the first life.
    #[arg(long, default_value_t = 1, conflicts_with = "seed")]
    first: u64,
    /// Replay this one life and print its trace.
    #[arg(long)]
    seed: Option<u64>,
    /// Plant a bug that the simulator must find.
    #[arg(long)]
    bug: Option<Bug>,
    /// Lives of a cluster of three or five nodes instead of a single node.
    #[arg(long)]
    cluster: bool,
    /// Lives of a cluster of four or five nodes in which partitions move.
    #[arg(long, requires = "cluster")]
    moves: bool,
    /// The same with three nodes, to which two are added.
    #[arg(long, requires = "cluster", conflicts_with = "moves")]
    grows: bool,
    /// Lives in which partitions move, topics get other numbers of replicas, and nodes other numbers of shards.
    #[arg(long, requires = "cluster", conflicts_with_all = ["moves", "grows"])]
    resizes: bool,
    /// The same from one replica on, with disks that tell no lies.
    #[arg(long, requires = "cluster", conflicts_with_all = ["moves", "grows", "resizes"])]
    singles: bool,
    /// Lives of four or five nodes that are upgraded one by one, until which nothing may move.
    #[arg(long, requires = "cluster", conflicts_with_all = ["moves", "grows", "resizes", "singles"])]
    upgrades: bool,
    /// With --seed: print the result only.
    #[arg(long, requires = "seed")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bug {
    /// Acknowledge before the flush.
    AckBeforeFlush,
    /// End the log at a bad checksum in its middle.
    TruncateOnBadChecksum,
    /// Acknowledge before the quorum (with --cluster).
    AckBeforeQuorum,
    /// Send votes that are not in the journal (with --cluster).
    VoteWithoutFlush,
    /// Take messages of older terms as current ones (with --cluster).
    AcceptOldTerms,
    /// Use a recycled journal file without a fresh generation.
    ReuseWithoutGeneration,
    /// Delete a replica before the others have it (with --cluster --moves).
    DeleteBeforeMoved,
    /// Raise the feature level when most nodes support the next one (with --cluster --upgrades).
    RaiseForMajority,
    /// Leave what is in no segment yet behind when partitions go to other shards (with --cluster --resizes)
    LeaveEntriesBehind,
}

impl From<Bug> for PlantedBug {
    fn from(bug: Bug) -> Self {
        match bug {
            Bug::AckBeforeFlush => Self::AckBeforeFlush,
            Bug::TruncateOnBadChecksum => Self::TruncateOnBadChecksum,
            Bug::AckBeforeQuorum => Self::AckBeforeQuorum,
            Bug::VoteWithoutFlush => Self::VoteWithoutFlush,
            Bug::AcceptOldTerms => Self::AcceptOldTerms,
            Bug::ReuseWithoutGeneration => Self::ReuseWithoutGeneration,
            Bug::DeleteBeforeMoved => Self::DeleteBeforeMoved,
            Bug::RaiseForMajority => Self::RaiseForMajority,
            Bug::LeaveEntriesBehind => Self::LeaveEntriesBehind,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bug = arguments.bug.map(PlantedBug::from);
    let kind = match (arguments.moves, arguments.grows, arguments.resizes) {
        _ if arguments.upgrades => Kind::Upgrades,
        _ if arguments.singles => Kind::Singles,
        (true, ..) => Kind::Moves,
        (_, true, _) => Kind::Grows,
        (.., true) => Kind::Resizes,
        _ => Kind::Plain,
    };
    let passed = match (arguments.cluster, arguments.seed) {
        (false, Some(seed)) => replay(seed, bug, !arguments.quiet),
        (true, Some(seed)) => replay_cluster(seed, kind, bug, !arguments.quiet),
        (false, None) => many(arguments.first, arguments.seeds, bug),
        (true, None) => many_clusters(arguments.first, arguments.seeds, kind, bug),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(seed: u64, bug: Option<PlantedBug>, trace: bool) -> bool {
    let report = run(seed, bug, trace);
    report.trace.iter().for_each(|line| println!("{line}"));
    let counts = (report.events, report.acknowledged, report.cut_short, report.coverage);
    println!("seed {seed}: {counts:?} | {}", report.faults);
    if let Some(violation) = &report.violation {
        println!("seed {seed}: VIOLATION {violation}");
    }
    report.violation.is_none()
}

fn replay_cluster(seed: u64, kind: Kind, bug: Option<PlantedBug>, trace: bool) -> bool {
    let report = cluster::run(seed, kind, bug, trace);
    report.trace.iter().for_each(|line| println!("{line}"));
    let mut totals = cluster::ClusterTotals::default();
    totals.add(&report);
    println!("seed {seed}: {totals}");
    if let Some(violation) = &report.violation {
        println!("seed {seed}: VIOLATION {violation}");
    }
    report.violation.is_none()
}

fn many(first: u64, count: u64, bug: Option<PlantedBug>) -> bool {
    let totals = sweep(first, count, bug, |report| {
        if let Some(violation) = &report.violation {
            println!("seed {}: VIOLATION {violation}", report.seed);
        }
    });
    println!("{totals}");
    totals.failed.is_empty()
}

fn many_clusters(first: u64, count: u64, kind: Kind, bug: Option<PlantedBug>) -> bool {
    let option = match kind {
        Kind::Plain => "",
        Kind::Moves => " --moves",
        Kind::Grows => " --grows",
        Kind::Resizes => " --resizes",
        Kind::Singles => " --singles",
        Kind::Upgrades => " --upgrades",
    };
    let totals = cluster::sweep(first, count, kind, bug, |report| {
        if let Some(violation) = &report.violation {
            let seed = report.seed;
            println!(
                "seed {seed}: VIOLATION {violation} (replay with: pyralog-sim --cluster{option} --seed {seed})"
            );
        }
    });
    println!("{totals}");
    totals.failed.is_empty()
}
