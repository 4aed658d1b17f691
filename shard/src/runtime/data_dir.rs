//! The data folder: whose it is, what it was made for, and the lock that keeps a second process out.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pyralog_core::{FeatureLevels, ShardId};
use serde::{Deserialize, Serialize};

use super::node::StartError;
use super::paths::{create_folder, sync_folder};
use super::versions;

/// Version of the folder's layout.
pub(super) const FORMAT: u32 = 3;
/// The file that says whose the folder is.
pub(super) const NAME: &str = "node.json";

/// The content of `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Version of the folder's layout.
    pub format: u32,
    /// The node that the folder belongs to.
    pub node_id: u32,
    /// Number of shards that the partitions are spread over.
    pub shards: u16,
    /// Random; the journal id of every shard is made of it.
    pub journal_id: u64,
    /// When the folder was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// All shards have begun a life here: one that holds nothing has lost it.
    #[serde(default)]
    pub begun: bool,
}

impl NodeFile {
    /// What the shard stamps into its journal and checkpoints: the node's random id mixed with the shard's number,
    /// so that the files of one shard are never taken for another's. Two shards of a node never have the same: the
    /// steps (those of splitmix64) can all be undone.
    pub fn shard_journal_id(&self, shard: ShardId) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut id = self.journal_id.wrapping_add((u64::from(shard.0) + 1).wrapping_mul(STEP));
        id = (id ^ id >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id = (id ^ id >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        id ^ id >> 31
    }

    /// What the other nodes know this disk by: never `u64::MAX`.
    pub fn disk_id(&self) -> u64 {
        self.journal_id >> 1
    }

    /// The file of a data folder, as it is; `None` when it is not there or not readable.
    pub(crate) fn read(data_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(data_dir.join(NAME)).ok()?).ok()
    }
}

/// A data folder that this process holds.
#[derive(Debug)]
pub struct DataDir {
    /// What it was made for.
    pub node: NodeFile,
    path: PathBuf,
    _locks: Vec<File>,
}

impl DataDir {
    /// Takes the folders (created when missing) for this node, or says why not and what to do.
    pub fn open(
        data_dir: &Path,
        journal_dir: &Path,
        node_id: u32,
        shards: u16,
        levels: FeatureLevels,
    ) -> Result<Self, StartError> {
        // Before the lock, which is a file, too: a folder of a newer release stays as it is.
        versions::check(data_dir, journal_dir, levels)?;
        let mut locks = vec![lock(data_dir)?];
        if journal_dir != data_dir {
            locks.push(lock(journal_dir)?);
        }
        let path = data_dir.join(NAME);
        let node = match std::fs::read(&path) {
            Ok(bytes) => check(&path, &bytes, node_id, shards)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refuse_strays(&path, data_dir, journal_dir)?;
                create(&path, node_id, shards)?
            }
            Err(error) => return Err(StartError::new(format!("can't read {}: {error}", path.display()))),
        };
        Ok(Self { node, path, _locks: locks })
    }

    /// Notes that all shards have begun a life here.
    pub fn remember_begun(&self) -> Result<(), StartError> {
        if self.node.begun {
            return Ok(());
        }
        let node = NodeFile { begun: true, ..self.node.clone() };
        write(&self.path, &node)
            .map_err(|error| StartError::new(format!("can't write {}: {error}", self.path.display())))
    }
}

fn lock(folder: &Path) -> Result<File, StartError> {
    create_folder(folder).map_err(|error| StartError::new(error.detail))?;
    let path = folder.join("lock");
    let fail = |what: &str, error: &std::io::Error| {
        StartError::new(format!(
            "can't {what} {}: {error}; give this user write access to it",
            path.display()
        ))
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(&path)
        .map_err(|error| fail("open", &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(StartError::new(format!(
                "{} is in use by process {}; stop that node first, or give this one a folder of its own \
                 (node.data_dir, node.journal_dir)",
                folder.display(),
                holder.trim()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(fail("lock", &error)),
    }
    let write = |file: &mut File| -> std::io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(|error| fail("write", &error))?;
    Ok(file)
}

fn check(path: &Path, bytes: &[u8], node_id: u32, shards: u16) -> Result<NodeFile, StartError> {
    let file: NodeFile = serde_json::from_slice(bytes).map_err(|error| {
        StartError::new(format!(
            "{} is damaged ({error}); restore it from a backup of this folder",
            path.display()
        ))
    })?;
    let refuse = |text: String| Err(StartError::new(format!("{}: {text}", path.display())));
    if file.node_id != node_id {
        let owner = file.node_id;
        return refuse(format!(
            "this data belongs to node {owner}, but node.node_id is {node_id}; set it back or use another node.data_dir"
        ));
    }
    if file.shards != shards {
        let made = file.shards;
        return refuse(format!(
            "this data is spread over {made} shards, but {shards} are to run; set runtime.shards to {made}"
        ));
    }
    Ok(file)
}

/// Shard folders without a `node.json` are data that has lost its name: never start empty beside them.
fn refuse_strays(path: &Path, data_dir: &Path, journal_dir: &Path) -> Result<(), StartError> {
    let stray = [data_dir, journal_dir].iter().map(|dir| dir.join("shard-0")).find(|stray| stray.exists());
    match stray {
        None => Ok(()),
        Some(stray) => Err(StartError::new(format!(
            "{} holds data, but {} is missing; restore it, or move the folder away to start empty",
            stray.display(),
            path.display()
        ))),
    }
}

fn create(path: &Path, node_id: u32, shards: u16) -> Result<NodeFile, StartError> {
    let mut random = [0u8; 8];
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut create = || -> std::io::Result<NodeFile> {
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let file = NodeFile {
            format: FORMAT,
            node_id,
            shards,
            journal_id: u64::from_le_bytes(random),
            created_ms: created.as_millis() as u64,
            begun: false,
        };
        write(path, &file)?;
        Ok(file)
    };
    create().map_err(|error| StartError::new(format!("can't create {}: {error}", path.display())))
}

/// Writes the file anew, durably: afterwards it is the old one or the new one.
fn write(path: &Path, file: &NodeFile) -> std::io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut out = File::create(&temporary)?;
    out.write_all(&serde_json::to_vec_pretty(file).map_err(std::io::Error::other)?)?;
    out.sync_all()?;
    std::fs::rename(&temporary, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    sync_folder(folder).map_err(|error| std::io::Error::other(error.detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_node_one_layout_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("deep/data");
        let first = DataDir::open(&data, &data, 1, 2, FeatureLevels::OURS).unwrap();
        let error = DataDir::open(&data, &data, 1, 2, FeatureLevels::OURS).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        let node = first.node.clone();
        drop(first);
        let error = DataDir::open(&data, &data, 1, 3, FeatureLevels::OURS).unwrap_err().to_string();
        assert!(error.contains("set runtime.shards to 2"), "{error}");
        let error = DataDir::open(&data, &data, 9, 2, FeatureLevels::OURS).unwrap_err().to_string();
        assert!(error.contains("belongs to node 1"), "{error}");
        let again = DataDir::open(&data, &data, 1, 2, FeatureLevels::OURS).unwrap();
        assert_eq!(again.node, node);
        again.remember_begun().unwrap();
        drop(again);
        let begun = DataDir::open(&data, &data, 1, 2, FeatureLevels::OURS).unwrap();
        assert_eq!(begun.node, NodeFile { begun: true, ..node });
    }

    #[test]
    fn data_without_its_name_is_not_started_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("shard-0")).unwrap();
        let error = DataDir::open(dir.path(), dir.path(), 1, 1, FeatureLevels::OURS).unwrap_err().to_string();
        assert!(error.contains("node.json is missing"), "{error}");
        std::fs::remove_dir(dir.path().join("shard-0")).unwrap();
        std::fs::write(dir.path().join("node.json"), "{").unwrap();
        let error = DataDir::open(dir.path(), dir.path(), 1, 1, FeatureLevels::OURS).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn every_shard_has_a_journal_id_of_its_own() {
        let mut node =
            NodeFile { format: FORMAT, node_id: 1, shards: 2, journal_id: 0, created_ms: 0, begun: false };
        // The first outputs of splitmix64 from state 0, as everybody computes them.
        assert_eq!(node.shard_journal_id(ShardId(0)), 0xe220_a839_7b1d_cdaf);
        assert_eq!(node.shard_journal_id(ShardId(1)), 0x6e78_9e6a_a1b9_65f4);
        node.journal_id = 1;
        assert_ne!(node.shard_journal_id(ShardId(0)), 0xe220_a839_7b1d_cdaf);
    }
}
