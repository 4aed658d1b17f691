//! The lives of nodes: starts, crashes, stops in good order, and recoveries of a shard whose disk has failed.
//!
//! A lying disk may lose its newest writes without leaving any trace of them, and nobody can tell that from a crash. The
//! promises of a cluster hold only where a majority of each batch's copies survives, which such a loss undoes. So a crash of
//! a node waits until its disk shows what was lost; where that can't be waited for the node stays out for good.

use pyralog_shard::engine::recover;

use super::faults::ClusterFault;
use super::trouble::Trouble;
use super::world::{Happening, Input, NodeState, Seat, Shard, World};
use crate::disk::SimDisk;
use crate::faults::FaultKind;
use crate::life::last_panic;
use crate::recovery_disk::Recovering;

/// Attempts to start after which errors of the disk end: the operator has exchanged the cable.
const PATIENCE: u32 = 8;
/// Time in which a stop in good order is done on a disk that does not fail, microseconds.
const STOP_US: u64 = 20_000_000;
/// How long a crash waits for a lying disk to show what it lost, microseconds.
const EVIDENCE_US: u64 = 5_000;

enum Started {
    Serving,
    Interrupted,
    Failed(String),
}

impl World {
    fn seats_of(&self, node: usize) -> impl Iterator<Item = Seat> + use<> {
        (0..self.nodes[node].count).map(move |shard| Seat { node, shard })
    }

    /// Whether a disk of the node has lost its newest writes without a trace.
    fn has_silent_loss(&self, node: usize) -> bool {
        self.nodes[node].lies && self.nodes[node].shards.iter().any(|shard| shard.disk.lost_tail().is_some())
    }

    /// The engine of a shard is gone.
    fn put_down_shard(&mut self, seat: Seat) {
        self.count_engine(seat);
        self.note_held(seat);
        self.close_all(seat);
        self.unlink(seat);
        self.shard_mut(seat).put_down();
        self.books.put_down(seat);
    }

    /// The process of a node ends, whatever it was at.
    fn put_down(&mut self, node: usize) {
        for seat in self.seats_of(node) {
            self.put_down_shard(seat);
        }
        let state = &mut self.nodes[node];
        state.state = NodeState::Down;
        state.process += 1;
        state.catalog = None;
        state.paused_until_us = 0;
    }

    /// The power of a node goes. False: not now, as its disk would have lost what nobody can notice.
    pub(crate) fn crash(&mut self, node: usize, kind: FaultKind) -> bool {
        if self.has_silent_loss(node) && kind == FaultKind::Crash {
            return false;
        }
        self.note(|| format!("n{} CRASH ({})", node + 1, kind.name()));
        self.node_counts.add(kind);
        if kind == FaultKind::Crash && self.seats_of(node).any(|seat| self.leads(seat)) {
            self.counts.add(ClusterFault::LeaderCrash);
        }
        self.exit(node);
        if self.has_silent_loss(node) {
            self.take_out(node, ClusterFault::TakenOut);
        } else if self.nodes[node].lies && !self.closing && self.rng.one_in(4) {
            self.replace_disk(node);
        }
        true
    }

    /// The process of a node gives up.
    fn exit(&mut self, node: usize) {
        self.put_down(node);
        for seat in self.seats_of(node) {
            self.shard_mut(seat).disk.crash();
            self.disk_notes(seat);
        }
    }

    /// A crash, now or when the disk is ready for it; the node comes back after a while.
    pub(crate) fn crash_soon(&mut self, node: usize) {
        if self.nodes[node].state != NodeState::Up {
            return;
        }
        match self.crash(node, FaultKind::Crash) {
            true => {
                let down_us = self.rng.magnitude(1_000, self.config.troubles.down_us);
                self.schedule(down_us, Happening::Start { node, attempt: 0 });
            }
            false => self.schedule(EVIDENCE_US, Happening::Trouble(Trouble::CrashOf(node))),
        }
    }

    /// Whether the cluster waits for all of its nodes still.
    pub(crate) fn has_not_begun(&self) -> bool {
        self.catalog.as_ref().is_none_or(|catalog| catalog.version == 0)
    }

    /// A node is made anew, as the cluster may wait for it to begin.
    pub(crate) fn make_anew(&mut self, node: usize) {
        self.put_down(node);
        self.replace_disk(node);
        self.schedule(20_000, Happening::Start { node, attempt: 0 });
    }

    /// The node stays out for good.
    fn take_out(&mut self, node: usize, why: ClusterFault) {
        if self.has_not_begun() {
            return self.make_anew(node);
        }
        self.put_down(node);
        self.note(|| format!("n{} is out: {}", node + 1, why.name()));
        self.counts.add(why);
        self.nodes[node].state = NodeState::Out;
    }

    /// An empty disk in the place of the old one.
    fn replace_disk(&mut self, node: usize) {
        self.note(|| format!("n{} gets an empty disk", node + 1));
        self.counts.add(ClusterFault::BlankDisk);
        self.nodes[node].emptied = true;
        let disk_id = self.rng.bits() >> 1;
        for seat in self.seats_of(node) {
            let (rng, journal_id) = (self.rng.fork(), self.rng.bits() | 1);
            let plan = self.config.disks.lying.clone();
            let driver = self.shard_mut(seat);
            let old = std::mem::replace(&mut driver.disk, SimDisk::new(rng, plan));
            driver.config.journal_id = journal_id;
            driver.config.disk_id = disk_id;
            self.old_disks.merge(&old.counts);
            self.books.forgets(seat);
        }
    }

    // ---- starts ----

    /// Starts a node from its disk, through crashes in the middle of that and errors of the disk.
    pub(crate) fn start_node(&mut self, node: usize, attempt: u32) {
        if self.nodes[node].state != NodeState::Down || self.over() {
            return;
        }
        if self.has_silent_loss(node) {
            return self.take_out(node, ClusterFault::TakenOut);
        }
        if attempt == 0 && self.may_reshard(node) && !self.reshard(node, attempt) {
            return;
        }
        self.nodes[node].state = NodeState::Up;
        for seat in self.seats_of(node) {
            match self.start_shard(seat, attempt) {
                Started::Serving => {}
                Started::Interrupted => {
                    self.crash(node, FaultKind::CrashInRecovery);
                    let delay = self.rng.magnitude(1_000, 50_000);
                    return self.schedule(delay, Happening::Start { node, attempt: attempt + 1 });
                }
                Started::Failed(error) => {
                    self.exit(node);
                    return self.try_again(node, seat, attempt, &error);
                }
            }
        }
    }

    fn try_again(&mut self, node: usize, seat: Seat, attempt: u32, error: &str) {
        if attempt <= PATIENCE {
            return self.schedule(20_000, Happening::Start { node, attempt: attempt + 1 });
        }
        match self.shard(seat).disk.tracker.lied() {
            true => self.take_out(node, ClusterFault::Refused),
            false => self.fail(format!("{seat} refuses to start from a disk that never lied: {error}")),
        }
    }

    fn start_shard(&mut self, seat: Seat, attempt: u32) -> Started {
        let now = self.now(seat.node);
        if attempt >= PATIENCE {
            self.shard_mut(seat).disk.faults_off();
        }
        let driver = self.shard_mut(seat);
        driver.disk.tracker.new_life();
        let interruption = if attempt < PATIENCE { driver.disk.draw_interruption() } else { None };
        let mut disk = Recovering::new(&mut driver.disk, interruption);
        let result = recover(driver.config.clone(), &mut disk, now);
        let (interrupted, calls) = (disk.interrupted, disk.calls);
        self.disk_notes(seat);
        match result {
            _ if interrupted => {
                self.note(|| format!("{seat} power went in recovery after {calls} calls"));
                Started::Interrupted
            }
            Err(error) => {
                self.note(|| format!("{seat} does not start: {error}"));
                Started::Failed(error.to_string())
            }
            Ok(engine) => {
                self.note(|| format!("{seat} recovered with {calls} calls"));
                let driver = self.shard_mut(seat);
                (driver.engine, driver.levels) = (Some(engine), driver.config.feature_levels);
                self.check_promises(seat);
                self.drive(seat, |engine, actions| engine.start(now, actions));
                if let Some(catalog) = self.nodes[seat.node].catalog.clone() {
                    self.input(seat, Input::Catalog(catalog));
                }
                let due = self.shard(seat).engine.as_ref().and_then(|engine| engine.next_deadline_us());
                self.disk_notes(seat);
                self.arm(seat, due);
                self.watch(seat);
                Started::Serving
            }
        }
    }

    // ---- disks that failed ----

    /// A shard trusts its disk no longer.
    pub(crate) fn fenced(&mut self, seat: Seat, reason: &str) {
        self.note(|| format!("{seat} recover: {reason}"));
        if reason.contains("replica of the shard failed") || reason.contains("the journal had no room") {
            let panic = last_panic();
            self.fail(format!("{seat} fenced itself by its own fault: {reason} ({panic})"));
        }
        self.close_all(seat);
        self.unlink(seat);
        let stopping = self.nodes[seat.node].state == NodeState::Stopping;
        let driver = self.shard_mut(seat);
        match stopping {
            // Nothing is lost by stopping here: what was acknowledged is in the journal.
            true => driver.stopped = true,
            false => driver.fencing = true,
        }
    }

    /// Recovers one shard after an I/O error, the others of its node going on.
    pub(crate) fn recover_shard(&mut self, seat: Seat, life: u64, attempt: u32) {
        if self.shard(seat).life != life || self.nodes[seat.node].state != NodeState::Up {
            return;
        }
        if self.has_silent_loss(seat.node) {
            return self.take_out(seat.node, ClusterFault::TakenOut);
        }
        self.put_down_shard(seat);
        match self.start_shard(seat, attempt) {
            Started::Serving => {
                let catalog = self.nodes[seat.node].catalog.clone();
                // The other shards tell again who leads their groups.
                for other in self.seats_of(seat.node).filter(|other| *other != seat) {
                    if let Some(catalog) = catalog.clone() {
                        self.input_later(10, other, Input::Catalog(catalog));
                    }
                }
            }
            Started::Interrupted => {
                self.crash(seat.node, FaultKind::CrashInRecovery);
                self.schedule(20_000, Happening::Start { node: seat.node, attempt: attempt + 1 });
            }
            Started::Failed(_) if attempt <= PATIENCE => {
                let life = self.shard(seat).life;
                self.schedule(20_000, Happening::Recover { seat, life, attempt: attempt + 1 });
            }
            Started::Failed(error) => {
                self.exit(seat.node);
                self.try_again(seat.node, seat, attempt, &error);
            }
        }
    }

    // ---- stops in good order ----

    /// Tells a node to stop.
    pub(crate) fn stop(&mut self, node: usize) {
        if self.nodes[node].state != NodeState::Up || self.shards_are_busy(node) {
            return;
        }
        self.note(|| format!("n{} is told to stop", node + 1));
        self.nodes[node].state = NodeState::Stopping;
        for seat in self.seats_of(node) {
            self.input_later(1, seat, Input::Shutdown);
        }
        let life = self.nodes[node].process;
        self.schedule(STOP_US, Happening::StopOver { node, life });
    }

    /// Whether a shard of the node re-reads its disk.
    fn shards_are_busy(&self, node: usize) -> bool {
        self.running(node).any(|shard| shard.fencing || shard.engine.is_none())
    }

    /// The shards of a node that run when it does.
    fn running(&self, node: usize) -> impl Iterator<Item = &Shard> {
        let node = &self.nodes[node];
        node.shards.iter().take(node.count)
    }

    /// A stop is done when all shards have stopped.
    pub(crate) fn look_at_stop(&mut self, node: usize) {
        let stops = self.nodes[node].state == NodeState::Stopping;
        if !stops || !self.running(node).all(|shard| shard.stopped) {
            return;
        }
        self.stopped(node);
    }

    fn stopped(&mut self, node: usize) {
        self.crash(node, FaultKind::CleanStop);
        let down_us = self.rng.magnitude(1_000, self.config.troubles.down_us);
        self.schedule(down_us, Happening::Start { node, attempt: 0 });
    }

    /// The time for a stop is over.
    pub(crate) fn stop_over(&mut self, node: usize, life: u64) {
        if self.nodes[node].process != life || self.nodes[node].state != NodeState::Stopping {
            return;
        }
        let plan = if self.nodes[node].lies { &self.config.disks.lying } else { &self.config.disks.honest };
        if plan.is_quiet() && !self.nodes[node].lies {
            return self.fail(format!("n{} does not stop on a disk without errors", node + 1));
        }
        self.stopped(node);
    }

    /// Journal files that were begun again, on the disks that are there.
    pub(crate) fn recycled(&self) -> u64 {
        self.nodes.iter().flat_map(|node| &node.shards).map(|shard| shard.disk.tracker.recycled).sum()
    }

    /// Adds up what an engine has done.
    pub(crate) fn count_engine(&mut self, seat: Seat) {
        let Some(engine) = &self.shard(seat).engine else { return };
        let counters = engine.status().counters;
        self.coverage.commits += counters.commits;
        self.coverage.checkpoints += counters.checkpoints;
        self.coverage.cold_reads += counters.cache_misses;
        self.coverage.duplicates += counters.duplicates;
    }
}
