//! The fixed fields of a RecordBatch v2 as the storage needs them: where it ends, what it is called, whether
//! its bytes are the ones that were written.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use pyralog_core::limits::{BATCH_HEADER_BYTES, MAX_BATCH_BYTES, MAX_BATCH_RECORDS};

use super::bytes::{i32_be, i64_be, u32_be};

/// Position of the length field; the length counts the bytes after it.
const LENGTH_AT: usize = 8;
/// Bytes before those that the length field counts.
const LENGTH_END: usize = 12;
/// First byte that the batch's CRC covers.
const CRC_FROM: usize = 21;
/// The one record batch version that is stored.
const MAGIC: u8 = 2;

/// The header fields of a stored batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHead {
    /// Offset of the first record.
    pub base_offset: i64,
    /// The whole batch, header included, bytes.
    pub total_bytes: usize,
    /// Epoch of the leader that appended it.
    pub epoch: u32,
    /// The batch's own checksum (CRC32C over everything after it).
    pub crc: u32,
    /// Records; offsets `base_offset..base_offset + record_count`.
    pub record_count: u32,
    /// Largest timestamp, milliseconds.
    pub max_timestamp: i64,
}

/// Why bytes are no stored batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does; the number is what the batch needs, as far as that is known.
    #[error("the bytes end inside the batch, which needs {0} bytes")]
    Incomplete(usize),
    /// A field holds a value that a stored batch never has.
    #[error("its {0} is not one that a stored batch can have")]
    Field(&'static str),
    /// The bytes are not those that were written.
    #[error("its checksum does not match its bytes")]
    Checksum,
}

impl BatchHead {
    /// Reads the header at the start of `bytes` and checks its bounds, not its CRC. The batch itself may be
    /// longer than `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        Self::read(bytes).unwrap_or(Err(BatchError::Incomplete(BATCH_HEADER_BYTES)))
    }

    fn read(bytes: &[u8]) -> Option<Result<Self, BatchError>> {
        let length = i32_be(bytes, LENGTH_AT)?;
        let magic = *bytes.get(16)?;
        let last_offset_delta = i32_be(bytes, 23)?;
        let records = i32_be(bytes, 57)?;
        let head = Self {
            base_offset: i64_be(bytes, 0)?,
            total_bytes: usize::try_from(length).unwrap_or(0).saturating_add(LENGTH_END),
            epoch: u32_be(bytes, 12)?,
            crc: u32_be(bytes, 17)?,
            record_count: u32::try_from(records).unwrap_or(0),
            max_timestamp: i64_be(bytes, 35)?,
        };
        let wrong = if magic != MAGIC {
            Some("version")
        } else if head.total_bytes < BATCH_HEADER_BYTES || head.total_bytes > MAX_BATCH_BYTES {
            Some("length")
        } else if head.record_count == 0 || head.record_count > MAX_BATCH_RECORDS {
            Some("record count")
        } else if last_offset_delta.checked_add(1) != Some(records) {
            Some("last offset delta")
        } else if head.base_offset < 0 || head.base_offset.checked_add(i64::from(records)).is_none() {
            Some("base offset")
        } else {
            None
        };
        Some(wrong.map_or(Ok(head), |field| Err(BatchError::Field(field))))
    }

    /// The offset after the last record.
    pub fn end_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.record_count))
    }

    /// Whether `batch` (exactly this batch's bytes) has the checksum that its header names.
    pub fn verify_crc(&self, batch: &[u8]) -> Result<(), BatchError> {
        match batch.get(CRC_FROM..) {
            Some(covered) if batch.len() == self.total_bytes => match crc32c::crc32c(covered) == self.crc {
                true => Ok(()),
                false => Err(BatchError::Checksum),
            },
            _ => Err(BatchError::Incomplete(self.total_bytes)),
        }
    }
}

/// Builders of batches for the tests of this module tree.
#[cfg(test)]
pub(crate) mod testing {
    /// A valid batch whose record bytes are `payload` (opaque to the storage).
    pub(crate) fn batch(
        base_offset: i64,
        epoch: u32,
        records: u32,
        max_timestamp: i64,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(61 + payload.len());
        bytes.extend(base_offset.to_be_bytes());
        bytes.extend((49 + payload.len() as i32).to_be_bytes());
        bytes.extend(epoch.to_be_bytes());
        bytes.push(2);
        bytes.extend([0; 4]);
        bytes.extend(0i16.to_be_bytes());
        bytes.extend((records as i32 - 1).to_be_bytes());
        bytes.extend(max_timestamp.to_be_bytes());
        bytes.extend(max_timestamp.to_be_bytes());
        bytes.extend((-1i64).to_be_bytes());
        bytes.extend((-1i16).to_be_bytes());
        bytes.extend((-1i32).to_be_bytes());
        bytes.extend((records as i32).to_be_bytes());
        bytes.extend(payload);
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_fields_that_were_written() {
        let bytes = testing::batch(70, 3, 5, 1_234, b"records");
        let head = BatchHead::parse(&bytes).unwrap();
        assert_eq!((head.base_offset, head.end_offset(), head.epoch, head.record_count), (70, 75, 3, 5));
        assert_eq!((head.max_timestamp, head.total_bytes), (1_234, bytes.len()));
        head.verify_crc(&bytes).unwrap();
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let good = testing::batch(70, 3, 5, 1_234, b"records");
        // The bytes before the CRC field are not covered by it: the frame around the batch guards them.
        for bit in 17 * 8..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let noticed = BatchHead::parse(&bytes).and_then(|head| head.verify_crc(&bytes)).is_err();
            assert!(noticed, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(head) = BatchHead::parse(&bytes) {
                let _ = head.verify_crc(&bytes);
            }
        }
    }
}
