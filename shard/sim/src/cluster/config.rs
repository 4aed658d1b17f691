//! What one life of a cluster is like: drawn from its seed.

use pyralog_core::limits::CHUNK_BYTES;
use pyralog_core::{NodeId, Quorums, ShardId};
use pyralog_replication::raft::Timing;
use pyralog_shard::engine::planted::PlantedBug;
use pyralog_shard::engine::{EngineConfig, FsyncPolicy, PeerId};

use super::faults::{Disks, Troubles};
use super::upgrades::old_levels;
use crate::rng::Rng;

/// A topic as it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicPlan {
    /// Its partitions.
    pub partitions: u32,
    /// Its copies and quorums.
    pub quorums: Quorums,
    /// Its retention by size; 0 = unlimited.
    pub retention_bytes: i64,
}

/// The network of a life.
#[derive(Clone, Copy, Debug)]
pub struct NetworkPlan {
    /// Shortest and longest way of a frame, microseconds.
    pub latency_us: (u64, u64),
    /// Longest time after which an end notices that its link is broken, microseconds.
    pub notice_us: u64,
    /// Longest pause before a link is dialled again, microseconds.
    pub dial_us: u64,
    /// Bytes that may wait in one direction of a link.
    pub queue_bytes: usize,
}

/// The settings of one life of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Nodes.
    pub nodes: usize,
    /// With so many the cluster begins; the others are added later.
    pub first_nodes: usize,
    /// Shards of each node.
    pub shards: usize,
    /// The engine's settings; they differ in node, shard, addresses and journal id.
    pub engine: EngineConfig,
    /// Topics made at the start.
    pub topics: Vec<TopicPlan>,
    /// Smallest and largest batch, bytes of values.
    pub value_bytes: (u64, u64),
    /// Batches that producers may make.
    pub produce_budget: u64,
    /// Bytes that they may make.
    pub byte_budget: u64,
    /// Virtual time until faults stop, microseconds.
    pub active_us: u64,
    /// Idempotent producers, other producers, consumers.
    pub clients: [u64; 3],
    /// The administrator moves partitions between nodes.
    pub moves: bool,
    /// And has topics have other numbers of replicas.
    pub resizes: bool,
    /// The least that they get.
    pub fewest_copies: usize,
    /// Nodes come back with other numbers of shards.
    pub reshards: bool,
    /// Nodes are upgraded.
    pub upgrades: bool,
    /// Consumers ask any replica now and then.
    pub reads_anywhere: bool,
    /// Slowest pause of a client between two steps, microseconds.
    pub think_us: u64,
    /// The network.
    pub network: NetworkPlan,
    /// What goes wrong with network and nodes.
    pub troubles: Troubles,
    /// What goes wrong with disks.
    pub disks: Disks,
}

/// What lives are about, besides what goes wrong in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Three or five nodes, and every partition stays where it is.
    #[default]
    Plain,
    /// Four or five nodes; partitions have three replicas and move between them.
    Moves,
    /// The same with three nodes first, to which two are added.
    Grows,
    /// Partitions move, topics get three, four or five replicas, and nodes one, two or three shards.
    Resizes,
    /// The same from one replica on, whose disks tell no lies.
    Singles,
    /// As with moves, and all nodes are upgraded one by one, until which nothing may move.
    Upgrades,
}

impl ClusterConfig {
    /// The settings of the life of this generator.
    pub fn draw(rng: &mut Rng, bug: Option<PlantedBug>, kind: Kind) -> Self {
        let moves = kind != Kind::Plain;
        let nodes = match rng.percent(25) {
            _ if kind == Kind::Grows => 5,
            _ if moves => 4 + rng.below(2) as usize,
            true => 5,
            false => 3,
        };
        let shards = if rng.percent(15) { 2 } else { 1 };
        let heavy = rng.percent(20);
        let (value_bytes, produce_budget) = match rng.below(10) {
            _ if heavy => ((8, 400 << 10), rng.magnitude(40, 120)),
            0..4 => ((8, 200), rng.magnitude(100, 800)),
            4..8 => ((8, 8 << 10), rng.magnitude(80, 500)),
            _ => ((1 << 10, 64 << 10), rng.magnitude(50, 200)),
        };
        let topic_nodes = if moves || nodes == 5 && rng.percent(50) { 3 } else { nodes };
        let most_liars = if kind == Kind::Singles { 0 } else { (topic_nodes - 1) / 2 };
        let disks = Disks::draw(rng, nodes, most_liars);
        let topics = (0..rng.range(1, 2)).map(|_| {
            let copies = if kind == Kind::Singles { rng.pick(&[1, 1, 3]) } else { topic_nodes };
            topic(rng, copies, disks.liars.len())
        });
        let topics = topics.collect();
        let low_us = rng.magnitude(20, 2_000);
        let first_nodes = if kind == Kind::Grows { 3 } else { nodes };
        let mut engine = engine(rng, first_nodes, shards, heavy, bug);
        if kind == Kind::Upgrades {
            engine.feature_levels = old_levels();
        }
        // So much is written that journal files are begun again.
        let goes_round = heavy && !engine.journal_files_ahead;
        let (produce_budget, byte_budget) = match heavy {
            true if goes_round => (produce_budget * 3, 64 << 20),
            true => (produce_budget, 16 << 20),
            false => (produce_budget, 4 << 20),
        };
        Self {
            nodes,
            shards,
            engine,
            topics,
            value_bytes,
            produce_budget,
            byte_budget,
            active_us: rng.magnitude(1_500_000, 12_000_000),
            clients: [rng.range(1, 3), rng.below(3), rng.range(1, 2)],
            moves,
            resizes: matches!(kind, Kind::Resizes | Kind::Singles),
            fewest_copies: if kind == Kind::Singles { 1 } else { 3 },
            reshards: kind == Kind::Resizes,
            upgrades: kind == Kind::Upgrades,
            first_nodes,
            reads_anywhere: rng.percent(30),
            think_us: rng.magnitude(500, 50_000),
            network: NetworkPlan {
                latency_us: (low_us, low_us * rng.range(2, 10)),
                notice_us: rng.magnitude(1_000, 3_000_000),
                dial_us: rng.magnitude(1_000, 300_000),
                queue_bytes: rng.magnitude(64 << 10, 16 << 20) as usize,
            },
            troubles: Troubles::draw(rng),
            disks,
        }
    }

    /// The shard `shard` of node `node`, from 0.
    pub fn peer(node: usize, shard: usize) -> PeerId {
        PeerId { node: NodeId(node as u32 + 1), shard: ShardId(shard as u16) }
    }
}

/// A topic on `replicas` nodes of which `liars` may fail to hold what they are given.
pub(crate) fn topic(rng: &mut Rng, replicas: usize, liars: usize) -> TopicPlan {
    let copies = replicas as u8;
    let majority = copies / 2 + 1;
    let most = (copies - liars as u8).max(majority);
    let write_quorum =
        if rng.percent(25) { rng.range(u64::from(majority), u64::from(most)) as u8 } else { majority };
    let quorums = Quorums {
        replication_factor: copies,
        write_quorum,
        read_quorum: copies + 1 - write_quorum,
        min_insync_replicas: write_quorum,
    };
    let retention_bytes = if rng.percent(12) { rng.magnitude(64 << 10, 1 << 20) as i64 } else { 0 };
    TopicPlan { partitions: rng.range(1, 3) as u32, quorums, retention_bytes }
}

fn engine(rng: &mut Rng, nodes: usize, shards: usize, heavy: bool, bug: Option<PlantedBug>) -> EngineConfig {
    let election_min_us = rng.pick(&[60_000, 150_000, 400_000]);
    let mut engine = EngineConfig {
        shards: shards as u16,
        topic_quorums: Quorums::default(),
        election: Timing {
            election_min_us,
            election_max_us: election_min_us * 2,
            heartbeat_us: election_min_us / rng.range(3, 6),
        },
        metadata_replicas: (0..nodes).map(|node| ClusterConfig::peer(node, 0)).collect(),
        cluster_name: "sim".into(),
        server_version: "sim".into(),
        journal_id: rng.bits() | 1,
        cache_bytes: 16 << 20,
        cache_enabled: rng.percent(40),
        max_buffer_time_us: if heavy {
            rng.magnitude(5_000, 60_000)
        } else {
            rng.magnitude(5_000, 1_000_000)
        },
        fsync: FsyncPolicy::EveryWrite,
        journal_file_bytes: CHUNK_BYTES as u64,
        journal_writes_in_flight: rng.range(1, 8) as usize,
        segment_max_bytes: rng.magnitude(32 << 10, 2 << 20),
        segment_sync_on_write: rng.percent(50),
        retention_bytes: None,
        retention_ms: None,
        request_timeout_us: rng.magnitude(300_000, 3_000_000),
        planted: bug,
        ..EngineConfig::default()
    };
    // A bit of the identity, so that what else is drawn stays as it was.
    engine.journal_files_ahead = engine.journal_id & 2 == 0;
    engine.scrub_interval_us = (engine.journal_id & 12 == 12).then_some(1_000_000);
    engine.recovery_bytes_per_s =
        [None, Some(32 << 20), Some(4 << 20), Some(1 << 20)][engine.journal_id as usize >> 4 & 3];
    engine
}
