//! `pyralog-sim`: lives of a simulated node, many by seed range or one with its trace.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use pyralog_sim::{PlantedBug, run, sweep};

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
    /// Use a recycled journal file without a fresh generation.
    ReuseWithoutGeneration,
}

impl From<Bug> for PlantedBug {
    fn from(bug: Bug) -> Self {
        match bug {
            Bug::AckBeforeFlush => Self::AckBeforeFlush,
            Bug::TruncateOnBadChecksum => Self::TruncateOnBadChecksum,
            Bug::ReuseWithoutGeneration => Self::ReuseWithoutGeneration,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bug = arguments.bug.map(PlantedBug::from);
    let failed = match arguments.seed {
        Some(seed) => {
            let report = run(seed, bug, !arguments.quiet);
            report.trace.iter().for_each(|line| println!("{line}"));
            let counts = (report.events, report.acknowledged, report.cut_short, report.coverage);
            println!("seed {seed}: {counts:?} | {}", report.faults);
            if let Some(violation) = &report.violation {
                println!("seed {seed}: VIOLATION {violation}");
            }
            report.violation.is_some()
        }
        None => {
            let totals = sweep(arguments.first, arguments.seeds, bug, |report| {
                if let Some(violation) = &report.violation {
                    println!("seed {}: VIOLATION {violation}", report.seed);
                }
            });
            println!("{totals}");
            !totals.failed.is_empty()
        }
    };
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
