//! Where the time of a produce goes, as far as a shard can see.
//!
//! A produce that arrives is laid down in the pass that takes it, so the first journal write that begins from then on holds
//! it. That is known from the times alone: no request carries anything for this, and nothing is looked up but the last
//! few journal writes. Times are those of the shard's passes.
//!
//! Owner: the shard's thread.

use std::collections::VecDeque;

use hdrhistogram::{CreationError, Histogram};

use crate::engine::IoToken;

/// Journal writes that are remembered. Fewer begin while one produce is on its way, but for one that waits for a quorum for long,
/// which is left out.
const WRITES: usize = 256;
/// Longest time told apart, microseconds.
const LONGEST_US: u64 = 120_000_000;

/// One journal write.
#[derive(Clone, Copy, Debug)]
struct Write {
    token: IoToken,
    began_us: u64,
    ended_us: Option<u64>,
}

/// Histograms of the parts of a produce's time, microseconds.
#[derive(Clone, Debug)]
pub struct Stages {
    /// From its arrival until its journal write begins: earlier ones are under way, as many as there may be.
    pub wait_us: Histogram<u64>,
    /// Its journal write, or until its reply when a quorum of others was faster.
    pub flush_us: Histogram<u64>,
    /// From the end of its journal write until its reply: the other replicas of a quorum.
    pub quorum_us: Histogram<u64>,
    /// From the beginning of a send of replies until the shard has seen its end: at its next wake-up, so an upper bound.
    pub reply_us: Histogram<u64>,
    writes: VecDeque<Write>,
    forgotten: bool,
}

impl Stages {
    /// Nothing yet.
    pub fn new() -> Result<Self, CreationError> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_US, 3);
        Ok(Self {
            wait_us: histogram()?,
            flush_us: histogram()?,
            quorum_us: histogram()?,
            reply_us: histogram()?,
            writes: VecDeque::with_capacity(WRITES),
            forgotten: false,
        })
    }

    /// A journal write begins.
    pub(super) fn journal_began(&mut self, token: IoToken, now_us: u64) {
        if self.writes.len() == WRITES {
            self.writes.pop_front();
            self.forgotten = true;
        }
        self.writes.push_back(Write { token, began_us: now_us, ended_us: None });
    }

    /// An operation has ended; of interest if it is a journal write.
    pub(super) fn ended(&mut self, token: IoToken, now_us: u64) {
        let newest_first = self.writes.iter_mut().rev();
        if let Some(write) = newest_first.into_iter().find(|write| write.token == token) {
            write.ended_us = Some(now_us);
        }
    }

    /// A produce that arrived then is answered now.
    pub(super) fn answered(&mut self, arrived_us: u64, now_us: u64) {
        let at = self.writes.partition_point(|write| write.began_us < arrived_us);
        let Some(write) = self.writes.get(at).filter(|_| at > 0 || !self.forgotten) else { return };
        let ended_us = write.ended_us.unwrap_or(now_us).min(now_us);
        self.wait_us.saturating_record(write.began_us.saturating_sub(arrived_us));
        self.flush_us.saturating_record(ended_us.saturating_sub(write.began_us));
        self.quorum_us.saturating_record(now_us.saturating_sub(ended_us));
    }

    /// A send of replies took so long.
    pub(super) fn sent(&mut self, took_us: u64) {
        self.reply_us.saturating_record(took_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(histogram: &Histogram<u64>) -> u64 {
        assert_eq!(histogram.len(), 1);
        histogram.max()
    }

    #[test]
    fn the_parts_are_those_of_the_first_write_that_begins_behind_the_arrival() {
        let mut stages = Stages::new().unwrap();
        stages.journal_began(IoToken(1), 100);
        stages.journal_began(IoToken(2), 150);
        stages.ended(IoToken(1), 210);
        stages.ended(IoToken(2), 250);
        stages.answered(120, 300);
        assert_eq!((only(&stages.wait_us), only(&stages.flush_us), only(&stages.quorum_us)), (30, 100, 50));
        stages.sent(7);
        assert_eq!(only(&stages.reply_us), 7);
    }

    #[test]
    fn a_quorum_of_others_may_be_faster_than_the_own_disk() {
        let mut stages = Stages::new().unwrap();
        stages.journal_began(IoToken(1), 100);
        stages.answered(100, 180);
        assert_eq!((only(&stages.wait_us), only(&stages.flush_us), only(&stages.quorum_us)), (0, 80, 0));
    }

    #[test]
    fn what_is_not_remembered_is_left_out() {
        let mut stages = Stages::new().unwrap();
        stages.answered(5, 10);
        for write in 0..=WRITES as u64 {
            stages.journal_began(IoToken(write), 100 + write);
        }
        stages.answered(5, 1_000);
        assert!(stages.wait_us.is_empty());
        assert_eq!(stages.writes.len(), WRITES);
    }
}
