//! Bits that flip in the files of a running node, and files that are cut or gone.

use std::path::{Path, PathBuf};
use std::process::Output;

use pyralog_net::message::{DescribePartitionsRequest, PartitionHealth, PartitionState, Request, Response};

use crate::common::admin;
use crate::harness::{Cluster, eventually, is_on, producer, value};

/// What is read goes to segments at once, so that a test need not wait for it.
const SETTINGS: &[(&str, &str)] = &[
    ("PYRALOG__STORAGE__CACHE_CONFIG__MAX_BUFFER_TIME_MS", "100"),
    ("PYRALOG__STORAGE__CACHE_CONFIG__ENABLED", "false"),
    ("PYRALOG__STORAGE__SEGMENT_CONFIG__MAX_SIZE", "1MiB"),
    ("PYRALOG__RUNTIME__SHARDS", "1"),
];
const RECORDS: u64 = 3_000;

/// The files of a partition's segments on a node, with this ending, in the order of their offsets.
fn files(cluster: &Cluster, node: u16, ending: &str) -> Vec<PathBuf> {
    let topic = cluster.client().topic("t").unwrap().id;
    let folder = cluster.data(node).join("shard-0").join(format!("{topic}-0"));
    let files = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|it| it == ending)).collect();
    files.sort();
    files
}

/// All that is not appended to any more: bytes of each file.
fn contents(cluster: &Cluster, node: u16, ending: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let files = files(cluster, node, ending);
    files.into_iter().map(|file| (file.clone(), std::fs::read(&file).unwrap())).collect()
}

fn flip(file: &Path, at: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, at as u64).unwrap();
    file.sync_all().unwrap();
}

/// A cluster with a topic whose records are all in segments, on every node.
fn in_segments(nodes: u16, copies: &str) -> Cluster {
    let cluster = Cluster::formed_with(nodes, SETTINGS);
    cluster.admin_ok(&["topic", "create", "t", "--replication-factor", copies]);
    let mut producer = producer(cluster.client(), "t");
    for number in 0..RECORDS {
        let mut value = value(0, number);
        value.resize(1_000, b'.');
        producer.send(0, 0, None, Some(&value), &[]).unwrap();
    }
    producer.flush().unwrap();
    let holders: Vec<u16> = if copies == "1" { vec![cluster.leader("t", 0)] } else { (1..=nodes).collect() };
    let topic = cluster.client().topic("t").unwrap().id;
    let flushed = |node: &u16| state(&cluster, *node, topic).is_some_and(|it| it.flushed == RECORDS as i64);
    eventually(|| holders.iter().all(flushed).then_some(()));
    cluster
}

/// What a node says of its own replica of the first partition.
fn state(cluster: &Cluster, node: u16, topic: u32) -> Option<PartitionState> {
    let describe = DescribePartitionsRequest { topic, first: 0, count: 1 };
    match cluster.ask(node, 0, &Request::DescribePartitions(describe)).ok()? {
        Response::DescribePartitions(states) => states.into_iter().next(),
        _ => None,
    }
}

fn expected() -> Vec<Vec<u8>> {
    let padded = |number| {
        let mut value = value(0, number);
        value.resize(1_000, b'.');
        value
    };
    (0..RECORDS).map(padded).collect()
}

fn text(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    streams.concat()
}

/// The rows of `scrub …` as JSON for one node.
fn row(rows: &serde_json::Value, node: u16) -> serde_json::Value {
    let rows = rows.as_array().unwrap();
    rows.iter().find(|row| row["node"] == node).cloned().unwrap()
}

fn is_on_the_page(printed: &str) {
    is_on("docs/operations/repair.md", include_str!("../../docs/operations/repair.md"), printed);
}

#[test]
fn what_rots_on_one_node_is_repaired_from_the_others() {
    let mut cluster = in_segments(3, "3");
    let leader = cluster.leader("t", 0);
    // One that leads and one that follows, as both serve what they have: readers, and those who catch up.
    for (nth, node) in [leader, leader % 3 + 1].into_iter().enumerate() {
        let (logs, indexes) = (contents(&cluster, node, "log"), contents(&cluster, node, "index"));
        assert!(logs.len() >= 3 && indexes.len() >= 3, "{} segments", logs.len());
        let (first, bytes) = &logs[0];
        flip(first, bytes.len() / 2);
        // The length in the header of the first batch.
        flip(&logs[1].0, 10);
        flip(&indexes[0].0, 40);
        if nth == 1 {
            let file = std::fs::File::options().write(true).open(&logs[2].0).unwrap();
            file.set_len(logs[2].1.len() as u64 / 3).unwrap();
        }
        let scrubbed = cluster.json(&["scrub", "start", "--node", &node.to_string()]);
        let row = row(&scrubbed, node);
        let wanted = if nth == 1 { 3 } else { 2 };
        assert_eq!((row["found"].as_u64(), row["repaired"].as_u64()), (Some(wanted), Some(wanted)), "{row}");
        assert_eq!((row["damaged"].as_u64(), row["running"].as_bool()), (Some(0), Some(false)), "{row}");
        for (file, whole) in logs.iter().chain(&indexes) {
            assert!(std::fs::read(file).unwrap() == *whole, "{} is as it was", file.display());
        }
    }
    is_on_the_page(&cluster.admin_ok(&["scrub", "start", "--node", &leader.to_string()]));
    assert!(cluster.read("t", 0) == expected());
    // A file that is gone when the node starts is there again soon, without anybody asking for it.
    let logs = contents(&cluster, leader, "log");
    let (gone, whole) = &logs[1];
    cluster.kill(leader);
    std::fs::remove_file(gone).unwrap();
    cluster.start(leader);
    eventually(|| std::fs::read(gone).is_ok_and(|bytes| bytes == *whole).then_some(()));
    eventually(|| {
        let status = cluster.json(&["scrub", "status"]);
        let row = row(&status, leader);
        (row["damaged"].as_u64() == Some(0) && row["repaired"].as_u64() == Some(1)).then_some(())
    });
    assert!(cluster.read("t", 0) == expected());
}

#[test]
fn with_one_replica_a_damaged_range_is_refused_and_the_rest_is_read() {
    let mut cluster = in_segments(3, "1");
    let node = cluster.leader("t", 0);
    // Nothing of it is in memory.
    let (status, _) = cluster.nodes.remove(&node).unwrap().stop();
    assert!(status.success());
    cluster.start(node);
    eventually(|| (cluster.leader("t", 0) == node).then_some(()));
    let logs = contents(&cluster, node, "log");
    flip(&logs[1].0, logs[1].1.len() / 2);
    let told = cluster.admin(&["scrub", "start", "--node", &node.to_string()]);
    assert!(
        !told.status.success() && text(&told).contains("1 ranges are damaged and refused"),
        "{}",
        text(&told)
    );
    let told = cluster.admin(&["consume", "t"]);
    is_on_the_page(&String::from_utf8_lossy(&told.stderr));
    let error = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(!told.status.success() && error.contains("are damaged"), "{:?}: {error}", told.status);
    // Before it and behind it everything is there.
    let first: Vec<Vec<u8>> = told.stdout.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let expected = expected();
    let read = first.len() - 1;
    assert!(read > 100 && first[..read] == expected[..read], "{read} records were read");
    let behind = RECORDS as usize * 2 / 3;
    let rest = cluster.admin_ok(&["consume", "t", "--from", &format!("offset:{behind}")]);
    let rest: Vec<Vec<u8>> = rest.lines().map(|line| line.as_bytes().to_vec()).collect();
    assert!(rest == expected[behind..], "{} records behind it", rest.len());
}

/// Flips a bit in each place of a file where these bytes stand; how many there were.
fn flip_each(file: &Path, wanted: &[u8]) -> usize {
    let bytes = std::fs::read(file).unwrap();
    let finder = bytes.windows(wanted.len()).enumerate();
    let found: Vec<usize> = finder.filter(|(_, bytes)| *bytes == wanted).map(|(at, _)| at).collect();
    found.iter().for_each(|at| flip(file, at + wanted.len() / 2));
    found.len()
}

fn in_folder(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// A topic's name as it stands in the metadata.
const NAME: &str = "a-name-that-stands-nowhere-else";

/// Records and the metadata, in the journals of all three nodes.
fn in_journals() -> (Cluster, u32) {
    // Nothing goes to segments of itself.
    let settings = &[("PYRALOG__STORAGE__CACHE_CONFIG__MAX_BUFFER_TIME_MS", "3600000")];
    let cluster = Cluster::formed_with(3, settings);
    cluster.admin_ok(&["topic", "create", NAME, "--replication-factor", "3"]);
    let mut producer = producer(cluster.client(), NAME);
    for number in 0..RECORDS {
        producer.send(0, 0, None, Some(&value(0, number)), &[]).unwrap();
    }
    producer.flush().unwrap();
    let topic = cluster.client().topic(NAME).unwrap().id;
    (1..=3).for_each(|node| await_whole(&cluster, node, topic));
    (cluster, topic)
}

fn await_whole(cluster: &Cluster, node: u16, topic: u32) {
    eventually(|| {
        let state = state(cluster, node, topic)?;
        let whole = state.health == PartitionHealth::Online && state.high_watermark == RECORDS as i64;
        whole.then_some(())
    });
}

/// Everything that was written is read, with this node as the leader.
fn reads_all_from(cluster: &Cluster, node: u16) {
    let node_text = node.to_string();
    eventually(|| {
        cluster
            .admin(&["leaders", "transfer", &format!("{NAME}/0"), "--to", &node_text])
            .status
            .success()
            .then_some(())
    });
    assert_eq!(cluster.leader(NAME, 0), node);
    let expected: Vec<_> = (0..RECORDS).map(|number| value(0, number)).collect();
    assert!(cluster.read(NAME, 0) == expected, "as node {node} has it");
}

fn verified(cluster: &Cluster, node: u16) -> Output {
    admin().args(["log", "verify"]).arg(cluster.data(node)).output().unwrap()
}

#[test]
fn what_rots_in_a_journal_comes_back_from_the_others() {
    let (mut cluster, topic) = in_journals();
    for (node, what) in [(1, value(0, RECORDS / 2)), (2, NAME.as_bytes().to_vec())] {
        cluster.kill(node);
        let journals = in_folder(&cluster.data(node).join("journal/shard-0"));
        let flipped: usize = journals.iter().map(|file| flip_each(file, &what)).sum();
        assert!(flipped > 0, "{:?} is in {journals:?}", String::from_utf8_lossy(&what));
        let told = verified(&cluster, node);
        assert!(!told.status.success() && text(&told).contains("damage"), "{}", text(&told));
        cluster.start(node);
        cluster.await_formed();
        await_whole(&cluster, node, topic);
        reads_all_from(&cluster, node);
    }
}

#[test]
fn a_checkpoint_that_rots_is_done_without() {
    let (mut cluster, topic) = in_journals();
    for (node, slots) in [(1, 1), (2, 2)] {
        // Each clean stop writes one, in turns.
        for life in 0..2 {
            let (status, _) = cluster.nodes.remove(&node).unwrap().stop();
            assert!(status.success());
            if life == 0 {
                cluster.start(node);
                await_whole(&cluster, node, topic);
            }
        }
        let folder = cluster.data(node).join("shard-0");
        let mut checkpoints = [folder.join("checkpoint.0"), folder.join("checkpoint.1")];
        checkpoints.sort_by_key(|file| std::fs::metadata(file).unwrap().modified().unwrap());
        for newest in checkpoints.iter().rev().take(slots) {
            // In the payload, whose first field is the incarnation.
            flip(newest, 41);
        }
        cluster.start(node);
        cluster.await_formed();
        await_whole(&cluster, node, topic);
        reads_all_from(&cluster, node);
    }
}
