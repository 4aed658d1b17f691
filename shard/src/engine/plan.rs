//! What to write so that a partition's committed batches are in segments: used by the flusher while the shard
//! serves and by recovery when the cache is too small for the journal.

use std::collections::VecDeque;
use std::rc::Rc;

use pyralog_core::GroupId;
use pyralog_core::limits::INDEX_INTERVAL_BYTES;

use crate::format::batch::BatchHead;
use crate::format::index::{INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, IndexEntry, index_header};
use crate::memory::{ChunkPool, ChunkSlice};

use super::partition::{IndexTail, Partition, Segment};
use super::{EngineConfig, FileId, IoOp};

/// A write of a segment ends at the page behind which it has so many bytes: enough for the disk's bandwidth, and a journal
/// write that comes behind it waits little.
const WRITE_BYTES: usize = 160 << 10;
/// The same where each write is flushed, which costs more than its bytes.
const FLUSHED_WRITE_BYTES: usize = 1 << 20;
/// So much of a segment is written between two flushes. What is written lies in the kernel's memory until then, and all of
/// it at once would have the journal's writes wait at the disk: with 64 requests under way the slowest of a thousand
/// took 8 ms with a flush behind each write, and 20 to 27 ms with one at the end of each segment.
const FLUSH_BYTES: usize = 4 << 20;
/// A page of the kernel's cache, bytes.
const PAGE_BYTES: u64 = 4096;
/// Most pieces in one write of a segment: below the kernel's IOV_MAX of 1,024.
const WRITE_PIECES: usize = 1000;

/// Everything to do for one partition; its effect is taken over by [`FlushPlan::commit`] when all of it is done.
#[derive(Debug)]
pub(super) struct FlushPlan {
    pub(super) group: GroupId,
    /// Writes and syncs, each to be done before the next is begun. Indexes are not synced: they are derived.
    pub(super) operations: VecDeque<IoOp>,
    /// Bytes of batches.
    pub(super) bytes: u64,
    flushed_to: i64,
    /// The last segment as it will be, and new ones behind it.
    segments: Vec<Segment>,
    /// Whether the first of `segments` replaces the partition's last one.
    extends_last: bool,
}

/// Lays batches out over segments.
struct Planner<'a> {
    plan: FlushPlan,
    pool: &'a ChunkPool,
    segment_max_bytes: u64,
    /// [`WRITE_BYTES`], or more when every write is to be flushed.
    write_bytes: usize,
    /// [`FLUSH_BYTES`], or less when every write is to be flushed.
    flush_bytes: usize,
    /// Written and not flushed.
    unflushed_bytes: usize,
    wall_ms: i64,
    pieces: Vec<ChunkSlice>,
    piece_bytes: usize,
    pieces_at: u64,
    index_bytes: Vec<u8>,
    index_at: u64,
}

impl FlushPlan {
    /// Plans the flush of the batches of `partition` up to the commit `cut`; `None` when there are none.
    ///
    /// `pool` gives memory for index entries; without it they are left out, which costs a scan later.
    pub(super) fn new(
        partition: &Partition,
        cut: u64,
        config: &EngineConfig,
        pool: &ChunkPool,
        wall_ms: i64,
    ) -> Option<Self> {
        let mut planner = Planner {
            plan: Self {
                group: partition.group,
                operations: VecDeque::new(),
                bytes: 0,
                flushed_to: partition.flushed_to,
                segments: Vec::new(),
                extends_last: false,
            },
            pool,
            // A position in an index has 32 bits.
            segment_max_bytes: config.segment_max_bytes.min(u64::from(u32::MAX)),
            write_bytes: if config.segment_sync_on_write { FLUSHED_WRITE_BYTES } else { WRITE_BYTES },
            flush_bytes: if config.segment_sync_on_write { 1 } else { FLUSH_BYTES },
            unflushed_bytes: 0,
            wall_ms,
            pieces: Vec::new(),
            piece_bytes: 0,
            pieces_at: 0,
            index_bytes: Vec::new(),
            index_at: 0,
        };
        let mut any = false;
        for batch in partition.flushable(cut) {
            any = true;
            if planner.plan.segments.is_empty() {
                planner.resume(partition.segments.back());
            }
            planner.add(batch.base_offset, batch.next_offset, batch.max_timestamp, &batch.data);
        }
        if !any {
            return None;
        }
        planner.end_segment();
        Some(planner.plan)
    }

    /// Takes the plan's effect over, after everything in it is durable.
    pub(super) fn commit(self, partition: &mut Partition) {
        if self.extends_last {
            partition.segments.pop_back();
        }
        partition.segments.extend(self.segments);
        debug_assert!(
            partition.segments.iter().is_sorted_by(|a, b| a.end <= b.base),
            "segments of partition {} overlap",
            partition.group
        );
        partition.flushed_to = partition.flushed_to.max(self.flushed_to);
    }

    /// Segments that the plan writes to.
    pub(super) fn bases(&self) -> impl Iterator<Item = i64> + '_ {
        self.segments.iter().map(|segment| segment.base)
    }
}

impl Planner<'_> {
    /// Goes on in the partition's last segment, if it is one of this life and not full.
    fn resume(&mut self, last: Option<&Segment>) {
        if let Some(last) = last
            && let Some(index) = last.index
            && last.bytes < self.segment_max_bytes
        {
            self.plan.segments.push(last.clone());
            self.plan.extends_last = true;
            self.pieces_at = last.bytes;
            self.index_at = INDEX_HEADER_BYTES as u64 + u64::from(index.entries) * INDEX_ENTRY_BYTES as u64;
        }
    }

    fn add(&mut self, base_offset: i64, next_offset: i64, max_timestamp: i64, data: &ChunkSlice) {
        let epoch = BatchHead::parse(data.bytes()).ok().map(|head| head.epoch);
        let fits = self.plan.segments.last().is_some_and(|segment| {
            segment.end == base_offset
                && segment.epoch == epoch
                && segment.bytes + data.len() as u64 <= self.segment_max_bytes
        });
        if !fits {
            self.end_segment();
            self.begin_segment(base_offset, epoch);
        }
        let Some(segment) = self.plan.segments.last_mut() else { return };
        if let Some(index) = &mut segment.index
            && segment.bytes - index.last_position >= u64::from(INDEX_INTERVAL_BYTES)
        {
            let entry = IndexEntry {
                base_offset,
                max_timestamp: segment.max_timestamp,
                position: segment.bytes as u32,
            };
            self.index_bytes.extend_from_slice(&entry.encode());
            index.entries += 1;
            index.last_position = segment.bytes;
        }
        segment.end = next_offset;
        segment.bytes += data.len() as u64;
        segment.max_timestamp = segment.max_timestamp.max(max_timestamp);
        if max_timestamp < 0 {
            segment.written_ms = segment.written_ms.max(self.wall_ms);
        }
        self.plan.bytes += data.len() as u64;
        self.plan.flushed_to = next_offset;
        self.pieces.push(data.clone());
        self.piece_bytes += data.len();
        if self.piece_bytes >= self.write_bytes || self.pieces.len() >= WRITE_PIECES {
            self.end_write_at_a_page();
        }
    }

    /// Ends the write where a page of the file ends; what is behind begins the next one. A write that begins within a page
    /// that the kernel no longer has would make it read that page first, and the journal's writes wait for it.
    fn end_write_at_a_page(&mut self) {
        let end = self.pieces_at + self.piece_bytes as u64;
        let behind = (end % PAGE_BYTES) as usize;
        if behind >= self.piece_bytes {
            return self.end_write();
        }
        let next = self.take_last(behind);
        self.piece_bytes -= behind;
        self.end_write();
        (self.pieces, self.piece_bytes) = (next, behind);
    }

    /// Takes the last bytes of the pieces away.
    fn take_last(&mut self, mut bytes: usize) -> Vec<ChunkSlice> {
        let mut taken = VecDeque::new();
        while bytes > 0
            && let Some(last) = self.pieces.pop()
        {
            let kept = last.len().saturating_sub(bytes);
            if kept > 0 {
                self.pieces.push(last.slice(0, kept));
            }
            taken.push_front(last.slice(kept, last.len() - kept));
            bytes -= last.len() - kept;
        }
        taken.into()
    }

    fn begin_segment(&mut self, base: i64, epoch: Option<u32>) {
        let index = Some(IndexTail::default());
        let (max_timestamp, written_ms) = (i64::MIN, i64::MIN);
        let segment = Segment { base, end: base, epoch, bytes: 0, max_timestamp, written_ms, index };
        self.plan.segments.push(segment);
        self.pieces_at = 0;
        self.index_at = 0;
        self.index_bytes.extend_from_slice(&index_header(base));
    }

    fn end_write(&mut self) {
        let Some(segment) = self.plan.segments.last() else { return };
        if self.pieces.is_empty() {
            return;
        }
        let file = FileId::Segment(self.plan.group, segment.base);
        let data = std::mem::take(&mut self.pieces);
        self.plan.operations.push_back(IoOp::Write { file, offset: self.pieces_at, data });
        self.unflushed_bytes += self.piece_bytes;
        if self.unflushed_bytes >= self.flush_bytes {
            self.plan.operations.push_back(IoOp::Sync { file });
            self.unflushed_bytes = 0;
        }
        self.pieces_at += self.piece_bytes as u64;
        self.piece_bytes = 0;
    }

    fn end_segment(&mut self) {
        let Some(base) = self.plan.segments.last().map(|segment| segment.base) else { return };
        self.end_write();
        if std::mem::take(&mut self.unflushed_bytes) > 0 {
            self.plan.operations.push_back(IoOp::Sync { file: FileId::Segment(self.plan.group, base) });
        }
        if self.index_bytes.is_empty() {
            return;
        }
        if let Some(chunk) = self.pool.chunk(self.index_bytes.len()) {
            chunk.append(&self.index_bytes);
            let data = vec![ChunkSlice::new(Rc::clone(&chunk), 0, self.index_bytes.len())];
            let file = FileId::Index(self.plan.group, base);
            self.plan.operations.push_back(IoOp::Write { file, offset: self.index_at, data });
        }
        self.index_bytes.clear();
    }
}
