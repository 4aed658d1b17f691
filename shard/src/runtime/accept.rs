//! Accepting a connection, for whoever listens in the runtime.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The next connection of a listener. The socket stays blocking, whatever the listener is: io_uring waits for such
/// sockets only.
pub(super) fn accept(listener: &TcpListener) -> io::Result<OwnedFd> {
    let (none, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: plain system call; the result is checked and owned by nobody else.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), none, no_len, libc::SOCK_CLOEXEC) };
    match fd >= 0 {
        // SAFETY: just made.
        true => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        false => Err(io::Error::last_os_error()),
    }
}

/// Whether accepting failed for a lack of descriptors or memory, which stays so for a while.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
