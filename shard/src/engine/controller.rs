//! Metadata. On shard 0: admin requests become commands in the metadata group; a committed command changes
//! the catalogue, which is published to every shard. On every shard: partitions are opened and dropped as the
//! catalogue says, through the shard's own journal.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use pyralog_core::batch::{BatchBuilder, BatchView, Compression};
use pyralog_core::{ErrorCode, GroupId, Quorums, ShardId};
use pyralog_net::message::{
    CreateTopicReply, CreateTopicRequest, DeleteTopicRequest, ErrorReply, InitProducerIdReply, Response,
};
use pyralog_replication::metadata::{Catalog, Command, TopicSpec};
use pyralog_replication::placement::place;
use pyralog_replication::raft::{Configuration, RecoveredLog, Standing};

use crate::format::journal::{FrameHeader, FrameKind};

use super::partition::Partition;
use super::pending::Pending;
use super::replica::{Replica, Unplaced};
use super::{Action, ConnId, Engine, IoOp, LogLevel, Mode, reply};

/// Producer ids reserved by one command.
const PRODUCER_ID_BLOCK: u32 = 1_000;
/// Bits of a producer id below the number of the journal's life. Where the fsync policy lets a power loss take
/// committed reservations back, ids would be handed out again and new batches taken for duplicates; the life
/// keeps them apart, because its first commit is always durable.
const PRODUCER_ID_LIFE_SHIFT: u32 = 40;
/// Admin requests that may wait at once.
const MAX_WAITING_ADMIN: usize = 4_096;

/// A client that waits for a metadata change.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) conn: ConnId,
    pub(super) correlation_id: u64,
    pub(super) answer: Response,
}

/// How a partition is opened of which the disk holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Opening {
    /// Nobody has written to it.
    New = 0,
    /// The disk has lost it, and the others have it.
    Rejoins = 1,
    /// The disk has lost it, and nobody else has it.
    Lost = 2,
}

/// A command in the metadata group that is not committed yet.
#[derive(Debug)]
struct InFlight {
    next_offset: i64,
    command: Command,
    client: Option<Client>,
}

/// Shard 0's part.
#[derive(Debug)]
pub(super) struct Controller {
    /// Committed commands applied.
    committed: Catalog,
    /// The same with the commands in flight: new ones are checked against it.
    tentative: Catalog,
    in_flight: VecDeque<InFlight>,
    /// Clients that wait until every shard serves a version.
    applying: VecDeque<(u64, Client)>,
    /// The version that each shard serves.
    applied: Vec<u64>,
    /// Reserved and not yet handed out, life included.
    producer_ids: Range<i64>,
    waiting_for_ids: VecDeque<(ConnId, u64)>,
    reserving: bool,
    pub(super) builder: BatchBuilder,
}

impl Controller {
    /// A controller that goes on from the recovered catalogue.
    pub(super) fn new(catalog: Catalog, shards: u16) -> Self {
        Self {
            tentative: catalog.clone(),
            committed: catalog,
            in_flight: VecDeque::new(),
            applying: VecDeque::new(),
            applied: vec![0; usize::from(shards)],
            producer_ids: 0..0,
            waiting_for_ids: VecDeque::new(),
            reserving: false,
            builder: BatchBuilder::new(),
        }
    }

    /// The catalogue that the next command is checked against: while nothing is in flight, others may have gone on with it.
    pub(super) fn newest(&self) -> &Catalog {
        match self.in_flight.is_empty() {
            true => &self.committed,
            false => &self.tentative,
        }
    }

    /// The committed catalogue.
    pub(super) fn catalog(&self) -> &Catalog {
        &self.committed
    }

    /// Applies the next committed command, and has the client wait for every shard that asked for it here. `life` is in the
    /// producer ids that are reserved.
    fn apply(&mut self, command: &Command, life: i64) {
        let next_offset = self.committed.version as i64 + 1;
        let (topic, producer_id) = (self.committed.next_topic_id, life | self.committed.next_producer_id);
        let applied = self.committed.apply(command);
        let own = self.in_flight.front().is_some_and(|first| first.next_offset == next_offset);
        let Some(done) = own.then(|| self.in_flight.pop_front()).flatten() else { return };
        if let Command::ReserveProducerIds { count } = done.command {
            self.reserving = false;
            if applied.is_ok() {
                self.producer_ids = producer_id..producer_id + i64::from(count);
            }
        }
        let Some(mut client) = done.client else { return };
        // The catalogue that the command met counts, not the one that it was checked against.
        match (applied, &mut client.answer) {
            (Err((code, detail)), answer) => *answer = Response::Error(ErrorReply { code, detail }),
            (Ok(()), Response::CreateTopic(created)) => created.id = topic,
            (Ok(()), _) => {}
        }
        self.applying.push_back((self.committed.version, client));
    }
}

impl Engine {
    pub(super) fn create_topic(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &CreateTopicRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        if !self.takes_admin(conn, correlation_id, actions) {
            return;
        }
        if let Err((code, detail)) = self.register_node() {
            return self.refuse(conn, correlation_id, code, detail, actions);
        }
        let Some(newest) = self.controller.as_ref().map(Controller::newest) else { return };
        let quorums = Quorums::resolve(request.quorums, self.config.topic_quorums);
        // Before the nodes are looked at: a number that never fits is not the lack of a node.
        let placed = quorums.check().and_then(|()| {
            place(newest, request.partitions, quorums.replication_factor).map_err(|error| error.to_string())
        });
        let assignment = match placed {
            Ok(assignment) => assignment,
            Err(detail) => {
                return self.refuse(conn, correlation_id, ErrorCode::InvalidTopic, detail, actions);
            }
        };
        let command = Command::CreateTopic(TopicSpec {
            name: request.name.to_owned(),
            assignment,
            replication_factor: quorums.replication_factor,
            write_quorum: quorums.write_quorum,
            read_quorum: quorums.read_quorum,
            min_insync_replicas: quorums.min_insync_replicas,
            retention_bytes: request.retention_bytes,
            retention_ms: request.retention_ms,
        });
        let answer = Response::CreateTopic(CreateTopicReply { id: newest.next_topic_id });
        self.admin(Client { conn, correlation_id, answer }, command, actions);
    }

    pub(super) fn delete_topic(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &DeleteTopicRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        let Some(newest) = self.newest_for(conn, correlation_id, actions) else { return };
        let Some(topic) = newest.topic_by_name(request.name).map(|topic| topic.id) else {
            let detail = format!("no topic {:?}", request.name);
            return self.refuse(conn, correlation_id, ErrorCode::UnknownTopicOrPartition, detail, actions);
        };
        let client = Client { conn, correlation_id, answer: Response::DeleteTopic };
        self.admin(client, Command::DeleteTopic { topic }, actions);
    }

    pub(super) fn init_producer_id(&mut self, conn: ConnId, correlation_id: u64, actions: &mut Vec<Action>) {
        let controls = self.controls();
        let Some(controller) = self.controller.as_mut().filter(|_| controls) else {
            return self.refuse_admin(conn, correlation_id, actions);
        };
        if let Some(producer_id) = controller.producer_ids.next() {
            let answer = InitProducerIdReply { producer_id, producer_epoch: 0 };
            return reply(conn, correlation_id, Response::InitProducerId(answer), actions);
        }
        if controller.waiting_for_ids.len() >= MAX_WAITING_ADMIN {
            let detail = format!("{MAX_WAITING_ADMIN} producers wait for their ids");
            return self.refuse(conn, correlation_id, ErrorCode::Overloaded, detail, actions);
        }
        controller.waiting_for_ids.push_back((conn, correlation_id));
        self.reserve_producer_ids(actions);
    }

    /// This node does not lead the metadata group any more: nobody learns from it how a change ended.
    pub(super) fn metadata_leadership_lost(&mut self, actions: &mut Vec<Action>) {
        let Some(controller) = &mut self.controller else { return };
        controller.reserving = false;
        // The others may have gone on with as many commands, and other ones.
        controller.tentative = controller.committed.clone();
        let unknown: Vec<Client> = controller.in_flight.drain(..).filter_map(|waits| waits.client).collect();
        let not_taken: Vec<_> = controller.waiting_for_ids.drain(..).collect();
        // Its own registration may be among them.
        self.register_due_us = Some(self.now.monotonic_us);
        for Client { conn, correlation_id, .. } in unknown {
            self.refuse(conn, correlation_id, ErrorCode::LeaderChanged, String::new(), actions);
        }
        for (conn, correlation_id) in not_taken {
            self.refuse_admin(conn, correlation_id, actions);
        }
    }

    /// Whether this shard takes metadata changes: it holds the metadata, and leads their group, with everything of
    /// earlier leaders committed.
    pub(super) fn controls(&self) -> bool {
        let metadata = self.find(GroupId::METADATA).and_then(|index| self.at(index));
        self.controller.is_some()
            && metadata.is_some_and(|partition| match &partition.replica {
                Replica::Single(_) => true,
                Replica::Raft(replica) => replica.raft.leads_surely(),
                Replica::Unplaced(_) => false,
            })
    }

    /// Whether a metadata change, or a question that only its leader answers, is for this shard, which has seen all that is committed
    /// then; the client is told if not.
    pub(super) fn takes_admin(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        actions: &mut Vec<Action>,
    ) -> bool {
        if !self.controls() {
            self.refuse_admin(conn, correlation_id, actions);
            return false;
        }
        self.see_commits(actions);
        true
    }

    /// The catalogue that a command is checked against which a client asks for; none if it is not for this shard.
    pub(super) fn newest_for(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        actions: &mut Vec<Action>,
    ) -> Option<&Catalog> {
        self.takes_admin(conn, correlation_id, actions).then_some(())?;
        self.controller.as_ref().map(Controller::newest)
    }

    /// What is committed is applied at the end of a pass. A leader of the metadata that has just come to know all that those
    /// before it have committed must not answer from before that.
    pub(super) fn see_commits(&mut self, actions: &mut Vec<Action>) {
        let index = self.find(GroupId::METADATA);
        if let Some(replica) = index.and_then(|index| self.raft_mut(index)) {
            let high_watermark = replica.raft.high_watermark();
            self.metadata_committed(high_watermark, actions);
        }
    }

    /// Reserves the next block of producer ids, once.
    fn reserve_producer_ids(&mut self, actions: &mut Vec<Action>) {
        let Some(controller) = &self.controller else { return };
        if controller.reserving || controller.waiting_for_ids.is_empty() {
            return;
        }
        match self.append_command(Command::ReserveProducerIds { count: PRODUCER_ID_BLOCK }, None) {
            Ok(()) => {
                if let Some(controller) = &mut self.controller {
                    controller.reserving = true;
                }
            }
            Err((code, detail)) => {
                let waiting = self.controller.as_mut().map(|c| std::mem::take(&mut c.waiting_for_ids));
                for (conn, correlation_id) in waiting.into_iter().flatten() {
                    self.refuse(conn, correlation_id, code, detail.clone(), actions);
                }
            }
        }
    }

    pub(super) fn refuse_admin(&mut self, conn: ConnId, correlation_id: u64, actions: &mut Vec<Action>) {
        let leader = self.raft_of(GroupId::METADATA).and_then(|replica| replica.raft.leader());
        let detail = match leader {
            Some(node) => format!("node {node} leads the metadata"),
            None if self.controller.is_some() => "nobody leads the metadata now".into(),
            None => format!("this is shard {}", self.config.shard),
        };
        self.refuse(conn, correlation_id, ErrorCode::NotController, detail, actions);
    }

    pub(super) fn admin(&mut self, client: Client, command: Command, actions: &mut Vec<Action>) {
        let (conn, correlation_id) = (client.conn, client.correlation_id);
        if let Err((code, detail)) = self.append_command(command, Some(client)) {
            self.refuse(conn, correlation_id, code, detail, actions);
        }
    }

    /// Checks a command and appends it to the metadata group.
    pub(super) fn append_command(
        &mut self,
        command: Command,
        client: Option<Client>,
    ) -> Result<(), (ErrorCode, String)> {
        if let Mode::Fenced(reason) = &self.mode {
            return Err((ErrorCode::Fenced, reason.clone()));
        }
        if self.stalled {
            return Err(self.no_room());
        }
        let index = self
            .find(GroupId::METADATA)
            .ok_or((ErrorCode::Internal, "the metadata group is not on this shard".to_owned()))?;
        if self.at(index).is_some_and(|partition| partition.end_unknown) {
            return Err((ErrorCode::LogEndUnknown, "the metadata group is damaged".into()));
        }
        if !self.controls() {
            return Err((ErrorCode::NotController, String::new()));
        }
        let timestamp = self.now.wall_ms;
        let Some(controller) = &self.controller else {
            return Err((ErrorCode::NotController, String::new()));
        };
        if controller.in_flight.len() + controller.applying.len() >= MAX_WAITING_ADMIN {
            return Err((
                ErrorCode::Overloaded,
                format!("{MAX_WAITING_ADMIN} metadata changes are under way"),
            ));
        }
        self.check_command(&command)?;
        let Some(controller) = &mut self.controller else {
            return Err((ErrorCode::NotController, String::new()));
        };
        if controller.in_flight.is_empty() && controller.tentative.version != controller.committed.version {
            // It followed others meanwhile.
            controller.tentative = controller.committed.clone();
        }
        let mut builder = std::mem::take(&mut controller.builder);
        let built = build_command(&mut builder, timestamp, &command);
        let appended = built.and_then(|bytes| {
            let batch =
                BatchView::parse_exact(&bytes).map_err(|error| (ErrorCode::Internal, error.to_string()))?;
            self.append(index, &batch)
        });
        let Some(controller) = &mut self.controller else {
            return Err((ErrorCode::NotController, String::new()));
        };
        controller.builder = builder;
        let (_, next_offset) = appended?;
        // It was checked against the same just now.
        let _ = controller.tentative.apply(&command);
        let joins = matches!(command, Command::RegisterNode(_));
        controller.in_flight.push_back(InFlight { next_offset, command, client });
        match self.at(index).is_some_and(|partition| partition.replica.raft().is_some()) {
            true => self.queue_group(index),
            false => self.attach(Pending::Metadata { next_offset }),
        }
        if joins {
            self.raise_feature_level();
        }
        Ok(())
    }

    fn check_command(&self, command: &Command) -> Result<(), (ErrorCode, String)> {
        #[cfg(feature = "planted-bugs")]
        if self.planted_raises(command) {
            return Ok(());
        }
        self.controller.as_ref().map_or(Ok(()), |controller| controller.newest().check(command))
    }

    /// Commands below `high_watermark` are committed: apply them and publish the catalogue.
    pub(super) fn metadata_committed(&mut self, high_watermark: i64, actions: &mut Vec<Action>) {
        let mut any = false;
        loop {
            match self.next_committed(high_watermark) {
                Ok(Some(command)) => self.apply_committed(&command),
                Ok(None) => break,
                Err(what) => {
                    self.close_metadata(&what, actions);
                    break;
                }
            }
            any = true;
        }
        if any && !self.is_left_behind(actions) {
            self.publish_catalog(actions);
            self.hand_out_producer_ids(actions);
            self.follow_level();
        }
    }

    /// The next committed command that the catalogue does not hold yet. The version of the catalogue is the offset of
    /// the next command: each has an offset of its own.
    fn next_committed(&self, high_watermark: i64) -> Result<Option<Command>, String> {
        let Some(controller) = &self.controller else { return Ok(None) };
        let offset = controller.committed.version as i64;
        let partition = self.find(GroupId::METADATA).and_then(|index| self.at(index));
        let Some(partition) = partition.filter(|_| offset < high_watermark) else { return Ok(None) };
        let cached = partition.tail_index(offset).and_then(|at| partition.tail.get(at));
        let batch = cached.ok_or_else(|| format!("offset {offset} is committed and not in memory"))?;
        let batch = BatchView::parse_exact(batch.data.bytes()).map_err(|error| error.to_string())?;
        commands(&batch)?
            .into_iter()
            .find(|(at, _)| *at == offset)
            .map(|(_, command)| Some(command))
            .ok_or_else(|| format!("there is no command at offset {offset}"))
    }

    fn apply_committed(&mut self, command: &Command) {
        let life = (self.journal.incarnation() as i64) << PRODUCER_ID_LIFE_SHIFT;
        if let Some(controller) = &mut self.controller {
            controller.apply(command, life);
        }
    }

    /// Commands of batches that a catch-up fetched and that are in segments only.
    pub(super) fn apply_fetched(&mut self, commands: &[(i64, Command)], actions: &mut Vec<Action>) {
        for (offset, command) in commands {
            if self.controller.as_ref().is_some_and(|c| c.committed.version as i64 == *offset) {
                self.apply_committed(command);
            }
        }
        if self.is_left_behind(actions) {
            return;
        }
        self.publish_catalog(actions);
    }

    /// A committed command can't be read: no change may build on a catalogue that is not the whole one.
    fn close_metadata(&mut self, what: &str, actions: &mut Vec<Action>) {
        let Some(partition) = self.find(GroupId::METADATA).and_then(|index| self.at_mut(index)) else {
            return;
        };
        if !std::mem::replace(&mut partition.end_unknown, true) {
            let text = format!("the metadata log is damaged: {what}; no topic can be created or deleted");
            actions.push(Action::Log { level: LogLevel::Error, text });
        }
    }

    fn hand_out_producer_ids(&mut self, actions: &mut Vec<Action>) {
        let Some(controller) = &mut self.controller else { return };
        while !controller.waiting_for_ids.is_empty() {
            let Some(producer_id) = controller.producer_ids.next() else { break };
            let Some((conn, correlation_id)) = controller.waiting_for_ids.pop_front() else { break };
            let answer = InitProducerIdReply { producer_id, producer_epoch: 0 };
            reply(conn, correlation_id, Response::InitProducerId(answer), actions);
        }
        self.reserve_producer_ids(actions);
    }

    /// Hands the committed catalogue to every shard.
    pub(super) fn publish_catalog(&mut self, actions: &mut Vec<Action>) {
        if let Some(controller) = &self.controller {
            actions.push(Action::PublishCatalog { catalog: Arc::new(controller.committed.clone()) });
        }
    }

    /// A shard serves `version`: answer the clients for whom it was the last one.
    pub(super) fn catalog_applied(&mut self, shard: ShardId, version: u64, actions: &mut Vec<Action>) {
        let Some(controller) = &mut self.controller else { return };
        if let Some(applied) = controller.applied.get_mut(usize::from(shard.0)) {
            *applied = (*applied).max(version);
        }
        let everywhere = controller.applied.iter().copied().min().unwrap_or(0);
        while controller.applying.front().is_some_and(|(version, _)| *version <= everywhere) {
            let Some((_, client)) = controller.applying.pop_front() else { break };
            reply(client.conn, client.correlation_id, client.answer, actions);
        }
    }

    /// The shard is fenced: nobody will learn from this engine how their change ended.
    pub(super) fn fail_metadata_waiters(&mut self, code: ErrorCode, actions: &mut Vec<Action>) {
        let Some(controller) = &mut self.controller else { return };
        let mut waiting: Vec<_> = controller.waiting_for_ids.drain(..).collect();
        waiting.extend(
            controller.in_flight.drain(..).filter_map(|f| f.client).map(|c| (c.conn, c.correlation_id)),
        );
        waiting.extend(controller.applying.drain(..).map(|(_, c)| (c.conn, c.correlation_id)));
        for (conn, correlation_id) in waiting {
            self.refuse(conn, correlation_id, code, String::new(), actions);
        }
    }

    /// Opens and drops partitions so that this shard holds what the catalogue says.
    pub(super) fn catalog_published(&mut self, catalog: Arc<Catalog>, actions: &mut Vec<Action>) {
        if matches!(self.mode, Mode::Fenced(_) | Mode::Stopping | Mode::Stopped) {
            return;
        }
        if self.catalog.as_ref().is_some_and(|known| known.version > catalog.version) {
            return;
        }
        let drops = self.groups_to_drop(&catalog, actions);
        let opens = self.groups_to_open(&catalog);
        if opens.iter().any(|(group, _)| self.flush.is_deleting(*group)) {
            // It has been here before, and its files are still on their way out.
            return self.postpone_catalog(catalog);
        }
        for group in drops {
            if !self.drop_group(group, &catalog, actions) {
                return self.postpone_catalog(catalog);
            }
        }
        for (group, opening) in opens {
            if !self.open_group(group, opening, &catalog) {
                return self.postpone_catalog(catalog);
            }
        }
        // In a cluster the first catalogue after a restart may lack what was opened last.
        self.opens_are_suspect &= self.config.is_clustered();
        self.close_strangers(&catalog, actions);
        for (group, text) in std::mem::take(&mut self.recovered_gaps) {
            if self.by_group.contains_key(&group) {
                let text = format!("shard {}: {text}", self.config.shard);
                actions.push(Action::Log { level: LogLevel::Error, text });
            }
        }
        for partition in self.partitions.iter_mut().flatten() {
            if let Some(topic) = catalog.topics.get(&partition.group.topic.0) {
                partition.unconfirmed = false;
                partition.retention_bytes =
                    retention(topic.spec.retention_bytes, self.config.retention_bytes);
                partition.retention_ms = retention(topic.spec.retention_ms, self.config.retention_ms);
            }
        }
        self.note_shards(&catalog);
        self.place_groups(&catalog, actions);
        let node = self.config.node.0;
        self.leaders.retain(|group, _| catalog.wanted_on(node, *group).is_some());
        let version = catalog.version;
        self.catalog = Some(catalog);
        if self.journal.attach(Pending::Catalog { version }).is_err() {
            actions.push(Action::CatalogApplied { version });
        }
    }

    /// No journal space for the frames: try again when some is there.
    pub(super) fn postpone_catalog(&mut self, catalog: Arc<Catalog>) {
        self.flush.postpone_catalog(catalog);
    }

    fn groups_to_drop(&mut self, catalog: &Catalog, actions: &mut Vec<Action>) -> Vec<GroupId> {
        let mut drops = Vec::new();
        let mut unknown = 0;
        // Of several replicas of the metadata this one may know less than it knew before a restart: it will be told.
        let behind = self.config.is_clustered();
        for group in self.by_group.keys().copied().filter(|group| *group != GroupId::METADATA) {
            if group.topic.0 >= catalog.next_topic_id && behind {
                continue;
            }
            if group.topic.0 >= catalog.next_topic_id {
                unknown += 1;
                self.strangers.insert(group);
            } else if !catalog.topics.contains_key(&group.topic.0) {
                drops.push(group);
            } else if self.has_moved_away(group, catalog) {
                drops.push(group);
                let text = format!(
                    "partition {group} has moved away: what shard {} holds of it is deleted",
                    self.config.shard
                );
                actions.push(Action::Log { level: LogLevel::Info, text });
            }
        }
        if unknown > 0 {
            let text = format!(
                "shard {}: {unknown} partitions are newer than the catalogue; they are kept on disk and not deleted. The metadata group was damaged or replaced: restore shard 0's data",
                self.config.shard
            );
            actions.push(Action::Log { level: LogLevel::Error, text });
        }
        drops.sort_unstable();
        drops
    }

    /// A new topic has the id of a group that was here before it: the metadata that knew the group is lost. Its
    /// batches are not the topic's, and nobody else may have them: they are neither served nor deleted, and nothing
    /// is appended to them. Deleting the topic removes them.
    fn close_strangers(&mut self, catalog: &Catalog, actions: &mut Vec<Action>) {
        let known = |group: &GroupId| group.topic.0 < catalog.next_topic_id;
        let (now_known, still_strange) = std::mem::take(&mut self.strangers).into_iter().partition(known);
        self.strangers = still_strange;
        for group in now_known {
            let Some(partition) = self.find(group).and_then(|index| self.at_mut(index)) else { continue };
            if partition.log_end == 0 {
                continue;
            }
            partition.end_unknown = true;
            partition.note_damage(partition.log_start, partition.log_end);
            self.flush.remember_damage();
            let text = format!(
                "partition {group}: the disk holds batches of an older topic with this id, which the metadata has lost. They are kept and not served; the partition takes no writes. Delete the topic and create it again for a new id, or restore shard 0's data"
            );
            actions.push(Action::Log { level: LogLevel::Error, text });
        }
    }

    fn groups_to_open(&self, catalog: &Catalog) -> Vec<(GroupId, Opening)> {
        let node = self.config.node.0;
        let mut opens = Vec::new();
        if self.config.is_clustered() && catalog.version < self.dropped_at {
            return opens;
        }
        for topic in catalog.topics.values() {
            for partition in 0..topic.partitions() {
                let group = GroupId::new(topic.id, partition);
                if self.wanted_here(catalog, group) == Some(self.config.shard)
                    && !self.by_group.contains_key(&group)
                {
                    let lost = self.opens_are_suspect
                        || self.config.is_clustered()
                            && !catalog.is_younger_than_disk(group, node, self.config.disk_id);
                    let opening = match (lost, catalog.replicas(group).count()) {
                        (false, _) => Opening::New,
                        (true, 1) => Opening::Lost,
                        (true, _) => Opening::Rejoins,
                    };
                    opens.push((group, opening));
                }
            }
        }
        opens
    }

    fn open_group(&mut self, group: GroupId, opening: Opening, catalog: &Catalog) -> bool {
        let epoch = self.journal.incarnation() as u32;
        let mut frame = FrameHeader::bodyless(FrameKind::OpenGroup, group, 0, epoch);
        frame.record_count = opening as u32;
        let (configuration, made_after) = self.beginning(catalog, group);
        frame.index = u64::from(came_by_a_move(&configuration));
        let several = configuration.members().nth(1).is_some();
        let opened = match self.journal.lay(&self.pool, &frame, &[], &[]) {
            Ok(laid) => laid,
            Err(full) => {
                self.stall(full);
                return false;
            }
        };
        if several {
            // Who they are is known from now on, whatever the catalogue says when this disk is read again.
            let body = configuration.encode();
            let (term, entry) = made_after;
            let frame = FrameHeader::of_configuration(group, entry.cast_signed(), term, 0, &body);
            if let Err(full) = self.journal.lay(&self.pool, &frame, &[], &body) {
                self.stall(full);
                return false;
            }
        }
        let mut partition = Partition::empty(group, epoch, 0);
        if several {
            if came_by_a_move(&configuration) {
                partition.entries_from_lsn = opened.lsn;
            }
            let log = RecoveredLog { configuration, made_after, ..RecoveredLog::default() };
            partition.replica = Replica::Unplaced(Box::new(Unplaced { log, ..Unplaced::default() }));
        }
        if opening == Opening::Lost {
            partition.end_unknown = true;
            self.flush.remember_damage();
        }
        if opening == Opening::Rejoins {
            partition.standing = Standing::Rejoining;
        }
        self.insert_partition(partition);
        true
    }

    fn drop_group(&mut self, group: GroupId, catalog: &Catalog, actions: &mut Vec<Action>) -> bool {
        let (version, deleted) = (catalog.version, !catalog.topics.contains_key(&group.topic.0));
        let Some(index) = self.find(group) else { return true };
        let epoch = self.journal.incarnation() as u32;
        let mut frame = FrameHeader::bodyless(FrameKind::DropGroup, group, 0, epoch);
        frame.index = version;
        if let Err(full) = self.journal.lay(&self.pool, &frame, &[], &[]) {
            self.stall(full);
            return false;
        }
        self.dropped_at = self.dropped_at.max(version);
        self.flush.begin_delete(group);
        self.attach(Pending::Dropped { group, partition: index });
        self.by_group.remove(&group);
        let taken = self.partitions.get_mut(index as usize).and_then(Option::take);
        if let Some(mut partition) = taken {
            self.fail_group(&mut partition.replica, deleted, actions);
            self.producer_count -= partition.producers.len();
            self.cached_batches -= partition.tail.len();
            self.replication.uncommitted.remove(partition.uncommitted);
            self.flush.forget(index, &partition);
            self.fail_fetches_of(&partition, deleted, actions);
            self.cold.forget_group(group);
            self.scrub.forget_group(group);
        }
        true
    }

    /// The drop is in the journal for good: the files can go.
    pub(super) fn delete_files_of(&mut self, group: GroupId, actions: &mut Vec<Action>) {
        if self.flush.busy_with(group) || self.catches_up(group) || self.scrub.writes_to(group) {
            self.flush.delete_later(group);
            return;
        }
        let token = self.next_token();
        self.flush.expect_delete(token, group);
        actions.push(Action::Io { token, op: IoOp::DeleteGroup { group } });
    }

    /// Lays down the first frame of this life.
    pub(super) fn begin_life(&mut self, actions: &mut Vec<Action>) {
        let epoch = self.journal.incarnation() as u32;
        let frame = FrameHeader::bodyless(FrameKind::NewLife, GroupId::METADATA, 0, epoch);
        match self.journal.lay(&self.pool, &frame, &[], &[]) {
            Ok(_) => self.attach(Pending::NewLife),
            Err(_) => {
                let reason = "no journal space for the first commit after recovery".to_owned();
                self.fence(&reason, actions);
            }
        }
    }

    /// The first commit of this life is durable: serve.
    pub(super) fn life_began(&mut self, actions: &mut Vec<Action>) {
        if self.mode == Mode::Starting {
            self.mode = Mode::Serving;
        }
        if self.place_metadata(actions) {
            return;
        }
        self.publish_catalog(actions);
        // Tried again before a topic is placed.
        if let Err((code, detail)) = self.register_node() {
            let text = format!("this node is not registered: {detail}; {code}");
            actions.push(Action::Log { level: LogLevel::Warn, text });
        }
        self.raise_feature_level();
    }
}

/// Whether a replica that begins like this has come to a group that was there before it: another one of the group may have been here
/// already, and gone.
fn came_by_a_move(beginning: &Configuration) -> bool {
    beginning.version() > 0 || !beginning.learners().is_empty()
}

/// The commands of a batch of the metadata group, with their offsets.
pub(super) fn commands(batch: &BatchView<'_>) -> Result<Vec<(i64, Command)>, String> {
    let mut scratch = Vec::new();
    let records = batch.records(&mut scratch).map_err(|error| error.to_string())?;
    let mut commands = Vec::new();
    for record in records {
        let record = record.map_err(|error| error.to_string())?;
        let command = Command::decode(record.value.unwrap_or_default()).map_err(|error| error.to_string())?;
        commands.push((record.offset, command));
    }
    Ok(commands)
}

fn retention(topic: i64, node: Option<u64>) -> Option<u64> {
    match topic {
        0 => None,
        bound if bound > 0 => Some(bound as u64),
        _ => node,
    }
}

pub(super) fn build_command(
    builder: &mut BatchBuilder,
    timestamp: i64,
    command: &Command,
) -> Result<Vec<u8>, (ErrorCode, String)> {
    let internal = |error: pyralog_core::batch::BatchError| (ErrorCode::TooLarge, error.to_string());
    builder.clear();
    builder.append(timestamp, None, Some(&command.encode()), &[]).map_err(internal)?;
    Ok(builder.build(Compression::None).map_err(internal)?.to_vec())
}

#[cfg(test)]
mod tests {
    use pyralog_replication::metadata::{Assignment, NodeInfo, Replica};

    use super::*;

    fn create(name: &str) -> Command {
        Command::CreateTopic(TopicSpec {
            name: name.into(),
            assignment: Assignment::new(&[vec![Replica { node: 1, shard: 0 }]]).unwrap(),
            replication_factor: 1,
            write_quorum: 1,
            read_quorum: 1,
            min_insync_replicas: 1,
            retention_bytes: -1,
            retention_ms: -1,
        })
    }

    #[test]
    fn a_client_is_told_what_became_of_its_command() {
        let mut catalog = Catalog::default();
        let node = NodeInfo {
            id: 1,
            client_address: "127.0.0.1:9092".into(),
            internal_address: String::new(),
            rack: String::new(),
            shards: 1,
            disk: 7,
            level_min: 1,
            level_max: 2,
            disk_since: 0,
        };
        catalog.apply(&Command::RegisterNode(node)).unwrap();
        let mut controller = Controller::new(catalog, 1);
        let created = |id| Response::CreateTopic(CreateTopicReply { id });
        // One of another node comes before them, which the catalogue that they were checked against did not have.
        for (next_offset, name, id) in [(3, "a", 1), (4, "b", 2)] {
            let client = Client { conn: ConnId(id), correlation_id: id, answer: created(id as u32) };
            controller.in_flight.push_back(InFlight {
                next_offset,
                command: create(name),
                client: Some(client),
            });
        }
        let delete = Command::DeleteTopic { topic: 9 };
        let client = Client { conn: ConnId(3), correlation_id: 3, answer: Response::DeleteTopic };
        controller.in_flight.push_back(InFlight {
            next_offset: 5,
            command: delete.clone(),
            client: Some(client),
        });
        for command in [create("a"), create("a"), create("b"), delete] {
            controller.apply(&command, 0);
        }
        let answers: Vec<Response> = controller.applying.drain(..).map(|(_, client)| client.answer).collect();
        let [Response::Error(first), second, Response::Error(third)] = &answers[..] else {
            panic!("{answers:?}");
        };
        assert_eq!(first.code, ErrorCode::TopicAlreadyExists);
        assert_eq!(*second, created(2));
        assert_eq!(third.code, ErrorCode::UnknownTopicOrPartition);
    }

    #[test]
    fn no_producer_id_comes_from_a_reservation_that_was_refused() {
        let mut controller = Controller::new(Catalog::default(), 1);
        controller.reserving = true;
        controller.committed.next_producer_id = i64::MAX;
        let command = Command::ReserveProducerIds { count: 10 };
        controller.in_flight.push_back(InFlight { next_offset: 1, command: command.clone(), client: None });
        controller.apply(&command, 0);
        assert_eq!((controller.producer_ids.clone(), controller.reserving), (0..0, false));
    }
}
