//! `docs/configuration.md`, made from the table of keys. A test compares it with the file; `BLESS=1` rewrites that.

use std::fmt::Write;

use super::keys::{KEYS, SHORT_ENV};
use super::presets::PRESETS;

const HEAD: &str = "\
# Configuration

<!-- Made from core/src/config/keys.rs. Change it there, then: BLESS=1 cargo test -p pyralog-core --test config -->

A node needs no configuration: every key has a default. Values are laid over each other, the later ones win:

    default < preset (--preset) < file (--config) < environment < command line

`pyralog config show` prints the value of every key and where it came from.

**File.** YAML, or JSON when the name ends in `.json`, with sections as in the names below:

```yaml
node:
  data_dir: /var/lib/pyralog
storage:
  cache_config:
    max_size: 512MiB
```

A key that does not exist, is there twice or has a value out of its bounds is refused; all errors are told at once.

**Environment.** `PYRALOG__` and the key in capitals with `__` for each dot, as listed with each key. Four have a short
name as well:
";

const UNITS: &str = "
A variable that begins with `PYRALOG__` and names no key is refused like a misspelt key. A list is written with commas.

**Sizes** are bytes, or a number with `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024) or `KB`, `MB`, `GB`, `TB` (powers of
1000). **Durations** are in the unit of the key's name (`_ms`, `_us`; `storage.retention.ms` in milliseconds), or a
number with `us`, `ms`, `s`, `m`, `h` or `d`.
";

/// The whole page.
pub fn markdown() -> String {
    let mut out = String::from(HEAD);
    out.push('\n');
    for (name, path) in SHORT_ENV {
        line(&mut out, format_args!("- `{name}` = `{path}`"));
    }
    out.push_str(UNITS);
    let mut section = "";
    for key in KEYS {
        let (first, _) = key.path.split_once('.').unwrap_or((key.path, ""));
        if first != section {
            section = first;
            line(&mut out, format_args!("\n## {section}"));
        }
        line(&mut out, format_args!("\n### `{}`\n\n{}\n", key.path, key.doc));
        line(&mut out, format_args!("- Default: `{}`", key.default_text()));
        line(&mut out, format_args!("- Value ({}): {}", key.kind(), key.usage()));
        line(&mut out, format_args!("- Environment: `{}`", key.env_name()));
        line(&mut out, format_args!("- Why: {}", key.why));
    }
    line(&mut out, format_args!("\n## Presets"));
    for preset in PRESETS {
        line(&mut out, format_args!("\n### `--preset {}`\n\n{}\n", preset.name, preset.doc));
        for (key, value) in preset.values {
            line(&mut out, format_args!("- `{key}: {value}`"));
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a `String` can't fail.
    let _ = writeln!(out, "{text}");
}
