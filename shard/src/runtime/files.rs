//! Carries out the engine's file operations. Data moves through the shard's ring; what may block for long
//! (opening, creating, cutting, removing) is done by two helper threads, so the shard never waits for a disk.
//!
//! Journal writes are one entry each: O_DIRECT with RWF_DSYNC, no kernel worker and no separate flush. Buffered
//! segment writes and their flushes run in the kernel's workers beside them. Segments are written with RWF_DONTCACHE
//! where the file system knows it (Linux 6.14 and newer): the kernel begins to write them at once and takes the same
//! pages again for the next ones. What was just written is in the cache of the shard, and needs no second copy. They are
//! read directly into the memory that replies are sent from, in pieces (`segment_reads`).
//!
//! Owner: the shard's thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use hdrhistogram::Histogram;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};
use pyralog_core::limits::JOURNAL_ALIGN;

use super::files_helper::{Helpers, Job, JobDone, OpenMode};
use super::paths::{Paths, io_error};
use super::ring::Ring;
use super::segment_reads::{JournalWritten, SegmentReads};
use super::wake::Waker;
use crate::engine::{FileId, IoError, IoOp, IoResult, IoToken};
use crate::memory::{Chunk, ChunkSlice};

/// Most entries of a gather list that the kernel takes at once.
const MAX_IOVECS: usize = 1024;

/// An operation on its way through the ring, owning its buffers.
#[derive(Debug)]
pub struct FileIo {
    token: IoToken,
    file: FileId,
    fd: Rc<OwnedFd>,
    offset: u64,
    done: usize,
    started_us: u64,
    kind: Kind,
    /// Written with RWF_DONTCACHE.
    uncached: bool,
}

#[derive(Debug)]
enum Kind {
    Journal {
        data: ChunkSlice,
        durable: bool,
    },
    Write {
        data: Vec<ChunkSlice>,
        total: usize,
        iovecs: Vec<libc::iovec>,
    },
    Read {
        chunk: Rc<Chunk>,
        len: usize,
    },
    /// Of a segment. `offset` lies `before` bytes before what is wanted, `span` bytes are asked for in pieces; both as direct
    /// reads need it.
    DirectRead {
        chunk: Rc<Chunk>,
        len: usize,
        before: usize,
        span: usize,
        piece: usize,
    },
    Sync,
}

/// An operation that waits for its file to be opened.
#[derive(Debug)]
struct Waiting {
    token: IoToken,
    offset: u64,
    started_us: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Handle {
    Open {
        fd: Rc<OwnedFd>,
        used: u64,
        unsynced: bool,
    },
    /// Being opened under this number.
    Opening(u64),
}

/// A file as it is open: segments are written through the kernel's cache and read past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Opened {
    file: FileId,
    direct_read: bool,
}

/// A file that a helper is opening. It is no longer in `handles` when it was removed meanwhile: then it serves
/// those who waited before and is not kept.
#[derive(Debug)]
struct Opening {
    opened: Opened,
    waiting: Vec<Waiting>,
    create: bool,
    /// Open jobs on their way.
    jobs: u32,
}

/// The files of one shard.
#[derive(Debug)]
pub struct Files {
    paths: Paths,
    handles: HashMap<Opened, Handle, ahash::RandomState>,
    opening: HashMap<u64, Opening, ahash::RandomState>,
    max_handles: usize,
    use_counter: u64,
    helpers: Helpers,
    /// Jobs with the helpers whose end answers an operation.
    jobs: u64,
    in_ring: u64,
    syncs: u64,
    reads: SegmentReads<Box<FileIo>>,
    /// The shard's time when it last called.
    now_us: u64,
    finished: Vec<(IoToken, IoResult)>,
    journal_latency_us: Histogram<u64>,
    /// Segments are written with RWF_DONTCACHE, until the file system says that it doesn't know it.
    uncached: bool,
    /// Segments are read directly, until the disk says that it can't.
    direct: bool,
}

impl Files {
    /// Files below `paths`, of which at most about `max_handles` are kept open (journal files not counted).
    /// `waker` is called when a helper is done; `written` is the node's.
    pub(super) fn new(
        paths: Paths,
        max_handles: usize,
        waker: Waker,
        written: JournalWritten,
    ) -> io::Result<Self> {
        let journal_latency_us = Histogram::new_with_bounds(1, 60_000_000, 3).map_err(io::Error::other)?;
        Ok(Self {
            helpers: Helpers::start(paths.clone(), waker)?,
            paths,
            handles: HashMap::default(),
            opening: HashMap::default(),
            max_handles: max_handles.max(8),
            use_counter: 0,
            jobs: 0,
            in_ring: 0,
            syncs: 0,
            reads: SegmentReads::new(written),
            now_us: 0,
            finished: Vec::new(),
            journal_latency_us,
            uncached: true,
            direct: true,
        })
    }

    /// Begins an operation. Its end comes out of [`Self::take_finished`].
    pub fn start<T: From<Box<FileIo>>>(&mut self, ring: &mut Ring<T>, token: IoToken, op: IoOp, now_us: u64) {
        self.now_us = now_us;
        let started_us = now_us;
        let (file, waiting, create) = match op {
            IoOp::JournalWrite { file, offset, data, durable } => {
                (file, Waiting { token, offset, started_us, kind: Kind::Journal { data, durable } }, false)
            }
            IoOp::Write { file, offset, data } => {
                let total = data.iter().map(ChunkSlice::len).sum();
                let kind = Kind::Write { data, total, iovecs: Vec::new() };
                (file, Waiting { token, offset, started_us, kind }, true)
            }
            IoOp::Sync { file } => {
                self.syncs += 1;
                (file, Waiting { token, offset: 0, started_us, kind: Kind::Sync }, false)
            }
            IoOp::Read { file, offset, len, into } => {
                into.set_filled(0);
                let len = len.min(into.capacity());
                let (offset, kind) = match self.direct {
                    true => reading(file, offset, len, into),
                    false => (offset, Kind::Read { chunk: into, len }),
                };
                (file, Waiting { token, offset, started_us, kind }, false)
            }
            IoOp::CreateZeroed { file, len } => {
                let close = self.forget(file);
                return self.helper(Job::CreateZeroed { token, file, len, close });
            }
            IoOp::Truncate { file, len } => return self.helper(Job::Truncate { token, file, len }),
            IoOp::Delete { file } => {
                let close = self.forget(file);
                return self.helper(Job::Delete { token, file, close });
            }
            IoOp::DeleteGroup { group } => {
                let of_group = |file: &FileId| matches!(file, FileId::Segment(owner, _) | FileId::Index(owner, _) if *owner == group);
                let files: Vec<FileId> =
                    self.handles.keys().map(|opened| opened.file).filter(of_group).collect();
                let close = files.into_iter().flat_map(|file| self.forget(file)).collect();
                return self.helper(Job::DeleteGroup { token, group, close });
            }
        };
        self.with_handle(ring, file, waiting, create);
    }

    fn helper(&mut self, job: Job) {
        self.jobs += 1;
        self.helpers.send(job);
    }

    fn with_handle<T: From<Box<FileIo>>>(
        &mut self,
        ring: &mut Ring<T>,
        file: FileId,
        waiting: Waiting,
        create: bool,
    ) {
        self.use_counter += 1;
        let writes = matches!(waiting.kind, Kind::Write { .. });
        let opened = Opened { file, direct_read: matches!(waiting.kind, Kind::DirectRead { .. }) };
        match self.handles.get_mut(&opened) {
            Some(Handle::Open { fd, used, unsynced }) => {
                *used = self.use_counter;
                *unsynced |= writes;
                let fd = Rc::clone(fd);
                self.enqueue(ring, file, fd, waiting);
            }
            Some(Handle::Opening(id)) => {
                let id = *id;
                let Some(opening) = self.opening.get_mut(&id) else { return };
                opening.waiting.push(waiting);
                // An open that must not create would tell the writer behind it that the file is missing.
                if create && !opening.create {
                    opening.create = true;
                    opening.jobs += 1;
                    self.helpers.send(Job::Open { id, file, mode: open_mode(opened, true) });
                }
            }
            None => {
                let id = self.use_counter;
                self.handles.insert(opened, Handle::Opening(id));
                self.opening.insert(id, Opening { opened, waiting: vec![waiting], create, jobs: 1 });
                self.helpers.send(Job::Open { id, file, mode: open_mode(opened, create) });
            }
        }
    }

    /// Drops the handles of a file that is going away. The descriptors are closed by the helper, as in [`Self::close`].
    fn forget(&mut self, file: FileId) -> Vec<OwnedFd> {
        let both = [false, true].map(|direct_read| self.handles.remove(&Opened { file, direct_read }));
        let open = both.into_iter().flatten().filter_map(|handle| match handle {
            Handle::Open { fd, .. } => Rc::into_inner(fd),
            Handle::Opening(_) => None,
        });
        open.collect()
    }

    /// Has a descriptor closed by a helper when nothing else refers to it: the last close of a removed file frees its
    /// blocks, which takes long.
    ///
    /// A journal file's lock goes with its last close, and no such close comes this way: files that are in use are neither
    /// removed nor made again, and `make_room` leaves them open. [`Self::close_all`] closes them here, before a recovery
    /// takes their locks. If one did come this way, an open that is asked for later would be behind it with the same helper;
    /// one asked for before would wait for it in vain, until the bound of the lock.
    fn close(&mut self, fd: Rc<OwnedFd>) {
        if let Some(fd) = Rc::into_inner(fd) {
            self.helpers.send(Job::Close { fd });
        }
    }

    fn enqueue<T: From<Box<FileIo>>>(
        &mut self,
        ring: &mut Ring<T>,
        file: FileId,
        fd: Rc<OwnedFd>,
        waiting: Waiting,
    ) {
        let Waiting { token, offset, started_us, kind } = waiting;
        self.in_ring += 1;
        let uncached = self.uncached && matches!((file, &kind), (FileId::Segment(..), Kind::Write { .. }));
        let io = Box::new(FileIo { token, file, fd, offset, done: 0, started_us, kind, uncached });
        match io.kind {
            Kind::DirectRead { .. } => self.reads.push(io, self.now_us),
            Kind::Journal { .. } => {
                self.reads.journal_begun(self.now_us);
                self.submit(ring, io);
            }
            _ => self.submit(ring, io),
        }
        self.read_on(ring);
    }

    /// When reads want to go on, unless something ends before, µs.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.reads.due_us()
    }

    /// Goes on with reads whose time has come.
    pub fn go_on<T: From<Box<FileIo>>>(&mut self, ring: &mut Ring<T>, now_us: u64) {
        self.now_us = now_us;
        self.read_on(ring);
    }

    /// Gives the disk the pieces of reads whose turn it is.
    fn read_on<T: From<Box<FileIo>>>(&mut self, ring: &mut Ring<T>) {
        while let Some((mut io, most)) = self.reads.next(self.now_us) {
            let rest = io.total().saturating_sub(io.done);
            if let Kind::DirectRead { piece, .. } = &mut io.kind {
                *piece = rest.min(most);
            }
            self.submit(ring, io);
        }
    }

    fn submit<T: From<Box<FileIo>>>(&mut self, ring: &mut Ring<T>, mut io: Box<FileIo>) {
        let entry = io.entry();
        // SAFETY: the entry points into chunks that `io` holds, which nobody writes below their fill mark (or,
        // for a read, touches at all), and into its boxed gather list.
        unsafe { ring.push(entry, io.into()) };
    }

    /// Takes the end of one of the ring's operations; continues it when it is not complete.
    pub fn completed<T: From<Box<FileIo>>>(
        &mut self,
        ring: &mut Ring<T>,
        mut io: Box<FileIo>,
        result: i32,
        now_us: u64,
    ) {
        self.now_us = now_us;
        if result == -libc::EINTR || result == -libc::EAGAIN {
            return self.submit(ring, io);
        }
        if result == -libc::EOPNOTSUPP && std::mem::take(&mut io.uncached) {
            self.uncached = false;
            return self.submit(ring, io);
        }
        let is_piece = matches!(io.kind, Kind::DirectRead { .. });
        if is_piece {
            self.reads.piece_ended();
            if result == -libc::EINVAL {
                return self.read_buffered(ring, *io);
            }
        }
        let outcome = match io.advance(result) {
            Step::More if is_piece => {
                self.reads.push_on(io);
                return self.read_on(ring);
            }
            Step::More => return self.submit(ring, io),
            Step::Done => Ok(()),
            Step::Failed(error) => Err(io_error(&self.paths.file(io.file), io.verb(), &error)),
        };
        self.in_ring -= 1;
        match io.kind {
            Kind::Journal { .. } => {
                let _ = self.journal_latency_us.record(now_us.saturating_sub(io.started_us).max(1));
                self.reads.journal_ended(now_us);
            }
            Kind::Sync => {
                self.syncs -= 1;
                if outcome.is_ok()
                    && let Some(Handle::Open { unsynced, .. }) =
                        self.handles.get_mut(&Opened { file: io.file, direct_read: false })
                {
                    *unsynced = false;
                }
            }
            _ => {}
        }
        let FileIo { token, done, kind, fd, .. } = *io;
        self.close(fd);
        let result = outcome.map(|()| match kind {
            Kind::Read { chunk, .. } => {
                chunk.set_filled(done);
                Some(chunk)
            }
            Kind::DirectRead { chunk, len, before, .. } => {
                // Behind what is wanted may lie what is just being written.
                chunk.set_read(before, done.saturating_sub(before).min(len));
                Some(chunk)
            }
            _ => None,
        });
        self.finished.push((token, result));
        self.read_on(ring);
    }

    /// A disk whose unit is larger than ours refuses direct reads, and the system tells it by the first one: that one and
    /// all that follow go through the kernel's cache.
    fn read_buffered<T: From<Box<FileIo>>>(&mut self, ring: &mut Ring<T>, io: FileIo) {
        self.direct = false;
        self.in_ring -= 1;
        let FileIo { token, file, offset, started_us, kind, fd, .. } = io;
        self.close(fd);
        if let Kind::DirectRead { chunk, len, before, .. } = kind {
            let kind = Kind::Read { chunk, len };
            let waiting = Waiting { token, offset: offset + before as u64, started_us, kind };
            self.with_handle(ring, file, waiting, false);
        }
        self.read_on(ring);
    }

    /// Takes what the helpers have done.
    pub fn take_helpers<T: From<Box<FileIo>>>(&mut self, ring: &mut Ring<T>) {
        while let Some(done) = self.helpers.next_done() {
            match done {
                JobDone::Opened { id, result } => self.opened(ring, id, result),
                JobDone::Ended { token, result } => {
                    self.jobs -= 1;
                    self.finished.push((token, result.map(|()| None)));
                }
            }
        }
    }

    fn opened<T: From<Box<FileIo>>>(
        &mut self,
        ring: &mut Ring<T>,
        id: u64,
        result: Result<OwnedFd, IoError>,
    ) {
        let Entry::Occupied(mut entry) = self.opening.entry(id) else { return };
        entry.get_mut().jobs -= 1;
        if result.is_err() && entry.get().jobs > 0 {
            return; // a second open, which may create, is on its way
        }
        let Opening { opened, waiting, .. } = entry.remove();
        let kept = matches!(self.handles.get(&opened), Some(Handle::Opening(current)) if *current == id);
        if kept {
            self.handles.remove(&opened);
        }
        match result {
            Ok(fd) => {
                let fd = Rc::new(fd);
                if kept {
                    self.make_room();
                    let unsynced = waiting.iter().any(|waiting| matches!(waiting.kind, Kind::Write { .. }));
                    let handle = Handle::Open { fd: Rc::clone(&fd), used: self.use_counter, unsynced };
                    self.handles.insert(opened, handle);
                }
                for waiting in waiting {
                    self.enqueue(ring, opened.file, Rc::clone(&fd), waiting);
                }
            }
            Err(error) => {
                for waiting in waiting {
                    if matches!(waiting.kind, Kind::Sync) {
                        self.syncs -= 1;
                    }
                    self.finished.push((waiting.token, Err(error.clone())));
                }
            }
        }
    }

    /// Closes the handles that were not used for longest, an eighth at once, when there are too many. Those with
    /// unflushed writes go last: a write-back error is told most surely to a descriptor that was open.
    fn make_room(&mut self) {
        if self.handles.len() < self.max_handles {
            return;
        }
        let mut candidates: Vec<(bool, u64, Opened)> = self
            .handles
            .iter()
            .filter_map(|(opened, handle)| match handle {
                Handle::Open { used, unsynced, .. } if !matches!(opened.file, FileId::Journal(_)) => {
                    Some((*unsynced, *used, *opened))
                }
                _ => None,
            })
            .collect();
        candidates.sort_unstable();
        for (_, _, opened) in candidates.into_iter().take(self.max_handles / 8 + 1) {
            if let Some(Handle::Open { fd, .. }) = self.handles.remove(&opened) {
                self.close(fd);
            }
        }
    }

    /// Operations that ended since the last call.
    pub fn take_finished(&mut self) -> std::vec::Drain<'_, (IoToken, IoResult)> {
        self.finished.drain(..)
    }

    /// Whether ends wait to be taken.
    pub fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }

    /// Operations begun and not ended.
    pub fn in_flight(&self) -> u64 {
        let waiting: usize = self.opening.values().map(|opening| opening.waiting.len()).sum();
        self.in_ring + self.jobs + waiting as u64
    }

    /// Whether a flush is running: the shard must not spin then, or it starves the kernel's worker.
    pub fn flushing(&self) -> bool {
        self.syncs > 0
    }

    /// Files open now.
    pub fn open_files(&self) -> usize {
        self.handles.len()
    }

    /// Closes every handle; only when nothing is in flight. After an I/O error nothing of the past is trusted.
    pub fn close_all(&mut self) {
        self.handles.clear();
    }

    /// Time from the engine's action to the completion of journal writes, microseconds.
    pub fn journal_latency_us(&self) -> &Histogram<u64> {
        &self.journal_latency_us
    }
}

/// How a read is carried out, and from where on. A segment's goes past the kernel's cache into a chunk that has room for
/// its ragged ends.
fn reading(file: FileId, offset: u64, len: usize, chunk: Rc<Chunk>) -> (u64, Kind) {
    let before = (offset % JOURNAL_ALIGN as u64) as usize;
    let span = (before + len).next_multiple_of(JOURNAL_ALIGN);
    match (file, chunk.direct_room()) {
        (FileId::Segment(..), Some((_, room))) if span <= room => {
            (offset - before as u64, Kind::DirectRead { chunk, len, before, span, piece: 0 })
        }
        _ => (offset, Kind::Read { chunk, len }),
    }
}

fn open_mode(opened: Opened, create: bool) -> OpenMode {
    match (opened.file, create) {
        _ if opened.direct_read => OpenMode::DirectRead,
        (FileId::Journal(_), _) => OpenMode::Direct,
        (_, true) => OpenMode::Create,
        (_, false) => OpenMode::Existing,
    }
}

enum Step {
    Done,
    More,
    Failed(io::Error),
}

impl FileIo {
    fn entry(&mut self) -> squeue::Entry {
        let fd = Fd(self.fd.as_raw_fd());
        let offset = self.offset + self.done as u64;
        match &mut self.kind {
            Kind::Journal { data, durable } => {
                let rest = data.bytes().get(self.done..).unwrap_or_default();
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, rest.as_ptr(), rest.len() as u32)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            Kind::Write { data, iovecs, .. } => {
                gather(data, self.done, iovecs);
                let flags = if self.uncached { libc::RWF_DONTCACHE } else { 0 };
                opcode::Writev::new(fd, iovecs.as_ptr(), iovecs.len() as u32)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            Kind::Read { chunk, len } => {
                let rest = len.saturating_sub(self.done);
                // SAFETY: `done` is at most `len`, and that is at most the capacity: the kernel fills no more than it is
                // given.
                let start = unsafe { chunk.as_ptr().cast_mut().add(self.done) };
                opcode::Read::new(fd, start, rest as u32).offset(offset).build()
            }
            Kind::DirectRead { chunk, piece, .. } => {
                let start = chunk.direct_room().map_or(std::ptr::null_mut(), |(start, _)| start);
                // SAFETY: `done` and the piece behind it end within the span, which is at most the chunk's room. Where there
                // were none, which is never, the kernel would refuse the address.
                let start = start.wrapping_add(self.done);
                opcode::Read::new(fd, start, *piece as u32).offset(offset).build()
            }
            Kind::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        }
    }

    fn advance(&mut self, result: i32) -> Step {
        if result < 0 {
            return Step::Failed(io::Error::from_raw_os_error(-result));
        }
        if matches!(self.kind, Kind::Sync) {
            return Step::Done;
        }
        let (count, total) = (result as usize, self.total());
        self.done = (self.done + count).min(total);
        match (self.done == total, count, &self.kind) {
            (true, ..) | (false, 0, Kind::Read { .. } | Kind::DirectRead { .. }) => Step::Done,
            // Only the end of the file is not aligned.
            (false, count, Kind::DirectRead { .. }) if !count.is_multiple_of(JOURNAL_ALIGN) => Step::Done,
            // A rest that is not aligned can't be written directly: nothing good makes a disk do that.
            (false, 0, _) => Step::Failed(io::Error::other("the system wrote nothing and told no error")),
            (false, ..) => Step::More,
        }
    }

    /// Bytes that it moves in all, at most.
    fn total(&self) -> usize {
        match &self.kind {
            Kind::Journal { data, .. } => data.len(),
            Kind::Write { total, .. } => *total,
            Kind::Read { len, .. } => *len,
            Kind::DirectRead { span, .. } => *span,
            Kind::Sync => 0,
        }
    }

    fn verb(&self) -> &'static str {
        match self.kind {
            Kind::Journal { .. } | Kind::Write { .. } => "write",
            Kind::Read { .. } | Kind::DirectRead { .. } => "read",
            Kind::Sync => "flush",
        }
    }
}

/// The gather list of `data` without its first `skip` bytes, up to what the kernel takes at once.
fn gather(data: &[ChunkSlice], mut skip: usize, iovecs: &mut Vec<libc::iovec>) {
    iovecs.clear();
    for slice in data {
        let bytes = slice.bytes();
        let Some(rest) = bytes.get(skip..).filter(|rest| !rest.is_empty()) else {
            skip -= bytes.len().min(skip);
            continue;
        };
        skip = 0;
        iovecs.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        if iovecs.len() == MAX_IOVECS {
            return;
        }
    }
}

/// Opens a file for direct I/O; buffered where the file system knows no O_DIRECT.
pub(super) fn open_direct(path: &std::path::Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true).write(true);
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if knows_no_direct(&error) => options.open(path),
        result => result,
    }
}

/// Whether an open failed because the file system has no direct I/O, which each says in its own way.
pub(super) fn knows_no_direct(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
