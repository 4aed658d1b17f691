//! Makes an engine from what is on the disk: newest valid checkpoint, then the journal from there on.
//! The rules and why they are so: `docs/storage-format.md`.

mod entries;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use ahash::RandomState;
use pyralog_core::batch::BatchView;
use pyralog_core::limits::{
    CHUNK_BYTES, COLD_READ_BYTES_PER_SHARD, JOURNAL_ALIGN, MAX_CHECKPOINT_BYTES, PINNED_BYTES_PER_SHARD,
};
use pyralog_core::{GroupId, ShardId};
use pyralog_replication::SingleVoter;
use pyralog_replication::metadata::Catalog;
use pyralog_replication::raft::{HardState, Position, RecoveredLog, Standing};

use crate::format::checkpoint::{Checkpoint, GroupCheckpoint, ReplayPoint, ReplicatedCheckpoint};
use crate::format::journal::{CommitError, CommitHeader, FrameHeader, FrameKind};
use crate::format::scan::{Damage, Lost, Place, ScanEnd, ScanError, ScanSink, scan};
use crate::memory::{Chunk, ChunkPool, ChunkSlice};

use super::controller::{Controller, commands};
use super::flush::Flusher;
use super::journal::{CachedChunk, Journal, JournalFile};
use super::journal_files::JournalFiles;
use super::levels::check_level;
use super::partition::{Partition, Segment, TailBatch, Told};
use super::plan::FlushPlan;
use super::reload::verify;
use super::replica::{Replica, Unplaced};
use super::slots::{Slots, load_checkpoints};
use entries::forget_entries;

use super::{
    Action, Counters, Engine, EngineConfig, FileId, IntervalSync, IoError, IoOp, LogLevel, Mode, Now,
    RecoveryDisk,
};

/// Why a shard can't start from its disk.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RecoveryError(pub String);

impl From<IoError> for RecoveryError {
    fn from(error: IoError) -> Self {
        Self(format!("recovery can't go on: {}", error.detail))
    }
}

/// Journal files that a new shard begins with.
const FIRST_FILES: u32 = 2;

/// Recovers a shard from its disk. Blocking; before the shard serves anybody.
///
/// # Errors
/// When the disk fails, or when what is on it can't be the shard's data (both checkpoints damaged, the journal's
/// begin missing): nothing is changed then, and the text says what to do.
pub fn recover(config: EngineConfig, disk: &mut dyn RecoveryDisk, now: Now) -> Result<Engine, RecoveryError> {
    let listing = disk.list()?;
    let slots = load_checkpoints(&config, disk, &listing)?;
    let checkpoint = slots.newest();
    let files = journal_files(&config, disk, &listing)?;
    if checkpoint.is_none() {
        check_beginning(&config, disk, &listing, &files)?;
    }
    let mut replay = Replay::new(&config, now, checkpoint)?;
    let from = checkpoint.map(|checkpoint| checkpoint.replay_from);
    let end = scan(disk, config.journal_id, &files, from, &mut replay)
        .map_err(|error| RecoveryError(error.to_string()))?;
    check_level(&config, replay.catalog.as_ref())?;
    if config.has_begun && checkpoint.is_none() && end.commits == 0 && !replay.damaged {
        return Err(nothing_left(&config));
    }
    replay.check_cut(&files, &end).map_err(|error| RecoveryError(error.to_string()))?;
    replay.check_segments(&listing);
    slots.make_durable(disk)?;
    // What was read may be in a volatile cache only, if the writer died before its flush: make it durable
    // before anybody reads it or it counts as committed, and before files go because of it.
    for (number, _) in &files {
        disk.sync(FileId::Journal(*number))?;
    }
    replay.remove_leftovers(disk, &listing, slots.older())?;
    replay.finish(disk, end, &slots, files)
}

/// The journal files. One that was being created when the node died is too short and holds no commit: it goes. One
/// that is too short and holds commits was cut, and is for the scan to judge.
fn journal_files(
    config: &EngineConfig,
    disk: &mut dyn RecoveryDisk,
    listing: &[(FileId, u64)],
) -> Result<Vec<(u32, u64)>, RecoveryError> {
    let mut files = Vec::new();
    for (file, len) in listing {
        let FileId::Journal(number) = *file else { continue };
        let whole = *len >= CHUNK_BYTES as u64 && len % CHUNK_BYTES as u64 == 0;
        if whole || holds_a_commit(config, disk, *file, *len)? {
            files.push((number, *len));
        } else {
            disk.delete(*file)?;
        }
    }
    files.sort_unstable();
    let mut number = 0;
    while files.len() < FIRST_FILES as usize {
        if !files.iter().any(|(known, _)| *known == number) {
            disk.create_zeroed(FileId::Journal(number), config.journal_file_bytes)?;
            files.push((number, config.journal_file_bytes));
        }
        number += 1;
    }
    files.sort_unstable();
    Ok(files)
}

fn holds_a_commit(
    config: &EngineConfig,
    disk: &mut dyn RecoveryDisk,
    file: FileId,
    len: u64,
) -> Result<bool, RecoveryError> {
    let mut piece = vec![0; 256 * JOURNAL_ALIGN];
    for at in (0..len).step_by(piece.len()) {
        let read = disk.read(file, at, &mut piece)?;
        let ours = |block: &[u8]| match CommitHeader::decode(block) {
            Ok(header) => header.journal_id == config.journal_id,
            // Of a newer release, and whose is not known: the scan refuses it.
            Err(error) => matches!(error, CommitError::Version(_)),
        };
        if piece.get(..read).unwrap_or_default().chunks(JOURNAL_ALIGN).any(ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Without a checkpoint the journal must begin at its first commit, or be empty in a shard without data.
fn check_beginning(
    config: &EngineConfig,
    disk: &mut dyn RecoveryDisk,
    listing: &[(FileId, u64)],
    files: &[(u32, u64)],
) -> Result<(), RecoveryError> {
    let mut used = false;
    for (number, _) in files {
        let mut block = [0; JOURNAL_ALIGN];
        let read = disk.read(FileId::Journal(*number), 0, &mut block)?;
        let header = CommitHeader::decode(block.get(..read).unwrap_or_default());
        if header.is_ok_and(|header| header.journal_id == config.journal_id && header.lsn == 1) {
            return Ok(());
        }
        used |= block.iter().any(|byte| *byte != 0);
    }
    let segments = listing.iter().any(|(file, _)| matches!(file, FileId::Segment(..)));
    let checkpoints = listing.iter().any(|(file, len)| matches!(file, FileId::Checkpoint(_)) && *len > 0);
    if !segments && !checkpoints {
        // The first commit of the first life may be torn; nothing can have been acknowledged before it.
        return Ok(());
    }
    Err(RecoveryError(format!(
        "shard {}: no valid checkpoint, and the journal does not hold its beginning{}: the shard can't tell what it held. Nothing was changed. {}; `pyralog-admin log verify` lists what is readable",
        config.shard,
        if used { "" } else { " (its files are blank)" },
        remedy(config, "Restore checkpoint.0 or checkpoint.1 of the shard from a backup")
    )))
}

/// The shard has lived on this disk, and there is nothing.
fn nothing_left(config: &EngineConfig) -> RecoveryError {
    RecoveryError(format!(
        "shard {}: its files are gone, although the node has run with this data folder. Nothing was overwritten. {}",
        config.shard,
        remedy(
            config,
            "Mount its disk, or restore the folders of the shard (journal and data) from a backup"
        )
    ))
}

/// In a cluster an older state of a node must not come back: it has promised more since.
fn remedy(config: &EngineConfig, alone: &'static str) -> &'static str {
    match config.is_clustered() {
        true => {
            "Mount its disk if it is not; otherwise move the node's whole data folder (and journal folder) away, and the node is made anew from the others. Never restore one from a backup: what the node has promised since would be forgotten"
        }
        false => alone,
    }
}

/// The body of a frame: as it was read, and as it is kept.
struct Body<'c> {
    bytes: &'c [u8],
    data: ChunkSlice,
}

/// The state that the replay builds up.
struct Replay<'a> {
    config: &'a EngineConfig,
    now: Now,
    pool: ChunkPool,
    flush_pool: ChunkPool,
    partitions: Vec<Option<Box<Partition>>>,
    by_group: HashMap<GroupId, u32, RandomState>,
    chunks: VecDeque<CachedChunk>,
    /// Generation and place of the region that the last of `chunks` is the image of.
    region: (u64, u64),
    /// Everything has to stay in memory from now on: there is damage, which leaves no unbroken chain to check against, or
    /// there are several replicas, whose entries are needed as soon as the group has a leader and may hold a checkpoint back.
    whole: bool,
    /// What the checkpoint names, for cleaning up.
    checkpointed: HashMap<GroupId, i64, RandomState>,
    catalog: Option<Catalog>,
    founders: BTreeMap<u32, u64>,
    dropped_at: u64,
    incarnation: u64,
    /// Partitions whose log may have gone on in damage; cleared by a later batch, which shows the gap.
    suspects: BTreeSet<GroupId>,
    unknown_damage: bool,
    /// Last commit that such damage may be in.
    damaged_to_lsn: u64,
    /// Damaged batches of the commit that comes next, until its intact ones are there: in the order of their
    /// offsets, or an intact batch before a damaged one would be taken for an old one.
    broken: Vec<FrameHeader>,
    damaged: bool,
    log: Vec<(LogLevel, String)>,
    /// Gaps in partitions, to be told when the catalogue still names them: a checkpoint no longer holds a partition
    /// that is being dropped, and behind it the journal may hold its last batches.
    gaps: Vec<(GroupId, String)>,
    /// Files that only the older checkpoint names.
    removed_later: Vec<FileId>,
}

impl<'a> Replay<'a> {
    fn new(
        config: &'a EngineConfig,
        now: Now,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self, RecoveryError> {
        let cache = config.cache_bound();
        let mut replay = Self {
            config,
            now,
            pool: ChunkPool::new(cache + PINNED_BYTES_PER_SHARD),
            flush_pool: ChunkPool::new(MAX_CHECKPOINT_BYTES),
            partitions: Vec::new(),
            by_group: HashMap::with_hasher(RandomState::with_seeds(17, 18, 19, 20)),
            chunks: VecDeque::new(),
            region: (0, 0),
            whole: config.is_clustered(),
            checkpointed: HashMap::with_hasher(RandomState::with_seeds(21, 22, 23, 24)),
            catalog: None,
            founders: checkpoint
                .into_iter()
                .flat_map(|checkpoint| checkpoint.founders.iter().copied())
                .collect(),
            dropped_at: checkpoint.map_or(0, |checkpoint| checkpoint.dropped_at),
            incarnation: checkpoint.map_or(0, |checkpoint| checkpoint.incarnation),
            suspects: BTreeSet::new(),
            damaged_to_lsn: 0,
            unknown_damage: checkpoint.is_some_and(|checkpoint| checkpoint.opens_are_suspect),
            broken: Vec::new(),
            damaged: false,
            log: Vec::new(),
            gaps: Vec::new(),
            removed_later: Vec::new(),
        };
        for state in checkpoint.iter().flat_map(|checkpoint| &checkpoint.groups) {
            replay.checkpointed.insert(state.group, state.flushed_to);
            replay.insert(restored(state, now));
        }
        if config.shard == ShardId(0) {
            let bytes = checkpoint.and_then(|checkpoint| checkpoint.catalog.as_deref());
            let catalog = bytes.map(Catalog::decode).transpose();
            replay.catalog =
                Some(catalog.map_err(|error| RecoveryError(error.to_string()))?.unwrap_or_default());
            if !replay.by_group.contains_key(&GroupId::METADATA) {
                let mut metadata = Partition::empty(GroupId::METADATA, 0, 0);
                if config.is_clustered() {
                    metadata.standing = Standing::Undecided;
                }
                replay.insert(metadata);
            }
        }
        Ok(replay)
    }

    fn insert(&mut self, partition: Partition) -> u32 {
        let index = self.partitions.len() as u32;
        self.by_group.insert(partition.group, index);
        self.partitions.push(Some(Box::new(partition)));
        index
    }

    /// Files that a crash left behind: segments that no checkpoint names, bytes behind the end of one. The journal
    /// held all of it, and the replay has it again; where the journal is damaged they may be the last copy and stay.
    /// What retention has removed since the older checkpoint stays until that one is overwritten: a damaged newest
    /// checkpoint has to cost nothing.
    fn remove_leftovers(
        &mut self,
        disk: &mut dyn RecoveryDisk,
        listing: &[(FileId, u64)],
        older: Option<&Checkpoint>,
    ) -> Result<(), RecoveryError> {
        if self.damaged {
            let text = "segment files of the last life are left where they are, as the journal is damaged";
            self.log.push((LogLevel::Warn, text.to_owned()));
            return Ok(());
        }
        let in_older: BTreeSet<(GroupId, i64)> = older
            .iter()
            .flat_map(|checkpoint| &checkpoint.groups)
            .flat_map(|state| state.segments.iter().map(|segment| (state.group, segment.base)))
            .collect();
        for (file, len) in listing {
            let (FileId::Segment(group, base) | FileId::Index(group, base)) = *file else { continue };
            let partition =
                self.by_group.get(&group).and_then(|index| self.partitions.get(*index as usize)?.as_deref());
            let named = partition
                .and_then(|partition| partition.segments.iter().find(|segment| segment.base == base));
            match (named, file) {
                (None, _)
                    if partition.is_some_and(|partition| base < partition.log_start)
                        && in_older.contains(&(group, base)) =>
                {
                    self.removed_later.push(*file);
                }
                (None, _) => disk.delete(*file)?,
                (Some(segment), FileId::Segment(..)) if *len > segment.bytes => {
                    disk.truncate(*file, segment.bytes)?
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A journal file has its whole length before anything is written to it. One that is shorter where the log seems to end
    /// was cut, and what it held there may have been durable: this node may have answered to others for it. A node
    /// that is alone goes on with what is there.
    fn check_cut(&mut self, files: &[(u32, u64)], end: &ScanEnd) -> Result<(), ScanError> {
        let Some(Place { file, position, generation: _ }) = end.resume else { return Ok(()) };
        let len = files.iter().find(|(known, _)| *known == file).map_or(0, |(_, len)| *len);
        if len.is_multiple_of(CHUNK_BYTES as u64) {
            return Ok(());
        }
        let lsn = end.next_lsn;
        let detail = format!(
            "journal file {file} was cut to {len} bytes: whether commit {lsn} was there is not known"
        );
        match self.config.is_clustered() {
            true => {
                let lost = Lost::Unknown;
                self.damage(Damage { first_lsn: lsn, last_lsn: lsn, file, position, lost, detail })
            }
            false => {
                self.log.push((LogLevel::Error, detail));
                Ok(())
            }
        }
    }

    /// Segments that the checkpoint names and the disk does not hold are damage.
    fn check_segments(&mut self, listing: &[(FileId, u64)]) {
        let sizes: HashMap<FileId, u64, RandomState> = listing.iter().copied().collect();
        for partition in self.partitions.iter_mut().flatten() {
            let Some(flushed_to) = self.checkpointed.get(&partition.group) else { continue };
            let mut short = Vec::new();
            for segment in partition.segments.iter().filter(|segment| segment.base < *flushed_to) {
                let len = sizes.get(&FileId::Segment(partition.group, segment.base)).copied();
                if len.unwrap_or(0) < segment.bytes {
                    short.push((segment.base, segment.end, len));
                }
            }
            for (base, end, len) in short {
                let group = partition.group;
                let what = match len {
                    None => {
                        partition.note_damage(base, end);
                        "is missing".to_owned()
                    }
                    // What is there stays readable; a read of the rest finds that it is cut short.
                    Some(len) => format!("is cut to {len} bytes"),
                };
                let text =
                    format!("segment {base} of partition {group} {what}: offsets up to {end} are damaged");
                self.log.push((LogLevel::Error, text));
            }
        }
    }

    /// Notes one batch of the journal.
    fn batch(&mut self, lsn: u64, frame: &FrameHeader, body: Body<'_>) {
        let Some(index) = self.index_of(frame) else { return };
        self.suspects.remove(&frame.group);
        let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        let (base, next) = (frame.base_offset, frame.end_offset());
        if next <= partition.log_end {
            return;
        }
        if base != partition.log_end {
            let text = format!(
                "offsets {}..{base} of partition {} are missing from the journal: the range is refused",
                partition.log_end, frame.group
            );
            partition.note_damage(partition.log_end, base);
            self.gaps.push((frame.group, text));
        }
        let Ok(batch) = BatchView::parse_exact(body.bytes) else { return };
        note_producer(partition, &batch, base, self.now.monotonic_us);
        if frame.group == GroupId::METADATA
            && let Some(catalog) = &mut self.catalog
            && let Err(text) = apply_commands(catalog, &batch)
        {
            self.log.push((LogLevel::Error, text));
            // No change of the metadata may build on a catalogue that is not the whole one.
            partition.end_unknown = true;
        }
        let max_timestamp = batch.max_timestamp();
        partition.push_tail(TailBatch {
            base_offset: base,
            next_offset: next,
            max_timestamp,
            index: 0,
            lsn,
            bytes_before: 0,
            data: body.data,
        });
        if let Some(cached) = self.chunks.back_mut() {
            cached.partitions.push(index);
        }
    }

    /// The log of a partition goes on behind these damaged batches.
    fn note_broken(&mut self, wanted: impl Fn(&FrameHeader) -> bool) {
        if self.broken.is_empty() {
            return;
        }
        for frame in std::mem::take(&mut self.broken) {
            if !wanted(&frame) {
                self.broken.push(frame);
                continue;
            }
            let Some(partition) = self.partition_of(&frame) else { continue };
            if frame.index > 0 {
                // The entry was promised to the others of its group; without it this replica must not vote.
                let held =
                    partition.replica.unplaced_mut().is_some_and(|held| frame.index <= held.log.start.index);
                partition.end_unknown |= !held;
            } else if frame.end_offset() > partition.log_end {
                partition.note_damage(partition.log_end, frame.end_offset());
                partition.log_end = frame.end_offset();
            }
        }
    }

    /// The chunk that batches of this commit are slices of: the region that was read, or, when enough is in memory and
    /// the bytes need not be, an absent one in its place, so that the next region is read into the same memory. Touching
    /// memory for the first time costs more than everything else of a replay where a host has to find it first
    /// (docs/decisions/0006). With it, how many bytes at the region's beginning it leaves out.
    fn keep(&mut self, header: &CommitHeader, chunk: &Rc<Chunk>) -> (Rc<Chunk>, usize) {
        let in_region = (header.position % CHUNK_BYTES as u64) as usize;
        let region = (header.generation, header.position - in_region as u64);
        // The padding of the last commit of a file that was cut may be missing.
        let end = (in_region + header.padded_len()).min(chunk.filled());
        let same = self.region == region;
        if let Some(cached) = self.chunks.back_mut()
            && same
            && (cached.left_at.is_some() || Rc::ptr_eq(&cached.chunk, chunk))
        {
            cached.last_lsn = header.lsn;
            let mut skipped = 0;
            if let Some(first) = &cached.left_at {
                skipped = (first.position % CHUNK_BYTES as u64) as usize;
                cached.chunk.set_filled(end - skipped);
                if self.whole {
                    let copy = self.pool.chunk_to_provide();
                    copy.append(chunk.bytes(skipped, end - skipped));
                    cached.chunk.provide(copy);
                    cached.left_at = None;
                }
            }
            return (Rc::clone(&cached.chunk), skipped);
        }
        self.region = region;
        let mut cached = CachedChunk::new(Rc::clone(chunk), header.lsn);
        let mut skipped = 0;
        let enough = (self.chunks.len() + 1) * CHUNK_BYTES > self.config.replay_memory_bytes;
        if enough
            && !self.whole
            && let Some(absent) = self.pool.absent_chunk()
        {
            absent.set_filled(end - in_region);
            cached.chunk = absent;
            skipped = in_region;
            cached.left_at = Some(ReplayPoint {
                lsn: header.lsn,
                file: header.file,
                generation: header.generation,
                position: header.position,
                prev_crc: header.prev_crc,
                incarnation: header.incarnation,
            });
        }
        let kept = Rc::clone(&cached.chunk);
        self.chunks.push_back(cached);
        (kept, skipped)
    }

    /// Reads what was left in the journal back.
    fn reload(&mut self, disk: &mut dyn RecoveryDisk) -> Result<(), IoError> {
        for cached in &mut self.chunks {
            let Some(first) = cached.left_at.take() else { continue };
            let mut read = self.pool.chunk_to_provide();
            let buffer = read.unfilled_mut().and_then(|memory| memory.get_mut(..cached.chunk.filled()));
            let filled =
                disk.read(FileId::Journal(first.file), first.position, buffer.unwrap_or_default())?;
            read.set_filled(filled);
            verify(&read, cached.chunk.filled(), self.config.journal_id, &first, cached.last_lsn)?;
            cached.chunk.provide(read);
        }
        Ok(())
    }

    /// Writes everything replayed so far to segments and drops it from the cache.
    fn make_room(&mut self, disk: &mut dyn RecoveryDisk) -> Result<(), IoError> {
        self.reload(disk)?;
        for partition in self.partitions.iter_mut().flatten() {
            let suspect = self.suspects.contains(&partition.group) || partition.end_unknown;
            if suspect && matches!(partition.replica, Replica::Unplaced(_)) {
                // What it holds behind its segments may have been replaced by what is damaged.
                partition.end_unknown = true;
                if !partition.is_alone(self.config.node.0) {
                    forget_entries(partition);
                }
            }
            if partition.group == GroupId::METADATA && matches!(partition.replica, Replica::Unplaced(_)) {
                // Its commands are applied from memory when they are known to be committed.
                continue;
            }
            write_out(disk, partition, self.config, &self.flush_pool, self.now)?;
        }
        self.chunks.clear();
        Ok(())
    }

    /// Everything is read: the engine.
    fn finish(
        mut self,
        disk: &mut dyn RecoveryDisk,
        end: ScanEnd,
        slots: &Slots,
        files: Vec<(u32, u64)>,
    ) -> Result<Engine, RecoveryError> {
        let cache = self.config.cache_bound();
        if (self.chunks.len() + 2) * CHUNK_BYTES > cache {
            self.make_room(disk)?;
        }
        let mut files = files;
        self.make_journal_space(disk, &end, &mut files, slots)?;
        let incarnation = self.incarnation.max(end.incarnation) + 1;
        let suspects = std::mem::take(&mut self.suspects);
        for partition in self.partitions.iter_mut().flatten() {
            partition.end_unknown |= suspects.contains(&partition.group);
            if let Replica::Unplaced(unplaced) = &partition.replica
                && let end = unplaced.end()
                && (end.term, end.index) < unplaced.newest
            {
                partition.end_unknown = true;
                let (term, index) = unplaced.newest;
                let text = format!(
                    "entry {index} of term {term} of partition {} does not follow on entry {} (offset {})",
                    partition.group, end.index, end.offset
                );
                self.gaps.push((partition.group, text));
            }
            let clustered = self.config.is_clustered();
            let alone = partition.is_alone(self.config.node.0) && partition.group != GroupId::METADATA;
            match partition.end_unknown && clustered {
                // Nobody has what it would forget.
                true if alone => {}
                true => {
                    partition.standing = Standing::Rejoining;
                    forget_entries(partition);
                }
                false => partition.loose.clear(),
            }
            if let Replica::Single(_) = partition.replica {
                partition.unconfirmed = clustered && partition.group != GroupId::METADATA;
                let single = SingleVoter::recovered(incarnation as u32, partition.log_end);
                partition.replica = Replica::Single(single);
            }
            if partition.end_unknown && matches!(partition.replica, Replica::Unplaced(_)) && !alone {
                let text = format!(
                    "partition {}: damage hides what this replica has promised; it keeps what is in segments, up to offset {}, and votes for nobody until it has the rest from the others",
                    partition.group, partition.log_end
                );
                self.log.push((LogLevel::Warn, text));
            } else if partition.end_unknown {
                let text = format!(
                    "partition {}: damage hides where its log ends; it can be read up to {} and takes no writes",
                    partition.group, partition.log_end
                );
                self.log.push((LogLevel::Error, text));
            }
        }
        self.log.extend(slots.notes.iter().map(|note| (LogLevel::Warn, note.clone())));
        if let Some(torn) = &end.torn {
            self.log.push((
                LogLevel::Info,
                format!("the journal ends with a write that the last life did not finish: {torn}"),
            ));
        }
        let generations = slots.generations();
        let from = slots.newest().map(|newest| newest.replay_from);
        let journal = self.journal(incarnation, &end, &files, generations, from);
        Ok(self.engine(journal, slots.newest().map_or(0, |newest| newest.seq), generations))
    }

    /// A life needs room for its first commit: without any, one more file, beyond the journal's bound if need be.
    fn make_journal_space(
        &self,
        disk: &mut dyn RecoveryDisk,
        end: &ScanEnd,
        files: &mut Vec<(u32, u64)>,
        slots: &Slots,
    ) -> Result<(), RecoveryError> {
        let keep_from = slots.keep_from();
        let free = end
            .files
            .iter()
            .any(|(_, generation)| generation.is_none_or(|generation| generation < keep_from));
        let room = end.resume.is_none_or(|place| {
            let len = files.iter().find(|(file, _)| *file == place.file).map_or(0, |(_, len)| *len);
            // The next commit is laid into the image of its whole region.
            let region = place.position - place.position % CHUNK_BYTES as u64;
            region + CHUNK_BYTES as u64 <= len
        });
        if free || room {
            return Ok(());
        }
        let number = files.iter().map(|(number, _)| number + 1).max().unwrap_or(0);
        disk.create_zeroed(FileId::Journal(number), self.config.journal_file_bytes)?;
        files.push((number, self.config.journal_file_bytes));
        Ok(())
    }

    fn journal(
        &mut self,
        incarnation: u64,
        end: &ScanEnd,
        files: &[(u32, u64)],
        generations: [u64; 2],
        from: Option<ReplayPoint>,
    ) -> Journal {
        let keep_from = generations.into_iter().min().unwrap_or(0);
        // Where nothing was ever written the log begins at the beginning.
        let first = files.first().map_or(0, |(number, _)| *number);
        let place = end.resume.unwrap_or(Place { generation: 1, position: 0, file: first });
        let next = ReplayPoint {
            lsn: end.next_lsn,
            file: place.file,
            generation: place.generation,
            position: place.position,
            prev_crc: end.prev_crc,
            incarnation: end.incarnation,
        };
        let known = |number: u32| {
            end.files.iter().find(|(file, _)| *file == number).and_then(|(_, generation)| *generation)
        };
        let from = from.unwrap_or(ReplayPoint {
            lsn: 1,
            file: first,
            generation: 1,
            position: 0,
            prev_crc: 0,
            incarnation: 0,
        });
        let mut journal_files: Vec<JournalFile> = files
            .iter()
            .map(|(number, len)| {
                let generation = known(*number).unwrap_or(0);
                // A generation above the last one is a dead tail: torn before its first commit was durable.
                let free = generation == 0 || generation < keep_from || generation > next.generation;
                JournalFile { number: *number, len: *len, generation, free }
            })
            .collect();
        if let Some(current) = journal_files.iter_mut().find(|file| file.number == next.file) {
            current.generation = next.generation;
            current.free = false;
        }
        let mut journal = Journal::new(self.config.journal_id, incarnation, next, journal_files);
        journal.chunks = std::mem::take(&mut self.chunks);
        // What several replicas have not committed was laid down by an earlier life, behind this place.
        journal.points.push_front(from);
        journal
    }

    fn engine(self, mut journal: Journal, checkpoint_seq: u64, generations: [u64; 2]) -> Engine {
        let config = self.config.clone();
        let mut flush = Flusher::new(checkpoint_seq, generations);
        flush.remove_later(self.removed_later);
        let mut partitions = self.partitions;
        let (mut producer_count, mut cached_batches) = (0, 0);
        for (index, partition) in partitions.iter_mut().enumerate() {
            if let Some(partition) = partition.as_deref_mut() {
                flush.recovered(index as u32, partition);
                producer_count += partition.producers.len();
                cached_batches += partition.tail.len();
                flush.segments += partition.segments.len();
            }
        }
        if self.damaged {
            flush.remember_damage();
        }
        #[cfg(feature = "planted-bugs")]
        {
            journal.planted = config.planted;
        }
        journal.last_data_lsn = 0;
        let mut engine = Engine {
            now: self.now,
            mode: Mode::Starting,
            pool: self.pool,
            misc_pool: ChunkPool::new(COLD_READ_BYTES_PER_SHARD),
            journal,
            partitions,
            by_group: self.by_group,
            free_indexes: Vec::new(),
            producer_count,
            cached_batches,
            catalog: None,
            controller: self.catalog.map(|catalog| Controller::new(catalog, config.shards)),
            opens_are_suspect: self.unknown_damage,
            strangers: BTreeSet::new(),
            founders: self.founders,
            dropped_at: self.dropped_at,
            ask_due_us: None,
            leaders: HashMap::with_hasher(RandomState::with_seeds(25, 26, 27, 28)),
            fetches: Default::default(),
            replication: Default::default(),
            balance: Default::default(),
            cold: Default::default(),
            linear_reads: Default::default(),
            scrub: Default::default(),
            recovery_rate: Default::default(),
            reloads: Default::default(),
            journal_files: JournalFiles::new(&config),
            flush,
            hand_over_until_us: None,
            must_fence: None,
            tokens: 0,
            marker_due_us: None,
            interval_sync: IntervalSync::default(),
            timeouts_due_us: None,
            register_due_us: None,
            stall_due_us: None,
            next_shed_us: 0,
            stalled: false,
            counters: Counters::default(),
            recovery_log: Vec::new(),
            recovered_gaps: self.gaps,
            config,
        };
        engine.recovery_log = self
            .log
            .into_iter()
            .map(|(level, text)| Action::Log {
                level,
                text: format!("shard {}: {text}", engine.config.shard),
            })
            .collect();
        engine
    }
}

impl ScanSink for Replay<'_> {
    #[cfg(feature = "planted-bugs")]
    fn truncates_at_a_gap(&self) -> bool {
        self.config.planted == Some(super::planted::PlantedBug::TruncateOnBadChecksum)
    }

    fn chunk(
        &mut self,
        disk: &mut dyn RecoveryDisk,
        last: Option<Rc<Chunk>>,
    ) -> Result<Rc<Chunk>, ScanError> {
        let cache = self.config.cache_bound();
        let reused = last.filter(|chunk| Rc::strong_count(chunk) == 1);
        if (self.chunks.len() + 2) * CHUNK_BYTES > cache {
            self.make_room(disk)?;
        }
        match reused.or_else(|| self.pool.journal_chunk()) {
            Some(chunk) => Ok(chunk),
            None => Err(ScanError::Sink(
                "the replay needs more memory than the cache has; raise storage.cache_config.max_size".into(),
            )),
        }
    }

    fn commit(
        &mut self,
        header: &CommitHeader,
        chunk: &Rc<Chunk>,
        frames: &[(FrameHeader, usize)],
    ) -> Result<(), ScanError> {
        self.whole |= self.damaged || frames.iter().any(|(frame, _)| frame.index > 0);
        let (kept, skipped) = self.keep(header, chunk);
        self.incarnation = self.incarnation.max(header.incarnation);
        for (frame, body_at) in frames {
            if self.is_of_a_former_replica(frame, header.lsn) {
                continue;
            }
            let body = || Body {
                bytes: chunk.bytes(*body_at, frame.body_len as usize),
                data: ChunkSlice::new(Rc::clone(&kept), *body_at - skipped, frame.body_len as usize),
            };
            match frame.kind {
                FrameKind::Batch if frame.index == 0 => {
                    self.note_broken(|other| {
                        other.group == frame.group && other.base_offset < frame.base_offset
                    });
                    self.batch(header.lsn, frame, body());
                }
                FrameKind::Configuration if frame.index == 0 => self.base_configuration(frame, body()),
                FrameKind::Batch | FrameKind::NewTerm | FrameKind::Configuration => {
                    self.entry(header.lsn, frame, body());
                }
                FrameKind::Vote => self.vote(frame),
                FrameKind::OpenGroup => {
                    if !self.by_group.contains_key(&frame.group) {
                        let mut partition = Partition::empty(frame.group, frame.epoch, frame.base_offset);
                        if frame.record_count > 0 {
                            partition.standing = Standing::Rejoining;
                        }
                        partition.end_unknown = frame.record_count > 1;
                        // It came by a move: another one of the group may have been here before.
                        partition.entries_from_lsn = if frame.index > 0 { header.lsn } else { 0 };
                        self.insert(partition);
                        // Its first vote may be in the part of the commit that is damaged.
                        if self.config.is_clustered() && header.lsn <= self.damaged_to_lsn {
                            self.suspects.insert(frame.group);
                        }
                    }
                }
                FrameKind::BeginGroup => self.begin_group(frame, body()),
                FrameKind::Rejoin => self.rejoin(header.lsn, frame),
                FrameKind::Joined => self.joined(frame),
                FrameKind::Founder => {
                    self.founders.insert(frame.record_count, frame.index);
                }
                FrameKind::DropGroup => {
                    self.dropped_at = self.dropped_at.max(frame.index);
                    self.suspects.remove(&frame.group);
                    // One of the same name that comes after it has none of its segments.
                    self.checkpointed.remove(&frame.group);
                    self.gaps.retain(|(group, _)| *group != frame.group);
                    if let Some(index) = self.by_group.remove(&frame.group)
                        && let Some(slot) = self.partitions.get_mut(index as usize)
                    {
                        *slot = None;
                    }
                }
                FrameKind::NewLife => {}
            }
        }
        self.note_broken(|_| true);
        Ok(())
    }

    fn damage(&mut self, damage: Damage) -> Result<(), ScanError> {
        self.damaged = true;
        self.log.push((LogLevel::Error, damage.detail));
        match damage.lost {
            Lost::Body(frame) if frame.kind == FrameKind::Batch => self.broken.push(frame),
            _ => {
                self.unknown_damage = true;
                self.damaged_to_lsn = self.damaged_to_lsn.max(damage.last_lsn);
                self.suspects.extend(self.by_group.keys().copied());
            }
        }
        Ok(())
    }
}

/// Writes what is committed of a partition to segments and drops it from the cache.
pub(super) fn write_out(
    disk: &mut dyn RecoveryDisk,
    partition: &mut Partition,
    config: &EngineConfig,
    pool: &ChunkPool,
    now: Now,
) -> Result<(), IoError> {
    let Some(mut plan) = FlushPlan::new(partition, u64::MAX, config, pool, now.wall_ms) else {
        return Ok(());
    };
    let mut buffer = Vec::new();
    for op in plan.operations.drain(..) {
        match op {
            IoOp::Write { file, offset, data } => {
                if offset == 0 {
                    // The last life may have begun a file of this name and more to say in it.
                    disk.delete(file)?;
                }
                buffer.clear();
                data.iter().for_each(|slice| buffer.extend_from_slice(slice.bytes()));
                disk.write(file, offset, &buffer)?;
            }
            IoOp::Sync { file } => disk.sync(file)?,
            _ => unreachable!("a flush plan writes and syncs"),
        }
    }
    plan.commit(partition);
    let flushed_to = partition.flushed_to;
    if let Replica::Unplaced(unplaced) = &mut partition.replica {
        unplaced.note_flushed(flushed_to);
    }
    while partition.tail.front().is_some_and(|batch| batch.next_offset <= flushed_to) {
        partition.tail.pop_front();
    }
    Ok(())
}

fn restored(state: &GroupCheckpoint, now: Now) -> Partition {
    let mut partition = Partition::empty(state.group, state.epoch, state.log_start);
    partition.standing = state.standing;
    partition.flushed_to = state.flushed_to;
    if let Some(replicated) = &state.replicated {
        let ReplicatedCheckpoint { vote, start_index, start_term, entries_from_lsn, .. } = *replicated;
        partition.entries_from_lsn = entries_from_lsn;
        // The older checkpoint may not know it.
        partition.told = if entries_from_lsn > 0 { Told::No } else { Told::Durable };
        let start = Position { index: start_index, term: start_term, offset: state.flushed_to };
        let hard = HardState { term: state.epoch, vote, commit: start_index };
        let (configuration, made_after) = replicated.replicas.clone().unwrap_or_default();
        let log = RecoveredLog { hard, start, configuration, made_after, ..RecoveredLog::default() };
        partition.replica = Replica::Unplaced(Box::new(Unplaced { log, ..Unplaced::default() }));
    }
    partition.end_unknown = state.end_unknown;
    partition.damaged = state.damaged.clone();
    partition.segments = state
        .segments
        .iter()
        .map(|segment| Segment {
            base: segment.base,
            end: segment.end_offset,
            epoch: segment.epoch,
            bytes: segment.bytes,
            max_timestamp: segment.max_timestamp,
            // A negative one is of a version that noted no time.
            written_ms: if segment.max_timestamp < 0 { now.wall_ms } else { i64::MIN },
            index: None,
        })
        .collect();
    // Damage beyond the segments was found by an earlier recovery; everything in the journal from this
    // checkpoint on lies behind it.
    let damaged_to = state.damaged.iter().map(|(_, to)| *to).max().unwrap_or(0);
    partition.log_end = state.flushed_to.max(damaged_to);
    for producer in &state.producers {
        partition.producers.restore(producer, now.monotonic_us);
    }
    partition
}

/// Notes a batch with its producer. What is committed is not known yet, so that nothing of it is forgotten.
fn note_producer(partition: &mut Partition, batch: &BatchView<'_>, base_offset: i64, now_us: u64) {
    let committed = match &partition.replica {
        Replica::Single(_) => base_offset,
        replica => replica.high_watermark(),
    };
    partition.producers.note_batch(batch, base_offset, now_us, committed);
}

/// Applies the commands of a batch of the metadata group that the catalogue does not hold yet.
fn apply_commands(catalog: &mut Catalog, batch: &BatchView<'_>) -> Result<(), String> {
    let damaged = |what| format!("the metadata log is damaged: {what}");
    for (offset, command) in commands(batch).map_err(damaged)? {
        match offset.cmp(&(catalog.version as i64)) {
            Ordering::Less => continue,
            // One that was refused is refused again, and its client is gone.
            Ordering::Equal => _ = catalog.apply(&command),
            // Ids follow from the order of the commands: behind a gap every one of them would be guessed.
            Ordering::Greater => {
                return Err(format!(
                    "the metadata log misses offsets {} to {offset}: the catalogue stays as it was before",
                    catalog.version
                ));
            }
        }
    }
    Ok(())
}
