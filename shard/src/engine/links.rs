//! Which shards of other nodes can be reached: as the driver tells it, since when, and how often that changed.

use std::collections::BTreeMap;

use super::api::PeerId;
use super::status::PeerStatus;

/// A node that could not be reached for so long is down, microseconds: longer than it takes a link to come back, and
/// than an election.
const DOWN_US: u64 = 3_000_000;

/// The links of a shard.
#[derive(Debug, Default)]
pub(super) struct LinkTable {
    /// Those that were asked for last, in order.
    wanted: Vec<PeerId>,
    /// Those that are up, and since when.
    up: BTreeMap<PeerId, u64>,
    /// Those that are wanted and down, and since when.
    down: BTreeMap<PeerId, u64>,
    /// By node: how often one came up, and how often one went down.
    changes: BTreeMap<u32, (u64, u64)>,
}

impl LinkTable {
    /// These are wanted, in order and each once. False: nothing has changed.
    pub(super) fn want(&mut self, wanted: &[PeerId], now_us: u64) -> bool {
        if wanted == self.wanted {
            return false;
        }
        self.wanted.clear();
        self.wanted.extend_from_slice(wanted);
        self.down.retain(|peer, _| wanted.binary_search(peer).is_ok());
        for peer in wanted.iter().filter(|peer| !self.up.contains_key(peer)) {
            self.down.entry(*peer).or_insert(now_us);
        }
        true
    }

    pub(super) fn came_up(&mut self, peer: PeerId, now_us: u64) {
        self.down.remove(&peer);
        self.up.insert(peer, now_us);
        let (ups, _) = self.changes.entry(peer.node.0).or_default();
        *ups += 1;
    }

    pub(super) fn went_down(&mut self, peer: PeerId, now_us: u64) {
        if self.up.remove(&peer).is_none() {
            return;
        }
        let (_, downs) = self.changes.entry(peer.node.0).or_default();
        *downs += 1;
        if self.wanted.binary_search(&peer).is_ok() {
            self.down.insert(peer, now_us);
        }
    }

    pub(super) fn is_wanted(&self, peer: PeerId) -> bool {
        self.wanted.binary_search(&peer).is_ok()
    }

    pub(super) fn is_up(&self, peer: PeerId) -> bool {
        self.up.contains_key(&peer)
    }

    pub(super) fn up_since_us(&self, peer: PeerId) -> Option<u64> {
        self.up.get(&peer).copied()
    }

    /// Those that are up.
    pub(super) fn up(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.up.keys().copied()
    }

    /// Nodes of which no link that is wanted has been up for a while.
    pub(super) fn down_nodes(&self, now_us: u64) -> Vec<u32> {
        let down = self.status(now_us).into_iter();
        down.filter(|peer| peer.links_up == 0 && peer.down_us >= DOWN_US).map(|peer| peer.node).collect()
    }

    /// What is wanted of each other node, in the order of their ids.
    pub(super) fn status(&self, now_us: u64) -> Vec<PeerStatus> {
        let mut nodes = BTreeMap::<u32, PeerStatus>::new();
        for peer in &self.wanted {
            let status = nodes.entry(peer.node.0).or_default();
            status.links += 1;
            status.links_up += u32::from(self.up.contains_key(peer));
            let down_us = self.down.get(peer).map_or(0, |since_us| now_us.saturating_sub(*since_us).max(1));
            status.down_us = status.down_us.max(down_us);
        }
        let with_changes = nodes.into_iter().map(|(node, status)| {
            let (ups, downs) = self.changes.get(&node).copied().unwrap_or_default();
            PeerStatus { node, ups, downs, ..status }
        });
        with_changes.collect()
    }
}

#[cfg(test)]
mod tests {
    use pyralog_core::{NodeId, ShardId};

    use super::*;

    #[test]
    fn a_link_is_down_from_when_it_is_wanted_or_lost_until_it_is_up() {
        let peer = |node, shard| PeerId { node: NodeId(node), shard: ShardId(shard) };
        let mut links = LinkTable::default();
        assert!(links.want(&[peer(2, 0), peer(2, 1), peer(3, 0)], 100));
        assert!(!links.want(&[peer(2, 0), peer(2, 1), peer(3, 0)], 200));
        links.came_up(peer(2, 0), 300);
        links.came_up(peer(3, 0), 300);
        let of = |node, links, links_up, down_us, ups, downs| PeerStatus {
            node,
            links,
            links_up,
            down_us,
            ups,
            downs,
        };
        assert_eq!(links.status(400), [of(2, 2, 1, 300, 1, 0), of(3, 1, 1, 0, 1, 0)]);
        links.went_down(peer(3, 0), 500);
        links.went_down(peer(3, 0), 600);
        links.came_up(peer(2, 1), 700);
        assert_eq!(links.status(800), [of(2, 2, 2, 0, 2, 0), of(3, 1, 0, 300, 1, 1)]);
        assert!(links.down_nodes(500 + DOWN_US - 1).is_empty());
        assert_eq!(links.down_nodes(500 + DOWN_US), [3]);
        // What is not wanted any more is not missed.
        assert!(links.want(&[peer(2, 0)], 900));
        assert_eq!(links.status(900), [of(2, 1, 1, 0, 2, 0)]);
    }
}
