//! Waking a shard from another thread: a flag and an eventfd, so that a busy shard costs its senders no
//! system call.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes one shard. Cheap to clone; may be used from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    eventfd: OwnedFd,
    /// Set while a wake-up is on its way and the shard has not looked at its channels yet.
    notified: AtomicBool,
}

impl Waker {
    /// A waker with an eventfd of its own. Fails when no descriptor is left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call; the descriptor is checked and owned by nobody else. It blocks, as io_uring
        // waits only on descriptors that do; nobody reads it but the ring.
        let eventfd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { inner: Arc::new(Inner { eventfd, notified: AtomicBool::new(false) }) })
    }

    /// To be called after something was put into a channel of the shard.
    pub fn wake(&self) {
        if !self.inner.notified.swap(true, Ordering::AcqRel) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: writes eight bytes from a live buffer. It can't fail: the counter is at most one.
            unsafe { libc::write(self.inner.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// The shard is about to look at its channels: whatever comes after wakes it again.
    pub fn clear(&self) {
        self.inner.notified.store(false, Ordering::SeqCst);
    }

    /// The eventfd that the shard's ring reads.
    pub fn fd(&self) -> i32 {
        self.inner.eventfd.as_raw_fd()
    }
}
