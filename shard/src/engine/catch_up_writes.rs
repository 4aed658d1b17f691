//! What a catch-up has fetched, on its way to segments: one write at a time, which ends with a page of the file, and a flush
//! behind each few MiB, while more is fetched.
//!
//! A write that ends within a page has the kernel read that page again for the next one
//! (`docs/decisions/0015-writes-of-segments-end-with-pages.md`), and a flush of much at once holds up the journals' writes
//! (`docs/decisions/0007-segments-are-flushed-in-stretches.md`).

use std::collections::VecDeque;

use pyralog_core::GroupId;
use pyralog_core::limits::JOURNAL_ALIGN;

use crate::memory::ChunkSlice;

use super::api::{FileId, IoOp, IoToken};
use super::partition::Segment;

/// So much is written before it is flushed, bytes.
const STRETCH_BYTES: u64 = 4 << 20;

/// Whole batches of one term that follow on one another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) base: i64,
    pub(super) end: i64,
    pub(super) term: u32,
    pub(super) max_timestamp: i64,
}

/// The segments of a catch-up.
#[derive(Debug)]
pub(super) struct SegmentWrites {
    group: GroupId,
    /// As they are when everything is written.
    segments: Vec<Segment>,
    /// What waits to be written, and the segment that it belongs to.
    pieces: VecDeque<(usize, ChunkSlice)>,
    /// The segment that is written, and how much of it is.
    at: usize,
    written: u64,
    write: Option<(IoToken, usize)>,
    /// The first segment that is not durable to its end, and up to where it is.
    sync_at: usize,
    synced: u64,
    sync: Option<(IoToken, u64)>,
}

impl SegmentWrites {
    pub(super) fn new(group: GroupId) -> Self {
        Self {
            group,
            segments: Vec::new(),
            pieces: VecDeque::new(),
            at: 0,
            written: 0,
            write: None,
            sync_at: 0,
            synced: 0,
            sync: None,
        }
    }

    /// Whether nothing has come yet.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The segments; nothing of them may be on its way any more.
    pub(super) fn take_segments(&mut self) -> Vec<Segment> {
        debug_assert!(self.is_durable());
        std::mem::take(&mut self.segments)
    }

    /// Takes what came. A segment holds batches of one term, and about `bound` bytes.
    pub(super) fn take(&mut self, run: Run, data: ChunkSlice, bound: u64, wall_ms: i64) {
        let bytes = data.len() as u64;
        let full = |last: &Segment| last.bytes + bytes > bound || last.epoch != Some(run.term);
        if self.segments.last().is_none_or(full) {
            self.segments.push(Segment {
                base: run.base,
                end: run.base,
                epoch: Some(run.term),
                bytes: 0,
                max_timestamp: i64::MIN,
                written_ms: wall_ms,
                index: None,
            });
        }
        let Some(segment) = self.segments.last_mut() else { return };
        segment.bytes += bytes;
        segment.end = run.end;
        segment.max_timestamp = segment.max_timestamp.max(run.max_timestamp);
        self.pieces.push_back((self.segments.len() - 1, data));
    }

    /// Bytes that came and are not written yet.
    pub(super) fn unwritten(&self) -> usize {
        let waiting: usize = self.pieces.iter().map(|(_, data)| data.len()).sum();
        waiting + self.write.map_or(0, |(_, bytes)| bytes)
    }

    /// Whether no operation is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.write.is_none() && self.sync.is_none()
    }

    /// Whether all that came is written and durable.
    pub(super) fn is_durable(&self) -> bool {
        self.is_idle() && self.pieces.is_empty() && self.sync_at == self.segments.len()
    }

    /// The next write, of `most` bytes about; `is_all`: no more will come.
    pub(super) fn next_write(&mut self, token: IoToken, most: usize, is_all: bool) -> Option<IoOp> {
        if self.write.is_some() {
            return None;
        }
        let (first, _) = self.pieces.front()?;
        if *first != self.at {
            // What was behind the last page of the one before went with its last write.
            (self.at, self.written) = (*first, 0);
        }
        let of_this = self.pieces.iter().take_while(|(segment, _)| *segment == self.at);
        let here: usize = of_this.map(|(_, data)| data.len()).sum();
        let ends = is_all || self.pieces.back().is_some_and(|(segment, _)| *segment > self.at);
        let bytes = match ends && here <= most {
            true => here,
            false => {
                let end = (self.written as usize + here.min(most)) / JOURNAL_ALIGN * JOURNAL_ALIGN;
                end.saturating_sub(self.written as usize)
            }
        };
        let data = self.cut(bytes);
        if data.is_empty() {
            return None;
        }
        let base = self.segments.get(self.at)?.base;
        self.write = Some((token, bytes));
        Some(IoOp::Write { file: FileId::Segment(self.group, base), offset: self.written, data })
    }

    /// The first `bytes` of what waits.
    fn cut(&mut self, mut bytes: usize) -> Vec<ChunkSlice> {
        let mut cut = Vec::new();
        while bytes > 0
            && let Some((segment, data)) = self.pieces.pop_front()
        {
            let take = bytes.min(data.len());
            if take < data.len() {
                self.pieces.push_front((segment, data.slice(take, data.len() - take)));
            }
            cut.push(data.slice(0, take));
            bytes -= take;
        }
        cut
    }

    /// The next flush, if there is need for one. To be asked for before [`Self::is_durable`] is.
    pub(super) fn next_sync(&mut self, token: IoToken, is_all: bool) -> Option<IoOp> {
        if self.sync.is_some() {
            return None;
        }
        loop {
            let segment = self.segments.get(self.sync_at)?;
            let written = match self.sync_at < self.at {
                true => segment.bytes,
                false if self.sync_at == self.at => self.written,
                false => 0,
            };
            let ends = written == segment.bytes && (is_all || self.sync_at + 1 < self.segments.len());
            if ends && written == self.synced {
                (self.sync_at, self.synced) = (self.sync_at + 1, 0);
                continue;
            }
            if written - self.synced < STRETCH_BYTES && !ends {
                return None;
            }
            self.sync = Some((token, written));
            return Some(IoOp::Sync { file: FileId::Segment(self.group, segment.base) });
        }
    }

    /// An operation ended. False: it is none of them.
    pub(super) fn ended(&mut self, token: IoToken) -> bool {
        if let Some((_, bytes)) = self.write.take_if(|(own, _)| *own == token) {
            self.written += bytes as u64;
            return true;
        }
        let Some((_, synced)) = self.sync.take_if(|(own, _)| *own == token) else { return false };
        self.synced = synced;
        true
    }
}

#[cfg(test)]
mod tests {
    use pyralog_core::limits::CHUNK_BYTES;

    use super::*;
    use crate::memory::ChunkPool;

    const BOUND: u64 = 64 << 20;

    struct Case {
        writes: SegmentWrites,
        pool: ChunkPool,
        next: i64,
        token: u64,
    }

    impl Case {
        fn new() -> Self {
            let pool = ChunkPool::new(64 << 20);
            Self { writes: SegmentWrites::new(GroupId::new(1, 0)), pool, next: 0, token: 0 }
        }

        fn take(&mut self, bytes: usize, term: u32, bound: u64) {
            let chunk = self.pool.chunk(bytes).unwrap();
            chunk.append(&vec![term as u8; bytes]);
            let run = Run { base: self.next, end: self.next + 10, term, max_timestamp: self.next };
            self.next += 10;
            self.writes.take(run, ChunkSlice::new(chunk, 0, bytes), bound, 0);
        }

        fn write(&mut self, most: usize, is_all: bool) -> Option<(i64, u64, usize)> {
            let op = self.writes.next_write(IoToken(self.token + 1), most, is_all)?;
            self.token += 1;
            let IoOp::Write { file: FileId::Segment(_, base), offset, data } = op else { unreachable!() };
            Some((base, offset, data.iter().map(ChunkSlice::len).sum()))
        }

        fn sync(&mut self, is_all: bool) -> Option<i64> {
            let op = self.writes.next_sync(IoToken(self.token + 1), is_all)?;
            self.token += 1;
            let IoOp::Sync { file: FileId::Segment(_, base) } = op else { unreachable!() };
            Some(base)
        }

        fn end(&mut self) {
            assert!(self.writes.ended(IoToken(self.token)));
        }
    }

    #[test]
    fn writes_end_with_pages_until_the_segment_ends() {
        let mut case = Case::new();
        case.take(10_000, 1, BOUND);
        assert_eq!(case.write(1 << 20, false), Some((0, 0, 8192)));
        assert_eq!(case.write(1 << 20, false), None, "one at a time");
        case.end();
        assert_eq!(case.write(1 << 20, false), None, "less than a page is left");
        case.take(10_000, 1, BOUND);
        assert_eq!(case.write(5_000, false), Some((0, 8192, 4096)));
        case.end();
        // Another term, another segment: this one is written to its end.
        case.take(100, 2, BOUND);
        assert_eq!(case.write(1 << 20, false), Some((0, 12_288, 20_000 - 12_288)));
        case.end();
        assert_eq!(case.writes.unwritten(), 100);
        assert_eq!(case.write(1 << 20, false), None);
        assert_eq!(case.write(1 << 20, true), Some((20, 0, 100)));
        assert_eq!(case.writes.unwritten(), 100);
        case.end();
        assert_eq!(case.writes.unwritten(), 0);
    }

    #[test]
    fn a_flush_comes_behind_each_stretch_and_at_the_end_of_a_segment() {
        let mut case = Case::new();
        for _ in 0..2 {
            assert_eq!(case.sync(false), None);
            case.take(CHUNK_BYTES / 2, 1, 6 << 20);
            assert!(case.write(CHUNK_BYTES, false).is_some());
            case.end();
        }
        assert_eq!(case.sync(false), Some(0));
        assert_eq!(case.sync(false), None, "one at a time");
        let flush = IoToken(case.token);
        case.take(CHUNK_BYTES / 2, 1, 6 << 20);
        assert!(case.write(CHUNK_BYTES, false).is_some(), "beside the flush");
        case.end();
        assert!(case.writes.ended(flush));
        assert_eq!(case.sync(false), None, "two MiB since the last one");
        // The segment is full; what comes now belongs to the next one.
        case.take(1 << 20, 1, 6 << 20);
        assert_eq!(case.sync(false), Some(0));
        case.end();
        assert_eq!(case.write(CHUNK_BYTES, true), Some((30, 0, 1 << 20)));
        case.end();
        assert!(!case.writes.is_durable());
        assert_eq!(case.sync(true), Some(30));
        assert!(!case.writes.is_durable());
        case.end();
        assert_eq!(case.sync(true), None);
        assert!(case.writes.is_durable());
        assert!(!case.writes.ended(IoToken(9_999)));
        let segments = case.writes.take_segments();
        let all: Vec<_> = segments.iter().map(|at| (at.base, at.end, at.bytes)).collect();
        assert_eq!(all, [(0, 30, 6 << 20), (30, 40, 1 << 20)]);
    }

    #[test]
    fn what_was_flushed_before_its_segment_ended_is_flushed_no_more() {
        let mut case = Case::new();
        case.take(CHUNK_BYTES, 1, BOUND);
        assert!(case.write(CHUNK_BYTES, false).is_some());
        case.end();
        assert_eq!(case.sync(false), Some(0));
        case.end();
        // It turns out that this was its end.
        case.take(10, 2, BOUND);
        assert_eq!(case.sync(false), None, "nothing was written since");
        assert_eq!(case.write(CHUNK_BYTES, true), Some((10, 0, 10)));
        case.end();
        assert_eq!(case.sync(true), Some(10));
        case.end();
        assert_eq!(case.sync(true), None);
        assert!(case.writes.is_durable());
    }
}
