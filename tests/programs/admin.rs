//! `pyralog-admin` against a real node.

use std::process::Stdio;

use crate::common::{Node, admin};
use serde_json::Value;

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

#[test]
fn topics_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());

    let info = json(&node.admin_ok(["cluster", "info", "-o", "json"]));
    assert_eq!(
        info["server"].as_str().map(|server| server.contains(env!("CARGO_PKG_VERSION"))),
        Some(true),
        "{info}"
    );
    assert_eq!((&info["controller"], info["nodes"].as_array().map(Vec::len)), (&1.into(), Some(1)), "{info}");
    assert_eq!(info["nodes"][0]["address"], node.address.to_string());
    assert_eq!(json(&node.admin_ok(["topic", "list", "-o", "json"])), serde_json::json!([]));

    node.admin_ok(["topic", "create", "orders", "--partitions", "5", "--retention-bytes", "1GiB"]);
    let list = json(&node.admin_ok(["topic", "list", "-o", "json"]));
    assert_eq!(list[0]["name"], "orders");
    assert_eq!(list[0]["partitions"], 5);
    assert_eq!(list[0]["retention_bytes"], 1 << 30);

    let detailed = json(&node.admin_ok(["topic", "get", "orders", "--detailed", "-o", "json"]));
    assert_eq!(detailed["partition_states"].as_array().map(Vec::len), Some(5), "{detailed}");
    assert!(detailed["partition_states"].as_array().unwrap().iter().all(|state| state["health"] == "online"));

    for state in detailed["partition_states"].as_array().unwrap() {
        let one = serde_json::json!([1]);
        assert_eq!((&state["leader"], &state["replicas"], &state["isr"]), (&1.into(), &one, &one), "{state}");
        assert!(state["epoch"].as_u64().is_some_and(|epoch| epoch > 0), "{state}");
    }
    let info = json(&node.admin_ok(["cluster", "info", "-o", "json"]));
    let row = &info["nodes"][0];
    for count in ["replicas", "replicas_in_sync", "partitions_led", "partitions_preferred"] {
        assert_eq!(row[count], 5, "{count}: {row}");
    }
    let text = String::from_utf8(node.admin_ok(["topic", "get", "orders", "--detailed"])).unwrap();
    assert!(["LEADER", "EPOCH", "REPLICAS", "ISR"].iter().all(|head| text.contains(head)), "{text}");

    let table = String::from_utf8(node.admin_ok(["topic", "list"])).unwrap();
    assert!(
        table.lines().nth(1).is_some_and(|line| line.contains("orders") && line.contains('5')),
        "{table}"
    );
    let yaml = String::from_utf8(node.admin_ok(["topic", "get", "orders", "-o", "yaml"])).unwrap();
    assert!(yaml.contains("name: orders"), "{yaml}");

    let again = node.admin(["topic", "create", "orders"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("orders"), "{again:?}");

    let asked = node.admin(["topic", "delete", "orders"]);
    assert_eq!(asked.status.code(), Some(2), "without a terminal to ask at it wants --yes: {asked:?}");
    node.admin_ok(["topic", "delete", "orders", "--yes"]);
    assert_eq!(json(&node.admin_ok(["topic", "list", "-o", "json"])), serde_json::json!([]));
}

/// One node keeps one copy: what asks for more is refused with the reason, before anything is made.
#[test]
fn copies_and_quorums_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    for (options, reason) in [
        (&["--replication-factor", "3"][..], "3 copies need 3 nodes, 1 registered"),
        (&["--replication-factor", "6"], "1 to 5 copies"),
        (&["--replication-factor", "3", "--write-quorum", "1"], "two leaders could acknowledge"),
        (&["--replication-factor", "3", "--write-quorum", "2", "--read-quorum", "1"], "more than 3"),
        (&["--min-insync-replicas", "2"], "never take a write"),
    ] {
        let arguments: Vec<&str> = ["topic", "create", "t"].iter().chain(options).copied().collect();
        let output = node.admin(arguments);
        assert_eq!(output.status.code(), Some(1), "{options:?}: {output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(reason), "{options:?}: {text}");
    }
    let zero = node.admin(["topic", "create", "t", "--write-quorum", "0"]);
    assert_eq!(zero.status.code(), Some(2), "{zero:?}");
    let all = [
        "--replication-factor",
        "1",
        "--write-quorum",
        "1",
        "--read-quorum",
        "1",
        "--min-insync-replicas",
        "1",
    ];
    let arguments: Vec<&str> = ["topic", "create", "t", "-o", "json"].iter().chain(&all).copied().collect();
    let topic = json(&node.admin_ok(arguments));
    for number in ["replication_factor", "write_quorum", "read_quorum", "min_insync_replicas"] {
        assert_eq!(topic[number], 1, "{topic}");
    }
}

/// The node's place in the catalogue survives a restart; another port of the new process replaces the old one.
#[test]
fn a_node_that_comes_back_at_another_address_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "t"]);
    drop(node);
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "u"]);
    let info = json(&node.admin_ok(["cluster", "info", "-o", "json"]));
    assert_eq!(info["nodes"].as_array().map(Vec::len), Some(1), "{info}");
    assert_eq!(info["nodes"][0]["address"], node.address.to_string());
    let (_, status) = node.http("GET", "/status");
    assert_eq!(json(status.as_bytes())["nodes"][0]["address"], node.address.to_string());
    let detailed = json(&node.admin_ok(["topic", "get", "t", "--detailed", "-o", "json"]));
    assert_eq!(detailed["partition_states"][0]["isr"], serde_json::json!([1]));
}

#[test]
fn an_unknown_topic_comes_with_the_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "orders"]);
    for command in [&["topic", "get", "ordres"][..], &["consume", "ordres"], &["produce", "ordres"]] {
        let output = node.admin(command);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean \"orders\""), "{output:?}");
    }
}

#[test]
fn nobody_there_is_told_with_the_address() {
    // Bound and not listening: nobody else can take the port, and connecting is refused.
    let taken = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    taken.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let address = taken.local_addr().unwrap().as_socket().unwrap().to_string();
    let output =
        admin().args(["--cluster", &address, "cluster", "info"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&address) && text.contains("--cluster"), "{text}");
}

#[test]
fn consume_starts_and_stops_where_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "t"]);
    let produced =
        node.admin_with_input(&["produce", "t", "--key-separator", "="], b"a=1\nb=2\nplain\nc=3\n");
    assert!(produced.status.success(), "{produced:?}");

    let consume = |more: &[&str]| {
        let arguments: Vec<&str> = ["consume", "t"].iter().chain(more).copied().collect();
        String::from_utf8(node.admin_ok(arguments)).unwrap()
    };
    assert_eq!(consume(&[]), "1\n2\nplain\n3\n");
    assert_eq!(consume(&["--key-separator", "="]), "a=1\nb=2\nplain\nc=3\n");
    assert_eq!(consume(&["--from", "offset:2"]), "plain\n3\n");
    assert_eq!(consume(&["--max", "1"]), "1\n");
    assert_eq!(consume(&["--from", "end", "--exit-at-end"]), "");
    assert_eq!(consume(&["--from", "time:0"]), "1\n2\nplain\n3\n");
    assert_eq!(consume(&["--from", "time:2999-01-01T00:00:00Z"]), "");
    let first: Value = json(consume(&["--format", "json", "--max", "1"]).as_bytes());
    assert_eq!((&first["key"], &first["value"], &first["offset"]), (&"a".into(), &"1".into(), &0.into()));

    let beyond = node.admin(["consume", "t", "--from", "offset:99"]);
    assert_eq!(beyond.status.code(), Some(1), "{beyond:?}");
    let no_such = node.admin(["consume", "t", "--partition", "4"]);
    assert!(String::from_utf8_lossy(&no_such.stderr).contains("1 partition"), "{no_such:?}");
}

#[test]
fn a_key_always_goes_to_the_same_partition() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "keyed", "--partitions", "4"]);
    let input: String = (0..210).map(|i| format!("key{}={i}\n", i % 21)).collect();
    assert!(
        node.admin_with_input(&["produce", "keyed", "--key-separator", "="], input.as_bytes())
            .status
            .success()
    );
    let text = String::from_utf8(node.admin_ok(["consume", "keyed", "--format", "json"])).unwrap();
    let mut home = std::collections::HashMap::new();
    let mut records = 0;
    for line in text.lines() {
        let record = json(line.as_bytes());
        let partition = record["partition"].as_u64().unwrap();
        assert_eq!(*home.entry(record["key"].as_str().unwrap().to_owned()).or_insert(partition), partition);
        records += 1;
    }
    assert_eq!((records, home.len()), (210, 21));
    assert!(home.values().collect::<std::collections::HashSet<_>>().len() > 1, "{home:?}");
}

#[test]
fn a_line_beyond_the_bound_is_named_and_nothing_is_claimed() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "long"]);
    for length in [(1 << 20) + 1, 6 << 20] {
        let mut input = b"short\n".to_vec();
        input.resize(input.len() + length, b'x');
        let output = node.admin_with_input(&["produce", "long"], &input);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("line 2"), "{output:?}");
    }
}

#[test]
fn followers_see_records_as_they_come() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "live"]);
    assert!(node.admin_with_input(&["produce", "live"], b"before\n").status.success());
    let mut follower = admin()
        .args(["--cluster", &node.address.to_string(), "consume", "live", "--follow", "--max", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "before");
    assert!(node.admin_with_input(&["produce", "live"], b"after\n").status.success());
    assert_eq!(lines.next().unwrap().unwrap(), "after");
    assert!(follower.wait().unwrap().success());
}
