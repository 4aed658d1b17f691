//! A cursor over a body which never indexes: every read is checked.

use super::DecodeError;

/// What is left of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(crate) fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn i16(&mut self, field: &'static str) -> Result<i16, DecodeError> {
        self.array(field).map(i16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_le_bytes)
    }

    /// A `u32` of at most `max`.
    pub(crate) fn u32_within(&mut self, field: &'static str, max: u32) -> Result<u32, DecodeError> {
        let value = self.u32(field)?;
        within(field, u64::from(value), u64::from(max))?;
        Ok(value)
    }

    /// A length field (`u16`) of at most `max`.
    pub(crate) fn len_within(&mut self, field: &'static str, max: usize) -> Result<usize, DecodeError> {
        let value = usize::from(self.u16(field)?);
        within(field, value as u64, max as u64)?;
        Ok(value)
    }

    /// A count (`u8`) of at most `max`.
    pub(crate) fn count_within(&mut self, field: &'static str, max: u8) -> Result<usize, DecodeError> {
        let value = self.u8(field)?;
        within(field, u64::from(value), u64::from(max))?;
        Ok(usize::from(value))
    }

    /// 0 or 1.
    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::UnknownValue { field, value: u64::from(value) }),
        }
    }

    /// Reserved bytes, which must be zero.
    pub(crate) fn reserved(&mut self, count: usize, after: &'static str) -> Result<(), DecodeError> {
        match self.bytes(count, after)?.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(DecodeError::ReservedNotZero { after }),
        }
    }

    pub(crate) fn text(&mut self, count: usize, field: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(count, field)?).map_err(|_| DecodeError::NotUtf8 { field })
    }

    /// Text and the zero bytes that fill it up to a multiple of eight.
    pub(crate) fn padded_text(&mut self, count: usize, field: &'static str) -> Result<&'a str, DecodeError> {
        let text = self.text(count, field)?;
        self.reserved(super::write::padding(count), field)?;
        Ok(text)
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Refuses a count of items that the bytes left can't hold, before memory is taken for them.
    pub(crate) fn fits(&self, count: u32, bytes_each: usize, field: &'static str) -> Result<(), DecodeError> {
        match (count as usize).checked_mul(bytes_each) {
            Some(bytes) if bytes <= self.rest.len() => Ok(()),
            _ => Err(DecodeError::Truncated { field }),
        }
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::TrailingBytes { bytes }),
        }
    }
}

fn within(field: &'static str, value: u64, max: u64) -> Result<(), DecodeError> {
    if value <= max { Ok(()) } else { Err(DecodeError::OutOfBound { field, value, max }) }
}
