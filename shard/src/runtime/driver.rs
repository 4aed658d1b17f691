//! The shard's main task. One pass: take completions, hand events to the engine, end the pass, carry out its
//! actions, then submit and sleep with one system call until something happens or a deadline passes.
//!
//! Owner: the shard's thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use io_uring::opcode;
use io_uring::types::Fd;
use pyralog_core::{GroupId, NodeId, ShardId};
use pyralog_net::message::PartitionState;
use pyralog_replication::metadata::{Catalog, Command};

use super::chunk_supply;
use super::connections::{Connections, EngineAccess, Leaving};
use super::files::Files;
use super::node::ControlEvent;
use super::op::Op;
use super::park::{Park, Timeout};
use super::peers::{Links, PeerSocket, resolve::Resolved};
use super::receive::HandOver;
use super::recovery_disk::RealDisk;
use super::report::{PartitionsWanted, ShardReport};
use super::ring::{Completion, Ring};
use super::wake::Waker;
use crate::engine::{
    Action, Engine, EngineConfig, Event, IoOp, IoToken, Leadership, LogLevel, Now, ShardStatus, recover,
};
use crate::recovery_budget::RecoveryBudget;

/// Completions handled in one pass; then the engine seals and the actions go out.
const COMPLETIONS_PER_PASS: usize = 256;
/// Bytes received in one pass, likewise.
const RECEIVED_PER_PASS: usize = 1 << 20;
/// Pauses between attempts to recover from a failing disk.
const FIRST_RETRY_US: u64 = 1_000_000;
const LAST_RETRY_US: u64 = 30_000_000;
/// How long a shutdown waits for the engine, then for replies on their way.
const STOP_BOUND_US: u64 = 60_000_000;
const STOP_SENDS_US: u64 = 1_000_000;

/// From another thread to a shard.
#[derive(Debug)]
pub(super) enum ShardMessage {
    /// A connection that said `Hello` to this shard elsewhere.
    Connection(HandOver),
    /// A link from another node that said `Hello` to this shard elsewhere.
    Link(PeerSocket),
    /// What the name of another node gave.
    Address(NodeId, Resolved),
    /// Shard 0 published a catalogue.
    Catalog(Arc<Catalog>),
    /// To shard 0: a shard serves that version.
    CatalogApplied(ShardId, u64),
    /// Who leads groups of a shard.
    Leaders(Vec<Leadership>),
    /// To shard 0: another shard wants this in the catalogue.
    Command(Box<Command>),
    /// Tell how you are.
    Report(flume::Sender<ShardReport>),
    /// Tell the state of your partitions, of one topic or of all.
    Partitions(PartitionsWanted, flume::Sender<Vec<(GroupId, PartitionState)>>),
    /// Stop.
    Shutdown,
}

/// The way to a shard. Unbounded, as what goes through it is bounded at its source: connections by the node's
/// bound, questions by who asks, catalogues by the rate of administrative commands.
#[derive(Clone, Debug)]
pub(super) struct Mailbox {
    pub(super) sender: flume::Sender<ShardMessage>,
    pub(super) waker: Waker,
}

impl Mailbox {
    pub(super) fn send(&self, message: ShardMessage) {
        if self.sender.send(message).is_ok() {
            self.waker.wake();
        }
    }
}

/// Clock of a shard: monotonic from an arbitrary start, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(pub(super) Instant);

impl Clock {
    pub(super) fn monotonic_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }

    pub(super) fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic_us: self.monotonic_us(), wall_ms: wall.as_millis() as i64 }
    }
}

/// What the shard is doing.
#[derive(Debug)]
enum Life {
    Serving,
    /// Fenced: waits for its I/O to end, then reads its disk again.
    Recovering {
        reason: String,
        after_us: u64,
    },
    /// Told to stop.
    Stopping {
        by_us: u64,
    },
    /// The engine has stopped; replies are on their way.
    Stopped {
        by_us: u64,
    },
}

/// Everything that a shard's thread owns.
pub(super) struct Driver {
    pub(super) shard: ShardId,
    /// First, so that it is drained before anything that its operations refer to goes.
    pub(super) ring: Ring<Op>,
    pub(super) engine: Option<Engine>,
    pub(super) config: EngineConfig,
    pub(super) connections: Connections,
    /// Of a node that has others.
    pub(super) links: Option<Box<Links>>,
    pub(super) files: Files,
    pub(super) mailbox: flume::Receiver<ShardMessage>,
    pub(super) waker: Waker,
    pub(super) shards: Vec<Mailbox>,
    pub(super) control: flume::Sender<ControlEvent>,
    pub(super) clock: Clock,
    pub(super) park: Park,
    pub(super) make_disk: Box<dyn Fn() -> RealDisk>,
    /// What the node's shards may receive to bring replicas up to date; `None` = unlimited.
    pub(super) recovery_budget: Option<RecoveryBudget>,
    /// When the turn is that the engine wants of it, and of how many bytes.
    recovery_turn: Option<(u64, usize)>,
    life: Life,
    /// When the engine was last made anew after an error, and the pause before that.
    recovered_us: Option<u64>,
    pause_us: u64,
    actions: Vec<Action>,
    /// Those of the pass, until what goes to other nodes is on its way.
    journal_writes: Vec<(IoToken, IoOp)>,
    /// The newest catalogue, for an engine that is made anew.
    catalog: Option<Arc<Catalog>>,
    waking: bool,
    announced_ready: bool,
    messages: VecDeque<ShardMessage>,
    longest_pass_us: u64,
    passes: u64,
}

/// The parts that a [`Driver`] is made of.
pub(super) struct Parts {
    pub(super) shard: ShardId,
    pub(super) ring: Ring<Op>,
    pub(super) engine: Engine,
    pub(super) config: EngineConfig,
    pub(super) connections: Connections,
    pub(super) links: Option<Box<Links>>,
    pub(super) files: Files,
    pub(super) mailbox: flume::Receiver<ShardMessage>,
    pub(super) waker: Waker,
    pub(super) shards: Vec<Mailbox>,
    pub(super) control: flume::Sender<ControlEvent>,
    pub(super) clock: Clock,
    pub(super) park: Park,
    pub(super) make_disk: Box<dyn Fn() -> RealDisk>,
    pub(super) recovery_budget: Option<RecoveryBudget>,
}

impl Driver {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            shard: parts.shard,
            ring: parts.ring,
            engine: Some(parts.engine),
            config: parts.config,
            connections: parts.connections,
            links: parts.links,
            files: parts.files,
            mailbox: parts.mailbox,
            waker: parts.waker,
            shards: parts.shards,
            control: parts.control,
            clock: parts.clock,
            park: parts.park,
            make_disk: parts.make_disk,
            recovery_budget: parts.recovery_budget,
            recovery_turn: None,
            life: Life::Serving,
            recovered_us: None,
            pause_us: 0,
            actions: Vec::new(),
            journal_writes: Vec::new(),
            catalog: None,
            waking: false,
            announced_ready: false,
            messages: VecDeque::new(),
            longest_pass_us: 0,
            passes: 0,
        }
    }

    /// Serves until it is told to stop. An error is one of the ring itself. Blocks its thread: the shard sleeps in
    /// its own ring.
    pub(super) fn run(mut self) -> std::io::Result<()> {
        let now = self.clock.now();
        if let Some(engine) = &mut self.engine {
            engine.start(now, &mut self.actions);
        }
        self.supply_chunks();
        loop {
            let now = self.clock.now();
            let started_us = now.monotonic_us;
            self.park.woken(started_us, self.ring.has_ready());
            self.pass(now);
            if self.finished(now) {
                break;
            }
            self.passes += 1;
            let (wait, end_us) = self.wait();
            self.longest_pass_us = self.longest_pass_us.max(end_us.saturating_sub(started_us));
            match wait {
                None => self.ring.enter(None)?,
                Some(timeout) => self.park.wait(&mut self.ring, end_us, timeout, self.files.flushing())?,
            }
        }
        self.end();
        Ok(())
    }

    /// Has a thread make the engine's chunks ready. Without it they cost when they are first used.
    fn supply_chunks(&mut self) {
        let Some(engine) = &self.engine else { return };
        match chunk_supply::start(engine.chunks_to_come()) {
            Ok(supply) => engine.supply_chunks(supply),
            Err(error) => {
                self.log(LogLevel::Warn, format!("can't start the thread that makes memory ready: {error}"))
            }
        }
    }

    /// One pass over what has happened.
    fn pass(&mut self, now: Now) {
        self.begin_links(now);
        self.take_completions(now);
        self.files.take_helpers(&mut self.ring);
        self.files.go_on(&mut self.ring, now.monotonic_us);
        self.take_messages(now);
        self.recover_when_quiet(now);
        let Self { engine, actions, connections, files, ring, .. } = self;
        let mut access = EngineAccess { engine: engine.as_mut(), actions, now };
        connections.resume(ring, &mut access);
        connections.expire(&mut access);
        if let Some(engine) = engine {
            for (token, result) in files.take_finished() {
                connections.stages.ended(token, now.monotonic_us);
                engine.handle(now, Event::IoDone { token, result }, actions);
            }
            if let Some((_, bytes)) = self.recovery_turn.take_if(|(due, _)| *due <= now.monotonic_us) {
                engine.handle(now, Event::RecoveryTurn { bytes }, actions);
            }
            if engine.next_deadline_us().is_some_and(|due| due <= now.monotonic_us) {
                engine.handle(now, Event::Tick, actions);
            }
            engine.end_of_pass(now, actions);
        } else {
            files.take_finished().for_each(drop);
        }
        self.carry_out(now);
        self.send_away();
        self.arm(now);
        // What followers have to write has the longest way, its own the next: others are answered after that.
        self.end_links(now);
        for (token, op) in self.journal_writes.drain(..) {
            self.connections.stages.journal_began(token, now.monotonic_us);
            self.files.start(&mut self.ring, token, op, now.monotonic_us);
        }
        let Self { engine, actions, connections, ring, .. } = self;
        connections.flush(ring, &mut EngineAccess { engine: engine.as_mut(), actions, now });
        self.announce();
    }

    fn take_completions(&mut self, now: Now) {
        let mut received = 0;
        for _ in 0..COMPLETIONS_PER_PASS {
            if received >= RECEIVED_PER_PASS {
                return;
            }
            let Some(Completion { owner, result, flags }) = self.ring.next_completion() else { return };
            let Self { engine, actions, connections, links, files, ring, .. } = self;
            let mut access = EngineAccess { engine: engine.as_mut(), actions, now };
            match owner {
                Op::File(io) => files.completed(ring, io, result, now.monotonic_us),
                Op::Receive(id) => {
                    received += result.max(0) as usize;
                    connections.receive_done(ring, id, result, flags, &mut access);
                }
                Op::ReceiveRest(id, bytes) => {
                    received += result.max(0) as usize;
                    connections.receive_rest_done(id, bytes, result, flags, &mut access);
                }
                Op::Send(id, op) => connections.send_done(ring, id, op, result, &mut access),
                Op::Accept => connections.accept(now.monotonic_us),
                Op::Peer(op) => {
                    if let Some(links) = links {
                        let mut to = |event: Event<'_>| access.event(event);
                        received += links.completed(op, result, flags, now.monotonic_us, &mut to);
                    }
                }
                Op::Wake(_) => {
                    self.waking = false;
                    self.waker.clear();
                    self.messages.extend(self.mailbox.try_iter());
                }
            }
        }
    }

    fn take_messages(&mut self, now: Now) {
        while let Some(message) = self.messages.pop_front() {
            match message {
                ShardMessage::Connection(hand_over) => {
                    let Self { engine, actions, connections, .. } = self;
                    connections
                        .take_over(hand_over, &mut EngineAccess { engine: engine.as_mut(), actions, now });
                }
                ShardMessage::Link(socket) => {
                    if let Some(links) = &mut self.links {
                        links.take_over(socket, now.monotonic_us);
                    }
                }
                ShardMessage::Address(node, answer) => {
                    if let Some(links) = &mut self.links {
                        links.resolved(node, &answer);
                    }
                }
                ShardMessage::Catalog(catalog) => {
                    self.catalog = Some(Arc::clone(&catalog));
                    if let Some(links) = &mut self.links {
                        links.set_feature_level(catalog.feature_level);
                    }
                    self.event(now, Event::CatalogPublished { catalog });
                }
                ShardMessage::CatalogApplied(shard, version) => {
                    self.event(now, Event::CatalogApplied { shard, version });
                }
                ShardMessage::Command(command) => self.event(now, Event::ControllerTold { command }),
                ShardMessage::Leaders(leaders) => self.event(now, Event::LeadersTold { leaders }),
                ShardMessage::Report(to) => {
                    let _ = to.try_send(self.report());
                }
                ShardMessage::Partitions(wanted, to) => {
                    let states = self.engine.as_ref().map(|engine| wanted.of(engine));
                    let _ = to.try_send(states.unwrap_or_default());
                }
                ShardMessage::Shutdown => self.stop(now),
            }
        }
    }

    fn event(&mut self, now: Now, event: Event<'_>) {
        if let Some(engine) = &mut self.engine {
            engine.handle(now, event, &mut self.actions);
        }
    }

    /// Carries out what the engine said, in order. What an action causes at once may add more.
    fn carry_out(&mut self, now: Now) {
        // The time of a reply, not of the pass's beginning, is what a latency ends with.
        let mut reply_us = None;
        while !self.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.actions);
            for action in actions.drain(..) {
                match action {
                    Action::Io { token, op: op @ IoOp::JournalWrite { .. } } => {
                        self.journal_writes.push((token, op));
                    }
                    Action::Io { token, op } => self.files.start(&mut self.ring, token, op, now.monotonic_us),
                    Action::Reply { conn, correlation_id, body } => {
                        let now_us = *reply_us.get_or_insert_with(|| self.clock.monotonic_us());
                        self.connections.reply(conn, correlation_id, body, now_us);
                    }
                    Action::PublishCatalog { catalog } => {
                        for shard in &self.shards {
                            shard.send(ShardMessage::Catalog(Arc::clone(&catalog)));
                        }
                        let _ = self.control.send(ControlEvent::Catalog(catalog));
                    }
                    Action::CatalogApplied { version } => {
                        self.connections.identity.catalog_version = version;
                        if let Some(first) = self.shards.first() {
                            first.send(ShardMessage::CatalogApplied(self.shard, version));
                        }
                    }
                    Action::Recover { reason } => self.fence(now, reason),
                    Action::GiveUp { reason } => {
                        let failed = ControlEvent::ShardFailed { shard: self.shard, error: reason };
                        let _ = self.control.send(failed);
                    }
                    Action::ShedSlowReaders { bytes } => {
                        let Self { engine, actions, connections, .. } = self;
                        let mut access = EngineAccess { engine: engine.as_mut(), actions, now };
                        let freed = connections.shed(bytes, &mut access);
                        if let Some(links) = &mut self.links
                            && freed < bytes
                        {
                            links.shed(bytes - freed);
                        }
                    }
                    // Without links, on a node that is alone, there is nobody to speak to.
                    Action::SendPeer { to, control, payload } => {
                        if let Some(links) = &mut self.links {
                            links.send(to, &control, payload);
                        }
                    }
                    Action::WantPeers { peers, addresses } => {
                        if let Some(links) = &mut self.links {
                            links.find_at(addresses);
                            links.want(&peers);
                        }
                    }
                    Action::TellController { command } => {
                        if let Some(first) = self.shards.first() {
                            first.send(ShardMessage::Command(command));
                        }
                    }
                    Action::TellLeaders { leaders } => {
                        for shard in &self.shards {
                            shard.send(ShardMessage::Leaders(leaders.clone()));
                        }
                    }
                    Action::WantRecovery { bytes } => {
                        let budget = self.recovery_budget.as_ref();
                        let due_us = budget.map_or(0, |budget| budget.turn_us(now.monotonic_us, bytes));
                        self.recovery_turn = Some((due_us, bytes));
                    }
                    Action::Log { level, text } => self.log(level, text),
                    Action::Stopped => {
                        if let Life::Stopping { .. } = self.life {
                            self.life = Life::Stopped { by_us: now.monotonic_us + STOP_SENDS_US };
                        }
                    }
                }
            }
            if self.actions.is_empty() {
                self.actions = actions; // keeps its memory
                return;
            }
        }
    }

    /// What happened to links since the last pass.
    fn begin_links(&mut self, now: Now) {
        let Self { engine, actions, links, .. } = self;
        if let Some(links) = links {
            let mut access = EngineAccess { engine: engine.as_mut(), actions, now };
            links.begin_pass(now.monotonic_us, &mut |event| access.event(event));
        }
    }

    /// What links have to send, to log and to hand over.
    fn end_links(&mut self, now: Now) {
        let Some(links) = &mut self.links else { return };
        links.flush(&mut self.ring, now.monotonic_us);
        for (shard, socket) in links.take_leaving() {
            if let Some(mailbox) = self.shards.get(usize::from(shard.0)) {
                mailbox.send(ShardMessage::Link(socket));
            }
        }
        for (level, text) in links.take_logs() {
            let _ = self.control.send(ControlEvent::Log { shard: self.shard, level, text });
        }
    }

    fn log(&self, level: LogLevel, text: String) {
        let _ = self.control.send(ControlEvent::Log { shard: self.shard, level, text });
    }

    /// Sockets that belong elsewhere go there.
    fn send_away(&mut self) {
        for leaving in self.connections.take_leaving() {
            match leaving {
                Leaving::Http(HandOver { socket, prefix }) => {
                    let stream = std::net::TcpStream::from(socket);
                    let _ = self.control.send(ControlEvent::HttpSocket { stream, prefix });
                }
                Leaving::Shard(shard, hand_over) => {
                    if let Some(mailbox) = self.shards.get(usize::from(shard)) {
                        mailbox.send(ShardMessage::Connection(hand_over));
                    }
                }
            }
        }
    }

    fn arm(&mut self, now: Now) {
        if !self.waking {
            let mut counter = Box::new([0u8; 8]);
            let entry = opcode::Read::new(Fd(self.waker.fd()), counter.as_mut_ptr(), 8).build();
            // SAFETY: the operation owns the box.
            unsafe { self.ring.push(entry, Op::Wake(counter)) };
            self.waking = true;
        }
        self.connections.arm_accept(&mut self.ring, now.monotonic_us);
    }

    fn announce(&mut self) {
        if !self.announced_ready && self.engine.as_ref().is_some_and(|engine| engine.status().ready) {
            self.announced_ready = true;
            // Should it have to recover within this run, it must not begin on an empty disk.
            self.config.has_begun = true;
            let _ = self.control.send(ControlEvent::ShardReady { shard: self.shard });
        }
    }

    /// How long to sleep (`None`: not at all), and the time.
    fn wait(&self) -> (Option<Timeout>, u64) {
        let now_us = self.clock.monotonic_us();
        let busy = self.ring.has_ready()
            || !self.messages.is_empty()
            || !self.actions.is_empty()
            || self.files.has_finished()
            || self.connections.can_resume(self.engine.as_ref())
            || self.links.as_ref().is_some_and(|links| links.is_busy());
        if busy {
            return (None, now_us);
        }
        let life = match &self.life {
            Life::Serving => None,
            // While its I/O ends, completions wake it.
            Life::Recovering { after_us, .. } if *after_us <= now_us && self.files.in_flight() > 0 => None,
            Life::Recovering { after_us: due, .. } | Life::Stopping { by_us: due } => Some(*due),
            Life::Stopped { by_us } => Some(*by_us),
        };
        let engine = self.engine.as_ref().and_then(Engine::next_deadline_us);
        let links = self.links.as_ref().and_then(|links| links.next_deadline_us());
        let turn = self.recovery_turn.map(|(due, _)| due);
        let late =
            [life, engine, self.connections.next_deadline_us(), links, turn].into_iter().flatten().min();
        let until = |due: u64| Duration::from_micros(due.saturating_sub(now_us));
        let promised = self.engine.as_ref().and_then(Engine::promised_deadline_us);
        // Reads of the disk go on by the millisecond.
        let exact = [promised, self.files.next_deadline_us()].into_iter().flatten().min();
        let timeout = Timeout { exact: exact.map(until), late: late.map(until) };
        ((!timeout.has_come()).then_some(timeout), now_us)
    }

    // --- fenced ------------------------------------------------------------------------------------------

    /// The engine trusts its disk no longer. Its memory goes as soon as its operations have ended.
    fn fence(&mut self, now: Now, reason: String) {
        if matches!(self.life, Life::Recovering { .. } | Life::Stopped { .. }) {
            return;
        }
        let stopping = matches!(self.life, Life::Stopping { .. });
        self.log(
            LogLevel::Error,
            format!("fenced; clients are disconnected and the disk is read again: {reason}"),
        );
        let Self { engine, actions, connections, .. } = self;
        connections.close_all(&mut EngineAccess { engine: engine.as_mut(), actions, now });
        if let Some(links) = &mut self.links {
            links.pause();
        }
        if stopping {
            // Nothing is lost by stopping here: what was acknowledged is in the journal.
            self.life = Life::Stopped { by_us: now.monotonic_us + STOP_SENDS_US };
            return;
        }
        // A disk that fails again right after it could be read: don't read it over and over.
        let again = self.recovered_us.is_some_and(|at| now.monotonic_us.saturating_sub(at) < LAST_RETRY_US);
        self.pause_us = if again { (self.pause_us * 2).clamp(FIRST_RETRY_US, LAST_RETRY_US) } else { 0 };
        self.life = Life::Recovering { reason, after_us: now.monotonic_us + self.pause_us };
    }

    fn recover_when_quiet(&mut self, now: Now) {
        let Life::Recovering { reason, after_us } = &self.life else { return };
        if now.monotonic_us < *after_us {
            return;
        }
        // No new work for a disk that has to become quiet.
        self.connections.reading = false;
        if self.files.in_flight() > 0 {
            return;
        }
        let reason = reason.clone();
        // Who connected during the pause may wait for a reply that only the old engine knows of.
        let Self { engine, actions, connections, .. } = self;
        if engine.is_some() {
            connections.close_all(&mut EngineAccess { engine: engine.as_mut(), actions, now });
        }
        // The old engine, its cache above all, goes before the new one fills its own.
        self.engine = None;
        self.recovery_turn = None;
        self.actions.clear();
        self.files.take_finished().for_each(drop);
        self.files.close_all();
        let mut disk = (self.make_disk)();
        match recover(self.config.clone(), &mut disk, now) {
            Ok(mut engine) => {
                let now = self.clock.now();
                if let Some(links) = &mut self.links {
                    links.begin_life(super::peers::new_session());
                }
                engine.start(now, &mut self.actions);
                if let Some(catalog) = self.catalog.clone() {
                    engine.handle(
                        now,
                        Event::CatalogPublished { catalog: Arc::clone(&catalog) },
                        &mut self.actions,
                    );
                    // The other shards tell again who leads their groups.
                    for (shard, other) in self.shards.iter().enumerate() {
                        if shard != usize::from(self.shard.0) {
                            other.send(ShardMessage::Catalog(Arc::clone(&catalog)));
                        }
                    }
                }
                self.engine = Some(engine);
                self.supply_chunks();
                self.life = Life::Serving;
                self.recovered_us = Some(now.monotonic_us);
                self.log(LogLevel::Warn, format!("recovered after: {reason}"));
            }
            Err(error) => {
                self.pause_us = (self.pause_us * 2).clamp(FIRST_RETRY_US, LAST_RETRY_US);
                let seconds = self.pause_us / 1_000_000;
                let text = format!("can't read the disk again, next attempt in {seconds} s: {error}");
                self.log(LogLevel::Error, text);
                self.life = Life::Recovering { reason, after_us: self.clock.monotonic_us() + self.pause_us };
            }
        }
        self.connections.reading = true;
        self.connections.list_all();
    }

    // --- the end -----------------------------------------------------------------------------------------

    fn stop(&mut self, now: Now) {
        if matches!(self.life, Life::Stopping { .. } | Life::Stopped { .. }) {
            return;
        }
        self.connections.stop_accepting(&mut self.ring);
        if let Some(links) = &mut self.links {
            links.stop_accepting(&mut self.ring);
        }
        self.life = Life::Stopping { by_us: now.monotonic_us + STOP_BOUND_US };
        match &mut self.engine {
            Some(engine) => engine.handle(now, Event::Shutdown, &mut self.actions),
            None => self.life = Life::Stopped { by_us: now.monotonic_us },
        }
    }

    fn finished(&mut self, now: Now) -> bool {
        match self.life {
            Life::Stopped { by_us } => now.monotonic_us >= by_us || !self.has_unsent(),
            Life::Stopping { by_us } if now.monotonic_us >= by_us => {
                let text = "the shutdown took too long and was cut short; the next start replays the journal";
                self.log(LogLevel::Error, text.into());
                true
            }
            _ => false,
        }
    }

    fn has_unsent(&self) -> bool {
        self.connections.has_unsent() || self.links.as_ref().is_some_and(|links| links.has_unsent())
    }

    fn end(&mut self) {
        let now = self.clock.now();
        let Self { engine, actions, connections, ring, .. } = self;
        let mut access = EngineAccess { engine: engine.as_mut(), actions, now };
        connections.close_all(&mut access);
        connections.flush(ring, &mut access);
        if let Some(links) = &mut self.links {
            links.pause();
        }
        self.actions.clear();
        let _ = self.ring.enter(None);
    }

    fn report(&self) -> ShardReport {
        let stats = self.connections.stats();
        let fenced = match &self.life {
            Life::Recovering { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        let without_engine = || ShardStatus { fenced, ..ShardStatus::default() };
        ShardReport {
            shard: self.shard,
            status: self.engine.as_ref().map(Engine::status).unwrap_or_else(without_engine),
            connections: stats.open,
            queued_reply_bytes: stats.queued_bytes,
            accepted: stats.accepted,
            refused: stats.refused,
            timed_out: stats.timed_out,
            shed: stats.shed,
            journal_write_us: self.files.journal_latency_us().clone(),
            produce_us: self.connections.produce_latency_us().clone(),
            stages: self.connections.stages.clone(),
            longest_pass_us: self.longest_pass_us,
            passes: self.passes,
            ring: self.ring.stats(),
            open_files: self.files.open_files(),
        }
    }
}
