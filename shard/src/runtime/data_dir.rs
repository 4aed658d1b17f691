//! The data folder: whose it is, what it was made for, and the lock that keeps a second process out.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pyralog_core::{FeatureLevels, ShardId};
use serde::{Deserialize, Serialize};

use super::node::StartError;
use super::paths::{create_folder, folder_name, sync_folder};
use super::versions;

/// Version of the folder's layout once the number of shards has changed: the shards' folders have other names then.
pub(super) const FORMAT: u32 = 4;
/// Version of the layout until then.
pub(super) const OLDEST_FORMAT: u32 = 3;
/// The file that says whose the folder is.
pub(crate) const NAME: &str = "node.json";

/// The content of `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Version of the folder's layout.
    pub format: u32,
    /// The node that the folder belongs to.
    pub node_id: u32,
    /// Number of shards that the partitions are spread over.
    pub shards: u16,
    /// How often that number has changed: names the shards' folders.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u32,
    /// Random; the journal id of every shard is made of it.
    pub journal_id: u64,
    /// When the folder was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// All shards have begun a life here: one that holds nothing has lost it.
    #[serde(default)]
    pub begun: bool,
}

/// As it lies in the file.
#[derive(Serialize, Deserialize)]
struct Sealed {
    #[serde(flatten)]
    node: NodeFile,
    /// [`NodeFile::checksum`]; none in a file of an older release.
    #[serde(default)]
    checksum: Option<u32>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl NodeFile {
    /// What the shard stamps into its journal and checkpoints: the node's random id mixed with generation and number of
    /// the shard, so that the files of one shard are never taken for another's. Two shards of a node never have the same,
    /// whatever their generations: the steps (those of splitmix64) can all be undone.
    pub fn shard_journal_id(&self, shard: ShardId) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let number = (u64::from(self.generation) << 16 | u64::from(shard.0)) + 1;
        let mut id = self.journal_id.wrapping_add(number.wrapping_mul(STEP));
        id = (id ^ id >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id = (id ^ id >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        id ^ id >> 31
    }

    /// The same node when its partitions are spread over another number of shards.
    pub(super) fn with_shards(&self, shards: u16) -> Self {
        Self { format: FORMAT, shards, generation: self.generation + 1, begun: true, ..self.clone() }
    }

    /// What the other nodes know this disk by: never `u64::MAX`.
    pub fn disk_id(&self) -> u64 {
        self.journal_id >> 1
    }

    /// The file of a data folder, as it is; `None` when it is not there or not readable.
    pub(crate) fn read(data_dir: &Path) -> Option<Self> {
        Self::decode(&std::fs::read(data_dir.join(NAME)).ok()?).ok()
    }

    /// CRC32C over all fields as they are written here, in this order, little-endian.
    fn checksum(&self) -> u32 {
        let mut bytes = Vec::with_capacity(31);
        bytes.extend(self.format.to_le_bytes());
        bytes.extend(self.node_id.to_le_bytes());
        bytes.extend(self.shards.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.journal_id.to_le_bytes());
        bytes.extend(self.created_ms.to_le_bytes());
        bytes.push(u8::from(self.begun));
        crc32c::crc32c(&bytes)
    }

    fn encode(&self) -> std::io::Result<Vec<u8>> {
        let sealed = Sealed { node: self.clone(), checksum: Some(self.checksum()) };
        serde_json::to_vec_pretty(&sealed).map_err(std::io::Error::other)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Sealed { node, checksum } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match checksum {
            Some(checksum) if checksum != node.checksum() => Err("its checksum does not match".into()),
            _ => Ok(node),
        }
    }
}

/// A data folder that this process holds.
#[derive(Debug)]
pub struct DataDir {
    /// What it was made for.
    pub node: NodeFile,
    path: PathBuf,
    /// Data folder and, if it is another one, journal folder.
    folders: Vec<PathBuf>,
    _locks: Vec<File>,
}

impl DataDir {
    /// Takes the folders (created when missing, for so many shards) for this node, or says why not and what to do. What a change
    /// of the number of shards has left behind that did not come to its end, or that came to it, is removed.
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
            Ok(bytes) => check(&path, &bytes, node_id)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refuse_strays(&path, data_dir, journal_dir)?;
                create(&path, node_id, shards)?
            }
            Err(error) => return Err(StartError::new(format!("can't read {}: {error}", path.display()))),
        };
        let mut folders = vec![data_dir.to_owned()];
        folders.extend((journal_dir != data_dir).then(|| journal_dir.to_owned()));
        let data = Self { node, path, folders, _locks: locks };
        data.remove_other_generations()?;
        Ok(data)
    }

    /// Notes that all shards have begun a life here.
    pub fn remember_begun(&self) -> Result<(), StartError> {
        match self.node.begun {
            true => Ok(()),
            false => self.write(&NodeFile { begun: true, ..self.node.clone() }),
        }
    }

    /// From here on the partitions are spread over so many shards, in folders of the next generation, which are complete and durable;
    /// those of the one before are removed. All that came before this has changed nothing.
    pub(super) fn begin_generation(&mut self, shards: u16) -> Result<(), StartError> {
        let node = self.node.with_shards(shards);
        self.write(&node)?;
        self.node = node;
        self.remove_other_generations()
    }

    fn write(&self, node: &NodeFile) -> Result<(), StartError> {
        write(&self.path, node)
            .map_err(|error| StartError::new(format!("can't write {}: {error}", self.path.display())))
    }

    /// Removes the shards' folders of all generations but that of `node.json`.
    pub(super) fn remove_other_generations(&self) -> Result<(), StartError> {
        for folder in &self.folders {
            let mut gone = false;
            for (generation, shard) in versions::shards_in(folder) {
                if generation == self.node.generation {
                    continue;
                }
                let path = folder.join(folder_name(generation, shard));
                std::fs::remove_dir_all(&path).map_err(|error| {
                    StartError::new(format!(
                        "can't remove {}, which a change of the number of shards has left behind: {error}",
                        path.display()
                    ))
                })?;
                gone = true;
            }
            if gone {
                sync_folder(folder).map_err(|error| StartError::new(error.detail))?;
            }
        }
        Ok(())
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

fn check(path: &Path, bytes: &[u8], node_id: u32) -> Result<NodeFile, StartError> {
    let file = NodeFile::decode(bytes).map_err(|error| {
        StartError::new(format!(
            "{} is damaged ({error}); restore it from a backup of this folder",
            path.display()
        ))
    })?;
    if file.node_id != node_id {
        return Err(StartError::new(format!(
            "{}: this data belongs to node {}, but node.node_id is {node_id}; set it back or use another node.data_dir",
            path.display(),
            file.node_id
        )));
    }
    Ok(file)
}

/// Shard folders without a `node.json` are data that has lost its name: never start empty beside them.
fn refuse_strays(path: &Path, data_dir: &Path, journal_dir: &Path) -> Result<(), StartError> {
    let named =
        |dir: &Path| versions::shards_in(dir).first().map(|(of, shard)| dir.join(folder_name(*of, *shard)));
    match named(data_dir).or_else(|| named(journal_dir)) {
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
            format: OLDEST_FORMAT,
            node_id,
            shards,
            generation: 0,
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
    out.write_all(&file.encode()?)?;
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
        let mut node = NodeFile {
            format: 3,
            node_id: 1,
            shards: 2,
            generation: 0,
            journal_id: 0,
            created_ms: 0,
            begun: false,
        };
        // The first outputs of splitmix64 from state 0, as everybody computes them.
        assert_eq!(node.shard_journal_id(ShardId(0)), 0xe220_a839_7b1d_cdaf);
        assert_eq!(node.shard_journal_id(ShardId(1)), 0x6e78_9e6a_a1b9_65f4);
        node.journal_id = 1;
        assert_ne!(node.shard_journal_id(ShardId(0)), 0xe220_a839_7b1d_cdaf);
        let mut ids = std::collections::BTreeSet::new();
        for generation in 0..20 {
            node.generation = generation;
            ids.extend((0..300).map(|shard| node.shard_journal_id(ShardId(shard))));
        }
        assert_eq!(ids.len(), 20 * 300, "none is another generation's");
    }

    #[test]
    fn a_turned_bit_of_the_node_file_never_means_something_else() {
        let node = NodeFile {
            format: FORMAT,
            node_id: 3,
            shards: 12,
            generation: 5,
            journal_id: u64::MAX - 77,
            created_ms: 1_790_000_000_123,
            begun: true,
        };
        let bytes = node.encode().unwrap();
        assert_eq!(NodeFile::decode(&bytes).unwrap(), node);
        let (mut refused, mut same) = (0, 0);
        for bit in 0..bytes.len() * 8 {
            let mut turned = bytes.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            match NodeFile::decode(&turned) {
                Err(_) => refused += 1,
                Ok(read) => {
                    assert_eq!(read, node, "bit {bit}: {}", String::from_utf8_lossy(&turned));
                    same += 1;
                }
            }
        }
        assert!(refused > 1_000 && same > 0 && same < 300, "{refused} refused, {same} the same");
    }

    #[test]
    fn a_node_file_without_a_checksum_is_read_and_one_with_a_wrong_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = || DataDir::open(dir.path(), dir.path(), 1, 2, FeatureLevels::OURS);
        let node = open().unwrap().node.clone();
        let path = dir.path().join(NAME);
        std::fs::write(&path, serde_json::to_vec(&node).unwrap()).unwrap();
        assert_eq!(open().unwrap().node, node, "as older releases have written it");
        let text = String::from_utf8(node.encode().unwrap()).unwrap();
        std::fs::write(&path, text.replace("\"shards\": 2", "\"shards\": 3")).unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains("is damaged (its checksum does not match); restore it"), "{error}");
    }

    #[test]
    fn folders_of_other_generations_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (data, journal) = (dir.path().join("data"), dir.path().join("journal"));
        let open = || DataDir::open(&data, &journal, 1, 2, FeatureLevels::OURS);
        let mut first = open().unwrap();
        let there = |names: &[&str]| {
            names
                .iter()
                .map(|name| [data.join(name), journal.join(name)].map(|path| path.exists()))
                .collect::<Vec<_>>()
        };
        let names = ["shard-0", "shard-1", "shard-0.g1", "shard-0.g2", "shard-2.old"];
        for name in names {
            std::fs::create_dir_all(data.join(name).join("7-0")).unwrap();
            std::fs::create_dir_all(journal.join(name)).unwrap();
        }
        first.begin_generation(1).unwrap();
        drop(first);
        assert_eq!(there(&names), [[false; 2], [false; 2], [true; 2], [false; 2], [true; 2]]);
        let again = open().unwrap();
        assert_eq!((again.node.shards, again.node.generation, again.node.format), (1, 1, FORMAT));
        drop(again);
        // One that did not come to its end.
        std::fs::create_dir(data.join("shard-0.g2")).unwrap();
        drop(open().unwrap());
        assert_eq!(there(&names), [[false; 2], [false; 2], [true; 2], [false; 2], [true; 2]]);
    }
}
