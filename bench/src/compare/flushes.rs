//! How often the disk was flushed, by the kernel's count: whoever says that a record is durable must have flushed at least once
//! for everything that was under way at the same time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Places in a block device's `stat` (Documentation/block/stat.rst).
const WRITES_AT: usize = 4;
const FLUSHES_AT: usize = 15;

/// The device that a folder is on, if its flushes can be counted.
#[derive(Clone, Debug)]
pub(super) struct FlushCounter {
    stat: PathBuf,
    /// The device's name.
    pub(super) device: String,
}

/// Counts since the machine's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Writes that the device has completed.
    pub(super) writes: u64,
    /// Flushes of its cache.
    pub(super) flushes: u64,
}

impl FlushCounter {
    /// The counter of the device under `dir`; an error that says why it counts nothing.
    pub(super) fn of(dir: &Path) -> anyhow::Result<Self> {
        let dev = fs::metadata(dir).with_context(|| dir.display().to_string())?.dev();
        let link = format!("/sys/dev/block/{}:{}", libc::major(dev), libc::minor(dev));
        let device = fs::canonicalize(&link).with_context(|| {
            format!(
                "{} is on no block device ({link} is not there), so flushes are not counted",
                dir.display()
            )
        })?;
        // Flushes are counted for the whole disk only.
        let disk = match device.join("partition").exists() {
            true => device.parent().context("a partition of no disk")?.to_owned(),
            false => device,
        };
        let counter = Self {
            stat: disk.join("stat"),
            device: disk.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        counter.read()?;
        let queue = |name: &str| fs::read_to_string(disk.join("queue").join(name)).unwrap_or_default();
        ensure_counts(&counter.device, queue("write_cache").trim(), queue("fua").trim())?;
        Ok(counter)
    }

    /// The counts now.
    pub(super) fn read(&self) -> anyhow::Result<Counts> {
        let path = self.stat.display().to_string();
        let text = fs::read_to_string(&self.stat).with_context(|| path.clone())?;
        parse(&text).with_context(|| format!("{path} counts no flushes: the kernel is older than 5.5"))
    }
}

/// Whether a durable write always ends in a flush on a disk with such a cache.
fn ensure_counts(device: &str, write_cache: &str, fua: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        write_cache != "write through",
        "{device} has no write cache, so the kernel sends it no flushes to be counted"
    );
    anyhow::ensure!(
        fua != "1",
        "{device} takes writes that are durable by themselves (FUA), which the kernel does not count apart"
    );
    Ok(())
}

fn parse(stat: &str) -> Option<Counts> {
    let field = |at| stat.split_whitespace().nth(at)?.parse().ok();
    Some(Counts { writes: field(WRITES_AT)?, flushes: field(FLUSHES_AT)? })
}

/// What was written and flushed per acknowledged request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PerRequest {
    /// Writes of the device.
    pub(super) writes: f64,
    /// Flushes of its cache.
    pub(super) flushes: f64,
}

impl PerRequest {
    /// Of so many requests; `None` of none.
    pub(super) fn of(before: Counts, after: Counts, requests: u64) -> Option<Self> {
        let per_request = |from: u64, to: u64| to.saturating_sub(from) as f64 / requests as f64;
        (requests > 0).then(|| Self {
            writes: per_request(before.writes, after.writes),
            flushes: per_request(before.flushes, after.flushes),
        })
    }

    /// Whether these cannot have been enough: one flush makes at most everything durable that is under way at that moment.
    pub(super) fn is_too_few(self, most_under_way: usize) -> bool {
        self.flushes * (most_under_way as f64) < 0.99
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_are_at_their_places() {
        let line = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n";
        assert_eq!(parse(line), Some(Counts { writes: 5, flushes: 16 }));
        assert_eq!(parse("1 2 3 4 5 6 7 8 9 10 11"), None, "kernels before 5.5");
    }

    #[test]
    fn one_flush_covers_at_most_what_is_under_way() {
        let before = Counts { writes: 100, flushes: 10 };
        let after = Counts { writes: 1100, flushes: 110 };
        let per_request = PerRequest::of(before, after, 1600).unwrap();
        assert_eq!(per_request, PerRequest { writes: 0.625, flushes: 0.0625 });
        assert!(!per_request.is_too_few(16));
        assert!(per_request.is_too_few(8));
        assert_eq!(PerRequest::of(before, after, 0), None);
    }

    #[test]
    fn a_disk_that_does_not_count_says_why() {
        ensure_counts("vda", "write back", "0").unwrap();
        assert!(
            ensure_counts("vda", "write through", "0").unwrap_err().to_string().contains("no write cache")
        );
        assert!(ensure_counts("vda", "write back", "1").unwrap_err().to_string().contains("FUA"));
        assert!(FlushCounter::of(Path::new("/proc")).unwrap_err().to_string().contains("no block device"));
    }
}
