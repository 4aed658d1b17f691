//! Where a shard's files lie, and how the system's errors are told to the engine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use pyralog_core::{GroupId, ShardId};

use crate::engine::{FileId, IoError, IoErrorKind};

/// The two folders of a shard.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Checkpoints and groups: `<data_dir>/shard-<s>`.
    pub data: PathBuf,
    /// Journal files: `<journal_dir>/shard-<s>`.
    pub journal: PathBuf,
}

/// The name of a shard's folders: `shard-<s>`, and `shard-<s>.g<generation>` from the first change of the number of shards on.
pub fn folder_name(generation: u32, shard: ShardId) -> String {
    match generation {
        0 => format!("shard-{shard}"),
        _ => format!("shard-{shard}.g{generation}"),
    }
}

/// Generation and shard of a folder with this name; `None`: it is no shard's.
pub fn parse_folder_name(name: &str) -> Option<(u32, ShardId)> {
    let rest = name.strip_prefix("shard-")?;
    let (shard, generation) = match rest.split_once(".g") {
        None => (rest, 0),
        Some((shard, generation)) => (shard, canonical(generation).filter(|generation| *generation > 0)?),
    };
    Some((generation, ShardId(canonical(shard)?)))
}

impl Paths {
    /// The folders of `shard`, of a node whose number of shards never changed.
    pub fn new(data_dir: &Path, journal_dir: &Path, shard: ShardId) -> Self {
        Self::of_generation(data_dir, journal_dir, 0, shard)
    }

    /// The folders of `shard` after so many changes of the number of shards.
    pub fn of_generation(data_dir: &Path, journal_dir: &Path, generation: u32, shard: ShardId) -> Self {
        let name = folder_name(generation, shard);
        Self { data: data_dir.join(&name), journal: journal_dir.join(&name) }
    }

    /// The group's folder.
    pub fn group(&self, group: GroupId) -> PathBuf {
        self.data.join(format!("{}-{}", group.topic, group.partition))
    }

    /// The file's path.
    pub fn file(&self, file: FileId) -> PathBuf {
        match file {
            FileId::Journal(n) => self.journal.join(format!("{n}.journal")),
            FileId::Checkpoint(n) => self.data.join(format!("checkpoint.{n}")),
            FileId::Segment(group, base) => self.group(group).join(format!("{base:020}.log")),
            FileId::Index(group, base) => self.group(group).join(format!("{base:020}.index")),
        }
    }

    /// Every file of the shard with its length, in the order of `FileId`. Names that are not ours are left
    /// alone.
    pub fn list(&self) -> Result<Vec<(FileId, u64)>, IoError> {
        let mut files = Vec::new();
        for (name, path, len) in entries(&self.journal, false)? {
            if let Some(n) = name.strip_suffix(".journal").and_then(canonical) {
                files.push((FileId::Journal(n), len));
            } else if self.journal != self.data {
                tracing::debug!(path = %path.display(), "not a journal file; left alone");
            }
        }
        for (name, _, len) in entries(&self.data, false)? {
            if let Some(n @ 0..=1) = name.strip_prefix("checkpoint.").and_then(canonical) {
                files.push((FileId::Checkpoint(n), len));
            }
        }
        for (name, path, _) in entries(&self.data, true)? {
            let Some((topic, partition)) = name.split_once('-') else { continue };
            let (Some(topic), Some(partition)) = (canonical(topic), canonical(partition)) else { continue };
            let group = GroupId::new(topic, partition);
            for (name, _, len) in entries(&path, false)? {
                let Some((base, kind)) = name.split_once('.') else { continue };
                let Some(base) = (base.len() == 20).then(|| base.parse().ok()).flatten() else { continue };
                match kind {
                    "log" => files.push((FileId::Segment(group, base), len)),
                    "index" => files.push((FileId::Index(group, base), len)),
                    _ => {}
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

/// The number, if it is written the one way that we write it.
fn canonical<N: std::str::FromStr + ToString>(text: &str) -> Option<N> {
    text.parse::<N>().ok().filter(|number| number.to_string() == text)
}

/// Name, path and length of the files (or the folders) in `folder`; none when it is not there.
fn entries(folder: &Path, folders: bool) -> Result<Vec<(String, PathBuf, u64)>, IoError> {
    let mut found = Vec::new();
    let fail = |error: io::Error| io_error(folder, "list", &error);
    let listing = match std::fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(fail(error)),
    };
    for entry in listing {
        let entry = entry.map_err(fail)?;
        let kind = entry.file_type().map_err(fail)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if folders && kind.is_dir() {
            found.push((name, entry.path(), 0));
        } else if !folders && kind.is_file() {
            found.push((name, entry.path(), entry.metadata().map_err(fail)?.len()));
        }
    }
    Ok(found)
}

/// What the engine is told of a failed system call on `path`.
pub fn io_error(path: &Path, what: &str, error: &io::Error) -> IoError {
    let code = error.raw_os_error();
    let kind = match code {
        Some(libc::ENOSPC | libc::EDQUOT) => IoErrorKind::NoSpace,
        Some(libc::ENOENT) => IoErrorKind::NotFound,
        _ => IoErrorKind::Other,
    };
    let hint = match code {
        Some(libc::ENOSPC) => "; free space on this file system or lower the retention",
        Some(libc::EDQUOT) => "; raise the disk quota of this user or lower the retention",
        Some(libc::EIO) => "; the disk is failing, see the kernel's log (dmesg) and replace it",
        Some(libc::EROFS) => "; the file system is mounted read-only, often after an error: see dmesg",
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files (ulimit -n 65536)",
        Some(libc::EACCES | libc::EPERM) => "; give the node's user write access to its folders",
        _ => "",
    };
    IoError { kind, detail: format!("can't {what} {}: {error}{hint}", path.display()) }
}

/// Makes the entries of a folder durable.
pub fn sync_folder(folder: &Path) -> Result<(), IoError> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|error| io_error(folder, "make durable the folder", &error))
}

/// Creates `folder` and what is missing above it; each new one is durable in its parent.
pub fn create_folder(folder: &Path) -> Result<(), IoError> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_folder(parent)?;
    }
    match std::fs::create_dir(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error(folder, "create the folder", &error)),
    }
    sync_folder(parent.unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_gives_back_what_the_paths_name() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), &dir.path().join("fast"), ShardId(3));
        let group = GroupId::new(7, 2);
        let files = [
            FileId::Journal(0),
            FileId::Journal(12),
            FileId::Checkpoint(1),
            FileId::Segment(group, 0),
            FileId::Segment(group, 900),
            FileId::Index(group, 900),
        ];
        for (len, file) in files.iter().enumerate() {
            let path = paths.file(*file);
            create_folder(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![0; len]).unwrap();
        }
        for stranger in ["07-2", "7-2.old", "lost+found"] {
            std::fs::create_dir(paths.data.join(stranger)).unwrap();
        }
        std::fs::write(paths.journal.join("012.journal"), "x").unwrap();
        std::fs::write(paths.group(group).join("5.log"), "x").unwrap();
        let expected: Vec<_> = files.iter().enumerate().map(|(len, file)| (*file, len as u64)).collect();
        assert_eq!(paths.list().unwrap(), expected);
        assert!(paths.file(files[4]).ends_with("shard-3/7-2/00000000000000000900.log"));
    }

    #[test]
    fn a_folder_has_one_name() {
        for (generation, shard) in [(0, 0), (0, 255), (1, 0), (7, 12), (u32::MAX, u16::MAX)] {
            let name = folder_name(generation, ShardId(shard));
            assert_eq!(parse_folder_name(&name), Some((generation, ShardId(shard))), "{name}");
        }
        for stranger in [
            "shard-",
            "shard-01",
            "shard-1.g0",
            "shard-1.g",
            "shard-1.g01",
            "shard-1.old",
            "1",
            "shard-65536",
        ] {
            assert_eq!(parse_folder_name(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn errors_carry_the_path_and_a_remedy() {
        let error = io_error(Path::new("/data/x.log"), "write", &io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(error.kind, IoErrorKind::NoSpace);
        assert!(
            error.detail.contains("/data/x.log") && error.detail.contains("free space"),
            "{}",
            error.detail
        );
    }
}
