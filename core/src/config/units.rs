//! Sizes, durations and CPU lists as people write them.

/// Units of sizes, largest first, powers of two before powers of ten.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Units of durations in microseconds.
const DURATIONS: [(&str, u64); 7] = [
    ("us", 1),
    ("µs", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// A number and its unit, which may be missing.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.replace('_', "").parse().ok()?, unit.trim()))
}

/// A size in bytes: `1048576`, `1MiB`, `1 MB`.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Some(number);
    }
    let (_, factor) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*factor)
}

/// A size the way [`parse_size`] reads it, exactly.
pub(super) fn format_size(bytes: u64) -> String {
    let unit = SIZES.iter().take(4).find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    match unit {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// A duration in microseconds. A number without a unit is multiplied by `plain_us`; without `plain_us` it is refused.
pub(super) fn parse_duration_us(text: &str, plain_us: Option<u64>) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor =
        if unit.is_empty() { plain_us? } else { DURATIONS.iter().find(|(name, _)| *name == unit)?.1 };
    number.checked_mul(factor)
}

/// A duration with the largest unit that says it exactly.
pub(super) fn format_duration_us(us: u64) -> String {
    let unit = DURATIONS.iter().rev().find(|(name, factor)| us.is_multiple_of(*factor) && *name != "µs");
    match unit {
        Some((name, factor)) if us != 0 => format!("{}{name}", us / factor),
        _ => format!("{us}us"),
    }
}

/// CPU numbers like `0-3,6`, ascending and without repetition; `None` for anything else. CPU numbers are below 4,096.
pub fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().ok()?;
        let last: usize = last.trim().parse().ok()?;
        if first > last || last >= 4096 {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// The way [`parse_cpus`] reads them.
pub(super) fn format_cpus(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if cpu == last.saturating_add(1) => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let runs = runs.into_iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64MiB"), Some(64 << 20));
        assert_eq!(parse_size(" 1 gb "), Some(1_000_000_000));
        assert_eq!(parse_size("16_384"), Some(16_384));
        for wrong in ["", "MiB", "1.5GiB", "-1", "1X", "99999999TiB", "1K"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
        assert_eq!(format_size(256 << 20), "256MiB");
        assert_eq!(format_size(1_000_000), "1000000");
        assert_eq!(format_size(0), "0");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration_us("10ms", None), Some(10_000));
        assert_eq!(parse_duration_us("10", None), None);
        assert_eq!(parse_duration_us("10", Some(1000)), Some(10_000));
        assert_eq!(parse_duration_us("7d", Some(1)), Some(7 * 86_400_000_000));
        assert_eq!(format_duration_us(10_000), "10ms");
        assert_eq!(format_duration_us(0), "0us");
    }

    #[test]
    fn cpus() {
        assert_eq!(parse_cpus("6, 0-3,2"), Some(vec![0, 1, 2, 3, 6]));
        assert_eq!(format_cpus(&[0, 1, 2, 3, 6]), "0-3,6");
        for wrong in ["", "a", "3-1", "1-", "0-9999999", "-"] {
            assert_eq!(parse_cpus(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn formats_read_back(n: u64, cpus in proptest::collection::btree_set(0..4096_usize, 1..20)) {
            prop_assert_eq!(parse_size(&format_size(n)), Some(n));
            prop_assert_eq!(parse_duration_us(&format_duration_us(n), None), Some(n));
            let cpus: Vec<_> = cpus.into_iter().collect();
            prop_assert_eq!(parse_cpus(&format_cpus(&cpus)), Some(cpus));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = (parse_size(&text), parse_duration_us(&text, Some(1000)), parse_cpus(&text));
        }
    }
}
