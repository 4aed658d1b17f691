//! One connection of the floor server: its buffers and what is under way on its socket.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::RECV_BYTES;
use crate::wire;

/// What the front of the receive buffer holds.
pub(super) enum Front {
    /// A whole frame of this many bytes.
    Frame(usize),
    /// Not yet a whole frame.
    Partial,
    /// A frame that no buffer of ours can hold.
    TooLarge,
}

pub(super) struct Connection {
    socket: OwnedFd,
    received: Box<[u8]>,
    /// Received and not yet consumed: `received[start..end]`.
    start: usize,
    end: usize,
    /// Being sent; untouched while `sending`.
    pub(super) sending_bytes: Vec<u8>,
    pub(super) sent: usize,
    /// Replies for the next send.
    pub(super) queued: Vec<u8>,
    pub(super) receiving: bool,
    pub(super) sending: bool,
    pub(super) closed: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            received: vec![0; RECV_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            sending_bytes: Vec::with_capacity(64 << 10),
            sent: 0,
            queued: Vec::with_capacity(64 << 10),
            receiving: false,
            sending: false,
            closed: false,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Room for the next receive. Moves what is left to the front first.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.received.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.received.get_mut(self.end..).unwrap_or_default()
    }

    pub(super) fn arrived(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.received.len());
    }

    fn pending(&self) -> &[u8] {
        self.received.get(self.start..self.end).unwrap_or_default()
    }

    pub(super) fn front(&self) -> Front {
        match wire::frame_len(self.pending()) {
            Some(len) if len > RECV_BYTES => Front::TooLarge,
            Some(len) if len <= self.pending().len() => Front::Frame(len),
            _ => Front::Partial,
        }
    }

    /// The frame of `len` bytes at the front, which is consumed.
    pub(super) fn take(&mut self, len: usize) -> &[u8] {
        let from = self.start;
        self.start = (self.start + len).min(self.end);
        self.received.get(from..self.start).unwrap_or_default()
    }

    pub(super) fn idle(&self) -> bool {
        !self.receiving && !self.sending
    }

    /// Makes the pending receive and send end.
    pub(super) fn shut_down(&mut self) {
        self.closed = true;
        // SAFETY: the descriptor is open and ours.
        unsafe { libc::shutdown(self.fd(), libc::SHUT_RDWR) };
    }
}
