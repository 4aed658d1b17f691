//! One shard on each of a few nodes, with partitions that all of them hold: links that break, disk operations that take
//! their time and end in any order, pauses, crashes; all drawn from one seed. At the end everything is healed, and every
//! replica must hold the same, with everything that was acknowledged in its place.

mod campaigns;
mod catch_up;
mod check;
mod damage;
mod forced;
mod founding;
mod in_sync;
mod lag;
mod leaving;
mod lone;
mod metadata;
mod moving;
mod passes;
mod recovery_rate;
mod scrub;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use pyralog_core::batch::BatchView;
use pyralog_core::{ErrorCode, GroupId, NodeId, Quorums, ShardId};
use pyralog_net::message::{
    Acks, Consistency, CreateTopicRequest, DeleteTopicRequest, Durability, FetchRequest, MetadataRequest,
    PartitionHealth, ProduceRequest, Request, Response,
};
use pyralog_replication::metadata::Catalog;
use pyralog_replication::raft::{MessageKind, frame};

use super::disk::MemDisk;
use super::harness::{batch, config};
use crate::engine::replica::Replica;
use crate::engine::{
    Action, ConnId, Engine, EngineConfig, Event, FileId, IoOp, IoToken, LogLevel, Now, PeerId,
    RECOVERY_TURN_BYTES, ReplyBody, recover,
};
use crate::format::journal::{COMMIT_HEADER_BYTES, CommitHeader, FrameKind};
use crate::recovery_budget::RecoveryBudget;

mod bounds;
mod durability;

/// The only shard of each node.
const SHARD: ShardId = ShardId(0);
/// Correlation ids of administrative requests begin here.
const ADMIN: u64 = 1 << 40;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn chance(&mut self, per_mille: usize) -> bool {
        self.below(1000) < per_mille
    }
}

/// A produce that is not answered yet.
struct Sent {
    group: GroupId,
    value: Vec<u8>,
    /// Of an idempotent producer: which, and the sequence.
    session: Option<(usize, i32)>,
}

/// An idempotent producer of one partition: sends again what was refused or whose outcome it does not know.
struct Session {
    group: GroupId,
    id: i64,
    next_sequence: i32,
    /// Not acknowledged yet, in order: sequence, value, and whether an answer is awaited.
    open: VecDeque<(i32, Vec<u8>, bool)>,
}

/// Batches that an idempotent producer has under way at most.
const OPEN: i32 = 5;

#[derive(Default)]
struct Node {
    engine: Option<Engine>,
    disk: MemDisk,
    io: Vec<(IoToken, IoOp)>,
    session: u64,
    wanted: BTreeSet<PeerId>,
    catalog: Option<Arc<Catalog>>,
    /// The highest term in which it gave its vote away.
    voted: BTreeMap<GroupId, u32>,
    /// How many disks it had before this one.
    disks: u64,
    /// Whether it was a member of all groups when it was last up.
    settled: bool,
    /// Its disk was exchanged or damaged once.
    lossy: bool,
    /// The turn that it wants of the rate of recovery: when, and of how many bytes.
    turn: Option<(u64, usize)>,
    budget: Option<RecoveryBudget>,
}

type Frame = (Vec<u8>, Vec<u8>);

struct World {
    rng: Rng,
    now: Now,
    nodes: Vec<Node>,
    /// Frames on their way, by sender and receiver; in order on each.
    network: BTreeMap<(u32, u32), VecDeque<Frame>>,
    /// Pairs whose links are up at both ends.
    linked: BTreeSet<(u32, u32)>,
    /// Pairs whose links can't come up.
    cut: BTreeSet<(u32, u32)>,
    groups: Vec<GroupId>,
    quorums: Quorums,
    admin: u64,
    /// The last answer to an administrative request.
    answer: Option<Response>,
    config: EngineConfig,
    correlation: u64,
    sent: BTreeMap<u64, Sent>,
    /// By group and offset.
    acknowledged: BTreeMap<(GroupId, i64), Vec<u8>>,
    sessions: Vec<Session>,
    /// How often each kind of message was sent, by name.
    messages: BTreeMap<String, usize>,
    duplicates: usize,
    next_value: u64,
    values_bytes: usize,
    /// Whom each node voted for, by node, group and term; over all its disks.
    votes: BTreeMap<(u32, GroupId, u32), u32>,
    /// Who led, by group and term.
    leaders: BTreeMap<(GroupId, u32), u32>,
    disks_lost: usize,
    damaged: usize,
    /// Replicas that have left a node.
    left: usize,
}

fn pair(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

fn peer(node: u32) -> PeerId {
    PeerId { node: NodeId(node), shard: SHARD }
}

impl World {
    fn new(seed: u64, nodes: u32, partitions: u32, write_quorum: u8) -> Self {
        Self::with_copies(seed, nodes, nodes as u8, partitions, write_quorum)
    }

    fn with_copies(seed: u64, nodes: u32, copies: u8, partitions: u32, write_quorum: u8) -> Self {
        let metadata_replicas = (1..=nodes).map(peer).collect();
        let config = EngineConfig { metadata_replicas, max_buffer_time_us: 300_000, ..config() };
        let mut world = Self {
            rng: Rng(seed),
            now: Now { monotonic_us: 1_000_000, wall_ms: 1_700_000_000_000 },
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            network: BTreeMap::new(),
            linked: BTreeSet::new(),
            cut: BTreeSet::new(),
            groups: Vec::new(),
            quorums: Quorums {
                replication_factor: copies,
                write_quorum,
                read_quorum: copies + 1 - write_quorum,
                min_insync_replicas: if seed.is_multiple_of(2) { write_quorum } else { 1 },
            },
            admin: ADMIN,
            answer: None,
            config,
            correlation: 0,
            sent: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            sessions: Vec::new(),
            messages: BTreeMap::new(),
            duplicates: 0,
            next_value: 0,
            values_bytes: 40,
            votes: BTreeMap::new(),
            leaders: BTreeMap::new(),
            disks_lost: 0,
            damaged: 0,
            left: 0,
        };
        for id in 1..=nodes {
            world.start(id);
        }
        world.create(partitions);
        for (at, group) in world.groups.clone().into_iter().enumerate() {
            let id = 100 + at as i64;
            world.sessions.push(Session { group, id, next_sequence: 0, open: VecDeque::new() });
        }
        world
    }

    /// The nodes register themselves; then there is a topic.
    fn create(&mut self, partitions: u32) {
        for round in 0..100_000 {
            match self.answer.take() {
                Some(Response::CreateTopic(reply)) => {
                    self.groups =
                        (0..partitions).map(|partition| GroupId::new(reply.id, partition)).collect();
                    return;
                }
                Some(Response::Error(error)) => {
                    assert!(error.code.retriable() || error.code == ErrorCode::InvalidTopic, "{error:?}");
                }
                _ => {}
            }
            if round % 500 == 0 {
                self.create_topic("replicated", partitions);
            }
            self.step();
        }
        panic!("no topic comes into being");
    }

    fn create_topic(&mut self, name: &str, partitions: u32) {
        let (quorums, bytes) = (self.quorums, -1);
        let create =
            CreateTopicRequest { name, partitions, quorums, retention_bytes: bytes, retention_ms: -1 };
        self.administer(Request::CreateTopic(create));
    }

    /// To the leader of the metadata group.
    fn administer(&mut self, request: Request<'_>) {
        let Some(leader) = self.leader(GroupId::METADATA) else { return };
        self.admin += 1;
        let correlation_id = self.admin;
        self.event(leader, Event::Request { conn: ConnId(1), correlation_id, request });
    }

    /// A topic that has nothing to do with the others comes or goes.
    fn change_metadata(&mut self) {
        let name = format!("other-{}", self.rng.below(3));
        match self.rng.below(3) {
            0 => self.administer(Request::DeleteTopic(DeleteTopicRequest { name: &name })),
            1 => self.administer(Request::InitProducerId),
            _ => self.create_topic(&name, 2),
        }
    }

    fn ids(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.nodes.len() as u32
    }

    fn node(&mut self, id: u32) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    fn is_up(&self, id: u32) -> bool {
        self.nodes[id as usize - 1].engine.is_some()
    }

    fn start(&mut self, id: u32) {
        let disk_id = 70 + u64::from(id) + 100 * self.node(id).disks;
        let config = EngineConfig {
            node: NodeId(id),
            journal_id: disk_id,
            disk_id,
            advertised_address: format!("127.0.0.{id}:9092"),
            internal_address: format!("127.0.0.{id}:9093"),
            ..self.config.clone()
        };
        let now = self.now;
        let node = self.node(id);
        node.session += 1;
        match recover(config, &mut node.disk, now) {
            Ok(engine) => {
                if !node.lossy {
                    knows_its_replicas(&engine);
                }
                node.engine = Some(engine);
            }
            // It refuses to start on such a disk: somebody gives it an empty one.
            Err(_) if node.lossy => {
                node.disk = MemDisk::default();
                node.disks += 1;
                self.disks_lost += 1;
                return self.start(id);
            }
            Err(error) => panic!("{error}"),
        }
        let mut actions = Vec::new();
        let engine = node.engine.as_mut().unwrap();
        engine.start(now, &mut actions);
        for (group, term) in &node.voted {
            // A group that is gone was dropped with its topic.
            let epoch = engine.partition(*group).map_or(u32::MAX, |state| state.epoch);
            assert!(
                epoch >= *term,
                "node {id} forgot its vote of term {term} in {group}, it is in term {epoch}"
            );
        }
        self.carry_out(id, actions);
    }

    /// Whether a node knows what it has promised, in all groups.
    fn is_settled(&self, id: u32) -> bool {
        let node = &self.nodes[id as usize - 1];
        let Some(engine) = &node.engine else { return node.settled };
        let member = |group: &GroupId| {
            engine.partition(*group).is_some_and(|state| state.health == PartitionHealth::Online)
        };
        let here = |group: &&GroupId| self.may_hold(id, **group);
        // Before it serves it does not say what it is.
        engine.status().ready && self.groups.iter().chain(&[GroupId::METADATA]).filter(here).all(member)
    }

    /// The newest catalogue that anybody has.
    fn newest(&self) -> Option<&Arc<Catalog>> {
        let known = self.nodes.iter().filter_map(|node| node.catalog.as_ref());
        known.max_by_key(|catalog| catalog.version)
    }

    /// Whether a node has a replica of a group, or may have one already.
    fn may_hold(&self, id: u32, group: GroupId) -> bool {
        group == GroupId::METADATA
            || self.newest().is_none_or(|newest| newest.places(group).any(|place| place.node == id))
    }

    /// The nodes that hold a group when nothing is on its way.
    fn holders(&self, group: GroupId) -> Vec<u32> {
        self.ids().filter(|id| self.may_hold(*id, group)).collect()
    }

    /// A replica has left a node: nobody may count on what it has promised.
    fn forget_votes(&mut self, id: u32) {
        let Some(engine) = &self.nodes[id as usize - 1].engine else { return };
        let gone: BTreeSet<GroupId> =
            self.groups.iter().copied().filter(|group| engine.partition(*group).is_none()).collect();
        self.node(id).voted.retain(|group, _| !gone.contains(group));
        self.votes.retain(|(voter, group, _), _| *voter != id || !gone.contains(group));
    }

    /// Whether enough others know what they have promised.
    fn can_spare(&self, id: u32) -> bool {
        let unsettled = self.ids().filter(|other| *other != id && !self.is_settled(*other)).count();
        unsettled < (usize::from(self.quorums.replication_factor) - 1) / 2
    }

    /// A disk is exchanged for an empty one, if enough others know what they have promised.
    fn lose_disk(&mut self, id: u32) {
        if !self.can_spare(id) {
            return;
        }
        if self.is_up(id) {
            self.crash(id);
        }
        self.disks_lost += 1;
        let node = self.node(id);
        (node.disk, node.settled, node.lossy) = (MemDisk::default(), false, true);
        node.disks += 1;
        node.voted.clear();
        node.catalog = None;
    }

    /// A byte of what the journal holds for sure turns, under the same condition.
    fn damage_journal(&mut self, id: u32) {
        if !self.can_spare(id) {
            return;
        }
        if self.is_up(id) {
            self.crash(id);
        }
        let mut commits = Vec::new();
        for (file, bytes) in &self.node(id).disk.files {
            if matches!(file, FileId::Journal(_)) {
                let blocks = bytes.chunks(4096).zip((0..).step_by(4096));
                let headers = blocks.filter_map(|(block, at)| Some((CommitHeader::decode(block).ok()?, at)));
                commits.extend(headers.map(|(header, at)| (header.lsn, header.durable_lsn, *file, at)));
            }
        }
        commits.sort_unstable_by_key(|(lsn, ..)| *lsn);
        let Some((_, durable_lsn, ..)) = commits.last().copied() else { return };
        // What may be torn is not damage.
        commits.retain(|(lsn, ..)| *lsn <= durable_lsn);
        let newest = commits.len().min(30);
        let Some((.., file, at)) =
            commits.len().checked_sub(1 + self.rng.below(newest)).map(|nth| commits[nth])
        else {
            return;
        };
        let at = at + self.rng.below(200);
        self.damaged += 1;
        let node = self.node(id);
        (node.settled, node.lossy) = (false, true);
        node.voted.clear();
        node.disk.files.get_mut(&file).unwrap()[at] ^= 0x40;
    }

    /// What was handed to the disk and is not done may be done or not.
    fn crash(&mut self, id: u32) {
        let settled = self.is_settled(id);
        let node = &mut self.nodes[id as usize - 1];
        node.settled = settled;
        node.engine = None;
        node.turn = None;
        node.wanted.clear();
        for (_, op) in std::mem::take(&mut node.io) {
            if self.rng.chance(500) && !matches!(op, IoOp::Read { .. }) {
                node.disk.run(op).unwrap();
            }
        }
        self.forget_sent();
        for other in self.ids() {
            self.unlink(id, other);
        }
    }

    fn unlink(&mut self, a: u32, b: u32) {
        if !self.linked.remove(&pair(a, b)) {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            self.network.remove(&(from, to));
            if self.is_up(from) {
                self.event(from, Event::PeerDown { peer: peer(to) });
            }
        }
    }

    fn link(&mut self, a: u32, b: u32) {
        let wants = |from: u32, to: u32| self.nodes[from as usize - 1].wanted.contains(&peer(to));
        if a == b
            || self.cut.contains(&pair(a, b))
            || !wants(a, b)
            || !wants(b, a)
            || !self.linked.insert(pair(a, b))
        {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let session = self.node(to).session;
            self.event(from, Event::PeerUp { peer: peer(to), session });
        }
    }

    fn event(&mut self, id: u32, event: Event<'_>) {
        let now = self.now;
        let Some(engine) = self.node(id).engine.as_mut() else { return };
        let mut actions = Vec::new();
        engine.handle(now, event, &mut actions);
        engine.end_of_pass(now, &mut actions);
        self.carry_out(id, actions);
    }

    fn carry_out(&mut self, id: u32, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Io { token, op } => self.node(id).io.push((token, op)),
                Action::Reply { correlation_id, body: ReplyBody::Message(message), .. } => {
                    self.reply(correlation_id, &message);
                }
                Action::Reply { .. } => {}
                Action::SendPeer { to, control, payload } => {
                    let to = to.node.0;
                    for message in frame::decode(&control).unwrap() {
                        *self.messages.entry(format!("{:?}", message.kind)).or_default() += 1;
                        if message.kind == MessageKind::RequestVoteResponse && !message.reject {
                            let voted = self.node(id).voted.entry(message.group()).or_default();
                            *voted = message.term.max(*voted);
                            let vote = (id, message.group(), message.term);
                            let other = *self.votes.entry(vote).or_insert(message.to);
                            assert_eq!(other, message.to, "node {id} voted twice: {message:?}");
                        }
                    }
                    if self.linked.contains(&pair(id, to)) {
                        let payload = payload.iter().flat_map(|slice| slice.bytes().to_vec()).collect();
                        self.network.entry((id, to)).or_default().push_back((control, payload));
                    }
                }
                Action::WantPeers { peers, .. } => self.node(id).wanted = peers.into_iter().collect(),
                Action::WantRecovery { bytes } => self.want_recovery(id, bytes),
                Action::Log { level: LogLevel::Info, text } => {
                    if text.contains("moved away") {
                        self.left += 1;
                        self.forget_votes(id);
                    }
                }
                Action::PublishCatalog { catalog } => {
                    self.node(id).catalog = Some(Arc::clone(&catalog));
                    self.event(id, Event::CatalogPublished { catalog });
                }
                Action::CatalogApplied { version } => {
                    self.event(id, Event::CatalogApplied { shard: SHARD, version });
                }
                Action::TellLeaders { leaders } => {
                    for told in leaders.iter().filter(|told| told.node == id) {
                        let other = *self.leaders.entry((told.group, told.epoch)).or_insert(id);
                        assert_eq!(other, id, "two leaders: {told:?}");
                    }
                    self.event(id, Event::LeadersTold { leaders });
                }
                Action::Log { .. } if self.nodes[id as usize - 1].lossy => {}
                // Somebody has asked for it.
                Action::Log { text, .. } if text.ends_with("only the others had is lost") => {}
                Action::Log { text, .. } => panic!("node {id}: {text}"),
                other => panic!("node {id}: {other:?}"),
            }
        }
    }

    fn want_recovery(&mut self, id: u32, bytes: usize) {
        let (now_us, rate) = (self.now.monotonic_us, self.config.recovery_bytes_per_s);
        let node = self.node(id);
        assert!(node.turn.is_none(), "node {id} wants two turns at once");
        assert!(bytes > 0 && bytes <= RECOVERY_TURN_BYTES, "node {id} wants {bytes} bytes");
        let budget = node.budget.get_or_insert_with(|| RecoveryBudget::new(rate.unwrap()));
        node.turn = Some((budget.turn_us(now_us, bytes), bytes));
    }

    fn reply(&mut self, correlation_id: u64, message: &Response) {
        if correlation_id >= ADMIN {
            self.answer = Some(message.clone());
            return;
        }
        let Some(sent) = self.sent.remove(&correlation_id) else { return };
        if let Response::Produce(done) = message {
            assert_eq!(done.durability, Durability::QuorumDurable);
            self.duplicates += usize::from(done.duplicate);
            let other = self.acknowledged.insert((sent.group, done.base_offset), sent.value);
            assert!(other.is_none(), "two batches acknowledged at one offset");
        }
        let Some((session, sequence)) = sent.session else { return };
        let open = &mut self.sessions[session].open;
        match message {
            Response::Produce(_) => open.retain(|(other, ..)| *other != sequence),
            Response::Error(error) => {
                // Those before it went to another leader, and are not committed.
                let ahead = [ErrorCode::OutOfOrderSequence, ErrorCode::UnknownProducerId];
                assert!(error.code.retriable() || ahead.contains(&error.code), "{error:?}");
                open.iter_mut()
                    .filter(|(other, ..)| *other == sequence)
                    .for_each(|(.., waits)| *waits = false);
            }
            other => panic!("{other:?}"),
        }
    }

    /// The connections broke: nobody knows what became of what was sent.
    fn forget_sent(&mut self) {
        self.sent.clear();
        for (.., waits) in self.sessions.iter_mut().flat_map(|session| &mut session.open) {
            *waits = false;
        }
    }

    /// An idempotent producer sends the oldest batch that nobody works on, or a new one.
    fn produce_in_session(&mut self, at: usize, new: bool) {
        let Some(leader) = self.leader(self.sessions[at].group) else { return };
        let value = self.value(self.sessions[at].group);
        let session = &mut self.sessions[at];
        let group = session.group;
        // From the oldest one on, answered or not: a leader remembers no more of a producer.
        let first = session.open.front().map_or(session.next_sequence, |(first, ..)| *first);
        let room = session.next_sequence - first < OPEN;
        if session.open.iter().all(|(.., waits)| *waits) && room && new {
            session.open.push_back((session.next_sequence, value, false));
            session.next_sequence += 1;
        }
        let Some((sequence, value, waits)) = session.open.iter_mut().find(|(.., waits)| !*waits) else {
            return;
        };
        *waits = true;
        let (sequence, value, id) = (*sequence, value.clone(), session.id);
        let bytes = batch(self.now.wall_ms, Some((id, 0, sequence)), &[&value]);
        self.send(leader, Sent { group, value, session: Some((at, sequence)) }, &bytes);
    }

    fn value(&mut self, group: GroupId) -> Vec<u8> {
        self.next_value += 1;
        let mut value = format!("{}/{}", group.partition, self.next_value).into_bytes();
        value.resize(value.len().max(self.values_bytes), b'.');
        value
    }

    fn send(&mut self, id: u32, sent: Sent, batch: &[u8]) {
        self.correlation += 1;
        let (conn, correlation_id, group) = (ConnId(1), self.correlation, sent.group);
        self.sent.insert(correlation_id, sent);
        let produce = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch };
        self.event(id, Event::Request { conn, correlation_id, request: Request::Produce(produce) });
    }

    /// Who says that it leads, in the highest epoch.
    fn leader(&self, group: GroupId) -> Option<u32> {
        let state = |id: u32| self.nodes[id as usize - 1].engine.as_ref()?.partition(group);
        let leads = self.ids().filter(|id| state(*id).is_some_and(|state| state.leader == *id));
        leads.max_by_key(|id| state(*id).map(|state| state.epoch))
    }

    fn produce(&mut self, id: u32, group: GroupId) {
        let value = self.value(group);
        let bytes = batch(self.now.wall_ms, None, &[&value]);
        self.send(id, Sent { group, value, session: None }, &bytes);
    }

    fn io(&mut self, id: u32) {
        let count = self.node(id).io.len();
        if count == 0 {
            return;
        }
        let at = self.rng.below(count);
        let node = self.node(id);
        let (token, op) = node.io.swap_remove(at);
        let result = node.disk.run(op);
        self.event(id, Event::IoDone { token, result });
    }

    fn deliver(&mut self) {
        let busy: Vec<(u32, u32)> =
            self.network.iter().filter(|(_, queue)| !queue.is_empty()).map(|(way, _)| *way).collect();
        if busy.is_empty() {
            return;
        }
        let (from, to) = busy[self.rng.below(busy.len())];
        let Some((control, payload)) = self.network.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return;
        };
        self.event(to, Event::PeerFrame { from: peer(from), control: &control, payload: &payload });
    }

    fn tick(&mut self, us: u64) {
        self.now.monotonic_us += us;
        self.now.wall_ms += (us / 1_000) as i64;
        let now_us = self.now.monotonic_us;
        for id in self.ids() {
            if let Some((_, bytes)) = self.node(id).turn.take_if(|(due, _)| *due <= now_us) {
                self.event(id, Event::RecoveryTurn { bytes });
            }
            let due = self.node(id).engine.as_ref().and_then(Engine::next_deadline_us);
            if due.is_some_and(|due| due <= self.now.monotonic_us) {
                self.event(id, Event::Tick);
            }
        }
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=39 => {
                let id = 1 + self.rng.below(self.nodes.len()) as u32;
                self.io(id);
            }
            40..=79 => self.deliver(),
            80..=89 => {
                let us = 1 + self.rng.below(3_000) as u64;
                self.tick(us);
            }
            90..=97 if self.groups.is_empty() => self.tick(1_000),
            90..=94 => {
                let at = self.rng.below(self.sessions.len());
                self.produce_in_session(at, true);
            }
            95..=97 => {
                let group = self.groups[self.rng.below(self.groups.len())];
                let id = self.leader(group).unwrap_or(1 + self.rng.below(self.nodes.len()) as u32);
                if self.is_up(id) {
                    self.produce(id, group);
                }
            }
            _ if self.groups.is_empty() || self.rng.chance(800) => {
                let (a, b) = (
                    1 + self.rng.below(self.nodes.len()) as u32,
                    1 + self.rng.below(self.nodes.len()) as u32,
                );
                self.link(a, b);
            }
            _ => self.change_metadata(),
        }
    }

    fn fault(&mut self) {
        let id = 1 + self.rng.below(self.nodes.len()) as u32;
        let other = 1 + self.rng.below(self.nodes.len()) as u32;
        match self.rng.below(8) {
            6 => self.lose_disk(id),
            7 => self.damage_journal(id),
            0 | 1 if self.is_up(id) => self.crash(id),
            0 | 1 => self.start(id),
            2 => {
                self.unlink(id, other);
            }
            3 => {
                self.cut.insert(pair(id, other));
                self.unlink(id, other);
            }
            4 => self.cut.clear(),
            _ => self.tick(200_000),
        }
    }

    /// Events in random order until something is true.
    fn go_on_until(&mut self, what: &str, come_true: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            if come_true(self) {
                return;
            }
            self.go_on();
        }
        panic!("never came true: {what}");
    }

    /// Goes on for so long that every leader is where it should be, if nothing keeps it from there.
    fn settle_leaders(&mut self) {
        for _ in 0..4_000 {
            self.go_on();
        }
    }

    /// Everybody is up and connected, and time passes until every replica has everything.
    fn heal(&mut self) {
        self.cut.clear();
        for id in self.ids() {
            if !self.is_up(id) {
                self.start(id);
            }
        }
        for round in 0..40_000 {
            self.go_on();
            let open = self.sessions.iter().any(|session| !session.open.is_empty());
            if round % 50 == 0 && !open && self.converged() {
                return;
            }
        }
        for group in self.groups.iter().copied().chain([GroupId::METADATA]).collect::<Vec<_>>() {
            for id in self.ids() {
                self.describe(id, group);
            }
        }
        panic!("the replicas do not agree");
    }

    /// Whatever is up and not cut gets on, without anything new.
    fn go_on(&mut self) {
        for a in self.ids() {
            for b in self.ids() {
                self.link(a, b);
            }
            while !self.node(a).io.is_empty() {
                self.io(a);
            }
        }
        self.deliver();
        if self.network.values().all(VecDeque::is_empty) {
            self.tick(5_000);
            for at in 0..self.sessions.len() {
                self.produce_in_session(at, false);
            }
        }
    }

    /// Goes on until another node than `old` leads the metadata.
    fn await_controller_but(&mut self, old: u32) -> u32 {
        for _ in 0..40_000 {
            self.go_on();
            if let Some(leader) = self.leader(GroupId::METADATA).filter(|leader| *leader != old) {
                return leader;
            }
        }
        panic!("nobody leads the metadata");
    }

    /// The answer of the node that leads the metadata, as soon as it takes requests.
    fn answer_to(&mut self, ask: impl Fn(&mut Self)) -> Response {
        for round in 0..40_000 {
            match self.answer.take() {
                Some(Response::Error(error)) if error.code == ErrorCode::NotController => {}
                Some(answer) => return answer,
                None => {}
            }
            if round % 100 == 0 {
                ask(self);
            }
            self.go_on();
        }
        panic!("the metadata's leader does not answer");
    }
}

/// A disk that has lost nothing says who the replicas are of everything on it, without the catalogue.
fn knows_its_replicas(engine: &Engine) {
    for partition in engine.each_partition().filter(|partition| partition.group != GroupId::METADATA) {
        if let Replica::Unplaced(unplaced) = &partition.replica {
            let (group, said) = (partition.group, &unplaced.log.configuration);
            assert!(!said.is_unknown(), "partition {group}: replicas on nodes {said}");
        }
    }
}

/// A whole life.
fn life(seed: u64, steps: usize) -> World {
    live(seed, steps, |_| {})
}

fn live(seed: u64, steps: usize, change: impl Fn(&mut EngineConfig)) -> World {
    let mut rng = Rng(seed ^ 0x5eed);
    let nodes = if rng.chance(250) { 5 } else { 3 };
    let write_quorum = nodes as u8 / 2 + 1 + u8::from(rng.chance(150));
    let partitions = 1 + rng.below(4) as u32;
    let mut world = World::new(seed, nodes, partitions, write_quorum);
    change(&mut world.config);
    let faults_per_mille = [0, 2, 5, 20][rng.below(4)];
    world.values_bytes = [10, 40, 3_000, 60_000][rng.below(4)];
    for _ in 0..steps {
        world.step();
        if rng.chance(faults_per_mille) {
            world.fault();
        }
    }
    world.heal();
    world.check();
    world
}

/// Lives that once went wrong.
const ONCE_WRONG: &[u64] = &[
    1593, // entries of a group that took no part held the replay back for ever, and checkpoints followed one another
    5151, // entries that were laid down again in part were taken for lost
    7012, // the same as 1593, for want of room
    7035, // recovery wrote committed metadata to segments before the catalogue held it
    7118, // entries whose copies follow further on in the journal were taken for lost
    9221, // more batches in one message than the journal had room for
    50003, // a partition that was dropped came again with an older catalogue, and voted anew
];

#[test]
fn lives_that_once_went_wrong_go_well() {
    for seed in ONCE_WRONG {
        std::panic::catch_unwind(|| life(*seed, 6_000)).unwrap_or_else(|_| panic!("seed {seed}"));
    }
}

#[test]
fn replicas_agree_and_hold_what_was_acknowledged() {
    let lives =
        std::env::var("PYRALOG_CLUSTER_LIVES").ok().and_then(|lives| lives.parse().ok()).unwrap_or(40);
    let first = std::env::var("PYRALOG_CLUSTER_FIRST").ok().and_then(|first| first.parse().ok()).unwrap_or(1);
    let (mut acknowledged, mut duplicates, mut disks, mut damaged, mut messages) =
        (0, 0, 0, 0, BTreeMap::new());
    for seed in first..first + lives {
        let world = std::panic::catch_unwind(|| life(seed, 6_000)).unwrap_or_else(|_| panic!("seed {seed}"));
        acknowledged += world.acknowledged.len();
        duplicates += world.duplicates;
        disks += world.disks_lost;
        damaged += world.damaged;
        for (kind, count) in world.messages {
            *messages.entry(kind).or_insert(0) += count;
        }
    }
    println!(
        "{lives} lives, {acknowledged} acknowledged, {duplicates} of them were there already, {disks} disks lost, {damaged} damaged, {messages:?}"
    );
    if lives < 40 {
        return;
    }
    assert!(acknowledged > 50 * lives as usize && duplicates > 0, "{acknowledged} {duplicates}");
    for kind in ["Append", "RequestVote", "Snapshot", "FetchBatches", "Batches", "Quiesce"] {
        assert!(messages.contains_key(kind), "no {kind} in {lives} lives");
    }
}

/// The disk's owner says nothing of what it has lost: some life must show it.
#[cfg(feature = "planted-bugs")]
#[test]
fn a_blank_disk_that_votes_is_caught() {
    use crate::engine::planted::PlantedBug;
    let blank = |config: &mut EngineConfig| config.planted = Some(PlantedBug::BlankDiskVotes);
    let fails = |seed| std::panic::catch_unwind(|| live(seed, 6_000, blank)).is_err();
    assert!((30_000..30_100).any(fails), "none of 100 lives shows it");
}

/// A commit takes a majority. A topic may ask for more copies, and only a leader knows how many there are.
#[test]
fn stepping_down_does_not_make_a_write_quorum() {
    let mut world = World::new(7, 3, 1, 3);
    world.heal();
    let group = world.groups[0];
    let leader = world.leader(group).unwrap();
    let [heir, last] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    for other in [leader, heir] {
        world.cut.insert(pair(other, last));
        world.unlink(other, last);
    }
    world.sent.clear();
    world.produce(leader, group);
    for _ in 0..20 {
        world.io(leader);
        world.io(heir);
        world.deliver();
    }
    assert_eq!((world.sent.len(), world.acknowledged.len()), (1, 0), "two of three copies");
    // It hands over to the one that it reaches.
    world.event(leader, Event::Shutdown);
    for _ in 0..1_000 {
        if world.sent.is_empty() {
            break;
        }
        world.deliver();
        world.io(heir);
        world.tick(100);
    }
    assert!(world.sent.is_empty(), "the client is told that the outcome is unknown");
    assert_eq!(world.acknowledged.len(), 0, "two of three copies, and it is acknowledged");
}
