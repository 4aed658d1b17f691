//! Load on a node or on the floor server: connections ready to be driven by [`crate::load`].

use std::net::{SocketAddr, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use pyralog_core::GroupId;
use pyralog_core::batch::{BatchBuilder, Compression};
use pyralog_net::FrameHeader;
use pyralog_net::frame::{REPLY_BIT, kind};
use pyralog_net::message::{Acks, Durability, ProduceReply, ProduceRequest, Request, Response};

use crate::load::LoadConnection;
use crate::protocol::record_value;
use crate::session::{PATIENCE, Session, refusal};
use crate::wire::{FrameTemplate, Frames, HEADER, ReplyCheck};

/// Bytes of the body of a produce reply.
pub fn produce_reply_body_bytes() -> usize {
    let reply = ProduceReply {
        base_offset: 0,
        high_watermark: 0,
        durability: Durability::QuorumDurable,
        duplicate: false,
    };
    let mut frame = Vec::new();
    Response::Produce(reply).encode(0, &mut frame);
    frame.len().saturating_sub(HEADER)
}

/// What every request of a load carries.
#[derive(Clone, Copy, Debug)]
pub struct BatchShape {
    /// Records in the batch.
    pub records: usize,
    /// Size of a record's value, bytes.
    pub record_bytes: usize,
}

/// One batch of `shape`, from no idempotent producer.
pub fn batch(shape: BatchShape) -> anyhow::Result<Vec<u8>> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    let value = record_value(shape.record_bytes);
    let mut builder = BatchBuilder::new();
    for _ in 0..shape.records {
        builder.append(now_ms, None, Some(&value), &[])?;
    }
    Ok(builder.build(Compression::None)?.to_vec())
}

/// The produce frame of `batch` for one partition.
pub fn produce_frame(group: GroupId, batch: &[u8]) -> anyhow::Result<FrameTemplate> {
    let mut frame = Vec::with_capacity(batch.len() + 64);
    let request = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch };
    Request::Produce(request).encode(0, &mut frame)?;
    FrameTemplate::new(frame)
}

/// Connections to a floor server.
pub fn connect_floor(
    addr: SocketAddr,
    connections: usize,
    shape: BatchShape,
) -> anyhow::Result<Vec<LoadConnection>> {
    let frame = produce_frame(GroupId::new(1, 0), &batch(shape)?)?;
    (0..connections)
        .map(|_| {
            let socket = TcpStream::connect_timeout(&addr, PATIENCE)
                .with_context(|| format!("can't connect to the floor server at {addr}"))?;
            socket.set_nodelay(true)?;
            Ok(LoadConnection { socket, protocol: Box::new(Frames::new(frame.clone(), |_| Ok(()))) })
        })
        .collect()
}

/// Connections spread over the partitions of `topic`, each to the node and shard that lead its partition. A reply that is
/// not durable on a quorum ends the load.
pub fn connect_node(
    addr: SocketAddr,
    topic: &str,
    connections: usize,
    shape: BatchShape,
) -> anyhow::Result<Vec<LoadConnection>> {
    connect_node_at_least(Durability::QuorumDurable, addr, topic, connections, shape)
}

/// As [`connect_node`], for replies that are at least so durable.
pub fn connect_node_at_least(
    least: Durability,
    addr: SocketAddr,
    topic: &str,
    connections: usize,
    shape: BatchShape,
) -> anyhow::Result<Vec<LoadConnection>> {
    let (topic, nodes) = Session::connect(addr, None)?.topic(topic)?;
    let batch = batch(shape)?;
    anyhow::ensure!(!topic.partitions.is_empty(), "topic {} has no partitions", topic.name);
    let partitions = (0u32..).zip(&topic.partitions).cycle();
    partitions
        .take(connections)
        .map(|(partition, place)| {
            let leader = nodes.iter().find(|node| node.id == place.leader).with_context(|| {
                format!("partition {partition} of {} has no leader at the moment; try again", topic.name)
            })?;
            let leader = leader.address.parse().with_context(|| format!("the address {}", leader.address))?;
            let socket = Session::connect(leader, Some(place.shard))?.into_socket()?;
            let frame = produce_frame(GroupId::new(topic.id, partition), &batch)?;
            Ok(LoadConnection { socket, protocol: Box::new(Frames::new(frame, reply_check(least))) })
        })
        .collect()
}

/// What passes produce replies that are at least so durable, and makes an error of anything else.
fn reply_check(least: Durability) -> ReplyCheck {
    match least {
        Durability::Memory => check_reply_at_least::<{ Durability::Memory as u8 }>,
        Durability::Written => check_reply_at_least::<{ Durability::Written as u8 }>,
        Durability::LeaderDurable => check_reply_at_least::<{ Durability::LeaderDurable as u8 }>,
        Durability::QuorumDurable => check_produce_reply,
    }
}

/// Passes a produce reply that is durable on a quorum; anything else is an error.
pub(crate) fn check_produce_reply(frame: &[u8]) -> anyhow::Result<()> {
    check_reply_at_least::<{ Durability::QuorumDurable as u8 }>(frame)
}

fn check_reply_at_least<const LEAST: u8>(frame: &[u8]) -> anyhow::Result<()> {
    let header = FrameHeader::decode_reply(frame)?.context("a reply without a header")?;
    let body = frame.get(HEADER..).unwrap_or_default();
    if header.kind != kind::PRODUCE | REPLY_BIT {
        return Err(refusal(header.kind, body));
    }
    // Byte 16 of the body is the durability reached (docs/protocol.md). Read without decoding the whole reply:
    // this runs once per request.
    anyhow::ensure!(
        body.get(16).is_some_and(|reached| *reached >= LEAST),
        "acknowledged with durability {:?} instead of at least {LEAST}; is fsync_policy every_write? `produce` takes \
         less with --durability",
        body.get(16)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyralog_core::ErrorCode;

    #[test]
    fn only_durable_produce_replies_pass() {
        let reply = |durability| {
            let mut frame = Vec::new();
            let reply = ProduceReply { base_offset: 7, high_watermark: 8, durability, duplicate: false };
            Response::Produce(reply).encode(3, &mut frame);
            frame
        };
        check_produce_reply(&reply(Durability::QuorumDurable)).unwrap();
        let weak = check_produce_reply(&reply(Durability::Written)).unwrap_err().to_string();
        assert!(weak.contains("every_write"), "{weak}");
        let written = reply_check(Durability::Written);
        written(&reply(Durability::Written)).unwrap();
        written(&reply(Durability::QuorumDurable)).unwrap();
        written(&reply(Durability::Memory)).unwrap_err();
        reply_check(Durability::LeaderDurable)(&reply(Durability::Written)).unwrap_err();
        reply_check(Durability::QuorumDurable)(&reply(Durability::LeaderDurable)).unwrap_err();
        reply_check(Durability::Memory)(&reply(Durability::Memory)).unwrap();
        let mut error = Vec::new();
        Response::encode_error(ErrorCode::DiskFull, "sda1", 3, &mut error);
        let refused = check_produce_reply(&error).unwrap_err().to_string();
        assert!(refused.contains("DiskFull") && refused.contains("sda1"), "{refused}");
        let mut pong = Vec::new();
        Response::Pong.encode(3, &mut pong);
        check_produce_reply(&pong).unwrap_err();
    }

    #[test]
    fn the_frame_is_a_valid_produce_request() {
        let frame =
            produce_frame(GroupId::new(5, 6), &batch(BatchShape { records: 3, record_bytes: 256 }).unwrap())
                .unwrap();
        let mut bytes = Vec::new();
        frame.append_to(&mut bytes, 77);
        let header = FrameHeader::decode_request(&bytes).unwrap().unwrap();
        assert_eq!((header.correlation_id, header.frame_bytes()), (77, bytes.len()));
        let Request::Produce(request) = Request::decode(header.kind, &bytes[HEADER..]).unwrap() else {
            panic!()
        };
        assert_eq!(request.group, GroupId::new(5, 6));
        let view = pyralog_core::batch::BatchView::parse_exact(request.batch).unwrap();
        assert!(view.verify_crc());
        assert_eq!((view.record_count(), view.producer_id()), (3, -1));
    }
}
