//! The deterministic engine of one shard: events in, actions out. It knows no clock, socket, file or random
//! source; the driver (`runtime`) and the simulator (`pyralog-sim`) run this same code.
//!
//! Owner: the shard's thread. Nothing here blocks; nothing here is shared.
//!
//! | file | what it does |
//! | --- | --- |
//! | `api`, `config`, `status` | the border |
//! | `produce` | checks, dedupes, appends a batch; answers when its group commit is done |
//! | `journal`, `pending` | group commits: their order, their layout, who waits for them |
//! | `journal_files` | makes the journal's files, before they are needed |
//! | `fetch`, `cold` | reads from the tail cache; reads from segments, read-ahead, search by time |
//! | `linear` | reads that a majority has to confirm first |
//! | `partition`, `producers` | one partition's offsets, tail and segments; its idempotent producers |
//! | `replica`, `placing` | groups with several replicas: one replica; with whom it begins, and which links that takes |
//! | `replicate`, `outbox` | events, journal frames and messages; what leaves |
//! | `moves` | groups whose replicas are to be others |
//! | `lag`, `links` | how far followers are behind; which other nodes can be reached |
//! | `uncommitted` | what is appended and not committed, and how much of it there may be |
//! | `hand_over` | a shard that stops gives away what it leads |
//! | `campaigns` | how many groups campaign at once |
//! | `balance` | leaders go back to where they should be |
//! | `catch_up`, `catch_up_answers`, `catch_up_writes` | a follower gets what its leader has in segments only; what the leader answers; how that becomes the follower's own segments |
//! | `recovery_rate` | at a rate that the node's shards share |
//! | `reassign`, `alter` | requests about partitions that move to other nodes; about topics that change |
//! | `metadata` | what clients are told of the cluster |
//! | `flush`, `plan` | writes the cache out to segments, makes checkpoints, recycles the journal, retention |
//! | `controller`, `relay` | shard 0: the metadata group; every shard: opens and drops partitions as it says; commands that are no client's |
//! | `recovery`, `slots` | makes an engine from what is on the disk; the two checkpoints |
//! | `shards`, `rehome` | which shard of a node a replica is on; the partitions of a stopped node go to another number of shards |
//! | `rejoin` | replicas that can't know what they have promised |
//! | `scrub` | re-reads segments, finds what is damaged, repairs it from other replicas |
//! | `reload` | what recovery left in the journal is read back when it is used |

mod alter;
pub mod api;
mod balance;
mod campaigns;
mod catch_up;
mod catch_up_answers;
mod catch_up_producers;
mod catch_up_writes;
mod cold;
pub mod config;
mod controller;
mod default;
mod fetch;
mod flush;
mod forced;
mod founding;
mod hand_over;
mod incoming;
mod journal;
mod journal_files;
mod lag;
mod levels;
mod linear;
mod links;
mod lone;
mod metadata;
mod moves;
mod outbox;
mod pace;
mod partition;
mod pending;
mod placing;
mod plan;
#[cfg(feature = "planted-bugs")]
pub mod planted;
mod produce;
mod producers;
mod reassign;
mod recovery;
mod recovery_rate;
mod rehome;
mod rejoin;
mod relay;
mod reload;
mod replica;
mod replicate;
mod scrub;
mod shards;
mod slots;
pub mod status;
#[cfg(test)]
mod tests;
mod uncommitted;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ahash::RandomState;
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{ErrorReply, PartitionState, Request, Response};
use pyralog_replication::metadata::Catalog;

use crate::memory::{ChunkPool, ChunkSupply};

pub use api::*;
pub use config::*;
pub use default::election;
pub use recovery::{RecoveryError, recover};
pub use rehome::{Rehomed, RehomingDisks, rehome};
pub use scrub::ScrubCounters;
pub use status::*;

use journal::Journal;
use partition::Partition;

/// Idle time after which the durable point is written down, microseconds.
const MARKER_AFTER_US: u64 = 5_000;
/// How often produces that wait for the disk are looked through for time-outs, microseconds.
const TIMEOUT_CHECK_US: u64 = 100_000;
/// How often a stalled shard looks whether readers have let go of memory, microseconds.
const STALL_CHECK_US: u64 = 10_000;
/// Pause between disconnections of slow readers, microseconds: time for their sends to end and free memory.
const SHED_EVERY_US: u64 = 100_000;
/// Pause between attempts to write while the disk is full, microseconds.
const DISK_FULL_RETRY_US: u64 = 1_000_000;

/// What the shard can do at present.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    /// The first group commit of this life is on its way.
    Starting,
    /// Requests are served.
    Serving,
    /// An I/O error's effect is unknown: reads are served, writes refused, until recovery made a new engine.
    Fenced(String),
    /// Shutting down: no requests; the rest is made durable.
    Stopping,
    /// Shut down.
    Stopped,
}

/// One shard's engine.
pub struct Engine {
    config: EngineConfig,
    now: Now,
    mode: Mode,
    pool: ChunkPool,
    /// For reads and index writes: bounded by the number of operations at once, apart from the cache's budget.
    misc_pool: ChunkPool,
    journal: Journal,
    partitions: Vec<Option<Box<Partition>>>,
    by_group: HashMap<GroupId, u32, RandomState>,
    /// Indexes of dropped partitions to which nothing refers any more: used again before `partitions` grows.
    free_indexes: Vec<u32>,
    /// Producers of all partitions together.
    producer_count: usize,
    /// Batches in the tail cache, of all partitions together.
    cached_batches: usize,
    catalog: Option<Arc<Catalog>>,
    controller: Option<controller::Controller>,
    /// After damage with unknown groups: a partition that the first catalogue names and the disk does not may
    /// have been lost.
    opens_are_suspect: bool,
    /// Groups on the disk that are newer than the catalogue: a topic that gets one of their ids later is not theirs.
    strangers: BTreeSet<GroupId>,
    /// Version of the newest catalogue by which a group was dropped. One before it may come again after a restart, and must
    /// not open groups anew whose promises went with them.
    dropped_at: u64,
    /// The other nodes with which the metadata group began, and their disks.
    founders: BTreeMap<u32, u64>,
    /// When to ask the others again what they are; set while a replica is no member.
    ask_due_us: Option<u64>,
    /// Who leads the groups of all of this node's shards.
    leaders: HashMap<GroupId, Leadership, RandomState>,
    fetches: fetch::Waiters,
    cold: cold::ColdReads,
    linear_reads: linear::LinearReads,
    scrub: scrub::Scrub,
    reloads: reload::Reloads,
    flush: flush::Flusher,
    journal_files: journal_files::JournalFiles,
    replication: replicate::Replication,
    recovery_rate: recovery_rate::RecoveryRate,
    balance: balance::Balance,
    /// It stops, and waits until then for others to lead what it led.
    hand_over_until_us: Option<u64>,
    /// Why this engine can't be trusted any more; it is fenced at the end of the pass.
    must_fence: Option<String>,
    tokens: u64,
    /// When the journal fell idle with its durable point not yet on disk.
    marker_due_us: Option<u64>,
    interval_sync: IntervalSync,
    /// When to look through the waiting produces next; set while any commit is unfinished.
    timeouts_due_us: Option<u64>,
    /// When to ask to be registered again; `None` = this node is.
    register_due_us: Option<u64>,
    /// When to look for room next; set while there is none.
    stall_due_us: Option<u64>,
    /// Before this time no more slow readers are disconnected: the sends of those before them may still be ending.
    next_shed_us: u64,
    /// No journal space; cleared when a flush or a new file brings some.
    stalled: bool,
    counters: Counters,
    /// What recovery has to tell; handed out at the start.
    recovery_log: Vec<Action>,
    /// Gaps that recovery found, told with the first catalogue, for the partitions that it names.
    recovered_gaps: Vec<(GroupId, String)>,
}

/// The flush of the journal between checkpoints.
#[derive(Debug, Default)]
struct IntervalSync {
    due_us: Option<u64>,
    /// Syncs on their way, and the commit that they cover.
    outstanding: Vec<IoToken>,
    covers_lsn: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine(shard {}, {:?}, {} partitions)", self.config.shard, self.mode, self.by_group.len())
    }
}

impl Engine {
    /// Begins this life: the first group commit. `ShardStatus::ready` turns true when it is durable.
    pub fn start(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.now = now;
        actions.append(&mut self.recovery_log);
        self.begin_life(actions);
        self.begin_scrub();
        self.end_of_pass(now, actions);
    }

    /// Takes one event.
    pub fn handle(&mut self, now: Now, event: Event<'_>, actions: &mut Vec<Action>) {
        self.now = now;
        match event {
            Event::Request { conn, correlation_id, request } => {
                self.request(conn, correlation_id, request, actions)
            }
            Event::ConnectionClosed { conn } => self.connection_closed(conn),
            Event::IoDone { token, result } => self.io_done(token, result, actions),
            Event::CatalogPublished { catalog } => self.catalog_published(catalog, actions),
            Event::LeadersTold { leaders } => {
                self.leaders.extend(leaders.iter().map(|told| (told.group, *told)));
            }
            Event::ControllerTold { command } => self.controller_told(*command),
            Event::CatalogApplied { shard, version } => self.catalog_applied(shard, version, actions),
            Event::PeerFrame { from, control, payload } => self.peer_frame(from, control, payload, actions),
            Event::PeerUp { peer, .. } => self.peer_up(peer),
            Event::PeerDown { peer } => self.peer_down(peer),
            Event::PeerDropped { peer } => self.peer_dropped(peer),
            Event::RecoveryTurn { bytes } => self.recovery_turn(bytes),
            Event::Tick => self.tick(actions),
            Event::Shutdown => self.shutdown(actions),
        }
    }

    /// Chunks by which the cache may still grow.
    pub fn chunks_to_come(&self) -> usize {
        self.config.cache_bound().saturating_sub(self.pool.live_bytes()) / pyralog_core::limits::CHUNK_BYTES
    }

    /// Takes the memory of new chunks from there, as far as some is ready.
    pub fn supply_chunks(&self, supply: ChunkSupply) {
        self.pool.supply(supply);
    }

    /// Ends a pass of events: seals a group commit when there is something to write.
    pub fn end_of_pass(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.now = now;
        if matches!(self.mode, Mode::Fenced(_) | Mode::Stopped) {
            return;
        }
        if let Some(reason) = self.must_fence.take() {
            return self.fence(&reason, actions);
        }
        self.keep_memory_free(actions);
        let durable = self.writes_are_durable();
        // Until this life's first commit is durable nothing else may be on its way: the number of the life
        // must be on the disk before two commits can be there at once.
        let depth = if self.mode == Mode::Starting { 1 } else { self.config.journal_writes_in_flight.max(1) };
        #[cfg(feature = "planted-bugs")]
        self.planted_ack_before_flush(actions);
        self.pump(actions);
        self.hand_over_step();
        if !self.journal.idle() {
            self.cold.note_write(now.monotonic_us);
        }
        self.journal.submit(depth, durable, &mut self.tokens, actions);
        self.plan_marker();
        self.flush_step(actions);
        self.plan_checks();
        self.stop_when_done(actions);
    }

    /// Whether a journal write that is done is durable; else the journal has to be flushed for that.
    fn writes_are_durable(&self) -> bool {
        self.config.fsync == FsyncPolicy::EveryWrite || self.mode == Mode::Starting
    }

    /// When to send [`Event::Tick`], monotonic microseconds; `None` = nothing is timed.
    pub fn next_deadline_us(&self) -> Option<u64> {
        if matches!(self.mode, Mode::Fenced(_) | Mode::Stopped) {
            return self.fetches.next_deadline_us();
        }
        [
            self.fetches.next_deadline_us(),
            self.marker_due_us,
            self.interval_sync.due_us,
            self.flush_deadline_us(),
            self.timeouts_due_us,
            self.stall_due_us,
            self.groups_deadline_us(),
            self.register_due_us,
            self.hand_over_until_us,
            self.ask_due_us,
            self.balance.deadline_us(),
            self.moves_deadline_us(),
            self.scrub.deadline_us(),
            self.replication.answers.has_ready().then_some(self.now.monotonic_us),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The one of these deadlines that users were promised: the interval after which the journal is flushed. The others
    /// may be met some milliseconds late.
    pub fn promised_deadline_us(&self) -> Option<u64> {
        self.interval_sync.due_us
    }

    /// Whether produces should be read from sockets: false while they would find no room. To be asked before each
    /// one; then none is refused for a lack of room that time mends. With a full disk they are read, and refused.
    pub fn accepts_produce(&self) -> bool {
        self.flush.disk_full()
            || self.has_room()
                && self.journal.unwritten_bytes < pyralog_core::limits::UNWRITTEN_BYTES_PER_SHARD
    }

    /// Whether the largest batch can be appended now.
    fn has_room(&self) -> bool {
        !self.stalled
            && self.cached_batches < self.config.cache_batches()
            && self.journal.has_room(&self.pool, pyralog_core::limits::MAX_BATCH_BYTES)
    }

    /// State of the shard.
    pub fn status(&self) -> ShardStatus {
        let damaged = self.each_partition().filter(|p| p.end_unknown || !p.damaged.is_empty()).count();
        ShardStatus {
            ready: self.mode == Mode::Serving && self.catalog.is_some(),
            fenced: match &self.mode {
                Mode::Fenced(reason) => Some(reason.clone()),
                _ => None,
            },
            disk_full: self.flush.disk_full(),
            incarnation: self.journal.incarnation(),
            durable_lsn: self.journal.durable_lsn,
            journal_files: self.journal.files.len() as u32,
            journal_files_free: self.journal.free_files() as u32,
            unflushed_bytes: self.flush.unflushed_bytes(),
            uncommitted_bytes: self.replication.uncommitted.bytes(),
            cache_live_bytes: self.pool.live_bytes() as u64,
            cache_budget_bytes: self.pool.budget_bytes() as u64,
            partitions: self.by_group.len() as u32,
            damaged_partitions: damaged as u32,
            waiting_fetches: self.fetches.len() as u32,
            recovery_bytes_per_s: self.config.recovery_bytes_per_s.unwrap_or(0),
            replication: self.replication_status(),
            counters: self.counters.clone(),
        }
    }

    /// State of one partition of this shard.
    pub fn partition(&self, group: GroupId) -> Option<PartitionState> {
        self.find(group).and_then(|index| self.at(index)).map(|partition| self.state_of(partition))
    }

    /// State of all partitions of this shard, in the order of their ids (the metadata group left out).
    pub fn partitions(&self) -> Vec<(GroupId, PartitionState)> {
        let mut all: Vec<_> =
            self.each_partition().map(|partition| (partition.group, self.state_of(partition))).collect();
        all.retain(|(group, _)| *group != GroupId::METADATA);
        all.sort_unstable_by_key(|(group, _)| *group);
        all
    }

    fn state_of(&self, partition: &Partition) -> PartitionState {
        let linked = |peer| self.is_linked(peer);
        partition.state(self.config.node, self.config.shard, self.now.monotonic_us, linked)
    }

    fn each_partition(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().flatten().map(Box::as_ref)
    }

    fn find(&self, group: GroupId) -> Option<u32> {
        self.by_group.get(&group).copied()
    }

    /// The partition, if it is known what it is.
    fn find_served(&self, group: GroupId) -> Option<u32> {
        self.find(group).filter(|index| self.at(*index).is_some_and(|partition| !partition.unconfirmed))
    }

    fn at(&self, index: u32) -> Option<&Partition> {
        self.partitions.get(index as usize)?.as_deref()
    }

    fn at_mut(&mut self, index: u32) -> Option<&mut Partition> {
        self.partitions.get_mut(index as usize)?.as_deref_mut()
    }

    /// The segment of a group that begins at `base`.
    fn segment(&self, group: GroupId, base: i64) -> Option<&partition::Segment> {
        let segments = &self.find(group).and_then(|index| self.at(index))?.segments;
        let at = segments.partition_point(|segment| segment.base < base);
        segments.get(at).filter(|segment| segment.base == base)
    }

    fn insert_partition(&mut self, partition: Partition) -> u32 {
        let group = partition.group;
        let boxed = Some(Box::new(partition));
        let free = self.free_indexes.pop().and_then(|at| Some((at, self.partitions.get_mut(at as usize)?)));
        let index = match free {
            Some((index, slot)) => {
                debug_assert!(slot.is_none(), "the index of a partition that is there is not free");
                *slot = boxed;
                index
            }
            None => {
                self.partitions.push(boxed);
                self.partitions.len() as u32 - 1
            }
        };
        self.by_group.insert(group, index);
        index
    }

    fn next_token(&mut self) -> IoToken {
        self.tokens += 1;
        IoToken(self.tokens)
    }

    fn request(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: Request<'_>,
        actions: &mut Vec<Action>,
    ) {
        if matches!(self.mode, Mode::Starting | Mode::Stopping | Mode::Stopped) {
            return self.refuse(conn, correlation_id, ErrorCode::NotReady, String::new(), actions);
        }
        match request {
            Request::Produce(produce) => self.produce(conn, correlation_id, &produce, actions),
            Request::Fetch(fetch) => self.fetch(conn, correlation_id, &fetch, actions),
            Request::ListOffsets(list) => self.list_offsets(conn, correlation_id, &list, actions),
            Request::Metadata(metadata) => self.metadata(conn, correlation_id, &metadata, actions),
            Request::InitProducerId => self.init_producer_id(conn, correlation_id, actions),
            Request::CreateTopic(create) => self.create_topic(conn, correlation_id, &create, actions),
            Request::DeleteTopic(delete) => self.delete_topic(conn, correlation_id, &delete, actions),
            Request::ReassignPartition(reassign) => {
                self.reassign_partition(conn, correlation_id, &reassign, actions);
            }
            Request::AlterTopic(alter) => self.alter_topic(conn, correlation_id, &alter, actions),
            Request::AddNode(add) => self.add_node(conn, correlation_id, add, actions),
            Request::RemoveNode(remove) => self.remove_node(conn, correlation_id, remove, actions),
            Request::RecoverPartition(recover) => {
                self.recover_partition(conn, correlation_id, recover, actions);
            }
            Request::ListReassignments(list) => self.list_reassignments(conn, correlation_id, list, actions),
            Request::DescribePartitions(describe) => {
                let states = (describe.first..describe.first.saturating_add(describe.count.min(1_000)))
                    .filter_map(|partition| self.partition(GroupId::new(describe.topic, partition)))
                    .collect();
                reply(conn, correlation_id, Response::DescribePartitions(states), actions);
            }
            Request::Scrub(scrub) => self.scrub_asked(conn, correlation_id, scrub, actions),
            Request::Ping => reply(conn, correlation_id, Response::Pong, actions),
        }
    }

    fn refuse(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        code: ErrorCode,
        detail: String,
        actions: &mut Vec<Action>,
    ) {
        if self.answer_peer(conn, correlation_id, None) {
            return;
        }
        if let Some(count) = self.counters.errors.get_mut(code as usize) {
            *count += 1;
        }
        reply(conn, correlation_id, Response::Error(ErrorReply { code, detail }), actions);
    }

    fn io_done(&mut self, token: IoToken, result: IoResult, actions: &mut Vec<Action>) {
        let fenced = matches!(self.mode, Mode::Fenced(_) | Mode::Stopped);
        if self.journal.owns(token) {
            match result {
                _ if fenced => {}
                Ok(_) => {
                    self.journal.written(token);
                    self.complete_commits(actions);
                }
                Err(error) => self.fence(&error.detail, actions),
            }
        } else if let Some(at) = self.interval_sync.outstanding.iter().position(|sync| *sync == token) {
            self.interval_sync.outstanding.swap_remove(at);
            match result {
                Ok(_) if self.interval_sync.outstanding.is_empty() => {
                    self.journal.durable_lsn = self.journal.durable_lsn.max(self.interval_sync.covers_lsn);
                    if !fenced {
                        self.complete_commits(actions);
                    }
                }
                Ok(_) => {}
                Err(error) => self.fence(&error.detail, actions),
            }
        } else if self.catch_up_io_done(token, &result, actions) {
            // Taken.
        } else if self.reloads.owns(token) {
            self.reload_done(token, result, actions);
        } else if self.cold.owns(token) {
            self.cold_read_done(token, result, actions);
        } else if self.scrub.owns(token) {
            self.scrub_io_done(result, actions);
        } else {
            self.flush_io_done(token, result, actions);
        }
    }

    /// An I/O error whose effect is unknown: refuse writes, tell the waiting ones, have the driver recover.
    fn fence(&mut self, reason: &str, actions: &mut Vec<Action>) {
        if matches!(self.mode, Mode::Fenced(_)) {
            return;
        }
        self.mode = Mode::Fenced(reason.to_owned());
        let mut waiting = Vec::new();
        self.journal.seal_for_fence();
        for commit in self.journal.unfinished() {
            waiting.append(&mut commit.pending);
        }
        for pending in waiting {
            if let pending::Pending::Produce { conn, correlation_id, .. } = pending {
                self.refuse(conn, correlation_id, ErrorCode::StorageFailed, reason.to_owned(), actions);
            }
        }
        self.fail_metadata_waiters(ErrorCode::StorageFailed, actions);
        self.fail_reloads(ErrorCode::StorageFailed, actions);
        self.fail_reads(None, ErrorCode::Fenced, actions);
        self.fail_replicated(ErrorCode::StorageFailed, actions);
        let text = format!(
            "shard {}: {reason}. The shard takes no writes until it has re-read its disk; check the disk's health (dmesg, smartctl)",
            self.config.shard
        );
        actions.push(Action::Log { level: LogLevel::Error, text });
        actions.push(Action::Recover { reason: reason.to_owned() });
    }

    fn tick(&mut self, actions: &mut Vec<Action>) {
        self.expire_fetches(actions);
        if matches!(self.mode, Mode::Fenced(_) | Mode::Stopped) {
            return;
        }
        let now_us = self.now.monotonic_us;
        if self.timeouts_due_us.is_some_and(|due| due <= now_us) {
            self.timeouts_due_us = None;
            self.expire_produces(actions);
            self.expire_reads(actions);
        }
        // The look itself is in every pass.
        self.stall_due_us.take_if(|due| *due <= now_us);
        if self.marker_due_us.is_some_and(|due| due <= now_us) {
            self.marker_due_us = None;
            if self.journal.idle() && self.journal.recorded_durable_lsn < self.journal.last_data_lsn {
                // Without room the marker waits for the next commit; it only speeds up the evidence.
                let _ = self.journal.seal_marker(&self.pool);
            }
        }
        if self.interval_sync.due_us.is_some_and(|due| due <= now_us) {
            self.interval_sync.due_us = None;
            self.sync_journal(actions);
        }
        self.tick_groups();
        self.tick_balance();
        self.tick_moves();
        self.tick_scrub(actions);
        if self.register_due_us.is_some_and(|due| due <= now_us) {
            self.keep_registered(actions);
        }
        self.flush_tick(actions);
    }

    /// Flushes the journal files: at the interval of the fsync policy, and for commits that carry metadata.
    fn sync_journal(&mut self, actions: &mut Vec<Action>) {
        if !self.interval_sync.outstanding.is_empty() {
            self.interval_sync.due_us = Some(self.now.monotonic_us + 1_000);
            return;
        }
        self.interval_sync.covers_lsn = self.journal.written_lsn();
        let files: Vec<u32> = self.journal.files_in_use().collect();
        for number in files {
            let token = self.next_token();
            self.interval_sync.outstanding.push(token);
            actions.push(Action::Io { token, op: IoOp::Sync { file: FileId::Journal(number) } });
        }
    }

    /// When everything is quiet and the newest data is durable without the disk saying so, say so soon.
    fn plan_marker(&mut self) {
        let quiet = self.journal.idle() && self.journal.durable_lsn >= self.journal.last_data_lsn;
        if !quiet || self.journal.recorded_durable_lsn >= self.journal.last_data_lsn {
            self.marker_due_us = None;
        } else if self.marker_due_us.is_none() {
            self.marker_due_us = Some(self.now.monotonic_us + MARKER_AFTER_US);
        }
    }

    /// Has slow readers disconnected that hold `bytes` of memory, unless some just were.
    fn shed_slow_readers(&mut self, bytes: usize, actions: &mut Vec<Action>) {
        if self.now.monotonic_us >= self.next_shed_us {
            self.next_shed_us = self.now.monotonic_us + SHED_EVERY_US;
            actions.push(Action::ShedSlowReaders { bytes });
        }
    }

    /// Sets the times of checks that recur while a condition lasts: once, when it begins, and again when a check
    /// was made, so that a busy shard does not push them ahead of itself.
    fn plan_checks(&mut self) {
        let now_us = self.now.monotonic_us;
        let keep = |due: Option<u64>, lasts: bool, every_us: u64| {
            lasts.then(|| due.unwrap_or_else(|| now_us.saturating_add(every_us)))
        };
        // Produces carry their own time-outs: look at the waiting ones now and then.
        let waits = !self.journal.idle() || self.produces_wait() || !self.linear_reads.is_empty();
        self.timeouts_due_us = keep(self.timeouts_due_us, waits, TIMEOUT_CHECK_US);
        self.stall_due_us = keep(self.stall_due_us, !self.has_room(), STALL_CHECK_US);
    }

    fn shutdown(&mut self, actions: &mut Vec<Action>) {
        match self.mode {
            Mode::Fenced(_) => {
                self.mode = Mode::Stopped;
                actions.push(Action::Stopped);
            }
            Mode::Stopped => actions.push(Action::Stopped),
            Mode::Starting | Mode::Serving | Mode::Stopping => {
                self.mode = Mode::Stopping;
                self.fail_fetches(ErrorCode::NotReady, actions);
                self.fail_reads(None, ErrorCode::NotReady, actions);
                if self.hand_over_until_us.is_none() && !self.begin_hand_over() {
                    self.flush_for_shutdown();
                }
            }
        }
    }

    fn stop_when_done(&mut self, actions: &mut Vec<Action>) {
        if self.mode == Mode::Stopping && self.journal.idle() && self.flush.shutdown_done() {
            self.mode = Mode::Stopped;
            actions.push(Action::Stopped);
        }
    }
}

/// Answers a request.
fn reply(conn: ConnId, correlation_id: u64, response: Response, actions: &mut Vec<Action>) {
    actions.push(Action::Reply { conn, correlation_id, body: ReplyBody::Message(response) });
}
