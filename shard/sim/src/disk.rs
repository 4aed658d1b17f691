//! The simulated disk of one shard: what the page cache shows, what the platter holds, and what lies between.
//!
//! A write shows at once when it completes and is on the platter only after a flush (journal writes with
//! `durable` carry their own). At a crash everything on its way is kept, lost or torn, each by itself. Creating
//! a file is durable when done; removing one is not, so that it may be back after a crash.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use pyralog_core::GroupId;
use pyralog_core::limits::JOURNAL_ALIGN;
use pyralog_shard::engine::{FileId, IoError, IoErrorKind, IoOp, IoResult};
use pyralog_shard::memory::Chunk;

use crate::damage::{LostTail, Tracker};
use crate::faults::{FaultCounts, FaultKind, FaultPlan};
use crate::pages::{PAGE, Pages};
use crate::rng::Rng;

/// The unit in which a write may be torn, bytes.
const SECTOR: u64 = 512;

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Rc<[u8]> },
    Truncate { len: u64 },
}

impl Change {
    fn range(&self) -> Range<u64> {
        match self {
            Self::Write { offset, bytes } => *offset..offset + bytes.len() as u64,
            Self::Truncate { len } => *len..u64::MAX,
        }
    }

    fn apply(&self, pages: &mut Pages) {
        match self {
            Self::Write { offset, bytes } => pages.write(*offset, bytes),
            Self::Truncate { len } => pages.set_len(*len),
        }
    }
}

#[derive(Clone, Debug)]
struct Pending {
    number: u64,
    change: Change,
}

#[derive(Clone, Debug, Default)]
struct File {
    view: Pages,
    platter: Pages,
    pending: Vec<Pending>,
}

#[derive(Debug)]
enum Fate {
    Done,
    Fails(IoErrorKind),
    Lies(FaultKind),
}

#[derive(Debug)]
struct Running {
    op: IoOp,
    fate: Fate,
    /// Changes numbered below this had completed when a flush was submitted.
    before: u64,
    /// Checksum of the bytes at submission: the engine may not touch them while they are written.
    crc: u32,
}

/// The disk of one shard.
#[derive(Debug)]
pub(crate) struct SimDisk {
    files: BTreeMap<FileId, File>,
    removed: BTreeMap<FileId, File>,
    running: BTreeMap<u64, Running>,
    unreadable: Vec<(FileId, Range<u64>)>,
    next_op: u64,
    next_change: u64,
    rng: Rng,
    /// Set while the disk is full.
    pub full: bool,
    /// Which faults strike.
    pub plan: FaultPlan,
    /// Which did.
    pub counts: FaultCounts,
    /// What lies where and what was hit.
    pub tracker: Tracker,
    /// A promise that the engine broke towards its disk.
    pub broken_promise: Option<String>,
    /// Notes about faults, for the trace.
    pub notes: Vec<String>,
}

fn gather(op: &IoOp) -> Vec<u8> {
    match op {
        IoOp::JournalWrite { data, .. } => data.bytes().to_vec(),
        IoOp::Write { data, .. } => {
            let mut bytes = Vec::with_capacity(data.iter().map(|slice| slice.len()).sum());
            data.iter().for_each(|slice| bytes.extend_from_slice(slice.bytes()));
            bytes
        }
        _ => Vec::new(),
    }
}

fn checksum(op: &IoOp) -> u32 {
    match op {
        IoOp::JournalWrite { data, .. } => crc32c::crc32c(data.bytes()),
        IoOp::Write { data, .. } => {
            data.iter().fold(0, |crc, slice| crc32c::crc32c_append(crc, slice.bytes()))
        }
        _ => 0,
    }
}

/// The operation in a few words, the same in every run.
pub(crate) fn describe(op: &IoOp) -> String {
    match op {
        IoOp::JournalWrite { file, offset, data, durable } => {
            format!("journal write {file:?} {offset}+{} durable {durable}", data.len())
        }
        IoOp::Write { file, offset, data } => {
            format!("write {file:?} {offset}+{}", data.iter().map(|slice| slice.len()).sum::<usize>())
        }
        IoOp::Read { file, offset, len, .. } => format!("read {file:?} {offset}+{len}"),
        other => format!("{other:?}"),
    }
}

fn target(op: &IoOp) -> Option<FileId> {
    match op {
        IoOp::JournalWrite { file, .. }
        | IoOp::Write { file, .. }
        | IoOp::Sync { file }
        | IoOp::CreateZeroed { file, .. }
        | IoOp::Read { file, .. }
        | IoOp::Truncate { file, .. }
        | IoOp::Delete { file } => Some(*file),
        IoOp::DeleteGroup { .. } => None,
    }
}

fn error(kind: IoErrorKind, what: &str, file: FileId) -> IoError {
    IoError { kind, detail: format!("simulated: {what} of {file:?}") }
}

/// Where in its memory what is read begins when a disk reads it directly, as it does segments: as far behind the start as the
/// place in the file lies behind a block's.
fn origin(file: FileId, offset: u64, into: &Chunk) -> Option<usize> {
    let direct = matches!(file, FileId::Segment(..)) && into.direct_room().is_some();
    direct.then_some((offset % JOURNAL_ALIGN as u64) as usize)
}

/// Around what is wanted a direct read brings whatever is there.
fn rubbish(memory: &mut [u8], from: usize, len: usize) {
    let end = (from + len).next_multiple_of(JOURNAL_ALIGN).min(memory.len());
    if let Some(read) = memory.get_mut(..end) {
        let (before, rest) = read.split_at_mut(from.min(end));
        before.fill(0xa5);
        if let Some(behind) = rest.get_mut(len..) {
            behind.fill(0xa5);
        }
    }
}

fn in_group(file: FileId, wanted: GroupId) -> bool {
    matches!(file, FileId::Segment(group, _) | FileId::Index(group, _) if group == wanted)
}

impl SimDisk {
    /// An empty disk.
    pub(crate) fn new(rng: Rng, plan: FaultPlan) -> Self {
        Self {
            files: BTreeMap::new(),
            removed: BTreeMap::new(),
            running: BTreeMap::new(),
            unreadable: Vec::new(),
            next_op: 0,
            next_change: 0,
            rng,
            full: false,
            plan,
            counts: FaultCounts::default(),
            tracker: Tracker::default(),
            broken_promise: None,
            notes: Vec::new(),
        }
    }

    /// Operations under way.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    fn strike(&mut self, kind: FaultKind, what: impl FnOnce() -> String) {
        self.counts.add(kind);
        self.notes.push(format!("fault {}: {}", kind.name(), what()));
    }

    fn may_lie(&mut self, rate: u64) -> bool {
        let lies = self.plan.lies_left > 0 && self.rng.one_in(rate);
        if lies {
            self.plan.lies_left -= 1;
        }
        lies
    }

    // ---- operations of a serving engine ----

    /// Takes an operation; returns its number and how long it takes, microseconds.
    pub(crate) fn submit(&mut self, op: IoOp) -> (u64, u64) {
        self.check_promises(&op);
        let fate = self.fate(&op);
        if let (Some(file), bytes @ [_, ..]) = (target(&op), gather(&op).as_slice()) {
            let offset = match &op {
                IoOp::JournalWrite { offset, .. } | IoOp::Write { offset, .. } => *offset,
                _ => 0,
            };
            self.tracker.submitted(file, offset, bytes);
        }
        let mut delay = match &op {
            IoOp::JournalWrite { data, .. } => self.rng.range(60, 250) + data.len() as u64 / 2048,
            IoOp::Write { .. } | IoOp::Truncate { .. } => self.rng.range(15, 150),
            IoOp::Sync { .. } => self.rng.range(150, 2500),
            IoOp::CreateZeroed { .. } => self.rng.range(500, 6000),
            IoOp::Read { .. } => self.rng.range(40, 400),
            IoOp::Delete { .. } | IoOp::DeleteGroup { .. } => self.rng.range(20, 300),
        };
        if self.rng.one_in(self.plan.stall) {
            delay += self.rng.magnitude(2_000, 800_000);
            self.counts.add(FaultKind::Stall);
        }
        let number = self.next_op;
        self.next_op += 1;
        let crc = checksum(&op);
        self.running.insert(number, Running { op, fate, before: self.next_change, crc });
        (number, delay)
    }

    fn check_promises(&mut self, op: &IoOp) {
        if let IoOp::JournalWrite { file, offset, data, .. } = op {
            let align = PAGE as u64;
            let aligned = offset.is_multiple_of(align)
                && data.len().is_multiple_of(PAGE)
                && data.offset().is_multiple_of(PAGE);
            let len = self.files.get(file).map_or(0, |file| file.view.len());
            if !aligned || data.is_empty() || offset + data.len() as u64 > len {
                self.broken_promise = Some(format!(
                    "journal write of {} bytes at {offset} of {file:?} ({len} bytes) is not aligned or not inside",
                    data.len()
                ));
            }
            let range = *offset..offset + data.len() as u64;
            let clash = self.running.values().any(|other| match &other.op {
                IoOp::JournalWrite { file: theirs, offset, data, .. } => {
                    theirs == file && *offset < range.end && range.start < offset + data.len() as u64
                }
                _ => false,
            });
            if clash {
                self.broken_promise = Some(format!("two journal writes at once at {offset} of {file:?}"));
            }
        }
    }

    fn fate(&mut self, op: &IoOp) -> Fate {
        let grows = match op {
            IoOp::Write { file, offset, data } => {
                let end = offset + data.iter().map(|slice| slice.len() as u64).sum::<u64>();
                self.files.get(file).is_none_or(|file| file.view.len() < end)
            }
            IoOp::CreateZeroed { .. } => true,
            _ => false,
        };
        if grows && self.full {
            self.strike(FaultKind::NoSpace, || describe(op));
            return Fate::Fails(IoErrorKind::NoSpace);
        }
        let (error_rate, kind) = match op {
            IoOp::JournalWrite { .. } | IoOp::Write { .. } | IoOp::CreateZeroed { .. } => {
                (self.plan.write_error, FaultKind::WriteError)
            }
            IoOp::Truncate { .. } => (self.plan.write_error, FaultKind::WriteError),
            IoOp::Sync { .. } => (self.plan.sync_error, FaultKind::SyncError),
            IoOp::Read { .. } => (self.plan.read_error, FaultKind::ReadError),
            IoOp::Delete { .. } | IoOp::DeleteGroup { .. } => (0, FaultKind::WriteError),
        };
        if self.rng.one_in(error_rate) {
            self.strike(kind, || describe(op));
            // In the journal what lasts is damage, which a disk that does not lie has not: bit rot stands for it.
            if let (IoOp::Read { file, offset, .. }, true) = (op, self.plan.read_error_lasts)
                && !matches!(file, FileId::Journal(_))
            {
                let start = offset / PAGE as u64 * PAGE as u64;
                self.unreadable.push((*file, start..start + PAGE as u64));
            }
            return Fate::Fails(IoErrorKind::Other);
        }
        let flushes = matches!(op, IoOp::JournalWrite { durable: true, .. } | IoOp::Sync { .. });
        if flushes && self.may_lie(self.plan.lost) {
            return Fate::Lies(FaultKind::LostWrite);
        }
        let writes = matches!(op, IoOp::JournalWrite { .. } | IoOp::Write { .. });
        if writes && self.may_lie(self.plan.misdirected) {
            return Fate::Lies(FaultKind::MisdirectedWrite);
        }
        Fate::Done
    }

    /// Ends an operation.
    pub(crate) fn complete(&mut self, number: u64) -> IoResult {
        let Some(Running { op, fate, before, crc }) = self.running.remove(&number) else {
            return Err(IoError { kind: IoErrorKind::Other, detail: "no such operation".into() });
        };
        if checksum(&op) != crc {
            self.broken_promise =
                Some(format!("bytes changed while they were being written: {}", describe(&op)));
        }
        match op {
            IoOp::JournalWrite { file, offset, data, durable } => {
                self.write(file, offset, data.bytes(), durable, &fate)?;
            }
            IoOp::Write { file, offset, ref data } => {
                let bytes = match data.as_slice() {
                    [one] => one.bytes().to_vec(),
                    _ => gather(&op),
                };
                self.files.entry(file).or_default();
                self.removed.remove(&file);
                self.write(file, offset, &bytes, false, &fate)?;
            }
            IoOp::Sync { file } => self.flush(file, before, &fate)?,
            IoOp::CreateZeroed { file, len } => self.create(file, len, &fate)?,
            IoOp::Truncate { file, len } => self.cut(file, len, &fate)?,
            IoOp::Delete { file } => self.remove(file),
            IoOp::DeleteGroup { group } => self.remove_group(group),
            IoOp::Read { file, offset, len, mut into } => {
                if let Fate::Fails(kind) = fate {
                    return Err(error(kind, "read", file));
                }
                let origin = origin(file, offset, &into);
                let Some(buffer) = into.unfilled_mut().and_then(|memory| {
                    if let Some(origin) = origin {
                        rubbish(memory, origin, len);
                    }
                    memory.get_mut(origin.unwrap_or(0)..)?.get_mut(..len)
                }) else {
                    self.broken_promise =
                        Some(format!("the chunk of a read of {file:?} is shared or too small"));
                    return Err(error(IoErrorKind::Other, "read", file));
                };
                let len = self.read(file, offset, buffer)?;
                into.set_read(origin.unwrap_or(0), len);
                return Ok(Some(into));
            }
        }
        Ok(None)
    }

    fn write(
        &mut self,
        id: FileId,
        offset: u64,
        bytes: &[u8],
        durable: bool,
        fate: &Fate,
    ) -> Result<(), IoError> {
        let range = offset..offset + bytes.len() as u64;
        match fate {
            Fate::Fails(kind) => {
                self.partial(id, offset, bytes, *kind);
                return Err(error(*kind, "write", id));
            }
            Fate::Lies(FaultKind::MisdirectedWrite) => {
                if self.misdirect(id, &range, bytes, durable) {
                    return Ok(());
                }
            }
            Fate::Lies(kind) => {
                self.strike(*kind, || format!("{id:?} {range:?}"));
                self.tracker.hit(id, range.clone());
                self.tracker.durable(id, range);
                if let Some(file) = self.files.get_mut(&id) {
                    file.view.write(offset, bytes);
                }
                return Ok(());
            }
            Fate::Done => {}
        }
        self.readable_again(id, &range);
        let Some(file) = self.files.get_mut(&id) else {
            return Err(error(IoErrorKind::NotFound, "write", id));
        };
        file.view.write(offset, bytes);
        if durable {
            file.pending.retain(|pending| !crosses(&pending.change.range(), &range));
            if offset.is_multiple_of(PAGE as u64) && bytes.len().is_multiple_of(PAGE) {
                let view = &file.view;
                file.platter.share(view, offset, bytes.len() as u64);
            } else {
                file.platter.write(offset, bytes);
            }
            self.tracker.durable(id, range);
        } else {
            let number = self.next_change;
            self.next_change += 1;
            file.pending.push(Pending { number, change: Change::Write { offset, bytes: bytes.into() } });
        }
        Ok(())
    }

    /// A failed write: each sector arrived, or sits in the drive's memory, or neither.
    fn partial(&mut self, id: FileId, offset: u64, bytes: &[u8], kind: IoErrorKind) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if kind == IoErrorKind::NoSpace {
            let keep = self.rng.below(bytes.len() as u64 + 1) as usize;
            let keep = if self.rng.percent(50) { 0 } else { keep };
            let number = self.next_change;
            self.next_change += 1;
            if let Some(bytes) = bytes.get(..keep).filter(|bytes| !bytes.is_empty()) {
                file.view.write(offset, bytes);
                file.pending.push(Pending { number, change: Change::Write { offset, bytes: bytes.into() } });
            }
            return;
        }
        let (show, arrive) = (self.rng.below(101), self.rng.below(101));
        for piece in pieces(offset, bytes) {
            let arrives = self.rng.percent(arrive);
            if !arrives && !self.rng.percent(show) {
                continue;
            }
            piece.apply(&mut file.view);
            if arrives {
                piece.apply(&mut file.platter);
            } else {
                let number = self.next_change;
                self.next_change += 1;
                file.pending.push(Pending { number, change: piece });
            }
        }
    }

    /// Lands `bytes` elsewhere. False when there is no other place.
    fn misdirect(&mut self, from: FileId, range: &Range<u64>, bytes: &[u8], durable: bool) -> bool {
        let targets: Vec<FileId> = self
            .files
            .iter()
            .filter(|(id, file)| {
                // Batches do not name their partition, so that one partition's batches at the same offsets in
                // another one's segment can't be told from its own; a segment write lands anywhere else.
                let foreign = |id: &FileId| matches!(id, FileId::Segment(..)) && *id != from;
                let confusing = matches!(from, FileId::Segment(..)) && foreign(id);
                matches!(id, FileId::Journal(_) | FileId::Segment(..))
                    && file.platter.len() >= PAGE as u64
                    && !confusing
            })
            .map(|(id, _)| *id)
            .collect();
        if targets.is_empty() {
            return false;
        }
        let target =
            if self.rng.percent(50) && targets.contains(&from) { from } else { self.rng.pick(&targets) };
        let Some(file) = self.files.get_mut(&target) else { return false };
        let page = PAGE as u64;
        // Places that were written are the interesting ones.
        let written = file.platter.written_pages();
        let mut at = self.rng.below(file.platter.len() / page) * page;
        if !written.is_empty() && self.rng.percent(70) {
            at = (self.rng.pick(&written) as u64 * page)
                .min(file.platter.len().saturating_sub(1) / page * page);
        }
        if target == from && at == range.start / page * page {
            return false;
        }
        let len = (bytes.len() as u64).min(file.platter.len() - at) as usize;
        let bytes = &bytes[..len];
        file.view.write(at, bytes);
        file.platter.write(at, bytes);
        let landed = at..at + len as u64;
        self.strike(FaultKind::MisdirectedWrite, || {
            format!("{from:?} {range:?} landed at {target:?} {landed:?}")
        });
        self.tracker.hit(from, range.clone());
        self.tracker.hit(target, landed);
        if durable {
            self.tracker.durable(from, range.clone());
        } else if let Some(file) = self.files.get_mut(&from) {
            // The file's length grows as if the bytes had come.
            let len = file.view.len().max(range.end);
            file.view.set_len(len);
        }
        true
    }

    fn flush(&mut self, id: FileId, before: u64, fate: &Fate) -> Result<(), IoError> {
        let Some(file) = self.files.get_mut(&id) else {
            return Err(error(IoErrorKind::NotFound, "flush", id));
        };
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut file.pending).into_iter().partition(|pending| pending.number < before);
        file.pending = later;
        match fate {
            Fate::Fails(kind) => {
                // As on Linux: the pages of the cache are marked clean, whether or not they arrived, and the
                // next flush that succeeds says nothing about them. The journal goes round the cache: what a
                // failed flush left in the drive's memory is still there for the next one.
                let mut left = Vec::new();
                for pending in now {
                    if self.rng.percent(30) {
                        pending.change.apply(&mut file.platter);
                    } else if matches!(id, FileId::Journal(_)) {
                        left.push(pending);
                    }
                }
                left.append(&mut file.pending);
                file.pending = left;
                return Err(error(*kind, "flush", id));
            }
            Fate::Lies(kind) if !now.is_empty() => {
                let ranges: Vec<_> = now.iter().map(|pending| pending.change.range()).collect();
                self.strike(*kind, || format!("flush of {id:?} with {} changes", now.len()));
                for range in ranges {
                    self.tracker.hit(id, range.clone());
                    self.tracker.durable(id, range);
                }
            }
            _ => {
                for pending in &now {
                    pending.change.apply(&mut file.platter);
                    self.tracker.durable(id, pending.change.range());
                }
            }
        }
        Ok(())
    }

    fn create(&mut self, id: FileId, len: u64, fate: &Fate) -> Result<(), IoError> {
        if let Fate::Fails(kind) = fate {
            if self.rng.percent(50) {
                let len = self.rng.below(len / PAGE as u64 + 1) * PAGE as u64;
                let zeros = Pages::zeros(len);
                let file = File { view: zeros.clone(), platter: zeros, pending: Vec::new() };
                self.files.entry(id).or_insert(file);
            }
            return Err(error(*kind, "creation", id));
        }
        self.removed.remove(&id);
        let zeros = Pages::zeros(len);
        self.readable_again(id, &(0..len));
        self.files.insert(id, File { view: zeros.clone(), platter: zeros, pending: Vec::new() });
        Ok(())
    }

    fn cut(&mut self, id: FileId, len: u64, fate: &Fate) -> Result<(), IoError> {
        if let Fate::Fails(kind) = fate {
            return Err(error(*kind, "truncation", id));
        }
        let Some(file) = self.files.get_mut(&id) else {
            return Err(error(IoErrorKind::NotFound, "truncation", id));
        };
        file.view.set_len(len);
        let number = self.next_change;
        self.next_change += 1;
        file.pending.push(Pending { number, change: Change::Truncate { len } });
        Ok(())
    }

    fn remove(&mut self, id: FileId) {
        if let Some(file) = self.files.remove(&id) {
            self.removed.insert(id, file);
            self.tracker.deleted(id);
        }
    }

    fn remove_group(&mut self, group: GroupId) {
        let gone: Vec<FileId> = self.files.keys().filter(|id| in_group(**id, group)).copied().collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    fn read(&mut self, id: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, IoError> {
        let range = offset..offset + buffer.len() as u64;
        if self.unreadable.iter().any(|(file, bad)| *file == id && crosses(bad, &range)) {
            self.counts.add(FaultKind::ReadError);
            return Err(error(IoErrorKind::Other, "read", id));
        }
        match self.files.get(&id) {
            Some(file) => Ok(file.view.read(offset, buffer)),
            None => Err(error(IoErrorKind::NotFound, "read", id)),
        }
    }

    fn readable_again(&mut self, id: FileId, range: &Range<u64>) {
        self.unreadable.retain(|(file, bad)| *file != id || !crosses(bad, range));
    }

    // ---- faults from outside ----

    /// Ends all faults and heals places that could not be read. What the disk lied about stays.
    pub(crate) fn faults_off(&mut self) {
        self.plan = FaultPlan::none();
        self.full = false;
        self.unreadable.clear();
    }

    /// Flips one bit of one file.
    pub(crate) fn rot(&mut self) {
        if self.plan.lies_left == 0 {
            return;
        }
        let files: Vec<FileId> =
            self.files.iter().filter(|(_, file)| !file.platter.is_empty()).map(|(id, _)| *id).collect();
        let kinds = [0, 1, 2, 3].map(|kind| {
            let of_kind = |id: &&FileId| match id {
                FileId::Journal(_) => kind == 0,
                FileId::Segment(..) => kind == 1,
                FileId::Index(..) => kind == 2,
                FileId::Checkpoint(_) => kind == 3,
            };
            files.iter().filter(of_kind).copied().collect::<Vec<_>>()
        });
        let kind = match self.rng.below(10) {
            0..5 => 0,
            5..8 => 1,
            8 => 2,
            _ => 3,
        };
        let Some(candidates) = kinds.get(kind).filter(|files| !files.is_empty()) else { return };
        let id = self.rng.pick(candidates);
        let Some(file) = self.files.get_mut(&id) else { return };
        let written = file.platter.written_pages();
        if written.is_empty() {
            return;
        }
        let page = self.rng.pick(&written) as u64;
        let offset = (page * PAGE as u64 + self.rng.below(PAGE as u64)).min(file.platter.len() - 1);
        let bit = self.rng.below(8) as u8;
        file.platter.flip(offset, bit);
        file.view.flip(offset, bit);
        self.plan.lies_left -= 1;
        self.strike(FaultKind::BitRot, || format!("{id:?} byte {offset} bit {bit}"));
        self.tracker.hit(id, offset..offset + 1);
    }

    /// The power goes: everything on its way is kept, lost or torn. Says what a lying disk may have cost.
    pub(crate) fn crash(&mut self) -> Option<LostTail> {
        for (_, running) in std::mem::take(&mut self.running) {
            self.interrupt(running);
        }
        let torn = self.plan.torn;
        for file in self.files.values_mut() {
            for pending in std::mem::take(&mut file.pending) {
                settle(&mut self.rng, &mut self.counts, torn, &pending.change, &mut file.platter);
            }
            file.view = file.platter.clone();
        }
        for (id, mut file) in std::mem::take(&mut self.removed) {
            if self.rng.percent(40) && !self.files.contains_key(&id) {
                file.view = file.platter.clone();
                file.pending.clear();
                self.files.insert(id, file);
            }
        }
        self.tracker.crashed();
        self.lost_tail()
    }

    /// What a lying disk may have cost, as the journal is now.
    pub(crate) fn lost_tail(&self) -> Option<LostTail> {
        self.tracker.lost_tail(|number, position, out| {
            if let Some(file) = self.files.get(&FileId::Journal(number)) {
                file.platter.read(position, out);
            }
        })
    }

    fn interrupt(&mut self, running: Running) {
        let Running { op, .. } = running;
        let bytes = gather(&op);
        match op {
            IoOp::JournalWrite { file, offset, .. } | IoOp::Write { file, offset, .. } => {
                let creates = matches!(op, IoOp::Write { .. });
                if creates && !self.files.contains_key(&file) && self.rng.percent(50) {
                    self.files.insert(file, File::default());
                }
                if let Some(file) = self.files.get_mut(&file) {
                    let change = Change::Write { offset, bytes: bytes.into() };
                    settle(&mut self.rng, &mut self.counts, self.plan.torn, &change, &mut file.platter);
                }
            }
            IoOp::CreateZeroed { file, len } => {
                if self.rng.percent(50) {
                    let share = self.rng.below(len / PAGE as u64 + 1) * PAGE as u64;
                    let zeros = Pages::zeros(if self.rng.percent(50) { len } else { share });
                    let new = File { view: zeros.clone(), platter: zeros, pending: Vec::new() };
                    self.files.entry(file).or_insert(new);
                }
            }
            IoOp::Truncate { file, len } => {
                if self.rng.percent(50)
                    && let Some(file) = self.files.get_mut(&file)
                {
                    file.platter.set_len(len);
                }
            }
            IoOp::Delete { file } => {
                if self.rng.percent(50) {
                    self.remove(file);
                }
            }
            IoOp::DeleteGroup { group } => {
                let files: Vec<FileId> =
                    self.files.keys().filter(|id| in_group(**id, group)).copied().collect();
                for file in files {
                    if self.rng.percent(50) {
                        self.remove(file);
                    }
                }
            }
            IoOp::Sync { .. } | IoOp::Read { .. } => {}
        }
    }

    // ---- recovery's blocking calls ----

    /// Every file with its length.
    pub(crate) fn list(&self) -> Vec<(FileId, u64)> {
        self.files.iter().map(|(id, file)| (*id, file.view.len())).collect()
    }

    /// A read by recovery, with the chance to fail.
    pub(crate) fn recovery_read(
        &mut self,
        id: FileId,
        offset: u64,
        out: &mut [u8],
    ) -> Result<usize, IoError> {
        if self.rng.one_in(self.plan.read_error.saturating_mul(5)) {
            self.strike(FaultKind::ReadError, || format!("recovery's read of {id:?}"));
            return Err(error(IoErrorKind::Other, "read", id));
        }
        self.read(id, offset, out)
    }

    /// A write by recovery, with the chance to fail.
    pub(crate) fn recovery_write(&mut self, id: FileId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let grows = self.files.get(&id).is_none_or(|file| file.view.len() < offset + bytes.len() as u64);
        let mut fate = Fate::Done;
        if grows && self.full {
            self.strike(FaultKind::NoSpace, || format!("recovery's write of {id:?}"));
            fate = Fate::Fails(IoErrorKind::NoSpace);
        } else if self.rng.one_in(self.plan.write_error) {
            self.strike(FaultKind::WriteError, || format!("recovery's write of {id:?}"));
            fate = Fate::Fails(IoErrorKind::Other);
        }
        self.tracker.submitted(id, offset, bytes);
        self.files.entry(id).or_default();
        self.removed.remove(&id);
        self.write(id, offset, bytes, false, &fate)
    }

    /// A flush by recovery, with the chance to fail or to lie.
    pub(crate) fn recovery_sync(&mut self, id: FileId) -> Result<(), IoError> {
        let mut fate = Fate::Done;
        if self.rng.one_in(self.plan.sync_error) {
            self.strike(FaultKind::SyncError, || format!("recovery's flush of {id:?}"));
            fate = Fate::Fails(IoErrorKind::Other);
        } else if self.may_lie(self.plan.lost) {
            fate = Fate::Lies(FaultKind::LostWrite);
        }
        self.flush(id, u64::MAX, &fate)
    }

    /// Creates a file of zeros for recovery.
    pub(crate) fn recovery_create(&mut self, id: FileId, len: u64) -> Result<(), IoError> {
        let fate = if self.full { Fate::Fails(IoErrorKind::NoSpace) } else { Fate::Done };
        self.create(id, len, &fate)
    }

    /// Cuts a file for recovery.
    pub(crate) fn recovery_truncate(&mut self, id: FileId, len: u64) -> Result<(), IoError> {
        self.cut(id, len, &Fate::Done)
    }

    /// Removes a file for recovery.
    pub(crate) fn recovery_delete(&mut self, id: FileId) {
        self.remove(id);
    }

    /// Removes a group's files for recovery.
    pub(crate) fn recovery_delete_group(&mut self, group: GroupId) {
        self.remove_group(group);
    }

    /// Chance of the disk's own generator: after how many of recovery's calls the power goes.
    pub(crate) fn draw_interruption(&mut self) -> Option<u64> {
        let strikes = self.rng.percent(self.plan.crash_in_recovery_percent);
        strikes.then(|| self.rng.magnitude(1, 400))
    }
}

fn crosses(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn pieces(offset: u64, bytes: &[u8]) -> impl Iterator<Item = Change> + '_ {
    let first = (SECTOR - offset % SECTOR) as usize;
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    let mut at = offset;
    std::iter::once(head).chain(rest.chunks(SECTOR as usize)).filter(|piece| !piece.is_empty()).map(
        move |piece| {
            let change = Change::Write { offset: at, bytes: piece.into() };
            at += piece.len() as u64;
            change
        },
    )
}

/// One change on its way at a crash: kept, lost, or torn.
fn settle(rng: &mut Rng, counts: &mut FaultCounts, torn: bool, change: &Change, platter: &mut Pages) {
    match rng.below(if torn { 4 } else { 2 }) {
        0 => {}
        1 => change.apply(platter),
        _ => match change {
            Change::Write { offset, bytes } => {
                counts.add(FaultKind::TornWrite);
                // Either a prefix, as a drive writes in order, or any subset.
                let sectors = bytes.len() as u64 / SECTOR + 2;
                let prefix = rng.percent(50).then(|| rng.below(sectors));
                let share = rng.below(101);
                for (index, piece) in pieces(*offset, bytes).enumerate() {
                    let arrives = match prefix {
                        Some(prefix) => (index as u64) < prefix,
                        None => rng.percent(share),
                    };
                    if arrives {
                        piece.apply(platter);
                    }
                }
            }
            Change::Truncate { .. } => change.apply(platter),
        },
    }
}
