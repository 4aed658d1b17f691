//! Chunks that a replay left in the journal: their batches are in the tail, checked, and their bytes are not in memory.
//! Whoever needs the bytes, a fetch or the flusher, has the region read back first, once; it is checked again, as what
//! was right during the replay may have rotted since. The flusher begins with them, a window at a time, and drops them
//! from the cache when they are in segments, so that a journal file is never used again while one of them is in it.
//!
//! A node of a cluster leaves nothing: entries of several replicas are needed as soon as the group has a leader.

use std::collections::VecDeque;
use std::rc::Rc;

use pyralog_core::limits::{MAX_WAITING_FETCHES_PER_SHARD, RELOADS_PER_SHARD};
use pyralog_core::{ErrorCode, GroupId};

use crate::format::checkpoint::ReplayPoint;
use crate::format::journal::{COMMIT_HEADER_BYTES, CommitHeader};
use crate::memory::Chunk;

use super::journal::CachedChunk;
use super::{Action, ConnId, Engine, FileId, IoError, IoErrorKind, IoOp, IoResult, IoToken, Mode};

/// Chunks that one run of the flusher writes out of those left in the journal: so much memory is touched for them.
const WINDOW_CHUNKS: usize = 16;

/// A fetch that waits for a chunk.
#[derive(Debug)]
struct Waiting {
    /// Last commit of the chunk.
    chunk: u64,
    conn: ConnId,
    correlation_id: u64,
    group: GroupId,
    offset: i64,
    max_bytes: usize,
}

/// A chunk being read.
#[derive(Debug)]
struct Reload {
    token: IoToken,
    chunk: Rc<Chunk>,
    first: ReplayPoint,
    last_lsn: u64,
}

/// Chunks being read back, and who waits for them. A chunk goes by its last commit.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    reading: Vec<Reload>,
    wanted: VecDeque<u64>,
    fetches: Vec<Waiting>,
}

impl Reloads {
    pub(super) fn owns(&self, token: IoToken) -> bool {
        self.reading.iter().any(|reload| reload.token == token)
    }

    /// Whether any chunk is on its way.
    pub(super) fn busy(&self) -> bool {
        !self.reading.is_empty() || !self.wanted.is_empty()
    }

    pub(super) fn forget_connection(&mut self, conn: ConnId) {
        self.fetches.retain(|waiting| waiting.conn != conn);
    }

    fn knows(&self, chunk: u64) -> bool {
        self.wanted.contains(&chunk) || self.reading.iter().any(|reload| reload.last_lsn == chunk)
    }
}

impl Engine {
    /// Answers a fetch from the batch of commit `lsn` on when the chunk of that commit is there.
    pub(super) fn fetch_reloaded(
        &mut self,
        (conn, correlation_id): (ConnId, u64),
        group: GroupId,
        (offset, max_bytes): (i64, usize),
        lsn: u64,
        actions: &mut Vec<Action>,
    ) {
        if self.reloads.fetches.len() >= MAX_WAITING_FETCHES_PER_SHARD {
            let detail = format!("{MAX_WAITING_FETCHES_PER_SHARD} fetches wait for the journal to be read");
            return self.refuse(conn, correlation_id, ErrorCode::Overloaded, detail, actions);
        }
        let Some(chunk) = self.cached_chunk(lsn).map(|cached| cached.last_lsn) else {
            let detail = format!("offset {offset} of partition {group} is in no chunk of the journal");
            return self.refuse(conn, correlation_id, ErrorCode::Internal, detail, actions);
        };
        self.reloads.fetches.push(Waiting { chunk, conn, correlation_id, group, offset, max_bytes });
        self.want_chunk(chunk, actions);
    }

    /// Has what the next run of the flusher writes out read back. Returns where the run has to end, when all of it is
    /// there.
    pub(super) fn reload_for_run(&mut self, actions: &mut Vec<Action>) -> Option<ReplayPoint> {
        let flushed_lsn = self.flush.flushed_lsn();
        let left = self.journal.chunks.iter().filter(|cached| cached.last_lsn > flushed_lsn);
        let mut left = left.filter_map(|cached| Some((cached, cached.left_at?)));
        let absent = |(cached, _): (&CachedChunk, _)| cached.chunk.is_absent().then_some(cached.last_lsn);
        let window: Vec<u64> = left.by_ref().take(WINDOW_CHUNKS).filter_map(absent).collect();
        let cut = left.next().map_or(self.journal.completed, |(_, first)| first);
        let ready = window.is_empty();
        for chunk in window {
            self.want_chunk(chunk, actions);
        }
        ready.then_some(cut)
    }

    /// Drops the chunks that were left in the journal and are in segments now, with everything before them.
    pub(super) fn drop_flushed_reloads(&mut self) {
        let flushed_lsn = self.flush.flushed_lsn();
        let done = |cached: &CachedChunk| cached.left_at.is_some() && cached.last_lsn <= flushed_lsn;
        let last = self.journal.chunks.iter().rposition(done);
        for _ in 0..last.map_or(0, |last| last + 1) {
            self.evict_oldest();
        }
    }

    /// Refuses everybody who waits for a chunk.
    pub(super) fn fail_reloads(&mut self, code: ErrorCode, actions: &mut Vec<Action>) {
        for waiting in std::mem::take(&mut self.reloads.fetches) {
            self.refuse(waiting.conn, waiting.correlation_id, code, String::new(), actions);
        }
    }

    pub(super) fn reload_done(&mut self, token: IoToken, result: IoResult, actions: &mut Vec<Action>) {
        let Some(at) = self.reloads.reading.iter().position(|reload| reload.token == token) else { return };
        let Reload { chunk, first, last_lsn, .. } = self.reloads.reading.swap_remove(at);
        let checked = result.and_then(|read| {
            let read = read.ok_or_else(|| unreadable(&first, "the read brought nothing"))?;
            verify(&read, chunk.filled(), self.config.journal_id, &first, last_lsn)?;
            Ok(read)
        });
        match checked {
            Ok(read) => chunk.provide(read),
            // It was written to segments meanwhile, and others may have written where it was.
            Err(_) if self.cached_chunk(last_lsn).is_none_or(|cached| cached.left_at != Some(first)) => {}
            Err(error) => {
                self.fail_reloads(ErrorCode::StorageFailed, actions);
                if !matches!(self.mode, Mode::Stopped) {
                    self.fence(&error.detail, actions);
                }
                return;
            }
        }
        self.start_reloads(actions);
        let (ready, waiting) =
            self.reloads.fetches.drain(..).partition(|waiting: &Waiting| waiting.chunk == last_lsn);
        self.reloads.fetches = waiting;
        let ready: Vec<Waiting> = ready;
        for Waiting { conn, correlation_id, group, offset, max_bytes, .. } in ready {
            match self.find(group) {
                Some(index) => self.answer_fetch(conn, correlation_id, index, offset, max_bytes, actions),
                None => {
                    let (code, detail) = self.not_here(group);
                    self.refuse(conn, correlation_id, code, detail, actions);
                }
            }
        }
    }

    /// The chunk that commit `lsn` is in.
    fn cached_chunk(&self, lsn: u64) -> Option<&CachedChunk> {
        let at = self.journal.chunks.partition_point(|cached| cached.last_lsn < lsn);
        self.journal.chunks.get(at)
    }

    fn want_chunk(&mut self, chunk: u64, actions: &mut Vec<Action>) {
        if !self.reloads.knows(chunk) {
            self.reloads.wanted.push_back(chunk);
        }
        self.start_reloads(actions);
    }

    fn start_reloads(&mut self, actions: &mut Vec<Action>) {
        while self.reloads.reading.len() < RELOADS_PER_SHARD {
            let Some(last_lsn) = self.reloads.wanted.pop_front() else { return };
            let cached = self.cached_chunk(last_lsn).filter(|cached| cached.last_lsn == last_lsn);
            let Some((chunk, first)) = cached.and_then(|c| Some((Rc::clone(&c.chunk), c.left_at?))) else {
                continue;
            };
            if !chunk.is_absent() {
                continue;
            }
            // No more than its commits: a bad place behind them, which no replay minds, must not keep them away.
            let (file, offset, len) = (FileId::Journal(first.file), first.position, chunk.filled());
            let into = self.pool.chunk_to_provide();
            let token = self.next_token();
            self.reloads.reading.push(Reload { token, chunk, first, last_lsn });
            actions.push(Action::Io { token, op: IoOp::Read { file, offset, len, into } });
        }
    }
}

/// Whether `read` still is the commits from `first` up to `last_lsn`, which follow on one another, undamaged, and all
/// of the `wanted` bytes.
pub(super) fn verify(
    read: &Chunk,
    wanted: usize,
    journal_id: u64,
    first: &ReplayPoint,
    last_lsn: u64,
) -> Result<(), IoError> {
    let bytes = read.bytes(0, read.filled());
    let (mut position, mut prev_crc) = (first.position, first.prev_crc);
    let mut frames = Vec::new();
    for lsn in first.lsn..=last_lsn {
        let damaged = |what: &str| unreadable(first, &format!("commit {lsn} at byte {position}: {what}"));
        let rest = bytes.get((position - first.position) as usize..).unwrap_or_default();
        let header = CommitHeader::decode(rest).map_err(|error| damaged(&error.to_string()))?;
        let same = (header.journal_id, header.lsn, header.position, header.prev_crc)
            == (journal_id, lsn, position, prev_crc);
        if !same || header.generation != first.generation {
            return Err(damaged("another commit is in its place"));
        }
        let payload = rest.get(COMMIT_HEADER_BYTES..).unwrap_or_default();
        let payload = payload.get(..header.payload_len as usize).unwrap_or_default();
        header.verify_frames(payload, &mut frames).map_err(|error| damaged(&error.to_string()))?;
        position = header.end_position();
        prev_crc = header.header_crc;
    }
    // Whoever cuts the file inside the last commit's padding leaves every commit as it was.
    if read.filled() < wanted {
        let end = first.position + read.filled() as u64;
        return Err(unreadable(
            first,
            &format!("it ends at byte {end}, inside the padding of commit {last_lsn}"),
        ));
    }
    Ok(())
}

fn unreadable(first: &ReplayPoint, what: &str) -> IoError {
    let detail = format!("journal file {} can't be read back after its replay: {what}", first.file);
    IoError { kind: IoErrorKind::Other, detail }
}
