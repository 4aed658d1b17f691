//! Which replicas of this shard take part in their groups, with whom they begin, and which links that takes.
//!
//! Who the replicas of a group are its own log says. The catalogue says with whom a replica begins whose disk does not know, where a
//! group's replicas are wanted, and which shards are to be reached for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyralog_core::{GroupId, NodeId, Quorums, ShardId};
use pyralog_replication::metadata::{Catalog, Replica as Place};
use pyralog_replication::raft::{Configuration, GroupConfig, RaftGroup, Refused};

use super::api::{Leadership, PeerId};
use super::forced;
use super::lag::Progress;
use super::partition::Partition;
use super::replica::{RaftReplica, Replica, Unplaced};
use super::{Action, Engine, LogLevel};

/// With whom a replica begins, and term and index of an entry that was committed before it was made.
type Beginning = (Configuration, (u32, u64));

impl Engine {
    /// Makes every group of which the catalogue names several replicas take part, and asks for the links it needs.
    pub(super) fn place_groups(&mut self, catalog: &Arc<Catalog>, actions: &mut Vec<Action>) {
        let groups: Vec<GroupId> = self.each_partition().map(|partition| partition.group).collect();
        for group in groups {
            self.place_in(catalog, group, actions);
            self.note_move(catalog, group);
        }
        // All of them: another shard may have begun anew.
        let known = self.each_partition().filter_map(|partition| {
            let (node, epoch) = match &partition.replica {
                // Damage keeps it from becoming a group, and what is left is read here.
                Replica::Single(_) if catalog.is_group(partition.group) => {
                    (self.config.node.0, partition.replica.epoch())
                }
                Replica::Single(_) => return None,
                Replica::Raft(replica) => replica.told,
                // It hears of nobody.
                Replica::Unplaced(_) => (0, 0),
            };
            Some(Leadership { group: partition.group, node, epoch })
        });
        self.replication.leaders = known.collect();
        self.want_links(catalog, actions);
    }

    /// Asks for links to every shard that holds a replica of a group of this one, or is to hold one.
    pub(super) fn want_links(&mut self, catalog: &Catalog, actions: &mut Vec<Action>) {
        let mut wanted: Vec<PeerId> = Vec::new();
        if self.controller.is_some() {
            wanted.extend(&self.config.metadata_replicas);
            // One that is to come has to be heard, to find out that it is new and to register itself; and one that has come holds the
            // metadata soon.
            let known = catalog.internal_addresses().filter(|(_, address)| !address.is_empty());
            wanted.extend(known.map(|(node, _)| PeerId { node: NodeId(node), shard: ShardId(0) }));
        }
        for partition in self.each_partition() {
            if catalog.is_group(partition.group) {
                wanted.extend(catalog.places(partition.group).map(|place| self.peer_of(place)));
            }
            if let Replica::Raft(replica) = &partition.replica {
                wanted.extend(&replica.members);
            }
        }
        wanted.retain(|peer| peer.node != self.config.node);
        wanted.sort_unstable();
        wanted.dedup();
        let known = catalog.internal_addresses().filter(|(_, address)| !address.is_empty());
        let addresses: BTreeMap<NodeId, String> =
            known.map(|(node, address)| (NodeId(node), address.to_owned())).collect();
        let others = self.replication.links.want(&wanted, self.now.monotonic_us);
        if others || self.replication.addresses != addresses {
            self.replication.addresses.clone_from(&addresses);
            actions.push(Action::WantPeers { peers: wanted, addresses });
        }
    }

    /// Has a replica take part that could not before, if it can now.
    pub(super) fn place_one(&mut self, group: GroupId, actions: &mut Vec<Action>) {
        if group == GroupId::METADATA {
            self.place_metadata(actions);
        } else if let Some(catalog) = self.catalog.clone() {
            self.place_in(&catalog, group, actions);
            self.note_move(&catalog, group);
        }
    }

    fn place_in(&mut self, catalog: &Arc<Catalog>, group: GroupId, actions: &mut Vec<Action>) {
        let Some(quorums) = catalog.quorums(group).filter(|_| catalog.is_group(group)) else { return };
        if let Some(index) = self.find(group)
            && self.is_forced(catalog, index)
        {
            match self.raft_mut(index).is_some() {
                // What it has on its way to the journal comes first.
                true => return self.queue_group(index),
                false => self.force(catalog, index, actions),
            }
        }
        if let Some(index) = self.find(group)
            && let Some(replica) = self.raft_mut(index)
        {
            replica.raft.set_write_quorum(usize::from(quorums.write_quorum));
            replica.min_insync_replicas = usize::from(quorums.min_insync_replicas);
            // With fewer copies somebody may have what was waited for.
            return self.queue_group(index);
        }
        if self.was_damaged_alone(catalog, group, actions) || self.was_alone(catalog, group, actions) {
            return;
        }
        let beginning = self.beginning(catalog, group);
        if let Err(refused) = self.place(group, beginning, quorums) {
            let text = format!("partition {group} can't take part: {refused}");
            actions.push(Action::Log { level: LogLevel::Error, text });
        }
    }

    /// With whom this shard's replica of a group begins on an empty disk.
    pub(super) fn beginning(&self, catalog: &Catalog, group: GroupId) -> Beginning {
        let (known, after) = catalog.begins_with(group);
        (known.joined_by(self.own_place(catalog, group)), after)
    }

    /// Where this node's replica of a group is.
    pub(super) fn own_place(&self, catalog: &Catalog, group: GroupId) -> Place {
        let node = self.config.node.0;
        // One that is on its way out is in a slot that nobody knows any more.
        Place { node, shard: catalog.wanted_slot(node, group).unwrap_or(self.config.shard.0) }
    }

    /// A checkpoint is durable: replicas that waited for it take part.
    pub(super) fn place_again(&mut self, actions: &mut Vec<Action>) {
        let waits = |partition: &Partition| {
            partition.place_after_seq > 0 && matches!(partition.replica, Replica::Unplaced(_))
        };
        if self.each_partition().any(waits) {
            self.place_all(actions);
        }
    }

    /// Has every replica take part that can.
    fn place_all(&mut self, actions: &mut Vec<Action>) {
        self.place_metadata(actions);
        if let Some(catalog) = self.catalog.clone() {
            self.place_groups(&catalog, actions);
        }
    }

    /// Makes the metadata group one of several replicas, if the configuration names others. False: this node is alone.
    pub(super) fn place_metadata(&mut self, actions: &mut Vec<Action>) -> bool {
        if self.controller.is_none() || !self.config.is_clustered() {
            return false;
        }
        if !self.found_metadata(actions) {
            return true;
        }
        // A majority of the voters that there are, however many the settings name.
        let quorums = Quorums { write_quorum: 1, min_insync_replicas: 1, ..Quorums::UNSET };
        let named = self.config.metadata_replicas.iter();
        let founders = Configuration::of(named.map(|peer| Place { node: peer.node.0, shard: 0 }));
        if let Err(refused) = self.place(GroupId::METADATA, (founders, (0, 0)), quorums) {
            let text = format!("this node can't take part in the metadata group: {refused}");
            actions.push(Action::Log { level: LogLevel::Error, text });
        }
        if let Some(catalog) = self.catalog.clone() {
            self.note_move(&catalog, GroupId::METADATA);
        }
        let high_watermark = self.find(GroupId::METADATA).and_then(|index| self.at(index));
        let high_watermark = high_watermark.map_or(0, |partition| partition.replica.high_watermark());
        self.metadata_committed(high_watermark, actions);
        self.publish_catalog(actions);
        self.register_due_us = Some(self.now.monotonic_us);
        true
    }

    fn place(&mut self, group: GroupId, beginning: Beginning, quorums: Quorums) -> Result<(), Refused> {
        let now_us = self.now.monotonic_us;
        let (id, timing) = (self.config.node.0, self.config.election);
        let life = self.journal.incarnation().rotate_left(32);
        let Some(index) = self.find(group) else { return Ok(()) };
        let newest_seq = self.flush.checkpoint_seq();
        let Some(partition) = self.at_mut(index).filter(|p| p.place_after_seq <= newest_seq) else {
            return Ok(());
        };
        // The group was written to by nobody yet when nothing of it is on the disk.
        let Some(unplaced) = partition.replica.unplaced_mut() else { return Ok(()) };
        let newest = unplaced.newest_configuration();
        let known = if newest.is_unknown() { beginning.0.clone() } else { newest.clone() };
        // Who has the metadata its settings say, until somebody says it who knows.
        let guessed = group == GroupId::METADATA && newest.is_unknown();
        let Some(begin) = self.begins(index, [&known, &beginning.0], guessed) else { return Ok(()) };
        let own = known.place(id).or_else(|| beginning.0.place(id));
        let shards = &self.replication.shards;
        let slot = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut);
        let Some(partition) = slot.filter(|partition| !partition.end_unknown) else { return Ok(()) };
        let told = partition.told_by_others().zip(own).map(|(told, own)| told.joined_by(own));
        let Some(unplaced) = partition.replica.unplaced_mut() else { return Ok(()) };
        let Unplaced { mut log, lsns, .. } = std::mem::take(unplaced);
        log.hard = begin.hard_state(log.hard, id);
        let flushed = log.start;
        if log.configuration.is_unknown() {
            (log.configuration, log.made_after) = beginning;
        }
        forced::override_older(&mut log);
        // What it has lost the others know, and entries that would say it may be before those that it will be sent.
        if let Some(told) = told.filter(|told| guessed || told.version() > log.configuration.version()) {
            log.configuration = told;
        }
        let seed = u64::from(group.topic.0) << 32
            ^ u64::from(group.partition)
            ^ life
            ^ u64::from(id).rotate_left(48);
        let write_quorum = usize::from(quorums.write_quorum);
        let config = GroupConfig { group, id, write_quorum, timing, seed };
        let raft = RaftGroup::new(config, log, now_us);
        // Its log is gone with that: it must not be taken for an empty one.
        let mut raft = raft.inspect_err(|_| partition.end_unknown = true)?;
        raft.set_votes(begin.votes());
        let members: Vec<PeerId> = raft.configuration().members().map(|member| shards.peer(member)).collect();
        partition.replica = Replica::Raft(Box::new(RaftReplica {
            high_watermark: raft.high_watermark(),
            acknowledged: 0,
            changes: raft.changes(),
            raft,
            progress: vec![Progress::begun(0, now_us); members.len()],
            members,
            strangers: Vec::new(),
            min_insync_replicas: usize::from(quorums.min_insync_replicas),
            lsns,
            flushed,
            catch_up: None,
            laid: Default::default(),
            waiting: Default::default(),
            led: false,
            handing_over: false,
            told: (0, 0),
            moves: None,
            queued: false,
            timer_us: u64::MAX,
            active_us: now_us,
        }));
        let up: Vec<PeerId> = self.replication.links.up().collect();
        if let Some(replica) = self.raft_mut(index) {
            for peer in up.iter().filter(|peer| replica.members.contains(peer)) {
                replica.raft.peer_restarted(peer.node.0, now_us);
            }
        }
        self.recount_uncommitted(index);
        self.queue_group(index);
        Ok(())
    }
}
