//! Which faults the network, the nodes and the disks of a cluster have, how often, and a count of those that happened.

use crate::faults::{FaultPlan, kinds};
use crate::rng::Rng;

kinds! {
    ClusterFault, ClusterFaultCounts;
    /// A link broken; what was in flight may be lost.
    Break = "break";
    /// Two nodes of which one can't send to the other.
    OneWay = "one-way";
    /// The nodes divided into two halves that do not hear each other.
    Partition = "partition";
    /// A way between two nodes that is slow for a while.
    SlowLink = "slow-link";
    /// A frame dropped because too much waited before it.
    Drop = "drop";
    /// A node that does nothing for a while.
    Pause = "pause";
    /// A crash of a node that led some group.
    LeaderCrash = "leader-crash";
    /// All nodes crashed at once.
    PowerCut = "power-cut";
    /// A lying disk exchanged for an empty one.
    BlankDisk = "blank-disk";
    /// A node that stays out because its disk has lost its newest writes without a trace.
    TakenOut = "taken-out";
    /// A node that refused to start from a disk that had lied.
    Refused = "refused";
    /// A node that comes back as one of the next release.
    Upgrade = "upgrade";
    /// One that goes back to the release before.
    Downgrade = "downgrade";
    /// A node that comes back with another number of shards.
    OtherShards = "other-shards";
    /// One of which the power went while its partitions went to other shards.
    OtherShardsCut = "other-shards-cut";
}

/// How often the network and the nodes fail in this life: mean virtual times between faults in microseconds, 0 = never.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    /// Between broken links.
    pub break_every_us: u64,
    /// Between cuts in one direction.
    pub one_way_every_us: u64,
    /// Between partitions.
    pub partition_every_us: u64,
    /// Longest time that a cut or a partition lasts.
    pub cut_us: u64,
    /// Between spells of a slow way.
    pub slow_every_us: u64,
    /// Frames dropped: once in so many, 0 = never.
    pub drop: u64,
    /// Between crashes of a node.
    pub crash_every_us: u64,
    /// Of a hundred crashes so many take all nodes.
    pub power_cut_percent: u64,
    /// Between stops of a node in good order.
    pub stop_every_us: u64,
    /// Longest time that a node is down.
    pub down_us: u64,
    /// Between pauses of a node.
    pub pause_every_us: u64,
    /// Longest pause.
    pub pause_us: u64,
    /// Between jumps of a node's wall clock.
    pub jump_every_us: u64,
    /// Client steps at which a connection breaks: once in so many, 0 = never.
    pub disconnect: u64,
}

impl Troubles {
    /// What a life has of them. Each is on or off by itself.
    pub fn draw(rng: &mut Rng) -> Self {
        let often = Rng::often;
        Self {
            break_every_us: often(rng, 45, &[50_000, 300_000, 1_500_000]),
            one_way_every_us: often(rng, 35, &[300_000, 1_000_000, 3_000_000]),
            partition_every_us: often(rng, 40, &[300_000, 1_000_000, 3_000_000]),
            cut_us: rng.pick(&[100_000, 600_000, 3_000_000]),
            slow_every_us: often(rng, 30, &[200_000, 1_000_000]),
            drop: often(rng, 30, &[20, 100, 1_000]),
            crash_every_us: often(rng, 60, &[300_000, 1_000_000, 3_000_000]),
            power_cut_percent: often(rng, 40, &[10, 50]),
            stop_every_us: often(rng, 35, &[500_000, 2_000_000]),
            down_us: rng.pick(&[20_000, 300_000, 2_000_000]),
            pause_every_us: often(rng, 35, &[200_000, 1_000_000]),
            pause_us: rng.pick(&[50_000, 400_000, 2_000_000]),
            jump_every_us: often(rng, 25, &[100_000, 500_000]),
            disconnect: often(rng, 40, &[20, 100, 500]),
        }
    }
}

/// The disks of a life.
#[derive(Clone, Debug, Default)]
pub struct Disks {
    /// Nodes whose disks lie, from 0; fewer than half of the replicas of any partition.
    pub liars: Vec<usize>,
    /// What those disks do.
    pub lying: FaultPlan,
    /// What the others do: they fail, but what they said is so.
    pub honest: FaultPlan,
}

impl Disks {
    /// The disks of a cluster of `nodes` in which at most `most_liars` may lie.
    pub fn draw(rng: &mut Rng, nodes: usize, most_liars: usize) -> Self {
        let mut lying = FaultPlan::draw(rng);
        while lying.lies_left == 0 {
            lying = FaultPlan::draw(rng);
        }
        // What matters of a journal is short here: most lies hit what segments have replaced already.
        lying.lies_left *= 4;
        let mut honest = FaultPlan::draw(rng);
        // The clock and the connections of a cluster have their own.
        (lying.jump_every_us, lying.disconnect) = (0, 0);
        (honest.jump_every_us, honest.disconnect) = (0, 0);
        honest.be_honest();
        honest.read_error_lasts = false;
        if rng.percent(60) {
            honest.be_faultless();
        }
        let count = if rng.percent(45) { rng.range(1, most_liars.max(1) as u64) as usize } else { 0 };
        let mut liars: Vec<usize> = (0..nodes).collect();
        while liars.len() > count.min(most_liars) {
            liars.swap_remove(rng.below(liars.len() as u64) as usize);
        }
        liars.sort_unstable();
        if lying.lost == 0 && lying.misdirected == 0 && lying.rot_every_us == 0 {
            lying.rot_every_us = 100_000;
        }
        Self { liars, lying, honest }
    }
}
