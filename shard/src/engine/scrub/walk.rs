//! One segment from its start to its end, or the part of it that somebody came upon: read, check, go on; at the end its
//! index, which is made again where it is damaged.

use std::rc::Rc;

use pyralog_core::GroupId;
use pyralog_core::limits::INDEX_INTERVAL_BYTES;

use super::check::{Checked, Epochs, Place, Stop, check};
use super::repair::Behind;
use super::{MEMORY_AGAIN_US, Pass, Suspect};
use crate::engine::api::{FileId, IoErrorKind, IoOp, IoResult, IoToken, LogLevel, PeerId};
use crate::engine::partition::Segment;
use crate::engine::{Action, Engine, Mode};
use crate::format::index::{INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, Index, IndexBuilder, index_header};
use crate::memory::{Chunk, ChunkSlice};

/// One read, bytes, unless a batch needs more: what is checked at once holds up requests.
const PIECE_BYTES: usize = 128 << 10;
/// Between two segments at least, microseconds: thousands of small ones are to cost no more than their bytes.
const BETWEEN_US: u64 = 1_000;

/// Where a walk stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// It begins, or goes on when it is time to.
    Paced,
    /// The index is read.
    Index(IoToken),
    /// A piece is read.
    Reading(IoToken),
    /// Another replica is to be asked for what is damaged here, when it is its turn.
    Waiting {
        /// Who could not give it last, and how many could not.
        last: Option<(PeerId, usize)>,
    },
    /// Another replica was asked for what is damaged here.
    Asked {
        /// Who.
        source: PeerId,
        /// So many could not give it.
        refusals: usize,
    },
    /// What came is written.
    Writing(IoToken),
    /// It is made durable.
    Syncing(IoToken),
    /// The index is written, and then cut to these bytes.
    WritingIndex(IoToken, u64),
    /// The index is cut.
    CuttingIndex(IoToken),
}

impl Stage {
    pub(super) fn token(&self) -> Option<IoToken> {
        match self {
            Self::Paced | Self::Waiting { .. } | Self::Asked { .. } => None,
            Self::Index(token)
            | Self::Reading(token)
            | Self::Writing(token)
            | Self::Syncing(token)
            | Self::WritingIndex(token, _)
            | Self::CuttingIndex(token) => Some(*token),
        }
    }

    /// Whether it changes a file.
    pub(super) fn writes(&self) -> bool {
        matches!(self, Self::Writing(_) | Self::Syncing(_) | Self::WritingIndex(..) | Self::CuttingIndex(_))
    }
}

/// A damaged range that is being repaired: from where to where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Damage {
    pub(super) from: Place,
    pub(super) to: Place,
}

/// A segment on its way through the scrubber.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) group: GroupId,
    pub(super) segment: i64,
    /// Where the segment ends, as it was when the walk began: more may be appended since.
    pub(super) end: Place,
    /// More is appended to it: its index is not whole yet.
    grows: bool,
    /// The next batch to be checked.
    pub(super) at: Place,
    /// Epoch of all batches of the segment, if it is known; else that of the batch before the next one.
    pub(super) epoch: Option<u32>,
    /// Whether it is that of all of them.
    pub(super) of_all: bool,
    /// The walk ends behind the batch that holds this offset; `None`: with the segment.
    only: Option<i64>,
    /// It began where the index led to, and has not found a whole batch there yet.
    trusts_index: bool,
    /// It was tried so often to repair what this walk is for.
    pub(super) tries: u32,
    /// It belongs to the pass over all segments, and keeps to its pace.
    in_pass: bool,
    /// Bytes of the next read at least.
    need: usize,
    /// What the read that is under way asked for, bytes.
    asked: usize,
    pub(super) stage: Stage,
    pub(super) index: Index,
    index_read: bool,
    /// Bytes of the index file, as far as one may have them.
    index_bytes: usize,
    /// The index file is not what it has to be.
    index_wrong: bool,
    /// Index entries that are behind the walk.
    entries_seen: usize,
    /// What the index has to be, of a walk that makes it again.
    rebuilt: Option<(IndexBuilder, Index)>,
    pub(super) damage: Option<Damage>,
    /// What was written again last begins here.
    pub(super) written: Option<i64>,
    /// Damage was left behind.
    pub(super) left_damage: bool,
    /// Its partition is gone.
    pub(super) is_over: bool,
}

impl Walk {
    /// It was tried so often to repair what it is for.
    pub(super) fn after(self, tries: u32) -> Self {
        Self { tries, ..self }
    }

    /// Whether more is appended to the segment.
    pub(super) fn grows(&self) -> bool {
        self.grows
    }

    /// Whether all that speaks for a batch to begin here is the index.
    pub(super) fn trusts_index(&self) -> bool {
        self.trusts_index
    }

    /// From the segment's start on.
    pub(super) fn begin_anew(&mut self) {
        self.at = Place { offset: self.segment, position: 0 };
        (self.entries_seen, self.trusts_index) = (0, false);
        if !self.of_all {
            self.epoch = None;
        }
    }

    /// Damage up to `to` is to be repaired: what somebody came upon ends behind it.
    pub(super) fn include(&mut self, to: i64) {
        self.only = self.only.map(|only| only.max(to - 1));
    }

    /// The damage before `to` stays.
    pub(super) fn pass_over(&mut self, to: Place) {
        self.at = to;
        self.entries_seen =
            self.index.entries().partition_point(|entry| u64::from(entry.position) < to.position);
        (self.need, self.written, self.left_damage, self.rebuilt) = (0, None, true, None);
        self.stage = Stage::Paced;
    }
}

impl Engine {
    /// A walk over a segment, or to the batch at `offset` in it. `None`: there is none any more.
    pub(super) fn walk_of(
        &self,
        group: GroupId,
        segment: i64,
        offset: Option<i64>,
        in_pass: bool,
    ) -> Option<Walk> {
        let Segment { base, end, epoch, bytes, index, .. } = self.segment(group, segment)?.clone();
        #[cfg(feature = "planted-bugs")]
        let epoch =
            epoch.filter(|_| !self.has_bug(crate::engine::planted::PlantedBug::RepairFromUncommitted));
        // More goes to the newest one only, and only in the life that began it.
        let last = self.find(group).and_then(|index| self.at(index))?.segments.back()?;
        Some(Walk {
            group,
            segment,
            end: Place { offset: end, position: bytes },
            grows: index.is_some() && last.base == base,
            at: Place { offset: base, position: 0 },
            epoch,
            only: offset,
            of_all: epoch.is_some(),
            trusts_index: false,
            tries: 0,
            in_pass,
            need: 0,
            asked: 0,
            stage: Stage::Paced,
            index: Index::empty(base),
            index_read: bytes <= u64::from(INDEX_INTERVAL_BYTES),
            index_bytes: 0,
            index_wrong: false,
            entries_seen: 0,
            rebuilt: None,
            damage: None,
            written: None,
            left_damage: false,
            is_over: false,
        })
    }

    /// The walk goes on: its next read, or its end.
    pub(super) fn go_on_walking(&mut self, actions: &mut Vec<Action>) {
        let Some(walk) = &self.scrub.walk else { return };
        if walk.is_over || self.segment(walk.group, walk.segment).is_none() {
            return self.end_walk();
        }
        match walk.stage {
            Stage::Paced if !walk.index_read => self.read_index(actions),
            Stage::Paced if self.has_arrived() => self.check_index(actions),
            Stage::Paced => self.read_piece(actions),
            Stage::Asked { .. } => self.ask_another_for_repair(),
            _ => {}
        }
    }

    fn has_arrived(&self) -> bool {
        let Some(walk) = &self.scrub.walk else { return true };
        walk.at.position >= walk.end.position || walk.only.is_some_and(|offset| walk.at.offset > offset)
    }

    pub(super) fn go_on_at(&mut self, due_us: u64) {
        self.scrub.due_us = Some(due_us);
    }

    fn read_index(&mut self, actions: &mut Vec<Action>) {
        let Some(walk) = &self.scrub.walk else { return };
        let entries = walk.end.position / u64::from(INDEX_INTERVAL_BYTES) + 2;
        let len = INDEX_HEADER_BYTES + entries as usize * INDEX_ENTRY_BYTES;
        let file = FileId::Index(walk.group, walk.segment);
        if let Some(token) = self.read_for_scrub(file, 0, len, actions)
            && let Some(walk) = &mut self.scrub.walk
        {
            walk.stage = Stage::Index(token);
        }
    }

    fn read_piece(&mut self, actions: &mut Vec<Action>) {
        let Some(walk) = &self.scrub.walk else { return };
        let left = walk.end.position - walk.at.position;
        let len = left.min(PIECE_BYTES.max(walk.need) as u64) as usize;
        let (file, offset) = (FileId::Segment(walk.group, walk.segment), walk.at.position);
        if let Some(token) = self.read_for_scrub(file, offset, len, actions)
            && let Some(walk) = &mut self.scrub.walk
        {
            (walk.stage, walk.asked) = (Stage::Reading(token), len);
        }
    }

    /// `None`: there is no memory now.
    fn read_for_scrub(
        &mut self,
        file: FileId,
        offset: u64,
        len: usize,
        actions: &mut Vec<Action>,
    ) -> Option<IoToken> {
        let Some(into) = self.misc_pool.chunk_for_read(len) else {
            self.go_on_at(self.now.monotonic_us + MEMORY_AGAIN_US);
            return None;
        };
        let token = self.next_token();
        actions.push(Action::Io { token, op: IoOp::Read { file, offset, len, into } });
        Some(token)
    }

    /// An operation of the scrubber ended.
    pub(in crate::engine) fn scrub_io_done(&mut self, result: IoResult, actions: &mut Vec<Action>) {
        let Some(walk) = &mut self.scrub.walk else { return };
        let stage = std::mem::replace(&mut walk.stage, Stage::Paced);
        let (group, segment, wrote, is_over) = (walk.group, walk.segment, stage.writes(), walk.is_over);
        if matches!(self.mode, Mode::Fenced(_) | Mode::Stopping | Mode::Stopped) {
            return;
        }
        if is_over && wrote {
            self.delete_what_waits(group, actions);
        }
        // Retention may have removed it, and a slow disk found its file no more.
        if is_over || self.segment(group, segment).is_none() {
            return self.end_walk();
        }
        match stage {
            Stage::Index(_) => self.index_read(result, actions),
            Stage::Reading(_) => self.piece_read(result, actions),
            Stage::Writing(_) => self.repair_written(result, actions),
            Stage::Syncing(_) => self.repair_synced(result, actions),
            Stage::WritingIndex(_, len) => self.index_written(len, result, actions),
            Stage::CuttingIndex(_) => self.index_made(result, actions),
            Stage::Paced | Stage::Waiting { .. } | Stage::Asked { .. } => {}
        }
    }

    fn index_read(&mut self, result: IoResult, actions: &mut Vec<Action>) {
        let Some(walk) = &mut self.scrub.walk else { return };
        let chunk = result.ok().flatten();
        let bytes = chunk.as_ref().map_or(&[][..], |chunk| chunk.bytes(0, chunk.filled()));
        let parsed = Index::parse(bytes, walk.segment, walk.end.position);
        walk.index_wrong = !walk.grows
            && parsed.as_ref().is_ok_and(|index| index.file_bytes() != bytes.len() as u64)
            || parsed.is_err();
        walk.index = parsed.unwrap_or_else(|_| Index::empty(walk.segment));
        (walk.index_read, walk.index_bytes) = (true, bytes.len());
        match walk.only {
            Some(offset) => {
                let entries = walk.index.entries();
                walk.entries_seen = entries.partition_point(|entry| entry.base_offset <= offset);
                let entry = walk.entries_seen.checked_sub(1).and_then(|at| entries.get(at));
                if let Some(entry) = entry {
                    walk.at = Place { offset: entry.base_offset, position: u64::from(entry.position) };
                    walk.trusts_index = true;
                }
            }
            None if walk.index_wrong && !walk.grows => {
                walk.rebuilt = Some((IndexBuilder::new(), Index::empty(walk.segment)));
            }
            None => {}
        }
        self.go_on_walking(actions);
    }

    fn piece_read(&mut self, result: IoResult, actions: &mut Vec<Action>) {
        let read = match result {
            Ok(chunk) => Ok(chunk),
            Err(error) if error.kind == IoErrorKind::NotFound => {
                return self.damage_found("its file is missing", Behind::Nothing, actions);
            }
            // A sector that can't be read is often mended by being written.
            Err(error) => Err(error.detail),
        };
        let chunk = match read {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return self.damage_found("a read without bytes", Behind::Unread, actions),
            Err(what) => return self.damage_found(&what, Behind::Unread, actions),
        };
        let checked = self.check_piece(&chunk);
        let Some(walk) = &mut self.scrub.walk else { return };
        let (len, to) = (chunk.filled(), checked.to);
        let left = walk.end.position - walk.at.position;
        walk.need = 0;
        match checked.stop {
            Stop::End if left == 0 && walk.at.offset != walk.end.offset => {
                let what = format!("its batches end at {}", walk.at.offset);
                self.damage_found(&what, Behind::Nothing, actions);
            }
            Stop::End if to > 0 => self.go_on_at_pace(len, actions),
            Stop::End => self.damage_found("its file ends before it", Behind::Nothing, actions),
            Stop::Cut { .. } if len < walk.asked => {
                self.damage_found("its file ends in the middle of a batch", Behind::Nothing, actions);
            }
            Stop::Cut { need } if need as u64 > left => {
                self.damage_found("a batch is cut short", Behind::Local(&chunk, to), actions);
            }
            Stop::Cut { need } => {
                walk.need = need;
                self.go_on_at_pace(len, actions);
            }
            Stop::Broken(what) => self.damage_found(&what, Behind::Local(&chunk, to), actions),
        }
    }

    /// Checks a piece and moves the walk behind what is whole in it.
    fn check_piece(&mut self, chunk: &Rc<Chunk>) -> Checked {
        let Some(walk) = &mut self.scrub.walk else {
            return Checked { to: 0, offset: 0, stop: Stop::End };
        };
        let (begun, position) = (walk.at, walk.at.position);
        let entries = walk.index.entries();
        let (seen, wrong, rebuilt) = (&mut walk.entries_seen, &mut walk.index_wrong, &mut walk.rebuilt);
        let bytes = chunk.bytes(0, chunk.filled());
        let epochs = Epochs { known: &mut walk.epoch, of_all: walk.of_all };
        let checked = check(bytes, begun.offset, walk.end.offset, epochs, |at, head| {
            let at = position + at as u64;
            if let Some(entry) = entries.get(*seen).filter(|entry| u64::from(entry.position) <= at) {
                *wrong |= u64::from(entry.position) != at || entry.base_offset != head.base_offset;
                *seen += 1;
            }
            if let Some((builder, index)) = rebuilt
                && let Some(entry) = builder.add(at, head.base_offset, head.max_timestamp)
            {
                index.push(entry);
            }
        });
        walk.at = Place { offset: checked.offset, position: position + checked.to as u64 };
        let (group, in_pass, to) = (walk.group, walk.in_pass, walk.at.offset);
        walk.trusts_index &= to == begun.offset;
        self.counters.scrub.bytes += checked.to as u64;
        if let Some(pass) = self.scrub.pass.as_mut().filter(|_| in_pass) {
            *pass = Pass { done_bytes: pass.done_bytes + checked.to as u64, ..*pass };
        }
        if to > begun.offset {
            self.is_whole(group, begun.offset, to);
        }
        checked
    }

    /// The next piece when the pace allows it; of what somebody came upon at once.
    fn go_on_at_pace(&mut self, bytes: usize, actions: &mut Vec<Action>) {
        if !self.scrub.walk.as_ref().is_some_and(|walk| walk.in_pass) {
            return self.go_on_walking(actions);
        }
        let pause_us = (bytes as u64).saturating_mul(1_000_000) / self.config.scrub_bytes_per_s.max(1);
        self.go_on_at(self.now.monotonic_us + pause_us);
    }

    /// Everything is read: the index, where it is to be made again.
    fn check_index(&mut self, actions: &mut Vec<Action>) {
        let Some(walk) = &mut self.scrub.walk else { return };
        let behind = walk.entries_seen < walk.index.entries().len() && walk.only.is_none();
        let wrong = walk.index_wrong || behind;
        if walk.grows || walk.left_damage || !wrong {
            return self.end_walk();
        }
        let Some((_, rebuilt)) = walk.rebuilt.take() else {
            // Found on the way: once more, and this time its entries are kept.
            let (group, segment) = (walk.group, walk.segment);
            self.end_walk();
            let not_before_us = self.now.monotonic_us;
            return self.scrub.suspect(Suspect { group, segment, offset: None, not_before_us, tries: 0 });
        };
        let mut bytes = index_header(walk.segment).to_vec();
        rebuilt.entries().iter().for_each(|entry| bytes.extend_from_slice(&entry.encode()));
        let (group, segment) = (walk.group, walk.segment);
        let Some(chunk) = self.misc_pool.chunk(bytes.len()) else { return self.end_walk() };
        chunk.append(&bytes);
        let file = FileId::Index(group, segment);
        let token = self.next_token();
        let data = vec![ChunkSlice::new(chunk, 0, bytes.len())];
        if let Some(walk) = &mut self.scrub.walk {
            walk.stage = Stage::WritingIndex(token, bytes.len() as u64);
        }
        actions.push(Action::Io { token, op: IoOp::Write { file, offset: 0, data } });
    }

    fn index_written(&mut self, len: u64, result: IoResult, actions: &mut Vec<Action>) {
        let Some(walk) = &self.scrub.walk else { return };
        if result.is_err() || walk.index_bytes as u64 <= len {
            return self.index_made(result, actions);
        }
        let file = FileId::Index(walk.group, walk.segment);
        let token = self.next_token();
        if let Some(walk) = &mut self.scrub.walk {
            walk.stage = Stage::CuttingIndex(token);
        }
        actions.push(Action::Io { token, op: IoOp::Truncate { file, len } });
    }

    /// It is derived: when it can't be written reads do without it, as before.
    fn index_made(&mut self, result: IoResult, actions: &mut Vec<Action>) {
        let Some(walk) = &self.scrub.walk else { return };
        let (group, segment, was_there) = (walk.group, walk.segment, walk.index_bytes > 0);
        self.cold.forget_index(group, segment);
        let index = format!("the index of segment {segment} of partition {group}");
        let text = match result {
            Ok(_) => {
                self.counters.scrub.indexes += 1;
                format!("{index} was damaged and is made again")
            }
            Err(error) => {
                format!("{index} can't be made again: {}; reads do without it", error.detail)
            }
        };
        // A segment that came from another replica has none at first.
        if was_there {
            actions.push(Action::Log { level: LogLevel::Warn, text });
        }
        self.end_walk();
    }

    /// The walk is over; the next one begins in a moment.
    pub(super) fn end_walk(&mut self) {
        self.scrub.walk = None;
        self.await_work();
        let between_us = self.now.monotonic_us + BETWEEN_US;
        self.scrub.due_us = self.scrub.due_us.map(|due| due.max(between_us));
    }
}
