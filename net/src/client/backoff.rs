//! Waiting between attempts.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(500);

/// Doubles from 5 ms to half a second, with jitter so that clients of a restarted node do not come all at once.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST, random: RandomState::new().hash_one(0u8) | 1 }
    }

    /// The last attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// How long to wait before the next attempt: between half and all of the current step.
    pub(crate) fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LONGEST);
        // xorshift64: any spread will do.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        step / 2 + (step / 2).mul_f64((self.random % 1024) as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_over() {
        let mut backoff = Backoff::new();
        let steps: Vec<_> = (0..12).map(|_| backoff.step()).collect();
        assert!(steps[0] >= FIRST / 2 && steps[0] <= FIRST);
        assert!(steps[11] >= LONGEST / 2 && steps[11] <= LONGEST);
        backoff.reset();
        assert!(backoff.step() <= FIRST);
    }
}
