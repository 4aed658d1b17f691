//! What the shards of a node may receive together to bring replicas up to date, and in which order they get it.
//!
//! Time is given away in stretches: a turn of so many bytes takes the stretch that the rate needs for them, behind those that
//! were given before, and comes when its stretch begins. A shard wants one turn at a time, so shards that want more take
//! theirs in the order of a ring, and turns are small: each gets as many bytes as the others. What one does not want is
//! nobody's, and the next turn comes sooner for it.
//!
//! One atomic word, shared by the threads of all shards; no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A shard that looks so late for its turn loses nothing of its rate, nanoseconds: its timers are that exact.
const LATE_NS: u64 = 10_000_000;
const NS_PER_S: u128 = 1_000_000_000;

/// The budget of a node; clones are of the same one.
#[derive(Clone, Debug)]
pub struct RecoveryBudget {
    bytes_per_s: u64,
    /// The end of the last stretch that was given away, nanoseconds on the node's clock.
    given_to_ns: Arc<AtomicU64>,
}

impl RecoveryBudget {
    /// One of so many bytes per second.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), given_to_ns: Arc::default() }
    }

    /// Gives away the next `bytes`. Returns when their turn is, microseconds on the node's clock, of which `now_us` is the
    /// time.
    pub fn turn_us(&self, now_us: u64, bytes: usize) -> u64 {
        let takes_ns = (bytes as u128 * NS_PER_S).div_ceil(u128::from(self.bytes_per_s));
        let takes_ns = u64::try_from(takes_ns).unwrap_or(u64::MAX);
        let earliest_ns = now_us.saturating_mul(1_000).saturating_sub(LATE_NS);
        let begins = |given_to_ns: u64| given_to_ns.max(earliest_ns);
        let give = |given_to_ns| Some(begins(given_to_ns).saturating_add(takes_ns));
        // Nothing else is told by it: the order of other memory does not matter.
        let before = self.given_to_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
        begins(before.unwrap_or(0)).div_ceil(1_000).max(now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 32 << 20;
    const TURN: usize = 256 << 10;

    /// Shards that want turns of so many bytes, each again so long after its last one, until `end_us`. What each got.
    fn run(budget: &RecoveryBudget, shards: &[(usize, u64)], end_us: u64) -> Vec<u64> {
        // When each wants its next turn, or has it.
        let mut next: Vec<(u64, bool)> = vec![(0, false); shards.len()];
        let mut got = vec![0; shards.len()];
        loop {
            let first = next.iter().copied().enumerate().min_by_key(|(_, (at_us, _))| *at_us);
            let Some((shard, (now_us, has_come))) = first.filter(|(_, (at_us, _))| *at_us < end_us) else {
                return got;
            };
            let (bytes, after_us) = shards[shard];
            next[shard] = match has_come {
                true => (now_us + after_us, false),
                false => (budget.turn_us(now_us, bytes), true),
            };
            got[shard] += if has_come { bytes as u64 } else { 0 };
        }
    }

    fn is_about(bytes: u64, wanted: u64) -> bool {
        let burst = LATE_NS * RATE / 1_000_000_000 + TURN as u64;
        bytes >= wanted - wanted / 50 && bytes <= wanted + wanted / 50 + burst
    }

    #[test]
    fn shards_that_want_more_share_alike() {
        let got = run(&RecoveryBudget::new(RATE), &[(TURN, 0); 4], 2_000_000);
        assert!(got.iter().all(|bytes| is_about(*bytes, RATE / 2)), "{got:?}");
    }

    #[test]
    fn what_one_does_not_want_the_others_get() {
        // The first wants a turn of 8 ms every 80 ms.
        let got = run(&RecoveryBudget::new(RATE), &[(TURN, 80_000), (TURN, 0)], 2_000_000);
        assert!(is_about(got.iter().sum(), 2 * RATE), "{got:?}");
        assert!(got[0] * 5 < got[1], "{got:?}");
        let alone = run(&RecoveryBudget::new(RATE), &[(TURN, 0)], 2_000_000);
        assert!(is_about(alone[0], 2 * RATE), "{alone:?}");
    }

    #[test]
    fn who_looks_late_keeps_the_rate_and_who_pauses_saves_nothing_up() {
        let late = run(&RecoveryBudget::new(RATE), &[(TURN, 4_000)], 2_000_000);
        assert!(is_about(late[0], 2 * RATE), "{late:?}");
        let budget = RecoveryBudget::new(RATE);
        run(&budget, &[(TURN, 0)], 1_000_000);
        // An hour later.
        let mut turns = (0..).map(|_| budget.turn_us(3_600_000_000, TURN));
        let at_once = turns.by_ref().take_while(|due| *due == 3_600_000_000).count();
        assert!(at_once as u64 * TURN as u64 <= LATE_NS * RATE / 1_000_000_000 + TURN as u64, "{at_once}");
    }

    #[test]
    fn threads_share_one_budget() {
        let budget = RecoveryBudget::new(RATE);
        let last = std::thread::scope(|scope| {
            let take = || (0..1_000).map(|_| budget.turn_us(0, TURN)).max().unwrap_or(0);
            let threads = [scope.spawn(take), scope.spawn(take)];
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).max().unwrap_or(0)
        });
        // One takes 7,812.5 microseconds.
        assert_eq!(last, (1_999_u64 * 15_625).div_ceil(2), "no turn is given twice");
    }

    #[test]
    fn numbers_at_their_ends_do_not_overflow() {
        let slow = RecoveryBudget::new(0);
        assert_eq!(slow.turn_us(u64::MAX, usize::MAX), u64::MAX);
        assert_eq!(slow.turn_us(u64::MAX, usize::MAX), u64::MAX);
        assert_eq!(RecoveryBudget::new(u64::MAX).turn_us(7, usize::MAX), 7);
    }
}
