//! The command line of `pyralog-admin`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::units::parse_bytes;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; `produce`: every record was acknowledged; `log verify`: no damage
  1  a request was refused, a record was not acknowledged, or damage was found or stays
  2  the command line is wrong
  4  the cluster cannot be reached";

/// Administers a Pyralog cluster over its client port, and checks data folders offline.
#[derive(Debug, Parser)]
#[command(name = "pyralog-admin", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    /// Addresses of the cluster's nodes; the first that answers is used.
    #[arg(
        long,
        global = true,
        env = "PYRALOG_CLUSTER",
        value_name = "HOST:PORT[,...]",
        value_delimiter = ',',
        default_value = "127.0.0.1:9092"
    )]
    pub(crate) cluster: Vec<String>,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON value.
    Json,
    /// One YAML document.
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The cluster's nodes and shards.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Create, list, look at and delete topics.
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Append lines to a topic, each as one record.
    Produce(Produce),
    /// Print a topic's records.
    Consume(Consume),
    /// Have the replicas of a partition be on other nodes, and wait until they are; without a partition: list what is on its way.
    Reassign(Reassign),
    /// Which node leads a partition.
    #[command(subcommand)]
    Leaders(LeadersCommand),
    /// Even out replicas and leaders over the nodes that there are: shows what would move, asks, moves it.
    Rebalance(Rebalance),
    /// Have nodes read their segments again, find what has rotted, and repair it from other replicas.
    #[command(subcommand)]
    Scrub(ScrubCommand),
    /// The last resort for a partition whose quorum is lost.
    #[command(subcommand)]
    Partition(PartitionCommand),
    /// Check the files of a node that is not running.
    #[command(subcommand)]
    Log(LogCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// The nodes, which of them are up, who leads how much, and how much is not in sync.
    Info,
    /// Let a node come that the settings of the others do not name, without restarting any of them.
    AddNode(AddNode),
    /// Have a node hold nothing any more, and leave the cluster for good.
    RemoveNode(RemoveNode),
    /// Start a cluster on this machine, for trying things out; go on with one that was stopped.
    StartLocal(StartLocal),
    /// Stop such a cluster. Its data stays.
    StopLocal(StopLocal),
}

/// Options of `cluster start-local`.
#[derive(Debug, Args)]
pub(crate) struct StartLocal {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=5))]
    pub(crate) nodes: u16,
    /// Folder of the nodes' data, logs and configurations.
    #[arg(long, default_value = "./pyralog-local")]
    pub(crate) dir: PathBuf,
    /// Client port of the first node; the others follow, and their internal ports are 100 above.
    #[arg(long, default_value_t = 9092, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
}

/// Options of `cluster stop-local`.
#[derive(Debug, Args)]
pub(crate) struct StopLocal {
    /// The folder that it was started with.
    #[arg(long, default_value = "./pyralog-local")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PartitionCommand {
    /// Have one replica go on alone when the nodes of the others are lost for good. Shows what would be lost, and does nothing without
    /// --accept-data-loss.
    Recover(Recover),
}

#[derive(Args, Debug)]
pub(crate) struct Recover {
    /// TOPIC/PARTITION.
    #[arg(value_parser = parse_topic_partition)]
    pub(crate) partition: TopicPartition,
    /// The node whose replica goes on, where several answer.
    #[arg(long)]
    pub(crate) from: Option<u32>,
    /// Do it. What only the lost nodes had is lost for good.
    #[arg(long)]
    pub(crate) accept_data_loss: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic; returns when every shard serves its partitions. What is not named is as the nodes' settings say.
    Create {
        /// 1 to 249 of a-z A-Z 0-9 . _ -
        name: String,
        /// How many partitions.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        partitions: u32,
        #[command(flatten)]
        settings: TopicSettings,
    },
    /// All topics.
    List,
    /// One topic.
    Get {
        /// Its name.
        name: String,
        /// With the state of every partition.
        #[arg(long)]
        detailed: bool,
    },
    /// Change the settings of a topic, or add partitions; what is not named stays as it is. With another number of copies, returns when
    /// every partition has so many; interrupted, those under way go on, and asked again it goes on from there.
    Alter {
        /// Its name.
        name: String,
        /// How many partitions it is to have. Records stay where they are; of keys that choose a partition, some choose another one
        /// from then on.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        #[command(flatten)]
        settings: TopicSettings,
        /// So many partitions at once get other replicas, where the number of copies changes.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
        at_once: u16,
        /// No progress bar.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Delete a topic and all its records.
    Delete {
        /// Its name.
        name: String,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

/// What `topic create` and `topic alter` can say of a topic.
#[derive(Args, Debug)]
pub(crate) struct TopicSettings {
    /// Copies of each partition, each on a node of its own, at most 5.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) replication_factor: Option<u8>,
    /// Copies that must be durable before a record is acknowledged: a majority or more.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) write_quorum: Option<u8>,
    /// Copies that a linearizable read asks; with the write quorum more than all copies.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) read_quorum: Option<u8>,
    /// Copies that must be in sync for a partition to take writes.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) min_insync_replicas: Option<u8>,
    /// Keep at most this much per partition, e.g. 10GiB; 0 = no bound.
    #[arg(long, value_parser = parse_bytes)]
    pub(crate) retention_bytes: Option<u64>,
    /// Keep records for this long, milliseconds; 0 = for ever.
    #[arg(long)]
    pub(crate) retention_ms: Option<u64>,
}

/// The partition serves as before while its replicas move, and goes on when this command is interrupted. One more order of the same
/// nodes changes which of them leads; asked again, the partition goes where it was last said to.
#[derive(Args, Debug)]
pub(crate) struct Reassign {
    /// The partition, e.g. orders/2.
    #[arg(value_name = "TOPIC/PARTITION", value_parser = parse_topic_partition)]
    pub(crate) partition: Option<TopicPartition>,
    /// Nodes that are to have it, as many as the topic has replicas; the first one leads when it can.
    #[arg(
        long,
        value_name = "NODE,...",
        value_delimiter = ',',
        requires = "partition",
        conflicts_with = "cancel"
    )]
    pub(crate) to: Vec<u32>,
    /// Take a move back that is under way: the partition stays where it was.
    #[arg(long, requires = "partition")]
    pub(crate) cancel: bool,
    /// Do not wait until it has arrived.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// No progress bar.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Begin now, and wait until everything is read; exit code 1 when something stays damaged.
    Start(ScrubStart),
    /// How far each shard is, and what has been found since its node started.
    Status,
}

/// It reads at the pace of storage.scrub.rate, and goes on when this command is interrupted.
#[derive(Args, Debug)]
pub(crate) struct ScrubStart {
    /// This node only. Default: all of them.
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<u32>,
    /// Do not wait until everything is read.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// No progress bar.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LeadersCommand {
    /// Have another replica lead a partition, now and whenever it can; waits until it does.
    Transfer {
        /// The partition, e.g. orders/2.
        #[arg(value_name = "TOPIC/PARTITION", value_parser = parse_topic_partition)]
        partition: TopicPartition,
        /// The node that is to lead; it has a replica.
        #[arg(long, value_name = "NODE")]
        to: u32,
    },
}

/// Partitions serve as before while they move. Interrupted, those under way go on; asked again, it goes on from where it is.
#[derive(Args, Debug)]
pub(crate) struct Rebalance {
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Show what would move, and nothing more.
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
    /// Take back whatever is on its way.
    #[arg(long, conflicts_with_all = ["yes", "dry_run"])]
    pub(crate) cancel: bool,
    /// So many partitions move at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) at_once: u16,
    /// No progress bar.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Start it afterwards, with an empty data folder and settings that name itself and the others.
#[derive(Args, Debug)]
pub(crate) struct AddNode {
    /// Its id, and where the other nodes connect to it, as in node.cluster_nodes: ID@HOST:PORT.
    #[arg(value_parser = parse_node)]
    pub(crate) node: (u32, String),
    /// Wait until it has joined.
    #[arg(long)]
    pub(crate) wait: bool,
}

fn parse_node(text: &str) -> Result<(u32, String), String> {
    let (id, address) = text.split_once('@').ok_or("write ID@HOST:PORT, such as 4@10.0.0.4:9093")?;
    let id = id.parse().map_err(|_| format!("{id:?} is no id of a node; write a number from 1"))?;
    Ok((id, address.to_owned()))
}

/// Its replicas go to the others; then it leaves the metadata. Refused when the others could not go on without it.
#[derive(Args, Debug)]
pub(crate) struct RemoveNode {
    /// The node's id.
    pub(crate) node: u32,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// So many partitions move at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) at_once: u16,
    /// No progress bar.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// A partition by the name of its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicPartition {
    pub(crate) topic: String,
    pub(crate) partition: u32,
}

fn parse_topic_partition(text: &str) -> Result<TopicPartition, String> {
    let wrong = || format!("{text:?} is no partition; write the topic's name and a number, as in orders/2");
    let (topic, partition) = text.rsplit_once('/').ok_or_else(wrong)?;
    let partition = partition.parse().map_err(|_| wrong())?;
    Ok(TopicPartition { topic: topic.to_owned(), partition })
}

/// How a batch's records are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionArg {
    None,
    Lz4,
    Zstd,
}

/// When a produce is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcksArg {
    /// As soon as the record has its offset; it can be lost.
    None,
    /// When the leader's journal holds it.
    Leader,
    /// When a quorum of journals holds it.
    Quorum,
}

/// Lines become records: the value is the line without its newline, so `consume` gives back the same bytes, even
/// when the last line has no newline (that record carries the header `pyralog.eol` = `none`). Records keep their
/// order within a partition; a file comes back whole from one partition only.
#[derive(Args, Debug)]
pub(crate) struct Produce {
    /// The topic.
    pub(crate) topic: String,
    /// Where the lines come from; `-` is standard input.
    #[arg(default_value = "-")]
    pub(crate) file: PathBuf,
    /// The partition. Default: by the key's hash (murmur2, as Kafka's clients), without a key batches take turns.
    #[arg(long)]
    pub(crate) partition: Option<u32>,
    /// What stands before the first of these is the record's key; a line without it has no key. `\t` is a tab.
    #[arg(long, value_name = "S", value_parser = parse_separator)]
    pub(crate) key_separator: Option<String>,
    /// Compression of the batches.
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub(crate) compression: CompressionArg,
    /// Records go out when a batch has this many bytes, at most 1 MiB.
    #[arg(long, default_value = "256KiB", value_parser = parse_bytes)]
    pub(crate) batch_size: u64,
    /// When a record counts as acknowledged.
    #[arg(long, value_enum, default_value_t = AcksArg::Quorum)]
    pub(crate) acks: AcksArg,
    /// Keep trying for this long when the cluster does not answer, seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) retry_for: u64,
    /// No progress bar.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Which of the topic's partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartitionArg {
    All,
    One(u32),
}

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Beginning,
    End,
    Offset(i64),
    /// Milliseconds since the Unix epoch.
    Time(i64),
}

/// Who may answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadFrom {
    /// The leader, from what it knows.
    Leader,
    /// The leader, when a majority has confirmed that it leads: everything acknowledged before.
    Linearizable,
    /// Any replica, from what it knows to be committed: also without a leader. Not with --follow.
    AnyReplica,
}

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordFormat {
    /// The value and a newline.
    Raw,
    /// One JSON object per line, with offset, timestamp, key and headers.
    Json,
}

/// Partitions are read one after the other with `--exit-at-end`, and as records come with `--follow`.
#[derive(Args, Debug)]
pub(crate) struct Consume {
    /// The topic.
    pub(crate) topic: String,
    /// `all` or a number.
    #[arg(long, default_value = "all", value_parser = parse_partition)]
    pub(crate) partition: PartitionArg,
    /// beginning | end | offset:N | time:T. T is milliseconds since the Unix epoch, a time as
    /// 2026-01-31T12:00:00Z, or -15m for fifteen minutes ago.
    #[arg(long, default_value = "beginning", value_parser = parse_from, value_name = "WHERE")]
    pub(crate) from: From,
    /// Go on with new records until interrupted (the default with `--from end`).
    #[arg(long, conflicts_with = "exit_at_end")]
    pub(crate) follow: bool,
    /// Stop at the end that the log had at the start (the default otherwise).
    #[arg(long)]
    pub(crate) exit_at_end: bool,
    /// Who may answer.
    #[arg(long, value_enum, default_value_t = ReadFrom::Leader)]
    pub(crate) consistency: ReadFrom,
    /// How records are printed.
    #[arg(long, value_enum, default_value_t = RecordFormat::Raw)]
    pub(crate) format: RecordFormat,
    /// Print the key and this before each value that has a key (raw format).
    #[arg(long, value_name = "S", value_parser = parse_separator)]
    pub(crate) key_separator: Option<String>,
    /// Stop after this many records.
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Check every journal, segment and index in a data folder; changes nothing.
    Verify {
        /// The data folder.
        dir: PathBuf,
        /// The journals' folder. Default: `journal` in the data folder, or the data folder itself.
        #[arg(long)]
        journal_dir: Option<PathBuf>,
    },
    /// Print what one journal, segment, index or checkpoint file holds.
    Dump {
        /// The file.
        file: PathBuf,
    },
}

fn parse_separator(text: &str) -> Result<String, String> {
    match text.replace("\\t", "\t") {
        empty if empty.is_empty() => Err("an empty separator separates nothing".into()),
        newline if newline.contains('\n') => Err("lines end at newlines, so one cannot separate keys".into()),
        separator => Ok(separator),
    }
}

fn parse_partition(text: &str) -> Result<PartitionArg, String> {
    match text {
        "all" => Ok(PartitionArg::All),
        number => {
            number.parse().map(PartitionArg::One).map_err(|_| "write `all` or a number from 0 on".into())
        }
    }
}

fn parse_from(text: &str) -> Result<From, String> {
    match text.split_once(':') {
        None if text == "beginning" => Ok(From::Beginning),
        None if text == "end" => Ok(From::End),
        Some(("offset", number)) => match number.parse() {
            Ok(offset @ 0..) => Ok(From::Offset(offset)),
            _ => Err(format!("{number:?} is no offset; offsets are numbers from 0 on")),
        },
        Some(("time", time)) => parse_time(time, std::time::SystemTime::now()).map(From::Time),
        _ => Err("write beginning, end, offset:N or time:T".into()),
    }
}

fn parse_time(text: &str, now: std::time::SystemTime) -> Result<i64, String> {
    if let Ok(ms @ 0..) = text.parse::<i64>() {
        return Ok(ms);
    }
    let moment = match text.strip_prefix('-') {
        Some(ago) => humantime::parse_duration(ago).ok().and_then(|ago| now.checked_sub(ago)),
        None => humantime::parse_rfc3339_weak(text).ok(),
    };
    let since_epoch = moment.and_then(|moment| moment.duration_since(std::time::UNIX_EPOCH).ok());
    since_epoch.and_then(|duration| i64::try_from(duration.as_millis()).ok()).ok_or_else(|| {
        format!("{text:?} is no time; write milliseconds since 1970, 2026-01-31T12:00:00Z, or -15m for 15 minutes ago")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn starting_points() {
        assert_eq!(parse_from("beginning"), Ok(From::Beginning));
        assert_eq!(parse_from("offset:17"), Ok(From::Offset(17)));
        assert_eq!(parse_from("time:1700000000000"), Ok(From::Time(1_700_000_000_000)));
        assert_eq!(parse_from("time:1970-01-02T00:00:00Z"), Ok(From::Time(86_400_000)));
        for bad in ["", "middle", "offset:-1", "offset:x", "time:", "time:soon", "time:-"] {
            assert!(parse_from(bad).is_err(), "{bad}");
        }
        let noon = UNIX_EPOCH + Duration::from_secs(43_200);
        assert_eq!(parse_time("-15m", noon), Ok(42_300_000));
    }

    #[test]
    fn separators() {
        assert_eq!(parse_separator("\\t"), Ok("\t".into()));
        assert!(parse_separator("").is_err() && parse_separator("a\nb").is_err());
    }
}
