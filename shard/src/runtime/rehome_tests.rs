//! A change of the number of shards that stops after any of its steps has changed nothing.

use std::cell::Cell;
use std::fs;

use pyralog_core::FeatureLevels;

use super::*;
use crate::engine::IoErrorKind;

thread_local! {
    static STEPS: Cell<Option<usize>> = const { Cell::new(None) };
}

pub(super) fn steps_left() -> Option<usize> {
    STEPS.get()
}

impl Disks<'_> {
    pub(super) fn step(&mut self) -> Result<(), IoError> {
        match &mut self.steps_left {
            Some(0) => Err(IoError { kind: IoErrorKind::Other, detail: "the test stops here".into() }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Every file below a folder with its content, but for what any recovery of it writes.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(content(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

#[test]
fn what_stops_before_its_end_has_changed_nothing_and_is_done_by_the_next_start() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (data_dir, journal_dir) = (dir.path().join("data"), dir.path().join("journal"));
    let open = || DataDir::open(&data_dir, &journal_dir, 1, 2, FeatureLevels::OURS).unwrap();
    let config = EngineConfig { shards: 3, journal_file_bytes: 8 << 20, ..EngineConfig::default() };
    let change = |steps| {
        STEPS.set(steps);
        let mut data = open();
        change_shards(&mut data, &data_dir, &journal_dir, &config).map(|()| data.node.clone())
    };
    // Makes the journals of the shards.
    assert!(change(Some(0)).unwrap_err().to_string().contains("the test stops here"));
    let before = (open().node.clone(), content(dir.path()));
    let mut stopped = 0;
    let node = loop {
        stopped += 1;
        match change(Some(stopped)) {
            Err(error) => assert!(error.to_string().contains("the test stops here"), "{error}"),
            Ok(node) => break node,
        }
        assert_eq!(open().node, before.0);
        assert!(content(dir.path()) == before.1, "after {stopped} steps");
    };
    assert!(stopped > 5, "{stopped} steps");
    assert_eq!((node.shards, node.generation, node.begun), (3, 1, true));
    let names = |dir: &Path| -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name.starts_with("shard"));
        names.sort();
        names
    };
    let all = ["shard-0.g1", "shard-1.g1", "shard-2.g1"];
    assert_eq!(
        (names(&data_dir), names(&journal_dir)),
        (all.map(String::from).to_vec(), all.map(String::from).to_vec())
    );
    assert_eq!(open().node, node);
}
