//! One shard: an engine on a disk in memory, with the driver's part played step by step.

use std::collections::HashMap;
use std::sync::Arc;

use pyralog_core::batch::{BatchBuilder, BatchView, Compression};
use pyralog_core::{GroupId, NodeId, Quorums, ShardId};
use pyralog_net::message::{
    Acks, Consistency, CreateTopicRequest, FetchReplyHead, FetchRequest, ProduceRequest, Request, Response,
};
use pyralog_replication::metadata::{Assignment, Catalog, Command, NodeInfo, Replica, TopicSpec};
use pyralog_replication::raft::Timing;

use super::disk::MemDisk;
use crate::engine::{
    Action, ConnId, Engine, EngineConfig, Event, FsyncPolicy, IoOp, LogLevel, Now, ReplyBody, recover,
};
use crate::memory::ChunkSlice;

/// A reply as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Got {
    Message(Response),
    Batches(FetchReplyHead, Vec<u8>),
}

pub(super) struct Shard {
    pub(super) engine: Engine,
    pub(super) disk: MemDisk,
    pub(super) now: Now,
    pub(super) replies: HashMap<u64, Got>,
    pub(super) logs: Vec<(LogLevel, String)>,
    pub(super) recover_wanted: Option<String>,
    pub(super) stopped: bool,
    /// Fetched bytes stay referred to from `unsent`, as by a connection that does not read.
    pub(super) readers_are_slow: bool,
    pub(super) unsent: Vec<ChunkSlice>,
    /// How often slow readers were to be disconnected.
    pub(super) sheds: usize,
    /// Operations are kept back instead of run.
    pub(super) hold_io: bool,
    /// Operations of this kind are kept back instead of run.
    pub(super) hold_only: Option<fn(&IoOp) -> bool>,
    pub(super) held: Vec<Action>,
    pub(super) config: EngineConfig,
    correlation: u64,
}

pub(super) fn config() -> EngineConfig {
    EngineConfig {
        node: NodeId(1),
        shard: ShardId(0),
        shards: 1,
        advertised_address: "127.0.0.1:9092".into(),
        internal_address: String::new(),
        rack: String::new(),
        feature_levels: pyralog_core::FeatureLevels::OURS,
        topic_quorums: Quorums::default(),
        election: Timing { election_min_us: 150_000, election_max_us: 300_000, heartbeat_us: 30_000 },
        metadata_replicas: Vec::new(),
        cluster_name: "test".into(),
        server_version: "test".into(),
        journal_id: 77,
        disk_id: 77,
        has_begun: false,
        cache_bytes: 32 << 20,
        replay_memory_bytes: 0,
        cache_enabled: true,
        max_buffer_time_us: 10_000_000,
        fsync: FsyncPolicy::EveryWrite,
        journal_file_bytes: 8 << 20,
        journal_files_ahead: true,
        journal_writes_in_flight: 2,
        segment_max_bytes: 4 << 20,
        segment_sync_on_write: false,
        retention_bytes: None,
        retention_ms: None,
        scrub_interval_us: None,
        scrub_bytes_per_s: 1 << 30,
        recovery_bytes_per_s: Some(64 << 20),
        request_timeout_us: 30_000_000,
        ack_timeout_us: 30_000_000,
        #[cfg(feature = "planted-bugs")]
        planted: None,
    }
}

impl Shard {
    pub(super) fn start(config: EngineConfig, disk: MemDisk) -> Self {
        Self::try_start(config, disk).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) fn try_start(config: EngineConfig, mut disk: MemDisk) -> Result<Self, String> {
        let now = Now { monotonic_us: 1_000_000, wall_ms: 1_700_000_000_000 };
        let engine = recover(config.clone(), &mut disk, now).map_err(|error| error.to_string())?;
        let mut shard = Self {
            engine,
            disk,
            now,
            replies: HashMap::new(),
            logs: Vec::new(),
            recover_wanted: None,
            stopped: false,
            readers_are_slow: false,
            unsent: Vec::new(),
            sheds: 0,
            hold_io: false,
            hold_only: None,
            held: Vec::new(),
            config,
            correlation: 0,
        };
        let mut actions = Vec::new();
        shard.engine.start(now, &mut actions);
        shard.carry_out(actions);
        Ok(shard)
    }

    /// Dies and comes back with what is on the disk.
    pub(super) fn restart(self) -> Self {
        Self::start(self.config, self.disk)
    }

    pub(super) fn event(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.engine.handle(self.now, event, &mut actions);
        self.engine.end_of_pass(self.now, &mut actions);
        self.carry_out(actions);
    }

    pub(super) fn release_io(&mut self) {
        self.hold_io = false;
        self.hold_only = None;
        let held = std::mem::take(&mut self.held);
        self.carry_out(held);
    }

    /// Runs operations that were held back; what they lead to is held back as before.
    pub(super) fn run(&mut self, held: Vec<Action>) {
        let (hold_io, hold_only) = (std::mem::take(&mut self.hold_io), self.hold_only.take());
        let mut next = Vec::new();
        for action in held {
            self.one(action, &mut next);
        }
        (self.hold_io, self.hold_only) = (hold_io, hold_only);
        self.engine.end_of_pass(self.now, &mut next);
        self.carry_out(next);
    }

    fn carry_out(&mut self, mut actions: Vec<Action>) {
        let mut rounds = 0;
        while !actions.is_empty() {
            rounds += 1;
            assert!(rounds < 100_000, "the engine wants something in every pass: {actions:?}");
            let mut next = Vec::new();
            for action in actions.drain(..) {
                self.one(action, &mut next);
            }
            self.engine.end_of_pass(self.now, &mut next);
            actions = next;
        }
    }

    fn one(&mut self, action: Action, next: &mut Vec<Action>) {
        match action {
            Action::Io { ref op, .. } if self.hold_io || self.hold_only.is_some_and(|held| held(op)) => {
                self.held.push(action)
            }
            Action::Io { token, op } => {
                let result = self.disk.run(op);
                self.engine.handle(self.now, Event::IoDone { token, result }, next);
            }
            Action::Reply { correlation_id, body, .. } => {
                let got = match body {
                    ReplyBody::Message(message) => Got::Message(message),
                    ReplyBody::Fetch { head, slices } => {
                        if self.readers_are_slow {
                            self.unsent.extend(slices.iter().cloned());
                        }
                        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.bytes().to_vec()).collect();
                        assert_eq!(bytes.len(), head.batch_bytes as usize);
                        Got::Batches(head, bytes)
                    }
                };
                assert!(self.replies.insert(correlation_id, got).is_none(), "two replies to one request");
            }
            Action::PublishCatalog { catalog } => {
                self.engine.handle(self.now, Event::CatalogPublished { catalog: Arc::clone(&catalog) }, next);
            }
            Action::CatalogApplied { version } => {
                self.engine.handle(self.now, Event::CatalogApplied { shard: ShardId(0), version }, next);
            }
            Action::Recover { reason } | Action::GiveUp { reason } => self.recover_wanted = Some(reason),
            Action::Log { level, text } => self.logs.push((level, text)),
            Action::Stopped => self.stopped = true,
            Action::ShedSlowReaders { .. } => self.sheds += 1,
            Action::SendPeer { .. }
            | Action::WantPeers { .. }
            | Action::TellLeaders { .. }
            | Action::TellController { .. }
            | Action::WantRecovery { .. } => {}
        }
    }

    pub(super) fn send(&mut self, request: Request<'_>) -> u64 {
        self.correlation += 1;
        let correlation_id = self.correlation;
        self.event(Event::Request { conn: ConnId(1), correlation_id, request });
        correlation_id
    }

    pub(super) fn call(&mut self, request: Request<'_>) -> Got {
        let id = self.send(request);
        self.replies.remove(&id).unwrap_or_else(|| panic!("no reply to request {id}"))
    }

    pub(super) fn create(&mut self, name: &str, partitions: u32) -> u32 {
        let create = CreateTopicRequest {
            name,
            partitions,
            quorums: Quorums::UNSET,
            retention_bytes: -1,
            retention_ms: -1,
        };
        match self.call(Request::CreateTopic(create)) {
            Got::Message(Response::CreateTopic(reply)) => reply.id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn produce(&mut self, group: GroupId, batch: &[u8]) -> Response {
        let request = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch };
        match self.call(Request::Produce(request)) {
            Got::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn fetch(&mut self, group: GroupId, offset: i64, max_bytes: u32) -> Got {
        self.call(Request::Fetch(FetchRequest {
            group,
            offset,
            min_bytes: 0,
            max_bytes,
            max_wait_ms: 0,
            consistency: Consistency::Leader,
        }))
    }

    /// All records from the log start on, as (offset, value).
    pub(super) fn read_all(&mut self, group: GroupId) -> Vec<(i64, Vec<u8>)> {
        let mut records = Vec::new();
        let mut scratch = Vec::new();
        let mut offset = self.engine.partition(group).unwrap().log_start;
        loop {
            let (head, bytes) = match self.fetch(group, offset, 1 << 20) {
                Got::Batches(head, bytes) => (head, bytes),
                other => panic!("fetch at {offset}: {other:?}"),
            };
            if bytes.is_empty() {
                assert_eq!(offset, head.high_watermark);
                return records;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (batch, after) = BatchView::parse(rest).unwrap();
                assert!(batch.verify_crc());
                assert_eq!(batch.base_offset(), offset);
                for record in batch.records(&mut scratch).unwrap() {
                    let record = record.unwrap();
                    records.push((record.offset, record.value.unwrap().to_vec()));
                }
                offset = batch.last_offset() + 1;
                rest = after;
            }
        }
    }

    /// All at once, as a process that stood still sees it.
    pub(super) fn advance(&mut self, us: u64) {
        self.now.monotonic_us += us;
        self.now.wall_ms += (us / 1_000) as i64;
        self.event(Event::Tick);
    }

    /// With a tick whenever the engine wants one, as a process that runs sees it.
    pub(super) fn live(&mut self, us: u64) {
        let end = self.now.monotonic_us + us;
        while let Some(due) = self.engine.next_deadline_us().filter(|due| *due < end) {
            self.advance(due.saturating_sub(self.now.monotonic_us).max(1));
        }
        self.advance(end.saturating_sub(self.now.monotonic_us));
    }
}

/// A batch of one record per value. `producer` is (id, epoch, base sequence).
pub(super) fn batch(timestamp: i64, producer: Option<(i64, i16, i32)>, values: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    if let Some((id, epoch, sequence)) = producer {
        builder.set_producer(id, epoch, sequence);
    }
    for value in values {
        builder.append(timestamp, None, Some(value), &[]).unwrap();
    }
    builder.build(Compression::None).unwrap().to_vec()
}

/// A catalogue of topics with one partition each, all on shard 1.
pub(super) fn catalog(names: &[&str]) -> Catalog {
    let mut catalog = Catalog::at_level(2).unwrap();
    let client_address = "127.0.0.1:9092".to_owned();
    let node = NodeInfo {
        id: 1,
        client_address,
        internal_address: String::new(),
        rack: String::new(),
        shards: 2,
        disk: 77,
        level_min: 1,
        level_max: 2,
        disk_since: 0,
    };
    catalog.apply(&Command::RegisterNode(node)).unwrap();
    for name in names {
        catalog.apply(&create_on_shard_1(name)).unwrap();
    }
    catalog
}

/// Creates a topic with one partition on shard 1.
pub(super) fn create_on_shard_1(name: &str) -> Command {
    Command::CreateTopic(TopicSpec {
        name: name.into(),
        assignment: Assignment::new(&[vec![Replica { node: 1, shard: 1 }]]).unwrap(),
        replication_factor: 1,
        write_quorum: 1,
        read_quorum: 1,
        min_insync_replicas: 1,
        retention_bytes: -1,
        retention_ms: -1,
    })
}
