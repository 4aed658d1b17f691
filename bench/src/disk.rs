//! What the disk gives: sequential bandwidth by O_DIRECT and the latency of durable appends.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use io_uring::{IoUring, opcode, types};

use crate::aligned::{ALIGN, AlignedBuffer};
use crate::floor::{WrittenFile, append_latencies};
use crate::latency::{Latencies, Summary};

/// Operations under way while bandwidth is measured.
pub const DEPTH: usize = 4;
const BLOCK_BYTES: usize = 1 << 20;
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Written again and again by appends beside reads.
const APPENDED_BYTES: u64 = 16 << 20;
const FILE_NAME: &str = "disk.bench";

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct DiskFigures {
    /// Sequential writes over written blocks with RWF_DSYNC, 1 MiB, depth [`DEPTH`], bytes per second.
    pub write_bytes_per_second: f64,
    /// Sequential reads, 1 MiB, depth [`DEPTH`], bytes per second.
    pub read_bytes_per_second: f64,
    /// First touch of fresh memory on huge pages by a thread per core, bytes per second: a replay into the cache
    /// can't be faster, and a virtual machine may have to get the memory from its host first.
    pub touch_bytes_per_second: f64,
    /// One 4 KiB append with RWF_DSYNC over written blocks at a time.
    pub append: Summary,
}

/// Measures in `dir`, in a file of `file_bytes` that is removed afterwards.
pub fn measure(dir: &Path, file_bytes: u64, appends: usize) -> anyhow::Result<DiskFigures> {
    let path = dir.join(FILE_NAME);
    let measured = measure_file(&path, file_bytes, appends);
    let removed = fs::remove_file(&path).with_context(|| format!("{}: can't be removed", path.display()));
    let figures = measured?;
    removed?;
    Ok(figures)
}

/// Sequential durable writes as [`measure`] does them, over a file of `file_bytes` in `dir` that is removed afterwards; bytes per
/// second.
pub fn write_bandwidth(dir: &Path, file_bytes: u64) -> anyhow::Result<f64> {
    let folder = tempfile::Builder::new().prefix("pyralog-disk-").tempdir_in(dir)?;
    stream(&WrittenFile::create(&folder.path().join(FILE_NAME), file_bytes)?, true)
}

/// What the disk gives to readers, and what that does to one who appends.
pub struct ReadFigures {
    /// Sequential reads as [`measure`] does them, with nobody else there, bytes per second.
    pub read_bytes_per_second: f64,
    /// 4 KiB durable appends, one at a time, with nobody else there.
    pub appends_alone: Latencies,
    /// The same while somebody reads as fast as the disk gives it.
    pub appends_beside_reads: Latencies,
}

/// Measures it in two files in `dir` that are removed afterwards: one of `file_bytes` is read, and appends go on for
/// `time` without and with that.
///
/// # Errors
/// When the folder takes no O_DIRECT.
pub fn measure_reads(dir: &Path, file_bytes: u64, time: Duration) -> anyhow::Result<ReadFigures> {
    let folder = tempfile::Builder::new().prefix("pyralog-disk-").tempdir_in(dir)?;
    let file = WrittenFile::create(&folder.path().join(FILE_NAME), file_bytes)?;
    let mut appended = WrittenFile::create(&folder.path().join("append.bench"), APPENDED_BYTES)?;
    let read_bytes_per_second = stream(&file, false)?;
    let appends_alone = append_latencies(&mut appended, false, time)?;
    let stop = AtomicBool::new(false);
    let appends_beside_reads = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                stream(&file, false)?;
            }
            anyhow::Ok(())
        });
        let appended = append_latencies(&mut appended, false, time);
        stop.store(true, Ordering::Relaxed);
        reading.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))??;
        appended
    })?;
    Ok(ReadFigures { read_bytes_per_second, appends_alone, appends_beside_reads })
}

fn measure_file(path: &Path, file_bytes: u64, appends: usize) -> anyhow::Result<DiskFigures> {
    let mut file = WrittenFile::create(path, file_bytes)?;
    let mut latencies = Latencies::new()?;
    let block = AlignedBuffer::zeroed(ALIGN)?;
    for _ in 0..appends {
        let at = file.reserve(ALIGN);
        let begin = Instant::now();
        write_durably(&file, &block, at)?;
        latencies.record_ns(begin.elapsed().as_nanos() as u64);
    }
    let write_bytes_per_second = stream(&file, true)?;
    let read_bytes_per_second = stream(&file, false)?;
    let touch_bytes_per_second = touch(file_bytes as usize)?;
    let append = latencies.summary();
    Ok(DiskFigures { write_bytes_per_second, read_bytes_per_second, touch_bytes_per_second, append })
}

/// Maps `len` bytes and writes to each page once; bytes per second.
fn touch(len: usize) -> anyhow::Result<f64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = (len / threads).next_multiple_of(HUGE_PAGE_BYTES);
    let begin = Instant::now();
    let workers: Vec<_> = (0..threads).map(|_| std::thread::spawn(move || touch_share(share))).collect();
    for worker in workers {
        worker.join().map_err(|_| anyhow::anyhow!("a thread that touches memory panicked"))??;
    }
    Ok((share * threads) as f64 / begin.elapsed().as_secs_f64())
}

fn touch_share(len: usize) -> anyhow::Result<()> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let room = len + HUGE_PAGE_BYTES;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing of ours.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), room, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("no memory to touch");
    }
    let before = mapped.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
    // SAFETY: the advice and the writes stay within the mapping, which is given back whole and not used again.
    unsafe {
        let start = mapped.cast::<u8>().add(before);
        libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
        for at in (0..len).step_by(ALIGN) {
            start.add(at).write_volatile(1);
        }
        libc::munmap(mapped, room);
    }
    Ok(())
}

fn write_durably(file: &WrittenFile, block: &AlignedBuffer, at: u64) -> anyhow::Result<()> {
    let vector = libc::iovec { iov_base: block.as_ptr().cast_mut().cast(), iov_len: block.len() };
    // SAFETY: the vector names `block`, which is only read and outlives the call.
    let written = unsafe { libc::pwritev2(file.fd(), &vector, 1, at as libc::off_t, libc::RWF_DSYNC) };
    if written < 0 {
        return Err(std::io::Error::last_os_error()).context("a durable append failed");
    }
    anyhow::ensure!(written as usize == block.len(), "short append: {written} bytes");
    Ok(())
}

/// One pass over the whole file; bytes per second.
fn stream(file: &WrittenFile, write: bool) -> anyhow::Result<f64> {
    let mut buffers = Vec::new();
    for _ in 0..DEPTH {
        buffers.push(AlignedBuffer::zeroed(BLOCK_BYTES)?);
    }
    let mut ring = IoUring::new(16).context("io_uring is refused; check sysctl kernel.io_uring_disabled")?;
    let begin = Instant::now();
    let outcome = stream_on(&mut ring, file, &mut buffers, write);
    let seconds = begin.elapsed().as_secs_f64();
    if outcome.is_err() {
        // Something may still be under way into the buffers.
        std::mem::forget(buffers);
    }
    outcome?;
    if write {
        file.file().sync_all()?;
    }
    Ok(file.len_bytes() as f64 / seconds)
}

fn stream_on(
    ring: &mut IoUring,
    file: &WrittenFile,
    buffers: &mut [AlignedBuffer],
    write: bool,
) -> anyhow::Result<()> {
    let blocks = file.len_bytes() / BLOCK_BYTES as u64;
    let mut next = 0;
    let mut free: Vec<usize> = (0..buffers.len()).collect();
    let mut done = 0;
    while done < blocks {
        while next < blocks
            && let Some(index) = free.pop()
            && let Some(buffer) = buffers.get_mut(index)
        {
            let (fd, at, len) = (types::Fd(file.fd()), next * BLOCK_BYTES as u64, BLOCK_BYTES as u32);
            let entry = if write {
                opcode::Write::new(fd, buffer.as_mut_ptr(), len).offset(at).rw_flags(libc::RWF_DSYNC).build()
            } else {
                opcode::Read::new(fd, buffer.as_mut_ptr(), len).offset(at).build()
            };
            // SAFETY: the buffer is not reused before this operation's completion gives its index back.
            unsafe { ring.submission().push(&entry.user_data(index as u64)) }.context("the ring is full")?;
            next += 1;
        }
        ring.submit_and_wait(1).context("io_uring_enter failed")?;
        for entry in ring.completion() {
            if entry.result() < 0 {
                return Err(std::io::Error::from_raw_os_error(-entry.result()))
                    .context("sequential I/O failed");
            }
            anyhow::ensure!(entry.result() as usize == BLOCK_BYTES, "short I/O: {} bytes", entry.result());
            free.push(entry.user_data() as usize);
            done += 1;
        }
    }
    Ok(())
}
