//! The check of a whole data folder: checkpoints, journals by the same scan that recovery uses, segments, indexes,
//! and that they fit together.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use pyralog_core::limits::{CHUNK_BYTES, JOURNAL_ALIGN, MAX_CHECKPOINT_BYTES};
use pyralog_core::{GroupId, ShardId};
use pyralog_replication::metadata::Catalog;

use super::folder::{self, Folder};
use super::segments::{self, Expected};
use super::{Finding, OfflineError, Progress, Report, Severity, lock_out};
use crate::engine::{FileId, RecoveryDisk};
use crate::format::checkpoint::{Checkpoint, GroupCheckpoint};
use crate::format::journal::{CommitHeader, FrameHeader, FrameKind};
use crate::format::scan::{Damage, Lost, ScanError, ScanSink, scan};
use crate::memory::{Chunk, ChunkPool};
use crate::runtime::data_dir::{NAME as NODE_FILE, NodeFile};

const REFUSED: &str = "these offsets have no other copy on this node and will be refused to readers; restore a backup, \
                       or live without them";
const NO_START: &str = "the shard will not start; put the file back from a backup";
const FOREIGN: &str = "put the shard's own folder back in its place";

/// Checks everything below `data_dir` and `journal_dir` (the same, unless the node is configured otherwise).
/// Changes nothing, and keeps nodes from starting on the folders meanwhile.
///
/// # Errors
/// When a node runs on the folder, when there is nothing to check, or when a file can't be read.
pub fn verify(
    data_dir: &Path,
    journal_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, OfflineError> {
    let _data_lock = lock_out(data_dir)?;
    let _journal_lock = lock_out(journal_dir)?;
    let node = NodeFile::read(data_dir);
    let generation = match &node {
        Some(node) => node.generation,
        None => folder::newest_generation(data_dir, journal_dir)?,
    };
    let shards = folder::shards(data_dir, journal_dir, generation)?;
    if shards.is_empty() {
        return Err(OfflineError::NoData(data_dir.to_owned()));
    }
    let mut report = Report::default();
    if let Some(finding) = check_node_file(data_dir, node.is_some()) {
        report.findings.push(finding);
    }
    let mut total_bytes = 0;
    for shard in &shards {
        let mut ignore = |_| {};
        let folder = Folder::open(data_dir, journal_dir, (generation, *shard), &mut ignore)?;
        total_bytes += folder.files.iter().map(|(_, len)| len).sum::<u64>();
    }
    let mut done_bytes = 0;
    for &shard in &shards {
        let mut on_read = |bytes| {
            done_bytes += bytes;
            progress(Progress { shard, done_bytes: done_bytes.min(total_bytes), total_bytes });
        };
        let folder = Folder::open(data_dir, journal_dir, (generation, shard), &mut on_read)?;
        let own_id = node.as_ref().map(|node| node.shard_journal_id(shard));
        Shard { shard, own_id, folder, slot: 0, report: &mut report }.check()?;
    }
    report.shards = shards.len() as u64;
    report.bytes = done_bytes;
    report.findings.sort_by_key(|finding| finding.severity);
    Ok(report)
}

/// What says whose the folder is has to be readable, if it is there.
fn check_node_file(data_dir: &Path, is_read: bool) -> Option<Finding> {
    let file = data_dir.join(NODE_FILE);
    (!is_read && file.exists()).then(|| Finding {
        severity: Severity::Damage,
        shard: ShardId(0),
        file,
        position: None,
        group: None,
        offsets: None,
        what: "it does not say whose the folder is, or its checksum does not match".into(),
        remedy: "the node will not start; put the file back from a backup",
    })
}

struct Shard<'r, 'a> {
    shard: ShardId,
    /// The shard's journal id, as `node.json` has it.
    own_id: Option<u64>,
    folder: Folder<'a>,
    /// The slot of the newest checkpoint.
    slot: u8,
    report: &'r mut Report,
}

impl Shard<'_, '_> {
    fn check(mut self) -> Result<(), OfflineError> {
        let checkpoint = self.checkpoints()?;
        let groups: BTreeMap<GroupId, GroupCheckpoint> =
            checkpoint.iter().flat_map(|c| &c.groups).map(|group| (group.group, group.clone())).collect();
        self.segments(&groups, checkpoint.is_some())?;
        self.journal(checkpoint.as_ref(), &groups)
    }

    fn find(&mut self, severity: Severity, file: FileId, what: String, remedy: &'static str) {
        let file = self.folder.path(file);
        let shard = self.shard;
        let finding =
            Finding { severity, shard, file, position: None, group: None, offsets: None, what, remedy };
        self.report.findings.push(finding);
    }

    /// The newest valid checkpoint.
    fn checkpoints(&mut self) -> Result<Option<Checkpoint>, OfflineError> {
        let (mut newest, mut broken): (Option<Checkpoint>, Vec<(FileId, String)>) = (None, Vec::new());
        for file in [FileId::Checkpoint(0), FileId::Checkpoint(1)] {
            if self.folder.len(file).is_none_or(|len| len == 0) {
                continue;
            }
            match Checkpoint::decode(&self.folder.read_all(file, MAX_CHECKPOINT_BYTES as u64 * 2)?) {
                Ok(Checkpoint { journal_id, .. }) if self.own_id.is_some_and(|own| own != journal_id) => {
                    let what = format!("it belongs to journal {journal_id:#018x}, of another node or shard");
                    self.find(Severity::Damage, file, what, FOREIGN);
                }
                Ok(checkpoint) => {
                    self.report.checkpoints += 1;
                    if newest.as_ref().is_none_or(|known| known.seq < checkpoint.seq) {
                        newest = Some(checkpoint);
                    }
                }
                Err(error) => broken.push((file, error.to_string())),
            }
        }
        for (file, what) in broken {
            let (severity, remedy) = match newest {
                Some(_) => (
                    Severity::Warning,
                    "normal once after a crash while it was written: the other slot is used, and this one is \
                     written next",
                ),
                None => (Severity::Damage, NO_START),
            };
            self.find(severity, file, what, remedy);
        }
        self.slot = newest.as_ref().map_or(0, Checkpoint::slot);
        if let Some(Err(error)) = newest.as_ref().and_then(|c| c.catalog.as_deref()).map(Catalog::decode) {
            self.find(Severity::Damage, FileId::Checkpoint(self.slot), error.to_string(), NO_START);
        }
        Ok(newest)
    }

    fn segments(
        &mut self,
        groups: &BTreeMap<GroupId, GroupCheckpoint>,
        has_checkpoint: bool,
    ) -> Result<(), OfflineError> {
        let on_disk: Vec<(GroupId, i64)> = self
            .folder
            .files
            .iter()
            .filter_map(|(file, _)| match file {
                FileId::Segment(group, base) => Some((*group, *base)),
                _ => None,
            })
            .collect();
        for (group, base) in on_disk {
            let named = groups.get(&group).is_some_and(|g| g.segments.iter().any(|s| s.base == base));
            if named {
                continue;
            }
            let file = FileId::Segment(group, base);
            if has_checkpoint {
                let what = "the checkpoint does not name this segment".to_owned();
                let remedy = "normal after a crash: it was let go of, or the journal still holds its batches; the \
                              next start removes it";
                self.find(Severity::Note, file, what, remedy);
            } else {
                self.segment(Expected { group, base, meta: None })?;
            }
        }
        groups.values().try_for_each(|group| self.group(group))
    }

    /// The segments that the checkpoint names of one group, and that nothing is missing between them.
    fn group(&mut self, group: &GroupCheckpoint) -> Result<(), OfflineError> {
        self.report.partitions += 1;
        let mut expected = group.log_start;
        for segment in &group.segments {
            let file = FileId::Segment(group.group, segment.base);
            if segment.base > expected {
                self.hole(group, file, expected, segment.base);
            }
            if self.folder.len(file).is_none() {
                let what = "the segment is missing".to_owned();
                self.report.findings.push(Finding {
                    severity: Severity::Damage,
                    shard: self.shard,
                    file: self.folder.path(file),
                    position: None,
                    group: Some(group.group),
                    offsets: Some((segment.base, segment.end_offset)),
                    what,
                    remedy: REFUSED,
                });
            } else {
                let meta = Some((segment.bytes, segment.end_offset, segment.max_timestamp));
                self.segment(Expected { group: group.group, base: segment.base, meta })?;
            }
            expected = expected.max(segment.end_offset);
        }
        if expected < group.flushed_to {
            self.hole(group, FileId::Segment(group.group, expected), expected, group.flushed_to);
        }
        for &(from, to) in &group.damaged {
            let finding = self.range(group.group, FileId::Checkpoint(self.slot), from, to);
            let what = "an earlier start found these offsets damaged".to_owned();
            self.report.findings.push(Finding { what, ..finding });
        }
        if group.end_unknown {
            let finding = self.range(group.group, FileId::Checkpoint(self.slot), expected, expected);
            let what = "damage hides where this log ends; it takes no writes".to_owned();
            self.report.findings.push(Finding { what, offsets: None, ..finding });
        }
        Ok(())
    }

    fn segment(&mut self, expected: Expected) -> Result<(), OfflineError> {
        let checked = segments::check(&mut self.folder, self.shard, expected, &mut self.report.findings)?;
        self.report.segments += 1;
        self.report.segment_batches += checked.batches;
        self.report.records += checked.records;
        Ok(())
    }

    fn range(&self, group: GroupId, file: FileId, from: i64, to: i64) -> Finding {
        Finding {
            severity: Severity::Damage,
            shard: self.shard,
            file: self.folder.path(file),
            position: None,
            group: Some(group),
            offsets: Some((from, to)),
            what: "no segment holds these offsets, and the journal was let go of".to_owned(),
            remedy: REFUSED,
        }
    }

    /// Offsets that no segment holds: damage, unless the checkpoint already says so.
    fn hole(&mut self, group: &GroupCheckpoint, file: FileId, from: i64, to: i64) {
        let mut known = group.damaged.clone();
        known.sort_unstable();
        let mut at = from;
        for (start, end) in known {
            if start <= at {
                at = at.max(end);
            }
        }
        if at < to {
            let finding = self.range(group.group, file, at, to);
            self.report.findings.push(finding);
        }
    }

    fn journal(
        &mut self,
        checkpoint: Option<&Checkpoint>,
        groups: &BTreeMap<GroupId, GroupCheckpoint>,
    ) -> Result<(), OfflineError> {
        let mut files = Vec::new();
        for (file, len) in self.folder.files.clone() {
            let FileId::Journal(number) = file else { continue };
            self.report.journal_files += 1;
            files.push((number, len));
            if len == 0 || len % CHUNK_BYTES as u64 != 0 {
                let what = format!("its length, {len} bytes, is not a multiple of {CHUNK_BYTES}");
                let remedy = "normal when the node died while it made the file; otherwise it was cut";
                self.find(Severity::Warning, file, what, remedy);
            }
        }
        let id = match (self.own_id, checkpoint) {
            (Some(own), _) => Some(own),
            (None, Some(checkpoint)) => Some(checkpoint.journal_id),
            (None, None) => self.journal_id(&files)?,
        };
        let Some(id) = id else { return Ok(()) };
        let mut walk = JournalCheck::new(groups);
        let end = scan(&mut self.folder, id, &files, checkpoint.map(|c| c.replay_from), &mut walk);
        self.report.commits += walk.commits;
        self.report.journal_batches += walk.batches;
        self.report.records += walk.records;
        for damage in &walk.damages {
            let mut finding = self.range(GroupId::METADATA, FileId::Journal(damage.file), 0, 0);
            (finding.group, finding.offsets) = match damage.lost {
                Lost::Body(frame) => (Some(frame.group), Some((frame.base_offset, frame.end_offset()))),
                Lost::Unknown => (None, None),
            };
            finding.position = Some(damage.position);
            finding.what = damage.detail.clone();
            self.report.findings.push(finding);
        }
        for (group, from, to, position, file) in &walk.gaps {
            let mut finding = self.range(*group, FileId::Journal(*file), *from, *to);
            finding.position = Some(*position);
            finding.what = format!("offsets {from}..{to} are neither in segments nor in the journal");
            self.report.findings.push(finding);
        }
        match end {
            Ok(end) => {
                if let Some(what) = end.torn {
                    let file = FileId::Journal(end.resume.map_or(0, |place| place.file));
                    self.find(
                        Severity::Note,
                        file,
                        what,
                        "normal after a crash: the next start overwrites it",
                    );
                }
            }
            Err(error) => {
                let file = FileId::Journal(checkpoint.map_or(0, |c| c.replay_from.file));
                self.find(Severity::Damage, file, error.to_string(), "the shard will not start like this");
            }
        }
        Ok(())
    }

    /// Without `node.json` and a checkpoint: the id that the first valid commit header names.
    fn journal_id(&mut self, files: &[(u32, u64)]) -> Result<Option<u64>, OfflineError> {
        let mut block = vec![0; JOURNAL_ALIGN];
        for (number, len) in files {
            let file = FileId::Journal(*number);
            for position in (0..*len).step_by(JOURNAL_ALIGN) {
                let read = self.folder.read_at(file, position, &mut block);
                let read = read.map_err(OfflineError::io(&self.folder.path(file)))?;
                let header = CommitHeader::decode(block.get(..read).unwrap_or_default());
                if let Ok(header) = header.as_ref()
                    && (header.file, header.position) == (*number, position)
                {
                    return Ok(Some(header.journal_id));
                }
            }
        }
        Ok(None)
    }
}

/// Follows every group's offsets through the journal.
struct JournalCheck {
    pool: ChunkPool,
    /// Offset at which each group's next batch has to begin.
    ends: BTreeMap<GroupId, i64>,
    gaps: Vec<(GroupId, i64, i64, u64, u32)>,
    damages: Vec<Damage>,
    commits: u64,
    batches: u64,
    records: u64,
}

impl JournalCheck {
    fn new(groups: &BTreeMap<GroupId, GroupCheckpoint>) -> Self {
        let end = |group: &GroupCheckpoint| {
            let damaged = group.damaged.iter().map(|(_, to)| *to).max();
            group.flushed_to.max(damaged.unwrap_or(0))
        };
        Self {
            // The scan reads into one chunk again and again when nobody keeps it.
            pool: ChunkPool::new(4 * CHUNK_BYTES),
            ends: groups.iter().map(|(group, state)| (*group, end(state))).collect(),
            gaps: Vec::new(),
            damages: Vec::new(),
            commits: 0,
            batches: 0,
            records: 0,
        }
    }
}

impl ScanSink for JournalCheck {
    fn chunk(
        &mut self,
        _disk: &mut dyn RecoveryDisk,
        last: Option<Rc<Chunk>>,
    ) -> Result<Rc<Chunk>, ScanError> {
        last.or_else(|| self.pool.journal_chunk())
            .ok_or_else(|| ScanError::Sink("the check keeps no chunks".into()))
    }

    fn commit(
        &mut self,
        header: &CommitHeader,
        _chunk: &Rc<Chunk>,
        frames: &[(FrameHeader, usize)],
    ) -> Result<(), ScanError> {
        self.commits += 1;
        for (frame, _) in frames {
            match frame.kind {
                FrameKind::Batch => {
                    self.batches += 1;
                    let end = self.ends.entry(frame.group).or_insert(0);
                    // An entry of several replicas takes the place of what was there and behind.
                    if frame.index > 0 {
                        *end = frame.base_offset.min(*end);
                    }
                    if frame.end_offset() <= *end {
                        continue;
                    }
                    if frame.base_offset != *end {
                        let gap = (frame.group, *end, frame.base_offset, header.position, header.file);
                        self.gaps.push(gap);
                    }
                    self.records += u64::from(frame.record_count);
                    *end = frame.end_offset();
                }
                FrameKind::OpenGroup => {
                    self.ends.entry(frame.group).or_insert(frame.base_offset);
                }
                FrameKind::DropGroup => {
                    self.ends.remove(&frame.group);
                }
                FrameKind::Configuration if frame.index == 0 => {}
                FrameKind::NewTerm | FrameKind::Configuration => {
                    let end = self.ends.entry(frame.group).or_insert(0);
                    *end = frame.base_offset.min(*end);
                }
                FrameKind::Rejoin | FrameKind::Joined | FrameKind::Founder | FrameKind::BeginGroup => {}
                FrameKind::Vote | FrameKind::NewLife => {}
            }
        }
        Ok(())
    }

    fn damage(&mut self, damage: Damage) -> Result<(), ScanError> {
        if let Lost::Body(frame) = damage.lost {
            // The loss itself is reported; what follows it is no further gap.
            let end = self.ends.entry(frame.group).or_insert(0);
            if *end == frame.base_offset {
                *end = frame.end_offset();
            }
        }
        self.damages.push(damage);
        Ok(())
    }
}
