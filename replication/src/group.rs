//! The consensus group of one partition, seen from its leader's log: what is appended, what is durable
//! where, and therefore what is committed.

/// What the engine asks of a group. It holds no payload and does no I/O; offsets are record offsets.
pub trait Group {
    /// The leader's epoch; stamped into every batch.
    fn epoch(&self) -> u32;
    /// Whether this replica may append.
    fn is_leader(&self) -> bool;
    /// The log now ends at `log_end` (exclusive), appended in memory.
    fn appended(&mut self, log_end: i64);
    /// This replica's journal holds everything below `log_end`. Returns the high watermark, which never moves back.
    fn persisted(&mut self, log_end: i64) -> i64;
    /// Records below this are committed.
    fn high_watermark(&self) -> i64;
    /// Copies that a commit needs.
    fn quorum(&self) -> usize;
}

/// The group with one voter: its own durable copy is the quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SingleVoter {
    epoch: u32,
    log_end: i64,
    high_watermark: i64,
}

impl SingleVoter {
    /// A group whose log is durable up to `log_end`, led by this replica in `epoch`.
    pub fn recovered(epoch: u32, log_end: i64) -> Self {
        Self { epoch, log_end, high_watermark: log_end }
    }

    /// The offset after the last appended record.
    pub fn log_end(&self) -> i64 {
        self.log_end
    }
}

impl Group for SingleVoter {
    fn epoch(&self) -> u32 {
        self.epoch
    }

    fn is_leader(&self) -> bool {
        true
    }

    fn appended(&mut self, log_end: i64) {
        debug_assert!(log_end >= self.log_end, "a leader's log only grows");
        self.log_end = log_end;
    }

    fn persisted(&mut self, log_end: i64) -> i64 {
        self.high_watermark = self.high_watermark.max(log_end.min(self.log_end));
        self.high_watermark
    }

    fn high_watermark(&self) -> i64 {
        self.high_watermark
    }

    fn quorum(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_what_is_persisted_and_never_moves_back() {
        let mut group = SingleVoter::recovered(3, 10);
        group.appended(15);
        assert_eq!(group.high_watermark(), 10);
        assert_eq!(group.persisted(12), 12);
        assert_eq!(group.persisted(11), 12);
        assert_eq!(group.persisted(99), 15, "nothing beyond the log's end is ever committed");
    }
}
