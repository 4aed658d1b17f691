//! Partitions whose replicas move to other nodes: what is wanted, and what the groups have become.
//!
//! A move is wanted from [`Command::Reassign`] on. The group's own log takes its replicas there, step by step; when a leader finds that the
//! change is committed and confirmed it says so, and with [`Command::Reassigned`] the new replicas are those of the partition. Only then
//! may a node that holds none of them delete what it has.

use std::collections::BTreeSet;
use std::sync::Arc;

use pyralog_core::limits::{MAX_METADATA_REPLICAS, MAX_REPLICATION_FACTOR};
use pyralog_core::{ErrorCode, GroupId, Quorums};
use rkyv::{Archive, Deserialize, Serialize};

use super::catalog::{Refusal, no_slot};
use super::{Catalog, Load, Replica, Topic};
use crate::raft::{Configuration, MAX_TERM, Step};
use crate::slots::Slots;

/// A partition whose replicas are to be others.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Move {
    /// Where they are wanted, the preferred leader first.
    pub to: Vec<Replica>,
    /// Where they were wanted before that, without having arrived: there may be one still, be it that the group has become that and
    /// nobody has said so.
    pub passed: Vec<Replica>,
    /// For each node of both, ascending, the version of the catalogue that wanted a replica on it first.
    pub since: Vec<(u32, u64)>,
}

impl Move {
    /// Every place that the group may have come to.
    pub(super) fn places(&self) -> impl Iterator<Item = Replica> + '_ {
        self.to.iter().chain(&self.passed).copied()
    }
}

/// What a group's last change has ended with. Groups that nothing has changed have none.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Settled {
    /// Who the replicas are, confirmed.
    pub configuration: Configuration,
    /// Term of an entry that was committed then.
    pub term: u32,
    /// Its index.
    pub index: u64,
    /// For each replica, the version of the catalogue that put it on its node.
    pub placed: Vec<(u32, u64)>,
}

impl Catalog {
    /// The shard of `node` that is to hold a replica of `group`, be it one that is only on its way there, or on its way back.
    pub fn wanted_on(&self, node: u32, group: GroupId) -> Option<u16> {
        Some(self.shard_of(Replica { node, shard: self.wanted_slot(node, group)? }))
    }

    /// The slot of that replica.
    pub fn wanted_slot(&self, node: u32, group: GroupId) -> Option<u16> {
        let coming = || self.coming(group).find(|replica| replica.node == node).map(|replica| replica.shard);
        self.slot_on(node, group).or_else(coming)
    }

    fn coming(&self, group: GroupId) -> impl Iterator<Item = Replica> + '_ {
        self.moves.get(&group).into_iter().flat_map(Move::places)
    }

    /// Where the replicas of `group` are to be, the preferred leader first: where they are, unless it is on its way.
    pub fn wanted(&self, group: GroupId) -> Vec<Replica> {
        match self.moves.get(&group) {
            Some(moving) => moving.to.clone(),
            None => self.replicas(group).collect(),
        }
    }

    /// Who is to hold the metadata when these voters do: those of them that were not removed, and whoever else is registered, as far as
    /// there is room.
    pub fn metadata_wanted(&self, voters: &[Replica]) -> Vec<Replica> {
        let voters = voters.iter().copied().filter(|voter| !self.removed.contains_key(&voter.node));
        let voters: Vec<Replica> = voters.collect();
        let others = self.nodes.keys().filter(|node| !voters.iter().any(|voter| voter.node == **node));
        let others = others.map(|node| Replica { node: *node, shard: 0 });
        voters.iter().copied().chain(others).take(MAX_METADATA_REPLICAS).collect()
    }

    /// Whether a group with this configuration is where the catalogue has it, and the catalogue knows that for sure. A leader may have
    /// gone on with it for a move that was taken back since, or replaced by another one to where it had been.
    pub fn is_settled(&self, group: GroupId, configuration: &Configuration) -> bool {
        if group == GroupId::METADATA {
            let wanted = self.metadata_wanted(configuration.voters());
            return configuration.step_to(&wanted, |_| true) == Step::Done;
        }
        let (settled, _) = self.begins_with(group);
        !self.moves.contains_key(&group) && configuration.version() <= settled.version()
    }

    /// Whether the replicas of `group` are a group with a log of its own, be it that one of them is left: several are, and the only
    /// one becomes it when others are to take its place. It stays one.
    pub fn is_group(&self, group: GroupId) -> bool {
        self.replicas(group).nth(1).is_some()
            || self.moves.contains_key(&group)
            || self.settled.contains_key(&group)
    }

    /// Copies and quorums of `group`: those of its topic, but for the copies that it has now.
    pub fn quorums(&self, group: GroupId) -> Option<Quorums> {
        let topic = self.topics.get(&group.topic.0)?;
        Some(topic.spec.quorums().with_copies(topic.spec.assignment.replicas(group.partition).len() as u8))
    }

    /// Every slot that a replica of `group` is in, or may be about to come to; one may be named twice.
    pub fn places(&self, group: GroupId) -> impl Iterator<Item = Replica> + '_ {
        self.replicas(group).chain(self.coming(group))
    }

    /// With what a replica of `group` on a new disk begins: who the others are, and term and index of an entry that was committed before.
    pub fn begins_with(&self, group: GroupId) -> (Configuration, (u32, u64)) {
        match self.settled.get(&group) {
            Some(settled) => (settled.configuration.clone(), (settled.term, settled.index)),
            None => (Configuration::of(self.replicas(group)), (0, 0)),
        }
    }

    /// Where a replica of `group` goes on each of these nodes: to the slot that has one or waits for one, or to one of the shard
    /// with the fewest replicas. A node that is not registered has no slot but 0, and is refused later.
    pub fn slots_on(&self, group: GroupId, nodes: &[u32]) -> Vec<Replica> {
        let slot = |node: u32| match (self.wanted_slot(node, group), self.nodes.get(&node)) {
            (Some(slot), _) => slot,
            (None, Some(known)) => {
                let coming = self.moves.values().flat_map(Move::places).filter(|to| to.node == node);
                let coming = coming.map(|to| (to.shard, Load { replicas: 1, leaders: 0 }));
                Slots::new(self.feature_level, known.shards, self.loads(node).chain(coming)).take_follower()
            }
            (None, None) => 0,
        };
        nodes.iter().map(|node| Replica { node: *node, shard: slot(*node) }).collect()
    }

    /// Version of the catalogue that put a replica of `group` on `node`; 0 = none did.
    pub(super) fn placed_at(&self, group: GroupId, node: u32) -> u64 {
        let Some(topic) = self.topics.get(&group.topic.0) else { return 0 };
        if topic.spec.assignment.slot_on(node, group.partition).is_none() {
            let since = self.moves.get(&group).into_iter().flat_map(|wanted| &wanted.since);
            return since.clone().find(|(known, _)| *known == node).map_or(0, |(_, version)| *version);
        }
        let settled = self.settled.get(&group).into_iter().flat_map(|settled| &settled.placed);
        settled
            .clone()
            .find(|(known, _)| *known == node)
            .map_or_else(|| self.made(topic, group), |(_, version)| *version)
    }

    pub(super) fn check_reassign(&self, group: GroupId, to: &[Replica]) -> Result<(), Refusal> {
        self.check_places(group, to)?;
        let (has, wanted) = (self.replicas(group).count(), self.factor(group));
        // Where it is it may stay, in whatever order.
        if to.len() != wanted && !self.is_on(group, to) {
            let and_is = if has == wanted { String::new() } else { format!(" and is to have {wanted}") };
            let text = format!("partition {group} has {has} replicas{and_is}, {} nodes are named", to.len());
            return Err((ErrorCode::InvalidRequest, text));
        }
        if !self.moves.contains_key(&group) && self.replicas(group).eq(to.iter().copied()) {
            return Err((ErrorCode::InvalidRequest, format!("partition {group} is on these nodes already")));
        }
        Ok(())
    }

    /// Whether the replicas of `group` could be there.
    fn check_places(&self, group: GroupId, to: &[Replica]) -> Result<(), Refusal> {
        let invalid = |text: String| Err((ErrorCode::InvalidRequest, text));
        if self.replicas(group).next().is_none() {
            return Err((ErrorCode::UnknownTopicOrPartition, format!("no partition {group}")));
        }
        if !(1..=usize::from(MAX_REPLICATION_FACTOR)).contains(&to.len()) {
            return invalid(format!(
                "partition {group} can have 1 to {MAX_REPLICATION_FACTOR} replicas, {} nodes are named",
                to.len()
            ));
        }
        for (at, replica) in to.iter().enumerate() {
            let Some(node) = self.nodes.get(&replica.node) else {
                return invalid(format!("node {} is not registered", replica.node));
            };
            if !self.has_slot(node, replica.shard) {
                return invalid(no_slot(node, replica.shard));
            }
            if to.iter().take(at).any(|other| other.node == replica.node) {
                return invalid(format!("node {} is named twice", replica.node));
            }
            match self.wanted_slot(replica.node, group) {
                Some(slot) if slot != replica.shard => {
                    let text = format!("node {} has partition {group} in slot {slot}", replica.node);
                    return invalid(text);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Replicas that a partition is to have.
    fn factor(&self, group: GroupId) -> usize {
        self.topics.get(&group.topic.0).map_or(0, |topic| usize::from(topic.spec.replication_factor))
    }

    /// Whether these are the replicas of `group`, in whatever order.
    fn is_on(&self, group: GroupId, places: &[Replica]) -> bool {
        places.len() == self.replicas(group).count()
            && places.iter().all(|place| self.replicas(group).any(|known| known == *place))
    }

    /// Whether replicas of `group` may have been wanted there before.
    fn check_passed(&self, group: GroupId, wanted: &Move) -> Result<(), String> {
        let ordered = wanted.passed.is_sorted_by(|a, b| a.node < b.node);
        let there = |place: &Replica| {
            self.nodes.get(&place.node).is_some_and(|node| self.has_slot(node, place.shard))
        };
        let elsewhere = |place: &Replica| {
            let mut others = self.replicas(group).chain(wanted.to.iter().copied());
            others.any(|other| other.node == place.node && other != *place)
        };
        match ordered
            && wanted
                .passed
                .iter()
                .all(|place| there(place) && !elsewhere(place) && !wanted.to.contains(place))
        {
            true => Ok(()),
            false => Err(format!("partition {group} was wanted before where it could not be")),
        }
    }

    /// A move is wanted; another order of the same replicas is all there is to it.
    pub(super) fn reassign(&mut self, group: GroupId, to: &[Replica]) {
        let same = self.is_on(group, to);
        match self.moves.get_mut(&group) {
            Some(wanted) => {
                let before = std::mem::replace(&mut wanted.to, to.to_vec());
                let passed = std::mem::take(&mut wanted.passed).into_iter().chain(before);
                let passed: BTreeSet<Replica> = passed.filter(|place| !to.contains(place)).collect();
                wanted.passed = passed.into_iter().collect();
                wanted.since = since(wanted, self.version);
            }
            None if same => self.put_replicas(group, to),
            None => {
                let mut wanted = Move { to: to.to_vec(), passed: Vec::new(), since: Vec::new() };
                wanted.since = since(&wanted, self.version);
                self.moves.insert(group, wanted);
            }
        }
    }

    pub(super) fn check_reassigned(&self, group: GroupId, said: &Configuration) -> Result<(), Refusal> {
        let invalid = |text: String| Err((ErrorCode::InvalidRequest, text));
        let (before, _) = self.begins_with(group);
        let moving = self.moves.contains_key(&group);
        if before.is_unknown() || !moving && said.version() <= before.version() {
            return invalid(format!("partition {group} is not being moved"));
        }
        if let Err(what) = said.check() {
            return invalid(format!("partition {group}: {what}"));
        }
        // A newer one in any case: a node that was to have a replica, and is not to have one any more, tells by that that it can go.
        let done = said.is_confirmed() && said.learners().is_empty() && said.version() > before.version();
        let wanted = self.wanted(group);
        let there = said.voters().len() == wanted.len()
            && wanted.iter().all(|replica| said.voters().contains(replica));
        match done && there {
            true => Ok(()),
            false => {
                invalid(format!("partition {group}: replicas on nodes {said} are not where they are wanted"))
            }
        }
    }

    /// A group has become what was wanted.
    pub(super) fn reassigned(&mut self, group: GroupId, said: &Configuration, term: u32, index: u64) {
        let placed =
            said.voters().iter().map(|voter| (voter.node, self.placed_at(group, voter.node))).collect();
        self.put_replicas(group, &self.wanted(group));
        self.settled.insert(group, Settled { configuration: said.clone(), term, index, placed });
        self.moves.remove(&group);
    }

    /// Whether one replica of `group` may go on alone. That the others are lost the catalogue can't know.
    pub(super) fn check_force(&self, group: GroupId, to: Replica, term: u32) -> Result<(), Refusal> {
        let invalid = |text: String| Err((ErrorCode::InvalidRequest, text));
        match self.replicas(group).count() {
            0 => return Err((ErrorCode::UnknownTopicOrPartition, format!("no partition {group}"))),
            1 => return invalid(format!("partition {group} has one replica: nothing can go on without it")),
            _ if !self.replicas(group).any(|replica| replica == to) => {
                return invalid(format!("node {} has no replica of partition {group}", to.node));
            }
            _ => {}
        }
        let (before, _) = self.begins_with(group);
        match (1..=MAX_TERM).contains(&term) && Configuration::forced(to, before.version()).check().is_ok() {
            true => Ok(()),
            false => {
                invalid(format!("partition {group}: there is no epoch behind {term}, or no further change"))
            }
        }
    }

    /// One replica is the group from here on, with whatever it has.
    pub(super) fn force(&mut self, group: GroupId, to: Replica, term: u32) {
        let (before, (last_term, index)) = self.begins_with(group);
        let placed = vec![(to.node, self.placed_at(group, to.node))];
        let configuration = Configuration::forced(to, before.version());
        self.put_replicas(group, &[to]);
        self.settled.insert(group, Settled { configuration, term: term.max(last_term), index, placed });
        self.moves.remove(&group);
    }

    fn put_replicas(&mut self, group: GroupId, to: &[Replica]) {
        let Some(mut topic) = self.topics.remove(&group.topic.0) else { return };
        self.count_replicas(&topic, group.partition, |count| *count -= 1);
        if let Ok(assignment) = topic.spec.assignment.with(group.partition, to) {
            Arc::make_mut(&mut topic).spec.assignment = assignment;
        }
        self.count_replicas(&topic, group.partition, |count| *count += 1);
        self.topics.insert(group.topic.0, topic);
    }

    /// A topic goes, and what is known of moves of its partitions with it.
    pub(super) fn forget_moves_of(&mut self, topic: u32) {
        self.moves.retain(|group, _| group.topic.0 != topic);
        self.settled.retain(|group, _| group.topic.0 != topic);
    }

    /// Takes over moves and what they have ended with, none of it believed.
    pub(super) fn rebuild_moves(
        &mut self,
        moves: Vec<(u32, u32, Move)>,
        settled: Vec<(u32, u32, Settled)>,
    ) -> Result<(), String> {
        for (topic, partition, known) in settled {
            let group = GroupId::new(topic, partition);
            let voters = known.configuration.voters();
            let same = self.replicas(group).count() == voters.len()
                && self.replicas(group).all(|replica| voters.contains(&replica));
            let placed = known.placed.iter().map(|(node, _)| *node).eq(voters.iter().map(|voter| voter.node));
            let late = known.placed.iter().any(|(_, version)| *version > self.version);
            if known.configuration.check().is_err()
                || !known.configuration.is_confirmed()
                || !same
                || !placed
                || late
            {
                return Err(format!(
                    "partition {group}: what its last change has ended with is not what there is"
                ));
            }
            if self.settled.last_key_value().is_some_and(|(last, _)| *last >= group) {
                return Err(format!("partition {group} is out of order or there twice"));
            }
            self.settled.insert(group, known);
        }
        for (topic, partition, wanted) in moves {
            let group = GroupId::new(topic, partition);
            self.check_places(group, &wanted.to).map_err(|(_, text)| text)?;
            self.check_passed(group, &wanted)?;
            let nodes: BTreeSet<u32> = wanted.places().map(|place| place.node).collect();
            let since = wanted.since.iter();
            if !since.clone().map(|(node, _)| *node).eq(nodes)
                || since.clone().any(|(_, version)| *version > self.version)
                || self.moves.last_key_value().is_some_and(|(last, _)| *last >= group)
            {
                return Err(format!("the move of partition {group} is out of order or of a version to come"));
            }
            self.moves.insert(group, wanted);
        }
        Ok(())
    }
}

/// The replicas of a partition, and whether each is the preferred leader.
pub(super) fn replicas_of(topic: &Topic, partition: u32) -> impl Iterator<Item = (Replica, bool)> + '_ {
    topic.spec.assignment.replicas(partition).enumerate().map(|(at, replica)| (replica, at == 0))
}

/// For each node that is wanted, when it was first, if not before then now.
fn since(wanted: &Move, now: u64) -> Vec<(u32, u64)> {
    let nodes: BTreeSet<u32> = wanted.places().map(|place| place.node).collect();
    let known =
        |node: u32| wanted.since.iter().find(|(known, _)| *known == node).map(|(_, version)| *version);
    nodes.into_iter().map(|node| (node, known(node).unwrap_or(now))).collect()
}
