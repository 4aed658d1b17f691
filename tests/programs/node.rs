//! Starting and stopping the real program, and what it refuses.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};

use crate::common::{Node, admin, pyralog};

fn run(arguments: &[&str]) -> Output {
    pyralog().args(arguments).stdin(Stdio::null()).output().expect("pyralog starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_banner_tells_what_runs_and_sigterm_ends_it_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    for part in [
        concat!("pyralog ", env!("CARGO_PKG_VERSION")),
        "shards",
        "durability  fsync_policy every_write: an acknowledgement means on stable storage",
        "memory      at most ",
        &format!("address     {}", node.address),
        &format!("data        {}", folder.path().display()),
    ] {
        assert!(node.banner.contains(part), "{part:?} is missing in\n{}", node.banner);
    }
    let (status, rest) = node.stop();
    assert_eq!(status.code(), Some(0), "{rest}");
    assert!(rest.contains("stopped after SIGTERM"), "{rest}");
}

#[test]
fn ctrl_c_ends_it_cleanly_too_and_the_data_serve_again() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "kept", "--partitions", "3"]);
    node.signal(libc::SIGINT);
    let (status, rest) = node.stop();
    assert_eq!(status.code(), Some(0), "{rest}");

    let node = Node::start(folder.path());
    let topics = String::from_utf8(node.admin_ok(["topic", "list", "-o", "json"])).unwrap();
    assert!(topics.contains("\"kept\""), "{topics}");
}

#[test]
fn health_is_told_and_clients_wait_while_a_shard_reads_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    node.admin_ok(["topic", "create", "kept"]);
    node.stop();
    // As if a killed process still had a write under way: the start waits for that.
    let journal = fs::File::open(folder.path().join("journal/shard-0/0.journal")).unwrap();
    journal.lock().unwrap();
    let mut node = Node::begin(folder.path());
    let (status, body) = node.http("GET", "/health");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("shard 0 is starting"), "{body}");
    let topics = std::thread::scope(|scope| {
        let asked = std::net::TcpStream::connect(node.address).unwrap();
        let topics = scope.spawn({
            let (mut command, address) = (admin(), node.address.to_string());
            move || command.args(["--cluster", &address, "topic", "list"]).output().unwrap()
        });
        drop(asked);
        journal.unlock().unwrap();
        node.await_ready();
        topics.join().unwrap()
    });
    assert!(
        topics.status.success() && String::from_utf8_lossy(&topics.stdout).contains("kept"),
        "{topics:?}"
    );
    assert_eq!(node.http("GET", "/health").0, 200);
}

#[test]
fn a_second_node_on_the_same_data_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path());
    let data_dir = folder.path().to_str().unwrap();
    let second = run(&["--data-dir", data_dir, "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(3), "{second:?}");
    assert!(stderr(&second).contains(data_dir), "{second:?}");
    assert_eq!(node.http("GET", "/health").0, 200, "the first one is unharmed");
}

#[test]
fn a_port_in_use_is_refused_by_name() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = Node::start(first.path());
    let address = node.address.to_string();
    let refused = run(&["--data-dir", second.path().to_str().unwrap(), "--listen", &address]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(stderr(&refused).contains(&address), "{refused:?}");
    assert_eq!(node.http("GET", "/health").0, 200, "the first one is unharmed");
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let wanted = file.join("data");
    let refused = run(&["--data-dir", wanted.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(stderr(&refused).contains(wanted.to_str().unwrap()), "{refused:?}");
}

#[test]
fn a_misspelt_key_is_refused_with_the_nearest_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pyralog.yaml");
    fs::write(&file, "storage:\n  fsync_polcy: never\n").unwrap();
    let refused = run(&["--config", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let text = stderr(&refused);
    assert!(text.contains("fsync_polcy") && text.contains("fsync_policy"), "{text}");
    assert_eq!(text.lines().count(), 1, "one clear line: {text}");
}

#[test]
fn memory_maps_are_refused_with_the_reason() {
    let refused = pyralog()
        .env("PYRALOG__STORAGE__SEGMENT_CONFIG__USE_MMAP", "true")
        .stdin(Stdio::null())
        .output()
        .expect("pyralog starts");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(stderr(&refused).contains("page fault"), "{refused:?}");
}

#[test]
fn config_show_tells_where_each_value_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pyralog.json");
    fs::write(&file, r#"{"node": {"node_id": 7}, "storage": {"fsync_policy": "interval(10ms)"}}"#).unwrap();
    let shown = pyralog()
        .args(["config", "show", "--config"])
        .arg(&file)
        .env("PYRALOG_NODE_ID", "9")
        .env("PYRALOG__NETWORK__MAX_CONNECTIONS", "77")
        .output()
        .expect("pyralog starts");
    assert!(shown.status.success(), "{shown:?}");
    let text = String::from_utf8(shown.stdout).unwrap();
    let line =
        |key: &str| text.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key}\n{text}"));
    assert!(line("node_id").contains('9') && line("node_id").contains("PYRALOG_NODE_ID"), "{text}");
    assert!(line("max_connections").contains("77"), "{text}");
    let policy = line("fsync_policy");
    assert!(policy.contains("interval(10ms)") && policy.contains("pyralog.json"), "{text}");

    let shown = pyralog().args(["config", "show", "-o", "json"]).output().expect("pyralog starts");
    let list: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let entry = list.as_array().unwrap().iter().find(|entry| entry["key"] == "storage.fsync_policy").unwrap();
    assert_eq!((&entry["value"], &entry["origin"]), (&"every_write".into(), &"default".into()));
    let shown = pyralog().args(["config", "show", "-o", "yaml"]).output().expect("pyralog starts");
    assert!(String::from_utf8(shown.stdout).unwrap().contains("key: storage.fsync_policy"));
}

#[test]
fn the_command_line_beats_the_environment() {
    let shown = pyralog()
        .args(["--listen", "127.0.0.1:1234", "config", "show"])
        .env("PYRALOG_LISTEN_ADDRESS", "127.0.0.1:4321")
        .output()
        .expect("pyralog starts");
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("127.0.0.1:1234") && !text.contains("127.0.0.1:4321"), "{text}");
}

#[test]
fn version_and_help() {
    for program in [pyralog(), admin()] {
        let mut program = program;
        let output = program.arg("--version").output().expect("it starts");
        assert!(String::from_utf8(output.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    }
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    assert!(help.contains("Exit codes:"), "{help}");
}

#[test]
fn the_demo_passes_and_cleans_up_even_when_it_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let demo = |more: &[&str]| {
        let mut command = pyralog();
        command.args(["--data-dir", folder.path().to_str().unwrap(), "demo", "--seconds", "1"]).args(more);
        command
    };
    let passed = demo(&["--size", "16MiB"]).output().unwrap();
    let text = String::from_utf8_lossy(&passed.stdout);
    assert!(passed.status.success(), "{passed:?}");
    for part in
        ["killed with SIGKILL", "every line is there once and in order", "one at a time", "demo passed"]
    {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");

    let mut child = demo(&["--size", "1TiB"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("writing ")));
    // SAFETY: the child has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}
