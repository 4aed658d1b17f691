//! The disk figures, on a small file.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use pyralog_bench::aligned::ALIGN;
use pyralog_bench::disk::{measure, measure_reads};
use pyralog_bench::floor::WrittenFile;

#[test]
fn measures_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let figures = measure(dir.path(), 8 << 20, 10).unwrap();
    assert_eq!(figures.append.count, 10);
    assert!(figures.append.p50_us > 0.0);
    assert!(figures.write_bytes_per_second > 0.0 && figures.read_bytes_per_second > 0.0);
    assert!(figures.touch_bytes_per_second > 0.0);
    let reads = measure_reads(dir.path(), 8 << 20, Duration::from_millis(50)).unwrap();
    assert!(reads.read_bytes_per_second > 0.0);
    assert!(reads.appends_alone.count() > 0 && reads.appends_beside_reads.count() > 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = measure(Path::new("/nonexistent-folder"), 1 << 20, 1).unwrap_err();
    assert!(format!("{error:#}").contains("/nonexistent-folder"), "{error:#}");
}

#[test]
fn appends_go_round_the_written_file() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut file = WrittenFile::create(&dir.path().join("file"), 1).unwrap();
    assert_eq!(file.len_bytes(), 1 << 20);
    assert_eq!((file.reserve(ALIGN), file.reserve(1 << 19)), (0, ALIGN as u64));
    assert_eq!(file.reserve(1 << 19), 0, "the rest is too short");
}
