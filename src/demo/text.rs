//! The demo's input: text that anybody can make again from its seed, so that what comes back can be compared with
//! it byte by byte without keeping it.

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

const WORDS: [&str; 32] = [
    "append",
    "batch",
    "commit",
    "disk",
    "epoch",
    "fetch",
    "group",
    "header",
    "index",
    "journal",
    "kernel",
    "leader",
    "metadata",
    "node",
    "offset",
    "partition",
    "quorum",
    "record",
    "segment",
    "topic",
    "unit",
    "vote",
    "watermark",
    "zero",
    "acknowledged",
    "durable",
    "replica",
    "shard",
    "flush",
    "cache",
    "queue",
    "core",
];

/// Length of a line on average, its newline included, bytes.
pub(crate) const AVERAGE_LINE_BYTES: u64 = 166;

/// An endless text, line by line.
pub(crate) struct Text {
    random: Random,
    line: Vec<u8>,
    number: u64,
}

impl Text {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random(seed), line: Vec::with_capacity(512), number: 0 }
    }

    /// The next line, without a newline: its number and 8 to 39 words.
    pub(crate) fn next_line(&mut self) -> &[u8] {
        self.line.clear();
        self.line.extend_from_slice(self.number.to_string().as_bytes());
        self.number += 1;
        for _ in 0..8 + self.random.below(32) {
            self.line.push(b' ');
            let word = WORDS.get(self.random.below(WORDS.len() as u64) as usize).copied().unwrap_or_default();
            self.line.extend_from_slice(word.as_bytes());
        }
        &self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_text_and_another_another() {
        let text = |seed| {
            let mut text = Text::new(seed);
            (0..100).map(|_| text.next_line().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
        let lines = text(3);
        let (mut text, mut bytes) = (Text::new(4), 0);
        (0..10_000).for_each(|_| bytes += text.next_line().len() as u64 + 1);
        assert!(bytes.abs_diff(10_000 * AVERAGE_LINE_BYTES) < 10_000 * 10, "{}", bytes / 10_000);
        assert!(lines.iter().enumerate().all(|(i, line)| line.starts_with(format!("{i} ").as_bytes())));
    }
}
