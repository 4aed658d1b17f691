//! `docs/protocol.md` against the code: every message has a hex example which decodes and encodes to the same
//! bytes, and the tables of kinds, error codes and bounds say what the code says.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write;

use pyralog_core::batch::{BatchBuilder, Compression, patch_base_offset, patch_leader_epoch};
use pyralog_core::limits::*;
use pyralog_core::{ErrorCode, GroupId, Outcome, Quorums};
use pyralog_net::codec::*;
use pyralog_net::frame::{FrameHeader, MAX_SMALL_REQUEST_BODY_BYTES, kind};
use pyralog_net::message::*;
use pyralog_net::roundtrip::reencode;
use pyralog_net::{Hello, HelloReply};

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md")).unwrap()
}

/// The page's examples by their titles, such as `Fetch reply`.
fn examples(page: &str) -> BTreeMap<String, Vec<u8>> {
    let mut examples = BTreeMap::new();
    let mut rest = page;
    while let Some((_, block)) = rest.split_once("```hex ") {
        let (title, block) = block.split_once('\n').unwrap();
        let (hex, after) = block.split_once("```").unwrap();
        let digits = hex.lines().map(|line| line.split('#').next().unwrap()).flat_map(str::split_whitespace);
        let bytes = digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect();
        assert!(examples.insert(title.trim().to_owned(), bytes).is_none(), "two examples of {title}");
        rest = after;
    }
    examples
}

fn batch(stored: bool) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    builder.set_producer(7, 0, 0);
    builder.append(1_700_000_000_000, Some(b"k"), Some(b"hello"), &[]).unwrap();
    let mut batch = builder.build(Compression::None).unwrap().to_vec();
    if stored {
        patch_base_offset(&mut batch, 42).unwrap();
        patch_leader_epoch(&mut batch, 1).unwrap();
    }
    batch
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let group = GroupId::new(1, 2);
    let batch = batch(false);
    let requests = [
        (
            "Produce",
            Request::Produce(ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 5000, batch: &batch }),
        ),
        (
            "Fetch",
            Request::Fetch(FetchRequest {
                group,
                offset: 42,
                min_bytes: 1,
                max_bytes: 1 << 20,
                max_wait_ms: 500,
                consistency: Consistency::Leader,
            }),
        ),
        (
            "ListOffsets",
            Request::ListOffsets(ListOffsetsRequest {
                group,
                spec: OffsetSpec::Timestamp(1_700_000_000_000),
                consistency: Consistency::Leader,
            }),
        ),
        ("Metadata", Request::Metadata(MetadataRequest { topic: Some("orders"), start_after: 0 })),
        ("InitProducerId", Request::InitProducerId),
        (
            "CreateTopic",
            Request::CreateTopic(CreateTopicRequest {
                name: "orders",
                partitions: 3,
                quorums: Quorums { replication_factor: 3, ..Quorums::UNSET },
                retention_bytes: -1,
                retention_ms: 0,
            }),
        ),
        ("DeleteTopic", Request::DeleteTopic(DeleteTopicRequest { name: "orders" })),
        (
            "DescribePartitions",
            Request::DescribePartitions(DescribePartitionsRequest { topic: 1, first: 0, count: 3 }),
        ),
        ("Ping", Request::Ping),
        (
            "ReassignPartition",
            Request::ReassignPartition(ReassignPartitionRequest {
                topic: "orders",
                partition: 2,
                nodes: vec![4, 1, 2],
            }),
        ),
        (
            "ListReassignments",
            Request::ListReassignments(ListReassignmentsRequest { from: GroupId::new(0, 0) }),
        ),
        ("RemoveNode", Request::RemoveNode(RemoveNodeRequest { node: 4 })),
        (
            "RecoverPartition",
            Request::RecoverPartition(RecoverPartitionRequest {
                topic: "orders",
                partition: 2,
                node: 3,
                epoch: 7,
            }),
        ),
        ("AddNode", Request::AddNode(AddNodeRequest { node: 4, internal_address: "10.0.0.4:9093" })),
        (
            "AlterTopic",
            Request::AlterTopic(AlterTopicRequest {
                name: "orders",
                partitions: 6,
                quorums: Quorums::UNSET,
                retention_bytes: AlterTopicRequest::AS_IT_IS,
                retention_ms: 86_400_000,
            }),
        ),
        ("Scrub", Request::Scrub(ScrubRequest { start: true })),
    ];
    let mut frames = Vec::new();
    let hello = Hello { protocol_min: 1, protocol_max: 1, wanted_shard: 1, client_name: "example" };
    let mut frame = Vec::new();
    hello.encode(1, &mut frame).unwrap();
    frames.push(("Hello", frame));
    for (name, request) in requests {
        let mut frame = Vec::new();
        request.encode(2, &mut frame).unwrap();
        frames.push((name, frame));
    }
    frames
}

fn replies() -> Vec<(&'static str, Vec<u8>)> {
    let batches = batch(true);
    let place = |leader: u32, shard: u16| {
        let replica = |node: u32| ReplicaMetadata { node, shard, in_sync: node == leader };
        let replicas = [leader, leader % 3 + 1, (leader + 1) % 3 + 1].map(replica).into_iter().collect();
        PartitionMetadata { leader, epoch: 1, shard, replicas }
    };
    let node = |id: u32| NodeMetadata {
        id,
        shards: 2,
        address: format!("log{id}.example.org:9092"),
        rack: if id < 3 { format!("east-{id}") } else { String::new() },
        level_min: 1,
        level_max: 2,
    };
    let metadata = MetadataReply {
        node: 1,
        controller: 2,
        cluster: "logs".into(),
        nodes: vec![node(1), node(2), node(3)],
        version: 5,
        feature_level: 2,
        server: "pyralog 0.1.0".into(),
        more: false,
        topics: vec![TopicMetadata {
            id: 1,
            name: "orders".into(),
            quorums: Quorums::of(3),
            retention_bytes: -1,
            retention_ms: 0,
            partitions: vec![place(1, 0), place(2, 1)],
        }],
    };
    let replica = |node: u32, log_end: i64, lag_bytes: u64, lag_ms: u64| {
        let in_sync = lag_ms < 1_000;
        let state = match node {
            1 => ReplicationState::Leader,
            2 => ReplicationState::Replicating,
            _ => ReplicationState::Unreachable,
        };
        let role = ReplicaRole::Voter;
        ReplicaState { node, shard: 1, in_sync, role, state, log_end, lag_bytes, lag_ms }
    };
    let replicas = [replica(1, 43, 0, 0), replica(2, 43, 0, 0), replica(3, 40, 225, 12_000)];
    let state = PartitionState {
        partition: 2,
        leader: 1,
        replicas: replicas.into_iter().collect(),
        epoch: 1,
        log_start: 0,
        high_watermark: 43,
        log_end: 43,
        flushed: 40,
        segments: 1,
        segment_bytes: 3000,
        cached_bytes: 225,
        producers: 1,
        health: PartitionHealth::Online,
    };
    let (log_start, high_watermark, batch_bytes) = (0, 43, batches.len() as u32);
    let durability = Durability::QuorumDurable;
    let replies = [
        (
            "Error",
            Response::Error(ErrorReply { code: ErrorCode::NotLeader, detail: "shard 1 owns it".into() }),
        ),
        (
            "Produce",
            Response::Produce(ProduceReply {
                base_offset: 42,
                high_watermark: 43,
                durability,
                duplicate: false,
            }),
        ),
        ("Fetch", Response::Fetch(FetchReplyHead { log_start, high_watermark, batch_bytes })),
        ("ListOffsets", Response::ListOffsets(ListOffsetsReply { offset: 42, timestamp: 1_700_000_000_000 })),
        ("Metadata", Response::Metadata(Box::new(metadata))),
        (
            "InitProducerId",
            Response::InitProducerId(InitProducerIdReply { producer_id: 7, producer_epoch: 0 }),
        ),
        ("CreateTopic", Response::CreateTopic(CreateTopicReply { id: 1 })),
        ("DeleteTopic", Response::DeleteTopic),
        ("DescribePartitions", Response::DescribePartitions(vec![state])),
        ("Ping", Response::Pong),
        ("ReassignPartition", Response::ReassignPartition),
        (
            "ListReassignments",
            Response::ListReassignments(ListReassignmentsReply {
                reassignments: vec![Reassignment {
                    group: GroupId::new(1, 2),
                    from: vec![1, 2, 3],
                    to: vec![4, 1, 2],
                }],
                more: false,
            }),
        ),
        ("RemoveNode", Response::RemoveNode),
        ("RecoverPartition", Response::RecoverPartition),
        ("AddNode", Response::AddNode),
        ("AlterTopic", Response::AlterTopic),
        (
            "Scrub",
            Response::Scrub(ScrubReply {
                running: true,
                damaged: 1,
                done_bytes: 1 << 20,
                total_bytes: 3 << 30,
                ended_ms: 1_700_000_000_000,
                found: 3,
                repaired: 2,
                repaired_bytes: 8_192,
                failed: 1,
            }),
        ),
    ];
    let hello = HelloReply {
        protocol_version: 1,
        shards: 2,
        shard: 1,
        node: 1,
        catalog_version: 5,
        max_batch_bytes: MAX_BATCH_BYTES as u32,
        max_fetch_bytes: MAX_FETCH_BYTES as u32,
        max_in_flight_requests: MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION as u32,
        server_version: "pyralog 0.1.0".into(),
    };
    let mut frames = Vec::new();
    let mut frame = Vec::new();
    hello.encode(1, &mut frame);
    frames.push(("Hello", frame));
    for (name, reply) in replies {
        let mut frame = Vec::new();
        reply.encode(2, &mut frame);
        if name == "Fetch" {
            frame.extend_from_slice(&batches);
        }
        frames.push((name, frame));
    }
    frames
}

/// An example as it stands on the page.
fn block(title: &str, frame: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let (header, body) = frame.split_at(FRAME_HEADER_BYTES);
    let mut text = format!("```hex {title}\n{}  # header\n", line(header));
    body.chunks(16).for_each(|bytes| writeln!(text, "{}", line(bytes)).unwrap());
    text + "```\n"
}

#[test]
fn every_message_has_an_example_that_decodes_and_encodes_to_the_same_bytes() {
    let page = page();
    let mut examples = examples(&page);
    let mut wrong = String::new();
    for (direction, frames) in [("request", requests()), ("reply", replies())] {
        for (_, name) in kind::REQUESTS {
            assert!(frames.iter().any(|(of, _)| of == name), "no example of {name} {direction} is made here");
        }
        for (name, frame) in frames {
            let title = format!("{name} {direction}");
            let expected = block(&title, &frame);
            match examples.remove(&title) {
                Some(bytes) if bytes == frame => {}
                _ => wrong += &expected,
            }
            let header = match direction {
                "request" => FrameHeader::decode_request(&frame),
                _ => FrameHeader::decode_reply(&frame),
            };
            let header = header.unwrap().unwrap();
            assert_eq!(reencode(header, &frame[FRAME_HEADER_BYTES..]).as_ref(), Ok(&frame), "{title}");
        }
    }
    assert!(wrong.is_empty(), "the page should say:\n{wrong}");
    assert!(examples.is_empty(), "examples of what does not exist: {:?}", examples.keys());
}

/// The cells of the table's rows that follow the line `<!-- table: NAME -->`.
fn table(page: &str, name: &str) -> Vec<Vec<String>> {
    let (_, rest) = page.split_once(&format!("<!-- table: {name} -->\n")).unwrap();
    let rows =
        rest.lines().skip_while(|line| line.is_empty()).take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

#[test]
fn the_table_of_error_codes_is_the_codes() {
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let expected: Vec<Vec<String>> = ErrorCode::ALL
        .iter()
        .skip(1)
        .map(|code| {
            let outcome = match code.outcome() {
                Outcome::NotAccepted => "not accepted",
                Outcome::Unknown => "unknown",
            };
            let number = (*code as u16).to_string();
            vec![number, code.name().into(), yes(code.retriable()).into(), outcome.into(), code.text().into()]
        })
        .collect();
    let rows: String = expected.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
    assert!(table(&page(), "errors") == expected, "the page should say:\n{rows}");
}

#[test]
fn the_table_of_kinds_is_the_kinds() {
    let expected: Vec<Vec<String>> = kind::REQUESTS
        .iter()
        .map(|(kind, name)| vec![(*name).into(), kind.to_string(), format!("{:#06x}", kind | 0x8000)])
        .collect();
    assert_eq!(table(&page(), "kinds"), expected);
}

#[test]
fn the_table_of_bounds_is_the_bounds() {
    let bounds: BTreeMap<&str, u64> = [
        ("body of a Produce request", MAX_REQUEST_BODY_BYTES as u64),
        ("body of any other request", MAX_SMALL_REQUEST_BODY_BYTES as u64),
        ("body of a reply", MAX_REPLY_BODY_BYTES as u64),
        ("record batch", MAX_BATCH_BYTES as u64),
        ("record batch, least", BATCH_HEADER_BYTES as u64),
        ("records of a batch", u64::from(MAX_BATCH_RECORDS)),
        ("records of a batch, decompressed", MAX_DECOMPRESSED_BYTES as u64),
        ("min_bytes and max_bytes of a fetch", MAX_FETCH_BYTES as u64),
        ("max_wait_ms of a fetch", u64::from(MAX_FETCH_WAIT_MS)),
        ("topic name", MAX_TOPIC_NAME_BYTES as u64),
        ("partitions of a topic", u64::from(MAX_PARTITIONS_PER_TOPIC)),
        ("partitions of a cluster", u64::from(MAX_PARTITIONS_PER_NODE)),
        ("topics of a cluster", u64::from(MAX_TOPICS)),
        ("shards of a node", u64::from(MAX_SHARDS)),
        ("nodes of a cluster", MAX_NODES as u64),
        ("replicas of a partition", u64::from(MAX_REPLICATION_FACTOR)),
        ("partitions of a DescribePartitions", u64::from(MAX_DESCRIBED_PARTITIONS)),
        ("client name", MAX_CLIENT_NAME_BYTES as u64),
        ("server version", MAX_SERVER_VERSION_BYTES as u64),
        ("cluster name", MAX_CLUSTER_NAME_BYTES as u64),
        ("address", MAX_ADDRESS_BYTES as u64),
        ("detail of an error", MAX_ERROR_DETAIL_BYTES as u64),
        ("requests in flight on a connection", MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION as u64),
        ("reply bytes queued on a connection", MAX_QUEUED_REPLY_BYTES_PER_CONNECTION as u64),
        ("batches remembered per producer and partition", BATCHES_PER_PRODUCER as u64),
        ("producers remembered per partition", MAX_PRODUCERS_PER_PARTITION as u64),
    ]
    .into();
    let page = page();
    let rows = table(&page, "bounds");
    for row in &rows {
        let value: u64 = row[1].split(' ').next().unwrap().replace(',', "").parse().unwrap();
        assert_eq!(bounds.get(row[0].as_str()), Some(&value), "{row:?}");
    }
    assert_eq!(rows.len(), bounds.len());
}
