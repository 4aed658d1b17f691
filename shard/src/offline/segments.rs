//! The check of one segment and its index, batch by batch.

use pyralog_core::GroupId;
use pyralog_core::limits::{BATCH_HEADER_BYTES, CHUNK_BYTES, MAX_BATCH_BYTES};

use super::folder::Folder;
use super::{Finding, OfflineError, Severity};
use crate::engine::FileId;
use crate::format::batch::{BatchError, BatchHead};
use crate::format::index::{Index, IndexEntry};

/// Largest index file that is read: entries for 4 GiB of segment.
const MAX_INDEX_BYTES: u64 = 4 << 20;

/// What a segment is expected to hold.
pub(super) struct Expected {
    pub(super) group: GroupId,
    pub(super) base: i64,
    /// The checkpoint's word: bytes, end offset, largest timestamp. `None`: nothing is known.
    pub(super) meta: Option<(u64, i64, i64)>,
}

/// What a segment holds.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) batches: u64,
    pub(super) records: u64,
    /// Offset after its last batch.
    pub(super) end_offset: i64,
}

struct Check<'f, 'a> {
    folder: &'f mut Folder<'a>,
    expected: Expected,
    findings: &'f mut Vec<Finding>,
    shard: pyralog_core::ShardId,
    buffer: Vec<u8>,
    /// Position of the buffer in the file.
    buffer_at: u64,
    /// Bytes of the file that count.
    len: u64,
    entries: std::iter::Peekable<std::vec::IntoIter<IndexEntry>>,
    index_is_wrong: bool,
    max_timestamp: i64,
    /// It holds a batch without a timestamp.
    timeless: bool,
    checked: Checked,
}

const LOST: &str = "these offsets have no other copy on this node and are refused to readers; restore the file from a \
                    backup, or live without them";
const UNFINISHED: &str = "normal when the node died while it wrote its first segments: no checkpoint names this one, the \
                          journal holds its batches, and the next start removes it";
const DERIVED: &str =
    "no data is lost: reads walk the segment instead; delete the index while the node is stopped";

pub(super) fn check(
    folder: &mut Folder<'_>,
    shard: pyralog_core::ShardId,
    expected: Expected,
    findings: &mut Vec<Finding>,
) -> Result<Checked, OfflineError> {
    let file_len = folder.len(FileId::Segment(expected.group, expected.base)).unwrap_or(0);
    let len = expected.meta.map_or(file_len, |(bytes, _, _)| bytes.min(file_len));
    let mut check = Check {
        folder,
        findings,
        shard,
        buffer: Vec::new(),
        buffer_at: 0,
        len,
        entries: Vec::new().into_iter().peekable(),
        index_is_wrong: false,
        max_timestamp: i64::MIN,
        timeless: false,
        checked: Checked { end_offset: expected.base, ..Checked::default() },
        expected,
    };
    check.load_index()?;
    check.walk()?;
    check.compare(file_len);
    Ok(check.checked)
}

impl Check<'_, '_> {
    fn find(
        &mut self,
        severity: Severity,
        file: FileId,
        position: Option<u64>,
        offsets: Option<(i64, i64)>,
        what: String,
        remedy: &'static str,
    ) {
        let file = self.folder.path(file);
        let group = Some(self.expected.group);
        self.findings.push(Finding {
            severity,
            shard: self.shard,
            file,
            position,
            group,
            offsets,
            what,
            remedy,
        });
    }

    fn log(&self) -> FileId {
        FileId::Segment(self.expected.group, self.expected.base)
    }

    fn index(&self) -> FileId {
        FileId::Index(self.expected.group, self.expected.base)
    }

    fn load_index(&mut self) -> Result<(), OfflineError> {
        let file = self.index();
        let Some(len) = self.folder.len(file) else {
            if self.len > u64::from(pyralog_core::limits::INDEX_INTERVAL_BYTES) * 2 {
                self.find(Severity::Note, file, None, None, "there is no index".into(), DERIVED);
            }
            return Ok(());
        };
        let bytes = self.folder.read_all(file, MAX_INDEX_BYTES)?;
        match Index::parse(&bytes, self.expected.base, u64::MAX) {
            Ok(index) => {
                if index.file_bytes() < len {
                    let what = format!("{} bytes at its end are no valid entries", len - index.file_bytes());
                    self.find(Severity::Warning, file, Some(index.file_bytes()), None, what, DERIVED);
                }
                let covered = index.entries().iter().copied().filter(|e| u64::from(e.position) < self.len);
                self.entries = covered.collect::<Vec<_>>().into_iter().peekable();
            }
            Err(error) => self.find(Severity::Warning, file, Some(0), None, error.to_string(), DERIVED),
        }
        Ok(())
    }

    /// The bytes from `position` on, at least `need` of them unless the segment ends before.
    fn bytes(&mut self, position: u64, need: usize) -> Result<&[u8], OfflineError> {
        let want = (need as u64).min(self.len.saturating_sub(position));
        let end = self.buffer_at + self.buffer.len() as u64;
        if position < self.buffer_at || position + want > end {
            let size = (CHUNK_BYTES as u64).max(want).min(self.len.saturating_sub(position));
            self.buffer.resize(size as usize, 0);
            let file = self.log();
            let read = self.folder.read_at(file, position, &mut self.buffer);
            let read = read.map_err(OfflineError::io(&self.folder.path(file)))?;
            self.buffer.truncate(read);
            self.buffer_at = position;
        }
        Ok(self.buffer.get((position - self.buffer_at) as usize..).unwrap_or_default())
    }

    fn walk(&mut self) -> Result<(), OfflineError> {
        let mut position = 0;
        while position < self.len {
            let bytes = self.bytes(position, BATCH_HEADER_BYTES)?;
            let parsed = BatchHead::parse(bytes);
            let parsed = match parsed {
                Ok(head) => {
                    let bytes = self.bytes(position, head.total_bytes)?;
                    let whole = bytes.get(..head.total_bytes);
                    let intact = whole.ok_or(BatchError::Incomplete(head.total_bytes));
                    intact
                        .and_then(|batch| head.verify_crc(batch))
                        .map_err(|error| (Some(head), error))
                        .map(|()| head)
                }
                Err(error) => Err((None, error)),
            };
            position = match parsed {
                Ok(head) => self.batch(position, &head),
                Err((head, error)) => self.broken(position, head, error)?,
            };
        }
        Ok(())
    }

    /// Takes an intact batch; returns the position after it.
    fn batch(&mut self, position: u64, head: &BatchHead) -> u64 {
        let expected = self.checked.end_offset;
        if head.base_offset != expected {
            let what = format!("a batch begins at offset {}, expected {expected}", head.base_offset);
            let offsets = Some((expected.min(head.base_offset), expected.max(head.base_offset)));
            self.find(Severity::Damage, self.log(), Some(position), offsets, what, LOST);
        }
        self.compare_index(position, head);
        self.max_timestamp = self.max_timestamp.max(head.max_timestamp);
        self.timeless |= head.max_timestamp < 0;
        self.checked.batches += 1;
        self.checked.records += u64::from(head.record_count);
        self.checked.end_offset = head.end_offset();
        position + head.total_bytes as u64
    }

    /// Reports a broken batch and finds the position at which the walk goes on: behind it when its header still
    /// leads to an intact batch, else at the next place that the index names.
    fn broken(
        &mut self,
        position: u64,
        head: Option<BatchHead>,
        error: BatchError,
    ) -> Result<u64, OfflineError> {
        let from = self.checked.end_offset;
        let mut next = None;
        let behind =
            head.filter(|head| head.base_offset == from).map(|head| position + head.total_bytes as u64);
        let indexed: Vec<u64> = self.entries.clone().map(|entry| u64::from(entry.position)).collect();
        for candidate in behind.into_iter().chain(indexed.into_iter().filter(|at| *at > position)) {
            let bytes = self.bytes(candidate, MAX_BATCH_BYTES)?;
            let Ok(head) = BatchHead::parse(bytes) else { continue };
            let intact = bytes.get(..head.total_bytes).is_some_and(|batch| head.verify_crc(batch).is_ok());
            if intact && head.base_offset >= from {
                next = Some((candidate, head.base_offset));
                break;
            }
        }
        let unfinished = self.expected.meta.is_none() && matches!(error, BatchError::Incomplete(_));
        if unfinished && next.is_none() {
            let what = format!("the file ends within the batch at offset {from}");
            self.find(Severity::Note, self.log(), Some(position), None, what, UNFINISHED);
            self.index_is_wrong = true;
            return Ok(self.len);
        }
        let end = self.expected.meta.map_or(i64::MAX, |(_, end, _)| end);
        let (go_on, to) = next.unwrap_or((self.len, end));
        let what = format!("the batch at offset {from} is broken: {error}");
        let offsets = (to != i64::MAX).then_some((from, to));
        self.find(Severity::Damage, self.log(), Some(position), offsets, what, LOST);
        self.checked.end_offset = if next.is_some() || to != i64::MAX { to } else { from };
        while self.entries.next_if(|entry| u64::from(entry.position) < go_on).is_some() {}
        // What the lost batches' timestamps were is not known: the index can't be checked any further.
        self.index_is_wrong = true;
        Ok(go_on)
    }

    fn compare_index(&mut self, position: u64, head: &BatchHead) {
        let mut wrong = false;
        while let Some(entry) = self.entries.next_if(|entry| u64::from(entry.position) <= position) {
            wrong |= u64::from(entry.position) != position
                || entry.base_offset != head.base_offset
                || entry.max_timestamp != self.max_timestamp;
        }
        if wrong && !self.index_is_wrong {
            self.index_is_wrong = true;
            let what = format!("its entry for byte {position} of the segment is not what the segment holds");
            self.find(Severity::Warning, self.index(), None, None, what, DERIVED);
        }
    }

    fn compare(&mut self, file_len: u64) {
        let Some((bytes, end_offset, max_timestamp)) = self.expected.meta else { return };
        let log = self.log();
        if file_len < bytes {
            let what = format!("the segment has {file_len} bytes, the checkpoint says {bytes}: it was cut");
            let offsets = Some((self.checked.end_offset, end_offset));
            self.find(Severity::Damage, log, Some(file_len), offsets, what, LOST);
            self.checked.end_offset = self.checked.end_offset.max(end_offset);
        } else if self.checked.end_offset != end_offset {
            let what =
                format!("it ends at offset {}, the checkpoint says {end_offset}", self.checked.end_offset);
            let offsets = Some((self.checked.end_offset, end_offset));
            self.find(Severity::Damage, log, None, offsets, what, LOST);
        } else if !self.index_is_wrong
            && self.checked.batches > 0
            // A batch without a timestamp counts with the time of its flush, which only the checkpoint knows.
            && !self.timeless
            && self.max_timestamp != max_timestamp
        {
            let what = format!(
                "its largest timestamp is {}, the checkpoint says {max_timestamp}",
                self.max_timestamp
            );
            self.find(
                Severity::Warning,
                log,
                None,
                None,
                what,
                "reads by time may begin too late; report it",
            );
        }
        if file_len > bytes {
            let what = format!("{} bytes at its end are not in the checkpoint", file_len - bytes);
            let remedy =
                "normal after a crash: the journal holds these batches, the next start cuts them off";
            self.find(Severity::Note, log, Some(bytes), None, what, remedy);
        }
    }
}
