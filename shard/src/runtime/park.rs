//! How a shard sleeps: in its own ring, with the one system call that submits as well. `docs/decisions/0004` says
//! why not in glommio.

use std::io;
use std::time::{Duration, Instant};

use super::ring::Ring;

/// Sleeps until something completes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Park {
    /// Look for completions this long before sleeping.
    spin: Duration,
}

impl Park {
    /// Spins for `spin_us` microseconds before it sleeps.
    pub(super) fn new(spin_us: u64) -> Self {
        Self { spin: Duration::from_micros(spin_us) }
    }

    /// Submits what is queued and sleeps until a completion or the timeout. `flushing`: a kernel worker needs
    /// this core, so no spinning.
    pub(super) fn wait<T>(
        self,
        ring: &mut Ring<T>,
        timeout: Option<Duration>,
        flushing: bool,
    ) -> io::Result<()> {
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
