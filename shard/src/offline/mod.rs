//! Looking at a data folder while no node runs: `pyralog-admin log verify` and `log dump`. Reads only.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod dump;
mod folder;
mod segments;
#[cfg(test)]
mod tests;
mod verify;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use pyralog_core::{GroupId, ShardId};

pub use dump::dump;
pub use verify::verify;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Data that was acknowledged can't be read any more, or may be.
    Damage,
    /// Something derived or spare is broken; no data is lost.
    Warning,
    /// Normal, worth knowing: what a crash leaves behind and the next start clears up.
    Note,
}

/// Something that the check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// The shard.
    pub shard: ShardId,
    /// The file.
    pub file: PathBuf,
    /// Byte in the file, where that is known.
    pub position: Option<u64>,
    /// The partition, where that is known.
    pub group: Option<GroupId>,
    /// The offsets concerned, from (included) to (excluded), where they are known.
    pub offsets: Option<(i64, i64)>,
    /// What was found.
    pub what: String,
    /// What it means and what to do.
    pub remedy: &'static str,
}

/// What a check of a data folder found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Shards.
    pub shards: u64,
    /// Valid checkpoints.
    pub checkpoints: u64,
    /// Partitions.
    pub partitions: u64,
    /// Journal files.
    pub journal_files: u64,
    /// Group commits that a start would replay.
    pub commits: u64,
    /// Batches in them.
    pub journal_batches: u64,
    /// Segments.
    pub segments: u64,
    /// Batches in them.
    pub segment_batches: u64,
    /// Records, in segments and those in the journal that are not yet in segments.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Everything out of the ordinary.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is damaged. Warnings and notes are allowed.
    pub fn clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Damage)
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The shard being read.
    pub shard: ShardId,
    /// Bytes of all shards read so far.
    pub done_bytes: u64,
    /// Bytes of all shards; more than needed, because free journal files are not read whole.
    pub total_bytes: u64,
}

/// Why a folder or file can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A node runs on it.
    #[error("{} is locked: a node{} runs on this folder; stop it first", path.display(), holder)]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// ` (process N)`, or nothing.
        holder: String,
    },
    /// There are no shards in it.
    #[error("{} holds no shard: is it the node's data_dir?", .0.display())]
    NoData(PathBuf),
    /// The file is of no kind that can be dumped.
    #[error("{} is no .log, .index, .journal or checkpoint file", .0.display())]
    UnknownKind(PathBuf),
    /// An operation on a file failed.
    #[error("can't read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// The output is gone.
    #[error("can't write the output: {0}")]
    Output(io::Error),
}

impl OfflineError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |error| Self::Io { path: path.to_owned(), error }
    }
}

/// Locks out a node for as long as the value lives. `None` when the folder has never been locked.
fn lock_out(folder: &Path) -> Result<Option<File>, OfflineError> {
    let path = folder.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OfflineError::Io { path, error }),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            let holder = match holder.trim() {
                "" => String::new(),
                process => format!(" (process {process})"),
            };
            Err(OfflineError::Locked { path, holder })
        }
        Err(TryLockError::Error(error)) => Err(OfflineError::Io { path, error }),
    }
}
