//! What operators see of three real nodes of which one stops, dies and comes back: pages, metrics, the admin tool.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::common::admin;
use crate::harness::{Cluster, eventually, producer, value};

fn page(cluster: &Cluster, id: u16, path: &str) -> Value {
    let (status, body) = cluster.nodes[&id].http("GET", path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

/// A program that reads along; it ends with the test.
struct Reading(Child);

impl Drop for Reading {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The sum of a metric's samples of one node.
fn metric(cluster: &Cluster, id: u16, name: &str) -> f64 {
    let (status, page) = cluster.nodes[&id].http("GET", "/metrics");
    assert_eq!(status, 200);
    let samples =
        page.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with('{'));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// A partition of topic `t` as a node's page has it.
fn partition_page(cluster: &Cluster, id: u16, partition: u32) -> Value {
    let list = page(cluster, id, "/replication/status?topic=t");
    let found = list["partitions"].as_array().unwrap().iter().find(|it| it["partition"] == partition);
    found.unwrap_or_else(|| panic!("{list}")).clone()
}

fn follower(partition: &Value, node: u16) -> Option<Value> {
    partition["followers"].as_array()?.iter().find(|follower| follower["node"] == node).cloned()
}

fn send(cluster: &Cluster, from: u64, count: u64) {
    let mut producer = producer(cluster.client(), "t");
    for number in from..from + count {
        producer.send(0, 0, None, Some(&value(0, number)), &[]).unwrap();
    }
    producer.flush().unwrap();
}

/// All replicas of partition 0 are in sync and have all `records`.
fn await_whole(cluster: &Cluster, records: u64) -> Value {
    eventually(|| {
        let leader = cluster.leader("t", 0);
        let found = partition_page(cluster, leader, 0);
        let followers = found["followers"].as_array()?;
        let whole =
            |it: &Value| it["log_end"] == records && it["lag_ms"] == 0 && it["state"] == "replicating";
        let all =
            found["in_sync"].as_array()?.len() == 3 && followers.len() == 2 && followers.iter().all(whole);
        all.then_some(found)
    })
}

#[test]
fn a_node_that_stops_is_seen_to_lag_and_to_come_back() {
    let cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t"]);
    send(&cluster, 0, 100);
    let whole = await_whole(&cluster, 100);
    let leader = cluster.leader("t", 0);
    assert_eq!((&whole["role"], &whole["leader"]), (&"leader".into(), &leader.into()), "{whole}");
    let gone = (1..=3).find(|id| *id != leader).unwrap();
    let other = (1..=3).find(|id| ![leader, gone].contains(id)).unwrap();
    let followed = partition_page(&cluster, gone, 0);
    assert_eq!((&followed["role"], &followed["leader"]), (&"follower".into(), &leader.into()), "{followed}");
    assert_eq!(followed["in_sync"], Value::Null, "only the leader knows: {followed}");
    assert_eq!(metric(&cluster, leader, "pyralog_under_replicated_partitions"), 0.0);

    cluster.nodes[&gone].signal(libc::SIGSTOP);
    send(&cluster, 100, 50);
    let lags = eventually(|| {
        let found = partition_page(&cluster, leader, 0);
        let lags = follower(&found, gone)?;
        (lags["state"] == "unreachable" && lags["lag_ms"].as_u64()? > 0).then_some(lags)
    });
    assert_eq!(
        (&lags["in_sync"], &lags["log_end"], &lags["lag_records"]),
        (&false.into(), &100.into(), &50.into())
    );
    assert!(lags["lag_bytes"].as_u64().is_some_and(|bytes| bytes > 50 * 30), "{lags}");
    let status = page(&cluster, leader, "/replication/status");
    assert_eq!(status["summary"]["under_replicated"], 1, "{status}");
    assert_eq!(status["summary"]["largest_lag"]["records"], 50, "{status}");
    let peer = status["peers"].as_array().unwrap().iter().find(|peer| peer["node"] == gone).unwrap();
    assert_eq!((&peer["state"], &peer["links_up"]), (&"down".into(), &0.into()), "{peer}");
    assert_eq!(page(&cluster, leader, "/status")["replication"]["under_replicated"], 1);
    assert_eq!(metric(&cluster, leader, "pyralog_under_replicated_partitions"), 1.0);
    assert_eq!(metric(&cluster, leader, "pyralog_replication_lag_records"), 50.0);
    assert!(metric(&cluster, leader, "pyralog_replication_lag_bytes") > 0.0);
    assert!(metric(&cluster, leader, "pyralog_replication_lag_seconds") > 0.0);
    assert!(metric(&cluster, leader, "pyralog_link_downs_total") >= 1.0);
    // Whoever is asked: the tool goes to the leader.
    let address = cluster.address(other);
    let get = |arguments: &[&str]| -> Value {
        let output = admin().args(["--cluster", &address, "-o", "json"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let topic = get(&["topic", "get", "t", "--detailed"]);
    let told = &topic["partition_states"][0];
    assert_eq!((&told["told_by"], &told["leader"]), (&"leader".into(), &leader.into()), "{told}");
    let mut in_sync: Vec<u16> = serde_json::from_value(told["isr"].clone()).unwrap();
    in_sync.sort_unstable();
    let mut expected = [leader, other];
    expected.sort_unstable();
    assert_eq!(in_sync, expected, "{told}");
    let lags = follower(told, gone).unwrap();
    assert_eq!((&lags["state"], &lags["lag_records"]), (&"unreachable".into(), &50.into()), "{told}");
    let info = get(&["cluster", "info"]);
    assert_eq!((&info["under_replicated"], &info["leaderless"]), (&1.into(), &0.into()), "{info}");
    assert_eq!(info["cluster"], "pyralog", "{info}");
    for node in info["nodes"].as_array().unwrap() {
        assert_eq!(node["up"], node["node"] != gone, "{info}");
    }

    cluster.nodes[&gone].signal(libc::SIGCONT);
    await_whole(&cluster, 150);
    let leader = cluster.leader("t", 0);
    assert_eq!(metric(&cluster, leader, "pyralog_under_replicated_partitions"), 0.0);
    assert_eq!(metric(&cluster, leader, "pyralog_replication_lag_records"), 0.0);
    let info = cluster.json(&["cluster", "info"]);
    assert_eq!(info["under_replicated"], 0, "{info}");
    assert!(info["nodes"].as_array().unwrap().iter().all(|node| node["up"] == true), "{info}");
}

#[test]
fn an_election_is_counted_and_the_dead_node_shown() {
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t"]);
    cluster.admin_ok(&["topic", "create", "alone", "--replication-factor", "1", "--partitions", "3"]);
    send(&cluster, 0, 10);
    await_whole(&cluster, 10);
    let dead = cluster.leader("t", 0);
    let places = cluster.client().topic("alone").unwrap().partitions;
    let lost = places.iter().position(|place| place.leader == u32::from(dead)).unwrap() as u32;
    let mut reader = Reading(
        admin()
            .args(["--cluster", &cluster.addresses().join(","), "consume", "alone", "--follow"])
            .args(["--from", "beginning", "--partition", &lost.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut records = BufReader::new(reader.0.stdout.take().unwrap());
    let mut complaints = BufReader::new(reader.0.stderr.take().unwrap());
    let mut sender = producer(cluster.client(), "alone");
    sender.send(lost, 0, None, Some(b"record"), &[]).unwrap();
    sender.flush().unwrap();
    let mut line = String::new();
    records.read_line(&mut line).unwrap();
    assert_eq!(line, "record\n");
    let others: Vec<u16> = (1..=3).filter(|id| *id != dead).collect();
    let total =
        |cluster: &Cluster, name: &str| -> f64 { others.iter().map(|id| metric(cluster, *id, name)).sum() };
    let (elections, won) =
        (total(&cluster, "pyralog_elections_total"), total(&cluster, "pyralog_elections_won_total"));
    cluster.kill(dead);
    let leader = cluster.leader_but("t", 0, dead);
    assert!(total(&cluster, "pyralog_elections_total") > elections);
    assert!(total(&cluster, "pyralog_elections_won_total") > won);
    let found = eventually(|| {
        let found = partition_page(&cluster, leader, 0);
        (found["in_sync"].as_array()?.len() == 2).then_some(found)
    });
    // It was never heard by this leader.
    let lags = follower(&found, dead).unwrap();
    assert_eq!((&lags["state"], &lags["log_end"]), (&"unreachable".into(), &Value::Null), "{found}");
    assert!(found["epoch"].as_u64().unwrap() > 1, "{found}");
    // What only the dead node has is led by nobody, as soon as that is certain.
    let alone = eventually(|| {
        let topic = cluster.json(&["topic", "get", "alone", "--detailed"]);
        let states = topic["partition_states"].as_array()?.clone();
        let lost = states.iter().find(|state| state["replicas"] == json!([dead]))?.clone();
        (lost["leader"] == 0).then_some(lost)
    });
    assert_eq!((&alone["told_by"], &alone["health"]), (&"nobody".into(), &"no_leader".into()), "{alone}");
    let info = cluster.json(&["cluster", "info"]);
    assert_eq!((&info["leaderless"], &info["under_replicated"]), (&1.into(), &1.into()), "{info}");
    // Who follows that is told why nothing comes. If not, it ends in a while, and so does what it says.
    let mut said = String::new();
    let waits = "has no leader that can be reached; waiting";
    while !said.contains(waits) {
        assert!(complaints.read_line(&mut said).unwrap() > 0, "{said}");
    }
    cluster.start(dead);
    await_whole(&cluster, 10);
}

#[test]
fn pages_of_partitions_follow_on_one_another() {
    let cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "a", "--partitions", "5"]);
    cluster.admin_ok(&["topic", "create", "b", "--partitions", "4"]);
    for id in 1..=3 {
        eventually(|| (page(&cluster, id, "/status")["catalog"]["partitions"] == 9).then_some(()));
    }
    let of = |list: &Value| -> Vec<(String, u64)> {
        let partitions = list["partitions"].as_array().unwrap().iter();
        partitions
            .map(|it| (it["topic"].as_str().unwrap().to_owned(), it["partition"].as_u64().unwrap()))
            .collect()
    };
    let (mut found, mut path) = (Vec::new(), "/replication/status?limit=2".to_owned());
    loop {
        let list = page(&cluster, 1, &path);
        found.extend(of(&list));
        assert!(of(&list).len() <= 2 && found.len() <= 9, "{list}");
        match list["next"].as_str() {
            Some(next) => path = format!("/replication/status?limit=2&start_after={next}"),
            None => break,
        }
    }
    let expected: Vec<_> =
        (0..5).map(|n| ("a".to_owned(), n)).chain((0..4).map(|n| ("b".to_owned(), n))).collect();
    assert_eq!(found, expected);
    assert_eq!(of(&page(&cluster, 2, "/replication/status?topic=b")).len(), 4);
    for (path, status) in [("?topic=c", 404), ("?limit=0", 400), ("?start_after=b", 400), ("?x=1", 400)] {
        let (code, body) = cluster.nodes[&1].http("GET", &format!("/replication/status{path}"));
        assert_eq!(code, status, "{path}: {body}");
    }
}
