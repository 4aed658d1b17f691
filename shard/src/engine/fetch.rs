//! Reads: from the tail cache at once, or after waiting for data; what is older goes to `cold`.

use std::collections::{BTreeSet, HashMap};

use ahash::RandomState;
use pyralog_core::limits::{MAX_FETCH_BYTES, MAX_FETCH_WAIT_MS, MAX_WAITING_FETCHES_PER_SHARD};
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{
    Consistency, FetchReplyHead, FetchRequest, ListOffsetsReply, ListOffsetsRequest, OffsetSpec, Response,
};
use smallvec::SmallVec;

use crate::memory::ChunkSlice;

use super::catch_up::is_peer;
use super::linear::Read;
use super::partition::Partition;
use super::produce::{Refusal, check_leads};
use super::{Action, ConnId, Engine, Mode, ReplyBody, reply};

/// A fetch that waits for data.
#[derive(Clone, Debug)]
struct Waiter {
    conn: ConnId,
    correlation_id: u64,
    group: GroupId,
    offset: i64,
    min_bytes: u64,
    max_bytes: usize,
    deadline_us: u64,
}

/// Fetches that wait for data. All lookups are by id; nothing depends on the maps' order.
#[derive(Debug)]
pub(super) struct Waiters {
    next_id: u64,
    waiting: HashMap<u64, Waiter, RandomState>,
    by_deadline: BTreeSet<(u64, u64)>,
    by_conn: HashMap<ConnId, SmallVec<[u64; 2]>, RandomState>,
}

impl Default for Waiters {
    fn default() -> Self {
        Self {
            next_id: 0,
            waiting: HashMap::with_hasher(RandomState::with_seeds(5, 6, 7, 8)),
            by_deadline: BTreeSet::new(),
            by_conn: HashMap::with_hasher(RandomState::with_seeds(9, 10, 11, 12)),
        }
    }
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    fn add(&mut self, waiter: Waiter) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.by_deadline.insert((waiter.deadline_us, id));
        self.by_conn.entry(waiter.conn).or_default().push(id);
        self.waiting.insert(id, waiter);
        id
    }

    fn take(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&id)?;
        self.by_deadline.remove(&(waiter.deadline_us, id));
        if let Some(ids) = self.by_conn.get_mut(&waiter.conn) {
            ids.retain(|known| *known != id);
            if ids.is_empty() {
                self.by_conn.remove(&waiter.conn);
            }
        }
        Some(waiter)
    }

    fn expired(&self, now_us: u64) -> Option<u64> {
        self.by_deadline.first().filter(|(deadline, _)| *deadline <= now_us).map(|(_, id)| *id)
    }

    fn of(&self, conn: ConnId) -> SmallVec<[u64; 2]> {
        self.by_conn.get(&conn).cloned().unwrap_or_default()
    }
}

/// Pieces of one reply, so that it takes few gather lists (the kernel's IOV_MAX is 1,024).
const MAX_SLICES: usize = 1_000;

/// Whole batches for a reply.
pub(super) type Slices = SmallVec<[ChunkSlice; 4]>;

impl Engine {
    pub(super) fn fetch(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &FetchRequest,
        actions: &mut Vec<Action>,
    ) {
        let Some((index, partition)) =
            self.find_served(request.group).and_then(|index| Some((index, self.at(index)?)))
        else {
            let (code, detail) = self.not_here(request.group);
            return self.refuse(conn, correlation_id, code, detail, actions);
        };
        if let Err((code, detail)) = self.check_answers(conn, request.consistency, partition) {
            return self.refuse(conn, correlation_id, code, detail, actions);
        }
        if self.confirms_first(conn, correlation_id, index, Read::Fetch(*request), actions) {
            return;
        }
        let Some(partition) = self.at(index) else { return };
        let high_watermark = partition.replica.high_watermark();
        let offset = request.offset;
        // Another replica may have told more than this one knows yet: that is the end here.
        let beyond = offset > high_watermark && request.consistency != Consistency::AnyReplica;
        if offset < partition.log_start || beyond {
            let detail = format!("offset {offset}; the log holds {}..{high_watermark}", partition.log_start);
            return self.refuse(conn, correlation_id, ErrorCode::OffsetOutOfRange, detail, actions);
        }
        let max_bytes = (request.max_bytes as usize).clamp(1, MAX_FETCH_BYTES);
        let min_bytes = u64::from(request.min_bytes).min(max_bytes as u64);
        if request.max_wait_ms > 0 && self.available(partition, offset) < min_bytes {
            return self.wait_for_data(conn, correlation_id, index, request, max_bytes, actions);
        }
        self.answer_fetch(conn, correlation_id, index, offset, max_bytes, actions);
    }

    /// Whether this replica may answer clients about what is committed: the only one, or a leader that knows what those
    /// before it have committed. Other replicas ask for what is certainly committed and are always answered.
    fn check_answers(
        &self,
        conn: ConnId,
        consistency: Consistency,
        partition: &Partition,
    ) -> Result<(), Refusal> {
        if consistency == Consistency::AnyReplica || is_peer(conn) {
            return Ok(());
        }
        check_leads(partition)?;
        let group = partition.group;
        let sure = partition.replica.raft().is_none_or(|replica| replica.raft.leads_surely());
        match &self.mode {
            // Others may have taken over meanwhile, and nobody here hears of it.
            Mode::Fenced(reason) if partition.replica.raft().is_some() => {
                Err((ErrorCode::Fenced, reason.clone()))
            }
            _ if sure => Ok(()),
            _ => Err((ErrorCode::NotLeader, format!("the leader of partition {group} is taking over"))),
        }
    }

    /// Committed bytes from `offset` on that the cache holds; what is older counts as plenty.
    fn available(&self, partition: &Partition, offset: i64) -> u64 {
        let high_watermark = partition.replica.high_watermark();
        if offset >= high_watermark {
            return 0;
        }
        let Some(from) = partition.tail_index(offset).and_then(|index| partition.tail.get(index)) else {
            return u64::MAX;
        };
        let end = partition.tail.partition_point(|batch| batch.next_offset <= high_watermark);
        let until = partition.tail.get(end).map_or(partition.appended_bytes, |batch| batch.bytes_before);
        until.saturating_sub(from.bytes_before)
    }

    fn wait_for_data(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        index: u32,
        request: &FetchRequest,
        max_bytes: usize,
        actions: &mut Vec<Action>,
    ) {
        if self.fetches.len() >= MAX_WAITING_FETCHES_PER_SHARD {
            let detail = format!("{MAX_WAITING_FETCHES_PER_SHARD} fetches wait on this shard");
            return self.refuse(conn, correlation_id, ErrorCode::Overloaded, detail, actions);
        }
        let wait_us = u64::from(request.max_wait_ms.min(MAX_FETCH_WAIT_MS)) * 1_000;
        let id = self.fetches.add(Waiter {
            conn,
            correlation_id,
            group: request.group,
            offset: request.offset,
            min_bytes: u64::from(request.min_bytes).min(max_bytes as u64),
            max_bytes,
            deadline_us: self.now.monotonic_us + wait_us,
        });
        if let Some(partition) = self.at_mut(index) {
            partition.waiting.push(id);
        }
    }

    /// The high watermark moved: answer the fetches that now have enough.
    pub(super) fn wake_fetches(&mut self, index: u32, actions: &mut Vec<Action>) {
        let Some(partition) = self.at_mut(index) else { return };
        let mut waiting = std::mem::take(&mut partition.waiting);
        waiting.retain(|id| {
            let Some(waiter) = self.fetches.waiting.get(id) else { return false };
            let Some(partition) = self.at(index) else { return false };
            if self.available(partition, waiter.offset) < waiter.min_bytes {
                return true;
            }
            if let Some(waiter) = self.fetches.take(*id) {
                self.answer_fetch(
                    waiter.conn,
                    waiter.correlation_id,
                    index,
                    waiter.offset,
                    waiter.max_bytes,
                    actions,
                );
            }
            false
        });
        if let Some(partition) = self.at_mut(index) {
            partition.waiting = waiting;
        }
    }

    /// Answers fetches whose time is over with what is there.
    pub(super) fn expire_fetches(&mut self, actions: &mut Vec<Action>) {
        while let Some(id) = self.fetches.expired(self.now.monotonic_us) {
            let Some(waiter) = self.fetches.take(id) else { return };
            let Some(index) = self.find(waiter.group) else {
                let (code, detail) = self.not_here(waiter.group);
                self.refuse(waiter.conn, waiter.correlation_id, code, detail, actions);
                continue;
            };
            if let Some(partition) = self.at_mut(index) {
                partition.waiting.retain(|known| *known != id);
            }
            self.answer_fetch(
                waiter.conn,
                waiter.correlation_id,
                index,
                waiter.offset,
                waiter.max_bytes,
                actions,
            );
        }
    }

    /// Refuses every waiting fetch.
    pub(super) fn fail_fetches(&mut self, code: ErrorCode, actions: &mut Vec<Action>) {
        while let Some(id) = self.fetches.by_deadline.first().map(|(_, id)| *id) {
            let Some(waiter) = self.fetches.take(id) else { return };
            self.refuse(waiter.conn, waiter.correlation_id, code, String::new(), actions);
        }
    }

    /// Refuses the fetches that wait on a partition that goes away.
    pub(super) fn fail_fetches_of(
        &mut self,
        partition: &Partition,
        deleted: bool,
        actions: &mut Vec<Action>,
    ) {
        let (code, detail) = match deleted {
            true => (ErrorCode::UnknownTopicOrPartition, "the topic was deleted"),
            false => (ErrorCode::NotLeader, "the partition has moved to other nodes"),
        };
        for id in &partition.waiting {
            if let Some(waiter) = self.fetches.take(*id) {
                self.refuse(waiter.conn, waiter.correlation_id, code, detail.into(), actions);
            }
        }
    }

    pub(super) fn connection_closed(&mut self, conn: ConnId) {
        for id in self.fetches.of(conn) {
            if let Some(waiter) = self.fetches.take(id)
                && let Some(partition) = self.find(waiter.group).and_then(|index| self.at_mut(index))
            {
                partition.waiting.retain(|known| *known != id);
            }
        }
        self.cold.forget_connection(conn);
        self.linear_reads.forget_connection(conn);
        self.reloads.forget_connection(conn);
    }

    /// Answers with committed batches from the one that holds `offset` on.
    pub(super) fn answer_fetch(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        index: u32,
        offset: i64,
        max_bytes: usize,
        actions: &mut Vec<Action>,
    ) {
        let Some(partition) = self.at(index) else { return };
        let high_watermark = partition.replica.high_watermark();
        #[cfg(feature = "planted-bugs")]
        let high_watermark = match self.has_bug(super::planted::PlantedBug::RepairFromUncommitted) {
            true => partition.log_end,
            false => high_watermark,
        };
        if offset < partition.log_start {
            let detail = format!("offset {offset}; the log holds {}..{high_watermark}", partition.log_start);
            return self.refuse(conn, correlation_id, ErrorCode::OffsetOutOfRange, detail, actions);
        }
        if offset >= high_watermark {
            return self.send_batches(conn, correlation_id, index, Slices::new(), actions);
        }
        let cached = partition
            .tail_index(offset)
            .filter(|at| partition.tail.get(*at).is_some_and(|batch| batch.base_offset <= offset));
        // What is in memory still is whole, whatever has become of its segment.
        if cached.is_none()
            && let Some((from, to)) = partition.damage_at(offset)
        {
            let detail = format!("offsets {from}..{to} of partition {} are damaged", partition.group);
            return self.refuse(conn, correlation_id, ErrorCode::CorruptRange, detail, actions);
        }
        let left =
            cached.and_then(|at| partition.tail.get(at)).filter(|batch| batch.data.chunk().is_absent());
        if let Some(lsn) = left.map(|batch| batch.lsn) {
            let group = partition.group;
            self.counters.cache_misses += 1;
            return self.fetch_reloaded((conn, correlation_id), group, (offset, max_bytes), lsn, actions);
        }
        match cached {
            Some(at) => {
                let slices = cached_batches(partition, at, high_watermark, max_bytes);
                self.counters.cache_hits += 1;
                self.send_batches(conn, correlation_id, index, slices, actions);
            }
            None => {
                self.counters.cache_misses += 1;
                self.fetch_cold(conn, correlation_id, index, offset, max_bytes, actions);
            }
        }
    }

    pub(super) fn send_batches(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        index: u32,
        slices: Slices,
        actions: &mut Vec<Action>,
    ) {
        if self.answer_peer(conn, correlation_id, Some(&slices)) {
            return;
        }
        let Some(partition) = self.at(index) else { return };
        let batch_bytes: usize = slices.iter().map(ChunkSlice::len).sum();
        let head = FetchReplyHead {
            log_start: partition.log_start,
            high_watermark: partition.replica.high_watermark(),
            batch_bytes: batch_bytes as u32,
        };
        self.counters.fetches += 1;
        self.counters.fetched_bytes += batch_bytes as u64;
        actions.push(Action::Reply { conn, correlation_id, body: ReplyBody::Fetch { head, slices } });
    }

    pub(super) fn list_offsets(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &ListOffsetsRequest,
        actions: &mut Vec<Action>,
    ) {
        let Some((index, partition)) =
            self.find_served(request.group).and_then(|index| Some((index, self.at(index)?)))
        else {
            let (code, detail) = self.not_here(request.group);
            return self.refuse(conn, correlation_id, code, detail, actions);
        };
        if let Err((code, detail)) = self.check_answers(conn, request.consistency, partition) {
            return self.refuse(conn, correlation_id, code, detail, actions);
        }
        if self.confirms_first(conn, correlation_id, index, Read::ListOffsets(*request), actions) {
            return;
        }
        let Some(partition) = self.at(index) else { return };
        let high_watermark = partition.replica.high_watermark();
        let found = match request.spec {
            OffsetSpec::Earliest => ListOffsetsReply { offset: partition.log_start, timestamp: -1 },
            OffsetSpec::Latest => ListOffsetsReply { offset: high_watermark, timestamp: -1 },
            OffsetSpec::Timestamp(wanted) => {
                return self.offset_for_time(conn, correlation_id, index, wanted, actions);
            }
        };
        reply(conn, correlation_id, Response::ListOffsets(found), actions);
    }

    /// The first batch with a timestamp of at least `wanted`: in the segments first, then in the tail.
    fn offset_for_time(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        index: u32,
        wanted: i64,
        actions: &mut Vec<Action>,
    ) {
        let Some(partition) = self.at(index) else { return };
        let cached_from = partition.tail.front().map_or(partition.log_end, |batch| batch.base_offset);
        let segment = partition.segments.iter().find(|segment| {
            segment.base < cached_from && segment.max_timestamp >= wanted && segment.end > partition.log_start
        });
        if let Some(segment) = segment {
            let base = segment.base;
            return self.search_time_cold(conn, correlation_id, index, base, wanted, actions);
        }
        let found = time_in_tail(partition, wanted);
        reply(conn, correlation_id, Response::ListOffsets(found), actions);
    }
}

/// The first committed batch of the tail with a timestamp of at least `wanted`, else the high watermark.
pub(super) fn time_in_tail(partition: &Partition, wanted: i64) -> ListOffsetsReply {
    let high_watermark = partition.replica.high_watermark();
    let batch = partition.tail.iter().find(|batch| {
        batch.max_timestamp >= wanted
            && batch.next_offset <= high_watermark
            && batch.base_offset >= partition.log_start
    });
    match batch {
        Some(batch) => ListOffsetsReply { offset: batch.base_offset, timestamp: batch.max_timestamp },
        None => ListOffsetsReply { offset: high_watermark, timestamp: -1 },
    }
}

/// Batches of the tail from `at` on: committed, without a gap, up to `max_bytes` but at least one.
fn cached_batches(partition: &Partition, at: usize, high_watermark: i64, max_bytes: usize) -> Slices {
    let mut slices = Slices::new();
    let mut bytes = 0;
    let mut expected = None;
    for batch in partition.tail.range(at..) {
        let gap = expected.is_some_and(|expected| batch.base_offset != expected);
        let absent = batch.data.chunk().is_absent();
        let full = !slices.is_empty() && (bytes + batch.data.len() > max_bytes || slices.len() >= MAX_SLICES);
        if batch.next_offset > high_watermark || gap || full || absent {
            break;
        }
        bytes += batch.data.len();
        expected = Some(batch.next_offset);
        slices.push(batch.data.clone());
    }
    slices
}
