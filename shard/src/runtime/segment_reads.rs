//! The pace of reads from segments: as fast as the disk can while nobody writes, and in small pieces between the journal's
//! writes, at a bounded rate, while somebody does.
//!
//! A disk with one queue serves what it was given one after the other, so an append waits for all of a read that was
//! there before it. And what is read is checked and sent by the thread that appends. Owner: the shard's thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pyralog_core::limits::JOURNAL_QUIET_US;

/// The shards tell each other that they write no more often than this, µs: what they tell it by is a cache line that all of
/// them read.
const TELL_EVERY_US: u64 = 1_000;
/// One piece while nobody writes, bytes.
const LARGE_BYTES: usize = 1 << 20;
/// Pieces with the disk at once while nobody writes.
const LARGE_AT_ONCE: usize = 4;
/// One piece while somebody writes, bytes: about the time of an append.
const SMALL_BYTES: usize = 128 << 10;
/// How fast reads may go on while somebody writes, bytes/µs (MB/s).
const RATE_BYTES_PER_US: u64 = 128;
/// What may be read at once after a while without reads, bytes: one fetch with what is read ahead of it.
const BURST_BYTES: u64 = 2 << 20;
/// A journal write that takes so many times as long as they usually do tells that the disk is slow at present: a read
/// would make the next one slower still.
const SLOW_TIMES: u64 = 2;
/// Reads wait then until a journal write is not slow, and for this time after the last slow one at most, µs.
const SLOW_FOR_US: u64 = 10_000;
/// The usual time of a journal write is the mean of about so many.
const USUAL_OF: u64 = 64;
/// A piece that finds the journal always busy begins after this time all the same, µs.
const PATIENCE_US: u64 = 2_000;

/// When any shard of the node wrote its journal last, on the node's clock: their disk is one, as far as anybody knows here.
/// Shared by all shards' threads.
#[derive(Clone, Debug, Default)]
pub(super) struct JournalWritten {
    /// 1 more than the time, µs; 0 = never.
    told: Arc<AtomicU64>,
}

impl JournalWritten {
    fn tell(&self, now_us: u64) {
        let told = self.told.load(Ordering::Relaxed);
        if told == 0 || told.saturating_add(TELL_EVERY_US) <= now_us + 1 {
            self.told.store(now_us + 1, Ordering::Relaxed);
        }
    }

    fn is_recent(&self, now_us: u64) -> bool {
        let told = self.told.load(Ordering::Relaxed);
        told > 0 && (now_us + 1).saturating_sub(told) < JOURNAL_QUIET_US
    }
}

/// Reads that wait for their next piece, and what decides when it comes.
#[derive(Debug)]
pub(super) struct SegmentReads<T> {
    waiting: VecDeque<T>,
    pieces: usize,
    /// When the journal writes that are with the disk were begun, µs.
    journal_begun_us: VecDeque<u64>,
    /// The usual time of one, µs, times [`USUAL_OF`]; 0 = none has ended.
    usual_us_times: u64,
    /// The disk is slow until then, µs.
    slow_until_us: u64,
    written: JournalWritten,
    /// When the last piece was begun, or a read came that found none waiting, µs.
    since_us: u64,
    /// What may be read while somebody writes, bytes, as of `counted_us`.
    allowed_bytes: u64,
    counted_us: u64,
}

impl<T> SegmentReads<T> {
    pub(super) fn new(written: JournalWritten) -> Self {
        Self {
            waiting: VecDeque::new(),
            pieces: 0,
            journal_begun_us: VecDeque::with_capacity(16),
            usual_us_times: 0,
            slow_until_us: 0,
            written,
            since_us: 0,
            allowed_bytes: BURST_BYTES,
            counted_us: 0,
        }
    }

    /// A read wants its first or next piece.
    pub(super) fn push(&mut self, read: T, now_us: u64) {
        if self.waiting.is_empty() {
            self.since_us = now_us;
        }
        self.waiting.push_back(read);
    }

    /// A read wants to go on. It comes first: what is read whole is served, and its memory free, the soonest so.
    pub(super) fn push_on(&mut self, read: T) {
        self.waiting.push_front(read);
    }

    /// The read whose turn it is, and how much it may read at most, bytes; a multiple of the unit of direct I/O.
    pub(super) fn next(&mut self, now_us: u64) -> Option<(T, usize)> {
        if self.waiting.is_empty() || !self.may_begin(now_us) {
            return None;
        }
        let read = self.waiting.pop_front()?;
        self.count(now_us);
        let most = if self.is_written(now_us) { SMALL_BYTES } else { LARGE_BYTES };
        self.allowed_bytes = self.allowed_bytes.saturating_sub(most as u64);
        self.pieces += 1;
        self.since_us = now_us;
        Some((read, most))
    }

    /// When [`Self::next`] is to be asked again, unless a piece or a journal write ends before, µs.
    pub(super) fn due_us(&self) -> Option<u64> {
        if self.waiting.is_empty() || self.pieces > 0 {
            return None;
        }
        let missing = (SMALL_BYTES as u64).saturating_sub(self.allowed_bytes);
        let allowed_us = (self.counted_us + missing.div_ceil(RATE_BYTES_PER_US)).max(self.slow_until_us);
        Some(if self.journal_begun_us.is_empty() {
            allowed_us
        } else {
            allowed_us.max(self.since_us + PATIENCE_US)
        })
    }

    /// A piece has been read, or has failed.
    pub(super) fn piece_ended(&mut self) {
        self.pieces -= 1;
    }

    /// A journal write is given to the disk.
    pub(super) fn journal_begun(&mut self, now_us: u64) {
        self.journal_begun_us.push_back(now_us);
        self.written.tell(now_us);
    }

    /// A journal write has ended.
    pub(super) fn journal_ended(&mut self, now_us: u64) {
        self.written.tell(now_us);
        // They end in their order but for a few.
        let Some(begun_us) = self.journal_begun_us.pop_front() else { return };
        let took_us = now_us.saturating_sub(begun_us);
        let usual_us = self.usual_us_times / USUAL_OF;
        let slow = usual_us > 0 && took_us > SLOW_TIMES * usual_us;
        self.slow_until_us = if slow { now_us + SLOW_FOR_US } else { now_us };
        self.usual_us_times = match usual_us {
            0 => took_us * USUAL_OF,
            // One that took very long counts for a few, so that they become usual only if they go on.
            _ => self.usual_us_times - usual_us + took_us.min(2 * SLOW_TIMES * usual_us),
        };
    }

    fn may_begin(&self, now_us: u64) -> bool {
        if self.is_written(now_us) {
            self.due_us().is_some_and(|due| due <= now_us)
        } else {
            self.pieces < LARGE_AT_ONCE
        }
    }

    fn is_written(&self, now_us: u64) -> bool {
        !self.journal_begun_us.is_empty() || self.written.is_recent(now_us)
    }

    fn count(&mut self, now_us: u64) {
        let more = now_us.saturating_sub(self.counted_us).saturating_mul(RATE_BYTES_PER_US);
        self.allowed_bytes = self.allowed_bytes.saturating_add(more).min(BURST_BYTES);
        self.counted_us = self.counted_us.max(now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: usize = BURST_BYTES as usize / SMALL_BYTES;

    #[test]
    fn reads_go_in_large_pieces_while_nobody_writes() {
        let mut reads = SegmentReads::new(JournalWritten::default());
        (0..6).for_each(|read| reads.push(read, 0));
        let begun: Vec<_> = std::iter::from_fn(|| reads.next(1)).collect();
        assert_eq!(begun, [0, 1, 2, 3].map(|read| (read, LARGE_BYTES)));
        reads.push_on(0);
        assert_eq!(reads.due_us(), None, "the end of a piece is waited for");
        reads.piece_ended();
        assert_eq!(reads.next(2), Some((0, LARGE_BYTES)), "what was begun is ended first");
        assert_eq!(reads.next(2), None);
    }

    #[test]
    fn a_small_piece_at_a_time_goes_between_the_journals_writes() {
        let mut reads = SegmentReads::new(JournalWritten::default());
        reads.push('a', 0);
        reads.push('b', 0);
        reads.journal_begun(0);
        assert_eq!(reads.next(PATIENCE_US - 1), None, "the disk has an append to do");
        assert_eq!(reads.due_us(), Some(PATIENCE_US));
        reads.journal_ended(PATIENCE_US - 1);
        let now_us = PATIENCE_US - 1;
        assert_eq!(reads.next(now_us), Some(('a', SMALL_BYTES)));
        assert_eq!(reads.next(now_us), None, "one at a time");
        reads.piece_ended();
        assert_eq!(reads.next(now_us), Some(('b', SMALL_BYTES)));
        reads.piece_ended();
        reads.push('a', now_us);
        assert_eq!(
            reads.next(now_us + JOURNAL_QUIET_US),
            Some(('a', LARGE_BYTES)),
            "nobody has written for a while"
        );
    }

    #[test]
    fn beside_writes_reads_go_at_a_bounded_rate_after_a_first_burst() {
        let mut reads = SegmentReads::new(JournalWritten::default());
        reads.journal_begun(0);
        reads.journal_ended(0);
        reads.push((), 0);
        let mut read_bytes = 0;
        let mut now_us = 0;
        let mut begun_us = Vec::new();
        while now_us < JOURNAL_QUIET_US - 1 {
            while let Some((read, bytes)) = reads.next(now_us) {
                assert_eq!(bytes, SMALL_BYTES);
                read_bytes += bytes as u64;
                begun_us.push(now_us);
                reads.piece_ended();
                reads.push_on(read);
            }
            let due_us = reads.due_us().unwrap();
            assert!(due_us > now_us, "or it would be asked again and again");
            now_us = due_us;
        }
        assert!(begun_us.iter().take(BURST).all(|at| *at == 0));
        assert_eq!(begun_us.get(BURST), Some(&(SMALL_BYTES as u64 / RATE_BYTES_PER_US)));
        assert!(read_bytes <= BURST_BYTES + RATE_BYTES_PER_US * JOURNAL_QUIET_US, "{read_bytes}");
        assert!(read_bytes >= RATE_BYTES_PER_US * JOURNAL_QUIET_US, "{read_bytes}");
    }

    #[test]
    fn a_shard_that_only_reads_holds_back_for_one_that_writes() {
        let written = JournalWritten::default();
        let (mut reads, mut other) = (SegmentReads::new(written.clone()), SegmentReads::<()>::new(written));
        reads.push('a', 5);
        other.journal_begun(5);
        assert_eq!(reads.next(5), Some(('a', SMALL_BYTES)));
        reads.piece_ended();
        other.journal_ended(1_500);
        let quiet_us = 1_500 + JOURNAL_QUIET_US;
        reads.push('b', quiet_us - 1);
        reads.push('c', quiet_us - 1);
        assert_eq!(reads.next(quiet_us - 1), Some(('b', SMALL_BYTES)));
        assert_eq!(reads.next(quiet_us - 1), None, "one at a time");
        assert_eq!(reads.next(quiet_us), Some(('c', LARGE_BYTES)));
    }

    /// A journal write of this time.
    fn write<T>(reads: &mut SegmentReads<T>, now_us: &mut u64, took_us: u64) {
        reads.journal_begun(*now_us);
        *now_us += took_us;
        reads.journal_ended(*now_us);
    }

    #[test]
    fn reads_wait_while_the_disk_is_slow() {
        let mut reads = SegmentReads::new(JournalWritten::default());
        let mut now_us = 1_000;
        (0..100).for_each(|_| write(&mut reads, &mut now_us, 100));
        reads.push('a', now_us);
        write(&mut reads, &mut now_us, 2 * 100 + 1);
        assert_eq!(reads.next(now_us), None, "it would make the next write slower still");
        assert_eq!(reads.due_us(), Some(now_us + SLOW_FOR_US));
        write(&mut reads, &mut now_us, 100);
        assert_eq!(reads.next(now_us), Some(('a', SMALL_BYTES)), "it is not slow any more");
        reads.piece_ended();
        reads.push_on('a');
        write(&mut reads, &mut now_us, 20_000);
        assert_eq!(reads.next(now_us + SLOW_FOR_US - 1), None);
        assert_eq!(reads.next(now_us + SLOW_FOR_US), Some(('a', SMALL_BYTES)), "nobody writes");
    }

    #[test]
    fn what_goes_on_is_not_slow_but_usual() {
        let mut reads = SegmentReads::new(JournalWritten::default());
        let mut now_us = 1_000;
        (0..100).for_each(|_| write(&mut reads, &mut now_us, 100));
        reads.push('a', now_us);
        let waited = (0..).take_while(|_| {
            write(&mut reads, &mut now_us, 5_000);
            reads.next(now_us).is_none()
        });
        assert!((10..200).contains(&waited.count()));
    }

    #[test]
    fn a_journal_that_is_always_busy_starves_nobody() {
        let mut reads = SegmentReads::new(JournalWritten::default());
        reads.journal_begun(0);
        // It waits for the journal from when it came on, however long there was nothing to read before.
        reads.push('a', 7 * PATIENCE_US);
        assert_eq!(reads.next(8 * PATIENCE_US - 1), None);
        assert_eq!(reads.next(8 * PATIENCE_US), Some(('a', SMALL_BYTES)));
        reads.piece_ended();
        reads.push_on('a');
        assert_eq!(reads.next(8 * PATIENCE_US + 1), None);
        assert_eq!(reads.next(9 * PATIENCE_US), Some(('a', SMALL_BYTES)));
    }
}
