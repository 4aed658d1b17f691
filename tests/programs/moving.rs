//! Partitions go to other nodes while producers and a reader are at work and nodes die.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use pyralog_core::Quorums;
use pyralog_net::message::AlterTopicRequest;

use crate::harness::{Cluster, Reader, eventually, is_on, producer, value};

const PARTITIONS: u32 = 2;
/// Between two records for each partition.
const PACE: Duration = Duration::from_micros(200);

/// Produces to all partitions, in turns, until it is told to end.
pub(crate) struct Load {
    done: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Load {
    pub(crate) fn begin(cluster: &Cluster) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (mut producer, ended) = (producer(cluster.client(), "t"), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !ended.load(Ordering::Relaxed) {
                for partition in 0..PARTITIONS {
                    producer.send(partition, 0, None, Some(&value(partition, sent)), &[]).unwrap();
                }
                sent += 1;
                // As fast as it can it would write more than a node that comes can copy.
                std::thread::sleep(PACE);
            }
            producer.flush().unwrap();
            sent
        });
        Self { done, thread }
    }

    /// How many each partition has been acknowledged.
    pub(crate) fn end(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The nodes of a partition's replicas, the preferred leader first.
fn replicas(cluster: &Cluster, partition: usize) -> Vec<u32> {
    let topic = cluster.client().topic("t").unwrap();
    topic.partitions[partition].replicas.iter().map(|replica| replica.node).collect()
}

/// The folders in which a node has a partition's segments.
fn folders(cluster: &Cluster, node: u32, partition: u32) -> Vec<PathBuf> {
    let topic = cluster.client().topic("t").unwrap().id;
    let shards = std::fs::read_dir(cluster.data(node as u16)).unwrap().map(|entry| entry.unwrap().path());
    let folders = shards.map(|shard| shard.join(format!("{topic}-{partition}")));
    folders.filter(|folder| folder.exists()).collect()
}

fn written(nodes: &[u32]) -> String {
    nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn a_partition_moves_under_load_while_nodes_die() {
    let mut cluster = Cluster::formed_with(5, &[("PYRALOG__RUNTIME__SHARDS", "2")]);
    let create = ["topic", "create", "t", "--replication-factor", "3", "--partitions"];
    cluster.admin_ok(&[&create[..], &[&PARTITIONS.to_string()]].concat());
    let load = Load::begin(&cluster);
    let reader = Reader::begin(cluster.client(), "t", 0);
    eventually(|| (reader.records() > 1_000).then_some(()));
    let before = replicas(&cluster, 0);
    let others: Vec<u32> = (1..=5).filter(|node| !before.contains(node)).collect();

    // All but one go elsewhere, the leader with them; one of the new nodes dies on the way and comes back.
    let to = [others[0], others[1], before[2]];
    cluster.admin_ok(&["reassign", "t/0", "--to", &written(&to), "--no-wait"]);
    cluster.kill(others[1] as u16);
    cluster.start(others[1] as u16);
    eventually(|| (replicas(&cluster, 0) == to).then_some(()));
    assert_eq!(cluster.admin_ok(&["reassign"]).trim(), "no partition is on its way to other nodes");
    eventually(|| (cluster.leader("t", 0) as u32 == to[0]).then_some(()));
    for gone in &before[..2] {
        eventually(|| folders(&cluster, *gone, 0).is_empty().then_some(()));
    }
    // A node dies without which the partition could not go on before.
    cluster.kill(before[0] as u16);
    let seen = reader.records();
    eventually(|| (reader.records() > seen + 1_000).then_some(()));
    cluster.start(before[0] as u16);

    // And back, with the command waiting for it.
    let moved = cluster.json(&["reassign", "t/0", "--to", &written(&before)]);
    assert_eq!((moved["state"].as_str(), moved["bytes_left"].as_u64()), (Some("arrived"), Some(0)));
    assert_eq!(replicas(&cluster, 0), before);
    for gone in &others {
        eventually(|| folders(&cluster, *gone, 0).is_empty().then_some(()));
    }

    // One that can't arrive is taken back.
    cluster.kill(others[0] as u16);
    cluster.admin_ok(&["reassign", "t/0", "--to", &written(&[others[0], before[1], before[2]]), "--no-wait"]);
    let moving = cluster.json(&["reassign"]);
    assert_eq!((moving[0]["topic"].as_str(), moving[0]["state"].as_str()), (Some("t"), Some("moving")));
    let back = cluster.json(&["reassign", "t/0", "--cancel"]);
    assert_eq!(back["state"].as_str(), Some("arrived"));
    assert_eq!(replicas(&cluster, 0), before);

    let sent = load.end();
    for partition in 0..PARTITIONS {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition} of {sent} records");
        if partition == 0 {
            assert!(reader.records() <= sent);
        }
    }
    let expected: Vec<_> = (0..sent).map(|number| value(0, number)).collect();
    assert!(reader.end(sent) == expected, "the reader has read all in order");
}

#[test]
fn what_can_not_be_is_refused_with_the_reason() {
    let cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t", "--partitions", "1"]);
    let refused = |arguments: &[&str], text: &str| {
        let output = cluster.admin(&[&["reassign"], arguments].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(text), "{arguments:?}: {error}");
    };
    refused(&["t/0", "--to", "1,2,7"], "node 7 is not registered");
    refused(&["t/0", "--to", "1,2"], "has 3 replicas, 2 nodes are named");
    refused(&["t/0", "--to", "1,2,2"], "node 2 is named twice");
    refused(&["t/0", "--cancel"], "is not on its way anywhere");
    refused(&["t/0", "--to", "1"], "has 3 replicas, 1 nodes are named");
    refused(&["t/5", "--to", "1,2,3"], "partition");
    refused(&["nobody/0", "--to", "1,2,3"], "nobody");
    refused(&["t"], "no partition");
    refused(&["t/0"], "--to");
    // Another order of the same nodes is done at once: another one leads.
    let now = replicas(&cluster, 0);
    let to = [now[1], now[0], now[2]];
    let moved = cluster.json(&["reassign", "t/0", "--to", &written(&to)]);
    assert_eq!(moved["state"].as_str(), Some("arrived"));
    eventually(|| (cluster.leader("t", 0) as u32 == to[0]).then_some(()));
    let led = cluster.json(&["leaders", "transfer", "t/0", "--to", &now[2].to_string()]);
    assert_eq!(
        (led["leader"].as_u64(), led["replicas"][0].as_u64()),
        (Some(now[2].into()), Some(now[2].into()))
    );
    let output = cluster.admin(&["leaders", "transfer", "t/0", "--to", "9"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("node 9 has no replica"));
}

fn is_on_the_page(printed: &str) {
    is_on("docs/operations/scaling.md", include_str!("../../docs/operations/scaling.md"), printed);
}

/// Where the replicas of all partitions are.
fn placed(cluster: &Cluster) -> Vec<Vec<u32>> {
    (0..cluster.client().topic("t").unwrap().partitions.len())
        .map(|partition| replicas(cluster, partition))
        .collect()
}

#[test]
fn a_cluster_grows_and_shrinks_under_load() {
    let mut cluster = Cluster::formed(3);
    let create = ["topic", "create", "t", "--replication-factor", "3", "--partitions"];
    cluster.admin_ok(&[&create[..], &[&PARTITIONS.to_string()]].concat());
    cluster.admin_ok(&["topic", "create", "u", "--replication-factor", "3", "--partitions", "8"]);
    let load = Load::begin(&cluster);
    // By the settings of all nodes, restarted one after the other.
    for added in [4, 5] {
        assert_eq!(cluster.add_node(), added);
        eventually(|| {
            (cluster.client().metadata_holders().unwrap().len() == usize::from(added)).then_some(())
        });
    }
    let planned = cluster.json(&["rebalance", "--dry-run"]);
    let moves = planned["moves"].as_array().unwrap().len();
    assert!(moves > 0 && planned["done"] == false, "{planned}");
    // The page shows those of one topic.
    let planned = cluster.admin_ok(&["rebalance", "--dry-run"]);
    let shown: Vec<&str> = planned.lines().filter(|line| !line.starts_with(" u ")).collect();
    is_on_the_page(&shown.join("\n"));
    let not_asked = cluster.admin(&["rebalance"]);
    assert!(!not_asked.status.success(), "nobody has said yes: {not_asked:?}");
    let moved = cluster.json(&["rebalance", "--yes"]);
    assert_eq!((moved["moves"].as_array().unwrap().len(), &moved["done"]), (moves, &true.into()), "{moved}");
    assert_eq!(cluster.json(&["rebalance", "--dry-run"])["moves"].as_array().unwrap().len(), 0);
    let info = cluster.json(&["cluster", "info"]);
    let held: Vec<u64> =
        info["nodes"].as_array().unwrap().iter().map(|node| node["replicas"].as_u64().unwrap()).collect();
    assert!(held.iter().all(|held| (5..=7).contains(held)), "30 replicas on five nodes: {held:?}");

    // Two that were there first go: one that runs, and one that has died.
    for gone in [1, 2] {
        if gone == 2 {
            cluster.kill(gone);
        }
        let text = cluster.admin_ok(&["cluster", "remove-node", &gone.to_string(), "--yes"]);
        assert!(text.contains(&format!("node {gone} is not part of the cluster any more")), "{text}");
        is_on_the_page(&text);
        if let Some(runs) = cluster.nodes.remove(&gone) {
            runs.stop();
        }
        assert!(placed(&cluster).iter().all(|nodes| !nodes.contains(&gone.into())));
    }
    assert_eq!(cluster.client().metadata_holders().unwrap(), [3, 4, 5]);
    let now = placed(&cluster).swap_remove(0);
    let order = written(&[now[1], now[0], now[2]]);
    is_on_the_page(&cluster.admin_ok(&["reassign", "t/0", "--to", &order]));
    is_on_the_page(&cluster.admin_ok(&["reassign"]));
    // Of the three that are left one may die.
    cluster.kill(3);
    let sent = load.end();
    for partition in 0..PARTITIONS {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition} of {sent} records");
    }
    let refused = cluster.admin(&["cluster", "remove-node", "4", "--yes"]);
    assert!(!refused.status.success(), "three copies on two nodes: {refused:?}");
}

/// By commands, which the settings of those that were there know nothing of, also after they were restarted.
#[test]
fn nodes_are_added_without_settings_and_restarts() {
    let mut cluster = Cluster::formed(3);
    let create = ["topic", "create", "t", "--replication-factor", "3", "--partitions"];
    cluster.admin_ok(&[&create[..], &[&PARTITIONS.to_string()]].concat());
    let refused = |cluster: &Cluster, arguments: &[&str], text: &str| {
        let output = cluster.admin(&[&["cluster"], arguments].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(text), "{arguments:?}: {error}");
    };
    refused(&cluster, &["add-node", "3@localhost:1"], "part of the cluster already");
    refused(&cluster, &["add-node", "4"], "ID@HOST:PORT");
    refused(&cluster, &["add-node", "4@localhost"], "is no address");
    // One that never comes is taken back.
    cluster.admin_ok(&["cluster", "add-node", "5@localhost:1"]);
    cluster.admin_ok(&["cluster", "remove-node", "5", "--yes"]);
    let load = Load::begin(&cluster);
    for _ in 0..2 {
        let (added, told) = cluster.add_node_by_command();
        is_on_the_page(&told);
        eventually(|| {
            (cluster.client().metadata_holders().unwrap().len() == usize::from(added)).then_some(())
        });
    }
    refused(&cluster, &["add-node", "6@localhost:1"], "5 nodes is the bound");
    cluster.admin_ok(&["rebalance", "--yes"]);
    // Settings that name three of five are enough for one that comes back. One that has lost its disk has to find them all.
    for (id, emptied) in [(1, false), (2, true)] {
        cluster.kill(id);
        if emptied {
            std::fs::remove_dir_all(cluster.data(id)).unwrap();
            cluster.name_all();
        }
        cluster.start(id);
        cluster.await_formed();
        eventually(|| {
            let info = cluster.json(&["cluster", "info"]);
            (info["under_replicated"] == 0 && info["leaderless"] == 0).then_some(())
        });
    }
    // Without the two that are down three of five decide, among them both that came.
    cluster.kill(1);
    cluster.kill(3);
    eventually(|| {
        // Whoever was asked may have been killed with the answer on its way.
        cluster.admin(&["topic", "create", "u", "--replication-factor", "3"]);
        cluster.admin(&["topic", "get", "u"]).status.success().then_some(())
    });
    cluster.start(1);
    cluster.start(3);
    let sent = load.end();
    for partition in 0..PARTITIONS {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition} of {sent} records");
    }
}

/// Whether the three replicas of every partition of "t" are in different racks.
fn all_apart(cluster: &Cluster) -> bool {
    let racks = |nodes: Vec<u32>| nodes.iter().map(|node| cluster.racks[&(*node as u16)]).collect();
    placed(cluster).into_iter().map(racks).all(|racks: BTreeSet<&str>| racks.len() == 3)
}

#[test]
fn replicas_go_to_different_racks() {
    let mut cluster = Cluster::in_racks(&["east", "east", "west", "west", "north"]);
    cluster.admin_ok(&["topic", "create", "t", "--replication-factor", "3", "--partitions", "6"]);
    cluster.admin_ok(&["topic", "create", "u", "--replication-factor", "2"]);
    assert!(all_apart(&cluster), "{:?}", placed(&cluster));
    // Nodes may be taken to another rack: what there is moves when somebody asks for it.
    cluster.nodes.remove(&2).unwrap().stop();
    cluster.racks.insert(2, "north");
    cluster.start(2);
    let racks = |cluster: &Cluster| -> Vec<String> {
        let info = cluster.json(&["cluster", "info"]);
        let nodes = info["nodes"].as_array().unwrap().iter();
        nodes.map(|node| node["rack"].as_str().unwrap().to_owned()).collect()
    };
    eventually(|| (racks(&cluster) == ["east", "north", "west", "west", "north"]).then_some(()));
    assert!(!all_apart(&cluster), "{:?}", placed(&cluster));
    cluster.admin_ok(&["rebalance", "--yes"]);
    eventually(|| all_apart(&cluster).then_some(()));
    let to_one =
        |to: &str| String::from_utf8(cluster.admin(&["reassign", "u/0", "--to", to]).stderr).unwrap();
    assert!(to_one("3,4").contains("are all in rack west"));
    assert_eq!(to_one("3,5"), "");
    cluster.admin_ok(&["cluster", "remove-node", "4", "--yes"]);
    let without = || placed(&cluster).iter().flatten().all(|node| *node != 4);
    eventually(|| (without() && all_apart(&cluster)).then_some(()));
}

/// Waits until each partition of "t" has so many replicas, as far as whoever is asked knows, who may hear of it later.
fn await_copies(cluster: &Cluster, copies: &[usize]) {
    eventually(|| placed(cluster).iter().map(Vec::len).eq(copies.iter().copied()).then_some(()));
}

#[test]
fn a_topic_gets_more_replicas_and_fewer_under_load() {
    let mut cluster = Cluster::in_racks(&["east", "east", "west", "west", "north"]);
    cluster.admin_ok(&["topic", "create", "t", "--replication-factor", "3", "--partitions", "2"]);
    let load = Load::begin(&cluster);
    let reader = Reader::begin(cluster.client(), "t", 0);
    eventually(|| (reader.records() > 1_000).then_some(()));
    let refused = |arguments: &[&str], text: &str| {
        let output = cluster.admin(&[&["topic", "alter"], arguments].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(text), "{arguments:?}: {error}");
    };
    refused(&["t", "--replication-factor", "5"], "write_quorum 2 of 5 copies");
    refused(&["t", "--replication-factor", "6", "--write-quorum", "4"], "6");
    refused(&["t", "--replication-factor", "1"], "write_quorum 2 of 1 copies");
    await_copies(&cluster, &[3, 3]);
    let of_five = ["--write-quorum", "3", "--read-quorum", "3", "--min-insync-replicas", "3"];
    let alter = ["topic", "alter", "t", "--replication-factor"];
    let altered = cluster.json(&[&alter[..], &["5"], &of_five].concat());
    assert_eq!(
        (altered["replication_factor"].as_u64(), altered["write_quorum"].as_u64()),
        (Some(5), Some(3))
    );
    await_copies(&cluster, &[5, 5]);
    // Two of five may die.
    let gone = [1, 2];
    gone.iter().for_each(|node| cluster.kill(*node));
    let seen = reader.records();
    eventually(|| (reader.records() > seen + 1_000).then_some(()));
    gone.iter().for_each(|node| cluster.start(*node));

    // Nobody who is there has to come for there to be fewer.
    cluster.kill(5);
    let of_three = ["--write-quorum", "2", "--read-quorum", "2", "--min-insync-replicas", "2"];
    is_on_the_page(&cluster.admin_ok(&[&alter[..], &["3"], &of_three].concat()));
    await_copies(&cluster, &[3, 3]);
    cluster.start(5);
    cluster.admin_ok(&["rebalance", "--yes"]);
    eventually(|| all_apart(&cluster).then_some(()));
    for partition in 0..2 {
        let holders = &placed(&cluster)[partition as usize];
        for other in (1..=5).filter(|node| !holders.contains(node)) {
            eventually(|| folders(&cluster, other, partition).is_empty().then_some(()));
        }
    }
    // On the way to more it waits for who is not there, and is taken back.
    let holders = placed(&cluster).swap_remove(0);
    let away = (1..=5).find(|node| !holders.contains(&u32::from(*node))).unwrap();
    cluster.kill(away);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| cluster.admin(&[&alter[..], &["5"], &of_five].concat()));
        eventually(|| {
            cluster.admin_ok(&["rebalance", "--cancel"]);
            waits.is_finished().then_some(())
        });
        let output = waits.join().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains("another number of replicas"), "{error}");
    });
    eventually(|| (placed(&cluster)[0].len() == 3).then_some(()));
    cluster.admin_ok(&[&alter[..], &["3"], &of_three].concat());
    cluster.start(away);
    await_copies(&cluster, &[3, 3]);
    // What the topic says and no move was asked for `rebalance` does.
    cluster.client().alter_topic(more_copies("t", 4)).unwrap();
    await_copies(&cluster, &[3, 3]);
    cluster.admin_ok(&["rebalance", "--yes"]);
    await_copies(&cluster, &[4, 4]);
    let sent = load.end();
    for partition in 0..PARTITIONS {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition} of {sent} records");
    }
    let expected: Vec<_> = (0..sent).map(|number| value(0, number)).collect();
    assert!(reader.end(sent) == expected, "the reader has read all in order");
}

#[test]
fn a_topic_with_one_replica_gets_more_moves_and_comes_back_to_one_under_load() {
    let mut cluster = Cluster::formed_with(4, &[("PYRALOG__RUNTIME__SHARDS", "2")]);
    cluster.admin_ok(&["topic", "create", "t", "--replication-factor", "1", "--partitions", "2"]);
    let load = Load::begin(&cluster);
    let reader = Reader::begin(cluster.client(), "t", 0);
    eventually(|| (reader.records() > 1_000).then_some(()));
    let goes_on = |reader: &Reader| {
        let seen = reader.records();
        eventually(|| (reader.records() > seen + 1_000).then_some(()));
    };
    let first = replicas(&cluster, 0)[0];
    let others: Vec<u32> = (1..=4).filter(|node| *node != first).collect();

    // To another node, with its node dying and coming back right behind the beginning of the group.
    cluster.admin_ok(&["reassign", "t/0", "--to", &others[0].to_string(), "--no-wait"]);
    cluster.kill(first as u16);
    cluster.start(first as u16);
    eventually(|| (replicas(&cluster, 0) == [others[0]]).then_some(()));
    eventually(|| folders(&cluster, first, 0).is_empty().then_some(()));
    goes_on(&reader);

    let alter = ["topic", "alter", "t", "--replication-factor"];
    let of_three = ["--write-quorum", "2", "--read-quorum", "2", "--min-insync-replicas", "2"];
    let altered = cluster.json(&[&alter[..], &["3"], &of_three].concat());
    assert_eq!(altered["replication_factor"].as_u64(), Some(3));
    await_copies(&cluster, &[3, 3]);
    // Now the node may go that had the only replica.
    cluster.kill(others[0] as u16);
    goes_on(&reader);
    cluster.start(others[0] as u16);

    let of_one = ["--write-quorum", "1", "--read-quorum", "1", "--min-insync-replicas", "1"];
    cluster.admin_ok(&[&alter[..], &["1"], &of_one].concat());
    await_copies(&cluster, &[1, 1]);
    goes_on(&reader);
    let last = replicas(&cluster, 0)[0];
    cluster.kill(last as u16);
    cluster.start(last as u16);
    goes_on(&reader);
    let sent = load.end();
    for partition in 0..PARTITIONS {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition} of {sent} records");
    }
    let expected: Vec<_> = (0..sent).map(|number| value(0, number)).collect();
    assert!(reader.end(sent) == expected, "the reader has read all in order");

    // A node goes with its only replicas; one that does not answer can't.
    cluster.kill(last as u16);
    let output = cluster.admin(&["cluster", "remove-node", &last.to_string(), "--yes"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("has its only replica on node"), "{error}");
    cluster.start(last as u16);
    eventually(|| {
        let removed = cluster.admin(&["cluster", "remove-node", &last.to_string(), "--yes", "--quiet"]);
        removed.status.success().then_some(())
    });
    assert_eq!(cluster.read("t", 0).len() as u64, sent);
}

#[test]
fn a_node_that_was_alone_becomes_three() {
    let mut cluster = Cluster::alone();
    cluster.admin_ok(&["topic", "create", "t", "--partitions", "2"]);
    let load = Load::begin(&cluster);
    let reader = Reader::begin(cluster.client(), "t", 0);
    eventually(|| (reader.records() > 1_000).then_some(()));
    // Producer and reader know the first address only.
    cluster.join(3);
    let of_three = ["--write-quorum", "2", "--read-quorum", "2", "--min-insync-replicas", "2"];
    cluster.admin_ok(&[&["topic", "alter", "t", "--replication-factor", "3"], &of_three[..]].concat());
    await_copies(&cluster, &[3, 3]);
    // They hear of the others when another one leads.
    for (partition, to) in ["2,3,1", "3,2,1"].into_iter().enumerate() {
        cluster.admin_ok(&["reassign", &format!("t/{partition}"), "--to", to]);
        eventually(|| (cluster.leader("t", partition) != 1).then_some(()));
    }
    let seen = reader.records();
    eventually(|| (reader.records() > seen + 1_000).then_some(()));
    cluster.kill(1);
    let seen = reader.records();
    eventually(|| (reader.records() > seen + 1_000).then_some(()));
    cluster.start(1);
    let sent = load.end();
    for partition in 0..PARTITIONS {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition} of {sent} records");
    }
    assert_eq!(reader.end(sent).len() as u64, sent);
}

fn more_copies(name: &str, copies: u8) -> AlterTopicRequest<'_> {
    let (retention_bytes, retention_ms) = (AlterTopicRequest::AS_IT_IS, AlterTopicRequest::AS_IT_IS);
    AlterTopicRequest { name, partitions: 0, quorums: Quorums::of(copies), retention_bytes, retention_ms }
}

#[test]
fn a_topic_is_altered_while_it_is_used() {
    let cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t", "--partitions", "2"]);
    let load = Load::begin(&cluster);
    let alter = |arguments: &[&str]| cluster.json(&[&["topic", "alter", "t"], arguments].concat());
    let altered = alter(&["--partitions", "5", "--retention-bytes", "1GiB"]);
    assert_eq!(
        (altered["partitions"].as_u64(), altered["retention_bytes"].as_u64()),
        (Some(5), Some(1 << 30))
    );
    let altered = alter(&["--write-quorum", "3", "--min-insync-replicas", "3"]);
    assert_eq!((altered["write_quorum"].as_u64(), altered["partitions"].as_u64()), (Some(3), Some(5)));
    let refused = |arguments: &[&str], text: &str| {
        let output = cluster.admin(&[&["topic", "alter"], arguments].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(text), "{arguments:?}: {error}");
    };
    refused(&["t", "--partitions", "4"], "none can be taken away");
    refused(&["t", "--write-quorum", "1"], "two leaders");
    refused(&["nobody", "--partitions", "4"], "nobody");
    // The partitions that were added take records.
    eventually(|| (cluster.leader("t", 4) != 0).then_some(()));
    let mut added = producer(cluster.client(), "t");
    added.send(4, 0, None, Some(&value(4, 0)), &[]).unwrap();
    added.flush().unwrap();
    assert_eq!(cluster.read("t", 4), [value(4, 0)]);
    let sent = load.end();
    for partition in 0..PARTITIONS {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition} of {sent} records");
    }
}
