//! Groups whose replicas are to be others. The leader takes its group there, one change after the other, each of which is an entry of the
//! group's own log (`pyralog_replication::raft::Configuration::step_to`); when the last one is in force it tells the leader of the
//! metadata. A leader that is to go hands its leadership over first, and the next one goes on from where the group is.
//!
//! Nothing of this is kept anywhere but in the group's log and in the catalogue: whoever leads can begin at any step.

use pyralog_core::GroupId;
use pyralog_replication::metadata::{Catalog, Command, Replica as Place};
use pyralog_replication::raft::{ChangeRefused, Configuration, Step};

use crate::format::journal::FrameHeader;

use super::api::{LogLevel, PeerId};
use super::lag::Progress;
use super::replica::{RaftReplica, Replica};
use super::replicate::SMALL_FRAMES_BYTES;
use super::{Action, Engine};

/// How often a leader looks again at a group that is on its way, and tells again that one has arrived, microseconds.
const AGAIN_US: u64 = 500_000;

/// A replica whose group is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moving {
    /// When it last told that the group has arrived, monotonic microseconds.
    told_us: Option<u64>,
    /// That it can't go on was logged.
    complained: bool,
}

impl RaftReplica {
    /// Whether a learner had everything that this leader has less than `within_us` ago. Under a steady load it lacks the newest
    /// entries at any moment.
    fn had_all_lately(&self, node: u32, now_us: u64, within_us: u64) -> bool {
        let lag_us = self.member(node).map(|member| self.lag_us(member, now_us));
        self.raft.matched_of(node) > 0 && lag_us.is_some_and(|lag_us| lag_us < within_us)
    }
}

impl Engine {
    /// Takes notice of whether the catalogue wants the replicas of a group elsewhere, or does not know where they are.
    pub(super) fn note_move(&mut self, catalog: &Catalog, group: GroupId) {
        let Some(index) = self.find(group) else { return };
        let Some(replica) = self.raft_mut(index) else { return };
        if catalog.is_settled(group, replica.raft.configuration()) {
            replica.moves = None;
        } else {
            replica.moves.get_or_insert_default();
            self.queue_group(index);
        }
    }

    /// When groups on their way are looked at again.
    pub(super) fn moves_deadline_us(&self) -> Option<u64> {
        self.replication.moves_due_us
    }

    /// Has groups on their way looked at again: what a step waits for may have come without an event of the group.
    pub(super) fn tick_moves(&mut self) {
        let now_us = self.now.monotonic_us;
        if self.replication.moves_due_us.is_none_or(|due_us| due_us > now_us) {
            return;
        }
        self.replication.moves_due_us = None;
        for index in 0..self.partitions.len() as u32 {
            if self.raft_mut(index).is_some_and(|replica| replica.moves.is_some() && replica.raft.is_leader())
            {
                self.replication.moves_due_us = Some(now_us + AGAIN_US);
                self.queue_group(index);
            }
        }
    }

    /// Takes a group that this shard leads one step further to where its replicas are wanted. Everything that it has put out is laid
    /// down.
    pub(super) fn step_move(&mut self, index: u32, actions: &mut Vec<Action>) {
        let (now_us, lately_us) = (self.now.monotonic_us, self.config.election.election_min_us);
        let Some(replica) = self.at(index).and_then(|partition| partition.replica.raft()) else { return };
        if replica.moves.is_none() || !replica.raft.is_leader() || replica.handing_over {
            return;
        }
        let Some(catalog) = self.catalog.clone() else { return };
        let (group, configuration) = (replica.raft.group(), replica.raft.configuration());
        let (before, _) = catalog.begins_with(group);
        let has_all = |node| replica.had_all_lately(node, now_us, lately_us);
        let of_metadata = group == GroupId::METADATA;
        if !Self::may_change_replicas(&catalog) {
            // It goes on when the level is raised, which is a change of the catalogue.
            return;
        }
        let step = match configuration.step_to(&next_stop(configuration, &catalog, group), has_all) {
            // It was never under way, or came back: that this is over is told by a newer version.
            Step::Done if configuration.version() <= before.version() && !of_metadata => {
                Step::Propose(configuration.confirmed())
            }
            step => step,
        };
        self.replication.moves_due_us.get_or_insert(now_us + AGAIN_US);
        match step {
            Step::Propose(next) => self.propose_change(index, next, actions),
            // The catalogue says nothing of it.
            Step::Done if of_metadata => self.note_move(&catalog, group),
            Step::Done => self.tell_arrived(index, actions),
            Step::Wait(_) => {}
        }
    }

    fn propose_change(&mut self, index: u32, next: Configuration, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        if !self.journal.has_room(&self.pool, SMALL_FRAMES_BYTES) {
            return;
        }
        let Some(replica) = self.raft_mut(index) else { return };
        let (group, body) = (replica.raft.group(), next.encode());
        match replica.raft.propose_change(now_us, next) {
            Ok(made) => {
                let (base_offset, term, entry) = (made.base_offset, made.term, made.index);
                let frame = FrameHeader::of_configuration(group, base_offset, term, entry, &body);
                match self.lay_small(&frame, &body) {
                    Ok(lsn) => {
                        if let Some(replica) = self.raft_mut(index) {
                            replica.note_laid(entry, lsn);
                        }
                    }
                    Err(what) => self.fence(&what, actions),
                }
                self.queue_group(index);
            }
            Err(ChangeRefused::LeaderLeaves) => {
                if let Some(heir) = self.heir(index) {
                    self.give_away(index, heir);
                }
            }
            Err(ChangeRefused::NotYet | ChangeRefused::NotLeader(_)) => {}
            Err(ChangeRefused::Impossible(what)) => {
                let moves = replica.moves.get_or_insert_default();
                if !std::mem::replace(&mut moves.complained, true) {
                    let text =
                        format!("the replicas of partition {group} can't go where they are wanted: {what}");
                    actions.push(Action::Log { level: LogLevel::Error, text });
                }
            }
        }
    }

    /// The group is where it is wanted: the leader of the metadata hears of it, again and again until the catalogue says so.
    fn tell_arrived(&mut self, index: u32, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        let Some(replica) = self.raft_mut(index) else { return };
        let moves = replica.moves.get_or_insert_default();
        if moves.told_us.is_some_and(|told_us| now_us < told_us + AGAIN_US) {
            return;
        }
        moves.told_us = Some(now_us);
        let (group, raft) = (replica.raft.group(), &replica.raft);
        let committed = raft.position(raft.commit()).unwrap_or_else(|| raft.start());
        let command = Command::Reassigned {
            topic: group.topic.0,
            partition: group.partition,
            configuration: raft.configuration().clone(),
            term: committed.term,
            index: committed.index,
        };
        self.tell_controller(command, actions);
    }

    /// Takes notice of who the replicas of a group are when that has changed.
    pub(super) fn note_members(&mut self, index: u32, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        let shards = &self.replication.shards;
        let slot = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut);
        let Some(replica) = slot.and_then(|partition| partition.replica.raft_mut()) else { return };
        let changes = replica.raft.changes();
        if std::mem::replace(&mut replica.changes, changes) == changes {
            return;
        }
        let members: Vec<PeerId> =
            replica.raft.configuration().members().map(|member| shards.peer(member)).collect();
        let last = replica.raft.last_index();
        let known = |member: &PeerId| replica.progress(*member).copied();
        let progress =
            members.iter().map(|member| known(member).unwrap_or_else(|| Progress::new(last, now_us)));
        let progress: Vec<Progress> = progress.collect();
        (replica.members, replica.progress) = (members.clone(), progress);
        replica.strangers.clear();
        let group = replica.raft.group();
        if replica.raft.is_leader() {
            let nodes = replica.raft.configuration();
            let text = match group == GroupId::METADATA {
                true => format!("the metadata is on nodes {nodes}"),
                false => format!("partition {group}: its replicas are on nodes {nodes}"),
            };
            actions.push(Action::Log { level: LogLevel::Info, text });
        }
        if let Some(catalog) = self.catalog.clone() {
            self.note_move(&catalog, group);
        }
        let node = self.config.node;
        let unknown = |peer: &PeerId| peer.node != node && !self.replication.links.is_wanted(*peer);
        if members.iter().any(unknown)
            && let Some(catalog) = self.catalog.clone()
        {
            self.want_links(&catalog, actions);
        }
    }

    /// Whether a group has moved away for good: a change is committed and confirmed that is newer than all that this replica knows, and
    /// it is none of the replicas. A catalogue from before the replica came here does not say that.
    pub(super) fn has_moved_away(&self, group: GroupId, catalog: &Catalog) -> bool {
        #[cfg(feature = "planted-bugs")]
        if self.has_bug(super::planted::PlantedBug::DeleteBeforeMoved)
            && catalog
                .moves
                .get(&group)
                .is_some_and(|wanted| wanted.to.iter().all(|to| to.node != self.config.node.0))
        {
            return true;
        }
        if self.wanted_here(catalog, group) == Some(self.config.shard) {
            return false;
        }
        let Some(partition) = self.find(group).and_then(|index| self.at(index)) else { return false };
        let version = match &partition.replica {
            Replica::Single(_) => 0,
            Replica::Unplaced(unplaced) => unplaced.newest_configuration().version(),
            Replica::Raft(replica) => replica.newest_configuration().version(),
        };
        let settled = catalog.settled.get(&group);
        settled.is_some_and(|settled| version <= settled.configuration.version())
    }
}

/// Where a group goes next: where it is wanted, or, when it has a replica on another shard of a node that is wanted, to where that one
/// is not. There may be one that the catalogue does not know of any more, see [`Catalog::is_settled`], or not yet: then it stays.
fn next_stop(configuration: &Configuration, catalog: &Catalog, group: GroupId) -> Vec<Place> {
    let voters = configuration.voters();
    if group == GroupId::METADATA {
        return catalog.metadata_wanted(voters);
    }
    let fits = |to: &Place| configuration.place(to.node).is_none_or(|there| there == *to);
    let fits_voters = |to: &Place| fits(to) || !voters.iter().any(|voter| voter.node == to.node);
    let (wanted, replicas) = (catalog.wanted(group), catalog.replicas(group).collect::<Vec<_>>());
    if wanted.iter().all(fits) {
        return wanted;
    }
    // Without its learners it may fit.
    let stays = wanted.iter().all(fits_voters) || !replicas.iter().all(fits);
    if stays { voters.to_vec() } else { replicas }
}
