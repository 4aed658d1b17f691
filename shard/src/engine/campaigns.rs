//! How many groups of a shard campaign at once.
//!
//! Thousands of groups lose their leader at the same moment when a node dies or all of them are created. If each
//! campaigned when its own timer says, their votes would come later than the next round of campaigns, and nobody would
//! ever be elected. So only a few campaign at a time, and the next one begins when one has ended: as many a second as the
//! cores and disks of the cluster can do.

use std::collections::VecDeque;

use pyralog_replication::metadata::Replica as Place;
use pyralog_replication::raft::Role;

use super::Engine;
use super::replica::RaftReplica;

/// Groups of a shard that campaign at once: enough to fill a frame and a group commit, few enough that all of them are
/// through in a small part of the shortest election timeout.
const CAMPAIGNS: usize = 64;

/// Who campaigns, and who would.
#[derive(Debug, Default)]
pub(super) struct Campaigns {
    /// Groups that were let through; those that have ended are found when others wait.
    under_way: Vec<u32>,
    /// Groups whose time has come, in that order.
    waiting: VecDeque<u32>,
}

impl Engine {
    /// Whether the group may do now what its timer says. One that would campaign and may not is remembered, and has its
    /// turn when another has ended.
    pub(super) fn lets_campaign(&mut self, index: u32) -> bool {
        let now_us = self.now.monotonic_us;
        let Some(replica) = self.raft_of_index(index).filter(|replica| replica.raft.would_campaign(now_us))
        else {
            return true;
        };
        // Without a majority nobody answers: that costs nothing, and the group learns that nobody leads it.
        let reached = |voter: &&Place| {
            voter.node == self.config.node.0
                || replica.member(voter.node).is_some_and(|peer| self.is_linked(peer))
        };
        let mut halves = replica.raft.configuration().halves();
        let reaches_majority = halves.all(|half| half.iter().filter(reached).count() > half.len() / 2);
        drop(halves);
        if !reaches_majority {
            return true;
        }
        let campaigns = &mut self.replication.campaigns;
        // Its last campaign has come to nothing: the others first.
        campaigns.under_way.retain(|other| *other != index);
        if campaigns.waiting.is_empty() && campaigns.under_way.len() < CAMPAIGNS {
            campaigns.under_way.push(index);
            return true;
        }
        if !campaigns.waiting.contains(&index) {
            campaigns.waiting.push_back(index);
        }
        false
    }

    /// Begins the next campaigns in the place of those that have ended. False: there are none.
    pub(super) fn begin_campaigns(&mut self) -> bool {
        if self.replication.campaigns.waiting.is_empty() {
            return false;
        }
        let now_us = self.now.monotonic_us;
        let mut under_way = std::mem::take(&mut self.replication.campaigns.under_way);
        under_way.retain(|index| {
            self.raft_of_index(*index).is_some_and(|replica| replica.raft.role() == Role::Candidate)
        });
        let mut begun = false;
        while under_way.len() < CAMPAIGNS
            && let Some(index) = self.replication.campaigns.waiting.pop_front()
        {
            let Some(replica) = self.raft_mut(index) else { continue };
            // It may have heard of a leader meanwhile.
            if replica.raft.would_campaign(now_us) {
                replica.raft.tick(now_us);
                under_way.push(index);
            }
            self.queue_group(index);
            begun = true;
        }
        self.replication.campaigns.under_way = under_way;
        begun
    }

    fn raft_of_index(&self, index: u32) -> Option<&RaftReplica> {
        self.at(index)?.replica.raft()
    }
}
