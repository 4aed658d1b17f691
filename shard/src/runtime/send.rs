//! What one connection has to send: encoded bytes and slices of chunks, gathered into one send at a time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use pyralog_net::message::Response;

use crate::engine::ReplyBody;
use crate::memory::ChunkSlice;

/// Most parts of one send to a client, of which there may be many thousands.
pub(super) const CLIENT_PARTS: usize = 64;
/// Most parts of one send to another node: the kernel takes no more (IOV_MAX). What does not fit has to wait until the first
/// send is done, which a follower would wait for before it can write anything of the frame.
pub(super) const PEER_PARTS: usize = 1024;
/// The lists of a larger send are not kept.
const SPARE_PARTS: usize = 256;
/// Most bytes of one send: enough for the socket's buffer at full speed.
const MAX_SEND_BYTES: usize = 1 << 20;
/// Up to this size a send is tried without waiting, which costs no completion and so no wake-up.
const INSTANT_BYTES: usize = 32 << 10;
/// A part of encoded bytes takes no further reply beyond this size.
const ENCODED_PART_BYTES: usize = 32 << 10;
/// Buffers kept for later, per shard, and the largest capacity worth keeping.
const SPARE_BUFFERS: usize = 64;

/// Buffers that are used again, shared by a shard's connections.
#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: Vec<Vec<u8>>,
    #[allow(clippy::vec_box, reason = "the boxes are what is kept: operations point into them")]
    ops: Vec<Box<SendOp>>,
    /// Memory of the encoded replies that wait or are being sent, bytes.
    queued_bytes: usize,
}

impl Spares {
    /// Memory of the encoded replies that wait or are being sent, all connections together, bytes.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        self.queued_bytes -= buffer.capacity();
        if self.buffers.len() < SPARE_BUFFERS && buffer.capacity() <= 2 * ENCODED_PART_BYTES {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// Takes back what a finished send used.
    pub(super) fn keep_op(&mut self, mut op: Box<SendOp>) {
        for part in op.parts.drain(..) {
            if let Part::Encoded(buffer) = part {
                self.keep_buffer(buffer);
            }
        }
        if self.ops.len() < SPARE_BUFFERS && op.parts.capacity() <= SPARE_PARTS {
            self.ops.push(op);
        }
    }
}

#[derive(Debug)]
enum Part {
    Encoded(Vec<u8>),
    Slice(ChunkSlice),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Encoded(bytes) => bytes,
            Self::Slice(slice) => slice.bytes(),
        }
    }
}

/// One send in flight.
pub(super) struct SendOp {
    parts: Vec<Part>,
    /// Bytes of the parts that are sent.
    sent: usize,
    total: usize,
    iovecs: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl std::fmt::Debug for SendOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendOp({} of {} bytes)", self.sent, self.total)
    }
}

impl SendOp {
    fn new() -> Box<Self> {
        // SAFETY: a `msghdr` of zeros is an empty message.
        let message = unsafe { std::mem::zeroed() };
        Box::new(Self { parts: Vec::new(), sent: 0, total: 0, iovecs: Vec::new(), message })
    }

    /// Bytes not sent yet.
    pub(super) fn left(&self) -> usize {
        self.total - self.sent
    }

    /// Notes that `count` bytes more are sent; whether that is all.
    pub(super) fn advance(&mut self, count: usize) -> bool {
        self.sent = (self.sent + count).min(self.total);
        self.left() == 0
    }

    /// Whether it is worth trying without waiting.
    pub(super) fn is_small(&self) -> bool {
        self.left() <= INSTANT_BYTES
    }

    /// The operation for what is left. `instant`: fail at once instead of waiting for room.
    pub(super) fn entry(&mut self, socket: RawFd, instant: bool) -> squeue::Entry {
        let wait = if instant { libc::MSG_DONTWAIT | libc::MSG_WAITALL } else { 0 };
        let flags = libc::MSG_NOSIGNAL | wait;
        let mut skip = self.sent;
        self.iovecs.clear();
        for part in &self.parts {
            let bytes = part.bytes();
            match bytes.get(skip..).filter(|rest| !rest.is_empty()) {
                Some(rest) => {
                    skip = 0;
                    let base = rest.as_ptr().cast_mut().cast();
                    self.iovecs.push(libc::iovec { iov_base: base, iov_len: rest.len() });
                }
                None => skip -= bytes.len(),
            }
        }
        if let [only] = self.iovecs.as_slice() {
            return opcode::Send::new(Fd(socket), only.iov_base.cast(), only.iov_len as u32)
                .flags(flags)
                .build();
        }
        self.message.msg_iov = self.iovecs.as_mut_ptr();
        self.message.msg_iovlen = self.iovecs.len();
        opcode::SendMsg::new(Fd(socket), &raw const self.message).flags(flags as u32).build()
    }

    /// Chunk memory that the send keeps alive, bytes.
    pub(super) fn chunk_bytes(&self) -> usize {
        chunk_bytes(self.parts.iter())
    }
}

/// Replies waiting to be sent, in order.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    parts: VecDeque<Part>,
    bytes: usize,
}

impl SendQueue {
    /// Bytes waiting.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends what `encode` writes.
    pub(super) fn push_encoded(&mut self, spares: &mut Spares, encode: impl FnOnce(&mut Vec<u8>)) {
        let room = |part: &Part| matches!(part, Part::Encoded(bytes) if bytes.len() < ENCODED_PART_BYTES);
        if !self.parts.back().is_some_and(room) {
            let buffer = spares.buffers.pop().unwrap_or_default();
            spares.queued_bytes += buffer.capacity();
            self.parts.push_back(Part::Encoded(buffer));
        }
        if let Some(Part::Encoded(bytes)) = self.parts.back_mut() {
            let (before, memory) = (bytes.len(), bytes.capacity());
            encode(bytes);
            self.bytes += bytes.len() - before;
            spares.queued_bytes += bytes.capacity() - memory;
        }
    }

    /// Appends a reply.
    pub(super) fn push_reply(&mut self, spares: &mut Spares, correlation_id: u64, body: ReplyBody) {
        match body {
            ReplyBody::Message(response) => {
                self.push_encoded(spares, |out| response.encode(correlation_id, out));
            }
            ReplyBody::Fetch { head, slices } => {
                self.push_encoded(spares, |out| Response::Fetch(head).encode(correlation_id, out));
                for slice in slices.into_iter().filter(|slice| !slice.is_empty()) {
                    self.bytes += slice.len();
                    self.parts.push_back(Part::Slice(slice));
                }
            }
        }
    }

    /// Appends bytes of a chunk.
    pub(super) fn push_slice(&mut self, slice: ChunkSlice) {
        if !slice.is_empty() {
            self.bytes += slice.len();
            self.parts.push_back(Part::Slice(slice));
        }
    }

    /// Parts waiting: runs of encoded bytes, and slices.
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The next send, of so many parts at most, or `None` when nothing waits.
    pub(super) fn next_op(&mut self, spares: &mut Spares, most_parts: usize) -> Option<Box<SendOp>> {
        if self.parts.is_empty() {
            return None;
        }
        let mut op = spares.ops.pop().unwrap_or_else(SendOp::new);
        op.sent = 0;
        op.total = 0;
        while op.parts.len() < most_parts && op.total < MAX_SEND_BYTES {
            let Some(part) = self.parts.pop_front() else { break };
            op.total += part.bytes().len();
            op.parts.push(part);
        }
        self.bytes -= op.total;
        Some(op)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self, spares: &mut Spares) {
        for part in self.parts.drain(..) {
            if let Part::Encoded(buffer) = part {
                spares.keep_buffer(buffer);
            }
        }
        self.bytes = 0;
    }

    /// Chunk memory that the queue keeps alive, bytes.
    pub(super) fn chunk_bytes(&self) -> usize {
        chunk_bytes(self.parts.iter())
    }
}

/// Memory of the chunks behind the slices; neighbours in one chunk count once.
fn chunk_bytes<'a>(parts: impl Iterator<Item = &'a Part>) -> usize {
    let mut last = std::ptr::null();
    let mut sum = 0;
    for part in parts {
        if let Part::Slice(slice) = part
            && slice.chunk().as_ptr() != last
        {
            last = slice.chunk().as_ptr();
            sum += slice.chunk().capacity();
        }
    }
    sum
}

/// How a send ended.
#[derive(Debug)]
pub(super) enum SendEnd {
    /// Everything is with the kernel.
    Done,
    /// Something is left; go on.
    More,
    /// No room at the moment.
    NoRoom,
    /// The connection is broken.
    Broken(#[allow(dead_code, reason = "for debugging")] io::Error),
}

impl SendEnd {
    /// From the completion's result.
    pub(super) fn of(op: &mut SendOp, result: i32) -> Self {
        match result {
            _ if result == -libc::EAGAIN || result == -libc::EINTR => Self::NoRoom,
            _ if result < 0 => Self::Broken(io::Error::from_raw_os_error(-result)),
            _ if op.advance(result as usize) => Self::Done,
            _ => Self::More,
        }
    }
}
