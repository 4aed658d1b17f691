//! The walk over the journal: delivers what was committed, in order, and decides where the log ends
//! (`docs/storage-format.md`, "Recovery").
//!
//! The decision that matters is made in one place, [`Walk::bridge`]: when the next commit is not where it has to
//! be, either it never became durable (the torn tail: the log ends) or it was durable and is damaged (reported,
//! and the walk goes on behind it). Evidence decides: any header anywhere that claims a durable point at or
//! above the missing commit.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod salvage;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;

use pyralog_core::limits::CHUNK_BYTES;

use super::checkpoint::ReplayPoint;
use super::journal::{COMMIT_HEADER_BYTES, CommitHeader, FrameHeader};
use crate::engine::{FileId, IoError, RecoveryDisk};
use crate::memory::Chunk;
use salvage::Ahead;
use survey::{Survey, read_blocks, read_pages};

/// A place in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Generation of the file's use.
    pub generation: u64,
    /// Byte position in the file.
    pub position: u64,
    /// The journal file.
    pub file: u32,
}

/// Something durable that can't be read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First commit that is affected.
    pub first_lsn: u64,
    /// Last commit that is affected.
    pub last_lsn: u64,
    /// The file in which it was noticed.
    pub file: u32,
    /// Byte position in that file.
    pub position: u64,
    /// What is lost.
    pub lost: Lost,
    /// For the operator: what was found.
    pub detail: String,
}

/// What a [`Damage`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Frames of unknown groups: any group may miss batches between what was delivered before and after.
    Unknown,
    /// The body of this frame; its header is intact.
    Body(FrameHeader),
}

/// Takes what the scan finds, in the order of the log.
pub trait ScanSink {
    /// A chunk of at least one region to read into: the `last` one if nobody else refers to it. May make room first, by
    /// writing to segments on `disk`.
    fn chunk(&mut self, disk: &mut dyn RecoveryDisk, last: Option<Rc<Chunk>>)
    -> Result<Rc<Chunk>, ScanError>;
    /// A commit: its intact frames with the position of their bodies in `chunk`, which the sink may keep slices
    /// of. When some of its frames are damaged, [`Self::damage`] was called for these just before.
    fn commit(
        &mut self,
        header: &CommitHeader,
        chunk: &Rc<Chunk>,
        frames: &[(FrameHeader, usize)],
    ) -> Result<(), ScanError>;
    /// Damage, in its place between the commits.
    fn damage(&mut self, damage: Damage) -> Result<(), ScanError>;
    /// The planted bug that ends the log at the first gap, whatever lies beyond.
    #[cfg(feature = "planted-bugs")]
    fn truncates_at_a_gap(&self) -> bool {
        false
    }
}

/// Why a journal can't be scanned. In each case the shard must not start as if its log were empty or shorter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// An operation on a file failed.
    #[error("{}; check the disk and its mount, then start again", .0.detail)]
    Disk(IoError),
    /// A block that decides where the log ends can't be read.
    #[error(
        "journal file {file} can't be read at byte {position}, so it is not known where the log ends; if the disk \
         is really damaged there, overwrite that block with zeros, then start again"
    )]
    Unreadable {
        /// The file.
        file: u32,
        /// The first such block.
        position: u64,
    },
    /// The checkpoint names a replay point that the journal files do not have.
    #[error(
        "the checkpoint's replay point (commit {lsn} in journal file {file} at byte {position}) is not in the \
         journal: {why}; is this the right journal_dir, and are all its files there?"
    )]
    ReplayPoint {
        /// The commit expected.
        lsn: u64,
        /// In this file.
        file: u32,
        /// At this byte.
        position: u64,
        /// What was found instead.
        why: &'static str,
    },
    /// The files belong to another journal.
    #[error(
        "journal file {file} belongs to journal {found:#018x}, this shard's is {expected:#018x}; it comes from \
         another node or shard, put the right files back"
    )]
    Foreign {
        /// The file.
        file: u32,
        /// The id found.
        found: u64,
        /// The id expected.
        expected: u64,
    },
    /// The files were written by another version of the program.
    #[error("journal file {file} has format version {version}; start the version of pyralog that wrote it")]
    Version {
        /// The file.
        file: u32,
        /// Its version.
        version: u16,
    },
    /// The sink gave up.
    #[error("{0}")]
    Sink(String),
}

impl From<IoError> for ScanError {
    fn from(error: IoError) -> Self {
        Self::Disk(error)
    }
}

/// How a scan ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanEnd {
    /// The next commit's number.
    pub next_lsn: u64,
    /// Its `prev_crc`.
    pub prev_crc: u32,
    /// Highest incarnation seen anywhere, dead commits included; the next life's is one more.
    pub incarnation: u64,
    /// Where the next life continues; `None` when nothing was ever written. A position at the end of the file
    /// means the start of a next file with the next generation.
    pub resume: Option<Place>,
    /// Every journal file with the highest generation found in it; `None` for one never used.
    pub files: Vec<(u32, Option<u64>)>,
    /// The write that the crash interrupted, if there was one: it was never acknowledged.
    pub torn: Option<String>,
    /// First commit delivered.
    pub first_lsn: Option<u64>,
    /// Commits delivered.
    pub commits: u64,
    /// Damage reported.
    pub damages: u64,
}

/// What a scan needs to know of the journal.
#[derive(Clone, Copy, Debug)]
pub struct Scanner {
    /// Identity of the journal.
    pub journal_id: u64,
    /// Bytes of one region; [`CHUNK_BYTES`] outside tests.
    pub region_bytes: usize,
}

/// Scans a shard's journal `files` (number and length) from the checkpoint's replay point on; without one from
/// commit 1 on, in the file with the lowest generation.
///
/// # Errors
/// When the disk or the sink fails, or when the log's end can't be established; see [`ScanError`].
pub fn scan(
    disk: &mut dyn RecoveryDisk,
    journal_id: u64,
    files: &[(u32, u64)],
    from: Option<ReplayPoint>,
    sink: &mut dyn ScanSink,
) -> Result<ScanEnd, ScanError> {
    Scanner { journal_id, region_bytes: CHUNK_BYTES }.scan(disk, files, from, sink)
}

impl Scanner {
    /// See [`scan`].
    ///
    /// # Errors
    /// As [`scan`].
    pub fn scan(
        &self,
        disk: &mut dyn RecoveryDisk,
        files: &[(u32, u64)],
        from: Option<ReplayPoint>,
        sink: &mut dyn ScanSink,
    ) -> Result<ScanEnd, ScanError> {
        let files: BTreeMap<u32, u64> = files.iter().copied().collect();
        let survey = Survey::of(disk, self, &files)?;
        let start = Start::find(disk, self, &files, &survey, from)?;
        let total = files.iter().filter(|(file, _)| survey.generation(**file) >= start.generation());
        let total =
            total.map(|(_, len)| *len).sum::<u64>().saturating_sub(start.place.map_or(0, |p| p.position));
        let walk = Walk {
            disk,
            sink,
            region_bytes: self.region_bytes,
            files,
            survey,
            region: None,
            frames: Vec::new(),
            place: start.place,
            next: start.lsn,
            prev_crc: start.prev_crc,
            incarnation: start.incarnation,
            broken: None,
            ahead: None,
            read_bytes: 0,
            total_bytes: total,
            first_lsn: None,
            commits: 0,
            damages: 0,
        };
        walk.run(&start)
    }
}

/// Where a scan begins.
struct Start {
    place: Option<Place>,
    lsn: u64,
    prev_crc: u32,
    incarnation: u64,
    /// What to say when nothing is found from here on although something was written before.
    unfounded: Option<ScanError>,
}

impl Start {
    fn generation(&self) -> u64 {
        self.place.map_or(0, |place| place.generation)
    }

    fn find(
        disk: &mut dyn RecoveryDisk,
        scanner: &Scanner,
        files: &BTreeMap<u32, u64>,
        survey: &Survey,
        from: Option<ReplayPoint>,
    ) -> Result<Self, ScanError> {
        if let (false, Some((file, found))) = (survey.any_own(), survey.foreign) {
            return Err(ScanError::Foreign { file, found, expected: scanner.journal_id });
        }
        match from {
            Some(point) => Self::at(disk, scanner, files, survey, &point),
            None => Ok(Self::lowest(survey)),
        }
    }

    fn at(
        disk: &mut dyn RecoveryDisk,
        scanner: &Scanner,
        files: &BTreeMap<u32, u64>,
        survey: &Survey,
        point: &ReplayPoint,
    ) -> Result<Self, ScanError> {
        let &ReplayPoint { lsn, file, generation, position, prev_crc, incarnation } = point;
        let error = |why| ScanError::ReplayPoint { lsn, file, position, why };
        match files.get(&file) {
            None => return Err(error("there is no such file")),
            Some(len) if position > *len => return Err(error("the file is shorter")),
            Some(_) => {}
        }
        if lsn > 1 && !survey.any_own() {
            return Err(error("no file holds a single commit"));
        }
        let founded = position == 0 || survey.holds_before(disk, scanner, file, generation, position)?;
        Ok(Self {
            place: Some(Place { file, generation, position }),
            lsn,
            prev_crc,
            incarnation,
            unfounded: (!founded).then(|| error("the file holds nothing of that generation")),
        })
    }

    /// Without a checkpoint no file was ever used twice and the log begins with commit 1, whatever can be read: a
    /// first file that is gone must not let the log begin later, as if nothing had been before.
    fn lowest(survey: &Survey) -> Self {
        Self { place: survey.lowest(), lsn: 1, prev_crc: 0, incarnation: 0, unfounded: None }
    }
}

/// One region in memory.
struct Region {
    file: u32,
    start: u64,
    chunk: Rc<Chunk>,
}

struct Walk<'a> {
    disk: &'a mut dyn RecoveryDisk,
    sink: &'a mut dyn ScanSink,
    region_bytes: usize,
    files: BTreeMap<u32, u64>,
    survey: Survey,
    region: Option<Region>,
    /// Frames of the commit being delivered; kept to be reused.
    frames: Vec<(FrameHeader, usize)>,
    /// Where the next commit is expected first.
    place: Option<Place>,
    /// The next commit.
    next: u64,
    prev_crc: u32,
    incarnation: u64,
    /// The next commit's header, when that is at its place and its frames are not.
    broken: Option<CommitHeader>,
    /// Everything behind the first gap; made once, the disk does not change.
    ahead: Option<Ahead>,
    read_bytes: u64,
    total_bytes: u64,
    first_lsn: Option<u64>,
    commits: u64,
    damages: u64,
}

impl Walk<'_> {
    fn run(mut self, start: &Start) -> Result<ScanEnd, ScanError> {
        let mut torn = None;
        if self.place.is_some() {
            loop {
                if self.step()? {
                    continue;
                }
                if !self.bridge(&mut torn)? {
                    break;
                }
            }
        }
        if let (Some(error), 0, 0) = (&start.unfounded, self.commits, self.damages) {
            return Err(error.clone());
        }
        let generation = |file| Some(self.survey.generation(file)).filter(|generation| *generation > 0);
        Ok(ScanEnd {
            next_lsn: self.next,
            prev_crc: self.prev_crc,
            incarnation: self.survey.incarnation.max(self.incarnation),
            resume: self.place,
            files: self.files.keys().map(|file| (*file, generation(*file))).collect(),
            torn,
            first_lsn: self.first_lsn,
            commits: self.commits,
            damages: self.damages,
        })
    }

    /// Delivers the next commit if it is where it has to be, whole. `false`: it is not.
    fn step(&mut self) -> Result<bool, ScanError> {
        self.broken = None;
        let Some((header, place)) = self.expected()? else { return Ok(false) };
        if !self.load_commit(&header, place)? {
            self.broken = Some(header);
            return Ok(false);
        }
        self.deliver(&header, place)?;
        Ok(true)
    }

    /// The next commit's header: right here, at the next region's start, or at the start of the next file.
    fn expected(&mut self) -> Result<Option<(CommitHeader, Place)>, ScanError> {
        let Some(here) = self.place else { return Ok(None) };
        let region = self.region_bytes as u64;
        if !here.position.is_multiple_of(region) {
            self.load(here.file, here.position - here.position % region)?;
            let bytes = self.region.as_ref().map_or(&[][..], |region| region.from(here.position));
            let found = self.survey.note(here.file, here.position, bytes)?;
            if let Some(header) = found.filter(|header| self.follows(header, here)) {
                return Ok(Some((header, here)));
            }
        }
        let next_region = Place { position: here.position.next_multiple_of(region), ..here };
        let next_file = here.generation.saturating_add(1);
        let starts = std::iter::once(next_region).chain(self.files.keys().map(|file| Place {
            file: *file,
            generation: next_file,
            position: 0,
        }));
        let found = starts.filter_map(|place| Some((self.survey.region_start(place)?, place)));
        Ok(found
            .filter(|(header, place)| self.follows(header, *place))
            .max_by_key(|(header, _)| header.incarnation))
    }

    /// Whether a valid header at `place` is the next commit.
    fn follows(&self, header: &CommitHeader, place: Place) -> bool {
        header.lsn == self.next
            && header.generation == place.generation
            && header.incarnation >= self.incarnation
            && header.prev_crc == self.prev_crc
    }

    /// Reads the region of a commit and verifies all its frames into `self.frames`.
    fn load_commit(&mut self, header: &CommitHeader, place: Place) -> Result<bool, ScanError> {
        self.load(place.file, place.position - place.position % self.region_bytes as u64)?;
        let bytes = match &self.region {
            Some(region) => region.from(place.position),
            None => &[],
        };
        // The header is read again: the survey's copy and the region may differ on a failing disk.
        let same = CommitHeader::decode(bytes).as_ref() == Ok(header);
        let payload = payload(header, bytes);
        Ok(same && payload.is_some_and(|payload| header.verify_frames(payload, &mut self.frames).is_ok()))
    }

    fn region_bytes_from(&self, place: Place) -> &[u8] {
        self.region.as_ref().map_or(&[], |region| region.from(place.position))
    }

    /// Hands `self.frames` (positions counted from the payload's start) to the sink and moves on behind the commit.
    fn deliver(&mut self, header: &CommitHeader, place: Place) -> Result<(), ScanError> {
        let Some(region) = &self.region else { return Ok(()) };
        let payload_at = (place.position - region.start) as usize + COMMIT_HEADER_BYTES;
        for (_, body) in &mut self.frames {
            *body += payload_at;
        }
        self.sink.commit(header, &region.chunk, &self.frames)?;
        self.first_lsn.get_or_insert(header.lsn);
        self.commits += 1;
        self.next = header.lsn.saturating_add(1);
        self.prev_crc = header.header_crc;
        self.incarnation = header.incarnation;
        self.place = Some(Place { position: header.end_position(), ..place });
        Ok(())
    }

    fn report(&mut self, damage: Damage) -> Result<(), ScanError> {
        self.damages += 1;
        self.sink.damage(damage)
    }

    /// Makes `self.region` the region at `start` of `file`: one read into a chunk of the sink's.
    fn load(&mut self, file: u32, start: u64) -> Result<(), ScanError> {
        let old = match self.region.take() {
            Some(region) if (region.file, region.start) == (file, start) => {
                self.region = Some(region);
                return Ok(());
            }
            other => other,
        };
        if old.as_ref().is_none_or(|region| region.file != file) {
            self.disk.will_read_sequentially(FileId::Journal(file), start);
        }
        let mut chunk = self.sink.chunk(self.disk, old.map(|region| region.chunk))?;
        let len = self.files.get(&file).copied().unwrap_or(0);
        let want = len.saturating_sub(start).min(self.region_bytes as u64) as usize;
        let unreadable = &mut self.survey.unreadable;
        match chunk.pages_mut() {
            Some(pages) if pages.len() == want => read_pages(self.disk, file, start, pages, unreadable)?,
            Some(pages) if pages.len() > want => {
                let buffer = pages.bytes_mut().get_mut(..want).unwrap_or_default();
                read_blocks(self.disk, file, start, buffer, unreadable)?;
            }
            _ => {
                let what = format!("a chunk of {want} bytes that nobody else holds is needed");
                return Err(ScanError::Sink(what));
            }
        }
        chunk.set_filled(want);
        self.read_bytes += want as u64;
        self.disk.progress(self.read_bytes, self.total_bytes.max(self.read_bytes));
        self.region = Some(Region { file, start, chunk });
        Ok(())
    }
}

impl Region {
    /// The region's bytes from a position in the file on.
    fn from(&self, position: u64) -> &[u8] {
        let at = position.saturating_sub(self.start) as usize;
        self.chunk.bytes(0, self.chunk.filled()).get(at..).unwrap_or_default()
    }
}

/// The payload of the commit at the start of `bytes`, if it is all there.
fn payload<'b>(header: &CommitHeader, bytes: &'b [u8]) -> Option<&'b [u8]> {
    bytes.get(COMMIT_HEADER_BYTES..)?.get(..header.payload_len as usize)
}
