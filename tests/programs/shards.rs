//! Nodes that come with another number of shards.

use std::collections::BTreeSet;
use std::fs::File;
use std::time::Duration;

use crate::common::{Node, admin};
use crate::harness::{Cluster, eventually, is_on};
use crate::history::{Load, TOPIC, await_in_sync, check};

const PARTITIONS: u32 = 12;

/// The shards of a node, as it is told to clients, and those that have a partition of the topic.
fn shards(cluster: &Cluster, node: u32) -> (u16, BTreeSet<u16>) {
    let (metadata, _) = cluster.client().metadata().unwrap();
    let topic = cluster.client().topic(TOPIC).unwrap();
    let replicas = topic.partitions.iter().flat_map(|partition| partition.replicas.iter());
    let used = replicas.filter(|replica| replica.node == node).map(|replica| replica.shard);
    (metadata.nodes.iter().find(|known| known.id == node).unwrap().shards, used.collect())
}

fn create(cluster: &Cluster, copies: &str) {
    let partitions = PARTITIONS.to_string();
    cluster.admin_ok(&[
        "topic",
        "create",
        TOPIC,
        "--partitions",
        &partitions,
        "--replication-factor",
        copies,
    ]);
}

/// Everything acknowledged is there, once and in order.
fn check_all(cluster: &Cluster, load: Load) {
    let history = load.end();
    for partition in 0..PARTITIONS {
        check(partition as usize, &cluster.records(TOPIC, partition), &history);
    }
}

fn stop(cluster: &mut Cluster, id: u16) {
    let (status, rest) = cluster.nodes.remove(&id).unwrap().stop();
    assert_eq!(status.code(), Some(0), "{rest}");
}

#[test]
fn a_lone_node_comes_with_other_numbers_of_shards() {
    let mut cluster = Cluster::new(1);
    cluster.shards.insert(1, 2);
    let mut cluster = cluster.form();
    create(&cluster, "1");
    // One session all the while.
    let load = Load::begin(&cluster, PARTITIONS);
    for (count, dies) in [(4, true), (1, false), (3, true), (2, false)] {
        load.await_more(50);
        match dies {
            true => cluster.kill(1),
            false => stop(&mut cluster, 1),
        }
        cluster.shards.insert(1, count);
        cluster.start(1);
        assert_eq!(shards(&cluster, 1), (count, (0..count).collect()));
    }
    load.await_more(50);
    check_all(&cluster, load);
}

#[test]
fn a_node_that_dies_while_its_partitions_go_to_other_shards_loses_nothing() {
    let mut cluster = Cluster::formed(1);
    create(&cluster, "1");
    let load = Load::begin(&cluster, PARTITIONS);
    for (count, after_ms) in [(4, 5), (2, 10), (4, 20), (3, 30), (1, 40), (2, 60), (4, 80), (3, 120)] {
        load.await_more(5);
        cluster.kill(1);
        cluster.shards.insert(1, count);
        cluster.start_for(1, Duration::from_millis(after_ms));
        cluster.start(1);
    }
    load.await_more(50);
    assert_eq!(shards(&cluster, 1), (3, (0..3).collect()));
    check_all(&cluster, load);
}

#[test]
fn a_node_of_a_cluster_comes_with_other_numbers_of_shards() {
    let mut cluster = Cluster::formed(3);
    create(&cluster, "3");
    let load = Load::begin(&cluster, PARTITIONS);
    for (id, count, dies) in [(2, 3, false), (3, 2, true), (2, 1, true), (1, 4, false), (1, 2, true)] {
        load.await_more(50);
        match dies {
            true => cluster.kill(id),
            false => stop(&mut cluster, id),
        }
        // The others go on.
        load.await_more(50);
        cluster.shards.insert(id, count);
        cluster.start(id);
        eventually(|| (shards(&cluster, id.into()) == (count, (0..count).collect())).then_some(()));
        await_in_sync(&cluster);
    }
    // Leaders are everywhere again, on every shard of theirs.
    eventually(|| {
        let topic = cluster.client().topic(TOPIC).unwrap();
        let places = topic.partitions.iter().map(|partition| (partition.leader, partition.shard));
        (places.collect::<BTreeSet<_>>().len() == 2 + 1 + 2).then_some(())
    });
    check_all(&cluster, load);
}

#[test]
fn the_operators_page_shows_what_a_node_with_other_shards_says() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let start = |shards: &str| {
        Node::start_with(&folder.path().join("data"), "127.0.0.1:0", |command| {
            command.env("PYRALOG__RUNTIME__SHARDS", shards).stderr(File::create(&log).unwrap())
        })
    };
    let node = start("2");
    node.admin_ok(["topic", "create", TOPIC, "--partitions", "12"]);
    assert_eq!(node.stop().0.code(), Some(0));
    let node = start("4");
    assert_eq!(node.stop().0.code(), Some(0));
    let said = std::fs::read_to_string(&log).unwrap();
    let lines = said.lines().filter(|line| line.contains("shards") || line.contains("reading shard"));
    let said: Vec<&str> = lines.collect();
    assert_eq!(said.len(), 4, "{said:?}");
    is_on("docs/operations/scaling.md", include_str!("../../docs/operations/scaling.md"), &said.join("\n"));
    // And with the release's own tool: the folders of before are gone, the new ones are whole.
    let data = folder.path().join("data");
    let verify = admin().args(["log", "verify"]).arg(&data).output().unwrap();
    assert!(verify.status.success(), "{verify:?}");
    assert!(data.join("shard-3.g1").exists() && !data.join("shard-0").exists());
    print!("{}", said.join("\n"));
}
