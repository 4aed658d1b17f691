//! The disk as recovery sees it: blocking calls on real files, with read-ahead for the replay.
//!
//! A file that is announced as read in order is read by two threads in turns, each one block of
//! [`BLOCK_BYTES`] at a time with O_DIRECT: two such reads keep a disk busy, while the replay checks what came
//! before. Nothing goes through the page cache, so what is checked is what is on the disk.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::thread::JoinHandle;

use pyralog_core::GroupId;
use pyralog_core::limits::JOURNAL_ALIGN;

use super::files::open_direct;
use super::files_helper::{OpenMode, create_zeroed, delete, delete_group, open, read_full, truncate};
use super::paths::{Paths, io_error};
use crate::engine::{FileId, IoError, RecoveryDisk};

/// One read, bytes.
const BLOCK_BYTES: usize = 4 << 20;
/// Threads per file that is read in order.
const READERS: usize = 2;
/// Blocks that one thread has read and nobody has taken yet. With the ones being read and used: at most
/// `READERS * (BLOCKS_AHEAD + 1) + 1` blocks of memory.
const BLOCKS_AHEAD: usize = 2;
/// Files open at once besides the one read ahead.
const MAX_OPEN: usize = 64;

/// The files of one shard, for recovery.
pub struct RealDisk {
    paths: Paths,
    open: HashMap<FileId, File, ahash::RandomState>,
    ahead: Option<(FileId, ReadAhead)>,
    /// Announced and not begun, in order.
    announced: Vec<(FileId, u64)>,
    progress: Box<dyn FnMut(u64, u64)>,
}

impl std::fmt::Debug for RealDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RealDisk({})", self.paths.data.display())
    }
}

impl RealDisk {
    /// The files below `paths`; `progress` hears how far the replay is, as often as the replay tells.
    pub fn new(paths: Paths, progress: Box<dyn FnMut(u64, u64)>) -> Self {
        Self { paths, open: HashMap::default(), ahead: None, announced: Vec::new(), progress }
    }

    fn handle(&mut self, file: FileId, create: bool) -> Result<&File, IoError> {
        if self.open.len() >= MAX_OPEN && !self.open.contains_key(&file) {
            self.open.clear();
        }
        match self.open.entry(file) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let mode = if create { OpenMode::Create } else { OpenMode::Existing };
                Ok(entry.insert(open(&self.paths.file(file), mode)?))
            }
        }
    }

    /// Nothing read ahead may outlive a change of the file.
    fn changed(&mut self, file: FileId) {
        if self.ahead.as_ref().is_some_and(|(ahead, _)| *ahead == file) {
            self.ahead = None;
        }
    }
}

impl RecoveryDisk for RealDisk {
    fn list(&mut self) -> Result<Vec<(FileId, u64)>, IoError> {
        self.paths.list()
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, IoError> {
        if let Some(at) = self.announced.iter().position(|announced| *announced == (file, offset)) {
            let (file, offset) = self.announced.remove(at);
            self.ahead = Some((file, ReadAhead::start(self.paths.file(file), offset)?));
        }
        if let Some((ahead_of, ahead)) = &mut self.ahead
            && *ahead_of == file
            && ahead.position == offset
        {
            let path = self.paths.file(file);
            return ahead.read(buffer).map_err(|error| io_error(&path, "read", &error));
        }
        let path = self.paths.file(file);
        let handle = self.handle(file, false)?;
        read_full(handle, offset, buffer).map_err(|error| io_error(&path, "read", &error))
    }

    fn will_read_sequentially(&mut self, file: FileId, offset: u64) {
        self.changed(file);
        self.announced.retain(|(announced, _)| *announced != file);
        self.announced.push((file, offset));
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        self.changed(file);
        let path = self.paths.file(file);
        let handle = self.handle(file, true)?;
        handle.write_all_at(bytes, offset).map_err(|error| io_error(&path, "write", &error))
    }

    fn sync(&mut self, file: FileId) -> Result<(), IoError> {
        let path = self.paths.file(file);
        self.handle(file, false)?.sync_data().map_err(|error| io_error(&path, "flush", &error))
    }

    fn create_zeroed(&mut self, file: FileId, len: u64) -> Result<(), IoError> {
        self.changed(file);
        self.open.remove(&file);
        create_zeroed(&self.paths.file(file), len)
    }

    fn truncate(&mut self, file: FileId, len: u64) -> Result<(), IoError> {
        self.changed(file);
        truncate(&self.paths.file(file), len)
    }

    fn delete(&mut self, file: FileId) -> Result<(), IoError> {
        self.changed(file);
        self.open.remove(&file);
        delete(&self.paths.file(file))
    }

    fn delete_group(&mut self, group: GroupId) -> Result<(), IoError> {
        self.ahead = None;
        self.open.clear();
        delete_group(&self.paths.group(group))
    }

    fn progress(&mut self, done: u64, total: u64) {
        (self.progress)(done, total);
    }
}

/// One aligned block.
struct Block {
    memory: NonNull<u8>,
    filled: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Block {}

impl Block {
    fn layout() -> Layout {
        match Layout::from_size_align(BLOCK_BYTES, JOURNAL_ALIGN) {
            Ok(layout) => layout,
            Err(_) => unreachable!("both are constants"),
        }
    }

    fn new() -> Self {
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc(Self::layout()) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(Self::layout()) };
        // SAFETY: fresh memory of that size; it is initialised, as references to it are handed out.
        unsafe { memory.as_ptr().write_bytes(0, BLOCK_BYTES) };
        Self { memory, filled: 0 }
    }

    fn whole_mut(&mut self) -> &mut [u8] {
        // SAFETY: initialised in `new`, exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), BLOCK_BYTES) }
    }

    fn filled(&self) -> &[u8] {
        // SAFETY: initialised in `new`; `filled` is at most the size.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.filled) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout()) };
    }
}

type BlockResult = io::Result<Block>;

/// A file being read ahead from one position on.
struct ReadAhead {
    /// Where the next [`Self::read`] is.
    position: u64,
    current: Option<Block>,
    /// Bytes of `current` that are used.
    used: usize,
    /// Whose turn the next block is.
    turn: usize,
    full: Vec<Option<flume::Receiver<BlockResult>>>,
    empty: Vec<flume::Sender<Block>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    fn start(path: PathBuf, offset: u64) -> Result<Self, IoError> {
        let align = JOURNAL_ALIGN as u64;
        let first = offset / align * align;
        let mut ahead = Self {
            position: offset,
            current: None,
            used: (offset - first) as usize,
            turn: 0,
            full: Vec::new(),
            empty: Vec::new(),
            threads: Vec::new(),
        };
        for reader in 0..READERS {
            let file = open_direct(&path).map_err(|error| io_error(&path, "open", &error))?;
            let (full_sender, full) = flume::bounded(BLOCKS_AHEAD);
            let (empty, empty_receiver) = flume::bounded::<Block>(BLOCKS_AHEAD + 1);
            let start = first + (reader * BLOCK_BYTES) as u64;
            let body = move || read_blocks(&file, start, &full_sender, &empty_receiver);
            let spawned = std::thread::Builder::new().name("pyra-replay".into()).spawn(body);
            ahead.threads.push(spawned.map_err(|error| io_error(Path::new("a thread"), "start", &error))?);
            ahead.full.push(Some(full));
            ahead.empty.push(empty);
        }
        Ok(ahead)
    }

    fn read(&mut self, mut buffer: &mut [u8]) -> io::Result<usize> {
        let mut copied = 0;
        while !buffer.is_empty() {
            let rest =
                self.current.as_ref().and_then(|block| block.filled().get(self.used..)).unwrap_or_default();
            if rest.is_empty() {
                if !self.next_block()? {
                    break;
                }
                continue;
            }
            let count = rest.len().min(buffer.len());
            let (to, later) = buffer.split_at_mut(count);
            to.copy_from_slice(rest.get(..count).unwrap_or_default());
            buffer = later;
            self.used += count;
            copied += count;
        }
        self.position += copied as u64;
        Ok(copied)
    }

    /// Moves on to the next block; false at the end of the file.
    fn next_block(&mut self) -> io::Result<bool> {
        if let Some(old) = self.current.take() {
            let ended = old.filled < BLOCK_BYTES;
            let giver = (self.turn + READERS - 1) % READERS;
            if let Some(empty) = self.empty.get(giver) {
                let _ = empty.try_send(old);
            }
            self.used = 0;
            if ended {
                return Ok(false);
            }
        }
        let Some(Some(full)) = self.full.get(self.turn) else { return Ok(false) };
        let Ok(block) = full.recv() else { return Ok(false) };
        self.current = Some(block?);
        self.turn = (self.turn + 1) % READERS;
        Ok(true)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.full.clear();
        self.empty.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn read_blocks(file: &File, mut at: u64, full: &flume::Sender<BlockResult>, empty: &flume::Receiver<Block>) {
    loop {
        let mut block = empty.try_recv().unwrap_or_else(|_| Block::new());
        let result = read_full(file, at, block.whole_mut());
        let last = !matches!(result, Ok(BLOCK_BYTES));
        let sent = full.send(result.map(|filled| {
            block.filled = filled;
            block
        }));
        if last || sent.is_err() {
            return;
        }
        at += (READERS * BLOCK_BYTES) as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use pyralog_core::ShardId;

    use super::*;

    fn disk(dir: &Path) -> RealDisk {
        RealDisk::new(Paths::new(dir, dir, ShardId(0)), Box::new(|_, _| {}))
    }

    fn pattern(len: usize) -> Vec<u8> {
        let word = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        (0..len.div_ceil(8) as u64).flat_map(word).take(len).collect()
    }

    #[test]
    fn reading_ahead_gives_the_same_bytes_as_reading() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for len in [0, 1, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, 5 * BLOCK_BYTES + 777] {
            let mut disk = disk(dir.path());
            let file = FileId::Journal(1);
            let bytes = pattern(len);
            disk.delete(file).unwrap();
            disk.write(file, 0, &bytes).unwrap();
            disk.sync(file).unwrap();
            for offset in [0, 4096, 5000] {
                disk.will_read_sequentially(file, offset);
                let mut read = Vec::new();
                let mut buffer = vec![0; 300_001];
                loop {
                    let count = disk.read(file, offset + read.len() as u64, &mut buffer).unwrap();
                    read.extend_from_slice(&buffer[..count]);
                    if count < buffer.len() {
                        break;
                    }
                }
                assert_eq!(read, bytes.get(offset as usize..).unwrap_or_default(), "{len} from {offset}");
                let mut one = [0; 4];
                let count = disk.read(file, 0, &mut one).unwrap();
                assert_eq!(&one[..count], &bytes[..len.min(4)], "a jump back is a plain read");
            }
        }
    }

    #[test]
    fn a_stream_given_up_half_way_ends_its_threads_and_a_write_is_seen() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut disk = disk(dir.path());
        let file = FileId::Journal(0);
        disk.create_zeroed(file, 24 << 20).unwrap();
        disk.will_read_sequentially(file, 0);
        let mut buffer = [1; 4096];
        assert_eq!(disk.read(file, 0, &mut buffer).unwrap(), 4096);
        assert_eq!(buffer, [0; 4096]);
        disk.write(file, 4096, &[7; 4096]).unwrap();
        assert_eq!(disk.read(file, 4096, &mut buffer).unwrap(), 4096);
        assert_eq!(buffer, [7; 4096]);
        disk.truncate(file, 4100).unwrap();
        assert_eq!(disk.read(file, 4096, &mut buffer).unwrap(), 4);
        disk.delete(file).unwrap();
        assert!(disk.list().unwrap().is_empty());
    }

    #[test]
    fn a_disk_error_in_the_middle_is_told_with_the_file() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut disk = disk(dir.path());
        let file = FileId::Journal(0);
        let path = disk.paths.file(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A folder opens but doesn't read.
        std::os::unix::fs::symlink(dir.path(), &path).unwrap();
        assert!(File::options().read(true).custom_flags(0).open(&path).is_ok());
        disk.will_read_sequentially(file, 0);
        let error = disk.read(file, 0, &mut [0; 16]).unwrap_err();
        assert!(error.detail.contains("0.journal"), "{}", error.detail);
    }

    /// Not a check but a measurement: `cargo test --release -- --ignored --nocapture replay_bandwidth`.
    #[test]
    #[ignore = "a measurement"]
    fn replay_bandwidth() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut disk = disk(dir.path());
        let file = FileId::Journal(0);
        let len: u64 = 2 << 30;
        disk.create_zeroed(file, len).unwrap();
        for ahead in [false, true, false, true] {
            let direct = open_direct(&disk.paths.file(file)).unwrap();
            let started = std::time::Instant::now();
            let mut block = Block::new();
            let mut at = 0;
            if ahead {
                disk.will_read_sequentially(file, 0);
            }
            while at < len {
                let count = match ahead {
                    true => disk.read(file, at, block.whole_mut()).unwrap(),
                    false => read_full(&direct, at, block.whole_mut()).unwrap(),
                };
                at += count as u64;
            }
            let rate = len as f64 / started.elapsed().as_secs_f64() / 1e9;
            println!("read-ahead {ahead}: {rate:.2} GB/s");
        }
    }
}
