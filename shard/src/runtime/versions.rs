//! Whether this release can read all of a data folder, asked before anything in it is touched: a file of a newer format is no damage,
//! and a node that took it for that would throw away what a newer release has written.
//!
//! What says the version of a file is at the same place in all versions, with its checksum (`docs/storage-format.md`, "Versions").

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pyralog_core::limits::{CHUNK_BYTES, JOURNAL_ALIGN, MAX_CHECKPOINT_BYTES};
use pyralog_core::{FeatureLevels, ShardId};
use pyralog_replication::metadata::{Catalog, DecodeError, not_supported};

use super::data_dir::{FORMAT, NAME, OLDEST_FORMAT};
use super::node::StartError;
use super::paths::{Paths, parse_folder_name};
use crate::engine::FileId;
use crate::format::checkpoint::{CHECKPOINT_VERSION, Checkpoint, CheckpointError, OLDEST_CHECKPOINT_VERSION};
use crate::format::index::{INDEX_HEADER_BYTES, INDEX_VERSION, Index, IndexError};
use crate::format::journal::{CommitError, CommitHeader, JOURNAL_VERSION, OLDEST_JOURNAL_VERSION};

/// Looks at every file of all shards. What is missing, damaged or can't be read is for the recovery to judge.
///
/// # Errors
/// The first file of a version that is not read here, which versions are, and what to do; or the cluster's feature level, when this
/// node does not support it.
pub(super) fn check(data_dir: &Path, journal_dir: &Path, levels: FeatureLevels) -> Result<(), StartError> {
    let node_file = data_dir.join(NAME);
    if let Ok(bytes) = std::fs::read(&node_file)
        && let Some(found) = format_of(&bytes)
        && !(u64::from(OLDEST_FORMAT)..=u64::from(FORMAT)).contains(&found)
    {
        return Err(unknown(&node_file, "format", found, OLDEST_FORMAT.into(), FORMAT.into()));
    }
    let mut shards: Vec<(u32, ShardId)> = [data_dir, journal_dir].into_iter().flat_map(shards_in).collect();
    shards.sort_unstable();
    shards.dedup();
    for (generation, shard) in shards {
        let paths = Paths::of_generation(data_dir, journal_dir, generation, shard);
        Folder { paths, shard, levels }.check()?;
    }
    Ok(())
}

/// What `node.json` says of its format, whatever else is in it.
pub(super) fn format_of(bytes: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(bytes).ok()?.get("format")?.as_u64()
}

/// Generation and number of every shard that has a folder there.
pub(super) fn shards_in(folder: &Path) -> Vec<(u32, ShardId)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| parse_folder_name(&name)).collect()
}

/// The refusal of a file: what was found, what is read, what to do.
fn unknown(path: &Path, what: &str, found: u64, oldest: u64, newest: u64) -> StartError {
    let (age, remedy) = match found > newest {
        true => ("newer than", "start the release that wrote it, or a later one"),
        false => ("older than", "start a release in between first, which writes it anew"),
    };
    let read = match oldest == newest {
        true => format!("{what} {newest}"),
        false => format!("{what}s {oldest} to {newest}"),
    };
    StartError::new(format!(
        "{} has {what} {found}, {age} what this release reads ({read}). Nothing was changed. Remedy: {remedy}; see \
         docs/operations/upgrade.md",
        path.display()
    ))
}

/// One shard's files.
struct Folder {
    paths: Paths,
    shard: ShardId,
    levels: FeatureLevels,
}

impl Folder {
    fn check(&self) -> Result<(), StartError> {
        let files = self.paths.list().map_err(|error| StartError::new(error.detail))?;
        let mut last_region = None;
        for (file, len) in files {
            match file {
                FileId::Checkpoint(_) => self.check_checkpoint(file, len)?,
                FileId::Index(_, base) => self.check_index(file, base)?,
                FileId::Journal(_) => self.check_region_starts(file, len, &mut last_region)?,
                // Record batches and nothing else.
                FileId::Segment(..) => {}
            }
        }
        match last_region {
            Some((_, start, file)) => self.check_region(file, start),
            None => Ok(()),
        }
    }

    fn unknown(&self, file: FileId, found: u16, oldest: u16, newest: u16) -> StartError {
        unknown(&self.paths.file(file), "format version", found.into(), oldest.into(), newest.into())
    }

    fn check_checkpoint(&self, file: FileId, len: u64) -> Result<(), StartError> {
        let Ok(bytes) = self.read(file, 0, len.min(MAX_CHECKPOINT_BYTES as u64) as usize) else {
            return Ok(());
        };
        match Checkpoint::decode(&bytes) {
            Err(CheckpointError::Version(found)) => {
                Err(self.unknown(file, found, OLDEST_CHECKPOINT_VERSION, CHECKPOINT_VERSION))
            }
            Ok(checkpoint) => match checkpoint.catalog {
                Some(catalog) if self.shard == ShardId(0) => self.check_catalog(file, &catalog),
                _ => Ok(()),
            },
            Err(_) => Ok(()),
        }
    }

    fn check_catalog(&self, file: FileId, bytes: &[u8]) -> Result<(), StartError> {
        match Catalog::decode(bytes) {
            Err(DecodeError::UnknownVersion { found }) => {
                let (oldest, newest) = (Catalog::OLDEST_FORMAT, Catalog::FORMAT);
                let path = self.paths.file(file);
                Err(unknown(&path, "metadata format", found.into(), oldest.into(), newest.into()))
            }
            Ok(catalog) if !self.levels.contains(catalog.feature_level) => Err(StartError::new(format!(
                "{}: {}. Nothing was changed; see docs/operations/upgrade.md",
                self.paths.file(file).display(),
                not_supported(self.levels, catalog.feature_level)
            ))),
            _ => Ok(()),
        }
    }

    fn check_index(&self, file: FileId, base: i64) -> Result<(), StartError> {
        let Ok(header) = self.read(file, 0, INDEX_HEADER_BYTES) else { return Ok(()) };
        match Index::parse(&header, base, 0) {
            Err(IndexError::Version(found)) => Err(self.unknown(file, found, INDEX_VERSION, INDEX_VERSION)),
            _ => Ok(()),
        }
    }

    /// The first commits of a newer release are in the region that was written last, or that release has begun a region: so the starts
    /// of all regions and the whole of the last one tell.
    fn check_region_starts(
        &self,
        file: FileId,
        len: u64,
        last: &mut Option<(u64, u64, FileId)>,
    ) -> Result<(), StartError> {
        for start in (0..len).step_by(CHUNK_BYTES) {
            let Ok(block) = self.read(file, start, JOURNAL_ALIGN) else { continue };
            if let Some(header) = self.check_block(file, &block)? {
                *last = (*last).max(Some((header.generation, start, file)));
            }
        }
        Ok(())
    }

    fn check_region(&self, file: FileId, start: u64) -> Result<(), StartError> {
        let Ok(region) = self.read(file, start, CHUNK_BYTES) else { return Ok(()) };
        region.chunks(JOURNAL_ALIGN).try_for_each(|block| self.check_block(file, block).map(drop))
    }

    fn check_block(&self, file: FileId, block: &[u8]) -> Result<Option<CommitHeader>, StartError> {
        match CommitHeader::decode(block) {
            Err(CommitError::Version(found)) => {
                Err(self.unknown(file, found, OLDEST_JOURNAL_VERSION, JOURNAL_VERSION))
            }
            decoded => Ok(decoded.ok()),
        }
    }

    /// As many of these bytes as there are.
    fn read(&self, file: FileId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let open = File::open(self.paths.file(file))?;
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match open.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}
