//! What goes wrong by the clock: links, ways between nodes, nodes, clocks, and disks that rot or fill up.

use super::faults::ClusterFault;
use pyralog_shard::engine::PeerId;

use super::config::ClusterConfig;
use super::world::{Happening, NodeState, World};
use crate::faults::FaultKind;

/// Something that goes wrong, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Break,
    OneWay,
    Partition,
    Mend(u64),
    SlowLink,
    SlowLinkOver(usize, usize),
    Crash,
    /// A crash that had to wait.
    CrashOf(usize),
    Stop,
    Pause,
    ClockJump,
    Rot(usize),
    DiskFull(usize, bool),
    /// Every node's settings name the nodes that come to it.
    Grow,
    /// The next node is upgraded.
    Upgrade,
}

impl World {
    /// Starts the clocks of everything that goes wrong in this life.
    pub(crate) fn begin_troubles(&mut self) {
        for trouble in [
            Trouble::Break,
            Trouble::OneWay,
            Trouble::Partition,
            Trouble::SlowLink,
            Trouble::Crash,
            Trouble::Stop,
            Trouble::Pause,
            Trouble::ClockJump,
        ] {
            self.again(trouble);
        }
        for node in 0..self.config.nodes {
            self.again(Trouble::Rot(node));
            self.again(Trouble::DiskFull(node, true));
        }
    }

    /// Mean time between two of a kind; 0 = never.
    fn every_us(&self, trouble: Trouble) -> u64 {
        let troubles = &self.config.troubles;
        let disk = |node: usize| match self.nodes[node].lies {
            true => &self.config.disks.lying,
            false => &self.config.disks.honest,
        };
        match trouble {
            Trouble::Break => troubles.break_every_us,
            Trouble::OneWay => troubles.one_way_every_us,
            Trouble::Partition => troubles.partition_every_us,
            Trouble::SlowLink => troubles.slow_every_us,
            Trouble::Crash => troubles.crash_every_us,
            Trouble::Stop => troubles.stop_every_us,
            Trouble::Pause => troubles.pause_every_us,
            Trouble::ClockJump => troubles.jump_every_us,
            Trouble::Rot(node) => disk(node).rot_every_us,
            Trouble::DiskFull(node, _) => disk(node).full_every_us,
            Trouble::Mend(_)
            | Trouble::SlowLinkOver(..)
            | Trouble::CrashOf(_)
            | Trouble::Grow
            | Trouble::Upgrade => 0,
        }
    }

    fn again(&mut self, trouble: Trouble) {
        let every_us = self.every_us(trouble);
        if every_us > 0 && !self.closing {
            let delay = self.rng.range(1, every_us * 2);
            self.schedule(delay, Happening::Trouble(trouble));
        }
    }

    /// It happens. What begins after the end of all faults does nothing.
    pub(crate) fn trouble(&mut self, trouble: Trouble) {
        if self.closing {
            return;
        }
        match trouble {
            Trouble::Break => self.break_one(),
            Trouble::OneWay => {
                let (from, to) = self.two_nodes();
                self.cut_ways(ClusterFault::OneWay, vec![(from, to)]);
            }
            Trouble::Partition => self.partition(),
            Trouble::Mend(number) => self.mend(number),
            Trouble::SlowLink => {
                let (from, to) = self.two_nodes();
                let extra_us = self.rng.magnitude(1_000, 300_000);
                self.note(|| format!("way from n{} to n{} slower by {extra_us}", from + 1, to + 1));
                self.counts.add(ClusterFault::SlowLink);
                self.slow_down(from, to, extra_us);
                let delay = self.rng.magnitude(10_000, 2_000_000);
                self.schedule(delay, Happening::Trouble(Trouble::SlowLinkOver(from, to)));
            }
            Trouble::SlowLinkOver(from, to) => self.slow_down(from, to, 0),
            Trouble::Crash => self.some_crash(),
            Trouble::CrashOf(node) => return self.crash_soon(node),
            Trouble::Stop => {
                if let Some(node) = self.some_node() {
                    self.stop(node);
                }
            }
            Trouble::Grow => return self.grow(),
            Trouble::Upgrade => return self.upgrade_step(),
            Trouble::Pause => self.pause_one(),
            Trouble::ClockJump => {
                let jump_ms = self.rng.magnitude(1, 5_000_000) as i64;
                let jump_ms = if self.rng.percent(50) { jump_ms } else { -jump_ms };
                let node = self.rng.below(self.config.nodes as u64) as usize;
                self.nodes[node].wall_offset_ms += jump_ms;
                self.node_counts.add(FaultKind::ClockJump);
            }
            Trouble::Rot(node) => {
                if self.nodes[node].state == NodeState::Up {
                    let shard = self.rng.below(self.nodes[node].count as u64) as usize;
                    self.nodes[node].shards[shard].disk.rot();
                }
            }
            Trouble::DiskFull(node, full) => {
                self.note(|| format!("disk of n{} full: {full}", node + 1));
                self.nodes[node].shards.iter_mut().for_each(|shard| shard.disk.full = full);
                if full {
                    let delay = self.rng.magnitude(1_000, 2_000_000);
                    let over = Trouble::DiskFull(node, false);
                    return self.schedule(delay, Happening::Trouble(over));
                }
                return self.again(Trouble::DiskFull(node, true));
            }
        }
        self.again(trouble);
    }

    /// An operator names all nodes in the settings of each, restarts those that are there, one after the other, and starts the new ones
    /// in the midst of it.
    fn grow(&mut self) {
        self.note(|| "nodes are added".into());
        let all = self.config.nodes;
        let named: Vec<PeerId> = (0..all).map(|node| ClusterConfig::peer(node, 0)).collect();
        for shard in self.nodes.iter_mut().flat_map(|node| &mut node.shards) {
            shard.config.metadata_replicas.clone_from(&named);
        }
        let most_us = self.config.active_us / 4;
        for node in 0..all {
            let delay = self.rng.range(1, most_us);
            let what = match node < self.config.first_nodes {
                true => Happening::Trouble(Trouble::CrashOf(node)),
                false => Happening::Start { node, attempt: 0 },
            };
            self.schedule(delay, what);
        }
    }

    fn two_nodes(&mut self) -> (usize, usize) {
        let nodes = self.config.nodes as u64;
        let from = self.rng.below(nodes);
        let to = (from + 1 + self.rng.below(nodes - 1)) % nodes;
        (from as usize, to as usize)
    }

    /// A node that runs, more often one that leads something.
    fn some_node(&mut self) -> Option<usize> {
        let up: Vec<usize> =
            (0..self.config.nodes).filter(|node| self.nodes[*node].state == NodeState::Up).collect();
        let leading: Vec<usize> = up
            .iter()
            .copied()
            .filter(|node| self.seats().any(|seat| seat.node == *node && self.leads(seat)))
            .collect();
        let choice = if !leading.is_empty() && self.rng.percent(50) { leading } else { up };
        (!choice.is_empty()).then(|| self.rng.pick(&choice))
    }

    fn some_crash(&mut self) {
        if self.rng.percent(self.config.troubles.power_cut_percent) {
            self.note(|| "power cut".into());
            self.counts.add(ClusterFault::PowerCut);
            (0..self.config.nodes).for_each(|node| self.crash_soon(node));
        } else if let Some(node) = self.some_node() {
            self.crash_soon(node);
        }
    }

    fn pause_one(&mut self) {
        if let Some(node) = self.some_node() {
            let pause_us = self.rng.magnitude(1_000, self.config.troubles.pause_us);
            self.note(|| format!("n{} pauses for {pause_us}", node + 1));
            self.counts.add(ClusterFault::Pause);
            self.nodes[node].paused_until_us = self.now_us + pause_us;
        }
    }

    /// Divides the nodes into two parts that do not hear each other.
    fn partition(&mut self) {
        let side: Vec<bool> = (0..self.config.nodes).map(|_| self.rng.percent(50)).collect();
        let apart = |from: usize, to: usize| side.get(from) != side.get(to);
        let nodes = self.config.nodes;
        let ways: Vec<(usize, usize)> = (0..nodes)
            .flat_map(|from| (0..nodes).map(move |to| (from, to)))
            .filter(|(from, to)| apart(*from, *to))
            .collect();
        if !ways.is_empty() {
            self.cut_ways(ClusterFault::Partition, ways);
        }
    }

    fn cut_ways(&mut self, kind: ClusterFault, ways: Vec<(usize, usize)>) {
        self.note(|| format!("{}: nothing passes on {ways:?} (from 0)", kind.name()));
        self.counts.add(kind);
        let number = self.cut(ways);
        let delay = self.rng.magnitude(10_000, self.config.troubles.cut_us);
        self.schedule(delay, Happening::Trouble(Trouble::Mend(number)));
    }
}
