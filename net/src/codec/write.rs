//! Appends a frame to a buffer; the header's length is filled in at the end.

use pyralog_core::limits::FRAME_HEADER_BYTES;

use crate::frame::FrameHeader;

/// Zero bytes that fill `count` bytes up to a multiple of eight.
pub(crate) fn padding(count: usize) -> usize {
    count.wrapping_neg() & 7
}

/// One frame being written at the end of a buffer.
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    kind: u16,
    correlation_id: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>, kind: u16, correlation_id: u64) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        Self { out, start, kind, correlation_id }
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn i16(&mut self, value: i16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// `count` reserved bytes.
    pub(crate) fn reserved(&mut self, count: usize) -> &mut Self {
        self.out.extend(std::iter::repeat_n(0, count));
        self
    }

    /// Text filled up with zeros to a multiple of eight bytes.
    pub(crate) fn padded_text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes()).reserved(padding(text.len()))
    }

    /// Bytes of the body so far.
    pub(crate) fn body_bytes(&self) -> usize {
        self.out.len().saturating_sub(self.start).saturating_sub(FRAME_HEADER_BYTES)
    }

    /// Overwrites bytes of the body that were written before.
    pub(crate) fn patch(&mut self, body_offset: usize, bytes: &[u8]) {
        let at = self.start.saturating_add(FRAME_HEADER_BYTES).saturating_add(body_offset);
        if let Some(target) = self.out.get_mut(at..at.saturating_add(bytes.len())) {
            target.copy_from_slice(bytes);
        }
    }

    /// Writes the header; `following_bytes` of the body are appended by the caller.
    pub(crate) fn finish(self, following_bytes: u32) {
        let body_bytes = (self.body_bytes() as u32).saturating_add(following_bytes);
        let header = FrameHeader { kind: self.kind, body_bytes, correlation_id: self.correlation_id };
        let end = self.start.saturating_add(FRAME_HEADER_BYTES);
        if let Some(target) = self.out.get_mut(self.start..end) {
            target.copy_from_slice(&header.encode());
        }
    }
}

/// The longest beginning of `text` that has at most `max` bytes and ends between two characters.
pub(crate) fn truncated(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}
