//! Presets: sets of values with a purpose. The file, the environment and the command line override them.

/// A named set of values.
pub struct Preset {
    /// Its name, as given to `--preset`.
    pub name: &'static str,
    /// What it is for, and what it costs.
    pub doc: &'static str,
    /// Keys and values, as they would be written.
    pub values: &'static [(&'static str, &'static str)],
}

impl Preset {
    /// The preset of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|p| p.name == name)
    }
}

/// Every preset.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "low-latency",
        doc: "For the shortest answers on cores that nothing else runs on: cores poll before they sleep, and the \
              journal keeps more commits on their way. It gives up no durability. On shared cores polling makes \
              everything slower.",
        values: &[("runtime.spin_us", "50"), ("storage.journal.writes_in_flight", "4")],
    },
    Preset {
        name: "throughput",
        doc: "For bulk: a larger cache and longer buffering make fewer, larger segment writes. It takes more memory \
              and disk, and a restart after a crash replays more. It gives up no durability.",
        values: &[
            ("storage.cache_config.max_size", "1GiB"),
            ("storage.cache_config.max_buffer_time_ms", "30000"),
            ("storage.segment_config.max_size", "1GiB"),
            ("storage.journal.file_size", "256MiB"),
            ("storage.journal.writes_in_flight", "4"),
        ],
    },
    Preset {
        name: "durability",
        doc: "For the least that is ever in one place only: every commit is flushed before it is acknowledged (as by \
              default), segments are written early and flushed at every write, so that the journal alone holds \
              little. It costs disk bandwidth.",
        values: &[
            ("storage.fsync_policy", "every_write"),
            ("storage.segment_config.sync_on_write", "true"),
            ("storage.cache_config.max_buffer_time_ms", "1000"),
        ],
    },
];
