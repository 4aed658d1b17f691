//! The simulated disk as recovery sees it, with the power going at any of its calls.

use pyralog_core::GroupId;
use pyralog_shard::engine::{FileId, IoError, IoErrorKind, RecoveryDisk};

use crate::disk::SimDisk;

/// Blocking calls on a [`SimDisk`].
#[derive(Debug)]
pub(crate) struct Recovering<'a> {
    disk: &'a mut SimDisk,
    calls_left: Option<u64>,
    /// The power went: whatever recovery concluded counts for nothing.
    pub interrupted: bool,
    /// Calls made.
    pub calls: u64,
}

impl<'a> Recovering<'a> {
    /// Recovery on `disk`; the power goes after `calls_left` calls.
    pub(crate) fn new(disk: &'a mut SimDisk, calls_left: Option<u64>) -> Self {
        Self { disk, calls_left, interrupted: false, calls: 0 }
    }

    fn step(&mut self) -> Result<(), IoError> {
        self.calls += 1;
        match &mut self.calls_left {
            Some(0) => self.interrupted = true,
            Some(left) => *left -= 1,
            None => {}
        }
        match self.interrupted {
            true => Err(IoError { kind: IoErrorKind::Other, detail: "simulated: the power went".into() }),
            false => Ok(()),
        }
    }
}

impl RecoveryDisk for Recovering<'_> {
    fn list(&mut self) -> Result<Vec<(FileId, u64)>, IoError> {
        self.step()?;
        Ok(self.disk.list())
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, IoError> {
        self.step()?;
        self.disk.recovery_read(file, offset, buffer)
    }

    fn will_read_sequentially(&mut self, _file: FileId, _offset: u64) {}

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        self.step()?;
        self.disk.recovery_write(file, offset, bytes)
    }

    fn sync(&mut self, file: FileId) -> Result<(), IoError> {
        self.step()?;
        self.disk.recovery_sync(file)
    }

    fn create_zeroed(&mut self, file: FileId, len: u64) -> Result<(), IoError> {
        self.step()?;
        self.disk.recovery_create(file, len)
    }

    fn truncate(&mut self, file: FileId, len: u64) -> Result<(), IoError> {
        self.step()?;
        self.disk.recovery_truncate(file, len)
    }

    fn delete(&mut self, file: FileId) -> Result<(), IoError> {
        self.step()?;
        self.disk.recovery_delete(file);
        Ok(())
    }

    fn delete_group(&mut self, group: GroupId) -> Result<(), IoError> {
        self.step()?;
        self.disk.recovery_delete_group(group);
        Ok(())
    }

    fn progress(&mut self, _done: u64, _total: u64) {}
}
