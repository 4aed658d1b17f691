//! Reads of what the tail cache no longer holds: find the place by the segment's index, read, check every
//! checksum, reply from the read buffer; read ahead for readers that go on in order; search by time.
//!
//! An index is derived and never evidence: a read begins where the index points, and goes back to the
//! segment's start when what is there does not fit.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use ahash::RandomState;
use pyralog_core::batch::{BatchError, BatchView};
use pyralog_core::limits::{
    COLD_READ_BYTES_PER_SHARD, INDEX_CACHE_BYTES_PER_SHARD, INDEX_INTERVAL_BYTES, JOURNAL_QUIET_US,
    MAX_BATCH_BYTES, READ_MEMORY_BYTES,
};
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{ListOffsetsReply, Response};

use crate::format::index::{INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, Index};
use crate::memory::{Chunk, ChunkSlice, READ_SLACK};

use super::fetch::{Slices, time_in_tail};
use super::{Action, ConnId, Engine, FileId, IoErrorKind, IoOp, IoResult, IoToken, reply};

/// Reads of segments at once.
const MAX_READS: usize = 64;
/// Reads that may wait for their turn.
const MAX_QUEUED: usize = 8_192;
/// Bytes that one read asks for at least, so that a run of small fetches costs few reads. With one batch more, which may
/// be cut, and room to read directly it takes memory that is kept for the next one.
const READ_BYTES: usize = READ_MEMORY_BYTES - READ_SLACK - MAX_BATCH_BYTES;
/// One reply from segments while the journal is written, bytes: what is checked and sent at once holds up producers.
const BESIDE_WRITES_BYTES: usize = 256 << 10;
/// Memory of read-ahead that no reply refers to yet.
const AHEAD_BYTES: usize = COLD_READ_BYTES_PER_SHARD / 2;
/// Room for one batch more that a read without reading ahead has; a larger batch costs a second read.
const BATCH_ROOM_BYTES: usize = 64 << 10;
/// Nothing is read ahead for so long after what was read ahead was given up unasked for, microseconds: there are more
/// readers than memory to read ahead for. What was kept for longer than that was given up by its reader.
const CROWDED_FOR_US: u64 = 5_000_000;
/// Pause before a read that found no memory is tried again, microseconds.
const RETRY_US: u64 = 2_000;
/// A read that finds no memory for this long has slow readers disconnected, microseconds.
const SHED_AFTER_US: u64 = 1_000_000;

/// A client that waits for a read.
#[derive(Clone, Copy, Debug)]
struct Client {
    conn: ConnId,
    correlation_id: u64,
}

/// What a read is for.
#[derive(Clone, Copy, Debug)]
enum Want {
    Fetch { offset: i64, max_bytes: usize },
    Time { wanted: i64 },
}

/// One read on its way through index and log.
#[derive(Clone, Debug)]
struct Job {
    /// `None`: reading ahead.
    client: Option<Client>,
    group: GroupId,
    segment: i64,
    want: Want,
    stage: Stage,
    /// The index pointed nowhere useful: read from the segment's start.
    distrust_index: bool,
    /// It reads at least so many bytes: what a batch needs that an earlier read found cut. Once it has begun, what it
    /// asked for.
    bytes: usize,
    queued_us: u64,
}

impl Job {
    /// What to read from where it begins on, bytes.
    fn read_bytes(&self, crowded: bool) -> usize {
        let bytes = match self.want {
            // The index leads to a place up to one interval before what is wanted. A batch that is longer than its room
            // costs a second read.
            Want::Fetch { max_bytes, .. } if crowded => {
                INDEX_INTERVAL_BYTES as usize + max_bytes + BATCH_ROOM_BYTES
            }
            Want::Fetch { max_bytes, .. } => max_bytes.max(READ_BYTES) + MAX_BATCH_BYTES,
            Want::Time { .. } => READ_BYTES + MAX_BATCH_BYTES,
        };
        bytes.max(self.bytes)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Index,
    Log { position: u64 },
}

/// Batches read and not yet asked for.
#[derive(Debug)]
struct Ahead {
    group: GroupId,
    segment: i64,
    /// Offset of the first batch at `at`.
    offset: i64,
    at: usize,
    /// Position of the chunk's start in the file.
    position: u64,
    chunk: Rc<Chunk>,
    /// Since when it is kept.
    kept_us: u64,
}

/// A parsed index kept in memory.
#[derive(Debug)]
struct CachedIndex {
    group: GroupId,
    segment: i64,
    index: Index,
    bytes: usize,
}

/// Reads of segments, what they found ahead, and the indexes they used.
#[derive(Debug)]
pub(super) struct ColdReads {
    active: HashMap<IoToken, Job, RandomState>,
    queue: VecDeque<Job>,
    ahead: VecDeque<Ahead>,
    ahead_bytes: usize,
    indexes: VecDeque<CachedIndex>,
    index_bytes: usize,
    /// When to try again the reads that found no memory.
    retry_due_us: Option<u64>,
    /// When the journal had something to write last.
    written_us: Option<u64>,
    /// When something read ahead was given up last that nobody had asked for.
    crowded_us: Option<u64>,
}

impl Default for ColdReads {
    fn default() -> Self {
        Self {
            active: HashMap::with_hasher(RandomState::with_seeds(13, 14, 15, 16)),
            queue: VecDeque::new(),
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            indexes: VecDeque::new(),
            index_bytes: 0,
            retry_due_us: None,
            written_us: None,
            crowded_us: None,
        }
    }
}

impl ColdReads {
    /// The journal has something to write.
    pub(super) fn note_write(&mut self, now_us: u64) {
        self.written_us = Some(now_us);
    }

    /// Of `max_bytes` that a client asks for, what it gets at once.
    fn reply_bytes(&self, max_bytes: usize, now_us: u64) -> usize {
        match self.written_us {
            Some(at) if now_us.saturating_sub(at) < JOURNAL_QUIET_US => max_bytes.min(BESIDE_WRITES_BYTES),
            _ => max_bytes,
        }
    }

    /// Whether more readers go on in order than there is memory to read ahead for.
    fn is_crowded(&self, now_us: u64) -> bool {
        self.crowded_us.is_some_and(|at| now_us.saturating_sub(at) < CROWDED_FOR_US)
    }

    pub(super) fn owns(&self, token: IoToken) -> bool {
        self.active.contains_key(&token)
    }

    /// When to try again the reads that found no memory.
    pub(super) fn retry_due_us(&self) -> Option<u64> {
        self.retry_due_us
    }

    pub(super) fn forget_connection(&mut self, conn: ConnId) {
        self.queue.retain(|job| job.client.is_none_or(|client| client.conn != conn));
    }

    pub(super) fn forget_group(&mut self, group: GroupId) {
        self.forget(|other, _| other == group);
    }

    /// A segment is deleted.
    pub(super) fn forget_segment(&mut self, group: GroupId, segment: i64) {
        self.forget(|other, base| other == group && base == segment);
    }

    /// A segment's index has grown.
    pub(super) fn forget_index(&mut self, group: GroupId, segment: i64) {
        if let Some(at) =
            self.indexes.iter().position(|known| known.group == group && known.segment == segment)
            && let Some(index) = self.indexes.remove(at)
        {
            self.index_bytes -= index.bytes;
        }
    }

    fn forget(&mut self, gone: impl Fn(GroupId, i64) -> bool) {
        self.ahead.retain(|ahead| !gone(ahead.group, ahead.segment));
        self.indexes.retain(|index| !gone(index.group, index.segment));
        self.ahead_bytes = self.ahead.iter().map(|ahead| ahead.chunk.capacity()).sum();
        self.index_bytes = self.indexes.iter().map(|index| index.bytes).sum();
    }

    /// The index, and moves it to the back of the queue for eviction.
    fn index(&mut self, group: GroupId, segment: i64) -> Option<&Index> {
        let at = self.indexes.iter().position(|known| known.group == group && known.segment == segment)?;
        let index = self.indexes.remove(at)?;
        self.indexes.push_back(index);
        self.indexes.back().map(|known| &known.index)
    }

    fn keep_index(&mut self, group: GroupId, segment: i64, index: Index) {
        let bytes = index.memory_bytes();
        self.forget_index(group, segment);
        self.index_bytes += bytes;
        self.indexes.push_back(CachedIndex { group, segment, index, bytes });
        while self.index_bytes > INDEX_CACHE_BYTES_PER_SHARD && self.indexes.len() > 1 {
            if let Some(oldest) = self.indexes.pop_front() {
                self.index_bytes -= oldest.bytes;
            }
        }
    }

    fn take_ahead(&mut self, group: GroupId, offset: i64) -> Option<Ahead> {
        let at = self.ahead.iter().position(|ahead| ahead.group == group && ahead.offset == offset)?;
        let ahead = self.ahead.remove(at)?;
        self.ahead_bytes -= ahead.chunk.capacity();
        Some(ahead)
    }

    fn keep_ahead(&mut self, ahead: Ahead, now_us: u64) {
        self.ahead_bytes += ahead.chunk.capacity();
        self.ahead.push_back(Ahead { kept_us: now_us, ..ahead });
        while self.ahead_bytes > AHEAD_BYTES && self.drop_oldest_ahead(now_us) {}
    }

    /// Whether there was one.
    fn drop_oldest_ahead(&mut self, now_us: u64) -> bool {
        let Some(oldest) = self.ahead.pop_front() else { return false };
        self.ahead_bytes -= oldest.chunk.capacity();
        if now_us.saturating_sub(oldest.kept_us) < CROWDED_FOR_US {
            self.crowded_us = Some(now_us);
        }
        true
    }

    /// Memory that no client holds, bytes.
    fn own_bytes(&self) -> usize {
        self.ahead_bytes + self.active.values().map(|job| job.bytes).sum::<usize>()
    }

    /// A read ahead that will bring `offset`: it becomes the client's.
    fn adopt(&mut self, group: GroupId, offset: i64, client: Client, max_bytes: usize) -> bool {
        let wanted = |job: &&mut Job| {
            job.client.is_none()
                && job.group == group
                && matches!(job.want, Want::Fetch { offset: other, .. } if other == offset)
        };
        let Some(job) = self.active.values_mut().find(wanted) else { return false };
        job.client = Some(client);
        job.want = Want::Fetch { offset, max_bytes };
        true
    }

    fn is_coming(&self, group: GroupId, offset: i64) -> bool {
        let same = |want: &Want| matches!(want, Want::Fetch { offset: other, .. } if *other == offset);
        self.ahead.iter().any(|ahead| ahead.group == group && ahead.offset == offset)
            || self.active.values().any(|job| job.group == group && same(&job.want))
    }
}

impl Engine {
    /// Answers a fetch at `offset`, which the segments hold or nobody does.
    pub(super) fn fetch_cold(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        index: u32,
        offset: i64,
        max_bytes: usize,
        actions: &mut Vec<Action>,
    ) {
        let Some(partition) = self.at(index) else { return };
        let group = partition.group;
        let client = Client { conn, correlation_id };
        let max_bytes = self.cold.reply_bytes(max_bytes, self.now.monotonic_us);
        if let Some(ahead) = self.cold.take_ahead(group, offset) {
            let job = Job {
                client: Some(client),
                group,
                segment: ahead.segment,
                want: Want::Fetch { offset, max_bytes },
                stage: Stage::Log { position: ahead.position },
                distrust_index: false,
                bytes: 0,
                queued_us: self.now.monotonic_us,
            };
            return self.serve(job, ahead.chunk, ahead.at, actions);
        }
        if self.cold.adopt(group, offset, client, max_bytes) {
            return;
        }
        let Some(segment) = self.segment_of(index, offset) else {
            let detail =
                format!("offset {offset} of partition {group} is in no segment and not in the journal");
            return self.refuse(conn, correlation_id, ErrorCode::CorruptRange, detail, actions);
        };
        let want = Want::Fetch { offset, max_bytes };
        self.enqueue(Some(client), group, segment, want, actions);
    }

    pub(super) fn search_time_cold(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        index: u32,
        segment: i64,
        wanted: i64,
        actions: &mut Vec<Action>,
    ) {
        let Some(group) = self.at(index).map(|partition| partition.group) else { return };
        self.enqueue(Some(Client { conn, correlation_id }), group, segment, Want::Time { wanted }, actions);
    }

    /// The epoch of all batches of a segment, if it is known.
    fn epoch_of(&self, group: GroupId, base: i64) -> Option<u32> {
        self.segment(group, base)?.epoch
    }

    /// Base of the segment that holds `offset`.
    fn segment_of(&self, index: u32, offset: i64) -> Option<i64> {
        let segments = &self.at(index)?.segments;
        let after = segments.partition_point(|segment| segment.base <= offset);
        let segment = segments.get(after.checked_sub(1)?)?;
        (offset < segment.end).then_some(segment.base)
    }

    fn enqueue(
        &mut self,
        client: Option<Client>,
        group: GroupId,
        segment: i64,
        want: Want,
        actions: &mut Vec<Action>,
    ) {
        if self.cold.queue.len() >= MAX_QUEUED {
            if let Some(client) = client {
                let detail = format!("{MAX_QUEUED} reads wait for the disk");
                self.refuse(client.conn, client.correlation_id, ErrorCode::Overloaded, detail, actions);
            }
            return;
        }
        let stage = Stage::Index;
        let queued_us = self.now.monotonic_us;
        let job = Job { client, group, segment, want, stage, distrust_index: false, bytes: 0, queued_us };
        self.cold.queue.push_back(job);
        self.start_reads(actions);
    }

    /// Starts queued reads while there is room and memory.
    pub(super) fn start_reads(&mut self, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        // Kept while it lies ahead: attempts in between, of a busy shard, do not put it off.
        let due_us = self.cold.retry_due_us.take().filter(|due| *due > now_us);
        while self.cold.active.len() < MAX_READS {
            let Some(job) = self.cold.queue.pop_front() else { return };
            if let Err(job) = self.start_read(job, actions) {
                self.cold.retry_due_us = due_us.or(Some(now_us + RETRY_US));
                // What waits for the disk, or is kept for who comes next, is nobody's slowness.
                let by_readers = self.cold.own_bytes() < COLD_READ_BYTES_PER_SHARD / 2;
                if by_readers && now_us.saturating_sub(job.queued_us) > SHED_AFTER_US {
                    self.shed_slow_readers(READ_BYTES + MAX_BATCH_BYTES, actions);
                }
                self.cold.queue.push_front(job);
                return;
            }
        }
    }

    /// Issues the next operation of a job; gives it back when there is no memory.
    fn start_read(&mut self, mut job: Job, actions: &mut Vec<Action>) -> Result<(), Job> {
        let Some(segment) = self.segment(job.group, job.segment).cloned() else {
            self.fail_job(&job, ErrorCode::OffsetOutOfRange, "the segment was deleted".into(), actions);
            return Ok(());
        };
        if job.stage == Stage::Index {
            let position = match (self.cold.index(job.group, job.segment), job.distrust_index) {
                (_, true) => Some(0),
                (Some(index), false) => Some(match job.want {
                    Want::Fetch { offset, .. } => index.position_for_offset(offset),
                    Want::Time { wanted } => index.position_for_time(wanted),
                }),
                // A segment shorter than one interval has nothing to look up.
                (None, false) if segment.bytes <= u64::from(INDEX_INTERVAL_BYTES) => Some(0),
                (None, false) => None,
            };
            if let Some(position) = position {
                job.stage = Stage::Log { position };
            }
        }
        let (file, offset, len) = match job.stage {
            Stage::Index => {
                let entries = segment.bytes / u64::from(INDEX_INTERVAL_BYTES) + 2;
                (
                    FileId::Index(job.group, job.segment),
                    0,
                    INDEX_HEADER_BYTES as u64 + entries * INDEX_ENTRY_BYTES as u64,
                )
            }
            Stage::Log { position } => {
                job.bytes = job.read_bytes(self.cold.is_crowded(self.now.monotonic_us));
                let left = segment.bytes.saturating_sub(position);
                (FileId::Segment(job.group, job.segment), position, left.min(job.bytes as u64))
            }
        };
        if len == 0 {
            self.corrupt(&job, "the segment ends before the offset", actions);
            return Ok(());
        }
        let mut into = self.misc_pool.chunk_for_read(len as usize);
        // A client that waits comes before what nobody has asked for yet.
        let now_us = self.now.monotonic_us;
        while into.is_none() && job.client.is_some() && self.cold.drop_oldest_ahead(now_us) {
            into = self.misc_pool.chunk_for_read(len as usize);
        }
        let Some(into) = into else { return Err(job) };
        let token = self.next_token();
        self.cold.active.insert(token, job);
        actions.push(Action::Io { token, op: IoOp::Read { file, offset, len: len as usize, into } });
        Ok(())
    }

    pub(super) fn cold_read_done(&mut self, token: IoToken, result: IoResult, actions: &mut Vec<Action>) {
        let Some(mut job) = self.cold.active.remove(&token) else { return };
        match (job.stage, result) {
            (Stage::Index, Ok(Some(chunk))) => {
                let segment_bytes =
                    self.find(job.group).and_then(|index| self.at(index)).and_then(|partition| {
                        Some(partition.segments.iter().find(|segment| segment.base == job.segment)?.bytes)
                    });
                let bytes = chunk.bytes(0, chunk.filled());
                match Index::parse(bytes, job.segment, segment_bytes.unwrap_or(0)) {
                    Ok(index) => self.cold.keep_index(job.group, job.segment, index),
                    Err(_) => job.distrust_index = true,
                }
                self.cold.queue.push_front(job);
            }
            (Stage::Index, _) => {
                // Missing or unreadable: the segment itself decides.
                job.distrust_index = true;
                self.cold.queue.push_front(job);
            }
            (Stage::Log { .. }, Ok(Some(chunk))) => self.serve(job, chunk, 0, actions),
            (Stage::Log { .. }, Ok(None)) => {
                self.fail_job(&job, ErrorCode::Internal, "a read without bytes".into(), actions)
            }
            (Stage::Log { .. }, Err(error)) if error.kind == IoErrorKind::NotFound => {
                self.corrupt(&job, "the segment file is missing", actions);
            }
            (Stage::Log { .. }, Err(error)) => {
                self.fail_job(&job, ErrorCode::StorageFailed, error.detail, actions);
            }
        }
        self.start_reads(actions);
    }

    /// Finds what the job wants in `chunk` from `at` on.
    fn serve(&mut self, job: Job, chunk: Rc<Chunk>, at: usize, actions: &mut Vec<Action>) {
        match job.want {
            Want::Fetch { offset, max_bytes } => self.serve_fetch(job, chunk, at, offset, max_bytes, actions),
            Want::Time { wanted } => self.serve_time(job, &chunk, wanted, actions),
        }
    }

    fn serve_fetch(
        &mut self,
        mut job: Job,
        chunk: Rc<Chunk>,
        at: usize,
        offset: i64,
        max_bytes: usize,
        actions: &mut Vec<Action>,
    ) {
        let Stage::Log { position } = job.stage else { return };
        let epoch = self.epoch_of(job.group, job.segment);
        let run = find_run(chunk.bytes(0, chunk.filled()), at, offset, max_bytes, epoch);
        match run {
            Run::Found { from, to, next_offset } => {
                let slices: Slices =
                    std::iter::once(ChunkSlice::new(Rc::clone(&chunk), from, to - from)).collect();
                let ahead_at = Ahead {
                    group: job.group,
                    segment: job.segment,
                    offset: next_offset,
                    at: to,
                    position,
                    chunk,
                    kept_us: 0,
                };
                match (job.client, self.find(job.group)) {
                    (Some(client), Some(index)) => {
                        self.send_batches(client.conn, client.correlation_id, index, slices, actions);
                        self.read_ahead(ahead_at, actions);
                    }
                    (Some(_), None) => {
                        let (code, detail) = self.not_here(job.group);
                        self.fail_job(&job, code, detail, actions);
                    }
                    // Read ahead: keep it from the batch that was asked for on.
                    (None, _) => {
                        self.cold.keep_ahead(Ahead { offset, at: from, ..ahead_at }, self.now.monotonic_us)
                    }
                }
            }
            Run::Beyond { to, need } if to > 0 || need > job.bytes => {
                job.stage = Stage::Log { position: position + to as u64 };
                job.bytes = need;
                self.requeue(job, actions);
            }
            Run::Beyond { .. } => self.corrupt(&job, "a batch is cut short", actions),
            Run::Broken(_) if !job.distrust_index && position > 0 && at == 0 => {
                self.cold.forget_index(job.group, job.segment);
                job.distrust_index = true;
                job.stage = Stage::Index;
                self.requeue(job, actions);
            }
            Run::Broken(what) => self.corrupt(&job, &what, actions),
        }
    }

    fn serve_time(&mut self, mut job: Job, chunk: &Rc<Chunk>, wanted: i64, actions: &mut Vec<Action>) {
        let (Stage::Log { position }, Some(index)) = (job.stage, self.find(job.group)) else {
            let (code, detail) = self.not_here(job.group);
            return self.fail_job(&job, code, detail, actions);
        };
        let epoch = self.epoch_of(job.group, job.segment);
        let Some(partition) = self.at(index) else { return };
        let bytes = chunk.bytes(0, chunk.filled());
        let at = match find_time(bytes, wanted, partition.log_start, epoch) {
            TimeRun::Found(found) => {
                if let Some(client) = job.client {
                    reply(client.conn, client.correlation_id, Response::ListOffsets(found), actions);
                }
                return;
            }
            TimeRun::Beyond { to } => to,
            TimeRun::Broken(_) if !job.distrust_index && position > 0 => {
                self.cold.forget_index(job.group, job.segment);
                job.distrust_index = true;
                job.stage = Stage::Index;
                return self.requeue(job, actions);
            }
            // What was there may be what is wanted: there is no right answer.
            TimeRun::Broken(what) => return self.corrupt(&job, &what, actions),
        };
        let here = partition.segments.iter().find(|segment| segment.base == job.segment);
        if here.is_some_and(|segment| position + (at as u64) < segment.bytes) {
            if at == 0 {
                return self.corrupt(&job, "a batch is cut short", actions);
            }
            job.stage = Stage::Log { position: position + at as u64 };
            return self.requeue(job, actions);
        }
        let cached_from = partition.tail.front().map_or(partition.log_end, |batch| batch.base_offset);
        let next = partition
            .segments
            .iter()
            .find(|segment| {
                segment.base > job.segment && segment.base < cached_from && segment.max_timestamp >= wanted
            })
            .map(|segment| segment.base);
        match (next, job.client) {
            (Some(base), _) => {
                job.segment = base;
                job.stage = Stage::Index;
                job.distrust_index = false;
                self.requeue(job, actions);
            }
            (None, Some(client)) => {
                let found = time_in_tail(partition, wanted);
                reply(client.conn, client.correlation_id, Response::ListOffsets(found), actions);
            }
            (None, None) => {}
        }
    }

    /// After `ahead.offset` was reached: keep what was read already, or read on.
    fn read_ahead(&mut self, ahead: Ahead, actions: &mut Vec<Action>) {
        let Some(index) = self.find(ahead.group) else { return };
        let cached = self.at(index).is_some_and(|partition| partition.tail_index(ahead.offset).is_some());
        if cached || self.cold.is_coming(ahead.group, ahead.offset) {
            return;
        }
        let bytes = ahead.chunk.bytes(0, ahead.chunk.filled());
        let whole = BatchView::parse(bytes.get(ahead.at..).unwrap_or_default()).is_ok();
        let now_us = self.now.monotonic_us;
        if whole {
            return self.cold.keep_ahead(ahead, now_us);
        }
        if self.cold.is_crowded(now_us) {
            return;
        }
        let Some(segment) = self.segment_of(index, ahead.offset) else { return };
        let mut job = Job {
            client: None,
            group: ahead.group,
            segment,
            want: Want::Fetch { offset: ahead.offset, max_bytes: READ_BYTES },
            stage: Stage::Log { position: 0 },
            distrust_index: false,
            bytes: 0,
            queued_us: now_us,
        };
        if segment == ahead.segment {
            job.stage = Stage::Log { position: ahead.position + ahead.at as u64 };
        }
        // Reading ahead is a favour: without room or memory it does not happen.
        if self.cold.active.len() < MAX_READS / 2 {
            let _ = self.start_read(job, actions);
        }
    }

    fn requeue(&mut self, job: Job, actions: &mut Vec<Action>) {
        self.cold.queue.push_front(job);
        self.start_reads(actions);
    }

    fn corrupt(&mut self, job: &Job, what: &str, actions: &mut Vec<Action>) {
        let index = self.find(job.group).and_then(|index| self.at(index));
        let Some(partition) = index else {
            // The files went away under the read: nothing is damaged.
            let (code, detail) = self.not_here(job.group);
            return self.fail_job(job, code, detail, actions);
        };
        if !partition.segments.iter().any(|segment| segment.base == job.segment) {
            let detail = format!("partition {}: retention removed the segment", job.group);
            return self.fail_job(job, ErrorCode::OffsetOutOfRange, detail, actions);
        }
        let wanted = match job.want {
            Want::Fetch { offset, .. } => format!("offset {offset}"),
            Want::Time { wanted } => format!("time {wanted}"),
        };
        let detail = format!("segment {} of partition {}, {wanted}: {what}", job.segment, job.group);
        if let Want::Fetch { offset, .. } = job.want {
            // It tells what is damaged, and repairs it if it can.
            self.suspect_segment(job.group, job.segment, offset);
        }
        self.fail_job(job, ErrorCode::CorruptRange, detail, actions);
    }

    fn fail_job(&mut self, job: &Job, code: ErrorCode, detail: String, actions: &mut Vec<Action>) {
        if let Some(client) = job.client {
            self.refuse(client.conn, client.correlation_id, code, detail, actions);
        }
    }
}

/// Where the wanted batches are in a piece of a segment.
enum Run {
    /// Whole, checked batches at `from..to`; the one that follows has `next_offset`.
    Found { from: usize, to: usize, next_offset: i64 },
    /// The wanted batch lies behind the whole batches, which end at `to`; the one there needs so many bytes.
    Beyond { to: usize, need: usize },
    /// What is there is no batch, or not the wanted one.
    Broken(String),
}

/// What a search by time finds in a piece of a segment.
enum TimeRun {
    /// The first batch that is late enough.
    Found(ListOffsetsReply),
    /// No whole batch, which end at `to`, is late enough.
    Beyond { to: usize },
    /// What is there is no batch, or not an undamaged one.
    Broken(String),
}

/// Finds the first batch in `bytes` with a timestamp of at least `wanted`, none before `log_start`. Every batch that is
/// stepped over is checked: a damaged timestamp would hide the answer.
fn find_time(bytes: &[u8], wanted: i64, log_start: i64, epoch: Option<u32>) -> TimeRun {
    let mut at = 0;
    let mut expected = None;
    loop {
        let batch = match BatchView::parse(bytes.get(at..).unwrap_or_default()) {
            Ok((batch, _)) => batch,
            Err(BatchError::Truncated { .. }) => return TimeRun::Beyond { to: at },
            Err(error) => return TimeRun::Broken(error.to_string()),
        };
        let (base, last) = (batch.base_offset(), batch.last_offset());
        if expected.is_some_and(|expected| expected != base) {
            return TimeRun::Broken(format!("a batch with offset {base} is not the next one"));
        }
        if !batch.verify_crc() {
            return TimeRun::Broken(format!("the checksum of offsets {base}..={last} does not match"));
        }
        if epoch.is_some_and(|epoch| epoch != batch.leader_epoch()) {
            return TimeRun::Broken(format!("the epoch of offsets {base}..={last} is not the segment's"));
        }
        if batch.max_timestamp() >= wanted && last >= log_start {
            return TimeRun::Found(ListOffsetsReply { offset: base, timestamp: batch.max_timestamp() });
        }
        expected = Some(last + 1);
        at += batch.len_bytes();
    }
}

/// Finds the batch that holds `offset` in `bytes` from `at` on, and the ones behind it up to `max_bytes`.
fn find_run(bytes: &[u8], mut at: usize, offset: i64, max_bytes: usize, epoch: Option<u32>) -> Run {
    let mut from = None;
    let mut expected = None;
    loop {
        let batch = match BatchView::parse(bytes.get(at..).unwrap_or_default()) {
            Ok((batch, _)) => batch,
            Err(error) => {
                return match (from, expected, error) {
                    (Some(from), Some(next_offset), _) => Run::Found { from, to: at, next_offset },
                    (_, _, BatchError::Truncated { need, .. }) => Run::Beyond { to: at, need },
                    (_, _, error) => Run::Broken(error.to_string()),
                };
            }
        };
        let base = batch.base_offset();
        let wrong_place = match expected {
            Some(expected) => base != expected,
            None => base > offset,
        };
        let damage = if wrong_place {
            Some(format!("a batch with offset {base} is where {} belongs", expected.unwrap_or(offset)))
        } else if batch.last_offset() >= offset && !batch.verify_crc() {
            Some(format!("the checksum of offsets {base}..={} does not match", batch.last_offset()))
        } else if batch.last_offset() >= offset && epoch.is_some_and(|epoch| epoch != batch.leader_epoch()) {
            Some(format!("the epoch of offsets {base}..={} is not the segment's", batch.last_offset()))
        } else {
            None
        };
        if let Some(what) = damage {
            return match (from, expected) {
                (Some(from), Some(next_offset)) => Run::Found { from, to: at, next_offset },
                _ => Run::Broken(what),
            };
        }
        if batch.last_offset() >= offset {
            let start = *from.get_or_insert(at);
            if at > start && at - start + batch.len_bytes() > max_bytes {
                return Run::Found { from: start, to: at, next_offset: base };
            }
        }
        expected = Some(batch.last_offset() + 1);
        at += batch.len_bytes();
    }
}
