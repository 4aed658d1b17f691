//! The table of every key. Parser, `config show` and `docs/configuration.md` derive from it.

use super::Config;
use super::field::{Field, SizeBounds, Unit};
use crate::{FeatureLevels, limits};

/// One key of the configuration.
pub struct Key {
    /// Its place: `section.key`.
    pub path: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// Why the default is what it is, and when to change it.
    pub why: &'static str,
    pub(super) field: for<'a> fn(&'a mut Config) -> Field<'a>,
}

impl Key {
    /// The key at this place.
    pub fn find(path: &str) -> Option<&'static Self> {
        KEYS.iter().find(|k| k.path == path)
    }

    /// The environment variable that overrides it.
    pub fn env_name(&self) -> String {
        format!("PYRALOG__{}", self.path.replace('.', "__").to_uppercase())
    }

    /// The short environment variable that overrides it, if it has one.
    pub fn short_env_name(&self) -> Option<&'static str> {
        SHORT_ENV.iter().find(|(_, path)| *path == self.path).map(|(name, _)| *name)
    }

    /// The value of this key in `config`, as it would be written.
    pub fn render(&self, config: &Config) -> String {
        (self.field)(&mut config.clone()).render()
    }

    /// The value of this key in `config`, for programs: sizes in bytes, durations in the key's unit.
    pub fn json(&self, config: &Config) -> serde_json::Value {
        (self.field)(&mut config.clone()).json()
    }

    /// The default as it would be written.
    pub fn default_text(&self) -> String {
        self.render(&Config::default())
    }

    /// Its type in a word or two.
    pub fn kind(&self) -> &'static str {
        (self.field)(&mut Config::default()).kind()
    }

    /// What may be written.
    pub fn usage(&self) -> String {
        (self.field)(&mut Config::default()).usage()
    }
}

/// Short names of the variables that nearly everybody sets.
pub const SHORT_ENV: [(&str, &str); 4] = [
    ("PYRALOG_NODE_ID", "node.node_id"),
    ("PYRALOG_DATA_DIR", "node.data_dir"),
    ("PYRALOG_LISTEN_ADDRESS", "network.listen_address"),
    ("PYRALOG_CLUSTER_NODES", "node.cluster_nodes"),
];

const HOUR_MS: u64 = 3_600_000;

/// Every key, in the order of the documentation.
pub const KEYS: &[Key] = &[
    Key {
        path: "node.node_id",
        doc: "Number of this node, unique in the cluster.",
        why: "Written into the data folder at the first start; a folder of another node is refused.",
        field: |c| Field::Number(&mut c.node.node_id, 1, u32::MAX),
    },
    Key {
        path: "node.data_dir",
        doc: "Folder of the segments and the node's metadata. Made when it is missing.",
        why: "The current folder, so that a first try needs no rights anywhere else.",
        field: |c| Field::Path(&mut c.node.data_dir),
    },
    Key {
        path: "node.journal_dir",
        doc: "Folder of the journals. Made when it is missing.",
        why: "Put it on the disk with the fastest flush: every acknowledged record waits for this one.",
        field: |c| Field::OptPath(&mut c.node.journal_dir, "journal in node.data_dir"),
    },
    Key {
        path: "node.cluster_name",
        doc: "Name of the cluster, the same on every node of it.",
        why: "Nodes of different clusters refuse each other, so that a wrong address mixes nothing. Name yours when \
              several share a network.",
        field: |c| Field::Name(&mut c.node.cluster_name),
    },
    Key {
        path: "node.cluster_nodes",
        doc: "The cluster's nodes by their internal addresses, this one among them; the same list on every node. Up to \
              five; all of them hold the cluster's metadata.",
        why: "Empty or this node alone: one copy of everything. Three nodes survive the loss of one. Nodes are added and \
              removed while the cluster serves; see docs/operations/scaling.md.",
        field: |c| Field::Nodes(&mut c.node.cluster_nodes),
    },
    Key {
        path: "node.rack",
        doc: "What fails together with this node: a rack, a zone, a power supply.",
        why: "The replicas of a partition go to different racks, as far as there are different ones. A node without one is taken \
              for a rack of its own, so name it on all nodes or on none. It may be changed with a restart; what is placed \
              already moves with `pyralog-admin rebalance`.",
        field: |c| Field::OptName(&mut c.node.rack, "none"),
    },
    Key {
        path: "node.feature_level_max",
        doc: "Highest feature level that this node says it supports.",
        why: "What this release supports. The cluster's level is raised when all nodes support the next one, and never goes down: \
              with a lower one on any node it stays, so that the release before can still be put back. \
              See docs/operations/upgrade.md.",
        field: |c| {
            let levels = FeatureLevels::OURS;
            Field::Number(&mut c.node.feature_level_max, levels.min.into(), levels.max.into())
        },
    },
    Key {
        path: "network.listen_address",
        doc: "Address and port for clients and for HTTP. Port 0 takes a free one.",
        why: "There is no authentication yet, so the default answers this machine only. To serve others, use \
              0.0.0.0:9092 in a network you trust and set network.advertised_address.",
        field: |c| Field::Socket(&mut c.network.listen_address),
    },
    Key {
        path: "network.internal_address",
        doc: "Address and port for other nodes.",
        why: "Needed with several nodes, and refused without. Nothing there is encrypted or authenticated yet: use a \
              network that only the nodes can reach.",
        field: |c| Field::OptSocket(&mut c.network.internal_address, "none"),
    },
    Key {
        path: "network.advertised_address",
        doc: "Address that clients are told to connect to.",
        why: "Needed when clients can't use the listen address: it is 0.0.0.0 or [::], or there is a proxy or a \
              container's port mapping in between.",
        field: |c| Field::OptHostPort(&mut c.network.advertised_address, "network.listen_address"),
    },
    Key {
        path: "network.max_connections",
        doc: "Most client connections at once, on all shards together; further ones are closed at once.",
        why: "Bounds descriptors and memory. `ulimit -n` has to be above it.",
        field: |c| Field::Number(&mut c.network.max_connections, 1, 1_000_000),
    },
    Key {
        path: "network.request_timeout_ms",
        doc: "A produce that is not done in this time is answered with RequestTimedOut, unless the request brings a \
              time of its own.",
        why: "Long enough for a disk that stalls, short enough for a client to try elsewhere.",
        field: |c| Field::Duration(&mut c.network.request_timeout_ms, Unit::Ms, 10, HOUR_MS),
    },
    Key {
        path: "storage.fsync_policy",
        doc: "When a journal write counts as done: `every_write` acknowledges after the flush; `interval(10ms)` \
              acknowledges when written and flushes at that interval; `never` leaves flushing to the operating \
              system.",
        why: "`every_write` loses nothing that was acknowledged. The others lose what was acknowledged since the last \
              flush when the machine loses power (not when only the process dies), and the reply says so.",
        field: |c| Field::Fsync(&mut c.storage.fsync_policy),
    },
    Key {
        path: "storage.segment_config.max_size",
        doc: "Size at which a segment is closed and the next one begun.",
        why: "Retention deletes whole segments: smaller ones follow it more closely, larger ones need fewer files.",
        field: |c| {
            let bounds = SizeBounds { min: 1 << 20, max: 2 << 30, step: 1 };
            Field::Size(&mut c.storage.segment_config.max_size, bounds)
        },
    },
    Key {
        path: "storage.segment_config.sync_on_write",
        doc: "Flush every segment write instead of once per checkpoint.",
        why: "Not needed for durability: the journal keeps a batch until its segment is flushed. It spreads the \
              flushing evenly and shortens the replay after a crash.",
        field: |c| Field::Bool(&mut c.storage.segment_config.sync_on_write),
    },
    Key {
        path: "storage.segment_config.use_mmap",
        doc: "Read segments through memory mappings. Refused when true.",
        why: "A page fault would block a core and every client on it, and a read error would kill the process.",
        field: |c| Field::Bool(&mut c.storage.segment_config.use_mmap),
    },
    Key {
        path: "storage.cache_config.max_size",
        doc: "Memory of the tail cache of the whole node, split equally over the shards in chunks of 4MiB. Each shard \
              needs at least 16MiB. All of it is taken in idle time after the start, and five quarters of it, with two \
              files a shard, of disk for the journals.",
        why: "Batches wait here for the segments and readers near the end are served from here. More of it means \
              fewer, larger segment writes and readers that may lag further behind without touching the disk.",
        field: |c| {
            let min = (limits::MIN_CACHE_CHUNKS * limits::CHUNK_BYTES) as u64;
            let bounds = SizeBounds { min, max: 1 << 42, step: 1 };
            Field::Size(&mut c.storage.cache_config.max_size, bounds)
        },
    },
    Key {
        path: "storage.cache_config.max_buffer_time_ms",
        doc: "Longest time until the writing of a committed batch to its segment begins; that takes at most half as \
              long again, but no more than 5 s, unless the disk is slower.",
        why: "Shorter means less journal to replay after a crash, longer means larger segment writes. Durability does \
              not depend on it.",
        field: |c| Field::Duration(&mut c.storage.cache_config.max_buffer_time_ms, Unit::Ms, 100, HOUR_MS),
    },
    Key {
        path: "storage.cache_config.enabled",
        doc: "Whether batches stay in the cache after they were written to segments.",
        why: "Turn it off only when nobody reads near the end; the memory is set aside either way, because batches \
              wait in it for the segments.",
        field: |c| Field::Bool(&mut c.storage.cache_config.enabled),
    },
    Key {
        path: "storage.retention.bytes",
        doc: "Bytes kept per partition, for topics that do not say otherwise; older segments are deleted.",
        why: "A log that deletes data unasked surprises people. Set it before the disk is full.",
        field: |c| {
            let bounds = SizeBounds { min: 1 << 20, max: 1 << 60, step: 1 };
            Field::OptSize(&mut c.storage.retention.bytes, bounds, "unlimited")
        },
    },
    Key {
        path: "storage.retention.ms",
        doc: "Age at which segments are deleted, for topics that do not say otherwise.",
        why: "As storage.retention.bytes. `7d` is a usual value.",
        field: |c| {
            Field::OptDuration(
                &mut c.storage.retention.ms,
                Unit::Ms,
                1_000,
                24 * 36_500 * HOUR_MS,
                "unlimited",
            )
        },
    },
    Key {
        path: "storage.scrub.interval_ms",
        doc: "How long after the end of a scrub, which reads all segments of a shard and checks every checksum, the next \
              one begins; the first begins an hour after the start of the node at the latest. `never`: only when asked \
              for with `pyralog-admin scrub start`.",
        why: "What rots on one disk is repaired from another replica, as long as it does not rot there as well: the \
              longer nobody looks, the likelier that is.",
        field: |c| {
            let max = 24 * 366 * HOUR_MS;
            Field::OptDuration(&mut c.storage.scrub.interval_ms, Unit::Ms, 60_000, max, "never")
        },
    },
    Key {
        path: "storage.scrub.rate",
        doc: "How fast segments are read for that, per second and node, shared by its shards.",
        why: "Scrubbing is in no hurry: at 16MiB a terabyte takes 18 hours. Reads beside the journal's writes hold back \
              for them besides.",
        field: |c| {
            let bounds = SizeBounds { min: 64 << 10, max: 64 << 30, step: 1 };
            Field::Size(&mut c.storage.scrub.rate, bounds)
        },
    },
    Key {
        path: "storage.journal.file_size",
        doc: "Size of one journal file. Files are written once when they are made, as many as a busy shard needs in its \
              first seconds, and then recycled.",
        why: "Larger files are recycled less often; smaller ones need less disk per shard and are quicker to make.",
        field: |c| {
            let chunk = limits::CHUNK_BYTES as u64;
            let bounds = SizeBounds { min: 2 * chunk, max: 4 << 30, step: chunk };
            Field::Size(&mut c.storage.journal.file_size, bounds)
        },
    },
    Key {
        path: "storage.journal.writes_in_flight",
        doc: "Group commits of one shard that are on their way to the disk at once.",
        why: "With two, the next commit need not wait for the last one to return. More helps disks with deep queues \
              and costs latency on those without.",
        field: |c| Field::Number(&mut c.storage.journal.writes_in_flight, 1, 16),
    },
    Key {
        path: "replication.factor",
        doc: "Copies of each partition, for topics that do not say otherwise.",
        why: "`auto` is three, or as many as node.cluster_nodes names: with three copies one node may be lost for good \
              while another is restarted.",
        field: |c| {
            Field::OptNumber(&mut c.replication.factor, 1, limits::MAX_REPLICATION_FACTOR.into(), "auto")
        },
    },
    Key {
        path: "replication.write_quorum",
        doc: "Copies that must be durable before a record is acknowledged, for topics that do not say otherwise.",
        why: "`auto` is a majority, the least that is safe: two leaders can't both reach it. More of them survive more \
              losses at once, and the slowest of them decides how long an acknowledgement takes.",
        field: |c| {
            Field::OptNumber(
                &mut c.replication.write_quorum,
                1,
                limits::MAX_REPLICATION_FACTOR.into(),
                "auto",
            )
        },
    },
    Key {
        path: "replication.read_quorum",
        doc: "Copies that a linearizable read asks, for topics that do not say otherwise.",
        why: "`auto` is a majority. Together with the write quorum it has to be more than the number of copies, so that \
              every read meets every acknowledged write.",
        field: |c| {
            Field::OptNumber(&mut c.replication.read_quorum, 1, limits::MAX_REPLICATION_FACTOR.into(), "auto")
        },
    },
    Key {
        path: "replication.min_insync_replicas",
        doc: "Copies that must be in sync for a partition to take writes with acks `quorum`, for topics that do not say \
              otherwise. A copy is in sync that can be reached and had everything within the last 10 seconds.",
        why: "`auto` is the write quorum: what could not be acknowledged is not worth taking.",
        field: |c| {
            Field::OptNumber(
                &mut c.replication.min_insync_replicas,
                1,
                limits::MAX_REPLICATION_FACTOR.into(),
                "auto",
            )
        },
    },
    Key {
        path: "replication.election_timeout.min_ms",
        doc: "Shortest time without a word from its leader after which a replica asks to be elected.",
        why: "Shorter fails over sooner; too short takes a slow disk or a busy core for a dead leader.",
        field: |c| Field::Duration(&mut c.replication.election_timeout.min_ms, Unit::Ms, 20, 60_000),
    },
    Key {
        path: "replication.election_timeout.max_ms",
        doc: "Longest such time; each replica draws one between the two.",
        why: "Twice the shortest: replicas rarely ask at the same moment and split the votes.",
        field: |c| Field::Duration(&mut c.replication.election_timeout.max_ms, Unit::Ms, 40, 120_000),
    },
    Key {
        path: "replication.heartbeat_ms",
        doc: "How often a leader is heard at least while its partition is in use.",
        why: "Below half of the shortest election timeout, so that one lost message deposes nobody.",
        field: |c| Field::Duration(&mut c.replication.heartbeat_ms, Unit::Ms, 5, 10_000),
    },
    Key {
        path: "replication.ack_timeout_ms",
        doc: "A produce that has its offset and not its quorum in this time is answered with RequestTimedOut; it may \
              still be committed. A shorter time of the request or of network.request_timeout_ms holds instead.",
        why: "Longer than an election, so that a fail-over is waited for rather than told.",
        field: |c| Field::Duration(&mut c.replication.ack_timeout_ms, Unit::Ms, 10, HOUR_MS),
    },
    Key {
        path: "replication.recovery_rate",
        doc: "How fast a node fetches what its replicas lack and others have in segments only, per second, all of its shards \
              together; it holds for repairs of damaged segments too. What one shard does not use the others may.",
        why: "A new, empty or long absent replica is to be complete soon, and nobody else is to notice: the default copies \
              100GiB in an hour. More where the disks have plenty to spare, `unlimited` where nobody writes; \
              docs/operations/scaling.md.",
        field: |c| {
            let bounds = SizeBounds { min: 64 << 10, max: 64 << 30, step: 1 };
            Field::OptSize(&mut c.replication.recovery_rate, bounds, "unlimited")
        },
    },
    Key {
        path: "runtime.shards",
        doc: "Number of shards, each with a thread on a core of its own. With another number than before the node's partitions go to \
              other shards when it starts, see docs/operations/scaling.md.",
        why: "One per CPU that the process may use. Fewer leave room for other programs.",
        field: |c| Field::OptNumber(&mut c.runtime.shards, 1, limits::MAX_SHARDS as u32, "auto"),
    },
    Key {
        path: "runtime.cpus",
        doc: "CPUs that the shards run on, one each, in ascending order.",
        why: "`auto` takes those the process may use. Name them to keep shards off the CPUs of other programs. One CPU \
              left without a shard takes the helpers and the kernel's workers, which the slowest requests wait for \
              otherwise.",
        field: |c| Field::Cpus(&mut c.runtime.cpus),
    },
    Key {
        path: "runtime.spin_us",
        doc: "How long a core without work polls before it sleeps.",
        why: "Waking a sleeping core takes about 50 µs. Polling saves that but uses the whole core: only for cores \
              that nothing else runs on, and not the one that takes the disk's interrupts, where the kernel's own \
              worker ends each durable write and would wait behind the polling.",
        field: |c| Field::Duration(&mut c.runtime.spin_us, Unit::Us, 0, 10_000),
    },
    Key {
        path: "runtime.hugepages",
        doc: "Pages of the big buffers: `off`, `transparent` (large pages when the kernel has some) or `explicit` \
              (reserved ones, vm.nr_hugepages).",
        why: "A large page is one fault instead of 512: that makes a replay of many GiB several times as fast and \
              spares the first write to a buffer. `explicit` needs pages reserved beforehand.",
        field: |c| Field::Hugepages(&mut c.runtime.hugepages),
    },
    Key {
        path: "runtime.memory",
        doc: "Refuse to start when the sum of all bounds of memory, which the node prints, is above this.",
        why: "The node never needs more than that sum. Set this to what the machine or container can spare.",
        field: |c| {
            let bounds = SizeBounds { min: 64 << 20, max: 1 << 50, step: 1 };
            Field::OptSize(&mut c.runtime.memory, bounds, "unlimited")
        },
    },
];
