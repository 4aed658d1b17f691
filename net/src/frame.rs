//! The frame: a header of 16 bytes, little-endian, and a body whose layout the kind decides.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | magic, 0xB7 |
//! | 1 | 1 | version of the frame layout, 1 |
//! | 2 | 2 | kind; the top bit is set in replies |
//! | 4 | 4 | length of the body, bytes |
//! | 8 | 8 | correlation id, chosen by the client and echoed in the reply |

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use pyralog_core::ErrorCode;
use pyralog_core::limits::{FRAME_HEADER_BYTES, MAX_REPLY_BODY_BYTES, MAX_REQUEST_BODY_BYTES};

/// First byte of every frame. No ASCII text, and so no HTTP request, begins with it.
pub const MAGIC: u8 = 0xB7;
/// Version of the frame layout. The handshake chooses the version of the messages.
pub const FRAME_VERSION: u8 = 1;
/// Set in the kind of every reply.
pub const REPLY_BIT: u16 = 0x8000;
/// Largest body of a request other than `Produce`, bytes: what a connection may make the server hold before
/// anything about it is known.
pub const MAX_SMALL_REQUEST_BODY_BYTES: usize = 1024;

/// The kinds of messages. The reply to kind `k` has kind `k | 0x8000`; an error reply has [`kind::ERROR`].
pub mod kind {
    /// The handshake.
    pub const HELLO: u16 = 1;
    /// Append one record batch.
    pub const PRODUCE: u16 = 2;
    /// Read batches.
    pub const FETCH: u16 = 3;
    /// Find an offset.
    pub const LIST_OFFSETS: u16 = 4;
    /// The node, its shards and topics.
    pub const METADATA: u16 = 5;
    /// Get a producer id.
    pub const INIT_PRODUCER_ID: u16 = 6;
    /// Create a topic.
    pub const CREATE_TOPIC: u16 = 7;
    /// Delete a topic.
    pub const DELETE_TOPIC: u16 = 8;
    /// The state of partitions.
    pub const DESCRIBE_PARTITIONS: u16 = 9;
    /// A round trip.
    pub const PING: u16 = 10;
    /// Have the replicas of a partition be on other nodes.
    pub const REASSIGN_PARTITION: u16 = 11;
    /// Partitions whose replicas are on their way to other nodes.
    pub const LIST_REASSIGNMENTS: u16 = 12;
    /// Remove a node that holds nothing.
    pub const REMOVE_NODE: u16 = 13;
    /// Change the settings of a topic, or add partitions.
    pub const ALTER_TOPIC: u16 = 14;
    /// How far a shard is with scrubbing.
    pub const SCRUB: u16 = 15;
    /// Let a node come.
    pub const ADD_NODE: u16 = 16;
    /// Have one replica of a partition go on alone.
    pub const RECOVER_PARTITION: u16 = 17;
    /// The error reply to any request.
    pub const ERROR: u16 = 0x8000;

    /// Every kind of request with its name in the documentation.
    pub const REQUESTS: &[(u16, &str)] = &[
        (HELLO, "Hello"),
        (PRODUCE, "Produce"),
        (FETCH, "Fetch"),
        (LIST_OFFSETS, "ListOffsets"),
        (METADATA, "Metadata"),
        (INIT_PRODUCER_ID, "InitProducerId"),
        (CREATE_TOPIC, "CreateTopic"),
        (DELETE_TOPIC, "DeleteTopic"),
        (DESCRIBE_PARTITIONS, "DescribePartitions"),
        (PING, "Ping"),
        (REASSIGN_PARTITION, "ReassignPartition"),
        (LIST_REASSIGNMENTS, "ListReassignments"),
        (REMOVE_NODE, "RemoveNode"),
        (ALTER_TOPIC, "AlterTopic"),
        (SCRUB, "Scrub"),
        (ADD_NODE, "AddNode"),
        (RECOVER_PARTITION, "RecoverPartition"),
    ];
}

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body is.
    pub kind: u16,
    /// Length of the body, bytes; within the bound of its direction and kind.
    pub body_bytes: u32,
    /// Ties a reply to its request.
    pub correlation_id: u64,
}

/// Bytes that are no frame of this protocol. The position of the next frame is unknown after it, so the
/// connection must be closed, after an error reply where [`FrameError::reply`] gives one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte is not the magic.
    #[error(
        "a frame begins with byte 0xb7, this one with {found:#04x}; the client speaks another protocol or lost count of its frames"
    )]
    BadMagic {
        /// What was there instead.
        found: u8,
    },
    /// A frame layout that this version does not know.
    #[error("frame version {found} is not known, only 1 is; use a client of this protocol version")]
    BadVersion {
        /// The version in the frame.
        found: u8,
        /// The frame's correlation id.
        correlation_id: u64,
    },
    /// The body would exceed its bound.
    #[error("the body of a frame of kind {kind:#06x} would be {length} bytes, {max} is the bound")]
    TooLarge {
        /// The frame's kind.
        kind: u16,
        /// The frame's correlation id.
        correlation_id: u64,
        /// What the header says, bytes.
        length: u32,
        /// What is allowed, bytes.
        max: u32,
    },
    /// A reply where a request belongs, or the other way round.
    #[error("kind {kind:#06x} has the reply bit wrong for its direction")]
    WrongDirection {
        /// The frame's kind.
        kind: u16,
        /// The frame's correlation id.
        correlation_id: u64,
    },
}

impl FrameError {
    /// The correlation id and code of the error reply to send before closing; `None` when what came is no frame
    /// at all and an answer would not be understood.
    pub fn reply(&self) -> Option<(u64, ErrorCode)> {
        match *self {
            Self::BadMagic { .. } => None,
            Self::BadVersion { correlation_id, .. } => Some((correlation_id, ErrorCode::UnsupportedVersion)),
            Self::TooLarge { correlation_id, .. } => Some((correlation_id, ErrorCode::TooLarge)),
            Self::WrongDirection { correlation_id, .. } => Some((correlation_id, ErrorCode::InvalidRequest)),
        }
    }
}

impl FrameHeader {
    /// The header of a request, at the start of `bytes`. `None` asks for more bytes; a wrong first byte is told
    /// at once.
    pub fn decode_request(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        Self::decode(bytes, max_request_body_bytes, 0)
    }

    /// The header of a reply, at the start of `bytes`. `None` asks for more bytes.
    pub fn decode_reply(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        Self::decode(bytes, |_| MAX_REPLY_BODY_BYTES, REPLY_BIT)
    }

    fn decode(
        bytes: &[u8],
        max_body_bytes: impl Fn(u16) -> usize,
        direction: u16,
    ) -> Result<Option<Self>, FrameError> {
        match bytes.first() {
            None => return Ok(None),
            Some(&MAGIC) => {}
            Some(&found) => return Err(FrameError::BadMagic { found }),
        }
        let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        let [_, version, k0, k1, l0, l1, l2, l3, correlation @ ..] = *header;
        let kind = u16::from_le_bytes([k0, k1]);
        let body_bytes = u32::from_le_bytes([l0, l1, l2, l3]);
        let correlation_id = u64::from_le_bytes(correlation);
        let max = max_body_bytes(kind);
        if body_bytes as usize > max {
            return Err(FrameError::TooLarge { kind, correlation_id, length: body_bytes, max: max as u32 });
        }
        if version != FRAME_VERSION {
            return Err(FrameError::BadVersion { found: version, correlation_id });
        }
        if kind & REPLY_BIT != direction {
            return Err(FrameError::WrongDirection { kind, correlation_id });
        }
        Ok(Some(Self { kind, body_bytes, correlation_id }))
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let fields = [MAGIC, FRAME_VERSION]
            .into_iter()
            .chain(self.kind.to_le_bytes())
            .chain(self.body_bytes.to_le_bytes())
            .chain(self.correlation_id.to_le_bytes());
        for (byte, field) in bytes.iter_mut().zip(fields) {
            *byte = field;
        }
        bytes
    }

    /// Length of the whole frame, bytes.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES.saturating_add(self.body_bytes as usize)
    }
}

/// Largest body of a request of this kind, bytes.
pub fn max_request_body_bytes(kind: u16) -> usize {
    if kind == kind::PRODUCE { MAX_REQUEST_BODY_BYTES } else { MAX_SMALL_REQUEST_BODY_BYTES }
}

/// What a client that has just connected speaks (decision D7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The binary protocol.
    Frames,
    /// HTTP/1: the socket goes to the control thread, with the bytes read so far.
    Http,
    /// Neither; close the connection.
    Neither,
    /// Too few bytes to tell.
    NeedMore,
}

/// Tells the binary protocol from HTTP by the first bytes of a connection.
pub fn sniff(first: &[u8]) -> Protocol {
    const METHODS: [&[u8]; 7] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH "];
    match first.first() {
        None => Protocol::NeedMore,
        Some(&MAGIC) => Protocol::Frames,
        Some(_) if METHODS.iter().any(|method| first.starts_with(method)) => Protocol::Http,
        Some(_) if METHODS.iter().any(|method| method.starts_with(first)) => Protocol::NeedMore,
        Some(_) => Protocol::Neither,
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: u16, body_bytes: u32) -> FrameHeader {
        FrameHeader { kind, body_bytes, correlation_id: 0x0102_0304_0506_0708 }
    }

    #[test]
    fn http_and_frames_are_told_apart_by_what_has_come_so_far() {
        assert_eq!(sniff(b""), Protocol::NeedMore);
        assert_eq!(sniff(&[MAGIC]), Protocol::Frames);
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
            for end in 1..=method.len() {
                assert_eq!(sniff(&method.as_bytes()[..end]), Protocol::NeedMore, "{method} cut at {end}");
            }
            assert_eq!(sniff(format!("{method} / HTTP/1.1\r\n").as_bytes()), Protocol::Http);
        }
        for other in [&b"get "[..], b"\0", b"PRI * HTTP/2.0", b"\x16\x03\x01", b"GETX", b"\xff"] {
            assert_eq!(sniff(other), Protocol::Neither, "{other:?}");
        }
    }

    #[test]
    fn the_bound_is_by_direction_and_kind_and_checked_first() {
        let limit = MAX_REQUEST_BODY_BYTES as u32;
        let decode = |header: FrameHeader| FrameHeader::decode_request(&header.encode());
        assert!(decode(header(kind::PRODUCE, limit)).unwrap().is_some());
        assert!(matches!(decode(header(kind::PRODUCE, limit + 1)), Err(FrameError::TooLarge { .. })));
        assert!(decode(header(kind::FETCH, 1024)).unwrap().is_some());
        assert!(matches!(decode(header(kind::FETCH, 1025)), Err(FrameError::TooLarge { .. })));
        let mut wrong_version = header(kind::PING, u32::MAX).encode();
        wrong_version[1] = 9;
        assert!(matches!(FrameHeader::decode_request(&wrong_version), Err(FrameError::TooLarge { .. })));

        let reply = header(kind::FETCH | REPLY_BIT, MAX_REPLY_BODY_BYTES as u32);
        assert_eq!(FrameHeader::decode_reply(&reply.encode()), Ok(Some(reply)));
        let over = header(kind::FETCH | REPLY_BIT, MAX_REPLY_BODY_BYTES as u32 + 1);
        assert!(matches!(FrameHeader::decode_reply(&over.encode()), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn a_header_in_the_wrong_direction_or_of_another_version_is_refused() {
        let request = header(kind::PING, 0).encode();
        assert!(matches!(FrameHeader::decode_reply(&request), Err(FrameError::WrongDirection { .. })));
        let reply = header(kind::PING | REPLY_BIT, 0).encode();
        assert!(matches!(FrameHeader::decode_request(&reply), Err(FrameError::WrongDirection { .. })));
        let mut other = request;
        other[1] = 2;
        let error = FrameHeader::decode_request(&other).unwrap_err();
        assert_eq!(error.reply(), Some((0x0102_0304_0506_0708, ErrorCode::UnsupportedVersion)));
        assert_eq!(FrameHeader::decode_request(b"GET "), Err(FrameError::BadMagic { found: b'G' }));
    }

    proptest! {
        #[test]
        fn a_header_survives_the_wire_and_asks_for_more_until_it_is_whole(
            kind in 0u16..0x8000, length in 0u32..=1024, correlation_id: u64,
        ) {
            let header = FrameHeader { kind, body_bytes: length, correlation_id };
            let bytes = header.encode();
            prop_assert_eq!(FrameHeader::decode_request(&bytes), Ok(Some(header)));
            for end in 0..FRAME_HEADER_BYTES {
                prop_assert_eq!(FrameHeader::decode_request(&bytes[..end]), Ok(None));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = FrameHeader::decode_request(&bytes);
            let _ = FrameHeader::decode_reply(&bytes);
            let _ = sniff(&bytes);
        }
    }
}
