//! The receive buffers of a shard: a ring of provided buffers, so that an idle connection holds none. The
//! kernel picks one when bytes arrive; it goes back as soon as its frames are handled.
//!
//! Owner: the shard's thread; the memory belongs to the [`super::ring::Ring`] that it is registered with.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// The buffer group's id.
pub const GROUP: u16 = 1;

/// Anonymous memory, populated by use.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping; the result is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Self { start, len }),
            None => Err(io::Error::other("mmap returned address zero")),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Provided buffers and the ring that hands them to the kernel.
pub struct RecvBuffers {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    bytes: usize,
    tail: u16,
    /// Buffers with the kernel; the others are being read or held.
    with_kernel: u16,
}

impl std::fmt::Debug for RecvBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecvBuffers({} x {}, {} with the kernel)", self.count, self.bytes, self.with_kernel)
    }
}

impl RecvBuffers {
    /// `count` (a power of two) buffers of `bytes` each, all with the kernel.
    pub(super) fn new(count: u16, bytes: usize) -> io::Result<Self> {
        if !count.is_power_of_two() {
            return Err(io::Error::other("the number of receive buffers is a power of two"));
        }
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * bytes)?;
        let mut buffers = Self { entries, memory, count, bytes, tail: 0, with_kernel: 0 };
        for id in 0..count {
            buffers.give_back(id);
        }
        Ok(buffers)
    }

    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        // SAFETY: the mapping outlives the ring, which drops it after itself.
        unsafe {
            submitter.register_buf_ring_with_flags(self.entries.start.as_ptr() as u64, self.count, GROUP, 0)
        }
    }

    /// The first `len` bytes of buffer `id`, which the kernel gave us.
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < self.count && len <= self.bytes, "the kernel names a buffer that it was given");
        // SAFETY: inside the mapping by the assertion; the kernel writes a buffer only while it has it.
        unsafe {
            std::slice::from_raw_parts(self.memory.start.as_ptr().add(usize::from(id) * self.bytes), len)
        }
    }

    /// The kernel picked a buffer.
    pub fn taken(&mut self) {
        self.with_kernel = self.with_kernel.saturating_sub(1);
    }

    /// Buffers that the kernel can pick from.
    pub fn with_kernel(&self) -> u16 {
        self.with_kernel
    }

    /// Gives buffer `id` to the kernel again.
    pub fn give_back(&mut self, id: u16) {
        assert!(id < self.count, "a buffer of this group");
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: `at` is below the number of entries; the kernel reads entries below the tail only.
        let entry = unsafe { &mut *self.entries.start.as_ptr().cast::<BufRingEntry>().add(at) };
        // SAFETY: inside the mapping.
        let start = unsafe { self.memory.start.as_ptr().add(usize::from(id) * self.bytes) };
        entry.set_addr(start as u64);
        entry.set_len(self.bytes as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.with_kernel += 1;
        // SAFETY: the tail lies in the first entry's reserved field, inside the mapping; the release store
        // publishes the entry written above.
        unsafe {
            let tail =
                BufRingEntry::tail(self.entries.start.as_ptr().cast::<BufRingEntry>()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}
