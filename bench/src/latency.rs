//! Latency histograms and what is printed of them.

use anyhow::Context;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Longest latency told apart, nanoseconds; longer ones count as this.
const LONGEST_NS: u64 = 600_000_000_000;

/// Latencies in nanoseconds, three digits exact.
#[derive(Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty histogram.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).context("histogram bounds")?))
    }

    /// Adds one latency. Allocates nothing.
    pub fn record_ns(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns.max(1));
    }

    /// Adds those of another connection or thread.
    pub fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        self.0.add(&other.0).context("histograms of different bounds")
    }

    /// The values of another histogram, in this program's bounds.
    ///
    /// # Errors
    /// When it holds values that are longer than the bound.
    pub fn from_histogram(other: &Histogram<u64>) -> anyhow::Result<Self> {
        let mut latencies = Self::new()?;
        latencies.0.add(other).context("a histogram of other bounds")?;
        Ok(latencies)
    }

    /// The histogram itself, nanoseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Latency that the fraction `quantile` (0 to 1) does not exceed, microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// What is printed.
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count(),
            p50_us: self.quantile_us(0.5),
            p90_us: self.quantile_us(0.9),
            p99_us: self.quantile_us(0.99),
            p999_us: self.quantile_us(0.999),
            p9999_us: self.quantile_us(0.9999),
            max_us: self.0.max() as f64 / 1000.0,
        }
    }
}

/// The percentiles of one run, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Latencies recorded.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// 99.99th percentile.
    pub p9999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Summary {
    /// Column heads that go with the `Display` form.
    pub const HEADS: &'static str = "   p50 µs   p90 µs   p99 µs  p999 µs p9999 µs    max µs";

    /// The same as an object.
    pub fn to_json(self) -> Value {
        json!({
            "count": self.count, "p50_us": self.p50_us, "p90_us": self.p90_us, "p99_us": self.p99_us,
            "p999_us": self.p999_us, "p9999_us": self.p9999_us, "max_us": self.max_us,
        })
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:9.1}{:9.1}{:9.1}{:9.1}{:9.1}{:10.1}",
            self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.p9999_us, self.max_us
        )
    }
}

/// The middle of the values (the mean of the two middle ones for an even number); `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get((sorted.len() / 2).checked_sub(1)?)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_values() {
        let mut latencies = Latencies::new().unwrap();
        for us in 1..=10_000u64 {
            latencies.record_ns(us * 1000);
        }
        let summary = latencies.summary();
        let near = |got: f64, wanted: f64| (got - wanted).abs() <= wanted / 500.0;
        assert_eq!(summary.count, 10_000);
        assert!(near(summary.p50_us, 5000.0), "{summary:?}");
        assert!(near(summary.p90_us, 9000.0), "{summary:?}");
        assert!(near(summary.p99_us, 9900.0), "{summary:?}");
        assert!(near(summary.p999_us, 9990.0), "{summary:?}");
        assert!(near(summary.max_us, 10_000.0), "{summary:?}");
    }

    #[test]
    fn merged_percentiles_are_those_of_all_values() {
        // Averaging the two p99 would give about 5,000; the p99 of all values is near the slow half's top.
        let (mut fast, mut slow) = (Latencies::new().unwrap(), Latencies::new().unwrap());
        for _ in 0..1000 {
            fast.record_ns(1_000);
            slow.record_ns(10_000_000);
        }
        fast.merge(&slow).unwrap();
        assert_eq!(fast.count(), 2000);
        assert!(fast.quantile_us(0.49) < 2.0);
        assert!(fast.quantile_us(0.99) > 9_900.0);
    }

    #[test]
    fn longer_than_the_bound_is_kept() {
        let mut latencies = Latencies::new().unwrap();
        latencies.record_ns(u64::MAX);
        assert_eq!(latencies.count(), 1);
        assert!(latencies.summary().max_us >= 590e6);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }
}
