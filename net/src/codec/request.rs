//! Requests: decoded without a copy by the server, encoded by the client.

use pyralog_core::limits::{
    BATCH_HEADER_BYTES, MAX_ADDRESS_BYTES, MAX_BATCH_BYTES, MAX_FETCH_BYTES, MAX_FETCH_WAIT_MS,
    MAX_REPLICATION_FACTOR, MAX_TOPIC_NAME_BYTES,
};
use pyralog_core::{GroupId, Quorums};

use super::{DecodeError, EncodeError, MAX_DESCRIBED_PARTITIONS, Reader, Writer};
use crate::frame::kind;
use crate::message::{
    Acks, AddNodeRequest, AlterTopicRequest, Consistency, CreateTopicRequest, DeleteTopicRequest,
    DescribePartitionsRequest, FetchRequest, ListOffsetsRequest, ListReassignmentsRequest, MetadataRequest,
    OffsetSpec, ProduceRequest, ReassignPartitionRequest, RecoverPartitionRequest, RemoveNodeRequest,
    Request, ScrubRequest,
};

impl<'a> Request<'a> {
    /// The request of this kind with this body. `Hello` is not among them: it belongs to the driver.
    pub fn decode(kind: u16, body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let request = match kind {
            kind::PRODUCE => Self::Produce(decode_produce(&mut reader)?),
            kind::FETCH => Self::Fetch(decode_fetch(&mut reader)?),
            kind::LIST_OFFSETS => Self::ListOffsets(decode_list_offsets(&mut reader)?),
            kind::METADATA => Self::Metadata(decode_metadata(&mut reader)?),
            kind::INIT_PRODUCER_ID => Self::InitProducerId,
            kind::CREATE_TOPIC => Self::CreateTopic(decode_create_topic(&mut reader)?),
            kind::DELETE_TOPIC => Self::DeleteTopic(decode_delete_topic(&mut reader)?),
            kind::DESCRIBE_PARTITIONS => Self::DescribePartitions(decode_describe(&mut reader)?),
            kind::PING => Self::Ping,
            kind::REASSIGN_PARTITION => Self::ReassignPartition(decode_reassign(&mut reader)?),
            kind::LIST_REASSIGNMENTS => {
                Self::ListReassignments(ListReassignmentsRequest { from: decode_group(&mut reader)? })
            }
            kind::ALTER_TOPIC => Self::AlterTopic(decode_alter_topic(&mut reader)?),
            kind::REMOVE_NODE => Self::RemoveNode(decode_remove_node(&mut reader)?),
            kind::RECOVER_PARTITION => Self::RecoverPartition(decode_recover(&mut reader)?),
            kind::ADD_NODE => Self::AddNode(decode_add_node(&mut reader)?),
            kind::SCRUB => Self::Scrub(decode_scrub(&mut reader)?),
            kind => return Err(DecodeError::UnknownKind { kind }),
        };
        reader.finish()?;
        Ok(request)
    }

    /// The kind of its frame.
    pub fn kind(&self) -> u16 {
        match self {
            Self::Produce(_) => kind::PRODUCE,
            Self::Fetch(_) => kind::FETCH,
            Self::ListOffsets(_) => kind::LIST_OFFSETS,
            Self::Metadata(_) => kind::METADATA,
            Self::InitProducerId => kind::INIT_PRODUCER_ID,
            Self::CreateTopic(_) => kind::CREATE_TOPIC,
            Self::DeleteTopic(_) => kind::DELETE_TOPIC,
            Self::DescribePartitions(_) => kind::DESCRIBE_PARTITIONS,
            Self::Ping => kind::PING,
            Self::ReassignPartition(_) => kind::REASSIGN_PARTITION,
            Self::ListReassignments(_) => kind::LIST_REASSIGNMENTS,
            Self::RemoveNode(_) => kind::REMOVE_NODE,
            Self::RecoverPartition(_) => kind::RECOVER_PARTITION,
            Self::AddNode(_) => kind::ADD_NODE,
            Self::AlterTopic(_) => kind::ALTER_TOPIC,
            Self::Scrub(_) => kind::SCRUB,
        }
    }

    /// Appends the whole frame to `out`. Nothing is appended when a field exceeds its bound.
    pub fn encode(&self, correlation_id: u64, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.check()?;
        let mut w = Writer::begin(out, self.kind(), correlation_id);
        match self {
            Self::Produce(r) => {
                group(&mut w, r.group).u32(r.timeout_ms).u8(r.acks as u8).reserved(3).bytes(r.batch);
            }
            Self::Fetch(r) => {
                group(&mut w, r.group).i64(r.offset).u32(r.min_bytes).u32(r.max_bytes).u32(r.max_wait_ms);
                w.u8(r.consistency as u8).reserved(3);
            }
            Self::ListOffsets(r) => {
                let (spec, timestamp) = match r.spec {
                    OffsetSpec::Earliest => (0, 0),
                    OffsetSpec::Latest => (1, 0),
                    OffsetSpec::Timestamp(timestamp) => (2, timestamp),
                };
                group(&mut w, r.group).u8(spec).u8(r.consistency as u8).reserved(6).i64(timestamp);
            }
            Self::Metadata(r) => {
                let topic = r.topic.unwrap_or_default();
                w.u32(r.start_after).u16(topic.len() as u16).reserved(2).bytes(topic.as_bytes());
            }
            Self::CreateTopic(r) => {
                w.u32(r.partitions).u16(r.name.len() as u16).reserved(2);
                quorums(&mut w, r.quorums).reserved(4);
                w.i64(r.retention_bytes).i64(r.retention_ms).bytes(r.name.as_bytes());
            }
            Self::DeleteTopic(r) => {
                w.u16(r.name.len() as u16).reserved(6).bytes(r.name.as_bytes());
            }
            Self::DescribePartitions(r) => {
                w.u32(r.topic).u32(r.first).u32(r.count).reserved(4);
            }
            Self::ReassignPartition(r) => {
                w.u32(r.partition).u16(r.topic.len() as u16).u8(r.nodes.len() as u8).reserved(1);
                nodes(&mut w, &r.nodes).bytes(r.topic.as_bytes());
            }
            Self::ListReassignments(r) => _ = group(&mut w, r.from),
            Self::AlterTopic(r) => {
                w.u32(r.partitions).u16(r.name.len() as u16).reserved(2);
                quorums(&mut w, r.quorums).reserved(4);
                w.i64(r.retention_bytes).i64(r.retention_ms).bytes(r.name.as_bytes());
            }
            Self::RemoveNode(r) => _ = w.u32(r.node).reserved(4),
            Self::RecoverPartition(r) => {
                w.u32(r.partition).u32(r.node).u32(r.epoch).u16(r.topic.len() as u16).reserved(2);
                w.bytes(r.topic.as_bytes());
            }
            Self::AddNode(r) => {
                w.u32(r.node).u16(r.internal_address.len() as u16).reserved(2);
                w.bytes(r.internal_address.as_bytes());
            }
            Self::Scrub(r) => _ = w.u8(u8::from(r.start)).reserved(7),
            Self::InitProducerId | Self::Ping => {}
        }
        w.finish(0);
        Ok(())
    }

    fn check(&self) -> Result<(), EncodeError> {
        let name =
            |name: &str| EncodeError::check("name_len", name.len() as u64, MAX_TOPIC_NAME_BYTES as u64);
        match self {
            Self::Produce(r) => {
                EncodeError::check("the batch's length", r.batch.len() as u64, MAX_BATCH_BYTES as u64)
            }
            Self::Fetch(r) => {
                EncodeError::check("min_bytes", u64::from(r.min_bytes), MAX_FETCH_BYTES as u64)?;
                EncodeError::check("max_bytes", u64::from(r.max_bytes), MAX_FETCH_BYTES as u64)?;
                EncodeError::check("max_wait_ms", u64::from(r.max_wait_ms), u64::from(MAX_FETCH_WAIT_MS))
            }
            Self::Metadata(r) => name(r.topic.unwrap_or_default()),
            Self::CreateTopic(r) => name(r.name),
            Self::DeleteTopic(r) => name(r.name),
            Self::AlterTopic(r) => name(r.name),
            Self::RecoverPartition(r) => name(r.topic),
            Self::DescribePartitions(r) => {
                EncodeError::check("count", u64::from(r.count), u64::from(MAX_DESCRIBED_PARTITIONS))
            }
            Self::ReassignPartition(r) => {
                name(r.topic)?;
                EncodeError::check("node_count", r.nodes.len() as u64, u64::from(MAX_REPLICATION_FACTOR))
            }
            Self::AddNode(r) => {
                EncodeError::check("address_len", r.internal_address.len() as u64, MAX_ADDRESS_BYTES as u64)
            }
            Self::ListOffsets(_)
            | Self::InitProducerId
            | Self::Ping
            | Self::Scrub(_)
            | Self::ListReassignments(_)
            | Self::RemoveNode(_) => Ok(()),
        }
    }
}

pub(super) fn quorums<'w, 'a>(w: &'w mut Writer<'a>, quorums: Quorums) -> &'w mut Writer<'a> {
    w.u8(quorums.replication_factor)
        .u8(quorums.write_quorum)
        .u8(quorums.read_quorum)
        .u8(quorums.min_insync_replicas)
}

/// Whether the numbers fit each other is for the catalogue to say, with a reason.
pub(super) fn decode_quorums(reader: &mut Reader<'_>) -> Result<Quorums, DecodeError> {
    Ok(Quorums {
        replication_factor: reader.u8("replication_factor")?,
        write_quorum: reader.u8("write_quorum")?,
        read_quorum: reader.u8("read_quorum")?,
        min_insync_replicas: reader.u8("min_insync_replicas")?,
    })
}

pub(super) fn nodes<'w, 'a>(w: &'w mut Writer<'a>, nodes: &[u32]) -> &'w mut Writer<'a> {
    nodes.iter().fold(w, |w, node| w.u32(*node))
}

pub(super) fn decode_nodes(reader: &mut Reader<'_>, count: usize) -> Result<Vec<u32>, DecodeError> {
    (0..count).map(|_| reader.u32("node")).collect()
}

pub(super) fn group<'w, 'a>(w: &'w mut Writer<'a>, group: GroupId) -> &'w mut Writer<'a> {
    w.u32(group.topic.0).u32(group.partition)
}

pub(super) fn decode_group(reader: &mut Reader<'_>) -> Result<GroupId, DecodeError> {
    Ok(GroupId::new(reader.u32("topic")?, reader.u32("partition")?))
}

fn decode_produce<'a>(reader: &mut Reader<'a>) -> Result<ProduceRequest<'a>, DecodeError> {
    let group = decode_group(reader)?;
    let timeout_ms = reader.u32("timeout_ms")?;
    let acks = match reader.u8("acks")? {
        0 => Acks::None,
        1 => Acks::Leader,
        2 => Acks::Quorum,
        value => return Err(DecodeError::UnknownValue { field: "acks", value: u64::from(value) }),
    };
    reader.reserved(3, "acks")?;
    let batch = reader.rest();
    if batch.len() < BATCH_HEADER_BYTES {
        return Err(DecodeError::BatchTooSmall { bytes: batch.len() });
    }
    if batch.len() > MAX_BATCH_BYTES {
        return Err(DecodeError::BatchTooLarge { bytes: batch.len(), max: MAX_BATCH_BYTES });
    }
    Ok(ProduceRequest { group, acks, timeout_ms, batch })
}

fn decode_fetch(reader: &mut Reader<'_>) -> Result<FetchRequest, DecodeError> {
    let request = FetchRequest {
        group: decode_group(reader)?,
        offset: reader.i64("offset")?,
        min_bytes: reader.u32_within("min_bytes", MAX_FETCH_BYTES as u32)?,
        max_bytes: reader.u32_within("max_bytes", MAX_FETCH_BYTES as u32)?,
        max_wait_ms: reader.u32_within("max_wait_ms", MAX_FETCH_WAIT_MS)?,
        consistency: decode_consistency(reader)?,
    };
    reader.reserved(3, "consistency")?;
    Ok(request)
}

fn decode_consistency(reader: &mut Reader<'_>) -> Result<Consistency, DecodeError> {
    let value = reader.u8("consistency")?;
    let unknown = DecodeError::UnknownValue { field: "consistency", value: u64::from(value) };
    Consistency::from_number(value).ok_or(unknown)
}

fn decode_list_offsets(reader: &mut Reader<'_>) -> Result<ListOffsetsRequest, DecodeError> {
    let group = decode_group(reader)?;
    let spec = reader.u8("spec")?;
    let consistency = decode_consistency(reader)?;
    reader.reserved(6, "consistency")?;
    let timestamp = reader.i64("timestamp")?;
    let spec = match (spec, timestamp) {
        (0, 0) => OffsetSpec::Earliest,
        (1, 0) => OffsetSpec::Latest,
        (2, timestamp) => OffsetSpec::Timestamp(timestamp),
        (0 | 1, _) => return Err(DecodeError::ReservedNotZero { after: "spec" }),
        (value, _) => return Err(DecodeError::UnknownValue { field: "spec", value: u64::from(value) }),
    };
    Ok(ListOffsetsRequest { group, spec, consistency })
}

fn decode_metadata<'a>(reader: &mut Reader<'a>) -> Result<MetadataRequest<'a>, DecodeError> {
    let start_after = reader.u32("start_after")?;
    let len = reader.len_within("name_len", MAX_TOPIC_NAME_BYTES)?;
    reader.reserved(2, "name_len")?;
    let name = reader.text(len, "name")?;
    Ok(MetadataRequest { topic: (!name.is_empty()).then_some(name), start_after })
}

fn decode_create_topic<'a>(reader: &mut Reader<'a>) -> Result<CreateTopicRequest<'a>, DecodeError> {
    let partitions = reader.u32("partitions")?;
    let len = reader.len_within("name_len", MAX_TOPIC_NAME_BYTES)?;
    reader.reserved(2, "name_len")?;
    let quorums = decode_quorums(reader)?;
    reader.reserved(4, "min_insync_replicas")?;
    Ok(CreateTopicRequest {
        partitions,
        quorums,
        retention_bytes: reader.i64("retention_bytes")?,
        retention_ms: reader.i64("retention_ms")?,
        name: reader.text(len, "name")?,
    })
}

fn decode_delete_topic<'a>(reader: &mut Reader<'a>) -> Result<DeleteTopicRequest<'a>, DecodeError> {
    let len = reader.len_within("name_len", MAX_TOPIC_NAME_BYTES)?;
    reader.reserved(6, "name_len")?;
    Ok(DeleteTopicRequest { name: reader.text(len, "name")? })
}

fn decode_describe(reader: &mut Reader<'_>) -> Result<DescribePartitionsRequest, DecodeError> {
    let request = DescribePartitionsRequest {
        topic: reader.u32("topic")?,
        first: reader.u32("first")?,
        count: reader.u32_within("count", MAX_DESCRIBED_PARTITIONS)?,
    };
    reader.reserved(4, "count")?;
    Ok(request)
}

fn decode_reassign<'a>(reader: &mut Reader<'a>) -> Result<ReassignPartitionRequest<'a>, DecodeError> {
    let partition = reader.u32("partition")?;
    let len = reader.len_within("name_len", MAX_TOPIC_NAME_BYTES)?;
    let count = reader.count_within("node_count", MAX_REPLICATION_FACTOR)?;
    reader.reserved(1, "node_count")?;
    Ok(ReassignPartitionRequest {
        partition,
        nodes: decode_nodes(reader, count)?,
        topic: reader.text(len, "name")?,
    })
}

fn decode_remove_node(reader: &mut Reader<'_>) -> Result<RemoveNodeRequest, DecodeError> {
    let node = reader.u32("node")?;
    reader.reserved(4, "node")?;
    Ok(RemoveNodeRequest { node })
}

fn decode_recover<'a>(reader: &mut Reader<'a>) -> Result<RecoverPartitionRequest<'a>, DecodeError> {
    let (partition, node, epoch) = (reader.u32("partition")?, reader.u32("node")?, reader.u32("epoch")?);
    let len = reader.len_within("name_len", MAX_TOPIC_NAME_BYTES)?;
    reader.reserved(2, "name_len")?;
    Ok(RecoverPartitionRequest { topic: reader.text(len, "name")?, partition, node, epoch })
}

fn decode_add_node<'a>(reader: &mut Reader<'a>) -> Result<AddNodeRequest<'a>, DecodeError> {
    let node = reader.u32("node")?;
    let len = reader.len_within("address_len", MAX_ADDRESS_BYTES)?;
    reader.reserved(2, "address_len")?;
    Ok(AddNodeRequest { node, internal_address: reader.text(len, "internal_address")? })
}

fn decode_scrub(reader: &mut Reader<'_>) -> Result<ScrubRequest, DecodeError> {
    let start = reader.bool("start")?;
    reader.reserved(7, "start")?;
    Ok(ScrubRequest { start })
}

fn decode_alter_topic<'a>(reader: &mut Reader<'a>) -> Result<AlterTopicRequest<'a>, DecodeError> {
    // The same layout as that of a new topic.
    let CreateTopicRequest { name, partitions, quorums, retention_bytes, retention_ms } =
        decode_create_topic(reader)?;
    Ok(AlterTopicRequest { name, partitions, quorums, retention_bytes, retention_ms })
}
