//! The clients of the simulated cluster: they learn from any node who leads what, and go on there; producers without a
//! session, consumers, an administrator. Idempotent producers are in `session`.

use std::collections::BTreeMap;
use std::rc::Rc;

use pyralog_core::{ErrorCode, GroupId, Outcome};
use pyralog_net::message::{
    Acks, Consistency, FetchRequest, ListOffsetsRequest, MetadataReply, OffsetSpec, ProduceReply, Response,
};
use pyralog_shard::engine::ConnId;

use super::config::{TopicPlan, topic};
use super::session::Session;
use super::world::{Happening, Seat, World};
use crate::batch::{self, Spec};
use crate::faults::FaultKind;
use crate::model::{Existence, Produced};
use crate::request::{Owned, Reply};

/// A request and what its sender remembers of it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub request: Owned,
    /// The batch, of a produce.
    pub batch: Option<u64>,
    pub answered: bool,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    pub role: Role,
    conns: BTreeMap<Seat, ConnId>,
    map: Map,
    step_scheduled: bool,
}

/// What a client knows of the cluster.
#[derive(Debug, Default)]
struct Map {
    controller: Option<Seat>,
    leaders: BTreeMap<GroupId, Seat>,
    replicas: BTreeMap<GroupId, Vec<Seat>>,
    /// It was wrong somewhere.
    stale: bool,
    asked: bool,
}

/// What a client does.
#[derive(Debug)]
pub(crate) enum Role {
    /// Produces in an idempotent session and tries again until it is answered.
    Idempotent(Session),
    /// Produces once and never again.
    Plain,
    /// Reads.
    Consumer(Reader),
    /// Creates and deletes topics.
    Admin(Admin),
    /// The simulator's own calls.
    Harness { answer: Option<Option<Reply>> },
    /// Being stepped.
    Away,
}

/// A consumer.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    group: Option<GroupId>,
    offset: Option<i64>,
    busy: bool,
}

/// An administrator.
#[derive(Debug, Default)]
pub(crate) struct Admin {
    /// Topics that are there from the start and still to be made.
    first: Vec<(String, TopicPlan)>,
    made: u32,
    busy: bool,
}

impl Admin {
    /// One that makes these topics first.
    pub(crate) fn new(first: Vec<(String, TopicPlan)>) -> Self {
        Self { first, ..Self::default() }
    }
}

impl Client {
    fn new(role: Role) -> Self {
        let map = Map { stale: true, ..Map::default() };
        Self { role, conns: BTreeMap::new(), map, step_scheduled: false }
    }

    /// What it knows of the cluster has been wrong.
    pub(crate) fn forget_the_way(&mut self) {
        self.map.stale = true;
    }

    /// Whether what it knows of the cluster was wrong somewhere.
    pub(crate) fn needs_a_map(&self) -> bool {
        self.map.stale
    }
}

impl World {
    /// Adds a client and has it begin.
    pub(crate) fn add_client(&mut self, role: Role) -> usize {
        self.clients.push(Client::new(role));
        let index = self.clients.len() - 1;
        self.step_later(index);
        index
    }

    fn step_later(&mut self, index: usize) {
        if !std::mem::replace(&mut self.clients[index].step_scheduled, true) {
            let delay = self.rng.range(1, self.config.think_us);
            self.schedule(delay, Happening::ClientStep(index));
        }
    }

    pub(crate) fn client_step(&mut self, index: usize) {
        self.clients[index].step_scheduled = false;
        if self.rng.one_in(self.config.troubles.disconnect) && !self.closing {
            let conn = self.clients[index].conns.values().next().copied();
            if let Some(conn) = conn {
                self.node_counts.add(FaultKind::Disconnect);
                self.close(conn);
            }
        }
        if matches!(self.clients[index].role, Role::Harness { .. } | Role::Away) {
            return;
        }
        self.look_around(index);
        let mut role = std::mem::replace(&mut self.clients[index].role, Role::Away);
        match &mut role {
            Role::Idempotent(session) => self.step_session(index, session),
            Role::Plain => self.step_plain(index),
            Role::Consumer(reader) => self.step_reader(index, reader),
            Role::Admin(admin) => self.step_admin(index, admin),
            Role::Harness { .. } | Role::Away => {}
        }
        self.clients[index].role = role;
        self.step_later(index);
    }

    /// What became of a request: a reply, or none because the connection closed.
    pub(crate) fn client_reply(&mut self, index: usize, sent: Sent, reply: Option<Reply>) {
        if let Owned::Metadata { .. } = sent.request
            && !matches!(self.clients[index].role, Role::Harness { .. })
        {
            return self.looked_around(index, reply.as_ref());
        }
        let moved = |code| {
            matches!(
                code,
                ErrorCode::NotLeader
                    | ErrorCode::NotController
                    | ErrorCode::UnknownTopicOrPartition
                    | ErrorCode::LeaderChanged
                    | ErrorCode::NotReady
                    | ErrorCode::Fenced
                    | ErrorCode::LogEndUnknown
            )
        };
        if reply.as_ref().is_none_or(|reply| reply.error().is_some_and(moved)) {
            self.clients[index].map.stale = true;
        }
        let mut role = std::mem::replace(&mut self.clients[index].role, Role::Away);
        match &mut role {
            Role::Idempotent(session) => self.session_reply(session, &sent, reply.as_ref()),
            Role::Plain => self.plain_reply(&sent, reply.as_ref()),
            Role::Consumer(reader) => self.reader_reply(reader, &sent, reply.as_ref()),
            Role::Admin(admin) => self.admin_reply(admin, &sent, reply.as_ref()),
            Role::Harness { answer } => *answer = Some(reply),
            // A connection closed under the client's own step: it finds it gone.
            Role::Away => return,
        }
        self.clients[index].role = role;
    }

    pub(crate) fn client_disconnected(&mut self, index: usize, conn: ConnId) {
        self.clients[index].conns.retain(|_, open| *open != conn);
    }

    // ---- finding the way ----

    /// Asks some node for the metadata when what the client knows was wrong somewhere.
    fn look_around(&mut self, index: usize) {
        let map = &self.clients[index].map;
        if !map.stale || map.asked {
            return;
        }
        let node = self.rng.below(self.config.nodes as u64) as usize;
        let seat = Seat { node, shard: self.rng.below(self.nodes[node].count as u64) as usize };
        let asked = self.request(index, seat, Owned::Metadata { start_after: 0 }, None);
        self.clients[index].map.asked = asked;
    }

    /// What a node told of the cluster.
    pub(crate) fn looked_around(&mut self, index: usize, reply: Option<&Reply>) {
        let map = &mut self.clients[index].map;
        map.asked = false;
        if let Some(Reply::Message(Response::Metadata(told))) = reply {
            map.stale = false;
            map.learn(told);
        }
    }

    /// Where the client believes that a group is led. It guesses where it does not know.
    pub(crate) fn leader_seat(&mut self, index: usize, group: GroupId) -> Option<Seat> {
        let map = &self.clients[index].map;
        if let Some(leader) = map.leaders.get(&group) {
            return Some(*leader);
        }
        self.clients[index].map.stale = true;
        self.any_replica(index, group)
    }

    fn any_replica(&mut self, index: usize, group: GroupId) -> Option<Seat> {
        let replicas = self.clients[index].map.replicas.get(&group)?;
        (!replicas.is_empty()).then(|| self.rng.pick(replicas))
    }

    /// Where the client believes that administrative requests go.
    pub(crate) fn controller_seat(&mut self, index: usize) -> Seat {
        match self.clients[index].map.controller {
            Some(seat) => seat,
            None => {
                self.clients[index].map.stale = true;
                Seat { node: self.rng.below(self.config.nodes as u64) as usize, shard: 0 }
            }
        }
    }

    /// Sends a request; false when there is no connection to be had.
    pub(crate) fn request(&mut self, index: usize, seat: Seat, request: Owned, batch: Option<u64>) -> bool {
        let conn = match self.clients[index].conns.get(&seat).copied() {
            Some(conn) => conn,
            None => match self.connect(index, seat) {
                Some(conn) => {
                    self.clients[index].conns.insert(seat, conn);
                    conn
                }
                None => {
                    self.clients[index].map.stale = true;
                    return false;
                }
            },
        };
        let text = request.describe();
        let sent = Sent { request, batch, answered: false };
        let correlation = self.send(conn, sent);
        self.note(|| format!("c{index} to {seat} {}.{} {text}", conn.0, correlation.unwrap_or_default()));
        correlation.is_some()
    }

    // ---- batches ----

    /// A partition that is there.
    pub(crate) fn pick_group(&mut self) -> Option<GroupId> {
        let there = self.model.groups.iter().filter(|(_, model)| model.exists == Existence::Yes);
        let groups: Vec<GroupId> = there.map(|(group, _)| *group).collect();
        (!groups.is_empty()).then(|| self.rng.pick(&groups))
    }

    /// Makes a batch; returns its id.
    pub(crate) fn make_batch(&mut self, group: GroupId, session: Option<(i64, i16, i32)>) -> u64 {
        let (low, high) = self.config.value_bytes;
        let value_bytes = self.rng.magnitude(low, high) as usize;
        let records = self.rng.magnitude(1, 20).min(value_bytes as u64 / 8 + 1) as u32;
        let (producer_id, producer_epoch, sequence) = session.unwrap_or((-1, -1, -1));
        let id = self.model.batches.len() as u64;
        let timestamp = self.now(0).wall_ms;
        let spec = Spec { id, records, value_bytes, timestamp, producer_id, producer_epoch, sequence };
        let bytes: Rc<[u8]> = batch::encode(&spec).into();
        self.produced += 1;
        self.produced_bytes += bytes.len() as u64;
        self.model.produced(Produced {
            group,
            bytes,
            records,
            timestamp,
            made_ms: timestamp,
            session,
            refused: false,
            hostile: false,
        })
    }

    /// Whether producers may make more.
    pub(crate) fn budget_left(&self) -> bool {
        !self.closing
            && self.produced < self.config.produce_budget
            && self.produced_bytes < self.config.byte_budget
    }

    /// Sends a batch to where its partition is led.
    pub(crate) fn produce(&mut self, index: usize, id: u64, acks: Acks) -> bool {
        let Some(batch) = self.model.batch(id) else { return false };
        let (group, bytes) = (batch.group, Rc::clone(&batch.bytes));
        let Some(seat) = self.leader_seat(index, group) else { return false };
        let timeout_ms = if self.rng.one_in(10) { self.rng.range(1, 500) as u32 } else { 0 };
        self.request(index, seat, Owned::Produce { group, acks, timeout_ms, batch: bytes }, Some(id))
    }

    /// A produce was acknowledged.
    pub(crate) fn acknowledged(&mut self, sent: &Sent, reply: &ProduceReply) {
        let (Some(id), Owned::Produce { acks, group, .. }) = (sent.batch, &sent.request) else { return };
        if *acks == Acks::Quorum && self.must_be_there(*group) {
            let result = self.model.acked(id, reply, true);
            self.check(result);
        }
    }

    // ---- producers without a session ----

    fn step_plain(&mut self, index: usize) {
        if !self.budget_left() {
            return;
        }
        let Some(group) = self.pick_group() else { return };
        let acks = self.rng.pick(&[Acks::Quorum, Acks::Quorum, Acks::Leader, Acks::None]);
        let id = self.make_batch(group, None);
        if !self.produce(index, id, acks) {
            self.refused(id);
        }
    }

    fn plain_reply(&mut self, sent: &Sent, reply: Option<&Reply>) {
        match reply {
            Some(Reply::Message(Response::Produce(reply))) => self.acknowledged(sent, reply),
            Some(Reply::Message(Response::Error(error))) if error.code.outcome() == Outcome::NotAccepted => {
                sent.batch.into_iter().for_each(|id| self.refused(id));
            }
            _ => {}
        }
    }

    /// A batch that was sent once and refused for certain: it may never show up.
    fn refused(&mut self, id: u64) {
        if let Some(batch) = self.model.batches.get_mut(id as usize) {
            batch.refused = true;
        }
    }

    // ---- consumers ----

    fn step_reader(&mut self, index: usize, reader: &mut Reader) {
        if reader.busy || self.closing {
            return;
        }
        let there = |world: &Self, group: &GroupId| {
            world.model.groups.get(group).is_some_and(|model| model.exists == Existence::Yes)
        };
        if reader.group.is_none_or(|group| !there(self, &group)) || self.rng.one_in(60) {
            *reader = Reader { group: self.pick_group(), ..Reader::default() };
        }
        let Some(group) = reader.group else { return };
        let anywhere = self.config.reads_anywhere && self.rng.percent(60);
        let seat = if anywhere { self.any_replica(index, group) } else { self.leader_seat(index, group) };
        let Some(seat) = seat else { return };
        let consistency = match anywhere {
            true => Consistency::AnyReplica,
            false => self.rng.pick(&[Consistency::Leader, Consistency::Leader, Consistency::Linearizable]),
        };
        let request = match reader.offset {
            None => {
                let spec = self.rng.pick(&[OffsetSpec::Earliest, OffsetSpec::Earliest, OffsetSpec::Latest]);
                Owned::ListOffsets(ListOffsetsRequest { group, spec, consistency })
            }
            Some(offset) => {
                let max_wait_ms = if self.rng.percent(50) { self.rng.magnitude(1, 1_000) as u32 } else { 0 };
                let max_bytes = self.rng.magnitude(1, 1 << 20) as u32;
                Owned::Fetch(FetchRequest {
                    group,
                    offset,
                    min_bytes: 1,
                    max_bytes,
                    max_wait_ms,
                    consistency,
                })
            }
        };
        reader.busy = self.request(index, seat, request, None);
    }

    fn reader_reply(&mut self, reader: &mut Reader, sent: &Sent, reply: Option<&Reply>) {
        reader.busy = false;
        match (&sent.request, reply) {
            (Owned::ListOffsets(_), Some(Reply::Message(Response::ListOffsets(reply)))) => {
                reader.offset = Some(reply.offset);
            }
            (Owned::Fetch(fetch), Some(reply @ Reply::Fetch { .. })) => {
                let next = self.check_fetch(fetch, reply);
                reader.offset = next.or(reader.offset);
            }
            // Retention, a replica that knows less, or damage: from somewhere else.
            (_, Some(reply)) if reply.error().is_some_and(|code| !code.retriable()) => reader.offset = None,
            _ => {}
        }
    }

    /// Checks what a fetch came to: what is read is committed, the same for everybody and for ever. Returns where to go on.
    pub(crate) fn check_fetch(&mut self, fetch: &FetchRequest, reply: &Reply) -> Option<i64> {
        let Reply::Fetch { head, slices } = reply else { return None };
        let group = fetch.group;
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.bytes()).copied().collect();
        if bytes.len() != head.batch_bytes as usize {
            self.fail(format!("{group}: a fetch announced {} bytes, {} came", head.batch_bytes, bytes.len()));
        }
        if !self.must_be_there(group) {
            return Some(fetch.offset);
        }
        match self.model.fetched(group, fetch.offset, head.high_watermark, &bytes, true) {
            Ok(next) => Some(next),
            Err(what) => {
                self.fail(what);
                None
            }
        }
    }

    // ---- administration ----

    fn step_admin(&mut self, index: usize, admin: &mut Admin) {
        if admin.busy || self.closing {
            return;
        }
        let seat = self.controller_seat(index);
        let first = admin.first.last().map(|(name, plan)| create(name.clone(), plan));
        let request = match first {
            Some(request) => request,
            None if self.config.moves && self.rng.one_in(20) => match self.reassign() {
                Some(request) => request,
                None => return,
            },
            None if self.rng.one_in(100) => {
                let name = format!("extra-{}", self.rng.below(3));
                match self.rng.percent(60) {
                    true if admin.made < 4 => {
                        admin.made += 1;
                        let liars = self.config.disks.liars.len();
                        // A copy alone on a lying disk is worth nothing, nor are two of three.
                        let copies = match liars {
                            0 => self.rng.pick(&[1, 3, 3]),
                            1 => 3,
                            _ => self.config.nodes,
                        };
                        let plan = topic(&mut self.rng, copies, liars);
                        create(name, &TopicPlan { partitions: 1, ..plan })
                    }
                    _ => self.delete(name),
                }
            }
            None => return,
        };
        admin.busy = self.request(index, seat, request, None);
    }

    /// Some partition is to be on other nodes, or to stay where it is; or some topic is to have other numbers of replicas.
    fn reassign(&mut self) -> Option<Owned> {
        let catalog = self.catalog.clone()?;
        let fewest = self.config.fewest_copies as u8;
        let topics: Vec<_> =
            catalog.topics.values().filter(|topic| topic.spec.replication_factor >= fewest.min(2)).collect();
        if topics.is_empty() {
            return None;
        }
        let topic = self.rng.pick(&topics);
        if self.config.resizes && self.rng.percent(20) {
            let (topic, copies) =
                (topic.name().to_owned(), self.rng.range(u64::from(fewest), self.config.nodes as u64) as u8);
            return Some(Owned::Resize { topic, copies });
        }
        let partition = self.rng.below(u64::from(topic.partitions())) as u32;
        let mut nodes: Vec<u32> = (1..=self.config.nodes as u32).collect();
        while nodes.len() > usize::from(topic.spec.replication_factor) {
            nodes.swap_remove(self.rng.below(nodes.len() as u64) as usize);
        }
        let first = self.rng.below(nodes.len() as u64) as usize;
        nodes.swap(0, first);
        if self.rng.percent(15) {
            nodes.clear();
        }
        Some(Owned::Reassign { topic: topic.name().to_owned(), partition, nodes })
    }

    /// From now on the topic may be gone.
    fn delete(&mut self, name: String) -> Owned {
        self.books.deletions.insert(name.clone());
        let topic =
            self.catalog.as_ref().and_then(|catalog| catalog.topic_by_name(&name)).map(|topic| topic.id);
        for (group, model) in &mut self.model.groups {
            if Some(group.topic.0) == topic && model.exists == Existence::Yes {
                model.exists = Existence::Maybe;
            }
        }
        Owned::DeleteTopic { name }
    }

    fn admin_reply(&mut self, admin: &mut Admin, sent: &Sent, reply: Option<&Reply>) {
        admin.busy = false;
        let Some(Reply::Message(message)) = reply else { return };
        if let Owned::DeleteTopic { name } = &sent.request
            && !reply.and_then(Reply::error).is_some_and(|code| code.outcome() == Outcome::Unknown)
        {
            // It was done or refused: nothing of it comes later.
            self.books.deletions.remove(name);
        }
        if let (Owned::Reassign { .. } | Owned::Resize { .. }, Response::Error(error)) =
            (&sent.request, message)
        {
            let refused = [
                ErrorCode::InvalidRequest,
                ErrorCode::InvalidTopic,
                ErrorCode::UnknownTopicOrPartition,
                // Not all nodes support moves, or some have not registered yet.
                ErrorCode::UnsupportedVersion,
            ];
            let damaged = error.code == ErrorCode::LogEndUnknown && !self.config.disks.liars.is_empty();
            if !error.code.retriable() && !refused.contains(&error.code) && !damaged {
                self.fail(format!("a move was answered {error:?}"));
            }
        }
        let Owned::CreateTopic { name, .. } = &sent.request else { return };
        match message {
            Response::CreateTopic(reply) => {
                admin.first.retain(|(first, _)| first != name);
                let known = self.catalog.as_ref().and_then(|catalog| catalog.topics.get(&reply.id));
                let gone = self.catalog.as_ref().is_some_and(|catalog| catalog.next_topic_id > reply.id);
                if known.is_none() && !gone {
                    self.fail(format!("topic {name} was created and is in no catalogue"));
                }
            }
            Response::Error(error) if error.code == ErrorCode::TopicAlreadyExists => {
                admin.first.retain(|(first, _)| first != name);
            }
            // As long as not all nodes are registered there is no place for all copies.
            Response::Error(error) if error.code.retriable() || error.code == ErrorCode::InvalidTopic => {}
            // A node whose metadata is damaged says so instead of naming another one.
            Response::Error(error)
                if error.code == ErrorCode::LogEndUnknown && !self.config.disks.liars.is_empty() => {}
            other => self.fail(format!("creating {name} was answered {other:?}")),
        }
    }
}

fn create(name: String, plan: &TopicPlan) -> Owned {
    let TopicPlan { partitions, quorums, retention_bytes } = *plan;
    Owned::CreateTopic { name, partitions, quorums, retention_bytes, retention_ms: 0 }
}

impl Map {
    fn learn(&mut self, told: &MetadataReply) {
        let seat = |node: u32, shard: u16| {
            let node = (node as usize).checked_sub(1)?;
            Some(Seat { node, shard: usize::from(shard) })
        };
        self.controller = seat(told.controller, 0);
        self.leaders.clear();
        self.replicas.clear();
        for topic in &told.topics {
            for (partition, at) in topic.partitions.iter().enumerate() {
                let group = GroupId::new(topic.id, partition as u32);
                let replicas = at.replicas.iter().filter_map(|replica| seat(replica.node, replica.shard));
                self.replicas.insert(group, replicas.collect());
                match seat(at.leader, at.shard) {
                    Some(leader) => _ = self.leaders.insert(group, leader),
                    // Nobody leads it now: asked again at once.
                    None => self.stale = true,
                }
            }
        }
        self.stale |= self.controller.is_none();
    }
}
