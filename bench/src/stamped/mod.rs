//! Producers whose records begin with the time at which they should have been sent, so that whoever reads one knows how
//! long it has been on its way: from the intention to the consumer's hand.
//!
//! [`frame`] makes the requests, [`drive`] sends them at fixed times, over as many connections and partitions as wanted.

pub mod drive;
pub mod frame;

pub use drive::{Driven, StampedLoad, connect, run};
pub use frame::{STAMP_BYTES, StampedFrame, intended_ns};

use crate::pace::Clock;

/// The machine's monotonic clock itself, the same for every process on it.
#[derive(Clone, Copy)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now_ns(&self) -> u64 {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is valid for writes. This clock exists everywhere, so the call can't fail.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

/// When a run begins, when it is measured, when it ends; of [`MonotonicClock`].
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The first request is due.
    pub begin_ns: u64,
    /// From here on it is measured.
    pub warm_ns: u64,
    /// The last request was due before this.
    pub end_ns: u64,
}
