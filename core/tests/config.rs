//! The configuration as a user meets it: layers, errors, origins, and the page about it.

#![allow(clippy::unwrap_used)]

use pyralog_core::Quorums;
use pyralog_core::config::keys::{KEYS, Key};
use pyralog_core::config::presets::PRESETS;
use pyralog_core::config::{
    ClusterNode, Config, ConfigErrors, Effective, Flag, FsyncPolicy, Hugepages, Layers, Origin, docs, load,
};

fn yaml(text: &str) -> Layers {
    Layers { file: Some(("pyralog.yaml".to_owned(), text.to_owned())), ..Layers::default() }
}

fn env(vars: &[(&str, &str)]) -> Layers {
    let env = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Layers { env, ..Layers::default() }
}

fn ok(layers: &Layers) -> Effective {
    load(layers).unwrap_or_else(|e| unreachable!("{e}"))
}

fn refused(layers: &Layers) -> ConfigErrors {
    load(layers).unwrap_err()
}

/// Loads what has to fail with exactly one error and checks that its text holds all of `parts`.
fn refused_with(layers: &Layers, parts: &[&str]) {
    let errors = refused(layers);
    assert_eq!(errors.0.len(), 1, "{errors}");
    let text = errors.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn the_page_follows_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let wanted = docs::markdown();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let differing = wanted.lines().zip(found.lines()).enumerate().find(|(_, (w, f))| w != f);
    if let Some((line, (wanted, found))) = differing {
        unreachable!(
            "docs/configuration.md line {}: has {found:?}, wants {wanted:?}; run with BLESS=1",
            line + 1
        );
    }
    assert!(found == wanted, "docs/configuration.md has missing or further lines; run with BLESS=1");
    for key in KEYS {
        assert!(
            found.contains(&format!("### `{}`", key.path)) && found.contains(&key.env_name()),
            "{}",
            key.path
        );
    }
}

#[test]
fn defaults_are_as_written_and_read_back() {
    let effective = ok(&Layers::default());
    assert_eq!(effective.config, Config::default());
    assert_eq!(effective.config.network.listen_address.to_string(), "127.0.0.1:9092");
    assert_eq!(effective.config.journal_dir().to_str(), Some("./data/journal"));
    assert_eq!(effective.config.advertised_address(1234), "127.0.0.1:1234");
    for (key, value, origin) in effective.entries() {
        assert_eq!(origin, &Origin::Default);
        // What is shown can be written; "(…)" stands for what is not set.
        if !value.starts_with('(') && !value.starts_with('[') {
            let again = ok(&env(&[(&key.env_name(), &value)]));
            assert_eq!(again.config, Config::default(), "{}", key.path);
            assert_eq!(again.origin(key.path), &Origin::Env(key.env_name()));
        }
    }
}

/// A valid value other than the default for every key that takes one.
const OTHER_VALUES: &[(&str, &str)] = &[
    ("node.node_id", "7"),
    ("node.data_dir", "/var/lib/pyralog"),
    ("node.journal_dir", "/fast"),
    ("node.cluster_name", "east-1"),
    ("node.cluster_nodes", "127.0.0.1:9092"),
    ("node.rack", "row-2.rack_7"),
    ("node.feature_level_max", "1"),
    ("network.listen_address", "10.0.0.1:9093"),
    ("network.advertised_address", "log1.example.org:9092"),
    ("network.max_connections", "100"),
    ("network.request_timeout_ms", "5000"),
    ("storage.fsync_policy", "interval(25ms)"),
    ("storage.segment_config.max_size", "512MiB"),
    ("storage.segment_config.sync_on_write", "true"),
    ("storage.cache_config.max_size", "1GiB"),
    ("storage.cache_config.max_buffer_time_ms", "500"),
    ("storage.cache_config.enabled", "false"),
    ("storage.retention.bytes", "10GiB"),
    ("storage.retention.ms", "604800000"),
    ("storage.scrub.interval_ms", "86400000"),
    ("storage.scrub.rate", "64MiB"),
    ("storage.journal.file_size", "128MiB"),
    ("storage.journal.writes_in_flight", "4"),
    ("replication.factor", "1"),
    ("replication.write_quorum", "1"),
    ("replication.read_quorum", "1"),
    ("replication.min_insync_replicas", "1"),
    ("replication.election_timeout.min_ms", "150"),
    ("replication.election_timeout.max_ms", "1s"),
    ("replication.heartbeat_ms", "20"),
    ("replication.ack_timeout_ms", "2000"),
    ("replication.recovery_rate", "unlimited"),
    ("runtime.shards", "2"),
    ("runtime.cpus", "0-3,6"),
    ("runtime.spin_us", "50"),
    ("runtime.hugepages", "off"),
    ("runtime.memory", "8GiB"),
];

#[test]
fn every_key_takes_a_value_from_every_layer() {
    // Refused without other nodes, and with a value of its own kind.
    let refused_keys = ["network.internal_address", "storage.segment_config.use_mmap"];
    assert_eq!(OTHER_VALUES.len() + refused_keys.len(), KEYS.len());
    for (path, value) in OTHER_VALUES {
        let key = Key::find(path).unwrap();
        let from_env = ok(&env(&[(&key.env_name(), value)]));
        assert_ne!(from_env.config, Config::default(), "{path}");

        let (section, leaf) = path.rsplit_once('.').unwrap();
        let mut text = String::new();
        for (depth, name) in section.split('.').enumerate() {
            text += &format!("{}{name}:\n", "  ".repeat(depth));
        }
        text += &format!("{}{leaf}: {value}\n", "  ".repeat(section.split('.').count()));
        let from_file = ok(&yaml(&text));
        assert_eq!(from_file.config, from_env.config, "{path}");
        assert_eq!(from_file.origin(path), &Origin::File("pyralog.yaml".to_owned()));

        let flag = Flag { key: key.path, value: (*value).to_owned(), option: "--option" };
        let from_flag = ok(&Layers { flags: vec![flag], ..Layers::default() });
        assert_eq!(from_flag.config, from_env.config, "{path}");
        assert_eq!(from_flag.origin(path), &Origin::Flag("--option".to_owned()));
    }
}

#[test]
fn later_layers_win_and_the_origin_says_so() {
    let mut layers = yaml(
        "node:\n  node_id: 3\n  data_dir: /file\nstorage:\n  cache_config:\n    max_size: 512MiB\n  \
         fsync_policy: interval(10ms)\n",
    );
    layers.preset = Some("throughput".to_owned());
    layers.env = vec![
        ("PYRALOG_DATA_DIR".to_owned(), "/env".to_owned()),
        ("PYRALOG__NETWORK__MAX_CONNECTIONS".to_owned(), "99".to_owned()),
        ("HOME".to_owned(), "/home/x".to_owned()),
    ];
    layers.flags =
        vec![Flag { key: "network.max_connections", value: "100".to_owned(), option: "--max-connections" }];
    let effective = ok(&layers);
    let c = &effective.config;
    assert_eq!((c.node.node_id, c.node.data_dir.to_str()), (3, Some("/env")));
    assert_eq!(c.storage.cache_config.max_size, 512 << 20);
    assert_eq!(c.storage.fsync_policy, FsyncPolicy::Interval(10_000));
    assert_eq!(c.storage.journal.file_size, 256 << 20);
    assert_eq!(c.network.max_connections, 100);
    let text = effective.to_text();
    for (key, value, origin) in [
        ("node.node_id", "3", "file pyralog.yaml"),
        ("node.data_dir", "/env", "environment PYRALOG_DATA_DIR"),
        ("storage.journal.file_size", "256MiB", "preset throughput"),
        ("storage.cache_config.max_size", "512MiB", "file pyralog.yaml"),
        ("storage.fsync_policy", "interval(10ms)", "file pyralog.yaml"),
        ("network.max_connections", "100", "option --max-connections"),
        ("runtime.spin_us", "0", "default"),
    ] {
        let line = text.lines().find(|l| l.split_whitespace().next() == Some(key)).unwrap();
        assert_eq!(line.split_whitespace().nth(1), Some(value), "{line}");
        assert!(line.ends_with(origin), "{line}");
    }
    let json = effective.to_json();
    let entries = json.as_array().unwrap();
    assert_eq!(entries.len(), KEYS.len());
    let cache = entries.iter().find(|e| e["key"] == "storage.cache_config.max_size").unwrap();
    assert_eq!(
        (cache["value"].as_u64(), cache["origin"].as_str()),
        (Some(512 << 20), Some("file pyralog.yaml"))
    );
}

#[test]
fn json_and_yaml_say_the_same() {
    let json = r#"{"runtime": {"shards": 2, "cpus": [0, "2-3"], "hugepages": "explicit", "memory": "unlimited"},
                   "node": {"cluster_nodes": ["127.0.0.1:9092"]}, "storage": {"retention": {"ms": "7d"}}}"#;
    let from_json = ok(&Layers { file: Some(("x.JSON".to_owned(), json.to_owned())), ..Layers::default() });
    let from_yaml = ok(&yaml(
        "runtime: {shards: 2, cpus: \"0,2-3\", hugepages: explicit}\nnode:\n  cluster_nodes:\n    - 127.0.0.1:9092\n\
         storage:\n  retention: {ms: 7d}\n",
    ));
    assert_eq!(from_json.config, from_yaml.config);
    let runtime = &from_json.config.runtime;
    assert_eq!((runtime.cpus.as_deref(), runtime.hugepages), (Some(&[0, 2, 3][..]), Hugepages::Explicit));
    assert_eq!(from_json.config.storage.retention.ms, Some(604_800_000));
    for empty in ["", "# nothing\n\n", "{}", "node:\n", "storage:\n  cache_config:\n"] {
        assert_eq!(ok(&yaml(empty)).config, Config::default(), "{empty:?}");
    }
}

#[test]
fn misspelt_keys_are_refused_with_the_nearest() {
    for (text, wrong, right) in [
        ("node: {node_idd: 1}", "node.node_idd", "node.node_id?"),
        (
            "storage: {cache_config: {max_sise: 1}}",
            "storage.cache_config.max_sise",
            "storage.cache_config.max_size?",
        ),
        ("storge: {fsync_policy: never}", "storge.fsync_policy", "storage.fsync_policy?"),
        ("network: {node_id: 1}", "network.node_id", "node.node_id?"),
        ("data_dir: x", "data_dir", "node.data_dir?"),
        ("node: {data_dir: x, data_dirs: {}}", "node.data_dirs", "node.data_dir?"),
    ] {
        refused_with(&yaml(text), &[wrong, &format!("did you mean {right}"), "file pyralog.yaml"]);
    }
    refused_with(
        &env(&[("PYRALOG__NODE__NODEID", "1")]),
        &["PYRALOG__NODE__NODEID", "mean PYRALOG__NODE__NODE_ID?"],
    );
    refused_with(
        &env(&[("PYRALOG_NODEID", "1")]),
        &["environment PYRALOG_NODEID", "did you mean PYRALOG_NODE_ID?"],
    );
    ok(&env(&[("PYRALOG_CLUSTER", "x"), ("PYRALOG_LOG", "debug"), ("PYRALOGX__A", "b")]));
}

#[test]
fn malformed_files_are_refused() {
    refused_with(&yaml("node: [1\n"), &["file pyralog.yaml", "not YAML"]);
    refused_with(&yaml("- 1\n- 2\n"), &["has to hold sections"]);
    refused_with(&yaml("node: 7\n"), &["node (file pyralog.yaml)", "this is a section", "node.data_dir"]);
    refused_with(&yaml("node:\n  node_id:\n"), &["node.node_id", "nothing is not valid", "a number from 1"]);
    let twice = Layers {
        file: Some(("a.json".to_owned(), r#"{"node": {"node_id": 1, "node_id": 2}}"#.to_owned())),
        ..Layers::default()
    };
    refused_with(&twice, &["node.node_id", "twice"]);
    assert!(load(&yaml("node: {node_id: 1}\nnode: {node_id: 2}\n")).is_err(), "twice in YAML");
    let cut = Layers { file: Some(("a.json".to_owned(), r#"{"node": "#.to_owned())), ..Layers::default() };
    refused_with(&cut, &["file a.json", "not JSON"]);
}

#[test]
fn values_out_of_bounds_are_refused_with_the_bound() {
    for (key, value, bound) in [
        ("node.node_id", "0", "from 1 to"),
        ("node.node_id", "x", "\"x\" is not valid"),
        ("node.data_dir", "", "a path"),
        ("network.listen_address", "9092", "an IP address and a port"),
        ("network.listen_address", "example.org:1", "an IP address and a port"),
        ("network.advertised_address", "host:0", "a port from 1"),
        ("network.max_connections", "0", "from 1 to 1000000"),
        ("network.request_timeout_ms", "1", "from 10 to 3600000"),
        ("network.request_timeout_ms", "15000500us", "milliseconds"),
        ("storage.fsync_policy", "interval(1us)", "from 1ms to 10s"),
        ("storage.fsync_policy", "interval(10)", "interval(10ms)"),
        ("storage.fsync_policy", "always", "every_write"),
        ("storage.segment_config.max_size", "1KiB", "from 1MiB to 2GiB"),
        ("storage.cache_config.max_size", "1MiB", "from 16MiB"),
        ("storage.cache_config.max_buffer_time_ms", "0", "from 100"),
        ("storage.cache_config.enabled", "yes", "true or false"),
        ("storage.retention.bytes", "0", "or unlimited"),
        ("storage.retention.ms", "0", "or unlimited"),
        ("storage.journal.file_size", "66MiB", "in multiples of 4MiB"),
        ("storage.journal.writes_in_flight", "17", "from 1 to 16"),
        ("node.cluster_nodes", "0@a:1", "ID@HOST:PORT"),
        ("node.cluster_nodes", "1@a", "ID@HOST:PORT"),
        ("node.cluster_nodes", "x@a:1", "ID@HOST:PORT"),
        ("node.cluster_nodes", "1@2@a:1", "ID@HOST:PORT"),
        ("replication.factor", "6", "from 1 to 5, or auto"),
        ("replication.write_quorum", "0", "from 1 to 5, or auto"),
        ("replication.election_timeout.min_ms", "5", "from 20 to 60000"),
        ("replication.heartbeat_ms", "1", "from 5 to 10000"),
        ("runtime.shards", "0", "from 1 to 256, or auto"),
        ("runtime.cpus", "3-1", "0-3,6"),
        ("runtime.spin_us", "99999", "from 0 to 10000"),
        ("runtime.hugepages", "on", "transparent"),
        ("runtime.memory", "1MiB", "from 64MiB"),
    ] {
        refused_with(
            &env(&[(&Key::find(key).unwrap().env_name(), value)]),
            &[key, bound, "environment PYRALOG__"],
        );
    }
    refused_with(&yaml("node: {node_id: -1}"), &["-1 is not valid"]);
    refused_with(&yaml("network: {max_connections: 1.5}"), &["1.5 is not valid"]);
    refused_with(&yaml("network: {max_connections: [1]}"), &["a list is not valid"]);
}

#[test]
fn what_can_not_work_is_refused_with_the_reason() {
    refused_with(
        &yaml("storage: {segment_config: {use_mmap: true}}"),
        &["use_mmap", "page fault would block a core"],
    );
    ok(&yaml("storage: {segment_config: {use_mmap: false}}"));
    refused_with(
        &yaml("network: {internal_address: \"0.0.0.0:9093\"}"),
        &["internal_address", "no other node is named"],
    );
    refused_with(
        &env(&[("PYRALOG_CLUSTER_NODES", "127.0.0.1:9092,b:9092")]),
        &["internal_address", "needed with several nodes"],
    );
    refused_with(
        &env(&[
            ("PYRALOG_CLUSTER_NODES", "a:1,b:1,c:1,d:1,e:1,f:1"),
            ("PYRALOG__NETWORK__INTERNAL_ADDRESS", "0.0.0.0:1"),
        ]),
        &["cluster_nodes", "6 nodes", "up to 5"],
    );
    ok(&env(&[
        ("PYRALOG_CLUSTER_NODES", "a:1,b:1,c:1"),
        ("PYRALOG__NETWORK__INTERNAL_ADDRESS", "0.0.0.0:1"),
    ]));
    refused_with(&yaml("node: {cluster_name: \"a b\"}"), &["cluster_name", "letters"]);
    refused_with(&env(&[("PYRALOG_CLUSTER_NODES", "b:9092")]), &["cluster_nodes", "127.0.0.1:9092"]);
    ok(&env(&[("PYRALOG_CLUSTER_NODES", "")]));
    let open = env(&[("PYRALOG_LISTEN_ADDRESS", "0.0.0.0:9092")]);
    refused_with(&open, &["listen_address", "set network.advertised_address"]);
    ok(&env(&[
        ("PYRALOG_LISTEN_ADDRESS", "0.0.0.0:9092"),
        ("PYRALOG__NETWORK__ADVERTISED_ADDRESS", "a.b:9092"),
    ]));
    refused_with(&yaml("runtime: {shards: 3, cpus: 0-1}"), &["runtime.shards", "2 CPUs"]);
    refused_with(&yaml("runtime: {shards: 20}"), &["max_size", "20 shards", "at least 320MiB"]);
    refused_with(&yaml("runtime: {memory: 64MiB}"), &["runtime.memory", "tail cache", "in all"]);
    let twice = env(&[("PYRALOG_NODE_ID", "1"), ("PYRALOG__NODE__NODE_ID", "2")]);
    refused_with(&twice, &["node.node_id", "sets the same key", "PYRALOG__NODE__NODE_ID"]);
    refused_with(
        &Layers { preset: Some("fast".to_owned()), ..Layers::default() },
        &["preset fast", "low-latency"],
    );
}

/// What is wrong with a list of nodes.
#[test]
fn the_list_of_nodes_is_checked() {
    let refused_as = |more: &[(&str, &str)], parts: &[&str]| {
        let internal = [("PYRALOG__NETWORK__INTERNAL_ADDRESS", "0.0.0.0:1")];
        let errors = refused(&env(&[more, &internal].concat()));
        let told =
            |part: &&str| errors.0.iter().any(|e| e.key == "node.cluster_nodes" && e.message.contains(part));
        assert!(parts.iter().all(told), "{parts:?}: {errors}");
    };
    let nodes = "PYRALOG_CLUSTER_NODES";
    refused_as(&[(nodes, "1@a:1,b:2")], &["some entries have an id"]);
    refused_as(&[(nodes, "1@a:1,1@b:2")], &["node 1 is there twice"]);
    refused_as(&[(nodes, "a:1,b:1,a:1")], &["a:1 is there twice"]);
    refused_as(&[(nodes, "2@a:1,3@b:2")], &["this node is 1", "not among the nodes 2, 3"]);
    refused_as(
        &[(nodes, "a:1,b:2"), ("PYRALOG_NODE_ID", "3")],
        &["this node is 3", "not among the nodes 1, 2"],
    );
    let many: Vec<String> = (1..=65).map(|n| format!("h{n}:1")).collect();
    refused_as(&[(nodes, &many.join(","))], &["65 nodes", "up to 5"]);
    refused_as(&[(nodes, "b:9092")], &["only node", "127.0.0.1:9092"]);
    let internal = ("PYRALOG__NETWORK__INTERNAL_ADDRESS", "0.0.0.0:1");
    let any_order = ok(&env(&[(nodes, "7@a:1,1@b:2"), internal]));
    assert_eq!(any_order.config.cluster_nodes().collect::<Vec<_>>(), [(7, "a:1"), (1, "b:2")]);
    // One entry is this node, as ever: by any id when it names none.
    let own = ok(&env(&[(nodes, "127.0.0.1:9092"), ("PYRALOG_NODE_ID", "7")]));
    assert_eq!(own.config.cluster_nodes().collect::<Vec<_>>(), [(1, "127.0.0.1:9092")]);
    let own = ok(&env(&[(nodes, "7@127.0.0.1:9092"), ("PYRALOG_NODE_ID", "7")]));
    assert_eq!(own.config.cluster_nodes().collect::<Vec<_>>(), [(7, "127.0.0.1:9092")]);
}

#[test]
fn copies_and_quorums_fit_each_other_and_the_nodes() {
    let alone = ok(&Layers::default()).config;
    assert_eq!(alone.topic_quorums(), Quorums::of(1));
    let mut config = alone.clone();
    for (nodes, copies) in [(1, 1), (2, 2), (3, 3), (5, 3)] {
        let node = ClusterNode { id: None, address: "a:1".to_owned() };
        config.node.cluster_nodes = vec![node; nodes];
        assert_eq!(config.topic_quorums(), Quorums::of(copies), "{nodes} nodes");
    }
    assert_ne!(Config::default().cluster_id(), {
        config.node.cluster_name = "other".to_owned();
        config.cluster_id()
    });
    config.replication.write_quorum = Some(3);
    assert_eq!(config.topic_quorums().write_quorum, 3);
    refused_with(&yaml("replication: {factor: 3}"), &["replication.factor", "3 copies", "this one only"]);
    refused_with(&yaml("replication: {write_quorum: 2}"), &["replication.write_quorum", "2 of 1 copies"]);
    refused_with(&yaml("replication: {read_quorum: 2}"), &["replication.read_quorum", "2 of 1 copies"]);
    refused_with(
        &yaml("replication: {min_insync_replicas: 2}"),
        &["replication.min_insync_replicas", "2 of 1"],
    );
}

#[test]
fn election_times_fit_each_other() {
    let times = |min: u64, max: u64, heartbeat: u64| {
        yaml(&format!(
            "replication: {{election_timeout: {{min_ms: {min}, max_ms: {max}}}, heartbeat_ms: {heartbeat}}}"
        ))
    };
    ok(&times(100, 101, 49));
    refused_with(&times(300, 300, 50), &["election_timeout.max_ms", "not above", "write about 600"]);
    refused_with(&times(100, 200, 50), &["replication.heartbeat_ms", "not below half", "write about 25"]);
}

#[test]
fn all_errors_are_told_at_once() {
    let mut layers = yaml("node: {node_id: 0, nme: x}\nstorage: {segment_config: {use_mmap: true}}\n");
    layers.env = vec![("PYRALOG__RUNTIME__SHARDS".to_owned(), "many".to_owned())];
    let errors = refused(&layers);
    let keys: Vec<_> = errors.0.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["node.node_id", "node.nme", "runtime.shards", "storage.segment_config.use_mmap"]);
    assert!(
        errors
            .to_string()
            .starts_with("the configuration has 4 errors:\n  - node.node_id (file pyralog.yaml): ")
    );
}

#[test]
fn presets_are_valid_and_change_what_they_say() {
    let mut names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["durability", "low-latency", "throughput"]);
    for preset in PRESETS {
        let effective = ok(&Layers { preset: Some(preset.name.to_owned()), ..Layers::default() });
        for (key, value, origin) in effective.entries() {
            match preset.values.iter().find(|(path, _)| *path == key.path) {
                Some((_, wanted)) => {
                    assert_eq!((&*value, origin), (*wanted, &Origin::Preset(preset.name.to_owned())));
                }
                None => assert_eq!(origin, &Origin::Default),
            }
        }
        assert_eq!(
            effective.config.storage.fsync_policy,
            FsyncPolicy::EveryWrite,
            "no preset gives up durability"
        );
    }
}

#[test]
fn the_number_of_shards_is_checked_when_it_is_known() {
    let effective = ok(&yaml("storage: {cache_config: {max_size: 32MiB}}\nruntime: {memory: 4GiB}"));
    let bound = effective.check_shards(2).unwrap();
    assert!(bound.total_bytes() <= 4 << 30);
    assert_eq!(effective.config.cache_bytes_per_shard(2), 16 << 20);
    let errors = effective.check_shards(30).unwrap_err();
    let keys: Vec<_> = errors.0.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["storage.cache_config.max_size", "runtime.memory"]);
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text: String, value: String, key in 0..KEYS.len(), json: bool) {
        let name = if json { "a.json" } else { "a.yaml" };
        let file = Some((name.to_owned(), text));
        let _ = load(&Layers { file, env: vec![(KEYS[key].env_name(), value)], ..Layers::default() });
    }
}
