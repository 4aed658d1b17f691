//! A shard's folders, listed and read with plain calls.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pyralog_core::{GroupId, ShardId};

use super::OfflineError;
use crate::engine::{FileId, IoError, IoErrorKind, RecoveryDisk};
use crate::runtime::paths::{Paths, parse_folder_name};

/// The numbers of the shards that have a folder of this generation below either: before its first checkpoint a shard has a
/// journal only.
pub(super) fn shards(
    data_dir: &Path,
    journal_dir: &Path,
    generation: u32,
) -> Result<Vec<ShardId>, OfflineError> {
    let mut names = names(data_dir)?;
    names.extend(self::names(journal_dir)?);
    let found = names.iter().filter_map(|(name, _)| parse_folder_name(name));
    let mut shards: Vec<ShardId> =
        found.filter(|(of, _)| *of == generation).map(|(_, shard)| shard).collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

/// The newest generation of shards' folders below either.
pub(super) fn newest_generation(data_dir: &Path, journal_dir: &Path) -> Result<u32, OfflineError> {
    let mut names = names(data_dir)?;
    names.extend(self::names(journal_dir)?);
    let generations = names.iter().filter_map(|(name, _)| parse_folder_name(name));
    Ok(generations.map(|(generation, _)| generation).max().unwrap_or(0))
}

/// Names and lengths of what is in a folder; nothing when the folder is not there.
fn names(dir: &Path) -> Result<Vec<(String, u64)>, OfflineError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(OfflineError::Io { path: dir.to_owned(), error }),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(OfflineError::io(dir))?;
        let len = entry.metadata().map_err(OfflineError::io(&entry.path()))?.len();
        if let Ok(name) = entry.file_name().into_string() {
            names.push((name, len));
        }
    }
    Ok(names)
}

/// One shard's files.
pub(super) struct Folder<'a> {
    data: PathBuf,
    journal: PathBuf,
    /// Every file with its length, in the order of `FileId`.
    pub(super) files: Vec<(FileId, u64)>,
    /// Told about every byte read.
    pub(super) on_read: &'a mut dyn FnMut(u64),
    /// The file that was read last.
    open: Option<(FileId, File)>,
}

impl<'a> Folder<'a> {
    pub(super) fn open(
        data_dir: &Path,
        journal_dir: &Path,
        (generation, shard): (u32, ShardId),
        on_read: &'a mut dyn FnMut(u64),
    ) -> Result<Self, OfflineError> {
        let Paths { data, journal } = Paths::of_generation(data_dir, journal_dir, generation, shard);
        let files = list(&data, &journal)?;
        Ok(Self { data, journal, files, on_read, open: None })
    }

    pub(super) fn path(&self, file: FileId) -> PathBuf {
        match file {
            FileId::Journal(number) => self.journal.join(format!("{number}.journal")),
            FileId::Checkpoint(slot) => self.data.join(format!("checkpoint.{slot}")),
            FileId::Segment(group, base) => self.data.join(format!("{group}/{base:020}.log")),
            FileId::Index(group, base) => self.data.join(format!("{group}/{base:020}.index")),
        }
    }

    /// Length of a file that is there.
    pub(super) fn len(&self, file: FileId) -> Option<u64> {
        let at = self.files.binary_search_by_key(&file, |(known, _)| *known).ok()?;
        self.files.get(at).map(|(_, len)| *len)
    }

    /// Fills `buffer` from `offset`; fewer bytes only at the end of the file.
    pub(super) fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let open = match self.open.take() {
            Some((known, open)) if known == file => open,
            _ => File::open(self.path(file))?,
        };
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match open.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.open = Some((file, open));
        (self.on_read)(filled as u64);
        Ok(filled)
    }

    /// A whole file, at most `bound` bytes of it.
    pub(super) fn read_all(&mut self, file: FileId, bound: u64) -> Result<Vec<u8>, OfflineError> {
        let mut bytes = vec![0; self.len(file).unwrap_or(0).min(bound) as usize];
        let read = self.read_at(file, 0, &mut bytes).map_err(OfflineError::io(&self.path(file)))?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

fn list(data: &Path, journal: &Path) -> Result<Vec<(FileId, u64)>, OfflineError> {
    let mut files = Vec::new();
    for (name, len) in names(journal)? {
        if let Some(number) = name.strip_suffix(".journal").and_then(canonical) {
            files.push((FileId::Journal(number), len));
        }
    }
    for (name, len) in names(data)? {
        if let Some(slot) = name.strip_prefix("checkpoint.").and_then(canonical).filter(|slot| *slot < 2) {
            files.push((FileId::Checkpoint(slot), len));
        }
        let Some((topic, partition)) = name.split_once('-') else { continue };
        let (Some(topic), Some(partition)) = (canonical(topic), canonical(partition)) else { continue };
        let group = GroupId::new(topic, partition);
        for (name, len) in names(&data.join(&name))? {
            let Some((base, kind)) = name.split_once('.') else { continue };
            let Some(number) = base.parse().ok().filter(|number: &i64| format!("{number:020}") == base)
            else {
                continue;
            };
            match kind {
                "log" => files.push((FileId::Segment(group, number), len)),
                "index" => files.push((FileId::Index(group, number), len)),
                _ => {}
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// A number that is written the way this program writes it.
fn canonical<N: std::str::FromStr + ToString>(text: &str) -> Option<N> {
    text.parse().ok().filter(|number: &N| number.to_string() == text)
}

fn read_only() -> Result<(), IoError> {
    Err(IoError { kind: IoErrorKind::Other, detail: "the folder is only read here".into() })
}

/// The scan of the journal reads through this; nothing is ever written.
impl RecoveryDisk for Folder<'_> {
    fn list(&mut self) -> Result<Vec<(FileId, u64)>, IoError> {
        Ok(self.files.clone())
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, IoError> {
        self.read_at(file, offset, buffer).map_err(|error| IoError {
            kind: match error.kind() {
                io::ErrorKind::NotFound => IoErrorKind::NotFound,
                _ => IoErrorKind::Other,
            },
            detail: format!("can't read {}: {error}", self.path(file).display()),
        })
    }

    fn will_read_sequentially(&mut self, _file: FileId, _offset: u64) {}

    fn write(&mut self, _file: FileId, _offset: u64, _bytes: &[u8]) -> Result<(), IoError> {
        read_only()
    }

    fn sync(&mut self, _file: FileId) -> Result<(), IoError> {
        read_only()
    }

    fn create_zeroed(&mut self, _file: FileId, _len: u64) -> Result<(), IoError> {
        read_only()
    }

    fn truncate(&mut self, _file: FileId, _len: u64) -> Result<(), IoError> {
        read_only()
    }

    fn delete(&mut self, _file: FileId) -> Result<(), IoError> {
        read_only()
    }

    fn delete_group(&mut self, _group: GroupId) -> Result<(), IoError> {
        read_only()
    }

    fn progress(&mut self, _done: u64, _total: u64) {}
}
