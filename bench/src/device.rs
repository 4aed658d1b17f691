//! The disk below a folder, as far as a figure depends on it: which device, whether it has a write cache, who orders
//! its requests.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

/// What the kernel says of a folder's disk. Empty texts: it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// The whole device, such as `nvme0n1`.
    pub device: String,
    /// Its maker's name for it.
    pub model: String,
    /// `write back`: it has a volatile cache, which a durable write must flush; `write through`: it has none.
    pub write_cache: String,
    /// The scheduler in use.
    pub scheduler: String,
    /// `0` for a disk without moving parts.
    pub rotational: String,
    /// Its size, bytes.
    pub size_bytes: u64,
    /// The file system of the folder.
    pub file_system: String,
}

impl DiskFacts {
    /// Those of the disk that `dir` is on.
    ///
    /// # Errors
    /// When the folder is not there. A file system without a device of its own (tmpfs, overlay, network) has facts
    /// without a device.
    pub fn of(dir: &Path) -> anyhow::Result<Self> {
        let dev = fs::metadata(dir).with_context(|| format!("{}: can't be looked at", dir.display()))?.dev();
        let number = format!("{}:{}", libc::major(dev), libc::minor(dev));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let facts = fs::canonicalize(format!("/sys/dev/block/{number}"))
            .map_or_else(|_| Self::default(), |device| Self::of_device(&device));
        Ok(Self { file_system: file_system(&mounts, &number).unwrap_or_default().to_owned(), ..facts })
    }

    /// Those of a device below /sys/devices; a partition's are its disk's.
    fn of_device(device: &Path) -> Self {
        let mut disk: PathBuf = device.to_owned();
        if !disk.join("queue").is_dir() && disk.join("partition").is_file() {
            disk.pop();
        }
        let read = |name: &str| fs::read_to_string(disk.join(name)).unwrap_or_default().trim().to_owned();
        Self {
            device: disk.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            model: read("device/model"),
            write_cache: read("queue/write_cache"),
            scheduler: chosen(&read("queue/scheduler")).to_owned(),
            rotational: read("queue/rotational"),
            // The kernel counts in units of 512 bytes whatever the disk's own are.
            size_bytes: read("size").parse::<u64>().unwrap_or_default() * 512,
            file_system: String::new(),
        }
    }

    /// For a program.
    pub fn to_json(&self) -> Value {
        json!({
            "device": self.device, "model": self.model, "write_cache": self.write_cache,
            "scheduler": self.scheduler, "rotational": self.rotational, "size_bytes": self.size_bytes,
            "file_system": self.file_system,
        })
    }
}

impl std::fmt::Display for DiskFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(
            f,
            "disk {} · {} GiB · cache {} · scheduler {} · {}",
            known(&self.device),
            self.size_bytes >> 30,
            known(&self.write_cache),
            known(&self.scheduler),
            known(&self.file_system)
        )
    }
}

/// Of `none [mq-deadline] kyber` the one in brackets; a list without brackets is its own answer.
fn chosen(list: &str) -> &str {
    list.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(list, |(chosen, _)| chosen)
}

/// The type of the file system whose device has this `major:minor`.
fn file_system<'a>(mountinfo: &'a str, number: &str) -> Option<&'a str> {
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(number))?;
    // Optional fields end with a dash; the type follows.
    line.split_once(" - ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_in_use_is_the_one_in_brackets() {
        assert_eq!(chosen("none [mq-deadline] kyber bfq"), "mq-deadline");
        assert_eq!(chosen("[none] mq-deadline"), "none");
        assert_eq!(chosen("none"), "none");
    }

    #[test]
    fn a_partitions_facts_are_its_disks() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("sdx");
        for folder in ["queue", "device", "sdx1"] {
            fs::create_dir_all(disk.join(folder)).unwrap();
        }
        for (name, text) in [
            ("queue/write_cache", "write back\n"),
            ("queue/scheduler", "[none] kyber\n"),
            ("queue/rotational", "0\n"),
            ("device/model", "Example 1 \n"),
            ("size", "8388608\n"),
            ("sdx1/partition", "1\n"),
        ] {
            fs::write(disk.join(name), text).unwrap();
        }
        let facts = DiskFacts::of_device(&disk.join("sdx1"));
        assert_eq!(facts, DiskFacts::of_device(&disk));
        assert_eq!((facts.device.as_str(), facts.write_cache.as_str()), ("sdx", "write back"));
        assert_eq!((facts.scheduler.as_str(), facts.model.as_str()), ("none", "Example 1"));
        assert_eq!(facts.size_bytes, 4 << 30);
        let line = facts.to_string();
        assert!(line.contains("sdx") && line.contains("4 GiB") && line.contains("write back"), "{line}");
    }

    #[test]
    fn the_file_system_is_that_of_the_device() {
        let mounts = "25 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n30 25 0:26 / /tmp rw - tmpfs tmpfs rw\n";
        assert_eq!(file_system(mounts, "254:0"), Some("ext4"));
        assert_eq!(file_system(mounts, "0:26"), Some("tmpfs"));
        assert_eq!(file_system(mounts, "9:9"), None);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = DiskFacts::of(Path::new("/nonexistent-folder")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent-folder"), "{error:#}");
        DiskFacts::of(Path::new("/")).unwrap();
    }
}
