//! The clients of the simulated node: what they send, when they try again, and what they conclude.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use pyralog_core::{ErrorCode, GroupId, Outcome, Quorums};
use pyralog_net::message::{
    Acks, Consistency, DescribePartitionsRequest, FetchRequest, ListOffsetsRequest, OffsetSpec,
    PartitionHealth, Response,
};
use pyralog_shard::engine::ConnId;

use crate::batch::{self, Spec};
use crate::faults::FaultKind;
use crate::model::{Existence, Produced};
pub(crate) use crate::request::{Owned, Reply};
use crate::world::{CutShort, Happening, World};

/// Batches in flight of one session in one partition.
const IN_FLIGHT: usize = 5;

/// A request and what its sender remembers of it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub request: Owned,
    pub shard: usize,
    /// The batch, of a produce.
    pub batch: Option<u64>,
    pub answered: bool,
    pub claim_holds: bool,
    /// The connection is closed at the client's end; the request may still arrive.
    pub abandoned: bool,
}

impl Sent {
    pub(crate) fn new(shard: usize, request: Owned, batch: Option<u64>) -> Self {
        Self { request, shard, batch, answered: false, claim_holds: true, abandoned: false }
    }
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    pub role: Role,
    conns: BTreeMap<usize, ConnId>,
    step_scheduled: bool,
}

/// What a client does.
#[derive(Debug)]
pub(crate) enum Role {
    /// Produces in idempotent sessions and tries again until it is answered.
    Idempotent(Session),
    /// Produces once and never again.
    Plain,
    /// Reads.
    Consumer(Reader),
    /// Breaks the rules.
    Rogue(Rogue),
    /// Creates and deletes topics, looks around.
    Admin { topics: u32, busy: bool },
    /// The simulator's own calls.
    Harness { answer: Option<Answer> },
    /// Being stepped.
    Away,
}

/// What became of a call.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Box<(Sent, Reply)>),
    Lost,
}

#[derive(Debug, Default)]
pub(crate) struct Session {
    producer: Option<(i64, i16)>,
    asked: bool,
    parts: BTreeMap<GroupId, Part>,
}

#[derive(Debug, Default)]
struct Part {
    next: i32,
    queue: VecDeque<Out>,
    /// Takes no writes any more, by the disk's fault.
    dead: bool,
}

#[derive(Debug)]
struct Out {
    id: u64,
    in_flight: u32,
    failed: bool,
    /// Stays until all before it are acknowledged: the window is five batches from the oldest open one on.
    acked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Tail,
    Cold,
    ByTime,
}

#[derive(Debug)]
pub(crate) struct Reader {
    group: Option<GroupId>,
    offset: Option<i64>,
    mode: Mode,
    busy: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Rogue {
    producer: Option<i64>,
    asked: bool,
    /// The partition that remembers epoch 1 of this producer.
    fenced_in: Option<GroupId>,
    waiting: Option<u64>,
}

impl Client {
    pub(crate) fn new(role: Role) -> Self {
        Self { role, conns: BTreeMap::new(), step_scheduled: false }
    }

    pub(crate) fn reader() -> Self {
        let reader = Reader { group: None, offset: None, mode: Mode::Cold, busy: false };
        Self::new(Role::Consumer(reader))
    }
}

impl World {
    /// Adds a client and has it begin.
    pub(crate) fn add_client(&mut self, client: Client) -> usize {
        self.clients.push(client);
        let index = self.clients.len() - 1;
        self.step_later(index);
        index
    }

    fn step_later(&mut self, index: usize) {
        if std::mem::replace(&mut self.clients[index].step_scheduled, true) {
            return;
        }
        let think = self.rng.range(1, self.config.think_us);
        let delay = if self.rng.one_in(50) { think + self.rng.magnitude(1_000, 500_000) } else { think };
        self.schedule(delay, Happening::ClientStep(index));
    }

    pub(crate) fn client_step(&mut self, index: usize) {
        self.clients[index].step_scheduled = false;
        if self.rng.one_in(self.config.plan.disconnect) && !self.closing {
            let conn = self.clients[index].conns.values().next().copied();
            if let Some(conn) = conn {
                self.counts.add(FaultKind::Disconnect);
                self.close(conn);
            }
        }
        let mut role = std::mem::replace(&mut self.clients[index].role, Role::Away);
        match &mut role {
            Role::Idempotent(session) => self.step_session(index, session),
            Role::Plain => self.step_plain(index),
            Role::Consumer(reader) => self.step_reader(index, reader),
            Role::Rogue(rogue) => self.step_rogue(index, rogue),
            Role::Admin { topics, busy } => self.step_admin(index, topics, busy),
            Role::Harness { .. } | Role::Away => {
                self.clients[index].role = role;
                return;
            }
        }
        self.clients[index].role = role;
        self.step_later(index);
    }

    pub(crate) fn client_reply(
        &mut self,
        index: usize,
        conn: ConnId,
        correlation: u64,
        sent: Sent,
        reply: Reply,
    ) {
        self.note(|| format!("c{index} got {}.{correlation}", conn.0));
        let mut role = std::mem::replace(&mut self.clients[index].role, Role::Away);
        match &mut role {
            Role::Idempotent(session) => self.session_reply(session, &sent, Some(&reply)),
            Role::Plain => self.plain_reply(&sent, &reply),
            Role::Consumer(reader) => self.reader_reply(reader, &sent, Some(&reply)),
            Role::Rogue(rogue) => self.rogue_reply(rogue, &sent, Some(&reply)),
            Role::Admin { busy, .. } => {
                *busy = false;
                self.admin_reply(&sent, Some(&reply));
            }
            Role::Harness { answer } => *answer = Some(Answer::Reply(Box::new((sent, reply)))),
            Role::Away => {}
        }
        self.clients[index].role = role;
    }

    /// The connection closed before the answer came.
    pub(crate) fn client_lost(&mut self, index: usize, _correlation: u64, sent: Sent) {
        let mut role = std::mem::replace(&mut self.clients[index].role, Role::Away);
        match &mut role {
            Role::Idempotent(session) => self.session_reply(session, &sent, None),
            Role::Consumer(reader) => self.reader_reply(reader, &sent, None),
            Role::Rogue(rogue) => self.rogue_reply(rogue, &sent, None),
            Role::Admin { busy, .. } => {
                *busy = false;
                self.admin_reply(&sent, None);
            }
            Role::Harness { answer } => *answer = Some(Answer::Lost),
            Role::Plain | Role::Away => {}
        }
        // A role that is being stepped is put back by its step.
        if !matches!(role, Role::Away) {
            self.clients[index].role = role;
        }
    }

    pub(crate) fn client_disconnected(&mut self, index: usize, conn: ConnId) {
        self.clients[index].conns.retain(|_, open| *open != conn);
    }

    fn request(&mut self, index: usize, shard: usize, request: Owned, batch: Option<u64>) -> bool {
        let conn = match self.clients[index].conns.get(&shard).copied() {
            Some(conn) => conn,
            None => match self.connect(index, shard) {
                Some(conn) => {
                    self.clients[index].conns.insert(shard, conn);
                    conn
                }
                None => return false,
            },
        };
        let text = request.describe();
        let correlation = self.send(conn, Sent::new(shard, request, batch));
        self.note(|| format!("c{index} sends {}.{} {text}", conn.0, correlation.unwrap_or_default()));
        correlation.is_some()
    }

    /// Whether the client waits for something that must still come through.
    pub(crate) fn has_work(&self, client: &Client) -> bool {
        let Role::Idempotent(session) = &client.role else { return false };
        session.parts.iter().any(|(group, part)| {
            let exists = self.model.groups.get(group).is_some_and(|model| model.exists != Existence::No);
            exists && !part.dead && !part.queue.is_empty()
        })
    }

    fn pick_group(&mut self) -> Option<(GroupId, usize)> {
        let groups: Vec<(GroupId, usize)> = self
            .model
            .groups
            .iter()
            .filter(|(_, model)| model.exists == Existence::Yes)
            .map(|(group, model)| (*group, usize::from(model.shard)))
            .collect();
        (!groups.is_empty()).then(|| self.rng.pick(&groups))
    }

    fn make_batch(&mut self, group: GroupId, session: Option<(i64, i16, i32)>, hostile: Option<u64>) -> u64 {
        let (low, high) = self.config.value_bytes;
        let value_bytes = self.rng.magnitude(low, high) as usize;
        let records = self.rng.magnitude(1, 40).min(value_bytes as u64 / 8 + 1) as u32;
        let (producer_id, producer_epoch, sequence) = session.unwrap_or((-1, -1, -1));
        let id = self.model.batches.len() as u64;
        let made_ms = self.now().wall_ms;
        let timeless = self.config.timeless_percent > 0 && self.rng.percent(self.config.timeless_percent);
        let timestamp = if timeless { -1 } else { made_ms };
        let spec = Spec { id, records, value_bytes, timestamp, producer_id, producer_epoch, sequence };
        let mut bytes: Rc<[u8]> = batch::encode(&spec).into();
        if let Some(which) = hostile {
            bytes = batch::malformed(&bytes, which);
        }
        self.produced += 1;
        self.produced_bytes += bytes.len() as u64;
        self.model.produced(Produced {
            group,
            bytes,
            records,
            timestamp,
            made_ms,
            session,
            refused: false,
            hostile: hostile.is_some(),
        })
    }

    fn budget_left(&self) -> bool {
        !self.closing
            && self.produced < self.config.produce_budget
            && self.produced_bytes < self.config.byte_budget
    }

    fn produce(&mut self, index: usize, id: u64, acks: Acks) -> bool {
        let Some(batch) = self.model.batch(id) else { return false };
        let (group, bytes) = (batch.group, Rc::clone(&batch.bytes));
        let Some(shard) = self.model.groups.get(&group).map(|model| usize::from(model.shard)) else {
            return false;
        };
        let timeout_ms = if self.rng.one_in(10) { self.rng.range(1, 500) as u32 } else { 0 };
        self.request(index, shard, Owned::Produce { group, acks, timeout_ms, batch: bytes }, Some(id))
    }

    /// Whether a lying disk, or a policy that allows loss, may have cost this shard what it knew.
    fn forgiven(&self, shard: usize) -> bool {
        !self.config.strict() || self.shards.get(shard).is_some_and(|shard| shard.disk.tracker.lied())
    }

    // ---- idempotent producers ----

    fn step_session(&mut self, index: usize, session: &mut Session) {
        let Some((producer, epoch)) = session.producer else {
            if !session.asked && self.budget_left() {
                session.asked = self.request(index, 0, Owned::InitProducerId, None);
            }
            return;
        };
        // What failed is sent again, in order, once nothing of that partition is under way.
        let groups: Vec<GroupId> = session.parts.keys().copied().collect();
        for group in groups {
            let Some(part) = session.parts.get_mut(&group) else { continue };
            let gone = self.model.groups.get(&group).is_none_or(|model| model.exists == Existence::No);
            if gone || part.dead {
                part.queue.clear();
                continue;
            }
            let failed = part.queue.iter().any(|out| out.failed);
            if !failed || part.queue.iter().any(|out| out.in_flight > 0 && !out.acked) {
                continue;
            }
            let ids: Vec<u64> = part.queue.iter().filter(|out| !out.acked).map(|out| out.id).collect();
            for id in ids {
                if !self.produce(index, id, Acks::Quorum) {
                    break;
                }
                if let Some(out) = part.queue.iter_mut().find(|out| out.id == id) {
                    out.in_flight += 1;
                    out.failed = false;
                }
            }
        }
        if !self.budget_left() {
            return;
        }
        let burst = self.rng.range(1, 3);
        for _ in 0..burst {
            let Some((group, _)) = self.pick_group() else { return };
            let part = session.parts.entry(group).or_default();
            if part.dead || part.queue.len() >= IN_FLIGHT || part.queue.iter().any(|out| out.failed) {
                continue;
            }
            let id = self.make_batch(group, Some((producer, epoch, part.next)), None);
            part.next += self.model.batch(id).map_or(0, |batch| batch.records as i32);
            let acks = if self.rng.percent(20) { Acks::Leader } else { Acks::Quorum };
            let sent = self.produce(index, id, acks);
            part.queue.push_back(Out { id, in_flight: u32::from(sent), failed: !sent, acked: false });
            // Sent twice on purpose.
            if sent
                && self.rng.one_in(20)
                && self.produce(index, id, acks)
                && let Some(out) = part.queue.back_mut()
            {
                out.in_flight += 1;
            }
        }
    }

    fn session_reply(&mut self, session: &mut Session, sent: &Sent, reply: Option<&Reply>) {
        let Some(id) = sent.batch else {
            session.asked = false;
            if let Some(Reply::Message(Response::InitProducerId(reply))) = reply {
                self.new_producer(reply.producer_id);
                session.producer = Some((reply.producer_id, reply.producer_epoch));
            }
            return;
        };
        let Some(group) = sent.request.group() else { return };
        if let Some(Reply::Message(Response::Produce(reply))) = reply {
            let result = self.model.acked(id, reply, sent.claim_holds);
            self.check(result);
            if let Some(part) = session.parts.get_mut(&group) {
                if let Some(out) = part.queue.iter_mut().find(|out| out.id == id) {
                    (out.acked, out.failed) = (true, false);
                }
                while part.queue.front().is_some_and(|out| out.acked) {
                    part.queue.pop_front();
                }
            }
            return;
        }
        let Some(part) = session.parts.get_mut(&group) else { return };
        let Some(at) = part.queue.iter().position(|out| out.id == id && !out.acked) else { return };
        if let Some(out) = part.queue.get_mut(at) {
            out.in_flight = out.in_flight.saturating_sub(1);
            out.failed = true;
        }
        let Some(code) = reply.and_then(Reply::error) else { return };
        match code {
            ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducerId if at > 0 => {}
            ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducerId | ErrorCode::ProducerFenced => {
                let exists =
                    self.model.groups.get(&group).is_some_and(|model| model.exists == Existence::Yes);
                if exists && !self.forgiven(sent.shard) {
                    self.fail(format!(
                        "{group}: the next batch {id} of a session was answered {}",
                        code.name()
                    ));
                }
                *session = Session::default();
            }
            ErrorCode::LogEndUnknown | ErrorCode::CorruptRange => {
                if !self.shards[sent.shard].disk.tracker.journal_hit {
                    self.fail(format!("{group}: a produce was answered {} on an honest disk", code.name()));
                }
                part.dead = true;
            }
            code if !code.retriable() => {
                self.fail(format!("{group}: good batch {id} was answered {}", code.name()));
            }
            _ => {}
        }
    }

    fn new_producer(&mut self, id: i64) {
        if self.model.producer_ids.insert(id) {
            return;
        }
        if self.config.strict() && !self.shards[0].disk.tracker.metadata_hit {
            self.fail(format!("producer id {id} was handed out twice"));
        }
        // Two sessions share an id: nothing can be told apart any more.
        self.cut_short.get_or_insert(CutShort::MetadataLost);
    }

    // ---- producers without a session ----

    fn step_plain(&mut self, index: usize) {
        if !self.budget_left() {
            return;
        }
        let Some((group, _)) = self.pick_group() else { return };
        let acks = self.rng.pick(&[Acks::None, Acks::Leader, Acks::Quorum, Acks::Quorum]);
        let id = self.make_batch(group, None, None);
        self.produce(index, id, acks);
    }

    fn plain_reply(&mut self, sent: &Sent, reply: &Reply) {
        let Some(id) = sent.batch else { return };
        match reply {
            Reply::Message(Response::Produce(reply)) => {
                let mut result = self.model.acked(id, reply, sent.claim_holds);
                if reply.duplicate {
                    result = Err(format!("batch {id} has no session and was called a duplicate"));
                }
                self.check(result);
            }
            Reply::Message(Response::Error(error)) => {
                if error.code.outcome() == Outcome::NotAccepted
                    && let Some(batch) = self.model.batches.get_mut(id as usize)
                {
                    batch.refused = true;
                }
                let damaged = matches!(error.code, ErrorCode::LogEndUnknown | ErrorCode::CorruptRange);
                let fine = error.code.retriable() || damaged && self.forgiven(sent.shard);
                if !fine {
                    self.fail(format!(
                        "good batch {id} was answered {}: {}",
                        error.code.name(),
                        error.detail
                    ));
                }
            }
            _ => self.fail(format!("a produce was answered with {}", reply.describe())),
        }
    }

    // ---- consumers ----

    fn step_reader(&mut self, index: usize, reader: &mut Reader) {
        if reader.busy || self.closing {
            return;
        }
        let gone = |world: &Self, group: &GroupId| {
            world.model.groups.get(group).is_none_or(|model| model.exists != Existence::Yes)
        };
        if reader.group.is_none_or(|group| gone(self, &group)) || self.rng.one_in(200) {
            reader.group = self.pick_group().map(|(group, _)| group);
            reader.offset = None;
            reader.mode = self.rng.pick(&[Mode::Tail, Mode::Cold, Mode::Cold, Mode::ByTime]);
        }
        let Some(group) = reader.group else { return };
        let Some(shard) = self.model.groups.get(&group).map(|model| usize::from(model.shard)) else { return };
        let request = match reader.offset {
            None => {
                let spec = match reader.mode {
                    Mode::Tail => OffsetSpec::Latest,
                    Mode::Cold => OffsetSpec::Earliest,
                    Mode::ByTime => {
                        let back = self.rng.magnitude(1, 1 + self.now_us / 1000) as i64;
                        OffsetSpec::Timestamp(self.now().wall_ms - back)
                    }
                };
                Owned::ListOffsets(ListOffsetsRequest { group, spec, consistency: Consistency::Leader })
            }
            Some(offset) => {
                let max_wait_ms = if self.rng.percent(50) { self.rng.magnitude(1, 2_000) as u32 } else { 0 };
                let min_bytes = if self.rng.percent(50) { 1 } else { self.rng.magnitude(1, 200_000) as u32 };
                let max_bytes = self.rng.magnitude(1, 2 << 20) as u32;
                Owned::Fetch(FetchRequest {
                    group,
                    offset,
                    min_bytes,
                    max_bytes,
                    max_wait_ms,
                    consistency: Consistency::Leader,
                })
            }
        };
        reader.busy = self.request(index, shard, request, None);
    }

    fn reader_reply(&mut self, reader: &mut Reader, sent: &Sent, reply: Option<&Reply>) {
        reader.busy = false;
        let Some(reply) = reply else { return };
        match (&sent.request, reply) {
            (Owned::ListOffsets(_), Reply::Message(Response::ListOffsets(reply))) => {
                reader.offset = Some(reply.offset);
            }
            (Owned::Fetch(_), _) => match self.check_fetch(sent, reply) {
                Some(next) if Some(next) != reader.offset => reader.offset = Some(next),
                Some(_) => {
                    if reader.mode != Mode::Tail {
                        reader.group = None;
                    }
                }
                None => {
                    reader.offset = None;
                    reader.mode = Mode::Cold;
                    if self.rng.percent(50) {
                        reader.group = None;
                    }
                }
            },
            _ => reader.group = None,
        }
    }

    /// Checks the answer to a fetch. Returns where to go on, `None` when the position is lost.
    pub(crate) fn check_fetch(&mut self, sent: &Sent, reply: &Reply) -> Option<i64> {
        let Owned::Fetch(fetch) = &sent.request else { return None };
        let group = fetch.group;
        match reply {
            Reply::Fetch { head, slices } => {
                let mut bytes = Vec::with_capacity(head.batch_bytes as usize);
                slices.iter().for_each(|slice| bytes.extend_from_slice(slice.bytes()));
                if bytes.len() != head.batch_bytes as usize {
                    self.fail(format!(
                        "{group}: a fetch announced {} bytes, {} came",
                        head.batch_bytes,
                        bytes.len()
                    ));
                }
                if bytes.is_empty() && fetch.offset < head.high_watermark {
                    self.fail(format!(
                        "{group}: a fetch at {} below {} is empty",
                        fetch.offset, head.high_watermark
                    ));
                }
                let must = self.config.strict();
                match self.model.fetched(group, fetch.offset, head.high_watermark, &bytes, must) {
                    Ok(next) => Some(next),
                    Err(what) => {
                        self.fail(what);
                        None
                    }
                }
            }
            Reply::Message(Response::Error(error)) => {
                match error.code {
                    ErrorCode::CorruptRange | ErrorCode::LogEndUnknown => {
                        let tracker = &self.shards[sent.shard].disk.tracker;
                        match self.model.damaged(group, fetch.offset, tracker) {
                            Ok(i64::MAX) => return None,
                            Ok(next) => return Some(next),
                            Err(what) => self.fail(format!("{what} ({})", error.detail)),
                        }
                    }
                    ErrorCode::OffsetOutOfRange => {}
                    code if code.retriable() => return Some(fetch.offset),
                    code => {
                        self.fail(format!("{group}: a fetch was answered {}: {}", code.name(), error.detail))
                    }
                }
                None
            }
            other => {
                self.fail(format!("a fetch was answered with {}", other.describe()));
                None
            }
        }
    }

    // ---- rogues ----

    fn step_rogue(&mut self, index: usize, rogue: &mut Rogue) {
        if !self.budget_left() || rogue.waiting.is_some() {
            return;
        }
        let Some((group, shard)) = self.pick_group() else { return };
        let Some(producer) = rogue.producer else {
            if !rogue.asked {
                rogue.asked = self.request(index, 0, Owned::InitProducerId, None);
            }
            return;
        };
        let session = match (self.rng.below(6), rogue.fenced_in) {
            (0, _) => {
                let which = self.rng.below(8);
                let id = self.make_batch(group, None, Some(which));
                self.produce(index, id, Acks::Quorum);
                return;
            }
            (1, _) => {
                let offset = self.rng.pick(&[-1, i64::MIN, i64::MAX, 1 << 40]);
                let max_bytes = self.rng.pick(&[0, 1, u32::MAX]);
                let fetch = FetchRequest {
                    group,
                    offset,
                    min_bytes: u32::MAX,
                    max_bytes,
                    max_wait_ms: 0,
                    consistency: Consistency::Leader,
                };
                self.request(index, shard, Owned::Fetch(fetch), None);
                return;
            }
            (2, _) => {
                let group = GroupId::new(group.topic.0, 77_777);
                let list = ListOffsetsRequest {
                    group,
                    spec: OffsetSpec::Earliest,
                    consistency: Consistency::Leader,
                };
                self.request(index, shard, Owned::ListOffsets(list), None);
                return;
            }
            (_, None) => (producer, 1, 0),
            (3, Some(fenced)) => return self.hostile(index, fenced, (producer, 0, 0)),
            (4, Some(fenced)) => return self.hostile(index, fenced, (producer, 1, 1_000)),
            (_, Some(fenced)) if fenced != group => return self.hostile(index, group, (producer, 1, 9)),
            _ => return,
        };
        let id = self.make_batch(group, Some(session), None);
        if self.produce(index, id, Acks::Quorum) {
            rogue.waiting = Some(id);
        }
    }

    fn hostile(&mut self, index: usize, group: GroupId, session: (i64, i16, i32)) {
        let id = self.make_batch(group, Some(session), None);
        let shard = self.model.groups.get(&group).map_or(0, |model| usize::from(model.shard));
        // Where the shard may have forgotten the session with reason it may take the batch.
        let forgiven = self.forgiven(shard);
        if let Some(batch) = self.model.batches.get_mut(id as usize) {
            batch.hostile = !forgiven;
        }
        self.produce(index, id, Acks::Quorum);
    }

    fn rogue_reply(&mut self, rogue: &mut Rogue, sent: &Sent, reply: Option<&Reply>) {
        let Some(id) = sent.batch else {
            rogue.asked = false;
            match reply {
                Some(Reply::Message(Response::InitProducerId(reply))) => {
                    self.new_producer(reply.producer_id);
                    rogue.producer = Some(reply.producer_id);
                }
                Some(Reply::Fetch { head, .. }) if head.batch_bytes > 0 => {
                    self.fail(format!("{} was answered with {head:?}", sent.request.describe()));
                }
                _ => {}
            }
            return;
        };
        let waited = rogue.waiting == Some(id);
        if waited {
            rogue.waiting = None;
        }
        match reply {
            Some(Reply::Message(Response::Produce(reply))) => {
                let gone = sent.request.group().and_then(|group| self.model.groups.get(&group));
                let gone = gone.is_none_or(|model| model.exists != Existence::Yes);
                let broke_rules =
                    !waited && self.model.batch(id).is_some_and(|batch| batch.session.is_some());
                if broke_rules && (self.forgiven(sent.shard) || gone) {
                    // The shard has lost what it knew of the session, and had a reason to.
                    *rogue = Rogue::default();
                    return;
                }
                let result = self.model.acked(id, reply, sent.claim_holds);
                self.check(result);
                if waited {
                    rogue.fenced_in = sent.request.group();
                }
            }
            _ if waited => *rogue = Rogue::default(),
            _ => {}
        }
    }

    // ---- the administrator ----

    fn step_admin(&mut self, index: usize, topics: &mut u32, busy: &mut bool) {
        if self.closing || *busy {
            return;
        }
        let request = match self.rng.below(40) {
            0 if *topics < 4 => {
                *topics += 1;
                let retention_bytes =
                    if self.rng.percent(40) { self.rng.magnitude(64 << 10, 1 << 20) as i64 } else { 0 };
                let partitions = self.rng.range(1, 3) as u32;
                let name = format!("extra-{topics}");
                Owned::CreateTopic {
                    name,
                    partitions,
                    quorums: Quorums::UNSET,
                    retention_bytes,
                    retention_ms: 0,
                }
            }
            1 => {
                let Some(catalog) = self.catalog.clone() else { return };
                if catalog.topics.len() < 2 || self.rng.percent(50) {
                    return;
                }
                let ids: Vec<u32> = catalog.topics.keys().copied().collect();
                let id = self.rng.pick(&ids);
                let Some(topic) = catalog.topics.get(&id) else { return };
                for (group, model) in &mut self.model.groups {
                    if group.topic.0 == id && model.exists == Existence::Yes {
                        model.exists = Existence::Maybe;
                    }
                }
                Owned::DeleteTopic { name: topic.spec.name.clone() }
            }
            2..6 => Owned::Metadata { start_after: 0 },
            6..10 => {
                let Some((group, shard)) = self.pick_group() else { return };
                let describe = DescribePartitionsRequest { topic: group.topic.0, first: 0, count: 100 };
                *busy = self.request(index, shard, Owned::Describe(describe), None);
                return;
            }
            10..12 => Owned::Ping,
            _ => return,
        };
        *busy = self.request(index, 0, request, None);
    }

    fn admin_reply(&mut self, sent: &Sent, reply: Option<&Reply>) {
        match (&sent.request, reply) {
            (Owned::DeleteTopic { name }, Some(Reply::Message(Response::DeleteTopic))) => {
                let there =
                    self.catalog.as_ref().is_some_and(|catalog| catalog.topic_by_name(name).is_some());
                if there {
                    self.fail(format!("topic {name} was deleted and is still in the catalogue"));
                }
            }
            (Owned::CreateTopic { name, .. }, Some(Reply::Message(Response::CreateTopic(reply)))) => {
                let known = self.catalog.as_ref().and_then(|catalog| catalog.topic_by_name(name));
                if known.is_none_or(|topic| topic.id != reply.id) {
                    self.fail(format!(
                        "topic {name} was created with id {} and is not in the catalogue",
                        reply.id
                    ));
                }
            }
            (Owned::Describe(_), Some(Reply::Message(Response::DescribePartitions(states)))) => {
                for state in states {
                    let ordered =
                        state.log_start <= state.high_watermark && state.high_watermark <= state.log_end;
                    if !ordered || state.flushed > state.high_watermark {
                        self.fail(format!("offsets out of order in {state:?}"));
                    }
                    if state.health != PartitionHealth::Online && !self.shards[sent.shard].disk.tracker.lied()
                    {
                        self.fail(format!("{state:?} on a disk that never lied"));
                    }
                }
            }
            (Owned::Metadata { .. }, Some(Reply::Message(Response::Metadata(reply)))) => {
                let known = self.catalog.as_ref().map_or(0, |catalog| catalog.version);
                if reply.version > known {
                    self.fail(format!(
                        "metadata of version {} before it was published ({known})",
                        reply.version
                    ));
                }
            }
            _ => {}
        }
    }

    // ---- the simulator's own calls ----

    /// Sends a request and lets the world run until it is answered; `None` when the connection was lost or the
    /// shard is not there.
    pub(crate) fn call(&mut self, shard: usize, request: Owned, batch: Option<u64>) -> Option<(Sent, Reply)> {
        let index = 0;
        self.clients[index].role = Role::Harness { answer: None };
        if !self.request(index, shard, request, batch) {
            let until = self.now_us + 20_000;
            while self.now_us < until && !self.over() && self.step() {}
            return None;
        }
        let until = self.now_us + 120_000_000;
        while !self.over() && self.now_us < until {
            if let Role::Harness { answer } = &mut self.clients[index].role
                && let Some(answer) = answer.take()
            {
                return match answer {
                    Answer::Reply(both) => Some(*both),
                    Answer::Lost => None,
                };
            }
            if !self.step() {
                break;
            }
        }
        if !self.over() {
            self.fail("a request was never answered".into());
        }
        None
    }
}
