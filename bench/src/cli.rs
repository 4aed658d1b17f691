//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use pyralog_core::limits::{
    MAX_BATCH_BYTES, MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION, MAX_PARTITIONS_PER_TOPIC,
};

use crate::cluster::failover::How;
use crate::compare::Peer;
use crate::load::LoadShape;
use crate::options::{ConsumeArgs, FileArgs, FloorArgs, MixedArgs, OutArgs, ReportArgs, SweepArgs};
use crate::produce::BatchShape;

/// Load generator, latency floors and torture for Pyralog.
#[derive(Debug, Parser)]
#[command(name = "pyralog-bench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the bare echo-and-append server, the floor that a node is compared with
    FloorServer(FloorServerArgs),
    /// Measure the latency of produces at a node or at the floor server
    Produce(ProduceArgs),
    /// Measure the floors of this machine: loopback round trip, durable append, and both in one bare program
    Floor(FloorArgs),
    /// Measure from a record's intended send time until a consumer has it, or how fast old records are read
    Consume(ConsumeArgs),
    /// Producers at a rate, consumers at the end and readers from the beginning, all at once: percentiles for each
    Mixed(MixedArgs),
    /// The same rate over 1 and over many partitions or connections, in turns: what the number costs at p99
    Sweep(SweepArgs),
    /// Put runs written with --out beside each other: a Markdown table, and one plot of all curves
    Report(ReportArgs),
    /// Run a node, or three, and the floor servers in turns under the same load and print their ratios
    Pairs(PairsArgs),
    /// Run Pyralog and other systems (Redis, NATS, etcd, PostgreSQL, RabbitMQ) in turns under the same load and print their ratios
    Compare(CompareArgs),
    /// Kill or stop the leader of three nodes again and again under producers: the distribution of the gap they see
    Failover(FailoverArgs),
    /// Three nodes become five and three again under a constant load, while nodes are killed and disks are lost
    Life(LifeArgs),
    /// Measure what a follower that stands still (SIGSTOP) costs those who write to three nodes
    StoppedFollower(StoppedArgs),
    /// Measure what it costs producers that a node gets everything again, and how fast that goes
    Recovery(RecoveryArgs),
    /// Create many partitions on three nodes, write to each, kill all nodes, and measure what idle ones cost
    IdleGroups(IdleArgs),
    /// Measure what the disk gives: sequential bandwidth and durable appends
    Disk(DiskArgs),
    /// Try to break a node
    #[command(subcommand)]
    Torture(Torture),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// How durable a reply has to be at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LeastDurability {
    /// On the stable storage of a quorum.
    Quorum,
    /// In the leader's journal file, maybe not flushed: what `fsync_policy` interval and never give.
    Written,
}

const MAX_OUTSTANDING: i64 = MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION as i64;
/// The node refuses what does not fit into a batch; this only keeps a typing error from filling the memory.
const MAX_RECORDS: i64 = 100_000;
const MAX_RECORD_BYTES: i64 = MAX_BATCH_BYTES as i64 - 1024;

/// Arguments of `floor-server`.
#[derive(Debug, Args)]
pub struct FloorServerArgs {
    /// Address to listen on; port 0 takes a free one (the first line printed names it)
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Folder for the append file
    #[arg(long)]
    pub dir: PathBuf,
    /// CPU to run on
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Size of the append file, MiB
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u64).range(1..=65_536))]
    pub file_mib: u64,
    /// Appends under way at once
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=16))]
    pub writes_in_flight: u64,
    /// Never sleep: ask for what is done again and again, on a CPU of its own
    #[arg(long)]
    pub spin: bool,
    /// Other floor servers: each append goes to them, too, and is answered when a majority has it
    #[arg(long, value_delimiter = ',')]
    pub followers: Vec<SocketAddr>,
}

/// Shape of a load.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Connections
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=10_000))]
    pub connections: u64,
    /// Requests under way per connection, at most [default: 1 in a closed loop, 256 in an open one]
    #[arg(long, value_parser = value_parser!(u64).range(1..=MAX_OUTSTANDING as u64))]
    pub outstanding: Option<u64>,
    /// Records in each request
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=MAX_RECORDS as u64))]
    pub records: u64,
    /// Size of a record's value, bytes
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u64).range(0..=MAX_RECORD_BYTES as u64))]
    pub record_bytes: u64,
    /// Measured time
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Time before, not measured, seconds
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u64).range(0..=3_600))]
    pub warmup: u64,
    /// Requests a second over all connections at fixed times (open loop): latency counts from the time at which a
    /// request should have been sent. Or `max`: each reply makes room for the next request (closed loop), and latency
    /// counts from when it was sent [default: 1000 for produce; max where two sides are compared in turns]
    #[arg(long, value_parser = parse_rate, conflicts_with = "closed_loop", value_name = "N|max")]
    pub rate: Option<Rate>,
    /// Closed loop: the same as --rate max
    #[arg(long)]
    pub closed_loop: bool,
}

/// How fast requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// As fast as replies come: a closed loop.
    Max,
    /// So many a second at fixed times: an open loop.
    PerSecond(f64),
}

/// What a measurement of one node sends if nothing else is said: little enough for any machine, so that the figures
/// are those of single requests and not of a queue.
pub const DEFAULT_RATE: Rate = Rate::PerSecond(1000.0);
/// Room enough in an open loop that a stall of some seconds is sent on time to the server, which is what holds it up.
const OPEN_LOOP_OUTSTANDING: u64 = 256;

impl LoadArgs {
    /// What each request carries.
    pub fn batch(&self) -> BatchShape {
        BatchShape { records: self.records as usize, record_bytes: self.record_bytes as usize }
    }

    /// The same for the load generator; a closed loop if no rate is given. For comparisons, where one request under
    /// way is what both sides can do.
    pub fn shape(&self) -> LoadShape {
        self.shape_at(Rate::Max)
    }

    /// The same, with another rate for one that is not given.
    pub fn shape_at(&self, default: Rate) -> LoadShape {
        let rate = match self.rate.unwrap_or(if self.closed_loop { Rate::Max } else { default }) {
            Rate::Max => None,
            Rate::PerSecond(rate) => Some(rate),
        };
        let outstanding = if rate.is_some() { OPEN_LOOP_OUTSTANDING } else { 1 };
        LoadShape {
            outstanding: self.outstanding.unwrap_or(outstanding) as usize,
            rate,
            warmup: Duration::from_secs(self.warmup),
            measured: Duration::from_secs(self.seconds),
        }
    }
}

/// Arguments of `produce`.
#[derive(Debug, Args)]
pub struct ProduceArgs {
    /// Address of the server
    #[arg(long)]
    pub addr: SocketAddr,
    /// Topic to produce to; it must exist
    #[arg(long, required_unless_present = "floor", conflicts_with = "floor")]
    pub topic: Option<String>,
    /// The server is a floor server
    #[arg(long)]
    pub floor: bool,
    /// A reply that is less durable ends the run
    #[arg(long, value_enum, default_value_t = LeastDurability::Quorum, conflicts_with = "floor")]
    pub durability: LeastDurability,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=64))]
    pub threads: u64,
    /// CPU of the load generator's threads
    #[arg(long)]
    pub cpu: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub load: LoadArgs,
    /// Run the same load on the bare floor server before and after, in this folder, which should be on the disk that
    /// the node uses, and end the report with the ratio to it. Takes three times as long
    #[arg(long)]
    pub floor_dir: Option<PathBuf>,
    /// Appends that the floor server keeps under way
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=16))]
    pub floor_writes_in_flight: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub out: OutArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Arguments of `pairs`.
#[derive(Debug, Args)]
pub struct PairsArgs {
    /// The `pyralog` program
    #[arg(long)]
    pub server: PathBuf,
    /// Three nodes, and three floor servers: each write is durable on two of three
    #[arg(long, conflicts_with_all = ["server_cpu", "client_cpu"])]
    pub cluster: bool,
    /// Folder on the disk to be measured; a temporary one is made in it and removed
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// Pairs of runs
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=100))]
    pub pairs: u64,
    /// CPU of the servers [default: the one that takes the disk's interrupts]
    #[arg(long)]
    pub server_cpu: Option<usize>,
    /// CPU of the load generator [default: any]
    #[arg(long)]
    pub client_cpu: Option<usize>,
    /// Appends that the floor server keeps under way
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=16))]
    pub floor_writes_in_flight: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub load: LoadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub out: OutArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Three nodes to be measured.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// The `pyralog` program
    #[arg(long, default_value = "target/release/pyralog")]
    pub server: PathBuf,
    /// Folder on the disk to be used; a temporary one is made in it and removed
    #[arg(long)]
    pub dir: PathBuf,
    /// CPUs of the nodes, one each, in turns [default: all, those with the disk's interrupts last]
    #[arg(long, value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

impl ClusterArgs {
    /// The CPUs given, or all that there are.
    pub fn cpus(&self) -> Vec<usize> {
        if self.cpus.is_empty() { crate::host::node_cpus(&self.dir) } else { self.cpus.clone() }
    }
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// With whom; one that is not installed is left out and named [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub peers: Vec<Peer>,
    /// Nodes of each system: one, or three of which two have to have a record durably
    #[arg(long, default_value_t = 1, value_parser = parse_nodes)]
    pub nodes: usize,
    /// Folders in which their programs are looked for before those in PATH
    #[arg(long, value_delimiter = ',')]
    pub programs: Vec<PathBuf>,
    /// Rounds; each measures each system once
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=1_000))]
    pub rounds: u64,
    /// The load
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub out: OutArgs,
}

/// Arguments of `failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// The cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// How often
    #[arg(long, default_value_t = 30, value_parser = value_parser!(u64).range(1..=10_000))]
    pub times: u64,
    /// How the leader ends
    #[arg(long, value_enum, default_value_t = How::Kill)]
    pub how: How,
    /// Producers, each with one record of 256 bytes on its way
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u64).range(1..=1_000))]
    pub producers: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub files: FileArgs,
}

/// Arguments of `life`.
#[derive(Debug, Args)]
pub struct LifeArgs {
    /// The cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// How long it takes, at least
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=24 * 60))]
    pub minutes: u64,
    /// Records of 256 bytes a second, at fixed times: latency counts from when one is due
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
    /// Producers, each with at most one record on its way
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=1_000))]
    pub producers: u32,
    /// Partitions, with three replicas each
    #[arg(long, default_value_t = 6, value_parser = value_parser!(u32).range(1..=1_000))]
    pub partitions: u32,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub files: FileArgs,
}

/// Arguments of `stopped-follower`.
#[derive(Debug, Args)]
pub struct StoppedArgs {
    /// The cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Rounds of two measurements each
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=1_000))]
    pub rounds: u64,
    /// The load
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub out: OutArgs,
}

/// Arguments of `recovery`.
#[derive(Debug, Args)]
pub struct RecoveryArgs {
    /// The cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What the partition holds, MiB: so much that no recovery is over before its measurement is, and more than the cache
    #[arg(long, default_value_t = 2048, value_parser = value_parser!(u64).range(1..=1_048_576))]
    pub mib: u64,
    /// Rounds of four measurements each
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(0..=1_000))]
    pub rounds: u64,
    /// Recoveries without a limit that nobody writes beside
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(0..=1_000))]
    pub alone: u64,
    /// The load; 1,000 requests a second if not said
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub out: OutArgs,
}

/// Arguments of `idle-groups`.
#[derive(Debug, Args)]
pub struct IdleArgs {
    /// The cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Partitions, three replicas each
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=100_000))]
    pub groups: u32,
    /// Time before the nodes are watched, seconds: leaders go home a few a second
    #[arg(long, default_value_t = 90, value_parser = value_parser!(u64).range(0..=36_000))]
    pub settle: u64,
    /// How long the idle nodes are watched, seconds
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
}

/// Arguments of `disk`.
#[derive(Debug, Args)]
pub struct DiskArgs {
    /// Folder on the disk to be measured
    #[arg(long)]
    pub dir: PathBuf,
    /// Size of the file, MiB; it is removed afterwards
    #[arg(long, default_value_t = 1024, value_parser = value_parser!(u64).range(1..=1_048_576))]
    pub file_mib: u64,
    /// Durable 4 KiB appends
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=100_000_000))]
    pub appends: u64,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// The ways of `torture`. All are bounded in number and time and speak to the address given only.
#[derive(Debug, Subcommand)]
pub enum Torture {
    /// Open, half-close, reset and abandon connections in waves; memory and descriptors must stay flat
    Connections(ConnectionsArgs),
    /// Send random, mutated and truncated frames while one good connection produces and checks
    Frames(FramesArgs),
    /// Readers that stop reading, writers that never stop, many partitions; memory must stay within the bound
    Memory(MemoryArgs),
    /// Kill the node again and again under an idempotent producer; every acknowledged line must be there once
    Kill(KillArgs),
}

/// Arguments of `torture connections`.
#[derive(Debug, Args)]
pub struct ConnectionsArgs {
    /// Address of the node
    #[arg(long)]
    pub addr: SocketAddr,
    /// Process id of the node, for its memory and descriptors
    #[arg(long)]
    pub pid: u32,
    /// Connections in total
    #[arg(long, default_value_t = 12_000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    pub count: u64,
    /// Connections open at once
    #[arg(long, default_value_t = 2_000, value_parser = value_parser!(u64).range(1..=20_000))]
    pub wave: u64,
    /// Memory that the node may gain after the first wave, MiB
    #[arg(long, default_value_t = 8)]
    pub slack_mib: u64,
}

/// Arguments of `torture frames`.
#[derive(Debug, Args)]
pub struct FramesArgs {
    /// Address of the node
    #[arg(long)]
    pub addr: SocketAddr,
    /// Frames
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    pub count: u64,
    /// Seed of every random choice; the same seed sends the same frames
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Give up after this time, seconds
    #[arg(long, default_value_t = 1_200)]
    pub max_seconds: u64,
}

/// Arguments of `torture memory`.
#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// Address of the node
    #[arg(long)]
    pub addr: SocketAddr,
    /// Process id of the node
    #[arg(long)]
    pub pid: u32,
    /// Resident memory that the node may reach, bytes (it prints its bound at its start)
    #[arg(long)]
    pub bound: u64,
    /// Partitions
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=i64::from(MAX_PARTITIONS_PER_TOPIC)))]
    pub partitions: u32,
    /// Connections that ask for data and never read it
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u64).range(0..=5_000))]
    pub readers: u64,
    /// Connections that produce without end
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u64).range(1..=64))]
    pub writers: u64,
    /// How long
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Stop writing after this much, MiB: it all goes to the node's disk
    #[arg(long, default_value_t = 8_192)]
    pub write_mib: u64,
}

/// Arguments of `torture kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The `pyralog` program
    #[arg(long)]
    pub server: PathBuf,
    /// Folder for the node; a temporary one is made in it and removed unless something is wrong
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// The file whose lines are produced
    #[arg(long)]
    pub file: PathBuf,
    /// How often to kill the node
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(0..=1_000))]
    pub kills: u64,
    /// Seed of the moments
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Program for the offline check, run as `PROGRAM log verify DIR` [default: pyralog-admin beside --server]
    #[arg(long)]
    pub admin: Option<PathBuf>,
}

pub(crate) fn parse_rate(text: &str) -> Result<Rate, String> {
    match text.parse::<f64>() {
        _ if text == "max" => Ok(Rate::Max),
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Rate::PerSecond(rate)),
        _ => Err("give requests per second, above 0, or max".to_owned()),
    }
}

fn parse_nodes(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("give 1 or 3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &[&str]) -> String {
        let all = std::iter::once("pyralog-bench").chain(args.iter().copied());
        Cli::try_parse_from(all).expect_err("must be refused").to_string()
    }

    #[test]
    fn wrong_arguments_are_refused_with_their_name() {
        assert!(refused(&["produce", "--addr", "127.0.0.1:1"]).contains("--topic"));
        assert!(refused(&["produce", "--addr", "nowhere", "--floor"]).contains("--addr"));
        let both = ["produce", "--addr", "127.0.0.1:1", "--floor", "--rate", "10", "--closed-loop"];
        assert!(refused(&both).contains("--closed-loop"));
        for rate in ["0", "-1", "NaN", "inf", "x"] {
            let rate = format!("--rate={rate}");
            assert!(refused(&["produce", "--addr", "127.0.0.1:1", "--floor", &rate]).contains("above 0"));
        }
        for outstanding in ["0", "4097", "-1"] {
            let outstanding = format!("--outstanding={outstanding}");
            let text = refused(&["produce", "--addr", "127.0.0.1:1", "--floor", &outstanding]);
            assert!(text.contains("--outstanding"), "{text}");
        }
        assert!(refused(&["pairs"]).contains("--server"));
        assert!(refused(&["compare", "--dir", ".", "--nodes", "2"]).contains("1 or 3"));
        assert!(refused(&["compare", "--dir", ".", "--peers", "kafka"]).contains("rabbitmq"));
        assert!(refused(&["floor-server"]).contains("--dir"));
        assert!(refused(&["torture", "memory", "--addr", "127.0.0.1:1", "--pid", "1"]).contains("--bound"));
        assert!(refused(&["torture", "everything"]).contains("everything"));
    }

    fn load_of(args: &[&str]) -> LoadArgs {
        let all = ["pyralog-bench", "produce", "--addr", "127.0.0.1:1", "--topic", "t"];
        let cli = Cli::try_parse_from(all.iter().chain(args).copied()).unwrap();
        let Command::Produce(args) = cli.command else { panic!() };
        args.load
    }

    #[test]
    fn produce_is_an_open_loop_and_comparisons_have_one_request_under_way() {
        let load = load_of(&[]);
        assert_eq!((load.connections, load.record_bytes), (1, 256));
        let shape = load.shape_at(DEFAULT_RATE);
        assert_eq!((shape.rate, shape.outstanding), (Some(1000.0), 256));
        assert_eq!((load.shape().rate, load.shape().outstanding), (None, 1));
    }

    #[test]
    fn what_is_said_of_the_pace_holds_everywhere() {
        for closed in [load_of(&["--rate", "max"]), load_of(&["--closed-loop"])] {
            assert_eq!(closed.shape_at(DEFAULT_RATE).rate, None);
            assert_eq!(closed.shape_at(DEFAULT_RATE).outstanding, 1);
        }
        let open = load_of(&["--rate", "20.5", "--outstanding", "3"]);
        for shape in [open.shape(), open.shape_at(DEFAULT_RATE)] {
            assert_eq!((shape.rate, shape.outstanding), (Some(20.5), 3));
        }
    }
}
