//! What is known of the journal files without walking them: generations, and the claims of every header seen.

use std::collections::{BTreeMap, BTreeSet};

use ahash::AHashMap;
use pyralog_core::limits::JOURNAL_ALIGN;

use super::{Place, ScanError, Scanner, payload};
use crate::engine::{FileId, IoErrorKind, RecoveryDisk};
use crate::format::journal::{CommitError, CommitHeader};
use crate::pages::Pages;

/// The headers seen so far, boiled down.
pub(super) struct Survey {
    journal_id: u64,
    /// Valid headers at region starts, by file and position.
    region_starts: BTreeMap<(u32, u64), CommitHeader>,
    /// Highest generation seen in each file.
    seen: BTreeMap<u32, u64>,
    /// By incarnation: the highest durable point that one of its headers claims.
    claims: AHashMap<u64, u64>,
    /// The highest durable point that any header claims.
    pub(super) durable: u64,
    /// The highest incarnation of any header.
    pub(super) incarnation: u64,
    /// A valid header of another journal: file and id.
    pub(super) foreign: Option<(u32, u64)>,
    /// Blocks that the disk refuses to read.
    pub(super) unreadable: BTreeSet<(u32, u64)>,
}

/// How often one block is read before it counts as unreadable.
const BLOCK_ATTEMPTS: u32 = 4;

/// Reads `buffer.len()` bytes; where the file ends before, the rest is zeros. A region that can't be read whole is
/// read block by block: blocks that fail count as zeros and are noted.
pub(super) fn read_blocks(
    disk: &mut dyn RecoveryDisk,
    file: u32,
    start: u64,
    buffer: &mut [u8],
    unreadable: &mut BTreeSet<(u32, u64)>,
) -> Result<(), ScanError> {
    match disk.read(FileId::Journal(file), start, buffer) {
        Ok(filled) => {
            buffer.get_mut(filled..).unwrap_or_default().fill(0);
            Ok(())
        }
        Err(error) if error.kind == IoErrorKind::NotFound => Err(error.into()),
        Err(_) => {
            read_single_blocks(disk, file, start, buffer, unreadable);
            Ok(())
        }
    }
}

/// The same for all of `pages`, which may come back as other memory.
pub(super) fn read_pages(
    disk: &mut dyn RecoveryDisk,
    file: u32,
    start: u64,
    pages: &mut Pages,
    unreadable: &mut BTreeSet<(u32, u64)>,
) -> Result<(), ScanError> {
    match disk.read_pages(FileId::Journal(file), start, pages) {
        Ok(filled) => {
            pages.bytes_mut().get_mut(filled..).unwrap_or_default().fill(0);
            Ok(())
        }
        Err(error) if error.kind == IoErrorKind::NotFound => Err(error.into()),
        Err(_) => {
            read_single_blocks(disk, file, start, pages.bytes_mut(), unreadable);
            Ok(())
        }
    }
}

fn read_single_blocks(
    disk: &mut dyn RecoveryDisk,
    file: u32,
    start: u64,
    buffer: &mut [u8],
    unreadable: &mut BTreeSet<(u32, u64)>,
) {
    let id = FileId::Journal(file);
    let mut position = start;
    for block in buffer.chunks_mut(JOURNAL_ALIGN) {
        // Tried again before it is given up: an error that passes must not cost what lies there for good.
        let filled = (0..BLOCK_ATTEMPTS).find_map(|_| disk.read(id, position, block).ok());
        let filled = filled.unwrap_or_else(|| {
            unreadable.insert((file, position));
            0
        });
        block.get_mut(filled..).unwrap_or_default().fill(0);
        position += JOURNAL_ALIGN as u64;
    }
}

impl Survey {
    /// Looks at the start of every region of every file; where a file's first block tells nothing, at its whole
    /// first region.
    pub(super) fn of(
        disk: &mut dyn RecoveryDisk,
        scanner: &Scanner,
        files: &BTreeMap<u32, u64>,
    ) -> Result<Self, ScanError> {
        let mut survey = Self {
            journal_id: scanner.journal_id,
            region_starts: BTreeMap::new(),
            seen: BTreeMap::new(),
            claims: AHashMap::new(),
            durable: 0,
            incarnation: 0,
            foreign: None,
            unreadable: BTreeSet::new(),
        };
        let mut block = vec![0; JOURNAL_ALIGN];
        let mut region = Vec::new();
        for (&file, &len) in files {
            for start in (0..len).step_by(scanner.region_bytes) {
                read_blocks(disk, file, start, &mut block, &mut survey.unreadable)?;
                if let Some(header) = survey.note(file, start, &block)? {
                    survey.region_starts.insert((file, start), header);
                }
            }
            if len > 0 && !survey.region_starts.contains_key(&(file, 0)) {
                region.resize(scanner.region_bytes.min(len as usize), 0);
                survey.headers(disk, (file, 0), &mut region, &mut |_, _| {})?;
            }
        }
        Ok(survey)
    }

    /// Takes notice of the header at `position` of `file`, if a valid one of this journal is there.
    pub(super) fn note(
        &mut self,
        file: u32,
        position: u64,
        bytes: &[u8],
    ) -> Result<Option<CommitHeader>, ScanError> {
        let header = match CommitHeader::decode(bytes) {
            Ok(header) => header,
            Err(CommitError::Version(version)) => return Err(ScanError::Version { file, version }),
            Err(_) => return Ok(None),
        };
        if header.journal_id != self.journal_id {
            self.foreign.get_or_insert((file, header.journal_id));
            return Ok(None);
        }
        // A block that the disk put at a wrong place says nothing: it is not where it was written to.
        if header.file != file || header.position != position {
            return Ok(None);
        }
        let seen = self.seen.entry(file).or_default();
        *seen = header.generation.max(*seen);
        let claim = self.claims.entry(header.incarnation).or_default();
        *claim = header.durable_lsn.max(*claim);
        self.durable = self.durable.max(header.durable_lsn);
        self.incarnation = self.incarnation.max(header.incarnation);
        Ok(Some(header))
    }

    /// Reads the region at `(file, start)` into `buffer` and gives every header in it, with whether all frames of
    /// the commit are intact. The inside of an intact commit is not looked at.
    pub(super) fn headers(
        &mut self,
        disk: &mut dyn RecoveryDisk,
        (file, start): (u32, u64),
        buffer: &mut [u8],
        found: &mut dyn FnMut(CommitHeader, bool),
    ) -> Result<(), ScanError> {
        read_blocks(disk, file, start, buffer, &mut self.unreadable)?;
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some(bytes) = buffer.get(at..).filter(|bytes| !bytes.is_empty()) {
            let mut step = JOURNAL_ALIGN;
            if let Some(header) = self.note(file, start + at as u64, bytes)? {
                let intact = payload(&header, bytes)
                    .is_some_and(|payload| header.verify_frames(payload, &mut frames).is_ok());
                if intact {
                    step = header.padded_len();
                }
                found(header, intact);
            }
            at += step;
        }
        Ok(())
    }

    /// Whether any header of this journal was seen.
    pub(super) fn any_own(&self) -> bool {
        !self.seen.is_empty()
    }

    /// The highest generation seen in the file; 0 for none.
    pub(super) fn generation(&self, file: u32) -> u64 {
        self.seen.get(&file).copied().unwrap_or(0)
    }

    /// The valid header at a region's start.
    pub(super) fn region_start(&self, place: Place) -> Option<CommitHeader> {
        self.region_starts.get(&(place.file, place.position)).copied()
    }

    /// The highest durable point that a header of this incarnation claims.
    pub(super) fn claim(&self, incarnation: u64) -> u64 {
        self.claims.get(&incarnation).copied().unwrap_or(0)
    }

    /// The start of the file with the lowest generation.
    pub(super) fn lowest(&self) -> Option<Place> {
        let starts = self.seen.iter().map(|(&file, &highest)| {
            let generation = self.region_starts.get(&(file, 0)).map_or(highest, |header| header.generation);
            Place { generation, position: 0, file }
        });
        starts.min()
    }

    /// Whether the file has a commit of this generation before `position`: what a replay point there stands on.
    pub(super) fn holds_before(
        &self,
        disk: &mut dyn RecoveryDisk,
        scanner: &Scanner,
        file: u32,
        generation: u64,
        position: u64,
    ) -> Result<bool, ScanError> {
        let known = self.region_starts.range((file, 0)..(file, position));
        if known.into_iter().any(|(_, header)| header.generation == generation) {
            return Ok(true);
        }
        let mut block = vec![0; JOURNAL_ALIGN];
        let mut unreadable = BTreeSet::new();
        for at in (0..position).step_by(JOURNAL_ALIGN) {
            read_blocks(disk, file, at, &mut block, &mut unreadable)?;
            let here = CommitHeader::decode(&block).is_ok_and(|header| {
                header.journal_id == scanner.journal_id
                    && (header.file, header.position, header.generation) == (file, at, generation)
            });
            if here {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
