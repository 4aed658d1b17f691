//! A segment's index: sparse, derived, never evidence (`docs/storage-format.md`, "Index"). It only says where
//! in the segment to begin looking; every position that it gives is checked against the segment's batches.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use pyralog_core::limits::INDEX_INTERVAL_BYTES;

use super::bytes::{array_at, i64_le, put, u16_le, u32_le};

/// First bytes of an index.
pub const INDEX_MAGIC: [u8; 4] = [0xB7, b'P', b'I', b'X'];
/// Version of the index's format.
pub const INDEX_VERSION: u16 = 1;
/// Bytes of the index's header.
pub const INDEX_HEADER_BYTES: usize = 32;
/// Bytes of one entry.
pub const INDEX_ENTRY_BYTES: usize = 24;

/// One entry: a batch begins at `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Offset of the first record of the batch at `position`.
    pub base_offset: i64,
    /// Largest timestamp of all batches before `position`, milliseconds.
    pub max_timestamp: i64,
    /// Byte position in the segment.
    pub position: u32,
}

/// Why bytes are no index. The remedy is always the same: build it again from the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Shorter than a header, or another kind of file.
    #[error("no index header: rebuild it from its segment")]
    Magic,
    /// A version that this program does not know.
    #[error("index version {0} is not known here: rebuild it from its segment")]
    Version(u16),
    /// The header's bytes are not those that were written.
    #[error("the index header's checksum does not match: rebuild it from its segment")]
    Checksum,
    /// It belongs to another segment.
    #[error("the index names base offset {0}, its file name another: rebuild it from its segment")]
    BaseOffset(i64),
}

impl IndexEntry {
    /// The entry's bytes.
    pub fn encode(&self) -> [u8; INDEX_ENTRY_BYTES] {
        let mut bytes = [0; INDEX_ENTRY_BYTES];
        put(&mut bytes, 0, &self.base_offset.to_le_bytes());
        put(&mut bytes, 8, &self.max_timestamp.to_le_bytes());
        put(&mut bytes, 16, &self.position.to_le_bytes());
        let crc = bytes.get(..20).map_or(0, crc32c::crc32c);
        put(&mut bytes, 20, &crc.to_le_bytes());
        bytes
    }

    /// The entry at the start of `bytes`, or `None` when it is not whole and intact.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let crc = u32_le(bytes, 20)?;
        let entry = Self {
            base_offset: i64_le(bytes, 0)?,
            max_timestamp: i64_le(bytes, 8)?,
            position: u32_le(bytes, 16)?,
        };
        (crc32c::crc32c(bytes.get(..20)?) == crc).then_some(entry)
    }
}

/// The header of the index of the segment with this base offset.
pub fn index_header(base_offset: i64) -> [u8; INDEX_HEADER_BYTES] {
    let mut bytes = [0; INDEX_HEADER_BYTES];
    put(&mut bytes, 0, &INDEX_MAGIC);
    put(&mut bytes, 4, &INDEX_VERSION.to_le_bytes());
    put(&mut bytes, 8, &base_offset.to_le_bytes());
    let crc = bytes.get(..28).map_or(0, crc32c::crc32c);
    put(&mut bytes, 28, &crc.to_le_bytes());
    bytes
}

/// Decides, batch by batch, which entries an index gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexBuilder {
    /// Position of the newest entry (0: the segment's start needs none).
    indexed_position: u64,
    /// Largest timestamp so far.
    max_timestamp: i64,
}

impl Default for IndexBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl IndexBuilder {
    /// For an empty segment.
    pub fn new() -> Self {
        Self { indexed_position: 0, max_timestamp: i64::MIN }
    }

    /// For a segment whose newest entry is at `indexed_position` (0: none) and whose batches have this largest
    /// timestamp.
    pub fn resume(indexed_position: u64, max_timestamp: i64) -> Self {
        Self { indexed_position, max_timestamp }
    }

    /// Takes the next batch, which begins at `position`. Returns the entry to append, if one is due.
    pub fn add(&mut self, position: u64, base_offset: i64, max_timestamp: i64) -> Option<IndexEntry> {
        let due = position.saturating_sub(self.indexed_position) >= u64::from(INDEX_INTERVAL_BYTES);
        // A batch that begins beyond 4 GiB gets no entry: the one before it is found by walking on.
        let entry = match u32::try_from(position) {
            Ok(short) if due => {
                self.indexed_position = position;
                Some(IndexEntry { base_offset, max_timestamp: self.max_timestamp, position: short })
            }
            _ => None,
        };
        self.max_timestamp = self.max_timestamp.max(max_timestamp);
        entry
    }

    /// Largest timestamp of the batches so far; `i64::MIN` without any.
    pub fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }
}

/// A loaded index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    base_offset: i64,
    entries: Vec<IndexEntry>,
}

impl Index {
    /// An index without entries: everything is found by walking from the segment's start.
    pub fn empty(base_offset: i64) -> Self {
        Self { base_offset, entries: Vec::new() }
    }

    /// The valid prefix of an index file: entries up to the first that is broken, out of order, or beyond
    /// `segment_bytes`.
    pub fn parse(bytes: &[u8], base_offset: i64, segment_bytes: u64) -> Result<Self, IndexError> {
        Self::check_header(bytes, base_offset)?;
        let rest = bytes.get(INDEX_HEADER_BYTES..).unwrap_or_default();
        let mut entries: Vec<IndexEntry> = Vec::with_capacity(rest.len() / INDEX_ENTRY_BYTES);
        for chunk in rest.chunks_exact(INDEX_ENTRY_BYTES) {
            let Some(entry) = IndexEntry::decode(chunk) else { break };
            let follows =
                entries.last().map_or(entry.base_offset > base_offset && entry.position > 0, |last| {
                    entry.base_offset > last.base_offset
                        && entry.position > last.position
                        && entry.max_timestamp >= last.max_timestamp
                });
            if !follows || u64::from(entry.position) >= segment_bytes {
                break;
            }
            entries.push(entry);
        }
        Ok(Self { base_offset, entries })
    }

    fn check_header(bytes: &[u8], base_offset: i64) -> Result<(), IndexError> {
        if array_at(bytes, 0) != Some(INDEX_MAGIC) {
            return Err(IndexError::Magic);
        }
        let header = bytes.get(..INDEX_HEADER_BYTES).ok_or(IndexError::Magic)?;
        if header.get(..28).map(crc32c::crc32c) != u32_le(header, 28) {
            return Err(IndexError::Checksum);
        }
        match (u16_le(header, 4), i64_le(header, 8)) {
            (Some(INDEX_VERSION), Some(base)) if base == base_offset => Ok(()),
            (Some(INDEX_VERSION), Some(base)) => Err(IndexError::BaseOffset(base)),
            (version, _) => Err(IndexError::Version(version.unwrap_or(0))),
        }
    }

    /// Offset of the segment's first record.
    pub fn base_offset(&self) -> i64 {
        self.base_offset
    }

    /// The entries, ascending.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Adds an entry that [`IndexBuilder::add`] gave.
    pub fn push(&mut self, entry: IndexEntry) {
        self.entries.push(entry);
    }

    /// Bytes of the file's valid prefix: where the next entry is appended.
    pub fn file_bytes(&self) -> u64 {
        (INDEX_HEADER_BYTES + self.entries.len() * INDEX_ENTRY_BYTES) as u64
    }

    /// Memory that the index takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<IndexEntry>()
    }

    /// A position at which a batch begins and from which walking forward finds `offset`.
    pub fn position_for_offset(&self, offset: i64) -> u64 {
        self.before(|entry| entry.base_offset <= offset)
    }

    /// A position at which a batch begins and from which walking forward finds the first batch that has a
    /// timestamp of at least `timestamp`.
    pub fn position_for_time(&self, timestamp: i64) -> u64 {
        self.before(|entry| entry.max_timestamp < timestamp)
    }

    fn before(&self, passes: impl Fn(&IndexEntry) -> bool) -> u64 {
        let after = self.entries.partition_point(passes);
        after.checked_sub(1).and_then(|at| self.entries.get(at)).map_or(0, |entry| u64::from(entry.position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A segment of `lens` byte-long batches (one record each): (position, offset, timestamp) and the index file.
    fn build(base: i64, batches: &[(u64, i64)]) -> (Vec<(u64, i64, i64)>, Vec<u8>, u64) {
        let mut builder = IndexBuilder::new();
        let mut file = index_header(base).to_vec();
        let mut position = 0;
        let mut list = Vec::new();
        for (i, (len, time)) in batches.iter().enumerate() {
            let offset = base + i as i64;
            list.push((position, offset, *time));
            if let Some(entry) = builder.add(position, offset, *time) {
                file.extend(entry.encode());
            }
            position += len;
        }
        (list, file, position)
    }

    proptest! {
        #[test]
        fn walking_from_the_given_position_finds_the_answer(
            batches in proptest::collection::vec((100..40_000u64, 0..1_000i64), 1..200),
            offset in 0..250i64, time in 0..1_100i64,
        ) {
            let (list, file, bytes) = build(1_000, &batches);
            let index = Index::parse(&file, 1_000, bytes).unwrap();
            prop_assert_eq!(index.file_bytes(), file.len() as u64);
            let target = 1_000 + offset;
            let from = index.position_for_offset(target);
            prop_assert!(list.iter().any(|batch| batch.0 == from), "a batch begins there");
            if let Some(batch) = list.iter().find(|batch| batch.1 == target) {
                prop_assert!(from <= batch.0 && batch.0 - from < 64 * 1024 + 40_000);
            }
            let from = index.position_for_time(time);
            if let Some(first) = list.iter().find(|batch| batch.2 >= time) {
                prop_assert!(from <= first.0);
            }
        }

        #[test]
        fn a_damaged_file_gives_a_prefix_of_the_truth(
            batches in proptest::collection::vec((30_000..90_000u64, 0..1_000i64), 1..50),
            cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(),
        ) {
            let (_, file, bytes) = build(5, &batches);
            let whole = Index::parse(&file, 5, bytes).unwrap();
            let mut damaged = file.clone();
            let bit = flip.index(damaged.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            damaged.truncate(cut.index(damaged.len()) + 1);
            if let Ok(index) = Index::parse(&damaged, 5, bytes) {
                prop_assert!(whole.entries().starts_with(index.entries()));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut headed = index_header(5).to_vec();
            headed.extend(&bytes);
            let _ = Index::parse(&bytes, 5, 1 << 20);
            let _ = Index::parse(&headed, 5, 1 << 20);
        }
    }

    #[test]
    fn a_foreign_or_stale_index_is_refused() {
        let (_, file, bytes) = build(5, &[(70_000, 1), (70_000, 2), (70_000, 3)]);
        assert_eq!(Index::parse(&file, 6, bytes), Err(IndexError::BaseOffset(5)));
        assert_eq!(Index::parse(&[0; 64], 5, bytes), Err(IndexError::Magic));
        assert_eq!(Index::parse(&file, 5, bytes).unwrap().entries().len(), 2);
        assert_eq!(Index::parse(&file, 5, 100_000).unwrap().entries().len(), 1, "beyond the segment's end");
        assert_eq!(Index::empty(5).position_for_offset(100), 0);
    }
}
