//! The writing side of the journal: lays batches into the current chunk as frames of a group commit, seals
//! commits, keeps their order, and rolls over regions and files.
//!
//! A chunk is the image of one region, so offsets in the chunk and in the file differ only by the region's
//! base. The formats are in `crate::format::journal`, the rules of recovery in `docs/storage-format.md`.

use std::collections::VecDeque;
use std::rc::Rc;

use pyralog_core::GroupId;
use pyralog_core::limits::{
    CHUNK_BYTES, COMMIT_TARGET_BYTES, JOURNAL_ALIGN, JOURNAL_RESERVE_BYTES, MAX_BATCH_BYTES,
};

use crate::format::checkpoint::ReplayPoint;
use crate::format::journal::{
    COMMIT_HEADER_BYTES, CommitHeader, FrameHeader, FrameKind, FramesCrc, frame_len, frame_seed,
};
use crate::memory::{Chunk, ChunkPool, ChunkSlice};

use super::api::{Action, FileId, IoOp, IoToken};
use super::pending::Pending;

/// How far apart the places are noted at which a replay may begin.
const POINT_EVERY_BYTES: u64 = 256 << 10;

/// A journal file.
#[derive(Clone, Copy, Debug)]
pub(super) struct JournalFile {
    pub(super) number: u32,
    pub(super) len: u64,
    /// Generation of its current or last use; 0 = never used.
    pub(super) generation: u64,
    /// Waiting to be used (again).
    pub(super) free: bool,
}

/// The commit that batches are being added to.
#[derive(Debug)]
struct Building {
    start: usize,
    frame_count: u32,
    frames_crc: FramesCrc,
    /// Binds the frames to this commit.
    seed: u32,
    pending: Vec<Pending>,
    laid_bytes: usize,
    metadata: bool,
}

/// A sealed commit, waiting to be submitted or on its way.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) lsn: u64,
    pub(super) pending: Vec<Pending>,
    pub(super) token: Option<IoToken>,
    pub(super) done: bool,
    /// Where the log goes on after this commit.
    pub(super) after: ReplayPoint,
    file: u32,
    position: u64,
    data: ChunkSlice,
    laid_bytes: usize,
    /// It changes which partitions there are: not completed before it is durable, whatever the fsync policy. The
    /// ids that are given out next build on it.
    metadata: bool,
}

impl Commit {
    /// Bytes on disk.
    pub(super) fn bytes(&self) -> usize {
        self.data.len()
    }
}

/// A chunk of the cache in journal order, with the partitions of its batches (one entry per batch).
#[derive(Debug)]
pub(super) struct CachedChunk {
    pub(super) chunk: Rc<Chunk>,
    pub(super) last_lsn: u64,
    pub(super) partitions: Vec<u32>,
    /// Of a chunk that the replay left in the journal (`super::reload`): its first commit, with which it begins.
    pub(super) left_at: Option<ReplayPoint>,
}

impl CachedChunk {
    /// A chunk without batches so far.
    pub(super) fn new(chunk: Rc<Chunk>, lsn: u64) -> Self {
        Self { chunk, last_lsn: lsn, partitions: Vec::new(), left_at: None }
    }
}

/// Why nothing more can be laid down now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// No chunk memory: evict or flush.
    Memory,
    /// No free journal file: recycle or create.
    Files,
}

/// A frame laid into the chunk.
#[derive(Debug)]
pub(super) struct Laid {
    pub(super) lsn: u64,
    pub(super) data: ChunkSlice,
}

/// The journal of one shard, writing side.
#[derive(Debug)]
pub(super) struct Journal {
    id: u64,
    incarnation: u64,
    /// Where the next commit goes: file, generation, position, lsn and the chain so far.
    next: ReplayPoint,
    /// Image of the region at `region_base` of the current file.
    chunk: Option<Rc<Chunk>>,
    region_base: u64,
    building: Option<Building>,
    sealed: VecDeque<Commit>,
    in_flight: VecDeque<Commit>,
    pub(super) files: Vec<JournalFile>,
    pub(super) chunks: VecDeque<CachedChunk>,
    /// All commits up to this one are done as the fsync policy demands.
    pub(super) completed: ReplayPoint,
    /// Where a replay may begin, oldest first: the newest checkpoint's own place, and a place now and then since.
    pub(super) points: VecDeque<ReplayPoint>,
    /// All commits up to this one are on stable storage.
    pub(super) durable_lsn: u64,
    /// The `durable_lsn` in the newest sealed header: what a recovery will find as evidence.
    pub(super) recorded_durable_lsn: u64,
    /// The newest commit that carries frames.
    pub(super) last_data_lsn: u64,
    /// Bytes laid down and not yet completed.
    pub(super) unwritten_bytes: usize,
    spare_pending: Vec<Vec<Pending>>,
    #[cfg(feature = "planted-bugs")]
    pub(super) planted: Option<super::planted::PlantedBug>,
}

impl Journal {
    /// A journal that goes on at `next`, in a new life.
    pub(super) fn new(id: u64, incarnation: u64, next: ReplayPoint, files: Vec<JournalFile>) -> Self {
        Self {
            id,
            incarnation,
            chunk: None,
            region_base: next.position - next.position % CHUNK_BYTES as u64,
            building: None,
            sealed: VecDeque::new(),
            in_flight: VecDeque::new(),
            files,
            chunks: VecDeque::new(),
            durable_lsn: next.lsn - 1,
            recorded_durable_lsn: 0,
            last_data_lsn: next.lsn - 1,
            completed: next,
            points: VecDeque::from([next]),
            next,
            unwritten_bytes: 0,
            spare_pending: Vec::new(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// Life of the journal.
    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The commit that is being put together, or will be.
    pub(super) fn next_lsn(&self) -> u64 {
        self.next.lsn
    }

    /// Nothing is laid down that is not done.
    pub(super) fn idle(&self) -> bool {
        self.building.is_none() && self.sealed.is_empty() && self.in_flight.is_empty()
    }

    /// The commit that is being put together, or the newest one that is not completed.
    pub(super) fn newest_unfinished_lsn(&self) -> Option<u64> {
        let sealed = || self.sealed.back().or(self.in_flight.back()).map(|commit| commit.lsn);
        self.building.as_ref().map(|_| self.next.lsn).or_else(sealed)
    }

    /// Commits not yet completed, oldest first.
    pub(super) fn unfinished(&mut self) -> impl Iterator<Item = &mut Commit> {
        self.in_flight.iter_mut().chain(self.sealed.iter_mut())
    }

    /// Everybody who waits for a commit, the one being built included, oldest first.
    pub(super) fn waiting(&mut self) -> impl Iterator<Item = &mut Pending> {
        let commits = self.in_flight.iter_mut().chain(self.sealed.iter_mut());
        let building = self.building.iter_mut().flat_map(|building| building.pending.iter_mut());
        commits.flat_map(|commit| commit.pending.iter_mut()).chain(building)
    }

    /// Free files.
    pub(super) fn free_files(&self) -> usize {
        self.files.iter().filter(|file| file.free).count()
    }

    /// Length of all files together, bytes.
    pub(super) fn files_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// Files that are older than `generation` become free.
    pub(super) fn recycle_below(&mut self, generation: u64) -> usize {
        let current = self.next.file;
        let mut freed = 0;
        for file in &mut self.files {
            if !file.free && file.number != current && file.generation < generation {
                file.free = true;
                freed += 1;
            }
        }
        freed
    }

    /// Lays one frame down. On `Err` nothing has changed, except that the commit so far may have been sealed.
    /// The body comes in two parts, so that the fields which the leader fills in need no second pass.
    pub(super) fn lay(
        &mut self,
        pool: &ChunkPool,
        frame: &FrameHeader,
        head: &[u8],
        body: &[u8],
    ) -> Result<Laid, Full> {
        let body_len = head.len() + body.len();
        let need = frame_len(body_len);
        // The first frame of a life may use what others leave free.
        let reserve = if frame.kind == FrameKind::NewLife { 0 } else { JOURNAL_RESERVE_BYTES };
        self.make_room(pool, need, reserve)?;
        let (Some(chunk), Some(building)) = (&self.chunk, &mut self.building) else {
            unreachable!("make_room leaves a chunk and a commit");
        };
        let header = frame.encode(building.seed);
        building.frames_crc.add(&header);
        building.frame_count += 1;
        building.laid_bytes += need;
        building.metadata |= match frame.kind {
            FrameKind::Batch => frame.group == GroupId::METADATA,
            FrameKind::OpenGroup | FrameKind::DropGroup => true,
            // A vote that a power loss takes back could be given twice.
            FrameKind::Vote | FrameKind::Rejoin | FrameKind::Joined | FrameKind::Founder => true,
            FrameKind::Configuration | FrameKind::BeginGroup => true,
            FrameKind::NewLife | FrameKind::NewTerm => false,
        };
        chunk.append(&header);
        let at = chunk.append(head);
        chunk.append(body);
        chunk.zero_to((at + body_len).next_multiple_of(8));
        self.unwritten_bytes += need;
        self.last_data_lsn = self.next.lsn;
        Ok(Laid { lsn: self.next.lsn, data: ChunkSlice::new(Rc::clone(chunk), at, body_len) })
    }

    /// Notes whom to answer when the commit being built is done; with none being built, the newest unfinished
    /// one; `Err` gives it back when everything is done already.
    pub(super) fn attach(&mut self, pending: Pending) -> Result<(), Pending> {
        if let Some(building) = &mut self.building {
            building.pending.push(pending);
        } else if let Some(commit) = self.sealed.back_mut().or(self.in_flight.back_mut()) {
            commit.pending.push(pending);
        } else {
            return Err(pending);
        }
        Ok(())
    }

    /// Notes that the current chunk holds a batch of this partition.
    pub(super) fn note_cached(&mut self, partition: u32) {
        let lsn = self.next.lsn;
        if let Some(cached) = self.chunks.back_mut() {
            cached.last_lsn = lsn;
            cached.partitions.push(partition);
        }
    }

    /// A commit is open and `need` more bytes fit into it and its region.
    fn make_room(&mut self, pool: &ChunkPool, need: usize, reserve: usize) -> Result<(), Full> {
        let reserve = if self.is_last_region() { reserve } else { 0 };
        if let (Some(chunk), Some(building)) = (&self.chunk, &self.building) {
            let size = chunk.filled() - building.start;
            let fits = chunk.filled() + need + reserve <= CHUNK_BYTES;
            if fits && (size + need <= COMMIT_TARGET_BYTES || building.frame_count == 0) {
                return Ok(());
            }
            self.seal(false);
        }
        let room = self.chunk.as_ref().map_or(0, |chunk| CHUNK_BYTES - chunk.filled());
        if room < COMMIT_HEADER_BYTES + need + reserve {
            self.next_region(pool, need + reserve)?;
        }
        let Some(chunk) = &self.chunk else { unreachable!("next_region leaves a chunk") };
        let start = chunk.filled();
        chunk.skip_to(start + COMMIT_HEADER_BYTES);
        let pending = self.spare_pending.pop().unwrap_or_default();
        self.building = Some(Building {
            start,
            frame_count: 0,
            frames_crc: FramesCrc::default(),
            seed: frame_seed(self.id, self.incarnation, self.next.lsn),
            pending,
            laid_bytes: 0,
            metadata: false,
        });
        Ok(())
    }

    /// Whether a frame with a body of up to `body_bytes` can be laid down now.
    pub(super) fn has_room(&self, pool: &ChunkPool, body_bytes: usize) -> bool {
        let need = COMMIT_HEADER_BYTES + frame_len(body_bytes) + JOURNAL_ALIGN;
        let last = self.is_last_region();
        let reserve = if last { JOURNAL_RESERVE_BYTES } else { 0 };
        if self.chunk.as_ref().is_some_and(|chunk| chunk.filled() + need + reserve <= CHUNK_BYTES) {
            return true;
        }
        !last && pool.has_room_for(CHUNK_BYTES)
    }

    /// Whether frames of `bytes` in all can be laid down now, in as many regions as that takes.
    pub(super) fn has_room_for_all(&self, pool: &ChunkPool, bytes: usize) -> bool {
        // The end of a region that the next frame does not fit into is lost.
        let regions = bytes / (CHUNK_BYTES - MAX_BATCH_BYTES - JOURNAL_ALIGN) + 2;
        let len = self.files.iter().find(|file| file.number == self.next.file).map_or(0, |file| file.len);
        let left = (len / CHUNK_BYTES as u64).saturating_sub(self.region_base / CHUNK_BYTES as u64 + 1);
        let free: u64 =
            self.files.iter().filter(|file| file.free).map(|file| file.len / CHUNK_BYTES as u64).sum();
        (left + free) as usize >= regions && pool.has_room_for(regions * CHUNK_BYTES)
    }

    /// Whether nothing comes behind the current region: it is its file's last, and no file is free.
    fn is_last_region(&self) -> bool {
        let len = self.files.iter().find(|file| file.number == self.next.file).map_or(0, |file| file.len);
        self.region_base + 2 * CHUNK_BYTES as u64 > len && self.files.iter().all(|file| !file.free)
    }

    /// Goes on in the region that `next` lies in (at the start of a life), the next region, or the next file.
    fn next_region(&mut self, pool: &ChunkPool, need: usize) -> Result<(), Full> {
        let offset = (self.next.position - self.region_base) as usize;
        let first = self.chunk.is_none() && offset + COMMIT_HEADER_BYTES + need <= CHUNK_BYTES;
        let len = self.files.iter().find(|file| file.number == self.next.file).map_or(0, |file| file.len);
        let base = if first { self.region_base } else { self.region_base + CHUNK_BYTES as u64 };
        let stays = base + CHUNK_BYTES as u64 <= len;
        // A free file of a higher generation is the dead tail of an earlier life: it goes first, so that no two
        // files ever claim one generation.
        let current = self.next.generation;
        let free = self.files.iter().filter(|file| file.free);
        let free = free.min_by_key(|file| (file.generation <= current, file.generation)).copied();
        if !stays && free.is_none() {
            return Err(Full::Files);
        }
        let chunk = pool.journal_chunk().ok_or(Full::Memory)?;
        if stays {
            self.region_base = base;
            self.next.position = if first { self.next.position } else { base };
        } else if let Some(free) = free {
            self.next.file = free.number;
            self.next.generation = self.next_generation(free.generation);
            self.next.position = 0;
            self.region_base = 0;
            for file in &mut self.files {
                if file.number == free.number {
                    file.free = false;
                    file.generation = self.next.generation;
                }
            }
        }
        chunk.skip_to((self.next.position - self.region_base) as usize);
        let last_lsn = self.next.lsn;
        self.chunks.push_back(CachedChunk::new(Rc::clone(&chunk), last_lsn));
        self.chunk = Some(chunk);
        Ok(())
    }

    fn next_generation(&self, _of_free_file: u64) -> u64 {
        #[cfg(feature = "planted-bugs")]
        if self.planted == Some(super::planted::PlantedBug::ReuseWithoutGeneration) && _of_free_file > 0 {
            return _of_free_file;
        }
        self.next.generation + 1
    }

    /// Closes the commit being built: padding, header, chain.
    fn seal(&mut self, marker: bool) {
        let (Some(chunk), Some(building)) = (&self.chunk, self.building.take()) else { return };
        let payload_len = chunk.filled() - building.start - COMMIT_HEADER_BYTES;
        let end = chunk.filled().next_multiple_of(JOURNAL_ALIGN);
        chunk.zero_to(end);
        let mut header = CommitHeader {
            marker,
            journal_id: self.id,
            generation: self.next.generation,
            lsn: self.next.lsn,
            incarnation: self.incarnation,
            durable_lsn: self.durable_lsn,
            position: self.next.position,
            payload_len: payload_len as u32,
            frame_count: building.frame_count,
            prev_crc: self.next.prev_crc,
            file: self.next.file,
            frames_crc: building.frames_crc.value(),
            header_crc: 0,
        };
        let bytes = header.encode();
        // SAFETY: the header's range was reserved by `make_room`; no slice covers it and no I/O has begun on it.
        unsafe { chunk.overwrite(building.start, &bytes) };
        let position = self.next.position;
        let lsn = self.next.lsn;
        self.recorded_durable_lsn = self.durable_lsn;
        self.next.lsn += 1;
        self.next.position = self.region_base + end as u64;
        self.next.prev_crc = header.header_crc;
        self.next.incarnation = self.incarnation;
        if let Some(cached) = self.chunks.back_mut() {
            cached.last_lsn = lsn;
        }
        self.sealed.push_back(Commit {
            lsn,
            pending: building.pending,
            token: None,
            done: false,
            after: self.next,
            file: self.next.file,
            position,
            data: ChunkSlice::new(Rc::clone(chunk), building.start, end - building.start),
            laid_bytes: building.laid_bytes,
            metadata: building.metadata,
        });
    }

    /// Closes the commit being built, so that everything unfinished is in `unfinished`.
    pub(super) fn seal_for_fence(&mut self) {
        self.seal(false);
    }

    /// Opens and seals a commit without frames, which carries the durable point to the disk.
    pub(super) fn seal_marker(&mut self, pool: &ChunkPool) -> Result<(), Full> {
        debug_assert!(self.building.is_none(), "a marker is written when nothing else is");
        self.make_room(pool, 0, JOURNAL_RESERVE_BYTES)?;
        self.seal(true);
        Ok(())
    }

    /// Submits sealed commits, and the one being built, while fewer than `depth` are on their way.
    pub(super) fn submit(&mut self, depth: usize, durable: bool, token: &mut u64, actions: &mut Vec<Action>) {
        while self.in_flight.len() < depth {
            if self.sealed.is_empty() {
                self.seal(false);
            }
            let Some(mut commit) = self.sealed.pop_front() else { return };
            *token += 1;
            let token = IoToken(*token);
            commit.token = Some(token);
            let (file, offset) = (FileId::Journal(commit.file), commit.position);
            let op = IoOp::JournalWrite { file, offset, data: commit.data.clone(), durable };
            actions.push(Action::Io { token, op });
            self.in_flight.push_back(commit);
        }
    }

    /// Whether `token` names a commit on its way; notes that its write is done.
    pub(super) fn written(&mut self, token: IoToken) -> bool {
        match self.in_flight.iter_mut().find(|commit| commit.token == Some(token)) {
            Some(commit) => {
                commit.done = true;
                true
            }
            None => false,
        }
    }

    /// Whether `token` names a commit on its way.
    pub(super) fn owns(&self, token: IoToken) -> bool {
        self.in_flight.iter().any(|commit| commit.token == Some(token))
    }

    /// Number of the newest commit that is written together with all before it.
    pub(super) fn written_lsn(&self) -> u64 {
        let done = self.in_flight.iter().take_while(|commit| commit.done).last();
        done.map_or(self.completed.lsn - 1, |commit| commit.lsn)
    }

    /// Whether the next commit in order is written and waits for a flush of the journal: it carries metadata, and
    /// `durable` says that writes are not durable by themselves.
    pub(super) fn awaits_flush(&self, durable: bool) -> bool {
        self.in_flight
            .front()
            .is_some_and(|next| next.done && next.metadata && !durable && next.lsn > self.durable_lsn)
    }

    /// The next commit in order that is done, if it is. `durable`: writes are durable by themselves.
    pub(super) fn pop_completed(&mut self, durable: bool) -> Option<Commit> {
        if !self.in_flight.front()?.done || self.awaits_flush(durable) {
            return None;
        }
        let commit = self.in_flight.pop_front()?;
        self.completed = commit.after;
        let far = |last: &ReplayPoint| {
            last.generation != commit.after.generation
                || commit.after.position >= last.position + POINT_EVERY_BYTES
        };
        if self.points.back().is_none_or(far) {
            self.points.push_back(commit.after);
        }
        self.unwritten_bytes -= commit.laid_bytes;
        Some(commit)
    }

    /// The newest place that is noted from which a replay meets the commit `lsn`.
    pub(super) fn point_at_or_before(&self, lsn: u64) -> ReplayPoint {
        let after = self.points.partition_point(|point| point.lsn <= lsn);
        let point = after.checked_sub(1).and_then(|at| self.points.get(at)).or(self.points.front());
        point.copied().unwrap_or(self.completed)
    }

    /// A checkpoint says that a replay begins at commit `lsn`.
    pub(super) fn forget_points_before(&mut self, lsn: u64) {
        while self.points.get(1).is_some_and(|next| next.lsn <= lsn) {
            self.points.pop_front();
        }
    }

    /// Takes the emptied list of a completed commit back, for reuse.
    pub(super) fn give_back(&mut self, mut pending: Vec<Pending>) {
        pending.clear();
        if self.spare_pending.len() < 8 {
            self.spare_pending.push(pending);
        }
    }

    /// Files written since `from` that are not known durable, for a flush at an interval.
    pub(super) fn files_in_use(&self) -> impl Iterator<Item = u32> + '_ {
        self.files.iter().filter(|file| !file.free && file.generation > 0).map(|file| file.number)
    }
}
