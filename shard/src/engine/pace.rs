//! How fast a run of the flusher writes segments: not all at once, since the journal's writes wait behind it at the disk
//! and the processors, but always fast enough to be done before the memory is needed.
//!
//! A credit of bytes, refilled by what is appended and by time. Appends give one and a half times their size, so that a run
//! that begins when three eighths of the cache are in no segment ends before five eighths are, however fast producers are
//! (`docs/decisions/0011-the-flusher-paces-itself.md`). Time gives what would end the run within [`RUN_US`] without any
//! appends. What a slow disk leaves of the credit is lost, and the run becomes urgent when the cache fills up.

/// A run without appends takes about so long, microseconds; half the time that something may be in no segment, if that is less.
const RUN_US: u64 = 5_000_000;
/// Least rate of a run, bytes per second: so slow a trickle disturbs nobody.
const LEAST_BYTES_PER_S: u64 = 8 << 20;
/// Credit that time gives does not grow beyond this, bytes: what a run may write in one go.
const BURST_BYTES: i64 = 512 << 10;
/// Credit that appends give does not grow beyond this, bytes: more than is appended in a pass, or while a segment is flushed.
const APPENDED_BYTES: i64 = 16 << 20;

/// The credit of the running run.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes; a write is begun when it is above zero, and takes it below.
    credit: i64,
    bytes_per_s: u64,
    refilled_us: u64,
}

impl Pace {
    /// A run begins that has `bytes` to write, none of which should be in no segment for longer than `max_buffer_time_us`.
    pub(super) fn begin(&mut self, now_us: u64, bytes: u64, max_buffer_time_us: u64) {
        let run_us = (max_buffer_time_us / 2).clamp(1, RUN_US);
        self.bytes_per_s = (bytes.saturating_mul(1_000_000) / run_us).max(LEAST_BYTES_PER_S);
        self.credit = BURST_BYTES;
        self.refilled_us = now_us;
    }

    /// `bytes` were appended.
    pub(super) fn appended(&mut self, bytes: u64) {
        self.give(bytes.saturating_add(bytes / 2), APPENDED_BYTES);
    }

    /// Time has gone by.
    pub(super) fn refill(&mut self, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.refilled_us);
        let bytes = u128::from(elapsed_us) * u128::from(self.bytes_per_s) / 1_000_000;
        if bytes > 0 {
            self.refilled_us = now_us;
            self.give(u64::try_from(bytes).unwrap_or(u64::MAX), BURST_BYTES);
        }
    }

    fn give(&mut self, bytes: u64, bound: i64) {
        self.credit = self.credit.saturating_add_unsigned(bytes).min(bound.max(self.credit));
    }

    /// Whether a write may begin.
    pub(super) fn allows(&self) -> bool {
        self.credit > 0
    }

    /// A write of `bytes` begins.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_sub_unsigned(bytes as u64);
    }

    /// When time alone will have given enough for the next write, monotonic microseconds.
    pub(super) fn due_us(&self) -> u64 {
        let missing = u128::from(1_i64.saturating_sub(self.credit).max(0).unsigned_abs());
        let wait_us = (missing * 1_000_000).div_ceil(u128::from(self.bytes_per_s.max(1)));
        self.refilled_us.saturating_add(u64::try_from(wait_us).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes of `size` bytes until `bytes` are written; how long that took, microseconds.
    fn run(bytes: u64, size: usize, max_buffer_time_us: u64) -> u64 {
        let mut pace = Pace::default();
        let (mut now_us, mut left) = (7_u64, bytes);
        pace.begin(now_us, bytes, max_buffer_time_us);
        while left > 0 {
            while !pace.allows() {
                assert!(pace.due_us() > now_us, "it is due later than now");
                now_us = pace.due_us();
                pace.refill(now_us);
            }
            pace.spend(size);
            left = left.saturating_sub(size as u64);
        }
        now_us - 7
    }

    #[test]
    fn a_run_without_appends_is_spread_over_its_time_or_goes_at_the_least_rate() {
        let took_us = run(128 << 20, 256 << 10, 10_000_000);
        assert!((4_900_000..=RUN_US).contains(&took_us), "{took_us}");
        let took_us = run(128 << 20, 256 << 10, 1_000_000);
        assert!((490_000..=500_000).contains(&took_us), "{took_us}");
        let took_us = run(5 << 19, 256 << 10, 10_000_000);
        assert!(
            (200_000..=250_000).contains(&took_us),
            "2 MiB beyond the burst at 8 MiB a second: {took_us}"
        );
        assert_eq!(run(1 << 19, 256 << 10, 10_000_000), 0, "a small run is done at once");
    }

    #[test]
    fn appends_give_one_and_a_half_times_their_size() {
        let mut pace = Pace::default();
        pace.begin(0, 1 << 30, u64::MAX);
        pace.spend(BURST_BYTES as usize + (3 << 10));
        pace.appended(2 << 10);
        assert!(!pace.allows(), "3 KiB were missing and 3 KiB were given: nothing is above zero");
        pace.appended(1);
        assert!(pace.allows());
    }

    #[test]
    fn unused_credit_is_bounded() {
        let mut pace = Pace::default();
        pace.begin(0, 1 << 30, u64::MAX);
        pace.refill(3_600_000_000);
        pace.spend(BURST_BYTES as usize);
        assert!(!pace.allows(), "of time");
        pace.appended(u64::MAX);
        pace.refill(7_200_000_000);
        pace.spend(APPENDED_BYTES as usize);
        assert!(!pace.allows(), "of appends, and time adds nothing to it");
    }

    proptest! {
        #[test]
        fn it_is_always_due_when_time_allows_the_next_write(
            bytes in 0..u64::MAX, size in 1..usize::MAX / 2, steps in 1..20_usize, at in 0..u64::MAX / 2,
            max_buffer_time_us in 0..u64::MAX,
        ) {
            let mut pace = Pace::default();
            pace.begin(at, bytes, max_buffer_time_us);
            for _ in 0..steps {
                pace.spend(size);
                let due = pace.due_us();
                pace.refill(due);
                prop_assert!(pace.allows() || due == u64::MAX);
            }
        }
    }
}
