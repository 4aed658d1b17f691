//! What one life is like: drawn from its seed.

use pyralog_core::limits::CHUNK_BYTES;
use pyralog_core::{NodeId, Quorums, ShardId};
use pyralog_shard::engine::planted::PlantedBug;
use pyralog_shard::engine::{EngineConfig, FsyncPolicy};

use crate::faults::FaultPlan;
use crate::rng::Rng;

/// How a phase of a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The power goes.
    Crash,
    /// The node is stopped in good order and started again.
    CleanStop,
    /// Nothing happens: faults of the disk alone.
    GoOn,
}

/// The settings of one life.
#[derive(Clone, Debug)]
pub struct LifeConfig {
    /// Shards of the node.
    pub shards: u16,
    /// The engine's settings (for shard 0; the others differ in shard and journal id).
    pub engine: EngineConfig,
    /// Smallest and largest batch, bytes of values.
    pub value_bytes: (u64, u64),
    /// Batches that producers may make.
    pub produce_budget: u64,
    /// Bytes that they may make.
    pub byte_budget: u64,
    /// Events of each phase and how it ends.
    pub phases: Vec<(u64, Ending)>,
    /// Idempotent producers, other producers, consumers, rogues.
    pub clients: [u64; 4],
    /// Partitions of each topic made at the start, with retention by size and by age (0 = unlimited).
    pub topics: Vec<(u32, i64, i64)>,
    /// Of a hundred batches so many have no timestamp.
    pub timeless_percent: u64,
    /// Slowest pause of a client between two steps, microseconds.
    pub think_us: u64,
    /// Longest time that a reply is held by a slow reader, microseconds.
    pub slow_reader_us: u64,
    /// Which faults the disk has.
    pub plan: FaultPlan,
}

impl LifeConfig {
    /// The settings of the life of this generator.
    pub fn draw(rng: &mut Rng, bug: Option<PlantedBug>) -> Self {
        let shards = if rng.percent(25) { 2 } else { 1 };
        // Large batches fill journal files, so that they are left, recycled and left again in a short life.
        let heavy = rng.percent(25);
        let (value_bytes, produce_budget) = match rng.below(10) {
            _ if heavy => ((rng.pick(&[8, 300 << 10]), 1_040_000), rng.magnitude(60, 200)),
            0..3 => ((8, 200), rng.magnitude(200, 1600)),
            3..6 => ((8, 8 << 10), rng.magnitude(150, 1200)),
            6..8 => ((1 << 10, 128 << 10), rng.magnitude(80, 500)),
            8 => ((8, 1_040_000), rng.magnitude(60, 300)),
            _ => ((200 << 10, 1_040_000), rng.magnitude(10, 40)),
        };
        let mut engine = engine(rng, shards, bug);
        let mut plan = FaultPlan::draw(rng);
        if engine.fsync != FsyncPolicy::EveryWrite {
            // What is not flushed may be lost anyway: a lie could not be told from it.
            plan.be_honest();
        }
        let phases = (0..rng.range(1, 6))
            .map(|_| {
                let ending = match rng.below(10) {
                    0..6 => Ending::Crash,
                    6..9 => Ending::CleanStop,
                    _ => Ending::GoOn,
                };
                (rng.magnitude(if heavy { 600 } else { 60 }, 4000), ending)
            })
            .collect();
        let topics: Vec<_> = (0..rng.range(1, 3))
            .map(|_| {
                let retention = if rng.percent(25) { rng.magnitude(64 << 10, 2 << 20) as i64 } else { 0 };
                (rng.range(1, 4) as u32, retention, 0)
            })
            .collect();
        if heavy {
            engine.max_buffer_time_us = rng.magnitude(5_000, 60_000);
            engine.journal_file_bytes = CHUNK_BYTES as u64;
        }
        let mut life = Self {
            shards,
            engine,
            value_bytes,
            produce_budget,
            byte_budget: if heavy { 64 << 20 } else { 12 << 20 },
            phases,
            clients: [rng.range(1, 4), rng.below(3), rng.range(1, 3), rng.below(2)],
            topics,
            timeless_percent: 0,
            think_us: rng.magnitude(100, 20_000),
            slow_reader_us: if rng.percent(30) { rng.magnitude(1_000, 2_000_000) } else { 500 },
            plan,
        };
        // Drawn last, so that what was drawn before it stays what it was.
        if rng.percent(25) {
            life.timeless_percent = rng.pick(&[3, 50, 100]);
            for (_, _, retention_ms) in &mut life.topics {
                *retention_ms = if rng.percent(60) { rng.magnitude(200, 20_000) as i64 } else { 0 };
            }
        }
        life
    }

    /// Whether everything acknowledged as durable survives a crash.
    pub fn strict(&self) -> bool {
        self.engine.fsync == FsyncPolicy::EveryWrite
    }
}

fn engine(rng: &mut Rng, shards: u16, bug: Option<PlantedBug>) -> EngineConfig {
    let fsync = match rng.below(10) {
        0 => FsyncPolicy::Interval(rng.magnitude(1_000, 100_000)),
        1 => FsyncPolicy::Never,
        _ => FsyncPolicy::EveryWrite,
    };
    // A bit of the identity, so that what else is drawn stays as it was.
    let journal_id = rng.bits() | 1;
    EngineConfig {
        node: NodeId(1),
        shard: ShardId(0),
        shards,
        advertised_address: "sim:9092".into(),
        internal_address: String::new(),
        rack: String::new(),
        feature_levels: pyralog_core::FeatureLevels::OURS,
        topic_quorums: Quorums::default(),
        election: EngineConfig::default().election,
        metadata_replicas: Vec::new(),
        cluster_name: "sim".into(),
        server_version: "sim".into(),
        journal_id,
        disk_id: 0,
        has_begun: false,
        cache_bytes: rng.pick(&[16usize, 16, 24]) << 20,
        replay_memory_bytes: rng.pick(&[0, 4, 8, 64]) << 20,
        cache_enabled: rng.percent(50),
        max_buffer_time_us: rng.magnitude(5_000, 2_000_000),
        fsync,
        journal_file_bytes: CHUNK_BYTES as u64 * rng.pick(&[1, 1, 2]),
        journal_files_ahead: journal_id & 2 == 0,
        journal_writes_in_flight: rng.range(1, 8) as usize,
        segment_max_bytes: rng.magnitude(64 << 10, 4 << 20),
        segment_sync_on_write: rng.percent(50),
        retention_bytes: None,
        retention_ms: None,
        scrub_interval_us: (journal_id & 12 == 12).then_some(2_000_000),
        scrub_bytes_per_s: 16 << 20,
        recovery_bytes_per_s: None,
        request_timeout_us: rng.magnitude(200_000, 5_000_000),
        ack_timeout_us: 5_000_000,
        planted: bug,
    }
}
