//! The frames that the load consists of, built once, with only the correlation id patched per request.
//!
//! The floor server is sent the very same produce frames as a node and answers with frames of the very same
//! size, so the bytes that cross the socket don't differ between the two.

use anyhow::Context;

use crate::protocol::{Answered, Protocol};

/// Bytes of a frame header.
pub const HEADER: usize = pyralog_core::limits::FRAME_HEADER_BYTES;

/// Byte positions of the body's length and the correlation id in a frame header (docs/protocol.md).
const LENGTH_AT: usize = 4;
const CORRELATION_AT: usize = 8;

/// The length of the whole frame that `bytes` begin with, or `None` while its header is incomplete.
pub fn frame_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER)?;
    let length = u32::from_le_bytes(*header.get(LENGTH_AT..)?.first_chunk()?);
    Some(HEADER + length as usize)
}

/// The correlation id of the frame that `bytes` begin with, or `None` while its header is incomplete.
pub fn correlation_id(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(CORRELATION_AT..)?.first_chunk()?))
}

/// A complete frame, ready to be sent again and again under new correlation ids.
#[derive(Clone)]
pub struct FrameTemplate {
    bytes: Vec<u8>,
}

impl FrameTemplate {
    /// Takes a complete frame.
    pub fn new(bytes: Vec<u8>) -> anyhow::Result<Self> {
        let len = frame_len(&bytes).context("a frame shorter than its header")?;
        anyhow::ensure!(len == bytes.len(), "a frame of {} bytes whose header says {len}", bytes.len());
        Ok(Self { bytes })
    }

    /// The frame's length, bytes.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the frame under this correlation id. Allocates nothing while `out` has room.
    pub fn append_to(&self, out: &mut Vec<u8>, correlation: u64) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(field) = out.get_mut(start + CORRELATION_AT..start + HEADER) {
            field.copy_from_slice(&correlation.to_le_bytes());
        }
    }
}

/// What one reply tells; an error ends the run.
pub type ReplyCheck = fn(&[u8]) -> anyhow::Result<()>;

/// Pyralog's own protocol, which the floor server speaks, too.
pub struct Frames {
    request: FrameTemplate,
    check: ReplyCheck,
}

impl Frames {
    /// Sends this frame again and again and judges each reply.
    pub fn new(request: FrameTemplate, check: ReplyCheck) -> Self {
        Self { request, check }
    }
}

impl Protocol for Frames {
    fn request_bytes(&self) -> usize {
        self.request.len_bytes()
    }

    fn append_request(&mut self, out: &mut Vec<u8>, number: u64) -> anyhow::Result<()> {
        self.request.append_to(out, number);
        Ok(())
    }

    fn take_replies(
        &mut self,
        received: &[u8],
        _out: &mut Vec<u8>,
        answered: Answered<'_>,
    ) -> anyhow::Result<usize> {
        let mut taken = 0;
        while let Some(pending) = received.get(taken..)
            && let Some(frame) = frame_len(pending).and_then(|len| pending.get(..len))
        {
            (self.check)(frame)?;
            answered(correlation_id(frame).unwrap_or_default())?;
            taken += frame.len();
        }
        Ok(taken)
    }
}

/// Appends a floor server's reply: a header with this correlation id and a body of zeros.
pub fn append_floor_reply(out: &mut Vec<u8>, correlation: u64, body_bytes: usize) {
    append_floor_header(out, correlation, body_bytes);
    out.resize(out.len() + body_bytes, 0);
}

/// Appends what a floor server has appended, for another one: a header with this correlation id, and the bytes.
pub fn append_floor_copy(out: &mut Vec<u8>, correlation: u64, bytes: &[u8]) {
    append_floor_header(out, correlation, bytes.len());
    out.extend_from_slice(bytes);
}

fn append_floor_header(out: &mut Vec<u8>, correlation: u64, body_bytes: usize) {
    let start = out.len();
    out.resize(start + HEADER, 0);
    let Some(header) = out.get_mut(start..start + HEADER) else { return };
    if let Some(length) = header.get_mut(LENGTH_AT..CORRELATION_AT) {
        length.copy_from_slice(&(body_bytes as u32).to_le_bytes());
    }
    if let Some(field) = header.get_mut(CORRELATION_AT..) {
        field.copy_from_slice(&correlation.to_le_bytes());
    }
}
