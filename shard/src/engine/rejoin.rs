//! Replicas that can't know what they have promised: which of the frames say so, whom they ask, and when they are members
//! again. The rules are `pyralog_replication::raft::rejoin`'s; why they are safe: `docs/replication.md`, "A disk that is
//! lost".
//!
//! A replica comes here in one of three ways. The metadata group begins undecided on an empty disk. A partition that the
//! catalogue placed on this node before the node had its present disk is opened as one that was here before. And a recovery
//! that finds damage where entries or votes may have been forgets everything that is not in segments.

use pyralog_core::{GroupId, NodeId};
use pyralog_replication::raft::{
    Answer, Configuration, Electorate, Floor, HardState, MAX_TERM, Message, MessageKind, Rejoin, Standing,
    Verdict, Votes,
};

use crate::format::journal::{FrameHeader, FrameKind};

use pyralog_replication::metadata::Replica as Place;

use super::api::{LogLevel, PeerId};
use super::partition::{Partition, Told};
use super::pending::Pending;
use super::replica::Replica;
use super::replicate::SMALL_FRAMES_BYTES;
use super::{Action, Engine, Mode};

/// How often those are asked again who have not answered, microseconds.
const ASK_EVERY_US: u64 = 250_000;

/// What a replica that is no member has found out.
#[derive(Debug)]
pub(super) struct Asking {
    /// Who has to be asked, as far as is known.
    electorate: Electorate,
    rejoin: Rejoin,
    /// What changes its standing is on its way to the disk.
    changing: bool,
}

/// With what a replica begins to take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// With what its disk holds.
    Member,
    /// Until its log reaches the floor without a vote of its own, unless it is one of a pair, whose other one holds everything
    /// that was committed and could not be elected without it.
    Follower { floor: Floor, pair: bool },
}

impl Asking {
    fn new(electorate: Electorate, own: NodeId) -> Self {
        let mut asking = Self { electorate, rejoin: Rejoin::new([]), changing: false };
        asking.ask_all(own);
        asking
    }

    /// The others are those of the electorate.
    fn ask_all(&mut self, own: NodeId) {
        self.rejoin.ask(self.others(own).map(|place| place.node).collect::<Vec<_>>());
    }

    fn others(&self, own: NodeId) -> impl Iterator<Item = Place> + use<> {
        self.electorate.voters().into_iter().filter(move |place| place.node != own.0)
    }
}

impl Begin {
    /// For whom it votes.
    pub(super) fn votes(self) -> Votes {
        match self {
            Self::Member => Votes::All,
            Self::Follower { floor, pair: true } => Votes::InTermsAbove(floor.term),
            Self::Follower { .. } => Votes::None,
        }
    }

    /// Term and vote to begin with. In the floor's term the former self may have voted.
    pub(super) fn hard_state(self, known: HardState, id: u32) -> HardState {
        match self {
            Self::Follower { floor, .. } if floor.term >= known.term => {
                HardState { term: floor.term, vote: id, commit: known.commit }
            }
            _ => known,
        }
    }
}

impl Partition {
    /// Who the replicas are, as others have said that this one has asked.
    pub(super) fn told_by_others(&self) -> Option<&Configuration> {
        self.asking.as_ref().map(|asking| asking.electorate.committed())
    }
}

impl Engine {
    /// Whether a replica can take part by now, and how; has it ask the others if not. `known` says who they are, of which the
    /// newest counts.
    pub(super) fn begins(&mut self, index: u32, known: [&Configuration; 2], guessed: bool) -> Option<Begin> {
        let (node, now_us) = (self.config.node, self.now.monotonic_us);
        let partition = self.at_mut(index)?;
        if partition.standing == Standing::Member {
            let told = partition.told;
            if told == Told::No {
                // There may be no room.
                self.ask_due_us.get_or_insert(now_us + ASK_EVERY_US);
                self.lay_standing(index, Standing::Member);
            }
            return (told == Told::Durable).then_some(Begin::Member);
        }
        let (standing, damaged) = (partition.standing, partition.end_unknown);
        let [first, second] = known;
        let asking = partition.asking.get_or_insert_with(|| {
            let electorate = match guessed {
                true => Electorate::guess(first.clone()),
                false => Electorate::new(first.clone()),
            };
            Box::new(Asking::new(electorate, node))
        });
        asking.electorate.goes_on_from(second);
        asking.ask_all(node);
        let (changing, floor) = (asking.changing, asking.rejoin.floor());
        let pair = asking.electorate.is_pair_with(node.0);
        self.ask_due_us.get_or_insert(now_us);
        if changing || standing == Standing::Undecided {
            return None;
        }
        if damaged {
            self.lay_standing(index, Standing::Rejoining);
            return None;
        }
        #[cfg(feature = "planted-bugs")]
        if self.config.planted == Some(super::planted::PlantedBug::BlankDiskVotes) {
            return Some(Begin::Member);
        }
        floor.map(|floor| Begin::Follower { floor, pair })
    }

    /// Asks those who have not answered, and all when nobody led in the highest term.
    pub(super) fn ask_others(&mut self) {
        let now_us = self.now.monotonic_us;
        if self.ask_due_us.is_none_or(|due| due > now_us) {
            return;
        }
        self.ask_due_us = None;
        for index in 0..self.partitions.len() as u32 {
            let Some(partition) = self.at(index) else { continue };
            let Some(asking) = &partition.asking else {
                if partition.told == Told::No {
                    let group = partition.group;
                    self.replication.place_due.insert(group);
                }
                continue;
            };
            let again = asking.rejoin.floor().is_some_and(|floor| floor.index.is_none())
                || partition.standing == Standing::Undecided;
            let silent: Vec<u32> = asking.rejoin.silent().collect();
            let (group, term) = (partition.group, partition.replica.epoch());
            let to = asking.others(self.config.node);
            let to =
                to.filter(|place| again || silent.contains(&place.node)).map(|place| self.peer_of(place));
            for peer in to.filter(|peer| self.is_linked(*peer)).collect::<Vec<_>>() {
                let kind = MessageKind::RequestStanding;
                let mut message = Message::new(kind, group, self.config.node.0, peer.node.0, term);
                message.index = self.config.disk_id;
                self.post_beside(peer, message);
            }
            self.ask_due_us = Some(now_us + ASK_EVERY_US);
            // Its frames may have found no room.
            if self.at(index).is_some_and(|partition| partition.end_unknown) {
                self.replication.place_due.insert(group);
            }
            self.queue_group(index);
        }
    }

    /// Another replica of the group asks what this one is.
    pub(super) fn standing_asked(&mut self, index: u32, from: PeerId, message: &Message) {
        if let Some(replica) = self.raft_mut(index) {
            replica.note_rejoins(from);
        }
        let Some(partition) = self.at(index).filter(|_| self.mode != Mode::Starting) else { return };
        let group = partition.group;
        let leads = match &partition.replica {
            // The catalogue has not named the others yet.
            Replica::Single(_) => return,
            Replica::Unplaced(_) => None,
            Replica::Raft(replica) => replica.raft.is_leader().then(|| replica.raft.last_index()),
        };
        let (node, term) = (self.config.node.0, partition.replica.epoch());
        let mut answer = Message::new(MessageKind::RequestStandingResponse, group, node, from.node.0, term);
        answer.commit = partition.standing as u64;
        answer.transfer = leads.is_some();
        answer.index = leads.unwrap_or(0);
        answer.read = self.config.disk_id;
        // Who is registered was a member once, and does not ask whether it is a founder unless it has lost that.
        let registered =
            self.controller.as_ref().is_some_and(|c| c.catalog().nodes.contains_key(&from.node.0));
        answer.reject_hint = u64::from(registered);
        answer.reject = registered || self.founders.get(&from.node.0) != Some(&message.index);
        answer.configurations = configurations_known(&partition.replica);
        self.post_beside(from, answer);
    }

    /// Another replica said what it is.
    pub(super) fn standing_told(&mut self, index: u32, message: &Message) -> Result<(), String> {
        let standing = Standing::from_number(message.commit);
        if message.to != self.config.node.0 || message.term > MAX_TERM {
            return Err(format!("a standing for node {} in term {}", message.to, message.term));
        }
        let answer = Answer {
            standing: standing.ok_or("a standing that does not exist")?,
            term: message.term,
            leads: message.transfer.then_some(message.index),
            disk: message.read,
            vouches: !message.reject,
            knows: message.reject_hint > 0,
        };
        if message.configurations.len() > 2 {
            return Err("a standing with more configurations than it takes".into());
        }
        message.configurations.iter().try_for_each(Configuration::check)?;
        let own = self.config.node;
        let unknown = Place { node: own.0, shard: self.config.shard.0 };
        let own_place =
            self.catalog.as_ref().map_or(unknown, |catalog| self.own_place(catalog, message.group()));
        let Some(partition) = self.at_mut(index) else { return Ok(()) };
        let Some(asking) = &mut partition.asking else { return Ok(()) };
        let of_member = answer.standing == Standing::Member;
        for (nth, said) in message.configurations.iter().enumerate() {
            let news = match nth {
                0 if of_member => asking.electorate.heard_of_member(said),
                _ => asking.electorate.heard(said),
            };
            if news {
                asking.ask_all(own);
            }
        }
        if !asking.rejoin.heard(message.from, answer) || asking.changing {
            return Ok(());
        }
        match partition.standing {
            Standing::Member => {}
            Standing::Undecided if asking.rejoin.is_newcomer(&asking.electorate, own.0) => {
                let base = asking.electorate.committed().joined_by(own_place);
                self.begin_with(index, base);
                self.lay_standing(index, Standing::Member);
            }
            Standing::Undecided => match asking.rejoin.verdict() {
                Some(Verdict::Founder(disks)) => {
                    let base = asking.electorate.committed().clone();
                    self.founders = disks.into_iter().collect();
                    self.begin_with(index, base);
                    self.lay_standing(index, Standing::Member);
                }
                Some(Verdict::Rejoining) => self.lay_standing(index, Standing::Rejoining),
                None => {}
            },
            Standing::Rejoining if partition.replica.raft().is_some() => self.queue_group(index),
            Standing::Rejoining => {
                if asking.rejoin.floor().is_some() {
                    let group = partition.group;
                    self.replication.place_due.insert(group);
                }
            }
        }
        Ok(())
    }

    /// A replica without a vote whose log reaches the floor is a member again.
    pub(super) fn join_when_complete(&mut self, index: u32) {
        let Some(partition) = self.at(index).filter(|p| p.standing == Standing::Rejoining) else { return };
        let Some(asking) = partition.asking.as_ref().filter(|asking| !asking.changing) else { return };
        let Some(raft) = partition.replica.raft().map(|replica| &replica.raft) else { return };
        let Some(floor) = asking.rejoin.floor() else { return };
        if raft.position(raft.last_index()).is_some_and(|last| floor.is_reached(last.term, last.index)) {
            self.lay_standing(index, Standing::Member);
        }
    }

    /// Who the others are, of which the disk says nothing yet. It is laid down with what the replica becomes.
    fn begin_with(&mut self, index: u32, configuration: Configuration) {
        let unplaced = self.at_mut(index).and_then(|partition| partition.replica.unplaced_mut());
        if let Some(unplaced) = unplaced.filter(|unplaced| unplaced.log.configuration.is_unknown()) {
            unplaced.log.configuration = configuration;
        }
    }

    /// Lays down what a replica has become; it is that when that is durable. Without room it is tried again.
    fn lay_standing(&mut self, index: u32, standing: Standing) {
        if self.at(index).is_none() || !self.journal.has_room(&self.pool, SMALL_FRAMES_BYTES) {
            return;
        }
        let frames = self.standing_frames(index, standing);
        for (frame, body) in frames {
            match self.journal.lay(&self.pool, &frame, &[], &body) {
                Ok(laid) if frame.kind == FrameKind::Rejoin => {
                    if let Some(partition) = self.at_mut(index) {
                        partition.entries_from_lsn = laid.lsn;
                    }
                }
                Ok(_) => {}
                Err(full) => return self.stall(full),
            }
        }
        if let Some(partition) = self.at_mut(index) {
            if standing == Standing::Member {
                partition.told = Told::Laid;
            }
            if let Some(asking) = &mut partition.asking {
                asking.changing = true;
            }
        }
        self.attach(Pending::Standing { partition: index, standing });
    }

    fn standing_frames(&self, index: u32, standing: Standing) -> Vec<(FrameHeader, Vec<u8>)> {
        let Some(partition) = self.at(index) else { return Vec::new() };
        let (group, term) = (partition.group, partition.replica.epoch());
        let frame = |kind| FrameHeader::bodyless(kind, group, 0, term);
        // Only a checkpoint says what the segments hold. Without it nobody could tell that anything is missing.
        let held = |kind| {
            let last = partition.replica.in_segments().unwrap_or_default();
            FrameHeader { index: last.index, ..FrameHeader::bodyless(kind, group, last.offset, last.term) }
        };
        if standing == Standing::Rejoining {
            return vec![(held(FrameKind::Rejoin), Vec::new())];
        }
        let mut frames = Vec::new();
        if group == GroupId::METADATA && partition.standing == Standing::Undecided {
            let founder = |(node, disk): (&u32, &u64)| {
                let founder = frame(FrameKind::Founder);
                (FrameHeader { record_count: *node, index: *disk, ..founder }, Vec::new())
            };
            frames.extend(self.founders.iter().map(founder));
        }
        // With whom it is one: what said so before may be lost, and its log may begin behind the last entry that does.
        let (configuration, (term_before, entry_before)) = match &partition.replica {
            Replica::Raft(replica) => (replica.raft.configuration().clone(), replica.raft.made_after()),
            Replica::Unplaced(unplaced) => (unplaced.log.configuration.clone(), unplaced.log.made_after),
            Replica::Single(_) => Default::default(),
        };
        if !configuration.is_unknown() {
            let body = configuration.encode();
            let entry = entry_before.cast_signed();
            frames.push((FrameHeader::of_configuration(group, entry, term_before, 0, &body), body));
        }
        // What it promised meanwhile was not laid down as long as it asked again after each start.
        if let Some(replica) = partition.replica.raft() {
            let (record_count, index) = (replica.raft.vote(), replica.raft.commit());
            frames.push((FrameHeader { record_count, index, ..frame(FrameKind::Vote) }, Vec::new()));
        }
        frames.push((held(FrameKind::Joined), Vec::new()));
        frames
    }

    /// What a replica has become is durable.
    pub(super) fn standing_reached(&mut self, index: u32, standing: Standing, actions: &mut Vec<Action>) {
        let Some(partition) = self.at_mut(index) else { return };
        let before = std::mem::replace(&mut partition.standing, standing);
        if standing == Standing::Rejoining {
            // The frame says that everything before it means nothing, damage included.
            partition.end_unknown = false;
        }
        if let Some(asking) = &mut partition.asking {
            asking.changing = false;
        }
        let group = partition.group;
        if standing == Standing::Member {
            if partition.told == Told::Laid {
                partition.told = Told::Durable;
            }
            partition.asking = None;
            if let Some(replica) = partition.replica.raft_mut() {
                replica.raft.set_votes(Votes::All);
            }
        }
        self.replication.place_due.insert(group);
        self.ask_due_us.get_or_insert(self.now.monotonic_us);
        if group != GroupId::METADATA {
            return;
        }
        let (level, text) = match (before, standing) {
            (Standing::Undecided, Standing::Member) if self.founders.is_empty() => {
                (LogLevel::Info, "this node is new in the cluster")
            }
            (Standing::Undecided, Standing::Member) => {
                (LogLevel::Info, "this node is one of those with which the cluster begins")
            }
            (Standing::Member, Standing::Member) => return,
            (_, Standing::Member) => {
                (LogLevel::Info, "this node has the metadata again that its disk has lost")
            }
            _ => (
                LogLevel::Warn,
                "what this node knew of the cluster is lost, by damage or with its disk: it votes for nobody until it has everything from the others, all of which must be there for that",
            ),
        };
        actions.push(Action::Log { level, text: text.into() });
    }
}

/// Who the replicas of a group are as far as one of them knows that this is committed, and by the newest entry of its log.
fn configurations_known(replica: &Replica) -> Vec<Configuration> {
    let (committed, newest) = match replica {
        Replica::Single(_) => return Vec::new(),
        Replica::Unplaced(unplaced) => (&unplaced.log.configuration, unplaced.newest_configuration()),
        Replica::Raft(replica) => (replica.raft.configuration(), replica.newest_configuration()),
    };
    let mut known = vec![committed.clone()];
    if newest != committed {
        known.push(newest.clone());
    }
    known.retain(|configuration| !configuration.is_unknown());
    known
}
