//! Batches from a fetch become text: the value and a newline, or one JSON object per record.

use std::io::Write;

use pyralog_core::batch::{BatchError, BatchView, Record};
use serde::Serialize;

use super::EOL_HEADER;
use super::cli::RecordFormat;

/// Turns record batches into bytes for standard output.
pub(crate) struct Printer {
    format: RecordFormat,
    key_separator: Option<String>,
    /// Records that may still be printed.
    left: u64,
    /// Printed so far.
    pub(crate) printed: u64,
    /// Text not yet written out.
    pub(crate) text: Vec<u8>,
    decompressed: Vec<u8>,
}

impl Printer {
    pub(crate) fn new(format: RecordFormat, key_separator: Option<String>, max: Option<u64>) -> Self {
        let left = max.unwrap_or(u64::MAX);
        Self { format, key_separator, left, printed: 0, text: Vec::new(), decompressed: Vec::new() }
    }

    /// Whether `--max` is reached.
    pub(crate) fn full(&self) -> bool {
        self.left == 0
    }

    /// Takes whole batches of one partition and prints what lies in `from..until`. Returns the offset after the
    /// last batch; that one is the next to fetch. Every checksum is verified.
    pub(crate) fn batches(
        &mut self,
        partition: u32,
        bytes: &[u8],
        from: i64,
        until: i64,
    ) -> Result<i64, BatchError> {
        let mut next = from;
        let mut rest = bytes;
        let mut decompressed = std::mem::take(&mut self.decompressed);
        while !rest.is_empty() && !self.full() {
            let (batch, after) = BatchView::parse(rest)?;
            rest = after;
            batch.check_crc()?;
            next = batch.last_offset().saturating_add(1);
            if batch.is_control() {
                continue;
            }
            for record in batch.records(&mut decompressed)? {
                let record = record?;
                if (from..until).contains(&record.offset) && !self.full() {
                    self.record(partition, &record);
                }
            }
        }
        self.decompressed = decompressed;
        Ok(next)
    }

    fn record(&mut self, partition: u32, record: &Record<'_>) {
        match self.format {
            RecordFormat::Raw => self.raw(record),
            RecordFormat::Json => self.json(partition, record),
        }
        self.left -= 1;
        self.printed += 1;
    }

    fn raw(&mut self, record: &Record<'_>) {
        if let (Some(separator), Some(key)) = (&self.key_separator, record.key) {
            self.text.extend_from_slice(key);
            self.text.extend_from_slice(separator.as_bytes());
        }
        self.text.extend_from_slice(record.value.unwrap_or_default());
        let mut headers = record.headers;
        if !headers.any(|header| header.key == EOL_HEADER.as_bytes() && header.value == Some(b"none")) {
            self.text.push(b'\n');
        }
    }

    fn json(&mut self, partition: u32, record: &Record<'_>) {
        let headers = record.headers.map(|header| JsonHeader {
            key: String::from_utf8_lossy(header.key).into_owned(),
            value: header.value.map(Text::of),
        });
        let json = JsonRecord {
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(Text::of),
            value: record.value.map(Text::of),
            headers: headers.collect(),
        };
        // Writing to a vector does not fail, and neither does any of these types.
        let _ = serde_json::to_writer(&mut self.text, &json);
        let _ = self.text.write_all(b"\n");
    }
}

#[derive(Serialize)]
struct JsonRecord<'a> {
    partition: u32,
    offset: i64,
    timestamp: i64,
    key: Option<Text<'a>>,
    value: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<JsonHeader<'a>>,
}

#[derive(Serialize)]
struct JsonHeader<'a> {
    key: String,
    value: Option<Text<'a>>,
}

/// A string, or `{"hex": "..."}` for bytes that are not UTF-8: no byte is lost and none is made up.
#[derive(Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Text(&'a str),
    Bytes { hex: String },
}

impl<'a> Text<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Bytes { hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyralog_core::batch::{BatchBuilder, Compression, Header, patch_base_offset};

    /// Key, value and headers.
    type Made<'a> = (Option<&'a [u8]>, &'a [u8], &'a [Header<'a>]);

    fn batch(base_offset: i64, records: &[Made<'_>]) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for (key, value, headers) in records {
            builder.append(1_000, *key, Some(value), headers).unwrap();
        }
        let mut bytes = builder.build(Compression::Lz4).unwrap().to_vec();
        patch_base_offset(&mut bytes, base_offset).unwrap();
        bytes
    }

    #[test]
    fn raw_gives_back_lines_and_a_last_line_without_its_newline() {
        let eol = [Header::new(EOL_HEADER, Some(b"none"))];
        let mut bytes = batch(5, &[(None, b"a", &[]), (None, b"", &[])]);
        bytes.extend(batch(7, &[(Some(b"k"), b"b\r", &[]), (None, b"end", &eol)]));
        let mut printer = Printer::new(RecordFormat::Raw, None, None);
        assert_eq!(printer.batches(0, &bytes, 5, i64::MAX), Ok(9));
        assert_eq!(printer.text, b"a\n\nb\r\nend");

        let mut keyed = Printer::new(RecordFormat::Raw, Some("=".into()), None);
        keyed.batches(0, &bytes, 7, i64::MAX).unwrap();
        assert_eq!(keyed.text, b"k=b\r\nend");
    }

    #[test]
    fn only_what_was_asked_for_is_printed() {
        let bytes = batch(10, &[(None, b"a", &[]), (None, b"b", &[]), (None, b"c", &[])]);
        let mut printer = Printer::new(RecordFormat::Raw, None, None);
        assert_eq!(printer.batches(0, &bytes, 11, 12), Ok(13));
        assert_eq!(printer.text, b"b\n");
        let mut few = Printer::new(RecordFormat::Raw, None, Some(2));
        few.batches(0, &bytes, 0, i64::MAX).unwrap();
        assert!(few.full());
        assert_eq!(few.text, b"a\nb\n");
    }

    #[test]
    fn json_keeps_bytes_that_are_no_text() {
        let headers = [Header::new("h", None)];
        let bytes = batch(3, &[(Some(b"\"k\""), b"\xff\x00", &headers)]);
        let mut printer = Printer::new(RecordFormat::Json, None, None);
        printer.batches(2, &bytes, 0, i64::MAX).unwrap();
        assert_eq!(
            String::from_utf8(printer.text).unwrap(),
            "{\"partition\":2,\"offset\":3,\"timestamp\":1000,\"key\":\"\\\"k\\\"\",\
             \"value\":{\"hex\":\"ff00\"},\"headers\":[{\"key\":\"h\",\"value\":null}]}\n"
        );
    }

    #[test]
    fn a_damaged_batch_is_an_error() {
        let mut bytes = batch(0, &[(None, b"hello hello hello hello", &[])]);
        *bytes.last_mut().unwrap() ^= 1;
        let mut printer = Printer::new(RecordFormat::Raw, None, None);
        assert!(matches!(printer.batches(0, &bytes, 0, i64::MAX), Err(BatchError::CrcMismatch { .. })));
    }
}
