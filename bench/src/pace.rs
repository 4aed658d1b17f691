//! When requests are due and from when their latency counts. No socket and no clock in here.

use std::time::Instant;

use anyhow::Context;

/// A monotonic clock, nanoseconds since an arbitrary start.
pub trait Clock {
    /// Now.
    fn now_ns(&self) -> u64;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock that begins at 0 now.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// How the next request is decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As soon as a reply makes room: a request's latency begins when it is sent.
    Closed,
    /// At fixed times, whatever the server does: a request's latency begins when it *should* have been sent,
    /// so a stall counts for every request that it held up, the unsent ones included.
    Open {
        /// When the first one is due.
        first_ns: u64,
        /// Time between two of this connection.
        interval_ns: u64,
    },
}

const FREE: u64 = u64::MAX;

/// The requests of one connection.
pub struct Lane {
    pace: Pace,
    /// Correlation id and begin of the latency, by correlation id modulo the length.
    in_flight: Box<[(u64, u64)]>,
    begun: u64,
    done: u64,
}

impl Lane {
    /// A lane with at most `outstanding` requests under way.
    pub fn new(pace: Pace, outstanding: usize) -> Self {
        Self { pace, in_flight: vec![(FREE, 0); outstanding.max(1)].into_boxed_slice(), begun: 0, done: 0 }
    }

    /// Whether requests are due at fixed times.
    pub fn is_open_loop(&self) -> bool {
        matches!(self.pace, Pace::Open { .. })
    }

    /// Requests under way.
    pub fn outstanding(&self) -> u64 {
        self.begun - self.done
    }

    /// When the next request should be sent: `Some(0)` for at once, `None` when there is no room for it. Out of
    /// order replies can leave the next slot taken although another is free; it waits for that reply then.
    pub fn due_ns(&self) -> Option<u64> {
        if self.slot(self.begun).is_none_or(|slot| slot.0 != FREE) {
            return None;
        }
        Some(match self.pace {
            Pace::Closed => 0,
            Pace::Open { .. } => self.intended_ns(0),
        })
    }

    fn slot(&self, correlation: u64) -> Option<&(u64, u64)> {
        self.in_flight.get((correlation % self.in_flight.len() as u64) as usize)
    }

    fn intended_ns(&self, now_ns: u64) -> u64 {
        match self.pace {
            Pace::Closed => now_ns,
            Pace::Open { first_ns, interval_ns } => {
                first_ns.saturating_add(interval_ns.saturating_mul(self.begun))
            }
        }
    }

    /// Begins the next request and gives its correlation id, or `None` when it isn't due or has no room.
    pub fn begin(&mut self, now_ns: u64) -> Option<u64> {
        if self.due_ns()? > now_ns {
            return None;
        }
        let correlation = self.begun;
        let begin_ns = self.intended_ns(now_ns);
        let index = (correlation % self.in_flight.len() as u64) as usize;
        *self.in_flight.get_mut(index)? = (correlation, begin_ns);
        self.begun += 1;
        Some(correlation)
    }

    /// A reply has come: when its latency began and how long it took, nanoseconds.
    pub fn end(&mut self, correlation: u64, now_ns: u64) -> anyhow::Result<(u64, u64)> {
        let index = (correlation % self.in_flight.len() as u64) as usize;
        let slot = self
            .in_flight
            .get_mut(index)
            .filter(|slot| slot.0 == correlation && correlation != FREE)
            .with_context(|| format!("a reply to request {correlation}, which is not under way"))?;
        let begin_ns = slot.1;
        slot.0 = FREE;
        self.done += 1;
        Ok((begin_ns, now_ns.saturating_sub(begin_ns)))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::latency::Latencies;

    struct ManualClock(Cell<u64>);

    impl Clock for ManualClock {
        fn now_ns(&self) -> u64 {
            self.0.get()
        }
    }

    const MS: u64 = 1_000_000;

    /// A server that answers in 1 ms, but for one stall of 100 ms, under 1,000 requests a second for a second.
    fn run_with_stall(pace: Pace) -> Latencies {
        let clock = ManualClock(Cell::new(0));
        let mut lane = Lane::new(pace, 1);
        let mut latencies = Latencies::new().unwrap();
        let mut stalled = false;
        while clock.now_ns() < 1000 * MS {
            let Some(correlation) = lane.begin(clock.now_ns()) else {
                clock.0.set(lane.due_ns().expect("nothing is under way"));
                continue;
            };
            let stall = !stalled && clock.now_ns() >= 500 * MS;
            stalled |= stall;
            clock.0.set(clock.now_ns() + if stall { 100 * MS } else { MS / 2 });
            latencies.record_ns(lane.end(correlation, clock.now_ns()).unwrap().1);
        }
        latencies
    }

    #[test]
    fn open_loop_counts_a_stall_for_every_request_it_held_up() {
        let open = run_with_stall(Pace::Open { first_ns: 0, interval_ns: MS });
        // The stall delays the request that met it by 100 ms and the ones due meanwhile by what was left of it
        // and of the queue behind it: about 200 of 1,000 until the queue is worked off at twice the rate.
        assert_eq!(open.count(), 1000);
        assert!(open.quantile_us(0.79) < 1000.0, "{:?}", open.summary());
        assert!(open.quantile_us(0.90) > 40_000.0, "{:?}", open.summary());
        assert!(open.quantile_us(0.99) > 85_000.0, "{:?}", open.summary());
        // A closed loop sees one slow request and nothing else.
        let closed = run_with_stall(Pace::Closed);
        assert!(closed.quantile_us(0.999) < 1000.0, "{:?}", closed.summary());
        assert!(closed.summary().max_us > 99_000.0);
    }

    #[test]
    fn room_is_bounded_and_replies_may_come_in_any_order() {
        let mut lane = Lane::new(Pace::Closed, 2);
        assert_eq!((lane.begin(5), lane.begin(6), lane.begin(7)), (Some(0), Some(1), None));
        assert_eq!(lane.outstanding(), 2);
        assert_eq!(lane.end(1, 16).unwrap(), (6, 10));
        assert_eq!(lane.due_ns(), None);
        assert_eq!(lane.end(0, 20).unwrap(), (5, 15));
        assert_eq!(lane.begin(30), Some(2));
    }

    #[test]
    fn a_reply_to_nothing_is_an_error() {
        let mut lane = Lane::new(Pace::Closed, 4);
        assert!(lane.end(0, 1).is_err());
        lane.begin(0);
        lane.end(0, 1).unwrap();
        assert!(lane.end(0, 2).is_err(), "answered twice");
        assert!(lane.end(u64::MAX, 2).is_err());
    }

    #[test]
    fn open_loop_waits_for_its_time() {
        let mut lane = Lane::new(Pace::Open { first_ns: 100, interval_ns: 10 }, 8);
        assert_eq!(lane.begin(99), None);
        assert_eq!(lane.due_ns(), Some(100));
        assert_eq!(lane.begin(125), Some(0));
        assert_eq!(lane.due_ns(), Some(110));
        assert_eq!((lane.begin(125), lane.begin(125), lane.begin(125)), (Some(1), Some(2), None));
        assert_eq!(lane.end(2, 150).unwrap(), (120, 30));
    }
}
