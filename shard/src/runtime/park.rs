//! How a shard sleeps: in its own ring, with the one system call that submits as well. `docs/decisions/0004` says
//! why not in glommio.

use std::io;
use std::time::{Duration, Instant};

use super::ring::Ring;

/// Something completes often: after less than this.
const OFTEN_US: u64 = 1_000;
/// How long a shard for which something completes often sleeps at least for a deadline that may be late: longer than
/// most kernels' tick (1 or 4 ms).
const LATE: Duration = Duration::from_millis(5);

/// Sleeps until something completes.
///
/// A timer that is nearer than the kernel's next tick has the CPU's own timer set anew, and once more when the shard
/// is woken before; in a virtual machine each leaves the machine, for 10 to 20 µs. While something completes all the
/// time a deadline that has come is seen in the next pass anyway. So such a shard sets no timer that near: the last
/// deadline before it has nothing more to do may be late by [`LATE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Park {
    /// Look for completions this long before sleeping.
    spin: Duration,
    /// When it was last told to sleep, µs.
    slept_us: u64,
    /// A completion came soon after that.
    often: bool,
}

/// How long to sleep at most: the two kinds of deadlines. `None`: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timeout {
    /// Not longer than this in any case.
    pub(super) exact: Option<Duration>,
    /// May be late by [`LATE`] at the end of much work.
    pub(super) late: Option<Duration>,
}

impl Timeout {
    /// At least one deadline has come.
    pub(super) fn has_come(self) -> bool {
        self.exact == Some(Duration::ZERO) || self.late == Some(Duration::ZERO)
    }
}

impl Park {
    /// Spins for `spin_us` microseconds before it sleeps.
    pub(super) fn new(spin_us: u64) -> Self {
        Self { spin: Duration::from_micros(spin_us), slept_us: 0, often: false }
    }

    /// To be told before each pass. `completed`: there is something for it.
    pub(super) fn woken(&mut self, now_us: u64, completed: bool) {
        self.often = completed && now_us.saturating_sub(self.slept_us) < OFTEN_US;
    }

    fn longest(&self, timeout: Timeout) -> Option<Duration> {
        let late = timeout.late.map(|late| if self.often { late.max(LATE) } else { late });
        timeout.exact.into_iter().chain(late).min()
    }

    /// Submits what is queued and sleeps until a completion or the timeout. `flushing`: a kernel worker needs
    /// this core, so no spinning.
    pub(super) fn wait<T>(
        &mut self,
        ring: &mut Ring<T>,
        now_us: u64,
        timeout: Timeout,
        flushing: bool,
    ) -> io::Result<()> {
        self.slept_us = now_us;
        let timeout = self.longest(timeout);
        if !self.spin.is_zero() && !flushing {
            ring.enter(None)?;
            let spin = timeout.map_or(self.spin, |timeout| timeout.min(self.spin));
            let started = Instant::now();
            while !ring.has_ready() && started.elapsed() < spin {
                if ring.kernel_has_completions() {
                    return ring.enter(None);
                }
                std::hint::spin_loop();
            }
        }
        ring.enter(Some(timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    #[test]
    fn only_where_completions_come_often_a_deadline_may_be_late() {
        let near = Timeout { exact: None, late: ms(2) };
        let mut park = Park::new(0);
        assert_eq!(park.longest(near), ms(2), "nothing is known yet");
        park.slept_us = 10_000;
        park.woken(10_999, true);
        assert_eq!(park.longest(near), Some(LATE));
        park.woken(10_999, false);
        assert_eq!(park.longest(near), ms(2), "it was a deadline that woke it: the next is met");
        park.woken(11_000, true);
        assert_eq!(park.longest(near), ms(2), "it slept long");
    }

    #[test]
    fn exact_and_far_deadlines_are_kept() {
        let mut park = Park::new(0);
        park.woken(0, true);
        assert!(park.often);
        assert_eq!(park.longest(Timeout { exact: ms(1), late: ms(2) }), ms(1));
        assert_eq!(park.longest(Timeout { exact: ms(7), late: ms(2) }), Some(LATE));
        assert_eq!(park.longest(Timeout { exact: None, late: ms(7) }), ms(7));
        assert_eq!(park.longest(Timeout { exact: ms(7), late: None }), ms(7));
        assert_eq!(park.longest(Timeout::default()), None);
    }
}
