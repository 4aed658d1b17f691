//! Releases one after the other: a node refuses data that it can't read and leaves it as it is; a cluster goes to another feature level
//! when all its nodes support it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pyralog_replication::metadata::Catalog;
use pyralog_shard::format::checkpoint::{CHECKPOINT_VERSION, Checkpoint};
use pyralog_shard::format::index::INDEX_VERSION;
use pyralog_shard::format::journal::{CommitHeader, JOURNAL_VERSION};

use crate::common::{Node, pyralog};
use crate::harness::{Cluster, eventually, is_on, value};
use crate::moving::Load;

const SHARDS: usize = 2;
/// Small files of every kind, soon.
const SETTINGS: &[(&str, &str)] = &[
    ("PYRALOG__RUNTIME__SHARDS", "2"),
    ("PYRALOG__STORAGE__JOURNAL__FILE_SIZE", "8MiB"),
    ("PYRALOG__STORAGE__CACHE_CONFIG__MAX_BUFFER_TIME_MS", "100"),
];
const BLOCK: usize = 4096;
const REGION: usize = 4 << 20;

/// Everything that can be seen of a file or folder without opening it again, and its bytes.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    modified: (i64, i64),
    changed: (i64, i64),
    len: u64,
    checksum: u32,
}

/// What is in a folder, the folders themselves included: one that gets or loses a file changes, too.
fn all_of(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .unwrap()
            .map(Result::unwrap)
            .map(|entry| entry.path())
            .chain([folder.clone()])
        {
            let about = fs::metadata(&entry).unwrap();
            let checksum = if about.is_dir() { 0 } else { crc32c::crc32c(&fs::read(&entry).unwrap()) };
            let (modified, changed) =
                ((about.mtime(), about.mtime_nsec()), (about.ctime(), about.ctime_nsec()));
            if about.is_dir() && entry != folder {
                folders.push(entry.clone());
            }
            seen.insert(entry, Seen { modified, changed, len: about.len(), checksum });
        }
    }
    seen
}

/// The folder of a node that has run and was stopped: two shards, records in segments and in the journal.
fn stopped_node() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let start = || Node::start_with(&data, "127.0.0.1:0", |command| command.envs(SETTINGS.iter().copied()));
    let node = start();
    node.admin_ok(["topic", "create", "t", "--partitions", "2"]);
    let lines: Vec<u8> =
        (0..4_000).flat_map(|number| [&value(0, number)[..], &[b'.'; 300], b"\n"].concat()).collect();
    assert!(node.admin_with_input(&["produce", "t", "--quiet"], &lines).status.success());
    // Two checkpoints.
    let (status, rest) = node.stop();
    assert!(status.success(), "{rest}");
    let (status, rest) = start().stop();
    assert!(status.success(), "{rest}");
    folder
}

fn files(data: &Path, shard: usize, ending: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = all_of(data)
        .into_keys()
        .filter(|path| path.to_str().unwrap().contains(&format!("/shard-{shard}/")))
        .filter(|path| path.file_name().unwrap().to_str().unwrap().contains(ending) && path.is_file())
        .collect();
    found.sort();
    assert!(!found.is_empty(), "shard {shard} has files {ending}");
    found
}

/// Puts a version into a header and seals it, so that it is newer and not damaged.
fn reseal(bytes: &mut [u8], version: u16, crc_at: usize) {
    bytes[4..6].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..crc_at]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// The commits of a shard's journal, by number: file and position.
fn commits(data: &Path, shard: usize) -> BTreeMap<u64, (PathBuf, usize)> {
    let mut found = BTreeMap::new();
    for file in files(data, shard, ".journal") {
        let bytes = fs::read(&file).unwrap();
        for (at, block) in bytes.chunks(BLOCK).enumerate() {
            if let Ok(header) = CommitHeader::decode(block) {
                found.insert(header.lsn, (file.clone(), at * BLOCK));
            }
        }
    }
    found
}

fn newer_commit(data: &Path, lsn: impl FnOnce(Vec<u64>) -> u64) -> PathBuf {
    let commits = commits(data, SHARDS - 1);
    let (file, at) = commits[&lsn(commits.keys().copied().collect())].clone();
    change(&file, |bytes| reseal(&mut bytes[at..], JOURNAL_VERSION + 1, 92));
    file
}

/// Changes the newest checkpoint of shard 0, which holds the catalogue.
fn with_checkpoint(data: &Path, alter: impl Fn(&mut Checkpoint)) -> PathBuf {
    let slots = files(data, 0, "checkpoint.").into_iter();
    let read = slots.map(|slot| (Checkpoint::decode(&fs::read(&slot).unwrap()).unwrap(), slot));
    let (mut newest, slot) = read.max_by_key(|(checkpoint, _)| checkpoint.seq).unwrap();
    alter(&mut newest);
    fs::write(&slot, newest.encode().unwrap()).unwrap();
    slot
}

struct Case {
    name: &'static str,
    /// Makes one file newer, and says which.
    make: fn(&Path) -> PathBuf,
    /// What is told besides the file.
    told: Vec<String>,
    settings: &'static [(&'static str, &'static str)],
}

fn cases() -> Vec<Case> {
    let version =
        |newest: u16| vec![format!("format version {}, newer than", newest + 1), format!("{newest})")];
    let case = |name, make, told| Case { name, make, told, settings: &[] };
    vec![
        case(
            "node.json",
            |data| {
                let path = data.join("node.json");
                change(&path, |bytes| {
                    // Of a layout that nobody knows yet but for where its number is.
                    *bytes = br#"{ "format": 5, "identity": ["of", "another", "kind"] }"#.to_vec();
                });
                path
            },
            vec!["has format 5, newer than what this release reads (formats 3 to 4)".into()],
        ),
        case(
            "a checkpoint",
            |data| {
                let slot = files(data, SHARDS - 1, "checkpoint.").swap_remove(0);
                change(&slot, |bytes| reseal(bytes, CHECKPOINT_VERSION + 1, 36));
                slot
            },
            version(CHECKPOINT_VERSION),
        ),
        case(
            "the other checkpoint",
            |data| {
                let slot = files(data, SHARDS - 1, "checkpoint.").swap_remove(1);
                change(&slot, |bytes| reseal(bytes, CHECKPOINT_VERSION + 1, 36));
                slot
            },
            version(CHECKPOINT_VERSION),
        ),
        case("the first commit", |data| newer_commit(data, |all| all[0]), version(JOURNAL_VERSION)),
        case(
            "the last commit",
            |data| newer_commit(data, |all| all[all.len() - 1]),
            version(JOURNAL_VERSION),
        ),
        case(
            "an index",
            |data| {
                let index = (0..SHARDS).rev().find_map(|shard| {
                    all_of(data).into_keys().find(|path| {
                        path.extension().is_some_and(|it| it == "index")
                            && path.to_str().unwrap().contains(&format!("shard-{shard}/"))
                    })
                });
                let index = index.unwrap();
                change(&index, |bytes| reseal(bytes, INDEX_VERSION + 1, 28));
                index
            },
            version(INDEX_VERSION),
        ),
        case(
            "the metadata",
            |data| {
                with_checkpoint(data, |checkpoint| {
                    checkpoint.catalog.as_mut().unwrap()[0] = Catalog::FORMAT + 1
                })
            },
            vec![format!("metadata format {}, newer than", Catalog::FORMAT + 1)],
        ),
        Case {
            name: "the feature level",
            make: |data| {
                with_checkpoint(data, |checkpoint| {
                    let catalog = Catalog::decode(checkpoint.catalog.as_ref().unwrap()).unwrap();
                    assert_eq!(catalog.feature_level, 2, "a node that is alone is at the highest level");
                });
                // Both say so, and the first is found first.
                files(data, 0, "checkpoint.").swap_remove(0)
            },
            told: vec!["the cluster's feature level is 2, and this node supports 1".into()],
            settings: &[("PYRALOG__NODE__FEATURE_LEVEL_MAX", "1")],
        },
    ]
}

/// How a node that can't start ends: its exit code, and what it says.
fn refused(data: &Path, more: impl FnOnce(&mut Command) -> &mut Command) -> (Option<i32>, String) {
    let mut command = pyralog();
    command.arg("--data-dir").arg(data).args(["--listen", "127.0.0.1:0"]).envs(SETTINGS.iter().copied());
    more(&mut command);
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A line that a node says which then waits; it is killed.
fn told_by_one_that_waits(
    data: &Path,
    wanted: &str,
    more: impl FnOnce(&mut Command) -> &mut Command,
) -> String {
    let mut command = pyralog();
    command.arg("--data-dir").arg(data).args(["--listen", "127.0.0.1:0"]);
    let mut child =
        more(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let told = lines.into_iter().find(|line| line.contains(wanted));
    child.kill().unwrap();
    child.wait().unwrap();
    told.unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => _ = fs::copy(entry.path(), to).unwrap(),
        }
    }
}

#[test]
fn a_node_refuses_data_of_a_newer_release_before_it_touches_it() {
    let made = stopped_node();
    let made = made.path().join("data");
    for Case { name, make, told, settings } in cases() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        copy(&made, &data);
        // A lock is a file, too: the one of a copy from a backup is not there.
        if name.starts_with("a ") {
            fs::remove_file(data.join("lock")).unwrap();
        }
        let file = make(&data);
        let before = all_of(folder.path());
        let (code, said) = refused(&data, |command| command.envs(settings.iter().copied()));
        assert_eq!(code, Some(3), "{name}: {said}");
        let after = all_of(folder.path());
        let changed: Vec<_> =
            before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
        assert!(changed.is_empty(), "{name}: {changed:?} changed");
        assert!(said.contains(file.to_str().unwrap()), "{name} is not named: {said}");
        assert!(told.iter().all(|told| said.contains(told)), "{name}: {told:?} is not in {said}");
        assert!(
            said.contains("Nothing was changed") && said.contains("start "),
            "{name} has no remedy: {said}"
        );
    }
    // And what is not newer is started from.
    let node = Node::start_with(&made, "127.0.0.1:0", |command| command.envs(SETTINGS.iter().copied()));
    assert_eq!(node.admin_ok(["consume", "t"]).iter().filter(|byte| **byte == b'\n').count(), 4_000);
}

/// A newer release that has run for a moment leaves its commits in the midst of a region.
#[test]
fn the_last_region_of_a_journal_is_looked_at_whole() {
    let made = stopped_node();
    let commits = commits(&made.path().join("data"), SHARDS - 1);
    let (_, at) = commits.last_key_value().unwrap().1;
    assert!(at % REGION != 0, "the last commit is at {at}, where every region is looked at");
}

fn level(cluster: &Cluster) -> (u64, Vec<u64>) {
    let info = cluster.json(&["cluster", "info"]);
    let highest =
        info["nodes"].as_array().unwrap().iter().map(|node| node["feature_levels"][1].as_u64().unwrap());
    (info["feature_level"].as_u64().unwrap(), highest.collect())
}

fn is_on_the_page(printed: &str) {
    is_on("docs/operations/upgrade.md", include_str!("../../docs/operations/upgrade.md"), printed);
}

#[test]
fn a_cluster_is_upgraded_under_load_and_raises_its_level_with_the_last_node() {
    let mut cluster = Cluster::at_level(3, 1);
    cluster.admin_ok(&["topic", "create", "t", "--replication-factor", "3", "--partitions", "2"]);
    let load = Load::begin(&cluster);
    eventually(|| (level(&cluster) == (1, vec![1, 1, 1])).then_some(()));
    is_on_the_page(&cluster.admin_ok(&["cluster", "info"]));
    let moves = ["reassign", "t/0", "--to", "2,3,1"];
    let too_early = |cluster: &Cluster, text: &str| {
        let output = cluster.admin(&moves);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(text), "{said}");
        said
    };
    for id in [1, 2, 3] {
        if id > 1 {
            let mut highest = vec![2; id as usize - 1];
            highest.resize(3, 1);
            eventually(|| (level(&cluster) == (1, highest.clone())).then_some(()));
        }
        let said = too_early(&cluster, "the cluster's feature level is 1, moving a partition takes 2");
        assert!(said.contains(&format!("node {id} supports only 1, upgrade it first")), "{said}");
        if id == 3 {
            is_on_the_page(said.trim());
            is_on_the_page(&cluster.admin_ok(&["cluster", "info"]));
            // One goes back, as the level is not raised.
            restart(&mut cluster, 2, Some(1));
            eventually(|| (level(&cluster) == (1, vec![2, 1, 1])).then_some(()));
            restart(&mut cluster, 2, None);
            eventually(|| (level(&cluster) == (1, vec![2, 2, 1])).then_some(()));
        }
        restart(&mut cluster, id, None);
    }
    eventually(|| (level(&cluster) == (2, vec![2, 2, 2])).then_some(()));
    is_on_the_page(&cluster.admin_ok(&["cluster", "info"]));
    cluster.admin_ok(&moves);
    let (_, metrics) = cluster.nodes[&1].http("GET", "/metrics");
    assert!(metrics.contains("pyralog_feature_level 2.0"), "{metrics}");
    let (_, status) = cluster.nodes[&2].http("GET", "/status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (&status["feature_level"], &status["nodes"][0]["feature_levels"]),
        (&2.into(), &serde_json::json!([1, 2]))
    );

    // From now on there is no way back, and the node says so instead of starting.
    cluster.nodes.remove(&2).unwrap().stop();
    let before = all_of(&cluster.data(2));
    let (code, said) = refused(&cluster.data(2), |command| {
        cluster.set_up(2, command).env("PYRALOG__NODE__FEATURE_LEVEL_MAX", "1")
    });
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("the cluster's feature level is 2, and this node supports 1"), "{said}");
    assert!(all_of(&cluster.data(2)) == before, "it has touched its data");
    let line = said.lines().find(|line| line.contains("feature level")).unwrap();
    is_on_the_page(&line.replace(cluster.data(2).to_str().unwrap(), "/var/lib/pyralog"));
    // Nor does one join with an empty folder.
    let (data, aside) = (cluster.data(2), cluster.data(2).with_extension("aside"));
    fs::rename(&data, &aside).unwrap();
    let told = told_by_one_that_waits(&data, "can't be in the cluster", |command| {
        cluster.set_up(2, command).env("PYRALOG__NODE__FEATURE_LEVEL_MAX", "1")
    });
    assert!(told.contains("it refuses (FeatureLevel): node 2 can't be in the cluster"), "{told}");
    assert!(told.contains("feature level is 2, and this node supports 1"), "{told}");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&aside, &data).unwrap();
    cluster.start(2);
    let sent = load.end();
    for partition in 0..2 {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition} of {sent} records");
    }
}

/// Restarts a node as one that supports levels up to this one, or those of this release.
fn restart(cluster: &mut Cluster, id: u16, level: Option<u16>) {
    let (status, rest) = cluster.nodes.remove(&id).unwrap().stop();
    assert!(status.success(), "{rest}");
    match level {
        Some(level) => cluster.levels.insert(id, level),
        None => cluster.levels.remove(&id),
    };
    cluster.start(id);
    cluster.await_formed();
}
