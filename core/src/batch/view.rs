//! Reading a batch: checks of the header and access to its fields, without touching the records.

use super::record::Records;
use super::*;
use crate::limits::{BATCH_HEADER_BYTES, MAX_BATCH_BYTES, MAX_BATCH_RECORDS};

/// Whose clock the timestamps of a batch come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The leader's, when it appended the batch; every record has the batch's largest timestamp.
    LogAppendTime,
}

/// One record batch in borrowed bytes. Its header has been checked; its checksum and records have not.
#[derive(Clone, Copy)]
pub struct BatchView<'a> {
    bytes: &'a [u8],
    header: &'a [u8; BATCH_HEADER_BYTES],
}

/// The bytes of a header field. A position outside the header does not compile.
fn field<const AT: usize, const N: usize>(header: &[u8; BATCH_HEADER_BYTES]) -> [u8; N] {
    const { assert!(AT + N <= BATCH_HEADER_BYTES) };
    let mut out = [0; N];
    if let Some(bytes) = header.get(AT..AT.saturating_add(N)) {
        out.copy_from_slice(bytes);
    }
    out
}

/// Size of the batch at the front of `bytes`, by its length field: enough to walk a file of batches. `None` when
/// there are fewer than 12 bytes or the size is impossible (as it is for zeros). The batch itself may be cut short.
pub fn peek_len(bytes: &[u8]) -> Option<usize> {
    let length = i32::from_be_bytes(*bytes.get(LENGTH_AT..)?.first_chunk()?);
    let total = usize::try_from(length).ok()?.checked_add(LENGTH_OVERHEAD)?;
    (BATCH_HEADER_BYTES..=MAX_BATCH_BYTES).contains(&total).then_some(total)
}

/// Fills in the offset of the batch's first record. The checksum does not cover it.
///
/// # Errors
/// [`BatchError::Truncated`] when `batch` is shorter than a header.
pub fn patch_base_offset(batch: &mut [u8], base_offset: i64) -> Result<(), BatchError> {
    patch(batch, BASE_OFFSET_AT, &base_offset.to_be_bytes())
}

/// Fills in the epoch of the leader that appends the batch. The checksum does not cover it.
///
/// # Errors
/// [`BatchError::Truncated`] when `batch` is shorter than a header.
pub fn patch_leader_epoch(batch: &mut [u8], epoch: u32) -> Result<(), BatchError> {
    patch(batch, LEADER_EPOCH_AT, &epoch.to_be_bytes())
}

fn patch(batch: &mut [u8], at: usize, value: &[u8]) -> Result<(), BatchError> {
    let have = batch.len();
    let header = batch.first_chunk_mut::<BATCH_HEADER_BYTES>();
    let place = header.and_then(|h| h.get_mut(at..at.saturating_add(value.len())));
    place.ok_or(BatchError::Truncated { need: BATCH_HEADER_BYTES, have })?.copy_from_slice(value);
    Ok(())
}

impl<'a> BatchView<'a> {
    /// The batch at the front of `bytes` and the bytes behind it.
    ///
    /// Looks at the header only: call [`Self::verify_crc`] before believing the rest.
    ///
    /// # Errors
    /// [`BatchError::Truncated`] when more bytes are needed, anything else when no further bytes can help.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), BatchError> {
        let Some(header) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else {
            return Err(BatchError::Truncated { need: BATCH_HEADER_BYTES, have: bytes.len() });
        };
        let magic = u8::from_be_bytes(field::<MAGIC_AT, 1>(header));
        if magic != MAGIC {
            return Err(BatchError::UnsupportedMagic { magic });
        }
        let total = checked_len(i32::from_be_bytes(field::<LENGTH_AT, 4>(header)))?;
        let Some((batch, rest)) = bytes.split_at_checked(total) else {
            return Err(BatchError::Truncated { need: total, have: bytes.len() });
        };
        let view = Self { bytes: batch, header };
        view.check_header()?;
        Ok((view, rest))
    }

    /// The batch that is all of `bytes`.
    ///
    /// # Errors
    /// As [`Self::parse`], and [`BatchError::TrailingBytes`].
    pub fn parse_exact(bytes: &'a [u8]) -> Result<Self, BatchError> {
        match Self::parse(bytes)? {
            (view, []) => Ok(view),
            (_, rest) => Err(BatchError::TrailingBytes { extra: rest.len() }),
        }
    }

    fn check_header(&self) -> Result<(), BatchError> {
        let attributes = self.attributes();
        if attributes & !ATTRIBUTES_KNOWN != 0 {
            return Err(BatchError::UnknownAttributes { attributes });
        }
        let compression = Compression::from_attributes(attributes)?;

        let count = i32::from_be_bytes(field::<RECORD_COUNT_AT, 4>(self.header));
        if !(1..=MAX_BATCH_RECORDS as i32).contains(&count) {
            return Err(BatchError::RecordCount { count });
        }
        let delta = i32::from_be_bytes(field::<LAST_OFFSET_DELTA_AT, 4>(self.header));
        if delta != count.saturating_sub(1) {
            return Err(BatchError::LastOffsetDelta { delta, count });
        }
        let offset = self.base_offset();
        if offset < 0 || offset.checked_add(i64::from(count)).is_none() {
            return Err(BatchError::BaseOffset { offset });
        }
        let bytes = self.record_bytes().len();
        let count = self.record_count();
        let least = if compression == Compression::None {
            MIN_RECORD_BYTES.saturating_mul(count as usize)
        } else {
            1
        };
        if bytes < least {
            return Err(BatchError::TooFewBytes { bytes, count });
        }
        self.check_producer()
    }

    /// Without a producer id, epoch and sequence mean nothing and are not looked at: Kafka's clients do not agree on
    /// what to put there. A control batch has a producer but no sequence.
    fn check_producer(&self) -> Result<(), BatchError> {
        let (id, epoch, sequence) = (self.producer_id(), self.producer_epoch(), self.base_sequence());
        let ok = match id {
            NO_PRODUCER_ID => true,
            0.. => epoch >= 0 && (sequence >= 0 || (sequence == NO_SEQUENCE && self.is_control())),
            _ => false,
        };
        if ok { Ok(()) } else { Err(BatchError::Producer { id, epoch, sequence }) }
    }

    /// The whole batch, header included.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Size of the whole batch, bytes.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The records as stored: compressed if the batch is.
    pub fn record_bytes(&self) -> &'a [u8] {
        self.bytes.get(RECORDS_AT..).unwrap_or_default()
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> i64 {
        i64::from_be_bytes(field::<BASE_OFFSET_AT, 8>(self.header))
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        // `check_header` has refused every base offset that could overflow.
        self.base_offset().saturating_add(i64::from(self.record_count())).saturating_sub(1)
    }

    /// Epoch of the leader that appended the batch; [`NO_LEADER_EPOCH`] before that.
    pub fn leader_epoch(&self) -> u32 {
        u32::from_be_bytes(field::<LEADER_EPOCH_AT, 4>(self.header))
    }

    /// The checksum as stored.
    pub fn crc(&self) -> u32 {
        u32::from_be_bytes(field::<CRC_AT, 4>(self.header))
    }

    /// The attribute bits.
    pub fn attributes(&self) -> i16 {
        i16::from_be_bytes(field::<ATTRIBUTES_AT, 2>(self.header))
    }

    /// How the records are compressed.
    pub fn compression(&self) -> Compression {
        // `check_header` has refused what can't be named.
        Compression::from_attributes(self.attributes()).unwrap_or_default()
    }

    /// Whose clock the timestamps come from.
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes() & ATTRIBUTE_LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch is part of a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes() & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// Whether the batch holds markers instead of the user's records.
    pub fn is_control(&self) -> bool {
        self.attributes() & ATTRIBUTE_CONTROL != 0
    }

    /// Timestamp of the first record, milliseconds since the Unix epoch; -1 = none.
    pub fn base_timestamp(&self) -> i64 {
        i64::from_be_bytes(field::<BASE_TIMESTAMP_AT, 8>(self.header))
    }

    /// Largest timestamp of the records, milliseconds since the Unix epoch; -1 = none. The producer's word.
    pub fn max_timestamp(&self) -> i64 {
        i64::from_be_bytes(field::<MAX_TIMESTAMP_AT, 8>(self.header))
    }

    /// The idempotent producer's id, or [`NO_PRODUCER_ID`].
    pub fn producer_id(&self) -> i64 {
        i64::from_be_bytes(field::<PRODUCER_ID_AT, 8>(self.header))
    }

    /// Whether the batch belongs to an idempotent producer session.
    pub fn has_producer(&self) -> bool {
        self.producer_id() != NO_PRODUCER_ID
    }

    /// The producer's epoch; without meaning when there is no producer.
    pub fn producer_epoch(&self) -> i16 {
        i16::from_be_bytes(field::<PRODUCER_EPOCH_AT, 2>(self.header))
    }

    /// Sequence number of the first record; without meaning when there is no producer.
    pub fn base_sequence(&self) -> i32 {
        i32::from_be_bytes(field::<BASE_SEQUENCE_AT, 4>(self.header))
    }

    /// Sequence number of the last record; it wraps from `i32::MAX` to 0. [`NO_SEQUENCE`] without a sequence.
    pub fn last_sequence(&self) -> i32 {
        match self.base_sequence() {
            base @ 0.. => sequence_after(base, self.record_count().saturating_sub(1)),
            _ => NO_SEQUENCE,
        }
    }

    /// Number of records, 1 to [`MAX_BATCH_RECORDS`].
    pub fn record_count(&self) -> u32 {
        u32::from_be_bytes(field::<RECORD_COUNT_AT, 4>(self.header))
    }

    /// CRC32C of the bytes that the checksum covers.
    pub fn computed_crc(&self) -> u32 {
        crc32c::crc32c(self.bytes.get(ATTRIBUTES_AT..).unwrap_or_default())
    }

    /// Whether the checksum matches.
    pub fn verify_crc(&self) -> bool {
        self.computed_crc() == self.crc()
    }

    /// [`Self::verify_crc`] as a result.
    ///
    /// # Errors
    /// [`BatchError::CrcMismatch`].
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let (stored, computed) = (self.crc(), self.computed_crc());
        if stored == computed { Ok(()) } else { Err(BatchError::CrcMismatch { stored, computed }) }
    }

    /// The records. Uncompressed ones are borrowed from the batch and `scratch` stays untouched; compressed ones are
    /// decompressed into `scratch`, whose old content is dropped.
    ///
    /// # Errors
    /// [`BatchError::Decompression`], [`BatchError::DecompressedTooLarge`].
    pub fn records<'s>(&self, scratch: &'s mut Vec<u8>) -> Result<Records<'s>, BatchError>
    where
        'a: 's,
    {
        let records: &'s [u8] = match self.compression() {
            Compression::None => self.record_bytes(),
            compression => {
                compress::decompress(compression, self.record_bytes(), scratch)?;
                scratch
            }
        };
        Ok(Records::new(self, records))
    }

    /// Walks all records and says what is wrong with the first bad one.
    ///
    /// # Errors
    /// As [`Self::records`] and [`Records::next`].
    pub fn check_records(&self, scratch: &mut Vec<u8>) -> Result<(), BatchError> {
        self.records(scratch)?.try_for_each(|r| r.map(|_| ()))
    }
}

/// Size of a batch by its length field.
fn checked_len(length: i32) -> Result<usize, BatchError> {
    let Ok(behind) = usize::try_from(length) else { return Err(BatchError::LengthTooSmall { length }) };
    let total = behind.saturating_add(LENGTH_OVERHEAD);
    if total < BATCH_HEADER_BYTES {
        return Err(BatchError::LengthTooSmall { length });
    }
    if total > MAX_BATCH_BYTES {
        return Err(BatchError::TooLarge { bytes: total as u64 });
    }
    Ok(total)
}

impl std::fmt::Debug for BatchView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchView")
            .field("base_offset", &self.base_offset())
            .field("records", &self.record_count())
            .field("bytes", &self.len_bytes())
            .field("leader_epoch", &(self.leader_epoch() as i32))
            .field("compression", &self.compression())
            .field("producer", &(self.producer_id(), self.producer_epoch(), self.base_sequence()))
            .field("max_timestamp", &self.max_timestamp())
            .finish_non_exhaustive()
    }
}
