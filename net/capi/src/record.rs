//! Records, as the caller gives them and as it gets them.

use std::ffi::c_void;

use pyralog_core::batch::Header;
use pyralog_net::client::ProducerRecord;

use crate::args;
use crate::error::Failure;

/// The record goes to the partition in its field partition.
pub const PYRALOG_RECORD_PARTITION: u32 = 1;
/// The record has the time in its field timestamp_ms.
pub const PYRALOG_RECORD_TIMESTAMP: u32 = 2;

/// One header of a record.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HeaderParts {
    /// Its key: UTF-8, not ended by a zero byte.
    pub key: *const c_void,
    /// Bytes of its key.
    pub key_len: usize,
    /// Its value; NULL: it has none.
    pub value: *const c_void,
    /// Bytes of its value.
    pub value_len: usize,
}

/// A record to be sent. All zeros is a good start: no key, no value, no headers; the partition is chosen by the producer
/// and the time is now. Its bytes are copied during the call. A NULL key or value is none, which is not the same as an
/// empty one.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RecordParts {
    /// PYRALOG_RECORD_ numbers added up: which of the next two fields count.
    pub flags: u32,
    /// The partition, with PYRALOG_RECORD_PARTITION. Without it, records of the same key go to the same partition.
    pub partition: u32,
    /// Milliseconds since the Unix epoch, with PYRALOG_RECORD_TIMESTAMP.
    pub timestamp_ms: i64,
    /// Its key, or NULL.
    pub key: *const c_void,
    /// Bytes of its key.
    pub key_len: usize,
    /// Its value, or NULL.
    pub value: *const c_void,
    /// Bytes of its value.
    pub value_len: usize,
    /// Its headers; NULL when header_count is 0.
    pub headers: *const HeaderParts,
    /// How many headers it has.
    pub header_count: usize,
}

impl RecordParts {
    /// Calls `with` with the record that it describes.
    ///
    /// # Safety
    /// Its pointers are null or point to as much as it says, which nobody changes meanwhile.
    pub(crate) unsafe fn with<T>(
        &self,
        with: impl FnOnce(ProducerRecord<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let unknown = self.flags & !(PYRALOG_RECORD_PARTITION | PYRALOG_RECORD_TIMESTAMP);
        if unknown != 0 {
            return Err(Failure::argument(format!(
                "the record's flags have {unknown:#x}, which nothing is known of; set them to 0 first"
            )));
        }
        let has = |flag| self.flags & flag != 0;
        // SAFETY: as for this function.
        let (key, value, parts) = unsafe {
            (
                args::bytes(self.key, self.key_len, "the record's key")?,
                args::bytes(self.value, self.value_len, "the record's value")?,
                args::array(self.headers, self.header_count, "the record's headers")?,
            )
        };
        let mut headers = Vec::with_capacity(parts.len());
        for part in parts {
            // SAFETY: as for this function.
            let (key, value) = unsafe {
                (
                    args::bytes(part.key, part.key_len, "a header's key")?,
                    args::bytes(part.value, part.value_len, "a header's value")?,
                )
            };
            headers.push(Header { key: key.ok_or_else(|| Failure::null("a header's key"))?, value });
        }
        with(ProducerRecord {
            partition: has(PYRALOG_RECORD_PARTITION).then_some(self.partition),
            timestamp: has(PYRALOG_RECORD_TIMESTAMP).then_some(self.timestamp_ms),
            key,
            value,
            headers: &headers,
        })
    }
}

/// Where bytes are; `None` is NULL.
pub(crate) fn parts(bytes: Option<&[u8]>) -> (*const c_void, usize) {
    bytes.map_or((std::ptr::null(), 0), |bytes| (bytes.as_ptr().cast(), bytes.len()))
}

impl HeaderParts {
    pub(crate) fn of(header: &Header<'_>) -> Self {
        let (key, key_len) = parts(Some(header.key));
        let (value, value_len) = parts(header.value);
        Self { key, key_len, value, value_len }
    }
}
