//! The records inside a batch. Nothing here believes a length before it has checked it.

use super::view::{BatchView, TimestampType};
use super::{BatchError, varint};

/// One record, borrowed from the batch or from the buffer it was decompressed into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its offset in the partition.
    pub offset: i64,
    /// Its timestamp, milliseconds since the Unix epoch; -1 = none.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` deletes the key in a compacted topic.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its key; UTF-8 by Kafka's rules, not checked here.
    pub key: &'a [u8],
    /// Its value.
    pub value: Option<&'a [u8]>,
}

impl<'a> Header<'a> {
    /// A header with a textual key.
    pub fn new(key: &'a str, value: Option<&'a [u8]>) -> Self {
        Self { key: key.as_bytes(), value }
    }
}

/// The headers of a record. They have been checked with the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a> {
    left: u32,
    bytes: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        self.left = self.left.checked_sub(1)?;
        read_header(&mut self.bytes).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Headers<'_> {}

/// The records of a batch, in order. The first malformed one yields its error and ends the iteration.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    /// Index of the next record; `count` when done.
    index: u32,
    count: u32,
    base_offset: i64,
    base_timestamp: i64,
    /// Set when every record has the same timestamp.
    append_time: Option<i64>,
}

impl<'a> Records<'a> {
    pub(super) fn new(batch: &BatchView<'_>, bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            index: 0,
            count: batch.record_count(),
            base_offset: batch.base_offset(),
            base_timestamp: batch.base_timestamp(),
            append_time: match batch.timestamp_type() {
                TimestampType::CreateTime => None,
                TimestampType::LogAppendTime => Some(batch.max_timestamp()),
            },
        }
    }

    fn read(&mut self) -> Result<Record<'a>, &'static str> {
        let length = varint::read_i32(&mut self.bytes).ok_or("its length is cut short or out of range")?;
        let length = usize::try_from(length).map_err(|_| "its length is negative")?;
        let (mut body, rest) = self.bytes.split_at_checked(length).ok_or("it is longer than the batch")?;
        self.bytes = rest;

        let (_attributes, after) = body.split_first().ok_or("it is empty")?;
        body = after;
        let timestamp_delta =
            varint::read_i64(&mut body).ok_or("its timestamp is cut short or out of range")?;
        let offset_delta = varint::read_i32(&mut body).ok_or("its offset is cut short or out of range")?;
        if u32::try_from(offset_delta) != Ok(self.index) {
            return Err("its offset does not follow the one before");
        }
        let timestamp = match self.append_time {
            Some(time) => time,
            None => self.base_timestamp.checked_add(timestamp_delta).ok_or("its timestamp overflows")?,
        };
        let key = read_bytes(&mut body).map_err(|_| "its key's length is out of range")?;
        let value = read_bytes(&mut body).map_err(|_| "its value's length is out of range")?;
        let headers = read_headers(&mut body)?;
        if !body.is_empty() {
            return Err("bytes follow its last header");
        }
        // `BatchView` has checked that base offset + count does not overflow.
        Ok(Record {
            offset: self.base_offset.saturating_add(i64::from(offset_delta)),
            timestamp,
            key,
            value,
            headers,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.index;
        if index >= self.count {
            // All records read: nothing may be left over. `bytes` is emptied so that the error comes once.
            let extra = std::mem::take(&mut self.bytes).len();
            return if extra == 0 { None } else { Some(Err(BatchError::BytesAfterRecords { extra })) };
        }
        match self.read() {
            Ok(record) => {
                self.index = index.saturating_add(1);
                Some(Ok(record))
            }
            Err(what) => {
                self.index = self.count;
                self.bytes = &[];
                Some(Err(BatchError::Record { index, what }))
            }
        }
    }
}

/// A length (-1 = absent) and that many bytes.
fn read_bytes<'a>(from: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ()> {
    let length = varint::read_i32(from).ok_or(())?;
    if length == -1 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| ())?;
    let (bytes, rest) = from.split_at_checked(length).ok_or(())?;
    *from = rest;
    Ok(Some(bytes))
}

fn read_header<'a>(from: &mut &'a [u8]) -> Result<Header<'a>, ()> {
    let key = read_bytes(from)?.ok_or(())?;
    Ok(Header { key, value: read_bytes(from)? })
}

/// Checks all headers and takes them off the front.
fn read_headers<'a>(from: &mut &'a [u8]) -> Result<Headers<'a>, &'static str> {
    let count = varint::read_i32(from).ok_or("its number of headers is cut short or out of range")?;
    let left = u32::try_from(count).map_err(|_| "its number of headers is negative")?;
    let start = *from;
    // Each turn takes at least two bytes or fails, so a huge count ends with the bytes.
    for _ in 0..left {
        read_header(from).map_err(|()| "a header's length is out of range")?;
    }
    let taken = start.len().saturating_sub(from.len());
    Ok(Headers { left, bytes: start.get(..taken).unwrap_or_default() })
}
