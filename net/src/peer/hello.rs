//! The handshake between nodes: the first frame in each direction. Its layout is the same in every version.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use pyralog_core::limits::{MAX_PEER_TEXT_BYTES, MAX_SHARDS};
use pyralog_core::{FeatureLevels, NodeId, ShardId};

use super::frame::{self, FrameKind};
use crate::codec::{DecodeError, Reader, truncated};

/// The newest version of what is in the frames that this code speaks.
pub const PROTOCOL_VERSION: u16 = 2;
/// The oldest version that it speaks.
pub const OLDEST_PROTOCOL_VERSION: u16 = 2;
/// Length of the control part of a `Hello`, bytes.
pub(super) const HELLO_BYTES: usize = 40;
/// Length of the control part of a `HelloReply` without its text, bytes.
pub(super) const REPLY_HEAD_BYTES: usize = 24;

/// What the dialling shard says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version that the sender speaks.
    pub version_min: u16,
    /// Newest protocol version that the sender speaks.
    pub version_max: u16,
    /// The cluster that both belong to.
    pub cluster_id: u64,
    /// The sender's node.
    pub from_node: NodeId,
    /// The sender's shard.
    pub from_shard: ShardId,
    /// Shards of the sender's node.
    pub from_shards: u16,
    /// The node that the sender means to have dialled.
    pub to_node: NodeId,
    /// The shard of it that the connection shall belong to.
    pub to_shard: ShardId,
    /// Names the life of the sender's shard.
    pub session: u64,
    /// The feature levels that the sender's node supports.
    pub levels: FeatureLevels,
}

/// What the accepting shard answers; the connection belongs to it from then on, or is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloReply {
    /// The shard that answers.
    pub node: NodeId,
    /// Its number.
    pub shard: ShardId,
    /// Shards of its node.
    pub shards: u16,
    /// The protocol version of everything that follows.
    pub version: u16,
    /// Names the life of the answering shard; 0 when it refuses.
    pub session: u64,
    /// Why the link is refused, if it is.
    pub refusal: Option<Refusal>,
}

/// Why a link is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RefusalCode {
    /// The `Hello` or its frame breaks the rules.
    Malformed = 1,
    /// No version in common.
    UnknownVersion = 2,
    /// The sender belongs to another cluster.
    WrongCluster = 3,
    /// The sender meant another node.
    WrongNode = 4,
    /// The node has no such shard.
    NoSuchShard = 5,
    /// The sender is no node of the cluster as this node knows it.
    UnknownNode = 6,
    /// A code that this version does not know.
    Other = 7,
    /// The sender does not support the cluster's feature level.
    FeatureLevel = 8,
}

impl RefusalCode {
    /// Every code with its name in the documentation.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Malformed, "Malformed"),
        (Self::UnknownVersion, "UnknownVersion"),
        (Self::WrongCluster, "WrongCluster"),
        (Self::WrongNode, "WrongNode"),
        (Self::NoSuchShard, "NoSuchShard"),
        (Self::UnknownNode, "UnknownNode"),
        (Self::Other, "Other"),
        (Self::FeatureLevel, "FeatureLevel"),
    ];

    fn from_u16(number: u16) -> Self {
        Self::ALL.iter().map(|(code, _)| *code).find(|code| *code as u16 == number).unwrap_or(Self::Other)
    }
}

/// A refused link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub code: RefusalCode,
    /// The same for the operator, and what to do about it.
    pub text: String,
}

impl Refusal {
    /// A refusal with this text.
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl Hello {
    /// The `Hello` with this control part.
    pub fn decode(control: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(control);
        let version_min = reader.u16("version_min")?;
        let version_max = reader.u16("version_max")?;
        let from_shard = reader.u16("from_shard")?;
        let to_shard = reader.u16("to_shard")?;
        let from_node = reader.u32("from_node")?;
        let to_node = reader.u32("to_node")?;
        let cluster_id = reader.u64("cluster_id")?;
        let session = reader.u64("session")?;
        let from_shards = reader.u16("from_shards")?;
        let levels = FeatureLevels { min: reader.u16("level_min")?, max: reader.u16("level_max")? };
        reader.reserved(2, "level_max")?;
        reader.finish()?;
        for (field, value, max) in [
            ("from_shards", from_shards, MAX_SHARDS),
            ("from_shard", from_shard, from_shards.saturating_sub(1)),
        ] {
            if value > max {
                return Err(DecodeError::OutOfBound { field, value: value.into(), max: max.into() });
            }
        }
        Ok(Self {
            version_min,
            version_max,
            cluster_id,
            from_node: NodeId(from_node),
            from_shard: ShardId(from_shard),
            from_shards,
            to_node: NodeId(to_node),
            to_shard: ShardId(to_shard),
            session,
            levels,
        })
    }

    /// Appends the whole frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut control = Vec::with_capacity(HELLO_BYTES);
        for number in [self.version_min, self.version_max, self.from_shard.0, self.to_shard.0] {
            control.extend_from_slice(&number.to_le_bytes());
        }
        control.extend_from_slice(&self.from_node.0.to_le_bytes());
        control.extend_from_slice(&self.to_node.0.to_le_bytes());
        control.extend_from_slice(&self.cluster_id.to_le_bytes());
        control.extend_from_slice(&self.session.to_le_bytes());
        control.extend_from_slice(&self.from_shards.to_le_bytes());
        for level in [self.levels.min, self.levels.max] {
            control.extend_from_slice(&level.to_le_bytes());
        }
        control.extend_from_slice(&[0; 2]);
        frame::encode(FrameKind::Hello, &control, 0, out);
    }

    /// The version to speak with the sender, the newest that both know, or why there is none. The cluster, the nodes and the
    /// shard are for the receiver to compare, who knows itself.
    pub fn version(&self) -> Result<u16, Refusal> {
        self.version_with(OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION)
    }

    /// The same for a receiver that speaks these.
    fn version_with(&self, oldest: u16, newest: u16) -> Result<u16, Refusal> {
        let common = self.version_max.min(newest);
        if common >= self.version_min.max(oldest) {
            return Ok(common);
        }
        let text = format!(
            "node {} speaks versions {} to {} between nodes, this node speaks {oldest} to {newest}; upgrade the older one of them",
            self.from_node, self.version_min, self.version_max
        );
        Err(Refusal::new(RefusalCode::UnknownVersion, text))
    }
}

impl HelloReply {
    /// The reply with this control part.
    pub fn decode(control: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(control);
        let code = reader.u16("code")?;
        let version = reader.u16("version")?;
        let shards = reader.u16("shards")?;
        let len = reader.len_within("text_len", MAX_PEER_TEXT_BYTES)?;
        let session = reader.u64("session")?;
        let node = reader.u32("node")?;
        let shard = reader.u16("shard")?;
        reader.reserved(2, "shard")?;
        let text = reader.text(len, "text")?;
        reader.finish()?;
        let refusal = (code != 0).then(|| Refusal::new(RefusalCode::from_u16(code), text));
        Ok(Self { node: NodeId(node), shard: ShardId(shard), shards, version, session, refusal })
    }

    /// Appends the whole frame to `out`; a text above its bound is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (code, text) = match &self.refusal {
            Some(refusal) => (refusal.code as u16, truncated(&refusal.text, MAX_PEER_TEXT_BYTES)),
            None => (0, ""),
        };
        let mut control = Vec::with_capacity(REPLY_HEAD_BYTES.saturating_add(text.len()));
        for number in [code, self.version, self.shards, text.len() as u16] {
            control.extend_from_slice(&number.to_le_bytes());
        }
        control.extend_from_slice(&self.session.to_le_bytes());
        control.extend_from_slice(&self.node.0.to_le_bytes());
        control.extend_from_slice(&self.shard.0.to_le_bytes());
        control.extend_from_slice(&[0; 2]);
        control.extend_from_slice(text.as_bytes());
        frame::encode(FrameKind::HelloReply, &control, 0, out);
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::super::FrameHeader;
    use super::*;

    fn control(frame: &[u8]) -> &[u8] {
        let header = FrameHeader::decode(frame).unwrap().unwrap();
        header.parts(frame).unwrap().unwrap().0
    }

    fn hello() -> Hello {
        Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            cluster_id: 9,
            from_node: NodeId(1),
            from_shard: ShardId(0),
            from_shards: 2,
            to_node: NodeId(2),
            to_shard: ShardId(1),
            session: 77,
            levels: FeatureLevels::OURS,
        }
    }

    #[test]
    fn nodes_without_a_common_version_are_told_both_sides() {
        assert_eq!(hello().version(), Ok(PROTOCOL_VERSION));
        let refusal = Hello { version_min: 8, version_max: 9, ..hello() }.version().unwrap_err();
        assert_eq!(refusal.code, RefusalCode::UnknownVersion);
        assert!(
            refusal.text.contains("versions 8 to 9")
                && refusal.text.contains(&format!("speaks {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}")),
            "{}",
            refusal.text
        );
        assert!(Hello { version_min: 2, version_max: 0, ..hello() }.version().is_err());
    }

    #[test]
    fn the_newest_version_that_both_know_is_spoken() {
        let spoken = |theirs: (u16, u16), ours: (u16, u16)| {
            let hello = Hello { version_min: theirs.0, version_max: theirs.1, ..hello() };
            hello.version_with(ours.0, ours.1).ok()
        };
        assert_eq!(spoken((2, 4), (3, 5)), Some(4));
        assert_eq!(spoken((3, 5), (2, 4)), Some(4));
        assert_eq!(spoken((1, 9), (3, 3)), Some(3));
        assert_eq!(spoken((3, 3), (3, 3)), Some(3));
        assert_eq!(spoken((1, 2), (3, 4)), None);
        assert_eq!(spoken((5, 6), (3, 4)), None);
    }

    #[test]
    fn a_sender_has_the_shard_that_it_speaks_for() {
        let mut frame = Vec::new();
        Hello { from_shard: ShardId(2), ..hello() }.encode(&mut frame);
        assert!(matches!(Hello::decode(control(&frame)), Err(DecodeError::OutOfBound { .. })));
        frame.clear();
        Hello { from_shards: MAX_SHARDS + 1, ..hello() }.encode(&mut frame);
        assert!(matches!(Hello::decode(control(&frame)), Err(DecodeError::OutOfBound { .. })));
    }

    #[test]
    fn a_text_above_its_bound_is_cut_and_codes_of_the_future_are_refusals() {
        let reply = |text: String| HelloReply {
            node: NodeId(1),
            shard: ShardId(0),
            shards: 1,
            version: PROTOCOL_VERSION,
            session: 0,
            refusal: Some(Refusal::new(RefusalCode::WrongCluster, text)),
        };
        let mut frame = Vec::new();
        reply("x".repeat(MAX_PEER_TEXT_BYTES + 9)).encode(&mut frame);
        assert_eq!(HelloReply::decode(control(&frame)), Ok(reply("x".repeat(MAX_PEER_TEXT_BYTES))));
        let mut future = control(&frame).to_vec();
        future[0] = 200;
        let refusal = HelloReply::decode(&future).unwrap().refusal.unwrap();
        assert_eq!(refusal.code, RefusalCode::Other);
    }

    proptest! {
        #[test]
        fn a_hello_survives_the_wire(
            versions: (u16, u16), nodes: (u32, u32), numbers: (u64, u64), to_shard: u16,
            from_shards in 1u16..=MAX_SHARDS, from_shard: prop::sample::Index,
        ) {
            let hello = Hello {
                version_min: versions.0,
                version_max: versions.1,
                cluster_id: numbers.0,
                from_node: NodeId(nodes.0),
                from_shard: ShardId(from_shard.index(from_shards.into()) as u16),
                from_shards,
                to_node: NodeId(nodes.1),
                to_shard: ShardId(to_shard),
                session: numbers.1,
                levels: FeatureLevels { min: versions.1, max: versions.0 },
            };
            let mut frame = Vec::new();
            hello.encode(&mut frame);
            prop_assert_eq!(Hello::decode(control(&frame)), Ok(hello));
        }

        #[test]
        fn a_reply_survives_the_wire(
            node: u32, numbers: (u16, u16, u16), session: u64, text in "\\PC{0,40}", code in 0..RefusalCode::ALL.len() + 1,
        ) {
            let (shard, shards, version) = numbers;
            let refusal = RefusalCode::ALL.get(code).map(|(code, _)| Refusal::new(*code, text));
            let reply =
                HelloReply { node: NodeId(node), shard: ShardId(shard), shards, version, session, refusal };
            let mut frame = Vec::new();
            reply.encode(&mut frame);
            prop_assert_eq!(HelloReply::decode(control(&frame)), Ok(reply));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Hello::decode(&bytes);
            let _ = HelloReply::decode(&bytes);
        }
    }
}
