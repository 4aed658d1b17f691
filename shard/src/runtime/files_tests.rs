//! Tests of `files`, on real files.

use std::path::Path;
use std::time::Duration;

use pyralog_core::{GroupId, ShardId};

use super::super::files_helper::{JOURNAL_LOCK_BOUND, lock_journal};
use super::*;
use crate::engine::IoErrorKind;
use crate::memory::ChunkPool;

struct Rig {
    _dir: tempfile::TempDir,
    ring: Ring<Box<FileIo>>,
    files: Files,
    pool: ChunkPool,
    tokens: u64,
    now_us: u64,
}

impl Rig {
    fn new(max_handles: usize) -> Self {
        Self::below(Path::new(env!("CARGO_MANIFEST_DIR")), max_handles)
    }

    fn below(folder: &Path, max_handles: usize) -> Self {
        let dir = tempfile::tempdir_in(folder).unwrap();
        let paths = Paths::new(dir.path(), dir.path(), ShardId(0));
        let files = Files::new(paths, max_handles, Waker::new().unwrap(), JournalWritten::default()).unwrap();
        Self {
            _dir: dir,
            ring: Ring::new().unwrap(),
            files,
            pool: ChunkPool::new(64 << 20),
            tokens: 0,
            now_us: 0,
        }
    }

    fn chunk(&self, bytes: &[u8]) -> Rc<Chunk> {
        let chunk = self.pool.chunk(bytes.len().next_multiple_of(4096)).unwrap();
        chunk.append(bytes);
        chunk
    }

    fn start(&mut self, op: IoOp) -> IoToken {
        self.tokens += 1;
        let token = IoToken(self.tokens);
        self.files.start(&mut self.ring, token, op, self.now_us);
        token
    }

    /// Runs until everything ended.
    fn finish(&mut self) -> HashMap<IoToken, IoResult> {
        let mut ended = HashMap::new();
        for _ in 0..100_000 {
            while let Some(done) = self.ring.next_completion() {
                self.files.completed(&mut self.ring, done.owner, done.result, self.now_us);
            }
            self.now_us += 100;
            self.files.take_helpers(&mut self.ring);
            self.files.go_on(&mut self.ring, self.now_us);
            for (token, result) in self.files.take_finished() {
                assert!(ended.insert(token, result).is_none(), "ended twice");
            }
            if self.files.in_flight() == 0 {
                return ended;
            }
            self.ring.enter(Some(Some(Duration::from_millis(1)))).unwrap();
        }
        panic!("operations never ended");
    }

    fn one(&mut self, op: IoOp) -> IoResult {
        let token = self.start(op);
        self.finish().remove(&token).unwrap()
    }

    fn read(&mut self, file: FileId, offset: u64, capacity: usize) -> Result<Vec<u8>, IoError> {
        let into = self.pool.chunk(capacity).unwrap();
        let chunk = self.one(IoOp::Read { file, offset, len: capacity, into })?.unwrap();
        Ok(chunk.bytes(0, chunk.filled()).to_vec())
    }
}

#[test]
fn a_journal_write_lands_where_it_should() {
    let mut rig = Rig::new(64);
    let file = FileId::Journal(3);
    rig.one(IoOp::CreateZeroed { file, len: 1 << 20 }).unwrap();
    let chunk = rig.chunk(&[9; 8192]);
    for (offset, durable) in [(4096, true), (65536, false)] {
        let data = ChunkSlice::new(Rc::clone(&chunk), 0, 8192);
        assert!(rig.one(IoOp::JournalWrite { file, offset, data, durable }).unwrap().is_none());
    }
    let bytes = std::fs::read(rig.files.paths.file(file)).unwrap();
    assert_eq!(bytes.len(), 1 << 20);
    let expected = |at: usize| (4096..12288).contains(&at) || (65536..73728).contains(&at);
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if expected(at) { 9 } else { 0 }));
    assert_eq!(rig.files.journal_latency_us().len(), 2);
    // A journal file is never made by a write: it has to hold written zeros first.
    let data = ChunkSlice::new(chunk, 0, 4096);
    let missing = IoOp::JournalWrite { file: FileId::Journal(4), offset: 0, data, durable: true };
    assert_eq!(rig.one(missing).unwrap_err().kind, IoErrorKind::NotFound);
}

#[test]
fn gathered_writes_create_the_file_and_read_back() {
    let mut rig = Rig::new(64);
    let file = FileId::Segment(GroupId::new(1, 0), 0);
    assert_eq!(rig.read(file, 0, 4096).unwrap_err().kind, IoErrorKind::NotFound);
    let bytes: Vec<u8> = (0..60_000u32).map(|at| (at % 251) as u8).collect();
    let chunk = rig.chunk(&bytes);
    // More parts than the kernel takes in one call.
    let data = (0..3000).map(|part| ChunkSlice::new(Rc::clone(&chunk), part * 20, 20)).collect();
    rig.start(IoOp::Write { file, offset: 0, data });
    let sync = rig.start(IoOp::Sync { file });
    assert!(rig.files.flushing());
    assert!(rig.finish().remove(&sync).unwrap().is_ok());
    assert!(!rig.files.flushing());
    assert_eq!(rig.read(file, 0, 128 << 10).unwrap(), bytes);
    assert_eq!(rig.read(file, 59_990, 4096).unwrap(), &bytes[59_990..]);
    assert_eq!(rig.read(file, 60_000, 4096).unwrap(), b"");
    rig.one(IoOp::Truncate { file, len: 100 }).unwrap();
    assert_eq!(rig.read(file, 0, 4096).unwrap(), &bytes[..100]);
}

#[test]
fn a_segment_is_read_directly_from_anywhere() {
    for folder in [env!("CARGO_MANIFEST_DIR"), "/dev/shm"] {
        let mut rig = Rig::below(Path::new(folder), 64);
        let file = FileId::Segment(GroupId::new(1, 0), 0);
        let bytes: Vec<u8> = (0..3_000_001u32).map(|at| (at % 251) as u8).collect();
        let chunk = rig.chunk(&bytes);
        rig.one(IoOp::Write { file, offset: 0, data: vec![ChunkSlice::new(chunk, 0, bytes.len())] }).unwrap();
        let at_most =
            |from: usize, len: usize| bytes.get(from..(from + len).min(bytes.len())).unwrap_or_default();
        // Nothing is flushed yet: what is only in the kernel's cache must be read, too.
        for (from, len) in [
            (0, 4096),
            (1, 1),
            (4095, 2),
            (5000, 2 << 20),
            (2_999_000, 4096),
            (3_000_000, 9),
            (3_000_001, 9),
            (3_100_000, 9),
        ] {
            let into = rig.pool.chunk_for_read(len).unwrap();
            let read = rig.one(IoOp::Read { file, offset: from as u64, len, into }).unwrap().unwrap();
            assert!(
                read.bytes(0, read.filled()) == at_most(from, len),
                "{len} bytes from {from} in {folder}"
            );
        }
        let kept: Vec<bool> = rig.files.handles.keys().map(|opened| opened.direct_read).collect();
        assert!(kept.contains(&true) && kept.contains(&false));
        rig.one(IoOp::Delete { file }).unwrap();
        assert_eq!(rig.files.open_files(), 0);
        let into = rig.pool.chunk_for_read(1).unwrap();
        let gone = rig.one(IoOp::Read { file, offset: 0, len: 1, into });
        assert_eq!(gone.unwrap_err().kind, IoErrorKind::NotFound);
    }
}

#[test]
fn a_disk_that_refuses_direct_reads_is_read_through_the_cache() {
    let mut rig = Rig::new(64);
    let file = FileId::Segment(GroupId::new(1, 0), 0);
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    let chunk = rig.chunk(&bytes);
    rig.one(IoOp::Write { file, offset: 0, data: vec![ChunkSlice::new(chunk, 0, bytes.len())] }).unwrap();
    let op = |rig: &Rig, offset| {
        let into = rig.pool.chunk_for_read(100_000).unwrap();
        IoOp::Read { file, offset, len: 100_000, into }
    };
    let reads = [5u64, 50_001, 250_000].map(|from| {
        let op = op(&rig, from);
        (from, rig.start(op))
    });
    // What was read is thrown away for what such a disk says.
    let (mut refused, mut passes) = (0, 0);
    while refused < reads.len() {
        passes += 1;
        assert!(passes < 10_000, "{refused} of {} were read directly", reads.len());
        rig.files.take_helpers(&mut rig.ring);
        while let Some(done) = rig.ring.next_completion() {
            let direct = matches!(done.owner.kind, Kind::DirectRead { .. });
            let result = if direct { -libc::EINVAL } else { done.result };
            refused += usize::from(direct);
            rig.files.completed(&mut rig.ring, done.owner, result, rig.now_us);
        }
        rig.ring.enter(Some(Some(Duration::from_millis(1)))).unwrap();
    }
    let mut ended = rig.finish();
    for (from, token) in reads {
        let read = ended.remove(&token).unwrap().unwrap().unwrap();
        let expected = &bytes[from as usize..bytes.len().min(from as usize + 100_000)];
        assert!(read.bytes(0, read.filled()) == expected, "from {from}");
    }
    let op = op(&rig, 7);
    assert!(!rig.files.direct, "it was told, and is not asked again");
    let read = rig.one(op).unwrap().unwrap();
    assert!(read.bytes(0, read.filled()) == &bytes[7..100_007]);
}

/// Descriptors of this process for a file of this name that is removed.
fn open_and_removed(path: &Path) -> usize {
    let gone = format!("{} (deleted)", path.display());
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let names = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    names.filter(|name| name.as_os_str() == gone.as_str()).count()
}

#[test]
fn a_file_that_is_removed_under_a_read_is_closed_by_the_helper() {
    let mut rig = Rig::new(64);
    let (segment, journal) = (FileId::Segment(GroupId::new(1, 0), 0), FileId::Journal(0));
    rig.one(IoOp::CreateZeroed { file: journal, len: 4096 }).unwrap();
    let chunk = rig.chunk(&[3; 8192]);
    let data = vec![ChunkSlice::new(Rc::clone(&chunk), 0, 8192)];
    rig.one(IoOp::Write { file: segment, offset: 0, data }).unwrap();
    let read = |rig: &mut Rig| {
        let into = rig.pool.chunk_for_read(8192).unwrap();
        rig.start(IoOp::Read { file: segment, offset: 0, len: 8192, into })
    };
    read(&mut rig);
    rig.finish();
    let read = read(&mut rig);
    let delete = rig.start(IoOp::Delete { file: segment });
    // Behind the removal the helper is kept busy: it waits for the lock of a journal file.
    let path = rig.files.paths.file(journal);
    let lock = File::open(&path).unwrap();
    lock_journal(&path, &lock, Duration::ZERO).unwrap();
    let data = ChunkSlice::new(chunk, 0, 4096);
    let write = rig.start(IoOp::JournalWrite { file: journal, offset: 0, data, durable: true });
    let mut ended = HashMap::new();
    for _ in 0..1_000 {
        if ended.len() == 2 {
            break;
        }
        rig.files.take_helpers(&mut rig.ring);
        // The read has the file last.
        if ended.contains_key(&delete)
            && let Some(done) = rig.ring.next_completion()
        {
            rig.files.completed(&mut rig.ring, done.owner, done.result, rig.now_us);
        }
        ended.extend(rig.files.take_finished());
        rig.ring.enter(Some(Some(Duration::from_millis(1)))).unwrap();
    }
    assert!(ended.remove(&delete).unwrap().is_ok() && ended.remove(&read).unwrap().is_ok());
    let path = rig.files.paths.file(segment);
    assert_eq!(open_and_removed(&path), 1, "the shard leaves that to the helper");
    drop(lock);
    assert!(rig.finish().remove(&write).unwrap().is_ok());
    // What the helper was given before the end of this was done before.
    rig.one(IoOp::Delete { file: segment }).unwrap();
    assert_eq!(open_and_removed(&path), 0);
}

#[test]
fn reads_and_journal_writes_side_by_side_all_end() {
    let mut rig = Rig::new(64);
    let (segment, journal) = (FileId::Segment(GroupId::new(1, 0), 0), FileId::Journal(0));
    let bytes: Vec<u8> = (0..(4u32 << 20)).map(|at| (at % 241) as u8).collect();
    let chunk = rig.chunk(&bytes);
    let data = vec![ChunkSlice::new(chunk, 0, bytes.len())];
    rig.one(IoOp::Write { file: segment, offset: 0, data }).unwrap();
    rig.one(IoOp::CreateZeroed { file: journal, len: 1 << 20 }).unwrap();
    let write = rig.chunk(&[7; 4096]);
    let mut reads = Vec::new();
    for round in 0..8usize {
        let data = ChunkSlice::new(Rc::clone(&write), 0, 4096);
        rig.start(IoOp::JournalWrite { file: journal, offset: 4096 * round as u64, data, durable: true });
        let (from, len) = (round * 300_007, 1 << 20);
        let into = rig.pool.chunk_for_read(len).unwrap();
        reads.push((from, len, rig.start(IoOp::Read { file: segment, offset: from as u64, len, into })));
    }
    let mut ended = rig.finish();
    for (from, len, token) in reads {
        let read = ended.remove(&token).unwrap().unwrap().unwrap();
        assert!(read.bytes(0, read.filled()) == &bytes[from..from + len], "from {from}");
    }
    assert!(ended.len() == 8 && ended.values().all(Result::is_ok));
    assert_eq!(rig.files.in_flight(), 0);
}

#[test]
fn segments_are_written_where_the_file_system_can_not_leave_them_out_of_its_cache() {
    // tmpfs is nothing but cache, and says so.
    let mut rig = Rig::below(Path::new("/dev/shm"), 64);
    let file = FileId::Segment(GroupId::new(1, 0), 0);
    for (round, offset) in [(1u8, 0u64), (2, 4096)] {
        let chunk = rig.chunk(&[round; 4096]);
        let data = vec![ChunkSlice::new(chunk, 0, 4096)];
        rig.one(IoOp::Write { file, offset, data }).unwrap();
        rig.one(IoOp::Sync { file }).unwrap();
        assert!(!rig.files.uncached, "it was told, and is not asked again");
    }
    let mut expected = vec![1; 4096];
    expected.resize(8192, 2);
    assert_eq!(rig.read(file, 0, 16384).unwrap(), expected);
}

#[test]
fn a_write_behind_a_read_of_a_missing_file_still_creates_it() {
    let mut rig = Rig::new(64);
    let file = FileId::Index(GroupId::new(1, 0), 7);
    let into = rig.pool.chunk(4096).unwrap();
    let chunk = rig.chunk(b"entry");
    rig.start(IoOp::Read { file, offset: 0, len: 4096, into });
    let write = rig.start(IoOp::Write { file, offset: 0, data: vec![ChunkSlice::new(chunk, 0, 5)] });
    assert!(rig.finish().remove(&write).unwrap().is_ok());
    assert_eq!(rig.read(file, 0, 4096).unwrap(), b"entry");
}

#[test]
fn a_removed_file_is_not_written_through_an_old_handle() {
    let mut rig = Rig::new(64);
    let group = GroupId::new(1, 0);
    let file = FileId::Segment(group, 0);
    let chunk = rig.chunk(b"first second");
    let write = |from, len| IoOp::Write {
        file,
        offset: 0,
        data: vec![ChunkSlice::new(Rc::clone(&chunk), from, len)],
    };
    rig.one(write(0, 5)).unwrap();
    rig.one(IoOp::Delete { file }).unwrap();
    rig.one(IoOp::Delete { file }).unwrap();
    rig.one(write(6, 6)).unwrap();
    assert_eq!(rig.read(file, 0, 4096).unwrap(), b"second");
    // The same while an open is under way.
    rig.files.close_all();
    let into = rig.pool.chunk(4096).unwrap();
    rig.start(IoOp::Read { file, offset: 0, len: 4096, into });
    rig.start(IoOp::Delete { file });
    rig.finish();
    assert_eq!(rig.read(file, 0, 4096).unwrap_err().kind, IoErrorKind::NotFound);
    // And a write that follows at once goes to the new file.
    rig.one(write(0, 5)).unwrap();
    rig.files.close_all();
    let into = rig.pool.chunk(4096).unwrap();
    rig.start(IoOp::Read { file, offset: 0, len: 4096, into });
    rig.start(IoOp::Delete { file });
    rig.start(write(6, 6));
    rig.finish();
    assert_eq!(rig.read(file, 0, 4096).unwrap(), b"second");
    rig.one(IoOp::DeleteGroup { group }).unwrap();
    assert!(!rig.files.paths.group(group).exists());
    assert_eq!(rig.files.open_files(), 0);
}

#[test]
fn a_thousand_files_need_few_handles() {
    let mut rig = Rig::new(32);
    let chunk = rig.chunk(b"x");
    let mut most = 0;
    for round in 0..2u64 {
        for partition in 0..500 {
            let file = FileId::Segment(GroupId::new(1, partition), 0);
            let data = vec![ChunkSlice::new(Rc::clone(&chunk), 0, 1)];
            rig.one(IoOp::Write { file, offset: round, data }).unwrap();
            most = most.max(rig.files.open_files());
        }
    }
    assert!(most <= 33, "{most} handles");
    assert_eq!(rig.read(FileId::Segment(GroupId::new(1, 77), 0), 0, 4096).unwrap(), b"xx");
}

#[test]
fn a_full_device_is_told_as_such() {
    let mut rig = Rig::new(8);
    let file = FileId::Checkpoint(0);
    let path = rig.files.paths.file(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let chunk = rig.chunk(b"x");
    let error =
        rig.one(IoOp::Write { file, offset: 0, data: vec![ChunkSlice::new(chunk, 0, 1)] }).unwrap_err();
    assert_eq!(error.kind, IoErrorKind::NoSpace);
    assert!(error.detail.contains("checkpoint.0"), "{}", error.detail);
}

#[test]
fn a_journal_file_is_locked_while_it_may_be_written_to() {
    let mut rig = Rig::new(16);
    let file = FileId::Journal(0);
    rig.one(IoOp::CreateZeroed { file, len: 4 << 20 }).unwrap();
    let data = ChunkSlice::new(rig.chunk(&[1; 4096]), 0, 4096);
    rig.one(IoOp::JournalWrite { file, offset: 0, data, durable: true }).unwrap();
    let path = rig.files.paths.file(file);
    let other = File::open(&path).unwrap();
    let error = lock_journal(&path, &other, Duration::ZERO).unwrap_err();
    assert!(error.detail.contains("locked by another process"), "{}", error.detail);
    rig.files.close_all();
    lock_journal(&path, &other, JOURNAL_LOCK_BOUND).unwrap();
}
