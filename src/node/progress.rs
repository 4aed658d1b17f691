//! The line about a replay that takes longer than a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pyralog_core::ShardId;

use crate::units;

/// One line per this time, whatever the number of shards.
const EVERY: Duration = Duration::from_secs(1);

/// How far the shards are with their journals.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Done and total bytes.
    shards: BTreeMap<ShardId, (u64, u64)>,
    told: Option<Instant>,
    ready: bool,
}

impl Progress {
    /// Takes one shard's progress; a line for the terminal when it is time for one.
    pub(crate) fn update(&mut self, shard: ShardId, done: u64, total: u64, now: Instant) -> Option<String> {
        self.shards.insert(shard, (done, total));
        let due = self.told.is_none_or(|told| now.saturating_duration_since(told) >= EVERY);
        if !due {
            return None;
        }
        self.told = Some(now);
        let (done, total) = self
            .shards
            .values()
            .fold((0u64, 0u64), |sum, shard| (sum.0.saturating_add(shard.0), sum.1.saturating_add(shard.1)));
        let percent = done.saturating_mul(100) / total.max(1);
        Some(format!(
            "replaying the journals: {} of {} ({percent} %)\n",
            units::bytes(done),
            units::bytes(total)
        ))
    }

    /// True the first time only: a shard that recovers later is ready again without a new start.
    pub(crate) fn first_time_ready(&mut self) -> bool {
        !std::mem::replace(&mut self.ready, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_sums_up_the_shards() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let line = progress.update(ShardId(0), 1 << 30, 4 << 30, start);
        assert_eq!(line.as_deref(), Some("replaying the journals: 1.0 GiB of 4.0 GiB (25 %)\n"));
        assert_eq!(progress.update(ShardId(1), 1 << 30, 1 << 30, start + EVERY / 2), None);
        let line = progress.update(ShardId(0), 2 << 30, 3 << 30, start + EVERY);
        assert_eq!(line.as_deref(), Some("replaying the journals: 3.0 GiB of 4.0 GiB (75 %)\n"));
        assert!(progress.first_time_ready());
        assert!(!progress.first_time_ready());
    }
}
