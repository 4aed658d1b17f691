//! Replies: encoded by the server (without an allocation of their own), decoded by the client.

use pyralog_core::limits::{
    BATCH_HEADER_BYTES, MAX_NODES, MAX_PARTITIONS_PER_TOPIC, MAX_RACK_BYTES, MAX_REPLICATION_FACTOR,
    MAX_REPLY_BODY_BYTES, MAX_TOPIC_NAME_BYTES, MAX_TOPICS,
};
use pyralog_core::{ErrorCode, Outcome};

use super::request::{decode_group, decode_nodes, decode_quorums, group, nodes, quorums};
use super::write::{padding, truncated};
use super::{
    DecodeError, MAX_ADDRESS_BYTES, MAX_CLUSTER_NAME_BYTES, MAX_DESCRIBED_PARTITIONS, MAX_ERROR_DETAIL_BYTES,
    MAX_LISTED_REASSIGNMENTS, MAX_SERVER_VERSION_BYTES, Reader, Writer,
};
use crate::frame::{REPLY_BIT, kind};
use crate::message::{
    CreateTopicReply, Durability, ErrorReply, FetchReplyHead, InitProducerIdReply, ListOffsetsReply,
    ListReassignmentsReply, MetadataReply, NodeMetadata, PartitionHealth, PartitionMetadata, PartitionState,
    ProduceReply, Reassignment, ReplicaList, ReplicaMetadata, ReplicaRole, ReplicaState, ReplicationState,
    Response, ScrubReply, TopicMetadata,
};

const METADATA_HEAD_BYTES: usize = 32;
const NODE_HEAD_BYTES: usize = 16;
const TOPIC_HEAD_BYTES: usize = 32;
const PARTITION_METADATA_BYTES: usize = 16;
const REPLICA_METADATA_BYTES: usize = 8;
const PARTITION_STATE_BYTES: usize = 72;
const REASSIGNMENT_HEAD_BYTES: usize = 12;

/// A decoded reply: the message and, after a fetch, the bytes of the batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The message.
    pub response: Response,
    /// Whole batches, one after the other; empty for everything but a fetch.
    pub batches: &'a [u8],
}

impl Response {
    /// The kind of its frame.
    pub fn kind(&self) -> u16 {
        match self {
            Self::Error(_) => kind::ERROR,
            Self::Produce(_) => kind::PRODUCE | REPLY_BIT,
            Self::Fetch(_) => kind::FETCH | REPLY_BIT,
            Self::ListOffsets(_) => kind::LIST_OFFSETS | REPLY_BIT,
            Self::Metadata(_) => kind::METADATA | REPLY_BIT,
            Self::InitProducerId(_) => kind::INIT_PRODUCER_ID | REPLY_BIT,
            Self::CreateTopic(_) => kind::CREATE_TOPIC | REPLY_BIT,
            Self::DeleteTopic => kind::DELETE_TOPIC | REPLY_BIT,
            Self::DescribePartitions(_) => kind::DESCRIBE_PARTITIONS | REPLY_BIT,
            Self::Pong => kind::PING | REPLY_BIT,
            Self::ReassignPartition => kind::REASSIGN_PARTITION | REPLY_BIT,
            Self::ListReassignments(_) => kind::LIST_REASSIGNMENTS | REPLY_BIT,
            Self::RemoveNode => kind::REMOVE_NODE | REPLY_BIT,
            Self::RecoverPartition => kind::RECOVER_PARTITION | REPLY_BIT,
            Self::AddNode => kind::ADD_NODE | REPLY_BIT,
            Self::AlterTopic => kind::ALTER_TOPIC | REPLY_BIT,
            Self::Scrub(_) => kind::SCRUB | REPLY_BIT,
        }
    }

    /// Appends the whole frame to `out`. Of a fetch, header and head: the caller appends the `batch_bytes` bytes
    /// of batches, which the frame's length already counts.
    ///
    /// Texts above their bounds are cut; a page of metadata that exceeds the largest reply ends earlier, with
    /// `more` set.
    pub fn encode(&self, correlation_id: u64, out: &mut Vec<u8>) {
        let mut w = Writer::begin(out, self.kind(), correlation_id);
        let mut following_bytes = 0;
        match self {
            Self::Error(r) => encode_error(r.code, &r.detail, &mut w),
            Self::Produce(r) => {
                w.i64(r.base_offset).i64(r.high_watermark).u8(r.durability as u8).u8(u8::from(r.duplicate));
                w.reserved(6);
            }
            Self::Fetch(r) => {
                w.i64(r.log_start).i64(r.high_watermark).u32(r.batch_bytes).reserved(4);
                following_bytes = r.batch_bytes;
            }
            Self::ListOffsets(r) => {
                w.i64(r.offset).i64(r.timestamp);
            }
            Self::Metadata(r) => encode_metadata(r, &mut w),
            Self::InitProducerId(r) => {
                w.i64(r.producer_id).i16(r.producer_epoch).reserved(6);
            }
            Self::CreateTopic(r) => {
                w.u32(r.id).reserved(4);
            }
            Self::DescribePartitions(states) => {
                let count = states.len().min(MAX_DESCRIBED_PARTITIONS as usize);
                w.u32(count as u32).reserved(4);
                states.iter().take(count).for_each(|state| encode_state(state, &mut w));
            }
            Self::ListReassignments(r) => {
                let count = r.reassignments.len().min(MAX_LISTED_REASSIGNMENTS as usize);
                let more = r.more || count < r.reassignments.len();
                w.u32(count as u32).u8(u8::from(more)).reserved(3);
                r.reassignments.iter().take(count).for_each(|moved| encode_reassignment(moved, &mut w));
            }
            Self::Scrub(r) => {
                w.u8(u8::from(r.running)).reserved(3).u32(r.damaged).u64(r.done_bytes).u64(r.total_bytes);
                w.i64(r.ended_ms).u64(r.found).u64(r.repaired).u64(r.repaired_bytes).u64(r.failed);
            }
            Self::DeleteTopic
            | Self::Pong
            | Self::ReassignPartition
            | Self::RemoveNode
            | Self::RecoverPartition
            | Self::AddNode
            | Self::AlterTopic => {}
        }
        w.finish(following_bytes);
    }

    /// Appends the frame of an error reply to `out`, without an [`ErrorReply`] having to be made.
    pub fn encode_error(code: ErrorCode, detail: &str, correlation_id: u64, out: &mut Vec<u8>) {
        let mut w = Writer::begin(out, kind::ERROR, correlation_id);
        encode_error(code, detail, &mut w);
        w.finish(0);
    }

    /// The reply of this kind with this body.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Reply<'_>, DecodeError> {
        let mut reader = Reader::new(body);
        let mut batches: &[u8] = &[];
        let response = match kind {
            kind::ERROR => Self::Error(decode_error(&mut reader)?),
            _ if kind & REPLY_BIT == 0 => return Err(DecodeError::UnknownKind { kind }),
            _ => match kind & !REPLY_BIT {
                kind::PRODUCE => Self::Produce(decode_produce(&mut reader)?),
                kind::FETCH => {
                    let head = decode_fetch_head(&mut reader)?;
                    batches = reader.bytes(head.batch_bytes as usize, "batches")?;
                    Self::Fetch(head)
                }
                kind::LIST_OFFSETS => Self::ListOffsets(ListOffsetsReply {
                    offset: reader.i64("offset")?,
                    timestamp: reader.i64("timestamp")?,
                }),
                kind::METADATA => Self::Metadata(Box::new(decode_metadata(&mut reader)?)),
                kind::INIT_PRODUCER_ID => Self::InitProducerId(decode_init_producer_id(&mut reader)?),
                kind::CREATE_TOPIC => {
                    let id = reader.u32("topic")?;
                    reader.reserved(4, "topic")?;
                    Self::CreateTopic(CreateTopicReply { id })
                }
                kind::DELETE_TOPIC => Self::DeleteTopic,
                kind::DESCRIBE_PARTITIONS => Self::DescribePartitions(decode_states(&mut reader)?),
                kind::PING => Self::Pong,
                kind::REASSIGN_PARTITION => Self::ReassignPartition,
                kind::REMOVE_NODE => Self::RemoveNode,
                kind::RECOVER_PARTITION => Self::RecoverPartition,
                kind::ADD_NODE => Self::AddNode,
                kind::ALTER_TOPIC => Self::AlterTopic,
                kind::SCRUB => Self::Scrub(decode_scrub(&mut reader)?),
                kind::LIST_REASSIGNMENTS => Self::ListReassignments(decode_reassignments(&mut reader)?),
                _ => return Err(DecodeError::UnknownKind { kind }),
            },
        };
        reader.finish()?;
        Ok(Reply { response, batches })
    }
}

fn encode_error(code: ErrorCode, detail: &str, w: &mut Writer<'_>) {
    let detail = truncated(detail, MAX_ERROR_DETAIL_BYTES);
    let outcome = u8::from(code.outcome() == Outcome::Unknown);
    w.u16(code as u16).u8(u8::from(code.retriable())).u8(outcome);
    w.u16(detail.len() as u16).reserved(2).bytes(detail.as_bytes());
}

/// A code that this version does not know becomes `Internal`, whose outcome is the one that promises least.
fn decode_error(reader: &mut Reader<'_>) -> Result<ErrorReply, DecodeError> {
    let number = reader.u16("code")?;
    let retriable = reader.bool("retriable")?;
    let _outcome = reader.bool("outcome")?;
    let len = reader.len_within("detail_len", MAX_ERROR_DETAIL_BYTES)?;
    reader.reserved(2, "detail_len")?;
    let detail = reader.text(len, "detail")?;
    match ErrorCode::from_u16(number) {
        Some(ErrorCode::None) => Err(DecodeError::UnknownValue { field: "code", value: 0 }),
        Some(code) => Ok(ErrorReply { code, detail: detail.to_owned() }),
        None => {
            let retriable = if retriable { "retriable" } else { "not retriable" };
            let detail =
                format!("error code {number} ({retriable}), which this client does not know: {detail}");
            Ok(ErrorReply { code: ErrorCode::Internal, detail })
        }
    }
}

fn decode_produce(reader: &mut Reader<'_>) -> Result<ProduceReply, DecodeError> {
    let reply = ProduceReply {
        base_offset: reader.i64("base_offset")?,
        high_watermark: reader.i64("high_watermark")?,
        durability: match reader.u8("durability")? {
            0 => Durability::Memory,
            1 => Durability::Written,
            2 => Durability::LeaderDurable,
            3 => Durability::QuorumDurable,
            value => return Err(DecodeError::UnknownValue { field: "durability", value: u64::from(value) }),
        },
        duplicate: reader.bool("duplicate")?,
    };
    reader.reserved(6, "duplicate")?;
    Ok(reply)
}

fn decode_fetch_head(reader: &mut Reader<'_>) -> Result<FetchReplyHead, DecodeError> {
    let head = FetchReplyHead {
        log_start: reader.i64("log_start")?,
        high_watermark: reader.i64("high_watermark")?,
        batch_bytes: reader.u32("batch_bytes")?,
    };
    reader.reserved(4, "batch_bytes")?;
    if head.batch_bytes != 0 && (head.batch_bytes as usize) < BATCH_HEADER_BYTES {
        return Err(DecodeError::BatchTooSmall { bytes: head.batch_bytes as usize });
    }
    Ok(head)
}

fn decode_scrub(reader: &mut Reader<'_>) -> Result<ScrubReply, DecodeError> {
    let running = reader.bool("running")?;
    reader.reserved(3, "running")?;
    Ok(ScrubReply {
        running,
        damaged: reader.u32("damaged")?,
        done_bytes: reader.u64("done")?,
        total_bytes: reader.u64("total")?,
        ended_ms: reader.i64("ended")?,
        found: reader.u64("found")?,
        repaired: reader.u64("repaired")?,
        repaired_bytes: reader.u64("repaired_bytes")?,
        failed: reader.u64("failed")?,
    })
}

fn decode_init_producer_id(reader: &mut Reader<'_>) -> Result<InitProducerIdReply, DecodeError> {
    let reply = InitProducerIdReply {
        producer_id: reader.i64("producer_id")?,
        producer_epoch: reader.i16("producer_epoch")?,
    };
    reader.reserved(6, "producer_epoch")?;
    Ok(reply)
}

/// Adds up what a page of metadata takes on the wire, so that the server can end a page in time.
#[derive(Clone, Copy, Debug)]
pub struct MetadataReplySize {
    bytes: usize,
}

impl MetadataReplySize {
    /// A page without nodes and topics.
    pub fn new(server: &str, cluster: &str) -> Self {
        let padded = |text: &str| text.len().saturating_add(padding(text.len()));
        Self { bytes: METADATA_HEAD_BYTES.saturating_add(padded(server)).saturating_add(padded(cluster)) }
    }

    /// Adds a node.
    pub fn add_node(&mut self, address: &str, rack: &str) {
        let padded = |text: &str| text.len().saturating_add(padding(text.len()));
        let texts = padded(address).saturating_add(padded(rack));
        self.bytes = self.bytes.saturating_add(NODE_HEAD_BYTES).saturating_add(texts);
    }

    /// Adds a topic whose partitions have `replicas` replicas in all.
    pub fn add_topic(&mut self, name: &str, partitions: usize, replicas: usize) {
        let name_bytes = name.len().saturating_add(padding(name.len()));
        let partition_bytes = partitions
            .saturating_mul(PARTITION_METADATA_BYTES)
            .saturating_add(replicas.saturating_mul(REPLICA_METADATA_BYTES));
        self.bytes = self
            .bytes
            .saturating_add(TOPIC_HEAD_BYTES)
            .saturating_add(name_bytes)
            .saturating_add(partition_bytes);
    }

    /// The reply's body so far, bytes.
    pub fn body_bytes(&self) -> usize {
        self.bytes
    }
}

fn encode_metadata(r: &MetadataReply, w: &mut Writer<'_>) {
    let server = truncated(&r.server, MAX_SERVER_VERSION_BYTES);
    let cluster = truncated(&r.cluster, MAX_CLUSTER_NAME_BYTES);
    let mut size = MetadataReplySize::new(server, cluster);
    let nodes = r.nodes.len().min(MAX_NODES);
    w.u64(r.version).u32(r.node).u32(r.controller);
    w.u16(nodes as u16).reserved(2).u16(server.len() as u16).u16(cluster.len() as u16).reserved(4);
    w.u16(r.feature_level).reserved(2);
    w.padded_text(server).padded_text(cluster);
    for node in r.nodes.iter().take(nodes) {
        let address = truncated(&node.address, MAX_ADDRESS_BYTES);
        let rack = truncated(&node.rack, MAX_RACK_BYTES);
        size.add_node(address, rack);
        w.u32(node.id).u16(node.shards).u16(address.len() as u16).u16(rack.len() as u16);
        w.u16(node.level_min).u16(node.level_max).reserved(2);
        w.padded_text(address).padded_text(rack);
    }
    let mut count: u32 = 0;
    for topic in &r.topics {
        let replicas = topic.partitions.iter().fold(0usize, |sum, p| sum.saturating_add(p.replicas.len()));
        size.add_topic(&topic.name, topic.partitions.len(), replicas);
        let fits = size.body_bytes() <= MAX_REPLY_BODY_BYTES
            && count < MAX_TOPICS
            && topic.partitions.len() <= MAX_PARTITIONS_PER_TOPIC as usize
            && topic.name.len() <= MAX_TOPIC_NAME_BYTES;
        if !fits {
            break;
        }
        encode_topic(topic, w);
        count = count.saturating_add(1);
    }
    let more = r.more || (count as usize) < r.topics.len();
    w.patch(18, &u16::from(more).to_le_bytes());
    w.patch(24, &count.to_le_bytes());
}

fn encode_topic(topic: &TopicMetadata, w: &mut Writer<'_>) {
    w.u32(topic.id).u32(topic.partitions.len() as u32).i64(topic.retention_bytes).i64(topic.retention_ms);
    w.u16(topic.name.len() as u16).reserved(2);
    quorums(w, topic.quorums).padded_text(&topic.name);
    for partition in &topic.partitions {
        w.u32(partition.leader).u32(partition.epoch).u16(partition.shard);
        w.u8(partition.replicas.len() as u8).reserved(5);
        for replica in partition.replicas.iter() {
            w.u32(replica.node).u16(replica.shard).u8(u8::from(replica.in_sync)).reserved(1);
        }
    }
}

fn decode_metadata(reader: &mut Reader<'_>) -> Result<MetadataReply, DecodeError> {
    let version = reader.u64("version")?;
    let node = reader.u32("node")?;
    let controller = reader.u32("controller")?;
    let nodes = reader.len_within("nodes", MAX_NODES)?;
    let more = match reader.u16("more")? {
        0 => false,
        1 => true,
        value => return Err(DecodeError::UnknownValue { field: "more", value: u64::from(value) }),
    };
    let server_len = reader.len_within("server_len", MAX_SERVER_VERSION_BYTES)?;
    let cluster_len = reader.len_within("cluster_len", MAX_CLUSTER_NAME_BYTES)?;
    let count = reader.u32_within("topics", MAX_TOPICS)?;
    let feature_level = reader.u16("feature_level")?;
    reader.reserved(2, "feature_level")?;
    let server = reader.padded_text(server_len, "server")?.to_owned();
    let cluster = reader.padded_text(cluster_len, "cluster")?.to_owned();
    reader.fits(nodes as u32, NODE_HEAD_BYTES, "nodes")?;
    let nodes = (0..nodes).map(|_| decode_node(reader)).collect::<Result<_, _>>()?;
    reader.fits(count, TOPIC_HEAD_BYTES, "topics")?;
    let topics = (0..count).map(|_| decode_topic(reader)).collect::<Result<_, _>>()?;
    Ok(MetadataReply { node, controller, cluster, nodes, version, feature_level, server, more, topics })
}

fn decode_node(reader: &mut Reader<'_>) -> Result<NodeMetadata, DecodeError> {
    let id = reader.u32("node")?;
    let shards = reader.u16("shards")?;
    let address_len = reader.len_within("address_len", MAX_ADDRESS_BYTES)?;
    let rack_len = reader.len_within("rack_len", MAX_RACK_BYTES)?;
    let (level_min, level_max) = (reader.u16("level_min")?, reader.u16("level_max")?);
    reader.reserved(2, "level_max")?;
    let address = reader.padded_text(address_len, "address")?.to_owned();
    let rack = reader.padded_text(rack_len, "rack")?.to_owned();
    Ok(NodeMetadata { id, shards, address, rack, level_min, level_max })
}

fn decode_topic(reader: &mut Reader<'_>) -> Result<TopicMetadata, DecodeError> {
    let id = reader.u32("topic")?;
    let count = reader.u32_within("partitions", MAX_PARTITIONS_PER_TOPIC)?;
    let retention_bytes = reader.i64("retention_bytes")?;
    let retention_ms = reader.i64("retention_ms")?;
    let name_len = reader.len_within("name_len", MAX_TOPIC_NAME_BYTES)?;
    reader.reserved(2, "name_len")?;
    let quorums = decode_quorums(reader)?;
    let name = reader.padded_text(name_len, "name")?.to_owned();
    reader.fits(count, PARTITION_METADATA_BYTES, "partitions")?;
    let partitions = (0..count).map(|_| decode_partition(reader)).collect::<Result<_, _>>()?;
    Ok(TopicMetadata { id, name, quorums, retention_bytes, retention_ms, partitions })
}

fn decode_partition(reader: &mut Reader<'_>) -> Result<PartitionMetadata, DecodeError> {
    let leader = reader.u32("leader")?;
    let epoch = reader.u32("epoch")?;
    let shard = reader.u16("shard")?;
    let count = decode_replica_count(reader)?;
    reader.reserved(5, "replicas")?;
    let mut replicas = ReplicaList::default();
    for _ in 0..count {
        let replica = ReplicaMetadata {
            node: reader.u32("node")?,
            shard: reader.u16("shard")?,
            in_sync: reader.bool("in_sync")?,
        };
        reader.reserved(1, "in_sync")?;
        replicas.push(replica);
    }
    Ok(PartitionMetadata { leader, epoch, shard, replicas })
}

fn decode_replica_count(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    let (count, max) = (reader.u8("replicas")?, MAX_REPLICATION_FACTOR);
    match count <= max {
        true => Ok(count),
        false => Err(DecodeError::OutOfBound { field: "replicas", value: count.into(), max: max.into() }),
    }
}

fn encode_state(state: &PartitionState, w: &mut Writer<'_>) {
    w.u32(state.partition).u32(state.epoch);
    w.i64(state.log_start).i64(state.high_watermark).i64(state.log_end).i64(state.flushed);
    w.u64(state.segment_bytes).u64(state.cached_bytes).u32(state.segments).u32(state.producers);
    w.u8(state.health as u8).u8(state.replicas.len() as u8).reserved(2).u32(state.leader);
    for replica in state.replicas.iter() {
        w.u32(replica.node).u16(replica.shard).u8(replica_flags(replica)).u8(replica.state as u8);
        w.i64(replica.log_end).u64(replica.lag_bytes).u64(replica.lag_ms);
    }
}

fn decode_states(reader: &mut Reader<'_>) -> Result<Vec<PartitionState>, DecodeError> {
    let count = reader.u32_within("count", MAX_DESCRIBED_PARTITIONS)?;
    reader.reserved(4, "count")?;
    reader.fits(count, PARTITION_STATE_BYTES, "partitions")?;
    (0..count).map(|_| decode_state(reader)).collect()
}

fn decode_state(reader: &mut Reader<'_>) -> Result<PartitionState, DecodeError> {
    let mut state = PartitionState {
        leader: 0,
        replicas: ReplicaList::default(),
        partition: reader.u32("partition")?,
        epoch: reader.u32("epoch")?,
        log_start: reader.i64("log_start")?,
        high_watermark: reader.i64("high_watermark")?,
        log_end: reader.i64("log_end")?,
        flushed: reader.i64("flushed")?,
        segment_bytes: reader.u64("segment_bytes")?,
        cached_bytes: reader.u64("cached_bytes")?,
        segments: reader.u32("segments")?,
        producers: reader.u32("producers")?,
        health: match reader.u8("health")? {
            0 => PartitionHealth::Online,
            1 => PartitionHealth::Damaged,
            2 => PartitionHealth::LogEndUnknown,
            3 => PartitionHealth::Rejoining,
            value => return Err(DecodeError::UnknownValue { field: "health", value: u64::from(value) }),
        },
    };
    let count = decode_replica_count(reader)?;
    reader.reserved(2, "replicas")?;
    state.leader = reader.u32("leader")?;
    for _ in 0..count {
        let (node, shard) = (reader.u32("node")?, reader.u16("shard")?);
        let (in_sync, role) = decode_role(reader.u8("flags")?)?;
        let number = reader.u8("state")?;
        let does = ReplicationState::from_number(number)
            .ok_or(DecodeError::UnknownValue { field: "state", value: number.into() })?;
        let log_end = reader.i64("log_end")?;
        let (lag_bytes, lag_ms) = (reader.u64("lag_bytes")?, reader.u64("lag_ms")?);
        let replica = ReplicaState { node, shard, in_sync, role, state: does, log_end, lag_bytes, lag_ms };
        state.replicas.push(replica);
    }
    Ok(state)
}

fn encode_reassignment(moved: &Reassignment, w: &mut Writer<'_>) {
    let most = usize::from(MAX_REPLICATION_FACTOR);
    let (from, to) = (moved.from.len().min(most), moved.to.len().min(most));
    group(w, moved.group).u8(from as u8).u8(to as u8).reserved(2);
    nodes(w, moved.from.get(..from).unwrap_or_default());
    nodes(w, moved.to.get(..to).unwrap_or_default());
}

fn decode_reassignments(reader: &mut Reader<'_>) -> Result<ListReassignmentsReply, DecodeError> {
    let count = reader.u32_within("count", MAX_LISTED_REASSIGNMENTS)?;
    let more = reader.bool("more")?;
    reader.reserved(3, "more")?;
    reader.fits(count, REASSIGNMENT_HEAD_BYTES, "count")?;
    let mut reply = ListReassignmentsReply { reassignments: Vec::new(), more };
    for _ in 0..count {
        let group = decode_group(reader)?;
        let from = reader.count_within("from_count", MAX_REPLICATION_FACTOR)?;
        let to = reader.count_within("to_count", MAX_REPLICATION_FACTOR)?;
        reader.reserved(2, "to_count")?;
        let (from, to) = (decode_nodes(reader, from)?, decode_nodes(reader, to)?);
        reply.reassignments.push(Reassignment { group, from, to });
    }
    Ok(reply)
}

const IN_SYNC: u8 = 1;
const JOINING: u8 = 2;
const LEAVING: u8 = 4;

fn replica_flags(replica: &ReplicaState) -> u8 {
    let role = match replica.role {
        ReplicaRole::Voter => 0,
        ReplicaRole::Joining => JOINING,
        ReplicaRole::Leaving => LEAVING,
    };
    role | if replica.in_sync { IN_SYNC } else { 0 }
}

fn decode_role(flags: u8) -> Result<(bool, ReplicaRole), DecodeError> {
    let role = match flags & !IN_SYNC {
        0 => ReplicaRole::Voter,
        JOINING => ReplicaRole::Joining,
        LEAVING => ReplicaRole::Leaving,
        _ => return Err(DecodeError::UnknownValue { field: "flags", value: u64::from(flags) }),
    };
    Ok((flags & IN_SYNC != 0, role))
}
