//! A shard that stops hands its leaderships to others first, so that nobody waits for an election: each group that it
//! leads is given to the follower that has most of it, which takes over as soon as it has all. What can't be handed over
//! in time, or to nobody, is left to an election.

use super::replica::Replica;
use super::{Engine, Mode};

/// Shortest and longest of what a stop waits for its leaderships to go, microseconds: some heartbeats, and less than
/// anybody notices at a stop.
const WAIT_US: (u64, u64) = (500_000, 5_000_000);

impl Engine {
    /// Begins to hand over what this shard leads. False: there is nothing, or nobody to take it.
    pub(super) fn begin_hand_over(&mut self) -> bool {
        let now_us = self.now.monotonic_us;
        let mut any = false;
        for index in 0..self.partitions.len() as u32 {
            let Some(heir) = self.heir(index) else { continue };
            if let Some(replica) = self.raft_mut(index) {
                replica.hand_over(heir, now_us);
            }
            self.queue_group(index);
            any = true;
        }
        if any {
            let wait_us = (2 * self.config.election.election_max_us).clamp(WAIT_US.0, WAIT_US.1);
            self.hand_over_until_us = Some(now_us + wait_us);
        }
        any
    }

    /// Goes on with the stop when nothing is led here any more that somebody else could lead, or the time is over.
    pub(super) fn hand_over_step(&mut self) {
        let Some(until_us) = self.hand_over_until_us else { return };
        let late = self.now.monotonic_us >= until_us;
        if self.mode != Mode::Stopping {
            self.hand_over_until_us = None;
            return;
        }
        let unled = |index| self.heir(index).is_some() || self.is_leaderless(index);
        if !late && (0..self.partitions.len() as u32).any(unled) {
            return;
        }
        self.hand_over_until_us = None;
        for partition in self.partitions.iter_mut().flatten() {
            if let Replica::Raft(replica) = &mut partition.replica
                && replica.raft.is_leader()
            {
                replica.keep_leading();
            }
        }
        self.flush_for_shutdown();
    }

    /// Whether the group has lost its leader, this one, and not heard of another yet.
    fn is_leaderless(&self, index: u32) -> bool {
        let replica = self.at(index).and_then(|partition| partition.replica.raft());
        replica.is_some_and(|replica| replica.raft.leader().is_none())
    }

    /// Who takes a group over that this shard leads: of the followers that can be reached, the one that has most.
    pub(super) fn heir(&self, index: u32) -> Option<u32> {
        let replica = self.at(index)?.replica.raft().filter(|replica| replica.raft.is_leader())?;
        let others =
            replica.raft.configuration().voters().iter().filter_map(|voter| replica.member(voter.node));
        let reached = others.filter(|peer| peer.node != self.config.node && self.is_linked(*peer));
        reached.map(|peer| peer.node.0).max_by_key(|node| replica.raft.matched_of(*node))
    }
}
