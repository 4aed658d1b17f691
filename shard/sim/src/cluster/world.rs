//! The simulated cluster: virtual time, the event queue, and a driver for each shard's engine that keeps the contract of
//! `engine::api` the way the real driver does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use pyralog_core::{FeatureLevels, GroupId, ShardId};
use pyralog_net::message::PartitionState;
use pyralog_replication::metadata::{Catalog, Command};
use pyralog_shard::engine::{
    Action, ConnId, Engine, EngineConfig, Event, IoToken, Leadership, LogLevel, Now, PeerId, ReplyBody,
};
use pyralog_shard::recovery_budget::RecoveryBudget;

use super::audit::Auditor;
use super::books::Books;
use super::clients::{Client, Sent};
use super::config::ClusterConfig;
use super::faults::ClusterFaultCounts;
use super::network::{Network, Way};
use super::trouble::Trouble;
use super::upgrades::LevelsSeen;
use crate::disk::{SimDisk, describe};
use crate::faults::{FaultCounts, FaultKind};
use crate::model::Model;
use crate::request::Reply;
use crate::rng::Rng;

/// Most shards of a node: so many have a place, whether they run or not.
pub(crate) const SEATS: usize = 3;

/// A shard of a node, both counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat {
    pub node: usize,
    pub shard: usize,
}

impl Seat {
    /// As the engines name it.
    pub(crate) fn peer(self) -> PeerId {
        ClusterConfig::peer(self.node, self.shard)
    }

    /// The seat that the engines name so.
    pub(crate) fn of(peer: PeerId) -> Self {
        Self { node: (peer.node.0 as usize).wrapping_sub(1), shard: usize::from(peer.shard.0) }
    }
}

impl std::fmt::Display for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.shard {
            0 => write!(f, "n{}", self.node + 1),
            shard => write!(f, "n{}.{shard}", self.node + 1),
        }
    }
}

/// Something for a shard's next pass.
#[derive(Debug)]
pub(crate) enum Input {
    Request(ConnId, u64),
    Closed(ConnId),
    Io(u64),
    Catalog(Arc<Catalog>),
    Applied(ShardId, u64),
    Leaders(Vec<Leadership>),
    Command(Box<Command>),
    Up(PeerId, u64),
    Down(PeerId),
    Dropped(PeerId),
    Frame(PeerId, Vec<u8>, Vec<u8>),
    RecoveryTurn(usize),
    Tick,
    Shutdown,
}

/// What can happen next.
#[derive(Debug)]
pub(crate) enum Happening {
    Input {
        seat: Seat,
        life: u64,
        input: Input,
    },
    Pass {
        seat: Seat,
        life: u64,
    },
    Reply {
        conn: ConnId,
        correlation_id: u64,
        reply: Reply,
    },
    ClientStep(usize),
    /// A link may be made between two seats.
    Dial(Way),
    /// One end of a link comes up or goes down.
    EndUp {
        way: Way,
        number: u64,
    },
    EndDown {
        way: Way,
        number: u64,
    },
    /// A frame arrives.
    Frame {
        way: Way,
        number: u64,
        control: Vec<u8>,
        payload: Vec<u8>,
    },
    Trouble(Trouble),
    Start {
        node: usize,
        attempt: u32,
    },
    Recover {
        seat: Seat,
        life: u64,
        attempt: u32,
    },
    /// A stop in good order has had its time.
    StopOver {
        node: usize,
        life: u64,
    },
}

/// One shard: its engine, its disk, and what the driver keeps.
#[derive(Debug)]
pub(crate) struct Shard {
    pub config: EngineConfig,
    pub engine: Option<Engine>,
    pub disk: SimDisk,
    /// Counts engines: what was meant for an earlier one is dropped.
    pub life: u64,
    inbox: Vec<Input>,
    requests: VecDeque<(ConnId, u64)>,
    pass_scheduled: bool,
    tick_at: Option<u64>,
    tokens: BTreeMap<u64, IoToken>,
    /// The engine asked to be recovered.
    pub fencing: bool,
    pub stopped: bool,
    /// The feature levels that the engine which runs, or ran last, supports.
    pub levels: FeatureLevels,
    /// Links that the engine wants.
    pub wanted: BTreeSet<PeerId>,
    /// Peers about which a notice of dropped frames is on its way.
    pub told_dropped: BTreeSet<PeerId>,
}

/// What a node is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// Its process does not run.
    Down,
    /// It runs.
    Up,
    /// It runs and was told to stop.
    Stopping,
    /// It is gone for good: its disk is.
    Out,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub shards: Vec<Shard>,
    /// So many of them run when it does.
    pub count: usize,
    pub state: NodeState,
    /// Counts processes.
    pub process: u64,
    pub wall_offset_ms: i64,
    pub paused_until_us: u64,
    /// Its disks lie.
    pub lies: bool,
    /// It once held more: its disk was exchanged for an empty one.
    pub emptied: bool,
    /// It is down because its disk has lied, until it is started again.
    pub kept_down: bool,
    /// The catalogue that its shard 0 published last.
    pub catalog: Option<Arc<Catalog>>,
    /// What its shards may receive to bring replicas up to date.
    recovery_budget: Option<RecoveryBudget>,
}

/// A connection of a client.
#[derive(Debug)]
pub(crate) struct Conn {
    pub seat: Seat,
    pub client: usize,
    arrival_us: u64,
    reply_us: u64,
}

/// What the engines did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Group commits.
    pub commits: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Fetches that read segments.
    pub cold_reads: u64,
    /// Journal files begun again.
    pub recycled: u64,
    /// Produces answered as duplicates.
    pub duplicates: u64,
    /// Turns that shards wanted of the rate of recovery.
    pub recovery_turns: u64,
}

/// The simulated cluster and its clients.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: ClusterConfig,
    pub(crate) rng: Rng,
    /// For when nodes come with other numbers of shards: what else is drawn stays as it was.
    pub(crate) reshard_rng: Rng,
    /// Virtual time, microseconds.
    pub(crate) now_us: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    queued: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
    next_correlation: u64,
    pub(crate) sent: BTreeMap<(ConnId, u64), Sent>,
    pub(crate) clients: Vec<Client>,
    pub(crate) model: Model,
    pub(crate) books: Books,
    pub(crate) auditor: Auditor,
    /// The newest catalogue that any node published.
    pub(crate) catalog: Option<Arc<Catalog>>,
    /// Clients make no new work and nothing new goes wrong.
    pub(crate) closing: bool,
    pub(crate) produced: u64,
    pub(crate) produced_bytes: u64,
    pub(crate) coverage: Coverage,
    /// Happenings so far.
    pub events: u64,
    /// Faults of network and nodes.
    pub counts: ClusterFaultCounts,
    /// Faults of the kinds that a single node has, too, that are not its disk's.
    pub node_counts: FaultCounts,
    /// Disk faults of disks that are gone.
    pub old_disks: FaultCounts,
    /// What was seen of the cluster's feature level.
    pub(crate) levels_seen: LevelsSeen,
    /// Moves of partitions that have ended.
    pub moved: u64,
    /// Damaged ranges of segments that were repaired since the nodes were started last.
    pub repaired: u64,
    /// Replicas that take no part at the end.
    pub aside: u64,
    /// What went wrong first, and at which happening.
    pub violation: Option<(u64, String)>,
    trace: Option<Vec<String>>,
}

const WALL_START_MS: i64 = 1_750_000_000_000;

impl Shard {
    fn new(config: EngineConfig, disk: SimDisk) -> Self {
        Self {
            levels: config.feature_levels,
            config,
            engine: None,
            disk,
            life: 0,
            inbox: Vec::new(),
            requests: VecDeque::new(),
            pass_scheduled: false,
            tick_at: None,
            tokens: BTreeMap::new(),
            fencing: false,
            stopped: false,
            wanted: BTreeSet::new(),
            told_dropped: BTreeSet::new(),
        }
    }

    /// Forgets everything that an engine had; the next one has another life.
    pub(crate) fn put_down(&mut self) {
        self.engine = None;
        self.life += 1;
        self.inbox.clear();
        self.requests.clear();
        self.pass_scheduled = false;
        self.tick_at = None;
        self.tokens.clear();
        self.fencing = false;
        self.stopped = false;
        self.wanted.clear();
        self.told_dropped.clear();
    }

    /// What the engine says of a group right now.
    pub(crate) fn state_of(&self, group: GroupId) -> Option<PartitionState> {
        self.engine.as_ref()?.partition(group)
    }
}

impl World {
    /// The cluster of a seed, not yet started.
    pub(crate) fn new(config: ClusterConfig, mut rng: Rng, trace: bool) -> Self {
        let nodes = (0..config.nodes)
            .map(|node| {
                let lies = config.disks.liars.contains(&node);
                let plan = if lies { &config.disks.lying } else { &config.disks.honest };
                let shards = (0..SEATS).map(|shard| {
                    let seat = Seat { node, shard };
                    // What else is drawn is the same for those that run from the start.
                    let rng = if shard < config.shards { rng.fork() } else { Rng::new(shard as u64) };
                    Shard::new(engine_config(&config, seat), SimDisk::new(rng, plan.clone()))
                });
                Node {
                    shards: shards.collect(),
                    count: config.shards,
                    state: NodeState::Down,
                    process: 0,
                    wall_offset_ms: WALL_START_MS,
                    paused_until_us: 0,
                    lies,
                    emptied: false,
                    kept_down: false,
                    catalog: None,
                    recovery_budget: config.engine.recovery_bytes_per_s.map(RecoveryBudget::new),
                }
            })
            .collect();
        Self {
            reshard_rng: Rng::new(config.engine.journal_id),
            config,
            rng,
            now_us: 1_000,
            queue: BTreeMap::new(),
            queued: 0,
            nodes,
            network: Network::default(),
            conns: BTreeMap::new(),
            next_conn: 1,
            next_correlation: 1,
            sent: BTreeMap::new(),
            clients: Vec::new(),
            model: Model::default(),
            books: Books::default(),
            auditor: Auditor::default(),
            catalog: None,
            closing: false,
            produced: 0,
            produced_bytes: 0,
            coverage: Coverage::default(),
            events: 0,
            counts: ClusterFaultCounts::default(),
            node_counts: FaultCounts::default(),
            old_disks: FaultCounts::default(),
            levels_seen: LevelsSeen::default(),
            moved: 0,
            repaired: 0,
            aside: 0,
            violation: None,
            trace: trace.then(Vec::new),
        }
    }

    /// Every shard of every node.
    pub(crate) fn seats(&self) -> impl Iterator<Item = Seat> + use<> {
        let counts: Vec<usize> = self.nodes.iter().map(|node| node.count).collect();
        let seats = |(node, count)| (0..count).map(move |shard| Seat { node, shard });
        counts.into_iter().enumerate().flat_map(seats)
    }

    pub(crate) fn shard(&self, seat: Seat) -> &Shard {
        &self.nodes[seat.node].shards[seat.shard]
    }

    pub(crate) fn shard_mut(&mut self, seat: Seat) -> &mut Shard {
        &mut self.nodes[seat.node].shards[seat.shard]
    }

    /// The time as the engines of a node are told it.
    pub(crate) fn now(&self, node: usize) -> Now {
        let wall_ms = self.nodes[node].wall_offset_ms + (self.now_us / 1000) as i64;
        Now { monotonic_us: self.now_us, wall_ms }
    }

    /// Adds a line to the trace.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12} {}", self.now_us, line()));
        }
    }

    /// The trace so far.
    pub(crate) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    /// Records that something is wrong. The first one counts.
    pub(crate) fn fail(&mut self, what: String) {
        self.note(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert((self.events, what));
    }

    pub(crate) fn check(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.fail(what);
        }
    }

    /// Whether the life is over.
    pub(crate) fn over(&self) -> bool {
        self.violation.is_some()
    }

    pub(crate) fn schedule(&mut self, delay_us: u64, what: Happening) {
        self.queued += 1;
        self.queue.insert((self.now_us + delay_us, self.queued), what);
    }

    /// Lets the next thing happen. False when nothing is left to happen.
    pub(crate) fn step(&mut self) -> bool {
        let Some(((time, _), happening)) = self.queue.pop_first() else { return false };
        self.now_us = self.now_us.max(time);
        self.events += 1;
        match happening {
            Happening::Input { seat, life, input } => {
                if self.shard(seat).life == life {
                    self.input(seat, input);
                }
            }
            Happening::Pass { seat, life } => self.pass(seat, life),
            Happening::Reply { conn, correlation_id, reply } => self.deliver(conn, correlation_id, reply),
            Happening::ClientStep(client) => self.client_step(client),
            Happening::Dial(way) => self.dial(way),
            Happening::EndUp { way, number } => self.end_up(way, number),
            Happening::EndDown { way, number } => self.end_down(way, number),
            Happening::Frame { way, number, control, payload } => self.frame(way, number, control, payload),
            Happening::Trouble(trouble) => self.trouble(trouble),
            Happening::Start { node, attempt } => self.start_node(node, attempt),
            Happening::Recover { seat, life, attempt } => self.recover_shard(seat, life, attempt),
            Happening::StopOver { node, life } => self.stop_over(node, life),
        }
        true
    }

    /// Lets time pass.
    pub(crate) fn pause(&mut self, us: u64) {
        let until = self.now_us + us;
        while !self.over() && self.now_us < until {
            match self.queue.first_key_value() {
                Some(((time, _), _)) if *time <= until => _ = self.step(),
                _ => self.now_us = until,
            }
        }
    }

    pub(crate) fn disk_notes(&mut self, seat: Seat) {
        for text in std::mem::take(&mut self.shard_mut(seat).disk.notes) {
            self.note(|| format!("{seat} {text}"));
        }
        if let Some(what) = self.shard_mut(seat).disk.broken_promise.take() {
            self.fail(format!("{seat}: {what}"));
        }
    }

    // ---- the driver ----

    /// Gives a shard something for its next pass.
    pub(crate) fn input(&mut self, seat: Seat, input: Input) {
        let at = self.now_us;
        let delay = self.rng.below(40).max(self.nodes[seat.node].paused_until_us.saturating_sub(at));
        let driver = self.shard_mut(seat);
        if driver.engine.is_none() {
            return;
        }
        if matches!(input, Input::Tick) {
            if driver.tick_at.is_none_or(|due| due > at) {
                return;
            }
            driver.tick_at = None;
        }
        driver.inbox.push(input);
        if !std::mem::replace(&mut driver.pass_scheduled, true) {
            let life = driver.life;
            self.schedule(delay, Happening::Pass { seat, life });
        }
    }

    /// The same after a while, to this engine or to none.
    pub(crate) fn input_later(&mut self, delay_us: u64, seat: Seat, input: Input) {
        let life = self.shard(seat).life;
        self.schedule(delay_us, Happening::Input { seat, life, input });
    }

    /// One pass of a shard's loop: all events that are there, then the end of the pass.
    fn pass(&mut self, seat: Seat, life: u64) {
        if self.shard(seat).life != life || self.shard(seat).engine.is_none() {
            return;
        }
        let paused_us = self.nodes[seat.node].paused_until_us.saturating_sub(self.now_us);
        if paused_us > 0 {
            return self.schedule(paused_us, Happening::Pass { seat, life });
        }
        let now = self.now(seat.node);
        let driver = self.shard_mut(seat);
        driver.pass_scheduled = false;
        for input in std::mem::take(&mut driver.inbox) {
            self.take_in(seat, now, input);
        }
        self.requests(seat, now);
        self.drive(seat, |engine, actions| engine.end_of_pass(now, actions));
        let due = self.shard(seat).engine.as_ref().and_then(Engine::next_deadline_us);
        self.disk_notes(seat);
        self.arm(seat, due);
        self.watch(seat);
    }

    fn take_in(&mut self, seat: Seat, now: Now, input: Input) {
        let driver = self.shard_mut(seat);
        let event = match input {
            Input::Request(conn, correlation_id) => {
                driver.requests.push_back((conn, correlation_id));
                return;
            }
            Input::Closed(conn) => {
                driver.requests.retain(|(of, _)| *of != conn);
                self.sent.retain(|(of, _), _| *of != conn);
                Event::ConnectionClosed { conn }
            }
            Input::Io(op) => {
                let Some(token) = driver.tokens.remove(&op) else { return };
                let result = driver.disk.complete(op);
                Event::IoDone { token, result }
            }
            Input::Catalog(catalog) => Event::CatalogPublished { catalog },
            Input::Applied(shard, version) => Event::CatalogApplied { shard, version },
            Input::Command(command) => Event::ControllerTold { command },
            Input::Leaders(leaders) => Event::LeadersTold { leaders },
            Input::Up(peer, session) => Event::PeerUp { peer, session },
            Input::Down(peer) => Event::PeerDown { peer },
            Input::Dropped(peer) => {
                driver.told_dropped.remove(&peer);
                Event::PeerDropped { peer }
            }
            Input::Frame(from, control, payload) => {
                return self.drive(seat, |engine, actions| {
                    let event = Event::PeerFrame { from, control: &control, payload: &payload };
                    engine.handle(now, event, actions);
                });
            }
            Input::RecoveryTurn(bytes) => Event::RecoveryTurn { bytes },
            Input::Tick => Event::Tick,
            Input::Shutdown => Event::Shutdown,
        };
        self.drive(seat, |engine, actions| engine.handle(now, event, actions));
    }

    /// Hands the engine what was read from connections, as far as it takes it.
    fn requests(&mut self, seat: Seat, now: Now) {
        let mut blocked = BTreeSet::new();
        for (conn, correlation_id) in std::mem::take(&mut self.shard_mut(seat).requests) {
            let Some(sent) = self.sent.get(&(conn, correlation_id)) else { continue };
            let owned = sent.request.clone();
            let accepts = self.shard(seat).engine.as_ref().is_some_and(Engine::accepts_produce);
            if owned.is_produce() && !accepts || blocked.contains(&conn) {
                blocked.insert(conn);
                self.shard_mut(seat).requests.push_back((conn, correlation_id));
                continue;
            }
            let request = owned.borrow();
            self.drive(seat, |engine, actions| {
                engine.handle(now, Event::Request { conn, correlation_id, request }, actions);
            });
        }
    }

    /// One call of the engine; what it wants done is done at once, so that checks see the engine as it was.
    pub(crate) fn drive(&mut self, seat: Seat, call: impl FnOnce(&mut Engine, &mut Vec<Action>)) {
        let Some(engine) = &mut self.shard_mut(seat).engine else { return };
        let mut actions = Vec::new();
        call(engine, &mut actions);
        for action in actions {
            self.action(seat, action);
        }
    }

    pub(crate) fn arm(&mut self, seat: Seat, due: Option<u64>) {
        // The newest answer counts, as with the real driver: a deadline that moves away is not kept.
        let due = due.map(|due| due.max(self.now_us + 1));
        if std::mem::replace(&mut self.shard_mut(seat).tick_at, due) != due
            && let Some(due) = due
        {
            self.input_later(due - self.now_us, seat, Input::Tick);
        }
    }

    /// What has to hold after every pass.
    pub(crate) fn watch(&mut self, seat: Seat) {
        let Some(engine) = &self.shard(seat).engine else { return };
        let status = engine.status();
        if status.cache_live_bytes > status.cache_budget_bytes {
            let text = format!("cache memory {} over {}", status.cache_live_bytes, status.cache_budget_bytes);
            self.fail(format!("{seat}: {text}"));
        }
        self.watch_groups(seat);
        let driver = self.shard_mut(seat);
        // Awaiting every running operation ends when none runs.
        if driver.fencing && driver.disk.running() == 0 {
            driver.fencing = false;
            let life = driver.life;
            self.schedule(1, Happening::Recover { seat, life, attempt: 0 });
        }
        self.look_at_stop(seat.node);
    }

    fn action(&mut self, seat: Seat, action: Action) {
        match action {
            Action::Io { token, op } => {
                self.note(|| format!("{seat} io {} {}", token.0, describe(&op)));
                let driver = self.shard_mut(seat);
                if driver.tokens.values().any(|used| *used == token) {
                    return self.fail(format!("{seat} uses {token:?} twice at once"));
                }
                let (op, delay) = driver.disk.submit(op);
                driver.tokens.insert(op, token);
                self.input_later(delay, seat, Input::Io(op));
            }
            Action::Reply { conn, correlation_id, body } => self.reply(seat, conn, correlation_id, body),
            Action::PublishCatalog { catalog } => self.publish(seat, catalog),
            Action::CatalogApplied { version } => {
                let delay = self.rng.range(1, 80);
                let applied = Input::Applied(ShardId(seat.shard as u16), version);
                self.input_later(delay, Seat { shard: 0, ..seat }, applied);
            }
            Action::GiveUp { reason } => self.fail(format!("{seat} gives up: {reason}")),
            Action::Recover { reason } => self.fenced(seat, &reason),
            Action::ShedSlowReaders { bytes } => {
                self.note(|| format!("{seat} shed {bytes} bytes of slow readers"));
                self.shed(seat);
            }
            Action::SendPeer { to, control, payload } => {
                self.watch_frame(seat, to, &control);
                let bytes = payload.iter().map(|slice| slice.len()).sum();
                let mut batches = Vec::with_capacity(bytes);
                payload.iter().for_each(|slice| batches.extend_from_slice(slice.bytes()));
                self.send_frame(seat, to, control, batches);
            }
            Action::WantPeers { peers, .. } => self.want(seat, peers),
            Action::WantRecovery { bytes } => self.want_recovery(seat, bytes),
            Action::TellController { command } => {
                let delay = self.rng.range(1, 80);
                self.input_later(delay, Seat { shard: 0, ..seat }, Input::Command(command));
            }
            Action::TellLeaders { leaders } => {
                for shard in 0..self.nodes[seat.node].count {
                    let delay = self.rng.range(1, 80);
                    self.input_later(delay, Seat { shard, ..seat }, Input::Leaders(leaders.clone()));
                }
            }
            Action::Log { level, text } => self.logged(seat, level, text),
            Action::Stopped => {
                self.note(|| format!("{seat} stopped"));
                self.shard_mut(seat).stopped = true;
            }
        }
    }

    /// The rate is the node's: all of its shards take their turns from it.
    fn want_recovery(&mut self, seat: Seat, bytes: usize) {
        let now_us = self.now_us;
        let due_us = match &self.nodes[seat.node].recovery_budget {
            Some(budget) => budget.turn_us(now_us, bytes),
            None => return self.fail(format!("{seat} wants a turn, and nothing limits it")),
        };
        self.coverage.recovery_turns += 1;
        self.input_later((due_us - now_us).max(1), seat, Input::RecoveryTurn(bytes));
    }

    /// A line of an engine for its operator. On a disk that neither lies nor fails data and service are never affected.
    fn logged(&mut self, seat: Seat, level: LogLevel, text: String) {
        self.note(|| format!("{seat} log {level:?} {text}"));
        let healthy = !self.nodes[seat.node].lies && !self.has_failed(seat);
        if healthy && level == LogLevel::Error || text.contains("sent what is not taken") {
            self.fail(format!("{seat} says: {text}"));
        }
    }

    /// Whether any operation of the shard's disk has failed so far.
    fn has_failed(&self, seat: Seat) -> bool {
        let counts = &self.shard(seat).disk.counts;
        [FaultKind::WriteError, FaultKind::SyncError, FaultKind::ReadError, FaultKind::NoSpace]
            .into_iter()
            .any(|kind| counts.of(kind) > 0)
    }

    fn publish(&mut self, seat: Seat, catalog: Arc<Catalog>) {
        self.note(|| format!("{seat} catalogue {} with {} topics", catalog.version, catalog.topics.len()));
        self.learn(seat, &catalog);
        self.check_level(seat, &catalog);
        self.nodes[seat.node].catalog = Some(Arc::clone(&catalog));
        for shard in 0..self.nodes[seat.node].count {
            let delay = self.rng.range(1, 80);
            self.input_later(delay, Seat { shard, ..seat }, Input::Catalog(Arc::clone(&catalog)));
        }
    }

    // ---- connections ----

    /// A new connection of a client to a shard that serves.
    pub(crate) fn connect(&mut self, client: usize, seat: Seat) -> Option<ConnId> {
        if seat.shard >= SEATS {
            // A guess about a node of which who told it has not heard.
            return None;
        }
        let open = matches!(self.nodes[seat.node].state, NodeState::Up);
        let driver = self.shard(seat);
        if !open || driver.engine.is_none() || driver.stopped || driver.fencing {
            return None;
        }
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let now_us = self.now_us;
        self.conns.insert(conn, Conn { seat, client, arrival_us: now_us, reply_us: now_us });
        Some(conn)
    }

    /// Sends a request; returns its correlation id.
    pub(crate) fn send(&mut self, conn: ConnId, sent: Sent) -> Option<u64> {
        let latency_us = self.rng.range(5, 300);
        let open = self.conns.get_mut(&conn)?;
        open.arrival_us = open.arrival_us.max(self.now_us + latency_us);
        let (seat, delay) = (open.seat, open.arrival_us - self.now_us);
        let correlation_id = self.next_correlation;
        self.next_correlation += 1;
        self.sent.insert((conn, correlation_id), sent);
        self.input_later(delay, seat, Input::Request(conn, correlation_id));
        Some(correlation_id)
    }

    fn reply(&mut self, seat: Seat, conn: ConnId, correlation_id: u64, body: ReplyBody) {
        let Some(open) = self.conns.get(&conn) else { return };
        if open.seat != seat {
            return self.fail(format!("{seat} answers on a connection of another shard"));
        }
        let reply = Reply::from_body(body);
        let Some(sent) = self.sent.get_mut(&(conn, correlation_id)) else {
            return self.fail(format!("{seat} answers a request that is not there: {correlation_id}"));
        };
        if std::mem::replace(&mut sent.answered, true) {
            return self.fail(format!("request {correlation_id} answered twice"));
        }
        let sent = sent.clone();
        self.note(|| {
            let (what, answer) = (sent.request.describe(), reply.describe());
            format!("{seat} reply {}.{correlation_id} to {what}: {answer}", conn.0)
        });
        self.check_at_reply(seat, &sent, &reply);
        let delay = self.rng.range(5, 300);
        let now_us = self.now_us;
        let Some(open) = self.conns.get_mut(&conn) else { return };
        open.reply_us = open.reply_us.max(now_us + delay);
        let delay = open.reply_us - now_us;
        self.schedule(delay, Happening::Reply { conn, correlation_id, reply });
    }

    fn deliver(&mut self, conn: ConnId, correlation_id: u64, reply: Reply) {
        let Some(client) = self.conns.get(&conn).map(|open| open.client) else { return };
        if let Some(sent) = self.sent.remove(&(conn, correlation_id)) {
            self.client_reply(client, sent, Some(reply));
        }
    }

    /// Closes a connection: its outstanding requests have an unknown outcome.
    pub(crate) fn close(&mut self, conn: ConnId) {
        let Some(open) = self.conns.remove(&conn) else { return };
        let lost: Vec<(ConnId, u64)> =
            self.sent.range((conn, 0)..=(conn, u64::MAX)).map(|(key, _)| *key).collect();
        self.client_disconnected(open.client, conn);
        for key in lost {
            // What was sent may still arrive: the node learns of the end of the connection later.
            if let Some(sent) = self.sent.get(&key).cloned() {
                self.client_reply(open.client, sent, None);
            }
        }
        let delay = self.rng.range(5, 300) + open.arrival_us.saturating_sub(self.now_us);
        self.input_later(delay, open.seat, Input::Closed(conn));
    }

    /// Closes all connections to a shard, which is gone.
    pub(crate) fn close_all(&mut self, seat: Seat) {
        let conns: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| conn.seat == seat).map(|(id, _)| *id).collect();
        for conn in conns {
            self.close(conn);
            self.sent.retain(|(of, _), _| *of != conn);
        }
    }

    /// Closes the connection whose replies are held for longest.
    fn shed(&mut self, seat: Seat) {
        let slow = self.conns.iter().filter(|(_, conn)| conn.seat == seat);
        let slow = slow.max_by_key(|(id, conn)| (conn.reply_us, **id)).map(|(id, _)| *id);
        if let Some(conn) = slow {
            self.close(conn);
        }
    }
}

fn engine_config(config: &ClusterConfig, seat: Seat) -> EngineConfig {
    let peer = seat.peer();
    let number = (seat.node * config.shards + seat.shard) as u64;
    EngineConfig {
        node: peer.node,
        shard: peer.shard,
        advertised_address: format!("node-{}:9092", peer.node.0),
        internal_address: format!("node-{}:9093", peer.node.0),
        journal_id: config.engine.journal_id.wrapping_add(number * 2),
        disk_id: (config.engine.journal_id >> 1) ^ u64::from(peer.node.0),
        ..config.engine.clone()
    }
}
