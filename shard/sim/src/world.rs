//! The simulated node: virtual time, the event queue, and a driver for each shard's engine that keeps the
//! contract of `engine::api` the way the real driver does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use pyralog_core::{ErrorCode, GroupId, ShardId};
use pyralog_net::message::{Durability, PartitionHealth, Response};
use pyralog_replication::metadata::Catalog;
use pyralog_shard::engine::{Action, ConnId, Engine, EngineConfig, Event, IoToken, Now, ReplyBody, recover};

use crate::clients::{Client, Reply, Sent};
use crate::config::LifeConfig;
use crate::disk::{SimDisk, describe};
use crate::faults::{FaultCounts, FaultKind};
use crate::life::Coverage;
use crate::model::{Existence, GroupModel, Model, Told};
use crate::recovery_disk::Recovering;
use crate::rng::Rng;

/// Something for a shard's next pass.
#[derive(Debug)]
pub(crate) enum Input {
    Request(ConnId, u64),
    Closed(ConnId),
    Io(u64),
    Catalog(Arc<Catalog>),
    Applied(ShardId, u64),
    Tick,
    Shutdown,
}

/// What can happen next.
#[derive(Debug)]
pub(crate) enum Happening {
    Input { shard: usize, life: u64, input: Input },
    Pass { shard: usize, life: u64 },
    Reply { conn: ConnId, correlation_id: u64, reply: Reply },
    ClientStep(usize),
    Rot,
    DiskFull(bool),
    ClockJump,
    Recover { shard: usize, life: u64 },
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
    /// The engine was fenced: a stop of it is not one in good order.
    fenced: bool,
    pub stopped: bool,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub shard: usize,
    pub client: usize,
    arrival: u64,
    reply: u64,
}

/// How a life can end early without anything being wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutShort {
    /// The node refused to start from a disk that had lied.
    Refused,
    /// A lying disk, or a policy that does not flush, took metadata without a trace.
    MetadataLost,
}

/// The simulated node and its clients.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: LifeConfig,
    pub(crate) rng: Rng,
    /// Virtual time, microseconds.
    pub(crate) now_us: u64,
    wall_offset_ms: i64,
    queue: BTreeMap<(u64, u64), Happening>,
    queued: u64,
    pub(crate) shards: Vec<Shard>,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) next_conn: u64,
    pub(crate) next_correlation: u64,
    pub(crate) sent: BTreeMap<(ConnId, u64), Sent>,
    pub(crate) clients: Vec<Client>,
    pub(crate) model: Model,
    pub(crate) catalog: Option<Arc<Catalog>>,
    pub(crate) known_version: u64,
    /// Clients make no new work.
    pub(crate) closing: bool,
    pub(crate) produced: u64,
    pub(crate) produced_bytes: u64,
    /// What the engines did.
    pub(crate) coverage: Coverage,
    /// Happenings so far.
    pub events: u64,
    /// Faults that are not the disk's.
    pub counts: FaultCounts,
    /// What went wrong first.
    pub violation: Option<String>,
    /// Why the life ended early.
    pub cut_short: Option<CutShort>,
    trace: Option<Vec<String>>,
}

const WALL_START_MS: i64 = 1_750_000_000_000;

impl World {
    /// The node of a seed, not yet started.
    pub(crate) fn new(config: LifeConfig, mut rng: Rng, trace: bool) -> Self {
        let shards = (0..config.shards)
            .map(|shard| {
                let engine = EngineConfig {
                    shard: ShardId(shard),
                    journal_id: config.engine.journal_id.wrapping_add(u64::from(shard) * 2),
                    ..config.engine.clone()
                };
                Shard {
                    config: engine,
                    engine: None,
                    disk: SimDisk::new(rng.fork(), config.plan.clone()),
                    life: 0,
                    inbox: Vec::new(),
                    requests: VecDeque::new(),
                    pass_scheduled: false,
                    tick_at: None,
                    tokens: BTreeMap::new(),
                    fencing: false,
                    fenced: false,
                    stopped: false,
                }
            })
            .collect();
        Self {
            config,
            rng,
            now_us: 1_000,
            wall_offset_ms: WALL_START_MS,
            queue: BTreeMap::new(),
            queued: 0,
            shards,
            conns: BTreeMap::new(),
            next_conn: 1,
            next_correlation: 1,
            sent: BTreeMap::new(),
            clients: Vec::new(),
            model: Model::default(),
            catalog: None,
            known_version: 0,
            closing: false,
            produced: 0,
            produced_bytes: 0,
            coverage: Coverage::default(),
            events: 0,
            counts: FaultCounts::default(),
            violation: None,
            cut_short: None,
            trace: trace.then(Vec::new),
        }
    }

    /// The time as engines are told it.
    pub(crate) fn now(&self) -> Now {
        Now { monotonic_us: self.now_us, wall_ms: self.wall_offset_ms + (self.now_us / 1000) as i64 }
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
        self.violation.get_or_insert(what);
    }

    pub(crate) fn check(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.fail(what);
        }
    }

    /// Whether the life is over.
    pub(crate) fn over(&self) -> bool {
        self.violation.is_some() || self.cut_short.is_some()
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
            Happening::Input { shard, life, input } => self.input(shard, life, input),
            Happening::Pass { shard, life } => self.pass(shard, life),
            Happening::Reply { conn, correlation_id, reply } => self.deliver(conn, correlation_id, reply),
            Happening::ClientStep(client) => self.client_step(client),
            Happening::Rot => {
                let shard = self.rng.below(self.shards.len() as u64) as usize;
                self.shards[shard].disk.rot();
                self.disk_notes(shard);
                let every = self.config.plan.rot_every_us;
                if every > 0 && !self.closing {
                    let delay = self.rng.range(1, every * 2);
                    self.schedule(delay, Happening::Rot);
                }
            }
            Happening::DiskFull(full) => self.disk_full(full),
            Happening::ClockJump => {
                let jump = self.rng.magnitude(1, 5_000_000) as i64;
                self.model.clock_reached(self.now().wall_ms);
                self.model.clock_jumps = true;
                self.wall_offset_ms += if self.rng.percent(50) { jump } else { -jump };
                self.counts.add(FaultKind::ClockJump);
                let every = self.config.plan.jump_every_us;
                if !self.closing {
                    let delay = self.rng.range(1, every * 2);
                    self.schedule(delay, Happening::ClockJump);
                }
            }
            Happening::Recover { shard, life } => self.recover_one(shard, life),
        }
        true
    }

    /// Starts the clocks of faults that strike by time.
    pub(crate) fn schedule_faults(&mut self) {
        let plan = self.config.plan.clone();
        for (every, what) in [
            (plan.rot_every_us, Happening::Rot),
            (plan.full_every_us, Happening::DiskFull(true)),
            (plan.jump_every_us, Happening::ClockJump),
        ] {
            if every > 0 {
                let delay = self.rng.range(1, every * 2);
                self.schedule(delay, what);
            }
        }
    }

    fn disk_full(&mut self, full: bool) {
        let full = full && !self.closing;
        self.note(|| format!("disk full: {full}"));
        self.shards.iter_mut().for_each(|shard| shard.disk.full = full);
        let every = self.config.plan.full_every_us;
        if self.closing || every == 0 {
            return;
        }
        let delay = if full { self.rng.magnitude(1_000, 3_000_000) } else { self.rng.range(1, every * 2) };
        self.schedule(delay, Happening::DiskFull(!full));
    }

    pub(crate) fn disk_notes(&mut self, shard: usize) {
        for text in std::mem::take(&mut self.shards[shard].disk.notes) {
            self.note(|| format!("s{shard} {text}"));
        }
        if let Some(what) = self.shards[shard].disk.broken_promise.take() {
            self.fail(what);
        }
    }

    // ---- the driver ----

    fn input(&mut self, shard: usize, life: u64, input: Input) {
        let at = self.now_us;
        let driver = &mut self.shards[shard];
        if driver.life != life || driver.engine.is_none() {
            return;
        }
        if matches!(input, Input::Tick) {
            if driver.tick_at.is_none_or(|due| due > at) {
                return;
            }
            driver.tick_at = None;
        }
        driver.inbox.push(input);
        if !driver.pass_scheduled {
            driver.pass_scheduled = true;
            let delay = self.rng.below(40);
            self.schedule(delay, Happening::Pass { shard, life });
        }
    }

    /// One pass of a shard's loop: all events that are there, then the end of the pass.
    fn pass(&mut self, shard: usize, life: u64) {
        let now = self.now();
        let driver = &mut self.shards[shard];
        if driver.life != life || driver.engine.is_none() {
            return;
        }
        driver.pass_scheduled = false;
        for input in std::mem::take(&mut driver.inbox) {
            let driver = &mut self.shards[shard];
            let event = match input {
                Input::Request(conn, correlation_id) => {
                    driver.requests.push_back((conn, correlation_id));
                    continue;
                }
                Input::Closed(conn) => {
                    driver.requests.retain(|(of, _)| *of != conn);
                    self.sent.retain(|(of, _), _| *of != conn);
                    Event::ConnectionClosed { conn }
                }
                Input::Io(op) => {
                    let Some(token) = driver.tokens.remove(&op) else { continue };
                    let result = driver.disk.complete(op);
                    Event::IoDone { token, result }
                }
                Input::Catalog(catalog) => Event::CatalogPublished { catalog },
                Input::Applied(shard, version) => Event::CatalogApplied { shard, version },
                Input::Tick => Event::Tick,
                Input::Shutdown => Event::Shutdown,
            };
            self.drive(shard, |engine, actions| engine.handle(now, event, actions));
        }
        self.requests(shard, now);
        self.drive(shard, |engine, actions| engine.end_of_pass(now, actions));
        let due = self.shards[shard].engine.as_ref().and_then(Engine::next_deadline_us);
        self.disk_notes(shard);
        self.arm(shard, due);
        self.watch(shard);
    }

    /// Hands the engine what was read from connections, as far as it takes it.
    fn requests(&mut self, shard: usize, now: Now) {
        let mut blocked = BTreeSet::new();
        for (conn, correlation_id) in std::mem::take(&mut self.shards[shard].requests) {
            let Some(sent) = self.sent.get(&(conn, correlation_id)) else { continue };
            let owned = sent.request.clone();
            let accepts = self.shards[shard].engine.as_ref().is_some_and(Engine::accepts_produce);
            if owned.is_produce() && !accepts || blocked.contains(&conn) {
                blocked.insert(conn);
                self.shards[shard].requests.push_back((conn, correlation_id));
                continue;
            }
            let request = owned.borrow();
            self.drive(shard, |engine, actions| {
                engine.handle(now, Event::Request { conn, correlation_id, request }, actions);
            });
        }
    }

    /// One call of the engine; what it wants done is done at once, so that checks see the engine as it was.
    fn drive(&mut self, shard: usize, call: impl FnOnce(&mut Engine, &mut Vec<Action>)) {
        let Some(engine) = &mut self.shards[shard].engine else { return };
        let mut actions = Vec::new();
        call(engine, &mut actions);
        self.actions(shard, actions);
    }

    fn arm(&mut self, shard: usize, due: Option<u64>) {
        let life = self.shards[shard].life;
        // The newest answer counts, as with the real driver: a deadline that moves away is not kept.
        let due = due.map(|due| due.max(self.now_us + 1));
        if std::mem::replace(&mut self.shards[shard].tick_at, due) != due
            && let Some(due) = due
        {
            let delay = due - self.now_us;
            self.schedule(delay, Happening::Input { shard, life, input: Input::Tick });
        }
    }

    fn watch(&mut self, shard: usize) {
        let Some(engine) = &self.shards[shard].engine else { return };
        let status = engine.status();
        if status.cache_live_bytes > status.cache_budget_bytes {
            let text = format!("cache memory {} over {}", status.cache_live_bytes, status.cache_budget_bytes);
            self.fail(text);
        }
        let driver = &mut self.shards[shard];
        // Awaiting every running operation ends when none runs; the driver takes no more requests then.
        if driver.fencing && driver.disk.running() == 0 {
            let life = driver.life;
            driver.fencing = false;
            self.schedule(1, Happening::Recover { shard, life });
        }
    }

    fn actions(&mut self, shard: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Io { token, op } => {
                    self.note(|| format!("s{shard} io {} {}", token.0, describe(&op)));
                    let driver = &mut self.shards[shard];
                    if driver.tokens.values().any(|used| *used == token) {
                        self.fail(format!("shard {shard} uses {token:?} twice at once"));
                        return;
                    }
                    let (op, delay) = driver.disk.submit(op);
                    driver.tokens.insert(op, token);
                    let life = driver.life;
                    self.schedule(delay, Happening::Input { shard, life, input: Input::Io(op) });
                }
                Action::Reply { conn, correlation_id, body } => self.reply(shard, conn, correlation_id, body),
                Action::PublishCatalog { catalog } => self.publish(shard, catalog),
                Action::CatalogApplied { version } => {
                    let life = self.shards[0].life;
                    let applied = Input::Applied(ShardId(shard as u16), version);
                    let delay = self.rng.range(1, 80);
                    self.schedule(delay, Happening::Input { shard: 0, life, input: applied });
                }
                Action::GiveUp { reason } => self.fail(format!("the node gives up: {reason}")),
                Action::Recover { reason } => {
                    self.note(|| format!("s{shard} recover: {reason}"));
                    self.shards[shard].fencing = true;
                    self.shards[shard].fenced = true;
                }
                Action::ShedSlowReaders { bytes } => {
                    self.note(|| format!("s{shard} shed {bytes} bytes of slow readers"));
                    self.shed(shard);
                }
                // One node: there is nobody to link to.
                Action::SendPeer { .. }
                | Action::WantPeers { .. }
                | Action::TellLeaders { .. }
                | Action::TellController { .. }
                | Action::WantRecovery { .. } => {}
                Action::Log { level, text } => self.note(|| format!("s{shard} log {level:?} {text}")),
                Action::Stopped => {
                    self.note(|| format!("s{shard} stopped"));
                    self.shards[shard].stopped = true;
                }
            }
        }
    }

    /// Closes the connections whose replies are held for longest.
    fn shed(&mut self, shard: usize) {
        let slow = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.shard == shard)
            .max_by_key(|(id, conn)| (conn.reply, **id))
            .map(|(id, _)| *id);
        if let Some(conn) = slow {
            self.close(conn);
        }
    }

    fn reply(&mut self, shard: usize, conn: ConnId, correlation_id: u64, body: ReplyBody) {
        let Some(open) = self.conns.get(&conn) else { return };
        if open.shard != shard {
            self.fail(format!("shard {shard} answers on a connection of another"));
            return;
        }
        let reply = Reply::from_body(body);
        let Some(sent) = self.sent.get_mut(&(conn, correlation_id)) else {
            self.fail(format!(
                "shard {shard} answers a request that is not there: {conn:?} {correlation_id}"
            ));
            return;
        };
        if std::mem::replace(&mut sent.answered, true) {
            self.fail(format!("request {correlation_id} answered twice"));
            return;
        }
        let sent = sent.clone();
        self.note(|| {
            format!(
                "s{shard} reply {}.{correlation_id} to {}: {}",
                conn.0,
                sent.request.describe(),
                reply.describe()
            )
        });
        let claim = self.check_at_reply(shard, &sent, &reply);
        let slow = matches!(reply, Reply::Fetch { .. });
        let mut delay = self.rng.range(5, 120);
        if slow && self.rng.one_in(8) {
            delay += self.rng.below(self.config.slow_reader_us);
        }
        let at = self.now_us + delay;
        if let Some(sent) = self.sent.get_mut(&(conn, correlation_id)) {
            sent.claim_holds = claim;
        }
        let Some(open) = self.conns.get_mut(&conn) else { return };
        open.reply = open.reply.max(at);
        let delay = open.reply - self.now_us;
        self.schedule(delay, Happening::Reply { conn, correlation_id, reply });
    }

    /// What can be checked only at the moment at which the engine answers. Returns whether the claim of
    /// durability in the reply is true.
    fn check_at_reply(&mut self, shard: usize, sent: &Sent, reply: &Reply) -> bool {
        let Some(group) = sent.request.group() else { return true };
        let Some(told) = self.told(shard, group) else {
            let error = reply.error();
            if error.is_some_and(|code| matches!(code, ErrorCode::CorruptRange | ErrorCode::LogEndUnknown)) {
                self.fail(format!(
                    "{group} is not here any more and is called damaged: {}",
                    reply.describe()
                ));
            }
            return true;
        };
        let strict = self.config.strict();
        self.model.clock_reached(self.now().wall_ms);
        let tracker = &self.shards[shard].disk.tracker;
        let mut claim = true;
        let result = match reply {
            Reply::Message(Response::Produce(reply)) => {
                if reply.durability >= Durability::LeaderDurable {
                    claim = tracker
                        .place(group, reply.base_offset)
                        .is_some_and(|place| tracker.claim_holds(place));
                }
                let told = Told { high_watermark: reply.high_watermark, ..told };
                self.model.told(group, &told, strict, tracker)
            }
            Reply::Fetch { head, .. } => {
                let told = Told { high_watermark: head.high_watermark, log_start: head.log_start, ..told };
                self.model.told(group, &told, strict, tracker)
            }
            Reply::Message(Response::ListOffsets(reply)) => {
                let spec = sent.request.offset_spec();
                spec.map_or(Ok(()), |spec| self.model.found(group, spec, reply.offset, &told, tracker))
            }
            Reply::Message(Response::Error(error)) if error.code == ErrorCode::OffsetOutOfRange => {
                let offset = sent.request.fetch_offset();
                offset.map_or(Ok(()), |offset| self.model.out_of_range(group, offset, &told, tracker))
            }
            Reply::Message(_) => Ok(()),
        };
        self.check(result);
        claim
    }

    /// What the engine says of a partition right now.
    pub(crate) fn told(&self, shard: usize, group: GroupId) -> Option<Told> {
        let state = self.shards.get(shard)?.engine.as_ref()?.partition(group)?;
        Some(Told { log_start: state.log_start, high_watermark: state.high_watermark, health: state.health })
    }

    /// The health of a partition right now.
    pub(crate) fn health(&self, shard: usize, group: GroupId) -> Option<PartitionHealth> {
        self.told(shard, group).map(|told| told.health)
    }

    fn publish(&mut self, shard: usize, catalog: Arc<Catalog>) {
        if shard != 0 {
            self.fail(format!("shard {shard} published a catalogue"));
            return;
        }
        self.note(|| format!("catalogue {} with {} topics", catalog.version, catalog.topics.len()));
        self.learn(&catalog);
        self.catalog = Some(Arc::clone(&catalog));
        for shard in 0..self.shards.len() {
            let life = self.shards[shard].life;
            let delay = self.rng.range(1, 80);
            let catalog = Arc::clone(&catalog);
            self.schedule(delay, Happening::Input { shard, life, input: Input::Catalog(catalog) });
        }
    }

    /// Topics come into and leave the model with the catalogue that names them.
    fn learn(&mut self, catalog: &Catalog) {
        // Metadata is durable before it counts, whatever the fsync policy.
        let excused = self.shards[0].disk.tracker.metadata_hit;
        if catalog.version < self.known_version && !excused {
            self.fail(format!(
                "the catalogue went back from version {} to {}",
                self.known_version, catalog.version
            ));
        }
        if catalog.version < self.known_version {
            // Ids of topics and producers will be given out again: nothing can be told apart any more.
            self.cut_short.get_or_insert(CutShort::MetadataLost);
        }
        self.known_version = catalog.version;
        let mut trouble = None;
        for (group, model) in &mut self.model.groups {
            let there = catalog.shard_on(1, *group).is_some();
            match (there, model.exists) {
                (false, Existence::Yes) if !excused => {
                    trouble = Some(format!("{group} vanished from the catalogue"))
                }
                (true, Existence::No) if !excused => {
                    trouble = Some(format!("{group} is back after its deletion"))
                }
                _ => {}
            }
            if !there {
                model.exists = Existence::No;
            }
        }
        if let Some(what) = trouble {
            self.fail(what);
        }
        for topic in catalog.topics.values() {
            let (retention_bytes, retention_ms) = (topic.spec.retention_bytes, topic.spec.retention_ms);
            for partition in 0..topic.partitions() {
                let group = GroupId::new(topic.id, partition);
                let Some(shard) = catalog.shard_on(1, group) else { continue };
                let keeps_all = retention_bytes <= 0 && retention_ms <= 0;
                let known = self.model.groups.get(&group).is_some_and(|model| model.exists != Existence::No);
                if !known {
                    let mut model = GroupModel::new(shard, keeps_all);
                    let by_age = retention_ms > 0 && retention_bytes <= 0;
                    model.retention_ms = by_age.then_some(retention_ms);
                    self.model.groups.insert(group, model);
                }
            }
        }
    }

    // ---- connections ----

    /// A new connection of a client to a shard that serves.
    pub(crate) fn connect(&mut self, client: usize, shard: usize) -> Option<ConnId> {
        let driver = &self.shards[shard];
        if driver.engine.is_none() || driver.stopped || driver.fencing {
            return None;
        }
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.conns.insert(conn, Conn { shard, client, arrival: self.now_us, reply: self.now_us });
        Some(conn)
    }

    /// Sends a request; returns its correlation id.
    pub(crate) fn send(&mut self, conn: ConnId, sent: Sent) -> Option<u64> {
        let latency = self.rng.range(5, 120);
        let open = self.conns.get_mut(&conn)?;
        open.arrival = open.arrival.max(self.now_us + latency);
        let (shard, delay) = (open.shard, open.arrival - self.now_us);
        let life = self.shards[shard].life;
        let correlation_id = self.next_correlation;
        self.next_correlation += 1;
        self.sent.insert((conn, correlation_id), sent);
        self.schedule(delay, Happening::Input { shard, life, input: Input::Request(conn, correlation_id) });
        Some(correlation_id)
    }

    fn deliver(&mut self, conn: ConnId, correlation_id: u64, reply: Reply) {
        let Some(open) = self.conns.get(&conn) else { return };
        let client = open.client;
        if let Some(sent) = self.sent.remove(&(conn, correlation_id)) {
            self.client_reply(client, conn, correlation_id, sent, reply);
        }
    }

    /// Closes a connection: its outstanding requests have an unknown outcome.
    pub(crate) fn close(&mut self, conn: ConnId) {
        let Some(open) = self.conns.remove(&conn) else { return };
        let lost: Vec<(ConnId, u64)> =
            self.sent.range((conn, 0)..=(conn, u64::MAX)).map(|(key, _)| *key).collect();
        for key in lost {
            // What was sent may still arrive: the node learns of the end of the connection later.
            let Some(sent) = self.sent.get_mut(&key) else { continue };
            sent.abandoned = true;
            let sent = sent.clone();
            self.client_lost(open.client, key.1, sent);
        }
        self.client_disconnected(open.client, conn);
        let life = self.shards[open.shard].life;
        let delay = self.rng.range(5, 120) + open.arrival.saturating_sub(self.now_us);
        self.schedule(delay, Happening::Input { shard: open.shard, life, input: Input::Closed(conn) });
    }

    pub(crate) fn close_all(&mut self, shard: usize) {
        let conns: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| conn.shard == shard).map(|(id, _)| *id).collect();
        conns.into_iter().for_each(|conn| self.close(conn));
    }

    // ---- lives of the engines ----

    /// Adds up what the engines have done.
    pub(crate) fn count_coverage(&mut self) {
        for shard in 0..self.shards.len() {
            self.count_engine(shard);
        }
        self.coverage.recycled = self.shards.iter().map(|shard| shard.disk.tracker.recycled).sum();
        self.coverage.trimmed = self.model.groups.values().filter(|model| model.log_start > 0).count() as u64;
    }

    fn count_engine(&mut self, shard: usize) {
        let Some(engine) = &self.shards[shard].engine else { return };
        let counters = engine.status().counters;
        self.coverage.commits += counters.commits;
        self.coverage.checkpoints += counters.checkpoints;
        self.coverage.segment_bytes += counters.segment_bytes;
        self.coverage.cold_reads += counters.cache_misses;
        self.coverage.duplicates += counters.duplicates;
    }

    fn put_down(&mut self, shard: usize) {
        self.count_engine(shard);
        self.close_all(shard);
        self.sent.retain(|_, sent| sent.shard != shard);
        let driver = &mut self.shards[shard];
        driver.engine = None;
        driver.life += 1;
        driver.inbox.clear();
        driver.requests.clear();
        driver.pass_scheduled = false;
        driver.tick_at = None;
        driver.tokens.clear();
        driver.fencing = false;
        driver.fenced = false;
        driver.stopped = false;
    }

    /// The power goes: all shards at once.
    pub(crate) fn crash(&mut self, kind: FaultKind) {
        self.note(|| "CRASH".into());
        self.counts.add(kind);
        let strict = self.config.strict();
        self.catalog = None;
        for shard in 0..self.shards.len() {
            self.put_down(shard);
            let lost = self.shards[shard].disk.crash();
            self.disk_notes(shard);
            self.note(|| format!("s{shard} lost tail: {lost:?}"));
            self.model.memory_lost(shard as u16, strict, lost, &self.shards[shard].disk.tracker);
            if lost.is_some_and(|lost| lost.metadata) {
                self.cut_short.get_or_insert(CutShort::MetadataLost);
            }
        }
    }

    /// Starts every shard from its disk, through crashes in the middle of recovery and errors of the disk.
    pub(crate) fn boot(&mut self) {
        for attempt in 0..16 {
            if self.over() || self.boot_once(attempt) {
                return;
            }
        }
        self.fail("the node does not start, whatever one tries".into());
    }

    fn boot_once(&mut self, attempt: u32) -> bool {
        for shard in 0..self.shards.len() {
            if self.shards[shard].engine.is_some() {
                continue;
            }
            match self.start(shard, attempt) {
                Started::Serving => {}
                Started::Interrupted => {
                    self.crash(FaultKind::CrashInRecovery);
                    return false;
                }
                Started::Failed => return false,
            }
        }
        true
    }

    fn start(&mut self, shard: usize, attempt: u32) -> Started {
        self.now_us += self.rng.range(500, 20_000);
        let now = self.now();
        if attempt >= 8 {
            // Errors of the disk do not last for ever: the operator has exchanged the cable.
            self.shards[shard].disk.faults_off();
        }
        let driver = &mut self.shards[shard];
        driver.disk.tracker.new_life();
        let interruption = if attempt < 4 { driver.disk.draw_interruption() } else { None };
        let mut disk = Recovering::new(&mut driver.disk, interruption);
        let result = recover(driver.config.clone(), &mut disk, now);
        let (interrupted, calls) = (disk.interrupted, disk.calls);
        self.disk_notes(shard);
        match result {
            _ if interrupted => {
                self.note(|| format!("s{shard} power went in recovery after {calls} calls"));
                Started::Interrupted
            }
            Err(error) => {
                self.note(|| format!("s{shard} does not start: {error}"));
                if attempt >= 9 {
                    match self.shards[shard].disk.tracker.lied() {
                        true => self.cut_short = Some(CutShort::Refused),
                        false => self.fail(format!(
                            "shard {shard} refuses to start from a disk that never lied: {error}"
                        )),
                    }
                }
                Started::Failed
            }
            Ok(mut engine) => {
                self.note(|| format!("s{shard} recovered with {calls} calls"));
                let mut actions = Vec::new();
                engine.start(now, &mut actions);
                let due = engine.next_deadline_us();
                self.shards[shard].engine = Some(engine);
                self.actions(shard, actions);
                self.disk_notes(shard);
                self.arm(shard, due);
                self.watch(shard);
                if let (Some(catalog), true) = (self.catalog.clone(), shard != 0) {
                    let life = self.shards[shard].life;
                    self.schedule(10, Happening::Input { shard, life, input: Input::Catalog(catalog) });
                }
                Started::Serving
            }
        }
    }

    /// Recovers one shard after an I/O error, the others going on.
    fn recover_one(&mut self, shard: usize, life: u64) {
        if self.shards[shard].life != life || self.over() {
            return;
        }
        self.put_down(shard);
        let strict = self.config.strict();
        let lost = self.shards[shard].disk.lost_tail();
        self.note(|| format!("s{shard} lost tail: {lost:?}"));
        self.model.memory_lost(shard as u16, strict, lost, &self.shards[shard].disk.tracker);
        if lost.is_some_and(|lost| lost.metadata) {
            self.cut_short.get_or_insert(CutShort::MetadataLost);
            return;
        }
        for attempt in 0..16 {
            match self.start(shard, attempt) {
                Started::Serving => return,
                Started::Interrupted => {
                    self.crash(FaultKind::CrashInRecovery);
                    self.boot();
                    return;
                }
                Started::Failed if self.over() => return,
                Started::Failed => {}
            }
        }
    }

    /// Stops the node in good order. Falls back to a crash when a fault keeps it from stopping.
    pub(crate) fn clean_stop(&mut self) {
        self.note(|| "clean stop".into());
        for shard in 0..self.shards.len() {
            let life = self.shards[shard].life;
            self.schedule(1, Happening::Input { shard, life, input: Input::Shutdown });
        }
        let until = self.now_us + 20_000_000;
        let lives: Vec<u64> = self.shards.iter().map(|shard| shard.life).collect();
        let same = |world: &Self| world.shards.iter().map(|shard| shard.life).eq(lives.iter().copied());
        while self.now_us < until && !self.over() && !self.shards.iter().all(|shard| shard.stopped) {
            let fencing = |shard: &Shard| shard.fencing || shard.engine.is_none();
            if !same(self) || self.shards.iter().any(fencing) || !self.step() {
                break;
            }
        }
        if self.over() {
            return;
        }
        for shard in 0..self.shards.len() {
            if self.shards[shard].stopped && !self.shards[shard].fenced {
                self.model.stopped(shard as u16);
            } else if self.config.plan.is_quiet()
                && same(self)
                && !self.shards.iter().any(|shard| shard.fencing)
            {
                // The wait ends for all of them when one fences itself over an operation from before the quiet.
                self.fail(format!("shard {shard} does not stop on a disk without errors"));
            }
        }
        self.crash(FaultKind::CleanStop);
    }

    /// All faults of all disks and of this node so far.
    pub(crate) fn all_counts(&self) -> FaultCounts {
        let mut all = self.counts.clone();
        self.shards.iter().for_each(|shard| all.merge(&shard.disk.counts));
        all
    }
}

enum Started {
    Serving,
    Interrupted,
    Failed,
}
