//! The pace of reads from segments: whole while nobody writes, and in small pieces between the journal's writes while
//! somebody does.
//!
//! A disk with one queue serves what it was given one after the other, so an append waits for all of a read that was
//! there before it. Owner: the shard's thread.

use std::collections::VecDeque;

/// Somebody writes when the journal was written within this time, µs.
const QUIET_US: u64 = 20_000;
/// One piece while nobody writes, bytes.
const LARGE_BYTES: usize = 1 << 20;
/// Pieces with the disk at once while nobody writes.
const LARGE_AT_ONCE: usize = 4;
/// One piece while somebody writes, bytes: about the time of an append.
const SMALL_BYTES: usize = 128 << 10;
/// Reads that find the journal always busy get a piece once in this time, µs.
const PATIENCE_US: u64 = 1_000;

/// Reads that wait for their next piece, and what decides when it comes.
#[derive(Debug)]
pub(super) struct SegmentReads<T> {
    waiting: VecDeque<T>,
    pieces: usize,
    journal_writes: usize,
    /// When the journal was written last, µs; `None` = never.
    written_us: Option<u64>,
    /// When the last piece was begun, µs.
    begun_us: u64,
}

impl<T> Default for SegmentReads<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), pieces: 0, journal_writes: 0, written_us: None, begun_us: 0 }
    }
}

impl<T> SegmentReads<T> {
    /// A read wants its first or next piece.
    pub(super) fn push(&mut self, read: T) {
        self.waiting.push_back(read);
    }

    /// The read whose turn it is, and how much it may read at most, bytes; a multiple of the unit of direct I/O.
    pub(super) fn next(&mut self, now_us: u64) -> Option<(T, usize)> {
        let busy =
            self.journal_writes > 0 || self.written_us.is_some_and(|at| now_us.saturating_sub(at) < QUIET_US);
        let may = if busy {
            let patient = now_us.saturating_sub(self.begun_us) < PATIENCE_US;
            self.pieces == 0 && (self.journal_writes == 0 || !patient)
        } else {
            self.pieces < LARGE_AT_ONCE
        };
        let read = if may { self.waiting.pop_front()? } else { return None };
        self.pieces += 1;
        self.begun_us = now_us;
        Some((read, if busy { SMALL_BYTES } else { LARGE_BYTES }))
    }

    /// A piece has been read, or has failed.
    pub(super) fn piece_ended(&mut self) {
        self.pieces -= 1;
    }

    /// A journal write is given to the disk.
    pub(super) fn journal_begun(&mut self, now_us: u64) {
        self.journal_writes += 1;
        self.written_us = Some(now_us);
    }

    /// A journal write has ended.
    pub(super) fn journal_ended(&mut self, now_us: u64) {
        self.journal_writes -= 1;
        self.written_us = Some(now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_take_turns_in_large_pieces_while_nobody_writes() {
        let mut reads = SegmentReads::default();
        (0..6).for_each(|read| reads.push(read));
        let begun: Vec<_> = std::iter::from_fn(|| reads.next(1)).collect();
        assert_eq!(begun, [0, 1, 2, 3].map(|read| (read, LARGE_BYTES)));
        reads.push(0);
        reads.piece_ended();
        assert_eq!(reads.next(2), Some((4, LARGE_BYTES)));
        assert_eq!(reads.next(2), None);
    }

    #[test]
    fn a_small_piece_at_a_time_goes_between_the_journals_writes() {
        let mut reads = SegmentReads::default();
        reads.push('a');
        reads.push('b');
        reads.journal_begun(0);
        assert_eq!(reads.next(PATIENCE_US - 1), None, "the disk has an append to do");
        reads.journal_ended(PATIENCE_US - 1);
        let now_us = PATIENCE_US - 1;
        assert_eq!(reads.next(now_us), Some(('a', SMALL_BYTES)));
        assert_eq!(reads.next(now_us), None, "one at a time");
        reads.piece_ended();
        assert_eq!(reads.next(now_us), Some(('b', SMALL_BYTES)));
        reads.piece_ended();
        reads.push('a');
        assert_eq!(reads.next(now_us + QUIET_US), Some(('a', LARGE_BYTES)), "nobody has written for a while");
    }

    #[test]
    fn a_journal_that_is_always_busy_starves_nobody() {
        let mut reads = SegmentReads::default();
        reads.journal_begun(0);
        reads.push('a');
        assert_eq!(reads.next(PATIENCE_US), Some(('a', SMALL_BYTES)));
        reads.piece_ended();
        reads.push('a');
        assert_eq!(reads.next(PATIENCE_US + 1), None);
        assert_eq!(reads.next(2 * PATIENCE_US), Some(('a', SMALL_BYTES)));
    }
}
