//! Replays the corpora of the fuzz targets through the functions that the targets call.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use pyralog_net::frame::kind;
use pyralog_net::roundtrip::{check_batches, check_frames};

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(target);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn frames() {
    let mut decoded = 0;
    for (path, bytes) in corpus("frame") {
        eprintln!("{}", path.display()); // names the input when it panics
        let messages = check_frames(&bytes);
        decoded += messages;
        if path.ends_with("all") {
            // Each kind's request and reply, and the error reply.
            assert_eq!(
                messages,
                2 * kind::REQUESTS.len() + 1,
                "the corpus is of another version of the protocol"
            );
        }
    }
    assert!(decoded > 100, "{decoded}");
}

#[test]
fn batches() {
    let mut decoded = 0;
    for (path, bytes) in corpus("batch") {
        eprintln!("{}", path.display());
        let records = check_batches(&bytes);
        decoded += records;
        if path.ends_with("lz4-two") || path.ends_with("zstd") || path.ends_with("none") {
            assert_eq!(records, if path.ends_with("lz4-two") { 6 } else { 3 }, "{}", path.display());
        }
    }
    assert!(decoded > 50, "{decoded}");
}
