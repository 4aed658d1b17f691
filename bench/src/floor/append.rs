//! One durable append at a time over a raw io_uring: what the disk alone takes.

use std::time::{Duration, Instant};

use anyhow::Context;
use io_uring::{IoUring, opcode, types};

use super::WrittenFile;
use crate::aligned::{ALIGN, AlignedBuffer};
use crate::latency::Latencies;

/// Appends of one unit (4 KiB) by O_DIRECT and RWF_DSYNC over written blocks, one at a time, for this long. With
/// `spin` the thread asks for the completion again and again instead of sleeping until it is there.
///
/// # Errors
/// When io_uring is refused or an append fails.
pub fn append_latencies(file: &mut WrittenFile, spin: bool, time: Duration) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new()?;
    let mut buffer = AlignedBuffer::zeroed(ALIGN)?;
    let mut ring = ring(spin)?;
    let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the buffer outlives the ring's use of it: each append is awaited before the next, and leaked with the
    // ring's last append if that can't be awaited.
    unsafe { ring.submitter().register_buffers(&[vector]) }
        .context("can't register buffers; raise the memlock limit: ulimit -l unlimited")?;
    ring.submitter().register_files(&[file.fd()]).context("can't register the file")?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        let at = file.reserve(ALIGN);
        let sent = Instant::now();
        if let Err(error) = append(&mut ring, &mut buffer, at, spin) {
            std::mem::forget(buffer);
            return Err(error);
        }
        latencies.record_ns(sent.elapsed().as_nanos() as u64);
    }
    Ok(latencies)
}

/// A ring as the floor server's. Only one that is polled needs to be told of work that waits in the kernel.
pub(super) fn ring(spin: bool) -> anyhow::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_cqsize(1024);
    if spin {
        builder.setup_taskrun_flag();
    }
    builder.build(256).context("io_uring is refused: needs Linux 6.1 and sysctl kernel.io_uring_disabled=0")
}

/// Submits what is queued and comes back when at least one operation is done.
pub(super) fn enter(ring: &mut IoUring, spin: bool) -> std::io::Result<()> {
    if !spin {
        return ring.submit_and_wait(1).map(drop);
    }
    loop {
        let (queued, waits) = {
            let queue = ring.submission();
            (!queue.is_empty(), queue.taskrun())
        };
        if queued || waits {
            ring.submit()?;
        }
        if !ring.completion().is_empty() {
            return Ok(());
        }
        std::hint::spin_loop();
    }
}

fn append(ring: &mut IoUring, buffer: &mut AlignedBuffer, at: u64, spin: bool) -> anyhow::Result<()> {
    let entry = opcode::WriteFixed::new(types::Fixed(0), buffer.as_mut_ptr(), ALIGN as u32, 0)
        .offset(at)
        .rw_flags(libc::RWF_DSYNC)
        .build();
    // SAFETY: the buffer stays untouched until the completion, which is awaited below.
    unsafe { ring.submission().push(&entry) }.context("the ring is full")?;
    loop {
        match enter(ring, spin) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            entered => entered.context("io_uring_enter failed")?,
        }
        if let Some(done) = ring.completion().next() {
            let result = done.result();
            if result < 0 {
                return Err(std::io::Error::from_raw_os_error(-result)).context("a durable append failed");
            }
            anyhow::ensure!(result as usize == ALIGN, "short append: {result} of {ALIGN} bytes");
            return Ok(());
        }
    }
}
