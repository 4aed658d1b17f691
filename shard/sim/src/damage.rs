//! What a lying disk may cost. The tracker reads every write on its way to the disk (from the layout in
//! `docs/storage-format.md`, with a reader of its own) and so knows which batches lie where. When the disk
//! lies, the batches whose bytes were hit are tainted: only they may be unreadable, and only if reported.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pyralog_core::limits::INDEX_INTERVAL_BYTES;
use pyralog_core::{GroupId, TopicId};
use pyralog_shard::engine::FileId;

use crate::batch;

/// Bytes of a group commit's header.
pub(crate) const COMMIT_HEADER: u64 = 96;
const FRAME_HEADER: usize = 48;
const ALIGN: u64 = 4096;
const NEW_LIFE: u8 = 4;
const NEW_TERM: u8 = 5;
const DROP_GROUP: u8 = 3;
const CONFIGURATION: u8 = 10;

/// What the simulator reads of a group commit's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitHead {
    /// Its number.
    pub lsn: u64,
    /// The life of the journal that wrote it.
    pub incarnation: u64,
    /// All commits up to this one were known durable.
    pub durable_lsn: u64,
    /// Bytes after the header.
    pub payload: u64,
    /// Its frames.
    pub frames: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The header at `position` of journal file `file`, if the bytes there are a valid one.
pub(crate) fn commit_head(bytes: &[u8], file: u32, position: u64) -> Option<CommitHead> {
    let right = bytes.get(..4)? == b"\xb7PJC"
        && u32_at(bytes, 68)? == file
        && u64_at(bytes, 48)? == position
        && u32_at(bytes, 92)? == crc32c::crc32c(bytes.get(..92)?);
    right.then_some(CommitHead {
        lsn: u64_at(bytes, 24)?,
        incarnation: u64_at(bytes, 32)?,
        durable_lsn: u64_at(bytes, 40)?,
        payload: u64::from(u32_at(bytes, 56)?),
        frames: u32_at(bytes, 60)?,
    })
}

#[derive(Clone, Debug)]
struct Frame {
    kind: u8,
    group: GroupId,
    /// Base offset of the batch; `None` for the other kinds of frames.
    batch: Option<i64>,
    /// Its checksum.
    crc: u32,
    /// The entry, of several replicas.
    index: u64,
    /// Its term.
    epoch: u32,
    range: Range<u64>,
}

#[derive(Clone, Debug)]
struct Commit {
    lsn: u64,
    range: Range<u64>,
    frames: Vec<Frame>,
}

fn frames(bytes: &[u8], position: u64, head: &CommitHead) -> Vec<Frame> {
    let mut found = Vec::new();
    let mut at = COMMIT_HEADER as usize;
    for _ in 0..head.frames {
        let (Some(&kind), Some(body), Some(topic), Some(partition), Some(base)) = (
            bytes.get(at),
            u32_at(bytes, at + 4),
            u32_at(bytes, at + 8),
            u32_at(bytes, at + 12),
            u64_at(bytes, at + 16),
        ) else {
            break;
        };
        let end = (at + FRAME_HEADER + body as usize).next_multiple_of(8);
        found.push(Frame {
            kind,
            group: GroupId { topic: TopicId(topic), partition },
            batch: (kind == 1).then_some(base as i64),
            index: u64_at(bytes, at + 32)
                .filter(|_| matches!(kind, 1 | NEW_TERM | CONFIGURATION))
                .unwrap_or(0),
            epoch: u32_at(bytes, at + 24).unwrap_or(0),
            crc: bytes.get(at + FRAME_HEADER..).and_then(batch::head).map_or(0, |head| head.crc),
            range: position + at as u64..position + end as u64,
        });
        at = end;
    }
    found
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Where a batch lies in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its group commit.
    pub lsn: u64,
    /// The life of the journal that wrote it.
    pub incarnation: u64,
    /// Checksum of the batch.
    pub crc: u32,
    /// Its entry; 0 in a group of one replica.
    pub index: u64,
    /// Term of its entry; in a group of one replica the life of the journal.
    pub epoch: u32,
}

/// A batch in a segment.
#[derive(Clone, Copy, Debug)]
struct Stored {
    len: u64,
    base: i64,
}

/// The beginning of a batch's header, of which the rest comes with the next write.
#[derive(Clone, Debug)]
struct CutHeader {
    at: u64,
    bytes: Vec<u8>,
    /// The disk lied about it.
    hit: bool,
}

/// What a crash may have cost silently: commits from `lsn` on, because no later durable point survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostTail {
    /// The first commit that may be gone.
    pub lsn: u64,
    /// A frame of the metadata group may be gone with it.
    pub metadata: bool,
}

/// Everything known about the places of batches on one shard's disk, and which of them were hit.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    commits: BTreeMap<(u32, u64), Commit>,
    places: BTreeMap<(GroupId, i64), Place>,
    /// Where entries lay, on the platter as far as the disk told, when they were laid down again or what lies before them was.
    before: BTreeMap<(GroupId, i64), Place>,
    segments: BTreeMap<(GroupId, i64), BTreeMap<u64, Stored>>,
    /// The last write of a segment ended within a batch's header.
    cut_headers: BTreeMap<(GroupId, i64), CutHeader>,
    journal_taint: BTreeSet<(GroupId, i64)>,
    segment_taint: BTreeSet<(GroupId, i64)>,
    /// Segments whose index was hit, or may have been lost with a crash: it is never flushed.
    index_suspect: BTreeSet<(GroupId, i64)>,
    /// Batches that an engine had written and did not know to be durable when it went.
    unsure: BTreeSet<(GroupId, i64)>,
    hit_lsns: BTreeSet<u64>,
    open_lsns: BTreeSet<u64>,
    first_lsn_of_life: Option<u64>,
    /// Journal files that were begun again.
    pub recycled: u64,
    /// A frame of the metadata group was hit.
    pub metadata_hit: bool,
    /// Any byte of the journal in use was hit.
    pub journal_hit: bool,
    /// Any segment was hit.
    pub segment_hit: bool,
    /// Which checkpoint slots were hit.
    pub checkpoint_hit: [bool; 2],
}

impl Tracker {
    /// Takes note of a write before it goes to the disk.
    pub(crate) fn submitted(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        match file {
            FileId::Journal(number) => self.journal_write(number, offset, bytes),
            FileId::Segment(group, base) => self.segment_write(group, base, offset, bytes),
            FileId::Index(..) | FileId::Checkpoint(_) => {}
        }
    }

    fn journal_write(&mut self, file: u32, offset: u64, bytes: &[u8]) {
        let range = offset..offset + bytes.len() as u64;
        let stale: Vec<u64> = self
            .commits
            .range((file, 0)..(file, range.end))
            .filter(|(_, commit)| overlaps(&commit.range, &range))
            .map(|((_, position), _)| *position)
            .collect();
        self.recycled += u64::from(offset == 0 && !stale.is_empty());
        for position in stale {
            if let Some(gone) = self.commits.remove(&(file, position)) {
                self.before.retain(|_, place| place.lsn != gone.lsn);
            }
        }
        let mut at = 0usize;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let position = offset + at as u64;
            let Some(head) = commit_head(rest, file, position) else { break };
            let len = (COMMIT_HEADER + head.payload).next_multiple_of(ALIGN);
            let commit = Commit {
                lsn: head.lsn,
                range: position..position + len,
                frames: frames(rest, position, &head),
            };
            if self.first_lsn_of_life.is_none() {
                // What was at and above this number is dead: its hits can cost nothing any more.
                self.first_lsn_of_life = Some(head.lsn);
                self.hit_lsns.retain(|lsn| *lsn < head.lsn);
            }
            for frame in &commit.frames {
                if frame.kind == DROP_GROUP {
                    self.left(frame.group);
                }
                self.superseded(frame.group, frame.index);
                if let Some(base) = frame.batch {
                    let place = Place {
                        lsn: head.lsn,
                        incarnation: head.incarnation,
                        crc: frame.crc,
                        index: frame.index,
                        epoch: frame.epoch,
                    };
                    self.laid((frame.group, base), place);
                    self.unsure.remove(&(frame.group, base));
                    self.journal_taint.remove(&(frame.group, base));
                }
            }
            self.open_lsns.insert(head.lsn);
            self.commits.insert((file, position), commit);
            at += len as usize;
        }
    }

    fn laid(&mut self, batch: (GroupId, i64), place: Place) {
        self.places.insert(batch, place);
        let same = |old: &Place| (old.crc, old.index, old.epoch) == (place.crc, place.index, place.epoch);
        if !self.before.get(&batch).is_some_and(same) {
            self.before.remove(&batch);
        }
    }

    /// An entry takes the place of what was at its index and behind, unless that is laid down again.
    fn superseded(&mut self, group: GroupId, index: u64) {
        if index == 0 {
            return;
        }
        let range = (group, i64::MIN)..=(group, i64::MAX);
        let behind = self.places.range(range).rev().take_while(|(_, place)| place.index >= index);
        let behind: Vec<((GroupId, i64), Place)> = behind.map(|(batch, place)| (*batch, *place)).collect();
        for (batch, place) in behind {
            if self.unsure.insert(batch) && self.claim_holds(place) {
                self.before.insert(batch, place);
            }
        }
    }

    fn segment_write(&mut self, group: GroupId, base: i64, offset: u64, bytes: &[u8]) {
        let segment = self.segments.entry((group, base)).or_default();
        // What is repaired is written in the middle.
        let mut behind = segment.split_off(&offset);
        let behind = behind.split_off(&(offset + bytes.len() as u64));
        let whole_to = segment.last_key_value().map_or(0, |(at, stored)| at + stored.len);
        // Writes end with pages: a batch may begin in the one before, and its header be cut, too.
        let cut = self.cut_headers.remove(&(group, base));
        let cut = cut.filter(|cut| cut.at + cut.bytes.len() as u64 == offset);
        let cut = cut.unwrap_or_else(|| CutHeader { at: offset, bytes: Vec::new(), hit: false });
        let joined = [&cut.bytes, bytes].concat();
        let mut at = whole_to.saturating_sub(cut.at) as usize;
        while let Some(head) = joined.get(at..).and_then(batch::head) {
            segment.insert(cut.at + at as u64, Stored { len: head.len as u64, base: head.base_offset });
            // Only what is committed goes to segments: an entry of another term was taken back.
            let batch = (group, head.base_offset);
            if self.places.get(&batch).is_some_and(|place| place.epoch != head.epoch) {
                self.places.remove(&batch);
            }
            match cut.hit && at == 0 {
                true => self.segment_taint.insert(batch),
                false => self.segment_taint.remove(&batch),
            };
            at += head.len;
        }
        if let Some(rest) = joined.get(at..).filter(|rest| (1..batch::HEADER).contains(&rest.len())) {
            let cut = CutHeader { at: cut.at + at as u64, bytes: rest.to_vec(), hit: false };
            self.cut_headers.insert((group, base), cut);
        }
        segment.extend(behind);
    }

    /// The replica has moved away: what the journal holds of it is no part of anything any more.
    pub(crate) fn left(&mut self, group: GroupId) {
        let gone = |of: &GroupId| *of != group;
        self.places.retain(|(of, _), _| gone(of));
        self.before.retain(|(of, _), _| gone(of));
        self.unsure.retain(|(of, _)| gone(of));
        self.journal_taint.retain(|(of, _)| gone(of));
    }

    /// The file is gone.
    pub(crate) fn deleted(&mut self, file: FileId) {
        if let FileId::Segment(group, base) = file {
            self.segments.remove(&(group, base));
            self.cut_headers.remove(&(group, base));
        }
    }

    /// The bytes of a journal write are on the platter, or the disk claims it.
    pub(crate) fn durable(&mut self, file: FileId, range: Range<u64>) {
        let FileId::Journal(number) = file else { return };
        for (_, commit) in self.commits.range((number, range.start)..(number, range.end)) {
            self.open_lsns.remove(&commit.lsn);
        }
    }

    /// The disk lied about a range: what lies there now may be wrong.
    pub(crate) fn hit(&mut self, file: FileId, range: Range<u64>) {
        match file {
            FileId::Journal(number) => self.hit_journal(number, &range),
            FileId::Segment(group, base) => self.hit_segment(group, base, &range),
            FileId::Checkpoint(slot) => {
                if let Some(hit) = self.checkpoint_hit.get_mut(usize::from(slot)) {
                    *hit = true;
                }
            }
            FileId::Index(group, base) => _ = self.index_suspect.insert((group, base)),
        }
    }

    fn hit_journal(&mut self, number: u32, range: &Range<u64>) {
        for (_, commit) in self.commits.range((number, 0)..(number, range.end)) {
            if !overlaps(&commit.range, range) {
                continue;
            }
            self.journal_hit = true;
            self.hit_lsns.insert(commit.lsn);
            let header = commit.range.start..commit.range.start + COMMIT_HEADER;
            // A broken commit is taken only when something behind it proves it part of the log ("Behind corruption" in
            // the format's description): where the same hit goes on behind it, the proof is gone with it.
            let all = overlaps(&header, range) || range.end > commit.range.end;
            for frame in commit.frames.iter().filter(|frame| all || overlaps(&frame.range, range)) {
                self.metadata_hit |= frame.group == GroupId::METADATA && frame.kind != NEW_LIFE;
                if let Some(base) = frame.batch {
                    self.journal_taint.insert((frame.group, base));
                }
            }
        }
    }

    fn hit_segment(&mut self, group: GroupId, base: i64, range: &Range<u64>) {
        if let Some(cut) = self.cut_headers.get_mut(&(group, base))
            && overlaps(&(cut.at..cut.at + cut.bytes.len() as u64), range)
        {
            cut.hit = true;
            self.segment_hit = true;
            self.metadata_hit |= group == GroupId::METADATA;
        }
        let Some(segment) = self.segments.get(&(group, base)) else { return };
        for (at, stored) in segment {
            if overlaps(&(*at..at + stored.len), range) {
                self.segment_hit = true;
                self.metadata_hit |= group == GroupId::METADATA;
                self.segment_taint.insert((group, stored.base));
            }
        }
    }

    /// Whether the batch's bytes were hit, in the journal or in its segment.
    pub(crate) fn tainted(&self, group: GroupId, base: i64) -> bool {
        self.journal_taint.contains(&(group, base)) || self.segment_taint.contains(&(group, base))
    }

    /// Whether the batch was not hit itself but lies behind one that was, before the next entry of the index:
    /// a reader that finds its place by walking can't get to it, since what a client wrote into a record may
    /// look like a batch. Without its index all the rest of the segment is behind.
    pub(crate) fn shadowed(&self, group: GroupId, base: i64) -> bool {
        let Some((name, segment)) = self.segments.range(..=(group, base)).next_back() else { return false };
        let indexed = !self.index_suspect.contains(name);
        let mut shadow_until = None;
        for (at, stored) in segment {
            if stored.base == base {
                return shadow_until.is_some_and(|until| *at <= until);
            }
            if self.segment_taint.contains(&(group, stored.base)) {
                let reach = if indexed { u64::from(INDEX_INTERVAL_BYTES) } else { u64::MAX / 2 };
                shadow_until = Some(at + stored.len + reach);
            }
        }
        false
    }

    /// Whether the disk has lied on this shard about anything that counts.
    pub(crate) fn lied(&self) -> bool {
        self.journal_hit || self.segment_hit || self.checkpoint_hit != [false; 2]
    }

    /// Where the batch lies in the journal, if it was written in this life or an earlier one.
    pub(crate) fn place(&self, group: GroupId, base: i64) -> Option<Place> {
        self.places.get(&(group, base)).copied()
    }

    /// The lowest offset of the group that lies in commit `lsn` or a later one.
    pub(crate) fn first_at_or_after(&self, group: GroupId, lsn: u64) -> Option<i64> {
        let range = (group, i64::MIN)..=(group, i64::MAX);
        self.places.range(range).filter(|(_, place)| place.lsn >= lsn).map(|((_, base), _)| *base).min()
    }

    /// Whether the commit and all before it are on the platter, as far as the disk told.
    pub(crate) fn claim_holds(&self, place: Place) -> bool {
        self.open_lsns.range(..=place.lsn).next().is_none()
    }

    /// The term as whose entry the batch with this checksum is in the journal and on the platter, as far as the disk told.
    pub(crate) fn journaled(&self, group: GroupId, base: i64, crc: u32) -> Option<u32> {
        let place = self.place(group, base).filter(|place| place.crc == crc)?;
        // An entry that is laid down again is where it was until its new place is there.
        (self.claim_holds(place) || self.before.contains_key(&(group, base))).then_some(place.epoch)
    }

    /// Whether a batch at this offset is in a segment.
    pub(crate) fn in_segment(&self, group: GroupId, base: i64) -> bool {
        let segment = self.segments.range((group, i64::MIN)..=(group, base)).next_back();
        segment.is_some_and(|(_, batches)| batches.values().any(|stored| stored.base == base))
    }

    /// The same, and no engine went before it knew.
    pub(crate) fn journaled_surely(&self, group: GroupId, base: i64, crc: u32) -> Option<u32> {
        let place = self.place(group, base).filter(|place| place.crc == crc && self.claim_holds(*place));
        place.filter(|_| !self.unsure.contains(&(group, base))).map(|place| place.epoch)
    }

    /// The engine is gone: whether what it wrote and never knew to be durable is there was left to chance.
    pub(crate) fn engine_gone(&mut self) {
        if let Some(first) = self.open_lsns.first().copied() {
            let open = self.places.iter().filter(|(_, place)| place.lsn >= first);
            self.unsure.extend(open.map(|(batch, _)| *batch));
        }
    }

    /// The power went.
    pub(crate) fn crashed(&mut self) {
        self.index_suspect.extend(self.segments.keys().copied());
    }

    /// A new life of the journal begins: nothing is under way.
    pub(crate) fn new_life(&mut self) {
        self.open_lsns.clear();
        self.first_lsn_of_life = None;
    }

    /// After a crash: commits that may silently be gone. `read` gives bytes of the platter.
    pub(crate) fn lost_tail(&self, mut read: impl FnMut(u32, u64, &mut [u8])) -> Option<LostTail> {
        if self.hit_lsns.is_empty() {
            return None;
        }
        let mut evidence = 0;
        for (file, position) in self.commits.keys() {
            let mut header = [0; COMMIT_HEADER as usize];
            read(*file, *position, &mut header);
            if let Some(head) = commit_head(&header, *file, *position) {
                evidence = evidence.max(head.durable_lsn);
            }
        }
        let lsn = self.hit_lsns.range(evidence + 1..).next().copied()?;
        let metadata = self.commits.values().filter(|commit| commit.lsn >= lsn).any(|commit| {
            commit.frames.iter().any(|frame| frame.group == GroupId::METADATA && frame.kind != NEW_LIFE)
        });
        Some(LostTail { lsn, metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(file: u32, position: u64, lsn: u64, durable: u64, batches: &[(u32, i64, usize)]) -> Vec<u8> {
        let mut bytes = vec![0u8; COMMIT_HEADER as usize];
        for (topic, base, len) in batches {
            let mut frame = vec![0u8; FRAME_HEADER];
            frame[0] = 1;
            frame[4..8].copy_from_slice(&(*len as u32).to_le_bytes());
            frame[8..12].copy_from_slice(&topic.to_le_bytes());
            frame[16..24].copy_from_slice(&base.to_le_bytes());
            bytes.extend_from_slice(&frame);
            bytes.resize((bytes.len() + len).next_multiple_of(8), 7);
        }
        let payload = (bytes.len() as u64 - COMMIT_HEADER) as u32;
        bytes[..4].copy_from_slice(b"\xb7PJC");
        bytes[24..32].copy_from_slice(&lsn.to_le_bytes());
        bytes[40..48].copy_from_slice(&durable.to_le_bytes());
        bytes[48..56].copy_from_slice(&position.to_le_bytes());
        bytes[56..60].copy_from_slice(&payload.to_le_bytes());
        bytes[60..64].copy_from_slice(&(batches.len() as u32).to_le_bytes());
        bytes[68..72].copy_from_slice(&file.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..92]);
        bytes[92..96].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        bytes
    }

    #[test]
    fn only_the_batches_under_the_hit_are_tainted() {
        let mut tracker = Tracker::default();
        tracker.submitted(FileId::Journal(1), 0, &commit(1, 0, 5, 4, &[(3, 10, 100), (4, 20, 100)]));
        tracker.hit(FileId::Journal(1), 96 + 40 + 104 + 50..96 + 40 + 104 + 51);
        assert!(!tracker.tainted(GroupId::new(3, 0), 10));
        assert!(tracker.tainted(GroupId::new(4, 0), 20));
        tracker.hit(FileId::Journal(1), 30..31);
        assert!(tracker.tainted(GroupId::new(3, 0), 10), "a broken header takes the whole commit along");
    }

    #[test]
    fn an_entry_of_another_term_is_not_what_a_segment_holds() {
        let (group, mut tracker) = (GroupId::new(3, 0), Tracker::default());
        let mut batch = vec![0u8; batch::HEADER];
        batch[..8].copy_from_slice(&10i64.to_be_bytes());
        batch[8..12].copy_from_slice(&(batch::HEADER as i32 - 12).to_be_bytes());
        batch[16] = 2;
        let mut write = commit(1, 0, 5, 4, &[(3, 10, batch::HEADER)]);
        let (epoch, body) = (COMMIT_HEADER as usize + 24, COMMIT_HEADER as usize + FRAME_HEADER);
        write[epoch] = 15;
        write[body..body + batch.len()].copy_from_slice(&batch);
        tracker.submitted(FileId::Journal(1), 0, &write);
        assert_eq!(tracker.journaled(group, 10, 0), None, "it is on its way");
        tracker.durable(FileId::Journal(1), 0..4096);
        assert_eq!(tracker.journaled(group, 10, 0), Some(15));
        batch[15] = 15;
        tracker.submitted(FileId::Segment(group, 10), 0, &batch);
        assert_eq!(tracker.journaled(group, 10, 0), Some(15));
        batch[15] = 16;
        tracker.submitted(FileId::Segment(group, 10), 0, &batch);
        assert_eq!(tracker.journaled(group, 10, 0), None, "what was committed is another entry");
    }

    /// The same with an entry's index and term.
    fn entry(position: u64, lsn: u64, index: u8, term: u8) -> Vec<u8> {
        let mut write = commit(1, position, lsn, 4, &[(3, i64::from(index), 9)]);
        let frame = COMMIT_HEADER as usize;
        (write[frame + 32], write[frame + 24]) = (index, term);
        write
    }

    #[test]
    fn an_entry_that_is_laid_down_again_is_where_it_was_until_it_is_there() {
        let (group, mut tracker) = (GroupId::new(3, 0), Tracker::default());
        let submit = |tracker: &mut Tracker, lsn: u64, index, term| {
            let position = (lsn - 5) * 4096;
            tracker.submitted(FileId::Journal(1), position, &entry(position, lsn, index, term));
        };
        submit(&mut tracker, 5, 10, 2);
        submit(&mut tracker, 6, 11, 2);
        assert_eq!(tracker.journaled(group, 10, 0), None, "it is on its way");
        tracker.durable(FileId::Journal(1), 0..8192);
        assert_eq!(tracker.journaled(group, 10, 0), Some(2));
        submit(&mut tracker, 7, 10, 2);
        for lsn in [8, 9] {
            submit(&mut tracker, lsn, 11, 2);
            for index in [10, 11] {
                assert_eq!(tracker.journaled(group, index, 0), Some(2), "{index} again, in commit {lsn}");
            }
        }
        assert_eq!(tracker.journaled_surely(group, 10, 0), None, "a recovery goes by the last place");
        submit(&mut tracker, 10, 10, 3);
        assert_eq!(tracker.journaled(group, 10, 0), None, "another entry");
        submit(&mut tracker, 11, 10, 3);
        assert_eq!(tracker.journaled(group, 10, 0), None, "neither of its places is there");
    }

    #[test]
    fn the_lost_tail_begins_where_no_later_durable_point_survives() {
        let mut tracker = Tracker::default();
        let writes = [commit(1, 0, 5, 4, &[(3, 10, 9)]), commit(1, 4096, 6, 4, &[(3, 11, 9)])];
        tracker.submitted(FileId::Journal(1), 0, &writes[0]);
        tracker.submitted(FileId::Journal(1), 4096, &writes[1]);
        tracker.hit(FileId::Journal(1), 0..4096);
        let platter = |_: u32, at: u64, out: &mut [u8]| match at {
            0 => out.fill(0),
            _ => out.copy_from_slice(&writes[1][..out.len()]),
        };
        assert_eq!(tracker.lost_tail(platter).unwrap().lsn, 5);
        let later = commit(1, 8192, 7, 5, &[]);
        tracker.submitted(FileId::Journal(1), 8192, &later);
        let platter = |_: u32, at: u64, out: &mut [u8]| match at {
            0 => out.fill(0),
            4096 => out.copy_from_slice(&writes[1][..out.len()]),
            _ => out.copy_from_slice(&later[..out.len()]),
        };
        assert_eq!(tracker.lost_tail(platter), None, "commit 7 proves that 5 was durable");
    }
}
