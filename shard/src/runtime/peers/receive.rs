//! What happens to the bytes of a link: the handshake, and frames given to the engine where they lie.
//!
//! A link receives into one buffer of its own, behind what is there already, so every frame lies in one piece. A frame
//! that is larger than the buffer gets memory out of a budget of the shard.

#![warn(clippy::indexing_slicing)]

use pyralog_core::ShardId;
use pyralog_core::limits::{PEER_ASSEMBLY_BYTES_PER_SHARD, PEER_RECV_BUFFER_BYTES};
use pyralog_net::peer::frame::{FrameError, FrameHeader, FrameKind};
use pyralog_net::peer::hello::{
    Hello, HelloReply, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, Refusal, RefusalCode,
};
use pyralog_replication::metadata::not_supported;

use super::link::{Blocked, Direction, Link, LinkId, Phase};
use super::{Links, PeerSocket, name};
use crate::engine::{Event, LogLevel, PeerId};

/// Versions that this code speaks.
const SPOKEN: std::ops::RangeInclusive<u16> = OLDEST_PROTOCOL_VERSION..=PROTOCOL_VERSION;

/// What became of the front of a link's bytes.
enum Outcome {
    /// That many are handled.
    Next(usize),
    /// A frame that is not all there, of that length if it is known.
    NeedMore(usize),
    /// They wait.
    Blocked(Blocked),
    /// The socket belongs to that shard.
    Leaves(ShardId),
    /// The link is of no use any more, for this reason.
    Failed(String),
    /// The peer was refused.
    Refused,
}

impl Links {
    /// A receive ended.
    pub(super) fn receive_done(
        &mut self,
        id: LinkId,
        mut bytes: Vec<u8>,
        result: i32,
        more_waits: bool,
        to: &mut dyn FnMut(Event<'_>),
    ) {
        let Some(mut link) = self.take(id) else { return };
        link.receiving = false;
        link.more_waits = more_waits;
        let len = (bytes.len() + result.max(0) as usize).min(bytes.capacity());
        // SAFETY: the kernel filled `result` bytes of the spare capacity, which began at the old length.
        unsafe { bytes.set_len(len) };
        link.buffer = bytes;
        match result {
            _ if link.phase == Phase::Closing => {}
            0 => self.close(&mut link, "the other side closed the connection"),
            _ if result == -libc::EINTR || result == -libc::EAGAIN => {}
            _ if result < 0 => {
                let error = std::io::Error::from_raw_os_error(-result);
                self.close(&mut link, &format!("receiving failed: {error}"));
            }
            _ => {
                link.received_us = self.now_us;
                self.received(&mut link, to);
            }
        }
        self.put_back(link);
    }

    /// Handles what the link's buffer holds, as far as it can.
    pub(super) fn received(&mut self, link: &mut Link, to: &mut dyn FnMut(Event<'_>)) {
        let buffer = std::mem::take(&mut link.buffer);
        let mut handled = 0;
        let mut large = 0;
        while matches!(link.phase, Phase::Greeting | Phase::Open) {
            let rest = buffer.get(handled..).unwrap_or_default();
            match self.front(link, rest, to) {
                Outcome::Next(bytes) => handled += bytes,
                Outcome::NeedMore(total) => {
                    large = if total > PEER_RECV_BUFFER_BYTES { total } else { 0 };
                    break;
                }
                Outcome::Blocked(blocked) => {
                    self.hold(link, blocked);
                    break;
                }
                Outcome::Leaves(shard) => return self.leave(link, shard, buffer),
                Outcome::Failed(reason) => self.close(link, &reason),
                Outcome::Refused => {}
            }
        }
        if !matches!(link.phase, Phase::Greeting | Phase::Open) {
            return;
        }
        if self.assembly - link.large + large <= PEER_ASSEMBLY_BYTES_PER_SHARD {
            self.assembly = self.assembly - link.large + large;
            link.large = large;
        } else {
            link.wants = large;
            self.hold(link, Blocked::Memory);
        }
        link.buffer = keep_rest(buffer, handled, link.large);
    }

    fn hold(&mut self, link: &mut Link, blocked: Blocked) {
        link.blocked = Some(blocked);
        self.held.push_back(link.id);
    }

    /// Whether a link with bytes that wait still has to wait.
    pub(super) fn is_held_back(&self, id: LinkId) -> bool {
        let slot = self.slots.get(id.0 as u32 as usize);
        let link = slot.and_then(|slot| slot.link.as_deref()).filter(|link| link.id == id);
        match link.and_then(|link| link.blocked.map(|blocked| (link, blocked))) {
            None | Some((_, Blocked::Fresh)) => false,
            Some((link, Blocked::Pair)) => !link.peer.is_some_and(|peer| self.is_up(peer)),
            Some((link, Blocked::Memory)) => {
                self.assembly - link.large + link.wants > PEER_ASSEMBLY_BYTES_PER_SHARD
            }
        }
    }

    fn is_up(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.up_us.is_some())
    }

    /// Handles the frame at the front of `bytes`.
    fn front(&mut self, link: &mut Link, bytes: &[u8], to: &mut dyn FnMut(Event<'_>)) -> Outcome {
        let header = match FrameHeader::decode(bytes) {
            Ok(Some(header)) => header,
            Ok(None) => return Outcome::NeedMore(0),
            Err(error) => return self.broken(link, &error),
        };
        let expected = match (link.phase, link.direction) {
            (Phase::Greeting, Direction::In) => header.kind == FrameKind::Hello,
            (Phase::Greeting, Direction::Out) => header.kind == FrameKind::HelloReply,
            (_, Direction::In) => matches!(header.kind, FrameKind::Messages | FrameKind::Ping),
            (_, Direction::Out) => header.kind == FrameKind::Ping,
        };
        if !expected {
            return Outcome::Failed(format!("it sent a {:?} frame where none belongs", header.kind));
        }
        let (control, payload) = match header.parts(bytes) {
            Ok(Some(parts)) => parts,
            Ok(None) => return Outcome::NeedMore(header.frame_bytes()),
            Err(error) => return self.broken(link, &error),
        };
        match (header.kind, link.peer) {
            (FrameKind::Messages, Some(from)) => {
                if !self.is_up(from) {
                    return Outcome::Blocked(Blocked::Pair);
                }
                self.tell(to);
                to(Event::PeerFrame { from, control, payload });
            }
            (FrameKind::Hello, _) => match self.hello(link, control) {
                Ok(None) => {}
                Ok(Some(shard)) => return Outcome::Leaves(shard),
                Err(refusal) => return self.refuse(link, refusal),
            },
            (FrameKind::HelloReply, Some(peer)) => {
                if let Err(reason) = self.hello_reply(link, peer, control) {
                    return Outcome::Failed(reason);
                }
            }
            _ => {}
        }
        Outcome::Next(header.frame_bytes())
    }

    /// Bytes that are no frame. Another version of the frame is told so, in the words of this one.
    fn broken(&mut self, link: &mut Link, error: &FrameError) -> Outcome {
        if let (FrameError::UnknownVersion { .. }, Phase::Greeting, Direction::In) =
            (error, link.phase, link.direction)
        {
            return self.refuse(link, Refusal::new(RefusalCode::UnknownVersion, error.to_string()));
        }
        if link.peer.is_none() {
            self.log_refusal(format!("closed a connection to the internal port: {error}"));
        }
        Outcome::Failed(error.to_string())
    }

    // --- the handshake -----------------------------------------------------------------------------------

    /// A `Hello` arrived: the shard that it is for, if that is another one.
    fn hello(&mut self, link: &mut Link, control: &[u8]) -> Result<Option<ShardId>, Refusal> {
        let hello = Hello::decode(control)
            .map_err(|error| Refusal::new(RefusalCode::Malformed, error.to_string()))?;
        let version = hello.version()?;
        self.check(&hello)?;
        if hello.to_shard != self.config.shard {
            return Ok(Some(hello.to_shard));
        }
        let reply = self.reply(version, None);
        link.queue.push_encoded(&mut self.spares, |out| reply.encode(out));
        let peer = PeerId { node: hello.from_node, shard: hello.from_shard };
        let before = self.peers.entry(peer).or_default().inbound;
        if let Some(before) = before {
            self.close_by_id(before, "the peer dialled again");
        }
        self.peers.entry(peer).or_default().inbound = Some(link.id);
        self.greeted(link, peer, hello.session);
        Ok(None)
    }

    /// The cluster's feature level: nodes that don't support it are refused from now on.
    pub fn set_feature_level(&mut self, level: u16) {
        self.feature_level = level;
    }

    /// Whether the sender of a `Hello` is one of us and means us.
    fn check(&self, hello: &Hello) -> Result<(), Refusal> {
        let (me, config) = (self.config.node, &self.config);
        let from = hello.from_node;
        let (code, text) = if hello.cluster_id != config.cluster_id {
            let text = format!(
                "node {from} belongs to cluster {}, node {me} to cluster {}; give both the same cluster id, or take this \
                 address out of node.cluster_nodes on node {from}",
                hello.cluster_id, config.cluster_id
            );
            (RefusalCode::WrongCluster, text)
        } else if hello.to_node != me {
            let text = format!(
                "this is node {me}, not node {}; correct its address in node.cluster_nodes on node {from}",
                hello.to_node
            );
            (RefusalCode::WrongNode, text)
        } else if from == me {
            let text =
                format!("two nodes have the id {me}; give each node of the cluster its own node.node_id");
            (RefusalCode::UnknownNode, text)
        } else if self.address_of(from).is_none() {
            let text = format!(
                "node {me} knows no node {from}; add it with `pyralog-admin cluster add-node`, or to node.cluster_nodes on node {me}"
            );
            (RefusalCode::UnknownNode, text)
        } else if self.feature_level > 0 && !hello.levels.contains(self.feature_level) {
            let text = format!(
                "node {from} can't be in the cluster: {}",
                not_supported(hello.levels, self.feature_level)
            );
            (RefusalCode::FeatureLevel, text)
        } else if hello.to_shard.0 >= config.shards {
            let text = format!(
                "node {me} has no shard {}: it has {}, numbered from 0; refresh the cluster's metadata",
                hello.to_shard, config.shards
            );
            (RefusalCode::NoSuchShard, text)
        } else {
            return Ok(());
        };
        Err(Refusal::new(code, text))
    }

    fn reply(&self, version: u16, refusal: Option<Refusal>) -> HelloReply {
        HelloReply {
            node: self.config.node,
            shard: self.config.shard,
            shards: self.config.shards,
            version,
            session: if refusal.is_some() { 0 } else { self.config.session },
            refusal,
        }
    }

    fn refuse(&mut self, link: &mut Link, refusal: Refusal) -> Outcome {
        self.log_refusal(format!("refused a link from another node: {}", refusal.text));
        let reply = self.reply(PROTOCOL_VERSION, Some(refusal));
        link.queue.push_encoded(&mut self.spares, |out| reply.encode(out));
        link.phase = Phase::Ending;
        Outcome::Refused
    }

    /// Who is refused tries again and again: it is said once.
    fn log_refusal(&mut self, text: String) {
        if self.last_refusal != text {
            self.last_refusal.clone_from(&text);
            self.logs.push((LogLevel::Warn, text));
        }
    }

    /// The answer to our `Hello`.
    fn hello_reply(&mut self, link: &mut Link, peer: PeerId, control: &[u8]) -> Result<(), String> {
        let reply =
            HelloReply::decode(control).map_err(|error| format!("its answer is malformed: {error}"))?;
        if let Some(refusal) = reply.refusal {
            if let Some(entry) = self.peers.get_mut(&peer) {
                entry.dial.refused();
            }
            return Err(format!("it refuses ({:?}): {}", refusal.code, refusal.text));
        }
        if (reply.node, reply.shard) != (peer.node, peer.shard) || !SPOKEN.contains(&reply.version) {
            let answering = PeerId { node: reply.node, shard: reply.shard };
            return Err(format!("{} answers instead, in version {}", name(answering), reply.version));
        }
        self.greeted(link, peer, reply.session);
        Ok(())
    }

    /// Gives the socket to the shard that the `Hello` named.
    fn leave(&mut self, link: &mut Link, shard: ShardId, received: Vec<u8>) {
        // The socket goes on under another descriptor; this link has no operations and ends here.
        match link.socket.try_clone() {
            Ok(socket) if !link.busy() => {
                link.phase = Phase::Closing;
                self.leaving.push((shard, PeerSocket { socket, received }));
            }
            _ => self.close(link, "its socket can't be handed over"),
        }
    }
}

/// What is left of `buffer` behind the first `handled` bytes, in memory that is no larger than it has to be.
fn keep_rest(mut buffer: Vec<u8>, handled: usize, large: usize) -> Vec<u8> {
    let rest = buffer.len().saturating_sub(handled);
    if large == 0 && buffer.capacity() > PEER_RECV_BUFFER_BYTES {
        // That was a large frame, with nothing behind it: it was not read further.
        let mut small = Vec::new();
        if rest > 0 {
            small.reserve_exact(PEER_RECV_BUFFER_BYTES.max(rest));
            small.extend_from_slice(buffer.get(handled..).unwrap_or_default());
        }
        return small;
    }
    if handled > 0 {
        buffer.copy_within(handled.min(handled + rest).., 0);
        buffer.truncate(rest);
    }
    buffer
}
