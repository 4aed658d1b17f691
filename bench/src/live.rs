//! The line that tells how a run is going: rate and latencies of the last second.
//!
//! A load thread records into a histogram of its own and hands it over once a second by swapping it with an empty
//! one, so a reply costs one more recording and no lock. A reply of a run that nobody watches costs one branch.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::latency::Latencies;

const SECOND_NS: u64 = 1_000_000_000;
/// The line comes a little after the second is over, when the threads have handed over what they have.
const GRACE: Duration = Duration::from_millis(150);

/// How the line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    Off,
    /// Over itself.
    Rewrite,
    /// One below the other.
    Lines,
}

impl Mode {
    /// Rewriting on a terminal; elsewhere only when it was asked for.
    pub fn of_stderr(asked_for: bool) -> Self {
        match (std::io::stderr().is_terminal(), asked_for) {
            (true, _) => Self::Rewrite,
            (false, true) => Self::Lines,
            (false, false) => Self::Off,
        }
    }
}

/// What one load thread has handed over and nobody has taken yet.
struct Slot {
    latencies: Latencies,
    is_empty: bool,
}

/// Replies of one kind, from all threads that get them.
pub struct Board {
    name: &'static str,
    slots: Mutex<Vec<Arc<Mutex<Slot>>>>,
    errors: AtomicU64,
    progress: Arc<Progress>,
}

/// When the run began and whether it is over.
struct Progress {
    state: Mutex<(Option<Instant>, bool)>,
    changed: Condvar,
}

/// A load thread's end of a [`Board`].
pub struct Tap(Option<Box<OpenTap>>);

struct OpenTap {
    slot: Arc<Mutex<Slot>>,
    interval: Latencies,
    next_ns: u64,
}

/// Nobody panics while holding one of these locks; if somebody did, the numbers are still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tap {
    /// One that nobody looks at.
    pub fn off() -> Self {
        Self(None)
    }

    /// A reply has come at `now_ns` of the clock that the tap was made with.
    pub fn reply(&mut self, latency_ns: u64, now_ns: u64) {
        if let Some(tap) = &mut self.0 {
            if now_ns >= tap.next_ns {
                tap.hand_over(now_ns);
            }
            tap.interval.record_ns(latency_ns);
        }
    }
}

impl Drop for OpenTap {
    /// The last second has no reply behind it that would hand it over.
    fn drop(&mut self) {
        self.hand_over(self.next_ns);
    }
}

impl OpenTap {
    fn hand_over(&mut self, now_ns: u64) {
        self.next_ns += (now_ns - self.next_ns) / SECOND_NS * SECOND_NS + SECOND_NS;
        let mut slot = lock(&self.slot);
        if slot.is_empty {
            std::mem::swap(&mut slot.latencies, &mut self.interval);
            slot.is_empty = false;
        } else if slot.latencies.merge(&self.interval).is_ok() {
            self.interval.clear();
        }
    }
}

impl Board {
    /// A tap for one thread whose load begins at `begin_ns` of a clock that shows `now_ns`.
    ///
    /// # Errors
    /// When there is no memory for its histograms.
    pub fn tap(&self, now_ns: u64, begin_ns: u64) -> anyhow::Result<Tap> {
        let slot = Arc::new(Mutex::new(Slot { latencies: Latencies::new()?, is_empty: true }));
        lock(&self.slots).push(Arc::clone(&slot));
        let begin = Instant::now() + Duration::from_nanos(begin_ns.saturating_sub(now_ns));
        lock(&self.progress.state).0.get_or_insert(begin);
        self.progress.changed.notify_all();
        let tap = OpenTap { slot, interval: Latencies::new()?, next_ns: begin_ns + SECOND_NS };
        Ok(Tap(Some(Box::new(tap))))
    }

    /// One request has failed.
    pub fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything handed over since the last time. `spare` is empty before and after.
    fn take(&self, spare: &mut Latencies) -> anyhow::Result<Latencies> {
        let mut taken = Latencies::new()?;
        for slot in lock(&self.slots).iter() {
            {
                let mut slot = lock(slot);
                if slot.is_empty {
                    continue;
                }
                std::mem::swap(&mut slot.latencies, spare);
                slot.is_empty = true;
            }
            taken.merge(spare)?;
            spare.clear();
        }
        Ok(taken)
    }

    fn describe(&self, last_second: &Latencies, seconds: f64) -> String {
        let count = last_second.count();
        let errors = self.errors.load(Ordering::Relaxed);
        if count == 0 {
            return format!("{}: no replies, errors {errors}", self.name);
        }
        let rate = count as f64 / seconds;
        let (p99_us, p999_us) = (last_second.quantile_us(0.99), last_second.quantile_us(0.999));
        format!("{}: {rate:.0}/s  p99 {p99_us:.0} µs  p999 {p999_us:.0} µs  errors {errors}", self.name)
    }
}

/// Watches a run through the boards that its threads write to.
pub struct Monitor {
    mode: Mode,
    warmup: Duration,
    boards: Mutex<Vec<Arc<Board>>>,
    progress: Arc<Progress>,
}

impl Monitor {
    /// One whose first `warmup` is marked as such.
    pub fn new(mode: Mode, warmup: Duration) -> Self {
        let progress = Arc::new(Progress { state: Mutex::new((None, false)), changed: Condvar::new() });
        Self { mode, warmup, boards: Mutex::new(Vec::new()), progress }
    }

    /// A board for replies of one kind; `None` when nobody watches.
    pub fn board(&self, name: &'static str) -> Option<Arc<Board>> {
        if self.mode == Mode::Off {
            return None;
        }
        let board = Arc::new(Board {
            name,
            slots: Mutex::new(Vec::new()),
            errors: AtomicU64::new(0),
            progress: Arc::clone(&self.progress),
        });
        lock(&self.boards).push(Arc::clone(&board));
        Some(board)
    }

    /// Does `work` and writes the line once a second meanwhile.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.mode == Mode::Off {
            return work();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| self.write_lines());
            // Also when the work panics: the scope would wait for the thread for ever.
            let _end = EndOnDrop(&self.progress);
            work()
        })
    }

    fn write_lines(&self) {
        // The line is a courtesy: without memory for it the run goes on without.
        let Ok(mut spare) = Latencies::new() else { return };
        let Some(begin) = self.progress.wait(None) else { return };
        for second in 1u32.. {
            let over = begin + Duration::from_secs(u64::from(second));
            let goes_on = self.progress.wait(Some(over + GRACE)).is_some();
            // The last second is over when the work is, and nobody waits for the grace then.
            if goes_on || Instant::now() >= over {
                self.write_line(second, &mut spare);
            }
            if !goes_on {
                break;
            }
        }
        if self.mode == Mode::Rewrite {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn write_line(&self, second: u32, spare: &mut Latencies) {
        let boards: Vec<Arc<Board>> = lock(&self.boards).clone();
        let parts = boards.iter().filter_map(|board| Some(board.describe(&board.take(spare).ok()?, 1.0)));
        let parts = parts.collect::<Vec<_>>().join("  |  ");
        let warm = if Duration::from_secs(u64::from(second)) <= self.warmup { " (warm-up)" } else { "" };
        let line = format!("{second:4} s{warm}  {parts}");
        // A closed stderr is no reason to end a run.
        let _ = match self.mode {
            Mode::Rewrite => write!(std::io::stderr(), "\r\x1b[K{line}"),
            _ => writeln!(std::io::stderr(), "{line}"),
        };
    }
}

struct EndOnDrop<'a>(&'a Progress);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).1 = true;
        self.0.changed.notify_all();
    }
}

impl Progress {
    /// Waits until `until`, or for the begin of the load without one; `None` when the run ends first.
    fn wait(&self, until: Option<Instant>) -> Option<Instant> {
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            match (*state, until) {
                ((_, true), _) => return None,
                ((Some(begin), false), None) => return Some(begin),
                ((None, false), None) => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                ((_, false), Some(until)) if now >= until => return Some(until),
                ((_, false), Some(until)) => {
                    let waited = self.changed.wait_timeout(state, until - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor() -> Monitor {
        Monitor::new(Mode::Lines, Duration::ZERO)
    }

    #[test]
    fn each_second_is_handed_over_once_and_merged_over_threads() {
        let monitor = monitor();
        let board = monitor.board("ack").unwrap();
        let (mut one, mut two) = (board.tap(0, 100).unwrap(), board.tap(0, 100).unwrap());
        let mut spare = Latencies::new().unwrap();
        for reply in 0..10 {
            one.reply(1_000, 100 + reply);
            two.reply(9_000, 100 + reply);
        }
        assert_eq!(board.take(&mut spare).unwrap().count(), 0, "the second is not over");
        // The reply that ends a second belongs to the next one.
        one.reply(5_000, 100 + SECOND_NS);
        two.reply(5_000, 100 + SECOND_NS);
        let first = board.take(&mut spare).unwrap();
        assert_eq!(first.count(), 20);
        assert!(first.quantile_us(0.4) < 1.1 && first.quantile_us(0.99) > 8.9);
        assert_eq!(board.take(&mut spare).unwrap().count(), 0, "taken once");
        // Two seconds that nobody took are not lost.
        one.reply(5_000, 100 + 2 * SECOND_NS);
        one.reply(5_000, 100 + 7 * SECOND_NS);
        assert_eq!(board.take(&mut spare).unwrap().count(), 2);
        assert!(spare.count() == 0);
        // What a thread that ends has not handed over comes, too.
        drop(one);
        assert_eq!(board.take(&mut spare).unwrap().count(), 1);
    }

    #[test]
    fn after_a_stall_the_next_hand_over_is_on_a_whole_second() {
        let monitor = monitor();
        let board = monitor.board("ack").unwrap();
        let mut tap = board.tap(0, 0).unwrap();
        tap.reply(1, 3 * SECOND_NS + 5);
        assert_eq!(tap.0.as_ref().unwrap().next_ns, 4 * SECOND_NS);
        tap.reply(1, 4 * SECOND_NS);
        assert_eq!(tap.0.as_ref().unwrap().next_ns, 5 * SECOND_NS);
    }

    #[test]
    fn the_line_names_rate_percentiles_and_errors() {
        let monitor = monitor();
        let board = monitor.board("ack").unwrap();
        board.error();
        let mut latencies = Latencies::new().unwrap();
        assert_eq!(board.describe(&latencies, 1.0), "ack: no replies, errors 1");
        for us in 1..=1000u64 {
            latencies.record_ns(us * 1000);
        }
        assert_eq!(board.describe(&latencies, 1.0), "ack: 1000/s  p99 990 µs  p999 999 µs  errors 1");
    }

    #[test]
    fn the_watcher_ends_with_the_work_even_if_nothing_began() {
        assert_eq!(monitor().during(|| 7), 7);
        let off = Monitor::new(Mode::Off, Duration::ZERO);
        assert!(off.board("ack").is_none());
        assert_eq!(off.during(|| 8), 8);
    }
}
