//! Writing a batch.

use super::compress::compress;
use super::*;
use crate::limits::{BATCH_HEADER_BYTES, MAX_BATCH_BYTES, MAX_BATCH_RECORDS};

/// Builds record batches, one after the other, in memory that it keeps.
///
/// Append records, [`build`](Self::build), send the bytes, [`clear`](Self::clear), go on. Once its buffer has
/// grown to the size of the batches, uncompressed batches take no further allocation.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    /// The header's place and the records, uncompressed.
    plain: Vec<u8>,
    /// The batch with compressed records.
    packed: Vec<u8>,
    count: u32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// An empty batch without a producer.
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// An empty batch without a producer, with memory for a batch of `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut plain = Vec::with_capacity(bytes.clamp(BATCH_HEADER_BYTES, MAX_BATCH_BYTES));
        plain.resize(BATCH_HEADER_BYTES, 0);
        Self {
            plain,
            packed: Vec::new(),
            count: 0,
            base_timestamp: -1,
            max_timestamp: -1,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
        }
    }

    /// Drops the records and keeps the memory and the producer.
    pub fn clear(&mut self) {
        self.plain.truncate(BATCH_HEADER_BYTES);
        self.count = 0;
        self.base_timestamp = -1;
        self.max_timestamp = -1;
    }

    /// Makes this and the following batches part of an idempotent producer session. The first record of the batch
    /// gets `base_sequence`; set it anew for every batch.
    pub fn set_producer(&mut self, id: i64, epoch: i16, base_sequence: i32) {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = base_sequence;
    }

    /// Number of records appended.
    pub fn record_count(&self) -> u32 {
        self.count
    }

    /// Whether there is no record yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of the batch so far, uncompressed, header included, bytes. A compressed batch is never larger.
    pub fn len_bytes(&self) -> usize {
        self.plain.len()
    }

    /// Appends a record. `timestamp` is in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`BatchError::Full`] when the batch would exceed [`MAX_BATCH_BYTES`] or [`MAX_BATCH_RECORDS`]: build, clear
    /// and append again. [`BatchError::RecordTooLarge`] when no batch can hold the record,
    /// [`BatchError::TimestampRange`]. The batch is as before then.
    pub fn append(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<(), BatchError> {
        let base = if self.count == 0 { timestamp } else { self.base_timestamp };
        let Some(timestamp_delta) = timestamp.checked_sub(base) else {
            return Err(BatchError::TimestampRange { timestamp, base });
        };
        let offset_delta = i64::from(self.count);
        let body = body_len(timestamp_delta, offset_delta, key, value, headers);
        self.check_room(body)?;

        let out = &mut self.plain;
        varint::write(out, body as i64);
        out.push(0); // a record's attributes: none are defined
        varint::write(out, timestamp_delta);
        varint::write(out, offset_delta);
        write_bytes(out, key);
        write_bytes(out, value);
        varint::write(out, headers.len() as i64);
        for header in headers {
            write_bytes(out, Some(header.key));
            write_bytes(out, header.value);
        }
        if self.count == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    /// Whether a record whose body has `body` bytes fits.
    fn check_room(&self, body: u64) -> Result<(), BatchError> {
        let record = body.saturating_add(varint::encoded_len(body as i64) as u64);
        let alone = record.saturating_add(BATCH_HEADER_BYTES as u64);
        if alone > MAX_BATCH_BYTES as u64 {
            return Err(BatchError::RecordTooLarge { bytes: alone });
        }
        let total = record.saturating_add(self.plain.len() as u64);
        if total > MAX_BATCH_BYTES as u64 || self.count >= MAX_BATCH_RECORDS {
            return Err(BatchError::Full { bytes: self.plain.len(), records: self.count });
        }
        Ok(())
    }

    /// The finished batch: base offset 0, no leader epoch, checksum set. When compressing does not make it smaller
    /// it stays uncompressed, as its attributes then say. Appending further records afterwards is fine.
    ///
    /// # Errors
    /// [`BatchError::Empty`]; [`BatchError::Producer`] when the producer set is not a valid one.
    pub fn build(&mut self, compression: Compression) -> Result<&[u8], BatchError> {
        if self.count == 0 {
            return Err(BatchError::Empty);
        }
        let (id, epoch, sequence) = (self.producer_id, self.producer_epoch, self.base_sequence);
        if id < NO_PRODUCER_ID || (id != NO_PRODUCER_ID && (epoch < 0 || sequence < 0)) {
            return Err(BatchError::Producer { id, epoch, sequence });
        }
        if compression != Compression::None && self.pack(compression) {
            let header = self.header(compression, self.packed.len());
            return Ok(seal(&mut self.packed, header));
        }
        let header = self.header(Compression::None, self.plain.len());
        Ok(seal(&mut self.plain, header))
    }

    /// Compresses the records into `packed`; whether that was worth it.
    fn pack(&mut self, compression: Compression) -> bool {
        let Some(records) = self.plain.get(RECORDS_AT..) else { return false };
        self.packed.clear();
        self.packed.resize(BATCH_HEADER_BYTES, 0);
        compress(compression, records, &mut self.packed) && self.packed.len() < self.plain.len()
    }

    /// The header of a batch of `total` bytes, without its checksum.
    fn header(&self, compression: Compression, total: usize) -> [u8; BATCH_HEADER_BYTES] {
        let mut header = [0; BATCH_HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = header.get_mut(at..at.saturating_add(value.len())) {
                place.copy_from_slice(value);
            }
        };
        put(LENGTH_AT, &(total.saturating_sub(LENGTH_OVERHEAD) as i32).to_be_bytes());
        put(LEADER_EPOCH_AT, &NO_LEADER_EPOCH.to_be_bytes());
        put(MAGIC_AT, &[MAGIC]);
        put(ATTRIBUTES_AT, &(compression as i16).to_be_bytes());
        put(LAST_OFFSET_DELTA_AT, &self.count.saturating_sub(1).to_be_bytes());
        put(BASE_TIMESTAMP_AT, &self.base_timestamp.to_be_bytes());
        put(MAX_TIMESTAMP_AT, &self.max_timestamp.to_be_bytes());
        put(PRODUCER_ID_AT, &self.producer_id.to_be_bytes());
        put(PRODUCER_EPOCH_AT, &self.producer_epoch.to_be_bytes());
        put(BASE_SEQUENCE_AT, &self.base_sequence.to_be_bytes());
        put(RECORD_COUNT_AT, &self.count.to_be_bytes());
        header
    }
}

/// Puts the header in place and the checksum into it.
fn seal(batch: &mut [u8], header: [u8; BATCH_HEADER_BYTES]) -> &[u8] {
    if let Some(place) = batch.first_chunk_mut() {
        *place = header;
    }
    let crc = crc32c::crc32c(batch.get(ATTRIBUTES_AT..).unwrap_or_default());
    if let Some(place) = batch.get_mut(CRC_AT..ATTRIBUTES_AT) {
        place.copy_from_slice(&crc.to_be_bytes());
    }
    batch
}

fn bytes_len(bytes: Option<&[u8]>) -> u64 {
    let length = bytes.map_or(0, |b| b.len() as u64);
    let prefix = bytes.map_or(1, |b| varint::encoded_len(b.len() as i64) as u64);
    prefix.saturating_add(length)
}

fn write_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    varint::write(out, bytes.map_or(-1, |b| b.len() as i64));
    out.extend_from_slice(bytes.unwrap_or_default());
}

/// Bytes of a record behind its length field.
fn body_len(
    timestamp_delta: i64,
    offset_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) -> u64 {
    let fixed = [
        1,
        varint::encoded_len(timestamp_delta) as u64,
        varint::encoded_len(offset_delta) as u64,
        bytes_len(key),
        bytes_len(value),
        varint::encoded_len(headers.len() as i64) as u64,
    ];
    let headers = headers.iter().map(|h| bytes_len(Some(h.key)).saturating_add(bytes_len(h.value)));
    fixed.into_iter().chain(headers).fold(0, u64::saturating_add)
}
