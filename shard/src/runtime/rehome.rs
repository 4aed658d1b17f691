//! A node that is started with another number of shards: its partitions go to the folders of a new generation
//! ([`crate::engine::rehome`]), before any shard starts. The file `node.json` says which generation counts; what a crash leaves of another one
//! goes with the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pyralog_core::ShardId;

use super::data_dir::{DataDir, NodeFile};
use super::driver::Clock;
use super::node::StartError;
use super::paths::{Paths, create_folder, io_error, sync_folder};
use super::recovery_disk::RealDisk;
use crate::engine::{EngineConfig, FileId, IoError, LogLevel, RecoveryDisk, RehomingDisks, rehome};

/// Spreads what is in the folders over so many shards as `config` says.
///
/// # Errors
/// Why not, and what to do. Nothing was changed then.
pub(super) fn change_shards(
    data: &mut DataDir,
    data_dir: &Path,
    journal_dir: &Path,
    config: &EngineConfig,
) -> Result<(), StartError> {
    let started = Instant::now();
    let (before, after) = (data.node.clone(), data.node.with_shards(config.shards));
    tracing::warn!(
        "the data is spread over {} shards and {} are to run: its partitions go to other shards now, before any is started",
        before.shards,
        after.shards
    );
    let mut disks = Disks {
        data_dir,
        journal_dir,
        before: &before,
        after: &after,
        old: None,
        new: BTreeMap::new(),
        folders: BTreeSet::new(),
        #[cfg(test)]
        steps_left: tests::steps_left(),
    };
    let mut done = || -> Result<_, StartError> {
        disks.begin().map_err(failed)?;
        let ids = |node: &NodeFile| -> Vec<u64> {
            (0..node.shards).map(|shard| node.shard_journal_id(ShardId(shard))).collect()
        };
        let config = EngineConfig { has_begun: before.begun, disk_id: before.disk_id(), ..config.clone() };
        let now = Clock(Instant::now()).now();
        let rehomed = rehome(&config, &ids(&before), &ids(&after), &mut disks, now)
            .map_err(|error| StartError::new(error.to_string()))?;
        disks.end().map_err(failed)?;
        Ok(rehomed)
    };
    let rehomed = done()?;
    data.begin_generation(after.shards)?;
    tracing::warn!(
        "{} partitions are on {} shards now, with {} files and {} entries that no segment has yet; it took {} ms",
        rehomed.groups,
        after.shards,
        rehomed.files,
        rehomed.entries,
        started.elapsed().as_millis()
    );
    Ok(())
}

fn failed(error: IoError) -> StartError {
    StartError::new(format!("the partitions can't go to another number of shards: {}", error.detail))
}

struct Disks<'a> {
    data_dir: &'a Path,
    journal_dir: &'a Path,
    before: &'a NodeFile,
    after: &'a NodeFile,
    /// The shard that is being read.
    old: Option<(ShardId, RealDisk)>,
    new: BTreeMap<ShardId, RealDisk>,
    /// Those that have new entries which are not durable.
    folders: BTreeSet<PathBuf>,
    /// Operations until one fails, as if the process had died.
    #[cfg(test)]
    steps_left: Option<usize>,
}

impl Disks<'_> {
    fn paths(&self, node: &NodeFile, shard: ShardId) -> Paths {
        Paths::of_generation(self.data_dir, self.journal_dir, node.generation, shard)
    }

    /// The folders of the shards.
    fn begin(&mut self) -> Result<(), IoError> {
        for shard in (0..self.after.shards).map(ShardId) {
            let paths = self.paths(self.after, shard);
            create_folder(&paths.data)?;
            create_folder(&paths.journal)?;
        }
        Ok(())
    }

    /// Everything is there: it is to be durable.
    fn end(&mut self) -> Result<(), IoError> {
        self.new.clear();
        for shard in (0..self.after.shards).map(ShardId) {
            let paths = self.paths(self.after, shard);
            self.folders.extend([paths.data, paths.journal]);
        }
        for folder in std::mem::take(&mut self.folders) {
            self.step()?;
            sync_folder(&folder)?;
        }
        sync_folder(self.data_dir)?;
        sync_folder(self.journal_dir)
    }

    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "a test stops here")]
    fn step(&mut self) -> Result<(), IoError> {
        Ok(())
    }
}

impl RehomingDisks for Disks<'_> {
    fn before(&mut self, shard: ShardId) -> &mut dyn RecoveryDisk {
        let open = self.old.take().filter(|(open, _)| *open == shard);
        let open = open.unwrap_or_else(|| {
            tracing::info!("reading shard {shard} of {}", self.before.shards);
            (shard, RealDisk::new(self.paths(self.before, shard), Box::new(|_, _| {})))
        });
        &mut self.old.insert(open).1
    }

    fn done_with(&mut self, _shard: ShardId) {
        self.old = None;
    }

    fn after(&mut self, shard: ShardId) -> &mut dyn RecoveryDisk {
        let paths = self.paths(self.after, shard);
        self.new.entry(shard).or_insert_with(|| RealDisk::new(paths, Box::new(|_, _| {})))
    }

    fn link(&mut self, file: FileId, from: ShardId, to: ShardId) -> Result<(), IoError> {
        self.step()?;
        let (from, to) = (self.paths(self.before, from).file(file), self.paths(self.after, to).file(file));
        if let Some(folder) = to.parent()
            && self.folders.insert(folder.to_owned())
        {
            create_folder(folder)?;
        }
        std::fs::hard_link(&from, &to).map_err(|error| {
            let mut failed = io_error(&from, "give a second name to", &error);
            if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) {
                failed.detail.push_str(
                    "; the file system has to have hard links for that: without them runtime.shards has to stay as it is",
                );
            }
            failed
        })
    }

    fn tell(&mut self, level: LogLevel, text: String) {
        match level {
            LogLevel::Error => tracing::error!("{text}"),
            LogLevel::Warn => tracing::warn!("{text}"),
            LogLevel::Info => tracing::info!("{text}"),
        }
    }
}

#[cfg(test)]
#[path = "rehome_tests.rs"]
mod tests;
