//! The floor's append file: written once from end to end, then overwritten in a circle (decision D2).

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;

use crate::aligned::{ALIGN, AlignedBuffer};

const FILL_BYTES: usize = 1 << 20;

/// A file open for O_DIRECT whose blocks have all been written before.
pub struct WrittenFile {
    file: File,
    len: u64,
    next: u64,
}

impl WrittenFile {
    /// Creates (or takes over) `path` and writes all of its `len` bytes, rounded up to whole MiB, once.
    pub fn create(path: &Path, len: u64) -> anyhow::Result<Self> {
        let len = len.max(1).next_multiple_of(FILL_BYTES as u64);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .with_context(|| {
                format!("{}: can't be opened for O_DIRECT; choose a folder on a real disk", path.display())
            })?;
        let zeros = AlignedBuffer::zeroed(FILL_BYTES)?;
        let mut at = 0;
        while at < len {
            file.write_all_at(&zeros, at).with_context(|| format!("{}: can't be filled", path.display()))?;
            at += FILL_BYTES as u64;
        }
        file.sync_all().with_context(|| format!("{}: can't be flushed", path.display()))?;
        Ok(Self { file, len, next: 0 })
    }

    /// Where the next append of `bytes` (a multiple of the unit) goes; begins again at 0 after the end.
    pub fn reserve(&mut self, bytes: usize) -> u64 {
        debug_assert_eq!(bytes % ALIGN, 0);
        let bytes = bytes as u64;
        if self.next + bytes > self.len {
            self.next = 0;
        }
        let at = self.next;
        self.next += bytes;
        at
    }

    /// Its descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its length, bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }
}
