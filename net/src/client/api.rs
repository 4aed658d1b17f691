//! Topics, offsets and fetches of a node, with one connection per shard.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use pyralog_core::{ErrorCode, GroupId, Outcome, Quorums};

use super::backoff::Backoff;
use super::connection::{Connection, Received};
use super::error::ClientError;
use crate::codec::MAX_DESCRIBED_PARTITIONS;
use crate::message::{
    CreateTopicRequest, DeleteTopicRequest, DescribePartitionsRequest, FetchReplyHead, FetchRequest,
    InitProducerIdReply, ListOffsetsReply, ListOffsetsRequest, MetadataReply, MetadataRequest, NodeMetadata,
    OffsetSpec, PartitionState, Request, Response, TopicMetadata,
};

/// The shard that answers administrative requests.
const CONTROLLER: u16 = 0;

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
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            retry_for: Duration::from_secs(30),
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
    /// All nodes of the cluster.
    pub nodes: Vec<NodeMetadata>,
    /// Version of its catalogue.
    pub catalog_version: u64,
    /// Its version string.
    pub server: String,
}

/// What a request is, for what may be done after an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Changes nothing: may be asked again after any error that passes.
    Question,
    /// Changes something: sent again only after errors that say that it was not accepted.
    Change,
    /// A question about a partition: when the shard does not own it any more, the caller has to look for who does.
    OfPartition,
}

/// A client of one node. Blocking; one request at a time.
#[derive(Debug)]
pub struct Client {
    addresses: Vec<String>,
    config: ClientConfig,
    connections: BTreeMap<u16, Connection>,
    topics: HashMap<String, TopicMetadata>,
}

impl Client {
    /// A client of the node at the first of `addresses` (`host:port`) that answers. Connects when it has to.
    pub fn new(addresses: &[impl AsRef<str>], config: ClientConfig) -> Self {
        let addresses = addresses.iter().map(|address| address.as_ref().to_owned()).collect();
        Self { addresses, config, connections: BTreeMap::new(), topics: HashMap::new() }
    }

    /// Its settings.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// A new connection to `shard` of the node, which the caller owns.
    pub fn open(&self, shard: u16) -> Result<Connection, ClientError> {
        open(&self.addresses, &self.config, shard)
    }

    /// The node and all topics, in the order of their ids.
    pub fn metadata(&mut self) -> Result<(NodeInfo, Vec<TopicMetadata>), ClientError> {
        let mut topics = Vec::new();
        let mut start_after = 0;
        loop {
            let mut page = self.metadata_page(None, start_after)?;
            let last = page.topics.last().map(|topic| topic.id);
            topics.append(&mut page.topics);
            match last {
                Some(id) if page.more && id > start_after => start_after = id,
                _ => return Ok((NodeInfo::from(page), topics)),
            }
        }
    }

    /// One topic, from memory when it was asked for before; [`Self::forget_topic`] makes it be asked again.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownTopicOrPartition`] when there is none of that name.
    pub fn topic(&mut self, name: &str) -> Result<TopicMetadata, ClientError> {
        if let Some(topic) = self.topics.get(name) {
            return Ok(topic.clone());
        }
        let page = self.metadata_page(Some(name), 0)?;
        let topic =
            page.topics.into_iter().find(|topic| topic.name == name).ok_or_else(|| unknown_topic(name))?;
        self.topics.insert(name.to_owned(), topic.clone());
        Ok(topic)
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
        self.call(CONTROLLER, &request, Kind::Change, |received| match received.response {
            Response::CreateTopic(reply) => Some(reply.id),
            _ => None,
        })
    }

    /// Deletes a topic and its data.
    pub fn delete_topic(&mut self, name: &str) -> Result<(), ClientError> {
        self.forget_topic(name);
        let request = Request::DeleteTopic(DeleteTopicRequest { name });
        self.call(CONTROLLER, &request, Kind::Change, |received| match received.response {
            Response::DeleteTopic => Some(()),
            _ => None,
        })
    }

    /// A new producer id.
    pub fn init_producer_id(&mut self) -> Result<InitProducerIdReply, ClientError> {
        self.call(CONTROLLER, &Request::InitProducerId, Kind::Question, |received| match received.response {
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
        self.call_partition(
            topic,
            partition,
            |group| Request::ListOffsets(ListOffsetsRequest { group, spec }),
            |received| match received.response {
                Response::ListOffsets(reply) => Some(reply),
                _ => None,
            },
        )
    }

    /// Reads from a partition; `request.group` is filled in. The batches' bytes replace the content of `into`.
    pub fn fetch(
        &mut self,
        topic: &str,
        partition: u32,
        request: FetchRequest,
        into: &mut Vec<u8>,
    ) -> Result<FetchReplyHead, ClientError> {
        self.call_partition(
            topic,
            partition,
            |group| Request::Fetch(FetchRequest { group, ..request }),
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

    /// State of all partitions of a topic, in the order of their indexes.
    pub fn describe_topic(&mut self, topic: &str) -> Result<Vec<PartitionState>, ClientError> {
        self.forget_topic(topic);
        let metadata = self.topic(topic)?;
        let total = metadata.partitions.len() as u32;
        let mut shards: Vec<u16> = metadata.partitions.iter().map(|partition| partition.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        let mut states = Vec::new();
        for shard in shards {
            for first in (0..total).step_by(MAX_DESCRIBED_PARTITIONS as usize) {
                let count = MAX_DESCRIBED_PARTITIONS.min(total - first);
                let request = DescribePartitionsRequest { topic: metadata.id, first, count };
                let request = Request::DescribePartitions(request);
                states.extend(self.call(
                    shard,
                    &request,
                    Kind::Question,
                    |received| match received.response {
                        Response::DescribePartitions(states) => Some(states),
                        _ => None,
                    },
                )?);
            }
        }
        states.sort_unstable_by_key(|state| state.partition);
        Ok(states)
    }

    /// A round trip to a shard.
    pub fn ping(&mut self, shard: u16) -> Result<(), ClientError> {
        self.call(shard, &Request::Ping, Kind::Question, |received| {
            matches!(received.response, Response::Pong).then_some(())
        })
    }

    fn metadata_page(&mut self, topic: Option<&str>, start_after: u32) -> Result<MetadataReply, ClientError> {
        let request = Request::Metadata(MetadataRequest { topic, start_after });
        self.call(CONTROLLER, &request, Kind::Question, |received| match received.response {
            Response::Metadata(reply) => Some(*reply),
            _ => None,
        })
    }

    /// A request about one partition, to the shard that owns it; asks for the metadata again when it has moved.
    fn call_partition<'r, T>(
        &mut self,
        topic: &str,
        partition: u32,
        request: impl Fn(GroupId) -> Request<'r>,
        mut parse: impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + self.config.retry_for;
        let mut backoff = Backoff::new();
        loop {
            let metadata = self.topic(topic)?;
            let Some(place) = metadata.partitions.get(partition as usize) else {
                let detail = format!("topic {topic} has {} partitions", metadata.partitions.len());
                return Err(ClientError::Server { code: ErrorCode::UnknownTopicOrPartition, detail });
            };
            let group = GroupId::new(metadata.id, partition);
            match self.call(place.shard, &request(group), Kind::OfPartition, &mut parse) {
                Err(error) if error.asks_for_metadata() && Instant::now() < deadline => {
                    self.forget_topic(topic);
                    std::thread::sleep(backoff.step());
                }
                result => return result,
            }
        }
    }

    /// A request to a shard, tried again after retriable errors as its kind allows.
    fn call<T>(
        &mut self,
        shard: u16,
        request: &Request<'_>,
        kind: Kind,
        mut parse: impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + self.config.retry_for;
        let mut backoff = Backoff::new();
        if kind == Kind::Change {
            // One that the node has closed meanwhile would leave the outcome unknown.
            self.connections.remove(&shard);
        }
        loop {
            let error = match self.call_once(shard, request, &mut parse) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if error.breaks_connection() {
                self.connections.remove(&shard);
            }
            let final_for_kind = match kind {
                Kind::Question => false,
                Kind::Change => error.outcome() == Outcome::Unknown,
                Kind::OfPartition => error.asks_for_metadata(),
            };
            let wait = backoff.step();
            if !error.retriable() || final_for_kind || Instant::now() + wait >= deadline {
                return Err(error);
            }
            std::thread::sleep(wait);
        }
    }

    fn call_once<T>(
        &mut self,
        shard: u16,
        request: &Request<'_>,
        parse: &mut impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let connection = match self.connections.entry(shard) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(open(&self.addresses, &self.config, shard)?),
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
            nodes: reply.nodes,
            catalog_version: reply.version,
            server: reply.server,
        }
    }
}

/// A connection to `shard` at the first address that answers.
fn open(addresses: &[String], config: &ClientConfig, shard: u16) -> Result<Connection, ClientError> {
    let mut last = ClientError::Usage("no address of a node was given".into());
    for address in addresses {
        match Connection::connect_as(&config.name, address, Some(shard), config.connect_timeout) {
            Ok(mut connection) => {
                connection.set_timeout(config.request_timeout);
                return Ok(connection);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn unknown_topic(name: &str) -> ClientError {
    ClientError::Server {
        code: ErrorCode::UnknownTopicOrPartition,
        detail: format!("topic {name:?} does not exist on this node"),
    }
}
