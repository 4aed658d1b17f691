//! Writes the cache out to segments, makes checkpoints, recycles journal files, applies retention.
//!
//! One run at a time: a cut through the journal is chosen; every partition's batches up to the cut go to its
//! segments, which are then synced; a checkpoint says that a replay may begin at the cut; journal files from
//! before the *previous* checkpoint's cut become free (so that one damaged checkpoint costs nothing).

use std::collections::VecDeque;
use std::sync::Arc;

use pyralog_core::GroupId;
use pyralog_core::limits::{
    CHECKPOINTS_IN_MEMORY, CHUNK_BYTES, MAX_BATCH_BYTES, MAX_CHECKPOINT_BYTES, PINNED_BYTES_PER_SHARD,
};
use pyralog_replication::metadata::Catalog;

use crate::format::checkpoint::{Checkpoint, GroupCheckpoint, ReplayPoint, SegmentMeta};
use crate::memory::{ChunkPool, ChunkSlice};

use super::journal::Full;
use super::pace::Pace;
use super::partition::{Partition, TailBatch};
use super::plan::FlushPlan;
use super::replica::Replica;
use super::{
    Action, DISK_FULL_RETRY_US, Engine, FileId, FsyncPolicy, IoError, IoErrorKind, IoOp, IoResult, IoToken,
    LogLevel, Mode, Now,
};

/// Partitions that are written out at once.
const JOBS: usize = 16;
/// Pause before the next run when entries that are not committed hold back what a run can free, microseconds.
const HELD_BACK_RETRY_US: u64 = 50_000;
/// How often retention is looked at, microseconds.
const RETENTION_EVERY_US: u64 = 5_000_000;

/// One partition being written out. Its operations run one after the other.
#[derive(Debug)]
struct Job {
    index: u32,
    plan: FlushPlan,
    /// Of the operation that is on its way; without one it waits for the pace.
    token: Option<IoToken>,
    /// The group was dropped meanwhile.
    forgotten: bool,
    /// One of its operations failed.
    failed: bool,
    /// Something waits for its end: it takes no heed of the pace.
    hurried: bool,
}

/// A checkpoint ready to be written.
#[derive(Debug)]
struct Prepared {
    cut: ReplayPoint,
    data: ChunkSlice,
    /// Segments that it no longer names.
    deletes: Vec<FileId>,
}

/// Where a run stands.
#[derive(Debug)]
enum Stage {
    Idle,
    /// What the run is to write out is read back from the journal.
    Reloading,
    /// Entries that would hold the run back are laid down once more: it begins when commit `lsn` is done.
    LayingAgain {
        lsn: u64,
    },
    /// Partitions are written out.
    Segments {
        cut: ReplayPoint,
        queue: VecDeque<u32>,
        jobs: Vec<Job>,
        failed: Option<IoError>,
    },
    /// The journal is made durable, where the fsync policy has not done it: for the checkpoint, which was encoded
    /// when this flush was issued and so holds nothing that the flush does not cover, or, without one, for the
    /// stop of a shard whose disk is full.
    Journal {
        checkpoint: Option<Prepared>,
        tokens: Vec<IoToken>,
    },
    /// The checkpoint is written (`synced` false) or made durable.
    Checkpoint {
        cut: ReplayPoint,
        token: IoToken,
        synced: bool,
        deletes: Vec<FileId>,
    },
}

/// The flusher of one shard.
#[derive(Debug)]
pub(super) struct Flusher {
    stage: Stage,
    pool: ChunkPool,
    /// How fast the run that writes segments may go.
    pace: Pace,
    dirty: Vec<u32>,
    unflushed_bytes: u64,
    oldest_unflushed_us: Option<u64>,
    /// A run is wanted whatever the age and size of what is unflushed.
    wanted: bool,
    disk_full: bool,
    retry_us: Option<u64>,
    /// Sequence of the newest checkpoint, and the generation from which each slot's replay begins (0 = no valid one).
    checkpoint_seq: u64,
    slot_generations: [u64; 2],
    flushed_lsn: u64,
    /// Segments of the shard at the newest checkpoint.
    pub(super) segments: usize,
    /// Recovery found damage: what is known of it has to be in a checkpoint.
    checkpoint_needed: bool,
    /// Segments that the next checkpoint no longer names.
    deletes: Vec<FileId>,
    /// Segments that the newest checkpoint no longer names, but the one before it does: they go with the next one,
    /// so that either slot finds what it names.
    old_deletes: Vec<FileId>,
    /// Deletions on their way; how they end changes nothing, recovery repeats them.
    deleting: Vec<IoToken>,
    postponed_catalog: Option<Arc<Catalog>>,
    delete_later: Vec<GroupId>,
    /// Groups that are dropped and whose files are not deleted yet, and the operation that does it.
    dropped: Vec<(GroupId, Option<IoToken>)>,
    retention_due_us: Option<u64>,
    /// No run begins before: entries that may still be cut off hold back what one can free.
    not_before_us: Option<u64>,
    shutting_down: bool,
    /// The disk is full: the shard stops with what is not in segments in the journal, made durable.
    stop_with_journal: bool,
    shutdown_done: bool,
}

impl Flusher {
    pub(super) fn new(checkpoint_seq: u64, slot_generations: [u64; 2]) -> Self {
        Self {
            stage: Stage::Idle,
            pool: ChunkPool::new(MAX_CHECKPOINT_BYTES * (CHECKPOINTS_IN_MEMORY - 1)),
            pace: Pace::default(),
            dirty: Vec::new(),
            unflushed_bytes: 0,
            oldest_unflushed_us: None,
            wanted: false,
            disk_full: false,
            retry_us: None,
            checkpoint_seq,
            slot_generations,
            flushed_lsn: 0,
            segments: 0,
            checkpoint_needed: false,
            deletes: Vec::new(),
            old_deletes: Vec::new(),
            deleting: Vec::new(),
            postponed_catalog: None,
            delete_later: Vec::new(),
            dropped: Vec::new(),
            retention_due_us: None,
            not_before_us: None,
            shutting_down: false,
            stop_with_journal: false,
            shutdown_done: false,
        }
    }

    /// All commits up to this one are in segments.
    pub(super) fn flushed_lsn(&self) -> u64 {
        self.flushed_lsn
    }

    pub(super) fn disk_full(&self) -> bool {
        self.disk_full
    }

    /// The disk was full a moment ago, and is tried again later.
    pub(super) fn waits_for_space(&self) -> bool {
        self.retry_us.is_some()
    }

    /// A run is to begin as soon as it can.
    pub(super) fn want_run(&mut self) {
        self.wanted = true;
    }

    pub(super) fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes
    }

    pub(super) fn shutdown_done(&self) -> bool {
        self.shutdown_done && matches!(self.stage, Stage::Idle)
    }

    pub(super) fn wanted(&mut self, _full: Full) {
        self.wanted = true;
    }

    /// Recovery found damage: make a checkpoint soon.
    pub(super) fn remember_damage(&mut self) {
        self.want_checkpoint();
    }

    /// Whether the recovery that has just ended has found damage.
    pub(super) fn found_damage(&self) -> bool {
        self.checkpoint_needed
    }

    /// A batch was appended to `partition`.
    pub(super) fn note_unflushed(&mut self, now_us: u64, partition: &mut Partition, index: u32, bytes: u64) {
        self.unflushed_bytes += bytes;
        self.pace.appended(bytes);
        self.oldest_unflushed_us.get_or_insert(now_us);
        if !partition.dirty {
            partition.dirty = true;
            self.dirty.push(index);
        }
    }

    /// The partition is dropped.
    pub(super) fn forget(&mut self, index: u32, partition: &Partition) {
        let unflushed: u64 = partition.unflushed().map(|batch| batch.data.len() as u64).sum();
        self.unflushed_bytes = self.unflushed_bytes.saturating_sub(unflushed);
        self.dirty.retain(|dirty| *dirty != index);
        if self.dirty.is_empty() {
            // Nothing left that grows old: no run is due, and no tick.
            self.oldest_unflushed_us = None;
        }
        let gone = |file: &FileId| matches!(file, FileId::Segment(g, _) | FileId::Index(g, _) if *g == partition.group);
        // Of a group that comes back later the files may have the same names.
        self.deletes.retain(|file| !gone(file));
        self.old_deletes.retain(|file| !gone(file));
        if let Stage::Checkpoint { deletes, .. } = &mut self.stage {
            deletes.retain(|file| !gone(file));
        }
        if let Stage::Segments { queue, jobs, .. } = &mut self.stage {
            queue.retain(|queued| *queued != index);
            for job in jobs.iter_mut().filter(|job| job.index == index) {
                job.forgotten = true;
            }
        }
    }

    /// Whether operations on the group's files are on their way.
    pub(super) fn busy_with(&self, group: GroupId) -> bool {
        matches!(&self.stage, Stage::Segments { jobs, .. } if jobs.iter().any(|job| job.plan.group == group))
    }

    /// What is under way for the group is waited for.
    pub(super) fn hurry(&mut self, group: GroupId) {
        if let Stage::Segments { jobs, .. } = &mut self.stage {
            jobs.iter_mut().filter(|job| job.plan.group == group).for_each(|job| job.hurried = true);
        }
    }

    pub(super) fn delete_later(&mut self, group: GroupId) {
        self.delete_later.push(group);
    }

    /// A group is dropped: from now on until its files are deleted, it must not come back.
    pub(super) fn begin_delete(&mut self, group: GroupId) {
        self.dropped.push((group, None));
    }

    /// Its files are being deleted.
    pub(super) fn expect_delete(&mut self, token: IoToken, group: GroupId) {
        if let Some((_, deleting)) = self.dropped.iter_mut().find(|(dropped, _)| *dropped == group) {
            *deleting = Some(token);
        }
    }

    /// Whether the files of a group that was dropped are there still.
    pub(super) fn is_deleting(&self, group: GroupId) -> bool {
        self.dropped.iter().any(|(dropped, _)| *dropped == group)
    }

    pub(super) fn postpone_catalog(&mut self, catalog: Arc<Catalog>) {
        self.postponed_catalog = Some(catalog);
        self.wanted = true;
    }

    /// Recovery found files that only the older checkpoint names: they go when that one is overwritten.
    pub(super) fn remove_later(&mut self, files: Vec<FileId>) {
        self.old_deletes.extend(files);
    }

    /// The number of a checkpoint that holds everything as it is now.
    pub(super) fn seq_of_next_checkpoint(&self) -> u64 {
        let encoded = matches!(self.stage, Stage::Journal { .. } | Stage::Checkpoint { .. });
        self.checkpoint_seq + if encoded { 2 } else { 1 }
    }

    /// Sequence of the newest durable checkpoint.
    pub(super) fn checkpoint_seq(&self) -> u64 {
        self.checkpoint_seq
    }

    /// Make a checkpoint soon.
    pub(super) fn want_checkpoint(&mut self) {
        self.checkpoint_needed = true;
        self.wanted = true;
    }

    /// The next checkpoint no longer names this segment.
    pub(super) fn drop_segment(&mut self, group: GroupId, base: i64) {
        self.deletes.extend([FileId::Segment(group, base), FileId::Index(group, base)]);
    }

    /// `bytes` of batches that were in no segment are cut off their log.
    pub(super) fn note_cut(&mut self, bytes: u64) {
        self.unflushed_bytes = self.unflushed_bytes.saturating_sub(bytes);
    }

    /// Takes over what recovery found unflushed.
    pub(super) fn recovered(&mut self, index: u32, partition: &mut Partition) {
        let bytes: u64 = partition.unflushed().map(|batch| batch.data.len() as u64).sum();
        if bytes > 0 {
            self.note_unflushed(0, partition, index, bytes);
        }
    }
}

impl Engine {
    pub(super) fn flush_deadline_us(&self) -> Option<u64> {
        let flush = &self.flush;
        let idle = matches!(flush.stage, Stage::Idle);
        let waits = flush.retry_us.or(flush.not_before_us);
        let age = flush.oldest_unflushed_us.filter(|_| idle && waits.is_none());
        let reads = self.cold.retry_due_us();
        let file = self.file_ahead_due_us();
        let due = age.map(|oldest| oldest + self.config.max_buffer_time_us);
        let waiting = matches!(&flush.stage, Stage::Segments { jobs, .. } if jobs.iter().any(|job| job.token.is_none()));
        let pace = waiting.then(|| flush.pace.due_us());
        [due, pace, flush.retry_us, flush.not_before_us, flush.retention_due_us, reads, file]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn flush_tick(&mut self, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        if self.flush.retry_us.is_some_and(|due| due <= now_us) {
            self.flush.retry_us = None;
            self.flush.wanted = true;
        }
        self.flush.not_before_us.take_if(|due| *due <= now_us);
        let retains = |p: &Partition| p.retention_bytes.is_some() || p.retention_ms.is_some();
        if self.flush.retention_due_us.is_none_or(|due| due <= now_us) {
            let any = self.each_partition().any(retains);
            self.flush.retention_due_us = any.then_some(now_us + RETENTION_EVERY_US);
            if any && matches!(self.flush.stage, Stage::Idle) {
                self.apply_retention();
                self.flush.wanted |= !self.flush.deletes.is_empty();
            }
        }
        self.start_reads(actions);
    }

    pub(super) fn flush_for_shutdown(&mut self) {
        self.flush.shutting_down = true;
        self.flush.wanted = true;
    }

    /// Keeps memory and journal files at hand; has a flush free some before they are needed.
    pub(super) fn keep_memory_free(&mut self, actions: &mut Vec<Action>) {
        while self.cache_is_full() && self.evict_oldest() {}
        if matches!(self.flush.stage, Stage::Idle) {
            self.flush.wanted |= self.unflushed_exceeds(3, 8);
        }
        let pinned = self.pool.live_bytes().saturating_sub(self.journal.chunks.len() * CHUNK_BYTES);
        if pinned + 2 * CHUNK_BYTES > PINNED_BYTES_PER_SHARD {
            self.shed_slow_readers(2 * CHUNK_BYTES, actions);
        }
        self.keep_journal_files(actions);
        if self.stalled && self.journal.has_room(&self.pool, MAX_BATCH_BYTES) {
            self.stalled = self.cached_batches >= self.config.cache_batches();
        }
        if !self.stalled
            && let Some(catalog) = self.flush.postponed_catalog.take()
        {
            self.catalog_published(catalog, actions);
        }
        if !self.has_room() && matches!(self.flush.stage, Stage::Idle) {
            self.flush.wanted = true;
        }
    }

    /// Whether the next chunk would be one more than the cache may have, or it holds as many batches as it may.
    fn cache_is_full(&self) -> bool {
        (self.journal.chunks.len() + 1) * CHUNK_BYTES > self.config.cache_bound()
            || self.cached_batches >= self.config.cache_batches()
    }

    /// Whether more than this part of the cache is in no segment. Of the rest a run would free nothing.
    fn unflushed_exceeds(&self, part: usize, of: usize) -> bool {
        let flushed_lsn = self.flush.flushed_lsn;
        let unflushed = self.journal.chunks.iter().rev().take_while(|chunk| chunk.last_lsn > flushed_lsn);
        let (chunks, batches) =
            unflushed.fold((0, 0), |(chunks, batches), chunk| (chunks + 1, batches + chunk.partitions.len()));
        chunks * CHUNK_BYTES > self.config.cache_bound() / of * part
            || batches > self.config.cache_batches() / of * part
    }

    /// Whether the run has to go as fast as the disk lets it: something waits for its end, or the disk is full, or without a cache
    /// every run is one that readers wait for.
    fn run_is_urgent(&self) -> bool {
        let flush = &self.flush;
        flush.shutting_down
            || flush.checkpoint_needed
            || flush.disk_full
            || flush.postponed_catalog.is_some()
            || !self.config.cache_enabled
            || !self.has_room()
            // No journal file is free and none is being made: one has to be freed.
            || self.journal.free_files() == 0 && !self.journal_files.is_creating()
            || self.unflushed_exceeds(3, 4)
    }

    /// Drops the oldest chunk of the cache if everything in it is in segments.
    pub(super) fn evict_oldest(&mut self) -> bool {
        let Some(oldest) = self.journal.chunks.front() else { return false };
        if self.journal.chunks.len() < 2 || oldest.last_lsn > self.flush.flushed_lsn {
            return false;
        }
        let Some(chunk) = self.journal.chunks.pop_front() else { return false };
        for index in chunk.partitions {
            let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut)
            else {
                continue;
            };
            while partition.tail.front().is_some_and(|batch| batch.lsn <= chunk.last_lsn) {
                partition.tail.pop_front();
                self.cached_batches -= 1;
            }
            let cached_from = partition.tail.front().map_or(u64::MAX, |batch| batch.index);
            if let Some(replica) = partition.replica.raft_mut() {
                replica.compact_below(cached_from);
            }
        }
        true
    }

    /// Begins a run when one is due, and moves the running one on.
    pub(super) fn flush_step(&mut self, actions: &mut Vec<Action>) {
        if self.mode == Mode::Starting {
            return;
        }
        match self.flush.stage {
            Stage::Reloading if !self.reloads.busy() => self.flush.stage = Stage::Idle,
            Stage::LayingAgain { lsn } if self.journal.completed.lsn > lsn => self.write_out(actions),
            _ => {}
        }
        if matches!(self.flush.stage, Stage::Idle) && self.run_is_due() {
            match self.flush.stop_with_journal {
                true => return self.flush_journal(None, actions),
                false => self.begin_run(actions),
            }
        }
        self.end_jobs(actions);
        self.start_jobs();
        self.advance_jobs(actions);
        self.end_segments_stage(actions);
    }

    fn run_is_due(&self) -> bool {
        let flush = &self.flush;
        if (flush.retry_us.is_some() || flush.not_before_us.is_some()) && !flush.shutting_down {
            return false;
        }
        if flush.shutting_down {
            return !flush.shutdown_done && self.journal.idle();
        }
        let old = |oldest: u64| oldest + self.config.max_buffer_time_us <= self.now.monotonic_us;
        let progress = flush.checkpoint_needed
            || !flush.dirty.is_empty()
            || !flush.deletes.is_empty()
            || flush
                .slot_generations
                .iter()
                .any(|generation| *generation < self.journal.completed.generation);
        progress && (flush.wanted || flush.oldest_unflushed_us.is_some_and(old))
    }

    fn begin_run(&mut self, actions: &mut Vec<Action>) {
        match self.lay_again() {
            Some(lsn) => self.flush.stage = Stage::LayingAgain { lsn },
            None => self.write_out(actions),
        }
    }

    /// Begins to write out what is unflushed.
    fn write_out(&mut self, actions: &mut Vec<Action>) {
        let Some(cut) = self.reload_for_run(actions) else {
            self.flush.stage = Stage::Reloading;
            return;
        };
        self.apply_retention();
        let flush = &mut self.flush;
        flush.oldest_unflushed_us = None;
        flush.pace.begin(self.now.monotonic_us, flush.unflushed_bytes, self.config.max_buffer_time_us);
        let queue = std::mem::take(&mut flush.dirty);
        for index in &queue {
            if let Some(partition) = self.partitions.get_mut(*index as usize).and_then(Option::as_deref_mut) {
                partition.dirty = false;
            }
        }
        // What was left in the journal is written out a part at a time, one after the other.
        self.flush.wanted = cut.lsn < self.journal.completed.lsn;
        self.flush.stage = Stage::Segments { cut, queue: queue.into(), jobs: Vec::new(), failed: None };
    }

    /// Starts the next partitions of the run.
    fn start_jobs(&mut self) {
        loop {
            let Stage::Segments { cut, queue, jobs, failed } = &mut self.flush.stage else { return };
            if failed.is_some() || jobs.len() >= JOBS {
                return;
            }
            let Some(index) = queue.pop_front() else { return };
            let cut_lsn = cut.lsn - 1;
            let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut)
            else {
                continue;
            };
            if partition.replica.raft().is_some_and(|replica| replica.catch_up.is_some()) {
                // What it gets goes behind the segments that are there. A shard that stops takes no more of it, and leaves what is
                // here in the journal.
                if !self.flush.shutting_down && !std::mem::replace(&mut partition.dirty, true) {
                    self.flush.dirty.push(index);
                }
                continue;
            }
            let plan = FlushPlan::new(partition, cut_lsn, &self.config, &self.flush.pool, self.now.wall_ms);
            // Batches behind the cut, and those that may still be cut off, are for the next run; but a shard that
            // stops leaves the latter in the journal.
            let later = |batch: &TailBatch| match self.flush.shutting_down {
                true => batch.lsn > cut_lsn,
                false => batch.lsn > cut_lsn || batch.next_offset > partition.replica.high_watermark(),
            };
            if partition.tail.back().is_some_and(later) && !partition.dirty {
                partition.dirty = true;
                self.flush.dirty.push(index);
                self.flush.oldest_unflushed_us.get_or_insert(self.now.monotonic_us);
            }
            if let Some(plan) = plan {
                jobs.push(Job { index, plan, token: None, forgotten: false, failed: false, hurried: false });
            }
        }
    }

    /// Ends the jobs that have nothing under way and nothing more to do, or are not to go on.
    fn end_jobs(&mut self, actions: &mut Vec<Action>) {
        loop {
            let Stage::Segments { jobs, failed, .. } = &mut self.flush.stage else { return };
            let over = |job: &Job| {
                job.token.is_none() && (job.forgotten || failed.is_some() || job.plan.operations.is_empty())
            };
            let Some(at) = jobs.iter().position(over) else { return };
            let job = jobs.swap_remove(at);
            self.job_ended(job, actions);
        }
    }

    /// Issues the next operation of those jobs that have none under way, as far as the pace allows it.
    fn advance_jobs(&mut self, actions: &mut Vec<Action>) {
        let Stage::Segments { jobs, .. } = &self.flush.stage else { return };
        if jobs.iter().all(|job| job.token.is_some()) {
            return;
        }
        self.flush.pace.refill(self.now.monotonic_us);
        let urgent = self.run_is_urgent();
        let Flusher { stage: Stage::Segments { jobs, .. }, pace, .. } = &mut self.flush else { return };
        for job in jobs.iter_mut().filter(|job| job.token.is_none()) {
            if urgent || job.hurried || pace.allows() {
                advance(job, pace, &mut self.tokens, actions);
            }
        }
    }

    pub(super) fn flush_io_done(&mut self, token: IoToken, result: IoResult, actions: &mut Vec<Action>) {
        if matches!(self.mode, Mode::Fenced(_) | Mode::Stopped) {
            return;
        }
        if let Some(at) = self.flush.deleting.iter().position(|deleting| *deleting == token) {
            self.flush.deleting.swap_remove(at);
            return;
        }
        if let Some(at) = self.flush.dropped.iter().position(|(_, deleting)| *deleting == Some(token)) {
            self.flush.dropped.swap_remove(at);
            return;
        }
        if self.journal_file_done(token, &result, actions) {
            return;
        }
        match &mut self.flush.stage {
            Stage::Checkpoint { token: expected, .. } if *expected == token => {
                self.checkpoint_step(result, actions)
            }
            Stage::Segments { .. } => self.job_step(token, result),
            Stage::Journal { tokens, .. } if tokens.contains(&token) => {
                self.journal_step(token, result, actions)
            }
            _ => {}
        }
    }

    fn job_step(&mut self, token: IoToken, result: IoResult) {
        let Stage::Segments { jobs, failed, .. } = &mut self.flush.stage else { return };
        let Some(job) = jobs.iter_mut().find(|job| job.token == Some(token)) else { return };
        job.token = None;
        if let Err(error) = result {
            job.failed = true;
            if !job.forgotten {
                *failed = Some(error);
            }
        }
    }

    /// Operations on the files of a group are over: if it was dropped meanwhile, they can go.
    pub(super) fn delete_what_waits(&mut self, group: GroupId, actions: &mut Vec<Action>) {
        if let Some(at) = self.flush.delete_later.iter().position(|waits| *waits == group) {
            self.flush.delete_later.swap_remove(at);
            self.delete_files_of(group, actions);
        }
    }

    /// A partition's operations are over: all done, or given up.
    fn job_ended(&mut self, job: Job, actions: &mut Vec<Action>) {
        if job.forgotten {
            self.delete_what_waits(job.plan.group, actions);
            return;
        }
        let Some(partition) = self.partitions.get_mut(job.index as usize).and_then(Option::as_deref_mut)
        else {
            return;
        };
        if job.failed || !job.plan.operations.is_empty() {
            // Once, however often it is dirtied: two jobs for one partition would both take the same batches.
            if !partition.dirty {
                partition.dirty = true;
                self.flush.dirty.push(job.index);
            }
            return;
        }
        self.flush.unflushed_bytes = self.flush.unflushed_bytes.saturating_sub(job.plan.bytes);
        self.counters.segment_bytes += job.plan.bytes;
        for base in job.plan.bases() {
            self.cold.forget_index(job.plan.group, base);
        }
        job.plan.commit(partition);
    }

    /// When every partition is written out: the checkpoint; when one failed: give up and try later.
    fn end_segments_stage(&mut self, actions: &mut Vec<Action>) {
        let Stage::Segments { queue, jobs, failed, cut } = &mut self.flush.stage else { return };
        if !jobs.is_empty() || (failed.is_none() && !queue.is_empty()) {
            return;
        }
        // Of a group whose end is not in the journal for good a crash leaves what is there: it has to be in the checkpoint, or the
        // end durable first.
        if failed.is_none() && self.flush.dropped.iter().any(|(_, deleting)| deleting.is_none()) {
            return;
        }
        let cut = *cut;
        if let Some(error) = failed.take() {
            let rest: Vec<u32> = queue.drain(..).collect();
            for index in rest {
                if let Some(partition) = self.at_mut(index)
                    && !partition.dirty
                {
                    partition.dirty = true;
                    self.flush.dirty.push(index);
                }
            }
            self.flush.stage = Stage::Idle;
            return self.flush_failed(error, actions);
        }
        let cut = self.replay_point(cut);
        self.flush.flushed_lsn = self.flush.flushed_lsn.max(cut.lsn - 1);
        if !self.config.cache_enabled {
            while self.evict_oldest() {}
        }
        self.drop_flushed_reloads();
        let Some(checkpoint) = self.prepare_checkpoint(cut) else {
            self.flush.stage = Stage::Idle;
            return self.fence(
                "the checkpoint exceeds its bound: too many partitions or producers on this shard",
                actions,
            );
        };
        match self.config.fsync {
            FsyncPolicy::EveryWrite => self.write_checkpoint(checkpoint, actions),
            FsyncPolicy::Interval(_) | FsyncPolicy::Never => self.flush_journal(Some(checkpoint), actions),
        }
    }

    /// Where a replay has to begin when everything committed up to `cut` is in segments: there, or before the oldest
    /// entry of a group with several replicas that may still be cut off and so is in no segment.
    fn replay_point(&mut self, cut: ReplayPoint) -> ReplayPoint {
        let mut oldest = cut.lsn;
        for partition in self.partitions.iter_mut().flatten() {
            let flushed_to = partition.flushed_to;
            match &mut partition.replica {
                Replica::Single(_) => {}
                Replica::Unplaced(unplaced) => unplaced.note_flushed(flushed_to),
                Replica::Raft(replica) => replica.note_flushed(flushed_to, cut.lsn - 1),
            }
            let needed = [partition.replica.oldest_needed_lsn(), partition.oldest_loose_lsn()];
            oldest = needed.into_iter().flatten().fold(oldest, u64::min);
        }
        if oldest == cut.lsn {
            return cut;
        }
        // Another run at once would change nothing.
        self.flush.not_before_us = Some(self.now.monotonic_us + HELD_BACK_RETRY_US);
        self.journal.point_at_or_before(oldest)
    }

    fn flush_journal(&mut self, checkpoint: Option<Prepared>, actions: &mut Vec<Action>) {
        let files: Vec<u32> = self.journal.files_in_use().collect();
        let mut tokens = Vec::with_capacity(files.len());
        for number in files {
            let token = self.next_token();
            tokens.push(token);
            actions.push(Action::Io { token, op: IoOp::Sync { file: FileId::Journal(number) } });
        }
        self.flush.stage = Stage::Journal { checkpoint, tokens };
    }

    fn journal_step(&mut self, token: IoToken, result: IoResult, actions: &mut Vec<Action>) {
        let Stage::Journal { checkpoint, tokens } = &mut self.flush.stage else { return };
        tokens.retain(|other| *other != token);
        if let Err(error) = result {
            self.flush.stage = Stage::Idle;
            return self.fence(&error.detail, actions);
        }
        if !tokens.is_empty() {
            return;
        }
        match checkpoint.take() {
            Some(checkpoint) => {
                self.journal.durable_lsn = self.journal.durable_lsn.max(checkpoint.cut.lsn.saturating_sub(1));
                self.write_checkpoint(checkpoint, actions);
            }
            None => {
                self.flush.stage = Stage::Idle;
                self.flush.shutdown_done = true;
            }
        }
    }

    /// Encodes the checkpoint at `cut` from what is committed now; `None` when it exceeds its bound.
    fn prepare_checkpoint(&mut self, cut: ReplayPoint) -> Option<Prepared> {
        let bytes = self.checkpoint(self.flush.checkpoint_seq + 1, cut).encode().ok()?;
        let chunk = self.flush.pool.chunk(bytes.len())?;
        chunk.append(&bytes);
        let deletes = std::mem::take(&mut self.flush.deletes);
        Some(Prepared { cut, data: ChunkSlice::new(chunk, 0, bytes.len()), deletes })
    }

    fn write_checkpoint(&mut self, checkpoint: Prepared, actions: &mut Vec<Action>) {
        let Prepared { cut, data, deletes } = checkpoint;
        let token = self.next_token();
        self.flush.stage = Stage::Checkpoint { cut, token, synced: false, deletes };
        let file = FileId::Checkpoint(((self.flush.checkpoint_seq + 1) % 2) as u8);
        actions.push(Action::Io { token, op: IoOp::Write { file, offset: 0, data: vec![data] } });
    }

    fn checkpoint_step(&mut self, result: IoResult, actions: &mut Vec<Action>) {
        let next = self.next_token();
        let seq = self.flush.checkpoint_seq + 1;
        let Stage::Checkpoint { cut, token, synced, deletes } = &mut self.flush.stage else { return };
        if let Err(error) = result {
            self.flush.deletes.append(deletes);
            // The slot may be half written: the other one is the valid one.
            if let Some(generation) = self.flush.slot_generations.get_mut((seq % 2) as usize) {
                *generation = 0;
            }
            self.flush.stage = Stage::Idle;
            return self.flush_failed(error, actions);
        }
        if !*synced {
            *synced = true;
            *token = next;
            let file = FileId::Checkpoint((seq % 2) as u8);
            actions.push(Action::Io { token: next, op: IoOp::Sync { file } });
            return;
        }
        let (cut, deletes) = (*cut, std::mem::take(deletes));
        self.flush.stage = Stage::Idle;
        self.checkpoint_done(seq, cut, deletes, actions);
    }

    fn checkpoint_done(
        &mut self,
        seq: u64,
        cut: ReplayPoint,
        deletes: Vec<FileId>,
        actions: &mut Vec<Action>,
    ) {
        self.counters.checkpoints += 1;
        self.flush.checkpoint_seq = seq;
        let waits = self.each_partition().any(|partition| partition.place_after_seq > seq);
        self.flush.checkpoint_needed = waits;
        if let Some(slot) = self.flush.slot_generations.get_mut((seq % 2) as usize) {
            *slot = cut.generation;
        }
        for file in std::mem::replace(&mut self.flush.old_deletes, deletes) {
            let token = self.next_token();
            self.flush.deleting.push(token);
            actions.push(Action::Io { token, op: IoOp::Delete { file } });
        }
        self.flush.segments = self.each_partition().map(|partition| partition.segments.len()).sum();
        let keep_from = self.flush.slot_generations.iter().copied().min().unwrap_or(0);
        self.journal.recycle_below(keep_from);
        self.journal.forget_points_before(cut.lsn);
        if self.flush.disk_full {
            self.flush.disk_full = false;
            let text =
                format!("shard {}: there is space on the disk again, writing goes on", self.config.shard);
            actions.push(Action::Log { level: LogLevel::Info, text });
        }
        self.place_again(actions);
        if self.journal.free_files() > 0 {
            self.room_again();
        } else if self.stalled {
            // The files go free with the next checkpoint, when the older slot moves on too.
            self.flush.wanted = true;
        }
        if self.flush.shutting_down && self.flush.dirty.is_empty() {
            self.flush.shutdown_done = true;
        }
    }

    /// Journal space may be there again.
    pub(super) fn room_again(&mut self) {
        while self.cache_is_full() && self.evict_oldest() {}
        self.stalled = self.cached_batches >= self.config.cache_batches();
    }

    /// A disk that is full is tried again later; any other failure leaves the disk's content unknown.
    pub(super) fn flush_failed(&mut self, error: IoError, actions: &mut Vec<Action>) {
        if error.kind != IoErrorKind::NoSpace {
            return self.fence(&error.detail, actions);
        }
        if !self.flush.disk_full {
            let text = format!(
                "shard {}: {}. Batches stay in the journal; writes are refused when it is full. Free space or lower the retention",
                self.config.shard, error.detail
            );
            actions.push(Action::Log { level: LogLevel::Error, text });
        }
        self.flush.disk_full = true;
        self.flush.retry_us = Some(self.now.monotonic_us + DISK_FULL_RETRY_US);
        if self.flush.shutting_down {
            // What is not in segments is in the journal: the next start replays it.
            match self.config.fsync {
                FsyncPolicy::EveryWrite => self.flush.shutdown_done = true,
                // When the last commit is written: a flush now would not cover it.
                FsyncPolicy::Interval(_) | FsyncPolicy::Never => self.flush.stop_with_journal = true,
            }
        }
    }

    /// Everything that a recovery needs besides the journal from `replay_from` on.
    fn checkpoint(&self, seq: u64, replay_from: ReplayPoint) -> Checkpoint {
        let mut groups: Vec<GroupCheckpoint> =
            self.each_partition().map(|partition| group_checkpoint(partition, self.now)).collect();
        groups.sort_unstable_by_key(|state| state.group);
        debug_assert!(
            self.controller.as_ref().is_none_or(|controller| {
                let metadata = groups.iter().find(|state| state.group == GroupId::METADATA);
                metadata.is_none_or(|state| state.flushed_to <= controller.catalog().version as i64)
            }),
            "the catalogue of a checkpoint holds all commands that are in segments only"
        );
        Checkpoint {
            seq,
            journal_id: self.config.journal_id,
            incarnation: self.journal.incarnation(),
            replay_from,
            groups,
            catalog: self.controller.as_ref().map(|controller| controller.catalog().encode()),
            opens_are_suspect: self.opens_are_suspect && self.config.is_clustered(),
            dropped_at: self.dropped_at,
            founders: self.founders.iter().map(|(node, disk)| (*node, *disk)).collect(),
        }
    }

    /// Lets go of segments beyond the partitions' retention. Their files go when a checkpoint no longer names them.
    fn apply_retention(&mut self) {
        let wall_ms = self.now.wall_ms;
        for partition in self.partitions.iter_mut().flatten() {
            if partition.group == GroupId::METADATA {
                continue;
            }
            let mut bytes: u64 = partition.segments.iter().map(|segment| segment.bytes).sum();
            while let Some(first) = partition.segments.front() {
                let too_many = partition.retention_bytes.is_some_and(|bound| bytes > bound)
                    && partition.segments.len() > 1;
                let horizon =
                    partition.retention_ms.map(|ms| wall_ms.saturating_sub(ms.min(i64::MAX as u64) as i64));
                let too_old = horizon.is_some_and(|horizon| first.newest_ms() < horizon);
                if !too_many && !too_old {
                    break;
                }
                bytes -= first.bytes;
                let (base, end) = (first.base, first.end);
                partition.segments.pop_front();
                partition.log_start =
                    partition.segments.front().map_or(end.max(partition.flushed_to), |next| next.base);
                partition.damaged.retain(|(_, to)| *to > partition.log_start);
                self.cold.forget_segment(partition.group, base);
                self.flush.drop_segment(partition.group, base);
            }
        }
    }
}

/// Issues the job's next operation, if there is one.
fn advance(job: &mut Job, pace: &mut Pace, tokens: &mut u64, actions: &mut Vec<Action>) {
    let Some(op) = job.plan.operations.pop_front() else { return };
    if let IoOp::Write { data, .. } = &op {
        pace.spend(data.iter().map(ChunkSlice::len).sum());
    }
    *tokens += 1;
    let token = IoToken(*tokens);
    job.token = Some(token);
    actions.push(Action::Io { token, op });
}

pub(super) fn group_checkpoint(partition: &Partition, now: Now) -> GroupCheckpoint {
    debug_assert!(
        partition.replica.begins_behind(partition.flushed_to)
            || partition.replica.segments_end().is_none_or(|end| end == partition.flushed_to),
        "the entries of {} begin elsewhere than its segments end: {:?} {}",
        partition.group,
        partition.replica,
        partition.flushed_to
    );
    let committed = partition.replica.high_watermark();
    GroupCheckpoint {
        group: partition.group,
        log_start: partition.log_start,
        flushed_to: partition.flushed_to,
        epoch: partition.replica.epoch(),
        standing: partition.standing,
        replicated: partition.replica.checkpoint(partition.entries_from_lsn, partition.flushed_to),
        end_unknown: partition.end_unknown,
        damaged: partition.damaged.clone(),
        segments: partition
            .segments
            .iter()
            .map(|segment| SegmentMeta {
                base: segment.base,
                end_offset: segment.end,
                epoch: segment.epoch,
                bytes: segment.bytes,
                max_timestamp: segment.newest_ms(),
            })
            .collect(),
        producers: partition.producers.checkpoint(committed, now),
    }
}
