//! Arguments of the subcommands that measure one node and of those that show what was measured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};
use pyralog_core::limits::{MAX_BATCH_BYTES, MAX_PARTITIONS_PER_TOPIC};

use crate::cli::Output;
use crate::live::{Mode, Monitor};
use crate::load::LoadShape;
use crate::produce::BatchShape;
use crate::report::{self, LoadFacts};
use crate::stamped::{STAMP_BYTES, StampedLoad};

const MAX_RECORD_BYTES: i64 = MAX_BATCH_BYTES as i64 - 1024;

/// Where results go besides stdout.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// Write NAME.json, NAME.hgrm and NAME.svg into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What these files' names begin with [default: the subcommand]
    #[arg(long, requires = "out", value_parser = parse_name)]
    pub name: Option<String>,
}

/// The same, and whether a run tells how it goes.
#[derive(Debug, Args)]
pub struct OutArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub files: FileArgs,
    /// Tell once a second on stderr how it goes; on a terminal it is told anyway
    #[arg(long)]
    pub live: bool,
}

/// Told before a long run, and not after it.
fn parse_name(text: &str) -> Result<String, String> {
    report::ensure_file_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

impl FileArgs {
    /// The files of a run of `command`, if they were asked for.
    pub fn of(&self, command: &str) -> Option<report::Output> {
        let name = self.name.clone().unwrap_or_else(|| command.to_owned());
        self.out.clone().map(|dir| report::Output { dir, name })
    }
}

impl OutArgs {
    /// The files of a run of `command`, if they were asked for.
    pub fn files(&self, command: &str) -> Option<report::Output> {
        self.files.of(command)
    }

    /// How a run tells how it goes.
    pub fn mode(&self) -> Mode {
        Mode::of_stderr(self.live)
    }

    /// What watches a run with this warm-up.
    pub fn monitor(&self, warmup: Duration) -> Monitor {
        Monitor::new(self.mode(), warmup)
    }
}

/// The node to be measured: one that runs, or one that is started for it.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Address of a node that runs [default: start one]
    #[arg(long)]
    pub addr: Option<SocketAddr>,
    /// Topic on that node, which must exist [default: a new one, which stays there]
    #[arg(long, requires = "addr")]
    pub topic: Option<String>,
    /// The `pyralog` program to start
    #[arg(long, default_value = "target/release/pyralog", conflicts_with = "addr")]
    pub server: PathBuf,
    /// Folder on the disk to be measured, for the node that is started; a temporary one is made in it and removed
    #[arg(long, default_value = ".", conflicts_with = "addr")]
    pub dir: PathBuf,
    /// CPU of the node that is started [default: the one that takes the disk's interrupts]
    #[arg(long, conflicts_with = "addr")]
    pub server_cpu: Option<usize>,
    /// CPU of the clients [default: any]
    #[arg(long)]
    pub client_cpu: Option<usize>,
    /// Folder on the node's disk for the floor server, which gets the same load before and after, and for what is
    /// measured of the disk alone [default: --dir; nothing of that with --addr]
    #[arg(long)]
    pub floor_dir: Option<PathBuf>,
}

/// Arguments of `floor`.
#[derive(Debug, Args)]
pub struct FloorArgs {
    /// Folder on the disk to be measured; a temporary one is made in it and removed
    #[arg(long)]
    pub dir: PathBuf,
    /// Time of each measurement, seconds
    #[arg(long, default_value_t = 6, value_parser = value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// Turns in which this time is measured
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// CPU of the servers [default: the one that takes the disk's interrupts]
    #[arg(long)]
    pub server_cpu: Option<usize>,
    /// CPU of the clients [default: another one]
    #[arg(long)]
    pub client_cpu: Option<usize>,
    /// Size of the value of the one record in each request, bytes
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u64).range(0..=128 << 10))]
    pub record_bytes: u64,
    /// Files
    #[command(flatten)]
    pub out: OutArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Producers whose records begin with the time at which they should have been sent.
#[derive(Debug, Args)]
pub struct StampedArgs {
    /// Requests a second over all connections, at fixed times: an open loop always
    #[arg(long, default_value_t = 1000.0, value_parser = parse_open_rate)]
    pub rate: f64,
    /// Connections of producers
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=10_000))]
    pub connections: u64,
    /// Partitions of the topic that is made
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=i64::from(MAX_PARTITIONS_PER_TOPIC)))]
    pub partitions: u32,
    /// Requests under way over all connections, at most
    #[arg(long, default_value_t = 1024, value_parser = value_parser!(u64).range(1..=4_096))]
    pub outstanding: u64,
    /// Records in each request
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=10_000))]
    pub records: u64,
    /// Size of a record's value, bytes; it begins with a time and the run's number
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u64).range(STAMP_BYTES as u64..=MAX_RECORD_BYTES as u64))]
    pub record_bytes: u64,
    /// Measured time, seconds
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Time before, not measured, seconds
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u64).range(0..=3_600))]
    pub warmup: u64,
}

impl StampedArgs {
    /// The same for the load generator that knows no stamps, which loads the floor.
    pub fn facts(&self) -> LoadFacts {
        LoadFacts {
            connections: self.connections as usize,
            threads: 1,
            shape: LoadShape {
                outstanding: self.outstanding.div_ceil(self.connections) as usize,
                rate: Some(self.rate),
                warmup: Duration::from_secs(self.warmup),
                measured: Duration::from_secs(self.seconds),
            },
            batch: BatchShape { records: self.records as usize, record_bytes: self.record_bytes as usize },
        }
    }

    /// The same for one thread of stamped producers of this run.
    pub fn load(&self, run: u64, cpu: Option<usize>) -> StampedLoad {
        let batch = self.facts().batch;
        StampedLoad { run, rate: self.rate, outstanding: self.outstanding as usize, batch, cpu }
    }
}

/// Arguments of `consume`.
#[derive(Debug, Args)]
pub struct ConsumeArgs {
    /// Follow the end of the log: from a record's intended send time until a consumer has it and has checked it
    #[arg(long, required_unless_present = "cold")]
    pub tail: bool,
    /// Read from the beginning what is in no memory, as fast as possible, and see what that does to producers
    #[arg(long, conflicts_with = "tail")]
    pub cold: bool,
    /// The node
    #[command(flatten)]
    pub target: TargetArgs,
    /// The producers
    #[command(flatten)]
    pub load: StampedArgs,
    /// What --cold reads
    #[command(flatten)]
    pub history: HistoryArgs,
    /// Rounds of --cold, each without and with the reader
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Files
    #[command(flatten)]
    pub out: OutArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What cold readers read.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Fill a topic with so much for cold readers, MiB
    #[arg(long, default_value_t = 512, value_parser = value_parser!(u64).range(1..=1_048_576))]
    pub mib: u64,
    /// A topic that is there, on a node given by --addr, instead of one that is filled
    #[arg(long, requires = "addr", conflicts_with = "mib")]
    pub cold_topic: Option<String>,
    /// The data folder of a node given by --addr, to take its files out of the page cache before they are read
    #[arg(long, requires = "addr")]
    pub data_dir: Option<PathBuf>,
}

/// Arguments of `mixed`.
#[derive(Debug, Args)]
pub struct MixedArgs {
    /// The node
    #[command(flatten)]
    pub target: TargetArgs,
    /// The producers
    #[command(flatten)]
    pub load: StampedArgs,
    /// What the cold readers read
    #[command(flatten)]
    pub history: HistoryArgs,
    /// Cold readers
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(0..=64))]
    pub readers: u64,
    /// Files
    #[command(flatten)]
    pub out: OutArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Arguments of `sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// The node; topics are made on it
    #[command(flatten)]
    pub target: TargetArgs,
    /// Requests a second over all connections and partitions, at fixed times
    #[arg(long, default_value_t = 1000.0, value_parser = parse_open_rate)]
    pub rate: f64,
    /// The many of 1 and many partitions
    #[arg(long, default_value_t = 1000, value_parser = value_parser!(u32).range(2..=i64::from(MAX_PARTITIONS_PER_TOPIC)))]
    pub partitions: u32,
    /// The many of 1 and many connections
    #[arg(long, default_value_t = 1000, value_parser = value_parser!(u64).range(2..=10_000))]
    pub connections: u64,
    /// Rounds; each measures both ends of both sweeps
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Size of a record's value, bytes
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u64).range(STAMP_BYTES as u64..=MAX_RECORD_BYTES as u64))]
    pub record_bytes: u64,
    /// Measured time of each run, seconds
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// Time before, not measured, seconds
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(0..=3_600))]
    pub warmup: u64,
    /// Files
    #[command(flatten)]
    pub out: OutArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folders that were given to --out
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// The plot of all curves
    #[arg(long, default_value = "report.svg")]
    pub svg: PathBuf,
}

/// A rate above 0 that is not `max`: a closed loop has no intended send times.
fn parse_open_rate(text: &str) -> Result<f64, String> {
    match crate::cli::parse_rate(text) {
        Ok(crate::cli::Rate::PerSecond(rate)) => Ok(rate),
        _ => Err("give requests per second, above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use crate::cli::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let refused = |args: &[&str]| {
            let all = std::iter::once("pyralog-bench").chain(args.iter().copied());
            Cli::try_parse_from(all).expect_err("must be refused").to_string()
        };
        assert!(refused(&["consume"]).contains("--tail"));
        assert!(refused(&["consume", "--tail", "--cold"]).contains("--cold"));
        assert!(refused(&["consume", "--tail", "--topic", "t"]).contains("--addr"));
        assert!(refused(&["consume", "--tail", "--rate", "max"]).contains("above 0"));
        assert!(refused(&["consume", "--tail", "--record-bytes", "15"]).contains("--record-bytes"));
        let both = ["mixed", "--addr", "127.0.0.1:1", "--dir", "/x"];
        assert!(refused(&both).contains("--dir"));
        assert!(refused(&["floor"]).contains("--dir"));
        assert!(refused(&["report"]).contains("DIR"));
        assert!(refused(&["floor", "--dir", ".", "--name", "x"]).contains("--out"));
        assert!(refused(&["floor", "--dir", ".", "--out", "o", "--name", "../x"]).contains("letters"));
    }
}
