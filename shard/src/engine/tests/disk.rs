//! A disk in memory.

use std::collections::BTreeMap;

use pyralog_core::GroupId;

use crate::engine::{FileId, IoError, IoErrorKind, IoOp, IoResult, RecoveryDisk};

/// Files as byte vectors. Everything is durable at once.
#[derive(Clone, Debug, Default)]
pub(super) struct MemDisk {
    pub(super) files: BTreeMap<FileId, Vec<u8>>,
    /// Bytes that may still be added before writes answer "no space".
    pub(super) space: Option<usize>,
    /// The next operation on a file of this kind fails.
    pub(super) fail_next_journal_write: bool,
    /// The block of a file, by its first byte, that can't be read.
    pub(super) unreadable: Option<(FileId, u64)>,
    /// Bytes that the engine has read.
    pub(super) read_bytes: usize,
    /// Reads of files.
    pub(super) reads: usize,
}

fn missing(file: FileId) -> IoError {
    IoError { kind: IoErrorKind::NotFound, detail: format!("{file:?} does not exist") }
}

impl MemDisk {
    fn put(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let content = self.files.entry(file).or_default();
        let end = offset as usize + bytes.len();
        let growth = end.saturating_sub(content.len());
        if let Some(space) = &mut self.space {
            if growth > *space {
                return Err(IoError {
                    kind: IoErrorKind::NoSpace,
                    detail: format!("{file:?}: no space left"),
                });
            }
            *space -= growth;
        }
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn check_readable(&self, file: FileId, offset: u64, len: usize) -> Result<(), IoError> {
        match self.unreadable {
            Some((bad, at)) if bad == file && at < offset + len as u64 && at + 4096 > offset => {
                Err(IoError {
                    kind: IoErrorKind::Other,
                    detail: format!("{file:?}: input/output error at {at}"),
                })
            }
            _ => Ok(()),
        }
    }

    /// Runs one operation of the engine.
    pub(super) fn run(&mut self, op: IoOp) -> IoResult {
        match op {
            IoOp::JournalWrite { file, offset, data, .. } => {
                if std::mem::take(&mut self.fail_next_journal_write) {
                    return Err(IoError {
                        kind: IoErrorKind::Other,
                        detail: format!("{file:?}: input/output error"),
                    });
                }
                assert_eq!(offset % 4096, 0);
                assert_eq!(data.len() % 4096, 0);
                assert_eq!(data.offset() % 4096, 0);
                self.put(file, offset, data.bytes())?;
            }
            IoOp::Write { file, offset, data } => {
                let mut at = offset;
                for slice in data {
                    self.put(file, at, slice.bytes())?;
                    at += slice.len() as u64;
                }
            }
            IoOp::Sync { .. } => {}
            IoOp::CreateZeroed { file, len } => self.put(file, 0, &vec![0; len as usize])?,
            IoOp::Read { file, offset, len, mut into } => {
                self.check_readable(file, offset, len)?;
                let content = self.files.get(&file).ok_or_else(|| missing(file))?;
                let from = (offset as usize).min(content.len());
                let to = (from + len).min(content.len());
                // As a direct read leaves it: not at the memory's start, with something else around it.
                let (origin, whole) = match (file, into.direct_room().is_some()) {
                    (FileId::Segment(..), true) => (from % 4096, true),
                    _ => (0, false),
                };
                let memory = into.unfilled_mut().unwrap();
                if whole {
                    memory.fill(0xa5);
                }
                memory[origin..origin + to - from].copy_from_slice(&content[from..to]);
                into.set_read(origin, to - from);
                self.read_bytes += to - from;
                self.reads += 1;
                return Ok(Some(into));
            }
            IoOp::Truncate { file, len } => {
                if let Some(content) = self.files.get_mut(&file) {
                    content.truncate(len as usize);
                }
            }
            IoOp::Delete { file } => {
                self.files.remove(&file);
            }
            IoOp::DeleteGroup { group } => self.remove_group(group),
        }
        Ok(None)
    }

    fn remove_group(&mut self, group: GroupId) {
        self.files
            .retain(|file, _| !matches!(file, FileId::Segment(g, _) | FileId::Index(g, _) if *g == group));
    }
}

impl RecoveryDisk for MemDisk {
    fn list(&mut self) -> Result<Vec<(FileId, u64)>, IoError> {
        Ok(self.files.iter().map(|(file, content)| (*file, content.len() as u64)).collect())
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, IoError> {
        self.check_readable(file, offset, buffer.len())?;
        let content = self.files.get(&file).ok_or_else(|| missing(file))?;
        let from = (offset as usize).min(content.len());
        let to = (from + buffer.len()).min(content.len());
        buffer[..to - from].copy_from_slice(&content[from..to]);
        Ok(to - from)
    }

    fn will_read_sequentially(&mut self, _file: FileId, _offset: u64) {}

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        self.put(file, offset, bytes)
    }

    fn sync(&mut self, _file: FileId) -> Result<(), IoError> {
        Ok(())
    }

    fn create_zeroed(&mut self, file: FileId, len: u64) -> Result<(), IoError> {
        self.put(file, 0, &vec![0; len as usize])
    }

    fn truncate(&mut self, file: FileId, len: u64) -> Result<(), IoError> {
        self.run(IoOp::Truncate { file, len }).map(|_| ())
    }

    fn delete(&mut self, file: FileId) -> Result<(), IoError> {
        self.files.remove(&file);
        Ok(())
    }

    fn delete_group(&mut self, group: GroupId) -> Result<(), IoError> {
        self.remove_group(group);
        Ok(())
    }

    fn progress(&mut self, _done: u64, _total: u64) {}
}
