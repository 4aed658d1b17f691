//! Three real nodes that find each other, lose some, and go on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pyralog_net::client::{Client, ClientConfig, IdempotentProducer};
use serde_json::Value;

use crate::common::{PATIENCE, admin};
use crate::harness::{Cluster, Reader, producer, value};

#[test]
fn three_nodes_form_a_cluster_in_any_order_and_any_of_them_serves_all() {
    let mut cluster = Cluster::new(3);
    for id in [3, 1, 2] {
        cluster.start(id);
    }
    cluster.await_formed();
    cluster.admin_ok(&["topic", "create", "t", "--partitions", "6"]);
    let info = cluster.json(&["cluster", "info"]);
    assert_eq!(info["nodes"].as_array().unwrap().len(), 3, "{info}");
    let leaders: Vec<u16> = (0..6).map(|partition| cluster.leader("t", partition)).collect();
    assert!(leaders.iter().any(|leader| *leader != leaders[0]), "spread over the nodes: {leaders:?}");
    let topic = cluster.json(&["topic", "get", "t", "--detailed"]);
    assert_eq!((&topic["replication_factor"], &topic["write_quorum"]), (&3.into(), &2.into()), "{topic}");
    for partition in topic["partition_states"].as_array().unwrap() {
        assert_eq!(partition["replicas"].as_array().unwrap().len(), 3, "{partition}");
        assert_eq!(partition["health"], "online", "{partition}");
    }
    let mut producer = producer(cluster.client(), "t");
    for number in 0..600 {
        let partition = (number % 6) as u32;
        producer.send(partition, 0, None, Some(&value(partition, number / 6)), &[]).unwrap();
    }
    producer.flush().unwrap();
    for address in cluster.addresses() {
        let output = admin().args(["--cluster", &address, "consume", "t", "--exit-at-end"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 600);
    }
    for partition in 0..6 {
        let expected: Vec<_> = (0..100).map(|number| value(partition, number)).collect();
        assert_eq!(cluster.read("t", partition), expected);
    }
}

#[test]
fn killed_leaders_cost_no_acknowledged_record() {
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t", "--partitions", "2"]);
    let mut producer = producer(cluster.client(), "t");
    // Reads along, whoever leads.
    let reader = Reader::begin(cluster.client(), "t", 0);
    let mut sent = 0;
    let mut send = |producer: &mut IdempotentProducer, count: u64| {
        for _ in 0..count {
            for partition in 0..2 {
                producer.send(partition, 0, None, Some(&value(partition, sent)), &[]).unwrap();
            }
            sent += 1;
        }
        sent
    };
    for round in 0..3 {
        send(&mut producer, 2_000);
        // Some of it is under way.
        let leader = cluster.leader("t", round % 2);
        send(&mut producer, 500);
        cluster.kill(leader);
        send(&mut producer, 2_000);
        producer.flush().unwrap();
        cluster.start(leader);
    }
    let sent = send(&mut producer, 100);
    producer.flush().unwrap();
    assert_eq!(producer.stats().acked_records, sent * 2);
    let expected: Vec<_> = (0..sent).map(|number| value(0, number)).collect();
    assert!(reader.end(sent) == expected, "who read along has read everything once and in order");
    for partition in 0..2 {
        let read = cluster.read("t", partition);
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(read == expected, "{} read, {sent} acknowledged", read.len());
    }
    // The replicas that were away hold the same: each of them can be the last but one.
    for id in 1..=3 {
        cluster.kill(id);
        let read = cluster.read("t", 0);
        assert_eq!(read.len() as u64, sent, "without node {id}");
        cluster.start(id);
        cluster.await_formed();
    }
}

#[test]
fn a_node_that_stops_hands_over_what_it_leads() {
    const ELECTIONS_AFTER: Duration = Duration::from_millis(1_500);
    let mut cluster = Cluster::formed_with(
        3,
        &[
            ("PYRALOG__REPLICATION__ELECTION_TIMEOUT__MIN_MS", "1500"),
            ("PYRALOG__REPLICATION__ELECTION_TIMEOUT__MAX_MS", "2500"),
        ],
    );
    cluster.admin_ok(&["topic", "create", "t", "--partitions", "6"]);
    for partition in 0..6 {
        cluster.leader("t", partition);
    }
    // Without a pause: what comes as a follower must not keep a node from stopping.
    let stop_sending = Arc::new(AtomicU64::new(0));
    let sender = std::thread::spawn({
        let (mut producer, stop_sending) = (producer(cluster.client(), "t"), Arc::clone(&stop_sending));
        move || {
            let mut sent = 0;
            while stop_sending.load(Ordering::Relaxed) == 0 {
                for partition in 0..6 {
                    producer.send(partition, 0, None, Some(&value(partition, sent)), &[]).unwrap();
                }
                sent += 1;
            }
            producer.flush().unwrap();
            sent
        }
    });
    for id in [2, 3, 1] {
        let begun = Instant::now();
        let (status, said) = cluster.nodes.remove(&id).unwrap().stop();
        assert!(status.success(), "{said}");
        assert!(begun.elapsed() < PATIENCE / 2, "node {id} took {:?} to stop", begun.elapsed());
        // Before any election could begin, that is.
        let stopped = Instant::now();
        let asked = if id == 1 { 2 } else { 1 };
        let mut other = Client::new(&[cluster.address(asked)], ClientConfig::default());
        loop {
            let topic = other.topic_afresh("t").unwrap();
            let leaders: Vec<u32> = topic.partitions.iter().map(|partition| partition.leader).collect();
            if !leaders.contains(&id.into()) && !leaders.contains(&0) {
                break;
            }
            assert!(stopped.elapsed() < ELECTIONS_AFTER, "node {id} stopped and leads: {leaders:?}");
        }
        cluster.start(id);
        cluster.await_formed();
    }
    stop_sending.store(1, Ordering::Relaxed);
    let sent = sender.join().unwrap();
    for partition in 0..6 {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected);
    }
}

#[test]
fn a_minority_takes_no_writes_and_says_so_until_the_others_are_back() {
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t"]);
    let mut producer = producer(cluster.client(), "t");
    producer.send(0, 0, None, Some(&value(0, 0)), &[]).unwrap();
    producer.flush().unwrap();
    cluster.kill(1);
    cluster.kill(2);
    let client = ClientConfig { retry_for: Duration::from_millis(500), ..ClientConfig::default() };
    let mut lonely = Client::new(&[cluster.address(3)], client);
    let error = lonely.create_topic("u", 1, -1, -1).unwrap_err();
    assert!(error.retriable(), "{error}");
    let output = admin().args(["--cluster", &cluster.address(3), "topic", "create", "v"]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("nobody leads the metadata"), "{told}");
    cluster.start(1);
    producer.send(0, 0, None, Some(&value(0, 1)), &[]).unwrap();
    producer.flush().unwrap();
    assert_eq!(cluster.read("t", 0), [value(0, 0), value(0, 1)]);
}

#[test]
fn a_local_cluster_is_started_found_again_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("local");
    // Below the range that the system hands out by itself, and different for each run.
    let port = (20_000 + std::process::id() % 10_000).to_string();
    let run = |arguments: &[&str]| {
        admin().args(arguments).arg("--dir").arg(&dir).args(["-o", "json"]).output().unwrap()
    };
    let started = LocalCluster { dir: &dir };
    let output = run(&["cluster", "start-local", "--port", &port]);
    assert!(output.status.success(), "{output:?}");
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 3, "{rows}");
    let address = rows[1]["address"].as_str().unwrap();
    let created = admin().args(["--cluster", address, "topic", "create", "t"]).output().unwrap();
    assert!(created.status.success(), "{created:?}");

    let again = run(&["cluster", "start-local", "--port", &port]);
    let rows: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert!(rows.as_array().unwrap().iter().all(|row| row["state"] == "was running"), "{rows}");
    let other = run(&["cluster", "start-local", "--port", &port, "--nodes", "5"]);
    assert_eq!(other.status.code(), Some(2), "{other:?}");

    let stopped = run(&["cluster", "stop-local"]);
    assert!(stopped.status.success(), "{stopped:?}");
    let rows: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert!(rows.as_array().unwrap().iter().all(|row| row["state"] == "stopped"), "{rows}");
    drop(started);
}

/// Stops a local cluster however the test ends.
struct LocalCluster<'a> {
    dir: &'a Path,
}

impl Drop for LocalCluster<'_> {
    fn drop(&mut self) {
        let _ = admin().args(["cluster", "stop-local", "--dir"]).arg(self.dir).output();
    }
}

/// Whoever is asked first may be the one that decides.
#[test]
fn who_asks_the_controller_first_hears_of_all_nodes() {
    let cluster = Cluster::formed(3);
    for id in 1..=3 {
        let mut client = Cluster::client_at(&[cluster.address(id)]);
        assert_eq!(client.metadata_for_sure().unwrap().0.nodes.len(), 3);
        let asked: Vec<u32> = client.ask_nodes().iter().map(|answer| answer.node).collect();
        assert_eq!(asked, [1, 2, 3], "by way of node {id}");
        let mut client = Cluster::client_at(&[cluster.address(id)]);
        client.metadata_holders().unwrap();
        assert_eq!(client.ask_nodes().len(), 3, "by way of node {id}");
    }
}
