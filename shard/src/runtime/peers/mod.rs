//! Links between the shards of different nodes, as `docs/protocol-internal.md` describes them: dialling, accepting, the
//! handshake, frames in both directions, keep-alive, bounds, and telling the engine which peers can be reached.
//!
//! - `link`: one connection; `receive`: what happens to the bytes that come; `dial`: connecting, backoff, timers.
//! - [`resolve`]: addresses of nodes that are configured by name.
//!
//! Everything happens on the shard's own ring. The driver calls, per pass: [`Links::begin_pass`], [`Links::completed`] for each
//! operation that ended, what the engine's actions ask for, [`Links::flush`].
//!
//! Owner: the shard's thread.

mod dial;
mod link;
mod receive;
pub mod resolve;

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};

use ahash::AHashMap;
use io_uring::types::Fd;
use io_uring::{cqueue, opcode};
use pyralog_core::limits::*;
use pyralog_core::{FeatureLevels, NodeId, ShardId};
use pyralog_net::peer::frame::{self, FrameKind};
use smallvec::SmallVec;

use super::accept::{accept, is_exhausted};
use super::ring::{OpKey, Ring};
use super::send::{PEER_PARTS, SendEnd, SendOp, Spares};
use crate::engine::{Event, LogLevel, PeerId};
use crate::memory::ChunkSlice;
use link::{Blocked, Direction, Kind, Link, LinkId, Phase};

pub use link::PeerOp;

/// Links accepted in one go.
const ACCEPTS_PER_PASS: usize = 64;
/// Pause after the system had no descriptor left for a new link, microseconds.
const ACCEPT_PAUSE_US: u64 = 100_000;
/// Sockets belong to io_uring only as long as receives may wait for what isn't there yet.
const IORING_RECVSEND_POLL_FIRST: u16 = 1;

/// Times of links, microseconds. The default is what `core::limits` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTiming {
    /// A link on which nothing was sent for this long is sent a ping.
    pub ping_us: u64,
    /// A link on which nothing was received for this long is dead.
    pub timeout_us: u64,
    /// Time for connecting and the handshake.
    pub handshake_us: u64,
    /// First pause before dialling again.
    pub first_backoff_us: u64,
    /// Longest pause before dialling again.
    pub last_backoff_us: u64,
}

impl Default for LinkTiming {
    fn default() -> Self {
        Self {
            ping_us: PEER_PING_INTERVAL_MS * 1000,
            timeout_us: PEER_TIMEOUT_MS * 1000,
            handshake_us: PEER_HANDSHAKE_TIMEOUT_MS * 1000,
            first_backoff_us: PEER_BACKOFF_MS.0 * 1000,
            last_backoff_us: PEER_BACKOFF_MS.1 * 1000,
        }
    }
}

/// What the links of a shard are made with.
#[derive(Clone, Debug)]
pub struct LinksConfig {
    /// The cluster; a node of another one is refused.
    pub cluster_id: u64,
    /// This node.
    pub node: NodeId,
    /// This shard.
    pub shard: ShardId,
    /// Shards of this node.
    pub shards: u16,
    /// Names the life of this shard; random.
    pub session: u64,
    /// The feature levels that this node supports.
    pub levels: FeatureLevels,
    /// The other nodes of the cluster: an address or `host:port` each.
    pub peers: BTreeMap<NodeId, String>,
    /// Times.
    pub timing: LinkTiming,
    /// Of the spread in pauses before dialling again.
    pub seed: u64,
}

/// An accepted socket on its way to the shard that its `Hello` names.
#[derive(Debug)]
pub struct PeerSocket {
    /// The socket.
    pub socket: OwnedFd,
    /// What was received from it.
    pub received: Vec<u8>,
}

/// Numbers of the links of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Links open or on their way, both directions.
    pub links: u64,
    /// Peers that are up.
    pub up: u64,
    /// Bytes that wait to be sent or are being sent.
    pub queued_bytes: u64,
    /// Memory reserved for large frames that are being put together, bytes.
    pub assembly_bytes: u64,
    /// Frames dropped because a peer was down or its queue full.
    pub dropped: u64,
    /// Times that an up peer went down.
    pub downs: u64,
}

/// What to tell the engine; frames are told where they lie.
#[derive(Debug)]
enum Notice {
    Up(PeerId, u64),
    Down(PeerId),
}

/// A shard of another node that is wanted or has dialled us.
#[derive(Debug, Default)]
struct Peer {
    wanted: bool,
    out: Option<LinkId>,
    inbound: Option<LinkId>,
    /// Since when both links are greeted and the engine knows.
    up_us: Option<u64>,
    dial: dial::Dial,
}

struct Slot {
    generation: u32,
    link: Option<Box<Link>>,
}

/// The links of one shard.
pub struct Links {
    config: LinksConfig,
    /// Where nodes are that the settings don't name.
    addresses: BTreeMap<NodeId, String>,
    resolve: Option<resolve::Resolve>,
    listener: Option<TcpListener>,
    accepting: Option<OpKey>,
    accept_after_us: Option<u64>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    peers: AHashMap<PeerId, Peer>,
    /// To look at when the pass ends.
    listed: Vec<LinkId>,
    /// With bytes that wait to be handled.
    held: VecDeque<LinkId>,
    notices: VecDeque<Notice>,
    /// To whom frames were dropped since the engine was last told.
    dropped: Vec<PeerId>,
    leaving: Vec<(ShardId, PeerSocket)>,
    logs: Vec<(LogLevel, String)>,
    /// The last refusal that was logged.
    last_refusal: String,
    /// The cluster's, as far as this node knows it; 0 = it does not.
    feature_level: u16,
    spares: Spares,
    /// Charges of all queues, memory reserved for large frames.
    queued: usize,
    assembly: usize,
    greeted: u64,
    random: u64,
    now_us: u64,
    /// No timer is due before.
    due_us: u64,
    /// While true nobody is dialled and accepted sockets are closed: the shard has no engine.
    paused: bool,
    stats: LinkStats,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("peers", &self.peers).finish_non_exhaustive()
    }
}

/// A random number that names the life of a shard; never 0.
pub fn new_session() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now()) | 1
}

fn name(peer: PeerId) -> String {
    format!("shard {} of node {}", peer.shard, peer.node)
}

impl Links {
    /// Links that accept from `listener` (one of several on the same port, non-blocking).
    pub fn new(config: LinksConfig, listener: TcpListener, resolve: Option<resolve::Resolve>) -> Self {
        Self {
            random: config.seed | 1,
            config,
            addresses: BTreeMap::new(),
            resolve,
            listener: Some(listener),
            accepting: None,
            accept_after_us: None,
            slots: Vec::new(),
            free: Vec::new(),
            peers: AHashMap::new(),
            listed: Vec::new(),
            held: VecDeque::new(),
            notices: VecDeque::new(),
            dropped: Vec::new(),
            leaving: Vec::new(),
            logs: Vec::new(),
            last_refusal: String::new(),
            feature_level: 0,
            spares: Spares::default(),
            queued: 0,
            assembly: 0,
            greeted: 0,
            now_us: 0,
            due_us: 0,
            paused: false,
            stats: LinkStats::default(),
        }
    }

    // --- what the engine wants ---------------------------------------------------------------------------

    /// Where nodes are that the settings don't name. Those that do go before it: an operator may want another way.
    pub fn find_at(&mut self, addresses: BTreeMap<NodeId, String>) {
        self.addresses = addresses;
    }

    /// Where another node of the cluster is.
    fn address_of(&self, node: NodeId) -> Option<&String> {
        self.config
            .peers
            .get(&node)
            .or_else(|| self.addresses.get(&node))
            .filter(|_| node != self.config.node)
    }

    /// Keeps links to exactly these shards from now on.
    pub fn want(&mut self, wanted: &[PeerId]) {
        if self.paused {
            return;
        }
        let unwanted: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(id, peer)| peer.wanted && !wanted.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in unwanted {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            peer.wanted = false;
            // If it is up, this takes the link of the other direction along.
            if let Some(out) = peer.out {
                self.close_by_id(out, "it is not wanted any more");
            }
            self.forget_peer(id);
        }
        for id in wanted {
            if self.address_of(id.node).is_none() {
                let text =
                    format!("a link to {} is wanted, which is no other node of the cluster", name(*id));
                self.logs.push((LogLevel::Error, text));
                continue;
            }
            let peer = self.peers.entry(*id).or_default();
            if !peer.wanted {
                peer.wanted = true;
                peer.dial.now();
                self.due_us = 0;
            }
        }
    }

    /// Queues a frame; it is sent when the pass ends. Dropped, and the engine told later, when the peer is down or too
    /// much waits already.
    pub fn send(&mut self, to: PeerId, control: &[u8], payload: SmallVec<[ChunkSlice; 8]>) {
        if !self.try_send(to, control, payload) {
            self.stats.dropped += 1;
            if !self.dropped.contains(&to) {
                self.dropped.push(to);
            }
        }
    }

    fn try_send(&mut self, to: PeerId, control: &[u8], payload: SmallVec<[ChunkSlice; 8]>) -> bool {
        let payload_bytes: usize = payload.iter().map(ChunkSlice::len).sum();
        if control.len() > MAX_PEER_CONTROL_BYTES || payload_bytes > MAX_PEER_PAYLOAD_BYTES {
            let text = format!(
                "a frame for {} with {} bytes of messages and {payload_bytes} of batches is too large and was dropped; please \
                 report this bug",
                name(to),
                control.len()
            );
            self.logs.push((LogLevel::Error, text));
            return false;
        }
        let Some(out) = self.peers.get(&to).filter(|peer| peer.up_us.is_some()).and_then(|peer| peer.out)
        else {
            return false;
        };
        let Some(link) = find(&mut self.slots, out) else { return false };
        let parts = (payload.len() + 1) * PEER_PART_BYTES;
        let bytes = PEER_FRAME_HEADER_BYTES + control.len() + payload_bytes + parts;
        if link.queued() + bytes > PEER_QUEUE_BYTES || self.queued + bytes > PEER_QUEUE_BYTES_PER_SHARD {
            return false;
        }
        link.queue.push_encoded(&mut self.spares, |out| {
            frame::encode(FrameKind::Messages, control, payload_bytes, out);
        });
        for slice in payload {
            link.queue.push_slice(slice);
        }
        charge(&mut self.queued, link);
        self.list(out);
        true
    }

    // --- a pass ------------------------------------------------------------------------------------------

    /// Begins a pass: tells what has happened outside of completions, and handles bytes that waited.
    pub fn begin_pass(&mut self, now_us: u64, to: &mut dyn FnMut(Event<'_>)) {
        self.now_us = now_us;
        self.tell(to);
        for peer in self.dropped.drain(..) {
            to(Event::PeerDropped { peer });
        }
        for _ in 0..self.held.len() {
            let Some(id) = self.held.pop_front() else { break };
            if self.is_held_back(id) {
                self.held.push_back(id);
            } else if let Some(mut link) = self.take(id) {
                link.blocked = None;
                // What it waited for was not the peer's silence.
                link.received_us = now_us;
                self.received(&mut link, to);
                self.put_back(link);
            }
        }
        self.tell(to);
    }

    /// Tells the engine which peers went up and down, in order.
    fn tell(&mut self, to: &mut dyn FnMut(Event<'_>)) {
        while let Some(notice) = self.notices.pop_front() {
            to(match notice {
                Notice::Up(peer, session) => Event::PeerUp { peer, session },
                Notice::Down(peer) => Event::PeerDown { peer },
            });
        }
    }

    /// An operation ended. Returns how many bytes were received.
    pub fn completed(
        &mut self,
        op: PeerOp,
        result: i32,
        flags: u32,
        now_us: u64,
        to: &mut dyn FnMut(Event<'_>),
    ) -> usize {
        self.now_us = now_us;
        match op.0 {
            Kind::Accept => self.accept(),
            Kind::Connect(id, _) => self.connected(id, result),
            Kind::Send(id, op) => self.sent(id, op, result),
            Kind::Receive(id, bytes) => {
                self.receive_done(id, bytes, result, cqueue::sock_nonempty(flags), to);
                return result.max(0) as usize;
            }
        }
        0
    }

    /// Ends a pass: dials, sends what waits, reads who may be read, closes what is done.
    pub fn flush<T: From<PeerOp>>(&mut self, ring: &mut Ring<T>, now_us: u64) {
        self.now_us = now_us;
        self.arm_accept(ring);
        // What is received but not looked at may be the sign of life that a timer waits for.
        if self.due_us <= now_us && !ring.has_ready() {
            self.timers(ring);
        }
        let mut listed = std::mem::take(&mut self.listed);
        for id in listed.drain(..) {
            let Some(mut link) = self.take(id) else { continue };
            link.listed = false;
            self.pump(ring, &mut link);
            match link.phase == Phase::Closing && !link.busy() {
                true => drop(self.forget(*link)),
                false => self.restore(link),
            }
        }
        listed.append(&mut self.listed);
        self.listed = listed;
    }

    fn pump<T: From<PeerOp>>(&mut self, ring: &mut Ring<T>, link: &mut Link) {
        if link.phase == Phase::Closing {
            if let Some(key) = link.connecting {
                ring.cancel(key);
            }
            return;
        }
        if link.phase != Phase::Connecting
            && !link.sending
            && let Some(op) = link.unsent.take().or_else(|| link.queue.next_op(&mut self.spares, PEER_PARTS))
        {
            link.sent_us = self.now_us;
            submit_send(ring, link, op);
            charge(&mut self.queued, link);
        }
        if link.phase == Phase::Ending && !link.has_unsent() {
            return self.close(link, "refused");
        }
        if link.may_receive() {
            let poll_first = if link.more_waits { 0 } else { IORING_RECVSEND_POLL_FIRST };
            let (room, mut bytes) = link.take_buffer();
            // SAFETY: the spare capacity begins at the length.
            let start = unsafe { bytes.as_mut_ptr().add(bytes.len()) };
            let entry = opcode::Recv::new(Fd(link.fd()), start, room as u32).ioprio(poll_first).build();
            // SAFETY: the operation owns the vector, whose memory does not move with it and has room for that much.
            unsafe { ring.push(entry, PeerOp(Kind::Receive(link.id, bytes)).into()) };
            link.receiving = true;
        }
    }

    /// A send ended.
    fn sent(&mut self, id: LinkId, mut op: Box<SendOp>, result: i32) {
        let Some(mut link) = self.take(id) else { return self.spares.keep_op(op) };
        (link.sending, link.sending_bytes, link.sending_chunk_bytes) = (false, 0, 0);
        if result > 0 {
            link.sent_us = self.now_us;
        }
        match SendEnd::of(&mut op, result) {
            _ if link.phase == Phase::Closing => self.spares.keep_op(op),
            SendEnd::Done => {
                link.congested = false;
                self.spares.keep_op(op);
            }
            SendEnd::More | SendEnd::NoRoom => {
                link.congested = true;
                (link.sending_bytes, link.sending_chunk_bytes) = (op.left(), op.chunk_bytes());
                link.unsent = Some(op);
            }
            SendEnd::Broken(error) => {
                self.spares.keep_op(op);
                self.close(&mut link, &format!("sending failed: {error}"));
            }
        }
        charge(&mut self.queued, &mut link);
        self.put_back(link);
    }

    /// When there is something to do without a completion. Early is harmless.
    pub fn next_deadline_us(&self) -> Option<u64> {
        let due_us = (self.due_us < u64::MAX).then_some(self.due_us);
        [due_us, self.accept_after_us].into_iter().flatten().min()
    }

    /// Whether [`Self::begin_pass`] or [`Self::flush`] have something to do now.
    pub fn is_busy(&self) -> bool {
        !self.notices.is_empty()
            || !self.dropped.is_empty()
            || !self.listed.is_empty()
            || self.held.iter().any(|id| !self.is_held_back(*id))
    }

    /// Sockets that belong to other shards of this node.
    pub fn take_leaving(&mut self) -> Vec<(ShardId, PeerSocket)> {
        std::mem::take(&mut self.leaving)
    }

    /// Lines for the operator's log.
    pub fn take_logs(&mut self) -> Vec<(LogLevel, String)> {
        std::mem::take(&mut self.logs)
    }

    /// Numbers.
    pub fn stats(&self) -> LinkStats {
        let links = || self.slots.iter().filter_map(|slot| slot.link.as_deref());
        LinkStats {
            links: links().count() as u64,
            up: self.peers.values().filter(|peer| peer.up_us.is_some()).count() as u64,
            queued_bytes: links().map(|link| (link.queue.bytes() + link.sending_bytes) as u64).sum(),
            assembly_bytes: self.assembly as u64,
            ..self.stats
        }
    }

    // --- accepting ---------------------------------------------------------------------------------------

    fn arm_accept<T: From<PeerOp>>(&mut self, ring: &mut Ring<T>) {
        if self.accepting.is_some() || self.accept_after_us.is_some_and(|after| self.now_us < after) {
            return;
        }
        let Some(listener) = &self.listener else { return };
        self.accept_after_us = None;
        let entry = opcode::PollAdd::new(Fd(listener.as_raw_fd()), libc::POLLIN as u32).build();
        // SAFETY: the entry refers to no memory.
        self.accepting = Some(unsafe { ring.push(entry, PeerOp(Kind::Accept).into()) });
    }

    fn accept(&mut self) {
        self.accepting = None;
        for _ in 0..ACCEPTS_PER_PASS {
            let Some(listener) = &self.listener else { return };
            let socket = match accept(listener) {
                Ok(socket) => socket,
                Err(error) => {
                    if is_exhausted(&error) {
                        let text = format!(
                            "can't accept a link: {error}; raise the limit of open files (ulimit -n 65536)"
                        );
                        self.logs.push((LogLevel::Warn, text));
                        self.accept_after_us = Some(self.now_us + ACCEPT_PAUSE_US);
                    }
                    return;
                }
            };
            if self.paused {
                continue;
            }
            let _ = pyralog_net::socket::set_up_connection(&socket);
            self.make_room_for_a_stranger();
            self.insert(socket, Direction::In);
        }
    }

    /// Closes the oldest of the accepted links that have not said who they are when there are too many.
    fn make_room_for_a_stranger(&mut self) {
        let stranger = |link: &&Link| link.peer.is_none() && link.phase != Phase::Closing;
        let strangers = || self.slots.iter().filter_map(|slot| slot.link.as_deref()).filter(stranger);
        if strangers().count() >= MAX_PEER_HANDSHAKES_PER_SHARD
            && let Some(oldest) = strangers().min_by_key(|link| link.since_us).map(|link| link.id)
        {
            self.close_by_id(oldest, "too many links without a hello");
        }
    }

    /// Takes a link that another shard accepted; what was received from it is handled in the next pass.
    pub fn take_over(&mut self, arrived: PeerSocket, now_us: u64) {
        self.now_us = now_us;
        if self.paused {
            return;
        }
        let id = self.insert(arrived.socket, Direction::In);
        if let Some(link) = find(&mut self.slots, id) {
            link.buffer = arrived.received;
            link.blocked = Some(Blocked::Fresh);
            self.held.push_back(id);
        }
    }

    /// Stops accepting: links that are there go on.
    pub fn stop_accepting<T: From<PeerOp>>(&mut self, ring: &mut Ring<T>) {
        if let Some(key) = self.accepting.take() {
            ring.cancel(key);
        }
        self.listener = None;
    }

    // --- pairs -------------------------------------------------------------------------------------------

    /// A link of `peer` is greeted: when both are, the peer is up.
    fn greeted(&mut self, link: &mut Link, peer: PeerId, session: u64) {
        self.greeted += 1;
        (link.phase, link.peer, link.session, link.greeted) =
            (Phase::Open, Some(peer), session, self.greeted);
        (link.since_us, link.received_us, link.sent_us) = (self.now_us, self.now_us, self.now_us);
        self.due_us =
            self.due_us.min(self.now_us + self.config.timing.ping_us.min(self.config.timing.timeout_us));
        let entry = self.peers.entry(peer).or_default();
        let other = match link.direction {
            Direction::Out => entry.inbound,
            Direction::In => entry.out,
        };
        if entry.wanted && entry.up_us.is_none() && link.direction == Direction::In && other.is_none() {
            // It is alive: no reason to go on waiting, unless it refuses us.
            entry.dial.it_is_alive();
            self.due_us = 0;
        }
        let Some(other) =
            other.and_then(|id| find(&mut self.slots, id)).filter(|other| other.phase == Phase::Open)
        else {
            return;
        };
        if other.session != session {
            // That link belongs to an earlier life of the peer.
            let id = other.id;
            return self.close_by_id(id, "the peer was restarted");
        }
        if entry.wanted && entry.up_us.is_none() {
            entry.up_us = Some(self.now_us);
            entry.dial.succeeded();
            self.notices.push_back(Notice::Up(peer, session));
            self.logs.push((LogLevel::Info, format!("linked with {}", name(peer))));
        }
    }

    /// Gives a link up. It goes when its operations have ended.
    fn close(&mut self, link: &mut Link, reason: &str) {
        if link.phase == Phase::Closing {
            return;
        }
        link.phase = Phase::Closing;
        link.shut();
        link.queue.clear(&mut self.spares);
        link.unsent = None;
        if !link.sending {
            (link.sending_bytes, link.sending_chunk_bytes) = (0, 0);
        }
        link.blocked = None;
        charge(&mut self.queued, link);
        self.assembly -= std::mem::take(&mut link.large);
        if let Some(peer) = link.peer {
            self.unlink(link.id, link.direction, peer, reason);
        }
    }

    fn close_by_id(&mut self, id: LinkId, reason: &str) {
        if let Some(mut link) = self.take(id) {
            self.close(&mut link, reason);
            self.put_back(link);
        }
    }

    /// A link of a peer ended, unless another one has taken its place already.
    fn unlink(&mut self, id: LinkId, direction: Direction, peer: PeerId, reason: &str) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let (own, other) = match direction {
            Direction::Out => (&mut entry.out, entry.inbound),
            Direction::In => (&mut entry.inbound, entry.out),
        };
        if *own != Some(id) {
            return;
        }
        *own = None;
        let up_us = entry.up_us.take();
        if direction == Direction::Out && entry.wanted {
            let long = up_us.is_some_and(|up_us| self.now_us - up_us >= self.config.timing.last_backoff_us);
            let due = entry.dial.failed(&self.config.timing, self.now_us, long, &mut self.random);
            self.due_us = self.due_us.min(due);
            if up_us.is_none() && entry.dial.is_news(reason) {
                self.log_no_link(peer, reason);
            }
        }
        if up_us.is_some() {
            self.stats.downs += 1;
            self.notices.push_back(Notice::Down(peer));
            self.logs.push((LogLevel::Warn, format!("the links with {} are down: {reason}", name(peer))));
            // Both ends shall notice, whichever direction broke.
            if let Some(other) = other {
                self.close_by_id(other, reason);
            }
        }
        self.forget_peer(peer);
    }

    fn log_no_link(&mut self, peer: PeerId, reason: &str) {
        let text = format!("can't link to {}, trying again until it works: {reason}", name(peer));
        self.logs.push((LogLevel::Warn, text));
    }

    fn forget_peer(&mut self, id: PeerId) {
        if self
            .peers
            .get(&id)
            .is_some_and(|peer| !peer.wanted && peer.out.is_none() && peer.inbound.is_none())
        {
            self.peers.remove(&id);
        }
    }

    // --- the end -----------------------------------------------------------------------------------------

    /// Closes every link and forgets who is wanted; nobody is told. Until [`Self::begin_life`] there are no links.
    pub fn pause(&mut self) {
        self.paused = true;
        self.peers.values_mut().for_each(|peer| peer.wanted = false);
        let ids: Vec<LinkId> =
            self.slots.iter().filter_map(|slot| slot.link.as_ref().map(|link| link.id)).collect();
        for id in ids {
            self.close_by_id(id, "this shard ends its links");
        }
        self.peers.clear();
        self.notices.clear();
        self.dropped.clear();
    }

    /// The shard lives (again), with nothing in memory of what it was sent before.
    pub fn begin_life(&mut self, session: u64) {
        self.paused = false;
        self.dropped.clear();
        self.config.session = session;
    }

    /// Whether frames are still on their way to peers that are up.
    pub fn has_unsent(&self) -> bool {
        let open = |link: &&Link| link.phase == Phase::Open;
        self.slots.iter().filter_map(|slot| slot.link.as_deref()).filter(open).any(Link::has_unsent)
    }

    /// Closes the links that hold chunk memory, those first that have not got on for longest, until `bytes` of it are
    /// free. Returns how many are.
    pub fn shed(&mut self, bytes: usize) -> usize {
        let pinned = |link: &Link| link.queue.chunk_bytes() + link.sending_chunk_bytes;
        let mut stalled: Vec<(u64, usize, LinkId)> = self
            .slots
            .iter()
            .filter_map(|slot| slot.link.as_deref())
            .map(|link| (link.sent_us, pinned(link), link.id))
            .filter(|(_, pinned, _)| *pinned > 0)
            .collect();
        stalled.sort_unstable_by_key(|(sent_us, ..)| *sent_us);
        let mut freed = 0;
        for (_, pinned, id) in stalled {
            if freed >= bytes {
                break;
            }
            self.close_by_id(id, "it takes what it is sent too slowly, and the memory is needed");
            freed += pinned;
        }
        freed
    }

    // --- the books ---------------------------------------------------------------------------------------

    fn insert(&mut self, socket: OwnedFd, direction: Direction) -> LinkId {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, link: None });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        let id = LinkId(u64::from(slot.generation) << 32 | u64::from(index));
        slot.link = Some(Box::new(Link::new(id, socket, direction, self.now_us)));
        self.due_us = self.due_us.min(self.now_us + self.config.timing.handshake_us);
        self.list(id);
        id
    }

    /// Takes a link out of the books; its number may be used again, under another generation.
    fn forget(&mut self, link: Link) -> OwnedFd {
        let index = link.id.0 as u32;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
        }
        link.socket
    }

    fn take(&mut self, id: LinkId) -> Option<Box<Link>> {
        self.slots.get_mut(id.0 as u32 as usize)?.link.take_if(|link| link.id == id)
    }

    fn restore(&mut self, link: Box<Link>) {
        if let Some(slot) = self.slots.get_mut(link.id.0 as u32 as usize) {
            slot.link = Some(link);
        }
    }

    /// Puts a link back and has it looked at when the pass ends.
    fn put_back(&mut self, link: Box<Link>) {
        let id = link.id;
        self.restore(link);
        self.list(id);
    }

    fn list(&mut self, id: LinkId) {
        if let Some(link) = find(&mut self.slots, id)
            && !link.listed
        {
            link.listed = true;
            self.listed.push(id);
        }
    }
}

fn find(slots: &mut [Slot], id: LinkId) -> Option<&mut Link> {
    slots.get_mut(id.0 as u32 as usize)?.link.as_deref_mut().filter(|link| link.id == id)
}

/// Brings the shard's sum up to date with what a link holds.
fn charge(sum: &mut usize, link: &mut Link) {
    let queued = link.queued();
    *sum = *sum - link.charged + queued;
    link.charged = queued;
}

/// Sends. Without waiting, and so without being woken by its end, only where nothing else waits for that end.
fn submit_send<T: From<PeerOp>>(ring: &mut Ring<T>, link: &mut Link, mut op: Box<SendOp>) {
    let awaited = link.phase != Phase::Open || link.queue.bytes() > 0;
    let instant = op.is_small() && !link.congested && !awaited;
    let left = op.left();
    let entry = op.entry(link.fd(), instant);
    (link.sending, link.sending_bytes, link.sending_chunk_bytes) = (true, left, op.chunk_bytes());
    let owner = PeerOp(Kind::Send(link.id, op)).into();
    // SAFETY: the boxed operation owns the parts, the gather list and the message header that the entry names;
    // an instant one is a MSG_DONTWAIT | MSG_WAITALL send, which the kernel ends while it is issued.
    unsafe {
        match instant {
            true => ring.push_instant(entry, owner, left as i32),
            false => ring.push(entry, owner),
        };
    }
}
