//! Dialling peers, and the timers of all links: keep-alive, timeouts, when to dial again.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::types::Fd;
use pyralog_core::NodeId;
use pyralog_net::peer::frame::{self, FrameKind};
use pyralog_net::peer::hello::{Hello, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::link::{Blocked, Direction, Kind, Link, LinkId, Phase};
use super::resolve::Resolved;
use super::{LinkTiming, Links, PeerOp};
use crate::engine::PeerId;
use crate::runtime::ring::Ring;

/// An address, or none yet, or why there is none.
type MaybeAddress = Result<Option<SocketAddr>, String>;

/// How far dialling a peer is.
#[derive(Debug, Default)]
pub(super) struct Dial {
    /// Not before.
    at_us: u64,
    /// Failures in a row.
    failures: u32,
    /// The peer said no; somebody has to change a setting.
    refused: bool,
    /// The answer to a question for the address.
    resolved: Option<Resolved>,
    resolving: bool,
    /// The last failure that was logged.
    last_failure: String,
}

impl Dial {
    pub(super) fn now(&mut self) {
        self.at_us = 0;
    }

    /// The peer dialled us.
    pub(super) fn it_is_alive(&mut self) {
        if !self.refused {
            self.at_us = 0;
        }
    }

    pub(super) fn refused(&mut self) {
        self.refused = true;
    }

    pub(super) fn succeeded(&mut self) {
        self.refused = false;
        self.last_failure.clear();
    }

    /// The link ended; when to dial again. `lasted`: it was up for so long that this is no failure.
    pub(super) fn failed(&mut self, timing: &LinkTiming, now_us: u64, lasted: bool, random: &mut u64) -> u64 {
        if lasted {
            self.failures = 0;
        }
        let longest = timing.last_backoff_us;
        let grown =
            timing.first_backoff_us.saturating_mul(1u64.checked_shl(self.failures).unwrap_or(u64::MAX));
        let pause = if self.refused { longest } else { grown.min(longest) };
        self.failures = (self.failures + 1).min(32);
        // xorshift64: any spread will do. Between half and all of the pause.
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        self.at_us = now_us + pause / 2 + *random % (pause / 2 + 1);
        self.at_us
    }

    /// Whether that reason was not logged last.
    pub(super) fn is_news(&mut self, reason: &str) -> bool {
        let news = self.last_failure != reason;
        if news {
            reason.clone_into(&mut self.last_failure);
        }
        news
    }
}

impl Links {
    /// Looks at every timer.
    pub(super) fn timers<T: From<PeerOp>>(&mut self, ring: &mut Ring<T>) {
        self.due_us = u64::MAX;
        for index in 0..self.slots.len() {
            let Some(mut link) = self.slots.get_mut(index).and_then(|slot| slot.link.take()) else {
                continue;
            };
            match self.due(&mut link) {
                Ok(due_us) => self.due_us = self.due_us.min(due_us),
                Err(reason) => self.close(&mut link, &reason),
            }
            self.put_back(link);
        }
        let (now_us, mut due_us) = (self.now_us, self.due_us);
        let mut ready = Vec::new();
        for (id, peer) in
            self.peers.iter().filter(|(_, peer)| peer.wanted && peer.out.is_none() && !peer.dial.resolving)
        {
            if peer.dial.at_us <= now_us {
                ready.push(*id);
            } else {
                due_us = due_us.min(peer.dial.at_us);
            }
        }
        self.due_us = due_us;
        for peer in ready {
            self.dial(ring, peer);
        }
    }

    /// When the link's next timer is due, after doing what is due now; why it is dead, if it is.
    fn due(&mut self, link: &mut Link) -> Result<u64, String> {
        let (now_us, timing) = (self.now_us, self.config.timing);
        let overdue = |since_us: u64, bound_us: u64, what: &str| match since_us.saturating_add(bound_us) {
            due_us if due_us > now_us => Ok(due_us),
            _ => Err(format!("{what} for {} ms", bound_us / 1000)),
        };
        match (link.phase, link.blocked) {
            (Phase::Closing, _) | (Phase::Open, Some(Blocked::Memory)) => Ok(u64::MAX),
            (Phase::Open, Some(_)) => {
                overdue(link.received_us, timing.handshake_us, "no link of our own to it")
            }
            (Phase::Open, None) => {
                let silent = overdue(link.received_us, timing.timeout_us, "nothing was heard")?;
                if !link.has_unsent() && now_us.saturating_sub(link.sent_us) >= timing.ping_us {
                    link.queue
                        .push_encoded(&mut self.spares, |out| frame::encode(FrameKind::Ping, &[], 0, out));
                    link.sent_us = now_us;
                }
                Ok(silent.min(link.sent_us.max(now_us.saturating_sub(timing.ping_us / 2)) + timing.ping_us))
            }
            _ => overdue(link.since_us, timing.handshake_us, "no answer"),
        }
    }

    fn dial<T: From<PeerOp>>(&mut self, ring: &mut Ring<T>, peer: PeerId) {
        match self.address(peer) {
            Ok(Some(address)) => match self.connect(ring, peer, address) {
                Ok(()) => {}
                Err(error) => self.not_dialled(peer, &format!("can't make a socket: {error}")),
            },
            Ok(None) => {}
            Err(reason) => self.not_dialled(peer, &reason),
        }
    }

    /// The peer's address, or `None` while it is asked for.
    fn address(&mut self, peer: PeerId) -> MaybeAddress {
        let Some(text) = self.address_of(peer.node).cloned() else {
            return Err(format!("node {} is neither in node.cluster_nodes nor known otherwise", peer.node));
        };
        let text = text.as_str();
        if let Ok(address) = text.parse() {
            return Ok(Some(address));
        }
        let Some(entry) = self.peers.get_mut(&peer) else { return Ok(None) };
        if let Some(resolved) = entry.dial.resolved.take() {
            return resolved.map(Some);
        }
        match &self.resolve {
            Some(resolve) => {
                entry.dial.resolving = true;
                resolve(peer.node, text);
                Ok(None)
            }
            None => Err(format!("{text} is no address; write it as 192.0.2.1:7443")),
        }
    }

    /// The answer to a question for a node's address.
    pub fn resolved(&mut self, node: NodeId, answer: &Resolved) {
        for peer in self.peers.iter_mut().filter(|(id, peer)| id.node == node && peer.dial.resolving) {
            let dial = &mut peer.1.dial;
            dial.resolving = false;
            dial.resolved = Some(answer.clone());
            dial.at_us = 0;
            self.due_us = 0;
        }
    }

    fn connect<T: From<PeerOp>>(
        &mut self,
        ring: &mut Ring<T>,
        peer: PeerId,
        address: SocketAddr,
    ) -> std::io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        pyralog_net::socket::set_up_connection(&socket)?;
        let address = Box::new(SockAddr::from(address));
        let entry =
            opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len()).build();
        let id = self.insert(socket.into(), Direction::Out);
        // SAFETY: the operation owns the boxed address.
        let key = unsafe { ring.push(entry, PeerOp(Kind::Connect(id, address)).into()) };
        if let Some(mut link) = self.take(id) {
            (link.phase, link.peer, link.connecting) = (Phase::Connecting, Some(peer), Some(key));
            self.restore(link);
        }
        self.peers.entry(peer).or_default().out = Some(id);
        Ok(())
    }

    /// Dialling did not even begin.
    fn not_dialled(&mut self, id: PeerId, reason: &str) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let due_us = peer.dial.failed(&self.config.timing, self.now_us, false, &mut self.random);
        self.due_us = self.due_us.min(due_us);
        if peer.dial.is_news(reason) {
            self.log_no_link(id, reason);
        }
    }

    /// The system has connected, or not.
    pub(super) fn connected(&mut self, id: LinkId, result: i32) {
        let Some(mut link) = self.take(id) else { return };
        link.connecting = None;
        if let (Phase::Connecting, Some(peer)) = (link.phase, link.peer) {
            if result < 0 {
                let error = std::io::Error::from_raw_os_error(-result);
                self.close(&mut link, &format!("can't connect: {error}"));
            } else {
                link.phase = Phase::Greeting;
                let hello = Hello {
                    version_min: OLDEST_PROTOCOL_VERSION,
                    version_max: PROTOCOL_VERSION,
                    cluster_id: self.config.cluster_id,
                    from_node: self.config.node,
                    from_shard: self.config.shard,
                    from_shards: self.config.shards,
                    to_node: peer.node,
                    to_shard: peer.shard,
                    session: self.config.session,
                    levels: self.config.levels,
                };
                link.queue.push_encoded(&mut self.spares, |out| hello.encode(out));
            }
        }
        self.put_back(link);
    }
}
