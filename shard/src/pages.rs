//! Memory for direct I/O: page aligned, zeroed at first, and never touched before it is used.
//!
//! Large pieces come from the kernel as they are, without a pass over them: their pages appear when they are
//! first written to, by a read of the disk for instance. With huge pages that is one fault for 2 MiB instead of
//! 512, which is most of what a replay of many GiB costs (`docs/decisions/0005-huge-pages.md`).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use pyralog_core::limits::JOURNAL_ALIGN;

static HUGE: AtomicBool = AtomicBool::new(false);

/// A huge page of x86-64 and of arm64 with 4 KiB pages, bytes.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Whether memory taken from now on asks for transparent huge pages (`runtime.hugepages`).
pub fn use_transparent_hugepages(on: bool) {
    HUGE.store(on, Ordering::Relaxed);
}

/// An exclusively owned piece of memory of fixed size; every byte is initialised, zero at first.
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
    from: Source,
}

#[derive(Clone, Copy)]
enum Source {
    Nothing,
    Allocator,
    Kernel,
}

// SAFETY: plain memory with one owner, not bound to a thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Zeroed memory of `len` bytes. Ends the process when there is none, as the allocator does.
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        if len.is_multiple_of(HUGE_PAGE_BYTES)
            && let Some(start) = map_aligned(len)
        {
            return Self { start, len, from: Source::Kernel };
        }
        let layout = layout(len);
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, len, from: Source::Allocator }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is of no size.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised from the start, owned, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All of it, to write to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self { start: NonNull::dangling(), len: 0, from: Source::Nothing }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        match self.from {
            Source::Nothing => {}
            // SAFETY: allocated in `zeroed` with this layout, freed once.
            Source::Allocator => unsafe { dealloc(self.start.as_ptr(), layout(self.len)) },
            // SAFETY: a mapping of exactly this range made by `map_aligned`, given back once.
            Source::Kernel => unsafe {
                libc::munmap(self.start.as_ptr().cast(), self.len);
            },
        }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({:p}, {})", self.start, self.len)
    }
}

fn layout(len: usize) -> Layout {
    match Layout::from_size_align(len, JOURNAL_ALIGN) {
        Ok(layout) => layout,
        Err(_) => unreachable!("sizes of I/O memory are bounded by limits"),
    }
}

/// `len` bytes of fresh memory that begin at a huge page's border.
fn map_aligned(len: usize) -> Option<NonNull<u8>> {
    let room = len.checked_add(HUGE_PAGE_BYTES)?;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing of ours.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), room, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return None;
    }
    let before = mapped.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
    let start = mapped.cast::<u8>().wrapping_add(before);
    let after = room - before - len;
    // SAFETY: both ends lie inside the mapping just made, outside what is kept, and nobody knows of them.
    unsafe {
        if before > 0 {
            libc::munmap(mapped, before);
        }
        if after > 0 {
            libc::munmap(start.wrapping_add(len).cast(), after);
        }
        if HUGE.load(Ordering::Relaxed) {
            // Advice: where the kernel has none, ordinary pages do.
            libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
        }
    }
    NonNull::new(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_every_source_is_zero_aligned_and_writable() {
        for len in [0, 1, 4096, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 4096, 2 * HUGE_PAGE_BYTES] {
            let mut pages = Pages::zeroed(len);
            assert_eq!(pages.len(), len);
            assert_eq!(pages.is_empty(), len == 0);
            assert!(pages.bytes().iter().all(|byte| *byte == 0));
            assert!(len == 0 || pages.as_ptr().align_offset(JOURNAL_ALIGN) == 0);
            assert!(
                len == 0
                    || !len.is_multiple_of(HUGE_PAGE_BYTES)
                    || pages.as_ptr().align_offset(HUGE_PAGE_BYTES) == 0
            );
            pages.bytes_mut().fill(7);
            let moved = std::thread::spawn(move || pages).join().unwrap();
            assert!(moved.bytes().iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn what_is_dropped_goes_back_to_the_kernel() {
        let mapped = || {
            let status = std::fs::read_to_string("/proc/self/statm").unwrap();
            status.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = mapped();
        for _ in 0..64 {
            drop(Pages::zeroed(32 * HUGE_PAGE_BYTES));
        }
        assert!(mapped() < before + 64 * 32 * HUGE_PAGE_BYTES / 2, "4 GiB were mapped and given back");
    }
}
