//! Data folders of releases: what a release has written every later one reads, to the last byte.
//!
//! **What is in `tests/fixtures` is never made again and never changed, only added to.** A fixture that no longer passes says that this
//! code can't read what is on somebody's disk: mend the code. A release with a new format adds a set: give [`SETS`] another entry, run
//! this test once with `BLESS=1`, which writes what is not there, and note the checksums. Nothing overwrites a file that is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pyralog_core::batch::{Compression, Header};
use pyralog_net::client::{
    Client, ClientConfig, ClientError, Consumer, ConsumerConfig, IdempotentProducer, ProducerConfig, StartAt,
};

use crate::common::{Node, PATIENCE, admin};
use crate::harness::{Cluster, eventually};

/// The sets, oldest first, with the CRC32C of each folder's archive: they stay what they are. The last one is of this code.
const SETS: &[(&str, [(&str, u32); 3])] =
    &[("1", [("stopped", 0x80c7_109d), ("killed", 0xc67b_36bf), ("replicas", 0xb47e_2217)])];

const RECORDS: u64 = 600;
const PARTITIONS: u32 = 2;
/// Topics, and how their batches are compressed.
const TOPICS: [(&str, Compression); 3] =
    [("plain", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)];
/// Nodes of the cluster.
const NODES: u16 = 4;

/// Everything goes to segments at once, which are small, and journal files are as small as they can be.
const FLUSHED: &[(&str, &str)] = &[
    ("PYRALOG__RUNTIME__SHARDS", "2"),
    ("PYRALOG__STORAGE__JOURNAL__FILE_SIZE", "8MiB"),
    ("PYRALOG__STORAGE__SEGMENT_CONFIG__MAX_SIZE", "1MiB"),
    ("PYRALOG__STORAGE__CACHE_CONFIG__MAX_BUFFER_TIME_MS", "100"),
];
/// Nothing goes to segments before somebody kills the node.
const JOURNALED: &[(&str, &str)] = &[
    ("PYRALOG__RUNTIME__SHARDS", "2"),
    ("PYRALOG__STORAGE__JOURNAL__FILE_SIZE", "8MiB"),
    ("PYRALOG__STORAGE__CACHE_CONFIG__MAX_BUFFER_TIME_MS", "600000"),
];
const REPLICATED: &[(&str, &str)] = &[
    ("PYRALOG__STORAGE__JOURNAL__FILE_SIZE", "8MiB"),
    ("PYRALOG__STORAGE__SEGMENT_CONFIG__MAX_SIZE", "1MiB"),
    ("PYRALOG__STORAGE__CACHE_CONFIG__MAX_BUFFER_TIME_MS", "500"),
];

/// A record as it was put in and has to come out. Changing this changes what all sets are held to: a new one needs a rule of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Put {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn put(partition: u32, number: u64) -> Put {
    let mut value = format!("partition {partition} record {number:06} ").into_bytes();
    // As long as the number says, and nothing that a page of one byte would do for.
    value.extend((0..(number * 37 % 900)).map(|at| (at * 7 + number) as u8));
    let header = |name: &str, value: Option<&[u8]>| (name.as_bytes().to_vec(), value.map(<[u8]>::to_vec));
    Put {
        timestamp: 1_700_000_000_000 + number as i64,
        key: number.is_multiple_of(3).then(|| format!("key {number}").into_bytes()),
        value,
        headers: match number % 5 {
            0 => vec![header("source", Some(b"fixture")), header("empty", None)],
            _ => Vec::new(),
        },
    }
}

fn produce(client: Client, topic: &str, compression: Compression) {
    let config = ProducerConfig {
        compression,
        batch_size: 8 << 10,
        delivery_timeout: PATIENCE,
        ..ProducerConfig::default()
    };
    let mut producer = IdempotentProducer::new(client, topic, config).unwrap();
    for number in 0..RECORDS {
        for partition in 0..PARTITIONS {
            let Put { timestamp, key, value, headers } = put(partition, number);
            let headers: Vec<Header<'_>> =
                headers.iter().map(|(key, value)| Header { key, value: value.as_deref() }).collect();
            producer.send(partition, timestamp, key.as_deref(), Some(&value), &headers).unwrap();
        }
    }
    producer.flush().unwrap();
}

/// Every record is there with everything that was put in, in its place, and nothing else is.
fn holds_all(client: impl Fn() -> Client, topic: &str) {
    for partition in 0..PARTITIONS {
        let config = ConsumerConfig::default();
        let mut consumer = Consumer::new(client(), topic, partition, StartAt::Earliest, config).unwrap();
        let mut read = BTreeMap::new();
        loop {
            let polled = consumer
                .poll(std::time::Duration::ZERO, |record| -> Result<(), ClientError> {
                    let headers =
                        record.headers.map(|header| (header.key.to_vec(), header.value.map(<[u8]>::to_vec)));
                    let (timestamp, value) = (record.timestamp, record.value.unwrap().to_vec());
                    let key = record.key.map(<[u8]>::to_vec);
                    read.insert(record.offset, Put { timestamp, key, value, headers: headers.collect() });
                    Ok(())
                })
                .unwrap();
            if consumer.position() >= polled.high_watermark {
                break;
            }
        }
        let expected: BTreeMap<i64, Put> =
            (0..RECORDS).map(|number| (number as i64, put(partition, number))).collect();
        assert!(read == expected, "{topic}/{partition}: {} records of {RECORDS}", read.len());
    }
}

// ---- folders as one file -----------------------------------------------------------------------------------

fn archive(set: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(set).join(format!("{name}.zst"))
}

/// Below `folder`, in the order of their names, without what is a lock's.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let files =
        entries.into_iter().flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] });
    files.filter(|path| path.file_name().is_some_and(|name| name != "lock")).collect()
}

/// Each file as the length of its name (two bytes, little-endian), its name, its length (eight bytes), its bytes; all of it zstd.
fn pack(folder: &Path) -> Vec<u8> {
    let mut plain = Vec::new();
    for file in files_below(folder) {
        let name = file.strip_prefix(folder).unwrap().to_str().unwrap().as_bytes();
        let bytes = fs::read(&file).unwrap();
        plain.extend((name.len() as u16).to_le_bytes());
        plain.extend(name);
        plain.extend((bytes.len() as u64).to_le_bytes());
        plain.extend(bytes);
    }
    zstd::encode_all(&plain[..], 19).unwrap()
}

fn unpack(archive: &[u8], folder: &Path) {
    let plain = zstd::decode_all(archive).unwrap();
    let mut rest = &plain[..];
    let mut take = |bytes: usize| {
        let (taken, behind) = rest.split_at_checked(bytes)?;
        rest = behind;
        Some(taken)
    };
    while let Some(len) = take(2) {
        let len = u16::from_le_bytes(len.try_into().unwrap());
        let name = std::str::from_utf8(take(len.into()).unwrap()).unwrap();
        let len = u64::from_le_bytes(take(8).unwrap().try_into().unwrap());
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, take(len as usize).unwrap()).unwrap();
    }
}

/// Unpacks a set's folder below `to`. One that is not there is made, if that is asked for and it is the newest set's.
fn fixture(set: usize, name: &str, to: &Path, make: fn(&Path)) {
    let (number, checksums) = SETS[set];
    let path = archive(number, name);
    if !path.exists() && std::env::var_os("BLESS").is_some() && set + 1 == SETS.len() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, pack(folder.path())).unwrap();
    }
    let bytes = fs::read(&path).unwrap();
    let (_, checksum) = checksums.into_iter().find(|(known, _)| *known == name).unwrap();
    let found = crc32c::crc32c(&bytes);
    assert_eq!(
        found,
        checksum,
        "{} is not what it was: {found:#010x}; a fixture is never made again",
        path.display()
    );
    unpack(&bytes, to);
}

// ---- a node that is alone ----------------------------------------------------------------------------------

fn client_of(node: &Node) -> Client {
    Client::new(&[node.address.to_string()], ClientConfig::default())
}

fn filled(folder: &Path, settings: &'static [(&'static str, &'static str)]) -> Node {
    let node = Node::start_with(&folder.join("data"), "127.0.0.1:0", |command| {
        command.envs(settings.iter().copied())
    });
    for (topic, compression) in TOPICS {
        node.admin_ok(["topic", "create", topic, "--partitions", &PARTITIONS.to_string()]);
        produce(client_of(&node), topic, compression);
    }
    // Numbers that are never used again, and a partition more.
    node.admin_ok(["topic", "create", "gone"]);
    node.admin_ok(["topic", "delete", "gone", "--yes"]);
    node.admin_ok(["topic", "create", "altered"]);
    node.admin_ok(["topic", "alter", "altered", "--partitions", "3", "--retention-bytes", "1GiB"]);
    node
}

fn make_stopped(folder: &Path) {
    let (status, rest) = filled(folder, FLUSHED).stop();
    assert!(status.success(), "{rest}");
}

fn make_killed(folder: &Path) {
    filled(folder, JOURNALED).kill();
}

fn verify(data: &Path) {
    let output = admin().args(["log", "verify"]).arg(data).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn serves_all(data: &Path) {
    let node = Node::start_with(data, "127.0.0.1:0", |command| command.envs(FLUSHED.iter().copied()));
    for (topic, _) in TOPICS {
        holds_all(|| client_of(&node), topic);
    }
    let altered = client_of(&node).topic("altered").unwrap();
    assert_eq!((altered.id, altered.partitions.len(), altered.retention_bytes), (5, 3, 1 << 30));
    // It goes on from there.
    node.admin_ok(["topic", "create", "new"]);
    assert_eq!(client_of(&node).topic("new").unwrap().id, 6, "numbers of topics go on");
    assert!(node.admin_with_input(&["produce", "plain", "--partition", "0"], b"one more\n").status.success());
    let (status, rest) = node.stop();
    assert!(status.success(), "{rest}");
    verify(data);
}

#[test]
fn what_a_stopped_node_of_any_release_has_written_is_read() {
    for set in 0..SETS.len() {
        let folder = tempfile::tempdir().unwrap();
        fixture(set, "stopped", folder.path(), make_stopped);
        let endings = |ending: &str| {
            let files = files_below(folder.path()).into_iter();
            files.filter(|file| file.extension().is_some_and(|found| found == ending)).count()
        };
        assert!(
            endings("log") >= 6 && endings("index") >= 6 && endings("journal") >= 2,
            "all kinds are there"
        );
        verify(&folder.path().join("data"));
        serves_all(&folder.path().join("data"));
    }
}

#[test]
fn what_a_killed_node_of_any_release_has_in_its_journal_is_read() {
    for set in 0..SETS.len() {
        let folder = tempfile::tempdir().unwrap();
        fixture(set, "killed", folder.path(), make_killed);
        serves_all(&folder.path().join("data"));
    }
}

// ---- a cluster ---------------------------------------------------------------------------------------------

fn make_replicas(folder: &Path) {
    let mut cluster = Cluster::formed_with(NODES, REPLICATED);
    let replicas = |cluster: &Cluster| -> Vec<u32> {
        let topic = cluster.client().topic("plain").unwrap();
        topic.partitions[0].replicas.iter().map(|replica| replica.node).collect()
    };
    for (topic, compression) in TOPICS {
        let partitions = PARTITIONS.to_string();
        cluster.admin_ok(&[
            "topic",
            "create",
            topic,
            "--replication-factor",
            "3",
            "--partitions",
            &partitions,
        ]);
        produce(cluster.client(), topic, compression);
    }
    // A partition that has moved: its log says who the replicas are.
    let before = replicas(&cluster);
    let outside = (1..=u32::from(NODES)).find(|node| !before.contains(node)).unwrap();
    let to = format!("{},{},{outside}", before[1], before[0]);
    cluster.admin_ok(&["reassign", "plain/0", "--to", &to]);
    // Some of it is in segments by now, on every node.
    for id in 1..=NODES {
        let has = |name: &str| {
            files_below(&cluster.data(id)).iter().any(|file| file.to_str().unwrap().contains(name))
        };
        eventually(|| (has("checkpoint.") && has(".log")).then_some(()));
    }
    let partitions = PARTITIONS.to_string();
    cluster.admin_ok(&["topic", "create", "late", "--replication-factor", "3", "--partitions", &partitions]);
    produce(cluster.client(), "late", Compression::None);
    (1..=NODES).for_each(|id| cluster.kill(id));
    for id in 1..=NODES {
        for file in files_below(&cluster.data(id)) {
            let path = folder.join(format!("node-{id}")).join(file.strip_prefix(cluster.data(id)).unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(file, path).unwrap();
        }
    }
}

#[test]
fn what_the_replicas_of_any_release_have_written_is_read() {
    for set in 0..SETS.len() {
        let cluster = Cluster::new(NODES);
        fixture(set, "replicas", cluster.data(1).parent().unwrap(), make_replicas);
        let mut cluster = cluster.form();
        for (topic, _) in TOPICS.into_iter().chain([("late", Compression::None)]) {
            holds_all(|| cluster.client(), topic);
        }
        // Each replica has everything, and any of them may die.
        let led = cluster.leader("plain", 0);
        cluster.kill(led);
        eventually(|| (cluster.leader_but("plain", 0, led) != led).then_some(()));
        holds_all(|| cluster.client(), "plain");
    }
}
