//! Encode and decode are each other's inverse for every message, and no bytes make a decoder panic.

#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use pyralog_core::limits::{BATCH_HEADER_BYTES, FRAME_HEADER_BYTES, MAX_BATCH_BYTES};
use pyralog_core::{ErrorCode, GroupId, Quorums};

use super::*;
use crate::frame::{FrameHeader, kind};
use crate::hello::{Hello, HelloReply};
use crate::message::*;
use crate::roundtrip::check_frames;

fn group() -> impl Strategy<Value = GroupId> {
    (any::<u32>(), any::<u32>()).prop_map(|(topic, partition)| GroupId::new(topic, partition))
}

/// The owned parts that requests borrow.
type Parts = (Vec<u8>, String, Option<String>);

fn parts() -> impl Strategy<Value = Parts> {
    (vec(any::<u8>(), BATCH_HEADER_BYTES..400), "[a-zA-Z0-9._-]{0,249}", option::of("[a-z]{1,249}"))
}

fn check_request(request: &Request<'_>, id: u64) {
    let mut bytes = b"before".to_vec();
    request.encode(id, &mut bytes).unwrap();
    let frame = &bytes[6..];
    let header = FrameHeader::decode_request(frame).unwrap().unwrap();
    assert_eq!((header.kind, header.correlation_id), (request.kind(), id));
    assert_eq!(header.frame_bytes(), frame.len());
    assert_eq!(Request::decode(header.kind, &frame[FRAME_HEADER_BYTES..]).as_ref(), Ok(request));
}

fn check_response(response: &Response, batches: &[u8], id: u64) {
    let mut bytes = b"before".to_vec();
    response.encode(id, &mut bytes);
    bytes.extend_from_slice(batches);
    let frame = &bytes[6..];
    let header = FrameHeader::decode_reply(frame).unwrap().unwrap();
    assert_eq!((header.kind, header.correlation_id), (response.kind(), id));
    assert_eq!(header.frame_bytes(), frame.len());
    let reply = Response::decode(header.kind, &frame[FRAME_HEADER_BYTES..]).unwrap();
    assert_eq!((&reply.response, reply.batches), (response, batches));
}

fn error_code() -> impl Strategy<Value = ErrorCode> {
    proptest::sample::select(&ErrorCode::ALL[1..])
}

fn quorums() -> impl Strategy<Value = Quorums> {
    any::<[u8; 4]>().prop_map(|[replication_factor, write_quorum, read_quorum, min_insync_replicas]| {
        Quorums { replication_factor, write_quorum, read_quorum, min_insync_replicas }
    })
}

fn topic() -> impl Strategy<Value = TopicMetadata> {
    let replica =
        any::<(u32, u16, bool)>().prop_map(|(node, shard, in_sync)| ReplicaMetadata { node, shard, in_sync });
    let partition = (any::<u32>(), any::<u32>(), any::<u16>(), vec(replica, 0..6)).prop_map(
        |(leader, epoch, shard, replicas)| {
            let replicas = replicas.into_iter().collect();
            PartitionMetadata { leader, epoch, shard, replicas }
        },
    );
    (any::<u32>(), "[a-z]{1,249}", quorums(), any::<[i64; 2]>(), vec(partition, 0..20)).prop_map(
        |(id, name, quorums, [retention_bytes, retention_ms], partitions)| TopicMetadata {
            id,
            name,
            quorums,
            retention_bytes,
            retention_ms,
            partitions,
        },
    )
}

fn node() -> impl Strategy<Value = NodeMetadata> {
    (any::<u32>(), any::<u16>(), "[a-z.:0-9]{0,60}", "[a-z-]{0,20}", any::<[u16; 2]>()).prop_map(
        |(id, shards, address, rack, [level_min, level_max])| NodeMetadata {
            id,
            shards,
            address,
            rack,
            level_min,
            level_max,
        },
    )
}

fn state() -> impl Strategy<Value = PartitionState> {
    let health = prop_oneof![
        Just(PartitionHealth::Online),
        Just(PartitionHealth::Damaged),
        Just(PartitionHealth::LogEndUnknown),
        Just(PartitionHealth::Rejoining)
    ];
    let replica = (any::<(u32, u16, bool, i64, u64, u64)>(), 0..6_u8).prop_map(
        |((node, shard, in_sync, log_end, lag_bytes, lag_ms), number)| ReplicaState {
            role: [ReplicaRole::Voter, ReplicaRole::Joining, ReplicaRole::Leaving][usize::from(shard) % 3],
            node,
            shard,
            in_sync,
            state: ReplicationState::from_number(number).unwrap(),
            log_end,
            lag_bytes,
            lag_ms,
        },
    );
    (any::<[u32; 5]>(), any::<[i64; 4]>(), any::<[u64; 2]>(), health, vec(replica, 0..6)).prop_map(
        |(small, offsets, sizes, health, replicas)| PartitionState {
            leader: small[4],
            replicas: replicas.into_iter().collect(),
            partition: small[0],
            epoch: small[1],
            log_start: offsets[0],
            high_watermark: offsets[1],
            log_end: offsets[2],
            flushed: offsets[3],
            segments: small[2],
            segment_bytes: sizes[0],
            cached_bytes: sizes[1],
            producers: small[3],
            health,
        },
    )
}

fn response() -> impl Strategy<Value = Response> {
    let durability = prop_oneof![
        Just(Durability::Memory),
        Just(Durability::Written),
        Just(Durability::LeaderDurable),
        Just(Durability::QuorumDurable)
    ];
    prop_oneof![
        (error_code(), "\\PC{0,200}").prop_map(|(code, detail)| Response::Error(ErrorReply { code, detail })),
        (any::<i64>(), any::<i64>(), durability, any::<bool>()).prop_map(
            |(base_offset, high_watermark, durability, duplicate)| {
                Response::Produce(ProduceReply { base_offset, high_watermark, durability, duplicate })
            }
        ),
        (any::<i64>(), any::<i64>())
            .prop_map(|(offset, timestamp)| Response::ListOffsets(ListOffsetsReply { offset, timestamp })),
        (
            any::<(u32, u32, u64, u16, bool)>(),
            vec(node(), 0..5),
            ["\\PC{0,30}", "[a-z]{0,64}"],
            vec(topic(), 0..5)
        )
            .prop_map(
                |((node, controller, version, feature_level, more), nodes, [server, cluster], topics)| {
                    Response::Metadata(Box::new(MetadataReply {
                        node,
                        controller,
                        cluster,
                        nodes,
                        version,
                        feature_level,
                        server,
                        more,
                        topics,
                    }))
                }
            ),
        (any::<i64>(), any::<i16>()).prop_map(|(producer_id, producer_epoch)| {
            Response::InitProducerId(InitProducerIdReply { producer_id, producer_epoch })
        }),
        any::<u32>().prop_map(|id| Response::CreateTopic(CreateTopicReply { id })),
        Just(Response::DeleteTopic),
        vec(state(), 0..20).prop_map(Response::DescribePartitions),
        Just(Response::Pong),
        Just(Response::ReassignPartition),
        Just(Response::RemoveNode),
        Just(Response::RecoverPartition),
        Just(Response::AddNode),
        Just(Response::AlterTopic),
        (any::<(bool, u32, i64)>(), any::<[u64; 6]>()).prop_map(|((running, damaged, ended_ms), counts)| {
            let [done_bytes, total_bytes, found, repaired, repaired_bytes, failed] = counts;
            Response::Scrub(ScrubReply {
                running,
                damaged,
                done_bytes,
                total_bytes,
                ended_ms,
                found,
                repaired,
                repaired_bytes,
                failed,
            })
        }),
        (vec(reassignment(), 0..20), any::<bool>()).prop_map(|(reassignments, more)| {
            Response::ListReassignments(ListReassignmentsReply { reassignments, more })
        }),
    ]
}

fn reassignment() -> impl Strategy<Value = Reassignment> {
    let nodes = || vec(any::<u32>(), 0..6);
    (group(), nodes(), nodes()).prop_map(|(group, from, to)| Reassignment { group, from, to })
}

proptest! {
    #[test]
    fn every_request_survives_the_wire(
        (batch, name, wanted) in parts(), group in group(), id: u64, numbers: [u32; 4], longs: [i64; 3],
        acks in prop_oneof![Just(Acks::None), Just(Acks::Leader), Just(Acks::Quorum)], quorums in quorums(),
    ) {
        let [a, b, c, d] = numbers;
        let [x, y, z] = longs;
        let max = pyralog_core::limits::MAX_FETCH_BYTES as u32;
        let requests = [
            Request::Produce(ProduceRequest { group, acks, timeout_ms: a, batch: &batch }),
            Request::Fetch(FetchRequest {
                group, offset: x, min_bytes: a % (max + 1), max_bytes: b % (max + 1), max_wait_ms: c % 60_001, consistency: Consistency::AnyReplica }),
            Request::ListOffsets(ListOffsetsRequest { group, spec: OffsetSpec::Earliest, consistency: Consistency::Leader }),
            Request::ListOffsets(ListOffsetsRequest { group, spec: OffsetSpec::Latest, consistency: Consistency::Linearizable }),
            Request::ListOffsets(ListOffsetsRequest { group, spec: OffsetSpec::Timestamp(y), consistency: Consistency::Leader }),
            Request::Metadata(MetadataRequest { topic: wanted.as_deref(), start_after: a }),
            Request::InitProducerId,
            Request::CreateTopic(CreateTopicRequest {
                name: &name, partitions: b, quorums, retention_bytes: y, retention_ms: z,
            }),
            Request::DeleteTopic(DeleteTopicRequest { name: &name }),
            Request::DescribePartitions(DescribePartitionsRequest { topic: a, first: b, count: d % 1001 }),
            Request::Ping,
            Request::ReassignPartition(ReassignPartitionRequest {
                topic: &name, partition: a, nodes: numbers.iter().take((b % 5) as usize).copied().collect(),
            }),
            Request::ListReassignments(ListReassignmentsRequest { from: group }),
            Request::RemoveNode(RemoveNodeRequest { node: a }),
            Request::RecoverPartition(RecoverPartitionRequest { topic: &name, partition: a, node: b, epoch: d }),
            Request::AddNode(AddNodeRequest { node: a, internal_address: &name }),
            Request::Scrub(ScrubRequest { start: a % 2 == 0 }),
            Request::AlterTopic(AlterTopicRequest {
                name: &name, partitions: b, quorums, retention_bytes: y, retention_ms: z,
            }),
        ];
        for request in &requests {
            check_request(request, id);
        }
    }

    #[test]
    fn every_reply_survives_the_wire(response in response(), id: u64) {
        check_response(&response, &[], id);
    }

    #[test]
    fn a_fetched_batch_follows_its_head(batches in vec(any::<u8>(), 61..500), log_start: i64, high_watermark: i64) {
        let head = FetchReplyHead { log_start, high_watermark, batch_bytes: batches.len() as u32 };
        check_response(&Response::Fetch(head), &batches, 7);
        check_response(&Response::Fetch(FetchReplyHead { batch_bytes: 0, ..head }), &[], 7);
    }

    #[test]
    fn the_handshake_survives_the_wire(small: [u16; 3], name in "\\PC{0,32}", reply: (u16, u16, u16, u32, u64), limits: [u32; 3]) {
        let [protocol_min, protocol_max, wanted_shard] = small;
        let hello = Hello { protocol_min, protocol_max, wanted_shard, client_name: &name };
        let mut bytes = Vec::new();
        hello.encode(1, &mut bytes).unwrap();
        prop_assert_eq!(Hello::decode(&bytes[FRAME_HEADER_BYTES..]), Ok(hello));

        let (protocol_version, shards, shard, node, catalog_version) = reply;
        let [max_batch_bytes, max_fetch_bytes, max_in_flight_requests] = limits;
        let reply = HelloReply {
            protocol_version, shards, shard, node, catalog_version, max_batch_bytes, max_fetch_bytes,
            max_in_flight_requests, server_version: name.clone(),
        };
        bytes.clear();
        reply.encode(2, &mut bytes);
        prop_assert_eq!(HelloReply::decode(&bytes[FRAME_HEADER_BYTES..]), Ok(reply));
    }

    #[test]
    fn arbitrary_bodies_of_any_kind_never_panic(kind in 0u16..17, reply: bool, body in vec(any::<u8>(), 0..300)) {
        let kind = kind | if reply { 0x8000 } else { 0 };
        let header = FrameHeader { kind, body_bytes: body.len() as u32, correlation_id: 3 };
        check_frames(&[&header.encode()[..], &body].concat());
    }

    /// Changes a few bytes of real messages, lengths and counts among them, and cuts them.
    #[test]
    fn mutated_messages_never_panic_and_keep_one_encoding(
        response in response(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = Vec::new();
        response.encode(1, &mut bytes);
        response.encode(2, &mut bytes);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check_frames(&bytes);
    }
}

#[test]
fn trailing_reserved_and_out_of_bound_bytes_are_errors() {
    let mut frame = Vec::new();
    let group = GroupId::new(1, 2);
    let fetch = FetchRequest {
        group,
        offset: 0,
        min_bytes: 0,
        max_bytes: 1,
        max_wait_ms: 0,
        consistency: Consistency::Leader,
    };
    Request::Fetch(fetch).encode(1, &mut frame).unwrap();
    let body = &frame[FRAME_HEADER_BYTES..];
    let changed = |at: usize, value: u8| {
        let mut body = body.to_vec();
        body[at] = value;
        Request::decode(kind::FETCH, &body).unwrap_err()
    };
    assert_eq!(changed(28, 3), DecodeError::UnknownValue { field: "consistency", value: 3 });
    assert_eq!(changed(29, 1), DecodeError::ReservedNotZero { after: "consistency" });
    assert!(matches!(changed(23, 1), DecodeError::OutOfBound { field: "max_bytes", .. }));
    let longer = [body, &[0]].concat();
    let error = Request::decode(kind::FETCH, &longer).unwrap_err();
    assert_eq!(error, DecodeError::TrailingBytes { bytes: 1 });
    assert!(error.closes_connection());
    for end in 0..body.len() {
        assert!(matches!(Request::decode(kind::FETCH, &body[..end]), Err(DecodeError::Truncated { .. })));
    }
    let too_many = FetchRequest { max_bytes: u32::MAX, ..fetch };
    let mut out = Vec::new();
    assert_eq!(Request::Fetch(too_many).encode(1, &mut out).unwrap_err().field, "max_bytes");
    assert!(out.is_empty());
}

#[test]
fn a_batch_of_the_wrong_size_is_an_error_of_its_own_which_keeps_the_connection() {
    let body = |batch: usize| {
        let mut body = vec![0; 16 + batch];
        body[12] = Acks::Quorum as u8;
        body
    };
    let small = body(BATCH_HEADER_BYTES - 1);
    let error = Request::decode(kind::PRODUCE, &small).unwrap_err();
    assert_eq!((error.code(), error.closes_connection()), (ErrorCode::InvalidBatch, false));
    let large = body(MAX_BATCH_BYTES + 1);
    let error = Request::decode(kind::PRODUCE, &large).unwrap_err();
    assert_eq!((error.code(), error.closes_connection()), (ErrorCode::TooLarge, false));
    let fits = body(MAX_BATCH_BYTES);
    assert!(
        matches!(Request::decode(kind::PRODUCE, &fits), Ok(Request::Produce(r)) if r.batch.len() == MAX_BATCH_BYTES)
    );
    let error = Request::decode(99, &[]).unwrap_err();
    assert_eq!((error.code(), error.closes_connection()), (ErrorCode::UnsupportedVersion, false));
}

#[test]
fn a_count_that_the_body_cannot_hold_takes_no_memory() {
    let mut body = vec![0; 32];
    body[24..28].copy_from_slice(&65_536u32.to_le_bytes());
    let error = Response::decode(kind::METADATA | 0x8000, &body).unwrap_err();
    assert_eq!(error, DecodeError::Truncated { field: "topics" });
    body[16] = 64;
    let error = Response::decode(kind::METADATA | 0x8000, &body).unwrap_err();
    assert_eq!(error, DecodeError::Truncated { field: "nodes" });
    body[16] = 65;
    let error = Response::decode(kind::METADATA | 0x8000, &body).unwrap_err();
    assert!(matches!(error, DecodeError::OutOfBound { field: "nodes", value: 65, .. }), "{error}");
}

#[test]
fn more_replicas_than_there_can_be_are_an_error() {
    let replica = ReplicaMetadata { node: 1, shard: 0, in_sync: true };
    let replicas = [replica].into_iter().collect();
    let partition = PartitionMetadata { leader: 1, epoch: 1, shard: 0, replicas };
    let topic = TopicMetadata {
        id: 1,
        name: "t".into(),
        quorums: Quorums::of(1),
        retention_bytes: -1,
        retention_ms: -1,
        partitions: vec![partition],
    };
    let reply = MetadataReply {
        node: 1,
        controller: 1,
        cluster: String::new(),
        nodes: Vec::new(),
        version: 1,
        feature_level: 1,
        server: String::new(),
        more: false,
        topics: vec![topic],
    };
    let mut frame = Vec::new();
    Response::Metadata(Box::new(reply)).encode(1, &mut frame);
    let count = frame.len() - 8 - 6;
    assert_eq!(frame[count], 1, "the byte that counts the replicas");
    frame[count] = 6;
    let error = Response::decode(kind::METADATA | 0x8000, &frame[FRAME_HEADER_BYTES..]).unwrap_err();
    assert_eq!(error, DecodeError::OutOfBound { field: "replicas", value: 6, max: 5 });
}

#[test]
fn texts_above_their_bounds_are_cut_between_characters() {
    let mut frame = Vec::new();
    let detail = format!("a{}", "é".repeat(MAX_ERROR_DETAIL_BYTES));
    Response::encode_error(ErrorCode::DiskFull, &detail, 5, &mut frame);
    let reply = Response::decode(kind::ERROR, &frame[FRAME_HEADER_BYTES..]).unwrap();
    let Response::Error(error) = reply.response else { panic!("{reply:?}") };
    assert_eq!((error.code, error.detail.len()), (ErrorCode::DiskFull, MAX_ERROR_DETAIL_BYTES - 1));
}

#[test]
fn an_error_code_from_the_future_is_understood_as_an_unknown_outcome() {
    let mut frame = Vec::new();
    Response::encode_error(ErrorCode::DiskFull, "later", 5, &mut frame);
    frame[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + 2].copy_from_slice(&999u16.to_le_bytes());
    let reply = Response::decode(kind::ERROR, &frame[FRAME_HEADER_BYTES..]).unwrap();
    let Response::Error(error) = reply.response else { panic!("{reply:?}") };
    assert_eq!(error.code, ErrorCode::Internal);
    assert!(error.detail.contains("999 (retriable)") && error.detail.ends_with("later"), "{}", error.detail);
}

#[test]
fn a_page_of_metadata_ends_before_the_largest_reply() {
    let replica = |node: u32| ReplicaMetadata { node, shard: 0, in_sync: true };
    let replicas = (1..=3).map(replica).collect();
    let partition = PartitionMetadata { leader: 1, epoch: 0, shard: 0, replicas };
    let topic = |id: u32| TopicMetadata {
        id,
        name: format!("topic-{id}"),
        quorums: Quorums::of(3),
        retention_bytes: -1,
        retention_ms: -1,
        partitions: vec![partition; 65_536],
    };
    let reply = MetadataReply {
        node: 1,
        controller: 2,
        cluster: "c".into(),
        nodes: (1..=3)
            .map(|id| NodeMetadata {
                id,
                shards: 2,
                address: format!("n{id}:9092"),
                rack: "east".into(),
                level_min: 1,
                level_max: 2,
            })
            .collect(),
        version: 9,
        feature_level: 2,
        server: "test".into(),
        more: false,
        topics: (1..=12).map(topic).collect(),
    };
    let mut frame = Vec::new();
    Response::Metadata(Box::new(reply.clone())).encode(1, &mut frame);
    let header = FrameHeader::decode_reply(&frame).unwrap().unwrap();
    assert_eq!(header.frame_bytes(), frame.len());
    let decoded = Response::decode(header.kind, &frame[FRAME_HEADER_BYTES..]).unwrap();
    let Response::Metadata(page) = decoded.response else { panic!("no metadata") };
    assert!(page.more);
    assert_eq!(page.topics, reply.topics[..3]);

    let mut size = MetadataReplySize::new(&reply.server, &reply.cluster);
    page.nodes.iter().for_each(|node| size.add_node(&node.address, &node.rack));
    for topic in &page.topics {
        size.add_topic(&topic.name, topic.partitions.len(), topic.partitions.len() * 3);
    }
    assert_eq!(size.body_bytes(), header.body_bytes as usize, "the sizes that end a page are the real ones");
}
