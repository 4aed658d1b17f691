//! One client connection: its state, its bounds and when it is given up.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use pyralog_core::limits::{MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION, MAX_QUEUED_REPLY_BYTES_PER_CONNECTION};

use super::receive::Load;
use super::send::SendQueue;
use crate::engine::ConnId;

/// A connection that has not said `Hello` by then is closed, microseconds after it was accepted.
pub(super) const HANDSHAKE_TIMEOUT_US: u64 = 10_000_000;
/// How long a connection is read on after the last reply, so that closing it does not destroy that reply on its
/// way (unread bytes make the kernel reset the connection), microseconds.
pub(super) const DRAIN_US: u64 = 1_000_000;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is known of it.
    Sniffing,
    /// It speaks frames and has to say `Hello`.
    Handshake,
    /// Requests are served.
    Open,
    /// The last reply is on its way; what still comes is dropped.
    Ending,
    /// Everything is sent and our side shut; what still comes is dropped until the peer closes.
    Draining,
    /// Given up; it goes when its operations have ended.
    Closing,
}

/// A frame that comes in parts.
#[derive(Debug)]
pub(super) struct Assembly {
    pub(super) bytes: Vec<u8>,
    /// Length of the whole frame, known and reserved once its header is there.
    pub(super) total: Option<usize>,
    /// Bytes of the shard's assembly memory that it holds.
    pub(super) reserved: usize,
}

/// Why a connection that has received bytes does not handle them yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    /// The shard takes no produce at the moment.
    Produce,
    /// No memory for a frame that comes in parts.
    Assembly,
    /// Enough replies are outstanding or queued, on the connection or on the shard.
    Replies,
}

/// A receive buffer with bytes that are not handled yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) buffer: u16,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnId,
    pub(super) socket: OwnedFd,
    pub(super) phase: Phase,
    /// Received and not handled, outside of any receive buffer: the first bytes, while they don't tell yet what the
    /// client speaks, or requests that wait.
    pub(super) early: Vec<u8>,
    /// Bytes of the shard's assembly memory that `early` holds.
    pub(super) early_reserved: usize,
    pub(super) assembly: Option<Assembly>,
    pub(super) blocked: Option<Blocked>,
    pub(super) held: Option<Held>,
    pub(super) queue: SendQueue,
    pub(super) receiving: bool,
    pub(super) sending: bool,
    /// Bytes and chunk memory of the send in flight.
    pub(super) sending_bytes: usize,
    pub(super) sending_chunk_bytes: usize,
    /// The socket's buffer was full: wait for room instead of trying.
    pub(super) congested: bool,
    /// More bytes wait in the socket, so a receive won't have to wait.
    pub(super) more_waits: bool,
    /// Waits for a receive buffer.
    pub(super) starved: bool,
    /// Its own bounds let it go on; it waits in line until the shard's do.
    pub(super) lined_up: bool,
    /// The peer has shut its side.
    pub(super) eof: bool,
    /// Requests without reply.
    pub(super) in_flight: usize,
    /// Produces without reply: correlation id and time of arrival.
    pub(super) produces: VecDeque<(u64, u64)>,
    pub(super) since_us: u64,
    pub(super) partial_since_us: u64,
    pub(super) send_progress_us: u64,
    /// When its timer is due, if it has one.
    pub(super) timer_us: Option<u64>,
    /// Waits in the list of connections to look at when the pass ends.
    pub(super) listed: bool,
    /// Counts as one of the node's connections.
    pub(super) counted: bool,
}

impl Connection {
    pub(super) fn new(id: ConnId, socket: OwnedFd, now_us: u64) -> Self {
        Self {
            id,
            socket,
            phase: Phase::Sniffing,
            early: Vec::new(),
            early_reserved: 0,
            assembly: None,
            blocked: None,
            held: None,
            queue: SendQueue::default(),
            receiving: false,
            sending: false,
            sending_bytes: 0,
            sending_chunk_bytes: 0,
            congested: false,
            more_waits: false,
            starved: false,
            lined_up: false,
            eof: false,
            in_flight: 0,
            produces: VecDeque::new(),
            since_us: now_us,
            partial_since_us: now_us,
            send_progress_us: now_us,
            timer_us: None,
            listed: false,
            counted: true,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether the ring still has operations of this connection.
    pub(super) fn busy(&self) -> bool {
        self.receiving || self.sending
    }

    /// Whether it may be read now, as far as its own bounds go.
    pub(super) fn may_receive(&self) -> bool {
        if self.receiving || self.eof || self.blocked.is_some() {
            return false;
        }
        match self.phase {
            Phase::Sniffing | Phase::Handshake => true,
            Phase::Open => self.may_request(),
            Phase::Draining => true,
            Phase::Ending | Phase::Closing => false,
        }
    }

    /// Whether its own bounds let it have one more request.
    pub(super) fn may_request(&self) -> bool {
        self.in_flight < MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION
            && self.queue.bytes() + self.sending_bytes < MAX_QUEUED_REPLY_BYTES_PER_CONNECTION
    }

    /// When it is given up unless something happens. `timeout_us` is the node's request timeout.
    pub(super) fn deadline_us(&self, timeout_us: u64) -> Option<u64> {
        let handshake = matches!(self.phase, Phase::Sniffing | Phase::Handshake)
            .then(|| self.since_us.saturating_add(HANDSHAKE_TIMEOUT_US));
        // A frame that waits for us is not the client's fault.
        let waits_for_us = self.blocked.is_some() || self.lined_up;
        let partial = (self.assembly.is_some() && !waits_for_us && self.phase == Phase::Open)
            .then(|| self.partial_since_us.saturating_add(timeout_us));
        let sending = self.sending.then(|| self.send_progress_us.saturating_add(timeout_us));
        let draining = (self.phase == Phase::Draining).then(|| self.since_us.saturating_add(DRAIN_US));
        [handshake, partial, sending, draining].into_iter().flatten().min()
    }

    /// A request got its reply. Returns when it arrived, if it was a produce.
    pub(super) fn answered(&mut self, correlation_id: u64, load: &mut Load) -> Option<u64> {
        if self.in_flight > 0 {
            self.in_flight -= 1;
            load.in_flight -= 1;
        }
        // Replies mostly come in the order of the requests: it is the first one.
        let at = self.produces.iter().position(|(produce, _)| *produce == correlation_id)?;
        self.produces.remove(at).map(|(_, arrived_us)| arrived_us)
    }

    /// Makes both directions end, so that the operations of the connection do.
    pub(super) fn shut(&self, how: libc::c_int) {
        // SAFETY: plain system call on a live descriptor; failing means that it is shut already.
        unsafe { libc::shutdown(self.fd(), how) };
    }

    /// Makes the close a reset: what is unsent is thrown away instead of kept by the kernel for minutes.
    pub(super) fn reset_on_close(&self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: a live descriptor and a live option value of the size that is passed.
        unsafe {
            libc::setsockopt(
                self.fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            )
        };
    }
}
