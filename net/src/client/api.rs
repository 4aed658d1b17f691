//! Topics, offsets and fetches of a cluster, with one connection per shard of each node.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use pyralog_core::{ErrorCode, GroupId, Outcome, Quorums};

use super::backoff::{Retries, SILENCE};
use super::connection::{Connection, Received};
use super::error::ClientError;
use super::place::Place;
use crate::message::{
    AlterTopicRequest, Consistency, CreateTopicRequest, DeleteTopicRequest, FetchReplyHead, FetchRequest,
    InitProducerIdReply, ListOffsetsReply, ListOffsetsRequest, MetadataReply, MetadataRequest, NodeMetadata,
    OffsetSpec, Request, Response, ScrubReply, ScrubRequest, TopicMetadata,
};

/// A page of metadata behind all topics: the nodes, and nothing else.
pub(super) const NODES: Request<'_> =
    Request::Metadata(MetadataRequest { topic: None, start_after: u32::MAX - 1 });
/// A topic that the controller doesn't know for so long does not exist.
const NEW_CONTROLLER: Duration = Duration::from_secs(1);

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Who it is, for the operator of the node; at most 128 bytes.
    pub name: String,
    /// Longest time to connect and shake hands with one address.
    pub connect_timeout: Duration,
    /// Longest wait for one reply.
    pub request_timeout: Duration,
    /// How long requests that change nothing are tried again after retriable errors.
    pub retry_for: Duration,
    /// Who may answer its reads.
    pub consistency: Consistency,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            retry_for: Duration::from_secs(30),
            consistency: Consistency::Leader,
        }
    }
}

/// The node that answered, without its topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id.
    pub node: u32,
    /// The address that it tells clients.
    pub address: String,
    /// Its number of shards.
    pub shards: u16,
    /// The node that takes administrative requests; 0 when it knows none.
    pub controller: u32,
    /// The cluster's name.
    pub cluster: String,
    /// All nodes of the cluster.
    pub nodes: Vec<NodeMetadata>,
    /// Version of its catalogue.
    pub catalog_version: u64,
    /// The feature level of its cluster; 0 = not told.
    pub feature_level: u16,
    /// Its version string.
    pub server: String,
}

impl NodeInfo {
    /// Whether it knows all of a cluster of so many nodes, and who takes administrative requests.
    pub fn knows_all(&self, nodes: usize) -> bool {
        self.controller != 0 && self.nodes.len() == nodes
    }
}

/// What a request to the controller is, for what may be done after an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Changes nothing: may be asked again after any error that passes.
    Question,
    /// Changes something: sent again only after errors that say that it was not accepted.
    Change,
}

/// A client of a cluster. Blocking; one request at a time.
#[derive(Debug)]
pub struct Client {
    /// Where to ask when any node will do: the addresses that were given and those that were learnt.
    addresses: Vec<String>,
    config: ClientConfig,
    connections: BTreeMap<Place, Connection>,
    topics: HashMap<String, TopicMetadata>,
    /// Client addresses of the nodes, as any of them told last.
    nodes: BTreeMap<u32, String>,
    /// Who takes administrative requests; 0 when nobody is known to.
    controller: u32,
    /// Counted on when a read has to ask another replica.
    read_turn: usize,
}

impl Client {
    /// A client of the cluster that the nodes at `addresses` (`host:port`) belong to; one that answers is enough.
    /// Connects when it has to.
    pub fn new(addresses: &[impl AsRef<str>], config: ClientConfig) -> Self {
        let addresses = addresses.iter().map(|address| address.as_ref().to_owned()).collect();
        Self {
            addresses,
            config,
            connections: BTreeMap::new(),
            topics: HashMap::new(),
            nodes: BTreeMap::new(),
            controller: 0,
            read_turn: 0,
        }
    }

    /// Who may answer its reads from now on.
    pub fn set_consistency(&mut self, consistency: Consistency) {
        self.config.consistency = consistency;
    }

    /// Its settings.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// A new connection to a shard, which the caller owns.
    pub fn open(&self, place: Place) -> Result<Connection, ClientError> {
        self.open_within(place, self.config.connect_timeout, self.config.request_timeout)
    }

    /// Likewise, with times of its own for connecting and for each reply.
    pub(super) fn open_within(
        &self,
        place: Place,
        longest: Duration,
        request_timeout: Duration,
    ) -> Result<Connection, ClientError> {
        let connect = |address: &String, timeout: Duration| {
            let mut connection =
                Connection::connect_as(&self.config.name, address, Some(place.shard), timeout)?;
            connection.set_timeout(request_timeout);
            Ok(connection)
        };
        // A node that is alone is reached where it was found, whatever it calls itself.
        if let Some(address) = self.nodes.get(&place.node).filter(|_| self.nodes.len() > 1) {
            return connect(address, longest).and_then(|connection| is_there(connection, place));
        }
        let mut last = ClientError::Usage("no address of a node was given".into());
        // One that keeps silent is given its whole time only when no other answers.
        let timeouts: &[Duration] =
            if self.addresses.len() > 1 { &[SILENCE.min(longest), longest] } else { &[longest] };
        for timeout in timeouts {
            for address in &self.addresses {
                match connect(address, *timeout).and_then(|connection| is_there(connection, place)) {
                    Ok(connection) => return Ok(connection),
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }

    /// Whether another node knows of a newer leader of a partition that was led at `place` in `epoch`. Asks them one
    /// after the other, each for a moment.
    pub(super) fn led_elsewhere(&self, topic: &str, partition: u32, place: Place, epoch: u32) -> bool {
        let mut others = self.nodes.iter().filter(|(node, _)| **node != place.node);
        others.any(|(_, address)| {
            let request = Request::Metadata(MetadataRequest { topic: Some(topic), start_after: 0 });
            let connection = Connection::connect_as(&self.config.name, address, Some(0), SILENCE);
            let told = connection.and_then(|mut connection| Ok(metadata_reply(connection.call(&request)?)));
            let told = told.ok().flatten().and_then(|reply| reply.topics.into_iter().next());
            told.and_then(|told| told.partitions.get(partition as usize).cloned()).is_some_and(|now| {
                now.epoch > epoch && Place::leader_of(&now).is_some_and(|leader| leader != place)
            })
        })
    }

    /// Asks another node first the next time that any of them will do.
    fn turn_elsewhere(&mut self) {
        self.connections.remove(&Place::ANY);
        if !self.addresses.is_empty() {
            self.addresses.rotate_left(1);
        }
    }

    /// The ids of the cluster's nodes, as any of them told last.
    pub(super) fn known_nodes(&self) -> impl Iterator<Item = u32> + '_ {
        self.nodes.keys().copied()
    }

    pub(super) fn learn(&mut self, reply: &MetadataReply) {
        self.nodes = reply.nodes.iter().map(|node| (node.id, node.address.clone())).collect();
        // A node that is alone was found already, whatever it calls itself.
        for address in self.nodes.values().filter(|_| self.nodes.len() > 1) {
            if !self.addresses.contains(address) {
                self.addresses.push(address.clone());
            }
        }
        self.controller = reply.controller;
        let nodes = &self.nodes;
        self.connections.retain(|place, _| place.node == 0 || nodes.contains_key(&place.node));
    }

    /// The node and all topics, in the order of their ids.
    pub fn metadata(&mut self) -> Result<(NodeInfo, Vec<TopicMetadata>), ClientError> {
        all_pages(|start_after| self.metadata_page(None, start_after))
    }

    /// One topic, from memory when it was asked for before; [`Self::forget_topic`] makes it be asked again.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownTopicOrPartition`] when there is none of that name.
    pub fn topic(&mut self, name: &str) -> Result<TopicMetadata, ClientError> {
        if let Some(topic) = self.topics.get(name) {
            return Ok(topic.clone());
        }
        // A node may not have heard of it yet.
        let mut others = self.addresses.len().saturating_sub(1);
        let page = loop {
            match self.metadata_page(Some(name), 0) {
                Err(error) if error.code() == ErrorCode::UnknownTopicOrPartition && others > 0 => {
                    others -= 1;
                    self.turn_elsewhere();
                }
                result => break result?,
            }
        };
        let topic =
            page.topics.into_iter().find(|topic| topic.name == name).ok_or_else(|| unknown_topic(name))?;
        self.topics.insert(name.to_owned(), topic.clone());
        Ok(topic)
    }

    /// One topic, asked of another node than the last time: after an error that says that things have moved.
    ///
    /// # Errors
    /// As [`Self::topic`].
    pub fn topic_afresh(&mut self, name: &str) -> Result<TopicMetadata, ClientError> {
        self.forget_topic(name);
        self.turn_elsewhere();
        self.topic(name)
    }

    /// Drops what is remembered of a topic.
    pub fn forget_topic(&mut self, name: &str) {
        self.topics.remove(name);
    }

    /// Creates a topic; retention -1 is the node's default, 0 unlimited. Not tried again when the outcome is
    /// unknown. Returns its id.
    pub fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        retention_bytes: i64,
        retention_ms: i64,
    ) -> Result<u32, ClientError> {
        let request =
            CreateTopicRequest { name, partitions, quorums: Quorums::UNSET, retention_bytes, retention_ms };
        self.create_topic_with(request)
    }

    /// As [`Self::create_topic`], with copies and quorums.
    pub fn create_topic_with(&mut self, request: CreateTopicRequest<'_>) -> Result<u32, ClientError> {
        self.forget_topic(request.name);
        let request = Request::CreateTopic(request);
        self.call_controller(&request, Kind::Change, |received| match received.response {
            Response::CreateTopic(reply) => Some(reply.id),
            _ => None,
        })
    }

    /// Changes the settings of a topic, or adds partitions.
    pub fn alter_topic(&mut self, request: AlterTopicRequest<'_>) -> Result<(), ClientError> {
        self.forget_topic(request.name);
        let request = Request::AlterTopic(request);
        self.call_controller(&request, Kind::Question, |received| match received.response {
            Response::AlterTopic => Some(()),
            _ => None,
        })
    }

    /// How far a shard is with reading its segments again; with `start` it begins, unless it is at it.
    pub fn scrub(&mut self, node: u32, shard: u16, start: bool) -> Result<ScrubReply, ClientError> {
        let request = Request::Scrub(ScrubRequest { start });
        self.call(
            Place { node, shard },
            &request,
            |_| false,
            |received| match received.response {
                Response::Scrub(told) => Some(told),
                _ => None,
            },
        )
    }

    /// Deletes a topic and its data.
    pub fn delete_topic(&mut self, name: &str) -> Result<(), ClientError> {
        self.forget_topic(name);
        let request = Request::DeleteTopic(DeleteTopicRequest { name });
        self.call_controller(&request, Kind::Change, |received| match received.response {
            Response::DeleteTopic => Some(()),
            _ => None,
        })
    }

    /// A new producer id.
    pub fn init_producer_id(&mut self) -> Result<InitProducerIdReply, ClientError> {
        let request = Request::InitProducerId;
        self.call_controller(&request, Kind::Question, |received| match received.response {
            Response::InitProducerId(reply) => Some(reply),
            _ => None,
        })
    }

    /// Finds an offset of a partition.
    pub fn list_offsets(
        &mut self,
        topic: &str,
        partition: u32,
        spec: OffsetSpec,
    ) -> Result<ListOffsetsReply, ClientError> {
        let consistency = self.config.consistency;
        self.call_partition(
            topic,
            partition,
            |group| Request::ListOffsets(ListOffsetsRequest { group, spec, consistency }),
            |received| match received.response {
                Response::ListOffsets(reply) => Some(reply),
                _ => None,
            },
        )
    }

    /// Reads from a partition; `request.group` and `request.consistency` are filled in. The batches' bytes replace the content of `into`.
    pub fn fetch(
        &mut self,
        topic: &str,
        partition: u32,
        request: FetchRequest,
        into: &mut Vec<u8>,
    ) -> Result<FetchReplyHead, ClientError> {
        let consistency = self.config.consistency;
        self.call_partition(
            topic,
            partition,
            |group| Request::Fetch(FetchRequest { group, consistency, ..request }),
            |received| match received.response {
                Response::Fetch(head) => {
                    into.clear();
                    into.extend_from_slice(received.batches);
                    Some(head)
                }
                _ => None,
            },
        )
    }

    /// A round trip to a shard.
    pub fn ping(&mut self, place: Place) -> Result<(), ClientError> {
        self.call(place, &Request::Ping, unknown_there, |received| {
            matches!(received.response, Response::Pong).then_some(())
        })
    }

    fn metadata_page(&mut self, topic: Option<&str>, start_after: u32) -> Result<MetadataReply, ClientError> {
        let request = Request::Metadata(MetadataRequest { topic, start_after });
        let page = self.call(Place::ANY, &request, unknown_there, metadata_reply)?;
        self.learn(&page);
        Ok(page)
    }

    /// A request to the node that takes administrative requests, whichever that is by then.
    pub(super) fn call_controller<T>(
        &mut self,
        request: &Request<'_>,
        kind: Kind,
        mut parse: impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut retries = Retries::within(self.config.retry_for);
        let begun = Instant::now();
        loop {
            let place = Place { node: self.controller, shard: 0 };
            if kind == Kind::Change {
                // One that the node has closed meanwhile would leave the outcome unknown.
                self.connections.remove(&place);
            }
            let error = match self.call_once(place, request, &mut parse) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if error.breaks_connection() || error.asks_elsewhere() {
                self.connections.remove(&place);
            }
            // The controller knows every topic, if not at once after it became that.
            let none = error.code() == ErrorCode::UnknownTopicOrPartition && begun.elapsed() > NEW_CONTROLLER;
            let unknown = kind == Kind::Change && (none || error.outcome() == Outcome::Unknown);
            match retries.after(&error) {
                Some(wait) if !unknown => std::thread::sleep(wait),
                _ => return Err(error),
            }
            self.turn_elsewhere();
            // Without an answer: whoever is found next.
            self.controller = 0;
            if let Ok(page) = self.call_once(Place::ANY, &NODES, &mut metadata_reply) {
                self.learn(&page);
            }
        }
    }

    /// A request about one partition, to the shard that owns it; asks for the metadata again when it has moved.
    fn call_partition<'r, T>(
        &mut self,
        topic: &str,
        partition: u32,
        request: impl Fn(GroupId) -> Request<'r>,
        mut parse: impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut retries = Retries::within(self.config.retry_for);
        loop {
            let metadata = self.topic(topic)?;
            let Some(place) = metadata.partitions.get(partition as usize) else {
                let detail = format!("topic {topic} has {} partitions", metadata.partitions.len());
                return Err(ClientError::Server { code: ErrorCode::UnknownTopicOrPartition, detail });
            };
            let group = GroupId::new(metadata.id, partition);
            let result = match Place::reader_of(place, self.config.consistency, self.read_turn) {
                Some(place) => self.call(place, &request(group), ClientError::asks_elsewhere, &mut parse),
                None => Err(nobody_leads(group)),
            };
            let error = match result {
                Err(error) if error.asks_elsewhere() => error,
                result => return result,
            };
            let Some(wait) = retries.after(&error) else { return Err(error) };
            self.forget_topic(topic);
            self.turn_elsewhere();
            self.read_turn += 1;
            std::thread::sleep(wait);
        }
    }

    /// A request to a shard that changes nothing there, tried again after errors that pass, but those that are for the
    /// caller.
    fn call<T>(
        &mut self,
        place: Place,
        request: &Request<'_>,
        for_caller: impl Fn(&ClientError) -> bool,
        mut parse: impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut retries = Retries::within(self.config.retry_for);
        loop {
            let error = match self.call_once(place, request, &mut parse) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if error.breaks_connection() {
                self.connections.remove(&place);
            }
            if place == Place::ANY && error.asks_elsewhere() {
                self.turn_elsewhere();
            }
            match retries.after(&error) {
                Some(wait) if !for_caller(&error) => std::thread::sleep(wait),
                _ => return Err(error),
            }
        }
    }

    fn call_once<T>(
        &mut self,
        place: Place,
        request: &Request<'_>,
        parse: &mut impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        if !self.connections.contains_key(&place) {
            let connection = self.open(place)?;
            self.connections.insert(place, connection);
        }
        let Some(connection) = self.connections.get_mut(&place) else {
            return Err(ClientError::Usage(format!("no connection to {place}")));
        };
        let parsed = parse(connection.call(request)?);
        parsed.ok_or_else(|| connection.protocol("the reply is of another kind than the request"))
    }
}

impl From<MetadataReply> for NodeInfo {
    fn from(reply: MetadataReply) -> Self {
        let own = reply.nodes.iter().find(|node| node.id == reply.node);
        Self {
            node: reply.node,
            address: own.map(|node| node.address.clone()).unwrap_or_default(),
            shards: own.map_or(0, |node| node.shards),
            controller: reply.controller,
            cluster: reply.cluster,
            nodes: reply.nodes,
            catalog_version: reply.version,
            feature_level: reply.feature_level,
            server: reply.server,
        }
    }
}

/// The connection, if the node at its other end is the one that was meant.
fn is_there(connection: Connection, place: Place) -> Result<Connection, ClientError> {
    let found = connection.hello().node;
    if place.node == 0 || found == place.node {
        return Ok(connection);
    }
    let detail = format!("{} is node {found}, not node {}", connection.address(), place.node);
    Err(ClientError::Server { code: ErrorCode::NotLeader, detail })
}

/// Any node knows the topics; the caller decides whether others are asked.
fn unknown_there(error: &ClientError) -> bool {
    error.code() == ErrorCode::UnknownTopicOrPartition
}

/// The node and all topics, from pages that each begin behind a topic.
pub(super) fn all_pages(
    mut page: impl FnMut(u32) -> Result<MetadataReply, ClientError>,
) -> Result<(NodeInfo, Vec<TopicMetadata>), ClientError> {
    let (mut topics, mut start_after) = (Vec::new(), 0);
    loop {
        let mut page = page(start_after)?;
        let last = page.topics.last().map(|topic| topic.id);
        topics.append(&mut page.topics);
        match last {
            Some(id) if page.more && id > start_after => start_after = id,
            _ => return Ok((NodeInfo::from(page), topics)),
        }
    }
}

pub(super) fn metadata_reply(received: Received<'_>) -> Option<MetadataReply> {
    match received.response {
        Response::Metadata(reply) => Some(*reply),
        _ => None,
    }
}

/// A partition has no leader now.
pub(super) fn nobody_leads(group: GroupId) -> ClientError {
    let detail = format!("partition {group} has no leader now");
    ClientError::Server { code: ErrorCode::NotLeader, detail }
}

pub(super) fn unknown_topic(name: &str) -> ClientError {
    ClientError::Server {
        code: ErrorCode::UnknownTopicOrPartition,
        detail: format!("topic {name:?} does not exist"),
    }
}
