//! The frame between nodes: a header of 16 bytes, little-endian, then the control part, then the payload.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | magic, 0xF5 |
//! | 1 | 1 | version of the frame layout, 1 |
//! | 2 | 2 | kind |
//! | 4 | 4 | length of the control part, bytes |
//! | 8 | 4 | length of the payload, bytes |
//! | 12 | 4 | CRC32C of the twelve bytes before and the control part |

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use pyralog_core::limits::{
    MAX_PEER_CONTROL_BYTES, MAX_PEER_PAYLOAD_BYTES, MAX_PEER_TEXT_BYTES, PEER_FRAME_HEADER_BYTES,
};

use super::hello::{HELLO_BYTES, REPLY_HEAD_BYTES};

/// First byte of every frame. No UTF-8 text contains it, and no frame of a client begins with it.
pub const MAGIC: u8 = 0xF5;
/// Version of the frame layout. The handshake chooses the version of what is inside.
pub const FRAME_VERSION: u8 = 1;

/// Bytes of the header that its checksum covers.
const CHECKED_BYTES: usize = PEER_FRAME_HEADER_BYTES.saturating_sub(4);

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FrameKind {
    /// The first frame of the dialling side.
    Hello = 1,
    /// The first frame of the accepting side.
    HelloReply = 2,
    /// Messages of replication, with the batches of their entries as payload. Dialling side only.
    Messages = 3,
    /// The sender is alive.
    Ping = 4,
}

impl FrameKind {
    /// Every kind with its name in the documentation.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Hello, "Hello"),
        (Self::HelloReply, "HelloReply"),
        (Self::Messages, "Messages"),
        (Self::Ping, "Ping"),
    ];

    fn from_u16(number: u16) -> Option<Self> {
        Self::ALL.iter().map(|(kind, _)| *kind).find(|kind| *kind as u16 == number)
    }

    /// Most bytes of the control part and of the payload of such a frame.
    pub const fn bounds(self) -> (usize, usize) {
        match self {
            Self::Hello => (HELLO_BYTES, 0),
            Self::HelloReply => (REPLY_HEAD_BYTES.saturating_add(MAX_PEER_TEXT_BYTES), 0),
            Self::Messages => (MAX_PEER_CONTROL_BYTES, MAX_PEER_PAYLOAD_BYTES),
            Self::Ping => (0, 0),
        }
    }
}

/// Why bytes are no frame. The place of the next frame is not known then, so the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Something else than a node.
    #[error(
        "the first byte is {found:#04x}, {MAGIC:#04x} begins a frame between nodes; another program speaks"
    )]
    BadMagic {
        /// The first byte.
        found: u8,
    },
    /// Another layout.
    #[error(
        "version {found} of the frame, this node reads {FRAME_VERSION}; bring the nodes to the same release"
    )]
    UnknownVersion {
        /// The version.
        found: u8,
    },
    /// A number that no kind has.
    #[error("unknown kind {found}; bring the nodes to the same release")]
    UnknownKind {
        /// The number.
        found: u16,
    },
    /// A length above its bound.
    #[error("{part} of {bytes} bytes, {max} is the bound")]
    TooLarge {
        /// Which part.
        part: &'static str,
        /// Its length.
        bytes: u32,
        /// What is allowed.
        max: usize,
    },
    /// Header or control part are damaged.
    #[error("the checksum of a frame does not match: it was damaged on the way")]
    Corrupt,
}

/// Control part and payload of a frame.
pub type Parts<'a> = (&'a [u8], &'a [u8]);

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Length of the control part, bytes.
    pub control_bytes: usize,
    /// Length of the payload, bytes.
    pub payload_bytes: usize,
}

impl FrameHeader {
    /// The header at the front of `bytes`; `None` while it is not all there. Its lengths are within their bounds, its
    /// checksum is not checked yet: that is for [`Self::control`].
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        match *bytes {
            [magic, ..] if magic != MAGIC => return Err(FrameError::BadMagic { found: magic }),
            [_, version, ..] if version != FRAME_VERSION => {
                return Err(FrameError::UnknownVersion { found: version });
            }
            _ => {}
        }
        let Some([_, _, k0, k1, c0, c1, c2, c3, p0, p1, p2, p3]) = bytes.first_chunk::<12>() else {
            return Ok(None);
        };
        if bytes.len() < PEER_FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let number = u16::from_le_bytes([*k0, *k1]);
        let kind = FrameKind::from_u16(number).ok_or(FrameError::UnknownKind { found: number })?;
        let (control, payload) =
            (u32::from_le_bytes([*c0, *c1, *c2, *c3]), u32::from_le_bytes([*p0, *p1, *p2, *p3]));
        let (max_control, max_payload) = kind.bounds();
        for (part, bytes, max) in
            [("a control part", control, max_control), ("a payload", payload, max_payload)]
        {
            if bytes as usize > max {
                return Err(FrameError::TooLarge { part, bytes, max });
            }
        }
        Ok(Some(Self { kind, control_bytes: control as usize, payload_bytes: payload as usize }))
    }

    /// Length of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        PEER_FRAME_HEADER_BYTES.saturating_add(self.control_bytes).saturating_add(self.payload_bytes)
    }

    /// The control part and the payload of the whole frame in `bytes`, whose header this is, once header and control
    /// part match their checksum. `None` while the frame is not all there.
    pub fn parts<'a>(&self, bytes: &'a [u8]) -> Result<Option<Parts<'a>>, FrameError> {
        let Some(frame) = bytes.get(..self.frame_bytes()) else { return Ok(None) };
        let Some((header, rest)) = frame.split_at_checked(PEER_FRAME_HEADER_BYTES) else { return Ok(None) };
        let Some((control, payload)) = rest.split_at_checked(self.control_bytes) else { return Ok(None) };
        let Some((checked, [a, b, c, d])) = header.split_last_chunk::<4>() else { return Ok(None) };
        match checksum(checked, control) == u32::from_le_bytes([*a, *b, *c, *d]) {
            true => Ok(Some((control, payload))),
            false => Err(FrameError::Corrupt),
        }
    }
}

/// Appends header and control part of a frame to `out`; `payload_bytes` of payload must follow. The caller has checked the
/// lengths against [`FrameKind::bounds`].
pub fn encode(kind: FrameKind, control: &[u8], payload_bytes: usize, out: &mut Vec<u8>) {
    let mut header = [0; CHECKED_BYTES];
    let [magic, version, k0, k1, c0, c1, c2, c3, p0, p1, p2, p3] = &mut header;
    (*magic, *version) = (MAGIC, FRAME_VERSION);
    [*k0, *k1] = (kind as u16).to_le_bytes();
    [*c0, *c1, *c2, *c3] = (control.len() as u32).to_le_bytes();
    [*p0, *p1, *p2, *p3] = (payload_bytes as u32).to_le_bytes();
    out.extend_from_slice(&header);
    out.extend_from_slice(&checksum(&header, control).to_le_bytes());
    out.extend_from_slice(control);
}

fn checksum(header: &[u8], control: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), control)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(control: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(FrameKind::Messages, control, payload.len(), &mut out);
        out.extend_from_slice(payload);
        out
    }

    /// As a receiver does it.
    fn read(bytes: &[u8]) -> Result<Option<(FrameKind, Parts<'_>)>, FrameError> {
        let Some(header) = FrameHeader::decode(bytes)? else { return Ok(None) };
        Ok(header.parts(bytes)?.map(|parts| (header.kind, parts)))
    }

    #[test]
    fn each_kind_is_held_to_its_own_bounds() {
        for (kind, _) in FrameKind::ALL {
            let (control, payload) = kind.bounds();
            let mut out = Vec::new();
            encode(*kind, &vec![0; control], payload, &mut out);
            assert!(FrameHeader::decode(&out).is_ok());
            for (control, payload) in [(control + 1, payload), (control, payload + 1)] {
                out.clear();
                encode(*kind, &vec![0; control], payload, &mut out);
                assert!(matches!(FrameHeader::decode(&out), Err(FrameError::TooLarge { .. })), "{kind:?}");
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_told_at_once() {
        assert_eq!(FrameHeader::decode(b"GET"), Err(FrameError::BadMagic { found: b'G' }));
        assert_eq!(FrameHeader::decode(&[0; 64]), Err(FrameError::BadMagic { found: 0 }));
        let client = crate::frame::MAGIC;
        assert_eq!(FrameHeader::decode(&[client]), Err(FrameError::BadMagic { found: client }));
        assert_eq!(FrameHeader::decode(&[MAGIC, 2]), Err(FrameError::UnknownVersion { found: 2 }));
        let mut unknown = frame(b"", b"");
        unknown[2] = 99;
        assert_eq!(FrameHeader::decode(&unknown), Err(FrameError::UnknownKind { found: 99 }));
        assert!(std::str::from_utf8(&[MAGIC]).is_err());
    }

    proptest! {
        #[test]
        fn a_frame_survives_the_wire_and_is_nothing_until_it_is_whole(
            control in proptest::collection::vec(any::<u8>(), 0..100),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = frame(&control, &payload);
            for end in 0..bytes.len() {
                prop_assert_eq!(read(&bytes[..end]), Ok(None));
            }
            bytes.extend_from_slice(b"next");
            prop_assert_eq!(read(&bytes), Ok(Some((FrameKind::Messages, (&*control, &*payload)))));
        }

        #[test]
        fn any_flipped_bit_of_header_or_control_is_seen(
            control in proptest::collection::vec(any::<u8>(), 0..100), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let mut bytes = frame(&control, b"payload");
            let at = at.index(bytes.len() - 7);
            bytes[at] ^= 1 << bit;
            // A length that grew may ask for more bytes; with these the checksum fails.
            let outcome = read(&bytes).map(|read| read.is_some());
            if outcome == Ok(false) {
                let header = FrameHeader::decode(&bytes).unwrap().unwrap();
                bytes.resize(header.frame_bytes(), 0);
                prop_assert_eq!(read(&bytes), Err(FrameError::Corrupt));
            } else {
                prop_assert!(outcome.is_err(), "{:?}", outcome);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            for (at, byte) in [MAGIC, FRAME_VERSION].into_iter().enumerate() {
                if let Some(to) = bytes.get_mut(at) {
                    *to = byte;
                }
            }
            let _ = read(&bytes);
        }
    }
}
