//! The state of partitions as their leaders see it, whoever is there to be asked. Nodes that are down are what this is
//! for: each is waited for once, and what it would have told is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::api::{Client, NODES, metadata_reply};
use super::connection::Connection;
use super::error::ClientError;
use super::place::Place;
use crate::codec::MAX_DESCRIBED_PARTITIONS;
use crate::message::{
    DescribePartitionsRequest, MetadataReply, PartitionMetadata, PartitionState, Request, Response,
    TopicMetadata,
};

/// How long to wait for one answer, and to ask again for those partitions of which nobody says that it leads them: about
/// what an election takes.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// What is known of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Where it is and who leads it, as the metadata says.
    pub place: PartitionMetadata,
    /// Its state as its leader sees it; of one without a leader, or whose leader can't be reached, as another of its
    /// replicas does, which knows nothing of the others (its `replicas` are empty); `None` when nobody answers.
    pub state: Option<PartitionState>,
}

impl Described {
    /// Whether the leader has answered: only it knows who is in sync.
    pub fn is_from_leader(&self) -> bool {
        self.state.is_some_and(|state| !state.replicas.is_empty())
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAnswer {
    /// Its id.
    pub node: u32,
    /// Version of its program, or why it could not be asked.
    pub server: Result<String, String>,
    /// Who takes administrative requests, as it knows; 0 = it knows none.
    pub controller: u32,
    /// Version of its catalogue.
    pub catalog_version: u64,
}

/// Connections for one look at the cluster; a place that did not answer is not asked again.
struct Asking<'c> {
    client: &'c Client,
    open: BTreeMap<Place, Option<Connection>>,
}

impl Asking<'_> {
    /// The states of those of these partitions of a topic that this shard has; `None` when it does not answer.
    fn states(&mut self, place: Place, topic: u32, partitions: &[u32]) -> Option<Vec<PartitionState>> {
        let mut found = Vec::new();
        let mut left = partitions;
        while let Some(first) = left.first().copied() {
            let request = DescribePartitionsRequest { topic, first, count: MAX_DESCRIBED_PARTITIONS };
            let states = self.ask(place, &Request::DescribePartitions(request))?;
            found.extend(states.into_iter().filter(|state| left.contains(&state.partition)));
            let next = left.partition_point(|partition| partition - first < MAX_DESCRIBED_PARTITIONS);
            left = left.get(next..).unwrap_or_default();
        }
        Some(found)
    }

    fn ask(&mut self, place: Place, request: &Request<'_>) -> Option<Vec<PartitionState>> {
        let client = self.client;
        let connection =
            self.open.entry(place).or_insert_with(|| client.open_within(place, PATIENCE, PATIENCE).ok());
        let answer = connection.as_mut()?.call(request);
        match answer.map(|received| received.response) {
            Ok(Response::DescribePartitions(states)) => Some(states),
            // It is there, and does not have the topic or does not serve yet.
            Err(ClientError::Server { .. }) => Some(Vec::new()),
            Ok(_) | Err(_) => {
                self.open.insert(place, None);
                None
            }
        }
    }
}

impl Client {
    /// The state of the partitions of these topics, in their order. Asks the leaders, for at most a few seconds.
    pub fn describe(&mut self, topics: &[TopicMetadata]) -> Vec<Vec<Described>> {
        let unknown = |place: &PartitionMetadata| Described { place: *place, state: None };
        let mut found: Vec<Vec<Described>> =
            topics.iter().map(|topic| topic.partitions.iter().map(unknown).collect()).collect();
        let end = Instant::now() + PATIENCE;
        loop {
            let mut asking = Asking { client: self, open: BTreeMap::new() };
            for (topic, found) in topics.iter().zip(&mut found) {
                asking.leaders(topic.id, found);
            }
            drop(asking);
            let waits = found.iter().flatten().any(|partition| !partition.is_from_leader());
            if !waits || Instant::now() >= end {
                break;
            }
            std::thread::sleep(PAUSE);
            for (topic, found) in topics.iter().zip(&mut found) {
                if found.iter().all(Described::is_from_leader) {
                    continue;
                }
                // Another one may lead by now.
                let Ok(newer) = self.topic_afresh(&topic.name) else { continue };
                for (partition, newer) in found.iter_mut().zip(&newer.partitions) {
                    if !partition.is_from_leader() {
                        partition.place = *newer;
                    }
                }
            }
        }
        let mut asking = Asking { client: self, open: BTreeMap::new() };
        for (topic, found) in topics.iter().zip(&mut found) {
            asking.others(topic.id, found);
        }
        found
    }

    /// What the replica at a place says of itself, asked of nobody else; `None` when it is not there.
    ///
    /// # Errors
    /// Its node does not answer within a few seconds.
    pub fn state_at(
        &self,
        node: u32,
        shard: u16,
        topic: u32,
        partition: u32,
    ) -> Result<Option<PartitionState>, ClientError> {
        let mut connection = self.open_within(Place { node, shard }, PATIENCE, PATIENCE)?;
        let asked = DescribePartitionsRequest { topic, first: partition, count: 1 };
        match connection.call(&Request::DescribePartitions(asked))?.response {
            Response::DescribePartitions(states) => {
                Ok(states.into_iter().find(|state| state.partition == partition))
            }
            _ => Err(connection.protocol("the reply is of another kind than the request")),
        }
    }

    /// The states of the partitions of a topic, as [`Self::describe`] finds them; without those of which nobody tells.
    ///
    /// # Errors
    /// When nobody tells what the topic is.
    pub fn describe_topic(&mut self, topic: &str) -> Result<Vec<PartitionState>, ClientError> {
        self.forget_topic(topic);
        let metadata = self.topic(topic)?;
        let described = self.describe(&[metadata]).into_iter().flatten();
        Ok(described.filter_map(|described| described.state).collect())
    }

    /// What each node of the cluster says of itself, in the order of their ids.
    pub fn ask_nodes(&mut self) -> Vec<NodeAnswer> {
        if self.known_nodes().next().is_none() {
            // Nobody answers then, and nobody is named.
            let _ = self.metadata();
        }
        let nodes: Vec<u32> = self.known_nodes().collect();
        nodes.into_iter().map(|node| self.ask_node(node)).collect()
    }

    fn ask_node(&self, node: u32) -> NodeAnswer {
        let connection = self.open_within(Place { node, shard: 0 }, PATIENCE, PATIENCE);
        let told = connection.and_then(|mut connection| {
            let reply = metadata_reply(connection.call(&NODES)?);
            reply.ok_or_else(|| connection.protocol("the reply is of another kind than the request"))
        });
        match told {
            Ok(reply) => {
                let MetadataReply { controller, version, server, .. } = reply;
                NodeAnswer { node, server: Ok(server), controller, catalog_version: version }
            }
            Err(error) => {
                NodeAnswer { node, server: Err(error.to_string()), controller: 0, catalog_version: 0 }
            }
        }
    }
}

impl Asking<'_> {
    /// Asks who leads, as far as that is known, for the states of what it leads.
    fn leaders(&mut self, topic: u32, found: &mut [Described]) {
        self.fill(topic, found, |described| {
            Place::leader_of(&described.place).filter(|_| !described.is_from_leader())
        });
    }

    /// Asks the replicas of partitions of which nothing is known, one after the other.
    fn others(&mut self, topic: u32, found: &mut [Described]) {
        let most = found.iter().map(|described| described.place.replicas.len()).max().unwrap_or(0);
        for nth in 0..most {
            self.fill(topic, found, |described| {
                let replica = described.place.replicas.get(nth).filter(|_| described.state.is_none())?;
                Some(Place { node: replica.node, shard: replica.shard })
            });
        }
    }

    /// Asks for the partitions for which `whom` names somebody.
    fn fill(&mut self, topic: u32, found: &mut [Described], whom: impl Fn(&Described) -> Option<Place>) {
        let mut wanted = BTreeMap::<Place, BTreeSet<u32>>::new();
        for (partition, described) in (0..).zip(found.iter()) {
            if let Some(place) = whom(described) {
                wanted.entry(place).or_default().insert(partition);
            }
        }
        for (place, partitions) in wanted {
            let partitions: Vec<u32> = partitions.into_iter().collect();
            for state in self.states(place, topic, &partitions).into_iter().flatten() {
                if let Some(described) = found.get_mut(state.partition as usize) {
                    described.place.lead_by(state.leader, state.epoch);
                    described.state = Some(state);
                }
            }
        }
    }
}
