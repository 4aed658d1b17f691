//! Waiting between attempts.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::error::ClientError;

/// A node that has kept silent for so long may have lost what it led to others, and others are asked; so long, too, is
/// tried to connect to one of several at first.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);
/// Longer times of a configuration are taken for this: every sum with the time now can be told.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(366 * 86_400);
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

/// Attempts at one thing, until its time is over.
#[derive(Debug)]
pub(crate) struct Retries {
    /// `None` for ever.
    deadline: Option<Instant>,
    backoff: Backoff,
}

impl Retries {
    /// Attempts within `time` from now on.
    pub(crate) fn within(time: Duration) -> Self {
        Self { deadline: Instant::now().checked_add(time), backoff: Backoff::new() }
    }

    /// Whether another attempt makes sense: `error` passes by itself, and there is time left.
    pub(crate) fn go_on(&self, error: &ClientError) -> bool {
        error.retriable() && self.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }

    /// How long to wait before the next attempt; `None` when `error` won't pass by itself, or not in time.
    pub(crate) fn after(&mut self, error: &ClientError) -> Option<Duration> {
        let wait = self.backoff.step();
        let in_time = self.deadline.is_none_or(|deadline| Instant::now() + wait < deadline);
        (error.retriable() && in_time).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use pyralog_core::ErrorCode;

    use super::*;

    #[test]
    fn only_what_passes_is_tried_again_and_only_in_time() {
        let error = |code| ClientError::Server { code, detail: String::new() };
        let mut retries = Retries::within(Duration::from_secs(60));
        assert!(retries.after(&error(ErrorCode::NotLeader)).is_some_and(|wait| wait <= FIRST));
        assert_eq!(retries.after(&error(ErrorCode::InvalidRequest)), None);
        assert_eq!(Retries::within(Duration::ZERO).after(&error(ErrorCode::NotLeader)), None);
    }

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
