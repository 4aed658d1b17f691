//! Which shard of a node a replica is on: nodes may come with another number of shards, and then it is another one.

use std::collections::BTreeMap;

use pyralog_core::{GroupId, NodeId, ShardId};
use pyralog_replication::metadata::{Catalog, Replica as Place, on_shard};

use super::Engine;
use super::api::PeerId;

/// How many shards each node has, as it has registered last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ShardCounts(BTreeMap<u32, u16>);

impl ShardCounts {
    /// The shard of a replica. Of a node that nobody knows every shard is taken to be there.
    pub(super) fn peer(&self, place: Place) -> PeerId {
        let shard = self.0.get(&place.node).map_or(place.shard, |shards| on_shard(place.shard, *shards));
        PeerId { node: NodeId(place.node), shard: ShardId(shard) }
    }
}

impl Engine {
    /// The shard of this node that is to hold a replica of `group`. What this node has registered may be from before a restart.
    pub(super) fn wanted_here(&self, catalog: &Catalog, group: GroupId) -> Option<ShardId> {
        let slot = catalog.wanted_slot(self.config.node.0, group)?;
        Some(ShardId(on_shard(slot, self.config.shards)))
    }

    /// The shard of a replica.
    pub(super) fn peer_of(&self, place: Place) -> PeerId {
        self.replication.shards.peer(place)
    }

    /// Takes notice of how many shards the nodes have: where that has changed, the members of groups are other shards.
    pub(super) fn note_shards(&mut self, catalog: &Catalog) {
        let mut counts: BTreeMap<u32, u16> =
            catalog.nodes.values().map(|node| (node.id, node.shards)).collect();
        counts.insert(self.config.node.0, self.config.shards);
        let counts = ShardCounts(counts);
        if self.replication.shards == counts {
            return;
        }
        self.replication.shards = counts;
        for index in 0..self.partitions.len() as u32 {
            self.note_where_members_are(index);
        }
    }

    fn note_where_members_are(&mut self, index: u32) {
        let now_us = self.now.monotonic_us;
        let Some(replica) = self.at(index).and_then(|partition| partition.replica.raft()) else { return };
        let configuration = replica.raft.configuration();
        let members: Vec<PeerId> = configuration.members().map(|member| self.peer_of(member)).collect();
        // With others than those that it has noted it does so later.
        if members == replica.members || replica.changes != replica.raft.changes() {
            return;
        }
        let moved = members.iter().copied().filter(|member| !replica.members.contains(member));
        let reached: Vec<PeerId> = moved.filter(|member| self.replication.links.is_up(*member)).collect();
        let Some(replica) = self.raft_mut(index) else { return };
        // In the order of the configuration, as before: what is known of their progress stays.
        replica.members = members;
        replica.strangers.clear();
        for member in reached {
            replica.raft.peer_restarted(member.node.0, now_us);
        }
        self.queue_group(index);
    }
}
