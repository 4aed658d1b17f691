//! What an application gives a producer.

use std::time::{SystemTime, UNIX_EPOCH};

use pyralog_core::batch::Header;

/// A record to be sent. The bytes are copied into a batch by `send`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProducerRecord<'a> {
    /// Where to; `None` for the one that the key or the partitioner says.
    pub partition: Option<u32>,
    /// Milliseconds since the Unix epoch; `None` for the time now.
    pub timestamp: Option<i64>,
    /// Records with the same key go to the same partition.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: &'a [Header<'a>],
}

impl<'a> ProducerRecord<'a> {
    /// A record with a value only.
    pub fn value(value: &'a [u8]) -> Self {
        Self { value: Some(value), ..Self::default() }
    }

    /// A record with a key and a value.
    pub fn keyed(key: &'a [u8], value: &'a [u8]) -> Self {
        Self { key: Some(key), value: Some(value), ..Self::default() }
    }

    /// The same for a certain partition.
    #[must_use]
    pub fn to(self, partition: u32) -> Self {
        Self { partition: Some(partition), ..self }
    }
}

/// The timestamp of a record that has none of its own.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
