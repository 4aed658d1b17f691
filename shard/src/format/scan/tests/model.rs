//! A journal as the engine writes it, on a disk in memory: several files, recycled, several lives, several
//! commits in flight. Knows what is really in the log, and can damage the disk.

use std::collections::{BTreeMap, BTreeSet};

use pyralog_core::GroupId;

use crate::engine::{FileId, IoError, IoErrorKind, RecoveryDisk};
use crate::format::batch::{BatchHead, testing::batch};
use crate::format::checkpoint::ReplayPoint;
use crate::format::journal::*;
use crate::format::scan::Place;

pub(super) const ID: u64 = 0x0BAD_CAFE_0123_4567;
pub(super) const REGION: usize = 32 << 10;
const BLOCK: usize = 4096;

/// Small, seeded, good enough to pick things.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<u32, Vec<u8>>,
    pub(super) unreadable: BTreeSet<(u32, u64)>,
}

impl Disk {
    pub(super) fn lengths(&self) -> Vec<(u32, u64)> {
        self.files.iter().map(|(file, bytes)| (*file, bytes.len() as u64)).collect()
    }

    fn put(&mut self, file: u32, at: usize, bytes: &[u8]) {
        self.files.get_mut(&file).unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get(&self, file: u32, at: usize, len: usize) -> &[u8] {
        &self.files[&file][at..at + len]
    }
}

impl RecoveryDisk for Disk {
    fn list(&mut self) -> Result<Vec<(FileId, u64)>, IoError> {
        Ok(self.lengths().into_iter().map(|(file, len)| (FileId::Journal(file), len)).collect())
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, IoError> {
        let FileId::Journal(file) = file else { unreachable!() };
        let bytes = &self.files[&file];
        let at = (offset as usize).min(bytes.len());
        let len = buffer.len().min(bytes.len() - at);
        let range = (file, offset)..(file, offset + len as u64);
        if self.unreadable.range(range).next().is_some() {
            return Err(IoError { kind: IoErrorKind::Other, detail: "EIO".into() });
        }
        buffer[..len].copy_from_slice(&bytes[at..at + len]);
        Ok(len)
    }

    fn will_read_sequentially(&mut self, _: FileId, _: u64) {}

    fn write(&mut self, _: FileId, _: u64, _: &[u8]) -> Result<(), IoError> {
        unreachable!("a scan only reads")
    }

    fn sync(&mut self, _: FileId) -> Result<(), IoError> {
        unreachable!("a scan only reads")
    }

    fn create_zeroed(&mut self, _: FileId, _: u64) -> Result<(), IoError> {
        unreachable!("a scan only reads")
    }

    fn truncate(&mut self, _: FileId, _: u64) -> Result<(), IoError> {
        unreachable!("a scan only reads")
    }

    fn delete(&mut self, _: FileId) -> Result<(), IoError> {
        unreachable!("a scan only reads")
    }

    fn delete_group(&mut self, _: GroupId) -> Result<(), IoError> {
        unreachable!("a scan only reads")
    }

    fn progress(&mut self, done: u64, total: u64) {
        assert!(done <= total);
    }
}

/// A commit that is part of the log.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) header: CommitHeader,
    pub(super) frames: Vec<(FrameHeader, Vec<u8>)>,
    /// The bytes that were at its place before.
    before: Vec<u8>,
    bytes: Vec<u8>,
}

impl Written {
    /// Bytes that mean something: all but the padding.
    pub(super) fn meaning(&self) -> usize {
        COMMIT_HEADER_BYTES + self.header.payload_len as usize
    }

    /// The ranges of the commit's bytes that a frame takes, header and body without padding.
    pub(super) fn frame_ranges(&self) -> Vec<std::ops::Range<usize>> {
        let mut at = COMMIT_HEADER_BYTES;
        let ranges = self.frames.iter().map(|(_, body)| {
            let range = at..at + FRAME_HEADER_BYTES + body.len();
            at += frame_len(body.len());
            range
        });
        ranges.collect()
    }

    /// Whether `bytes` say the same. Padding between frames says nothing: old bytes of a lost block that differ
    /// from the commit's only there make the same commit.
    fn is_read_from(&self, bytes: &[u8]) -> bool {
        let header = 0..COMMIT_HEADER_BYTES;
        let mut parts = std::iter::once(header).chain(self.frame_ranges());
        parts.all(|part| bytes.get(part.clone()) == self.bytes.get(part))
    }
}

pub(super) struct Model {
    pub(super) disk: Disk,
    pub(super) rng: Rng,
    pub(super) from: ReplayPoint,
    /// The log from the replay point on and before, by lsn.
    pub(super) log: BTreeMap<u64, Written>,
    /// All but the newest of these may be known durable by the next commit.
    durable: u64,
    place: Place,
    next: u64,
    prev_crc: u32,
    pub(super) incarnation: u64,
    offsets: BTreeMap<GroupId, i64>,
    file_bytes: usize,
    /// Fixed size of every batch, so that frames of older commits lie exactly where newer ones do.
    uniform: bool,
}

impl Model {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let file_bytes = REGION * (1 + rng.below(3));
        let uniform = rng.below(2) == 0;
        let mut disk = Disk::default();
        disk.files.insert(3, vec![0; file_bytes]);
        let mut model = Self {
            disk,
            rng,
            from: ReplayPoint { lsn: 1, file: 3, generation: 1, position: 0, prev_crc: 0, incarnation: 0 },
            log: BTreeMap::new(),
            durable: 0,
            place: Place { file: 3, generation: 1, position: 0 },
            next: 1,
            prev_crc: 0,
            incarnation: 1,
            offsets: BTreeMap::new(),
            file_bytes,
            uniform,
        };
        model.new_life();
        model
    }

    pub(super) fn next_lsn(&self) -> u64 {
        self.next
    }

    /// One thing that happens to a journal.
    pub(super) fn step(&mut self) {
        match self.rng.below(20) {
            0 => self.crash(),
            1 => self.checkpoint(),
            2 => self.commit(Vec::new()),
            _ => {
                let bodies = self.bodies();
                self.commit(bodies);
            }
        }
    }

    fn bodies(&mut self) -> Vec<(FrameHeader, Vec<u8>)> {
        let count = 1 + self.rng.below(6);
        let mut frames = Vec::new();
        for _ in 0..count {
            let group = GroupId::new(1, self.rng.below(3) as u32);
            let records = 1 + self.rng.below(3) as u32;
            let size = if self.uniform { 400 } else { 20 + self.rng.below(3_000) };
            let fill = vec![self.rng.below(256) as u8; size];
            let next = self.offsets.entry(group).or_default();
            let body = batch(*next, self.incarnation as u32, records, 1_000, &fill);
            *next += i64::from(records);
            frames.push((FrameHeader::batch(group, &BatchHead::parse(&body).unwrap(), 0), body));
        }
        frames
    }

    fn new_life(&mut self) {
        self.durable = self.next_lsn() - 1;
        let frame = FrameHeader::bodyless(FrameKind::NewLife, GroupId::METADATA, 0, self.incarnation as u32);
        self.commit(vec![(frame, Vec::new())]);
        // Nothing is served before the life's first commit is durable.
        self.durable = self.next_lsn() - 1;
    }

    fn commit(&mut self, frames: Vec<(FrameHeader, Vec<u8>)>) {
        let written = self.lay(frames);
        self.disk.put(written.header.file, written.header.position as usize, &written.bytes);
        // Up to three commits may still be in flight.
        let lag = self.rng.below(4) as u64;
        self.durable = self.durable.max(written.header.lsn.saturating_sub(lag));
        self.log.insert(written.header.lsn, written);
    }

    fn lay(&mut self, frames: Vec<(FrameHeader, Vec<u8>)>) -> Written {
        let len = padded_len(frames.iter().map(|(_, body)| frame_len(body.len())).sum());
        let rest = REGION - self.place.position as usize % REGION;
        if len > rest {
            self.place.position = self.place.position.next_multiple_of(REGION as u64);
        }
        if self.place.position as usize >= self.file_bytes {
            self.place = Place { file: self.free_file(), generation: self.place.generation + 1, position: 0 };
        }
        let mut header = CommitHeader {
            marker: frames.is_empty(),
            journal_id: ID,
            generation: self.place.generation,
            lsn: self.next_lsn(),
            incarnation: self.incarnation,
            durable_lsn: self.durable,
            position: self.place.position,
            prev_crc: self.prev_crc,
            file: self.place.file,
            frame_count: frames.len() as u32,
            ..CommitHeader::default()
        };
        let mut bytes = vec![0; COMMIT_HEADER_BYTES];
        let mut crc = FramesCrc::default();
        for (frame, body) in &frames {
            let encoded = frame.encode(header.frame_seed());
            crc.add(&encoded);
            bytes.extend(encoded);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(FRAME_ALIGN), 0);
        }
        header.payload_len = (bytes.len() - COMMIT_HEADER_BYTES) as u32;
        header.frames_crc = crc.value();
        bytes[..COMMIT_HEADER_BYTES].copy_from_slice(&header.encode());
        bytes.resize(len, 0);
        let before = self.disk.get(header.file, header.position as usize, len).to_vec();
        self.place.position = header.end_position();
        self.prev_crc = header.header_crc;
        self.next += 1;
        Written { header, frames, before, bytes }
    }

    /// Any file that no commit needs which a replay would read; else a new one.
    fn free_file(&mut self) -> u32 {
        let needed: BTreeSet<u32> =
            self.log.range(self.from.lsn..).map(|(_, commit)| commit.header.file).collect();
        let free = self.disk.files.keys().filter(|file| !needed.contains(file) && **file != self.place.file);
        let free: Vec<u32> = free.copied().collect();
        if !free.is_empty() {
            return free[self.rng.below(free.len())];
        }
        let file = (0..).find(|file| !self.disk.files.contains_key(file)).unwrap();
        self.disk.files.insert(file, vec![0; self.file_bytes]);
        file
    }

    /// Begins the replay at some commit that is known durable.
    fn checkpoint(&mut self) {
        if self.durable < self.from.lsn {
            return;
        }
        let choices: Vec<u64> =
            self.log.range(self.from.lsn..self.durable.max(self.from.lsn) + 1).map(|(lsn, _)| *lsn).collect();
        let last = choices[self.rng.below(choices.len())];
        let header = self.log[&last].header;
        self.from = ReplayPoint {
            lsn: last + 1,
            file: header.file,
            generation: header.generation,
            position: header.end_position(),
            prev_crc: header.header_crc,
            incarnation: header.incarnation,
        };
    }

    /// Up to three commits are in flight; of each only some blocks land. Then the next life begins.
    pub(super) fn crash(&mut self) {
        let mut resume = None;
        for _ in 0..self.rng.below(4) {
            let start = (self.place, self.prev_crc, self.next);
            let frames = self.bodies();
            let written = self.lay(frames);
            if !self.land(&written) {
                resume.get_or_insert(start);
            } else if resume.is_none() {
                self.log.insert(written.header.lsn, written);
            }
        }
        if let Some((place, prev_crc, next)) = resume {
            (self.place, self.prev_crc, self.next) = (place, prev_crc, next);
        }
        self.incarnation += 1;
        self.new_life();
    }

    /// Writes all, some or none of a commit's blocks. Whether everything that means something is there.
    fn land(&mut self, written: &Written) -> bool {
        let (file, at) = (written.header.file, written.header.position as usize);
        let lands = self.rng.below(3);
        for (i, block) in written.bytes.chunks(BLOCK).enumerate() {
            if lands == 0 || (lands == 1 && self.rng.below(2) == 0) {
                self.disk.put(file, at + i * BLOCK, block);
            }
        }
        written.is_read_from(self.disk.get(file, at, written.meaning()))
    }

    /// As if the disk had dropped the whole write, or the blocks that `drops` names.
    pub(super) fn lose(&mut self, lsn: u64, drops: &dyn Fn(usize) -> bool) {
        let written = &self.log[&lsn];
        let (file, at) = (written.header.file, written.header.position as usize);
        let blocks: Vec<(usize, Vec<u8>)> =
            written.before.chunks(BLOCK).map(<[u8]>::to_vec).enumerate().filter(|(i, _)| drops(*i)).collect();
        for (i, block) in blocks {
            self.disk.put(file, at + i * BLOCK, &block);
        }
    }

    /// As if the disk had put the commit somewhere else.
    pub(super) fn misdirect(&mut self, lsn: u64) {
        self.lose(lsn, &|_| true);
        let bytes = self.log[&lsn].bytes.clone();
        let files: Vec<u32> = self.disk.files.keys().copied().collect();
        let file = files[self.rng.below(files.len())];
        let at = self.rng.below((self.file_bytes - bytes.len()) / BLOCK + 1) * BLOCK;
        self.disk.put(file, at, &bytes);
    }

    /// Flips one bit of a commit.
    pub(super) fn flip(&mut self, lsn: u64, bit: usize) {
        let header = self.log[&lsn].header;
        self.disk.files.get_mut(&header.file).unwrap()[header.position as usize + bit / 8] ^= 1 << (bit % 8);
    }

    /// Whether the commit's bytes that mean something are on the disk.
    pub(super) fn is_intact(&self, lsn: u64) -> bool {
        let written = &self.log[&lsn];
        let (file, at) = (written.header.file, written.header.position as usize);
        self.disk.files[&file]
            .get(at..at + written.meaning())
            .is_some_and(|bytes| written.is_read_from(bytes))
    }

    /// The durable point that the readable headers of the log prove. A file taken anew that lost all headers of
    /// its first region and at the starts of its other ones, too, is not told from one that is still free.
    pub(super) fn proven_durable(&self) -> u64 {
        let readable = |written: &&Written| {
            let at = written.header.position as usize;
            let bytes = self.disk.files[&written.header.file].get(at..at + COMMIT_HEADER_BYTES);
            bytes == Some(&written.bytes[..COMMIT_HEADER_BYTES])
        };
        let tells = |position: u64| position < REGION as u64 || position.is_multiple_of(REGION as u64);
        let readable: Vec<CommitHeader> = self.log.values().filter(readable).map(|w| w.header).collect();
        let told: BTreeSet<u64> =
            readable.iter().filter(|header| tells(header.position)).map(|header| header.generation).collect();
        let found = readable.iter().filter(|header| told.contains(&header.generation));
        found.map(|header| header.durable_lsn).max().unwrap_or(0)
    }
}
