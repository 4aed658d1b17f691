//! What may never be contradicted, checked as it happens: who led which term, who voted for whom, how far each replica has
//! said to be committed, what each version of the catalogue was, and how many disks hold what is acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{Acks, Durability, PartitionHealth, PartitionState, ReplicaRole, Response};
use pyralog_replication::metadata::Catalog;
use pyralog_replication::raft::{MessageKind, frame};
use pyralog_shard::engine::PeerId;

use super::clients::Sent;
use super::world::{Seat, World};
use crate::batch;
use crate::model::{Existence, GroupModel};
use crate::request::{Owned, Reply};

/// Of the newest committed batches so many are looked for on a disk.
const LOOK_BACK: usize = 64;

/// What replicas tell each other that is worth counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Followers that were told to begin further on.
    pub snapshots: u64,
    /// Answers with batches out of segments.
    pub fetched: u64,
    /// Leaderships handed over.
    pub hand_overs: u64,
    /// Groups that fell quiet.
    pub quiesced: u64,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Who led a group in a term.
    leaders: BTreeMap<(GroupId, u32), u32>,
    /// Whom a shard voted for in a term, itself included.
    votes: BTreeMap<(Seat, GroupId, u32), u32>,
    /// The highest term in which it did.
    voted: BTreeMap<(Seat, GroupId), u32>,
    /// The end of the last committed batch that a shard's disk was known to hold when its engine went.
    held: BTreeMap<(Seat, GroupId), i64>,
    /// The term in which each acknowledged batch became an entry.
    terms: BTreeMap<(GroupId, i64), u32>,
    /// High watermark and term that a running engine last told.
    marks: BTreeMap<(Seat, GroupId), (i64, u32)>,
    /// Checksum of each version of the catalogue.
    catalogs: BTreeMap<u64, u32>,
    /// Topics whose deletion was asked for, and may still come.
    pub deletions: BTreeSet<String>,
    /// Messages.
    pub traffic: Traffic,
}

impl Books {
    /// The engine of a shard is gone, and with it what it held in memory.
    pub(crate) fn put_down(&mut self, seat: Seat) {
        self.marks.retain(|(of, _), _| *of != seat);
    }

    /// The disk of a shard is gone, and with it what it promised.
    pub(crate) fn forgets(&mut self, seat: Seat) {
        self.voted.retain(|(of, _), _| *of != seat);
        self.held.retain(|(of, _), _| *of != seat);
    }

    /// What the shards of a node have promised others have promised from here on: those which have the groups now.
    pub(crate) fn rehomed(&mut self, node: usize, homes: &BTreeMap<GroupId, usize>) {
        let home = |seat: Seat, group: GroupId| match seat.node == node {
            // One that is lost is missed on the shard that there always is.
            true => Seat { node, shard: homes.get(&group).copied().unwrap_or(0) },
            false => seat,
        };
        let votes = std::mem::take(&mut self.votes).into_iter();
        self.votes = votes.map(|((seat, group, term), to)| ((home(seat, group), group, term), to)).collect();
        let voted = std::mem::take(&mut self.voted).into_iter();
        self.voted = voted.map(|((seat, group), term)| ((home(seat, group), group), term)).collect();
        let held = std::mem::take(&mut self.held).into_iter();
        self.held = held.map(|((seat, group), end)| ((home(seat, group), group), end)).collect();
    }

    /// A replica has moved away from a shard, and what it promised has gone with it.
    fn left(&mut self, seat: Seat, group: GroupId) {
        self.marks.remove(&(seat, group));
        self.voted.remove(&(seat, group));
        self.held.remove(&(seat, group));
        self.votes.retain(|(of, about, _), _| (*of, *about) != (seat, group));
    }

    /// Leaderships so far.
    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    fn note_leader(&mut self, group: GroupId, state: &PartitionState) -> Result<(), String> {
        let (term, node) = (state.epoch, state.leader);
        let known = *self.leaders.entry((group, term)).or_insert(node);
        match known == node {
            true => Ok(()),
            false => Err(format!("{group}: nodes {known} and {node} both lead in term {term}")),
        }
    }

    fn note_mark(&mut self, seat: Seat, group: GroupId, state: &PartitionState) -> Result<(), String> {
        let now = (state.high_watermark, state.epoch);
        let before = self.marks.insert((seat, group), now).unwrap_or(now);
        if now.0 < before.0 {
            return Err(format!("{seat} {group}: the high watermark fell from {} to {}", before.0, now.0));
        }
        if now.1 < before.1 {
            return Err(format!("{seat} {group}: the term fell from {} to {}", before.1, now.1));
        }
        if state.log_end < now.0 {
            return Err(format!(
                "{seat} {group}: committed up to {}, the log ends at {}",
                now.0, state.log_end
            ));
        }
        Ok(())
    }

    fn note_term(&mut self, group: GroupId, base: i64, term: u32) -> Result<(), String> {
        let known = *self.terms.entry((group, base)).or_insert(term);
        match known == term {
            true => Ok(()),
            false => {
                Err(format!("{group}: the batch at {base} is acknowledged as of term {known} and of {term}"))
            }
        }
    }

    fn note_vote(&mut self, seat: Seat, group: GroupId, term: u32, to: u32) -> Result<(), String> {
        let known = *self.votes.entry((seat, group, term)).or_insert(to);
        let highest = self.voted.entry((seat, group)).or_default();
        *highest = term.max(*highest);
        match known == to {
            true => Ok(()),
            false => Err(format!("{seat} {group}: votes in term {term} for node {known} and for node {to}")),
        }
    }
}

/// Whether the replica is one of several that takes part: the only one of a group reports itself as its leader.
pub(crate) fn is_alone(state: &PartitionState) -> bool {
    state.replicas.len() == 1
}

impl World {
    /// Whether the shard leads any group.
    pub(crate) fn leads(&self, seat: Seat) -> bool {
        let groups = self.model.groups.keys().copied().chain([GroupId::METADATA]);
        groups.filter_map(|group| self.shard(seat).state_of(group)).any(|state| state.replicas.len() > 1)
    }

    /// Looks at all groups of a shard after a pass.
    pub(crate) fn watch_groups(&mut self, seat: Seat) {
        let mut wrong = None;
        let Self { nodes, books, model, .. } = self;
        let driver = &mut nodes[seat.node].shards[seat.shard];
        let there = model.groups.iter().filter(|(_, model)| model.exists == Existence::Yes);
        for group in there.map(|(group, _)| *group).chain([GroupId::METADATA]) {
            if books.marks.contains_key(&(seat, group)) && driver.state_of(group).is_none() {
                books.left(seat, group);
                driver.disk.tracker.left(group);
            }
            let Some(state) = driver.state_of(group).filter(|state| !is_alone(state)) else { continue };
            let result = match state.leader {
                0 => Ok(()),
                _ => books.note_leader(group, &state),
            };
            wrong = wrong.or(result.and_then(|()| books.note_mark(seat, group, &state)).err());
        }
        if let Some(what) = wrong {
            self.fail(what);
        }
        if !self.nodes[seat.node].lies && self.is_damaged(seat) {
            self.fail(format!("{seat} calls its log damaged on a disk that never lied"));
        }
    }

    /// Whether the group can't have been deleted. A replica that has dropped a group and comes back with an older catalogue
    /// has the group anew, and empty, until it hears of the deletion again.
    pub(crate) fn must_be_there(&self, group: GroupId) -> bool {
        let model = self.model.groups.get(&group);
        group == GroupId::METADATA || model.is_some_and(|model| model.exists == Existence::Yes)
    }

    fn is_damaged(&self, seat: Seat) -> bool {
        let engine = self.shard(seat).engine.as_ref();
        engine.is_some_and(|engine| engine.status().damaged_partitions > 0)
    }

    /// Looks at what leaves for another node.
    pub(crate) fn watch_frame(&mut self, seat: Seat, to: PeerId, control: &[u8]) {
        let messages = match frame::decode(control) {
            Ok(messages) => messages,
            Err(error) => return self.fail(format!("{seat} sends a frame that can't be read: {error}")),
        };
        for message in messages {
            let group = message.group();
            self.note(|| format!("{seat} to n{}: {}", to.node.0, describe(&message)));
            let there = self.must_be_there(group);
            let traffic = &mut self.books.traffic;
            let result = match message.kind {
                MessageKind::RequestVote | MessageKind::RequestVoteResponse if !there => Ok(()),
                MessageKind::RequestVoteResponse if !message.reject => {
                    self.books.note_vote(seat, group, message.term, to.node.0)
                }
                MessageKind::RequestVote => self.books.note_vote(seat, group, message.term, message.from),
                MessageKind::Snapshot => {
                    traffic.snapshots += 1;
                    Ok(())
                }
                MessageKind::Batches if !message.reject => {
                    traffic.fetched += 1;
                    Ok(())
                }
                MessageKind::TimeoutNow => {
                    traffic.hand_overs += 1;
                    Ok(())
                }
                MessageKind::Quiesce => {
                    traffic.quiesced += 1;
                    Ok(())
                }
                _ => Ok(()),
            };
            self.check(result);
        }
    }

    /// Notes what the disk of a shard holds of what is known to be committed, as its engine is about to go.
    pub(crate) fn note_held(&mut self, seat: Seat) {
        let tracker = &self.nodes[seat.node].shards[seat.shard].disk.tracker;
        for (group, model) in &self.model.groups {
            let held = model.entries.iter().rev().take(LOOK_BACK).find(|(base, entry)| {
                let bytes = self.model.batch(entry.id).map(|batch| &batch.bytes);
                let head = bytes.and_then(|bytes| batch::head(bytes));
                // The same batch of another term is another entry, which a leader may have taken back.
                let term = self.books.terms.get(&(*group, **base)).copied();
                let held = head.and_then(|head| tracker.journaled_surely(*group, **base, head.crc));
                term.is_some() && term == held
            });
            if let Some((base, entry)) = held {
                let end = base + i64::from(entry.records);
                let known = self.books.held.entry((seat, *group)).or_default();
                *known = end.max(*known);
            }
        }
        self.shard_mut(seat).disk.tracker.engine_gone();
    }

    /// What a shard promised before it went down it must know when it comes back, or know that it does not.
    pub(crate) fn check_promises(&mut self, seat: Seat) {
        let of_seat = (seat, GroupId::METADATA)..=(seat, GroupId::new(u32::MAX, u32::MAX));
        let exists = |group: GroupId| self.must_be_there(group);
        let state = |group: GroupId| self.shard(seat).state_of(group);
        let mut wrong = None;
        let voted = self.books.voted.range(of_seat.clone()).map(|((_, group), term)| (*group, *term));
        for (group, term) in voted.filter(|(group, _)| exists(*group) && !self.nodes[seat.node].lies) {
            let known = state(group).map(|state| state.epoch);
            if known.is_none_or(|known| known < term) {
                wrong =
                    Some(format!("{seat} {group}: voted in term {term} and comes back in term {known:?}"));
            }
        }
        let held = self.books.held.range(of_seat).map(|((_, group), end)| (*group, *end));
        for (group, end) in held.filter(|(group, _)| exists(*group)) {
            let lacks = |state: &PartitionState| {
                // Before the catalogue has named the others it does not know that it can get anything from them.
                let lost =
                    matches!(state.health, PartitionHealth::Rejoining | PartitionHealth::LogEndUnknown);
                let told = lost && self.nodes[seat.node].lies;
                !told && state.log_end < end
            };
            if let Some(state) = state(group).filter(lacks) {
                let known = state.log_end;
                wrong = Some(format!(
                    "{seat} {group}: held what is committed up to {end}, and comes back with {known}"
                ));
            }
        }
        if let Some(what) = wrong {
            self.fail(what);
        }
    }

    /// What can be checked only at the moment at which an engine answers.
    pub(crate) fn check_at_reply(&mut self, seat: Seat, sent: &Sent, reply: &Reply) {
        let lies = self.nodes[seat.node].lies;
        match (&sent.request, reply) {
            (Owned::Produce { group, acks, batch, .. }, Reply::Message(Response::Produce(reply))) => {
                let promised = match acks {
                    Acks::None => Durability::Memory,
                    Acks::Leader => Durability::LeaderDurable,
                    Acks::Quorum => Durability::QuorumDurable,
                };
                if reply.durability != promised {
                    let told = reply.durability;
                    self.fail(format!("{seat} {group}: a produce with acks {acks:?} was answered {told:?}"));
                }
                if promised == Durability::QuorumDurable {
                    let crc = batch::head(batch).map_or(0, |head| head.crc);
                    self.check_copies(seat, *group, reply.base_offset, crc);
                }
            }
            (_, Reply::Message(Response::Error(error))) if !lies => {
                if matches!(error.code, ErrorCode::CorruptRange | ErrorCode::LogEndUnknown) {
                    let what = sent.request.describe();
                    self.fail(format!("{seat}: {what} was answered {}: {}", error.code.name(), error.detail));
                }
            }
            _ => {}
        }
    }

    /// As many disks as the topic asks for hold a batch that is being acknowledged.
    fn check_copies(&mut self, seat: Seat, group: GroupId, base: i64, crc: u32) {
        let Some(catalog) = self.nodes[seat.node].catalog.clone() else { return };
        if !catalog.topics.contains_key(&group.topic.0) {
            return;
        }
        let Some(state) = self.shard(seat).state_of(group) else { return };
        // Replicas that have heard that the topic is deleted have deleted what this one was told they hold.
        if self.model.groups.get(&group).is_some_and(|model| model.exists == Existence::No) {
            return;
        }
        // Who is only on its way there does not count. It may have stopped leading in the same pass: then all that may have counted.
        let counts = state.replicas.iter().filter(|replica| replica.role != ReplicaRole::Joining);
        let mut counts: Vec<Seat> =
            counts.map(|replica| self.home_on(replica.node, group, replica.shard)).collect();
        if counts.is_empty() {
            counts.extend(catalog.places(group).map(|place| self.home(place)));
            counts.sort_unstable();
            counts.dedup();
        }
        let noted = self
            .term_of(seat, &counts, group, base, crc)
            .map_or(Ok(()), |term| self.books.note_term(group, base, term));
        self.check(noted);
        // A group that is to have fewer replicas has them before the catalogue knows it.
        let wanted = usize::from(catalog.quorums(group).map_or(0, |quorums| quorums.write_quorum));
        let wanted = wanted.min(counts.len());
        let held = self.copies(&catalog, counts, group, base, crc);
        if held >= wanted {
            return;
        }
        // Those that have answered may be among the replicas no more, or have left: then it is with those that the catalogue has still
        // or already, as many as that asks for. One that was paused meanwhile hears their answers first, and of that later.
        let newest = self.nodes.iter().filter_map(|node| node.catalog.clone()).max_by_key(|it| it.version);
        let moved = [Some(Arc::clone(&catalog)), newest].into_iter().flatten().any(|known| {
            let places = known.replicas(group).map(|place| self.home(place)).collect();
            let wanted = known.quorums(group).map_or(usize::MAX, |quorums| quorums.write_quorum.into());
            self.copies(&known, places, group, base, crc) >= wanted
        });
        if !moved {
            self.fail(format!(
                "{seat} {group}: the batch at {base} is acknowledged with {held} durable copies of {wanted}"
            ));
        }
    }

    /// The term as whose entry a batch is acknowledged that its leader does not have in a segment: what most of these have in their
    /// journals. The leader's own write may still be under way, and what is there then is an entry that was taken back, maybe with
    /// the same batch.
    fn term_of(&self, leader: Seat, counts: &[Seat], group: GroupId, base: i64, crc: u32) -> Option<u32> {
        if self.shard(leader).disk.tracker.in_segment(group, base) {
            return None;
        }
        let mut held: BTreeMap<u32, usize> = BTreeMap::new();
        for seat in counts {
            if let Some(term) = self.shard(*seat).disk.tracker.journaled(group, base, crc) {
                *held.entry(term).or_default() += 1;
            }
        }
        held.into_iter().max_by_key(|(term, held)| (*held, *term)).map(|(term, _)| term)
    }

    /// How many of these hold a batch, on disks.
    fn copies(&self, catalog: &Catalog, counts: Vec<Seat>, group: GroupId, base: i64, crc: u32) -> usize {
        let term = self.books.terms.get(&(group, base)).copied();
        let keeps_all =
            catalog.topics.get(&group.topic.0).is_some_and(|topic| topic.spec.retention_bytes <= 0);
        let held = counts.into_iter().filter(|seat| {
            let tracker = &self.shard(*seat).disk.tracker;
            // A duplicate may be acknowledged again that was on a disk which is gone since, or that retention has removed.
            let removed =
                !keeps_all && self.shard(*seat).state_of(group).is_some_and(|state| state.log_start > base);
            let gone = self.nodes[seat.node].emptied || removed;
            let journaled = tracker.journaled(group, base, crc);
            gone || journaled.is_some_and(|held| term.is_none_or(|term| term == held))
                || tracker.in_segment(group, base)
        });
        held.count()
    }

    /// Topics come into and leave the model with the newest catalogue; every version is the same everywhere.
    pub(crate) fn learn(&mut self, seat: Seat, catalog: &Arc<Catalog>) {
        let version = catalog.version;
        let sum = crc32c::crc32c(&catalog.encode());
        if *self.books.catalogs.entry(version).or_insert(sum) != sum {
            return self.fail(format!("{seat} has another catalogue of version {version} than others"));
        }
        if self.catalog.as_ref().is_some_and(|newest| newest.version >= version) {
            return;
        }
        let before = self.catalog.replace(Arc::clone(catalog));
        let settled = |group: &GroupId| before.as_ref().and_then(|before| before.settled.get(group));
        self.moved +=
            catalog.settled.iter().filter(|(group, now)| settled(group) != Some(now)).count() as u64;
        let mut wrong = None;
        for (group, model) in &mut self.model.groups {
            match (catalog.topics.contains_key(&group.topic.0), model.exists) {
                (false, Existence::Yes) => wrong = Some(format!("{group} vanished from the catalogue")),
                (true, Existence::No) => wrong = Some(format!("{group} is back after its deletion")),
                (false, _) => model.exists = Existence::No,
                (true, _) => {}
            }
        }
        if let Some(what) = wrong {
            self.fail(what);
        }
        for topic in catalog.topics.values() {
            let keeps_all = topic.spec.retention_bytes <= 0;
            let deleted = self.books.deletions.contains(topic.name());
            for partition in 0..topic.partitions() {
                let group = GroupId::new(topic.id, partition);
                let model = self.model.groups.entry(group).or_insert_with(|| GroupModel::new(0, keeps_all));
                if deleted {
                    model.exists = Existence::Maybe;
                }
            }
        }
    }
}

fn describe(message: &pyralog_replication::raft::Message) -> String {
    let group = message.group();
    format!(
        "{:?} {group} term {} index {}/{} commit {} entries {}{}",
        message.kind,
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.entries.len(),
        if message.reject { " rejected" } else { "" }
    )
}
