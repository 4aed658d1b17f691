//! Nodes that stand still, and disks that do, by control groups (version 1): frozen from one instruction to the next, all
//! threads at once, without a signal; writes that the kernel holds back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use pyralog_net::message::{Acks, Durability, Response};

use crate::common::{Node, skipped};
use crate::harness::{Cluster, Reader, eventually};
use crate::history::{Load, Stray, TOPIC, await_in_sync, check};

static GROUPS: AtomicU16 = AtomicU16::new(0);

/// A control group with one node in it. Dropping it lets the node go.
struct ControlGroup {
    controller: &'static str,
    folder: PathBuf,
    pid: u32,
}

impl ControlGroup {
    /// Whether there are such groups here, with the file that is needed; if not, why.
    fn can_be(controller: &'static str, file: &str) -> Result<(), String> {
        let group = Self::new(controller, 0).map_err(|error| format!("no {controller} group: {error}"))?;
        let found = group.folder.join(file).exists();
        found.then_some(()).ok_or_else(|| format!("control groups of {controller} have no {file} here"))
    }

    fn new(controller: &'static str, pid: u32) -> std::io::Result<Self> {
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let name = format!("pyralog-test-{}-{number}", std::process::id());
        let folder = Path::new("/sys/fs/cgroup").join(controller).join(name);
        fs::create_dir(&folder)?;
        Ok(Self { controller, folder, pid })
    }

    fn around(controller: &'static str, node: &Node) -> Self {
        let group = Self::new(controller, node.pid()).unwrap();
        group.set("cgroup.procs", &node.pid().to_string());
        group
    }

    fn set(&self, file: &str, value: &str) {
        let path = self.folder.join(file);
        fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = fs::write(self.folder.join("freezer.state"), "THAWED");
        if self.pid != 0 {
            let all = Path::new("/sys/fs/cgroup").join(self.controller).join("cgroup.procs");
            let _ = fs::write(all, self.pid.to_string());
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The disk that a folder is on, as `major:minor`.
fn disk_of(folder: &Path) -> Result<String, String> {
    let device = fs::metadata(folder).map_err(|error| error.to_string())?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let known = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))
        .map_err(|_| format!("{} is on no disk whose writes could be held back", folder.display()))?;
    let whole = if known.join("partition").exists() { known.parent().unwrap_or(&known) } else { &known };
    let numbers = fs::read_to_string(whole.join("dev")).map_err(|error| error.to_string())?;
    Ok(numbers.trim().to_owned())
}

/// Lets one byte a second through to the disk until it is dropped: no write of the node ends.
struct Stalled {
    group: ControlGroup,
    disk: String,
}

impl Stalled {
    fn node(cluster: &Cluster, id: u16, disk: &str) -> Self {
        let group = ControlGroup::around("blkio", &cluster.nodes[&id]);
        group.set("blkio.throttle.write_bps_device", &format!("{disk} 1"));
        Self { group, disk: disk.to_owned() }
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let file = self.group.folder.join("blkio.throttle.write_bps_device");
        let _ = fs::write(file, format!("{} 0", self.disk));
    }
}

#[test]
fn a_leader_that_was_frozen_finds_itself_replaced() {
    if let Err(why) = ControlGroup::can_be("freezer", "freezer.state") {
        return skipped(&why);
    }
    let cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", TOPIC]);
    let load = Load::begin(&cluster, 1);
    let reader = Reader::begin(cluster.client(), TOPIC, 0);
    // Back after others have gone on for a while, and back as soon as another leads.
    for more in [2_000, 0] {
        load.await_more(200);
        load.longest_gap();
        let old = cluster.leader(TOPIC, 0);
        let mut stray = Stray::to(&cluster, old, 0);
        let group = ControlGroup::around("freezer", &cluster.nodes[&old]);
        group.set("freezer.state", "FROZEN");
        eventually(|| {
            let state = fs::read_to_string(group.folder.join("freezer.state")).unwrap();
            (state.trim() == "FROZEN").then_some(())
        });
        stray.send();
        cluster.leader_but(TOPIC, 0, old);
        load.await_more(more);
        println!("leader frozen: no acknowledgement for {:?}", load.longest_gap());
        drop(group);
        stray.is_refused();
        load.await_more(200);
        await_in_sync(&cluster);
    }
    let (history, records) = (load.end(), cluster.records(TOPIC, 0));
    check(0, &records, &history);
    let read = reader.end(records.len() as u64);
    assert!(read.iter().eq(records.values()), "who has read along has read the same");
}

#[test]
fn a_leader_whose_disk_stalls_commits_by_its_followers() {
    let disk = disk_of(&std::env::temp_dir());
    let disk = match ControlGroup::can_be("blkio", "blkio.throttle.write_bps_device").and(disk) {
        Ok(disk) => disk,
        Err(why) => return skipped(&why),
    };
    // So that a busy machine deposes nobody: here the leader is to stay.
    let elections = &[
        ("PYRALOG__REPLICATION__ELECTION_TIMEOUT__MIN_MS", "3000"),
        ("PYRALOG__REPLICATION__ELECTION_TIMEOUT__MAX_MS", "5000"),
    ];
    let cluster = Cluster::formed_with(3, elections);
    cluster.admin_ok(&["topic", "create", TOPIC]);
    // Another one would hand over to it on the way.
    let leader = cluster.client().topic(TOPIC).unwrap().partitions[0].replicas[0].node as u16;
    eventually(|| (cluster.leader(TOPIC, 0) == leader).then_some(()));
    let load = Load::begin(&cluster, 1);
    for of_leader in [true, false, true] {
        load.await_more(200);
        await_in_sync(&cluster);
        let stalled_node = if of_leader { leader } else { leader % 3 + 1 };
        let mut stray = Stray::to(&cluster, leader, 0);
        load.longest_gap();
        let stalled = Stalled::node(&cluster, stalled_node, &disk);
        // Asks for the leader's own disk and for nobody else's.
        stray.send_for(Acks::Leader, 60_000);
        load.await_more(2_000);
        let who = if of_leader { "leader" } else { "follower" };
        println!("the {who}'s disk stalled: no acknowledgement for {:?}", load.longest_gap());
        if of_leader {
            assert_eq!(cluster.leader(TOPIC, 0), leader, "it goes on leading");
            let answer = stray.answer_so_far();
            assert!(answer.is_none(), "its disk does not stall: {answer:?}");
        }
        drop(stalled);
        let answer = stray.answer();
        let durable = Durability::LeaderDurable;
        assert!(matches!(&answer, Response::Produce(done) if done.durability == durable), "{answer:?}");
    }
    await_in_sync(&cluster);
    let (history, records) = (load.end(), cluster.records(TOPIC, 0));
    check(0, &records, &history);
}
