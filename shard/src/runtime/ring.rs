//! The shard's own io_uring: journal, files and hot sockets (decision D12).
//!
//! The ring owns what its operations point to: every operation carries an *owner*, which holds its buffers and
//! comes back with the completion. Dropping the ring first drains it, so no buffer is freed under the kernel.
//!
//! Owner: the shard's thread (`SINGLE_ISSUER`).

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::recv_buffers::RecvBuffers;
use super::threads;

/// Entries of the submission queue; a pass that has more submits in between.
const SUBMISSION_ENTRIES: u32 = 1024;
/// Entries of the completion queue; what exceeds it waits in the kernel and is never lost.
const COMPLETION_ENTRIES: u32 = 8192;
/// How long dropping a ring waits for the kernel to give buffers back before it leaks them instead.
const DRAIN_BOUND: Duration = Duration::from_secs(10);
/// `user_data` of operations whose completion nobody wants (cancellations).
const IGNORED: u64 = u64::MAX;

/// Names one operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpKey(u64);

impl OpKey {
    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion<T> {
    /// What the operation was and what it owned.
    pub owner: T,
    /// As the system call would have returned it: a count, or a negated errno.
    pub result: i32,
    /// Flags of the completion (`io_uring::cqueue::{buffer_select, sock_nonempty}` read them).
    pub flags: u32,
}

/// Totals of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Operations submitted.
    pub submitted: u64,
    /// Operations in flight now.
    pub in_flight: u64,
    /// Completions that found the completion queue full.
    pub overflows: u64,
}

struct Slot<T> {
    generation: u32,
    owner: Option<T>,
    /// Ends by the time that it is submitted; no completion unless it fails.
    instant: bool,
}

/// One raw io_uring with a slab of the operations in flight.
pub struct Ring<T> {
    // Dropped first: the kernel lets go of `recv_buffers` when the ring is closed.
    uring: IoUring,
    recv_buffers: Option<RecvBuffers>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// Completions taken from the kernel and not yet given out.
    ready: VecDeque<(OpKey, i32, u32)>,
    /// Operations that succeed silently, with the result that they have then.
    instant: Vec<(OpKey, i32)>,
    stats: RingStats,
}

impl<T> std::fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// The kernel refuses what the runtime needs; the text names the command that mends it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RingError(String);

impl<T> Ring<T> {
    /// A ring that belongs to the calling thread.
    pub fn new() -> Result<Self, RingError> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .dontfork()
            .setup_cqsize(COMPLETION_ENTRIES)
            .build(SUBMISSION_ENTRIES)
            .map_err(|error| RingError(refusal(&error)))?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_skip_cqe_on_success() {
            return Err(RingError(refusal(&io::Error::from_raw_os_error(libc::EINVAL))));
        }
        if let Some(cpus) = threads::cpus() {
            // The kernel's workers, which copy what is written to segments. Without it they run in front of the shard.
            let _ = uring.submitter().register_iowq_aff(cpus);
        }
        Ok(Self {
            uring,
            recv_buffers: None,
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            instant: Vec::new(),
            stats: RingStats::default(),
        })
    }

    /// Registers `count` (a power of two) receive buffers of `bytes` each as buffer group
    /// [`super::recv_buffers::GROUP`].
    pub fn provide_recv_buffers(&mut self, count: u16, bytes: usize) -> Result<(), RingError> {
        let buffers = RecvBuffers::new(count, bytes).map_err(|error| {
            RingError(format!("receive buffers of {} bytes: {error}", usize::from(count) * bytes))
        })?;
        buffers.register(&self.uring.submitter()).map_err(|error| RingError(refusal(&error)))?;
        self.recv_buffers = Some(buffers);
        Ok(())
    }

    /// The receive buffers.
    pub fn recv_buffers(&mut self) -> Option<&mut RecvBuffers> {
        self.recv_buffers.as_mut()
    }

    /// Queues an operation; it starts at the next [`Self::enter`].
    ///
    /// # Safety
    /// All memory that `entry` refers to is owned by `owner`, at an address that moving `owner` does not change,
    /// and nobody else writes it (or reads it, if the kernel writes it) until the completion.
    pub unsafe fn push(&mut self, entry: squeue::Entry, owner: T) -> OpKey {
        // SAFETY: the caller's promise.
        unsafe { self.push_slot(entry, owner, false) }
    }

    /// Queues an operation that never waits (a `MSG_DONTWAIT` send of which a short count is a failure). When
    /// it succeeds the kernel posts nothing, so it wakes nobody: the ring itself completes it with
    /// `success_result` after the [`Self::enter`] that issued it.
    ///
    /// # Safety
    /// As for [`Self::push`]; and the operation is one that the kernel ends while it is issued.
    pub unsafe fn push_instant(&mut self, entry: squeue::Entry, owner: T, success_result: i32) -> OpKey {
        // SAFETY: the caller's promise.
        let key = unsafe { self.push_slot(entry.flags(squeue::Flags::SKIP_SUCCESS), owner, true) };
        self.instant.push((key, success_result));
        key
    }

    /// # Safety
    /// As for [`Self::push`].
    unsafe fn push_slot(&mut self, entry: squeue::Entry, owner: T, instant: bool) -> OpKey {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, owner: None, instant: false });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.owner = Some(owner);
        slot.instant = instant;
        let key = OpKey::new(index, slot.generation);
        self.stats.in_flight += 1;
        // SAFETY: the slot keeps the owner until the completion.
        unsafe { self.push_entry(entry.user_data(key.0)) };
        key
    }

    /// # Safety
    /// What the entry refers to lives until its completion.
    unsafe fn push_entry(&mut self, entry: squeue::Entry) {
        self.stats.submitted += 1;
        // SAFETY: the caller's promise.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            // Full: hand over what is there. An error here (EBUSY, EINTR) passes once completions are taken.
            let _ = self.submit_only();
        }
    }

    /// Asks the kernel to end an operation early; its completion comes in any case.
    pub fn cancel(&mut self, key: OpKey) {
        // SAFETY: a cancellation refers to no memory.
        unsafe { self.push_entry(opcode::AsyncCancel::new(key.0).build().user_data(IGNORED)) };
    }

    /// Whether completions are waiting to be given out.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether the kernel has something for us that an [`Self::enter`] would fetch; reads memory only.
    pub fn kernel_has_completions(&mut self) -> bool {
        let queue = self.uring.submission();
        if queue.taskrun() || queue.cq_overflow() {
            return true;
        }
        drop(queue);
        !self.uring.completion().is_empty()
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> u64 {
        self.stats.in_flight
    }

    /// Totals.
    pub fn stats(&self) -> RingStats {
        self.stats
    }

    /// Submits what is queued and takes all completions. With `wait`, sleeps until there is one or the time is
    /// over (`Some(None)`: no bound). One system call; none when there is nothing to submit, fetch or await.
    pub fn enter(&mut self, wait: Option<Option<Duration>>) -> io::Result<()> {
        let result = match wait {
            Some(timeout) if self.ready.is_empty() => self.submit_and_wait(timeout),
            _ => self.submit_only(),
        };
        self.reap();
        match result {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn submit_and_wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stats.enters += 1;
        match timeout {
            None => self.uring.submitter().submit_and_wait(1).map(drop),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec)).map(drop)
            }
        }
    }

    fn submit_only(&mut self) -> io::Result<()> {
        let queue = self.uring.submission();
        let nothing = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if nothing {
            return Ok(());
        }
        self.stats.enters += 1;
        let result = self.uring.submit().map(drop);
        self.reap();
        result
    }

    /// Moves completions to `ready`, then completes the instant operations that did not fail.
    fn reap(&mut self) {
        loop {
            let mut completion = self.uring.completion();
            completion.sync();
            for entry in &mut completion {
                if entry.user_data() == IGNORED {
                    continue;
                }
                let key = OpKey(entry.user_data());
                if let Some(slot) = self.slots.get_mut(key.index()) {
                    slot.instant = false;
                }
                self.ready.push_back((key, entry.result(), entry.flags()));
            }
            drop(completion);
            if !self.uring.submission().cq_overflow() {
                break;
            }
            self.stats.overflows += 1;
            self.stats.enters += 1;
            if self.uring.submit().is_err() {
                // The instant ones stay open until the overflow is fetched: the next enter does.
                return;
            }
        }
        if self.instant.is_empty() || !self.uring.submission().is_empty() {
            return;
        }
        for (key, result) in self.instant.drain(..) {
            if let Some(slot) = self.slots.get_mut(key.index())
                && slot.instant
                && OpKey::new(key.index() as u32, slot.generation) == key
            {
                slot.instant = false;
                self.ready.push_back((key, result, 0));
            }
        }
    }

    /// The next completion, without a system call.
    pub fn next_completion(&mut self) -> Option<Completion<T>> {
        while let Some((key, result, flags)) = self.ready.pop_front() {
            let Some(slot) = self.slots.get_mut(key.index()) else { continue };
            if OpKey::new(key.index() as u32, slot.generation) != key {
                continue;
            }
            let Some(owner) = slot.owner.take() else { continue };
            slot.generation = slot.generation.wrapping_add(1) & 0x7fff_ffff;
            self.free.push(key.index() as u32);
            self.stats.in_flight -= 1;
            return Some(Completion { owner, result, flags });
        }
        None
    }

    /// Cancels everything and waits until the kernel has given all buffers back, at most `bound`. Completions
    /// are dropped. Returns whether nothing is in flight any more.
    pub fn drain(&mut self, bound: Duration) -> bool {
        let end = Instant::now() + bound;
        if self.in_flight() > 0 {
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(IGNORED);
            // SAFETY: a cancellation refers to no memory.
            unsafe { self.push_entry(cancel) };
        }
        loop {
            while self.next_completion().is_some() {}
            let left = end.saturating_duration_since(Instant::now());
            if self.in_flight() == 0 || left.is_zero() {
                return self.in_flight() == 0;
            }
            if self.enter(Some(Some(left))).is_err() {
                return false;
            }
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        if !self.drain(DRAIN_BOUND) {
            tracing::error!(
                operations = self.in_flight(),
                "the kernel did not end all operations in time; their buffers are leaked, not freed under it"
            );
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(self.recv_buffers.take());
        }
    }
}

/// Ends by itself once completions are taken or the call is repeated.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// Why the kernel refuses io_uring and the command that mends it.
pub(super) fn refusal(error: &io::Error) -> String {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let hint = match (error.raw_os_error(), disabled.trim()) {
        (Some(libc::EPERM), "1" | "2") => {
            "the sysctl kernel.io_uring_disabled forbids it; run: sysctl -w kernel.io_uring_disabled=0"
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "a seccomp filter forbids it, as in most container runtimes; start the container with \
             --security-opt seccomp=unconfined or with a profile that allows io_uring_setup, io_uring_enter and \
             io_uring_register"
        }
        (Some(libc::ENOMEM), _) => {
            "RLIMIT_MEMLOCK is too low; run: ulimit -l 65536 (as a service: LimitMEMLOCK=64M in its unit)"
        }
        (Some(libc::ENOSYS), _) => "this kernel is built without io_uring; use Linux 6.1 or newer",
        (Some(libc::EINVAL), _) => {
            "this kernel lacks SINGLE_ISSUER, DEFER_TASKRUN or provided buffer rings; use Linux 6.1 or newer"
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => "no descriptors left; run: ulimit -n 65536",
        _ => "see io_uring_setup(2)",
    };
    format!("the kernel refuses io_uring ({error}): {hint}")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use io_uring::types::Fd;

    use super::*;

    fn wait_one<T>(ring: &mut Ring<T>) -> Completion<T> {
        loop {
            if let Some(completion) = ring.next_completion() {
                return completion;
            }
            ring.enter(Some(Some(Duration::from_secs(10)))).unwrap();
        }
    }

    fn send(fd: &UnixStream, bytes: &[u8]) -> squeue::Entry {
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        opcode::Send::new(Fd(fd.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32).flags(flags).build()
    }

    #[test]
    fn an_owner_comes_back_with_its_filled_buffer() {
        let mut ring: Ring<Vec<u8>> = Ring::new().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut buffer = vec![0u8; 64];
        let entry = opcode::Recv::new(Fd(far.as_raw_fd()), buffer.as_mut_ptr(), 64).build();
        // SAFETY: the vector is the owner.
        unsafe { ring.push(entry, buffer) };
        ring.enter(None).unwrap();
        assert!(ring.next_completion().is_none());
        near.write_all(b"hello").unwrap();
        let done = wait_one(&mut ring);
        assert_eq!(done.result, 5);
        assert_eq!(&done.owner[..5], b"hello");
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn a_successful_instant_send_wakes_nobody_and_completes() {
        let mut ring: Ring<Vec<u8>> = Ring::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let bytes = b"pong".to_vec();
        // SAFETY: the vector is the owner.
        unsafe { ring.push_instant(send(&near, &bytes), bytes, 4) };
        let before = ring.stats().enters;
        // Nothing else is in flight, so a posted completion is the only thing that could end this wait early.
        let started = Instant::now();
        ring.enter(Some(Some(Duration::from_millis(50)))).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(50), "the send's success ended the wait");
        assert_eq!(ring.stats().enters, before + 1);
        assert_eq!(ring.next_completion().unwrap().result, 4);
        let mut read = [0u8; 4];
        far.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"pong");
    }

    #[test]
    fn an_instant_send_that_does_not_fit_tells_how_far_it_came() {
        let mut ring: Ring<Vec<u8>> = Ring::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let bytes = vec![7u8; 4 << 20];
        let len = bytes.len() as i32;
        // SAFETY: the vector is the owner.
        unsafe { ring.push_instant(send(&near, &bytes), bytes, len) };
        ring.enter(None).unwrap();
        let done = ring.next_completion().expect("a failure is posted at once");
        assert!(done.result < len, "4 MiB cannot fit into the socket buffer: {}", done.result);
        // A second one finds the buffer full.
        // SAFETY: the vector is the owner.
        unsafe { ring.push_instant(send(&near, &done.owner), done.owner, len) };
        ring.enter(None).unwrap();
        let again = ring.next_completion().unwrap();
        assert_eq!(again.result, -libc::EAGAIN);
        drop(near);
        let mut received = Vec::new();
        far.read_to_end(&mut received).unwrap();
        assert_eq!(received.len() as i32, done.result.max(0), "what it claims is what arrived");
    }

    #[test]
    fn dropping_a_ring_ends_what_is_in_flight() {
        let (_near, far) = UnixStream::pair().unwrap();
        let owner = std::rc::Rc::new(());
        let mut ring: Ring<(Vec<u8>, std::rc::Rc<()>)> = Ring::new().unwrap();
        for _ in 0..3000 {
            let mut buffer = vec![0u8; 64];
            let entry = opcode::Recv::new(Fd(far.as_raw_fd()), buffer.as_mut_ptr(), 64).build();
            // SAFETY: the vector is in the owner.
            unsafe { ring.push(entry, (buffer, owner.clone())) };
        }
        ring.enter(None).unwrap();
        assert_eq!(ring.in_flight(), 3000);
        drop(ring);
        assert_eq!(std::rc::Rc::strong_count(&owner), 1, "every buffer came back");
    }

    #[test]
    fn cancelling_completes_the_operation() {
        let (_near, far) = UnixStream::pair().unwrap();
        let mut ring: Ring<Vec<u8>> = Ring::new().unwrap();
        let mut buffer = vec![0u8; 64];
        let entry = opcode::Recv::new(Fd(far.as_raw_fd()), buffer.as_mut_ptr(), 64).build();
        // SAFETY: the vector is the owner.
        let key = unsafe { ring.push(entry, buffer) };
        ring.enter(None).unwrap();
        ring.cancel(key);
        assert_eq!(wait_one(&mut ring).result, -libc::ECANCELED);
    }

    #[test]
    fn a_refusal_names_what_mends_it() {
        let text = refusal(&io::Error::from_raw_os_error(libc::ENOMEM));
        assert!(text.contains("ulimit -l"), "{text}");
        let text = refusal(&io::Error::from_raw_os_error(libc::EINVAL));
        assert!(text.contains("6.1"), "{text}");
    }
}
