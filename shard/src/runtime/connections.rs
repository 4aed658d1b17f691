//! A shard's client connections: accepting, receiving, sending, bounds, timeouts and the end of each.
//!
//! Owner: the shard's thread.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hdrhistogram::Histogram;
use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};
use pyralog_core::ErrorCode;
use pyralog_core::limits::{RECV_BUFFER_BYTES, RECV_BUFFERS_PER_SHARD};
use pyralog_net::message::Response;

use super::accept::{accept, is_exhausted};
use super::connection::{Blocked, Connection, Held, Phase};
use super::op::Op;
use super::receive::{AssemblyBudget, Context, HandOver, Identity, Load, Received, received};
use super::recv_buffers;
use super::ring::{OpKey, Ring};
use super::send::{CLIENT_PARTS, SendEnd, SendOp, Spares};
use super::stages::Stages;
use crate::engine::{Action, ConnId, Engine, Event, Now, ReplyBody};

/// Connections accepted in one go.
const ACCEPTS_PER_PASS: usize = 64;
/// Pause after the system had no descriptor left for a new connection, microseconds.
const ACCEPT_PAUSE_US: u64 = 100_000;
/// Refused connections that are told why at the same time; beyond it they are closed without a word.
const MAX_REFUSED: usize = 64;
/// Sockets belong to io_uring only as long as receives may wait for what isn't there yet.
const IORING_RECVSEND_POLL_FIRST: u16 = 1;
/// From this many missing bytes on, the rest of a frame is received where it is assembled.
const DIRECT_RECEIVE_BYTES: usize = RECV_BUFFER_BYTES / 2;

/// With fewer receive buffers left, requests that wait for replies to be sent are moved out of theirs.
const SCARCE_BUFFERS: u16 = RECV_BUFFERS_PER_SHARD as u16 / 2;

/// The engine and what it says, as event handlers need them.
pub(super) struct EngineAccess<'a> {
    pub(super) engine: Option<&'a mut Engine>,
    pub(super) actions: &'a mut Vec<Action>,
    pub(super) now: Now,
}

impl EngineAccess<'_> {
    /// Tells the engine, if there is one.
    pub(super) fn event(&mut self, event: Event<'_>) {
        if let Some(engine) = &mut self.engine {
            engine.handle(self.now, event, self.actions);
        }
    }
}

/// Where sockets go that do not stay.
#[derive(Debug)]
pub(super) enum Leaving {
    Http(HandOver),
    Shard(u16, HandOver),
}

struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

/// Counters for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConnectionStats {
    pub(super) open: u64,
    pub(super) queued_bytes: u64,
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) timed_out: u64,
    pub(super) shed: u64,
}

/// The connections of one shard.
pub(super) struct Connections {
    listener: Option<TcpListener>,
    accepting: Option<OpKey>,
    accept_after_us: Option<u64>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// To look at when the pass ends.
    listed: Vec<ConnId>,
    /// Without a receive buffer, without assembly memory, with a produce that is not taken yet.
    starved: VecDeque<ConnId>,
    wait_assembly: VecDeque<ConnId>,
    wait_produce: VecDeque<ConnId>,
    /// Whose own bounds let them go on, but maybe the shard's don't.
    wait_replies: VecDeque<ConnId>,
    /// Assembly memory in use when the first of those who wait for it was last refused.
    used_when_refused: usize,
    timers: BinaryHeap<Reverse<(u64, ConnId)>>,
    spares: Spares,
    budget: AssemblyBudget,
    load: Load,
    pub(super) identity: Identity,
    node_connections: Arc<AtomicUsize>,
    max_connections: usize,
    refused_now: usize,
    timeout_us: u64,
    leaving: Vec<Leaving>,
    produce_latency_us: Histogram<u64>,
    /// The parts of it. The driver tells of journal writes.
    pub(super) stages: Stages,
    stats: ConnectionStats,
    /// While false nothing is read: the shard waits for its disk to be quiet.
    pub(super) reading: bool,
}

impl Connections {
    pub(super) fn new(
        listener: TcpListener,
        identity: Identity,
        node_connections: Arc<AtomicUsize>,
        max_connections: usize,
        timeout_us: u64,
    ) -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            listener: Some(listener),
            accepting: None,
            accept_after_us: None,
            slots: Vec::new(),
            free: Vec::new(),
            listed: Vec::new(),
            starved: VecDeque::new(),
            wait_assembly: VecDeque::new(),
            wait_produce: VecDeque::new(),
            wait_replies: VecDeque::new(),
            used_when_refused: 0,
            timers: BinaryHeap::new(),
            spares: Spares::default(),
            budget: AssemblyBudget::default(),
            load: Load::default(),
            identity,
            node_connections,
            max_connections,
            refused_now: 0,
            timeout_us,
            leaving: Vec::new(),
            produce_latency_us: Histogram::new_with_bounds(1, 120_000_000, 3)?,
            stages: Stages::new()?,
            stats: ConnectionStats::default(),
            reading: true,
        })
    }

    // --- accepting ---------------------------------------------------------------------------------------

    /// Asks the ring to tell when somebody connects, unless it is asked already.
    pub(super) fn arm_accept(&mut self, ring: &mut Ring<Op>, now_us: u64) {
        if self.accepting.is_some() || self.accept_after_us.is_some_and(|after| now_us < after) {
            return;
        }
        let Some(listener) = &self.listener else { return };
        self.accept_after_us = None;
        let entry = opcode::PollAdd::new(Fd(listener.as_raw_fd()), libc::POLLIN as u32).build();
        // SAFETY: the entry refers to no memory.
        self.accepting = Some(unsafe { ring.push(entry, Op::Accept) });
    }

    /// Somebody connects.
    pub(super) fn accept(&mut self, now_us: u64) {
        self.accepting = None;
        for _ in 0..ACCEPTS_PER_PASS {
            let Some(listener) = &self.listener else { return };
            let socket = match accept(listener) {
                Ok(socket) => socket,
                Err(error) => {
                    if is_exhausted(&error) {
                        tracing::warn!(
                            "can't accept a connection: {error}; raise the limit of open files (ulimit -n 65536)"
                        );
                        self.accept_after_us = Some(now_us + ACCEPT_PAUSE_US);
                    }
                    return;
                }
            };
            self.admit(socket, now_us);
        }
    }

    /// Takes a connection that was just accepted, or refuses it when there are too many.
    pub(super) fn admit(&mut self, socket: OwnedFd, now_us: u64) {
        self.stats.accepted += 1;
        let _ = pyralog_net::socket::set_up_connection(&socket);
        if self.node_connections.fetch_add(1, Ordering::Relaxed) < self.max_connections {
            self.insert(socket, now_us);
            return;
        }
        self.node_connections.fetch_sub(1, Ordering::Relaxed);
        self.stats.refused += 1;
        if self.refused_now < MAX_REFUSED {
            self.refused_now += 1;
            let id = self.insert(socket, now_us);
            let bound = self.max_connections;
            let Some(conn) = find(&mut self.slots, id) else { return };
            conn.counted = false;
            conn.phase = Phase::Ending;
            let text = format!(
                "this node serves at most {bound} connections; close some or raise network.max_connections"
            );
            let encode = |out: &mut Vec<u8>| Response::encode_error(ErrorCode::Overloaded, &text, 0, out);
            conn.queue.push_encoded(&mut self.spares, encode);
        }
    }

    fn insert(&mut self, socket: OwnedFd, now_us: u64) -> ConnId {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, connection: None });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        let id = ConnId(u64::from(slot.generation) << 32 | u64::from(index));
        slot.connection = Some(Box::new(Connection::new(id, socket, now_us)));
        self.stats.open += 1;
        self.list(id);
        id
    }

    /// Takes a connection that another shard accepted; its first bytes are handled at once.
    pub(super) fn take_over(&mut self, hand_over: HandOver, access: &mut EngineAccess<'_>) {
        let id = self.insert(hand_over.socket, access.now.monotonic_us);
        let Some(mut conn) = self.take(id) else { return };
        let outcome = received(&mut conn, &hand_over.prefix, &mut self.context(access));
        if let Received::Blocked(handled) = outcome {
            // No receive buffer to hold: keep the rest beside, charged to nobody but at most one buffer long.
            conn.early = hand_over.prefix.get(handled..).unwrap_or_default().to_vec();
            self.wait(&conn);
            self.put_back(conn);
        } else {
            self.settle(conn, outcome, None, access);
        }
    }

    /// Stops listening: nobody connects any more.
    pub(super) fn stop_accepting(&mut self, ring: &mut Ring<Op>) {
        if let Some(key) = self.accepting.take() {
            ring.cancel(key);
        }
        self.listener = None;
    }

    // --- receiving ---------------------------------------------------------------------------------------

    /// A receive into a provided buffer ended.
    pub(super) fn receive_done(
        &mut self,
        ring: &mut Ring<Op>,
        id: ConnId,
        result: i32,
        flags: u32,
        access: &mut EngineAccess<'_>,
    ) {
        let buffer = cqueue::buffer_select(flags);
        if buffer.is_some()
            && let Some(buffers) = ring.recv_buffers()
        {
            buffers.taken();
        }
        let Some(mut conn) = self.take(id) else { return give_back(ring, buffer) };
        conn.receiving = false;
        conn.more_waits = cqueue::sock_nonempty(flags);
        if result == -libc::ENOBUFS && conn.phase != Phase::Closing {
            conn.more_waits = true;
            conn.starved = true;
            self.starved.push_back(id);
            return self.put_back(conn);
        }
        if result <= 0 || conn.phase == Phase::Closing {
            give_back(ring, buffer);
            return self.receive_ended(conn, result, access);
        }
        let Some(buffer) = buffer else { return self.put_back(conn) };
        self.handle_buffer(ring, conn, Held { buffer, from: 0, to: result as usize }, access);
    }

    /// A receive into a connection's assembly ended.
    pub(super) fn receive_rest_done(
        &mut self,
        id: ConnId,
        mut bytes: Vec<u8>,
        result: i32,
        flags: u32,
        access: &mut EngineAccess<'_>,
    ) {
        let Some(mut conn) = self.take(id) else { return };
        conn.receiving = false;
        conn.more_waits = cqueue::sock_nonempty(flags);
        let len = (bytes.len() + result.max(0) as usize).min(bytes.capacity());
        // SAFETY: the kernel filled `result` bytes of the spare capacity, which began at the old length.
        unsafe { bytes.set_len(len) };
        // Whatever the end was: after an interrupted receive the frame goes on where it was.
        if let Some(assembly) = &mut conn.assembly {
            assembly.bytes = bytes;
        }
        if result <= 0 || conn.phase == Phase::Closing {
            return self.receive_ended(conn, result, access);
        }
        let outcome = received(&mut conn, &[], &mut self.context(access));
        self.settle(conn, outcome, None, access);
    }

    fn receive_ended(&mut self, mut conn: Box<Connection>, result: i32, access: &mut EngineAccess<'_>) {
        match result {
            _ if conn.phase == Phase::Closing => {}
            0 => conn.eof = true,
            _ if result == -libc::EINTR || result == -libc::EAGAIN => {}
            _ => self.close(&mut conn, access),
        }
        self.put_back(conn);
    }

    fn handle_buffer(
        &mut self,
        ring: &mut Ring<Op>,
        mut conn: Box<Connection>,
        held: Held,
        access: &mut EngineAccess<'_>,
    ) {
        let Some(buffers) = ring.recv_buffers() else { return self.put_back(conn) };
        let bytes = buffers.bytes(held.buffer, held.to).get(held.from..).unwrap_or_default();
        let outcome = received(&mut conn, bytes, &mut self.context(access));
        let keeps = match outcome {
            Received::Blocked(handled) if held.from + handled < held.to => {
                let rest = bytes.get(handled..).unwrap_or_default();
                // It may wait for as long as the client likes, which must not cost the others their buffers.
                let scarce = conn.blocked == Some(Blocked::Replies) && buffers.with_kernel() < SCARCE_BUFFERS;
                if scarce && self.budget.reserve(rest.len()) {
                    conn.early = rest.to_vec();
                    conn.early_reserved = rest.len();
                    None
                } else {
                    Some(Held { from: held.from + handled, ..held })
                }
            }
            _ => None,
        };
        if keeps.is_none() {
            buffers.give_back(held.buffer);
        }
        self.settle(conn, outcome, keeps, access);
    }

    fn settle(
        &mut self,
        mut conn: Box<Connection>,
        outcome: Received,
        held: Option<Held>,
        access: &mut EngineAccess<'_>,
    ) {
        match outcome {
            Received::Handled => self.put_back(conn),
            Received::Blocked(_) => {
                conn.held = held;
                self.wait(&conn);
                self.put_back(conn);
            }
            Received::Http(prefix) => {
                let socket = self.forget(*conn, false);
                self.leaving.push(Leaving::Http(HandOver { socket, prefix }));
            }
            Received::HandOver(shard, prefix) if !conn.busy() => {
                let socket = self.forget(*conn, true);
                self.leaving.push(Leaving::Shard(shard, HandOver { socket, prefix }));
            }
            Received::HandOver(..) => {
                self.close(&mut conn, access);
                self.put_back(conn);
            }
        }
    }

    /// Sockets that leave this shard.
    pub(super) fn take_leaving(&mut self) -> Vec<Leaving> {
        std::mem::take(&mut self.leaving)
    }

    fn wait(&mut self, conn: &Connection) {
        match conn.blocked {
            Some(Blocked::Produce) => self.wait_produce.push_back(conn.id),
            Some(Blocked::Assembly) => self.wait_assembly.push_back(conn.id),
            // Until its own bounds let it go on; each look at it when a pass ends finds that out.
            Some(Blocked::Replies) | None => {}
        }
    }

    /// Whether a connection that waited could go on now.
    pub(super) fn can_resume(&self, engine: Option<&Engine>) -> bool {
        let produce = !self.wait_produce.is_empty() && engine.is_none_or(Engine::accepts_produce);
        let assembly = !self.wait_assembly.is_empty() && self.budget.used() < self.used_when_refused;
        produce || assembly || (!self.wait_replies.is_empty() && self.has_room())
    }

    /// Whether the shard's bounds let a connection have one more request.
    fn has_room(&self) -> bool {
        self.load.has_room(self.spares.queued_bytes())
    }

    /// Whether more than its own connection may wait for the end of a send: a shutdown, or requests that there is no
    /// room for. Nothing is queued between the sends of a pass and its end, so what is said then stays true.
    fn sends_awaited(&self) -> bool {
        self.listener.is_none() || !self.has_room()
    }

    /// Lets a connection that its own bounds no longer hold back wait for the shard's.
    fn line_up(&mut self, conn: &mut Connection) {
        if !conn.lined_up {
            conn.lined_up = true;
            self.wait_replies.push_back(conn.id);
        }
    }

    /// Lets connections go on that waited for the engine or for memory.
    pub(super) fn resume(&mut self, ring: &mut Ring<Op>, access: &mut EngineAccess<'_>) {
        for _ in 0..self.wait_produce.len() {
            if access.engine.as_ref().is_some_and(|engine| !engine.accepts_produce()) {
                break;
            }
            let Some(id) = self.wait_produce.pop_front() else { break };
            self.resume_one(ring, id, access);
        }
        for _ in 0..self.wait_assembly.len() {
            let Some(id) = self.wait_assembly.pop_front() else { break };
            let waiting = self.wait_assembly.len();
            self.resume_one(ring, id, access);
            if self.wait_assembly.len() > waiting {
                // It found no memory and went to the end of the line: its place is the first.
                self.wait_assembly.rotate_right(1);
                break;
            }
        }
        self.used_when_refused = self.budget.used();
        for _ in 0..self.wait_replies.len() {
            if !self.has_room() {
                break;
            }
            let Some(id) = self.wait_replies.pop_front() else { break };
            if let Some(conn) = find(&mut self.slots, id) {
                conn.lined_up = false;
                conn.partial_since_us = access.now.monotonic_us;
                self.resume_one(ring, id, access);
            }
        }
    }

    fn resume_one(&mut self, ring: &mut Ring<Op>, id: ConnId, access: &mut EngineAccess<'_>) {
        let Some(mut conn) = self.take(id) else { return };
        if conn.blocked.take().is_none() || conn.phase == Phase::Closing {
            return self.put_back(conn);
        }
        conn.partial_since_us = access.now.monotonic_us;
        if let Some(held) = conn.held.take() {
            return self.handle_buffer(ring, conn, held, access);
        }
        let early = std::mem::take(&mut conn.early);
        let outcome = received(&mut conn, &early, &mut self.context(access));
        match outcome {
            Received::Blocked(handled) => {
                conn.early = early.get(handled..).unwrap_or_default().to_vec();
                self.wait(&conn);
                self.put_back(conn);
            }
            outcome => {
                self.budget.release_bytes(std::mem::take(&mut conn.early_reserved));
                self.settle(conn, outcome, None, access)
            }
        }
    }

    fn arm_receive(&mut self, ring: &mut Ring<Op>, conn: &mut Connection) {
        if !self.reading || conn.starved || !conn.may_receive() {
            return;
        }
        if conn.phase == Phase::Open && !self.has_room() {
            return self.line_up(conn);
        }
        let buffers = ring.recv_buffers().map_or(0, |buffers| buffers.with_kernel());
        let poll_first = if conn.more_waits { 0 } else { IORING_RECVSEND_POLL_FIRST };
        if let Some(assembly) = &mut conn.assembly
            && let Some(total) = assembly.total
        {
            let missing = total.saturating_sub(assembly.bytes.len());
            if missing > 0 && (missing >= DIRECT_RECEIVE_BYTES || buffers == 0) {
                let mut bytes = std::mem::take(&mut assembly.bytes);
                // Grows with what has really come, at most doubling.
                bytes.reserve_exact(missing.min(bytes.len().max(RECV_BUFFER_BYTES)));
                let room = (bytes.capacity() - bytes.len()).min(missing);
                // SAFETY: the spare capacity begins at the length.
                let start = unsafe { bytes.as_mut_ptr().add(bytes.len()) };
                let entry = opcode::Recv::new(Fd(conn.fd()), start, room as u32).ioprio(poll_first).build();
                // SAFETY: the operation owns the vector, whose memory does not move with it.
                unsafe { ring.push(entry, Op::ReceiveRest(conn.id, bytes)) };
                conn.receiving = true;
                return;
            }
        }
        if buffers == 0 && conn.more_waits {
            conn.starved = true;
            self.starved.push_back(conn.id);
            return;
        }
        let entry = opcode::Recv::new(Fd(conn.fd()), std::ptr::null_mut(), RECV_BUFFER_BYTES as u32)
            .buf_group(recv_buffers::GROUP)
            .ioprio(poll_first)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: the kernel writes into buffers that the ring owns.
        unsafe { ring.push(entry, Op::Receive(conn.id)) };
        conn.receiving = true;
    }

    // --- sending -----------------------------------------------------------------------------------------

    /// Queues a reply; it is sent when the pass ends.
    pub(super) fn reply(&mut self, id: ConnId, correlation_id: u64, body: ReplyBody, now_us: u64) {
        let Some(conn) = find(&mut self.slots, id) else { return };
        if let Some(arrived_us) = conn.answered(correlation_id, &mut self.load) {
            let _ = self.produce_latency_us.record(now_us.saturating_sub(arrived_us).max(1));
            self.stages.answered(arrived_us, now_us);
        }
        if matches!(conn.phase, Phase::Closing | Phase::Draining) {
            return;
        }
        conn.queue.push_reply(&mut self.spares, correlation_id, body);
        self.list(id);
    }

    /// A send ended.
    pub(super) fn send_done(
        &mut self,
        ring: &mut Ring<Op>,
        id: ConnId,
        mut op: Box<SendOp>,
        result: i32,
        access: &mut EngineAccess<'_>,
    ) {
        let Some(mut conn) = self.take(id) else { return self.spares.keep_op(op) };
        conn.sending = false;
        conn.sending_bytes = 0;
        conn.sending_chunk_bytes = 0;
        let end = SendEnd::of(&mut op, result);
        let began_us = conn.send_progress_us;
        if result > 0 {
            conn.send_progress_us = access.now.monotonic_us;
        }
        if conn.phase == Phase::Closing {
            self.spares.keep_op(op);
            return self.put_back(conn);
        }
        match end {
            SendEnd::Done => {
                conn.congested = false;
                self.stages.sent(access.now.monotonic_us.saturating_sub(began_us));
                self.spares.keep_op(op);
            }
            SendEnd::More | SendEnd::NoRoom => {
                conn.congested = true;
                let awaited = self.sends_awaited();
                submit_send(ring, &mut conn, op, awaited);
            }
            SendEnd::Broken(_) => {
                self.spares.keep_op(op);
                self.close(&mut conn, access);
            }
        }
        self.put_back(conn);
    }

    /// Ends a pass: sends what waits, reads who may be read, closes who is done.
    pub(super) fn flush(&mut self, ring: &mut Ring<Op>, access: &mut EngineAccess<'_>) {
        let mut room = ring.recv_buffers().map_or(0, |buffers| buffers.with_kernel());
        while room > 0
            && let Some(id) = self.starved.pop_front()
        {
            if let Some(conn) = find(&mut self.slots, id) {
                conn.starved = false;
                room -= 1;
                self.list(id);
            }
        }
        // The replies of this pass are queued, so what they hold is known.
        self.load.large = 0;
        let mut listed = std::mem::take(&mut self.listed);
        for id in listed.drain(..) {
            let Some(mut conn) = self.take(id) else { continue };
            conn.listed = false;
            self.pump(ring, &mut conn, access);
            let gone = conn.phase == Phase::Closing && !conn.busy();
            if gone {
                self.release_buffers(ring, &mut conn);
                drop(self.forget(*conn, false));
            } else {
                self.arm_timer(&mut conn);
                self.restore(conn);
            }
        }
        listed.append(&mut self.listed);
        self.listed = listed;
    }

    fn pump(&mut self, ring: &mut Ring<Op>, conn: &mut Connection, access: &mut EngineAccess<'_>) {
        if conn.phase == Phase::Closing {
            return;
        }
        if !conn.sending
            && let Some(op) = conn.queue.next_op(&mut self.spares, CLIENT_PARTS)
        {
            conn.send_progress_us = access.now.monotonic_us;
            let awaited = self.sends_awaited();
            submit_send(ring, conn, op, awaited);
        }
        let sent_all = !conn.sending && conn.queue.bytes() == 0;
        match conn.phase {
            Phase::Ending if sent_all => {
                conn.shut(libc::SHUT_WR);
                conn.phase = Phase::Draining;
                conn.since_us = access.now.monotonic_us;
                conn.blocked = None;
                if let Some(assembly) = conn.assembly.take() {
                    self.budget.release(&assembly);
                }
                conn.queue.clear(&mut self.spares);
            }
            Phase::Draining => {}
            _ if conn.eof && sent_all && conn.in_flight == 0 && conn.blocked.is_none() => {
                self.close(conn, access)
            }
            _ => {}
        }
        if conn.phase == Phase::Draining && conn.eof {
            self.close(conn, access);
        }
        if conn.blocked == Some(Blocked::Replies) && conn.may_request() {
            self.line_up(conn);
        }
        self.arm_receive(ring, conn);
    }

    // --- the end of a connection -------------------------------------------------------------------------

    /// Gives a connection up. It goes when its operations have ended.
    fn close(&mut self, conn: &mut Connection, access: &mut EngineAccess<'_>) {
        if conn.phase == Phase::Closing {
            return;
        }
        let served = conn.phase == Phase::Open || conn.in_flight > 0;
        conn.phase = Phase::Closing;
        conn.shut(libc::SHUT_RDWR);
        conn.queue.clear(&mut self.spares);
        if served && let Some(engine) = &mut access.engine {
            engine.handle(access.now, Event::ConnectionClosed { conn: conn.id }, access.actions);
        }
    }

    fn release_buffers(&mut self, ring: &mut Ring<Op>, conn: &mut Connection) {
        give_back(ring, conn.held.take().map(|held| held.buffer));
    }

    /// Takes a connection out of the books. `moved`: it still counts as one of the node's.
    fn forget(&mut self, mut conn: Connection, moved: bool) -> OwnedFd {
        conn.queue.clear(&mut self.spares);
        self.load.in_flight -= conn.in_flight;
        self.budget.release_bytes(conn.early_reserved);
        if let Some(assembly) = &conn.assembly {
            self.budget.release(assembly);
        }
        if !conn.counted {
            self.refused_now -= 1;
        } else if !moved {
            self.node_connections.fetch_sub(1, Ordering::Relaxed);
        }
        let index = conn.id.0 as u32;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
        }
        self.stats.open -= 1;
        conn.socket
    }

    /// Gives up every connection.
    pub(super) fn close_all(&mut self, access: &mut EngineAccess<'_>) {
        let ids: Vec<ConnId> =
            self.slots.iter().filter_map(|slot| slot.connection.as_ref().map(|conn| conn.id)).collect();
        for id in ids {
            if let Some(mut conn) = self.take(id) {
                self.close(&mut conn, access);
                self.put_back(conn);
            }
        }
    }

    /// Closes the connections whose sends have been stalled for longest, until `bytes` of chunk memory are free.
    /// Returns how many are.
    pub(super) fn shed(&mut self, bytes: usize, access: &mut EngineAccess<'_>) -> usize {
        let mut stalled: Vec<(u64, usize, ConnId)> = self
            .slots
            .iter()
            .filter_map(|slot| slot.connection.as_ref())
            .filter(|conn| conn.phase != Phase::Closing)
            .map(|conn| (conn.send_progress_us, conn.queue.chunk_bytes() + conn.sending_chunk_bytes, conn.id))
            .filter(|(_, pinned, _)| *pinned > 0)
            .collect();
        stalled.sort_unstable();
        let mut freed = 0;
        for (_, pinned, id) in stalled {
            if freed >= bytes {
                break;
            }
            let Some(mut conn) = self.take(id) else { continue };
            conn.reset_on_close();
            self.close(&mut conn, access);
            self.put_back(conn);
            self.stats.shed += 1;
            freed += pinned;
        }
        freed
    }

    // --- timeouts ----------------------------------------------------------------------------------------

    fn arm_timer(&mut self, conn: &mut Connection) {
        let Some(due) = conn.deadline_us(self.timeout_us) else { return };
        if conn.timer_us.is_none_or(|armed| due < armed) {
            conn.timer_us = Some(due);
            self.timers.push(Reverse((due, conn.id)));
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        [timer, self.accept_after_us].into_iter().flatten().min()
    }

    /// Gives up the connections whose time is over.
    pub(super) fn expire(&mut self, access: &mut EngineAccess<'_>) {
        let now_us = access.now.monotonic_us;
        while let Some(Reverse((due, id))) = self.timers.peek().copied()
            && due <= now_us
        {
            self.timers.pop();
            let Some(mut conn) = self.take(id) else { continue };
            if conn.timer_us == Some(due) {
                conn.timer_us = None;
                if conn.deadline_us(self.timeout_us).is_some_and(|deadline| deadline <= now_us)
                    && conn.phase != Phase::Closing
                {
                    self.stats.timed_out += 1;
                    if conn.sending {
                        conn.reset_on_close();
                    }
                    self.close(&mut conn, access);
                }
            }
            self.put_back(conn);
        }
    }

    // --- the books ---------------------------------------------------------------------------------------

    fn context<'a>(&'a mut self, access: &'a mut EngineAccess<'_>) -> Context<'a> {
        Context {
            engine: access.engine.as_deref_mut(),
            actions: access.actions,
            spares: &mut self.spares,
            budget: &mut self.budget,
            load: &mut self.load,
            identity: &self.identity,
            now: access.now,
        }
    }

    fn take(&mut self, id: ConnId) -> Option<Box<Connection>> {
        self.slots.get_mut(id.0 as u32 as usize)?.connection.take_if(|conn| conn.id == id)
    }

    fn restore(&mut self, conn: Box<Connection>) {
        if let Some(slot) = self.slots.get_mut(conn.id.0 as u32 as usize) {
            slot.connection = Some(conn);
        }
    }

    /// Puts a connection back and has it looked at when the pass ends.
    fn put_back(&mut self, conn: Box<Connection>) {
        let id = conn.id;
        self.restore(conn);
        self.list(id);
    }

    fn list(&mut self, id: ConnId) {
        if let Some(conn) = find(&mut self.slots, id)
            && !conn.listed
        {
            conn.listed = true;
            self.listed.push(id);
        }
    }

    /// Looks at every connection when the pass ends, after reading was off.
    pub(super) fn list_all(&mut self) {
        let ids: Vec<ConnId> =
            self.slots.iter().filter_map(|slot| slot.connection.as_ref().map(|conn| conn.id)).collect();
        ids.into_iter().for_each(|id| self.list(id));
    }

    /// Whether replies are still on their way.
    pub(super) fn has_unsent(&self) -> bool {
        let unsent =
            |conn: &Connection| conn.phase != Phase::Closing && (conn.sending || conn.queue.bytes() > 0);
        self.slots.iter().filter_map(|slot| slot.connection.as_deref()).any(unsent)
    }

    /// Numbers for the report.
    pub(super) fn stats(&self) -> ConnectionStats {
        let queued = |conn: &Connection| (conn.queue.bytes() + conn.sending_bytes) as u64;
        let queued_bytes = self.slots.iter().filter_map(|slot| slot.connection.as_deref()).map(queued).sum();
        ConnectionStats { queued_bytes, ..self.stats }
    }

    /// Time from a produce's arrival to its reply, microseconds.
    pub(super) fn produce_latency_us(&self) -> &Histogram<u64> {
        &self.produce_latency_us
    }
}

fn find(slots: &mut [Slot], id: ConnId) -> Option<&mut Connection> {
    slots.get_mut(id.0 as u32 as usize)?.connection.as_deref_mut().filter(|conn| conn.id == id)
}

fn give_back(ring: &mut Ring<Op>, buffer: Option<u16>) {
    if let (Some(buffer), Some(buffers)) = (buffer, ring.recv_buffers()) {
        buffers.give_back(buffer);
    }
}

/// Sends. Without waiting, and so without being woken by its end, only where nothing else waits for that end.
fn submit_send(ring: &mut Ring<Op>, conn: &mut Connection, mut op: Box<SendOp>, awaited: bool) {
    let awaited = awaited || conn.phase != Phase::Open || conn.eof || conn.queue.bytes() > 0;
    let instant = op.is_small() && !conn.congested && !awaited;
    let left = op.left();
    let entry = op.entry(conn.fd(), instant);
    conn.sending = true;
    conn.sending_bytes = left;
    conn.sending_chunk_bytes = op.chunk_bytes();
    let owner = Op::Send(conn.id, op);
    // SAFETY: the boxed operation owns the parts, the gather list and the message header that the entry names;
    // an instant one is a MSG_DONTWAIT | MSG_WAITALL send, which the kernel ends while it is issued.
    unsafe {
        match instant {
            true => ring.push_instant(entry, owner, left as i32),
            false => ring.push(entry, owner),
        };
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
