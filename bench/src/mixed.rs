//! Everything at once: producers at a rate, consumers at the end, and readers of what is in no memory.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::consume::cold::ColdRead;
use crate::consume::history::History;
use crate::consume::run::{Followed, follow, read_until};
use crate::live::Monitor;
use crate::options::MixedArgs;
use crate::target::Target;

/// What each kind got.
pub struct MixedFound {
    /// Producers and consumers.
    pub followed: Followed,
    /// Each cold reader.
    pub reads: Vec<ColdRead>,
    /// Whether the page cache was empty for certain when the readers began.
    pub is_evicted: bool,
}

/// Runs all of them for the time of the load.
///
/// # Errors
/// When any of them fails, or something is damaged or missing.
pub fn run(
    args: &MixedArgs,
    target: &Target,
    topic: &str,
    history: &History,
    monitor: &Monitor,
) -> anyhow::Result<MixedFound> {
    let stop = AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..args.readers)
            .map(|_| scope.spawn(move || read_until(history, target.client_cpu, stop)))
            .collect();
        let followed = monitor.during(|| follow(target, topic, &args.load, monitor));
        stop.store(true, Ordering::Relaxed);
        let reads: Vec<anyhow::Result<ColdRead>> = readers
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a reader's thread panicked"))?)
            .collect();
        let reads = reads.into_iter().collect::<anyhow::Result<Vec<_>>>();
        Ok(MixedFound { followed: followed?, reads: reads?, is_evicted: history.is_evicted() })
    })
}
