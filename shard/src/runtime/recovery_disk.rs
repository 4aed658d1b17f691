//! The disk as recovery sees it: blocking calls on real files, with read-ahead for the replay.
//!
//! A file that is announced as read in order is read by two threads in turns, each one block of
//! [`BLOCK_BYTES`] at a time with O_DIRECT: two such reads keep a disk busy, while the replay checks what came
//! before. Nothing goes through the page cache, so what is checked is what is on the disk. A read of exactly one
//! block takes the block's memory and leaves its own to be read into next: nothing is copied.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use pyralog_core::GroupId;
use pyralog_core::limits::{CHUNK_BYTES, JOURNAL_ALIGN};

use super::files::open_direct;
use super::files_helper::{
    JOURNAL_LOCK_BOUND, OpenMode, create_zeroed, delete, delete_group, lock_journal, open, read_full,
    truncate,
};
use super::paths::{Paths, io_error};
use super::threads;
use crate::engine::{FileId, IoError, RecoveryDisk};
use crate::pages::Pages;

/// One read, bytes: a region of the journal.
const BLOCK_BYTES: usize = CHUNK_BYTES;
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
    /// Memory of the last file's read-ahead, for the next one's.
    spare: Vec<Pages>,
    progress: Box<dyn FnMut(u64, u64)>,
    /// The journal files, locked: nobody's write to them is on its way.
    locked: Vec<File>,
    lock_bound: Duration,
}

impl std::fmt::Debug for RealDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RealDisk({})", self.paths.data.display())
    }
}

impl RealDisk {
    /// The files below `paths`; `progress` hears how far the replay is, as often as the replay tells.
    pub fn new(paths: Paths, progress: Box<dyn FnMut(u64, u64)>) -> Self {
        Self {
            paths,
            open: HashMap::default(),
            ahead: None,
            announced: Vec::new(),
            spare: Vec::new(),
            progress,
            locked: Vec::new(),
            lock_bound: JOURNAL_LOCK_BOUND,
        }
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

    /// What could not be read ahead is read plainly from now on: a failed reader must not look like the file's end.
    fn failed_ahead(&mut self, file: FileId, error: &io::Error) -> IoError {
        self.ahead = None;
        io_error(&self.paths.file(file), "read", error)
    }

    /// The read-ahead that is at this place, begun now if it was announced.
    fn ahead_at(&mut self, file: FileId, offset: u64) -> Result<Option<&mut ReadAhead>, IoError> {
        if let Some(at) = self.announced.iter().position(|announced| *announced == (file, offset)) {
            self.announced.remove(at);
            if let Some((_, old)) = self.ahead.take() {
                self.spare.extend(old.end());
            }
            let ahead = ReadAhead::start(self.paths.file(file), offset, &mut self.spare)?;
            self.ahead = Some((file, ahead));
        }
        let ahead = self.ahead.as_mut().filter(|(of, ahead)| *of == file && ahead.position == offset);
        Ok(ahead.map(|(_, ahead)| ahead))
    }
}

impl RecoveryDisk for RealDisk {
    fn list(&mut self) -> Result<Vec<(FileId, u64)>, IoError> {
        let files = self.paths.list()?;
        self.locked.clear();
        for file in files.iter().map(|(file, _)| *file).filter(|file| matches!(file, FileId::Journal(_))) {
            let path = self.paths.file(file);
            let opened = open(&path, OpenMode::Existing)?;
            lock_journal(&path, &opened, self.lock_bound)?;
            self.locked.push(opened);
        }
        Ok(files)
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, IoError> {
        if let Some(ahead) = self.ahead_at(file, offset)? {
            let read = ahead.read(buffer);
            return read.map_err(|error| self.failed_ahead(file, &error));
        }
        let path = self.paths.file(file);
        let handle = self.handle(file, false)?;
        read_full(handle, offset, buffer).map_err(|error| io_error(&path, "read", &error))
    }

    fn read_pages(&mut self, file: FileId, offset: u64, pages: &mut Pages) -> Result<usize, IoError> {
        if let Some(ahead) = self.ahead_at(file, offset)?
            && let Some(read) = ahead.exchange(pages)
        {
            return read.map_err(|error| self.failed_ahead(file, &error));
        }
        self.read(file, offset, pages.bytes_mut())
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

/// One block of a file.
struct Block {
    memory: Pages,
    filled: usize,
}

impl Block {
    fn filled(&self) -> &[u8] {
        self.memory.bytes().get(..self.filled).unwrap_or_default()
    }
}

type BlockResult = io::Result<Block>;

/// A file being read ahead from one position on.
struct ReadAhead {
    /// Where the next [`Self::read`] is.
    position: u64,
    current: Option<Block>,
    /// Bytes of `current` that are used, or of the next block when there is none.
    used: usize,
    /// The file's last block was taken.
    ended: bool,
    /// Whose turn the next block is.
    turn: usize,
    full: Vec<flume::Receiver<BlockResult>>,
    empty: Vec<flume::Sender<Pages>>,
    threads: Vec<JoinHandle<Vec<Pages>>>,
}

impl ReadAhead {
    fn start(path: PathBuf, offset: u64, spare: &mut Vec<Pages>) -> Result<Self, IoError> {
        let align = JOURNAL_ALIGN as u64;
        let first = offset / align * align;
        let mut ahead = Self {
            position: offset,
            current: None,
            used: (offset - first) as usize,
            ended: false,
            turn: 0,
            full: Vec::new(),
            empty: Vec::new(),
            threads: Vec::new(),
        };
        for reader in 0..READERS {
            let file = open_direct(&path).map_err(|error| io_error(&path, "open", &error))?;
            let (full_sender, full) = flume::bounded(BLOCKS_AHEAD);
            let (empty, empty_receiver) = flume::unbounded();
            for _ in 0..=BLOCKS_AHEAD {
                let memory = spare.pop().unwrap_or_else(|| Pages::zeroed(BLOCK_BYTES));
                let _ = empty.send(memory);
            }
            let start = first + (reader * BLOCK_BYTES) as u64;
            let body = move || read_blocks(&file, start, full_sender, empty_receiver);
            let spawned = threads::spawn("pyra-replay", body);
            ahead.threads.push(spawned.map_err(|error| io_error(Path::new("a thread"), "start", &error))?);
            ahead.full.push(full);
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
                self.give_back();
                let Some(block) = self.next_block()? else { break };
                self.current = Some(block);
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

    /// The next whole block, in exchange for the memory in `pages`; `None` when the next bytes don't begin one.
    fn exchange(&mut self, pages: &mut Pages) -> Option<io::Result<usize>> {
        if self.current.as_ref().is_some_and(|block| self.used >= block.filled) {
            self.give_back();
        }
        if self.current.is_some() || self.used > 0 || pages.len() != BLOCK_BYTES {
            return None;
        }
        let mut block = match self.next_block() {
            Ok(Some(block)) => block,
            Ok(None) => return Some(Ok(0)),
            Err(error) => return Some(Err(error)),
        };
        std::mem::swap(pages, &mut block.memory);
        let filled = block.filled;
        self.position += filled as u64;
        self.current = Some(block);
        self.used = filled;
        self.give_back();
        Some(Ok(filled))
    }

    /// Gives the used block's memory to the reader it came from.
    fn give_back(&mut self) {
        let Some(old) = self.current.take() else { return };
        self.used = 0;
        let giver = (self.turn + READERS - 1) % READERS;
        if let Some(empty) = self.empty.get(giver) {
            let _ = empty.send(old.memory);
        }
    }

    /// Takes the next block; `None` at the end of the file.
    fn next_block(&mut self) -> io::Result<Option<Block>> {
        if self.ended {
            return Ok(None);
        }
        let Some(Ok(block)) = self.full.get(self.turn).map(flume::Receiver::recv) else {
            return Err(io::Error::other("the thread that reads ahead is gone"));
        };
        self.turn = (self.turn + 1) % READERS;
        let block = block.inspect_err(|_| self.ended = true)?;
        self.ended = block.filled < BLOCK_BYTES;
        Ok(Some(block))
    }

    /// Stops the readers; their memory.
    fn end(mut self) -> Vec<Pages> {
        self.stop()
    }

    fn stop(&mut self) -> Vec<Pages> {
        let mut spare: Vec<_> = self.current.take().map(|block| block.memory).into_iter().collect();
        for full in self.full.drain(..) {
            spare.extend(full.drain().filter_map(|block| Some(block.ok()?.memory)));
        }
        self.empty.clear();
        for thread in self.threads.drain(..) {
            spare.extend(thread.join().unwrap_or_default());
        }
        spare
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads every `READERS`th block from `at` on until the file ends or nobody takes any more; the memory left over.
fn read_blocks(
    file: &File,
    mut at: u64,
    full: flume::Sender<BlockResult>,
    empty: flume::Receiver<Pages>,
) -> Vec<Pages> {
    while let Ok(mut memory) = empty.recv() {
        let result = read_full(file, at, memory.bytes_mut());
        let last = !matches!(result, Ok(BLOCK_BYTES));
        let sent = full.send(result.map(|filled| Block { memory, filled }));
        if last || sent.is_err() {
            break;
        }
        at += (READERS * BLOCK_BYTES) as u64;
    }
    drop(full);
    empty.drain().collect()
}

#[cfg(test)]
mod tests {
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
                disk.will_read_sequentially(file, offset);
                let (mut exchanged, mut pages) = (Vec::new(), Pages::zeroed(BLOCK_BYTES));
                loop {
                    let at = offset + exchanged.len() as u64;
                    let count = disk.read_pages(file, at, &mut pages).unwrap();
                    exchanged.extend_from_slice(&pages.bytes()[..count]);
                    if count < BLOCK_BYTES {
                        break;
                    }
                }
                assert!(exchanged == read, "{len} from {offset}, by exchange");
                let mut one = [0; 4];
                let count = disk.read(file, 0, &mut one).unwrap();
                assert_eq!(&one[..count], &bytes[..len.min(4)], "a jump back is a plain read");
            }
        }
    }

    #[test]
    fn a_journal_that_somebody_may_still_write_to_is_waited_for_and_then_refused() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        disk(dir.path()).create_zeroed(FileId::Journal(3), 4 << 20).unwrap();
        let path = Paths::new(dir.path(), dir.path(), ShardId(0)).file(FileId::Journal(3));
        let other = open(&path, OpenMode::Direct).unwrap();
        let mut late = disk(dir.path());
        late.lock_bound = Duration::ZERO;
        let error = late.list().unwrap_err();
        assert!(error.detail.contains("3.journal is locked by another process"), "{}", error.detail);
        let waiting = std::thread::spawn({
            let dir = dir.path().to_owned();
            move || disk(&dir).list().map(|files| files.len())
        });
        drop(other);
        assert_eq!(waiting.join().unwrap().unwrap(), 1);
        late.list().unwrap();
        let blocked = File::open(&path).unwrap();
        assert!(blocked.try_lock().is_err(), "locked as long as the recovery lasts");
        drop(late);
        lock_journal(&path, &blocked, JOURNAL_LOCK_BOUND).unwrap();
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
        // The memory of this process opens but has nothing at address 0: an I/O error.
        let failing = Path::new("/proc/self/mem");
        std::os::unix::fs::symlink(failing, &path).unwrap();
        let bytes = pattern(BLOCK_BYTES);
        for exchange in [false, true] {
            disk.will_read_sequentially(file, 0);
            let mut pages = Pages::zeroed(BLOCK_BYTES);
            let error = match exchange {
                true => disk.read_pages(file, 0, &mut pages).unwrap_err(),
                false => disk.read(file, 0, pages.bytes_mut()).unwrap_err(),
            };
            assert!(error.detail.contains("0.journal"), "{}", error.detail);
            // What failed once and passes now must not look like the file's end.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(disk.read(file, 0, pages.bytes_mut()).unwrap(), BLOCK_BYTES);
            assert!(pages.bytes() == bytes);
            disk.delete(file).unwrap();
            std::os::unix::fs::symlink(failing, &path).unwrap();
        }
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
            let mut block = Pages::zeroed(BLOCK_BYTES);
            let mut at = 0;
            if ahead {
                disk.will_read_sequentially(file, 0);
            }
            while at < len {
                let count = match ahead {
                    true => disk.read_pages(file, at, &mut block).unwrap(),
                    false => read_full(&direct, at, block.bytes_mut()).unwrap(),
                };
                at += count as u64;
            }
            let rate = len as f64 / started.elapsed().as_secs_f64() / 1e9;
            println!("read-ahead {ahead}: {rate:.2} GB/s");
        }
    }
}
