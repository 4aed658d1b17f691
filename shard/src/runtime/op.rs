//! What is in flight on a shard's ring, with the buffers that each operation owns.

use super::files::FileIo;
use super::peers::PeerOp;
use super::send::SendOp;
use crate::engine::ConnId;

/// One operation.
#[derive(Debug)]
pub(super) enum Op {
    /// The shard's eventfd is being read: another thread has put something into a channel.
    Wake(#[allow(dead_code, reason = "the kernel writes it")] Box<[u8; 8]>),
    /// Connections wait to be accepted.
    Accept,
    /// Receiving into a buffer that the kernel picks.
    Receive(ConnId),
    /// Receiving the rest of a large frame where it is assembled.
    ReceiveRest(ConnId, Vec<u8>),
    /// Sending.
    Send(ConnId, Box<SendOp>),
    /// An operation of the links to other nodes.
    Peer(PeerOp),
    /// A file operation.
    File(Box<FileIo>),
}

impl From<Box<FileIo>> for Op {
    fn from(io: Box<FileIo>) -> Self {
        Self::File(io)
    }
}

impl From<PeerOp> for Op {
    fn from(op: PeerOp) -> Self {
        Self::Peer(op)
    }
}
