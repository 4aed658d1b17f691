//! Leaders go home: a replica that took over for another hands back to the preferred one, the first of the assignment, when
//! that has been reachable and complete for a while. A few at a time, so that a node that comes back is not stormed.

use pyralog_core::{GroupId, NodeId};
use pyralog_replication::placement::{Leadership, rebalance};

use super::{Engine, Mode};

/// How often leaderships are handed back, microseconds, and how many at most each time.
const EVERY_US: u64 = 1_000_000;
const AT_ONCE: usize = 4;
/// A node that comes back is reachable for so long before it leads again, microseconds: it has other things to do first,
/// and may not stay.
const SETTLED_US: u64 = 5_000_000;

/// Leaderships that are not where they should be.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// When to look next; `None` = everything was in its place.
    due_us: Option<u64>,
    /// Hand-overs under way, by partition, and when to give them up: no writes are taken meanwhile.
    under_way: Vec<(u32, u64)>,
}

impl Balance {
    pub(super) fn deadline_us(&self) -> Option<u64> {
        self.under_way.iter().map(|(_, until_us)| *until_us).chain(self.due_us).min()
    }
}

impl Engine {
    /// Something has changed in who leads or who can be reached.
    pub(super) fn plan_balance(&mut self) {
        self.balance.due_us.get_or_insert(self.now.monotonic_us + EVERY_US);
    }

    pub(super) fn tick_balance(&mut self) {
        let now_us = self.now.monotonic_us;
        let mut under_way = std::mem::take(&mut self.balance.under_way);
        under_way.retain(|(index, until_us)| {
            let leads = self.raft_mut(*index).filter(|replica| replica.raft.is_leader());
            match leads {
                Some(replica) if *until_us <= now_us => {
                    replica.keep_leading();
                    false
                }
                leads => leads.is_some(),
            }
        });
        self.balance.under_way = under_way;
        if self.balance.due_us.is_some_and(|due_us| due_us <= now_us) && self.mode == Mode::Serving {
            self.balance.due_us = None;
            self.hand_back();
        }
    }

    fn hand_back(&mut self) {
        let now_us = self.now.monotonic_us;
        let known: Vec<Leadership> =
            self.leaders.keys().filter_map(|group| self.leadership(*group)).collect();
        let own = self.config.node;
        if !known.iter().any(|known| known.leader == own && self.may_go_home(known)) {
            return;
        }
        self.balance.due_us = Some(now_us + EVERY_US);
        for (group, node) in rebalance(&known, AT_ONCE) {
            if let Some(index) = self.find(group) {
                self.give_away(index, node.0);
            }
        }
    }

    /// Hands a leadership over; it is kept if nobody takes it in time.
    pub(super) fn give_away(&mut self, index: u32, node: u32) {
        let now_us = self.now.monotonic_us;
        let until_us = now_us + self.config.election.election_min_us;
        if let Some(replica) = self.raft_mut(index) {
            replica.hand_over(node, now_us);
            self.balance.under_way.push((index, until_us));
        }
        self.queue_group(index);
    }

    /// Whether this shard leads in place of somebody who can be reached.
    fn may_go_home(&self, known: &Leadership) -> bool {
        let home = self.raft_of(known.group).and_then(|replica| replica.member(known.preferred.0));
        known.leader != known.preferred && home.is_some_and(|peer| self.is_linked(peer))
    }

    fn leadership(&self, group: GroupId) -> Option<Leadership> {
        let told = self.leaders.get(&group).filter(|told| told.node != 0 && group != GroupId::METADATA)?;
        // Where one that is on its way is to be led is not known before it is there.
        let catalog = self.catalog.as_ref().filter(|catalog| !catalog.moves.contains_key(&group))?;
        let preferred = catalog.replicas(group).next()?.node;
        let mut known =
            Leadership { group, leader: NodeId(told.node), preferred: NodeId(preferred), ready: false };
        // Only the shard that leads it hands it over.
        if let Some(replica) = self.raft_of(group).filter(|replica| replica.raft.is_leader()) {
            let since_us = replica.member(preferred).and_then(|peer| self.linked_since_us(peer));
            let settled = since_us.is_some_and(|us| self.now.monotonic_us.saturating_sub(us) >= SETTLED_US);
            known.ready = settled && replica.raft.matched_of(preferred) >= replica.raft.commit();
        }
        Some(known)
    }
}
