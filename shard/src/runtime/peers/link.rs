//! One connection to or from another node's shard, and what of it is in flight on the ring.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use pyralog_core::limits::{PEER_PART_BYTES, PEER_RECV_BUFFER_BYTES};
use socket2::SockAddr;

use super::super::ring::OpKey;
use super::super::send::{SendOp, SendQueue};
use crate::engine::PeerId;

/// Names a link; never reused while an operation of it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkId(pub(super) u64);

/// An operation of the links, for the ring that they share with the rest of the shard.
#[derive(Debug)]
pub struct PeerOp(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    /// Links wait to be accepted.
    Accept,
    /// Dialling.
    Connect(LinkId, #[allow(dead_code, reason = "the kernel reads it")] Box<SockAddr>),
    /// Receiving behind what the link has received before.
    Receive(LinkId, Vec<u8>),
    /// Sending.
    Send(LinkId, Box<SendOp>),
}

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// We did: our messages go out on it.
    Out,
    /// The peer did: its messages come in on it.
    In,
}

/// How far a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The system connects.
    Connecting,
    /// The handshake is on its way.
    Greeting,
    /// Frames flow.
    Open,
    /// A refusal is on its way; then it is closed.
    Ending,
    /// Given up; it goes when its operations have ended.
    Closing,
}

/// Why received bytes are not handled yet. Nothing more is read meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    /// They came with the socket from another shard and were not looked at here.
    Fresh,
    /// Messages from a peer to which our own link is not greeted yet.
    Pair,
    /// No memory for a large frame.
    Memory,
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) socket: OwnedFd,
    pub(super) direction: Direction,
    /// The other end. Of an accepted link known with its `Hello`.
    pub(super) peer: Option<PeerId>,
    pub(super) phase: Phase,
    /// What the peer said of its life.
    pub(super) session: u64,
    /// Counts the greeted links of the shard; tells which of two is newer.
    pub(super) greeted: u64,
    /// Received and not handled; with the ring while receiving.
    pub(super) buffer: Vec<u8>,
    /// Length of the large frame that is being put together in it, reserved in the shard's books.
    pub(super) large: usize,
    pub(super) blocked: Option<Blocked>,
    /// Length of the frame that waits for memory.
    pub(super) wants: usize,
    pub(super) queue: SendQueue,
    /// A send that found no room for all.
    pub(super) unsent: Option<Box<SendOp>>,
    pub(super) connecting: Option<OpKey>,
    pub(super) receiving: bool,
    pub(super) sending: bool,
    /// Bytes and chunk memory of the send in flight or left over.
    pub(super) sending_bytes: usize,
    pub(super) sending_chunk_bytes: usize,
    /// What it was last charged for in the shard's books.
    pub(super) charged: usize,
    /// The socket's buffer was full: wait for room instead of trying.
    pub(super) congested: bool,
    /// More bytes wait in the socket, so a receive won't have to wait.
    pub(super) more_waits: bool,
    /// When its phase began, the last bytes came, the last send began or got on.
    pub(super) since_us: u64,
    pub(super) received_us: u64,
    pub(super) sent_us: u64,
    /// Waits in the list of links to look at when the pass ends.
    pub(super) listed: bool,
}

impl Link {
    pub(super) fn new(id: LinkId, socket: OwnedFd, direction: Direction, now_us: u64) -> Self {
        Self {
            id,
            socket,
            direction,
            peer: None,
            phase: Phase::Greeting,
            session: 0,
            greeted: 0,
            buffer: Vec::new(),
            large: 0,
            blocked: None,
            wants: 0,
            queue: SendQueue::default(),
            unsent: None,
            connecting: None,
            receiving: false,
            sending: false,
            sending_bytes: 0,
            sending_chunk_bytes: 0,
            charged: 0,
            congested: false,
            more_waits: false,
            since_us: now_us,
            received_us: now_us,
            sent_us: now_us,
            listed: false,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether the ring still has operations of this link.
    pub(super) fn busy(&self) -> bool {
        self.receiving || self.sending || self.connecting.is_some()
    }

    /// Whether something waits to be sent or is being sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.phase != Phase::Closing && (self.sending || self.unsent.is_some() || self.queue.bytes() > 0)
    }

    /// What it holds in memory to be sent, for the bounds.
    pub(super) fn queued(&self) -> usize {
        self.queue.bytes() + self.queue.parts() * PEER_PART_BYTES + self.sending_bytes
    }

    /// Whether it may be read now.
    pub(super) fn may_receive(&self) -> bool {
        !self.receiving && self.blocked.is_none() && matches!(self.phase, Phase::Greeting | Phase::Open)
    }

    /// How much to receive at most, and the buffer to receive it in, with room for that. A large frame gets all of its
    /// memory at once: the system makes it real as bytes come.
    pub(super) fn take_buffer(&mut self) -> (usize, Vec<u8>) {
        let wanted = self.large.max(PEER_RECV_BUFFER_BYTES);
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() < wanted {
            buffer.reserve_exact(wanted - buffer.len());
        }
        (wanted - buffer.len().min(wanted), buffer)
    }

    /// Makes both directions end, so that the operations of the link do.
    pub(super) fn shut(&self) {
        // SAFETY: plain system call on a live descriptor; failing means that it is shut already.
        unsafe { libc::shutdown(self.fd(), libc::SHUT_RDWR) };
    }
}
