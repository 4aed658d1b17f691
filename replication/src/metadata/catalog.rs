//! The metadata at one version, the rules of its changes, and the tables that answer questions about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyralog_core::features::{FIRST_LEVEL, LEVEL_OF_MOVES};
use pyralog_core::limits::{
    MAX_ADDRESS_BYTES, MAX_METADATA_REPLICAS, MAX_NODES, MAX_PARTITIONS_PER_NODE, MAX_RACK_BYTES, MAX_SHARDS,
    MAX_TOPIC_NAME_BYTES, MAX_TOPICS,
};
use pyralog_core::{ErrorCode, GroupId};

use super::reassign::replicas_of;
use super::{Command, Move, NodeInfo, Replica, Settled, Topic, TopicSpec, on_shard};

/// Why not, for the client that asked for it.
pub(super) type Refusal = (ErrorCode, String);

/// All metadata at one version. Changed by [`Self::apply`] only. A clone shares the topics with its original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// Commands applied so far.
    pub version: u64,
    /// Id of the next topic, from 1.
    pub next_topic_id: u32,
    /// First producer id not yet reserved.
    pub next_producer_id: i64,
    /// Nodes by id.
    pub nodes: BTreeMap<u32, NodeInfo>,
    /// Topics by id.
    pub topics: BTreeMap<u32, Arc<Topic>>,
    /// Partitions whose replicas are to be others.
    pub moves: BTreeMap<GroupId, Move>,
    /// What the last changes of partitions have ended with.
    pub settled: BTreeMap<GroupId, Settled>,
    /// Partitions that were added to topics: the first of those that came together, and the version of the catalogue that has them first.
    pub grown: BTreeMap<GroupId, u64>,
    /// Nodes that were added and have not registered themselves yet: where other nodes connect to them.
    pub expected: BTreeMap<u32, String>,
    /// What all nodes understand, see [`pyralog_core::features`]. Never goes down.
    pub feature_level: u16,
    /// Nodes that were removed, and the numbers of their disks: with another disk one may come again.
    pub removed: BTreeMap<u32, u64>,
    index: Index,
}

/// What follows from the rest and is kept because asking for it must not take longer with every topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Index {
    /// Ids of the topics in the order of their names: small, as it is copied with every version.
    by_name: Vec<u32>,
    /// What is in each slot that has anything.
    load: BTreeMap<Replica, Load>,
    partitions: usize,
}

/// What is placed in one slot, or on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Replicas.
    pub replicas: u32,
    /// Those of them that are preferred leaders.
    pub leaders: u32,
}

impl Index {
    fn place_of(&self, topics: &BTreeMap<u32, Arc<Topic>>, name: &str) -> Result<usize, usize> {
        self.by_name.binary_search_by(|id| topics.get(id).map_or("", |topic| topic.name()).cmp(name))
    }

    /// Counts a topic's replicas in, or out again.
    fn count(&mut self, topic: &Topic, step: impl Fn(&mut u32)) {
        for (replica, leader) in topic.spec.assignment.iter() {
            let load = self.load.entry(replica).or_default();
            step(&mut load.replicas);
            if leader {
                step(&mut load.leaders);
            }
        }
    }
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            version: 0,
            next_topic_id: 1,
            next_producer_id: 1,
            nodes: BTreeMap::new(),
            topics: BTreeMap::new(),
            moves: BTreeMap::new(),
            settled: BTreeMap::new(),
            grown: BTreeMap::new(),
            expected: BTreeMap::new(),
            removed: BTreeMap::new(),
            feature_level: FIRST_LEVEL,
            index: Index::default(),
        }
    }
}

impl Catalog {
    /// The topic of that name.
    pub fn topic_by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        let place = self.index.place_of(&self.topics, name).ok()?;
        self.topics.get(self.index.by_name.get(place)?)
    }

    /// The replicas of `group`, the preferred leader first; none when it is not known. The metadata group is not
    /// among the topics.
    pub fn replicas(&self, group: GroupId) -> impl Iterator<Item = Replica> + '_ {
        let topic = self.topics.get(&group.topic.0);
        topic.into_iter().flat_map(move |topic| topic.spec.assignment.replicas(group.partition))
    }

    /// The slot of `node` that a replica of `group` is in.
    pub fn slot_on(&self, node: u32, group: GroupId) -> Option<u16> {
        if group == GroupId::METADATA {
            return Some(0);
        }
        self.topics.get(&group.topic.0)?.spec.assignment.slot_on(node, group.partition)
    }

    /// The shard of `node` that holds a replica of `group`.
    pub fn shard_on(&self, node: u32, group: GroupId) -> Option<u16> {
        Some(self.shard_of(Replica { node, shard: self.slot_on(node, group)? }))
    }

    /// The shard that has a slot, with as many shards as its node has registered.
    pub fn shard_of(&self, place: Replica) -> u16 {
        self.nodes.get(&place.node).map_or(place.shard, |node| on_shard(place.shard, node.shards))
    }

    /// Whether a replica can be in a slot of a node. Below the level of moves nodes take it for the shard.
    pub(super) fn has_slot(&self, node: &NodeInfo, slot: u16) -> bool {
        slot < if self.feature_level < LEVEL_OF_MOVES { node.shards } else { MAX_SHARDS }
    }

    /// Whether `group` was placed on `node` when that had the disk of this number already: what that disk does not hold
    /// of it, it never had.
    pub fn is_younger_than_disk(&self, group: GroupId, node: u32, disk: u64) -> bool {
        let registered = self.nodes.get(&node).filter(|known| known.disk == disk);
        registered.is_some_and(|known| self.placed_at(group, node) > known.disk_since)
    }

    /// All partitions.
    pub fn partitions(&self) -> usize {
        self.index.partitions
    }

    /// What is placed in a slot.
    pub fn load(&self, slot: Replica) -> Load {
        self.index.load.get(&slot).copied().unwrap_or_default()
    }

    /// Every slot of a node that has anything, ascending, and what.
    pub fn loads(&self, node: u32) -> impl Iterator<Item = (u16, Load)> + '_ {
        let (first, last) = (Replica { node, shard: 0 }, Replica { node, shard: u16::MAX });
        self.index.load.range(first..=last).map(|(place, load)| (place.shard, *load))
    }

    /// Whether `command` may be appended now.
    ///
    /// # Errors
    /// Why not, for the client that asked for it.
    pub fn check(&self, command: &Command) -> Result<(), (ErrorCode, String)> {
        self.check_level(command)?;
        match command {
            Command::RegisterNode(node) => self.check_node(node),
            Command::CreateTopic(spec) => match spec.assignment.is_even(spec.replication_factor) {
                true => self.check_new_topic(spec),
                false => Err(uneven()),
            },
            Command::DeleteTopic { topic } => match self.topics.contains_key(topic) {
                true => Ok(()),
                false => Err((ErrorCode::UnknownTopicOrPartition, format!("no topic with id {topic}"))),
            },
            Command::ReserveProducerIds { count } => {
                match self.next_producer_id.checked_add(i64::from(*count)) {
                    Some(_) => Ok(()),
                    None => Err((ErrorCode::LimitReached, "producer ids are used up".into())),
                }
            }
            Command::Reassign { topic, partition, to } => {
                self.check_reassign(GroupId::new(*topic, *partition), to)
            }
            Command::AddNode { node, internal_address } => self.check_add(*node, internal_address),
            Command::RemoveNode { node } => self.check_remove(*node),
            Command::Force { topic, partition, to, term } => {
                self.check_force(GroupId::new(*topic, *partition), *to, *term)
            }
            Command::RaiseFeatureLevel { level } => self.check_raise(*level),
            Command::AlterTopic { .. } => self.altered(command).map(|_| ()),
            Command::Reassigned { topic, partition, configuration, .. } => {
                self.check_reassigned(GroupId::new(*topic, *partition), configuration)
            }
        }
    }

    /// What a topic becomes.
    fn altered(&self, command: &Command) -> Result<Topic, Refusal> {
        let Command::AlterTopic { topic, replication_factor, quorums, retention_bytes, retention_ms, added } =
            command
        else {
            return Err((ErrorCode::Internal, "not a command that alters a topic".into()));
        };
        let Some(known) = self.topics.get(topic) else {
            return Err((ErrorCode::UnknownTopicOrPartition, format!("no topic with id {topic}")));
        };
        if self.partitions() + added.len() > MAX_PARTITIONS_PER_NODE as usize {
            let text = format!("{MAX_PARTITIONS_PER_NODE} partitions of all topics together is the bound");
            return Err((ErrorCode::LimitReached, text));
        }
        let mut altered = Topic::clone(known);
        let spec = &mut altered.spec;
        (spec.write_quorum, spec.read_quorum, spec.min_insync_replicas) = *quorums;
        (spec.retention_bytes, spec.retention_ms) = (*retention_bytes, *retention_ms);
        spec.replication_factor = *replication_factor;
        if *replication_factor != known.spec.replication_factor {
            self.check_factor(*replication_factor)?;
        }
        if added.iter().any(|replicas| replicas.len() != usize::from(*replication_factor)) {
            return Err(uneven());
        }
        if !added.is_empty() {
            spec.assignment =
                spec.assignment.extended(added).map_err(|text| (ErrorCode::InvalidTopic, text))?;
        }
        self.check_topic(spec)?;
        Ok(altered)
    }

    /// Whether partitions could come to have so many replicas.
    fn check_factor(&self, wanted: u8) -> Result<(), Refusal> {
        let nodes = self.nodes.len();
        if usize::from(wanted) <= nodes {
            return Ok(());
        }
        let text = format!(
            "{wanted} replicas of each partition need as many nodes, and {nodes} are registered: add nodes first"
        );
        Err((ErrorCode::InvalidTopic, text))
    }

    fn alter(&mut self, command: &Command) {
        let Ok(altered) = self.altered(command) else { return };
        let Some(before) = self.topics.remove(&altered.id) else { return };
        self.index.count(&before, |count| *count -= 1);
        self.index.count(&altered, |count| *count += 1);
        self.index.load.retain(|_, load| load.replicas > 0);
        if altered.partitions() > before.partitions() {
            self.index.partitions += (altered.partitions() - before.partitions()) as usize;
            self.grown.insert(GroupId::new(altered.id, before.partitions()), self.version);
        }
        self.topics.insert(altered.id, Arc::new(altered));
    }

    /// Version of the catalogue that has a partition of a topic first.
    pub(super) fn made(&self, topic: &Topic, group: GroupId) -> u64 {
        let since = self.grown.range(GroupId::new(topic.id, 0)..=group).next_back();
        since.map_or(topic.created, |(_, version)| *version)
    }

    /// Takes over when partitions were added, none of it believed.
    pub(super) fn rebuild_grown(&mut self, grown: Vec<(u32, u32, u64)>) -> Result<(), String> {
        for (topic, partition, version) in grown {
            let group = GroupId::new(topic, partition);
            let there =
                self.topics.get(&topic).is_some_and(|topic| partition > 0 && partition < topic.partitions());
            let last = self.grown.last_key_value().map(|(last, _)| *last);
            if !there || version > self.version || last.is_some_and(|last| last >= group) {
                return Err(format!(
                    "partitions from {group} on were added where there are none, or out of order"
                ));
            }
            self.grown.insert(group, version);
        }
        Ok(())
    }

    /// Whether a node may come.
    fn check_add(&self, node: u32, address: &str) -> Result<(), Refusal> {
        let invalid = |text: String| Err((ErrorCode::InvalidRequest, text));
        if node == 0 {
            return invalid("node 0: ids begin at 1".into());
        }
        if self.nodes.contains_key(&node) {
            return invalid(format!("node {node} is part of the cluster already"));
        }
        if !valid_address(address) {
            return invalid(format!("node {node}: {address:?} is no address for nodes; write host:port"));
        }
        if self.nodes.values().any(|known| known.internal_address.is_empty()) {
            let text = "this node is alone and speaks with no others: name them in node.cluster_nodes, and restart it";
            return invalid(text.into());
        }
        let others = self.nodes.values().map(|known| (known.id, known.internal_address.as_str()));
        let mut others = others.chain(self.expected.iter().map(|(id, address)| (*id, address.as_str())));
        if let Some((other, _)) = others.find(|(other, known)| *other != node && *known == address) {
            return invalid(format!("node {other} is at {address}, where node {node} can't be as well"));
        }
        let all = self.nodes.len() + self.expected.keys().filter(|expected| **expected != node).count();
        // Each of them has to hold the metadata: nobody else is told of it.
        match all < MAX_METADATA_REPLICAS {
            true => Ok(()),
            false => Err((ErrorCode::LimitReached, format!("{MAX_METADATA_REPLICAS} nodes is the bound"))),
        }
    }

    /// Where other nodes connect to each node that is there or to come.
    pub fn internal_addresses(&self) -> impl Iterator<Item = (u32, &str)> {
        let expected = self.expected.iter().map(|(node, address)| (*node, address.as_str()));
        self.nodes.values().map(|node| (node.id, node.internal_address.as_str())).chain(expected)
    }

    /// Whether a node can go: nothing is on it, or on its way there, and others are left.
    fn check_remove(&self, node: u32) -> Result<(), Refusal> {
        let invalid = |text: String| Err((ErrorCode::InvalidRequest, text));
        if !self.nodes.contains_key(&node) {
            return match self.expected.contains_key(&node) {
                true => Ok(()),
                false => invalid(format!("node {node} is not registered")),
            };
        }
        let replicas: u32 = self.loads(node).map(|(_, load)| load.replicas).sum();
        let coming = self.moves.values().flat_map(Move::places).filter(|place| place.node == node).count();
        if replicas > 0 || coming > 0 {
            return invalid(format!(
                "node {node} has {replicas} replicas and {coming} are on their way to it or may be: move them away first"
            ));
        }
        match self.nodes.len() {
            1 => invalid(format!("node {node} is the last one")),
            _ => Ok(()),
        }
    }

    fn check_node(&self, node: &NodeInfo) -> Result<(), Refusal> {
        check_node(node)?;
        self.check_supported(node)?;
        if self.removed.get(&node.id) == Some(&node.disk) {
            let text = format!(
                "node {} was removed from the cluster: stop it; to have it join again give it an empty data folder",
                node.id
            );
            return Err((ErrorCode::InvalidRequest, text));
        }
        if !self.nodes.contains_key(&node.id) && self.nodes.len() >= MAX_NODES {
            return Err((ErrorCode::LimitReached, format!("{MAX_NODES} nodes is the bound")));
        }
        if self.feature_level >= LEVEL_OF_MOVES {
            return Ok(());
        }
        let too_few = |shard: u16, what: String| {
            let (id, shards, needed) = (node.id, node.shards, u32::from(shard) + 1);
            let text = format!(
                "node {id} comes with {shards} shards and {what} shard {shard}: start it with at least {needed} shards"
            );
            Err((ErrorCode::InvalidRequest, text))
        };
        let mut coming = self.moves.values().flat_map(Move::places);
        if let Some(lost) = coming.find(|to| to.node == node.id && to.shard >= node.shards) {
            return too_few(lost.shard, "a replica is on its way to".into());
        }
        match self.loads(node.id).filter(|(slot, _)| *slot >= node.shards).last() {
            None => Ok(()),
            Some((lost, load)) => too_few(lost, format!("has {} replicas on", load.replicas)),
        }
    }

    fn check_new_topic(&self, spec: &TopicSpec) -> Result<(), Refusal> {
        self.check_topic(spec)?;
        if self.topic_by_name(&spec.name).is_some() {
            return Err((ErrorCode::TopicAlreadyExists, format!("topic {:?} exists", spec.name)));
        }
        if self.topics.len() >= MAX_TOPICS as usize || self.next_topic_id == u32::MAX {
            return Err((ErrorCode::LimitReached, format!("{MAX_TOPICS} topics is the bound")));
        }
        if self.partitions() + spec.assignment.partitions() as usize > MAX_PARTITIONS_PER_NODE as usize {
            let text = format!("{MAX_PARTITIONS_PER_NODE} partitions of all topics together is the bound");
            return Err((ErrorCode::LimitReached, text));
        }
        Ok(())
    }

    /// What holds for a topic at any time.
    fn check_topic(&self, spec: &TopicSpec) -> Result<(), Refusal> {
        let invalid = |text: String| (ErrorCode::InvalidTopic, text);
        if !valid_topic_name(&spec.name) {
            return Err(invalid(format!(
                "the name {:?} is not allowed; write 1 to {MAX_TOPIC_NAME_BYTES} of a-z A-Z 0-9 . _ -",
                spec.name
            )));
        }
        spec.assignment.check().map_err(invalid)?;
        spec.quorums().check().map_err(invalid)?;
        for home in spec.assignment.homes() {
            match self.nodes.get(&home.node) {
                None => return Err(invalid(format!("node {} is not registered", home.node))),
                Some(node) if !self.has_slot(node, home.shard) => {
                    return Err(invalid(no_slot(node, home.shard)));
                }
                Some(_) => {}
            }
        }
        for (name, value) in [("bytes", spec.retention_bytes), ("ms", spec.retention_ms)] {
            if value < -1 {
                let text =
                    format!("retention_{name} {value}: write -1 for the node's default, 0 for no bound");
                return Err(invalid(text));
            }
        }
        Ok(())
    }

    /// Applies a committed command. One that no longer passes [`Self::check`] changes nothing but the version.
    ///
    /// # Errors
    /// Why it does not pass, for the client that asked for it.
    pub fn apply(&mut self, command: &Command) -> Result<(), (ErrorCode, String)> {
        let checked = self.check(command);
        self.version += 1;
        checked?;
        match command {
            Command::RegisterNode(node) => {
                let known = self.nodes.get(&node.id).filter(|known| known.disk == node.disk);
                let disk_since = known.map_or(self.version, |known| known.disk_since);
                self.removed.remove(&node.id);
                self.expected.remove(&node.id);
                self.nodes.insert(node.id, NodeInfo { disk_since, ..node.clone() });
            }
            Command::CreateTopic(spec) => {
                let id = self.next_topic_id;
                self.next_topic_id += 1;
                self.insert(Topic { id, created: self.version, spec: spec.clone() });
            }
            Command::DeleteTopic { topic } => {
                self.remove(*topic);
            }
            Command::AlterTopic { .. } => self.alter(command),
            Command::AddNode { node, internal_address } => {
                self.expected.insert(*node, internal_address.clone());
            }
            Command::RemoveNode { node } => {
                self.expected.remove(node);
                if let Some(gone) = self.nodes.remove(node) {
                    self.removed.insert(*node, gone.disk);
                }
            }
            Command::Force { topic, partition, to, term } => {
                self.force(GroupId::new(*topic, *partition), *to, *term);
            }
            Command::RaiseFeatureLevel { level } => self.feature_level = *level,
            Command::ReserveProducerIds { count } => self.next_producer_id += i64::from(*count),
            Command::Reassign { topic, partition, to } => self.reassign(GroupId::new(*topic, *partition), to),
            Command::Reassigned { topic, partition, configuration, term, index } => {
                self.reassigned(GroupId::new(*topic, *partition), configuration, *term, *index);
            }
        }
        Ok(())
    }

    fn insert(&mut self, topic: Topic) {
        if let Err(place) = self.index.place_of(&self.topics, topic.name()) {
            self.index.by_name.insert(place, topic.id);
            self.index.partitions += topic.partitions() as usize;
            self.index.count(&topic, |count| *count += 1);
            self.topics.insert(topic.id, Arc::new(topic));
        }
    }

    fn remove(&mut self, id: u32) {
        let Some(topic) = self.topics.get(&id) else { return };
        if let Ok(place) = self.index.place_of(&self.topics, topic.name()) {
            self.index.by_name.remove(place);
            self.index.partitions -= topic.partitions() as usize;
            self.index.count(topic, |count| *count -= 1);
            self.index.load.retain(|_, load| load.replicas > 0);
        }
        self.topics.remove(&id);
        self.grown.retain(|group, _| group.topic.0 != id);
        self.forget_moves_of(id);
    }

    /// Counts a partition's replicas in, or out again.
    pub(super) fn count_replicas(&mut self, topic: &Topic, partition: u32, step: impl Fn(&mut u32)) {
        for (replica, leader) in replicas_of(topic, partition) {
            let load = self.index.load.entry(replica).or_default();
            step(&mut load.replicas);
            if leader {
                step(&mut load.leaders);
            }
        }
        self.index.load.retain(|_, load| load.replicas > 0);
    }

    /// Takes over which nodes are to come, none of it believed.
    pub(super) fn rebuild_expected(&mut self, expected: Vec<(u32, String)>) -> Result<(), String> {
        for (node, address) in expected {
            let last = self.expected.last_key_value().map_or(0, |(last, _)| *last);
            self.check_add(node, &address).map_err(|(_, text)| text)?;
            if node <= last {
                return Err(format!("node {node}, which is to come, is out of order"));
            }
            self.expected.insert(node, address);
        }
        Ok(())
    }

    /// Takes over which nodes were removed, none of it believed.
    pub(super) fn rebuild_removed(&mut self, removed: Vec<(u32, u64)>) -> Result<(), String> {
        for (node, disk) in removed {
            let last = self.removed.last_key_value().map_or(0, |(last, _)| *last);
            let again = self.nodes.get(&node).is_some_and(|known| known.disk == disk);
            if node <= last || again {
                return Err(format!("node {node} was removed and is there, or is out of order"));
            }
            self.removed.insert(node, disk);
        }
        Ok(())
    }

    /// An empty catalogue of a cluster at this level.
    ///
    /// # Errors
    /// There is no level 0.
    pub fn at_level(feature_level: u16) -> Result<Self, String> {
        match feature_level {
            0 => Err("feature level 0".into()),
            _ => Ok(Self { feature_level, ..Self::default() }),
        }
    }

    /// Puts together a catalogue from parts that nobody has checked; this one is empty.
    pub(super) fn rebuild(
        &mut self,
        version: u64,
        next_topic_id: u32,
        next_producer_id: i64,
        nodes: Vec<NodeInfo>,
        topics: Vec<Topic>,
    ) -> Result<(), String> {
        let catalog = self;
        (catalog.version, catalog.next_topic_id) = (version, next_topic_id);
        catalog.next_producer_id = next_producer_id;
        if next_topic_id == 0 || next_producer_id < 1 {
            return Err("the next ids are not positive".into());
        }
        for node in nodes {
            catalog.check_node(&node).map_err(|(_, text)| text)?;
            if catalog.nodes.last_key_value().is_some_and(|(last, _)| *last >= node.id) {
                return Err(format!("node {} is out of order or there twice", node.id));
            }
            if node.disk_since > version {
                return Err(format!("node {} has its disk since a version to come", node.id));
            }
            catalog.nodes.insert(node.id, node);
        }
        for topic in topics {
            let id = topic.id;
            let last = catalog.topics.last_key_value().map_or(0, |(last, _)| *last);
            if id <= last || id >= next_topic_id {
                return Err(format!("topic {id} is out of order or not below the next id"));
            }
            if topic.created > version {
                return Err(format!("topic {id} is of a version to come"));
            }
            catalog.check_new_topic(&topic.spec).map_err(|(_, text)| format!("topic {id}: {text}"))?;
            catalog.insert(topic);
        }
        Ok(())
    }
}

/// Why a replica can't be there.
pub(super) fn no_slot(node: &NodeInfo, slot: u16) -> String {
    format!("node {} has {} shards and no slot {slot}", node.id, node.shards)
}

fn uneven() -> Refusal {
    (ErrorCode::InvalidTopic, "partitions with different numbers of replicas".into())
}

fn check_node(node: &NodeInfo) -> Result<(), Refusal> {
    let invalid = |text: String| Err((ErrorCode::InvalidRequest, text));
    if node.id == 0 {
        return invalid("node 0: ids begin at 1".into());
    }
    if node.shards == 0 || node.shards > MAX_SHARDS {
        return invalid(format!(
            "node {} with {} shards; 1 to {MAX_SHARDS} are allowed",
            node.id, node.shards
        ));
    }
    if !valid_address(&node.client_address) {
        return invalid(format!("node {}: {:?} is no address for clients", node.id, node.client_address));
    }
    if !node.internal_address.is_empty() && !valid_address(&node.internal_address) {
        return invalid(format!("node {}: {:?} is no address for nodes", node.id, node.internal_address));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if node.rack.len() > MAX_RACK_BYTES || !node.rack.bytes().all(allowed) {
        return invalid(format!(
            "node {}: {:?} is no name of a rack; up to {MAX_RACK_BYTES} of a-z A-Z 0-9 . _ - are allowed",
            node.id, node.rack
        ));
    }
    Ok(())
}

/// `host:port`, within the bound, with nothing in it that could not be shown.
fn valid_address(address: &str) -> bool {
    address.len() <= MAX_ADDRESS_BYTES
        && address.bytes().all(|byte| byte.is_ascii_graphic())
        && address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// 1 to 249 ASCII letters, digits, `.`, `_`, `-`; neither `.` nor `..`.
pub fn valid_topic_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_TOPIC_NAME_BYTES
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}
