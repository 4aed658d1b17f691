//! The helper threads of a shard's files: opening and removing on one, writing zeros into new journal files on
//! the other. They touch no memory of the shard.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyralog_core::GroupId;

use super::files::{knows_no_direct, open_direct};
use super::paths::{Paths, create_folder, io_error, sync_folder};
use super::threads;
use super::wake::Waker;
use crate::engine::{FileId, IoError, IoErrorKind, IoToken};

/// One write of zeros, bytes: large enough for the disk's bandwidth, small enough that a journal write which
/// comes between waits little.
const ZERO_STEP_BYTES: usize = 256 << 10;

/// How long the writes of a process that was killed may take to end.
pub(super) const JOURNAL_LOCK_BOUND: Duration = Duration::from_secs(10);
const JOURNAL_LOCK_RETRY: Duration = Duration::from_millis(5);

/// Aligned for direct writes.
#[repr(align(4096))]
struct Zeros([u8; ZERO_STEP_BYTES]);

static ZEROS: Zeros = Zeros([0; ZERO_STEP_BYTES]);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenMode {
    /// O_DIRECT and locked, existing only.
    Direct,
    /// O_DIRECT where the file system knows it, existing only.
    DirectRead,
    /// Buffered, existing only.
    Existing,
    /// Buffered, created durably when it is not there.
    Create,
}

/// Work for a helper.
#[derive(Debug)]
pub(super) enum Job {
    Open { id: u64, file: FileId, mode: OpenMode },
    Close { fd: OwnedFd },
    CreateZeroed { token: IoToken, file: FileId, len: u64, close: Vec<OwnedFd> },
    Truncate { token: IoToken, file: FileId, len: u64 },
    Delete { token: IoToken, file: FileId, close: Vec<OwnedFd> },
    DeleteGroup { token: IoToken, group: GroupId, close: Vec<OwnedFd> },
}

/// What a helper has done.
#[derive(Debug)]
pub(super) enum JobDone {
    Opened { id: u64, result: Result<OwnedFd, IoError> },
    Ended { token: IoToken, result: Result<(), IoError> },
}

/// Both threads and the channels to them.
#[derive(Debug)]
pub(super) struct Helpers {
    quick: Option<flume::Sender<Job>>,
    slow: Option<flume::Sender<Job>>,
    done: flume::Receiver<JobDone>,
    threads: Vec<JoinHandle<()>>,
}

impl Helpers {
    pub(super) fn start(paths: Paths, waker: Waker) -> io::Result<Self> {
        let (done_sender, done) = flume::unbounded();
        let mut running = Vec::new();
        let mut spawn = |name: &str| -> io::Result<flume::Sender<Job>> {
            let (sender, jobs) = flume::unbounded::<Job>();
            let (paths, done, waker) = (paths.clone(), done_sender.clone(), waker.clone());
            let body = move || {
                for job in jobs {
                    let Some(end) = run(&paths, job) else { continue };
                    if done.send(end).is_err() {
                        return;
                    }
                    waker.wake();
                }
            };
            running.push(threads::spawn(name, body)?);
            Ok(sender)
        };
        let quick = Some(spawn("pyra-files")?);
        let slow = Some(spawn("pyra-zeros")?);
        Ok(Self { quick, slow, done, threads: running })
    }

    pub(super) fn send(&self, job: Job) {
        let to = if matches!(job, Job::CreateZeroed { .. }) { &self.slow } else { &self.quick };
        if let Some(sender) = to {
            // The thread lives as long as `self`: it ends only when the senders are dropped.
            let _ = sender.send(job);
        }
    }

    pub(super) fn next_done(&self) -> Option<JobDone> {
        self.done.try_recv().ok()
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.quick = None;
        self.slow = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Does it; `None` when nobody wants to know of its end.
fn run(paths: &Paths, job: Job) -> Option<JobDone> {
    Some(match job {
        Job::Close { fd } => {
            drop(fd);
            return None;
        }
        Job::Open { id, file, mode } => {
            JobDone::Opened { id, result: open(&paths.file(file), mode).map(OwnedFd::from) }
        }
        Job::CreateZeroed { token, file, len, close } => {
            drop(close);
            JobDone::Ended { token, result: create_zeroed(&paths.file(file), len) }
        }
        Job::Truncate { token, file, len } => {
            JobDone::Ended { token, result: truncate(&paths.file(file), len) }
        }
        Job::Delete { token, file, close } => {
            let result = delete(&paths.file(file));
            drop(close);
            JobDone::Ended { token, result }
        }
        Job::DeleteGroup { token, group, close } => {
            let result = delete_group(&paths.group(group));
            drop(close);
            JobDone::Ended { token, result }
        }
    })
}

/// Locks a journal file (flock), waiting for who has it for at most `bound`.
///
/// A write that a killed process has given to the kernel holds the open file, and so the lock, until it has ended; the
/// lock of the data folder is free before. Who has this lock knows that nobody else's write is on its way.
pub(super) fn lock_journal(path: &Path, file: &File, bound: Duration) -> Result<(), IoError> {
    let end = Instant::now() + bound;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(JOURNAL_LOCK_RETRY),
            Err(TryLockError::WouldBlock) => {
                let detail = format!(
                    "{} is locked by another process, or a write of one that was killed has not ended after {} s; if \
                     no node runs on it the disk hangs, see the kernel's log (dmesg)",
                    path.display(),
                    bound.as_secs()
                );
                return Err(IoError { kind: IoErrorKind::Other, detail });
            }
            Err(TryLockError::Error(error)) => return Err(io_error(path, "lock", &error)),
        }
    }
}

pub(super) fn open(path: &Path, mode: OpenMode) -> Result<File, IoError> {
    let fail = |error: &io::Error| io_error(path, "open", error);
    let mut options = File::options();
    options.read(true).write(true);
    match mode {
        OpenMode::Direct => {
            let file = open_direct(path).map_err(|error| fail(&error))?;
            lock_journal(path, &file, JOURNAL_LOCK_BOUND)?;
            Ok(file)
        }
        OpenMode::DirectRead => open_direct(path).map_err(|error| fail(&error)),
        OpenMode::Existing => options.open(path).map_err(|error| fail(&error)),
        OpenMode::Create => match options.open(path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().unwrap_or(Path::new("."));
                create_folder(folder)?;
                let file = options.create(true).mode(0o640).open(path).map_err(|error| fail(&error))?;
                sync_folder(folder)?;
                Ok(file)
            }
            Err(error) => Err(fail(&error)),
        },
    }
}

/// Creates `path` with `len` bytes of written zeros, durable with its name. A file that fails half way is
/// removed, so that the space is not lost.
pub(super) fn create_zeroed(path: &Path, len: u64) -> Result<(), IoError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    create_folder(folder)?;
    let fail = |error: &io::Error| io_error(path, "write zeros to", error);
    let write = || -> io::Result<()> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o640);
        // Direct, so that no pile of dirty pages waits for the flush at the end, which the journal's own flushes
        // would have to share.
        let direct = len.is_multiple_of(ZEROS.0.len() as u64);
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = match options.clone().custom_flags(flags).open(path) {
            Err(error) if knows_no_direct(&error) => options.open(path)?,
            result => result?,
        };
        // SAFETY: plain system call on a live descriptor. Only a reservation: a full disk shows at once.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len as i64) } {
            0 | libc::EOPNOTSUPP | libc::EINVAL => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
        let mut at = 0;
        while at < len {
            let step = (len - at).min(ZEROS.0.len() as u64);
            file.write_all_at(ZEROS.0.get(..step as usize).unwrap_or_default(), at)?;
            at += step;
        }
        file.sync_all()
    };
    if let Err(error) = write() {
        let _ = std::fs::remove_file(path);
        return Err(fail(&error));
    }
    sync_folder(folder)
}

pub(super) fn truncate(path: &Path, len: u64) -> Result<(), IoError> {
    let cut = || File::options().write(true).open(path)?.set_len(len);
    cut().map_err(|error| io_error(path, "cut", &error))
}

pub(super) fn delete(path: &Path) -> Result<(), IoError> {
    ignore_missing(std::fs::remove_file(path).map_err(|error| io_error(path, "remove", &error)))
}

pub(super) fn delete_group(path: &Path) -> Result<(), IoError> {
    ignore_missing(std::fs::remove_dir_all(path).map_err(|error| io_error(path, "remove the folder", &error)))
}

fn ignore_missing(result: Result<(), IoError>) -> Result<(), IoError> {
    match result {
        Err(error) if error.kind == IoErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Fills `buffer` from `offset`; shorter only at the end of the file.
pub(super) fn read_full(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<usize> {
    let wanted = buffer.len();
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => break,
            Ok(count) => {
                offset += count as u64;
                buffer = buffer.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wanted - buffer.len())
}
