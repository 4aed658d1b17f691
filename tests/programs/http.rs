//! The HTTP pages of a real node, on the port of the binary protocol.

use crate::common::Node;
use serde_json::Value;

fn page(node: &Node, path: &str) -> Value {
    let (status, body) = node.http("GET", path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

#[test]
fn every_page_answers() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "a", "--partitions", "2"]);
    node.admin_ok(["topic", "create", "b"]);
    let input: String = (0..100).map(|i| format!("line {i}\n")).collect();
    assert!(node.admin_with_input(&["produce", "a", "--partition", "1"], input.as_bytes()).status.success());

    assert_eq!(page(&node, "/health")["status"], "ready");

    let status = page(&node, "/status");
    let own = &status["nodes"][0];
    assert_eq!((&own["node"], &own["address"]), (&1.into(), &node.address.to_string().into()), "{status}");
    assert_eq!(status["catalog"]["topics"], 2);
    assert_eq!(status["catalog"]["partitions"], 3);
    assert_eq!(status["durability"]["fsync_policy"], "every_write");
    assert!(status["memory_bound_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    let records: u64 = status["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| {
            assert_eq!(shard["ready"], true, "{shard}");
            shard["counters"]["records"].as_u64().unwrap()
        })
        .sum();
    assert!(records >= 100, "{status}");

    let one = page(&node, "/topics/a/partitions/1");
    assert_eq!((&one["high_watermark"], &one["health"]), (&100.into(), &"online".into()), "{one}");
    assert_eq!((&one["leader"], &one["isr"]), (&1.into(), &serde_json::json!([1])), "{one}");
    let replica = serde_json::json!([{
        "node": 1, "shard": one["shard"], "role": "voter", "state": "leader", "in_sync": true, "log_end": 100, "lag_records": 0,
        "lag_bytes": 0, "lag_ms": 0,
    }]);
    assert_eq!(one["replicas"], replica, "{one}");
    let list = page(&node, "/partitions/0/status");
    let topics: Vec<&str> =
        list["partitions"].as_array().unwrap().iter().map(|p| p["topic"].as_str().unwrap()).collect();
    assert_eq!(topics, ["a", "b"]);
    assert_eq!(page(&node, "/partitions/1/status")["partitions"][0]["log_end"], 100);
    let replication = page(&node, "/replication/status");
    assert_eq!(replication["summary"]["partitions_led"], 3, "{replication}");
    assert_eq!((&replication["peers"], &replication["next"]), (&serde_json::json!([]), &Value::Null));
    let first = &replication["partitions"][0];
    assert_eq!((&first["topic"], &first["in_sync"]), (&"a".into(), &serde_json::json!([1])), "{first}");

    let (code, metrics) = node.http("GET", "/metrics");
    assert_eq!(code, 200);
    let total = |name: &str| -> f64 {
        let samples = metrics.lines().filter(|line| line.starts_with(name));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert!(total("pyralog_records_total{") >= 100.0, "{metrics}");
    assert!(total("pyralog_writes_total{") >= 1.0, "{metrics}");
    assert!(total("pyralog_write_latency_seconds_count{") >= 1.0, "{metrics}");
    for stage in ["wait", "flush", "quorum", "reply"] {
        let name = format!("pyralog_write_{stage}_seconds_count{{");
        assert!(total(&name) >= 1.0, "{name}\n{metrics}");
    }
    assert!(total("pyralog_journal_flush_latency_seconds_count{") >= 1.0, "{metrics}");
    assert!(metrics.ends_with("# EOF\n"));
}

#[test]
fn what_is_not_there_and_not_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/topics/none/partitions/0", 404),
        ("GET", "/partitions/7/status", 404),
        ("GET", "/partitions/x/status", 400),
        ("POST", "/health", 405),
        ("DELETE", "/metrics", 405),
    ] {
        let (found, body) = node.http(method, path);
        assert_eq!(found, status, "{method} {path}: {body}");
        let body: Value = serde_json::from_str(&body).expect("errors are JSON");
        assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    }
    assert_eq!(node.http("GET", "/health").0, 200);
}
