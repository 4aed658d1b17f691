//! `halt-poll.sh` on machines that are folders.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const GOVERNOR: &str = "sys/devices/system/cpu/cpuidle/current_governor";
const SETTING: &str = "sys/module/haltpoll/parameters/guest_halt_poll_ns";

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(governor: &str, ns: u32) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (path, text) in [(GOVERNOR, governor.to_owned()), (SETTING, ns.to_string())] {
            let path = folder.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text + "\n").unwrap();
        }
        folder
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn ns(&self) -> String {
        fs::read_to_string(self.path(SETTING)).unwrap().trim().to_owned()
    }

    /// Exit code, and what it said.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("halt-poll.sh");
        let output =
            Command::new(script).args(arguments).env("PYRALOG_ROOT", self.0.path()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }
}

#[test]
fn it_checks_sets_and_sets_back_what_was_there() {
    let folder = Folder::with("haltpoll", 5_000);
    let (code, said) = folder.run(&[]);
    assert!(code == 1 && said.contains("5000 ns before they halt, wanted 200000"), "{said}");
    assert_eq!(folder.ns(), "5000", "a check changes nothing");

    assert_eq!(folder.run(&["--apply"]).0, 0);
    assert_eq!(folder.ns(), "200000");
    assert_eq!(folder.run(&[]).0, 0);
    // A second change does not forget what was there before the first.
    assert_eq!(folder.run(&["--apply", "70000"]).0, 0);
    assert_eq!(folder.ns(), "70000");
    assert_eq!(folder.run(&["--revert"]).0, 0);
    assert_eq!(folder.ns(), "5000");
    let (code, said) = folder.run(&["--revert"]);
    assert!(code == 0 && said.contains("nothing was changed"), "{said}");
    assert_eq!(folder.ns(), "5000");
}

#[test]
fn a_machine_without_halt_polling_is_left_alone() {
    let folder = Folder::with("menu", 0);
    let (code, said) = folder.run(&["--apply"]);
    assert!(code == 0 && said.contains("not used here"), "{said}");
    assert_eq!(folder.ns(), "0");
}

#[test]
fn wrong_arguments_are_refused_with_the_right_ones() {
    let folder = Folder::with("haltpoll", 0);
    for wrong in [&["--now"][..], &["--apply", "1s"], &["--apply", "1", "2"], &["--revert", "1"]] {
        let (code, said) = folder.run(wrong);
        assert!(code == 2 && !said.is_empty(), "{wrong:?}: {said}");
    }
    assert_eq!(folder.ns(), "0");
}
