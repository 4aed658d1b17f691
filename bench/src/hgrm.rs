//! Histograms on paper: HdrHistogram's percentile distribution as text, and the whole histogram as one line.
//!
//! Both are what HdrHistogram's other implementations and their plotters read and write.

use std::fmt::Write;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

use crate::latency::Latencies;

/// Lines for each halving of the distance to 100 %, as other tools have it.
pub const TICKS_PER_HALF_DISTANCE: u32 = 5;
const NS_PER_US: f64 = 1000.0;

/// The percentile distribution, values in microseconds: `Value Percentile TotalCount 1/(1-Percentile)`.
pub fn distribution(latencies: &Latencies) -> String {
    let histogram = latencies.histogram();
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        total += step.count_since_last_iteration();
        let (value_us, quantile) = (step.value_iterated_to() as f64 / NS_PER_US, step.quantile_iterated_to());
        // Writing to a String can't fail.
        let _ = write!(text, "{value_us:12.3} {quantile:2.12} {total:10}");
        if quantile < 1.0 {
            let _ = write!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let (mean_us, deviation_us) = (histogram.mean() / NS_PER_US, histogram.stdev() / NS_PER_US);
    let max_us = histogram.max() as f64 / NS_PER_US;
    let _ = writeln!(text, "#[Mean    = {mean_us:12.3}, StdDeviation   = {deviation_us:12.3}]");
    let _ = writeln!(text, "#[Max     = {max_us:12.3}, Total count    = {:12}]", histogram.len());
    let (buckets, sub_buckets) = (histogram.buckets(), sub_buckets(histogram));
    let _ = writeln!(text, "#[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]");
    text
}

/// Steps of each bucket: the distinct values are one whole bucket and the upper half of each further one.
fn sub_buckets(histogram: &Histogram<u64>) -> usize {
    2 * histogram.distinct_values() / (usize::from(histogram.buckets()) + 1)
}

/// The whole histogram (nanoseconds) in HdrHistogram's V2 encoding, deflated, as base64.
///
/// # Errors
/// When the encoder refuses, which it does for counts that no run reaches.
pub fn to_base64(latencies: &Latencies) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let encoded = V2DeflateSerializer::new().serialize(latencies.histogram(), &mut bytes);
    encoded.map_err(|error| anyhow::anyhow!("a histogram can't be written: {error}"))?;
    Ok(STANDARD.encode(bytes))
}

/// The histogram that [`to_base64`], or another HdrHistogram, has written.
///
/// # Errors
/// When the text is not one, or has other bounds than this program's histograms.
pub fn from_base64(text: &str) -> anyhow::Result<Latencies> {
    let bytes = STANDARD.decode(text).context("a histogram that is not base64")?;
    let decoded = Deserializer::new().deserialize(&mut bytes.as_slice());
    Latencies::from_histogram(
        &decoded.map_err(|error| anyhow::anyhow!("a histogram can't be read: {error}"))?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Latencies {
        let mut latencies = Latencies::new().unwrap();
        for number in 1..=50_000u64 {
            latencies.record_ns(100_000 + number * number % 700_001);
        }
        latencies.record_ns(900_000_000);
        latencies
    }

    /// The value of each line must be what the histogram itself says about the line's percentile.
    #[test]
    fn every_line_is_the_histograms_own_answer() {
        let latencies = some();
        let text = distribution(&latencies);
        let mut lines = 0;
        let mut last_total = 0.0;
        for line in text.lines().skip(2).take_while(|line| !line.starts_with('#')) {
            let fields: Vec<f64> = line.split_whitespace().map(|field| field.parse().unwrap()).collect();
            let (value_us, quantile, total) = (fields[0], fields[1], fields[2]);
            let wanted_us = latencies.histogram().value_at_quantile(quantile) as f64 / 1000.0;
            // The text has twelve digits of the percentile, so the neighbour's value is possible.
            assert!((value_us - wanted_us).abs() <= wanted_us * 0.002, "{line}: {wanted_us}");
            assert!(total >= last_total);
            assert!(total / 50_001.0 >= quantile - 1e-9, "{line}");
            match fields.get(3) {
                Some(inverse) => {
                    assert!((inverse - 1.0 / (1.0 - quantile)).abs() <= inverse * 0.01, "{line}")
                }
                None => assert!((quantile - 1.0).abs() < 1e-12, "{line}"),
            }
            last_total = total;
            lines += 1;
        }
        assert!(lines > 50, "{lines} lines");
        assert!((last_total - 50_001.0).abs() < 0.5, "everything is counted");
        let max = text.lines().find(|line| line.starts_with("#[Max")).unwrap();
        assert!(max.contains("Total count    =        50001]"), "{max}");
        let buckets = text.lines().last().unwrap();
        assert!(buckets.contains("SubBuckets     =         2048]"), "{buckets}");
    }

    #[test]
    fn a_histogram_survives_its_text() {
        let latencies = some();
        let text = to_base64(&latencies).unwrap();
        // What a V2 deflate histogram begins with everywhere.
        assert!(text.starts_with("HISTFAAA"), "{text}");
        let back = from_base64(&text).unwrap();
        assert_eq!(back.summary(), latencies.summary());
        assert!(back.histogram() == latencies.histogram());
        let mut both = back;
        both.merge(&latencies).unwrap();
        assert_eq!(both.count(), 2 * latencies.count());
    }

    #[test]
    fn other_text_is_refused() {
        from_base64("not base64!").err().unwrap();
        from_base64("AAAA").err().unwrap();
    }
}
