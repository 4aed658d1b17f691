//! Files go in and come out identical to the byte, whatever happens to the node in between.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::common::{Node, admin};

fn verify(data_dir: &Path) {
    let output = admin().args(["log", "verify"]).arg(data_dir).output().expect("pyralog-admin starts");
    assert!(output.status.success(), "{output:?}");
}

/// Text with empty lines, long lines, bytes that are no UTF-8, and no newline at its end.
fn awkward_text() -> Vec<u8> {
    let mut text = Vec::new();
    for i in 0..20_000u32 {
        text.extend_from_slice(format!("{i} ").as_bytes());
        text.extend(std::iter::repeat_n(b'a' + (i % 26) as u8, (i as usize * 7919) % 300));
        text.extend_from_slice(if i % 97 == 0 { b"\xff\xfe\0\r\n\n\n" } else { b"\n" });
    }
    text.extend(std::iter::repeat_n(b'x', 900_000));
    text.extend_from_slice(b"\nno newline here");
    text
}

#[test]
fn a_file_comes_back_identical_with_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let node = Node::start(&data_dir);
    let text = awkward_text();
    let file = folder.path().join("text");
    fs::write(&file, &text).unwrap();
    for compression in ["none", "lz4", "zstd"] {
        node.admin_ok(["topic", "create", compression]);
        let produce =
            ["produce", compression, file.to_str().unwrap(), "--compression", compression, "--quiet"];
        node.admin_ok(produce);
        assert!(node.admin_ok(["consume", compression]) == text, "{compression}");
    }
    let by_pipe = node.admin_with_input(&["produce", "none", "--quiet"], &text);
    assert!(by_pipe.status.success(), "{by_pipe:?}");
    assert!(node.admin_ok(["consume", "none"]) == [&text[..], &text[..]].concat());

    let (status, rest) = node.stop();
    assert!(status.success(), "{rest}");
    verify(&data_dir);
    let node = Node::start(&data_dir);
    assert!(node.admin_ok(["consume", "zstd"]) == text, "after a restart");
}

#[test]
fn damage_is_found_offline_and_a_running_node_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let node = Node::start_with(&data_dir, "127.0.0.1:0", |command| {
        command.env("PYRALOG__STORAGE__CACHE_CONFIG__MAX_BUFFER_TIME_MS", "100")
    });
    node.admin_ok(["topic", "create", "t"]);
    assert!(node.admin_with_input(&["produce", "t"], &awkward_text()).status.success());
    let running = admin().args(["log", "verify"]).arg(&data_dir).output().unwrap();
    assert_eq!(running.status.code(), Some(1), "{running:?}");
    assert!(String::from_utf8_lossy(&running.stderr).contains("stop it first"), "{running:?}");
    let (status, rest) = node.stop();
    assert!(status.success(), "{rest}");
    verify(&data_dir);

    let segment = find(&data_dir, "log").expect("a segment was written");
    let dump = admin().args(["log", "dump"]).arg(&segment).output().unwrap();
    assert!(dump.status.success() && !dump.stdout.is_empty(), "{dump:?}");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&segment, bytes).unwrap();
    let damaged = admin().args(["log", "verify", "-o", "json"]).arg(&data_dir).output().unwrap();
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    let report: serde_json::Value = serde_json::from_slice(&damaged.stdout).unwrap();
    assert_eq!(report["clean"], false);
    assert_eq!(report["findings"][0]["severity"], "damage", "{report}");
    assert_eq!(report["findings"][0]["file"], segment.to_str().unwrap(), "{report}");
}

/// The largest file below `folder` whose name ends so.
fn find(folder: &Path, extension: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter_map(|path| match path.is_dir() {
        true => find(&path, extension),
        false => (path.extension()? == extension).then_some(path),
    });
    files.max_by_key(|path| fs::metadata(path).unwrap().len())
}

struct Producer(Child);

impl Drop for Producer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn kill_nine_and_restart_keeps_every_acknowledged_line_once() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let mut node = Node::start(&data_dir);
    let address = node.address.to_string();
    node.admin_ok(["topic", "create", "lines"]);

    let mut text = Vec::new();
    for i in 0..400_000u32 {
        text.extend_from_slice(
            format!("line {i} {:x}\n", u64::from(i).wrapping_mul(0x9E37_79B9_7F4A_7C15)).as_bytes(),
        );
    }
    let file = folder.path().join("text");
    fs::write(&file, &text).unwrap();
    let mut producer = Producer(
        admin()
            .args(["--cluster", &address, "produce", "lines", file.to_str().unwrap(), "--quiet"])
            .args(["--batch-size", "4KiB"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    // Each kill comes when a further part of the file has arrived: no clock decides.
    let mut kills = 0;
    for part in [40_000u64, 130_000, 220_000] {
        while high_watermark(&node) < part {
            assert!(producer.0.try_wait().unwrap().is_none(), "the producer still has lines to send");
        }
        node.kill();
        kills += 1;
        node = Node::start_with(&data_dir, &address, |command| command);
    }
    let status = producer.0.wait().unwrap();
    let said: Vec<String> =
        BufReader::new(producer.0.stderr.take().unwrap()).lines().map(|line| line.unwrap()).collect();
    assert!(status.success(), "{said:?}");
    assert_eq!(kills, 3);
    assert!(node.admin_ok(["consume", "lines"]) == text, "every line once and in order");
    let (status, rest) = node.stop();
    assert!(status.success(), "{rest}");
    verify(&data_dir);
}

#[test]
fn a_paused_node_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let node = Node::start(&data_dir);
    let address = node.address.to_string();
    node.admin_ok(["topic", "create", "lines"]);
    let text: Vec<u8> = (0..200_000u32).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
    let file = folder.path().join("text");
    fs::write(&file, &text).unwrap();
    let mut producer = Producer(
        admin()
            .args(["--cluster", &address, "produce", "lines", file.to_str().unwrap(), "--quiet"])
            .args(["--batch-size", "1KiB"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    for part in [20_000u64, 60_000, 100_000] {
        while high_watermark(&node) < part {
            assert!(producer.0.try_wait().unwrap().is_none(), "the producer still has lines to send");
        }
        node.signal(libc::SIGSTOP);
        while !node.is_stopped() {}
        // Clients that come meanwhile: the kernel takes them, the node finds them when it returns.
        let visitors: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
        assert!(producer.0.try_wait().unwrap().is_none(), "nothing is acknowledged by a node that is paused");
        drop(visitors);
        node.signal(libc::SIGCONT);
    }
    assert!(producer.0.wait().unwrap().success());
    assert!(node.admin_ok(["consume", "lines"]) == text, "every line once and in order");
    let (status, rest) = node.stop();
    assert!(status.success(), "{rest}");
    verify(&data_dir);
}

fn high_watermark(node: &Node) -> u64 {
    let (status, body) = node.http("GET", "/topics/lines/partitions/0");
    assert_eq!(status, 200, "{body}");
    let state: serde_json::Value = serde_json::from_str(&body).unwrap();
    state["high_watermark"].as_u64().unwrap()
}
